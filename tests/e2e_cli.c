/* End to end: the command line, its words and its exit codes. */
#include "e2e.h"

static e2e_view view;

/* One line on stderr, of that exit code, which has `word` in it. */
static void refused(int code, int wanted, const char *word, const char *what)
{
    if (code != wanted || e2e_lines(e2e_err) != 1 || (word && !strstr(e2e_err, word)))
        printf("%s: exit %d (wanted %d), %zu lines (wanted one with \"%s\"): %.300s\n", what, code, wanted, e2e_lines(e2e_err), word ? word : "", e2e_err);
    CHECK_INT(code, wanted);
    CHECK_INT(e2e_lines(e2e_err), 1);
    CHECK(!word || strstr(e2e_err, word));
}

E2E(misuse_is_one_line_and_64)
{
    refused(e2e_cli(NULL), 64, NULL, "no command");
    refused(e2e_cli("dance", NULL), 64, "dance", "unknown command");
    refused(e2e_cli("run", "-p", "a", "--", "true", NULL), 64, "-s", "run without a service");
    refused(e2e_cli("run", "-s", "x", "-p", "a", NULL), 64, NULL, "run without a command");
    refused(e2e_cli("run", "-s", "x", "-p", "a", "--frobnicate", "--", "true", NULL), 64, "--frobnicate", "unknown option");
    refused(e2e_cli("run", "-s", NULL), 64, "-s", "option without its value");
    refused(e2e_cli("run", "-s", "x", "--lease", "3", "--", "true", NULL), 64, "3", "duration without a unit");
    refused(e2e_cli("run", "-s", "x", "--lease", "quick", "--", "true", NULL), 64, "quick", "not a duration");
    refused(e2e_cli("run", "-s", "x", "-p", "5..2", "--", "true", NULL), 64, "5..2", "range that runs backwards");
    refused(e2e_cli("run", "-s", "x", "-p", "0...3", "--", "true", NULL), 64, "0...3", "three dots");
    refused(e2e_cli("run", "-s", "x", "-p", "a..c", "--", "true", NULL), 64, "a..c", "range of letters");
    refused(e2e_cli("run", "-s", "x", "--directory", "/nonexistent", "--", "true", NULL), 64, "/nonexistent", "directory that is not there");
    refused(e2e_cli("help", "dance", NULL), 64, "dance", "help for an unknown command");
    refused(e2e_cli("dev", "--", "true", NULL), 64, "-p", "dev without partitions");
    refused(e2e_cli("run", "-s", "x", "-p", "@/nonexistent/list", "--", "true", NULL), 64, "/nonexistent/list", "list that cannot be read");
    refused(e2e_cli("run", "-s", "x", "--weight", "many", "--", "true", NULL), 64, "many", "weight that is no number");
    refused(e2e_cli("run", "-s", "x", "--placement", "fifo", "--", "true", NULL), 64, "fifo", "policy that there is not");
    refused(e2e_cli("status", NULL), 64, "-s", "status without a service");
    refused(e2e_cli("status", "-s", "x", "extra", NULL), 64, "extra", "status with an argument too many");
    refused(e2e_cli("why", "-s", "x", NULL), 64, NULL, "why without a partition");
    refused(e2e_cli("evict", "-s", "x", NULL), 64, NULL, "evict without an instance");
    refused(e2e_cli("partitions", "-s", "x", NULL), 64, NULL, "partitions without a list");
    refused(e2e_cli("wait", "-s", "x", "--timeout", "soon", NULL), 64, "soon", "wait with a bad timeout");
    refused(e2e_cli("pause", NULL), 64, "-s", "pause without a service");
    refused(e2e_cli("resume", "-s", "x", "extra", NULL), 64, "extra", "resume with an argument too many");
    refused(e2e_cli("run", "-s", "x", "--breaker", "0", "--", "true", NULL), 64, "0", "breaker of nothing");
    refused(e2e_cli("run", "-s", "x", "--breaker", "101%", "--", "true", NULL), 64, "101", "breaker of more than all");
    refused(e2e_cli("run", "-s", "x", "--moves-max", "0", "--", "true", NULL), 64, "0", "no moves at all");
    CHECK_INT(e2e_cli("--help", NULL), 0);
    CHECK(strstr(e2e_out, "manager run") != NULL);
    CHECK_INT(e2e_cli("help", NULL), 0);
    CHECK(strstr(e2e_out, "manager run") != NULL);
    CHECK_INT(e2e_cli("help", "dev", NULL), 0);
    CHECK(strstr(e2e_out, "required without --consul") && strstr(e2e_out, "A LIST is") && strstr(e2e_out, "76 evicted"));
    CHECK_INT(e2e_cli("drain", "--help", NULL), 0);
    CHECK(!strstr(e2e_out, "A LIST is") && !strstr(e2e_out, "DURATION") && !strstr(e2e_out, "76 evicted"));
    CHECK_INT(e2e_cli("--version", NULL), 0);
    CHECK(strstr(e2e_out, MANAGER_VERSION) != NULL);
}

/* Whether found by the command line or by the library: refused, in one line, by name. */
static void name_refused(const char *word, const char *what, int code)
{
    if ((code != 64 && code != 78) || e2e_lines(e2e_err) != 1 || !strstr(e2e_err, word))
        printf("%s: exit %d, wanted \"%s\" in one line: %.300s\n", what, code, word, e2e_err);
    CHECK(code == 64 || code == 78);
    CHECK_INT(e2e_lines(e2e_err), 1);
    CHECK(strstr(e2e_err, word) != NULL);
}

E2E(bad_names_are_refused_by_name)
{
    const char *at = e2e_shared_agent()->address;
    name_refused("twice", "duplicate partition", e2e_cli("run", "--consul", at, "-s", "x", "-i", "i", "-p", "a,twice,b,twice", "--", "true", NULL));
    name_refused("empty", "empty partition", e2e_cli("run", "--consul", at, "-s", "x", "-i", "i", "-p", "a,,b", "--", "true", NULL));
    name_refused("empty", "empty service", e2e_cli("run", "--consul", at, "-s", "", "-i", "i", "-p", "a", "--", "true", NULL));
    name_refused("empty", "empty instance", e2e_cli("run", "--consul", at, "-s", "x", "-i", "", "-p", "a", "--", "true", NULL));
    name_refused("control", "control character in a partition", e2e_cli("run", "--consul", at, "-s", "x", "-i", "i", "-p", "a,b\001c", "--", "true", NULL));
    name_refused("control", "control character in a service", e2e_cli("run", "--consul", at, "-s", "x\ny", "-i", "i", "-p", "a", "--", "true", NULL));
    name_refused("UTF-8", "instance that is not UTF-8", e2e_cli("run", "--consul", at, "-s", "x", "-i", "\xff", "-p", "a", "--", "true", NULL));
    char longest[300];
    memset(longest, 'x', 256);
    longest[256] = 0;
    name_refused("MGR_NAME_BYTES_MAX", "too long a partition", e2e_cli("run", "--consul", at, "-s", "x", "-i", "i", "-p", longest, "--", "true", NULL));
}

/* At once, before Consul is asked for anything. */
E2E(a_run_dir_that_will_not_do_is_refused)
{
    refused(e2e_cli("run", "--consul", "127.0.0.1:1", "-s", "x", "-i", "i", "-p", "a", "--run-dir", "/nowhere/at/all", "--", "true", NULL), 78, "--run-dir \"/nowhere/at/all\"", "no such folder");
}

/* The lease, the kill margin and the delay do not fit: refused, with the sum. */
E2E(a_delay_below_the_lease_is_refused)
{
    int code = e2e_cli("run", "--consul", e2e_shared_agent()->address, "-s", "x", "-i", "i", "-p", "a", "--lease", "5s", "--delay", "4s", "--", "true", NULL);
    CHECK(code == 64 || code == 78);
    CHECK_INT(e2e_lines(e2e_err), 1);
    CHECK(strstr(e2e_err, "--delay 4000ms") && strstr(e2e_err, "--lease 5000ms") && !strstr(e2e_err, "lease_ms"));
}

E2E(no_consul_yet)
{
    static e2e_agent late;
    e2e_agent_make(&late, "late", "127.0.0.1");
    e2e_instance gives_up = e2e_run(&late, "late", "b", "-p", "0..1", "--start-timeout", "2s", NULL);
    e2e_instance a = e2e_run(&late, "late", "a", "-p", "0..1", NULL);
    int64_t from = e2e_now_ms();
    CHECK_INT(e2e_wait_end(gives_up.pid, 10000), 75);
    CHECK(e2e_now_ms() - from >= 1500);
    CHECK(strstr(e2e_said(&gives_up), late.address) != NULL);
    CHECK(strstr(e2e_said(&gives_up), "no error") == NULL);
    /* One line when the state changes, not one for each attempt. */
    CHECK(!e2e_ended(a.pid));
    CHECK_INT(e2e_times(e2e_said(&a), late.address), 1);
    CHECK(e2e_lines(e2e_said(&a)) <= 4);
    CHECK_INT(e2e_cli("status", "--consul", late.address, "-s", "late", NULL), 75);
    CHECK_INT(e2e_lines(e2e_err), 1);
    e2e_agent_start(&late);
    CHECK(e2e_agent_ready(&late, 30000));
    from = e2e_now_ms();
    CHECK(e2e_wait_settled(&late, "late", 1, 2, &view, 20000));
    printf("measured Consul appears: work runs %lld ms later\n", (long long)(e2e_now_ms() - from));
    CHECK_INT(e2e_stop(&a), 0);
    e2e_agent_kill(&late);
}

E2E(two_instances_with_one_id)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_instance first = e2e_run(agent, "twin", "same id", "-p", "0..1", NULL);
    CHECK(e2e_wait_settled(agent, "twin", 1, 2, &view, 20000));
    e2e_instance second = e2e_run(agent, "twin", "same id", "-p", "0..1", NULL);
    CHECK_INT(e2e_wait_end(second.pid, 15000), 78);
    CHECK(strstr(e2e_said(&second), "same id") != NULL);
    CHECK(e2e_lines(e2e_said(&second)) <= 4);
    e2e_status(agent, "twin", &view);
    CHECK(view.converged && view.alive_count == 1);
    CHECK_INT(e2e_workers("twin", NULL), 2);
    CHECK(e2e_life_count == 2);   /* nothing was restarted */
    CHECK_INT(e2e_stop(&first), 0);
}

E2E(two_services_stand_alone)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_run(agent, "one", "a", "-p", "0..1", NULL);
    e2e_run(agent, "two", "b", "-p", "x,y,z", NULL);
    CHECK_INT(e2e_cli("wait", "--consul", agent->address, "-s", "one", "--timeout", "20s", NULL), 0);
    CHECK_INT(e2e_cli("wait", "--consul", agent->address, "-s", "two", "--timeout", "20s", NULL), 0);
    refused(e2e_cli("wait", "--consul", agent->address, "-s", "two", "--timeout", "300ms", "--live", "9", NULL), 3, "of 9 instances live", "too few");
    CHECK_INT(e2e_status(agent, "one", &view), 0);
    CHECK_STR(view.service, "one");
    CHECK(view.member_count == 1 && view.part_count == 2);
    CHECK(strstr(e2e_out, "\"b\"") == NULL && strstr(e2e_out, "\"x\"") == NULL);
    CHECK_INT(e2e_cli("drain", "--consul", agent->address, "-s", "one", "a", NULL), 0);
    CHECK(strstr(e2e_out, "nothing can take over") != NULL);
    CHECK_INT(e2e_status(agent, "two", &view), 0);
    CHECK_STR(view.service, "two");
    CHECK(view.member_count == 1 && view.part_count == 3);
    /* What design.md fixes of its form. */
    CHECK_STR(view.members[0].id, "b");
    CHECK(view.members[0].alive && !view.members[0].draining);
    CHECK_INT(view.members[0].weight, 1);
    CHECK_INT(view.members[0].owned, 3);
    CHECK(view.members[0].joined > 0);
    static const char *const keys[] = { "\"service\"", "\"index\"", "\"converged\"", "\"instances\"", "\"partitions\"", "\"refuses\"", "\"since\"", "\"fence\"" };
    for (size_t i = 0; i < MGR__COUNT(keys); i++) CHECK(strstr(e2e_out, keys[i]) != NULL);
    for (size_t i = 0; i < view.part_count; i++) {
        int year, month, day, hour, minute;
        char rest[16];
        CHECK_STR(view.parts[i].state, "assumed");
        CHECK(view.parts[i].fence > 0);
        CHECK(sscanf(view.parts[i].since, "%4d-%2d-%2dT%2d:%2d:%15s", &year, &month, &day, &hour, &minute, rest) == 6 && strchr(rest, 'Z'));
        e2e_lives_read();
        for (size_t k = 0; k < e2e_life_count; k++)   /* the worker was told the fence that status shows */
            if (e2e_lives[k].pid == e2e_worker_pid("two", view.parts[i].name)) CHECK_INT(e2e_lives[k].fence, view.parts[i].fence);
    }
    CHECK_INT(e2e_cli("status", "--consul", agent->address, "-s", "two", NULL), 0);
    CHECK(strstr(e2e_out, "x") && strstr(e2e_out, "assumed") && strstr(e2e_out, "b"));
    CHECK_INT(e2e_cli("status", "--consul", agent->address, "-s", "none such", NULL), 1);
    CHECK_INT(e2e_lines(e2e_err), 1);
    CHECK(strstr(e2e_err, "none such") != NULL);
}

E2E(wait_drain_undrain_evict)
{
    e2e_agent *agent = e2e_shared_agent();
    const char *at = agent->address;
    CHECK(e2e_cli("wait", "--consul", at, "-s", "ops", "--timeout", "300ms", NULL) == 3);
    e2e_instance a = e2e_run(agent, "ops", "a", "-p", "0..7", NULL);
    e2e_run(agent, "ops", "b", NULL);
    CHECK(e2e_wait_settled(agent, "ops", 2, 8, &view, 20000));
    CHECK_INT(e2e_cli("wait", "--consul", at, "-s", "ops", NULL), 0);

    CHECK_INT(e2e_cli("drain", "--consul", at, "-s", "ops", "a", NULL), 0);
    int64_t until = e2e_now_ms() + 10000;
    do e2e_status(agent, "ops", &view); while (strcmp(e2e_spread(&view), "8 0") && e2e_now_ms() < until);
    CHECK_STR(e2e_spread(&view), "8 0");
    const e2e_member *member = e2e_member_of(&view, "a");
    CHECK(member && member->draining && member->alive);
    refused(e2e_cli("plan", "--consul", at, "-s", "ops", "--weight", "a=3", NULL), 64, "--weight a=3: the instance is draining", "weight of one that takes nothing");
    CHECK_INT(e2e_cli("plan", "--consul", at, "-s", "ops", "--weight", "b=3", NULL), 0);
    CHECK_INT(e2e_cli("undrain", "--consul", at, "-s", "ops", "a", NULL), 0);
    CHECK(e2e_wait_settled(agent, "ops", 2, 8, &view, 15000));
    CHECK_STR(e2e_spread(&view), "4 4");
    member = e2e_member_of(&view, "a");
    CHECK(member && !member->draining);

    CHECK(e2e_cli("evict", "--consul", at, "-s", "ops", "nobody", "--yes", NULL) == 1);
    CHECK(strstr(e2e_err, "nobody") != NULL);
    CHECK_INT(e2e_cli("evict", "--consul", at, "-s", "ops", "a", "--yes", NULL), 0);
    CHECK_INT(e2e_wait_end(a.pid, 15000), 76);
    CHECK(e2e_wait_settled(agent, "ops", 1, 8, &view, 15000));
    CHECK_INT(e2e_registered(agent, "ops"), 1);
}

/* The wish belongs to the id. Everybody is told, or nobody would know why there is no work. */
E2E(a_drain_outlives_its_instance)
{
    e2e_agent *agent = e2e_shared_agent();
    const char *at = agent->address;
    e2e_run(agent, "away", "a", "-p", "0..3", NULL);
    e2e_instance b = e2e_run(agent, "away", "b", NULL);
    CHECK(e2e_wait_settled(agent, "away", 2, 4, &view, 20000));
    CHECK_INT(e2e_cli("drain", "--consul", at, "-s", "away", "b", NULL), 0);
    CHECK_INT(e2e_stop(&b), 0);
    CHECK_INT(e2e_cli("status", "--consul", at, "-s", "away", NULL), 0);
    CHECK(strstr(e2e_out, "b is not there, and drains when it comes") != NULL);
    CHECK_INT(e2e_cli("status", "--consul", at, "-s", "away", "--json", NULL), 0);
    CHECK(strstr(e2e_out, "\"drained\":[\"b\"]") != NULL);
    refused(e2e_cli("plan", "--consul", at, "-s", "away", "--add", "b:2", NULL), 64, "undrain", "a plan with one that will drain");
    b = e2e_run(agent, "away", "b", NULL);
    CHECK(e2e_wait_said(&b, "gives us 0; we drain, until an undrain", 15000));
    CHECK_INT(e2e_stop(&b), 0);
    CHECK_INT(e2e_cli("undrain", "--consul", at, "-s", "away", "b", NULL), 0);
    CHECK_INT(e2e_cli("plan", "--consul", at, "-s", "away", "--add", "b", NULL), 0);
    refused(e2e_cli("undrain", "--consul", at, "-s", "away", "b", NULL), 1, "has no instance", "nothing to take back");
}

/* Everything of it is valid JSON; returns how many members the top object has. */
static size_t json_members(const char *text)
{
    mgr__json j;
    mgr__str key;
    size_t n = 0;
    mgr__json_init(&j, mgr__str_of(text));
    if (mgr__json_object(&j)) while (mgr__json_key(&j, &key)) n++;
    CHECK(mgr__json_end(&j));
    return n;
}

E2E(plan_and_timings)
{
    e2e_agent *agent = e2e_shared_agent();
    const char *at = agent->address;
    e2e_run(agent, "plan", "a", "-p", "0..7", NULL);
    e2e_run(agent, "plan", "b", NULL);
    CHECK(e2e_wait_settled(agent, "plan", 2, 8, &view, 20000));
    CHECK_INT(e2e_cli("plan", "--consul", at, "-s", "plan", "--json", NULL), 0);
    CHECK_INT(json_members(e2e_out), 4);
    CHECK_INT(e2e_times(e2e_out, "\"partition\""), 0);   /* nothing changes, nothing moves */
    CHECK_INT(e2e_cli("plan", "--consul", at, "-s", "plan", "--remove", "a", "--json", NULL), 0);
    CHECK_INT(e2e_times(e2e_out, "\"partition\""), 4);
    CHECK_INT(e2e_times(e2e_out, "\"a\""), 4);
    /* It is true: what it says is what then happens. */
    CHECK_INT(e2e_cli("plan", "--consul", at, "-s", "plan", "--add", "c", "--json", NULL), 0);
    size_t planned = e2e_times(e2e_out, "\"partition\""), happened = 0;
    static e2e_view later;
    e2e_run(agent, "plan", "c", NULL);
    CHECK(e2e_wait_settled(agent, "plan", 3, 8, &later, 20000));
    for (size_t i = 0; i < view.part_count && i < later.part_count; i++) happened += strcmp(view.parts[i].owner, later.parts[i].owner) != 0;
    CHECK_INT(happened, planned);
    CHECK_INT(e2e_cli("plan", "--consul", at, "-s", "plan", "--partitions", "0..3", NULL), 0);

    CHECK_INT(e2e_cli("timings", "--json", NULL), 0);
    CHECK_INT(json_members(e2e_out), 2);
    CHECK(strstr(e2e_out, "\"settings\"") && e2e_times(e2e_out, "\"failover_ms\"") >= 40);
    CHECK_INT(e2e_times(e2e_out, "null,\"after_ms\":"), 3);     /* no promise from the fault on, but one from its end */
    CHECK_INT(e2e_cli("timings", NULL), 0);
    CHECK(strstr(e2e_out, "12.65s") && strstr(e2e_out, "its end + ") && !strstr(e2e_out, "50ms  "));
    CHECK_INT(e2e_cli("timings", "--consul", at, "-s", "plan", "--json", NULL), 0);
    CHECK(strstr(e2e_out, "3000") && strstr(e2e_out, "4000"));
    CHECK(strstr(e2e_out, "\"raft_election_ms\":1000,") && strstr(e2e_out, "\"election_ms\":3000,") && strstr(e2e_out, "\"suspicion_mult\":4"));
    CHECK_INT(e2e_cli("timings", "--consul", at, "-s", "plan", NULL), 0);
}

static void plan_says(const char *text, const char *instances, const char *list, const char *option, const char *value)
{
    CHECK_INT(e2e_cli("plan", "--instances", instances, "--partitions", list, option, value, NULL), 0);
    if (!strstr(e2e_out, text)) printf("wanted \"%s\" in:\n%s", text, e2e_out);
    CHECK(strstr(e2e_out, text) != NULL);
}

E2E(plan_on_paper)
{
    plan_says("nothing moves; partitions of an instance: 2 now, 2 then", "a,b", "0..3", NULL, NULL);
    plan_says("1 move, for 1 partition; the least possible: 1; partitions of an instance: 1 now, none takes any then", "a", "x", "--remove", "a");
    plan_says("1 move, for 4 partitions; the least possible: 1; partitions of an instance: 2 now, 1 to 3 then", "a,b", "0..3", "--weight", "a=3");
    plan_says("partitions of an instance: 4 now, 2 then", "a", "0..3", "--add", "b");
    plan_says("partitions of an instance: 2 now, 1 to 3 then", "a,b", "0..3", "--weight", "b=3");
    refused(e2e_cli("plan", "--instances", "a", NULL), 64, "--partitions", "no partitions");
    refused(e2e_cli("plan", "--partitions", "0..3", NULL), 64, "-s", "neither service nor instances");
    refused(e2e_cli("plan", "-s", "x", "--instances", "a", "--partitions", "0..3", NULL), 64, "one of them", "both");
    refused(e2e_cli("plan", "--instances", "a", "--partitions", "0..3", "--remove", "z", NULL), 64, "z", "nobody to remove");
    refused(e2e_cli("plan", "--instances", "a", "--partitions", "0..3", "--add", "a", NULL), 64, "there already", "added twice");
    refused(e2e_cli("plan", "--instances", "a", "--partitions", "0..3", "--add", ":2", NULL), 64, "no ID", "no id");
    refused(e2e_cli("plan", "--instances", "a", "--partitions", "0..3", "--weight", "a=0", NULL), 64, "a=0", "weight 0");
    refused(e2e_cli("plan", "--instances", "a", "--partitions", "0..3", "--weight", "z=2", NULL), 64, "z", "weight of nobody");
}

/* Arguments are replaced without a shell; the child's environment is as promised. */
E2E(arguments_and_environment_of_the_work)
{
    e2e_agent *agent = e2e_shared_agent();
    static char text[4000];
    char path[100], script[700];
    const char *partition = "p '$(x)'";
    snprintf(path, sizeof path, "%s/seen", e2e_dir);
    snprintf(script, sizeof script, "printf '%%s\\n' \"$@\" \"$MANAGER_PARTITION\" \"$MANAGER_SERVICE\" \"$MANAGER_INSTANCE\" \"$MANAGER_ATTEMPT\" "
             "\"${CONSUL_HTTP_TOKEN-none}\" >%s.new; mv %s.new %s; exec sleep 100", path, path, path);
    char *argv[] = { e2e_manager, (char *)"run", (char *)"--consul", agent->address, (char *)"-s", (char *)"args", (char *)"-i", (char *)"a",
        (char *)"-p", (char *)(uintptr_t)partition, (char *)"--settle", (char *)"100ms", (char *)"--", (char *)"/bin/sh", (char *)"-c", script, (char *)"sh",
        (char *)"{partition}", (char *)"{instance}/{service}", (char *)"{fence}", (char *)"{other}", (char *)"{", NULL };
    char log[300];
    snprintf(log, sizeof log, "%s/run-args.log", e2e_dir);
    setenv("CONSUL_HTTP_TOKEN", "secret", 1);
    pid_t pid = e2e_spawn(argv, log, log);
    unsetenv("CONSUL_HTTP_TOKEN");
    for (int64_t until = e2e_now_ms() + 15000; !e2e_read_file(path, text, sizeof text) && e2e_now_ms() < until; ) e2e_sleep(20);
    unsigned long long fence = 0;
    char rest[2000] = "";
    CHECK(!strncmp(text, "p '$(x)'\na/args\n", 16));
    CHECK(sscanf(text + mgr__min64(16, (int64_t)strlen(text)), "%llu\n%1999[^\001]", &fence, rest) == 2 && fence > 0);
    CHECK_STR(rest, "{other}\n{\np '$(x)'\nargs\na\n1\nnone\n");
    kill(pid, SIGTERM);
    CHECK_INT(e2e_wait_end(pid, 15000), 0);
}

E2E(a_second_sigterm_kills_at_once)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_mode = "stubborn";
    e2e_instance a = e2e_run(agent, "twice", "a", "-p", "0..1", "--stop-grace", "1400ms", NULL);
    CHECK(e2e_wait_settled(agent, "twice", 1, 2, &view, 20000));
    int64_t from = e2e_now_ms();
    kill(a.pid, SIGTERM);
    e2e_sleep(300);
    CHECK(!e2e_ended(a.pid));
    CHECK_INT(e2e_workers("twice", NULL), 2);
    kill(a.pid, SIGTERM);
    CHECK_INT(e2e_wait_end(a.pid, 5000), 0);
    CHECK(e2e_now_ms() - from < 1250);
    CHECK_INT(e2e_keys(agent, "twice", "cluster/instances"), 0);
}

/* What Consul says of a service's checks: "passing" or "critical", how often. */
static size_t health(const e2e_agent *agent, const char *service, const char *status)
{
    char path[200], wanted[64];
    snprintf(path, sizeof path, "/v1/health/checks/%s", service);
    snprintf(wanted, sizeof wanted, "\"Status\":\"%s\"", status);
    return e2e_http(agent, "GET", path, "") == 200 ? e2e_times(e2e_out, wanted) : 0;
}

static void wait_health(const e2e_agent *agent, const char *service, const char *status, size_t count)
{
    int64_t until = e2e_now_ms() + 6000;
    while (health(agent, service, status) != count && e2e_now_ms() < until) e2e_sleep(50);
    CHECK_INT(health(agent, service, status), count);
}

/* A warning is shown; a failure sends the work to another instance. */
E2E(checks_stand_in_consul)
{
    e2e_agent *agent = e2e_shared_agent();
    char unwell[100], sick[100], script[400];
    snprintf(unwell, sizeof unwell, "%s/unwell", e2e_dir);
    snprintf(sick, sizeof sick, "%s/sick", e2e_dir);
    snprintf(script, sizeof script, "test ! -e %s-$MANAGER_INSTANCE || exit 2; test ! -e %s", sick, unwell);
    e2e_run(agent, "checked", "a", "-p", "0..1", "--check-script", script, "--check-interval", "200ms", NULL);
    e2e_run(agent, "checked", "b", "--check-script", script, "--check-interval", "200ms", NULL);
    CHECK(e2e_wait_settled(agent, "checked", 2, 2, &view, 20000));
    wait_health(agent, "checked", "passing", 4);   /* one for each instance, one for each partition */
    e2e_write_file(unwell, "");
    wait_health(agent, "checked", "warning", 2);
    unlink(unwell);
    wait_health(agent, "checked", "passing", 4);
    strcat(sick, "-a");
    e2e_write_file(sick, "");
    int64_t until = e2e_now_ms() + 8000;
    do e2e_status(agent, "checked", &view); while (strcmp(e2e_spread(&view), "2 0") && e2e_now_ms() < until);
    CHECK_STR(e2e_spread(&view), "2 0");
    CHECK(e2e_member_of(&view, "a") && e2e_member_of(&view, "a")->refuses >= 1);
}

/* Whether one of its descriptors is this FIFO, opened so that a write does not wait. */
static bool writes_without_waiting(pid_t pid, const char *fifo)
{
    char path[64], target[300], text[300];
    for (int fd = 3; fd < 64; fd++) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, fd);
        ssize_t len = readlink(path, target, sizeof target - 1);
        if (len <= 0) continue;
        target[len] = 0;
        snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", (int)pid, fd);
        const char *flags = !strcmp(target, fifo) && e2e_read_file(path, text, sizeof text) ? strstr(text, "flags:") : NULL;
        if (flags && (strtoul(flags + 6, NULL, 8) & O_NONBLOCK)) return true;
    }
    return false;
}

/* Its worker shares stderr and fills it, so that a look before a write proves nothing:
 * the lease, and the end, must not hang on a reader that sleeps. */
E2E(a_log_that_nobody_reads_costs_no_lease)
{
    e2e_agent *agent = e2e_shared_agent();
    char fifo[300], text[4096];
    snprintf(fifo, sizeof fifo, "%s/log", e2e_dir);
    CHECK_INT(mkfifo(fifo, 0600), 0);
    int reader = open(fifo, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    char *argv[] = { e2e_manager, (char *)"run", (char *)"--consul", agent->address, (char *)"-s", (char *)"unread", (char *)"-i", (char *)"a", (char *)"-p", (char *)"0",
                     (char *)"--lease", (char *)"3s", (char *)"--delay", (char *)"4s", (char *)"--ttl", (char *)"10s", (char *)"--settle", (char *)"300ms",
                     (char *)"--check-script", (char *)"date +%N; exit 1", (char *)"--check-interval", (char *)"50ms",
                     (char *)"--", (char *)"/bin/sh", (char *)"-c", (char *)"exec cat /dev/zero >&2", NULL };
    pid_t pid = e2e_spawn(argv, NULL, fifo);
    for (int64_t until = e2e_now_ms() + 15000; !writes_without_waiting(pid, fifo) && e2e_now_ms() < until; ) e2e_sleep(50);
    CHECK(writes_without_waiting(pid, fifo));
    CHECK_INT(e2e_cli("wait", "--consul", agent->address, "-s", "unread", "--timeout", "20s", NULL), 0);
    for (int64_t until = e2e_now_ms() + 4000; e2e_now_ms() < until; e2e_sleep(5)) CHECK(read(reader, text, sizeof text) != 0);    /* a page at a time */
    CHECK_INT(e2e_cli("wait", "--consul", agent->address, "-s", "unread", "--timeout", "1s", NULL), 0);
    CHECK_INT(e2e_keys(agent, "unread", "cluster/dead"), 0);     /* nothing was lost in between */
    kill(pid, SIGTERM);
    CHECK_INT(e2e_wait_end(pid, 15000), 0);
    close(reader);
    unlink(fifo);
}

/* ---- access rights ---- */

/* A token that may do what README.md names, but for the rule numbered `without` (from 0), which is cut down to `instead`. */
static void make_token(e2e_agent *agent, const char *service, int without, const char *instead, char *secret)
{
    static int number;
    const char *rules[] = { "write", "write", "write", "read", "read" };
    char body[1500], path[64];
    if (without >= 0) rules[without] = instead;
    snprintf(body, sizeof body,
             "{\"Name\":\"p%d\",\"Rules\":\"key_prefix \\\"manager/%s/\\\" { policy = \\\"%s\\\" } session_prefix \\\"\\\" { policy = \\\"%s\\\" } "
             "service_prefix \\\"\\\" { policy = \\\"%s\\\" } agent_prefix \\\"\\\" { policy = \\\"%s\\\" } node_prefix \\\"\\\" { policy = \\\"%s\\\" }\"}",
             number, service, rules[0], rules[1], rules[2], rules[3], rules[4]);
    CHECK_INT(e2e_http(agent, "PUT", "/v1/acl/policy", body), 200);
    snprintf(secret, 40, "00000000-0000-4000-8000-%012d", number);
    snprintf(body, sizeof body, "{\"SecretID\":\"%s\",\"Policies\":[{\"Name\":\"p%d\"}]}", secret, number++);
    snprintf(path, sizeof path, "/v1/acl/token");
    CHECK_INT(e2e_http(agent, "PUT", path, body), 200);
}

/* With the rights that README.md names all goes well, up to a killed manager's
 * certificate; without one of them it is named. */
E2E(rights_that_suffice_and_rights_that_lack)
{
    static const struct { int rule; const char *instead, *word; } LACKS[] = {
        { 0, "read", "key_prefix" }, { 0, "deny", "key_prefix" }, { 1, "read", "session_prefix" }, { 2, "read", "service_prefix" }, { 3, "deny", "agent_prefix" }
    };
    e2e_agent agent;
    char secret[40];
    e2e_agent_make(&agent, "guarded", "127.0.0.1");
    agent.hcl = "acl { enabled = true default_policy = \"deny\" enable_token_persistence = true }";
    e2e_agent_start(&agent);
    int code = 0;
    for (int64_t until = e2e_now_ms() + 15000; code != 200 && e2e_now_ms() < until; e2e_sleep(100)) code = e2e_http(&agent, "PUT", "/v1/acl/bootstrap", "");
    const char *id = strstr(e2e_out, "\"SecretID\"");
    CHECK(code == 200 && id && sscanf(id, "\"SecretID\" : \"%39[^\"]", agent.token) == 1);
    if (!agent.token[0]) { CHECK(!"bootstrapped"); return; }
    char body[100];
    snprintf(body, sizeof body, "{\"Token\":\"%s\"}", agent.token);
    CHECK_INT(e2e_http(&agent, "PUT", "/v1/agent/token/agent", body), 200);
    CHECK(e2e_agent_ready(&agent, 15000));
    make_token(&agent, "guarded", -1, "", secret);
    setenv("CONSUL_HTTP_TOKEN", secret, 1);
    e2e_instance a = e2e_run(&agent, "guarded", "a", "-p", "0..3", NULL);
    e2e_run(&agent, "guarded", "b", NULL);
    CHECK(e2e_wait_settled(&agent, "guarded", 2, 4, &view, 20000));
    kill(a.pid, SIGKILL);
    CHECK(e2e_wait_settled(&agent, "guarded", 1, 4, &view, 3000));      /* before the delay: certified */
    for (size_t i = 0; i < MGR__COUNT(LACKS); i++) {
        make_token(&agent, "lacking", LACKS[i].rule, LACKS[i].instead, secret);
        setenv("CONSUL_HTTP_TOKEN", secret, 1);
        e2e_instance one = e2e_run(&agent, "lacking", "a", "-p", "0..1", NULL);
        CHECK_INT(e2e_wait_end(one.pid, 15000), 77);
        if (!strstr(e2e_said(&one), LACKS[i].word)) printf("without %s: %s\n", LACKS[i].word, e2e_said(&one));
        CHECK(strstr(e2e_said(&one), LACKS[i].word) != NULL);
    }
    setenv("CONSUL_HTTP_TOKEN", "00000000-0000-4000-9000-000000000000", 1);
    refused(e2e_cli("status", "--consul", agent.address, "-s", "guarded", NULL), 77, "ACL not found", "a token that there is not");
    unsetenv("CONSUL_HTTP_TOKEN");
}

static int run(int argc, char **argv)
{
    RUN(misuse_is_one_line_and_64);
    RUN(bad_names_are_refused_by_name);
    RUN(a_run_dir_that_will_not_do_is_refused);
    RUN(a_delay_below_the_lease_is_refused);
    RUN(no_consul_yet);
    RUN(two_instances_with_one_id);
    RUN(two_services_stand_alone);
    RUN(wait_drain_undrain_evict);
    RUN(a_drain_outlives_its_instance);
    RUN(plan_and_timings);
    RUN(plan_on_paper);
    RUN(arguments_and_environment_of_the_work);
    RUN(a_second_sigterm_kills_at_once);
    RUN(checks_stand_in_consul);
    RUN(a_log_that_nobody_reads_costs_no_lease);
    RUN(rights_that_suffice_and_rights_that_lack);
    return test__end();
}

int main(int argc, char **argv) { return e2e_main(argc, argv, run); }
