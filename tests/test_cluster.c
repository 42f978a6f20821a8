/* [cluster]: the model (sets, members, markers, pictures), the setter that puts a
 * set in force, and the core, driven by hand against devconsul's pure store.
 *
 * The executor here is as small as can be: it serves requests 5 ms after they were
 * sent, unless a test holds or loses them; work ends at once when told to, unless a
 * test keeps it. At each start it checks that nobody else works on the partition
 * and that the fence has grown (invariant 1), whatever the test is about. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "../examples/devconsul.h"
#include "test.h"

enum { LEASE_MS = 3000, MARGIN_MS = 900, GRACE_MS = 1000, DELAY_MS = 4000, TTL_MS = 10000, STEP_MS = 5, BOXES = 4, WORKS = 80 };

typedef struct work { char name[16]; uint64_t fence; bool alive; } work;

typedef struct box {            /* one instance: a core and its executor */
    mgr__cluster core;
    mgr__heap    heap;
    bool         alive, keeps_work, closed;
    bool         slow_keeper;                   /* a test says when the new one is ready */
    bool         blocked[MGR__LANE_COUNT];      /* requests of this lane stay unanswered */
    mgr__task    hold;                          /* so do those of this task */
    char         id[16];
    int64_t      lease, wake;
    mgr_result   result;                        /* once it has left */
    bool         proves;                        /* answers MGR__ACT_PROVE, with: */
    mgr__verdict verdict;
    work         works[WORKS];
    mgr__buf     log, asked;                    /* what it did, and asked, line by line */
} box;

typedef struct world {
    mgr__heap heap;
    dc_store  store;
    int64_t   now;
    box       boxes[BOXES];
    mgr__kv   kvs[512];
    uint64_t  top_fence[WORKS];                 /* by the partition's number */
} world;

static world *the_world(void)
{
    world *w = (world *)calloc(1, sizeof *w);
    if (!w) abort();
    w->heap = mgr__heap_make(NULL);
    w->now = 100000;
    dc_open(&w->store, &w->heap, 5);
    return w;
}

static void world_end(world *w)
{
    for (int i = 0; i < BOXES; i++) {
        box *b = &w->boxes[i];
        if (b->alive) mgr__cluster_close(&b->core);
        if (b->log.heap) mgr__buf_free(&b->log);
        if (b->asked.heap) mgr__buf_free(&b->asked);
    }
    dc_close(&w->store);
    free(w);
}

/* ---- the store, by hand ---- */

static mgr__op op_of(mgr__verb verb, const char *key, const char *value, const char *session, uint64_t index)
{
    mgr__op op;
    op.verb = verb;
    op.key = mgr__str_of(key);
    op.value = mgr__str_of(value);
    op.session = mgr__str_of(session);
    op.index = index;
    return op;
}

static bool store_do(world *w, mgr__verb verb, const char *key, const char *value, const char *session, uint64_t index)
{
    char whole[200];
    uint32_t failed[MGR__TXN_OPS_MAX];
    size_t count = 8, failed_count;
    snprintf(whole, sizeof whole, "manager/svc/%s", key);
    mgr__op op = op_of(verb, whole, value, session, index);
    return dc_txn(&w->store, w->now, &op, 1, w->kvs, &count, failed, &failed_count);
}

static void put(world *w, const char *key, const char *value) { CHECK(store_do(w, MGR__SET, key, value, "", 0)); }

/* The key's entry; modify_index 0: there is none. */
static mgr__kv look(world *w, const char *key)
{
    mgr__kv none;
    memset(&none, 0, sizeof none);
    return store_do(w, MGR__GET, key, "", "", 0) ? w->kvs[0] : none;
}

static bool value_has(world *w, const char *key, const char *part)
{
    mgr__kv kv = look(w, key);
    for (size_t i = 0; kv.modify_index && i + strlen(part) <= kv.value.len; i++) if (memcmp(kv.value.at + i, part, strlen(part)) == 0) return true;
    return false;
}

static void remove_key(world *w, const char *key) { CHECK(store_do(w, MGR__DELETE_CAS, key, "", "", look(w, key).modify_index)); }

static void session_of(world *w, const char *name, char id[40])
{
    const char *made = dc_session_create(&w->store, w->now, mgr__str_of(name), 60000, 0, NULL, 0);
    CHECK(made != NULL);
    mgr__copy_text(id, 40, mgr__str_of(made));
}

/* ---- what the servers do with a request ---- */

static void apply_register(world *w, const mgr__request *r)
{
    dc_service_desc service;
    dc_check_desc check;
    memset(&service, 0, sizeof service);
    memset(&check, 0, sizeof check);
    service.id = service.name = r->name;
    service.address = service.tags = service.meta = check.notes = mgr__str_of("");
    dc_service_register(&w->store, w->now, &service);
    check.id = check.name = check.service_id = r->name;
    check.ttl_ms = DELAY_MS + 2000;
    dc_check_register(&w->store, w->now, &check);
}

static void apply_sessions(world *w, mgr__answer *a)
{
    a->kvs = w->kvs;
    for (; a->kv_count < dc_session_count(&w->store) && a->kv_count < MGR__COUNT(w->kvs); a->kv_count++) {
        memset(&w->kvs[a->kv_count], 0, sizeof w->kvs[0]);
        w->kvs[a->kv_count].key = mgr__str_of(dc_session_at(&w->store, a->kv_count)->name);
        w->kvs[a->kv_count].session = mgr__str_of(dc_session_at(&w->store, a->kv_count)->id);
    }
}

/* The answer's views live until the store's next change. */
static mgr__answer apply(world *w, const mgr__request *r)
{
    mgr__answer a;
    memset(&a, 0, sizeof a);
    a.text = a.session = a.node = mgr__str_of("");
    switch (r->ask) {
    case MGR__ASK_TXN: {
        size_t count = MGR__COUNT(w->kvs);
        bool done = dc_txn(&w->store, w->now, r->ops, r->op_count, w->kvs, &count, a.failed, &a.failed_count);
        a.outcome = done ? MGR__OUTCOME_OK : MGR__OUTCOME_CONFLICT;
        if (done) { a.kvs = w->kvs; a.kv_count = count; }
        break;
    }
    case MGR__ASK_WATCH: case MGR__ASK_LIST:
        a.kvs = w->kvs;
        a.kv_count = dc_list(&w->store, r->key, w->kvs, MGR__COUNT(w->kvs));
        a.index = dc_prefix_index(&w->store, r->key);
        break;
    case MGR__ASK_SESSION_CREATE: {
        const char *id = dc_session_create(&w->store, w->now, r->name, r->session_ttl_ms, 0, &r->check_id, 1);
        a.outcome = id ? MGR__OUTCOME_OK : MGR__OUTCOME_UNKNOWN;
        a.session = mgr__str_of(id);
        break;
    }
    case MGR__ASK_SESSION_RENEW: a.outcome = dc_session_renew(&w->store, w->now, r->session) ? MGR__OUTCOME_OK : MGR__OUTCOME_NOT_FOUND; break;
    case MGR__ASK_SESSION_DESTROY: dc_session_destroy(&w->store, w->now, r->session); break;
    case MGR__ASK_SESSION_LIST: apply_sessions(w, &a); break;
    case MGR__ASK_AGENT_SELF: a.node = mgr__str_of("node"); break;
    case MGR__ASK_SERVICE_REGISTER: apply_register(w, r); break;
    case MGR__ASK_SERVICE_DEREGISTER: case MGR__ASK_CATALOG_DEREGISTER: dc_service_deregister(&w->store, w->now, r->name); break;
    case MGR__ASK_CHECK_UPDATE: a.outcome = dc_check_update(&w->store, w->now, r->name, DC_PASSING, mgr__str_of("")) ? MGR__OUTCOME_OK : MGR__OUTCOME_UNKNOWN; break;
    case MGR__ASK_AGENT_JOIN: case MGR__ASK_CHECK_REGISTER: case MGR__ASK_CHECK_DEREGISTER: case MGR__ASK_CHECK_LIST: break;
    }
    return a;
}

/* ---- the executor ---- */

static void box_write_down(box *b, const mgr__request *r)
{
    static const char *const asks[] = { "txn", "watch", "list", "create", "renew", "destroy", "sessions", "self", "agent-join", "register", "deregister", "catalog-deregister", "", "", "pass", "" };
    static const char *const verbs[] = { "set", "cas", "lock", "unlock", "delete", "check-index", "check-session", "absent", "get", "get-tree" };
    mgr__buf_text(&b->asked, asks[r->ask]);
    for (size_t i = 0; i < r->op_count; i++) {
        mgr__str key = mgr__str_skip(r->ops[i].key, strlen("manager/svc/"));
        mgr__buf_printf(&b->asked, " %s %.*s;", verbs[r->ops[i].verb], (int)key.len, key.at);
    }
    if (r->session.len) mgr__buf_printf(&b->asked, " %.*s", (int)r->session.len, r->session.at);
    mgr__buf_char(&b->asked, '\n');
}

static work *box_work(box *b, const char *name)
{
    int at = atoi(name);
    return &b->works[at >= 0 && at < WORKS ? at : 0];
}

static void box_pump(world *w, box *b);

static void box_gone(world *w, box *b, const char *name)
{
    mgr__part *part = mgr__cluster_part(&b->core, mgr__str_of(name));
    CHECK(part != NULL);
    box_work(b, name)->alive = false;
    if (part) mgr__cluster_gone(&b->core, part);
    box_pump(w, b);
}

static void box_begin(world *w, box *b, mgr__part *part)
{
    work *mine = box_work(b, part->name.at);
    mgr__buf_printf(&b->log, "begin %s\n", part->name.at);
    for (int i = 0; i < BOXES; i++)
        if (box_work(&w->boxes[i], part->name.at)->alive) { printf("partition %s: %s starts, and %s works\n", part->name.at, b->id, w->boxes[i].id); CHECK(!"two owners"); }
    if (part->fence <= w->top_fence[mine - b->works]) CHECK(!"a fence did not grow");
    w->top_fence[mine - b->works] = part->fence;
    mine->alive = true;
    mine->fence = part->fence;
}

static void box_stop(box *b, const mgr__action *a)
{
    const char *name = a->part->name.at;
    if (a->kind == MGR__ACT_WORK_KILL) mgr__buf_printf(&b->log, "kill %s\n", name);
    else mgr__buf_printf(&b->log, "stop %s within %u\n", name, (unsigned)a->ms);
    if (b->keeps_work && box_work(b, name)->alive) return;
    box_work(b, name)->alive = false;
    mgr__cluster_gone(&b->core, a->part);
}

static void box_act(world *w, box *b, const mgr__action *a)
{
    switch (a->kind) {
    case MGR__ACT_REQUEST: box_write_down(b, &b->core.errands[a->lane].request); break;
    case MGR__ACT_WORK_BEGIN: box_begin(w, b, a->part); break;
    case MGR__ACT_WORK_STOP: case MGR__ACT_WORK_KILL: box_stop(b, a); break;
    case MGR__ACT_LEASE:
        if (b->closed) mgr__cluster_over(&b->core, MGR_EVENT_LEASE_LOST, "the keeper closed the lease", w->now);
        else b->lease = a->at;
        break;
    case MGR__ACT_LIFE: mgr__buf_text(&b->log, "life\n"); break;
    case MGR__ACT_FRESH_KEEPER: mgr__buf_text(&b->log, "fresh\n"); b->closed = false; if (!b->slow_keeper) mgr__cluster_ready(&b->core); break;
    case MGR__ACT_EVENT:
        if (a->part && !strstr(a->text, a->part->name.at)) CHECK(!"an event names its partition");
        mgr__buf_printf(&b->log, "%s: %s\n", mgr_event_word(a->event), a->text);
        break;
    case MGR__ACT_PROVE:
        mgr__buf_printf(&b->log, "prove %s\n", a->text);
        if (b->proves) mgr__cluster_proved(&b->core, mgr__str_of(a->instance), b->verdict, "the test says so", w->now);
        break;
    case MGR__ACT_LEFT: b->alive = false; b->result = a->result; break;
    }
}

static void box_pump(world *w, box *b)
{
    mgr__cluster *c = &b->core;
    do {
        mgr__cluster_pump(c, w->now);
        for (size_t i = 0; i < c->action_count && b->alive; i++) { mgr__action a = c->actions[i]; box_act(w, b, &a); }
        c->action_count = 0;
        if (b->alive) mgr__cluster_pump(c, w->now);
    } while (b->alive && c->action_count && !c->failed);
    if (!b->alive) { mgr__cluster_close(c); return; }
    b->wake = mgr__cluster_next(c, w->now);
}

static mgr__answer answer_of(mgr__outcome outcome)
{
    mgr__answer a;
    memset(&a, 0, sizeof a);
    a.outcome = outcome;
    a.text = a.session = a.node = mgr__str_of("");
    return a;
}

static void box_answer(world *w, box *b, mgr__lane lane, const mgr__answer *a)
{
    mgr__cluster_answer(&b->core, lane, a, w->now);
    box_pump(w, b);
}

static void box_serve(world *w, box *b, mgr__lane lane)
{
    mgr__errand *e = &b->core.errands[lane];
    if (!b->alive || !e->out || b->blocked[lane] || (b->hold && e->task == b->hold)) return;
    const mgr__request *r = &e->request;
    bool waits = r->ask == MGR__ASK_WATCH && r->index && dc_prefix_index(&w->store, r->key) <= r->index;
    if (waits && w->now < e->sent_at + (int64_t)r->wait_ms) return;
    mgr__answer a = apply(w, r);
    box_answer(w, b, lane, &a);
}

static void run(world *w, int64_t ms)
{
    for (int64_t until = w->now + ms; w->now < until; w->now += STEP_MS) {
        dc_tick(&w->store, w->now);
        for (int i = 0; i < BOXES; i++) {
            box *b = &w->boxes[i];
            for (int lane = 0; lane < MGR__LANE_COUNT; lane++) box_serve(w, b, (mgr__lane)lane);
            if (b->alive && b->wake <= w->now) box_pump(w, b);
        }
    }
}

static const char *const numbers[] = { "0", "1", "2", "3", "4", "5", "6", "7" };

static mgr__cluster_config config_of(const char *id, size_t part_count)
{
    mgr__cluster_config config;
    memset(&config, 0, sizeof config);
    config.service_id = config.service_name = mgr__str_of("svc");
    config.instance_id = mgr__str_of(id);
    config.kv_prefix = mgr__str_of("manager");
    config.partitions = part_count ? numbers : NULL;
    config.partition_count = part_count;
    config.weight = 1;
    config.lease_ms = LEASE_MS;
    config.kill_margin_ms = MARGIN_MS;
    config.stop_grace_ms = GRACE_MS;
    config.delay_ms = DELAY_MS;
    config.session_ttl_ms = TTL_MS;
    config.settle_ms = 100;
    config.seed = mgr__hash(mgr__str_of(id));
    return config;
}

static box *box_open_as(world *w, int at, const char *id, const mgr__cluster_config *config)
{
    box *b = &w->boxes[at];
    mgr__buf error;
    if (!b->log.heap) { mgr__buf_init(&b->log, &w->heap, 1u << 22); mgr__buf_init(&b->asked, &w->heap, 1u << 22); }
    mgr__buf_clear(&b->log);
    mgr__buf_clear(&b->asked);
    mgr__copy_text(b->id, sizeof b->id, mgr__str_of(id));
    if (!b->heap.with.resize) b->heap = w->heap;
    mgr__buf_init(&error, &w->heap, 4096);
    b->alive = mgr__cluster_open(&b->core, &b->heap, config, w->now, &error) == MGR_OK;
    mgr__buf_free(&error);
    if (b->alive) box_pump(w, b);
    return b;
}

static box *box_open(world *w, int at, const char *id, size_t part_count)
{
    mgr__cluster_config config = config_of(id, part_count);
    return box_open_as(w, at, id, &config);
}

/* Its program, keeper and guard are gone, and all work with them; nobody says so. */
static void box_dies(box *b)
{
    b->alive = false;
    mgr__cluster_close(&b->core);
    for (int i = 0; i < WORKS; i++) b->works[i].alive = false;
}

static bool works(const box *b, int part) { return b->works[part].alive; }

static int works_count(const box *b)
{
    int count = 0;
    for (int i = 0; i < WORKS; i++) count += b->works[i].alive;
    return count;
}

static mgr__part *part_of(box *b, const char *name) { return mgr__cluster_part(&b->core, mgr__str_of(name)); }
static bool said(const box *b, const char *text) { return strstr(mgr__buf_cstr(&b->log), text) != NULL; }
static bool asked(const box *b, const char *text) { return strstr(mgr__buf_cstr(&b->asked), text) != NULL; }

static int times(const mgr__buf *in, const char *text)
{
    int count = 0;
    for (const char *at = mgr__buf_cstr(in); (at = strstr(at, text)) != NULL; at++) count++;
    return count;
}

static bool in_order(const mgr__buf *in, const char *first, const char *second)
{
    const char *a = strstr(mgr__buf_cstr(in), first), *b = strstr(mgr__buf_cstr(in), second);
    return a && b && a < b;
}

static void forget(box *b) { mgr__buf_clear(&b->log); mgr__buf_clear(&b->asked); }

/* ---- sets ---- */

static bool set_same(const mgr__set *a, const mgr__set *b)
{
    bool same = a->count == b->count && strcmp(a->hash, b->hash) == 0;
    for (size_t i = 0; same && i < a->count; i++) same = mgr__str_eq(a->names[i], b->names[i]);
    return same;
}

static void set_round(const char *const *names, size_t count, const char *text)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__set set, back;
    mgr__str bad;
    mgr__buf out;
    mgr__buf_init(&out, &heap, 1u << 22);
    CHECK(mgr__set_make(&set, &heap, names, count, &bad) == NULL);
    mgr__set_write(&set, &heap, &out);
    if (text) CHECK_STR(mgr__buf_cstr(&out), text);
    CHECK(mgr__set_read(&back, &heap, mgr__buf_view(&out)));
    CHECK(set_same(&set, &back));
    mgr__set_free(&set);
    mgr__set_free(&back);
    mgr__buf_free(&out);
}

TEST(sets_are_written_with_ranges_and_read_back)
{
    static const char *const mixed[] = { "b", "2", "1", "3", "10", "a", "12", "11", "7" };
    static const char *const odd[] = { "00", "01", "0", "1", "007", "-1", "1e3", "+1", "999999999", "1000000000", "18446744073709551616", " 1", "1 ", "\"", "\xc3\xa9" };
    set_round(mixed, MGR__COUNT(mixed), "[\"a\",\"b\",[1,3],[7,7],[10,12]]");
    set_round(odd, MGR__COUNT(odd), NULL);      /* what does not print as the same number again stays a name */
    set_round(numbers, 1, "[[0,0]]");
    set_round(numbers, 0, "[]");
    CHECK_INT(mgr__name_number(mgr__str_of("00")), -1);
    CHECK_INT(mgr__name_number(mgr__str_of("0")), 0);
    CHECK_INT(mgr__name_number(mgr__str_of("")), -1);
}

TEST(a_set_may_have_65536_numbers)
{
    enum { MANY = MGR_PARTITION_COUNT_MAX };
    mgr__heap heap = mgr__heap_make(NULL);
    char (*texts)[8] = (char (*)[8])calloc(MANY + 1, sizeof *texts);
    const char **names = (const char **)calloc(MANY + 1, sizeof *names);
    mgr__set set;
    mgr__str bad;
    if (!texts || !names) abort();
    for (int i = 0; i <= MANY; i++) { snprintf(texts[i], sizeof texts[i], "%d", MANY - i); names[i] = texts[i]; }
    set_round(names + 1, MANY, "[[0,65535]]");
    const char *fault = mgr__set_make(&set, &heap, names, MANY + 1, &bad);
    CHECK(fault && strstr(fault, "MGR_PARTITION_COUNT_MAX"));
    mgr__set_free(&set);
    free(texts);
    free(names);
}

TEST(malformed_sets_are_refused)
{
    static const char *const bad[] = {
        "", "{}", "null", "[", "[1", "\"a\"", "[\"a\",\"a\"]", "[\"\"]", "[[0,1],[1,2]]", "[[3,2]]", "[[-1,2]]", "[[0]]", "[[0,65536]]",
        "[[0,9223372036854775807]]", "[[0,65535],\"x\"]", "[\"a\"]x", "[[0,1]", "[\"\\u0000\"]", "[\"a\\n\"]", "[{}]", "[1]", "[true]", "[[\"a\",\"b\"]]",
        "[[0,65535],[0,65535],[0,65535]]"
    };
    mgr__heap heap = mgr__heap_make(NULL);
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        mgr__set set;
        if (mgr__set_read(&set, &heap, mgr__str_of(bad[i]))) { printf("%s was taken\n", bad[i]); CHECK(!"refused"); mgr__set_free(&set); }
    }
}

TEST(a_set_s_hash_depends_on_its_names_alone)
{
    static const char *const one[] = { "a", "b", "c" }, *const two[] = { "c", "a", "b" }, *const other[] = { "a", "bc" }, *const less[] = { "a", "b" };
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__set a, b, c, d;
    mgr__str bad;
    mgr__set_make(&a, &heap, one, 3, &bad);
    mgr__set_make(&b, &heap, two, 3, &bad);
    mgr__set_make(&c, &heap, other, 2, &bad);
    mgr__set_make(&d, &heap, less, 2, &bad);
    CHECK(set_same(&a, &b));
    CHECK(strcmp(a.hash, c.hash) && strcmp(a.hash, d.hash) && strcmp(c.hash, d.hash));
    CHECK_INT(strlen(a.hash), 16);
    CHECK(mgr__set_has(&a, mgr__str_of("c")) && !mgr__set_has(&a, mgr__str_of("d")));
    mgr__set_free(&a); mgr__set_free(&b); mgr__set_free(&c); mgr__set_free(&d);
}

static void set_faults(const char *first, const char *second, const char *bad_name, const char *why)
{
    mgr__heap heap = mgr__heap_make(NULL);
    const char *names[2];
    mgr__set set;
    mgr__str bad;
    names[0] = first;
    names[1] = second;
    CHECK_STR(mgr__set_make(&set, &heap, names, 2, &bad), why);
    CHECK(mgr__str_is(bad, bad_name));
    mgr__set_free(&set);
}

TEST(bad_partition_names_are_named)
{
    set_faults("a", "a", "a", "is listed twice");
    set_faults("a", "", "", "is empty");
    set_faults("a", "b\tc", "b\tc", "has a control character");
    set_faults("\xff", "b", "\xff", "is not UTF-8");
}

/* ---- readers ---- */

static mgr__kv kv_of(const char *key, const char *value, const char *session, uint64_t index)
{
    mgr__kv kv;
    memset(&kv, 0, sizeof kv);
    kv.key = mgr__str_of(key);
    kv.value = mgr__str_of(value);
    kv.session = mgr__str_of(session);
    kv.create_index = kv.modify_index = index;
    return kv;
}

TEST(markers_are_read_back_and_unknown_fields_skipped)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__buf out, scratch;
    mgr__marker marker, back;
    mgr__buf_init(&out, &heap, 4096);
    mgr__buf_init(&scratch, &heap, 4096);
    memset(&marker, 0, sizeof marker);
    mgr__copy_text(marker.hash, sizeof marker.hash, mgr__str_of("0123456789abcdef"));
    marker.version = 3; marker.count = 9; marker.delay_max_ms = 16000; marker.fence_base = UINT64_MAX / 2;
    mgr__marker_write(&marker, &out);
    mgr__kv kv = kv_of("", mgr__buf_cstr(&out), "", 7);
    CHECK(mgr__marker_read(&back, &kv, &scratch));
    CHECK_STR(back.hash, marker.hash);
    CHECK(back.exists && back.version == 3 && back.count == 9 && back.delay_max_ms == 16000 && back.fence_base == UINT64_MAX / 2 && back.modify_index == 7);
    kv = kv_of("", "{\"new\":{\"a\":[1,{}]},\"version\":5,\"hash\":\"x\"}", "", 8);
    CHECK(mgr__marker_read(&back, &kv, &scratch) && back.version == 5);
    static const char *const bad[] = { "", "[]", "{\"version\":", "{\"version\":\"x\"}", "{}x", "null" };
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        kv = kv_of("", bad[i], "", 9);
        if (mgr__marker_read(&back, &kv, &scratch)) { printf("%s was taken\n", bad[i]); CHECK(!"refused"); }
        CHECK(!back.exists && back.modify_index == 9);
    }
    mgr__buf_free(&out);
    mgr__buf_free(&scratch);
}

TEST(holdings_that_cannot_be_read_count_as_lost)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__arena arena;
    mgr__buf out, scratch;
    mgr__holding owner, back;
    mgr__arena_init(&arena, &heap);
    mgr__buf_init(&out, &heap, 4096);
    mgr__buf_init(&scratch, &heap, 4096);
    memset(&owner, 0, sizeof owner);
    owner.released = true;
    owner.life = mgr__str_of("L");
    owner.instance = mgr__str_of("i \"1\"");
    owner.last_exit = mgr__str_of("signal 9");
    owner.since_ms = 1; owner.delay_ms = 2; owner.attempts = 3; owner.serial = 4; owner.fence = 5; owner.ended = true;
    mgr__holding_write(&owner, &out);
    mgr__kv kv = kv_of("", mgr__buf_cstr(&out), "S", 6);
    mgr__holding_read(&back, &kv, &scratch, &arena);
    CHECK(back.exists && back.released && back.ended && back.since_ms == 1 && back.delay_ms == 2 && back.attempts == 3 && back.serial == 4 && back.fence == 5 && back.modify_index == 6);
    CHECK(mgr__str_is(back.life, "L") && mgr__str_is(back.instance, "i \"1\"") && mgr__str_is(back.last_exit, "signal 9") && mgr__str_is(back.session, "S"));
    static const char *const bad[] = { "", "released", "[]", "{\"state\":\"released\"", "{\"state\":\"released\"}x", "{\"state\":\"released\",\"delay\":-}", "{\"state\":[]}", "{\"state\":\"held\"}" };
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        kv = kv_of("", bad[i], "", 6);
        mgr__holding_read(&back, &kv, &scratch, &arena);
        if (back.released) { printf("%s counts as released\n", bad[i]); CHECK(!"released"); }
        CHECK(back.exists);
    }
    mgr__buf_free(&out);
    mgr__buf_free(&scratch);
    mgr__arena_free(&arena);
}

TEST(wishes_are_read_back_and_bad_ones_wish_nothing)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__arena arena;
    mgr__buf out, scratch;
    mgr__wish wish, back;
    mgr__arena_init(&arena, &heap);
    mgr__buf_init(&out, &heap, 4096);
    mgr__buf_init(&scratch, &heap, 4096);
    wish.drain = true;
    wish.evict = mgr__str_of("L");
    mgr__wish_write(&wish, &out);
    CHECK(mgr__wish_read(&back, mgr__buf_view(&out), &scratch, &arena) && back.drain && mgr__str_is(back.evict, "L"));
    CHECK(mgr__wish_read(&back, mgr__str_of("{\"x\":[1],\"drain\":false}"), &scratch, &arena) && !back.drain && back.evict.len == 0);
    CHECK(!mgr__wish_read(&back, mgr__str_of("drain"), &scratch, &arena));
    CHECK(!mgr__wish_read(&back, mgr__str_of("{\"drain\":1}"), &scratch, &arena));
    mgr__buf_free(&out);
    mgr__buf_free(&scratch);
    mgr__arena_free(&arena);
}

static bool picture_of(mgr__picture *picture, mgr__heap *heap, const mgr__kv *kvs, size_t count)
{
    mgr__root root;
    CHECK(mgr__root_make(&root, heap, mgr__str_of("manager"), mgr__str_of("svc")));
    return mgr__picture_read(picture, heap, &root, 50, kvs, count);
}

#define IN "manager/svc/cluster/"

TEST(a_picture_takes_what_is_ours_and_skips_the_rest)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__picture p;
    mgr__kv kvs[12];
    size_t n = 0;
    kvs[n++] = kv_of(IN "dead/L2", "{}", "", 3);
    kvs[n++] = kv_of(IN "instances/b", "{\"life\":\"L1\",\"weight\":99999,\"refuses\":[\"1\",\"2\",\"3\",\"4\",\"5\"],\"new\":{}}", "L1", 5);
    kvs[n++] = kv_of(IN "instances/a%20x", "{\"life\":\"L0\",\"weight\":2,\"lease\":3000,\"draining\":true}", "", 4);
    kvs[n++] = kv_of(IN "instances/a.x", "{}", "S", 6);                  /* no name that escape writes */
    kvs[n++] = kv_of(IN "instances/c", "{\"life\":", "S", 6);            /* malformed */
    kvs[n++] = kv_of(IN "instances/d", "{\"weight\":\"x\"}", "S", 6);
    kvs[n++] = kv_of(IN "partitions", "{\"hash\":\"h\",\"delay_max\":9000}", "", 7);
    kvs[n++] = kv_of(IN "partitions-2", "{\"hash\":\"other\"}", "", 7);
    kvs[n++] = kv_of(IN "wishes/b", "{\"drain\":true,\"evict\":\"L1\"}", "", 8);
    kvs[n++] = kv_of(IN "wishes/nobody", "{\"drain\":true}", "", 9);
    kvs[n++] = kv_of(IN "wishes/a%20x", "x", "", 9);
    kvs[n++] = kv_of("manager/other/cluster/instances/z", "{}", "S", 9);
    CHECK(picture_of(&p, &heap, kvs, n));
    CHECK_INT(p.member_count, 4);       /* what cannot be read is kept, so that it can be buried or written anew */
    CHECK(mgr__picture_member(&p, mgr__str_of("c"))->broken && !mgr__picture_member(&p, mgr__str_of("c"))->counts);
    CHECK(mgr__picture_member(&p, mgr__str_of("d"))->broken);
    const mgr__member *a = mgr__picture_member(&p, mgr__str_of("a x")), *b = mgr__picture_member(&p, mgr__str_of("b"));
    CHECK(a && !a->alive && !a->counts && a->draining && a->weight == 2 && a->lease_ms == 3000);
    CHECK(b && b->alive && b->counts && b->weight == 65535 && b->refuse_count == 5 && mgr__str_is(b->refuses[4], "5"));
    CHECK(b && b->wish_drain && mgr__str_is(b->wish_evict, "L1") && mgr__member_drains(b));
    CHECK(mgr__picture_certified(&p, mgr__str_of("L2")) && !mgr__picture_certified(&p, mgr__str_of("L1")));
    CHECK(p.marker.exists && p.marker.delay_max_ms == 9000 && strcmp(p.marker.hash, "h") == 0);
    CHECK_INT(p.wish_count, 2);
    mgr__picture_free(&p);
    CHECK(picture_of(&p, &heap, NULL, 0));
    CHECK(!p.marker.exists && !mgr__picture_member(&p, mgr__str_of("b")) && !mgr__picture_certified(&p, mgr__str_of("")));
    mgr__picture_free(&p);
}

TEST(members_are_read_back)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__buf out, scratch;
    mgr__arena arena;
    mgr__member m, back;
    mgr__str refuses[2];
    mgr__buf_init(&out, &heap, 4096);
    mgr__buf_init(&scratch, &heap, 4096);
    mgr__arena_init(&arena, &heap);
    memset(&m, 0, sizeof m);
    m.life = mgr__str_of("L"); m.node = mgr__str_of("n"); m.service = mgr__str_of("s:1"); m.isolate = mgr__str_of("cgroup");
    m.weight = 7; m.lease_ms = 1; m.delay_ms = 2; m.grace_ms = 3; m.releases = 4;
    m.joining = m.leaving = m.draining = true;
    refuses[0] = mgr__str_of("p/1"); refuses[1] = mgr__str_of("\"");
    m.refuses = refuses; m.refuse_count = 2;
    mgr__member_write(&m, &out);
    mgr__kv kv = kv_of("", mgr__buf_cstr(&out), "S", 9);
    CHECK(mgr__member_read(&back, &kv, mgr__str_of("i%2F1"), &scratch, &arena));
    CHECK(mgr__str_is(back.id, "i/1") && mgr__str_is(back.life, "L") && mgr__str_is(back.node, "n") && mgr__str_is(back.service, "s:1") && mgr__str_is(back.isolate, "cgroup"));
    CHECK(back.weight == 7 && back.lease_ms == 1 && back.delay_ms == 2 && back.grace_ms == 3 && back.releases == 4);
    CHECK(back.joining && back.leaving && back.draining && back.alive && back.refuse_count == 2 && mgr__str_is(back.refuses[1], "\""));
    mgr__buf_free(&out);
    mgr__buf_free(&scratch);
    mgr__arena_free(&arena);
}

/* Joiners count once a younger one has settled; the dead only within their grace. */
TEST(who_counts_in_the_map)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__picture p;
    mgr__kv kvs[7];
    size_t n = 0;
    kvs[n++] = kv_of(IN "instances/dead", "{\"weight\":1}", "", 1);
    kvs[n++] = kv_of(IN "instances/grace", "{\"weight\":1,\"grace\":5000}", "", 2);
    kvs[n++] = kv_of(IN "instances/leaving", "{\"weight\":1,\"leaving\":true}", "S", 3);
    kvs[n++] = kv_of(IN "instances/joins-old", "{\"weight\":1,\"joining\":true}", "S", 4);
    kvs[n++] = kv_of(IN "instances/settled", "{\"weight\":1}", "S", 5);
    kvs[n++] = kv_of(IN "instances/joins-young", "{\"weight\":1,\"joining\":true}", "S", 6);
    CHECK(picture_of(&p, &heap, kvs, n));
    static const struct { const char *id; bool counts; } rows[] = { { "dead", false }, { "grace", true }, { "leaving", false }, { "joins-old", true }, { "settled", true }, { "joins-young", false } };
    for (size_t i = 0; i < MGR__COUNT(rows); i++) {
        const mgr__member *m = mgr__picture_member(&p, mgr__str_of(rows[i].id));
        if (!m || m->counts != rows[i].counts) { printf("%s\n", rows[i].id); CHECK(!"counts"); }
    }
    mgr__picture_free(&p);
}

TEST(keys_are_made_below_their_root_only)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__root root;
    mgr__arena arena;
    mgr__str rest;
    mgr__arena_init(&arena, &heap);
    CHECK(mgr__root_make(&root, &heap, mgr__str_of("m"), mgr__str_of("a/b")));
    CHECK_STR(root.text, "m/a%2Fb/");
    CHECK_STR(mgr__key_make(&arena, &root, "owners/", mgr__str_of("..")).at, "m/a%2Fb/owners/%2E%2E");
    CHECK(mgr__key_below(mgr__str_of("m/a%2Fb/owners/x"), &root, "owners/", &rest) && mgr__str_is(rest, "x"));
    CHECK(!mgr__key_below(mgr__str_of("m/a%2Fb/own"), &root, "owners/", &rest));
    CHECK(!mgr__key_below(mgr__str_of("m/"), &root, "", &rest));
    char longest[MGR_NAME_BYTES_MAX];
    memset(longest, '.', sizeof longest);
    CHECK(mgr__root_make(&root, &heap, mgr__str_make(longest, sizeof longest), mgr__str_make(longest, sizeof longest)));
    CHECK_INT(root.len, sizeof longest * 4 + 2);
    mgr__arena_free(&arena);
}

/* ---- when a partition may be taken ---- */

enum { DISTRUST = 1, NEVER = -1 };

TEST(when_a_partition_may_be_taken)
{
    static const struct { const char *what, *value, *session; int flags; int64_t after_ms; } rows[] = {
        { "held",                         "{\"state\":\"held\",\"life\":\"live\"}", "live", 0, NEVER },
        { "held, says released",          "{\"state\":\"released\",\"life\":\"live\"}", "live", 0, NEVER },
        { "held, its life certified",     "{\"state\":\"held\",\"life\":\"dead\"}", "dead", 0, 0 },
        { "held by a live one, says certified", "{\"state\":\"held\",\"life\":\"dead\"}", "live", 0, NEVER },
        { "released",                     "{\"state\":\"released\",\"life\":\"gone\"}", "", 0, 0 },
        { "released by nobody",           "{\"state\":\"released\"}", "", 0, 0 },
        { "certified",                    "{\"state\":\"held\",\"life\":\"dead\",\"delay\":60000}", "", 0, 0 },
        { "lost, no delay known",         "{\"state\":\"held\",\"life\":\"gone\"}", "", 0, 9000 },
        { "lost, a longer delay",         "{\"state\":\"held\",\"life\":\"gone\",\"delay\":6000}", "", 0, 6000 },
        { "lost, a shorter delay",        "{\"state\":\"held\",\"life\":\"gone\",\"delay\":10}", "", 0, DELAY_MS },
        { "lost by nobody",               "{\"state\":\"held\"}", "", 0, 9000 },
        { "malformed",                    "released", "", 0, 9000 },
        { "missing",                      NULL, "", 0, NEVER },
        { "released, distrusted",         "{\"state\":\"released\",\"life\":\"gone\"}", "", DISTRUST, 9000 },
        { "certified, distrusted",        "{\"state\":\"held\",\"life\":\"dead\"}", "", DISTRUST, 9000 },
        { "held, certified, distrusted",  "{\"state\":\"held\",\"life\":\"dead\"}", "dead", DISTRUST, 60000 },
    };
    world *w = the_world();
    box *b = box_open(w, 0, "a", 1);
    mgr__kv kvs[2];
    kvs[0] = kv_of(IN "dead/dead", "{}", "", 3);
    kvs[1] = kv_of(IN "partitions", "{\"hash\":\"h\",\"delay_max\":9000}", "", 4);
    mgr__picture_free(&b->core.picture);
    CHECK(picture_of(&b->core.picture, &w->heap, kvs, 2));
    mgr__cluster_note_delays(&b->core);
    for (size_t i = 0; i < MGR__COUNT(rows); i++) {
        mgr__part part;
        memset(&part, 0, sizeof part);
        part.name = mgr__str_of("0");
        CHECK(mgr__part_takeable_at(&b->core, &part, w->now) == MGR__NEVER);     /* before it was ever read */
        b->core.distrust_until = rows[i].flags & DISTRUST ? w->now + 60000 : 0;
        mgr__kv kv = kv_of("", rows[i].value, rows[i].session, 9);
        mgr__part_observe(&b->core, &part, rows[i].value ? &kv : NULL, w->now);
        int64_t at = mgr__part_takeable_at(&b->core, &part, w->now);
        int64_t wanted = rows[i].after_ms == NEVER ? MGR__NEVER : w->now + rows[i].after_ms;
        if (at != wanted) { printf("%s: after %lld ms\n", rows[i].what, (long long)(at - w->now)); CHECK(!"takeable"); }
        mgr__part_observe(&b->core, &part, rows[i].value ? &kv : NULL, w->now + 100);     /* seen again: the delay counts from the first time */
        CHECK(mgr__part_takeable_at(&b->core, &part, w->now + 100) == (rows[i].after_ms == 0 ? w->now + 100 : wanted));
        if (rows[i].after_ms > 0 && rows[i].value && !rows[i].session[0]) {        /* a new index: somebody held it meanwhile */
            kv.modify_index++;
            mgr__part_observe(&b->core, &part, &kv, w->now + 200);
            CHECK(mgr__part_takeable_at(&b->core, &part, w->now + 200) == w->now + 200 + rows[i].after_ms);
        }
    }
    world_end(w);
}

/* ---- the setter ---- */

typedef struct setting {
    world       *w;
    mgr__setter  s;
    mgr__root    root;
    mgr__request r;
} setting;

static void setting_open(setting *t, world *w)
{
    memset(t, 0, sizeof *t);
    t->w = w;
    CHECK(mgr__root_make(&t->root, &w->heap, mgr__str_of("manager"), mgr__str_of("svc")));
}

static void setting_start(setting *t, const char *const *names, size_t count, uint64_t version)
{
    mgr__set set;
    mgr__str bad;
    CHECK(!mgr__set_make(&set, &t->w->heap, names, count, &bad));
    mgr__setter_start(&t->s, &t->w->heap, &set, version, DELAY_MS);
}

static void setting_close(setting *t)
{
    mgr__setter_free(&t->s, &t->w->heap);
    mgr__arena_free(&t->r.arena);
}

/* One request and its answer; false: nothing to ask now. outcome: instead of asking, if not OK. */
static bool setting_step(setting *t, mgr__outcome outcome)
{
    mgr__request_start(&t->r, &t->w->heap, MGR__ASK_TXN, MGR__LANE_WORK);
    if (!mgr__setter_next(&t->s, &t->w->heap, &t->root, &t->r, t->w->now)) return false;
    mgr__answer a = outcome == MGR__OUTCOME_OK ? apply(t->w, &t->r) : answer_of(outcome);
    mgr__setter_answer(&t->s, &t->w->heap, &t->root, mgr__str_of("manager/svc/"), &a, t->w->now);
    return true;
}

static mgr_result setting_run(setting *t, int64_t ms)
{
    for (int64_t until = t->w->now + ms; mgr__setter_busy(&t->s) && t->w->now < until;) if (!setting_step(t, MGR__OUTCOME_OK)) t->w->now += STEP_MS;
    return mgr__setter_busy(&t->s) ? MGR_TIMEOUT : t->s.result;
}

static mgr_result set_now(world *w, const char *const *names, size_t count, uint64_t version)
{
    setting t;
    setting_open(&t, w);
    setting_start(&t, names, count, version);
    mgr_result result = setting_run(&t, 20000);
    setting_close(&t);
    return result;
}

TEST(a_first_set_is_put_in_force)
{
    world *w = the_world();
    setting t;
    setting_open(&t, w);
    setting_start(&t, numbers, 3, 7);
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK(value_has(w, "owners/0", "\"released\"") && value_has(w, "owners/2", "\"released\"") && !look(w, "owners/3").modify_index);
    CHECK(value_has(w, "cluster/partitions", "\"count\":3") && value_has(w, "cluster/partitions", "\"version\":7") && value_has(w, "cluster/partitions", "\"delay_max\":4000"));
    char key[64];
    snprintf(key, sizeof key, "sets/%s", t.s.wanted.hash);
    CHECK(value_has(w, key, "[[0,2]]") && value_has(w, "cluster/partitions", t.s.wanted.hash));
    uint64_t index = dc_index(&w->store);
    setting_start(&t, numbers, 3, 7);       /* again: it stands */
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK_INT(dc_index(&w->store), index);
    setting_close(&t);
    world_end(w);
}

/* The owner keys must be there before the set names them. */
TEST(the_set_is_named_last)
{
    world *w = the_world();
    setting t;
    setting_open(&t, w);
    setting_start(&t, numbers, 2, 0);
    while (mgr__setter_busy(&t.s) && setting_step(&t, MGR__OUTCOME_OK)) {
        bool named = look(w, "cluster/partitions").modify_index && !value_has(w, "cluster/partitions", "\"hash\":\"\"");
        if (named) CHECK(look(w, "owners/0").modify_index && look(w, "owners/1").modify_index);
    }
    CHECK_INT(t.s.result, MGR_OK);
    setting_close(&t);
    world_end(w);
}

TEST(a_second_starter_waits_for_a_half_made_marker_and_takes_over)
{
    world *w = the_world();
    setting one, two;
    setting_open(&one, w);
    setting_open(&two, w);
    setting_start(&one, numbers, 2, 0);
    setting_step(&one, MGR__OUTCOME_OK);
    setting_step(&one, MGR__OUTCOME_OK);        /* the marker is made; then this one is slow */
    CHECK(value_has(w, "cluster/partitions", "\"hash\":\"\""));
    setting_start(&two, numbers, 2, 0);
    CHECK_INT(setting_run(&two, MGR__SETTER_TAKEOVER_MS - 200), MGR_TIMEOUT);
    CHECK(!look(w, "owners/0").modify_index);
    CHECK_INT(setting_run(&two, 1000), MGR_OK);
    uint64_t index = dc_index(&w->store);
    CHECK_INT(setting_run(&one, 20000), MGR_OK);        /* its writes hang on the old marker: they land on nothing */
    CHECK_INT(dc_index(&w->store), index);
    setting_close(&one);
    setting_close(&two);
    world_end(w);
}

TEST(a_starter_waits_anew_when_the_half_made_marker_changes)
{
    world *w = the_world();
    setting t;
    setting_open(&t, w);
    put(w, "cluster/partitions", "{\"hash\":\"\",\"count\":1}");
    setting_start(&t, numbers, 1, 0);
    CHECK_INT(setting_run(&t, 4000), MGR_TIMEOUT);
    put(w, "cluster/partitions", "{\"hash\":\"\",\"count\":2}");
    CHECK_INT(setting_run(&t, 4000), MGR_TIMEOUT);
    CHECK_INT(setting_run(&t, 2000), MGR_OK);
    setting_close(&t);
    world_end(w);
}

/* A wiped store under a cluster that lives: nothing may be called released. */
TEST(a_first_set_is_lost_where_others_have_a_session)
{
    world *w = the_world();
    char other[40], own[40];
    setting t;
    session_of(w, "manager/svc/", other);
    setting_open(&t, w);
    setting_start(&t, numbers, 1, 0);
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK(value_has(w, "owners/0", "\"held\"") && value_has(w, "owners/0", "\"delay\":4000"));
    setting_close(&t);
    world_end(w);

    w = the_world();            /* our own session is not another's, nor is another service's */
    session_of(w, "manager/svc/", own);
    session_of(w, "manager/svc2/", other);
    setting_open(&t, w);
    t.s.own_session = mgr__str_of(own);
    setting_start(&t, numbers, 1, 0);
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK(value_has(w, "owners/0", "\"released\""));
    setting_close(&t);
    world_end(w);
}

/* The sessions are counted after the marker stands: who enters later sees it. */
TEST(sessions_are_counted_behind_the_marker)
{
    world *w = the_world();
    char other[40];
    setting t;
    setting_open(&t, w);
    setting_start(&t, numbers, 1, 0);
    setting_step(&t, MGR__OUTCOME_OK);
    setting_step(&t, MGR__OUTCOME_OK);
    CHECK(look(w, "cluster/partitions").modify_index);
    session_of(w, "manager/svc/", other);
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK(value_has(w, "owners/0", "\"held\""));
    setting_close(&t);
    world_end(w);
}

/* One has counted the sessions and is slow; the owner keys that it would call
 * released must not come after another has taken over and counted anew. */
TEST(owner_keys_hang_on_the_marker)
{
    world *w = the_world();
    char other[40];
    setting one, two;
    setting_open(&one, w);
    setting_open(&two, w);
    setting_start(&one, numbers, 1, 0);
    while (one.s.state != MGR__SETTER_MAKE && setting_step(&one, MGR__OUTCOME_OK)) { }
    session_of(w, "manager/svc/", other);
    setting_start(&two, numbers, 1, 0);
    for (int i = 0; i < 4000 && two.s.state != MGR__SETTER_SESSIONS; i++) if (!setting_step(&two, MGR__OUTCOME_OK)) w->now += STEP_MS;
    CHECK_INT(two.s.state, MGR__SETTER_SESSIONS);
    CHECK(setting_step(&one, MGR__OUTCOME_OK));
    CHECK(!look(w, "owners/0").modify_index);
    CHECK_INT(setting_run(&two, 100), MGR_OK);
    CHECK(value_has(w, "owners/0", "\"held\""));
    setting_close(&one);
    setting_close(&two);
    world_end(w);
}

TEST(who_remembers_a_set_calls_nothing_released)
{
    world *w = the_world();
    setting t;
    setting_open(&t, w);
    t.s.remembered = true;
    t.s.fence_floor = 1000;
    setting_start(&t, numbers, 1, 0);
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK(value_has(w, "owners/0", "\"held\""));
    CHECK(value_has(w, "cluster/partitions", "\"fence_base\":1000"));
    setting_close(&t);
    world_end(w);
}

TEST(a_replaced_set_makes_only_new_names_released)
{
    world *w = the_world();
    CHECK_INT(set_now(w, numbers, 3, 0), MGR_OK);
    put(w, "owners/0", "{\"state\":\"held\",\"life\":\"x\"}");
    remove_key(w, "owners/1");
    CHECK_INT(set_now(w, numbers, 4, 0), MGR_OK);
    CHECK(value_has(w, "owners/0", "\"held\""));                /* stands: not touched */
    CHECK(!look(w, "owners/1").modify_index);                   /* deleted by hand: stays missing, and counts as lost */
    CHECK(value_has(w, "owners/3", "\"released\""));            /* new */
    CHECK_INT(set_now(w, numbers + 2, 1, 0), MGR_OK);
    CHECK(look(w, "owners/0").modify_index && look(w, "owners/3").modify_index);    /* never deleted */
    world_end(w);
}

TEST(a_lower_version_never_replaces_a_higher_one)
{
    world *w = the_world();
    setting t;
    CHECK_INT(set_now(w, numbers, 3, 5), MGR_OK);
    setting_open(&t, w);
    setting_start(&t, numbers, 2, 4);
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK(t.s.taken_over);
    CHECK(value_has(w, "cluster/partitions", "\"count\":3"));
    setting_start(&t, numbers, 2, 6);
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK(!t.s.taken_over && value_has(w, "cluster/partitions", "\"count\":2") && value_has(w, "cluster/partitions", "\"version\":6"));
    setting_start(&t, numbers, 2, 9);       /* the same set: the version still rises */
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK(value_has(w, "cluster/partitions", "\"version\":9"));
    setting_start(&t, numbers, 1, MGR__VERSION_STANDING);
    CHECK_INT(setting_run(&t, 100), MGR_OK);
    CHECK(value_has(w, "cluster/partitions", "\"count\":1") && value_has(w, "cluster/partitions", "\"version\":9"));
    setting_close(&t);
    world_end(w);
}

TEST(a_set_is_put_over_no_marker_but_the_one_that_was_read)
{
    world *w = the_world();
    setting t;
    CHECK_INT(set_now(w, numbers, 2, 0), MGR_OK);
    setting_open(&t, w);
    setting_start(&t, numbers, 3, 0);
    for (int i = 0; i < 20 && t.s.state != MGR__SETTER_WRITE; i++) CHECK(setting_step(&t, MGR__OUTCOME_OK));
    put(w, "cluster/partitions", "{\"hash\":\"another\",\"version\":7}");
    CHECK(setting_step(&t, MGR__OUTCOME_OK));
    CHECK(t.s.state == MGR__SETTER_LOOK && value_has(w, "cluster/partitions", "another"));
    setting_close(&t);
    world_end(w);
}

TEST(the_setter_begins_again_after_a_conflict_but_not_for_ever)
{
    world *w = the_world();
    setting t;
    CHECK_INT(set_now(w, numbers, 1, 0), MGR_OK);
    setting_open(&t, w);
    setting_start(&t, numbers, 3, 0);
    put(w, "sets/x", "[[0,0]]");
    for (int i = 0; mgr__setter_busy(&t.s) && i < 1000; i++) {
        char other[100];
        setting_step(&t, MGR__OUTCOME_OK);
        snprintf(other, sizeof other, "{\"hash\":\"x\",\"count\":%d,\"placement\":\"rush\",\"placement_version\":1}", i);
        if (t.s.state == MGR__SETTER_WRITE) put(w, "cluster/partitions", other);
    }
    CHECK_INT(t.s.result, MGR_CONFLICT);
    CHECK(t.s.trouble.len > 0);
    setting_start(&t, numbers, 3, 0);       /* once the others are quiet it works */
    CHECK_INT(setting_run(&t, 1000), MGR_OK);
    setting_close(&t);
    world_end(w);
}

TEST(the_setter_says_why_it_failed)
{
    static const struct { mgr__outcome outcome; mgr_result result; } rows[] = { { MGR__OUTCOME_DENIED, MGR_DENIED }, { MGR__OUTCOME_REJECTED, MGR_LIMIT } };
    world *w = the_world();
    setting t;
    setting_open(&t, w);
    for (size_t i = 0; i < MGR__COUNT(rows); i++) {
        setting_start(&t, numbers, 3, 0);
        setting_step(&t, rows[i].outcome);
        CHECK(!mgr__setter_busy(&t.s) && t.s.result == rows[i].result && t.s.trouble.len > 0);
    }
    setting_start(&t, numbers, 3, 0);       /* no answer: later, from the start */
    setting_step(&t, MGR__OUTCOME_OK);
    setting_step(&t, MGR__OUTCOME_UNKNOWN);
    CHECK_INT(t.s.state, MGR__SETTER_LOOK);
    CHECK(!setting_step(&t, MGR__OUTCOME_OK));
    CHECK_INT(setting_run(&t, 1000), MGR_OK);
    put(w, "cluster/partitions", "something else");
    setting_start(&t, numbers, 3, 0);
    CHECK_INT(setting_run(&t, 1000), MGR_PROTOCOL);
    setting_close(&t);
    world_end(w);
}

/* Any two starters, in any order of their requests, lost and late ones included:
 * one set stands whole at the end. */
TEST(starters_that_race_end_with_one_whole_set)
{
    for (uint64_t seed = 1; seed <= 150; seed++) {
        world *w = the_world();
        mgr__rng rng;
        setting t[2];
        rng.state = seed * 7919;
        for (int i = 0; i < 2; i++) { setting_open(&t[i], w); setting_start(&t[i], numbers + i, 3, 0); }
        for (int step = 0; step < 5000 && (mgr__setter_busy(&t[0].s) || mgr__setter_busy(&t[1].s)); step++) {
            int who = (int)mgr__rng_below(&rng, 2);
            w->now += mgr__rng_below(&rng, 40);
            if (mgr__setter_busy(&t[who].s)) setting_step(&t[who], mgr__rng_below(&rng, 100) < 5 ? MGR__OUTCOME_UNKNOWN : MGR__OUTCOME_OK);
        }
        CHECK(t[0].s.state == MGR__SETTER_DONE && t[1].s.state == MGR__SETTER_DONE);
        int stands = value_has(w, "cluster/partitions", t[0].s.wanted.hash) ? 0 : 1;
        CHECK(value_has(w, "cluster/partitions", t[stands].s.wanted.hash));
        for (int i = 0; i < 3; i++) { char key[20]; snprintf(key, sizeof key, "owners/%d", stands + i); CHECK(look(w, key).modify_index); }
        for (int i = 0; i < 2; i++) setting_close(&t[i]);
        world_end(w);
    }
}

/* ---- the core: entering, and who gets what ---- */

TEST(an_instance_enters_and_takes_all_there_is)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 3);
    run(w, 500);
    CHECK_INT(a->core.phase, MGR__PHASE_MEMBER);
    CHECK_INT(works_count(a), 3);
    CHECK(in_order(&a->log, "life\n", "begin"));        /* the keeper knows how to end the life before any work begins */
    CHECK(in_order(&a->asked, "register", "create") && in_order(&a->asked, "create", "lock cluster/instances/a"));
    CHECK(mgr__str_is(look(w, "owners/0").session, a->core.life) && value_has(w, "owners/0", "\"held\""));
    CHECK(mgr__str_is(look(w, "cluster/instances/a").session, a->core.life));
    CHECK_INT(a->works[0].fence, look(w, "owners/0").modify_index);
    CHECK(a->lease > w->now && a->lease <= w->now + LEASE_MS);
    world_end(w);
}

TEST(nothing_is_asked_while_nothing_changes_but_the_lease)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 3);
    run(w, 5000);
    forget(a);
    run(w, 2 * LEASE_MS);
    int rounds = times(&a->asked, "txn check-session");
    CHECK(rounds >= 5 && rounds <= 8);
    CHECK_INT(times(&a->asked, "renew"), times(&a->asked, "pass"));
    CHECK_INT(times(&a->asked, "\n"), 3 * rounds + times(&a->asked, "watch"));
    CHECK_STR(mgr__buf_cstr(&a->log), "");
    world_end(w);
}

TEST(the_lease_counts_from_when_the_confirmation_was_sent)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    run(w, 500);
    a->hold = MGR__TASK_CONFIRM;
    run(w, 1000);
    mgr__errand *e = &a->core.errands[MGR__LANE_LEASE];
    CHECK(e->out && e->task == MGR__TASK_CONFIRM);
    int64_t sent = e->sent_at, before = a->lease;
    run(w, 400);
    CHECK_INT(a->lease, before);
    a->hold = MGR__TASK_NONE;
    run(w, 10);
    CHECK_INT(a->lease, sent + LEASE_MS);
    world_end(w);
}

TEST(the_first_lease_counts_from_when_the_own_key_was_locked)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    mgr__errand *e = &a->core.errands[MGR__LANE_WORK];
    a->hold = MGR__TASK_JOIN;
    for (int i = 0; i < 400 && !(e->out && e->task == MGR__TASK_JOIN); i++) run(w, STEP_MS);
    int64_t sent = e->sent_at;
    run(w, 400);
    CHECK(e->out && e->task == MGR__TASK_JOIN && !a->lease);
    a->hold = MGR__TASK_NONE;
    run(w, STEP_MS);
    CHECK_INT(a->lease, sent + LEASE_MS);
    world_end(w);
}

/* A round of several transactions, for one has room for 63 keys. */
TEST(every_key_held_is_confirmed_before_the_lease_grows)
{
    enum { PARTS = 70 };
    static char names[PARTS][8];
    const char *list[PARTS];
    world *w = the_world();
    mgr__cluster_config config = config_of("a", 1);
    for (int i = 0; i < PARTS; i++) { snprintf(names[i], sizeof names[i], "%d", i); list[i] = names[i]; }
    config.partitions = list;
    config.partition_count = PARTS;
    box *a = box_open_as(w, 0, "a", &config);
    run(w, 2 * LEASE_MS);
    CHECK_INT(works_count(a), PARTS);
    mgr__errand *e = &a->core.errands[MGR__LANE_LEASE];
    a->blocked[MGR__LANE_LEASE] = true;
    for (int i = 0; i < 400 && !(e->out && e->task == MGR__TASK_CONFIRM && e->request.op_count == MGR__TXN_OPS_MAX); i++) {
        if (e->out && !(e->task == MGR__TASK_CONFIRM && e->request.op_count == MGR__TXN_OPS_MAX)) { mgr__answer other = apply(w, &e->request); box_answer(w, a, MGR__LANE_LEASE, &other); }
        run(w, STEP_MS);
    }
    CHECK(e->out && e->request.op_count == MGR__TXN_OPS_MAX);
    int64_t before = a->lease;
    mgr__answer half = apply(w, &e->request);
    box_answer(w, a, MGR__LANE_LEASE, &half);
    CHECK(e->out && e->task == MGR__TASK_CONFIRM && e->request.op_count == 1 + PARTS - (MGR__TXN_OPS_MAX - 1));
    CHECK_INT(a->lease, before);
    a->blocked[MGR__LANE_LEASE] = false;
    run(w, 50);
    CHECK(a->lease > before);
    world_end(w);
}

TEST(a_release_is_sent_when_work_is_gone_and_wakes_the_next)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 4);
    run(w, 1000);
    CHECK_INT(works_count(a), 4);
    a->keeps_work = true;
    forget(a);
    box *b = box_open(w, 1, "b", 4);
    run(w, 1000);
    CHECK_INT(times(&a->log, "stop "), 2);
    CHECK(said(a, "within 1000"));
    run(w, 20000);                                      /* work that does not end is not given away */
    CHECK_INT(works_count(b), 0);
    CHECK(!asked(a, "unlock") && said(b, "waiting: "));
    uint64_t releases = a->core.releases;
    for (int i = 0; i < 4; i++) if (part_of(a, numbers[i])->state == MGR__PART_RELEASING) box_gone(w, a, numbers[i]);
    run(w, 50);                                         /* milliseconds, not a lease */
    CHECK_INT(works_count(a), 2);
    CHECK_INT(works_count(b), 2);
    CHECK_INT(a->core.releases, releases + 2);
    /* The count is in the same transaction as the unlock. */
    const char *unlock = strstr(mgr__buf_cstr(&a->asked), "; unlock owners/"), *end = unlock ? strchr(unlock, '\n') : NULL;
    const char *own = unlock ? strstr(unlock, "lock cluster/instances/a") : NULL;
    CHECK(own && own < end);
    char releases_text[40];
    snprintf(releases_text, sizeof releases_text, "\"releases\":%llu", (unsigned long long)a->core.releases);
    CHECK(value_has(w, "cluster/instances/a", releases_text));
    world_end(w);
}

TEST(moves_max_bounds_the_releases_in_flight)
{
    world *w = the_world();
    mgr__cluster_config config = config_of("a", 8);
    config.moves_max = 1;
    box *a = box_open_as(w, 0, "a", &config);
    run(w, 1000);
    a->keeps_work = true;
    forget(a);
    box *b = box_open(w, 1, "b", 8);
    run(w, 1000);
    for (int round = 1; round <= 4; round++) {
        CHECK_INT(times(&a->log, "stop "), round);
        for (int i = 0; i < 8; i++) if (part_of(a, numbers[i])->state == MGR__PART_RELEASING) box_gone(w, a, numbers[i]);
        run(w, 100);
        CHECK_INT(works_count(b), round);
    }
    CHECK_INT(times(&a->log, "stop "), 4);
    world_end(w);
}

/* Dead, and its session gone; certified: somebody has proven it. */
static void box_vanishes(world *w, box *b, bool certified)
{
    char key[100], life[40];
    mgr__copy_text(life, sizeof life, mgr__str_of(b->core.life));
    snprintf(key, sizeof key, "cluster/dead/%s", life);
    box_dies(b);
    if (certified) put(w, key, "{}");
    dc_session_destroy(&w->store, w->now, mgr__str_of(life));
}

static void command_set(world *w, box *b, size_t count)
{
    mgr__set set;
    mgr__str bad;
    CHECK(!mgr__set_make(&set, &w->heap, numbers, count, &bad));
    mgr__cluster_command_set(&b->core, &set, MGR_PLACEMENT_DEFAULT);
    box_pump(w, b);
}

TEST(moves_max_never_bounds_what_is_taken)
{
    world *w = the_world();
    mgr__cluster_config config = config_of("a", 2);
    config.moves_max = 1;
    box *a = box_open_as(w, 0, "a", &config);
    run(w, 1000);
    CHECK_INT(works_count(a), 2);
    a->keeps_work = true;
    box_open(w, 1, "b", 0);
    run(w, 1000);
    CHECK_INT(times(&a->log, "stop "), 1);              /* and that one does not end: all that a may give away */
    command_set(w, a, 8);
    run(w, 500);
    int taken = 0;
    for (int i = 2; i < 8; i++) {
        taken += works(a, i);
        CHECK(works(a, i) == part_of(a, numbers[i])->assigned);
    }
    CHECK(taken >= 2);                                  /* beside the release in flight, all at once */
    CHECK_INT(times(&a->log, "stop "), 1);
    world_end(w);
}

/* ---- the core: pauses ---- */

static void pauses_read(const char *value, bool breaker, const char *reason)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__arena arena;
    mgr__buf scratch;
    mgr__pause pause;
    mgr__kv kv = kv_of("", value, "", 7);
    mgr__arena_init(&arena, &heap);
    mgr__buf_init(&scratch, &heap, 4096);
    mgr__pause_read(&pause, &kv, &scratch, &arena);
    CHECK(pause.exists && pause.modify_index == 7);
    CHECK_INT(pause.breaker, breaker);
    CHECK(mgr__str_is(pause.reason, reason));
    mgr__buf_free(&scratch);
    mgr__arena_free(&arena);
}

TEST(a_pause_key_pauses_whatever_is_in_it)
{
    pauses_read("", false, "");
    pauses_read("yes please", false, "");
    pauses_read("[]", false, "");
    pauses_read("{\"breaker\":true", false, "");        /* cut short: only a whole one ends by itself */
    pauses_read("{\"breaker\":1}", false, "");
    pauses_read("{\"reason\":\"x\",\"new\":[{}],\"breaker\":true,\"by\":\"a\",\"since\":5}", true, "x");
    world *w = the_world();
    box *a = box_open(w, 0, "a", 8);
    run(w, 1000);
    put(w, "cluster/pause", "by hand");
    run(w, 100);
    CHECK(said(a, "paused by unknown"));
    box *b = box_open(w, 1, "b", 8);
    run(w, DELAY_MS * 3);                               /* it does not end by itself */
    CHECK(works_count(a) == 8 && works_count(b) == 0);
    remove_key(w, "cluster/pause");
    run(w, 1000);
    CHECK(said(a, "resumed: ") && works_count(a) == 4 && works_count(b) == 4);
    world_end(w);
}

TEST(in_a_pause_only_failures_and_explicit_acts_move_anything)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 6);
    run(w, 1000);
    mgr__cluster_pause(&a->core, true, mgr__str_of("night"));
    box_pump(w, a);
    run(w, 100);
    CHECK(value_has(w, "cluster/pause", "\"by\":\"a\"") && value_has(w, "cluster/pause", "night") && value_has(w, "cluster/pause", "\"breaker\":false"));
    CHECK(said(a, "paused by a, night"));
    box *b = box_open(w, 1, "b", 0);
    run(w, LEASE_MS * 3);
    CHECK(works_count(a) == 6 && works_count(b) == 0 && said(b, "which keeps it while the service is paused"));
    command_set(w, a, 8);                               /* what is new goes where the map wants it, the rest stays */
    run(w, 1000);
    int news = works_count(b);
    CHECK_INT(works_count(a) + news, 8);
    for (int i = 0; i < 6; i++) CHECK(works(a, i));
    mgr__cluster_drain(&a->core, true);
    box_pump(w, a);
    run(w, 1000);
    CHECK(works_count(a) == 0 && works_count(b) == 8);
    mgr__cluster_drain(&a->core, false);
    box_pump(w, a);
    run(w, LEASE_MS * 3);
    CHECK(works_count(a) == 0 && works_count(b) == 8);
    mgr__cluster_refuse(&b->core, part_of(b, "3"), 600000, w->now);
    box_pump(w, b);
    run(w, 1000);
    CHECK(works_count(a) == 1 && works(a, 3) && works_count(b) == 7);
    box_vanishes(w, b, true);
    run(w, 1000);
    CHECK_INT(works_count(a), 8);
    b = box_open(w, 1, "b", 0);
    run(w, LEASE_MS * 3);
    CHECK(works_count(a) == 8 && works_count(b) == 0);
    mgr__cluster_pause(&b->core, false, mgr__str_of(""));
    box_pump(w, b);
    run(w, 1000);
    CHECK(works_count(a) == 4 && works_count(b) == 4 && !look(w, "cluster/pause").modify_index);
    mgr__cluster_pause(&b->core, false, mgr__str_of(""));     /* as it is already: nothing is asked */
    forget(b);
    box_pump(w, b);
    CHECK(!asked(b, "cluster/pause"));
    world_end(w);
}

/* Four instances, two partitions each; the breaker at `percent`. */
static box *four(world *w, uint32_t percent)
{
    static const char *const ids[] = { "a", "b", "c", "d" };
    for (int i = 0; i < 4; i++) {
        mgr__cluster_config config = config_of(ids[i], 8);
        config.breaker_percent = percent;
        box_open_as(w, i, ids[i], &config);
    }
    run(w, 2000);
    for (int i = 0; i < 4; i++) CHECK_INT(works_count(&w->boxes[i]), 2);
    return &w->boxes[0];
}

TEST(the_breaker_holds_moves_until_all_is_still)
{
    world *w = the_world();
    box *a = four(w, 50);
    bool had[8];
    for (int i = 0; i < 8; i++) had[i] = works(a, i);
    for (int i = 1; i < 4; i++) box_vanishes(w, &w->boxes[i], true);
    run(w, 500);
    CHECK(said(a, "the circuit breaker holds planned moves: 3 of 4 instances vanished at once"));
    CHECK(value_has(w, "cluster/pause", "\"breaker\":true"));
    CHECK_INT(works_count(a), 8);                       /* failures are taken over */
    forget(a);
    for (int i = 1; i < 4; i++) box_open(w, i, i == 1 ? "b" : i == 2 ? "c" : "d", 8);
    run(w, DELAY_MS);
    CHECK_INT(works_count(a), 8);
    run(w, DELAY_MS * 2);
    CHECK(said(a, "resumed: ") && !look(w, "cluster/pause").modify_index);
    for (int i = 0; i < 4; i++) CHECK_INT(works_count(&w->boxes[i]), 2);
    for (int i = 0; i < 8; i++) CHECK(works(a, i) == had[i]);
    world_end(w);
}

TEST(resume_ends_what_the_breaker_holds)
{
    world *w = the_world();
    box *a = four(w, 50);
    for (int i = 1; i < 4; i++) box_vanishes(w, &w->boxes[i], true);
    run(w, 500);
    CHECK(look(w, "cluster/pause").modify_index != 0);
    mgr__cluster_pause(&a->core, false, mgr__str_of(""));
    box_pump(w, a);
    box *b = box_open(w, 1, "b", 8);
    run(w, 1500);
    CHECK(works_count(a) == 4 && works_count(b) == 4);
    CHECK(!look(w, "cluster/pause").modify_index);      /* the same deaths do not trip it again */
    CHECK_INT(times(&a->log, "the circuit breaker holds"), 1);
    world_end(w);
}

TEST(a_breaker_that_somebody_confirms_stays)
{
    world *w = the_world();
    box *a = four(w, 50);
    for (int i = 1; i < 4; i++) box_vanishes(w, &w->boxes[i], true);
    run(w, 500);
    mgr__cluster_pause(&a->core, true, mgr__str_of("looking"));
    box_pump(w, a);
    run(w, DELAY_MS * 4);
    CHECK(value_has(w, "cluster/pause", "\"breaker\":false") && value_has(w, "cluster/pause", "looking"));
    world_end(w);
}

/* d crashes, comes back and crashes again: b, back for good, gets its share in the end. */
TEST(a_member_that_crashes_over_and_over_does_not_hold_the_breaker_for_ever)
{
    world *w = the_world();
    box *a = four(w, 20);
    int64_t still = DELAY_MS * MGR__STILL_DELAYS, first = w->now, ended = 0;
    for (int i = 1; i < 4; i++) box_vanishes(w, &w->boxes[i], true);
    run(w, 500);
    CHECK(value_has(w, "cluster/pause", "\"breaker\":true"));
    box *b = box_open(w, 1, "b", 8);
    for (int life = 0; life < 2 * MGR__BREAKER_STILLS; life++) {
        box *d = box_open(w, 3, "d", 8);
        run(w, still / 2);
        CHECK_INT(d->core.phase, MGR__PHASE_MEMBER);
        box_vanishes(w, d, true);
        if (life & 1) {                                 /* and now and then two at once, for which it would hold again */
            box_vanishes(w, b, true);
            run(w, 300);
            b = box_open(w, 1, "b", 8);
        }
        run(w, still / 4);
        if (!ended && !look(w, "cluster/pause").modify_index) ended = w->now;
        if (ended) CHECK(!look(w, "cluster/pause").modify_index);
    }
    CHECK(ended >= first + still * MGR__BREAKER_STILLS && ended < first + still * (MGR__BREAKER_STILLS + 2));
    CHECK(said(a, "while members still came and went: it lets them go"));
    run(w, still + DELAY_MS);
    CHECK(works_count(a) == 4 && works_count(b) == 4);
    forget(a);
    box_open(w, 2, "c", 8);
    box_open(w, 3, "d", 8);
    run(w, still + DELAY_MS);
    for (int i = 1; i < 4; i++) box_vanishes(w, &w->boxes[i], true);
    run(w, 500);
    CHECK(said(a, "the circuit breaker holds planned moves"));      /* all was still: it is for the next time */
    world_end(w);
}

TEST(the_breaker_lets_leaves_and_single_deaths_pass)
{
    world *w = the_world();
    box *a = four(w, 20);
    for (int i = 1; i < 4; i++) { mgr__cluster_leave(&w->boxes[i].core); box_pump(w, &w->boxes[i]); }
    run(w, 1000);
    CHECK(works_count(a) == 8 && !said(a, "circuit breaker"));
    world_end(w);

    w = the_world();
    a = four(w, 20);
    for (int i = 1; i < 4; i++) {                       /* one after the other, each back before the next goes */
        box_vanishes(w, &w->boxes[i], true);
        run(w, 400);
        box_open(w, i, i == 1 ? "b" : i == 2 ? "c" : "d", 8);
        run(w, 400);
    }
    CHECK(!said(a, "circuit breaker") && works_count(a) == 2);
    world_end(w);

    w = the_world();
    a = four(w, 20);
    for (int i = 0; i < 4; i++) dc_session_destroy(&w->store, w->now, mgr__str_of(w->boxes[i].core.life));   /* all at once: nobody survives */
    run(w, DELAY_MS * 3);
    CHECK(!look(w, "cluster/pause").modify_index);
    for (int i = 0; i < 4; i++) CHECK_INT(works_count(&w->boxes[i]), 2);
    world_end(w);

    w = the_world();
    a = four(w, 75);
    for (int i = 1; i < 4; i++) box_vanishes(w, &w->boxes[i], true);
    run(w, 500);
    CHECK(!said(a, "circuit breaker"));                 /* 75 % is not more than 75 % */
    world_end(w);

    w = the_world();
    a = four(w, 0);
    for (int i = 1; i < 4; i++) box_vanishes(w, &w->boxes[i], true);
    run(w, 500);
    CHECK(!said(a, "circuit breaker") && works_count(a) == 8);
    world_end(w);
}

/* ---- the core: answers that get lost ---- */

static void land_late(world *w, mgr__request *r) { apply(w, r); }

static void copy_request(world *w, mgr__request *to, const mgr__request *from)
{
    *to = *from;
    mgr__arena_init(&to->arena, &w->heap);
    for (size_t i = 0; i < to->op_count; i++) {
        to->ops[i].key = mgr__arena_str(&to->arena, from->ops[i].key);
        to->ops[i].value = mgr__arena_str(&to->arena, from->ops[i].value);
        to->ops[i].session = mgr__arena_str(&to->arena, from->ops[i].session);
    }
}

/* Run until a request of this kind is out on the work lane, and keep it there. */
static mgr__errand *hold(world *w, box *b, mgr__task task)
{
    mgr__errand *e = &b->core.errands[MGR__LANE_WORK];
    b->hold = task;
    for (int i = 0; i < 4000 && !(e->out && e->task == task); i++) run(w, STEP_MS);
    if (!(e->out && e->task == task)) CHECK(!"held");
    return e;
}

static void lose_answer(world *w, box *b)
{
    mgr__answer a = answer_of(MGR__OUTCOME_UNKNOWN);
    b->hold = MGR__TASK_NONE;
    box_answer(w, b, MGR__LANE_WORK, &a);
}

/* Said again before a picture shows what was written: by whichever way, the last word counts. */
TEST(pause_and_resume_within_one_picture_end_as_the_last_word_says)
{
    for (int first = 0; first < 2; first++) {
        world *w = the_world();
        box *a = box_open(w, 0, "a", 2);
        run(w, 1000);
        if (!first) { mgr__cluster_pause(&a->core, true, mgr__str_of("")); box_pump(w, a); run(w, 500); }
        CHECK_INT(look(w, "cluster/pause").modify_index != 0, !first);
        a->blocked[MGR__LANE_WATCH] = true;
        for (int i = 0; i < 2; i++) {
            mgr__cluster_pause(&a->core, i ? !first : first, mgr__str_of(""));
            box_pump(w, a);
            run(w, 50);
            CHECK_INT(look(w, "cluster/pause").modify_index != 0, first);
        }
        a->blocked[MGR__LANE_WATCH] = false;
        run(w, 50);
        CHECK_INT(look(w, "cluster/pause").modify_index != 0, !first);
        forget(a);
        run(w, 3 * LEASE_MS);
        CHECK(!asked(a, "cluster/pause") && a->core.pause_wish == MGR__PAUSE_NONE);
        world_end(w);
    }
}

TEST(a_new_reason_replaces_the_one_that_stands)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    run(w, 2000);
    mgr__cluster_pause(&a->core, true, mgr__str_of("night"));
    box_pump(w, a);
    run(w, 1500);
    uint64_t index = look(w, "cluster/pause").modify_index, since = a->core.picture.pause.since_ms;
    CHECK(index && mgr__str_is(a->core.picture.pause.reason, "night"));
    mgr__cluster_pause(&a->core, true, mgr__str_of(""));        /* no reason: whatever stands will do */
    box_pump(w, a);
    run(w, 1500);
    CHECK_INT(look(w, "cluster/pause").modify_index, index);
    mgr__cluster_pause(&a->core, true, mgr__str_of("day"));
    box_pump(w, a);
    run(w, 1500);
    CHECK(mgr__str_is(a->core.picture.pause.reason, "day"));
    CHECK_INT(a->core.picture.pause.since_ms, since);
    world_end(w);
}

TEST(a_pause_that_lands_late_after_a_resume_lands_on_nothing)
{
    world *w = the_world();
    mgr__request late;
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    mgr__cluster_pause(&a->core, true, mgr__str_of(""));
    box_pump(w, a);
    mgr__errand *e = hold(w, a, MGR__TASK_PAUSE);
    copy_request(w, &late, &e->request);
    mgr__cluster_pause(&a->core, false, mgr__str_of(""));
    lose_answer(w, a);
    run(w, 1000);
    CHECK(a->core.pause_wish == MGR__PAUSE_NONE);
    land_late(w, &late);
    run(w, 100);
    CHECK(!look(w, "cluster/pause").modify_index && works_count(a) == 2);
    mgr__arena_free(&late.arena);
    world_end(w);
}

TEST(a_lock_whose_answer_was_lost_is_taken_anew_never_adopted)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    mgr__errand *e = hold(w, a, MGR__TASK_LOCK);
    apply(w, &e->request);
    uint64_t lost = look(w, "owners/0").modify_index;
    CHECK(mgr__str_is(look(w, "owners/0").session, a->core.life));
    lose_answer(w, a);
    run(w, 3000);
    CHECK(works(a, 0));
    CHECK_INT(times(&a->log, "begin"), 1);
    CHECK(a->works[0].fence > lost);
    CHECK_INT(a->works[0].fence, look(w, "owners/0").modify_index);
    world_end(w);
}

/* The one thing that may be the same is the time: the wall clock can be set back. */
TEST(a_lock_taken_anew_has_another_value_at_the_same_time)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    int64_t noon = 7000000;
    mgr__errand *e = &a->core.errands[MGR__LANE_WORK];
    a->hold = MGR__TASK_LOCK;
    for (int i = 0; i < 400 && !(e->out && e->task == MGR__TASK_LOCK); i++) { a->core.wall_offset_ms = (uint64_t)(noon - w->now); run(w, STEP_MS); }
    apply(w, &e->request);
    uint64_t lost = look(w, "owners/0").modify_index;
    CHECK(lost != 0);
    for (int i = 0; i < 600; i++) {
        if (i == 1) lose_answer(w, a);
        a->core.wall_offset_ms = (uint64_t)(noon - w->now);
        run(w, STEP_MS);
    }
    CHECK(works(a, 0) && a->works[0].fence > lost);
    world_end(w);
}

TEST(no_work_starts_while_an_unlock_is_in_flight)
{
    world *w = the_world();
    mgr__request late;
    box *a = box_open(w, 0, "a", 1);
    run(w, 1000);
    uint64_t fence = a->works[0].fence;
    put(w, "cluster/wishes/a", "{\"drain\":true}");
    mgr__errand *e = hold(w, a, MGR__TASK_UNLOCK);
    put(w, "cluster/wishes/a", "{\"drain\":false}");       /* the map gives it back, meanwhile */
    run(w, 1500);
    CHECK(part_of(a, "0")->assigned);
    CHECK_INT(times(&a->log, "begin"), 1);
    CHECK(part_of(a, "0")->watermark >= fence);
    copy_request(w, &late, &e->request);
    lose_answer(w, a);
    run(w, 2000);
    CHECK(works(a, 0) && a->works[0].fence > fence);
    forget(a);
    land_late(w, &late);                                    /* it hangs on the old index: nothing */
    run(w, 2 * LEASE_MS);
    CHECK(works(a, 0));
    CHECK_STR(mgr__buf_cstr(&a->log), "");
    mgr__arena_free(&late.arena);
    world_end(w);
}

TEST(an_unlock_whose_answer_was_lost_is_not_forgotten)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    run(w, 1000);
    put(w, "cluster/wishes/a", "{\"drain\":true}");
    hold(w, a, MGR__TASK_UNLOCK);
    lose_answer(w, a);                                      /* it never landed */
    run(w, 2000);
    CHECK(!look(w, "owners/0").session.len && value_has(w, "owners/0", "\"released\""));
    CHECK_INT(part_of(a, "0")->state, MGR__PART_IDLE);
    world_end(w);
}

TEST(a_late_lock_on_what_is_no_longer_ours_is_given_back)
{
    world *w = the_world();
    mgr__request late;
    box *a = box_open(w, 0, "a", 1);
    mgr__errand *e = hold(w, a, MGR__TASK_LOCK);
    copy_request(w, &late, &e->request);
    put(w, "cluster/wishes/a", "{\"drain\":true}");
    run(w, 300);
    lose_answer(w, a);
    run(w, 300);
    CHECK(!look(w, "owners/0").session.len);
    land_late(w, &late);
    CHECK(mgr__str_is(look(w, "owners/0").session, a->core.life));
    run(w, 3 * LEASE_MS);
    CHECK(!look(w, "owners/0").session.len && value_has(w, "owners/0", "\"released\""));
    CHECK(!said(a, "begin"));
    mgr__arena_free(&late.arena);
    world_end(w);
}

/* Read as ours while it was wanted, to be locked anew; then the map changed. */
TEST(a_late_lock_is_given_back_also_when_the_map_changes_after_it_was_read)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    mgr__errand *e = hold(w, a, MGR__TASK_LOCK);
    apply(w, &e->request);
    lose_answer(w, a);
    hold(w, a, MGR__TASK_READ);
    a->core.not_before = w->now + 1000;     /* so that nothing is sent when it is answered */
    a->hold = MGR__TASK_NONE;
    run(w, 50);
    CHECK(part_of(a, "0")->held && part_of(a, "0")->assigned && !part_of(a, "0")->stale);
    put(w, "cluster/wishes/a", "{\"drain\":true}");
    run(w, 300);
    CHECK(!part_of(a, "0")->assigned);
    run(w, 3 * LEASE_MS);
    CHECK(!look(w, "owners/0").session.len && !said(a, "begin"));
    world_end(w);
}

TEST(a_lock_is_taken_at_the_index_that_was_read)
{
    world *w = the_world();
    char other[40];
    box *a = box_open(w, 0, "a", 1);
    hold(w, a, MGR__TASK_LOCK);
    session_of(w, "other", other);
    CHECK(store_do(w, MGR__LOCK, "owners/0", "{\"state\":\"held\",\"life\":\"other\"}", other, 0));     /* somebody was quicker, and is gone again */
    dc_session_destroy(&w->store, w->now, mgr__str_of(other));
    a->hold = MGR__TASK_NONE;
    run(w, DELAY_MS - 500);
    CHECK(!works(a, 0));
    run(w, LEASE_MS);
    CHECK(works(a, 0));
    world_end(w);
}

TEST(a_lock_older_than_the_lease_begins_nothing)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    mgr__errand *e = hold(w, a, MGR__TASK_LOCK);
    int64_t sent = e->sent_at;
    run(w, LEASE_MS / 2);               /* well before the lease that it was sent under ends */
    CHECK(a->core.lease_until > sent + LEASE_MS);
    forget(a);
    a->hold = MGR__TASK_NONE;
    run(w, STEP_MS);
    CHECK(!said(a, "begin") && mgr__str_is(look(w, "owners/0").session, a->core.life));
    uint64_t old = look(w, "owners/0").modify_index;
    run(w, 500);
    CHECK(works(a, 0) && a->works[0].fence > old);
    world_end(w);
}

TEST(no_work_starts_at_or_below_the_watermark)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    run(w, 1000);
    uint64_t fence = a->works[0].fence;
    CHECK(fence && part_of(a, "0")->watermark < fence);
    mgr__cluster_over(&a->core, MGR_EVENT_LEASE_LOST, "the keeper closed the lease", w->now);
    CHECK(part_of(a, "0")->watermark >= fence);
    box_pump(w, a);
    part_of(a, "0")->watermark = fence + 100000;        /* as if the index had gone down since */
    forget(a);
    run(w, 2 * LEASE_MS);
    CHECK(asked(a, "lock owners/0") && !said(a, "begin"));
    part_of(a, "0")->watermark = 0;
    run(w, DELAY_MS + LEASE_MS);
    CHECK(works(a, 0));
    world_end(w);
}

/* ---- the core: answers that come when all has changed ---- */

/* Run until a request of this kind is out on the lease lane. */
static mgr__errand *lease_out(world *w, box *b, mgr__task task)
{
    mgr__errand *e = &b->core.errands[MGR__LANE_LEASE];
    for (int i = 0; i < 4000 && !(e->out && e->task == task); i++) run(w, STEP_MS);
    if (!(e->out && e->task == task)) CHECK(!"out");
    return e;
}

/* The set shrinks, and 2 and 3 are being stopped. */
static box *shrinking(world *w)
{
    box *a = box_open(w, 0, "a", 4);
    run(w, 3000);
    CHECK_INT(works_count(a), 4);
    a->keeps_work = true;
    command_set(w, a, 2);
    for (int i = 0; i < 400 && !said(a, "releasing partition 3"); i++) run(w, STEP_MS);
    CHECK(said(a, "releasing partition 2") && said(a, "releasing partition 3"));
    return a;
}

TEST(a_partition_may_go_while_a_confirmation_names_it)
{
    world *w = the_world();
    box *a = shrinking(w);
    a->hold = MGR__TASK_CONFIRM;
    a->core.next_round = w->now;
    box_pump(w, a);
    mgr__errand *e = lease_out(w, a, MGR__TASK_CONFIRM);
    CHECK_INT(e->request.op_count, 5);
    box_gone(w, a, "2");
    box_gone(w, a, "3");
    run(w, 200);
    CHECK(value_has(w, "owners/3", "\"released\""));
    a->hold = MGR__TASK_NONE;           /* its answer says that 2 and 3 are not as they were */
    run(w, 300);
    CHECK(!part_of(a, "2") && !part_of(a, "3") && !said(a, "lost"));
    CHECK_INT(works_count(a), 2);
    world_end(w);
}

TEST(a_partition_may_go_while_a_read_names_it)
{
    world *w = the_world();
    box *a = shrinking(w);
    part_of(a, "3")->stale = true;      /* as after a rewrite whose answer was lost */
    hold(w, a, MGR__TASK_READ);
    put(w, "owners/3", "{\"state\":\"held\"}");
    for (int i = 0; i < 1000 && !said(a, "kill 3"); i++) run(w, STEP_MS);
    box_gone(w, a, "3");
    box_gone(w, a, "2");
    run(w, 100);
    a->hold = MGR__TASK_NONE;
    run(w, 2 * LEASE_MS);
    CHECK(!part_of(a, "2") && !part_of(a, "3"));
    CHECK(!look(w, "owners/2").session.len && !look(w, "owners/3").session.len);
    CHECK_INT(works_count(a), 2);
    world_end(w);
}

TEST(a_keeper_that_dies_while_joining_is_replaced_first)
{
    world *w = the_world();
    char life[40];
    box *a = box_open(w, 0, "a", 2);
    hold(w, a, MGR__TASK_JOIN);
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    mgr__cluster_over(&a->core, MGR_EVENT_KEEPER_LOST, "the keeper or its guard is gone", w->now);
    box_pump(w, a);
    run(w, 1000);
    CHECK(a->core.phase != MGR__PHASE_MEMBER && !said(a, "entered") && !said(a, "life"));
    a->hold = MGR__TASK_NONE;
    run(w, 3000);
    CHECK_INT(a->core.phase, MGR__PHASE_MEMBER);
    CHECK(a->core.life[0] && strcmp(a->core.life, life) != 0);
    CHECK(in_order(&a->log, "fresh", "life") && mgr__str_is(look(w, "cluster/instances/a").session, a->core.life));
    CHECK_INT(works_count(a), 2);
    CHECK_INT(dc_session_count(&w->store), 1);
    world_end(w);
}

TEST(no_life_begins_before_its_keeper_is_ready)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    a->slow_keeper = true;
    forget(a);
    mgr__cluster_over(&a->core, MGR_EVENT_KEEPER_LOST, "the keeper or its guard is gone", w->now);
    box_pump(w, a);
    run(w, 2000);
    CHECK(said(a, "fresh") && !asked(a, "create") && a->core.phase == MGR__PHASE_SET);
    mgr__cluster_ready(&a->core);
    box_pump(w, a);
    run(w, 1000);
    CHECK(a->core.phase == MGR__PHASE_MEMBER && works_count(a) == 2);
    world_end(w);
}

/* The life is over, and its work resists: in an uninterruptible wait, say. Until it is seen
 * dead its session stands, with the check, and nobody else begins (S28). */
TEST(what_cannot_be_killed_keeps_its_lock)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 4), *b = box_open(w, 1, "b", 0);
    run(w, 3000);
    CHECK_INT(works_count(a), 2);
    a->keeps_work = true;
    mgr__cluster_over(&a->core, MGR_EVENT_LEASE_LOST, "its keeper is gone", w->now);
    box_pump(w, a);
    forget(a);
    run(w, 60000);
    CHECK_INT(works_count(a), 2);
    CHECK_INT(works_count(b), 2);
    CHECK(asked(a, "renew") && asked(a, "pass") && !asked(a, "check-session"));
    a->keeps_work = false;
    for (int i = 0; i < 4; i++) {
        char name[2] = { (char)('0' + i), 0 };
        if (works(a, i)) box_gone(w, a, name);
    }
    run(w, DELAY_MS + 3000);
    CHECK_INT(works_count(a) + works_count(b), 4);
    world_end(w);
}

/* Of work that starts and ends others learn a moment later: several in one write, and
 * none while a takeover may still need the servers. */
TEST(what_came_of_work_is_written_once_for_several)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 8);
    run(w, 3000);
    forget(a);
    mgr__cluster_note_work(&a->core, part_of(a, "0"), 1, "", false);
    box_pump(w, a);
    run(w, STEP_MS * 4);
    CHECK_INT(times(&a->asked, "lock owners/0;"), 1);       /* nothing goes on: at once */
    for (int i = 1; i < 4; i++) {
        char name[2] = { (char)('0' + i), 0 };
        mgr__cluster_note_work(&a->core, part_of(a, name), 1, "", false);
        box_pump(w, a);
        run(w, STEP_MS);
    }
    CHECK_INT(times(&a->asked, "lock owners/1;"), 0);
    run(w, MGR__REWRITE_MS + 100);
    CHECK_INT(times(&a->asked, "lock owners/1; check-index owners/2; lock owners/2; check-index owners/3; lock owners/3;"), 1);
    world_end(w);
}

/* Its key counts as it was before or as it will be: that the lock is ours holds for both. */
TEST(a_rewrite_that_hangs_does_not_end_the_lease)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 8);
    run(w, 3000);
    forget(a);
    mgr__cluster_note_work(&a->core, part_of(a, "0"), 1, "", false);
    a->hold = MGR__TASK_REWRITE;
    box_pump(w, a);
    hold(w, a, MGR__TASK_REWRITE);
    run(w, 3 * LEASE_MS);
    CHECK_INT(works_count(a), 8);
    CHECK(!said(a, "lost") && asked(a, "check-session owners/0;") && asked(a, "check-index owners/1;"));
    CHECK(a->lease > w->now + LEASE_MS / 3);
    char other[40];
    session_of(w, "other", other);
    uint64_t index = look(w, "owners/0").modify_index;
    CHECK(store_do(w, MGR__UNLOCK, "owners/0", "{}", a->core.life, 0) && store_do(w, MGR__LOCK, "owners/0", "{}", other, 0));
    CHECK(look(w, "owners/0").modify_index > index);
    run(w, LEASE_MS);
    CHECK(said(a, "kill 0") && !said(a, "kill 1"));         /* and if it is not, that is seen */
    world_end(w);
}

TEST(time_goes_on_while_a_request_is_out)
{
    world *w = the_world();
    char life[40];
    box *a = box_open(w, 0, "a", 4), *b = box_open(w, 1, "b", 0);
    run(w, 3000);
    mgr__copy_text(life, sizeof life, mgr__str_of(b->core.life));
    CHECK(mgr__cluster_wish(&a->core, mgr__str_of("b"), false, true));
    hold(w, a, MGR__TASK_WISH);
    box_dies(b);
    dc_session_destroy(&w->store, w->now, mgr__str_of(life));
    run(w, MGR__BURY_MS + MGR__BURY_SPREAD_MS + 400);
    CHECK(a->core.burial_count == 1 && a->core.burials[0].due_at < w->now);      /* due, but the lane is taken */
    CHECK(mgr__cluster_next(&a->core, w->now) > w->now);
    a->hold = MGR__TASK_NONE;
    run(w, 1000);
    CHECK(said(a, "deregistered the dead instance b"));
    world_end(w);
}

TEST(a_set_may_be_commanded_while_another_is_put_in_force)
{
    static const mgr__setter_state states[] = { MGR__SETTER_LOOK, MGR__SETTER_OLD, MGR__SETTER_OWNERS, MGR__SETTER_MAKE, MGR__SETTER_WRITE };
    for (size_t i = 0; i < MGR__COUNT(states); i++) {
        bool there = false;
        world *w = the_world();
        box *a = box_open(w, 0, "a", 4);
        mgr__errand *e = &a->core.errands[MGR__LANE_WORK];
        run(w, 3000);
        forget(a);
        command_set(w, a, 5);
        a->hold = MGR__TASK_SETTER;
        for (int step = 0; step < 500 && !there; step++) {
            bool out = e->out && e->task == MGR__TASK_SETTER;
            there = out && a->core.setter.state == states[i];
            if (there || !out) { run(w, there ? 0 : STEP_MS); continue; }
            a->hold = MGR__TASK_NONE;
            box_serve(w, a, MGR__LANE_WORK);
            a->hold = MGR__TASK_SETTER;
        }
        if (!there) { printf("state %d\n", (int)states[i]); CHECK(!"there"); }
        command_set(w, a, 6);
        mgr__buf_clear(&a->asked);
        a->hold = MGR__TASK_NONE;
        for (int step = 0; step < 100 && !asked(a, "\n"); step++) run(w, STEP_MS);
        CHECK(in_order(&a->asked, "txn get cluster/partitions;", "\n"));     /* the answer to the former command says nothing to this one */
        run(w, 6000);
        CHECK(!said(a, "error"));
        CHECK_INT(a->core.set.count, 6);
        CHECK_INT(works_count(a), 6);
        world_end(w);
    }
}

TEST(a_refused_wish_is_dropped_and_the_others_keep_their_order)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 4), *b = box_open(w, 1, "b", 0);
    run(w, 3000);
    forget(a);
    CHECK(mgr__cluster_wish(&a->core, mgr__str_of("b"), true, false));
    CHECK(mgr__cluster_wish(&a->core, mgr__str_of("b"), false, true));
    CHECK(mgr__cluster_wish(&a->core, mgr__str_of("b"), false, false));
    hold(w, a, MGR__TASK_WISH);
    mgr__answer no = answer_of(MGR__OUTCOME_DENIED);
    a->hold = MGR__TASK_NONE;
    box_answer(w, a, MGR__LANE_WORK, &no);
    CHECK_INT(a->core.wish_count, 2);
    CHECK_INT(times(&a->log, "error: Consul refuses to write a wish"), 1);
    for (int i = 0; i < 1000 && !value_has(w, "cluster/wishes/b", "\"drain\":true"); i++) run(w, STEP_MS);
    CHECK(value_has(w, "cluster/wishes/b", "\"drain\":true"));
    run(w, 2000);
    CHECK(value_has(w, "cluster/wishes/b", "\"drain\":false"));
    CHECK_INT(a->core.wish_count, 0);
    CHECK(b->alive && !said(b, "evicted"));
    world_end(w);
}

TEST(an_old_life_s_renewal_does_not_end_the_new_one)
{
    world *w = the_world();
    char life[40];
    box *a = box_open(w, 0, "a", 2);
    run(w, 1500);
    a->hold = MGR__TASK_RENEW;
    lease_out(w, a, MGR__TASK_RENEW);
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    dc_session_destroy(&w->store, w->now, mgr__str_of(life));
    run(w, 400);
    CHECK(a->core.phase == MGR__PHASE_MEMBER && strcmp(a->core.life, life) != 0);
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    forget(a);
    a->hold = MGR__TASK_NONE;           /* 404: of the old session */
    run(w, 1000);
    CHECK_STR(a->core.life, life);
    CHECK(!said(a, "session-lost") && works_count(a) == 2);
    world_end(w);
}

/* What ends an outage is noticed within a confirmation's time, however long it was. */
TEST(consul_is_tried_again_as_often_as_it_is_confirmed)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    run(w, 2000);
    for (uint32_t failures = 1; failures < 40; failures++) {
        int64_t ms = mgr__cluster_backoff(&a->core, failures);
        CHECK(ms >= MGR__BACKOFF_MIN_MS / 2 && ms <= mgr__max64(MGR__BACKOFF_MIN_MS, mgr__cluster_round_ms(&a->core)));
        CHECK(failures < 8 || ms >= mgr__cluster_round_ms(&a->core) / 2);
    }
    world_end(w);
}

/* A proxy that does not hold queries, say. */
TEST(watches_that_come_back_at_once_with_nothing_new_back_off)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    mgr__errand *e = &a->core.errands[MGR__LANE_WATCH];
    run(w, 2000);
    a->blocked[MGR__LANE_WATCH] = true;
    forget(a);
    for (int64_t until = w->now + 20000; w->now < until;) {
        run(w, STEP_MS);
        if (!e->out) continue;
        mgr__answer same = apply(w, &e->request);
        box_answer(w, a, MGR__LANE_WATCH, &same);
    }
    CHECK(times(&a->asked, "watch") >= 3 && times(&a->asked, "watch") <= 12);
    CHECK(works_count(a) == 2 && !said(a, "lost"));
    a->blocked[MGR__LANE_WATCH] = false;
    run(w, 12000);                      /* held again: no further back-off */
    CHECK_INT(a->core.watch_failures, 0);
    world_end(w);
}

/* A fence is the index of a lock plus fence_base: the one that stands with the lock. */
TEST(locks_hang_on_the_marker_that_is_known)
{
    world *w = the_world();
    mgr__buf value;
    mgr__buf_init(&value, &w->heap, 4096);
    box *a = box_open(w, 0, "a", 2);
    hold(w, a, MGR__TASK_LOCK);
    CHECK(asked(a, "txn check-index cluster/partitions;"));
    mgr__marker marker = a->core.picture.marker;
    marker.fence_base += 100000;
    mgr__marker_write(&marker, &value);
    a->blocked[MGR__LANE_WATCH] = true;
    put(w, "cluster/partitions", mgr__buf_cstr(&value));
    forget(a);
    a->hold = MGR__TASK_NONE;
    run(w, 500);
    CHECK(works_count(a) == 0 && !look(w, "owners/0").session.len);
    CHECK(times(&a->asked, "\n") < 60);
    CHECK(!asked(a, "get owners/0"));   /* not the partitions are to blame */
    a->blocked[MGR__LANE_WATCH] = false;
    run(w, 200);
    CHECK_INT(works_count(a), 2);
    CHECK_INT(a->works[0].fence, look(w, "owners/0").modify_index + 100000);
    mgr__buf_free(&value);
    world_end(w);
}

/* Invariant 9: whose picture lags, or is not to change, asks less and less often. */
TEST(a_lock_that_fails_on_the_marker_waits_longer_each_time)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    run(w, 1000);
    int64_t wait_ms = MGR__MARKER_WAIT_MS;
    for (int i = 0; i < 10; i++) {
        mgr__cluster_outrun(&a->core, w->now);
        CHECK_INT(a->core.not_before - w->now, wait_ms);
        if (i < 6) wait_ms *= 2;
    }
    a->core.picture.marker.modify_index++;
    mgr__cluster_outrun(&a->core, w->now);
    CHECK_INT(a->core.not_before - w->now, MGR__MARKER_WAIT_MS);
    world_end(w);
}

TEST(certificates_that_nobody_needs_are_swept)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    put(w, "cluster/dead/needed", "{}");
    put(w, "cluster/dead/old", "{}");
    put(w, "owners/gone", "{\"state\":\"held\",\"life\":\"needed\"}");
    run(w, 500);
    forget(a);
    a->core.next_sweep = w->now;
    run(w, 2000);
    put(w, "cluster/dead/young", "{}");
    run(w, 500);
    CHECK(asked(a, "list") && look(w, "cluster/dead/old").modify_index);        /* seen by one sweep only */
    a->core.next_sweep = w->now;
    run(w, 2000);
    CHECK(!look(w, "cluster/dead/old").modify_index);
    CHECK(look(w, "cluster/dead/needed").modify_index && look(w, "cluster/dead/young").modify_index);
    CHECK_INT(works_count(a), 2);
    world_end(w);
}

typedef struct tally { long calls; size_t bytes, most; } tally;

static void *tallied(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    tally *t = (tally *)user;
    t->calls++;
    t->bytes += new_bytes - old_bytes;
    if (t->bytes > t->most) t->most = t->bytes;
    if (new_bytes) return realloc(ptr, new_bytes);
    free(ptr);
    return NULL;
}

static tally sweep_of(size_t certificate_count)
{
    enum { OWNERS = 2000 };
    static mgr__kv kvs[OWNERS];
    static mgr__certificate certificates[30];
    static mgr__cluster core;
    tally t;
    mgr_allocator allocator;
    memset(&t, 0, sizeof t);
    allocator.resize = tallied;
    allocator.user = &t;
    mgr__heap heap = mgr__heap_make(&allocator);
    memset(&core, 0, sizeof core);
    core.heap = &heap;
    for (int i = 0; i < OWNERS; i++) kvs[i] = kv_of("k", "{\"state\":\"held\",\"life\":\"0f0f0f0f-aaaa-bbbb-cccc-0123456789ab\",\"instance\":\"host-1\"}", "", 5);
    for (size_t i = 0; i < certificate_count; i++) { certificates[i].life = mgr__str_of("1f0f0f0f-aaaa-bbbb-cccc-0123456789ab"); certificates[i].modify_index = 3; }
    core.picture.certificates = certificates;
    core.picture.certificate_count = certificate_count;
    core.sweep_index = 10;
    mgr__answer a = answer_of(MGR__OUTCOME_OK);
    a.kvs = kvs;
    a.kv_count = OWNERS;
    mgr__cluster_sweep_answer(&core, &a);
    CHECK_INT(core.swept_count, certificate_count);
    CHECK_INT(t.bytes, 0);
    return t;
}

TEST(a_sweep_is_one_pass_over_the_owners)
{
    tally one = sweep_of(1), many = sweep_of(30);
    CHECK_INT(many.calls, one.calls);
    CHECK(many.most < 65536);
}

/* ---- the core: losing ---- */

TEST(a_partition_changed_by_hand_is_killed_alone)
{
    world *w = the_world();
    char life[40];
    box *a = box_open(w, 0, "a", 3);
    run(w, 1000);
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    uint64_t fence = a->works[1].fence;
    forget(a);
    put(w, "owners/1", "{\"state\":\"held\"}");
    run(w, LEASE_MS);
    CHECK(said(a, "kill 1") && !said(a, "kill 0") && !said(a, "kill 2"));
    CHECK_STR(a->core.life, life);
    CHECK(works(a, 1) && a->works[1].fence > fence);        /* the lock was still ours: taken anew */
    forget(a);
    remove_key(w, "owners/2");
    run(w, LEASE_MS);
    CHECK(said(a, "kill 2") && !said(a, "kill 0") && !works(a, 2));      /* missing: lost for delay_max */
    run(w, DELAY_MS + LEASE_MS);
    CHECK(works(a, 2));
    world_end(w);
}

static void check_new_life(world *w, box *a, const char *life, const char *how)
{
    char certificate[100], destroy[100];
    snprintf(certificate, sizeof certificate, "set cluster/dead/%s", life);
    snprintf(destroy, sizeof destroy, "destroy %s", life);
    run(w, LEASE_MS);
    CHECK(said(a, how));
    CHECK(!asked(a, certificate));      /* work that was not seen dead is not certified (invariant 4) */
    CHECK(!said(a, "fresh"));
    for (int i = 0; i < 2; i++) box_gone(w, a, numbers[i]);
    a->keeps_work = false;
    run(w, 1000);
    CHECK(in_order(&a->asked, certificate, destroy) && in_order(&a->asked, destroy, "create"));
    CHECK(in_order(&a->log, "fresh", "begin"));
    CHECK_INT(works_count(a), 2);
    CHECK(strcmp(a->core.life, life) != 0);
}

TEST(own_key_removed_ends_the_life)
{
    world *w = the_world();
    char life[40];
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    a->keeps_work = true;
    forget(a);
    remove_key(w, "cluster/instances/a");
    check_new_life(w, a, life, "session-lost: our own key was removed");
    world_end(w);
}

TEST(a_session_taken_away_kills_at_once)
{
    world *w = the_world();
    char life[40];
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    a->keeps_work = true;
    forget(a);
    dc_session_destroy(&w->store, w->now, mgr__str_of(life));
    run(w, 50);
    CHECK(said(a, "kill 0") && said(a, "kill 1"));
    check_new_life(w, a, life, "session-lost");
    world_end(w);
}

/* Nobody sees the picture: the confirmation alone must find out. */
TEST(a_lost_session_is_found_by_the_confirmation_too)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    a->blocked[MGR__LANE_WATCH] = true;
    forget(a);
    dc_session_destroy(&w->store, w->now, mgr__str_of(a->core.life));
    run(w, LEASE_MS / MGR__CONFIRMS_PER_LEASE + 100);
    CHECK(said(a, "kill 0") && said(a, "kill 1"));
    CHECK(said(a, "session-lost: Consul says that our session no longer holds our own key"));
    world_end(w);
}

TEST(an_empty_store_is_not_nobody)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    forget(a);
    mgr__answer empty = answer_of(MGR__OUTCOME_OK);        /* as without the right to read: 200 and nothing */
    empty.index = a->core.watch_index + 5;
    a->blocked[MGR__LANE_WATCH] = true;
    for (int i = 0; i < 2000 && !a->core.errands[MGR__LANE_WATCH].out; i++) run(w, STEP_MS);
    box_answer(w, a, MGR__LANE_WATCH, &empty);
    run(w, 2000);
    CHECK_INT(works_count(a), 2);
    CHECK(said(a, "lacks key read"));
    world_end(w);
}

TEST(work_is_stopped_politely_before_the_lease_ends)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    a->keeps_work = true;
    a->blocked[MGR__LANE_LEASE] = true;
    forget(a);
    run(w, a->lease - GRACE_MS - w->now - 20);
    CHECK(!said(a, "stop"));
    run(w, 60);
    CHECK(said(a, "lease-lost"));
    CHECK_INT(times(&a->log, "stop "), 2);
    const char *within = strstr(mgr__buf_cstr(&a->log), "within ");
    int ms = within ? atoi(within + 7) : -1;
    CHECK(ms > 0 && ms <= GRACE_MS);
    CHECK(!a->core.life[0] && a->core.lease_until == 0);
    world_end(w);
}

TEST(a_late_confirmation_does_not_reopen_a_lease)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    run(w, 1000);
    a->keeps_work = true;
    a->hold = MGR__TASK_CONFIRM;
    run(w, LEASE_MS);
    CHECK(said(a, "lease-lost") && a->core.phase == MGR__PHASE_ENDING);
    int64_t lease = a->lease;
    mgr__answer ok = answer_of(MGR__OUTCOME_OK);
    CHECK(a->core.errands[MGR__LANE_LEASE].out);
    if (a->core.errands[MGR__LANE_LEASE].out) box_answer(w, a, MGR__LANE_LEASE, &ok);
    CHECK_INT(a->lease, lease);
    CHECK_INT(a->core.phase, MGR__PHASE_ENDING);
    world_end(w);
}

TEST(a_closed_lease_word_ends_the_life)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    run(w, 1000);
    forget(a);
    a->closed = true;           /* the keeper swapped it: it has begun to kill */
    run(w, LEASE_MS);
    CHECK(said(a, "lease-lost") && in_order(&a->log, "kill 0", "fresh") && in_order(&a->log, "fresh", "begin 0"));
    world_end(w);
}

/* ---- the core: others' ends ---- */

TEST(the_dead_are_waited_for_unless_certified)
{
    for (int certified = 0; certified < 2; certified++) {
        world *w = the_world();
        char life[40], key[80];
        box *a = box_open(w, 0, "a", 2);
        box *b = box_open(w, 1, "b", 2);
        run(w, 1500);
        CHECK(works_count(a) == 1 && works_count(b) == 1);
        mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
        snprintf(key, sizeof key, "cluster/dead/%s", life);
        box_dies(a);
        dc_session_destroy(&w->store, w->now, mgr__str_of(life));
        run(w, 1000);
        if (certified) put(w, key, "{}");
        run(w, certified ? 100 : DELAY_MS - 1100);
        CHECK(said(b, "was lost by a without proof of death: it is taken in"));
        CHECK_INT(works_count(b), certified ? 2 : 1);
        run(w, 1500);
        CHECK_INT(works_count(b), 2);
        CHECK(said(b, "member-dead") && said(b, "deregistered the dead instance a"));
        CHECK(!look(w, "cluster/instances/a").modify_index);
        CHECK_INT(w->store.service_count, 1);
        world_end(w);
    }
}

/* Its keeper certifies first and ends the session later: the heirs do not wait for that. */
TEST(a_certified_life_is_dead_while_its_session_stands)
{
    world *w = the_world();
    char life[40], key[80];
    box *a = box_open(w, 0, "a", 2);
    box *b = box_open(w, 1, "b", 2);
    run(w, 1500);
    CHECK(works_count(a) == 1 && works_count(b) == 1);
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    snprintf(key, sizeof key, "cluster/dead/%s", life);
    box_dies(a);
    run(w, 200);
    CHECK_INT(works_count(b), 1);
    put(w, key, "{}");
    run(w, 100);
    CHECK_INT(works_count(b), 2);
    CHECK(said(b, "instance a is dead: its keeper certifies it"));
    a = box_open(w, 0, "a", 2);         /* nor does its next start */
    run(w, 500);
    CHECK(a->core.phase == MGR__PHASE_MEMBER && !said(a, "still held"));
    dc_session_destroy(&w->store, w->now, mgr__str_of(life));
    forget(b);
    run(w, 2 * LEASE_MS);
    CHECK(works_count(a) == 1 && works_count(b) == 1 && !said(b, "lost partition"));
    world_end(w);
}

/* Between two looks at a missing key it may have been made, locked and deleted again. */
TEST(a_missing_key_s_delay_counts_from_when_it_is_made_anew)
{
    world *w = the_world();
    char other[40];
    box *a = box_open(w, 0, "a", 1);
    run(w, 1000);
    session_of(w, "other", other);
    remove_key(w, "owners/0");
    for (int i = 0; i < 1000 && !said(a, "was lost by"); i++) run(w, STEP_MS);
    CHECK(value_has(w, "owners/0", "\"held\"") && value_has(w, "owners/0", "\"delay\":4000"));
    run(w, DELAY_MS - 1000);
    CHECK(store_do(w, MGR__LOCK, "owners/0", "{\"state\":\"held\"}", other, 0));      /* another was first, */
    remove_key(w, "owners/0");                                                          /* and its key is deleted too */
    run(w, DELAY_MS - 200);
    CHECK(!works(a, 0));
    run(w, LEASE_MS + 1000);
    CHECK(works(a, 0));
    world_end(w);
}

TEST(a_start_within_the_grace_gets_back_what_it_had)
{
    world *w = the_world();
    mgr__cluster_config config = config_of("a", 4);
    config.rejoin_grace_ms = 20000;
    box *a = box_open_as(w, 0, "a", &config);
    box *b = box_open(w, 1, "b", 4);
    run(w, 1500);
    bool had[4];
    for (int i = 0; i < 4; i++) had[i] = works(a, i);
    CHECK_INT(works_count(a), 2);
    char life[40];
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    box_dies(a);
    dc_session_destroy(&w->store, w->now, mgr__str_of(life));
    run(w, 2000);
    CHECK(look(w, "cluster/instances/a").modify_index != 0);
    CHECK_INT(works_count(b), 2);
    a = box_open_as(w, 0, "a", &config);
    run(w, DELAY_MS + 1000);
    for (int i = 0; i < 4; i++) CHECK(works(a, i) == had[i]);
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    box_dies(a);
    dc_session_destroy(&w->store, w->now, mgr__str_of(life));
    run(w, 20000 + DELAY_MS + 1000);
    CHECK_INT(works_count(b), 4);           /* the grace is over: another deletes its key */
    CHECK(!look(w, "cluster/instances/a").modify_index);
    world_end(w);
}

/* Tidying up after a dead instance must not come between its heirs and the servers, nor
 * be done by each of the others: one deletes its key, when the work runs again. */
TEST(a_dead_instance_is_buried_once_and_after_its_heirs_have_begun)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 6), *b = box_open(w, 1, "b", 0), *d = box_open(w, 2, "d", 0);
    run(w, 3000);
    CHECK_INT(works_count(d), 2);
    char life[40], key[64];
    mgr__copy_text(life, sizeof life, mgr__str_of(d->core.life));
    box_dies(d);
    snprintf(key, sizeof key, "cluster/dead/%s", life);
    CHECK(store_do(w, MGR__SET, key, "{}", "", 0));
    dc_session_destroy(&w->store, w->now, mgr__str_of(life));
    run(w, MGR__BURY_MS - 50);
    CHECK_INT(works_count(a) + works_count(b), 6);
    CHECK(look(w, "cluster/instances/d").modify_index != 0);
    run(w, MGR__BURY_SPREAD_MS + 500);
    CHECK(!look(w, "cluster/instances/d").modify_index);
    CHECK_INT(said(a, "deregistered the dead instance d") + said(b, "deregistered the dead instance d"), 1);
    world_end(w);
}

/* With a grace a leave is a restart: all is given back, nothing moves, and nobody has to
 * prove anything. Drained before, it leaves for good. */
TEST(a_leave_within_the_grace_keeps_the_share)
{
    world *w = the_world();
    mgr__cluster_config config = config_of("a", 4);
    config.rejoin_grace_ms = 20000;
    box *a = box_open_as(w, 0, "a", &config);
    box *b = box_open(w, 1, "b", 4);
    run(w, 1500);
    bool had[4];
    for (int i = 0; i < 4; i++) had[i] = works(a, i);
    CHECK_INT(works_count(a), 2);
    forget(b);
    mgr__cluster_leave(&a->core);
    box_pump(w, a);
    run(w, 3000);
    CHECK(!a->alive && a->result == MGR_OK);
    CHECK(look(w, "cluster/instances/a").modify_index && !look(w, "cluster/instances/a").session.len);
    CHECK(!value_has(w, "cluster/instances/a", "\"leaving\":true"));
    CHECK_INT(works_count(b), 2);
    CHECK(said(b, "instance a is away: its session is gone; its share is kept for its return") && !said(b, "rebalance"));
    a = box_open_as(w, 0, "a", &config);
    run(w, 1000);
    for (int i = 0; i < 4; i++) CHECK(works(a, i) == had[i]);
    CHECK(!said(b, "stop") && !said(b, "begin"));
    mgr__cluster_leave(&a->core);
    box_pump(w, a);
    run(w, 20000 + DELAY_MS);
    CHECK_INT(works_count(b), 4);           /* it did not come back */
    CHECK(!look(w, "cluster/instances/a").modify_index);
    a = box_open_as(w, 0, "a", &config);
    run(w, 3000);
    CHECK_INT(works_count(a), 2);
    put(w, "cluster/wishes/a", "{\"drain\":true}");
    run(w, 2000);
    mgr__cluster_leave(&a->core);
    box_pump(w, a);
    run(w, 1000);
    CHECK(!a->alive && !look(w, "cluster/instances/a").modify_index);
    world_end(w);
}

/* Evicted while its work ends, at the last moment, or when it is away already: nothing is kept. */
TEST(an_evict_makes_a_leave_one_for_good)
{
    for (int when = 0; when < 3; when++) {
        char wish[100];
        world *w = the_world();
        mgr__cluster_config config = config_of("a", 4);
        config.rejoin_grace_ms = 600000;
        box *a = box_open_as(w, 0, "a", &config);
        box *b = box_open(w, 1, "b", 4);
        run(w, 1500);
        snprintf(wish, sizeof wish, "{\"drain\":false,\"evict\":\"%s\"}", a->core.life);
        if (when == 0) a->keeps_work = true;
        mgr__cluster_leave(&a->core);
        box_pump(w, a);
        if (when == 1) hold(w, a, MGR__TASK_PARTING);
        else run(w, 500);
        CHECK_INT(a->alive, when < 2);
        CHECK_INT(works_count(b), 2);
        put(w, "cluster/wishes/a", wish);
        run(w, 500);
        if (when == 0) CHECK(value_has(w, "cluster/instances/a", "\"leaving\":true") && said(a, "an operator makes this instance leave"));
        for (int i = 0; i < 4 && when == 0; i++) if (works(a, i)) box_gone(w, a, numbers[i]);
        a->hold = MGR__TASK_NONE;
        run(w, 2000);
        CHECK(!a->alive && a->result == (when == 0 ? MGR_EVICTED : MGR_OK));
        CHECK(!look(w, "cluster/instances/a").modify_index);
        CHECK_INT(works_count(b), 4);
        world_end(w);
    }
}

/* ---- the core: what people want ---- */

TEST(evict_is_for_the_named_life_alone)
{
    world *w = the_world();
    char wish[100];
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    put(w, "cluster/wishes/a", "{\"drain\":false,\"evict\":\"a-former-life\"}");
    run(w, 1000);
    CHECK(a->alive && works_count(a) == 2);
    snprintf(wish, sizeof wish, "{\"drain\":false,\"evict\":\"%s\"}", a->core.life);
    put(w, "cluster/wishes/a", wish);
    run(w, 1000);
    CHECK(!a->alive);
    CHECK_INT(a->result, MGR_EVICTED);
    CHECK(value_has(w, "owners/0", "\"released\"") && !look(w, "cluster/instances/a").modify_index);
    a = box_open(w, 0, "a", 2);             /* its next life is another one */
    run(w, 1000);
    CHECK(a->alive && works_count(a) == 2);
    world_end(w);
}

TEST(an_instance_evicts_another)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    box *b = box_open(w, 1, "b", 2);
    run(w, 1500);
    CHECK(mgr__cluster_wish(&b->core, mgr__str_of("a"), true, false));
    box_pump(w, b);
    run(w, 1000);
    CHECK(!a->alive && a->result == MGR_EVICTED);
    CHECK_INT(works_count(b), 2);
    world_end(w);
}

TEST(drain_hands_everything_over_and_stays)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 4);
    box *b = box_open(w, 1, "b", 4);
    run(w, 1500);
    mgr__cluster_drain(&a->core, true);
    box_pump(w, a);
    run(w, 500);
    CHECK(works_count(a) == 0 && works_count(b) == 4);
    CHECK_INT(a->core.phase, MGR__PHASE_MEMBER);
    CHECK(value_has(w, "cluster/instances/a", "\"draining\":true"));
    mgr__cluster_drain(&a->core, false);
    box_pump(w, a);
    run(w, 500);
    CHECK(works_count(a) == 2 && works_count(b) == 2);
    mgr__cluster_drain(&a->core, true);
    mgr__cluster_drain(&b->core, true);
    box_pump(w, a);
    box_pump(w, b);
    run(w, 500);
    CHECK(works_count(a) == 0 && works_count(b) == 0);
    CHECK(said(b, "unplaceable: partition 0"));
    world_end(w);
}

TEST(a_refusal_moves_the_partition_and_doubles)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    box *b = box_open(w, 1, "b", 2);
    run(w, 1500);
    int mine = works(a, 0) ? 0 : 1;
    mgr__part *part = part_of(a, numbers[mine]);
    mgr__cluster_refuse(&a->core, part, 0, w->now);
    CHECK_INT(part->refused_until - w->now, MGR__REFUSE_MS);
    box_pump(w, a);
    run(w, 500);
    CHECK(!works(a, mine) && works(b, mine));
    run(w, MGR__REFUSE_MS + 500);
    CHECK(works(a, mine));                  /* the time is over: it may come back */
    mgr__cluster_refuse(&a->core, part, 0, w->now);
    CHECK_INT(part->refused_until - w->now, 2 * MGR__REFUSE_MS);
    mgr__cluster_refuse(&a->core, part, 0, w->now);
    CHECK_INT(part->refused_until - w->now, 4 * MGR__REFUSE_MS);
    for (int i = 0; i < 100; i++) mgr__cluster_refuse(&a->core, part, 0, w->now);
    CHECK_INT(part->refused_until - w->now, MGR__REFUSE_MAX_MS);
    mgr__cluster_refuse_no_more(&a->core, part);
    CHECK(!part->refused);
    mgr__cluster_refuse(&a->core, part, 700, w->now);
    CHECK_INT(part->refused_until - w->now, 700);
    world_end(w);
}

/* Somebody else of this id may have come and gone, or be there, since it was read. */
TEST(a_join_hangs_on_the_key_that_was_read)
{
    for (int stood = 0; stood < 2; stood++) {
        world *w = the_world();
        if (stood) put(w, "cluster/instances/a", "{\"life\":\"former\"}");
        box *a = box_open(w, 0, "a", 1);
        mgr__errand *e = &a->core.errands[MGR__LANE_WORK];
        a->hold = MGR__TASK_JOIN;
        for (int i = 0; i < 400 && !(e->out && e->task == MGR__TASK_JOIN); i++) run(w, STEP_MS);
        put(w, "cluster/instances/a", "{\"life\":\"another\"}");
        a->hold = MGR__TASK_NONE;
        run(w, STEP_MS);
        CHECK(a->core.phase != MGR__PHASE_MEMBER && !look(w, "cluster/instances/a").session.len);
        run(w, 2000);
        CHECK_INT(a->core.phase, MGR__PHASE_MEMBER);
        CHECK_INT(times(&a->asked, "create"), 2);
        world_end(w);
    }
}

TEST(two_instances_of_one_id_and_the_second_gives_way)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    forget(a);
    box *twin = box_open(w, 1, "a", 2);
    run(w, GRACE_MS + MARGIN_MS + MGR__IDENTITY_WAIT_MS + 2000);
    CHECK(!twin->alive);
    CHECK_INT(twin->result, MGR_IDENTITY);
    CHECK(said(twin, "identity: instance id a is held by a live instance"));
    CHECK(works_count(a) == 2 && !said(a, "kill") && !said(a, "stop"));
    twin = box_open(w, 1, "a", 2);          /* but a former life that is just ending is waited for */
    run(w, 500);
    mgr__cluster_leave(&a->core);
    box_pump(w, a);
    run(w, 2000);
    CHECK(!a->alive && twin->alive);
    CHECK_INT(works_count(twin), 2);
    world_end(w);
}

/* It looked before the other was there, and sees it only when it is about to join. */
TEST(a_joiner_that_meets_a_live_holder_gives_way)
{
    world *w = the_world();
    mgr__cluster_config config = config_of("a", 2);
    config.seed = 77;       /* of its own, as programs have: it names the Consul service */
    box *twin = box_open_as(w, 1, "a", &config);
    hold(w, twin, MGR__TASK_SESSION);
    box *a = box_open(w, 0, "a", 2);
    run(w, 1500);
    CHECK_INT(works_count(a), 2);
    forget(a);
    twin->hold = MGR__TASK_NONE;
    run(w, GRACE_MS + MARGIN_MS + MGR__IDENTITY_WAIT_MS + 4000);
    CHECK(!twin->alive && twin->result == MGR_IDENTITY);
    CHECK(works_count(a) == 2 && !said(a, "lost") && !said(a, "kill"));
    world_end(w);
}

/* ---- the core: whose is the id? ---- */

static bool answer_alive(void *user, uint64_t pid) { return pid == 7 && *(bool *)user; }

static mgr__cluster_config config_at(const char *boot, bool *lives)
{
    mgr__cluster_config config = config_of("a", 2);
    config.boot = mgr__str_of(boot);
    config.pid = 7;
    config.alive = answer_alive;
    config.user = lives;
    return config;
}

TEST(a_second_of_one_id_gives_way_at_once_where_the_first_can_be_seen_alive)
{
    static const char *const boots[] = { "this boot", "another boot" };     /* which nobody here can ask */
    bool lives = true;
    for (size_t i = 0; i < MGR__COUNT(boots); i++) {
        world *w = the_world();
        mgr__cluster_config first = config_at("this boot", &lives), second = config_at(boots[i], &lives);
        box *a = box_open_as(w, 0, "a", &first);
        run(w, 1000);
        box *twin = box_open_as(w, 1, "a", &second);
        run(w, 200);
        CHECK(!twin->alive && twin->result == MGR_IDENTITY && !said(twin, "waiting"));
        CHECK_INT(works_count(a), 2);
        world_end(w);
    }
}

TEST(a_former_life_of_this_boot_is_waited_for)
{
    bool lives = true;
    world *w = the_world();
    mgr__cluster_config config = config_at("this boot", &lives);
    box *a = box_open_as(w, 0, "a", &config);
    run(w, 1000);
    box_dies(a);                        /* nobody ends its session but Consul itself, by the check */
    lives = false;
    a = box_open_as(w, 0, "a", &config);
    run(w, GRACE_MS + MARGIN_MS + MGR__IDENTITY_WAIT_MS + 500);
    CHECK(a->alive && a->core.phase == MGR__PHASE_LOOK);
    CHECK_INT(times(&a->log, "waiting: instance id a is still held"), 1);
    run(w, DELAY_MS + 3 * TTL_MS);
    CHECK(a->alive && works_count(a) == 2);
    world_end(w);
}

/* A former life of this boot, killed with keeper and guard, is looked into: what the
 * executor sees decides. The session stands all the while. */
static box *return_at_once(world *w, mgr__verdict verdict, bool *lives)
{
    mgr__cluster_config config = config_at("this boot", lives);
    box *a = box_open_as(w, 0, "a", &config);
    mgr__copy_text(a->core.proof, sizeof a->core.proof, mgr__str_of("a file of a's"));
    run(w, 1000);
    CHECK_INT(works_count(a), 2);
    box_dies(a);
    *lives = false;
    a = box_open_as(w, 0, "a", &config);
    a->proves = true;
    a->verdict = verdict;
    return a;
}

TEST(a_former_life_that_is_proven_dead_is_certified_and_replaced_at_once)
{
    bool lives = true;
    char key[80], old[40];
    world *w = the_world();
    mgr__cluster_config config = config_at("this boot", &lives);
    box *a = box_open_as(w, 0, "a", &config);
    mgr__copy_text(a->core.proof, sizeof a->core.proof, mgr__str_of("a file of a's"));
    run(w, 1000);
    mgr__copy_text(old, sizeof old, mgr__str_of(a->core.life));
    box_dies(a);
    lives = false;
    a = box_open_as(w, 0, "a", &config);
    a->proves = true;
    a->verdict = MGR__VERDICT_LATER;        /* what was killed is still dying */
    run(w, 300);
    CHECK(said(a, "prove a file of a's") && !said(a, "certified") && a->core.phase == MGR__PHASE_LOOK);
    CHECK(times(&a->log, "prove ") > 3);
    a->verdict = MGR__VERDICT_DEAD;
    run(w, 1000);
    CHECK_INT(works_count(a), 2);
    CHECK(said(a, "certified that all work of the former life"));
    snprintf(key, sizeof key, "cluster/dead/%s", old);
    CHECK(look(w, key).modify_index > 0);
    CHECK_INT(dc_session_count(&w->store), 1);
    CHECK_INT(w->store.service_count, 1);
    world_end(w);
}

TEST(a_former_life_without_proof_is_waited_for_and_that_is_said)
{
    bool lives = true;
    world *w = the_world();
    box *a = return_at_once(w, MGR__VERDICT_NONE, &lives);
    run(w, 1500);
    CHECK_INT(times(&a->log, "prove "), 1);
    CHECK(said(a, "its death is not proven: the test says so"));
    CHECK(!said(a, "certified") && works_count(a) == 0);
    run(w, 2 * DELAY_MS + 3 * TTL_MS);
    CHECK(said(a, "has no proof of death: the test says so; what it held is taken after the delay"));
    CHECK(value_has(w, "cluster/instances/a", " the test says so\""));
    CHECK_INT(works_count(a), 2);
    CHECK(!said(a, "certified"));
    world_end(w);
}

TEST(a_former_life_that_never_dies_is_asked_after_less_and_less)
{
    bool lives = true;
    world *w = the_world();
    box *a = return_at_once(w, MGR__VERDICT_LATER, &lives);
    run(w, MGR__PROVE_MS + 200);
    int often = times(&a->log, "prove ");
    run(w, 1000);
    CHECK(often > 20 && times(&a->log, "prove ") <= often + 8);
    CHECK(!said(a, "certified") && works_count(a) == 0);
    run(w, 2 * DELAY_MS + 3 * TTL_MS);      /* the session ends: it enters, and waits as for anybody */
    CHECK_INT(works_count(a), 2);
    world_end(w);
}

/* Whether its proof is looked for on this host, or it is only waited for: Consul is asked
 * when something has changed, and then at once. */
TEST(a_former_life_that_is_dying_is_waited_for_on_the_watch)
{
    for (int here = 0; here < 2; here++) {
        char key[80], old[40];
        bool lives = true;
        world *w = the_world();
        mgr__cluster_config config = here ? config_at("this boot", &lives) : config_of("a", 2);
        box *a = box_open_as(w, 0, "a", &config);
        box *b = box_open(w, 1, "b", 0);
        run(w, 2000);
        mgr__copy_text(old, sizeof old, mgr__str_of(a->core.life));
        box_dies(a);
        lives = false;
        a = box_open_as(w, 0, "a", &config);
        a->proves = true;
        a->verdict = MGR__VERDICT_LATER;
        run(w, MGR__PROVE_MS / 2);
        CHECK_INT(a->core.phase, MGR__PHASE_LOOK);
        CHECK(times(&a->log, "prove ") >= here * 30);
        CHECK_INT(times(&a->asked, "list"), 1 + here);
        CHECK(times(&a->asked, "\n") <= 5);
        mgr__cluster_drain(&b->core, true);             /* another's key changes: not worth a look */
        box_pump(w, b);
        run(w, 50);
        CHECK_INT(times(&a->asked, "list"), 1 + here);
        snprintf(key, sizeof key, "cluster/dead/%s", old);
        put(w, key, "{}");                              /* its keeper's last words */
        dc_session_destroy(&w->store, w->now, mgr__str_of(old));
        run(w, 60);
        CHECK_INT(a->core.phase, MGR__PHASE_MEMBER);
        CHECK(!said(a, "has no proof of death"));
        world_end(w);
    }
}

TEST(another_instance_of_the_boot_certifies_the_dead)
{
    bool lives = true;
    for (int proves = 0; proves < 2; proves++) {
        world *w = the_world();
        mgr__cluster_config first = config_at("this boot", &lives), second = config_at("this boot", &lives), third = config_at("another boot", &lives);
        second.instance_id = mgr__str_of("b");
        third.instance_id = mgr__str_of("c");
        box *a = box_open_as(w, 0, "a", &first), *b = box_open_as(w, 1, "b", &second), *c = box_open_as(w, 2, "c", &third);
        mgr__copy_text(a->core.proof, sizeof a->core.proof, mgr__str_of("a file of a's"));
        b->proves = true;
        b->verdict = proves ? MGR__VERDICT_DEAD : MGR__VERDICT_NONE;
        run(w, 4000);
        char key[80];
        snprintf(key, sizeof key, "cluster/dead/%s", a->core.life);
        box_dies(a);
        run(w, DELAY_MS + 3 * TTL_MS + MGR__PROVE_MS);
        CHECK(said(b, "prove a file of a's") && !said(c, "prove "));
        CHECK_INT(look(w, key).modify_index > 0, proves);
        CHECK_INT(said(b, "certified that all work of instance a"), proves);
        CHECK(!look(w, "cluster/instances/a").modify_index);
        CHECK(works_count(b) + works_count(c) == 2);
        world_end(w);
    }
}

TEST(leaving_gives_all_back_and_cleans_up)
{
    world *w = the_world();
    char life[40];
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    mgr__copy_text(life, sizeof life, mgr__str_of(a->core.life));
    a->keeps_work = true;
    forget(a);
    mgr__cluster_leave(&a->core);
    box_pump(w, a);
    run(w, 1000);
    CHECK_INT(times(&a->log, "stop "), 2);
    CHECK(a->alive && !said(a, "kill") && value_has(w, "cluster/instances/a", "\"leaving\":true"));
    mgr__cluster_leave(&a->core);           /* again: at once */
    box_pump(w, a);
    CHECK_INT(times(&a->log, "kill "), 2);
    box_gone(w, a, "0");
    box_gone(w, a, "1");
    run(w, 1000);
    CHECK(!a->alive && a->result == MGR_OK);
    CHECK(value_has(w, "owners/0", "\"released\"") && value_has(w, "owners/1", "\"released\""));
    CHECK(!look(w, "cluster/instances/a").modify_index);
    CHECK_INT(dc_session_count(&w->store), 0);
    CHECK_INT(w->store.service_count, 0);
    char certificate[80];
    snprintf(certificate, sizeof certificate, "cluster/dead/%s", life);
    CHECK(!look(w, certificate).modify_index);      /* nothing was in doubt */
    world_end(w);
}

TEST(a_second_leave_kills_also_after_an_eviction)
{
    char wish[100];
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    a->keeps_work = true;
    snprintf(wish, sizeof wish, "{\"drain\":false,\"evict\":\"%s\"}", a->core.life);
    put(w, "cluster/wishes/a", wish);
    run(w, 500);
    CHECK_INT(times(&a->log, "stop "), 2);
    mgr__cluster_leave(&a->core);
    box_pump(w, a);
    CHECK(!said(a, "kill"));
    mgr__cluster_leave(&a->core);
    box_pump(w, a);
    CHECK_INT(times(&a->log, "kill "), 2);
    box_gone(w, a, "0");
    box_gone(w, a, "1");
    run(w, 1000);
    CHECK(!a->alive && a->result == MGR_EVICTED);
    world_end(w);
}

/* What was lost inside the program may go on for all we know: no certificate, also
 * not when leaving with an unlock that is not confirmed. */
TEST(a_life_that_is_not_proven_ended_is_not_certified)
{
    for (int leaves = 0; leaves < 2; leaves++) {
        char certificate[80];
        world *w = the_world();
        box *a = box_open(w, 0, "a", 2);
        run(w, 1000);
        snprintf(certificate, sizeof certificate, "cluster/dead/%s", a->core.life);
        a->core.unproven = true;
        forget(a);
        if (leaves) {
            a->hold = MGR__TASK_UNLOCK;
            mgr__cluster_leave(&a->core);
            box_pump(w, a);
            for (int i = 0; i < 100 && a->alive; i++) {
                mgr__answer lost = answer_of(MGR__OUTCOME_UNKNOWN);
                mgr__errand *e = &a->core.errands[MGR__LANE_WORK];
                if (e->out && e->task == MGR__TASK_UNLOCK) box_answer(w, a, MGR__LANE_WORK, &lost);
                run(w, 100);
            }
            CHECK(!a->alive);
        } else {
            mgr__cluster_over(&a->core, MGR_EVENT_KEEPER_LOST, "the keeper or its guard is gone", w->now);
            box_pump(w, a);
            run(w, 1000);
            CHECK(a->alive && a->core.phase == MGR__PHASE_MEMBER);
            CHECK_INT(works_count(a), 0);           /* not even we may take it at once */
            run(w, DELAY_MS + 2 * LEASE_MS);
            CHECK_INT(works_count(a), 2);
        }
        CHECK(!asked(a, certificate));
        CHECK(!look(w, certificate).modify_index);
        world_end(w);
    }
}

/* Leaving while it is not known whether a lock will still land: a certificate makes it
 * harmless, unless what this life did is not proven to be over. */
TEST(a_lock_in_doubt_is_certified_only_with_proof)
{
    for (int unproven = 0; unproven < 2; unproven++) {
        char certificate[80];
        world *w = the_world();
        box *a = box_open(w, 0, "a", 1);
        hold(w, a, MGR__TASK_LOCK);
        snprintf(certificate, sizeof certificate, "cluster/dead/%s", a->core.life);
        a->core.unproven = unproven;
        mgr__cluster_leave(&a->core);
        box_pump(w, a);
        lose_answer(w, a);
        run(w, 3000);
        CHECK(!a->alive);
        CHECK((look(w, certificate).modify_index != 0) == !unproven);
        world_end(w);
    }
}

TEST(a_set_changed_on_command_is_followed)
{
    world *w = the_world();
    mgr__set set;
    mgr__str bad;
    box *a = box_open(w, 0, "a", 2);
    box *b = box_open(w, 1, "b", 0);        /* takes the cluster's */
    run(w, 1500);
    CHECK(works_count(a) == 1 && works_count(b) == 1);
    mgr__set_make(&set, &w->heap, numbers + 1, 7, &bad);
    mgr__cluster_command_set(&b->core, &set, MGR_PLACEMENT_DEFAULT);
    box_pump(w, b);
    run(w, 1000);
    CHECK_INT(works_count(a) + works_count(b), 7);
    CHECK(!works(a, 0) && !works(b, 0));
    CHECK(!look(w, "owners/0").session.len && value_has(w, "owners/0", "\"released\""));
    CHECK(!part_of(a, "0") && !part_of(b, "0"));
    world_end(w);
}

/* sets/<hash> is deleted or overwritten by hand while others run with it. */
TEST(a_set_that_is_gone_is_put_back_for_who_needs_it)
{
    static const char *const instead[] = { NULL, "[\"0\",", "[[3,4]]" };
    for (size_t i = 0; i < MGR__COUNT(instead); i++) {
        char key[40];
        world *w = the_world();
        box *a = box_open(w, 0, "a", 4), *b = box_open(w, 1, "b", 4);
        run(w, 2000);
        snprintf(key, sizeof key, "sets/%s", a->core.set.hash);
        mgr__buf text;
        mgr__buf_init(&text, &w->heap, 4096);
        mgr__buf_str(&text, look(w, key).value);
        if (instead[i]) put(w, key, instead[i]);
        else remove_key(w, key);
        forget(a);
        forget(b);
        run(w, 3 * LEASE_MS);
        CHECK(!asked(a, "sets/") && !asked(b, "sets/"));        /* nobody looks without need */
        if (i == 2) a->blocked[MGR__LANE_WORK] = true;          /* the first does not answer: another does */
        box *c = box_open(w, 2, "c", 0);
        run(w, i == 2 ? 2 * MGR__RESTORE_SET_MS + 500 : 500);
        CHECK_INT(c->core.phase, MGR__PHASE_MEMBER);
        CHECK(said(c, instead[i] ? " cannot be read: whoever runs with it" : " is gone: whoever runs with it"));
        CHECK(said(i == 2 ? b : a, "was deleted or overwritten by hand: it is put back"));
        CHECK(times(&a->asked, "set sets/") + times(&b->asked, "set sets/") == 1 + (i == 2));
        CHECK(times(&c->asked, "get sets/") <= (i == 2 ? 8 : 2) && times(&c->asked, "cas cluster/missing") == 1);
        CHECK(mgr__str_is(look(w, key).value, mgr__buf_cstr(&text)) && !look(w, "cluster/missing").modify_index);
        mgr__buf_free(&text);
        world_end(w);
    }
}

/* Overwritten before it was looked at: who brought it has it all the same. */
TEST(who_brings_the_set_does_not_read_it)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 4);
    run(w, 1000);
    CHECK(a->core.have_set && works_count(a) == 4);
    CHECK_INT(times(&a->asked, "get sets/"), 0);
    box *b = box_open(w, 1, "b", 0);
    run(w, 1000);
    CHECK_INT(times(&b->asked, "get sets/"), 1);
    world_end(w);
}

TEST(a_set_that_nobody_has_is_asked_for_less_and_less)
{
    char key[40];
    world *w = the_world();
    box *a = box_open(w, 0, "a", 4);
    run(w, 1000);
    snprintf(key, sizeof key, "sets/%s", a->core.set.hash);
    mgr__cluster_leave(&a->core);
    box_pump(w, a);
    run(w, 1000);
    remove_key(w, key);
    box *b = box_open(w, 1, "b", 0);
    run(w, 60000);
    CHECK(b->core.phase == MGR__PHASE_SET && look(w, "cluster/missing").modify_index);
    CHECK(times(&b->asked, "get sets/") < 20 && times(&b->asked, "cas cluster/missing") == 1 && times(&b->log, "is gone") == 1);
    a = box_open(w, 0, "a", 4);                 /* starts with it, and so writes it anew */
    run(w, 1000 + 2 * MGR__RESTORE_SET_MS);
    CHECK(works_count(a) == 2 && works_count(b) == 2);
    CHECK(!look(w, "cluster/missing").modify_index);
    world_end(w);
}

TEST(a_missing_set_that_is_not_in_force_is_nobodys_business)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 4), *b = box_open(w, 1, "b", 4);
    run(w, 2000);
    for (int i = 0; i < 2; i++) {
        forget(a);
        put(w, "cluster/missing", i ? "what" : "{\"hash\":\"0123456789abcdef\"}");
        run(w, 500);
        CHECK(!look(w, "cluster/missing").modify_index && !asked(b, "cluster/missing") && !asked(a, "set sets/"));
    }
    world_end(w);
}

/* What was found missing is said of what is missing still: not when it lands late. */
TEST(a_late_word_of_a_missing_set_lands_on_nothing)
{
    char key[40];
    mgr__request late;
    world *w = the_world();
    box *a = box_open(w, 0, "a", 4);
    run(w, 1000);
    snprintf(key, sizeof key, "sets/%s", a->core.set.hash);
    remove_key(w, key);
    box *b = box_open(w, 1, "b", 0);
    mgr__errand *e = hold(w, b, MGR__TASK_MISS_SET);
    copy_request(w, &late, &e->request);
    lose_answer(w, b);
    run(w, 2000);
    CHECK(b->core.phase == MGR__PHASE_MEMBER);
    land_late(w, &late);
    CHECK(!look(w, "cluster/missing").modify_index);
    mgr__arena_free(&late.arena);
    world_end(w);
}

TEST(without_partitions_an_instance_waits_for_a_set)
{
    world *w = the_world();
    mgr__cluster_config config = config_of("b", 0);
    config.start_timeout_ms = 4000;
    box *b = box_open_as(w, 0, "b", &config);
    run(w, 2000);
    CHECK(b->alive && b->core.phase == MGR__PHASE_SET);
    CHECK_INT(set_now(w, numbers, 2, 0), MGR_OK);
    run(w, 1000);
    CHECK_INT(works_count(b), 2);
    world_end(w);
    w = the_world();
    b = box_open_as(w, 0, "b", &config);
    run(w, 6000);
    CHECK(!b->alive && b->result == MGR_TIMEOUT);
    world_end(w);
}

/* ---- the core: the store goes back in time ---- */

/* As after the restore of a snapshot: the same keys and session, at low indices. */
static void restore(world *w, box *b)
{
    dc_store old = w->store;
    mgr__kv kvs[40];
    size_t count = dc_list(&old, mgr__str_of("manager/svc/"), kvs, MGR__COUNT(kvs));
    dc_open(&w->store, &w->heap, 77);
    dc_session_create(&w->store, w->now, mgr__str_of("manager/svc/"), TTL_MS, 0, NULL, 0);
    mgr__copy_text(w->store.sessions[0]->id, DC_ID_BYTES, mgr__str_of(b->core.life));
    for (size_t i = 0; i < count; i++) {
        uint32_t failed[MGR__TXN_OPS_MAX];
        size_t results = 8, failed_count;
        mgr__kv out[8];
        bool ours = mgr__str_is(kvs[i].session, b->core.life);
        mgr__op op = op_of(ours ? MGR__LOCK : MGR__SET, "", "", "", 0);
        op.key = kvs[i].key;
        op.value = kvs[i].value;
        op.session = kvs[i].session;
        CHECK(dc_txn(&w->store, w->now, &op, 1, out, &results, failed, &failed_count));
    }
    dc_close(&old);
}

TEST(fences_grow_although_the_index_went_down)
{
    world *w = the_world();
    char filler[40];
    box *a = box_open(w, 0, "a", 3);
    for (int i = 0; i < 300; i++) { snprintf(filler, sizeof filler, "%d", i); put(w, "filler", filler); }
    run(w, 1000);
    CHECK_INT(works_count(a), 3);
    uint64_t top = a->works[0].fence;
    restore(w, a);
    CHECK(dc_index(&w->store) < top);
    forget(a);
    run(w, 4 * LEASE_MS + DELAY_MS);
    CHECK(said(a, "kill 0") && said(a, "index went down"));     /* confirmed at once: the locks are not as they were */
    CHECK_INT(works_count(a), 3);                               /* box_begin has checked the fences */
    CHECK(a->works[0].fence > top && a->core.picture.marker.fence_base >= top);
    world_end(w);
}

TEST(what_is_held_is_confirmed_at_once_when_the_index_went_down)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    mgr__errand *e = &a->core.errands[MGR__LANE_LEASE];
    run(w, 5000);
    for (int i = 0; i < 400 && (e->out || a->core.next_round - w->now < 500); i++) run(w, STEP_MS);
    mgr__cluster_index_down(&a->core, w->now);
    box_pump(w, a);
    CHECK(e->out && e->task == MGR__TASK_CONFIRM && e->sent_at == w->now);
    world_end(w);
}

/* It was released in the time that the store has gone back to: somebody may have taken it since. */
TEST(released_is_not_believed_for_the_delay_when_the_index_went_down)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    char filler[40];
    run(w, 1000);
    put(w, "cluster/wishes/a", "{\"drain\":true}");
    run(w, 1000);
    CHECK(value_has(w, "owners/0", "\"released\"") && works_count(a) == 0);
    for (int i = 0; i < 300; i++) { snprintf(filler, sizeof filler, "%d", i); put(w, "filler", filler); }
    mgr__kv marker = look(w, "cluster/partitions");
    char value[1024];
    snprintf(value, sizeof value, "%.*s ", (int)marker.value.len, marker.value.at);
    put(w, "cluster/partitions", value);        /* changed late: it is by the marker that an index which went down is known */
    run(w, 500);
    restore(w, a);
    put(w, "cluster/wishes/a", "{\"drain\":false}");
    forget(a);
    int64_t restored = w->now;
    while (!said(a, "begin") && w->now < restored + 10 * LEASE_MS) run(w, STEP_MS);
    CHECK(said(a, "index went down") && said(a, "begin"));
    CHECK(w->now - restored >= DELAY_MS);
    world_end(w);
}

/* A store that was put back by other means than Consul's own restore, whose indices go
 * on growing: the marker is as it was, the next lock gets an index that was given out before. */
TEST(a_lock_below_the_highest_index_waits_for_a_new_fence_base)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 1);
    mgr__errand *e = hold(w, a, MGR__TASK_LOCK);
    e->index_max = a->core.index_max = a->core.fence_top = 100000;
    a->hold = MGR__TASK_NONE;
    run(w, STEP_MS);
    CHECK(!said(a, "begin"));
    run(w, DELAY_MS + 2 * LEASE_MS);
    CHECK(works(a, 0) && a->works[0].fence > 100000);
    world_end(w);
}

static void box_block(box *b, bool on) { for (int lane = 0; lane < MGR__LANE_COUNT; lane++) b->blocked[lane] = on; }

/* What a snapshot holds. */
typedef struct snapshot { mgr__arena arena; mgr__kv kvs[40]; size_t count; } snapshot;

static void snapshot_take(world *w, snapshot *s)
{
    mgr__arena_init(&s->arena, &w->heap);
    s->count = dc_list(&w->store, mgr__str_of("manager/svc/"), s->kvs, MGR__COUNT(s->kvs));
    for (size_t i = 0; i < s->count; i++) {
        s->kvs[i].key = mgr__arena_str(&s->arena, s->kvs[i].key);
        s->kvs[i].value = mgr__arena_str(&s->arena, s->kvs[i].value);
        s->kvs[i].session = mgr__arena_str(&s->arena, s->kvs[i].session);
    }
}

static void session_restore(world *w, size_t at, const char *life)
{
    dc_session_create(&w->store, w->now, mgr__str_of("manager/svc/"), TTL_MS, 0, NULL, 0);
    mgr__copy_text(w->store.sessions[at]->id, DC_ID_BYTES, mgr__str_of(life));
}

/* As Consul does it: keys and sessions with their indices of then, and what is written
 * next gets a higher one than ever. */
static void snapshot_restore(world *w, snapshot *s, const char *life, const char *other)
{
    uint64_t highest = dc_index(&w->store);
    dc_close(&w->store);
    dc_open(&w->store, &w->heap, 79);
    session_restore(w, 0, life);
    if (other) session_restore(w, 1, other);
    for (uint64_t at = 0; at < 1000; at++)
        for (size_t i = 0; i < s->count; i++) {
            uint32_t failed[MGR__TXN_OPS_MAX];
            size_t results = 8, failed_count;
            mgr__kv out[8];
            if (s->kvs[i].modify_index != at) continue;
            mgr__op op = op_of(s->kvs[i].session.len ? MGR__LOCK : MGR__SET, "", "", "", 0);
            op.key = s->kvs[i].key;
            op.value = s->kvs[i].value;
            op.session = s->kvs[i].session;
            w->store.index = at - 1;
            CHECK(dc_txn(&w->store, w->now, &op, 1, out, &results, failed, &failed_count));
        }
    w->store.index = highest + 1;
    mgr__arena_free(&s->arena);
}

TEST(a_snapshot_restored_with_higher_indices_is_noticed_before_anything_is_taken)
{
    world *w = the_world();
    snapshot s;
    box *a = box_open(w, 0, "a", 6);
    run(w, 3000);
    CHECK_INT(works_count(a), 6);
    snapshot_take(w, &s);
    box *b = box_open(w, 1, "b", 6);
    run(w, 5000);
    size_t taken = works_count(b);
    CHECK(taken > 0 && works_count(a) + taken == 6);
    snapshot_restore(w, &s, a->core.life, NULL);      /* b is no member, and its partitions are locked by a */
    box_block(b, true);
    put(w, "cluster/wishes/x", "{}");
    forget(a);
    int64_t restored = w->now;
    while (!said(a, "begin") && w->now < restored + 10 * LEASE_MS) run(w, STEP_MS);     /* box_begin looks for a second owner */
    CHECK(said(a, "index went down") && w->now - restored >= DELAY_MS);
    run(w, LEASE_MS);
    CHECK_INT(works_count(a), 6);
    const char *told = strstr(mgr__buf_cstr(&a->log), "index went down");
    CHECK(told && !strstr(told + 1, "index went down"));
    world_end(w);
}

/* The one whose key is not there any more is first to know, and enters again. */
static void enters_again(const char *late)
{
    world *w = the_world();
    snapshot s;
    box *a = box_open(w, 0, "a", 6);
    run(w, 3000);
    if (late) put(w, late, "{}");
    snapshot_take(w, &s);
    if (late) CHECK(store_do(w, MGR__DELETE_CAS, late, "", "", look(w, late).modify_index));
    box *b = box_open(w, 1, "b", 6);
    box *c = box_open(w, 2, "c", 6);
    run(w, 6000);
    CHECK(works_count(b) && works_count(c) && works_count(a) + works_count(b) + works_count(c) == 6);
    snapshot_restore(w, &s, a->core.life, NULL);
    box_block(a, true);
    box_block(b, true);
    forget(c);
    run(w, LEASE_MS);
    CHECK(said(c, "index went down"));
    box_block(a, false);
    run(w, 4 * LEASE_MS + 2 * DELAY_MS);
    CHECK(works_count(a) + works_count(c) == 6);
    world_end(w);
}

TEST(who_enters_again_after_a_restore_knows_it_by_a_key_that_went_back) { enters_again(NULL); }
TEST(who_enters_again_after_a_restore_knows_it_by_who_came_back) { enters_again("cluster/instances/x"); }

/* Restoring wakes no held query. */
TEST(a_lock_hangs_on_the_own_key_for_a_restore_that_no_picture_shows)
{
    world *w = the_world();
    snapshot s;
    box *a = box_open(w, 0, "a", 6);
    run(w, 3000);
    snapshot_take(w, &s);
    box *b = box_open(w, 1, "b", 6);
    run(w, 5000);
    CHECK(works_count(b) > 0);
    b->keeps_work = true;
    put(w, "cluster/wishes/b", "{\"drain\":true}");
    run(w, 1000);                               /* a waits for what b still works on */
    snapshot_restore(w, &s, a->core.life, NULL);
    a->blocked[MGR__LANE_WATCH] = true;
    box_block(b, true);
    forget(a);
    int64_t restored = w->now;
    for (size_t i = 0; i < a->core.part_count; i++) a->core.parts[i]->stale = true;    /* the audit is due */
    while (!said(a, "index went down") && !said(a, "begin") && w->now < restored + LEASE_MS) run(w, STEP_MS);
    a->blocked[MGR__LANE_WATCH] = false;
    for (size_t i = 0; i < b->core.part_count; i++) if (works(b, (int)i)) box_gone(w, b, b->core.parts[i]->name.at);     /* within its lease */
    while (!said(a, "begin") && w->now < restored + 10 * LEASE_MS) run(w, STEP_MS);
    CHECK(said(a, "index went down") && said(a, "begin") && w->now - restored >= DELAY_MS);
    world_end(w);
}

/* What was given back and taken by another is locked by us again: it is not "released",
 * or one that has only now been started would believe it. */
TEST(a_lock_that_a_snapshot_brought_back_is_given_back_after_the_delay)
{
    world *w = the_world();
    snapshot s;
    box *a = box_open(w, 0, "a", 6);
    run(w, 3000);
    snapshot_take(w, &s);
    box *b = box_open(w, 1, "b", 6);
    run(w, 5000);
    CHECK(works_count(b) > 0);
    snapshot_restore(w, &s, a->core.life, NULL);
    box_block(b, true);
    int64_t restored = w->now;
    box *c = box_open(w, 2, "c", 6);
    while (!said(c, "begin 5") && w->now < restored + 10 * LEASE_MS) run(w, STEP_MS);   /* b's; another one is a's to give */
    CHECK(said(c, "begin 5") && w->now - restored >= DELAY_MS);
    run(w, LEASE_MS);
    CHECK(works_count(a) + works_count(c) == 6);
    world_end(w);
}

TEST(a_lock_that_a_snapshot_brought_back_and_nobody_wants_is_given_back)
{
    world *w = the_world();
    snapshot s;
    box *a = box_open(w, 0, "a", 6);
    run(w, 3000);
    a->keeps_work = true;
    box *b = box_open(w, 1, "b", 6);
    for (int i = 0; i < 1000 && !said(a, "releasing"); i++) run(w, STEP_MS);
    run(w, 500);
    snapshot_take(w, &s);                       /* b waits for what a still works on */
    a->keeps_work = false;
    for (size_t i = 0; i < a->core.part_count; i++) if (a->core.parts[i]->state == MGR__PART_RELEASING) box_gone(w, a, a->core.parts[i]->name.at);
    run(w, 3000);
    size_t taken = works_count(b);
    CHECK(taken > 0 && works_count(a) + taken == 6);
    snapshot_restore(w, &s, a->core.life, b->core.life);
    run(w, 3 * LEASE_MS + DELAY_MS);
    CHECK((size_t)works_count(b) == taken && works_count(a) + taken == 6);
    world_end(w);
}

/* Another's fences are not known here; that a lock got a lower index than was ever
 * seen says enough, before any picture shows it. */
TEST(a_lock_below_all_that_was_seen_starts_no_work)
{
    world *w = the_world();
    box *b = box_open(w, 1, "b", 2);
    for (int i = 0; i < 300; i++) { char filler[40]; snprintf(filler, sizeof filler, "%d", i); put(w, "filler", filler); }
    run(w, 1000);
    b->keeps_work = true;
    box *a = box_open(w, 0, "a", 2);
    run(w, 1000);
    CHECK(works_count(b) == 2 && works_count(a) == 0);          /* one of them is to be a's */
    a->blocked[MGR__LANE_WATCH] = true;
    box_dies(b);
    restore(w, a);
    run(w, DELAY_MS + 3 * LEASE_MS);
    CHECK_INT(works_count(a), 0);
    a->blocked[MGR__LANE_WATCH] = false;
    run(w, DELAY_MS + 3 * LEASE_MS);
    CHECK_INT(works_count(a), 2);                               /* box_begin has checked the fences */
    world_end(w);
}

TEST(a_wiped_store_is_set_up_anew_as_lost)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 2);
    for (int i = 0; i < 300; i++) { char filler[40]; snprintf(filler, sizeof filler, "%d", i); put(w, "filler", filler); }
    run(w, 1000);
    uint64_t top = a->works[0].fence;
    dc_close(&w->store);
    dc_open(&w->store, &w->heap, 78);
    forget(a);
    int64_t wiped = w->now;
    while (!said(a, "begin") && w->now < wiped + 10 * LEASE_MS) run(w, STEP_MS);
    CHECK(said(a, "kill 0"));
    CHECK(w->now - wiped >= DELAY_MS);      /* nobody says that all others are dead */
    CHECK(a->works[0].fence > top);
    world_end(w);
}

/* ---- the core: without memory ---- */

/* ---- the core: slots ---- */

static box *slots_open(world *w, int at, const char *id, size_t part_count)
{
    mgr__cluster_config config = config_of(id, part_count);
    config.placement = MGR_PLACEMENT_SLOTS;
    return box_open_as(w, at, id, &config);
}

/* The slot's key names this instance; "": there is none. */
static bool slot_is(world *w, uint32_t number, const char *id)
{
    char key[40], quoted[40];
    snprintf(key, sizeof key, "cluster/slots/%u", (unsigned)number);
    snprintf(quoted, sizeof quoted, "{\"instance\":\"%s\"}", id);
    return *id ? value_has(w, key, quoted) : look(w, key).modify_index == 0;
}

/* Slots 1 2 3 are of a, b and c. */
static void slots_three(world *w)
{
    slots_open(w, 0, "a", 6);
    run(w, 2000);
    slots_open(w, 1, "b", 0);
    run(w, 2000);
    slots_open(w, 2, "c", 0);
    run(w, 3000);
    CHECK(slot_is(w, 1, "a") && slot_is(w, 2, "b") && slot_is(w, 3, "c"));
    for (int i = 0; i < 3; i++) CHECK_INT(works_count(&w->boxes[i]), 2);
}

TEST(slots_are_claimed_with_the_key_and_freed_with_it)
{
    world *w = the_world();
    slots_three(w);
    CHECK(value_has(w, "cluster/partitions", "\"placement\":\"slots\",\"placement_version\":1"));
    CHECK(asked(&w->boxes[1], "txn absent cluster/instances/b; cas cluster/slots/2; lock cluster/instances/b;"));
    CHECK(!said(&w->boxes[1], "is placed by"));      /* what it was told is what stands */
    box_dies(&w->boxes[1]);
    run(w, 30000);
    CHECK(asked(&w->boxes[0], "delete cluster/instances/b; delete cluster/slots/2;") || asked(&w->boxes[2], "delete cluster/instances/b; delete cluster/slots/2;"));
    CHECK(slot_is(w, 2, "") && slot_is(w, 3, "c"));
    CHECK(works_count(&w->boxes[0]) == 3 && works_count(&w->boxes[2]) == 3);
    slots_open(w, 3, "d", 0);
    run(w, 3000);
    CHECK(slot_is(w, 2, "d"));                       /* the lowest that is free */
    mgr__cluster_leave(&w->boxes[0].core);
    box_pump(w, &w->boxes[0]);
    run(w, 3000);
    CHECK(slot_is(w, 1, "") && slot_is(w, 2, "d") && slot_is(w, 3, "c"));
    CHECK(works_count(&w->boxes[2]) == 3 && works_count(&w->boxes[3]) == 3);
    world_end(w);
}

TEST(two_joiners_at_once_never_share_a_slot)
{
    world *w = the_world();
    box *a = slots_open(w, 0, "a", 6);
    run(w, 2000);
    box *b = slots_open(w, 1, "b", 0);
    mgr__errand *e = hold(w, b, MGR__TASK_JOIN);
    b->blocked[MGR__LANE_WATCH] = true;             /* it does not see that another was quicker */
    box *c = slots_open(w, 2, "c", 0);
    run(w, 1000);
    CHECK(slot_is(w, 2, "c"));
    CHECK(e->out && e->task == MGR__TASK_JOIN);
    b->hold = MGR__TASK_NONE;
    run(w, 300);
    CHECK(times(&b->asked, "cas cluster/slots/2;") > 1 && !said(b, "entered"));     /* again and again, for that is all it knows */
    b->blocked[MGR__LANE_WATCH] = false;
    run(w, 3000);
    CHECK(slot_is(w, 2, "c") && slot_is(w, 3, "b"));
    CHECK(times(&b->asked, "create") == 1 && said(b, "entered"));        /* in the same life */
    CHECK(works_count(a) == 2 && works_count(b) == 2 && works_count(c) == 2);
    world_end(w);
}

/* Many at once: each transaction that is lost was another's success. */
TEST(a_crowd_of_joiners_is_numbered_without_gaps)
{
    static const char *const ids[BOXES] = { "i0", "i1", "i2", "i3" }, *const keys[BOXES] = { "cluster/slots/1", "cluster/slots/2", "cluster/slots/3", "cluster/slots/4" };
    world *w = the_world();
    for (int i = 0; i < BOXES; i++) slots_open(w, i, ids[i], 8);
    run(w, 10000);
    int all = 0, lost = 0;
    for (int i = 0; i < BOXES; i++) {
        CHECK(look(w, keys[i]).modify_index && times(&w->boxes[i].asked, "create") == 1);
        lost += times(&w->boxes[i].asked, "cas cluster/slots/") - 1;
    }
    CHECK(lost > 0);
    for (int i = 0; i < BOXES; i++) all += works_count(&w->boxes[i]);
    CHECK_INT(all, 8);
    world_end(w);
}

TEST(a_start_within_the_grace_gets_its_slot_back)
{
    world *w = the_world();
    mgr__cluster_config config = config_of("b", 0);
    config.rejoin_grace_ms = 60000;
    slots_open(w, 0, "a", 6);
    run(w, 2000);
    box *b = box_open_as(w, 1, "b", &config);
    run(w, 3000);
    CHECK(slot_is(w, 2, "b") && works_count(b) == 3);
    uint64_t index = look(w, "cluster/slots/2").modify_index;
    box_dies(b);
    run(w, 20000);
    slots_open(w, 2, "c", 0);                       /* the slot of the dead one is not free */
    run(w, 3000);
    CHECK(slot_is(w, 2, "b") && slot_is(w, 3, "c"));
    b = box_open_as(w, 1, "b", &config);
    run(w, 3000 + DELAY_MS);
    CHECK(asked(b, "check-index cluster/slots/2; lock cluster/instances/b;"));
    CHECK(look(w, "cluster/slots/2").modify_index == index && works_count(b) == 2);
    world_end(w);
}

TEST(slots_changed_by_hand_are_mended)
{
    world *w = the_world();
    slots_three(w);
    for (int i = 0; i < 3; i++) forget(&w->boxes[i]);
    remove_key(w, "cluster/slots/2");
    run(w, 1500);
    CHECK(slot_is(w, 2, "b"));                       /* claimed anew; nothing moved */
    for (int i = 0; i < 3; i++) CHECK(works_count(&w->boxes[i]) == 2 && !said(&w->boxes[i], "begin"));
    put(w, "cluster/slots/1", "{\"instance\":\"c\"}");      /* c has two now, and a none */
    run(w, 4000);
    CHECK(slot_is(w, 1, "c") && slot_is(w, 2, "b") && slot_is(w, 3, "a"));
    put(w, "cluster/slots/9", "{\"instance\":\"nobody\"}");
    put(w, "cluster/slots/8", "what");
    run(w, 1500);
    CHECK(slot_is(w, 8, "") && slot_is(w, 9, ""));
    put(w, "cluster/slots/2", "what");              /* b's: nobody can read it, so it is mended */
    run(w, 1500);
    CHECK(slot_is(w, 2, "b"));
    int all = 0;
    for (int i = 0; i < 3; i++) all += works_count(&w->boxes[i]);
    CHECK_INT(all, 6);
    world_end(w);
}

/* The last picture before parting shows a slot's key that was changed since. */
TEST(who_leaves_with_an_old_picture_of_its_slot_looks_and_leaves_at_once)
{
    for (int now_of = 0; now_of < 3; now_of++) {
        world *w = the_world();
        slots_three(w);
        box *b = &w->boxes[1];
        b->keeps_work = true;
        mgr__cluster_leave(&b->core);
        box_pump(w, b);
        run(w, 200);
        b->blocked[MGR__LANE_WATCH] = true;
        w->boxes[0].blocked[MGR__LANE_WORK] = true;     /* nobody else mends it */
        if (now_of == 0) put(w, "cluster/slots/2", "{\"instance\":\"b\" }");
        else if (now_of == 1) put(w, "cluster/slots/2", "{\"instance\":\"else\"}");
        else remove_key(w, "cluster/slots/2");
        forget(b);
        for (int i = 0; i < 6; i++) if (works(b, i)) box_gone(w, b, numbers[i]);
        run(w, 200);
        CHECK(!b->alive && b->result == MGR_OK);
        CHECK(!look(w, "cluster/instances/b").modify_index && !asked(b, "cluster/dead/"));
        CHECK(slot_is(w, 2, now_of == 1 ? "else" : ""));
        CHECK_INT(times(&b->asked, "list"), now_of < 2);      /* to delete what is gone is no conflict */
        world_end(w);
    }
}

/* Whatever the keys say, all compute one map, and it is total. */
TEST(any_picture_of_slots_makes_a_map)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__picture p;
    mgr__set set;
    mgr__str bad;
    mgr__kv kvs[12];
    uint32_t owners[8], counts[4] = { 0, 0, 0, 0 };
    size_t n = 0;
    kvs[n++] = kv_of(IN "instances/a", "{\"life\":\"L1\",\"weight\":1}", "L1", 9);
    kvs[n++] = kv_of(IN "instances/b", "{\"life\":\"L2\",\"weight\":1}", "L2", 5);
    kvs[n++] = kv_of(IN "instances/c", "{\"life\":\"L3\",\"weight\":7}", "L3", 7);
    kvs[n++] = kv_of(IN "instances/d", "{\"life\":\"L4\",\"weight\":1}", "L4", 6);
    kvs[n++] = kv_of(IN "partitions", "{\"hash\":\"h\",\"placement\":\"slots\",\"placement_version\":1}", "", 7);
    kvs[n++] = kv_of(IN "slots/2", "{\"instance\":\"d\"}", "", 8);
    kvs[n++] = kv_of(IN "slots/4", "{\"instance\":\"d\"}", "", 8);
    kvs[n++] = kv_of(IN "slots/0", "{\"instance\":\"a\"}", "", 8);        /* no number of ours, like the next three */
    kvs[n++] = kv_of(IN "slots/01", "{\"instance\":\"a\"}", "", 8);
    kvs[n++] = kv_of(IN "slots/x", "{\"instance\":\"a\"}", "", 8);
    kvs[n++] = kv_of(IN "slots/99999", "{\"instance\":\"a\"}", "", 8);
    kvs[n++] = kv_of(IN "slots/3", "{\"instance\":\"gone\"}", "", 8);
    CHECK(picture_of(&p, &heap, kvs, n));
    /* d has 2, for it is the lower one; the others are numbered by age, around it. */
    static const uint32_t wanted[] = { 4, 1, 3, 2 };
    for (int i = 0; i < 4; i++) CHECK_INT(p.members[i].slot, wanted[i]);
    CHECK(p.free_slot == 5 && p.members[3].slot_index == 8 && !p.members[0].slot_index);
    CHECK(!mgr__set_make(&set, &heap, numbers, 8, &bad));
    CHECK_INT(mgr__picture_map(&p, &heap, &set, owners), MGR_OK);
    for (int x = 0; x < 8; x++) { CHECK(owners[x] < 4); counts[owners[x] % 4]++; }
    for (int i = 0; i < 4; i++) CHECK_INT(counts[i], 2);        /* weights count as equal here */
    CHECK(mgr__picture_odd_weight(&p, 0, mgr__str_of("")) == &p.members[2]);
    mgr__picture_free(&p);
    kvs[4] = kv_of(IN "partitions", "{\"hash\":\"h\",\"placement\":\"slots\",\"placement_version\":2}", "", 7);
    CHECK(picture_of(&p, &heap, kvs, n));
    CHECK_INT(mgr__picture_map(&p, &heap, &set, owners), MGR_INVALID);
    mgr__picture_free(&p);
    mgr__set_free(&set);
}

TEST(a_start_does_not_change_the_placement_and_a_command_does)
{
    world *w = the_world();
    box *a = box_open(w, 0, "a", 6);
    run(w, 2000);
    CHECK(value_has(w, "cluster/partitions", "\"placement\":\"rush\""));
    box *b = slots_open(w, 1, "b", 6);
    run(w, 3000);
    CHECK(value_has(w, "cluster/partitions", "\"placement\":\"rush\"") && slot_is(w, 1, ""));
    CHECK_INT(times(&b->log, "is placed by \"rush\", not by \"slots\" as this instance was told"), 1);
    CHECK(!said(a, "is placed by") && works_count(a) == 3 && works_count(b) == 3);
    mgr__cluster_command_set(&a->core, NULL, MGR_PLACEMENT_SLOTS);
    box_pump(w, a);
    run(w, 3000);
    CHECK(value_has(w, "cluster/partitions", "\"placement\":\"slots\"") && value_has(w, "cluster/partitions", "\"count\":6"));
    CHECK(slot_is(w, 1, "a") && slot_is(w, 2, "b"));
    CHECK(said(a, "placed by \"slots\" from now on") && said(b, "placed by \"slots\" from now on"));
    CHECK(works_count(a) == 3 && works_count(b) == 3);
    uint64_t index = look(w, "cluster/partitions").modify_index;
    mgr__cluster_command_set(&b->core, NULL, MGR_PLACEMENT_SLOTS);       /* it is so already: nothing is written */
    box_pump(w, b);
    run(w, 500);
    CHECK_INT(look(w, "cluster/partitions").modify_index, index);
    mgr__set set;
    mgr__str bad;
    CHECK(!mgr__set_make(&set, &w->heap, numbers, 8, &bad));
    mgr__cluster_command_set(&b->core, &set, MGR_PLACEMENT_RUSH);        /* and back, with a new set, in one step */
    box_pump(w, b);
    run(w, 3000);
    CHECK(value_has(w, "cluster/partitions", "\"placement\":\"rush\"") && value_has(w, "cluster/partitions", "\"count\":8"));
    CHECK(works_count(a) == 4 && works_count(b) == 4);
    command_set(w, a, 6);                           /* a set alone leaves the placement as it is */
    run(w, 3000);
    CHECK(value_has(w, "cluster/partitions", "\"placement\":\"rush\""));
    world_end(w);
}

static void marker_version(world *w, const char *placement, int version)
{
    mgr__kv marker = look(w, "cluster/partitions");
    char value[700], was[300];
    snprintf(was, sizeof was, "%.*s", (int)marker.value.len, marker.value.at);
    char *at = strstr(was, "\"placement\"");
    CHECK(at != NULL);
    if (!at) return;
    *at = 0;
    snprintf(value, sizeof value, "%s\"placement\":\"%s\",\"placement_version\":%d,\"delay_max\":%d,\"fence_base\":0,\"replaced\":[]}", was, placement, version, DELAY_MS);
    put(w, "cluster/partitions", value);
}

TEST(a_placement_of_a_newer_program_is_refused_and_left_alone)
{
    world *w = the_world();
    box *a = slots_open(w, 0, "a", 6);
    run(w, 2000);
    marker_version(w, "slots", 99);
    uint64_t index = look(w, "cluster/partitions").modify_index;
    box *b = slots_open(w, 1, "b", 0);
    run(w, 2000);
    CHECK(!b->alive && b->result == MGR_INVALID && said(b, "placed by policy \"slots\" version 99, this program knows \"rush\" and \"slots\" version 1"));
    b = box_open(w, 1, "b", 4);                      /* nor does one with a set of its own overwrite it */
    run(w, 2000);
    CHECK(!b->alive && b->result == MGR_INVALID);
    CHECK_INT(times(&a->log, "version 99 from now on"), 1);
    CHECK(works_count(a) == 6 && look(w, "cluster/partitions").modify_index == index);
    command_set(w, a, 8);                            /* a new set is refused; a command that names a policy is not */
    run(w, 2000);
    CHECK(said(a, "use a manager.h that knows it") && look(w, "cluster/partitions").modify_index == index);
    mgr__cluster_command_set(&a->core, NULL, MGR_PLACEMENT_SLOTS);
    box_pump(w, a);
    run(w, 2000);
    CHECK(value_has(w, "cluster/partitions", "\"placement_version\":1") && works_count(a) == 6);
    b = box_open(w, 1, "b", 0);
    run(w, 3000);
    CHECK(works_count(a) == 3 && works_count(b) == 3);
    world_end(w);
}

TEST(slots_refuse_a_joiner_of_another_weight)
{
    world *w = the_world();
    mgr__cluster_config config = config_of("b", 0);
    box *a = slots_open(w, 0, "a", 6);
    run(w, 2000);
    config.weight = 2;
    box *b = box_open_as(w, 1, "b", &config);
    run(w, 2000);
    CHECK(!b->alive && b->result == MGR_INVALID && said(b, "instance a has weight 1, this one 2"));
    CHECK_INT(works_count(a), 6);
    mgr__cluster_command_set(&a->core, NULL, MGR_PLACEMENT_RUSH);
    box_pump(w, a);
    run(w, 1000);
    b = box_open_as(w, 1, "b", &config);
    run(w, 3000);
    CHECK(works_count(a) == 2 && works_count(b) == 4);
    mgr__cluster_command_set(&a->core, NULL, MGR_PLACEMENT_SLOTS);       /* mgr_set_placement looks before; a picture may be behind */
    box_pump(w, a);
    run(w, 3000);
    CHECK(works_count(a) == 3 && works_count(b) == 3);
    CHECK(said(a, "placement slots is for equal weights") && said(b, "placement slots is for equal weights"));
    world_end(w);
}

static void *failing(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    long *left = (long *)user;
    (void)old_bytes;
    if (!new_bytes) { free(ptr); return NULL; }
    return (*left)-- == 0 ? NULL : realloc(ptr, new_bytes);
}

/* The Nth allocation fails, for growing N until none does: no crash, no leak, and
 * the core says that it failed or goes on. */
TEST(the_core_survives_any_failed_allocation)
{
    bool done = false;
    long n = 0;
    for (; n < 3000 && !done; n += n < 150 ? 1 : 7) {
        long left = n;
        mgr_allocator allocator;
        world *w = the_world();
        allocator.resize = failing;
        allocator.user = &left;
        w->boxes[0].heap = mgr__heap_make(&allocator);
        box *a = box_open(w, 0, "a", 2);
        if (!a->alive) mgr__cluster_close(&a->core);
        for (int i = 0; i < 60 && a->alive && !a->core.failed; i++) run(w, STEP_MS);
        done = left >= 0;
        CHECK(!done || works_count(a) == 2);
        world_end(w);
    }
    CHECK(done);
}

int main(int argc, char **argv)
{
    RUN(sets_are_written_with_ranges_and_read_back);
    RUN(a_set_may_have_65536_numbers);
    RUN(malformed_sets_are_refused);
    RUN(a_set_s_hash_depends_on_its_names_alone);
    RUN(bad_partition_names_are_named);
    RUN(markers_are_read_back_and_unknown_fields_skipped);
    RUN(holdings_that_cannot_be_read_count_as_lost);
    RUN(wishes_are_read_back_and_bad_ones_wish_nothing);
    RUN(a_picture_takes_what_is_ours_and_skips_the_rest);
    RUN(members_are_read_back);
    RUN(who_counts_in_the_map);
    RUN(keys_are_made_below_their_root_only);
    RUN(when_a_partition_may_be_taken);
    RUN(a_first_set_is_put_in_force);
    RUN(the_set_is_named_last);
    RUN(a_second_starter_waits_for_a_half_made_marker_and_takes_over);
    RUN(a_starter_waits_anew_when_the_half_made_marker_changes);
    RUN(a_first_set_is_lost_where_others_have_a_session);
    RUN(sessions_are_counted_behind_the_marker);
    RUN(owner_keys_hang_on_the_marker);
    RUN(who_remembers_a_set_calls_nothing_released);
    RUN(a_replaced_set_makes_only_new_names_released);
    RUN(a_lower_version_never_replaces_a_higher_one);
    RUN(a_set_is_put_over_no_marker_but_the_one_that_was_read);
    RUN(the_setter_begins_again_after_a_conflict_but_not_for_ever);
    RUN(the_setter_says_why_it_failed);
    RUN(starters_that_race_end_with_one_whole_set);
    RUN(an_instance_enters_and_takes_all_there_is);
    RUN(nothing_is_asked_while_nothing_changes_but_the_lease);
    RUN(the_lease_counts_from_when_the_confirmation_was_sent);
    RUN(the_first_lease_counts_from_when_the_own_key_was_locked);
    RUN(every_key_held_is_confirmed_before_the_lease_grows);
    RUN(a_release_is_sent_when_work_is_gone_and_wakes_the_next);
    RUN(moves_max_bounds_the_releases_in_flight);
    RUN(moves_max_never_bounds_what_is_taken);
    RUN(a_pause_key_pauses_whatever_is_in_it);
    RUN(in_a_pause_only_failures_and_explicit_acts_move_anything);
    RUN(the_breaker_holds_moves_until_all_is_still);
    RUN(resume_ends_what_the_breaker_holds);
    RUN(a_breaker_that_somebody_confirms_stays);
    RUN(a_member_that_crashes_over_and_over_does_not_hold_the_breaker_for_ever);
    RUN(the_breaker_lets_leaves_and_single_deaths_pass);
    RUN(pause_and_resume_within_one_picture_end_as_the_last_word_says);
    RUN(a_new_reason_replaces_the_one_that_stands);
    RUN(a_pause_that_lands_late_after_a_resume_lands_on_nothing);
    RUN(a_lock_whose_answer_was_lost_is_taken_anew_never_adopted);
    RUN(a_lock_taken_anew_has_another_value_at_the_same_time);
    RUN(no_work_starts_while_an_unlock_is_in_flight);
    RUN(an_unlock_whose_answer_was_lost_is_not_forgotten);
    RUN(a_late_lock_on_what_is_no_longer_ours_is_given_back);
    RUN(a_late_lock_is_given_back_also_when_the_map_changes_after_it_was_read);
    RUN(a_lock_is_taken_at_the_index_that_was_read);
    RUN(a_lock_older_than_the_lease_begins_nothing);
    RUN(no_work_starts_at_or_below_the_watermark);
    RUN(a_partition_may_go_while_a_confirmation_names_it);
    RUN(a_partition_may_go_while_a_read_names_it);
    RUN(a_keeper_that_dies_while_joining_is_replaced_first);
    RUN(no_life_begins_before_its_keeper_is_ready);
    RUN(what_cannot_be_killed_keeps_its_lock);
    RUN(what_came_of_work_is_written_once_for_several);
    RUN(a_rewrite_that_hangs_does_not_end_the_lease);
    RUN(time_goes_on_while_a_request_is_out);
    RUN(a_set_may_be_commanded_while_another_is_put_in_force);
    RUN(a_refused_wish_is_dropped_and_the_others_keep_their_order);
    RUN(an_old_life_s_renewal_does_not_end_the_new_one);
    RUN(consul_is_tried_again_as_often_as_it_is_confirmed);
    RUN(watches_that_come_back_at_once_with_nothing_new_back_off);
    RUN(locks_hang_on_the_marker_that_is_known);
    RUN(a_lock_that_fails_on_the_marker_waits_longer_each_time);
    RUN(certificates_that_nobody_needs_are_swept);
    RUN(a_sweep_is_one_pass_over_the_owners);
    RUN(a_partition_changed_by_hand_is_killed_alone);
    RUN(own_key_removed_ends_the_life);
    RUN(a_session_taken_away_kills_at_once);
    RUN(a_lost_session_is_found_by_the_confirmation_too);
    RUN(an_empty_store_is_not_nobody);
    RUN(work_is_stopped_politely_before_the_lease_ends);
    RUN(a_late_confirmation_does_not_reopen_a_lease);
    RUN(a_closed_lease_word_ends_the_life);
    RUN(the_dead_are_waited_for_unless_certified);
    RUN(a_certified_life_is_dead_while_its_session_stands);
    RUN(a_missing_key_s_delay_counts_from_when_it_is_made_anew);
    RUN(a_start_within_the_grace_gets_back_what_it_had);
    RUN(a_dead_instance_is_buried_once_and_after_its_heirs_have_begun);
    RUN(a_leave_within_the_grace_keeps_the_share);
    RUN(an_evict_makes_a_leave_one_for_good);
    RUN(evict_is_for_the_named_life_alone);
    RUN(an_instance_evicts_another);
    RUN(drain_hands_everything_over_and_stays);
    RUN(a_refusal_moves_the_partition_and_doubles);
    RUN(a_join_hangs_on_the_key_that_was_read);
    RUN(two_instances_of_one_id_and_the_second_gives_way);
    RUN(a_joiner_that_meets_a_live_holder_gives_way);
    RUN(a_second_of_one_id_gives_way_at_once_where_the_first_can_be_seen_alive);
    RUN(a_former_life_of_this_boot_is_waited_for);
    RUN(a_former_life_that_is_proven_dead_is_certified_and_replaced_at_once);
    RUN(a_former_life_without_proof_is_waited_for_and_that_is_said);
    RUN(a_former_life_that_never_dies_is_asked_after_less_and_less);
    RUN(a_former_life_that_is_dying_is_waited_for_on_the_watch);
    RUN(another_instance_of_the_boot_certifies_the_dead);
    RUN(leaving_gives_all_back_and_cleans_up);
    RUN(a_second_leave_kills_also_after_an_eviction);
    RUN(a_life_that_is_not_proven_ended_is_not_certified);
    RUN(a_lock_in_doubt_is_certified_only_with_proof);
    RUN(a_set_changed_on_command_is_followed);
    RUN(a_set_that_is_gone_is_put_back_for_who_needs_it);
    RUN(who_brings_the_set_does_not_read_it);
    RUN(a_set_that_nobody_has_is_asked_for_less_and_less);
    RUN(a_missing_set_that_is_not_in_force_is_nobodys_business);
    RUN(a_late_word_of_a_missing_set_lands_on_nothing);
    RUN(without_partitions_an_instance_waits_for_a_set);
    RUN(fences_grow_although_the_index_went_down);
    RUN(what_is_held_is_confirmed_at_once_when_the_index_went_down);
    RUN(released_is_not_believed_for_the_delay_when_the_index_went_down);
    RUN(a_lock_below_the_highest_index_waits_for_a_new_fence_base);
    RUN(a_snapshot_restored_with_higher_indices_is_noticed_before_anything_is_taken);
    RUN(who_enters_again_after_a_restore_knows_it_by_a_key_that_went_back);
    RUN(who_enters_again_after_a_restore_knows_it_by_who_came_back);
    RUN(a_lock_that_a_snapshot_brought_back_is_given_back_after_the_delay);
    RUN(a_lock_that_a_snapshot_brought_back_and_nobody_wants_is_given_back);
    RUN(a_lock_hangs_on_the_own_key_for_a_restore_that_no_picture_shows);
    RUN(a_lock_below_all_that_was_seen_starts_no_work);
    RUN(a_wiped_store_is_set_up_anew_as_lost);
    RUN(the_core_survives_any_failed_allocation);
    RUN(slots_are_claimed_with_the_key_and_freed_with_it);
    RUN(two_joiners_at_once_never_share_a_slot);
    RUN(a_crowd_of_joiners_is_numbered_without_gaps);
    RUN(a_start_within_the_grace_gets_its_slot_back);
    RUN(slots_changed_by_hand_are_mended);
    RUN(who_leaves_with_an_old_picture_of_its_slot_looks_and_leaves_at_once);
    RUN(any_picture_of_slots_makes_a_map);
    RUN(a_start_does_not_change_the_placement_and_a_command_does);
    RUN(a_placement_of_a_newer_program_is_refused_and_left_alone);
    RUN(slots_refuse_a_joiner_of_another_weight);
    return test__end();
}
