/* End to end, when nothing goes wrong: sharing out, joining, leaving, changing the
 * set, restarting work, names, and the embedding of the library. */
#include "e2e.h"

/* Who works on what, before and after a change. */
typedef struct hands { char owner[E2E_PARTS_MAX][256]; pid_t pid[E2E_PARTS_MAX]; } hands;

static void hands_take(hands *h, const e2e_view *view)
{
    e2e_lives_read();
    for (size_t i = 0; i < view->part_count; i++) {
        snprintf(h->owner[i], sizeof h->owner[i], "%s", view->parts[i].owner);
        h->pid[i] = e2e_worker_pid(view->service, view->parts[i].name);
    }
}

static e2e_view view, later;

/* Of the partitions in both views: how many moved. One that did not kept its worker. */
static size_t moved(const hands *before)
{
    hands after;
    size_t n = 0;
    hands_take(&after, &later);
    for (size_t i = 0; i < view.part_count; i++)
        for (size_t k = 0; k < later.part_count; k++) {
            if (strcmp(view.parts[i].name, later.parts[k].name)) continue;
            bool same = !strcmp(before->owner[i], after.owner[k]);
            n += !same;
            if ((before->pid[i] == after.pid[k]) != same) {
                printf("partition %s: owner %s then %s, worker %d then %d\n", view.parts[i].name,
                       before->owner[i], after.owner[k], (int)before->pid[i], (int)after.pid[k]);
                CHECK(!"a worker was stopped although its partition stayed");
            }
        }
    return n;
}

E2E(sixteen_partitions_on_three_then_four_then_three)
{
    e2e_agent *agent = e2e_shared_agent();
    hands before;
    e2e_instance a = e2e_run(agent, "share", "a", "-p", "0..15", NULL);
    e2e_run(agent, "share", "b", "-p", "0..15", NULL);
    e2e_run(agent, "share", "c", NULL);   /* takes the set that stands */
    if (!e2e_wait_settled(agent, "share", 3, 16, &view, 20000)) { CHECK(!"settled on three"); return; }
    CHECK_STR(e2e_spread(&view), "6 5 5");
    CHECK_INT(e2e_registered(agent, "share"), 3);

    hands_take(&before, &view);
    int64_t from = e2e_now_ns();
    e2e_run(agent, "share", "d", NULL);
    if (!e2e_wait_settled(agent, "share", 4, 16, &later, 20000)) { CHECK(!"settled on four"); return; }
    CHECK_STR(e2e_spread(&later), "4 4 4 4");
    size_t n = moved(&before);
    CHECK(n >= 4 && n <= 8);
    printf("measured joining: %zu of 16 partitions moved, 4 are the least\n", n);
    CHECK(e2e_gaps("share", from, "joining") < E2E_DELAY_MS);

    /* SIGTERM: its work is stopped, all is released, it is gone from Consul. */
    view = later;
    hands_take(&before, &view);
    from = e2e_now_ns();
    CHECK_INT(e2e_stop(&a), 0);
    CHECK_INT(e2e_keys(agent, "share", "cluster/instances/a"), 0);
    CHECK_INT(e2e_registered(agent, "share"), 3);
    e2e_lives_read();
    for (size_t i = 0; i < view.part_count; i++)
        if (!strcmp(before.owner[i], "a")) CHECK(e2e_worker_pid("share", view.parts[i].name) != before.pid[i]);
    if (!e2e_wait_settled(agent, "share", 3, 16, &later, 15000)) { CHECK(!"settled without a"); return; }
    CHECK_STR(e2e_spread(&later), "6 5 5");
    CHECK(moved(&before) >= 4);
    CHECK(e2e_gaps("share", from, "SIGTERM") < E2E_DELAY_MS);
}

E2E(set_changes_while_running)
{
    e2e_agent *agent = e2e_shared_agent();
    hands before;
    e2e_run(agent, "sets", "a", "-p", "0..7", NULL);
    e2e_run(agent, "sets", "b", NULL);
    if (!e2e_wait_settled(agent, "sets", 2, 8, &view, 20000)) { CHECK(!"settled"); return; }
    hands_take(&before, &view);
    CHECK_INT(e2e_cli("partitions", "--consul", agent->address, "-s", "sets", "2..11", NULL), 0);
    if (!e2e_wait_settled(agent, "sets", 2, 10, &later, 20000)) { CHECK(!"settled on the new set"); return; }
    CHECK_STR(e2e_spread(&later), "5 5");
    CHECK_STR(e2e_owner_of(&later, "0"), "");
    CHECK(e2e_owner_of(&later, "11")[0]);
    CHECK_INT(e2e_workers("sets", "0"), 0);
    CHECK_INT(e2e_workers("sets", "1"), 0);
    moved(&before);

    /* An instance that is started with another list changes it for all. First the set
     * and then, settled, the members: in between a partition may go and come back. */
    e2e_run(agent, "sets", "c", "-p", "2..13", NULL);
    if (!e2e_wait_settled(agent, "sets", 3, 12, &later, 20000)) { CHECK(!"settled on the third set"); return; }
    CHECK_STR(e2e_spread(&later), "4 4 4");

    /* One that comes back with a list that was replaced does not undo that. */
    e2e_instance d = e2e_run(agent, "sets", "d", "-p", "2..11", NULL);
    if (!e2e_wait_settled(agent, "sets", 4, 12, &later, 20000)) { CHECK(!"settled on the third set still"); return; }
    CHECK_STR(e2e_spread(&later), "3 3 3 3");
    CHECK(strstr(e2e_said(&d), "was replaced") != NULL);
}

E2E(work_that_ends_is_restarted_with_back_off)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_mode = "exit";
    e2e_instance a = e2e_run(agent, "backoff", "a", "-p", "p", NULL);
    int64_t until = e2e_now_ms() + 12000;
    do { e2e_sleep(50); e2e_lives_read(); } while (e2e_life_count < 5 && e2e_now_ms() < until);
    CHECK(e2e_life_count >= 5);
    if (e2e_life_count < 5) return;
    int64_t pause[4];
    for (size_t i = 0; i < 4; i++) pause[i] = (e2e_lives[i + 1].start_ns - e2e_lives[i].start_ns) / 1000000;
    printf("measured back-off: pauses of %lld, %lld, %lld, %lld ms\n", (long long)pause[0], (long long)pause[1], (long long)pause[2], (long long)pause[3]);
    CHECK(pause[1] > pause[0] && pause[2] > pause[1] && pause[3] > pause[2] && pause[3] > 2 * pause[0]);
    CHECK(strstr(e2e_said(&a), "backoff") || strstr(e2e_said(&a), "back-off") || strstr(e2e_said(&a), "again in"));
    for (size_t i = 1; i < 5; i++) CHECK(e2e_lives[i].fence == e2e_lives[0].fence);
    CHECK_INT(e2e_stop(&a), 0);
}

E2E(once_leaves_it_ended_and_says_so)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_mode = "once";
    e2e_run(agent, "once", "a", "-p", "p,q", "--once", NULL);
    int64_t until = e2e_now_ms() + 12000;
    do {
        e2e_sleep(50);
        CHECK(e2e_cli("status", "--consul", agent->address, "-s", "once", NULL) != 64);
    } while (e2e_times(e2e_out, "ended") < 2 && e2e_now_ms() < until);
    CHECK(e2e_times(e2e_out, "ended") >= 2);
    e2e_sleep(1200);
    e2e_lives_read();
    CHECK_INT(e2e_life_count, 2);
    e2e_status(agent, "once", &view);
    CHECK_STR(e2e_owner_of(&view, "p"), "a");
}

/* SIGTERM ignored: killed when the grace is over, and only then handed over. And
 * work that runs away from its process group is still found. */
E2E(stubborn_work_and_work_that_forks_away)
{
    e2e_agent *agent = e2e_shared_agent();
    e2e_mode = "stubborn";
    e2e_instance a = e2e_run(agent, "stubborn", "a", "-p", "0..3", NULL);
    e2e_run(agent, "stubborn", "b", NULL);
    e2e_mode = "away";
    e2e_instance c = e2e_run(agent, "away", "c", "-p", "0..3", NULL);
    e2e_run(agent, "away", "d", NULL);
    CHECK(e2e_wait_settled(agent, "stubborn", 2, 4, &view, 20000));
    CHECK(e2e_wait_settled(agent, "away", 2, 4, &view, 20000));
    int64_t from = e2e_now_ns();
    kill(c.pid, SIGTERM);
    CHECK_INT(e2e_stop(&a), 0);
    CHECK_INT(e2e_wait_end(c.pid, 10000), 0);
    CHECK(e2e_wait_settled(agent, "stubborn", 1, 4, &view, 15000));
    CHECK(e2e_wait_settled(agent, "away", 1, 4, &view, 15000));
    e2e_gaps("stubborn", from, "SIGTERM, work that ignores it");
    e2e_gaps("away", from, "SIGTERM, work that forks away");
}

E2E(names_of_all_kinds)
{
    e2e_agent *agent = e2e_shared_agent();
    static char list[2000], longest[201];
    char path[300];
    const char *service = "s\xc3\xa9rvice one/%41", *first = "in stance/\xe2\x82\xac%2F";
    memset(longest, 'L', 200);
    snprintf(list, sizeof list, "a b\nx/y//z\n..\n100%%\n%%2F\n\xc3\xa4\xf0\x9f\x8c\x8a\n-p\n%s\n", longest);
    snprintf(path, sizeof path, "%s/list", e2e_dir);
    e2e_write_file(path, list);
    char at_path[302];
    snprintf(at_path, sizeof at_path, "@%s", path);
    e2e_run(agent, service, first, "-p", at_path, NULL);
    e2e_run(agent, service, longest, NULL);
    if (!e2e_wait_settled(agent, service, 2, 8, &view, 20000)) { CHECK(!"settled"); return; }
    CHECK_STR(view.service, service);
    CHECK_STR(e2e_spread(&view), "4 4");
    CHECK(e2e_member_of(&view, first) && e2e_member_of(&view, longest));
    static const char *const names[] = { "a b", "x/y//z", "..", "100%", "%2F", "\xc3\xa4\xf0\x9f\x8c\x8a", "-p" };
    for (size_t i = 0; i < MGR__COUNT(names); i++) CHECK_INT(e2e_workers(service, names[i]), 1);
    CHECK_INT(e2e_workers(service, longest), 1);
    CHECK_INT(e2e_cli("why", "--consul", agent->address, "-s", service, "x/y//z", NULL), 0);
    CHECK(strstr(e2e_out, "x/y//z") != NULL);
    CHECK_INT(e2e_cli("drain", "--consul", agent->address, "-s", service, first, NULL), 0);
    int64_t until = e2e_now_ms() + 10000;
    do e2e_status(agent, service, &view); while (strcmp(e2e_spread(&view), "8 0") && e2e_now_ms() < until);
    CHECK_STR(e2e_spread(&view), "8 0");
}

E2E(an_embedding_joins)
{
    e2e_agent *agent = e2e_shared_agent();
    char script[PATH_MAX + 40], out[300];
    static char text[20000];
    snprintf(script, sizeof script, "%.4000s", e2e_manager);
    for (int up = 0; up < 2; up++) if (strrchr(script, '/')) *strrchr(script, '/') = 0;
    strncat(script, "/tests/embed/embed.sh", sizeof script - strlen(script) - 1);
    snprintf(out, sizeof out, "%s/embed.out", e2e_dir);
    char *argv[] = { script, agent->address, NULL };
    int code = e2e_wait_end(e2e_spawn(argv, out, out), 90000);
    e2e_read_file(out, text, sizeof text);
    if (code != 0) printf("%s", text);
    CHECK_INT(code, 0);
    CHECK(e2e_times(text, "ok   embed_") >= 4);
    CHECK_INT(e2e_keys(agent, "embedded", "cluster/instances"), 0);
}

/* Placed by slots: a join, and the leave of one in the middle, move exactly what they must. */
E2E(slots_move_exactly_the_least)
{
    e2e_agent *agent = e2e_shared_agent();
    hands before;
    e2e_instance b;
    e2e_run(agent, "slots", "a", "-p", "0..15", "--placement", "slots", NULL);
    b = e2e_run(agent, "slots", "b", "-p", "0..15", "--placement", "slots", NULL);
    e2e_run(agent, "slots", "c", NULL);
    if (!e2e_wait_settled(agent, "slots", 3, 16, &view, 20000)) { CHECK(!"settled on three"); return; }
    CHECK_STR(e2e_spread(&view), "6 5 5");
    CHECK_INT(e2e_keys(agent, "slots", "cluster/slots/"), 3);

    hands_take(&before, &view);
    CHECK_INT(e2e_cli("plan", "--consul", agent->address, "-s", "slots", "--add", "d", "--json", NULL), 0);
    CHECK_INT(e2e_times(e2e_out, "\"to\":\"d\""), 4);
    CHECK_INT(e2e_times(e2e_out, "\"partition\""), 4);
    e2e_run(agent, "slots", "d", NULL);
    if (!e2e_wait_settled(agent, "slots", 4, 16, &later, 20000)) { CHECK(!"settled on four"); return; }
    CHECK_STR(e2e_spread(&later), "4 4 4 4");
    CHECK_INT(moved(&before), 4);

    view = later;
    hands_take(&before, &view);
    CHECK_INT(e2e_stop(&b), 0);
    if (!e2e_wait_settled(agent, "slots", 3, 16, &later, 20000)) { CHECK(!"settled on three again"); return; }
    CHECK_STR(e2e_spread(&later), "6 5 5");
    CHECK_INT(moved(&before), 4);
    CHECK_INT(e2e_keys(agent, "slots", "cluster/slots/"), 3);

    /* One that is killed whole loses its slot with its key; the next one takes it. */
    view = later;
    hands_take(&before, &view);
    e2e_instance e = e2e_run(agent, "slots", "e", NULL);
    if (!e2e_wait_settled(agent, "slots", 4, 16, &later, 20000)) { CHECK(!"settled on four again"); return; }
    CHECK_INT(moved(&before), 4);
    kill(e.pid, SIGKILL);
    e2e_wait_end(e.pid, 5000);
    CHECK(e2e_wait_settled(agent, "slots", 3, 16, &later, 20000));
    /* Its work is taken over at once, its key and slot are deleted a moment later. */
    for (int64_t until = e2e_now_ms() + 5000; e2e_keys(agent, "slots", "cluster/slots/") != 3 && e2e_now_ms() < until; ) e2e_sleep(20);
    CHECK_INT(e2e_keys(agent, "slots", "cluster/slots/"), 3);
}

static bool wait_member(const e2e_agent *agent, const char *service, const char *id, int ms)
{
    for (int64_t until = e2e_now_ms() + ms; e2e_now_ms() < until; e2e_sleep(80)) {
        e2e_status(agent, service, &later);
        const e2e_member *member = e2e_member_of(&later, id);
        if (member && member->alive) return true;
    }
    return false;
}

E2E(the_placement_changes_by_command_only)
{
    e2e_agent *agent = e2e_shared_agent();
    const char *at = agent->address;
    e2e_run(agent, "policy", "a", "-p", "0..7", NULL);
    CHECK(e2e_wait_settled(agent, "policy", 1, 8, &view, 20000));
    e2e_instance b = e2e_run(agent, "policy", "b", "-p", "0..7", "--placement", "slots", NULL);
    CHECK(e2e_wait_settled(agent, "policy", 2, 8, &view, 20000));
    CHECK_INT(e2e_times(e2e_said(&b), "not by \"slots\" as this instance was told: that stays"), 1);
    CHECK_INT(e2e_keys(agent, "policy", "cluster/slots/"), 0);
    CHECK_INT(e2e_cli("plan", "--consul", at, "-s", "policy", "--placement", "slots", "--json", NULL), 0);
    size_t planned = e2e_times(e2e_out, "\"partition\"");
    hands before;
    hands_take(&before, &view);
    CHECK_INT(e2e_cli("partitions", "--consul", at, "-s", "policy", "--placement", "slots", NULL), 0);
    CHECK(strstr(e2e_out, "policy is placed by slots now") != NULL);
    CHECK(e2e_wait_said(&b, "placed by \"slots\" from now on", 10000));
    CHECK(e2e_wait_settled(agent, "policy", 2, 8, &later, 20000));
    CHECK_INT(moved(&before), planned);
    int64_t until = e2e_now_ms() + 5000;
    while (e2e_keys(agent, "policy", "cluster/slots/") != 2 && e2e_now_ms() < until) e2e_sleep(50);
    CHECK_INT(e2e_keys(agent, "policy", "cluster/slots/"), 2);
    CHECK_INT(e2e_cli("status", "--consul", at, "-s", "policy", NULL), 0);
    CHECK(strstr(e2e_out, "SLOT") && strstr(e2e_out, "placed by slots"));

    /* Weights are refused by the joiner itself, and by the command. */
    e2e_instance heavy = e2e_run(agent, "policy", "heavy", "--weight", "2", NULL);
    CHECK_INT(e2e_wait_end(heavy.pid, 15000), 78);
    CHECK(strstr(e2e_said(&heavy), "equal weights") != NULL);
    CHECK_INT(e2e_cli("plan", "--consul", at, "-s", "policy", "--add", "c:2", NULL), 78);
    CHECK_INT(e2e_cli("partitions", "--consul", at, "-s", "policy", "0..9", "--placement", "rush", NULL), 0);
    CHECK(e2e_wait_settled(agent, "policy", 2, 10, &later, 20000));
    e2e_run(agent, "policy", "heavy", "--weight", "2", NULL);
    CHECK(wait_member(agent, "policy", "heavy", 15000));
    CHECK_INT(e2e_cli("partitions", "--consul", at, "-s", "policy", "--placement", "slots", NULL), 78);
    CHECK(e2e_lines(e2e_err) == 1 && strstr(e2e_err, "equal weights"));
}

/* What a newer program has put in force: refused by name, and left as it is. */
E2E(an_unknown_placement_is_refused)
{
    e2e_agent *agent = e2e_shared_agent();
    static char marker[4000];
    e2e_instance a = e2e_run(agent, "newer", "a", "-p", "0..3", "--placement", "slots", NULL);
    CHECK(e2e_wait_settled(agent, "newer", 1, 4, &view, 20000));
    CHECK_INT(e2e_http(agent, "GET", "/v1/kv/manager/newer/cluster/partitions?raw", ""), 200);
    char *version = strstr(e2e_out, "\"placement_version\":1,");
    CHECK(version != NULL);
    if (!version) return;
    *version = 0;
    snprintf(marker, sizeof marker, "%.1500s\"placement_version\":99,%.1500s", e2e_out, version + strlen("\"placement_version\":1,"));
    CHECK_INT(e2e_http(agent, "PUT", "/v1/kv/manager/newer/cluster/partitions", marker), 200);
    e2e_instance b = e2e_run(agent, "newer", "b", "-p", "0..3", NULL);
    CHECK_INT(e2e_wait_end(b.pid, 15000), 78);
    CHECK(strstr(e2e_said(&b), "placed by policy \"slots\" version 99") != NULL);
    CHECK(e2e_wait_said(&a, "version 99 from now on", 5000));
    CHECK_INT(e2e_workers("newer", NULL), 4);       /* what runs goes on */
    CHECK_INT(e2e_cli("status", "--consul", agent->address, "-s", "newer", NULL), 78);
    CHECK(e2e_lines(e2e_err) == 1 && strstr(e2e_err, "version 99"));
    CHECK_INT(e2e_http(agent, "GET", "/v1/kv/manager/newer/cluster/partitions?raw", ""), 200);
    CHECK_STR(e2e_out, marker);
    CHECK_INT(e2e_cli("partitions", "--consul", agent->address, "-s", "newer", "--placement", "rush", NULL), 0);
    CHECK(e2e_wait_settled(agent, "newer", 1, 4, &view, 20000));
}

static int run(int argc, char **argv)
{
    RUN(sixteen_partitions_on_three_then_four_then_three);
    RUN(set_changes_while_running);
    RUN(work_that_ends_is_restarted_with_back_off);
    RUN(once_leaves_it_ended_and_says_so);
    RUN(stubborn_work_and_work_that_forks_away);
    RUN(names_of_all_kinds);
    RUN(an_embedding_joins);
    RUN(slots_move_exactly_the_least);
    RUN(the_placement_changes_by_command_only);
    RUN(an_unknown_placement_is_refused);
    return test__end();
}

int main(int argc, char **argv) { return e2e_main(argc, argv, run); }
