/* The program that embeds manager.h keeps its signals, children, descriptors, stdio
 * and threads to itself (invariant 8). Four threads run children of their own, write
 * and read, and call whatever may be called from any thread, while the main thread
 * steps an instance with real work: processes that are started, killed, restarted,
 * and lost with their keeper. A timer interrupts everybody all the time. At the end
 * the program is as it was.
 *
 * Built with -fsanitize=thread as well (make sanitize): no race is borne. There the
 * guard is made by libc's fork, so that the host sees its end; nobody waits for any
 * child, and signals are not counted. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "../examples/devconsul.h"
#include "test.h"
#include <pthread.h>
#include <sys/time.h>

enum { THREADS = 4, PATIENCE_MS = 30000, LEASE_MS = 15000, GRANTS_MAX = 256, CHILDREN_MAX = 4096, LINES = 40 };

#ifdef MGR__SANITIZE_THREAD
enum { SEEN_BY_HOST = 1, CHILDREN = 6 };
#else
enum { SEEN_BY_HOST = 0, CHILDREN = 25 };
#endif

#define GET(at)         __atomic_load_n((at), __ATOMIC_SEQ_CST)
#define SET(at, value)  __atomic_store_n((at), (value), __ATOMIC_SEQ_CST)
#define ADD(at)         __atomic_add_fetch((at), 1, __ATOMIC_SEQ_CST)

/* ---- what the threads and the handlers share: all of it atomic ---- */

static mgr       *the_mgr;
static const mgr_grant *grants[GRANTS_MAX];
static int        grant_count, grants_open_seen;
static pid_t      own[CHILDREN_MAX];        /* children of the program's own, in any order */
static int        own_count, forking;       /* forking: threads between fork and noting its number */
static pid_t      child_signals[CHILDREN_MAX];      /* who each SIGCHLD was about */
static int        child_signal_count, alarm_count;
static int        posts_sent, posts_run, faults, finish, threads_at_work;
static bool       one_waits_for_all;        /* the first thread alone waits, for any child */
static const char *first_fault;

static void fault(const char *what)
{
    const char *none = NULL;
    ADD(&faults);
    __atomic_compare_exchange_n(&first_fault, &none, what, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void on_child(int signo, siginfo_t *info, void *context)
{
    (void)signo; (void)context;
    int at = ADD(&child_signal_count) - 1;
    if (at < CHILDREN_MAX) SET(&child_signals[at], info->si_pid);
}

static void on_alarm(int signo) { (void)signo; ADD(&alarm_count); }

static bool is_own(pid_t pid)
{
    int count = GET(&own_count);
    for (int i = 0; i < count && i < CHILDREN_MAX; i++) if (GET(&own[i]) == pid) return true;
    return false;
}

/* ---- the program's own children ---- */

static pid_t start_child(int code)
{
    char text[24];
    snprintf(text, sizeof text, "exit %d", code);
    ADD(&forking);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", text, (char *)NULL);
        _exit(127);
    }
    int at = ADD(&own_count) - 1;
    if (pid > 0 && at < CHILDREN_MAX) SET(&own[at], pid);
    else fault("a child cannot be made");
    __atomic_sub_fetch(&forking, 1, __ATOMIC_SEQ_CST);
    return pid;
}

static void wait_for(pid_t pid, int code)
{
    int status = 0;
    pid_t got;
    while ((got = waitpid(pid, &status, 0)) < 0 && errno == EINTR) {}
    if (got != pid) fault("somebody else waited for our child");
    else if (!WIFEXITED(status) || WEXITSTATUS(status) != code) fault("our child ended otherwise than it did");
}

/* For any child, as a program may that has them all to itself. */
static int wait_for_any(void)
{
    int reaped = 0, status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        while (GET(&forking)) usleep(100);
        if (!is_own(pid)) fault("a child that is none of ours was waited for");
        reaped++;
    }
    return reaped;
}

/* ---- the threads ---- */

static void count_post(mgr *m, void *arg)
{
    (void)m;
    ADD((int *)arg);
}

static void call_all(void)
{
    int count = GET(&grant_count);
    int64_t left = mgr_lease_left_ms(GET(&the_mgr));
    if (left < 0 || left > LEASE_MS) fault("the lease is longer than a lease");
    for (int i = 0; i < count; i++) {
        const mgr_grant *grant = GET(&grants[i]);
        left = mgr_grant_left_ms(grant);
        if (!mgr_grant_fence(grant)) fault("a grant without a fence");
        if (left > LEASE_MS) fault("a grant is longer than a lease");
        if (left > 0) ADD(&grants_open_seen);
    }
    mgr_result result = mgr_post(GET(&the_mgr), count_post, &posts_run);
    if (result == MGR_OK) ADD(&posts_sent);
    else if (result != MGR_LIMIT) fault("mgr_post failed");
}

typedef struct helper { int number, reaped; pthread_t thread; } helper;

static void use_descriptors(FILE *file, int lines)
{
    char text[16] = "";
    int ends[2];
    if (pipe(ends) != 0) { fault("no pipe"); return; }
    if (write(ends[1], "between us", 10) != 10 || read(ends[0], text, sizeof text) != 10 || memcmp(text, "between us", 10) != 0) fault("our pipe is not ours alone");
    close(ends[0]);
    close(ends[1]);
    if (fprintf(file, "line %d\n", lines) < 0) fault("our file is not ours alone");
}

static void check_file(FILE *file, int lines)
{
    char text[64], wanted[64];
    rewind(file);
    for (int i = 0; i < lines; i++) {
        snprintf(wanted, sizeof wanted, "line %d\n", i);
        if (!fgets(text, sizeof text, file) || strcmp(text, wanted) != 0) { fault("our file holds what we did not write"); return; }
    }
    if (fgets(text, sizeof text, file)) fault("our file holds more than we wrote");
}

static void *help(void *arg)
{
    helper *h = (helper *)arg;
    sigset_t mask, is;
    FILE *file = tmpfile();
    int turns = 0, printed = 0;
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + 1 + h->number);     /* a mask of its own */
    if (h->number == 2) sigaddset(&mask, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    ADD(&threads_at_work);
    while (file && (!GET(&finish) || turns < CHILDREN)) {
        call_all();
        if (turns < CHILDREN) {
            pid_t pid = start_child(h->number + 1);
            if (pid > 0 && !one_waits_for_all) wait_for(pid, h->number + 1);
        } else usleep(500);
        if (one_waits_for_all && h->number == 0) h->reaped += wait_for_any();
        if (turns < LINES) { use_descriptors(file, turns); printed++; }
        if (turns < LINES && printf("thread %d line %d\n", h->number, turns) < 0) fault("stdout is not ours alone");
        turns++;
    }
    if (!file) fault("no file");
    else { check_file(file, printed); fclose(file); }
    pthread_sigmask(SIG_SETMASK, NULL, &is);
    for (int i = 0; i < THREADS; i++) if (sigismember(&is, SIGRTMIN + 1 + i) != (i == h->number)) fault("a thread's mask has changed");
    return NULL;
}

/* ---- the instance ---- */

static int  acquired, lost, started, ended, entered;

static mgr_answer on_acquire(mgr *m, const char *partition, const mgr_grant *grant, void *user)
{
    const char *argv[] = { "sleep", "600", NULL };
    mgr_process p;
    (void)user;
    memset(&p, 0, sizeof p);
    p.argv = argv;
    p.backoff_min_ms = 10;
    p.backoff_max_ms = 20;
    int at = GET(&grant_count);
    if (at < GRANTS_MAX) { SET(&grants[at], grant); SET(&grant_count, at + 1); }
    acquired++;
    return mgr_daemonize(m, partition, NULL, &p) == MGR_OK ? MGR_DONE : MGR_UNFIT;
}

static void on_lost(mgr *m, const char *partition, mgr_result why, void *user)
{
    (void)m; (void)partition; (void)why; (void)user;
    lost++;
}

static void on_event(mgr *m, const mgr_event *e, void *user)
{
    (void)m; (void)user;
    started += e->kind == MGR_EVENT_STARTED;
    ended += e->kind == MGR_EVENT_EXITED;
    entered += e->kind == MGR_EVENT_ENTERED;
}

static char address[40];
static pid_t server;
static int   server_stop[2];

static void server_start(void)
{
    int ready[2];
    char port[16] = "";
    if (pipe(ready) != 0 || pipe(server_stop) != 0) abort();
    server = fork();
    if (server == 0) {
        close(server_stop[1]);
        close(ready[0]);
        _exit(dc_serve("127.0.0.1:0", server_stop[0], ready[1]));
    }
    close(server_stop[0]);
    close(ready[1]);
    if (read(ready[0], port, sizeof port - 1) <= 0) abort();
    close(ready[0]);
    snprintf(address, sizeof address, "127.0.0.1:%ld", strtol(port, NULL, 10));
}

static void server_end(void)
{
    close(server_stop[1]);
    while (waitpid(server, NULL, 0) < 0 && errno == EINTR) {}
}

/* Step until the condition holds, or for as long as patience lasts. */
#define STEP_UNTIL(m, condition)                                                                \
    do {                                                                                        \
        int64_t until__ = mgr__process_now_ms() + PATIENCE_MS;                                  \
        while (!(condition) && mgr__process_now_ms() < until__) CHECK_INT(mgr_step(m, 5), MGR_OK); \
        CHECK(condition);                                                                       \
    } while (0)

static const char *const partitions[] = { "0", "1", "2" };

static mgr *instance_open(const char *service)
{
    mgr_desc desc;
    mgr *m;
    memset(&desc, 0, sizeof desc);
    desc.service_name = service;
    desc.instance_id = "embedded";
    desc.consul_addr = address;
    desc.partitions = partitions;
    desc.partition_count = MGR__COUNT(partitions);
    desc.lease_ms = LEASE_MS;
    desc.session_ttl_ms = 10000;
    desc.settle_ms = MGR_NONE;
    desc.on_acquire = on_acquire;
    desc.on_lost = on_lost;
    desc.on_event = on_event;
    acquired = lost = started = ended = entered = 0;
    if (mgr_open(&m, &desc) != MGR_OK) { printf("mgr_open: %s\n", mgr_error_text(m)); CHECK(!"open"); }
    return m;
}

static void *leave_from_here(void *arg)
{
    mgr_leave((mgr *)arg);
    return NULL;
}

/* Work of every kind: killed and started again, drained and taken back, lost with its
 * keeper and begun in a new life. At least: on a host that stands still for long a
 * lease may be lost besides. */
static void work_for_a_while(mgr *m)
{
    STEP_UNTIL(m, started >= 3);
    CHECK_INT(mgr_kill(m, "0", SIGKILL), MGR_OK);
    STEP_UNTIL(m, started >= 4 && ended >= 1);
    CHECK_INT(mgr_drain(m, true), MGR_OK);
    STEP_UNTIL(m, ended >= 4);
    CHECK_INT(mgr_drain(m, false), MGR_OK);
    STEP_UNTIL(m, started >= 7);
    CHECK_INT(kill(m->keeper.page->keeper, SIGKILL), 0);
    STEP_UNTIL(m, entered >= 2 && lost >= 3 && started >= 10);
}

static void leave_and_close(mgr *m)
{
    pthread_t thread;
    mgr_result result = MGR_OK;
    CHECK_INT(pthread_create(&thread, NULL, leave_from_here, m), 0);
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (result == MGR_OK && mgr__process_now_ms() < until) result = mgr_step(m, 5);
    CHECK_INT(result, MGR_LEFT);
    pthread_join(thread, NULL);
}

/* ---- what the program is, before and after ---- */

typedef struct state {
    char   fds[4096], shared[8192];
    int    fd_count;
    struct sigaction actions[65];
    sigset_t mask;
} state;

static void see_descriptors(state *s)
{
    size_t len = 0;
    s->fds[0] = 0;
    s->fd_count = 0;
    for (int fd = 0; fd < 1024; fd++) {
        char path[64], to[256];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t got = readlink(path, to, sizeof to - 1);
        if (got < 0) continue;
        to[got] = 0;
        s->fd_count++;
        if (len < sizeof s->fds) len += (size_t)snprintf(s->fds + len, sizeof s->fds - len, "%d %s\n", fd, to);
    }
}

/* Shared mappings, by name: private ones are the allocator's and the threads' business. */
static void see_mappings(state *s)
{
    char line[1024];
    size_t len = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    s->shared[0] = 0;
    while (maps && fgets(line, sizeof line, maps)) {
        const char *rights = strchr(line, ' '), *name = strchr(line, '/');
        if (!rights || rights[4] != 's') continue;
        if (len < sizeof s->shared) len += (size_t)snprintf(s->shared + len, sizeof s->shared - len, "%s", name ? name : "(none)\n");
    }
    if (maps) fclose(maps);
}

static void see(state *s)
{
    memset(s, 0, sizeof *s);
    see_descriptors(s);
    see_mappings(s);
    for (int i = 1; i < 65; i++) sigaction(i, NULL, &s->actions[i]);
    pthread_sigmask(SIG_SETMASK, NULL, &s->mask);
}

static void compare(const state *before, const state *after)
{
    CHECK_STR(after->fds, before->fds);
    CHECK_STR(after->shared, before->shared);
    for (int i = 1; i < 65; i++) {
        CHECK(after->actions[i].sa_handler == before->actions[i].sa_handler && after->actions[i].sa_flags == before->actions[i].sa_flags);
        CHECK_INT(sigismember(&after->mask, i), sigismember(&before->mask, i));
    }
}

/* Every child but the server: alive, or, unless it is the guard under a sanitizer, dead. */
static int children_left(void)
{
    static mgr__process all[1024];
    mgr__process_list list = { all, 0, 1024, false };
    int left = 0;
    mgr__process_list_all(&list, getpid());
    for (size_t i = 0; i < list.count; i++) if (all[i].pid != server && all[i].state != 'Z') left++;
    return left;
}

static void nothing_is_left_of_it(void)
{
    int64_t until = mgr__process_now_ms() + PATIENCE_MS;
    while (children_left() && mgr__process_now_ms() < until) usleep(1000);
    CHECK_INT(children_left(), 0);
}

/* ---- stdout, by way of a file ---- */

static int  stdout_fd;
static char stdout_path[] = "/tmp/test_host.XXXXXX";

static void stdout_to_file(void)
{
    fflush(stdout);
    stdout_fd = fcntl(1, F_DUPFD_CLOEXEC, 3);
    memcpy(stdout_path + sizeof stdout_path - 7, "XXXXXX", 6);
    int fd = mkstemp(stdout_path);
    dup2(fd, 1);
    close(fd);
}

/* Each thread's lines are there, in order, and nothing else. */
static void stdout_back(void)
{
    char line[128];
    int next[THREADS] = {0}, number, at, others = 0;
    fflush(stdout);
    dup2(stdout_fd, 1);
    close(stdout_fd);
    FILE *file = fopen(stdout_path, "r");
    CHECK(file != NULL);
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "thread %d line %d\n", &number, &at) == 2 && number >= 0 && number < THREADS && at == next[number]) next[number]++;
        else if (others++ < 5) printf("on stdout: %s", line);
    }
    if (file) fclose(file);
    unlink(stdout_path);
    CHECK_INT(others, 0);
    for (int i = 0; i < THREADS; i++) CHECK(next[i] >= CHILDREN && next[i] <= LINES);
}

/* ---- the tests ---- */

static void reset(void)
{
    grant_count = grants_open_seen = own_count = forking = child_signal_count = alarm_count = 0;
    posts_sent = posts_run = faults = finish = threads_at_work = 0;
    first_fault = NULL;
}

/* The program's own handlers, and a timer that interrupts whoever waits. */
static void own_signals(bool on, struct sigaction was[2])
{
    struct sigaction action;
    struct itimerval every;
    memset(&every, 0, sizeof every);
    memset(&action, 0, sizeof action);
    if (on) {
        action.sa_sigaction = on_child;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGCHLD, &action, &was[0]);
        action.sa_handler = on_alarm;
        action.sa_flags = 0;
        sigaction(SIGALRM, &action, &was[1]);
        every.it_interval.tv_usec = every.it_value.tv_usec = 7000;
        setitimer(ITIMER_REAL, &every, NULL);
    } else {
        setitimer(ITIMER_REAL, &every, NULL);
        sigaction(SIGCHLD, &was[0], NULL);
        sigaction(SIGALRM, &was[1], NULL);
    }
}

static void check_child_signals(void)
{
    if (SEEN_BY_HOST) return;
    CHECK(GET(&child_signal_count) <= GET(&own_count));
    for (int i = 0; i < GET(&child_signal_count) && i < CHILDREN_MAX; i++) CHECK(is_own(GET(&child_signals[i])));
}

static void live_together(const char *service)
{
    helper helpers[THREADS];
    struct sigaction was[2];
    static state before, after;
    int reaped = 0;
    reset();
    stdout_to_file();
    own_signals(true, was);
    see(&before);
    mgr *m = instance_open(service);
    SET(&the_mgr, m);
    for (int i = 0; i < THREADS; i++) {
        helpers[i].number = i;
        helpers[i].reaped = 0;
        CHECK_INT(pthread_create(&helpers[i].thread, NULL, help, &helpers[i]), 0);
    }
    work_for_a_while(m);
    leave_and_close(m);     /* the others go on calling meanwhile */
    SET(&finish, 1);
    for (int i = 0; i < THREADS; i++) { pthread_join(helpers[i].thread, NULL); reaped += helpers[i].reaped; }
    mgr_close(m);
    SET(&the_mgr, NULL);
    while (one_waits_for_all && reaped < own_count) { int got = wait_for_any(); if (!got) usleep(1000); reaped += got; }
    nothing_is_left_of_it();
    see(&after);
    own_signals(false, was);
    stdout_back();
    compare(&before, &after);
    check_child_signals();
    if (first_fault) printf("%d faults, the first: %s\n", faults, first_fault);
    CHECK_INT(faults, 0);
    CHECK_INT(own_count, THREADS * CHILDREN);
    if (one_waits_for_all) CHECK_INT(reaped, own_count);
    CHECK(posts_run > 0 && posts_run <= posts_sent && posts_sent - posts_run <= MGR__POST_COUNT_MAX);
    CHECK(alarm_count > 10 && grants_open_seen > 0);
    CHECK(signal(SIGPIPE, SIG_DFL) == SIG_DFL);
}

TEST(four_threads_keep_what_is_theirs)
{
    one_waits_for_all = false;
    live_together("threads");
}

TEST(one_thread_may_wait_for_any_child)
{
    if (SEEN_BY_HOST) SKIP("under this sanitizer the guard is an ordinary child");
    one_waits_for_all = true;
    live_together("waits-for-all");
    one_waits_for_all = false;
}

/* Without children of its own the program gets no SIGCHLD at all. */
TEST(no_signal_comes_of_it)
{
    struct sigaction was[2];
    if (SEEN_BY_HOST) SKIP("under this sanitizer the guard is an ordinary child");
    reset();
    own_signals(true, was);
    mgr *m = instance_open("signals");
    work_for_a_while(m);
    leave_and_close(m);
    mgr_close(m);
    nothing_is_left_of_it();
    errno = 0;
    CHECK_INT(waitpid(-1, NULL, WNOHANG), 0);       /* there is the server, and it lives */
    own_signals(false, was);
    CHECK_INT(child_signal_count, 0);
}

int main(int argc, char **argv)
{
    unsetenv("CONSUL_HTTP_TOKEN");
    unsetenv("CONSUL_HTTP_TOKEN_FILE");
    server_start();
    RUN(four_threads_keep_what_is_theirs);
    RUN(one_thread_may_wait_for_any_child);
    RUN(no_signal_comes_of_it);
    server_end();
    return test__end();
}
