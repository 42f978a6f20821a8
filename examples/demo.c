/* The demo: three instances of build/manager share out 16 partitions, each with a
 * real process; a fourth joins, one leaves politely, one is killed. Shows who owns
 * what as it changes, how long each hand-over took, and that no partition ever had
 * two workers.
 *
 *   demo [PATH-OF-MANAGER]       exit 0 only if all of that held
 *   demo --worker DIR PARTITION  what the instances run
 *
 * Uses the Consul named by $CONSUL or on the PATH, else the built-in agent. Needs
 * no root and no network but 127.0.0.1, and leaves nothing behind. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "devconsul.h"

enum {
    PARTITION_COUNT = 16, INSTANCE_COUNT = 4, RECORD_COUNT_MAX = 256,
    DEMO_MS_MAX = 55000, STEP_MS_MAX = 20000, AGENT_MS_MAX = 15000, LEFTOVER_MS_MAX = 8000,
    TAIL_LINES = 8, ARGUMENTS_MAX = 32
};

/* CLOCK_BOOTTIME: the same clock in every process, whatever happens to the wall clock. */
static int64_t now_us(void)
{
    struct timespec now;
#ifdef CLOCK_BOOTTIME
    clock_gettime(CLOCK_BOOTTIME, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void nap(long ms)
{
    struct timespec pause = { ms / 1000, (ms % 1000) * 1000000L };
    nanosleep(&pause, NULL);
}

static void put_path(char *to, size_t bytes, const char *dir, const char *kind, const char *name)
{
    snprintf(to, bytes, "%s/%s.%s", dir, kind, name);
}

static const char *from_env(const char *variable, const char *otherwise)
{
    const char *value = getenv(variable);
    return value && *value ? value : otherwise;
}

/* ============================================================================
 * The worker: holds a lock on its partition's file for as long as it lives.
 * The kernel gives that lock back at its death, not a moment earlier: whoever
 * finds it taken has seen two workers at once.
 * ========================================================================== */

/* One line, appended whole: records of several processes do not mix. */
static void record(const char *path, const char *what, int64_t at_us)
{
    char line[512];
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int len = snprintf(line, sizeof line, "%s %lld %ld %s %s\n", what, (long long)at_us, (long)getpid(),
                       from_env("MANAGER_INSTANCE", "?"), from_env("MANAGER_FENCE", "0"));
    if (fd < 0 || write(fd, line, (size_t)len) != len) fprintf(stderr, "demo worker: cannot write %s: %s\n", path, strerror(errno));
    if (fd >= 0) close(fd);
}

static int worker(const char *dir, const char *partition)
{
    int64_t began_us = now_us();
    char lock[PATH_MAX], log[PATH_MAX], overlaps[PATH_MAX];
    sigset_t ends;
    int number;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    put_path(lock, sizeof lock, dir, "lock", partition);
    put_path(log, sizeof log, dir, "log", partition);
    put_path(overlaps, sizeof overlaps, dir, "overlaps", partition);
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) { fprintf(stderr, "demo worker: cannot open %s: %s\n", lock, strerror(errno)); return 1; }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) record(overlaps, "overlap", began_us);
    record(log, "start", began_us);
    sigwait(&ends, &number);
    record(log, "end", now_us());
    return 0;
}

/* ============================================================================
 * State of the demo
 * ========================================================================== */

typedef struct instance { const char *id; pid_t pid; } instance;

typedef struct demo {
    char     dir[PATH_MAX - 64];            /* temporary; "" once it is gone */
    char     manager[PATH_MAX], self[PATH_MAX];
    char     address[32];
    pid_t    agent;
    int      agent_stop;                    /* the built-in agent ends when this closes; -1: a real Consul */
    instance instances[INSTANCE_COUNT];
    size_t   leaving;                       /* the one that was asked to, or killed; INSTANCE_COUNT: none */
    int      leaving_signal;                /* what it then should end by; 0: by itself */
    mgr     *m;                             /* looks on */
    int64_t  began_us;
    char     shown[PARTITION_COUNT + 1];    /* the last line of the table: a letter for each partition */
    bool     bad;
} demo;

static volatile sig_atomic_t interrupted;

static void on_signal(int number) { interrupted = number; }

static double seconds(const demo *d) { return (double)(now_us() - d->began_us) / 1e6; }

static void bad(demo *d, const char *format, ...) MGR__PRINTF(2, 3);
static void bad(demo *d, const char *format, ...)
{
    va_list args;
    fflush(stdout);
    fputs("demo: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs("\n", stderr);
    d->bad = true;
}

static bool colours(void)
{
    const char *no = getenv("NO_COLOR");
    return isatty(STDOUT_FILENO) && !(no && *no);
}

static void tail(const demo *d, const char *name)
{
    char path[PATH_MAX], line[512];
    long lines = 0;
    put_path(path, sizeof path, d->dir, "out", name);
    FILE *file = fopen(path, "r");
    if (!file) return;
    while (fgets(line, sizeof line, file)) lines++;
    rewind(file);
    for (lines -= TAIL_LINES; fgets(line, sizeof line, file); lines--) if (lines <= 0) fprintf(stderr, "  %s: %s", name, line);
    fclose(file);
}

/* ============================================================================
 * Processes
 * ========================================================================== */

/* In the child: a group of its own, for Ctrl-C is for the demo alone; output to
 * a file; and an end when the demo ends without saying goodbye. */
static pid_t child(const demo *d, const char *name, int death_signal)
{
    char path[PATH_MAX];
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    if (pid != 0) return pid;
    setpgid(0, 0);
#ifdef PR_SET_PDEATHSIG
    prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0);
#else
    (void)death_signal;
#endif
    if (getppid() != parent) _exit(1);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    put_path(path, sizeof path, d->dir, "out", name);
    int out = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600), none = open("/dev/null", O_RDONLY);
    if (out < 0 || none < 0 || dup2(none, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0) _exit(1);
    return 0;
}

/* execvp wants char *const *, though it changes nothing: hand it a copy of the pointers. */
static void run(const char *const *argv)
{
    char *copy[ARGUMENTS_MAX];
    size_t count = 0;
    while (argv[count]) count++;
    memcpy(copy, argv, (count + 1) * sizeof *copy);
    execvp(copy[0], copy);
    fprintf(stderr, "cannot execute %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

/* Our children, adopted orphans included, as far as /proc shows them. */
static size_t children(pid_t *pids, size_t max)
{
    DIR *proc = opendir("/proc");
    size_t count = 0;
    for (struct dirent *entry; proc && (entry = readdir(proc)) && count < max;) {
        char path[300], stat[512] = "";
        long parent = 0;
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t len = fd < 0 ? 0 : read(fd, stat, sizeof stat - 1);
        if (fd >= 0) close(fd);
        const char *name_end = len > 0 ? strrchr(stat, ')') : NULL;     /* a name may hold anything */
        if (name_end && sscanf(name_end + 1, " %*c %ld", &parent) == 1 && parent == (long)getpid())
            pids[count++] = (pid_t)strtol(entry->d_name, NULL, 10);
    }
    if (proc) closedir(proc);
    return count;
}

/* Reap whatever has ended. True: no child is left. */
static bool reap_all(demo *d)
{
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
        if (pid == d->agent) d->agent = 0;
        for (size_t i = 0; i < INSTANCE_COUNT; i++) if (pid == d->instances[i].pid) d->instances[i].pid = 0;
    }
    return pid < 0 && errno == ECHILD;
}

static bool nothing_left(demo *d, int64_t within_ms)
{
    int64_t until_us = now_us() + within_ms * 1000;
    bool none;
    while (!(none = reap_all(d)) && now_us() < until_us) nap(5);
    return none;
}

/* Every exit path ends here. We are a subreaper: orphans of what we kill become
 * our children, so that a few rounds find all. */
static void kill_all(demo *d)
{
    int64_t until_us = now_us() + 5 * 1000000;
    while (!reap_all(d) && now_us() < until_us) {
        pid_t pids[64];
        size_t count = children(pids, 64);
        for (size_t i = 0; i < count; i++) kill(pids[i], SIGKILL);
        nap(5);
    }
}

static void remove_dir(demo *d)
{
    DIR *dir = *d->dir ? opendir(d->dir) : NULL;
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if (entry->d_name[0] != '.') unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir) closedir(dir);
    if (*d->dir) rmdir(d->dir);
    d->dir[0] = 0;
}

/* ============================================================================
 * The agent: a Consul if there is one, else the built-in
 * ========================================================================== */

static bool find_consul(char *path, size_t bytes)
{
    const char *named = getenv("CONSUL"), *dirs = from_env("PATH", "/usr/bin:/bin");
    if (named && *named) { snprintf(path, bytes, "%s", named); return true; }
    while (*dirs) {
        size_t len = strcspn(dirs, ":");
        snprintf(path, bytes, "%.*s/consul", (int)len, dirs);
        if (len && access(path, X_OK) == 0) return true;
        dirs += len + (dirs[len] == ':');
    }
    return false;
}

/* Ports that were free a moment ago: all are held until all are chosen. */
static bool free_ports(unsigned *ports, size_t count)
{
    int fds[8];
    size_t made = 0;
    for (; made < count && made < 8; made++) {
        struct sockaddr_in address;
        socklen_t len = sizeof address;
        memset(&address, 0, sizeof address);
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        fds[made] = socket(AF_INET, SOCK_STREAM, 0);
        if (fds[made] < 0) break;
        if (bind(fds[made], (struct sockaddr *)&address, len) != 0 || getsockname(fds[made], (struct sockaddr *)&address, &len) != 0) {
            close(fds[made]);
            break;
        }
        ports[made] = ntohs(address.sin_port);
    }
    for (size_t i = 0; i < made; i++) close(fds[i]);
    return made == count;
}

static bool start_consul(demo *d, const char *consul)
{
    unsigned ports[3];
    char http[12], server[12], serf[12];
    if (!free_ports(ports, 3)) { bad(d, "no free port on 127.0.0.1: %s", strerror(errno)); return false; }
    snprintf(http, sizeof http, "%u", ports[0]);
    snprintf(server, sizeof server, "%u", ports[1]);
    snprintf(serf, sizeof serf, "%u", ports[2]);
    snprintf(d->address, sizeof d->address, "127.0.0.1:%u", ports[0]);
    const char *argv[] = {
        consul, "agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-node", "demo",
        "-http-port", http, "-server-port", server, "-serf-lan-port", serf,
        "-serf-wan-port", "-1", "-dns-port", "-1", "-grpc-port", "-1", NULL
    };
    d->agent = child(d, "agent", SIGKILL);
    if (d->agent == 0) run(argv);
    return d->agent > 0;
}

static bool start_builtin(demo *d)
{
    int stop[2], ready[2];
    char port[8] = "";
    size_t len = 0;
    if (pipe(stop) != 0 || pipe(ready) != 0) { bad(d, "no pipe to be had: %s", strerror(errno)); return false; }
    d->agent = child(d, "agent", SIGKILL);
    if (d->agent == 0) {
        close(stop[1]);
        close(ready[0]);
        _exit(dc_serve("127.0.0.1:0", stop[0], ready[1]));
    }
    close(stop[0]);
    close(ready[1]);
    fcntl(stop[1], F_SETFD, FD_CLOEXEC);
    d->agent_stop = stop[1];
    for (ssize_t got; len < sizeof port - 1 && !memchr(port, '\n', len) && (got = read(ready[0], port + len, sizeof port - 1 - len)) > 0;)
        len += (size_t)got;
    close(ready[0]);
    port[strspn(port, "0123456789")] = 0;
    snprintf(d->address, sizeof d->address, "127.0.0.1:%s", port);
    return *port != 0;
}

/* Ready: it answers, if only that there is no such service yet. */
static bool await_agent(demo *d)
{
    int64_t until_us = now_us() + AGENT_MS_MAX * 1000;
    while (now_us() < until_us && !interrupted && d->agent) {
        mgr_view *view = NULL;
        mgr_result result = mgr_view_read(d->m, 1000, &view);
        if (view) mgr_view_free(d->m, view);
        reap_all(d);
        if (d->agent && (result == MGR_OK || result == MGR_NOT_FOUND)) return true;
        nap(50);
    }
    if (interrupted) return false;
    if (!d->agent) bad(d, "the agent has ended by itself");
    else bad(d, "the agent at %s does not answer: %s", d->address, mgr_error_text(d->m));
    tail(d, "agent");
    return false;
}

static bool start_agent(demo *d)
{
    char consul[PATH_MAX];
    bool real = find_consul(consul, sizeof consul);
    mgr_desc desc;
    if (!(real ? start_consul(d, consul) : start_builtin(d))) { bad(d, "the agent did not start"); return false; }
    memset(&desc, 0, sizeof desc);
    desc.service_name = "demo";
    desc.consul_addr = d->address;
    desc.observer = true;
    mgr_result result = mgr_open(&d->m, &desc);
    if (result != MGR_OK) { bad(d, "%s", d->m ? mgr_error_text(d->m) : mgr_result_text(result)); return false; }
    printf("agent: %s at %s\n", real ? consul : "built in", d->address);
    return await_agent(d);
}

/* ============================================================================
 * The table: a line for each change, a column for each partition
 * ========================================================================== */

static void show_head(void)
{
    printf("\n   time ");
    for (int i = 0; i < PARTITION_COUNT; i++) printf("%3d", i);
    printf("\n");
}

static void show_cell(char owner)
{
    static const char *const COLOURS[INSTANCE_COUNT] = { "32", "33", "36", "35" };
    bool known = owner >= 'a' && owner < 'a' + INSTANCE_COUNT;
    if (known && colours()) printf("  \033[%sm%c\033[0m", COLOURS[owner - 'a'], owner);
    else printf("  %c", owner);
}

static void show_note(const demo *d, const char *note) { printf("%6.1fs    %s\n", seconds(d), note); }

static void show_view(demo *d, const mgr_view *view)
{
    char row[PARTITION_COUNT + 1];
    memset(row, '.', PARTITION_COUNT);
    row[PARTITION_COUNT] = 0;
    for (size_t i = 0; i < view->partition_count; i++) {
        long number = strtol(view->partitions[i].name, NULL, 10);
        const char *owner = view->partitions[i].owner;
        if (owner && number >= 0 && number < PARTITION_COUNT) row[number] = owner[0];
    }
    if (strcmp(row, d->shown) == 0) return;
    memcpy(d->shown, row, sizeof row);
    printf("%6.1fs ", seconds(d));
    for (int i = 0; i < PARTITION_COUNT; i++) show_cell(row[i]);
    printf("\n");
    fflush(stdout);
}

/* ============================================================================
 * What the workers recorded
 * ========================================================================== */

typedef struct entry { bool start; int64_t at_us; char instance[32]; } entry;

static size_t read_records(const demo *d, const char *kind, int partition, entry *entries)
{
    char path[PATH_MAX], name[12], line[512], what[16];
    size_t count = 0;
    long long at_us;
    snprintf(name, sizeof name, "%d", partition);
    put_path(path, sizeof path, d->dir, kind, name);
    FILE *file = fopen(path, "r");
    while (file && count < RECORD_COUNT_MAX && fgets(line, sizeof line, file)) {
        entry *e = &entries[count];
        if (sscanf(line, "%15s %lld %*s %31s", what, &at_us, e->instance) != 3) continue;
        e->start = strcmp(what, "start") == 0;
        e->at_us = at_us;
        count++;
    }
    if (file) fclose(file);
    return count;
}

static bool all_at_work(const demo *d)
{
    entry entries[RECORD_COUNT_MAX];
    for (int i = 0; i < PARTITION_COUNT; i++) {
        size_t count = read_records(d, "log", i, entries);
        if (!count || !entries[count - 1].start) return false;
    }
    return true;
}

/* From the old worker's end to the new one's start, for the first change of owner
 * since since_us. A worker that was killed left no end: then from the event on,
 * which can only be longer. -1: it did not change hands. */
static int64_t hand_over_us(const demo *d, int partition, int64_t since_us)
{
    entry entries[RECORD_COUNT_MAX];
    size_t count = read_records(d, "log", partition, entries);
    for (size_t i = 1; i < count; i++) {
        if (!entries[i].start || entries[i].at_us < since_us || strcmp(entries[i].instance, entries[i - 1].instance) == 0) continue;
        return entries[i].at_us - (entries[i - 1].start ? since_us : entries[i - 1].at_us);
    }
    return -1;
}

static int order(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static void report_hand_overs(demo *d, const char *what, int64_t since_us)
{
    int64_t gaps[PARTITION_COUNT];
    size_t count = 0;
    for (int i = 0; i < PARTITION_COUNT; i++) {
        int64_t gap = hand_over_us(d, i, since_us);
        if (gap >= 0) gaps[count++] = gap;
    }
    if (!count) { bad(d, "%s: no partition changed hands", what); return; }
    qsort(gaps, count, sizeof *gaps, order);
    printf("           %s: %zu partition%s changed hands; old worker dead to new one started: median %.1f ms, maximum %.1f ms\n",
           what, count, count == 1 ? "" : "s", (double)gaps[count / 2] / 1000.0, (double)gaps[count - 1] / 1000.0);
}

static void report_overlaps(demo *d)
{
    entry entries[RECORD_COUNT_MAX];
    size_t overlaps = 0, workers = 0;
    for (int i = 0; i < PARTITION_COUNT; i++) {
        size_t count = read_records(d, "log", i, entries);
        for (size_t k = 0; k < count; k++) workers += entries[k].start;
        count = read_records(d, "overlaps", i, entries);
        for (size_t k = 0; k < count; k++) bad(d, "partition %d had two workers at %.3fs, the second of %s", i,
                                               (double)(entries[k].at_us - d->began_us) / 1e6, entries[k].instance);
        overlaps += count;
    }
    if (!overlaps) printf("%zu workers ran for %d partitions; none ever had two at once\n", workers, PARTITION_COUNT);
}

/* ============================================================================
 * The play
 * ========================================================================== */

static void start_instance(demo *d, size_t n)
{
    char partitions[24];
    instance *i = &d->instances[n];
    snprintf(partitions, sizeof partitions, "0..%d", PARTITION_COUNT - 1);
    const char *argv[] = {
        d->manager, "run", "-s", "demo", "-i", i->id, "-p", partitions, "--consul", d->address,
        "--lease", "3s", "--delay", "4s", "--settle", "500ms",
        "--", d->self, "--worker", d->dir, "{partition}", NULL
    };
    i->pid = child(d, i->id, SIGTERM);
    if (i->pid == 0) run(argv);
    if (i->pid < 0) bad(d, "cannot start instance %s: %s", i->id, strerror(errno));
}

/* Has it ended? Not as it should, or without being asked: that is reported. */
static bool ended(demo *d, size_t n, bool asked, int wanted_signal)
{
    instance *i = &d->instances[n];
    int status = 0;
    if (!i->pid) return true;
    if (waitpid(i->pid, &status, WNOHANG) != i->pid) return false;
    i->pid = 0;
    bool fine = asked && (wanted_signal ? WIFSIGNALED(status) && WTERMSIG(status) == wanted_signal
                                        : WIFEXITED(status) && WEXITSTATUS(status) == 0);
    if (fine) return true;
    if (WIFEXITED(status)) bad(d, "instance %s ended with exit code %d", i->id, WEXITSTATUS(status));
    else bad(d, "instance %s was killed by signal %d", i->id, WTERMSIG(status));
    tail(d, i->id);
    return true;
}

/* True: whoever was to leave has ended. An end of any other makes the demo bad. */
static bool reap_instances(demo *d)
{
    bool left = true;
    for (size_t i = 0; i < INSTANCE_COUNT; i++) {
        if (i == d->leaving) left = ended(d, i, true, d->leaving_signal);
        else if (d->instances[i].pid) ended(d, i, false, 0);
    }
    return left;
}

static size_t members(const mgr_view *view)
{
    size_t count = 0;
    for (size_t i = 0; i < view->instance_count; i++) count += view->instances[i].alive && !view->instances[i].joining;
    return count;
}

/* Show every change until `wanted` instances share all partitions, each at work,
 * and whoever was to leave has ended. */
static bool settle(demo *d, size_t wanted)
{
    int64_t until_us = now_us() + STEP_MS_MAX * 1000, end_us = d->began_us + (int64_t)DEMO_MS_MAX * 1000;
    uint64_t index = 0;
    if (end_us < until_us) until_us = end_us;
    while (!interrupted && now_us() < until_us && !d->bad) {
        mgr_view *view = NULL;
        bool left = reap_instances(d);
        if (index && mgr_view_wait(d->m, index, 100) != MGR_OK) nap(20);
        if (mgr_view_read(d->m, 1000, &view) != MGR_OK) { nap(20); continue; }
        show_view(d, view);
        bool done = left && view->converged && members(view) == wanted && all_at_work(d);
        index = view->index;
        mgr_view_free(d->m, view);
        if (done) return true;
    }
    if (interrupted || d->bad) return false;
    bad(d, "not converged with %zu instances in time", wanted);
    for (size_t i = 0; i < INSTANCE_COUNT; i++) tail(d, d->instances[i].id);
    return false;
}

static bool end_instance(demo *d, size_t n, int signal_number, size_t wanted)
{
    d->leaving = n;
    d->leaving_signal = signal_number == SIGKILL ? SIGKILL : 0;
    kill(d->instances[n].pid, signal_number);
    return settle(d, wanted);
}

static bool play(demo *d)
{
    show_head();
    show_note(d, "a, b and c start");
    for (size_t i = 0; i < 3; i++) start_instance(d, i);
    if (!settle(d, 3)) return false;

    int64_t since_us = now_us();
    show_note(d, "d joins");
    start_instance(d, 3);
    if (!settle(d, 4)) return false;
    report_hand_overs(d, "d joined", since_us);

    since_us = now_us();
    show_note(d, "b is asked to leave (SIGTERM)");
    if (!end_instance(d, 1, SIGTERM, 3)) return false;
    report_hand_overs(d, "b left", since_us);

    since_us = now_us();
    show_note(d, "the manager of c is killed (SIGKILL)");
    if (!end_instance(d, 2, SIGKILL, 2)) return false;
    report_hand_overs(d, "c killed", since_us);
    return true;
}

/* Everything ends politely; what is still there afterwards is a fault. */
static void wind_up(demo *d)
{
    show_note(d, "a and d are asked to leave (SIGTERM)");
    for (size_t i = 0; i < INSTANCE_COUNT; i++) if (d->instances[i].pid) kill(d->instances[i].pid, SIGTERM);
    int64_t until_us = now_us() + STEP_MS_MAX * 1000;
    for (size_t left = INSTANCE_COUNT; left && now_us() < until_us && !interrupted; nap(5)) {
        left = 0;
        for (size_t i = 0; i < INSTANCE_COUNT; i++) left += !ended(d, i, true, 0);
    }
    for (size_t i = 0; i < INSTANCE_COUNT; i++) if (d->instances[i].pid) bad(d, "instance %s does not end", d->instances[i].id);
    if (d->agent_stop >= 0) close(d->agent_stop);
    else if (d->agent) kill(d->agent, SIGINT);
    d->agent_stop = -1;
    report_overlaps(d);
    if (nothing_left(d, LEFTOVER_MS_MAX)) { printf("nothing is left running\n"); return; }
    pid_t pids[8];
    size_t count = children(pids, 8);
    bad(d, "processes were left running, the first of them %ld", count ? (long)pids[0] : 0L);
}

static void catch_signals(void)
{
    static const int SIGNALS[] = { SIGINT, SIGTERM, SIGHUP };
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) sigaction(SIGNALS[i], &action, NULL);
    signal(SIGPIPE, SIG_IGN);
#ifdef PR_SET_CHILD_SUBREAPER
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
#endif
}

static bool prepare(demo *d, const char *self, const char *manager)
{
    const char *tmp = from_env("TMPDIR", "/tmp");
    char given[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", d->self, sizeof d->self - 1);
    if (len > 0) d->self[len] = 0;
    else if (!realpath(self, d->self)) { bad(d, "cannot tell where %s is", self); return false; }
    int dir_len = (int)(strrchr(d->self, '/') - d->self);
    if (manager) snprintf(given, sizeof given, "%s", manager);
    else snprintf(given, sizeof given, "%.*s/manager", dir_len, d->self);
    if (!realpath(given, d->manager) || access(d->manager, X_OK) != 0) {
        bad(d, "%s: %s; build it with make, or name it: demo PATH-OF-MANAGER", given, strerror(errno));
        return false;
    }
    snprintf(d->dir, sizeof d->dir, "%s/manager-demo-XXXXXX", tmp);
    if (mkdtemp(d->dir)) return true;
    bad(d, "cannot make a directory in %s: %s", tmp, strerror(errno));
    d->dir[0] = 0;
    return false;
}

int main(int argc, char **argv)
{
    static const char *const IDS[INSTANCE_COUNT] = { "a", "b", "c", "d" };
    demo d;
    if (argc == 4 && strcmp(argv[1], "--worker") == 0) return worker(argv[2], argv[3]);
    if (argc > 2 || (argc == 2 && argv[1][0] == '-')) { fprintf(stderr, "demo: usage: demo [PATH-OF-MANAGER]\n"); return 64; }
    memset(&d, 0, sizeof d);
    d.agent_stop = -1;
    d.leaving = INSTANCE_COUNT;
    d.began_us = now_us();
    for (size_t i = 0; i < INSTANCE_COUNT; i++) d.instances[i].id = IDS[i];
    catch_signals();
    if (prepare(&d, argv[0], argc > 1 ? argv[1] : NULL) && start_agent(&d) && play(&d)) wind_up(&d);
    if (interrupted) bad(&d, "ended by signal %d", (int)interrupted);
    mgr_close(d.m);
    kill_all(&d);
    remove_dir(&d);
    printf("%s after %.1f s\n", d.bad ? "FAILED" : "all of it held,", seconds(&d));
    return d.bad;
}
