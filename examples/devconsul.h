/* devconsul.h: a small Consul agent for one machine, in memory
 *
 * It speaks the part of Consul 1.8's HTTP API that manager.h uses: KV with
 * sessions, lock-delay and transactions, blocking queries, sessions with a TTL and
 * checks, services and TTL checks of the agent, catalogue and health. It serves
 * `manager dev`, the demo and fast tests; its store also drives the simulator.
 *
 * It is for one machine and forgets everything when it ends. It has no raft, no
 * gossip, no ACLs and no anti-entropy; beyond one machine, run Consul.
 *
 * Use: include it after the implementation of manager.h, in the same C file.
 *
 *     [store]  a pure model: no clock, no descriptor; the time is passed in
 *     [routes] one request in, one answer out; pure too
 *     [serve]  sockets and poll around them: dc_serve
 *
 * tests/test_contract.c sends the same requests to this and to a real Consul.
 *
 * Known to differ from Consul 1.8.7:
 *   - A query on a key or prefix that does not exist wakes on every change of the
 *     KV store, not on that of neighbours only (manager.h asks for neither).
 *   - A write that changes nothing takes no index; in Consul it takes one that
 *     nothing shows.
 *   - Lock-delay is decided together with the lock. In Consul it is decided
 *     earlier, and an acquire that is in flight can slip past it.
 *   - What the agent knows is in the catalogue at once, and what is taken out of
 *     the catalogue is gone from the agent too. Catalogue and health have one index
 *     together, so a query there wakes for other services' changes as well.
 *   - agent/self says only what a client needs; agent/join always fails;
 *     maintenance and events are 404.
 *   - Paths with "//", "." or ".." are taken as they stand, without a redirect.
 *   - The texts of JSON errors are this reader's own; unknown fields are ignored.
 *   - Checks other than TTL checks are refused. Answers are not pretty-printed.
 */
#ifndef DEVCONSUL_H
#define DEVCONSUL_H

/* ============================================================================
 * [store] The model: keys, sessions, services, checks
 * what:  what Consul's state store does with them, under a clock that is passed in
 * owns:  dc_store
 * calls: [base] of manager.h
 * ========================================================================== */

enum {
    DC_TOMBSTONE_MS = 15 * 60 * 1000,       /* a deletion is remembered so long, then a prefix's index may fall */
    DC_LOCK_DELAY_MS_MAX = 60 * 1000,       /* a longer one is shown, and counts as this */
    DC_LOCK_DELAY_MS_DEFAULT = 15 * 1000,
    DC_SESSION_TTL_MS_MIN = 10 * 1000,      /* asked of HTTP clients only: a simulator may use less */
    DC_SESSION_TTL_MS_MAX = 24 * 3600 * 1000,
    DC_REAP_MS_MIN = 60 * 1000,             /* least time before a critical service is deregistered */
    DC_ID_BYTES = 37                        /* a UUID and its end */
};

/* A key's state at one index. Never changed once it stands in the store: a write
 * makes a new one, so that a failed transaction puts the old ones back and its
 * answers may point into the store. */
typedef struct dc_entry {
    mgr__str key, value;                    /* views into this very block */
    uint64_t flags, create_index, modify_index, lock_index;
    char     session[DC_ID_BYTES];          /* "": not locked */
} dc_entry;

typedef struct dc_tombstone { char *key; size_t key_len; uint64_t index; int64_t until_ms; } dc_tombstone;
typedef struct dc_delay { char *key; int64_t until_ms; } dc_delay;

typedef enum dc_status { DC_PASSING, DC_WARNING, DC_CRITICAL } dc_status;

typedef struct dc_session {
    char     id[DC_ID_BYTES];
    char    *name;
    uint32_t ttl_ms, lock_delay_ms;
    char     ttl[24];                       /* as it was written, "" for none */
    bool     delete_keys;                   /* behaviour "delete" */
    char   **node_checks, **service_checks; /* ids; what was not given shows as null */
    bool     has_service_checks;
    size_t   node_check_count, service_check_count;
    uint64_t create_index;
    int64_t  until_ms;                      /* MGR__NEVER without a TTL */
} dc_session;

typedef struct dc_service {
    char    *id, *name, *address;
    char    *tags, *meta;                   /* JSON text */
    uint32_t port, weight_passing, weight_warning;
    uint64_t create_index, modify_index;
} dc_service;

typedef struct dc_check {
    char     *id, *name, *notes, *output;
    char     *service_id;                   /* "": the node's */
    dc_status status;
    uint32_t  ttl_ms;                       /* 0: serfHealth, which never changes */
    int64_t   due_ms;                       /* turns critical then; MGR__NEVER if it is */
    uint32_t  reap_ms;                      /* DeregisterCriticalServiceAfter; 0: never */
    int64_t   critical_ms;                  /* since when */
    uint64_t  create_index, modify_index;
} dc_check;

/* What one change did; the previous one is forgotten at the next. */
typedef struct dc_undo { dc_entry *was, *is; } dc_undo;

typedef struct dc_store {
    mgr__heap   *heap;
    mgr__rng     rng;
    uint64_t     index;                     /* of the latest change of anything */
    uint64_t     kv_index, session_index, catalog_index;   /* of the latest change of each table */
    dc_entry   **entries;     size_t entry_count, entry_cap;           /* in key order */
    dc_tombstone *tombstones; size_t tombstone_count, tombstone_cap;   /* in key order */
    dc_delay    *delays;      size_t delay_count, delay_cap;
    int64_t      forget_ms;                 /* no tombstone or delay is over before */
    dc_session **sessions;    size_t session_count, session_cap;
    dc_service **services;    size_t service_count, service_cap;
    dc_check   **checks;      size_t check_count, check_cap;
    dc_undo     *undo;        size_t undo_count, undo_cap;
    bool         no_memory;                 /* the change under way failed for it */
} dc_store;

/* One operation with what manager.h never asks for. */
enum { DC_DELETE = MGR__GET_TREE + 1, DC_DELETE_TREE, DC_UNKNOWN };

typedef struct dc_op { mgr__op op; int verb; uint64_t flags; } dc_op;

/* What became of the operations of one transaction. */
typedef struct dc_result { const dc_entry *entry; bool with_value; } dc_result;

typedef struct dc_outcome {
    mgr__heap *heap;
    dc_result *results;  size_t result_count, result_cap;
    uint32_t   failed[MGR__TXN_OPS_MAX]; size_t failed_count;
    size_t     text_at[MGR__TXN_OPS_MAX];   /* where in `text` the reason of failed[i] begins */
    mgr__buf   text;                        /* reasons, each with a terminator */
} dc_outcome;

/* ---- small helpers ---- */

static void dc__uuid(mgr__rng *rng, char *out)
{
    uint64_t a = mgr__rng_next(rng), b = mgr__rng_next(rng);
    snprintf(out, DC_ID_BYTES, "%08x-%04x-%04x-%04x-%012llx", (unsigned)(a >> 32), (unsigned)(a >> 16) & 0xffffu,
             (unsigned)a & 0xffffu, (unsigned)(b >> 48), (unsigned long long)(b & 0xffffffffffffu));
}

static bool dc__below(mgr__str key, mgr__str prefix)
{
    return key.len >= prefix.len && (prefix.len == 0 || memcmp(key.at, prefix.at, prefix.len) == 0);
}

static char *dc__text(dc_store *s, mgr__str text)
{
    char *copy = mgr__dup(s->heap, text);
    if (!copy) s->no_memory = true;
    return copy;
}

static bool dc__room(dc_store *s, void **items, size_t *cap, size_t count, size_t item_bytes)
{
    if (mgr__grow(s->heap, items, cap, count, item_bytes)) return true;
    s->no_memory = true;
    return false;
}

/* ---- keys ---- */

/* Where the first key that is not below `key` in order stands. */
static size_t dc__seek(const dc_store *s, mgr__str key)
{
    size_t lo = 0, hi = s->entry_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (mgr__str_order(s->entries[mid]->key, key) < 0) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

static dc_entry *dc__find(const dc_store *s, mgr__str key)
{
    size_t at = dc__seek(s, key);
    return at < s->entry_count && mgr__str_eq(s->entries[at]->key, key) ? s->entries[at] : NULL;
}

static dc_entry *dc__entry_make(dc_store *s, mgr__str key, mgr__str value, mgr__str session)
{
    dc_entry *entry = (dc_entry *)mgr__alloc(s->heap, sizeof *entry + key.len + value.len + 2);
    if (!entry) { s->no_memory = true; return NULL; }
    char *text = (char *)(entry + 1);
    if (key.len) memcpy(text, key.at, key.len);
    if (value.len) memcpy(text + key.len + 1, value.at, value.len);
    entry->key = mgr__str_make(text, key.len);
    entry->value = mgr__str_make(text + key.len + 1, value.len);
    mgr__copy_text(entry->session, sizeof entry->session, session);
    return entry;
}

/* Put `is` where `was` stood; NULL: nothing stands there. Room for one more was made. */
static void dc__swap(dc_store *s, dc_entry *was, dc_entry *is)
{
    size_t at = dc__seek(s, was ? was->key : is->key);
    dc_entry **slot = s->entries + at;
    if (was && is) *slot = is;
    else if (is) {
        memmove(slot + 1, slot, (s->entry_count - at) * sizeof *slot);
        *slot = is;
        s->entry_count++;
    } else {
        s->entry_count--;
        memmove(slot, slot + 1, (s->entry_count - at) * sizeof *slot);
    }
}

/* One step of a change, recorded so that it can be taken back. Takes over `is`. */
static bool dc__replace(dc_store *s, dc_entry *was, dc_entry *is)
{
    if (!dc__room(s, (void **)&s->undo, &s->undo_cap, s->undo_count, sizeof *s->undo)
        || !dc__room(s, (void **)&s->entries, &s->entry_cap, s->entry_count, sizeof *s->entries)) {
        mgr__free(s->heap, is);
        return false;
    }
    dc__swap(s, was, is);
    s->undo[s->undo_count].was = was;
    s->undo[s->undo_count++].is = is;
    return true;
}

/* Forget the previous change: what its answers pointed to goes. */
static void dc__begin(dc_store *s)
{
    for (size_t i = 0; i < s->undo_count; i++) mgr__free(s->heap, s->undo[i].was);
    s->undo_count = 0;
    s->no_memory = false;
}

static void dc__roll_back(dc_store *s)
{
    while (s->undo_count) {
        dc_undo *last = &s->undo[--s->undo_count];
        dc__swap(s, last->is, last->was);
        mgr__free(s->heap, last->is);
    }
}

static size_t dc__tombstone_seek(const dc_store *s, mgr__str key)
{
    size_t lo = 0, hi = s->tombstone_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (mgr__str_order(mgr__str_make(s->tombstones[mid].key, s->tombstones[mid].key_len), key) < 0) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* So that a prefix's index grows when a key below it goes. */
static void dc__bury(dc_store *s, mgr__str key, uint64_t index, int64_t now_ms)
{
    size_t at = dc__tombstone_seek(s, key);
    bool there = at < s->tombstone_count
              && mgr__str_eq(mgr__str_make(s->tombstones[at].key, s->tombstones[at].key_len), key);
    if (!there) {
        char *copy = dc__text(s, key);
        if (!copy) return;
        if (!dc__room(s, (void **)&s->tombstones, &s->tombstone_cap, s->tombstone_count, sizeof *s->tombstones)) {
            mgr__free(s->heap, copy);
            return;
        }
        memmove(s->tombstones + at + 1, s->tombstones + at, (s->tombstone_count - at) * sizeof *s->tombstones);
        s->tombstones[at].key = copy;
        s->tombstones[at].key_len = key.len;
        s->tombstone_count++;
    }
    s->tombstones[at].index = index;
    s->tombstones[at].until_ms = now_ms + DC_TOMBSTONE_MS;
    s->forget_ms = mgr__min64(s->forget_ms, s->tombstones[at].until_ms);
}

/* The change stands: bury what went and let the index show it. */
static void dc__commit(dc_store *s, uint64_t index, int64_t now_ms)
{
    if (!s->undo_count) return;
    for (size_t i = 0; i < s->undo_count; i++)
        if (!s->undo[i].is) dc__bury(s, s->undo[i].was->key, index, now_ms);
    s->index = s->kv_index = index;
}

/* Store a new state of a key, unless it is the same as the old one: ModifyIndex
 * then stays. `session` and `lock_index` are as they shall be. */
static const dc_entry *dc__put(dc_store *s, uint64_t index, const dc_op *op, mgr__str session, uint64_t lock_index)
{
    dc_entry *was = dc__find(s, op->op.key);
    if (was && was->lock_index == lock_index && was->flags == op->flags && mgr__str_eq(was->value, op->op.value)
        && mgr__str_is(session, was->session)) return was;
    dc_entry *is = dc__entry_make(s, op->op.key, op->op.value, session);
    if (!is) return NULL;
    is->flags = op->flags;
    is->lock_index = lock_index;
    is->create_index = was ? was->create_index : index;
    is->modify_index = index;
    return dc__replace(s, was, is) ? is : NULL;
}

static void dc__delete_below(dc_store *s, mgr__str prefix)
{
    size_t at = dc__seek(s, prefix);
    while (at < s->entry_count && dc__below(s->entries[at]->key, prefix))
        if (!dc__replace(s, s->entries[at], NULL)) return;
}

static bool dc__delayed(const dc_store *s, mgr__str key, int64_t now_ms)
{
    for (size_t i = 0; i < s->delay_count; i++)
        if (mgr__str_is(key, s->delays[i].key)) return s->delays[i].until_ms > now_ms;
    return false;
}

static void dc__delay(dc_store *s, mgr__str key, int64_t until_ms)
{
    size_t at = 0;
    while (at < s->delay_count && !mgr__str_is(key, s->delays[at].key)) at++;
    if (at == s->delay_count) {
        char *copy = dc__text(s, key);
        if (!copy) return;
        if (!dc__room(s, (void **)&s->delays, &s->delay_cap, s->delay_count, sizeof *s->delays)) {
            mgr__free(s->heap, copy);
            return;
        }
        s->delays[s->delay_count++].key = copy;
    }
    s->delays[at].until_ms = until_ms;
    s->forget_ms = mgr__min64(s->forget_ms, until_ms);
}

/* ---- sessions ---- */

static dc_session *dc__session_find(const dc_store *s, mgr__str id)
{
    for (size_t i = 0; i < s->session_count; i++)
        if (mgr__str_is(id, s->sessions[i]->id)) return s->sessions[i];
    return NULL;
}

static void dc__texts_free(dc_store *s, char **texts, size_t count)
{
    for (size_t i = 0; i < count; i++) mgr__free(s->heap, texts[i]);
    mgr__free(s->heap, texts);
}

static void dc__session_free(dc_store *s, dc_session *session)
{
    dc__texts_free(s, session->node_checks, session->node_check_count);
    dc__texts_free(s, session->service_checks, session->service_check_count);
    mgr__free(s->heap, session->name);
    mgr__free(s->heap, session);
}

/* A session ends, at one index for all its keys. LockIndex stays. */
static void dc__session_end(dc_store *s, int64_t now_ms, uint64_t index, dc_session *session)
{
    size_t at = 0;
    while (s->sessions[at] != session) at++;
    for (size_t i = 0; i < s->entry_count; i++) {
        dc_entry *was = s->entries[i];
        if (strcmp(was->session, session->id) != 0) continue;
        if (session->lock_delay_ms) dc__delay(s, was->key, now_ms + mgr__min64(session->lock_delay_ms, DC_LOCK_DELAY_MS_MAX));
        if (session->delete_keys) { if (dc__replace(s, was, NULL)) i--; continue; }
        dc_entry *is = dc__entry_make(s, was->key, was->value, mgr__str_of(""));
        if (!is) { was->session[0] = 0; was->modify_index = index; continue; }   /* rather than locked for ever */
        is->flags = was->flags;
        is->lock_index = was->lock_index;
        is->create_index = was->create_index;
        is->modify_index = index;
        dc__replace(s, was, is);
    }
    s->session_count--;
    memmove(s->sessions + at, s->sessions + at + 1, (s->session_count - at) * sizeof *s->sessions);
    s->index = s->session_index = index;
    dc__session_free(s, session);
}

static bool dc__session_has(const dc_session *session, const char *check_id)
{
    for (size_t i = 0; i < session->node_check_count; i++) if (!strcmp(session->node_checks[i], check_id)) return true;
    for (size_t i = 0; i < session->service_check_count; i++) if (!strcmp(session->service_checks[i], check_id)) return true;
    return false;
}

static void dc__sessions_end_of_check(dc_store *s, int64_t now_ms, uint64_t index, const char *check_id)
{
    for (size_t i = s->session_count; i-- > 0; )
        if (dc__session_has(s->sessions[i], check_id)) dc__session_end(s, now_ms, index, s->sessions[i]);
}

/* ---- checks and services ---- */

static dc_check *dc__check_find(const dc_store *s, mgr__str id)
{
    for (size_t i = 0; i < s->check_count; i++) if (mgr__str_is(id, s->checks[i]->id)) return s->checks[i];
    return NULL;
}

static dc_service *dc__service_find(const dc_store *s, mgr__str id)
{
    for (size_t i = 0; i < s->service_count; i++) if (mgr__str_is(id, s->services[i]->id)) return s->services[i];
    return NULL;
}

static void dc__check_free(dc_store *s, dc_check *check)
{
    mgr__free(s->heap, check->id);
    mgr__free(s->heap, check->name);
    mgr__free(s->heap, check->notes);
    mgr__free(s->heap, check->output);
    mgr__free(s->heap, check->service_id);
    mgr__free(s->heap, check);
}

static void dc__service_free(dc_store *s, dc_service *service)
{
    mgr__free(s->heap, service->id);
    mgr__free(s->heap, service->name);
    mgr__free(s->heap, service->address);
    mgr__free(s->heap, service->tags);
    mgr__free(s->heap, service->meta);
    mgr__free(s->heap, service);
}

static void dc__check_remove(dc_store *s, int64_t now_ms, uint64_t index, dc_check *check)
{
    size_t at = 0;
    while (s->checks[at] != check) at++;
    dc__sessions_end_of_check(s, now_ms, index, check->id);
    s->check_count--;
    memmove(s->checks + at, s->checks + at + 1, (s->check_count - at) * sizeof *s->checks);
    s->index = s->catalog_index = index;
    dc__check_free(s, check);
}

/* A new output is a change, and wakes watchers; the same one again is not. */
static void dc__check_set(dc_store *s, int64_t now_ms, dc_check *check, dc_status status, mgr__str output)
{
    uint64_t index = s->index + 1;
    bool turned = check->status != status;
    if (!turned && mgr__str_is(output, check->output)) return;
    char *copy = dc__text(s, output);
    if (!copy) return;
    dc__begin(s);
    mgr__free(s->heap, check->output);
    check->output = copy;
    check->status = status;
    check->modify_index = s->index = s->catalog_index = index;
    if (turned && status == DC_CRITICAL) {
        check->critical_ms = now_ms;
        dc__sessions_end_of_check(s, now_ms, index, check->id);
    }
    dc__commit(s, index, now_ms);
}

/* ---- transactions ---- */

static void dc__fail(dc_outcome *out, size_t op, const char *format, ...) MGR__PRINTF(3, 4);
static void dc__fail(dc_outcome *out, size_t op, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (out->failed_count == MGR__COUNT(out->failed)) return;
    out->failed[out->failed_count] = (uint32_t)op;
    out->text_at[out->failed_count++] = out->text.len;
    mgr__buf_add(&out->text, text, strlen(text) + 1);
}

static void dc__yield(dc_store *s, dc_outcome *out, const dc_entry *entry, bool with_value)
{
    if (!entry) { s->no_memory = true; return; }
    if (!dc__room(s, (void **)&out->results, &out->result_cap, out->result_count, sizeof *out->results)) return;
    out->results[out->result_count].entry = entry;
    out->results[out->result_count++].with_value = with_value;
}

/* printf's view of a key: "%.*s". */
static int dc__len(mgr__str s) { return s.len > 300 ? 300 : (int)s.len; }

/* What Consul refuses before it looks at the store; such failures stand alone. */
static void dc__pre_check(const dc_store *s, int64_t now_ms, const dc_op *ops, size_t count, dc_outcome *out)
{
    for (size_t i = 0; i < count; i++) {
        mgr__str key = ops[i].op.key;
        if (!key.len && ops[i].verb != DC_DELETE_TREE) dc__fail(out, i, "Must provide key");
        else if (ops[i].verb == MGR__LOCK && dc__delayed(s, key, now_ms))
            dc__fail(out, i, "failed to lock key \"%.*s\" due to lock delay", dc__len(key), key.at);
    }
}

/* True if it is one that a lock or unlock may carry; the failure is recorded else. */
static bool dc__session_fit(const dc_store *s, const dc_op *op, size_t at, dc_outcome *out)
{
    mgr__str id = op->op.session;
    if (!id.len) { dc__fail(out, at, "missing session"); return false; }
    if (op->verb != MGR__LOCK) return true;
    if (id.len != DC_ID_BYTES - 1) {
        dc__fail(out, at, "failed session lookup: index error: UUID must be 36 characters");
        return false;
    }
    if (dc__session_find(s, id)) return true;
    dc__fail(out, at, "invalid session \"%.*s\"", dc__len(id), id.at);
    return false;
}

static void dc__do_lock(dc_store *s, uint64_t index, const dc_op *op, size_t at, dc_outcome *out)
{
    const dc_entry *was = dc__find(s, op->op.key);
    mgr__str key = op->op.key;
    if (!dc__session_fit(s, op, at, out)) return;
    bool ours = was && mgr__str_is(op->op.session, was->session);
    if (was && was->session[0] && !ours) {
        dc__fail(out, at, "failed to lock key \"%.*s\", lock is already held", dc__len(key), key.at);
        return;
    }
    uint64_t lock_index = !was ? 1 : ours ? was->lock_index : was->lock_index + 1;
    dc__yield(s, out, dc__put(s, index, op, op->op.session, lock_index), false);
}

static void dc__do_unlock(dc_store *s, uint64_t index, const dc_op *op, size_t at, dc_outcome *out)
{
    const dc_entry *was = dc__find(s, op->op.key);
    mgr__str key = op->op.key;
    if (!dc__session_fit(s, op, at, out)) return;
    if (was && mgr__str_is(op->op.session, was->session))
        dc__yield(s, out, dc__put(s, index, op, mgr__str_of(""), was->lock_index), false);
    else
        dc__fail(out, at, "failed to unlock key \"%.*s\", lock isn't held, or is held by another session", dc__len(key), key.at);
}

/* A plain write keeps the session and sets LockIndex to 0: it is no fence. */
static void dc__do_set(dc_store *s, uint64_t index, const dc_op *op, size_t at, dc_outcome *out)
{
    const dc_entry *was = dc__find(s, op->op.key);
    mgr__str key = op->op.key;
    if (op->verb == MGR__CAS && (was ? was->modify_index : 0) != op->op.index) {
        dc__fail(out, at, "failed to set key \"%.*s\", index is stale", dc__len(key), key.at);
        return;
    }
    dc__yield(s, out, dc__put(s, index, op, mgr__str_of(was ? was->session : ""), 0), false);
}

static void dc__do_delete(dc_store *s, const dc_op *op, size_t at, dc_outcome *out)
{
    dc_entry *was = dc__find(s, op->op.key);
    mgr__str key = op->op.key;
    if (!was) return;                       /* gone is what was asked for, with an index too */
    if (op->verb == MGR__DELETE_CAS && was->modify_index != op->op.index)
        dc__fail(out, at, "failed to delete key \"%.*s\", index is stale", dc__len(key), key.at);
    else
        dc__replace(s, was, NULL);
}

static void dc__do_check(dc_store *s, const dc_op *op, size_t at, dc_outcome *out)
{
    const dc_entry *is = dc__find(s, op->op.key);
    mgr__str key = op->op.key, id = op->op.session;
    const char *what = op->verb == MGR__CHECK_INDEX ? "index" : "session";
    if (op->verb == MGR__CHECK_ABSENT) {
        if (is) dc__fail(out, at, "key \"%.*s\" exists", dc__len(key), key.at);
    } else if (!is) {
        dc__fail(out, at, "failed to check %s, key \"%.*s\" doesn't exist", what, dc__len(key), key.at);
    } else if (op->verb == MGR__CHECK_INDEX && is->modify_index != op->op.index) {
        dc__fail(out, at, "failed index check for key \"%.*s\", current modify index %llu != %llu", dc__len(key), key.at,
                 (unsigned long long)is->modify_index, (unsigned long long)op->op.index);
    } else if (op->verb == MGR__CHECK_SESSION && !mgr__str_is(id, is->session)) {
        dc__fail(out, at, "failed session check for key \"%.*s\", current session \"%s\" != \"%.*s\"", dc__len(key), key.at,
                 is->session, dc__len(id), id.at);
    } else dc__yield(s, out, is, false);
}

static void dc__do_get(dc_store *s, const dc_op *op, size_t at, dc_outcome *out)
{
    mgr__str key = op->op.key;
    if (op->verb == MGR__GET) {
        const dc_entry *is = dc__find(s, key);
        if (is) dc__yield(s, out, is, true);
        else dc__fail(out, at, "key \"%.*s\" doesn't exist", dc__len(key), key.at);
        return;
    }
    for (size_t i = dc__seek(s, key); i < s->entry_count && dc__below(s->entries[i]->key, key); i++)
        dc__yield(s, out, s->entries[i], true);
}

static void dc__do(dc_store *s, uint64_t index, const dc_op *op, size_t at, dc_outcome *out)
{
    switch (op->verb) {
    case MGR__SET: case MGR__CAS:            dc__do_set(s, index, op, at, out); break;
    case MGR__LOCK:                          dc__do_lock(s, index, op, at, out); break;
    case MGR__UNLOCK:                        dc__do_unlock(s, index, op, at, out); break;
    case MGR__DELETE_CAS: case DC_DELETE:    dc__do_delete(s, op, at, out); break;
    case DC_DELETE_TREE:                     dc__delete_below(s, op->op.key); break;
    case MGR__CHECK_INDEX: case MGR__CHECK_SESSION:
    case MGR__CHECK_ABSENT:                  dc__do_check(s, op, at, out); break;
    case MGR__GET: case MGR__GET_TREE:       dc__do_get(s, op, at, out); break;
    default: dc__fail(out, at, "unknown KV verb \"%.*s\"", dc__len(op->op.value), op->op.value.at); break;
    }
}

static void dc__outcome_init(dc_outcome *out, mgr__heap *heap)
{
    memset(out, 0, sizeof *out);
    out->heap = heap;
    mgr__buf_init(&out->text, heap, MGR__TXN_OPS_MAX * 512);
}

static void dc__outcome_free(dc_outcome *out)
{
    mgr__free(out->heap, out->results);
    mgr__buf_free(&out->text);
}

/* Later operations see what earlier ones did, after a failed one too; all of it is
 * taken back if any failed. At most MGR__TXN_OPS_MAX operations. */
static bool dc__txn(dc_store *s, int64_t now_ms, const dc_op *ops, size_t count, dc_outcome *out)
{
    MGR_ASSERT(count <= MGR__TXN_OPS_MAX);
    uint64_t index = s->index + 1;
    dc__begin(s);
    dc__pre_check(s, now_ms, ops, count, out);
    if (out->failed_count) return false;
    for (size_t i = 0; i < count; i++) dc__do(s, index, &ops[i], i, out);
    if (s->no_memory && !out->failed_count) dc__fail(out, 0, "out of memory");
    if (out->failed_count) { dc__roll_back(s); out->result_count = 0; return false; }
    dc__commit(s, index, now_ms);
    return true;
}

static mgr__kv dc__kv(const dc_entry *entry, bool with_value)
{
    mgr__kv kv;
    memset(&kv, 0, sizeof kv);
    kv.key = entry->key;
    kv.value = with_value ? entry->value : mgr__str_make("", 0);
    kv.session = mgr__str_of(entry->session);
    kv.create_index = entry->create_index;
    kv.modify_index = entry->modify_index;
    kv.lock_index = entry->lock_index;
    return kv;
}

/* ---- the store's interface ---- */

/* The node's own check, which sessions are tied to by default and which never fails here. */
static void dc__add_serf(dc_store *s)
{
    dc_check *serf = (dc_check *)mgr__alloc(s->heap, sizeof *serf);
    if (!serf) { s->no_memory = true; return; }
    if (!dc__room(s, (void **)&s->checks, &s->check_cap, s->check_count, sizeof *s->checks)) { mgr__free(s->heap, serf); return; }
    serf->id = dc__text(s, mgr__str_of("serfHealth"));
    serf->name = dc__text(s, mgr__str_of("Serf Health Status"));
    serf->notes = dc__text(s, mgr__str_of(""));
    serf->output = dc__text(s, mgr__str_of("Agent alive and reachable"));
    serf->service_id = dc__text(s, mgr__str_of(""));
    serf->due_ms = MGR__NEVER;
    serf->create_index = serf->modify_index = s->index;
    s->checks[s->check_count++] = serf;
}

/* `heap` stays the caller's and must outlive the store. The same seed makes the same ids. */
static void dc_open(dc_store *s, mgr__heap *heap, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    s->heap = heap;
    s->rng.state = mgr__mix64(seed);
    s->forget_ms = MGR__NEVER;
    s->index = s->catalog_index = 1;        /* an index of 0 would mean "never block" */
    dc__add_serf(s);
}

static void dc_close(dc_store *s)
{
    dc__begin(s);
    for (size_t i = 0; i < s->entry_count; i++) mgr__free(s->heap, s->entries[i]);
    for (size_t i = 0; i < s->tombstone_count; i++) mgr__free(s->heap, s->tombstones[i].key);
    for (size_t i = 0; i < s->delay_count; i++) mgr__free(s->heap, s->delays[i].key);
    for (size_t i = 0; i < s->session_count; i++) dc__session_free(s, s->sessions[i]);
    for (size_t i = 0; i < s->service_count; i++) dc__service_free(s, s->services[i]);
    for (size_t i = 0; i < s->check_count; i++) dc__check_free(s, s->checks[i]);
    mgr__free(s->heap, s->entries);
    mgr__free(s->heap, s->tombstones);
    mgr__free(s->heap, s->delays);
    mgr__free(s->heap, s->sessions);
    mgr__free(s->heap, s->services);
    mgr__free(s->heap, s->checks);
    mgr__free(s->heap, s->undo);
    memset(s, 0, sizeof *s);
}

/* End a session now. False: there is none of that id. */
static bool dc_session_destroy(dc_store *s, int64_t now_ms, mgr__str id)
{
    dc_session *session = dc__session_find(s, id);
    uint64_t index = s->index + 1;
    if (!session) return false;
    dc__begin(s);
    dc__session_end(s, now_ms, index, session);
    dc__commit(s, index, now_ms);
    return true;
}

/* Ends the sessions tied to its checks. False: there is none of that id. */
static bool dc_service_deregister(dc_store *s, int64_t now_ms, mgr__str id)
{
    dc_service *service = dc__service_find(s, id);
    uint64_t index = s->index + 1;
    size_t at = 0;
    if (!service) return false;
    dc__begin(s);
    for (size_t i = s->check_count; i-- > 0; )
        if (!strcmp(s->checks[i]->service_id, service->id)) dc__check_remove(s, now_ms, index, s->checks[i]);
    dc__commit(s, index, now_ms);
    while (s->services[at] != service) at++;
    s->service_count--;
    memmove(s->services + at, s->services + at + 1, (s->service_count - at) * sizeof *s->services);
    s->index = s->catalog_index = index;
    dc__service_free(s, service);
    return true;
}

static void dc__tick_checks(dc_store *s, int64_t now_ms)
{
    for (size_t i = 0; i < s->check_count; i++) {
        dc_check *check = s->checks[i];
        if (check->due_ms > now_ms) continue;
        char text[256];
        check->due_ms = MGR__NEVER;
        if (check->output[0]) snprintf(text, sizeof text, "TTL expired (last output before timeout follows): %s", check->output);
        dc__check_set(s, now_ms, check, DC_CRITICAL, mgr__str_of(check->output[0] ? text : "TTL expired"));
    }
}

/* When the check's service goes for having been critical for too long. */
static int64_t dc__reap_ms(const dc_check *check)
{
    return check->reap_ms && check->status == DC_CRITICAL && check->service_id[0] ? check->critical_ms + check->reap_ms : MGR__NEVER;
}

static void dc__tick_services(dc_store *s, int64_t now_ms)
{
    size_t i = 0;
    while (i < s->check_count) {
        dc_check *check = s->checks[i];
        if (dc__reap_ms(check) > now_ms) { i++; continue; }
        check->reap_ms = 0;
        if (dc_service_deregister(s, now_ms, mgr__str_of(check->service_id))) i = 0;     /* several checks went */
    }
}

static void dc__tick_forget(dc_store *s, int64_t now_ms)
{
    size_t kept = 0;
    int64_t next = MGR__NEVER;
    if (now_ms < s->forget_ms) return;
    for (size_t i = 0; i < s->tombstone_count; i++) {
        if (s->tombstones[i].until_ms <= now_ms) { mgr__free(s->heap, s->tombstones[i].key); continue; }
        next = mgr__min64(next, s->tombstones[i].until_ms);
        s->tombstones[kept++] = s->tombstones[i];
    }
    s->tombstone_count = kept;
    kept = 0;
    for (size_t i = 0; i < s->delay_count; i++) {
        if (s->delays[i].until_ms <= now_ms) { mgr__free(s->heap, s->delays[i].key); continue; }
        next = mgr__min64(next, s->delays[i].until_ms);
        s->delays[kept++] = s->delays[i];
    }
    s->delay_count = kept;
    s->forget_ms = next;
}

/* Do what the time has brought. Every call below that takes the time and changes
 * something does this first. */
static void dc_tick(dc_store *s, int64_t now_ms)
{
    dc__tick_checks(s, now_ms);
    dc__tick_services(s, now_ms);
    for (size_t i = s->session_count; i-- > 0; )
        if (s->sessions[i]->until_ms <= now_ms) dc_session_destroy(s, now_ms, mgr__str_of(s->sessions[i]->id));
    dc__tick_forget(s, now_ms);
}

/* When dc_tick next changes anything; MGR__NEVER: not by time. The end of a
 * lock-delay changes nothing that can be seen, here as in Consul. */
static int64_t dc_next_deadline(const dc_store *s)
{
    int64_t next = MGR__NEVER;
    for (size_t i = 0; i < s->session_count; i++) next = mgr__min64(next, s->sessions[i]->until_ms);
    for (size_t i = 0; i < s->check_count; i++)
        next = mgr__min64(next, mgr__min64(s->checks[i]->due_ms, dc__reap_ms(s->checks[i])));
    return next;
}

/* All operations or none, at one index. `results` has room for *result_count
 * entries; *result_count becomes how many there are. They point into the store and
 * live until its next change; values come with get and get-tree only. `failed` has
 * room for op_count indices of failed operations. */
static MGR__UNUSED bool dc_txn(dc_store *s, int64_t now_ms, const mgr__op *ops, size_t op_count, mgr__kv *results, size_t *result_count,
                   uint32_t *failed, size_t *failed_count)
{
    dc_op all[MGR__TXN_OPS_MAX];
    dc_outcome out;
    MGR_ASSERT(op_count <= MGR__TXN_OPS_MAX);
    dc_tick(s, now_ms);
    memset(all, 0, sizeof all);
    for (size_t i = 0; i < op_count; i++) { all[i].op = ops[i]; all[i].verb = (int)ops[i].verb; }
    dc__outcome_init(&out, s->heap);
    bool done = dc__txn(s, now_ms, all, op_count, &out);
    for (size_t i = 0; i < out.result_count && i < *result_count; i++) results[i] = dc__kv(out.results[i].entry, out.results[i].with_value);
    *result_count = out.result_count;
    if (out.failed_count) memcpy(failed, out.failed, out.failed_count * sizeof *failed);
    *failed_count = out.failed_count;
    dc__outcome_free(&out);
    return done;
}

/* The entries below a prefix, in key order, with their values; "" is all. Returns
 * how many there are, writes at most max. They live until the next change. */
static MGR__UNUSED size_t dc_list(const dc_store *s, mgr__str prefix, mgr__kv *out, size_t max)
{
    size_t start = dc__seek(s, prefix), i = start;
    for (; i < s->entry_count && dc__below(s->entries[i]->key, prefix); i++)
        if (i - start < max) out[i - start] = dc__kv(s->entries[i], true);
    return i - start;
}

/* Of the latest change of anything; a new change takes the next. */
static MGR__UNUSED uint64_t dc_index(const dc_store *s) { return s->index; }

/* What a query on the prefix shows as its index, and what wakes it by growing:
 * of the latest change below the prefix, deletions included; of the whole KV store
 * if there never was anything, or if the prefix is "". Never 0. */
static uint64_t dc_prefix_index(const dc_store *s, mgr__str prefix)
{
    uint64_t index = 0;
    if (!prefix.len) return s->kv_index ? s->kv_index : 1;
    for (size_t i = dc__seek(s, prefix); i < s->entry_count && dc__below(s->entries[i]->key, prefix); i++)
        if (s->entries[i]->modify_index > index) index = s->entries[i]->modify_index;
    for (size_t i = dc__tombstone_seek(s, prefix); i < s->tombstone_count; i++) {
        if (!dc__below(mgr__str_make(s->tombstones[i].key, s->tombstones[i].key_len), prefix)) break;
        if (s->tombstones[i].index > index) index = s->tombstones[i].index;
    }
    if (!index) index = s->kv_index;
    return index ? index : 1;
}

/* ---- sessions ---- */

/* What a session is made of. Times in ms; 0: no TTL, no lock-delay. */
typedef struct dc_session_desc {
    mgr__str        name;
    mgr__str        ttl;                    /* how ttl_ms was written; "" means in its shortest form */
    uint32_t        ttl_ms, lock_delay_ms;
    bool            delete_keys, has_service_checks;
    const mgr__str *node_checks, *service_checks;
    size_t          node_check_count, service_check_count;
} dc_session_desc;

static bool dc__checks_fit(const dc_store *s, const mgr__str *ids, size_t count, mgr__buf *why)
{
    for (size_t i = 0; i < count; i++) {
        const dc_check *check = dc__check_find(s, ids[i]);
        if (check && check->status != DC_CRITICAL) continue;
        if (!check) mgr__buf_printf(why, "Missing check '%.*s' registration", dc__len(ids[i]), ids[i].at);
        else mgr__buf_printf(why, "Check '%.*s' is in critical state", dc__len(ids[i]), ids[i].at);
        return false;
    }
    return true;
}

static char **dc__texts(dc_store *s, const mgr__str *texts, size_t count)
{
    char **copies = (char **)mgr__alloc_array(s->heap, count ? count : 1, sizeof *copies);
    if (!copies) { s->no_memory = true; return NULL; }
    for (size_t i = 0; i < count; i++) copies[i] = dc__text(s, texts[i]);
    return copies;
}

static void dc__ttl_text(dc_session *session, mgr__str written)
{
    if (written.len) mgr__copy_text(session->ttl, sizeof session->ttl, written);
    else if (session->ttl_ms % 1000) snprintf(session->ttl, sizeof session->ttl, "%ums", (unsigned)session->ttl_ms);
    else if (session->ttl_ms) snprintf(session->ttl, sizeof session->ttl, "%us", (unsigned)(session->ttl_ms / 1000));
}

/* NULL: a check is missing or critical, or no memory; `why` says so. */
static dc_session *dc__session_make(dc_store *s, int64_t now_ms, const dc_session_desc *desc, mgr__buf *why)
{
    dc_tick(s, now_ms);
    if (!dc__checks_fit(s, desc->node_checks, desc->node_check_count, why)
        || !dc__checks_fit(s, desc->service_checks, desc->service_check_count, why)) return NULL;
    s->no_memory = false;
    dc_session *session = (dc_session *)mgr__alloc(s->heap, sizeof *session);
    if (!session) { mgr__buf_text(why, "out of memory"); return NULL; }
    session->name = dc__text(s, desc->name);
    session->node_checks = dc__texts(s, desc->node_checks, desc->node_check_count);
    session->service_checks = dc__texts(s, desc->service_checks, desc->service_check_count);
    session->node_check_count = session->node_checks ? desc->node_check_count : 0;
    session->service_check_count = session->service_checks ? desc->service_check_count : 0;
    dc__room(s, (void **)&s->sessions, &s->session_cap, s->session_count, sizeof *s->sessions);
    if (s->no_memory) { dc__session_free(s, session); mgr__buf_text(why, "out of memory"); return NULL; }
    session->ttl_ms = desc->ttl_ms;
    dc__ttl_text(session, desc->ttl);
    session->lock_delay_ms = desc->lock_delay_ms;
    session->delete_keys = desc->delete_keys;
    session->has_service_checks = desc->has_service_checks;
    session->until_ms = desc->ttl_ms ? now_ms + 2 * (int64_t)desc->ttl_ms : MGR__NEVER;
    dc__uuid(&s->rng, session->id);
    session->create_index = s->session_index = ++s->index;
    s->sessions[s->session_count++] = session;
    return session;
}

/* Tied to serfHealth and to the named checks. Returns its id, which lives as long
 * as the session; NULL: a check is missing or critical, or no memory. */
static MGR__UNUSED const char *dc_session_create(dc_store *s, int64_t now_ms, mgr__str name, uint32_t ttl_ms, uint32_t lock_delay_ms,
                                     const mgr__str *check_ids, size_t check_count)
{
    mgr__str serf = mgr__str_of("serfHealth");
    dc_session_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.name = name;
    desc.ttl_ms = ttl_ms;
    desc.lock_delay_ms = lock_delay_ms;
    desc.node_checks = &serf;
    desc.node_check_count = 1;
    desc.has_service_checks = check_count > 0;
    desc.service_checks = check_ids;
    desc.service_check_count = check_count;
    mgr__buf why;
    mgr__buf_init(&why, s->heap, 1024);
    dc_session *session = dc__session_make(s, now_ms, &desc, &why);
    mgr__buf_free(&why);
    return session ? session->id : NULL;
}

/* Live for two more TTLs. False: there is none of that id. Changes no index. */
static bool dc_session_renew(dc_store *s, int64_t now_ms, mgr__str id)
{
    dc_tick(s, now_ms);
    dc_session *session = dc__session_find(s, id);
    if (session && session->ttl_ms) session->until_ms = now_ms + 2 * (int64_t)session->ttl_ms;
    return session != NULL;
}

/* In the order of creation; dc_session_at(s, i), i below dc_session_count(s). */
static MGR__UNUSED size_t dc_session_count(const dc_store *s) { return s->session_count; }
static MGR__UNUSED const dc_session *dc_session_at(const dc_store *s, size_t i) { return s->sessions[i]; }

/* ---- services and checks ---- */

typedef struct dc_service_desc {
    mgr__str id, name, address;
    mgr__str tags, meta;                    /* JSON text; "" means [] and {} */
    uint32_t port, weight_passing, weight_warning;
} dc_service_desc;

typedef struct dc_check_desc {
    mgr__str  id, name, notes;
    mgr__str  service_id;                   /* "": the node's */
    uint32_t  ttl_ms;
    dc_status status;
    uint32_t  reap_ms;
} dc_check_desc;

static bool dc__replace_text(dc_store *s, char **at, mgr__str text)
{
    char *copy = dc__text(s, text);
    if (!copy) return false;
    mgr__free(s->heap, *at);
    *at = copy;
    return true;
}

static dc_service *dc__service_slot(dc_store *s, mgr__str id)
{
    dc_service *service = dc__service_find(s, id);
    if (service) return service;
    if (!dc__room(s, (void **)&s->services, &s->service_cap, s->service_count, sizeof *s->services)) return NULL;
    service = (dc_service *)mgr__alloc(s->heap, sizeof *service);
    if (!service) return NULL;
    service->create_index = s->index + 1;
    if (!dc__replace_text(s, &service->id, id)) { dc__service_free(s, service); return NULL; }
    size_t at = 0;                          /* in the order of ids, as Consul lists them */
    while (at < s->service_count && strcmp(s->services[at]->id, service->id) < 0) at++;
    memmove(s->services + at + 1, s->services + at, (s->service_count - at) * sizeof *s->services);
    s->services[at] = service;
    s->service_count++;
    return service;
}

static bool dc__service_same(const dc_service *service, const dc_service_desc *desc, mgr__str tags, mgr__str meta)
{
    return service->modify_index && mgr__str_is(desc->name, service->name) && mgr__str_is(desc->address, service->address)
        && mgr__str_is(tags, service->tags) && mgr__str_is(meta, service->meta) && service->port == desc->port
        && service->weight_passing == desc->weight_passing && service->weight_warning == desc->weight_warning;
}

/* New, or in place of the one of that id; its checks stay. False: no memory. */
static bool dc_service_register(dc_store *s, int64_t now_ms, const dc_service_desc *desc)
{
    mgr__str tags = desc->tags.len ? desc->tags : mgr__str_of("[]"), meta = desc->meta.len ? desc->meta : mgr__str_of("{}");
    dc_tick(s, now_ms);
    dc_service *service = dc__service_slot(s, desc->id);
    if (!service) return false;
    if (dc__service_same(service, desc, tags, meta)) return true;
    bool done = dc__replace_text(s, &service->name, desc->name);
    done = dc__replace_text(s, &service->address, desc->address) && done;
    done = dc__replace_text(s, &service->tags, tags) && done;
    done = dc__replace_text(s, &service->meta, meta) && done;
    service->port = desc->port;
    service->weight_passing = desc->weight_passing;
    service->weight_warning = desc->weight_warning;
    service->modify_index = s->index = s->catalog_index = s->index + 1;
    if (!done) dc_service_deregister(s, now_ms, desc->id);
    return done;
}

static dc_check *dc__check_slot(dc_store *s, mgr__str id)
{
    dc_check *check = dc__check_find(s, id);
    if (check) return check;
    if (!dc__room(s, (void **)&s->checks, &s->check_cap, s->check_count, sizeof *s->checks)) return NULL;
    check = (dc_check *)mgr__alloc(s->heap, sizeof *check);
    if (!check) return NULL;
    check->create_index = s->index + 1;
    bool done = dc__replace_text(s, &check->id, id) && dc__replace_text(s, &check->output, mgr__str_of(""))
             && dc__replace_text(s, &check->name, id) && dc__replace_text(s, &check->notes, mgr__str_of(""))
             && dc__replace_text(s, &check->service_id, mgr__str_of(""));
    if (!done) { dc__check_free(s, check); return NULL; }
    size_t at = 0;
    while (at < s->check_count && strcmp(s->checks[at]->id, check->id) < 0) at++;
    memmove(s->checks + at + 1, s->checks + at, (s->check_count - at) * sizeof *s->checks);
    s->checks[at] = check;
    s->check_count++;
    return check;
}

/* A TTL check: critical when no report came for ttl_ms, counted from now. One that
 * is there already keeps its status and output, as in Consul: registering a service
 * once more must not turn its checks. False: no memory. */
static bool dc_check_register(dc_store *s, int64_t now_ms, const dc_check_desc *desc)
{
    dc_tick(s, now_ms);
    dc_check *check = dc__check_slot(s, desc->id);
    if (!check) return false;
    bool fresh = check->modify_index == 0;
    bool same = !fresh && mgr__str_is(desc->name, check->name) && mgr__str_is(desc->notes, check->notes)
             && mgr__str_is(desc->service_id, check->service_id);
    bool done = dc__replace_text(s, &check->name, desc->name) && dc__replace_text(s, &check->notes, desc->notes)
             && dc__replace_text(s, &check->service_id, desc->service_id);
    check->ttl_ms = desc->ttl_ms;
    check->due_ms = now_ms + desc->ttl_ms;
    check->reap_ms = desc->reap_ms ? (uint32_t)mgr__max64(desc->reap_ms, DC_REAP_MS_MIN) : 0;
    if (same) return done;
    if (fresh) { check->status = desc->status; check->critical_ms = now_ms; }
    check->modify_index = s->index = s->catalog_index = s->index + 1;
    return done;
}

/* Ends the sessions tied to it. False: there is none of that id. */
static bool dc_check_deregister(dc_store *s, int64_t now_ms, mgr__str id)
{
    dc_check *check = dc__check_find(s, id);
    uint64_t index = s->index + 1;
    if (!check || !check->ttl_ms) return false;
    dc__begin(s);
    dc__check_remove(s, now_ms, index, check);
    dc__commit(s, index, now_ms);
    return true;
}

/* A report to a TTL check. Critical ends the sessions tied to it; a warning does
 * not. False: there is no such TTL check. */
static bool dc_check_update(dc_store *s, int64_t now_ms, mgr__str id, dc_status status, mgr__str output)
{
    dc_tick(s, now_ms);
    dc_check *check = dc__check_find(s, id);
    if (!check || !check->ttl_ms) return false;
    check->due_ms = now_ms + check->ttl_ms;
    dc__check_set(s, now_ms, check, status, output);
    return true;
}

/* ============================================================================
 * [routes] One request in, one answer out
 * what:  the endpoints, as Consul 1.8 answers them; pure
 * owns:  dc_agent (the store and what the agent says of itself), dc_reply
 * calls: [store], and [json] [base] of manager.h
 * ========================================================================== */

enum {
    DC_BODY_BYTES_MAX = 512 * 1024,         /* of a request, as in Consul */
    DC_REPLY_BYTES_MAX = 64 << 20,
    DC_WAIT_MS_DEFAULT = 5 * 60 * 1000,
    DC_WAIT_MS_MAX = 10 * 60 * 1000,
    DC_SESSION_CHECKS_MAX = 64              /* named in one session/create */
};

typedef struct dc_agent {
    dc_store store;
    char     node[64], node_id[DC_ID_BYTES];
    char     address[128];                  /* what status/leader says */
    bool     left;                          /* asked to leave: serve what is due, then end */
} dc_agent;

typedef struct dc_request {
    mgr__str method, path, query, body;     /* path: decoded; query: as it came */
    bool     chunked;
    int64_t  now_ms;
    bool     last;                          /* a blocking query's time is over: answer whatever stands */
} dc_request;

typedef struct dc_reply {
    int         status;
    const char *type;                       /* NULL: no Content-Type */
    const char *allow;                      /* of a 405 */
    const char *more;                       /* further header lines, each with its end */
    uint64_t    index;                      /* X-Consul-Index; 0: none */
    bool        query;                      /* has the headers of a query */
    bool        close;
    int64_t     wait_ms;                    /* > 0: nothing new; ask again after a change, or with `last` after so long */
    mgr__buf    body;
} dc_reply;

typedef void (*dc_handler)(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r);

/* ---- requests ---- */

static int dc__hex(char c) { return c >= 'a' && c <= 'f' ? c - 'a' + 10 : mgr__hex(c); }

/* %XX, and '+' for a space in a query. False: malformed. */
static bool dc__decode(mgr__buf *out, mgr__str text, bool plus)
{
    for (size_t i = 0; i < text.len; i++) {
        char c = text.at[i];
        if (c == '+' && plus) c = ' ';
        else if (c == '%') {
            int hi = i + 2 < text.len ? dc__hex(text.at[i + 1]) : -1, lo = i + 2 < text.len ? dc__hex(text.at[i + 2]) : -1;
            if (hi < 0 || lo < 0) return false;
            c = (char)(hi * 16 + lo);
            i += 2;
        }
        mgr__buf_char(out, c);
    }
    return !out->failed;
}

/* A parameter of the query, decoded; cut at the room there is. False: not given. */
static bool dc__param(const dc_agent *a, const dc_request *q, const char *name, char *to, size_t to_bytes)
{
    mgr__str rest = q->query;
    to[0] = 0;
    while (rest.len) {
        const char *amp = (const char *)memchr(rest.at, '&', rest.len);
        mgr__str part = mgr__str_make(rest.at, amp ? (size_t)(amp - rest.at) : rest.len);
        rest = mgr__str_skip(rest, amp ? part.len + 1 : part.len);
        const char *eq = part.len ? (const char *)memchr(part.at, '=', part.len) : NULL;
        mgr__str key = mgr__str_make(part.at, eq ? (size_t)(eq - part.at) : part.len);
        if (!mgr__str_is(key, name)) continue;
        mgr__buf value;
        mgr__buf_init(&value, a->store.heap, 4096);
        if (eq && dc__decode(&value, mgr__str_skip(part, key.len + 1), true)) mgr__copy_text(to, to_bytes, mgr__buf_view(&value));
        mgr__buf_free(&value);
        return true;
    }
    return false;
}

static bool dc__has(const dc_agent *a, const dc_request *q, const char *name)
{
    char ignored[8];
    return dc__param(a, q, name, ignored, sizeof ignored);
}

static bool dc__number(const char *text, uint64_t *to)
{
    *to = 0;
    if (!text[0]) return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || *to > (UINT64_MAX - 9) / 10) return false;
        *to = *to * 10 + (uint64_t)(*text - '0');
    }
    return true;
}

/* ns per unit, 0 if there is no such unit. */
static int64_t dc__unit(mgr__str unit)
{
    static const struct { const char *name; int64_t ns; } units[] = {
        { "ns", 1 }, { "us", 1000 }, { "ms", 1000000 }, { "s", 1000000000 }, { "m", 60 * INT64_C(1000000000) },
        { "h", 3600 * INT64_C(1000000000) } };
    for (size_t i = 0; i < MGR__COUNT(units); i++) if (mgr__str_is(unit, units[i].name)) return units[i].ns;
    return 0;
}

/* Go's duration, "1m30s" or "1.5s", of less than 1000 hours, in ns. False: malformed. */
static bool dc__duration(mgr__str text, int64_t *ns)
{
    size_t i = 0;
    *ns = 0;
    if (mgr__str_is(text, "0")) return true;
    while (i < text.len) {
        int64_t whole = 0, part = 0, scale = 1;
        size_t start = i;
        for (; i < text.len && text.at[i] >= '0' && text.at[i] <= '9' && whole < 4000000; i++) whole = whole * 10 + (text.at[i] - '0');
        bool digits = i > start;
        if (i < text.len && text.at[i] == '.')
            for (i++; i < text.len && text.at[i] >= '0' && text.at[i] <= '9' && scale < 1000000; i++, scale *= 10)
                part = part * 10 + (text.at[i] - '0');
        start = i;
        while (i < text.len && (text.at[i] >= 'a' && text.at[i] <= 'z')) i++;
        int64_t unit = dc__unit(mgr__str_make(text.at + start, i - start));
        if (!digits || !unit || whole > 3600000 * INT64_C(1000000000) / unit) return false;
        *ns += whole * unit + part * (unit / scale);
    }
    return text.len > 0 && *ns < 3600000 * INT64_C(1000000000);
}

/* ---- replies ---- */

static void dc__text_reply(dc_reply *r, int status, const char *format, ...) MGR__PRINTF(3, 4);
static void dc__text_reply(dc_reply *r, int status, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    mgr__buf_clear(&r->body);
    mgr__buf_text(&r->body, text);
    r->status = status;
    r->type = "text/plain; charset=utf-8";
}

/* Also ends a JSON text, as Consul's encoder does. */
static void dc__json_reply(dc_reply *r, const char *text)
{
    mgr__buf_text(&r->body, text);
    r->type = "application/json";
}

static void dc__bool_reply(dc_reply *r, bool yes) { dc__json_reply(r, yes ? "true" : "false"); }

/* False: the parameters are wrong, and the reply says so. */
static bool dc__query_fit(const dc_agent *a, const dc_request *q, dc_reply *r, uint64_t *index, int64_t *wait_ms)
{
    char text[64];
    int64_t ns = 0;
    *index = 0;
    if (dc__param(a, q, "wait", text, sizeof text) && text[0] && !dc__duration(mgr__str_of(text), &ns)) {
        dc__text_reply(r, 400, "Invalid wait time");
        return false;
    }
    if (dc__param(a, q, "index", text, sizeof text) && text[0] && !dc__number(text, index)) {
        dc__text_reply(r, 400, "Invalid index");
        return false;
    }
    if (dc__has(a, q, "stale") && dc__has(a, q, "consistent")) {
        dc__text_reply(r, 400, "Cannot specify ?stale with ?consistent, conflicting semantics.");
        return false;
    }
    if (dc__param(a, q, "dc", text, sizeof text) && text[0] && strcmp(text, "dc1") != 0) {
        dc__text_reply(r, 500, "No path to datacenter");
        return false;
    }
    *wait_ms = ns / 1000000 ? mgr__min64(ns / 1000000, DC_WAIT_MS_MAX) : (int64_t)DC_WAIT_MS_DEFAULT;
    return true;
}

/* Begin the answer to a query at `now_index`. False: nothing to write, for it is
 * to wait, or its parameters are wrong. */
static bool dc__query_begin(const dc_agent *a, const dc_request *q, dc_reply *r, uint64_t now_index)
{
    uint64_t index;
    int64_t wait_ms;
    if (!dc__query_fit(a, q, r, &index, &wait_ms)) return false;
    if (index && now_index <= index && !q->last) { r->wait_ms = wait_ms; return false; }
    r->query = true;
    r->index = now_index ? now_index : 1;
    return true;
}

/* ---- /v1/kv ---- */

static void dc__write_entry(mgr__jw *jw, const dc_entry *entry, bool with_value)
{
    mgr__jw_object(jw);
    mgr__jw_key(jw, "LockIndex");
    mgr__jw_u64(jw, entry->lock_index);
    mgr__jw_key(jw, "Key");
    mgr__jw_str(jw, entry->key);
    mgr__jw_key(jw, "Flags");
    mgr__jw_u64(jw, entry->flags);
    mgr__jw_key(jw, "Value");
    if (with_value && entry->value.len) {
        mgr__jw_raw(jw, mgr__str_of("\""));
        mgr__base64_encode(jw->out, entry->value);
        mgr__buf_char(jw->out, '"');
    } else mgr__jw_null(jw);
    if (entry->session[0]) { mgr__jw_key(jw, "Session"); mgr__jw_text(jw, entry->session); }
    mgr__jw_key(jw, "CreateIndex");
    mgr__jw_u64(jw, entry->create_index);
    mgr__jw_key(jw, "ModifyIndex");
    mgr__jw_u64(jw, entry->modify_index);
    mgr__jw_object_end(jw);
}

/* With a separator, what lies behind it shows once, as a folder. */
static void dc__write_keys(const dc_agent *a, mgr__str prefix, const char *separator, dc_reply *r)
{
    const dc_store *s = &a->store;
    mgr__str last = mgr__str_make("", 0);
    mgr__jw jw;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_array(&jw);
    for (size_t i = dc__seek(s, prefix); i < s->entry_count && dc__below(s->entries[i]->key, prefix); i++) {
        mgr__str key = s->entries[i]->key;
        const char *at = separator[0] ? strstr(key.at + prefix.len, separator) : NULL;
        if (at) key.len = (size_t)(at - key.at) + strlen(separator);
        if (last.len && mgr__str_eq(last, key)) continue;
        mgr__jw_str(&jw, key);
        last = key;
    }
    mgr__jw_array_end(&jw);
    dc__json_reply(r, "");
}

static void dc__kv_get_below(dc_agent *a, const dc_request *q, mgr__str prefix, dc_reply *r, bool keys)
{
    const dc_store *s = &a->store;
    char separator[64];
    if (!dc__query_begin(a, q, r, dc_prefix_index(s, prefix))) return;
    size_t at = dc__seek(s, prefix);
    if (at >= s->entry_count || !dc__below(s->entries[at]->key, prefix)) { r->status = 404; return; }
    dc__param(a, q, "separator", separator, sizeof separator);
    if (keys) { dc__write_keys(a, prefix, separator, r); return; }
    mgr__jw jw;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_array(&jw);
    for (; at < s->entry_count && dc__below(s->entries[at]->key, prefix); at++) dc__write_entry(&jw, s->entries[at], true);
    mgr__jw_array_end(&jw);
    dc__json_reply(r, "");
}

static void dc__kv_get(dc_agent *a, const dc_request *q, mgr__str key, dc_reply *r)
{
    bool keys = dc__has(a, q, "keys");
    if (keys || dc__has(a, q, "recurse")) { dc__kv_get_below(a, q, key, r, keys); return; }
    if (!key.len) { dc__text_reply(r, 400, "Missing key name"); return; }
    const dc_entry *entry = dc__find(&a->store, key);
    if (!dc__query_begin(a, q, r, entry ? entry->modify_index : a->store.kv_index)) return;
    if (!entry) { r->status = 404; return; }
    if (dc__has(a, q, "raw")) {
        mgr__buf_str(&r->body, entry->value);
        r->type = "text/plain";
        r->more = "Content-Security-Policy: sandbox\r\nX-Content-Type-Options: nosniff\r\n";
        return;
    }
    mgr__jw jw;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_array(&jw);
    dc__write_entry(&jw, entry, true);
    mgr__jw_array_end(&jw);
    dc__json_reply(r, "");
}

/* One operation outside of a transaction: a condition that fails is "false", a
 * request that makes no sense is an error. */
static void dc__kv_apply(dc_agent *a, const dc_request *q, const dc_op *op, dc_reply *r)
{
    dc_outcome out;
    dc__outcome_init(&out, a->store.heap);
    bool done = dc__txn(&a->store, q->now_ms, op, 1, &out);
    const char *why = done ? "" : out.text.at ? out.text.at : "out of memory";
    if (done || strncmp(why, "failed to ", 10) == 0) dc__bool_reply(r, done);
    else dc__text_reply(r, 500, "%s", why);
    dc__outcome_free(&out);
}

/* False: there is such a parameter, and it is no number; the reply says so. */
static bool dc__kv_number(const dc_agent *a, const dc_request *q, const char *name, dc_reply *r, uint64_t *to)
{
    char text[64];
    *to = 0;
    if (!dc__param(a, q, name, text, sizeof text) || dc__number(text, to)) return true;
    dc__text_reply(r, 500, "strconv.ParseUint: parsing \"%s\": invalid syntax", text);
    return false;
}

static void dc__kv_put(dc_agent *a, const dc_request *q, mgr__str key, dc_reply *r)
{
    char session[64] = "";
    dc_op op;
    memset(&op, 0, sizeof op);
    op.op.key = key;
    op.op.value = q->body;
    bool cas = dc__has(a, q, "cas"), acquire = dc__has(a, q, "acquire"), release = dc__has(a, q, "release");
    if (!key.len) { dc__text_reply(r, 400, "Missing key name"); return; }
    if (cas + acquire + release > 1) {
        dc__text_reply(r, 400, "Conflicting flags: %.*s", dc__len(q->query), q->query.at);
        return;
    }
    if (!dc__kv_number(a, q, "flags", r, &op.flags) || !dc__kv_number(a, q, "cas", r, &op.op.index)) return;
    op.verb = cas ? MGR__CAS : acquire ? MGR__LOCK : release ? MGR__UNLOCK : MGR__SET;
    if (acquire || release) dc__param(a, q, acquire ? "acquire" : "release", session, sizeof session);
    op.op.session = mgr__str_of(session);
    dc__kv_apply(a, q, &op, r);
}

static void dc__kv_delete(dc_agent *a, const dc_request *q, mgr__str key, dc_reply *r)
{
    dc_op op;
    memset(&op, 0, sizeof op);
    op.op.key = key;
    bool recurse = dc__has(a, q, "recurse"), cas = dc__has(a, q, "cas");
    if (recurse && cas) { dc__text_reply(r, 400, "Conflicting flags: %.*s", dc__len(q->query), q->query.at); return; }
    if (!key.len && !recurse) { dc__text_reply(r, 400, "Missing key name"); return; }
    if (!dc__kv_number(a, q, "cas", r, &op.op.index)) return;
    op.verb = recurse ? (int)DC_DELETE_TREE : cas ? (int)MGR__DELETE_CAS : (int)DC_DELETE;
    dc__kv_apply(a, q, &op, r);
}

static void dc__route_kv(dc_agent *a, const dc_request *q, mgr__str key, dc_reply *r)
{
    if (mgr__str_is(q->method, "GET")) dc__kv_get(a, q, key, r);
    else if (mgr__str_is(q->method, "PUT")) dc__kv_put(a, q, key, r);
    else dc__kv_delete(a, q, key, r);
}

/* ---- /v1/txn ---- */

/* A transaction as it was parsed. The texts live in the body and the two buffers. */
typedef struct dc_txn_text {
    dc_op    ops[MGR__TXN_OPS_MAX];
    size_t   count;                         /* how many there are; only the first MGR__TXN_OPS_MAX are in ops */
    bool     writes;
    mgr__buf scratch, values;
    char     error[160];                    /* "": none */
} dc_txn_text;

static int dc__verb(mgr__str word)
{
    static const char *const words[] = { "set", "cas", "lock", "unlock", "delete-cas", "check-index", "check-session",
                                         "check-not-exists", "get", "get-tree", "delete", "delete-tree" };
    for (size_t i = 0; i < MGR__COUNT(words); i++) if (mgr__str_is(word, words[i])) return (int)i;
    return DC_UNKNOWN;
}

static bool dc__verb_writes(int verb) { return verb <= MGR__DELETE_CAS || verb == DC_DELETE || verb == DC_DELETE_TREE; }

static mgr__str dc__txn_value(mgr__json *j, dc_txn_text *t)
{
    mgr__str text = mgr__json_null(j) ? mgr__str_make("", 0) : mgr__json_string(j, &t->scratch);
    size_t from = t->values.len;
    if (!mgr__base64_decode(&t->values, text)) snprintf(t->error, sizeof t->error, "illegal base64 data at input byte 0");
    return mgr__str_make(t->values.at + from, t->values.len - from);
}

static void dc__unknown_field(char *error, size_t error_bytes, mgr__str key)
{
    if (!error[0]) snprintf(error, error_bytes, "json: unknown field \"%.*s\"", dc__len(key) > 100 ? 100 : dc__len(key), key.at);
}

static dc_op dc__txn_op(mgr__json *j, dc_txn_text *t)
{
    dc_op op;
    mgr__str key, word = mgr__str_make("", 0);
    memset(&op, 0, sizeof op);
    if (mgr__json_object(j))
        while (mgr__json_key(j, &key)) {
            if (mgr__str_is(key, "Verb")) word = mgr__json_string(j, &t->scratch);
            else if (mgr__str_is(key, "Key")) op.op.key = mgr__json_string(j, &t->scratch);
            else if (mgr__str_is(key, "Value")) op.op.value = dc__txn_value(j, t);
            else if (mgr__str_is(key, "Session")) op.op.session = mgr__json_string(j, &t->scratch);
            else if (mgr__str_is(key, "Index")) op.op.index = mgr__json_u64(j);
            else if (mgr__str_is(key, "Flags")) op.flags = mgr__json_u64(j);
            else dc__unknown_field(t->error, sizeof t->error, key);
        }
    op.verb = dc__verb(word);
    if (op.verb == DC_UNKNOWN) op.op.value = word;      /* for the message */
    t->writes = t->writes || dc__verb_writes(op.verb);
    return op;
}

static void dc__txn_parse(mgr__str body, dc_txn_text *t)
{
    mgr__json j;
    mgr__str key;
    /* Reserved at once, so that values already decoded stay where they are. */
    if (!mgr__buf_reserve(&t->values, body.len + 4)) { snprintf(t->error, sizeof t->error, "out of memory"); return; }
    if (!body.len) { snprintf(t->error, sizeof t->error, "EOF"); return; }
    mgr__json_init(&j, body);
    if (mgr__json_array(&j))
        while (mgr__json_item(&j))
            if (mgr__json_object(&j))
                while (mgr__json_key(&j, &key)) {
                    if (!mgr__str_is(key, "KV")) { dc__unknown_field(t->error, sizeof t->error, key); continue; }
                    dc_op op = dc__txn_op(&j, t);
                    if (t->count < MGR__TXN_OPS_MAX) t->ops[t->count] = op;
                    t->count++;
                }
    if (!mgr__json_end(&j) && !t->error[0]) snprintf(t->error, sizeof t->error, "%s", j.error);
}

static void dc__txn_write(const dc_txn_text *t, const dc_outcome *out, bool done, dc_reply *r)
{
    mgr__jw jw;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "Results");
    if (done) mgr__jw_array(&jw);
    else mgr__jw_null(&jw);
    for (size_t i = 0; i < out->result_count; i++) {
        mgr__jw_object(&jw);
        mgr__jw_key(&jw, "KV");
        dc__write_entry(&jw, out->results[i].entry, out->results[i].with_value);
        mgr__jw_object_end(&jw);
    }
    if (done) mgr__jw_array_end(&jw);
    mgr__jw_key(&jw, "Errors");
    if (done) mgr__jw_null(&jw);
    else mgr__jw_array(&jw);
    for (size_t i = 0; i < out->failed_count; i++) {
        mgr__jw_object(&jw);
        mgr__jw_key(&jw, "OpIndex");
        mgr__jw_u64(&jw, out->failed[i]);
        mgr__jw_key(&jw, "What");
        mgr__jw_text(&jw, out->text.at ? out->text.at + out->text_at[i] : "out of memory");
        mgr__jw_object_end(&jw);
    }
    if (!done) mgr__jw_array_end(&jw);
    if (!t->writes) mgr__buf_text(&r->body, ",\"Index\":0,\"LastContact\":0,\"KnownLeader\":true,\"ConsistencyLevel\":\"\"");
    mgr__jw_object_end(&jw);
    dc__json_reply(r, "");
    r->query = !t->writes;
    r->status = done ? 200 : 409;
}

static void dc__txn_answer(dc_agent *a, const dc_request *q, const dc_txn_text *t, dc_reply *r)
{
    dc_outcome out;
    if (t->error[0]) { dc__text_reply(r, 400, "Failed to parse body: %s", t->error); return; }
    if (t->count > MGR__TXN_OPS_MAX) {
        dc__text_reply(r, 413, "Transaction contains too many operations (%llu > %d)", (unsigned long long)t->count, (int)MGR__TXN_OPS_MAX);
        return;
    }
    dc__outcome_init(&out, a->store.heap);
    bool done = dc__txn(&a->store, q->now_ms, t->ops, t->count, &out);
    dc__txn_write(t, &out, done, r);
    dc__outcome_free(&out);
}

static void dc__route_txn(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    dc_txn_text *t = (dc_txn_text *)mgr__alloc(a->store.heap, sizeof *t);
    (void)rest;
    if (!t) { dc__text_reply(r, 500, "out of memory"); return; }
    mgr__buf_init(&t->scratch, a->store.heap, 2 * DC_BODY_BYTES_MAX);
    mgr__buf_init(&t->values, a->store.heap, 2 * DC_BODY_BYTES_MAX);
    dc__txn_parse(q->body, t);
    dc__txn_answer(a, q, t, r);
    mgr__buf_free(&t->scratch);
    mgr__buf_free(&t->values);
    mgr__free(a->store.heap, t);
}

/* ---- /v1/session ---- */

static void dc__write_texts(mgr__jw *jw, char *const *texts, size_t count, const char *as)
{
    mgr__jw_array(jw);
    for (size_t i = 0; i < count; i++) {
        if (as) { mgr__jw_object(jw); mgr__jw_key(jw, as); }
        mgr__jw_text(jw, texts[i]);
        if (as) { mgr__jw_key(jw, "Namespace"); mgr__jw_text(jw, ""); mgr__jw_object_end(jw); }
    }
    mgr__jw_array_end(jw);
}

static void dc__write_session(const dc_agent *a, mgr__jw *jw, const dc_session *session)
{
    mgr__jw_object(jw);
    mgr__jw_key(jw, "ID");
    mgr__jw_text(jw, session->id);
    mgr__jw_key(jw, "Name");
    mgr__jw_text(jw, session->name);
    mgr__jw_key(jw, "Node");
    mgr__jw_text(jw, a->node);
    mgr__jw_key(jw, "LockDelay");
    mgr__jw_u64(jw, (uint64_t)session->lock_delay_ms * 1000000);
    mgr__jw_key(jw, "Behavior");
    mgr__jw_text(jw, session->delete_keys ? "delete" : "release");
    mgr__jw_key(jw, "TTL");
    mgr__jw_text(jw, session->ttl);
    mgr__jw_key(jw, "NodeChecks");
    dc__write_texts(jw, session->node_checks, session->node_check_count, NULL);
    mgr__jw_key(jw, "ServiceChecks");
    if (session->has_service_checks) dc__write_texts(jw, session->service_checks, session->service_check_count, "ID");
    else mgr__jw_null(jw);
    mgr__jw_key(jw, "CreateIndex");
    mgr__jw_u64(jw, session->create_index);
    mgr__jw_key(jw, "ModifyIndex");
    mgr__jw_u64(jw, session->create_index);
    mgr__jw_object_end(jw);
}

/* What session/create was asked for. */
typedef struct dc_session_text {
    dc_session_desc desc;
    mgr__str node_checks[DC_SESSION_CHECKS_MAX], service_checks[DC_SESSION_CHECKS_MAX];
    mgr__str behavior, ttl, node;
    int64_t  lock_delay_ns;
    char     error[160];
    mgr__buf scratch;
} dc_session_text;

/* A string, or a number: below 1000 seconds, else nanoseconds. */
static void dc__session_delay(mgr__json *j, dc_session_text *t)
{
    if (mgr__json_peek(j) != MGR__JSON_STRING) {
        t->lock_delay_ns = mgr__json_i64(j);
        if (t->lock_delay_ns > -1000 && t->lock_delay_ns < 1000) t->lock_delay_ns *= 1000000000;
        return;
    }
    mgr__str text = mgr__json_string(j, &t->scratch);
    if (!dc__duration(text, &t->lock_delay_ns))
        snprintf(t->error, sizeof t->error, "time: invalid duration \"%.*s\"", dc__len(text) > 64 ? 64 : dc__len(text), text.at);
}

/* A list of names, or of objects with an ID. False: null. */
static bool dc__session_checks(mgr__json *j, dc_session_text *t, mgr__str *to, size_t *count)
{
    mgr__str key;
    *count = 0;
    if (mgr__json_null(j)) return false;
    if (!mgr__json_array(j)) return true;
    while (mgr__json_item(j)) {
        mgr__str id = mgr__str_make("", 0);
        if (mgr__json_peek(j) == MGR__JSON_STRING) id = mgr__json_string(j, &t->scratch);
        else if (mgr__json_object(j))
            while (mgr__json_key(j, &key)) if (mgr__str_is(key, "ID")) id = mgr__json_string(j, &t->scratch);
        if (*count < DC_SESSION_CHECKS_MAX) to[(*count)++] = id;
        else snprintf(t->error, sizeof t->error, "more checks than DC_SESSION_CHECKS_MAX");
    }
    return true;
}

static mgr__str dc__json_text(mgr__json *j, mgr__buf *scratch)
{
    return mgr__json_null(j) ? mgr__str_make("", 0) : mgr__json_string(j, scratch);
}

static void dc__session_parse(mgr__str body, dc_session_text *t)
{
    mgr__json j;
    mgr__str key;
    t->node_checks[0] = mgr__str_of("serfHealth");
    t->desc.node_check_count = 1;
    t->lock_delay_ns = DC_LOCK_DELAY_MS_DEFAULT * INT64_C(1000000);
    if (!body.len) return;
    mgr__json_init(&j, body);
    if (mgr__json_object(&j))
        while (mgr__json_key(&j, &key)) {
            if (mgr__str_is(key, "Name")) t->desc.name = dc__json_text(&j, &t->scratch);
            else if (mgr__str_is(key, "TTL")) t->ttl = dc__json_text(&j, &t->scratch);
            else if (mgr__str_is(key, "Behavior")) t->behavior = dc__json_text(&j, &t->scratch);
            else if (mgr__str_is(key, "Node")) t->node = dc__json_text(&j, &t->scratch);
            else if (mgr__str_is(key, "LockDelay")) dc__session_delay(&j, t);
            else if (mgr__str_is(key, "NodeChecks") || mgr__str_is(key, "Checks"))
                dc__session_checks(&j, t, t->node_checks, &t->desc.node_check_count);
            else if (mgr__str_is(key, "ServiceChecks"))
                t->desc.has_service_checks = dc__session_checks(&j, t, t->service_checks, &t->desc.service_check_count);
        }
    if (!mgr__json_end(&j) && !t->error[0]) snprintf(t->error, sizeof t->error, "%s", j.error);
    t->desc.node_checks = t->node_checks;
    t->desc.service_checks = t->service_checks;
}

/* False: refused, and the reply says why. */
static bool dc__session_accept(const dc_agent *a, dc_session_text *t, dc_reply *r)
{
    int64_t ns = 0;
    t->desc.node_checks = t->node_checks;
    t->desc.service_checks = t->service_checks;
    if (t->error[0]) { dc__text_reply(r, 400, "Request decode failed: %s", t->error); return false; }
    if (t->behavior.len && !mgr__str_is(t->behavior, "release") && !mgr__str_is(t->behavior, "delete")) {
        dc__text_reply(r, 500, "Invalid Behavior setting '%.*s'", dc__len(t->behavior), t->behavior.at);
        return false;
    }
    if (t->ttl.len && !dc__duration(t->ttl, &ns)) {
        dc__text_reply(r, 500, "Session TTL '%.*s' invalid: time: invalid duration \"%.*s\"", dc__len(t->ttl), t->ttl.at,
                       dc__len(t->ttl), t->ttl.at);
        return false;
    }
    if (ns && (ns < DC_SESSION_TTL_MS_MIN * INT64_C(1000000) || ns > DC_SESSION_TTL_MS_MAX * INT64_C(1000000))) {
        dc__text_reply(r, 500, "Invalid Session TTL '%lld', must be between [10s=24h0m0s]", (long long)ns);
        return false;
    }
    if (t->node.len && !mgr__str_is(t->node, a->node)) { dc__text_reply(r, 500, "Missing node registration"); return false; }
    t->desc.ttl = t->ttl;
    t->desc.ttl_ms = (uint32_t)(ns / 1000000);
    t->desc.delete_keys = mgr__str_is(t->behavior, "delete");
    t->desc.lock_delay_ms = (uint32_t)mgr__max64(0, mgr__min64(t->lock_delay_ns / 1000000, UINT32_MAX));
    return true;
}

static void dc__session_create(dc_agent *a, const dc_request *q, dc_session_text *t, dc_reply *r)
{
    mgr__buf why;
    /* 1.8 looks at Content-Length to see whether there is a body at all. */
    dc__session_parse(q->chunked ? mgr__str_make("", 0) : q->body, t);
    if (!dc__session_accept(a, t, r)) return;
    mgr__buf_init(&why, a->store.heap, 1024);
    const dc_session *session = dc__session_make(&a->store, q->now_ms, &t->desc, &why);
    if (session) { mgr__buf_printf(&r->body, "{\"ID\":\"%s\"}", session->id); dc__json_reply(r, ""); }
    else dc__text_reply(r, 500, "%s", mgr__buf_cstr(&why));
    mgr__buf_free(&why);
}

static void dc__route_session_create(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    dc_session_text *t = (dc_session_text *)mgr__alloc(a->store.heap, sizeof *t);
    (void)rest;
    if (!t) { dc__text_reply(r, 500, "out of memory"); return; }
    mgr__buf_init(&t->scratch, a->store.heap, 2 * DC_BODY_BYTES_MAX);
    dc__session_create(a, q, t, r);
    mgr__buf_free(&t->scratch);
    mgr__free(a->store.heap, t);
}

/* False: not something that can be an id; the reply says so. */
static bool dc__session_id_fit(mgr__str id, dc_reply *r)
{
    if (!id.len) dc__text_reply(r, 400, "Missing session");
    else if (id.len != DC_ID_BYTES - 1) dc__text_reply(r, 500, "failed session lookup: index error: UUID must be 36 characters");
    return id.len == DC_ID_BYTES - 1;
}

/* One session, or none if it is NULL, or all. */
static void dc__write_sessions(const dc_agent *a, const dc_session *one, bool all, dc_reply *r)
{
    mgr__jw jw;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_array(&jw);
    for (size_t i = 0; i < a->store.session_count; i++)
        if (all || a->store.sessions[i] == one) dc__write_session(a, &jw, a->store.sessions[i]);
    mgr__jw_array_end(&jw);
    dc__json_reply(r, "");
}

static void dc__route_session_renew(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r)
{
    if (!dc__session_id_fit(id, r)) return;
    if (dc_session_renew(&a->store, q->now_ms, id)) dc__write_sessions(a, dc__session_find(&a->store, id), false, r);
    else dc__text_reply(r, 404, "Session id '%.*s' not found", dc__len(id), id.at);
}

static void dc__route_session_destroy(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r)
{
    if (!dc__session_id_fit(id, r)) return;
    dc_session_destroy(&a->store, q->now_ms, id);
    dc__bool_reply(r, true);
}

static void dc__route_session_info(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r)
{
    if (!dc__session_id_fit(id, r)) return;
    if (dc__query_begin(a, q, r, a->store.session_index)) dc__write_sessions(a, dc__session_find(&a->store, id), false, r);
}

static void dc__route_session_list(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    (void)rest;
    if (dc__query_begin(a, q, r, a->store.session_index)) dc__write_sessions(a, NULL, true, r);
}

static void dc__route_session_node(dc_agent *a, const dc_request *q, mgr__str node, dc_reply *r)
{
    if (dc__query_begin(a, q, r, a->store.session_index)) dc__write_sessions(a, NULL, mgr__str_is(node, a->node), r);
}

/* ---- services and checks: what is written of them ---- */

static const char *dc__status_text(dc_status status)
{
    return status == DC_PASSING ? "passing" : status == DC_WARNING ? "warning" : "critical";
}

static bool dc__status_read(mgr__str text, dc_status *status)
{
    for (int i = DC_PASSING; i <= DC_CRITICAL; i++)
        if (mgr__str_is(text, dc__status_text((dc_status)i))) { *status = (dc_status)i; return true; }
    return false;
}

static void dc__write_field(mgr__jw *jw, const char *key, const char *text)
{
    mgr__jw_key(jw, key);
    mgr__jw_text(jw, text);
}

static void dc__write_indexes(mgr__jw *jw, uint64_t created, uint64_t modified)
{
    mgr__jw_key(jw, "CreateIndex");
    mgr__jw_u64(jw, created);
    mgr__jw_key(jw, "ModifyIndex");
    mgr__jw_u64(jw, modified);
}

/* The agent's own list shows no indexes. */
static void dc__write_check(const dc_agent *a, mgr__jw *jw, const dc_check *check, bool indexes)
{
    const dc_service *service = check->service_id[0] ? dc__service_find(&a->store, mgr__str_of(check->service_id)) : NULL;
    mgr__jw_object(jw);
    dc__write_field(jw, "Node", a->node);
    dc__write_field(jw, "CheckID", check->id);
    dc__write_field(jw, "Name", check->name);
    dc__write_field(jw, "Status", dc__status_text(check->status));
    dc__write_field(jw, "Notes", check->notes);
    dc__write_field(jw, "Output", check->output);
    dc__write_field(jw, "ServiceID", check->service_id);
    dc__write_field(jw, "ServiceName", service ? service->name : "");
    mgr__jw_key(jw, "ServiceTags");
    mgr__jw_raw(jw, mgr__str_of(service ? service->tags : "[]"));
    dc__write_field(jw, "Type", check->ttl_ms ? "ttl" : "");
    mgr__jw_key(jw, "Definition");
    mgr__jw_raw(jw, mgr__str_of("{}"));
    dc__write_indexes(jw, indexes ? check->create_index : 0, indexes ? check->modify_index : 0);
    mgr__jw_object_end(jw);
}

static void dc__write_weights(mgr__jw *jw, const char *key, const dc_service *service)
{
    mgr__jw_key(jw, key);
    mgr__jw_object(jw);
    mgr__jw_key(jw, "Passing");
    mgr__jw_u64(jw, service->weight_passing);
    mgr__jw_key(jw, "Warning");
    mgr__jw_u64(jw, service->weight_warning);
    mgr__jw_object_end(jw);
}

/* Consul 1.8 shows the address twice more, if there is one. */
static void dc__write_tagged(mgr__jw *jw, const char *key, const dc_service *service)
{
    static const char *const kinds[] = { "lan_ipv4", "wan_ipv4" };
    struct in_addr ignored;
    if (inet_pton(AF_INET, service->address, &ignored) != 1) return;
    mgr__jw_key(jw, key);
    mgr__jw_object(jw);
    for (size_t i = 0; i < MGR__COUNT(kinds); i++) {
        mgr__jw_key(jw, kinds[i]);
        mgr__jw_object(jw);
        dc__write_field(jw, "Address", service->address);
        mgr__jw_key(jw, "Port");
        mgr__jw_u64(jw, service->port);
        mgr__jw_object_end(jw);
    }
    mgr__jw_object_end(jw);
}

/* As the agent (no indexes) and as /v1/health show it. */
static void dc__write_service(mgr__jw *jw, const dc_service *service, bool health)
{
    mgr__jw_object(jw);
    dc__write_field(jw, "ID", service->id);
    dc__write_field(jw, "Service", service->name);
    mgr__jw_key(jw, "Tags");
    mgr__jw_raw(jw, mgr__str_of(service->tags));
    mgr__jw_key(jw, "Meta");
    mgr__jw_raw(jw, mgr__str_of(health && !strcmp(service->meta, "{}") ? "null" : service->meta));
    mgr__jw_key(jw, "Port");
    mgr__jw_u64(jw, service->port);
    dc__write_field(jw, "Address", service->address);
    dc__write_tagged(jw, "TaggedAddresses", service);
    dc__write_weights(jw, "Weights", service);
    mgr__jw_key(jw, "EnableTagOverride");
    mgr__jw_bool(jw, false);
    if (health) {
        mgr__jw_key(jw, "Proxy");
        mgr__jw_raw(jw, mgr__str_of("{\"MeshGateway\":{},\"Expose\":{}}"));
        mgr__jw_key(jw, "Connect");
        mgr__jw_raw(jw, mgr__str_of("{}"));
        dc__write_indexes(jw, service->create_index, service->modify_index);
    }
    mgr__jw_object_end(jw);
}

static void dc__write_node(const dc_agent *a, mgr__jw *jw, bool in_service)
{
    dc__write_field(jw, "ID", a->node_id);
    dc__write_field(jw, "Node", a->node);
    dc__write_field(jw, "Address", "127.0.0.1");
    dc__write_field(jw, "Datacenter", "dc1");
    mgr__jw_key(jw, "TaggedAddresses");
    mgr__jw_raw(jw, mgr__str_of("{\"lan\":\"127.0.0.1\",\"lan_ipv4\":\"127.0.0.1\",\"wan\":\"127.0.0.1\",\"wan_ipv4\":\"127.0.0.1\"}"));
    mgr__jw_key(jw, in_service ? "NodeMeta" : "Meta");
    mgr__jw_raw(jw, mgr__str_of("{\"consul-network-segment\":\"\"}"));
}

static void dc__write_catalog_service(const dc_agent *a, mgr__jw *jw, const dc_service *service)
{
    mgr__jw_object(jw);
    dc__write_node(a, jw, true);
    dc__write_field(jw, "ServiceKind", "");
    dc__write_field(jw, "ServiceID", service->id);
    dc__write_field(jw, "ServiceName", service->name);
    mgr__jw_key(jw, "ServiceTags");
    mgr__jw_raw(jw, mgr__str_of(service->tags));
    dc__write_field(jw, "ServiceAddress", service->address);
    dc__write_tagged(jw, "ServiceTaggedAddresses", service);
    dc__write_weights(jw, "ServiceWeights", service);
    mgr__jw_key(jw, "ServiceMeta");
    mgr__jw_raw(jw, mgr__str_of(service->meta));
    mgr__jw_key(jw, "ServicePort");
    mgr__jw_u64(jw, service->port);
    mgr__jw_key(jw, "ServiceEnableTagOverride");
    mgr__jw_bool(jw, false);
    mgr__jw_key(jw, "ServiceProxy");
    mgr__jw_raw(jw, mgr__str_of("{\"MeshGateway\":{},\"Expose\":{}}"));
    mgr__jw_key(jw, "ServiceConnect");
    mgr__jw_raw(jw, mgr__str_of("{}"));
    dc__write_indexes(jw, service->create_index, service->modify_index);
    mgr__jw_object_end(jw);
}

/* ---- /v1/catalog, /v1/health ---- */

/* Queries of the catalogue say how they were read; those of the KV store do not. */
static bool dc__catalog_begin(const dc_agent *a, const dc_request *q, dc_reply *r)
{
    r->more = "X-Consul-Effective-Consistency: leader\r\n";
    return dc__query_begin(a, q, r, a->store.catalog_index);
}

static void dc__route_catalog_service(dc_agent *a, const dc_request *q, mgr__str name, dc_reply *r)
{
    mgr__jw jw;
    if (!dc__catalog_begin(a, q, r)) return;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_array(&jw);
    for (size_t i = 0; i < a->store.service_count; i++)
        if (mgr__str_is(name, a->store.services[i]->name)) dc__write_catalog_service(a, &jw, a->store.services[i]);
    mgr__jw_array_end(&jw);
    dc__json_reply(r, "");
}

/* The tags of one name, each once, as a list. */
static void dc__write_tags(const dc_agent *a, mgr__jw *jw, const char *name, mgr__buf *seen)
{
    mgr__jw_array(jw);
    mgr__buf_clear(seen);
    for (size_t i = 0; i < a->store.service_count; i++) {
        if (strcmp(a->store.services[i]->name, name) != 0) continue;
        mgr__json j;
        mgr__json_init(&j, mgr__str_of(a->store.services[i]->tags));
        if (!mgr__json_array(&j)) continue;
        while (mgr__json_item(&j)) {
            mgr__str tag = mgr__json_raw(&j);
            size_t from = seen->len;
            mgr__buf_str(seen, tag);
            mgr__buf_char(seen, '\n');      /* no JSON string holds one as it stands */
            const char *first = seen->at ? strstr(seen->at, seen->at + from) : NULL;
            if (seen->failed || first == seen->at + from) mgr__jw_raw(jw, tag);
        }
    }
    mgr__jw_array_end(jw);
}

static bool dc__first_of_name(const dc_store *s, size_t at)
{
    for (size_t i = 0; i < at; i++) if (!strcmp(s->services[i]->name, s->services[at]->name)) return false;
    return true;
}

static void dc__route_catalog_services(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    mgr__jw jw;
    mgr__buf seen;
    (void)rest;
    if (!dc__catalog_begin(a, q, r)) return;
    mgr__buf_init(&seen, a->store.heap, 1 << 20);
    mgr__jw_init(&jw, &r->body);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "consul");
    mgr__jw_raw(&jw, mgr__str_of("[]"));
    for (size_t i = 0; i < a->store.service_count; i++) {
        if (!dc__first_of_name(&a->store, i)) continue;
        mgr__jw_key(&jw, a->store.services[i]->name);
        dc__write_tags(a, &jw, a->store.services[i]->name, &seen);
    }
    mgr__jw_object_end(&jw);
    dc__json_reply(r, "");
    mgr__buf_free(&seen);
}

static void dc__route_catalog_nodes(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    mgr__jw jw;
    (void)rest;
    if (!dc__catalog_begin(a, q, r)) return;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_array(&jw);
    mgr__jw_object(&jw);
    dc__write_node(a, &jw, false);
    dc__write_indexes(&jw, 1, 1);
    mgr__jw_object_end(&jw);
    mgr__jw_array_end(&jw);
    dc__json_reply(r, "");
}

static bool dc__passing(const dc_store *s, const dc_service *service)
{
    for (size_t i = 0; i < s->check_count; i++) {
        const dc_check *check = s->checks[i];
        if (check->status != DC_PASSING && (!check->service_id[0] || !strcmp(check->service_id, service->id))) return false;
    }
    return true;
}

/* Checks of the node first, then of the service. */
static void dc__write_health(const dc_agent *a, mgr__jw *jw, const dc_service *service)
{
    mgr__jw_object(jw);
    mgr__jw_key(jw, "Node");
    mgr__jw_object(jw);
    dc__write_node(a, jw, false);
    dc__write_indexes(jw, 1, 1);
    mgr__jw_object_end(jw);
    mgr__jw_key(jw, "Service");
    dc__write_service(jw, service, true);
    mgr__jw_key(jw, "Checks");
    mgr__jw_array(jw);
    for (int own = 0; own < 2; own++)
        for (size_t i = 0; i < a->store.check_count; i++)
            if (!strcmp(a->store.checks[i]->service_id, own ? service->id : "")) dc__write_check(a, jw, a->store.checks[i], true);
    mgr__jw_array_end(jw);
    mgr__jw_object_end(jw);
}

static void dc__route_health_service(dc_agent *a, const dc_request *q, mgr__str name, dc_reply *r)
{
    mgr__jw jw;
    bool passing = dc__has(a, q, "passing");
    if (!dc__catalog_begin(a, q, r)) return;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_array(&jw);
    for (size_t i = 0; i < a->store.service_count; i++) {
        const dc_service *service = a->store.services[i];
        if (mgr__str_is(name, service->name) && (!passing || dc__passing(&a->store, service))) dc__write_health(a, &jw, service);
    }
    mgr__jw_array_end(&jw);
    dc__json_reply(r, "");
}

/* Which checks a query of /v1/health is about. */
typedef enum dc_which { DC_OF_SERVICE, DC_OF_NODE, DC_OF_STATE } dc_which;

static bool dc__check_wanted(const dc_agent *a, const dc_check *check, dc_which which, mgr__str name)
{
    if (which == DC_OF_NODE) return mgr__str_is(name, a->node);
    if (which == DC_OF_STATE) return mgr__str_is(name, "any") || mgr__str_is(name, dc__status_text(check->status));
    const dc_service *service = check->service_id[0] ? dc__service_find(&a->store, mgr__str_of(check->service_id)) : NULL;
    return service && mgr__str_is(name, service->name);
}

static void dc__health_checks(dc_agent *a, const dc_request *q, dc_which which, mgr__str name, dc_reply *r)
{
    mgr__jw jw;
    if (!dc__catalog_begin(a, q, r)) return;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_array(&jw);
    for (size_t i = 0; i < a->store.check_count; i++)
        if (dc__check_wanted(a, a->store.checks[i], which, name)) dc__write_check(a, &jw, a->store.checks[i], true);
    mgr__jw_array_end(&jw);
    dc__json_reply(r, "");
}

static void dc__route_health_checks(dc_agent *a, const dc_request *q, mgr__str name, dc_reply *r)
{
    dc__health_checks(a, q, DC_OF_SERVICE, name, r);
}

static void dc__route_health_node(dc_agent *a, const dc_request *q, mgr__str name, dc_reply *r)
{
    dc__health_checks(a, q, DC_OF_NODE, name, r);
}

static void dc__route_health_state(dc_agent *a, const dc_request *q, mgr__str name, dc_reply *r)
{
    dc__health_checks(a, q, DC_OF_STATE, name, r);
}

/* ---- /v1/agent ---- */

/* A registration as it was parsed: at most one service and its checks. */
typedef struct dc_register_text {
    dc_service_desc service;
    dc_check_desc   checks[DC_SESSION_CHECKS_MAX];
    size_t          check_count;
    mgr__buf        scratch, ids;
    const char     *refusal;                /* of a check, NULL: none */
    int             refusal_status;
    char            error[160];             /* of the text, "": none */
} dc_register_text;

static void dc__refuse(dc_register_text *t, int status, const char *why)
{
    if (t->refusal) return;
    t->refusal = why;
    t->refusal_status = status;
}

static uint32_t dc__read_duration(mgr__json *j, dc_register_text *t)
{
    mgr__str text = dc__json_text(j, &t->scratch);
    int64_t ns = 0;
    if (text.len && !dc__duration(text, &ns) && !t->error[0])
        snprintf(t->error, sizeof t->error, "time: invalid duration \"%.*s\"", dc__len(text) > 64 ? 64 : dc__len(text), text.at);
    return (uint32_t)mgr__min64(ns / 1000000, UINT32_MAX);
}

/* Kinds of checks that are Consul's to run; none of them is run here. */
static bool dc__check_foreign(mgr__str key)
{
    static const char *const keys[] = { "HTTP", "TCP", "GRPC", "Interval", "Timeout", "Method", "Header", "Body", "AliasNode",
        "AliasService", "TLSSkipVerify", "GRPCUseTLS", "DockerContainerID", "Shell", "SuccessBeforePassing",
        "FailuresBeforeCritical", "OutputMaxSize", "Namespace", "Token" };
    for (size_t i = 0; i < MGR__COUNT(keys); i++) if (mgr__str_is(key, keys[i])) return true;
    return false;
}

static void dc__check_status(mgr__json *j, dc_register_text *t, dc_check_desc *check)
{
    mgr__str text = dc__json_text(j, &t->scratch);
    if (text.len && !dc__status_read(text, &check->status)) dc__refuse(t, 400, "Bad check status");
}

static void dc__check_parse(mgr__json *j, dc_register_text *t)
{
    dc_check_desc ignored, *check = t->check_count < DC_SESSION_CHECKS_MAX ? &t->checks[t->check_count] : &ignored;
    mgr__str key;
    memset(check, 0, sizeof *check);
    check->status = DC_CRITICAL;
    if (mgr__json_object(j))
        while (mgr__json_key(j, &key)) {
            if (mgr__str_is(key, "CheckID") || mgr__str_is(key, "ID")) check->id = dc__json_text(j, &t->scratch);
            else if (mgr__str_is(key, "Name")) check->name = dc__json_text(j, &t->scratch);
            else if (mgr__str_is(key, "Notes")) check->notes = dc__json_text(j, &t->scratch);
            else if (mgr__str_is(key, "ServiceID")) check->service_id = dc__json_text(j, &t->scratch);
            else if (mgr__str_is(key, "TTL")) check->ttl_ms = dc__read_duration(j, t);
            else if (mgr__str_is(key, "DeregisterCriticalServiceAfter")) check->reap_ms = dc__read_duration(j, t);
            else if (mgr__str_is(key, "Status")) dc__check_status(j, t, check);
            else if (mgr__str_is(key, "Args") || mgr__str_is(key, "ScriptArgs"))
                dc__refuse(t, 500,
                           "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true");
            else if (!dc__check_foreign(key)) dc__unknown_field(t->error, sizeof t->error, key);
        }
    if (!check->ttl_ms) dc__refuse(t, 400, "Invalid check: TTL must be > 0 for TTL checks");
    if (t->check_count == DC_SESSION_CHECKS_MAX) dc__refuse(t, 400, "more checks than DC_SESSION_CHECKS_MAX");
    else t->check_count++;
}

static void dc__service_weights(mgr__json *j, dc_service_desc *service)
{
    mgr__str key;
    if (mgr__json_null(j) || !mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "Passing")) service->weight_passing = (uint32_t)mgr__json_u64(j);
        else if (mgr__str_is(key, "Warning")) service->weight_warning = (uint32_t)mgr__json_u64(j);
    }
}

static bool dc__service_foreign(mgr__str key)
{
    static const char *const keys[] = { "Kind", "EnableTagOverride", "TaggedAddresses", "Proxy", "Connect", "Token", "Namespace" };
    for (size_t i = 0; i < MGR__COUNT(keys); i++) if (mgr__str_is(key, keys[i])) return true;
    return false;
}

static mgr__str dc__raw_text(mgr__json *j)
{
    return mgr__json_null(j) ? mgr__str_make("", 0) : mgr__json_raw(j);
}

static void dc__service_checks(mgr__json *j, dc_register_text *t)
{
    if (mgr__json_null(j) || !mgr__json_array(j)) return;
    while (mgr__json_item(j)) dc__check_parse(j, t);
}

static void dc__service_parse(mgr__json *j, dc_register_text *t)
{
    mgr__str key;
    t->service.weight_passing = t->service.weight_warning = 1;
    if (!mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "ID")) t->service.id = dc__json_text(j, &t->scratch);
        else if (mgr__str_is(key, "Name")) t->service.name = dc__json_text(j, &t->scratch);
        else if (mgr__str_is(key, "Address")) t->service.address = dc__json_text(j, &t->scratch);
        else if (mgr__str_is(key, "Tags")) t->service.tags = dc__raw_text(j);
        else if (mgr__str_is(key, "Meta")) t->service.meta = dc__raw_text(j);
        else if (mgr__str_is(key, "Port")) t->service.port = (uint32_t)mgr__json_u64(j);
        else if (mgr__str_is(key, "Weights")) dc__service_weights(j, &t->service);
        else if (mgr__str_is(key, "Check")) { if (!mgr__json_null(j)) dc__check_parse(j, t); }
        else if (mgr__str_is(key, "Checks")) dc__service_checks(j, t);
        else if (!dc__service_foreign(key)) dc__unknown_field(t->error, sizeof t->error, key);
    }
}

/* False: refused, and the reply says why. */
static bool dc__register_fit(dc_register_text *t, const mgr__json *j, dc_reply *r, bool service)
{
    if (j->error && !t->error[0]) snprintf(t->error, sizeof t->error, "%s", j->error);
    if (t->error[0]) dc__text_reply(r, 400, "Request decode failed: %s", t->error);
    else if (service && !t->service.name.len) dc__text_reply(r, 400, "Missing service name");
    else if (!service && !t->checks[0].name.len) dc__text_reply(r, 400, "Missing check name");
    else if (t->refusal) dc__text_reply(r, t->refusal_status, "%s", t->refusal);
    else return true;
    return false;
}

/* A check's id by default: "service:<id>", numbered if there are several. */
static void dc__check_name(dc_register_text *t, size_t i)
{
    dc_check_desc *check = &t->checks[i];
    size_t from = t->ids.len;
    if (!check->id.len) {
        mgr__buf_printf(&t->ids, "service:%.*s", dc__len(t->service.id), t->service.id.at);
        if (t->check_count > 1) mgr__buf_printf(&t->ids, ":%u", (unsigned)(i + 1));
        check->id = mgr__str_make(t->ids.at + from, t->ids.len - from);
        from = t->ids.len;
    }
    if (!check->name.len) {
        mgr__buf_printf(&t->ids, "Service '%.*s' check", dc__len(t->service.name), t->service.name.at);
        check->name = mgr__str_make(t->ids.at + from, t->ids.len - from);
    }
    check->service_id = t->service.id;
}

static void dc__checks_replace(dc_agent *a, const dc_request *q, const dc_register_text *t)
{
    for (size_t i = a->store.check_count; i-- > 0; ) {
        const dc_check *check = a->store.checks[i];
        bool wanted = !mgr__str_is(t->service.id, check->service_id);
        for (size_t k = 0; k < t->check_count; k++) wanted = wanted || mgr__str_is(t->checks[k].id, check->id);
        if (!wanted) dc_check_deregister(&a->store, q->now_ms, mgr__str_of(check->id));
    }
}

static void dc__service_register(dc_agent *a, const dc_request *q, dc_register_text *t, dc_reply *r)
{
    mgr__json j;
    mgr__json_init(&j, q->body);
    dc__service_parse(&j, t);
    mgr__json_end(&j);
    if (!dc__register_fit(t, &j, r, true)) return;
    if (!t->service.id.len) t->service.id = t->service.name;
    /* Reserved at once, so that names already made stay where they are. */
    if (!mgr__buf_reserve(&t->ids, t->check_count * (t->service.id.len + t->service.name.len + 64))) {
        dc__text_reply(r, 500, "out of memory");
        return;
    }
    for (size_t i = 0; i < t->check_count; i++) dc__check_name(t, i);
    bool done = dc_service_register(&a->store, q->now_ms, &t->service);
    for (size_t i = 0; done && i < t->check_count; i++) done = dc_check_register(&a->store, q->now_ms, &t->checks[i]);
    if (dc__has(a, q, "replace-existing-checks")) dc__checks_replace(a, q, t);
    if (!done) dc__text_reply(r, 500, "out of memory");
}

static void dc__check_register(dc_agent *a, const dc_request *q, dc_register_text *t, dc_reply *r)
{
    mgr__json j;
    mgr__json_init(&j, q->body);
    dc__check_parse(&j, t);
    mgr__json_end(&j);
    if (!dc__register_fit(t, &j, r, false)) return;
    dc_check_desc *check = &t->checks[0];
    if (!check->id.len) check->id = check->name;
    if (check->service_id.len && !dc__service_find(&a->store, check->service_id))
        dc__text_reply(r, 500, "ServiceID \"%.*s\" does not exist", dc__len(check->service_id), check->service_id.at);
    else if (!dc_check_register(&a->store, q->now_ms, check)) dc__text_reply(r, 500, "out of memory");
}

static void dc__register(dc_agent *a, const dc_request *q, dc_reply *r, bool service)
{
    dc_register_text *t = (dc_register_text *)mgr__alloc(a->store.heap, sizeof *t);
    if (!t) { dc__text_reply(r, 500, "out of memory"); return; }
    mgr__buf_init(&t->scratch, a->store.heap, 2 * DC_BODY_BYTES_MAX);
    mgr__buf_init(&t->ids, a->store.heap, (size_t)DC_REPLY_BYTES_MAX);
    if (service) dc__service_register(a, q, t, r);
    else dc__check_register(a, q, t, r);
    mgr__buf_free(&t->scratch);
    mgr__buf_free(&t->ids);
    mgr__free(a->store.heap, t);
}

static void dc__route_service_register(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    (void)rest;
    dc__register(a, q, r, true);
}

static void dc__route_check_register(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    (void)rest;
    dc__register(a, q, r, false);
}

static void dc__route_service_deregister(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r)
{
    (void)r;
    dc_service_deregister(&a->store, q->now_ms, id);
}

static void dc__route_check_deregister(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r)
{
    (void)r;
    dc_check_deregister(&a->store, q->now_ms, id);
}

static void dc__check_report(dc_agent *a, const dc_request *q, mgr__str id, dc_status status, mgr__str output, dc_reply *r)
{
    if (!dc_check_update(&a->store, q->now_ms, id, status, output))
        dc__text_reply(r, 500, "CheckID \"%.*s\" does not have associated TTL", dc__len(id), id.at);
}

static void dc__check_note(dc_agent *a, const dc_request *q, mgr__str id, dc_status status, dc_reply *r)
{
    char note[1024];
    dc__param(a, q, "note", note, sizeof note);
    dc__check_report(a, q, id, status, mgr__str_of(note), r);
}

static void dc__route_check_pass(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r) { dc__check_note(a, q, id, DC_PASSING, r); }
static void dc__route_check_warn(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r) { dc__check_note(a, q, id, DC_WARNING, r); }
static void dc__route_check_fail(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r) { dc__check_note(a, q, id, DC_CRITICAL, r); }

static void dc__check_update_body(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r, mgr__buf *scratch)
{
    mgr__json j;
    mgr__str key, text = mgr__str_make("", 0), output = text;
    dc_status status = DC_CRITICAL;
    mgr__json_init(&j, q->body);
    if (mgr__json_object(&j))
        while (mgr__json_key(&j, &key)) {
            if (mgr__str_is(key, "Status")) text = dc__json_text(&j, scratch);
            else if (mgr__str_is(key, "Output")) output = dc__json_text(&j, scratch);
        }
    if (!mgr__json_end(&j)) dc__text_reply(r, 400, "Request decode failed: %s", j.error);
    else if (!dc__status_read(text, &status)) dc__text_reply(r, 400, "Invalid check status: '%.*s'", dc__len(text), text.at);
    else dc__check_report(a, q, id, status, output, r);
}

static void dc__route_check_update(dc_agent *a, const dc_request *q, mgr__str id, dc_reply *r)
{
    mgr__buf scratch;
    mgr__buf_init(&scratch, a->store.heap, 2 * DC_BODY_BYTES_MAX);
    dc__check_update_body(a, q, id, r, &scratch);
    mgr__buf_free(&scratch);
}

static void dc__route_agent_checks(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    mgr__jw jw;
    (void)q; (void)rest;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_object(&jw);
    for (size_t i = 0; i < a->store.check_count; i++) {
        if (!a->store.checks[i]->ttl_ms) continue;      /* serfHealth is the servers' */
        mgr__jw_key(&jw, a->store.checks[i]->id);
        dc__write_check(a, &jw, a->store.checks[i], false);
    }
    mgr__jw_object_end(&jw);
    dc__json_reply(r, "");
}

static void dc__route_agent_services(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    mgr__jw jw;
    (void)q; (void)rest;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_object(&jw);
    for (size_t i = 0; i < a->store.service_count; i++) {
        mgr__jw_key(&jw, a->store.services[i]->id);
        dc__write_service(&jw, a->store.services[i], false);
    }
    mgr__jw_object_end(&jw);
    dc__json_reply(r, "");
}

static void dc__route_agent_self(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    mgr__jw jw;
    (void)q; (void)rest;
    mgr__jw_init(&jw, &r->body);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "Config");
    mgr__jw_object(&jw);
    dc__write_field(&jw, "Datacenter", "dc1");
    dc__write_field(&jw, "NodeName", a->node);
    dc__write_field(&jw, "NodeID", a->node_id);
    dc__write_field(&jw, "Revision", "devconsul");
    mgr__jw_key(&jw, "Server");
    mgr__jw_bool(&jw, true);
    dc__write_field(&jw, "Version", "1.8.7");
    mgr__jw_object_end(&jw);
    mgr__jw_key(&jw, "Member");
    mgr__jw_object(&jw);
    dc__write_field(&jw, "Name", a->node);
    dc__write_field(&jw, "Addr", "127.0.0.1");
    mgr__jw_key(&jw, "Status");
    mgr__jw_u64(&jw, 1);
    mgr__jw_object_end(&jw);
    mgr__jw_key(&jw, "Meta");
    mgr__jw_raw(&jw, mgr__str_of("{\"consul-network-segment\":\"\"}"));
    mgr__jw_object_end(&jw);
    dc__json_reply(r, "");
}

static void dc__route_agent_join(dc_agent *a, const dc_request *q, mgr__str address, dc_reply *r)
{
    (void)a; (void)q;
    dc__text_reply(r, 500, "1 error occurred:\n\t* Failed to join %.*s: devconsul is for one machine\n\n", dc__len(address), address.at);
}

static void dc__route_agent_leave(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    (void)q; (void)rest; (void)r;
    a->left = true;
}

typedef struct dc_deregister_text { mgr__str node, service, check; char error[160]; } dc_deregister_text;

static void dc__deregister_parse(mgr__str body, dc_deregister_text *t, mgr__buf *scratch)
{
    mgr__json j;
    mgr__str key;
    mgr__json_init(&j, body);
    if (mgr__json_object(&j))
        while (mgr__json_key(&j, &key)) {
            if (mgr__str_is(key, "Node")) t->node = dc__json_text(&j, scratch);
            else if (mgr__str_is(key, "ServiceID")) t->service = dc__json_text(&j, scratch);
            else if (mgr__str_is(key, "CheckID")) t->check = dc__json_text(&j, scratch);
            else if (!mgr__str_is(key, "Datacenter") && !mgr__str_is(key, "Namespace")) dc__unknown_field(t->error, sizeof t->error, key);
        }
    if (!mgr__json_end(&j) && !t->error[0]) snprintf(t->error, sizeof t->error, "%s", j.error);
}

static void dc__route_catalog_deregister(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    dc_deregister_text t;
    mgr__buf scratch;
    (void)rest;
    memset(&t, 0, sizeof t);
    mgr__buf_init(&scratch, a->store.heap, 2 * DC_BODY_BYTES_MAX);
    dc__deregister_parse(q->body, &t, &scratch);
    bool ours = mgr__str_is(t.node, a->node);
    if (t.error[0]) dc__text_reply(r, 400, "Request decode failed: %s", t.error);
    else if (!t.node.len) dc__text_reply(r, 500, "Must provide node");
    else {
        if (ours && t.service.len) dc_service_deregister(&a->store, q->now_ms, t.service);
        if (ours && t.check.len) dc_check_deregister(&a->store, q->now_ms, t.check);
        dc__bool_reply(r, true);
    }
    mgr__buf_free(&scratch);
}

/* ---- /v1/status ---- */

static void dc__route_status_leader(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    (void)q; (void)rest;
    mgr__buf_printf(&r->body, "\"%s\"", a->address);
    dc__json_reply(r, "");
}

static void dc__route_status_peers(dc_agent *a, const dc_request *q, mgr__str rest, dc_reply *r)
{
    (void)q; (void)rest;
    mgr__buf_printf(&r->body, "[\"%s\"]", a->address);
    dc__json_reply(r, "");
}

/* ---- the table ---- */

typedef struct dc_route { const char *methods, *path; dc_handler handler; } dc_route;

/* A path that ends in '/' stands for all below it; what follows is the handler's. */
static const dc_route *dc__route_find(mgr__str path)
{
    static const dc_route routes[] = {
        { "GET,PUT,DELETE", "/v1/kv/",                       dc__route_kv },
        { "PUT",            "/v1/txn",                       dc__route_txn },
        { "PUT",            "/v1/session/create",            dc__route_session_create },
        { "PUT",            "/v1/session/destroy/",          dc__route_session_destroy },
        { "PUT",            "/v1/session/renew/",            dc__route_session_renew },
        { "GET",            "/v1/session/info/",             dc__route_session_info },
        { "GET",            "/v1/session/node/",             dc__route_session_node },
        { "GET",            "/v1/session/list",              dc__route_session_list },
        { "GET",            "/v1/agent/self",                dc__route_agent_self },
        { "GET",            "/v1/agent/services",            dc__route_agent_services },
        { "GET",            "/v1/agent/checks",              dc__route_agent_checks },
        { "PUT",            "/v1/agent/join/",               dc__route_agent_join },
        { "PUT",            "/v1/agent/leave",               dc__route_agent_leave },
        { "PUT",            "/v1/agent/service/register",    dc__route_service_register },
        { "PUT",            "/v1/agent/service/deregister/", dc__route_service_deregister },
        { "PUT",            "/v1/agent/check/register",      dc__route_check_register },
        { "PUT",            "/v1/agent/check/deregister/",   dc__route_check_deregister },
        { "PUT",            "/v1/agent/check/pass/",         dc__route_check_pass },
        { "PUT",            "/v1/agent/check/warn/",         dc__route_check_warn },
        { "PUT",            "/v1/agent/check/fail/",         dc__route_check_fail },
        { "PUT",            "/v1/agent/check/update/",       dc__route_check_update },
        { "PUT",            "/v1/catalog/deregister",        dc__route_catalog_deregister },
        { "GET",            "/v1/catalog/nodes",             dc__route_catalog_nodes },
        { "GET",            "/v1/catalog/services",          dc__route_catalog_services },
        { "GET",            "/v1/catalog/service/",          dc__route_catalog_service },
        { "GET",            "/v1/health/service/",           dc__route_health_service },
        { "GET",            "/v1/health/checks/",            dc__route_health_checks },
        { "GET",            "/v1/health/node/",              dc__route_health_node },
        { "GET",            "/v1/health/state/",             dc__route_health_state },
        { "GET",            "/v1/status/leader",             dc__route_status_leader },
        { "GET",            "/v1/status/peers",              dc__route_status_peers },
    };
    for (size_t i = 0; i < MGR__COUNT(routes); i++) {
        size_t len = strlen(routes[i].path);
        bool below = routes[i].path[len - 1] == '/';
        if (below ? mgr__str_starts(path, routes[i].path) : mgr__str_is(path, routes[i].path)) return &routes[i];
    }
    return NULL;
}

/* One word of a comma list. */
static bool dc__listed(const char *list, mgr__str word)
{
    for (const char *at = list; ; at = strchr(at, ',') + 1) {
        const char *end = strchr(at, ',');
        if (mgr__str_eq(word, mgr__str_make(at, end ? (size_t)(end - at) : strlen(at)))) return true;
        if (!end) return false;
    }
}

static void dc__reply_init(dc_reply *r, mgr__heap *heap)
{
    memset(r, 0, sizeof *r);
    r->status = 200;
    mgr__buf_init(&r->body, heap, (size_t)DC_REPLY_BYTES_MAX);
}

/* Answer one request. r->wait_ms > 0: not yet, ask again (see there). */
static void dc_answer(dc_agent *a, const dc_request *q, dc_reply *r)
{
    const dc_route *route = dc__route_find(q->path);
    dc_tick(&a->store, q->now_ms);
    if (!route) { r->status = 404; return; }
    bool options = mgr__str_is(q->method, "OPTIONS");
    if (options || !dc__listed(route->methods, q->method)) {
        if (!options) dc__text_reply(r, 405, "method %.*s not allowed", dc__len(q->method), q->method.at);
        r->allow = route->methods;
        return;
    }
    route->handler(a, q, mgr__str_skip(q->path, strlen(route->path)), r);
    if (r->body.failed) { mgr__buf_clear(&r->body); dc__text_reply(r, 500, "out of memory"); }
}

static void dc_agent_open(dc_agent *a, mgr__heap *heap, uint64_t seed, const char *node)
{
    memset(a, 0, sizeof *a);
    dc_open(&a->store, heap, seed);
    mgr__copy_text(a->node, sizeof a->node, mgr__str_of(node));
    mgr__copy_text(a->address, sizeof a->address, mgr__str_of("127.0.0.1:8300"));
    dc__uuid(&a->store.rng, a->node_id);
}

static void dc_agent_close(dc_agent *a) { dc_close(&a->store); }

/* ============================================================================
 * [serve] Sockets around the routes
 * what:  HTTP/1.1 over TCP on the loopback, or over a Unix socket; one thread, one poll
 * owns:  dc_server, dc_connection
 * calls: [routes], the kernel
 * ========================================================================== */

enum {
    DC_CONNECTIONS_MAX = 200,               /* one more is accepted and closed, as in Consul 1.8 */
    DC_HEAD_BYTES_MAX = 16 * 1024,
    DC_ACCEPT_PAUSE_MS = 100,
    DC_CLOSING_MS = 1000                    /* for the peer to read a refusal before its own bytes break the connection */
};

/* In order: bytes come in, a whole request is answered, the answer goes out; a
 * request that waits stays at the head of `in`, and no further one is looked at. */
typedef struct dc_connection {
    int      fd;
    mgr__buf in, out;
    size_t   out_at;                        /* sent of `out` */
    bool     waits;                         /* the first request is a blocking query */
    int64_t  until_ms;                      /* it is answered then; of a closing one: closed */
    bool     continued;                     /* "100 Continue" was sent for it */
    bool     last;                          /* close once `out` is sent */
    bool     closing;                       /* sent; what still comes in is dropped */
    bool     dead;
} dc_connection;

typedef struct dc_server {
    dc_agent      agent;
    mgr__heap     heap;
    int           listener;
    int64_t       accept_ms;                /* not before: out of descriptors, a poll would only say "ready" again */
    char          unix_path[108];
    uint64_t      seen_index;               /* of the store when blocking queries were last asked again */
    dc_connection *connections[DC_CONNECTIONS_MAX];
    size_t        connection_count;
} dc_server;

static int64_t dc__now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- one request out of bytes ---- */

typedef enum dc_parsed { DC_PART, DC_WHOLE, DC_BAD, DC_TOO_LARGE } dc_parsed;

typedef struct dc_head {
    mgr__str method, target, body;
    uint64_t length;                        /* of the body as announced */
    size_t   bytes;                         /* of the whole request */
    bool     chunked, close, expects, has_length;
} dc_head;

/* "Name: value" in lower or upper case. */
static bool dc__field(mgr__str line, const char *name, mgr__str *value)
{
    size_t len = strlen(name);
    if (line.len <= len || line.at[len] != ':') return false;
    for (size_t i = 0; i < len; i++) {
        char c = line.at[i];
        if ((c >= 'A' && c <= 'Z' ? (char)(c + 32) : c) != name[i]) return false;
    }
    *value = mgr__str_skip(line, len + 1);
    while (value->len && (value->at[0] == ' ' || value->at[0] == '\t')) *value = mgr__str_skip(*value, 1);
    while (value->len && (value->at[value->len - 1] == ' ' || value->at[value->len - 1] == '\t')) value->len--;
    return true;
}

static bool dc__take_field(dc_head *h, mgr__str line)
{
    mgr__str value;
    char text[24];
    if (dc__field(line, "content-length", &value)) {
        mgr__copy_text(text, sizeof text, value);
        if (h->has_length || value.len > 18 || !dc__number(text, &h->length)) return false;
        h->has_length = true;
    } else if (dc__field(line, "transfer-encoding", &value)) {
        if (!mgr__str_is(value, "chunked")) return false;
        h->chunked = true;
    } else if (dc__field(line, "connection", &value)) {
        h->close = mgr__str_is(value, "close") || mgr__str_is(value, "Close");
    } else if (dc__field(line, "expect", &value)) h->expects = true;
    return true;
}

/* The line at the head of `text`, without its end, which is skipped. False: not all here. */
static bool dc__line(mgr__str *text, mgr__str *line)
{
    const char *end = text->len ? (const char *)memchr(text->at, '\n', text->len) : NULL;
    if (!end) return false;
    *line = mgr__str_make(text->at, (size_t)(end - text->at));
    *text = mgr__str_skip(*text, line->len + 1);
    if (line->len && line->at[line->len - 1] == '\r') line->len--;
    return true;
}

/* "METHOD target HTTP/1.x" */
static bool dc__take_request_line(dc_head *h, mgr__str line)
{
    const char *space = line.len ? (const char *)memchr(line.at, ' ', line.len) : NULL;
    if (!space) return false;
    h->method = mgr__str_make(line.at, (size_t)(space - line.at));
    line = mgr__str_skip(line, h->method.len + 1);
    space = line.len ? (const char *)memchr(line.at, ' ', line.len) : NULL;
    if (!space || line.at[0] != '/') return false;
    h->target = mgr__str_make(line.at, (size_t)(space - line.at));
    line = mgr__str_skip(line, h->target.len + 1);
    if (mgr__str_is(line, "HTTP/1.0")) h->close = true;
    return h->close || mgr__str_is(line, "HTTP/1.1");
}

/* A chunked body into `to`; rest becomes what follows it. */
static dc_parsed dc__chunks(mgr__str *rest, mgr__buf *to)
{
    mgr__str line;
    for (;;) {
        uint64_t size = 0;
        size_t i = 0;
        if (!dc__line(rest, &line)) return rest->len > DC_HEAD_BYTES_MAX ? DC_BAD : DC_PART;
        for (; i < line.len && dc__hex(line.at[i]) >= 0 && size <= DC_BODY_BYTES_MAX; i++) size = size * 16 + (uint64_t)dc__hex(line.at[i]);
        if (!i) return DC_BAD;
        if (!size) break;
        if (size > DC_BODY_BYTES_MAX - to->len) return DC_TOO_LARGE;
        if (rest->len < size + 2) return DC_PART;
        mgr__buf_add(to, rest->at, (size_t)size);
        *rest = mgr__str_skip(*rest, (size_t)size);
        if (!dc__line(rest, &line) || line.len) return DC_BAD;
    }
    do if (!dc__line(rest, &line)) return rest->len > DC_HEAD_BYTES_MAX ? DC_BAD : DC_PART;
    while (line.len);                       /* trailers say nothing here */
    return to->failed ? DC_BAD : DC_WHOLE;
}

/* `chunks` holds a chunked body's bytes afterwards; h's views point into it and `in`. */
static dc_parsed dc__parse(mgr__str in, dc_head *h, mgr__buf *chunks)
{
    mgr__str rest = in, line;
    memset(h, 0, sizeof *h);
    if (!dc__line(&rest, &line)) return in.len > DC_HEAD_BYTES_MAX ? DC_BAD : DC_PART;
    if (!dc__take_request_line(h, line)) return DC_BAD;
    for (;;) {
        if (!dc__line(&rest, &line)) return in.len > DC_HEAD_BYTES_MAX ? DC_BAD : DC_PART;
        if (!line.len) break;
        if (!dc__take_field(h, line)) return DC_BAD;
    }
    if (h->chunked && h->has_length) return DC_BAD;     /* RFC 9112 6.3: whoever sends both is not to be trusted */
    if (h->length > DC_BODY_BYTES_MAX) return DC_TOO_LARGE;
    if (h->chunked) {
        dc_parsed state = dc__chunks(&rest, chunks);
        h->length = chunks->len;
        h->body = mgr__buf_view(chunks);
        h->bytes = in.len - rest.len;
        return state;
    }
    if (rest.len < h->length) return DC_PART;
    h->body = mgr__str_make(rest.at, (size_t)h->length);
    h->bytes = in.len - rest.len + (size_t)h->length;
    return DC_WHOLE;
}

/* ---- answers ---- */

static const char *dc__reason(int status)
{
    switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 409: return "Conflict";
    case 413: return "Request Entity Too Large";
    default:  return "Internal Server Error";
    }
}

static void dc__send_reply(dc_connection *c, const dc_reply *r, bool head_only)
{
    mgr__buf_printf(&c->out, "HTTP/1.1 %d %s\r\n", r->status, dc__reason(r->status));
    if (r->type) mgr__buf_printf(&c->out, "Content-Type: %s\r\n", r->type);
    if (r->allow) mgr__buf_printf(&c->out, "Allow: OPTIONS,%s\r\n", r->allow);
    if (r->query) {
        if (r->index) mgr__buf_printf(&c->out, "X-Consul-Index: %llu\r\n", (unsigned long long)r->index);
        mgr__buf_text(&c->out, "X-Consul-Knownleader: true\r\nX-Consul-Lastcontact: 0\r\n");
        if (r->more) mgr__buf_text(&c->out, r->more);
    }
    if (c->last) mgr__buf_text(&c->out, "Connection: close\r\n");
    mgr__buf_printf(&c->out, "Content-Length: %llu\r\n\r\n", (unsigned long long)r->body.len);
    if (!head_only) mgr__buf_str(&c->out, mgr__buf_view(&r->body));
    if (c->out.failed) c->dead = true;
}

/* The connection's last answer: its bytes cannot be trusted any more. */
static void dc__refuse_request(dc_server *v, dc_connection *c, int status, const char *text)
{
    dc_reply r;
    dc__reply_init(&r, &v->heap);
    dc__text_reply(&r, status, "%s", text);
    c->last = true;
    dc__send_reply(c, &r, false);
    mgr__buf_free(&r.body);
}

/* False: it waits. */
static bool dc__answer_head(dc_server *v, dc_connection *c, const dc_head *h, int64_t now_ms)
{
    dc_request q;
    dc_reply r;
    mgr__buf path;
    const char *mark = (const char *)memchr(h->target.at, '?', h->target.len);
    size_t path_len = mark ? (size_t)(mark - h->target.at) : h->target.len;
    mgr__buf_init(&path, &v->heap, DC_HEAD_BYTES_MAX * 2);
    memset(&q, 0, sizeof q);
    dc__reply_init(&r, &v->heap);
    q.method = h->method;
    q.query = mark ? mgr__str_skip(h->target, path_len + 1) : mgr__str_make("", 0);
    q.body = h->body;
    q.chunked = h->chunked;
    q.now_ms = now_ms;
    q.last = c->waits && now_ms >= c->until_ms;
    if (dc__decode(&path, mgr__str_make(h->target.at, path_len), false)) { q.path = mgr__buf_view(&path); dc_answer(&v->agent, &q, &r); }
    else dc__text_reply(&r, 400, "400 Bad Request");
    bool waits = r.wait_ms > 0;
    if (waits && !c->waits) c->until_ms = now_ms + r.wait_ms;
    c->waits = waits;
    c->last = c->last || h->close;
    if (!waits) dc__send_reply(c, &r, mgr__str_is(h->method, "HEAD"));
    mgr__buf_free(&r.body);
    mgr__buf_free(&path);
    return !waits;
}

/* Answer the first request in `in`, if it is all here. True: look again. */
static bool dc__serve_one(dc_server *v, dc_connection *c, int64_t now_ms)
{
    dc_head h;
    mgr__buf chunks;
    char text[160];
    bool again = false;
    if (c->dead || c->last || c->out.len || !c->in.len) return false;
    mgr__buf_init(&chunks, &v->heap, DC_BODY_BYTES_MAX);
    dc_parsed parsed = dc__parse(mgr__buf_view(&c->in), &h, &chunks);
    if (parsed == DC_BAD) dc__refuse_request(v, c, 400, "400 Bad Request");
    else if (parsed == DC_TOO_LARGE) {
        snprintf(text, sizeof text, "Request body(%llu bytes) too large, max size: %d bytes.",
                 (unsigned long long)h.length, (int)DC_BODY_BYTES_MAX);
        dc__refuse_request(v, c, 413, text);
    } else if (parsed == DC_PART) {
        if (h.expects && !c->continued) { c->continued = true; mgr__buf_text(&c->out, "HTTP/1.1 100 Continue\r\n\r\n"); }
    } else if (dc__answer_head(v, c, &h, now_ms)) {
        mgr__buf_consume(&c->in, h.bytes);
        if (!c->in.len && c->in.cap > 65536) mgr__buf_free(&c->in);
        c->continued = false;
        again = true;
    }
    mgr__buf_free(&chunks);
    return again;
}

/* ---- connections ---- */

static void dc__send(dc_connection *c, int64_t now_ms)
{
    while (!c->dead && c->out_at < c->out.len) {
        ssize_t n = send(c->fd, c->out.at + c->out_at, c->out.len - c->out_at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n <= 0) { c->dead = true; return; }
        c->out_at += (size_t)n;
    }
    if (c->out.len > 65536) mgr__buf_free(&c->out);     /* one large answer must not hold its memory for ever */
    else mgr__buf_clear(&c->out);
    c->out_at = 0;
    if (!c->last || c->closing) return;
    c->closing = true;
    c->until_ms = now_ms + DC_CLOSING_MS;
    shutdown(c->fd, SHUT_WR);
}

/* Answers and sends until there is nothing more to do without poll. */
static void dc__turn(dc_server *v, dc_connection *c, int64_t now_ms)
{
    bool again = true;
    while (again && !c->dead && !c->closing) {
        again = dc__serve_one(v, c, now_ms);
        if (c->out.len) dc__send(c, now_ms);
    }
}

static void dc__receive(dc_server *v, dc_connection *c, int64_t now_ms)
{
    char bytes[65536];
    ssize_t n = recv(c->fd, bytes, sizeof bytes, 0);
    if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n <= 0) { c->dead = true; return; }
    if (c->closing) return;
    mgr__buf_add(&c->in, bytes, (size_t)n);
    if (c->in.failed) { c->dead = true; return; }
    if (!c->waits) dc__turn(v, c, now_ms);
}

static void dc__drop(dc_server *v, size_t at)
{
    dc_connection *c = v->connections[at];
    close(c->fd);
    mgr__buf_free(&c->in);
    mgr__buf_free(&c->out);
    mgr__free(&v->heap, c);
    v->connections[at] = v->connections[--v->connection_count];
}

static bool dc__fd_ready(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

static void dc__accept(dc_server *v, int64_t now_ms)
{
    int one = 1, fd = accept(v->listener, NULL, NULL);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) v->accept_ms = now_ms + DC_ACCEPT_PAUSE_MS;
    if (fd < 0) return;
    dc_connection *c = v->connection_count < DC_CONNECTIONS_MAX ? (dc_connection *)mgr__alloc(&v->heap, sizeof *c) : NULL;
    if (!c || !dc__fd_ready(fd)) { mgr__free(&v->heap, c); close(fd); return; }
    if (!v->unix_path[0]) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->fd = fd;
    mgr__buf_init(&c->in, &v->heap, DC_HEAD_BYTES_MAX * 2 + DC_BODY_BYTES_MAX * 2);
    mgr__buf_init(&c->out, &v->heap, (size_t)DC_REPLY_BYTES_MAX + DC_HEAD_BYTES_MAX);
    v->connections[v->connection_count++] = c;
}

/* ---- the loop ---- */

/* Ask blocking queries again: all of them after a change, those whose time is over anyway. */
static void dc__wake(dc_server *v, int64_t now_ms)
{
    dc_tick(&v->agent.store, now_ms);
    while (v->seen_index != v->agent.store.index) {      /* a pipelined write behind a query changes it again */
        v->seen_index = v->agent.store.index;
        for (size_t i = 0; i < v->connection_count; i++)
            if (v->connections[i]->waits) dc__turn(v, v->connections[i], now_ms);
    }
    for (size_t i = v->connection_count; i-- > 0; ) {
        dc_connection *c = v->connections[i];
        if (c->waits && c->until_ms <= now_ms) dc__turn(v, c, now_ms);
        if (c->closing && c->until_ms <= now_ms) c->dead = true;
        if (c->dead) dc__drop(v, i);
    }
}

static int dc__timeout_ms(const dc_server *v, int64_t now_ms)
{
    int64_t next = dc_next_deadline(&v->agent.store);
    if (v->accept_ms > now_ms) next = mgr__min64(next, v->accept_ms);
    for (size_t i = 0; i < v->connection_count; i++) {
        const dc_connection *c = v->connections[i];
        if (c->waits || c->closing) next = mgr__min64(next, c->until_ms);
    }
    return next == MGR__NEVER ? -1 : (int)mgr__max64(0, mgr__min64(next - now_ms, 60000));
}

/* While a request waits, only one buffer of more is taken in: then the kernel's
 * buffer fills, and the peer waits too. */
static short dc__interest(const dc_connection *c)
{
    bool full = c->waits && c->in.len > DC_HEAD_BYTES_MAX * 2;
    return (short)((c->out.len ? POLLOUT : full ? 0 : POLLIN));
}

static void dc__ready(dc_server *v, dc_connection *c, short revents, int64_t now_ms)
{
    if (c->out.len && (revents & (POLLOUT | POLLERR | POLLHUP))) { dc__send(c, now_ms); dc__turn(v, c, now_ms); }
    else if (revents & POLLIN) dc__receive(v, c, now_ms);
    else if (revents & (POLLERR | POLLHUP | POLLNVAL)) c->dead = true;
}

/* 0: asked to end; else an errno. */
static int dc__loop(dc_server *v, int stop_fd)
{
    struct pollfd fds[2 + DC_CONNECTIONS_MAX];
    while (!v->agent.left) {
        size_t count = v->connection_count;
        int64_t now_ms = dc__now_ms();
        memset(fds, 0, sizeof fds);
        fds[0].fd = stop_fd;                /* poll ignores -1 */
        fds[1].fd = v->accept_ms > now_ms ? -1 : v->listener;
        fds[0].events = fds[1].events = POLLIN;
        for (size_t i = 0; i < count; i++) { fds[2 + i].fd = v->connections[i]->fd; fds[2 + i].events = dc__interest(v->connections[i]); }
        int ready = poll(fds, (nfds_t)(2 + count), dc__timeout_ms(v, now_ms));
        if (ready < 0 && errno != EINTR) return errno;
        if (ready < 0) continue;
        now_ms = dc__now_ms();
        if (fds[0].revents) return 0;
        for (size_t i = 0; i < count; i++) if (fds[2 + i].revents) dc__ready(v, v->connections[i], fds[2 + i].revents, now_ms);
        if (fds[1].revents) dc__accept(v, now_ms);
        dc__wake(v, now_ms);
    }
    return 0;
}

/* ---- listening ---- */

/* Only the loopback: there are no rights to check here. An errno, or 0. */
static int dc__listen_tcp(dc_server *v, mgr__str host, uint64_t port)
{
    struct sockaddr_in to;
    char text[64];
    int one = 1;
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons((uint16_t)port);
    mgr__copy_text(text, sizeof text, mgr__str_is(host, "localhost") ? mgr__str_of("127.0.0.1") : host);
    if (port > 65535 || inet_pton(AF_INET, text, &to.sin_addr) != 1 || ntohl(to.sin_addr.s_addr) >> 24 != 127) return EINVAL;
    v->listener = socket(AF_INET, SOCK_STREAM, 0);
    if (v->listener < 0) return errno;
    setsockopt(v->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    return bind(v->listener, (const struct sockaddr *)(const void *)&to, sizeof to) == 0 ? 0 : errno;
}

/* A socket that nobody serves any more is taken over; anything else of that name stays. */
static int dc__listen_unix(dc_server *v, mgr__str path)
{
    struct sockaddr_un to;
    struct stat there;
    memset(&to, 0, sizeof to);
    to.sun_family = AF_UNIX;
    if (!path.len || path.len >= sizeof to.sun_path || path.len >= sizeof v->unix_path) return ENAMETOOLONG;
    memcpy(to.sun_path, path.at, path.len);
    v->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (v->listener < 0) return errno;
    if (lstat(to.sun_path, &there) == 0) {
        if (!S_ISSOCK(there.st_mode) || connect(v->listener, (const struct sockaddr *)(const void *)&to, sizeof to) == 0) return EADDRINUSE;
        unlink(to.sun_path);
    }
    if (bind(v->listener, (const struct sockaddr *)(const void *)&to, sizeof to) != 0) return errno;
    mgr__copy_text(v->unix_path, sizeof v->unix_path, path);
    return 0;
}

static int dc__listen(dc_server *v, const char *address)
{
    mgr__str text = mgr__str_of(address);
    const char *colon = strrchr(address, ':');
    uint64_t port;
    int error;
    if (mgr__str_starts(text, "unix://")) error = dc__listen_unix(v, mgr__str_skip(text, 7));
    else if (!colon || !dc__number(colon + 1, &port)) error = EINVAL;
    else error = dc__listen_tcp(v, mgr__str_make(address, (size_t)(colon - address)), port);
    if (error) return error;
    return listen(v->listener, 128) == 0 && dc__fd_ready(v->listener) ? 0 : errno;
}

/* Tell whoever waits that requests are taken now, and on which port (0: a Unix socket). */
static void dc__announce(dc_server *v, int ready_fd)
{
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    char text[32];
    unsigned port = 0;
    memset(&at, 0, sizeof at);
    if (!v->unix_path[0] && getsockname(v->listener, (struct sockaddr *)(void *)&at, &len) == 0) port = ntohs(at.sin_port);
    if (port) snprintf(v->agent.address, sizeof v->agent.address, "127.0.0.1:%u", port);
    if (ready_fd < 0) return;
    snprintf(text, sizeof text, "%u\n", port);
    while (write(ready_fd, text, strlen(text)) < 0 && errno == EINTR) { }
}

static uint64_t dc__seed(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return mgr__mix64((uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec) ^ (uint64_t)getpid();
}

static int dc__serve(dc_server *v, const char *listen_address, int stop_fd, int ready_fd)
{
    int error = dc__listen(v, listen_address);
    if (error) return error;
    dc__announce(v, ready_fd);
    error = dc__loop(v, stop_fd);
    while (v->connection_count) dc__drop(v, 0);
    return error;
}

/* Serve until stop_fd is readable or at its end (-1: until an agent/leave), in the
 * calling thread. listen_address: "127.0.0.1:8500", port 0 for any, or
 * "unix:///path". ready_fd: the port as text and a newline are written there once
 * requests are taken; -1: nowhere. Neither descriptor is closed. 0, or an errno:
 * EINVAL for an address that is none or not on the loopback. */
static MGR__UNUSED int dc_serve(const char *listen_address, int stop_fd, int ready_fd)
{
    mgr__heap heap = mgr__heap_make(NULL);
    char host[64] = "";
    dc_server *v = (dc_server *)mgr__alloc(&heap, sizeof *v);
    if (!v) return ENOMEM;
    v->heap = heap;
    v->listener = -1;
    if (gethostname(host, sizeof host - 1) != 0 || !host[0]) mgr__copy_text(host, sizeof host, mgr__str_of("devconsul"));
    dc_agent_open(&v->agent, &v->heap, dc__seed(), host);
    int error = dc__serve(v, listen_address, stop_fd, ready_fd);
    if (v->listener >= 0) close(v->listener);
    if (v->unix_path[0]) unlink(v->unix_path);
    dc_agent_close(&v->agent);
    mgr__free(&heap, v);
    return error;
}

#endif /* DEVCONSUL_H */
