/* The public functions, against a devconsul served by a child of this program, and
 * where it matters the same against a real Consul.
 *
 * This program is a worker too (test_manager --worker FILE): it locks FILE and
 * sleeps, so that a test can ask the kernel whether it lives. Each test uses a
 * service of its own, and a lease of 1 s, the shortest; no test waits for one to end. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "../examples/devconsul.h"
#include "test.h"
#include <pthread.h>

enum { LEASE_MS = 1000, DELAY_MS = 2000, GRACE_MS = 300, PATIENCE_MS = TEST_PATIENCE_MS, HOSTS = 3 };

typedef struct host {           /* an instance, and what its callbacks saw and shall do */
    mgr       *m;
    mgr_desc   desc;
    char       id[32], service[32];
    mgr_answer acquire, release;
    void     (*begin)(struct host *, const char *partition);     /* called inside on_acquire */
    const mgr_grant *grant;     /* the latest */
    uint32_t   within_ms;
    mgr_result lost_why, over;
    bool       reenters;
    mgr_result reentered[3];
    mgr__buf   log, events;     /* callbacks; events as "word partition name: text" lines */
} host;

static mgr__heap   heap;
static mgr__io     io;
static host        hosts[HOSTS];
static const char *address;             /* of the Consul in use */
static char        dev_address[40], real_address[80], self_path[4096], scratch_dir[] = "/tmp/test_manager.XXXXXX";
static pid_t       dev_pid, real_pid;
static int         dev_stop[2], service_number;
static const char *const two[] = { "0", "1" };

static int64_t now_ms(void) { return mgr__io_now(&io); }

static const char *scratch(const char *name)
{
    static char paths[4][sizeof scratch_dir + 40];
    static int at;
    at = (at + 1) % 4;
    snprintf(paths[at], sizeof paths[at], "%s/%s", scratch_dir, name);
    return paths[at];
}

/* ---- the servers ---- */

static void dev_start(void)
{
    int ready[2];
    char port[16] = "";
    if (pipe(ready) != 0 || pipe(dev_stop) != 0) abort();
    dev_pid = fork();
    if (dev_pid == 0) {
        close(dev_stop[1]);
        close(ready[0]);
        _exit(dc_serve("127.0.0.1:0", dev_stop[0], ready[1]));
    }
    close(dev_stop[0]);
    close(ready[1]);
    if (read(ready[0], port, sizeof port - 1) <= 0) abort();
    close(ready[0]);
    snprintf(dev_address, sizeof dev_address, "127.0.0.1:%d", atoi(port));
    address = dev_address;
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

/* Started first, so that it elects itself while the other tests run. */
static void real_start(void)
{
    char path[512] = "", server[32], serf[32], hcl[160];
    FILE *script = popen("sh tests/consul.sh 2>/dev/null || sh ../tests/consul.sh 2>/dev/null", "r");
    if (script) { if (!fgets(path, sizeof path, script)) path[0] = 0; pclose(script); }
    path[strcspn(path, "\n")] = 0;
    if (!path[0]) return;
    snprintf(real_address, sizeof real_address, "unix://%s/http", scratch_dir);
    snprintf(server, sizeof server, "-server-port=%d", free_port());
    snprintf(serf, sizeof serf, "-serf-lan-port=%d", free_port());
    snprintf(hcl, sizeof hcl, "addresses { http = \"%s\" } ports { grpc = -1 }", real_address);
    real_pid = fork();
    if (real_pid == 0) {
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
}

static void servers_stop(void)
{
    close(dev_stop[1]);
    waitpid(dev_pid, NULL, 0);
    if (real_pid > 0) { kill(real_pid, SIGKILL); waitpid(real_pid, NULL, 0); unlink(scratch("http")); }
}

/* ---- an instance ---- */

static mgr_answer on_acquire(mgr *m, const char *partition, const mgr_grant *grant, void *user)
{
    host *h = (host *)user;
    mgr__buf_printf(&h->log, "acquire %s\n", partition);
    h->grant = grant;
    if (h->reenters) { h->reentered[0] = mgr_step(m, 0); h->reentered[1] = mgr_run(m); h->reentered[2] = mgr_dispatch(m, NULL, 0); }
    if (h->begin) h->begin(h, partition);
    return h->acquire;
}

static mgr_answer on_release(mgr *m, const char *partition, uint32_t within_ms, void *user)
{
    host *h = (host *)user;
    (void)m;
    mgr__buf_printf(&h->log, "release %s\n", partition);
    h->within_ms = within_ms;
    return h->release;
}

static void on_lost(mgr *m, const char *partition, mgr_result why, void *user)
{
    host *h = (host *)user;
    (void)m;
    mgr__buf_printf(&h->log, "lost %s\n", partition);
    h->lost_why = why;
}

static void on_event(mgr *m, const mgr_event *e, void *user)
{
    host *h = (host *)user;
    (void)m;
    if (strchr(e->text, '\n') || !e->text[0]) CHECK(!"an event is one line");
    mgr__buf_printf(&h->events, "%s %s %s: %s\n", mgr_event_word(e->kind), e->partition, e->name, e->text);
}

static host *host_make(int at, const char *id)
{
    host *h = &hosts[at];
    memset(h, 0, sizeof *h);
    mgr__buf_init(&h->log, &heap, 1u << 20);
    mgr__buf_init(&h->events, &heap, 1u << 20);
    if (at == 0) service_number++;
    snprintf(h->service, sizeof h->service, "t%d-%ld", service_number, (long)getpid());
    snprintf(h->id, sizeof h->id, "%s", id);
    h->desc.service_name = h->service;
    h->desc.instance_id = h->id;
    h->desc.consul_addr = address;
    h->desc.partitions = two;
    h->desc.partition_count = 2;
    h->desc.lease_ms = LEASE_MS;
    h->desc.delay_ms = DELAY_MS;
    h->desc.session_ttl_ms = 10000;
    h->desc.stop_grace_ms = GRACE_MS;
    h->desc.settle_ms = MGR_NONE;
    h->desc.on_acquire = on_acquire;
    h->desc.on_release = on_release;
    h->desc.on_lost = on_lost;
    h->desc.on_event = on_event;
    h->desc.user = h;
    return h;
}

static host *host_start(host *h)
{
    mgr_result result = mgr_open(&h->m, &h->desc);
    if (result != MGR_OK) { printf("mgr_open: %s\n", mgr_error_text(h->m)); CHECK(!"open"); }
    return h;
}

static host *host_open(int at, const char *id) { return host_start(host_make(at, id)); }

static host *observer_open(int at)
{
    host *h = host_make(at, "observer");
    h->desc.observer = true;
    return host_start(h);
}

static void host_close(host *h)
{
    mgr_close(h->m);
    h->m = NULL;
    mgr__buf_free(&h->log);
    mgr__buf_free(&h->events);
}

static void turn(void)
{
    for (int i = 0; i < HOSTS; i++) {
        host *h = &hosts[i];
        if (!h->m || h->over || h->desc.observer) { continue; }
        mgr_result result = mgr_step(h->m, 2);
        if (result != MGR_OK) h->over = result;
    }
}

#define WAIT(condition)                                                                         \
    do {                                                                                        \
        int64_t until__ = now_ms() + PATIENCE_MS;                                               \
        while (!(condition) && now_ms() < until__) turn();                                      \
        CHECK(condition);                                                                       \
    } while (0)

static void turns(int64_t ms) { for (int64_t until = now_ms() + ms; now_ms() < until;) { turn(); usleep(1000); } }

static bool saw(const host *h, const char *text) { return strstr(mgr__buf_cstr(&h->events), text) != NULL; }
static bool called(const host *h, const char *text) { return strstr(mgr__buf_cstr(&h->log), text) != NULL; }

static int times(const mgr__buf *in, const char *text)
{
    int count = 0;
    for (const char *at = mgr__buf_cstr(in); (at = strstr(at, text)) != NULL; at++) count++;
    return count;
}

static void leave(host *h)
{
    mgr_leave(h->m);
    WAIT(h->over);
    CHECK_INT(h->over, MGR_LEFT);
    host_close(h);
}

/* ---- workers ---- */

static void end_slowly(int signo) { (void)signo; usleep((2 * GRACE_MS) * 1000); _exit(0); }

static int worker(char **argv)
{
    int fd = open(argv[2], O_RDWR | O_CREAT, 0644);
    if (argv[3] && !strcmp(argv[3], "slow")) signal(SIGTERM, end_slowly);
    if (argv[3] && !strcmp(argv[3], "stubborn")) signal(SIGTERM, SIG_IGN);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) != 0) return 9;
    for (;;) pause();
}

static bool works(const char *name)
{
    int fd = open(scratch(name), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    bool free_now = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
    close(fd);
    return !free_now;
}

static mgr_process process_of(const char *const *argv)
{
    mgr_process p;
    memset(&p, 0, sizeof p);
    p.argv = argv;
    return p;
}

static void begin_worker(host *h, const char *partition)
{
    const char *argv[4];
    argv[0] = self_path; argv[1] = "--worker"; argv[2] = scratch(partition); argv[3] = NULL;
    mgr_process p = process_of(argv);
    CHECK_INT(mgr_daemonize(h->m, partition, NULL, &p), MGR_OK);
}

static void begin_hold(host *h, const char *partition) { begin_worker(h, partition); CHECK_INT(mgr_hold(h->m, partition), MGR_OK); }

static void write_file(const char *name, const char *text)
{
    FILE *f = fopen(scratch("new"), "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
    CHECK_INT(rename(scratch("new"), scratch(name)), 0);
}

static const char *read_file(const char *name)
{
    static char text[512];
    FILE *f = fopen(scratch(name), "r");
    size_t len = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[len] = 0;
    return text;
}

static int descriptors(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    if (!dir) return 0;
    while (readdir(dir)) count++;
    closedir(dir);
    return count;
}

/* ---- opening ---- */

static mgr_desc good_desc(void)
{
    mgr_desc d;
    memset(&d, 0, sizeof d);
    d.service_name = "s";
    d.instance_id = "i";
    d.consul_addr = "127.0.0.1:1";
    d.observer = true;
    return d;
}

static void refused(const mgr_desc *d, const char *field)
{
    mgr *m;
    mgr_result result = mgr_open(&m, d);
    const char *text = mgr_error_text(m);
    if (result != MGR_INVALID || !m || !strstr(text, field) || strchr(text, '\n')) { printf("%s: %d, %s\n", field, (int)result, text); CHECK(!"refused"); }
    CHECK_INT(mgr_step(m, 0), MGR_INVALID);
    CHECK_INT(mgr_fd(m), -1);
    CHECK_INT(mgr_post(m, NULL, NULL), MGR_INVALID);
    CHECK_INT(mgr_drain(m, true), MGR_INVALID);
    mgr_leave(m);
    mgr_close(m);
}

#define REFUSED(field, change) do { mgr_desc d = good_desc(); change; refused(&d, field); } while (0)

TEST(each_bad_field_is_refused_by_name)
{
    static const char *const twice[] = { "a", "a" }, *const empty[] = { "a", "" }, *const control[] = { "a\nb" };
    char longest[MGR_NAME_BYTES_MAX + 2];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    REFUSED("service_name", d.service_name = NULL);
    REFUSED("service_id", d.service_id = "");
    REFUSED("service_id", d.service_id = "a\tb");
    REFUSED("service_id", d.service_id = longest);
    REFUSED("service_name", { d.service_id = "s"; d.service_name = "\xff"; });
    REFUSED("instance_id", d.instance_id = "");
    REFUSED("instance_id", d.instance_id = "a\x01");
    REFUSED("instance_id", d.instance_id = longest);
    REFUSED("weight", d.weight = 65536);
    REFUSED("lease_ms", d.lease_ms = 999);
    REFUSED("lease_ms", d.lease_ms = MGR_NONE);
    REFUSED("lease_ms", d.lease_ms = 86400001);
    REFUSED("delay_ms", d.delay_ms = 15931);
    REFUSED("delay_ms 15931 is too short: (lease_ms 15000 + kill margin 900) * 1.002 = 15932 ms", d.delay_ms = 15931);
    REFUSED("delay_ms", d.delay_ms = MGR_NONE);
    REFUSED("stop_grace_ms", d.stop_grace_ms = 7501);
    REFUSED("session_ttl_ms", d.session_ttl_ms = 999);
    REFUSED("session_ttl_ms", d.session_ttl_ms = 86400001);
    REFUSED("kv_prefix", d.kv_prefix = "a b");
    REFUSED("tags", d.tag_count = 2);
    REFUSED("\"a\" is listed twice", { d.partitions = twice; d.partition_count = 2; });
    REFUSED("\"\" is empty", { d.partitions = empty; d.partition_count = 2; });
    REFUSED("has a control character", { d.partitions = control; d.partition_count = 1; });
    REFUSED("MGR_PARTITION_COUNT_MAX", { d.partitions = twice; d.partition_count = MGR_PARTITION_COUNT_MAX + 1; });
    REFUSED("partitions", d.partition_count = 3);
    REFUSED("token", d.consul_token = "a\r\nX: y");
    REFUSED("consul_token_file /nowhere/at/all", d.consul_token_file = "/nowhere/at/all");
    REFUSED("127.0.0.1:99999", d.consul_addr = "127.0.0.1:99999");
    REFUSED("not zeroed", d._start_canary = 1);
    REFUSED("not zeroed", d._end_canary = 0xa5a5a5a5u);
}

/* By name, when it is opened; a default that will not do is only told of. */
TEST(a_run_dir_that_will_not_do_is_refused)
{
    char above[100], path[120], told[400];
    snprintf(above, sizeof above, "%s/above", scratch_dir);
    snprintf(path, sizeof path, "%s/run", above);
    CHECK(mkdir(above, 0700) == 0 && chmod(above, 0777) == 0);
    snprintf(told, sizeof told, "run_dir \"%s\" is of no use for life files: \"%s\": others may write to it", path, above);
    REFUSED(told, { d.observer = false; d.run_dir = path; });
    REFUSED("run_dir \"/nowhere/at/all\" is of no use", { d.observer = false; d.run_dir = "/nowhere/at/all"; });
    REFUSED("run_dir is run", { d.observer = false; d.run_dir = "run"; });
    mgr_desc d = good_desc();
    mgr *m;
    d.run_dir = path;
    CHECK_INT(mgr_open(&m, &d), MGR_OK);        /* an observer has no life */
    mgr_close(m);
    rmdir(above);
}

TEST(a_struct_full_of_garbage_is_refused)
{
    mgr_desc d;
    mgr *m;
    memset(&d, 0xa5, sizeof d);
    memset(&d.allocator, 0, sizeof d.allocator);
    CHECK_INT(mgr_open(&m, &d), MGR_INVALID);
    CHECK(strstr(mgr_error_text(m), "not zeroed"));
    mgr_close(m);
}

TEST(the_default_delay_fits_the_lease)
{
    static const uint32_t leases[] = { 0, 1000, 3000, 15000, 60000, 86400000 };
    for (size_t i = 0; i < MGR__COUNT(leases); i++) {
        mgr_desc d = good_desc();
        mgr *m;
        d.lease_ms = leases[i];
        CHECK_INT(mgr_open(&m, &d), MGR_OK);
        CHECK(m->desc.delay_ms >= mgr__manager_delay_least(m->desc.lease_ms));
        if (!leases[i]) CHECK_INT(m->desc.delay_ms, 16000);
        mgr_close(m);
    }
    mgr_desc d = good_desc();
    mgr *m;
    d.lease_ms = 10000;
    d.delay_ms = 10921;     /* 10900 * 1.002 = 10921.8: clocks drift */
    refused(&d, "delay_ms");
    d.delay_ms = 10922;
    CHECK_INT(mgr_open(&m, &d), MGR_OK);
    mgr_close(m);
}

TEST(nothing_is_asked_of_nothing)
{
    mgr *m = (mgr *)&m;
    mgr_desc d = good_desc();
    CHECK_INT(mgr_open(NULL, &d), MGR_INVALID);
    CHECK_INT(mgr_open(&m, NULL), MGR_INVALID);
    CHECK(strstr(mgr_error_text(m), "mgr_desc"));
    mgr_close(m);
    CHECK_STR(mgr_error_text(NULL), "out of memory");
    CHECK_INT(mgr_run(NULL), MGR_INVALID);
    CHECK_INT(mgr_step(NULL, 0), MGR_INVALID);
    CHECK_INT(mgr_dispatch(NULL, NULL, 0), MGR_INVALID);
    CHECK_INT(mgr_fd(NULL), -1);
    CHECK_INT(mgr_pollfds(NULL, NULL, 0), 0);
    CHECK_INT(mgr_timeout_ms(NULL), -1);
    CHECK_INT(mgr_post(NULL, NULL, NULL), MGR_INVALID);
    CHECK_INT(mgr_lease_left_ms(NULL), 0);
    CHECK_INT(mgr_grant_left_ms(NULL), 0);
    CHECK_INT(mgr_grant_fence(NULL), 0);
    CHECK_INT(mgr_fence(NULL, "a"), 0);
    CHECK_INT(mgr_pid(NULL, "a"), 0);
    CHECK_INT(mgr_kill(NULL, "a", SIGTERM), MGR_INVALID);
    CHECK_INT(mgr_exec(NULL, "a", NULL, NULL), MGR_INVALID);
    CHECK_INT(mgr_hold(NULL, "a"), MGR_INVALID);
    CHECK_INT(mgr_released(NULL, "a"), MGR_INVALID);
    CHECK_INT(mgr_refuse(NULL, "a", 1), MGR_INVALID);
    CHECK_INT(mgr_evict(NULL, "a"), MGR_INVALID);
    CHECK_INT(mgr_set_partitions(NULL, NULL, 0), MGR_INVALID);
    CHECK_INT(mgr_set_placement(NULL, MGR_PLACEMENT_SLOTS, NULL, 0), MGR_INVALID);
    CHECK_INT(mgr_check_pass(NULL, "a", NULL), MGR_INVALID);
    CHECK_INT(mgr_agent_start(NULL, NULL), MGR_INVALID);
    CHECK_INT(mgr_agent_join(NULL, "a"), MGR_INVALID);
    mgr_leave(NULL);
    mgr_close(NULL);
    mgr_view_free(NULL, NULL);
}

/* ---- callbacks ---- */

static void life_of_in_process_work(void)
{
    host *h = host_open(0, "a");
    WAIT(times(&h->log, "acquire") == 2);
    CHECK(mgr_fence(h->m, "0") > 0 && mgr_fence(h->m, "1") > 0);
    CHECK_INT(mgr_fence(h->m, "2"), 0);
    CHECK_INT(mgr_grant_fence(h->grant), mgr_fence(h->m, "1") > mgr_fence(h->m, "0") ? mgr_fence(h->m, "1") : mgr_fence(h->m, "0"));
    CHECK(mgr_lease_left_ms(h->m) > 0 && mgr_lease_left_ms(h->m) <= LEASE_MS);
    CHECK(mgr_grant_left_ms(h->grant) > 0);
    turns(address == dev_address ? LEASE_MS : 50);     /* the lease is confirmed all along */
    CHECK_STR(mgr__buf_cstr(&h->log), "acquire 0\nacquire 1\n");
    const mgr_grant *grant = h->grant;
    mgr_leave(h->m);
    WAIT(h->over);
    CHECK_INT(h->over, MGR_LEFT);
    CHECK_INT(mgr_step(h->m, 0), MGR_LEFT);
    CHECK_INT(mgr_run(h->m), MGR_OK);
    CHECK_STR(mgr__buf_cstr(&h->log), "acquire 0\nacquire 1\nrelease 0\nrelease 1\n");
    CHECK_INT(h->within_ms, GRACE_MS);
    CHECK_INT(mgr_grant_left_ms(grant), 0);
    CHECK(saw(h, "entered") && saw(h, "assumed 0") && saw(h, "released 1") && saw(h, "left"));
    host_close(h);
}

static int no_random(void *user, void *to, size_t bytes) { (void)user; (void)to; (void)bytes; return -ENOSYS; }

/* Without a name for it there is no life file: work goes on, and the reason is told. */
TEST(a_life_without_its_file_says_why)
{
    host *h = host_open(0, "a");
    mgr__manager_drop_life(h->m, true);
    h->m->io.random = no_random;
    mgr__manager_make_life(h->m);
    h->m->io.random = io.random;
    CHECK_INT(h->m->life_fd, -1);
    WAIT(saw(h, "no life file in"));
    CHECK(saw(h, strerror(ENOSYS)) && saw(h, "a restart waits the delay"));
    leave(h);
}

TEST(in_process_work_is_acquired_and_released) { life_of_in_process_work(); }

TEST(a_pending_release_waits_for_mgr_released)
{
    host *h = host_make(0, "a");
    h->acquire = h->release = MGR_PENDING;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 2);
    mgr_drain(h->m, true);
    WAIT(times(&h->log, "release") == 2);
    turns(150);
    CHECK(!saw(h, "released 0") && !saw(h, "released 1"));
    CHECK_INT(mgr_released(h->m, "1"), MGR_OK);
    WAIT(saw(h, "released 1"));
    CHECK(!saw(h, "released 0"));
    CHECK_INT(mgr_released(h->m, "0"), MGR_OK);
    WAIT(saw(h, "released 0"));
    CHECK_INT(mgr_released(h->m, "0"), MGR_STATE);
    leave(h);
}

static void begin_stubborn(host *h, const char *partition)
{
    const char *argv[] = { self_path, "--worker", scratch(partition), "stubborn", NULL };
    mgr_process p = process_of(argv);
    CHECK_INT(mgr_daemonize(h->m, partition, NULL, &p), MGR_OK);
}

TEST(a_partition_is_released_when_its_process_is_gone)
{
    host *h = host_make(0, "a");
    h->begin = begin_stubborn;
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(works("0"));
    mgr_drain(h->m, true);
    WAIT(saw(h, "releasing 0") && saw(h, "released 0"));
    CHECK(!works("0"));
    leave(h);
}

TEST(mgr_hold_is_released_by_word_only)
{
    host *h = host_make(0, "a");
    h->begin = begin_hold;
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(works("0"));
    mgr_leave(h->m);
    WAIT(!works("0"));          /* on_release said MGR_DONE: its process is stopped */
    turns(100);
    CHECK(!saw(h, "released 0") && !h->over);
    CHECK_INT(mgr_hold(h->m, "0"), MGR_STATE);
    CHECK_INT(mgr_released(h->m, "0"), MGR_OK);
    WAIT(h->over);
    CHECK(saw(h, "released 0"));
    host_close(h);
}

TEST(what_one_is_unfit_for_another_gets)
{
    host *a = host_make(0, "a");
    a->acquire = MGR_UNFIT;
    host_start(a);
    host *b = host_open(1, "b");
    WAIT(times(&b->log, "acquire") == 2 && saw(a, "refused"));
    leave(b);
    leave(a);
}

static void tell_dev(const char *method, const char *path, const char *body)
{
    char text[600];
    struct sockaddr_in to;
    snprintf(text, sizeof text, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %lu\r\nConnection: close\r\n\r\n%s", method, path, (unsigned long)strlen(body), body);
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons((uint16_t)atoi(strchr(dev_address, ':') + 1));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)&to, sizeof to) == 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    CHECK(read(fd, text, sizeof text) > 0);
    close(fd);
}

TEST(a_session_destroyed_is_lost_and_entered_anew)
{
    host *h = host_make(0, "a");
    h->begin = begin_worker;
    host_start(h);
    WAIT(works("0") && works("1"));
    uint64_t fence = mgr_fence(h->m, "0");
    const mgr_grant *grant = h->grant;
    char path[200];
    snprintf(path, sizeof path, "/v1/session/destroy/%s", h->m->cluster.life);
    tell_dev("PUT", path, "");
    WAIT(times(&h->log, "lost") == 2);
    CHECK_INT(h->lost_why, MGR_LOST);
    CHECK_INT(mgr_grant_left_ms(grant), 0);
    WAIT(times(&h->log, "acquire") == 4);
    WAIT(works("0") && works("1"));
    CHECK(saw(h, "certified") && saw(h, "session-lost"));
    CHECK(mgr_fence(h->m, "0") > fence);
    leave(h);
}

/* ---- callbacks that call back ---- */

static void just_hold(host *h, const char *partition) { CHECK_INT(mgr_hold(h->m, partition), MGR_OK); }

static mgr_answer release_inside(mgr *m, const char *partition, uint32_t within_ms, void *user)
{
    on_release(m, partition, within_ms, user);
    CHECK_INT(mgr_released(m, partition), MGR_OK);
    return MGR_PENDING;
}

static void released_inside_lost(mgr *m, const char *partition, mgr_result why, void *user)
{
    on_lost(m, partition, why, user);
    CHECK_INT(mgr_released(m, partition), MGR_OK);
}

TEST(mgr_released_may_be_called_inside_on_release)
{
    host *h = host_make(0, "a");
    h->desc.on_release = release_inside;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 2);
    leave(h);
}

static void begin_slow_and_hold(host *h, const char *partition)
{
    const char *argv[] = { self_path, "--worker", scratch(partition), "slow", NULL };
    mgr_process p = process_of(argv);
    p.stop_grace_ms = 10 * GRACE_MS;
    CHECK_INT(mgr_daemonize(h->m, partition, NULL, &p), MGR_OK);
    CHECK_INT(mgr_hold(h->m, partition), MGR_OK);
}

/* Said inside, it is no longer pending, whatever is returned: the process beside it has
 * the grace of its own, and is not killed when on_release's time is over. */
TEST(mgr_released_beside_its_process_gives_it_its_own_grace)
{
    host *h = host_make(0, "a");
    h->begin = begin_slow_and_hold;
    h->desc.on_release = release_inside;
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(works("0"));
    mgr_leave(h->m);
    WAIT(h->over);
    CHECK(saw(h, "ended: exit 0") && !saw(h, "signal 9"));
    host_close(h);
}

/* A word about an earlier hold is none about a later one. */
TEST(a_hold_after_mgr_released_is_waited_for)
{
    host *h = host_make(0, "a");
    h->begin = begin_worker;
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(works("0"));
    CHECK_INT(mgr_hold(h->m, "0"), MGR_OK);
    CHECK_INT(mgr_released(h->m, "0"), MGR_OK);
    CHECK_INT(mgr_hold(h->m, "0"), MGR_OK);
    h->release = MGR_PENDING;
    mgr_leave(h->m);
    WAIT(called(h, "release 0"));
    turns(50);
    CHECK(works("0") && !saw(h, "released 0"));     /* on_release said that it still needs its process */
    CHECK_INT(mgr_released(h->m, "0"), MGR_OK);
    WAIT(h->over);
    host_close(h);
}

/* A word of the program, not the end of on_lost alone: that is proof, and certified. */
TEST(mgr_released_may_be_called_inside_on_lost)
{
    host *h = host_make(0, "a");
    h->begin = just_hold;
    h->desc.on_lost = released_inside_lost;
    h->desc.on_release = release_inside;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 2);
    mgr__page_close(h->m->keeper.page);
    WAIT(times(&h->log, "lost") == 2 && times(&h->log, "acquire") == 4);
    CHECK(saw(h, "certified"));
    leave(h);
}

typedef struct again { mgr_event_kind kind; int left; mgr_result result; } again;
static again once_more;

static void event_and_again(mgr *m, const mgr_event *e, void *user)
{
    const char *argv[] = { "true", NULL };
    char name[40];
    on_event(m, e, user);
    if (e->kind != once_more.kind || strcmp(e->name, "job") != 0 || once_more.left <= 0) return;
    once_more.left--;
    mgr_process p = process_of(argv);
    snprintf(name, sizeof name, "%s", e->name);
    once_more.result = mgr_exec(m, e->partition, e->name, &p);
    CHECK_STR(e->name, name);       /* the event's texts live until it returns */
}

static void ended_and_again(mgr_event_kind kind, bool daemon)
{
    static char large[MGR_SPAWN_BYTES_MAX + 100];
    const char *argv[3] = { "true", NULL, NULL };
    host *h = host_make(0, "a");
    h->desc.on_event = event_and_again;
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 1);
    memset(large, 'x', sizeof large - 1);
    if (kind == MGR_EVENT_START_FAILED) argv[1] = large;
    mgr_process p = process_of(argv);
    p.backoff_min_ms = 1;
    once_more.kind = kind;
    once_more.left = kind == MGR_EVENT_START_FAILED ? 1 : 3;
    once_more.result = MGR_STATE;
    mgr_result result = daemon ? mgr_daemonize(h->m, "0", "job", &p) : mgr_exec(h->m, "0", "job", &p);
    CHECK_INT(result, kind == MGR_EVENT_START_FAILED ? MGR_LIMIT : MGR_OK);
    if (kind == MGR_EVENT_START_FAILED) usleep(5000);      /* longer than the back-off of what is forgotten */
    int runs = kind == MGR_EVENT_START_FAILED ? 1 : 4;
    WAIT(times(&h->events, "exited 0 job") == runs);
    turns(30);
    CHECK_INT(once_more.result, MGR_OK);
    CHECK_INT(times(&h->events, "started 0 job"), runs);
    CHECK_INT(times(&h->events, "exited 0 job"), runs);
    CHECK_INT(times(&h->events, "ended 0 job"), kind == MGR_EVENT_EXITED ? 1 : runs);      /* the name is another's by then */
    CHECK_INT(times(&h->events, "was to run once"), kind == MGR_EVENT_EXITED ? 1 : runs);
    CHECK(!saw(h, "restart"));
    CHECK_INT(h->m->proc_count, 1);
    leave(h);
}

TEST(a_process_may_be_run_again_inside_the_event_of_its_end)
{
    ended_and_again(MGR_EVENT_ENDED, false);
    ended_and_again(MGR_EVENT_EXITED, false);
    ended_and_again(MGR_EVENT_EXITED, true);
}

TEST(a_process_may_be_run_again_inside_the_event_that_it_cannot_start)
{
    ended_and_again(MGR_EVENT_START_FAILED, false);
    ended_and_again(MGR_EVENT_START_FAILED, true);
}

static void post_again(mgr *m, void *arg)
{
    int *n = (int *)arg;
    if (++*n < 100000) CHECK_INT(mgr_post(m, post_again, arg), MGR_OK);
}

TEST(a_post_that_posts_itself_runs_once_a_turn)
{
    int n = 0;
    host *h = host_open(0, "a");
    WAIT(times(&h->log, "acquire") == 2);
    CHECK_INT(mgr_post(h->m, post_again, &n), MGR_OK);
    CHECK_INT(mgr_step(h->m, 0), MGR_OK);
    CHECK(n >= 1 && n <= 2);        /* a step is two turns at most */
    turns(20);
    CHECK(n > 2 && n < 100000);
    n = 100000;
    leave(h);
}

/* ---- leases ---- */

/* The locks were won, then the program stands still: what has not begun must not. */
static void stand_still(host *h, const char *partition)
{
    (void)partition;
    h->begin = NULL;
    int64_t until = now_ms() + LEASE_MS + 200;
    while (now_ms() < until) usleep(10000);
}

TEST(work_does_not_begin_when_its_lease_has_ended)
{
    host *h = host_make(0, "a");
    h->begin = stand_still;
    host_start(h);
    WAIT(called(h, "lost"));
    CHECK_STR(mgr__buf_cstr(&h->log), "acquire 0\nlost 0\n");
    CHECK(mgr_grant_left_ms(h->grant) == 0 && mgr_fence(h->m, "1") == 0);
    leave(h);
}

static void lose_the_life(host *h, const char *partition)
{
    CHECK_STR(partition, "0");
    h->begin = NULL;
    mgr__cluster_over(&h->m->cluster, MGR_EVENT_SESSION_LOST, "as if the session were gone", now_ms());
}

TEST(what_was_lost_before_it_began_does_not_begin)
{
    host *h = host_make(0, "a");
    h->begin = lose_the_life;
    host_start(h);
    WAIT(called(h, "lost"));
    CHECK_STR(mgr__buf_cstr(&h->log), "acquire 0\nlost 0\n");
    leave(h);
}

/* It certifies by itself should the program die in there. */
static void look_at_the_page(host *h, const char *partition)
{
    CHECK_INT(h->m->keeper.page->in_process, 1);
    begin_worker(h, partition);
}

TEST(the_keeper_knows_of_work_before_it_begins)
{
    host *h = host_make(0, "a");
    h->begin = look_at_the_page;
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(works("0"));
    CHECK_INT(h->m->keeper.page->in_process, 0);    /* a process is all there is */
    leave(h);
}

static const mgr_grant *grants_of[2];
static int64_t left_inside[2];
static void keep_grant(host *h, const char *partition) { grants_of[partition[0] - '0'] = h->grant; }

static void look_at_grants(mgr *m, const char *partition, mgr_result why, void *user)
{
    on_lost(m, partition, why, user);
    for (int i = 0; i < 2; i++) left_inside[i] = mgr_grant_left_ms(grants_of[i]);
}

TEST(the_grant_of_a_partition_lost_alone_is_closed_first)
{
    char path[200];
    host *h = host_make(0, "a");
    h->begin = keep_grant;
    h->desc.on_lost = look_at_grants;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 2);
    CHECK(mgr_grant_left_ms(grants_of[0]) > 0 && mgr_grant_left_ms(grants_of[1]) > 0);
    h->begin = NULL;
    snprintf(path, sizeof path, "/v1/kv/manager/%s/owners/1", h->service);
    tell_dev("PUT", path, "{\"state\":\"held\"}");
    WAIT(called(h, "lost 1"));
    CHECK(left_inside[0] > 0);
    CHECK_INT(left_inside[1], 0);
    CHECK(!called(h, "lost 0"));
    leave(h);
}

/* Nobody is left who could see the work dead, so nobody says so. */
TEST(guard_and_keeper_both_killed_leave_no_certificate)
{
    char life[40];
    host *h = host_make(0, "a");
    h->begin = begin_worker;
    h->desc.isolate = MGR_ISOLATE_NONE;
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(works("0"));
    mgr__copy_text(life, sizeof life, mgr__str_of(h->m->cluster.life));
    pid_t guard = h->m->keeper.page->guard, left[2];
    left[0] = h->m->keeper.page->keeper;
    left[1] = mgr_pid(h->m, "0");
    kill(guard, SIGSTOP);
    kill(left[0], SIGKILL);
    kill(guard, SIGKILL);
    for (int i = 0; i < 2; i++) {       /* they become ours, who are a subreaper here */
        int64_t until = now_ms() + PATIENCE_MS;
        while (waitpid(left[i], NULL, WNOHANG) != left[i] && now_ms() < until) usleep(1000);
    }
    WAIT(times(&h->events, ": entered service") == 2);
    CHECK(saw(h, "keeper-lost") && !saw(h, "certified") && strcmp(life, h->m->cluster.life) != 0);
    leave(h);
}

TEST(no_lease_is_left_once_a_life_is_lost)
{
    host *h = host_make(0, "a");
    h->begin = just_hold;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 2);
    turns(20);
    int64_t word = mgr__keeper_lease(&h->m->keeper);
    CHECK(mgr_lease_left_ms(h->m) > 0 && mgr_grant_left_ms(h->grant) > 0);
    mgr__cluster_over(&h->m->cluster, MGR_EVENT_SESSION_LOST, "as if the session were gone", now_ms());
    CHECK_INT(mgr_step(h->m, 0), MGR_OK);
    CHECK(times(&h->log, "lost") == 2 && word > now_ms());     /* the keeper's word is still open, and says nothing any more */
    CHECK_INT(mgr_lease_left_ms(h->m), 0);
    CHECK_INT(mgr_grant_left_ms(h->grant), 0);
    mgr_released(h->m, "0");
    mgr_released(h->m, "1");
    leave(h);
}

TEST(a_grant_stays_open_during_a_planned_release)
{
    host *h = host_make(0, "a");
    h->release = MGR_PENDING;
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 1);
    mgr_drain(h->m, true);
    WAIT(called(h, "release 0"));
    turns(50);
    CHECK(mgr_grant_left_ms(h->grant) > 0);     /* it may still write what it has to */
    CHECK(mgr_fence(h->m, "0") == mgr_grant_fence(h->grant));
    CHECK_INT(mgr_released(h->m, "0"), MGR_OK);
    CHECK_INT(mgr_grant_left_ms(h->grant), 0);
    leave(h);
}

/* on_lost has returned, but that is no proof: it may go on for all we know. */
TEST(in_process_work_lost_earlier_leaves_its_life_uncertified)
{
    char path[200], life[40];
    host *h = host_make(0, "a");
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 1);
    mgr__copy_text(life, sizeof life, mgr__str_of(h->m->cluster.life));
    h->begin = begin_worker;
    snprintf(path, sizeof path, "/v1/kv/manager/%s/owners/0", h->service);
    tell_dev("PUT", path, "{\"state\":\"held\"}");
    WAIT(works("0"));                           /* lost alone, and taken anew: processes only, now */
    CHECK(called(h, "lost 0") && times(&h->log, "acquire") == 2);
    CHECK_STR(h->m->cluster.life, life);
    CHECK(h->m->keeper.page->in_process);       /* nor does the keeper certify it */
    snprintf(path, sizeof path, "/v1/session/destroy/%s", life);
    tell_dev("PUT", path, "");
    WAIT(times(&h->events, ": entered service") == 2);
    CHECK(!saw(h, "certified") && times(&h->log, "lost 0") == 2);
    CHECK(!h->m->keeper.page->in_process && !works("0"));
    leave(h);
}

/* ---- threads, signals, reentrancy, forks ---- */

static void *watch_grant(void *arg)
{
    const mgr_grant *grant = (const mgr_grant *)arg;
    int64_t until = now_ms() + PATIENCE_MS;
    uint64_t fence = mgr_grant_fence(grant);
    bool open = mgr_grant_left_ms(grant) > 0;
    while (mgr_grant_left_ms(grant) > 0 && now_ms() < until) usleep(500);
    return open && fence && mgr_grant_left_ms(grant) <= 0 ? arg : NULL;
}

TEST(a_grant_is_watched_from_another_thread)
{
    pthread_t thread;
    void *seen = NULL;
    host *h = host_open(0, "a");
    WAIT(times(&h->log, "acquire") == 2);
    CHECK_INT(pthread_create(&thread, NULL, watch_grant, (void *)(uintptr_t)h->grant), 0);
    turns(100);
    mgr_leave(h->m);
    WAIT(h->over);
    pthread_join(thread, &seen);
    CHECK(seen != NULL);
    host_close(h);
}

typedef struct poster { mgr *m; int number, next, sent, refused; bool ordered; } poster;
typedef struct letter { poster *from; int number; } letter;
static letter letters[4][50];
static int    letters_read;

static void read_letter(mgr *m, void *arg)
{
    letter *l = (letter *)arg;
    (void)m;
    if (l->number != l->from->next++) l->from->ordered = false;
    letters_read++;
}

static void *post_letters(void *arg)
{
    poster *p = (poster *)arg;
    for (int i = 0; i < 50; i++) {
        letters[p->number][i].from = p;
        letters[p->number][i].number = i;
        while (mgr_post(p->m, read_letter, &letters[p->number][i]) == MGR_LIMIT) { p->refused++; usleep(100); }
        p->sent++;
    }
    return NULL;
}

TEST(posts_of_threads_arrive_in_order)
{
    pthread_t threads[4];
    poster posters[4];
    host *h = host_open(0, "a");
    letters_read = 0;
    memset(posters, 0, sizeof posters);
    for (int i = 0; i < 4; i++) {
        posters[i].m = h->m;
        posters[i].number = i;
        posters[i].ordered = true;
        CHECK_INT(pthread_create(&threads[i], NULL, post_letters, &posters[i]), 0);
    }
    WAIT(letters_read == 200);
    for (int i = 0; i < 4; i++) { pthread_join(threads[i], NULL); CHECK(posters[i].ordered && posters[i].sent == 50); }
    leave(h);
}

static mgr *signal_m;
static int  counted;
static void count(mgr *m, void *arg) { (void)m; counted += arg == &counted; }
static void post_from_handler(int number) { (void)number; mgr_post(signal_m, count, &counted); }
static void step_inside(mgr *m, void *arg) { *(mgr_result *)arg = mgr_step(m, 0); }

TEST(posts_come_from_signal_handlers_and_have_a_limit)
{
    struct sigaction act, was;
    host *h = host_open(0, "a");
    memset(&act, 0, sizeof act);
    act.sa_handler = post_from_handler;
    signal_m = h->m;
    counted = 0;
    sigaction(SIGUSR1, &act, &was);
    raise(SIGUSR1);
    sigaction(SIGUSR1, &was, NULL);
    CHECK_INT(counted, 0);
    for (int i = 1; i < MGR__POST_COUNT_MAX; i++) CHECK_INT(mgr_post(h->m, count, &counted), MGR_OK);
    CHECK_INT(mgr_post(h->m, count, &counted), MGR_LIMIT);
    WAIT(counted == MGR__POST_COUNT_MAX);
    CHECK_INT(mgr_post(h->m, count, &counted), MGR_OK);
    mgr_result inside = MGR_OK;
    CHECK_INT(mgr_post(h->m, step_inside, &inside), MGR_OK);
    WAIT(counted == MGR__POST_COUNT_MAX + 1 && inside != MGR_OK);
    CHECK_INT(inside, MGR_REENTRANT);
    leave(h);
}

static void wake_late(mgr *m, void *arg) { (void)m; (void)arg; }

static void *post_late(void *arg)
{
    usleep(20000);
    mgr_post((mgr *)arg, wake_late, NULL);
    return NULL;
}

TEST(a_post_wakes_a_step_that_waits)
{
    pthread_t thread;
    host *h = host_make(0, "a");
    h->desc.partition_count = 0;
    host_start(h);
    WAIT(saw(h, "entered"));
    turns(50);
    CHECK_INT(pthread_create(&thread, NULL, post_late, h->m), 0);
    int64_t start = now_ms();
    for (int i = 0; i < 3; i++) CHECK_INT(mgr_step(h->m, 15), MGR_OK);
    CHECK(now_ms() - start < PATIENCE_MS);
    pthread_join(thread, NULL);
    leave(h);
}

TEST(stepping_inside_a_callback_is_refused)
{
    host *h = host_make(0, "a");
    h->reenters = true;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 2);
    for (int i = 0; i < 3; i++) CHECK_INT(h->reentered[i], MGR_REENTRANT);
    leave(h);
}

static int calls_in_a_forked_child(host *h)
{
    const char *argv[2];
    mgr_check check;
    argv[0] = "true"; argv[1] = NULL;
    mgr_process p = process_of(argv);
    memset(&check, 0, sizeof check);
    check.ttl_ms = 1000;
    if (mgr_step(h->m, 0) != MGR_FORKED || mgr_run(h->m) != MGR_FORKED || mgr_dispatch(h->m, NULL, 0) != MGR_FORKED) return 1;
    if (mgr_exec(h->m, "0", "x", &p) != MGR_FORKED || mgr_daemonize(h->m, "0", "x", &p) != MGR_FORKED || mgr_kill(h->m, "0", SIGKILL) != MGR_FORKED) return 2;
    if (mgr_hold(h->m, "0") != MGR_FORKED || mgr_released(h->m, "0") != MGR_FORKED || mgr_drain(h->m, true) != MGR_FORKED) return 3;
    if (mgr_refuse(h->m, "0", 1) != MGR_FORKED || mgr_evict(h->m, "a") != MGR_FORKED || mgr_set_partitions(h->m, two, 1) != MGR_FORKED) return 4;
    if (mgr_check_ttl(h->m, NULL, &check) != MGR_FORKED || mgr_check_pass(h->m, "x", NULL) != MGR_FORKED) return 5;
    if (mgr_post(h->m, count, NULL) != MGR_FORKED) return 6;
    mgr_leave(h->m);            /* must not make the parent leave */
    mgr_close(h->m);
    return 0;
}

TEST(a_forked_child_can_do_no_harm)
{
    host *h = host_make(0, "a");
    int status = 0;
    h->begin = begin_worker;
    host_start(h);
    WAIT(works("0") && works("1"));
    pid_t pid = fork();
    if (pid == 0) _exit(calls_in_a_forked_child(h));
    waitpid(pid, &status, 0);
    CHECK_INT(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 0);
    turns(LEASE_MS - GRACE_MS + 100);       /* without a confirmation it would be lost by now */
    CHECK(works("0") && works("1") && !h->over);
    CHECK(!called(h, "release") && !called(h, "lost"));
    leave(h);
    CHECK(!works("0") && !works("1"));
}

/* ---- somebody else's loop ---- */

TEST(a_foreign_loop_needs_one_descriptor)
{
    host *h = host_open(0, "a");
    mgr_result result = MGR_OK;
    bool left = false;
    if (mgr_fd(h->m) < 0) { host_close(h); SKIP("no epoll here"); }
    for (int64_t until = now_ms() + PATIENCE_MS; result == MGR_OK && now_ms() < until;) {
        struct pollfd fd;
        fd.fd = mgr_fd(h->m);
        fd.events = POLLIN;
        fd.revents = 0;
        if (poll(&fd, 1, 3000) == 0) { CHECK(!"timers are in the descriptor"); break; }
        result = mgr_dispatch(h->m, NULL, 0);
        if (times(&h->log, "acquire") == 2 && !left) { left = true; mgr_leave(h->m); }
    }
    CHECK_INT(result, MGR_LEFT);
    host_close(h);
}

TEST(a_foreign_loop_may_poll_for_itself)
{
    host *h = host_open(0, "a");
    mgr_result result = MGR_OK;
    bool left = false;
    int waits = 0;
    int64_t entered = 0;
    for (int64_t until = now_ms() + PATIENCE_MS; result == MGR_OK && now_ms() < until; waits++) {
        struct pollfd fds[16];
        size_t needed = mgr_pollfds(h->m, fds, MGR__COUNT(fds));
        CHECK(needed > 0 && needed <= MGR__COUNT(fds));
        CHECK_INT(mgr_pollfds(h->m, fds, 0), needed);
        int timeout = mgr_timeout_ms(h->m);
        if (times(&h->log, "acquire") == 2 && !left) CHECK(timeout >= 0 && timeout <= MGR_KILL_MARGIN_MS / 4);
        poll(fds, (nfds_t)needed, timeout);
        result = mgr_dispatch(h->m, fds, needed);
        if (times(&h->log, "acquire") == 2 && !entered) { entered = now_ms(); waits = 0; }
        if (entered && now_ms() - entered > LEASE_MS / 3 && !left) { CHECK(waits < 200); left = true; mgr_leave(h->m); }    /* it does not spin */
    }
    CHECK_INT(result, MGR_LEFT);
    CHECK(!called(h, "lost"));
    host_close(h);
}

/* ---- processes ---- */

TEST(a_process_is_run_once_with_its_environment)
{
    const char *argv[] = { "/bin/sh", "-c", "echo \"$MANAGER_SERVICE|$MANAGER_INSTANCE|$MANAGER_PARTITION|$MANAGER_FENCE|$MANAGER_ATTEMPT|$OWN|$CONSUL_HTTP_TOKEN|$PWD\" >\"$OUT\"; exit 3", NULL };
    char out[200], wanted[300];
    const char *env[] = { "OWN=x y", out, NULL };
    host *h = host_make(0, "a");
    setenv("CONSUL_HTTP_TOKEN", "secret", 1);
    setenv("MANAGER_FENCE", "1", 1);
    snprintf(out, sizeof out, "OUT=%s", scratch("env"));
    unlink(scratch("env"));
    host_start(h);
    unsetenv("CONSUL_HTTP_TOKEN");
    setenv("CONSUL_HTTP_TOKEN", "other", 1);
    WAIT(times(&h->log, "acquire") == 2);
    mgr_process p = process_of(argv);
    p.env = env;
    p.directory = "/tmp";
    CHECK_INT(mgr_exec(h->m, "0", "job", &p), MGR_OK);
    CHECK_INT(mgr_exec(h->m, "0", "job", &p), MGR_CONFLICT);
    CHECK_INT(mgr_exec(h->m, "1", "job", &p), MGR_CONFLICT);
    WAIT(saw(h, "ended 0 job"));
    CHECK(saw(h, "started 0 job") && saw(h, "exit 3"));
    CHECK_INT(mgr_pid(h->m, "job"), 0);
    snprintf(wanted, sizeof wanted, "%s|a|0|%llu|1|x y||/tmp\n", h->service, (unsigned long long)mgr_fence(h->m, "0"));
    CHECK_STR(read_file("env"), wanted);
    turns(100);
    CHECK_INT(times(&h->events, "started 0 job"), 1);
    CHECK_INT(mgr_exec(h->m, "0", "job", &p), MGR_OK);      /* it has ended: the name is free again */
    WAIT(times(&h->events, "ended 0 job") == 2);
    unsetenv("CONSUL_HTTP_TOKEN");
    unsetenv("MANAGER_FENCE");
    leave(h);
}

TEST(a_daemon_is_restarted_with_back_off)
{
    const char *argv[] = { "/bin/sh", "-c", "exit 4", NULL }, *none[] = { "/no/such/program", NULL };
    host *h = host_open(0, "a");
    WAIT(times(&h->log, "acquire") == 2);
    mgr_process p = process_of(argv);
    p.backoff_min_ms = 20;
    p.backoff_max_ms = 80;
    CHECK_INT(mgr_daemonize(h->m, "0", "daemon", &p), MGR_OK);
    WAIT(times(&h->events, "started 0 daemon") >= 4);
    CHECK(saw(h, "exit 4; restart in 20 ms") && saw(h, "restart in 40 ms") && saw(h, "restart in 80 ms"));
    CHECK(!saw(h, "ended 0 daemon"));
    CHECK_INT(mgr_daemonize(h->m, "0", "daemon", &p), MGR_CONFLICT);
    p = process_of(none);
    CHECK_INT(mgr_exec(h->m, "1", "none", &p), MGR_OK);
    WAIT(saw(h, "start-failed 1 none"));
    CHECK(saw(h, "No such file"));
    leave(h);
}

TEST(processes_are_found_signalled_and_stopped)
{
    const char *argv[5];
    host *h = host_make(0, "a");
    h->begin = begin_worker;
    host_start(h);
    WAIT(works("0") && works("1"));
    WAIT(mgr_pid(h->m, "0") > 0);
    pid_t pid = mgr_pid(h->m, "0");
    CHECK_INT(kill(pid, 0), 0);
    CHECK_INT(mgr_kill(h->m, "nobody", SIGTERM), MGR_NOT_FOUND);
    CHECK(strstr(mgr_error_text(h->m), "nobody"));
    CHECK_INT(mgr_kill(h->m, "0", SIGKILL), MGR_OK);
    WAIT(saw(h, "exited 0 0") && saw(h, "signal 9"));
    WAIT(works("0") && mgr_pid(h->m, "0") != pid);          /* restarted */
    argv[0] = self_path; argv[1] = "--worker"; argv[2] = scratch("stubborn"); argv[3] = "stubborn"; argv[4] = NULL;
    mgr_process p = process_of(argv);
    CHECK_INT(mgr_exec(h->m, "2", NULL, &p), MGR_STATE);
    CHECK_INT(mgr_exec(h->m, NULL, NULL, &p), MGR_INVALID);
    CHECK_INT(mgr_exec(h->m, "0", NULL, NULL), MGR_INVALID);
    p._end_canary = 7;
    CHECK_INT(mgr_exec(h->m, "0", "x", &p), MGR_INVALID);
    p._end_canary = 0;
    p.stop_grace_ms = 100;
    CHECK_INT(mgr_exec(h->m, "0", "stubborn", &p), MGR_OK);
    WAIT(works("stubborn"));
    leave(h);                   /* SIGTERM does not help: SIGKILL */
    CHECK(!works("stubborn") && !works("0") && !works("1"));
}

TEST(large_environments_are_refused_by_name)
{
    static char large[MGR_SPAWN_BYTES_MAX + 100];
    const char *argv[3];
    host *h = host_open(0, "a");
    memset(large, 'x', sizeof large - 1);
    argv[0] = "true"; argv[1] = large; argv[2] = NULL;
    mgr_process p = process_of(argv);
    WAIT(times(&h->log, "acquire") == 2);
    CHECK_INT(mgr_exec(h->m, "0", "big", &p), MGR_LIMIT);
    CHECK(strstr(mgr_error_text(h->m), "big"));
    leave(h);
}

/* ---- the host keeps to itself (invariant 8) ---- */

static volatile sig_atomic_t chld;
static void on_chld(int number) { (void)number; chld++; }

TEST(the_host_s_children_signals_and_descriptors_are_its_own)
{
    struct sigaction act, was, is;
    sigset_t mask_before, mask_after;
    int status;
    int fds = descriptors();
    memset(&act, 0, sizeof act);
    act.sa_handler = on_chld;
    sigaction(SIGCHLD, &act, &was);
    sigprocmask(SIG_SETMASK, NULL, &mask_before);
    chld = 0;
    host *h = host_make(0, "a");
    h->begin = begin_worker;
    host_start(h);
    WAIT(works("0") && works("1"));
    CHECK_INT(waitpid(-1, &status, WNOHANG), 0);            /* the servers of this test are children that live */
    pid_t pid = fork();
    if (pid == 0) _exit(7);
    turns(50);
    CHECK_INT(waitpid(-1, &status, 0), pid);
    CHECK_INT(WEXITSTATUS(status), 7);
    CHECK_INT(chld, 1);
    CHECK_INT(mgr_kill(h->m, "0", SIGKILL), MGR_OK);        /* workers' ends are no signal here either */
    WAIT(saw(h, "exited 0"));
    CHECK_INT(chld, 1);
    sigprocmask(SIG_SETMASK, NULL, &mask_after);
    sigaction(SIGCHLD, NULL, &is);
    CHECK(is.sa_handler == on_chld);
    for (int i = 1; i < 32; i++) CHECK_INT(sigismember(&mask_before, i), sigismember(&mask_after, i));
    leave(h);
    CHECK_INT(chld, 1);
    CHECK_INT(descriptors(), fds);
    sigaction(SIGCHLD, &was, NULL);
}

TEST(handle_signals_leaves_and_restores_the_mask)
{
    sigset_t before, after;
    int fds = descriptors();
    sigprocmask(SIG_SETMASK, NULL, &before);
    host *h = host_make(0, "a");
    h->desc.handle_signals = true;
    host_start(h);
    WAIT(times(&h->log, "acquire") == 2);
    kill(getpid(), SIGTERM);
    WAIT(h->over);
    CHECK_INT(h->over, MGR_LEFT);
    host_close(h);
    sigprocmask(SIG_SETMASK, NULL, &after);
    for (int i = 1; i < 32; i++) CHECK_INT(sigismember(&before, i), sigismember(&after, i));
    CHECK_INT(descriptors(), fds);
}

TEST(closing_without_leaving_stops_the_work)
{
    host *h = host_make(0, "a");
    h->begin = begin_worker;
    host_start(h);
    WAIT(works("0") && works("1"));
    host_close(h);
    WAIT(!works("0") && !works("1"));
    service_number--;                       /* the same service: what was certified may be taken at once */
    h = host_open(0, "b");
    WAIT(times(&h->log, "acquire") == 2);
    leave(h);
}

/* ---- checks ---- */

static mgr__buf check_log;
static void check_passes(mgr *m, const char *id, const char *partition, void *user) { (void)m; (void)partition; (void)user; mgr__buf_printf(&check_log, "%s pass\n", id); }
static void check_warns(mgr *m, const char *id, const char *partition, void *user) { (void)m; (void)partition; (void)user; mgr__buf_printf(&check_log, "%s warn\n", id); }
static void check_fails(mgr *m, const char *id, const char *partition, void *user) { (void)m; (void)partition; (void)user; mgr__buf_printf(&check_log, "%s fail\n", id); }

static mgr_check check_of(const char *id)
{
    mgr_check c;
    memset(&c, 0, sizeof c);
    c.id = id;
    c.on_pass = check_passes;
    c.on_warning = check_warns;
    c.on_failure = check_fails;
    mgr__buf_free(&check_log);
    return c;
}

TEST(a_script_check_calls_its_handlers_once_a_change)
{
    const char *argv[] = { "/bin/sh", "-c", NULL, NULL };
    char command[200];
    host *h = host_open(0, "a");
    mgr_check c = check_of("disk");
    WAIT(times(&h->log, "acquire") == 2);
    write_file("status", "0");
    snprintf(command, sizeof command, "exit $(cat %s)", scratch("status"));
    argv[2] = command;
    c.argv = argv;
    c.interval_ms = 20;
    char longest[MGR_NAME_BYTES_MAX + 2];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    c.id = longest;
    CHECK_INT(mgr_check_script(h->m, "0", &c), MGR_INVALID);
    CHECK(strstr(mgr_error_text(h->m), "MGR_NAME_BYTES_MAX") != NULL);
    c.id = "";
    CHECK_INT(mgr_check_script(h->m, "0", &c), MGR_INVALID);
    c.id = "disk";
    CHECK_INT(mgr_check_script(h->m, "0", &c), MGR_OK);
    WAIT(times(&check_log, "disk pass") == 1);
    turns(100);
    CHECK_STR(mgr__buf_cstr(&check_log), "disk pass\n");
    write_file("status", "1");
    WAIT(times(&check_log, "disk warn") == 1);
    write_file("status", "2");
    WAIT(times(&check_log, "disk fail") == 1);
    turns(80);
    write_file("status", "0");
    WAIT(times(&check_log, "disk pass") == 2);
    CHECK_STR(mgr__buf_cstr(&check_log), "disk pass\ndisk warn\ndisk fail\ndisk pass\n");
    CHECK(saw(h, "check 0 disk: check disk is critical: exit 2"));
    CHECK(!saw(h, "exited 0 disk") && !saw(h, "ended 0 disk"));      /* no process of the partition's */
    leave(h);
}

TEST(a_check_may_be_given_again_while_its_script_runs)
{
    const char *argv[] = { "/bin/sh", "-c", NULL, NULL };
    char command[300];
    host *h = host_open(0, "a");
    mgr_check c = check_of("disk");
    WAIT(times(&h->log, "acquire") == 2);
    unlink(scratch("env"));
    write_file("status", "");
    snprintf(command, sizeof command, "echo run >>%s; while [ -e %s ]; do sleep 0.02; done; exit 1", scratch("env"), scratch("status"));
    argv[2] = command;
    c.argv = argv;
    c.interval_ms = 20;
    CHECK_INT(mgr_check_script(h->m, "0", &c), MGR_OK);
    WAIT(read_file("env")[0]);
    for (int i = 0; i < 3; i++) {
        c.on_warning = i == 2 ? check_passes : check_fails;
        CHECK_INT(mgr_check_script(h->m, "0", &c), MGR_OK);
        turns(60);
    }
    CHECK_STR(read_file("env"), "run\n");               /* the one that runs goes on, and no other beside it */
    CHECK_INT(h->m->check_count, 1);
    CHECK_INT(mgr_check_script(h->m, "1", &c), MGR_CONFLICT);
    CHECK(strstr(mgr_error_text(h->m), "disk exists already, of 0"));
    CHECK_INT(mgr_check_script(h->m, NULL, &c), MGR_CONFLICT);
    unlink(scratch("status"));
    WAIT(times(&check_log, "disk pass") == 1);          /* its result reaches the newest handler */
    WAIT(times(&h->events, "check 0 disk: check disk is warning") == 1);
    CHECK_STR(mgr__buf_cstr(&check_log), "disk pass\n");
    leave(h);
}

TEST(a_script_over_its_time_fails)
{
    const char *argv[] = { "/bin/sleep", "60", NULL };
    host *h = host_open(0, "a");
    mgr_check c = check_of("slow");
    WAIT(times(&h->log, "acquire") == 2);
    c.argv = argv;
    c.interval_ms = 20;
    c.timeout_ms = 60;
    CHECK_INT(mgr_check_script(h->m, NULL, &c), MGR_OK);
    WAIT(times(&check_log, "slow fail") == 1);
    CHECK(saw(h, "killed after 60 ms"));
    leave(h);
}

TEST(a_critical_check_may_refuse_the_partition)
{
    host *a = host_make(0, "a");
    a->desc.partition_count = 1;
    host_start(a);
    WAIT(times(&a->log, "acquire") == 1);
    host *b = host_make(1, "b");
    b->desc.partition_count = 1;
    b->desc.weight = 1;
    host_start(b);
    WAIT(saw(b, "entered"));
    turns(100);
    host *owner = mgr_fence(a->m, "0") ? a : b, *other = owner == a ? b : a;
    mgr_check c = check_of("fit");
    c.ttl_ms = 100000;
    c.policy = MGR_CHECK_REFUSE;
    CHECK_INT(mgr_check_ttl(owner->m, "0", &c), MGR_OK);
    CHECK_INT(mgr_check_fail(owner->m, "fit", "disk full"), MGR_OK);
    CHECK_STR(mgr__buf_cstr(&check_log), "fit fail\n");
    WAIT(mgr_fence(other->m, "0") > 0);
    CHECK(saw(owner, "refused 0") && saw(owner, "critical: disk full"));
    leave(b);
    leave(a);
}

TEST(a_critical_check_may_restart_the_daemons)
{
    host *h = host_make(0, "a");
    h->begin = begin_worker;
    h->desc.partition_count = 1;
    host_start(h);
    WAIT(works("0") && mgr_pid(h->m, "0") > 0);
    pid_t pid = mgr_pid(h->m, "0");
    mgr_check c = check_of("alive");
    c.ttl_ms = 100000;
    c.policy = MGR_CHECK_RESTART;
    CHECK_INT(mgr_check_ttl(h->m, "0", &c), MGR_OK);
    CHECK_INT(mgr_check_fail(h->m, "alive", NULL), MGR_OK);
    WAIT(mgr_pid(h->m, "0") > 0 && mgr_pid(h->m, "0") != pid && works("0"));
    CHECK(!called(h, "release") && !saw(h, "refused"));
    leave(h);
}

TEST(a_ttl_check_without_a_report_is_critical)
{
    host *h = host_open(0, "a");
    mgr_check c = check_of("beat");
    c.ttl_ms = 60;
    CHECK_INT(mgr_check_ttl(h->m, NULL, &c), MGR_OK);
    WAIT(times(&h->log, "acquire") == 2);
    WAIT(times(&check_log, "beat fail") == 1);
    CHECK_INT(mgr_check_pass(h->m, "beat", "here"), MGR_OK);
    CHECK_STR(mgr__buf_cstr(&check_log), "beat fail\nbeat pass\n");
    CHECK_INT(mgr_check_warn(h->m, "beat", NULL), MGR_OK);
    WAIT(times(&check_log, "beat fail") == 2);
    CHECK_INT(mgr_check_pass(h->m, "nothing", NULL), MGR_NOT_FOUND);
    c.ttl_ms = 0;
    CHECK_INT(mgr_check_ttl(h->m, NULL, &c), MGR_INVALID);
    CHECK_INT(mgr_check_script(h->m, NULL, &c), MGR_INVALID);
    c._start_canary = 1;
    CHECK_INT(mgr_check_ttl(h->m, NULL, &c), MGR_INVALID);
    leave(h);
}

/* The worker says it to Consul itself, with what its environment tells it. */
static void by_worker(void)
{
    const char *argv[] = { "/bin/sh", "-c", "echo \"$MANAGER_CHECK_ID\" >\"$OUT\"; sleep 60", NULL };
    char out[200], line[2000], answer[64] = "";
    const char *env[] = { out, NULL };
    mgr__address to;
    size_t to_count;
    mgr__buf error;
    host *h = host_make(0, "a");
    mgr_check c = check_of("beat");
    host_start(h);
    WAIT(times(&h->log, "acquire") == 2);
    c.ttl_ms = 30000;
    c.by_worker = true;
    unlink(scratch("check"));
    snprintf(out, sizeof out, "OUT=%s", scratch("check"));
    CHECK_INT(mgr_check_ttl(h->m, "0", &c), MGR_OK);
    mgr_process p = process_of(argv);
    p.env = env;
    CHECK_INT(mgr_exec(h->m, "0", NULL, &p), MGR_OK);
    WAIT(read_file("check")[0]);
    WAIT(times(&check_log, "beat pass") == 1);
    char id[400];
    snprintf(id, sizeof id, "%s", read_file("check"));
    id[strcspn(id, "\n")] = 0;
    CHECK(strstr(id, "/beat"));
    snprintf(line, sizeof line, "PUT /v1/agent/check/fail/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", id);
    mgr__buf_init(&error, &heap, 1000);
    CHECK_INT(mgr__io_lookup(&io, address, &to, 1, &to_count, &error), MGR_OK);
    mgr__buf_free(&error);
    int fd = socket(((struct sockaddr *)(void *)&to.at)->sa_family, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)(void *)&to.at, to.len) == 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line));
    CHECK(read(fd, answer, sizeof answer - 1) > 0 && strstr(answer, "200"));
    close(fd);
    h->m->checks[0]->poll_at = 0;       /* Consul is asked once a second at most: not now */
    WAIT(times(&check_log, "beat fail") == 1);
    leave(h);
}

TEST(a_worker_reports_its_check_to_consul_itself) { by_worker(); }

/* ---- the cluster: commands and views ---- */

static void commands_and_views(void)
{
    static const char *const three[] = { "1", "2", "3" }, *const twice[] = { "1", "1" };
    mgr_view *view = NULL;
    host *o = observer_open(0);
    CHECK_INT(mgr_view_read(o->m, 3000, &view), MGR_NOT_FOUND);
    CHECK(!view && strstr(mgr_error_text(o->m), "no partition set"));
    host *a = host_open(1, "a");
    WAIT(times(&a->log, "acquire") == 2);
    host *b = host_open(2, "b");
    WAIT(times(&b->log, "acquire") == 1);
    CHECK_INT(mgr_set_partitions(a->m, twice, 2), MGR_INVALID);
    CHECK(strstr(mgr_error_text(a->m), "\"1\" is listed twice"));
    CHECK_INT(mgr_set_partitions(a->m, three, 3), MGR_OK);
    WAIT(!mgr_fence(a->m, "0") && !mgr_fence(b->m, "0") && (mgr_fence(a->m, "2") || mgr_fence(b->m, "2")) && (mgr_fence(a->m, "3") || mgr_fence(b->m, "3")));
    turns(50);
    CHECK_INT(mgr_view_read(o->m, 3000, &view), MGR_OK);
    CHECK(view && view->partition_count == 3 && view->instance_count == 2 && view->converged);
    uint64_t index = view ? view->index : 1;
    for (size_t i = 0; view && i < 3; i++) {
        const mgr_view_partition *p = &view->partitions[i];
        CHECK(p->owner && p->assigned && p->state == MGR_VIEW_ASSUMED && p->since[0] && !p->lost);
        if (p->owner) CHECK_INT(p->fence, mgr_fence(strcmp(p->owner, "a") ? b->m : a->m, p->name));
    }
    mgr_view_free(o->m, view);
    CHECK_INT(mgr_evict(o->m, "nobody"), MGR_NOT_FOUND);
    CHECK_INT(mgr_wish_drain(o->m, "a", true), MGR_OK);
    CHECK_INT(mgr_view_wait(o->m, index, 3000), MGR_OK);
    WAIT(mgr_fence(b->m, "1") && mgr_fence(b->m, "2") && mgr_fence(b->m, "3"));
    CHECK(!a->over);
    CHECK_INT(mgr_wish_drain(o->m, "a", false), MGR_OK);
    CHECK_INT(mgr_evict(o->m, "b"), MGR_OK);
    WAIT(b->over);
    CHECK_INT(b->over, MGR_EVICTED);
    CHECK_INT(mgr_run(b->m), MGR_EVICTED);
    WAIT(mgr_fence(a->m, "1") && mgr_fence(a->m, "2") && mgr_fence(a->m, "3"));
    CHECK_INT(mgr_set_partitions(o->m, two, 1), MGR_OK);
    CHECK_INT(mgr_set_placement(o->m, MGR_PLACEMENT_DEFAULT, NULL, 0), MGR_INVALID);
    CHECK_INT(mgr_set_placement(o->m, (mgr_placement)7, NULL, 0), MGR_INVALID);
    CHECK_INT(mgr_set_placement(o->m, MGR_PLACEMENT_SLOTS, NULL, 0), MGR_OK);
    CHECK_INT(mgr_set_placement(o->m, MGR_PLACEMENT_RUSH, two, 1), MGR_OK);
    WAIT(mgr_fence(a->m, "0") && !mgr_fence(a->m, "3"));
    host_close(b);
    leave(a);
    host_close(o);
}

TEST(commands_are_followed_and_views_show_it) { commands_and_views(); }

TEST(an_observer_is_no_member)
{
    const char *argv[] = { "true", NULL };
    mgr_process p = process_of(argv);
    host *o = observer_open(0);
    CHECK_INT(mgr_exec(o->m, "0", NULL, &p), MGR_NOT_MEMBER);
    CHECK_INT(mgr_drain(o->m, true), MGR_NOT_MEMBER);
    CHECK_INT(mgr_hold(o->m, "0"), MGR_NOT_MEMBER);
    CHECK_INT(mgr_step(o->m, 0), MGR_NOT_MEMBER);       /* or it would enter */
    CHECK_INT(mgr_run(o->m), MGR_NOT_MEMBER);
    CHECK_INT(mgr_lease_left_ms(o->m), 0);
    host_close(o);
    host *h = host_open(0, "a");
    mgr_view *view;
    CHECK_INT(mgr_view_read(h->m, 100, &view), MGR_STATE);
    CHECK(!view);
    leave(h);
}

/* An answer that is too large for the connection to keep its memory. */
TEST(a_large_service_is_shown_whole)
{
    enum { COUNT = 1500, BYTES = 100 };
    static char texts[COUNT][BYTES];
    static const char *names[COUNT];
    mgr_view *view = NULL;
    for (int i = 0; i < COUNT; i++) {
        snprintf(texts[i], BYTES, "%04d-a-partition-with-a-name-that-is-as-long-as-the-path-of-a-file-deep-in-some-tree-of-folders", i);
        names[i] = texts[i];
    }
    host *a = host_open(0, "a"), *o = observer_open(1);
    a->acquire = MGR_UNFIT;
    WAIT(times(&a->log, "acquire") >= 1);
    CHECK_INT(mgr_set_partitions(o->m, names, COUNT), MGR_OK);
    CHECK_INT(mgr_view_read(o->m, 5000, &view), MGR_OK);
    CHECK(o->m->call_body.len > MGR__HTTP_KEEP_BYTES);
    size_t good = 0;
    for (size_t i = 0; view && i < view->partition_count; i++) good += view->partition_count == COUNT && !strcmp(view->partitions[i].name, names[i]);
    CHECK_INT(good, COUNT);
    mgr_view_free(o->m, view);
    host_close(o);
    leave(a);
}

TEST(nobody_answers)
{
    char nowhere[40];
    mgr_view *view;
    host *h = host_make(0, "a");
    snprintf(nowhere, sizeof nowhere, "127.0.0.1:%d", free_port());
    h->desc.consul_addr = nowhere;
    h->desc.start_timeout_ms = 150;
    host_start(h);
    WAIT(h->over);
    CHECK_INT(h->over, MGR_UNREACHABLE);
    CHECK(strstr(mgr_error_text(h->m), "no Consul agent can be reached"));
    host_close(h);
    h = host_make(0, "a");
    h->desc.consul_addr = nowhere;
    h->desc.observer = true;
    host_start(h);
    CHECK_INT(mgr_view_read(h->m, 100, &view), MGR_UNREACHABLE);
    CHECK(strstr(mgr_error_text(h->m), nowhere));
    host_close(h);
}

/* ---- memory ---- */

typedef struct meter { long count, calls, fail_at, wrong; } meter;

static void *metered(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    meter *t = (meter *)user;
    size_t head = 16, was = 0;
    char *at = ptr ? (char *)ptr - head : NULL;
    if (at) memcpy(&was, at, sizeof was);
    if (was != old_bytes) t->wrong++;
    if (!new_bytes) { free(at); t->count--; return NULL; }
    if (++t->calls == t->fail_at) return NULL;
    at = (char *)realloc(at, new_bytes + head);
    if (!at) return NULL;
    memcpy(at, &new_bytes, sizeof new_bytes);
    if (!ptr) t->count++;
    return at + head;
}

static void metered_life(meter *t)
{
    host *h = host_make(0, "a");
    h->desc.allocator.resize = metered;
    h->desc.allocator.user = t;
    mgr_result result = mgr_open(&h->m, &h->desc);
    CHECK(result == MGR_OK || result == MGR_NO_MEMORY || (t->fail_at && result != MGR_OK));
    for (int64_t until = now_ms() + PATIENCE_MS; result == MGR_OK && times(&h->log, "acquire") < 2 && now_ms() < until;) result = mgr_step(h->m, 2);
    if (t->fail_at == 0) CHECK_INT(result, MGR_OK);
    if (result == MGR_OK) { mgr_leave(h->m); WAIT(h->over); }
    host_close(h);
}

TEST(nothing_leaks_from_an_allocator)
{
    meter t;
    memset(&t, 0, sizeof t);
    metered_life(&t);
    CHECK_INT(t.count, 0);
    CHECK_INT(t.wrong, 0);
    CHECK(t.calls > 50);
}

/* The Nth allocation fails, for N = 1, 2, ... as far as the time goes; then further
 * apart, until a run is over before its N. */
TEST(any_allocation_may_fail)
{
    int64_t start = now_ms();
    bool done = false;
    for (long n = 1; n < 5000 && !done && now_ms() - start < 500; n += 1 + n / 12) {
        meter t;
        memset(&t, 0, sizeof t);
        t.fail_at = n;
        metered_life(&t);
        if (t.count || t.wrong) { printf("allocation %ld failed: %ld blocks left, %ld wrong sizes\n", n, t.count, t.wrong); CHECK(!"leak"); }
        done = t.calls < n;
    }
}

/* ---- a real Consul ---- */

static void with_consul(void (*test)(void))
{
    address = real_address;
    int64_t until = now_ms() + 4 * PATIENCE_MS;
    host *o = observer_open(0);
    mgr_view *view;
    mgr_result result = MGR_UNREACHABLE;
    while (result != MGR_NOT_FOUND && now_ms() < until) { result = mgr_view_read(o->m, 500, &view); if (result != MGR_NOT_FOUND) usleep(20000); }
    host_close(o);
    if (result == MGR_NOT_FOUND) test();
    else CHECK(!"Consul answers");
    address = dev_address;
}

#define WITH_CONSUL(name, test) TEST(name) { if (!real_pid) SKIP("no Consul: see tests/consul.sh"); with_consul(test); }

WITH_CONSUL(consul_in_process_work, life_of_in_process_work)
WITH_CONSUL(consul_commands_and_views, commands_and_views)
WITH_CONSUL(consul_check_by_worker, by_worker)

TEST(nothing_is_left)
{
    int64_t until = now_ms() + PATIENCE_MS;
    pid_t got = 0;
    servers_stop();
    while (got != -1 && now_ms() < until) { got = waitpid(-1, NULL, WNOHANG | __WALL); if (got == 0) usleep(2000); }
    CHECK_INT(got, -1);
}

static void remove_scratch(void)
{
    static const char *const names[] = { "0", "1", "stubborn", "env", "status", "check", "new", "http" };
    for (size_t i = 0; i < MGR__COUNT(names); i++) unlink(scratch(names[i]));
    char line[120];
    snprintf(line, sizeof line, "rm -f %s/manager-*.life", scratch_dir);     /* of programs that a test killed */
    if (system(line) != 0) printf("%s failed\n", line);
    rmdir(scratch_dir);
}

int main(int argc, char **argv)
{
    if (argc > 2 && !strcmp(argv[1], "--worker")) return worker(argv);
    ssize_t len = readlink("/proc/self/exe", self_path, sizeof self_path - 1);
    self_path[len > 0 ? len : 0] = 0;
    if (!mkdtemp(scratch_dir)) return 1;
    setenv("XDG_RUNTIME_DIR", scratch_dir, 1);     /* life files go with it */
    heap = mgr__heap_make(NULL);
    io = mgr__io_real();
    mgr__buf_init(&check_log, &heap, 4096);
    unsetenv("CONSUL_HTTP_TOKEN");
    unsetenv("CONSUL_HTTP_TOKEN_FILE");
    real_start();
    dev_start();
    mgr__process_subreaper();
    RUN(each_bad_field_is_refused_by_name);
    RUN(a_run_dir_that_will_not_do_is_refused);
    RUN(a_struct_full_of_garbage_is_refused);
    RUN(the_default_delay_fits_the_lease);
    RUN(nothing_is_asked_of_nothing);
    RUN(a_life_without_its_file_says_why);
    RUN(in_process_work_is_acquired_and_released);
    RUN(a_pending_release_waits_for_mgr_released);
    RUN(a_partition_is_released_when_its_process_is_gone);
    RUN(mgr_hold_is_released_by_word_only);
    RUN(what_one_is_unfit_for_another_gets);
    RUN(a_session_destroyed_is_lost_and_entered_anew);
    RUN(mgr_released_may_be_called_inside_on_release);
    RUN(mgr_released_beside_its_process_gives_it_its_own_grace);
    RUN(a_hold_after_mgr_released_is_waited_for);
    RUN(mgr_released_may_be_called_inside_on_lost);
    RUN(a_process_may_be_run_again_inside_the_event_of_its_end);
    RUN(a_process_may_be_run_again_inside_the_event_that_it_cannot_start);
    RUN(a_post_that_posts_itself_runs_once_a_turn);
    RUN(work_does_not_begin_when_its_lease_has_ended);
    RUN(what_was_lost_before_it_began_does_not_begin);
    RUN(the_keeper_knows_of_work_before_it_begins);
    RUN(the_grant_of_a_partition_lost_alone_is_closed_first);
    RUN(guard_and_keeper_both_killed_leave_no_certificate);
    RUN(no_lease_is_left_once_a_life_is_lost);
    RUN(a_grant_stays_open_during_a_planned_release);
    RUN(in_process_work_lost_earlier_leaves_its_life_uncertified);
    RUN(a_grant_is_watched_from_another_thread);
    RUN(posts_of_threads_arrive_in_order);
    RUN(posts_come_from_signal_handlers_and_have_a_limit);
    RUN(a_post_wakes_a_step_that_waits);
    RUN(stepping_inside_a_callback_is_refused);
    RUN(a_forked_child_can_do_no_harm);
    RUN(a_foreign_loop_needs_one_descriptor);
    RUN(a_foreign_loop_may_poll_for_itself);
    RUN(a_process_is_run_once_with_its_environment);
    RUN(a_daemon_is_restarted_with_back_off);
    RUN(processes_are_found_signalled_and_stopped);
    RUN(large_environments_are_refused_by_name);
    RUN(the_host_s_children_signals_and_descriptors_are_its_own);
    RUN(handle_signals_leaves_and_restores_the_mask);
    RUN(closing_without_leaving_stops_the_work);
    RUN(a_script_check_calls_its_handlers_once_a_change);
    RUN(a_check_may_be_given_again_while_its_script_runs);
    RUN(a_script_over_its_time_fails);
    RUN(a_critical_check_may_refuse_the_partition);
    RUN(a_critical_check_may_restart_the_daemons);
    RUN(a_ttl_check_without_a_report_is_critical);
    RUN(a_worker_reports_its_check_to_consul_itself);
    RUN(commands_are_followed_and_views_show_it);
    RUN(an_observer_is_no_member);
    RUN(a_large_service_is_shown_whole);
    RUN(nobody_answers);
    RUN(nothing_leaks_from_an_allocator);
    RUN(any_allocation_may_fail);
    RUN(consul_in_process_work);
    RUN(consul_commands_and_views);
    RUN(consul_check_by_worker);
    RUN(nothing_is_left);
    mgr__buf_free(&check_log);
    remove_scratch();
    return test__end();
}
