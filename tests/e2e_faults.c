/* End to end, when things go wrong: managers, keepers, agents and leaders killed
 * or stopped. Whatever dies, no successor starts before its predecessor is dead. */
#include "e2e.h"

#include <glob.h>

static e2e_view view;

/* The living workers of an instance. After a status in `view`. */
static size_t workers_of(const char *service, const char *instance, pid_t *pids)
{
    size_t n = 0;
    e2e_lives_read();
    for (size_t i = 0; i < view.part_count; i++)
        if (!strcmp(view.parts[i].owner, instance)) pids[n++] = e2e_worker_pid(service, view.parts[i].name);
    return n;
}

static const e2e_life *life_of(pid_t pid)
{
    for (size_t i = e2e_life_count; i-- > 0; ) if (e2e_lives[i].pid == pid) return &e2e_lives[i];
    return NULL;
}

static bool all_dead(const pid_t *pids, size_t count)
{
    e2e_lives_read();
    for (size_t i = 0; i < count; i++) {
        const e2e_life *life = life_of(pids[i]);
        if (life && !life->dead_ns) return false;
    }
    return true;
}

static bool wait_dead(const pid_t *pids, size_t count, int ms)
{
    for (int64_t until = e2e_now_ms() + ms; !all_dead(pids, count); e2e_sleep(5))
        if (e2e_now_ms() > until) return false;
    return true;
}

/* SIGKILL to a manager: its keeper ends the work and says so in Consul, so that the
 * others need not wait. Returns the longest gap in ms. */
static int64_t kill_manager(e2e_agent *agent, const char *service, const e2e_instance *victim, size_t instances, size_t partitions, const char *label)
{
    pid_t pids[E2E_PARTS_MAX];
    size_t count = workers_of(service, victim->id, pids), certificates = 0;
    int64_t from = e2e_now_ns(), until = e2e_now_ms() + 15000;
    CHECK(count > 0);
    kill(victim->pid, SIGKILL);
    e2e_wait_end(victim->pid, 5000);
    while (e2e_now_ms() < until && (!certificates || e2e_workers(service, NULL) < partitions || !all_dead(pids, count)))
        if (!certificates) certificates = e2e_keys(agent, service, "cluster/dead");
    CHECK(certificates > 0);
    CHECK(all_dead(pids, count));
    CHECK(e2e_wait_settled(agent, service, instances - 1, partitions, &view, 15000));
    return e2e_gaps(service, from, label);
}

E2E(manager_killed_ten_times)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_instance all[3];
    const char *ids[3] = { "a", "b", "c" };
    int64_t from = e2e_now_ns();
    for (int i = 0; i < 3; i++) all[i] = e2e_run(agent, "killed", ids[i], "-p", "0..11", NULL);
    for (int round = 0; round < 10; round++) {
        if (!e2e_wait_settled(agent, "killed", 3, 12, &view, 20000)) { CHECK(!"settled"); return; }
        int which = round % 3;
        char label[64];
        snprintf(label, sizeof label, "SIGKILL to a manager, round %d", round);
        int64_t gap = kill_manager(agent, "killed", &all[which], 3, 12, label);
        /* A certificate, not a timeout: quicker than the delay. */
        CHECK(gap < E2E_DELAY_MS - 500);
        all[which] = e2e_run(agent, "killed", ids[which], NULL);
    }
    e2e_gaps("killed", from, "SIGKILL to a manager, and its return, ten times");
}

E2E(manager_killed_on_three_servers)
{
    static e2e_agent servers[3];
    if (!e2e_cluster_start(servers)) { CHECK(!"three servers are up"); return; }
    static e2e_instance all[3];
    const char *ids[3] = { "a", "b", "c" };
    for (int i = 0; i < 3; i++) all[i] = e2e_run(&servers[i], "three", ids[i], "-p", "0..11", NULL);
    if (e2e_wait_settled(&servers[0], "three", 3, 12, &view, 30000))
        CHECK(kill_manager(&servers[1], "three", &all[0], 3, 12, "SIGKILL to a manager, three servers") < E2E_DELAY_MS - 500);
    else CHECK(!"settled");

    /* The leader goes, and with it the agent of whoever stood there. With a lease of
     * 3 s a slow election may cost the work; then all comes back on the other two. */
    int leader = e2e_leader(servers);
    CHECK(leader >= 0);
    if (leader < 0) leader = 0;
    int64_t from = e2e_now_ns();
    e2e_agent_kill(&servers[leader]);
    const e2e_agent *left = &servers[(leader + 1) % 3];
    e2e_sleep(1000);
    CHECK(e2e_wait_settled(left, "three", 2, 12, &view, 40000));
    e2e_sleep(6000);   /* by now the dead node's sessions are gone, too */
    CHECK(e2e_wait_settled(left, "three", 2, 12, &view, 40000));
    e2e_gaps("three", from, "SIGKILL to the leader of three servers");
    for (int i = 0; i < 3; i++) kill(all[i].pid, SIGTERM);
    for (int i = 1; i < 3; i++) CHECK_INT(e2e_wait_end(all[i].pid, 15000), 0);
    for (int i = 0; i < 3; i++) e2e_agent_kill(&servers[i]);
}

E2E(agent_killed_and_back_with_its_data)
{
    static e2e_agent agent;
    pid_t pids[2][E2E_PARTS_MAX];
    e2e_agent_make(&agent, "mortal", "127.0.0.1");
    e2e_agent_start(&agent);
    if (!e2e_agent_ready(&agent, 30000)) { CHECK(!"the agent is up"); return; }
    e2e_instance a = e2e_run(&agent, "agent", "a", "-p", "0..7", NULL);
    e2e_instance b = e2e_run(&agent, "agent", "b", NULL);
    if (!e2e_wait_settled(&agent, "agent", 2, 8, &view, 20000)) { CHECK(!"settled"); return; }
    size_t n = workers_of("agent", "a", pids[0]), m = workers_of("agent", "b", pids[1]);
    int64_t from = e2e_now_ns();
    e2e_agent_kill(&agent);
    /* 3 s of lease, counted from the last confirmation, and what the machine needs. */
    CHECK(wait_dead(pids[0], n, 4500) && wait_dead(pids[1], m, 4500));
    e2e_lives_read();
    int64_t last = 0;
    for (size_t i = 0; i < n; i++) last = mgr__max64(last, life_of(pids[0][i])->dead_ns - from);
    for (size_t i = 0; i < m; i++) last = mgr__max64(last, life_of(pids[1][i])->dead_ns - from);
    printf("measured agent killed: the last worker died after %lld ms of a 3000 ms lease\n", (long long)last / 1000000);
    CHECK(last / 1000000 < 3000 + 500);
    CHECK(!e2e_ended(a.pid) && !e2e_ended(b.pid));
    CHECK_INT(e2e_workers("agent", NULL), 0);

    e2e_agent_start(&agent);
    CHECK(e2e_agent_ready(&agent, 30000));
    int64_t back = e2e_now_ms();
    CHECK(e2e_wait_settled(&agent, "agent", 2, 8, &view, 40000));
    printf("measured agent back: all work runs %lld ms after it answers\n", (long long)(e2e_now_ms() - back));
    CHECK_INT(e2e_stop(&a), 0);
    CHECK_INT(e2e_stop(&b), 0);
    e2e_agent_kill(&agent);
}

/* No certificate can come: the others learn of it from the check, and wait. */
E2E(manager_and_keeper_killed)
{
    e2e_agent *agent = e2e_shared_agent();
    pid_t pids[E2E_PARTS_MAX];
    e2e_instance a = e2e_run(agent, "both", "a", "-p", "0..7", NULL);
    e2e_run(agent, "both", "b", NULL);
    if (!e2e_wait_settled(agent, "both", 2, 8, &view, 20000)) { CHECK(!"settled"); return; }
    size_t n = workers_of("both", "a", pids);
    pid_t keeper = n ? e2e_parent_of(pids[0]) : 0;
    CHECK(keeper > 1 && keeper != a.pid && keeper != getpid());
    int64_t from = e2e_now_ns();
    kill(a.pid, SIGSTOP);
    kill(keeper, SIGSTOP);
    kill(a.pid, SIGKILL);
    kill(keeper, SIGKILL);
    CHECK(wait_dead(pids, n, 4500));
    CHECK(e2e_wait_settled(agent, "both", 1, 8, &view, 30000));
    CHECK_INT(e2e_keys(agent, "both", "cluster/instances/a"), 0);
    e2e_gaps("both", from, "SIGKILL to manager and keeper");
}

/* One of the two helpers dies: the manager notices and goes on. */
E2E(keeper_killed_then_guard_killed)
{
    e2e_agent *agent = e2e_shared_agent();
    pid_t pids[E2E_PARTS_MAX];
    e2e_instance a = e2e_run(agent, "helpers", "a", "-p", "0..3", NULL);
    e2e_run(agent, "helpers", "b", NULL);
    for (int turn = 0; turn < 2; turn++) {
        if (!e2e_wait_settled(agent, "helpers", 2, 4, &view, 20000)) { CHECK(!"settled"); return; }
        size_t n = workers_of("helpers", "a", pids);
        pid_t keeper = n ? e2e_parent_of(pids[0]) : 0, guard = e2e_parent_of(keeper), target = turn ? guard : keeper;
        CHECK(target > 1 && target != a.pid && target != getpid());
        if (target <= 1 || target == a.pid || target == getpid()) return;
        int64_t from = e2e_now_ns();
        kill(target, SIGKILL);
        CHECK(wait_dead(pids, n, 4500));
        CHECK(!e2e_ended(a.pid));
        CHECK(e2e_wait_settled(agent, "helpers", 2, 4, &view, 30000));
        e2e_gaps("helpers", from, turn ? "SIGKILL to a guard" : "SIGKILL to a keeper");
    }
}

/* A manager that stands still cannot renew: its keeper ends the work by the lease,
 * and when it wakes it enters anew. */
E2E(manager_stopped_and_continued)
{
    e2e_agent *agent = e2e_shared_agent();
    pid_t pids[E2E_PARTS_MAX];
    e2e_instance a = e2e_run(agent, "frozen", "a", "-p", "0..7", NULL);
    e2e_run(agent, "frozen", "b", NULL);
    if (!e2e_wait_settled(agent, "frozen", 2, 8, &view, 20000)) { CHECK(!"settled"); return; }
    size_t n = workers_of("frozen", "a", pids);
    int64_t from = e2e_now_ns();
    kill(a.pid, SIGSTOP);
    CHECK(wait_dead(pids, n, 4500));
    CHECK(e2e_wait_settled(agent, "frozen", 1, 8, &view, 20000));
    e2e_gaps("frozen", from, "SIGSTOP to a manager");
    kill(a.pid, SIGCONT);
    CHECK(e2e_wait_settled(agent, "frozen", 2, 8, &view, 20000));
    CHECK_INT(e2e_stop(&a), 0);
}

/* The session that holds an instance's key, "" if none does. */
static const char *session_of(const e2e_agent *agent, const char *service, const char *instance)
{
    static char session[64];
    char path[200];
    session[0] = 0;
    snprintf(path, sizeof path, "/v1/kv/manager/%s/cluster/instances/%s", service, instance);
    if (e2e_http(agent, "GET", path, "") != 200) return session;
    const char *at = strstr(e2e_out, "\"Session\":");
    if (at) sscanf(at, "\"Session\" : \"%63[^\"]\"", session);
    if (at && !session[0]) sscanf(at, "\"Session\":\"%63[^\"]\"", session);
    return session;
}

/* An operator destroys the session, then deletes an owner's key: what cannot be
 * confirmed any more is killed, and no two owners come of it. */
E2E(session_destroyed_and_key_deleted_by_hand)
{
    e2e_agent *agent = e2e_shared_agent();
    pid_t pids[E2E_PARTS_MAX];
    char path[200];
    e2e_run(agent, "byhand", "a", "-p", "0..5", NULL);
    e2e_run(agent, "byhand", "b", NULL);
    if (!e2e_wait_settled(agent, "byhand", 2, 6, &view, 20000)) { CHECK(!"settled"); return; }
    size_t n = workers_of("byhand", "a", pids);
    snprintf(path, sizeof path, "/v1/session/destroy/%s", session_of(agent, "byhand", "a"));
    CHECK(strlen(path) > 30);
    int64_t from = e2e_now_ns();
    CHECK_INT(e2e_http(agent, "PUT", path, ""), 200);
    CHECK(wait_dead(pids, n, 4500));
    CHECK(e2e_wait_settled(agent, "byhand", 2, 6, &view, 30000));
    e2e_gaps("byhand", from, "session destroyed by hand");

    from = e2e_now_ns();
    e2e_lives_read();
    pid_t worker = e2e_worker_pid("byhand", "3");
    CHECK_INT(e2e_http(agent, "DELETE", "/v1/kv/manager/byhand/owners/3", ""), 200);
    CHECK(wait_dead(&worker, 1, 4500));
    CHECK(e2e_wait_settled(agent, "byhand", 2, 6, &view, 30000));
    e2e_gaps("byhand", from, "an owner's key deleted by hand");
}

/* An agent that stands still takes connections and says nothing. */
E2E(agent_stopped_and_continued)
{
    e2e_agent *agent = e2e_shared_agent();
    pid_t pids[E2E_PARTS_MAX];
    e2e_instance a = e2e_run(agent, "silent", "a", "-p", "0..3", NULL);
    if (!e2e_wait_settled(agent, "silent", 1, 4, &view, 20000)) { CHECK(!"settled"); return; }
    size_t n = workers_of("silent", "a", pids);
    int64_t from = e2e_now_ns();
    kill(agent->pid, SIGSTOP);
    bool dead = wait_dead(pids, n, 4500);
    kill(agent->pid, SIGCONT);
    CHECK(dead);
    CHECK(!e2e_ended(a.pid));
    CHECK(e2e_wait_settled(agent, "silent", 1, 4, &view, 30000));
    e2e_gaps("silent", from, "SIGSTOP to the agent");
    CHECK_INT(e2e_stop(&a), 0);
}

/* Nobody is left to kill the work but the kernel, with its parent-death signals. */
E2E(manager_keeper_and_guard_killed)
{
    e2e_agent *agent = e2e_shared_agent();
    pid_t pids[E2E_PARTS_MAX];
    e2e_instance a = e2e_run(agent, "all", "a", "-p", "0..3", NULL);
    e2e_run(agent, "all", "b", NULL);
    if (!e2e_wait_settled(agent, "all", 2, 4, &view, 20000)) { CHECK(!"settled"); return; }
    size_t n = workers_of("all", "a", pids);
    pid_t three[3] = { a.pid, 0, 0 };
    three[1] = n ? e2e_parent_of(pids[0]) : 0;
    three[2] = three[1] ? e2e_parent_of(three[1]) : 0;
    CHECK(three[1] > 1 && three[2] > 1 && three[2] != getpid());
    if (three[2] <= 1 || three[2] == getpid()) return;
    int64_t from = e2e_now_ns();
    for (int i = 0; i < 3; i++) kill(three[i], SIGSTOP);
    for (int i = 0; i < 3; i++) kill(three[i], SIGKILL);
    CHECK(wait_dead(pids, n, 1000));
    CHECK(e2e_wait_settled(agent, "all", 1, 4, &view, 30000));
    e2e_gaps("all", from, "SIGKILL to manager, keeper and guard");
}

/* Manager, keeper and guard die at one blow, and the instance is started again at
 * once, on the same host and with the same id. True: all was set up for that. */
static bool killed_and_back(e2e_agent *agent, const char *service, const char *isolate, e2e_instance *back, int64_t *from)
{
    pid_t pids[E2E_PARTS_MAX], three[3];
    e2e_instance a = e2e_run(agent, service, "a", "-p", "0..3", "--isolate", isolate, NULL);
    if (!e2e_wait_settled(agent, service, 1, 4, &view, 20000)) return false;
    size_t n = workers_of(service, "a", pids);
    three[0] = a.pid;
    three[1] = n ? e2e_parent_of(pids[0]) : 0;
    three[2] = three[1] > 1 ? e2e_parent_of(three[1]) : 0;
    if (three[2] <= 1 || three[2] == getpid()) return false;
    *from = e2e_now_ns();
    for (int i = 0; i < 3; i++) kill(three[i], SIGSTOP);
    for (int i = 0; i < 3; i++) kill(three[i], SIGKILL);
    *back = e2e_run(agent, service, "a", "-p", "0..3", "--isolate", isolate, NULL);
    return true;
}

static bool cgroup_writable(void)
{
    char group[MGR__PROCESS_CGROUP_BYTES];
    return mgr__process_cgroup_find(group, sizeof group) == 0 && access(group, W_OK) == 0;
}

E2E(all_killed_and_back_on_its_host_with_a_cgroup)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_instance back;
    int64_t from;
    if (!cgroup_writable()) SKIP("no cgroup v2 that we may write to");
    if (!killed_and_back(agent, "return", "cgroup", &back, &from)) { CHECK(!"settled"); return; }
    CHECK(e2e_wait_settled(agent, "return", 1, 4, &view, 30000));
    CHECK(e2e_wait_said(&back, "certified that all work of the former life", 1000));
    /* Proven, not waited for; its settle_ms and what Consul needs are in the gap. */
    CHECK(e2e_gaps("return", from, "SIGKILL to manager, keeper and guard, and its return, in a cgroup") < E2E_DELAY_MS / 2);
    CHECK_INT(e2e_stop(&back), 0);
}

E2E(all_killed_and_back_on_its_host_in_a_pid_namespace)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_instance back;
    int64_t from;
    if (geteuid() != 0) SKIP("a PID namespace without privileges is tested in test_keeper");
    if (!killed_and_back(agent, "space", "pidns", &back, &from)) { CHECK(!"settled"); return; }
    CHECK(e2e_wait_settled(agent, "space", 1, 4, &view, 30000));
    CHECK(e2e_wait_said(&back, "certified that all work of the former life", 1000));
    CHECK(e2e_gaps("space", from, "the same in a PID namespace") < E2E_DELAY_MS / 2);
    CHECK_INT(e2e_stop(&back), 0);
}

E2E(all_killed_and_back_on_its_host_without_proof)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_instance back;
    int64_t from;
    if (!killed_and_back(agent, "loose", "none", &back, &from)) { CHECK(!"settled"); return; }
    CHECK(e2e_wait_said(&back, "its death is not proven: it had workers outside a cgroup", 10000));
    CHECK(e2e_wait_said(&back, "partition 0 was lost by a without proof of death", 30000));
    CHECK(strstr(e2e_said(&back), "has no proof of death: it had workers outside a cgroup") != NULL);
    CHECK_INT(e2e_cli("why", "-s", "loose", "0", "--consul", agent->address, NULL), 0);
    CHECK(strstr(e2e_out, "it had workers outside a cgroup") != NULL);
    CHECK(e2e_wait_settled(agent, "loose", 1, 4, &view, 30000));
    CHECK(!strstr(e2e_said(&back), "certified"));
    CHECK(e2e_gaps("loose", from, "the same without isolation") >= E2E_DELAY_MS - 100);
    CHECK_INT(e2e_stop(&back), 0);
}

/* ---- the wall clock ---- */

/* Where Debian and others put libfaketime; "" if it is not here. */
static const char *faketime_path(void)
{
    static const char *const patterns[] = { "/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1" };
    static char path[300];
    path[0] = 0;
    for (size_t i = 0; i < MGR__COUNT(patterns) && !path[0]; i++) {
        glob_t found;
        if (glob(patterns[i], 0, NULL, &found) != 0) continue;
        snprintf(path, sizeof path, "%s", found.gl_pathv[0]);
        globfree(&found);
    }
    return path;
}

/* Instances have clocks of their own, as on hosts of their own. "+5h" from the true time. */
static void clock_set(const char *id, const char *by)
{
    char path[100], fresh[120];
    snprintf(path, sizeof path, "%s/clock-%s", e2e_dir, id);
    snprintf(fresh, sizeof fresh, "%s.new", path);
    e2e_write_file(fresh, by);
    CHECK(rename(fresh, path) == 0);
}

static e2e_instance clock_run(e2e_agent *agent, const char *id)
{
    char path[100];
    clock_set(id, "+0");
    snprintf(path, sizeof path, "%s/clock-%s", e2e_dir, id);
    setenv("FAKETIME_TIMESTAMP_FILE", path, 1);
    setenv("FAKETIME_NO_CACHE", "1", 1);
    setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1", 1);
    setenv("LD_PRELOAD", faketime_path(), 1);
    e2e_instance it = e2e_run(agent, "clock", id, "-p", "0..5", NULL);
    unsetenv("LD_PRELOAD");
    return it;
}

/* libfaketime's shared memory outlives those who are killed. */
static void clock_clean(const e2e_instance *it)
{
    char path[100];
    snprintf(path, sizeof path, "/dev/shm/faketime_shm_%d", (int)it->pid);
    unlink(path);
    snprintf(path, sizeof path, "/dev/shm/sem.faketime_sem_%d", (int)it->pid);
    unlink(path);
}

/* By how many hours the owner's clock was wrong when it took a partition, rounded. */
static int since_hours(const e2e_part *part)
{
    struct tm utc;
    memset(&utc, 0, sizeof utc);
    if (!strptime(part->since, "%Y-%m-%dT%H:%M:%S", &utc)) return 1000;
    long ahead = (long)(timegm(&utc) - time(NULL));
    return (int)((ahead + (ahead < 0 ? -1800 : 1800)) / 3600);
}

/* The partitions of two pictures that have the same owner, fence and since in both; the
 * fences of the others have grown. */
static size_t clock_same(const e2e_view *before, const e2e_view *after)
{
    size_t same = 0;
    for (size_t i = 0; i < before->part_count && i < after->part_count; i++) {
        const e2e_part *b = &before->parts[i], *a = &after->parts[i];
        CHECK_STR(a->name, b->name);
        bool stayed = a->fence == b->fence;
        if (stayed) { CHECK_STR(a->owner, b->owner); CHECK_STR(a->since, b->since); }
        else CHECK(a->fence > b->fence);
        same += stayed;
    }
    return same;
}

/* Clocks that jump by hours, to and fro, while partitions are handed over. */
static bool clock_hand_over(e2e_agent *agent, size_t instances)
{
    int64_t until = e2e_now_ms() + 20000;
    for (int turn = 0; e2e_now_ms() < until; turn++) {
        clock_set("a", turn % 2 ? "+5h" : "-7h");
        clock_set("b", turn % 2 ? "-7h" : "+5h");
        int code = e2e_status(agent, "clock", &view);
        if (e2e_settled(&view, code, instances, 6) && e2e_workers("clock", NULL) == 6) return true;
    }
    return false;
}

/* Nothing is decided by the wall clock: jumps of hours, and clocks of instances that
 * disagree by half a day, restart nothing, and change neither hand-over nor failover. */
E2E(wall_clock_jumps)
{
    static e2e_view before;
    if (!faketime_path()[0]) SKIP("no libfaketime here");
    e2e_agent *agent = e2e_shared_agent();
    e2e_instance a = clock_run(agent, "a"), b = clock_run(agent, "b");
    if (!e2e_wait_settled(agent, "clock", 2, 6, &before, 20000)) { CHECK(!"settled"); return; }
    size_t lives = e2e_life_count;
    static const char *const jumps[][2] = { { "+5h", "-7h" }, { "-7h", "+5h" }, { "+5h", "+5h" }, { "-7h", "-7h" } };
    for (size_t i = 0; i < MGR__COUNT(jumps); i++) {
        clock_set("a", jumps[i][0]);
        clock_set("b", jumps[i][1]);
        e2e_sleep(i ? 1500 : 4500);        /* the first for longer than lease and delay */
    }
    CHECK(e2e_wait_settled(agent, "clock", 2, 6, &view, 5000));
    CHECK_INT(clock_same(&before, &view), 6);
    CHECK_INT(e2e_life_count, lives);

    /* A third one comes, and takes its share. */
    int64_t from = e2e_now_ns();
    before = view;
    e2e_instance c = clock_run(agent, "c");
    clock_set("c", "-7h");
    CHECK(clock_hand_over(agent, 3));
    CHECK_INT(clock_same(&before, &view), 4);
    for (size_t i = 0; i < view.part_count; i++) if (!strcmp(view.parts[i].owner, "c")) CHECK_INT(since_hours(&view.parts[i]), -7);
    CHECK(e2e_gaps("clock", from, "hand-over while wall clocks jump") < E2E_DELAY_MS - 500);

    /* One dies at the moment its clock jumps. Its proof of death counts, not the time. */
    clock_set("a", "+5h");
    clock_set("b", "-7h");
    before = view;
    CHECK(kill_manager(agent, "clock", &a, 3, 6, "SIGKILL to a manager whose wall clock jumped") < E2E_DELAY_MS - 500);
    CHECK_INT(clock_same(&before, &view), 4);
    CHECK_INT(e2e_stop(&b), 0);
    CHECK_INT(e2e_stop(&c), 0);
    clock_clean(&a);
    clock_clean(&b);
    clock_clean(&c);
}

static int run(int argc, char **argv)
{
    RUN(manager_killed_ten_times);
    RUN(manager_killed_on_three_servers);
    RUN(agent_killed_and_back_with_its_data);
    RUN(manager_and_keeper_killed);
    RUN(keeper_killed_then_guard_killed);
    RUN(manager_stopped_and_continued);
    RUN(session_destroyed_and_key_deleted_by_hand);
    RUN(agent_stopped_and_continued);
    RUN(manager_keeper_and_guard_killed);
    RUN(all_killed_and_back_on_its_host_with_a_cgroup);
    RUN(all_killed_and_back_on_its_host_in_a_pid_namespace);
    RUN(all_killed_and_back_on_its_host_without_proof);
    RUN(wall_clock_jumps);
    return test__end();
}

int main(int argc, char **argv) { return e2e_main(argc, argv, run); }
