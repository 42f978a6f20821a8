/* A Kafka consumer group without Kafka's own rebalancing: one worker process for
 * each partition of a topic, shared out among the machines that run this program,
 * with a Consul agent started along with it.
 *
 *   cc -o kafka examples/kafka.c -I.
 *   KAFKA_PARTITION_COUNT=16 ./kafka
 *
 * From the environment, all but the first optional; commands are split at spaces:
 *   KAFKA_PARTITION_COUNT   how many partitions the topic has
 *   KAFKA_PREPARE           command, run once when a partition comes to us
 *   KAFKA_WORKER            command, kept running while it is ours; must live through a SIGUSR1
 *   KAFKA_ALERT             command, called as ALERT passing|warning|critical CHECK PARTITION
 *   KAFKA_RUN_DIR           where the workers' pid files stand
 *   KAFKA_INSTANCE          id of this instance; default: the host's name
 *   CONSUL_DATA_DIR, CONSUL_CONFIG_FILE, CONSUL_CA_FILE   for the agent */
#define MANAGER_IMPLEMENTATION
#include "manager.h"

enum {
    CHECK_EVERY_MS = 60 * 1000,         /* SIGUSR1 to each worker */
    REPORT_EVERY_MS = 60 * 1000,        /* that this program itself still turns */
    REPORT_TTL_MS = 5 * 60 * 1000       /* critical when five of those did not come */
};

#define REPORT_CHECK "kafka:alive"

/* `exec` keeps the pid that was written down; the file is for the check below. */
#define WRITE_PID "echo $$ >\"${KAFKA_RUN_DIR:-/tmp}/kafka-$MANAGER_INSTANCE-$MANAGER_PARTITION.pid\"; "
#define READ_PID  "$(cat \"${KAFKA_RUN_DIR:-/tmp}/kafka-$MANAGER_INSTANCE-$MANAGER_PARTITION.pid\")"

#define PREPARE  "${KAFKA_PREPARE:-:}"
#define ALERT    "${KAFKA_ALERT:-echo}"
#define WORKER   WRITE_PID "exec $KAFKA_WORKER"
#define STAND_IN WRITE_PID "trap 'echo partition $MANAGER_PARTITION lives' USR1; while :; do sleep 1 & wait; done"

static const char *from_env(const char *variable, const char *otherwise)
{
    const char *value = getenv(variable);
    return value && *value ? value : otherwise;
}

typedef struct name { char at[MGR_NAME_BYTES_MAX + 1]; } name;

/* Process names are unique in an instance: the partition's with what it does. */
static name name_of(const char *what, const char *partition)
{
    name n;
    snprintf(n.at, sizeof n.at, "%s-%s", what, partition);
    return n;
}

static void complain(mgr *m, const char *what, const char *partition)
{
    fprintf(stderr, "kafka: %s of partition %s: %s\n", what, partition, mgr_error_text(m));
}

/* ---- checks ---- */

/* A handler runs the alert command, once, as one more process of the partition:
 * it cannot outlive it. If the last alert still runs, this one is not sent. */
static void alert(mgr *m, const char *state, const char *check_id, const char *partition)
{
    name n = name_of("alert", check_id);
    const char *argv[] = { "sh", "-c", ALERT " \"$@\"", "alert", state, check_id, partition, NULL };
    mgr_process process = { .argv = argv };
    if (mgr_exec(m, partition, n.at, &process) != MGR_OK) complain(m, "alert", partition);
}

static void on_pass(mgr *m, const char *check_id, const char *partition, void *user)
{
    (void)user;
    alert(m, "passing", check_id, partition);
}

static void on_warning(mgr *m, const char *check_id, const char *partition, void *user)
{
    (void)user;
    alert(m, "warning", check_id, partition);
}

static void on_failure(mgr *m, const char *check_id, const char *partition, void *user)
{
    (void)user;
    alert(m, "critical", check_id, partition);
}

/* Does the worker still take signals? kill(1) fails when there is no such process,
 * with 1, which would be a mere warning. Only reported: daemonize restarts a worker
 * that is dead anyway. */
static mgr_result check_worker(mgr *m, const char *partition)
{
    const char *argv[] = { "sh", "-c", "kill -USR1 \"" READ_PID "\" || exit 2", NULL };
    mgr_check check = {
        .argv = argv, .interval_ms = CHECK_EVERY_MS,
        .on_pass = on_pass, .on_warning = on_warning, .on_failure = on_failure
    };
    return mgr_check_script(m, partition, &check);
}

/* A check of the whole instance, which main keeps passing. */
static mgr_result check_ourselves(mgr *m)
{
    mgr_check check = { .id = REPORT_CHECK, .name = "consumer program", .ttl_ms = REPORT_TTL_MS };
    return mgr_check_ttl(m, NULL, &check);
}

/* ---- partitions ---- */

/* exec: once, to prepare. daemonize: the worker, restarted when it dies.
 * Both find MANAGER_PARTITION and MANAGER_FENCE in their environment. */
static mgr_answer on_acquire(mgr *m, const char *partition, const mgr_grant *grant, void *user)
{
    name prepare_name = name_of("prepare", partition), worker_name = name_of("worker", partition);
    const char *prepare_argv[] = { "sh", "-c", PREPARE, NULL };
    const char *worker_argv[] = { "sh", "-c", from_env("KAFKA_WORKER", NULL) ? WORKER : STAND_IN, NULL };
    mgr_process prepare = { .argv = prepare_argv }, worker = { .argv = worker_argv };
    (void)grant; (void)user;
    if (mgr_exec(m, partition, prepare_name.at, &prepare) == MGR_OK &&
        mgr_daemonize(m, partition, worker_name.at, &worker) == MGR_OK &&
        check_worker(m, partition) == MGR_OK) return MGR_DONE;
    complain(m, "start", partition);
    return MGR_UNFIT;                   /* another instance takes it */
}

/* SIGTERM to the worker, whose pid the library finds by its name. The lock is
 * not released before the process is gone, and it is killed after within_ms. */
static mgr_answer on_release(mgr *m, const char *partition, uint32_t within_ms, void *user)
{
    name worker_name = name_of("worker", partition);
    (void)user; (void)within_ms;
    mgr_result result = mgr_kill(m, worker_name.at, SIGTERM);
    if (result != MGR_OK && result != MGR_NOT_FOUND) complain(m, "stop", partition);
    return MGR_DONE;
}

static void on_event(mgr *m, const mgr_event *event, void *user)
{
    (void)m; (void)user;
    printf("%s: %s\n", mgr_event_word(event->kind), event->text);
    fflush(stdout);
}

/* ---- the agent ---- */

/* A server that is a cluster of one; a real one has bootstrap_expect = 3 and
 * joins the other two. */
static mgr_result start_agent(mgr *m)
{
    const char *tags[] = { "kafka", "consumer" };
    mgr_agent agent = {
        .server = true, .bootstrap_expect = 1, .bind_addr = "127.0.0.1", .log_level = "info",
        .data_dir = from_env("CONSUL_DATA_DIR", "/tmp/kafka-consul"),
        .config_file = from_env("CONSUL_CONFIG_FILE", NULL),
        .ca_file = from_env("CONSUL_CA_FILE", NULL),
        .verify_outgoing = from_env("CONSUL_CA_FILE", NULL) != NULL,    /* needs a CA to verify with */
        .tags = tags, .tag_count = 2
    };
    mgr_result result = mgr_agent_start(m, &agent);
    return result == MGR_OK ? mgr_agent_join(m, "127.0.0.1") : result;
}

/* ---- the program ---- */

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Step until we have left, and report in between that we do. */
static mgr_result consume(mgr *m)
{
    mgr_result result = MGR_OK;
    long report_at = now_ms();
    while (result == MGR_OK) {
        result = mgr_step(m, 1000);
        if (result != MGR_OK || now_ms() < report_at) continue;
        mgr_check_pass(m, REPORT_CHECK, "consuming");
        report_at = now_ms() + REPORT_EVERY_MS;
    }
    return result == MGR_LEFT ? MGR_OK : result;
}

/* "0", "1", ... in one block, to be freed; NULL when out of memory. */
static const char **partition_names(size_t count)
{
    enum { NAME_BYTES = 12 };
    const char **names = (const char **)malloc(count * (sizeof *names + NAME_BYTES));
    char *text = names ? (char *)(names + count) : NULL;
    for (size_t i = 0; names && i < count; i++, text += NAME_BYTES) {
        snprintf(text, NAME_BYTES, "%u", (unsigned)i);
        names[i] = text;
    }
    return names;
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        bool said = puts("usage: KAFKA_PARTITION_COUNT=16 kafka    takes no arguments\n"
                         "Its settings are KAFKA_... and CONSUL_... variables: see the head of examples/kafka.c.") >= 0;
        return said && argv[1][0] == '-' ? 0 : 64;
    }
    const char *tags[] = { "kafka", "topic-orders" };
    unsigned long count = strtoul(from_env("KAFKA_PARTITION_COUNT", "0"), NULL, 10);
    if (count < 1 || count > MGR_PARTITION_COUNT_MAX) {
        fprintf(stderr, "kafka: set KAFKA_PARTITION_COUNT to the topic's number of partitions, 1 to %d\n", MGR_PARTITION_COUNT_MAX);
        return 64;
    }
    const char **names = partition_names(count);
    mgr_desc desc = {
        .service_id = "kafka-orders", .service_name = "kafka-consumer",
        .instance_id = from_env("KAFKA_INSTANCE", NULL), .tags = tags, .tag_count = 2,
        .partitions = names, .partition_count = names ? count : 0, .handle_signals = true,
        .on_acquire = on_acquire, .on_release = on_release, .on_event = on_event
    };
    mgr *m = NULL;
    mgr_result result = names ? mgr_open(&m, &desc) : MGR_NO_MEMORY;
    if (result == MGR_OK) result = start_agent(m);
    if (result == MGR_OK) result = check_ourselves(m);
    if (result == MGR_OK) result = consume(m);
    if (result != MGR_OK) fprintf(stderr, "kafka: %s\n", m ? mgr_error_text(m) : mgr_result_text(result));
    mgr_close(m);
    free(names);
    return result != MGR_OK;
}
