/* The harness of the end-to-end tests: real Consul agents, real `manager run`
 * processes, and workers whose life is recorded by somebody who cannot be fooled.
 *
 * A test program is a small tree of its own:
 *
 *   supervisor     has the temporary folder and the time limit; whatever happens,
 *                  it kills what is left below it and removes the folder
 *     tests        runs the tests; a subreaper, so that orphans come to it and an
 *                  end of test can see that nobody is left
 *       recorder   writes down when each worker started and died
 *       consul agent, manager run ... the things under test
 *
 * A worker is this program again (--worker DIR). It takes an exclusive lock on a
 * file of its partition: whoever finds it taken is the second owner of a partition
 * and says so in DIR/overlaps. It keeps a connection to the recorder open; the
 * kernel closes that when the worker dies, however it dies. */
#ifndef E2E_H
#define E2E_H

#define MANAGER_STATIC
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "test.h"

enum {
    E2E_LIMIT_S = 220,             /* a whole test program */
    E2E_CHILDREN_MAX = 16384,      /* commands included */
    E2E_RUNS_MAX = 4096,
    E2E_MEMBERS_MAX = 16,
    E2E_PARTS_MAX = 64,
    E2E_DELAY_MS = 4000            /* what every instance is started with, see e2e_run */
};

typedef struct e2e_child { pid_t pid; bool ended; int status; } e2e_child;

typedef struct e2e_agent {
    char  name[32], dir[80], host[32];
    char  address[240];            /* what --consul is given; of a server in a cluster: its own first, then the others' */
    int   http_port, server_port, serf_port;
    char  join[2][64];             /* the other servers, "" for a single agent */
    const char *hcl;               /* more configuration; NULL: none */
    char  token[64];               /* for what the tests themselves ask of it */
    pid_t pid;                     /* 0: not running */
} e2e_agent;

/* One life of a worker, from the recorder's file. Times are CLOCK_BOOTTIME. */
typedef struct e2e_life {
    char     key[1600];            /* "service/partition", escaped like a key */
    pid_t    pid;
    uint64_t fence;
    int64_t  start_ns, term_ns, dead_ns;   /* 0: not yet */
} e2e_life;

typedef struct e2e_member { char id[256]; bool alive, draining; uint64_t weight, owned, joined; size_t refuses; } e2e_member;
typedef struct e2e_part { char name[256], assigned[256], owner[256], state[16], since[40]; uint64_t fence; } e2e_part;

typedef struct e2e_view {
    bool       converged;
    char       service[256];
    e2e_member members[E2E_MEMBERS_MAX];
    size_t     member_count, alive_count;
    e2e_part   parts[E2E_PARTS_MAX];
    size_t     part_count;
} e2e_view;

/* Test programs are single-threaded and run once: their state may be global. */
static char        e2e_root[40];               /* temporary folder of the program */
static char        e2e_dir[60];                /* ... and of the running test */
static char        e2e_self[PATH_MAX], e2e_manager[PATH_MAX], e2e_consul[PATH_MAX];
static const char *e2e_mode = "";              /* how workers behave, see e2e_worker */
static e2e_child   e2e_children[E2E_CHILDREN_MAX];
static size_t      e2e_child_count;
static e2e_agent  *e2e_agents[8];
static size_t      e2e_agent_count;
static pid_t       e2e_recorder_pid;
static e2e_life    e2e_lives[E2E_RUNS_MAX];
static size_t      e2e_life_count;
static mgr__heap   e2e_heap;
static char        e2e_out[1 << 20], e2e_err[1 << 16];   /* what the last command said */
static int         e2e_test_number;

/* ---- small things ---- */

static int64_t e2e_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t e2e_now_ms(void) { return e2e_now_ns() / 1000000; }

static void e2e_sleep(int ms) { poll(NULL, 0, ms); }

static size_t e2e_read_file(const char *path, char *to, size_t bytes)
{
    size_t len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        for (ssize_t n; len < bytes - 1 && (n = read(fd, to + len, bytes - 1 - len)) > 0; ) len += (size_t)n;
        close(fd);
    }
    to[len] = 0;
    return len;
}

static void e2e_write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    if (fd >= 0) close(fd);
}

static size_t e2e_lines(const char *text)
{
    size_t n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

static const char *e2e_key_of(const char *service, const char *partition)
{
    static char key[1600];
    mgr__buf out;
    mgr__buf_init(&out, &e2e_heap, sizeof key - 1);
    mgr__key_escape(&out, mgr__str_of(service));
    mgr__buf_char(&out, '/');
    mgr__key_escape(&out, mgr__str_of(partition));
    snprintf(key, sizeof key, "%s", mgr__buf_cstr(&out));
    mgr__buf_free(&out);
    return key;
}

/* ---- processes ---- */

/* Everybody whose parent is gone comes to us, so the end of any child may be asked for. */
static void e2e_reap(void)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0; )
        for (size_t i = e2e_child_count; i-- > 0; )
            if (e2e_children[i].pid == pid && !e2e_children[i].ended) {
                e2e_children[i].ended = true;
                e2e_children[i].status = status;
                break;
            }
}

static const e2e_child *e2e_child_of(pid_t pid)
{
    for (size_t i = e2e_child_count; i-- > 0; )
        if (e2e_children[i].pid == pid) return &e2e_children[i];
    return NULL;
}

static bool e2e_ended(pid_t pid)
{
    e2e_reap();
    const e2e_child *child = e2e_child_of(pid);
    return !child || child->ended;
}

/* Exit status, or -signal; 1000: still running after that time. */
static int e2e_wait_end(pid_t pid, int ms)
{
    for (int64_t until = e2e_now_ms() + ms; !e2e_ended(pid); e2e_sleep(5))
        if (e2e_now_ms() > until) return 1000;
    const e2e_child *child = e2e_child_of(pid);
    if (!child) return 1000;
    return WIFEXITED(child->status) ? WEXITSTATUS(child->status) : -WTERMSIG(child->status);
}

/* out, err: files; NULL: /dev/null. */
static pid_t e2e_spawn(char *const *argv, const char *out, const char *err)
{
    e2e_reap();
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int in = open("/dev/null", O_RDWR), o = out ? open(out, O_WRONLY | O_CREAT | O_APPEND, 0644) : in;
        int e = err ? open(err, O_WRONLY | O_CREAT | O_APPEND, 0644) : in;
        dup2(in, 0); dup2(o, 1); dup2(e, 2);
        for (int fd = 3; fd < 64; fd++) close(fd);
        execv(argv[0], argv);
        _exit(127);
    }
    CHECK(pid > 0 && e2e_child_count < E2E_CHILDREN_MAX);
    if (pid > 0 && e2e_child_count < E2E_CHILDREN_MAX) {
        e2e_children[e2e_child_count].pid = pid;
        e2e_children[e2e_child_count].ended = false;
        e2e_child_count++;
    }
    return pid;
}

typedef struct e2e_proc { pid_t pid, ppid; char state, comm[32]; } e2e_proc;

static bool e2e_proc_read(pid_t pid, e2e_proc *proc)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (!e2e_read_file(path, text, sizeof text)) return false;
    const char *open_at = strchr(text, '('), *close_at = strrchr(text, ')');
    int ppid;
    if (!open_at || !close_at || sscanf(close_at + 1, " %c %d", &proc->state, &ppid) != 2) return false;
    proc->pid = pid;
    proc->ppid = (pid_t)ppid;
    mgr__copy_text(proc->comm, sizeof proc->comm, mgr__str_make(open_at + 1, (size_t)(close_at - open_at - 1)));
    return true;
}

static pid_t e2e_parent_of(pid_t pid)
{
    e2e_proc proc;
    return e2e_proc_read(pid, &proc) ? proc.ppid : 0;
}

/* All living processes below this one. */
static size_t e2e_descendants(e2e_proc *found, size_t max)
{
    static e2e_proc all[4096];
    size_t count = 0, n = 0;
    DIR *proc = opendir("/proc");
    if (!proc) return 0;
    for (struct dirent *entry; (entry = readdir(proc)) && count < MGR__COUNT(all); ) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid > 0 && e2e_proc_read(pid, &all[count])) count++;
    }
    closedir(proc);
    for (bool more = true; more; ) {
        more = false;
        for (size_t i = 0; i < count; i++) {
            bool below = all[i].pid && all[i].ppid == getpid();
            for (size_t k = 0; k < n && !below; k++) below = all[i].pid && all[i].ppid == found[k].pid;
            if (!below || n == max) continue;
            found[n++] = all[i];
            all[i].pid = 0;
            more = true;
        }
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) if (found[i].state != 'Z' && found[i].state != 'X') found[kept++] = found[i];
    return kept;
}

static bool e2e_is_ours(pid_t pid)
{
    if (pid == e2e_recorder_pid) return true;
    for (size_t i = 0; i < e2e_agent_count; i++) if (e2e_agents[i]->pid == pid) return true;
    return false;
}

/* Processes of the test that are still there, once they had `ms` to go. */
static size_t e2e_left(e2e_proc *found, size_t max, int ms)
{
    size_t n = 0;
    for (int64_t until = e2e_now_ms() + ms; ; e2e_sleep(20)) {
        e2e_reap();
        size_t count = e2e_descendants(found, max);
        n = 0;
        for (size_t i = 0; i < count; i++) if (!e2e_is_ours(found[i].pid)) found[n++] = found[i];
        if (!n || e2e_now_ms() > until) return n;
    }
}

static void e2e_kill_all(bool ours_too)
{
    e2e_proc found[512];
    for (int round = 0; round < 200; round++) {
        size_t count = e2e_descendants(found, MGR__COUNT(found)), killed = 0;
        for (size_t i = 0; i < count; i++)
            if (ours_too || !e2e_is_ours(found[i].pid)) { kill(found[i].pid, SIGKILL); killed++; }
        e2e_reap();
        if (!killed) return;
        e2e_sleep(10);
    }
}

/* ---- the worker, and who records it ---- */

static void e2e_on_term(int number) { (void)number; }

static int e2e_connect_recorder(const char *dir)
{
    struct sockaddr_un to;
    memset(&to, 0, sizeof to);
    to.sun_family = AF_UNIX;
    snprintf(to.sun_path, sizeof to.sun_path, "%s/record.sock", dir);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0) return fd;
    return -1;
}

static void e2e_overlap(const char *dir, const char *key, const char *fence)
{
    char path[300], line[2000];
    snprintf(path, sizeof path, "%s/overlaps", dir);
    int len = snprintf(line, sizeof line, "OVERLAP %s fence %s pid %d at %lld\n", key, fence, (int)getpid(), (long long)e2e_now_ns());
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd >= 0 && write(fd, line, (size_t)len) == len) close(fd);
}

/* --worker DIR MODE: runs until SIGTERM.
 *   exit      ends by itself, with status 3
 *   once      ends by itself, with status 0
 *   stubborn  ignores SIGTERM
 *   away      a grandchild in a session of its own does the work */
static int e2e_worker(const char *dir, const char *mode)
{
    const char *partition = getenv("MANAGER_PARTITION"), *fence = getenv("MANAGER_FENCE"), *service = getenv("MANAGER_SERVICE");
    sigset_t block, before;
    struct sigaction action;
    e2e_heap = mgr__heap_make(NULL);
    if (!partition || !fence || !service || !getenv("MANAGER_INSTANCE")) return 90;
    if (getenv("CONSUL_HTTP_TOKEN")) return 91;
    sigemptyset(&block);
    sigaddset(&block, SIGTERM);
    sigprocmask(SIG_BLOCK, &block, &before);
    sigdelset(&before, SIGTERM);
    memset(&action, 0, sizeof action);
    action.sa_handler = e2e_on_term;
    sigaction(SIGTERM, &action, NULL);
    if (!strcmp(mode, "away")) {
        if (fork() > 0) for (;;) { sigsuspend(&before); return 0; }
        setsid();
    }
    const char *key = e2e_key_of(service, partition);
    char path[300], line[2000];
    snprintf(path, sizeof path, "%s/%016llx.lock", dir, (unsigned long long)mgr__hash(mgr__str_of(key)));
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) != 0) e2e_overlap(dir, key, fence);
    int record = e2e_connect_recorder(dir);
    if (record < 0) return 92;
    int len = snprintf(line, sizeof line, "%s %lld %s", fence, (long long)e2e_now_ns(), key);
    if (write(record, line, (size_t)len) != len) return 93;
    if (!strcmp(mode, "exit")) { e2e_sleep(30); return 3; }
    if (!strcmp(mode, "once")) { e2e_sleep(30); return 0; }
    for (;;) {
        sigsuspend(&before);
        if (write(record, "T", 1) != 1) return 94;
        if (!strcmp(mode, "stubborn") || !strcmp(mode, "away")) continue;
        return 0;
    }
}

static void e2e_record(int file, const char *what, const e2e_life *life, int64_t ns)
{
    char line[2000];
    int len = snprintf(line, sizeof line, "%s %d %llu %lld %s\n", what, (int)life->pid, (unsigned long long)life->fence, (long long)ns, life->key);
    if (write(file, line, (size_t)len) != len) _exit(1);
}

static bool e2e_recorder_hear(int file, int fd, e2e_life *life)
{
    char text[2000];
    ssize_t n = read(fd, text, sizeof text - 1);
    int64_t now = e2e_now_ns();
    if (n <= 0) { if (life->start_ns) e2e_record(file, "dead", life, now); return false; }
    text[n] = 0;
    if (text[0] == 'T') { e2e_record(file, "term", life, now); return true; }
    unsigned long long fence;
    long long ns;
    if (sscanf(text, "%llu %lld %1599s", &fence, &ns, life->key) != 3) return true;
    struct ucred who;
    socklen_t len = sizeof who;
    /* The kernel's word: right in our PID namespace, whatever the worker's is. */
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) == 0) life->pid = who.pid;
    life->fence = fence;
    life->start_ns = ns;
    e2e_record(file, "start", life, ns);
    return true;
}

/* Deaths before births: within one round a successor's hello may already wait. */
static void e2e_recorder_loop(int listener, int file)
{
    static struct pollfd fds[1024];
    static e2e_life lives[1024];
    size_t count = 1;
    fds[0].fd = listener;
    fds[0].events = POLLIN;
    for (;;) {
        poll(fds, (nfds_t)count, -1);
        for (size_t i = count; i-- > 1; ) {
            if (!fds[i].revents || e2e_recorder_hear(file, fds[i].fd, &lives[i])) continue;
            close(fds[i].fd);
            count--;
            fds[i] = fds[count];
            lives[i] = lives[count];
        }
        if (!fds[0].revents || count == MGR__COUNT(fds)) continue;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        memset(&lives[count], 0, sizeof lives[count]);
        fds[count].fd = fd;
        fds[count].events = POLLIN;
        fds[count].revents = 0;
        count++;
    }
}

static void e2e_recorder_start(void)
{
    struct sockaddr_un at;
    char path[300];
    memset(&at, 0, sizeof at);
    at.sun_family = AF_UNIX;
    snprintf(at.sun_path, sizeof at.sun_path, "%s/record.sock", e2e_dir);
    snprintf(path, sizeof path, "%s/record", e2e_dir);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    CHECK(listener >= 0 && file >= 0 && bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 1024) == 0);
    fflush(stdout);
    e2e_recorder_pid = fork();
    if (e2e_recorder_pid == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); e2e_recorder_loop(listener, file); }
    close(listener);
    close(file);
}

static e2e_life *e2e_life_open(pid_t pid, const char *key)
{
    for (size_t i = e2e_life_count; i-- > 0; )
        if (e2e_lives[i].pid == pid && !e2e_lives[i].dead_ns && !strcmp(e2e_lives[i].key, key)) return &e2e_lives[i];
    return NULL;
}

/* Read the whole record of this test into e2e_lives. */
static void e2e_lives_read(void)
{
    static char text[1 << 21];
    char path[300], what[8], key[1600];
    snprintf(path, sizeof path, "%s/record", e2e_dir);
    e2e_read_file(path, text, sizeof text);
    e2e_life_count = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        int pid;
        unsigned long long fence;
        long long ns;
        if (sscanf(line, "%7s %d %llu %lld %1599s", what, &pid, &fence, &ns, key) != 5) continue;
        e2e_life *life = strcmp(what, "start") ? e2e_life_open((pid_t)pid, key) : NULL;
        if (life && !strcmp(what, "dead")) life->dead_ns = ns;
        else if (life && !strcmp(what, "term")) life->term_ns = ns;
        if (strcmp(what, "start") || e2e_life_count == E2E_RUNS_MAX) continue;
        life = &e2e_lives[e2e_life_count++];
        memset(life, 0, sizeof *life);
        mgr__copy_text(life->key, sizeof life->key, mgr__str_of(key));
        life->pid = (pid_t)pid;
        life->fence = fence;
        life->start_ns = ns;
    }
}

/* Living workers of a service; with a partition, of that one. */
static size_t e2e_workers(const char *service, const char *partition)
{
    char prefix[1600];
    size_t n = 0;
    mgr__copy_text(prefix, sizeof prefix, mgr__str_of(e2e_key_of(service, partition ? partition : "")));
    e2e_lives_read();
    for (size_t i = 0; i < e2e_life_count; i++)
        if (!e2e_lives[i].dead_ns &&
            (partition ? !strcmp(e2e_lives[i].key, prefix) : !strncmp(e2e_lives[i].key, prefix, strlen(prefix)))) n++;
    return n;
}

/* The living worker of a partition, 0: none. After e2e_workers or e2e_lives_read. */
static pid_t e2e_worker_pid(const char *service, const char *partition)
{
    const char *key = e2e_key_of(service, partition);
    for (size_t i = e2e_life_count; i-- > 0; )
        if (!e2e_lives[i].dead_ns && !strcmp(e2e_lives[i].key, key)) return e2e_lives[i].pid;
    return 0;
}

static bool e2e_wait_workers(const char *service, size_t count, int ms)
{
    for (int64_t until = e2e_now_ms() + ms; e2e_workers(service, NULL) != count; e2e_sleep(10))
        if (e2e_now_ms() > until) return false;
    return true;
}

static int e2e_order(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* How long each partition of a service stood still, between the death of a worker
 * and the start of the next one since `from_ns`. Returns the longest gap in ms. */
static int64_t e2e_gaps(const char *service, int64_t from_ns, const char *label)
{
    static int64_t gaps[E2E_RUNS_MAX];
    char prefix[1600];
    size_t n = 0;
    mgr__copy_text(prefix, sizeof prefix, mgr__str_of(e2e_key_of(service, "")));
    e2e_lives_read();
    for (size_t i = 0; i < e2e_life_count; i++) {
        if (e2e_lives[i].start_ns < from_ns || strncmp(e2e_lives[i].key, prefix, strlen(prefix))) continue;
        for (size_t k = i; k-- > 0; ) {
            if (strcmp(e2e_lives[k].key, e2e_lives[i].key)) continue;
            if (e2e_lives[k].dead_ns) gaps[n++] = mgr__max64(0, e2e_lives[i].start_ns - e2e_lives[k].dead_ns);
            break;
        }
    }
    if (!n) { printf("measured %s: no gap\n", label); return 0; }
    qsort(gaps, n, sizeof gaps[0], e2e_order);
    printf("measured %s: %zu gaps, median %.1f ms, maximum %.1f ms\n", label, n, (double)gaps[n / 2] / 1e6, (double)gaps[n - 1] / 1e6);
    return gaps[n - 1] / 1000000;
}

/* ---- Consul ---- */

static int e2e_free_port(const char *host)
{
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = inet_addr(host);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0;
    if (fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0 && getsockname(fd, (struct sockaddr *)&at, &len) == 0)
        port = ntohs(at.sin_port);
    if (fd >= 0) close(fd);
    return port;
}

static int e2e_connect(const char *host, int port)
{
    struct sockaddr_in at;
    struct timeval limit;
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = inet_addr(host);
    at.sin_port = htons((uint16_t)port);
    limit.tv_sec = 5;
    limit.tv_usec = 0;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

/* One request; the body is left in e2e_out. HTTP/1.0, so that no answer is chunked.
 * 0: no answer. */
static int e2e_http(const e2e_agent *agent, const char *method, const char *path, const char *body)
{
    static char text[sizeof e2e_out];
    int fd = e2e_connect(agent->host, agent->http_port), status = 0;
    e2e_out[0] = 0;
    if (fd < 0) return 0;
    int len = snprintf(text, sizeof text, "%s %s HTTP/1.0\r\nX-Consul-Token: %s\r\nContent-Length: %zu\r\n\r\n%s", method, path, agent->token, strlen(body), body);
    size_t got = 0;
    if (send(fd, text, (size_t)len, MSG_NOSIGNAL) == len)
        for (ssize_t n; got < sizeof text - 1 && (n = recv(fd, text + got, sizeof text - 1 - got, 0)) > 0; ) got += (size_t)n;
    close(fd);
    text[got] = 0;
    const char *end = strstr(text, "\r\n\r\n");
    if (!end || sscanf(text, "HTTP/%*s %d", &status) != 1) return 0;
    snprintf(e2e_out, sizeof e2e_out, "%s", end + 4);
    return status;
}

/* The keys of a service below `under` that stand now. */
static size_t e2e_keys(const e2e_agent *agent, const char *service, const char *under)
{
    char path[2000];
    size_t n = 0;
    mgr__buf escaped;
    mgr__buf_init(&escaped, &e2e_heap, 1000);
    mgr__key_escape(&escaped, mgr__str_of(service));
    int len = snprintf(path, sizeof path, "/v1/kv/manager/");
    for (const char *c = mgr__buf_cstr(&escaped); *c; c++) len += snprintf(path + len, 4, *c == '%' ? "%%25" : "%c", *c);
    mgr__buf_free(&escaped);
    snprintf(path + len, sizeof path - (size_t)len, "/%s?keys", under);
    if (e2e_http(agent, "GET", path, "") != 200) return 0;
    for (const char *at = e2e_out; (at = strstr(at, "manager/")); at++) n++;
    return n;
}

static size_t e2e_times(const char *text, const char *what)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what)) n++;
    return n;
}

/* How many instances of a service Consul's own catalogue shows. */
static size_t e2e_registered(const e2e_agent *agent, const char *service)
{
    char path[400];
    snprintf(path, sizeof path, "/v1/catalog/service/%s", service);
    return e2e_http(agent, "GET", path, "") == 200 ? e2e_times(e2e_out, "\"ServiceID\"") : 0;
}

static void e2e_agent_make(e2e_agent *agent, const char *name, const char *host)
{
    memset(agent, 0, sizeof *agent);
    snprintf(agent->name, sizeof agent->name, "%s", name);
    snprintf(agent->host, sizeof agent->host, "%s", host);
    snprintf(agent->dir, sizeof agent->dir, "%s/%s", e2e_root, name);
    agent->http_port = e2e_free_port(host);
    agent->server_port = e2e_free_port(host);
    agent->serf_port = e2e_free_port(host);
    snprintf(agent->address, sizeof agent->address, "%s:%d", host, agent->http_port);
    if (e2e_agent_count < MGR__COUNT(e2e_agents)) e2e_agents[e2e_agent_count++] = agent;
}

/* Start it, or start it again with the data it had. */
static void e2e_agent_start(e2e_agent *agent)
{
    char text[8][240], log[300];
    char *argv[32];
    size_t n = 0, t = 0;
    const char *fixed[] = { e2e_consul, "agent", "-server", "-data-dir", agent->dir, "-node", agent->name, "-bind", agent->host,
        "-client", agent->host, "-serf-wan-port", "-1", "-dns-port", "-1", "-log-level", "warn", "-retry-interval", "300ms",
        "-hcl", "performance { raft_multiplier = 1 }" };
    for (size_t i = 0; i < MGR__COUNT(fixed); i++) argv[n++] = (char *)(uintptr_t)fixed[i];
    snprintf(text[t], sizeof text[t], "-bootstrap-expect=%d", agent->join[0][0] ? 3 : 1); argv[n++] = text[t++];
    snprintf(text[t], sizeof text[t], "-http-port=%d", agent->http_port); argv[n++] = text[t++];
    snprintf(text[t], sizeof text[t], "-server-port=%d", agent->server_port); argv[n++] = text[t++];
    snprintf(text[t], sizeof text[t], "-serf-lan-port=%d", agent->serf_port); argv[n++] = text[t++];
    for (size_t i = 0; i < 2 && agent->join[i][0]; i++) {
        snprintf(text[t], sizeof text[t], "-retry-join=%s", agent->join[i]);
        argv[n++] = text[t++];
    }
    if (agent->hcl) { argv[n++] = (char *)(uintptr_t)"-hcl"; argv[n++] = (char *)(uintptr_t)agent->hcl; }
    argv[n] = NULL;
    snprintf(log, sizeof log, "%s.log", agent->dir);
    agent->pid = e2e_spawn(argv, log, log);
}

/* A leader stands and a session can be made: before that Consul says 500. */
static bool e2e_agent_ready(const e2e_agent *agent, int ms)
{
    for (int64_t until = e2e_now_ms() + ms; e2e_now_ms() < until; e2e_sleep(50)) {
        if (e2e_ended(agent->pid)) break;
        if (e2e_http(agent, "GET", "/v1/status/leader", "") != 200 || strlen(e2e_out) < 4) continue;
        if (e2e_http(agent, "PUT", "/v1/session/create", "{\"TTL\":\"10s\"}") != 200) continue;
        char path[200], id[64];
        if (sscanf(e2e_out, " { \"ID\" : \"%63[^\"]\"", id) != 1) continue;
        snprintf(path, sizeof path, "/v1/session/destroy/%s", id);
        if (e2e_http(agent, "PUT", path, "") == 200) return true;
    }
    static char log[4000];
    char path[300];
    snprintf(path, sizeof path, "%s.log", agent->dir);
    e2e_read_file(path, log, sizeof log);
    printf("agent %s is not ready:\n%s\n", agent->name, log);
    return false;
}

/* Which of three servers leads; -1: none does now. */
static int e2e_leader(const e2e_agent servers[3])
{
    char leader[64];
    for (int i = 0; i < 3; i++) {
        snprintf(leader, sizeof leader, "\"%s:%d\"", servers[i].host, servers[i].server_port);
        for (int k = 0; k < 3; k++)
            if (servers[k].pid && e2e_http(&servers[k], "GET", "/v1/status/leader", "") == 200 && strstr(e2e_out, leader)) return i;
    }
    return -1;
}

static void e2e_agent_kill(e2e_agent *agent)
{
    if (!agent->pid) return;
    kill(agent->pid, SIGKILL);
    e2e_wait_end(agent->pid, 5000);
    agent->pid = 0;
}

/* The single agent that the tests of one program share. */
static e2e_agent *e2e_shared_agent(void)
{
    static e2e_agent agent;
    if (!agent.pid) {
        e2e_agent_make(&agent, "single", "127.0.0.1");
        e2e_agent_start(&agent);
        CHECK(e2e_agent_ready(&agent, 30000));
    }
    return &agent;
}

/* Three servers, each on an address of its own. */
static bool e2e_cluster_start(e2e_agent servers[3])
{
    char host[32], name[32];
    for (int i = 0; i < 3; i++) {
        snprintf(host, sizeof host, "127.0.%d.%d", 1 + (int)getpid() % 250, 1 + i);
        snprintf(name, sizeof name, "server-%d", i);
        e2e_agent_make(&servers[i], name, host);
    }
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 2; k++) {
            const e2e_agent *other = &servers[(i + 1 + k) % 3];
            snprintf(servers[i].join[k], sizeof servers[i].join[k], "%s:%d", other->host, other->serf_port);
            size_t len = strlen(servers[i].address);
            snprintf(servers[i].address + len, sizeof servers[i].address - len, ",%s:%d", other->host, other->http_port);
        }
        e2e_agent_start(&servers[i]);
    }
    for (int i = 0; i < 3; i++) if (!e2e_agent_ready(&servers[i], 40000)) return false;
    return true;
}

/* ---- the program under test ---- */

/* Run `manager ARGS...` (the list ends with NULL); its output is left in e2e_out and
 * e2e_err. Returns the exit status; 1000 if it had to be killed. */
static int e2e_cli_v(int ms, const char *first, va_list args)
{
    char out[300], err[300];
    char *argv[64];
    size_t n = 0;
    argv[n++] = e2e_manager;
    for (const char *arg = first; arg && n < 63; arg = va_arg(args, const char *)) argv[n++] = (char *)(uintptr_t)arg;
    argv[n] = NULL;
    snprintf(out, sizeof out, "%s/cli.out", e2e_dir);
    snprintf(err, sizeof err, "%s/cli.err", e2e_dir);
    unlink(out);
    unlink(err);
    pid_t pid = e2e_spawn(argv, out, err);
    int code = e2e_wait_end(pid, ms);
    if (code == 1000) kill(pid, SIGKILL);
    e2e_read_file(out, e2e_out, sizeof e2e_out);
    e2e_read_file(err, e2e_err, sizeof e2e_err);
    return code;
}

static int e2e_cli(const char *first, ...)
{
    va_list args;
    va_start(args, first);
    int code = e2e_cli_v(20000, first, args);
    va_end(args);
    return code;
}

typedef struct e2e_instance { pid_t pid; char id[256], log[300]; } e2e_instance;

/* Start `manager run` with the short times of all these tests; more options follow,
 * ended with NULL. id NULL: no -i. */
static e2e_instance e2e_run(const e2e_agent *agent, const char *service, const char *id, ...)
{
    static int number;
    e2e_instance instance;
    char *argv[64];
    size_t n = 0;
    va_list args;
    const char *fixed[] = { e2e_manager, "run", "--consul", agent->address, "-s", service, "-i", id, "--lease", "3s", "--delay", "4s",
        "--ttl", "10s", "--settle", "300ms", "--stop-grace", "1s" };
    const char *command[] = { "--", e2e_self, "--worker", e2e_dir, e2e_mode };
    memset(&instance, 0, sizeof instance);
    snprintf(instance.id, sizeof instance.id, "%s", id);
    snprintf(instance.log, sizeof instance.log, "%s/run-%d.log", e2e_dir, number++);
    for (size_t i = 0; i < MGR__COUNT(fixed); i++) argv[n++] = (char *)(uintptr_t)fixed[i];
    va_start(args, id);
    for (const char *arg; (arg = va_arg(args, const char *)) && n < 50; ) argv[n++] = (char *)(uintptr_t)arg;
    va_end(args);
    for (size_t i = 0; i < MGR__COUNT(command); i++) argv[n++] = (char *)(uintptr_t)command[i];
    argv[n] = NULL;
    instance.pid = e2e_spawn(argv, instance.log, instance.log);
    return instance;
}

/* What an instance has said so far. */
static const char *e2e_said(const e2e_instance *instance)
{
    static char text[1 << 18];
    e2e_read_file(instance->log, text, sizeof text);
    return text;
}

static bool e2e_wait_said(const e2e_instance *instance, const char *what, int ms)
{
    for (int64_t until = e2e_now_ms() + ms; !strstr(e2e_said(instance), what); e2e_sleep(20))
        if (e2e_now_ms() > until) return false;
    return true;
}

/* SIGTERM, and it must leave within 15 s; returns its exit status. */
static int e2e_stop(const e2e_instance *instance)
{
    kill(instance->pid, SIGTERM);
    return e2e_wait_end(instance->pid, 15000);
}

/* ---- status --json ---- */

static void e2e_json_text(mgr__json *j, mgr__buf *scratch, char *to, size_t bytes)
{
    mgr__buf_clear(scratch);
    if (mgr__json_null(j)) { to[0] = 0; return; }
    mgr__copy_text(to, bytes, mgr__json_string(j, scratch));
}

static void e2e_json_member(mgr__json *j, mgr__buf *scratch, e2e_member *member)
{
    mgr__str key;
    memset(member, 0, sizeof *member);
    if (!mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "id")) e2e_json_text(j, scratch, member->id, sizeof member->id);
        else if (mgr__str_is(key, "alive")) member->alive = mgr__json_bool(j);
        else if (mgr__str_is(key, "draining")) member->draining = mgr__json_bool(j);
        else if (mgr__str_is(key, "weight")) member->weight = mgr__json_u64(j);
        else if (mgr__str_is(key, "owned")) member->owned = mgr__json_u64(j);
        else if (mgr__str_is(key, "joined")) member->joined = mgr__json_u64(j);
        else if (mgr__str_is(key, "refuses") && mgr__json_array(j)) while (mgr__json_item(j)) member->refuses++;
    }
}

static void e2e_json_part(mgr__json *j, mgr__buf *scratch, e2e_part *part)
{
    mgr__str key;
    memset(part, 0, sizeof *part);
    if (!mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "name")) e2e_json_text(j, scratch, part->name, sizeof part->name);
        else if (mgr__str_is(key, "assigned")) e2e_json_text(j, scratch, part->assigned, sizeof part->assigned);
        else if (mgr__str_is(key, "owner")) e2e_json_text(j, scratch, part->owner, sizeof part->owner);
        else if (mgr__str_is(key, "state")) e2e_json_text(j, scratch, part->state, sizeof part->state);
        else if (mgr__str_is(key, "since")) e2e_json_text(j, scratch, part->since, sizeof part->since);
        else if (mgr__str_is(key, "fence")) { if (!mgr__json_null(j)) part->fence = mgr__json_u64(j); }
    }
}

/* False, with a caret under the byte, if the text is not JSON of that form. */
static bool e2e_view_parse(e2e_view *view, const char *text)
{
    mgr__json j;
    mgr__str key;
    mgr__buf scratch;
    memset(view, 0, sizeof *view);
    mgr__buf_init(&scratch, &e2e_heap, 4096);
    mgr__json_init(&j, mgr__str_of(text));
    if (mgr__json_object(&j)) while (mgr__json_key(&j, &key)) {
        if (mgr__str_is(key, "service")) e2e_json_text(&j, &scratch, view->service, sizeof view->service);
        else if (mgr__str_is(key, "converged")) view->converged = mgr__json_bool(&j);
        else if (mgr__str_is(key, "instances") && mgr__json_array(&j)) {
            while (mgr__json_item(&j) && view->member_count < E2E_MEMBERS_MAX) e2e_json_member(&j, &scratch, &view->members[view->member_count++]);
        } else if (mgr__str_is(key, "partitions") && mgr__json_array(&j)) {
            while (mgr__json_item(&j) && view->part_count < E2E_PARTS_MAX) e2e_json_part(&j, &scratch, &view->parts[view->part_count++]);
        }
    }
    mgr__buf_free(&scratch);
    for (size_t i = 0; i < view->member_count; i++) view->alive_count += view->members[i].alive;
    if (mgr__json_end(&j)) return true;
    printf("status --json: %s at byte %zu: %.60s\n", j.error ? j.error : "?", j.error_at, text + mgr__min64((int64_t)j.error_at, (int64_t)strlen(text)));
    return false;
}

/* Exit status of `manager status --json`; 0 or 3 when there was something to parse. */
static int e2e_status(const e2e_agent *agent, const char *service, e2e_view *view)
{
    memset(view, 0, sizeof *view);
    int code = e2e_cli("status", "--consul", agent->address, "-s", service, "--json", NULL);
    if (code == 0 || code == 3) CHECK(e2e_view_parse(view, e2e_out));
    return code;
}

/* A joiner is alive before the map knows it, so the shares count too. */
static bool e2e_settled(const e2e_view *view, int code, size_t instances, size_t partitions)
{
    if (code != 0 || !view->converged || view->alive_count != instances || view->part_count != partitions) return false;
    for (size_t i = 0; i < view->member_count; i++)
        if (view->members[i].alive && !view->members[i].draining && view->members[i].owned < partitions / instances) return false;
    for (size_t i = 0; i < partitions; i++)
        if (strcmp(view->parts[i].state, "assumed") || strcmp(view->parts[i].owner, view->parts[i].assigned)) return false;
    return true;
}

static void e2e_view_print(const e2e_view *view, int code)
{
    printf("status: exit %d, converged %d\n%.500s", code, view->converged, e2e_err);
    for (size_t i = 0; i < view->member_count; i++)
        printf("  instance %s alive %d owned %llu\n", view->members[i].id, view->members[i].alive, (unsigned long long)view->members[i].owned);
    for (size_t i = 0; i < view->part_count; i++)
        printf("  partition %s %s assigned %s owner %s\n", view->parts[i].name, view->parts[i].state, view->parts[i].assigned, view->parts[i].owner);
    printf("  %zu workers live\n", e2e_workers(view->service, NULL));
}

/* Until `instances` live and each of `partitions` has its owner and one worker. */
static bool e2e_wait_settled(const e2e_agent *agent, const char *service, size_t instances, size_t partitions, e2e_view *view, int ms)
{
    for (int64_t until = e2e_now_ms() + ms; ; e2e_sleep(80)) {
        int code = e2e_status(agent, service, view);
        bool good = e2e_settled(view, code, instances, partitions) && e2e_workers(service, NULL) == partitions;
        for (size_t i = 0; good && i < partitions; i++) good = e2e_worker_pid(service, view->parts[i].name) != 0;
        if (good) return true;
        if (e2e_now_ms() < until) continue;
        printf("%s did not settle on %zu instances and %zu partitions within %d ms\n", service, instances, partitions, ms);
        e2e_view_print(view, code);
        return false;
    }
}

static const e2e_member *e2e_member_of(const e2e_view *view, const char *id)
{
    for (size_t i = 0; i < view->member_count; i++) if (!strcmp(view->members[i].id, id)) return &view->members[i];
    return NULL;
}

static const char *e2e_owner_of(const e2e_view *view, const char *partition)
{
    for (size_t i = 0; i < view->part_count; i++) if (!strcmp(view->parts[i].name, partition)) return view->parts[i].owner;
    return "";
}

/* "6 5 5": how many partitions each owns, the most first. */
static const char *e2e_spread(const e2e_view *view)
{
    static char text[200];
    int64_t owned[E2E_MEMBERS_MAX];
    size_t n = 0, len = 0;
    for (size_t i = 0; i < view->member_count; i++) if (view->members[i].alive) owned[n++] = -(int64_t)view->members[i].owned;
    qsort(owned, n, sizeof owned[0], e2e_order);
    text[0] = 0;
    for (size_t i = 0; i < n; i++) len += (size_t)snprintf(text + len, sizeof text - len, i ? " %lld" : "%lld", (long long)-owned[i]);
    return text;
}

/* ---- a test ---- */

static bool e2e_begin(const char *name)
{
    (void)name;
    if (!e2e_consul[0]) return false;
    snprintf(e2e_dir, sizeof e2e_dir, "%s/%d", e2e_root, e2e_test_number++);
    mkdir(e2e_dir, 0755);
    e2e_mode = "";
    e2e_life_count = 0;
    e2e_recorder_start();
    return true;
}

/* The ends of the instances' logs, which may be long by now. */
static void e2e_print_logs(void)
{
    static char text[6000];
    char path[500];
    DIR *dir = opendir(e2e_dir);
    for (struct dirent *entry; dir && (entry = readdir(dir)); ) {
        if (strncmp(entry->d_name, "run-", 4)) continue;
        snprintf(path, sizeof path, "%s/%.200s", e2e_dir, entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        off_t end = lseek(fd, 0, SEEK_END), from = end < (off_t)sizeof text ? 0 : end - (off_t)sizeof text + 1;
        ssize_t len = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, from);
        if (fd >= 0) close(fd);
        printf("-- %s\n%.*s\n", entry->d_name, (int)(len < 0 ? 0 : len), text);
    }
    if (dir) closedir(dir);
}

/* Invariants 1 and 3, after each test: no two owners, and nobody left. */
static void e2e_end(void)
{
    char path[300], text[4000];
    e2e_proc found[512];
    for (size_t i = 0; i < e2e_child_count; i++)
        if (!e2e_children[i].ended && !e2e_is_ours(e2e_children[i].pid)) kill(e2e_children[i].pid, SIGTERM);
    size_t left = e2e_left(found, MGR__COUNT(found), 8000);
    for (size_t i = 0; i < left && i < 20; i++)
        printf("left behind: %d %s, state %c, child of %d\n", (int)found[i].pid, found[i].comm, found[i].state, (int)found[i].ppid);
    CHECK(left == 0);
    e2e_kill_all(false);
    snprintf(path, sizeof path, "%s/overlaps", e2e_dir);
    if (e2e_read_file(path, text, sizeof text)) { printf("%s", text); CHECK(!"two owners at once"); }
    CHECK(kill(e2e_recorder_pid, 0) == 0);
    kill(e2e_recorder_pid, SIGKILL);
    waitpid(e2e_recorder_pid, NULL, 0);
    e2e_recorder_pid = 0;
    if (test__bad) e2e_print_logs();
}

/* A test on real Consul, between e2e_begin and e2e_end. */
#define E2E(name)                                                       \
    static void name##_body(void);                                      \
    TEST(name)                                                          \
    {                                                                   \
        if (!e2e_begin(#name)) SKIP("no Consul can be had here");       \
        name##_body();                                                  \
        e2e_end();                                                      \
    }                                                                   \
    static void name##_body(void)

/* ---- the program ---- */

static void e2e_find_programs(void)
{
    char build[PATH_MAX], line[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", e2e_self, sizeof e2e_self - 1);
    e2e_self[len > 0 ? len : 0] = 0;
    snprintf(build, sizeof build, "%s", e2e_self);                 /* build/tests/e2e_x */
    for (int up = 0; up < 2; up++) if (strrchr(build, '/')) *strrchr(build, '/') = 0;
    snprintf(e2e_manager, sizeof e2e_manager, "%.4000s/manager", build);
    const char *consul = getenv("CONSUL");
    snprintf(e2e_consul, sizeof e2e_consul, "%s", consul ? consul : "");
    if (consul) return;
    snprintf(line, sizeof line, "'%.4000s/../tests/consul.sh'", build);
    FILE *from = popen(line, "r");
    if (from && fgets(e2e_consul, sizeof e2e_consul, from)) e2e_consul[strcspn(e2e_consul, "\n")] = 0;
    if (from) pclose(from);
}

/* The supervisor's life: until the tests end, a signal comes, or the time is over. */
static int e2e_supervise(pid_t tests, const sigset_t *signals)
{
    struct timespec tick;
    tick.tv_sec = 0;
    tick.tv_nsec = 200000000;
    for (int64_t until = e2e_now_ms() + E2E_LIMIT_S * 1000; e2e_now_ms() < until; ) {
        int status, number = sigtimedwait(signals, NULL, &tick);
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0; )
            if (pid == tests) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (number > 0 && number != SIGCHLD) return 128 + number;
    }
    printf("FAIL the tests took more than %d s\n0 passed, 1 failed, 0 skipped\n", E2E_LIMIT_S);
    return 1;
}

static int e2e_main(int argc, char **argv, int (*run)(int argc, char **argv))
{
    sigset_t signals, before;
    e2e_heap = mgr__heap_make(NULL);
    if (argc >= 3 && !strcmp(argv[1], "--worker")) return e2e_worker(argv[2], argc > 3 ? argv[3] : "");
    unsetenv("CONSUL_HTTP_ADDR");
    unsetenv("CONSUL_HTTP_TOKEN");
    unsetenv("CONSUL_HTTP_TOKEN_FILE");
    e2e_find_programs();
    snprintf(e2e_root, sizeof e2e_root, "/tmp/manager-e2e.XXXXXX");
    if (!mkdtemp(e2e_root)) { perror("mkdtemp"); return 1; }
    setenv("XDG_RUNTIME_DIR", e2e_root, 1);     /* life files go when we go */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigprocmask(SIG_BLOCK, &signals, &before);
    fflush(stdout);
    pid_t tests = fork();
    if (tests == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        sigprocmask(SIG_SETMASK, &before, NULL);
        int code = run(argc, argv);
        fflush(stdout);
        _exit(code);
    }
    int code = e2e_supervise(tests, &signals);
    fflush(stdout);
    e2e_kill_all(true);
    char line[200];
    snprintf(line, sizeof line, "rm -rf %s", e2e_root);
    if (!getenv("E2E_KEEP") && system(line) != 0) printf("%s is left\n", e2e_root);
    return code;
}

#endif
