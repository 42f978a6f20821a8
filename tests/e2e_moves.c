/* End to end: what moves, and what does not. What `manager plan` lists is exactly
 * what then happens; pauses, the circuit breaker, rolling restarts, and many joins. */
#include "e2e.h"

typedef struct hand { char partition[256], owner[256]; pid_t pid; } hand;
typedef struct hands { hand at[E2E_PARTS_MAX]; size_t count; } hands;
typedef struct move { char partition[256], from[256], to[256]; } move;
typedef struct moves { move at[E2E_PARTS_MAX * 2]; size_t count; } moves;

static e2e_view view;
static moves planned, happened;

/* Who works on what, in which process; the view must be settled. */
static void hands_take(hands *h, const char *service)
{
    e2e_workers(service, NULL);
    h->count = view.part_count;
    for (size_t i = 0; i < view.part_count; i++) {
        snprintf(h->at[i].partition, sizeof h->at[i].partition, "%s", view.parts[i].name);
        snprintf(h->at[i].owner, sizeof h->at[i].owner, "%s", view.parts[i].owner);
        h->at[i].pid = e2e_worker_pid(service, view.parts[i].name);
    }
}

static const hand *hand_of(const hands *h, const char *partition)
{
    for (size_t i = 0; i < h->count; i++) if (!strcmp(h->at[i].partition, partition)) return &h->at[i];
    return NULL;
}

static void move_add(moves *m, const char *partition, const char *from, const char *to)
{
    move *at = &m->at[m->count++];
    snprintf(at->partition, sizeof at->partition, "%s", partition);
    snprintf(at->from, sizeof at->from, "%s", from);
    snprintf(at->to, sizeof at->to, "%s", to);
}

static int move_order(const void *a, const void *b) { return strcmp(((const move *)a)->partition, ((const move *)b)->partition); }

/* What differs; and a process was started anew exactly where the owner has changed. */
static void moves_between(moves *m, const hands *before, const hands *after)
{
    m->count = 0;
    for (size_t i = 0; i < after->count; i++) {
        const hand *now = &after->at[i], *then = hand_of(before, now->partition);
        if (!then || strcmp(then->owner, now->owner)) move_add(m, now->partition, then ? then->owner : "", now->owner);
        else if (then->pid != now->pid) {
            printf("partition %s stayed on %s, but its worker %d became %d\n", now->partition, now->owner, (int)then->pid, (int)now->pid);
            CHECK(!"a worker was stopped although its partition stayed");
        }
    }
    for (size_t i = 0; i < before->count; i++)
        if (!hand_of(after, before->at[i].partition)) move_add(m, before->at[i].partition, before->at[i].owner, "");
    qsort(m->at, m->count, sizeof *m->at, move_order);
}

static void move_read(mgr__json *j, mgr__buf *scratch, moves *m)
{
    mgr__str key;
    move *at = &m->at[m->count++];
    memset(at, 0, sizeof *at);
    if (!mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "partition")) e2e_json_text(j, scratch, at->partition, sizeof at->partition);
        else if (mgr__str_is(key, "from")) e2e_json_text(j, scratch, at->from, sizeof at->from);
        else if (mgr__str_is(key, "to")) e2e_json_text(j, scratch, at->to, sizeof at->to);
        else mgr__json_skip(j);
    }
}

/* manager plan --json with one more option and its value. */
static void plan_read(const e2e_agent *agent, const char *service, const char *option, const char *value)
{
    mgr__json j;
    mgr__str key;
    mgr__buf scratch;
    planned.count = 0;
    CHECK_INT(e2e_cli("plan", "--consul", agent->address, "-s", service, "--json", option, value, NULL), 0);
    mgr__buf_init(&scratch, &e2e_heap, 4096);
    mgr__json_init(&j, mgr__str_of(e2e_out));
    if (mgr__json_object(&j)) while (mgr__json_key(&j, &key)) {
        if (mgr__str_is(key, "moves") && mgr__json_array(&j)) while (mgr__json_item(&j)) move_read(&j, &scratch, &planned);
        else mgr__json_skip(&j);
    }
    CHECK(mgr__json_end(&j));
    mgr__buf_free(&scratch);
    qsort(planned.at, planned.count, sizeof *planned.at, move_order);
}

static void check_as_planned(const char *what)
{
    bool same = planned.count == happened.count;
    for (size_t i = 0; same && i < planned.count; i++)
        same = !strcmp(planned.at[i].partition, happened.at[i].partition) && !strcmp(planned.at[i].from, happened.at[i].from) && !strcmp(planned.at[i].to, happened.at[i].to);
    for (size_t i = 0; !same && i < planned.count; i++) printf("planned   %s: %s -> %s\n", planned.at[i].partition, planned.at[i].from, planned.at[i].to);
    for (size_t i = 0; !same && i < happened.count; i++) printf("happened  %s: %s -> %s\n", happened.at[i].partition, happened.at[i].from, happened.at[i].to);
    if (!same) printf("%s: not as planned\n", what);
    CHECK(same && planned.count > 0);
    printf("measured %s: %zu moves, each as planned\n", what, happened.count);
}

/* Shares by weight, or in a pause, are not even: each has something, and nothing is about to move. */
static bool settle(const e2e_agent *agent, const char *service, size_t instances, size_t partitions, hands *h)
{
    bool settled = false;
    for (int64_t until = e2e_now_ms() + 25000; !settled && e2e_now_ms() < until; e2e_sleep(80)) {
        int code = e2e_status(agent, service, &view);
        settled = code == 0 && view.converged && view.alive_count == instances && view.part_count == partitions && e2e_workers(service, NULL) == partitions;
        for (size_t i = 0; settled && i < view.member_count; i++) settled = view.members[i].owned > 0;
        for (size_t i = 0; settled && i < partitions; i++) settled = e2e_worker_pid(service, view.parts[i].name) != 0;
    }
    CHECK(settled);
    if (settled) hands_take(h, service);
    else e2e_view_print(&view, 0);
    return settled;
}

E2E(what_is_planned_is_what_happens)
{
    e2e_agent *agent = e2e_shared_agent();
    static hands before, after;
    e2e_run(agent, "planned", "a", "-p", "0..15", NULL);
    e2e_run(agent, "planned", "b", NULL);
    e2e_instance c = e2e_run(agent, "planned", "c", NULL);
    if (!settle(agent, "planned", 3, 16, &before)) return;

    plan_read(agent, "planned", "--remove", "c");
    kill(c.pid, SIGKILL);
    if (!settle(agent, "planned", 2, 16, &after)) return;
    moves_between(&happened, &before, &after);
    check_as_planned("SIGKILL");

    plan_read(agent, "planned", "--add", "d:2");
    before = after;
    e2e_instance d = e2e_run(agent, "planned", "d", "--weight", "2", "--rejoin-grace", "30s", NULL);
    if (!settle(agent, "planned", 3, 16, &after)) return;
    moves_between(&happened, &before, &after);
    check_as_planned("join");

    plan_read(agent, "planned", "--partitions", "3..21");
    before = after;
    CHECK_INT(e2e_cli("partitions", "--consul", agent->address, "-s", "planned", "3..21", NULL), 0);
    if (!settle(agent, "planned", 3, 19, &after)) return;
    moves_between(&happened, &before, &after);
    check_as_planned("another set");

    /* A restart with another weight: within the grace nothing moves but what the weight asks for. */
    plan_read(agent, "planned", "--weight", "d=5");
    before = after;
    kill(d.pid, SIGKILL);
    CHECK(e2e_wait_end(d.pid, 5000) != 0);
    CHECK(e2e_wait_workers("planned", 19 - (size_t)e2e_member_of(&view, "d")->owned, 10000));
    e2e_run(agent, "planned", "d", "--weight", "5", "--rejoin-grace", "30s", NULL);
    if (!settle(agent, "planned", 3, 19, &after)) return;
    CHECK_INT(e2e_member_of(&view, "d")->weight, 5);
    for (size_t i = 0; i < before.count; i++) if (!strcmp(before.at[i].owner, "d")) {     /* those of d were killed with it */
        const hand *now = hand_of(&after, before.at[i].partition);
        if (now && !strcmp(now->owner, "d")) before.at[i].pid = now->pid;
    }
    moves_between(&happened, &before, &after);
    check_as_planned("another weight");
}

static void paused_shows(const e2e_agent *agent, const char *service, const char *text, bool paused)
{
    CHECK_INT(e2e_cli("status", "--consul", agent->address, "-s", service, "--json", NULL), 0);
    CHECK((strstr(e2e_out, "\"paused\":null") == NULL) == paused);
    CHECK(!paused || strstr(e2e_out, text));
    e2e_cli("status", "--consul", agent->address, "-s", service, NULL);
    CHECK((strstr(e2e_out, "paused by") != NULL) == paused);
    CHECK(!paused || strstr(e2e_out, text));
}

/* Until the next call. */
static const char *paused_since(const e2e_agent *agent, const char *service)
{
    CHECK_INT(e2e_cli("status", "--consul", agent->address, "-s", service, "--json", NULL), 0);
    char *at = strstr(e2e_out, "\"paused\":{"), *since = at ? strstr(at, "\"since\":\"") : NULL;
    if (!since) return "";
    since[10 + strcspn(since + 9, "\"") - 1] = 0;
    return since + 9;
}

E2E(a_pause_holds_all_but_failures)
{
    e2e_agent *agent = e2e_shared_agent();
    const char *at = agent->address;
    static hands before, after;
    e2e_instance a = e2e_run(agent, "still", "a", "-p", "0..11", NULL);
    e2e_instance b = e2e_run(agent, "still", "b", NULL);
    if (!settle(agent, "still", 2, 12, &before)) return;
    paused_shows(agent, "still", "", false);
    CHECK_INT(e2e_cli("resume", "--consul", at, "-s", "still", NULL), 0);
    CHECK(strstr(e2e_out, "is not paused") != NULL);
    CHECK_INT(e2e_cli("pause", "--consul", at, "-s", "still", "--reason", "night \"shift\"", NULL), 0);
    CHECK(e2e_wait_said(&a, "paused by", 5000) && e2e_wait_said(&a, "night \"shift\"", 1000) && e2e_wait_said(&b, "paused by", 5000));
    CHECK_INT(e2e_cli("pause", "--consul", at, "-s", "still", NULL), 0);
    CHECK(strstr(e2e_out, "paused already") != NULL);
    paused_shows(agent, "still", "night", true);
    char since[60];
    snprintf(since, sizeof since, "%s", paused_since(agent, "still"));
    e2e_sleep(1100);        /* it is told to the second */
    CHECK_INT(e2e_cli("pause", "--consul", at, "-s", "still", "--reason", "night, part two", NULL), 0);
    CHECK(strstr(e2e_out, "paused already: the reason was replaced") != NULL);
    paused_shows(agent, "still", "night, part two", true);
    CHECK(*since);
    CHECK_STR(paused_since(agent, "still"), since);

    /* Two join: they get nothing, nobody's worker is touched, and that is all there is to wait for. */
    e2e_instance c = e2e_run(agent, "still", "c", NULL);
    e2e_run(agent, "still", "d", NULL);
    CHECK(e2e_wait_said(&c, "gives us 3; paused", 15000));
    CHECK_INT(e2e_cli("wait", "--consul", at, "-s", "still", "--timeout", "15s", NULL), 0);
    e2e_sleep(1000);
    CHECK_INT(e2e_status(agent, "still", &view), 0);
    CHECK(view.alive_count == 4 && !strcmp(e2e_spread(&view), "6 6 0 0"));
    hands_take(&after, "still");
    moves_between(&happened, &before, &after);
    CHECK_INT(happened.count, 0);
    plan_read(agent, "still", "--service", "still");
    CHECK(planned.count >= 6);
    moves resumed = planned;
    CHECK_INT(e2e_cli("plan", "--consul", at, "-s", "still", NULL), 0);
    CHECK(strstr(e2e_out, "before manager resume") != NULL);
    CHECK_INT(e2e_cli("why", "--consul", at, "-s", "still", resumed.at[0].partition, NULL), 0);
    CHECK(strstr(e2e_out, "while the service is paused") && strstr(e2e_out, "night"));

    /* A failure: what b had is taken over, joiners included; what a has stays. */
    kill(b.pid, SIGKILL);
    for (int64_t until = e2e_now_ms() + 20000; e2e_now_ms() < until; e2e_sleep(100))
        if (e2e_status(agent, "still", &view) == 0 && view.alive_count == 3 && e2e_workers("still", NULL) == 12) break;
    CHECK(view.converged && view.alive_count == 3);
    hands_take(&after, "still");
    moves_between(&happened, &before, &after);
    CHECK_INT(happened.count, 6);
    for (size_t i = 0; i < happened.count; i++) CHECK_STR(happened.at[i].from, "b");

    /* New partitions are taken, removed ones stop, the others stay. */
    before = after;
    CHECK_INT(e2e_cli("partitions", "--consul", at, "-s", "still", "2..13", NULL), 0);
    for (int64_t until = e2e_now_ms() + 20000; e2e_now_ms() < until; e2e_sleep(100))
        if (e2e_status(agent, "still", &view) == 0 && view.part_count == 12 && e2e_workers("still", NULL) == 12 && e2e_workers("still", "13")) break;
    hands_take(&after, "still");
    moves_between(&happened, &before, &after);
    CHECK_INT(happened.count, 4);

    /* Over: exactly what was planned. */
    plan_read(agent, "still", "--service", "still");
    before = after;
    CHECK_INT(e2e_cli("resume", "--consul", at, "-s", "still", NULL), 0);
    CHECK(e2e_wait_said(&a, "resumed", 5000));
    if (!settle(agent, "still", 3, 12, &after)) return;
    CHECK_STR(e2e_spread(&view), "4 4 4");
    moves_between(&happened, &before, &after);
    check_as_planned("resume");
    paused_shows(agent, "still", "", false);
}

E2E(the_breaker_holds_what_survives)
{
    e2e_agent *agent = e2e_shared_agent();
    static hands before, after;
    static const char *const ids[] = { "a", "b", "c", "d", "e" };
    e2e_instance in[5];
    for (int i = 0; i < 5; i++) in[i] = e2e_run(agent, "breaker", ids[i], "-p", "0..14", NULL);
    if (!settle(agent, "breaker", 5, 15, &before)) return;
    for (int i = 2; i < 5; i++) kill(in[i].pid, SIGKILL);
    CHECK(e2e_wait_said(&in[0], "circuit breaker", 15000) && e2e_wait_said(&in[1], "circuit breaker", 15000));
    for (int i = 2; i < 5; i++) in[i] = e2e_run(agent, "breaker", ids[i], NULL);
    CHECK(e2e_wait_workers("breaker", 15, 20000));
    e2e_status(agent, "breaker", &view);
    CHECK(strstr(e2e_out, "\"breaker\":true") != NULL);
    hands_take(&after, "breaker");
    moves_between(&happened, &before, &after);
    for (size_t i = 0; i < happened.count; i++) CHECK(happened.at[i].from[0] > 'b');
    /* All is still for two delays: it ends by itself, and the map holds again. */
    CHECK(e2e_wait_said(&in[0], "resumed", 40000));
    if (!settle(agent, "breaker", 5, 15, &after)) return;
    CHECK_STR(e2e_spread(&view), "3 3 3 3 3");
    for (size_t i = 0; i < before.count; i++) CHECK_STR(hand_of(&after, before.at[i].partition)->owner, before.at[i].owner);
}

E2E(a_rolling_restart_within_the_grace_moves_nothing)
{
    e2e_agent *agent = e2e_shared_agent();
    static hands before, after;
    static const char *const ids[] = { "a", "b", "c", "d", "e" };
    e2e_instance in[5];
    for (int i = 0; i < 5; i++) in[i] = e2e_run(agent, "rolling", ids[i], "-p", "0..14", "--rejoin-grace", "60s", NULL);
    if (!settle(agent, "rolling", 5, 15, &before)) return;
    for (int i = 0; i < 5; i++) {
        if (i % 2) kill(in[i].pid, SIGKILL);
        else CHECK_INT(e2e_stop(&in[i]), 0);        /* SIGTERM: with a grace that is a restart as well */
        CHECK(e2e_wait_workers("rolling", 12, 10000));
        in[i] = e2e_run(agent, "rolling", ids[i], "--rejoin-grace", "60s", NULL);
        if (!settle(agent, "rolling", 5, 15, &after)) return;
        for (size_t p = 0; p < before.count; p++) {
            const hand *now = hand_of(&after, before.at[p].partition);
            CHECK_STR(now->owner, before.at[p].owner);
            CHECK((now->pid == before.at[p].pid) == (strcmp(now->owner, ids[i]) != 0));     /* nobody else's worker was touched */
        }
        before = after;
    }
}

E2E(ten_that_start_together_cause_one_rebalance)
{
    e2e_agent *agent = e2e_shared_agent();
    static hands before, after;
    e2e_instance a = e2e_run(agent, "ten", "a", "-p", "0..43", NULL);
    if (!settle(agent, "ten", 1, 44, &before)) return;
    size_t maps = e2e_times(e2e_said(&a), "the map of"), lives = e2e_life_count;
    char id[8];
    for (int i = 0; i < 10; i++) {
        snprintf(id, sizeof id, "j%d", i);
        e2e_run(agent, "ten", id, "--settle", "6s", NULL);
    }
    if (!e2e_wait_settled(agent, "ten", 11, 44, &view, 60000)) { CHECK(!"settled on eleven"); return; }
    CHECK_STR(e2e_spread(&view), "4 4 4 4 4 4 4 4 4 4 4");
    hands_take(&after, "ten");
    moves_between(&happened, &before, &after);
    CHECK_INT(happened.count, 40);
    CHECK_INT(e2e_life_count - lives, 40);      /* each moved once, and nothing else was started */
    CHECK_INT(e2e_times(e2e_said(&a), "the map of") - maps, 1);
}

static int run(int argc, char **argv)
{
    RUN(what_is_planned_is_what_happens);
    RUN(a_pause_holds_all_but_failures);
    RUN(the_breaker_holds_what_survives);
    RUN(a_rolling_restart_within_the_grace_moves_nothing);
    RUN(ten_that_start_together_cause_one_rebalance);
    return test__end();
}

int main(int argc, char **argv) { return e2e_main(argc, argv, run); }
