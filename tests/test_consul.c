/* [consul]: requests as bytes, canned answers, and, where there is one, a real agent. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "test.h"

enum { PATIENCE_MS = 10000 };

static mgr__io io;
static mgr__heap heap;
static mgr__buf scratch, bytes;
static mgr__consul consul;
static mgr__answer answer;
static mgr__request r;

static mgr__request *request(mgr__ask ask)
{
    memset(&r, 0, sizeof r);
    r.ask = ask;
    return &r;
}

static mgr__op *op(mgr__verb verb, const char *key, const char *value, const char *session, uint64_t index)
{
    mgr__op *at = &r.ops[r.op_count++];
    at->verb = verb;
    at->key = mgr__str_of(key);
    at->value = mgr__str_of(value);
    at->session = mgr__str_of(session);
    at->index = index;
    return at;
}

/* ---- bytes ---- */

static void check_request(const char *line, const char *body)
{
    mgr__buf_clear(&bytes);
    CHECK(mgr__consul_format(&consul, &r, mgr__str_of("h:1"), &bytes));
    const char *text = mgr__buf_cstr(&bytes), *end = strstr(text, "\r\n\r\n"), *first = strstr(text, "\r\n");
    CHECK(end && first);
    if (!end || !first) return;
    char got[1024];
    mgr__copy_text(got, sizeof got, mgr__str_make(text, (size_t)(first - text)));
    CHECK_STR(got, line);
    CHECK_STR(end + 4, body);
    CHECK(strstr(text, "\r\nHost: h:1\r\n") != NULL);
}

TEST(requests)
{
    request(MGR__ASK_TXN);
    op(MGR__LOCK, "manager/s%2E/owners/a\"b", "{}", "s-1", 0);
    op(MGR__CHECK_INDEX, "k", "", "", 18446744073709551615u);
    op(MGR__CAS, "k", "v", "", 0);
    op(MGR__CHECK_ABSENT, "k", "", "", 0);
    op(MGR__CHECK_SESSION, "k", "", "s", 0);
    op(MGR__DELETE_CAS, "k", "", "", 7);
    op(MGR__SET, "k", "", "", 0);
    op(MGR__UNLOCK, "k", "x", "s", 0);
    op(MGR__GET, "k", "", "", 0);
    op(MGR__GET_TREE, "k/", "", "", 0);
    check_request("PUT /v1/txn?consistent HTTP/1.1",
                  "[{\"KV\":{\"Verb\":\"lock\",\"Key\":\"manager/s%2E/owners/a\\\"b\",\"Value\":\"e30=\",\"Session\":\"s-1\"}},"
                  "{\"KV\":{\"Verb\":\"check-index\",\"Key\":\"k\",\"Index\":18446744073709551615}},"
                  "{\"KV\":{\"Verb\":\"cas\",\"Key\":\"k\",\"Value\":\"dg==\",\"Index\":0}},"
                  "{\"KV\":{\"Verb\":\"check-not-exists\",\"Key\":\"k\"}},"
                  "{\"KV\":{\"Verb\":\"check-session\",\"Key\":\"k\",\"Session\":\"s\"}},"
                  "{\"KV\":{\"Verb\":\"delete-cas\",\"Key\":\"k\",\"Index\":7}},"
                  "{\"KV\":{\"Verb\":\"set\",\"Key\":\"k\",\"Value\":\"\"}},"
                  "{\"KV\":{\"Verb\":\"unlock\",\"Key\":\"k\",\"Value\":\"eA==\",\"Session\":\"s\"}},"
                  "{\"KV\":{\"Verb\":\"get\",\"Key\":\"k\"}},"
                  "{\"KV\":{\"Verb\":\"get-tree\",\"Key\":\"k/\"}}]");
    CHECK(!mgr__consul_is_read(&r));
    CHECK_INT(mgr__consul_repeat(&r), MGR__HTTP_ONCE);
    request(MGR__ASK_TXN);
    op(MGR__CHECK_SESSION, "k", "", "s", 0);
    op(MGR__GET, "k", "", "", 0);
    CHECK_INT(mgr__consul_repeat(&r), MGR__HTTP_READ);
    request(MGR__ASK_WATCH)->key = mgr__str_of("manager/a%20b/cluster/");
    check_request("GET /v1/kv/manager/a%2520b/cluster/?recurse HTTP/1.1", "");
    r.index = 7;
    r.wait_ms = 60000;
    check_request("GET /v1/kv/manager/a%2520b/cluster/?recurse&index=7&wait=60000ms HTTP/1.1", "");
    request(MGR__ASK_LIST)->key = mgr__str_of("p/");
    check_request("GET /v1/kv/p/?recurse&consistent HTTP/1.1", "");
    request(MGR__ASK_SESSION_CREATE)->name = mgr__str_of("n");
    r.session_ttl_ms = 15000;
    check_request("PUT /v1/session/create HTTP/1.1",
                  "{\"Name\":\"n\",\"TTL\":\"15000ms\",\"LockDelay\":\"0s\",\"Behavior\":\"release\",\"NodeChecks\":[\"serfHealth\"]}");
    r.check_id = mgr__str_of("c");
    check_request("PUT /v1/session/create HTTP/1.1",
                  "{\"Name\":\"n\",\"TTL\":\"15000ms\",\"LockDelay\":\"0s\",\"Behavior\":\"release\",\"NodeChecks\":[\"serfHealth\"],\"ServiceChecks\":[{\"ID\":\"c\"}]}");
    request(MGR__ASK_SESSION_RENEW)->session = mgr__str_of("s/1");
    check_request("PUT /v1/session/renew/s%2F1 HTTP/1.1", "");
    CHECK_INT(mgr__consul_repeat(&r), MGR__HTTP_IF_REUSED);
    request(MGR__ASK_CATALOG_DEREGISTER)->node = mgr__str_of("n");
    r.name = mgr__str_of("i");
    check_request("PUT /v1/catalog/deregister HTTP/1.1", "{\"Node\":\"n\",\"ServiceID\":\"i\"}");
    request(MGR__ASK_CHECK_UPDATE)->name = mgr__str_of("a b");
    r.status = 2;
    r.note = mgr__str_of("no\n");
    check_request("PUT /v1/agent/check/update/a%20b HTTP/1.1", "{\"Status\":\"critical\",\"Output\":\"no\\n\"}");
    request(MGR__ASK_SERVICE_REGISTER)->body = mgr__str_of("{}");
    check_request("PUT /v1/agent/service/register?replace-existing-checks=true HTTP/1.1", "{}");
}

TEST(the_token_is_a_field_and_nothing_else)
{
    consul.token = mgr__str_of("t-1");
    request(MGR__ASK_AGENT_SELF);
    check_request("GET /v1/agent/self HTTP/1.1", "");
    CHECK(strstr(mgr__buf_cstr(&bytes), "\r\nX-Consul-Token: t-1\r\n") != NULL);
    consul.token = mgr__str_of("t\r\nHost: x");
    mgr__buf_clear(&bytes);
    CHECK(!mgr__consul_format(&consul, &r, mgr__str_of("h"), &bytes));
    mgr__buf_clear(&bytes);
    consul.token = mgr__str_of("");
}

/* ---- canned answers ---- */

static mgr__outcome parse(int status, const char *body)
{
    mgr__http_result result;
    memset(&result, 0, sizeof result);
    result.status = status;
    result.index = 9;
    result.body = mgr__str_of(body);
    result.text = "";
    mgr__consul_parse(&r, &result, &scratch, &answer);
    return answer.outcome;
}

static bool text_has(const char *word) { return mgr__consul_contains(answer.text, word); }

TEST(kv_answers)
{
    request(MGR__ASK_LIST);
    CHECK_INT(parse(200, "[{\"LockIndex\":2,\"Key\":\"a\\u0041\",\"Flags\":0,\"Value\":\"aGVsbG8=\",\"Session\":\"s-1\",\"CreateIndex\":5,\"ModifyIndex\":6},\n"
                         "{\"LockIndex\":0,\"Key\":\"b\",\"Flags\":0,\"Value\":null,\"CreateIndex\":7,\"ModifyIndex\":8}]"), MGR__OUTCOME_OK);
    CHECK_INT(answer.kv_count, 2);
    CHECK_INT(answer.index, 9);
    CHECK(mgr__str_is(answer.kvs[0].key, "aA") && mgr__str_is(answer.kvs[0].value, "hello") && mgr__str_is(answer.kvs[0].session, "s-1"));
    CHECK_INT(answer.kvs[0].lock_index, 2);
    CHECK_INT(answer.kvs[0].create_index, 5);
    CHECK_INT(answer.kvs[0].modify_index, 6);
    CHECK(mgr__str_is(answer.kvs[1].key, "b") && answer.kvs[1].value.len == 0 && answer.kvs[1].session.len == 0);
    CHECK_INT(parse(200, "[]"), MGR__OUTCOME_OK);
    CHECK_INT(answer.kv_count, 0);
    CHECK_INT(parse(404, ""), MGR__OUTCOME_OK);
    CHECK_INT(answer.kv_count, 0);
    CHECK_INT(answer.index, 9);
}

TEST(malformed_answers_are_unknown)
{
    static const char *const bad[] = {
        "", "[", "{}", "[{}]", "[{\"Key\":\"a\"}]", "[{\"ModifyIndex\":1}]", "[{\"Key\":\"a\",\"ModifyIndex\":1}", "[{\"Key\":\"a\",\"ModifyIndex\":-1}]",
        "[{\"Key\":\"a\",\"ModifyIndex\":1,\"Value\":\"!\"}]", "[{\"Key\":\"a\",\"ModifyIndex\":1}]x", "[{\"Key\":1,\"ModifyIndex\":1}]", "<html>",
        "[{\"Key\":\"a\",\"ModifyIndex\":99999999999999999999}]", "[{},{},{},{},{},{},{},{},{},{},{},{},{},{}]",
    };
    request(MGR__ASK_WATCH);
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        CHECK_INT(parse(200, bad[i]), MGR__OUTCOME_UNKNOWN);
        CHECK(text_has("malformed: ") && text_has("at byte "));
        CHECK_INT(answer.kv_count, 0);
    }
}

TEST(transactions)
{
    request(MGR__ASK_TXN);
    CHECK_INT(parse(200, "{\"Results\":[{\"KV\":{\"LockIndex\":1,\"Key\":\"a\",\"Flags\":0,\"Value\":null,\"Session\":\"s\",\"CreateIndex\":3,\"ModifyIndex\":4}}],\"Errors\":null}"), MGR__OUTCOME_OK);
    CHECK_INT(answer.kv_count, 1);
    CHECK_INT(answer.kvs[0].modify_index, 4);
    CHECK_INT(parse(200, "{\"Results\":null,\"Errors\":[],\"Index\":0,\"LastContact\":0,\"KnownLeader\":true}"), MGR__OUTCOME_OK);
    CHECK_INT(parse(409, "{\"Results\":null,\"Errors\":[{\"OpIndex\":17,\"What\":\"held\"},{\"OpIndex\":3,\"What\":\"x\"},{\"OpIndex\":17,\"What\":\"y\"}]}"), MGR__OUTCOME_CONFLICT);
    CHECK_INT(answer.failed_count, 2);
    CHECK_INT(answer.failed[0], 17);
    CHECK_INT(answer.failed[1], 3);
    CHECK(mgr__str_is(answer.text, "held"));
    CHECK_INT(parse(409, "{\"Errors\":[{\"OpIndex\":0,\"What\":\"x\"},{\"OpIndex\":1,\"What\":\"Permission denied\"}]}"), MGR__OUTCOME_DENIED);
    CHECK(mgr__str_is(answer.text, "Permission denied"));
    CHECK_INT(parse(409, "{\"Errors\":[{\"OpIndex\":4000000000,\"What\":\"x\"}]}"), MGR__OUTCOME_CONFLICT);
    CHECK_INT(answer.failed_count, 0);
    CHECK_INT(parse(409, "{\"Results\":null,\"Errors\":null}"), MGR__OUTCOME_UNKNOWN);
    CHECK_INT(parse(200, "{\"Results\":null,\"Errors\":[{\"OpIndex\":0,\"What\":\"x\"}]}"), MGR__OUTCOME_UNKNOWN);
    CHECK_INT(parse(409, "{\"Errors\":[{\"OpIndex\":0,"), MGR__OUTCOME_UNKNOWN);
    CHECK_INT(answer.failed_count, 0);
}

TEST(sessions)
{
    request(MGR__ASK_SESSION_CREATE);
    CHECK_INT(parse(200, "{\"ID\":\"abc\"}"), MGR__OUTCOME_OK);
    CHECK(mgr__str_is(answer.session, "abc"));
    CHECK_INT(parse(200, "{\"ID\":\"\"}"), MGR__OUTCOME_UNKNOWN);
    CHECK_INT(parse(200, "{}"), MGR__OUTCOME_UNKNOWN);
    CHECK_INT(parse(500, "Missing check 'x' registration"), MGR__OUTCOME_UNKNOWN);
    CHECK(text_has("Missing check"));
    request(MGR__ASK_SESSION_RENEW)->session = mgr__str_of("abc");
    CHECK_INT(parse(200, "[{\"ID\":\"abc\",\"Name\":\"n\",\"TTL\":\"15s\",\"NodeChecks\":[\"x\"]}]"), MGR__OUTCOME_OK);
    CHECK_INT(parse(200, "[{\"ID\":\"abd\",\"Name\":\"n\"}]"), MGR__OUTCOME_UNKNOWN);
    CHECK_INT(parse(200, "[]"), MGR__OUTCOME_UNKNOWN);
    CHECK_INT(parse(404, "Session id 'abc' not found"), MGR__OUTCOME_NOT_FOUND);
    request(MGR__ASK_SESSION_LIST);
    CHECK_INT(parse(200, "[{\"ID\":\"abc\",\"Name\":\"n\",\"Node\":\"x\",\"CreateIndex\":4,\"ModifyIndex\":4}]"), MGR__OUTCOME_OK);
    CHECK(answer.kv_count == 1 && mgr__str_is(answer.kvs[0].key, "n") && mgr__str_is(answer.kvs[0].session, "abc"));
    request(MGR__ASK_SESSION_DESTROY);
    CHECK_INT(parse(200, "true"), MGR__OUTCOME_OK);
    CHECK_INT(parse(200, "false"), MGR__OUTCOME_UNKNOWN);
}

TEST(agent_answers_and_refusals)
{
    request(MGR__ASK_AGENT_SELF);
    CHECK_INT(parse(200, "{\"Config\":{\"Datacenter\":\"dc1\",\"NodeName\":\"n1\",\"Server\":true},\"DebugConfig\":{\"NodeName\":\"x\"}}"), MGR__OUTCOME_OK);
    CHECK(mgr__str_is(answer.node, "n1"));
    CHECK_INT(answer.agent.raft_election_ms, 0);
    CHECK_INT(parse(200, "{\"DebugConfig\":{\"ConsulRaftElectionTimeout\":\"1.5s\",\"SessionTTLMin\":\"1m30s\",\"GossipLANProbeInterval\":\"100ms\","
                         "\"GossipLANSuspicionMult\":4,\"Telemetry\":{}},\"Config\":{\"NodeName\":\"n1\",\"Server\":true}}"), MGR__OUTCOME_OK);
    CHECK(answer.agent.server && answer.agent.raft_election_ms == 1500 && answer.agent.session_ttl_min_ms == 90000);
    CHECK(answer.agent.probe_ms == 100 && answer.agent.suspicion_mult == 4);
    CHECK_INT(parse(200, "{\"DebugConfig\":{\"ConsulRaftElectionTimeout\":\"5s\",\"GossipLANProbeInterval\":\"2h0m0.5s\"},\"Config\":{\"NodeName\":\"n1\",\"Server\":false}}"),
              MGR__OUTCOME_OK);
    CHECK(!answer.agent.server && answer.agent.raft_election_ms == 0 && answer.agent.probe_ms == 7200500);
    static const char *const NONE[] = { "", "7", "\"\"", "\"7\"", "\"s\"", "\"100us\"", "\"1s", "{}", "null" };
    for (size_t i = 0; i < MGR__COUNT(NONE); i++) CHECK_INT(mgr__consul_duration_ms(mgr__str_of(NONE[i])), 0);
    CHECK_INT(mgr__consul_duration_ms(mgr__str_of("\"9999999h\"")), UINT32_MAX);
    CHECK_INT(parse(200, "{\"DebugConfig\":{\"ConsulRaftElectionTimeout\":5,\"SessionTTLMin\":{\"a\":[1]},\"GossipLANProbeInterval\":null,"
                         "\"GossipLANSuspicionMult\":\"4\"},\"Config\":{\"NodeName\":\"n1\",\"Server\":1}}"), MGR__OUTCOME_OK);
    CHECK(mgr__str_is(answer.node, "n1") && !answer.agent.server && !answer.agent.probe_ms && !answer.agent.suspicion_mult);
    CHECK_INT(parse(200, "{\"Member\":{}}"), MGR__OUTCOME_UNKNOWN);
    request(MGR__ASK_CHECK_LIST);
    CHECK_INT(parse(200, "{\"c:ttl\":{\"Node\":\"n\",\"CheckID\":\"c:ttl\",\"Name\":\"x\",\"Status\":\"passing\",\"Definition\":{}}}"), MGR__OUTCOME_OK);
    CHECK(answer.kv_count == 1 && mgr__str_is(answer.kvs[0].key, "c:ttl") && mgr__str_is(answer.kvs[0].value, "passing"));
    CHECK_INT(parse(200, "{}"), MGR__OUTCOME_OK);
    CHECK_INT(answer.kv_count, 0);
    request(MGR__ASK_SERVICE_REGISTER);
    CHECK_INT(parse(200, ""), MGR__OUTCOME_OK);
    CHECK_INT(parse(400, "Request decode failed\n"), MGR__OUTCOME_REJECTED);
    CHECK(mgr__str_is(answer.text, "Request decode failed"));
    CHECK_INT(parse(403, "Permission denied"), MGR__OUTCOME_DENIED);
    CHECK_INT(parse(429, "busy"), MGR__OUTCOME_UNSENT);
    CHECK_INT(parse(301, ""), MGR__OUTCOME_REJECTED);
    CHECK_INT(parse(500, "rpc error making call: EOF"), MGR__OUTCOME_UNKNOWN);
    request(MGR__ASK_CHECK_UPDATE);
    CHECK_INT(parse(500, "CheckID \"x\" does not have associated TTL"), MGR__OUTCOME_NOT_FOUND);
    CHECK_INT(parse(404, "Unknown check ID \"x\""), MGR__OUTCOME_NOT_FOUND);
}

static long allocations, allocation_to_fail;
static void *failing(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    (void)user; (void)old_bytes;
    if (!new_bytes) { free(ptr); return NULL; }
    return ++allocations == allocation_to_fail ? NULL : realloc(ptr, new_bytes);
}

TEST(out_of_memory_is_told)
{
    mgr__buf out, some;
    mgr__heap poor = heap;
    poor.with.resize = failing;
    request(MGR__ASK_TXN);
    op(MGR__LOCK, "k", "v", "s", 0);
    for (allocation_to_fail = 1; allocation_to_fail < 100; allocation_to_fail++) {
        allocations = 0;
        mgr__buf_init(&out, &poor, 10000);
        bool formatted = mgr__consul_format(&consul, &r, mgr__str_of("h"), &out);
        mgr__buf_free(&out);
        CHECK(formatted == (allocations < allocation_to_fail));
        if (formatted) break;
    }
    CHECK(allocation_to_fail > 2 && allocation_to_fail < 100);
    mgr__http_result result;
    memset(&result, 0, sizeof result);
    result.status = 200;
    result.body = mgr__str_of("[]");
    result.text = "";
    allocations = 0;
    allocation_to_fail = 1;
    mgr__buf_init(&some, &poor, 1);
    request(MGR__ASK_LIST);
    mgr__consul_parse(&r, &result, &some, &answer);
    CHECK_INT(answer.outcome, MGR__OUTCOME_UNKNOWN);
    CHECK(text_has("out of memory"));
    mgr__buf_clear(&some);
    mgr__consul_parse(&r, &result, &some, &answer);
    CHECK_INT(answer.outcome, MGR__OUTCOME_OK);
    mgr__buf_free(&some);
}

/* ---- a real agent ---- */

static mgr__loop loop;
static mgr__http http, watcher;
static mgr__address address;
static pid_t agent;
static char agent_dir[] = "/tmp/test_consul_XXXXXX";
static bool done, watched;
static mgr__request watch;
static mgr__buf watch_scratch;
static mgr__answer watch_answer;
static char kept[64];

static bool build(void *arg, mgr__str host, mgr__buf *out) { return mgr__consul_format(&consul, (const mgr__request *)arg, host, out); }

/* The answer is read before the body goes: what a test looks at later is in scratch, or copied. */
static char answered_body[1 << 16];
static void on_done(void *owner, mgr__http *h, const mgr__http_result *result)
{
    mgr__http_result copy = *result;
    (void)h;
    if (owner == &watcher) {
        mgr__consul_parse(&watch, result, &watch_scratch, &watch_answer);
        watched = true;
        return;
    }
    mgr__copy_text(answered_body, sizeof answered_body, result->body);
    copy.body = mgr__str_of(answered_body);
    mgr__consul_parse(&r, &copy, &scratch, &answer);
    done = true;
}

static void turn(void)
{
    mgr__loop_deadline(&loop, mgr__min64(mgr__http_deadline(&http), mgr__http_deadline(&watcher)));
    (void)mgr__loop_wait(&loop, 100);
    mgr__http_tick(&http, mgr__io_now(&io));
    mgr__http_tick(&watcher, mgr__io_now(&io));
}

static mgr__outcome ask(void)
{
    done = false;
    mgr__http_send(&http, build, &r, mgr__consul_repeat(&r), mgr__io_now(&io) + PATIENCE_MS);
    while (!done) turn();
    return answer.outcome;
}

static int free_port(void)
{
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) == 0) getsockname(fd, (struct sockaddr *)&at, &len);
    close(fd);
    return ntohs(at.sin_port);
}

/* False: this machine has no Consul. HTTP on a Unix socket: one port less to clash. */
static bool agent_start(void)
{
    char path[512] = "", http_at[96], server[32], serf[32];
    FILE *script = popen("sh tests/consul.sh 2>/dev/null || sh ../tests/consul.sh 2>/dev/null", "r");
    if (script) { if (!fgets(path, sizeof path, script)) path[0] = 0; pclose(script); }
    path[strcspn(path, "\n")] = 0;
    if (!path[0] || !mkdtemp(agent_dir)) return false;
    snprintf(http_at, sizeof http_at, "unix://%s/http", agent_dir);
    snprintf(server, sizeof server, "-server-port=%d", free_port());
    snprintf(serf, sizeof serf, "-serf-lan-port=%d", free_port());
    char hcl[160];
    snprintf(hcl, sizeof hcl, "addresses { http = \"%s\" } ports { grpc = -1 }", http_at);
    agent = fork();
    if (agent == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 1);
        dup2(null, 2);
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        execl(path, path, "agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-node=test-node", "-dns-port=-1",
              "-serf-wan-port=-1", server, serf, "-hcl", hcl, (char *)NULL);
        _exit(127);
    }
    mgr__buf error;
    size_t count;
    mgr__buf_init(&error, &heap, 1000);
    CHECK_INT(mgr__io_lookup(&io, http_at, &address, 1, &count, &error), MGR_OK);
    mgr__buf_free(&error);
    CHECK_INT(mgr__loop_open(&loop, &io, &heap), 0);
    mgr__http_init(&http, &io, &loop, &heap, &address, 1, on_done, &http);
    mgr__http_init(&watcher, &io, &loop, &heap, &address, 1, on_done, &watcher);
    return true;
}

static void agent_stop(void)
{
    char path[64];
    mgr__http_free(&http);
    mgr__http_free(&watcher);
    mgr__loop_close(&loop);
    kill(agent, SIGKILL);
    waitpid(agent, NULL, 0);
    snprintf(path, sizeof path, "%s/http", agent_dir);
    unlink(path);
    rmdir(agent_dir);
}

static void keep_session(void) { mgr__copy_text(kept, sizeof kept, answer.session); }

static uint64_t index_of(const char *key)
{
    for (size_t i = 0; i < answer.kv_count; i++) if (mgr__str_is(answer.kvs[i].key, key)) return answer.kvs[i].modify_index;
    return 0;
}

static void with_agent_sessions(void)
{
    int64_t end = mgr__io_now(&io) + 30000;
    do {
        request(MGR__ASK_SESSION_CREATE)->name = mgr__str_of("manager:t");
        r.session_ttl_ms = 15000;
        if (ask() != MGR__OUTCOME_OK) poll(NULL, 0, 50);
    } while (answer.outcome != MGR__OUTCOME_OK && mgr__io_now(&io) < end);
    CHECK_INT(answer.outcome, MGR__OUTCOME_OK);
    keep_session();
    request(MGR__ASK_SESSION_RENEW)->session = mgr__str_of(kept);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    request(MGR__ASK_SESSION_LIST);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    CHECK(answer.kv_count == 1 && mgr__str_is(answer.kvs[0].key, "manager:t") && mgr__str_is(answer.kvs[0].session, kept));
    request(MGR__ASK_SESSION_RENEW)->session = mgr__str_of("00000000-0000-0000-0000-000000000000");
    CHECK_INT(ask(), MGR__OUTCOME_NOT_FOUND);
}

static void with_agent_txns(void)
{
    request(MGR__ASK_LIST)->key = mgr__str_of("m/");
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    CHECK_INT(answer.kv_count, 0);
    CHECK(answer.index > 0);
    request(MGR__ASK_TXN);
    op(MGR__CAS, "m/a%20b", "one", "", 0);
    op(MGR__CHECK_ABSENT, "m/none", "", "", 0);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    uint64_t first = index_of("m/a%20b");
    CHECK(first > 0);
    CHECK_INT(ask(), MGR__OUTCOME_CONFLICT);
    CHECK(answer.failed_count == 1 && answer.failed[0] == 0);
    request(MGR__ASK_TXN);
    op(MGR__CHECK_INDEX, "m/a%20b", "", "", first);
    op(MGR__LOCK, "m/a%20b", "two", kept, 0);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    CHECK_INT(answer.kv_count, 2);
    CHECK_INT(answer.kvs[0].modify_index, first);       /* check-index shows the entry as it was */
    uint64_t locked = answer.kvs[1].modify_index;
    CHECK(locked > first && mgr__str_is(answer.kvs[1].session, kept));
    CHECK_INT(ask(), MGR__OUTCOME_CONFLICT);
    CHECK(answer.failed_count >= 1 && answer.failed[0] == 0);
    request(MGR__ASK_LIST)->key = mgr__str_of("m/");
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    CHECK(answer.kv_count == 1 && mgr__str_is(answer.kvs[0].key, "m/a%20b") && mgr__str_is(answer.kvs[0].value, "two") && mgr__str_is(answer.kvs[0].session, kept));
    request(MGR__ASK_TXN);          /* a confirmation: reads only */
    op(MGR__CHECK_SESSION, "m/a%20b", "", kept, 0);
    op(MGR__CHECK_INDEX, "m/a%20b", "", "", locked);
    op(MGR__GET, "m/a%20b", "", "", 0);
    op(MGR__GET_TREE, "m/", "", "", 0);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    CHECK(answer.kv_count > 0 && mgr__str_is(answer.kvs[answer.kv_count - 1].value, "two"));
    request(MGR__ASK_TXN);
    op(MGR__GET, "m/none", "", "", 0);
    CHECK_INT(ask(), MGR__OUTCOME_CONFLICT);
    request(MGR__ASK_TXN);
    op(MGR__CHECK_INDEX, "m/a%20b", "", "", locked);
    op(MGR__UNLOCK, "m/a%20b", "three", kept, 0);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    uint64_t released = answer.kvs[answer.kv_count - 1].modify_index;
    request(MGR__ASK_TXN);
    op(MGR__DELETE_CAS, "m/a%20b", "", "", released);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    CHECK_INT(answer.kv_count, 0);
    request(MGR__ASK_TXN);
    for (int i = 0; i < MGR__TXN_OPS_MAX; i++) op(MGR__SET, "m/many", "\xff\x00\x01", "", 0);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
}

static void watch_from(uint64_t index, uint32_t wait_ms)
{
    memset(&watch, 0, sizeof watch);
    watch.ask = MGR__ASK_WATCH;
    watch.key = mgr__str_of("m/");
    watch.index = index;
    watch.wait_ms = wait_ms;
    watched = false;
    mgr__http_send(&watcher, build, &watch, mgr__consul_repeat(&watch), mgr__io_now(&io) + 2 * PATIENCE_MS);
}

static void with_agent_watch(void)
{
    watch_from(0, 0);
    while (!watched) turn();
    CHECK_INT(watch_answer.outcome, MGR__OUTCOME_OK);
    uint64_t before = watch_answer.index;
    watch_from(before, PATIENCE_MS);
    turn();
    CHECK(!watched);
    int64_t start = mgr__io_now(&io);
    request(MGR__ASK_TXN);
    op(MGR__SET, "m/new", "x", "", 0);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    while (!watched) turn();
    CHECK(mgr__io_now(&io) - start < PATIENCE_MS / 2);
    CHECK(watch_answer.index > before);
    watch_from(watch_answer.index, 50);
    while (!watched) turn();        /* milliseconds are understood: it ends by itself */
    CHECK_INT(watch_answer.outcome, MGR__OUTCOME_OK);
}

static void with_agent_services(void)
{
    request(MGR__ASK_AGENT_SELF);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    CHECK(mgr__str_is(answer.node, "test-node"));
    request(MGR__ASK_SERVICE_REGISTER)->body =
        mgr__str_of("{\"ID\":\"s/1\",\"Name\":\"s\",\"Checks\":[{\"CheckID\":\"s/1:ttl\",\"TTL\":\"30s\",\"Status\":\"passing\"}]}");
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    request(MGR__ASK_CHECK_UPDATE)->name = mgr__str_of("s/1:ttl");
    r.status = 1;
    r.note = mgr__str_of("so so");
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    request(MGR__ASK_CHECK_LIST);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    CHECK(answer.kv_count == 1 && mgr__str_is(answer.kvs[0].key, "s/1:ttl") && mgr__str_is(answer.kvs[0].value, "warning"));
    request(MGR__ASK_CHECK_REGISTER)->body = mgr__str_of("{\"ID\":\"more\",\"Name\":\"more\",\"ServiceID\":\"s/1\",\"TTL\":\"30s\"}");
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    request(MGR__ASK_CHECK_DEREGISTER)->name = mgr__str_of("more");
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    request(MGR__ASK_CHECK_UPDATE)->name = mgr__str_of("more");
    CHECK_INT(ask(), MGR__OUTCOME_NOT_FOUND);
    request(MGR__ASK_SESSION_CREATE)->name = mgr__str_of("tied");
    r.session_ttl_ms = 15000;
    r.check_id = mgr__str_of("s/1:ttl");
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    keep_session();
    r.check_id = mgr__str_of("nowhere");
    CHECK_INT(ask(), MGR__OUTCOME_UNKNOWN);
    CHECK(text_has("nowhere"));
    request(MGR__ASK_SERVICE_DEREGISTER)->name = mgr__str_of("s/1");
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    request(MGR__ASK_SESSION_RENEW)->session = mgr__str_of(kept);
    CHECK_INT(ask(), MGR__OUTCOME_NOT_FOUND);
    request(MGR__ASK_SERVICE_DEREGISTER)->name = mgr__str_of("nowhere");
    CHECK(ask() == MGR__OUTCOME_OK || answer.outcome == MGR__OUTCOME_NOT_FOUND);    /* 1.8 does not mind */
    request(MGR__ASK_CATALOG_DEREGISTER)->name = mgr__str_of("s/1");
    r.node = mgr__str_of("test-node");
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    request(MGR__ASK_SESSION_DESTROY)->session = mgr__str_of(kept);
    CHECK_INT(ask(), MGR__OUTCOME_OK);
    request(MGR__ASK_SERVICE_REGISTER)->body = mgr__str_of("{\"Nonsense\":1}");
    CHECK_INT(ask(), MGR__OUTCOME_REJECTED);
    request(MGR__ASK_AGENT_JOIN)->name = mgr__str_of("127.0.0.1:1");
    CHECK_INT(ask(), MGR__OUTCOME_UNKNOWN);
}

static void with_agent_refused_by_size(void)
{
    static char large[400000];
    memset(large, 'x', sizeof large - 1);
    request(MGR__ASK_TXN);
    op(MGR__SET, "m/large", large, "", 0);
    CHECK_INT(ask(), MGR__OUTCOME_REJECTED);
    request(MGR__ASK_AGENT_SELF);           /* and on it goes */
    CHECK_INT(ask(), MGR__OUTCOME_OK);
}

TEST(a_real_agent)
{
    if (!agent_start()) SKIP("no consul on this machine (tests/consul.sh finds none)");
    with_agent_sessions();
    with_agent_txns();
    with_agent_watch();
    with_agent_services();
    with_agent_refused_by_size();
    agent_stop();
}

int main(int argc, char **argv)
{
    io = mgr__io_real();
    heap = mgr__heap_make(NULL);
    mgr__buf_init(&scratch, &heap, 1 << 20);
    mgr__buf_init(&watch_scratch, &heap, 1 << 20);
    mgr__buf_init(&bytes, &heap, 1 << 20);
    consul.token = mgr__str_of("");
    RUN(requests);
    RUN(the_token_is_a_field_and_nothing_else);
    RUN(kv_answers);
    RUN(malformed_answers_are_unknown);
    RUN(transactions);
    RUN(sessions);
    RUN(agent_answers_and_refusals);
    RUN(out_of_memory_is_told);
    RUN(a_real_agent);
    mgr__buf_free(&scratch);
    mgr__buf_free(&watch_scratch);
    mgr__buf_free(&bytes);
    return test__end();
}
