/* The smallest member of a cluster: a `sleep` for each of four partitions.
 *   cc -o hello examples/hello.c -I. && ./hello one & ./hello two
 * Ctrl-C hands the partitions over. See them with: manager status -s hello */
#define MANAGER_IMPLEMENTATION
#include "manager.h"

static mgr_answer on_acquire(mgr *m, const char *partition, const mgr_grant *grant, void *user)
{
    const char *argv[] = { "sleep", "1000000", NULL };
    mgr_process process = { .argv = argv };
    (void)grant; (void)user;
    return mgr_daemonize(m, partition, NULL, &process) == MGR_OK ? MGR_DONE : MGR_UNFIT;
}

static void on_event(mgr *m, const mgr_event *event, void *user) { (void)m; (void)user; puts(event->text); }

int main(int argc, char **argv)
{
    if (argc > 1 && argv[1][0] == '-')
        return puts("usage: hello [INSTANCE]    default: the host's name\n"
                    "Shares out north, east, south and west; Consul is at CONSUL_HTTP_ADDR, or 127.0.0.1:8500.") < 0;
    const char *partitions[] = { "north", "east", "south", "west" };
    mgr_desc desc = { .service_name = "hello", .instance_id = argc > 1 ? argv[1] : NULL, .partitions = partitions, .partition_count = 4,
                      .handle_signals = true, .on_acquire = on_acquire, .on_event = on_event };
    mgr *m = NULL;
    mgr_result result = mgr_open(&m, &desc);
    if (result == MGR_OK) result = mgr_run(m);
    if (result != MGR_OK) fprintf(stderr, "hello: %s\n", m ? mgr_error_text(m) : mgr_result_text(result));
    mgr_close(m);
    return result != MGR_OK;
}
