/* [loop]: readiness, the deadline, waking, and callbacks that change the set. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "test.h"

static mgr__io io;
static mgr__heap heap;
static mgr__loop loop;
static int pipes[8][2];
static int called[8];
static int remove_also = -1, add_also = -1;

static void on_ready(void *owner, short revents)
{
    int i = (int)((int (*)[2])owner - pipes);
    char some[16];
    CHECK(revents & (POLLIN | POLLHUP));
    called[i]++;
    (void)io.read(io.user, pipes[i][0], some, sizeof some);
    if (remove_also >= 0) { mgr__loop_remove(&loop, pipes[remove_also][0]); remove_also = -1; }
    if (add_also >= 0) { CHECK_INT(mgr__loop_add(&loop, pipes[add_also][0], POLLIN, on_ready, pipes[add_also]), 0); add_also = -1; }
}

static void begin(void)
{
    memset(called, 0, sizeof called);
    CHECK_INT(mgr__loop_open(&loop, &io, &heap), 0);
    for (size_t i = 0; i < MGR__COUNT(pipes); i++) CHECK_INT(io.pipe(io.user, pipes[i]), 0);
}

static void end(void)
{
    mgr__loop_close(&loop);
    for (size_t i = 0; i < MGR__COUNT(pipes); i++) { close(pipes[i][0]); close(pipes[i][1]); }
}

static void add(int i) { CHECK_INT(mgr__loop_add(&loop, pipes[i][0], POLLIN, on_ready, pipes[i]), 0); }
static void fill(int i) { CHECK(write(pipes[i][1], "x", 1) == 1); }

static bool fd_readable(void)
{
    struct pollfd fd;
    fd.fd = mgr__loop_fd(&loop);
    fd.events = POLLIN;
    return fd.fd < 0 || poll(&fd, 1, 0) == 1;
}

TEST(calls_what_is_ready_and_nothing_else)
{
    begin();
    add(0); add(1); add(2);
    fill(1);
    CHECK(fd_readable());
    CHECK_INT(mgr__loop_wait(&loop, -1), 0);
    CHECK_INT(called[0] + called[2], 0);
    CHECK_INT(called[1], 1);
    if (mgr__loop_fd(&loop) >= 0) CHECK(!fd_readable());
    end();
}

TEST(a_removed_descriptor_is_not_called_any_more)
{
    begin();
    add(0); add(1);
    fill(0); fill(1);
    remove_also = 1;
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    CHECK_INT(called[0], 1);
    CHECK_INT(called[1], 0);
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    CHECK_INT(called[1], 0);
    end();
}

TEST(a_callback_may_remove_itself_and_come_back)
{
    begin();
    add(0);
    fill(0);
    remove_also = add_also = 0;
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    CHECK_INT(called[0], 1);
    fill(0);
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    CHECK_INT(called[0], 2);
    end();
}

/* The number of a descriptor closed in a callback goes to the next one opened: its
 * events must not. */
TEST(a_reused_number_gets_no_old_events)
{
    begin();
    add(0); add(1);
    fill(0); fill(1);
    remove_also = 1;
    add_also = 1;
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    CHECK_INT(called[1], 0);
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    CHECK_INT(called[1], 1);
    end();
}

TEST(many_added_from_a_callback)
{
    begin();
    add(0);
    for (int i = 1; i < 8; i++) {
        fill(0);
        add_also = i;
        CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    }
    for (int i = 1; i < 8; i++) fill(i);
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    for (int i = 1; i < 8; i++) CHECK_INT(called[i], 1);
    end();
}

TEST(the_deadline_ends_a_wait_and_shows_in_the_descriptor)
{
    begin();
    CHECK_INT(mgr__loop_timeout_ms(&loop), loop.timer < 0 ? MGR__LOOP_TICK_MS : -1);
    int64_t at = mgr__io_now(&io) + 30;
    mgr__loop_deadline(&loop, at);
    CHECK(mgr__loop_timeout_ms(&loop) <= 30);
    while (mgr__io_now(&io) < at) CHECK_INT(mgr__loop_wait(&loop, -1), 0);
    CHECK_INT(mgr__loop_timeout_ms(&loop), 0);
    mgr__loop_deadline(&loop, at);          /* passed, but not dealt with: it stays due */
    if (mgr__loop_fd(&loop) >= 0) CHECK(fd_readable());
    mgr__loop_deadline(&loop, MGR__NEVER);
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    if (mgr__loop_fd(&loop) >= 0) CHECK(!fd_readable());
    mgr__loop_deadline(&loop, 0);           /* long past */
    CHECK(fd_readable());
    CHECK_INT(mgr__loop_wait(&loop, -1), 0);
    end();
}

static void on_alarm(int signal_number) { (void)signal_number; mgr__loop_wake(&loop); }

TEST(waking_from_a_signal_handler)
{
    begin();
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_alarm;
    sigaction(SIGALRM, &action, &before);
    struct itimerval soon;
    memset(&soon, 0, sizeof soon);
    soon.it_value.tv_usec = 20000;
    setitimer(ITIMER_REAL, &soon, NULL);
    int64_t start = mgr__io_now(&io);
    CHECK_INT(mgr__loop_wait(&loop, 20000), 0);
    CHECK(mgr__io_now(&io) - start < 15000);
    sigaction(SIGALRM, &before, NULL);
    end();
}

/* More pokes than a pipe holds neither block nor are lost, and are all one. */
TEST(waking_often)
{
    begin();
    errno = 77;
    for (int i = 0; i < 70000; i++) mgr__loop_wake(&loop);
    CHECK_INT(errno, 77);
    CHECK_INT(mgr__loop_wait(&loop, -1), 0);
    struct pollfd fd;
    fd.fd = loop.wake_read;
    fd.events = POLLIN;
    CHECK_INT(poll(&fd, 1, 0), 0);
    end();
}

TEST(for_the_poll_of_the_host)
{
    begin();
    struct pollfd fds[8];
    size_t own = mgr__loop_pollfds(&loop, NULL, 0);
    add(0); add(1);
    CHECK_INT(mgr__loop_change(&loop, pipes[1][0], 0), 0);
    CHECK_INT(mgr__loop_pollfds(&loop, fds, 1), own + 2);
    CHECK_INT(mgr__loop_pollfds(&loop, fds, 8), own + 2);
    CHECK_INT(fds[own].fd, pipes[0][0]);
    CHECK_INT(fds[own].events, POLLIN);
    CHECK_INT(fds[own + 1].events, 0);
    fill(1);
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    CHECK_INT(called[1], 0);
    CHECK_INT(mgr__loop_change(&loop, pipes[1][0], POLLIN), 0);
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    CHECK_INT(called[1], 1);
    end();
}

TEST(a_forked_child_takes_nothing_away)
{
    begin();
    add(0);
    pid_t child = fork();
    if (child == 0) {
        mgr__loop_forked(&loop);
        mgr__loop_remove(&loop, pipes[0][0]);
        mgr__loop_close(&loop);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    fill(0);
    CHECK(fd_readable());
    CHECK_INT(mgr__loop_wait(&loop, 0), 0);
    CHECK_INT(called[0], 1);
    end();
}

static int no_descriptor(void *user) { (void)user; return -ENOSYS; }

TEST(without_epoll_and_timer)
{
    io.epoll = io.timer = no_descriptor;
    begin();
    CHECK_INT(mgr__loop_fd(&loop), -1);
    add(0);
    fill(0);
    mgr__loop_deadline(&loop, mgr__io_now(&io) + 60000);
    CHECK_INT(mgr__loop_timeout_ms(&loop), MGR__LOOP_TICK_MS);
    CHECK_INT(mgr__loop_wait(&loop, -1), 0);
    CHECK_INT(called[0], 1);
    CHECK_INT(mgr__loop_wait(&loop, -1), 0);   /* one tick */
    end();
    io = mgr__io_real();
}

static int no_pipe(void *user, int fds[2]) { (void)user; (void)fds; return -EMFILE; }

TEST(opening_fails_cleanly)
{
    io.pipe = no_pipe;
    CHECK_INT(mgr__loop_open(&loop, &io, &heap), -EMFILE);
    io = mgr__io_real();
    CHECK(loop.epoll == -1 && loop.timer == -1 && loop.slots == NULL);
}

int main(int argc, char **argv)
{
    io = mgr__io_real();
    heap = mgr__heap_make(NULL);
    RUN(calls_what_is_ready_and_nothing_else);
    RUN(a_removed_descriptor_is_not_called_any_more);
    RUN(a_callback_may_remove_itself_and_come_back);
    RUN(a_reused_number_gets_no_old_events);
    RUN(many_added_from_a_callback);
    RUN(the_deadline_ends_a_wait_and_shows_in_the_descriptor);
    RUN(waking_from_a_signal_handler);
    RUN(waking_often);
    RUN(for_the_poll_of_the_host);
    RUN(a_forked_child_takes_nothing_away);
    RUN(without_epoll_and_timer);
    RUN(opening_fails_cleanly);
    return test__end();
}
