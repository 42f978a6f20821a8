/* The pure model of examples/devconsul.h: what its transactions, sessions, checks
 * and indexes do under a clock that the test owns. What Consul itself does is
 * compared in test_contract.c. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "../examples/devconsul.h"
#include "test.h"

typedef struct world {
    mgr__heap heap;
    dc_store  s;
    int64_t   now_ms;
    mgr__kv   kvs[8];
    size_t    kv_count, failed_count;
    uint32_t  failed[MGR__TXN_OPS_MAX];
} world;

static void world_open(world *w)
{
    memset(w, 0, sizeof *w);
    w->heap = mgr__heap_make(NULL);
    w->now_ms = 1000;
    dc_open(&w->s, &w->heap, 7);
}

static mgr__op op(mgr__verb verb, const char *key, const char *value, const char *session, uint64_t index)
{
    mgr__op o;
    o.verb = verb;
    o.key = mgr__str_of(key);
    o.value = mgr__str_of(value);
    o.session = mgr__str_of(session);
    o.index = index;
    return o;
}

static bool txn(world *w, const mgr__op *ops, size_t count)
{
    w->kv_count = MGR__COUNT(w->kvs);
    return dc_txn(&w->s, w->now_ms, ops, count, w->kvs, &w->kv_count, w->failed, &w->failed_count);
}

static bool one(world *w, mgr__verb verb, const char *key, const char *value, const char *session, uint64_t index)
{
    mgr__op o = op(verb, key, value, session, index);
    return txn(w, &o, 1);
}

static mgr__kv get(world *w, const char *key)
{
    mgr__kv none;
    memset(&none, 0, sizeof none);
    return one(w, MGR__GET, key, "", "", 0) ? w->kvs[0] : none;
}

static void session(world *w, char id[DC_ID_BYTES], uint32_t ttl_ms, uint32_t delay_ms, const char *check)
{
    mgr__str checks = mgr__str_of(check);
    const char *made = dc_session_create(&w->s, w->now_ms, mgr__str_of("t"), ttl_ms, delay_ms, &checks, check ? 1 : 0);
    id[0] = 0;
    CHECK(made != NULL);
    if (made) memcpy(id, made, DC_ID_BYTES);
}

static void ttl_check(world *w, const char *id, const char *service, uint32_t ttl_ms, uint32_t reap_ms)
{
    dc_service_desc sd;
    dc_check_desc cd;
    memset(&sd, 0, sizeof sd);
    memset(&cd, 0, sizeof cd);
    sd.id = sd.name = cd.service_id = mgr__str_of(service);
    cd.id = cd.name = mgr__str_of(id);
    cd.ttl_ms = ttl_ms;
    cd.reap_ms = reap_ms;
    CHECK(dc_service_register(&w->s, w->now_ms, &sd));
    CHECK(dc_check_register(&w->s, w->now_ms, &cd));
}

TEST(a_transaction_shares_one_index)
{
    world w;
    mgr__op ops[2];
    world_open(&w);
    ops[0] = op(MGR__SET, "b", "1", "", 0);
    ops[1] = op(MGR__CAS, "a", "2", "", 0);
    CHECK(txn(&w, ops, 2));
    CHECK_INT(w.kv_count, 2);
    CHECK_INT(w.kvs[0].modify_index, w.kvs[1].modify_index);
    CHECK_INT(w.kvs[0].modify_index, dc_index(&w.s));
    CHECK_INT(w.kvs[0].value.len, 0);
    CHECK_INT(dc_list(&w.s, mgr__str_of(""), w.kvs, 8), 2);
    CHECK(mgr__str_is(w.kvs[0].key, "a") && mgr__str_is(w.kvs[0].value, "2"));
    CHECK_INT(dc_list(&w.s, mgr__str_of(""), w.kvs, 0), 2);
    dc_close(&w.s);
}

TEST(a_failed_transaction_changes_nothing)
{
    world w;
    mgr__op ops[5];
    world_open(&w);
    CHECK(one(&w, MGR__SET, "a", "old", "", 0));
    uint64_t index = dc_index(&w.s);
    ops[0] = op(MGR__SET, "a", "new", "", 0);
    ops[1] = op(MGR__SET, "c", "x", "", 0);
    ops[2] = op(MGR__DELETE_CAS, "c", "", "", index + 1);
    ops[3] = op(MGR__CHECK_ABSENT, "a", "", "", 0);
    ops[4] = op(MGR__CAS, "z", "", "", 3);
    CHECK(!txn(&w, ops, 5));
    CHECK_INT(w.failed_count, 2);
    CHECK_INT(w.failed[0], 3);
    CHECK_INT(w.failed[1], 4);
    CHECK_INT(dc_index(&w.s), index);
    CHECK(mgr__str_is(get(&w, "a").value, "old"));
    CHECK_INT(dc_list(&w.s, mgr__str_of(""), w.kvs, 8), 1);
    dc_close(&w.s);
}

TEST(identical_writes_leave_the_index)
{
    world w;
    char id[DC_ID_BYTES];
    world_open(&w);
    session(&w, id, 0, 0, NULL);
    CHECK(one(&w, MGR__LOCK, "k", "v", id, 0));
    uint64_t fence = w.kvs[0].modify_index;
    CHECK(one(&w, MGR__LOCK, "k", "v", id, 0));
    CHECK_INT(w.kvs[0].modify_index, fence);
    CHECK_INT(w.kvs[0].lock_index, 1);
    CHECK_INT(dc_index(&w.s), fence);
    CHECK(one(&w, MGR__LOCK, "k", "other", id, 0));
    CHECK_INT(w.kvs[0].modify_index, fence + 1);
    CHECK_INT(w.kvs[0].create_index, fence);
    dc_close(&w.s);
}

TEST(locks_are_exclusive)
{
    world w;
    char a[DC_ID_BYTES], b[DC_ID_BYTES];
    world_open(&w);
    session(&w, a, 0, 0, NULL);
    session(&w, b, 0, 0, NULL);
    CHECK(strcmp(a, b) != 0);
    CHECK(!one(&w, MGR__LOCK, "k", "v", "no such session", 0));
    CHECK(!one(&w, MGR__LOCK, "k", "v", "", 0));
    CHECK(one(&w, MGR__LOCK, "k", "v", a, 0));
    CHECK(!one(&w, MGR__LOCK, "k", "v", b, 0));
    CHECK(!one(&w, MGR__UNLOCK, "k", "v", b, 0));
    CHECK(!one(&w, MGR__CHECK_SESSION, "k", "", b, 0));
    CHECK(one(&w, MGR__CHECK_SESSION, "k", "", a, 0));
    CHECK(one(&w, MGR__SET, "k", "plain", "", 0));
    mgr__kv kv = get(&w, "k");
    CHECK(mgr__str_is(kv.session, a) && kv.lock_index == 0);
    CHECK(one(&w, MGR__UNLOCK, "k", "free", a, 0));
    CHECK_INT(w.kvs[0].session.len, 0);
    CHECK(!one(&w, MGR__UNLOCK, "k", "free", a, 0));
    CHECK(one(&w, MGR__LOCK, "k", "v", b, 0));
    CHECK_INT(w.kvs[0].lock_index, 1);
    dc_close(&w.s);
}

TEST(a_session_ends_at_one_index)
{
    world w;
    char id[DC_ID_BYTES];
    world_open(&w);
    session(&w, id, 0, 0, NULL);
    CHECK(one(&w, MGR__LOCK, "a", "1", id, 0));
    CHECK(one(&w, MGR__LOCK, "b", "2", id, 0));
    CHECK(dc_session_destroy(&w.s, w.now_ms, mgr__str_of(id)));
    CHECK(!dc_session_destroy(&w.s, w.now_ms, mgr__str_of(id)));
    CHECK_INT(get(&w, "a").modify_index, dc_index(&w.s));
    CHECK_INT(get(&w, "b").modify_index, dc_index(&w.s));
    CHECK_INT(get(&w, "b").session.len, 0);
    CHECK_INT(get(&w, "b").lock_index, 1);
    dc_close(&w.s);
}

TEST(lock_delay_holds_off_others_for_its_time)
{
    world w;
    char a[DC_ID_BYTES], b[DC_ID_BYTES];
    mgr__op ops[2];
    world_open(&w);
    session(&w, a, 0, 2000, NULL);
    session(&w, b, 0, 0, NULL);
    CHECK(one(&w, MGR__LOCK, "k", "v", a, 0));
    CHECK(one(&w, MGR__UNLOCK, "k", "v", a, 0));
    CHECK(one(&w, MGR__LOCK, "k", "v", b, 0));      /* none after an unlock */
    CHECK(one(&w, MGR__UNLOCK, "k", "v", b, 0));
    CHECK(one(&w, MGR__LOCK, "k", "v", a, 0));
    CHECK(dc_session_destroy(&w.s, w.now_ms, mgr__str_of(a)));
    ops[0] = op(MGR__CHECK_ABSENT, "k", "", "", 0);
    ops[1] = op(MGR__LOCK, "k", "v", b, 0);
    CHECK(!txn(&w, ops, 2));
    CHECK_INT(w.failed_count, 1);                    /* the delay stands alone */
    CHECK_INT(w.failed[0], 1);
    w.now_ms += 1999;
    CHECK(!one(&w, MGR__LOCK, "k", "v", b, 0));
    w.now_ms += 1;
    CHECK(one(&w, MGR__LOCK, "k", "v", b, 0));
    dc_close(&w.s);
}

TEST(sessions_live_for_twice_their_ttl)
{
    world w;
    char id[DC_ID_BYTES];
    world_open(&w);
    session(&w, id, 10000, 0, NULL);
    CHECK_INT(dc_next_deadline(&w.s), 21000);
    w.now_ms += 19999;
    CHECK(dc_session_renew(&w.s, w.now_ms, mgr__str_of(id)));
    w.now_ms += 19999;
    dc_tick(&w.s, w.now_ms);
    CHECK_INT(dc_session_count(&w.s), 1);
    CHECK_STR(dc_session_at(&w.s, 0)->id, id);
    dc_tick(&w.s, w.now_ms + 1);
    CHECK_INT(dc_session_count(&w.s), 0);
    CHECK(!dc_session_renew(&w.s, w.now_ms, mgr__str_of(id)));
    CHECK(dc_next_deadline(&w.s) == MGR__NEVER);
    dc_close(&w.s);
}

TEST(a_critical_check_ends_its_sessions)
{
    world w;
    char id[DC_ID_BYTES];
    mgr__str check = mgr__str_of("s:ttl"), none = mgr__str_of("");
    world_open(&w);
    CHECK(!dc_session_create(&w.s, w.now_ms, none, 0, 0, &check, 1));
    ttl_check(&w, "s:ttl", "s", 3000, 0);
    session(&w, id, 0, 0, "s:ttl");
    w.now_ms += 2999;
    CHECK(dc_check_update(&w.s, w.now_ms, check, DC_WARNING, none));
    CHECK_INT(dc_session_count(&w.s), 1);
    CHECK_INT(dc_next_deadline(&w.s), w.now_ms + 3000);
    uint64_t index = dc_index(&w.s);
    CHECK(dc_check_update(&w.s, w.now_ms, check, DC_WARNING, none));
    CHECK_INT(dc_index(&w.s), index);
    w.now_ms += 3000;
    dc_tick(&w.s, w.now_ms);
    CHECK_INT(dc_session_count(&w.s), 0);
    CHECK(!dc_session_create(&w.s, w.now_ms, none, 0, 0, &check, 1));
    CHECK(dc_check_update(&w.s, w.now_ms, check, DC_PASSING, none));
    session(&w, id, 0, 0, "s:ttl");
    CHECK(dc_service_deregister(&w.s, w.now_ms, mgr__str_of("s")));
    CHECK_INT(dc_session_count(&w.s), 0);
    CHECK(!dc_check_update(&w.s, w.now_ms, check, DC_PASSING, none));
    dc_close(&w.s);
}

TEST(a_service_critical_for_too_long_goes)
{
    world w;
    world_open(&w);
    ttl_check(&w, "s:a", "s", 1000, 90000);
    ttl_check(&w, "s:b", "s", 5000000, 0);
    dc_tick(&w.s, w.now_ms + 1000);
    CHECK_INT(dc_next_deadline(&w.s), w.now_ms + 91000);
    CHECK_INT(w.s.service_count, 1);
    dc_tick(&w.s, w.now_ms + 91000);
    CHECK_INT(w.s.service_count, 0);
    CHECK_INT(w.s.check_count, 1);
    dc_close(&w.s);
}

TEST(a_prefix_index_moves_for_its_own_keys_only)
{
    world w;
    mgr__str p = mgr__str_of("p/");
    world_open(&w);
    CHECK_INT(dc_prefix_index(&w.s, p), 1);
    CHECK(one(&w, MGR__SET, "p/a", "1", "", 0));
    CHECK(one(&w, MGR__SET, "p/b", "1", "", 0));
    uint64_t index = dc_prefix_index(&w.s, p);
    CHECK(one(&w, MGR__SET, "q", "1", "", 0));
    CHECK_INT(dc_prefix_index(&w.s, p), index);
    CHECK(one(&w, MGR__DELETE_CAS, "p/a", "", "", index - 1));
    CHECK_INT(dc_prefix_index(&w.s, p), dc_index(&w.s));
    dc_tick(&w.s, w.now_ms + DC_TOMBSTONE_MS);
    CHECK_INT(dc_prefix_index(&w.s, p), index);     /* it may fall, as Consul's does */
    dc_close(&w.s);
}

TEST(answers_live_until_the_next_change)
{
    world w;
    mgr__op ops[3];
    world_open(&w);
    ops[0] = op(MGR__SET, "k", "one", "", 0);
    ops[1] = op(MGR__GET, "k", "", "", 0);
    ops[2] = op(MGR__SET, "k", "two", "", 0);
    CHECK(txn(&w, ops, 3));
    CHECK_INT(w.kv_count, 3);
    CHECK(mgr__str_is(w.kvs[1].value, "one"));
    CHECK(mgr__str_is(get(&w, "k").value, "two"));
    ops[0] = op(MGR__GET_TREE, "", "", "", 0);      /* a key is required here, as in Consul */
    CHECK(!txn(&w, ops, 1));
    dc_close(&w.s);
}

/* Against a plain array: ten thousand keys, in an order of the seed's. */
TEST(many_keys_stay_in_order)
{
    enum { KEYS = 10000 };
    world w;
    mgr__rng rng = { 5 };
    static mgr__kv all[KEYS];
    world_open(&w);
    size_t made = 0;
    for (int i = 0; i < KEYS; i++) {
        char key[32];
        snprintf(key, sizeof key, "k/%u", (unsigned)mgr__rng_below(&rng, 1000000));
        made += one(&w, MGR__CAS, key, "v", "", 0);
    }
    CHECK_INT(dc_list(&w.s, mgr__str_of("k/"), all, KEYS), made);
    size_t in_order = 1;
    while (in_order < made && mgr__str_order(all[in_order - 1].key, all[in_order].key) < 0) in_order++;
    CHECK_INT(in_order, made);
    dc_close(&w.s);
}

static void *failing(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    long *left = (long *)user;
    (void)old_bytes;
    if (new_bytes == 0) { free(ptr); return NULL; }
    return (*left)-- > 0 ? realloc(ptr, new_bytes) : NULL;
}

/* Fail the Nth allocation for N = 0, 1, ... until the run succeeds: no leak, no crash. */
TEST(out_of_memory_anywhere)
{
    bool done = false;
    for (long n = 0; n < 200 && !done; n++) {
        long left = n;
        mgr_allocator allocator;
        world w;
        mgr__op ops[2];
        memset(&w, 0, sizeof w);
        allocator.resize = failing;
        allocator.user = &left;
        w.heap = mgr__heap_make(&allocator);
        dc_open(&w.s, &w.heap, 1);
        const char *id = dc_session_create(&w.s, 0, mgr__str_of("s"), 10000, 0, NULL, 0);
        ops[0] = op(MGR__LOCK, "a", "1", id ? id : "", 0);
        ops[1] = op(MGR__SET, "b", "2", "", 0);
        done = txn(&w, ops, 2);
        CHECK_INT(dc_list(&w.s, mgr__str_of(""), w.kvs, 8), done ? 2 : 0);
        dc_tick(&w.s, 20000);
        CHECK_INT(dc_session_count(&w.s), 0);
        dc_close(&w.s);
    }
    CHECK(done);
}

int main(int argc, char **argv)
{
    RUN(a_transaction_shares_one_index);
    RUN(a_failed_transaction_changes_nothing);
    RUN(identical_writes_leave_the_index);
    RUN(locks_are_exclusive);
    RUN(a_session_ends_at_one_index);
    RUN(lock_delay_holds_off_others_for_its_time);
    RUN(sessions_live_for_twice_their_ttl);
    RUN(a_critical_check_ends_its_sessions);
    RUN(a_service_critical_for_too_long_goes);
    RUN(a_prefix_index_moves_for_its_own_keys_only);
    RUN(answers_live_until_the_next_change);
    RUN(many_keys_stay_in_order);
    RUN(out_of_memory_anywhere);
    return test__end();
}
