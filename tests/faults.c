/* The long fault suite: what `manager timings` promises, measured on a real cluster
 * of three Consul servers and three hosts, each host with a client agent and one or
 * two instances. Everything that can break is broken, alone and in random sequences.
 *
 *     faults [ROUNDS [SEED [SCENARIO[=NUMBER]...]]]      e.g. faults 1 7 kill_soak=1000
 *
 * tests/e2e_netns.c is its short form, in `make test`. By number: kill_soak kills at
 * all moments; kills, stop and moves measure SIGKILL, SIGSTOP and drain, with the parts
 * of each hand-over; consul_lock shows what `consul lock` does instead.
 *
 * A host is a network namespace that only this program knows: it has no name, is
 * held by a descriptor, and ends with its last process. Each has one TUN device,
 * and the cable between them is a process of ours, the switch, which passes packets
 * on, loses them or holds them back, each direction of each host by itself. So one
 * direction can be cut without a firewall, and nothing of the machine's own network
 * is touched. Needs root, iproute2, /dev/net/tun and, for whole hosts, cgroup v2.
 *
 *   supervisor     has folder, cgroups and watchdog; whatever happens, it cleans up
 *     tests        in a namespace of its own, the operator's desk
 *       switch, recorder; consul agent, manager run ... in the hosts' namespaces and cgroups
 *
 * A worker holds an exclusive lock on its partition's file: who finds it taken is a
 * second owner. Its connection to the recorder is closed by the kernel when it, and
 * all that inherited from it, is dead. It writes to a store that compares fences. */
#include "e2e.h"

#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#define PATIENT_TIMES "--lease", "15s", "--stop-grace", "2s"
#define FAULTS_TIMES "--lease", "3s", "--delay", "4s", "--ttl", "10s", "--settle", "300ms", "--stop-grace", "1s"

enum {
    SERVERS = 3, HOSTS = 3, NODES = SERVERS + HOSTS + 1, DESK = NODES - 1,
    INSTANCES = 5, PARTITIONS = 12,
    LEASE_MS = 3000, GRACE_MS = 1000, MARGIN_MS = MGR_KILL_MARGIN_MS,
    SETTLED_MS = 500,
    SLACK_MS = 2000,             /* what a busy machine may add to a promised time */
    SETTLE_MS = 120000,          /* serf looks for a failed node only every 30 s */
    LIVES_MAX = 1 << 17, NOTES_MAX = 1 << 14,
    FRAMES_MAX = 4096, FRAME_BYTES_MAX = 1600,
    SAMPLES_MAX = 4096,
    LOCK_KILLS = 3, LOCK_PARTITION = 100, PATIENT_PARTITION = 200
};

/* A message of a worker, and its life as the recorder knows it. Times are CLOCK_BOOTTIME. */
typedef enum note_kind { NOTE_HELLO, NOTE_OVERLAP, NOTE_REFUSED } note_kind;
typedef struct note { note_kind kind; int partition; uint64_t fence; int64_t ns; char instance[16]; } note;
typedef struct life { int partition; pid_t pid; uint64_t fence; int64_t start_ns, dead_ns; char instance[16]; } life;

/* One host's cable. Written by the tests, read by the switch. */
typedef struct wire { int cut_in, cut_out, delay_ms; } wire;

typedef struct shared {
    wire    wires[NODES];
    int64_t until_ms;            /* the watchdog's patience */
    size_t  life_count, note_count;
    life    lives[LIVES_MAX];
    note    notes[NOTES_MAX];    /* overlaps and refusals */
} shared;

typedef struct node { char ip[16], cgroup[200]; int netns, tun; } node;
typedef struct instance { const char *id, *isolate; int host; pid_t pid; bool may_end; char log[300]; off_t log_from; } instance;

/* A fault, whose work it hits (a life of each partition, or -1), and how that went on. */
typedef struct fault { int64_t at_ns; long old[PARTITIONS]; int moved; int64_t slowest_ms, gap_ms; } fault;
typedef struct frame { int64_t due_ns; int to; size_t bytes; uint8_t data[FRAME_BYTES_MAX]; } frame;

/* What a scenario measured against the promise, for the last table: a sample for each
 * partition that moved, from the fault (or its end, where that counts) to the new worker. */
typedef struct tally { int rounds, bad; int64_t limit_ms; size_t sample_count; int64_t samples_ms[SAMPLES_MAX]; } tally;

static shared    *all;                     /* between tests, switch, recorder */
static node       nodes[NODES];            /* servers, then hosts, then the desk */
static e2e_agent  agents[NODES];
static instance   instances[INSTANCES] = {
    { "a1", "auto", 3, 0, false, "", 0 }, { "a2", "auto", 3, 0, false, "", 0 }, { "b1", "none", 4, 0, false, "", 0 },
    { "b2", "none", 4, 0, false, "", 0 }, { "c1", "auto", 5, 0, false, "", 0 } };
static char       cgroup_base[160];        /* "" where no freezer can be had */
static pid_t      switch_pid;
static pid_t      stopped[64];             /* by us: to be continued by heal */
static size_t     stopped_count;
static mgr__rng   dice;                    /* thrown anew for each round */
static int        round_now, number_given; /* of the scenario that runs */
static char       timings[1 << 15], patient_timings[1 << 15], servers_address[120];
static size_t     fences_seen, overlaps_excused;
static bool       cut_off[NODES];          /* serf looks for these only now and then: heal calls them back */
static e2e_view   view;
static tally     *tally_now;

static int random_in(int from, int to) { return from + (int)mgr__rng_below(&dice, (uint32_t)(to - from + 1)); }
static void fail(const char *what) { printf("  FAILED: %s\n", what); test__bad = true; }
static size_t life_count(void) { return __atomic_load_n(&all->life_count, __ATOMIC_ACQUIRE); }
static int64_t dead_at(size_t i) { return __atomic_load_n(&all->lives[i].dead_ns, __ATOMIC_ACQUIRE); }

/* ---- the worker ---- */

/* Who writes to the store with a lower fence than it has seen is refused. */
static bool store_write(const char *dir, int partition, uint64_t fence)
{
    char path[300];
    uint64_t highest = 0;
    snprintf(path, sizeof path, "%s/store-%d", dir, partition);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || flock(fd, LOCK_EX) != 0) return false;
    bool good = (pread(fd, &highest, sizeof highest, 0) == 0 || fence >= highest) &&
                pwrite(fd, &fence, sizeof fence, 0) == (ssize_t)sizeof fence;
    close(fd);
    return good;
}

static void worker_say(int record, note *n, note_kind kind)
{
    n->kind = kind;
    if (write(record, n, sizeof *n) != (ssize_t)sizeof *n) _exit(94);
}

/* The work is done by a grandchild in a session of its own; we end when it does. */
static void worker_go_away(void)
{
    int ends[2];
    char byte;
    if (pipe(ends) != 0) _exit(95);
    pid_t middle = fork();
    if (middle > 0) {
        close(ends[1]);
        while (waitpid(middle, NULL, 0) < 0 && errno == EINTR) { }
        while (read(ends[0], &byte, 1) < 0 && errno == EINTR) { }
        _exit(1);
    }
    close(ends[0]);
    setsid();
    if (fork() != 0) _exit(0);
}

/* --worker DIR: runs until it is killed. What it is like depends on its partition:
 *   0  ends at SIGTERM             3  stops itself
 *   1  ignores SIGTERM             4  has a child that keeps all descriptors, and ignores SIGTERM
 *   2  forks twice, setsid, ignores SIGTERM      5  like 0 */
static int worker(const char *dir)
{
    const char *partition = getenv("MANAGER_PARTITION"), *fence = getenv("MANAGER_FENCE"), *id = getenv("MANAGER_INSTANCE");
    char path[300];
    note n = { NOTE_HELLO, 0, 0, e2e_now_ns(), "" };
    if (!partition || !fence || !id) return 90;
    n.partition = (int)strtol(partition, NULL, 10);
    n.fence = strtoull(fence, NULL, 10);
    snprintf(n.instance, sizeof n.instance, "%s", id);
    int like = n.partition % 6;
    if (like == 1 || like == 2) signal(SIGTERM, SIG_IGN);
    if (like == 2) worker_go_away();
    snprintf(path, sizeof path, "%s/partition-%d", dir, n.partition);
    int lock = open(path, O_RDWR | O_CREAT, 0644), record = e2e_connect_recorder(dir);
    bool locked = lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) == 0;
    if (record < 0) return 92;
    worker_say(record, &n, NOTE_HELLO);
    if (!locked) worker_say(record, &n, NOTE_OVERLAP);
    if (like == 4 && fork() == 0) { signal(SIGTERM, SIG_IGN); for (;;) pause(); }
    for (int turn = 0; ; turn++) {
        if (!store_write(dir, n.partition, n.fence)) worker_say(record, &n, NOTE_REFUSED);
        if (!locked) locked = flock(lock, LOCK_EX | LOCK_NB) == 0;   /* our own successor must find it taken */
        if (like == 3 && turn == 2) raise(SIGSTOP);
        poll(NULL, 0, 200);
    }
}

/* --lockchild DIR: what `consul lock` is given to run. */
static int lock_child(const char *dir)
{
    note n = { NOTE_HELLO, LOCK_PARTITION, 0, e2e_now_ns(), "" };
    int record = e2e_connect_recorder(dir);
    if (record < 0) return 92;
    worker_say(record, &n, NOTE_HELLO);
    for (;;) pause();
}

/* --enter NAMESPACE CGROUP COMMAND...: become COMMAND, there. */
static int enter(char **argv)
{
    char path[300];
    int ns = open(argv[2], O_RDONLY | O_CLOEXEC), fd = -1;
    snprintf(path, sizeof path, "%s/cgroup.procs", argv[3]);
    if (argv[3][0] && ((fd = open(path, O_WRONLY | O_CLOEXEC)) < 0 || write(fd, "0", 1) != 1)) return 96;
    if (ns < 0 || setns(ns, CLONE_NEWNET) != 0) return 97;
    execv(argv[4], argv + 4);
    return 98;
}

/* ---- the recorder ---- */

static bool recorder_hear(int fd, long *index)
{
    note n;
    struct ucred who;
    socklen_t len = sizeof who;
    ssize_t got = read(fd, &n, sizeof n);
    if (got != (ssize_t)sizeof n) {
        if (*index >= 0) __atomic_store_n(&all->lives[*index].dead_ns, e2e_now_ns(), __ATOMIC_RELEASE);
        return false;
    }
    if (n.kind != NOTE_HELLO) {
        if (all->note_count == NOTES_MAX) return true;
        all->notes[all->note_count] = n;
        all->notes[all->note_count].ns = e2e_now_ns();
        __atomic_fetch_add(&all->note_count, 1, __ATOMIC_RELEASE);
        return true;
    }
    if (all->life_count == LIVES_MAX || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) != 0) _exit(1);
    life *l = &all->lives[all->life_count];
    l->partition = n.partition;
    l->pid = who.pid;
    l->fence = n.fence;
    l->start_ns = n.ns;
    memcpy(l->instance, n.instance, sizeof l->instance);
    *index = (long)__atomic_fetch_add(&all->life_count, 1, __ATOMIC_RELEASE);
    return true;
}

/* Deaths before births: within one round a successor's hello may already wait. */
static void recorder_loop(int listener)
{
    static struct pollfd fds[1024];
    static long index[1024];
    size_t count = 1;
    fds[0].fd = listener;
    fds[0].events = POLLIN;
    for (;;) {
        poll(fds, (nfds_t)count, -1);
        for (size_t i = count; i-- > 1; ) {
            if (!fds[i].revents || recorder_hear(fds[i].fd, &index[i])) continue;
            close(fds[i].fd);
            count--;
            fds[i] = fds[count];
            index[i] = index[count];
        }
        if (!fds[0].revents || count == MGR__COUNT(fds)) continue;
        struct pollfd more = { accept4(listener, NULL, NULL, SOCK_CLOEXEC), POLLIN, 0 };
        fds[count] = more;
        index[count] = -1;
        if (fds[count].fd >= 0) count++;
    }
}

static void recorder_start(void)
{
    struct sockaddr_un at;
    memset(&at, 0, sizeof at);
    at.sun_family = AF_UNIX;
    snprintf(at.sun_path, sizeof at.sun_path, "%s/record.sock", e2e_dir);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 1024) == 0);
    fflush(stdout);
    e2e_recorder_pid = fork();
    if (e2e_recorder_pid == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); setpriority(PRIO_PROCESS, 0, -10); recorder_loop(listener); }
    close(listener);
}

/* ---- hosts and the switch between them ---- */

static void switch_pass(int from, const uint8_t *data, size_t bytes, frame *queue, size_t *head, size_t *tail)
{
    int to = bytes >= 20 && data[0] >> 4 == 4 ? data[19] - 1 : -1;   /* 10.77.0.1 is the first node */
    if (to < 0 || to >= NODES || all->wires[from].cut_out || all->wires[to].cut_in) return;
    int delay = all->wires[from].delay_ms + all->wires[to].delay_ms;
    if (!delay) { if (write(nodes[to].tun, data, bytes) < 0) return; return; }
    if (*tail - *head == FRAMES_MAX || bytes > FRAME_BYTES_MAX) return;
    frame *f = &queue[(*tail)++ % FRAMES_MAX];
    f->due_ns = e2e_now_ns() + (int64_t)delay * 1000000;
    f->to = to;
    f->bytes = bytes;
    memcpy(f->data, data, bytes);
}

static void switch_loop(void)
{
    static frame queue[FRAMES_MAX];
    static uint8_t data[65536];
    struct pollfd fds[NODES];
    size_t head = 0, tail = 0;
    for (int i = 0; i < NODES; i++) { fds[i].fd = nodes[i].tun; fds[i].events = POLLIN; }
    for (;;) {
        poll(fds, NODES, head == tail ? -1 : 1);
        for (int i = 0; i < NODES; i++)
            if (fds[i].revents)
                for (ssize_t n; (n = read(fds[i].fd, data, sizeof data)) > 0; ) switch_pass(i, data, (size_t)n, queue, &head, &tail);
        for (; head != tail && queue[head % FRAMES_MAX].due_ns <= e2e_now_ns(); head++) {
            const frame *f = &queue[head % FRAMES_MAX];
            if (write(nodes[f->to].tun, f->data, f->bytes) < 0) continue;   /* a full device loses packets, as cables do */
        }
    }
}

/* Moves this process into a new namespace, too: the last one made is where it stays. */
static bool node_make(node *n, const char *name, const char *ip)
{
    char line[160];
    struct ifreq r;
    memset(&r, 0, sizeof r);
    if (unshare(CLONE_NEWNET) != 0) return false;
    snprintf(n->ip, sizeof n->ip, "%s", ip);
    snprintf(r.ifr_name, sizeof r.ifr_name, "cable");
    r.ifr_flags = IFF_TUN | IFF_NO_PI;
    n->tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (n->tun < 0 || ioctl(n->tun, TUNSETIFF, &r) != 0) return false;
    snprintf(line, sizeof line, "ip link set lo up && ip address add %.15s/24 dev cable && ip link set cable up", ip);
    if (system(line) != 0) return false;
    n->netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (cgroup_base[0]) snprintf(n->cgroup, sizeof n->cgroup, "%s/%s", cgroup_base, name);
    if (cgroup_base[0]) mkdir(n->cgroup, 0755);
    e2e_agent *agent = &agents[n - nodes];
    snprintf(agent->name, sizeof agent->name, "%s", name);
    snprintf(agent->host, sizeof agent->host, "%s", ip);
    snprintf(agent->dir, sizeof agent->dir, "%s/%s", e2e_root, name);
    snprintf(agent->address, sizeof agent->address, "127.0.0.1:8500");
    agent->http_port = 8500;
    agent->server_port = 8300;
    return n->netns >= 0;
}

static bool nodes_make(void)
{
    char name[16], ip[16];
    for (int i = 0; i < NODES; i++) {
        snprintf(name, sizeof name, i == DESK ? "desk" : i < SERVERS ? "server-%d" : "host-%c", i < SERVERS ? i : 'a' + i - SERVERS);
        snprintf(ip, sizeof ip, "10.77.0.%d", 1 + i);
        if (!node_make(&nodes[i], name, ip)) return false;
    }
    fflush(stdout);
    switch_pid = fork();
    if (switch_pid == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); setpriority(PRIO_PROCESS, 0, -10); switch_loop(); }
    for (int i = 0; i < NODES; i++) close(nodes[i].tun);
    return switch_pid > 0;
}

/* Start a command on a host; `command` ends with NULL. */
static pid_t spawn_on(const node *n, const char *const *command, const char *log)
{
    char ns[64], *argv[64];
    size_t count = 0;
    snprintf(ns, sizeof ns, "/proc/%d/fd/%d", (int)getpid(), n->netns);
    const char *first[] = { e2e_self, "--enter", ns, n->cgroup };
    for (size_t i = 0; i < MGR__COUNT(first); i++) argv[count++] = (char *)(uintptr_t)first[i];
    while (*command && count < 63) argv[count++] = (char *)(uintptr_t)*command++;
    argv[count] = NULL;
    return e2e_spawn(argv, log, log);
}

static void cgroup_say(const node *n, const char *file, const char *text)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", n->cgroup, file);
    if (n->cgroup[0]) e2e_write_file(path, text);
}

static void host_freeze(const node *n, bool on) { cgroup_say(n, "cgroup.freeze", on ? "1" : "0"); }

static void wire_set(int host, int cut_in, int cut_out, int delay_ms)
{
    wire w = { cut_in, cut_out, delay_ms };
    all->wires[host] = w;
    if (cut_in || cut_out || delay_ms) cut_off[host] = true;
}


/* Everything of a host at once, as when its power fails. */
static void host_kill(node *n)
{
    if (!n->cgroup[0]) return;
    cgroup_say(n, "cgroup.kill", "1");
    for (int i = 0; i < INSTANCES; i++) if (&nodes[instances[i].host] == n) instances[i].may_end = true;
    agents[n - nodes].pid = 0;
}

/* ---- agents and instances ---- */

static void agent_start(int which)
{
    node *n = &nodes[which];
    char log[300], joins[SERVERS][48];
    const char *argv[48] = { e2e_consul, "agent", "-data-dir", agents[which].dir, "-node", agents[which].name, "-bind", n->ip, "-client", "0.0.0.0",
        "-dns-port", "-1", "-log-level", "warn", "-retry-interval", "300ms", "-hcl", "performance { raft_multiplier = 1 }" };
    size_t count = 18;
    if (which < SERVERS) { argv[count++] = "-server"; argv[count++] = "-bootstrap-expect=3"; argv[count++] = "-serf-wan-port"; argv[count++] = "-1"; }
    for (int i = 0; i < SERVERS; i++) {
        snprintf(joins[i], sizeof joins[i], "-retry-join=%.15s", nodes[i].ip);
        if (i != which) argv[count++] = joins[i];
    }
    argv[count] = NULL;
    snprintf(log, sizeof log, "%s.log", agents[which].dir);
    agents[which].pid = spawn_on(n, argv, log);
}

static void agent_kill(int which, int number)
{
    if (!agents[which].pid) return;
    kill(agents[which].pid, number);
    CHECK(e2e_wait_end(agents[which].pid, 20000) != 1000);
    agents[which].pid = 0;
}

static const e2e_agent *live_server(void)
{
    for (int i = 0; i < SERVERS; i++) if (agents[i].pid && !all->wires[i].cut_in) return &agents[i];
    return &agents[0];
}

static void instance_start(instance *it)
{
    const char *argv[] = { e2e_manager, "run", "--consul", "127.0.0.1:8500", "-s", "faults", "-i", it->id, "--isolate", it->isolate, FAULTS_TIMES, "-p", "0..11",
        "--", e2e_self, "--worker", e2e_dir, NULL };
    struct stat st;
    it->may_end = false;
    it->log_from = stat(it->log, &st) == 0 ? st.st_size : 0;
    it->pid = spawn_on(&nodes[it->host], argv, it->log);
}

/* The living worker of a partition; -1: none. */
static long live_of(int partition)
{
    for (size_t i = life_count(); i-- > 0; ) if (all->lives[i].partition == partition && !dead_at(i)) return (long)i;
    return -1;
}

static size_t live_count(void)
{
    size_t n = 0;
    for (size_t i = life_count(); i-- > 0; ) n += all->lives[i].partition < PARTITIONS && !dead_at(i);
    return n;
}

/* Keeper and guard of an instance; false: it has none, or no worker to find them by. */
static bool helpers_of(const instance *it, pid_t *keeper, pid_t *guard)
{
    for (int p = 0; p < PARTITIONS; p++) {
        long i = live_of(p);
        if (i < 0 || strcmp(all->lives[i].instance, it->id)) continue;
        *keeper = e2e_parent_of(all->lives[i].pid);
        *guard = *keeper > 1 ? e2e_parent_of(*keeper) : 0;
        if (*guard > 1 && e2e_parent_of(*guard) == it->pid) return true;
    }
    return false;
}

static void stop_process(pid_t pid) { kill(pid, SIGSTOP); if (stopped_count < MGR__COUNT(stopped)) stopped[stopped_count++] = pid; }

/* ---- what is checked ---- */

/* What `manager timings` says of a failure in ms: 0: nothing moves; -1: it does not know it. */
static int64_t promise_in(const char *text, const char *failure, const char *what)
{
    char key[100];
    long long ms = -1;
    snprintf(key, sizeof key, "\"failure\":\"%s\"", failure);
    const char *at = strstr(text, key);
    snprintf(key, sizeof key, "\"%s\":", what);
    if (at) at = strstr(at, key);
    if (!at || sscanf(at + strlen(key), "%lld", &ms) != 1) ms = -1;
    return ms;
}

/* From the fault, or from its end where no more can be said ("failover_ms":null). */
static int64_t promise(const char *failure)
{
    int64_t ms = promise_in(timings, failure, "failover_ms");
    if (ms < 0) ms = promise_in(timings, failure, "after_ms");
    if (ms < 0) printf("  manager timings does not know: %s\n", failure);
    if (ms < 0) fail("every failure has its row");
    return ms;
}

/* A fault begins: work of instance `who`, or of all on a host, or of all (NULL, 0). */
static fault fault_begin(const instance *who, int host)
{
    fault f = { 0, { 0 }, 0, 0, 0 };
    for (int p = 0; p < PARTITIONS; p++) {
        long i = live_of(p);
        f.old[p] = -1;
        for (int k = 0; k < INSTANCES && i >= 0; k++)
            if (!strcmp(all->lives[i].instance, instances[k].id) && (who ? who == &instances[k] : !host || host == instances[k].host)) f.old[p] = i;
    }
    f.at_ns = e2e_now_ns();
    return f;
}

/* The worker that came after another, counted from `from_ns`; -1: none yet. */
static long successor_of(long old, int64_t from_ns)
{
    size_t count = life_count();
    for (size_t i = (size_t)old + 1; i < count; i++)
        if (all->lives[i].partition == all->lives[old].partition && all->lives[i].start_ns >= from_ns) return (long)i;
    return -1;
}

/* What has moved so far: false while a partition that was hit has no new worker. */
static bool fault_over(fault *f)
{
    bool over = true;
    f->moved = 0;
    f->slowest_ms = f->gap_ms = 0;
    for (int p = 0; p < PARTITIONS; p++) {
        long next = f->old[p] < 0 ? -1 : successor_of(f->old[p], f->at_ns);
        if (next < 0) { over = over && f->old[p] < 0; continue; }
        int64_t start = all->lives[next].start_ns, dead = dead_at((size_t)f->old[p]);
        f->moved++;
        f->slowest_ms = mgr__max64(f->slowest_ms, (start - f->at_ns) / 1000000);
        if (dead) f->gap_ms = mgr__max64(f->gap_ms, (start - dead) / 1000000);
    }
    return over;
}

static void sample(int64_t ms)
{
    if (tally_now->sample_count < SAMPLES_MAX) tally_now->samples_ms[tally_now->sample_count++] = ms;
}

/* Measured <= promised, but for what a busy machine may add. */
static void hold_to(const char *failure, int64_t ms, int64_t limit)
{
    tally_now->limit_ms = limit;
    if (ms > limit) printf("  LATE: %s took %lld ms, timings say %lld\n", failure, (long long)ms, (long long)limit);
    CHECK(ms <= limit + SLACK_MS);
}

static void fault_report(const fault *f, const char *failure)
{
    int64_t limit = promise(failure);
    for (int p = 0; p < PARTITIONS; p++) {
        long next = f->old[p] < 0 ? -1 : successor_of(f->old[p], f->at_ns);
        if (next >= 0) sample((all->lives[next].start_ns - f->at_ns) / 1000000);
    }
    printf("  %s: %d moved; fault -> new worker at most %lld ms (timings %lld); old worker dead -> new worker %lld ms\n", failure, f->moved,
           (long long)f->slowest_ms, (long long)limit, (long long)f->gap_ms);
    if (limit == 0) CHECK_INT(f->moved, 0);
    else hold_to(failure, f->slowest_ms, limit);
    tally_now->limit_ms = limit;
}

/* Everything that was hit must move, in the time that `manager timings` says. */
static void fault_wait(fault *f, const char *failure)
{
    int64_t until = e2e_now_ms() + 2 * mgr__max64(0, promise(failure)) + 2 * SLACK_MS;
    while (!fault_over(f) && e2e_now_ms() < until) e2e_sleep(5);
    if (!fault_over(f)) fail("all that was hit is worked on again");
    fault_report(f, failure);
}

/* Nothing need move; what does, must be back in time. */
static void fault_watch(fault *f, const char *failure, int ms) { e2e_sleep(ms); fault_over(f); fault_report(f, failure); }

/* The fault is over: from now on all work must be back in time, whoever has it. */
static void fault_ended(const char *failure)
{
    int64_t from = e2e_now_ms(), limit = promise(failure), until = from + 2 * limit + SLACK_MS;
    while (live_count() < PARTITIONS && e2e_now_ms() < until) e2e_sleep(5);
    if (live_count() < PARTITIONS) fail("all work is back");
    int64_t took = e2e_now_ms() - from;
    printf("  %s: all work is back %lld ms after its end (timings %lld)\n", failure, (long long)took, (long long)limit);
    sample(took);
    hold_to(failure, took, limit);
}

/* Fences grow with every change of owner; only a restart by the same owner keeps its own. */
static void check_fences(void)
{
    size_t count = life_count();
    for (; fences_seen < count; fences_seen++) {
        const life *now = &all->lives[fences_seen], *before = NULL;
        for (size_t i = fences_seen; i-- > 0 && !before; ) if (all->lives[i].partition == now->partition) before = &all->lives[i];
        if (!before || now->partition >= PARTITIONS || now->fence > before->fence) continue;
        if (now->fence == before->fence && !strcmp(now->instance, before->instance)) continue;
        printf("  FENCE of partition %d: %s has %llu after %llu of %s\n", now->partition, now->instance, (unsigned long long)now->fence,
               (unsigned long long)before->fence, before->instance);
        fail("fences grow");
    }
}

static void check_overlaps(void)
{
    size_t count = __atomic_load_n(&all->note_count, __ATOMIC_ACQUIRE);
    for (; overlaps_excused < count; overlaps_excused++) {
        const note *n = &all->notes[overlaps_excused];
        printf("  %s of partition %d by %s with fence %llu at %lld ms\n", n->kind == NOTE_OVERLAP ? "OVERLAP" : "REFUSED WRITE",
               n->partition, n->instance, (unsigned long long)n->fence, (long long)n->ns / 1000000);
        fail("one owner at a time");
    }
}

/* What nobody can promise is told, not counted: of the work that was hit, since note `from`,
 * by its successors or itself. Trees only: not the workers that are one process. */
static void excuse(const fault *f, size_t from, bool trees, const char *what)
{
    size_t refused = 0, i = from, count = __atomic_load_n(&all->note_count, __ATOMIC_ACQUIRE);
    for (; i < count; i++) {
        const note *n = &all->notes[i];
        bool hit = n->partition < PARTITIONS && f->old[n->partition] >= 0 && (!trees || n->partition % 6 == 2 || n->partition % 6 == 4);
        uint64_t old = hit ? all->lives[f->old[n->partition]].fence : 0;
        if (!hit || (n->kind == NOTE_OVERLAP ? n->fence <= old : n->fence != old)) break;
        refused += n->kind == NOTE_REFUSED;
    }
    overlaps_excused = i;
    if (i > from) printf("  %s: %zu of its partitions had a successor beside them; the store refused %zu of their writes\n", what, i - from - refused, refused);
}

static bool is_known(pid_t pid)
{
    if (pid == e2e_recorder_pid || pid == switch_pid) return true;
    for (int i = 0; i < NODES; i++) if (agents[i].pid == pid) return true;
    for (int i = 0; i < INSTANCES; i++) if (instances[i].pid == pid) return true;
    return false;
}

/* Processes that are below no live instance, agent or helper of ours. */
static size_t orphans(bool print)
{
    static e2e_proc found[2048];
    size_t count = e2e_descendants(found, MGR__COUNT(found)), n = 0;
    for (size_t i = 0; i < count; i++) {
        size_t top = i;
        for (bool up = true; up && !is_known(found[top].pid); ) {
            up = false;
            for (size_t k = 0; k < count && !up; k++) if (found[k].pid == found[top].ppid) { top = k; up = true; }
        }
        if (is_known(found[top].pid)) continue;
        n++;
        if (print) printf("  ORPHAN: %d %s, state %c, child of %d\n", (int)found[i].pid, found[i].comm, found[i].state, (int)found[i].ppid);
    }
    return n;
}

/* Every partition has one worker, of an instance that lives, and the cluster agrees. */
static bool settled(const char **why)
{
    *why = "a partition has no worker, or two";
    for (int p = 0; p < PARTITIONS; p++) if (live_of(p) < 0) return false;
    if (live_count() != PARTITIONS) return false;
    *why = "status is not converged, or the shares are uneven";
    int code = e2e_status(live_server(), "faults", &view);
    if (!e2e_settled(&view, code, INSTANCES, PARTITIONS)) return false;
    *why = "status names other owners or fences than the workers have";
    for (size_t i = 0; i < view.part_count; i++) {
        long at = live_of((int)strtol(view.parts[i].name, NULL, 10));
        if (at < 0 || strcmp(all->lives[at].instance, view.parts[i].owner) || all->lives[at].fence != view.parts[i].fence) return false;
    }
    return true;
}

static bool wait_settled(int ms)
{
    const char *why = "";
    int64_t until = e2e_now_ms() + ms;
    for (bool late = false; !late; e2e_sleep(100)) {
        late = e2e_now_ms() >= until;
        if (settled(&why)) return true;
    }
    printf("  not settled within %d ms: %s\n", ms, why);
    e2e_view_print(&view, -1);
    for (size_t i = 0; i < life_count(); i++)
        if (!dead_at(i)) printf("  worker of %d: %d of %s\n", all->lives[i].partition, (int)all->lives[i].pid, all->lives[i].instance);
    fail("settled");
    return false;
}

/* An instance may end only when we made it; that it must be started again is our part. */
static void instances_back(void)
{
    for (int i = 0; i < INSTANCES; i++) {
        instance *it = &instances[i];
        if (!it->pid || !e2e_ended(it->pid)) continue;
        int code = e2e_wait_end(it->pid, 0);
        if (!it->may_end) { printf("  instance %s ended by itself with %d\n", it->id, code); fail("instances go on"); }
        instance_start(it);
    }
}

static void forget_ended(void)
{
    size_t kept = 0;
    for (size_t i = 0; i < e2e_child_count; i++) if (!e2e_children[i].ended || is_known(e2e_children[i].pid)) e2e_children[kept++] = e2e_children[i];
    e2e_child_count = kept;
}

/* Undo every fault. */
static void heal(void)
{
    for (int i = 0; i < NODES; i++) wire_set(i, 0, 0, 0);
    for (int i = SERVERS; i < DESK; i++) host_freeze(&nodes[i], false);
    while (stopped_count) kill(stopped[--stopped_count], SIGCONT);
    for (int i = 0; i < DESK; i++) if (!agents[i].pid || e2e_ended(agents[i].pid)) agent_start(i);
    instances_back();
    forget_ended();
    for (int i = 0; i < DESK; i++) {
        char path[64];
        snprintf(path, sizeof path, "/v1/agent/join/%s", nodes[i].ip);
        if (cut_off[i]) e2e_http(i ? &agents[0] : &agents[1], "PUT", path, "");
        cut_off[i] = false;
    }
}

/* After each fault: all is well again, and what must never happen has not. */
static void heal_and_check(void)
{
    int64_t from = e2e_now_ms();
    size_t left = 0;
    heal();
    if (wait_settled(SETTLE_MS)) printf("  all well %lld ms after the repair\n", (long long)(e2e_now_ms() - from));
    instances_back();
    for (int64_t until = e2e_now_ms() + 6000; (left = orphans(false)) != 0 && e2e_now_ms() < until; ) e2e_sleep(50);
    if (left) orphans(true);
    CHECK_INT(left, 0);
    check_overlaps();
    check_fences();
    CHECK(kill(e2e_recorder_pid, 0) == 0 && kill(switch_pid, 0) == 0);
}

/* ---- scenarios ---- */

static instance *any_instance(void) { return &instances[random_in(0, INSTANCES - 1)]; }
static int any_host(void) { return random_in(SERVERS, DESK - 1); }
static void kill_instance(instance *it) { it->may_end = true; kill(it->pid, SIGKILL); e2e_wait_end(it->pid, 5000); }

static void worker_dies(void)
{
    int p = random_in(0, PARTITIONS - 1);
    fault f = fault_begin(NULL, -1);
    f.old[p] = live_of(p);
    if (f.old[p] >= 0) kill(all->lives[f.old[p]].pid, SIGKILL);
    fault_wait(&f, "worker dies");
}

static void manager_killed(void)
{
    instance *it = any_instance();
    fault f = fault_begin(it, 0);
    kill_instance(it);
    fault_wait(&f, "manager killed");
}

static void manager_frozen(void)
{
    instance *it = any_instance();
    fault f = fault_begin(it, 0);
    stop_process(it->pid);
    fault_wait(&f, "manager frozen");
    e2e_sleep(random_in(0, 3000));
}

enum { MANAGER = 1, KEEPER = 2, GUARD = 4 };

/* A documented limit: without isolation grandchildren may survive both helpers, with or
 * without it all three. They are told of, killed, and their overlap excused. */
static void hurt_trees(const fault *f, size_t notes)
{
    e2e_sleep(500);         /* for the successors to have said whom they found, and the survivors to be refused */
    for (int p = 0; p < PARTITIONS; p++) {
        if (f->old[p] < 0 || dead_at((size_t)f->old[p])) continue;
        printf("  the tree of partition %d outlived keeper and guard\n", p);
        kill(all->lives[f->old[p]].pid, SIGKILL);
        kill(-all->lives[f->old[p]].pid, SIGKILL);
    }
    excuse(f, notes, true, "trees that nobody could end");
}

/* Manager, keeper and guard of one instance, each killed, frozen or spared. Of two
 * the order is thrown, and those that are frozen wake at any later moment. */
static void hurt(const char *failure, int kills, int stops)
{
    instance *it = any_instance();
    pid_t three[3] = { it->pid, 0, 0 };
    if (!helpers_of(it, &three[1], &three[2])) { fail("keeper and guard are found"); return; }
    size_t notes = all->note_count, first = (size_t)random_in(0, 2);
    fault f = fault_begin(it, 0);
    if (kills & MANAGER) it->may_end = true;
    for (size_t i = 0; i < 3; i++) {
        size_t which = (first + i) % 3;
        if (kills >> which & 1) kill(three[which], SIGKILL);
        if (stops >> which & 1) stop_process(three[which]);
    }
    fault_wait(&f, failure);
    if (stops) e2e_sleep(random_in(0, 2000));
    bool alone = (kills & GUARD) && ((kills | stops) & KEEPER);
    if (alone && (kills == (MANAGER | KEEPER | GUARD) || !strcmp(it->isolate, "none"))) hurt_trees(&f, notes);
}

static void keeper_killed(void)                { hurt("keeper killed", KEEPER, 0); }
static void keeper_frozen(void)                { hurt("keeper frozen", 0, KEEPER); }
static void guard_killed(void)                 { hurt("guard killed", GUARD, 0); }
static void guard_frozen(void)                 { hurt("guard frozen", 0, GUARD); }
static void manager_keeper_killed(void)        { hurt("manager and keeper killed", MANAGER | KEEPER, 0); }
static void manager_keeper_frozen(void)        { hurt("manager and keeper frozen", 0, MANAGER | KEEPER); }
static void manager_killed_keeper_frozen(void) { hurt("manager killed, keeper frozen", MANAGER, KEEPER); }
static void keeper_killed_manager_frozen(void) { hurt("keeper killed, manager frozen", KEEPER, MANAGER); }
static void manager_guard_killed(void)         { hurt("manager and guard killed", MANAGER | GUARD, 0); }
static void manager_guard_frozen(void)         { hurt("manager and guard frozen", 0, MANAGER | GUARD); }
static void manager_killed_guard_frozen(void)  { hurt("manager killed, guard frozen", MANAGER, GUARD); }
static void guard_killed_manager_frozen(void)  { hurt("guard killed, manager frozen", GUARD, MANAGER); }
static void keeper_guard_killed(void)          { hurt("keeper and guard killed", KEEPER | GUARD, 0); }
static void keeper_guard_frozen(void)          { hurt("keeper and guard frozen", 0, KEEPER | GUARD); }
static void keeper_killed_guard_frozen(void)   { hurt("keeper killed, guard frozen", KEEPER, GUARD); }
static void guard_killed_keeper_frozen(void)   { hurt("guard killed, keeper frozen", GUARD, KEEPER); }
static void all_three_killed(void)             { hurt("all three killed", MANAGER | KEEPER | GUARD, 0); }

#define NEEDS_CGROUP() do { if (!cgroup_base[0]) SKIP("no cgroup v2 with cgroup.kill can be written here"); } while (0)

static void host_dies(void)
{
    int host = any_host();
    NEEDS_CGROUP();
    fault f = fault_begin(NULL, host);
    host_kill(&nodes[host]);
    fault_wait(&f, "host dies");
}

/* A reboot: the host is back before anybody has missed it. */
static void host_reboots(void)
{
    int host = any_host();
    NEEDS_CGROUP();
    fault f = fault_begin(NULL, host);
    host_kill(&nodes[host]);
    e2e_sleep(random_in(0, 4000));
    agent_start(host);
    instances_back();
    fault_wait(&f, "host dies and is soon back");
}

/* By when the work of a frozen host has to be dead, once it goes on. */
static void wait_old_dead(const fault *f, int64_t until_ms)
{
    for (bool alive = true; alive && e2e_now_ms() < until_ms; e2e_sleep(20)) {
        alive = false;
        for (int p = 0; p < PARTITIONS; p++) alive = alive || (f->old[p] >= 0 && !dead_at((size_t)f->old[p]));
    }
}

/* Beyond lease and delay: others take over. On waking the old work has what was left of
 * its lease, and a store that compares fences refuses what it writes. */
static void host_frozen(void)
{
    int host = any_host();
    size_t notes = all->note_count;
    NEEDS_CGROUP();
    fault f = fault_begin(NULL, host);
    host_freeze(&nodes[host], true);
    fault_wait(&f, "host frozen whole");
    e2e_sleep(random_in(300, 3000));        /* by now the successors have written */
    int64_t thawed = e2e_now_ns(), longest = 0, limit = promise_in(timings, "host frozen whole", "overlap_ms");
    host_freeze(&nodes[host], false);
    wait_old_dead(&f, e2e_now_ms() + limit + SLACK_MS);
    for (int p = 0; p < PARTITIONS; p++) {
        if (f.old[p] < 0) continue;
        uint64_t fence = all->lives[f.old[p]].fence;
        CHECK(dead_at((size_t)f.old[p]) != 0);
        longest = mgr__max64(longest, dead_at((size_t)f.old[p]) - thawed);
        CHECK(!store_write(e2e_dir, p, fence));
        for (size_t i = (size_t)f.old[p] + 1; i < life_count(); i++)
            if (all->lives[i].partition == p) CHECK(all->lives[i].fence > fence);
    }
    printf("  after waking, old workers lived for %lld ms (timings: overlap of at most %lld)\n", (long long)longest / 1000000, (long long)limit);
    CHECK(longest / 1000000 <= limit + SLACK_MS);
    excuse(&f, notes, false, "the frozen host");
}

/* Shorter than the lease: either it is confirmed in time and nobody notices, or the work
 * stops within what was left of it, is proven dead, and starts again, here or elsewhere. */
static void host_frozen_briefly(void)
{
    int host = any_host(), ms = random_in(100, round_now % 2 ? LEASE_MS - 100 : 400);
    NEEDS_CGROUP();
    fault f = fault_begin(NULL, host);
    host_freeze(&nodes[host], true);
    e2e_sleep(ms);
    host_freeze(&nodes[host], false);
    int64_t until = f.at_ns / 1000000 + LEASE_MS + MARGIN_MS;
    bool unnoticed = e2e_now_ms() - f.at_ns / 1000000 < LEASE_MS * 2 / 3 - GRACE_MS - MARGIN_MS / 2 - 100;
    printf("  frozen for %lld ms\n", (long long)(e2e_now_ms() - f.at_ns / 1000000));
    fault_ended("host frozen for less than its lease");
    while (e2e_now_ms() < until + SETTLED_MS) e2e_sleep(20);
    for (int p = 0; p < PARTITIONS; p++) {
        long next = f.old[p] < 0 ? -1 : successor_of(f.old[p], f.at_ns);
        if (next < 0) continue;
        CHECK(!unnoticed);
        CHECK(dead_at((size_t)f.old[p]) / 1000000 <= until + SLACK_MS);
    }
}

static void agent_leaves(void)
{
    int host = any_host();
    fault f = fault_begin(NULL, host);
    agent_kill(host, SIGTERM);
    fault_wait(&f, "agent stops politely");
}

static void agent_killed(void)
{
    int host = any_host();
    fault f = fault_begin(NULL, host);
    agent_kill(host, SIGKILL);
    fault_wait(&f, "agent killed");
}

/* It is soon back, with its data: nothing need move. */
static void agent_restarts(void)
{
    int host = any_host();
    fault f = fault_begin(NULL, host);
    agent_kill(host, SIGKILL);
    e2e_sleep(random_in(0, 800));
    agent_start(host);
    fault_watch(&f, "agent killed", 5000);
}

/* It takes connections and says nothing. */
static void agent_frozen(void)
{
    int host = any_host();
    fault f = fault_begin(NULL, host);
    stop_process(agents[host].pid);
    cut_off[host] = true;
    fault_wait(&f, "agent frozen");
}

static void cut(const char *failure, int cut_in, int cut_out)
{
    int host = any_host();
    fault f = fault_begin(NULL, host);
    wire_set(host, cut_in, cut_out, 0);
    fault_wait(&f, failure);
    e2e_sleep(random_in(0, 3000));
}

static void network_cut_in(void)  { cut("network cut one way", 1, 0); }
static void network_cut_out(void) { cut("network cut one way", 0, 1); }
static void network_cut(void)     { cut("network cut", 1, 1); }

static void network_slow(void)
{
    int host = any_host(), delay = random_in(20, 200);
    fault f = fault_begin(NULL, host);
    printf("  %d ms in each direction\n", delay);
    wire_set(host, 0, 0, delay);
    fault_watch(&f, "network slow", 8000);
}

/* So slow that no confirmation comes in time. */
static void network_very_slow(void)
{
    int host = any_host(), delay = random_in(400, 2500);
    fault f = fault_begin(NULL, host);
    printf("  %d ms in each direction\n", delay);
    wire_set(host, 0, 0, delay);
    fault_wait(&f, "network very slow");
}

static void network_flaps(void)
{
    int host = any_host();
    for (int64_t until = e2e_now_ms() + 8000; e2e_now_ms() < until; e2e_sleep(random_in(50, 2500)))
        wire_set(host, random_in(0, 1), random_in(0, 1), random_in(0, 1) * random_in(0, 300));
    wire_set(host, 0, 0, 0);
    fault_ended("network flaps");
}

/* With a lease of 3 s the election may or may not cost the work. */
static void leader_killed(void)
{
    int leader = e2e_leader(agents);
    fault f = fault_begin(NULL, 0);
    if (leader < 0) fail("there is a leader"); else agent_kill(leader, SIGKILL);
    fault_watch(&f, "leader lost", 5000);
}

/* An election that takes longer than the lease: all work stops, and comes back with
 * the leader, from the loss on within the time of an election. */
static void leader_lost_for_long(void)
{
    int leader = e2e_leader(agents);
    fault f = fault_begin(NULL, 0);
    if (leader < 0) { fail("there is a leader"); return; }
    for (int i = 0; i < SERVERS; i++) if (i != leader) wire_set(i, 1, 1, 0);
    agent_kill(leader, SIGKILL);
    while (live_count() && e2e_now_ms() < f.at_ns / 1000000 + LEASE_MS + MARGIN_MS + SLACK_MS) e2e_sleep(5);
    printf("  all work ended after %lld ms of a lease of %d\n", (long long)(e2e_now_ms() - f.at_ns / 1000000), LEASE_MS);
    CHECK_INT(live_count(), 0);
    for (int i = 0; i < SERVERS; i++) wire_set(i, 0, 0, 0);
    fault_wait(&f, "leader lost");
}

static size_t patient_lives(bool live_only)
{
    size_t n = 0;
    for (size_t i = life_count(); i-- > 0; ) n += all->lives[i].partition >= PATIENT_PARTITION && !(live_only && dead_at(i));
    return n;
}

/* Beside the others, a service whose lease covers the election: one worker on each host. */
static bool patient_start(pid_t *pids)
{
    char list[40];
    snprintf(list, sizeof list, "%d..%d", PATIENT_PARTITION, PATIENT_PARTITION + HOSTS - 1);
    for (int i = 0; i < HOSTS; i++) {
        const char *argv[] = { e2e_manager, "run", "--consul", "127.0.0.1:8500", "-s", "patient", "-i", nodes[SERVERS + i].ip, PATIENT_TIMES,
            "--settle", "100ms", "-p", list, "--", e2e_self, "--worker", e2e_dir, NULL };
        pids[i] = spawn_on(&nodes[SERVERS + i], argv, NULL);
    }
    for (int64_t until = e2e_now_ms() + 20000; e2e_now_ms() < until; e2e_sleep(100))
        if (e2e_settled(&view, e2e_status(live_server(), "patient", &view), HOSTS, HOSTS) && patient_lives(true) == HOSTS) return true;
    return false;
}

static void leader_killed_long_lease(void)
{
    pid_t pids[HOSTS];
    if (!patient_start(pids)) fail("the patient service runs");
    size_t before = patient_lives(false);
    int leader = e2e_leader(agents);
    if (leader < 0) fail("there is a leader"); else agent_kill(leader, SIGKILL);
    e2e_sleep(6000);
    CHECK_INT(patient_lives(true), HOSTS);
    CHECK_INT(patient_lives(false), before);
    CHECK_INT(promise_in(patient_timings, "leader lost", "failover_ms"), 0);
    for (int i = 0; i < HOSTS; i++) kill(pids[i], SIGTERM);
    for (int i = 0; i < HOSTS; i++) CHECK_INT(e2e_wait_end(pids[i], 30000), 0);
}

static void quorum_lost(void)
{
    int spared = random_in(0, SERVERS - 1);
    fault f = fault_begin(NULL, 0);
    for (int i = 0; i < SERVERS; i++) if (i != spared) agent_kill(i, SIGKILL);
    while (live_count() && e2e_now_ms() < f.at_ns / 1000000 + LEASE_MS + MARGIN_MS + SLACK_MS) e2e_sleep(5);
    printf("  all work ended after %lld ms of a lease of %d\n", (long long)(e2e_now_ms() - f.at_ns / 1000000), LEASE_MS);
    CHECK_INT(live_count(), 0);
    e2e_sleep(random_in(0, 3000));
    for (int i = 0; i < SERVERS; i++) if (i != spared) agent_start(i);
    int64_t back = e2e_now_ns();
    for (int64_t until = e2e_now_ms() + SETTLE_MS; e2e_leader(agents) < 0 && e2e_now_ms() < until; ) e2e_sleep(20);
    printf("  a leader again after %lld ms\n", (long long)(e2e_now_ns() - back) / 1000000);
    fault_ended("quorum lost");
}

/* ---- keys deleted or changed by hand ---- */

static bool by_hand(const char *method, const char *key, const char *value)
{
    char path[200];
    snprintf(path, sizeof path, "/v1/kv/manager/faults/%s", key);
    return e2e_http(live_server(), method, path, value) == 200;
}

static void owner_key(const char *failure, const char *method, const char *value)
{
    char key[40];
    int p = random_in(0, PARTITIONS - 1);
    fault f = fault_begin(NULL, -1);
    f.old[p] = live_of(p);
    snprintf(key, sizeof key, "owners/%d", p);
    CHECK(by_hand(method, key, value));
    fault_wait(&f, failure);
}

static void owner_key_deleted(void) { owner_key("owner key deleted by hand", "DELETE", ""); }
static void owner_key_changed(void) { owner_key("owner key changed by hand", "PUT", round_now % 2 ? "{\"state\":\"released\"}" : "what was that?"); }

static void instance_key_deleted(void)
{
    instance *it = any_instance();
    char key[60];
    fault f = fault_begin(it, 0);
    snprintf(key, sizeof key, "cluster/instances/%s", it->id);
    CHECK(by_hand("DELETE", key, ""));
    fault_wait(&f, "instance key deleted by hand");
}

static void instance_key_changed(void)
{
    instance *it = any_instance();
    char key[60];
    fault f = fault_begin(NULL, 0);
    snprintf(key, sizeof key, "cluster/instances/%s", it->id);
    CHECK(by_hand("PUT", key, "{}"));
    e2e_sleep(4000);        /* what moves is handed over, so what counts is how long it stood still */
    fault_over(&f);
    printf("  %d moved; old worker dead -> new worker at most %lld ms\n", f.moved, (long long)f.gap_ms);
    sample(f.gap_ms);
    hold_to("instance key changed by hand", f.gap_ms, promise("instance key changed by hand"));
}

static void partitions_key_deleted(void)
{
    fault f = fault_begin(NULL, 0);
    CHECK(by_hand("DELETE", "cluster/partitions", ""));
    fault_watch(&f, "partitions key deleted by hand", 3000);
}

static void all_keys_deleted(void)
{
    fault f = fault_begin(NULL, 0);
    CHECK(by_hand("DELETE", "?recurse", ""));
    fault_wait(&f, "all keys deleted by hand");
}

/* By its instance's key, which carries it. */
static bool session_destroy(const instance *it)
{
    char path[200], session[64] = "";
    snprintf(path, sizeof path, "/v1/kv/manager/faults/cluster/instances/%s", it->id);
    const char *at = e2e_http(live_server(), "GET", path, "") == 200 ? strstr(e2e_out, "\"Session\":") : NULL;
    if (!at || !(at = strchr(at + 10, '"')) || sscanf(at, "\"%63[^\"]\"", session) != 1) return false;
    snprintf(path, sizeof path, "/v1/session/destroy/%s", session);
    return e2e_http(live_server(), "PUT", path, "") == 200;
}

static void session_destroyed(void)
{
    instance *it = any_instance();
    fault f = fault_begin(it, 0);
    CHECK(session_destroy(it));
    fault_wait(&f, "session destroyed by hand");
}

static void instance_evicted(void)
{
    instance *it = any_instance();
    fault f = fault_begin(it, 0);
    it->may_end = true;
    CHECK_INT(e2e_cli("evict", "--consul", servers_address, "-s", "faults", it->id, "--yes", NULL), 0);
    fault_wait(&f, "instance evicted");
    CHECK_INT(e2e_wait_end(it->pid, 15000), 76);
}

/* One step of a random sequence. `hurt_once`: which instances had a helper frozen; a
 * second one frozen or killed there, and a third, would be what nobody can promise. */
static void random_fault(bool *hurt_once)
{
    static const char *const names[] = { "worker killed", "manager killed", "keeper killed", "guard killed", "manager frozen", "keeper frozen",
        "guard frozen", "session destroyed", "host killed", "agent killed", "agent stopped politely", "cut", "slow", "server killed", "repaired in part" };
    instance *it = any_instance();
    int host = any_host(), server = random_in(0, SERVERS - 1), what = random_in(0, (int)MGR__COUNT(names) - 1);
    pid_t keeper = 0, guard = 0;
    bool helpers = !hurt_once[it - instances] && helpers_of(it, &keeper, &guard), frozen = hurt_once[it - instances];
    printf("  %s: %s, host %d, server %d\n", names[what], it->id, host, server);
    long worker_at = live_of(random_in(0, PARTITIONS - 1));
    switch (what) {
    case 0: if (worker_at >= 0) kill(all->lives[worker_at].pid, SIGKILL); break;
    case 1: if (!frozen) kill_instance(it); break;
    case 2: if (helpers) kill(keeper, SIGKILL); break;
    case 3: if (helpers) kill(guard, SIGKILL); break;
    case 4: if (!frozen && !e2e_ended(it->pid)) { stop_process(it->pid); hurt_once[it - instances] = true; } break;
    case 5: if (helpers) { stop_process(keeper); hurt_once[it - instances] = true; } break;
    case 6: if (helpers) { stop_process(guard); hurt_once[it - instances] = true; } break;
    case 7: session_destroy(it); break;
    case 8: host_kill(&nodes[host]); break;
    case 9: agent_kill(host, SIGKILL); break;
    case 10: if (agents[host].pid && !all->wires[host].cut_out) agent_kill(host, SIGTERM); break;
    case 11: wire_set(host, random_in(0, 1), random_in(0, 1), 0); break;
    case 12: wire_set(host, 0, 0, random_in(5, 600)); break;
    case 13: agent_kill(server, SIGKILL); break;
    default:
        for (int i = 0; i < DESK; i++) if (!agents[i].pid && random_in(0, 1)) agent_start(i);
        instances_back();
    }
}

static void random_sequence(void)
{
    bool hurt_once[INSTANCES] = { false };
    for (int step = random_in(4, 10); step-- > 0; ) {
        random_fault(hurt_once);
        e2e_sleep(random_in(0, 1) ? random_in(0, 300) : random_in(300, 6000));
    }
}

/* ---- the soak ---- */

static void print_times(const char *label, int64_t *ns, size_t count)
{
    qsort(ns, count, sizeof ns[0], e2e_order);
    if (count) printf("  %s: median %.1f ms, p99 %.1f ms, maximum %.1f ms\n", label, (double)ns[count / 2] / 1e6, (double)ns[count * 99 / 100] / 1e6,
                      (double)ns[count - 1] / 1e6);
}

/* A worker that was lost with its manager, and the last of those lost with it. */
typedef struct loss { long old; size_t kill; } loss;

/* A life ends with its last worker, which may take its stop grace: nobody can start any before. */
static void soak_report(const loss *losses, size_t count, int kills)
{
    static int64_t own[LIVES_MAX], last[LIVES_MAX];
    size_t n = 0, lost = 0, beside = 0;
    for (size_t i = 0; i < count; i++) {
        size_t old = (size_t)losses[i].old, next = old + 1, lives = life_count();
        int64_t all_dead = 0;
        while (next < lives && all->lives[next].partition != all->lives[old].partition) next++;
        for (size_t k = 0; k < count; k++) if (losses[k].kill == losses[i].kill) all_dead = mgr__max64(all_dead, dead_at((size_t)losses[k].old));
        if (next == lives || !dead_at(old)) { lost++; continue; }
        own[n] = all->lives[next].start_ns - dead_at(old);
        last[n++] = all->lives[next].start_ns - all_dead;
    }
    for (size_t i = 0; i < __atomic_load_n(&all->note_count, __ATOMIC_ACQUIRE); i++) beside += all->notes[i].kind == NOTE_OVERLAP;
    printf("  %d kills, %zu workers lost by them: %zu overlaps (frozen hosts included), %zu orphans, %zu partitions lost\n", kills,
           count, beside, orphans(false), lost);
    print_times("old worker dead -> new worker's main", own, n);
    print_times("all workers of its manager dead -> new worker's main", last, n);
    for (size_t i = 0; i < n; i++) sample(own[i] / 1000000);
    CHECK_INT(lost, 0);
}

/* What a manager was doing when it was killed. */
typedef enum moment { AT_EXEC, AT_GUARD, AT_KEEPER, AT_ENTERING, AT_ACQUIRING, AT_RELEASING, AT_WORK, AT_LEFT, MOMENTS } moment;

static pid_t first_child(pid_t pid)
{
    char path[64], text[200];
    int child = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)pid, (int)pid);
    e2e_read_file(path, text, sizeof text);
    return sscanf(text, "%d", &child) == 1 ? (pid_t)child : 0;
}

/* By its helpers while it has said nothing yet, and then by what it said since it was started. */
static moment moment_of(const instance *it, pid_t guard, pid_t keeper)
{
    static char text[1 << 18];
    int fd = open(it->log, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : pread(fd, text, sizeof text - 1, it->log_from);
    if (fd >= 0) close(fd);
    text[got > 0 ? got : 0] = 0;
    if (got <= 0) return !guard ? AT_EXEC : !keeper ? AT_GUARD : AT_KEEPER;
    if (strstr(text, " left: ")) return AT_LEFT;
    if (!strstr(text, " entered: ")) return AT_ENTERING;
    if (e2e_times(text, " releasing: ") > e2e_times(text, " released: ") + e2e_times(text, " partition-lost: ")) return AT_RELEASING;
    return e2e_times(text, " assumed: ") > e2e_times(text, " started: ") || !strstr(text, " assumed: ") ? AT_ACQUIRING : AT_WORK;
}

/* SIGKILL at a moment of that kind: any; while its keeper starts; while it enters and
 * acquires; while it releases. */
static moment soak_kill(instance *it, int kind)
{
    it->may_end = true;
    if (kind == 1 || kind == 2) {
        kill_instance(it);
        instance_start(it);
        it->may_end = true;
        poll(NULL, 0, kind == 1 ? random_in(0, 25) : random_in(25, 700));
    }
    if (kind == 3) { kill(it->pid, SIGTERM); e2e_sleep(random_in(0, 1000)); }
    pid_t guard = first_child(it->pid), keeper = guard ? first_child(guard) : 0;
    kill(it->pid, SIGKILL);
    moment m = moment_of(it, guard, keeper);
    e2e_wait_end(it->pid, 5000);
    return m;
}

static void kill_soak(void)
{
    static const char *const names[MOMENTS] = { "before it had a guard", "before it had a keeper", "with its keeper just made", "entering", "acquiring",
        "releasing", "at work, renewing", "having left" };
    static loss losses[LIVES_MAX];
    size_t count = 0, moments[MOMENTS] = { 0 };
    int kills = number_given ? number_given : 20;
    if (round_now) return;
    for (int done = 0; done < kills; done++) {
        instance *it = any_instance();
        e2e_sleep(random_in(0, 2500));
        for (int p = 0; p < PARTITIONS && count < MGR__COUNT(losses); p++) {
            losses[count].old = live_of(p);
            losses[count].kill = (size_t)done;
            if (losses[count].old >= 0 && !strcmp(all->lives[losses[count].old].instance, it->id)) count++;
        }
        moments[soak_kill(it, random_in(0, 3))]++;
        e2e_sleep(random_in(0, 1) ? random_in(0, 100) : random_in(100, 3000));
        instances_back();
        forget_ended();
        check_fences();
        if (done % 10 == 9 && !wait_settled(SETTLE_MS)) break;
    }
    wait_settled(SETTLE_MS);
    for (int i = 0; i < MOMENTS; i++) printf("  killed %s: %zu\n", names[i], moments[i]);
    soak_report(losses, count, kills);
}

/* ---- by number: how long it takes, and its parts ---- */

/* A partition's change of owner: the old and the new life, when the old was to end, and
 * when all work of its instance was dead (0: that is not what others waited for). */
typedef struct move { long old, next; int64_t asked_ns, all_dead_ns; } move;
enum { MOVES_MAX = 1 << 14 };

static move   bench_moves[MOVES_MAX];
static size_t bench_move_count;
static char   bench_log[1 << 23];

/* CLOCK_BOOTTIME of the line that `at` stands in, by its time stamp. */
static int64_t line_ns(const char *text, const char *at)
{
    struct tm utc;
    int ms = 0;
    struct timespec real;
    memset(&utc, 0, sizeof utc);
    while (at > text && at[-1] != '\n') at--;
    if (sscanf(at, "%d-%d-%dT%d:%d:%d.%dZ", &utc.tm_year, &utc.tm_mon, &utc.tm_mday, &utc.tm_hour, &utc.tm_min, &utc.tm_sec, &ms) != 7) return 0;
    utc.tm_year -= 1900;
    utc.tm_mon--;
    clock_gettime(CLOCK_REALTIME, &real);
    int64_t ahead = (int64_t)real.tv_sec * 1000000000 + real.tv_nsec - e2e_now_ns();
    return (int64_t)timegm(&utc) * 1000000000 + (int64_t)ms * 1000000 - ahead;
}

/* When an instance said that it assumed a partition, and when before that it saw another dead. */
static void move_said(const move *m, int64_t *dead_seen_ns, int64_t *assumed_ns)
{
    char what[100];
    const life *old = &all->lives[m->old], *next = &all->lives[m->next];
    snprintf(what, sizeof what, "assumed partition %d with fence %llu\n", next->partition, (unsigned long long)next->fence);
    const char *at = strstr(bench_log, what), *dead = NULL;
    *dead_seen_ns = *assumed_ns = 0;
    if (!at) return;
    *assumed_ns = line_ns(bench_log, at);
    snprintf(what, sizeof what, "instance %s is dead: its session is gone", old->instance);
    for (const char *more = bench_log; (more = strstr(more, what)) && more < at; more++) dead = more;
    if (dead) *dead_seen_ns = line_ns(bench_log, dead);
}

/* When the old owner was told to let go of what it had: for planned moves, from its log. */
static int64_t release_said(const life *old)
{
    char what[100], fence[40];
    snprintf(what, sizeof what, "releasing partition %d: ", old->partition);
    snprintf(fence, sizeof fence, "(fence %llu)\n", (unsigned long long)old->fence);
    for (const char *at = bench_log; (at = strstr(at, what)); at++) {
        const char *end = strchr(at, '\n');
        if (end && end - at > (ptrdiff_t)strlen(fence) && !strncmp(end + 1 - strlen(fence), fence, strlen(fence))) return line_ns(bench_log, at);
    }
    return 0;
}

static void fault_moves(const fault *f)
{
    int64_t all_dead = 0;
    for (int p = 0; p < PARTITIONS; p++) if (f->old[p] >= 0) all_dead = mgr__max64(all_dead, dead_at((size_t)f->old[p]));
    for (int p = 0; p < PARTITIONS && bench_move_count < MOVES_MAX; p++) {
        move m = { f->old[p], f->old[p] < 0 ? -1 : successor_of(f->old[p], f->at_ns), f->at_ns, all_dead };
        if (m.next >= 0) bench_moves[bench_move_count++] = m;
    }
}

static void bench_report(void)
{
    static int64_t own[MOVES_MAX], gap[MOVES_MAX], last[MOVES_MAX], seen[MOVES_MAX], locked[MOVES_MAX], begun[MOVES_MAX];
    size_t owns = 0, gaps = 0, lasts = 0, seens = 0, lockeds = 0;
    for (int i = 0; i < INSTANCES; i++) {
        e2e_read_file(instances[i].log, bench_log, sizeof bench_log);
        for (size_t k = 0; k < bench_move_count; k++) {
            move *m = &bench_moves[k];
            const life *old = &all->lives[m->old], *next = &all->lives[m->next];
            if (!m->asked_ns && !strcmp(old->instance, instances[i].id)) m->asked_ns = release_said(old);
            if (strcmp(next->instance, instances[i].id) || !old->dead_ns) continue;
            int64_t dead_seen, assumed, from = m->all_dead_ns ? m->all_dead_ns : old->dead_ns;
            move_said(m, &dead_seen, &assumed);
            gap[gaps++] = next->start_ns - old->dead_ns;
            if (m->all_dead_ns) last[lasts++] = next->start_ns - m->all_dead_ns;
            if (m->all_dead_ns && dead_seen) seen[seens++] = dead_seen - from;
            if (!assumed) continue;
            begun[lockeds] = next->start_ns - assumed;
            locked[lockeds++] = assumed - (m->all_dead_ns && dead_seen ? dead_seen : from);
        }
    }
    for (size_t k = 0; k < bench_move_count; k++)
        if (bench_moves[k].asked_ns && dead_at((size_t)bench_moves[k].old)) own[owns++] = dead_at((size_t)bench_moves[k].old) - bench_moves[k].asked_ns;
    printf("  %zu partitions changed their owner\n", bench_move_count);
    print_times("the worker's own time to stop", own, owns);
    print_times("old worker dead -> new worker's main", gap, gaps);
    print_times("all workers of its manager dead -> new worker's main", last, lasts);
    print_times("  of that: all dead -> certified and seen dead", seen, seens);
    print_times(lasts ? "  seen dead -> locked" : "  of that: dead -> released and locked", locked, lockeds);
    print_times("  locked -> new worker's main", begun, lockeds);
}

/* False: it is hopeless to go on. */
static bool bench_again(void)
{
    instances_back();
    forget_ended();
    check_fences();
    return wait_settled(SETTLE_MS);
}

/* SIGKILL to managers that are at work. */
static void kills(void)
{
    if (round_now) return;
    bench_move_count = 0;
    for (int left = number_given ? number_given : 5; left > 0; left--) {
        instance *it = any_instance();
        fault f = fault_begin(it, 0);
        kill_instance(it);
        fault_wait(&f, "manager killed");
        fault_moves(&f);
        if (!bench_again()) break;
    }
    bench_report();
}

/* SIGSTOP: the successor runs a second after the lease at the latest. */
static void stop(void)
{
    int64_t limit = LEASE_MS + 1000;
    size_t late = 0;
    if (round_now) return;
    bench_move_count = 0;
    for (int left = number_given ? number_given : 5; left > 0; left--) {
        instance *it = any_instance();
        fault f = fault_begin(it, 0);
        stop_process(it->pid);
        fault_wait(&f, "manager frozen");
        fault_moves(&f);
        late += f.slowest_ms > limit;
        CHECK(f.slowest_ms <= limit + SLACK_MS);
        while (stopped_count) kill(stopped[--stopped_count], SIGCONT);
        if (!bench_again()) break;
    }
    printf("  later than lease + 1 s: %zu\n", late);
    bench_report();
}

/* Planned moves: an instance is drained, and takes its share back. */
static void moves(void)
{
    size_t from = life_count();
    if (round_now) return;
    bench_move_count = 0;
    for (int left = number_given ? number_given : 3; left > 0; left--) {
        const char *id = any_instance()->id;
        CHECK_INT(e2e_cli("drain", "--consul", servers_address, "-s", "faults", id, NULL), 0);
        e2e_sleep(100);
        bool good = bench_again();
        CHECK_INT(e2e_cli("undrain", "--consul", servers_address, "-s", "faults", id, NULL), 0);
        e2e_sleep(100);
        if (!bench_again() || !good) break;
    }
    for (size_t i = from, count = life_count(); i < count && bench_move_count < MOVES_MAX; i++) {
        long before = (long)i - 1;
        while (before >= 0 && all->lives[before].partition != all->lives[i].partition) before--;
        if (before < 0 || !strcmp(all->lives[before].instance, all->lives[i].instance)) continue;
        move m = { before, (long)i, 0, 0 };
        bench_moves[bench_move_count++] = m;
        sample((all->lives[i].start_ns - dead_at((size_t)before)) / 1000000);
    }
    bench_report();
}

/* ---- and `consul lock` beside it ---- */

static pid_t lock_start(int number)
{
    const char *argv[] = { e2e_consul, "lock", "-shell=false", "-http-addr=127.0.0.1:8500", "beside/lock", e2e_self, "--lockchild", e2e_dir, NULL };
    return spawn_on(&nodes[SERVERS + number % HOSTS], argv, NULL);
}

static long lock_child_after(size_t from, int ms)
{
    for (int64_t until = e2e_now_ms() + ms; e2e_now_ms() < until; e2e_sleep(10))
        for (size_t i = from; i < life_count(); i++) if (all->lives[i].partition == LOCK_PARTITION) return (long)i;
    return -1;
}

/* SIGKILL to `consul lock` itself: its child knows nothing of it. */
static void consul_lock(void)
{
    if (round_now) return;
    pid_t holder = lock_start(0);
    long child = lock_child_after(0, 30000);
    for (int i = 1; i <= LOCK_KILLS && child >= 0; i++) {
        pid_t next = lock_start(i);
        e2e_sleep(random_in(1000, 3000));
        int64_t killed = e2e_now_ns();
        kill(holder, SIGKILL);
        long successor = lock_child_after((size_t)child + 1, 90000);
        e2e_sleep(5000);
        int64_t dead = dead_at((size_t)child), start = successor < 0 ? 0 : all->lives[successor].start_ns;
        printf("  consul lock, kill %d: the next child started %.1f s after; the old one lived beside it for %.1f s%s\n", i, (double)(start - killed) / 1e9,
               (double)((dead ? dead : e2e_now_ns()) - start) / 1e9, dead ? "" : ", until we kill it");
        kill(all->lives[child].pid, SIGKILL);
        holder = next;
        child = successor;
    }
    if (child < 0) fail("the lock is taken");
    kill(holder, SIGKILL);
    if (child >= 0) kill(all->lives[child].pid, SIGKILL);
}

/* ---- the program ---- */

typedef struct scenario { const char *name; void (*fn)(void); } scenario;

#define S(name) { #name, name }
static const scenario scenarios[] = {
    S(worker_dies), S(manager_killed), S(manager_frozen), S(keeper_killed), S(keeper_frozen), S(guard_killed), S(guard_frozen),
    S(manager_keeper_killed), S(manager_keeper_frozen), S(manager_killed_keeper_frozen), S(keeper_killed_manager_frozen),
    S(manager_guard_killed), S(manager_guard_frozen), S(manager_killed_guard_frozen), S(guard_killed_manager_frozen),
    S(keeper_guard_killed), S(keeper_guard_frozen), S(keeper_killed_guard_frozen), S(guard_killed_keeper_frozen), S(all_three_killed),
    S(host_dies), S(host_reboots), S(host_frozen), S(host_frozen_briefly),
    S(agent_leaves), S(agent_killed), S(agent_restarts), S(agent_frozen),
    S(network_cut_in), S(network_cut_out), S(network_cut), S(network_slow), S(network_very_slow), S(network_flaps),
    S(leader_killed), S(leader_lost_for_long), S(leader_killed_long_lease), S(quorum_lost), S(session_destroyed), S(instance_evicted),
    S(owner_key_deleted), S(owner_key_changed), S(instance_key_deleted), S(instance_key_changed), S(partitions_key_deleted),
    S(all_keys_deleted), S(random_sequence), S(kill_soak), S(kills), S(stop), S(moves), S(consul_lock),
};

static tally tallies[MGR__COUNT(scenarios)];

#ifdef FAULTS_SHORT
static const bool is_short = true;
#else
static const bool is_short = false;
#endif

/* Those of `make test`: proof of death, the lease, the guard, a freeze that only fences
 * survive, a cut, and Consul's keys taken away. */
static bool is_telling(const char *name)
{
    static const char *const names[] = { "manager_killed", "manager_frozen", "keeper_killed", "guard_killed_keeper_frozen", "host_frozen",
        "network_cut_in", "session_destroyed", "owner_key_changed" };
    for (size_t i = 0; i < MGR__COUNT(names); i++) if (!strcmp(names[i], name)) return true;
    return false;
}

/* With names, only those; NAME=NUMBER gives it a number, too. */
static bool wanted(const char *name, int argc, char **argv)
{
    size_t len = strlen(name);
    number_given = 0;
    if (is_short && argc <= 3) return is_telling(name);
    for (int i = 3; i < argc; i++) {
        if (strncmp(argv[i], name, len) || (argv[i][len] && argv[i][len] != '=')) continue;
        if (argv[i][len]) number_given = (int)strtol(argv[i] + len + 1, NULL, 10);
        return true;
    }
    return argc <= 3;
}

/* The seed of a round depends on nothing but its name, so that it can be run alone. */
static void run_scenario(const scenario *s, tally *t, int rounds, uint64_t seed)
{
    tally_now = t;
    t->limit_ms = -1;
    for (round_now = 0; round_now < rounds; round_now++) {
        dice.state = mgr__hash(mgr__str_of(s->name)) ^ (seed * 0x9e3779b97f4a7c15u + (uint64_t)round_now);
        all->until_ms = e2e_now_ms() + 600000 + number_given * 15000;
        test__bad = false;
        test__skip_why = NULL;
        printf("%s, round %d\n", s->name, round_now);
        e2e_sleep(random_in(0, is_short ? 300 : 1500));
        s->fn();
        heal_and_check();
        if (test__skip_why) { test__skipped++; printf("skip %s on three hosts: %s\n", s->name, test__skip_why); return; }
        t->rounds++;
        t->bad += test__bad;
        if (test__bad) e2e_print_logs();
        printf(test__bad ? "FAIL %s\n" : "ok   %s\n", s->name);
        fflush(stdout);
    }
    if (t->bad) test__failed++;
    else test__passed++;
}

static void print_table(void)
{
    printf("\n%-30s %6s %4s %8s %10s %10s %10s %10s %6s\n", "SCENARIO", "ROUNDS", "BAD", "SAMPLES", "MEDIAN ms", "P99 ms", "MAX ms", "PROMISED", "RATIO");
    for (size_t i = 0; i < MGR__COUNT(scenarios); i++) {
        tally *t = &tallies[i];
        size_t n = t->sample_count;
        if (!t->rounds) continue;
        printf("%-30s %6d %4d %8zu ", scenarios[i].name, t->rounds, t->bad, n);
        qsort(t->samples_ms, n, sizeof t->samples_ms[0], e2e_order);
        if (n) printf("%10lld %10lld %10lld ", (long long)t->samples_ms[n / 2], (long long)t->samples_ms[n * 99 / 100], (long long)t->samples_ms[n - 1]);
        else printf("%10s %10s %10s ", "-", "-", "-");
        if (t->limit_ms > 0) printf("%10lld %6.2f\n", (long long)t->limit_ms, n ? (double)t->samples_ms[n - 1] / (double)t->limit_ms : 0);
        else printf("%10s %6s\n", t->limit_ms ? "-" : "none", "-");
    }
}

static bool world_start(void)
{
    snprintf(servers_address, sizeof servers_address, "%s:8500,%s:8500,%s:8500", nodes[0].ip, nodes[1].ip, nodes[2].ip);
    for (int i = 0; i < SERVERS; i++) snprintf(agents[i].address, sizeof agents[i].address, "%s", servers_address);
    for (int i = 0; i < DESK; i++) agent_start(i);
    for (int i = 0; i < DESK; i++) if (!e2e_agent_ready(&agents[i], 60000)) return false;
    for (int i = 0; i < INSTANCES; i++) {
        snprintf(instances[i].log, sizeof instances[i].log, "%s/run-%s.log", e2e_dir, instances[i].id);
        instance_start(&instances[i]);
    }
    if (e2e_cli("timings", PATIENT_TIMES, "--json", NULL) != 0) return false;
    snprintf(patient_timings, sizeof patient_timings, "%.32000s", e2e_out);
    if (e2e_cli("timings", FAULTS_TIMES, "--json", NULL) != 0) return false;
    snprintf(timings, sizeof timings, "%.32000s", e2e_out);
    return wait_settled(60000);
}

static int run_all(int argc, char **argv)
{
    int rounds = argc > 1 ? (int)strtol(argv[1], NULL, 10) : is_short ? 1 : 2;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    const char *why = !e2e_consul[0] ? "no Consul can be had here" : geteuid() ? "needs root" : access("/dev/net/tun", R_OK | W_OK) ? "no /dev/net/tun here" : NULL;
    if (why || !nodes_make()) {
        for (size_t i = 0; i < MGR__COUNT(scenarios); i++) {
            if (!wanted(scenarios[i].name, argc, argv)) continue;
            test__skipped++;
            printf("skip %s on three hosts: %s\n", scenarios[i].name, why ? why : "no network namespace can be made here");
        }
        return test__end();
    }
    snprintf(e2e_dir, sizeof e2e_dir, "%s/world", e2e_root);
    mkdir(e2e_dir, 0755);
    recorder_start();
    if (!world_start()) { printf("FAIL the cluster does not start\n"); e2e_print_logs(); test__failed++; return test__end(); }
    for (size_t i = 0; i < MGR__COUNT(scenarios); i++)
        if (wanted(scenarios[i].name, argc, argv)) run_scenario(&scenarios[i], &tallies[i], rounds, seed);
    print_table();
    return test__end();
}

/* A folder for our cgroups: a host is frozen and killed by it. */
static void cgroup_find(void)
{
    static char mounts[1 << 16];
    char at[120], type[32], probe[200];
    e2e_read_file("/proc/mounts", mounts, sizeof mounts);
    for (char *line = strtok(mounts, "\n"); line; line = strtok(NULL, "\n")) {
        if (sscanf(line, "%*s %119s %31s", at, type) != 2 || strcmp(type, "cgroup2")) continue;
        snprintf(cgroup_base, sizeof cgroup_base, "%s/manager-faults-%d", at, (int)getpid());
        snprintf(probe, sizeof probe, "%s/cgroup.kill", cgroup_base);
        if (mkdir(cgroup_base, 0755) == 0 && access(probe, W_OK) == 0) return;
        rmdir(cgroup_base);
    }
    cgroup_base[0] = 0;
}

/* Until the tests end, a signal comes, or a round takes too long. */
static int supervise(pid_t tests, const sigset_t *signals)
{
    struct timespec tick = { 0, 200000000 };
    while (e2e_now_ms() < __atomic_load_n(&all->until_ms, __ATOMIC_RELAXED)) {
        int status, number = sigtimedwait(signals, NULL, &tick);
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0; )
            if (pid == tests) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (number > 0 && number != SIGCHLD) return 128 + number;
    }
    printf("FAIL a round took far too long\n0 passed, 1 failed, 0 skipped\n");
    return 1;
}

static void clean_up(void)
{
    char line[400];
    e2e_kill_all(true);
    snprintf(line, sizeof line, "find %s -depth -type d -exec rmdir {} +", cgroup_base);
    if (cgroup_base[0] && system(line) != 0) printf("%s is left\n", cgroup_base);
    snprintf(line, sizeof line, "rm -rf %s", e2e_root);
    if (!getenv("E2E_KEEP") && system(line) != 0) printf("%s is left\n", e2e_root);
}

int main(int argc, char **argv)
{
    static const int numbers[] = { SIGCHLD, SIGINT, SIGTERM, SIGHUP };
    sigset_t signals, before;
    e2e_heap = mgr__heap_make(NULL);
    if (argc >= 3 && !strcmp(argv[1], "--worker")) return worker(argv[2]);
    if (argc >= 3 && !strcmp(argv[1], "--lockchild")) return lock_child(argv[2]);
    if (argc >= 5 && !strcmp(argv[1], "--enter")) return enter(argv);
    unsetenv("CONSUL_HTTP_ADDR");
    unsetenv("CONSUL_HTTP_TOKEN");
    unsetenv("CONSUL_HTTP_TOKEN_FILE");
    e2e_find_programs();
    snprintf(e2e_root, sizeof e2e_root, "/tmp/manager-faults.XXXXXX");
    if (!mkdtemp(e2e_root)) { perror("mkdtemp"); return 1; }
    setenv("XDG_RUNTIME_DIR", e2e_root, 1);         /* life files go when we go */
    all = (shared *)mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) { perror("mmap"); return 1; }
    all->until_ms = e2e_now_ms() + 300000;
    if (geteuid() == 0) cgroup_find();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigemptyset(&signals);
    for (size_t i = 0; i < MGR__COUNT(numbers); i++) sigaddset(&signals, numbers[i]);
    sigprocmask(SIG_BLOCK, &signals, &before);
    pid_t tests = fork();
    if (tests == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        sigprocmask(SIG_SETMASK, &before, NULL);
        int code = run_all(argc, argv);
        fflush(stdout);
        _exit(code);
    }
    int code = supervise(tests, &signals);
    fflush(stdout);
    clean_up();
    return code;
}
