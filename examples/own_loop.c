/* manager.h inside somebody else's poll loop. This program has a loop of its own
 * (here it reads commands from stdin) and works on its partitions inside the
 * process: a counter for each stands for that work.
 *
 *   cc -o own_loop examples/own_loop.c -I.
 *   ./own_loop one      then type: show, drain, undrain, quit
 *
 * What matters:
 * - ask mgr_pollfds and mgr_timeout_ms anew before each poll;
 * - call mgr_dispatch after each poll, also when nothing was ready;
 * - before each piece of work, ask the grant whether we still may: work inside a
 *   process cannot be killed by anybody else (see the manual on in-process work). */
#define MANAGER_IMPLEMENTATION
#include "manager.h"

enum { PARTITION_COUNT = 8, POLL_MAX = 32, WORK_EVERY_MS = 100 };

static const char *const PARTITIONS[PARTITION_COUNT] = { "0", "1", "2", "3", "4", "5", "6", "7" };

typedef struct program {
    const mgr_grant *grants[PARTITION_COUNT];   /* NULL: not ours */
    unsigned long    counters[PARTITION_COUNT];
    bool             over;
} program;

/* A signal handler has no other way to find the instance; mgr_leave may be called in one. */
static mgr *the_instance;

static void on_interrupt(int number) { (void)number; mgr_leave(the_instance); }

static size_t index_of(const char *partition)
{
    size_t i = 0;
    while (i < PARTITION_COUNT && strcmp(PARTITIONS[i], partition) != 0) i++;
    return i;
}

/* No process was started: the work is in this program, and ends when on_release says so. */
static mgr_answer on_acquire(mgr *m, const char *partition, const mgr_grant *grant, void *user)
{
    program *p = (program *)user;
    size_t i = index_of(partition);
    (void)m;
    if (i == PARTITION_COUNT) return MGR_UNFIT;     /* the cluster's set is larger than what we can do */
    p->grants[i] = grant;
    printf("+ %s, fence %llu\n", partition, (unsigned long long)mgr_grant_fence(grant));
    return MGR_DONE;
}

/* Callbacks run inside mgr_dispatch, so no work is under way: it is gone at once.
 * Work in threads would return MGR_PENDING here, and call mgr_released (through
 * mgr_post) when the thread has stopped. */
static mgr_answer on_release(mgr *m, const char *partition, uint32_t within_ms, void *user)
{
    program *p = (program *)user;
    (void)m; (void)within_ms;
    if (index_of(partition) < PARTITION_COUNT) p->grants[index_of(partition)] = NULL;
    printf("- %s\n", partition);
    return MGR_DONE;
}

/* Too late to be polite: the right to the partition is gone already. */
static void on_lost(mgr *m, const char *partition, mgr_result why, void *user)
{
    program *p = (program *)user;
    (void)m;
    if (index_of(partition) < PARTITION_COUNT) p->grants[index_of(partition)] = NULL;
    printf("! %s: %s\n", partition, mgr_result_text(why));
}

static void on_log(mgr_log_level level, const char *text, void *user)
{
    (void)user;
    if (level <= MGR_LOG_WARN) fprintf(stderr, "own_loop: %s\n", text);
}

/* One short piece of work for each partition that is ours now. */
static void work(program *p)
{
    for (size_t i = 0; i < PARTITION_COUNT; i++)
        if (p->grants[i] && mgr_grant_left_ms(p->grants[i]) > 0) p->counters[i]++;
}

static void show(const program *p)
{
    for (size_t i = 0; i < PARTITION_COUNT; i++)
        if (p->grants[i]) printf("%s: %lu pieces of work\n", PARTITIONS[i], p->counters[i]);
}

static void on_command(program *p, mgr *m)
{
    char line[64];
    if (!fgets(line, sizeof line, stdin)) { p->over = true; mgr_leave(m); return; }
    line[strcspn(line, "\n")] = 0;
    if (strcmp(line, "show") == 0) show(p);
    else if (strcmp(line, "drain") == 0) mgr_drain(m, true);
    else if (strcmp(line, "undrain") == 0) mgr_drain(m, false);
    else if (strcmp(line, "quit") == 0) { p->over = true; mgr_leave(m); }
    else puts("show, drain, undrain or quit");
}

/* One turn of the loop that was there before manager.h came. */
static mgr_result turn(program *p, mgr *m)
{
    struct pollfd fds[1 + POLL_MAX];
    size_t count = mgr_pollfds(m, fds + 1, POLL_MAX);
    int timeout_ms = mgr_timeout_ms(m);
    if (count > POLL_MAX) count = POLL_MAX;         /* what does not fit waits for the timeout */
    if (timeout_ms < 0 || timeout_ms > WORK_EVERY_MS) timeout_ms = WORK_EVERY_MS;
    fds[0].fd = p->over ? -1 : STDIN_FILENO;        /* -1: poll passes over it */
    fds[0].events = POLLIN;
    fds[0].revents = 0;
    bool ready = poll(fds, (nfds_t)(1 + count), timeout_ms) > 0;
    if (ready && fds[0].revents) on_command(p, m);
    work(p);
    return ready ? mgr_dispatch(m, fds + 1, count) : mgr_dispatch(m, NULL, 0);
}

int main(int argc, char **argv)
{
    program p = { .over = false };
    mgr_desc desc = {
        .service_name = "own-loop", .instance_id = argc > 1 ? argv[1] : NULL,
        .partitions = PARTITIONS, .partition_count = PARTITION_COUNT,
        .on_acquire = on_acquire, .on_release = on_release, .on_lost = on_lost, .on_log = on_log, .user = &p
    };
    if (argc > 1 && argv[1][0] == '-')
        return puts("usage: own_loop [INSTANCE]    default: the host's name\n"
                    "Commands on stdin: show, drain, undrain, quit; Consul is at CONSUL_HTTP_ADDR, or 127.0.0.1:8500.") < 0;
    setvbuf(stdin, NULL, _IONBF, 0);                /* poll does not see what stdio has read ahead */
    mgr_result result = mgr_open(&the_instance, &desc);
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    while (result == MGR_OK) result = turn(&p, the_instance);
    bool fine = result == MGR_LEFT;
    if (!fine) fprintf(stderr, "own_loop: %s\n", the_instance ? mgr_error_text(the_instance) : mgr_result_text(result));
    mgr *m = the_instance;
    the_instance = NULL;
    mgr_close(m);
    return !fine;
}
