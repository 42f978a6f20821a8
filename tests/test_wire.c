/* [wire]: requests as bytes, and answers whole, byte by byte and cut at every
 * position, always up against a page that cannot be read. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "test.h"

#include <sys/mman.h>

static mgr__heap heap;

enum { BODY_MAX = 64 };

/* A copy whose last byte is the last before a page that cannot be read. */
static mgr__str guarded(mgr__str s)
{
    enum { BYTES = 1 << 18 };
    static char *page;
    if (!page) {
        page = (char *)mmap(NULL, BYTES + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED || mprotect(page + BYTES, 65536, PROT_NONE) != 0) { perror("guard page"); exit(1); }
    }
    if (s.len > BYTES) { printf("text too long for the guard page\n"); exit(1); }
    char *at = page + BYTES - s.len;
    if (s.len) memcpy(at, s.at, s.len);
    return mgr__str_make(at, s.len);
}

/* ---- requests ---- */

static const char *request(mgr__buf *out, const char *method, mgr__str target, const char *host, mgr__str token, const char *body)
{
    mgr__buf_init(out, &heap, 4096);
    mgr__wire_request(out, method, target, mgr__str_of(host), token, mgr__str_of(body));
    return mgr__buf_cstr(out);
}

TEST(request_bytes)
{
    mgr__buf out;
    CHECK_STR(request(&out, "GET", mgr__str_of("/v1/kv/a?recurse"), "127.0.0.1:8500", mgr__str_of(""), ""),
        "GET /v1/kv/a?recurse HTTP/1.1\r\nHost: 127.0.0.1:8500\r\nUser-Agent: manager.h/" MANAGER_VERSION "\r\nAccept: application/json\r\n\r\n");
    mgr__buf_free(&out);
    CHECK_STR(request(&out, "PUT", mgr__str_of("/"), "", mgr__str_of("s3 cret"), "{}"),
        "PUT / HTTP/1.1\r\nHost: \r\nUser-Agent: manager.h/" MANAGER_VERSION "\r\nAccept: application/json\r\n"
        "X-Consul-Token: s3 cret\r\nContent-Length: 2\r\n\r\n{}");
    mgr__buf_free(&out);
    CHECK(strstr(request(&out, "PUT", mgr__str_of("/"), "h", mgr__str_of(""), ""), "\r\nContent-Length: 0\r\n\r\n"));
    mgr__buf_free(&out);
    CHECK(strstr(request(&out, "POST", mgr__str_of("/"), "h", mgr__str_of(""), ""), "\r\nContent-Length: 0\r\n\r\n"));
    mgr__buf_free(&out);
    CHECK(!strstr(request(&out, "DELETE", mgr__str_of("/"), "h", mgr__str_of(""), ""), "Content-Length"));
    mgr__buf_free(&out);
}

TEST(request_cannot_become_two)
{
    static const char bad[][4] = { "a\rb", "a\nb", "a\0b", "a\x1f" "b", "a\x7f" "b" };
    for (size_t i = 0; i < MGR__COUNT(bad); i++)
        for (int where = 0; where < 3; where++) {
            mgr__buf out;
            mgr__str evil = mgr__str_make(bad[i], 3), fine = mgr__str_of("/a");
            char target[8] = "/";
            memcpy(target + 1, bad[i], 3);
            mgr__buf_init(&out, &heap, 4096);
            mgr__wire_request(&out, "GET", where == 0 ? mgr__str_make(target, 4) : fine, where == 1 ? evil : fine, where == 2 ? evil : fine, fine);
            CHECK(out.failed && out.len == 0);
            mgr__buf_free(&out);
        }
    mgr__buf out;
    request(&out, "GET", mgr__str_of("/a b"), "h", mgr__str_of(""), "");
    CHECK(out.failed);
    mgr__buf_free(&out);
    request(&out, "GET", mgr__str_of("/a"), "h h", mgr__str_of(""), "");
    CHECK(out.failed);
    mgr__buf_free(&out);
    request(&out, "GET", mgr__str_of(""), "h", mgr__str_of(""), "");
    CHECK(out.failed);
    mgr__buf_free(&out);
}

TEST(quoting)
{
    mgr__buf out;
    mgr__buf_init(&out, &heap, 4096);
    mgr__wire_quote(&out, mgr__str_of("manager/a%2Fb/AZaz09-._~ +?#&=\xc3\xa9\x7f"));
    CHECK_STR(mgr__buf_cstr(&out), "manager/a%252Fb/AZaz09-._~%20%2B%3F%23%26%3D%C3%A9%7F");
    mgr__buf_clear(&out);
    mgr__wire_quote_segment(&out, mgr__str_make("a/b.\0", 5));
    CHECK_STR(mgr__buf_cstr(&out), "a%2Fb.%00");
    mgr__buf_free(&out);
}

/* ---- answers ---- */

typedef enum ending { OPEN, HEAD, CLOSED, CLOSED_HEAD } ending;    /* was it a HEAD request; does the peer close after the bytes */

typedef struct outcome {
    mgr__wire_state state;
    int         status;
    bool        close, has_index, no_leader;
    uint64_t    index;
    size_t      used;
    char        body[BODY_MAX + 1];
    const char *error;
} outcome;

/* Feeds bytes cut before `cut` and from there in pieces of `piece` bytes. */
static outcome play(mgr__str bytes, ending end, size_t cut, size_t piece)
{
    static mgr__wire w;
    outcome o;
    mgr__buf body;
    memset(&o, 0, sizeof o);
    memset(&w, 0xa5, sizeof w);         /* nothing may rest on what was there before */
    mgr__buf_init(&body, &heap, BODY_MAX);
    mgr__wire_init(&w, end == HEAD || end == CLOSED_HEAD);
    for (size_t at = 0; at < bytes.len && o.state == MGR__WIRE_MORE; ) {
        size_t len = at < cut ? cut - at : piece, used;
        if (len > bytes.len - at) len = bytes.len - at;
        o.state = mgr__wire_feed(&w, guarded(mgr__str_make(bytes.at + at, len)), &used, &body);
        CHECK(used <= len && (used == len || o.state != MGR__WIRE_MORE));
        o.used += used;
        at += len;
    }
    if (end >= CLOSED) o.state = mgr__wire_eof(&w);
    o.error = w.error;
    CHECK((o.state == MGR__WIRE_BAD) == (w.error != NULL));
    if (o.state == MGR__WIRE_DONE) {
        o.status = w.status; o.close = w.close; o.has_index = w.has_index; o.index = w.consul_index; o.no_leader = w.known_leader_false;
        memcpy(o.body, mgr__buf_cstr(&body), body.len);
    }
    size_t used = 99;
    if (o.state != MGR__WIRE_MORE) {
        CHECK(mgr__wire_feed(&w, guarded(mgr__str_of("HTTP/1.1 200 OK\r\n")), &used, &body) == o.state && used == 0);
        if (end < CLOSED) CHECK(mgr__wire_eof(&w) == o.state);
    }
    mgr__buf_free(&body);
    return o;
}

static bool same(const outcome *a, const outcome *b)
{
    return a->state == b->state && a->status == b->status && a->close == b->close && a->has_index == b->has_index && a->index == b->index
        && a->no_leader == b->no_leader && a->used == b->used && strcmp(a->body, b->body) == 0
        && (a->error == b->error || (a->error && b->error && strcmp(a->error, b->error) == 0));
}

/* Whole; byte by byte; cut in two anywhere; cut in two with the rest in bytes. */
static outcome play_all(mgr__str bytes, ending end)
{
    outcome whole = play(bytes, end, bytes.len, 1), o = play(bytes, end, 0, 1);
    if (!same(&whole, &o)) { printf("byte by byte is different:\n%.*s\n", (int)bytes.len, bytes.at); test__bad = true; }
    for (size_t cut = 1; cut < bytes.len && bytes.len < 2000; cut++) {
        o = play(bytes, end, cut, bytes.len);
        if (same(&whole, &o)) o = play(bytes, end, cut, 3);
        if (same(&whole, &o)) continue;
        printf("cut at %zu is different:\n%.*s\n", cut, (int)bytes.len, bytes.at);
        test__bad = true;
    }
    return whole;
}

typedef struct good { const char *bytes; ending end; int status; const char *body; bool close; size_t left; } good;

#define OK "HTTP/1.1 200 OK\r\n"
#define CHUNKED OK "Transfer-Encoding: chunked\r\n\r\n"

static const good goods[] = {
    { OK "Content-Length: 5\r\n\r\nhello", OPEN, 200, "hello", false, 0 },
    { OK "Content-Length: 5\r\n\r\nhelloHTTP", OPEN, 200, "hello", false, 4 },
    { OK "Content-Length: 5\r\n\r\nhello", CLOSED, 200, "hello", true, 0 },
    { OK "Content-Length:5\r\n\r\nhello", OPEN, 200, "hello", false, 0 },
    { OK "content-LENGTH: \t 5\t \r\n\r\nhello", OPEN, 200, "hello", false, 0 },
    { OK "Content-Length: 0\r\n\r\n", OPEN, 200, "", false, 0 },
    { OK "Content-Length: 0005\r\n\r\nhello", OPEN, 200, "hello", false, 0 },
    { OK "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", OPEN, 200, "hello", false, 0 },
    { OK "Content-Length: 5\r\n\r\n\r\n\x01\x7f\n", OPEN, 200, "\r\n\x01\x7f\n", false, 0 },
    { OK "Content-Length: 5\r\nConnection: close\r\n\r\nhello", OPEN, 200, "hello", true, 0 },
    { OK "Content-Length: 5\r\nConnection: a, CLOSE ,b\r\n\r\nhello", OPEN, 200, "hello", true, 0 },
    { OK "Content-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", OPEN, 200, "hello", false, 0 },
    { OK "Content-Length: 5\r\nConnection: closed,, x\r\nConnection:\r\n\r\nhello", OPEN, 200, "hello", false, 0 },
    { OK "Content-Length: 5\r\nConnection: keep-alive\r\nConnection: close\r\n\r\nhello", OPEN, 200, "hello", true, 0 },
    { "HTTP/1.1 404 Not Found\r\nX: \xc3\xa9\ty\r\nEmpty:\r\nContent-Length: 1\r\n\r\nx", OPEN, 404, "x", false, 0 },
    { "HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n", OPEN, 500, "", false, 0 },
    { "HTTP/1.1 500\r\nContent-Length: 0\r\n\r\n", OPEN, 500, "", false, 0 },
    { "HTTP/1.7 299 a  b\r\nContent-Length: 0\r\n\r\n", OPEN, 299, "", false, 0 },
    { "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", OPEN, 200, "ok", true, 0 },
    { "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok", OPEN, 200, "ok", false, 0 },
    { "HTTP/1.0 200 OK\r\n\r\nto the end", CLOSED, 200, "to the end", true, 0 },
    { OK "\r\nto the end", CLOSED, 200, "to the end", true, 0 },
    { OK "\r\n", CLOSED, 200, "", true, 0 },
    { OK "\r\n0123456789012345678901234567890123456789012345678901234567890123", CLOSED, 200, "0123456789012345678901234567890123456789012345678901234567890123", true, 0 },
    { OK "Content-Length: 64\r\n\r\n0123456789012345678901234567890123456789012345678901234567890123", OPEN, 200, "0123456789012345678901234567890123456789012345678901234567890123", false, 0 },
    { "HTTP/1.1 204 No Content\r\n\r\n", OPEN, 204, "", false, 0 },
    { "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc", OPEN, 204, "", false, 3 },
    { "HTTP/1.1 304 Not Modified\r\nContent-Length: 9999\r\n\r\n", OPEN, 304, "", false, 0 },
    { OK "Content-Length: 9999\r\n\r\n", HEAD, 200, "", false, 0 },
    { OK "Transfer-Encoding: chunked\r\n\r\n", HEAD, 200, "", false, 0 },
    { OK "\r\n", HEAD, 200, "", false, 0 },
    { OK "\r\n", CLOSED_HEAD, 200, "", true, 0 },
    { "HTTP/1.1 100 Continue\r\n\r\n" OK "Content-Length: 2\r\n\r\nok", OPEN, 200, "ok", false, 0 },
    { "HTTP/1.1 100 Continue\r\nConnection: close\r\nContent-Length: 7\r\nX-Consul-Index: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n"
      OK "Content-Length: 2\r\n\r\nok", OPEN, 200, "ok", false, 0 },
    { CHUNKED "0\r\n\r\n", OPEN, 200, "", false, 0 },
    { CHUNKED "5\r\nhello\r\n0\r\n\r\n", OPEN, 200, "hello", false, 0 },
    { CHUNKED "5\r\nhello\r\n00\r\n\r\nx", OPEN, 200, "hello", false, 1 },
    { CHUNKED "005\r\nhello\r\nA\r\n0123456789\r\nb\r\n0123456789a\r\n0\r\n\r\n", OPEN, 200, "hello01234567890123456789a", false, 0 },
    { CHUNKED "5;a=b;c=\"d e\"\r\nhello\r\n1 \t;x\r\n!\r\n0;\r\n\r\n", OPEN, 200, "hello!", false, 0 },
    { CHUNKED "2\r\n\r\n\r\n0\r\nA: b\r\nContent-Length: 77\r\nX-Consul-Index: x\r\n\r\n", OPEN, 200, "\r\n", false, 0 },
    { OK "TRANSFER-encoding: Chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\n\r\n", OPEN, 200, "a", true, 0 },
};

TEST(accepted)
{
    for (size_t i = 0; i < MGR__COUNT(goods); i++) {
        const good *g = &goods[i];
        mgr__str bytes = mgr__str_of(g->bytes);
        outcome o = play_all(bytes, g->end);
        bool fits = o.state == MGR__WIRE_DONE && o.status == g->status && strcmp(o.body, g->body) == 0 && o.close == g->close && o.used == bytes.len - g->left;
        if (fits) continue;
        printf("state %d status %d close %d used %zu of %zu body \"%s\" error %s:\n%s\n", (int)o.state, o.status, o.close, o.used, bytes.len,
               o.body, o.error ? o.error : "none", g->bytes);
        test__bad = true;
    }
}

typedef struct bad { const char *bytes; const char *error; } bad;

static const bad bads[] = {
    { "\r\n" OK "\r\n", "status line" }, { " HTTP/1.1 200 OK\r\n\r\n", "status line" }, { "HTTP/2 200 OK\r\n\r\n", "status line" },
    { "HTTP/2.0 200 OK\r\n\r\n", "status line" }, { "http/1.1 200 OK\r\n\r\n", "status line" }, { "HTTP/1.1  200 OK\r\n\r\n", "status line" },
    { "HTTP/1.1 20 OK\r\n\r\n", "status line" }, { "HTTP/1.1 2000 OK\r\n\r\n", "status line" }, { "HTTP/1.1 2x0 OK\r\n\r\n", "status line" },
    { "HTTP/1.1 099 OK\r\n\r\n", "status line" }, { "HTTP/1.1 600 OK\r\n\r\n", "status line" }, { "HTTP/1.x 200 OK\r\n\r\n", "status line" },
    { "HTTP/1.1\r\n\r\n", "status line" }, { "HTTP/1.10200 OK\r\n\r\n", "status line" }, { "HTTP/1.1 +20 OK\r\n\r\n", "status line" }, { "HTTP/1.1 200OK\r\n\r\n", "status line" },
    { "HTTP/1.1 101 Switching Protocols\r\n\r\n", "another protocol" },
    { "HTTP/1.1 200 OK\n\r\n", "CR LF" }, { OK "A: b\n\r\n", "CR LF" }, { OK "A: b\r\n\n", "CR LF" }, { OK "A: b\rc\r\n\r\n", "CR LF" },
    { OK "A: b\r\r\n\r\n", "CR LF" }, { OK "A: b\x01\r\n\r\n", "control" }, { OK "A: b\x7f\r\n\r\n", "control" }, { "HTTP/1.1 200 O\x1bK\r\n\r\n", "control" },
    { OK " A: b\r\n\r\n", "folded" }, { OK "A: b\r\n c\r\n\r\n", "folded" }, { OK "A: b\r\n\tc\r\n\r\n", "folded" }, { OK " \r\n\r\n", "folded" },
    { OK "A : b\r\n\r\n", "malformed header" }, { OK "A\t: b\r\n\r\n", "malformed header" }, { OK ": b\r\n\r\n", "malformed header" },
    { OK "A\r\n\r\n", "malformed header" }, { OK "A b: c\r\n\r\n", "malformed header" }, { OK "A\xc3\xa9: c\r\n\r\n", "malformed header" },
    { OK "(A): c\r\n\r\n", "malformed header" }, { OK "Content-Length : 5\r\n\r\n", "malformed header" },
    { OK "Content-Length: \r\n\r\n", "Content-Length" }, { OK "Content-Length: -1\r\n\r\n", "Content-Length" }, { OK "Content-Length: +1\r\n\r\n", "Content-Length" },
    { OK "Content-Length: 0x1\r\n\r\n", "Content-Length" }, { OK "Content-Length: 1a\r\n\r\n", "Content-Length" }, { OK "Content-Length: 1 2\r\n\r\n", "Content-Length" },
    { OK "Content-Length: 5, 5\r\n\r\n", "Content-Length" }, { OK "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "Content-Length" },
    { OK "Content-Length: 0\r\ncontent-length: 1\r\n\r\n", "Content-Length" }, { OK "Content-Length: 18446744073709551616\r\n\r\n", "Content-Length" },
    { OK "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "both" }, { OK "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "both" },
    { "HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "both" },
    { OK "Transfer-Encoding: gzip\r\n\r\n", "transfer coding" }, { OK "Transfer-Encoding: gzip, chunked\r\n\r\n", "transfer coding" },
    { OK "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer coding" }, { OK "Transfer-Encoding: \r\n\r\n", "transfer coding" },
    { OK "Transfer-Encoding: xchunked\r\n\r\n", "transfer coding" }, { OK "Transfer-Encoding: chunked;q=1\r\n\r\n", "transfer coding" },
    { "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0" },
    { OK "Content-Length: 65\r\n\r\n", "over its limit" }, { OK "Content-Length: 18446744073709551615\r\n\r\n", "over its limit" },
    { OK "\r\n01234567890123456789012345678901234567890123456789012345678901234", "over its limit" },
    { CHUNKED "41\r\n", "over its limit" }, { CHUNKED "ffffffffffffffff\r\n", "over its limit" },
    { CHUNKED "20\r\n01234567890123456789012345678901\r\n21\r\n", "over its limit" },
    { CHUNKED "10000000000000000\r\n", "chunk size" }, { CHUNKED "\r\n", "chunk size" }, { CHUNKED ";a\r\n", "chunk size" }, { CHUNKED " 5\r\n", "chunk size" },
    { CHUNKED "5 \r\n", "chunk size" }, { CHUNKED "5 5\r\n", "chunk size" }, { CHUNKED "0x5\r\n", "chunk size" }, { CHUNKED "-1\r\n", "chunk size" },
    { CHUNKED "g\r\n", "chunk size" }, { CHUNKED "5\n", "CR LF" }, { CHUNKED "5;a\x01\r\n", "control" },
    { CHUNKED "1\r\nab\r\n", "longer than its size" }, { CHUNKED "1\r\nab", "longer than its size" }, { CHUNKED "1\r\na\n", "longer than its size" }, { CHUNKED "1\r\na\rb", "CR LF" },
    { CHUNKED "0\r\nA\r\n", "trailer" }, { CHUNKED "0\r\n A: b\r\n", "trailer" }, { CHUNKED "0\r\nA : b\r\n", "trailer" }, { CHUNKED "0\r\nA: b\n", "CR LF" },
    { OK "X-Consul-Index: x\r\n\r\n", "X-Consul-Index" }, { OK "X-Consul-Index: 18446744073709551616\r\n\r\n", "X-Consul-Index" },
    { OK "X-Consul-Index: -1\r\n\r\n", "X-Consul-Index" }, { OK "X-Consul-Index: 1\r\nX-Consul-Index: 2\r\n\r\n", "X-Consul-Index" },
    { "HTTP/1.1 100 Continue\r\n\r\n\r\n", "status line" },
};

TEST(refused)
{
    for (size_t i = 0; i < MGR__COUNT(bads); i++) {
        outcome o = play_all(mgr__str_of(bads[i].bytes), OPEN);
        if (o.state == MGR__WIRE_BAD && strstr(o.error, bads[i].error)) continue;
        printf("state %d error %s, wanted %s:\n%s\n", (int)o.state, o.error ? o.error : "none", bads[i].error, bads[i].bytes);
        test__bad = true;
    }
    outcome o = play_all(mgr__str_make(OK "A: b\0c\r\n\r\n", sizeof OK + 9), OPEN);
    CHECK(o.state == MGR__WIRE_BAD && strstr(o.error, "control"));
}

/* Cut off anywhere, an answer is unfinished, and broken once the peer closes. */
TEST(cut_off)
{
    static const char *const texts[] = {
        OK "Content-Length: 5\r\nX-Consul-Index: 7\r\n\r\nhello", CHUNKED "5;x\r\nhello\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n" };
    for (size_t i = 0; i < MGR__COUNT(texts); i++)
        for (size_t len = 0; len < strlen(texts[i]); len++) {
            outcome o = play(mgr__str_make(texts[i], len), OPEN, len, 1);
            CHECK(o.state == MGR__WIRE_MORE && o.used == len);
            o = play(mgr__str_make(texts[i], len), CLOSED, len, 1);
            CHECK(o.state == MGR__WIRE_BAD);
            CHECK_STR(o.error, len ? "the connection closed in the middle of an answer" : "the connection closed without an answer");
        }
}

TEST(consul_fields)
{
    outcome o = play_all(mgr__str_of(OK "X-Consul-Index: 18446744073709551615\r\nX-Consul-Knownleader: true\r\nContent-Length: 0\r\n\r\n"), OPEN);
    CHECK(o.has_index && o.index == UINT64_MAX && !o.no_leader);
    o = play_all(mgr__str_of(OK "x-consul-INDEX:42\r\nX-Consul-Index: 42\r\nx-consul-knownLEADER: FALSE\r\nContent-Length: 0\r\n\r\n"), OPEN);
    CHECK(o.has_index && o.index == 42 && o.no_leader);
    o = play_all(mgr__str_of("HTTP/1.1 103 x\r\nX-Consul-Index: 1\r\nX-Consul-KnownLeader: false\r\n\r\n" OK "X-Consul-LastContact: 0\r\nContent-Length: 0\r\n\r\n"), OPEN);
    CHECK(o.state == MGR__WIRE_DONE && !o.has_index && o.index == 0 && !o.no_leader);
}

/* Exactly at a limit is fine, a byte more is not. */
static void limit(const char *before, size_t fill, const char *after, const char *error)
{
    mgr__buf text;
    mgr__buf_init(&text, &heap, 1u << 20);
    mgr__buf_text(&text, before);
    for (size_t i = 0; i < fill; i++) mgr__buf_char(&text, 'x');
    mgr__buf_text(&text, after);
    outcome o = play_all(mgr__buf_view(&text), OPEN);
    CHECK_INT(o.state, error ? MGR__WIRE_BAD : MGR__WIRE_DONE);
    if (error && o.error) CHECK_STR(o.error, error);
    mgr__buf_free(&text);
}

TEST(limits)
{
    const char *tail = "\r\nContent-Length: 0\r\n\r\n", *head = "the head is longer than MGR_HEAD_BYTES_MAX";
    size_t room = MGR_HEAD_BYTES_MAX - strlen(OK "A:") - strlen(tail);
    limit(OK "A:", room, tail, NULL);
    limit(OK "A:", room + 1, tail, head);
    limit(OK "A:", 100000, "", head);
    limit("HTTP/1.1 200 ", 100000, "", head);
    limit("", 100000, "", head);
    const char *ends = "\r\n0\r\n\r\n", *line = "a chunk's size line is too long";
    limit(CHUNKED "1;", MGR__WIRE_CHUNK_LINE_BYTES_MAX - 4, "\r\na\r\n0\r\n\r\n", NULL);
    limit(CHUNKED "1;", MGR__WIRE_CHUNK_LINE_BYTES_MAX - 3, "\r\na\r\n0\r\n\r\n", line);
    limit(CHUNKED "0", 5000, ends, line);
    limit(CHUNKED "0\r\nA:", MGR__WIRE_TRAILER_BYTES_MAX - 6, "\r\n\r\n", NULL);
    limit(CHUNKED "0\r\nA:", MGR__WIRE_TRAILER_BYTES_MAX - 5, "\r\n\r\n", "the trailer is too long");

    mgr__buf text;
    mgr__buf_init(&text, &heap, 1u << 20);
    for (size_t i = 0; i < MGR_HEAD_BYTES_MAX / 20; i++) mgr__buf_text(&text, "HTTP/1.1 100 x\r\n\r\n");
    mgr__buf_text(&text, "HTTP/1.1 100 and one too many, and so on and on and on, until it is more than the head may have\r\n\r\n");
    for (size_t i = 0; i < 100; i++) mgr__buf_text(&text, "HTTP/1.1 100 x\r\n\r\n");
    outcome o = play_all(mgr__buf_view(&text), OPEN);
    CHECK_INT(o.state, MGR__WIRE_BAD);
    if (o.error) CHECK_STR(o.error, head);
    mgr__buf_free(&text);
}

static void *never(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    (void)user; (void)old_bytes; (void)new_bytes;
    free(ptr);
    return NULL;
}

TEST(out_of_memory)
{
    static mgr__wire w;
    mgr_allocator allocator = { never, NULL };
    mgr__heap poor = mgr__heap_make(&allocator);
    mgr__buf body;
    size_t used;
    mgr__buf_init(&body, &poor, BODY_MAX);
    mgr__wire_init(&w, false);
    CHECK(mgr__wire_feed(&w, mgr__str_of(OK "Content-Length: 0\r\n\r\n"), &used, &body) == MGR__WIRE_DONE);
    mgr__wire_init(&w, false);
    CHECK(mgr__wire_feed(&w, mgr__str_of(OK "Content-Length: 1\r\n\r\nx"), &used, &body) == MGR__WIRE_BAD && w.close);
    CHECK_STR(w.error, "out of memory for the body");
    mgr__buf_free(&body);
}

int main(int argc, char **argv)
{
    heap = mgr__heap_make(NULL);
    RUN(request_bytes);
    RUN(request_cannot_become_two);
    RUN(quoting);
    RUN(accepted);
    RUN(refused);
    RUN(cut_off);
    RUN(consul_fields);
    RUN(limits);
    RUN(out_of_memory);
    return test__end();
}
