/* [keeper] with real processes. The program is also its own worker: with
 * "--worker MODE" it plays one. It is a subreaper, so that nothing of what the
 * tests start can hide, and the last test checks that nothing is left. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "test.h"
#include <dirent.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/statvfs.h>

enum { PATIENCE_MS = TEST_PATIENCE_MS };    /* a safety bound, far above what anything here takes */

#if defined(MGR__SANITIZE_ADDRESS) || defined(MGR__SANITIZE_THREAD)
enum { SANITIZED = 1 };     /* workers start slowly and have handlers of the sanitizer's own */
#else
enum { SANITIZED = 0 };
#endif
#ifdef MGR__SANITIZE_THREAD
enum { SEEN_BY_HOST = 1 };  /* there the guard is made by libc's fork */
#else
enum { SEEN_BY_HOST = 0 };
#endif

static char self_path[PATH_MAX];
static char scratch_dir[64];
static char own_dir[64];         /* for life files: no other user may write to it, as to the other one */

/* ---- cgroups ---- */

static char outer_group[MGR__PROCESS_CGROUP_BYTES]; /* where we came from */
static char own_group[MGR__PROCESS_CGROUP_BYTES];   /* where we are; empty: no cgroup is ours to write */

/* Into a group of our own: keepers of other programs tidy up where they are, and would
 * end what a test leaves behind on purpose. */
static void enter_own_group(void)
{
    if (mgr__process_cgroup_find(outer_group, sizeof outer_group) < 0) return;
    snprintf(own_group, sizeof own_group, "%.400s/test-keeper-%d", outer_group, (int)getpid());
    if (mgr__process_cgroup_make(own_group) == 0 && mgr__process_cgroup_join(own_group) >= 0) return;
    mgr__process_cgroup_remove(own_group);
    own_group[0] = 0;
}

static void leave_own_group(void)
{
    if (!own_group[0]) return;
    mgr__process_cgroup_join(outer_group);
    mgr__process_cgroup_remove(own_group);
}

#define NEED_CGROUP() do { if (!own_group[0]) SKIP("no cgroup v2 that we may write to"); } while (0)

/* As root could: into the group that the manager is in. */
static void move_out(void)
{
    char group[MGR__PROCESS_CGROUP_BYTES];
    if (mgr__process_cgroup_find(group, sizeof group) < 0) _exit(4);
    char *ours = strstr(group, "/manager-");
    if (ours) *ours = 0;
    if (mgr__process_cgroup_join(group) < 0) _exit(5);
}

/* ---- the worker's part ---- */

static void hold_lock(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) < 0) _exit(3);
}

static void touch(const char *path) { close(open(path, O_RDWR | O_CREAT, 0600)); }

/* A grandchild that leaves group and session, as a daemon does; `path` stays locked while it lives. */
static void daemon_of_its_own(char *path, bool forget_name)
{
    if (fork() != 0) return;
    setsid();
    if (fork() != 0) _exit(0);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    if (!forget_name) hold_lock(path);
    else {
        static char dashes[] = "--worker", mode[] = "lock";
        char *argv[] = { self_path, dashes, mode, path, NULL }, *env[] = { NULL };
        execve(self_path, argv, env);
    }
    for (;;) pause();
}

static bool locked(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    bool held = flock(fd, LOCK_EX | LOCK_NB) < 0;
    close(fd);
    return held;
}

static char term_path[400];

static void told_to_stop(int number)
{
    (void)number;
    _exit(open(term_path, O_WRONLY | O_CREAT, 0600) < 0);
}

static int list_descriptors(const char *path)
{
    int seen[64], count = 0;
    for (int fd = 0; fd < 4096 && count < 64; fd++) if (fcntl(fd, F_GETFD) >= 0) seen[count++] = fd;
    FILE *f = fopen(path, "w");
    for (int i = 0; i < count; i++) fprintf(f, "%d ", seen[i]);
    fclose(f);
    return 0;
}

/* A grandchild that leaves, forgets its name, and traces `victim`, whose end it does not
 * ask for: nobody else can reap that one then, while it lives. */
static void traced_from_below(pid_t victim, char *path)
{
    static char dashes[] = "--worker", mode[] = "lock";
    char *argv[] = { self_path, dashes, mode, path, NULL }, *env[] = { NULL };
    if (fork() != 0) { wait(NULL); return; }
    setsid();
    if (fork() != 0) _exit(0);
    alarm(60);          /* nobody might find it */
    if (ptrace(PTRACE_SEIZE, victim, NULL, NULL) == 0) execve(self_path, argv, env);
    _exit(6);
}

/* Whether a process may be traced by one that is no ancestor of its (Yama, seccomp). */
static bool may_trace(void)
{
    int status = 1;
    pid_t traced = fork();
    if (traced == 0) for (;;) pause();
    pid_t tracer = fork();
    if (tracer == 0) _exit(ptrace(PTRACE_SEIZE, traced, NULL, NULL) < 0);
    waitpid(tracer, &status, 0);
    kill(traced, SIGKILL);
    waitpid(traced, NULL, 0);
    return status == 0;
}

#define NEED_TRACE() do { if (!may_trace()) SKIP("no right to trace"); } while (0)

/* A child that would pass for another worker's, the leader of `group`. */
static int deserter(char *path, const char *group)
{
    if (fork() == 0) {
        static char dashes[] = "--worker", mode[] = "lock";
        char *argv[] = { self_path, dashes, mode, path, NULL }, *env[] = { NULL };
        alarm(60);
        if (setpgid(0, (pid_t)atoi(group)) < 0) setsid();
        execve(self_path, argv, env);
        _exit(6);
    }
    while (!locked(path)) usleep(1000);
    return 0;
}

/* A grandchild that leaves, and becomes another user by a set-uid program: under hidepid
 * /proc does not show it. Its number is in the file at `path`. 0: so it was. */
static int hidden_grandchild(char *path)
{
    static char dashes[] = "--worker", mode[] = "hidden-lock";
    char program[400], number[16] = "";
    mgr__process seen;
    snprintf(program, sizeof program, "%s.setuid", path);
    char *argv[] = { program, dashes, mode, path, NULL }, *env[] = { NULL };
    if (fork() == 0) {
        setsid();
        if (fork() == 0) execve(program, argv, env);
        _exit(0);
    }
    wait(NULL);
    while (!*number) { usleep(1000); mgr__process_file_get(path, number, sizeof number); }
    return mgr__process_stat((pid_t)atoi(number), &seen) ? 8 : 0;
}

static int worker(int argc, char **argv)
{
    static char nothing[] = "";
    const char *mode = argv[2];
    char *arg = argc > 3 ? argv[3] : nothing;
    if (!strcmp(mode, "exit")) return atoi(arg);
    if (!strcmp(mode, "fds")) return list_descriptors(arg);
    if (!strcmp(mode, "env")) return getenv("COLOUR") && !strcmp(getenv("COLOUR"), "blue") && getenv("MANAGER_CHILD") ? 0 : 9;
    if (!strcmp(mode, "clean")) {   /* signals default and unmasked, stdin at its end, "/" */
        sigset_t mask;
        struct sigaction action;
        char cwd[8] = "", c;
        sigprocmask(SIG_BLOCK, NULL, &mask);
        for (int i = 1; i < 32; i++) {
            if (sigismember(&mask, i)) return 20;
            if (i != SIGKILL && i != SIGSTOP && sigaction(i, NULL, &action) == 0 && action.sa_handler != SIG_DFL && !SANITIZED) return 21;
        }
        if (read(0, &c, 1) != 0) return 22;
        if (!getcwd(cwd, sizeof cwd) || strcmp(cwd, "/")) return 23;
        return getpgrp() == getpid() ? 0 : 24;
    }
    if (!strcmp(mode, "nested")) return getenv("MANAGER_CHILD") && strstr(getenv("MANAGER_CHILD"), ";123-4-5;") ? 0 : 9;
    if (!strcmp(mode, "lock")) { hold_lock(arg); touch(argv[4] ? argv[4] : arg); for (;;) pause(); }
    if (!strcmp(mode, "stubborn")) { signal(SIGTERM, SIG_IGN); hold_lock(arg); for (;;) pause(); }
    if (!strcmp(mode, "polite")) {      /* leaves a note when it is told, none when it is killed */
        snprintf(term_path, sizeof term_path, "%s.told", arg);
        signal(SIGTERM, told_to_stop);
        hold_lock(arg);
        for (;;) pause();
    }
    if (!strcmp(mode, "freeze")) { hold_lock(arg); raise(SIGSTOP); for (;;) pause(); }
    if (!strcmp(mode, "daemon")) { daemon_of_its_own(arg, false); for (;;) pause(); }
    if (!strcmp(mode, "daemon-exit")) { daemon_of_its_own(arg, false); while (!locked(arg)) usleep(1000); return 0; }
    if (!strcmp(mode, "nameless-stay")) { daemon_of_its_own(arg, true); for (;;) pause(); }
    if (!strcmp(mode, "escape")) { move_out(); daemon_of_its_own(arg, false); for (;;) pause(); }
    if (!strcmp(mode, "escape-alone")) { move_out(); hold_lock(arg); for (;;) pause(); }
    if (!strcmp(mode, "escape-nameless-exit")) { move_out(); daemon_of_its_own(arg, true); while (!locked(arg)) usleep(1000); return 0; }
    if (!strcmp(mode, "tracer")) { traced_from_below(getppid(), arg); for (;;) pause(); }
    if (!strcmp(mode, "traced")) { traced_from_below(getpid(), arg); for (;;) pause(); }
    if (!strcmp(mode, "deserter")) return deserter(arg, strchr(arg, '#') + 1);
    if (!strcmp(mode, "hidden")) return hidden_grandchild(arg);
    if (!strcmp(mode, "hidden-lock")) {
        alarm(60);      /* nobody might find it */
        hold_lock(arg);
        int fd = open(arg, O_WRONLY);
        if (dprintf(fd, "%d", (int)getpid()) > 0) for (;;) pause();
        return 3;
    }
    if (!strcmp(mode, "nameless")) { daemon_of_its_own(arg, true); while (!locked(arg)) usleep(1000); return 0; }
    return 99;
}

/* ---- the manager's part ---- */

static mgr__heap   heap;
static mgr__keeper keeper;
static mgr__worker_report last[MGR_WORKER_COUNT_MAX];
static mgr_isolate isolate_by = MGR_ISOLATE_NONE;

static mgr__keeper_config config_of(uint32_t lease_ms, uint32_t grace_ms)
{
    mgr__keeper_config c;
    memset(&c, 0, sizeof c);
    c.lease_ms = lease_ms;
    c.kill_margin_ms = 600;
    c.stop_grace_ms = grace_ms;
    c.isolate = isolate_by;
    return c;
}

static bool open_keeper(const mgr__keeper_config *c)
{
    mgr__buf text;
    heap = mgr__heap_make(NULL);
    mgr__buf_init(&text, &heap, 4096);
    memset(last, 0, sizeof last);
    mgr_result result = mgr__keeper_open(&keeper, &heap, c, &text);
    if (result != MGR_OK) printf("open: %s\n", mgr__buf_cstr(&text));
    mgr__buf_free(&text);
    return result == MGR_OK;
}

static void lease_for(int64_t ms) { mgr__keeper_lease_extend(&keeper, mgr__process_now_ms() + ms); }

static void turn(int timeout_ms)
{
    mgr__worker_report report;
    struct pollfd p;
    p.fd = mgr__keeper_fd(&keeper);
    p.events = (short)(POLLIN | (mgr__keeper_wants_write(&keeper) ? POLLOUT : 0));
    poll(&p, 1, timeout_ms);
    mgr__keeper_turn(&keeper);
    while (mgr__keeper_next(&keeper, &report)) last[report.slot] = report;
}

static bool wait_state(uint32_t slot, mgr__worker_state state)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (last[slot].state != state && mgr__process_now_ms() < until) turn(50);
    return last[slot].state == state;
}

static bool wait_status(mgr__keeper_status status)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (mgr__keeper_look(&keeper) != status && mgr__process_now_ms() < until) turn(10);
    return mgr__keeper_look(&keeper) == status;
}

static bool wait_locked(const char *path, bool wanted)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (locked(path) != wanted && mgr__process_now_ms() < until) usleep(2000);
    return locked(path) == wanted;
}

static const char *scratch(const char *name)
{
    static char paths[8][128];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, 128, "%s/%s", scratch_dir, name);
    return path;
}

/* A worker in `mode`; MGR_OK expected. */
static uint32_t start_with(mgr__spawn *s, const char *mode, const char *arg)
{
    static const char *const env[] = { "COLOUR=blue", "PATH=/usr/bin:/bin", NULL };
    const char *argv[] = { self_path, "--worker", mode, arg, NULL };
    uint32_t slot = 0;
    s->argv = argv;
    s->env = env;
    CHECK_INT(mgr__keeper_spawn(&keeper, s, &slot), MGR_OK);
    memset(&last[slot], 0, sizeof last[slot]);
    return slot;
}

static uint32_t start(const char *mode, const char *arg)
{
    mgr__spawn s;
    memset(&s, 0, sizeof s);
    return start_with(&s, mode, arg);
}

static void end_keeper(void)
{
    mgr__keeper_dismiss(&keeper);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    mgr__keeper_close(&keeper);
}

/* A child of ours by birth or adoption; 0: all of them. Bounded, unlike waitpid's own wait. */
static void reap(pid_t pid)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    for (;;) {
        pid_t got = waitpid(pid ? pid : -1, NULL, WNOHANG | __WALL);
        if (got < 0 || (got && pid) || mgr__process_now_ms() > until) return;
        if (got == 0) usleep(1000);
    }
}

static int children_of(pid_t parent, mgr__process *out, size_t max)
{
    mgr__process_list list = { out, 0, max, false };
    mgr__process_list_all(&list, parent);
    return (int)list.count;
}

static char state_of(pid_t pid)
{
    mgr__process p;
    return mgr__process_stat(pid, &p) ? p.state : 0;
}

static bool wait_stopped(pid_t pid)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (state_of(pid) != 'T' && mgr__process_now_ms() < until) usleep(2000);
    return state_of(pid) == 'T';
}

static bool wait_gone(pid_t pid)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    char state;
    while ((state = state_of(pid)) != 0 && state != 'Z' && mgr__process_now_ms() < until) usleep(2000);
    return !state || state == 'Z';
}

/* ---- starting and ending ---- */

TEST(exit_status_is_reported)
{
    mgr__keeper_config c = config_of(3000, 1000);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(3000);
    uint32_t slot = start("exit", "7");
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    CHECK_INT(last[slot].status, 7);
    CHECK(last[slot].pid > 0 || keeper.page->space);    /* one in a namespace may have gone before its number out here was looked up */
    CHECK(!last[slot].stuck);
    mgr__keeper_free(&keeper, slot);
    uint32_t other = start("lock", scratch("a"));
    CHECK_INT(other, slot);
    CHECK(wait_state(other, MGR__WORKER_RUNNING));
    CHECK(wait_locked(scratch("a"), true));
    mgr__keeper_signal(&keeper, other, SIGUSR1);
    CHECK(wait_state(other, MGR__WORKER_EMPTY));
    CHECK_INT(last[other].status, -SIGUSR1);
    end_keeper();
}

TEST(failed_exec_is_named)
{
    static const char *const missing[] = { "no-such-program", NULL }, *const no_env[] = { NULL };
    mgr__keeper_config c = config_of(3000, 1000);
    mgr__spawn s;
    uint32_t slot;
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(3000);
    memset(&s, 0, sizeof s);
    s.argv = missing;
    s.env = no_env;
    CHECK_INT(mgr__keeper_spawn(&keeper, &s, &slot), MGR_OK);
    CHECK(wait_state(slot, MGR__WORKER_FAILED));
    CHECK_INT(last[slot].error, ENOENT);
    mgr__keeper_free(&keeper, slot);
    s.directory = "/no/such/directory";
    slot = start_with(&s, "exit", "0");
    CHECK(wait_state(slot, MGR__WORKER_FAILED));
    CHECK_INT(last[slot].error, ENOENT);
    end_keeper();
}

/* A search through so long a PATH takes longer than the start may. */
TEST(start_that_takes_too_long_fails)
{
    static const char *const argv[] = { "no-such-program", NULL };
    static char path[200001];
    mgr__keeper_config c = config_of(3000, 1000);
    mgr__spawn s;
    uint32_t slot;
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(3000);
    memcpy(path, "PATH=", 5);
    for (size_t i = 5; i + 3 < sizeof path; i += 3) memcpy(path + i, "/n:", 3);
    const char *env[] = { path, NULL };
    memset(&s, 0, sizeof s);
    s.argv = argv;
    s.env = env;
    s.start_timeout_ms = 1;
    CHECK_INT(mgr__keeper_spawn(&keeper, &s, &slot), MGR_OK);
    CHECK(wait_state(slot, MGR__WORKER_FAILED));
    CHECK_INT(last[slot].error, ETIMEDOUT);
    CHECK_INT(last[slot].status, -SIGKILL);
    end_keeper();
}

TEST(limits_are_refused_by_name)
{
    mgr__keeper_config c = config_of(3000, 1000);
    mgr__spawn s;
    uint32_t slot;
    if (!open_keeper(&c)) { CHECK(false); return; }
    char *big = (char *)malloc(MGR_SPAWN_BYTES_MAX + 2u);
    memset(big, 'x', MGR_SPAWN_BYTES_MAX + 1u);
    big[MGR_SPAWN_BYTES_MAX + 1u] = 0;
    const char *argv[] = { self_path, big, NULL };
    memset(&s, 0, sizeof s);
    s.argv = argv;
    CHECK_INT(mgr__keeper_spawn(&keeper, &s, &slot), MGR_LIMIT);
    argv[0] = NULL;
    CHECK_INT(mgr__keeper_spawn(&keeper, &s, &slot), MGR_INVALID);
    free(big);
    end_keeper();
}

TEST(no_lease_no_work_but_agents)
{
    mgr__keeper_config c = config_of(3000, 1000);
    mgr__spawn s;
    if (!open_keeper(&c)) { CHECK(false); return; }
    CHECK_INT(mgr__keeper_lease(&keeper), 0);
    uint32_t slot = start("exit", "0");
    CHECK(wait_state(slot, MGR__WORKER_FAILED));
    CHECK_INT(last[slot].error, ECANCELED);
    memset(&s, 0, sizeof s);
    s.agent = true;
    uint32_t agent = start_with(&s, "exit", "5");
    CHECK(wait_state(agent, MGR__WORKER_EMPTY));
    CHECK_INT(last[agent].status, 5);
    mgr__keeper_lease_extend(&keeper, mgr__process_now_ms() - 1);      /* open, but over: closed by the keeper */
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    mgr__keeper_close(&keeper);
}

TEST(worker_starts_clean)
{
    mgr__keeper_config c = config_of(3000, 1000);
    mgr__spawn s;
    char text[64] = "";
    int leak = open("/dev/null", O_RDONLY);
    int high = fcntl(leak, F_DUPFD, 700);
    signal(SIGUSR1, SIG_IGN);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(3000);
    uint32_t fds = start("fds", scratch("fds")), env = start("env", ""), clean = start("clean", "");
    CHECK(wait_state(fds, MGR__WORKER_EMPTY) && last[fds].status == 0);
    CHECK(wait_state(env, MGR__WORKER_EMPTY) && last[env].status == 0);
    CHECK(wait_state(clean, MGR__WORKER_EMPTY));
    CHECK_INT(last[clean].status, 0);
    mgr__process_file_get(scratch("fds"), text, sizeof text);
    CHECK_STR(text, "0 1 2 ");
    if (getuid() == 0) {
        memset(&s, 0, sizeof s);
        s.set_ids = true;
        s.uid = s.gid = 65534;
        /* Not this program: its folder may be closed to others. */
        const char *argv[] = { "sh", "-c", "test \"$(id -u):$(id -g):$(id -G)\" = 65534:65534:65534", NULL };
        static const char *const path[] = { "PATH=/usr/bin:/bin", NULL };
        uint32_t uid = 0;
        s.argv = argv;
        s.env = path;
        CHECK_INT(mgr__keeper_spawn(&keeper, &s, &uid), MGR_OK);
        memset(&last[uid], 0, sizeof last[uid]);
        CHECK(wait_state(uid, MGR__WORKER_EMPTY));
        CHECK_INT(last[uid].status, 0);
    }
    end_keeper();
    signal(SIGUSR1, SIG_DFL);
    close(leak);
    close(high);
}

TEST(stop_is_polite_then_certain)
{
    mgr__keeper_config c = config_of(5000, 1000);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(5000);
    uint32_t polite = start("lock", scratch("p")), stubborn = start("stubborn", scratch("s")), frozen = start("freeze", scratch("f"));
    CHECK(wait_locked(scratch("p"), true) && wait_locked(scratch("s"), true) && wait_locked(scratch("f"), true));
    CHECK(wait_state(frozen, MGR__WORKER_RUNNING));
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (state_of(last[frozen].pid) != 'T' && mgr__process_now_ms() < until) usleep(1000);
    mgr__keeper_stop(&keeper, polite, 4000);
    mgr__keeper_stop(&keeper, stubborn, 200);
    mgr__keeper_stop(&keeper, frozen, 4000);
    CHECK(wait_state(polite, MGR__WORKER_EMPTY) && wait_state(frozen, MGR__WORKER_EMPTY) && wait_state(stubborn, MGR__WORKER_EMPTY));
    CHECK_INT(last[polite].status, -SIGTERM);
    CHECK_INT(last[frozen].status, -SIGTERM);
    CHECK_INT(last[stubborn].status, -SIGKILL);
    uint32_t at_once = start("stubborn", scratch("s"));
    CHECK(wait_locked(scratch("s"), true));
    mgr__keeper_stop(&keeper, at_once, 0);
    CHECK(wait_state(at_once, MGR__WORKER_EMPTY));
    CHECK_INT(last[at_once].status, -SIGKILL);
    end_keeper();
}

/* ---- trees ---- */

TEST(daemons_are_swept_before_empty)
{
    mgr__keeper_config c = config_of(5000, 1000);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(5000);
    uint32_t bystander = start("daemon", scratch("b"));
    CHECK(wait_locked(scratch("b"), true));
    uint32_t a = start("daemon-exit", scratch("d")), stopped = start("daemon", scratch("e"));
    CHECK(wait_state(a, MGR__WORKER_EMPTY));
    CHECK(!locked(scratch("d")));
    CHECK(wait_locked(scratch("e"), true));
    mgr__keeper_stop(&keeper, stopped, 1000);
    CHECK(wait_state(stopped, MGR__WORKER_EMPTY));
    CHECK(!locked(scratch("e")));
    CHECK(locked(scratch("b")));        /* somebody else's daemon stays */
    uint32_t nameless = start("nameless", scratch("n"));
    CHECK(wait_state(nameless, MGR__WORKER_EMPTY));
    CHECK(!locked(scratch("n")));
    CHECK(locked(scratch("b")));
    mgr__keeper_stop(&keeper, bystander, 0);
    CHECK(wait_state(bystander, MGR__WORKER_EMPTY));
    CHECK(!locked(scratch("b")));
    end_keeper();
}

/* A manager run by a manager: its workers carry both names, so that either keeper knows them. */
TEST(names_nest)
{
    mgr__keeper_config c = config_of(5000, 1000);
    static const char *const env[] = { "MANAGER_CHILD=123-4-5;", "A=b", NULL };
    const char *argv[] = { self_path, "--worker", "nested", NULL };
    mgr__spawn s;
    uint32_t slot;
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(5000);
    memset(&s, 0, sizeof s);
    s.argv = argv;
    s.env = env;
    CHECK_INT(mgr__keeper_spawn(&keeper, &s, &slot), MGR_OK);
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    CHECK_INT(last[slot].status, 0);
    mgr__keeper_free(&keeper, slot);
    s.env = NULL;
    memset(last, 0, sizeof last);
    CHECK_INT(mgr__keeper_spawn(&keeper, &s, &slot), MGR_OK);
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    CHECK_INT(last[slot].status, 9);
    end_keeper();
}

TEST(two_hundred_quick_starts)
{
    mgr__keeper_config c = config_of(15000, 1000);
    static uint32_t slots[200];
    int count = SANITIZED ? 20 : 200;
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(15000);
    for (int i = 0; i < count; i++) slots[i] = start("exit", "3");
    for (int i = 0; i < count && !test__bad; i++) CHECK(wait_state(slots[i], MGR__WORKER_EMPTY) && last[slots[i]].status == 3);
    end_keeper();
}

/* ---- the lease ---- */

TEST(lease_word_is_monotone_and_closes_for_good)
{
    mgr__keeper_config c = config_of(3000, 300);
    if (!open_keeper(&c)) { CHECK(false); return; }
    int64_t now = mgr__process_now_ms();
    CHECK(mgr__keeper_lease_extend(&keeper, now + 800));
    CHECK(mgr__keeper_lease_extend(&keeper, now + 700));
    CHECK_INT(mgr__keeper_lease(&keeper), now + 800);
    CHECK_INT(mgr__keeper_look(&keeper), MGR__KEEPER_ALIVE);
    uint32_t slot = start("stubborn", scratch("l"));
    CHECK(wait_locked(scratch("l"), true));
    while (mgr__keeper_look(&keeper) == MGR__KEEPER_ALIVE) turn(5);
    CHECK(mgr__process_now_ms() < now + 800 || last[slot].state != MGR__WORKER_RUNNING);
    CHECK(!mgr__keeper_lease_extend(&keeper, now + 60000));
    CHECK_INT(mgr__keeper_lease(&keeper), 0);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    CHECK(!locked(scratch("l")));
    CHECK(mgr__process_now_ms() >= now + 500 - 50);
    mgr__keeper_close(&keeper);
}

/* A page and a keeper that no process is behind. */
static mgr__keeping *paper_keeper(mgr__page *page)
{
    mgr__keeping *k = (mgr__keeping *)calloc(1, sizeof *k);
    if (!k) abort();
    page->lease_ms = 6000;
    page->stop_grace_ms = 1000;
    page->kill_margin_ms = 600;
    page->lease = MGR__LEASE_UNSET;
    k->page = page;
    return k;
}

TEST(a_word_that_was_extended_is_not_closed)
{
    mgr__page *page = (mgr__page *)calloc(1, sizeof *page);
    page->lease = 5000;
    CHECK(!mgr__page_close_if(page, 4000) && mgr__page_lease(page) == 5000 && !page->closed_until);
    CHECK(mgr__page_close_if(page, 5000));
    CHECK(mgr__page_lease(page) == MGR__LEASE_CLOSED && page->closed_until == 5000);
    CHECK(mgr__page_close_if(page, 4000));      /* closed it is, whoever did it */
    CHECK(!mgr__page_extend(page, 9000) && mgr__page_lease(page) == MGR__LEASE_CLOSED);
    free(page);
}

TEST(no_start_under_a_word_that_is_not_open)
{
    mgr__page *page = (mgr__page *)calloc(1, sizeof *page);
    mgr__keeping *k = paper_keeper(page);
    CHECK(!mgr__keeping_may_start(k, false, 100) && mgr__keeping_may_start(k, true, 100));      /* agents need none */
    page->lease = 200;
    CHECK(mgr__keeping_may_start(k, false, 100) && !mgr__keeping_may_start(k, false, 200) && mgr__keeping_may_start(k, true, 200));
    k->manager_gone = true;
    CHECK(!mgr__keeping_may_start(k, false, 100) && !mgr__keeping_may_start(k, true, 100));
    k->manager_gone = false;
    k->phase = MGR__KEEPING_STOP;
    CHECK(!mgr__keeping_may_start(k, false, 100));
    k->phase = MGR__KEEPING_RUN;
    page->lease = MGR__LEASE_CLOSED;
    CHECK(!mgr__keeping_may_start(k, false, 100) && !mgr__keeping_may_start(k, true, 100));
    free(k);
    free(page);
}

/* All work: also what is nobody's any more, for which a sweep is still due. */
TEST(work_is_over_when_all_of_it_is)
{
    mgr__page *page = (mgr__page *)calloc(1, sizeof *page);
    mgr__keeping *k = paper_keeper(page);
    k->host.fd = -1;
    CHECK(mgr__keeping_work_over(k, 100));
    k->sweep = true;
    CHECK(!mgr__keeping_work_over(k, 100));
    k->sweep = false;
    k->high = 2;
    k->children[1].state = MGR__WORKER_EXITED;          /* its leader is reaped: its tree may live */
    CHECK(!mgr__keeping_work_over(k, 100));
    k->children[1].agent = true;
    CHECK(mgr__keeping_work_over(k, 100));
    free(k);
    free(page);
}

TEST(who_was_late_acts_earlier)
{
    mgr__page *page = (mgr__page *)calloc(1, sizeof *page);
    mgr__keeping *k = paper_keeper(page);
    mgr__guard g;
    memset(&g, 0, sizeof g);
    g.page = page;
    CHECK(mgr__keeping_stop_due(k, page->lease) == MGR__NEVER && mgr__guard_deadline(&g, 100) == MGR__NEVER);
    page->lease = 5000;
    CHECK_INT(mgr__keeping_stop_due(k, 5000), 4000);
    CHECK_INT(mgr__guard_deadline(&g, 100), 5300);
    k->late = g.late = mgr__page_late(page, 0, 200);
    CHECK_INT(k->late, 200);
    CHECK_INT(mgr__keeping_stop_due(k, 5000), 3800);
    CHECK_INT(mgr__guard_deadline(&g, 100), 5200);
    CHECK_INT(mgr__page_late(page, 200, 0), 175);       /* forgotten slowly */
    k->late = g.late = mgr__page_late(page, 175, 100000);
    CHECK_INT(k->late, 600);                            /* no more than the margin, and half of it counts: a lease must be left */
    CHECK_INT(mgr__keeping_stop_due(k, 5000), 3700);
    CHECK_INT(mgr__guard_deadline(&g, 100), 5150);
    free(k);
    free(page);
}

/* ---- a server for last words ---- */

enum { WORDS_MAX = 16 };
typedef struct server { int fd; struct sockaddr_storage address; socklen_t len; char seen[WORDS_MAX][64]; bool free_then[WORDS_MAX]; int count; } server;

static server listen_here(void)
{
    server s;
    memset(&s, 0, sizeof s);
    struct sockaddr_in in;
    memset(&in, 0, sizeof in);
    in.sin_family = AF_INET;
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    s.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bind(s.fd, (struct sockaddr *)&in, sizeof in);
    listen(s.fd, 16);
    s.len = sizeof in;
    getsockname(s.fd, (struct sockaddr *)&in, &s.len);
    memcpy(&s.address, &in, sizeof in);
    return s;
}

/* Answer until `count` requests came, noting for each whether the lock was free. */
static void serve(server *s, int count, const char *lock_path, const char *answer)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (s->count < count && mgr__process_now_ms() < until) {
        struct pollfd p;
        p.fd = s->fd;
        p.events = POLLIN;
        if (poll(&p, 1, 50) <= 0) continue;
        int fd = accept(s->fd, NULL, NULL);
        char request[512] = "";
        ssize_t got = read(fd, request, sizeof request - 1);
        if (got > 0 && s->count < WORDS_MAX) {
            s->free_then[s->count] = !locked(lock_path);
            memcpy(s->seen[s->count++], request, 63);
            char *end = strstr(s->seen[s->count - 1], " HTTP");
            if (end) *end = 0;
        }
        if (write(fd, answer, strlen(answer)) < 0) printf("answer: %s\n", strerror(errno));
        close(fd);
    }
}

static const char *const OK_ANSWER = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

static void kill_one(pid_t pid)
{
    kill(pid, SIGKILL);
    reap(pid);
    CHECK(wait_gone(pid));
}

static void prepare_words(const server *s)
{
    struct sockaddr_storage addresses[2];
    socklen_t lens[2];
    memset(addresses, 0, sizeof addresses);
    addresses[0] = addresses[1] = s->address;
    ((struct sockaddr_in *)&addresses[0])->sin_port = htons(1);      /* nobody listens on the first */
    lens[0] = lens[1] = s->len;
    CHECK_INT(mgr__keeper_last_words(&keeper, addresses, lens, 2, mgr__str_of("PUT /certificate HTTP/1.1\r\n\r\n"),
              mgr__str_of("PUT /destroy HTTP/1.1\r\n\r\n"), mgr__str_of("PUT /deregister HTTP/1.1\r\n\r\n"),
              mgr__str_of("PUT /renew HTTP/1.1\r\n\r\n"), mgr__str_of("PUT /pass HTTP/1.1\r\n\r\n"), 200), MGR_OK);
}

static void check_words(const server *s)
{
    CHECK_INT(s->count, 3);
    CHECK_STR(s->seen[0], "PUT /certificate");
    CHECK_STR(s->seen[1], "PUT /destroy");
    CHECK_STR(s->seen[2], "PUT /deregister");
    CHECK(s->free_then[0]);
}

/* ---- managers that die, in a process of their own ---- */

typedef struct trio { pid_t manager; int32_t guard, keeper, worker; char group[MGR__PAGE_GROUP_BYTES]; } trio;

/* Fork a manager with one worker in `mode` on the lock `path`; returns once the lock is held. */
static trio manager_process(const mgr__keeper_config *c, int64_t lease_ms, const server *s, const char *mode, const char *path, bool in_process)
{
    int ends[2];
    trio t;
    memset(&t, 0, sizeof t);
    if (pipe(ends) < 0) return t;
    t.manager = fork();
    if (t.manager == 0) {
        if (!open_keeper(c)) _exit(1);
        lease_for(lease_ms);
        if (s) prepare_words(s);
        mgr__keeper_in_process(&keeper, in_process);
        if (*mode) start(mode, path);
        while (mgr__keeper_wants_write(&keeper)) turn(10);
        if (*mode && !wait_locked(path, true)) _exit(1);
        t.guard = keeper.page->guard;
        t.keeper = keeper.page->keeper;
        t.worker = (int32_t)(MGR__LOAD(&keeper.page->slots[0].now) >> 32);
        memcpy(t.group, keeper.page->group, sizeof t.group);
        if (write(ends[1], &t, sizeof t) < 0) _exit(1);
        for (;;) pause();
    }
    close(ends[1]);
    pid_t manager = t.manager;
    CHECK_INT(read(ends[0], &t, sizeof t), sizeof t);
    t.manager = manager;
    close(ends[0]);
    return t;
}

static void end_manager(trio t)
{
    kill(t.manager, SIGKILL);
    reap(t.manager);
    CHECK(wait_gone(t.keeper));
    CHECK(wait_gone(t.guard));
    reap(t.guard);
}

TEST(manager_killed_words_in_order_after_the_work)
{
    mgr__keeper_config c = config_of(8000, 300);
    server s = listen_here();
    trio t = manager_process(&c, 8000, &s, "stubborn", scratch("m"), false);
    kill(t.manager, SIGKILL);
    serve(&s, 3, scratch("m"), OK_ANSWER);
    check_words(&s);
    end_manager(t);
    close(s.fd);
}

TEST(manager_killed_daemons_too)
{
    mgr__keeper_config c = config_of(8000, 300);
    server s = listen_here();
    trio t = manager_process(&c, 8000, &s, "daemon", scratch("m"), false);
    kill(t.manager, SIGKILL);
    serve(&s, 3, scratch("m"), OK_ANSWER);
    check_words(&s);
    end_manager(t);
    close(s.fd);
}

/* A forked child of the host keeps the socket open: the host's pidfd tells. */
TEST(manager_killed_while_a_copy_of_it_lives)
{
    mgr__keeper_config c = config_of(60000, 300);
    server s = listen_here();
    int ends[2];
    pid_t copy = 0;
    CHECK_INT(pipe(ends), 0);
    pid_t manager = fork();
    if (manager == 0) {
        if (!open_keeper(&c)) _exit(1);
        lease_for(60000);
        prepare_words(&s);
        start("stubborn", scratch("m"));
        if (!wait_locked(scratch("m"), true)) _exit(1);
        copy = fork();
        if (copy == 0) for (;;) pause();
        if (write(ends[1], &copy, sizeof copy) < 0) _exit(1);
        for (;;) pause();
    }
    CHECK_INT(read(ends[0], &copy, sizeof copy), sizeof copy);
    kill(manager, SIGKILL);
    serve(&s, 3, scratch("m"), OK_ANSWER);
    check_words(&s);
    kill(copy, SIGKILL);
    reap(0);        /* guard, copy and manager: all ours */
    close(ends[0]);
    close(ends[1]);
    close(s.fd);
}

TEST(manager_frozen_lease_ends_the_work)
{
    mgr__keeper_config c = config_of(1200, 300);
    server s = listen_here();
    int64_t begun = mgr__process_now_ms();
    trio t = manager_process(&c, 1000, &s, "stubborn", scratch("m"), false);
    kill(t.manager, SIGSTOP);
    serve(&s, 3, scratch("m"), OK_ANSWER);
    check_words(&s);
    CHECK(mgr__process_now_ms() - begun >= 900);    /* and not before it */
    end_manager(t);
    close(s.fd);
}

/* By the keeper, in time: all that the guard could do later is to kill. */
TEST(manager_frozen_work_is_told_to_stop_first)
{
    mgr__keeper_config c = config_of(1200, 300);
    server s = listen_here();
    char told[400];
    trio t = manager_process(&c, 1000, &s, "polite", scratch("m"), false);
    snprintf(told, sizeof told, "%s.told", scratch("m"));
    kill(t.manager, SIGSTOP);
    serve(&s, 3, scratch("m"), OK_ANSWER);
    check_words(&s);
    CHECK(unlink(told) == 0);
    end_manager(t);
    close(s.fd);
}

TEST(manager_and_keeper_frozen_guard_ends_the_work)
{
    mgr__keeper_config c = config_of(1200, 300);
    trio t = manager_process(&c, 700, NULL, "daemon", scratch("m"), false);
    kill(t.manager, SIGSTOP);
    kill(t.keeper, SIGSTOP);
    CHECK(wait_locked(scratch("m"), false));
    CHECK(wait_gone(t.keeper));
    end_manager(t);
}

/* Past the guard's deadline, but with a beating heart: it may reap and certify yet,
 * not beyond three quarters of the kill margin. */
TEST(slow_keeper_is_helped_for_a_while)
{
    static mgr__page page;
    memset(&page, 0, sizeof page);
    page.lease_ms = 1200;
    page.kill_margin_ms = 800;
    MGR__STORE(&page.keeper_beat, (int64_t)9950);
    CHECK(mgr__guard_may_help(&page, 10000, 10000));
    CHECK(mgr__guard_may_help(&page, 10199, 10000));
    CHECK(!mgr__guard_may_help(&page, 10200, 10000));
    MGR__STORE(&page.keeper_beat, (int64_t)9600);
    CHECK(!mgr__guard_may_help(&page, 10000, 10000));
}

/* What of a manager's children and grandchildren is there by now; keeper 0: not yet. */
static void born_so_far(pid_t manager, pid_t *guard, pid_t *keeping)
{
    mgr__process all[64];
    *guard = *keeping = 0;
    for (int i = children_of(manager, all, 64); i-- > 0; ) if (all[i].state != 'Z') *guard = all[i].pid;
    for (int i = children_of(getpid(), all, 64); i-- > 0; ) if (all[i].pid != manager) *guard = all[i].pid;     /* a command is ours by adoption */
    if (*guard) for (int i = children_of(*guard, all, 64); i-- > 0; ) *keeping = all[i].pid;
}

/* Killed or stopped at any moment of the start, before there ever was a lease: the
 * manager dies, and then guard and keeper end by themselves. */
static int die_at_the_start(int round, char **keeper_argv)
{
    int woken = 0;
    static const int signals[] = { 0, SIGSTOP, SIGKILL };
    mgr__keeper_config c = config_of(3000, 100);
    c.kill_margin_ms = 300;
    c.keeper_argv = keeper_argv;
    uint64_t dice = mgr__mix64((uint64_t)round + 77);
    pid_t guard, keeping, manager = fork();
    if (manager == 0) {
        open_keeper(&c);
        for (;;) pause();
    }
    int64_t until = mgr__process_now_ms() + 2 + (int64_t)(dice % 12);
    do born_so_far(manager, &guard, &keeping); while (!keeping && mgr__process_now_ms() < until);
    usleep((useconds_t)(dice >> 8) % 2500u);
    born_so_far(manager, &guard, &keeping);
    int to_guard = signals[(dice >> 32) % 3], to_keeper = signals[(dice >> 40) % 3];
    if (keeping && to_keeper) kill(keeping, to_keeper);
    if (guard && to_guard && !(to_guard == SIGSTOP && to_keeper == SIGSTOP)) kill(guard, to_guard);     /* both stopped by hand: nobody is left to act */
    kill(manager, SIGKILL);
    reap(manager);
    mgr__process all[64];
    int left = 1;
    for (int64_t deadline = mgr__process_now_ms() + PATIENCE_MS; left > 0 && mgr__process_now_ms() < deadline; usleep(2000)) {
        mgr__process_end end;
        while (mgr__process_wait(0, false, &end) == 1) { }
        left = children_of(getpid(), all, 64);
        /* Stopped by hand before its first instruction it could not ask to be woken, nor can
         * a command, which is no child of its host's: it has no worker, and ends once it may. */
        bool deaf = left == 1 && all[0].state == 'T' && deadline - mgr__process_now_ms() < PATIENCE_MS - 1500;
        if (deaf) { kill(all[0].pid, SIGCONT); woken++; }
    }
    CHECK_INT(left, 0);
    if (left > 0) printf("round %d: signal %d to guard %d, %d to keeper %d; %d in state %c is left\n", round, to_guard, (int)guard, to_keeper, (int)keeping, (int)all[0].pid, all[0].state);
    for (int i = 0; i < left; i++) kill(all[i].pid, SIGKILL);
    return woken;
}

TEST(nothing_stays_behind_of_a_start_that_was_cut_short)
{
    int woken = 0;
    for (int round = 0; round < 40 && !test__bad; round++) woken += die_at_the_start(round, NULL);
    CHECK(woken < 10);          /* a third of them is stopped above the last one alive */
    printf("     %d of 40 were stopped before they could ask to be woken\n", woken);
}

TEST(nothing_stays_behind_of_a_start_of_a_keeper_as_a_command)
{
    static char name[] = "mgr-guard";
    char *argv[] = { name, NULL };
    int woken = 0;
    for (int round = 0; round < 10 && !test__bad; round++) woken += die_at_the_start(round, argv);
    printf("     %d of 10 guards were stopped before they had a keeper to wake them\n", woken);
}

TEST(in_process_work_is_certified_by_the_hosts_death_only)
{
    mgr__keeper_config c = config_of(1200, 300);
    server s = listen_here();
    trio t = manager_process(&c, 600, &s, "", "", true);
    kill(t.manager, SIGSTOP);
    serve(&s, 2, scratch("m"), OK_ANSWER);
    CHECK_STR(s.seen[0], "PUT /destroy");
    CHECK_STR(s.seen[1], "PUT /deregister");
    kill(t.manager, SIGKILL);
    serve(&s, 3, scratch("m"), OK_ANSWER);
    CHECK_STR(s.seen[2], "PUT /certificate");
    end_manager(t);
    close(s.fd);
}

TEST(overrun_kills_the_host_if_asked)
{
    mgr__keeper_config c = config_of(1200, 300);
    server s = listen_here();
    c.overrun_kill_host = true;
    trio t = manager_process(&c, 600, &s, "", "", true);
    kill(t.manager, SIGSTOP);
    serve(&s, 3, scratch("m"), OK_ANSWER);
    check_words(&s);
    CHECK(state_of(t.manager) == 'Z');
    end_manager(t);
    close(s.fd);
}

static const char *const REFUSAL = "HTTP/1.1 403 Forbidden\r\n\r\n";

/* The certificate is tried again after a 500; and after a 403, for the other address
 * cannot be reached, and might have accepted. */
TEST(words_are_repeated_unless_refused)
{
    mgr__keeper_config c = config_of(8000, 300);
    server s = listen_here();
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    prepare_words(&s);
    mgr__keeper_close(&keeper);
    serve(&s, 1, scratch("m"), "HTTP/1.1 500 No cluster leader\r\n\r\n");
    serve(&s, 2, scratch("m"), OK_ANSWER);
    serve(&s, 3, scratch("m"), REFUSAL);
    serve(&s, 5, scratch("m"), OK_ANSWER);
    CHECK_INT(s.count, 5);
    CHECK_STR(s.seen[0], "PUT /certificate");
    CHECK_STR(s.seen[1], "PUT /certificate");
    CHECK_STR(s.seen[2], "PUT /destroy");
    CHECK_STR(s.seen[3], "PUT /destroy");
    CHECK_STR(s.seen[4], "PUT /deregister");
    close(s.fd);
}

/* A keeper with one word to say, to `count` addresses. */
static mgr__keeping *speaker(const server *s, uint32_t count)
{
    static const char text[] = "PUT /certificate HTTP/1.1\r\n\r\n";
    int fd = -1;
    mgr__keeping *k = (mgr__keeping *)calloc(1, sizeof *k);
    k->page = (mgr__page *)mgr__process_shared_make(sizeof *k->page, &fd);
    close(fd);
    k->words.head.address_count = count;
    k->words.head.lens[MGR__WORD_CERTIFICATE] = sizeof text - 1;
    memcpy(k->words.text, text, sizeof text);
    for (uint32_t i = 0; i < count; i++) { k->words.head.addresses[i] = s->address; k->words.head.address_lens[i] = s->len; }
    return k;
}

static void speaker_free(mgr__keeping *k)
{
    mgr__process_unmap(k->page, sizeof *k->page);
    free(k);
}

TEST(words_end_with_their_deadline_and_reach_every_address)
{
    server s = listen_here();       /* connected to by the kernel, it never answers */
    mgr__keeping *k = speaker(&s, MGR_ADDRESS_COUNT_MAX);
    listen(s.fd, 2 * MGR_ADDRESS_COUNT_MAX);
    fcntl(s.fd, F_SETFL, O_NONBLOCK);
    int64_t from = mgr__process_now_ms();
    CHECK_INT(mgr__words_send(k, MGR__WORD_CERTIFICATE, 400), MGR__WORDS_UNHEARD);
    CHECK(mgr__process_now_ms() - from < MGR__KEEPER_TRY_MS * 5);       /* and not for each of the sixteen */
    int heard = 0;
    for (int fd; (fd = accept(s.fd, NULL, NULL)) >= 0; heard++) close(fd);
    CHECK(heard >= MGR_ADDRESS_COUNT_MAX / 2);      /* all, were the machine not busy */

    pid_t child = fork();
    if (child == 0) { usleep(50000); MGR__STORE(&k->page->dismissed, 1u); _exit(0); }
    from = mgr__process_now_ms();
    CHECK_INT(mgr__words_send(k, MGR__WORD_CERTIFICATE, MGR__KEEPER_WORDS_MS), MGR__WORDS_DISMISSED);
    CHECK(mgr__process_now_ms() - from < MGR__KEEPER_TRY_MS * 5);
    reap(child);
    speaker_free(k);
    close(s.fd);
}

/* Whether all refuse, or one does and the other cannot be reached. */
TEST(what_came_of_the_words_is_told_exactly)
{
    server s = listen_here();
    mgr__keeping *k = speaker(&s, 2);
    mgr__keeper host;
    memset(&host, 0, sizeof host);
    host.page = k->page;
    CHECK(!mgr__keeper_certificate_fault(&host));
    pid_t serving = fork();
    if (serving == 0) { serve(&s, 2, scratch("m"), REFUSAL); _exit(0); }
    CHECK(!mgr__keeping_certify(k));
    CHECK_INT(k->page->certificate, MGR__WORDS_REFUSED);
    CHECK(strstr(mgr__keeper_certificate_fault(&host), "each Consul agent refused it"));
    reap(serving);

    struct sockaddr_in nobody;      /* nobody listens there */
    memcpy(&nobody, &s.address, sizeof nobody);
    nobody.sin_port = htons(1);
    memcpy(&k->words.head.addresses[0], &nobody, sizeof nobody);
    serving = fork();
    if (serving == 0) { serve(&s, 1, scratch("m"), REFUSAL); serve(&s, 2, scratch("m"), OK_ANSWER); _exit(0); }
    CHECK(mgr__keeping_certify(k));
    CHECK_INT(k->heard, 1);
    CHECK(!mgr__keeper_certificate_fault(&host));
    reap(serving);
    serving = fork();
    if (serving == 0) { serve(&s, WORDS_MAX, scratch("m"), REFUSAL); _exit(0); }
    CHECK_INT(mgr__words_send(k, MGR__WORD_CERTIFICATE, 300), MGR__WORDS_UNHEARD);
    kill_one(serving);
    speaker_free(k);
    close(s.fd);
}

TEST(agent_outlives_the_words)
{
    mgr__keeper_config c = config_of(8000, 300);
    server s = listen_here();
    mgr__spawn spawn;
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    prepare_words(&s);
    memset(&spawn, 0, sizeof spawn);
    spawn.agent = true;
    uint32_t agent = start_with(&spawn, "stubborn", scratch("a")), slot = start("stubborn", scratch("m"));
    CHECK(wait_locked(scratch("a"), true) && wait_locked(scratch("m"), true));
    CHECK(wait_state(agent, MGR__WORKER_RUNNING) && wait_state(slot, MGR__WORKER_RUNNING));
    mgr__keeper_close(&keeper);
    serve(&s, 1, scratch("m"), OK_ANSWER);
    CHECK(locked(scratch("a")));
    serve(&s, 3, scratch("m"), OK_ANSWER);
    check_words(&s);
    CHECK(wait_locked(scratch("a"), false));
    close(s.fd);
}

/* ---- keeper or guard die ---- */

TEST(keeper_killed_guard_sweeps)
{
    mgr__keeper_config c = config_of(8000, 300);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    start("daemon", scratch("k"));
    CHECK(wait_locked(scratch("k"), true));
    kill(keeper.page->keeper, SIGKILL);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    CHECK(!locked(scratch("k")));
    CHECK(!mgr__keeper_lease_extend(&keeper, mgr__process_now_ms() + 8000));
    mgr__keeper_close(&keeper);
}

TEST(keeper_killed_while_a_worker_traces_it)
{
    mgr__keeper_config c = config_of(2000, 300);
    const char *path = scratch("tracer.lock");
    NEED_TRACE();
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(60000);
    uint32_t slot = start("tracer", path);
    CHECK(wait_locked(path, true));
    mgr__process_pidfd_kill(keeper.keeper_ref.fd, SIGKILL);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    CHECK(!locked(path));
    mgr__keeper_free(&keeper, slot);
    mgr__keeper_close(&keeper);
}

/* Then it is a zombie for as long as we like, but all that was its is gone. */
TEST(keeper_killed_while_a_stranger_traces_it)
{
    mgr__keeper_config c = config_of(2000, 300);
    const char *path = scratch("traced-keeper.lock");
    NEED_TRACE();
    if (!open_keeper(&c)) { CHECK(false); return; }
    pid_t traced = MGR__LOAD(&keeper.page->keeper);
    lease_for(60000);
    uint32_t slot = start("daemon", path);
    CHECK(wait_locked(path, true));
    CHECK_INT(ptrace(PTRACE_SEIZE, traced, NULL, NULL), 0);
    mgr__process_pidfd_kill(keeper.keeper_ref.fd, SIGKILL);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    CHECK(!locked(path));
    CHECK_INT(state_of(traced), 'Z');
    mgr__keeper_free(&keeper, slot);
    mgr__keeper_close(&keeper);
    reap(traced);
}

TEST(worker_that_a_process_of_its_own_traces_is_ended)
{
    mgr__keeper_config c = config_of(3000, 300);
    const char *path = scratch("traced.lock");
    NEED_TRACE();
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(60000);
    uint32_t slot = start("traced", path);
    CHECK(wait_locked(path, true));
    mgr__keeper_stop(&keeper, slot, 100);
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    CHECK(!locked(path));
    mgr__keeper_free(&keeper, slot);
    end_keeper();
}

TEST(orphan_in_the_group_of_another_worker_is_its_own_partitions)
{
    mgr__keeper_config c = config_of(3000, 300);
    char path[160];
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(60000);
    uint32_t other = start("lock", scratch("host-of-deserter.lock"));
    CHECK(wait_state(other, MGR__WORKER_RUNNING));
    snprintf(path, sizeof path, "%s#%d", scratch("deserter.lock"), (int)last[other].pid);
    uint32_t slot = start("deserter", path);
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    CHECK(!locked(path));
    CHECK_INT(last[slot].status, 0);
    mgr__keeper_free(&keeper, slot);
    end_keeper();
}

TEST(guard_killed_keeper_ends_and_certifies)
{
    mgr__keeper_config c = config_of(8000, 300);
    server s = listen_here();
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(60000);                       /* not the lease shall end it */
    prepare_words(&s);
    start("daemon", scratch("g"));
    CHECK(wait_locked(scratch("g"), true));
    pid_t left = keeper.page->keeper;
    kill(left, SIGSTOP);                    /* stopped by hand: the guard's death sets it going */
    kill(keeper.page->guard, SIGKILL);
    serve(&s, 3, scratch("g"), OK_ANSWER);
    check_words(&s);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    mgr__keeper_close(&keeper);
    CHECK(wait_gone(left));
    reap(left);
    close(s.fd);
}

/* At once: neither has time to see the other die. */
static void kill_both(void)
{
    kill(keeper.page->keeper, SIGSTOP);
    kill(keeper.page->guard, SIGSTOP);
    wait_stopped(keeper.page->guard);       /* or it would see the keeper's death; its own would wake the keeper */
    kill(keeper.page->keeper, SIGKILL);
    kill(keeper.page->guard, SIGKILL);
}

/* What came to us as the last subreaper. */
static void kill_orphans(const char *path)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (locked(path) && mgr__process_now_ms() < until) {
        mgr__process all[64];
        int count = children_of(getpid(), all, 64);
        for (int i = 0; i < count; i++) kill(all[i].pid, SIGKILL);
        usleep(2000);
    }
}

TEST(guard_and_keeper_killed_workers_die)
{
    mgr__keeper_config c = config_of(8000, 300);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    uint32_t slot = start("stubborn", scratch("g"));
    CHECK(wait_locked(scratch("g"), true));
    CHECK(wait_state(slot, MGR__WORKER_RUNNING));
    pid_t left = keeper.page->keeper;
    kill_both();
    CHECK(wait_locked(scratch("g"), false));
    CHECK(wait_status(MGR__KEEPER_DEAD));
    mgr__keeper_close(&keeper);
    CHECK(wait_gone(left));
    reap(left);
    reap(last[slot].pid);
}

/* setuid takes the parent-death signal away: it must be asked for afterwards. */
TEST(guard_and_keeper_killed_worker_of_another_user_dies)
{
    mgr__keeper_config c = config_of(8000, 300);
    static const char *const argv[] = { "sleep", "600", NULL }, *const env[] = { "PATH=/usr/bin:/bin", NULL };
    mgr__spawn s;
    uint32_t slot;
    if (getuid() != 0) SKIP("needs root");
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    memset(&s, 0, sizeof s);
    s.argv = argv;
    s.env = env;
    s.set_ids = true;
    s.uid = s.gid = 65534;
    CHECK_INT(mgr__keeper_spawn(&keeper, &s, &slot), MGR_OK);
    memset(&last[slot], 0, sizeof last[slot]);
    CHECK(wait_state(slot, MGR__WORKER_RUNNING));
    pid_t left = keeper.page->keeper, sleeper = last[slot].pid;
    kill_both();
    bool died = wait_gone(sleeper);
    if (!died) kill(sleeper, SIGKILL);
    CHECK(died);
    CHECK(wait_status(MGR__KEEPER_DEAD));
    mgr__keeper_close(&keeper);
    CHECK(wait_gone(left));
    reap(left);
    reap(sleeper);
}

/* The keeper may have died before its child asked for the signal. */
TEST(no_program_is_executed_when_the_parent_is_gone)
{
    static char program[] = "true";
    static char *env[] = { NULL };
    for (int gone = 0; gone < 2; gone++) {
        int status = 0;
        pid_t pid = fork();
        if (pid == 0) {
            mgr__page *page = (mgr__page *)calloc(1, sizeof *page);
            mgr__keeping *k = paper_keeper(page);
            mgr__child child;
            mgr__frame_spawn h;
            memset(&child, 0, sizeof child);
            memset(&h, 0, sizeof h);
            mgr__process_rank_raise(&k->rank);
            k->self = gone ? 1 : getppid();
            k->strings[0] = program;
            mgr__keeping_child(k, &child, false, &h, "/", env);
            _exit(99);
        }
        waitpid(pid, &status, 0);
        CHECK_INT(WIFEXITED(status) ? WEXITSTATUS(status) : -1, gone ? 127 : 0);
    }
}

/* Whoever sees it first: no confirmation may open it again. */
TEST(the_word_is_closed_as_soon_as_the_keeper_is_seen_dead)
{
    mgr__keeper_config c = config_of(8000, 300);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    kill(keeper.page->guard, SIGSTOP);                  /* it would close it */
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (state_of(keeper.page->guard) != 'T' && mgr__process_now_ms() < until) usleep(1000);
    kill(keeper.page->keeper, SIGKILL);
    CHECK(wait_status(MGR__KEEPER_DEAD));
    CHECK(!mgr__keeper_lease_extend(&keeper, mgr__process_now_ms() + 60000));
    kill(keeper.page->guard, SIGCONT);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    mgr__keeper_close(&keeper);
}

TEST(silent_keeper_is_replaced)
{
    mgr__keeper_config c = config_of(2000, 300);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(60000);
    start("daemon", scratch("k"));
    CHECK(wait_locked(scratch("k"), true));
    kill(keeper.page->keeper, SIGSTOP);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    CHECK(!locked(scratch("k")));
    mgr__keeper_close(&keeper);
}

TEST(both_frozen_are_replaced)
{
    mgr__keeper_config c = config_of(2000, 300);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(60000);
    start("daemon", scratch("k"));
    CHECK(wait_locked(scratch("k"), true));
    kill(keeper.page->guard, SIGSTOP);
    kill(keeper.page->keeper, SIGSTOP);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    CHECK(!locked(scratch("k")));
    mgr__keeper_close(&keeper);
}

/* ---- the host stays itself ---- */

static volatile sig_atomic_t child_signals;
static void on_child(int signo) { (void)signo; child_signals++; }

TEST(host_sees_nothing_of_it)
{
    mgr__keeper_config c = config_of(3000, 300);
    sigset_t before, after;
    if (SEEN_BY_HOST) SKIP("under this sanitizer the guard is an ordinary child");
    child_signals = 0;
    signal(SIGCHLD, on_child);
    sigprocmask(SIG_BLOCK, NULL, &before);
    if (!open_keeper(&c)) { CHECK(false); return; }
    sigprocmask(SIG_BLOCK, NULL, &after);
    CHECK(memcmp(&before, &after, 8) == 0);
    lease_for(3000);
    uint32_t slot = start("exit", "0");
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    errno = 0;
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    end_keeper();
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    CHECK_INT(child_signals, 0);
    signal(SIGCHLD, SIG_DFL);
}

TEST(forked_child_of_the_host_only_frees)
{
    mgr__keeper_config c = config_of(8000, 300);
    int status = 0;
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    uint32_t slot = start("lock", scratch("h"));
    CHECK(wait_locked(scratch("h"), true));
    pid_t child = fork();
    if (child == 0) { mgr__keeper_forked(&keeper); _exit(0); }
    waitpid(child, &status, 0);
    CHECK_INT(status, 0);
    turn(20);
    CHECK_INT(mgr__keeper_look(&keeper), MGR__KEEPER_ALIVE);
    CHECK(locked(scratch("h")));
    mgr__keeper_stop(&keeper, slot, 0);
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    end_keeper();
}

TEST(close_without_dismissal_stops_and_certifies)
{
    mgr__keeper_config c = config_of(8000, 300);
    server s = listen_here();
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    prepare_words(&s);
    start("stubborn", scratch("h"));
    CHECK(wait_locked(scratch("h"), true));
    pid_t guard = keeper.page->guard;
    mgr__keeper_close(&keeper);
    serve(&s, 3, scratch("h"), OK_ANSWER);
    check_words(&s);
    CHECK(wait_gone(guard));
    reap(guard);
    close(s.fd);
}

TEST(keeper_as_a_command_of_its_own)
{
    static char name[] = "mgr-guard";
    static char *argv[] = { name, NULL };
    mgr__keeper_config c = config_of(8000, 300);
    c.keeper_argv = argv;
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    uint32_t slot = start("daemon-exit", scratch("x"));
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    CHECK(!locked(scratch("x")));
    end_keeper();
    reap(0);        /* the guard is ours by adoption */
}

TEST(keeper_gives_the_hosts_memory_back)
{
#if defined(MGR__SANITIZE_ADDRESS) || defined(MGR__SANITIZE_THREAD)
    SKIP("sanitizers need the memory");
#else
    enum { BYTES = 64 << 20, PIECES = 60000, PIECE_BYTES = 500 };
    static char *pieces[PIECES];
    mgr__keeper_config c = config_of(8000, 300);
    char *block = (char *)malloc(BYTES), path[64], text[256] = "";
    memset(block, 1, BYTES);
    for (int i = 0; i < PIECES; i++) memset(pieces[i] = (char *)malloc(PIECE_BYTES), 1, PIECE_BYTES);
    if (!open_keeper(&c)) { CHECK(false); return; }
    lease_for(8000);
    uint32_t slot = start("daemon-exit", scratch("x"));
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    snprintf(path, sizeof path, "/proc/%d/statm", (int)keeper.page->guard);
    mgr__process_file_get(path, text, sizeof text);
    const char *at = text;
    mgr__process_number(&at);
    CHECK(mgr__process_number(&at) * (uint64_t)sysconf(_SC_PAGESIZE) < 16u << 20);
    end_keeper();
    for (int i = 0; i < PIECES; i++) free(pieces[i]);
    free(block);
#endif
}

TEST(life_lock_is_free_when_all_are_gone)
{
    mgr__keeper_config c = config_of(8000, 300);
    c.life_fd = open(scratch("p"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK_INT(flock(c.life_fd, LOCK_EX), 0);
    if (!open_keeper(&c)) { CHECK(false); return; }
    close(c.life_fd);
    lease_for(8000);
    start("daemon", scratch("x"));
    CHECK(wait_locked(scratch("x"), true));
    CHECK(locked(scratch("p")));
    kill_both();
    CHECK(wait_gone(keeper.page->guard));
    CHECK(locked(scratch("p")));            /* the daemon has it still */
    CHECK(locked(scratch("x")));
    kill_orphans(scratch("p"));
    CHECK(!locked(scratch("p")));
    mgr__keeper_close(&keeper);
}

/* ---- a life's file: the proof of its death ---- */

typedef struct life { char dir[200], name[32], path[256], evidence[96], boot[160], id[40]; int fd; } life;

static bool life_make(life *l, const char *number)
{
    memset(l, 0, sizeof *l);
    snprintf(l->dir, sizeof l->dir, "%s/run", own_dir);
    snprintf(l->name, sizeof l->name, "manager-%016lx.life", strtoul(number, NULL, 16));
    snprintf(l->path, sizeof l->path, "%s/%s", l->dir, l->name);
    snprintf(l->id, sizeof l->id, "session-%s", number);
    mgr__io_boot(l->boot, sizeof l->boot);
    char real[PATH_MAX];
    const char *why;
    if (mgr__process_dir_ours(l->dir, real, &why) < 0) return false;
    l->fd = mgr__process_life_make(l->path);
    return mgr__life_evidence(l->fd, l->name, l->evidence, sizeof l->evidence);
}

static mgr__verdict prove(const life *l, const char **why) { return mgr__life_prove(l->dir, l->evidence, l->id, l->boot, why); }

static mgr__verdict prove_in_time(const life *l)
{
    const char *why = "";
    mgr__verdict verdict = prove(l, &why);
    for (int64_t until = mgr__process_now_ms() + PATIENCE_MS; verdict == MGR__VERDICT_LATER && mgr__process_now_ms() < until; verdict = prove(l, &why)) usleep(1000);
    return verdict;
}

/* As a manager that made this life and has a worker in `mode`: all three are alive on return. */
static trio living(life *l, mgr_isolate isolate, const char *mode)
{
    mgr__keeper_config c = config_of(8000, 300);
    int ends[2];
    trio t;
    memset(&t, 0, sizeof t);
    c.isolate = isolate;
    c.life_fd = l->fd;
    c.life_path = l->path;
    if (pipe(ends) < 0) return t;
    pid_t manager = fork();
    if (manager == 0) {
        if (!open_keeper(&c) || mgr__keeper_describe(&keeper, l->fd, l->id, l->boot) < 0) _exit(1);
        lease_for(8000);
        if (*mode) start(mode, scratch("x"));
        while (mgr__keeper_wants_write(&keeper)) turn(10);
        if (*mode && !wait_locked(scratch("x"), true)) _exit(1);
        t.guard = keeper.page->guard;
        t.keeper = keeper.page->keeper;
        memcpy(t.group, keeper.page->group, sizeof t.group);
        if (write(ends[1], &t, sizeof t) < 0) _exit(1);
        for (;;) pause();
    }
    close(ends[1]);
    CHECK_INT(read(ends[0], &t, sizeof t), sizeof t);
    close(ends[0]);
    close(l->fd);
    t.manager = manager;
    return t;
}

static void kill_three(trio t)
{
    kill(t.manager, SIGSTOP);
    kill(t.guard, SIGSTOP);
    kill(t.keeper, SIGSTOP);
    kill_one(t.keeper);         /* from below: each is set going again by the death of the one above it */
    kill_one(t.guard);
    kill_one(t.manager);
}

/* Each piece of the proof in turn is missing, at last none. */
TEST(death_is_proven_only_when_every_piece_is_there)
{
    NEED_CGROUP();
    life l, other;
    const char *why = "";
    if (!life_make(&l, "a1")) { CHECK(!"a life file"); return; }
    trio t = living(&l, MGR_ISOLATE_CGROUP, "daemon");
    CHECK_INT(prove(&l, &why), MGR__VERDICT_LATER);
    CHECK_STR(why, "the program of that life still lives");
    kill(t.keeper, SIGSTOP);
    kill_one(t.manager);                            /* a frozen keeper could go on, and fork */
    CHECK_INT(prove(&l, &why), MGR__VERDICT_LATER);
    kill(t.guard, SIGSTOP);                         /* now: its parent's death wakes it, and would the keeper's */
    CHECK(wait_stopped(t.guard));
    kill_one(t.keeper);
    CHECK_INT(prove(&l, &why), MGR__VERDICT_LATER);
    CHECK_STR(why, "the guard of that life still lives");
    kill_one(t.guard);

    other = l;                                      /* of another boot, of another namespace, of nowhere */
    other.boot[0] = other.boot[0] == '0' ? '1' : '0';
    CHECK_INT(prove(&other, &why), MGR__VERDICT_NONE);
    CHECK_STR(why, "it was of another boot or PID namespace");
    other = l;
    other.boot[strlen(other.boot) - 2] ^= 1;
    CHECK_INT(prove(&other, &why), MGR__VERDICT_NONE);
    other = l;
    other.boot[0] = 0;
    CHECK_INT(prove(&other, &why), MGR__VERDICT_NONE);
    other = l;                                      /* a key that was edited by hand: the file of another life */
    strcpy(other.id, "session-a2");
    CHECK_INT(prove(&other, &why), MGR__VERDICT_NONE);
    CHECK_STR(why, "its life file is of another life");
    other = l;
    other.evidence[strlen(other.evidence) - 1] ^= 1;        /* another inode */
    CHECK_INT(prove(&other, &why), MGR__VERDICT_NONE);
    CHECK_STR(why, "its life file is not the one that it had");
    other = l;
    strcpy(other.dir, scratch_dir);
    CHECK_INT(prove(&other, &why), MGR__VERDICT_NONE);
    other = l;
    strcpy(other.evidence, "../run/manager-00000000000000a1.life 1 2");
    CHECK_INT(prove(&other, &why), MGR__VERDICT_NONE);
    other.evidence[0] = 0;
    CHECK_INT(prove(&other, &why), MGR__VERDICT_NONE);

    CHECK(locked(scratch("x")));                            /* by the worker's daemon, which has the life's file, too */
    CHECK_INT(prove_in_time(&l), MGR__VERDICT_DEAD);
    CHECK(!locked(scratch("x")));
    CHECK_INT(prove(&l, &why), MGR__VERDICT_DEAD);          /* and it stays so, its group being gone */
    CHECK(access(t.group, F_OK) < 0);
    CHECK(unlink(l.path) == 0);
    CHECK_INT(prove(&l, &why), MGR__VERDICT_NONE);
    int fd = open(l.path, O_RDWR | O_CREAT, 0600);          /* made anew */
    close(fd);
    CHECK(prove(&l, &why) != MGR__VERDICT_DEAD);
    unlink(l.path);
}

static void *go_on(void *unused)
{
    (void)unused;
    for (;;) pause();
    return NULL;
}

/* Whoever asks whether an instance id is still in use must not be told that it is not:
 * a leader that has ended is a zombie while its other threads work. */
TEST(a_program_whose_leader_has_ended_is_alive)
{
    mgr__process now;
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, go_on, NULL) != 0) _exit(1);
        syscall(SYS_exit, 0);       /* of this thread alone */
    }
    for (int64_t until = mgr__process_now_ms() + PATIENCE_MS; state_of(pid) != 'Z' && mgr__process_now_ms() < until; ) usleep(1000);
    CHECK(mgr__process_stat(pid, &now) && now.state == 'Z' && now.threads == 2);
    CHECK(mgr__manager_alive(NULL, (uint64_t)pid));
    kill(pid, SIGKILL);
    for (int64_t until = mgr__process_now_ms() + PATIENCE_MS; mgr__manager_alive(NULL, (uint64_t)pid) && mgr__process_now_ms() < until; ) usleep(1000);
    CHECK(!mgr__manager_alive(NULL, (uint64_t)pid));      /* though nobody has reaped it */
    reap(pid);
    CHECK(!mgr__manager_alive(NULL, (uint64_t)pid));
}

/* The record, taken by itself: what it takes the other pieces to get to. */
TEST(record_of_a_life_is_held_against_the_living)
{
    NEED_CGROUP();
    life l;
    mgr__life_record r, kept;
    mgr__process self;
    const char *why = "";
    if (!life_make(&l, "b1")) { CHECK(!"a life file"); return; }
    trio t = living(&l, MGR_ISOLATE_CGROUP, "lock");
    int fd = open(l.path, O_RDONLY);
    CHECK(mgr__process_get_at(fd, &r, sizeof r));
    close(fd);
    kept = r;
    CHECK_INT(r.partial, 0);
    CHECK_STR(r.group, t.group);
    CHECK_INT(r.who[0].pid, t.manager);
    CHECK_INT(r.who[2].pid, t.keeper);
    kill_three(t);
    CHECK(mgr__process_stat(getpid(), &self));
    for (int i = 0; i < 3; i++) {                   /* each of the three in turn still lives, whatever the lock says */
        r = kept;
        r.who[i].pid = (uint64_t)getpid();
        r.who[i].start = self.start;
        CHECK_INT(mgr__life_prove_record(&r, l.id, l.boot, &why), MGR__VERDICT_LATER);
        r.who[i].start--;                           /* its number has passed to another */
        CHECK(mgr__process_ended((pid_t)r.who[i].pid, r.who[i].start));
    }
    r = kept;
    r.partial = 1;
    CHECK_INT(mgr__life_prove_record(&r, l.id, l.boot, &why), MGR__VERDICT_NONE);
    r = kept;                                       /* the same path through another mount */
    r.view_inode++;
    CHECK_INT(mgr__life_prove_record(&r, l.id, l.boot, &why), MGR__VERDICT_LATER);
    CHECK_STR(why, "its cgroup is not seen to be empty");
    r = kept;
    r.view_device++;
    CHECK_INT(mgr__life_prove_record(&r, l.id, l.boot, &why), MGR__VERDICT_LATER);
    r = kept;                                       /* nothing is ever killed but a group of ours */
    snprintf(r.group, sizeof r.group, "%.400s", own_group);
    r.view_bytes = mgr__process_cgroup_view(r.group, &r.view_device, &r.view_inode);
    CHECK_INT(mgr__life_prove_record(&r, l.id, l.boot, &why), MGR__VERDICT_LATER);
    CHECK_INT(mgr__life_prove_record(&kept, l.id, l.boot, &why), MGR__VERDICT_DEAD);
    unlink(l.path);
}

TEST(populated_group_of_a_dead_life_is_ended_before_it_is_called_dead)
{
    NEED_CGROUP();
    life l;
    if (!life_make(&l, "c1")) { CHECK(!"a life file"); return; }
    trio t = living(&l, MGR_ISOLATE_CGROUP, "");    /* a life that never had a worker */
    const char *inside = scratch("in");
    char group[MGR__PROCESS_CGROUP_BYTES];
    snprintf(group, sizeof group, "%.400s/0-1", t.group);
    CHECK(mgr__process_cgroup_make(group) == 0);
    kill_three(t);
    pid_t guest = fork();
    if (guest == 0) { if (mgr__process_cgroup_join(group) < 0) _exit(1); touch(inside); for (;;) pause(); }
    for (int64_t until = mgr__process_now_ms() + PATIENCE_MS; access(inside, F_OK) < 0 && mgr__process_now_ms() < until; ) usleep(1000);
    CHECK_INT(mgr__process_cgroup_populated(t.group), 1);
    CHECK_INT(prove_in_time(&l), MGR__VERDICT_DEAD);
    CHECK(state_of(guest) == 'Z');
    reap(guest);
    unlink(l.path);
}

TEST(group_is_gone_only_where_it_would_be_seen)
{
    NEED_CGROUP();
    mgr__life_record r;
    memset(&r, 0, sizeof r);
    snprintf(r.group, sizeof r.group, "%.400s/manager-1234567890123456789", own_group);
    CHECK(mgr__process_cgroup_make(r.group) == 0);
    r.view_bytes = mgr__process_cgroup_view(r.group, &r.view_device, &r.view_inode);
    CHECK(r.view_bytes > 0 && r.view_bytes < strlen(r.group));
    CHECK(!mgr__process_cgroup_gone(r.group, (size_t)r.view_bytes, r.view_device, r.view_inode));
    mgr__process_cgroup_remove(r.group);
    CHECK(mgr__process_cgroup_gone(r.group, (size_t)r.view_bytes, r.view_device, r.view_inode));
    CHECK(!mgr__process_cgroup_gone(r.group, (size_t)r.view_bytes, r.view_device, r.view_inode + 1));
    CHECK(!mgr__process_cgroup_gone(r.group, (size_t)r.view_bytes, r.view_device + 1, r.view_inode));
    CHECK(!mgr__process_cgroup_gone(r.group, 0, r.view_device, r.view_inode));
    char parent_gone[MGR__PROCESS_CGROUP_BYTES];    /* as when a whole unit went */
    snprintf(parent_gone, sizeof parent_gone, "%.300s/unit-that-went/manager-1234567890123456789", own_group);
    CHECK(mgr__process_cgroup_gone(parent_gone, (size_t)r.view_bytes, r.view_device, r.view_inode));
}

TEST(without_a_group_death_is_not_proven_once_a_worker_ran)
{
    life l;
    const char *why = "";
    for (int worker = 0; worker < 2; worker++) {
        if (!life_make(&l, worker ? "d2" : "d1")) { CHECK(!"a life file"); return; }
        trio t = living(&l, MGR_ISOLATE_NONE, worker ? "lock" : "");
        CHECK_INT(prove(&l, &why), MGR__VERDICT_LATER);
        kill_three(t);
        CHECK(wait_locked(scratch("x"), false));
        /* No worker, no left-over: the program's own death is then all there is to prove. */
        CHECK_INT(prove(&l, &why), worker ? MGR__VERDICT_NONE : MGR__VERDICT_DEAD);
        if (worker) CHECK_STR(why, "it had workers outside a cgroup (isolate none), of which some may have left their group");
        unlink(l.path);
    }
}

/* A copy of the program without exec, as a forking host has: it holds what it inherited. */
TEST(forked_copy_of_the_host_stands_in_the_way_of_the_proof)
{
    life l;
    const char *why = "";
    if (!life_make(&l, "e1")) { CHECK(!"a life file"); return; }
    pid_t copy = fork();
    if (copy == 0) for (;;) pause();
    trio t = living(&l, MGR_ISOLATE_NONE, "");
    kill_three(t);
    CHECK_INT(prove(&l, &why), MGR__VERDICT_LATER);
    kill_one(copy);
    CHECK_INT(prove(&l, &why), MGR__VERDICT_DEAD);
    unlink(l.path);
}

TEST(two_may_ask_at_once)
{
    life l;
    const char *why = "";
    if (!life_make(&l, "f1")) { CHECK(!"a life file"); return; }
    kill_three(living(&l, MGR_ISOLATE_NONE, ""));
    int reader = mgr__process_life_open(l.path);    /* opened before, and asking as well */
    CHECK(mgr__process_lock_shared(reader) == 0);
    CHECK_INT(prove(&l, &why), MGR__VERDICT_DEAD);
    close(reader);
    unlink(l.path);
}

TEST(life_files_are_removed_when_certified_or_stale)
{
    life l;
    server s = listen_here();
    const char *why = "";
    struct timespec old[2];
    if (!life_make(&l, "ab1")) { CHECK(!"a life file"); return; }
    pid_t serving = fork();
    if (serving == 0) { serve(&s, 3, scratch("p"), OK_ANSWER); _exit(0); }
    mgr__keeper_config c = config_of(8000, 300);
    c.life_fd = l.fd;
    c.life_path = l.path;
    if (open_keeper(&c)) {
        lease_for(8000);
        prepare_words(&s);
        while (mgr__keeper_wants_write(&keeper)) turn(10);
        mgr__keeper_close(&keeper);                 /* as our death: the keeper certifies */
    } else CHECK(false);
    for (int64_t until = mgr__process_now_ms() + PATIENCE_MS; access(l.path, F_OK) == 0 && mgr__process_now_ms() < until; ) usleep(1000);
    CHECK(access(l.path, F_OK) < 0);
    kill_one(serving);
    close(s.fd);
    close(l.fd);

    if (!life_make(&l, "ab2")) { CHECK(!"a life file"); return; }
    memset(old, 0, sizeof old);
    old[0].tv_sec = old[1].tv_sec = time(NULL) - MGR__PROCESS_LIFE_STALE_S - 10;
    futimens(l.fd, old);
    mgr__process_life_sweep(l.dir);
    CHECK(access(l.path, F_OK) == 0);               /* held */
    close(l.fd);
    mgr__process_life_sweep(l.dir);                 /* free: perhaps for a moment only, whoever needs it has an hour */
    mgr__process_life_sweep(l.dir);
    CHECK(access(l.path, F_OK) == 0);
    CHECK(prove(&l, &why) == MGR__VERDICT_NONE);    /* it says nothing, but can be read */
    CHECK_STR(why, "its life file is of no use");
    utimensat(AT_FDCWD, l.path, old, 0);
    mgr__process_life_sweep(l.dir);
    CHECK(access(l.path, F_OK) < 0);
}

/* One comes between the making of a file and its lock: it is no left-over for that. */
TEST(a_sweep_does_not_spoil_a_new_life_file)
{
    life l;
    sigset_t child, before;
    struct stat st;
    int ready[2];
    char byte;
    if (!life_make(&l, "ac1")) { CHECK(!"a life file"); return; }
    CHECK(fstat(l.fd, &st) == 0 && (st.st_mode & 07777) == 0600);
    close(l.fd);
    mgr__process_life_sweep(l.dir);
    CHECK(stat(l.path, &st) == 0 && (st.st_mode & 07777) == 0400);
    l.fd = open(l.path, O_RDONLY | O_CLOEXEC);
    CHECK_INT(mgr__process_life_claim(l.fd), 0);
    CHECK(fstat(l.fd, &st) == 0 && (st.st_mode & 07777) == 0600);
    close(l.fd);
    l.fd = open(l.path, O_RDWR | O_CLOEXEC);
    CHECK_INT(pipe(ready), 0);
    pid_t sweeping = fork();
    if (sweeping == 0) {
        int fd = open(l.path, O_RDONLY);
        if (mgr__process_lock(fd) < 0 || write(ready[1], "", 1) < 0) _exit(1);
        usleep(20000);
        _exit(0);
    }
    CHECK_INT(read(ready[0], &byte, 1), 1);
    child_signals = 0;
    signal(SIGCHLD, on_child);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &before);
    raise(SIGCHLD);
    CHECK_INT(mgr__process_life_claim(l.fd), 0);
    CHECK_INT(child_signals, 0);      /* the program's mask holds while it waits (invariant 8) */
    sigprocmask(SIG_SETMASK, &before, NULL);
    signal(SIGCHLD, SIG_DFL);
    reap(sweeping);
    close(ready[0]);
    close(ready[1]);
    close(l.fd);
    unlink(l.path);
}

TEST(only_a_folder_of_our_own_will_do)
{
    char path[300], real[PATH_MAX];
    const char *why = NULL;
    snprintf(path, sizeof path, "%s/open", own_dir);
    CHECK_INT(mgr__process_dir_ours(path, real, &why), 0);
    CHECK_STR(real, path);
    chmod(path, 0755);
    CHECK_INT(mgr__process_dir_ours(path, real, &why), -EPERM);
    rmdir(path);
    CHECK(symlink(own_dir, path) == 0);
    CHECK_INT(mgr__process_dir_ours(path, real, &why), -ENOTDIR);
    unlink(path);
    CHECK_INT(mgr__process_dir_ours("/nowhere/at/all", real, &why), -ENOENT);
    CHECK_STR(real, "/nowhere/at");
    CHECK_INT(mgr__process_dir_ours("/proc/self", real, &why), -ENOTDIR);
    CHECK(mgr__process_dir_ours("/", real, &why) < 0);
    static char longest[PATH_MAX + 10];
    memset(longest, '/', sizeof longest - 1);
    memset(longest + 1, 'x', sizeof longest - 2);
    CHECK_INT(mgr__process_dir_ours(longest, real, &why), -ENAMETOOLONG);
}

/* Who can write to a folder above ours can put another in its place. */
TEST(nor_one_below_a_folder_that_others_can_write_to)
{
    char above[200], between[220], path[250], link[200], real[PATH_MAX];
    const char *why = NULL;
    snprintf(above, sizeof above, "%s/above", own_dir);
    snprintf(between, sizeof between, "%s/between", above);
    snprintf(path, sizeof path, "%s/run", between);
    snprintf(link, sizeof link, "%s/link", own_dir);
    CHECK(mkdir(above, 0700) == 0 && mkdir(between, 0700) == 0);
    static const mode_t bad[] = { 0777, 0770, 0722 };
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        chmod(above, bad[i]);
        CHECK_INT(mgr__process_dir_ours(path, real, &why), -EPERM);
        CHECK_STR(real, above);
        CHECK(why && strstr(why, "others may write to it"));
        CHECK(access(path, F_OK) < 0);              /* nor is anything left there */
    }
    chmod(above, 01777);
    CHECK_INT(mgr__process_dir_ours(path, real, &why), 0);
    chmod(above, 0755);
    CHECK(symlink(between, link) == 0);             /* on the way it may be one: it is read once, here */
    char by_link[220];
    snprintf(by_link, sizeof by_link, "%s/run//", link);
    CHECK_INT(mgr__process_dir_ours(by_link, real, &why), 0);
    CHECK_STR(real, path);
    if (getuid() == 0) {
        CHECK(chown(above, 65534, 65534) == 0);
        CHECK_INT(mgr__process_dir_ours(path, real, &why), -EPERM);
        CHECK(why && strstr(why, "another user"));
    }
    unlink(link);
    rmdir(path);
    rmdir(between);
    rmdir(above);
}

/* ---- isolation ---- */

static bool wait_removed(const char *group)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (mgr__process_cgroup_there(group) && mgr__process_now_ms() < until) usleep(2000);
    return !mgr__process_cgroup_there(group);
}

static bool open_in_cgroup(uint32_t lease_ms, uint32_t grace_ms)
{
    mgr__keeper_config c = config_of(lease_ms, grace_ms);
    c.isolate = MGR_ISOLATE_CGROUP;
    if (!open_keeper(&c)) return false;
    lease_for(lease_ms);
    return true;
}

TEST(mounts_of_cgroups_are_read)
{
    char to[64];
    CHECK(mgr__process_cgroup_in_mount("40 30 0:37 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw", "/", to, sizeof to));
    CHECK_STR(to, "/sys/fs/cgroup/unified");
    CHECK(mgr__process_cgroup_in_mount("40 30 0:37 / /sys/fs/c\\040g rw - cgroup2 cgroup2 rw", "/a/b", to, sizeof to));
    CHECK_STR(to, "/sys/fs/c g/a/b");
    CHECK(mgr__process_cgroup_in_mount("40 30 0:37 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/docker/x", to, sizeof to));
    CHECK_STR(to, "/sys/fs/cgroup");
    CHECK(mgr__process_cgroup_in_mount("40 30 0:37 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/docker/x/y", to, sizeof to));
    CHECK_STR(to, "/sys/fs/cgroup/y");
    CHECK(!mgr__process_cgroup_in_mount("40 30 0:37 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/docker/xy", to, sizeof to));
    CHECK(!mgr__process_cgroup_in_mount("40 30 0:37 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu", "/", to, sizeof to));
    CHECK_INT(mgr__process_cgroup_populated("/no/hierarchy/in/sight"), -ENOENT);    /* not: empty */
    CHECK(!mgr__process_cgroup_in_mount("40 30 0:37 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/a-name-that-does-not-fit-into-what-the-caller-has-for-it", to, sizeof to));
}

TEST(names_in_the_environment_are_found)
{
    uint64_t slot = 0, generation = 0;
    CHECK(mgr__page_child_name(77, "5-1-2;77-3-4;", &slot, &generation));
    CHECK_INT(slot, 3);
    CHECK_INT(generation, 4);
    CHECK(mgr__page_child_name(77, "77-5-6;5-1-2;", &slot, &generation));
    CHECK_INT(slot, 5);
    CHECK(!mgr__page_child_name(77, "", &slot, &generation));
    CHECK(!mgr__page_child_name(77, "77", &slot, &generation));
    CHECK(!mgr__page_child_name(77, "77-3-4", &slot, &generation));
    CHECK(!mgr__page_child_name(77, "77-3;4-;", &slot, &generation));
    CHECK(!mgr__page_child_name(77, "77-99999999-4;", &slot, &generation));
    CHECK(!mgr__page_child_name(77, ";;x;177-3-4;", &slot, &generation));
}

TEST(worker_has_a_cgroup_of_its_own)
{
    char group[MGR__PAGE_GROUP_BYTES], text[4096];
    NEED_CGROUP();
    if (!open_in_cgroup(5000, 1000)) { CHECK(false); return; }
    memcpy(group, keeper.page->group, sizeof group);
    CHECK_INT(mgr__keeper_isolation(&keeper), MGR_ISOLATE_CGROUP);
    uint32_t slot = start("lock", scratch("a"));
    CHECK(wait_locked(scratch("a"), true) && wait_state(slot, MGR__WORKER_RUNNING));
    const char *place = mgr__process_cgroup_of(last[slot].pid, text, sizeof text);
    CHECK(place && strstr(place, strrchr(group, '/')) && strstr(place, "/0-1"));
    CHECK_INT(mgr__process_cgroup_populated(group), 1);
    mgr__keeper_stop(&keeper, slot, 1000);
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    CHECK_INT(mgr__process_cgroup_populated(group), 0);
    snprintf(text, sizeof text, "%s/0-1", group);
    CHECK(!mgr__process_cgroup_there(text));
    CHECK(mgr__process_cgroup_there(group));
    start("stubborn", scratch("a"));
    CHECK(wait_locked(scratch("a"), true));
    end_keeper();
    CHECK(wait_removed(group));
}

/* One that forgot its name belongs to its own worker, not to all who ended since. */
TEST(cgroup_tells_whose_orphan_it_is)
{
    NEED_CGROUP();
    if (!open_in_cgroup(5000, 1000)) { CHECK(false); return; }
    uint32_t other = start("lock", scratch("a"));
    CHECK(wait_locked(scratch("a"), true));
    usleep(20000);      /* start times are in ticks of 10 ms */
    uint32_t slot = start("nameless-stay", scratch("n"));
    CHECK(wait_locked(scratch("n"), true) && wait_state(slot, MGR__WORKER_RUNNING));
    mgr__keeper_stop(&keeper, other, 1000);
    CHECK(wait_state(other, MGR__WORKER_EMPTY));
    CHECK(locked(scratch("n")));
    mgr__keeper_stop(&keeper, slot, 1000);
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    CHECK(!locked(scratch("n")));
    end_keeper();
}

TEST(worker_that_left_its_cgroup_is_swept)
{
    NEED_CGROUP();
    if (!open_in_cgroup(8000, 1000)) { CHECK(false); return; }
    uint32_t slot = start("escape-nameless-exit", scratch("n"));
    CHECK(wait_state(slot, MGR__WORKER_EMPTY));
    CHECK_INT(last[slot].status, 0);
    CHECK(!locked(scratch("n")));
    start("escape", scratch("e"));
    CHECK(wait_locked(scratch("e"), true));
    kill(keeper.page->keeper, SIGKILL);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    CHECK(!locked(scratch("e")));
    mgr__keeper_close(&keeper);
}

TEST(guard_and_keeper_killed_cgroup_is_ended_and_proven)
{
    char group[MGR__PAGE_GROUP_BYTES];
    NEED_CGROUP();
    for (int i = 0; i < 2; i++) {       /* the tree in the group; then one that left it, known by its name */
        if (!open_in_cgroup(60000, 1000)) { CHECK(false); return; }
        memcpy(group, keeper.page->group, sizeof group);
        start(i ? "escape" : "nameless-stay", scratch("k"));
        CHECK(wait_locked(scratch("k"), true));
        kill_both();
        int64_t until = mgr__process_now_ms() + PATIENCE_MS;
        while (mgr__keeper_look(&keeper) != MGR__KEEPER_SWEPT && mgr__process_now_ms() < until) turn(10);
        CHECK_INT(mgr__keeper_look(&keeper), MGR__KEEPER_SWEPT);
        CHECK(!locked(scratch("k")));
        CHECK(!mgr__process_cgroup_there(group));
        CHECK(!mgr__keeper_lease_extend(&keeper, mgr__process_now_ms() + 8000));
        mgr__keeper_close(&keeper);
        kill_orphans(scratch("k"));
    }
}

/* Without a cgroup: the state says so, late enough, and never calls alive what is dead or dead what is alive. */
TEST(guard_and_keeper_killed_without_cgroup_is_unproven)
{
    mgr__keeper_config c = config_of(1000, 300);
    for (int i = 0; i < 2; i++) {
        if (!open_keeper(&c)) { CHECK(false); return; }
        int64_t lease = mgr__process_now_ms() + 1000;
        mgr__keeper_lease_extend(&keeper, lease);
        uint32_t slot = start(i ? "nameless-stay" : "daemon", scratch("k"));
        CHECK(wait_locked(scratch("k"), true));
        CHECK_INT(mgr__keeper_isolation(&keeper), MGR_ISOLATE_NONE);
        kill_both();
        mgr__keeper_status status = mgr__keeper_look(&keeper);
        int64_t until = mgr__process_now_ms() + PATIENCE_MS;
        while (status != MGR__KEEPER_UNPROVEN && status != MGR__KEEPER_SWEPT && mgr__process_now_ms() < until) {
            turn(20);
            status = mgr__keeper_look(&keeper);
        }
        CHECK_INT(status, MGR__KEEPER_UNPROVEN);
        CHECK_INT(mgr__keeper_lease(&keeper), 0);
        CHECK(mgr__process_now_ms() >= lease + c.kill_margin_ms);
        CHECK_INT(locked(scratch("k")), i);     /* one with a name was found all the same */
        mgr__keeper_close(&keeper);
        reap(last[slot].pid);
        kill_orphans(scratch("k"));
    }
}

/* The kernel refuses more groups: with auto the worker runs outside, and then an
 * empty group is no proof; by name it does not run. */
TEST(no_room_for_a_cgroup)
{
    char path[MGR__PROCESS_CGROUP_BYTES + 64];
    mgr__keeper_config c = config_of(8000, 300);
    NEED_CGROUP();
    for (int i = 0; i < 2; i++) {
        c.isolate = i ? MGR_ISOLATE_AUTO : MGR_ISOLATE_CGROUP;
        if (!open_keeper(&c)) { CHECK(false); return; }
        lease_for(1500);
        CHECK_INT(mgr__keeper_isolation(&keeper), MGR_ISOLATE_CGROUP);
        CHECK(mgr__process_file_put(mgr__process_cgroup_file(path, keeper.page->group, "/cgroup.max.descendants"), "0", 1) == 1);
        uint32_t slot = start("nameless-stay", scratch("k"));
        CHECK(wait_state(slot, i ? MGR__WORKER_RUNNING : MGR__WORKER_FAILED));
        if (i == 0) { CHECK_INT(last[slot].error, EAGAIN); end_keeper(); continue; }
        CHECK(wait_locked(scratch("k"), true));
        CHECK_INT(mgr__keeper_isolation(&keeper), MGR_ISOLATE_NONE);
        kill_both();
        CHECK(wait_status(MGR__KEEPER_UNPROVEN));
        CHECK(locked(scratch("k")));
        mgr__keeper_close(&keeper);
        kill_orphans(scratch("k"));
    }
}

/* In a process of its own: what mgr__keeper_open says where no cgroup can be had. */
enum { AS_NOBODY, NO_MOUNT, THREADED, DELEGATED };

static int open_where(int how, const char *place)
{
    mgr__keeper_config c = config_of(3000, 300);
    char path[MGR__PROCESS_CGROUP_BYTES + 32], parent[MGR__PROCESS_CGROUP_BYTES];
    mgr__buf text;
    if (how == NO_MOUNT) {
        if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) return 77;
        while (mgr__process_cgroup_find(parent, sizeof parent) == 0) {     /* the mount's root is it, or above it */
            while (umount2(parent, MNT_DETACH) < 0) {
                char *end = strrchr(parent, '/');
                if (!end || end == parent) return 77;
                *end = 0;
            }
        }
    }
    if (how == THREADED || how == DELEGATED) {
        if (mgr__process_cgroup_make(place) < 0) return 77;
        if (how == THREADED && mgr__process_file_put(mgr__process_cgroup_file(path, place, "/cgroup.type"), "threaded", 8) < 0) return 77;
        if (how == DELEGATED && (chown(place, 65534, 65534) < 0 || chown(mgr__process_cgroup_file(path, place, "/cgroup.procs"), 65534, 65534) < 0)) return 77;
        if (mgr__process_cgroup_join(place) < 0) return 77;
    }
    if ((how == AS_NOBODY || how == DELEGATED) && setuid(65534) < 0) return 77;
    heap = mgr__heap_make(NULL);
    mgr__buf_init(&text, &heap, 4096);
    c.isolate = MGR_ISOLATE_CGROUP;
    mgr_result result = mgr__keeper_open(&keeper, &heap, &c, &text);
    const char *wanted = how == AS_NOBODY ? "Delegate=yes" : how == NO_MOUNT ? "no cgroup v2" : "auto or none";
    if (how != DELEGATED && (result != MGR_SYSTEM || !strstr(mgr__buf_cstr(&text), wanted))) { printf("%d %s\n", result, mgr__buf_cstr(&text)); return 1; }
    if (how == DELEGATED && result != MGR_OK) { printf("%d %s\n", result, mgr__buf_cstr(&text)); return 2; }
    if (how != DELEGATED) {
        c.isolate = MGR_ISOLATE_DEFAULT;
        if (!open_keeper(&c)) return 3;
    }
    if (mgr__keeper_isolation(&keeper) != (how == DELEGATED ? MGR_ISOLATE_CGROUP : MGR_ISOLATE_NONE)) return 4;
    lease_for(3000);
    uint32_t slot = start("nameless", scratch("k"));
    if (!wait_state(slot, MGR__WORKER_EMPTY) || last[slot].status != 0 || locked(scratch("k"))) return 5;
    end_keeper();
    return test__bad ? 6 : 0;
}

TEST(where_no_cgroup_can_be_had)
{
    char place[MGR__PROCESS_CGROUP_BYTES + 32];
    NEED_CGROUP();
    if (getuid() != 0) SKIP("needs root");
    snprintf(place, sizeof place, "%s/test-%d", own_group, (int)getpid());
    chmod(scratch("k"), 0666);
    unlink(scratch("k"));
    for (int how = AS_NOBODY; how <= DELEGATED; how++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) _exit(open_where(how, place));
        waitpid(child, &status, 0);
        if (WEXITSTATUS(status) == 77) printf("note: no way to try %d\n", how);
        else if (status) { printf("in place %d: ", how); CHECK_INT(WEXITSTATUS(status), 0); }
        reap(0);
        unlink(scratch("k"));
        CHECK_INT(mgr__process_cgroup_populated(place), 0);
        rmdir(place);           /* nothing was left in it */
        CHECK(!mgr__process_cgroup_there(place));
        mgr__process_cgroup_remove(place);
    }
}

/* Manager, guard and keeper killed at once: the next in the same place ends what
 * they left; but not what a live one has, be it empty. */
TEST(left_over_cgroups_are_ended_and_removed)
{
    mgr__keeper_config c = config_of(8000, 300);
    NEED_CGROUP();
    c.isolate = MGR_ISOLATE_AUTO;
    trio idle = manager_process(&c, 8000, NULL, "", "", false);
    trio t = manager_process(&c, 8000, NULL, "nameless-stay", scratch("m"), false);
    kill(t.guard, SIGSTOP);
    kill(t.keeper, SIGSTOP);
    kill(t.manager, SIGKILL);
    reap(t.manager);
    kill(t.guard, SIGKILL);
    kill(t.keeper, SIGKILL);
    CHECK(wait_gone(t.keeper) && wait_gone(t.guard));
    CHECK(mgr__process_cgroup_there(t.group));
    CHECK(locked(scratch("m")));
    if (!open_keeper(&c)) { CHECK(false); return; }
    CHECK(!locked(scratch("m")));
    CHECK(!mgr__process_cgroup_there(t.group));
    CHECK(mgr__process_cgroup_there(idle.group));
    end_keeper();
    end_manager(idle);
    CHECK(wait_removed(idle.group));
    kill_orphans(scratch("m"));
    reap(t.guard);
    reap(t.keeper);
}

/* As on kernels before 5.14, below a nested group as well. */
TEST(cgroup_is_killed_one_by_one)
{
    char group[MGR__PROCESS_CGROUP_BYTES], inner[MGR__PROCESS_CGROUP_BYTES + 8];
    NEED_CGROUP();
    snprintf(group, sizeof group, "%.400s/test-%d", own_group, (int)getpid());
    snprintf(inner, sizeof inner, "%s/inner", group);
    CHECK_INT(mgr__process_cgroup_make(group), 0);
    CHECK_INT(mgr__process_cgroup_make(inner), 0);
    for (int i = 0; i < 2; i++) {
        pid_t child = fork();
        if (child == 0) {
            if (mgr__process_cgroup_join(i ? inner : group) < 0) _exit(1);
            touch(scratch(i ? "a" : "b"));
            hold_lock(scratch(i ? "a" : "b"));
            for (;;) pause();
        }
        CHECK(wait_locked(scratch(i ? "a" : "b"), true));
    }
    CHECK_INT(mgr__process_cgroup_populated(group), 1);
    mgr__process_cgroup_remove(group);
    CHECK(mgr__process_cgroup_there(inner));
    mgr__process_cgroup_kill_each(group);
    CHECK(wait_locked(scratch("a"), false) && wait_locked(scratch("b"), false));
    reap(0);
    CHECK_INT(mgr__process_cgroup_populated(group), 0);
    mgr__process_cgroup_remove(group);
    CHECK(!mgr__process_cgroup_there(group));
}

/* A process in the old freezer takes no signal, not even SIGKILL, until it is
 * thawed: as good as one in an uninterruptible wait. */
static bool freeze(const char *freezer, pid_t pid)
{
    char path[128], number[32];
    snprintf(number, sizeof number, "%d", (int)pid);
    snprintf(path, sizeof path, "%s/cgroup.procs", freezer);
    if (mkdir(freezer, 0755) < 0 || mgr__process_file_put(path, number, strlen(number)) < 0) return false;
    snprintf(path, sizeof path, "%s/freezer.state", freezer);
    return mgr__process_file_put(path, "FROZEN", 6) > 0;
}

static void thaw(const char *freezer)
{
    char path[128];
    snprintf(path, sizeof path, "%s/freezer.state", freezer);
    mgr__process_file_put(path, "THAWED", 6);
}

/* A process in the group of worker `slot` that is nobody's child here, and frozen if it can be. */
static pid_t guest_in(uint32_t slot, const char *freezer, bool *frozen)
{
    char inside[MGR__PROCESS_CGROUP_BYTES + 64], number[32];
    pid_t guest = fork();
    if (guest == 0) for (;;) pause();
    snprintf(inside, sizeof inside, "%s/%u-%u/cgroup.procs", keeper.page->group, (unsigned)slot, (unsigned)keeper.generation);
    snprintf(number, sizeof number, "%d", (int)guest);
    CHECK(mgr__process_file_put(inside, number, strlen(number)) > 0);
    *frozen = freeze(freezer, guest);
    return guest;
}

/* Nothing is called dead while the kernel says that the cgroup is not empty: not
 * by the keeper, and not by a manager left alone, however long it takes. */
TEST(populated_cgroup_is_not_called_dead)
{
    char freezer[64];
    bool frozen;
    NEED_CGROUP();
    snprintf(freezer, sizeof freezer, "/sys/fs/cgroup/freezer/test-%d", (int)getpid());
    if (!open_in_cgroup(60000, 300)) { CHECK(false); return; }
    for (int i = 0; i < 2; i++) {
        uint32_t slot = start("lock", scratch("a"));
        CHECK(wait_locked(scratch("a"), true) && wait_state(slot, MGR__WORKER_RUNNING));
        pid_t guest = guest_in(slot, freezer, &frozen);
        if (i == 0) mgr__keeper_stop(&keeper, slot, 0);
        else kill_both();
        if (i == 1) { keeper.page->kill_margin_ms = 0; keeper.page->lease = mgr__process_now_ms(); }
        if (i == 0) CHECK(wait_state(slot, MGR__WORKER_EXITED));
        for (int n = 0; n < 20 && frozen; n++) {
            turn(10);
            if (i == 0) CHECK_INT(last[slot].state, MGR__WORKER_EXITED);
            else CHECK(mgr__keeper_look(&keeper) < MGR__KEEPER_UNPROVEN);
        }
        thaw(freezer);
        CHECK(i == 0 ? wait_state(slot, MGR__WORKER_EMPTY) : wait_status(MGR__KEEPER_SWEPT));
        CHECK(wait_gone(guest));
        reap(guest);
        reap(last[slot].pid);
        rmdir(freezer);
    }
    mgr__keeper_close(&keeper);
    if (!frozen) SKIP("no v1 freezer to make a process unkillable");
}

/* Nor while one that left the group is known to live. */
TEST(escaped_worker_is_not_called_dead)
{
    char freezer[64];
    NEED_CGROUP();
    snprintf(freezer, sizeof freezer, "/sys/fs/cgroup/freezer/test-%d", (int)getpid());
    if (!open_in_cgroup(60000, 300)) { CHECK(false); return; }
    uint32_t slot = start("escape-alone", scratch("a"));
    CHECK(wait_locked(scratch("a"), true) && wait_state(slot, MGR__WORKER_RUNNING));
    bool frozen = freeze(freezer, last[slot].pid);
    kill_both();
    for (int n = 0; n < 20 && frozen; n++) { turn(10); CHECK(mgr__keeper_look(&keeper) < MGR__KEEPER_UNPROVEN); }
    thaw(freezer);
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    CHECK(!locked(scratch("a")));
    mgr__keeper_close(&keeper);
    reap(last[slot].pid);
    rmdir(freezer);
    if (!frozen) SKIP("no v1 freezer to make a process unkillable");
}

static bool renews(const char *seen) { return !strcmp(seen, "PUT /renew") || !strcmp(seen, "PUT /pass"); }

/* The guard stays away, the keeper renews the session and its check until the work is dead, and only then certifies. */
static void stuck_worker(bool manager_frozen)
{
    char freezer[64];
    mgr__keeper_config c = config_of(1500, 100);
    server s = listen_here();
    snprintf(freezer, sizeof freezer, "/sys/fs/cgroup/freezer/test-%d", (int)getpid());
    trio t = manager_process(&c, 1500, &s, "stubborn", scratch("m"), false);
    if (!freeze(freezer, t.worker)) {
        end_manager(t);
        close(s.fd);
        rmdir(freezer);
        SKIP("no v1 freezer to make a process unkillable");
    }
    kill(t.manager, manager_frozen ? SIGSTOP : SIGKILL);
    serve(&s, 4, scratch("m"), OK_ANSWER);
    int passes = 0;
    for (int i = 0; i < 4; i++) {
        CHECK(renews(s.seen[i]));
        CHECK(!s.free_then[i]);
        passes += !strcmp(s.seen[i], "PUT /pass");
    }
    CHECK_STR(s.seen[0], "PUT /pass");      /* it may be the sooner to run out */
    CHECK(passes < 4);
    CHECK(state_of(t.keeper) && state_of(t.keeper) != 'Z');
    CHECK(locked(scratch("m")));
    thaw(freezer);
    int at = 4;
    for (;;) {
        serve(&s, at + 1, scratch("m"), OK_ANSWER);
        if (at + 4 > WORDS_MAX || !renews(s.seen[at])) break;
        at++;
    }
    serve(&s, at + 3, scratch("m"), OK_ANSWER);
    CHECK_STR(s.seen[at], "PUT /certificate");
    CHECK(s.free_then[at]);
    CHECK_STR(s.seen[at + 1], "PUT /destroy");
    CHECK_STR(s.seen[at + 2], "PUT /deregister");
    end_manager(t);
    close(s.fd);
    rmdir(freezer);
}

TEST(stuck_worker_keeps_the_session_of_a_dead_manager) { stuck_worker(false); }
TEST(stuck_worker_keeps_the_session_of_a_frozen_manager) { stuck_worker(true); }

TEST(the_same_in_a_cgroup)
{
    NEED_CGROUP();
    isolate_by = MGR_ISOLATE_CGROUP;
    exit_status_is_reported();
    failed_exec_is_named();
    worker_starts_clean();
    stop_is_polite_then_certain();
    daemons_are_swept_before_empty();
    manager_killed_daemons_too();
    keeper_killed_guard_sweeps();
    both_frozen_are_replaced();
    keeper_as_a_command_of_its_own();
    isolate_by = MGR_ISOLATE_NONE;
}

/* ---- a PID namespace ---- */

/* In a process of its own, for what it changes cannot be taken back. Its exit status. */
static int in_a_child(int (*what)(void))
{
    int status = -1;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        test__bad = false;
        int code = what();
        fflush(stdout);
        _exit(code);
    }
    if (waitpid(pid, &status, 0) != pid) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int open_a_space(void)
{
    mgr__keeper_config c = config_of(8000, 300);
    c.isolate = MGR_ISOLATE_PIDNS;
    if (!open_keeper(&c)) return 1;
    end_keeper();
    return 0;
}

#define NEED_SPACE() do { if (in_a_child(open_a_space) != 0) SKIP("PID namespaces are refused here"); } while (0)

TEST(the_same_in_a_pid_namespace)
{
    NEED_SPACE();
    isolate_by = MGR_ISOLATE_PIDNS;
    exit_status_is_reported();
    failed_exec_is_named();
    worker_starts_clean();
    stop_is_polite_then_certain();
    daemons_are_swept_before_empty();
    manager_killed_words_in_order_after_the_work();
    manager_killed_daemons_too();
    manager_frozen_lease_ends_the_work();
    manager_and_keeper_frozen_guard_ends_the_work();
    in_process_work_is_certified_by_the_hosts_death_only();
    overrun_kills_the_host_if_asked();
    keeper_killed_guard_sweeps();
    guard_killed_keeper_ends_and_certifies();
    both_frozen_are_replaced();
    keeper_as_a_command_of_its_own();
    isolate_by = MGR_ISOLATE_NONE;
}

/* Users see the host's numbers; a daemon without a name, in no group, dies all the same. */
TEST(guard_and_keeper_killed_namespace_is_ended_and_proven)
{
    NEED_SPACE();
    mgr__process worker, shell;
    isolate_by = MGR_ISOLATE_PIDNS;
    mgr__keeper_config c = config_of(8000, 300);
    if (!open_keeper(&c)) { CHECK(false); isolate_by = MGR_ISOLATE_NONE; return; }
    lease_for(8000);
    CHECK_INT(mgr__keeper_isolation(&keeper), MGR_ISOLATE_PIDNS);
    uint32_t slot = start("nameless-stay", scratch("x"));
    CHECK(wait_locked(scratch("x"), true));
    CHECK(wait_state(slot, MGR__WORKER_RUNNING));
    CHECK(mgr__process_stat(last[slot].pid, &worker) && worker.parent == keeper.page->keeper);
    CHECK(last[slot].pid != (pid_t)(MGR__LOAD(&keeper.page->slots[slot].now) >> 32));
    CHECK(mgr__process_stat(keeper.page->keeper, &shell) && shell.parent == keeper.page->guard);
    kill_both();
    CHECK(wait_status(MGR__KEEPER_SWEPT));
    CHECK(!locked(scratch("x")));
    mgr__keeper_close(&keeper);
    reap(0);
    isolate_by = MGR_ISOLATE_NONE;
}

TEST(death_of_a_life_in_a_pid_namespace_is_proven)
{
    NEED_SPACE();
    life l;
    const char *why = "";
    if (!life_make(&l, "aa1")) { CHECK(!"a life file"); return; }
    trio t = living(&l, MGR_ISOLATE_PIDNS, "nameless-stay");
    kill(t.guard, SIGSTOP);
    kill_one(t.manager);
    CHECK_INT(prove(&l, &why), MGR__VERDICT_LATER);
    kill_three(t);
    CHECK_INT(prove_in_time(&l), MGR__VERDICT_DEAD);        /* the namespace may still be dying: LATER until then */
    CHECK(!locked(scratch("x")));
    unlink(l.path);
}

/* Without rights of its own: by a user namespace, in which nobody else can be named. */
static int unprivileged(void)
{
    mgr__spawn s;
    uint32_t slot;
    const char *argv[] = { "/bin/sh", "-c", "test $(id -u) = 65534 && test -d /proc/$$ && test ! -d /proc/999999", NULL }, *env[] = { "PATH=/bin:/usr/bin", NULL };
    if (setgroups(0, NULL) < 0 || setgid(65534) < 0 || setuid(65534) < 0) return 2;
    prctl(PR_SET_DUMPABLE, 1ul, 0ul, 0ul, 0ul);
    mgr__keeper_config c = config_of(8000, 300);
    c.isolate = MGR_ISOLATE_PIDNS;
    if (!open_keeper(&c)) return 77;
    if (!keeper.page->space_user) return 3;
    lease_for(8000);
    memset(&s, 0, sizeof s);
    s.argv = argv;
    s.env = env;
    s.set_ids = true;
    s.uid = 12345;
    s.gid = 65534;
    if (mgr__keeper_spawn(&keeper, &s, &slot) != MGR_DENIED) return 4;
    s.uid = 65534;
    if (mgr__keeper_spawn(&keeper, &s, &slot) != MGR_OK) return 5;
    if (!wait_state(slot, MGR__WORKER_EMPTY)) return 6;
    if (last[slot].status != 0) return 7;
    end_keeper();
    return 0;
}

TEST(pid_namespace_without_privileges)
{
    if (geteuid() != 0) SKIP("only root can become somebody without rights");
    int code = in_a_child(unprivileged);
    if (code == 77) SKIP("user namespaces are refused here");
    CHECK_INT(code, 0);
}

static int where_none_are_left(void)
{
    mgr__buf text;
    mgr__keeper_config c = config_of(8000, 300);
    c.isolate = MGR_ISOLATE_PIDNS;
    if (unshare(CLONE_NEWUSER) < 0 || mgr__process_map_ids(0, 0) < 0) return 77;
    if (mgr__process_file_put("/proc/sys/user/max_pid_namespaces", "0", 1) < 0) return 77;
    heap = mgr__heap_make(NULL);
    mgr__buf_init(&text, &heap, 4096);
    if (mgr__keeper_open(&keeper, &heap, &c, &text) != MGR_INVALID) return 1;
    if (!strstr(mgr__buf_cstr(&text), "isolate by pidns") || !strstr(mgr__buf_cstr(&text), "max_pid_namespaces")) return 2;
    mgr__process all[8];
    return children_of(getpid(), all, 8) == 0 ? 0 : 3;
}

TEST(pid_namespace_that_is_refused_is_named)
{
    int code = in_a_child(where_none_are_left);
    if (code == 77) SKIP("user namespaces are refused here");
    CHECK_INT(code, 0);
}

/* ---- where /proc, the kernel or a limit gives less ---- */

static bool copy_self(const char *to, mode_t mode)
{
    char chunk[65536];
    ssize_t got;
    int in = open(self_path, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0700);
    bool good = in >= 0 && out >= 0;
    while (good && (got = read(in, chunk, sizeof chunk)) > 0) good = write(out, chunk, (size_t)got) == got;
    good = good && fchmod(out, mode) == 0;
    close(in);
    close(out);
    return good;
}

static int with_hidden_processes(void)
{
    mgr__keeper_config c = config_of(8000, 300);
    if (mgr__process_hidden()) return 77;
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) return 77;
    if (mount("proc", "/proc", "proc", 0, "hidepid=2") < 0) return 77;
    if (mgr__process_hidden()) return 2;        /* root sees all */
    if (setgroups(0, NULL) < 0 || setgid(65534) < 0 || setuid(65534) < 0) return 77;
    prctl(PR_SET_DUMPABLE, 1ul, 0ul, 0ul, 0ul);
    if (!mgr__process_hidden()) return 3;
    snprintf(self_path, sizeof self_path, "%s.plain", scratch("h"));        /* where we came from others may not look */
    c.isolate = MGR_ISOLATE_NONE;
    if (!open_keeper(&c)) return 4;
    lease_for(8000);
    uint32_t slot = start("hidden", scratch("h"));
    if (!wait_state(slot, MGR__WORKER_EMPTY)) return 5;
    if (locked(scratch("h"))) return 6;         /* called empty, and one of its tree works */
    if (last[slot].status != 0) return 7;
    end_keeper();
    return test__bad ? 1 : 0;
}

/* What /proc hides is a child all the same: no tree is empty while it may be of it. */
TEST(a_descendant_that_proc_hides_holds_its_tree)
{
    struct statvfs fs;
    char program[140], plain[140];
    if (geteuid() != 0) SKIP("only root can mount a /proc that hides");
    if (statvfs(scratch_dir, &fs) < 0 || (fs.f_flag & ST_NOSUID)) SKIP("no set-uid program can be had here");
    snprintf(program, sizeof program, "%s.setuid", scratch("h"));
    snprintf(plain, sizeof plain, "%s.plain", scratch("h"));
    unlink(scratch("h"));
    close(open(scratch("h"), O_RDWR | O_CREAT, 0600));
    chmod(scratch("h"), 0666);
    int code = copy_self(program, 04755) && copy_self(plain, 0755) ? in_a_child(with_hidden_processes) : 9;
    unlink(program);
    unlink(plain);
    unlink(scratch("h"));
    if (code == 77) SKIP("no /proc that hides can be mounted here");
    CHECK_INT(code, 0);
}

/* A kernel before 5.3: from here on, for this process and all it starts. */
static bool refuse_pidfds(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_open, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { MGR__COUNT(code), code };
    return prctl(PR_SET_NO_NEW_PRIVS, 1ul, 0ul, 0ul, 0ul) == 0 && prctl(PR_SET_SECCOMP, (unsigned long)SECCOMP_MODE_FILTER, &program, 0ul, 0ul) == 0
           && mgr__process_pidfd(getpid()) == -ENOSYS;
}

static void (*once_more)(void);

static int without_pidfds(void)
{
    if (!refuse_pidfds()) return 77;
    mgr__process_subreaper();
    once_more();
    return test__bad ? 1 : 0;
}

/* Everything that looks at, or ends, somebody who is no child. */
TEST(the_same_without_pidfds)
{
    static void (*const tests[])(void) = {
        manager_killed_words_in_order_after_the_work, manager_killed_daemons_too, manager_frozen_lease_ends_the_work,
        manager_and_keeper_frozen_guard_ends_the_work, in_process_work_is_certified_by_the_hosts_death_only, overrun_kills_the_host_if_asked,
        keeper_killed_guard_sweeps, guard_killed_keeper_ends_and_certifies, guard_and_keeper_killed_workers_die,
        the_word_is_closed_as_soon_as_the_keeper_is_seen_dead, silent_keeper_is_replaced, both_frozen_are_replaced, keeper_as_a_command_of_its_own
    };
    for (size_t i = 0; i < MGR__COUNT(tests); i++) {
        once_more = tests[i];
        int code = in_a_child(without_pidfds);
        if (code == 77) SKIP("no system call can be refused here");
        if (code != 0) printf("test %zu of these\n", i);
        CHECK_INT(code, 0);
    }
}

static int where_no_file_may_grow(void)
{
    struct rlimit none = { 0, 0 };
    if (setrlimit(RLIMIT_FSIZE, &none) < 0) return 77;
    exit_status_is_reported();
    return test__bad ? 1 : 0;
}

/* `ulimit -f 0`: neither the host nor the keeper may die of SIGXFSZ. */
TEST(no_file_may_grow)
{
    CHECK_INT(in_a_child(where_no_file_may_grow), 0);
}

static int with_few_descriptors(void)
{
    mgr__process list_of[64];
    mgr__process_list list = { list_of, 0, 64, false };
    int code = 0;
    pid_t pid = fork();
    if (pid == 0) { pause(); _exit(0); }
    for (int fd = 3; fd < 64; fd++) close(fd);
    for (rlim_t most = 3; most <= 4 && !code; most++) {     /* none for the list itself; none for what it names */
        struct rlimit few = { most, 64 };
        setrlimit(RLIMIT_NOFILE, &few);
        mgr__process_list_all(&list, 0);
        if (list.whole) code = 1;
        mgr__process_list_children(&list);
        if (list.whole) code = 2;
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return code;
}

/* A list that could not be made is not an empty one. */
TEST(no_descriptor_left_to_look_at_processes)
{
    CHECK_INT(in_a_child(with_few_descriptors), 0);
}

TEST(nothing_is_left)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    pid_t got = 0;
    while (got != -1 && mgr__process_now_ms() < until) { got = waitpid(-1, NULL, WNOHANG | __WALL); if (got == 0) usleep(2000); }
    CHECK_INT(got, -1);
    if (own_group[0]) mgr__process_cgroup_remove_stale(own_group);
}

static void remove_all_in(const char *folder)
{
    char path[400];
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir)); ) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_type != DT_DIR) unlink(path);
    }
    if (dir) closedir(dir);
}

static void remove_scratch(void)
{
    char run[80];
    snprintf(run, sizeof run, "%s/run", own_dir);
    rmdir(run);
    remove_all_in(scratch_dir);
    remove_all_in(own_dir);
    rmdir(own_dir);
    rmdir(scratch_dir);
}

int main(int argc, char **argv)
{
    int status = mgr_keeper_main(argc, argv);
    if (status >= 0) return status;
    ssize_t len = readlink("/proc/self/exe", self_path, sizeof self_path - 1);
    self_path[len > 0 ? len : 0] = 0;
    if (argc > 2 && !strcmp(argv[1], "--worker")) return worker(argc, argv);
    snprintf(scratch_dir, sizeof scratch_dir, "/tmp/test_keeper.XXXXXX");
    snprintf(own_dir, sizeof own_dir, "/tmp/test_keeper_own.XXXXXX");
    if (!mkdtemp(scratch_dir) || !mkdtemp(own_dir)) return 1;
    chmod(scratch_dir, 0777);
    mgr__process_subreaper();
    enter_own_group();
    RUN(exit_status_is_reported);
    RUN(failed_exec_is_named);
    RUN(start_that_takes_too_long_fails);
    RUN(limits_are_refused_by_name);
    RUN(no_lease_no_work_but_agents);
    RUN(worker_starts_clean);
    RUN(stop_is_polite_then_certain);
    RUN(daemons_are_swept_before_empty);
    RUN(names_nest);
    RUN(two_hundred_quick_starts);
    RUN(lease_word_is_monotone_and_closes_for_good);
    RUN(a_word_that_was_extended_is_not_closed);
    RUN(no_start_under_a_word_that_is_not_open);
    RUN(work_is_over_when_all_of_it_is);
    RUN(who_was_late_acts_earlier);
    RUN(manager_killed_words_in_order_after_the_work);
    RUN(manager_killed_daemons_too);
    RUN(manager_killed_while_a_copy_of_it_lives);
    RUN(manager_frozen_lease_ends_the_work);
    RUN(manager_frozen_work_is_told_to_stop_first);
    RUN(manager_and_keeper_frozen_guard_ends_the_work);
    RUN(slow_keeper_is_helped_for_a_while);
    RUN(nothing_stays_behind_of_a_start_that_was_cut_short);
    RUN(nothing_stays_behind_of_a_start_of_a_keeper_as_a_command);
    RUN(in_process_work_is_certified_by_the_hosts_death_only);
    RUN(overrun_kills_the_host_if_asked);
    RUN(words_are_repeated_unless_refused);
    RUN(words_end_with_their_deadline_and_reach_every_address);
    RUN(what_came_of_the_words_is_told_exactly);
    RUN(agent_outlives_the_words);
    RUN(keeper_killed_guard_sweeps);
    RUN(keeper_killed_while_a_worker_traces_it);
    RUN(keeper_killed_while_a_stranger_traces_it);
    RUN(worker_that_a_process_of_its_own_traces_is_ended);
    RUN(orphan_in_the_group_of_another_worker_is_its_own_partitions);
    RUN(guard_killed_keeper_ends_and_certifies);
    RUN(guard_and_keeper_killed_workers_die);
    RUN(guard_and_keeper_killed_worker_of_another_user_dies);
    RUN(no_program_is_executed_when_the_parent_is_gone);
    RUN(the_word_is_closed_as_soon_as_the_keeper_is_seen_dead);
    RUN(silent_keeper_is_replaced);
    RUN(both_frozen_are_replaced);
    RUN(host_sees_nothing_of_it);
    RUN(forked_child_of_the_host_only_frees);
    RUN(close_without_dismissal_stops_and_certifies);
    RUN(keeper_as_a_command_of_its_own);
    RUN(keeper_gives_the_hosts_memory_back);
    RUN(life_lock_is_free_when_all_are_gone);
    RUN(death_is_proven_only_when_every_piece_is_there);
    RUN(a_program_whose_leader_has_ended_is_alive);
    RUN(record_of_a_life_is_held_against_the_living);
    RUN(populated_group_of_a_dead_life_is_ended_before_it_is_called_dead);
    RUN(group_is_gone_only_where_it_would_be_seen);
    RUN(without_a_group_death_is_not_proven_once_a_worker_ran);
    RUN(forked_copy_of_the_host_stands_in_the_way_of_the_proof);
    RUN(two_may_ask_at_once);
    RUN(life_files_are_removed_when_certified_or_stale);
    RUN(a_sweep_does_not_spoil_a_new_life_file);
    RUN(only_a_folder_of_our_own_will_do);
    RUN(nor_one_below_a_folder_that_others_can_write_to);
    RUN(mounts_of_cgroups_are_read);
    RUN(names_in_the_environment_are_found);
    RUN(worker_has_a_cgroup_of_its_own);
    RUN(cgroup_tells_whose_orphan_it_is);
    RUN(worker_that_left_its_cgroup_is_swept);
    RUN(guard_and_keeper_killed_cgroup_is_ended_and_proven);
    RUN(guard_and_keeper_killed_without_cgroup_is_unproven);
    RUN(no_room_for_a_cgroup);
    RUN(where_no_cgroup_can_be_had);
    RUN(left_over_cgroups_are_ended_and_removed);
    RUN(cgroup_is_killed_one_by_one);
    RUN(populated_cgroup_is_not_called_dead);
    RUN(escaped_worker_is_not_called_dead);
    RUN(stuck_worker_keeps_the_session_of_a_dead_manager);
    RUN(stuck_worker_keeps_the_session_of_a_frozen_manager);
    RUN(the_same_in_a_cgroup);
    RUN(the_same_in_a_pid_namespace);
    RUN(guard_and_keeper_killed_namespace_is_ended_and_proven);
    RUN(death_of_a_life_in_a_pid_namespace_is_proven);
    RUN(pid_namespace_without_privileges);
    RUN(pid_namespace_that_is_refused_is_named);
    RUN(a_descendant_that_proc_hides_holds_its_tree);
    RUN(the_same_without_pidfds);
    RUN(no_file_may_grow);
    RUN(no_descriptor_left_to_look_at_processes);
    RUN(nothing_is_left);
    leave_own_group();
    remove_scratch();
    return test__end();
}
