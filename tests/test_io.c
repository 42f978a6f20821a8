/* [io]: addresses, times, files, and the promises of the table. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "test.h"

static mgr__io io;
static mgr__heap heap;
static mgr__address found[4];
static size_t found_count;
static mgr__buf text;

static mgr_result lookup(const char *list)
{
    mgr__buf_clear(&text);
    return mgr__io_lookup(&io, list, found, MGR__COUNT(found), &found_count, &text);
}

TEST(addresses_in_numbers)
{
    CHECK_INT(lookup("127.0.0.1:8501, http://10.0.0.1/ ,[::1]:7,unix:///run/consul.sock"), MGR_OK);
    CHECK_INT(found_count, 4);
    CHECK_STR(found[0].text, "127.0.0.1:8501");
    CHECK_STR(found[0].host_header, "127.0.0.1:8501");
    CHECK_INT(found[0].at.ss_family, AF_INET);
    CHECK_STR(found[1].host_header, "10.0.0.1:8500");
    CHECK_STR(found[2].host_header, "[::1]:7");
    CHECK_INT(found[2].at.ss_family, AF_INET6);
    CHECK_STR(found[3].text, "unix:///run/consul.sock");
    CHECK_STR(found[3].host_header, "localhost");
    CHECK_INT(text.len, 0);
}

TEST(addresses_that_are_none)
{
    static const struct { const char *list, *says; } bad[] = {
        { "", "the host is missing" },
        { "127.0.0.1:8500,", "the host is missing" },
        { "https://127.0.0.1:8501", "there is no TLS here" },
        { "127.0.0.1:0", "the port is not" },
        { "127.0.0.1:65536", "the port is not" },
        { "127.0.0.1:", "the port is not" },
        { "127.0.0.1:85x", "the port is not" },
        { "::1", "in brackets" },
        { "[::1", "without its ']'" },
        { "[::1]8500", "behind ']'" },
        { "http://a/v1", "without anything behind it" },
        { "tcp://a:1", "without anything behind it" },
        { "user@host:1", "no host name has" },
        { "a b:1", "no host name has" },
        { "unix://run/x", "starts with '/'" },
        { "unix:///0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678", "longer than" },
    };
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        CHECK_INT(lookup(bad[i].list), MGR_INVALID);
        CHECK(strstr(mgr__buf_cstr(&text), bad[i].says) != NULL);
        CHECK(!strchr(mgr__buf_cstr(&text), '\n'));
    }
    CHECK_INT(lookup("1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4,1.1.1.5"), MGR_LIMIT);
}

static size_t resolve_some(void *user, const char *host, const char *port, mgr__address *out, size_t out_max, const char **why)
{
    (void)user; (void)port;
    if (strcmp(host, "there") != 0) { *why = "no such name"; return 0; }
    for (size_t i = 0; i < 2 && i < out_max; i++) mgr__io_numeric(i ? "::2" : "10.9.8.7", 80, &out[i]);
    return out_max < 2 ? out_max : 2;
}

TEST(names_have_several_addresses_or_none)
{
    io.resolve = resolve_some;
    CHECK_INT(lookup("there:80"), MGR_OK);
    CHECK_INT(found_count, 2);
    CHECK_STR(found[0].text, "there:80 (10.9.8.7)");
    CHECK_STR(found[1].text, "there:80 (::2)");
    CHECK_STR(found[1].host_header, "there:80");
    CHECK_INT(lookup("gone:80"), MGR_UNREACHABLE);
    CHECK_STR(mgr__buf_cstr(&text), "address \"gone:80\" of a Consul agent: no such name");
    CHECK_INT(lookup("gone:80,127.0.0.1:1"), MGR_OK);
    CHECK_INT(found_count, 1);
    CHECK(text.len > 0);
    io = mgr__io_real();
}

TEST(times)
{
    char at[32];
    mgr__io_rfc3339(at, 0);
    CHECK_STR(at, "1970-01-01T00:00:00.000Z");
    mgr__io_rfc3339(at, 951826554007);
    CHECK_STR(at, "2000-02-29T12:15:54.007Z");
    mgr__io_rfc3339(at, -1);
    CHECK_STR(at, "1970-01-01T00:00:00.000Z");
    mgr__io_rfc3339(at, INT64_MAX);
    CHECK_STR(at, "1970-01-01T00:00:00.000Z");
    int64_t before = mgr__io_now(&io);
    CHECK(before > 0 && mgr__io_now(&io) >= before);
    CHECK(io.realtime_ms(io.user) > 1500000000000);
}

TEST(trimming)
{
    CHECK(mgr__str_is(mgr__io_trim(mgr__str_of(" \ta b\r\n")), "a b"));
    CHECK(mgr__str_is(mgr__io_trim(mgr__str_of(" \n ")), ""));
}

TEST(random_bytes_differ)
{
    char a[32] = "", b[32] = "";
    CHECK_INT(io.random(io.user, a, sizeof a), 0);
    CHECK_INT(io.random(io.user, b, sizeof b), 0);
    CHECK(memcmp(a, b, sizeof a) != 0);
}

TEST(files_are_read_whole_or_not_at_all)
{
    char path[] = "/tmp/test_io_XXXXXX";
    int fd = mkstemp(path);
    char line[1000];
    memset(line, 'x', sizeof line);
    CHECK(fd >= 0 && write(fd, line, sizeof line) == (ssize_t)sizeof line);
    close(fd);
    mgr__buf out;
    mgr__buf_init(&out, &heap, sizeof line);
    CHECK_INT(io.read_file(io.user, path, &out), 0);
    CHECK_INT(out.len, sizeof line);
    mgr__buf_free(&out);
    mgr__buf_init(&out, &heap, sizeof line - 1);
    CHECK_INT(io.read_file(io.user, path, &out), -EFBIG);
    CHECK_INT(io.read_file(io.user, "/nowhere/at/all", &out), -ENOENT);
    mgr__buf_free(&out);
    unlink(path);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK_INT(io.read_file(io.user, path, &out), 0);
    mgr__buf_free(&out);
    unlink(path);
}

static void check_flags(int fd)
{
    CHECK(fd >= 0);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    io.close(io.user, fd);
}

TEST(descriptors_are_close_on_exec_and_do_not_block)
{
    int fds[2];
    char byte;
    CHECK_INT(io.pipe(io.user, fds), 0);
    CHECK_INT(io.read(io.user, fds[0], &byte, 1), -EAGAIN);
    check_flags(fds[0]);
    check_flags(fds[1]);
    int fd = io.socket(io.user, AF_INET);
    CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
    check_flags(fd);
    check_flags(io.socket(io.user, AF_UNIX));
#ifdef __linux__
    check_flags(io.epoll(io.user));
    check_flags(io.timer(io.user));
#endif
    CHECK_INT(io.close(io.user, fd), -EBADF);
}

TEST(a_closed_peer_is_an_error_and_no_signal)
{
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    close(fds[1]);
    CHECK_INT(io.send(io.user, fds[0], "x", 1), -EPIPE);
    close(fds[0]);
}

TEST(host_and_environment)
{
    char name[256];
    CHECK_INT(io.hostname(io.user, name, sizeof name), 0);
    CHECK(name[0] != 0);
    setenv("TEST_IO_EMPTY", "", 1);
    CHECK(io.environment(io.user, "TEST_IO_EMPTY") == NULL);
    CHECK(io.environment(io.user, "PATH") != NULL);
    CHECK_INT(io.process(io.user), getpid());
}

int main(int argc, char **argv)
{
    io = mgr__io_real();
    heap = mgr__heap_make(NULL);
    mgr__buf_init(&text, &heap, 4096);
    RUN(addresses_in_numbers);
    RUN(addresses_that_are_none);
    RUN(names_have_several_addresses_or_none);
    RUN(times);
    RUN(trimming);
    RUN(random_bytes_differ);
    RUN(files_are_read_whole_or_not_at_all);
    RUN(descriptors_are_close_on_exec_and_do_not_block);
    RUN(a_closed_peer_is_an_error_and_no_signal);
    RUN(host_and_environment);
    mgr__buf_free(&text);
    return test__end();
}
