/* The simulator: several [cluster] cores against devconsul's store model, under one
 * virtual clock, from a seed.
 *
 *   sim [RUNS [FIRST_SEED [FAILURES]]]      default 300 from 1, until 6 have failed;
 *                                           "sim 1 SEED" repeats one, with a trace
 *
 * Each run draws its own rates for every kind of fault (swarm testing), so that
 * faults are frequent in some runs and rare in most. At every step at most one
 * instance works on a partition, and fences of a partition grow (invariant 1);
 * once the faults have ended each partition is worked on exactly once
 * (invariant 2), also in a pause, in which nobody gives away what he could keep; and
 * after it, each where the map wants it. In a third of the runs the service is placed
 * by slots: then no two members ever have one slot's key, and in the end each has one
 * and the numbers that nobody has are free again. In another third the partition set is
 * deleted or overwritten, and all but one instance start without: in the end all have it.
 * Everything an instance has besides its core is modelled here: a keeper with the lease
 * word, work that takes its time to end, a clock that drifts by up to 1 in 1,000,
 * requests that get lost, land late or land twice. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "../examples/devconsul.h"
#include "test.h"

enum {
    SIM_INSTANCES_MAX = 7, SIM_PARTS_MAX = 24, SIM_MESSAGES_MAX = 4096,
    SIM_LEASE_MS = 3000, SIM_MARGIN_MS = 900, SIM_DELAY_MS = 4000, SIM_GRACE_MS = 1000,
    SIM_PAUSE_SEEN_MS = 15000,          /* so long a live instance may act on a picture from before a pause */
    SIM_RESUME_MS = 15000,
    SIM_TTL_MS = 10000, SIM_CALM_MS = 8000, SIM_CALM_GAP_MS = 700, SIM_FAULTS_MS = 60000, SIM_HEAL_MS = 60000
};

typedef struct sim_answer {     /* an answer under way: a deep copy */
    mgr__arena  arena;
    mgr__answer a;
} sim_answer;

typedef struct sim_message {
    bool        used, applied, for_watch;
    int         instance;
    uint64_t    incarnation;    /* of the core that sent it */
    uint64_t    serial;         /* of the request on its lane */
    mgr__lane   lane;
    int64_t     apply_at, answer_at, wait_until;    /* MGR__NEVER: lost */
    mgr__request request;
    sim_answer  answer;
} sim_message;

typedef struct sim_work { bool alive; int64_t dies_at; uint64_t fence; } sim_work;

typedef struct sim_instance {
    bool         exists, core_alive, frozen;
    bool         keeper_alive, closed;
    char         id[16], node[24];
    mgr__cluster core;
    uint64_t     incarnation, lane_serial[MGR__LANE_COUNT];
    int64_t      lane_deadline[MGR__LANE_COUNT];
    int64_t      lease_word;            /* by its own clock */
    char         life[40];              /* what the keeper would certify */
    char         service[900];
    int64_t      wake_at;               /* when the core wants to be pumped, by its own clock */
    int64_t      clock_offset, clock_ppm;
    int64_t      cut_until, thaw_at, restart_at, words_at;
    int          words;                 /* 0 none, 1 certificate, 2 destroy, 3 deregister */
    sim_work     work[SIM_PARTS_MAX];
} sim_instance;

typedef struct sim {
    uint64_t     seed;
    mgr__rng     rng;
    mgr__heap    heap;
    dc_store     store;
    int64_t      now;
    sim_instance in[SIM_INSTANCES_MAX];
    int          instance_count, part_count;
    char         part_names[SIM_PARTS_MAX][8];
    const char  *part_list[SIM_PARTS_MAX];
    uint64_t     top_fence[SIM_PARTS_MAX];
    int64_t      ended_at[SIM_PARTS_MAX];   /* when its last work ended */
    bool         slots;                 /* placed by slots */
    bool         calm;                  /* no faults but planned leaves and killed managers, one at a time: nobody may dawdle */
    int64_t      disturbed_at;
    sim_message  messages[SIM_MESSAGES_MAX];
    int          message_high;
    int64_t      stall_until;           /* the servers have no leader */
    bool         faults, trace;
    /* rates, per run: mean ms between two of a kind; 0: never */
    uint32_t     every_crash, every_host_death, every_freeze, every_cut, every_destroy, every_delete, every_stall, every_leave, every_evict;
    uint32_t     grace_ms;              /* some runs: a dead instance's share is kept for its return */
    uint32_t     lose_per_mille, late_per_mille, slow_ms, slow_per_mille, watch_lag_ms;
    uint64_t     starts, crashes, handovers, pauses;
    uint32_t     every_pause, breaker_percent;
    uint32_t     every_set_loss;        /* some runs: the set's key is deleted, and only the first instance brings one */
    int64_t      paused_since;          /* the key cluster/pause stands, without a break; 0: it does not */
    const char  *bad;
    char         bad_text[300];
} sim;

static uint32_t sim_below(sim *s, uint32_t n) { return mgr__rng_below(&s->rng, n); }
static bool sim_chance(sim *s, uint32_t per_mille) { return sim_below(s, 1000) < per_mille; }

static int64_t sim_local(const sim *s, const sim_instance *in) { return in->clock_offset + s->now + s->now * in->clock_ppm / 1000000; }

static void sim_say(sim *s, const char *format, ...) MGR__PRINTF(2, 3);
static void sim_say(sim *s, const char *format, ...)
{
    va_list args;
    if (!s->trace) return;
    printf("%7lld ", (long long)s->now);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

static void sim_fail(sim *s, const char *what, const char *id, const char *part)
{
    if (s->bad) return;
    s->bad = what;
    snprintf(s->bad_text, sizeof s->bad_text, "seed %llu, %lld ms: %s (instance %s, partition %s)", (unsigned long long)s->seed, (long long)s->now, what, id, part);
}

/* ---- messages ---- */

static mgr__str sim_keep(mgr__arena *arena, mgr__str v) { return mgr__arena_str(arena, v); }

static void sim_copy_request(sim *s, mgr__request *to, const mgr__request *from)
{
    *to = *from;
    mgr__arena_init(&to->arena, &s->heap);
    for (size_t i = 0; i < to->op_count; i++) {
        to->ops[i].key = sim_keep(&to->arena, from->ops[i].key);
        to->ops[i].value = sim_keep(&to->arena, from->ops[i].value);
        to->ops[i].session = sim_keep(&to->arena, from->ops[i].session);
    }
    to->key = sim_keep(&to->arena, from->key);
    to->name = sim_keep(&to->arena, from->name);
    to->session = sim_keep(&to->arena, from->session);
    to->check_id = sim_keep(&to->arena, from->check_id);
    to->node = sim_keep(&to->arena, from->node);
    to->note = sim_keep(&to->arena, from->note);
    to->body = mgr__str_of("");
}

static void sim_drop_message(sim_message *m)
{
    mgr__arena_free(&m->request.arena);
    mgr__arena_free(&m->answer.arena);
    m->used = false;
}

static sim_message *sim_new_message(sim *s)
{
    for (int i = 0; i < SIM_MESSAGES_MAX; i++) {
        if (s->messages[i].used) continue;
        sim_message *m = &s->messages[i];
        memset(m, 0, sizeof *m);
        m->used = true;
        mgr__arena_init(&m->answer.arena, &s->heap);
        if (i >= s->message_high) s->message_high = i + 1;
        return m;
    }
    sim_fail(s, "the simulator has too few messages", "", "");
    return &s->messages[0];
}

/* ---- what the servers do with a request ---- */

static void sim_keep_kvs(sim_answer *to, const mgr__kv *kvs, size_t count)
{
    to->a.kvs = (mgr__kv *)mgr__arena_alloc(&to->arena, (count + 1) * sizeof *to->a.kvs);
    to->a.kv_count = count;
    for (size_t i = 0; i < count; i++) {
        to->a.kvs[i] = kvs[i];
        to->a.kvs[i].key = sim_keep(&to->arena, kvs[i].key);
        to->a.kvs[i].value = sim_keep(&to->arena, kvs[i].value);
        to->a.kvs[i].session = sim_keep(&to->arena, kvs[i].session);
    }
}

static void sim_apply_list(sim *s, sim_answer *to, mgr__str prefix)
{
    size_t count = dc_list(&s->store, prefix, NULL, 0);
    mgr__kv *kvs = (mgr__kv *)mgr__alloc_array(&s->heap, count + 1, sizeof *kvs);
    dc_list(&s->store, prefix, kvs, count);
    sim_keep_kvs(to, kvs, count);
    mgr__free(&s->heap, kvs);
    to->a.index = dc_prefix_index(&s->store, prefix);
}

static bool sim_has(mgr__str text, const char *part)
{
    size_t len = strlen(part);
    for (size_t at = 0; at + len <= text.len; at++) if (memcmp(text.at + at, part, len) == 0) return true;
    return false;
}

/* Whose slot is it, when he has no other and his own key stands? "": nobody's. The text is `id`. */
static const char *sim_slot_owner(sim *s, mgr__str slot_key, char id[16])
{
    mgr__kv kvs[64], own[16];
    char key[64], quoted[24];
    size_t count = dc_list(&s->store, mgr__str_of("manager/svc/cluster/slots/"), kvs, MGR__COUNT(kvs));
    for (int i = 0; i < s->instance_count; i++) {
        size_t has = 0;
        bool named = false;
        snprintf(quoted, sizeof quoted, "\"%s\"", s->in[i].id);
        for (size_t k = 0; k < count && k < MGR__COUNT(kvs); k++) {
            if (!sim_has(kvs[k].value, quoted)) continue;
            has++;
            named = named || mgr__str_eq(kvs[k].key, slot_key);
        }
        snprintf(key, sizeof key, "manager/svc/cluster/instances/%s", s->in[i].id);
        if (!named || has > 1 || dc_list(&s->store, mgr__str_of(key), own, MGR__COUNT(own)) < 1) continue;
        mgr__copy_text(id, 16, mgr__str_of(s->in[i].id));
        return id;
    }
    return "";
}

static void sim_apply_txn(sim *s, sim_answer *to, const mgr__request *r)
{
    mgr__kv kvs[256];
    size_t count = MGR__COUNT(kvs);
    char owner[16], quoted[24];
    const char *robbed = "";
    for (size_t i = 0; i < r->op_count; i++) {      /* invariant: nobody takes the slot of a member */
        if (r->ops[i].verb == MGR__CHECK_INDEX || !mgr__str_starts(r->ops[i].key, "manager/svc/cluster/slots/") || !r->ops[i].value.len) continue;
        const char *had = sim_slot_owner(s, r->ops[i].key, owner);
        snprintf(quoted, sizeof quoted, "\"%s\"", had);
        if (*had && !sim_has(r->ops[i].value, quoted)) robbed = had;
    }
    bool done = dc_txn(&s->store, s->now, r->ops, r->op_count, kvs, &count, to->a.failed, &to->a.failed_count);
    to->a.outcome = done ? MGR__OUTCOME_OK : MGR__OUTCOME_CONFLICT;
    if (done) sim_keep_kvs(to, kvs, count);
    if (done && *robbed) sim_fail(s, "the slot of a member was taken by another", robbed, "");
}

static void sim_apply_register(sim *s, const mgr__request *r)
{
    dc_service_desc service;
    dc_check_desc check;
    memset(&service, 0, sizeof service);
    memset(&check, 0, sizeof check);
    service.id = service.name = r->name;
    service.address = service.tags = service.meta = check.notes = mgr__str_of("");
    dc_service_register(&s->store, s->now, &service);
    check.id = check.name = check.service_id = r->name;
    check.ttl_ms = SIM_DELAY_MS + 2000;
    dc_check_register(&s->store, s->now, &check);
}

static void sim_apply_sessions(sim *s, sim_answer *to)
{
    size_t count = dc_session_count(&s->store);
    to->a.kvs = (mgr__kv *)mgr__arena_alloc(&to->arena, (count + 1) * sizeof *to->a.kvs);
    to->a.kv_count = count;
    for (size_t i = 0; i < count; i++) {
        const dc_session *session = dc_session_at(&s->store, i);
        memset(&to->a.kvs[i], 0, sizeof to->a.kvs[i]);
        to->a.kvs[i].key = sim_keep(&to->arena, mgr__str_of(session->name));
        to->a.kvs[i].session = sim_keep(&to->arena, mgr__str_of(session->id));
    }
}

static void sim_apply(sim *s, sim_message *m)
{
    mgr__request *r = &m->request;
    sim_answer *to = &m->answer;
    m->applied = true;
    memset(&to->a, 0, sizeof to->a);
    to->a.text = to->a.session = to->a.node = mgr__str_of("");
    switch (r->ask) {
    case MGR__ASK_TXN: sim_apply_txn(s, to, r); break;
    case MGR__ASK_WATCH: case MGR__ASK_LIST: sim_apply_list(s, to, r->key); break;
    case MGR__ASK_SESSION_CREATE: {
        const char *id = dc_session_create(&s->store, s->now, r->name, r->session_ttl_ms, 0, &r->check_id, 1);
        to->a.outcome = id ? MGR__OUTCOME_OK : MGR__OUTCOME_UNKNOWN;
        if (id) to->a.session = sim_keep(&to->arena, mgr__str_of(id));
        break;
    }
    case MGR__ASK_SESSION_RENEW: to->a.outcome = dc_session_renew(&s->store, s->now, r->session) ? MGR__OUTCOME_OK : MGR__OUTCOME_NOT_FOUND; break;
    case MGR__ASK_SESSION_DESTROY: dc_session_destroy(&s->store, s->now, r->session); break;
    case MGR__ASK_SESSION_LIST: sim_apply_sessions(s, to); break;
    case MGR__ASK_AGENT_SELF: to->a.node = sim_keep(&to->arena, mgr__str_of(m->instance >= 0 ? s->in[m->instance].node : "")); break;
    case MGR__ASK_SERVICE_REGISTER: sim_apply_register(s, r); break;
    case MGR__ASK_SERVICE_DEREGISTER: case MGR__ASK_CATALOG_DEREGISTER: dc_service_deregister(&s->store, s->now, r->name); break;
    case MGR__ASK_CHECK_UPDATE:
        to->a.outcome = dc_check_update(&s->store, s->now, r->name, DC_PASSING, mgr__str_of("")) ? MGR__OUTCOME_OK : MGR__OUTCOME_UNKNOWN;
        break;
    case MGR__ASK_AGENT_JOIN: case MGR__ASK_CHECK_REGISTER: case MGR__ASK_CHECK_DEREGISTER: case MGR__ASK_CHECK_LIST: break;
    }
}

static uint32_t sim_latency(sim *s) { return 1 + sim_below(s, 1 + (sim_chance(s, s->slow_per_mille) ? s->slow_ms : 8)); }

static void sim_send(sim *s, int index, mgr__lane lane)
{
    sim_instance *in = &s->in[index];
    const mgr__request *r = &in->core.errands[lane].request;
    sim_message *m = sim_new_message(s);
    sim_copy_request(s, &m->request, r);
    m->instance = index;
    m->incarnation = in->incarnation;
    m->serial = ++in->lane_serial[lane];
    m->lane = lane;
    m->for_watch = r->ask == MGR__ASK_WATCH;
    in->lane_deadline[lane] = s->now + (m->for_watch ? (int64_t)r->wait_ms + 2000 : lane == MGR__LANE_LEASE ? 600 : 2000);
    m->apply_at = s->now + sim_latency(s);
    m->answer_at = m->apply_at + sim_latency(s);
    m->wait_until = m->for_watch && r->index ? m->apply_at + (int64_t)r->wait_ms : m->apply_at;
    if (!s->faults) return;
    if (s->now < in->cut_until) {
        m->answer_at = MGR__NEVER;
        if (sim_chance(s, 700)) m->apply_at = MGR__NEVER;
    }
    if (sim_chance(s, s->lose_per_mille)) { m->answer_at = MGR__NEVER; if (sim_chance(s, 500)) m->apply_at = MGR__NEVER; }
    if (sim_chance(s, s->late_per_mille) && m->apply_at != MGR__NEVER) { m->apply_at += sim_below(s, 20000); m->answer_at = MGR__NEVER; }   /* lands long after it was given up */
    if (sim_chance(s, s->late_per_mille) && m->apply_at != MGR__NEVER && r->ask == MGR__ASK_TXN) {      /* and once more */
        sim_message *twice = sim_new_message(s);
        sim_copy_request(s, &twice->request, r);
        twice->instance = index;
        twice->apply_at = m->apply_at + sim_below(s, 20000);
        twice->answer_at = MGR__NEVER;
    }
}

/* ---- keeper and work ---- */

static bool sim_busy(const sim_instance *in)
{
    for (int p = 0; p < SIM_PARTS_MAX; p++) if (in->work[p].alive) return true;
    return false;
}

static void sim_end_work(sim *s, sim_instance *in, int p, int64_t within)
{
    if (!in->work[p].alive) return;
    int64_t natural = s->calm || sim_chance(s, 800) ? sim_below(s, 200) : SIM_LEASE_MS * 3;    /* some ignore SIGTERM */
    int64_t at = s->now + (natural < within ? natural : within + sim_below(s, SIM_MARGIN_MS * 8 / 10));
    if (at < in->work[p].dies_at) in->work[p].dies_at = at;
}

static void sim_keeper_close(sim *s, sim_instance *in, int64_t within)
{
    in->closed = true;
    for (int p = 0; p < s->part_count; p++) sim_end_work(s, in, p, within);
}

/* What a real keeper does by itself: lease over, or manager gone. */
static void sim_keeper(sim *s, sim_instance *in)
{
    if (!in->keeper_alive) return;
    int64_t now = sim_local(s, in);
    if (!in->closed && in->lease_word && now >= in->lease_word - SIM_GRACE_MS) sim_keeper_close(s, in, mgr__max64(0, in->lease_word - now));
    if (in->closed && in->lease_word && now >= in->lease_word) for (int p = 0; p < s->part_count; p++) sim_end_work(s, in, p, 0);
    if (!in->core_alive && !in->closed) sim_keeper_close(s, in, mgr__max64(0, mgr__min64(SIM_GRACE_MS, in->lease_word ? in->lease_word - now : 0)));
    if (in->closed && !sim_busy(in) && in->life[0] && in->words == 0 && (!in->core_alive || in->frozen)) { in->words = 1; in->words_at = s->now + 1; }
}

static void sim_last_word(sim *s, sim_instance *in)
{
    mgr__op op;
    char key[200];
    mgr__kv kv[4];
    uint32_t failed[MGR__TXN_OPS_MAX];
    size_t count = 4, failed_count;
    in->words_at = s->now + sim_latency(s);
    if ((s->faults && s->now < in->cut_until) || s->now < s->stall_until) { in->words_at = s->now + 300; return; }
    snprintf(key, sizeof key, "manager/svc/cluster/dead/%s", in->life);
    memset(&op, 0, sizeof op);
    op.verb = MGR__SET;
    op.key = mgr__str_of(key);
    op.value = mgr__str_of("{}");
    op.session = mgr__str_of("");
    if (in->words == 1) dc_txn(&s->store, s->now, &op, 1, kv, &count, failed, &failed_count);
    if (in->words == 2) dc_session_destroy(&s->store, s->now, mgr__str_of(in->life));
    if (in->words == 3) dc_service_deregister(&s->store, s->now, mgr__str_of(in->service));
    sim_say(s, "%s keeper says word %d of life %.8s", in->id, in->words, in->life);
    if (++in->words == 4) { in->words = 5; in->life[0] = 0; if (!in->core_alive) in->keeper_alive = false; }
}

static void sim_begin_work(sim *s, sim_instance *in, mgr__part *part)
{
    int p = atoi(part->name.at);
    s->starts++;
    sim_say(s, "%s STARTS %d fence %llu", in->id, p, (unsigned long long)part->fence);
    for (int i = 0; i < s->instance_count; i++)
        if (s->in[i].work[p].alive) sim_fail(s, "two owners: another one works", s->in[i].id, part->name.at);
    if (part->fence <= s->top_fence[p]) sim_fail(s, "a fence did not grow", in->id, part->name.at);
    if (s->calm && s->disturbed_at && s->ended_at[p] > 0 && s->now - s->ended_at[p] > SIM_CALM_GAP_MS && s->now - s->disturbed_at < SIM_CALM_MS)
        sim_fail(s, "a hand-over took too long though all was well", in->id, part->name.at);
    if (in->closed) { return; }     /* the keeper starts nothing once it has closed: reported gone when asked to stop */
    s->top_fence[p] = part->fence;
    in->work[p].alive = true;
    in->work[p].fence = part->fence;
    in->work[p].dies_at = MGR__NEVER;
}

/* ---- one instance ---- */

static void sim_fresh_keeper(sim *s, sim_instance *in)
{
    (void)s;
    in->keeper_alive = true;
    in->closed = false;
    in->lease_word = 0;
    in->life[0] = 0;
    in->words = 0;
    mgr__cluster_ready(&in->core);
}

static bool sim_paused(sim *s)
{
    mgr__kv kv[1];
    return dc_list(&s->store, mgr__str_of("manager/svc/cluster/pause"), kv, 1) > 0;
}

/* While paused nobody gives away what he could keep: told by the store's key, and
 * after some time for the picture to arrive; at once where the core has seen it. */
static void sim_check_paused(sim *s, const sim_instance *in, const mgr__part *part)
{
    if (in->core.want_leave || part->state != MGR__PART_RELEASING) return;      /* this instance leaves, or has lost it */
    if (in->core.picture.pause.exists) sim_fail(s, "a planned move in a pause that was seen", in->id, part->name.at);
    if (s->paused_since && s->now - s->paused_since > SIM_PAUSE_SEEN_MS) sim_fail(s, "a planned move in a pause", in->id, part->name.at);
}

static void sim_act(sim *s, int index, const mgr__action *a)
{
    sim_instance *in = &s->in[index];
    int64_t now = sim_local(s, in);
    int p = a->part ? atoi(a->part->name.at) : 0;
    switch (a->kind) {
    case MGR__ACT_REQUEST: sim_send(s, index, a->lane); break;
    case MGR__ACT_WORK_BEGIN: sim_begin_work(s, in, a->part); break;
    case MGR__ACT_WORK_STOP: case MGR__ACT_WORK_KILL:
        if (a->kind == MGR__ACT_WORK_STOP) sim_check_paused(s, in, a->part);
        if (!in->work[p].alive) mgr__cluster_gone(&in->core, a->part);
        else sim_end_work(s, in, p, a->kind == MGR__ACT_WORK_KILL ? 0 : a->ms);
        break;
    case MGR__ACT_LEASE:
        if (in->closed) mgr__cluster_over(&in->core, MGR_EVENT_LEASE_LOST, "the keeper closed the lease", now);
        else if (a->at > in->lease_word) in->lease_word = a->at;
        break;
    case MGR__ACT_LIFE:
        mgr__copy_text(in->life, sizeof in->life, mgr__str_of(in->core.life));
        mgr__copy_text(in->service, sizeof in->service, mgr__str_of(in->core.service));
        break;
    case MGR__ACT_FRESH_KEEPER: sim_fresh_keeper(s, in); break;
    case MGR__ACT_PROVE: break;     /* no host of the simulation has a boot that it knows */
    case MGR__ACT_EVENT: sim_say(s, "%s %s: %s", in->id, mgr_event_word(a->event), a->text); break;
    case MGR__ACT_LEFT:
        in->core_alive = false;
        in->keeper_alive = false;
        in->restart_at = s->now + 500 + sim_below(s, 8000);
        break;
    }
}

static void sim_pump(sim *s, int index)
{
    sim_instance *in = &s->in[index];
    mgr__cluster *c = &in->core;
    do {
        int64_t now = sim_local(s, in);
        mgr__cluster_pump(c, now);
        size_t count = c->action_count;
        for (size_t i = 0; i < count && in->core_alive; i++) { mgr__action a = c->actions[i]; sim_act(s, index, &a); }
        c->action_count = 0;
        if (in->core_alive) mgr__cluster_pump(c, now);
    } while (in->core_alive && c->action_count);
    if (c->failed) sim_fail(s, "out of memory", in->id, "");
    if (!in->core_alive) { mgr__cluster_close(c); return; }
    in->wake_at = mgr__cluster_next(c, sim_local(s, in));
}

static void sim_boot(sim *s, int index)
{
    sim_instance *in = &s->in[index];
    mgr__cluster_config config;
    mgr__buf error;
    memset(&config, 0, sizeof config);
    config.service_id = config.service_name = mgr__str_of("svc");
    config.instance_id = mgr__str_of(in->id);
    config.kv_prefix = mgr__str_of("manager");
    config.partitions = s->every_set_loss && index ? NULL : s->part_list;
    config.partition_count = (size_t)s->part_count;
    config.weight = 1;
    config.lease_ms = SIM_LEASE_MS;
    config.kill_margin_ms = SIM_MARGIN_MS;
    config.stop_grace_ms = SIM_GRACE_MS;
    config.delay_ms = SIM_DELAY_MS;
    config.session_ttl_ms = SIM_TTL_MS;
    config.settle_ms = 200;
    config.placement = s->slots ? MGR_PLACEMENT_SLOTS : MGR_PLACEMENT_RUSH;
    config.rejoin_grace_ms = s->grace_ms;
    config.breaker_percent = s->breaker_percent;
    config.seed = mgr__rng_next(&s->rng);
    mgr__buf_init(&error, &s->heap, 4096);
    in->exists = in->core_alive = true;
    in->frozen = false;
    in->restart_at = in->thaw_at = MGR__NEVER;
    in->incarnation++;
    mgr__cluster_open(&in->core, &s->heap, &config, sim_local(s, in), &error);
    mgr__buf_free(&error);
    sim_fresh_keeper(s, in);
    sim_say(s, "%s boots", in->id);
    sim_pump(s, index);
}

static void sim_core_dies(sim *s, int index)
{
    sim_instance *in = &s->in[index];
    if (!in->core_alive) return;
    in->core_alive = false;
    mgr__cluster_close(&in->core);
    in->restart_at = s->now + 200 + sim_below(s, 10000);
    s->crashes++;
}

/* Guard and keeper are gone as well: parent-death signals take the work, nobody certifies. */
static void sim_host_dies(sim *s, int index)
{
    sim_instance *in = &s->in[index];
    sim_core_dies(s, index);
    in->keeper_alive = false;
    in->life[0] = 0;
    for (int p = 0; p < s->part_count; p++) in->work[p].alive = false;
}

/* ---- time ---- */

static void sim_deliver(sim *s, sim_message *m)
{
    sim_instance *in = &s->in[m->instance];
    bool ours = in->core_alive && in->incarnation == m->incarnation && in->lane_serial[m->lane] == m->serial && in->core.errands[m->lane].out;
    if (ours && in->frozen) { m->answer_at = in->thaw_at + 1; return; }
    if (ours) {
        in->lane_deadline[m->lane] = MGR__NEVER;
        mgr__cluster_answer(&in->core, m->lane, &m->answer.a, sim_local(s, in));
        sim_pump(s, m->instance);
    }
    sim_drop_message(m);
}

static void sim_message_step(sim *s, sim_message *m)
{
    if (!m->applied && m->apply_at <= s->now) {
        if (s->now < s->stall_until) { m->apply_at = s->stall_until + 1; if (m->answer_at != MGR__NEVER) m->answer_at = m->apply_at + 3; return; }
        bool held = m->for_watch && m->request.index && dc_prefix_index(&s->store, m->request.key) <= m->request.index && s->now < m->wait_until;
        if (held) return;
        sim_apply(s, m);
        if (m->answer_at != MGR__NEVER) m->answer_at = s->now + sim_latency(s) + (m->for_watch && s->watch_lag_ms ? sim_below(s, s->watch_lag_ms) : 0);
        else { sim_drop_message(m); return; }
    }
    if (m->apply_at == MGR__NEVER) { sim_drop_message(m); return; }
    if (m->applied && m->answer_at <= s->now) sim_deliver(s, m);
}

static void sim_time_out(sim *s, int index)
{
    sim_instance *in = &s->in[index];
    for (int lane = 0; lane < MGR__LANE_COUNT && in->core_alive && !in->frozen; lane++) {
        if (!in->core.errands[lane].out || s->now < in->lane_deadline[lane]) continue;
        mgr__answer a;
        memset(&a, 0, sizeof a);
        a.outcome = MGR__OUTCOME_UNKNOWN;
        a.text = a.session = a.node = mgr__str_of("");
        in->lane_serial[lane]++;
        in->lane_deadline[lane] = MGR__NEVER;
        mgr__cluster_answer(&in->core, (mgr__lane)lane, &a, sim_local(s, in));
        sim_pump(s, index);
    }
}

static void sim_work_step(sim *s, int index)
{
    sim_instance *in = &s->in[index];
    bool any = false;
    for (int p = 0; p < s->part_count; p++) {
        if (!in->work[p].alive || s->now < in->work[p].dies_at) continue;
        in->work[p].alive = false;
        s->ended_at[p] = s->now;
        sim_say(s, "%s ends %d", in->id, p);
        any = true;
    }
    if (!in->core_alive || in->frozen) return;
    /* The core hears of it, also of what ended while it was frozen. */
    for (size_t i = 0; i < in->core.part_count; i++) {
        mgr__part *part = in->core.parts[i];
        bool waiting = (part->state == MGR__PART_RELEASING || part->state == MGR__PART_LOST) && !part->gone;
        if (waiting && !in->work[atoi(part->name.at)].alive) { mgr__cluster_gone(&in->core, part); any = true; }
    }
    if (in->closed && in->core.life[0]) { mgr__cluster_over(&in->core, MGR_EVENT_LEASE_LOST, "the keeper closed the lease", sim_local(s, in)); any = true; }
    if (any) sim_pump(s, index);
}

static void sim_instance_step(sim *s, int index)
{
    sim_instance *in = &s->in[index];
    if (in->frozen && s->now >= in->thaw_at) { in->frozen = false; sim_say(s, "%s thaws", in->id); }
    if (!in->core_alive && s->now >= in->restart_at) {
        if (!in->keeper_alive || sim_chance(s, 200)) {
            /* a new process beside a former keeper that is still at it: the old life's words go on elsewhere */
            if (!sim_busy(in) && !(in->keeper_alive && in->life[0])) sim_boot(s, index);
            else in->restart_at = s->now + 300;
        } else in->restart_at = s->now + 100;
    }
    sim_work_step(s, index);
    sim_keeper(s, in);
    if (in->words > 0 && in->words < 4 && in->keeper_alive && s->now >= in->words_at) sim_last_word(s, in);
    sim_time_out(s, index);
    if (in->core_alive && !in->frozen && in->wake_at <= sim_local(s, in)) sim_pump(s, index);
}

static bool sim_due(sim *s, uint32_t every_ms) { return every_ms && sim_below(s, every_ms) < 5; }     /* looked at each 5 ms */

static void sim_delete_key(sim *s)
{
    mgr__op op;
    char key[64];
    mgr__kv kv[4];
    uint32_t failed[MGR__TXN_OPS_MAX];
    size_t count = 4, failed_count;
    int p = (int)sim_below(s, (uint32_t)s->part_count);
    if (s->slots && sim_chance(s, 300)) snprintf(key, sizeof key, "manager/svc/cluster/slots/%d", 1 + (int)sim_below(s, (uint32_t)s->instance_count));
    else if (sim_chance(s, 300)) snprintf(key, sizeof key, "manager/svc/cluster/instances/i%d", (int)sim_below(s, (uint32_t)s->instance_count));
    else snprintf(key, sizeof key, "manager/svc/owners/%d", p);
    mgr__kv now[1];
    if (dc_list(&s->store, mgr__str_of(key), now, 1) < 1 || !mgr__str_is(now[0].key, key)) return;
    memset(&op, 0, sizeof op);
    op.verb = MGR__DELETE_CAS;
    op.key = mgr__str_of(key);
    op.index = now[0].modify_index;
    op.value = op.session = mgr__str_of("");
    dc_txn(&s->store, s->now, &op, 1, kv, &count, failed, &failed_count);
    sim_say(s, "someone deletes %s", key);
}

static void sim_lose_set(sim *s)
{
    mgr__op op;
    mgr__kv sets[1], kv[4];
    uint32_t failed[MGR__TXN_OPS_MAX];
    size_t count = 4, failed_count;
    if (dc_list(&s->store, mgr__str_of("manager/svc/sets/"), sets, 1) < 1) return;
    memset(&op, 0, sizeof op);
    op.verb = s->now & 1024 ? MGR__SET : MGR__DELETE_CAS;
    op.key = sets[0].key;
    op.index = sets[0].modify_index;
    op.value = mgr__str_of(op.verb == MGR__SET ? "[\"0\"]" : "");
    op.session = mgr__str_of("");
    dc_txn(&s->store, s->now, &op, 1, kv, &count, failed, &failed_count);
    sim_say(s, "someone %s the set", op.verb == MGR__SET ? "overwrites" : "deletes");
}

/* One instance at a time leaves or loses its manager; the first one stays. */
static void sim_disturb(sim *s)
{
    int i = 1 + (int)sim_below(s, (uint32_t)s->instance_count - 1);
    if (s->now < 30000 || s->now - s->disturbed_at < SIM_CALM_MS || !s->in[i].core_alive) return;
    s->disturbed_at = s->now;
    if (sim_chance(s, 500)) { sim_say(s, "%s manager killed", s->in[i].id); sim_core_dies(s, i); return; }
    mgr__cluster_leave(&s->in[i].core);
    sim_pump(s, i);
}

/* An operator, through an instance. */
static void sim_pause(sim *s, sim_instance *in, bool on)
{
    mgr__cluster_pause(&in->core, on, mgr__str_of("the simulator"));
    sim_pump(s, (int)(in - s->in));
    sim_say(s, "%s is told to %s", in->id, on ? "pause" : "resume");
}

static void sim_make_faults(sim *s)
{
    if (s->in[0].core_alive && !s->in[0].frozen && sim_due(s, s->every_pause)) sim_pause(s, &s->in[0], !sim_paused(s));
    if (s->calm) { sim_disturb(s); return; }
    if (sim_due(s, s->every_set_loss)) sim_lose_set(s);

    int i = (int)sim_below(s, (uint32_t)s->instance_count);
    sim_instance *in = &s->in[i];
    if (!in->exists) return;
    if (sim_due(s, s->every_crash)) { sim_say(s, "%s manager killed", in->id); sim_core_dies(s, i); }
    if (sim_due(s, s->every_host_death)) { sim_say(s, "%s host dies", in->id); sim_host_dies(s, i); }
    if (in->core_alive && !in->frozen && sim_due(s, s->every_freeze)) { in->frozen = true; in->thaw_at = s->now + sim_below(s, 12000); sim_say(s, "%s manager frozen", in->id); }
    if (sim_due(s, s->every_cut)) { in->cut_until = s->now + sim_below(s, 12000); sim_say(s, "%s cut off", in->id); }
    if (in->core_alive && in->core.life[0] && sim_due(s, s->every_destroy)) { sim_say(s, "%s session destroyed", in->id); dc_session_destroy(&s->store, s->now, mgr__str_of(in->core.life)); }
    if (sim_due(s, s->every_delete)) sim_delete_key(s);
    if (sim_due(s, s->every_stall)) { s->stall_until = s->now + sim_below(s, 9000); sim_say(s, "no leader"); }
    if (in->core_alive && !in->frozen && sim_due(s, s->every_leave)) { mgr__cluster_leave(&in->core); sim_pump(s, i); }
    if (in->core_alive && !in->frozen && sim_due(s, s->every_evict)) {
        char id[16];
        snprintf(id, sizeof id, "i%d", (int)sim_below(s, (uint32_t)s->instance_count));
        mgr__cluster_wish(&in->core, mgr__str_of(id), true, false);
        sim_pump(s, i);
    }
}

static void sim_heal(sim *s)
{
    s->faults = false;
    s->stall_until = 0;
    s->slow_ms = 20;
    s->watch_lag_ms = 0;
    for (int i = 0; i < s->instance_count; i++) {
        s->in[i].cut_until = 0;
        if (s->in[i].frozen) s->in[i].thaw_at = s->now;
    }
    sim_say(s, "faults end");
}

static void sim_step(sim *s)
{
    dc_tick(&s->store, s->now);
    bool paused = sim_paused(s);
    if (paused && !s->paused_since) { s->paused_since = s->now; s->pauses++; }
    if (!paused) s->paused_since = 0;
    for (int i = 0; i < s->message_high; i++) if (s->messages[i].used) sim_message_step(s, &s->messages[i]);
    for (int i = 0; i < s->instance_count; i++) if (s->in[i].exists) sim_instance_step(s, i);
}

/* Once all is settled: as many slots as members, and of each its own. That none has
 * two, and no two have one, follows. */
static void sim_judge_slots(sim *s)
{
    mgr__picture picture;
    mgr__root root;
    mgr__kv kvs[200];
    mgr__root_make(&root, &s->heap, mgr__str_of("manager"), mgr__str_of("svc"));
    size_t count = dc_list(&s->store, mgr__str_of("manager/svc/cluster/"), kvs, MGR__COUNT(kvs));
    if (count > MGR__COUNT(kvs) || !mgr__picture_read(&picture, &s->heap, &root, 1, kvs, count)) { sim_fail(s, "the last picture cannot be read", "", ""); return; }
    for (size_t i = 0; i < picture.member_count; i++) {
        const mgr__member *m = &picture.members[i];
        if (m->alive && !m->slot_index) sim_fail(s, "a member without a slot's key at the end", m->id.at, "");
    }
    if (picture.slot_count != picture.member_count) sim_fail(s, "a slot's key is left over at the end", "", "");
    mgr__picture_free(&picture);
}

/* No pause any more: each works on what the map gives it, and that is the map of all. */
static void sim_judge_map(sim *s)
{
    for (int i = 0; i < s->instance_count; i++) {
        sim_instance *in = &s->in[i];
        for (size_t n = 0; in->core_alive && n < in->core.part_count; n++)
            if (in->work[atoi(in->core.parts[n]->name.at)].alive != in->core.parts[n]->assigned)
                sim_fail(s, "not where the map wants it", in->id, in->core.parts[n]->name.at);
    }
}

/* Whoever can hear it is told, until nothing is paused. */
static void sim_resume(sim *s)
{
    int64_t until = s->now + SIM_RESUME_MS;
    for (int i = 0; i < s->instance_count; i++)
        if (s->in[i].core_alive && s->in[i].core.picture.pause.breaker) sim_fail(s, "the circuit breaker does not end", s->in[i].id, "");
    for (int i = 0; sim_paused(s) && i < s->instance_count; i++) if (s->in[i].core_alive) { sim_pause(s, &s->in[i], false); break; }
    for (; s->now < until && !s->bad; s->now++) sim_step(s);
    if (!s->bad && sim_paused(s)) sim_fail(s, "still paused at the end", "", "");
}

/* Exactly one works on each partition, and under the latest fence. */
static void sim_judge(sim *s)
{
    for (int p = 0; p < s->part_count; p++) {
        int owners = 0;
        for (int i = 0; i < s->instance_count; i++) owners += s->in[i].work[p].alive;
        if (owners != 1) sim_fail(s, owners ? "two owners at the end" : "no owner after healing", "", s->part_names[p]);
    }
    for (int i = 0; i < s->instance_count; i++)
        if (s->in[i].core_alive && mgr__cluster_set_is_old(&s->in[i].core)) sim_fail(s, "without the partition set at the end", s->in[i].id, "");
    if (s->slots) sim_judge_slots(s);
}

static uint32_t sim_rate(sim *s, uint32_t mean) { return sim_chance(s, 450) ? 0 : mean / 3 + sim_below(s, mean * 2); }

static void sim_setup(sim *s, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    s->seed = seed;
    s->rng.state = mgr__mix64(seed * 2654435761u);
    s->heap = mgr__heap_make(NULL);
    dc_open(&s->store, &s->heap, seed);
    s->now = 1000;
    s->faults = true;
    s->instance_count = 2 + (int)sim_below(s, SIM_INSTANCES_MAX - 1);
    s->part_count = 1 + (int)sim_below(s, SIM_PARTS_MAX);
    for (int p = 0; p < s->part_count; p++) { snprintf(s->part_names[p], sizeof s->part_names[p], "%d", p); s->part_list[p] = s->part_names[p]; }
    s->every_crash = sim_rate(s, 15000);
    s->every_host_death = sim_rate(s, 40000);
    s->every_freeze = sim_rate(s, 20000);
    s->every_cut = sim_rate(s, 15000);
    s->every_destroy = sim_rate(s, 20000);
    s->every_delete = sim_rate(s, 30000);
    s->every_stall = sim_rate(s, 30000);
    s->every_leave = sim_rate(s, 20000);
    s->every_evict = sim_rate(s, 40000);
    s->lose_per_mille = sim_chance(s, 500) ? sim_below(s, 60) : 0;
    s->late_per_mille = sim_chance(s, 500) ? sim_below(s, 60) : 0;
    s->slow_per_mille = 30;
    s->slow_ms = sim_chance(s, 500) ? 20 : sim_below(s, 2500);
    s->watch_lag_ms = sim_chance(s, 500) ? 0 : sim_below(s, 5000);
    s->calm = sim_chance(s, 200);
    s->every_pause = sim_chance(s, 400) ? 5000 + sim_below(s, 40000) : 0;
    s->breaker_percent = sim_chance(s, 500) ? 10 + sim_below(s, 60) : 0;
    if (s->calm) { s->lose_per_mille = s->late_per_mille = 0; s->slow_per_mille = 200; s->slow_ms = 60; s->watch_lag_ms = 0; s->part_count = 1 + s->part_count / 6; }
    mgr__rng more;      /* of its own: what a seed meant before there were slots it means still */
    more.state = mgr__mix64(seed ^ 0x510753);
    s->slots = mgr__rng_below(&more, 3) == 0;
    s->grace_ms = s->slots && !s->calm && mgr__rng_below(&more, 3) == 0 ? 6000 : 0;
    bool at_once = s->slots && mgr__rng_below(&more, 2) == 0;
    s->every_set_loss = !s->calm && mgr__rng_below(&more, 3) == 0 ? 4000 + mgr__rng_below(&more, 10000) : 0;
    for (int i = 0; i < s->instance_count; i++) {
        sim_instance *in = &s->in[i];
        snprintf(in->id, sizeof in->id, "i%d", i);
        snprintf(in->node, sizeof in->node, "node-%d", i);
        in->clock_offset = sim_below(s, 100000);
        in->clock_ppm = (int64_t)sim_below(s, 2000) - 1000;
        in->exists = true;
        in->restart_at = s->now + sim_below(s, 5000) + (sim_chance(s, 200) ? 20000 : 0);
        in->thaw_at = MGR__NEVER;
        if (at_once) in->restart_at = s->now + 1000 * (1 + i / 3);      /* three joiners at a time */
    }
}

static void sim_end(sim *s)
{
    for (int i = 0; i < SIM_MESSAGES_MAX; i++) if (s->messages[i].used) sim_drop_message(&s->messages[i]);
    for (int i = 0; i < s->instance_count; i++) if (s->in[i].core_alive) mgr__cluster_close(&s->in[i].core);
    dc_close(&s->store);
}

/* Where each instance stands: for a failure in a trace. */
static void sim_show(sim *s)
{
    for (int i = 0; i < s->instance_count && s->trace; i++) {
        sim_instance *in = &s->in[i];
        mgr__cluster *c = &in->core;
        printf("%s: core %d keeper %d closed %d words %d frozen %d", in->id, in->core_alive, in->keeper_alive, in->closed, in->words, in->frozen);
        if (in->core_alive) {
            printf(" phase %d life %.8s old %.8s out %d%d%d task %d setter %d busy %d set %d ready %d not_before %lld now %lld next %lld leave %d\n", c->phase, c->life, c->old_life,
                   c->errands[0].out, c->errands[1].out, c->errands[2].out, c->errands[2].task, c->setter.state, mgr__cluster_busy(c), c->have_set,
                   c->keeper_ready, (long long)c->not_before, (long long)sim_local(s, in), (long long)mgr__cluster_next(c, sim_local(s, in)), c->want_leave);
            for (size_t p = 0; p < c->part_count; p++) {
                mgr__part *part = c->parts[p];
                printf("   %s: state %d in_set %d assigned %d gone %d stale %d held %d holder %.8s takeable %lld writing %d refused %d\n", part->name.at, part->state, part->in_set,
                       part->assigned, part->gone, part->stale, part->held, part->holder, (long long)mgr__part_takeable_at(c, part, sim_local(s, in)), part->writing, part->refused);
            }
        } else printf(" restart_at %lld\n", (long long)in->restart_at);
    }
}

static bool sim_run(sim *s, uint64_t seed, bool trace)
{
    sim_setup(s, seed);
    s->trace = trace;
    for (; s->now < SIM_FAULTS_MS && !s->bad; s->now++) { if (s->now % 5 == 0) sim_make_faults(s); sim_step(s); }
    sim_heal(s);
    for (; s->now < SIM_FAULTS_MS + SIM_HEAL_MS && !s->bad; s->now++) sim_step(s);
    if (!s->bad) sim_judge(s);
    if (!s->bad) sim_resume(s);
    if (!s->bad) { sim_judge(s); sim_judge_map(s); }
    if (s->bad) { printf("%s\n", s->bad_text); sim_show(s); }
    bool ok = !s->bad;
    sim_end(s);
    return ok;
}

int main(int argc, char **argv)
{
    unsigned long runs = argc > 1 ? strtoul(argv[1], NULL, 10) : 300;
    unsigned long first = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    int most = argc > 3 ? (int)strtoul(argv[3], NULL, 10) : 6;
    uint64_t starts = 0, crashes = 0, pauses = 0;
    sim *s = (sim *)calloc(1, sizeof *s);
    if (!s) return 1;
    for (unsigned long i = 0; i < runs; i++) {
        if (sim_run(s, first + i, runs == 1)) test__passed++;
        else test__failed++;
        starts += s->starts;
        crashes += s->crashes;
        pauses += s->pauses;
        if (test__failed >= most) break;
    }
    free(s);
    printf("%lu seeds from %lu: %llu starts of work, %llu crashes, %llu pauses\n", runs, first,
           (unsigned long long)starts, (unsigned long long)crashes, (unsigned long long)pauses);
    return test__end();
}
