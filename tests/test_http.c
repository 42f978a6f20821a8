/* [http] against a server that is part of the test: both ends are moved by hand, so
 * that every order of events is the test's choice and nothing depends on speed. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "test.h"

enum { PATIENCE_MS = 10000 };       /* a safety bound, never reached in a good run */

static mgr__io io;
static mgr__heap heap;
static mgr__loop loop;
static mgr__http http;
static mgr__address addresses[3];
static int listeners[3];

static const char *target = "/v1/x";
static size_t body_bytes;
static int built, done;
static bool inside_send;
static mgr__http_result result;
static char body[4096], why[MGR__HTTP_TEXT_BYTES];
static int again;                   /* requests to be sent from inside on_done */

static bool build(void *arg, mgr__str host, mgr__buf *out)
{
    mgr__buf large;
    mgr__buf_init(&large, out->heap, MGR_BODY_BYTES_MAX);
    if (body_bytes && mgr__buf_reserve(&large, body_bytes)) {
        memset(large.at, 'x', body_bytes);
        large.len = body_bytes;
    }
    built++;
    CHECK(arg == &built);
    if (large.failed) out->failed = true;
    else mgr__wire_request(out, body_bytes ? "PUT" : "GET", mgr__str_of(target), host, mgr__str_of(""), mgr__buf_view(&large));
    mgr__buf_free(&large);
    return !out->failed;
}

static void ask(mgr__http_repeat repeat, int within_ms)
{
    done = built = 0;
    inside_send = true;
    mgr__http_send(&http, build, &built, repeat, mgr__io_now(&io) + within_ms);
    inside_send = false;
    CHECK_INT(done, 0);
}

static void on_done(void *owner, mgr__http *h, const mgr__http_result *r)
{
    CHECK(owner == &done && h == &http && !inside_send && !mgr__http_busy(h));
    result = *r;
    mgr__copy_text(body, sizeof body, r->body);
    mgr__copy_text(why, sizeof why, mgr__str_of(r->text));
    if (again) {
        again--;
        mgr__http_send(h, build, &built, MGR__HTTP_ONCE, mgr__io_now(&io) + PATIENCE_MS);
        CHECK(strncmp(r->body.at, body, r->body.len) == 0);
    }
    done++;
}

static void turn(void)
{
    mgr__loop_deadline(&loop, mgr__http_deadline(&http));
    (void)mgr__loop_wait(&loop, 1);
    mgr__http_tick(&http, mgr__io_now(&io));
}

static void turn_until_done(void)
{
    int64_t end = mgr__io_now(&io) + PATIENCE_MS;
    while (!done && mgr__io_now(&io) < end) turn();
    CHECK_INT(done, 1);
}

/* ---- the other end ---- */

static int listen_tcp(mgr__address *address, int backlog)
{
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0 && listen(fd, backlog) == 0);
    getsockname(fd, (struct sockaddr *)&at, &len);
    memset(address, 0, sizeof *address);
    memcpy(&address->at, &at, address->len = len);
    snprintf(address->text, sizeof address->text, "127.0.0.1:%d", ntohs(at.sin_port));
    memcpy(address->host_header, address->text, 32);
    return fd;
}

static void begin(size_t address_count)
{
    again = 0;
    body_bytes = 0;
    for (size_t i = 0; i < address_count; i++) listeners[i] = listen_tcp(&addresses[i], 8);
    CHECK_INT(mgr__loop_open(&loop, &io, &heap), 0);
    mgr__http_init(&http, &io, &loop, &heap, addresses, address_count, on_done, &done);
}

static void end(void)
{
    mgr__http_free(&http);
    mgr__loop_close(&loop);
    for (size_t i = 0; i < MGR__COUNT(listeners); i++) { if (listeners[i] >= 0) close(listeners[i]); listeners[i] = -1; }
}

/* The next connection to come; the client is moved meanwhile. */
static int take(int i)
{
    int64_t end_ms = mgr__io_now(&io) + PATIENCE_MS;
    for (;;) {
        int fd = accept(listeners[i], NULL, NULL);
        if (fd >= 0) {
            int one = 1;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);     /* an answer in pieces must not wait for ACKs */
            fcntl(fd, F_SETFL, O_NONBLOCK);
            return fd;
        }
        if (mgr__io_now(&io) > end_ms) break;
        turn();
    }
    printf("no connection came to listener %d\n", i);
    CHECK(false);
    return -1;
}

/* Read a request's head; true if it came. */
static bool hear(int fd, const char *with)
{
    char some[65536];
    size_t have = 0;
    int64_t end_ms = mgr__io_now(&io) + PATIENCE_MS;
    while (mgr__io_now(&io) < end_ms) {
        ssize_t got = recv(fd, some + have, sizeof some - 1 - have, 0);
        if (got == 0) break;
        if (got < 0) { turn(); continue; }
        some[have += (size_t)got] = 0;
        if (strstr(some, "\r\n\r\n")) return strstr(some, with) != NULL;
    }
    return false;
}

static void say(int fd, const char *text)
{
    size_t len = strlen(text);
    CHECK(send(fd, text, len, MSG_NOSIGNAL) == (ssize_t)len);
}

static bool gone(int fd)
{
    char byte;
    int64_t end_ms = mgr__io_now(&io) + PATIENCE_MS;
    while (mgr__io_now(&io) < end_ms) {
        ssize_t got = recv(fd, &byte, 1, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN)) return true;
        turn();
    }
    return false;
}

#define OK_HEAD "HTTP/1.1 200 OK\r\nX-Consul-Index: 42\r\nContent-Length: 5\r\n\r\n"

static void check_hello(void)
{
    CHECK_INT(done, 1);
    CHECK_INT(result.outcome, MGR__OUTCOME_OK);
    CHECK_INT(result.status, 200);
    CHECK_INT(result.index, 42);
    CHECK_STR(body, "hello");
}

/* ---- tests ---- */

TEST(answers_and_keeps_the_connection)
{
    begin(1);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    CHECK(hear(fd, addresses[0].host_header));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    check_hello();
    CHECK_INT(mgr__http_deadline(&http), MGR__NEVER);
    for (int i = 0; i < 3; i++) {
        ask(MGR__HTTP_ONCE, PATIENCE_MS);
        CHECK(hear(fd, "GET /v1/x HTTP/1.1\r\n"));
        say(fd, OK_HEAD "hello");
        turn_until_done();
        check_hello();
    }
    CHECK(accept(listeners[0], NULL, NULL) < 0);
    close(fd);
    end();
}

TEST(an_answer_may_be_cut_anywhere)
{
    static const char answer[] = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx-consul-index: 42\r\nTransfer-Encoding: chunked\r\n\r\n"
                                 "2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n";
    begin(1);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    for (size_t cut = 1; cut < sizeof answer - 1; cut++) {
        char first[sizeof answer];
        if (cut > 1) ask(MGR__HTTP_ONCE, PATIENCE_MS);
        CHECK(hear(fd, "GET"));
        memcpy(first, answer, cut);
        first[cut] = 0;
        say(fd, first);
        turn();
        CHECK_INT(done, 0);
        say(fd, answer + cut);
        turn_until_done();
        check_hello();
    }
    close(fd);
    end();
}

TEST(closed_in_the_middle_is_unknown)
{
    begin(1);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    CHECK(hear(fd, "GET"));
    say(fd, OK_HEAD "hel");
    close(fd);
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_UNKNOWN);
    CHECK_INT(result.status, 0);
    CHECK(strstr(why, addresses[0].text) && strstr(why, "middle of an answer"));
    CHECK(accept(listeners[0], NULL, NULL) < 0);
    end();
}

/* What an agent does to the 201st connection of a client. */
TEST(closed_without_a_byte)
{
    begin(1);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    close(take(0));
    turn_until_done();
    CHECK(result.outcome == MGR__OUTCOME_UNKNOWN);
    CHECK_INT(built, 1);
    ask(MGR__HTTP_READ, PATIENCE_MS);       /* one address: tried once */
    close(take(0));
    turn_until_done();
    CHECK_INT(built, 1);
    end();
    begin(2);
    ask(MGR__HTTP_IF_REUSED, PATIENCE_MS);  /* a fresh connection: not repeated */
    int fd = take(0);
    CHECK(hear(fd, "GET"));
    close(fd);
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_UNKNOWN);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);       /* the next request prefers the other agent */
    fd = take(1);
    CHECK(hear(fd, addresses[1].host_header));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    check_hello();
    CHECK_INT(result.address, 1);
    close(fd);
    end();
}

TEST(a_read_goes_to_the_next_agent)
{
    begin(2);
    ask(MGR__HTTP_READ, PATIENCE_MS);
    int fd = take(0);
    CHECK(hear(fd, addresses[0].host_header));
    say(fd, OK_HEAD "hel");
    close(fd);
    fd = take(1);
    CHECK(hear(fd, addresses[1].host_header));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    check_hello();
    CHECK(strstr(why, addresses[0].text) != NULL);
    close(fd);
    end();
}

TEST(a_refusing_address_is_passed_over_and_the_good_one_kept)
{
    begin(2);
    close(listeners[0]);
    listeners[0] = -1;
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(1);
    CHECK(hear(fd, addresses[1].host_header));
    say(fd, "HTTP/1.1 200 OK\r\nX-Consul-Index: 42\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
    turn_until_done();
    check_hello();
    CHECK(gone(fd));
    close(fd);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    fd = take(1);
    CHECK_INT(built, 1);
    close(fd);
    turn_until_done();
    end();
}

TEST(all_refuse)
{
    begin(2);
    for (int i = 0; i < 2; i++) { close(listeners[i]); listeners[i] = -1; }
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_UNSENT);
    CHECK(strstr(why, addresses[0].text) && strstr(why, addresses[1].text));
    CHECK_INT(built, 2);
    end();
}

TEST(a_kept_connection_that_closed)
{
    begin(1);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    CHECK(hear(fd, "GET"));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    /* closed while idle, unnoticed so far: seen before anything is sent */
    close(fd);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    fd = take(0);
    CHECK_INT(built, 1);
    CHECK(hear(fd, "GET"));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    check_hello();
    /* closed after the request went out: repeated where that is harmless */
    ask(MGR__HTTP_IF_REUSED, PATIENCE_MS);
    CHECK(hear(fd, "GET"));
    close(fd);
    fd = take(0);
    CHECK_INT(built, 2);
    CHECK(hear(fd, "GET"));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    check_hello();
    /* with a byte of answer it is not */
    ask(MGR__HTTP_IF_REUSED, PATIENCE_MS);
    CHECK(hear(fd, "GET"));
    say(fd, "H");
    close(fd);
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_UNKNOWN);
    /* nor is any other request */
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    fd = take(0);
    CHECK(hear(fd, "GET"));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    CHECK(hear(fd, "GET"));
    close(fd);
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_UNKNOWN);
    CHECK_INT(built, 1);
    CHECK(accept(listeners[0], NULL, NULL) < 0);
    end();
}

TEST(a_hanging_agent_meets_the_deadline)
{
    begin(2);
    int64_t start = mgr__io_now(&io);
    ask(MGR__HTTP_READ, 60);
    int fd = take(0);
    CHECK(hear(fd, "GET"));
    turn_until_done();
    CHECK(mgr__io_now(&io) - start >= 60);
    CHECK_INT(result.outcome, MGR__OUTCOME_UNKNOWN);
    CHECK(strstr(why, "no answer before the deadline") != NULL);
    CHECK(gone(fd));
    close(fd);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    fd = take(1);
    CHECK(hear(fd, "GET"));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    check_hello();
    close(fd);
    end();
}

/* A full backlog: the kernel drops the SYN, as a dead host would. */
TEST(an_address_without_an_answer_to_connect)
{
    begin(2);
    int fill[4];
    close(listeners[0]);
    listeners[0] = listen_tcp(&addresses[0], 0);
    for (size_t i = 0; i < MGR__COUNT(fill); i++) {
        fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        (void)connect(fill[i], (struct sockaddr *)&addresses[0].at, addresses[0].len);
    }
    http.connect_timeout_ms = 30;
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(1);
    CHECK(hear(fd, addresses[1].host_header));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    check_hello();
    mgr__http_cancel(&http);
    close(fd);
    http.current = 0;
    http.connect_timeout_ms = PATIENCE_MS;
    ask(MGR__HTTP_ONCE, 30);
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_UNSENT);
    CHECK(strstr(why, "before the deadline") != NULL);
    for (size_t i = 0; i < MGR__COUNT(fill); i++) close(fill[i]);
    end();
}

TEST(a_unix_socket)
{
    char dir[] = "/tmp/test_http_XXXXXX", list[64];
    size_t count;
    mgr__buf error;
    mgr__buf_init(&error, &heap, 1000);
    CHECK(mkdtemp(dir) != NULL);
    begin(1);
    close(listeners[0]);
    snprintf(list, sizeof list, "unix://%s/s", dir);
    CHECK_INT(mgr__io_lookup(&io, list, addresses, 1, &count, &error), MGR_OK);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_UNSENT);
    listeners[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(bind(listeners[0], (struct sockaddr *)&addresses[0].at, addresses[0].len) == 0 && listen(listeners[0], 8) == 0);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    CHECK(hear(fd, "Host: localhost\r\n"));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    check_hello();
    close(fd);
    end();
    unlink(list + 7);
    rmdir(dir);
    mgr__buf_free(&error);
}

TEST(bytes_that_nobody_asked_for)
{
    begin(1);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    CHECK(hear(fd, "GET"));
    say(fd, OK_HEAD "hello");
    turn_until_done();
    say(fd, OK_HEAD "wrong");
    CHECK(gone(fd));
    CHECK_INT(done, 1);
    CHECK_INT(http.state, MGR__HTTP_CLOSED);
    close(fd);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    fd = take(0);
    CHECK(hear(fd, "GET"));
    say(fd, OK_HEAD "hello" OK_HEAD "wrong");   /* at once */
    turn_until_done();
    check_hello();
    CHECK(gone(fd));
    close(fd);
    end();
}

TEST(a_malformed_answer)
{
    begin(2);
    ask(MGR__HTTP_READ, PATIENCE_MS);
    int fd = take(0);
    CHECK(hear(fd, "GET"));
    say(fd, "SSH-2.0-OpenSSH_9.2\r\n");
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_UNKNOWN);
    CHECK(strstr(why, "malformed status line") != NULL);
    CHECK(gone(fd));
    close(fd);
    end();
}

/* 413 to a body that the agent does not read. */
TEST(an_answer_before_the_request_is_out)
{
    begin(1);
    body_bytes = 12 << 20;
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    turn();
    CHECK_INT(http.state, MGR__HTTP_SENDING);
    say(fd, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_OK);
    CHECK_INT(result.status, 413);
    CHECK_STR(body, "no");
    CHECK_INT(http.state, MGR__HTTP_CLOSED);
    close(fd);
    ask(MGR__HTTP_ONCE, 50);            /* never read: the deadline holds while sending, too */
    fd = take(0);
    turn_until_done();
    CHECK_INT(result.outcome, MGR__OUTCOME_UNKNOWN);
    close(fd);
    end();
}

TEST(a_large_request_goes_out_in_pieces)
{
    begin(1);
    body_bytes = 8 << 20;
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    static char some[1 << 16];
    size_t have = 0;
    int64_t end_ms = mgr__io_now(&io) + PATIENCE_MS;
    while (have < body_bytes && mgr__io_now(&io) < end_ms) {
        ssize_t got = recv(fd, some, sizeof some, 0);
        if (got > 0) have += (size_t)got;
        else turn();
    }
    turn();
    while (recv(fd, some, sizeof some, 0) > 0) {}
    say(fd, OK_HEAD "hello");
    turn_until_done();
    check_hello();
    CHECK_INT(http.state, MGR__HTTP_OPEN);
    CHECK_INT(http.out.cap, 0);
    close(fd);
    end();
}

TEST(the_next_request_from_inside_the_callback)
{
    begin(1);
    again = 3;
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    for (int i = 0; i < 4; i++) {
        CHECK(hear(fd, "GET"));
        done = 0;
        say(fd, OK_HEAD "hello");
        turn_until_done();
        check_hello();
    }
    close(fd);
    end();
}

TEST(cancelling)
{
    begin(2);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    int fd = take(0);
    CHECK(hear(fd, "GET"));
    mgr__http_cancel(&http);
    CHECK(gone(fd));
    CHECK_INT(done, 0);
    CHECK(!mgr__http_busy(&http));
    close(fd);
    mgr__http_move_on(&http);
    ask(MGR__HTTP_ONCE, PATIENCE_MS);
    fd = take(1);
    mgr__http_cancel(&http);
    close(fd);
    end();
}

/* ---- everything that can fail, fails once ---- */

static mgr__io real;
static long calls, fail_at;
static bool fails(void) { return ++calls == fail_at; }

static int f_socket(void *u, int family) { return fails() ? -EMFILE : real.socket(u, family); }
static int f_connect(void *u, int fd, const struct sockaddr *to, socklen_t len) { return fails() ? -ENETUNREACH : real.connect(u, fd, to, len); }
static int f_error(void *u, int fd) { return fails() ? -ECONNREFUSED : real.socket_error(u, fd); }
static ssize_t f_send(void *u, int fd, const void *from, size_t n) { return fails() ? -EPIPE : real.send(u, fd, from, n > 20 ? 20 : n); }
static ssize_t f_recv(void *u, int fd, void *to, size_t n) { return fails() ? -ECONNRESET : real.recv(u, fd, to, n > 30 ? 30 : n); }
static int f_epoll_set(void *u, int e, int fd, short i, mgr__io_change c) { return fails() ? -ENOMEM : real.epoll_set(u, e, fd, i, c); }
static int f_timer_set(void *u, int t, int64_t at) { return fails() ? -EINVAL : real.timer_set(u, t, at); }
static int f_poll(void *u, struct pollfd *fds, size_t n, int t) { return fails() ? -ENOMEM : real.poll(u, fds, n, t); }
static int f_pipe(void *u, int fds[2]) { return fails() ? -EMFILE : real.pipe(u, fds); }

static size_t in_use;
static void *f_resize(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    (void)user;
    if (new_bytes > old_bytes && fails()) return NULL;
    void *at = NULL;
    if (new_bytes) { at = realloc(ptr, new_bytes); if (!at) return NULL; }
    else free(ptr);
    in_use += new_bytes - old_bytes;
    return at;
}

/* A server that answers whatever comes; returns how many whole requests it saw. */
static int serve(int *fd, char *some, size_t *have)
{
    if (*fd < 0) {
        *fd = accept4(listeners[0], NULL, NULL, SOCK_NONBLOCK);
        *have = 0;
        if (*fd < 0) return 0;
    }
    ssize_t got = recv(*fd, some + *have, 2000 - *have, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) { close(*fd); *fd = -1; return 0; }
    if (got < 0) return 0;
    some[*have += (size_t)got] = 0;
    if (!strstr(some, "\r\n\r\n")) return 0;
    *have = 0;
    (void)send(*fd, OK_HEAD "hello", strlen(OK_HEAD "hello"), MSG_NOSIGNAL);
    return 1;
}

/* Two requests, the second on the kept connection if there is one. False: so few
 * calls were made that none of them was the one to fail. */
static bool sweep_once(mgr__http_repeat repeat)
{
    int fd = -1, seen = 0;
    char some[2048];
    size_t have = 0;
    calls = 0;
    again = 0;
    if (mgr__loop_open(&loop, &io, &heap) < 0) return calls >= fail_at;
    mgr__http_init(&http, &io, &loop, &heap, addresses, 1, on_done, &done);
    for (int i = 0; i < 2; i++) {
        int64_t end_ms = mgr__io_now(&io) + PATIENCE_MS;
        int before = seen;
        ask(repeat, PATIENCE_MS);
        while (!done && mgr__io_now(&io) < end_ms) { turn(); seen += serve(&fd, some, &have); }
        CHECK_INT(done, 1);
        if (result.outcome == MGR__OUTCOME_OK) CHECK_STR(body, "hello");
        else CHECK(why[0] != 0);
        if (result.outcome == MGR__OUTCOME_UNSENT) CHECK_INT(seen, before);
        if (repeat == MGR__HTTP_ONCE) CHECK(seen - before <= 1);
    }
    mgr__http_free(&http);
    mgr__loop_close(&loop);
    if (fd >= 0) close(fd);
    return calls >= fail_at;
}

static void sweep(mgr__http_repeat repeat)
{
    real = mgr__io_real();
    io.socket = f_socket;
    io.connect = f_connect;
    io.socket_error = f_error;
    io.send = f_send;
    io.recv = f_recv;
    io.epoll_set = f_epoll_set;
    io.timer_set = f_timer_set;
    io.poll = f_poll;
    io.pipe = f_pipe;
    heap.with.resize = f_resize;
    listeners[0] = listen_tcp(&addresses[0], 8);
    body_bytes = 0;
    int probe = dup(0);
    close(probe);
    for (fail_at = 1; fail_at < 1000 && sweep_once(repeat); fail_at++) CHECK_INT(in_use, 0);
    CHECK(fail_at > 20 && fail_at < 1000);
    int after = dup(0);
    close(after);
    CHECK_INT(after, probe);            /* no descriptor was lost either */
    close(listeners[0]);
    listeners[0] = -1;
    io = mgr__io_real();
    heap = mgr__heap_make(NULL);
}

TEST(each_call_fails_once_write) { sweep(MGR__HTTP_ONCE); }
TEST(each_call_fails_once_renewal) { sweep(MGR__HTTP_IF_REUSED); }
TEST(each_call_fails_once_read) { sweep(MGR__HTTP_READ); }

int main(int argc, char **argv)
{
    io = mgr__io_real();
    heap = mgr__heap_make(NULL);
    for (size_t i = 0; i < MGR__COUNT(listeners); i++) listeners[i] = -1;
    RUN(answers_and_keeps_the_connection);
    RUN(an_answer_may_be_cut_anywhere);
    RUN(closed_in_the_middle_is_unknown);
    RUN(closed_without_a_byte);
    RUN(a_read_goes_to_the_next_agent);
    RUN(a_refusing_address_is_passed_over_and_the_good_one_kept);
    RUN(all_refuse);
    RUN(a_kept_connection_that_closed);
    RUN(a_hanging_agent_meets_the_deadline);
    RUN(an_address_without_an_answer_to_connect);
    RUN(a_unix_socket);
    RUN(bytes_that_nobody_asked_for);
    RUN(a_malformed_answer);
    RUN(an_answer_before_the_request_is_out);
    RUN(a_large_request_goes_out_in_pieces);
    RUN(the_next_request_from_inside_the_callback);
    RUN(cancelling);
    RUN(each_call_fails_once_write);
    RUN(each_call_fails_once_renewal);
    RUN(each_call_fails_once_read);
    return test__end();
}
