/* End to end: the examples do what their first lines say. */
#include "e2e.h"

static e2e_view view;

/* build/NAME beside build/manager. */
static const char *program(const char *name)
{
    static char path[PATH_MAX + 40];
    snprintf(path, sizeof path, "%.4000s", e2e_manager);
    char *slash = strrchr(path, '/');
    snprintf(slash ? slash + 1 : path, 40, "%s", name);
    return path;
}

static char *arg(const char *text) { return (char *)(uintptr_t)text; }

static size_t output(const char *path, char *to, size_t bytes) { to[0] = 0; return e2e_read_file(path, to, bytes); }

/* `manager status` exits 0: every partition is held by whom it is assigned to. */
static bool wait_converged(const e2e_agent *agent, const char *service, size_t partitions, int ms)
{
    for (int64_t until = e2e_now_ms() + ms; e2e_now_ms() < until; e2e_sleep(100))
        if (e2e_status(agent, service, &view) == 0 && view.part_count == partitions) return true;
    e2e_view_print(&view, -1);
    return false;
}

static bool wait_output(const char *path, const char *what, int ms)
{
    static char text[1 << 18];
    for (int64_t until = e2e_now_ms() + ms; e2e_now_ms() < until; e2e_sleep(50)) {
        output(path, text, sizeof text);
        if (strstr(text, what)) return true;
    }
    printf("no \"%s\" in:\n%.3000s\n", what, text);
    return false;
}

/* The mission's example, whole: it starts its own agent from a configuration file,
 * joins it, takes all partitions, registers its checks, and leaves nothing. */
E2E(kafka_with_an_agent_of_its_own)
{
    e2e_agent agent;
    char config[300], json[400], bin[200], link[300], path[400], log[300];
    e2e_agent_make(&agent, "kafka-agent", "127.0.0.1");
    e2e_agent_count--;      /* the example starts it, and ends it */
    snprintf(bin, sizeof bin, "%s/bin", e2e_dir);
    mkdir(bin, 0755);
    snprintf(link, sizeof link, "%s/consul", bin);
    CHECK_INT(symlink(e2e_consul, link), 0);
    snprintf(path, sizeof path, "%s:/usr/bin:/bin", bin);
    snprintf(config, sizeof config, "%s/agent.json", e2e_dir);
    snprintf(json, sizeof json, "{\"ports\":{\"http\":%d,\"server\":%d,\"serf_lan\":%d,\"serf_wan\":-1,\"dns\":-1},\"node_name\":\"kafka\",\"performance\":{\"raft_multiplier\":1}}",
             agent.http_port, agent.server_port, agent.serf_port);
    e2e_write_file(config, json);
    snprintf(log, sizeof log, "%s/run-kafka.log", e2e_dir);
    setenv("PATH", path, 1);
    setenv("CONSUL_CONFIG_FILE", config, 1);
    setenv("CONSUL_DATA_DIR", agent.dir, 1);
    setenv("CONSUL_HTTP_ADDR", agent.address, 1);
    setenv("KAFKA_PARTITION_COUNT", "4", 1);
    setenv("KAFKA_RUN_DIR", e2e_dir, 1);
    char *argv[] = { arg(program("kafka")), NULL };
    pid_t pid = e2e_spawn(argv, log, log);
    CHECK(wait_converged(&agent, "kafka-orders", 4, 60000));
    /* The lease's own check, a script check for each partition, and the instance's TTL check. */
    for (int64_t until = e2e_now_ms() + 10000; e2e_now_ms() < until; e2e_sleep(100))
        if (e2e_http(&agent, "GET", "/v1/agent/checks", "") == 200 && e2e_times(e2e_out, "\"CheckID\"") == 6) break;
    CHECK_INT(e2e_times(e2e_out, "\"CheckID\""), 6);
    CHECK_INT(e2e_times(e2e_out, "\"passing\""), 6);
    kill(pid, SIGTERM);
    CHECK_INT(e2e_wait_end(pid, 20000), 0);
    unsetenv("CONSUL_HTTP_ADDR");
    unsetenv("CONSUL_CONFIG_FILE");
}

E2E(own_loop_and_hello)
{
    e2e_agent *agent = e2e_shared_agent();
    char log[300], other[300];
    setenv("CONSUL_HTTP_ADDR", agent->address, 1);
    snprintf(log, sizeof log, "%s/run-hello.log", e2e_dir);
    char *hello[] = { arg(program("hello")), arg("one"), NULL };
    pid_t pid = e2e_spawn(hello, log, log);
    CHECK(wait_converged(agent, "hello", 4, 20000));
    kill(pid, SIGTERM);
    CHECK_INT(e2e_wait_end(pid, 15000), 0);
    snprintf(other, sizeof other, "%s/run-own.log", e2e_dir);
    char *own[] = { arg("/bin/sh"), arg("-c"), arg("(sleep 6; echo show; sleep 1; echo quit) | exec \"$0\" one"), arg(program("own_loop")), NULL };
    pid = e2e_spawn(own, other, other);
    CHECK(wait_output(other, "+ 7, fence", 15000));
    CHECK_INT(e2e_wait_end(pid, 30000), 0);
    CHECK(wait_output(other, "- 7", 100));
    unsetenv("CONSUL_HTTP_ADDR");
}

E2E(dev_is_a_cluster_in_one_terminal)
{
    char log[300];
    snprintf(log, sizeof log, "%s/run-dev.log", e2e_dir);
    char *argv[] = { arg(e2e_manager), arg("dev"), arg("-p"), arg("0..7"), arg("-n"), arg("3"), arg("--"), arg("sh"), arg("-c"),
                     arg("echo works on $MANAGER_PARTITION; exec sleep 1000"), NULL };
    pid_t pid = e2e_spawn(argv, log, log);
    CHECK(wait_output(log, "works on 7", 20000));
    CHECK(wait_output(log, "works on 0", 20000));
    kill(pid, SIGINT);
    CHECK_INT(e2e_wait_end(pid, 20000), 0);
}

E2E(the_demo_holds)
{
    char log[300];
    snprintf(log, sizeof log, "%s/run-demo.log", e2e_dir);
    char *argv[] = { arg(program("demo")), NULL };
    CHECK_INT(e2e_wait_end(e2e_spawn(argv, log, log), 90000), 0);
    CHECK(wait_output(log, "none ever had two at once", 100));
    setenv("CONSUL", "", 1);        /* and with the embedded agent, where no Consul is to be had */
    char *again[] = { arg("/usr/bin/env"), arg("-u"), arg("CONSUL"), arg("PATH=/usr/bin:/bin"), arg(program("demo")), NULL };
    CHECK_INT(e2e_wait_end(e2e_spawn(again, log, log), 90000), 0);
    CHECK(wait_output(log, "agent: built in", 100));
}

static int run(int argc, char **argv)
{
    RUN(kafka_with_an_agent_of_its_own);
    RUN(own_loop_and_hello);
    RUN(dev_is_a_cluster_in_one_terminal);
    RUN(the_demo_holds);
    return test__end();
}

int main(int argc, char **argv) { return e2e_main(argc, argv, run); }
