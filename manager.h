/* ============================================================================
 * [manual] manager.h: share out the pieces of a job among the machines of a
 *          cluster, and never let two of them work on the same piece
 * ============================================================================
 *
 * Do this in exactly one C file of your program, and link nothing:
 *
 *     #define MANAGER_IMPLEMENTATION
 *     #include "manager.h"
 *
 * A whole program. Start it on as many machines as you like; each runs its share
 * of the sixteen pieces, and what a dead machine had runs elsewhere within
 * milliseconds of the proof that it is dead there:
 *
 *     #define MANAGER_IMPLEMENTATION
 *     #include "manager.h"
 *
 *     static mgr_answer start(mgr *m, const char *partition, const mgr_grant *grant, void *user)
 *     {
 *         const char *argv[] = { "my-worker", partition, NULL };
 *         mgr_process process = {0};
 *         (void)grant; (void)user;
 *         process.argv = argv;
 *         return mgr_daemonize(m, partition, NULL, &process) == MGR_OK ? MGR_DONE : MGR_UNFIT;
 *     }
 *
 *     static void say(mgr_log_level level, const char *text, void *user)
 *     {
 *         (void)level; (void)user;
 *         fprintf(stderr, "%s\n", text);
 *     }
 *
 *     int main(void)
 *     {
 *         const char *names[] = { "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15" };
 *         mgr_desc desc = {0};
 *         mgr *m;
 *         desc.service_name = "ingest";
 *         desc.partitions = names;
 *         desc.partition_count = 16;
 *         desc.handle_signals = true;
 *         desc.on_acquire = start;
 *         desc.on_log = say;
 *         mgr_result result = mgr_open(&m, &desc);
 *         if (result == MGR_OK) result = mgr_run(m);
 *         if (result != MGR_OK) fprintf(stderr, "%s\n", mgr_error_text(m));
 *         mgr_close(m);
 *         return result != MGR_OK;
 *     }
 *
 * (In C++ = {} instead of = {0} keeps -Wextra quiet.)
 *
 * Needs C99 or C++11, POSIX.1-2008, gcc or clang, and a Consul agent (1.8 or
 * later) that can be reached over HTTP or a unix socket. In a second C file include
 * it without the macro; or define MANAGER_STATIC as well, and it is private to one.
 *
 * does      membership, placement, locks, leases, fences, supervision of
 *           processes and of in-process work, health checks, hand-over, failover
 * does not  move your data, speak TLS (talk to the local agent), run without
 *           Consul beyond one machine, survive a frozen host without fences
 *           (see "What is promised"), or load-balance by load: placement is by count and weight
 *
 * Sections, in order; each calls only those above it:
 *
 *     [manual]   this text
 *     [api]      types and prototypes
 *     [base]     memory, strings, buffers, hashing, names as keys
 *     [json]     pull reader and writer, base64
 *     [wire]     HTTP/1.1: requests out, responses in, byte by byte
 *     [rush]     placement, by weight or by slots; its specification, with vectors, stands at its head
 *     [cluster]  what an instance decides: a pure state machine
 *     [io]       the only section that calls the kernel
 *     [loop]     descriptors, one deadline, a wake-up
 *     [http]     one connection, deadlines, several addresses
 *     [consul]   what is asked of Consul, and what its answers mean
 *     [keeper]   guard and keeper: processes that survive this one
 *     [manager]  the public functions
 *     [history]
 *     [license]
 *
 * ---- Concepts --------------------------------------------------------------
 *
 * service     a set of instances that share one set of partitions
 * instance    one running program with an mgr; named uniquely within the service
 * partition   a unit of work: a name
 * assigned    the map says that this instance is to have the partition
 * assumed     this instance holds the partition's lock, and works
 * life        an instance from entering to leaving, named by its Consul session
 * session     Consul's word for who holds locks; can be taken away at any moment
 * lease       how long an instance may work on without a new confirmation
 * delay       how long others wait after a loss that nobody has certified
 * picture     what one query shows of all members, at one index of Consul's
 * map         who is to have which partition: computed from a picture alone
 * placement   the policy by which partitions are assigned: rush or slots, see below
 * slot        an instance's number, under the policy of that name
 * fence       a number that grows with every change of a partition's owner
 * grant       the right to work on a partition, as the program sees it
 * refuse      let others have a partition; one that all refuse is unplaceable
 * certificate the statement that everything of a life has been seen dead
 * keeper      a small process that starts, stops and reaps the workers
 * guard       a smaller one, which kills everything when the keeper cannot
 * rebalance   the map has changed; drain: give all away; evict: leave
 *
 * ---- How partitions are placed ---------------------------------------------------
 *
 * Two policies; both spread evenly to within one partition, and every instance
 * computes the same map. [rush] has their specification, bench_rush the figures.
 *
 *     rush    by weight. An instance that comes or goes moves 1.0 to 6 times the least
 *             possible; one partition more or less moves a few others. The default.
 *             From equal weights to unequal ones and back many move where there are
 *             fewer than four partitions for each instance.
 *     slots   instances are numbered, each takes the lowest number that is free, and all
 *             weigh the same. One that comes moves exactly what it must; one or several
 *             that go, exactly what they had. With a number missing already the next
 *             that goes moves up to 1.6 times the least. One partition more or less
 *             moves many others. For fixed sets and work that is dear to move.
 *
 * The policy is the service's: it stands in cluster/partitions with its version. A
 * first set brings its instance's (desc.placement); later a start follows the one that
 * stands, whatever it was told, and says so once: instances that start in any order,
 * with an old configuration among them, must not move everything to and fro.
 * mgr_set_placement and `manager partitions --placement` change it, by compare-and-swap
 * like a new set; most partitions move then, once.
 *
 * An instance that does not know the policy or its version does not join (MGR_INVALID,
 * with the version that it would need). One that meets it while it runs keeps what it
 * holds, takes nothing, and says so: replace the program. Only a command that names a
 * policy that it knows replaces it.
 *
 * Slots: a slot is a key made in the transaction that makes the member, and deleted in
 * the one that deletes it, so no two ever share one. It is kept for as long as the
 * member's key stands: also over a crash within rejoin_grace. Draining keeps it as
 * well, and counts as being away. Weights must be equal: another one is refused when it
 * joins, and when the policy is to change (should two do both at once, all are taken
 * for equal, and an event says so). A member whose slot was deleted by hand is given
 * the lowest free one in every map, and claims it. A refused partition goes elsewhere,
 * and one comes for it, so that the shares stay even.
 *
 * ---- A partition's life in one instance ---------------------------------------
 *
 *                      read: may be taken            lock won
 *         +----> IDLE --------------------> ACQUIRING --------> ASSUMED ----+
 *         |       ^                             |                  |        | the map gives it
 *         |       +-------- lock lost ----------+                  |        | to another, leave,
 *         |                                                        |        | drain, refuse
 *         |  unlock confirmed        all of it gone                |        v
 *         +--------- UNLOCKING <--------------------------------------- RELEASING
 *         |                                                        |        |
 *         |  all of it gone                 session, lease or lock is gone  |
 *         +----------- LOST <--------------------------------------+--------+
 *
 *     IDLE -> ACQUIRING        mgr__cluster_ask_lock, when mgr__part_takeable_at allows it
 *     ACQUIRING -> ASSUMED     mgr__cluster_lock_won
 *     ACQUIRING -> IDLE        mgr__cluster_lock_answer, mgr__cluster_read_part
 *     ASSUMED -> RELEASING     mgr__part_release; in a pause only as mgr__cluster_follow_map says
 *     RELEASING -> UNLOCKING   mgr__cluster_gone
 *     UNLOCKING -> IDLE        mgr__cluster_unlock_answer, mgr__cluster_read_part
 *     ASSUMED, RELEASING -> LOST   mgr__part_lose (the other states have no work: IDLE)
 *     LOST -> IDLE             mgr__cluster_gone
 *
 * ---- What is promised: the invariants -----------------------------------------
 *
 *  1. At most one live process (or in-process owner) per partition and name, over
 *     the whole cluster, whatever is killed, stopped, cut off, deleted by hand, or
 *     lands late or twice.
 *  2. Eventually exactly one, in a bound that `manager timings` prints.
 *  3. No process outlives its lease, nor its manager.
 *  4. A release or certificate is sent only after death was seen.
 *  5. Every instance with the same picture computes the same map, on any CPU.
 *  6. Nothing moves that the change does not require, beyond what evenness needs.
 *  7. No answer of Consul corrupts memory, blocks the loop, or makes it spin.
 *  8. An embedding program keeps its signals, children, stdio and threads.
 *  9. What is asked of Consul is bounded: three connections an instance, back-off
 *     with jitter, nothing while nothing changes but renewals and the long poll.
 * 10. Nothing is silent: each refusal, wait and failure is an event with its reason.
 *
 * What no process can promise: a host or virtual machine that is frozen whole may
 * wake with its workers alive for what was left of their lease; with manager, keeper
 * and guard all stopped by hand, but not the workers, these go on until one of the
 * three does. Only the fence helps there: pass MANAGER_FENCE (or mgr_grant_fence) to
 * whatever the work writes to, and let that refuse any fence lower than one it has
 * seen. A freeze that is over before the polite stop is due (two thirds of the lease,
 * less stop_grace and half the kill margin) changes nothing; one that is over within
 * the lease costs a stop and a new start, without a second owner; a longer one is the
 * above. The wall clock decides nothing: it may jump, and differ between hosts.
 *
 * In-process work is cooperative: its proof of death is the program's own death.
 * When it is lost, on_lost must end it before it returns; the life then gets no
 * certificate, and others wait the delay. With mgr_hold nothing is given up before
 * mgr_released. overrun_kill_host lets the keeper kill the program at the lease's end.
 *
 * ---- How two owners are avoided -----------------------------------------------
 *
 * The rules of safety, each with the functions that keep it.
 *
 * Who is a member
 *  S1  Membership is the key cluster/instances/<id>, locked by the session. One
 *      blocking query on cluster/ shows members, wishes and certificates at one index;
 *      from that picture alone every instance computes the same map. (mgr__picture_map)
 *  S2  An id that a live session holds is not entered; our own key is locked at the
 *      index that was read. (mgr__cluster_looked, mgr__cluster_ask_join)
 *
 * When a partition may be taken
 *  S3  If its key carries no session, and it says "released", or cluster/dead/<its
 *      life> stands, or its loss has been seen for the delay. A session whose life is
 *      certified counts as none: the lock's transaction takes its lock off first, so
 *      that an heir waits for two writes, the certificate and its own, and not for the
 *      session's end. (mgr__part_takeable_at)
 *  S4  That is max(own delay, delay in the value), since this (key, index) was first
 *      seen. A missing key has no index by which its loss could be timed: it is made
 *      anew, as lost for the longest delay ever seen. (mgr__part_observe,
 *      mgr__cluster_ask_missing)
 *  S5  The lock is a transaction [check-index at the index that was read, lock]:
 *      decided in raft order. Consul's lock-delay is checked before raft, so that a
 *      spinning acquire can win it; it is not relied on, sessions have LockDelay 0.
 *      (mgr__cluster_add_owner)
 *  S6  A lock whose answer was lost is never adopted, but taken anew, with a value that
 *      differs: that makes the first one impossible. (mgr__cluster_read_part,
 *      mgr__cluster_owner_value)
 *  S7  Nor is work begun under a lock that is older than the lease.
 *      (mgr__cluster_lock_won)
 *  S8  Once an unlock under a fence was sent, or its work lost, no work starts under it
 *      or a lower one: fences grow. (mgr__cluster_lock_won, mgr__part_lose)
 *  S9  When Consul's index goes down no "released" is believed for the delay, all that
 *      is held is confirmed at once, and fence_base is raised; locks hang on the marker
 *      and on our own key as they are known: after a restore new indices are higher than
 *      ever, but these keys are not as they were, or others have come back.
 *      A program started only then cannot know; it is to be started a delay later.
 *      (mgr__cluster_index_down, mgr__picture_went_back, mgr__cluster_ask_marker)
 *  S10 A first set hangs on a marker, created with an empty hash; then sessions are
 *      counted, then owner keys are made at the marker's index, and the set is named
 *      last. "released" is written only for new names, and for a first set only if no
 *      session of the service stood and this program never saw a set.
 *      (mgr__setter_answer, mgr__setter_makes)
 *
 * How long work may go on
 *  S11 The lease runs from when the last linearizable confirmation was sent:
 *      check-session of our key, check-index of every key held, 63 a transaction.
 *      (mgr__cluster_confirm)
 *  S12 What fails to confirm is killed alone; if it is our own key, everything.
 *      (mgr__cluster_confirm_conflict)
 *  S13 delay >= (lease + kill margin) * 1.002, or mgr_open refuses.
 *      (mgr__desc_check_times)
 *  S14 The lease is one atomic word, shared with guard and keeper: extended by
 *      compare-and-swap from an open value, and closed for good before the first
 *      signal. (mgr__page_extend, mgr__keeping_watch)
 *  S15 When stop_grace is left, work is told to stop, at the end it is killed: by the
 *      program, by the keeper if that hangs; with overrun_kill_host the program too.
 *      (mgr__cluster_lease_time, mgr__keeping_watch, mgr__keeping_overrun)
 *  S16 By the guard half the kill margin later, and the keeper too if it stands still.
 *      (mgr__guard_watch, mgr__guard_end)
 *  S17 Keeper and guard act by as much earlier as their timers were late, by half the
 *      kill margin at most. (mgr__page_early)
 *  S18 When manager or guard is gone, the keeper ends the work; when the keeper is
 *      gone, the guard; when both are, the parent-death signal. (mgr__keeping_wait,
 *      mgr__guard_sweep, mgr__keeping_child)
 *  S19 A guard or keeper that stands still is replaced, its word closed first.
 *      (mgr__keeper_look)
 *  S20 No work starts, in a process or in the program, without a lease that is open
 *      now. (mgr__keeping_may_start, mgr__work_begin)
 *  S21 The child asks for its parent's death after setuid, which clears that, and looks
 *      whether the parent still lives, before it executes. (mgr__keeping_child)
 *  S22 A grant is closed before on_lost is called; no lease is left without a life.
 *      (mgr__act_stop, mgr__manager_publish_lease)
 *
 * What counts as proof of death (nobody waits where there is one)
 *  S23 A partition is unlocked, and its process started again, only when its whole tree
 *      is gone: group, cgroup, adopted orphans, in-process work. Each leads a session
 *      of its own: nobody else's process can join its group and pass for its orphan.
 *      (mgr__keeping_sweep, mgr__keeping_child, mgr__work_look)
 *  S24 A life is certified only when all its work is dead and nothing of it is in
 *      flight; a new keeper comes before a new life. (mgr__cluster_phase_time)
 *  S25 The keeper's order: stop, reap, certify, destroy the session, deregister.
 *      (mgr__keeping_stop_more, mgr__keeping_speak)
 *  S26 In-process work is never certified while the host lives, nor in a life that lost
 *      some. (mgr__keeping_may_certify, mgr__work_lost, mgr__cluster_ask_parting)
 *  S27 With guard and keeper both dead only an empty cgroup is proof, or a keeper that
 *      was the first process of a PID namespace: with it all in there died.
 *      (mgr__keeper_end_alone)
 *  S28 What cannot be killed keeps its lock: the session is renewed, and the check that
 *      it falls with. (mgr__keeping_renew; while the manager lives, mgr__cluster_holds_on)
 *  S29 Program, keeper and guard all killed at once: a start on the same host (or another
 *      instance of the service there) proves it afterwards, if the workers had a cgroup
 *      or a PID namespace. The life's file in run_dir, under a flock that the three
 *      share, is free; each of them is gone by number and start; boot, PID namespace,
 *      device and inode are those that were recorded; the cgroup is empty, the namespace
 *      gone. Else the delay is waited, and an event and `manager why` say what was
 *      missing. (mgr__life_prove)
 *
 * ---- Pacing -------------------------------------------------------------------
 *
 * Failures act at once. Joins wait for settle_ms, and those that come together cause
 * one rebalance. moves_max bounds what an instance gives away at a time; what it
 * takes is never bounded, or two instances could wait for each other.
 *
 * With rejoin_grace_ms a leave is a restart, as a death is: work ends and locks are
 * given back, but the share is kept so long for the return. Who is drained first, or
 * evicted (also while it leaves, or since), leaves for good. (Kafka's static membership
 * does the same.)
 *
 * mgr_pause (`manager pause`) writes cluster/pause. While that key stands, whatever
 * is in it, an instance keeps what it holds, whomever the map names: joins, weights,
 * undraining and returning instances move nothing. What has no holder goes where the
 * map wants it, joiners included: what dead and leaving instances had, what is new in
 * the set, what was lost. So nobody needs to know who held what when the pause began,
 * and a failure in a pause is not moved twice. Explicit acts are done: drain, evict,
 * leave, names removed from the set, refusals. A release that had begun goes on. An
 * instance may hold more than its share meanwhile. An instance that is restarted has
 * failed and joined: it gets nothing back before the end, unless by rejoin_grace_ms.
 * With the key gone, the map holds again. Only mgr_pause(m, false, ..) ends it.
 *
 * The circuit breaker does the same when more than breaker_percent of the members,
 * and at least two, are seen dead within one delay and have not come back: then the
 * network, an agent or a deployment is to blame, and what goes away comes back. The
 * survivors take over what the others had, but exchange nothing among each other, and
 * those who return get nothing, until no member has come or gone for two delays (at
 * least four settle_ms), or somebody resumes. Where members keep coming and going (one
 * that crashes over and over) it lets go after eight times that, says so, and stays off
 * until all has been still once. Each counts by its own clock from when it first saw a
 * breaker hold; that names of instances repeat is not relied on. Whoever sees it holds
 * its own moves at once, and writes cluster/pause for all. Moves on the first deaths may
 * have begun.
 * Where all sessions are lost at once (an agent that is stopped) there is no survivor.
 *
 * ---- What stands in Consul, below manager/<service id>/ --------------------------
 *
 * Names enter keys with everything outside [A-Za-z0-9_-] as %XX.
 *
 *     cluster/partitions      hash, count, version, placement, placement_version,
 *                             delay_max, fence_base, replaced: a start with a set that
 *                             was replaced does not bring it back; a command does
 *     cluster/instances/<id>  life, weight, lease, delay, grace, joining, leaving,
 *                             draining, releases, node, service, refuses, boot, pid,
 *                             isolate, proof (its life file: name, device, inode), former
 *                             (a life whose death could not be proven, and why), program;
 *                             locked
 *     cluster/slots/<number>  instance: whose it is; under placement slots
 *     cluster/wishes/<id>     drain; evict: the life that is to leave
 *     cluster/dead/<life>     the certificate
 *     cluster/pause           by, since (ms), reason, breaker: planned moves are held
 *     cluster/missing         hash: the set in force, which somebody found gone or cannot
 *                             read (sets/ is not watched); who has it puts it back
 *     sets/<hash>             ["a",[0,15]]: names, and numbers as ranges
 *     owners/<partition>      state held|released, life, instance, since (ms), delay,
 *                             attempts, exit, ended, serial, fence; locked
 *
 * A get of a missing key fails its whole transaction (409): that is how "missing"
 * is read. A transaction's answer has an entry for each check, too.
 *
 * ---- Limits -------------------------------------------------------------------
 *
 *     MGR_NAME_BYTES_MAX       255      a name of a service, instance or partition
 *     MGR_PARTITION_COUNT_MAX  65536    and 390,000 bytes for the set's text
 *     MGR_MEMBER_COUNT_MAX     4096
 *     MGR_WORKER_COUNT_MAX     4096     processes of one instance
 *     MGR_CHECK_COUNT_MAX      1024
 *     MGR_ADDRESS_COUNT_MAX    16       of agents
 *     MGR_BODY_BYTES_MAX       48 MiB   one answer; MGR_HEAD_BYTES_MAX 16 KiB its head
 *     MGR_SPAWN_BYTES_MAX      256 KiB  arguments and environment of a process
 *     MGR_KILL_MARGIN_MS       900      from SIGKILL until a worker is surely gone
 *     MGR_CONNECT_TIMEOUT_MS   1000     then the next address
 *     MGR__JSON_DEPTH_MAX      64
 *     MGR__POST_COUNT_MAX      256      posts waiting
 *     MGR__TXN_OPS_MAX         64       operations of a transaction (Consul 1.8)
 *     MGR__CRASH_LOOP          10       ends in a row, then another instance shall try
 *     MGR__REFUSE_MAX_MS       1 h      a refusal, however often repeated
 *     MGR__RUSH_SLOT_MAX       65536    a slot's number in mgr_rush_slots; MGR_MEMBER_COUNT_MAX in Consul
 *     MGR__SETTLES_MAX         4        times settle_ms, waiting for younger joiners
 *     MGR__PROVE_MS            2 s      for a former life of this host to be seen dead, else the delay
 *     MGR__REWRITE_MS          250      between two writes of what came of work that goes on
 *     MGR__BURY_MS             300      and up to 1 s more, before the key of a dead member goes; 150 at most if somebody waits for that
 *     MGR__KEEPER_OPEN_MS      10 s     for guard and keeper to be in place
 *     MGR__KEEPER_START_MS     10 s     from fork to exec, unless the process's start_timeout_ms says otherwise
 *     MGR__KEEPER_QUEUE_BYTES  4 MiB    commands waiting for the keeper
 *     MGR__KEEPER_WORDS_MS     30 s     for the keeper's certificate to be accepted, when the program is dead
 *     MGR__KEEPER_HEIRS_MS     200      from there to the end of the session: the heirs' locks come first
 *     MGR__REASON_BYTES        200      why a service is paused
 *     MGR__BREAKER_STILLS      8        times the stillness that ends it, a circuit breaker holds
 *     MGR__SWEEP_MS            10 min   between two looks for certificates nobody needs
 *
 * Sizes and waits that are felt by nobody outside stand by name in their sections.
 *
 * ---- Configuration macros, to be set before the implementation -------------------
 *
 *     MANAGER_STATIC           public functions are static
 *     MGR_ASSERT(x)            default assert: programmer errors only
 *     MGR_MALLOC/REALLOC/FREE  all three or none; or desc.allocator for one instance
 *     MGR_...                  those of the limits above that begin so; MGR__... are fixed
 *
 * ---- Memory, errors, signals, fork, threads --------------------------------------
 *
 * mgr_open copies its descriptor whole. Strings returned live until the next call on
 * the instance. Out of memory ends the instance: its work is stopped, mgr_run says
 * MGR_NO_MEMORY. A grant lives until mgr_close (48 bytes for each acquisition).
 *
 * Operating errors are results, with mgr_error_text in words. The library never
 * exits, aborts or prints. Nothing waits without a deadline: requests 8 s, those
 * that carry the lease a fifth of it, the blocking query one lease and 2 s or so.
 *
 * No handler is installed and no mask changed, except with handle_signals, which
 * reads SIGTERM and SIGINT from a signalfd (Linux). Guard and keeper are made so
 * that the program's wait and SIGCHLD never see them (clone without a signal).
 * Daemonize before mgr_open. In a forked child every call says MGR_FORKED, and
 * mgr_close only frees memory. One thread steps an instance; mgr_post, mgr_leave,
 * mgr_lease_left_ms and the grant calls may be used from any.
 *
 * isolate keeps a worker's whole tree certain. auto is a cgroup where one is writable,
 * else none. cgroup by name must be had: else mgr_open says MGR_SYSTEM, and why. pidns
 * is made on request only: workers then see other pids than the host (mgr_pid and events
 * show the host's), and /proc is theirs; without CAP_SYS_ADMIN it takes a user namespace,
 * in which no process may have another uid or gid (MGR_DENIED). Where the kernel refuses
 * it, mgr_open says MGR_INVALID, and why.
 *
 * An agent that mgr_agent_start runs has a keeper of its own: it must outlive a life
 * of the instance that ends.
 *
 * ---- Testing ------------------------------------------------------------------
 *
 * `make test`: unit tests per section, the simulator (many instances of [cluster]
 * against a model of Consul under a virtual clock; a seed repeats a run), the
 * contract suite that keeps the model honest, and end-to-end tests on real Consul.
 * `make faults`: each failure that `manager timings` has a row for, on three servers
 * and three hosts in network namespaces, measured against what that row promises.
 * `make mutants` takes out each rule S1, S2, ... and sees that a test notices.
 */
/* The implementation needs more of libc than strict C99 shows: say so before the
 * first libc header, or refuse below with the remedy. */
#if defined(MANAGER_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1
#endif

/* ============================================================================
 * [api] Types and prototypes
 * what:  everything a user of manager.h sees
 * owns:  nothing
 * calls: nothing
 * ========================================================================== */
#ifndef MANAGER_H
#define MANAGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MANAGER_VERSION "0.1.0"

#if defined(__GNUC__) || defined(__clang__)
#define MGR__PRINTF(at, from) __attribute__((format(printf, at, from)))
#define MGR__UNUSED __attribute__((unused))
#else
#define MGR__PRINTF(at, from)
#define MGR__UNUSED
#endif

/* Linkage of the public functions: MANAGER_STATIC makes them private to the one
 * C file that includes the implementation. */
#ifdef MANAGER_STATIC
#define MGRAPI static MGR__UNUSED
#elif defined(__cplusplus)
#define MGRAPI extern "C"
#else
#define MGRAPI extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct pollfd;

typedef struct mgr mgr;                 /* one instance: a member of a cluster, or an observer of one */
typedef struct mgr_grant mgr_grant;     /* the right to work on one partition; lives until mgr_close */

/* In a descriptor 0 means "the default"; where "none" makes sense it is this. */
#define MGR_NONE 0xffffffffu

/* Limits. All of them may be set before the implementation is included. */
#ifndef MGR_NAME_BYTES_MAX
#define MGR_NAME_BYTES_MAX 255          /* a service id, instance id or partition name */
#endif
#ifndef MGR_PARTITION_COUNT_MAX
#define MGR_PARTITION_COUNT_MAX 65536
#endif
#ifndef MGR_MEMBER_COUNT_MAX
#define MGR_MEMBER_COUNT_MAX 4096
#endif
#ifndef MGR_WORKER_COUNT_MAX
#define MGR_WORKER_COUNT_MAX 4096       /* processes of one instance alive at once */
#endif
#ifndef MGR_ADDRESS_COUNT_MAX
#define MGR_ADDRESS_COUNT_MAX 16        /* addresses of Consul agents, after looking names up */
#endif
#ifndef MGR_BODY_BYTES_MAX
#define MGR_BODY_BYTES_MAX (48u << 20)  /* one answer of Consul: 65536 owner keys are 26 MiB */
#endif
#ifndef MGR_HEAD_BYTES_MAX
#define MGR_HEAD_BYTES_MAX (16u << 10)  /* its status line and header fields */
#endif
#ifndef MGR_SPAWN_BYTES_MAX
#define MGR_SPAWN_BYTES_MAX (256u << 10) /* arguments and environment of one process */
#endif
#ifndef MGR_KILL_MARGIN_MS
#define MGR_KILL_MARGIN_MS 900          /* from SIGKILL at the lease's end until a worker is surely gone */
#endif
#ifndef MGR_CHECK_COUNT_MAX
#define MGR_CHECK_COUNT_MAX 1024
#endif

/* Results. MGR_OK is 0, every failure negative. One list makes both the
 * constants and mgr_result_text's texts, so they cannot drift apart. */
#define MGR_RESULT_LIST(X)                                                          \
    X(MGR_OK,            0, "ok")                                                   \
    X(MGR_NO_MEMORY,    -1, "out of memory")                                        \
    X(MGR_INVALID,      -2, "invalid argument or descriptor")                       \
    X(MGR_UNREACHABLE,  -3, "no Consul agent can be reached")                       \
    X(MGR_TIMEOUT,      -4, "the deadline passed before an answer came")            \
    X(MGR_DENIED,       -5, "an ACL right is missing")                              \
    X(MGR_IDENTITY,     -6, "another live instance has this id")                    \
    X(MGR_CONFLICT,     -7, "somebody else changed it first")                       \
    X(MGR_EVICTED,      -8, "an operator made this instance leave")                 \
    X(MGR_LOST,         -9, "the lease or the session is lost")                     \
    X(MGR_PROTOCOL,    -10, "an answer is malformed")                               \
    X(MGR_SYSTEM,      -11, "a system call failed")                                 \
    X(MGR_NOT_FOUND,   -12, "no such thing")                                        \
    X(MGR_LIMIT,       -13, "a limit is exceeded")                                  \
    X(MGR_STATE,       -14, "not possible in this state")                           \
    X(MGR_REENTRANT,   -15, "not allowed inside a callback")                        \
    X(MGR_FORKED,      -16, "not allowed in a forked child of the host program")    \
    X(MGR_LEFT,        -17, "the instance has left the cluster")                    \
    X(MGR_UNPLACEABLE, -18, "no instance may take the partition")                   \
    X(MGR_NOT_MEMBER,  -19, "an observer cannot do this")

typedef enum mgr_result {
#define MGR__RESULT_ENUM(name, value, text) name = value,
    MGR_RESULT_LIST(MGR__RESULT_ENUM)
#undef MGR__RESULT_ENUM
    MGR__RESULT_FORCE_INT = 0x7fffffff
} mgr_result;

/* What a callback says of the work it was asked to begin or end. */
typedef enum mgr_answer {
    MGR_DONE = 0,       /* begun, or gone */
    MGR_PENDING = 1,    /* not yet: mgr_released says when it is gone */
    MGR_UNFIT = 2       /* this instance cannot do this partition: let another have it */
} mgr_answer;

/* What happened. name, then the word used in logs. */
#define MGR_EVENT_LIST(X)                            \
    X(MGR_EVENT_CONSUL_UP,      "consul-up")         \
    X(MGR_EVENT_CONSUL_DOWN,    "consul-down")       \
    X(MGR_EVENT_ENTERED,        "entered")           \
    X(MGR_EVENT_LEFT,           "left")              \
    X(MGR_EVENT_EVICTED,        "evicted")           \
    X(MGR_EVENT_IDENTITY,       "identity")          \
    X(MGR_EVENT_SESSION_LOST,   "session-lost")      \
    X(MGR_EVENT_LEASE_LOST,     "lease-lost")        \
    X(MGR_EVENT_MEMBER_JOINED,  "member-joined")     \
    X(MGR_EVENT_MEMBER_DEAD,    "member-dead")       \
    X(MGR_EVENT_MEMBER_REMOVED, "member-removed")    \
    X(MGR_EVENT_REBALANCE,      "rebalance")         \
    X(MGR_EVENT_SET_CHANGED,    "set-changed")       \
    X(MGR_EVENT_PAUSED,         "paused")            \
    X(MGR_EVENT_RESUMED,        "resumed")           \
    X(MGR_EVENT_ASSUMED,        "assumed")           \
    X(MGR_EVENT_RELEASING,      "releasing")         \
    X(MGR_EVENT_RELEASED,       "released")          \
    X(MGR_EVENT_PARTITION_LOST, "partition-lost")    \
    X(MGR_EVENT_WAITING,        "waiting")           \
    X(MGR_EVENT_REFUSED,        "refused")           \
    X(MGR_EVENT_UNPLACEABLE,    "unplaceable")       \
    X(MGR_EVENT_STARTED,        "started")           \
    X(MGR_EVENT_START_FAILED,   "start-failed")      \
    X(MGR_EVENT_EXITED,         "exited")            \
    X(MGR_EVENT_BACKOFF,        "backoff")           \
    X(MGR_EVENT_ENDED,          "ended")             \
    X(MGR_EVENT_STUCK,          "stuck")             \
    X(MGR_EVENT_CHECK,          "check")             \
    X(MGR_EVENT_KEEPER_LOST,    "keeper-lost")       \
    X(MGR_EVENT_CERTIFIED,      "certified")         \
    X(MGR_EVENT_ERROR,          "error")

typedef enum mgr_event_kind {
#define MGR__EVENT_ENUM(name, word) name,
    MGR_EVENT_LIST(MGR__EVENT_ENUM)
#undef MGR__EVENT_ENUM
    MGR__EVENT_COUNT
} mgr_event_kind;

/* Every pointer lives for the call; absent ones are "".
 *
 *   set        in the events of
 *   partition  assumed .. unplaceable, started .. stuck, checks of a partition
 *   instance   member-*, identity, waiting (who holds it), paused (who did it)
 *   name, pid  started .. stuck: the process; check: its id
 *   fence      assumed, releasing, partition-lost, started .. stuck; in others of a
 *              partition the last one that it had here, or 0
 *   status     exited, ended, check */
typedef struct mgr_event {
    mgr_event_kind kind;
    const char    *partition;
    const char    *instance;    /* the other instance, where there is one */
    const char    *name;        /* of a process or a check */
    pid_t          pid;         /* 0: none */
    int            status;      /* EXITED: exit status, or -signal; CHECK: 0 pass, 1 warning, 2 critical */
    uint64_t       fence;
    mgr_result     result;
    const char    *text;        /* the whole event as one line of English, without a newline */
} mgr_event;

typedef enum mgr_log_level { MGR_LOG_ERROR, MGR_LOG_WARN, MGR_LOG_INFO } mgr_log_level;

/* resize(user, NULL, 0, n) allocates, resize(user, p, n, 0) frees. NULL on failure. */
typedef struct mgr_allocator {
    void *(*resize)(void *user, void *ptr, size_t old_bytes, size_t new_bytes);
    void  *user;
} mgr_allocator;

/* How the processes of a partition are kept together, so that none survives. */
typedef enum mgr_isolate {
    MGR_ISOLATE_DEFAULT = 0,    /* auto */
    MGR_ISOLATE_NONE,           /* a session for each worker, and the subreaper's sweep */
    MGR_ISOLATE_CGROUP,         /* besides, a cgroup v2 of our own */
    MGR_ISOLATE_PIDNS,          /* a PID namespace whose first process is the keeper, with a /proc of its own: workers see
                                   other pids than the host. Takes CAP_SYS_ADMIN, or user namespaces (then no process may
                                   have another uid or gid); else mgr_open refuses */
    MGR_ISOLATE_AUTO            /* cgroup where one may be written (systemd: Delegate=yes), else none; `manager status
                                   --json` shows which */
} mgr_isolate;

/* How partitions are placed. A property of the service, not of an instance: it stands
 * in Consul, and every instance follows it. */
typedef enum mgr_placement {
    MGR_PLACEMENT_DEFAULT = 0,  /* the one that stands; rush for a first set */
    MGR_PLACEMENT_RUSH,         /* by weights; little moves, whatever changes */
    MGR_PLACEMENT_SLOTS         /* instances numbered, equal weights; the least moves when one comes or goes, much when
                                   the set changes */
} mgr_placement;

/* One instance. Zero it, set what differs, pass it to mgr_open, which copies it
 * whole, strings included. Times are in milliseconds. */
typedef struct mgr_desc {
    uint32_t _start_canary;

    const char *service_name;        /* what Consul shows; required */
    const char *service_id;          /* what the keys carry; default: the name */
    const char *instance_id;         /* default: the host name */
    uint32_t    weight;              /* share of the work against others; default 1; at most 65535 */
    const char *const *tags;         /* of the Consul service */
    size_t      tag_count;
    const char *address;             /* of the Consul service; default: the agent's */
    uint16_t    port;                /* of the Consul service; 0: none */

    const char *consul_addr;         /* "host:port,unix:///path"; default CONSUL_HTTP_ADDR, then 127.0.0.1:8500 */
    const char *consul_token;        /* default CONSUL_HTTP_TOKEN */
    const char *consul_token_file;   /* default CONSUL_HTTP_TOKEN_FILE; read by mgr_open */
    const char *kv_prefix;           /* default "manager" */

    const char *const *partitions;   /* NULL: take the cluster's */
    size_t      partition_count;
    uint64_t    partitions_version;  /* a lower one never replaces a higher one */
    mgr_placement placement;         /* of a first set; another one that stands is followed, and an event says so */

    uint32_t    lease_ms;            /* default 15000 */
    uint32_t    delay_ms;            /* default (lease + kill margin) * 1.002, 16000 for the default lease */
    uint32_t    session_ttl_ms;      /* default 15000; Consul's minimum is 10000 */
    uint32_t    stop_grace_ms;       /* polite stop before SIGKILL; default a third of the lease */
    uint32_t    rejoin_grace_ms;     /* after a death, and after a leave without drain or evict, the share is kept so long
                                        for a return; default none */
    uint32_t    settle_ms;           /* a joiner waits so long before it takes part; default 1000 */
    uint32_t    moves_max;           /* planned releases in flight; default no limit */
    uint32_t    breaker_percent;     /* when more than this share of the members, and at least two, vanish at once, planned
                                        moves are held; default 50, MGR_NONE: never */
    uint32_t    start_timeout_ms;    /* mgr_run gives up entering; default none */

    mgr_isolate isolate;
    const char *run_dir;             /* where this host's life files are, by which a restart proves that all before it is
                                        dead: 0700 and ours, each folder above it root's or ours and closed to others or
                                        sticky, no network file system; else MGR_INVALID. Default: XDG_RUNTIME_DIR, else
                                        /run/manager, else /tmp/manager-<uid>; if none will do, an event, and no proof */
    bool        overrun_kill_host;   /* in-process work: the keeper kills this program at the lease's end */
    char      **keeper_argv;         /* exec the keeper as this command: see mgr_keeper_main */
    bool        handle_signals;      /* SIGTERM and SIGINT leave; a second one kills at once */
    bool        observer;            /* no session, no keeper, no work: status and admin calls only */

    /* Callbacks run in the thread that steps, inside mgr_step, mgr_run or mgr_dispatch.
     * They must not block: the same thread confirms the lease. Anything may be called
     * in them but stepping (MGR_REENTRANT) and mgr_close. Strings live for the call. */

    /* The partition is ours: begin its work, with mgr_daemonize, mgr_exec, or inside the
     * program. MGR_DONE, MGR_PENDING: begun (if no process was started, the work is in
     * the program). MGR_UNFIT: not begun; another instance shall have it. The grant
     * lives until mgr_close. NULL: nothing is begun. */
    mgr_answer (*on_acquire)(mgr *m, const char *partition, const mgr_grant *grant, void *user);

    /* A planned end: the lock is kept until all is gone. MGR_DONE: the work inside the
     * program has ended; processes are now told to stop. MGR_PENDING: mgr_released will
     * say so; processes are left alone until then, and killed after within_ms. NULL: as
     * MGR_DONE. */
    mgr_answer (*on_release)(mgr *m, const char *partition, uint32_t within_ms, void *user);

    /* The lock or the lease is gone, or about to go: work inside the program must have
     * ended when this returns (unless it is held: see mgr_hold). Its processes are being
     * stopped already. why: MGR_LOST, MGR_NO_MEMORY. */
    void       (*on_lost)(mgr *m, const char *partition, mgr_result why, void *user);

    void       (*on_event)(mgr *m, const mgr_event *event, void *user);    /* everything that happens; nothing is silent */
    void       (*on_log)(mgr_log_level level, const char *text, void *user);  /* the texts of the same events, for those who only print */
    void        *user;
    mgr_allocator allocator;

    uint32_t _end_canary;
} mgr_desc;

/* A process. Strings and arrays are copied by the call that takes them. */
typedef struct mgr_process {
    uint32_t _start_canary;
    const char *const *argv;         /* NULL-terminated; argv[0] is looked up on the PATH */
    const char *const *env;          /* "NAME=value", NULL-terminated, added to ours; NULL: nothing */
    const char *directory;           /* default: where mgr_open was called */
    int         stop_signal;         /* default SIGTERM */
    uint32_t    stop_grace_ms;       /* default the descriptor's */
    uint32_t    start_timeout_ms;    /* until exec; default 10000 */
    uint32_t    backoff_min_ms;      /* daemonize: how long before the first restart; default 250 */
    uint32_t    backoff_max_ms;      /* default 60000 */
    uint32_t    healthy_ms;          /* after so long the back-off starts anew; default 10000 */
    uid_t       uid;                 /* with set_ids */
    gid_t       gid;
    bool        set_ids;
    bool        discard_output;      /* stdout and stderr to /dev/null; default: the host's */
    uint32_t _end_canary;
} mgr_process;

/* What a critical check does, besides telling Consul and the handlers. */
typedef enum mgr_check_policy {
    MGR_CHECK_REPORT = 0,
    MGR_CHECK_RESTART,               /* kill the partition's processes: daemonize starts them anew */
    MGR_CHECK_REFUSE                 /* give the partition to another instance */
} mgr_check_policy;

typedef struct mgr_check {
    uint32_t _start_canary;
    const char *id;                  /* unique in the instance, 1 to MGR_NAME_BYTES_MAX bytes; default "<partition>:script" or ":ttl" */
    const char *name;                /* what Consul shows, as long; default: the id */
    const char *const *argv;         /* script checks: exit 0 passes, 1 warns, anything else fails */
    uint32_t    interval_ms;         /* script checks; default 10000 */
    uint32_t    timeout_ms;          /* script checks; default 30000; a script over it is killed and fails */
    uint32_t    ttl_ms;              /* TTL checks: critical when no report came for so long */
    bool        by_worker;           /* TTL checks: the worker reports to Consul itself, PUT /v1/agent/check/pass/$MANAGER_CHECK_ID */
    mgr_check_policy policy;
    void (*on_pass)(mgr *m, const char *check_id, const char *partition, void *user);     /* on a change to this state */
    void (*on_warning)(mgr *m, const char *check_id, const char *partition, void *user);
    void (*on_failure)(mgr *m, const char *check_id, const char *partition, void *user);
    void       *user;                /* NULL: the descriptor's */
    uint32_t _end_canary;
} mgr_check;

/* `consul agent`, run under the keeper and restarted with back-off. */
typedef struct mgr_agent {
    uint32_t _start_canary;
    const char *program;             /* default "consul" */
    const char *data_dir;            /* required unless dev */
    const char *node;                /* default: Consul's own */
    const char *bind_addr;
    const char *client_addr;
    const char *config_file;
    const char *log_level;           /* default "warn" */
    const char *ca_file;
    bool        verify_outgoing;
    bool        server;
    bool        dev;                 /* in memory */
    uint32_t    bootstrap_expect;    /* servers; 0: not passed */
    uint16_t    http_port;           /* 0: Consul's own */
    const char *const *tags;         /* node meta: "tag-0", "tag-1", ... */
    size_t      tag_count;
    const char *const *args;         /* passed on as they are */
    size_t      arg_count;
    uint32_t _end_canary;
} mgr_agent;

/* ---- the instance ----
 * Unless said otherwise: call from the one thread that steps the instance; a
 * pointer passed in is read during the call only; a string returned lives until
 * the next call on this instance. */

/* Make an instance; it enters the cluster in the steps that follow. Forks the
 * guard and the keeper; no network I/O beyond looking names up.
 * *out is set on failure too, so that mgr_error_text can say why, and must be
 * closed; it is NULL only when out of memory.
 * MGR_INVALID: a field of the descriptor (the text names it); MGR_SYSTEM. */
MGRAPI mgr_result mgr_open(mgr **out, const mgr_desc *desc);

/* The last error in words: what failed, on what, what to do. Never NULL. */
MGRAPI const char *mgr_error_text(const mgr *m);

/* A result in words, "ok" for MGR_OK. Any thread. */
MGRAPI const char *mgr_result_text(mgr_result result);

/* The word of an event, as in logs. Any thread. */
MGRAPI const char *mgr_event_word(mgr_event_kind kind);

/* Step until the instance has left. MGR_OK: left because mgr_leave was called.
 * MGR_EVICTED, MGR_IDENTITY, MGR_UNREACHABLE or MGR_TIMEOUT (start_timeout_ms
 * passed), MGR_DENIED, MGR_INVALID (it cannot join under the placement that stands),
 * MGR_LIMIT (MGR_MEMBER_COUNT_MAX are there), MGR_NO_MEMORY. A lease or session that
 * is lost ends nothing: it enters anew. */
MGRAPI mgr_result mgr_run(mgr *m);

/* One turn: wait at most timeout_ms (-1: as long as need be) and do what is due.
 * MGR_OK: go on; MGR_LEFT and the failures of mgr_run: over, close it. */
MGRAPI mgr_result mgr_step(mgr *m, int timeout_ms);

/* For somebody else's loop: one descriptor that is readable when there is
 * something to do, timers included (an epoll on Linux); -1 where only
 * mgr_pollfds works. Then call mgr_dispatch(m, NULL, 0). */
MGRAPI int mgr_fd(const mgr *m);

/* Fill in what to poll for; returns the number needed, writes at most max.
 * Ask again before every poll: connections come and go. */
MGRAPI size_t mgr_pollfds(mgr *m, struct pollfd *fds, size_t fd_count_max);

/* Milliseconds until mgr_dispatch wants to be called without any descriptor
 * being ready; at most a quarter of the kill margin while work is held, for
 * poll's own timeout does not count suspension. */
MGRAPI int mgr_timeout_ms(const mgr *m);

/* Do what is due. revents are hints; NULL, 0 looks at everything.
 * Results as for mgr_step. */
MGRAPI mgr_result mgr_dispatch(mgr *m, const struct pollfd *fds, size_t fd_count);

/* Run fn(m, arg) in the loop, in the order of posting. Any thread; from a signal
 * handler too (it takes no lock). MGR_LIMIT: 256 posts are waiting. */
MGRAPI mgr_result mgr_post(mgr *m, void (*fn)(mgr *m, void *arg), void *arg);

/* Leave: stop the work, release, deregister; mgr_run then returns MGR_OK.
 * A second call kills the work at once. Any thread, async-signal-safe, NULL is fine. */
MGRAPI void mgr_leave(mgr *m);

/* Free everything. Work still running is stopped by the keeper. NULL is fine.
 * In a forked child of the host it frees memory and does nothing else. */
MGRAPI void mgr_close(mgr *m);

/* ---- grants: any thread ---- */
MGRAPI uint64_t mgr_grant_fence(const mgr_grant *grant);    /* pass it to whatever the work writes to */
MGRAPI int64_t  mgr_grant_left_ms(const mgr_grant *grant);  /* <= 0 once this partition or the lease is lost */

/* ---- processes of a partition ----
 * Names are unique in an instance; NULL means the partition's. Call from
 * on_acquire or while the partition is assumed. MGR_STATE: it is not assumed;
 * MGR_CONFLICT: the name is taken; MGR_LIMIT: arguments and environment over
 * MGR_SPAWN_BYTES_MAX, or MGR_WORKER_COUNT_MAX reached. */
MGRAPI mgr_result mgr_exec(mgr *m, const char *partition, const char *name, const mgr_process *process);       /* once */
MGRAPI mgr_result mgr_daemonize(mgr *m, const char *partition, const char *name, const mgr_process *process);  /* restarted with back-off */
MGRAPI pid_t      mgr_pid(const mgr *m, const char *name);     /* 0: not running. For display: signals go through mgr_kill */
MGRAPI mgr_result mgr_kill(mgr *m, const char *name, int signal_number);   /* MGR_NOT_FOUND: no such process */

/* ---- work inside the program ----
 * MGR_STATE: the partition is not assumed (mgr_released: not held) by this instance. */
MGRAPI mgr_result mgr_hold(mgr *m, const char *partition);     /* more than processes: released only by mgr_released or our death */
MGRAPI mgr_result mgr_released(mgr *m, const char *partition); /* the in-process work of the partition is gone */
MGRAPI uint64_t   mgr_fence(const mgr *m, const char *partition);  /* 0: not assumed */
MGRAPI int64_t    mgr_lease_left_ms(const mgr *m);             /* any thread; 0 for NULL, and once the lease is lost */

/* ---- the cluster ----
 * In a member these take effect in later steps, and events tell; in an observer they
 * wait for Consul's answer, 8 s a request: MGR_UNREACHABLE, MGR_DENIED, MGR_CONFLICT.
 * MGR_INVALID: bad, empty or duplicate names; MGR_NOT_FOUND: no such instance or partition. */
MGRAPI mgr_result mgr_set_partitions(mgr *m, const char *const *names, size_t name_count);  /* for the whole service */

/* For the whole service, in one step with a new set; names NULL: the set stays.
 * MGR_INVALID: slots with unequal weights. */
MGRAPI mgr_result mgr_set_placement(mgr *m, mgr_placement placement, const char *const *names, size_t name_count);

/* Let another have it for so long, which doubles with each repeat, up to an hour; 0: take it back. */
MGRAPI mgr_result mgr_refuse(mgr *m, const char *partition, uint32_t for_ms);

MGRAPI mgr_result mgr_drain(mgr *m, bool on);                  /* hand everything over, stay a member */
MGRAPI mgr_result mgr_evict(mgr *m, const char *instance);     /* force another instance to leave */
MGRAPI mgr_result mgr_wish_drain(mgr *m, const char *instance, bool on);       /* the same for draining */

/* Hold every planned move of the service, or go on with them: see "Pacing" in the
 * manual. reason: why, for those who look (cut at 200 bytes); NULL: none. Neither is
 * an error when it is so already: a new reason then replaces the one that stands.
 * Resuming ends a hold of the circuit breaker too. */
MGRAPI mgr_result mgr_pause(mgr *m, bool on, const char *reason);

/* ---- health ----
 * partition NULL: a check of the whole instance, for as long as that lives. Else of
 * a partition that is assumed (MGR_STATE otherwise): give it in on_acquire; it ends
 * with the partition. The state goes to a Consul TTL check whose id is the Consul
 * service id, '/', and the check's id. A script runs first after one interval. */
MGRAPI mgr_result mgr_check_script(mgr *m, const char *partition, const mgr_check *check);
MGRAPI mgr_result mgr_check_ttl(mgr *m, const char *partition, const mgr_check *check);
MGRAPI mgr_result mgr_check_pass(mgr *m, const char *check_id, const char *note);
MGRAPI mgr_result mgr_check_warn(mgr *m, const char *check_id, const char *note);
MGRAPI mgr_result mgr_check_fail(mgr *m, const char *check_id, const char *note);

/* ---- the Consul agent ---- */
MGRAPI mgr_result mgr_agent_start(mgr *m, const mgr_agent *agent);   /* run `consul agent` under the keeper */
MGRAPI mgr_result mgr_agent_join(mgr *m, const char *address);       /* as soon as the agent answers */

/* First line of main, only with desc.keeper_argv: -1 when this process is not
 * to be the keeper, else its exit status. */
MGRAPI int mgr_keeper_main(int argc, char **argv);

/* ---- looking at a service ---- */
typedef struct mgr_view_instance {
    const char *id;
    bool        alive, joining, draining, evicting;
    uint32_t    weight;
    uint32_t    owned;               /* partitions it holds */
    uint32_t    slot;                /* its number under MGR_PLACEMENT_SLOTS; under another policy the one that it would have */
    uint64_t    joined;              /* CreateIndex of its key */
    const char *life;                /* its session */
    const char *node;                /* its agent's node name */
    const char *isolate;             /* how its keeper keeps processes together: "none", "cgroup", "pidns" */
    uint32_t    lease_ms, delay_ms;
    const char *const *refuses;      /* partition names */
    size_t      refuse_count;
} mgr_view_instance;

typedef enum mgr_view_state { MGR_VIEW_ASSIGNED, MGR_VIEW_ASSUMED, MGR_VIEW_UNPLACEABLE } mgr_view_state;

typedef struct mgr_view_partition {
    const char *name;
    const char *assigned;            /* instance id: who is to have it now; NULL: unplaceable */
    const char *mapped;              /* instance id: who gets it without a pause; differs from assigned only in one */
    const char *owner;               /* instance id of the live holder; NULL: none */
    mgr_view_state state;
    uint64_t    fence;               /* 0: no owner */
    const char *since;               /* RFC 3339, UTC; "" where there is no owner */
    uint32_t    attempts;            /* starts of its processes under this owner */
    const char *last_exit;           /* "", "exit 1", "signal 9" */
    bool        ended;               /* its process was to run once, and has ended */
    bool        lost;                /* its last holder's life is gone without a release or certificate */
    const char *last_owner;          /* who held it last, "" if nobody ever did */
    const char *lost_why;            /* lost: why that life's death was not proven on its host; "" if nobody has said */
} mgr_view_partition;

typedef struct mgr_view {
    const char *service_id;
    uint64_t    index;               /* Consul's index of this picture */
    bool        converged;           /* each partition is held by the instance it is assigned to, and nobody is joining:
                                        nothing is about to move */
    uint64_t    version;             /* of the partition set */
    mgr_placement placement;         /* in force: never MGR_PLACEMENT_DEFAULT */
    bool        paused;              /* planned moves are held */
    bool        breaker;             /* ... by the circuit breaker, not by somebody */
    const char *paused_by;           /* instance id, or the host of an observer; "": unknown, or not paused */
    const char *paused_reason;
    const char *paused_since;        /* RFC 3339, UTC; "" where it is unknown */
    const mgr_view_instance  *instances;
    size_t      instance_count;
    const mgr_view_partition *partitions;
    size_t      partition_count;
    const char *const *drained;      /* ids of no instance now, which drain as soon as they come: see mgr_wish_drain */
    size_t      drained_count;
} mgr_view;

/* Read a service's state as of now (two linearizable reads), waiting at most
 * timeout_ms for Consul. Observers only. *out lives until mgr_view_free.
 * MGR_NOT_FOUND: the service has no partition set; MGR_INVALID: it is placed by a
 * policy that this program does not know; MGR_UNREACHABLE; MGR_TIMEOUT. */
MGRAPI mgr_result mgr_view_read(mgr *m, uint32_t timeout_ms, mgr_view **out);
MGRAPI void       mgr_view_free(mgr *m, mgr_view *view);

/* Wait until the service's state has changed after `index` or timeout_ms passed. */
MGRAPI mgr_result mgr_view_wait(mgr *m, uint64_t index, uint32_t timeout_ms);

/* What the agent shows of its own settings: how fast a cluster notices failures. 0: it
 * does not show it. (GET /v1/agent/self, DebugConfig) */
typedef struct mgr_agent_view {
    bool     server;                 /* else the next two are not what the servers go by, and 0 */
    uint32_t session_ttl_min_ms;     /* Consul takes no session of less; 0: its own 10 s */
    uint32_t raft_election_ms;       /* 1000 times raft_multiplier */
    uint32_t probe_ms;               /* gossip_lan.probe_interval */
    uint32_t suspicion_mult;         /* gossip_lan.suspicion_mult */
} mgr_agent_view;

/* Ask the agent, waiting at most timeout_ms. Observers only. MGR_DENIED: it takes
 * agent_prefix "" read; MGR_UNREACHABLE. */
MGRAPI mgr_result mgr_agent_read(mgr *m, uint32_t timeout_ms, mgr_agent_view *out);

/* ---- placement alone, pure: any thread ---- */
typedef struct mgr_member { const char *id; uint32_t weight; uint64_t joined; } mgr_member;   /* joined: CreateIndex of its key */

#define MGR_RUSH_NOBODY 0xffffffffu   /* in owners: unplaceable */

/* The whole map: each partition to `replicas` distinct members, even to within
 * one. owners[p * replicas + r] is an index into members, MGR_RUSH_NOBODY where none is
 * left. Needs mgr_rush_map_bytes of memory for the time of the call (MGR_MALLOC).
 * MGR_INVALID: duplicate or empty names; MGR_LIMIT; MGR_NO_MEMORY. */
MGRAPI mgr_result mgr_rush_map(const char *const *partitions, size_t partition_count,
                               const mgr_member *members, size_t member_count,
                               uint32_t replicas, uint32_t *owners);

/* The same with pairs that must not be: refused[i] = partition index, member index. */
typedef struct mgr_refusal { uint32_t partition, member; } mgr_refusal;
MGRAPI mgr_result mgr_rush_map_refusing(const char *const *partitions, size_t partition_count,
                                        const mgr_member *members, size_t member_count,
                                        uint32_t replicas, const mgr_refusal *refused, size_t refused_count,
                                        uint32_t *owners);
MGRAPI size_t mgr_rush_map_bytes(size_t partition_count, size_t member_count, uint32_t replicas);

/* By slots: members are numbered from 1, new ones by the lowest number that is free.
 * Even to within one as well, and a join or leave moves exactly as little as it can
 * while no number below the highest is missing; but one partition more or less moves
 * many others. One owner a partition. Needs mgr_rush_slots_bytes of memory.
 * MGR_INVALID: duplicate or empty names, weights that are neither equal nor 0, a slot
 * that is 0 or given twice; MGR_LIMIT: a slot over 65536 too; MGR_NO_MEMORY. */
MGRAPI mgr_result mgr_rush_slots(const char *const *partitions, size_t partition_count,
                                 const mgr_member *members, const uint32_t *slots, size_t member_count,
                                 const mgr_refusal *refused, size_t refused_count, uint32_t *owners);
MGRAPI size_t mgr_rush_slots_bytes(size_t partition_count, size_t member_count, uint32_t slot_max);

/* RUSH_R (Honicky & Miller, IPDPS 2004) for one object, where the objects are
 * too many to list: sub-clusters in the order they were added. servers receives
 * `replicas` distinct indices in 0 .. sum of server_count - 1. */
typedef struct mgr_subcluster { uint32_t server_count, weight; } mgr_subcluster;
MGRAPI mgr_result mgr_rush_locate(uint64_t object, const mgr_subcluster *subclusters, size_t subcluster_count,
                                  uint32_t replicas, uint32_t *servers);

#ifdef __cplusplus
}
#endif

#endif /* MANAGER_H */

#if defined(MANAGER_IMPLEMENTATION) && !defined(MANAGER_IMPLEMENTED)
#define MANAGER_IMPLEMENTED

/* ============================================================================
 * [base] Ground: includes, memory, strings, buffers, hashing, names as keys
 * what:  what every later section stands on
 * owns:  mgr__heap, mgr__buf, mgr__rng
 * calls: libc's memory and string functions only
 * ========================================================================== */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <link.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <grp.h>
#ifdef __linux__
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/vfs.h>
#endif

#if defined(__GLIBC__) && !defined(__USE_GNU)
#error "manager.h: a libc header came first, with too narrow a feature set: include manager.h before it, or compile with -D_GNU_SOURCE"
#endif
#if !defined(__GNUC__) && !defined(__clang__)
#error "manager.h: the implementation needs gcc's or clang's __atomic builtins"
#endif

#ifndef MGR_ASSERT
#include <assert.h>
#define MGR_ASSERT(condition) assert(condition)
#endif
#if defined(MGR_MALLOC) != defined(MGR_FREE) || defined(MGR_MALLOC) != defined(MGR_REALLOC)
#error "manager.h: define all of MGR_MALLOC, MGR_REALLOC and MGR_FREE, or none"
#endif
#ifndef MGR_MALLOC
#define MGR_MALLOC(bytes)       malloc(bytes)
#define MGR_REALLOC(ptr, bytes) realloc(ptr, bytes)
#define MGR_FREE(ptr)           free(ptr)
#endif

#define MGR__COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- memory: every block knows its size, so that the user's allocator is told it ---- */

typedef struct mgr__heap { mgr_allocator with; } mgr__heap;

static void *mgr__heap_default(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    (void)user; (void)old_bytes;
    if (new_bytes == 0) { MGR_FREE(ptr); return NULL; }
    return ptr ? MGR_REALLOC(ptr, new_bytes) : MGR_MALLOC(new_bytes);
}

static mgr__heap mgr__heap_make(const mgr_allocator *wanted)
{
    mgr__heap heap;
    if (wanted && wanted->resize) heap.with = *wanted;
    else { heap.with.resize = mgr__heap_default; heap.with.user = NULL; }
    return heap;
}

enum { MGR__HEAP_PREFIX = 16 };   /* holds the size; keeps malloc's alignment */

/* Keeps the content; a block that grows is zeroed behind its old end. NULL when
 * out of memory: the old block then stays. */
static void *mgr__resize(mgr__heap *heap, void *block, size_t bytes)
{
    char *old = block ? (char *)block - MGR__HEAP_PREFIX : NULL;
    size_t old_bytes = 0;
    if (old) memcpy(&old_bytes, old, sizeof old_bytes);
    if (bytes > SIZE_MAX / 2) return NULL;
    char *at = (char *)heap->with.resize(heap->with.user, old, old ? old_bytes + MGR__HEAP_PREFIX : 0, bytes + MGR__HEAP_PREFIX);
    if (!at) return NULL;
    memcpy(at, &bytes, sizeof bytes);
    if (bytes > old_bytes) memset(at + MGR__HEAP_PREFIX + old_bytes, 0, bytes - old_bytes);
    return at + MGR__HEAP_PREFIX;
}

static void *mgr__alloc(mgr__heap *heap, size_t bytes) { return mgr__resize(heap, NULL, bytes); }

static void *mgr__alloc_array(mgr__heap *heap, size_t count, size_t item_bytes)
{
    if (item_bytes && count > SIZE_MAX / 2 / item_bytes) return NULL;
    return mgr__alloc(heap, count * item_bytes);
}

static void mgr__free(mgr__heap *heap, void *block)
{
    if (!block) return;
    char *at = (char *)block - MGR__HEAP_PREFIX;
    size_t bytes;
    memcpy(&bytes, at, sizeof bytes);
    heap->with.resize(heap->with.user, at, bytes + MGR__HEAP_PREFIX, 0);
}

/* Room for one more item in an array that doubles. False: out of memory, nothing changed. */
static bool mgr__grow(mgr__heap *heap, void **items, size_t *cap, size_t count, size_t item_bytes)
{
    if (count < *cap) return true;
    size_t wanted = *cap ? *cap * 2 : 8;
    void *at = wanted > SIZE_MAX / 2 / item_bytes ? NULL : mgr__resize(heap, *items, wanted * item_bytes);
    if (!at) return false;
    *items = at;
    *cap = wanted;
    return true;
}

/* ---- strings: a view is not terminated and owns nothing ---- */

typedef struct mgr__str { const char *at; size_t len; } mgr__str;

static mgr__str mgr__str_make(const char *at, size_t len) { mgr__str s; s.at = at; s.len = len; return s; }
static mgr__str mgr__str_of(const char *text) { return mgr__str_make(text ? text : "", text ? strlen(text) : 0); }
static bool mgr__str_eq(mgr__str a, mgr__str b) { return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0); }
static bool mgr__str_is(mgr__str a, const char *b) { return mgr__str_eq(a, mgr__str_of(b)); }

static bool mgr__str_starts(mgr__str s, const char *with)
{
    size_t len = strlen(with);
    return s.len >= len && memcmp(s.at, with, len) == 0;
}

static int mgr__str_order(mgr__str a, mgr__str b)
{
    size_t len = a.len < b.len ? a.len : b.len;
    int order = len ? memcmp(a.at, b.at, len) : 0;
    if (order) return order;
    return a.len < b.len ? -1 : a.len > b.len;
}

/* For %.*s. */
static int mgr__str_width(mgr__str s, size_t most) { return (int)(s.len < most ? s.len : most); }

static mgr__str mgr__str_skip(mgr__str s, size_t bytes) { return mgr__str_make(s.at + bytes, s.len - bytes); }

/* A terminated copy on the heap, or NULL. */
static char *mgr__dup(mgr__heap *heap, mgr__str s)
{
    char *at = (char *)mgr__alloc(heap, s.len + 1);
    if (at && s.len) memcpy(at, s.at, s.len);
    return at;
}

static const char *mgr__or(const char *text, const char *otherwise) { return text ? text : otherwise; }

/* ---- buffers: grow up to a limit; a failure sticks, so that a writer checks once, at the end ---- */

typedef struct mgr__buf {
    mgr__heap *heap;
    char      *at;          /* always terminated once anything was written */
    size_t     len, cap;
    size_t     bytes_max;
    bool       failed;      /* out of memory, or over bytes_max */
} mgr__buf;

static void mgr__buf_init(mgr__buf *buf, mgr__heap *heap, size_t bytes_max)
{
    memset(buf, 0, sizeof *buf);
    buf->heap = heap;
    buf->bytes_max = bytes_max;
}

static void mgr__buf_free(mgr__buf *buf)
{
    mgr__free(buf->heap, buf->at);
    buf->at = NULL;
    buf->len = buf->cap = 0;
    buf->failed = false;
}

static void mgr__buf_clear(mgr__buf *buf) { buf->len = 0; buf->failed = false; if (buf->at) buf->at[0] = 0; }

/* Room for `more` bytes and a terminator. */
static bool mgr__buf_reserve(mgr__buf *buf, size_t more)
{
    if (buf->failed) return false;
    if (more > buf->bytes_max - buf->len) { buf->failed = true; return false; }
    size_t need = buf->len + more + 1;
    if (need <= buf->cap) return true;
    size_t cap = buf->cap ? buf->cap : 64;
    while (cap < need) cap *= 2;
    char *at = (char *)mgr__resize(buf->heap, buf->at, cap);
    if (!at) { buf->failed = true; return false; }
    buf->at = at;
    buf->cap = cap;
    return true;
}

static void mgr__buf_add(mgr__buf *buf, const void *bytes, size_t len)
{
    if (!mgr__buf_reserve(buf, len)) return;
    if (len) memcpy(buf->at + buf->len, bytes, len);
    buf->len += len;
    buf->at[buf->len] = 0;
}

static void mgr__buf_str(mgr__buf *buf, mgr__str s) { mgr__buf_add(buf, s.at, s.len); }
static void mgr__buf_text(mgr__buf *buf, const char *text) { mgr__buf_add(buf, text, strlen(text)); }
static void mgr__buf_char(mgr__buf *buf, char c) { mgr__buf_add(buf, &c, 1); }

static void mgr__buf_printf(mgr__buf *buf, const char *format, ...) MGR__PRINTF(2, 3);
static void mgr__buf_printf(mgr__buf *buf, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    if (len < 0) buf->failed = true;
    else if (mgr__buf_reserve(buf, (size_t)len)) {
        vsnprintf(buf->at + buf->len, (size_t)len + 1, format, again);
        buf->len += (size_t)len;
    }
    va_end(again);
    va_end(args);
}

static void mgr__buf_consume(mgr__buf *buf, size_t bytes)
{
    MGR_ASSERT(bytes <= buf->len);
    if (!bytes) return;
    memmove(buf->at, buf->at + bytes, buf->len - bytes);
    buf->len -= bytes;
    buf->at[buf->len] = 0;
}

static mgr__str mgr__buf_view(const mgr__buf *buf) { return mgr__str_make(buf->at ? buf->at : "", buf->len); }
static const char *mgr__buf_cstr(const mgr__buf *buf) { return buf->at ? buf->at : ""; }

/* ---- hashing and numbers ---- */

/* Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. */
static uint64_t mgr__mix64(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A name's 64-bit hash: FNV-1a, then mixed, for FNV's high bits are weak on short names. */
static uint64_t mgr__hash(mgr__str s)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < s.len; i++) h = (h ^ (unsigned char)s.at[i]) * 0x100000001b3u;
    return mgr__mix64(h);
}

/* For jitter and nonces; never for placement. */
typedef struct mgr__rng { uint64_t state; } mgr__rng;

static uint64_t mgr__rng_next(mgr__rng *rng) { return mgr__mix64(rng->state++); }

/* Uniform in 0 .. below-1; the bias of the modulo does not matter for jitter. */
static uint32_t mgr__rng_below(mgr__rng *rng, uint32_t below) { return below ? (uint32_t)(mgr__rng_next(rng) >> 32) % below : 0; }

static int64_t mgr__min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t mgr__max64(int64_t a, int64_t b) { return a > b ? a : b; }

#define MGR__NEVER INT64_MAX      /* a time that does not come */

/* ---- names as parts of keys ----
 * Injective, and free of everything that Consul or a URL treats specially: it
 * redirects "." and "//" to other keys, and its txn and URL forms disagree on
 * "%2F" (so a key carries '%' itself, and the URL encodes it once more). */

static bool mgr__key_plain(unsigned char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

static void mgr__key_escape(mgr__buf *out, mgr__str name)
{
    for (size_t i = 0; i < name.len; i++) {
        unsigned char c = (unsigned char)name.at[i];
        if (mgr__key_plain(c)) mgr__buf_char(out, (char)c);
        else mgr__buf_printf(out, "%%%02X", c);
    }
}

static int mgr__hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* False: not something mgr__key_escape writes. */
static bool mgr__key_unescape(mgr__buf *out, mgr__str escaped)
{
    for (size_t i = 0; i < escaped.len; i++) {
        char c = escaped.at[i];
        if (mgr__key_plain((unsigned char)c)) { mgr__buf_char(out, c); continue; }
        if (c != '%' || i + 2 >= escaped.len) return false;
        int hi = mgr__hex(escaped.at[i + 1]), lo = mgr__hex(escaped.at[i + 2]);
        if (hi < 0 || lo < 0 || mgr__key_plain((unsigned char)(hi * 16 + lo))) return false;
        mgr__buf_char(out, (char)(hi * 16 + lo));
        i += 2;
    }
    return !out->failed;
}

/* Bytes of the UTF-8 sequence at s (RFC 3629: no overlong forms, no surrogates), 0 if malformed. */
static size_t mgr__utf8_bytes(mgr__str s)
{
    const unsigned char *b = (const unsigned char *)s.at;
    if (!s.len) return 0;
    if (b[0] < 0x80) return 1;
    size_t need = b[0] >= 0xf0 ? 4 : b[0] >= 0xe0 ? 3 : 2;
    if (b[0] < 0xc2 || b[0] > 0xf4 || s.len < need) return 0;
    unsigned char lo = b[0] == 0xe0 ? 0xa0 : b[0] == 0xf0 ? 0x90 : 0x80;
    unsigned char hi = b[0] == 0xed ? 0x9f : b[0] == 0xf4 ? 0x8f : 0xbf;
    if (b[1] < lo || b[1] > hi) return 0;
    for (size_t i = 2; i < need; i++) if ((b[i] & 0xc0) != 0x80) return 0;
    return need;
}

/* NULL if the name may be used, else what is wrong with it. */
static const char *mgr__name_fault(mgr__str name)
{
    if (!name.len) return "is empty";
    if (name.len > MGR_NAME_BYTES_MAX) return "is longer than MGR_NAME_BYTES_MAX bytes";
    for (size_t i = 0, n; i < name.len; i += n) {
        unsigned char c = (unsigned char)name.at[i];
        if (c < 0x20 || c == 0x7f) return "has a control character";
        n = mgr__utf8_bytes(mgr__str_skip(name, i));
        if (!n) return "is not UTF-8";
    }
    return NULL;
}

/* Cut short where it does not fit; terminated in any case. */
static void mgr__copy_text(char *to, size_t to_bytes, mgr__str from)
{
    size_t len = from.len < to_bytes - 1 ? from.len : to_bytes - 1;
    if (len) memcpy(to, from.at, len);
    to[len] = 0;
}

/* Messages are one line, whatever a name or an answer of Consul holds. */
static void mgr__one_line(char *text)
{
    for (char *c = text; *c; c++) if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
}

/* ---- texts of results and events ---- */

MGRAPI const char *mgr_result_text(mgr_result result)
{
    switch (result) {
#define MGR__RESULT_CASE(name, value, text) case name: return text;
    MGR_RESULT_LIST(MGR__RESULT_CASE)
#undef MGR__RESULT_CASE
    case MGR__RESULT_FORCE_INT: break;
    }
    return "unknown result";
}

MGRAPI const char *mgr_event_word(mgr_event_kind kind)
{
    switch (kind) {
#define MGR__EVENT_CASE(name, word) case name: return word;
    MGR_EVENT_LIST(MGR__EVENT_CASE)
#undef MGR__EVENT_CASE
    case MGR__EVENT_COUNT: break;
    }
    return "unknown";
}

/* ---- arenas: many small strings that live and die together and never move ---- */

typedef struct mgr__arena_block { struct mgr__arena_block *next; size_t used, cap; } mgr__arena_block;
typedef struct mgr__arena { mgr__heap *heap; mgr__arena_block *blocks; bool failed; } mgr__arena;

enum { MGR__ARENA_BLOCK = 4096 };

static void mgr__arena_init(mgr__arena *arena, mgr__heap *heap) { arena->heap = heap; arena->blocks = NULL; arena->failed = false; }

static void mgr__arena_free(mgr__arena *arena)
{
    while (arena->blocks) {
        mgr__arena_block *next = arena->blocks->next;
        mgr__free(arena->heap, arena->blocks);
        arena->blocks = next;
    }
    arena->failed = false;
}

/* Zeroed, aligned for anything; NULL and a sticky `failed` when out of memory. */
static void *mgr__arena_alloc(mgr__arena *arena, size_t bytes)
{
    bytes = (bytes + 15) & ~(size_t)15;
    mgr__arena_block *block = arena->blocks;
    if (!block || block->cap - block->used < bytes) {
        size_t cap = bytes > MGR__ARENA_BLOCK ? bytes : (size_t)MGR__ARENA_BLOCK;
        block = (mgr__arena_block *)mgr__alloc(arena->heap, 32 + cap);
        if (!block) { arena->failed = true; return NULL; }
        block->cap = cap;
        block->next = arena->blocks;
        arena->blocks = block;
    }
    char *at = (char *)block + 32 + block->used;
    block->used += bytes;
    return at;
}

/* A terminated copy; "" when out of memory. */
static mgr__str mgr__arena_str(mgr__arena *arena, mgr__str s)
{
    char *at = (char *)mgr__arena_alloc(arena, s.len + 1);
    if (!at) return mgr__str_of("");
    if (s.len) memcpy(at, s.at, s.len);
    return mgr__str_make(at, s.len);
}

/* ============================================================================
 * [json] Base64, pull reader, writer
 * what:  RFC 4648 base64; RFC 8259 read from a view and written to a buffer
 * owns:  mgr__json, mgr__jw
 * calls: [base]
 * ========================================================================== */

/* ---- base64, as strict as RFC 4648 allows: one text for one value ---- */

static const char *mgr__base64_digits(void)
{
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
}

static void mgr__base64_encode(mgr__buf *out, mgr__str in)
{
    const char *digits = mgr__base64_digits();
    if (in.len / 3 >= SIZE_MAX / 8) { out->failed = true; return; }
    if (!mgr__buf_reserve(out, (in.len + 2) / 3 * 4)) return;
    for (size_t i = 0; i < in.len; i += 3) {
        size_t n = in.len - i < 3 ? in.len - i : 3;
        uint32_t group = 0;
        for (size_t k = 0; k < 3; k++) group = group << 8 | (k < n ? (unsigned char)in.at[i + k] : 0u);
        char text[4];
        for (size_t k = 0; k < 4; k++) text[k] = k > n ? '=' : digits[group >> (18 - 6 * k) & 63];
        mgr__buf_add(out, text, sizeof text);
    }
}

static uint32_t mgr__base64_value(char c)
{
    if (c >= 'A' && c <= 'Z') return (uint32_t)(c - 'A');
    if (c >= 'a' && c <= 'z') return (uint32_t)(c - 'a') + 26;
    if (c >= '0' && c <= '9') return (uint32_t)(c - '0') + 52;
    return c == '+' ? 62 : c == '/' ? 63 : UINT32_MAX;
}

/* Needs room for in.len / 4 * 3 bytes at `to`, which may be where the text itself
 * stands: a group is read before the shorter one it becomes is written. */
static bool mgr__base64_bytes(char *to, mgr__str in, size_t *len)
{
    *len = 0;
    if (in.len % 4) return false;
    for (size_t i = 0; i < in.len; i += 4) {
        size_t pad = i + 4 < in.len || in.at[i + 3] != '=' ? 0 : in.at[i + 2] != '=' ? 1 : 2;
        uint32_t group = 0;
        for (size_t k = 0; k < 4; k++) {
            uint32_t value = k < 4 - pad ? mgr__base64_value(in.at[i + k]) : 0;
            if (value == UINT32_MAX) return false;
            group = group << 6 | value;
        }
        /* Bits below the padding mean nothing, so two texts could mean one value (3.5). */
        if (group & ((1u << 8 * pad) - 1)) return false;
        for (size_t k = 0; k < 3 - pad; k++) to[(*len)++] = (char)(unsigned char)(group >> (16 - 8 * k) & 255);
    }
    return true;
}

/* False: not base64 with its padding and without white space, or out failed. Nothing is added then. */
MGR__UNUSED static bool mgr__base64_decode(mgr__buf *out, mgr__str in)
{
    size_t len;
    if (!mgr__buf_reserve(out, in.len / 4 * 3)) return false;
    if (!mgr__base64_bytes(out->at + out->len, in, &len)) { out->at[out->len] = 0; return false; }
    out->len += len;
    out->at[out->len] = 0;
    return true;
}

/* ---- reader: the caller asks for what it expects, in the order of the text ----
 * Nothing is allocated but in a scratch buffer. The first error sticks: from then
 * on every call returns false, 0 or "", so that a caller may check once, with
 * mgr__json_end. Asking for what cannot be there (a second item of a one-item
 * array) is such an error too, never an assertion: what is there is Consul's say.
 * A value that nobody reads is skipped by the next key or item. A member that
 * comes twice is shown twice: which one counts is the caller's choice. A byte
 * order mark is refused (RFC 8259 8.1 leaves that open).
 *
 *     mgr__json_init(&j, text);
 *     if (mgr__json_object(&j))
 *         while (mgr__json_key(&j, &key))
 *             if (mgr__str_is(key, "Index")) index = mgr__json_u64(&j);
 *     if (!mgr__json_end(&j)) ... j.error, at byte j.error_at
 */

enum {
    MGR__JSON_DEPTH_MAX = 64,       /* one bit each in mgr__json.objects */
    MGR__JSON_KEY_BYTES_MAX = 256   /* of a key that is written with escapes */
};

typedef enum mgr__json_type {
    MGR__JSON_NONE,                 /* no value is due here, or its first byte begins none */
    MGR__JSON_NULL, MGR__JSON_BOOL, MGR__JSON_NUMBER, MGR__JSON_STRING, MGR__JSON_ARRAY, MGR__JSON_OBJECT
} mgr__json_type;

typedef struct mgr__json {
    mgr__str    text;
    size_t      at;                 /* the next byte to read */
    uint32_t    depth;              /* containers entered and not yet left */
    uint64_t    objects;            /* bit d: the container at depth d + 1 is an object */
    bool        fresh;              /* just entered: no comma before what comes next */
    bool        due;                /* a value must come next */
    const char *error;              /* NULL: none so far */
    size_t      error_at;           /* the byte at which the text went wrong */
    char        key[MGR__JSON_KEY_BYTES_MAX];
} mgr__json;

static bool mgr__json_fail(mgr__json *j, size_t at, const char *why)
{
    if (!j->error) { j->error = why; j->error_at = at; }
    return false;
}

static void mgr__json_init(mgr__json *j, mgr__str text)
{
    memset(j, 0, sizeof *j);
    j->text = text;
    j->due = true;
    if (text.len > MGR_BODY_BYTES_MAX) mgr__json_fail(j, MGR_BODY_BYTES_MAX, "longer than MGR_BODY_BYTES_MAX bytes");
}

/* The byte to come, 0 at the end: a NUL is legal nowhere, so both may end in the same error. */
static char mgr__json_look(const mgr__json *j) { return j->at < j->text.len ? j->text.at[j->at] : '\0'; }

static bool mgr__json_unexpected(mgr__json *j, const char *why)
{
    return mgr__json_fail(j, j->at, j->at < j->text.len ? why : "the text ends too early");
}

static void mgr__json_space(mgr__json *j)
{
    for (char c = mgr__json_look(j); c == ' ' || c == '\n' || c == '\t' || c == '\r'; c = mgr__json_look(j)) j->at++;
}

/* -- strings: scanned, which finds every error, and then decoded, which finds none -- */

static int mgr__json_hex(char c) { return c >= 'a' && c <= 'f' ? c - 'a' + 10 : mgr__hex(c); }

static uint32_t mgr__json_unit(const char *at)
{
    uint32_t unit = 0;
    for (int i = 0; i < 4; i++) unit = unit << 4 | (uint32_t)mgr__json_hex(at[i]);
    return unit;
}

/* The four digits of a \u escape. */
static bool mgr__json_scan_unit(mgr__json *j, uint32_t *unit)
{
    for (int i = 0; i < 4; i++, j->at++)
        if (mgr__json_hex(mgr__json_look(j)) < 0) return mgr__json_unexpected(j, "expected four hexadecimal digits");
    *unit = mgr__json_unit(j->text.at + j->at - 4);
    return true;
}

/* Surrogates come in pairs, the high one first: a lone one has no form in UTF-8. */
static bool mgr__json_scan_unicode(mgr__json *j, size_t escape_at)
{
    uint32_t unit = 0;
    if (!mgr__json_scan_unit(j, &unit)) return false;
    if (unit < 0xd800 || unit > 0xdfff) return true;
    if (unit > 0xdbff || j->text.len - j->at < 2 || memcmp(j->text.at + j->at, "\\u", 2) != 0)
        return mgr__json_fail(j, escape_at, "a surrogate without its other half");
    j->at += 2;
    if (!mgr__json_scan_unit(j, &unit)) return false;
    if (unit < 0xdc00 || unit > 0xdfff) return mgr__json_fail(j, escape_at, "a surrogate without its other half");
    return true;
}

static bool mgr__json_scan_escape(mgr__json *j)
{
    size_t escape_at = j->at++;
    char c = mgr__json_look(j);
    if (!c || !strchr("\"\\/bfnrtu", c)) return mgr__json_unexpected(j, "no such escape");
    j->at++;
    return c != 'u' || mgr__json_scan_unicode(j, escape_at);
}

/* raw: what stands between the quotes. */
static bool mgr__json_scan_string(mgr__json *j, mgr__str *raw, bool *escaped)
{
    *raw = mgr__str_make("", 0);
    *escaped = false;
    if (mgr__json_look(j) != '"') return mgr__json_unexpected(j, "expected a string");
    size_t start = ++j->at;
    for (char c = mgr__json_look(j); c != '"'; c = mgr__json_look(j)) {
        if ((unsigned char)c < 0x20) return mgr__json_unexpected(j, "a control character in a string");
        if (c == '\\') {
            *escaped = true;
            if (!mgr__json_scan_escape(j)) return false;
            continue;
        }
        size_t bytes = mgr__utf8_bytes(mgr__str_skip(j->text, j->at));
        if (!bytes) return mgr__json_fail(j, j->at, "not UTF-8");
        j->at += bytes;
    }
    *raw = mgr__str_make(j->text.at + start, j->at - start);
    j->at++;
    return true;
}

static size_t mgr__json_utf8(char *to, uint32_t c)
{
    size_t bytes = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = bytes - 1; i; i--, c >>= 6) to[i] = (char)(unsigned char)(0x80 | (c & 0x3f));
    static const unsigned char lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    to[0] = (char)(unsigned char)(lead[bytes] | c);
    return bytes;
}

/* One escape at `at` to at most four bytes; returns how long it was. */
static size_t mgr__json_unescape(const char *at, char *to, size_t *bytes)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    size_t i = 0;
    *bytes = 1;
    if (at[1] != 'u') {
        while (letters[i] != at[1]) i++;
        to[0] = meanings[i];
        return 2;
    }
    uint32_t unit = mgr__json_unit(at + 2);
    bool pair = unit >= 0xd800 && unit <= 0xdfff;
    if (pair) unit = 0x10000 + ((unit - 0xd800) << 10) + (mgr__json_unit(at + 8) - 0xdc00);
    *bytes = mgr__json_utf8(to, unit);
    return pair ? 12 : 6;
}

/* Of a scanned string only. Never longer than raw; SIZE_MAX if longer than bytes_max. */
static size_t mgr__json_decode(char *to, size_t bytes_max, mgr__str raw)
{
    size_t len = 0;
    for (size_t i = 0; i < raw.len; ) {
        char decoded[4] = { raw.at[i] };
        size_t bytes = 1;
        i += raw.at[i] == '\\' ? mgr__json_unescape(raw.at + i, decoded, &bytes) : 1;
        if (bytes > bytes_max - len) return SIZE_MAX;
        memcpy(to + len, decoded, bytes);
        len += bytes;
    }
    return len;
}

/* -- values -- */

/* Stands at the first byte of the value that is due, and takes it as read. */
static bool mgr__json_value(mgr__json *j)
{
    if (j->error) return false;
    mgr__json_space(j);
    if (!j->due) return mgr__json_fail(j, j->at, "a value is missing");
    j->due = false;
    return true;
}

/* What the next value is, as far as its first byte tells. Reads nothing. */
static mgr__json_type mgr__json_peek(mgr__json *j)
{
    if (j->error || !j->due) return MGR__JSON_NONE;
    mgr__json_space(j);
    switch (mgr__json_look(j)) {
    case '{': return MGR__JSON_OBJECT;
    case '[': return MGR__JSON_ARRAY;
    case '"': return MGR__JSON_STRING;
    case 't': case 'f': return MGR__JSON_BOOL;
    case 'n': return MGR__JSON_NULL;
    case '-': case '0': case '1': case '2': case '3': case '4':
    case '5': case '6': case '7': case '8': case '9': return MGR__JSON_NUMBER;
    default: return MGR__JSON_NONE;
    }
}

static bool mgr__json_word(mgr__json *j, const char *word)
{
    for (; *word; word++, j->at++)
        if (mgr__json_look(j) != *word) return mgr__json_unexpected(j, "no such word");
    return true;
}

/* A null that comes next is read; anything else stays and is no error. */
static bool mgr__json_null(mgr__json *j)
{
    return mgr__json_peek(j) == MGR__JSON_NULL && mgr__json_value(j) && mgr__json_word(j, "null");
}

static bool mgr__json_bool(mgr__json *j)
{
    if (!mgr__json_value(j)) return false;
    char c = mgr__json_look(j);
    if (c != 't' && c != 'f') return mgr__json_unexpected(j, "expected true or false");
    return mgr__json_word(j, c == 't' ? "true" : "false") && c == 't';
}

static bool mgr__json_scan_digits(mgr__json *j)
{
    size_t start = j->at;
    while (mgr__json_look(j) >= '0' && mgr__json_look(j) <= '9') j->at++;
    return j->at > start || mgr__json_unexpected(j, "expected a digit");
}

static bool mgr__json_scan_number(mgr__json *j, bool *whole)
{
    *whole = true;
    if (mgr__json_look(j) == '-') j->at++;
    if (mgr__json_look(j) == '0') j->at++;      /* and no digit behind it: refused as the wrong byte after a value */
    else if (!mgr__json_scan_digits(j)) return false;
    if (mgr__json_look(j) == '.') {
        *whole = false;
        j->at++;
        if (!mgr__json_scan_digits(j)) return false;
    }
    if (mgr__json_look(j) != 'e' && mgr__json_look(j) != 'E') return true;
    *whole = false;
    j->at++;
    if (mgr__json_look(j) == '+' || mgr__json_look(j) == '-') j->at++;
    return mgr__json_scan_digits(j);
}

/* The digits of an integer, at most `above` if it is positive, `below` if negative. 1.0
 * and 1e5 are no integers here: an index is never written so, and rounding would hide in it. */
static uint64_t mgr__json_integer(mgr__json *j, uint64_t above, uint64_t below, bool *negative)
{
    bool whole = true;
    *negative = false;
    if (!mgr__json_value(j)) return 0;
    size_t start = j->at;
    char first = mgr__json_look(j);
    if (first != '-' && (first < '0' || first > '9')) { mgr__json_unexpected(j, "expected a number"); return 0; }
    if (!mgr__json_scan_number(j, &whole)) return 0;
    if (!whole) { mgr__json_fail(j, start, "expected an integer"); return 0; }
    *negative = first == '-';
    uint64_t value = 0, limit = *negative ? below : above;
    for (size_t i = start + *negative; i < j->at; i++) {
        uint64_t digit = (uint64_t)(j->text.at[i] - '0');
        if (digit > limit || value > (limit - digit) / 10) { mgr__json_fail(j, start, "the integer is out of range"); return 0; }
        value = value * 10 + digit;
    }
    return value;
}

/* -0 is 0. */
static uint64_t mgr__json_u64(mgr__json *j)
{
    bool negative;
    return mgr__json_integer(j, UINT64_MAX, 0, &negative);
}

static int64_t mgr__json_i64(mgr__json *j)
{
    bool negative;
    uint64_t value = mgr__json_integer(j, INT64_MAX, (uint64_t)INT64_MAX + 1, &negative);
    return !negative || !value ? (int64_t)value : -(int64_t)(value - 1) - 1;
}

/* -- containers -- */

static bool mgr__json_enter(mgr__json *j, char open, const char *why)
{
    if (!mgr__json_value(j)) return false;
    if (mgr__json_look(j) != open) return mgr__json_unexpected(j, why);
    if (j->depth == MGR__JSON_DEPTH_MAX) return mgr__json_fail(j, j->at, "nested deeper than MGR__JSON_DEPTH_MAX");
    uint64_t bit = (uint64_t)1 << j->depth++;
    j->objects = open == '{' ? j->objects | bit : j->objects & ~bit;
    j->fresh = true;
    j->at++;
    return true;
}

/* Enter the object, or array, that must come next. It is left by the key, or
 * item, that returns false. */
static bool mgr__json_object(mgr__json *j) { return mgr__json_enter(j, '{', "expected an object"); }
static bool mgr__json_array(mgr__json *j) { return mgr__json_enter(j, '[', "expected an array"); }

static bool mgr__json_inside(const mgr__json *j, bool object)
{
    return j->depth && (j->objects >> (j->depth - 1) & 1) == object;
}

/* Over the comma to the next member or item, or out of the container. */
static bool mgr__json_advance(mgr__json *j, char close, const char *why)
{
    bool fresh = j->fresh;
    j->fresh = false;
    mgr__json_space(j);
    if (mgr__json_look(j) == close) { j->at++; j->depth--; return false; }
    if (!fresh && mgr__json_look(j) != ',') return mgr__json_unexpected(j, why);
    if (!fresh) j->at++;
    return true;
}

static bool mgr__json_next_member(mgr__json *j, mgr__str *raw, bool *escaped)
{
    if (!mgr__json_advance(j, '}', "expected ',' or '}'")) return false;
    mgr__json_space(j);
    if (!mgr__json_scan_string(j, raw, escaped)) return false;
    mgr__json_space(j);
    if (mgr__json_look(j) != ':') return mgr__json_unexpected(j, "expected ':'");
    j->at++;
    j->due = true;
    return true;
}

static bool mgr__json_next_item(mgr__json *j)
{
    if (!mgr__json_advance(j, ']', "expected ',' or ']'")) return false;
    j->due = true;
    return true;
}

/* A scalar is skipped, a container entered. */
static void mgr__json_skip_one(mgr__json *j)
{
    mgr__str raw;
    bool ignored;
    switch (mgr__json_peek(j)) {
    case MGR__JSON_OBJECT: mgr__json_object(j); break;
    case MGR__JSON_ARRAY:  mgr__json_array(j); break;
    case MGR__JSON_STRING: if (mgr__json_value(j)) mgr__json_scan_string(j, &raw, &ignored); break;
    case MGR__JSON_NUMBER: if (mgr__json_value(j)) mgr__json_scan_number(j, &ignored); break;
    case MGR__JSON_BOOL:   mgr__json_bool(j); break;
    case MGR__JSON_NULL:   mgr__json_null(j); break;
    case MGR__JSON_NONE:   if (mgr__json_value(j)) mgr__json_unexpected(j, "expected a value"); break;
    }
}

/* Whatever value comes next, checked as closely as if it were read. */
static void mgr__json_skip(mgr__json *j)
{
    mgr__str raw;
    bool escaped;
    uint32_t outer = j->depth;
    mgr__json_skip_one(j);
    while (!j->error && j->depth > outer)
        if (mgr__json_inside(j, true) ? mgr__json_next_member(j, &raw, &escaped) : mgr__json_next_item(j)) mgr__json_skip_one(j);
}

/* The same, and its text as it stands. */
static mgr__str mgr__json_raw(mgr__json *j)
{
    mgr__json_peek(j);
    size_t start = j->at;
    mgr__json_skip(j);
    return j->error ? mgr__str_make("", 0) : mgr__str_make(j->text.at + start, j->at - start);
}

/* In an object: true at its next member, whose value then follows; false once it
 * is left, or on an error. The key is a view into the text; one written with
 * escapes is decoded into the reader, lives until the next key, and shows as ""
 * if it has more than MGR__JSON_KEY_BYTES_MAX bytes. */
static bool mgr__json_key(mgr__json *j, mgr__str *key)
{
    mgr__str raw;
    bool escaped;
    *key = mgr__str_make("", 0);
    if (j->due) mgr__json_skip(j);
    if (j->error) return false;
    if (!mgr__json_inside(j, true)) return mgr__json_fail(j, j->at, "not inside an object");
    if (!mgr__json_next_member(j, &raw, &escaped)) return false;
    if (!escaped) { *key = raw; return true; }
    size_t len = mgr__json_decode(j->key, sizeof j->key, raw);
    if (len != SIZE_MAX) *key = mgr__str_make(j->key, len);
    return true;
}

/* In an array: true if an item follows; false once it is left, or on an error. */
static bool mgr__json_item(mgr__json *j)
{
    if (j->due) mgr__json_skip(j);
    if (j->error) return false;
    if (!mgr__json_inside(j, false)) return mgr__json_fail(j, j->at, "not inside an array");
    return mgr__json_next_item(j);
}

/* Reserving all that is left of the text, before each string, keeps the scratch
 * where it is: a decoded string and its terminator are no longer than the text they
 * came from, so once there was room for what is left, there always is. */
static bool mgr__json_room(mgr__json *j, mgr__buf *scratch, size_t start)
{
    return mgr__buf_reserve(scratch, j->text.len - start) || mgr__json_fail(j, start, "out of memory, or over the scratch buffer's limit");
}

/* The string that must come next. Without escapes it is a view into the text, not
 * terminated; else it is appended to scratch, terminated there, and stays in place
 * as long as nothing but this reader adds to scratch (a second reader may move it).
 * scratch->bytes_max must allow for the length of the text. */
static mgr__str mgr__json_string(mgr__json *j, mgr__buf *scratch)
{
    mgr__str raw, none = mgr__str_make("", 0);
    bool escaped;
    if (!mgr__json_value(j)) return none;
    size_t start = j->at, from = scratch->len;
    if (!mgr__json_scan_string(j, &raw, &escaped)) return none;
    if (!escaped) return raw;
    if (!mgr__json_room(j, scratch, start)) return none;
    size_t len = mgr__json_decode(scratch->at + from, raw.len, raw);
    scratch->len += len + 1;
    scratch->at[from + len] = scratch->at[scratch->len] = 0;
    return mgr__str_make(scratch->at + from, len);
}

/* The bytes of the base64 string that must come next, appended to scratch and
 * terminated there, under the same rule. */
static mgr__str mgr__json_base64(mgr__json *j, mgr__buf *scratch)
{
    mgr__str none = mgr__str_make("", 0);
    mgr__json_peek(j);
    size_t start = j->at, from = scratch->len, len;
    if (j->error || !mgr__json_room(j, scratch, start)) return none;
    mgr__str text = mgr__json_string(j, scratch);       /* perhaps in the scratch, at `from`: the bytes then replace it */
    if (j->error) return none;
    bool good = mgr__base64_bytes(scratch->at + from, text, &len);
    scratch->len = good ? from + len + 1 : from;
    scratch->at[good ? from + len : from] = scratch->at[scratch->len] = 0;
    if (!good) { mgr__json_fail(j, start, "not base64"); return none; }
    return mgr__str_make(scratch->at + from, len);
}

/* Milliseconds, as no descriptor can ask for more: what is written by hand must not overflow a sum. */
static uint64_t mgr__json_span(mgr__json *j)
{
    uint64_t ms = mgr__json_u64(j);
    return ms > UINT32_MAX ? UINT32_MAX : ms;
}

/* A string of its own in the arena; scratch is for decoding it. */
static mgr__str mgr__json_kept(mgr__json *j, mgr__buf *scratch, mgr__arena *arena)
{
    mgr__buf_clear(scratch);
    return mgr__arena_str(arena, mgr__json_string(j, scratch));
}

/* True if the text was one value, all of it was read, and nothing was wrong. */
static bool mgr__json_end(mgr__json *j)
{
    if (j->error) return false;
    mgr__json_space(j);
    if (j->depth || j->due) return mgr__json_fail(j, j->at, "not read to its end");
    if (j->at < j->text.len) return mgr__json_fail(j, j->at, "more text after the value");
    return true;
}

/* ---- writer: commas are its affair, pairing and keys the caller's ---- */

typedef struct mgr__jw {
    mgr__buf *out;          /* its failure is the writer's: check it once, at the end */
    bool      comma;        /* something stands before what comes next */
} mgr__jw;

static void mgr__jw_init(mgr__jw *jw, mgr__buf *out) { jw->out = out; jw->comma = false; }

static void mgr__jw_raw(mgr__jw *jw, mgr__str json)
{
    if (jw->comma) mgr__buf_char(jw->out, ',');
    mgr__buf_str(jw->out, json);
    jw->comma = true;
}

static void mgr__jw_word(mgr__jw *jw, const char *word) { mgr__jw_raw(jw, mgr__str_of(word)); }

static void mgr__jw_object(mgr__jw *jw)     { mgr__jw_word(jw, "{"); jw->comma = false; }
static void mgr__jw_array(mgr__jw *jw)      { mgr__jw_word(jw, "["); jw->comma = false; }
static void mgr__jw_object_end(mgr__jw *jw) { mgr__buf_char(jw->out, '}'); jw->comma = true; }
static void mgr__jw_array_end(mgr__jw *jw)  { mgr__buf_char(jw->out, ']'); jw->comma = true; }

static void mgr__jw_escape(mgr__buf *out, unsigned char c)
{
    static const char letters[] = "\"\\bfnrt", meanings[] = "\"\\\b\f\n\r\t";
    const char *at = c ? strchr(meanings, c) : NULL;
    if (at) { mgr__buf_char(out, '\\'); mgr__buf_char(out, letters[at - meanings]); }
    else mgr__buf_printf(out, "\\u%04x", c);
}

/* Bytes that are not UTF-8 become U+FFFD, one each: the text is valid whatever a
 * program's exit message or a host name holds. */
static void mgr__jw_str(mgr__jw *jw, mgr__str s)
{
    mgr__jw_word(jw, "\"");
    size_t from = 0, bytes;
    for (size_t i = 0; i < s.len; i += bytes ? bytes : 1) {
        unsigned char c = (unsigned char)s.at[i];
        bytes = mgr__utf8_bytes(mgr__str_skip(s, i));
        if (bytes && c >= 0x20 && c != '"' && c != '\\') continue;
        mgr__buf_add(jw->out, s.at + from, i - from);
        if (bytes) mgr__jw_escape(jw->out, c);
        else mgr__buf_text(jw->out, "\xef\xbf\xbd");
        from = i + 1;
    }
    if (from < s.len) mgr__buf_add(jw->out, s.at + from, s.len - from);
    mgr__buf_char(jw->out, '"');
}

static void mgr__jw_text(mgr__jw *jw, const char *text) { mgr__jw_str(jw, mgr__str_of(text)); }

static void mgr__jw_key_str(mgr__jw *jw, mgr__str key)
{
    mgr__jw_str(jw, key);
    mgr__buf_char(jw->out, ':');
    jw->comma = false;
}

static void mgr__jw_key(mgr__jw *jw, const char *key) { mgr__jw_key_str(jw, mgr__str_of(key)); }
static void mgr__jw_bool(mgr__jw *jw, bool value)     { mgr__jw_word(jw, value ? "true" : "false"); }
MGR__UNUSED static void mgr__jw_null(mgr__jw *jw) { mgr__jw_word(jw, "null"); }

static void mgr__jw_u64(mgr__jw *jw, uint64_t value)
{
    mgr__jw_word(jw, "");
    mgr__buf_printf(jw->out, "%llu", (unsigned long long)value);
}

static void mgr__jw_i64(mgr__jw *jw, int64_t value)
{
    mgr__jw_word(jw, "");
    mgr__buf_printf(jw->out, "%lld", (long long)value);
}

/* ============================================================================
 * [wire] HTTP/1.1: a request as bytes, a response from bytes
 * what:  RFC 9112 for a client, as strict as its text allows; no socket
 * owns:  mgr__wire
 * calls: [base]
 * ========================================================================== */

/* ---- requests ---- */

static bool mgr__wire_unreserved(char c)
{
    return mgr__key_plain((unsigned char)c) || c == '.' || c == '~';      /* RFC 3986 2.3 */
}

static void mgr__wire_quote_bytes(mgr__buf *out, mgr__str text, bool keep_slash)
{
    for (size_t i = 0; i < text.len; i++) {
        char c = text.at[i];
        if (mgr__wire_unreserved(c) || (keep_slash && c == '/')) mgr__buf_char(out, c);
        else mgr__buf_printf(out, "%%%02X", (unsigned char)c);
    }
}

/* A path: '/' separates its segments and stays. */
static void mgr__wire_quote(mgr__buf *out, mgr__str text) { mgr__wire_quote_bytes(out, text, true); }

/* One segment, or a value in the query. */
static void mgr__wire_quote_segment(mgr__buf *out, mgr__str text) { mgr__wire_quote_bytes(out, text, false); }

static bool mgr__wire_clean(mgr__str text, unsigned char least)
{
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.at[i] < least || text.at[i] == 0x7f) return false;
    return true;
}

static void mgr__wire_field(mgr__buf *out, const char *name, mgr__str value)
{
    mgr__buf_text(out, name);
    mgr__buf_text(out, ": ");
    mgr__buf_str(out, value);
    mgr__buf_text(out, "\r\n");
}

/* Appends one request; the connection is to be kept, which HTTP/1.1 need not say.
 * target: path and query, quoted by the caller. host: as in the address, "" for a
 * Unix socket (RFC 9112 3.2 wants the field all the same). token: "" for none.
 * A blank or control character in one of them would make one request two: out
 * fails, and nothing is added. */
static void mgr__wire_request(mgr__buf *out, const char *method, mgr__str target, mgr__str host, mgr__str token, mgr__str body)
{
    bool clean = mgr__wire_clean(target, 0x21) && mgr__wire_clean(host, 0x21) && mgr__wire_clean(token, 0x20);
    if (!clean || !mgr__str_starts(target, "/")) { out->failed = true; return; }
    mgr__buf_text(out, method);
    mgr__buf_char(out, ' ');
    mgr__buf_str(out, target);
    mgr__buf_text(out, " HTTP/1.1\r\n");
    mgr__wire_field(out, "Host", host);
    mgr__wire_field(out, "User-Agent", mgr__str_of("manager.h/" MANAGER_VERSION));
    mgr__wire_field(out, "Accept", mgr__str_of("application/json"));
    if (token.len) mgr__wire_field(out, "X-Consul-Token", token);
    /* Said even when it is 0, and never chunked: Consul 1.8 drops the body of a chunked session/create. */
    if (body.len || strcmp(method, "PUT") == 0 || strcmp(method, "POST") == 0)
        mgr__buf_printf(out, "Content-Length: %llu\r\n", (unsigned long long)body.len);
    mgr__buf_text(out, "\r\n");
    mgr__buf_str(out, body);
}

/* ---- responses ----
 * Lines (status, fields, chunk sizes, trailers) are collected whole before they
 * are looked at; bodies pass through. So it makes no difference how the bytes are
 * cut up on the way. Wherever two readers might understand a message differently,
 * it is refused and the connection with it: a line that ends without CR, a folded
 * field, blanks before a colon, lengths that disagree or stand beside a transfer
 * coding. Nothing that talks to a Consul agent sends those. */

enum {
    MGR__WIRE_CHUNK_LINE_BYTES_MAX = 1024,  /* a chunk's size and extensions */
    MGR__WIRE_TRAILER_BYTES_MAX = 4096      /* all fields after the last chunk */
};

#if MGR_HEAD_BYTES_MAX < 4096
#error "manager.h: MGR_HEAD_BYTES_MAX must be at least 4096: trailers are collected in the same buffer"
#endif

typedef enum mgr__wire_state { MGR__WIRE_MORE, MGR__WIRE_DONE, MGR__WIRE_BAD } mgr__wire_state;

typedef enum mgr__wire_phase {
    MGR__WIRE_AT_STATUS, MGR__WIRE_AT_FIELD,                    /* lines */
    MGR__WIRE_AT_SIZE, MGR__WIRE_AT_CHUNK_END, MGR__WIRE_AT_TRAILER,
    MGR__WIRE_AT_LENGTH, MGR__WIRE_AT_CHUNK, MGR__WIRE_AT_CLOSE, /* body */
    MGR__WIRE_AT_END, MGR__WIRE_AT_FAULT
} mgr__wire_phase;

/* One response while it is read. The first group is the answer: valid once the
 * state is DONE, but error, which belongs to BAD. */
typedef struct mgr__wire {
    int         status;
    bool        close;              /* the connection must not be used again */
    bool        has_index;
    uint64_t    consul_index;       /* X-Consul-Index */
    bool        known_leader_false; /* X-Consul-KnownLeader: false */
    const char *error;

    bool        began;              /* at least one byte came; if none did, a reused connection had been closed while idle */
    bool        head_request;       /* the answer has no body, whatever its fields say */
    bool        old;                /* HTTP/1.0 */
    bool        keep;               /* "Connection: keep-alive", which HTTP/1.0 needs */
    bool        has_length, chunked;
    uint64_t    length;             /* Content-Length */
    uint64_t    left;               /* of the body, or of the chunk, still to come */
    mgr__wire_phase phase;
    size_t      head_bytes;         /* of this head, and of those of 1xx answers before it: an endless row of them ends too */
    size_t      trailer_bytes;
    size_t      line_len;
    char        line[MGR_HEAD_BYTES_MAX];
} mgr__wire;

static void mgr__wire_init(mgr__wire *w, bool head_request)
{
    memset(w, 0, offsetof(mgr__wire, line));
    w->head_request = head_request;
}

/* False, so that a check can end in "return". */
static bool mgr__wire_fail(mgr__wire *w, const char *why)
{
    w->error = why;
    w->close = true;
    w->phase = MGR__WIRE_AT_FAULT;
    return false;
}

/* -- words -- */

static bool mgr__wire_is(mgr__str text, const char *lower)
{
    if (text.len != strlen(lower)) return false;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.at[i];
        if ((c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c) != lower[i]) return false;
    }
    return true;
}

static mgr__str mgr__wire_trim(mgr__str s)
{
    while (s.len && (s.at[0] == ' ' || s.at[0] == '\t')) s = mgr__str_skip(s, 1);
    while (s.len && (s.at[s.len - 1] == ' ' || s.at[s.len - 1] == '\t')) s.len--;
    return s;
}

/* 1*DIGIT or 1*HEXDIG; false also if it does not fit. */
static bool mgr__wire_number(mgr__str s, uint32_t base, uint64_t *value)
{
    *value = 0;
    for (size_t i = 0; i < s.len; i++) {
        char c = s.at[i];
        int digit = mgr__hex(c >= 'a' && c <= 'f' ? (char)(c - 'a' + 'A') : c);
        if (digit < 0 || (uint32_t)digit >= base || *value > (UINT64_MAX - (uint32_t)digit) / base) return false;
        *value = *value * base + (uint32_t)digit;
    }
    return s.len > 0;
}

static bool mgr__wire_tchar(char c)
{
    return mgr__key_plain((unsigned char)c) || (c && strchr("!#$%&'*+.^`|~", c));   /* RFC 9110 5.6.2 */
}

/* What may stand in a line at all: no control character but the tab (RFC 9110 5.5). */
static bool mgr__wire_line_char(char c) { return (unsigned char)c >= 0x20 ? c != 0x7f : c == '\t'; }

/* -- fields -- */

static bool mgr__wire_split_field(mgr__str line, mgr__str *name, mgr__str *value)
{
    size_t colon = 0;
    while (colon < line.len && mgr__wire_tchar(line.at[colon])) colon++;
    if (!colon || colon == line.len || line.at[colon] != ':') return false;
    *name = mgr__str_make(line.at, colon);
    *value = mgr__wire_trim(mgr__str_skip(line, colon + 1));
    return true;
}

/* A field that holds one number, and may come again only with the same one. A list
 * of equal numbers, which RFC 9110 8.6 leaves open, is refused. */
static bool mgr__wire_one_number(mgr__wire *w, mgr__str value, bool *has, uint64_t *to, const char *why)
{
    uint64_t number;
    if (!mgr__wire_number(value, 10, &number) || (*has && number != *to)) return mgr__wire_fail(w, why);
    *has = true;
    *to = number;
    return true;
}

static void mgr__wire_connection(mgr__wire *w, mgr__str value)
{
    for (;;) {
        size_t len = 0;
        while (len < value.len && value.at[len] != ',') len++;
        mgr__str word = mgr__wire_trim(mgr__str_make(value.at, len));
        if (mgr__wire_is(word, "close")) w->close = true;
        if (mgr__wire_is(word, "keep-alive")) w->keep = true;
        if (len == value.len) return;
        value = mgr__str_skip(value, len + 1);
    }
}

static bool mgr__wire_take_field(mgr__wire *w, mgr__str line)
{
    mgr__str name, value;
    if (line.at[0] == ' ' || line.at[0] == '\t') return mgr__wire_fail(w, "a folded header field");
    if (!mgr__wire_split_field(line, &name, &value)) return mgr__wire_fail(w, "a malformed header field");
    if (mgr__wire_is(name, "content-length"))
        return mgr__wire_one_number(w, value, &w->has_length, &w->length, "Content-Length is no number, or not the same twice");
    /* A watch with no index, or a wrong one, would ask again at once, for ever: better no answer. */
    if (mgr__wire_is(name, "x-consul-index"))
        return mgr__wire_one_number(w, value, &w->has_index, &w->consul_index, "X-Consul-Index is no 64-bit number, or not the same twice");
    if (mgr__wire_is(name, "transfer-encoding")) {
        if (w->chunked || !mgr__wire_is(value, "chunked")) return mgr__wire_fail(w, "a transfer coding other than chunked");
        w->chunked = true;
    }
    if (mgr__wire_is(name, "connection")) mgr__wire_connection(w, value);
    if (mgr__wire_is(name, "x-consul-knownleader") && mgr__wire_is(value, "false")) w->known_leader_false = true;
    return true;
}

/* -- head -- */

/* "HTTP/1.1 200 OK". The reason means nothing (RFC 9112 4) and may be missing with the blank before it. */
static bool mgr__wire_take_status(mgr__wire *w, mgr__str line)
{
    uint64_t minor = 0, status = 0;
    bool good = line.len >= 12 && mgr__str_starts(line, "HTTP/1.") && line.at[8] == ' ' && (line.len == 12 || line.at[12] == ' ');
    good = good && mgr__wire_number(mgr__str_make(line.at + 7, 1), 10, &minor) &&
           mgr__wire_number(mgr__str_make(line.at + 9, 3), 10, &status);
    if (!good || status < 100 || status > 599) return mgr__wire_fail(w, "a malformed status line, or not HTTP/1");
    if (status == 101) return mgr__wire_fail(w, "another protocol, which nobody asked for");
    w->status = (int)status;
    w->old = minor == 0;
    w->phase = MGR__WIRE_AT_FIELD;
    return true;
}

/* The final answer comes after this one: forget all of it but its size. */
static bool mgr__wire_skip_interim(mgr__wire *w)
{
    size_t head_bytes = w->head_bytes;
    mgr__wire_init(w, w->head_request);
    w->head_bytes = head_bytes;
    w->began = true;
    return true;
}

static bool mgr__wire_expect(mgr__wire *w, uint64_t bytes, mgr__wire_phase phase, const mgr__buf *body)
{
    /* Refused before it comes: nothing is gained by reading up to the limit first. */
    if (bytes > body->bytes_max - body->len) return mgr__wire_fail(w, "the body is over its limit");
    w->left = bytes;
    w->phase = phase;
    return true;
}

/* Where the body ends: RFC 9112 6.3, in its order. */
static bool mgr__wire_end_head(mgr__wire *w, const mgr__buf *body)
{
    if (w->chunked && w->has_length) return mgr__wire_fail(w, "both Content-Length and Transfer-Encoding");
    if (w->chunked && w->old) return mgr__wire_fail(w, "a transfer coding in HTTP/1.0");
    if (w->status < 200) return mgr__wire_skip_interim(w);
    if (w->old && !w->keep) w->close = true;
    if (w->head_request || w->status == 204 || w->status == 304) { w->phase = MGR__WIRE_AT_END; return true; }
    if (w->chunked) { w->phase = MGR__WIRE_AT_SIZE; return true; }
    if (w->has_length) return mgr__wire_expect(w, w->length, w->length ? MGR__WIRE_AT_LENGTH : MGR__WIRE_AT_END, body);
    w->phase = MGR__WIRE_AT_CLOSE;
    return true;
}

/* -- body -- */

/* "1a2b" or "1a2b ; name=value": extensions mean nothing to us (RFC 9112 7.1.1). */
static bool mgr__wire_take_size(mgr__wire *w, mgr__str line, const mgr__buf *body)
{
    size_t len = 0;
    uint64_t size = 0;
    while (len < line.len && line.at[len] != ';' && line.at[len] != ' ' && line.at[len] != '\t') len++;
    mgr__str rest = mgr__wire_trim(mgr__str_skip(line, len));
    if (len < line.len && !mgr__str_starts(rest, ";")) return mgr__wire_fail(w, "a malformed chunk size");
    if (!mgr__wire_number(mgr__str_make(line.at, len), 16, &size)) return mgr__wire_fail(w, "a malformed chunk size");
    if (size) return mgr__wire_expect(w, size, MGR__WIRE_AT_CHUNK, body);
    w->phase = MGR__WIRE_AT_TRAILER;
    return true;
}

/* Trailers are checked for their form and else ignored: merging them into the head could change what it said (RFC 9110 6.5.1). */
static bool mgr__wire_take_trailer(mgr__wire *w, mgr__str line)
{
    mgr__str name, value;
    if (!line.len) w->phase = MGR__WIRE_AT_END;
    return !line.len || mgr__wire_split_field(line, &name, &value) || mgr__wire_fail(w, "a malformed trailer field");
}

static bool mgr__wire_take_line(mgr__wire *w, const mgr__buf *body)
{
    mgr__str line = mgr__str_make(w->line, w->line_len);
    w->line_len = 0;
    switch (w->phase) {
    case MGR__WIRE_AT_STATUS:  return mgr__wire_take_status(w, line);
    case MGR__WIRE_AT_FIELD:   return line.len ? mgr__wire_take_field(w, line) : mgr__wire_end_head(w, body);
    case MGR__WIRE_AT_SIZE:    return mgr__wire_take_size(w, line, body);
    case MGR__WIRE_AT_TRAILER: return mgr__wire_take_trailer(w, line);
    case MGR__WIRE_AT_CHUNK_END: w->phase = MGR__WIRE_AT_SIZE; return true;
    case MGR__WIRE_AT_LENGTH: case MGR__WIRE_AT_CHUNK: case MGR__WIRE_AT_CLOSE:
    case MGR__WIRE_AT_END: case MGR__WIRE_AT_FAULT: break;
    }
    return false;
}

/* -- bytes -- */

/* Counts one byte of a line against the limit of what it belongs to. */
static bool mgr__wire_count(mgr__wire *w, char c)
{
    switch (w->phase) {
    case MGR__WIRE_AT_STATUS: case MGR__WIRE_AT_FIELD:
        return ++w->head_bytes <= MGR_HEAD_BYTES_MAX || mgr__wire_fail(w, "the head is longer than MGR_HEAD_BYTES_MAX");
    case MGR__WIRE_AT_TRAILER:
        return ++w->trailer_bytes <= MGR__WIRE_TRAILER_BYTES_MAX || mgr__wire_fail(w, "the trailer is too long");
    case MGR__WIRE_AT_CHUNK_END:
        return w->line_len || c == '\r' || mgr__wire_fail(w, "a chunk longer than its size");
    case MGR__WIRE_AT_SIZE:
        return w->line_len < MGR__WIRE_CHUNK_LINE_BYTES_MAX || mgr__wire_fail(w, "a chunk's size line is too long");
    case MGR__WIRE_AT_LENGTH: case MGR__WIRE_AT_CHUNK: case MGR__WIRE_AT_CLOSE:
    case MGR__WIRE_AT_END: case MGR__WIRE_AT_FAULT: break;
    }
    return false;
}

/* A line ends with CR LF and has neither of them alone (RFC 9112 2.2 would allow the LF). */
static void mgr__wire_line_byte(mgr__wire *w, char c, const mgr__buf *body)
{
    bool after_cr = w->line_len && w->line[w->line_len - 1] == '\r';
    if (!mgr__wire_count(w, c)) return;
    if (after_cr != (c == '\n')) { mgr__wire_fail(w, "a line that does not end with CR LF"); return; }
    if (after_cr) { w->line_len--; mgr__wire_take_line(w, body); return; }
    if (c != '\r' && !mgr__wire_line_char(c)) { mgr__wire_fail(w, "a control character in a line"); return; }
    MGR_ASSERT(w->line_len < sizeof w->line);
    w->line[w->line_len++] = c;
}

static bool mgr__wire_in_line(const mgr__wire *w) { return w->phase <= MGR__WIRE_AT_TRAILER; }

/* Lines byte by byte, body in one piece. Returns how much was taken, at least a byte. */
static size_t mgr__wire_take(mgr__wire *w, mgr__str in, mgr__buf *body)
{
    if (mgr__wire_in_line(w)) { mgr__wire_line_byte(w, in.at[0], body); return 1; }
    uint64_t want = w->phase == MGR__WIRE_AT_CLOSE ? body->bytes_max - body->len : w->left;
    size_t len = in.len < want ? in.len : (size_t)want;
    mgr__buf_add(body, in.at, len);
    if (body->failed) { mgr__wire_fail(w, "out of memory for the body"); return in.len; }
    if (w->phase == MGR__WIRE_AT_CLOSE) {
        if (len == in.len) return len;
        mgr__wire_fail(w, "the body is over its limit");
        return len;
    }
    w->left -= len;
    if (!w->left) w->phase = w->phase == MGR__WIRE_AT_CHUNK ? MGR__WIRE_AT_CHUNK_END : MGR__WIRE_AT_END;
    return len;
}

static mgr__wire_state mgr__wire_now(const mgr__wire *w)
{
    return w->phase == MGR__WIRE_AT_FAULT ? MGR__WIRE_BAD : w->phase == MGR__WIRE_AT_END ? MGR__WIRE_DONE : MGR__WIRE_MORE;
}

/* Bytes as they come, in pieces of any size. body receives the body; its bytes_max
 * is the body's limit. *used: how many of them belong to this answer; with DONE,
 * bytes left over are an answer to nothing, and the connection must not be used
 * again. After DONE or BAD nothing is taken any more. */
static mgr__wire_state mgr__wire_feed(mgr__wire *w, mgr__str in, size_t *used, mgr__buf *body)
{
    *used = 0;
    while (*used < in.len && mgr__wire_now(w) == MGR__WIRE_MORE) {
        w->began = true;
        *used += mgr__wire_take(w, mgr__str_skip(in, *used), body);
    }
    return mgr__wire_now(w);
}

/* The peer closed. DONE only if that is how the body ends; if it was cut short just
 * then, nobody can tell from here. */
static mgr__wire_state mgr__wire_eof(mgr__wire *w)
{
    if (w->phase == MGR__WIRE_AT_CLOSE) w->phase = MGR__WIRE_AT_END;
    if (mgr__wire_now(w) == MGR__WIRE_MORE)
        mgr__wire_fail(w, w->began ? "the connection closed in the middle of an answer" : "the connection closed without an answer");
    w->close = true;
    return mgr__wire_now(w);
}

/* ============================================================================
 * [rush] Placement: which instance a partition belongs to
 * what:  RUSH with exact quotas (mgr_rush_map), the same by slots
 *        (mgr_rush_slots) and RUSH_R (mgr_rush_locate);
 *        pure: every CPU and compiler gets the same map, for integers decide
 * owns:  mgr__rush, for the time of one call
 * calls: [base]
 * ========================================================================== */

/* The specification, complete enough to be written again in another language.
 * Arithmetic is unsigned; h is the hash of a partition's name, g of an id.
 *
 *   hash(s)    = mix64(FNV-1a-64(s));  mix64 as in [base]
 *   draw(h, g) = v = lo(h) ^ lo(g);  v ^= v>>16;  v *= 7feb352d;  v ^= v>>15;
 *                v ^= hi(h) ^ hi(g); v *= 846ca68b;  v ^= v>>16;
 *                v *= 9e3779b1;      v ^= v>>15      32 bits, hexadecimal factors
 *   E(v)       = -log2((2^32 - v) / 2^32) in Q34, see mgr__rush_log: linear between
 *                lg[i] = floor(log2(1 + i/256) 2^34)
 *   key(h, i)  = E(draw(h, g_i)) * floor((2^25 - 1) / w_i)       below 2^64
 *                E grows strictly, so that with equal weights the draw alone
 *                gives the same order.
 *   order      = partitions by (hash, bytes), instances by (hash of id, bytes);
 *                every tie below goes to the earlier
 *   quota(S)   = floor(S w_i / W), the seats left one each to the largest
 *                remainders
 *
 * For each replica, with H_i what i holds from earlier replicas:
 *   1. Excluded for a partition are its earlier owners, the instances it is
 *      refused by, and weight 0. A partition with no other instance is nobody's.
 *   2. One group: all other partitions (n), all instances with weight (N; their
 *      weights W). S = n + sum H. Seats T_i = quota(S) - H_i; the instances that hold
 *      more than their quota have no seat, and the quota is taken again among the
 *      others, until there is none: N, W and S are theirs then. Where the weights of
 *      all instances are equal, not only of this group's, S / N is below 4 and not
 *      whole, and no more than S mod N hold more than floor(S / N), all of them get the
 *      quota rounded up: there are spare seats, and the keys decide who stays with one
 *      less.
 *   3. match(L) places partitions that nobody has yet; i has the seats that are free
 *      up to L, H_i included, and no more than T_i. It is the stable matching: no
 *      partition x and instance i, not excluded, exist such that x would rather have i
 *      (smaller key, then earlier i) and i has a seat free or holds a partition from
 *      this match behind x (larger key, then later x).
 *      If S < 16 N: match(1), match(2) and so on, up to match(4), or where seats are
 *      spare to match(floor(S / N)), with those pairs only whose draw is below
 *        reach_i = floor(reach w_i N / W),
 *        reach   = floor(2^34 min(12 N, 16 N - S) / (3 n N)); from 2^32 on all pairs.
 *      Then, with all pairs, match(floor(S / N)) where seats are spare, and in the end
 *      match(infinity). Each of these two is followed by 4 and 5.
 *   4. While one of the match's seats is free: each partition left over, in order, takes
 *      the shortest chain of moves to one, breadth first, instances and what they got
 *      in this replica in order.
 *   5. If some found none, and one of those seats is free yet: the instances that their
 *      searches reached are too few. They, what they hold and what is left over become
 *      a group of their own, the rest remains one; both are matched anew from 2.
 *
 * Why layers and spare seats: with as many seats as partitions, whoever is put out
 * goes on until it finds the one seat that is new, and where partitions are few that
 * is far: a leave moved 3.5 times the least at 64 x 50, 6 times at 1,024 x 1,000. With
 * a top layer that has seats to spare it is 1.7 and 2.9. Spare seats alone would make
 * a new map of everything where n passes a multiple of N; a full layer is the same
 * whether or not another one stands above it. From 4 partitions for each instance on
 * layers gain nothing and take time: they fade out, pair by pair, up to 16. Unequal
 * weights have no spare seats, for the quotas say who stays with one less: below four
 * partitions each the first unequal weight moves up to a fifth of the map, below one more.
 *
 * Golden vectors (more in tests/test_rush.c):
 *   hash("a") = 5f29c2aadd9b8527, hash("partition-0") = 36109a8020d9d4dd
 *   draw(0, 0) = 0, draw(1, 0) = e5c61f4f, draw(hash("a"), hash("b")) = bacf23ea
 *   draw(0123456789abcdef, fedcba9876543210) = 60e42560
 *   E(0) = 0, E(1) = 6, E(12345678) = 1828330297, E(80000000) = 2^34,
 *   E(deadbeef) = 50536809573, E(ffffffff) = 2^39
 *   quota(7), weights 3 2 1: 4 2 1
 *   map of "0" .. "5" to alpha, beta, gamma: a g b g a b; with weights 3 2 1: a b a g a b
 *   map of "0", "1" to the three: a g
 *
 * By slots. Instances are numbered from 1, each number is one instance's, new ones
 * take the lowest free number, and an instance without weight counts as an empty
 * slot; M is the highest slot of one with weight. One owner a partition, equal
 * weights. Ids do not enter. P partitions, n instances with weight.
 *
 *   share(j, s) = floor(P / j), and one more if s <= P mod j
 *   base        = all partitions are slot 1's; then for j = 2 .. M each older slot s
 *                 hands j those of its partitions with the smallest draws
 *                 (draw(h, mix64(j)), then the earlier partition), so many that
 *                 share(j, s) are left
 *   The rest is a map as above: one replica, the order of instances that of their
 *   slots, weights 1, no spare seats, match(infinity) alone; and a partition would
 *   rather have its base owner than any other, and that instance would rather have it
 *   than any partition that is not of its base; among those the earlier is the better.
 *   All other keys are draw(h ^ 5851f42d4c957f2d, mix64(s)). The base is of all
 *   partitions, also of those that nobody may have.
 *
 * So with slots 1 .. M all taken and nothing refused the base is the map, and a
 * join moves the P / (M + 1) partitions that it must. Whoever leaves, one or
 * several, only what they had moves, for nobody else has more in his base than in
 * his share. With slots empty already the shares of the others may have to change:
 * then a little more moves. A refused pair and an empty slot are the same thing:
 * partitions that cannot have their base owner.
 *
 *   mix64(1) = 910a2dec89025cc1, mix64(2) = 975835de1c9756ce
 *   "0" .. "8" to slots 1 2 3: 1 3 2 2 1 3 2 3 1; without slot 2: 1 3 3 1 1 3 1 3 1;
 *   with slot 4 besides: 1 3 2 4 1 3 2 4 1
 *   "400" .. "402" to slots 1 2, the last refused by both: 1 2 and nobody */

#if MGR_PARTITION_COUNT_MAX > 0x1000000 || MGR_MEMBER_COUNT_MAX > 0x10000
#error "manager.h: [rush] computes in 64 bits: at most 2^24 partitions and 2^16 members"
#endif

enum { MGR__RUSH_WEIGHT_MAX = 65535, MGR__RUSH_SLOT_MAX = 65536, MGR__RUSH_LAYERS = 4 };
#define MGR__RUSH_SCALE 0x1ffffffu       /* 2^25 - 1: so keys stay below 2^64, for E is 2^39 at most */
#define MGR__RUSH_SLOT_SALT 0x5851f42d4c957f2du
#define MGR__RUSH_NONE 0xffffffffu       /* no instance, no group */
#define MGR__RUSH_FAR 0xfffffffeu        /* no instance, and while there are layers none is looked for */
#define MGR__RUSH_FREE UINT64_MAX        /* the bar of an instance with a free seat: everything is better */

/* floor(log2(1 + i/256) * 2^34) */
static const uint64_t mgr__rush_lg[257] = {
    0, 96629019, 192882779, 288764183, 384276101, 479421370, 574202794, 668623144,
    762685163, 856391558, 949745010, 1042748166, 1135403646, 1227714040, 1319681908, 1411309784,
    1502600171, 1593555546, 1684178361, 1774471036, 1864435970, 1954075533, 2043392069, 2132387900,
    2221065318, 2309426596, 2397473978, 2485209688, 2572635923, 2659754860, 2746568652, 2833079427,
    2919289295, 3005200342, 3090814631, 3176134206, 3261161089, 3345897281, 3430344763, 3514505497,
    3598381421, 3681974458, 3765286510, 3848319459, 3931075169, 4013555485, 4095762234, 4177697225,
    4259362248, 4340759076, 4421889467, 4502755157, 4583357869, 4663699307, 4743781161, 4823605101,
    4903172784, 4982485851, 5061545924, 5140354614, 5218913514, 5297224202, 5375288241, 5453107181,
    5530682556, 5608015886, 5685108676, 5761962419, 5838578591, 5914958658, 5991104070, 6067016264,
    6142696665, 6218146684, 6293367719, 6368361157, 6443128369, 6517670717, 6591989550, 6666086203,
    6739962001, 6813618258, 6887056273, 6960277337, 7033282727, 7106073711, 7178651543, 7251017470,
    7323172723, 7395118527, 7466856094, 7538386626, 7609711314, 7680831340, 7751747875, 7822462080,
    7892975107, 7963288096, 8033402180, 8103318480, 8173038110, 8242562173, 8311891762, 8381027963,
    8449971852, 8518724496, 8587286952, 8655660270, 8723845490, 8791843646, 8859655759, 8927282847,
    8994725914, 9061985961, 9129063978, 9195960947, 9262677844, 9329215634, 9395575278, 9461757726,
    9527763922, 9593594803, 9659251297, 9724734326, 9790044804, 9855183638, 9920151728, 9984949967,
    10049579239, 10114040426, 10178334397, 10242462019, 10306424150, 10370221642, 10433855341, 10497326085,
    10560634708, 10623782034, 10686768883, 10749596071, 10812264403, 10874774681, 10937127700, 10999324250,
    11061365113, 11123251068, 11184982886, 11246561333, 11307987169, 11369261148, 11430384020, 11491356528,
    11552179411, 11612853399, 11673379222, 11733757601, 11793989251, 11854074886, 11914015210, 11973810926,
    12033462728, 12092971309, 12152337355, 12211561546, 12270644558, 12329587064, 12388389730, 12447053218,
    12505578185, 12563965284, 12622215163, 12680328466, 12738305830, 12796147892, 12853855280, 12911428621,
    12968868535, 13026175641, 13083350550, 13140393871, 13197306208, 13254088162, 13310740329, 13367263300,
    13423657664, 13479924003, 13536062900, 13592074928, 13647960661, 13703720667, 13759355510, 13814865750,
    13870251946, 13925514649, 13980654409, 14035671772, 14090567281, 14145341474, 14199994885, 14254528047,
    14308941488, 14363235731, 14417411298, 14471468706, 14525408471, 14579231103, 14632937109, 14686526993,
    14740001258, 14793360401, 14846604915, 14899735294, 14952752024, 15005655592, 15058446479, 15111125164,
    15163692124, 15216147830, 15268492754, 15320727361, 15372852117, 15424867481, 15476773913, 15528571867,
    15580261796, 15631844150, 15683319375, 15734687916, 15785950214, 15837106707, 15888157831, 15939104020,
    15989945703, 16040683310, 16091317264, 16141847989, 16192275905, 16242601429, 16292824977, 16342946959,
    16392967788, 16442887869, 16492707609, 16542427409, 16592047670, 16641568789, 16690991163, 16740315183,
    16789541241, 16838669725, 16887701021, 16936635513, 16985473582, 17034215608, 17082861967, 17131413035,
    17179869184
};

/* ---- the draw of a pair ---- */

/* The first step is linear in xor, so it is done once for each hash and not for
 * each pair: fold(a) ^ fold(b) == fold(a ^ b). */
static uint32_t mgr__rush_fold(uint64_t hash) { return (uint32_t)hash ^ ((uint32_t)hash >> 16); }

static uint32_t mgr__rush_draw_folded(uint32_t lo, uint32_t hi)
{
    uint32_t v = lo * 0x7feb352du;
    v ^= v >> 15; v ^= hi; v *= 0x846ca68bu;
    v ^= v >> 16; v *= 0x9e3779b1u;
    return v ^ (v >> 15);
}

/* E(v), an exponentially distributed number when v is uniform: divided by the
 * weights, the smallest of several belongs to each in proportion to its weight.
 * Linear between the table's entries; 0 .. 2^39. */
static uint64_t mgr__rush_log(uint32_t v)
{
    uint64_t y = ((uint64_t)1 << 32) - v;
    unsigned e = 63u - (unsigned)__builtin_clzll(y);
    uint64_t m = (y << (32 - e)) & 0xffffffffu, f = m & 0xffffffu;
    const uint64_t *lg = mgr__rush_lg + (m >> 24);
    return ((uint64_t)32 << 34) - (((uint64_t)e << 34) + lg[0] + (((lg[1] - lg[0]) * f) >> 24));
}

/* ---- one partition against all instances: the loops that take the time ----
 * Written with vector types, so that they do not depend on the optimiser's
 * mood. Limits and draws carry MGR__RUSH_BIAS here, which makes a signed
 * comparison, all that SSE2 and AVX2 have, an unsigned one. A limit only sorts
 * out: the caller decides. */

#define MGR__RUSH_BIAS 0x80000000u
enum { MGR__RUSH_LANES = 16, MGR__RUSH_BYTES = 64 };   /* lanes come in blocks of so many */
enum { MGR__RUSH_FEW = 128 };   /* up to here most blocks would have one that is near: not worth a look */

typedef struct mgr__rush_lanes {
    uint32_t *lo, *hi;      /* halves of the ids' hashes; the lower one folded */
    uint32_t *limit;        /* only draws up to it may be of interest; 0 behind the last instance */
    uint32_t *row;          /* the draws (only by the `near` kernel) */
    uint32_t *blocks;       /* first lanes of the blocks that have a draw within its limit (the same) */
    uint32_t *near;         /* unequal weights: limits, no higher than those, that fewer draws keep */
    float    *slope;        /* the same: the factor of `light` */
    size_t    count;        /* a multiple of MGR__RUSH_LANES */
} mgr__rush_lanes;

typedef uint32_t mgr__rush_u4 __attribute__((vector_size(16)));
typedef int32_t  mgr__rush_i4 __attribute__((vector_size(16)));
typedef uint64_t mgr__rush_q4 __attribute__((vector_size(16)));
typedef float    mgr__rush_f4 __attribute__((vector_size(16)));

/* What `light` finds, for each place in a vector apart. */
typedef struct mgr__rush_lightest {
    int32_t  first[8], second[8];   /* the two smallest bounds, as the bits of a float */
    uint32_t at[8];                 /* the instance of the first */
} mgr__rush_lightest;

#define MGR__RUSH_HEAVY 0x7fffffff      /* above all floats */
#define MGR__RUSH_SLOPE 49522200576.0f  /* 2^35 / ln 2, less 2^-10 of it: a compiler may be told to divide with 12 bits */

/* mgr__rush_draw_folded, on vectors. */
#define MGR__RUSH_LOAD(v, w, lanes, n, lo_h, hi_h)                    \
    do {                                                              \
        memcpy(&(v), (lanes)->lo + (n), sizeof(v));                   \
        memcpy(&(w), (lanes)->hi + (n), sizeof(w));                   \
        (v) ^= (lo_h); (w) ^= (hi_h);         (v) *= 0x7feb352du;     \
        (v) ^= (v) >> 15; (v) ^= (w);         (v) *= 0x846ca68bu;     \
        (v) ^= (v) >> 16;                     (v) *= 0x9e3779b1u;     \
        (v) ^= (v) >> 15;                     (v) ^= MGR__RUSH_BIAS;  \
    } while (0)

/* u, i, q, f: one vector, as unsigned, signed, 64-bit and float lanes.
 * best_: the smallest draw below its limit, and the first instance that has it,
 *        as draw << 32 | instance; all ones: none, unless one is as large as its
 *        limit.
 * near_: fills row and blocks, returns the number of blocks.
 * light_: the smallest bounds of keys of unequal weight. With u = v / 2^32,
 *        -ln(1 - u) >= 2 s (1 + s^2 / 3), s = u / (2 - u): from below, and close
 *        to it up to u = 0.7. Floats only sort out: slope allows for their errors.
 *        Positive ones are in the order of their bits, and so is -0, which is what
 *        1 - 1 gives in a program that rounds downward, if they are compared signed.
 * pick(a, b, mask): b where the mask is set, else a; low the same, where the
 * mask says that b is smaller. What does not depend on the last round comes
 * first: the chain from one `best` to the next is what limits the speed. */
#define MGR__RUSH_PICK(a, b, mask) (((a) & ~(mask)) | ((b) & (mask)))
#define MGR__RUSH_KERNELS(suffix, attributes, u, i, q, f, pick, low)                                           \
    attributes static uint64_t mgr__rush_best_##suffix(const mgr__rush_lanes *lanes, uint64_t h)               \
    {                                                                                                          \
        const uint32_t step = sizeof(u) / 4, lo = mgr__rush_fold(h);                                           \
        const uint32_t hi = (uint32_t)(h >> 32), count = (uint32_t)lanes->count;                               \
        uint32_t draws[sizeof(u) / 4], indices[sizeof(u) / 4];                                                 \
        u v, w, limit, best, at, now, least, first, none;                                                      \
        memset(&w, 0, sizeof w);                                                                               \
        now = w;                                                                                               \
        at = ~w;                                                                                               \
        best = none = at ^ MGR__RUSH_BIAS;                                                                     \
        for (uint32_t n = 0; n < count; n += step, now += step) {                                              \
            MGR__RUSH_LOAD(v, w, lanes, n, lo, hi);                                                            \
            memcpy(&limit, lanes->limit + n, sizeof limit);                                                    \
            v = pick(none, v, (u)((i)v < (i)limit));                                                           \
            u less = (u)((i)v < (i)best);                                                                      \
            best = low(best, v, less);                                                                         \
            at = pick(at, now, less);                                                                          \
        }                                                                                                      \
        least = best;                                                                                          \
        first = at;                                                                                            \
        memcpy(draws, &least, sizeof draws);                                                                   \
        memcpy(indices, &first, sizeof indices);                                                               \
        uint64_t found = UINT64_MAX;                                                                           \
        for (uint32_t n = 0; n < step; n++) {                                                                  \
            uint64_t one = (uint64_t)(draws[n] ^ MGR__RUSH_BIAS) << 32 | (indices[n] | n);                     \
            found = one < found ? one : found;                                                                 \
        }                                                                                                      \
        return found;                                                                                          \
    }                                                                                                          \
    attributes static size_t mgr__rush_near_##suffix(const mgr__rush_lanes *lanes, uint64_t h)                 \
    {                                                                                                          \
        const uint32_t step = sizeof(u) / 4, lo = mgr__rush_fold(h);                                           \
        const uint32_t hi = (uint32_t)(h >> 32), count = (uint32_t)lanes->count;                               \
        size_t found = 0;                                                                                      \
        for (uint32_t n = 0; n < count; n += MGR__RUSH_LANES) {                                                \
            u v, w, limit, any;                                                                                \
            memset(&any, 0, sizeof any);                                                                       \
            for (uint32_t k = n; k < n + MGR__RUSH_LANES; k += step) {                                         \
                MGR__RUSH_LOAD(v, w, lanes, k, lo, hi);                                                        \
                memcpy(&limit, lanes->limit + k, sizeof limit);                                                \
                memcpy(lanes->row + k, &v, sizeof v);                                                          \
                any |= ~(u)((i)v > (i)limit);                                                                  \
            }                                                                                                  \
            q wide = (q)any;                                                                                   \
            uint64_t bits = 0;                                                                                 \
            for (uint32_t k = 0; k < step / 2; k++) bits |= wide[k];                                           \
            lanes->blocks[found] = n;                                                                          \
            found += bits != 0;                                                                                \
        }                                                                                                      \
        return found;                                                                                          \
    }                                                                                                          \
    attributes static uint32_t mgr__rush_light_##suffix(const mgr__rush_lanes *lanes, const uint32_t *limits,  \
                                                        uint64_t h, mgr__rush_lightest *out)                   \
    {                                                                                                          \
        const uint32_t step = sizeof(u) / 4, lo = mgr__rush_fold(h);                                           \
        const uint32_t hi = (uint32_t)(h >> 32), count = (uint32_t)lanes->count;                               \
        u draws[MGR__RUSH_LANES / (sizeof(u) / 4)], v, w, limit, first, second, at, any, now, heavy;           \
        f s, slope;                                                                                            \
        memset(&w, 0, sizeof w);                                                                               \
        at = ~w;                                                                                               \
        first = second = heavy = w + MGR__RUSH_HEAVY;                                                          \
        for (uint32_t n = 0; n < count; n += MGR__RUSH_LANES) {                                                \
            memset(&any, 0, sizeof any);                                                                       \
            for (uint32_t k = 0; k < MGR__RUSH_LANES / step; k++) {                                            \
                MGR__RUSH_LOAD(v, w, lanes, n + k * step, lo, hi);                                             \
                memcpy(&limit, limits + n + k * step, sizeof limit);                                           \
                draws[k] = v;                                                                                  \
                any |= ~(u)((i)v > (i)limit);                                                                  \
            }                                                                                                  \
            q wide = (q)any;                                                                                   \
            uint64_t bits = 0;                                                                                 \
            for (uint32_t k = 0; k < step / 2; k++) bits |= wide[k];                                           \
            if (!bits) continue;                                                                               \
            memset(&now, 0, sizeof now);                                                                       \
            now += n;                                                                                          \
            for (uint32_t k = 0; k < MGR__RUSH_LANES / step; k++, now += step) {                               \
                memcpy(&limit, limits + n + k * step, sizeof limit);                                           \
                memcpy(&slope, lanes->slope + n + k * step, sizeof slope);                                     \
                s = (f)(((draws[k] ^ MGR__RUSH_BIAS) >> 9) | 0x3f800000u);      /* 1 + u */                    \
                s = (s - 1.0f) / (3.0f - s);                                                                   \
                s *= (s * s * 0.3333282470703125f + 1.0f) * slope;     /* exact: also a long double */         \
                w = pick((u)s, heavy, (u)((i)draws[k] > (i)limit));                                            \
                u less = (u)((i)w < (i)first);                                                                 \
                limit = pick(w, first, less);                                                                  \
                second = low(second, limit, (u)((i)limit < (i)second));                                        \
                first = low(first, w, less);                                                                   \
                at = pick(at, now, less);                                                                      \
            }                                                                                                  \
        }                                                                                                      \
        memcpy(out->first, &first, sizeof first);                                                              \
        memcpy(out->second, &second, sizeof second);                                                           \
        memcpy(out->at, &at, sizeof at);                                                                       \
        for (uint32_t n = 0; n < step; n++) out->at[n] |= n;                                                   \
        return step;                                                                                           \
    }

MGR__RUSH_KERNELS(plain, , mgr__rush_u4, mgr__rush_i4, mgr__rush_q4, mgr__rush_f4, MGR__RUSH_PICK, MGR__RUSH_PICK)

#if defined(__x86_64__) || defined(__i386__)
/* Chosen at run time by asking the processor: target_clones would need ifuncs,
 * which a static musl program has not. */
#define MGR__RUSH_AVX2
#ifndef MGR__RUSH_HAS_AVX2      /* tests do without it as well */
#define MGR__RUSH_HAS_AVX2() (__builtin_cpu_supports("avx2") != 0)
#endif
typedef uint32_t mgr__rush_u8 __attribute__((vector_size(32)));
typedef int32_t  mgr__rush_i8 __attribute__((vector_size(32)));
typedef uint64_t mgr__rush_q8 __attribute__((vector_size(32)));
typedef float    mgr__rush_f8 __attribute__((vector_size(32)));
#ifdef __clang__
#define MGR__RUSH_PICK8 MGR__RUSH_PICK      /* finds both instructions by itself */
#define MGR__RUSH_LOW8  MGR__RUSH_PICK
#else
typedef char mgr__rush_b8 __attribute__((vector_size(32)));
#define MGR__RUSH_PICK8(a, b, mask) ((mgr__rush_u8)__builtin_ia32_pblendvb256((mgr__rush_b8)(a), (mgr__rush_b8)(b), (mgr__rush_b8)(mask)))
#define MGR__RUSH_LOW8(a, b, mask)  ((mgr__rush_u8)__builtin_ia32_pminsd256((mgr__rush_i8)(a), (mgr__rush_i8)(b)))
#endif
MGR__RUSH_KERNELS(avx2, __attribute__((target("avx2"))), mgr__rush_u8, mgr__rush_i8, mgr__rush_q8, mgr__rush_f8, MGR__RUSH_PICK8,
                  MGR__RUSH_LOW8)
#endif

/* ---- the state of one call ---- */

/* Names in whichever form the caller has them. */
typedef struct mgr__rush_names {
    const mgr__str    *views;
    const char *const *texts;
    const mgr_member  *members;
} mgr__rush_names;

typedef struct mgr__rush_input {
    mgr__rush_names    partitions, ids;
    const uint32_t    *weights;         /* NULL: the members' */
    size_t             partition_count, member_count;
    uint32_t           replicas;
    const mgr_refusal *refused;
    size_t             refused_count;
    const uint32_t    *slots;           /* by slots: each member's; else NULL */
    uint32_t          *owners;
} mgr__rush_input;

/* By slots: who has what when nobody is away, see mgr__rush_replay. A slot's
 * partitions stand together in `part`, with the halves of their hashes beside, so
 * that a kernel can go over them. What a slot loses leaves a hole behind it. */
typedef struct mgr__rush_lists {
    mgr__rush_lanes lanes;  /* of the slot at hand: pieces of lo and hi */
    uint32_t *lo, *hi, *part;
    uint32_t *place;        /* of each partition in them */
    uint32_t *start, *count;    /* by slot - 1 */
    size_t    slots, used, room;
} mgr__rush_lists;

/* For chains of moves: what an instance holds, in order, in chunks that are linked.
 * Each has the union of the instances that its partitions may go to, as bits, so
 * that a search passes over those that lead nowhere new. */
enum { MGR__RUSH_CHUNK = 32, MGR__RUSH_CHUNK_FILL = 24 };   /* partitions; filled so far when made, so that there is room */
enum { MGR__RUSH_MANY = 32 };   /* refusals are many from a 32nd of the members on: their indices take about as much as the set of bits */
typedef struct mgr__rush_chunk { uint32_t next, count, part[MGR__RUSH_CHUNK]; } mgr__rush_chunk;

typedef struct mgr__rush_chunks {
    mgr__rush_chunk *chunk;
    uint64_t *ways;         /* of each chunk, `words` long like the other sets of instances; or more, for what left it */
    uint64_t *leads;        /* of each instance: of all its chunks, or more */
    uint64_t *may;          /* where a partition with many refusals may go: the set at may_at */
    uint32_t *may_at;       /* by partition; MGR__RUSH_NONE: few, they are looked at one by one */
    uint64_t *living;       /* of the group at hand, and not dead */
    uint64_t *fresh;        /* of those, what the search has not reached */
    uint64_t *scratch;
    uint32_t *first, *last; /* by instance: its chunks; the one that was added to last, which may be near the next */
    size_t    words, used, room;
    bool      ready;        /* may and may_at are filled */
} mgr__rush_chunks;

/* Partitions and instances are numbered in canonical order, except where a
 * comment says "the caller's". An entry is draw << 32 | partition: within one
 * instance entries are ordered as the keys are. */
typedef struct mgr__rush {
    const mgr__rush_input *in;
    char     *block;            /* all arrays are parts of it; NULL while only measuring */
    size_t    used;
    bool      equal, avx2;
    uint64_t  salt;             /* by slots: what keys are drawn with, see the specification */
    uint32_t  replica, group, group_count;
    uint64_t  bound;            /* unequal weights: keys up to here lie within near */
    uint64_t  stamp_now;
    uint64_t  sum;              /* what the open instances share: partitions, and what they hold from earlier replicas */
    uint64_t  weights;          /* theirs */
    size_t    open_count;
    bool      spare;            /* more seats than partitions, one for everybody in the top layer */
    bool      short_reach;      /* few draws are within their limits, most often none */

    uint64_t *hash;             /* of each partition */
    uint64_t *held;             /* entries, one slice for each instance: a heap with the worst on top once it is full */
    uint32_t *part_at;          /* the caller's index */
    uint32_t *owner;            /* in this replica */
    uint32_t *part_group;
    uint32_t *stack;
    uint32_t *refused_from;     /* by the caller's index: a slice of refused, instances */
    uint32_t *refused;
    uint32_t *base;             /* by slots: the instance that has the partition when nobody is away; else NULL */
    uint32_t *at_slot;          /* by slot - 1: the instance */
    mgr__rush_lists lists;
    mgr__rush_chunks chunks;

    mgr__rush_lanes lanes;
    uint64_t *bar;              /* an entry must be below it to get a seat; 0: closed */
    uint64_t *open_bar;         /* the bar while a seat is free */
    uint64_t *total;            /* held from earlier replicas */
    uint64_t *stamp;            /* == stamp_now: excluded for the partition at hand */
    uint64_t *sorted;           /* scratch */
    uint32_t *member_at;        /* the caller's index, and back */
    uint32_t *rank;
    uint32_t *weight, *scale;   /* scale: floor(MGR__RUSH_SCALE / weight) */
    uint32_t *near_max;         /* the largest draw with a key up to bound, or more */
    uint32_t *quota;            /* the most it may get in this replica */
    uint32_t *got;              /* of that, from earlier layers */
    uint32_t *seats, *count;    /* of the layer at hand; for chains with what was got */
    uint32_t *start;            /* of the slice of held */
    uint32_t *group_of;
    uint32_t *open;             /* that take part in sharing */
    uint32_t *queue, *via;      /* the search for a chain of moves */
    uint8_t  *dead;             /* leads to no free seat */
} mgr__rush;

/* Arrays start 64 bytes apart from each other at least, so that none is empty. */
static void *mgr__rush_carve(mgr__rush *rush, size_t count, size_t item_bytes)
{
    void *at = rush->block ? rush->block + rush->used : NULL;
    rush->used += (count * item_bytes / MGR__RUSH_BYTES + 1) * MGR__RUSH_BYTES;
    return at;
}

static uint64_t *mgr__rush_carve64(mgr__rush *rush, size_t count) { return (uint64_t *)mgr__rush_carve(rush, count, 8); }
static uint32_t *mgr__rush_carve32(mgr__rush *rush, size_t count) { return (uint32_t *)mgr__rush_carve(rush, count, 4); }

/* Two lists' room: what has been left behind is closed up only when it is used up.
 * The kernel reads up to a block beyond the last. */
static void mgr__rush_layout_lists(mgr__rush *rush, size_t partitions, size_t slots)
{
    mgr__rush_lists *lists = &rush->lists;
    size_t scan = partitions + MGR__RUSH_LANES;
    lists->slots = slots;
    lists->room = 2 * partitions;
    uint32_t **pieces[] = { &lists->lo, &lists->hi, &lists->part };
    for (size_t i = 0; i < MGR__COUNT(pieces); i++) *pieces[i] = mgr__rush_carve32(rush, lists->room + MGR__RUSH_LANES);
    lists->place = mgr__rush_carve32(rush, partitions);
    lists->start = mgr__rush_carve32(rush, slots);
    lists->count = mgr__rush_carve32(rush, slots);
    lists->lanes.limit = mgr__rush_carve32(rush, scan);
    lists->lanes.row = mgr__rush_carve32(rush, scan);
    lists->lanes.blocks = mgr__rush_carve32(rush, scan / MGR__RUSH_LANES + 1);
    rush->at_slot = mgr__rush_carve32(rush, slots);
    rush->base = mgr__rush_carve32(rush, partitions);
}

/* The last piece of `room` is for chunks that get full. */
static void mgr__rush_layout_chunks(mgr__rush *rush, size_t partitions, size_t members, size_t refused)
{
    mgr__rush_chunks *chunks = &rush->chunks;
    size_t many = members ? (size_t)((uint64_t)refused * MGR__RUSH_MANY / members) : 0;
    if (many > refused) many = refused;
    chunks->words = (members + 63) / 64;
    chunks->room = partitions / MGR__RUSH_CHUNK_FILL + members + partitions / 96 + 4;
    chunks->chunk = (mgr__rush_chunk *)mgr__rush_carve(rush, chunks->room, sizeof *chunks->chunk);
    chunks->ways = mgr__rush_carve64(rush, chunks->room * chunks->words);
    chunks->leads = mgr__rush_carve64(rush, members * chunks->words);
    chunks->may = mgr__rush_carve64(rush, (many < partitions ? many : partitions) * chunks->words);
    chunks->may_at = mgr__rush_carve32(rush, partitions);
    chunks->living = mgr__rush_carve64(rush, chunks->words);
    chunks->fresh = mgr__rush_carve64(rush, chunks->words);
    chunks->scratch = mgr__rush_carve64(rush, chunks->words);
    chunks->first = mgr__rush_carve32(rush, members);
    chunks->last = mgr__rush_carve32(rush, members);
}

/* The one place that knows what is needed: called without a block it measures. slots: 0 without. */
static void mgr__rush_layout(mgr__rush *rush, size_t partitions, size_t members, uint32_t replicas, size_t refused, size_t slots)
{
    size_t lanes = (members + MGR__RUSH_LANES - 1) / MGR__RUSH_LANES * MGR__RUSH_LANES;
    rush->used = 0;
    rush->lanes.count = lanes;
    rush->hash = mgr__rush_carve64(rush, partitions);
    rush->held = mgr__rush_carve64(rush, partitions > members ? partitions : members);     /* as many as seats */
    rush->part_at = mgr__rush_carve32(rush, partitions);
    rush->owner = mgr__rush_carve32(rush, partitions);
    rush->part_group = mgr__rush_carve32(rush, partitions);
    rush->stack = mgr__rush_carve32(rush, partitions);
    rush->refused_from = mgr__rush_carve32(rush, refused ? partitions + 1 : 0);
    rush->refused = mgr__rush_carve32(rush, refused);
    uint64_t **wide[] = { &rush->bar, &rush->open_bar, &rush->total, &rush->stamp, &rush->sorted };
    uint32_t **narrow[] = {
        &rush->lanes.lo, &rush->lanes.hi, &rush->lanes.limit, &rush->lanes.row, &rush->lanes.blocks,
        &rush->member_at, &rush->rank, &rush->weight, &rush->scale, &rush->near_max, &rush->lanes.near, &rush->quota, &rush->got,
        &rush->seats, &rush->count, &rush->start, &rush->group_of, &rush->open, &rush->queue, &rush->via
    };
    for (size_t i = 0; i < MGR__COUNT(wide); i++) *wide[i] = mgr__rush_carve64(rush, lanes);
    for (size_t i = 0; i < MGR__COUNT(narrow); i++) *narrow[i] = mgr__rush_carve32(rush, lanes);
    rush->lanes.slope = (float *)mgr__rush_carve(rush, lanes, sizeof(float));
    rush->dead = (uint8_t *)mgr__rush_carve(rush, lanes, 1);
    if (slots) mgr__rush_layout_lists(rush, partitions, slots);
    if (refused || replicas > 1) mgr__rush_layout_chunks(rush, partitions, members, refused);
}

/* ---- heaps of entries, the largest on top ---- */

static void mgr__rush_sift(uint64_t *heap, size_t count, size_t at)
{
    uint64_t entry = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= entry) break;
        heap[at] = heap[child];
    }
    heap[at] = entry;
}

static void mgr__rush_heapify(uint64_t *heap, size_t count)
{
    for (size_t i = count / 2; i-- > 0; ) mgr__rush_sift(heap, count, i);
}

static void mgr__rush_sort64(uint64_t *items, size_t count)
{
    mgr__rush_heapify(items, count);
    for (size_t n = count; n > 1; n--) {
        uint64_t largest = items[0];
        items[0] = items[n - 1];
        items[n - 1] = largest;
        mgr__rush_sift(items, n - 1, 0);
    }
}

/* ---- the canonical order ---- */

static mgr__str mgr__rush_name(const mgr__rush_names *names, size_t i)
{
    if (names->views) return names->views[i];
    return mgr__str_of(names->texts ? names->texts[i] : names->members[i].id);
}

typedef struct mgr__rush_order {
    const mgr__rush_names *names;
    uint64_t *hash;
    uint32_t *at;           /* the caller's index */
} mgr__rush_order;

static int mgr__rush_compare(const mgr__rush_order *order, size_t a, size_t b)
{
    if (order->hash[a] != order->hash[b]) return order->hash[a] < order->hash[b] ? -1 : 1;
    return mgr__str_order(mgr__rush_name(order->names, order->at[a]), mgr__rush_name(order->names, order->at[b]));
}

static void mgr__rush_swap(mgr__rush_order *order, size_t a, size_t b)
{
    uint64_t hash = order->hash[a];
    uint32_t at = order->at[a];
    order->hash[a] = order->hash[b];
    order->at[a] = order->at[b];
    order->hash[b] = hash;
    order->at[b] = at;
}

static void mgr__rush_order_sift(mgr__rush_order *order, size_t from, size_t count, size_t at)
{
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && mgr__rush_compare(order, from + child + 1, from + child) > 0) child++;
        if (mgr__rush_compare(order, from + child, from + at) <= 0) return;
        mgr__rush_swap(order, from + at, from + child);
    }
}

/* A heapsort: names may have been chosen to collide, and must not cost more for it. */
static void mgr__rush_order_slice(mgr__rush_order *order, size_t from, size_t count)
{
    if (count < 2) return;
    for (size_t i = count / 2; i-- > 0; ) mgr__rush_order_sift(order, from, count, i);
    for (size_t n = count; n > 1; n--) {
        mgr__rush_swap(order, from, from + n - 1);
        mgr__rush_order_sift(order, from, n - 1, 0);
    }
}

/* Hashes are uniform: as many buckets as names leave one or two in each.
 * raw, ends: scratch for `count` items, at least 2. */
static mgr_result mgr__rush_sort(mgr__rush_order *order, size_t count, uint64_t *raw, uint32_t *ends)
{
    unsigned shift = 63;
    size_t buckets = 2;
    while (buckets * 2 <= count) { buckets *= 2; shift--; }
    memset(ends, 0, buckets * sizeof *ends);
    for (size_t i = 0; i < count; i++) {
        mgr__str name = mgr__rush_name(order->names, i);
        if (!name.len) return MGR_INVALID;
        raw[i] = mgr__hash(name);
        ends[raw[i] >> shift]++;
    }
    uint32_t from = 0;
    for (size_t b = 0; b < buckets; b++) { uint32_t n = ends[b]; ends[b] = from; from += n; }
    for (size_t i = 0; i < count; i++) {
        uint32_t at = ends[raw[i] >> shift]++;
        order->hash[at] = raw[i];
        order->at[at] = (uint32_t)i;
    }
    from = 0;
    for (size_t b = 0; b < buckets; b++) { mgr__rush_order_slice(order, from, ends[b] - from); from = ends[b]; }
    for (size_t i = 1; i < count; i++) if (mgr__rush_compare(order, i - 1, i) == 0) return MGR_INVALID;
    return MGR_OK;
}

static mgr_result mgr__rush_order_partitions(mgr__rush *rush)
{
    mgr__rush_order order;
    order.names = &rush->in->partitions;
    order.hash = rush->hash;
    order.at = rush->part_at;
    return mgr__rush_sort(&order, rush->in->partition_count, rush->held, rush->stack);
}

static uint32_t mgr__rush_weight(const mgr__rush_input *in, size_t member)
{
    return in->weights ? in->weights[member] : in->ids.members[member].weight;
}

static mgr_result mgr__rush_order_members(mgr__rush *rush)
{
    const mgr__rush_input *in = rush->in;
    mgr__rush_order order;
    order.names = &in->ids;
    order.hash = rush->sorted;
    order.at = rush->member_at;
    mgr_result result = mgr__rush_sort(&order, in->member_count, rush->bar, rush->queue);
    if (result != MGR_OK) return result;
    uint32_t common = 0;
    rush->equal = true;
    for (uint32_t i = 0; i < in->member_count; i++) {
        uint32_t weight = mgr__rush_weight(in, rush->member_at[i]);
        rush->rank[rush->member_at[i]] = i;
        rush->lanes.lo[i] = mgr__rush_fold(order.hash[i]);
        rush->lanes.hi[i] = (uint32_t)(order.hash[i] >> 32);
        rush->weight[i] = weight;
        if (!weight) continue;
        rush->scale[i] = MGR__RUSH_SCALE / weight;
        rush->lanes.slope[i] = (float)rush->scale[i] * MGR__RUSH_SLOPE;
        if (common && weight != common) rush->equal = false;
        common = weight;
    }
    return MGR_OK;
}

/* By slots: the highest slot of a member with weight; 0 if there is none. */
static size_t mgr__rush_slots_max(const mgr__rush_input *in)
{
    uint32_t highest = 0;
    for (size_t i = 0; in->slots && i < in->member_count; i++)
        if (mgr__rush_weight(in, i) && in->slots[i] > highest) highest = in->slots[i];
    return highest;
}

/* By slots: their order is the canonical one; members without weight come last.
 * MGR_INVALID: two of one slot. */
static mgr_result mgr__rush_order_slots(mgr__rush *rush)
{
    const mgr__rush_input *in = rush->in;
    uint32_t next = 0;
    for (size_t s = 0; s < rush->lists.slots; s++) rush->at_slot[s] = MGR__RUSH_NONE;
    for (uint32_t i = 0; i < in->member_count; i++) {
        if (!mgr__rush_weight(in, i)) continue;
        uint32_t *at = rush->at_slot + (in->slots[i] - 1);
        if (*at != MGR__RUSH_NONE) return MGR_INVALID;
        *at = i;
    }
    for (size_t s = 0; s < rush->lists.slots; s++) {
        if (rush->at_slot[s] == MGR__RUSH_NONE) continue;
        uint64_t g = mgr__mix64(s + 1);
        rush->lanes.lo[next] = mgr__rush_fold(g);
        rush->lanes.hi[next] = (uint32_t)(g >> 32);
        rush->weight[next] = 1;
        rush->scale[next] = MGR__RUSH_SCALE;
        rush->member_at[next] = rush->at_slot[s];
        rush->at_slot[s] = next++;
    }
    for (uint32_t i = 0; i < in->member_count; i++) if (!mgr__rush_weight(in, i)) rush->member_at[next++] = i;
    for (uint32_t i = 0; i < next; i++) rush->rank[rush->member_at[i]] = i;
    rush->equal = true;
    return MGR_OK;
}

/* Sort the refused pairs into one slice for each partition. */
static void mgr__rush_refusals(mgr__rush *rush)
{
    const mgr__rush_input *in = rush->in;
    if (!in->refused_count) return;
    uint32_t *from = rush->refused_from;
    for (size_t n = 0; n < in->refused_count; n++) from[in->refused[n].partition + 1]++;
    for (size_t p = 0; p < in->partition_count; p++) from[p + 1] += from[p];
    /* Filling moves each start to its slice's end, which is the next one's start. */
    for (size_t n = 0; n < in->refused_count; n++)
        rush->refused[from[in->refused[n].partition]++] = rush->rank[in->refused[n].member];
    for (size_t p = in->partition_count; p > 0; p--) from[p] = from[p - 1];
    from[0] = 0;
}

/* ---- exclusions of a partition: owners in earlier replicas, then refusals ---- */

static uint32_t mgr__rush_refused(const mgr__rush *rush, uint32_t x, const uint32_t **refused)
{
    if (!rush->in->refused_count) return 0;
    const uint32_t *from = rush->refused_from + rush->part_at[x];
    *refused = rush->refused + from[0];
    return from[1] - from[0];
}

static uint32_t mgr__rush_excluded_count(const mgr__rush *rush, uint32_t x)
{
    const uint32_t *refused;
    return rush->replica + mgr__rush_refused(rush, x, &refused);
}

/* MGR__RUSH_NONE where an earlier replica has no owner. */
static uint32_t mgr__rush_excluded(const mgr__rush *rush, uint32_t x, uint32_t n)
{
    size_t at = rush->part_at[x];
    if (n >= rush->replica) return rush->refused[rush->refused_from[at] + (n - rush->replica)];
    uint32_t owner = rush->in->owners[at * rush->in->replicas + n];
    return owner == MGR_RUSH_NOBODY ? MGR__RUSH_NONE : rush->rank[owner];
}

/* Returns how many instances with weight are excluded. */
static uint32_t mgr__rush_mark_excluded(mgr__rush *rush, uint32_t x)
{
    uint32_t different = 0;
    rush->stamp_now++;
    for (uint32_t n = mgr__rush_excluded_count(rush, x); n-- > 0; ) {
        uint32_t i = mgr__rush_excluded(rush, x, n);
        if (i == MGR__RUSH_NONE || rush->stamp[i] == rush->stamp_now) continue;
        rush->stamp[i] = rush->stamp_now;
        different += rush->weight[i] != 0;
    }
    return different;
}

/* ---- seats ---- */

/* One turn of sharing the sum out among the instances that are `open`, each at
 * least what it has; returns how many were found to have more than their quota,
 * and are closed. sum < 2^40, a weight < 2^16: nothing overflows. */
static size_t mgr__rush_quota(mgr__rush *rush)
{
    uint64_t left = rush->sum, above = 0;
    for (size_t n = 0; n < rush->open_count; n++) {
        uint32_t i = rush->open[n];
        uint64_t product = rush->sum * rush->weight[i];
        rush->via[i] = (uint32_t)(product / rush->weights);
        left -= rush->via[i];
        above += rush->total[i] > rush->via[i];
        rush->sorted[n] = (rush->weights - 1 - product % rush->weights) << 16 | i;
    }
    mgr__rush_sort64(rush->sorted, rush->open_count);
    /* Were more above the full layers already, these had more seats than there are partitions for. */
    rush->spare = rush->equal && !rush->in->slots && left && above <= left && rush->sum / rush->open_count < MGR__RUSH_LAYERS;
    if (rush->spare) left = rush->open_count;
    for (size_t n = 0; n < left; n++) rush->via[rush->sorted[n] & 0xffffu]++;
    size_t closed = 0;
    for (size_t n = 0; n < rush->open_count; n++) {
        uint32_t i = rush->open[n];
        bool over = rush->via[i] < rush->total[i];
        rush->quota[i] = over ? 0 : rush->via[i] - (uint32_t)rush->total[i];
        if (over) closed++;
        else rush->open[n - closed] = i;
    }
    return closed;
}

/* Quotas for `parts` partitions of the group at hand. */
static void mgr__rush_share(mgr__rush *rush, size_t parts)
{
    size_t closed;
    rush->open_count = 0;
    for (uint32_t i = 0; i < rush->in->member_count; i++) {
        rush->quota[i] = rush->got[i] = rush->count[i] = 0;
        if (rush->group_of[i] == rush->group) rush->open[rush->open_count++] = i;
    }
    do {
        rush->sum = parts;
        rush->weights = 0;
        for (size_t n = 0; n < rush->open_count; n++) {
            rush->sum += rush->total[rush->open[n]];
            rush->weights += rush->weight[rush->open[n]];
        }
        closed = mgr__rush_quota(rush);
        rush->open_count -= closed;
    } while (closed);
}

/* ---- the stable matching ---- */

/* Set the bar of an instance by what it holds, and the limit that the kernels see. */
static void mgr__rush_gate(mgr__rush *rush, uint32_t i)
{
    bool shut = !rush->seats[i];
    rush->bar[i] = shut ? 0 : rush->count[i] < rush->seats[i] ? rush->open_bar[i] : rush->held[rush->start[i]];
    uint32_t limit = (uint32_t)(rush->bar[i] >> 32);
    if (!shut && limit < UINT32_MAX) limit++;   /* a draw as large as the bar's wins if the partition is earlier */
    rush->lanes.limit[i] = limit ^ MGR__RUSH_BIAS;
    rush->lanes.near[i] = (limit < rush->near_max[i] ? limit : rush->near_max[i]) ^ MGR__RUSH_BIAS;
}

static void mgr__rush_close(mgr__rush *rush, uint32_t i)
{
    rush->bar[i] = 0;
    rush->lanes.limit[i] = rush->lanes.near[i] = MGR__RUSH_BIAS;
}

/* Unequal weights: a partition's best key is mostly among the smallest, so look
 * first at keys of which about six are to be expected, and turn that into a
 * limit for the draw. E(v) >= v * 2^2 / ln 2 > v * 23/4: the limit is no lower
 * than the largest draw with such a key. */
static void mgr__rush_gates(mgr__rush *rush)
{
    uint64_t weights = 0;
    uint32_t start = 0;
    for (uint32_t i = 0; i < rush->in->member_count; i++)
        if (rush->group_of[i] == rush->group) weights += rush->weight[i];
    rush->bound = rush->equal ? UINT64_MAX : ((uint64_t)9 << 59) / weights;
    for (uint32_t i = 0; i < rush->in->member_count; i++) {
        uint64_t near = rush->equal || !rush->weight[i] ? UINT32_MAX : (rush->bound / rush->scale[i] / 23 + 1) * 4 + 4;
        rush->near_max[i] = near < UINT32_MAX ? (uint32_t)near : UINT32_MAX;
        rush->start[i] = start;
        start += rush->seats[i];
        mgr__rush_gate(rush, i);
    }
}

static uint64_t mgr__rush_kernel_best(const mgr__rush *rush, uint64_t h)
{
#ifdef MGR__RUSH_AVX2
    if (rush->avx2) return mgr__rush_best_avx2(&rush->lanes, h);
#endif
    return mgr__rush_best_plain(&rush->lanes, h);
}

static size_t mgr__rush_lanes_near(const mgr__rush_lanes *lanes, bool avx2, uint64_t h)
{
#ifdef MGR__RUSH_AVX2
    if (avx2) return mgr__rush_near_avx2(lanes, h);
#endif
    (void)avx2;
    return mgr__rush_near_plain(lanes, h);
}

static uint32_t mgr__rush_kernel_light(const mgr__rush *rush, const uint32_t *limits, uint64_t h, mgr__rush_lightest *out)
{
#ifdef MGR__RUSH_AVX2
    if (rush->avx2) return mgr__rush_light_avx2(&rush->lanes, limits, h, out);
#endif
    return mgr__rush_light_plain(&rush->lanes, limits, h, out);
}

static size_t mgr__rush_kernel_near(const mgr__rush *rush, uint64_t h) { return mgr__rush_lanes_near(&rush->lanes, rush->avx2, h); }

/* The best instance for x among those that would take it, with its entry; by
 * looking at each draw in the blocks that have one within its limit. */
static uint32_t mgr__rush_best_slowly(const mgr__rush *rush, uint32_t x, uint64_t *entry)
{
    uint64_t best = UINT64_MAX;
    uint32_t found = MGR__RUSH_NONE;
    size_t lanes = mgr__rush_kernel_near(rush, rush->hash[x] ^ rush->salt) * MGR__RUSH_LANES;
    for (size_t n = 0; n < lanes; n++) {
        uint32_t i = rush->lanes.blocks[n / MGR__RUSH_LANES] + n % MGR__RUSH_LANES;
        if (i == rush->in->member_count) break;
        uint32_t v = rush->lanes.row[i] ^ MGR__RUSH_BIAS;
        uint64_t one = (uint64_t)v << 32 | x;
        if (one >= rush->bar[i]) continue;
        /* E costs more than this bound of it, which mostly says no. */
        if (found != MGR__RUSH_NONE && (((uint64_t)v * rush->scale[i] * 23) >> 2) > best) continue;
        uint64_t key = mgr__rush_log(v) * rush->scale[i];
        if (found != MGR__RUSH_NONE && key >= best) continue;
        best = key;
        found = i;
        *entry = one;
    }
    return found;
}

static uint32_t mgr__rush_best_equal(const mgr__rush *rush, uint32_t x, uint64_t *entry)
{
    uint64_t h = rush->hash[x] ^ rush->salt, found = mgr__rush_kernel_best(rush, h);
    *entry = (found & 0xffffffff00000000u) | x;
    if (found != UINT64_MAX && *entry < rush->bar[(uint32_t)found]) return (uint32_t)found;
    /* None, or only one at a limit: its partition, or the largest draw of all. */
    return mgr__rush_best_slowly(rush, x, entry);
}

static int32_t mgr__rush_float_bits(float f)
{
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* The best instance for x within the limits, if `light` tells who may be it: all
 * whose bound is not above the key of the one with the smallest bound. Else none:
 * also if one of them is at its bar. */
static uint32_t mgr__rush_best_light(const mgr__rush *rush, const uint32_t *limits, uint32_t x, uint64_t *best, uint64_t *entry)
{
    mgr__rush_lightest light;
    const uint64_t h = rush->hash[x];
    const uint32_t places = mgr__rush_kernel_light(rush, limits, h, &light);
    uint32_t least = 0, found = MGR__RUSH_NONE;
    int32_t bound = MGR__RUSH_HEAVY - 1;
    for (uint32_t n = 1; n < places; n++) if (light.first[n] < light.first[least]) least = n;
    for (uint32_t k = 0; k < places; k++) {
        uint32_t n = k ^ least, i = light.at[n];    /* `least` first */
        if (light.first[n] > bound) continue;
        uint32_t v = mgr__rush_draw_folded(rush->lanes.lo[i] ^ mgr__rush_fold(h), rush->lanes.hi[i] ^ (uint32_t)(h >> 32));
        uint64_t one = (uint64_t)v << 32 | x, key = mgr__rush_log(v) * rush->scale[i];
        if (!k) bound = mgr__rush_float_bits((float)key);
        if (one >= rush->bar[i] || light.second[n] <= bound) return MGR__RUSH_NONE;
        if (found != MGR__RUSH_NONE && (key > *best || (key == *best && i > found))) continue;
        *best = key;
        found = i;
        *entry = one;
    }
    return found;
}

static uint32_t mgr__rush_best_weighted(const mgr__rush *rush, uint32_t x, uint64_t *entry)
{
    const mgr__rush_lanes *lanes = &rush->lanes;
    uint64_t best;
    uint32_t found = MGR__RUSH_NONE;
    if (lanes->count > MGR__RUSH_FEW) found = mgr__rush_best_light(rush, lanes->near, x, &best, entry);
    /* Beyond the bound, another instance may have a smaller key and not be near. */
    if (found != MGR__RUSH_NONE && best <= rush->bound) return found;
    found = mgr__rush_best_light(rush, lanes->limit, x, &best, entry);
    if (found != MGR__RUSH_NONE) return found;
    return mgr__rush_best_slowly(rush, x, entry);
}

static uint32_t mgr__rush_best(mgr__rush *rush, uint32_t x, uint64_t *entry)
{
    const uint32_t *refused = NULL, count = mgr__rush_refused(rush, x, &refused);
    uint32_t i;
    for (uint32_t n = 0; n < rush->replica; n++)
        if ((i = mgr__rush_excluded(rush, x, n)) != MGR__RUSH_NONE) mgr__rush_close(rush, i);
    for (uint32_t n = 0; n < count; n++) if (rush->bar[refused[n]]) mgr__rush_close(rush, refused[n]);
    uint32_t base = rush->base ? rush->base[x] : MGR__RUSH_NONE, best;
    *entry = x;     /* at its base owner: as if the draw were 0 */
    if (base != MGR__RUSH_NONE && *entry < rush->bar[base]) best = base;
    else if (rush->short_reach) best = mgr__rush_best_slowly(rush, x, entry);
    else best = rush->equal ? mgr__rush_best_equal(rush, x, entry) : mgr__rush_best_weighted(rush, x, entry);
    for (uint32_t n = 0; n < rush->replica; n++)
        if ((i = mgr__rush_excluded(rush, x, n)) != MGR__RUSH_NONE) mgr__rush_gate(rush, i);
    for (uint32_t n = 0; n < count; n++) if (rush->seats[refused[n]]) mgr__rush_gate(rush, refused[n]);
    return best;
}

/* Gale and Shapley, with both sides going by the same keys: whoever is put out
 * of a seat looks again. Bars only fall, so that nobody has to look twice at an
 * instance that turned it away, and the result does not depend on the order. */
static void mgr__rush_match(mgr__rush *rush, size_t depth)
{
    while (depth) {
        uint32_t x = rush->stack[--depth];
        uint64_t entry = 0;
        uint32_t i = mgr__rush_best(rush, x, &entry);
        rush->owner[x] = i;
        if (i == MGR__RUSH_NONE) continue;
        uint64_t *held = rush->held + rush->start[i];
        if (rush->count[i] < rush->seats[i]) {
            held[rush->count[i]++] = entry;
            if (rush->count[i] < rush->seats[i]) continue;
            mgr__rush_heapify(held, rush->count[i]);
        } else {
            rush->stack[depth++] = (uint32_t)held[0];
            held[0] = entry;
            mgr__rush_sift(held, rush->count[i], 0);
        }
        mgr__rush_gate(rush, i);
    }
}

/* ---- chains of moves, for what the matching left over ---- */

static void mgr__rush_bit_set(uint64_t *set, uint32_t i) { set[i / 64] |= (uint64_t)1 << (i % 64); }
static void mgr__rush_bit_clear(uint64_t *set, uint32_t i) { set[i / 64] &= ~((uint64_t)1 << (i % 64)); }

static bool mgr__rush_bits_meet(const uint64_t *a, const uint64_t *b, size_t words)
{
    for (size_t w = 0; w < words; w++) if (a[w] & b[w]) return true;
    return false;
}

/* Sets of bits for the partitions that have many refusals; made when the first chain is looked for. */
static void mgr__rush_bits(mgr__rush *rush)
{
    mgr__rush_chunks *chunks = &rush->chunks;
    uint32_t used = 0;
    chunks->ready = true;
    for (uint32_t x = 0; x < rush->in->partition_count; x++) {
        chunks->may_at[x] = MGR__RUSH_NONE;
        const uint32_t *refused, count = mgr__rush_refused(rush, x, &refused);
        if (!count || count * (uint64_t)MGR__RUSH_MANY < rush->in->member_count) continue;
        chunks->may_at[x] = used++;
        uint64_t *may = chunks->may + chunks->may_at[x] * chunks->words;
        memset(may, 0xff, chunks->words * sizeof *may);
        for (uint32_t n = 0; n < count; n++) mgr__rush_bit_clear(may, refused[n]);
    }
}

/* Where x may go; beyond the living ones as well. Valid until the next call. */
static const uint64_t *mgr__rush_ways(mgr__rush *rush, uint32_t x)
{
    mgr__rush_chunks *chunks = &rush->chunks;
    const bool many = chunks->may_at[x] != MGR__RUSH_NONE;
    const uint64_t *may = chunks->may + (many ? chunks->may_at[x] * chunks->words : 0);
    if (many && !rush->replica) return may;
    if (many) memcpy(chunks->scratch, may, chunks->words * sizeof *may);
    else memset(chunks->scratch, 0xff, chunks->words * sizeof *may);
    for (uint32_t n = many ? rush->replica : mgr__rush_excluded_count(rush, x); n-- > 0; ) {
        uint32_t i = mgr__rush_excluded(rush, x, n);
        if (i != MGR__RUSH_NONE) mgr__rush_bit_clear(chunks->scratch, i);
    }
    return chunks->scratch;
}

static void mgr__rush_bits_add(uint64_t *to, const uint64_t *set, size_t words)
{
    for (size_t w = 0; w < words; w++) to[w] |= set[w];
}

static void mgr__rush_chunk_ways(mgr__rush *rush, uint32_t c, uint32_t x)
{
    mgr__rush_bits_add(rush->chunks.ways + c * rush->chunks.words, mgr__rush_ways(rush, x), rush->chunks.words);
}

static void mgr__rush_chunk_ways_anew(mgr__rush *rush, uint32_t c)
{
    const mgr__rush_chunk *chunk = rush->chunks.chunk + c;
    memset(rush->chunks.ways + c * rush->chunks.words, 0, rush->chunks.words * sizeof *rush->chunks.ways);
    for (uint32_t n = 0; n < chunk->count; n++) mgr__rush_chunk_ways(rush, c, chunk->part[n]);
}

/* An empty one behind chunk `before` of i; MGR__RUSH_NONE: the first. */
static uint32_t mgr__rush_chunk_add(mgr__rush *rush, uint32_t i, uint32_t before)
{
    mgr__rush_chunks *chunks = &rush->chunks;
    uint32_t c = (uint32_t)chunks->used++, *link = before == MGR__RUSH_NONE ? chunks->first + i : &chunks->chunk[before].next;
    memset(chunks->ways + c * chunks->words, 0, chunks->words * sizeof *chunks->ways);
    chunks->chunk[c].count = 0;
    chunks->chunk[c].next = *link;
    *link = c;
    return c;
}

/* Everything that is owned, into chunks that are not quite full. Chunks that lose
 * their last partition stay; when no more are left all are made anew. */
static void mgr__rush_list(mgr__rush *rush)
{
    mgr__rush_chunks *chunks = &rush->chunks;
    chunks->used = 0;
    for (uint32_t i = 0; i < rush->in->member_count; i++) {
        rush->count[i] = 0;
        chunks->first[i] = chunks->last[i] = MGR__RUSH_NONE;
    }
    memset(chunks->leads, 0xff, rush->in->member_count * chunks->words * sizeof *chunks->leads);
    for (uint32_t x = 0; x < rush->in->partition_count; x++) {
        uint32_t i = rush->owner[x];
        if (rush->part_group[x] != rush->group || i == MGR__RUSH_NONE) continue;
        if (rush->count[i] % MGR__RUSH_CHUNK_FILL == 0) chunks->last[i] = mgr__rush_chunk_add(rush, i, chunks->last[i]);
        mgr__rush_chunk *chunk = chunks->chunk + chunks->last[i];
        chunk->part[chunk->count++] = x;
        mgr__rush_chunk_ways(rush, chunks->last[i], x);
        rush->count[i]++;
    }
}

/* The chunk of i that has x or has to take it; MGR__RUSH_NONE: there is none at all. */
static uint32_t mgr__rush_chunk_of(const mgr__rush *rush, uint32_t i, uint32_t x)
{
    uint32_t found = MGR__RUSH_NONE, from = rush->chunks.last[i];
    if (from == MGR__RUSH_NONE || !rush->chunks.chunk[from].count || rush->chunks.chunk[from].part[0] > x) from = rush->chunks.first[i];
    for (uint32_t c = from; c != MGR__RUSH_NONE; c = rush->chunks.chunk[c].next) {
        const mgr__rush_chunk *chunk = rush->chunks.chunk + c;
        found = c;
        if (chunk->count && chunk->part[chunk->count - 1] >= x) break;
    }
    return found;
}

static void mgr__rush_list_remove(mgr__rush *rush, uint32_t i, uint32_t x)
{
    uint32_t c = mgr__rush_chunk_of(rush, i, x), n = 0;
    mgr__rush_chunk *chunk = rush->chunks.chunk + c;
    while (chunk->part[n] != x) n++;
    chunk->count--;
    rush->count[i]--;
    memmove(chunk->part + n, chunk->part + n + 1, (chunk->count - n) * sizeof *chunk->part);
}

/* Half of a chunk that is full goes into a new one. */
static void mgr__rush_chunk_halve(mgr__rush *rush, uint32_t i, uint32_t c)
{
    enum { HALF = MGR__RUSH_CHUNK / 2 };
    uint32_t more = mgr__rush_chunk_add(rush, i, c);
    mgr__rush_chunk *from = rush->chunks.chunk + c, *to = rush->chunks.chunk + more;
    memcpy(to->part, from->part + HALF, HALF * sizeof *to->part);
    from->count = to->count = HALF;
    memcpy(rush->chunks.ways + more * rush->chunks.words, rush->chunks.ways + c * rush->chunks.words,
           rush->chunks.words * sizeof *rush->chunks.ways);
}

/* x is owned by i already. */
static void mgr__rush_list_insert(mgr__rush *rush, uint32_t i, uint32_t x)
{
    if (rush->chunks.used == rush->chunks.room) { mgr__rush_list(rush); return; }
    uint32_t c = mgr__rush_chunk_of(rush, i, x);
    if (c == MGR__RUSH_NONE) c = mgr__rush_chunk_add(rush, i, c);
    mgr__rush_chunk *chunk = rush->chunks.chunk + c;
    if (chunk->count == MGR__RUSH_CHUNK) {
        mgr__rush_chunk_halve(rush, i, c);
        if (chunk->part[chunk->count - 1] < x) { c = chunk->next; chunk = rush->chunks.chunk + c; }
    }
    uint32_t n = chunk->count++;
    for (; n > 0 && chunk->part[n - 1] > x; n--) chunk->part[n] = chunk->part[n - 1];
    chunk->part[n] = x;
    rush->chunks.last[i] = c;
    rush->count[i]++;
    mgr__rush_chunk_ways(rush, c, x);
    mgr__rush_bits_add(rush->chunks.leads + i * rush->chunks.words, rush->chunks.ways + c * rush->chunks.words, rush->chunks.words);
}

/* One step of the search: where x may go that is new. Returns an instance with a
 * free seat, or none. */
static uint32_t mgr__rush_reach(mgr__rush *rush, uint32_t x, uint32_t *reached)
{
    uint64_t *fresh = rush->chunks.fresh;
    const uint64_t *ways = mgr__rush_ways(rush, x);
    for (size_t w = 0; w < rush->chunks.words; w++) {
        for (uint64_t bits = fresh[w] & ways[w]; bits; bits &= bits - 1) {
            uint32_t i = (uint32_t)w * 64 + (uint32_t)__builtin_ctzll(bits);
            mgr__rush_bit_clear(fresh, i);
            rush->via[i] = x;
            rush->queue[(*reached)++] = i;
            if (rush->count[i] < rush->seats[i]) return i;
        }
    }
    return MGR__RUSH_NONE;
}

/* The same for all that chunk c has. */
static uint32_t mgr__rush_reach_chunk(mgr__rush *rush, uint32_t c, uint32_t *reached)
{
    const mgr__rush_chunk *chunk = rush->chunks.chunk + c;
    const uint64_t *ways = rush->chunks.ways + c * rush->chunks.words;
    for (uint32_t n = 0; n < chunk->count; n++) {
        if (!mgr__rush_bits_meet(ways, rush->chunks.fresh, rush->chunks.words)) return MGR__RUSH_NONE;
        uint32_t to = mgr__rush_reach(rush, chunk->part[n], reached);
        if (to != MGR__RUSH_NONE) return to;
    }
    mgr__rush_chunk_ways_anew(rush, c);
    return MGR__RUSH_NONE;
}

/* The same for all that i holds. What says too much, is set right on the way. */
static uint32_t mgr__rush_reach_from(mgr__rush *rush, uint32_t i, uint32_t *reached)
{
    mgr__rush_chunks *chunks = &rush->chunks;
    uint64_t *leads = chunks->leads + i * chunks->words;
    if (!mgr__rush_bits_meet(leads, chunks->fresh, chunks->words)) return MGR__RUSH_NONE;
    for (uint32_t c = chunks->first[i]; c != MGR__RUSH_NONE; c = chunks->chunk[c].next) {
        if (!mgr__rush_bits_meet(chunks->ways + c * chunks->words, chunks->fresh, chunks->words)) continue;
        uint32_t to = mgr__rush_reach_chunk(rush, c, reached);
        if (to != MGR__RUSH_NONE) return to;
    }
    memset(leads, 0, chunks->words * sizeof *leads);
    for (uint32_t c = chunks->first[i]; c != MGR__RUSH_NONE; c = chunks->chunk[c].next)
        mgr__rush_bits_add(leads, chunks->ways + c * chunks->words, chunks->words);
    return MGR__RUSH_NONE;
}

/* Breadth first from x: returns an instance with a free seat, or none. `via`
 * then says through which partition each instance was reached; queue[0 ..
 * *reached-1] are those. Only what leads to a new instance is looked into, so
 * that a search costs no more than all chunks, and one of them for every instance. */
static uint32_t mgr__rush_seek(mgr__rush *rush, uint32_t x, uint32_t *reached)
{
    mgr__rush_chunks *chunks = &rush->chunks;
    memcpy(chunks->fresh, chunks->living, chunks->words * sizeof *chunks->fresh);
    *reached = 0;
    uint32_t to = mgr__rush_reach(rush, x, reached);
    for (uint32_t head = 0; to == MGR__RUSH_NONE && head < *reached; head++)
        to = mgr__rush_reach_from(rush, rush->queue[head], reached);
    return to;
}

static void mgr__rush_move(mgr__rush *rush, uint32_t x, uint32_t to)
{
    for (;;) {
        uint32_t moved = rush->via[to], from = rush->owner[moved];
        if (from != MGR__RUSH_NONE) mgr__rush_list_remove(rush, from, moved);
        rush->owner[moved] = to;
        mgr__rush_list_insert(rush, to, moved);
        if (moved == x) return;
        to = from;
    }
}

/* False if some partition stays without a seat. What a failed search reached
 * leads nowhere in later ones either, for no chain passes there any more. */
static bool mgr__rush_chains(mgr__rush *rush)
{
    bool all = true;
    if (!rush->chunks.ready) mgr__rush_bits(rush);
    memset(rush->dead, 0, rush->in->member_count);
    memset(rush->chunks.living, 0, rush->chunks.words * sizeof *rush->chunks.living);
    for (uint32_t i = 0; i < rush->in->member_count; i++)
        if (rush->group_of[i] == rush->group) mgr__rush_bit_set(rush->chunks.living, i);
    mgr__rush_list(rush);
    for (uint32_t x = 0; x < rush->in->partition_count; x++) {
        if (rush->part_group[x] != rush->group || rush->owner[x] != MGR__RUSH_NONE) continue;
        uint32_t reached, to = mgr__rush_seek(rush, x, &reached);
        if (to != MGR__RUSH_NONE) { mgr__rush_move(rush, x, to); continue; }
        for (uint32_t n = 0; n < reached; n++) {
            rush->dead[rush->queue[n]] = 1;
            mgr__rush_bit_clear(rush->chunks.living, rush->queue[n]);
        }
        all = false;
    }
    return all;
}

/* ---- by slots: the base ---- */

/* Close up the holes: slots stand in their order, so that each moves forward. */
static void mgr__rush_lists_pack(mgr__rush_lists *lists, size_t slots)
{
    size_t to = 0;
    for (size_t s = 0; s < slots; s++) {
        size_t from = lists->start[s], count = lists->count[s];
        memmove(lists->lo + to, lists->lo + from, count * sizeof *lists->lo);
        memmove(lists->hi + to, lists->hi + from, count * sizeof *lists->hi);
        memmove(lists->part + to, lists->part + from, count * sizeof *lists->part);
        lists->start[s] = (uint32_t)to;
        for (size_t end = to + count; to < end; to++) lists->place[lists->part[to]] = (uint32_t)to;
    }
    lists->used = to;
}

static void mgr__rush_lists_put(mgr__rush_lists *lists, size_t to, size_t from)
{
    lists->lo[to] = lists->lo[from];
    lists->hi[to] = lists->hi[from];
    lists->part[to] = lists->part[from];
    lists->place[lists->part[to]] = (uint32_t)to;
}

/* From slot s to the one that is being made, at the end; the last of s fills the hole. */
static void mgr__rush_lists_move(mgr__rush_lists *lists, uint32_t x, size_t s)
{
    size_t at = lists->place[x], last = lists->start[s] + --lists->count[s];
    mgr__rush_lists_put(lists, lists->used++, at);
    if (at != last) mgr__rush_lists_put(lists, at, last);
}

/* The smallest `wanted` of `count` different items, all below `limit`, to the front in
 * no order. Halves the range of values, not the items: draws are spread evenly, and
 * no names make it slower than 64 rounds. No branch on a draw: nobody could guess it. */
static void mgr__rush_smallest(uint64_t *items, size_t count, size_t wanted, uint64_t limit)
{
    size_t from = 0;
    uint64_t low = 0;
    if (wanted == 1) {
        for (size_t n = 1; n < count; n++) items[0] = items[n] < items[0] ? items[n] : items[0];
        return;
    }
    while (from < wanted && wanted < count) {
        uint64_t middle = low + (limit - low) / 2;
        size_t kept = from;
        for (size_t n = from; n < count; n++) {
            uint64_t item = items[n];
            items[n] = items[kept];
            items[kept] = item;
            kept += item < middle;
        }
        if (kept > wanted) { count = kept; limit = middle; }
        else { from = kept; low = middle; }
    }
}

/* The entries of the row's first `count` draws up to the limit, among the blocks
 * given, or in all of them: NULL. */
static size_t mgr__rush_lists_within(const mgr__rush_lists *lists, const uint32_t *part, size_t count, uint32_t limit,
                                     const uint32_t *blocks, size_t block_count, uint64_t *entries)
{
    size_t found = 0;
    for (size_t b = 0; b < block_count; b++) {
        size_t n = blocks ? blocks[b] : b * MGR__RUSH_LANES, end = n + MGR__RUSH_LANES < count ? n + MGR__RUSH_LANES : count;
        for (; n < end; n++) {
            uint32_t v = lists->lanes.row[n] ^ MGR__RUSH_BIAS;
            entries[found] = (uint64_t)v << 32 | part[n];
            found += v <= limit;
        }
    }
    return found;
}

/* Of slot s the `wanted` partitions with the smallest draws, as entries in rush->held.
 * The limit lets a few more than those through, as a rule: then the rest need not be
 * looked at. */
static void mgr__rush_lists_pick(mgr__rush *rush, uint64_t g, size_t s, uint32_t limit, size_t wanted)
{
    mgr__rush_lists *lists = &rush->lists;
    const uint32_t *part = lists->part + lists->start[s];
    size_t count = lists->count[s], all = (count + MGR__RUSH_LANES - 1) / MGR__RUSH_LANES;
    lists->lanes.lo = lists->lo + lists->start[s];
    lists->lanes.hi = lists->hi + lists->start[s];
    lists->lanes.count = all * MGR__RUSH_LANES;
    size_t blocks = mgr__rush_lanes_near(&lists->lanes, rush->avx2, g);
    size_t found = mgr__rush_lists_within(lists, part, count, limit, lists->lanes.blocks, blocks, rush->held);
    if (found < wanted) {
        limit = UINT32_MAX;
        found = mgr__rush_lists_within(lists, part, count, limit, NULL, all, rush->held);
    }
    mgr__rush_smallest(rush->held, found, wanted, (uint64_t)limit << 32 | UINT32_MAX);
}

static size_t mgr__rush_slot_share(size_t partitions, size_t slots, size_t s) { return partitions / slots + (s < partitions % slots); }

/* Slot j + 1 joins: what each older one has above its share goes there. While the
 * quotient stays the same those are the few between the old and the new remainder, and
 * it changes 2 sqrt(P) times: without that, 65,536 slots would take a second or two. */
static void mgr__rush_lists_join(mgr__rush *rush, size_t j)
{
    mgr__rush_lists *lists = &rush->lists;
    size_t parts = rush->in->partition_count, fewest = parts / j, gives = fewest + 1 - parts / (j + 1);
    size_t expected = gives + gives / 2 + 4;    /* draws within the limit */
    uint64_t g = mgr__mix64(j + 1);
    uint32_t limit = expected < fewest ? (uint32_t)(((uint64_t)1 << 32) / fewest * expected) : UINT32_MAX;
    for (size_t n = 0; n < fewest + 1 + MGR__RUSH_LANES && n < parts + MGR__RUSH_LANES; n++) lists->lanes.limit[n] = limit ^ MGR__RUSH_BIAS;
    if (lists->used + parts / (j + 1) > lists->room) mgr__rush_lists_pack(lists, j);
    lists->start[j] = (uint32_t)lists->used;
    bool few = parts / (j + 1) == fewest;
    for (size_t s = few ? parts % (j + 1) : 0, end = few ? parts % j : j; s < end; s++) {
        size_t wanted = lists->count[s] - mgr__rush_slot_share(parts, j + 1, s);
        if (!wanted) continue;
        mgr__rush_lists_pick(rush, g, s, limit, wanted);
        for (size_t n = 0; n < wanted; n++) mgr__rush_lists_move(lists, (uint32_t)rush->held[n], s);
    }
    lists->count[j] = (uint32_t)lists->used - lists->start[j];
}

/* Everything joins again, in the order of the slots. After as many slots as there
 * are partitions nothing is left to hand over; before, a slot that hands over one
 * is looked at whole, so that all of it costs no more than 2 P^1.5 draws. */
static void mgr__rush_replay(mgr__rush *rush)
{
    mgr__rush_lists *lists = &rush->lists;
    size_t parts = rush->in->partition_count;
    for (uint32_t x = 0; x < parts; x++) {
        lists->lo[x] = mgr__rush_fold(rush->hash[x]);
        lists->hi[x] = (uint32_t)(rush->hash[x] >> 32);
        lists->part[x] = lists->place[x] = x;
    }
    lists->count[0] = (uint32_t)parts;
    lists->used = parts;
    for (size_t j = 1; j < lists->slots && j < parts; j++) mgr__rush_lists_join(rush, j);
    for (size_t s = 0; s < lists->slots; s++)
        for (size_t n = 0; n < lists->count[s]; n++) rush->base[lists->part[lists->start[s] + n]] = rush->at_slot[s];
    rush->salt = MGR__RUSH_SLOT_SALT;
}

/* ---- the map ---- */

/* The instances that are too few become a group of their own. */
static void mgr__rush_split(mgr__rush *rush)
{
    uint32_t group = rush->group_count++;
    for (uint32_t x = 0; x < rush->in->partition_count; x++) {
        if (rush->part_group[x] != rush->group) continue;
        if (rush->owner[x] == MGR__RUSH_NONE || rush->dead[rush->owner[x]]) rush->part_group[x] = group;
    }
    for (uint32_t i = 0; i < rush->in->member_count; i++)
        if (rush->dead[i] && rush->group_of[i] == rush->group) rush->group_of[i] = group;
}

/* Match those that have no owner yet, each instance having seats up to `level`: what
 * it holds is counted, from earlier replicas and layers. */
static void mgr__rush_layer(mgr__rush *rush, uint64_t level)
{
    uint64_t seats = 0;
    size_t depth = 0;
    memset(rush->got, 0, rush->in->member_count * sizeof *rush->got);
    for (uint32_t x = 0; x < rush->in->partition_count; x++) {
        if (rush->part_group[x] != rush->group) continue;
        if (rush->owner[x] == MGR__RUSH_NONE) rush->stack[depth++] = x;
        else if (rush->owner[x] != MGR__RUSH_FAR) rush->got[rush->owner[x]]++;
    }
    for (uint32_t i = 0; i < rush->in->member_count; i++) {
        uint64_t held = rush->total[i] + rush->got[i], most = rush->total[i] + rush->quota[i];
        if (most > level) most = level;
        rush->seats[i] = most > held ? (uint32_t)(most - held) : 0;
        rush->count[i] = 0;
        seats += rush->seats[i];
    }
    if (!seats) return;
    MGR_ASSERT(seats <= rush->in->partition_count || seats <= rush->in->member_count);    /* as many as held has room for */
    mgr__rush_gates(rush);
    mgr__rush_match(rush, depth);
}

/* Those that nobody's reach includes, found once for all layers. */
static void mgr__rush_leave_far(mgr__rush *rush)
{
    for (uint32_t i = 0; i < rush->in->member_count; i++) rush->seats[i] = rush->quota[i];
    mgr__rush_gates(rush);
    for (uint32_t x = 0; x < rush->in->partition_count; x++)
        if (rush->part_group[x] == rush->group && !mgr__rush_kernel_near(rush, rush->hash[x])) rush->owner[x] = MGR__RUSH_FAR;
}

/* The layers of one seat each, for the pairs that are within reach: specification, 3. */
static void mgr__rush_layers(mgr__rush *rush, size_t parts)
{
    const uint64_t open = rush->open_count, end = 4 * MGR__RUSH_LAYERS * open, fading = 3 * MGR__RUSH_LAYERS * open;
    if (rush->in->slots || rush->sum >= end) return;
    uint64_t reach = ((end - rush->sum < fading ? end - rush->sum : fading) << 34) / (3 * parts * open);
    for (size_t n = 0; n < open; n++) {
        uint32_t i = rush->open[n];
        /* The product is below 2^64, for reach is below 2^32, and so is the rest of it. */
        uint64_t own = reach > UINT32_MAX ? reach : reach * rush->weight[i] * open / rush->weights;
        rush->open_bar[i] = own > UINT32_MAX ? MGR__RUSH_FREE : own << 32;
    }
    uint64_t layers = rush->spare ? rush->sum / open : (uint64_t)MGR__RUSH_LAYERS;
    if (reach * open < (uint64_t)1 << 32) mgr__rush_leave_far(rush);   /* less than one pair each: it pays */
    rush->short_reach = true;
    for (uint64_t level = 1; level <= layers; level++) mgr__rush_layer(rush, level);
    rush->short_reach = false;
    for (uint32_t x = 0; x < rush->in->partition_count; x++) if (rush->owner[x] == MGR__RUSH_FAR) rush->owner[x] = MGR__RUSH_NONE;
}

/* Give out all seats up to `level`. False: with some of them free there are
 * partitions whose searches did not reach any; `dead` are the instances they reached. */
static bool mgr__rush_fill(mgr__rush *rush, uint64_t level)
{
    bool left = false, vacant = false;
    for (uint32_t i = 0; i < rush->in->member_count; i++) rush->open_bar[i] = MGR__RUSH_FREE;
    mgr__rush_layer(rush, level);
    for (uint32_t x = 0; x < rush->in->partition_count; x++)
        left |= rush->part_group[x] == rush->group && rush->owner[x] == MGR__RUSH_NONE;
    for (uint32_t i = 0; i < rush->in->member_count; i++) {
        vacant |= rush->count[i] < rush->seats[i];
        rush->seats[i] += rush->got[i];
    }
    if (!left || !vacant || mgr__rush_chains(rush)) return true;
    for (uint32_t i = 0; i < rush->in->member_count; i++) if (rush->count[i] < rush->seats[i]) return false;
    return true;
}

/* False: the group was split and has to be matched again. */
static bool mgr__rush_solve(mgr__rush *rush)
{
    size_t parts = 0;
    for (uint32_t x = 0; x < rush->in->partition_count; x++) {
        if (rush->part_group[x] != rush->group) continue;
        rush->owner[x] = MGR__RUSH_NONE;
        parts++;
    }
    if (!parts) return true;
    mgr__rush_share(rush, parts);
    mgr__rush_layers(rush, parts);
    /* The full layers first: else the keys might fill the top one and leave holes below. */
    bool full = !rush->spare || mgr__rush_fill(rush, rush->sum / rush->open_count);
    if (full && mgr__rush_fill(rush, UINT64_MAX)) return true;
    mgr__rush_split(rush);
    return false;
}

static void mgr__rush_replica(mgr__rush *rush)
{
    uint32_t able = 0;
    for (uint32_t i = 0; i < rush->in->member_count; i++) {
        able += rush->weight[i] != 0;
        rush->group_of[i] = rush->weight[i] ? 0 : MGR__RUSH_NONE;
    }
    for (uint32_t x = 0; x < rush->in->partition_count; x++) {
        rush->owner[x] = MGR__RUSH_NONE;
        rush->part_group[x] = mgr__rush_mark_excluded(rush, x) < able ? 0 : MGR__RUSH_NONE;
    }
    rush->group_count = 1;
    for (rush->group = 0; rush->group < rush->group_count; rush->group++)
        while (!mgr__rush_solve(rush)) { }
    for (uint32_t x = 0; x < rush->in->partition_count; x++) {
        uint32_t i = rush->owner[x];
        size_t at = (size_t)rush->part_at[x] * rush->in->replicas + rush->replica;
        rush->in->owners[at] = i == MGR__RUSH_NONE ? MGR_RUSH_NOBODY : rush->member_at[i];
        if (i != MGR__RUSH_NONE) rush->total[i]++;
    }
}

static mgr_result mgr__rush_check(const mgr__rush_input *in)
{
    if (in->partition_count > MGR_PARTITION_COUNT_MAX || in->member_count > MGR_MEMBER_COUNT_MAX) return MGR_LIMIT;
    if (in->replicas > MGR_MEMBER_COUNT_MAX || in->refused_count > UINT32_MAX / 2) return MGR_LIMIT;
    if (!in->replicas) return MGR_INVALID;
    for (size_t i = 0; i < in->member_count; i++)
        if (mgr__rush_weight(in, i) > MGR__RUSH_WEIGHT_MAX) return MGR_LIMIT;
    if (in->slots && mgr__rush_slots_max(in) > MGR__RUSH_SLOT_MAX) return MGR_LIMIT;
    for (size_t i = 0; in->slots && i < in->member_count; i++)
        if (mgr__rush_weight(in, i) && !in->slots[i]) return MGR_INVALID;
    for (size_t n = 0; n < in->refused_count; n++)
        if (in->refused[n].partition >= in->partition_count || in->refused[n].member >= in->member_count) return MGR_INVALID;
    return MGR_OK;
}

static mgr_result mgr__rush_run(mgr__heap *heap, const mgr__rush_input *in)
{
    mgr__rush rush;
    mgr_result result = mgr__rush_check(in);
    if (result != MGR_OK) return result;
    memset(&rush, 0, sizeof rush);
    rush.in = in;
    size_t slots = mgr__rush_slots_max(in);
    mgr__rush_layout(&rush, in->partition_count, in->member_count, in->replicas, in->refused_count, slots);
    char *block = rush.block = (char *)mgr__alloc(heap, rush.used);
    if (!block) return MGR_NO_MEMORY;
    mgr__rush_layout(&rush, in->partition_count, in->member_count, in->replicas, in->refused_count, slots);
#ifdef MGR__RUSH_AVX2
    rush.avx2 = MGR__RUSH_HAS_AVX2();
#endif
    result = mgr__rush_order_partitions(&rush);
    if (result == MGR_OK) result = in->slots ? mgr__rush_order_slots(&rush) : mgr__rush_order_members(&rush);
    if (result == MGR_OK) {
        if (slots) mgr__rush_replay(&rush);
        for (size_t i = 0; i < rush.lanes.count; i++) mgr__rush_close(&rush, (uint32_t)i);
        mgr__rush_refusals(&rush);
        for (; rush.replica < in->replicas; rush.replica++) mgr__rush_replica(&rush);
    }
    mgr__free(heap, block);
    return result;
}

/* What [cluster] calls. The views need not be terminated; nothing is kept.
 * slots: the policy of that name, and weights count only as none or one; NULL: rush. */
static mgr_result mgr__rush_map(mgr__heap *heap, const mgr__str *partitions, size_t partition_count,
                                const mgr__str *ids, const uint32_t *weights, size_t member_count,
                                uint32_t replicas, const mgr_refusal *refused, size_t refused_count,
                                const uint32_t *slots, uint32_t *owners)
{
    mgr__rush_input in;
    memset(&in, 0, sizeof in);
    in.slots = slots;
    in.partitions.views = partitions;
    in.ids.views = ids;
    in.weights = weights;
    in.partition_count = partition_count;
    in.member_count = member_count;
    in.replicas = replicas;
    in.refused = refused;
    in.refused_count = refused_count;
    in.owners = owners;
    return mgr__rush_run(heap, &in);
}

/* Refusals that leave a way to even quotas cost next to nothing. Of those that are
 * staggered, so that every other partition needs a long chain of moves, each that is
 * left over costs a 24th of the partitions at most, and each instance that turns out
 * to be too full may have everything matched once more: 5 to 40 ms for 4,096
 * partitions on 50 instances, about 0.1 s on 500 with three left for each; up to a
 * second for 65,536 on 100, and 4 to 8 for 65,536 on 1,000. That many pairs do not fit
 * into an answer of Consul (MGR_BODY_BYTES_MAX: some 5 million do, which is a second).
 * Pairs may be repeated, and may name members without weight. */
MGRAPI mgr_result mgr_rush_map_refusing(const char *const *partitions, size_t partition_count,
                                        const mgr_member *members, size_t member_count,
                                        uint32_t replicas, const mgr_refusal *refused, size_t refused_count,
                                        uint32_t *owners)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__rush_input in;
    if ((partition_count && (!partitions || !owners)) || (member_count && !members) || (refused_count && !refused))
        return MGR_INVALID;
    memset(&in, 0, sizeof in);
    in.partitions.texts = partitions;
    in.ids.members = members;
    in.partition_count = partition_count;
    in.member_count = member_count;
    in.replicas = replicas;
    in.refused = refused;
    in.refused_count = refused_count;
    in.owners = owners;
    return mgr__rush_run(&heap, &in);
}

/* A member's `joined` does not enter: the map depends on ids and weights alone.
 * Replicas beyond the members with weight are MGR_RUSH_NOBODY, and so is
 * everything where there is no member. MGR_INVALID also for 0 replicas,
 * MGR_LIMIT also for weights over 65535. owners is not defined after a failure. */
MGRAPI mgr_result mgr_rush_map(const char *const *partitions, size_t partition_count,
                               const mgr_member *members, size_t member_count,
                               uint32_t replicas, uint32_t *owners)
{
    return mgr_rush_map_refusing(partitions, partition_count, members, member_count, replicas, NULL, 0, owners);
}

/* Without refusals, which need up to 12 bytes each, 4 a partition and what a second
 * replica needs. Does not grow with the replicas from there on. */
MGRAPI size_t mgr_rush_map_bytes(size_t partition_count, size_t member_count, uint32_t replicas)
{
    mgr__rush rush;
    memset(&rush, 0, sizeof rush);
    mgr__rush_layout(&rush, partition_count, member_count, replicas, 0, 0);
    return rush.used + MGR__HEAP_PREFIX;
}

/* Ids and `joined` do not enter, and the slot of a member without weight is not
 * looked at. Where nobody has weight everything is nobody's. */
MGRAPI mgr_result mgr_rush_slots(const char *const *partitions, size_t partition_count,
                                 const mgr_member *members, const uint32_t *slots, size_t member_count,
                                 const mgr_refusal *refused, size_t refused_count, uint32_t *owners)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__rush_input in;
    uint32_t common = 0;
    if ((partition_count && (!partitions || !owners)) || (member_count && (!members || !slots)) || (refused_count && !refused))
        return MGR_INVALID;
    for (size_t i = 0; i < member_count; i++) {
        if (!members[i].weight) continue;
        if (common && members[i].weight != common) return MGR_INVALID;
        common = members[i].weight;
    }
    memset(&in, 0, sizeof in);
    in.partitions.texts = partitions;
    in.ids.members = members;
    in.slots = member_count ? slots : &common;     /* any but NULL */
    in.partition_count = partition_count;
    in.member_count = member_count;
    in.replicas = 1;
    in.refused = refused;
    in.refused_count = refused_count;
    in.owners = owners;
    return mgr__rush_run(&heap, &in);
}

MGRAPI size_t mgr_rush_slots_bytes(size_t partition_count, size_t member_count, uint32_t slot_max)
{
    mgr__rush rush;
    memset(&rush, 0, sizeof rush);
    mgr__rush_layout(&rush, partition_count, member_count, 1, 0, slot_max);
    return rush.used + MGR__HEAP_PREFIX;
}

/* ---- RUSH_R: one object, by the history of the servers ----
 *
 *   seed(x, j, a) = mix64(x ^ mix64(2 j + a)); its numbers are mix64(seed + 0), mix64(seed + 1), ...
 *   l = R; for j = newest .. oldest while l > 0:    n, n' servers and weight older than j
 *     t = max(0, l - n)
 *     u = t + the hits among l - t draws without replacement from urn (m - t) w, n';
 *         a miss takes away the mean weight of the older servers
 *     u distinct servers of j, the beginning of a shuffle by seed(x, j, 1); l -= u
 *
 * As in the paper, except that t servers weigh t w (the paper takes t from the
 * weight, which is the same for w = 1). */

/* floor(a * b / 2^64) */
static uint64_t mgr__rush_high(uint64_t a, uint64_t b)
{
    uint64_t a0 = a & 0xffffffffu, a1 = a >> 32, b0 = b & 0xffffffffu, b1 = b >> 32;
    uint64_t low = a0 * b0, mid = a1 * b0 + (low >> 32), rest = a0 * b1 + (mid & 0xffffffffu);
    return a1 * b1 + (mid >> 32) + (rest >> 32);
}

static uint64_t mgr__rush_seed(uint64_t object, size_t j, uint64_t use)
{
    return mgr__mix64(object ^ mgr__mix64(2 * (uint64_t)j + use));
}

/* Hits among `draws`; the urn holds `marked` servers of weight w and `others`
 * of other_weight together. Weights below 2^48 in all, servers below 2^32. */
static uint32_t mgr__rush_hits(uint64_t seed, uint32_t draws, uint32_t marked, uint32_t w, uint32_t others, uint64_t other_weight)
{
    uint32_t hits = 0, misses = 0;
    for (uint32_t d = 0; d < draws; d++) {
        uint64_t ours = (uint64_t)(marked - hits) * w;
        uint64_t left = others - misses;
        uint64_t theirs = others ? left * (other_weight / others) + left * (other_weight % others) / others : 0;
        if (mgr__rush_high(mgr__mix64(seed + d), ours + theirs) < ours) hits++;
        else misses++;
    }
    return hits;
}

/* The first `count` of a shuffle of 0 .. of-1, plus base. Swap k exchanges k
 * with some r_k >= k; a server's number is found by following the swaps back,
 * which needs no memory, and time count^2. A shorter beginning is a prefix: so
 * servers that are added later only take replicas away. */
static void mgr__rush_shuffle(uint64_t seed, uint32_t count, uint32_t of, uint32_t base, uint32_t *servers)
{
    for (uint32_t k = 0; k < count; k++) servers[k] = k + (uint32_t)mgr__rush_high(mgr__mix64(seed + k), of - k);
    for (uint32_t k = count; k-- > 0; ) {
        uint32_t at = servers[k];
        for (uint32_t s = k; s-- > 0; ) if (servers[s] == at) at = s;
        servers[k] = at + base;
    }
}

/* Servers of weight 0 receive nothing. MGR_INVALID: no replicas; MGR_LIMIT:
 * more than 2^32 - 1 servers, or weights over 65535; MGR_UNPLACEABLE: fewer
 * servers with weight than replicas. Needs no memory; time C R + R^2 at most, for the
 * draws are made one by one, and so are the servers of one sub-cluster. */
MGRAPI mgr_result mgr_rush_locate(uint64_t object, const mgr_subcluster *subclusters, size_t subcluster_count,
                                  uint32_t replicas, uint32_t *servers)
{
    uint64_t all = 0, able = 0, weight = 0;
    if (!replicas || !servers || (subcluster_count && !subclusters)) return MGR_INVALID;
    for (size_t j = 0; j < subcluster_count; j++) {
        const mgr_subcluster *sub = subclusters + j;
        all += sub->server_count;
        if (all > UINT32_MAX || sub->weight > MGR__RUSH_WEIGHT_MAX) return MGR_LIMIT;
        if (sub->weight) able += sub->server_count;
        weight += (uint64_t)sub->server_count * sub->weight;
    }
    if (able < replicas) return MGR_UNPLACEABLE;
    uint32_t left = replicas;
    for (size_t j = subcluster_count; j-- > 0 && left; ) {
        const mgr_subcluster *sub = subclusters + j;
        all -= sub->server_count;
        if (!sub->weight || !sub->server_count) continue;
        able -= sub->server_count;
        weight -= (uint64_t)sub->server_count * sub->weight;
        uint32_t forced = left > able ? left - (uint32_t)able : 0;
        uint32_t taken = forced + mgr__rush_hits(mgr__rush_seed(object, j, 0), left - forced, sub->server_count - forced,
                                                 sub->weight, (uint32_t)able, weight);
        mgr__rush_shuffle(mgr__rush_seed(object, j, 1), taken, sub->server_count, (uint32_t)all, servers);
        servers += taken;
        left -= taken;
    }
    return MGR_OK;
}

/* ============================================================================
 * [cluster] The state machine of one instance: what the cluster does
 * what:  events in (pictures, answers, exits, wishes, time), actions out
 *        (requests, begin and end work, set the lease); pure: no clock, no
 *        descriptor, no process id, so that a thousand run in one test
 * owns:  mgr__cluster
 * calls: [rush] [json] [base]
 * ========================================================================== */

/* ---- what is asked of Consul, and what it answers ---- */

typedef enum mgr__verb {
    MGR__SET, MGR__CAS, MGR__LOCK, MGR__UNLOCK, MGR__DELETE_CAS,
    MGR__CHECK_INDEX, MGR__CHECK_SESSION, MGR__CHECK_ABSENT, MGR__GET, MGR__GET_TREE
} mgr__verb;

/* One operation of a transaction; index 0 in a CAS means "create". */
typedef struct mgr__op {
    mgr__verb verb;
    mgr__str  key;          /* whole, as it stands in the store */
    mgr__str  value;
    mgr__str  session;
    uint64_t  index;
} mgr__op;

enum { MGR__TXN_OPS_MAX = 64 };   /* Consul 1.8; 128 from 1.14 */

/* An entry of the store. The views point into the answer's body. */
typedef struct mgr__kv {
    mgr__str key, value;
    mgr__str session;       /* "": not locked */
    uint64_t create_index, modify_index, lock_index;
} mgr__kv;

typedef enum mgr__ask {
    MGR__ASK_TXN,               /* ops; linearizable, also when it only reads */
    MGR__ASK_WATCH,             /* all keys below `key`; index > 0: once they changed since, or wait_ms passed */
    MGR__ASK_LIST,              /* all keys below `key`, linearizable, at once */
    MGR__ASK_SESSION_CREATE,    /* name, session_ttl_ms, check_id -> session */
    MGR__ASK_SESSION_RENEW,
    MGR__ASK_SESSION_DESTROY,
    MGR__ASK_SESSION_LIST,      /* linearizable -> kvs: key = the session's name, session = its id */
    MGR__ASK_AGENT_SELF,        /* -> node: the agent's node name */
    MGR__ASK_AGENT_JOIN,        /* name = address */
    MGR__ASK_SERVICE_REGISTER,  /* body = the whole JSON */
    MGR__ASK_SERVICE_DEREGISTER,/* name = Consul service id, on our own agent */
    MGR__ASK_CATALOG_DEREGISTER,/* name = Consul service id, node */
    MGR__ASK_CHECK_REGISTER,    /* body = the whole JSON */
    MGR__ASK_CHECK_DEREGISTER,  /* name = check id */
    MGR__ASK_CHECK_UPDATE,      /* name = check id, status, note */
    MGR__ASK_CHECK_LIST         /* of our own agent -> kvs: key = check id, value = status */
} mgr__ask;

typedef enum mgr__lane { MGR__LANE_WATCH, MGR__LANE_LEASE, MGR__LANE_WORK, MGR__LANE_COUNT } mgr__lane;

/* Of a check; the numbers are those that users see in mgr_event. */
typedef enum mgr__health { MGR__HEALTH_PASSING = 0, MGR__HEALTH_WARNING = 1, MGR__HEALTH_CRITICAL = 2 } mgr__health;

/* Consul's words. */
static const char *mgr__health_word(mgr__health health)
{
    return health == MGR__HEALTH_PASSING ? "passing" : health == MGR__HEALTH_WARNING ? "warning" : "critical";
}

typedef struct mgr__request {
    mgr__ask    ask;
    mgr__lane   lane;           /* one request is out per lane at a time */
    mgr__op     ops[MGR__TXN_OPS_MAX];
    size_t      op_count;
    mgr__str    key, name, session, check_id, node, body, note;
    mgr__health status;         /* CHECK_UPDATE */
    uint64_t    index;
    uint32_t    wait_ms;
    uint32_t    session_ttl_ms;
    mgr__arena  arena;          /* owns what the views above point to */
} mgr__request;

typedef enum mgr__outcome {
    MGR__OUTCOME_OK,
    MGR__OUTCOME_CONFLICT,      /* 409: a condition of the transaction does not hold; nothing was applied */
    MGR__OUTCOME_NOT_FOUND,     /* 404: no such key, session, check */
    MGR__OUTCOME_DENIED,        /* 403, or a transaction refused for a missing right */
    MGR__OUTCOME_REJECTED,      /* another 4xx: the request is wrong; nothing was applied */
    MGR__OUTCOME_UNSENT,        /* no byte reached an agent */
    MGR__OUTCOME_UNKNOWN        /* sent, but no whole answer, a 5xx, or a malformed one: it may land, now or later */
} mgr__outcome;

typedef struct mgr__answer {
    mgr__outcome outcome;
    int          status;        /* of HTTP; 0: no answer came */
    uint64_t     index;         /* X-Consul-Index, 0 if absent */
    bool         no_leader;     /* X-Consul-KnownLeader: false */
    mgr__kv     *kvs;           /* LIST, WATCH, SESSION_LIST; TXN: one per op that yields an entry, in order */
    size_t       kv_count;
    uint32_t     failed[MGR__TXN_OPS_MAX];   /* CONFLICT: indices of the ops that failed, as far as Consul names them */
    size_t       failed_count;
    mgr__str     session;       /* SESSION_CREATE */
    mgr__str     node;          /* AGENT_SELF, both */
    mgr_agent_view agent;
    mgr__str     text;          /* what Consul, or the connection, said: for messages */
} mgr__answer;

/* It was carried out, or a condition kept it from being. */
static bool mgr__answer_decided(const mgr__answer *a) { return a->outcome == MGR__OUTCOME_OK || a->outcome == MGR__OUTCOME_CONFLICT; }

static bool mgr__answer_refused(const mgr__answer *a) { return a->outcome == MGR__OUTCOME_DENIED || a->outcome == MGR__OUTCOME_REJECTED; }

/* Consul has answered: else nobody knows whether it was carried out. */
static bool mgr__answer_came(const mgr__answer *a) { return a->outcome != MGR__OUTCOME_UNSENT && a->outcome != MGR__OUTCOME_UNKNOWN; }

/* ---- keys: manager/<service>/<rest>, names escaped ---- */

typedef struct mgr__root {      /* of all keys of one service; terminated by '/' */
    char   text[MGR_NAME_BYTES_MAX * 3 + MGR_NAME_BYTES_MAX + 3];
    size_t len;
} mgr__root;

static bool mgr__root_make(mgr__root *root, mgr__heap *heap, mgr__str prefix, mgr__str service_id)
{
    mgr__buf key;
    mgr__buf_init(&key, heap, sizeof root->text - 1);
    mgr__buf_str(&key, prefix);
    mgr__buf_char(&key, '/');
    mgr__key_escape(&key, service_id);
    mgr__buf_char(&key, '/');
    bool ok = !key.failed;
    if (ok) mgr__copy_text(root->text, sizeof root->text, mgr__buf_view(&key));
    root->len = ok ? key.len : 0;
    mgr__buf_free(&key);
    return ok;
}

static mgr__str mgr__nobody(void) { return mgr__str_of(""); }

/* root + below + escaped name, in the arena. */
static mgr__str mgr__key_make(mgr__arena *arena, const mgr__root *root, const char *below, mgr__str name)
{
    mgr__buf key;
    mgr__buf_init(&key, arena->heap, sizeof root->text + 64 + MGR_NAME_BYTES_MAX * 3);
    mgr__buf_add(&key, root->text, root->len);
    mgr__buf_text(&key, below);
    mgr__key_escape(&key, name);
    if (key.failed) arena->failed = true;
    mgr__str made = mgr__arena_str(arena, mgr__buf_view(&key));
    mgr__buf_free(&key);
    return made;
}

/* A key, or a folder, that names nobody. */
static mgr__str mgr__key_fixed(mgr__arena *arena, const mgr__root *root, const char *below)
{
    return mgr__key_make(arena, root, below, mgr__nobody());
}

/* Is `key` root + below + something? Then *rest is the something. */
static bool mgr__key_below(mgr__str key, const mgr__root *root, const char *below, mgr__str *rest)
{
    if (key.len < root->len || memcmp(key.at, root->text, root->len) != 0) return false;
    *rest = mgr__str_skip(key, root->len);
    if (!mgr__str_starts(*rest, below)) return false;
    *rest = mgr__str_skip(*rest, strlen(below));
    return true;
}

static bool mgr__key_name(mgr__arena *arena, mgr__str escaped, mgr__str *name)
{
    mgr__buf out;
    mgr__buf_init(&out, arena->heap, MGR_NAME_BYTES_MAX);
    bool ok = mgr__key_unescape(&out, escaped) && !mgr__name_fault(mgr__buf_view(&out));
    if (ok) *name = mgr__arena_str(arena, mgr__buf_view(&out));
    mgr__buf_free(&out);
    return ok;
}

/* ---- sets of partitions ---- */

enum { MGR__SET_BYTES_MAX = 390000 };     /* of its text: Consul refuses values of 394,000 bytes */

enum { MGR__HASH_BYTES = 17 };            /* 64 bits in hexadecimal, and a terminator */

typedef struct mgr__set {
    mgr__arena arena;
    mgr__str  *names;           /* sorted by bytes, distinct */
    size_t     count;
    char       hash[MGR__HASH_BYTES]; /* names the set: sets/<hash> */
} mgr__set;

static int mgr__name_order(const void *a, const void *b) { return mgr__str_order(*(const mgr__str *)a, *(const mgr__str *)b); }

static void mgr__set_hash(mgr__set *set)
{
    uint64_t h = mgr__mix64(set->count);
    for (size_t i = 0; i < set->count; i++) h = mgr__mix64(h ^ mgr__hash(set->names[i]));
    snprintf(set->hash, sizeof set->hash, "%016llx", (unsigned long long)h);
}

/* Sort and check; on a fault *bad is the name and the result says what is wrong. */
static const char *mgr__set_seal(mgr__set *set, mgr__str *bad)
{
    if (set->arena.failed) return "does not fit in memory";
    if (set->count) qsort(set->names, set->count, sizeof *set->names, mgr__name_order);
    for (size_t i = 0; i < set->count; i++) {
        *bad = set->names[i];
        const char *fault = mgr__name_fault(set->names[i]);
        if (fault) return fault;
        if (i && mgr__str_eq(set->names[i - 1], set->names[i])) return "is listed twice";
    }
    mgr__set_hash(set);
    return NULL;
}

static const char *mgr__set_make(mgr__set *set, mgr__heap *heap, const char *const *names, size_t count, mgr__str *bad)
{
    memset(set, 0, sizeof *set);
    mgr__arena_init(&set->arena, heap);
    *bad = mgr__str_of(count ? names[0] : "");
    if (count > MGR_PARTITION_COUNT_MAX) return "stands in a list of more than MGR_PARTITION_COUNT_MAX names";
    set->names = (mgr__str *)mgr__arena_alloc(&set->arena, (count + 1) * sizeof *set->names);
    if (!set->names) return "does not fit in memory";
    for (size_t i = 0; i < count; i++) set->names[set->count++] = mgr__arena_str(&set->arena, mgr__str_of(names[i]));
    return mgr__set_seal(set, bad);
}

static void mgr__set_free(mgr__set *set)
{
    mgr__arena_free(&set->arena);
    set->names = NULL;
    set->count = 0;
    set->hash[0] = 0;
}

/* Where the name stands in it; NULL: nowhere. */
static const mgr__str *mgr__set_find(const mgr__set *set, mgr__str name)
{
    return set->count ? (const mgr__str *)bsearch(&name, set->names, set->count, sizeof *set->names, mgr__name_order) : NULL;
}

static bool mgr__set_has(const mgr__set *set, mgr__str name) { return mgr__set_find(set, name) != NULL; }

/* "17" as a number that prints as "17" again, else -1. */
static int64_t mgr__name_number(mgr__str name)
{
    if (!name.len || name.len > 9 || (name.len > 1 && name.at[0] == '0')) return -1;
    int64_t value = 0;
    for (size_t i = 0; i < name.len; i++) {
        if (name.at[i] < '0' || name.at[i] > '9') return -1;
        value = value * 10 + (name.at[i] - '0');
    }
    return value;
}

static int mgr__number_order(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* ["a",[0,15]]: numbers as ranges, everything else by name. */
static void mgr__set_write(const mgr__set *set, mgr__heap *heap, mgr__buf *out)
{
    int64_t *numbers = (int64_t *)mgr__alloc_array(heap, set->count + 1, sizeof *numbers);
    size_t number_count = 0;
    if (!numbers) { out->failed = true; return; }
    mgr__jw jw;
    mgr__jw_init(&jw, out);
    mgr__jw_array(&jw);
    for (size_t i = 0; i < set->count; i++) {
        int64_t number = mgr__name_number(set->names[i]);
        if (number >= 0) numbers[number_count++] = number;
        else mgr__jw_str(&jw, set->names[i]);
    }
    if (number_count) qsort(numbers, number_count, sizeof *numbers, mgr__number_order);
    for (size_t i = 0; i < number_count;) {
        size_t last = i;
        while (last + 1 < number_count && numbers[last + 1] == numbers[last] + 1) last++;
        mgr__jw_array(&jw);
        mgr__jw_i64(&jw, numbers[i]);
        mgr__jw_i64(&jw, numbers[last]);
        mgr__jw_array_end(&jw);
        i = last + 1;
    }
    mgr__jw_array_end(&jw);
    mgr__free(heap, numbers);
}

/* Take the items of one stored set; without `store` they are only counted. False: malformed. */
static bool mgr__set_items(mgr__set *set, mgr__str text, mgr__buf *scratch, bool store)
{
    mgr__json j;
    mgr__json_init(&j, text);
    set->count = 0;
    if (!mgr__json_array(&j)) return false;
    while (mgr__json_item(&j)) {
        if (mgr__json_peek(&j) != MGR__JSON_ARRAY) {
            mgr__buf_clear(scratch);
            mgr__str name = mgr__json_string(&j, scratch);
            if (store) set->names[set->count] = mgr__arena_str(&set->arena, name);
            set->count++;
        } else {
            mgr__json_array(&j);
            int64_t range[2] = {0, -1};
            for (int i = 0; mgr__json_item(&j); i++) { int64_t v = mgr__json_i64(&j); if (i < 2) range[i] = v; }
            if (range[0] < 0 || range[1] < range[0] || range[1] - range[0] >= MGR_PARTITION_COUNT_MAX) return false;
            for (int64_t n = range[0]; n <= range[1]; n++, set->count++) {
                char digits[24];
                snprintf(digits, sizeof digits, "%lld", (long long)n);
                if (store) set->names[set->count] = mgr__arena_str(&set->arena, mgr__str_of(digits));
            }
        }
        if (set->count > MGR_PARTITION_COUNT_MAX) return false;
    }
    return mgr__json_end(&j);
}

/* Read a stored set. False: malformed, or out of memory. */
static bool mgr__set_read(mgr__set *set, mgr__heap *heap, mgr__str text)
{
    mgr__buf scratch;
    mgr__str bad;
    memset(set, 0, sizeof *set);
    mgr__arena_init(&set->arena, heap);
    mgr__buf_init(&scratch, heap, text.len + MGR_NAME_BYTES_MAX);
    bool ok = mgr__set_items(set, text, &scratch, false);
    if (ok) set->names = (mgr__str *)mgr__arena_alloc(&set->arena, (set->count + 1) * sizeof *set->names);
    ok = ok && set->names && mgr__set_items(set, text, &scratch, true) && !mgr__set_seal(set, &bad);
    mgr__buf_free(&scratch);
    if (!ok) mgr__set_free(set);
    return ok;
}

/* ---- the marker cluster/partitions: which set is in force ---- */

enum { MGR__REPLACED_MAX = 16 };

typedef struct mgr__marker {
    char     replaced[MGR__REPLACED_MAX][MGR__HASH_BYTES]; /* hashes of former sets, newest first: to start with one is no wish for it */
    bool     exists;
    char     hash[MGR__HASH_BYTES]; /* "": a first set is being made */
    uint64_t version;
    uint64_t count;
    uint64_t delay_max_ms;      /* the longest delay that any instance has used */
    uint64_t fence_base;
    uint64_t modify_index;
    char     placement[16];
    uint64_t placement_version;
} mgr__marker;

static void mgr__marker_write(const mgr__marker *marker, mgr__buf *out)
{
    mgr__jw jw;
    mgr__jw_init(&jw, out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "hash");              mgr__jw_text(&jw, marker->hash);
    mgr__jw_key(&jw, "count");             mgr__jw_u64(&jw, marker->count);
    mgr__jw_key(&jw, "version");           mgr__jw_u64(&jw, marker->version);
    mgr__jw_key(&jw, "placement");         mgr__jw_text(&jw, marker->placement);
    mgr__jw_key(&jw, "placement_version"); mgr__jw_u64(&jw, marker->placement_version);
    mgr__jw_key(&jw, "delay_max");         mgr__jw_u64(&jw, marker->delay_max_ms);
    mgr__jw_key(&jw, "fence_base");        mgr__jw_u64(&jw, marker->fence_base);
    mgr__jw_key(&jw, "replaced");
    mgr__jw_array(&jw);
    for (int i = 0; i < MGR__REPLACED_MAX && marker->replaced[i][0]; i++) mgr__jw_text(&jw, marker->replaced[i]);
    mgr__jw_array_end(&jw);
    mgr__jw_object_end(&jw);
}

static void mgr__marker_read_replaced(mgr__marker *marker, mgr__json *j, mgr__buf *scratch)
{
    int i = 0;
    if (!mgr__json_array(j)) return;
    while (mgr__json_item(j)) {
        mgr__str hash = mgr__json_string(j, scratch);
        if (i < MGR__REPLACED_MAX && hash.len) mgr__copy_text(marker->replaced[i++], sizeof marker->replaced[0], hash);
    }
}

static bool mgr__marker_was_replaced(const mgr__marker *marker, const char *hash)
{
    for (int i = 0; i < MGR__REPLACED_MAX; i++) if (strcmp(marker->replaced[i], hash) == 0) return true;
    return false;
}

/* `hash` comes into force: it is no longer among the replaced, and the old one is. */
static void mgr__marker_replace(mgr__marker *marker, const char *hash)
{
    mgr__marker old = *marker;
    int n = 0;
    memset(marker->replaced, 0, sizeof marker->replaced);
    if (old.hash[0] && strcmp(old.hash, hash) != 0)
        mgr__copy_text(marker->replaced[n++], sizeof marker->replaced[0], mgr__str_of(old.hash));
    for (int i = 0; i < MGR__REPLACED_MAX && n < MGR__REPLACED_MAX; i++)
        if (old.replaced[i][0] && strcmp(old.replaced[i], hash) != 0)
            mgr__copy_text(marker->replaced[n++], sizeof marker->replaced[0], mgr__str_of(old.replaced[i]));
    mgr__copy_text(marker->hash, sizeof marker->hash, mgr__str_of(hash));
}

static bool mgr__marker_read(mgr__marker *marker, const mgr__kv *kv, mgr__buf *scratch)
{
    mgr__json j;
    mgr__str key;
    memset(marker, 0, sizeof *marker);
    marker->modify_index = kv->modify_index;
    mgr__json_init(&j, kv->value);
    if (!mgr__json_object(&j)) return false;
    while (mgr__json_key(&j, &key)) {
        if (mgr__str_is(key, "hash")) mgr__copy_text(marker->hash, sizeof marker->hash, mgr__json_string(&j, scratch));
        else if (mgr__str_is(key, "count")) marker->count = mgr__json_u64(&j);
        else if (mgr__str_is(key, "version")) marker->version = mgr__json_u64(&j);
        else if (mgr__str_is(key, "placement")) mgr__copy_text(marker->placement, sizeof marker->placement, mgr__json_string(&j, scratch));
        else if (mgr__str_is(key, "placement_version")) marker->placement_version = mgr__json_u64(&j);
        else if (mgr__str_is(key, "delay_max")) marker->delay_max_ms = mgr__json_span(&j);
        else if (mgr__str_is(key, "fence_base")) marker->fence_base = mgr__json_u64(&j);
        else if (mgr__str_is(key, "replaced")) mgr__marker_read_replaced(marker, &j, scratch);
        else mgr__json_skip(&j);
    }
    marker->exists = mgr__json_end(&j);
    return marker->exists;
}

/* The version of both policies: what [rush] specifies. */
enum { MGR__PLACEMENT_VERSION = 1 };

static const char *mgr__placement_word(mgr_placement placement) { return placement == MGR_PLACEMENT_SLOTS ? "slots" : "rush"; }

static void mgr__marker_place(mgr__marker *marker, mgr_placement placement)
{
    mgr__copy_text(marker->placement, sizeof marker->placement, mgr__str_of(mgr__placement_word(placement)));
    marker->placement_version = MGR__PLACEMENT_VERSION;
}

/* MGR_PLACEMENT_DEFAULT: one that this program does not know. */
static mgr_placement mgr__marker_placement(const mgr__marker *marker)
{
    if (marker->placement_version != MGR__PLACEMENT_VERSION) return MGR_PLACEMENT_DEFAULT;
    if (strcmp(marker->placement, "rush") == 0) return MGR_PLACEMENT_RUSH;
    return strcmp(marker->placement, "slots") == 0 ? MGR_PLACEMENT_SLOTS : MGR_PLACEMENT_DEFAULT;
}

static bool mgr__marker_stands(const mgr__marker *marker) { return marker->exists && marker->hash[0]; }

/* An instance that does not know the placement in force must not compute a map of its own. */
static bool mgr__marker_known(const mgr__marker *marker)
{
    return !mgr__marker_stands(marker) || mgr__marker_placement(marker) != MGR_PLACEMENT_DEFAULT;
}

static bool mgr__marker_slots(const mgr__marker *marker)
{
    return mgr__marker_stands(marker) && mgr__marker_placement(marker) == MGR_PLACEMENT_SLOTS;
}

/* ---- members ---- */

typedef struct mgr__member {
    mgr__str id, life, session, node, service, isolate;
    mgr__str proof;             /* how its death can be proven on its host; opaque here, "": not at all */
    mgr__str former;            /* "LIFE WHY": a former life of it on its host, and why that one's death is not proven */
    bool     alive;             /* its key is locked by a session: a member without one is dead */
    bool     joining, leaving, draining;
    bool     broken;            /* its value cannot be read: somebody changed it by hand */
    bool     counts;            /* it takes part in the map */
    uint64_t weight, lease_ms, delay_ms, grace_ms, releases, pid;
    mgr__str boot;
    mgr__str *refuses;
    size_t   refuse_count;
    uint64_t create_index, modify_index;
    uint32_t slot;              /* its number, see mgr__picture_number */
    uint64_t slot_index;        /* ModifyIndex of its slot's key; 0: it has none yet */
    bool     wish_drain;        /* what operators want of it */
    mgr__str wish_evict;        /* the life that is to leave */
} mgr__member;

static void mgr__member_write(const mgr__member *member, mgr__buf *out)
{
    mgr__jw jw;
    mgr__jw_init(&jw, out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "life");     mgr__jw_str(&jw, member->life);
    mgr__jw_key(&jw, "weight");   mgr__jw_u64(&jw, member->weight);
    mgr__jw_key(&jw, "lease");    mgr__jw_u64(&jw, member->lease_ms);
    mgr__jw_key(&jw, "delay");    mgr__jw_u64(&jw, member->delay_ms);
    mgr__jw_key(&jw, "grace");    mgr__jw_u64(&jw, member->grace_ms);
    mgr__jw_key(&jw, "joining");  mgr__jw_bool(&jw, member->joining);
    mgr__jw_key(&jw, "leaving");  mgr__jw_bool(&jw, member->leaving);
    mgr__jw_key(&jw, "draining"); mgr__jw_bool(&jw, member->draining);
    mgr__jw_key(&jw, "releases"); mgr__jw_u64(&jw, member->releases);
    mgr__jw_key(&jw, "node");     mgr__jw_str(&jw, member->node);
    mgr__jw_key(&jw, "service");  mgr__jw_str(&jw, member->service);
    mgr__jw_key(&jw, "boot");     mgr__jw_str(&jw, member->boot);
    mgr__jw_key(&jw, "pid");      mgr__jw_u64(&jw, member->pid);
    mgr__jw_key(&jw, "isolate");  mgr__jw_str(&jw, member->isolate);
    mgr__jw_key(&jw, "proof");    mgr__jw_str(&jw, member->proof);
    mgr__jw_key(&jw, "former");   mgr__jw_str(&jw, member->former);
    mgr__jw_key(&jw, "program");  mgr__jw_text(&jw, "manager.h " MANAGER_VERSION);
    mgr__jw_key(&jw, "refuses");
    mgr__jw_array(&jw);
    for (size_t i = 0; i < member->refuse_count; i++) mgr__jw_str(&jw, member->refuses[i]);
    mgr__jw_array_end(&jw);
    mgr__jw_object_end(&jw);
}

static void mgr__member_read_refuses(mgr__member *member, mgr__json *j, mgr__buf *scratch, mgr__arena *arena)
{
    size_t cap = 0;
    if (!mgr__json_array(j)) return;
    while (mgr__json_item(j)) {
        if (member->refuse_count == cap) {
            size_t wanted = cap ? cap * 2 : 4;
            mgr__str *more = (mgr__str *)mgr__arena_alloc(arena, wanted * sizeof *more);
            if (!more) return;
            if (cap) memcpy(more, member->refuses, cap * sizeof *more);
            member->refuses = more;
            cap = wanted;
        }
        member->refuses[member->refuse_count++] = mgr__json_kept(j, scratch, arena);
    }
}

static bool mgr__member_read_field(mgr__member *m, mgr__str key, mgr__json *j, mgr__buf *scratch, mgr__arena *arena)
{
    if (mgr__str_is(key, "life")) m->life = mgr__json_kept(j, scratch, arena);
    else if (mgr__str_is(key, "node")) m->node = mgr__json_kept(j, scratch, arena);
    else if (mgr__str_is(key, "service")) m->service = mgr__json_kept(j, scratch, arena);
    else if (mgr__str_is(key, "isolate")) m->isolate = mgr__json_kept(j, scratch, arena);
    else if (mgr__str_is(key, "boot")) m->boot = mgr__json_kept(j, scratch, arena);
    else if (mgr__str_is(key, "proof")) m->proof = mgr__json_kept(j, scratch, arena);
    else if (mgr__str_is(key, "former")) m->former = mgr__json_kept(j, scratch, arena);
    else if (mgr__str_is(key, "pid")) m->pid = mgr__json_u64(j);
    else if (mgr__str_is(key, "weight")) m->weight = mgr__json_u64(j);
    else if (mgr__str_is(key, "lease")) m->lease_ms = mgr__json_u64(j);
    else if (mgr__str_is(key, "delay")) m->delay_ms = mgr__json_span(j);
    else if (mgr__str_is(key, "grace")) m->grace_ms = mgr__json_span(j);
    else if (mgr__str_is(key, "releases")) m->releases = mgr__json_u64(j);
    else if (mgr__str_is(key, "joining")) m->joining = mgr__json_bool(j);
    else if (mgr__str_is(key, "leaving")) m->leaving = mgr__json_bool(j);
    else if (mgr__str_is(key, "draining")) m->draining = mgr__json_bool(j);
    else if (mgr__str_is(key, "refuses")) mgr__member_read_refuses(m, j, scratch, arena);
    else return false;
    return true;
}

/* A key under cluster/instances/. False: not one of ours; it is then ignored. One that
 * cannot be read is kept: it can be buried, and its owner can write it anew. */
static bool mgr__member_read(mgr__member *member, const mgr__kv *kv, mgr__str escaped_id, mgr__buf *scratch, mgr__arena *arena)
{
    mgr__json j;
    mgr__str key;
    memset(member, 0, sizeof *member);
    if (!mgr__key_name(arena, escaped_id, &member->id)) return false;
    member->session = mgr__arena_str(arena, kv->session);
    member->alive = kv->session.len > 0;
    member->create_index = kv->create_index;
    member->modify_index = kv->modify_index;
    member->life = member->node = member->service = member->isolate = member->boot = member->wish_evict = mgr__str_of("");
    member->proof = member->former = mgr__str_of("");
    mgr__json_init(&j, kv->value);
    mgr__json_object(&j);
    while (!j.error && mgr__json_key(&j, &key)) if (!mgr__member_read_field(member, key, &j, scratch, arena)) mgr__json_skip(&j);
    if (member->weight > 65535) member->weight = 65535;
    member->broken = !mgr__json_end(&j);
    return !arena->failed;
}

static bool mgr__member_drains(const mgr__member *m) { return m->draining || m->wish_drain; }

static bool mgr__member_evicted(const mgr__member *m) { return m->wish_evict.len && mgr__str_eq(m->wish_evict, m->life); }

/* ---- wishes: what operators want of an instance ---- */

typedef struct mgr__wish { bool drain; mgr__str evict; } mgr__wish;

static void mgr__wish_write(const mgr__wish *wish, mgr__buf *out)
{
    mgr__jw jw;
    mgr__jw_init(&jw, out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "drain"); mgr__jw_bool(&jw, wish->drain);
    mgr__jw_key(&jw, "evict"); mgr__jw_str(&jw, wish->evict);
    mgr__jw_object_end(&jw);
}

static bool mgr__wish_read(mgr__wish *wish, mgr__str value, mgr__buf *scratch, mgr__arena *arena)
{
    mgr__json j;
    mgr__str key;
    wish->drain = false;
    wish->evict = mgr__str_of("");
    mgr__json_init(&j, value);
    if (!mgr__json_object(&j)) return false;
    while (mgr__json_key(&j, &key)) {
        if (mgr__str_is(key, "drain")) wish->drain = mgr__json_bool(&j);
        else if (mgr__str_is(key, "evict")) wish->evict = mgr__json_kept(&j, scratch, arena);
        else mgr__json_skip(&j);
    }
    return mgr__json_end(&j);
}

/* ---- slots: cluster/slots/<number>, made and deleted with the instance's key ---- */

typedef struct mgr__slot_key {
    uint32_t number;
    mgr__str id;                /* whose it is; "": cannot be read */
    uint64_t modify_index;
} mgr__slot_key;

static void mgr__slot_key_write(mgr__str id, mgr__buf *out)
{
    mgr__jw jw;
    mgr__jw_init(&jw, out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "instance"); mgr__jw_str(&jw, id);
    mgr__jw_object_end(&jw);
}

/* False: no key of ours. */
static bool mgr__slot_key_read(mgr__slot_key *slot, mgr__str number, const mgr__kv *kv, mgr__buf *scratch, mgr__arena *arena)
{
    mgr__json j;
    mgr__str key;
    int64_t n = mgr__name_number(number);
    if (n < 1 || n > MGR_MEMBER_COUNT_MAX) return false;
    slot->number = (uint32_t)n;
    slot->id = mgr__str_of("");
    slot->modify_index = kv->modify_index;
    mgr__json_init(&j, kv->value);
    if (!mgr__json_object(&j)) return true;
    while (mgr__json_key(&j, &key)) {
        if (mgr__str_is(key, "instance")) slot->id = mgr__json_kept(&j, scratch, arena);
        else mgr__json_skip(&j);
    }
    if (!mgr__json_end(&j) || mgr__name_fault(slot->id)) slot->id = mgr__str_of("");
    return true;
}

/* ---- the pause: planned moves are held while its key stands ---- */

enum { MGR__REASON_BYTES = 200 };

typedef struct mgr__pause {
    bool     exists, breaker;
    mgr__str by, reason;
    uint64_t since_ms;          /* wall clock, for display */
    uint64_t modify_index;
} mgr__pause;

/* By somebody, not by the circuit breaker. */
static bool mgr__pause_told(const mgr__pause *pause) { return pause->exists && !pause->breaker; }

/* ... for this reason, or whatever it is if none is given. */
static bool mgr__pause_as_told(const mgr__pause *pause, mgr__str reason)
{
    return mgr__pause_told(pause) && (!reason.len || mgr__str_eq(reason, pause->reason));
}

static void mgr__pause_write(const mgr__pause *pause, mgr__buf *out)
{
    mgr__jw jw;
    mgr__jw_init(&jw, out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "by");      mgr__jw_str(&jw, pause->by);
    mgr__jw_key(&jw, "since");   mgr__jw_u64(&jw, pause->since_ms);
    mgr__jw_key(&jw, "reason");  mgr__jw_str(&jw, pause->reason);
    mgr__jw_key(&jw, "breaker"); mgr__jw_bool(&jw, pause->breaker);
    mgr__jw_object_end(&jw);
}

/* The key is what counts: one that was put by hand pauses too, whatever is in it,
 * and only a breaker that says so in full ends by itself. */
static void mgr__pause_read(mgr__pause *pause, const mgr__kv *kv, mgr__buf *scratch, mgr__arena *arena)
{
    mgr__json j;
    mgr__str key;
    memset(pause, 0, sizeof *pause);
    pause->exists = true;
    pause->modify_index = kv->modify_index;
    pause->by = pause->reason = mgr__str_of("");
    mgr__json_init(&j, kv->value);
    mgr__json_object(&j);
    while (!j.error && mgr__json_key(&j, &key)) {
        if (mgr__str_is(key, "by")) pause->by = mgr__json_kept(&j, scratch, arena);
        else if (mgr__str_is(key, "since")) pause->since_ms = mgr__json_u64(&j);
        else if (mgr__str_is(key, "reason")) pause->reason = mgr__json_kept(&j, scratch, arena);
        else if (mgr__str_is(key, "breaker")) pause->breaker = mgr__json_bool(&j);
        else mgr__json_skip(&j);
    }
    if (!mgr__json_end(&j)) { pause->breaker = false; pause->by = pause->reason = mgr__str_of(""); pause->since_ms = 0; }
}

/* ---- cluster/missing: somebody cannot read the set that is in force ---- */

/* sets/ lies outside the watch, and nobody reads it without need: who does, and finds
 * nothing, says so here, where all who have the set in memory see it. */
typedef struct mgr__missing {
    bool     exists;
    char     hash[MGR__HASH_BYTES]; /* "": cannot be read */
    uint64_t modify_index;
} mgr__missing;

static void mgr__missing_write(const char *hash, mgr__buf *out)
{
    mgr__jw jw;
    mgr__jw_init(&jw, out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "hash"); mgr__jw_text(&jw, hash);
    mgr__jw_object_end(&jw);
}

static void mgr__missing_read(mgr__missing *missing, const mgr__kv *kv, mgr__buf *scratch)
{
    mgr__json j;
    mgr__str key;
    memset(missing, 0, sizeof *missing);
    missing->exists = true;
    missing->modify_index = kv->modify_index;
    mgr__json_init(&j, kv->value);
    mgr__json_object(&j);
    while (!j.error && mgr__json_key(&j, &key)) {
        if (mgr__str_is(key, "hash")) mgr__copy_text(missing->hash, sizeof missing->hash, mgr__json_string(&j, scratch));
        else mgr__json_skip(&j);
    }
    if (!mgr__json_end(&j)) missing->hash[0] = 0;
}

/* ---- the picture: everything below cluster/, at one index ---- */

typedef struct mgr__certificate { mgr__str life; uint64_t modify_index; } mgr__certificate;
typedef struct mgr__standing_wish { mgr__str id; mgr__wish wish; uint64_t modify_index; } mgr__standing_wish;

typedef struct mgr__picture {
    mgr__arena          arena;
    uint64_t            index;
    mgr__marker         marker;
    mgr__pause          pause;
    mgr__missing        missing;
    mgr__member        *members;        /* sorted by id */
    size_t              member_count;
    mgr__certificate   *certificates;   /* sorted by life */
    size_t              certificate_count;
    mgr__standing_wish *wishes;
    size_t              wish_count;
    mgr__slot_key      *slots;          /* sorted by number */
    size_t              slot_count;
    uint32_t            free_slot;      /* the lowest that no member has */
} mgr__picture;

static void mgr__picture_free(mgr__picture *picture)
{
    mgr__arena_free(&picture->arena);
    picture->members = NULL;
    picture->certificates = NULL;
    picture->wishes = NULL;
    picture->slots = NULL;
    picture->member_count = picture->certificate_count = picture->wish_count = picture->slot_count = 0;
    picture->marker.exists = picture->pause.exists = picture->missing.exists = false;
}

static int mgr__member_order(const void *a, const void *b)
{
    return mgr__str_order(((const mgr__member *)a)->id, ((const mgr__member *)b)->id);
}

static int mgr__certificate_order(const void *a, const void *b)
{
    return mgr__str_order(((const mgr__certificate *)a)->life, ((const mgr__certificate *)b)->life);
}

static mgr__member *mgr__picture_member(const mgr__picture *picture, mgr__str id)
{
    mgr__member wanted;
    if (!picture->member_count) return NULL;
    memset(&wanted, 0, sizeof wanted);
    wanted.id = id;
    return (mgr__member *)bsearch(&wanted, picture->members, picture->member_count, sizeof wanted, mgr__member_order);
}

static const mgr__member *mgr__picture_life(const mgr__picture *picture, mgr__str life)
{
    for (size_t i = 0; i < picture->member_count; i++)
        if (mgr__str_eq(picture->members[i].life, life)) return &picture->members[i];
    return NULL;
}

static const mgr__certificate *mgr__picture_certificate(const mgr__picture *picture, mgr__str life)
{
    mgr__certificate wanted;
    if (!picture->certificate_count) return NULL;
    wanted.life = life;
    wanted.modify_index = 0;
    return (const mgr__certificate *)bsearch(&wanted, picture->certificates, picture->certificate_count, sizeof wanted,
                                             mgr__certificate_order);
}

static bool mgr__picture_certified(const mgr__picture *picture, mgr__str life) { return mgr__picture_certificate(picture, life) != NULL; }

static int mgr__slot_key_order(const void *a, const void *b)
{
    const mgr__slot_key *x = (const mgr__slot_key *)a, *y = (const mgr__slot_key *)b;
    return x->number < y->number ? -1 : x->number > y->number;
}

static const mgr__slot_key *mgr__picture_slot(const mgr__picture *picture, uint32_t number)
{
    mgr__slot_key wanted;
    if (!picture->slot_count) return NULL;
    memset(&wanted, 0, sizeof wanted);
    wanted.number = number;
    return (const mgr__slot_key *)bsearch(&wanted, picture->slots, picture->slot_count, sizeof wanted, mgr__slot_key_order);
}

static const mgr__standing_wish *mgr__picture_wish(const mgr__picture *picture, mgr__str id)
{
    for (size_t i = 0; i < picture->wish_count; i++)
        if (mgr__str_eq(picture->wishes[i].id, id)) return &picture->wishes[i];
    return NULL;
}

static void mgr__picture_take(mgr__picture *p, const mgr__root *root, const mgr__kv *kv, mgr__buf *scratch)
{
    mgr__str rest, id;
    mgr__buf_clear(scratch);
    if (mgr__key_below(kv->key, root, "cluster/instances/", &rest)) {
        if (p->member_count < MGR_MEMBER_COUNT_MAX && mgr__member_read(&p->members[p->member_count], kv, rest, scratch, &p->arena))
            p->member_count++;
    } else if (mgr__key_below(kv->key, root, "cluster/dead/", &rest)) {
        p->certificates[p->certificate_count].life = mgr__arena_str(&p->arena, rest);
        p->certificates[p->certificate_count++].modify_index = kv->modify_index;
    } else if (mgr__key_below(kv->key, root, "cluster/wishes/", &rest)) {
        mgr__standing_wish *standing = &p->wishes[p->wish_count];
        if (!mgr__key_name(&p->arena, rest, &id) || !mgr__wish_read(&standing->wish, kv->value, scratch, &p->arena)) return;
        standing->id = id;
        standing->modify_index = kv->modify_index;
        p->wish_count++;
    } else if (mgr__key_below(kv->key, root, "cluster/slots/", &rest)) {
        if (mgr__slot_key_read(&p->slots[p->slot_count], rest, kv, scratch, &p->arena)) p->slot_count++;
    } else if (mgr__key_below(kv->key, root, "cluster/partitions", &rest) && rest.len == 0) {
        mgr__marker_read(&p->marker, kv, scratch);
    } else if (mgr__key_below(kv->key, root, "cluster/pause", &rest) && rest.len == 0) {
        mgr__pause_read(&p->pause, kv, scratch, &p->arena);
    } else if (mgr__key_below(kv->key, root, "cluster/missing", &rest) && rest.len == 0) {
        mgr__missing_read(&p->missing, kv, scratch);
    }
}

static int mgr__member_age(const void *a, const void *b)
{
    const mgr__member *x = *(mgr__member *const *)a, *y = *(mgr__member *const *)b;
    if (x->create_index != y->create_index) return x->create_index < y->create_index ? -1 : 1;
    return mgr__str_order(x->id, y->id);
}

/* Whose slot is which: what the keys say, the lowest where several name one member.
 * A member that none names is given the lowest free one, the oldest first, so that
 * the map is a function of the picture also while it has yet to claim it: after a
 * change of policy, or when keys were changed by hand. */
static void mgr__picture_number(mgr__picture *picture)
{
    size_t without = 0, count = picture->member_count;
    mgr__member **rest = (mgr__member **)mgr__arena_alloc(&picture->arena, (count + 1) * sizeof *rest);
    bool *taken = (bool *)mgr__arena_alloc(&picture->arena, (count + 2) * sizeof *taken);
    if (picture->arena.failed) return;
    memset(taken, 0, (count + 2) * sizeof *taken);
    for (size_t i = 0; i < picture->slot_count; i++) {
        const mgr__slot_key *slot = &picture->slots[i];
        mgr__member *m = mgr__picture_member(picture, slot->id);
        if (!m || m->slot) continue;
        m->slot = slot->number;
        m->slot_index = slot->modify_index;
        if (m->slot <= count) taken[m->slot] = true;
    }
    for (size_t i = 0; i < count; i++) if (!picture->members[i].slot) rest[without++] = &picture->members[i];
    if (without) qsort(rest, without, sizeof *rest, mgr__member_age);
    picture->free_slot = 1;
    for (size_t i = 0; i <= without; i++) {
        while (taken[picture->free_slot]) picture->free_slot++;
        if (i < without) rest[i]->slot = picture->free_slot++;
    }
}

/* Who takes part in the map. Joiners wait until the youngest of them has settled, so
 * that many that start together cause one rebalance; when it has, its own key says
 * so, and all that are older count at the same index. */
static void mgr__picture_count(mgr__picture *picture)
{
    uint64_t settled = 0;
    for (size_t i = 0; i < picture->member_count; i++) {
        const mgr__member *m = &picture->members[i];
        if (m->alive && !m->joining && m->create_index > settled) settled = m->create_index;
    }
    for (size_t i = 0; i < picture->member_count; i++) {
        mgr__member *m = &picture->members[i];
        m->counts = !m->broken && (m->alive || m->grace_ms > 0) && !m->leaving && (!m->joining || m->create_index < settled);
    }
}

/* False: out of memory. Keys that are not ours are ignored. */
static bool mgr__picture_read(mgr__picture *picture, mgr__heap *heap, const mgr__root *root, uint64_t index, const mgr__kv *kvs,
                              size_t count)
{
    mgr__buf scratch;
    memset(picture, 0, sizeof *picture);
    mgr__arena_init(&picture->arena, heap);
    picture->index = index;
    picture->members = (mgr__member *)mgr__arena_alloc(&picture->arena, (count + 1) * sizeof *picture->members);
    picture->certificates = (mgr__certificate *)mgr__arena_alloc(&picture->arena, (count + 1) * sizeof *picture->certificates);
    picture->wishes = (mgr__standing_wish *)mgr__arena_alloc(&picture->arena, (count + 1) * sizeof *picture->wishes);
    picture->slots = (mgr__slot_key *)mgr__arena_alloc(&picture->arena, (count + 1) * sizeof *picture->slots);
    if (picture->arena.failed) { mgr__picture_free(picture); return false; }
    mgr__buf_init(&scratch, heap, MGR_BODY_BYTES_MAX);
    for (size_t i = 0; i < count; i++) mgr__picture_take(picture, root, &kvs[i], &scratch);
    mgr__buf_free(&scratch);
    qsort(picture->members, picture->member_count, sizeof *picture->members, mgr__member_order);
    qsort(picture->certificates, picture->certificate_count, sizeof *picture->certificates, mgr__certificate_order);
    qsort(picture->slots, picture->slot_count, sizeof *picture->slots, mgr__slot_key_order);
    for (size_t i = 0; i < picture->wish_count; i++) {
        mgr__member *member = mgr__picture_member(picture, picture->wishes[i].id);
        if (!member) continue;
        member->wish_drain = picture->wishes[i].wish.drain;
        member->wish_evict = picture->wishes[i].wish.evict;
    }
    for (size_t i = 0; i < picture->member_count; i++)      /* dead at once, though its session may stand for a while */
        if (mgr__picture_certified(picture, picture->members[i].session)) picture->members[i].alive = false;
    for (size_t i = 0; i < picture->member_count; i++)      /* nothing is kept for one that was evicted */
        if (!picture->members[i].alive && mgr__member_evicted(&picture->members[i])) picture->members[i].grace_ms = 0;
    mgr__picture_count(picture);
    mgr__picture_number(picture);
    if (!picture->arena.failed) return true;
    mgr__picture_free(picture);
    return false;
}

/* The map that this picture asks for: owners[i] is an index into the picture's
 * members, or MGR_RUSH_NOBODY. Draining instances have weight 0; refused pairs
 * are left out. Every instance with the same picture computes the same (invariant 5).
 * MGR_INVALID: the policy is not known. */
static mgr_result mgr__picture_map(const mgr__picture *picture, mgr__heap *heap, const mgr__set *set, uint32_t *owners)
{
    mgr__arena arena;
    mgr__arena_init(&arena, heap);
    if (!mgr__marker_known(&picture->marker)) return MGR_INVALID;
    bool by_slots = mgr__marker_slots(&picture->marker);
    size_t refuse_max = 1, count = 0, refused_count = 0;
    for (size_t i = 0; i < picture->member_count; i++) refuse_max += picture->members[i].refuse_count;
    mgr__str *ids = (mgr__str *)mgr__arena_alloc(&arena, (picture->member_count + 1) * sizeof *ids);
    uint32_t *weights = (uint32_t *)mgr__arena_alloc(&arena, (picture->member_count + 1) * sizeof *weights);
    uint32_t *which = (uint32_t *)mgr__arena_alloc(&arena, (picture->member_count + 1) * sizeof *which);
    uint32_t *slots = (uint32_t *)mgr__arena_alloc(&arena, (picture->member_count + 1) * sizeof *slots);
    mgr_refusal *refused = (mgr_refusal *)mgr__arena_alloc(&arena, refuse_max * sizeof *refused);
    if (arena.failed) { mgr__arena_free(&arena); return MGR_NO_MEMORY; }
    for (size_t i = 0; i < picture->member_count; i++) {
        const mgr__member *m = &picture->members[i];
        if (!m->counts) continue;
        for (size_t r = 0; r < m->refuse_count; r++) {
            const mgr__str *at = mgr__set_find(set, m->refuses[r]);
            if (!at) continue;
            refused[refused_count].partition = (uint32_t)(at - set->names);
            refused[refused_count++].member = (uint32_t)count;
        }
        ids[count] = m->id;
        weights[count] = mgr__member_drains(m) ? 0 : (uint32_t)m->weight;
        slots[count] = m->slot;
        which[count++] = (uint32_t)i;
    }
    mgr_result result = mgr__rush_map(heap, set->names, set->count, ids, weights, count, 1, refused, refused_count,
                                      by_slots ? slots : NULL, owners);
    for (size_t i = 0; result == MGR_OK && i < set->count; i++)
        if (owners[i] != MGR_RUSH_NOBODY) owners[i] = which[owners[i]];
    mgr__arena_free(&arena);
    return result;
}

/* A live member whose weight is not `weight` (0: that of the first one); NULL: all weigh
 * the same. `but` is not looked at. */
static const mgr__member *mgr__picture_odd_weight(const mgr__picture *picture, uint64_t weight, mgr__str but)
{
    for (size_t i = 0; i < picture->member_count; i++) {
        const mgr__member *m = &picture->members[i];
        if (!m->alive || !m->weight || mgr__str_eq(m->id, but)) continue;
        if (weight && m->weight != weight) return m;
        weight = m->weight;
    }
    return NULL;
}

/* ---- the value of owners/<partition> ---- */

typedef struct mgr__holding {
    bool     exists;
    bool     released;          /* else held, or lost */
    mgr__str session;           /* "": nobody holds the lock */
    mgr__str life, instance, last_exit;
    uint64_t since_ms;          /* wall clock, for display */
    uint64_t delay_ms, attempts, serial;
    uint64_t fence;             /* 0 until the value is rewritten: then modify_index is the lock's */
    bool     ended;             /* its process was to run once, and has ended */
    uint64_t modify_index;
} mgr__holding;

static void mgr__holding_write(const mgr__holding *owner, mgr__buf *out)
{
    mgr__jw jw;
    mgr__jw_init(&jw, out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "state");    mgr__jw_text(&jw, owner->released ? "released" : "held");
    mgr__jw_key(&jw, "life");     mgr__jw_str(&jw, owner->life);
    mgr__jw_key(&jw, "instance"); mgr__jw_str(&jw, owner->instance);
    mgr__jw_key(&jw, "since");    mgr__jw_u64(&jw, owner->since_ms);
    mgr__jw_key(&jw, "delay");    mgr__jw_u64(&jw, owner->delay_ms);
    mgr__jw_key(&jw, "attempts"); mgr__jw_u64(&jw, owner->attempts);
    mgr__jw_key(&jw, "exit");     mgr__jw_str(&jw, owner->last_exit);
    mgr__jw_key(&jw, "ended");    mgr__jw_bool(&jw, owner->ended);
    mgr__jw_key(&jw, "serial");   mgr__jw_u64(&jw, owner->serial);
    mgr__jw_key(&jw, "fence");    mgr__jw_u64(&jw, owner->fence);
    mgr__jw_object_end(&jw);
}

/* A malformed value counts as held by nobody known: lost, with no delay known (0). */
static void mgr__holding_read(mgr__holding *owner, const mgr__kv *kv, mgr__buf *scratch, mgr__arena *arena)
{
    mgr__json j;
    mgr__str key;
    memset(owner, 0, sizeof *owner);
    owner->exists = true;
    owner->modify_index = kv->modify_index;
    owner->session = mgr__arena_str(arena, kv->session);
    owner->life = owner->instance = owner->last_exit = mgr__str_of("");
    mgr__json_init(&j, kv->value);
    if (!mgr__json_object(&j)) return;
    while (mgr__json_key(&j, &key)) {
        if (mgr__str_is(key, "state")) {
            mgr__buf_clear(scratch);
            owner->released = mgr__str_is(mgr__json_string(&j, scratch), "released");
        } else if (mgr__str_is(key, "life")) owner->life = mgr__json_kept(&j, scratch, arena);
        else if (mgr__str_is(key, "instance")) owner->instance = mgr__json_kept(&j, scratch, arena);
        else if (mgr__str_is(key, "since")) owner->since_ms = mgr__json_u64(&j);
        else if (mgr__str_is(key, "delay")) owner->delay_ms = mgr__json_span(&j);
        else if (mgr__str_is(key, "attempts")) owner->attempts = mgr__json_u64(&j);
        else if (mgr__str_is(key, "exit")) owner->last_exit = mgr__json_kept(&j, scratch, arena);
        else if (mgr__str_is(key, "ended")) owner->ended = mgr__json_bool(&j);
        else if (mgr__str_is(key, "serial")) owner->serial = mgr__json_u64(&j);
        else if (mgr__str_is(key, "fence")) owner->fence = mgr__json_u64(&j);
        else mgr__json_skip(&j);
    }
    if (!mgr__json_end(&j)) { owner->released = false; owner->delay_ms = 0; }
}

/* ---- requests: helpers that fill one in ---- */

static void mgr__request_start(mgr__request *r, mgr__heap *heap, mgr__ask ask, mgr__lane lane)
{
    mgr__arena arena = r->arena;
    arena.heap = heap;
    mgr__arena_free(&arena);
    memset(r, 0, sizeof *r);
    r->arena = arena;
    r->ask = ask;
    r->lane = lane;
    r->key = r->name = r->session = r->check_id = r->node = r->body = r->note = mgr__str_of("");
}

static mgr__op *mgr__request_op(mgr__request *r, mgr__verb verb, mgr__str key)
{
    MGR_ASSERT(r->op_count < MGR__TXN_OPS_MAX);
    mgr__op *op = &r->ops[r->op_count++];
    op->verb = verb;
    op->key = key;
    op->value = op->session = mgr__str_of("");
    op->index = 0;
    return op;
}

static mgr__op *mgr__request_on(mgr__request *r, mgr__verb verb, const mgr__root *root, const char *below, mgr__str name)
{
    return mgr__request_op(r, verb, mgr__key_make(&r->arena, root, below, name));
}

static void mgr__request_check_index(mgr__request *r, mgr__str key, uint64_t index)
{
    mgr__request_op(r, MGR__CHECK_INDEX, key)->index = index;
}

/* A value written by one of the writers above, moved into the request. */
static mgr__str mgr__request_keep(mgr__request *r, mgr__buf *value)
{
    if (value->failed) r->arena.failed = true;
    mgr__str kept = mgr__arena_str(&r->arena, mgr__buf_view(value));
    mgr__buf_free(value);
    return kept;
}

/* The death certificate of a life; proof: static text, the value. */
static void mgr__request_certify(mgr__request *r, const mgr__root *root, mgr__str life, const char *proof)
{
    mgr__request_on(r, MGR__SET, root, "cluster/dead/", life)->value = mgr__str_of(proof);
}

/* The value of an owner key that nobody has had yet, or whose owner is not known. */
static mgr__str mgr__holding_nobodys(mgr__request *r, bool released, uint64_t delay_ms)
{
    mgr__buf value;
    mgr__holding owner;
    memset(&owner, 0, sizeof owner);
    owner.life = owner.instance = owner.last_exit = mgr__str_of("");
    owner.released = released;
    owner.delay_ms = delay_ms;
    mgr__buf_init(&value, r->arena.heap, 4096);
    mgr__holding_write(&owner, &value);
    return mgr__request_keep(r, &value);
}

/* ---- putting a set in force: a small machine of its own ----
 * marker by CAS (only for a first set) -> who else has a session? -> which owner
 * keys stand? -> make the missing ones, conditioned on the marker -> the set and
 * the marker in one transaction. Every write hangs on the marker's index: what
 * lands late lands on nothing. */

typedef enum mgr__setter_state {
    MGR__SETTER_IDLE, MGR__SETTER_LOOK, MGR__SETTER_MARK, MGR__SETTER_OLD, MGR__SETTER_SESSIONS,
    MGR__SETTER_OWNERS, MGR__SETTER_MAKE, MGR__SETTER_WRITE, MGR__SETTER_DONE
} mgr__setter_state;

typedef struct mgr__setter {
    mgr__setter_state state;
    mgr_result  result;
    bool        taken_over;     /* done: the standing set stays, for it is newer */
    bool        commanded;      /* by an operator: any set, also an old one */
    bool        remembered;     /* this program has seen a set stand before: nothing is "released" only because nothing is there */
    bool        first;          /* no set stands yet */
    bool        lost;           /* new owner keys are "lost", not "released" */
    mgr__set    wanted, old;
    uint64_t    version;
    uint64_t    delay_ms;       /* ours */
    uint64_t    fence_floor;
    mgr_placement placement;    /* of a first set; commanded: to be in force from now on. DEFAULT: the one that stands */
    bool        keeps_set;      /* commanded: nothing but the placement changes */
    mgr__str    own_session;    /* not counted among the others' */
    mgr__marker marker;
    bool       *stands;         /* per wanted name: an owner key is there */
    size_t      next;           /* MAKE: how far we are */
    size_t      batch;
    uint32_t    conflicts;
    int64_t     not_before;     /* another one is making a first set: look again then */
    uint64_t    seen_making;    /* index of a half-made marker, since when */
    int64_t     seen_since;
    mgr__str    trouble;        /* static text */
} mgr__setter;

#define MGR__VERSION_STANDING UINT64_MAX   /* a command: whatever version stands is kept */
enum { MGR__SETTER_BATCH = 62, MGR__SETTER_TAKEOVER_MS = 5000, MGR__SETTER_POLL_MS = 200, MGR__SETTER_CONFLICTS_MAX = 20 };

static void mgr__setter_free(mgr__setter *s, mgr__heap *heap)
{
    mgr__set_free(&s->wanted);
    mgr__set_free(&s->old);
    mgr__free(heap, s->stands);
    memset(s, 0, sizeof *s);
}

/* Takes over `wanted`. */
static void mgr__setter_start(mgr__setter *s, mgr__heap *heap, mgr__set *wanted, uint64_t version, uint64_t delay_ms)
{
    bool remembered = s->remembered;
    uint64_t fence_floor = s->fence_floor;
    mgr__str own = s->own_session;
    mgr__setter_free(s, heap);
    s->remembered = remembered;
    s->fence_floor = fence_floor;
    s->own_session = own;
    s->wanted = *wanted;
    memset(wanted, 0, sizeof *wanted);
    mgr__arena_init(&s->old.arena, heap);
    s->version = version;
    s->delay_ms = delay_ms;
    s->state = MGR__SETTER_LOOK;
}

static bool mgr__setter_busy(const mgr__setter *s) { return s->state != MGR__SETTER_IDLE && s->state != MGR__SETTER_DONE; }

static void mgr__setter_end(mgr__setter *s, mgr_result result, const char *trouble)
{
    s->state = MGR__SETTER_DONE;
    s->result = result;
    s->trouble = mgr__str_of(trouble);
}

static void mgr__setter_again(mgr__setter *s)
{
    if (++s->conflicts > MGR__SETTER_CONFLICTS_MAX) mgr__setter_end(s, MGR_CONFLICT, "the partition set keeps being changed by others");
    else s->state = MGR__SETTER_LOOK;
}

static mgr__str mgr__setter_marker_value(const mgr__setter *s, mgr__request *r, const char *hash, uint64_t count)
{
    mgr__buf value;
    mgr__marker marker = s->marker;
    mgr__marker_replace(&marker, hash);
    marker.count = count;
    if (s->first || (s->commanded && s->placement)) mgr__marker_place(&marker, s->placement);
    if (hash[0]) marker.version = s->version > marker.version ? s->version : marker.version;
    if (marker.delay_max_ms < s->delay_ms) marker.delay_max_ms = s->delay_ms;
    if (marker.fence_base < s->fence_floor && s->first) marker.fence_base = s->fence_floor;
    mgr__buf_init(&value, r->arena.heap, 1024);
    mgr__marker_write(&marker, &value);
    return mgr__request_keep(r, &value);
}

static mgr__str mgr__setter_fresh_owner(const mgr__setter *s, mgr__request *r)
{
    return mgr__holding_nobodys(r, !s->lost, s->marker.delay_max_ms > s->delay_ms ? s->marker.delay_max_ms : s->delay_ms);
}

/* A name that the replaced set had and whose key is gone was deleted by hand:
 * it stays missing, and a missing key counts as lost. */
static bool mgr__setter_makes(const mgr__setter *s, size_t i) { return !s->stands[i] && !mgr__set_has(&s->old, s->wanted.names[i]); }

static void mgr__setter_fill_make(mgr__setter *s, const mgr__root *root, mgr__request *r)
{
    mgr__str value = mgr__setter_fresh_owner(s, r);
    mgr__request_check_index(r, mgr__key_fixed(&r->arena, root, "cluster/partitions"), s->marker.modify_index);
    size_t i = s->next;
    for (; i < s->wanted.count && r->op_count < MGR__SETTER_BATCH; i++)
        if (mgr__setter_makes(s, i)) mgr__request_on(r, MGR__CAS, root, "owners/", s->wanted.names[i])->value = value;
    s->batch = i;
}

static void mgr__setter_fill_write(mgr__setter *s, mgr__heap *heap, const mgr__root *root, mgr__request *r)
{
    mgr__buf text;
    if (s->keeps_set) {
        mgr__request_op(r, MGR__CAS, mgr__key_fixed(&r->arena, root, "cluster/partitions"))->index = s->marker.modify_index;
        r->ops[0].value = mgr__setter_marker_value(s, r, s->marker.hash, s->marker.count);
        return;
    }
    mgr__buf_init(&text, heap, MGR__SET_BYTES_MAX);
    mgr__set_write(&s->wanted, heap, &text);
    if (text.failed)
        mgr__setter_end(s, MGR_LIMIT, "the partition set is larger than one Consul value: use numbers, which are stored as ranges");
    mgr__str hash = mgr__arena_str(&r->arena, mgr__str_of(s->wanted.hash));
    mgr__request_on(r, MGR__SET, root, "sets/", hash)->value = mgr__request_keep(r, &text);
    mgr__op *op = mgr__request_op(r, MGR__CAS, mgr__key_fixed(&r->arena, root, "cluster/partitions"));
    op->index = s->marker.modify_index;
    op->value = mgr__setter_marker_value(s, r, s->wanted.hash, s->wanted.count);
}

/* The next request, in r (already started as a TXN); false: nothing to ask now. */
static bool mgr__setter_next(mgr__setter *s, mgr__heap *heap, const mgr__root *root, mgr__request *r, int64_t now)
{
    switch (s->state) {
    case MGR__SETTER_LOOK:
        if (now < s->not_before) return false;
        mgr__request_op(r, MGR__GET, mgr__key_fixed(&r->arena, root, "cluster/partitions"));
        return true;
    case MGR__SETTER_MARK:
        /* Index 0: there is none. */
        mgr__request_op(r, MGR__CAS, mgr__key_fixed(&r->arena, root, "cluster/partitions"))->index = s->marker.modify_index;
        r->ops[0].value = mgr__setter_marker_value(s, r, "", s->marker.count + 1);
        return true;
    case MGR__SETTER_OLD:
        mgr__request_on(r, MGR__GET, root, "sets/", mgr__arena_str(&r->arena, mgr__str_of(s->marker.hash)));
        return true;
    case MGR__SETTER_SESSIONS:
        r->ask = MGR__ASK_SESSION_LIST;
        return true;
    case MGR__SETTER_OWNERS:
        r->ask = MGR__ASK_LIST;
        r->key = mgr__key_fixed(&r->arena, root, "owners/");
        return true;
    case MGR__SETTER_MAKE:
        mgr__setter_fill_make(s, root, r);
        return true;
    case MGR__SETTER_WRITE:
        mgr__setter_fill_write(s, heap, root, r);
        return s->state == MGR__SETTER_WRITE;
    case MGR__SETTER_IDLE: case MGR__SETTER_DONE:
        break;
    }
    return false;
}

/* A policy that this program does not know is replaced only by a command that names another.
 * True: that ends it, or nothing but the placement is to be written. */
static bool mgr__setter_placed(mgr__setter *s)
{
    if (!mgr__marker_known(&s->marker) && !(s->commanded && s->placement))
        mgr__setter_end(s, MGR_INVALID, "the service is placed by a policy that this program does not know: use a manager.h that knows it");
    else if (!s->keeps_set) return false;
    else if (s->first) mgr__setter_end(s, MGR_NOT_FOUND, "the service has no partition set: start one instance with partitions first");
    else if (mgr__marker_placement(&s->marker) == s->placement) mgr__setter_end(s, MGR_OK, "");
    else s->state = MGR__SETTER_WRITE;
    return true;
}

static void mgr__setter_looked(mgr__setter *s, mgr__heap *heap, const mgr__answer *a, int64_t now)
{
    mgr__buf scratch;
    mgr__buf_init(&scratch, heap, 4096);
    memset(&s->marker, 0, sizeof s->marker);
    bool readable = a->kv_count == 0 || mgr__marker_read(&s->marker, &a->kvs[0], &scratch);
    mgr__buf_free(&scratch);
    s->first = !mgr__marker_stands(&s->marker);
    if (s->version == MGR__VERSION_STANDING) { s->commanded = true; s->version = s->marker.version; }
    if (!readable && s->commanded) s->remembered = true;    /* it stood once, so nothing counts as released; the command replaces it */
    else if (!readable) {
        mgr__setter_end(s, MGR_PROTOCOL,
                        "cluster/partitions does not hold what manager.h writes: put a set in force with `manager partitions`, "
                        "or use another prefix");
        return;
    }
    if (mgr__setter_placed(s)) return;
    bool old = !s->commanded && s->version <= s->marker.version && mgr__marker_was_replaced(&s->marker, s->wanted.hash);
    if (!s->first && (old || s->version < s->marker.version)) { s->taken_over = true; mgr__setter_end(s, MGR_OK, ""); return; }
    if (!s->first) { s->state = MGR__SETTER_OLD; return; }
    if (s->marker.exists && s->seen_making != s->marker.modify_index) { s->seen_making = s->marker.modify_index; s->seen_since = now; }
    if (s->marker.exists && now - s->seen_since < MGR__SETTER_TAKEOVER_MS) { s->not_before = now + MGR__SETTER_POLL_MS; return; }
    s->state = MGR__SETTER_MARK;
}

static bool mgr__setter_sessions_others(const mgr__setter *s, mgr__str session_name, const mgr__answer *a)
{
    for (size_t i = 0; i < a->kv_count; i++)
        if (mgr__str_eq(a->kvs[i].key, session_name) && !mgr__str_eq(a->kvs[i].session, s->own_session)) return true;
    return false;
}

static void mgr__setter_owners_read(mgr__setter *s, mgr__heap *heap, const mgr__root *root, const mgr__answer *a)
{
    mgr__arena arena;
    mgr__str rest, name;
    mgr__arena_init(&arena, heap);
    mgr__free(heap, s->stands);
    s->stands = (bool *)mgr__alloc_array(heap, s->wanted.count + 1, sizeof *s->stands);
    for (size_t i = 0; s->stands && i < a->kv_count; i++) {
        if (!mgr__key_below(a->kvs[i].key, root, "owners/", &rest) || !mgr__key_name(&arena, rest, &name)) continue;
        const mgr__str *at = mgr__set_find(&s->wanted, name);
        if (at) s->stands[at - s->wanted.names] = true;
    }
    mgr__arena_free(&arena);
    s->next = 0;
    if (!s->stands) mgr__setter_end(s, MGR_NO_MEMORY, "out of memory");
    else s->state = MGR__SETTER_MAKE;
}

static void mgr__setter_skip_made(mgr__setter *s)
{
    while (s->next < s->wanted.count && !mgr__setter_makes(s, s->next)) s->next++;
    if (s->next == s->wanted.count) s->state = MGR__SETTER_WRITE;
}

static void mgr__setter_failed(mgr__setter *s, const mgr__answer *a, int64_t now)
{
    switch (a->outcome) {
    case MGR__OUTCOME_CONFLICT: mgr__setter_again(s); break;
    case MGR__OUTCOME_DENIED:   mgr__setter_end(s, MGR_DENIED, "the token lacks key_prefix \"manager/<service>/\" write"); break;
    case MGR__OUTCOME_REJECTED: mgr__setter_end(s, MGR_LIMIT, "Consul rejects the partition set"); break;
    case MGR__OUTCOME_OK: case MGR__OUTCOME_NOT_FOUND: case MGR__OUTCOME_UNSENT: case MGR__OUTCOME_UNKNOWN:
        s->state = MGR__SETTER_LOOK;
        s->not_before = now + MGR__SETTER_POLL_MS;
        break;
    }
}

/* The set that stands: NULL if its key is gone or cannot be read (by hand): then it is
 * written again if it is ours, and else nothing that it may have named counts as new. */
static void mgr__setter_old(mgr__setter *s, mgr__heap *heap, const mgr__answer *a)
{
    bool same = strcmp(s->marker.hash, s->wanted.hash) == 0;
    mgr__set_free(&s->old);
    s->old.arena.heap = heap;
    bool read = a && a->kv_count && mgr__set_read(&s->old, heap, a->kvs[0].value) && strcmp(s->old.hash, s->marker.hash) == 0;
    bool placed = !s->commanded || !s->placement || s->placement == mgr__marker_placement(&s->marker);
    if (same && read && placed && s->version <= s->marker.version) mgr__setter_end(s, MGR_OK, "");
    else if (same) s->state = MGR__SETTER_WRITE;
    else { s->lost = !read; s->state = MGR__SETTER_OWNERS; }
}

static void mgr__setter_answer(mgr__setter *s, mgr__heap *heap, const mgr__root *root, mgr__str session_name, const mgr__answer *a,
                               int64_t now)
{
    bool gets = s->state == MGR__SETTER_LOOK || s->state == MGR__SETTER_OLD;
    bool missing = a->outcome == MGR__OUTCOME_CONFLICT && gets;     /* a get of a key that is not there */
    if (a->outcome != MGR__OUTCOME_OK && !missing) { mgr__setter_failed(s, a, now); return; }
    switch (s->state) {
    case MGR__SETTER_LOOK: mgr__setter_looked(s, heap, a, now); break;
    case MGR__SETTER_MARK:
        if (a->kv_count) s->marker.modify_index = a->kvs[0].modify_index;
        s->marker.exists = true;
        s->marker.count++;
        s->state = a->kv_count ? MGR__SETTER_SESSIONS : MGR__SETTER_LOOK;
        break;
    case MGR__SETTER_OLD:
        mgr__setter_old(s, heap, missing ? NULL : a);
        break;
    case MGR__SETTER_SESSIONS:
        s->lost = s->remembered || mgr__setter_sessions_others(s, session_name, a);
        s->state = MGR__SETTER_OWNERS;
        break;
    case MGR__SETTER_OWNERS: mgr__setter_owners_read(s, heap, root, a); if (s->state == MGR__SETTER_MAKE) mgr__setter_skip_made(s); break;
    case MGR__SETTER_MAKE: s->next = s->batch; mgr__setter_skip_made(s); break;
    case MGR__SETTER_WRITE: mgr__setter_end(s, MGR_OK, ""); break;
    case MGR__SETTER_IDLE: case MGR__SETTER_DONE: break;
    }
}

/* ---- the core: types ---- */

enum {
    MGR__LIFE_BYTES = 40,       /* a session's id has 36 characters */
    MGR__NODE_BYTES = 128,
    MGR__SERVICE_BYTES = MGR_NAME_BYTES_MAX * 6 + 40,   /* two names, escaped, and a nonce */
    MGR__EXIT_BYTES = 80        /* "exit 1", "signal 9", "not started: No such file or directory" */
};

/* A partition's life in one instance. The diagram is in [manual]. */
typedef enum mgr__part_state {
    MGR__PART_IDLE,             /* not ours; perhaps wanted */
    MGR__PART_ACQUIRING,        /* a lock is in flight */
    MGR__PART_ASSUMED,          /* we hold the lock and work */
    MGR__PART_RELEASING,        /* work is being stopped */
    MGR__PART_UNLOCKING,        /* work is gone; the unlock is to be confirmed */
    MGR__PART_LOST              /* the lock is gone or doubtful: work is being killed */
} mgr__part_state;

typedef struct mgr__part {
    mgr__str name;              /* terminated; owned */
    void    *work;              /* the executor's */
    mgr__part_state state;
    bool     in_set, assigned, unplaceable;
    bool     gone;              /* RELEASING, LOST: the executor says that nothing of the work is left */

    uint64_t key_index;         /* ModifyIndex of the key now, as far as we wrote it */
    uint64_t fence;             /* fence_base + the lock's ModifyIndex: what work sees */
    uint64_t watermark;         /* highest fence under which an unlock was sent: no work starts at or below it */
    uint64_t doubt_index;       /* a lock conditioned on this index was sent and never answered; 0: none */
    bool     came_back;         /* the store went back in time: a lock that we gave back may stand again, to be read */
    uint64_t round;             /* of confirmation */
    bool     writing;           /* its key is in flight on the work lane */
    bool     dirty;             /* what stands in its value is out of date */
    uint64_t serial, since_ms, attempts;
    char     last_exit[MGR__EXIT_BYTES];
    bool     ended;

    bool     stale;             /* to be read before anything is decided */
    bool     seen, seen_exists, seen_released;
    uint64_t seen_index;
    char     holder[MGR__LIFE_BYTES]; /* life in the value; while `held`, of the session that holds the lock */
    char     holder_id[64];     /* for messages; cut short */
    bool     held;
    uint64_t holder_index;      /* ModifyIndex of the holder's key in the picture of that time */
    int64_t  lost_since;        /* when we first saw (key, seen_index) without a holder */
    uint64_t lost_index;
    int64_t  lost_delay_ms;
    bool     told_waiting;

    bool     refused;
    int64_t  refused_until;
    uint32_t refusals;          /* doubles the time of the next */
} mgr__part;

typedef enum mgr__phase {
    MGR__PHASE_CLEAN,           /* a former life of ours is certified, destroyed, deregistered */
    MGR__PHASE_NODE,            /* which agent is this? */
    MGR__PHASE_LOOK,            /* the first picture */
    MGR__PHASE_SET,             /* the partition set: make ours stand, or wait for one */
    MGR__PHASE_REGISTER,
    MGR__PHASE_SESSION,
    MGR__PHASE_JOIN,
    MGR__PHASE_MEMBER,
    MGR__PHASE_ENDING,          /* the life is over: work is being stopped */
    MGR__PHASE_LEAVING,         /* as asked: release everything first */
    MGR__PHASE_PARTING,         /* work is gone: own key, session, service */
    MGR__PHASE_LEFT
} mgr__phase;

typedef enum mgr__task {
    MGR__TASK_NONE, MGR__TASK_WATCH, MGR__TASK_CONFIRM, MGR__TASK_RENEW, MGR__TASK_PASS,
    MGR__TASK_NODE, MGR__TASK_LOOK, MGR__TASK_REGISTER, MGR__TASK_SESSION, MGR__TASK_JOIN,
    MGR__TASK_SETTER, MGR__TASK_READ_SET, MGR__TASK_MISS_SET, MGR__TASK_RESTORE_SET,
    MGR__TASK_OWN_READ, MGR__TASK_OWN_WRITE, MGR__TASK_READ, MGR__TASK_MISSING, MGR__TASK_LOCK, MGR__TASK_UNLOCK, MGR__TASK_REWRITE,
    MGR__TASK_CERTIFY, MGR__TASK_DESTROY, MGR__TASK_DEREGISTER, MGR__TASK_PARTING, MGR__TASK_PARTING_LOOK, MGR__TASK_WISH, MGR__TASK_PAUSE,
    MGR__TASK_BURY, MGR__TASK_BURY_SERVICE, MGR__TASK_SWEEP_LIST, MGR__TASK_SWEEP, MGR__TASK_FENCE_BASE, MGR__TASK_SLOT
} mgr__task;

typedef struct mgr__errand {    /* what is out on one lane */
    mgr__request request;
    bool         out;
    int64_t      sent_at;
    uint64_t     index_max;     /* highest index seen when it was sent: a write answers with a higher one */
    mgr__task    task;
    mgr__part   *parts[MGR__TXN_OPS_MAX];   /* by op; NULL: the op is not about a partition */
} mgr__errand;

typedef enum mgr__action_kind {
    MGR__ACT_REQUEST,           /* send errands[lane].request and report with mgr__cluster_answer */
    MGR__ACT_WORK_BEGIN,        /* part: begin work under part->fence */
    MGR__ACT_WORK_STOP,         /* part: end it within `ms`, then by force; report with mgr__cluster_gone */
    MGR__ACT_WORK_KILL,         /* part: end it by force, at once; report likewise */
    MGR__ACT_LEASE,             /* extend to `at`; if it is closed, mgr__cluster_over */
    MGR__ACT_LIFE,              /* a life began: what a keeper must know to end it */
    MGR__ACT_FRESH_KEEPER,      /* all work of the former life is dead: a new keeper, then mgr__cluster_ready */
    MGR__ACT_PROVE,             /* look whether everything of the life `instance` of this boot is dead, of which `text` is the evidence;
                                   report with mgr__cluster_proved */
    MGR__ACT_EVENT,
    MGR__ACT_LEFT               /* out of the cluster, for `result` */
} mgr__action_kind;

typedef struct mgr__action {
    mgr__action_kind kind;
    mgr__lane        lane;
    mgr__part       *part;
    int64_t          at;
    uint32_t         ms;
    mgr_result       result;
    mgr_event_kind   event;
    char             instance[MGR_NAME_BYTES_MAX + 1];
    char             text[MGR_NAME_BYTES_MAX * 2 + 200];
} mgr__action;

typedef struct mgr__cluster_config {
    mgr__str service_id, instance_id, kv_prefix, service_name;   /* kept by the caller */
    const char *const *partitions;   /* NULL: take the cluster's */
    size_t   partition_count;
    uint64_t partitions_version;
    mgr_placement placement;
    uint32_t weight, lease_ms, kill_margin_ms, stop_grace_ms, delay_ms, session_ttl_ms;
    uint32_t rejoin_grace_ms, settle_ms, moves_max, start_timeout_ms;
    uint32_t breaker_percent;        /* 0: none */
    uint64_t seed;
    mgr__str boot;                   /* names this boot and PID namespace; "": unknown */
    uint64_t pid;
    bool   (*alive)(void *user, uint64_t pid);   /* the one question to the outside: does this process of this boot live? NULL: unknown */
    void    *user;
} mgr__cluster_config;

/* What this process itself has found out about a life of this boot, just now. */
typedef enum mgr__verdict {
    MGR__VERDICT_NONE,          /* there is no proof, and none will come */
    MGR__VERDICT_LATER,         /* something of it is alive, or held */
    MGR__VERDICT_DEAD           /* invariant 4 is met: it may be certified */
} mgr__verdict;

/* A dead life of this boot, and where its proof stands. */
typedef struct mgr__inquest {
    char    life[MGR__LIFE_BYTES]; /* "": none */
    bool    open;               /* it may yet be proven */
    bool    told;
    int64_t since, asked_at;    /* asked_at 0: not yet */
    mgr__verdict verdict;
    char    why[160];           /* why it is not proven */
} mgr__inquest;

typedef struct mgr__burial {        /* of a dead member, as its key stands */
    char     id[MGR_NAME_BYTES_MAX + 1];
    uint64_t modify_index, grace_ms;
    int64_t  due_at;
    mgr__inquest inquest;
} mgr__burial;

typedef struct mgr__vanished { char id[MGR_NAME_BYTES_MAX + 1]; int64_t at; } mgr__vanished;
typedef enum mgr__pause_wish { MGR__PAUSE_NONE, MGR__PAUSE_ON, MGR__PAUSE_OFF } mgr__pause_wish;
typedef struct mgr__wanted_wish { char id[MGR_NAME_BYTES_MAX + 1]; bool evict, drain; } mgr__wanted_wish;

/* Times are milliseconds of the clock by which the caller says what `now` is. */
typedef struct mgr__cluster {
    mgr__heap  *heap;
    mgr__cluster_config config;
    mgr__root   root;
    mgr__rng    rng;
    char        session_name[MGR_NAME_BYTES_MAX * 2 + 2];   /* the same for all sessions of the service: they are counted by it */

    /* where we stand */
    mgr__phase  phase;
    int64_t     phase_since;
    int64_t     not_before;         /* of the next request on the work lane */
    uint32_t    failures;           /* of entering, in a row, for the back-off */
    bool        reachable, told_reachability;
    bool        keeper_ready;       /* not between a life and the keeper of the next */
    bool        told_identity;      /* that somebody holds our id, and is waited for */
    int64_t     started_at;
    bool        entered_once;

    /* leaving */
    uint32_t    leaves;             /* how often it was asked for: the second time kills */
    int64_t     leave_since;
    bool        want_leave, want_kill;
    mgr_result  leave_result;
    bool        drain;              /* our own wish */
    bool        parting_look;       /* what we know of our slot is out of date: look before we part */

    /* this life, and the one before */
    char        life[MGR__LIFE_BYTES];          /* its session's id; "" outside one */
    char        node[MGR__NODE_BYTES];          /* of the agent, as Consul names it */
    char        service[MGR__SERVICE_BYTES];    /* Consul service id; carries a nonce of this life */
    const char *isolate;            /* static text: how the keeper keeps processes together */
    bool        registered;         /* `service` may stand: to be deregistered */
    bool        session_unclear;    /* a session may stand whose id never came */
    char        proof[96];          /* of this keeper's life, for the own key: set by whoever made the keeper; "": none */
    char        past_life[MGR__LIFE_BYTES];     /* of this very process: its end is not ours to prove */
    mgr__inquest former;            /* of our id, by another process of this boot */
    int64_t     look_at;            /* LOOK: who has our id is waited for, on the watch; the next look is due then. 0: not waiting */
    uint64_t    look_index;         /* what the last look showed of its key: ModifyIndex, ... */
    bool        look_alive;         /* ... and whether it lives */
    char        old_life[MGR__LIFE_BYTES];      /* to be certified and destroyed */
    bool        certify;            /* its work is dead, and may be said to be */
    bool        old_certified, old_destroyed;   /* ... which is done */
    bool        unproven;           /* in-process work was lost in this life: its end is no proof */

    mgr__errand errands[MGR__LANE_COUNT];
    mgr__action *actions;
    size_t      action_count, action_cap;
    mgr__action spare;              /* written, never read, when out of memory: callers need not check */
    bool        failed;             /* out of memory: everything is given up */

    /* the lease */
    int64_t     lease_until;
    uint64_t    round;              /* of confirmation: our own key and each that is held, once */
    int64_t     round_started, next_round;
    bool        round_open;         /* begun, and not yet complete */
    bool        renew_due, pass_due;    /* after each: the session, and the instance's own check */

    /* the picture and the map */
    mgr__picture picture;
    bool        have_picture;
    uint64_t    watch_index;        /* the watch waits for a higher one; 0: for none */
    uint64_t    index_max;          /* highest seen: a write answers with a higher one */
    uint64_t    fence_top;          /* highest fence that can have been given out, as far as we know */
    int64_t     delay_seen_ms;      /* the longest delay that any instance was ever seen to use */
    mgr__marker marker_seen;        /* the last readable one: to restore it */
    int64_t     distrust_until;     /* the index went down: no "released" is believed until then */
    int64_t     watch_not_before, rewrite_not_before, marker_not_before, slot_not_before;
    uint32_t    watch_failures, work_failures;      /* in a row */
    uint64_t    outrun_index;       /* of the marker in the picture when a lock last failed on it, ... */
    uint32_t    outruns;            /* ... and how often in a row */
    bool        told_placement;     /* that ours is not the one that stands; or that this one is not known */
    mgr__set    set;
    bool        have_set;
    char        set_told[MGR__HASH_BYTES];      /* which one was told of last */
    bool        set_missed;         /* the set in force is not to be read: whoever has it is to be told */
    uint64_t    missed_index;       /* ModifyIndex of what stands there instead; 0: nothing */
    char        missed_told[MGR__HASH_BYTES];   /* which one we said is missing */
    uint32_t    misses;             /* in a row, for the back-off */
    int64_t     set_not_before;
    uint64_t    missing_index;      /* of the cluster/missing that we saw last, ... */
    int64_t     missing_not_before; /* ... and when we answer it */
    uint64_t    map_digest;         /* of what the map was computed from */
    bool        map_stale;          /* the picture, or the set, is another */
    uint64_t    fence_floor;        /* no fence at or below it is given out again */

    mgr__set    configured;         /* until the setter has taken it over */
    bool        have_configured;
    mgr__setter setter;

    /* our own key */
    uint64_t    own_index;          /* its ModifyIndex */
    bool        own_dirty;          /* what stands in it is out of date */
    bool        own_unclear;        /* an answer was lost, or it was changed by hand: to be read first */
    bool        joining;
    int64_t     joining_until, joining_most;    /* the second while younger ones join */
    uint64_t    releases;           /* the count that wakes those who wait */
    uint64_t    wall_offset_ms;     /* wall clock minus our clock, for display only */

    mgr__part **parts;              /* sorted by name */
    size_t      part_count, part_cap;
    int64_t     next_audit;         /* what is unmet or in doubt is read again then */

    mgr__burial *burials;
    size_t      burial_count, burial_cap;
    char        bury_service[MGR__SERVICE_BYTES], bury_node[MGR__NODE_BYTES];   /* of who was buried last: to be deregistered; "": none */
    mgr__wanted_wish *wishes;       /* for others, in the order in which they were told; not yet written */
    size_t      wish_count, wish_cap;

    /* pauses */
    mgr__pause_wish pause_wish;     /* what this instance was told, not yet done */
    char        pause_reason[MGR__REASON_BYTES];
    bool        breaker_due;        /* ours has tripped, and no pause stands yet */
    char        breaker_reason[MGR__REASON_BYTES];
    int64_t     hold_until;         /* it holds our own moves until the pause stands, at most so long */
    int64_t     breaker_since;      /* when one first held since all was still; 0: none has */
    int64_t     pause_not_before;
    uint64_t    pause_put, pause_taken;     /* the index of our last write of the key, and of the key that we last deleted */
    mgr__vanished *vanished;        /* members seen dead within one delay, and not back */
    size_t      vanished_count, vanished_cap;
    uint64_t    still_digest;       /* of who is a member: how long has nobody come or gone? */
    int64_t     still_since;

    int64_t     next_sweep;
    uint64_t    sweep_index;        /* certificates up to it were there at the last sweep */
    bool        sweeping;           /* `swept` is to be deleted */
    char        swept[32][MGR__LIFE_BYTES];
    size_t      swept_count;
} mgr__cluster;

enum {
    MGR__CONFIRMS_PER_LEASE = 3,
    MGR__SETTLES_MAX = 4,           /* a joiner waits so many times its settle_ms for younger ones */
    MGR__BACKOFF_MIN_MS = 250, MGR__BACKOFF_MAX_MS = 8000,
    MGR__CONFIRM_RETRY_MIN_MS = 50, MGR__CONFIRM_RETRY_MAX_MS = 1000,   /* or a tenth of the lease, in between */
    MGR__CONFIRM_SOON_MS = 20,      /* what is being written is confirmed by that write, or then */
    MGR__SWEEP_MS = 600000, MGR__SWEEP_FIRST_MS = 60000,
    MGR__RESTORE_SET_MS = 2000,     /* a set is put back by the first member; after so long, with jitter, by any */
    MGR__MARKER_WAIT_MS = 20,
    MGR__LEAVE_EXTRA_MS = 2000, MGR__LEAVE_LOOK_MS = 250,
    MGR__BURY_JITTER_MS = 150,      /* of those who could bury a dead member one will be first */
    MGR__IDENTITY_WAIT_MS = 1000,   /* a former life of ours whose process is unknown: beyond the polite stop and the kill margin */
    MGR__PROVE_MS = 2000, MGR__PROVE_AGAIN_MS = 20,     /* a death that is not proven by then is waited for no longer */
    MGR__REWRITE_MS = 250,          /* from a lock or the last rewrite to the next one, see mgr__cluster_ask_rewrite */
    MGR__BURY_MS = 300, MGR__BURY_SPREAD_MS = 1000,     /* where nobody waits for it: after the heirs have begun, and not all at once */
    MGR__REFUSE_MS = 5000, MGR__REFUSE_MAX_MS = 3600000,
    MGR__STILL_DELAYS = 2, MGR__STILL_SETTLES = 4, MGR__STILL_JITTER_MS = 500,   /* a breaker ends: so long nobody has come or gone */
    MGR__BREAKER_STILLS = 8,        /* or at last after so many times that, whoever comes and goes */
    MGR__PAUSE_AGAIN_MS = 1000,     /* until the picture shows what was written */
    MGR__LOCKS_PER_TXN = 31, MGR__LOCK_OPS = 3 /* check, unlock, lock */, MGR__UNLOCKS_PER_TXN = 31, MGR__READS_PER_TXN = 63
};

/* ---- the core: actions out ---- */

static mgr__action *mgr__cluster_act(mgr__cluster *c, mgr__action_kind kind)
{
    void *items = c->actions;
    if (!mgr__grow(c->heap, &items, &c->action_cap, c->action_count, sizeof *c->actions)) { c->failed = true; return &c->spare; }
    c->actions = (mgr__action *)items;
    mgr__action *action = &c->actions[c->action_count++];
    memset(action, 0, sizeof *action);
    action->kind = kind;
    return action;
}

static void mgr__cluster_tell_args(mgr__cluster *c, mgr_event_kind event, mgr__part *part, mgr__str instance, const char *format,
                                   va_list args)
    MGR__PRINTF(5, 0);
static void mgr__cluster_tell_args(mgr__cluster *c, mgr_event_kind event, mgr__part *part, mgr__str instance, const char *format,
                                   va_list args)
{
    mgr__action *action = mgr__cluster_act(c, MGR__ACT_EVENT);
    action->event = event;
    action->part = part;
    mgr__copy_text(action->instance, sizeof action->instance, instance);
    vsnprintf(action->text, sizeof action->text, format, args);
    mgr__one_line(action->text);
}

/* An event of the cluster, or of this instance. */
static void mgr__cluster_tell(mgr__cluster *c, mgr_event_kind event, const char *format, ...) MGR__PRINTF(3, 4);
static void mgr__cluster_tell(mgr__cluster *c, mgr_event_kind event, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    mgr__cluster_tell_args(c, event, NULL, mgr__nobody(), format, args);
    va_end(args);
}

/* ... of a partition, which may be NULL, or of an instance, which may be nobody. */
static void mgr__cluster_tell_of(mgr__cluster *c, mgr_event_kind event, mgr__part *part, mgr__str instance, const char *format, ...)
    MGR__PRINTF(5, 6);
static void mgr__cluster_tell_of(mgr__cluster *c, mgr_event_kind event, mgr__part *part, mgr__str instance, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    mgr__cluster_tell_args(c, event, part, instance, format, args);
    va_end(args);
}

/* ---- the core: small questions ---- */

static mgr__str mgr__cluster_life(const mgr__cluster *c) { return mgr__str_of(c->life); }

/* Our own key, as the picture shows it; NULL: it shows none. */
static const mgr__member *mgr__cluster_own(const mgr__cluster *c) { return mgr__picture_member(&c->picture, c->config.instance_id); }

static bool mgr__part_works(const mgr__part *p) { return p->state == MGR__PART_ASSUMED || p->state == MGR__PART_RELEASING; }

/* Work may be alive: nothing may be certified. */
static bool mgr__part_busy(const mgr__part *p) { return mgr__part_works(p) || (p->state == MGR__PART_LOST && !p->gone); }

static bool mgr__cluster_busy(const mgr__cluster *c)
{
    for (size_t i = 0; i < c->part_count; i++) if (mgr__part_busy(c->parts[i])) return true;
    return false;
}

/* Could another instance do what this one cannot? */
static bool mgr__cluster_others_may(const mgr__cluster *c, const mgr__part *p)
{
    for (size_t i = 0; i < c->picture.member_count; i++) {
        const mgr__member *m = &c->picture.members[i];
        if (!m->alive || m->leaving || mgr__member_drains(m) || mgr__str_eq(m->id, c->config.instance_id)) continue;
        bool refuses = false;
        for (size_t r = 0; r < m->refuse_count; r++) refuses = refuses || mgr__str_eq(m->refuses[r], p->name);
        if (!refuses) return true;
    }
    return false;
}

static bool mgr__cluster_in_life(const mgr__cluster *c) { return c->phase == MGR__PHASE_MEMBER || c->phase == MGR__PHASE_LEAVING; }

/* Among the first `count`, which are sorted. */
static mgr__part *mgr__cluster_part_among(const mgr__cluster *c, mgr__str name, size_t count)
{
    size_t lo = 0, hi = count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int order = mgr__str_order(c->parts[mid]->name, name);
        if (order == 0) return c->parts[mid];
        if (order < 0) lo = mid + 1; else hi = mid;
    }
    return NULL;
}

static mgr__part *mgr__cluster_part(const mgr__cluster *c, mgr__str name) { return mgr__cluster_part_among(c, name, c->part_count); }

static uint32_t mgr__cluster_jitter(mgr__cluster *c, uint32_t ms) { return ms / 2 + mgr__rng_below(&c->rng, ms / 2 + 1); }

/* Rounds come often enough for the lease and for the session's TTL. */
static int64_t mgr__cluster_round_ms(const mgr__cluster *c)
{
    return mgr__min64(c->config.lease_ms, c->config.session_ttl_ms) / MGR__CONFIRMS_PER_LEASE;
}

/* Twice as long each time, up to `most`. */
static uint32_t mgr__cluster_doubled_ms(mgr__cluster *c, uint32_t times, int64_t most)
{
    int64_t ms = MGR__BACKOFF_MIN_MS;
    for (uint32_t i = 1; i < times && ms < most; i++) ms *= 2;
    return mgr__cluster_jitter(c, (uint32_t)mgr__min64(ms, most));
}

/* While Consul fails: never longer than from one confirmation to the next, so that its
 * return is soon noticed, and an outage costs it no more requests than a good day. */
static uint32_t mgr__cluster_backoff(mgr__cluster *c, uint32_t failures)
{
    return mgr__cluster_doubled_ms(c, failures, mgr__min64(MGR__BACKOFF_MAX_MS, mgr__max64(MGR__BACKOFF_MIN_MS, mgr__cluster_round_ms(c))));
}

static void mgr__cluster_phase(mgr__cluster *c, mgr__phase phase, int64_t now)
{
    c->phase = phase;
    c->phase_since = now;
    c->not_before = now;
    c->look_at = 0;
}

/* An attempt did not work out: wait, longer each time, then go on in `phase`. */
static void mgr__cluster_later(mgr__cluster *c, mgr__phase phase, int64_t now)
{
    c->failures++;
    c->phase = phase;
    c->not_before = now + mgr__cluster_backoff(c, c->failures);
}

static void mgr__cluster_left(mgr__cluster *c, mgr_result result, int64_t now)
{
    if (c->phase == MGR__PHASE_LEFT) return;
    mgr__cluster_phase(c, MGR__PHASE_LEFT, now);
    const char *how = result == MGR_OK ? "as asked" : mgr_result_text(result);
    if (!c->reachable && c->entered_once) how = "Consul could not be told, so others wait the delay";
    mgr__cluster_tell_of(c, MGR_EVENT_LEFT, NULL, c->config.instance_id, "left service %s: %s", c->config.service_id.at, how);
    mgr__cluster_act(c, MGR__ACT_LEFT)->result = result;
}

/* ---- the core: partitions come and go ---- */

static mgr__part *mgr__cluster_add_part(mgr__cluster *c, mgr__str name)
{
    void *items = c->parts;
    mgr__part *part = (mgr__part *)mgr__alloc(c->heap, sizeof *part);
    char *copy = mgr__dup(c->heap, name);
    if (!part || !copy || !mgr__grow(c->heap, &items, &c->part_cap, c->part_count, sizeof *c->parts)) {
        mgr__free(c->heap, part);
        mgr__free(c->heap, copy);
        c->failed = true;
        return NULL;
    }
    c->parts = (mgr__part **)items;
    part->name = mgr__str_make(copy, name.len);
    part->stale = true;
    c->parts[c->part_count++] = part;
    return part;
}

static int mgr__part_order(const void *a, const void *b)
{
    return mgr__str_order((*(mgr__part *const *)a)->name, (*(mgr__part *const *)b)->name);
}

static void mgr__part_free(mgr__cluster *c, mgr__part *part)
{
    char *name;
    memcpy(&name, &part->name.at, sizeof name);     /* we made it: not const */
    mgr__free(c->heap, name);
    mgr__free(c->heap, part);
}

/* A partition that the set no longer names is kept until nothing of ours is left in it. */
static bool mgr__part_kept(const mgr__part *p)
{
    return p->in_set || p->state != MGR__PART_IDLE || p->writing || p->work || p->doubt_index;
}

static bool mgr__cluster_names_part(const mgr__cluster *c, const mgr__part *p)
{
    for (int lane = 0; lane < MGR__LANE_COUNT; lane++) {
        const mgr__errand *e = &c->errands[lane];
        for (size_t i = 0; e->out && i < e->request.op_count; i++) if (e->parts[i] == p) return true;
    }
    return false;
}

static void mgr__cluster_drop_parts(mgr__cluster *c)
{
    size_t kept = 0;
    for (size_t i = 0; i < c->part_count; i++) {
        if (mgr__part_kept(c->parts[i]) || mgr__cluster_names_part(c, c->parts[i])) c->parts[kept++] = c->parts[i];
        else mgr__part_free(c, c->parts[i]);
    }
    c->part_count = kept;
}

/* Takes over `set`. */
static void mgr__cluster_take_set(mgr__cluster *c, mgr__set *set)
{
    mgr__set_free(&c->set);
    c->set = *set;
    memset(set, 0, sizeof *set);
    c->have_set = true;
    for (size_t i = 0; i < c->part_count; i++) c->parts[i]->in_set = mgr__set_has(&c->set, c->parts[i]->name);
    size_t known = c->part_count;
    for (size_t i = 0; i < c->set.count && !c->failed; i++) {
        mgr__part *part = mgr__cluster_part_among(c, c->set.names[i], known);
        if (!part) part = mgr__cluster_add_part(c, c->set.names[i]);
        if (part) part->in_set = true;
    }
    if (c->part_count) qsort(c->parts, c->part_count, sizeof *c->parts, mgr__part_order);
    c->map_stale = true;
    if (strcmp(c->set_told, c->set.hash) != 0) {
        mgr__copy_text(c->set_told, sizeof c->set_told, mgr__str_of(c->set.hash));
        mgr__cluster_tell(c, MGR_EVENT_SET_CHANGED, "the partition set has %lu partition%s",
                          (unsigned long)c->set.count, c->set.count == 1 ? "" : "s");
    }
}

/* ---- the core: the end of work ---- */

static void mgr__part_begin(mgr__cluster *c, mgr__part *p)
{
    p->state = MGR__PART_ASSUMED;
    p->gone = false;
    p->attempts = 0;
    p->ended = false;
    p->last_exit[0] = 0;
    p->told_waiting = false;
    mgr__cluster_act(c, MGR__ACT_WORK_BEGIN)->part = p;
    mgr__cluster_tell_of(c, MGR_EVENT_ASSUMED, p, mgr__nobody(), "assumed partition %s with fence %llu",
                         p->name.at, (unsigned long long)p->fence);
}

/* Planned: stop politely, keep the lock until all is gone (invariant 4). */
static void mgr__part_release(mgr__cluster *c, mgr__part *p, const char *why)
{
    MGR_ASSERT(p->state == MGR__PART_ASSUMED);
    p->state = MGR__PART_RELEASING;
    p->gone = false;
    mgr__action *action = mgr__cluster_act(c, MGR__ACT_WORK_STOP);
    action->part = p;
    action->ms = c->config.stop_grace_ms;
    mgr__cluster_tell_of(c, MGR_EVENT_RELEASING, p, mgr__nobody(), "releasing partition %s: %s", p->name.at, why);
}

/* The lock is gone or doubtful. within_ms 0: kill at once. */
static void mgr__part_lose(mgr__cluster *c, mgr__part *p, uint32_t within_ms, mgr_result result, const char *why)
{
    bool worked = mgr__part_works(p);
    if (p->fence > p->watermark) p->watermark = p->fence;   /* nor under this one */
    p->stale = true;
    p->dirty = false;
    if (!worked) { if (p->state != MGR__PART_LOST) p->state = MGR__PART_IDLE; return; }
    p->state = MGR__PART_LOST;
    mgr__action *action = mgr__cluster_act(c, within_ms ? MGR__ACT_WORK_STOP : MGR__ACT_WORK_KILL);
    action->part = p;
    action->ms = within_ms;
    action->result = result;
    mgr__cluster_tell_of(c, MGR_EVENT_PARTITION_LOST, p, mgr__nobody(), "lost partition %s: %s", p->name.at, why);
}

/* What our own breaker holds and has seen. */
static void mgr__cluster_forget_breaker(mgr__cluster *c)
{
    c->hold_until = 0;
    c->breaker_due = false;
    c->vanished_count = 0;
}

/* This life is over: everything stops, is seen dead, certified; then a new life.
 * polite_ms: until the lease ends, when nothing worse is known; 0: kill now. */
static void mgr__cluster_end_life(mgr__cluster *c, uint32_t polite_ms, mgr_event_kind event, const char *why, int64_t now)
{
    if (!c->life[0] || c->phase == MGR__PHASE_ENDING) return;
    if (c->phase == MGR__PHASE_PARTING && c->want_leave) return;    /* nothing is left to stop: parting goes on */
    mgr__cluster_tell(c, event, "%s", why);
    mgr__cluster_forget_breaker(c);     /* it is for survivors: where all are lost at once, nothing is there to hold */
    for (size_t i = 0; i < c->part_count; i++) mgr__part_lose(c, c->parts[i], polite_ms, MGR_LOST, why);
    mgr__copy_text(c->old_life, sizeof c->old_life, mgr__str_of(c->life));
    mgr__copy_text(c->past_life, sizeof c->past_life, mgr__str_of(c->life));
    c->life[0] = 0;
    c->old_certified = c->old_destroyed = false;
    c->certify = !c->unproven;
    c->lease_until = 0;
    c->own_index = 0;
    c->round_open = c->renew_due = c->pass_due = false;
    c->next_round = now + mgr__cluster_round_ms(c);
    mgr__cluster_phase(c, MGR__PHASE_ENDING, now);
}

/* ---- the core: the map ---- */

static uint64_t mgr__cluster_map_digest(const mgr__cluster *c)
{
    bool by_slots = mgr__marker_slots(&c->picture.marker);
    uint64_t h = mgr__mix64(mgr__hash(mgr__str_of(c->set.hash)) ^ mgr__hash(mgr__str_of(c->picture.marker.placement)));
    for (size_t i = 0; i < c->picture.member_count; i++) {
        const mgr__member *m = &c->picture.members[i];
        if (!m->counts) continue;
        h = mgr__mix64(h ^ mgr__hash(m->id));
        h = mgr__mix64(h ^ (mgr__member_drains(m) ? 0 : m->weight));
        if (by_slots) h = mgr__mix64(h ^ m->slot);
        for (size_t r = 0; r < m->refuse_count; r++) h = mgr__mix64(h ^ mgr__hash(m->refuses[r]));
    }
    return h ? h : 1;
}

static void mgr__cluster_assign(mgr__cluster *c, mgr__part *p, uint32_t owner, size_t self, size_t *mine, size_t *nobodys)
{
    bool was = p->assigned;
    p->assigned = owner == self;
    if (p->assigned && !was) { p->stale = true; p->told_waiting = false; }
    if (owner == MGR_RUSH_NOBODY && !p->unplaceable)
        mgr__cluster_tell_of(c, MGR_EVENT_UNPLACEABLE, p, mgr__nobody(), "partition %s is unplaceable: every instance drains or refuses it",
                             p->name.at);
    p->unplaceable = owner == MGR_RUSH_NOBODY;
    *mine += p->assigned;
    *nobodys += p->unplaceable;
}

/* A policy came into force that only newer programs know: what is held goes on, for its
 * locks stand, and nothing is taken or given up until this program is replaced. */
static void mgr__cluster_placement_unknown(mgr__cluster *c)
{
    const mgr__marker *marker = &c->picture.marker;
    if (!c->told_placement)
        mgr__cluster_tell(c, MGR_EVENT_ERROR,
                          "the service is placed by \"%s\" version %llu from now on, this program knows \"rush\" and \"slots\" "
                          "version %d: it keeps what it has and takes nothing; start a program that knows it",
                          marker->placement, (unsigned long long)marker->placement_version, MGR__PLACEMENT_VERSION);
    c->told_placement = true;
}

/* [rush] takes them for equal: refused when somebody joins or changes the policy, but two
 * may do so at once, or somebody may change a key by hand. */
static void mgr__cluster_check_weights(mgr__cluster *c)
{
    const mgr__member *odd = mgr__marker_slots(&c->picture.marker) ? mgr__picture_odd_weight(&c->picture, 0, mgr__nobody()) : NULL;
    if (odd)
        mgr__cluster_tell_of(c, MGR_EVENT_ERROR, NULL, odd->id,
                             "placement slots is for equal weights, and that of instance %s is another than before it: "
                             "all are taken for equal", odd->id.at);
}

/* Whether an operator, or this program, wants us without work. */
static bool mgr__cluster_drains(const mgr__cluster *c)
{
    const mgr__member *own = mgr__cluster_own(c);
    return own && mgr__member_drains(own);
}

static void mgr__cluster_tell_map(mgr__cluster *c, size_t members, size_t mine)
{
    unsigned long count = (unsigned long)c->set.count;
    if (!members)
        mgr__cluster_tell(c, MGR_EVENT_REBALANCE, "no instance takes part in the map: %lu partition%s without one",
                          count, count == 1 ? " is" : "s are");
    else
        mgr__cluster_tell(c, MGR_EVENT_REBALANCE, "the map of %lu partition%s on %lu instance%s gives us %lu%s",
                          count, count == 1 ? "" : "s", (unsigned long)members, members == 1 ? "" : "s", (unsigned long)mine,
                          mgr__cluster_drains(c) ? "; we drain, until an undrain" :
                          c->picture.pause.exists ? "; paused: only what has no holder moves" : "");
}

static void mgr__cluster_map(mgr__cluster *c)
{
    if (!c->map_stale || !c->have_picture || !c->have_set) return;
    if (!mgr__marker_known(&c->picture.marker)) { mgr__cluster_placement_unknown(c); return; }
    c->map_stale = false;
    uint64_t digest = mgr__cluster_map_digest(c);
    if (digest == c->map_digest) return;
    mgr__cluster_check_weights(c);
    uint32_t *owners = (uint32_t *)mgr__alloc_array(c->heap, c->set.count + 1, sizeof *owners);
    mgr_result result = owners ? mgr__picture_map(&c->picture, c->heap, &c->set, owners) : MGR_NO_MEMORY;
    if (result == MGR_OK) {
        const mgr__member *own = mgr__cluster_own(c);
        size_t self = own ? (size_t)(own - c->picture.members) : SIZE_MAX, mine = 0, nobodys = 0, at = 0, members = 0;
        for (size_t i = 0; i < c->picture.member_count; i++) members += c->picture.members[i].counts;
        for (size_t i = 0; i < c->part_count; i++) {
            if (!c->parts[i]->in_set) { c->parts[i]->assigned = false; continue; }
            MGR_ASSERT(at < c->set.count && mgr__str_eq(c->set.names[at], c->parts[i]->name));
            mgr__cluster_assign(c, c->parts[i], members ? owners[at] : (uint32_t)MGR_MEMBER_COUNT_MAX, self, &mine, &nobodys);
            at++;
        }
        c->map_digest = digest;
        mgr__cluster_tell_map(c, members, mine);
    } else if (result == MGR_NO_MEMORY) c->failed = true;
    else mgr__cluster_tell(c, MGR_EVENT_ERROR, "no map can be made: %s", mgr_result_text(result));
    mgr__free(c->heap, owners);
}

/* A lock of ours that landed late, on what we do not want, or no longer: it is given
 * back. One that a snapshot brought back only after the delay: somebody may work there. */
static void mgr__part_give_back(const mgr__cluster *c, mgr__part *p, int64_t now)
{
    bool wanted = c->phase == MGR__PHASE_MEMBER && p->assigned && p->in_set;
    if (p->state != MGR__PART_IDLE || wanted || p->work || !p->seen || p->stale || now < c->distrust_until) return;
    if (!p->held || !mgr__str_is(mgr__cluster_life(c), p->holder)) return;
    p->state = MGR__PART_UNLOCKING;
    p->key_index = p->seen_index;
    p->fence = 0;
}

/* Are planned moves held? The map goes on saying who takes what has no holder. */
static bool mgr__cluster_moves_held(const mgr__cluster *c, int64_t now)
{
    const mgr__member *own = mgr__cluster_own(c);
    if (own && mgr__member_drains(own)) return false;       /* an explicit act */
    return c->picture.pause.exists || now < c->hold_until;
}

/* What the new map asks of the partitions that we hold. */
static void mgr__cluster_follow_map(mgr__cluster *c, int64_t now)
{
    uint32_t moving = 0;
    if (!mgr__cluster_in_life(c)) return;
    bool paused = mgr__cluster_moves_held(c, now);
    for (size_t i = 0; i < c->part_count; i++) {
        mgr__part *p = c->parts[i];
        moving += p->in_set && (p->state == MGR__PART_RELEASING || p->state == MGR__PART_UNLOCKING);
    }
    for (size_t i = 0; i < c->part_count; i++) {
        mgr__part *p = c->parts[i];
        mgr__part_give_back(c, p, now);
        if (p->state != MGR__PART_ASSUMED) continue;
        if (c->phase == MGR__PHASE_LEAVING) mgr__part_release(c, p, "this instance leaves");
        else if (!p->in_set) mgr__part_release(c, p, "it is no longer in the partition set");
        else if (!p->assigned && (!paused || p->refused) && (!c->config.moves_max || moving < c->config.moves_max)) {
            const char *why = p->unplaceable ? "this instance drains, and no other may take it" : "the map gives it to another instance";
            mgr__part_release(c, p, p->refused ? "refused by this instance" : why);
            moving++;
        }
    }
}

/* ---- the core: pictures ---- */

/* It left in order and keeps its share: see mgr__cluster_keeps_seat. */
static bool mgr__member_away(const mgr__member *m) { return !m->session.len && !m->boot.len && m->grace_ms; }

static void mgr__cluster_compare_members(mgr__cluster *c, const mgr__picture *fresh)
{
    for (size_t i = 0; i < fresh->member_count; i++) {
        const mgr__member *m = &fresh->members[i], *old = mgr__picture_member(&c->picture, m->id);
        if (mgr__str_eq(m->id, c->config.instance_id)) continue;
        if (m->alive && (!old || !mgr__str_eq(old->life, m->life)))
            mgr__cluster_tell_of(c, MGR_EVENT_MEMBER_JOINED, NULL, m->id, "instance %s has joined", m->id.at);
        if (!m->alive && (!old || old->alive))
            mgr__cluster_tell_of(c, MGR_EVENT_MEMBER_DEAD, NULL, m->id, "instance %s is %s: %s%s",
                                 m->id.at, mgr__member_away(m) ? "away" : "dead",
                                 m->session.len ? "its keeper certifies it" : "its session is gone",
                                 m->grace_ms ? "; its share is kept for its return" : "");
    }
    for (size_t i = 0; i < c->picture.member_count; i++) {
        const mgr__member *m = &c->picture.members[i];
        if (!mgr__picture_member(fresh, m->id) && !mgr__str_eq(m->id, c->config.instance_id))
            mgr__cluster_tell_of(c, MGR_EVENT_MEMBER_REMOVED, NULL, m->id, "instance %s is no longer a member", m->id.at);
    }
}

/* Who has died within one delay and is not back? Only a key seen without its session
 * counts: one that is gone altogether may have left in order. */
static void mgr__cluster_note_vanished(mgr__cluster *c, const mgr__picture *fresh, int64_t now)
{
    size_t kept = 0;
    for (size_t i = 0; i < c->vanished_count; i++) {
        const mgr__member *m = mgr__picture_member(fresh, mgr__str_of(c->vanished[i].id));
        if (!(m && m->alive) && now - c->vanished[i].at < (int64_t)c->config.delay_ms) c->vanished[kept++] = c->vanished[i];
    }
    c->vanished_count = kept;
    for (size_t i = 0; i < fresh->member_count; i++) {
        const mgr__member *m = &fresh->members[i], *old = mgr__picture_member(&c->picture, m->id);
        if (m->alive || m->leaving || !old || !old->alive || !old->counts || mgr__str_eq(m->id, c->config.instance_id)) continue;
        if (mgr__member_away(m)) continue;
        void *items = c->vanished;
        if (!mgr__grow(c->heap, &items, &c->vanished_cap, c->vanished_count, sizeof *c->vanished)) { c->failed = true; return; }
        c->vanished = (mgr__vanished *)items;
        mgr__copy_text(c->vanished[c->vanished_count].id, sizeof c->vanished[0].id, m->id);
        c->vanished[c->vanished_count++].at = now;
    }
}

static int64_t mgr__cluster_still_ms(const mgr__cluster *c)
{
    return mgr__max64((int64_t)c->config.delay_ms * MGR__STILL_DELAYS, (int64_t)c->config.settle_ms * MGR__STILL_SETTLES);
}

/* A member that crashes again and again must not hold the others' moves for ever. */
static int64_t mgr__cluster_breaker_most(const mgr__cluster *c)
{
    return c->breaker_since + MGR__BREAKER_STILLS * mgr__cluster_still_ms(c);
}

/* Who has seen the breaker hold counts from there, until all was still once. */
static void mgr__cluster_note_breaker(mgr__cluster *c, int64_t now)
{
    if (!c->breaker_since) c->breaker_since = now + mgr__rng_below(&c->rng, MGR__STILL_JITTER_MS);
}

static void mgr__cluster_note_stillness(mgr__cluster *c, int64_t now)
{
    uint64_t h = mgr__mix64(c->picture.pause.modify_index);
    for (size_t i = 0; i < c->picture.member_count; i++) {
        const mgr__member *m = &c->picture.members[i];
        h = mgr__mix64(h ^ mgr__hash(m->id)) ^ mgr__hash(m->session);
        h = mgr__mix64(h ^ (uint64_t)m->joining ^ ((uint64_t)m->leaving << 1));
    }
    if (h == c->still_digest && c->still_since) return;
    if (now + MGR__STILL_JITTER_MS >= c->still_since + mgr__cluster_still_ms(c)) c->breaker_since = 0;
    if (c->picture.pause.breaker) mgr__cluster_note_breaker(c, now);
    c->still_digest = h;
    c->still_since = now + mgr__rng_below(&c->rng, MGR__STILL_JITTER_MS);   /* one of us will be first */
}

/* The circuit breaker: our own moves are held from here on, not only once the pause stands. */
static void mgr__cluster_trip(mgr__cluster *c, int64_t now)
{
    size_t stay = 0, gone = c->vanished_count;
    if (!c->config.breaker_percent || c->phase != MGR__PHASE_MEMBER || c->picture.pause.exists || now < c->hold_until || gone < 2) return;
    if (c->breaker_since && now >= mgr__cluster_breaker_most(c)) return;
    for (size_t i = 0; i < c->picture.member_count; i++) stay += c->picture.members[i].alive && c->picture.members[i].counts;
    if (gone * 100 <= (gone + stay) * c->config.breaker_percent) return;
    snprintf(c->breaker_reason, sizeof c->breaker_reason, "%lu of %lu instances vanished at once",
             (unsigned long)gone, (unsigned long)(gone + stay));
    c->breaker_due = true;
    mgr__cluster_note_breaker(c, now);
    c->hold_until = mgr__min64(now + mgr__cluster_still_ms(c), mgr__cluster_breaker_most(c));
    mgr__cluster_tell_of(c, MGR_EVENT_PAUSED, NULL, c->config.instance_id,
                         "the circuit breaker holds planned moves: %s; what they had is taken over", c->breaker_reason);
}

static void mgr__cluster_compare_placement(mgr__cluster *c, const mgr__marker *fresh)
{
    const mgr__marker *old = &c->picture.marker;
    bool stood = mgr__marker_stands(old) && mgr__marker_stands(fresh);
    if (stood && mgr__marker_known(fresh) && strcmp(old->placement, fresh->placement) != 0)
        mgr__cluster_tell(c, MGR_EVENT_SET_CHANGED, "the partitions are placed by \"%s\" from now on", fresh->placement);
}

static void mgr__cluster_compare_pause(mgr__cluster *c, const mgr__pause *fresh)
{
    const mgr__pause *old = &c->picture.pause;
    if (fresh->exists) {
        bool told = old->exists && old->modify_index == fresh->modify_index;
        bool ours = c->breaker_due && mgr__str_eq(fresh->by, c->config.instance_id);
        mgr__cluster_forget_breaker(c);
        if (told || ours) return;
        mgr__str by = fresh->by.len ? fresh->by : mgr__str_of("unknown");
        mgr__cluster_tell_of(c, MGR_EVENT_PAUSED, NULL, fresh->by,
                             "paused by %s%.*s%s%.*s: planned moves are held, failures are taken over",
                             fresh->breaker ? "the circuit breaker of " : "", mgr__str_width(by, 255), by.at,
                             fresh->reason.len ? ", " : "", mgr__str_width(fresh->reason, MGR__REASON_BYTES), fresh->reason.at);
    } else if (old->exists) {
        mgr__cluster_tell(c, MGR_EVENT_RESUMED, "resumed: the map holds again");
    }
}

/* A wanted partition is read again when its holder's key has changed or gone:
 * the release count stands there, in the same transaction as the unlock. */
static void mgr__cluster_wake_parts(mgr__cluster *c)
{
    for (size_t i = 0; i < c->part_count; i++) {
        mgr__part *p = c->parts[i];
        if (p->state != MGR__PART_IDLE || !p->assigned || p->stale || !p->held) continue;
        const mgr__member *holder = mgr__picture_life(&c->picture, mgr__str_of(p->holder));
        if (!holder || holder->modify_index != p->holder_index) p->stale = true;
    }
}

/* Begin an inquest into a dead life, if it is of this boot and was another process. */
static void mgr__inquest_begin(mgr__inquest *q, const mgr__cluster *c, const mgr__member *m, int64_t now)
{
    bool same_boot = c->config.boot.len && mgr__str_eq(m->boot, c->config.boot);
    if (mgr__str_eq(m->life, mgr__str_of(q->life))) return;
    memset(q, 0, sizeof *q);
    mgr__copy_text(q->life, sizeof q->life, m->life);
    q->since = now;
    q->open = same_boot && m->life.len && m->life.len < sizeof q->life && !mgr__str_is(m->life, c->past_life)
              && !mgr__picture_certified(&c->picture, m->life);
    if (!q->open) q->life[0] = 0;
}

/* Often while what was killed is dying; then as whoever waits for an id asks for it. */
static int64_t mgr__inquest_again_ms(const mgr__inquest *q, int64_t now)
{
    return now - q->since > MGR__PROVE_MS ? (int64_t)MGR__SETTER_POLL_MS : (int64_t)MGR__PROVE_AGAIN_MS;
}

/* True: it was asked for just now, or a moment ago; the answer is worth waiting for. */
static bool mgr__cluster_inquire(mgr__cluster *c, mgr__inquest *q, const mgr__member *m, int64_t now)
{
    if (!q->open) return false;
    if (q->asked_at && now - q->since > MGR__PROVE_MS && !m->alive) { q->open = false; return false; }
    if (q->asked_at && now - q->asked_at < mgr__inquest_again_ms(q, now)) return true;
    q->asked_at = now;
    mgr__action *action = mgr__cluster_act(c, MGR__ACT_PROVE);
    mgr__copy_text(action->instance, sizeof action->instance, mgr__str_of(q->life));
    mgr__copy_text(action->text, sizeof action->text, m->proof);
    return true;
}

/* Some live instance of the dead one's own boot may be able to prove the death: it comes first. */
static bool mgr__cluster_has_witness(const mgr__cluster *c, const mgr__member *dead)
{
    if (!dead->boot.len || mgr__str_eq(dead->boot, c->config.boot)) return false;
    for (size_t i = 0; i < c->picture.member_count; i++)
        if (c->picture.members[i].alive && mgr__str_eq(c->picture.members[i].boot, dead->boot)) return true;
    return false;
}

/* One of us will be first, and the others see it done. Heirs wait for it where a grace
 * ends or we may prove the death; else it only tidies up, and must not keep the servers
 * busy while the heirs take over. */
static int64_t mgr__cluster_bury_pause(mgr__cluster *c, const mgr__member *dead, bool provable)
{
    bool awaited = provable || dead->grace_ms;
    int64_t pause = awaited ? mgr__rng_below(&c->rng, MGR__BURY_JITTER_MS) : MGR__BURY_MS + mgr__rng_below(&c->rng, MGR__BURY_SPREAD_MS);
    return mgr__cluster_has_witness(c, dead) ? pause + MGR__PROVE_MS : pause;
}

static void mgr__cluster_note_burials(mgr__cluster *c, int64_t now)
{
    size_t kept = 0;
    for (size_t i = 0; i < c->burial_count; i++) {
        mgr__member *m = mgr__picture_member(&c->picture, mgr__str_of(c->burials[i].id));
        if (!m || m->alive || m->modify_index != c->burials[i].modify_index || m->grace_ms != c->burials[i].grace_ms) continue;
        c->burials[kept++] = c->burials[i];
    }
    c->burial_count = kept;
    for (size_t i = 0; i < c->picture.member_count; i++) {
        const mgr__member *m = &c->picture.members[i];
        bool known = m->alive || mgr__str_eq(m->id, c->config.instance_id);
        for (size_t b = 0; b < c->burial_count && !known; b++) known = mgr__str_is(m->id, c->burials[b].id);
        if (known) continue;
        void *items = c->burials;
        if (!mgr__grow(c->heap, &items, &c->burial_cap, c->burial_count, sizeof *c->burials)) { c->failed = true; return; }
        c->burials = (mgr__burial *)items;
        mgr__burial *b = &c->burials[c->burial_count++];
        memset(b, 0, sizeof *b);
        mgr__copy_text(b->id, sizeof b->id, m->id);
        b->modify_index = m->modify_index;
        b->grace_ms = m->grace_ms;
        mgr__inquest_begin(&b->inquest, c, m, now);
        b->due_at = now + (int64_t)m->grace_ms + mgr__cluster_bury_pause(c, m, b->inquest.open);
        b->inquest.since = b->due_at;
    }
}

/* The picture shows our own key: as we left it, or not. */
static void mgr__cluster_find_self(mgr__cluster *c, int64_t now)
{
    const mgr__member *own = mgr__cluster_own(c);
    if (!mgr__cluster_in_life(c) || c->picture.index < c->own_index) return;
    if (!c->picture.marker.exists && !own) return;      /* a right is missing, or the store was wiped: the next confirmation decides */
    if (!own) { mgr__cluster_end_life(c, c->config.stop_grace_ms, MGR_EVENT_SESSION_LOST, "our own key was removed", now); return; }
    if (!mgr__str_eq(own->session, mgr__cluster_life(c))) {
        mgr__cluster_end_life(c, 0, MGR_EVENT_SESSION_LOST, "our session is gone", now);
        return;
    }
    if (own->broken || !mgr__str_eq(own->life, own->session)) c->own_unclear = c->own_dirty = true;     /* changed by hand: write it anew */
    if (mgr__member_evicted(own) && c->leave_result == MGR_OK) {    /* also in a leave that keeps its share: for good, then */
        mgr__cluster_tell(c, MGR_EVENT_EVICTED, "an operator makes this instance leave");
        c->own_dirty = c->own_dirty || c->want_leave;
        c->want_leave = true;
        c->leave_result = MGR_EVICTED;
    }
}

/* A key that stands has a lower index than before: a snapshot was restored, or
 * the store was wiped and set up anew. (A lower index of an answer alone says
 * nothing: tombstones are collected.) A lock that we gave back may stand again. */
static void mgr__cluster_index_down(mgr__cluster *c, int64_t now)
{
    c->fence_floor = c->fence_top;
    c->distrust_until = now + mgr__max64(c->delay_seen_ms, (int64_t)c->config.delay_ms);
    c->index_max = 0;
    c->pause_put = c->pause_taken = 0;
    c->next_round = now;
    for (size_t i = 0; i < c->part_count; i++) if (c->parts[i]->watermark) c->parts[i]->stale = c->parts[i]->came_back = true;
    mgr__cluster_tell(c, MGR_EVENT_ERROR,
                      "Consul's index went down (a snapshot was restored, or the store was wiped): no release is believed for the delay");
}

/* Restored keys have their old indices, but what is written next gets a higher one than
 * ever, so that a lock tells nothing, nor a marker that was not changed since: but a
 * member's key went back, or one that was gone stands again. Whoever gave a partition away
 * has written its own key in that transaction. (A picture from a server that lags behind
 * could look so; mgr__cluster_watch_answer passes over the first whose index fell. It
 * would cost a delay.) */
static bool mgr__picture_went_back(const mgr__picture *old, const mgr__picture *fresh)
{
    for (size_t i = 0; i < fresh->member_count; i++) {
        const mgr__member *m = &fresh->members[i], *before = mgr__picture_member(old, m->id);
        if (m->modify_index < (before ? before->modify_index : old->index)) return true;
    }
    return false;
}

/* Kept in memory, for a key, or the whole store, may be deleted by hand. */
static void mgr__cluster_note_delays(mgr__cluster *c)
{
    const mgr__marker *marker = &c->picture.marker;
    c->delay_seen_ms = mgr__max64(c->delay_seen_ms, (int64_t)c->config.delay_ms);
    if (marker->exists) c->delay_seen_ms = mgr__max64(c->delay_seen_ms, (int64_t)marker->delay_max_ms);
    for (size_t i = 0; i < c->picture.member_count; i++)
        c->delay_seen_ms = mgr__max64(c->delay_seen_ms, (int64_t)c->picture.members[i].delay_ms);
    if (mgr__marker_stands(marker)) c->marker_seen = *marker;
}

static bool mgr__cluster_first(const mgr__cluster *c)
{
    for (size_t i = 0; i < c->picture.member_count; i++)
        if (c->picture.members[i].alive) return mgr__str_eq(c->picture.members[i].id, c->config.instance_id);
    return false;
}

static bool mgr__cluster_set_is_old(const mgr__cluster *c)
{
    return c->have_picture && mgr__marker_stands(&c->picture.marker) &&
           (!c->have_set || strcmp(c->set.hash, c->picture.marker.hash) != 0);
}

/* One member answers, at once; the others only if it does not. Who waits for the set reads again. */
static void mgr__cluster_note_missing(mgr__cluster *c, uint64_t before, int64_t now)
{
    uint64_t index = c->picture.missing.modify_index;
    if (before && !index && mgr__cluster_set_is_old(c)) c->set_not_before = now;
    if (!index || index == c->missing_index) return;
    c->missing_index = index;
    c->missing_not_before = mgr__cluster_first(c) ? now : now + MGR__RESTORE_SET_MS + mgr__rng_below(&c->rng, MGR__RESTORE_SET_MS);
}

static void mgr__cluster_see(mgr__cluster *c, const mgr__answer *a, int64_t now)
{
    mgr__picture fresh;
    if (!mgr__picture_read(&fresh, c->heap, &c->root, a->index, a->kvs, a->kv_count)) { c->failed = true; return; }
    bool back = fresh.marker.exists && fresh.marker.modify_index < c->picture.marker.modify_index;
    if (back || (c->have_picture && mgr__picture_went_back(&c->picture, &fresh))) {
        mgr__cluster_index_down(c, now);
        /* Once, not again with the next lock. */
        if (c->own_index && mgr__picture_member(&fresh, c->config.instance_id)) c->own_unclear = true;
    }
    if (a->index > c->index_max) c->index_max = a->index;
    mgr__cluster_compare_members(c, &fresh);
    mgr__cluster_compare_placement(c, &fresh.marker);
    mgr__cluster_note_vanished(c, &fresh, now);
    mgr__cluster_compare_pause(c, &fresh.pause);
    if (c->have_picture && c->picture.marker.exists && !fresh.marker.exists)
        mgr__cluster_tell(c, MGR_EVENT_ERROR,
                          "cluster/partitions is not to be seen: the token lacks key read on %s, or the store was wiped", c->root.text);
    uint64_t missing_before = c->picture.missing.modify_index;
    mgr__picture_free(&c->picture);
    c->picture = fresh;
    c->have_picture = true;
    mgr__cluster_note_missing(c, missing_before, now);
    mgr__cluster_note_stillness(c, now);
    mgr__cluster_note_delays(c);
    if (fresh.marker.exists && fresh.marker.fence_base + c->index_max > c->fence_top) c->fence_top = fresh.marker.fence_base + c->index_max;
    if (mgr__marker_stands(&fresh.marker)) c->setter.remembered = true;
    if (c->have_set && strcmp(c->set.hash, fresh.marker.hash) == 0) c->map_stale = true;
    mgr__cluster_find_self(c, now);
    mgr__cluster_trip(c, now);
    mgr__cluster_wake_parts(c);
    mgr__cluster_note_burials(c, now);
}

/* ---- the core: may this partition be taken? (invariant 1) ---- */

static int64_t mgr__part_takeable_at(const mgr__cluster *c, const mgr__part *p, int64_t now)
{
    if (!p->seen || !p->seen_exists) return MGR__NEVER;
    bool believed = now >= c->distrust_until;       /* a restored snapshot may say what was true before the last owner */
    if (!p->held && p->seen_released && believed) return now;
    bool certified = p->holder[0] && mgr__picture_certified(&c->picture, mgr__str_of(p->holder));
    if (certified && believed) return now;
    /* Ours: its answer was lost; it is taken anew, with a new fence. */
    if (p->held) return certified || mgr__str_is(mgr__cluster_life(c), p->holder) ? c->distrust_until : MGR__NEVER;
    return p->lost_since + p->lost_delay_ms;
}

static bool mgr__part_wanted(const mgr__cluster *c, const mgr__part *p)
{
    bool known = mgr__marker_known(&c->picture.marker);
    return known && c->phase == MGR__PHASE_MEMBER && p->state == MGR__PART_IDLE && p->assigned && p->in_set && !p->work;
}

/* A key that is missing has no index by which its loss could be timed: it may have
 * been made, locked and deleted again since it was last looked for. So it is made
 * anew, as lost, and the delay counts from there. */
static bool mgr__part_missing(const mgr__cluster *c, const mgr__part *p)
{
    return mgr__part_wanted(c, p) && !p->stale && p->seen && !p->seen_exists;
}

/* What a linearizable read says of a key. */
static void mgr__part_observe(mgr__cluster *c, mgr__part *p, const mgr__kv *kv, int64_t now)
{
    mgr__holding owner;
    mgr__arena arena;
    mgr__buf scratch;
    mgr__arena_init(&arena, c->heap);
    mgr__buf_init(&scratch, c->heap, MGR_BODY_BYTES_MAX);
    memset(&owner, 0, sizeof owner);
    if (kv) mgr__holding_read(&owner, kv, &scratch, &arena);
    else owner.session = owner.life = owner.instance = mgr__nobody();
    p->stale = p->came_back = false;
    p->held = owner.session.len > 0;
    p->seen_exists = owner.exists;
    p->seen_released = owner.released;
    mgr__copy_text(p->holder, sizeof p->holder, p->held ? owner.session : owner.life);
    mgr__copy_text(p->holder_id, sizeof p->holder_id, owner.instance);
    const mgr__member *holder = mgr__picture_life(&c->picture, mgr__str_of(p->holder));
    p->holder_index = holder ? holder->modify_index : 0;
    if (!p->held && (!p->seen || p->lost_index != owner.modify_index || !p->lost_since)) {
        p->lost_index = owner.modify_index;
        p->lost_since = now;
        p->lost_delay_ms = mgr__max64((int64_t)c->config.delay_ms, owner.delay_ms ? (int64_t)owner.delay_ms : c->delay_seen_ms);
    }
    if (p->held) p->lost_since = 0;
    if (p->doubt_index && p->doubt_index != owner.modify_index) p->doubt_index = 0;
    p->seen = true;
    p->seen_index = owner.modify_index;
    if (owner.serial > p->serial) p->serial = owner.serial;
    mgr__buf_free(&scratch);
    mgr__arena_free(&arena);
    if (c->failed || p->told_waiting || !mgr__part_wanted(c, p)) return;
    if (p->held && !mgr__str_is(mgr__cluster_life(c), p->holder)) {
        p->told_waiting = true;
        mgr__cluster_tell_of(c, MGR_EVENT_WAITING, p, mgr__str_of(p->holder_id), "partition %s waits for its release by %s%s",
                             p->name.at, p->holder_id, c->picture.pause.exists ? ", which keeps it while the service is paused" : "");
    } else if (!p->held && p->seen_exists && mgr__part_takeable_at(c, p, now) > now) {
        p->told_waiting = true;
        mgr__cluster_tell_of(c, MGR_EVENT_WAITING, p, mgr__str_of(p->holder_id),
                             "partition %s was lost by %s without proof of death: it is taken in %lld ms, or on a certificate",
                             p->name.at, p->holder_id[0] ? p->holder_id : "nobody known",
                             (long long)(mgr__part_takeable_at(c, p, now) - now));
    }
}

/* ---- the core: requests ---- */

static mgr__errand *mgr__cluster_errand(mgr__cluster *c, mgr__lane lane, mgr__task task, mgr__ask ask)
{
    mgr__errand *e = &c->errands[lane];
    MGR_ASSERT(!e->out);
    mgr__request_start(&e->request, c->heap, ask, lane);
    memset(e->parts, 0, sizeof e->parts);
    e->task = task;
    return e;
}

static void mgr__cluster_send(mgr__cluster *c, mgr__errand *e, int64_t now)
{
    if (e->request.arena.failed) c->failed = true;
    e->out = true;
    e->sent_at = now;
    e->index_max = c->index_max;
    mgr__cluster_act(c, MGR__ACT_REQUEST)->lane = e->request.lane;
}

static mgr__str mgr__cluster_own_key(mgr__cluster *c, mgr__request *r)
{
    return mgr__key_make(&r->arena, &c->root, "cluster/instances/", c->config.instance_id);
}

/* For those who ask why a partition waits. */
static mgr__str mgr__cluster_former_text(const mgr__cluster *c, mgr__arena *arena)
{
    char text[sizeof c->former.life + sizeof c->former.why];
    if (!c->former.life[0] || c->former.open || c->former.verdict == MGR__VERDICT_DEAD) return mgr__nobody();
    snprintf(text, sizeof text, "%s %s", c->former.life, c->former.why);
    return mgr__arena_str(arena, mgr__str_of(text));
}

/* With a rejoin grace a leave is a restart: the work ends and the locks are given back,
 * but the key stays, without a session, and with it the share, for as long as the
 * grace. Who drains, or is evicted, leaves for good. */
static bool mgr__cluster_keeps_seat(const mgr__cluster *c)
{
    const mgr__member *own = mgr__cluster_own(c);
    return c->config.rejoin_grace_ms && c->leave_result == MGR_OK && !c->drain && !(own && mgr__member_drains(own));
}

static mgr__str mgr__cluster_own_value(mgr__cluster *c, mgr__request *r)
{
    bool away = c->phase == MGR__PHASE_PARTING && mgr__cluster_keeps_seat(c);
    mgr__member m;
    mgr__buf value;
    memset(&m, 0, sizeof m);
    m.life = mgr__cluster_life(c);
    m.node = mgr__str_of(c->node);
    m.service = mgr__str_of(c->service);
    m.weight = c->config.weight;
    m.boot = away ? mgr__nobody() : c->config.boot;     /* its death is seen: nobody is to prove it */
    m.pid = away ? 0 : c->config.pid;
    m.lease_ms = c->config.lease_ms;
    m.delay_ms = c->config.delay_ms;
    m.grace_ms = c->config.rejoin_grace_ms;
    m.joining = c->joining;
    m.leaving = (c->phase == MGR__PHASE_LEAVING || c->phase == MGR__PHASE_PARTING) && !mgr__cluster_keeps_seat(c);
    m.draining = c->drain;
    m.releases = c->releases;
    m.isolate = mgr__str_of(c->isolate);
    m.proof = mgr__str_of(away ? "" : c->proof);
    m.former = mgr__cluster_former_text(c, &r->arena);
    m.refuses = (mgr__str *)mgr__arena_alloc(&r->arena, (c->part_count + 1) * sizeof *m.refuses);
    for (size_t i = 0; m.refuses && i < c->part_count; i++) if (c->parts[i]->refused) m.refuses[m.refuse_count++] = c->parts[i]->name;
    mgr__buf_init(&value, c->heap, 380000);
    mgr__member_write(&m, &value);
    return mgr__request_keep(r, &value);
}

/* [check-index own, lock own]: what stands in our own key, under our session. */
static void mgr__cluster_add_own(mgr__cluster *c, mgr__request *r)
{
    mgr__str key = mgr__cluster_own_key(c, r);
    mgr__request_check_index(r, key, c->own_index);
    mgr__op *op = mgr__request_op(r, MGR__LOCK, key);
    op->session = mgr__arena_str(&r->arena, mgr__cluster_life(c));
    op->value = mgr__cluster_own_value(c, r);
    c->own_dirty = false;
}

static mgr__str mgr__cluster_owner_value(mgr__cluster *c, mgr__request *r, mgr__part *p, bool released)
{
    mgr__holding owner;
    mgr__buf value;
    memset(&owner, 0, sizeof owner);
    owner.released = released;
    owner.life = mgr__cluster_life(c);
    owner.instance = c->config.instance_id;
    owner.since_ms = p->since_ms;
    owner.delay_ms = c->config.delay_ms;
    owner.attempts = p->attempts;
    owner.last_exit = mgr__str_of(p->last_exit);
    owner.ended = p->ended;
    owner.fence = p->state == MGR__PART_ASSUMED ? p->fence : 0;
    owner.serial = ++p->serial;     /* a value that differs: or Consul would keep the old ModifyIndex */
    mgr__buf_init(&value, c->heap, 8192);
    mgr__holding_write(&owner, &value);
    return mgr__request_keep(r, &value);
}

/* On the set and the fence_base that we know, or not at all: or a fence could fall. */
static void mgr__cluster_check_marker(const mgr__cluster *c, mgr__request *r)
{
    mgr__request_check_index(r, mgr__key_fixed(&r->arena, &c->root, "cluster/partitions"), c->picture.marker.modify_index);
}

/* [check p at its index, verb p]: how every write of an owner key looks. A lock that a
 * certified life left behind is first taken off, in that life's name: its session is
 * not waited for. */
static void mgr__cluster_add_owner(mgr__cluster *c, mgr__errand *e, mgr__part *p, mgr__verb verb, uint64_t index)
{
    mgr__request *r = &e->request;
    mgr__str key = mgr__key_make(&r->arena, &c->root, "owners/", p->name);
    e->parts[r->op_count] = p;
    mgr__request_check_index(r, key, index);
    e->parts[r->op_count] = p;
    if (p->state == MGR__PART_IDLE && p->held && !mgr__str_is(mgr__cluster_life(c), p->holder)) {
        mgr__request_op(r, MGR__UNLOCK, key)->session = mgr__arena_str(&r->arena, mgr__str_of(p->holder));
        e->parts[r->op_count] = p;
    }
    mgr__op *op = mgr__request_op(r, verb, key);
    op->session = mgr__arena_str(&r->arena, mgr__cluster_life(c));
    op->value = mgr__cluster_owner_value(c, r, p, verb == MGR__UNLOCK);
    p->writing = true;
}

/* A transaction answers with an entry for each op, checks included: what was
 * written to a key is the last entry of that key. */
static const mgr__kv *mgr__answer_last(const mgr__answer *a, mgr__str key)
{
    for (size_t i = a->kv_count; i > 0; i--) if (mgr__str_eq(a->kvs[i - 1].key, key)) return &a->kvs[i - 1];
    return NULL;
}

static bool mgr__cluster_watches(const mgr__cluster *c)
{
    if (c->phase == MGR__PHASE_LOOK) return c->look_at != 0;
    return (c->phase >= MGR__PHASE_SET && c->phase <= MGR__PHASE_MEMBER) || c->phase == MGR__PHASE_LEAVING;
}

static void mgr__cluster_watch(mgr__cluster *c, int64_t now)
{
    if (c->errands[MGR__LANE_WATCH].out || now < c->watch_not_before || !mgr__cluster_watches(c)) return;
    mgr__errand *e = mgr__cluster_errand(c, MGR__LANE_WATCH, MGR__TASK_WATCH, MGR__ASK_WATCH);
    e->request.key = mgr__key_fixed(&e->request.arena, &c->root, "cluster/");
    e->request.index = c->watch_index;
    e->request.wait_ms = c->config.lease_ms;    /* a held query that got lost is noticed within a lease */
    mgr__cluster_send(c, e, now);
}

/* The lease lane: confirm (linearizable, it carries the lease), renew, pass. */
static void mgr__cluster_confirm(mgr__cluster *c, int64_t now)
{
    mgr__errand *e = mgr__cluster_errand(c, MGR__LANE_LEASE, MGR__TASK_CONFIRM, MGR__ASK_TXN);
    mgr__request *r = &e->request;
    if (!c->round_open) {
        c->round_open = true;
        c->round++;
        c->round_started = now;     /* the lease counts from here: the answer may be delayed longer than any TTL */
    }
    mgr__op *own = mgr__request_op(r, MGR__CHECK_SESSION, mgr__cluster_own_key(c, r));
    own->session = mgr__arena_str(&r->arena, mgr__cluster_life(c));
    for (size_t i = 0; i < c->part_count && r->op_count < MGR__TXN_OPS_MAX; i++) {
        mgr__part *p = c->parts[i];
        if (!mgr__part_works(p) || p->round == c->round) continue;
        mgr__str key = mgr__key_make(&r->arena, &c->root, "owners/", p->name);
        e->parts[r->op_count] = p;
        if (!p->writing) mgr__request_check_index(r, key, p->key_index);
        else mgr__request_op(r, MGR__CHECK_SESSION, key)->session = own->session;   /* being rewritten: true before and after */
    }
    mgr__cluster_send(c, e, now);
}

/* Work of a life that is over, and may yet be alive: it keeps its locks (S28). */
static bool mgr__cluster_holds_on(const mgr__cluster *c) { return c->phase == MGR__PHASE_ENDING && mgr__cluster_busy(c); }

static void mgr__cluster_lease_lane(mgr__cluster *c, int64_t now)
{
    bool holds_on = mgr__cluster_holds_on(c);
    if (c->errands[MGR__LANE_LEASE].out || (!holds_on && !mgr__cluster_in_life(c))) return;
    if (now >= c->next_round && !holds_on) { mgr__cluster_confirm(c, now); return; }
    if (now >= c->next_round) {
        c->renew_due = c->pass_due = true;
        c->next_round = now + mgr__cluster_round_ms(c);
    }
    mgr__errand *e;
    if (c->renew_due) {
        e = mgr__cluster_errand(c, MGR__LANE_LEASE, MGR__TASK_RENEW, MGR__ASK_SESSION_RENEW);
        e->request.session = mgr__arena_str(&e->request.arena, holds_on ? mgr__str_of(c->old_life) : mgr__cluster_life(c));
    } else if (c->pass_due) {
        e = mgr__cluster_errand(c, MGR__LANE_LEASE, MGR__TASK_PASS, MGR__ASK_CHECK_UPDATE);
        e->request.name = mgr__arena_str(&e->request.arena, mgr__str_of(c->service));
        e->request.note = mgr__str_of("member");
    } else return;
    mgr__cluster_send(c, e, now);
}

static void mgr__cluster_round_done(mgr__cluster *c)
{
    c->round_open = false;
    c->next_round = c->round_started + mgr__cluster_round_ms(c);
    c->renew_due = c->pass_due = true;
    c->lease_until = c->round_started + c->config.lease_ms;
    mgr__cluster_act(c, MGR__ACT_LEASE)->at = c->lease_until;
}

static bool mgr__cluster_round_complete(const mgr__cluster *c)
{
    for (size_t i = 0; i < c->part_count; i++)
        if (mgr__part_works(c->parts[i]) && c->parts[i]->round != c->round) return false;
    return true;
}

/* A condition of the confirmation does not hold: our own key (the life is over)
 * or single partitions (somebody changed them by hand), unless a write of ours
 * has moved the index meanwhile. */
static void mgr__cluster_confirm_conflict(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    bool acted = false;
    for (size_t i = 0; i < a->failed_count; i++) {
        uint32_t op = a->failed[i];
        mgr__part *p = op < e->request.op_count ? e->parts[op] : NULL;
        acted = acted || p;
        if (op == 0) {
            mgr__cluster_end_life(c, 0, MGR_EVENT_SESSION_LOST, "Consul says that our session no longer holds our own key", now);
            return;
        }
        if (!p || !mgr__part_works(p)) continue;
        if (e->request.ops[op].verb == MGR__CHECK_SESSION || (!p->writing && p->key_index == e->request.ops[op].index))
            mgr__part_lose(c, p, 0, MGR_LOST, "its lock was taken away or its key was changed by hand");
    }
    c->round_open = false;      /* a new round at once, from a new start */
    c->next_round = acted ? now : now + MGR__BACKOFF_MIN_MS;
}

static void mgr__cluster_confirm_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    if (!mgr__cluster_in_life(c) || !c->round_open) return;
    if (a->outcome == MGR__OUTCOME_CONFLICT) { mgr__cluster_confirm_conflict(c, e, a, now); return; }
    if (a->outcome != MGR__OUTCOME_OK) {
        c->round_open = false;
        int64_t retry_ms = mgr__max64(MGR__CONFIRM_RETRY_MIN_MS, mgr__min64(MGR__CONFIRM_RETRY_MAX_MS, c->config.lease_ms / 10));
        c->next_round = now + mgr__cluster_jitter(c, (uint32_t)retry_ms);
        return;
    }
    for (size_t i = 1; i < e->request.op_count; i++) {
        mgr__part *p = e->parts[i];
        if (p && (e->request.ops[i].verb == MGR__CHECK_SESSION || p->key_index == e->request.ops[i].index)) p->round = c->round;
    }
    if (mgr__cluster_round_complete(c)) mgr__cluster_round_done(c);
    else if (e->request.op_count == 1) {    /* all that is left is being written: see soon */
        c->round_open = false;
        c->next_round = now + MGR__CONFIRM_SOON_MS;
    }
}

/* ---- the core: the work lane, one request at a time ---- */

static mgr__errand *mgr__cluster_work(mgr__cluster *c, mgr__task task, mgr__ask ask)
{
    return mgr__cluster_errand(c, MGR__LANE_WORK, task, ask);
}

/* Before a life: a former one of ours is proven dead, so say so, and free what it held. */
static bool mgr__cluster_ask_clean(mgr__cluster *c, int64_t now)
{
    mgr__errand *e;
    if (c->certify && !c->old_certified && c->old_life[0]) {
        e = mgr__cluster_work(c, MGR__TASK_CERTIFY, MGR__ASK_TXN);
        mgr__request_certify(&e->request, &c->root, mgr__str_of(c->old_life), "{\"proof\":\"all work was seen dead\"}");
    } else if (!c->old_destroyed && c->old_life[0]) {
        e = mgr__cluster_work(c, MGR__TASK_DESTROY, MGR__ASK_SESSION_DESTROY);
        e->request.session = mgr__arena_str(&e->request.arena, mgr__str_of(c->old_life));
    } else if (c->registered) {
        e = mgr__cluster_work(c, MGR__TASK_DEREGISTER, MGR__ASK_SERVICE_DEREGISTER);
        e->request.name = mgr__arena_str(&e->request.arena, mgr__str_of(c->service));
    } else {
        c->old_life[0] = 0;
        c->session_unclear = false;
        if (c->want_leave) mgr__cluster_left(c, c->leave_result, now);
        else mgr__cluster_phase(c, MGR__PHASE_NODE, now);
        return false;
    }
    mgr__cluster_send(c, e, now);
    return true;
}

static void mgr__cluster_set_done(mgr__cluster *c, int64_t now)
{
    if (c->setter.taken_over)
        mgr__cluster_tell(c, MGR_EVENT_SET_CHANGED,
                          "our partition set was replaced by the one that stands (partitions: %llu, version: %llu): that stays; "
                          "`manager partitions` changes it",
                          (unsigned long long)c->setter.marker.count, (unsigned long long)c->setter.marker.version);
    if (c->setter.result == MGR_OK) {
        if (c->phase != MGR__PHASE_SET) return;
        mgr__cluster_phase(c, MGR__PHASE_LOOK, now);    /* look again: the set stands now */
        return;
    }
    mgr__cluster_tell(c, MGR_EVENT_ERROR, "the partition set cannot be put in force: %.*s",
                      (int)c->setter.trouble.len, c->setter.trouble.at);
    if (c->phase == MGR__PHASE_SET) mgr__cluster_left(c, c->setter.result, now);
}

static mgr__str mgr__cluster_set_key(mgr__cluster *c, mgr__request *r, const char *hash)
{
    return mgr__key_make(&r->arena, &c->root, "sets/", mgr__arena_str(&r->arena, mgr__str_of(hash)));
}

/* [check the marker, check that the set is missing still, put cluster/missing], once: it
 * lands while it is true, or not at all. */
static void mgr__cluster_miss_set(mgr__cluster *c, int64_t now)
{
    c->set_missed = false;
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_MISS_SET, MGR__ASK_TXN);
    mgr__request *r = &e->request;
    mgr__buf value;
    mgr__cluster_check_marker(c, r);
    mgr__str set_key = mgr__cluster_set_key(c, r, c->picture.marker.hash);
    if (c->missed_index) mgr__request_check_index(r, set_key, c->missed_index);
    else mgr__request_op(r, MGR__CHECK_ABSENT, set_key);
    mgr__op *op = mgr__request_op(r, MGR__CAS, mgr__key_fixed(&r->arena, &c->root, "cluster/missing"));
    op->index = c->picture.missing.modify_index;    /* 0: there is none */
    mgr__buf_init(&value, c->heap, 4096);
    mgr__missing_write(c->picture.marker.hash, &value);
    op->value = mgr__request_keep(r, &value);
    mgr__cluster_send(c, e, now);
}

static bool mgr__cluster_ask_set(mgr__cluster *c, int64_t now)
{
    if (mgr__setter_busy(&c->setter)) {
        mgr__errand *e = mgr__cluster_work(c, MGR__TASK_SETTER, MGR__ASK_TXN);
        if (!mgr__setter_next(&c->setter, c->heap, &c->root, &e->request, now)) {
            if (!mgr__setter_busy(&c->setter)) mgr__cluster_set_done(c, now);
            return false;
        }
        mgr__cluster_send(c, e, now);
        return true;
    }
    if (!mgr__cluster_set_is_old(c)) return false;
    if (c->setter.wanted.count && strcmp(c->setter.wanted.hash, c->picture.marker.hash) == 0) {    /* we brought it, and need not read it */
        c->set_missed = false;
        mgr__cluster_take_set(c, &c->setter.wanted);
        return false;
    }
    if (now < c->set_not_before) return false;
    if (c->set_missed) { mgr__cluster_miss_set(c, now); return true; }
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_READ_SET, MGR__ASK_TXN);
    mgr__request_op(&e->request, MGR__GET, mgr__cluster_set_key(c, &e->request, c->picture.marker.hash));
    mgr__cluster_send(c, e, now);
    return true;
}

static mgr__str mgr__cluster_slot_key(mgr__cluster *c, mgr__request *r, uint32_t number)
{
    char digits[16];
    snprintf(digits, sizeof digits, "%lu", (unsigned long)number);
    return mgr__key_make(&r->arena, &c->root, "cluster/slots/", mgr__str_of(digits));
}

/* Ours, if nobody was quicker: what stands there is as in the picture, and its owner, if it
 * names one, no member. Decided in raft order. */
static void mgr__cluster_add_slot(mgr__cluster *c, mgr__request *r, uint32_t number)
{
    const mgr__slot_key *standing = mgr__picture_slot(&c->picture, number);
    mgr__buf value;
    if (standing && standing->id.len && !mgr__picture_member(&c->picture, standing->id))
        mgr__request_on(r, MGR__CHECK_ABSENT, &c->root, "cluster/instances/", standing->id);
    mgr__op *op = mgr__request_op(r, MGR__CAS, mgr__cluster_slot_key(c, r, number));
    op->index = standing ? standing->modify_index : 0;
    mgr__buf_init(&value, c->heap, 4096);
    mgr__slot_key_write(c->config.instance_id, &value);
    op->value = mgr__request_keep(r, &value);
}

/* With the own key comes a slot, and both or neither: the one that a former life of ours
 * still has, else the lowest free one. */
static void mgr__cluster_join_slot(mgr__cluster *c, mgr__request *r, const mgr__member *old)
{
    if (!mgr__marker_slots(&c->picture.marker)) return;
    if (old && old->slot_index) mgr__request_check_index(r, mgr__cluster_slot_key(c, r, old->slot), old->slot_index);
    else mgr__cluster_add_slot(c, r, old ? old->slot : c->picture.free_slot);
}

/* Nothing else was in the way of our joining than that another took our slot: the next
 * picture shows which one is free. The own key is looked at first, and locked last. */
static bool mgr__cluster_slot_taken(const mgr__errand *e, const mgr__answer *a)
{
    for (size_t i = 0; i < a->failed_count; i++)
        if (a->failed[i] == 0 || a->failed[i] + 1 >= e->request.op_count) return false;
    return a->failed_count > 0;
}

static void mgr__cluster_ask_join(mgr__cluster *c, int64_t now)
{
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_JOIN, MGR__ASK_TXN);
    mgr__request *r = &e->request;
    mgr__str key = mgr__cluster_own_key(c, r);
    const mgr__member *old = mgr__cluster_own(c);
    /* Back within the grace: it takes part at once, with what it had. */
    c->joining = c->config.settle_ms > 0 && !(old && old->grace_ms && !old->joining);
    if (old) mgr__request_check_index(r, key, old->modify_index);
    else mgr__request_op(r, MGR__CHECK_ABSENT, key);
    mgr__cluster_join_slot(c, r, old);
    /* The lock that a certified life left behind. */
    if (old && old->session.len && !old->alive) mgr__request_op(r, MGR__UNLOCK, key)->session = mgr__arena_str(&r->arena, old->session);
    mgr__op *op = mgr__request_op(r, MGR__LOCK, key);
    op->session = mgr__arena_str(&r->arena, mgr__cluster_life(c));
    op->value = mgr__cluster_own_value(c, r);
    mgr__cluster_send(c, e, now);
}

static void mgr__cluster_new_service_id(mgr__cluster *c)
{
    mgr__buf id;
    mgr__buf_init(&id, c->heap, sizeof c->service - 20);
    mgr__key_escape(&id, c->config.service_id);
    mgr__buf_char(&id, ':');
    mgr__key_escape(&id, c->config.instance_id);
    snprintf(c->service, sizeof c->service, "%s:%08x", mgr__buf_cstr(&id), (unsigned)(mgr__rng_next(&c->rng) >> 32));
    mgr__buf_free(&id);
}

static void mgr__cluster_ask_session(mgr__cluster *c, int64_t now)
{
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_SESSION, MGR__ASK_SESSION_CREATE);
    e->request.name = mgr__str_of(c->session_name);
    e->request.session_ttl_ms = c->config.session_ttl_ms;
    e->request.check_id = mgr__arena_str(&e->request.arena, mgr__str_of(c->service));
    c->session_unclear = true;
    mgr__cluster_send(c, e, now);
}

/* The picture as it is now: linearizable. */
static void mgr__cluster_ask_list(mgr__cluster *c, mgr__task task, int64_t now)
{
    mgr__errand *e = mgr__cluster_work(c, task, MGR__ASK_LIST);
    e->request.key = mgr__key_fixed(&e->request.arena, &c->root, "cluster/");
    mgr__cluster_send(c, e, now);
}

/* Who has our id is waited for until `at`. Meanwhile the watch says when its key changes,
 * and proof is looked for on this host alone: nothing is asked of Consul for it. But
 * once a lease it is, so that a Consul that is gone is noticed. */
static void mgr__cluster_wait_for(mgr__cluster *c, const mgr__member *holder, int64_t at, int64_t now)
{
    c->look_at = mgr__min64(at, now + c->config.lease_ms);
    c->look_index = holder->modify_index;
    c->look_alive = holder->alive;
    c->not_before = c->former.open ? mgr__min64(c->look_at, now + mgr__inquest_again_ms(&c->former, now)) : c->look_at;
}

/* False: it is time for another look, or worth one. */
static bool mgr__cluster_still_waits(mgr__cluster *c, int64_t now)
{
    const mgr__member *own = mgr__cluster_own(c);
    bool as_before = own && own->modify_index == c->look_index && own->alive == c->look_alive;
    if (!c->look_at || now >= c->look_at || !as_before) return false;
    if (c->former.open && mgr__picture_certified(&c->picture, own->life)) return false;
    if (c->former.open && !mgr__cluster_inquire(c, &c->former, own, now)) return false;
    mgr__cluster_wait_for(c, own, c->look_at, now);
    return true;
}

/* Entering: one step after the other, until the own key stands. */
static void mgr__cluster_enter_step(mgr__cluster *c, int64_t now)
{
    mgr__errand *e;
    switch (c->phase) {
    case MGR__PHASE_CLEAN: mgr__cluster_ask_clean(c, now); break;
    case MGR__PHASE_NODE:
        e = mgr__cluster_work(c, MGR__TASK_NODE, MGR__ASK_AGENT_SELF);
        mgr__cluster_send(c, e, now);
        break;
    case MGR__PHASE_LOOK:
        if (!mgr__cluster_still_waits(c, now)) mgr__cluster_ask_list(c, MGR__TASK_LOOK, now);
        break;
    case MGR__PHASE_SET: mgr__cluster_ask_set(c, now); break;
    case MGR__PHASE_REGISTER:
        if (!c->registered) mgr__cluster_new_service_id(c);
        e = mgr__cluster_work(c, MGR__TASK_REGISTER, MGR__ASK_SERVICE_REGISTER);
        e->request.name = mgr__arena_str(&e->request.arena, mgr__str_of(c->service));
        c->registered = true;   /* even if the answer gets lost: to be cleaned up */
        mgr__cluster_send(c, e, now);
        break;
    case MGR__PHASE_SESSION: mgr__cluster_ask_session(c, now); break;
    case MGR__PHASE_JOIN: mgr__cluster_ask_join(c, now); break;
    case MGR__PHASE_MEMBER: case MGR__PHASE_ENDING: case MGR__PHASE_LEAVING: case MGR__PHASE_PARTING: case MGR__PHASE_LEFT:
        break;
    }
}

static bool mgr__cluster_ask_own(mgr__cluster *c, int64_t now)
{
    if (c->own_unclear) {
        mgr__errand *e = mgr__cluster_work(c, MGR__TASK_OWN_READ, MGR__ASK_TXN);
        mgr__request_op(&e->request, MGR__GET, mgr__cluster_own_key(c, &e->request));
        mgr__cluster_send(c, e, now);
        return true;
    }
    if (!c->own_dirty) return false;
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_OWN_WRITE, MGR__ASK_TXN);
    mgr__cluster_add_own(c, &e->request);
    mgr__cluster_send(c, e, now);
    return true;
}

/* Work is gone: give the locks back, and count it in our own key, in one
 * transaction: the count is what wakes those who wait. */
static bool mgr__cluster_ask_unlock(mgr__cluster *c, int64_t now)
{
    mgr__errand *e = NULL;
    for (size_t i = 0, n = 0; i < c->part_count && n < MGR__UNLOCKS_PER_TXN; i++) {
        mgr__part *p = c->parts[i];
        if (p->state != MGR__PART_UNLOCKING || p->stale) continue;
        if (!e) e = mgr__cluster_work(c, MGR__TASK_UNLOCK, MGR__ASK_TXN);
        mgr__cluster_add_owner(c, e, p, MGR__UNLOCK, p->key_index);
        if (p->fence > p->watermark) p->watermark = p->fence;   /* no work starts under this fence any more */
        c->releases++;
        n++;
    }
    if (!e) return false;
    mgr__cluster_add_own(c, &e->request);
    mgr__cluster_send(c, e, now);
    return true;
}

static bool mgr__cluster_ask_lock(mgr__cluster *c, int64_t now)
{
    mgr__errand *e = NULL;
    for (size_t i = 0; i < c->part_count && (!e || e->request.op_count + MGR__LOCK_OPS <= MGR__TXN_OPS_MAX); i++) {
        mgr__part *p = c->parts[i];
        if (!mgr__part_wanted(c, p) || p->stale || mgr__part_takeable_at(c, p, now) > now) continue;
        if (!e) {
            e = mgr__cluster_work(c, MGR__TASK_LOCK, MGR__ASK_TXN);
            mgr__cluster_check_marker(c, &e->request);
            mgr__request_check_index(&e->request, mgr__cluster_own_key(c, &e->request), c->own_index);  /* shows a restored snapshot */
        }
        p->since_ms = (uint64_t)now + c->wall_offset_ms;
        p->attempts = 0;
        p->ended = false;
        p->last_exit[0] = 0;
        mgr__cluster_add_owner(c, e, p, MGR__LOCK, p->seen_index);
        p->doubt_index = p->seen_index;
        p->state = MGR__PART_ACQUIRING;
    }
    if (!e) return false;
    c->rewrite_not_before = now + MGR__REWRITE_MS;
    mgr__cluster_send(c, e, now);
    return true;
}

/* Owner keys that were deleted by hand are made again. */
static bool mgr__cluster_ask_missing(mgr__cluster *c, int64_t now)
{
    mgr__errand *e = NULL;
    mgr__str value = mgr__nobody();
    for (size_t i = 0; i < c->part_count; i++) {
        mgr__part *p = c->parts[i];
        if (!mgr__part_missing(c, p)) continue;
        if (!e) {
            e = mgr__cluster_work(c, MGR__TASK_MISSING, MGR__ASK_TXN);
            mgr__cluster_check_marker(c, &e->request);
            value = mgr__holding_nobodys(&e->request, false, (uint64_t)c->delay_seen_ms);
        }
        e->parts[e->request.op_count] = p;
        mgr__request_on(&e->request, MGR__CAS, &c->root, "owners/", p->name)->value = value;     /* index 0: create */
        p->stale = p->writing = true;
        if (e->request.op_count == MGR__TXN_OPS_MAX) break;
    }
    if (!e) return false;
    mgr__cluster_send(c, e, now);
    return true;
}

static bool mgr__part_reads(const mgr__cluster *c, const mgr__part *p)
{
    bool moving = p->state == MGR__PART_UNLOCKING || p->state == MGR__PART_ACQUIRING;
    return p->stale && !p->writing && (mgr__part_wanted(c, p) || mgr__part_works(p) || p->doubt_index || p->came_back || moving);
}

static bool mgr__cluster_ask_read(mgr__cluster *c, int64_t now)
{
    mgr__errand *e = NULL;
    for (size_t i = 0; i < c->part_count; i++) {
        mgr__part *p = c->parts[i];
        if (!mgr__part_reads(c, p)) continue;
        if (!e) e = mgr__cluster_work(c, MGR__TASK_READ, MGR__ASK_TXN);
        e->parts[e->request.op_count] = p;
        mgr__request_on(&e->request, MGR__GET, &c->root, "owners/", p->name);
        if (e->request.op_count == MGR__READS_PER_TXN) break;
    }
    if (!e) return false;
    mgr__cluster_send(c, e, now);
    return true;
}

static bool mgr__part_rewrites(const mgr__part *p) { return p->dirty && p->state == MGR__PART_ASSUMED && !p->stale; }

/* What stands in the values of partitions that we hold has changed: attempts, last exit.
 * Nobody waits to read it: several in one write, and none while a takeover goes on. */
static bool mgr__cluster_ask_rewrite(mgr__cluster *c, int64_t now)
{
    mgr__errand *e = NULL;
    if (now < c->rewrite_not_before) return false;
    for (size_t i = 0, n = 0; i < c->part_count && n < MGR__LOCKS_PER_TXN; i++) {
        mgr__part *p = c->parts[i];
        if (!mgr__part_rewrites(p)) continue;
        if (!e) e = mgr__cluster_work(c, MGR__TASK_REWRITE, MGR__ASK_TXN);
        mgr__cluster_add_owner(c, e, p, MGR__LOCK, p->key_index);
        p->dirty = false;
        n++;
    }
    if (!e) return false;
    c->rewrite_not_before = now + MGR__REWRITE_MS;
    mgr__cluster_send(c, e, now);
    return true;
}

static void mgr__cluster_drop_wish(mgr__cluster *c)
{
    memmove(c->wishes, c->wishes + 1, --c->wish_count * sizeof *c->wishes);    /* in order: drain on, drain off */
}

static bool mgr__cluster_ask_wish(mgr__cluster *c, int64_t now)
{
    while (c->wish_count) {
        mgr__wanted_wish *wanted = &c->wishes[0];
        const mgr__member *m = mgr__picture_member(&c->picture, mgr__str_of(wanted->id));
        const mgr__standing_wish *standing = mgr__picture_wish(&c->picture, mgr__str_of(wanted->id));
        if (!m) { mgr__cluster_drop_wish(c); continue; }
        mgr__wish wish;
        wish.drain = wanted->evict ? m->wish_drain : wanted->drain;
        wish.evict = wanted->evict ? m->life : m->wish_evict;
        mgr__errand *e = mgr__cluster_work(c, MGR__TASK_WISH, MGR__ASK_TXN);
        mgr__buf value;
        mgr__buf_init(&value, c->heap, 4096);
        mgr__wish_write(&wish, &value);
        mgr__op *op = mgr__request_on(&e->request, MGR__CAS, &c->root, "cluster/wishes/", m->id);
        op->index = standing ? standing->modify_index : 0;
        op->value = mgr__request_keep(&e->request, &value);
        mgr__cluster_send(c, e, now);
        return true;
    }
    return false;
}

/* When a breaker's pause has served its purpose, or has held for too long: whoever is first ends it. */
static int64_t mgr__cluster_breaker_end(const mgr__cluster *c)
{
    return mgr__min64(c->still_since + mgr__cluster_still_ms(c), mgr__cluster_breaker_most(c));
}

static bool mgr__cluster_breaker_over(const mgr__cluster *c, int64_t now)
{
    return c->picture.pause.exists && c->picture.pause.breaker && now >= mgr__cluster_breaker_end(c);
}

/* Does the picture show what we last wrote of the pause? Before it does it says nothing
 * about what is to be written next: a pause that is taken back at once would stay. */
static bool mgr__cluster_pause_shown(const mgr__cluster *c)
{
    const mgr__pause *standing = &c->picture.pause;
    if (c->picture.index < c->own_index || c->picture.index < c->pause_put) return false;
    return !standing->exists || standing->modify_index != c->pause_taken;
}

/* What of the pause is to be written: NONE where it stands as it should, or is not shown yet. */
static mgr__pause_wish mgr__cluster_pause_needs(const mgr__cluster *c, int64_t now)
{
    const mgr__pause *standing = &c->picture.pause;
    if (!mgr__cluster_pause_shown(c)) return MGR__PAUSE_NONE;
    if (c->pause_wish == MGR__PAUSE_ON) return mgr__pause_as_told(standing, mgr__str_of(c->pause_reason)) ? MGR__PAUSE_NONE : MGR__PAUSE_ON;
    if (c->pause_wish == MGR__PAUSE_OFF) return standing->exists ? MGR__PAUSE_OFF : MGR__PAUSE_NONE;
    if (c->breaker_due && now < c->hold_until && !standing->exists) return MGR__PAUSE_ON;
    return mgr__cluster_breaker_over(c, now) ? MGR__PAUSE_OFF : MGR__PAUSE_NONE;
}

static mgr__str mgr__request_pause(mgr__request *r, const mgr__pause *pause)
{
    mgr__buf value;
    mgr__buf_init(&value, r->arena.heap, 4096);
    mgr__pause_write(pause, &value);
    return mgr__request_keep(r, &value);
}

/* On our own key as it stands: where the answer is lost, that key is written anew, and
 * a pause that would still land cannot any more. */
static bool mgr__cluster_ask_pause(mgr__cluster *c, int64_t now)
{
    mgr__pause_wish needs = mgr__cluster_pause_needs(c, now);
    if (!mgr__cluster_pause_shown(c)) return false;
    if (needs == MGR__PAUSE_NONE) { c->pause_wish = MGR__PAUSE_NONE; return false; }
    if (now < c->pause_not_before) return false;
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_PAUSE, MGR__ASK_TXN);
    bool on = needs == MGR__PAUSE_ON, told = c->pause_wish == MGR__PAUSE_ON;
    mgr__request_check_index(&e->request, mgr__cluster_own_key(c, &e->request), c->own_index);
    mgr__op *op = mgr__request_op(&e->request, on ? MGR__CAS : MGR__DELETE_CAS,
                                  mgr__key_fixed(&e->request.arena, &c->root, "cluster/pause"));
    op->index = c->picture.pause.modify_index;      /* 0: there is none */
    mgr__pause pause;
    memset(&pause, 0, sizeof pause);
    pause.by = c->config.instance_id;
    pause.reason = mgr__str_of(told ? c->pause_reason : c->breaker_reason);
    pause.breaker = !told;
    pause.since_ms = mgr__pause_told(&c->picture.pause) ? c->picture.pause.since_ms : (uint64_t)now + c->wall_offset_ms;
    if (on) op->value = mgr__request_pause(&e->request, &pause);
    if (needs == MGR__PAUSE_OFF && c->pause_wish == MGR__PAUSE_NONE && now < c->still_since + mgr__cluster_still_ms(c))
        mgr__cluster_tell_of(c, MGR_EVENT_RESUMED, NULL, c->config.instance_id,
                             "the circuit breaker has held planned moves for %lld ms while members still came and went: "
                             "it lets them go, and stays off until none has for %lld ms",
                             (long long)(now - c->breaker_since), (long long)mgr__cluster_still_ms(c));
    c->pause_not_before = now + MGR__PAUSE_AGAIN_MS;
    mgr__cluster_send(c, e, now);
    return true;
}

/* Its key is gone; now what Consul's catalog still shows of it. */
static void mgr__cluster_bury_service(mgr__cluster *c, int64_t now)
{
    bool ours = strcmp(c->bury_node, c->node) == 0;     /* a live agent would register it again */
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_BURY_SERVICE, ours ? MGR__ASK_SERVICE_DEREGISTER : MGR__ASK_CATALOG_DEREGISTER);
    e->request.name = mgr__arena_str(&e->request.arena, mgr__str_of(c->bury_service));
    e->request.node = mgr__arena_str(&e->request.arena, mgr__str_of(c->bury_node));
    mgr__cluster_send(c, e, now);
}

/* Its key as it stands in the picture, its slot, and its certificate, if its death is proven here. */
static void mgr__cluster_bury(mgr__cluster *c, const mgr__burial *b, const mgr__member *dead, int64_t now)
{
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_BURY, MGR__ASK_TXN);
    mgr__request *r = &e->request;
    if (b->inquest.life[0] && b->inquest.verdict == MGR__VERDICT_DEAD)
        mgr__request_certify(r, &c->root, dead->life, "{\"proof\":\"seen dead by another instance on its host\"}");
    mgr__request_on(r, MGR__DELETE_CAS, &c->root, "cluster/instances/", dead->id)->index = dead->modify_index;
    if (dead->slot_index) mgr__request_op(r, MGR__DELETE_CAS, mgr__cluster_slot_key(c, r, dead->slot))->index = dead->slot_index;
    r->name = mgr__arena_str(&r->arena, dead->service);
    r->node = mgr__arena_str(&r->arena, dead->node);
    r->note = mgr__arena_str(&r->arena, dead->id);
    mgr__cluster_send(c, e, now);
}

/* Remote failure: a dead instance is deregistered by another. */
static bool mgr__cluster_ask_bury(mgr__cluster *c, int64_t now)
{
    if (c->bury_service[0]) { mgr__cluster_bury_service(c, now); return true; }
    for (size_t i = 0; i < c->burial_count; i++) {
        mgr__burial *b = &c->burials[i];
        const mgr__member *m = mgr__picture_member(&c->picture, mgr__str_of(b->id));
        if (now < b->due_at || !m || m->alive) continue;
        if (mgr__cluster_inquire(c, &b->inquest, m, now)) { b->due_at = now + MGR__PROVE_AGAIN_MS; continue; }
        b->due_at = now + MGR__BACKOFF_MAX_MS;      /* until the picture shows it */
        mgr__cluster_bury(c, b, m, now);
        return true;
    }
    return false;
}

/* A slot's key that gives nobody a slot: its owner's key was deleted by hand, or it has
 * another one. Owners see to theirs, the first live member to the others'. */
static const mgr__slot_key *mgr__cluster_stray_slot(const mgr__cluster *c)
{
    bool first = mgr__cluster_first(c);
    for (size_t i = 0; i < c->picture.slot_count; i++) {
        const mgr__slot_key *slot = &c->picture.slots[i];
        const mgr__member *m = mgr__picture_member(&c->picture, slot->id);
        if (m && m->slot == slot->number && m->slot_index) continue;
        if (m && m->alive ? mgr__str_eq(m->id, c->config.instance_id) : first) return slot;
    }
    return NULL;
}

/* A member without a slot claims the one that the picture gives it. */
static bool mgr__cluster_ask_slot(mgr__cluster *c, int64_t now)
{
    const mgr__member *own = mgr__cluster_own(c);
    if (now < c->slot_not_before || !own || c->picture.index < c->own_index) return false;
    bool claims = !own->slot_index && own->slot <= MGR_MEMBER_COUNT_MAX && mgr__marker_slots(&c->picture.marker);
    const mgr__slot_key *stray = claims ? NULL : mgr__cluster_stray_slot(c);
    if (!claims && !stray) return false;
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_SLOT, MGR__ASK_TXN);
    mgr__request *r = &e->request;
    if (claims) {
        mgr__request_op(r, MGR__CHECK_SESSION, mgr__cluster_own_key(c, r))->session = mgr__arena_str(&r->arena, mgr__cluster_life(c));
        mgr__cluster_add_slot(c, r, own->slot);
    } else {
        if (stray->id.len && !mgr__picture_member(&c->picture, stray->id))
            mgr__request_on(r, MGR__CHECK_ABSENT, &c->root, "cluster/instances/", stray->id);
        mgr__request_op(r, MGR__DELETE_CAS, mgr__cluster_slot_key(c, r, stray->number))->index = stray->modify_index;
    }
    c->slot_not_before = now + MGR__BACKOFF_MIN_MS;     /* until a picture shows what came of it */
    mgr__cluster_send(c, e, now);
    return true;
}

/* Certificates that no owner key refers to are swept by the first live member,
 * two sweeps after they were written; without one, only the delay is waited. */
static bool mgr__cluster_ask_sweep(mgr__cluster *c, int64_t now)
{
    if (c->sweeping && c->swept_count) {
        mgr__errand *e = mgr__cluster_work(c, MGR__TASK_SWEEP, MGR__ASK_TXN);
        for (size_t i = 0; i < c->picture.certificate_count; i++) {
            const mgr__certificate *dead = &c->picture.certificates[i];
            for (size_t s = 0; s < c->swept_count; s++)
                if (mgr__str_is(dead->life, c->swept[s]) && e->request.op_count < MGR__COUNT(c->swept))
                    mgr__request_on(&e->request, MGR__DELETE_CAS, &c->root, "cluster/dead/", dead->life)->index = dead->modify_index;
        }
        c->sweeping = false;
        if (!e->request.op_count) return false;
        mgr__cluster_send(c, e, now);
        return true;
    }
    if (now < c->next_sweep || !c->picture.certificate_count) return false;
    c->next_sweep = now + MGR__SWEEP_MS;
    if (!mgr__cluster_first(c)) return false;
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_SWEEP_LIST, MGR__ASK_LIST);
    e->request.key = mgr__key_fixed(&e->request.arena, &c->root, "owners/");
    mgr__cluster_send(c, e, now);
    return true;
}

/* The set we have, under its name. It never changes there, so that it may land at any time. */
static void mgr__cluster_put_set(mgr__cluster *c, mgr__request *r)
{
    mgr__buf text;
    mgr__buf_init(&text, c->heap, MGR__SET_BYTES_MAX);
    mgr__set_write(&c->set, c->heap, &text);
    mgr__op *op = mgr__request_op(r, MGR__SET, mgr__cluster_set_key(c, r, c->set.hash));
    op->value = mgr__request_keep(r, &text);
}

static bool mgr__cluster_has_missing(const mgr__cluster *c) { return c->have_set && strcmp(c->set.hash, c->picture.missing.hash) == 0; }

/* Is cluster/missing ours to answer: have we the set, or does it name one that is not in force? */
static bool mgr__cluster_answers_missing(const mgr__cluster *c)
{
    if (!c->picture.missing.exists || !mgr__marker_stands(&c->picture.marker)) return false;
    return mgr__cluster_has_missing(c) || strcmp(c->picture.missing.hash, c->picture.marker.hash) != 0;
}

/* The set goes back, and cluster/missing with it, if that stands still. */
static bool mgr__cluster_ask_restore(mgr__cluster *c, int64_t now)
{
    const mgr__missing *missing = &c->picture.missing;
    if (!mgr__cluster_answers_missing(c) || now < c->missing_not_before) return false;
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_RESTORE_SET, MGR__ASK_TXN);
    mgr__op *op = mgr__request_op(&e->request, MGR__DELETE_CAS, mgr__key_fixed(&e->request.arena, &c->root, "cluster/missing"));
    op->index = missing->modify_index;
    if (mgr__cluster_has_missing(c)) mgr__cluster_put_set(c, &e->request);
    c->missing_not_before = now + mgr__cluster_jitter(c, MGR__RESTORE_SET_MS);     /* until the picture shows it */
    mgr__cluster_send(c, e, now);
    return true;
}

/* Fences must grow although the index went down, and a longer delay must stand
 * in the marker before it is used. */
static bool mgr__cluster_ask_marker(mgr__cluster *c, int64_t now)
{
    /* One of a newer program may hold more than we can read. */
    if (now < c->marker_not_before || !mgr__marker_known(&c->picture.marker)) return false;
    bool restore = !c->picture.marker.exists && c->marker_seen.exists && c->have_set;    /* deleted or overwritten by hand */
    const mgr__marker *standing = restore ? &c->marker_seen : &c->picture.marker;
    bool fence = c->fence_floor && standing->fence_base + c->index_max <= c->fence_floor;
    if (!mgr__marker_stands(standing) || (!restore && !fence && (int64_t)standing->delay_max_ms >= c->delay_seen_ms)) return false;
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_FENCE_BASE, MGR__ASK_TXN);
    mgr__marker marker = *standing;
    mgr__buf value;
    if (fence) marker.fence_base = c->fence_floor;
    if ((int64_t)marker.delay_max_ms < c->delay_seen_ms) marker.delay_max_ms = (uint64_t)c->delay_seen_ms;
    if (restore) mgr__cluster_tell(c, MGR_EVENT_ERROR, "cluster/partitions was deleted or overwritten by hand: it is restored");
    mgr__buf_init(&value, c->heap, 4096);
    mgr__marker_write(&marker, &value);
    mgr__op *op = mgr__request_op(&e->request, MGR__CAS, mgr__key_fixed(&e->request.arena, &c->root, "cluster/partitions"));
    op->index = c->picture.marker.modify_index;     /* 0: there is none */
    op->value = mgr__request_keep(&e->request, &value);
    /* The set it names may be gone as well (the whole store was wiped). */
    if (restore && strcmp(c->set.hash, c->marker_seen.hash) == 0) mgr__cluster_put_set(c, &e->request);
    mgr__cluster_send(c, e, now);
    return true;
}

/* As a member: what is most urgent. */
static void mgr__cluster_member_step(mgr__cluster *c, int64_t now)
{
    if (c->own_unclear && mgr__cluster_ask_own(c, now)) return;
    if (mgr__cluster_ask_unlock(c, now)) return;
    if (mgr__cluster_ask_own(c, now)) return;
    if (mgr__cluster_ask_read(c, now)) return;
    if (c->phase != MGR__PHASE_MEMBER) return;
    if (mgr__cluster_ask_marker(c, now)) return;
    if (mgr__cluster_ask_restore(c, now)) return;
    if (mgr__cluster_ask_missing(c, now)) return;
    if (mgr__cluster_ask_slot(c, now)) return;
    if (mgr__cluster_ask_lock(c, now)) return;
    if (mgr__cluster_ask_set(c, now)) return;
    if (mgr__cluster_ask_pause(c, now)) return;
    if (mgr__cluster_ask_wish(c, now)) return;
    if (mgr__cluster_ask_rewrite(c, now)) return;
    if (mgr__cluster_ask_bury(c, now)) return;
    mgr__cluster_ask_sweep(c, now);
}

/* Leaving, all work gone: certificate only if an unlock is not confirmed (and if it is true), then
 * our key, the session, the service. */
static void mgr__cluster_ask_parting(mgr__cluster *c, int64_t now)
{
    mgr__errand *e = mgr__cluster_work(c, MGR__TASK_PARTING, MGR__ASK_TXN);
    mgr__request *r = &e->request;
    bool all_released = true;
    for (size_t i = 0; i < c->part_count; i++) if (c->parts[i]->state != MGR__PART_IDLE || c->parts[i]->doubt_index) all_released = false;
    if (!all_released && !c->unproven)
        mgr__request_certify(r, &c->root, mgr__arena_str(&r->arena, mgr__cluster_life(c)), "{\"proof\":\"left, all work was seen dead\"}");
    mgr__str key = mgr__cluster_own_key(c, r);
    mgr__op *check = mgr__request_op(r, MGR__CHECK_SESSION, key);
    check->session = mgr__arena_str(&r->arena, mgr__cluster_life(c));
    const mgr__member *own = mgr__cluster_own(c);
    bool stays = mgr__cluster_keeps_seat(c);
    mgr__op *last = mgr__request_op(r, stays ? MGR__UNLOCK : MGR__DELETE_CAS, key);
    if (stays) last->session = check->session;
    if (stays) last->value = mgr__cluster_own_value(c, r);
    else last->index = c->own_index;
    if (!stays && own && own->slot_index)
        mgr__request_op(r, MGR__DELETE_CAS, mgr__cluster_slot_key(c, r, own->slot))->index = own->slot_index;
    mgr__cluster_send(c, e, now);
}

static void mgr__cluster_to_clean(mgr__cluster *c, bool certify, int64_t now)
{
    if (c->life[0]) {
        mgr__copy_text(c->old_life, sizeof c->old_life, mgr__cluster_life(c));
        mgr__copy_text(c->past_life, sizeof c->past_life, mgr__cluster_life(c));
    }
    c->life[0] = 0;
    c->own_index = 0;
    c->certify = certify && !c->unproven;
    c->old_certified = c->old_destroyed = false;
    mgr__cluster_phase(c, MGR__PHASE_CLEAN, now);
}

static void mgr__cluster_work_lane(mgr__cluster *c, int64_t now)
{
    if (c->errands[MGR__LANE_WORK].out || now < c->not_before) return;
    if (mgr__cluster_in_life(c)) mgr__cluster_member_step(c, now);
    else if (c->phase == MGR__PHASE_PARTING) {
        if (c->own_unclear) mgr__cluster_ask_own(c, now);
        else if (c->parting_look) mgr__cluster_ask_list(c, MGR__TASK_PARTING_LOOK, now);
        else mgr__cluster_ask_parting(c, now);
    } else mgr__cluster_enter_step(c, now);
}

/* ---- the core: answers of the work lane ---- */

/* A request came to nothing: once more later, longer each time; a refusal is told. */
static void mgr__cluster_trouble(mgr__cluster *c, const mgr__answer *a, const char *what, int64_t now)
{
    bool refused = mgr__answer_refused(a);
    if (refused && !c->work_failures)
        mgr__cluster_tell(c, MGR_EVENT_ERROR, "Consul refuses to %s: %.*s", what, mgr__str_width(a->text, 300), a->text.at);
    c->work_failures++;
    c->not_before = now + mgr__cluster_backoff(c, c->work_failures);
}

/* What a token must allow for the step that was refused: Consul seldom says it. */
static const char *mgr__phase_right(mgr__phase phase)
{
    switch (phase) {
    case MGR__PHASE_NODE:     return "agent_prefix \"\" read, to ask the agent for its node";
    case MGR__PHASE_LOOK: case MGR__PHASE_SET: return "key_prefix \"manager/<service>/\" write, for the service's keys";
    case MGR__PHASE_REGISTER: return "service_prefix \"\" write, to register the instance";
    case MGR__PHASE_SESSION:  return "session_prefix \"\" write, to make a session";
    case MGR__PHASE_JOIN:     return "key_prefix \"manager/<service>/\" write, for the instance's key";
    case MGR__PHASE_CLEAN: case MGR__PHASE_MEMBER: case MGR__PHASE_ENDING: case MGR__PHASE_LEAVING: case MGR__PHASE_PARTING:
    case MGR__PHASE_LEFT: break;
    }
    return "a right";
}

static void mgr__cluster_entering_failed(mgr__cluster *c, const mgr__answer *a, int64_t now)
{
    if (a->outcome == MGR__OUTCOME_DENIED) {
        mgr__cluster_tell(c, MGR_EVENT_ERROR, "cannot enter: the token lacks %s (%.*s)", mgr__phase_right(c->phase),
                          mgr__str_width(a->text, 200), a->text.at);
        mgr__cluster_left(c, MGR_DENIED, now);
        return;
    }
    bool stranger = c->phase == MGR__PHASE_NODE && (a->outcome == MGR__OUTCOME_NOT_FOUND || a->outcome == MGR__OUTCOME_REJECTED);
    if (stranger && !c->failures)
        mgr__cluster_tell(c, MGR_EVENT_ERROR, "what answers is no Consul agent (HTTP %d to /v1/agent/self): check its address", a->status);
    else if (mgr__answer_came(a) && !c->failures)
        mgr__cluster_tell(c, MGR_EVENT_ERROR, "cannot enter yet: %.*s", mgr__str_width(a->text, 200), a->text.at);
    bool clean = c->life[0] || c->session_unclear || c->phase == MGR__PHASE_CLEAN;
    if (c->life[0]) mgr__cluster_to_clean(c, false, now);
    mgr__cluster_later(c, clean ? MGR__PHASE_CLEAN : MGR__PHASE_NODE, now);
}

/* Nobody certifies it: it is said once, with the reason and for whom is waited. */
static void mgr__cluster_unproven_former(mgr__cluster *c)
{
    if (c->former.told) return;
    c->former.told = true;
    mgr__cluster_tell_of(c, MGR_EVENT_WAITING, NULL, c->config.instance_id,
                         "the former life %s of instance %s on this host has no proof of death: %s; what it held is taken after the delay",
                         c->former.life, c->config.instance_id.at, c->former.why);
}

/* It was seen dead by this process: certify it, end its session if that still stands,
 * and its service; only then enter. */
static void mgr__cluster_former_dead(mgr__cluster *c, int64_t now)
{
    const mgr__member *own = mgr__cluster_own(c);
    mgr__copy_text(c->old_life, sizeof c->old_life, mgr__str_of(c->former.life));
    if (own && own->service.len && own->service.len < sizeof c->service && mgr__str_is(own->node, c->node)) {
        mgr__copy_text(c->service, sizeof c->service, own->service);
        c->registered = true;
    }
    c->certify = true;
    c->old_certified = c->old_destroyed = false;
    mgr__cluster_phase(c, MGR__PHASE_CLEAN, now);
    c->not_before = now;
}

/* The id is taken by a session that lives. How long is it worth waiting? If its process
 * is of this boot and gone, it is a former life of ours that its keeper ends, or that
 * its check ends after the delay; if it lives, or is elsewhere, not at all; if that
 * cannot be told, for as long as a keeper may take. */
static int64_t mgr__cluster_identity_wait(const mgr__cluster *c, const mgr__member *holder)
{
    if (!c->config.alive || !holder->pid || !holder->boot.len)
        return (int64_t)c->config.stop_grace_ms + c->config.kill_margin_ms + MGR__IDENTITY_WAIT_MS;
    bool former = mgr__str_eq(holder->boot, c->config.boot) && !c->config.alive(c->config.user, holder->pid);
    return former ? (int64_t)holder->delay_ms + 2 * (int64_t)c->config.session_ttl_ms : 0;
}

static void mgr__cluster_identity(mgr__cluster *c, const mgr__member *holder, int64_t now)
{
    int64_t wait_ms = mgr__cluster_identity_wait(c, holder);
    if (now - c->phase_since < wait_ms) {
        if (!c->told_identity)
            mgr__cluster_tell_of(c, MGR_EVENT_WAITING, NULL, holder->id,
                                 "instance id %s is still held by session %.*s: waiting up to %lld ms for that life to end%s%s",
                                 holder->id.at, (int)holder->session.len, holder->session.at, (long long)wait_ms,
                                 c->former.why[0] ? "; its death is not proven: " : "", c->former.why);
        c->told_identity = true;
        mgr__cluster_wait_for(c, holder, c->phase_since + wait_ms, now);
        return;
    }
    mgr__cluster_tell_of(c, MGR_EVENT_IDENTITY, NULL, holder->id,
                         "instance id %s is held by a live instance (session %.*s, agent %.*s): choose another id or stop that one",
                         holder->id.at, (int)holder->session.len, holder->session.at, (int)holder->node.len, holder->node.at);
    c->leave_result = MGR_IDENTITY;
    c->want_leave = true;
    mgr__cluster_to_clean(c, false, now);
}

/* What of the service this instance cannot take part in. False: it has left. */
static bool mgr__cluster_placement_fits(mgr__cluster *c, int64_t now)
{
    const mgr__marker *marker = &c->picture.marker;
    bool slots = mgr__marker_slots(marker);
    const mgr__member *other = NULL;
    if (slots && !c->entered_once) other = mgr__picture_odd_weight(&c->picture, c->config.weight, c->config.instance_id);
    if (mgr__marker_known(marker) && !other) return true;
    if (other)
        mgr__cluster_tell_of(c, MGR_EVENT_ERROR, NULL, other->id,
                             "the service is placed by slots, which is for equal weights: instance %s has weight %llu, this one %lu; "
                             "give it the same", other->id.at, (unsigned long long)other->weight, (unsigned long)c->config.weight);
    else
        mgr__cluster_tell(c, MGR_EVENT_ERROR,
                          "the service is placed by policy \"%s\" version %llu, this program knows \"rush\" and \"slots\" version %d: "
                          "use a manager.h that knows it",
                          marker->placement, (unsigned long long)marker->placement_version, MGR__PLACEMENT_VERSION);
    mgr__cluster_left(c, MGR_INVALID, now);
    return false;
}

/* The store was wiped under us: what we know is set up again, as lost. */
static void mgr__cluster_set_up_again(mgr__cluster *c)
{
    mgr__set again = c->set;
    memset(&c->set, 0, sizeof c->set);
    mgr__arena_init(&c->set.arena, c->heap);
    c->have_set = false;
    for (size_t i = 0; i < c->part_count; i++) c->parts[i]->in_set = c->parts[i]->assigned = false;
    c->map_digest = 0;
    c->fence_floor = c->fence_top;
    c->index_max = 0;
    mgr__setter_start(&c->setter, c->heap, &again, c->config.partitions_version, (uint64_t)c->delay_seen_ms);
    c->setter.fence_floor = c->fence_floor;
    c->setter.placement = mgr__marker_stands(&c->marker_seen) ? mgr__marker_placement(&c->marker_seen) : c->config.placement;
}

static void mgr__cluster_looked(mgr__cluster *c, const mgr__answer *a, int64_t now)
{
    mgr__cluster_see(c, a, now);
    c->watch_index = a->index;
    c->look_at = 0;
    const mgr__member *own = mgr__cluster_own(c);
    bool first = own && !mgr__str_is(own->life, c->former.life);
    if (own) mgr__inquest_begin(&c->former, c, own, now);
    if (c->former.open && mgr__picture_certified(&c->picture, mgr__str_of(c->former.life))) {    /* its keeper was quicker */
        c->former.open = false;
        c->former.verdict = MGR__VERDICT_DEAD;
    }
    bool inquired = own && mgr__cluster_inquire(c, &c->former, own, now);
    if (inquired && (first || !own->alive)) {
        mgr__cluster_wait_for(c, own, own->alive ? now + MGR__PROVE_AGAIN_MS : MGR__NEVER, now);
        return;
    }
    if (own && own->alive) { mgr__cluster_identity(c, own, now); return; }
    if (!mgr__cluster_placement_fits(c, now)) return;
    if (c->picture.member_count >= MGR_MEMBER_COUNT_MAX && !own) {
        mgr__cluster_tell(c, MGR_EVENT_ERROR, "the service has MGR_MEMBER_COUNT_MAX (%d) instances: no more can enter",
                          MGR_MEMBER_COUNT_MAX);
        mgr__cluster_left(c, MGR_LIMIT, now);
        return;
    }
    c->told_identity = false;
    if (own && mgr__str_is(own->life, c->former.life) && !c->former.open && c->former.verdict != MGR__VERDICT_DEAD)
        mgr__cluster_unproven_former(c);
    mgr__cluster_phase(c, MGR__PHASE_SET, now);
    if (!c->have_configured && !c->have_set && !c->picture.marker.exists)
        mgr__cluster_tell(c, MGR_EVENT_WAITING, "no partition set stands for service %s yet: start one instance with partitions",
                          c->config.service_id.at);
    if (c->have_configured && !c->entered_once) {
        mgr__setter_start(&c->setter, c->heap, &c->configured, c->config.partitions_version, (uint64_t)c->delay_seen_ms);
        c->setter.fence_floor = c->fence_floor;
        c->setter.placement = c->config.placement;
        c->have_configured = false;
    } else if (!c->picture.marker.exists && c->have_set && !mgr__setter_busy(&c->setter)) mgr__cluster_set_up_again(c);
}

/* The answer to MGR__ACT_PROVE. */
static void mgr__cluster_proved(mgr__cluster *c, mgr__str life, mgr__verdict verdict, const char *why, int64_t now)
{
    mgr__inquest *q = mgr__str_is(life, c->former.life) ? &c->former : NULL;
    for (size_t i = 0; i < c->burial_count && !q; i++) if (mgr__str_is(life, c->burials[i].inquest.life)) q = &c->burials[i].inquest;
    if (!q || !q->open) return;
    q->verdict = verdict;
    mgr__copy_text(q->why, sizeof q->why, mgr__str_of(verdict == MGR__VERDICT_DEAD ? "" : why));
    if (verdict == MGR__VERDICT_NONE) q->open = false;
    if (q != &c->former) { q->open = verdict == MGR__VERDICT_LATER; return; }
    if (c->phase != MGR__PHASE_LOOK || c->want_leave || c->errands[MGR__LANE_WORK].out) return;    /* asked again with the next look */
    if (verdict == MGR__VERDICT_DEAD) { q->open = false; mgr__cluster_former_dead(c, now); }
    else if (verdict == MGR__VERDICT_NONE) { c->look_at = 0; c->not_before = now; }
}

/* Once: the service is placed otherwise than this instance was told. */
static void mgr__cluster_tell_placement(mgr__cluster *c)
{
    const char *wanted = mgr__placement_word(c->config.placement);
    if (!c->config.placement || c->told_placement || strcmp(wanted, c->picture.marker.placement) == 0) return;
    c->told_placement = true;
    mgr__cluster_tell(c, MGR_EVENT_SET_CHANGED,
                      "the service is placed by \"%s\", not by \"%s\" as this instance was told: that stays; "
                      "`manager partitions --placement %s` changes it", c->picture.marker.placement, wanted, wanted);
}

static void mgr__cluster_joined(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    MGR_ASSERT(c->life[0]);
    c->own_index = a->kv_count ? a->kvs[a->kv_count - 1].modify_index : 0;
    c->unproven = false;
    c->own_dirty = c->own_unclear = false;
    c->failures = 0;
    c->entered_once = true;
    c->session_unclear = false;
    c->joining_until = now + c->config.settle_ms;
    c->joining_most = now + (int64_t)c->config.settle_ms * MGR__SETTLES_MAX;
    c->lease_until = e->sent_at + c->config.lease_ms;
    c->next_round = e->sent_at + mgr__cluster_round_ms(c);
    c->round_open = c->renew_due = c->pass_due = false;
    c->next_audit = now + c->config.lease_ms;
    c->next_sweep = now + mgr__cluster_jitter(c, MGR__SWEEP_FIRST_MS);
    for (size_t i = 0; i < c->part_count; i++) { c->parts[i]->stale = true; c->parts[i]->doubt_index = 0; }
    mgr__cluster_phase(c, MGR__PHASE_MEMBER, now);
    mgr__cluster_act(c, MGR__ACT_LIFE);
    mgr__cluster_act(c, MGR__ACT_LEASE)->at = c->lease_until;
    mgr__cluster_tell_of(c, MGR_EVENT_ENTERED, NULL, c->config.instance_id, "entered service %s as %s (session %s)",
                         c->config.service_id.at, c->config.instance_id.at, c->life);
    mgr__cluster_tell_placement(c);
}

static void mgr__cluster_entering_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    bool join_conflicts = e->task == MGR__TASK_JOIN && a->outcome == MGR__OUTCOME_CONFLICT;
    if (c->phase >= MGR__PHASE_MEMBER) return;      /* the life ended while the request was out: what it made is cleaned up */
    if (join_conflicts && mgr__cluster_slot_taken(e, a) && now - c->phase_since < (int64_t)c->config.lease_ms) {
        c->not_before = now + mgr__cluster_jitter(c, 2 * MGR__MARKER_WAIT_MS);
        return;
    }
    if (join_conflicts) {     /* the key or the session is not as it was */
        mgr__cluster_to_clean(c, false, now);
        mgr__cluster_later(c, MGR__PHASE_CLEAN, now);
        return;
    }
    if (a->outcome != MGR__OUTCOME_OK) mgr__cluster_entering_failed(c, a, now);
    else if (e->task == MGR__TASK_NODE) {
        mgr__copy_text(c->node, sizeof c->node, a->node);
        mgr__cluster_phase(c, MGR__PHASE_LOOK, now);
    } else if (e->task == MGR__TASK_LOOK) mgr__cluster_looked(c, a, now);
    else if (e->task == MGR__TASK_REGISTER) mgr__cluster_phase(c, MGR__PHASE_SESSION, now);
    else if (e->task == MGR__TASK_SESSION) {
        mgr__copy_text(c->life, sizeof c->life, a->session);
        c->session_unclear = false;
        mgr__cluster_phase(c, MGR__PHASE_JOIN, now);
    } else mgr__cluster_joined(c, e, a, now);
}

static void mgr__cluster_clean_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    /* Destroying what is gone, and deregistering what is unknown, is done already. */
    bool done = mgr__answer_came(a);
    if (!done) {
        bool hopeless = c->want_leave && now - c->phase_since > (int64_t)c->config.lease_ms;
        if (hopeless) mgr__cluster_left(c, c->leave_result, now);
        else mgr__cluster_later(c, MGR__PHASE_CLEAN, now);
        return;
    }
    c->failures = 0;
    if (mgr__answer_refused(a))
        mgr__cluster_tell(c, MGR_EVENT_ERROR, "Consul refuses to clean up a former life: %.*s", mgr__str_width(a->text, 300), a->text.at);
    if (e->task == MGR__TASK_CERTIFY) {
        c->old_certified = true;
        if (a->outcome == MGR__OUTCOME_OK)
            mgr__cluster_tell(c, MGR_EVENT_CERTIFIED, "certified that all work of the former life %s is dead", c->old_life);
    } else if (e->task == MGR__TASK_DESTROY) c->old_destroyed = true;
    else c->registered = false;
}

static void mgr__cluster_set_answer(mgr__cluster *c, const mgr__answer *a, int64_t now)
{
    mgr__setter_answer(&c->setter, c->heap, &c->root, mgr__str_of(c->session_name), a, now);
    if (!mgr__setter_busy(&c->setter)) mgr__cluster_set_done(c, now);
}

static void mgr__cluster_set_later(mgr__cluster *c, int64_t now)
{
    c->misses++;
    c->set_not_before = now + mgr__cluster_doubled_ms(c, c->misses, MGR__BACKOFF_MAX_MS);
}

/* Its key was deleted or overwritten by hand. We say so at once, and read it again later. */
static void mgr__cluster_set_unreadable(mgr__cluster *c, const mgr__kv *kv, int64_t now)
{
    bool said = c->picture.missing.exists && strcmp(c->picture.missing.hash, c->picture.marker.hash) == 0;
    c->set_missed = !said;
    c->missed_index = kv ? kv->modify_index : 0;
    if (said) mgr__cluster_set_later(c, now);
    if (strcmp(c->missed_told, c->picture.marker.hash) == 0) return;
    mgr__copy_text(c->missed_told, sizeof c->missed_told, mgr__str_of(c->picture.marker.hash));
    mgr__cluster_tell(c, MGR_EVENT_ERROR,
                      "the partition set sets/%s %s: whoever runs with it is asked to put it back; "
                      "`manager partitions` puts another in force", c->picture.marker.hash, kv ? "cannot be read" : "is gone");
}

static void mgr__cluster_read_set_answer(mgr__cluster *c, const mgr__errand *e, const mgr__answer *a, int64_t now)
{
    mgr__set fresh;
    mgr__str asked;
    if (!mgr__answer_decided(a)) { mgr__cluster_trouble(c, a, "read the partition set", now); return; }
    /* Another is in force by now. */
    if (!mgr__key_below(e->request.ops[0].key, &c->root, "sets/", &asked) || !mgr__str_is(asked, c->picture.marker.hash)) return;
    const mgr__kv *kv = a->outcome == MGR__OUTCOME_OK && a->kv_count ? &a->kvs[0] : NULL;
    bool read = kv && mgr__set_read(&fresh, c->heap, kv->value);
    if (read && mgr__str_is(asked, fresh.hash)) {
        c->misses = 0;
        c->missed_told[0] = 0;
        mgr__cluster_take_set(c, &fresh);
        return;
    }
    if (read) mgr__set_free(&fresh);
    mgr__cluster_set_unreadable(c, kv, now);
}

/* Whatever came of it: the picture shows it, and the set is read again later. */
static void mgr__cluster_miss_answer(mgr__cluster *c, const mgr__answer *a, int64_t now)
{
    mgr__cluster_set_later(c, now);
    if (!mgr__answer_decided(a)) mgr__cluster_trouble(c, a, "write cluster/missing", now);
}

static void mgr__cluster_restore_answer(mgr__cluster *c, const mgr__errand *e, const mgr__answer *a, int64_t now)
{
    bool put = e->request.op_count > 1;
    if (a->outcome == MGR__OUTCOME_OK && put)
        mgr__cluster_tell(c, MGR_EVENT_ERROR, "the partition set sets/%s was deleted or overwritten by hand: it is put back", c->set.hash);
    else if (!mgr__answer_decided(a)) mgr__cluster_trouble(c, a, "put the partition set back", now);
}

/* Nothing is known of our own key after a lost answer; a conflict says it is not as we left it. */
static void mgr__cluster_own_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    if (a->outcome == MGR__OUTCOME_OK && a->kv_count) {
        const mgr__kv *own = &a->kvs[a->kv_count - 1];     /* the own key is always last */
        if (e->task == MGR__TASK_OWN_READ && !mgr__str_eq(own->session, mgr__cluster_life(c))) {
            if (c->phase == MGR__PHASE_PARTING) { mgr__cluster_to_clean(c, true, now); return; }
            mgr__cluster_end_life(c, 0, MGR_EVENT_SESSION_LOST, "our session no longer holds our own key", now);
            return;
        }
        if (own->modify_index < c->own_index && now >= c->distrust_until) mgr__cluster_index_down(c, now);
        c->own_index = own->modify_index;
        if (e->task == MGR__TASK_OWN_READ) { c->own_unclear = false; c->own_dirty = true; c->releases++; }
        return;
    }
    if (a->outcome == MGR__OUTCOME_CONFLICT && e->task == MGR__TASK_OWN_READ) {     /* the key is gone */
        if (c->phase == MGR__PHASE_PARTING) { mgr__cluster_to_clean(c, true, now); return; }
        mgr__cluster_end_life(c, c->config.stop_grace_ms, MGR_EVENT_SESSION_LOST, "our own key was removed", now);
        return;
    }
    c->own_unclear = c->own_dirty = true;
    if (a->outcome != MGR__OUTCOME_CONFLICT) mgr__cluster_trouble(c, a, "rewrite our own key", now);
}

/* What a read says of a partition, by the state it is in. */
static void mgr__cluster_read_part(mgr__cluster *c, mgr__part *p, const mgr__kv *kv, int64_t now)
{
    mgr__part_observe(c, p, kv, now);
    bool ours = p->held && mgr__str_is(mgr__cluster_life(c), p->holder);
    if (mgr__part_works(p)) {           /* a rewrite's answer was lost */
        if (ours) p->key_index = p->seen_index;
        else mgr__part_lose(c, p, 0, MGR_LOST, "its lock was taken away or its key was changed by hand");
        return;
    }
    if (p->state == MGR__PART_ACQUIRING) p->state = MGR__PART_IDLE;
    if (p->state == MGR__PART_UNLOCKING && !ours) p->state = MGR__PART_IDLE;
    mgr__part_give_back(c, p, now);
    if (p->state == MGR__PART_UNLOCKING) p->key_index = p->seen_index;
}

/* The picture has overtaken the read: the holder's key changed after what was known
 * when the read was sent, so that the release it tells of may be missing in it. */
static bool mgr__part_outrun(const mgr__cluster *c, const mgr__part *p, uint64_t sent_index)
{
    const mgr__member *holder = mgr__picture_life(&c->picture, mgr__str_of(p->holder));
    /* Nobody else releases what is ours. */
    if (!p->held || mgr__str_is(mgr__cluster_life(c), p->holder) || c->picture.index <= sent_index) return false;
    return !holder || holder->modify_index > sent_index;
}

/* A get of a missing key fails, and with it the transaction: that is its answer;
 * the others are asked again. */
static void mgr__cluster_read_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    if (a->outcome == MGR__OUTCOME_CONFLICT) {
        bool acted = false;
        for (size_t i = 0; i < a->failed_count; i++) {
            if (a->failed[i] >= e->request.op_count) continue;
            mgr__cluster_read_part(c, e->parts[a->failed[i]], NULL, now);
            acted = true;
        }
        if (acted) return;
    }
    if (a->outcome != MGR__OUTCOME_OK) { mgr__cluster_trouble(c, a, "read partitions' keys", now); return; }
    for (size_t i = 0; i < e->request.op_count; i++) {
        mgr__cluster_read_part(c, e->parts[i], mgr__answer_last(a, e->request.ops[i].key), now);
        if (mgr__part_outrun(c, e->parts[i], e->index_max)) e->parts[i]->stale = true;
    }
}

/* cluster/partitions has changed: the picture will show how, sooner or later. */
static void mgr__cluster_outrun(mgr__cluster *c, int64_t now)
{
    bool again = c->outrun_index == c->picture.marker.modify_index;
    c->outruns = again ? c->outruns + 1 : 0;
    c->outrun_index = c->picture.marker.modify_index;
    c->not_before = now + ((int64_t)MGR__MARKER_WAIT_MS << mgr__min64(c->outruns, 6));
}

/* Made by us or by somebody meanwhile: it is read again. */
static void mgr__cluster_missing_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    for (size_t i = 0; i < e->request.op_count; i++) if (e->parts[i]) e->parts[i]->writing = false;
    if (a->outcome == MGR__OUTCOME_CONFLICT && a->failed_count && a->failed[0] == 0) mgr__cluster_outrun(c, now);
    else if (!mgr__answer_decided(a)) mgr__cluster_trouble(c, a, "make partitions' keys again", now);
}

/* A write confirms what it was conditioned on, in the round that was open when it was sent; 0: in none. */
static uint64_t mgr__cluster_round_of(const mgr__cluster *c, const mgr__errand *e)
{
    return e->sent_at >= c->round_started && c->round_open ? c->round : 0;
}

static void mgr__cluster_lock_won(mgr__cluster *c, mgr__part *p, uint64_t index, const mgr__errand *e, int64_t now)
{
    if (index <= e->index_max) mgr__cluster_index_down(c, now);
    int64_t until = e->sent_at + (int64_t)c->config.lease_ms;
    if (until < c->lease_until || now >= until - (int64_t)c->config.stop_grace_ms) {
        p->state = MGR__PART_IDLE;      /* this lock is older than what the lease rests on: read, and lock anew */
        p->stale = true;
        return;
    }
    p->key_index = index;
    p->doubt_index = 0;
    p->held = false;
    p->seen = false;
    if (index > c->index_max) c->index_max = index;
    p->fence = c->picture.marker.fence_base + index;
    p->round = mgr__cluster_round_of(c, e);
    if (p->fence > c->fence_top) c->fence_top = p->fence;
    if (p->fence <= p->watermark || p->fence <= c->fence_floor) {   /* Consul's index went down: wait for a new fence_base */
        p->state = MGR__PART_UNLOCKING;
        return;
    }
    mgr__part_begin(c, p);
}

static void mgr__cluster_lock_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    for (size_t i = 0; i < e->request.op_count; i++) {
        mgr__part *p = e->parts[i];
        if (!p || e->request.ops[i].verb != MGR__LOCK) continue;
        const mgr__kv *kv = a->outcome == MGR__OUTCOME_OK ? mgr__answer_last(a, e->request.ops[i].key) : NULL;
        p->writing = false;
        if (e->task == MGR__TASK_REWRITE) {
            if (kv && mgr__part_works(p)) { p->key_index = kv->modify_index; p->round = mgr__cluster_round_of(c, e); }
            else if (!kv && mgr__part_works(p)) p->stale = true;
            continue;
        }
        if (p->state != MGR__PART_ACQUIRING) continue;      /* the life ended meanwhile */
        if (kv && kv->modify_index) { mgr__cluster_lock_won(c, p, kv->modify_index, e, now); continue; }
        p->state = MGR__PART_IDLE;
        if (a->outcome == MGR__OUTCOME_CONFLICT) p->doubt_index = 0;    /* nothing was applied */
        bool blamed = a->failed_count == 0;
        for (size_t f = 0; f < a->failed_count; f++) if (a->failed[f] < e->request.op_count && e->parts[a->failed[f]] == p) blamed = true;
        p->stale = p->stale || blamed || a->outcome != MGR__OUTCOME_CONFLICT;
    }
    /* A lock's first op checks the marker, its second our own key. */
    bool outrun = a->outcome == MGR__OUTCOME_CONFLICT && e->task == MGR__TASK_LOCK && a->failed_count && a->failed[0] == 0;
    for (size_t f = 0; f < a->failed_count && e->task == MGR__TASK_LOCK; f++) if (a->failed[f] == 1) c->own_unclear = true;
    if (outrun) mgr__cluster_outrun(c, now);
    else if (!mgr__answer_decided(a)) mgr__cluster_trouble(c, a, "lock partitions", now);
}

static void mgr__cluster_unlock_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    for (size_t i = 0; i < e->request.op_count; i++) {
        mgr__part *p = e->parts[i];
        if (!p || e->request.ops[i].verb != MGR__UNLOCK) continue;
        p->writing = false;
        if (p->state != MGR__PART_UNLOCKING) continue;
        p->stale = true;
        if (a->outcome != MGR__OUTCOME_OK) continue;
        p->state = MGR__PART_IDLE;
        p->fence = 0;
        mgr__cluster_tell_of(c, MGR_EVENT_RELEASED, p, mgr__nobody(), "released partition %s", p->name.at);
    }
    mgr__cluster_own_answer(c, e, a, now);
}

/* The next picture shows how it stands. Deleting gives no index: what was deleted is known by its own. */
static void mgr__cluster_pause_answer(mgr__cluster *c, const mgr__errand *e, const mgr__answer *a, int64_t now)
{
    const mgr__op *op = &e->request.ops[1];
    const mgr__kv *written = op->verb == MGR__CAS && a->outcome == MGR__OUTCOME_OK ? mgr__answer_last(a, op->key) : NULL;
    if (written) c->pause_put = written->modify_index;
    else if (a->outcome == MGR__OUTCOME_OK) c->pause_taken = op->index;
    bool own_moved = a->outcome == MGR__OUTCOME_CONFLICT && a->failed_count && a->failed[0] == 0;
    if (own_moved || a->outcome == MGR__OUTCOME_UNKNOWN) c->own_unclear = true;
    if (mgr__answer_decided(a)) return;
    mgr__cluster_trouble(c, a, "write cluster/pause", now);
    if (mgr__answer_refused(a)) { c->pause_wish = MGR__PAUSE_NONE; c->breaker_due = false; }
}

static void mgr__cluster_bury_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a)
{
    if (e->task == MGR__TASK_BURY_SERVICE) { c->bury_service[0] = 0; return; }
    if (a->outcome != MGR__OUTCOME_OK) return;
    if (e->request.ops[0].verb == MGR__SET)
        mgr__cluster_tell_of(c, MGR_EVENT_CERTIFIED, NULL, e->request.note,
                             "certified that all work of instance %.*s, which died on this host, is dead",
                             (int)e->request.note.len, e->request.note.at);
    mgr__copy_text(c->bury_service, sizeof c->bury_service, e->request.name);
    mgr__copy_text(c->bury_node, sizeof c->bury_node, e->request.node);
    mgr__cluster_tell_of(c, MGR_EVENT_MEMBER_REMOVED, NULL, e->request.note, "deregistered the dead instance %.*s",
                         (int)e->request.note.len, e->request.note.at);
}

/* Which certificates does no owner key refer to? One pass over the owners. */
static void mgr__cluster_sweep_answer(mgr__cluster *c, const mgr__answer *a)
{
    mgr__arena arena;
    mgr__buf scratch;
    if (a->outcome != MGR__OUTCOME_OK) return;
    bool *needed = (bool *)mgr__alloc_array(c->heap, c->picture.certificate_count + 1, sizeof *needed);
    if (!needed) { c->failed = true; return; }
    mgr__arena_init(&arena, c->heap);
    mgr__buf_init(&scratch, c->heap, MGR_BODY_BYTES_MAX);
    for (size_t k = 0; k < a->kv_count; k++) {
        mgr__holding owner;
        mgr__holding_read(&owner, &a->kvs[k], &scratch, &arena);
        const mgr__certificate *at = mgr__picture_certificate(&c->picture, owner.life);
        if (at) needed[at - c->picture.certificates] = true;
        mgr__arena_free(&arena);
    }
    c->swept_count = 0;
    for (size_t i = 0; i < c->picture.certificate_count && c->swept_count < MGR__COUNT(c->swept); i++)
        if (!needed[i] && c->picture.certificates[i].modify_index <= c->sweep_index)
            mgr__copy_text(c->swept[c->swept_count++], sizeof c->swept[0], c->picture.certificates[i].life);
    c->sweep_index = c->picture.index;
    c->sweeping = true;
    mgr__buf_free(&scratch);
    mgr__free(c->heap, needed);
}

/* Nothing failed but the slot's deletion, the last op: somebody changed that key since our picture. */
static bool mgr__cluster_slot_moved(const mgr__cluster *c, const mgr__errand *e, const mgr__answer *a)
{
    const mgr__op *last = &e->request.ops[e->request.op_count - 1];
    mgr__str rest;
    return a->outcome == MGR__OUTCOME_CONFLICT && a->failed_count == 1 && a->failed[0] + 1 == e->request.op_count &&
           mgr__key_below(last->key, &c->root, "cluster/slots/", &rest);
}

static void mgr__cluster_parting_looked(mgr__cluster *c, const mgr__answer *a, int64_t now)
{
    c->parting_look = a->outcome != MGR__OUTCOME_OK;
    if (!c->parting_look) { mgr__cluster_see(c, a, now); return; }
    if (now - c->phase_since > (int64_t)c->config.lease_ms) mgr__cluster_to_clean(c, true, now);
    else c->not_before = now + mgr__cluster_backoff(c, 1);
}

static void mgr__cluster_parting_answer(mgr__cluster *c, const mgr__errand *e, const mgr__answer *a, int64_t now)
{
    if (mgr__cluster_slot_moved(c, e, a) && now - c->phase_since < (int64_t)c->config.lease_ms) { c->parting_look = true; return; }
    bool unclear = !mgr__answer_came(a);
    if (unclear && now - c->phase_since > (int64_t)c->config.lease_ms) { mgr__cluster_left(c, c->leave_result, now); return; }
    if (unclear) { c->own_unclear = true; c->not_before = now + mgr__cluster_backoff(c, 1); return; }
    /* Our key is gone, or not ours to delete; what is unclear about the locks a certificate settles. */
    mgr__cluster_to_clean(c, a->outcome != MGR__OUTCOME_OK, now);
}

static void mgr__cluster_work_answer(mgr__cluster *c, mgr__errand *e, const mgr__answer *a, int64_t now)
{
    if (a->outcome == MGR__OUTCOME_OK) c->work_failures = 0;
    switch (e->task) {
    case MGR__TASK_NODE: case MGR__TASK_LOOK: case MGR__TASK_REGISTER: case MGR__TASK_SESSION: case MGR__TASK_JOIN:
        mgr__cluster_entering_answer(c, e, a, now); break;
    case MGR__TASK_CERTIFY: case MGR__TASK_DESTROY: case MGR__TASK_DEREGISTER: mgr__cluster_clean_answer(c, e, a, now); break;
    case MGR__TASK_SETTER: mgr__cluster_set_answer(c, a, now); break;
    case MGR__TASK_READ_SET: mgr__cluster_read_set_answer(c, e, a, now); break;
    case MGR__TASK_MISS_SET: mgr__cluster_miss_answer(c, a, now); break;
    case MGR__TASK_RESTORE_SET: mgr__cluster_restore_answer(c, e, a, now); break;
    case MGR__TASK_OWN_READ: case MGR__TASK_OWN_WRITE: if (c->life[0]) mgr__cluster_own_answer(c, e, a, now); break;
    case MGR__TASK_READ: mgr__cluster_read_answer(c, e, a, now); break;
    case MGR__TASK_MISSING: mgr__cluster_missing_answer(c, e, a, now); break;
    case MGR__TASK_LOCK: case MGR__TASK_REWRITE: mgr__cluster_lock_answer(c, e, a, now); break;
    case MGR__TASK_UNLOCK: mgr__cluster_unlock_answer(c, e, a, now); break;
    case MGR__TASK_WISH:
        if (a->outcome != MGR__OUTCOME_OK) mgr__cluster_trouble(c, a, "write a wish", now);
        if (a->outcome != MGR__OUTCOME_CONFLICT && mgr__answer_came(a) && c->wish_count) mgr__cluster_drop_wish(c);
        break;
    case MGR__TASK_PAUSE: mgr__cluster_pause_answer(c, e, a, now); break;
    case MGR__TASK_BURY: case MGR__TASK_BURY_SERVICE: mgr__cluster_bury_answer(c, e, a); break;
    case MGR__TASK_SWEEP_LIST: mgr__cluster_sweep_answer(c, a); break;
    case MGR__TASK_PARTING: if (c->phase == MGR__PHASE_PARTING) mgr__cluster_parting_answer(c, e, a, now); break;
    case MGR__TASK_PARTING_LOOK: if (c->phase == MGR__PHASE_PARTING) mgr__cluster_parting_looked(c, a, now); break;
    case MGR__TASK_FENCE_BASE:
        if (a->outcome == MGR__OUTCOME_OK) break;
        mgr__cluster_trouble(c, a, "rewrite cluster/partitions", now);
        c->marker_not_before = c->not_before;
        c->not_before = now;
        break;
    case MGR__TASK_SLOT:
        if (mgr__answer_decided(a)) break;
        mgr__cluster_trouble(c, a, "write our slot", now);
        c->slot_not_before = c->not_before;
        c->not_before = now;
        break;
    case MGR__TASK_SWEEP: case MGR__TASK_NONE: break;
    case MGR__TASK_WATCH: case MGR__TASK_CONFIRM: case MGR__TASK_RENEW: case MGR__TASK_PASS: break;    /* of the other lanes */
    }
}

/* ---- the core: events in ---- */

static void mgr__cluster_note_reachability(mgr__cluster *c, const mgr__answer *a)
{
    bool up = mgr__answer_came(a);
    if (c->told_reachability && up == c->reachable) return;
    c->reachable = up;
    c->told_reachability = true;
    int len = mgr__str_width(a->text, 300);
    if (up) mgr__cluster_tell(c, MGR_EVENT_CONSUL_UP, "Consul answers");
    else if (a->status)
        mgr__cluster_tell(c, MGR_EVENT_CONSUL_DOWN, "Consul answers with an error (HTTP %d): %.*s", a->status, len, a->text.at);
    else mgr__cluster_tell(c, MGR_EVENT_CONSUL_DOWN, "Consul does not answer: %.*s", len, a->text.at);
}

static void mgr__cluster_watch_answer(mgr__cluster *c, const mgr__errand *e, const mgr__answer *a, int64_t now)
{
    if (a->outcome != MGR__OUTCOME_OK) {
        c->watch_failures++;
        c->watch_not_before = now + mgr__cluster_backoff(c, c->watch_failures);
        return;
    }
    if (a->index && a->index < c->watch_index) {    /* the index went down: start again with a full read */
        c->watch_index = 0;
        return;
    }
    bool changed = a->index != c->watch_index || !c->have_picture;
    /* Held queries that come back at once with nothing new (a proxy?) must not make us spin. */
    if (!changed && now - e->sent_at < MGR__BACKOFF_MIN_MS)
        c->watch_not_before = now + mgr__cluster_doubled_ms(c, ++c->watch_failures, MGR__BACKOFF_MAX_MS);
    else c->watch_failures = 0;
    c->watch_index = a->index ? a->index : 1;
    if (!changed) return;
    mgr__cluster_see(c, a, now);
    if (c->phase == MGR__PHASE_LOOK && c->look_at) c->not_before = now;     /* of the one that is waited for? */
}

/* The answer to what is out on `lane`. */
static void mgr__cluster_answer(mgr__cluster *c, mgr__lane lane, const mgr__answer *a, int64_t now)
{
    mgr__errand *e = &c->errands[lane];
    MGR_ASSERT(e->out);
    e->out = false;
    if (e->task != MGR__TASK_WATCH || a->outcome == MGR__OUTCOME_OK) mgr__cluster_note_reachability(c, a);
    switch (lane) {
    case MGR__LANE_WATCH: mgr__cluster_watch_answer(c, e, a, now); break;
    case MGR__LANE_LEASE:
        if (e->task == MGR__TASK_CONFIRM) mgr__cluster_confirm_answer(c, e, a, now);
        else if (e->task == MGR__TASK_RENEW) {
            bool ours = mgr__str_eq(e->request.session, mgr__cluster_life(c));
            c->renew_due = false;
            if (a->outcome == MGR__OUTCOME_NOT_FOUND && ours && mgr__cluster_in_life(c))
                mgr__cluster_end_life(c, 0, MGR_EVENT_SESSION_LOST, "Consul does not know our session any more", now);
        } else c->pass_due = false;
        break;
    case MGR__LANE_WORK: mgr__cluster_work_answer(c, e, a, now); break;
    case MGR__LANE_COUNT: break;
    }
}

/* The work of a partition is gone, all of it. */
static void mgr__cluster_gone(mgr__cluster *c, mgr__part *p)
{
    (void)c;
    p->gone = true;
    if (p->state == MGR__PART_RELEASING) p->state = MGR__PART_UNLOCKING;
    else if (p->state == MGR__PART_LOST) p->state = MGR__PART_IDLE;
}

/* The executor cannot go on with this life: the lease word is closed, a keeper
 * or guard died. Work still alive is reported gone one by one, as ever. */
static void mgr__cluster_over(mgr__cluster *c, mgr_event_kind event, const char *why, int64_t now)
{
    mgr__cluster_end_life(c, 0, event, why, now);
    /* Before a life only the keeper is to be replaced. */
    if (!c->life[0] && c->phase != MGR__PHASE_ENDING && c->phase < MGR__PHASE_MEMBER) {
        c->keeper_ready = false;
        mgr__cluster_act(c, MGR__ACT_FRESH_KEEPER);
    }
}

static void mgr__cluster_ready(mgr__cluster *c) { c->keeper_ready = true; }

static void mgr__cluster_leave(mgr__cluster *c)
{
    if (++c->leaves > 1) c->want_kill = true;
    c->want_leave = true;
}

static void mgr__cluster_drain(mgr__cluster *c, bool on)
{
    if (c->drain != on) { c->drain = on; c->own_dirty = true; }
}

/* Another instance shall have it, for so long (0: the default), which doubles with each repeat. */
static void mgr__cluster_refuse(mgr__cluster *c, mgr__part *p, uint32_t for_ms, int64_t now)
{
    uint64_t ms = for_ms ? for_ms : (uint32_t)MGR__REFUSE_MS;
    for (uint32_t i = 0; i < p->refusals && ms < MGR__REFUSE_MAX_MS; i++) ms *= 2;
    if (ms > MGR__REFUSE_MAX_MS && for_ms < MGR__REFUSE_MAX_MS) ms = MGR__REFUSE_MAX_MS;
    p->refusals++;
    p->refused = true;
    p->refused_until = now + (int64_t)ms;
    c->own_dirty = true;
    mgr__cluster_tell_of(c, MGR_EVENT_REFUSED, p, mgr__nobody(), "this instance refuses partition %s for %llu ms",
                         p->name.at, (unsigned long long)ms);
}

/* A refusal is taken back, and forgotten. */
static void mgr__cluster_refuse_no_more(mgr__cluster *c, mgr__part *p)
{
    p->refused = false;
    p->refusals = 0;
    c->own_dirty = true;
}

static bool mgr__cluster_wish(mgr__cluster *c, mgr__str id, bool evict, bool drain)
{
    void *items = c->wishes;
    if (!mgr__grow(c->heap, &items, &c->wish_cap, c->wish_count, sizeof *c->wishes)) return false;
    c->wishes = (mgr__wanted_wish *)items;
    mgr__wanted_wish *wish = &c->wishes[c->wish_count++];
    mgr__copy_text(wish->id, sizeof wish->id, id);
    wish->evict = evict;
    wish->drain = drain;
    return true;
}

/* The last word counts. To resume also lets go of what our own breaker holds. */
static void mgr__cluster_pause(mgr__cluster *c, bool on, mgr__str reason)
{
    c->pause_wish = on ? MGR__PAUSE_ON : MGR__PAUSE_OFF;
    c->pause_not_before = 0;
    mgr__copy_text(c->pause_reason, sizeof c->pause_reason, reason);
    if (!on) mgr__cluster_forget_breaker(c);
}

/* Takes over `set`; NULL: it stays. placement: DEFAULT, it stays. */
static void mgr__cluster_command_set(mgr__cluster *c, mgr__set *set, mgr_placement placement)
{
    mgr__set none;
    mgr__errand *work = &c->errands[MGR__LANE_WORK];
    if (work->out && work->task == MGR__TASK_SETTER) work->task = MGR__TASK_NONE;   /* its answer is no business of the new command */
    memset(&none, 0, sizeof none);
    mgr__arena_init(&none.arena, c->heap);
    mgr__setter_start(&c->setter, c->heap, set ? set : &none, MGR__VERSION_STANDING, (uint64_t)c->delay_seen_ms);
    c->setter.keeps_set = !set;
    c->setter.placement = placement;
    c->setter.own_session = mgr__str_of(c->life);
}

/* A process of the partition was started or has ended: worth telling others. */
static void mgr__cluster_note_work(mgr__cluster *c, mgr__part *p, uint64_t attempts, const char *last_exit, bool ended)
{
    (void)c;
    p->attempts = attempts;
    p->ended = ended;
    mgr__copy_text(p->last_exit, sizeof p->last_exit, mgr__str_of(last_exit));
    if (p->state == MGR__PART_ASSUMED) p->dirty = true;
}

/* ---- the core: time ---- */

static void mgr__cluster_lease_time(mgr__cluster *c, int64_t now)
{
    if (!mgr__cluster_in_life(c)) return;
    if (now < c->lease_until - (int64_t)c->config.stop_grace_ms) return;
    int64_t left = mgr__max64(0, c->lease_until - now);
    mgr__cluster_end_life(c, (uint32_t)left, MGR_EVENT_LEASE_LOST, "the lease was not confirmed in time", now);
}

static bool mgr__cluster_younger_joins(const mgr__cluster *c)
{
    const mgr__member *own = mgr__cluster_own(c);
    for (size_t i = 0; own && i < c->picture.member_count; i++) {
        const mgr__member *m = &c->picture.members[i];
        if (m->alive && m->joining && m->create_index > own->create_index) return true;
    }
    return false;
}

static void mgr__cluster_own_time(mgr__cluster *c, int64_t now)
{
    if (c->phase != MGR__PHASE_MEMBER) return;
    if (c->joining && (now >= c->joining_most || (now >= c->joining_until && !mgr__cluster_younger_joins(c)))) {
        c->joining = false;
        c->own_dirty = true;
    }
    for (size_t i = 0; i < c->part_count; i++) {
        mgr__part *p = c->parts[i];
        if (p->refused && now >= p->refused_until) { p->refused = false; c->own_dirty = true; }
    }
    if (now < c->next_audit) return;
    /* What is unmet or in doubt is read again once a lease, with jitter. */
    c->next_audit = now + mgr__cluster_jitter(c, c->config.lease_ms) + c->config.lease_ms / 2;
    for (size_t i = 0; i < c->part_count; i++) {
        mgr__part *p = c->parts[i];
        if ((p->state == MGR__PART_IDLE && p->assigned) || p->doubt_index) p->stale = true;
    }
}

/* The executor still has something to end. */
static bool mgr__cluster_serves(const mgr__cluster *c)
{
    for (size_t i = 0; i < c->part_count; i++) if (c->parts[i]->work) return true;
    return false;
}

static void mgr__cluster_leave_time(mgr__cluster *c, int64_t now)
{
    if (!c->want_leave || c->phase == MGR__PHASE_LEFT) return;
    if (!c->leave_since) c->leave_since = now;
    bool overdue = now - c->leave_since > (int64_t)c->config.lease_ms + MGR__LEAVE_EXTRA_MS;
    if (overdue && !mgr__cluster_busy(c) && !mgr__cluster_serves(c)) {
        c->reachable = false;
        mgr__cluster_left(c, c->leave_result, now);
        return;
    }
    if (c->phase == MGR__PHASE_MEMBER) {
        mgr__cluster_phase(c, MGR__PHASE_LEAVING, now);
        c->own_dirty = true;        /* "leaving": the others' maps go on without us at once */
        for (size_t i = 0; i < c->part_count; i++) c->parts[i]->assigned = false;
    }
    if (c->want_kill) {
        c->want_kill = false;
        for (size_t i = 0; i < c->part_count; i++) {
            mgr__part *p = c->parts[i];
            if (!mgr__part_busy(p)) continue;
            if (p->state == MGR__PART_ASSUMED) p->state = MGR__PART_RELEASING;
            mgr__cluster_act(c, MGR__ACT_WORK_KILL)->part = p;
        }
    }
    bool settled = !c->errands[MGR__LANE_WORK].out;
    if (c->phase == MGR__PHASE_LEAVING && settled && !mgr__cluster_busy(c)) {
        bool unlocking = false;
        for (size_t i = 0; i < c->part_count; i++) unlocking = unlocking || c->parts[i]->state == MGR__PART_UNLOCKING || c->parts[i]->work;
        if (!unlocking || now - c->phase_since > (int64_t)c->config.lease_ms * 2) mgr__cluster_phase(c, MGR__PHASE_PARTING, now);
    }
    bool nothing = !c->life[0] && !c->old_life[0] && !c->registered && !c->session_unclear;
    if (c->phase < MGR__PHASE_MEMBER && settled && nothing) { mgr__cluster_left(c, c->leave_result, now); return; }
    if (c->phase < MGR__PHASE_MEMBER && c->phase != MGR__PHASE_CLEAN && settled) mgr__cluster_to_clean(c, c->certify, now);
    if (c->phase == MGR__PHASE_CLEAN && !c->reachable && now - c->phase_since > (int64_t)mgr__min64(2000, c->config.lease_ms) && settled)
        mgr__cluster_left(c, c->leave_result, now);
}

static void mgr__cluster_phase_time(mgr__cluster *c, int64_t now)
{
    if (c->phase == MGR__PHASE_ENDING && !mgr__cluster_busy(c) && !c->errands[MGR__LANE_WORK].out) {
        c->keeper_ready = false;
        mgr__cluster_act(c, MGR__ACT_FRESH_KEEPER);
        mgr__cluster_phase(c, MGR__PHASE_CLEAN, now);
    }
    if (c->phase == MGR__PHASE_SET && !mgr__setter_busy(&c->setter) && c->have_set && !mgr__cluster_set_is_old(c) &&
        !c->errands[MGR__LANE_WORK].out && c->keeper_ready) mgr__cluster_phase(c, MGR__PHASE_REGISTER, now);
    if (c->config.start_timeout_ms && !c->entered_once && now - c->started_at > (int64_t)c->config.start_timeout_ms && !c->want_leave) {
        c->want_leave = true;
        c->leave_result = c->reachable ? MGR_TIMEOUT : MGR_UNREACHABLE;
        const char *why = c->phase == MGR__PHASE_SET ? "no partition set stands; start one instance with partitions"
                                                     : "see what was said before";
        if (!c->reachable) why = "no Consul agent can be reached; check its address";
        mgr__cluster_tell(c, MGR_EVENT_ERROR, "could not enter within %lu ms: %s", (unsigned long)c->config.start_timeout_ms, why);
    }
}

/* After events, and when time has passed: decide everything that is due. */
static void mgr__cluster_pump(mgr__cluster *c, int64_t now)
{
    if (c->failed || c->phase == MGR__PHASE_LEFT) return;
    if (!c->action_count) mgr__cluster_drop_parts(c);       /* actions not yet carried out point to partitions */
    mgr__cluster_lease_time(c, now);
    mgr__cluster_own_time(c, now);
    mgr__cluster_map(c);
    mgr__cluster_leave_time(c, now);
    mgr__cluster_follow_map(c, now);
    mgr__cluster_phase_time(c, now);
    mgr__cluster_lease_lane(c, now);
    mgr__cluster_work_lane(c, now);
    mgr__cluster_watch(c, now);
}

/* When mgr__cluster_pump wants to be called, unless something happens before. */
static int64_t mgr__cluster_next(const mgr__cluster *c, int64_t now)
{
    int64_t at = MGR__NEVER;
    if (c->phase == MGR__PHASE_LEFT) return at;
    if (!c->errands[MGR__LANE_WORK].out) {
        if (now < c->not_before) at = c->not_before;
        if (mgr__setter_busy(&c->setter) && c->setter.not_before > now) at = mgr__min64(at, c->setter.not_before);
        if (c->set_not_before > now && mgr__cluster_set_is_old(c)) at = mgr__min64(at, c->set_not_before);
    }
    if (!c->errands[MGR__LANE_WATCH].out && c->watch_not_before > now) at = mgr__min64(at, c->watch_not_before);
    if (c->want_leave) at = mgr__min64(at, now + MGR__LEAVE_LOOK_MS);
    if (c->config.start_timeout_ms && !c->entered_once)
        at = mgr__min64(at, mgr__max64(now + 1, c->started_at + (int64_t)c->config.start_timeout_ms + 1));
    bool says_more = !c->errands[MGR__LANE_LEASE].out && (mgr__cluster_holds_on(c) || mgr__cluster_in_life(c));
    if (says_more) at = mgr__min64(at, c->renew_due || c->pass_due ? now : mgr__max64(now, c->next_round));
    if (!mgr__cluster_in_life(c)) return at;
    at = mgr__min64(at, mgr__max64(now, c->lease_until - (int64_t)c->config.stop_grace_ms));
    if (c->phase != MGR__PHASE_MEMBER) return at;
    if (c->joining) at = mgr__min64(at, now < c->joining_until ? c->joining_until : mgr__max64(now, c->joining_most));
    at = mgr__min64(at, mgr__max64(now, c->next_audit));
    bool idle = !c->errands[MGR__LANE_WORK].out && now >= c->not_before;    /* else the lane's next free moment comes by itself */
    if (c->marker_not_before > now) at = mgr__min64(at, c->marker_not_before);
    if (idle && mgr__cluster_answers_missing(c)) at = mgr__min64(at, mgr__max64(now, c->missing_not_before));
    if (c->slot_not_before > now) at = mgr__min64(at, c->slot_not_before);
    if (c->hold_until > now) at = mgr__min64(at, c->hold_until);
    if (idle && c->picture.pause.breaker && mgr__cluster_pause_shown(c))
        at = mgr__min64(at, mgr__max64(mgr__max64(now, c->pause_not_before), mgr__cluster_breaker_end(c)));
    if (idle && mgr__cluster_pause_needs(c, now) != MGR__PAUSE_NONE) at = mgr__min64(at, mgr__max64(now, c->pause_not_before));
    for (size_t i = 0; idle && i < c->burial_count; i++) at = mgr__min64(at, mgr__max64(now, c->burials[i].due_at));
    for (size_t i = 0; i < c->part_count; i++) {
        const mgr__part *p = c->parts[i];
        if (p->refused) at = mgr__min64(at, mgr__max64(now, p->refused_until));
        if (idle && mgr__part_missing(c, p)) at = mgr__min64(at, now);
        if (idle && mgr__part_rewrites(p)) at = mgr__min64(at, mgr__max64(now, c->rewrite_not_before));
        if (idle && mgr__part_wanted(c, p) && !p->stale) at = mgr__min64(at, mgr__max64(now, mgr__part_takeable_at(c, p, now)));
    }
    return at;
}

/* ---- the core: begin and end ---- */

/* Strings of the configuration must outlive the core. The partition names are copied. */
static mgr_result mgr__cluster_open(mgr__cluster *c, mgr__heap *heap, const mgr__cluster_config *config, int64_t now, mgr__buf *error)
{
    mgr__str bad;
    memset(c, 0, sizeof *c);
    c->heap = heap;
    c->config = *config;
    c->rng.state = config->seed;
    c->started_at = c->phase_since = now;
    c->delay_seen_ms = config->delay_ms;
    c->phase = MGR__PHASE_CLEAN;
    c->keeper_ready = true;
    mgr__arena_init(&c->set.arena, heap);
    mgr__arena_init(&c->configured.arena, heap);
    mgr__arena_init(&c->picture.arena, heap);
    mgr__arena_init(&c->setter.wanted.arena, heap);
    mgr__arena_init(&c->setter.old.arena, heap);
    for (int i = 0; i < MGR__LANE_COUNT; i++) mgr__arena_init(&c->errands[i].request.arena, heap);
    if (!mgr__root_make(&c->root, heap, config->kv_prefix, config->service_id)) return MGR_NO_MEMORY;
    mgr__copy_text(c->session_name, sizeof c->session_name, mgr__str_make(c->root.text, c->root.len));
    if (!config->partitions) return MGR_OK;
    const char *fault = mgr__set_make(&c->configured, heap, config->partitions, config->partition_count, &bad);
    if (fault) {
        mgr__buf_printf(error, "partition \"%.*s\" %s", (int)bad.len, bad.at, fault);
        return MGR_INVALID;
    }
    c->have_configured = true;
    return MGR_OK;
}

static void mgr__cluster_close(mgr__cluster *c)
{
    if (!c->heap) return;
    for (int i = 0; i < MGR__LANE_COUNT; i++) mgr__arena_free(&c->errands[i].request.arena);
    for (size_t i = 0; i < c->part_count; i++) mgr__part_free(c, c->parts[i]);
    mgr__free(c->heap, c->parts);
    mgr__free(c->heap, c->actions);
    mgr__free(c->heap, c->burials);
    mgr__free(c->heap, c->wishes);
    mgr__free(c->heap, c->vanished);
    mgr__picture_free(&c->picture);
    mgr__set_free(&c->set);
    mgr__set_free(&c->configured);
    mgr__setter_free(&c->setter, c->heap);
    memset(c, 0, sizeof *c);
}

/* ============================================================================
 * [io] The kernel: clocks, random bytes, sockets, files, names; then processes
 * what:  the only section that calls the kernel. First mgr__io_*: through a table, so
 *        that a test can supply its own kernel or fail the Nth call of the real one.
 *        Then mgr__process_*: directly, for [keeper], whose forked copies have no table
 * owns:  mgr__io (no state), mgr__address; mgr__process, what /proc says of one
 * calls: [base]
 * ========================================================================== */

/* Suspension must count: a lease does not wait for a laptop's lid to open. (Where
 * there is no CLOCK_BOOTTIME, on macOS say, CLOCK_MONOTONIC counts it too.) */
#ifdef CLOCK_BOOTTIME
#define MGR__IO_CLOCK CLOCK_BOOTTIME
#else
#define MGR__IO_CLOCK CLOCK_MONOTONIC
#endif

#ifdef MSG_NOSIGNAL
#define MGR__IO_NOSIGNAL MSG_NOSIGNAL
#else
#define MGR__IO_NOSIGNAL 0        /* SO_NOSIGPIPE then, at the socket */
#endif

enum {
    MGR__IO_HOST_BYTES_MAX = 253,       /* RFC 1035 2.3.4, in dotted form */
    MGR__IO_SEND_BYTES_MAX = 1 << 20    /* a single send: keeps a turn of the loop short */
};

/* Where an agent listens. */
typedef struct mgr__address {
    struct sockaddr_storage at;
    socklen_t len;
    char text[336];                     /* for messages: as it was written, and the number behind a name */
    char host_header[288];              /* of requests sent there */
} mgr__address;

typedef enum mgr__io_change { MGR__IO_ADD, MGR__IO_MODIFY, MGR__IO_REMOVE } mgr__io_change;

/* Every call answers >= 0, or -errno (errno itself may be left changed). EINTR is
 * dealt with below the table. Every descriptor made is close-on-exec and
 * non-blocking. Times are in ms; clock_ms and timer_set mean MGR__IO_CLOCK. */
typedef struct mgr__io {
    void   *user;                       /* passed to each */
    int64_t (*clock_ms)(void *user);
    int64_t (*realtime_ms)(void *user); /* since 1970, UTC; for display only */
    int     (*random)(void *user, void *to, size_t bytes);
    int     (*socket)(void *user, int family);      /* stream; TCP without Nagle's delay */
    int     (*connect)(void *user, int fd, const struct sockaddr *to, socklen_t len);   /* -EINPROGRESS: wait for POLLOUT */
    int     (*socket_error)(void *user, int fd);    /* how the connect that was in progress ended */
    ssize_t (*send)(void *user, int fd, const void *from, size_t bytes);                /* no SIGPIPE, ever */
    ssize_t (*recv)(void *user, int fd, void *to, size_t bytes);
    ssize_t (*read)(void *user, int fd, void *to, size_t bytes);
    ssize_t (*write)(void *user, int fd, const void *from, size_t bytes);
    int     (*close)(void *user, int fd);
    int     (*poll)(void *user, struct pollfd *fds, size_t fd_count, int timeout_ms);   /* 0 as well if a signal came */
    int     (*pipe)(void *user, int fds[2]);        /* read end, write end */
    int     (*epoll)(void *user);                   /* -ENOSYS where there is none; so the next three */
    int     (*epoll_set)(void *user, int epoll, int fd, short interest, mgr__io_change change);
    int     (*timer)(void *user);                   /* readable once the time has come */
    int     (*timer_set)(void *user, int timer, int64_t at_ms);                         /* MGR__NEVER: disarm */
    int     (*read_file)(void *user, const char *path, mgr__buf *out);  /* appends it whole; -EFBIG: over out's limit */
    int     (*hostname)(void *user, char *to, size_t to_bytes);         /* terminated */
    const char *(*environment)(void *user, const char *name);           /* NULL: not set, or empty */
    pid_t   (*process)(void *user);
    /* Numbers of a host name: at and len of out[0 .. result-1]; 0, *why: it has none.
     * May block as long as the system's resolver does. */
    size_t  (*resolve)(void *user, const char *host, const char *port, mgr__address *out, size_t out_max, const char **why);
} mgr__io;

/* ---- the real ones ---- */

static int64_t mgr__io_real_clock(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0) return 0;
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t mgr__io_real_clock_ms(void *user) { (void)user; return mgr__io_real_clock(MGR__IO_CLOCK); }
static int64_t mgr__io_real_realtime_ms(void *user) { (void)user; return mgr__io_real_clock(CLOCK_REALTIME); }

static int mgr__io_real_close(void *user, int fd)
{
    (void)user;
    return close(fd) == 0 ? 0 : -errno;     /* never again after EINTR: the number may be another's by then */
}

static ssize_t mgr__io_real_read(void *user, int fd, void *to, size_t bytes)
{
    ssize_t got;
    (void)user;
    do got = read(fd, to, bytes); while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

static ssize_t mgr__io_real_write(void *user, int fd, const void *from, size_t bytes)
{
    ssize_t put;
    (void)user;
    do put = write(fd, from, bytes); while (put < 0 && errno == EINTR);
    return put < 0 ? -errno : put;
}

static ssize_t mgr__io_real_send(void *user, int fd, const void *from, size_t bytes)
{
    ssize_t put;
    (void)user;
    do put = send(fd, from, bytes, MGR__IO_NOSIGNAL); while (put < 0 && errno == EINTR);
    return put < 0 ? -errno : put;
}

static ssize_t mgr__io_real_recv(void *user, int fd, void *to, size_t bytes)
{
    ssize_t got;
    (void)user;
    do got = recv(fd, to, bytes, 0); while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

/* Read bytes from the file until the buffer is full or it ends. */
static ssize_t mgr__io_real_fill(int fd, char *to, size_t bytes)
{
    size_t have = 0;
    while (have < bytes) {
        ssize_t got = mgr__io_real_read(NULL, fd, to + have, bytes - have);
        if (got < 0) return got;
        if (got == 0) break;
        have += (size_t)got;
    }
    return (ssize_t)have;
}

static int mgr__io_real_random(void *user, void *to, size_t bytes)
{
    (void)user;
#if defined(__linux__) && defined(SYS_getrandom)
    if (syscall(SYS_getrandom, to, bytes, 0u) == (long)bytes) return 0;
#endif
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    ssize_t got = mgr__io_real_fill(fd, (char *)to, bytes);
    close(fd);
    if (got < 0) return (int)got;
    return (size_t)got == bytes ? 0 : -EIO;
}

/* Where there is no call that does it at birth. */
static MGR__UNUSED int mgr__io_real_fd_flags(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) return -errno;
    return 0;
}

static int mgr__io_real_socket(void *user, int family)
{
    int one = 1;
    (void)user;
#if defined(SOCK_CLOEXEC) && defined(SOCK_NONBLOCK)
    /* At birth, or a fork of another thread of the host could inherit it. */
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
#else
    int fd = socket(family, SOCK_STREAM, 0);
    if (fd < 0) return -errno;
    int failed = mgr__io_real_fd_flags(fd);
    if (failed) { close(fd); return failed; }
#endif
#ifdef SO_NOSIGPIPE
    setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof one);
#endif
    if (family != AF_UNIX) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* An interrupted connect goes on by itself (POSIX): not to be repeated. */
static int mgr__io_real_connect(void *user, int fd, const struct sockaddr *to, socklen_t len)
{
    (void)user;
    if (connect(fd, to, len) == 0) return 0;
    return errno == EINTR ? -EINPROGRESS : -errno;
}

static int mgr__io_real_socket_error(void *user, int fd)
{
    int error = 0;
    socklen_t len = sizeof error;
    (void)user;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0) return -errno;
    return -error;
}

static int mgr__io_real_poll(void *user, struct pollfd *fds, size_t fd_count, int timeout_ms)
{
    (void)user;
    int ready = poll(fds, (nfds_t)fd_count, timeout_ms);
    if (ready >= 0) return ready;
    for (size_t i = 0; i < fd_count; i++) fds[i].revents = 0;
    return errno == EINTR ? 0 : -errno;
}

static int mgr__io_real_pipe(void *user, int fds[2])
{
    (void)user;
#ifdef __linux__
    return pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0 ? 0 : -errno;
#else
    if (pipe(fds) != 0) return -errno;
    int failed = mgr__io_real_fd_flags(fds[0]);
    if (!failed) failed = mgr__io_real_fd_flags(fds[1]);
    if (failed) { close(fds[0]); close(fds[1]); }
    return failed;
#endif
}

#ifdef __linux__
static int mgr__io_real_epoll(void *user)
{
    (void)user;
    int fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int mgr__io_real_epoll_set(void *user, int epoll, int fd, short interest, mgr__io_change change)
{
    struct epoll_event event;
    (void)user;
    memset(&event, 0, sizeof event);
    event.events = ((interest & POLLIN) ? (uint32_t)EPOLLIN : 0u) | ((interest & POLLOUT) ? (uint32_t)EPOLLOUT : 0u);
    event.data.fd = fd;
    int op = change == MGR__IO_ADD ? EPOLL_CTL_ADD : change == MGR__IO_MODIFY ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    return epoll_ctl(epoll, op, fd, &event) == 0 ? 0 : -errno;
}

static int mgr__io_real_timer(void *user)
{
    (void)user;
    int fd = timerfd_create(MGR__IO_CLOCK, TFD_CLOEXEC | TFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

static int mgr__io_real_timer_set(void *user, int timer, int64_t at_ms)
{
    struct itimerspec at;
    (void)user;
    memset(&at, 0, sizeof at);
    if (at_ms != MGR__NEVER) {
        at_ms = mgr__max64(at_ms, 1);       /* 0 would disarm it; the past fires at once */
        at.it_value.tv_sec = (time_t)(at_ms / 1000);
        at.it_value.tv_nsec = (long)(at_ms % 1000) * 1000000;
    }
    return timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL) == 0 ? 0 : -errno;
}
#else
static int mgr__io_real_epoll(void *user) { (void)user; return -ENOSYS; }
static int mgr__io_real_timer(void *user) { (void)user; return -ENOSYS; }
static int mgr__io_real_timer_set(void *user, int timer, int64_t at_ms) { (void)user; (void)timer; (void)at_ms; return -ENOSYS; }
static int mgr__io_real_epoll_set(void *user, int epoll, int fd, short interest, mgr__io_change change)
{
    (void)user; (void)epoll; (void)fd; (void)interest; (void)change;
    return -ENOSYS;
}
#endif

static int mgr__io_real_read_all(int fd, mgr__buf *out)
{
    for (;;) {
        char some[512];     /* small steps: such files hold a token or a line of /proc */
        ssize_t got = mgr__io_real_read(NULL, fd, some, sizeof some);
        if (got <= 0) return (int)got;
        bool over = (size_t)got > out->bytes_max - out->len;
        mgr__buf_add(out, some, (size_t)got);
        if (out->failed) return over ? -EFBIG : -ENOMEM;
    }
}

/* Non-blocking, so that a FIFO without a writer reads as empty and cannot hang us. */
static int mgr__io_real_read_file(void *user, const char *path, mgr__buf *out)
{
    (void)user;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -errno;
    int result = mgr__io_real_read_all(fd, out);
    close(fd);
    return result;
}

static int mgr__io_real_hostname(void *user, char *to, size_t to_bytes)
{
    (void)user;
    if (gethostname(to, to_bytes) != 0) return -errno;
    to[to_bytes - 1] = 0;       /* POSIX leaves a cut name open */
    return 0;
}

static const char *mgr__io_real_environment(void *user, const char *name)
{
    (void)user;
    const char *value = getenv(name);
    return value && value[0] ? value : NULL;
}

static pid_t mgr__io_real_process(void *user) { (void)user; return getpid(); }

static size_t mgr__io_real_resolve(void *user, const char *host, const char *port, mgr__address *out, size_t out_max, const char **why)
{
    struct addrinfo wanted, *found = NULL;
    size_t count = 0;
    (void)user;
    memset(&wanted, 0, sizeof wanted);
    wanted.ai_family = AF_UNSPEC;
    wanted.ai_socktype = SOCK_STREAM;
    int failed = getaddrinfo(host, port, &wanted, &found);
    if (failed) { *why = failed == EAI_SYSTEM ? strerror(errno) : gai_strerror(failed); return 0; }
    for (const struct addrinfo *at = found; at && count < out_max; at = at->ai_next) {
        if (at->ai_addrlen > sizeof out->at) continue;
        memset(&out[count].at, 0, sizeof out[count].at);
        memcpy(&out[count].at, at->ai_addr, at->ai_addrlen);
        out[count++].len = at->ai_addrlen;
    }
    freeaddrinfo(found);
    if (!count) *why = "no address of a known kind";
    return count;
}

static mgr__io mgr__io_real(void)
{
    mgr__io io;
    memset(&io, 0, sizeof io);
    io.clock_ms = mgr__io_real_clock_ms;
    io.realtime_ms = mgr__io_real_realtime_ms;
    io.random = mgr__io_real_random;
    io.socket = mgr__io_real_socket;
    io.connect = mgr__io_real_connect;
    io.socket_error = mgr__io_real_socket_error;
    io.send = mgr__io_real_send;
    io.recv = mgr__io_real_recv;
    io.read = mgr__io_real_read;
    io.write = mgr__io_real_write;
    io.close = mgr__io_real_close;
    io.poll = mgr__io_real_poll;
    io.pipe = mgr__io_real_pipe;
    io.epoll = mgr__io_real_epoll;
    io.epoll_set = mgr__io_real_epoll_set;
    io.timer = mgr__io_real_timer;
    io.timer_set = mgr__io_real_timer_set;
    io.read_file = mgr__io_real_read_file;
    io.hostname = mgr__io_real_hostname;
    io.environment = mgr__io_real_environment;
    io.process = mgr__io_real_process;
    io.resolve = mgr__io_real_resolve;
    return io;
}

/* ---- what every user of the table needs ---- */

static int64_t mgr__io_now(const mgr__io *io) { return io->clock_ms(io->user); }

/* What a call's negative answer means. */
static const char *mgr__io_text(ssize_t result) { return strerror((int)-result); }

/* RFC 3339, UTC, to the millisecond: "2026-01-31T12:00:00.000Z". */
static void mgr__io_rfc3339(char to[32], int64_t realtime_ms)
{
    struct tm at;
    time_t seconds = (time_t)(realtime_ms / 1000);
    if (realtime_ms < 0 || !gmtime_r(&seconds, &at) || at.tm_year > 8099) { memcpy(to, "1970-01-01T00:00:00.000Z", 25); return; }
    size_t len = strftime(to, 32, "%Y-%m-%dT%H:%M:%S", &at);
    snprintf(to + len, 32 - len, ".%03dZ", (int)(realtime_ms % 1000));
}

/* ---- addresses of agents ---- */

typedef struct mgr__io_place { mgr__str host; mgr__str port; bool bracketed; } mgr__io_place;

static bool mgr__io_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/* Without the white space around it, the end of a line in a file included. */
static mgr__str mgr__io_trim(mgr__str s)
{
    while (s.len && mgr__io_blank(s.at[0])) s = mgr__str_skip(s, 1);
    while (s.len && mgr__io_blank(s.at[s.len - 1])) s.len--;
    return s;
}

static size_t mgr__io_find(mgr__str s, char c)
{
    const void *at = s.len ? memchr(s.at, c, s.len) : NULL;
    return at ? (size_t)((const char *)at - s.at) : s.len;
}

/* A port of 1 .. 65535 in digits. */
static bool mgr__io_port(mgr__str s, uint16_t *port)
{
    uint32_t value = 0;
    if (!s.len || s.len > 5) return false;
    for (size_t i = 0; i < s.len; i++) {
        if (s.at[i] < '0' || s.at[i] > '9') return false;
        value = value * 10 + (uint32_t)(s.at[i] - '0');
    }
    *port = (uint16_t)value;
    return value > 0 && value <= 65535;
}

/* Take "host", "host:port", "[v6]" or "[v6]:port" apart; NULL, or what is wrong. */
static const char *mgr__io_place_split(mgr__str s, mgr__io_place *place)
{
    place->bracketed = s.len && s.at[0] == '[';
    if (place->bracketed) {
        size_t end = mgr__io_find(s, ']');
        if (end == s.len) return "a '[' without its ']'";
        place->host = mgr__str_make(s.at + 1, end - 1);
        s = mgr__str_skip(s, end + 1);
        if (s.len && s.at[0] != ':') return "something other than a port behind ']'";
    } else {
        place->host = mgr__str_make(s.at, mgr__io_find(s, ':'));
        s = mgr__str_skip(s, place->host.len);
        if (s.len && mgr__io_find(mgr__str_skip(s, 1), ':') != s.len - 1) return "write an IPv6 address in brackets, as in [::1]:8500";
    }
    place->port = s.len ? mgr__str_skip(s, 1) : mgr__str_of("8500");
    if (!place->host.len) return "the host is missing";
    if (place->host.len > MGR__IO_HOST_BYTES_MAX) return "the host name is too long";
    for (size_t i = 0; i < place->host.len; i++)
        if (!mgr__key_plain((unsigned char)place->host.at[i]) && !strchr(place->bracketed ? ".:%" : ".", place->host.at[i]))
            return "the host has a character that no host name has";
    return NULL;
}

/* An address in numbers needs no resolver, which a static program may lack. */
static bool mgr__io_numeric(const char *host, uint16_t port, mgr__address *out)
{
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    memset(&v4, 0, sizeof v4);
    memset(&v6, 0, sizeof v6);
    memset(&out->at, 0, sizeof out->at);
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
        v4.sin_family = AF_INET;
        v4.sin_port = htons(port);
        memcpy(&out->at, &v4, out->len = sizeof v4);
        return true;
    }
    if (inet_pton(AF_INET6, host, &v6.sin6_addr) != 1) return false;
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    memcpy(&out->at, &v6, out->len = sizeof v6);
    return true;
}

static void mgr__io_address_name(mgr__address *address, const mgr__io_place *place, const char *host, uint16_t port, bool by_name)
{
    char number[INET6_ADDRSTRLEN] = "";
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    snprintf(address->host_header, sizeof address->host_header, "%s%s%s:%u",
             place->bracketed ? "[" : "", host, place->bracketed ? "]" : "", (unsigned)port);
    memcpy(&v4, &address->at, sizeof v4);
    memcpy(&v6, &address->at, sizeof v6);
    if (by_name && address->at.ss_family == AF_INET) inet_ntop(AF_INET, &v4.sin_addr, number, sizeof number);
    if (by_name && address->at.ss_family == AF_INET6) inet_ntop(AF_INET6, &v6.sin6_addr, number, sizeof number);
    if (number[0]) snprintf(address->text, sizeof address->text, "%s (%s)", address->host_header, number);
    else mgr__copy_text(address->text, sizeof address->text, mgr__str_of(address->host_header));
}

/* "unix:///path": *out, or what is wrong. */
static const char *mgr__io_lookup_unix(mgr__str path, mgr__address *out)
{
    struct sockaddr_un un;
    memset(&un, 0, sizeof un);
    memset(out, 0, sizeof *out);
    if (!path.len || path.at[0] != '/') return "the path of a Unix socket starts with '/', as in unix:///run/consul.sock";
    if (path.len >= sizeof un.sun_path) return "the path is longer than a Unix socket's may be";
    un.sun_family = AF_UNIX;
    memcpy(un.sun_path, path.at, path.len);
    memcpy(&out->at, &un, out->len = sizeof un);
    snprintf(out->text, sizeof out->text, "unix://%.*s", (int)path.len, path.at);
    mgr__copy_text(out->host_header, sizeof out->host_header, mgr__str_of("localhost"));
    return NULL;
}

/* Addresses of one element of the list. 0: *why says what is wrong with it, and
 * *unknown whether that is only that its name has no address now. */
static size_t mgr__io_lookup_one(const mgr__io *io, mgr__str s, mgr__address *out, size_t out_max, const char **why, bool *unknown)
{
    mgr__io_place place;
    uint16_t port = 0;
    char host[MGR__IO_HOST_BYTES_MAX + 1], port_text[8];
    *unknown = false;
    if (mgr__str_starts(s, "unix://")) { *why = mgr__io_lookup_unix(mgr__str_skip(s, 7), out); return *why ? 0 : 1; }
    if (mgr__str_starts(s, "https://")) {
        *why = "there is no TLS here: use the agent on this host, as in http://127.0.0.1:8500 or unix:///path";
        return 0;
    }
    if (mgr__str_starts(s, "http://")) s = mgr__str_skip(s, 7);
    if (s.len && s.at[s.len - 1] == '/') s.len--;
    if (mgr__io_find(s, '/') != s.len) { *why = "give host:port, http://host:port or unix:///path, without anything behind it"; return 0; }
    *why = mgr__io_place_split(s, &place);
    if (!*why && !mgr__io_port(place.port, &port)) *why = "the port is not a number from 1 to 65535";
    if (*why) return 0;
    mgr__copy_text(host, sizeof host, place.host);
    snprintf(port_text, sizeof port_text, "%u", (unsigned)port);
    bool numeric = mgr__io_numeric(host, port, out);
    size_t count = numeric ? 1 : io->resolve(io->user, host, port_text, out, out_max, why);
    for (size_t i = 0; i < count; i++) mgr__io_address_name(&out[i], &place, host, port, !numeric);
    *unknown = count == 0;
    return count;
}

/* A comma list of agents' addresses ("host:port", "http://host:port",
 * "[v6]:port", "unix:///path"; the port may be left out) -> up to out_max
 * addresses in its order. One line in *error for each failure.
 * MGR_OK, with something in *error: some names have no address, others do.
 * MGR_INVALID: not an address; MGR_UNREACHABLE: no name has an address;
 * MGR_LIMIT: more than out_max. May block in the resolver. */
static mgr_result mgr__io_lookup(const mgr__io *io, const char *list, mgr__address *out, size_t out_max, size_t *count, mgr__buf *error)
{
    mgr__str rest = mgr__str_of(list);
    *count = 0;
    for (bool more = true; more;) {
        size_t end = mgr__io_find(rest, ',');
        mgr__str one = mgr__io_trim(mgr__str_make(rest.at, end));
        const char *why = "";
        bool unknown = false;
        more = end < rest.len;
        rest = mgr__str_skip(rest, more ? end + 1 : end);
        if (*count == out_max) {
            mgr__buf_printf(error, "more than %zu addresses of Consul agents (MGR_ADDRESS_COUNT_MAX)", out_max);
            return MGR_LIMIT;
        }
        size_t found = mgr__io_lookup_one(io, one, out + *count, out_max - *count, &why, &unknown);
        *count += found;
        if (found) continue;
        if (error->len) mgr__buf_text(error, "; ");
        mgr__buf_printf(error, "address \"%.*s\" of a Consul agent: %s", (int)(one.len < 300 ? one.len : 300), one.at, why);
        if (!unknown) return MGR_INVALID;
    }
    return *count ? MGR_OK : MGR_UNREACHABLE;
}

/* ---- signals of the host, only where it asked for it ---- */

/* SIGTERM and SIGINT as a descriptor: blocked in the calling thread, whose former
 * mask goes to *before. A descriptor needs no handler and so no global. */
static int mgr__io_signals_open(sigset_t *before)
{
#ifdef __linux__
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    int fd = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0) return -errno;
    pthread_sigmask(SIG_BLOCK, &mask, before);
    return fd;
#else
    (void)before;
    return -ENOSYS;
#endif
}

static void mgr__io_signals_close(int fd, const sigset_t *before)
{
    close(fd);
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* ---- where we are ---- */

/* "/" where it cannot be told: a directory that was removed, say. */
static void mgr__io_directory(char *to, size_t to_bytes)
{
    if (!getcwd(to, to_bytes)) snprintf(to, to_bytes, "/");
}

/* Names this boot and this PID namespace, in which process ids mean something; "" where
 * that cannot be told. */
static void mgr__io_boot(char *to, size_t to_bytes)
{
    char boot[64] = "", space[64] = "";
    to[0] = 0;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? mgr__io_real_read(NULL, fd, boot, sizeof boot - 1) : -1;
    if (fd >= 0) close(fd);
    ssize_t len = readlink("/proc/self/ns/pid", space, sizeof space - 1);
    if (got < 36 || len <= 0) return;
    boot[36] = 0;
    space[len] = 0;
    snprintf(to, to_bytes, "%s %s", boot, space);
}

/* ---- processes ----
 * From here to the section's end: thin wrappers for guard, keeper and the children that
 * become workers. They run in forked copies of a host that may have had threads: nothing
 * here allocates, prints or takes a lock. A result is >= 0, or -errno. In this order:
 * descriptors, memory, signals and waiting, birth, ends, timers, rights, exec; then what
 * is to be seen of others: /proc, control groups, a life's file; last a socket. */

#if defined(__SANITIZE_ADDRESS__)
#define MGR__SANITIZE_ADDRESS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MGR__SANITIZE_ADDRESS 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define MGR__SANITIZE_THREAD 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MGR__SANITIZE_THREAD 1
#endif
#endif

/* libc headers older than the kernel do not know these; the numbers are the same
 * on every architecture that manager.h has been built for. */
#if defined(__linux__) && !defined(SYS_pidfd_send_signal)
#define SYS_pidfd_send_signal 424
#endif
#if defined(__linux__) && !defined(SYS_pidfd_open)
#define SYS_pidfd_open 434
#endif
#if defined(__linux__) && !defined(SYS_clone3)
#define SYS_clone3 435
#endif
#if defined(__linux__) && !defined(SYS_close_range)
#define SYS_close_range 436
#endif

static int mgr__process_code(long result) { return result < 0 ? -errno : (int)result; }

/* The clock of the real table, which also counts suspension: the lease is a time on it for
 * host, keeper and guard alike. */
static int64_t mgr__process_now_ms(void) { return mgr__io_real_clock(MGR__IO_CLOCK); }

static pid_t mgr__process_self(void) { return getpid(); }
static pid_t mgr__process_parent(void) { return getppid(); }
static uid_t mgr__process_euid(void) { return geteuid(); }
static gid_t mgr__process_egid(void) { return getegid(); }
static void mgr__process_exit(int status) { _exit(status); }

/* ---- processes: descriptors ---- */

static int mgr__process_close(int fd) { return fd < 0 ? 0 : mgr__process_code(close(fd)); }

static int mgr__process_read(int fd, void *to, size_t bytes) { return (int)mgr__io_real_read(NULL, fd, to, bytes); }
static int mgr__process_write(int fd, const void *from, size_t bytes) { return (int)mgr__io_real_write(NULL, fd, from, bytes); }

/* A host may run with 0 to 2 closed; what we keep must not take their place. */
static int mgr__process_fd_high(int fd)
{
    if (fd < 0 || fd > 2) return fd;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, 3), error = errno;
    close(fd);
    return high < 0 ? -error : high;
}

static int mgr__process_high_both(int fds[2])
{
    fds[0] = mgr__process_fd_high(fds[0]);
    fds[1] = mgr__process_fd_high(fds[1]);
    if (fds[0] >= 0 && fds[1] >= 0) return 0;
    int code = fds[0] < 0 ? fds[0] : fds[1];
    mgr__process_close(fds[0]);
    mgr__process_close(fds[1]);
    return code;
}

static int mgr__process_socketpair(int fds[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0) return -errno;
    return mgr__process_high_both(fds);
}

static int mgr__process_pipe(int fds[2])
{
    int code = mgr__io_real_pipe(NULL, fds);
    return code < 0 ? code : mgr__process_high_both(fds);
}

static int mgr__process_inherit(int fd, bool on) { return mgr__process_code(fcntl(fd, F_SETFD, on ? 0 : FD_CLOEXEC)); }
static int mgr__process_dup_to(int fd, int to) { return mgr__process_code(dup2(fd, to)); }

/* Write `text` to a file of the kernel's; the result says whether it took it. */
static int mgr__process_file_put(const char *path, const char *text, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    int put = mgr__process_write(fd, text, bytes);
    close(fd);
    return put;
}

/* The file's beginning, terminated. */
static int mgr__process_file_get(const char *path, char *to, size_t to_bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    int got = mgr__process_read(fd, to, to_bytes - 1);
    close(fd);
    to[got > 0 ? got : 0] = 0;
    return got;
}

/* Decimal digits without stdio; returns the end, where a terminator stands. */
static char *mgr__process_digits(char *to, uint64_t value)
{
    char reversed[20];
    size_t count = 0;
    do reversed[count++] = (char)('0' + value % 10); while ((value /= 10) != 0);
    while (count) *to++ = reversed[--count];
    *to = 0;
    return to;
}

static char *mgr__process_append(char *to, const char *text)
{
    while (*text) *to++ = *text++;
    *to = 0;
    return to;
}

static uint64_t mgr__process_number(const char **at)
{
    uint64_t value = 0;
    while (**at == ' ') ++*at;
    while (**at >= '0' && **at <= '9') value = value * 10 + (uint64_t)(*(*at)++ - '0');
    return value;
}

#ifdef __linux__
/* One entry of getdents64's answer; `name` is NULL at the end. */
static size_t mgr__process_dirent(const char *at, const char **name)
{
    unsigned short bytes;
    memcpy(&bytes, at + 16, sizeof bytes);   /* after inode and offset, 8 bytes each */
    *name = at + 19;
    return bytes;
}

static int mgr__process_getdents(int fd, char *to, size_t bytes) { return mgr__process_code(syscall(SYS_getdents64, fd, to, bytes)); }
#endif

static bool mgr__process_among(int fd, const int *keep, size_t keep_count)
{
    for (size_t i = 0; i < keep_count; i++) if (keep[i] == fd) return true;
    return false;
}

/* Without close_range: by the list of what is open, never by counting up to
 * RLIMIT_NOFILE, which may be a billion. Closing changes the directory under us,
 * so it is read anew until a pass closes nothing. */
static void mgr__process_close_listed(const int *keep, size_t keep_count)
{
#ifdef __linux__
    char entries[2048];
    for (bool again = true; again; ) {
        again = false;
        int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), got;
        if (dir < 0) return;
        while ((got = mgr__process_getdents(dir, entries, sizeof entries)) > 0) {
            const char *name;
            for (int at = 0; at < got; at += (int)mgr__process_dirent(entries + at, &name)) {
                mgr__process_dirent(entries + at, &name);
                if (*name < '0' || *name > '9') continue;
                int fd = (int)mgr__process_number(&name);
                if (fd != dir && !mgr__process_among(fd, keep, keep_count) && close(fd) == 0) again = true;
            }
        }
        close(dir);
    }
#else
    for (int fd = 0; fd < 1024; fd++) if (!mgr__process_among(fd, keep, keep_count)) close(fd);
#endif
}

static int mgr__process_close_range(unsigned from, unsigned to)
{
#ifdef __linux__
    return from > to ? 0 : mgr__process_code(syscall(SYS_close_range, from, to, 0));
#else
    (void)from; (void)to;
    return -ENOSYS;
#endif
}

/* Close everything but `keep`: the gaps between them, in ascending order. Comes
 * before any dup, so that a host at its descriptor limit leaves us room. */
static void mgr__process_close_others(const int *keep, size_t keep_count)
{
    unsigned from = 0;
    for (;;) {
        int next = INT_MAX;
        for (size_t i = 0; i < keep_count; i++) if (keep[i] >= (int)from && keep[i] < next) next = keep[i];
        unsigned to = next == INT_MAX ? UINT_MAX : (unsigned)next - 1u;
        if (next != 0 && mgr__process_close_range(from, to) < 0) { mgr__process_close_listed(keep, keep_count); return; }
        if (next == INT_MAX) return;
        from = (unsigned)next + 1;
    }
}

/* Afterwards keep[i] is descriptor 3 + i, close-on-exec, and 0 to 2 are /dev/null,
 * as is the place of whatever is absent (keep[i] is then -1), lest another
 * descriptor be taken for it. Nothing else is open. */
static int mgr__process_fds_settle(int *keep, size_t keep_count)
{
    mgr__process_close_others(keep, keep_count);
    for (size_t i = 0; i < keep_count; i++) {
        if (keep[i] < 0) continue;
        int high = fcntl(keep[i], F_DUPFD_CLOEXEC, (int)(3 + keep_count));
        if (high < 0 && errno != EBADF) return -errno;
        keep[i] = high;
    }
    for (int fd = 0; fd < (int)(3 + keep_count); fd++) close(fd);
    if (open("/dev/null", O_RDWR) != 0 || dup2(0, 1) < 0 || dup2(0, 2) < 0) return -errno;
    for (size_t i = 0; i < keep_count; i++) {
        int at = (int)(3 + i);
        if (dup2(keep[i] < 0 ? 0 : keep[i], at) < 0 || fcntl(at, F_SETFD, FD_CLOEXEC) < 0) return -errno;
        if (keep[i] < 0) continue;
        close(keep[i]);
        keep[i] = at;
    }
    return 0;
}

/* ---- processes: memory ---- */

/* Whether a file may become so large: one that exceeds RLIMIT_FSIZE costs the program
 * a SIGXFSZ. */
static bool mgr__process_file_may(uint64_t bytes)
{
    struct rlimit most;
    return getrlimit(RLIMIT_FSIZE, &most) < 0 || most.rlim_cur == RLIM_INFINITY || bytes <= (uint64_t)most.rlim_cur;
}

/* Memory that forks share and, through its descriptor, an exec'd keeper as well. */
static void *mgr__process_shared_make(size_t bytes, int *fd)
{
    *fd = -1;
#if defined(__linux__) && defined(SYS_memfd_create)
    if (mgr__process_file_may(bytes)) *fd = mgr__process_fd_high((int)syscall(SYS_memfd_create, "manager", 1u /* MFD_CLOEXEC */));
    if (*fd >= 0 && ftruncate(*fd, (off_t)bytes) < 0) { close(*fd); *fd = -1; }
#endif
    int flags = *fd >= 0 ? MAP_SHARED : MAP_SHARED | MAP_ANONYMOUS;
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, *fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void *mgr__process_shared_map(int fd, size_t bytes)
{
    struct stat st;
    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != bytes) return NULL;
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

/* Zeroed pages that cost nothing until they are touched: malloc is not ours after a fork. */
static void *mgr__process_pages(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void mgr__process_unmap(void *at, size_t bytes) { if (at) munmap(at, bytes); }

/* What a forked copy still needs of its host's memory: the surroundings of the
 * first two addresses (the kernel merges mappings, so that a large block may lie
 * in one with a thread's local storage), the whole mapping of the others. */
enum { MGR__PROCESS_PINS_MAX = 128, MGR__PROCESS_PIN_NEAR = 2, MGR__PROCESS_UNMAP_BYTES_MIN = 1 << 20 };
typedef struct mgr__process_pins { uintptr_t at[MGR__PROCESS_PINS_MAX]; size_t count; bool full; } mgr__process_pins;

static void mgr__process_pin(mgr__process_pins *pins, const void *at)
{
    if (!at) return;
    if (pins->count == MGR__PROCESS_PINS_MAX) pins->full = true;
    else pins->at[pins->count++] = (uintptr_t)at;
}

static int mgr__process_pin_object(struct dl_phdr_info *info, size_t bytes, void *pins)
{
    mgr__process_pins *to = (mgr__process_pins *)pins;
    uintptr_t name = (uintptr_t)info->dlpi_name, local = to->at[MGR__PROCESS_PIN_NEAR - 1];
    (void)bytes;
    if ((name > local ? name - local : local - name) >= MGR__PROCESS_UNMAP_BYTES_MIN) mgr__process_pin(to, info->dlpi_name);
    return 0;
}

/* In the host, before the fork. A lazily bound call reads the dynamic linker's
 * lists, and those of libraries loaded by dlopen lie on the heap beside their
 * names: what holds a name stays mapped. Those of the program's own libraries are
 * near the thread-local storage. */
static void mgr__process_pins_init(mgr__process_pins *pins)
{
    memset(pins, 0, sizeof *pins);
    mgr__process_pin(pins, pins);       /* our stack */
    mgr__process_pin(pins, &errno);     /* and thread-local storage */
    dl_iterate_phdr(mgr__process_pin_object, pins);
}

typedef struct mgr__process_map { uintptr_t from, to; bool droppable, backed; } mgr__process_map;

static uintptr_t mgr__process_hex(const char **at)
{
    uintptr_t value = 0;
    for (;; ++*at) {
        char c = **at;
        if (c >= '0' && c <= '9') value = value * 16 + (uintptr_t)(c - '0');
        else if (c >= 'a' && c <= 'f') value = value * 16 + (uintptr_t)(c - 'a' + 10);
        else return value;
    }
}

/* A line of /proc/self/maps: "from-to rwxp offset dev inode   name". */
static mgr__process_map mgr__process_map_parse(const char *line)
{
    mgr__process_map map;
    const char *at = line;
    map.from = mgr__process_hex(&at);
    at += *at == '-';
    map.to = mgr__process_hex(&at);
    at += *at == ' ';
    bool owned = at[0] && at[1] && at[2] && at[3] == 'p', ours = owned && at[0] == 'r' && at[1] == 'w' && at[2] == '-';
    for (int field = 0; field < 3; field++) { while (*at && *at != ' ') at++; while (*at == ' ') at++; }
    map.backed = owned && *at != '0';   /* an inode: a file's data, behind which its zeroed data may lie */
    while (*at && *at != ' ') at++;
    while (*at == ' ') at++;
    map.droppable = ours && !map.backed && (*at == 0 || strcmp(at, "[heap]") == 0 || strncmp(at, "[anon", 5) == 0);
    return map;
}

static bool mgr__process_pinned(const mgr__process_pins *pins, const mgr__process_map *map)
{
    for (size_t i = MGR__PROCESS_PIN_NEAR; i < pins->count; i++) if (pins->at[i] >= map->from && pins->at[i] < map->to) return true;
    return false;
}

/* Unmap what is left of from..to without the surroundings of the near pins. */
static void mgr__process_unmap_around(const mgr__process_pins *pins, uintptr_t from, uintptr_t to)
{
    const uintptr_t near_bytes = MGR__PROCESS_UNMAP_BYTES_MIN;
    while (from < to) {
        uintptr_t end = to, next = to;
        for (size_t i = 0; i < MGR__PROCESS_PIN_NEAR; i++) {
            uintptr_t page = pins->at[i] & ~(near_bytes - 1), low = page - near_bytes, high = page + 2 * near_bytes;
            if (low < end && high > from) { end = low > from ? low : from; next = high; }
        }
#ifdef __linux__
        if (end > from) syscall(SYS_munmap, from, end - from);
#endif
        from = next;
    }
}

/* Give the host's large private memory back: a forked copy of it would cost its
 * whole size once the host writes, and draw the OOM killer. Only anonymous
 * mappings go, none that follows a file's (they are a program's or library's
 * zeroed data), and nothing small: little to gain, and libc keeps things there. */
static void mgr__process_unmap_host(const mgr__process_pins *pins)
{
#if defined(__linux__) && !defined(MGR__SANITIZE_ADDRESS) && !defined(MGR__SANITIZE_THREAD)
    char line[512], chunk[1024];
    size_t len = 0;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC), got;
    mgr__process_map map, before;
    memset(&before, 0, sizeof before);
    if (fd < 0 || pins->full) { mgr__process_close(fd); return; }
    while ((got = mgr__process_read(fd, chunk, sizeof chunk)) > 0) {
        for (int i = 0; i < got; i++) {
            if (chunk[i] != '\n') { if (len < sizeof line - 1) line[len++] = chunk[i]; continue; }
            line[len] = 0;
            len = 0;
            map = mgr__process_map_parse(line);
            bool data = before.backed && before.to == map.from;
            if (map.droppable && !data && map.to - map.from >= MGR__PROCESS_UNMAP_BYTES_MIN && !mgr__process_pinned(pins, &map))
                mgr__process_unmap_around(pins, map.from, map.to);
            before = map;
        }
    }
    close(fd);
#else
    (void)pins;
#endif
}

/* ---- processes: signals and waiting ---- */

static void mgr__process_on_child(int signo) { (void)signo; }   /* it only ends a ppoll */

static void mgr__process_handle(int signo, void (*handler)(int))
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    sigaction(signo, &action, NULL);
}

static void mgr__process_signals_block(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, before);
}

static void mgr__process_signals_restore(const sigset_t *before) { sigprocmask(SIG_SETMASK, before, NULL); }

static void mgr__process_signals_default(void)
{
    for (int signo = 1; signo < 65; signo++) mgr__process_handle(signo, SIG_DFL);
}

/* In a worker, last thing before exec. */
static void mgr__process_signals_open(void)
{
    sigset_t none;
    sigemptyset(&none);
    mgr__process_signals_default();
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* First thing in guard and keeper, entered with all signals blocked: nothing of
 * the host's handlers, stack or terminal remains. Every signal stays blocked for
 * good, SIGCHLD gets through while mgr__process_poll waits. Those that a terminal
 * or a service manager sends to everybody are ignored: both end after their host. */
static void mgr__process_detach(void)
{
    static const int ignored[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGPIPE, SIGUSR1, SIGUSR2, SIGALRM };
    stack_t none;
    memset(&none, 0, sizeof none);
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, NULL);
    mgr__process_signals_default();
    for (size_t i = 0; i < MGR__COUNT(ignored); i++) mgr__process_handle(ignored[i], SIG_IGN);
    mgr__process_handle(SIGCHLD, mgr__process_on_child);
    setsid();
    if (chdir("/") < 0) return;   /* no root directory: then it is nobody's mount that we hold */
}

/* Wait for descriptors or a child's end, at most timeout_ms. */
static int mgr__process_poll(struct pollfd *fds, size_t fd_count, int timeout_ms)
{
    sigset_t mask;
    struct timespec ts;
    ts.tv_sec = timeout_ms / 1000;
    ts.tv_nsec = (long)(timeout_ms % 1000) * 1000000;
    sigfillset(&mask);
    sigdelset(&mask, SIGCHLD);
    return mgr__process_code(ppoll(fds, (nfds_t)fd_count, timeout_ms < 0 ? NULL : &ts, &mask));
}

/* The same in the host, whose signal mask is its own. Not a wait for deadlines. */
static int mgr__process_poll_one(int fd, short events, int timeout_ms)
{
    struct pollfd one;
    one.fd = fd;
    one.events = events;
    one.revents = 0;
    int got = poll(&one, 1, timeout_ms);
    return got < 0 ? -errno : got ? one.revents : 0;
}

/* In the host as well: whatever its mask lets through ends it early. */
static void mgr__process_sleep(int ms) { poll(NULL, 0, ms); }

/* ---- processes: birth ---- */

/* A child that makes no SIGCHLD and that no wait without __WALL sees, or an
 * ordinary one. The raw call: libc's fork would run the host's atfork handlers
 * and need its locks. With no flag and no signal every argument is 0, so that
 * their order, which differs between architectures, does not matter. */
static pid_t mgr__process_fork(bool silent)
{
#if defined(__linux__) && defined(SYS_clone) && !defined(MGR__SANITIZE_THREAD) && !defined(__sparc__)
    unsigned long flags = silent ? 0 : SIGCHLD;
#if defined(__s390__) || defined(__CRIS__)
    return (pid_t)mgr__process_code(syscall(SYS_clone, 0ul, flags, 0ul, 0ul, 0ul));
#else
    return (pid_t)mgr__process_code(syscall(SYS_clone, flags, 0ul, 0ul, 0ul, 0ul));
#endif
#else
    (void)silent;
    return (pid_t)mgr__process_code(fork());
#endif
}

/* An ordinary one, born in the v2 group whose directory this is. */
static pid_t mgr__process_fork_into(int cgroup_fd)
{
#if defined(__linux__) && defined(SYS_clone3) && !defined(MGR__SANITIZE_THREAD) && !defined(__sparc__)
    uint64_t args[11];      /* struct clone_args, as of Linux 5.7 */
    memset(args, 0, sizeof args);
    args[0] = UINT64_C(0x200000000);    /* CLONE_INTO_CGROUP */
    args[4] = SIGCHLD;
    args[10] = (uint64_t)cgroup_fd;
    return (pid_t)mgr__process_code(syscall(SYS_clone3, args, sizeof args));
#else
    (void)cgroup_fd;
    return -ENOSYS;
#endif
}

/* The first process of a PID namespace with mounts of its own; `user`: in a user
 * namespace as well, which gives an unprivileged one the right to that. -errno where
 * it is refused. */
static pid_t mgr__process_fork_space(bool user)
{
#if defined(__linux__) && defined(SYS_clone) && !defined(MGR__SANITIZE_THREAD) && !defined(__sparc__) && !defined(__s390__) \
    && !defined(__CRIS__)
    unsigned long flags = (unsigned long)SIGCHLD | 0x20000000ul /* CLONE_NEWPID */ | 0x00020000ul /* CLONE_NEWNS */;
    if (user) flags |= 0x10000000ul /* CLONE_NEWUSER */;
    return (pid_t)mgr__process_code(syscall(SYS_clone, flags, 0ul, 0ul, 0ul, 0ul));
#else
    (void)user;
    return -ENOSYS;
#endif
}

static int mgr__process_map_own(const char *path, uint32_t id)
{
    char line[48], *end = mgr__process_append(mgr__process_digits(line, id), " ");
    end = mgr__process_append(mgr__process_digits(end, id), " 1");
    return mgr__process_file_put(path, line, (size_t)(end - line));
}

/* In a new user namespace: own ids stay what they are, others there are none. */
static int mgr__process_map_ids(uint32_t uid, uint32_t gid)
{
    int code = mgr__process_file_put("/proc/self/setgroups", "deny", 4);
    if (code < 0 || (code = mgr__process_map_own("/proc/self/uid_map", uid)) < 0) return code;
    return mgr__process_map_own("/proc/self/gid_map", gid);
}

/* A /proc of this namespace, seen by nobody else; what is mounted outside later still comes through. */
static int mgr__process_mount_proc(void)
{
#ifdef __linux__
    if (mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) < 0) return -errno;
    return mgr__process_code(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
#else
    return -ENOSYS;
#endif
}

static int mgr__process_session(void) { return mgr__process_code(setsid()); }

static int mgr__process_name(const char *name)
{
#ifdef __linux__
    return mgr__process_code(prctl(PR_SET_NAME, name, 0ul, 0ul, 0ul));
#else
    (void)name;
    return -ENOSYS;
#endif
}

/* From now on orphans among our descendants become our children. */
static int mgr__process_subreaper(void)
{
#ifdef __linux__
    return mgr__process_code(prctl(PR_SET_CHILD_SUBREAPER, 1ul, 0ul, 0ul, 0ul));
#else
    return -ENOSYS;
#endif
}

/* The signal we get when our parent dies. */
static int mgr__process_death_signal(int signo)
{
#ifdef __linux__
    return mgr__process_code(prctl(PR_SET_PDEATHSIG, (unsigned long)signo, 0ul, 0ul, 0ul));
#else
    (void)signo;
    return -ENOSYS;
#endif
}

/* ---- processes: ends ---- */

typedef struct mgr__process_end { pid_t pid; int status; } mgr__process_end;   /* exit status, or -signal */

/* 1: *out is one that ended; with peek it stays a zombie, which pins its number.
 * 0: there are children, none has ended. -ECHILD: there is no child at all, hence
 * in a subreaper no descendant. pid 0 means any child: never in the host, whose
 * children are its own. */
static int mgr__process_wait(pid_t pid, bool peek, mgr__process_end *out)
{
    siginfo_t info;
    int flags = WEXITED | WNOHANG | (peek ? WNOWAIT : 0), got;
#ifdef __WALL
    flags |= __WALL;
#endif
    memset(&info, 0, sizeof info);
    do got = waitid(pid ? P_PID : P_ALL, (id_t)pid, &info, flags); while (got < 0 && errno == EINTR);
    if (got < 0) return -errno;
    if (info.si_pid == 0) return 0;
    out->pid = info.si_pid;
    out->status = info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
    return 1;
}

/* By number: only for our own children that we have not reaped. */
static int mgr__process_kill(pid_t child, int signo) { return mgr__process_code(kill(child, signo)); }
static int mgr__process_kill_group(pid_t leader, int signo) { return mgr__process_code(kill(-leader, signo)); }

static int mgr__process_pidfd(pid_t pid)
{
#ifdef __linux__
    return mgr__process_fd_high(mgr__process_code(syscall(SYS_pidfd_open, pid, 0)));
#else
    (void)pid;
    return -ENOSYS;
#endif
}

static int mgr__process_pidfd_kill(int pidfd, int signo)
{
#ifdef __linux__
    return mgr__process_code(syscall(SYS_pidfd_send_signal, pidfd, signo, NULL, 0));
#else
    (void)pidfd; (void)signo;
    return -ENOSYS;
#endif
}

/* ---- processes: timers, on the clock that counts suspension; a negative one where there are none ---- */

static int mgr__process_timer_open(void) { return mgr__process_fd_high(mgr__io_real_timer(NULL)); }
static void mgr__process_timer_set(int fd, int64_t at_ms) { if (fd >= 0) mgr__io_real_timer_set(NULL, fd, at_ms); }

/* ---- processes: rights, limits and priority ---- */

typedef struct mgr__process_rank { int nice, oom_bytes; char oom[16]; struct rlimit files; } mgr__process_rank;

/* The keeper must run when nothing else does; what is refused is done without.
 * `before` is what its workers get back. */
static void mgr__process_rank_raise(mgr__process_rank *before)
{
    before->nice = getpriority(PRIO_PROCESS, 0);
    before->oom_bytes = mgr__process_file_get("/proc/self/oom_score_adj", before->oom, sizeof before->oom);
    setpriority(PRIO_PROCESS, 0, before->nice > -5 ? -5 : before->nice);
    mgr__process_file_put("/proc/self/oom_score_adj", "-900", 4);
    getrlimit(RLIMIT_NOFILE, &before->files);
    struct rlimit more = before->files;
    more.rlim_cur = more.rlim_max;
    setrlimit(RLIMIT_NOFILE, &more);
}

static void mgr__process_rank_restore(const mgr__process_rank *before)
{
    setpriority(PRIO_PROCESS, 0, before->nice);
    if (before->oom_bytes > 0) mgr__process_file_put("/proc/self/oom_score_adj", before->oom, (size_t)before->oom_bytes);
    setrlimit(RLIMIT_NOFILE, &before->files);
}

/* libc's setuid and its kin signal every thread that libc believes to exist; in a
 * copy of a threaded host those are not there. */
static int mgr__process_become(uid_t uid, gid_t gid)
{
#if defined(__linux__)
#if defined(SYS_setresuid32)
    long groups = syscall(SYS_setgroups32, 1, &gid);
    if (groups < 0 || syscall(SYS_setresgid32, gid, gid, gid) < 0 || syscall(SYS_setresuid32, uid, uid, uid) < 0) return -errno;
#else
    long groups = syscall(SYS_setgroups, 1, &gid);
    if (groups < 0 || syscall(SYS_setresgid, gid, gid, gid) < 0 || syscall(SYS_setresuid, uid, uid, uid) < 0) return -errno;
#endif
    return 0;
#else
    return setgroups(1, &gid) < 0 || setgid(gid) < 0 || setuid(uid) < 0 ? -errno : 0;
#endif
}

static int mgr__process_chdir(const char *path) { return mgr__process_code(chdir(path)); }
static mode_t mgr__process_umask(mode_t mask) { return umask(mask); }

/* ---- processes: exec ---- */

/* The PATH among env's variables, or the one that sh falls back on. */
static const char *mgr__process_path_of(char *const *env)
{
    for (; *env; env++) if (strncmp(*env, "PATH=", 5) == 0) return *env + 5;
    return "/usr/local/bin:/usr/bin:/bin";
}

/* Returns only when it failed: -errno, as execvp would set it. libc's own would
 * search with the keeper's environment, which may be unmapped. */
static int mgr__process_exec(char *const *argv, char *const *env)
{
    char path[PATH_MAX];
    size_t name_bytes = strlen(argv[0]) + 1;
    bool denied = false;
    if (name_bytes == 1) return -ENOENT;
    if (strchr(argv[0], '/')) { execve(argv[0], argv, env); return -errno; }
    for (const char *dir = mgr__process_path_of(env); ; ) {
        const char *end = strchr(dir, ':');
        size_t bytes = end ? (size_t)(end - dir) : strlen(dir);
        if (bytes && bytes + 1 + name_bytes <= sizeof path) {
            memcpy(path, dir, bytes);
            path[bytes] = '/';
            memcpy(path + bytes + 1, argv[0], name_bytes);
            execve(path, argv, env);
            if (errno == EACCES) denied = true;
            else if (errno != ENOENT && errno != ENOTDIR) return -errno;
        }
        if (!end) return denied ? -EACCES : -ENOENT;
        dir = end + 1;
    }
}

/* Our own program anew, or the one at argv[0] when that is a path. Returns only on failure. */
static int mgr__process_exec_self(char *const *argv, char *const *env)
{
    execve(strchr(argv[0], '/') ? argv[0] : "/proc/self/exe", argv, env);
    return -errno;
}

/* ---- processes: others, as /proc shows them ---- */

typedef struct mgr__process {
    pid_t    pid, parent, group;
    uint64_t start;             /* ticks since boot */
    char     state;             /* 'Z': dead, not reaped */
    uint32_t threads;
    bool     marked;
} mgr__process;

/* 0. -ESRCH: there is no such process (any more), or /proc hides it (hidepid).
 * Else -errno: it could not be looked at. */
static int mgr__process_look(pid_t pid, mgr__process *out)
{
    char path[48], text[1024];
    mgr__process_append(mgr__process_digits(mgr__process_append(path, "/proc/"), (uint64_t)pid), "/stat");
    int got = mgr__process_file_get(path, text, sizeof text);
    if (got < 0 && got != -ENOENT && got != -EACCES && got != -EPERM) return got;
    const char *at = got <= 0 ? NULL : strrchr(text, ')');    /* the name before it may hold anything */
    if (!at || at[1] != ' ') return -ESRCH;
    out->pid = pid;
    out->marked = false;
    out->state = at[2];
    at += 3;
    out->parent = (pid_t)mgr__process_number(&at);
    out->group = (pid_t)mgr__process_number(&at);
    for (int field = 6; field <= 22; field++) {     /* the last is starttime */
        while (*at == ' ' || *at == '-') at++;
        out->start = mgr__process_number(&at);
        if (field == 20) out->threads = (uint32_t)out->start;
    }
    return 0;
}

static bool mgr__process_stat(pid_t pid, mgr__process *out) { return mgr__process_look(pid, out) == 0; }

typedef struct mgr__process_list { mgr__process *at; size_t count, max; bool whole; } mgr__process_list;

/* Room for `max`, of pages that cost nothing until they are used. False: there is no memory. */
static bool mgr__process_list_make(mgr__process_list *list, size_t max)
{
    list->at = (mgr__process *)mgr__process_pages(sizeof *list->at * max);
    list->count = 0;
    list->max = list->at ? max : 0;
    list->whole = false;
    return list->at != NULL;
}

static void mgr__process_list_free(mgr__process_list *list) { mgr__process_unmap(list->at, sizeof *list->at * list->max); }

/* Another one, if it is of this parent (0: any). What cannot be looked at for want of
 * descriptors, say, or has no place any more, is missing: the list is not whole. */
static void mgr__process_list_add(mgr__process_list *list, pid_t pid, pid_t parent)
{
    mgr__process *to = &list->at[list->count];
    int code = list->count < list->max ? mgr__process_look(pid, to) : -EOVERFLOW;
    if (code < 0 && code != -ESRCH) list->whole = false;
    if (code == 0 && (!parent || to->parent == parent)) list->count++;
}

/* Every process that /proc shows, with this parent (0: any). */
static void mgr__process_list_all(mgr__process_list *list, pid_t parent)
{
    list->count = 0;
    list->whole = false;
#ifdef __linux__
    char entries[4096];
    int dir = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC), got = -1;
    list->whole = dir >= 0;
    while (dir >= 0 && (got = mgr__process_getdents(dir, entries, sizeof entries)) > 0) {
        const char *name;
        for (int at = 0; at < got; ) {
            at += (int)mgr__process_dirent(entries + at, &name);
            if (*name >= '0' && *name <= '9') mgr__process_list_add(list, (pid_t)mgr__process_number(&name), parent);
        }
    }
    if (got < 0) list->whole = false;
    mgr__process_close(dir);
#else
    (void)parent;
#endif
}

/* A child that is known to be there; one that cannot be looked at is as young as can be,
 * so that it may be of any tree. */
static void mgr__process_list_add_child(mgr__process_list *list, pid_t pid)
{
    size_t before = list->count;
    mgr__process_list_add(list, pid, 0);
    if (list->count != before || list->count == list->max) return;
    mgr__process *to = &list->at[list->count++];
    memset(to, 0, sizeof *to);
    to->pid = pid;
    to->parent = mgr__process_self();
    to->group = getpgid(pid);
    to->start = UINT64_MAX;
    to->state = '?';
}

/* Whether /proc is mounted so that it hides what others run (hidepid): the first process always is. */
static bool mgr__process_hidden(void)
{
    mgr__process first;
    return !mgr__process_stat(1, &first);
}

/* Every child of this process, which must be of one thread and reap them itself. By the
 * kernel's list of them, which hidepid does not shorten, and in which nothing is passed
 * over then, for only reaping takes from it. A kernel without that list
 * (CONFIG_PROC_CHILDREN): by what /proc shows. */
static void mgr__process_list_children(mgr__process_list *list)
{
    char path[64], text[512];
    mgr__process_append(mgr__process_digits(mgr__process_append(path, "/proc/self/task/"), (uint64_t)mgr__process_self()), "/children");
    int fd = open(path, O_RDONLY | O_CLOEXEC), got = -1;
    pid_t pid = 0;
    if (fd < 0) {
        mgr__process_list_all(list, mgr__process_self());
        if (mgr__process_hidden()) list->whole = false;
        return;
    }
    list->count = 0;
    list->whole = true;
    while ((got = mgr__process_read(fd, text, sizeof text)) > 0) {
        for (int i = 0; i < got; i++) {
            if (text[i] != ' ') { pid = pid * 10 + (text[i] - '0'); continue; }
            mgr__process_list_add_child(list, pid);
            pid = 0;
        }
    }
    if (got < 0) list->whole = false;
    mgr__process_close(fd);
}

/* The number here of a child of `parent` that calls itself `inner` in the innermost of
 * its PID namespaces; 0: it is not to be seen (any more). */
static pid_t mgr__process_outer(pid_t parent, pid_t inner, mgr__process_list *scratch)
{
    char path[48], text[4096];
    mgr__process_list_all(scratch, parent);
    for (size_t i = scratch->count; i-- > 0; ) {
        mgr__process_append(mgr__process_digits(mgr__process_append(path, "/proc/"), (uint64_t)scratch->at[i].pid), "/status");
        const char *at = mgr__process_file_get(path, text, sizeof text) > 0 ? strstr(text, "\nNSpid:") : NULL;
        uint64_t last = 0;
        for (at = at ? at + 7 : ""; *at == '\t'; ) { at++; last = mgr__process_number(&at); }
        if (last == (uint64_t)inner) return scratch->at[i].pid;
    }
    return 0;
}

/* Whether `pid` is marked in a list in ascending order, as /proc gives it. */
static bool mgr__process_marked(const mgr__process_list *list, pid_t pid)
{
    size_t low = 0, high = list->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (list->at[mid].pid == pid) return list->at[mid].marked;
        if (list->at[mid].pid < pid) low = mid + 1; else high = mid;
    }
    return false;
}

/* Mark the descendants of `root` in a list of all processes. */
static void mgr__process_mark(const mgr__process_list *list, pid_t root)
{
    for (bool again = true; again; ) {
        again = false;
        for (size_t i = 0; i < list->count; i++) {
            mgr__process *p = &list->at[i];
            if (p->marked || (p->parent != root && !mgr__process_marked(list, p->parent))) continue;
            p->marked = again = true;
        }
    }
}

/* Whoever of a PID namespace and boot a number meant is gone for good. What cannot be
 * looked at counts as alive, for /proc may be hidden; so does one whose start is not
 * known (0) while its number stands for anybody. A zombie does nothing any more, unless
 * it is a leader whose other threads go on. */
static bool mgr__process_ended(pid_t pid, uint64_t start)
{
    mgr__process now;
    if (pid <= 0) return false;
    if (kill(pid, 0) < 0 && errno == ESRCH) return true;
    if (!mgr__process_stat(pid, &now)) return false;
    return (start && now.start != start) || (now.state == 'Z' && now.threads <= 1);
}

/* One that may be no child of ours. Its number can pass to a stranger; a pidfd cannot,
 * nor number and start together. */
typedef struct mgr__process_ref { int fd; pid_t pid; uint64_t start; } mgr__process_ref;     /* -1: no pidfd; 0: not known */

static mgr__process_ref mgr__process_ref_make(int pidfd, pid_t pid, uint64_t start)
{
    mgr__process_ref ref;
    ref.fd = pidfd;
    ref.pid = pid;
    ref.start = start;
    return ref;
}

static mgr__process_ref mgr__process_ref_open(pid_t pid)
{
    mgr__process now;
    int pidfd = mgr__process_pidfd(pid);
    return mgr__process_ref_make(pidfd, pid, mgr__process_stat(pid, &now) ? now.start : 0);
}

static bool mgr__process_ref_ended(const mgr__process_ref *ref)
{
    return ref->fd >= 0 ? mgr__process_poll_one(ref->fd, POLLIN, 0) > 0 : mgr__process_ended(ref->pid, ref->start);
}

/* Without a pidfd (Linux before 5.3) by its number, which does not go to another in the
 * moment after it was looked at. */
static void mgr__process_ref_signal(const mgr__process_ref *ref, int signo)
{
    mgr__process now;
    if (ref->fd >= 0) mgr__process_pidfd_kill(ref->fd, signo);
    else if (ref->start && mgr__process_stat(ref->pid, &now) && now.start == ref->start) kill(ref->pid, signo);
}

/* SIGKILL for one whose number could have passed to a stranger since it was listed. */
static void mgr__process_kill_listed(const mgr__process *listed)
{
    mgr__process_ref ref = mgr__process_ref_open(listed->pid);
    if (ref.start == listed->start) mgr__process_ref_signal(&ref, SIGKILL);
    mgr__process_close(ref.fd);
}

/* SIGKILL for an unreaped child, and at one blow for the group it leads: one that
 * forks faster than we list cannot slip away while it stays in its group. */
static void mgr__process_kill_child(const mgr__process *child)
{
    if (child->group == child->pid) mgr__process_kill_group(child->pid, SIGKILL);
    mgr__process_kill(child->pid, SIGKILL);
}

/* SIGKILL for every descendant of `root` that can be found; not for root itself. */
static void mgr__process_kill_below(pid_t root, mgr__process_list *scratch)
{
    mgr__process_list_all(scratch, 0);
    mgr__process_mark(scratch, root);
    for (size_t i = 0; i < scratch->count; i++)
        if (scratch->at[i].marked && scratch->at[i].state != 'Z') mgr__process_kill_listed(&scratch->at[i]);
}

/* SIGKILL for every child of ours, and for what else can be found of our descendants:
 * what is not comes to us next. */
static void mgr__process_kill_descendants(mgr__process_list *scratch)
{
    mgr__process_list_children(scratch);
    for (size_t i = 0; i < scratch->count; i++) mgr__process_kill_child(&scratch->at[i]);
    mgr__process_kill_below(mgr__process_self(), scratch);
}

/* The value of `name` ("X=", with the sign) in the environment that a process was
 * started with. False: it has none, or we may not look. */
static bool mgr__process_environ(pid_t pid, const char *name, char *scratch, size_t scratch_bytes, char *out, size_t out_bytes)
{
    char path[48];
    size_t len = 0, name_len = strlen(name);
    int got;
    mgr__process_append(mgr__process_digits(mgr__process_append(path, "/proc/"), (uint64_t)pid), "/environ");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    while (len < scratch_bytes - 1 && (got = mgr__process_read(fd, scratch + len, scratch_bytes - 1 - len)) > 0) len += (size_t)got;
    close(fd);
    scratch[len] = 0;
    for (size_t at = 0; at < len; at += strlen(scratch + at) + 1) {
        if (strncmp(scratch + at, name, name_len) != 0) continue;
        mgr__copy_text(out, out_bytes, mgr__str_of(scratch + at + name_len));
        return true;
    }
    return false;
}

/* ---- processes: control groups (v2) ----
 * A group is named by its directory. Nobody leaves one by forking, by a new
 * session, or by forgetting its environment: only by being moved, which takes the
 * right to write to both. */

enum {
    MGR__PROCESS_CGROUP_BYTES   = 512,
    MGR__PROCESS_CGROUP_DEPTH   = 16,
    MGR__PROCESS_EMPTY_TRIES    = 10,   /* 2 ms apart: a group that was killed is empty within milliseconds, as a rule */
    MGR__PROCESS_LEFTOVER_TRIES = 50,   /* the same for one that has no manager any more */
    MGR__PROCESS_MAKE_TRIES     = 5     /* a group, or a life's file, that was taken for a left-over before it was locked */
};

typedef struct mgr__process_lines { int fd, at, len; char chunk[1024]; } mgr__process_lines;

/* The next line, cut off after to_bytes - 1. False at the end. */
static bool mgr__process_line(mgr__process_lines *lines, char *to, size_t to_bytes)
{
    size_t len = 0;
    for (;;) {
        if (lines->at == lines->len) {
            lines->at = 0;
            lines->len = lines->fd < 0 ? 0 : mgr__process_read(lines->fd, lines->chunk, sizeof lines->chunk);
            if (lines->len <= 0) { lines->len = 0; to[len] = 0; return len != 0; }
        }
        char c = lines->chunk[lines->at++];
        if (c == '\n') { to[len] = 0; return true; }
        if (len < to_bytes - 1) to[len++] = c;
    }
}

/* A field of mountinfo, where blanks stand as \040 and their like; returns the next one. */
static const char *mgr__process_mount_field(const char *at, char *to, size_t to_bytes)
{
    size_t len = 0;
    while (*at && *at != ' ') {
        char c = *at++;
        if (c == '\\' && at[0] >= '0' && at[0] <= '3' && at[1] && at[2]) {
            c = (char)((at[0] - '0') * 64 + (at[1] - '0') * 8 + (at[2] - '0'));
            at += 3;
        }
        if (len < to_bytes - 1) to[len++] = c;
    }
    to[len] = 0;
    return at + (*at == ' ');
}

/* A line "id parent device root point options ... - type source ...", for the
 * directory of the group `own` in that mount. False: it is of another type, or
 * does not reach so far. */
static bool mgr__process_cgroup_in_mount(const char *line, const char *own, char *to, size_t to_bytes)
{
    char root[MGR__PROCESS_CGROUP_BYTES], point[MGR__PROCESS_CGROUP_BYTES];
    const char *at = line;
    if (!strstr(line, " - cgroup2 ")) return false;
    for (int field = 0; field < 3; field++) { while (*at && *at != ' ') at++; at += *at == ' '; }
    at = mgr__process_mount_field(at, root, sizeof root);
    mgr__process_mount_field(at, point, sizeof point);
    size_t root_len = strcmp(root, "/") == 0 ? 0 : strlen(root);
    if (strncmp(own, root, root_len) != 0 || (own[root_len] && own[root_len] != '/')) return false;
    own += root_len;
    if (strcmp(own, "/") == 0) own = "";
    if (strlen(point) + strlen(own) >= to_bytes) return false;
    mgr__process_append(mgr__process_append(to, point), own);
    return true;
}

/* The directory of the group that this process is in. -ENOENT: no v2 hierarchy
 * is mounted where we could reach our place in it. */
static int mgr__process_cgroup_find(char *to, size_t to_bytes)
{
    char line[2048], own[MGR__PROCESS_CGROUP_BYTES] = "";
    mgr__process_lines lines;
    memset(&lines, 0, sizeof lines);
    lines.fd = open("/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
    while (!own[0] && mgr__process_line(&lines, line, sizeof line))
        if (strncmp(line, "0::/", 4) == 0 && !strstr(line, "/..")) mgr__copy_text(own, sizeof own, mgr__str_of(line + 3));
    mgr__process_close(lines.fd);
    if (!own[0]) return -ENOENT;
    memset(&lines, 0, sizeof lines);
    lines.fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    bool found = false;
    while (!found && mgr__process_line(&lines, line, sizeof line)) found = mgr__process_cgroup_in_mount(line, own, to, to_bytes);
    mgr__process_close(lines.fd);
    return found ? 0 : -ENOENT;
}

static int mgr__process_cgroup_make(const char *group) { return mgr__process_code(mkdir(group, 0755)); }

/* Its directory, to be born into or to be locked. */
static int mgr__process_cgroup_open(const char *group)
{
    int fd = open(group, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : mgr__process_fd_high(fd);
}

static bool mgr__process_cgroup_there(const char *group) { return access(group, F_OK) == 0; }
static int mgr__process_lock(int fd) { return mgr__process_code(flock(fd, LOCK_EX | LOCK_NB)); }

static const char *mgr__process_cgroup_file(char *to, const char *group, const char *file)
{
    mgr__process_append(mgr__process_append(to, group), file);
    return to;
}

/* Move this process there. */
static int mgr__process_cgroup_join(const char *group)
{
    char path[MGR__PROCESS_CGROUP_BYTES + 32];
    return mgr__process_file_put(mgr__process_cgroup_file(path, group, "/cgroup.procs"), "0", 1);
}

/* 1: a live process is in the group or below it, 0: none is (a zombie does not
 * count, nor does a group that was removed). -errno: it cannot be known, for one
 * when the whole hierarchy is out of sight. */
static int mgr__process_cgroup_populated(const char *group)
{
    char path[MGR__PROCESS_CGROUP_BYTES + 32], text[256];
    int got = mgr__process_file_get(mgr__process_cgroup_file(path, group, "/cgroup.events"), text, sizeof text);
    if (got == -ENODEV) got = -ENOENT;      /* removed between open and read */
    if (got == -ENOENT) {
        mgr__process_append(path, group);
        char *end = strrchr(path, '/');
        if (!end) return got;
        mgr__process_append(end, "/cgroup.procs");
        return access(path, F_OK) == 0 ? 0 : got;
    }
    if (got < 0) return got;
    const char *at = strstr(text, "populated ");
    return !at ? -EPROTO : at[10] != '0';
}

/* Where in the v2 hierarchy a process is; NULL: not to be seen. In scratch. */
static const char *mgr__process_cgroup_of(pid_t pid, char *scratch, size_t scratch_bytes)
{
    char path[48];
    mgr__process_append(mgr__process_digits(mgr__process_append(path, "/proc/"), (uint64_t)pid), "/cgroup");
    if (mgr__process_file_get(path, scratch, scratch_bytes) <= 0) return NULL;
    for (char *at = scratch; at; at = strchr(at, '\n')) {
        at += *at == '\n';
        if (strncmp(at, "0::", 3) != 0) continue;
        char *end = strchr(at, '\n');
        if (end) *end = 0;
        return at + 3;
    }
    return NULL;
}

/* SIGKILL for what is listed in this one group. A number could have passed to a
 * stranger since it was read: the pidfd comes first, then a second look. */
static void mgr__process_cgroup_kill_here(const char *group)
{
    char path[MGR__PROCESS_CGROUP_BYTES + 32], line[32], text[2048];
    const char *name = strrchr(group, '/'), *place;
    mgr__process_lines lines;
    memset(&lines, 0, sizeof lines);
    lines.fd = open(mgr__process_cgroup_file(path, group, "/cgroup.procs"), O_RDONLY | O_CLOEXEC);
    while (mgr__process_line(&lines, line, sizeof line)) {
        const char *at = line;
        pid_t pid = (pid_t)mgr__process_number(&at);
        if (pid <= 0) continue;             /* 0: of a namespace that we do not see */
        int pidfd = mgr__process_pidfd(pid);
        bool same = (place = mgr__process_cgroup_of(pid, text, sizeof text)) != NULL && name && strstr(place, name) != NULL;
        if (same && pidfd >= 0) mgr__process_pidfd_kill(pidfd, SIGKILL);
        else if (same) kill(pid, SIGKILL);
        mgr__process_close(pidfd);
    }
    mgr__process_close(lines.fd);
}

enum mgr__process_cgroup_act { MGR__PROCESS_CGROUP_KILL, MGR__PROCESS_CGROUP_REMOVE };

/* Through the groups below this one, deepest first: a worker may have made some,
 * a nested manager does. `group` has room for MGR__PROCESS_CGROUP_BYTES. */
static void mgr__process_cgroup_walk(char *group, enum mgr__process_cgroup_act act, int depth)
{
#ifdef __linux__
    char entries[1024];
    size_t len = strlen(group);
    int dir = open(group, O_RDONLY | O_DIRECTORY | O_CLOEXEC), got;
    while (dir >= 0 && depth && (got = mgr__process_getdents(dir, entries, sizeof entries)) > 0) {
        const char *name;
        for (int at = 0; at < got; ) {
            const char *entry = entries + at;
            at += (int)mgr__process_dirent(entry, &name);
            if (entry[18] != DT_DIR || *name == '.' || len + strlen(name) + 2 > MGR__PROCESS_CGROUP_BYTES) continue;
            mgr__process_append(mgr__process_append(group + len, "/"), name);
            mgr__process_cgroup_walk(group, act, depth - 1);
            group[len] = 0;
        }
    }
    mgr__process_close(dir);
    if (act == MGR__PROCESS_CGROUP_REMOVE) rmdir(group);
    else mgr__process_cgroup_kill_here(group);
#else
    (void)group; (void)act; (void)depth;
#endif
}

/* One by one, for kernels without cgroup.kill: to be repeated until nothing is left. */
static void mgr__process_cgroup_kill_each(const char *group)
{
    char path[MGR__PROCESS_CGROUP_BYTES];
    mgr__copy_text(path, sizeof path, mgr__str_of(group));
    mgr__process_cgroup_walk(path, MGR__PROCESS_CGROUP_KILL, MGR__PROCESS_CGROUP_DEPTH);
}

/* SIGKILL for everything in the group and below it; at one blow since Linux 5.14. */
static void mgr__process_cgroup_kill(const char *group)
{
    char path[MGR__PROCESS_CGROUP_BYTES + 32];
    if (mgr__process_file_put(mgr__process_cgroup_file(path, group, "/cgroup.kill"), "1", 1) < 0) mgr__process_cgroup_kill_each(group);
}

/* With the groups below it. One that still has a process stays. */
static void mgr__process_cgroup_remove(const char *group)
{
    char path[MGR__PROCESS_CGROUP_BYTES];
    mgr__copy_text(path, sizeof path, mgr__str_of(group));
    mgr__process_cgroup_walk(path, MGR__PROCESS_CGROUP_REMOVE, MGR__PROCESS_CGROUP_DEPTH);
}

static bool mgr__process_cgroup_mine(const char *name)
{
    const char *digits = name + 8;
    if (strncmp(name, "manager-", 8) != 0) return false;
    for (; *digits >= '0' && *digits <= '9'; digits++) { }
    return !*digits && digits - name >= 16;
}

/* Groups of managers that ended without guard or keeper to clean up. Their lock is
 * held while any of the three lives; once it is free, what is left in them has
 * outlived its manager (invariant 3). */
static void mgr__process_cgroup_remove_stale(const char *parent)
{
#ifdef __linux__
    char entries[1024], path[MGR__PROCESS_CGROUP_BYTES];
    int dir = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC), got;
    while (dir >= 0 && (got = mgr__process_getdents(dir, entries, sizeof entries)) > 0) {
        const char *name;
        for (int at = 0; at < got; ) {
            const char *entry = entries + at;
            at += (int)mgr__process_dirent(entry, &name);
            if (entry[18] != DT_DIR || !mgr__process_cgroup_mine(name) || strlen(parent) + strlen(name) + 2 > sizeof path) continue;
            mgr__process_append(mgr__process_append(mgr__process_append(path, parent), "/"), name);
            int fd = mgr__process_cgroup_open(path);
            if (fd >= 0 && mgr__process_lock(fd) == 0) {
                for (int i = 0; i < MGR__PROCESS_LEFTOVER_TRIES && mgr__process_cgroup_populated(path) == 1; i++) {
                    mgr__process_cgroup_kill(path);
                    mgr__process_sleep(2);
                }
                mgr__process_cgroup_remove(path);
            }
            mgr__process_close(fd);
        }
    }
    mgr__process_close(dir);
#else
    (void)parent;
#endif
}

/* ---- processes: a life's file, which remains to be asked when all of them are gone ---- */

/* Whether flock is the kernel's own there. Over a network a lock may be lost while its
 * holder lives (an expired lease of NFSv4), or not be seen by others (FUSE). */
static bool mgr__process_locks_local(int fd)
{
#ifdef __linux__
    static const unsigned long LOCAL[] = {
        0x01021994ul /* tmpfs */, 0x858458f6ul /* ramfs */, 0xef53ul /* ext2 to 4 */, 0x58465342ul /* xfs */,
        0x9123683eul /* btrfs */, 0xf2f52010ul /* f2fs */, 0x794c7630ul /* overlayfs */, 0x2fc12fc1ul /* zfs */
    };
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0) return false;
    for (size_t i = 0; i < MGR__COUNT(LOCAL); i++) if (((unsigned long)fs.f_type & 0xfffffffful) == LOCAL[i]) return true;
#else
    (void)fd;
#endif
    return false;
}

/* Whoever can write to a folder above ours can put another in its place: each must be
 * root's or our own, and closed to others or sticky. `path` has no symbolic link, and
 * is cut off at the folder that is at fault. */
static int mgr__process_above_ours(char *path, const char **why)
{
    struct stat st;
    for (char *end; (end = strrchr(path, '/')) != NULL && path[1]; ) {
        end[end == path] = 0;
        *why = "it cannot be looked at";
        if (lstat(path, &st) < 0) return -errno;
        *why = "it belongs to another user, who could put another folder in place of the one below it";
        if (st.st_uid != 0 && st.st_uid != geteuid()) return -EPERM;
        *why = "others may write to it, and could put another folder in place of the one below it";
        if ((st.st_mode & 022) != 0 && (st.st_mode & S_ISVTX) == 0) return -EPERM;
    }
    return 0;
}

static int mgr__process_dir_fit(const char *path, const char **why)
{
    struct stat st;
    if (mkdir(path, 0700) < 0 && errno != EEXIST) return -errno;
    if (lstat(path, &st) < 0) return -errno;
    if (!S_ISDIR(st.st_mode)) return -ENOTDIR;
    *why = "it must be ours and closed to all others (0700)";
    if (st.st_uid != geteuid() || (st.st_mode & 077) != 0) return -EPERM;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    bool local = fd >= 0 && mgr__process_locks_local(fd);
    int code = fd < 0 || access(path, W_OK | X_OK) < 0 ? -errno : 0;
    if (fd >= 0) close(fd);
    *why = local ? NULL : "it is on a file system whose locks cannot be relied on";
    return code < 0 ? code : local ? 0 : -EOPNOTSUPP;
}

/* A folder that nobody else can write to, look into, or put another in place of; made if
 * its parent stands. `real`, of PATH_MAX bytes, is its path without symbolic links, for
 * those may be turned elsewhere. -errno: `real` is what is at fault, and *why why, or NULL. */
static int mgr__process_dir_ours(const char *path, char *real, const char **why)
{
    char above[PATH_MAX];
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') len--;
    *why = NULL;
    mgr__copy_text(real, PATH_MAX, mgr__str_make(path, len));
    mgr__copy_text(above, sizeof above, mgr__str_of(real));
    char *name = strrchr(above, '/');
    if (len >= PATH_MAX - 64) return -ENAMETOOLONG;
    if (!name) return -ENOENT;
    *name++ = 0;
    if (!realpath(above[0] ? above : "/", real)) {
        int code = -errno;
        mgr__copy_text(real, PATH_MAX, mgr__str_of(above));
        return code;
    }
    if (strlen(real) + strlen(name) >= PATH_MAX - 64) return -ENAMETOOLONG;
    mgr__process_append(mgr__process_append(real + (real[1] ? strlen(real) : 0), "/"), name);
    mgr__copy_text(above, sizeof above, mgr__str_of(real));
    int code = mgr__process_above_ours(above, why);
    if (code == 0) return mgr__process_dir_fit(real, why);
    mgr__copy_text(real, PATH_MAX, mgr__str_of(above));
    return code;
}

static bool mgr__process_file_id(int fd, uint64_t *device, uint64_t *inode)
{
    struct stat st;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid()) return false;
    *device = (uint64_t)st.st_dev;
    *inode = (uint64_t)st.st_ino;
    return true;
}

enum {
    MGR__PROCESS_LIFE_CLAIM_MS = 100,   /* a sweep holds the lock no longer */
    MGR__PROCESS_LIFE_STALE_S  = 3600   /* a file that nobody holds is kept so long, for it may still be waited for */
};

/* A sweep may have come before us: it holds the lock for a moment, and takes away the
 * right to write, by which the next one would know the file for an old left-over. */
static int mgr__process_life_claim(int fd)
{
    int code = mgr__process_locks_local(fd) ? -EWOULDBLOCK : -EOPNOTSUPP;
    for (int i = 0; i < MGR__PROCESS_LIFE_CLAIM_MS && code == -EWOULDBLOCK; i++) {
        code = mgr__process_lock(fd);
        if (code == -EWOULDBLOCK) mgr__process_sleep(1);
    }
    return code < 0 ? code : mgr__process_code(fchmod(fd, 0600));
}

/* A new file under an exclusive flock. One that was removed between the two is made anew. */
static int mgr__process_life_make(const char *path)
{
    struct stat there, here;
    for (int i = 0; i < MGR__PROCESS_MAKE_TRIES; i++) {
        int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        fd = fd < 0 ? -errno : mgr__process_fd_high(fd);
        if (fd < 0) return fd;
        int code = mgr__process_life_claim(fd);
        if (code >= 0 && stat(path, &there) == 0 && fstat(fd, &here) == 0 && there.st_ino == here.st_ino) return fd;
        if (code < 0) unlink(path);
        close(fd);
        if (code < 0) return code;
    }
    return -EAGAIN;
}

/* -EWOULDBLOCK: somebody holds the exclusive lock, who may still act for that life.
 * A shared lock, so that two who ask at once do not take each other for the holder. */
static int mgr__process_lock_shared(int fd) { return mgr__process_code(flock(fd, LOCK_SH | LOCK_NB)); }

/* Not to be held up by a pipe that somebody put there. */
static int mgr__process_life_open(const char *path)
{
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    return fd < 0 ? -errno : mgr__process_fd_high(fd);
}

static int mgr__process_put_at(int fd, const void *from, size_t bytes, size_t offset)
{
    ssize_t put;
    if (!mgr__process_file_may((uint64_t)offset + bytes)) return -EFBIG;
    do put = pwrite(fd, from, bytes, (off_t)offset); while (put < 0 && errno == EINTR);
    return put == (ssize_t)bytes ? 0 : put < 0 ? -errno : -ENOSPC;
}

static bool mgr__process_get_at(int fd, void *to, size_t bytes) { return pread(fd, to, bytes, 0) == (ssize_t)bytes; }
static int mgr__process_truncate(int fd) { return mgr__process_code(ftruncate(fd, 0)); }
static int mgr__process_unlink(const char *path) { return mgr__process_code(unlink(path)); }

/* The first sweep that finds that nobody holds the file takes away the right to write, and
 * one an hour later the file. By the wall clock: at worst a proof is lost, and a delay
 * waited for. */
static bool mgr__process_life_stale(int fd)
{
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || mgr__process_lock(fd) < 0) return false;
    if ((st.st_mode & 0200) == 0) return st.st_mtime + MGR__PROCESS_LIFE_STALE_S < time(NULL);
    if (fchmod(fd, 0400) == 0) futimens(fd, NULL);
    return false;
}

/* "manager-", sixteen hexadecimal digits, ".life" */
static bool mgr__process_life_name(const char *name)
{
    return strncmp(name, "manager-", 8) == 0 && strspn(name + 8, "0123456789abcdef") == 16 && strcmp(name + 24, ".life") == 0;
}

static void mgr__process_life_sweep(const char *dir)
{
#ifdef __linux__
    char entries[2048], path[PATH_MAX];
    int at_dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), got;
    while (at_dir >= 0 && (got = mgr__process_getdents(at_dir, entries, sizeof entries)) > 0) {
        const char *name;
        for (int at = 0; at < got; ) {
            at += (int)mgr__process_dirent(entries + at, &name);
            if (!mgr__process_life_name(name) || strlen(dir) + strlen(name) + 2 > sizeof path) continue;
            mgr__process_append(mgr__process_append(mgr__process_append(path, dir), "/"), name);
            int fd = mgr__process_life_open(path);
            if (mgr__process_life_stale(fd)) unlink(path);
            mgr__process_close(fd);
        }
    }
    mgr__process_close(at_dir);
#else
    (void)dir;
#endif
}

/* How much of a cgroup's path is the mount that it is seen through, and which one that
 * is: the same path may name another group in another cgroup namespace, or nothing. */
static size_t mgr__process_cgroup_view(const char *group, uint64_t *device, uint64_t *inode)
{
    char path[MGR__PROCESS_CGROUP_BYTES];
    struct stat st, above;
    size_t len = strlen(group);
    mgr__copy_text(path, sizeof path, mgr__str_of(group));
    if (stat(path, &st) < 0) return 0;
    for (char *end; (end = strrchr(path, '/')) != NULL && end != path; st = above) {
        *end = 0;
        if (stat(path, &above) < 0) return 0;
        if (above.st_dev != st.st_dev) break;
        len = (size_t)(end - path);
    }
    *device = (uint64_t)st.st_dev;
    *inode = (uint64_t)st.st_ino;
    return len;
}

/* True: seen through that very mount the group is not there any more, which the kernel
 * allows only for an empty one. A group is never renamed in v2; what is below a group
 * that went is gone with it. */
static bool mgr__process_cgroup_gone(const char *group, size_t view_bytes, uint64_t device, uint64_t inode)
{
    char path[MGR__PROCESS_CGROUP_BYTES];
    struct stat st;
    if (!view_bytes || view_bytes >= strlen(group)) return false;
    mgr__copy_text(path, sizeof path, mgr__str_make(group, view_bytes));
    if (stat(path, &st) < 0 || (uint64_t)st.st_dev != device || (uint64_t)st.st_ino != inode) return false;
    mgr__copy_text(path, sizeof path, mgr__str_of(group));
    if (stat(path, &st) == 0 || errno != ENOENT) return false;
    for (char *end; (end = strrchr(path, '/')) != NULL; ) {     /* the deepest that stands must be of the same mount: nothing hides it */
        *end = 0;
        if (stat(path, &st) == 0) return (uint64_t)st.st_dev == device;
        if (errno != ENOENT) return false;
    }
    return false;
}

/* ---- processes: the socket of the last words: plain, non-blocking, no names ---- */

static int mgr__process_connect(const struct sockaddr_storage *address, socklen_t len)
{
    int fd = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    if (connect(fd, (const struct sockaddr *)(const void *)address, len) == 0 || errno == EINPROGRESS) return fd;
    int code = -errno;
    close(fd);
    return code;
}

static int mgr__process_send(int fd, const void *from, size_t bytes)
{
    ssize_t put;
    do put = send(fd, from, bytes, MSG_NOSIGNAL | MSG_DONTWAIT); while (put < 0 && errno == EINTR);
    return mgr__process_code((long)put);
}

/* ============================================================================
 * [loop] Descriptors, one deadline, and a wake-up
 * what:  waits for what the sections below own, by itself or inside the loop of
 *        the host program, and calls them back; never blocks elsewhere
 * owns:  mgr__loop
 * calls: [io] [base]
 * ========================================================================== */

/* Without a timer on MGR__IO_CLOCK a wait may not be long: poll's timeout does
 * not count suspension. */
enum { MGR__LOOP_TICK_MS = 250 };

typedef void (*mgr__loop_fn)(void *owner, short revents);

typedef struct mgr__loop_slot {
    int          fd;            /* -1: removed while callbacks ran */
    short        interest;      /* POLLIN, POLLOUT; errors are always told */
    mgr__loop_fn fn;
    void        *owner;
} mgr__loop_slot;

typedef struct mgr__loop {
    const mgr__io  *io;
    mgr__heap      *heap;
    mgr__loop_slot *slots;
    size_t          count, cap;
    struct pollfd  *polled;     /* as long as slots: a wait allocates nothing */
    size_t          polled_cap;
    int             wake_read, wake_write;
    int             epoll;      /* holds all slots, for the host's own loop; -1: this system has none */
    int             timer;      /* fires at the deadline; -1 likewise */
    int64_t         deadline_ms;
    int64_t         armed_ms;   /* what the timer is set to */
    bool            running;    /* callbacks are: a slot must keep its place */
} mgr__loop;

/* ---- what to wait for ---- */

static mgr__loop_slot *mgr__loop_find(mgr__loop *loop, int fd)
{
    for (size_t i = 0; i < loop->count; i++) if (loop->slots[i].fd == fd) return &loop->slots[i];
    return NULL;
}

/* Call fn(owner, revents) whenever fd is ready, until it is removed. 0, or -errno
 * and nothing is registered. Callbacks may add, change and remove, fd's own too. */
static int mgr__loop_add(mgr__loop *loop, int fd, short interest, mgr__loop_fn fn, void *owner)
{
    MGR_ASSERT(fd >= 0 && fn && !mgr__loop_find(loop, fd));
    void *slots = loop->slots, *polled = loop->polled;
    bool roomy = mgr__grow(loop->heap, &slots, &loop->cap, loop->count, sizeof *loop->slots);
    loop->slots = (mgr__loop_slot *)slots;
    if (roomy) roomy = mgr__grow(loop->heap, &polled, &loop->polled_cap, loop->count, sizeof *loop->polled);
    loop->polled = (struct pollfd *)polled;
    if (!roomy) return -ENOMEM;
    if (loop->epoll >= 0) {
        int failed = loop->io->epoll_set(loop->io->user, loop->epoll, fd, interest, MGR__IO_ADD);
        if (failed < 0) return failed;
    }
    mgr__loop_slot *slot = &loop->slots[loop->count++];
    slot->fd = fd;
    slot->interest = interest;
    slot->fn = fn;
    slot->owner = owner;
    return 0;
}

/* 0, or -errno and the interest is what it was. */
static int mgr__loop_change(mgr__loop *loop, int fd, short interest)
{
    mgr__loop_slot *slot = mgr__loop_find(loop, fd);
    MGR_ASSERT(slot);
    if (slot->interest == interest) return 0;
    if (loop->epoll >= 0) {
        int failed = loop->io->epoll_set(loop->io->user, loop->epoll, fd, interest, MGR__IO_MODIFY);
        if (failed < 0) return failed;
    }
    slot->interest = interest;
    return 0;
}

/* Before the descriptor is closed: a copy of it in a forked child of the host
 * would keep it in the epoll set for ever. */
static void mgr__loop_remove(mgr__loop *loop, int fd)
{
    mgr__loop_slot *slot = mgr__loop_find(loop, fd);
    MGR_ASSERT(slot);
    if (loop->epoll >= 0) loop->io->epoll_set(loop->io->user, loop->epoll, fd, 0, MGR__IO_REMOVE);
    if (loop->running) { slot->fd = -1; return; }
    *slot = loop->slots[--loop->count];
}

/* ---- time ---- */

/* When dispatch is wanted though no descriptor is ready; MGR__NEVER. */
static void mgr__loop_deadline(mgr__loop *loop, int64_t at_ms)
{
    loop->deadline_ms = at_ms;
    if (loop->timer < 0 || loop->armed_ms == at_ms) return;
    if (loop->io->timer_set(loop->io->user, loop->timer, at_ms) == 0) loop->armed_ms = at_ms;
}

/* Milliseconds until the deadline, -1 for never; without a timer of our own a
 * tick at most. */
static int mgr__loop_timeout_ms(const mgr__loop *loop)
{
    int64_t tick = loop->timer < 0 ? MGR__LOOP_TICK_MS : INT_MAX;
    if (loop->deadline_ms == MGR__NEVER) return loop->timer < 0 ? MGR__LOOP_TICK_MS : -1;
    int64_t left = loop->deadline_ms - mgr__io_now(loop->io);
    return (int)mgr__max64(0, mgr__min64(left, tick));
}

static void mgr__loop_timer_fired(void *owner, short revents)
{
    mgr__loop *loop = (mgr__loop *)owner;
    uint64_t times;
    (void)revents;
    if (loop->io->read(loop->io->user, loop->timer, &times, sizeof times) > 0)
        loop->armed_ms = MGR__NEVER;    /* spent: the same deadline again must set it again */
}

/* ---- waking up ---- */

/* End the wait under way, or the next one. Any thread; async-signal-safe. A full
 * pipe is as good: it is readable. */
static void mgr__loop_wake(mgr__loop *loop)
{
    int saved = errno;
    (void)loop->io->write(loop->io->user, loop->wake_write, "", 1);
    errno = saved;
}

static void mgr__loop_woken(void *owner, short revents)
{
    mgr__loop *loop = (mgr__loop *)owner;
    char some[64];
    (void)revents;
    while (loop->io->read(loop->io->user, loop->wake_read, some, sizeof some) == (ssize_t)sizeof some) {}
}

/* ---- making and waiting ---- */

static void mgr__loop_close(mgr__loop *loop)
{
    int fds[4] = { loop->wake_read, loop->wake_write, loop->timer, loop->epoll };
    for (size_t i = 0; i < MGR__COUNT(fds); i++) if (fds[i] >= 0) loop->io->close(loop->io->user, fds[i]);
    loop->wake_read = loop->wake_write = loop->timer = loop->epoll = -1;
    mgr__free(loop->heap, loop->slots);
    mgr__free(loop->heap, loop->polled);
    loop->slots = NULL;
    loop->polled = NULL;
    loop->count = loop->cap = loop->polled_cap = 0;
}

/* In a forked child, before anything is removed: the epoll set is the parent's as
 * well, and what is taken out of it here would be gone there. */
static void mgr__loop_forked(mgr__loop *loop)
{
    if (loop->epoll >= 0) loop->io->close(loop->io->user, loop->epoll);
    loop->epoll = -1;
}

/* 0, or -errno and nothing is left open. io and heap must outlive the loop. */
static int mgr__loop_open(mgr__loop *loop, const mgr__io *io, mgr__heap *heap)
{
    int wake[2];
    memset(loop, 0, sizeof *loop);
    loop->io = io;
    loop->heap = heap;
    loop->deadline_ms = loop->armed_ms = MGR__NEVER;
    loop->wake_read = loop->wake_write = -1;
    loop->timer = io->timer(io->user);
    loop->epoll = io->epoll(io->user);
    int failed = io->pipe(io->user, wake);
    if (failed == 0) {
        loop->wake_read = wake[0];
        loop->wake_write = wake[1];
        failed = mgr__loop_add(loop, wake[0], POLLIN, mgr__loop_woken, loop);
    }
    if (failed == 0 && loop->timer >= 0) failed = mgr__loop_add(loop, loop->timer, POLLIN, mgr__loop_timer_fired, loop);
    if (failed < 0) mgr__loop_close(loop);
    return failed;
}

/* For the host's own loop: one descriptor that is readable when there is
 * something to dispatch; -1 where there is no such thing. */
static int mgr__loop_fd(const mgr__loop *loop) { return loop->timer >= 0 ? loop->epoll : -1; }

/* For the host's own poll: the number of descriptors; writes at most max of them. */
static size_t mgr__loop_pollfds(const mgr__loop *loop, struct pollfd *fds, size_t fd_count_max)
{
    size_t count = 0;
    for (size_t i = 0; i < loop->count; i++) {
        if (loop->slots[i].fd < 0) continue;
        if (count < fd_count_max) {
            fds[count].fd = loop->slots[i].fd;
            fds[count].events = loop->slots[i].interest;
            fds[count].revents = 0;
        }
        count++;
    }
    return count;
}

/* A slot that a callback removed keeps its place until all have run, and one that
 * was added stands behind those that were polled: so no callback gets the events
 * of a descriptor that had the same number before. */
static void mgr__loop_run(mgr__loop *loop, size_t polled_count)
{
    size_t kept = 0;
    loop->running = true;
    for (size_t i = 0; i < polled_count; i++) {
        mgr__loop_slot slot = loop->slots[i];
        if (slot.fd >= 0 && loop->polled[i].revents) slot.fn(slot.owner, loop->polled[i].revents);
    }
    loop->running = false;
    for (size_t i = 0; i < loop->count; i++) if (loop->slots[i].fd >= 0) loop->slots[kept++] = loop->slots[i];
    loop->count = kept;
}

/* Wait until a descriptor is ready, the deadline or a wake-up comes, or timeout_ms
 * (-1: no limit) has passed, and run the callbacks. What the host's own poll has
 * said is a hint not worth trusting (its descriptors may have changed hands
 * since), so a dispatch is a wait of 0 that asks the kernel itself.
 * The deadline is not acted upon here: the caller looks at the clock after each. */
static int mgr__loop_wait(mgr__loop *loop, int timeout_ms)
{
    int wanted = mgr__loop_timeout_ms(loop);
    MGR_ASSERT(!loop->running);
    if (wanted < 0 || (timeout_ms >= 0 && timeout_ms < wanted)) wanted = timeout_ms;
    size_t count = mgr__loop_pollfds(loop, loop->polled, loop->polled_cap);
    int ready = loop->io->poll(loop->io->user, loop->polled, count, wanted);
    if (ready > 0) mgr__loop_run(loop, count);
    return ready < 0 ? ready : 0;
}

/* ============================================================================
 * [http] One connection to one of several agents, one request at a time
 * what:  connects, sends, receives, keeps the connection; tries the next address
 *        where that cannot do harm; says whether a request can have had effect
 * owns:  mgr__http
 * calls: [loop] [io] [wire] [base]
 * ========================================================================== */

#ifndef MGR_CONNECT_TIMEOUT_MS
#define MGR_CONNECT_TIMEOUT_MS 1000     /* then the next address is tried */
#endif

enum {
    MGR__HTTP_READ_BYTES = 16384,       /* on the stack */
    MGR__HTTP_READS_PER_TURN = 16,      /* then the other descriptors get their turn */
    MGR__HTTP_KEEP_BYTES = 256 << 10,   /* larger buffers are not kept between requests */
    MGR__HTTP_TEXT_BYTES = 512
};

/* CLOSED ---send---> NEXT -> CONNECTING -> SENDING -> RECEIVING -> ANSWERED -> OPEN, CLOSED
 * OPEN ----send-----------------------------^            |
 *                     NEXT <-- broken, may be repeated --+-- broken, late -> FAILED -> CLOSED */
typedef enum mgr__http_state {
    MGR__HTTP_CLOSED,       /* no connection, no request */
    MGR__HTTP_OPEN,         /* a connection kept for the next request */
    MGR__HTTP_NEXT,         /* a request that wants a connection to `current`; never seen from outside */
    MGR__HTTP_CONNECTING,
    MGR__HTTP_SENDING,      /* an answer may come already: a refusal of a long request */
    MGR__HTTP_RECEIVING,
    MGR__HTTP_ANSWERED,     /* a whole answer is there, still to be reported */
    MGR__HTTP_FAILED        /* no connection; the failure is still to be reported */
} mgr__http_state;

/* When a request of which an agent may have seen something is sent once more. */
typedef enum mgr__http_repeat {
    MGR__HTTP_ONCE,         /* never */
    MGR__HTTP_IF_REUSED,    /* harmless twice: if a kept connection was closed without a byte of answer */
    MGR__HTTP_READ          /* no effect at all: to each address once, until one answers */
} mgr__http_repeat;

typedef struct mgr__http mgr__http;

/* The body and everything pointed to lives for the call of on_done. */
typedef struct mgr__http_result {
    mgr__outcome outcome;   /* OK: a whole answer, whatever its status; UNSENT, UNKNOWN */
    int          status;    /* 0 without an answer */
    uint64_t     index;     /* X-Consul-Index, 0 if absent */
    bool         no_leader; /* X-Consul-KnownLeader: false */
    mgr__str     body;
    const char  *text;      /* which addresses failed before, and how; "": none */
    size_t       address;   /* which one answered */
} mgr__http_result;

/* Appends the whole request for an agent that is to be called `host`. Called for
 * each connection tried, so arg must live until on_done. False: out of memory. */
typedef bool (*mgr__http_build)(void *arg, mgr__str host, mgr__buf *out);

/* Called once for each mgr__http_send, from the loop or mgr__http_tick, never from
 * inside mgr__http_send. May send the next request, or cancel; may not free h. */
typedef void (*mgr__http_done)(void *owner, mgr__http *h, const mgr__http_result *result);

struct mgr__http {
    const mgr__io      *io;
    mgr__loop          *loop;
    const mgr__address *addresses;
    size_t              address_count;
    mgr__http_done      on_done;
    void               *owner;
    mgr__loop_fn        on_ready;       /* what the loop calls: mgr__http_ready, which stands further down */
    uint32_t            connect_timeout_ms;

    mgr__http_state     state;
    int                 fd;             /* -1: none; in the loop otherwise */
    size_t              current;        /* the address in use, or to be tried first: one that works is stayed with */

    /* the request under way */
    mgr__http_build     build;
    void               *build_arg;
    mgr__http_repeat    repeat;
    int64_t             deadline_ms, connect_deadline_ms;
    size_t              tried_count;    /* addresses that failed it */
    bool                reused;         /* it went out on a kept connection */
    bool                touched;        /* an agent may have seen something of it */
    mgr__buf            out;
    size_t              sent_bytes;     /* of out, on this connection */
    mgr__wire           wire;
    mgr__buf            body;
    bool                clean;          /* ANSWERED: the connection may be used again */
    mgr__outcome        outcome;        /* FAILED */
    char                text[MGR__HTTP_TEXT_BYTES];
};

/* ---- ending ---- */

static void mgr__http_drop(mgr__http *h)
{
    if (h->fd < 0) return;
    mgr__loop_remove(h->loop, h->fd);
    h->io->close(h->io->user, h->fd);
    h->fd = -1;
}

static void mgr__http_note(mgr__http *h, const char *why)
{
    size_t len = strlen(h->text);
    snprintf(h->text + len, sizeof h->text - len, "%s%s: %s", len ? "; " : "", h->addresses[h->current].text, why);
}

static void mgr__http_advance(mgr__http *h) { h->current = (h->current + 1) % h->address_count; }

/* The request ends without an answer. */
static void mgr__http_fail(mgr__http *h, const char *why)
{
    mgr__http_note(h, why);
    mgr__http_drop(h);
    h->outcome = h->touched ? MGR__OUTCOME_UNKNOWN : MGR__OUTCOME_UNSENT;
    h->state = MGR__HTTP_FAILED;
}

/* The connection came to nothing. On: where no agent saw the request it may go to
 * the next; where one did, as far as its repeat allows. A kept connection that was
 * closed says nothing against the agent, so it is tried again first. */
static void mgr__http_broke(mgr__http *h, const char *why)
{
    bool repeat = h->sent_bytes == 0 || h->repeat == MGR__HTTP_READ ||
                  (h->repeat == MGR__HTTP_IF_REUSED && h->reused && !h->wire.began);
    if (!h->reused) h->tried_count++;
    if (!repeat || h->tried_count == h->address_count) {
        mgr__http_fail(h, why);
        if (!h->reused) mgr__http_advance(h);
        return;
    }
    mgr__http_note(h, why);
    mgr__http_drop(h);
    if (!h->reused) mgr__http_advance(h);
    h->reused = false;
    h->state = MGR__HTTP_NEXT;
}

static bool mgr__http_again(ssize_t result) { return result == -EAGAIN || result == -EWOULDBLOCK; }

/* ---- receiving ---- */

static void mgr__http_end_of_file(mgr__http *h)
{
    if (mgr__wire_eof(&h->wire) == MGR__WIRE_BAD) { mgr__http_broke(h, h->wire.error); return; }
    h->clean = false;
    h->state = MGR__HTTP_ANSWERED;
}

static void mgr__http_take(mgr__http *h, mgr__str bytes)
{
    size_t used = 0;
    switch (mgr__wire_feed(&h->wire, bytes, &used, &h->body)) {
    case MGR__WIRE_MORE: break;
    /* Not to be tried elsewhere: who answers so is no agent, or the answer is too large everywhere. */
    case MGR__WIRE_BAD: mgr__http_fail(h, h->wire.error); break;
    case MGR__WIRE_DONE:
        /* More bytes than the answer, or an answer before the whole request: what comes next could be taken for another's. */
        h->clean = !h->wire.close && used == bytes.len && h->sent_bytes == h->out.len;
        h->state = MGR__HTTP_ANSWERED;
        break;
    }
}

static bool mgr__http_talking(const mgr__http *h) { return h->state == MGR__HTTP_SENDING || h->state == MGR__HTTP_RECEIVING; }

static void mgr__http_read(mgr__http *h)
{
    char some[MGR__HTTP_READ_BYTES];
    for (int i = 0; i < MGR__HTTP_READS_PER_TURN && mgr__http_talking(h); i++) {
        ssize_t got = h->io->recv(h->io->user, h->fd, some, sizeof some);
        if (mgr__http_again(got)) return;
        if (got < 0) mgr__http_broke(h, mgr__io_text(got));
        else if (got == 0) mgr__http_end_of_file(h);
        else mgr__http_take(h, mgr__str_make(some, (size_t)got));
        if (got > 0 && (size_t)got < sizeof some) return;   /* most likely all there is */
    }
}

/* Nothing may come on a connection without a request: an end, or bytes that would
 * be taken for the answer to the next one. */
static bool mgr__http_stale(const mgr__http *h)
{
    char byte;
    return !mgr__http_again(h->io->recv(h->io->user, h->fd, &byte, 1));
}

/* ---- sending ---- */

static bool mgr__http_prepare(mgr__http *h)
{
    mgr__buf_clear(&h->out);
    mgr__buf_clear(&h->body);
    mgr__wire_init(&h->wire, false);
    h->sent_bytes = 0;
    if (h->build(h->build_arg, mgr__str_of(h->addresses[h->current].host_header), &h->out) && !h->out.failed) return true;
    mgr__http_fail(h, "out of memory for the request");
    return false;
}

/* The connection takes no more. An agent that refuses a long request answers (413)
 * before it closes, so what has come counts; if it is no answer, none will come. */
static void mgr__http_cut(mgr__http *h, const char *why)
{
    if (h->sent_bytes) mgr__http_read(h);
    if (mgr__http_talking(h)) mgr__http_broke(h, why);
}

static void mgr__http_write(mgr__http *h)
{
    while (h->sent_bytes < h->out.len) {
        size_t left = h->out.len - h->sent_bytes;
        if (left > MGR__IO_SEND_BYTES_MAX) left = MGR__IO_SEND_BYTES_MAX;
        ssize_t put = h->io->send(h->io->user, h->fd, h->out.at + h->sent_bytes, left);
        if (mgr__http_again(put)) return;
        if (put <= 0) { mgr__http_cut(h, mgr__io_text(put)); return; }
        h->sent_bytes += (size_t)put;
        h->touched = true;
    }
    h->state = MGR__HTTP_RECEIVING;
}

static short mgr__http_interest(mgr__http_state state)
{
    if (state == MGR__HTTP_CONNECTING) return POLLOUT;
    return state == MGR__HTTP_SENDING ? POLLIN | POLLOUT : POLLIN;
}

static void mgr__http_connect(mgr__http *h)
{
    const mgr__address *to = &h->addresses[h->current];
    int64_t now = mgr__io_now(h->io);
    if (now >= h->deadline_ms) { mgr__http_fail(h, "the deadline passed before it could be tried"); return; }
    if (!mgr__http_prepare(h)) return;
    int fd = h->io->socket(h->io->user, to->at.ss_family);
    if (fd < 0) { mgr__http_broke(h, mgr__io_text(fd)); return; }
    int result = h->io->connect(h->io->user, fd, (const struct sockaddr *)&to->at, to->len);
    h->state = result == 0 ? MGR__HTTP_SENDING : MGR__HTTP_CONNECTING;
    h->connect_deadline_ms = now + (int64_t)h->connect_timeout_ms;
    if (result == -EINPROGRESS) result = 0;
    if (result == 0) result = mgr__loop_add(h->loop, fd, mgr__http_interest(h->state), h->on_ready, h);
    if (result < 0) { h->io->close(h->io->user, fd); mgr__http_broke(h, mgr__io_text(result)); return; }
    h->fd = fd;
    if (h->state == MGR__HTTP_SENDING) mgr__http_write(h);
}

/* ---- going on, and reporting ---- */

/* Until the kernel is to be waited for, or there is something to report. Each
 * round that comes back to NEXT has used up an address. */
static void mgr__http_pursue(mgr__http *h)
{
    do {
        while (h->state == MGR__HTTP_NEXT) mgr__http_connect(h);
        if (h->state != MGR__HTTP_CONNECTING && !mgr__http_talking(h)) return;
        int failed = mgr__loop_change(h->loop, h->fd, mgr__http_interest(h->state));
        if (failed < 0) mgr__http_broke(h, mgr__io_text(failed));
    } while (h->state == MGR__HTTP_NEXT);
}

/* The connection stays, or goes, before the callback may send again; the body is
 * out of its reach meanwhile. */
static void mgr__http_report(mgr__http *h)
{
    mgr__http_result result;
    char text[MGR__HTTP_TEXT_BYTES];
    mgr__buf body = h->body;
    bool answered = h->state == MGR__HTTP_ANSWERED;
    memset(&result, 0, sizeof result);
    memcpy(text, h->text, sizeof text);
    result.outcome = answered ? MGR__OUTCOME_OK : h->outcome;
    result.text = text;
    result.address = h->current;
    if (answered) {
        result.status = h->wire.status;
        result.index = h->wire.has_index ? h->wire.consul_index : 0;
        result.no_leader = h->wire.known_leader_false;
        result.body = mgr__buf_view(&body);
    } else result.body = mgr__str_of("");
    mgr__buf_init(&h->body, body.heap, MGR_BODY_BYTES_MAX);
    if (!answered || !h->clean || mgr__loop_change(h->loop, h->fd, POLLIN) < 0) mgr__http_drop(h);
    if (h->out.cap > MGR__HTTP_KEEP_BYTES) mgr__buf_free(&h->out);
    h->state = h->fd >= 0 ? MGR__HTTP_OPEN : MGR__HTTP_CLOSED;
    h->on_done(h->owner, h, &result);
    if (h->body.cap || body.cap > MGR__HTTP_KEEP_BYTES) { mgr__buf_free(&body); return; }
    mgr__buf_clear(&body);      /* the next request may be under way already */
    h->body = body;
}

static void mgr__http_settle(mgr__http *h)
{
    mgr__http_pursue(h);
    if (h->state == MGR__HTTP_ANSWERED || h->state == MGR__HTTP_FAILED) mgr__http_report(h);
}

static void mgr__http_connected(mgr__http *h)
{
    int error = h->io->socket_error(h->io->user, h->fd);
    if (error < 0) { mgr__http_broke(h, mgr__io_text(error)); return; }
    h->state = MGR__HTTP_SENDING;
    mgr__http_write(h);
}

static void mgr__http_ready(void *owner, short revents)
{
    mgr__http *h = (mgr__http *)owner;
    if (h->state == MGR__HTTP_OPEN) {
        if (mgr__http_stale(h)) { mgr__http_drop(h); h->state = MGR__HTTP_CLOSED; }
        return;
    }
    if (h->state == MGR__HTTP_CONNECTING) mgr__http_connected(h);
    else {
        if (revents & ~POLLOUT) mgr__http_read(h);
        if (h->state == MGR__HTTP_SENDING) mgr__http_write(h);
    }
    mgr__http_settle(h);
}

/* ---- what the sections below use ---- */

/* Opens nothing. All that is passed must outlive h; addresses: at least one. */
static void mgr__http_init(mgr__http *h, const mgr__io *io, mgr__loop *loop, mgr__heap *heap,
                           const mgr__address *addresses, size_t address_count, mgr__http_done on_done, void *owner)
{
    MGR_ASSERT(address_count > 0 && on_done);
    memset(h, 0, sizeof *h);
    h->io = io;
    h->loop = loop;
    h->addresses = addresses;
    h->address_count = address_count;
    h->on_done = on_done;
    h->owner = owner;
    h->on_ready = mgr__http_ready;
    h->connect_timeout_ms = MGR_CONNECT_TIMEOUT_MS;
    h->fd = -1;
    mgr__buf_init(&h->out, heap, MGR_BODY_BYTES_MAX);
    mgr__buf_init(&h->body, heap, MGR_BODY_BYTES_MAX);
}

/* True from mgr__http_send until on_done is called. */
static bool mgr__http_busy(const mgr__http *h) { return h->state != MGR__HTTP_CLOSED && h->state != MGR__HTTP_OPEN; }

/* Begin one request; not while one is under way. It ends with on_done, at
 * deadline_ms at the latest, and later than this call in any case. Ask for
 * mgr__http_deadline afterwards: a failure on the spot is reported by the tick. */
static void mgr__http_send(mgr__http *h, mgr__http_build build, void *build_arg, mgr__http_repeat repeat, int64_t deadline_ms)
{
    MGR_ASSERT(!mgr__http_busy(h));
    h->build = build;
    h->build_arg = build_arg;
    h->repeat = repeat;
    h->deadline_ms = deadline_ms;
    h->tried_count = 0;
    h->touched = false;
    h->text[0] = 0;
    if (h->state == MGR__HTTP_OPEN && mgr__http_stale(h)) mgr__http_drop(h);
    h->reused = h->fd >= 0;
    h->state = h->reused ? MGR__HTTP_SENDING : MGR__HTTP_NEXT;
    if (h->reused && mgr__http_prepare(h)) mgr__http_write(h);
    mgr__http_pursue(h);
}

/* When mgr__http_tick is wanted; MGR__NEVER. */
static int64_t mgr__http_deadline(const mgr__http *h)
{
    switch (h->state) {
    case MGR__HTTP_CLOSED: case MGR__HTTP_OPEN: return MGR__NEVER;
    case MGR__HTTP_CONNECTING: return mgr__min64(h->deadline_ms, h->connect_deadline_ms);
    case MGR__HTTP_SENDING: case MGR__HTTP_RECEIVING: return h->deadline_ms;
    case MGR__HTTP_NEXT: case MGR__HTTP_ANSWERED: case MGR__HTTP_FAILED: break;
    }
    return 0;
}

/* After each turn of the loop: what is over time, and what failed on the spot. An
 * agent that hangs (a stopped one connects, and says nothing) is the last to be
 * tried next time. */
static void mgr__http_tick(mgr__http *h, int64_t now_ms)
{
    if (now_ms < mgr__http_deadline(h)) return;
    if (h->state == MGR__HTTP_CONNECTING && now_ms < h->deadline_ms) mgr__http_broke(h, "no connection in time");
    else if (h->state == MGR__HTTP_CONNECTING || mgr__http_talking(h)) {
        mgr__http_fail(h, h->state == MGR__HTTP_CONNECTING ? "no connection before the deadline" : "no answer before the deadline");
        mgr__http_advance(h);
    }
    mgr__http_settle(h);
}

/* Close the connection; a request under way ends without on_done. */
static void mgr__http_cancel(mgr__http *h)
{
    mgr__http_drop(h);
    h->state = MGR__HTTP_CLOSED;
}

/* The agent answers, but not to the purpose (it knows no leader): the next request
 * goes to another one, if there is one. Not while one is under way. */
static void mgr__http_move_on(mgr__http *h)
{
    MGR_ASSERT(!mgr__http_busy(h));
    if (h->address_count < 2) return;
    mgr__http_cancel(h);
    mgr__http_advance(h);
}

static void mgr__http_free(mgr__http *h)
{
    mgr__http_cancel(h);
    mgr__buf_free(&h->out);
    mgr__buf_free(&h->body);
}

/* ============================================================================
 * [consul] What is asked of Consul as HTTP, and what its answers mean
 * what:  translates mgr__request to bytes and HTTP answers to mgr__answer; pure
 * owns:  mgr__consul (the token)
 * calls: [http] [wire] [json] [base]
 * ========================================================================== */

typedef struct mgr__consul {
    mgr__str token;             /* "": none */
} mgr__consul;

enum {
    MGR__CONSUL_KV_BYTES_MIN = 24,      /* no entry of an answer is shorter: {"Key":"","CreateIndex" ... */
    MGR__CONSUL_TEXT_BYTES_MAX = 512    /* of a refusal, for messages */
};

/* ---- requests ---- */

static const char *mgr__consul_verb(mgr__verb verb)
{
    switch (verb) {
    case MGR__SET: return "set";
    case MGR__CAS: return "cas";
    case MGR__LOCK: return "lock";
    case MGR__UNLOCK: return "unlock";
    case MGR__DELETE_CAS: return "delete-cas";
    case MGR__CHECK_INDEX: return "check-index";
    case MGR__CHECK_SESSION: return "check-session";
    case MGR__CHECK_ABSENT: return "check-not-exists";
    case MGR__GET: return "get";
    case MGR__GET_TREE: return "get-tree";
    }
    return "";
}

static bool mgr__consul_op_has_value(mgr__verb verb)
{
    return verb == MGR__SET || verb == MGR__CAS || verb == MGR__LOCK || verb == MGR__UNLOCK;
}

static bool mgr__consul_op_has_index(mgr__verb verb) { return verb == MGR__CAS || verb == MGR__DELETE_CAS || verb == MGR__CHECK_INDEX; }
static bool mgr__consul_op_has_session(mgr__verb verb) { return verb == MGR__LOCK || verb == MGR__UNLOCK || verb == MGR__CHECK_SESSION; }

static void mgr__consul_member(mgr__jw *jw, const char *key, mgr__str value)
{
    mgr__jw_key(jw, key);
    mgr__jw_str(jw, value);
}

static void mgr__consul_op(mgr__jw *jw, const mgr__op *op)
{
    mgr__jw_object(jw);
    mgr__jw_key(jw, "KV");
    mgr__jw_object(jw);
    mgr__consul_member(jw, "Verb", mgr__str_of(mgr__consul_verb(op->verb)));
    mgr__consul_member(jw, "Key", op->key);
    if (mgr__consul_op_has_value(op->verb)) {
        mgr__jw_key(jw, "Value");
        mgr__jw_raw(jw, mgr__str_of("\""));
        mgr__base64_encode(jw->out, op->value);
        mgr__buf_char(jw->out, '"');
    }
    if (mgr__consul_op_has_index(op->verb)) {
        mgr__jw_key(jw, "Index");
        mgr__jw_u64(jw, op->index);
    }
    if (mgr__consul_op_has_session(op->verb)) mgr__consul_member(jw, "Session", op->session);
    mgr__jw_object_end(jw);
    mgr__jw_object_end(jw);
}

static void mgr__consul_txn(mgr__jw *jw, const mgr__request *r)
{
    mgr__jw_array(jw);
    for (size_t i = 0; i < r->op_count; i++) mgr__consul_op(jw, &r->ops[i]);
    mgr__jw_array_end(jw);
}

/* NodeChecks and ServiceChecks, never Checks: an empty one of those would drop
 * serfHealth without a word. The lock-delay is none: what protects is our own. */
static void mgr__consul_session(mgr__jw *jw, const mgr__request *r)
{
    char ttl[16];
    snprintf(ttl, sizeof ttl, "%lums", (unsigned long)r->session_ttl_ms);
    mgr__jw_object(jw);
    mgr__consul_member(jw, "Name", r->name);
    mgr__consul_member(jw, "TTL", mgr__str_of(ttl));
    mgr__consul_member(jw, "LockDelay", mgr__str_of("0s"));
    mgr__consul_member(jw, "Behavior", mgr__str_of("release"));
    mgr__jw_key(jw, "NodeChecks");
    mgr__jw_array(jw);
    mgr__jw_text(jw, "serfHealth");
    mgr__jw_array_end(jw);
    if (r->check_id.len) {
        mgr__jw_key(jw, "ServiceChecks");
        mgr__jw_array(jw);
        mgr__jw_object(jw);
        mgr__consul_member(jw, "ID", r->check_id);
        mgr__jw_object_end(jw);
        mgr__jw_array_end(jw);
    }
    mgr__jw_object_end(jw);
}

static void mgr__consul_body(const mgr__request *r, mgr__buf *out)
{
    mgr__jw jw;
    mgr__jw_init(&jw, out);
    switch (r->ask) {
    case MGR__ASK_TXN: mgr__consul_txn(&jw, r); break;
    case MGR__ASK_SESSION_CREATE: mgr__consul_session(&jw, r); break;
    case MGR__ASK_SERVICE_REGISTER: case MGR__ASK_CHECK_REGISTER: mgr__buf_str(out, r->body); break;
    case MGR__ASK_CATALOG_DEREGISTER:
        mgr__jw_object(&jw);
        mgr__consul_member(&jw, "Node", r->node);
        mgr__consul_member(&jw, "ServiceID", r->name);
        mgr__jw_object_end(&jw);
        break;
    case MGR__ASK_CHECK_UPDATE:
        mgr__jw_object(&jw);
        mgr__consul_member(&jw, "Status", mgr__str_of(mgr__health_word(r->status)));
        mgr__consul_member(&jw, "Output", r->note);
        mgr__jw_object_end(&jw);
        break;
    case MGR__ASK_WATCH: case MGR__ASK_LIST: case MGR__ASK_SESSION_RENEW: case MGR__ASK_SESSION_DESTROY:
    case MGR__ASK_SESSION_LIST: case MGR__ASK_AGENT_SELF: case MGR__ASK_AGENT_JOIN:
    case MGR__ASK_SERVICE_DEREGISTER: case MGR__ASK_CHECK_DEREGISTER: case MGR__ASK_CHECK_LIST: break;
    }
}

static void mgr__consul_path(mgr__buf *out, const char *path, mgr__str segment)
{
    mgr__buf_text(out, path);
    mgr__wire_quote_segment(out, segment);
}

/* A key of ours has no ".", ".." or empty segment, so quoting it whole is safe. */
static void mgr__consul_kv_path(mgr__buf *out, mgr__str key)
{
    mgr__buf_text(out, "/v1/kv/");
    mgr__wire_quote(out, key);
    mgr__buf_text(out, "?recurse");
}

static void mgr__consul_target(const mgr__request *r, mgr__buf *out)
{
    switch (r->ask) {
    /* A transaction that only reads is otherwise answered by a leader that may have been deposed. */
    case MGR__ASK_TXN: mgr__buf_text(out, "/v1/txn?consistent"); break;
    case MGR__ASK_WATCH:
        mgr__consul_kv_path(out, r->key);
        if (r->index) mgr__buf_printf(out, "&index=%llu&wait=%lums", (unsigned long long)r->index, (unsigned long)r->wait_ms);
        break;
    case MGR__ASK_LIST:
        mgr__consul_kv_path(out, r->key);
        mgr__buf_text(out, "&consistent");
        break;
    case MGR__ASK_SESSION_CREATE: mgr__buf_text(out, "/v1/session/create"); break;
    case MGR__ASK_SESSION_RENEW: mgr__consul_path(out, "/v1/session/renew/", r->session); break;
    case MGR__ASK_SESSION_DESTROY: mgr__consul_path(out, "/v1/session/destroy/", r->session); break;
    case MGR__ASK_SESSION_LIST: mgr__buf_text(out, "/v1/session/list?consistent"); break;
    case MGR__ASK_AGENT_SELF: mgr__buf_text(out, "/v1/agent/self"); break;
    case MGR__ASK_AGENT_JOIN: mgr__consul_path(out, "/v1/agent/join/", r->name); break;
    case MGR__ASK_SERVICE_REGISTER: mgr__buf_text(out, "/v1/agent/service/register?replace-existing-checks=true"); break;
    case MGR__ASK_SERVICE_DEREGISTER: mgr__consul_path(out, "/v1/agent/service/deregister/", r->name); break;
    case MGR__ASK_CATALOG_DEREGISTER: mgr__buf_text(out, "/v1/catalog/deregister"); break;
    case MGR__ASK_CHECK_REGISTER: mgr__buf_text(out, "/v1/agent/check/register"); break;
    case MGR__ASK_CHECK_DEREGISTER: mgr__consul_path(out, "/v1/agent/check/deregister/", r->name); break;
    case MGR__ASK_CHECK_UPDATE: mgr__consul_path(out, "/v1/agent/check/update/", r->name); break;
    case MGR__ASK_CHECK_LIST: mgr__buf_text(out, "/v1/agent/checks"); break;
    }
}

static bool mgr__consul_verb_reads(mgr__verb verb)
{
    return verb == MGR__CHECK_INDEX || verb == MGR__CHECK_SESSION || verb == MGR__CHECK_ABSENT || verb == MGR__GET || verb == MGR__GET_TREE;
}

static bool mgr__consul_is_get(mgr__ask ask)
{
    return ask == MGR__ASK_WATCH || ask == MGR__ASK_LIST || ask == MGR__ASK_SESSION_LIST || ask == MGR__ASK_AGENT_SELF ||
           ask == MGR__ASK_CHECK_LIST;
}

/* True if the request changes nothing, anywhere. */
static bool mgr__consul_is_read(const mgr__request *r)
{
    if (r->ask != MGR__ASK_TXN) return mgr__consul_is_get(r->ask);
    for (size_t i = 0; i < r->op_count; i++) if (!mgr__consul_verb_reads(r->ops[i].verb)) return false;
    return true;
}

/* Renewing or reporting twice is as good as once; a lock or a session is not. */
static mgr__http_repeat mgr__consul_repeat(const mgr__request *r)
{
    if (mgr__consul_is_read(r)) return MGR__HTTP_READ;
    return r->ask == MGR__ASK_SESSION_RENEW || r->ask == MGR__ASK_CHECK_UPDATE ? MGR__HTTP_IF_REUSED : MGR__HTTP_ONCE;
}

/* Appends the whole HTTP request; host: of the address it goes to. False: out of
 * memory, over out's limit, or a token that cannot stand in a header field. */
static bool mgr__consul_format(const mgr__consul *c, const mgr__request *r, mgr__str host, mgr__buf *out)
{
    mgr__buf target, body;
    mgr__buf_init(&target, out->heap, MGR_HEAD_BYTES_MAX);
    mgr__buf_init(&body, out->heap, MGR_BODY_BYTES_MAX);
    mgr__consul_target(r, &target);
    mgr__consul_body(r, &body);
    if (target.failed || body.failed) out->failed = true;
    else mgr__wire_request(out, mgr__consul_is_get(r->ask) ? "GET" : "PUT", mgr__buf_view(&target), host, c->token, mgr__buf_view(&body));
    mgr__buf_free(&target);
    mgr__buf_free(&body);
    return !out->failed;
}

/* ---- answers ----
 * Views of an answer point into the body or into scratch. */

typedef struct mgr__consul_reader {
    mgr__json    json;
    mgr__buf    *scratch;       /* first the array of entries, behind it decoded strings: reserved whole, so it stays in place */
    mgr__kv     *kvs;
    size_t       kv_count, kv_count_max;
} mgr__consul_reader;

/* Room for all that a body can hold: an entry is in braces and has a shortest form,
 * a decoded string is no longer than its text. False: out of memory. */
static bool mgr__consul_reader_init(mgr__consul_reader *reader, mgr__str body, mgr__buf *scratch)
{
    size_t count = 1;
    for (size_t i = 0; i < body.len; i++) if (body.at[i] == '{') count++;
    if (count > body.len / MGR__CONSUL_KV_BYTES_MIN + 1) count = body.len / MGR__CONSUL_KV_BYTES_MIN + 1;
    size_t array_bytes = count * sizeof(mgr__kv), bytes = array_bytes + 2 * body.len + 160;
    mgr__buf_clear(scratch);
    if (scratch->bytes_max < bytes) scratch->bytes_max = bytes;
    if (!mgr__buf_reserve(scratch, bytes)) return false;
    memset(scratch->at, 0, array_bytes);
    scratch->len = array_bytes;
    reader->scratch = scratch;
    reader->kvs = (mgr__kv *)(void *)scratch->at;   /* the heap aligns for anything */
    reader->kv_count = 0;
    reader->kv_count_max = count;
    mgr__json_init(&reader->json, body);
    return true;
}

static mgr__str mgr__consul_string(mgr__consul_reader *reader)
{
    return mgr__json_null(&reader->json) ? mgr__str_of("") : mgr__json_string(&reader->json, reader->scratch);
}

static mgr__str mgr__consul_value(mgr__consul_reader *reader)
{
    return mgr__json_null(&reader->json) ? mgr__str_of("") : mgr__json_base64(&reader->json, reader->scratch);
}

/* The next entry to fill in; NULL: more of them than their text could hold. */
static mgr__kv *mgr__consul_next(mgr__consul_reader *reader)
{
    if (reader->kv_count == reader->kv_count_max) {
        mgr__json_fail(&reader->json, reader->json.at, "entries without content");
        return NULL;
    }
    mgr__kv *kv = &reader->kvs[reader->kv_count++];
    kv->key = kv->value = kv->session = mgr__str_of("");
    return kv;
}

/* {"LockIndex":0,"Key":"a","Flags":0,"Value":"eA==","Session":"...","CreateIndex":1,"ModifyIndex":1} */
static void mgr__consul_kv(mgr__consul_reader *reader)
{
    mgr__json *j = &reader->json;
    mgr__str key;
    mgr__kv *kv = mgr__consul_next(reader);
    bool named = false;
    if (!kv || !mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "Key")) { kv->key = mgr__consul_string(reader); named = true; }
        else if (mgr__str_is(key, "Value")) kv->value = mgr__consul_value(reader);
        else if (mgr__str_is(key, "Session")) kv->session = mgr__consul_string(reader);
        else if (mgr__str_is(key, "CreateIndex")) kv->create_index = mgr__json_u64(j);
        else if (mgr__str_is(key, "ModifyIndex")) kv->modify_index = mgr__json_u64(j);
        else if (mgr__str_is(key, "LockIndex")) kv->lock_index = mgr__json_u64(j);
    }
    /* Without its index no entry can be acted upon. */
    if (!j->error && (!named || !kv->modify_index)) mgr__json_fail(j, j->at, "an entry without Key or ModifyIndex");
}

static void mgr__consul_kv_list(mgr__consul_reader *reader)
{
    if (mgr__json_null(&reader->json) || !mgr__json_array(&reader->json)) return;
    while (mgr__json_item(&reader->json)) mgr__consul_kv(reader);
}

/* {"ID":"...","Name":"...","Node":"...", ...} */
static void mgr__consul_session_item(mgr__consul_reader *reader)
{
    mgr__json *j = &reader->json;
    mgr__str key;
    mgr__kv *kv = mgr__consul_next(reader);
    if (!kv || !mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "ID")) kv->session = mgr__consul_string(reader);
        else if (mgr__str_is(key, "Name")) kv->key = mgr__consul_string(reader);
        else if (mgr__str_is(key, "CreateIndex")) kv->create_index = mgr__json_u64(j);
        else if (mgr__str_is(key, "ModifyIndex")) kv->modify_index = mgr__json_u64(j);
    }
    if (!j->error && !kv->session.len) mgr__json_fail(j, j->at, "a session without ID");
}

static void mgr__consul_session_list(mgr__consul_reader *reader)
{
    if (mgr__json_null(&reader->json) || !mgr__json_array(&reader->json)) return;
    while (mgr__json_item(&reader->json)) mgr__consul_session_item(reader);
}

/* {"CheckID":"...","Status":"passing", ...} */
static void mgr__consul_check(mgr__consul_reader *reader)
{
    mgr__json *j = &reader->json;
    mgr__str key;
    mgr__kv *kv = mgr__consul_next(reader);
    if (!kv || !mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "CheckID")) kv->key = mgr__consul_string(reader);
        else if (mgr__str_is(key, "Status")) kv->value = mgr__consul_string(reader);
    }
    if (!j->error && (!kv->key.len || !kv->value.len)) mgr__json_fail(j, j->at, "a check without CheckID or Status");
}

/* {"id":{...}, ...} */
static void mgr__consul_check_list(mgr__consul_reader *reader)
{
    mgr__str key;
    if (mgr__json_null(&reader->json) || !mgr__json_object(&reader->json)) return;
    while (mgr__json_key(&reader->json, &key)) mgr__consul_check(reader);
}

/* The text of the member `name` of the object that comes next; "" if it has none. */
static mgr__str mgr__consul_find_text(mgr__consul_reader *reader, const char *name)
{
    mgr__str key, found = mgr__str_of("");
    if (!mgr__json_object(&reader->json)) return found;
    while (mgr__json_key(&reader->json, &key)) if (mgr__str_is(key, name)) found = mgr__consul_string(reader);
    return found;
}

/* A duration as Go writes it, in quotes: "1m30s", "1.5s", "52ms". 0: below a
 * millisecond, or none. */
static uint32_t mgr__consul_duration_ms(mgr__str text)
{
    if (text.len < 2 || text.at[0] != '"' || text.at[text.len - 1] != '"') return 0;
    text = mgr__str_make(text.at + 1, text.len - 2);
    static const struct { const char *unit; double ms; } UNITS[] = { { "h", 3600000 }, { "ms", 1 }, { "m", 60000 }, { "s", 1000 } };
    double sum = 0;
    while (text.len) {
        double number = 0, place = 1, ms = 0;
        for (; text.len && ((*text.at >= '0' && *text.at <= '9') || *text.at == '.'); text = mgr__str_skip(text, 1)) {
            if (*text.at == '.') { place = 0.1; continue; }
            if (place < 1) { number += place * (*text.at - '0'); place /= 10; }
            else number = number * 10 + (*text.at - '0');
        }
        size_t len = 0;
        while (len < text.len && !(text.at[len] >= '0' && text.at[len] <= '9')) len++;
        for (size_t i = 0; i < MGR__COUNT(UNITS); i++) if (mgr__str_is(mgr__str_make(text.at, len), UNITS[i].unit)) ms = UNITS[i].ms;
        if (!len) return 0;
        sum += number * ms;
        text = mgr__str_skip(text, len);
    }
    return sum < 1 ? 0 : sum < 4294967295.0 ? (uint32_t)sum : UINT32_MAX;
}

/* 0: it is none, or not below 100. */
static uint32_t mgr__consul_small_number(mgr__str text)
{
    uint32_t number = 0;
    for (size_t i = 0; i < text.len; i++) {
        if (text.len > 2 || text.at[i] < '0' || text.at[i] > '9') return 0;
        number = number * 10 + (uint32_t)(text.at[i] - '0');
    }
    return number;
}

static void mgr__consul_agent_config(mgr__consul_reader *reader, mgr__answer *out)
{
    mgr__str key;
    if (!mgr__json_object(&reader->json)) return;
    while (mgr__json_key(&reader->json, &key)) {
        if (mgr__str_is(key, "NodeName")) out->node = mgr__consul_string(reader);
        else if (mgr__str_is(key, "Server")) out->agent.server = mgr__str_is(mgr__json_raw(&reader->json), "true");
    }
}

/* Consul promises nothing of what stands here: whatever it is, no instance may fail to
 * enter for it. */
static void mgr__consul_agent_debug(mgr__json *j, mgr_agent_view *agent)
{
    mgr__str key;
    if (mgr__json_null(j) || !mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "SessionTTLMin")) agent->session_ttl_min_ms = mgr__consul_duration_ms(mgr__json_raw(j));
        else if (mgr__str_is(key, "ConsulRaftElectionTimeout")) agent->raft_election_ms = mgr__consul_duration_ms(mgr__json_raw(j));
        else if (mgr__str_is(key, "GossipLANProbeInterval")) agent->probe_ms = mgr__consul_duration_ms(mgr__json_raw(j));
        else if (mgr__str_is(key, "GossipLANSuspicionMult")) agent->suspicion_mult = mgr__consul_small_number(mgr__json_raw(j));
    }
}

static void mgr__consul_agent_self(mgr__consul_reader *reader, mgr__answer *out)
{
    mgr__str key;
    out->node = mgr__str_of("");
    if (!mgr__json_object(&reader->json)) return;
    while (mgr__json_key(&reader->json, &key)) {
        if (mgr__str_is(key, "Config")) mgr__consul_agent_config(reader, out);
        else if (mgr__str_is(key, "DebugConfig")) mgr__consul_agent_debug(&reader->json, &out->agent);
    }
    if (!out->agent.server) out->agent.session_ttl_min_ms = out->agent.raft_election_ms = 0;
}

/* The entries of {"Results":[{"KV":{...}}, ...],"Errors":null}. */
static void mgr__consul_results(mgr__consul_reader *reader)
{
    mgr__json *j = &reader->json;
    mgr__str key;
    if (mgr__json_null(j) || !mgr__json_array(j)) return;
    while (mgr__json_item(j)) {
        if (!mgr__json_object(j)) return;
        while (mgr__json_key(j, &key)) if (mgr__str_is(key, "KV")) mgr__consul_kv(reader);
    }
}

/* One of an operation's index; Consul names an operation once for each thing wrong with it. */
static void mgr__consul_add_failed(mgr__answer *out, uint64_t index)
{
    for (size_t i = 0; i < out->failed_count; i++) if (out->failed[i] == index) return;
    if (index < MGR__TXN_OPS_MAX && out->failed_count < MGR__TXN_OPS_MAX) out->failed[out->failed_count++] = (uint32_t)index;
}

static bool mgr__consul_contains(mgr__str text, const char *word)
{
    size_t len = strlen(word);
    for (; text.len >= len; text = mgr__str_skip(text, 1)) if (memcmp(text.at, word, len) == 0) return true;
    return false;
}

/* {"OpIndex":17,"What":"..."}; the answer's text: the first one, or that of a missing right. */
static void mgr__consul_error(mgr__consul_reader *reader, mgr__answer *out)
{
    mgr__str key, text = mgr__str_of("");
    uint64_t index = MGR__TXN_OPS_MAX;
    if (!mgr__json_object(&reader->json)) return;
    while (mgr__json_key(&reader->json, &key)) {
        if (mgr__str_is(key, "OpIndex")) index = mgr__json_u64(&reader->json);
        else if (mgr__str_is(key, "What")) text = mgr__consul_string(reader);
    }
    bool denied = mgr__consul_contains(text, "Permission denied") || mgr__consul_contains(text, "ACL not found");
    mgr__consul_add_failed(out, index);
    if (denied || !out->text.len) out->text = text;
    if (denied) out->outcome = MGR__OUTCOME_DENIED;
}

static size_t mgr__consul_errors(mgr__consul_reader *reader, mgr__answer *out)
{
    size_t count = 0;
    if (mgr__json_null(&reader->json) || !mgr__json_array(&reader->json)) return 0;
    for (; mgr__json_item(&reader->json); count++) mgr__consul_error(reader, out);
    return count;
}

/* The answer of a transaction, applied or refused. */
static void mgr__consul_parse_txn(mgr__consul_reader *reader, mgr__answer *out, bool refused)
{
    mgr__json *j = &reader->json;
    mgr__str key;
    size_t error_count = 0;
    out->outcome = refused ? MGR__OUTCOME_CONFLICT : MGR__OUTCOME_OK;
    if (!mgr__json_object(j)) return;
    while (mgr__json_key(j, &key)) {
        if (mgr__str_is(key, "Results")) mgr__consul_results(reader);
        else if (mgr__str_is(key, "Errors")) error_count += mgr__consul_errors(reader, out);
    }
    if (!j->error && refused != (error_count > 0)) mgr__json_fail(j, 0, "the status and the list of errors disagree");
}

static void mgr__consul_want(mgr__consul_reader *reader, mgr__str got, const char *why)
{
    if (!reader->json.error && !got.len) mgr__json_fail(&reader->json, 0, why);
}

/* A renewal extends a lease: believe it only if it names our session. */
static void mgr__consul_parse_renewed(mgr__consul_reader *reader, const mgr__request *r)
{
    mgr__consul_session_list(reader);
    if (reader->json.error) return;
    if (reader->kv_count != 1 || !mgr__str_eq(reader->kvs[0].session, r->session))
        mgr__json_fail(&reader->json, 0, "the renewed session is not ours");
    reader->kv_count = 0;
}

static void mgr__consul_parse_ok(mgr__consul_reader *reader, const mgr__request *r, mgr__answer *out)
{
    out->outcome = MGR__OUTCOME_OK;
    switch (r->ask) {
    case MGR__ASK_TXN: mgr__consul_parse_txn(reader, out, false); break;
    case MGR__ASK_WATCH: case MGR__ASK_LIST: mgr__consul_kv_list(reader); break;
    case MGR__ASK_SESSION_LIST: mgr__consul_session_list(reader); break;
    case MGR__ASK_CHECK_LIST: mgr__consul_check_list(reader); break;
    case MGR__ASK_SESSION_RENEW: mgr__consul_parse_renewed(reader, r); break;
    case MGR__ASK_SESSION_CREATE:
        out->session = mgr__consul_find_text(reader, "ID");
        mgr__consul_want(reader, out->session, "no ID of a session");
        break;
    case MGR__ASK_AGENT_SELF:
        mgr__consul_agent_self(reader, out);
        mgr__consul_want(reader, out->node, "no Config.NodeName");
        break;
    case MGR__ASK_SESSION_DESTROY: case MGR__ASK_CATALOG_DEREGISTER:
        if (!mgr__json_bool(&reader->json)) mgr__json_fail(&reader->json, 0, "expected true");
        break;
    /* The agent answers these with nothing, or with "true" at its whim: the status says it all. */
    case MGR__ASK_AGENT_JOIN: case MGR__ASK_SERVICE_REGISTER: case MGR__ASK_SERVICE_DEREGISTER:
    case MGR__ASK_CHECK_REGISTER: case MGR__ASK_CHECK_DEREGISTER: case MGR__ASK_CHECK_UPDATE:
        mgr__json_init(&reader->json, mgr__str_of("null"));
        mgr__json_null(&reader->json);
        break;
    }
}

/* What was read counts whole or not at all. */
static void mgr__consul_finish(mgr__consul_reader *reader, mgr__answer *out)
{
    if (mgr__json_end(&reader->json)) {
        out->kvs = reader->kvs;
        out->kv_count = reader->kv_count;
        return;
    }
    size_t from = reader->scratch->len;
    mgr__buf_printf(reader->scratch, "malformed: %s, at byte %zu", reader->json.error, reader->json.error_at);
    out->outcome = MGR__OUTCOME_UNKNOWN;
    out->failed_count = 0;
    out->session = out->node = mgr__str_of("");
    out->text = mgr__str_skip(mgr__buf_view(reader->scratch), from);
}

/* An answer that is a line of text, not JSON. */
static mgr__str mgr__consul_text(mgr__str body)
{
    if (body.len > MGR__CONSUL_TEXT_BYTES_MAX) body.len = MGR__CONSUL_TEXT_BYTES_MAX;
    while (body.len && (body.at[body.len - 1] == '\n' || body.at[body.len - 1] == '\r')) body.len--;
    return body;
}

static mgr__outcome mgr__consul_refusal(const mgr__request *r, int status, mgr__str text)
{
    bool of_check = r->ask == MGR__ASK_CHECK_UPDATE || r->ask == MGR__ASK_CHECK_DEREGISTER || r->ask == MGR__ASK_SERVICE_DEREGISTER;
    if (status == 403) return MGR__OUTCOME_DENIED;
    if (status == 404) return MGR__OUTCOME_NOT_FOUND;
    if (status == 429) return MGR__OUTCOME_UNSENT;      /* too busy to look at it */
    if (status >= 300 && status < 500) return MGR__OUTCOME_REJECTED;
    /* What is 404 in newer ones; the agent has forgotten what was registered. */
    if (of_check && (mgr__consul_contains(text, "does not have associated TTL") || mgr__consul_contains(text, "Unknown check") ||
                     mgr__consul_contains(text, "Unknown service"))) return MGR__OUTCOME_NOT_FOUND;
    return MGR__OUTCOME_UNKNOWN;
}

/* What an HTTP result means for the request it belongs to. The answer's views live
 * as long as res->body and scratch, which parse clears first and the caller frees;
 * scratch's own limit is raised to what the body needs, 5 times its size at most.
 * A malformed answer is UNKNOWN, and its text says what is wrong where. */
static void mgr__consul_parse(const mgr__request *r, const mgr__http_result *res, mgr__buf *scratch, mgr__answer *out)
{
    mgr__consul_reader reader;
    memset(out, 0, sizeof *out);
    out->session = out->node = mgr__str_of("");
    out->outcome = res->outcome;
    out->status = res->status;
    out->text = mgr__str_of(res->text);
    if (res->outcome != MGR__OUTCOME_OK) return;
    out->index = res->index;
    out->no_leader = res->no_leader;
    /* No such key: an empty picture with an index to wait on. Without an index it is somebody else's 404. */
    bool keys = r->ask == MGR__ASK_WATCH || r->ask == MGR__ASK_LIST;
    if (res->status == 404 && keys && res->index) return;
    if (res->status == 404 && keys) {
        out->outcome = MGR__OUTCOME_REJECTED;
        out->text = mgr__str_of("404 without X-Consul-Index: what answers is no Consul agent");
        return;
    }
    bool refused = res->status == 409 && r->ask == MGR__ASK_TXN;
    if (res->status != 200 && !refused) {
        out->text = mgr__consul_text(res->body);
        out->outcome = mgr__consul_refusal(r, res->status, out->text);
        return;
    }
    out->text = mgr__str_of("");
    if (!mgr__consul_reader_init(&reader, res->body, scratch)) {
        out->outcome = MGR__OUTCOME_UNKNOWN;
        out->text = mgr__str_of("out of memory for the answer");
        return;
    }
    if (refused) mgr__consul_parse_txn(&reader, out, true);
    else mgr__consul_parse_ok(&reader, r, out);
    mgr__consul_finish(&reader, out);
}

/* ============================================================================
 * [keeper] Guard, keeper, and the manager's side of them
 * what:  host -> guard -> keeper -> workers: processes that end with their lease
 *        and with their manager, whatever is killed or stopped. "The host" is the
 *        program that has the manager in it, here and in [io]'s processes
 * owns:  mgr__keeper (manager), mgr__keeping (keeper), mgr__guard, mgr__page (shared by all three)
 * calls: [io] [base]
 * ========================================================================== */

/* What the manager asks of its keeper. */
typedef struct mgr__keeper_config {
    uint32_t    lease_ms, kill_margin_ms, stop_grace_ms;
    mgr_isolate isolate;
    bool        overrun_kill_host;
    char      **keeper_argv;        /* not NULL: exec this instead of a forked copy */
    int         life_fd;            /* > 2: the life's file, its flock kept by guard, keeper and workers: free when all are gone */
    const char *life_path;          /* NULL, or where that file is: the keeper removes it after its last words */
} mgr__keeper_config;

typedef struct mgr__spawn {         /* read during the call */
    const char *const *argv;
    const char *const *env;         /* complete, NULL-terminated; NULL: empty */
    const char *directory;          /* NULL: "/" */
    int         stop_signal;        /* 0: SIGTERM */
    uint32_t    stop_grace_ms, start_timeout_ms;    /* 0: the keeper's; 10000 */
    uid_t       uid;
    gid_t       gid;
    bool        set_ids, discard_output;
    bool        agent;              /* no work of a partition: stands in no certificate's way, is stopped after everything else */
} mgr__spawn;

typedef enum mgr__worker_state {
    MGR__WORKER_FREE,
    MGR__WORKER_STARTING,
    MGR__WORKER_RUNNING,
    MGR__WORKER_STOPPING,
    MGR__WORKER_EXITED,             /* leader reaped, tree not yet empty */
    MGR__WORKER_EMPTY,              /* nothing of it is left */
    MGR__WORKER_FAILED              /* it could not be started; nothing is left */
} mgr__worker_state;

typedef struct mgr__worker_report {
    uint32_t slot;
    mgr__worker_state state;
    pid_t    pid;
    int      status;                /* from EXITED on: exit status, or -signal */
    int      error;                 /* FAILED: errno; ECANCELED: no lease to start it under */
    bool     stuck;                 /* it was sent SIGKILL and does not die */
} mgr__worker_report;

typedef enum mgr__keeper_status {
    MGR__KEEPER_ALIVE,
    MGR__KEEPER_CLOSED,             /* lease word closed: it is stopping everything */
    MGR__KEEPER_DEAD,               /* keeper or guard is gone, descendants maybe not: SWEPT or UNPROVEN follows, if all can be killed */
    MGR__KEEPER_UNPROVEN,           /* both are gone, and nobody will ever prove the work's death: end the life without a certificate */
    MGR__KEEPER_SWEPT               /* word closed, and every process of a partition has been seen dead */
} mgr__keeper_status;

enum {
    MGR__KEEPER_OPEN_MS      = 10000,       /* until guard and keeper must be in place */
    MGR__KEEPER_CLOSE_MS     = 500,         /* the host waits at most so long for an end that is under way, ... */
    MGR__KEEPER_GLANCE_MS    = 50,          /* ... and so long for one that takes its time */
    MGR__KEEPER_QUEUE_BYTES  = 4 << 20,     /* commands waiting for the keeper */
    MGR__KEEPER_WORDS_BYTES  = 64 << 10,    /* the five requests together */
    MGR__KEEPER_WORDS_MS     = 30000,       /* one of them is tried for so long */
    MGR__KEEPER_TRY_MS       = 2000,        /* on one address */
    MGR__KEEPER_REST_MS      = 20,          /* pause before it is tried again, ... */
    MGR__KEEPER_REST_MS_MAX  = 1000,        /* ... doubled up to this */
    MGR__KEEPER_TIDY_MS      = 3000,        /* those that only tidy up, once a certificate stands */
    MGR__KEEPER_HEIRS_MS     = 200,         /* from the certificate to the end of the session: for locks to be taken over */
    MGR__KEEPER_SWEEP_MS     = 10,          /* pause between two sweeps for what does not die at once, ... */
    MGR__KEEPER_SWEEP_MS_MAX = 500,         /* ... doubled up to this */
    MGR__KEEPER_TREE_MS      = 50,          /* a leader outlives its SIGKILL so long: what it had begun is killed one by one, so often */
    MGR__KEEPER_RENEW_TRY_MS = 500,         /* a renewal, of the session or its check, on one address */
    MGR__KEEPER_LOOK_MS      = 5,           /* between two looks for ends, where nothing tells of them */
    MGR__KEEPER_AGAIN_MS     = 20,          /* until the guard kills again */
    MGR__KEEPER_STUCK_MS     = 2000,        /* the guard leaves a keeper with an unkillable worker alone while it beats so often */
    MGR__KEEPER_STRAY_MAX    = 256,         /* left-over processes that the host waits for at a time */
    MGR__KEEPER_SCAN_MS      = 250,         /* pause between two looks of the host for what guard and keeper left */
    MGR__KEEPER_MUTE_MS      = 90000,       /* the guard ends a keeper that stands still so long over its last words */
    MGR__KEEPER_LIST_MAX     = 1 << 17,     /* processes of the whole machine that a sweep looks at */
    MGR__KEEPER_START_MS     = 10000        /* from fork to exec, by default */
};

/* ---- the shared page ----
 * Words are written and read atomically, so neither side ever waits for the other. */

#define MGR__PAGE_MAGIC   0x4d47525041474531u
#define MGR__LEASE_CLOSED ((int64_t)0)      /* for good */
#define MGR__LEASE_UNSET  ((int64_t)1)      /* no confirmation yet */

#define MGR__LOAD(at)         __atomic_load_n((at), __ATOMIC_SEQ_CST)
#define MGR__STORE(at, value) __atomic_store_n((at), (value), __ATOMIC_SEQ_CST)

/* A worker's state as the keeper saw it last. Written by the manager up to the
 * queued start, from then until EMPTY or FAILED by the keeper alone. */
typedef struct mgr__slot {
    uint64_t now;       /* state, stuck << 8, pid << 32 */
    uint64_t result;    /* status, errno << 32; set before a `now` that says so */
} mgr__slot;

/* Room is left for the names of the workers' groups below it. */
#define MGR__PAGE_GROUP_BYTES (MGR__PROCESS_CGROUP_BYTES - 64)

#define MGR__SLOT_WORDS ((MGR_WORKER_COUNT_MAX + 63u) / 64u)

typedef struct mgr__page {
    uint64_t magic;
    uint64_t nonce;             /* names this keeper's workers in MANAGER_CHILD */
    uint32_t lease_ms, kill_margin_ms, stop_grace_ms, overrun_kill_host;
    int32_t  host, guard, keeper;
    uint32_t host_umask;        /* for the workers */
    uint32_t present;           /* a bit for each descriptor from MGR__FD_SOCKET on that is what its name says */
    uint64_t host_start;        /* with the pid it names the host where there are no pidfds */
    int64_t  lease;             /* until, or CLOSED, or UNSET */
    int64_t  closed_until;      /* what it held when it was closed; 0: not closed, or not yet known */
    int64_t  guard_beat, keeper_beat;
    uint32_t guard_late, keeper_late;   /* ms by which their timers fired late, slowly forgotten */
    uint32_t in_process;        /* work inside the host: only its death proves the work's end */
    uint32_t dismissed;         /* the manager sees to everything: no last words */
    uint32_t ready;
    int32_t  start_error;       /* errno, with start_step */
    uint32_t start_step;
    uint32_t stuck;             /* all are killed, swept for, and yet not dead: said by the keeper */
    uint32_t isolate;           /* as asked for */
    uint32_t space;             /* the keeper is the first process of a PID namespace: with it everything in there dies */
    uint32_t kill_host;         /* said by a keeper in a PID namespace, from which the host cannot be signalled: the guard does it */
    uint32_t space_user;        /* ... and of a user namespace, in which there is no other id than ours */
    uint32_t group_partial;     /* a worker had to be started outside the group: its emptiness proves nothing */
    uint32_t certificate;       /* what came of the keeper's: enum mgr__words_end */
    uint32_t keeper_gone;       /* said by the guard */
    uint32_t work_dead;         /* word closed, no process of a partition is left; said by keeper or guard */
    uint32_t swept;             /* no descendant is left, agents included; said by keeper or guard */
    char     group[MGR__PAGE_GROUP_BYTES];  /* the cgroup's directory, fixed before `ready`; empty: none */
    char     life_path[PATH_MAX];   /* empty: no file to remove */
    uint64_t changed[MGR__SLOT_WORDS];  /* a bit per slot, set after `now` */
    mgr__slot slots[MGR_WORKER_COUNT_MAX];
} mgr__page;

static int64_t mgr__page_lease(const mgr__page *page) { return MGR__LOAD(&page->lease); }
static bool mgr__page_open(int64_t word) { return word != MGR__LEASE_CLOSED && word != MGR__LEASE_UNSET; }

/* Invariant 3: swapped in before the first kill, so that no late confirmation
 * gives a right to work that is being ended. */
static void mgr__page_close(mgr__page *page)
{
    int64_t was = __atomic_exchange_n(&page->lease, MGR__LEASE_CLOSED, __ATOMIC_SEQ_CST);
    if (was != MGR__LEASE_CLOSED) MGR__STORE(&page->closed_until, was);
}

/* The same unless the lease was extended since it was read: true if it is closed now. */
static bool mgr__page_close_if(mgr__page *page, int64_t word)
{
    bool closed = __atomic_compare_exchange_n(&page->lease, &word, MGR__LEASE_CLOSED, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    if (!closed) return word == MGR__LEASE_CLOSED;
    if (word != MGR__LEASE_CLOSED) MGR__STORE(&page->closed_until, word);
    return true;
}

static bool mgr__page_extend(mgr__page *page, int64_t until)
{
    int64_t word = mgr__page_lease(page);
    for (;;) {
        if (word == MGR__LEASE_CLOSED) return false;
        if (word >= until) return true;
        if (__atomic_compare_exchange_n(&page->lease, &word, until, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return true;
    }
}

/* Lateness forgets an eighth at a time: a quota that made one timer late will make the next. */
static uint32_t mgr__page_late(const mgr__page *page, uint32_t before, int64_t by_ms)
{
    uint32_t late = before - before / 8;
    if (by_ms > (int64_t)late) late = by_ms > (int64_t)page->kill_margin_ms ? page->kill_margin_ms : (uint32_t)by_ms;
    return late;
}

/* How much earlier to act for it: no more than half the margin, or there would be no lease left. */
static int64_t mgr__page_early(const mgr__page *page, uint32_t late)
{
    return late < page->kill_margin_ms / 2 ? late : page->kill_margin_ms / 2;
}

/* Guard and keeper wake at least so often, to beat: far below the quarter lease
 * after which silence means death. */
static int64_t mgr__page_beat_ms(const mgr__page *page)
{
    return mgr__max64(20, mgr__min64(2000, page->lease_ms / 12));
}

/* So long without a beat is silence, for which the host kills one of the two. */
static int64_t mgr__page_silence_ms(const mgr__page *page) { return mgr__max64(500, page->lease_ms / 4); }

/* Who lives so long after its SIGKILL is stuck. */
static int64_t mgr__page_stuck_ms(const mgr__page *page) { return mgr__max64(1000, page->kill_margin_ms); }

/* A poll's own time-out, beside a timer that is set to the same end: behind it. Without a
 * timer a few times a second, for a poll does not count suspension. */
static int mgr__page_poll_ms(int timer_fd, int64_t left_ms)
{
    return (int)(timer_fd >= 0 ? left_ms + 1000 : mgr__min64(left_ms, 250));
}

/* Descriptors of guard and keeper. */
enum {
    MGR__FD_SOCKET = 3,     /* commands in, pokes out; the guard holds it for its own pokes */
    MGR__FD_PAGE,
    MGR__FD_HOST,           /* pidfd */
    MGR__FD_OUT, MGR__FD_ERR,   /* the host's stdout and stderr, for the workers */
    MGR__FD_LIFE,           /* carries the life's flock; workers of the same user have it too */
    MGR__FD_GROUP,          /* the cgroup's directory under flock: while one of us lives nobody takes it for a left-over */
    MGR__FD_END
};

static bool mgr__page_has(const mgr__page *page, int fd) { return (page->present >> (fd - MGR__FD_SOCKET) & 1u) != 0; }

static mgr__process_ref mgr__page_host(const mgr__page *page)
{
    return mgr__process_ref_make(mgr__page_has(page, MGR__FD_HOST) ? MGR__FD_HOST : -1, page->host, page->host_start);
}

/* What a life's file says, in the machine's own byte order: only this boot reads it.
 * Host, guard and keeper are named by number and start; `view`, the first bytes of
 * `group`, is the mount through which the group is seen. */
#define MGR__LIFE_MAGIC 0x4d47524c49464531u

typedef struct mgr__life_process { uint64_t pid, start; } mgr__life_process;

typedef struct mgr__life_record {
    uint64_t magic;
    uint64_t nonce;             /* in MANAGER_CHILD of its workers */
    uint64_t partial;           /* a worker was started outside the group, or there is none: set by the keeper before it takes a step */
    char     life[64];          /* session, and the boot and PID namespace that the numbers are of; */
    char     boot[160];         /* ... written once the life has begun */
    mgr__life_process who[3];
    uint64_t view_bytes, view_device, view_inode;
    char     group[MGR__PAGE_GROUP_BYTES];  /* empty: none */
} mgr__life_record;

enum mgr__start_step {
    MGR__STEP_FORK, MGR__STEP_DESCRIPTORS, MGR__STEP_EXEC, MGR__STEP_SUBREAPER, MGR__STEP_KEEPER, MGR__STEP_MEMORY, MGR__STEP_PROC,
    MGR__STEP_CGROUP, MGR__STEP_PIDNS
};

static void mgr__page_poke(void) { mgr__process_send(MGR__FD_SOCKET, "", 1); }   /* a full socket has pokes enough */

static void mgr__page_fail(mgr__page *page, enum mgr__start_step step, int code)
{
    page->start_step = (uint32_t)step;
    MGR__STORE(&page->start_error, -code);
    mgr__page_poke();
    mgr__process_exit(1);
}

/* Of several "nonce-slot-generation;" in MANAGER_CHILD find this keeper's. False:
 * there are only other managers'. */
static bool mgr__page_child_name(uint64_t nonce, const char *text, uint64_t *slot, uint64_t *generation)
{
    for (const char *end; (end = strchr(text, ';')) != NULL; text = end + 1) {
        if (mgr__process_number(&text) != nonce || *text != '-') continue;
        text++;
        *slot = mgr__process_number(&text);
        if (*text != '-') continue;
        text++;
        *generation = mgr__process_number(&text);
        if (text == end && *slot < MGR_WORKER_COUNT_MAX) return true;
    }
    return false;
}

/* ---- commands: frames of a header and bytes, in the machine's own byte order ---- */

enum mgr__frame_kind { MGR__FRAME_SPAWN = 1, MGR__FRAME_SIGNAL, MGR__FRAME_STOP, MGR__FRAME_WORDS };

typedef struct mgr__frame { uint32_t bytes, kind; } mgr__frame;

typedef struct mgr__frame_spawn {   /* then directory, arguments, environment, each terminated */
    uint32_t slot, generation, argc, envc;
    int32_t  stop_signal;
    uint32_t stop_grace_ms, start_timeout_ms, uid, gid;
    uint8_t  set_ids, discard_output, agent, unused;
} mgr__frame_spawn;

typedef struct mgr__frame_order { uint32_t slot; int32_t signo; uint32_t within_ms; } mgr__frame_order;

/* Certificate, destroy, deregister: sent in this order once all work is dead. The
 * renewal of the session, and of the check that it hangs on: while some of it cannot be killed. */
enum { MGR__WORD_CERTIFICATE, MGR__WORD_DESTROY, MGR__WORD_DEREGISTER, MGR__WORD_RENEW, MGR__WORD_PASS, MGR__WORD_COUNT };

typedef struct mgr__frame_words {   /* then the texts, one after another */
    uint32_t address_count, renew_ms, lens[MGR__WORD_COUNT];
    struct sockaddr_storage addresses[MGR_ADDRESS_COUNT_MAX];
    socklen_t address_lens[MGR_ADDRESS_COUNT_MAX];
} mgr__frame_words;

#define MGR__SPAWN_STRINGS_BYTES (MGR_SPAWN_BYTES_MAX + PATH_MAX)
#define MGR__FRAME_BYTES_MAX \
    (sizeof(mgr__frame) + sizeof(mgr__frame_spawn) + sizeof(mgr__frame_words) + MGR__SPAWN_STRINGS_BYTES + MGR__KEEPER_WORDS_BYTES)

/* ---- the keeper process: its workers ---- */

/* A worker: its leader, and where its end stands. */
typedef struct mgr__child {
    mgr__worker_state state;
    pid_t    pid;
    uint32_t generation;
    int      stop_signal, status, error, exec_fd;
    uint32_t stop_grace_ms;
    int64_t  start_until;       /* STARTING: exec must have happened */
    int64_t  kill_at;           /* SIGKILL is due, MGR__NEVER: not stopped */
    int64_t  killed_at;         /* 0: not yet */
    uint64_t start;             /* ticks since boot */
    bool     agent, stuck;
    bool     held;              /* by an orphan of it, at the last sweep */
    bool     grouped;           /* it has a cgroup of its own */
} mgr__child;

enum mgr__keeping_phase {
    MGR__KEEPING_RUN,
    MGR__KEEPING_STOP,          /* word closed: ending the work */
    MGR__KEEPING_WORDS,         /* the work is dead: say so */
    MGR__KEEPING_HOST,          /* in-process work: the certificate waits for the host's death */
    MGR__KEEPING_AGENTS,        /* ending what is no work */
    MGR__KEEPING_OVER
};

enum { MGR__CHILD_NAME_BYTES = 1024 };

typedef struct mgr__keeping {
    mgr__page *page;
    pid_t      self, guard;
    int        guard_fd, timer_fd;
    mgr__process_ref host;
    bool       deaf;            /* the socket has ended */
    bool       manager_gone, host_dead, guard_gone, poke;
    bool       sweep;           /* something may be left that belongs to nobody alive */
    int        orphans;         /* of work, when last looked */
    int64_t    sweep_pause;
    int64_t    swept_at;        /* the last sweep that saw everything */
    struct { int64_t at; uint32_t heard; } again[MGR__WORD_COUNT];  /* RENEW, PASS: when due, the address that accepted it last */
    uint32_t   heard;           /* the address that answered last */
    enum mgr__keeping_phase phase;
    int64_t    stop_at;         /* STOP: the lease's end, when whatever is left gets SIGKILL */
    int64_t    sweep_at;
    int64_t    below_at;        /* what leaders that do not die have begun is killed again */
    int64_t    timer_at;        /* what the timer is set to */
    uint32_t   late, high;      /* children in use are below high */
    mgr__process_rank rank;
    mgr__child children[MGR_WORKER_COUNT_MAX];
    struct pollfd polls[MGR_WORKER_COUNT_MAX + 4];
    mgr__process_list list;
    char      *strings[MGR__SPAWN_STRINGS_BYTES + 4];
    char       name[MGR__CHILD_NAME_BYTES], found[MGR__CHILD_NAME_BYTES];
    char       path[MGR__PROCESS_CGROUP_BYTES];
    char       scratch[MGR_SPAWN_BYTES_MAX * 2];
    struct { mgr__frame_words head; char text[MGR__KEEPER_WORDS_BYTES]; } words;
    size_t     in_len;
    char       in[MGR__FRAME_BYTES_MAX];
} mgr__keeping;

static bool mgr__child_live(const mgr__child *c)
{
    return c->state == MGR__WORKER_STARTING || c->state == MGR__WORKER_RUNNING || c->state == MGR__WORKER_STOPPING;
}

static bool mgr__child_over(const mgr__child *c)
{
    return c->state == MGR__WORKER_FREE || c->state == MGR__WORKER_EMPTY || c->state == MGR__WORKER_FAILED;
}

static void mgr__child_say(mgr__keeping *k, mgr__child *c)
{
    size_t i = (size_t)(c - k->children);
    mgr__slot *slot = &k->page->slots[i];
    MGR__STORE(&slot->result, (uint64_t)(uint32_t)c->status | (uint64_t)(uint32_t)c->error << 32);
    MGR__STORE(&slot->now, (uint64_t)c->state | (uint64_t)c->stuck << 8 | (uint64_t)(uint32_t)c->pid << 32);
    __atomic_fetch_or(&k->page->changed[i / 64], (uint64_t)1 << (i % 64), __ATOMIC_SEQ_CST);
    k->poke = true;
}

static void mgr__child_become(mgr__keeping *k, mgr__child *c, mgr__worker_state state)
{
    c->state = state;
    mgr__child_say(k, c);
}

/* To the group at one blow. A leader may have left its group, so that none has
 * its number; but it never gets a signal twice, for many take the second SIGTERM
 * as an order to end at once. */
static void mgr__child_signal(const mgr__child *c, int signo)
{
    if (mgr__process_kill_group(c->pid, signo) < 0) mgr__process_kill(c->pid, signo);
}

/* The worker's cgroup, "slot-generation" in ours. */
static const char *mgr__child_cgroup(mgr__keeping *k, const mgr__child *c)
{
    char *at = mgr__process_append(mgr__process_append(k->path, k->page->group), "/");
    at = mgr__process_append(mgr__process_digits(at, (uint64_t)(c - k->children)), "-");
    mgr__process_digits(at, c->generation);
    return k->path;
}

static void mgr__child_kill(mgr__keeping *k, mgr__child *c, int64_t now)
{
    if (c->grouped) mgr__process_cgroup_kill(mgr__child_cgroup(k, c));
    mgr__child_signal(c, SIGKILL);
    mgr__process_kill(c->pid, SIGKILL);
    if (!c->killed_at) c->killed_at = now;
    c->kill_at = now;
}

/* Polite first. SIGCONT follows, for a stopped process takes no other signal;
 * after a second call the earlier deadline holds. */
static void mgr__child_stop(mgr__keeping *k, mgr__child *c, int64_t kill_at, int64_t now)
{
    if (!mgr__child_live(c)) return;
    bool first = c->state != MGR__WORKER_STOPPING;
    if (kill_at < c->kill_at) c->kill_at = kill_at;
    if (c->kill_at <= now) mgr__child_kill(k, c, now);
    else if (first) {
        mgr__child_signal(c, c->stop_signal);
        mgr__child_signal(c, SIGCONT);
    }
    if (first) mgr__child_become(k, c, MGR__WORKER_STOPPING);
}

/* ---- the keeper process: starting ---- */

/* What MANAGER_CHILD says, as a list: managers nest, and each must find its own. */
static void mgr__keeping_name(mgr__keeping *k, const mgr__frame_spawn *h, const char *outer)
{
    char *at = mgr__process_append(k->name, "MANAGER_CHILD=");
    at = mgr__process_append(mgr__process_digits(at, k->page->nonce), "-");
    at = mgr__process_append(mgr__process_digits(at, h->slot), "-");
    at = mgr__process_append(mgr__process_digits(at, h->generation), ";");
    size_t left = sizeof k->name - (size_t)(at - k->name);
    mgr__copy_text(at, left, mgr__str_of(outer));
}

/* Fill k->strings with argv, NULL, env, NULL. False: the frame is malformed. */
static bool mgr__keeping_unpack(mgr__keeping *k, const mgr__frame_spawn *h, char *text, size_t bytes, char **directory, char ***env)
{
    size_t count = 0, want = (size_t)h->argc + h->envc;
    const char *outer = "";
    if (!bytes || text[bytes - 1] != 0 || want >= MGR__COUNT(k->strings) - 4 || h->argc == 0) return false;
    *directory = text;
    char **to = k->strings, *end = text + bytes;
    for (text += strlen(text) + 1; text < end && count < want; text += strlen(text) + 1, count++) {
        if (count == h->argc) { *to++ = NULL; *env = to; *to++ = k->name; }
        if (count >= h->argc && strncmp(text, "MANAGER_CHILD=", 14) == 0) { outer = text + 14; continue; }
        *to++ = text;
    }
    if (h->envc == 0) { *to++ = NULL; *env = to; *to++ = k->name; }
    *to = NULL;
    mgr__keeping_name(k, h, outer);
    return count == want && text == end;
}

/* A worker is about to run where no group counts it. The life's file must say so
 * before that: where it can neither be written nor emptied it is taken away. */
static void mgr__keeping_outside(mgr__keeping *k, const mgr__child *c)
{
    uint64_t partial = 1;
    if (c->agent) return;       /* no work of a partition */
    MGR__STORE(&k->page->group_partial, 1u);
    if (!mgr__page_has(k->page, MGR__FD_LIFE)) return;
    if (mgr__process_put_at(MGR__FD_LIFE, &partial, sizeof partial, offsetof(mgr__life_record, partial)) == 0) return;
    if (mgr__process_truncate(MGR__FD_LIFE) < 0) mgr__process_unlink(k->page->life_path);
}

/* Make the worker's cgroup, which counts it from its first moment. Where one was
 * asked for by name no work is done without; else the worker runs outside. */
static int mgr__keeping_group(mgr__keeping *k, mgr__child *c)
{
    if (k->page->space) return 0;           /* the namespace is wall enough */
    if (!k->page->group[0]) { mgr__keeping_outside(k, c); return 0; }
    int code = mgr__process_cgroup_make(mgr__child_cgroup(k, c));
    c->grouped = code >= 0;
    if (code >= 0) return 0;
    if (k->page->isolate == MGR_ISOLATE_CGROUP) return code;
    mgr__keeping_outside(k, c);
    return 0;
}

static void mgr__keeping_ungroup(mgr__keeping *k, mgr__child *c)
{
    if (c->grouped) mgr__process_cgroup_remove(mgr__child_cgroup(k, c));
    c->grouped = false;
}

/* Born in its group where the kernel can do that: a move would wait for a lock of
 * the whole system's. */
static pid_t mgr__keeping_clone(mgr__keeping *k, const mgr__child *c, bool *inside)
{
    *inside = false;
    if (!c->grouped) return mgr__process_fork(false);
    int fd = mgr__process_cgroup_open(mgr__child_cgroup(k, c));
    pid_t pid = fd < 0 ? (pid_t)fd : mgr__process_fork_into(fd);
    mgr__process_close(fd);
    *inside = pid >= 0;
    return pid >= 0 ? pid : mgr__process_fork(false);
}

/* In the child. */
static int mgr__keeping_join(mgr__keeping *k, const mgr__child *c, bool inside)
{
    if (!c->grouped || inside) return 0;
    int code = mgr__process_cgroup_join(mgr__child_cgroup(k, c));
    if (code >= 0 || k->page->isolate == MGR_ISOLATE_CGROUP) return code;
    mgr__keeping_outside(k, c);
    return 0;
}

/* Rights, a threaded group, a limit of groups, an old kernel: whether a process of
 * ours can be put into a group of ours only a trial tells. 0, or -errno. */
static int mgr__keeping_try_group(mgr__keeping *k)
{
    mgr__process_end end;
    mgr__process_append(mgr__process_append(k->path, k->page->group), "/trial");
    int code = mgr__process_cgroup_make(k->path);
    if (code < 0) return code;
    int fd = mgr__process_cgroup_open(k->path);
    pid_t pid = fd < 0 ? (pid_t)fd : mgr__process_fork_into(fd);
    bool inside = pid >= 0;
    if (!inside) pid = mgr__process_fork(false);
    if (pid == 0) {
        code = inside ? 0 : mgr__process_cgroup_join(k->path);
        mgr__process_exit(code < 0 ? -code : 0);
    }
    mgr__process_close(fd);
    if (pid > 0) while (mgr__process_wait(pid, false, &end) == 0) mgr__process_poll(NULL, 0, MGR__KEEPER_LOOK_MS);
    code = pid < 0 ? (int)pid : end.status == 0 ? 0 : end.status > 0 ? -end.status : -ECHILD;
    mgr__process_cgroup_remove(k->path);
    return code;
}

/* Before the first worker. Without a group asked for by name it is done without. */
static void mgr__keeping_settle_group(mgr__keeping *k)
{
    mgr__page *page = k->page;
    int code = page->group[0] ? mgr__keeping_try_group(k) : 0;
    if (code == 0) return;
    mgr__process_cgroup_remove(page->group);
    page->group[0] = 0;
    if (page->isolate == MGR_ISOLATE_CGROUP) mgr__page_fail(page, MGR__STEP_CGROUP, code);
}

/* In the worker's process, from fork to exec. The order: what needs the keeper's
 * rights comes before the ids; the parent-death signal after them, for setuid
 * clears it; then the check that the parent did not die in between. */
static int mgr__keeping_child(mgr__keeping *k, const mgr__child *c, bool inside, const mgr__frame_spawn *h, const char *directory,
                              char *const *env)
{
    int code = mgr__process_session();      /* a group that no other worker's process can join: it tells whose an orphan is */
    if (code < 0 || (code = mgr__keeping_join(k, c, inside)) < 0) return code;
    mgr__process_rank_restore(&k->rank);
    if (!h->discard_output && mgr__page_has(k->page, MGR__FD_OUT)) mgr__process_dup_to(MGR__FD_OUT, 1);
    if (!h->discard_output && mgr__page_has(k->page, MGR__FD_ERR)) mgr__process_dup_to(MGR__FD_ERR, 2);
    bool may_write = mgr__page_has(k->page, MGR__FD_LIFE) && !h->set_ids;       /* not for another user */
    if (may_write) mgr__process_inherit(MGR__FD_LIFE, true);
    mgr__process_umask((mode_t)k->page->host_umask);
    if (h->set_ids && !k->page->space_user && (code = mgr__process_become((uid_t)h->uid, (gid_t)h->gid)) < 0) return code;
    if ((code = mgr__process_chdir(*directory ? directory : "/")) < 0) return code;
    code = mgr__process_death_signal(SIGKILL);
    if (code < 0 && code != -ENOSYS) return code;
    if (mgr__process_parent() != k->self) mgr__process_exit(127);
    mgr__process_signals_open();
    return mgr__process_exec(k->strings, env);
}

/* 0, or -errno: then nothing was started. */
static int mgr__keeping_fork(mgr__keeping *k, mgr__child *c, const mgr__frame_spawn *h, const char *directory, char *const *env)
{
    bool inside;
    int fds[2], code = mgr__process_pipe(fds);
    if (code < 0) return code;
    if ((code = mgr__keeping_group(k, c)) < 0) { mgr__process_close(fds[0]); mgr__process_close(fds[1]); return code; }
    pid_t pid = mgr__keeping_clone(k, c, &inside);
    if (pid == 0) {
        code = mgr__keeping_child(k, c, inside, h, directory, env);
        mgr__process_write(fds[1], &code, sizeof code);
        mgr__process_exit(127);
    }
    mgr__process_close(fds[1]);
    if (pid < 0) { mgr__process_close(fds[0]); mgr__keeping_ungroup(k, c); return (int)pid; }
    mgr__process stat;
    memset(&stat, 0, sizeof stat);
    mgr__process_stat(pid, &stat);
    c->start = stat.start;
    c->pid = pid;
    c->exec_fd = fds[0];
    return 0;
}

/* No work without a lease that is open now. */
static bool mgr__keeping_may_start(const mgr__keeping *k, bool agent, int64_t now)
{
    int64_t word = mgr__page_lease(k->page);
    if (k->phase != MGR__KEEPING_RUN || k->manager_gone || word == MGR__LEASE_CLOSED) return false;
    return agent || (mgr__page_open(word) && word > now);
}

static bool mgr__keeping_spawn(mgr__keeping *k, char *frame, size_t bytes, int64_t now)
{
    mgr__frame_spawn h;
    char *directory = NULL, **env = NULL;
    if (bytes < sizeof h) return false;
    memcpy(&h, frame, sizeof h);
    if (h.slot >= MGR_WORKER_COUNT_MAX || !mgr__child_over(&k->children[h.slot])) return false;
    if (!mgr__keeping_unpack(k, &h, frame + sizeof h, bytes - sizeof h, &directory, &env)) return false;
    mgr__child *c = &k->children[h.slot];
    memset(c, 0, sizeof *c);
    c->generation = h.generation;
    c->stop_signal = h.stop_signal ? h.stop_signal : SIGTERM;
    c->stop_grace_ms = h.stop_grace_ms ? h.stop_grace_ms : k->page->stop_grace_ms;
    c->start_until = now + (h.start_timeout_ms ? (int64_t)h.start_timeout_ms : (int64_t)MGR__KEEPER_START_MS);
    c->kill_at = MGR__NEVER;
    c->agent = h.agent != 0;
    c->exec_fd = -1;
    int code = mgr__keeping_may_start(k, c->agent, now) ? mgr__keeping_fork(k, c, &h, directory, env) : -ECANCELED;
    c->error = code < 0 ? -code : 0;
    if (h.slot >= k->high) k->high = h.slot + 1;
    mgr__child_become(k, c, code < 0 ? MGR__WORKER_FAILED : MGR__WORKER_STARTING);
    return true;
}

/* The pipe that closes on exec has news: an errno, or its end. */
static void mgr__keeping_exec_news(mgr__keeping *k, mgr__child *c)
{
    int code = 0, got = c->exec_fd < 0 ? -EAGAIN : mgr__process_read(c->exec_fd, &code, sizeof code);
    if (got == -EAGAIN) return;
    mgr__process_close(c->exec_fd);
    c->exec_fd = -1;
    if (got == (int)sizeof code) c->error = -code;
    else if (c->state == MGR__WORKER_STARTING) mgr__child_become(k, c, MGR__WORKER_RUNNING);
}

/* ---- the keeper process: ends, and the sweep for what they leave ---- */

static mgr__child *mgr__keeping_leader(mgr__keeping *k, pid_t pid)
{
    for (uint32_t i = 0; i < k->high; i++) if (k->children[i].pid == pid && mgr__child_live(&k->children[i])) return &k->children[i];
    return NULL;
}

/* Something ended: look at once what it left. */
static void mgr__keeping_sweep_soon(mgr__keeping *k)
{
    k->sweep = true;
    k->sweep_at = 0;
    k->sweep_pause = MGR__KEEPER_SWEEP_MS;
}

/* One that said why it could not exec has left nothing; one that was killed for
 * taking too long may have got there after all, so its tree is swept first. */
static void mgr__keeping_exited(mgr__keeping *k, mgr__child *c, int status)
{
    mgr__keeping_exec_news(k, c);
    mgr__process_close(c->exec_fd);
    c->exec_fd = -1;
    c->status = status;
    c->stuck = false;
    c->killed_at = 0;
    mgr__keeping_sweep_soon(k);
    bool nothing = c->error && c->error != ETIMEDOUT;
    if (nothing) mgr__keeping_ungroup(k, c);
    mgr__child_become(k, c, nothing ? MGR__WORKER_FAILED : MGR__WORKER_EXITED);
}

/* Reap leaders and orphans alike. A leader's group is killed while its zombie
 * still pins the number: afterwards it could be a stranger's. */
static void mgr__keeping_reap(mgr__keeping *k)
{
    mgr__process_end end;
    while (mgr__process_wait(0, true, &end) == 1) {
        mgr__child *c = mgr__keeping_leader(k, end.pid);
        if (c) mgr__process_kill_group(end.pid, SIGKILL);
        if (c && c->grouped) mgr__process_cgroup_kill(mgr__child_cgroup(k, c));
        if (mgr__process_wait(end.pid, false, &end) != 1) return;
        if (c) mgr__keeping_exited(k, c, end.status);
        else mgr__keeping_sweep_soon(k);
    }
}

/* By the cgroup that an orphan is in, from whose path it cannot take our nonce away. */
static bool mgr__keeping_group_name(mgr__keeping *k, pid_t pid, uint64_t *slot, uint64_t *generation)
{
    const char *at = k->page->group[0] ? mgr__process_cgroup_of(pid, k->scratch, sizeof k->scratch) : NULL;
    const char *name = strrchr(k->page->group, '/');
    if (!at || !name || !(at = strstr(at, name))) return false;
    at += strlen(name);
    if (*at++ != '/') return false;
    *slot = mgr__process_number(&at);
    if (*at++ != '-') return false;
    *generation = mgr__process_number(&at);
    return *slot < MGR_WORKER_COUNT_MAX;
}

enum mgr__owner { MGR__OWNER_KNOWN, MGR__OWNER_FORMER, MGR__OWNER_UNKNOWN };

/* Whose orphan is it? By its cgroup; else, it may have been moved out, by its
 * process group, whose number cannot pass to another while it has members, and which
 * nobody joins but from its session; else by the name in its environment. */
static enum mgr__owner mgr__keeping_owner(mgr__keeping *k, const mgr__process *p, mgr__child **owner)
{
    uint64_t slot = 0, generation = 0;
    bool named = mgr__keeping_group_name(k, p->pid, &slot, &generation);
    for (uint32_t i = 0; i < k->high && !named; i++) {
        *owner = &k->children[i];
        if (!mgr__child_over(*owner) && (*owner)->pid == p->group) return MGR__OWNER_KNOWN;
    }
    if (!named) named = mgr__process_environ(p->pid, "MANAGER_CHILD=", k->scratch, sizeof k->scratch, k->found, sizeof k->found)
                        && mgr__page_child_name(k->page->nonce, k->found, &slot, &generation);
    if (!named) return MGR__OWNER_UNKNOWN;
    *owner = &k->children[slot];
    return (*owner)->generation == (uint32_t)generation && !mgr__child_over(*owner) ? MGR__OWNER_KNOWN : MGR__OWNER_FORMER;
}

static bool mgr__keeping_working(const mgr__keeping *k)
{
    for (uint32_t i = 0; i < k->high; i++) if (!k->children[i].agent && mgr__child_live(&k->children[i])) return true;
    return false;
}

/* An orphan without a name holds every tree that it may belong to, and is killed
 * as soon as one of them has to be empty: whose it is cannot be known, and a
 * partition must not wait for ever. */
static bool mgr__keeping_nameless(mgr__keeping *k, const mgr__process *p)
{
    bool doomed = k->phase != MGR__KEEPING_RUN && !mgr__keeping_working(k);
    for (uint32_t i = 0; i < k->high; i++) {
        mgr__child *c = &k->children[i];
        bool ending = c->state == MGR__WORKER_EXITED || (mgr__child_live(c) && c->killed_at);
        if (ending && c->start <= p->start) c->held = doomed = true;
    }
    return doomed;
}

/* True: the orphan stands in the way of saying that all work is dead. */
static bool mgr__keeping_orphan(mgr__keeping *k, const mgr__process *p)
{
    mgr__child *c = NULL;
    bool doomed = true, agents = false;
    switch (mgr__keeping_owner(k, p, &c)) {
    case MGR__OWNER_KNOWN:
        c->held = true;
        agents = c->agent;
        doomed = c->state == MGR__WORKER_EXITED || c->killed_at;
        break;
    case MGR__OWNER_FORMER: break;
    case MGR__OWNER_UNKNOWN: doomed = mgr__keeping_nameless(k, p); break;
    }
    if (doomed) mgr__process_kill_child(p);
    return !agents;
}

/* A cgroup may hold what is no child of ours (yet): below a leader's child that
 * does not die, say. */
static bool mgr__keeping_group_held(mgr__keeping *k, const mgr__child *c)
{
    if (!c->grouped || mgr__process_cgroup_populated(mgr__child_cgroup(k, c)) == 0) return false;
    mgr__process_cgroup_kill(k->path);
    return true;
}

/* Kill what ended workers left, find which trees are empty. Without the list
 * nothing is called empty but by the kernel's own word that there is no child
 * (invariant 4). */
static void mgr__keeping_sweep(mgr__keeping *k)
{
    mgr__process_end end;
    bool childless = mgr__process_wait(0, true, &end) == -ECHILD;
    k->orphans = 0;
    k->list.count = 0;
    if (!childless) mgr__process_list_children(&k->list);
    bool whole = childless || k->list.whole;
    for (uint32_t i = 0; i < k->high; i++) k->children[i].held = false;
    for (size_t i = 0; i < k->list.count; i++) {
        if (mgr__keeping_leader(k, k->list.at[i].pid)) continue;
        if (mgr__keeping_orphan(k, &k->list.at[i])) k->orphans++;
    }
    k->sweep = !whole;
    for (uint32_t i = 0; i < k->high; i++) {
        mgr__child *c = &k->children[i];
        if (c->state != MGR__WORKER_EXITED) continue;
        if (!whole || c->held || mgr__keeping_group_held(k, c)) { k->sweep = true; continue; }
        c->stuck = false;
        mgr__keeping_ungroup(k, c);
        mgr__child_become(k, c, c->error ? MGR__WORKER_FAILED : MGR__WORKER_EMPTY);
    }
    if (k->phase != MGR__KEEPING_RUN && k->orphans) k->sweep = true;
    if (whole) k->swept_at = mgr__process_now_ms();
}

/* What does not die at once is looked at less and less often. */
static void mgr__keeping_sweep_paced(mgr__keeping *k, int64_t now)
{
    if (!k->sweep || now < k->sweep_at) return;
    mgr__keeping_sweep(k);
    k->sweep_at = now + k->sweep_pause;
    k->sweep_pause = mgr__min64(k->sweep_pause * 2, MGR__KEEPER_SWEEP_MS_MAX);
}

/* ---- the keeper process: deadlines ---- */

static void mgr__keeping_stuck(mgr__keeping *k, mgr__child *c, int64_t now)
{
    if (c->stuck || !c->killed_at || now - c->killed_at < mgr__page_stuck_ms(k->page)) return;
    c->stuck = true;
    mgr__child_say(k, c);
}

/* A leader in an uninterruptible wait keeps its group's number but not its
 * descendants from working on: they are killed one by one. Nor can one be reaped that
 * is dead but traced: what it had begun is ours then, and may be what traces it. */
static void mgr__keeping_kill_tree(mgr__keeping *k, const mgr__child *c, int64_t now)
{
    if (now < k->below_at) return;
    k->below_at = now + MGR__KEEPER_TREE_MS;
    mgr__process_kill_below(c->pid, &k->list);
    mgr__keeping_sweep_soon(k);
}

static void mgr__keeping_deadlines(mgr__keeping *k, int64_t now)
{
    for (uint32_t i = 0; i < k->high; i++) {
        mgr__child *c = &k->children[i];
        if (c->state == MGR__WORKER_EXITED) { if (!c->killed_at) c->killed_at = now; mgr__keeping_stuck(k, c, now); continue; }
        if (!mgr__child_live(c)) continue;
        if (c->exec_fd >= 0 && now >= c->start_until && !c->killed_at) {
            c->error = ETIMEDOUT;
            mgr__child_kill(k, c, now);
        }
        if (now >= c->kill_at) {
            if (c->killed_at && now - c->killed_at >= MGR__KEEPER_TREE_MS) mgr__keeping_kill_tree(k, c, now);
            mgr__child_kill(k, c, now);
            mgr__keeping_stuck(k, c, now);
        }
    }
}

static int64_t mgr__keeping_stop_due(const mgr__keeping *k, int64_t word)
{
    if (!mgr__page_open(word)) return MGR__NEVER;
    return word - (int64_t)k->page->stop_grace_ms - mgr__page_early(k->page, k->late);
}

/* When the loop must turn next. */
static int64_t mgr__keeping_due(const mgr__keeping *k, int64_t now)
{
    int64_t due = now + mgr__page_beat_ms(k->page);
    if (k->phase == MGR__KEEPING_WORDS) return now;
    if (k->phase == MGR__KEEPING_RUN) due = mgr__min64(due, mgr__keeping_stop_due(k, mgr__page_lease(k->page)));
    if (k->sweep) due = mgr__min64(due, k->sweep_at);
    if (k->phase == MGR__KEEPING_STOP && k->stop_at > now) due = mgr__min64(due, k->stop_at);
    if (k->phase == MGR__KEEPING_STOP) due = mgr__min64(due, now + MGR__KEEPER_SWEEP_MS_MAX);     /* well below MGR__KEEPER_STUCK_MS */
    for (uint32_t i = 0; i < k->high; i++) {
        const mgr__child *c = &k->children[i];
        if (!mgr__child_live(c)) continue;
        if (c->exec_fd >= 0 && !c->killed_at) due = mgr__min64(due, c->start_until);
        due = mgr__min64(due, c->killed_at ? mgr__max64(c->kill_at, now) + MGR__KEEPER_TREE_MS / 2 : c->kill_at);
    }
    return due;
}

/* ---- the keeper process: last words ---- */

static bool mgr__keeping_host_dead(const mgr__keeping *k) { return k->host_dead || mgr__process_ref_ended(&k->host); }

/* The status in "HTTP/1.1 200", or -errno. */
static int mgr__words_status(int fd, int64_t until)
{
    char head[12];
    size_t len = 0;
    while (len < sizeof head) {
        int64_t left = until - mgr__process_now_ms();
        if (left <= 0 || mgr__process_poll_one(fd, POLLIN, (int)left) <= 0) return -ETIMEDOUT;
        int got = mgr__process_read(fd, head + len, sizeof head - len);
        if (got == 0) return -ECONNRESET;
        if (got < 0 && got != -EAGAIN) return got;
        if (got > 0) len += (size_t)got;
    }
    if (memcmp(head, "HTTP/1.", 7) != 0) return -EPROTO;
    for (int i = 9; i < 12; i++) if (head[i] < '0' || head[i] > '9') return -EPROTO;
    return (head[9] - '0') * 100 + (head[10] - '0') * 10 + (head[11] - '0');
}

static int mgr__words_try(const struct sockaddr_storage *address, socklen_t address_len, const char *text, size_t len, int64_t within_ms)
{
    int64_t until = mgr__process_now_ms() + within_ms;
    int fd = mgr__process_connect(address, address_len), result = 0;
    if (fd < 0) return fd;
    for (size_t sent = 0; sent < len && result >= 0; ) {
        int64_t left = until - mgr__process_now_ms();
        if (left <= 0 || mgr__process_poll_one(fd, POLLOUT, (int)left) <= 0) { result = -ETIMEDOUT; break; }
        int put = mgr__process_send(fd, text + sent, len - sent);
        if (put > 0) sent += (size_t)put;
        else if (put != -EAGAIN) result = put;
    }
    if (result >= 0) result = mgr__words_status(fd, until);
    mgr__process_close(fd);
    return result;
}

/* Beating, and over at once when the manager sees to everything. */
static void mgr__keeping_pause(mgr__keeping *k, int64_t pause_ms)
{
    int64_t until = mgr__process_now_ms() + pause_ms;
    for (int64_t now = until - pause_ms; now < until && !MGR__LOAD(&k->page->dismissed); now = mgr__process_now_ms()) {
        mgr__process_poll(NULL, 0, (int)mgr__min64(20, until - now));
        MGR__STORE(&k->page->keeper_beat, mgr__process_now_ms());
    }
}

/* What came of a word. REFUSED: by every address (4xx), and so again if it were repeated. */
enum mgr__words_end { MGR__WORDS_NONE, MGR__WORDS_UNHEARD, MGR__WORDS_ACCEPTED, MGR__WORDS_REFUSED, MGR__WORDS_DISMISSED };

/* Once to each address, the one that answered last first. Each has its share of what is
 * left, so that the dead ones leave time for the living. */
static enum mgr__words_end mgr__words_round(mgr__keeping *k, int which, const char *text, int64_t until)
{
    const mgr__frame_words *h = &k->words.head;
    uint32_t first = k->heard, refused = 0;
    for (uint32_t i = 0; i < h->address_count; i++) {
        int64_t now = mgr__process_now_ms(), share = (until - now) / (int64_t)(h->address_count - i);
        MGR__STORE(&k->page->keeper_beat, now);
        if (MGR__LOAD(&k->page->dismissed)) return MGR__WORDS_DISMISSED;
        if (now >= until) return MGR__WORDS_UNHEARD;
        uint32_t at = (first + i) % h->address_count;
        int64_t within = mgr__max64(1, mgr__min64(MGR__KEEPER_TRY_MS, share));
        int status = mgr__words_try(&h->addresses[at], h->address_lens[at], text, h->lens[which], within);
        if (status >= 200 && status < 300) { k->heard = at; return MGR__WORDS_ACCEPTED; }
        if (status >= 400 && status < 500 && status != 429) refused++;
    }
    return refused == h->address_count ? MGR__WORDS_REFUSED : MGR__WORDS_UNHEARD;
}

static const char *mgr__words_text(const mgr__keeping *k, int which)
{
    const char *text = k->words.text;
    for (int i = 0; i < which; i++) text += k->words.head.lens[i];
    return text;
}

/* Until an address accepts (2xx), or all refuse: one that cannot be reached might have
 * accepted. Each of the three is a fact or names one life, so it may arrive twice or late. */
static enum mgr__words_end mgr__words_send(mgr__keeping *k, int which, int64_t within_ms)
{
    const char *text = mgr__words_text(k, which);
    int64_t until = mgr__process_now_ms() + within_ms, pause = MGR__KEEPER_REST_MS;
    if (!k->words.head.lens[which] || !k->words.head.address_count) return MGR__WORDS_NONE;
    for (;;) {
        enum mgr__words_end end = mgr__words_round(k, which, text, until);
        int64_t left = until - mgr__process_now_ms();
        if (end != MGR__WORDS_UNHEARD || left <= 0) return end;
        mgr__keeping_pause(k, mgr__min64(pause, left));
        pause = mgr__min64(MGR__KEEPER_REST_MS_MAX, pause * 2);
    }
}

/* With the certificate accepted the life's file has nothing left to prove. */
static bool mgr__keeping_certify(mgr__keeping *k)
{
    enum mgr__words_end end = mgr__words_send(k, MGR__WORD_CERTIFICATE, MGR__KEEPER_WORDS_MS);
    bool accepted = end == MGR__WORDS_ACCEPTED;
    MGR__STORE(&k->page->certificate, (uint32_t)end);
    if (accepted && k->page->life_path[0]) mgr__process_unlink(k->page->life_path);
    return accepted;
}

/* Invariant 4 for in-process work: while the host lives nobody certifies. */
static bool mgr__keeping_may_certify(const mgr__keeping *k)
{
    return !MGR__LOAD(&k->page->in_process) || mgr__keeping_host_dead(k);
}

/* The certificate is all that the heirs need. The end of the session changes the
 * owner keys' indexes, and would come between their reads and their locks. */
static void mgr__keeping_speak(mgr__keeping *k)
{
    bool certify = mgr__keeping_may_certify(k);
    bool stands = certify && mgr__keeping_certify(k);
    if (stands) mgr__keeping_pause(k, MGR__KEEPER_HEIRS_MS);
    mgr__words_send(k, MGR__WORD_DESTROY, stands ? MGR__KEEPER_TIDY_MS : MGR__KEEPER_WORDS_MS);
    mgr__words_send(k, MGR__WORD_DEREGISTER, MGR__KEEPER_TIDY_MS);
    k->phase = certify ? MGR__KEEPING_AGENTS : MGR__KEEPING_HOST;
}

/* ---- the keeper process: from lease to end ---- */

/* The word has been closed; only now does the first signal go out. */
static void mgr__keeping_begin_stop(mgr__keeping *k, int64_t stop_at, int64_t now)
{
    MGR_ASSERT(mgr__page_lease(k->page) == MGR__LEASE_CLOSED);
    k->phase = MGR__KEEPING_STOP;
    k->stop_at = stop_at;
    k->poke = true;
    mgr__keeping_sweep_soon(k);
    for (uint32_t i = 0; i < k->high; i++) {
        mgr__child *c = &k->children[i];
        if (!c->agent) mgr__child_stop(k, c, mgr__min64(stop_at, now + c->stop_grace_ms), now);
    }
}

/* Whatever ends the right to work: the lease, the manager, the guard, a closed word.
 * A lease that is extended at the last moment goes on. */
static void mgr__keeping_watch(mgr__keeping *k, int64_t now)
{
    int64_t word = mgr__page_lease(k->page), grace = now + k->page->stop_grace_ms;
    bool gone = k->manager_gone || k->guard_gone || MGR__LOAD(&k->page->dismissed);
    if (gone) mgr__page_close(k->page);
    else if (word != MGR__LEASE_CLOSED && (now < mgr__keeping_stop_due(k, word) || !mgr__page_close_if(k->page, word))) return;
    int64_t was = MGR__LOAD(&k->page->closed_until);
    int64_t until = mgr__page_open(was) ? was : mgr__page_open(word) ? word : grace;
    mgr__keeping_begin_stop(k, mgr__min64(grace, until - mgr__page_early(k->page, k->late)), now);
}

/* In-process work that may be ended by force goes at the lease's end. True: the
 * host is to die and does not yet lie there. */
static bool mgr__keeping_overrun(const mgr__keeping *k, int64_t now)
{
    if (!k->page->overrun_kill_host || !MGR__LOAD(&k->page->in_process) || MGR__LOAD(&k->page->dismissed)) return false;
    if (mgr__keeping_host_dead(k)) return false;
    if (k->page->space && k->guard_gone) return false;      /* it alone could have done it: the host is waited for without the session */
    if (now >= k->stop_at && k->page->space) MGR__STORE(&k->page->kill_host, 1u);
    else if (now >= k->stop_at) mgr__process_ref_signal(&k->host, SIGKILL);
    return true;
}

/* Whether all work is dead. */
static bool mgr__keeping_work_over(const mgr__keeping *k, int64_t now)
{
    if (mgr__keeping_overrun(k, now) || k->sweep) return false;
    for (uint32_t i = 0; i < k->high; i++) if (!k->children[i].agent && !mgr__child_over(&k->children[i])) return false;
    return true;
}

/* SIGKILL is out to all, a sweep has followed, and something lives on. The guard
 * could do no more than this: it is told to leave us alone while we beat. */
static void mgr__keeping_note_stuck(mgr__keeping *k, int64_t now)
{
    if (now < k->stop_at + k->page->kill_margin_ms / 4 || (k->sweep && k->swept_at < k->stop_at)) return;
    MGR__STORE(&k->page->stuck, 1u);
}

/* To one address, for the loop must go on turning; to the next if it is not accepted:
 * only the agent that has the check can pass it. False: it is not due. */
static bool mgr__keeping_say_again(mgr__keeping *k, int which, int64_t now)
{
    const mgr__frame_words *h = &k->words.head;
    if (!h->lens[which] || !h->address_count || now < k->again[which].at) return false;
    uint32_t i = k->again[which].heard++ % h->address_count;
    int status = mgr__words_try(&h->addresses[i], h->address_lens[i], mgr__words_text(k, which), h->lens[which], MGR__KEEPER_RENEW_TRY_MS);
    bool accepted = status >= 200 && status < 300;
    if (accepted) k->again[which].heard = i;
    k->again[which].at = now + (accepted ? (int64_t)h->renew_ms : mgr__min64(h->renew_ms, MGR__KEEPER_REST_MS_MAX));
    return true;
}

/* Its partition is not free before it is dead: as long as the session stands,
 * nobody else starts. The session falls with its check, which may be the sooner
 * to run out. One of both at a turn. */
static void mgr__keeping_renew(mgr__keeping *k, int64_t now)
{
    if (MGR__LOAD(&k->page->dismissed) || now < k->stop_at + mgr__page_stuck_ms(k->page)) return;
    if (!mgr__keeping_say_again(k, MGR__WORD_PASS, now)) mgr__keeping_say_again(k, MGR__WORD_RENEW, now);
}

static void mgr__keeping_stop_more(mgr__keeping *k, int64_t now)
{
    mgr__page *page = k->page;
    if (!mgr__keeping_work_over(k, now)) {
        mgr__keeping_note_stuck(k, now);
        mgr__keeping_renew(k, now);
        return;
    }
    MGR__STORE(&page->stuck, 0u);
    MGR__STORE(&page->work_dead, 1u);
    mgr__page_poke();
    k->phase = MGR__LOAD(&page->dismissed) ? MGR__KEEPING_AGENTS : MGR__KEEPING_WORDS;
}

static void mgr__keeping_end_agents(mgr__keeping *k, int64_t now)
{
    mgr__process_end end;
    for (uint32_t i = 0; i < k->high; i++) {
        mgr__child *c = &k->children[i];
        if (c->state != MGR__WORKER_STOPPING) mgr__child_stop(k, c, now + c->stop_grace_ms, now);
    }
    if (mgr__process_wait(0, true, &end) != -ECHILD) return;
    if (k->page->group[0]) mgr__process_cgroup_remove(k->page->group);
    MGR__STORE(&k->page->swept, 1u);
    mgr__page_poke();
    k->phase = MGR__KEEPING_OVER;
}

static void mgr__keeping_step(mgr__keeping *k, int64_t now)
{
    switch (k->phase) {
    case MGR__KEEPING_RUN: mgr__keeping_watch(k, now); break;
    case MGR__KEEPING_STOP: mgr__keeping_stop_more(k, now); break;
    case MGR__KEEPING_WORDS: mgr__keeping_speak(k); break;
    case MGR__KEEPING_HOST:
        if (MGR__LOAD(&k->page->dismissed)) k->phase = MGR__KEEPING_AGENTS;
        else if (mgr__keeping_may_certify(k)) { mgr__keeping_certify(k); k->phase = MGR__KEEPING_AGENTS; }
        break;
    case MGR__KEEPING_AGENTS: mgr__keeping_end_agents(k, now); break;
    case MGR__KEEPING_OVER: break;
    }
}

static void mgr__keeping_steps(mgr__keeping *k, int64_t now)
{
    enum mgr__keeping_phase before;
    do { before = k->phase; mgr__keeping_step(k, now); } while (k->phase != before);
}

/* ---- the keeper process: commands ---- */

static bool mgr__keeping_words(mgr__keeping *k, const char *frame, size_t bytes)
{
    mgr__frame_words h;
    if (bytes < sizeof h) return false;
    memcpy(&h, frame, sizeof h);
    size_t texts = 0;
    for (int i = 0; i < MGR__WORD_COUNT; i++) texts += h.lens[i];
    if (texts > sizeof k->words.text || bytes != sizeof h + texts || h.address_count > MGR_ADDRESS_COUNT_MAX) return false;
    k->words.head = h;
    memcpy(k->words.text, frame + sizeof h, texts);
    return true;
}

/* A signal goes to the leader alone, as kill(1) would; a stop is for the group. */
static bool mgr__keeping_order(mgr__keeping *k, uint32_t kind, const char *frame, size_t bytes, int64_t now)
{
    mgr__frame_order order;
    if (bytes != sizeof order) return false;
    memcpy(&order, frame, sizeof order);
    if (order.slot >= MGR_WORKER_COUNT_MAX) return false;
    mgr__child *c = &k->children[order.slot];
    if (!mgr__child_live(c)) return true;       /* it ended meanwhile */
    if (kind == MGR__FRAME_SIGNAL) mgr__process_kill(c->pid, order.signo);
    else mgr__child_stop(k, c, now + order.within_ms, now);
    return true;
}

static bool mgr__keeping_frame(mgr__keeping *k, uint32_t kind, char *frame, size_t bytes)
{
    int64_t now = mgr__process_now_ms();
    switch (kind) {
    case MGR__FRAME_SPAWN: return mgr__keeping_spawn(k, frame, bytes, now);
    case MGR__FRAME_SIGNAL: case MGR__FRAME_STOP: return mgr__keeping_order(k, kind, frame, bytes, now);
    case MGR__FRAME_WORDS: return mgr__keeping_words(k, frame, bytes);
    default: return false;
    }
}

/* False: what the manager sends is no frame; it is then as good as gone. */
static bool mgr__keeping_frames(mgr__keeping *k)
{
    size_t at = 0;
    mgr__frame head;
    while (k->in_len - at >= sizeof head) {
        memcpy(&head, k->in + at, sizeof head);
        if (head.bytes > sizeof k->in - sizeof head) return false;
        if (k->in_len - at < sizeof head + head.bytes) break;
        if (!mgr__keeping_frame(k, head.kind, k->in + at + sizeof head, head.bytes)) return false;
        at += sizeof head + head.bytes;
    }
    memmove(k->in, k->in + at, k->in_len - at);
    k->in_len -= at;
    return true;
}

/* What a dead manager had sent counts as well: it may be better last words. */
static void mgr__keeping_listen(mgr__keeping *k)
{
    while (!k->deaf) {
        int got = mgr__process_read(MGR__FD_SOCKET, k->in + k->in_len, sizeof k->in - k->in_len);
        if (got == -EAGAIN) return;
        if (got > 0) k->in_len += (size_t)got;
        if (got <= 0 || !mgr__keeping_frames(k)) k->deaf = k->manager_gone = true;
    }
}

/* ---- the keeper process: its loop ---- */

static void mgr__keeping_want(struct pollfd *at, int fd)
{
    at->fd = fd;        /* negative: poll passes it over */
    at->events = POLLIN;
    at->revents = 0;
}

static void mgr__keeping_late(mgr__keeping *k, int64_t now)
{
    if (!k->timer_at || now < k->timer_at) return;
    k->late = mgr__page_late(k->page, k->late, now - k->timer_at);
    MGR__STORE(&k->page->keeper_late, k->late);
}

static void mgr__keeping_wait(mgr__keeping *k)
{
    int64_t now = mgr__process_now_ms(), due = mgr__keeping_due(k, now);
    size_t count = 4;
    mgr__keeping_want(&k->polls[0], k->deaf ? -1 : MGR__FD_SOCKET);
    mgr__keeping_want(&k->polls[1], k->timer_fd);
    mgr__keeping_want(&k->polls[2], k->guard_gone ? -1 : k->guard_fd);
    mgr__keeping_want(&k->polls[3], k->host_dead ? -1 : k->host.fd);
    for (uint32_t i = 0; i < k->high; i++) {
        const mgr__child *c = &k->children[i];
        if (c->exec_fd >= 0 && mgr__child_live(c)) mgr__keeping_want(&k->polls[count++], c->exec_fd);
    }
    mgr__process_timer_set(k->timer_fd, due);
    k->timer_at = due;
    mgr__process_poll(k->polls, count, mgr__page_poll_ms(k->timer_fd, mgr__max64(0, due - now)));
    mgr__keeping_late(k, mgr__process_now_ms());
    if (k->polls[2].revents) k->guard_gone = true;
    if (k->polls[3].revents || (k->host.fd < 0 && mgr__keeping_host_dead(k))) k->manager_gone = k->host_dead = true;
}

static void mgr__keeping_turn(mgr__keeping *k)
{
    int64_t now = mgr__process_now_ms();
    MGR__STORE(&k->page->keeper_beat, now);
    mgr__keeping_deadlines(k, now);     /* first: after a late wake-up nobody is called stuck who was not yet killed */
    mgr__keeping_steps(k, now);
    mgr__keeping_reap(k);
    mgr__keeping_deadlines(k, now);
    for (uint32_t i = 0; i < k->high; i++) if (mgr__child_live(&k->children[i])) mgr__keeping_exec_news(k, &k->children[i]);
    mgr__keeping_sweep_paced(k, now);
    if (k->phase == MGR__KEEPING_STOP) mgr__keeping_steps(k, now);    /* the last may have been reaped: speak now, not at the next tick */
    if (k->poke) mgr__page_poke();
    k->poke = false;
}

/* Ids first: without them there is no right to mount. */
static void mgr__keeping_settle_space(mgr__page *page, uint32_t uid, uint32_t gid)
{
    int code = page->space_user ? mgr__process_map_ids(uid, gid) : 0;
    if (code >= 0) code = mgr__process_mount_proc();
    if (code < 0) mgr__page_fail(page, MGR__STEP_PIDNS, code);
}

/* The keeper's whole life. */
static void mgr__keeping_main(mgr__page *page, int guard_fd, uint32_t uid, uint32_t gid)
{
    /* Not SIGKILL: should the guard die, the keeper ends the work and says so. But
     * it must be able to: a keeper that was stopped by hand goes on. */
    mgr__process_death_signal(SIGCONT);
    if (page->space) mgr__keeping_settle_space(page, uid, gid);
    mgr__keeping *k = (mgr__keeping *)mgr__process_pages(sizeof *k);
    if (!k || !mgr__process_list_make(&k->list, MGR__KEEPER_LIST_MAX)) { mgr__page_fail(page, MGR__STEP_MEMORY, -ENOMEM); return; }
    mgr__process_name("mgr-keeper");
    int code = mgr__process_subreaper();
    if (code < 0) mgr__page_fail(page, MGR__STEP_SUBREAPER, code);
    k->page = page;
    k->self = mgr__process_self();
    k->guard_fd = guard_fd;
    k->timer_fd = mgr__process_timer_open();
    k->host = mgr__page_host(page);
    mgr__process_rank_raise(&k->rank);
    mgr__process self;
    if (!mgr__process_stat(k->self, &self)) mgr__page_fail(page, MGR__STEP_PROC, -ENOENT);
    mgr__keeping_settle_group(k);
    while (!MGR__LOAD(&page->keeper)) {     /* our number outside only the guard knows */
        if (mgr__process_poll_one(guard_fd, POLLIN, 1) > 0) mgr__process_exit(1);
    }
    MGR__STORE(&page->keeper_beat, mgr__process_now_ms());
    MGR__STORE(&page->ready, 1u);
    mgr__page_poke();
    while (k->phase != MGR__KEEPING_OVER) {
        mgr__keeping_wait(k);
        mgr__keeping_listen(k);
        mgr__keeping_turn(k);
    }
    bool ours = !k->guard_gone && !page->space;
    if (ours) mgr__process_kill(mgr__process_parent(), SIGCONT);    /* a guard that was stopped by hand would stay for good */
    mgr__process_exit(0);
}

/* ---- the guard process ---- */

typedef struct mgr__guard {
    mgr__page *page;
    pid_t      keeper;
    mgr__process_ref keeper_ref;
    int        timer_fd;
    int64_t    seen;            /* the lease as last seen open */
    int64_t    closed_at;       /* when it was first seen closed */
    int64_t    host_gone_at;    /* when the host was first seen dead; 0: it lives */
    mgr__process_ref host;
    int64_t    timer_at;
    uint32_t   late;
    mgr__process_list list;
} mgr__guard;

/* When the keeper has had its chance. Before the first lease no end of one is to come:
 * then the host's death is the sign, for the keeper closes the word once it sees that,
 * unless it stands still. The word may be closed with its old value
 * not yet noted, the keeper having died in between: then what was seen last. */
static int64_t mgr__guard_deadline(mgr__guard *g, int64_t now)
{
    const mgr__page *page = g->page;
    int64_t word = mgr__page_lease(page), was = MGR__LOAD(&page->closed_until);
    int64_t margin = page->kill_margin_ms / 2 - mgr__page_early(page, g->late) / 2;
    if (mgr__page_open(word)) { g->seen = word; return word + margin; }
    if (word == MGR__LEASE_UNSET) return g->host_gone_at ? g->host_gone_at + page->stop_grace_ms + page->kill_margin_ms : MGR__NEVER;
    if (!g->closed_at) g->closed_at = now;
    if (mgr__page_open(was)) return was + margin;
    return g->seen ? g->seen + margin : g->closed_at + page->stop_grace_ms + margin;
}

static int64_t mgr__guard_tick_ms(const mgr__guard *g)
{
    int64_t beat = mgr__page_beat_ms(g->page);
    bool may_kill_host = g->page->space && g->page->overrun_kill_host && MGR__LOAD(&g->page->in_process);
    if (may_kill_host) beat = mgr__min64(beat, g->page->kill_margin_ms / 8 + 1);
    return mgr__page_lease(g->page) == MGR__LEASE_UNSET ? mgr__max64(10, mgr__min64(beat, g->page->kill_margin_ms / 4)) : beat;
}

static void mgr__guard_wait(mgr__guard *g, int64_t due)
{
    struct pollfd polls[2];
    int64_t now = mgr__process_now_ms();
    mgr__keeping_want(&polls[0], g->timer_fd);
    mgr__keeping_want(&polls[1], g->keeper_ref.fd);
    mgr__process_timer_set(g->timer_fd, due);
    mgr__process_poll(polls, 2, mgr__page_poll_ms(g->timer_fd, mgr__max64(0, due - now)));
    now = mgr__process_now_ms();
    if (now < due) return;
    g->late = mgr__page_late(g->page, g->late, now - due);
    MGR__STORE(&g->page->guard_late, g->late);
}

/* Past the deadline: a keeper whose heart beats is not dead, only slow. */
static bool mgr__guard_may_help(const mgr__page *page, int64_t now, int64_t deadline)
{
    int64_t more = page->kill_margin_ms / 4;
    return now < deadline + more && now - MGR__LOAD(&page->keeper_beat) <= mgr__page_beat_ms(page) + more;
}

/* A slow keeper's workers are killed for it, so that it can still reap and certify
 * them: with the keeper its word would be lost, and others would wait the delay. */
static void mgr__guard_end(mgr__guard *g, int64_t now, int64_t deadline)
{
    mgr__page_close(g->page);
    if (!mgr__guard_may_help(g->page, now, deadline)) { mgr__process_kill(g->keeper, SIGKILL); return; }
    if (g->page->group[0]) mgr__process_cgroup_kill(g->page->group);
    mgr__process_kill_below(g->keeper, &g->list);
}

/* A dead one that is traced, by a worker even, can be reaped only when its tracer has
 * asked for its end, or is dead too. */
static bool mgr__guard_keeper_dead(const mgr__guard *g)
{
    mgr__process_end end;
    return mgr__process_wait(g->keeper, true, &end) != 0 || mgr__process_ref_ended(&g->keeper_ref);
}

/* Returns when the keeper is dead, by its own end or by ours. */
static void mgr__guard_watch(mgr__guard *g)
{
    while (!mgr__guard_keeper_dead(g)) {
        int64_t now = mgr__process_now_ms();
        if (MGR__LOAD(&g->page->kill_host)) mgr__process_ref_signal(&g->host, SIGKILL);
        if (!g->host_gone_at && mgr__process_ref_ended(&g->host)) g->host_gone_at = now;
        int64_t deadline = mgr__guard_deadline(g, now);
        MGR__STORE(&g->page->guard_beat, now);
        int64_t beat = MGR__LOAD(&g->page->keeper_beat);
        bool renews = MGR__LOAD(&g->page->stuck) != 0, speaks = MGR__LOAD(&g->page->work_dead) != 0;
        if (renews) deadline = mgr__max64(deadline, beat + MGR__KEEPER_STUCK_MS);
        if (speaks) deadline = beat + MGR__KEEPER_MUTE_MS;
        if (now >= deadline) {
            mgr__guard_end(g, now, deadline);
            deadline = now + MGR__KEEPER_AGAIN_MS;
        }
        mgr__guard_wait(g, mgr__min64(deadline, now + mgr__guard_tick_ms(g)));
    }
}

/* There is no child but the keeper, dead before we looked: somebody outside traces it.
 * What a child leaves when it ends comes to us, after it in the list. */
static bool mgr__guard_childless(mgr__guard *g)
{
    mgr__process_list_children(&g->list);
    return g->list.whole && g->list.count == 1 && g->list.at[0].pid == g->keeper;
}

/* The keeper is dead: its descendants are ours now. Until the kernel says that
 * there is none, for a killed one's children come to us before it is reaped. */
static void mgr__guard_sweep(mgr__guard *g)
{
    mgr__process_end end;
    const char *group = g->page->group;
    int got;
    mgr__page_close(g->page);
    MGR__STORE(&g->page->keeper_gone, 1u);
    mgr__page_poke();
    for (;;) {
        while ((got = mgr__process_wait(0, false, &end)) == 1) { }
        bool childless = got == -ECHILD || mgr__guard_childless(g);
        if (childless && (!group[0] || mgr__process_cgroup_populated(group) != 1)) break;
        if (group[0]) mgr__process_cgroup_kill(group);
        mgr__process_kill_descendants(&g->list);
        MGR__STORE(&g->page->guard_beat, mgr__process_now_ms());
        mgr__process_poll(NULL, 0, MGR__KEEPER_LOOK_MS);
    }
    MGR__STORE(&g->page->work_dead, 1u);
    mgr__page_poke();
    if (group[0]) mgr__process_cgroup_remove(group);
    MGR__STORE(&g->page->swept, 1u);
    mgr__page_poke();
}

/* With our own rights, else with those of a user namespace of our own. The host's
 * death can be seen from in there by its pidfd alone. */
static pid_t mgr__guard_fork_space(mgr__page *page)
{
    if (!mgr__page_has(page, MGR__FD_HOST)) return -ENOSYS;
    page->space = 1;
    pid_t pid = mgr__process_fork_space(false);
    if (pid != -EPERM) return pid;
    page->space_user = 1;
    return mgr__process_fork_space(true);
}

/* The guard's whole life. */
static void mgr__guard_main(mgr__page *page)
{
    mgr__guard g;
    int alive[2], code = mgr__process_subreaper();
    memset(&g, 0, sizeof g);
    g.page = page;
    mgr__process_name("mgr-guard");
    mgr__process_death_signal(SIGCONT);
    if (code < 0) mgr__page_fail(page, MGR__STEP_SUBREAPER, code);
    if (!mgr__process_list_make(&g.list, MGR__KEEPER_LIST_MAX)) mgr__page_fail(page, MGR__STEP_MEMORY, -ENOMEM);
    if ((code = mgr__process_pipe(alive)) < 0) mgr__page_fail(page, MGR__STEP_DESCRIPTORS, code);
    MGR__STORE(&page->guard, (int32_t)mgr__process_self());
    MGR__STORE(&page->guard_beat, mgr__process_now_ms());
    uint32_t uid = (uint32_t)mgr__process_euid(), gid = (uint32_t)mgr__process_egid();
    g.keeper = page->isolate == MGR_ISOLATE_PIDNS ? mgr__guard_fork_space(page) : mgr__process_fork(false);
    if (g.keeper < 0) mgr__page_fail(page, page->isolate == MGR_ISOLATE_PIDNS ? MGR__STEP_PIDNS : MGR__STEP_KEEPER, (int)g.keeper);
    if (g.keeper == 0) {
        mgr__process_close(alive[1]);       /* the guard's alone: its end is the guard's end */
        mgr__keeping_main(page, alive[0], uid, gid);
    }
    MGR__STORE(&page->keeper, (int32_t)g.keeper);
    g.keeper_ref = mgr__process_ref_open(g.keeper);
    mgr__process_close(alive[0]);
    for (int fd = MGR__FD_OUT; fd < MGR__FD_LIFE; fd++) mgr__process_close(fd);
    g.host = mgr__page_host(page);
    g.timer_fd = mgr__process_timer_open();
    mgr__guard_watch(&g);
    mgr__guard_sweep(&g);
    mgr__process_exit(0);
}

/* ---- the manager's side ---- */

typedef struct mgr__keeper {
    mgr__heap *heap;
    mgr__page *page;            /* NULL: never opened, or closed */
    int        fd;              /* the socket */
    mgr__process_ref guard_ref, keeper_ref;
    int        group_fd;        /* the cgroup's lock, -1: none */
    pid_t      host, guard;
    uid_t      euid;
    mgr__buf   out;             /* frames on their way */
    uint32_t   generation;
    bool       ended;           /* nobody holds the socket's other end */
    int64_t    silent_at;       /* a heart was first seen not beating; 0: it beats */
    int64_t    alone_at, unproven_at;   /* guard and keeper were first seen gone; when to give up proof. 0: not so */
    int64_t    scan_at;
    struct { pid_t pid; uint64_t start; } strays[MGR__KEEPER_STRAY_MAX];   /* killed, not yet seen dead */
    size_t     stray_count;
    uint8_t    used[MGR_WORKER_COUNT_MAX];
    struct { pid_t inner, outer; } pids[MGR_WORKER_COUNT_MAX];     /* in a PID namespace: its number in there, and ours for it */
    uint64_t   changed[MGR__SLOT_WORDS];
} mgr__keeper;

/* What the forked child needs, made ready before the fork. */
typedef struct mgr__keeper_birth {
    mgr__process_pins pins;
    int    keep[MGR__FD_END - 3];
    int    life_fd;
    char **argv, **env;         /* NULL: no exec */
    bool   whole;               /* keep the host's memory */
} mgr__keeper_birth;

static const char *mgr__keeper_step_text(uint32_t step)
{
    switch ((enum mgr__start_step)step) {
    case MGR__STEP_FORK: return "fork";
    case MGR__STEP_DESCRIPTORS: return "arrange descriptors";
    case MGR__STEP_EXEC: return "execute keeper_argv";
    case MGR__STEP_SUBREAPER: return "become a subreaper";
    case MGR__STEP_KEEPER: return "fork the keeper";
    case MGR__STEP_MEMORY: return "map memory";
    case MGR__STEP_PROC: return "read /proc";
    case MGR__STEP_CGROUP: return "use a cgroup";
    case MGR__STEP_PIDNS: return "isolate by pidns: make a PID namespace with a /proc of its own";
    }
    return "start";
}

/* The guard, from the fork on; all signals are blocked. */
static void mgr__keeper_born(mgr__page *page, mgr__keeper_birth *birth)
{
    mgr__process_death_signal(SIGCONT);     /* first of all: stopped by hand, it goes on when the host dies */
    mgr__process_detach();
    page->host_umask = (uint32_t)mgr__process_umask(077);
    int code = mgr__process_fds_settle(birth->keep, MGR__COUNT(birth->keep));
    if (code < 0) mgr__page_fail(page, MGR__STEP_DESCRIPTORS, code);
    for (size_t i = 0; i < MGR__COUNT(birth->keep); i++) if (birth->keep[i] >= 0) page->present |= 1u << i;
    if (birth->argv) {
        /* exec would give it back the SIGCHLD that the host must not get: let another be its parent */
        pid_t pid = mgr__process_fork(false);
        if (pid < 0) mgr__page_fail(page, MGR__STEP_FORK, (int)pid);
        if (pid > 0) mgr__process_exit(0);
        for (int fd = MGR__FD_SOCKET; fd < MGR__FD_END; fd++) mgr__process_inherit(fd, true);
        mgr__page_fail(page, MGR__STEP_EXEC, mgr__process_exec_self(birth->argv, birth->env));
    }
    if (!birth->whole) mgr__process_unmap_host(&birth->pins);
    mgr__guard_main(page);
}

/* Reap the guard if it is ours and dead. True: it is gone. */
static bool mgr__keeper_reap(mgr__keeper *k)
{
    mgr__process_end end;
    if (k->guard <= 0) return true;
    int got = mgr__process_wait(k->guard, false, &end);
    if (got == 0) return false;
    if (got == -ECHILD && k->guard_ref.fd >= 0 && mgr__process_poll_one(k->guard_ref.fd, POLLIN, 0) == 0) return false;
    k->guard = 0;
    return true;
}

static void mgr__keeper_await(mgr__keeper *k, int64_t within_ms)
{
    int64_t until = mgr__process_now_ms() + within_ms;
    while (!mgr__keeper_reap(k) && mgr__process_now_ms() < until) mgr__process_poll_one(k->guard_ref.fd, POLLIN, 10);
}

static void mgr__keeper_drop(mgr__keeper *k)
{
    mgr__process_close(k->fd);
    mgr__process_close(k->guard_ref.fd);
    mgr__process_close(k->keeper_ref.fd);
    mgr__process_close(k->group_fd);
    mgr__process_unmap(k->page, sizeof *k->page);
    if (k->heap) mgr__buf_free(&k->out);
    k->page = NULL;
    k->fd = k->guard_ref.fd = k->keeper_ref.fd = k->group_fd = -1;
}

/* Our environment and a mark by which mgr_keeper_main knows what it is. */
static char **mgr__keeper_environment(mgr__heap *heap)
{
    size_t count = 0;
    char **env;
    while (environ && environ[count]) count++;
    env = (char **)mgr__alloc_array(heap, count + 2, sizeof *env);
    if (!env) return NULL;
    for (size_t i = 0; i < count; i++) env[i + 1] = environ[i];
    env[0] = mgr__dup(heap, mgr__str_of("MANAGER_KEEPER=1"));
    return env;
}

static void mgr__keeper_page_init(mgr__page *page, const mgr__keeper_config *c, pid_t host)
{
    mgr__process self;
    int64_t now = mgr__process_now_ms();
    memset(&self, 0, sizeof self);
    mgr__process_stat(host, &self);
    page->nonce = mgr__mix64((uint64_t)now ^ (uint64_t)host << 40 ^ (uint64_t)(uintptr_t)page ^ self.start << 20);
    page->lease_ms = c->lease_ms;
    page->kill_margin_ms = c->kill_margin_ms;
    page->stop_grace_ms = c->stop_grace_ms;
    page->overrun_kill_host = c->overrun_kill_host;
    page->isolate = (uint32_t)c->isolate;
    if (c->life_path) mgr__copy_text(page->life_path, sizeof page->life_path, mgr__str_of(c->life_path));
    page->host = (int32_t)host;
    page->host_start = self.start;
    page->lease = MGR__LEASE_UNSET;
    page->magic = MGR__PAGE_MAGIC;
}

/* Fork, with nothing of ours left open in the host but its ends. */
static int mgr__keeper_fork(mgr__keeper *k, mgr__keeper_birth *birth, int page_fd, int socket)
{
    sigset_t before;
    mgr__process_pins_init(&birth->pins);
    mgr__process_pin(&birth->pins, k->page);
    int host_fd = mgr__process_pidfd(k->host);
    birth->keep[MGR__FD_SOCKET - 3] = socket;
    birth->keep[MGR__FD_PAGE - 3] = page_fd;
    birth->keep[MGR__FD_HOST - 3] = host_fd;
    birth->keep[MGR__FD_OUT - 3] = 1;
    birth->keep[MGR__FD_ERR - 3] = 2;
    birth->keep[MGR__FD_LIFE - 3] = birth->life_fd > 2 ? birth->life_fd : -1;
    birth->keep[MGR__FD_GROUP - 3] = k->group_fd;
    mgr__process_signals_block(&before);
    k->guard = mgr__process_fork(true);
    if (k->guard == 0) mgr__keeper_born(k->page, birth);
    mgr__process_signals_restore(&before);
    mgr__process_close(host_fd);
    if (k->guard < 0) return (int)k->guard;
    k->guard_ref = mgr__process_ref_open(k->guard);
    return 0;
}

/* Wait until both are in place. 0, or -errno. */
static int mgr__keeper_handshake(mgr__keeper *k, bool execed)
{
    int64_t now = mgr__process_now_ms(), until = now + MGR__KEEPER_OPEN_MS;
    while (!MGR__LOAD(&k->page->ready)) {
        int error = MGR__LOAD(&k->page->start_error);
        if (error) return -error;
        if ((now = mgr__process_now_ms()) >= until) return -ETIMEDOUT;
        int events = mgr__process_poll_one(k->fd, POLLIN, (int)(until - now));
        char poke[64];
        if (events > 0 && mgr__process_read(k->fd, poke, sizeof poke) == 0 && !MGR__LOAD(&k->page->start_error)) return -ECHILD;
    }
    if (execed) {
        mgr__keeper_reap(k);        /* the one in between, which is over */
        mgr__process_close(k->guard_ref.fd);
        k->guard = MGR__LOAD(&k->page->guard);
        k->guard_ref = mgr__process_ref_open(k->guard);
    }
    k->keeper_ref = mgr__process_ref_open(MGR__LOAD(&k->page->keeper));
    return 0;
}

/* Make "manager-<nonce>" in the group that we are in ourselves, so that whatever
 * limits us limits our workers, and lock it. One that was taken for a left-over
 * between the two is made anew. 0, or -errno. */
static int mgr__keeper_make_group(mgr__keeper *k)
{
    char parent[MGR__PROCESS_CGROUP_BYTES];
    int code = mgr__process_cgroup_find(parent, sizeof parent);
    if (code < 0) return code;
    if (strlen(parent) + sizeof "/manager-18446744073709551615" > sizeof k->page->group) return -ENAMETOOLONG;
    mgr__process_cgroup_remove_stale(parent);
    mgr__process_digits(mgr__process_append(mgr__process_append(k->page->group, parent), "/manager-"), k->page->nonce);
    for (int i = 0; i < MGR__PROCESS_MAKE_TRIES; i++) {
        code = mgr__process_cgroup_make(k->page->group);
        if (code < 0 && (code != -EEXIST || i == 0)) break;
        code = k->group_fd = mgr__process_cgroup_open(k->page->group);
        if (code >= 0) code = mgr__process_lock(k->group_fd);
        if (code >= 0 && mgr__process_cgroup_there(k->page->group)) return 0;
        mgr__process_close(k->group_fd);
        k->group_fd = -1;
        mgr__process_sleep(2);
    }
    mgr__process_cgroup_remove(k->page->group);
    k->page->group[0] = 0;
    return code < 0 ? code : -EAGAIN;
}

static int mgr__keeper_isolate(mgr__keeper *k, mgr_isolate asked)
{
    int code = asked == MGR_ISOLATE_NONE || asked == MGR_ISOLATE_PIDNS ? 0 : mgr__keeper_make_group(k);
    if (code == 0 || asked != MGR_ISOLATE_CGROUP) return 0;
    k->page->start_step = MGR__STEP_CGROUP;
    return code;
}

static const char *mgr__keeper_group_hint(int code)
{
    switch (-code) {
    case ENOENT: return " (no cgroup v2 is mounted that this process is in: mount one, or ask for auto or none)";
    case EACCES: case EPERM: case EROFS:
        return " (its own cgroup must be writable: under systemd by Delegate=yes, in a container by a writable /sys/fs/cgroup; "
               "or ask for auto or none)";
    default: return " (ask for auto or none to do without)";
    }
}

static const char *mgr__keeper_space_hint(int code)
{
    switch (-code) {
    case EPERM: case EACCES:
        return " (it takes CAP_SYS_ADMIN, or user namespaces and a /proc that nothing hides: ask for cgroup, auto or none)";
    case ENOSPC: case EUSERS:
        return " (user.max_pid_namespaces or user.max_user_namespaces allows no more: raise it, or ask for cgroup, auto or none)";
    default: return " (this kernel has no PID namespaces, or no pidfds: ask for cgroup, auto or none)";
    }
}

static int mgr__keeper_make(mgr__keeper *k, const mgr__keeper_config *c, bool whole)
{
    mgr__keeper_birth birth;
    int page_fd, pair[2], code;
    memset(&birth, 0, sizeof birth);
    birth.life_fd = c->life_fd;
    birth.whole = whole;
    k->page = (mgr__page *)mgr__process_shared_make(sizeof *k->page, &page_fd);
    if (!k->page) return -ENOMEM;
    mgr__keeper_page_init(k->page, c, k->host);
    code = mgr__keeper_isolate(k, c->isolate);
    if (code == 0 && (code = mgr__process_socketpair(pair)) == 0) {
        k->fd = pair[0];
        birth.argv = page_fd >= 0 ? c->keeper_argv : NULL;
        birth.env = birth.argv ? mgr__keeper_environment(k->heap) : NULL;
        code = birth.argv && !birth.env ? -ENOMEM : mgr__keeper_fork(k, &birth, page_fd, pair[1]);
        if (birth.env) mgr__free(k->heap, birth.env[0]);
        mgr__free(k->heap, birth.env);
        mgr__process_close(pair[1]);
    }
    mgr__process_close(page_fd);
    return code < 0 ? code : mgr__keeper_handshake(k, birth.argv != NULL);
}

/* Undo a birth that failed. */
static void mgr__keeper_abort(mgr__keeper *k)
{
    if (k->guard > 0) mgr__process_kill(k->guard, SIGKILL);
    mgr__keeper_await(k, MGR__KEEPER_CLOSE_MS);
    if (k->page && k->page->group[0]) mgr__process_cgroup_remove(k->page->group);
    mgr__keeper_drop(k);
}

/* Fork guard and keeper and wait until they are in place. On failure nothing is
 * left and error_text has the reason. MGR_INVALID: pidns was asked for, and is
 * refused here; MGR_SYSTEM; MGR_NO_MEMORY. */
static mgr_result mgr__keeper_open(mgr__keeper *k, mgr__heap *heap, const mgr__keeper_config *c, mgr__buf *error_text)
{
    memset(k, 0, sizeof *k);
    k->fd = k->guard_ref.fd = k->keeper_ref.fd = k->group_fd = -1;
    k->heap = heap;
    k->host = mgr__process_self();
    k->euid = mgr__process_euid();
    mgr__buf_init(&k->out, heap, MGR__KEEPER_QUEUE_BYTES * 2u);
    int code = mgr__keeper_make(k, c, false);
    if (code == -ECHILD && !c->keeper_argv) {   /* it died on its way: some memory of the host's was needed after all */
        mgr__keeper_abort(k);
        code = mgr__keeper_make(k, c, true);
    }
    if (code == 0) return MGR_OK;
    uint32_t step = k->page ? k->page->start_step : (uint32_t)MGR__STEP_MEMORY;
    mgr__buf_printf(error_text, "cannot start guard and keeper: %s: %s%s", mgr__keeper_step_text(step), strerror(-code),
                    step == MGR__STEP_CGROUP ? mgr__keeper_group_hint(code) : step == MGR__STEP_PIDNS ? mgr__keeper_space_hint(code) : "");
    mgr__keeper_abort(k);
    if (step == MGR__STEP_PIDNS) return MGR_INVALID;
    return code == -ENOMEM ? MGR_NO_MEMORY : MGR_SYSTEM;
}

/* ---- the manager's side: commands ---- */

static bool mgr__keeper_flush(mgr__keeper *k)
{
    while (k->out.len && !k->ended) {
        int put = mgr__process_send(k->fd, k->out.at, k->out.len);
        if (put == -EAGAIN) return true;
        if (put < 0) { k->ended = true; return false; }
        mgr__buf_consume(&k->out, (size_t)put);
    }
    return !k->ended;
}

/* Out of memory or of room for a command that must not be lost: whoever cannot be
 * commanded must not go on working. */
static void mgr__keeper_unheard(mgr__keeper *k)
{
    k->out.failed = false;
    mgr__page_close(k->page);
}

static void mgr__keeper_frame(mgr__keeper *k, enum mgr__frame_kind kind, const void *head, size_t head_bytes, size_t more)
{
    mgr__frame frame;
    frame.kind = (uint32_t)kind;
    frame.bytes = (uint32_t)(head_bytes + more);
    if (!mgr__buf_reserve(&k->out, sizeof frame + frame.bytes)) return;
    mgr__buf_add(&k->out, &frame, sizeof frame);
    mgr__buf_add(&k->out, head, head_bytes);
}

static void mgr__keeper_order(mgr__keeper *k, enum mgr__frame_kind kind, uint32_t slot, int signo, uint32_t within_ms)
{
    mgr__frame_order order;
    MGR_ASSERT(slot < MGR_WORKER_COUNT_MAX && k->used[slot]);
    order.slot = slot;
    order.signo = signo;
    order.within_ms = within_ms;
    mgr__keeper_frame(k, kind, &order, sizeof order, 0);
    if (k->out.failed) mgr__keeper_unheard(k);
    mgr__keeper_flush(k);
}

static size_t mgr__keeper_strings_bytes(const char *const *list, uint32_t *count)
{
    size_t bytes = 0;
    *count = 0;
    for (; list && list[*count]; ++*count) bytes += strlen(list[*count]) + 1;
    return bytes;
}

static void mgr__keeper_add_strings(mgr__keeper *k, const char *const *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) mgr__buf_add(&k->out, list[i], strlen(list[i]) + 1);
}

static void mgr__keeper_spawn_head(mgr__frame_spawn *h, const mgr__spawn *s)
{
    h->stop_signal = s->stop_signal;
    h->stop_grace_ms = s->stop_grace_ms;
    h->start_timeout_ms = s->start_timeout_ms;
    h->uid = (uint32_t)s->uid;
    h->gid = (uint32_t)s->gid;
    h->set_ids = s->set_ids;
    h->discard_output = s->discard_output;
    h->agent = s->agent;
}

/* Queue a start; reports on *slot follow, until mgr__keeper_free.
 * MGR_LIMIT: over MGR_SPAWN_BYTES_MAX, no slot is free, or too many commands wait.
 * MGR_DENIED: another user or group in a namespace that has none.
 * MGR_STATE: the effective user id is not the one of mgr__keeper_open, whose
 * rights the worker would get; or the keeper is gone. */
static mgr_result mgr__keeper_spawn(mgr__keeper *k, const mgr__spawn *s, uint32_t *slot)
{
    mgr__frame_spawn h;
    memset(&h, 0, sizeof h);
    mgr__keeper_spawn_head(&h, s);
    const char *directory = s->directory ? s->directory : "/";
    size_t text = mgr__keeper_strings_bytes(s->argv, &h.argc) + mgr__keeper_strings_bytes(s->env, &h.envc), dir = strlen(directory) + 1;
    if (!h.argc) return MGR_INVALID;
    if (text > MGR_SPAWN_BYTES_MAX || dir > PATH_MAX) return MGR_LIMIT;
    if (k->ended || mgr__process_euid() != k->euid) return MGR_STATE;
    if (s->set_ids && k->page->space_user && (s->uid != k->euid || s->gid != mgr__process_egid())) return MGR_DENIED;
    if (k->out.len > MGR__KEEPER_QUEUE_BYTES) return MGR_LIMIT;
    while (h.slot < MGR_WORKER_COUNT_MAX && k->used[h.slot]) h.slot++;
    if (h.slot == MGR_WORKER_COUNT_MAX) return MGR_LIMIT;
    h.generation = ++k->generation;
    mgr__keeper_frame(k, MGR__FRAME_SPAWN, &h, sizeof h, text + dir);
    if (k->out.failed) { k->out.failed = false; return MGR_NO_MEMORY; }
    mgr__buf_add(&k->out, directory, dir);
    mgr__keeper_add_strings(k, s->argv, h.argc);
    mgr__keeper_add_strings(k, s->env, h.envc);
    k->used[h.slot] = 1;
    k->changed[h.slot / 64] &= ~((uint64_t)1 << (h.slot % 64));
    MGR__STORE(&k->page->slots[h.slot].now, (uint64_t)MGR__WORKER_STARTING);
    *slot = h.slot;
    mgr__keeper_flush(k);
    return MGR_OK;
}

/* To the leader alone. */
static void mgr__keeper_signal(mgr__keeper *k, uint32_t slot, int signo) { mgr__keeper_order(k, MGR__FRAME_SIGNAL, slot, signo, 0); }

/* Its stop signal and SIGCONT to the group, SIGKILL for the whole tree after
 * within_ms; 0: SIGKILL at once. A later call can only shorten the time. */
static void mgr__keeper_stop(mgr__keeper *k, uint32_t slot, uint32_t within_ms)
{
    mgr__keeper_order(k, MGR__FRAME_STOP, slot, 0, within_ms);
}

/* After EMPTY or FAILED, or once the keeper is swept. */
static void mgr__keeper_free(mgr__keeper *k, uint32_t slot)
{
    MGR_ASSERT(slot < MGR_WORKER_COUNT_MAX && k->used[slot]);
    k->used[slot] = 0;
    k->pids[slot].inner = 0;
    k->changed[slot / 64] &= ~((uint64_t)1 << (slot % 64));
}

/* Prepare or replace what the keeper says when the work has ended without the manager;
 * renew and pass, every renew_ms (a third of the shorter TTL, the session's or the
 * check's), while some of it cannot be killed. Whole HTTP requests; an empty one is not
 * sent. MGR_LIMIT: together over MGR__KEEPER_WORDS_BYTES, or too many addresses; what was
 * set before then stays. */
static mgr_result mgr__keeper_last_words(mgr__keeper *k,
                                         const struct sockaddr_storage *addresses, const socklen_t *lens, size_t address_count,
                                         mgr__str certificate, mgr__str destroy, mgr__str deregister, mgr__str renew, mgr__str pass,
                                         uint32_t renew_ms)
{
    mgr__frame_words h;
    size_t bytes = certificate.len + destroy.len + deregister.len + renew.len + pass.len;
    if (address_count > MGR_ADDRESS_COUNT_MAX || bytes > MGR__KEEPER_WORDS_BYTES) return MGR_LIMIT;
    memset(&h, 0, sizeof h);
    h.address_count = (uint32_t)address_count;
    for (size_t i = 0; i < address_count; i++) { h.addresses[i] = addresses[i]; h.address_lens[i] = lens[i]; }
    h.lens[MGR__WORD_CERTIFICATE] = (uint32_t)certificate.len;
    h.lens[MGR__WORD_DESTROY] = (uint32_t)destroy.len;
    h.lens[MGR__WORD_DEREGISTER] = (uint32_t)deregister.len;
    h.lens[MGR__WORD_RENEW] = (uint32_t)renew.len;
    h.lens[MGR__WORD_PASS] = (uint32_t)pass.len;
    h.renew_ms = renew_ms ? renew_ms : 1000;
    mgr__keeper_frame(k, MGR__FRAME_WORDS, &h, sizeof h, bytes);
    if (k->out.failed) { k->out.failed = false; return MGR_NO_MEMORY; }
    mgr__buf_str(&k->out, certificate);
    mgr__buf_str(&k->out, destroy);
    mgr__buf_str(&k->out, deregister);
    mgr__buf_str(&k->out, renew);
    mgr__buf_str(&k->out, pass);
    mgr__keeper_flush(k);
    return MGR_OK;
}

/* ---- the manager's side: lease and state ---- */

/* Any thread. The right to work runs until until_ms; never shortened. False: closed, for good. */
static bool mgr__keeper_lease_extend(mgr__keeper *k, int64_t until_ms) { return mgr__page_extend(k->page, until_ms); }

/* Any thread. Until when, on the clock of mgr__process_now_ms; 0: closed, or never confirmed. */
static int64_t mgr__keeper_lease(const mgr__keeper *k)
{
    int64_t word = k->page ? mgr__page_lease(k->page) : MGR__LEASE_CLOSED;
    return mgr__page_open(word) ? word : 0;
}

/* Set before such work begins and only then look at the lease: the keeper closes
 * the word first and looks at this second, so one of both sees the other. */
static void mgr__keeper_in_process(mgr__keeper *k, bool on) { MGR__STORE(&k->page->in_process, on ? 1u : 0u); }

static int mgr__keeper_fd(const mgr__keeper *k) { return k->ended ? -1 : k->fd; }
static bool mgr__keeper_wants_write(const mgr__keeper *k) { return k->out.len && !k->ended; }

/* Flush commands, take pokes. */
static void mgr__keeper_turn(mgr__keeper *k)
{
    char pokes[256];
    int got = -EAGAIN;
    mgr__keeper_flush(k);
    while (!k->ended && (got = mgr__process_read(k->fd, pokes, sizeof pokes)) > 0) { }
    if (got != -EAGAIN) k->ended = true;
    for (size_t i = 0; i < MGR__SLOT_WORDS; i++) k->changed[i] |= __atomic_exchange_n(&k->page->changed[i], (uint64_t)0, __ATOMIC_SEQ_CST);
}

/* The number by which the host knows a worker: what users see, and may look up. */
static pid_t mgr__keeper_outer(mgr__keeper *k, uint32_t slot, pid_t inner)
{
    mgr__process_list list;
    if (inner <= 0) return inner;
    if (k->pids[slot].inner == inner && k->pids[slot].outer) return k->pids[slot].outer;
    mgr__process_list_make(&list, MGR__KEEPER_LIST_MAX);
    k->pids[slot].inner = inner;
    k->pids[slot].outer = mgr__process_outer(MGR__LOAD(&k->page->keeper), inner, &list);
    mgr__process_list_free(&list);
    return k->pids[slot].outer;
}

/* A slot that changed since it was last reported: its latest state. */
static bool mgr__keeper_next(mgr__keeper *k, mgr__worker_report *out)
{
    for (uint32_t i = 0; i < MGR_WORKER_COUNT_MAX; i++) {
        if (!k->changed[i / 64]) { i |= 63; continue; }
        if (!(k->changed[i / 64] >> (i % 64) & 1)) continue;
        k->changed[i / 64] &= ~((uint64_t)1 << (i % 64));
        if (!k->used[i]) continue;
        uint64_t now = MGR__LOAD(&k->page->slots[i].now), result = MGR__LOAD(&k->page->slots[i].result);
        out->slot = i;
        out->state = (mgr__worker_state)(now & 0xff);
        out->stuck = (now >> 8 & 1) != 0;
        out->pid = k->page->space ? mgr__keeper_outer(k, i, (pid_t)(now >> 32)) : (pid_t)(now >> 32);
        out->status = (int)(uint32_t)result;
        out->error = (int)(uint32_t)(result >> 32);
        return true;
    }
    return false;
}

/* A heart that has not beaten for a quarter of the lease, seen twice with a pause
 * in between: after a suspension we may simply have woken up first. */
static bool mgr__keeper_silent(mgr__keeper *k)
{
    int64_t now = mgr__process_now_ms();
    int64_t beat = mgr__min64(MGR__LOAD(&k->page->guard_beat), MGR__LOAD(&k->page->keeper_beat));
    if (now - beat <= mgr__page_silence_ms(k->page)) { k->silent_at = 0; return false; }
    if (!k->silent_at) k->silent_at = now;
    return now - k->silent_at >= 250;
}

/* A silent keeper is killed, for the guard to sweep; a silent guard likewise, and
 * the keeper ends the work. Where the other is gone already, the survivor alone
 * can still do it: a guard is set going again, a keeper dies and takes its workers along. */
static void mgr__keeper_silence(mgr__keeper *k)
{
    bool keeper = mgr__process_now_ms() - MGR__LOAD(&k->page->keeper_beat) > mgr__page_silence_ms(k->page);
    mgr__page_close(k->page);
    if (mgr__process_ref_ended(&k->keeper_ref)) mgr__process_ref_signal(&k->guard_ref, SIGCONT);
    else mgr__process_ref_signal(keeper ? &k->keeper_ref : &k->guard_ref, SIGKILL);
}

/* What is in force, whatever was asked for. */
static mgr_isolate mgr__keeper_isolation(const mgr__keeper *k)
{
    if (k->page && k->page->space) return MGR_ISOLATE_PIDNS;
    return k->page && k->page->group[0] && !MGR__LOAD(&k->page->group_partial) ? MGR_ISOLATE_CGROUP : MGR_ISOLATE_NONE;
}

/* Guard and keeper both are gone. */
static bool mgr__keeper_alone(const mgr__keeper *k)
{
    return mgr__process_ref_ended(&k->guard_ref) && mgr__process_ref_ended(&k->keeper_ref);
}

/* Drop what is dead by now. One that is ending has lost its environment long
 * before its files are closed, so it must be remembered by its number. */
static void mgr__keeper_bury_strays(mgr__keeper *k)
{
    mgr__process now;
    size_t left = 0;
    for (size_t i = 0; i < k->stray_count; i++) {
        bool lives = mgr__process_stat(k->strays[i].pid, &now) && now.start == k->strays[i].start && now.state != 'Z' && now.state != 'X';
        if (lives) k->strays[left++] = k->strays[i];
    }
    k->stray_count = left;
}

/* SIGKILL, once, while there is room to remember it. */
static void mgr__keeper_kill_stray(mgr__keeper *k, const mgr__process *p)
{
    for (size_t i = 0; i < k->stray_count; i++) if (k->strays[i].pid == p->pid && k->strays[i].start == p->start) return;
    if (k->stray_count == MGR__KEEPER_STRAY_MAX) return;
    k->strays[k->stray_count].pid = p->pid;
    k->strays[k->stray_count++].start = p->start;
    mgr__process_kill_listed(p);
}

/* Whatever bears our name in its environment, wherever it went. What is found was
 * ours; that nothing is found proves nothing: an environment can be forgotten, or
 * not be ours to read. */
static void mgr__keeper_kill_strays(mgr__keeper *k)
{
    size_t scratch_bytes = MGR_SPAWN_BYTES_MAX * 2;
    char *scratch = (char *)mgr__process_pages(scratch_bytes), found[MGR__CHILD_NAME_BYTES];
    uint64_t slot, generation;
    mgr__process_list list;
    mgr__keeper_bury_strays(k);
    if (mgr__process_list_make(&list, MGR__KEEPER_LIST_MAX)) mgr__process_list_all(&list, 0);
    for (size_t i = 0; scratch && i < list.count; i++) {
        const mgr__process *p = &list.at[i];
        if (p->start < k->page->host_start || p->state == 'Z' || p->pid == k->host) continue;
        if (!mgr__process_environ(p->pid, "MANAGER_CHILD=", scratch, scratch_bytes, found, sizeof found)) continue;
        if (mgr__page_child_name(k->page->nonce, found, &slot, &generation)) mgr__keeper_kill_stray(k, p);
    }
    mgr__process_list_free(&list);
    mgr__process_unmap(scratch, scratch_bytes);
}

/* Until when somebody may have believed in the lease, which only we can close now. */
static void mgr__keeper_be_alone(mgr__keeper *k, int64_t now)
{
    const mgr__page *page = k->page;
    bool noted = mgr__page_lease(page) != MGR__LEASE_CLOSED;
    mgr__page_close(k->page);
    int64_t until = MGR__LOAD(&page->closed_until);
    if (!until && !noted) until = now + (int64_t)page->lease_ms;     /* closed by one that died before it noted what it held */
    k->alone_at = now;
    k->unproven_at = mgr__max64(now, until) + (int64_t)page->kill_margin_ms;
}

/* Nobody else is left to end the work. Direct workers die with their parent; what
 * they had begun is killed by cgroup, and called dead on the kernel's word that it
 * is empty. Without one, what can be found is killed, and nothing is proven. */
static mgr__keeper_status mgr__keeper_end_alone(mgr__keeper *k)
{
    int64_t now = mgr__process_now_ms();
    mgr__page *page = k->page;
    int populated = -ENOENT;
    if (!k->alone_at) mgr__keeper_be_alone(k, now);
    if (page->space && k->keeper_ref.fd >= 0) {     /* the kernel calls a namespace's first process dead when all in it are reaped */
        MGR__STORE(&page->work_dead, 1u);
        MGR__STORE(&page->swept, 1u);
        return MGR__KEEPER_SWEPT;
    }
    if (page->group[0]) {
        populated = mgr__process_cgroup_populated(page->group);
        if (populated == 1) mgr__process_cgroup_kill(page->group);
        for (int i = 0; i < MGR__PROCESS_EMPTY_TRIES && k->alone_at == now && populated == 1; i++) {     /* the first time */
            mgr__process_sleep(2);
            populated = mgr__process_cgroup_populated(page->group);
        }
    }
    if (now >= k->scan_at) {
        mgr__keeper_kill_strays(k);
        k->scan_at = now + (k->stray_count ? MGR__KEEPER_SWEEP_MS : MGR__KEEPER_SCAN_MS);
    }
    if (populated == 1) return MGR__KEEPER_DEAD;
    if (page->group[0]) mgr__process_cgroup_remove(page->group);
    if (populated == 0 && mgr__keeper_isolation(k) == MGR_ISOLATE_CGROUP) {
        if (k->stray_count) return MGR__KEEPER_DEAD;
        MGR__STORE(&page->work_dead, 1u);
        MGR__STORE(&page->swept, 1u);
        return MGR__KEEPER_SWEPT;
    }
    return now >= k->unproven_at ? MGR__KEEPER_UNPROVEN : MGR__KEEPER_DEAD;
}

/* What stands. To be called at least every quarter of the lease; while it is DEAD
 * every 100 ms or so, for nobody pokes any more. The word is closed by then. */
static mgr__keeper_status mgr__keeper_look(mgr__keeper *k)
{
    const mgr__page *page = k->page;
    bool silent = mgr__keeper_silent(k);
    if (MGR__LOAD(&page->swept) || MGR__LOAD(&page->work_dead)) return MGR__KEEPER_SWEPT;
    if (mgr__keeper_alone(k)) return mgr__keeper_end_alone(k);
    if (silent) mgr__keeper_silence(k);
    bool gone = mgr__process_ref_ended(&k->guard_ref) || mgr__process_ref_ended(&k->keeper_ref);
    bool dead = silent || gone || k->ended || MGR__LOAD(&page->keeper_gone);
    if (dead) { mgr__page_close(k->page); return MGR__KEEPER_DEAD; }
    return mgr__page_lease(page) == MGR__LEASE_CLOSED ? MGR__KEEPER_CLOSED : MGR__KEEPER_ALIVE;
}

/* By how much the timers of guard or keeper fire late, whichever is worse. */
static uint32_t mgr__keeper_late_ms(const mgr__keeper *k)
{
    uint32_t guard = MGR__LOAD(&k->page->guard_late), keeper = MGR__LOAD(&k->page->keeper_late);
    return guard > keeper ? guard : keeper;
}

/* Why the keeper, which took us for dead, could not certify; NULL: it could, or did not try. */
static const char *mgr__keeper_certificate_fault(const mgr__keeper *k)
{
    uint32_t end = k->page ? MGR__LOAD(&k->page->certificate) : 0;
    return end == MGR__WORDS_REFUSED ? "each Consul agent refused it (4xx): has the token's right to write ended?"
         : end == MGR__WORDS_UNHEARD ? "no Consul agent accepted it in time, and not all of them refused" : NULL;
}

/* The orderly end: the manager has certified or handed over what there was. What
 * still runs is stopped, agents last; nothing is said to Consul. */
static void mgr__keeper_dismiss(mgr__keeper *k)
{
    if (!k->page) return;
    MGR__STORE(&k->page->dismissed, 1u);
    mgr__page_close(k->page);
    mgr__str none = mgr__str_of("");
    mgr__keeper_last_words(k, NULL, NULL, 0, none, none, none, none, none, 0);      /* wakes it */
}

/* Let go. Work still running is stopped by the keeper, as at the manager's death.
 * Waits for an end that is under way, not for one that takes its time: such a
 * guard stays our zombie, which only wait with __WALL would show to the host. */
static void mgr__keeper_close(mgr__keeper *k)
{
    if (!k->page) return;
    mgr__keeper_flush(k);
    mgr__process_close(k->fd);
    k->fd = -1;
    bool soon = MGR__LOAD(&k->page->dismissed) || MGR__LOAD(&k->page->swept);
    mgr__keeper_await(k, soon ? MGR__KEEPER_CLOSE_MS : MGR__KEEPER_GLANCE_MS);
    if (!MGR__LOAD(&k->page->swept) && mgr__keeper_alone(k)) mgr__keeper_end_alone(k);
    mgr__keeper_drop(k);
}

/* In a forked child of the host: memory and descriptors, nothing else. */
static void mgr__keeper_forked(mgr__keeper *k)
{
    if (k->page) mgr__keeper_drop(k);
}

/* ---- the manager's side: a life's file, and what it proves ---- */

/* Say in the life's file who acts for this life: to be done before its first work.
 * `partial` is the keeper's to write. 0, or -errno: then nothing will be proven. */
static int mgr__keeper_describe(const mgr__keeper *k, int life_fd, const char *life, const char *boot)
{
    mgr__life_record r;
    mgr__process stat;
    const int32_t pids[3] = { k->page->host, MGR__LOAD(&k->page->guard), MGR__LOAD(&k->page->keeper) };
    const size_t after = offsetof(mgr__life_record, partial) + sizeof r.partial;
    memset(&r, 0, sizeof r);
    r.magic = MGR__LIFE_MAGIC;
    r.nonce = k->page->nonce;
    mgr__copy_text(r.life, sizeof r.life, mgr__str_of(life));
    mgr__copy_text(r.boot, sizeof r.boot, mgr__str_of(boot));
    for (int i = 0; i < 3; i++) {
        if (!mgr__process_stat(pids[i], &stat)) return -ESRCH;
        r.who[i].pid = (uint64_t)pids[i];
        r.who[i].start = stat.start;
    }
    mgr__copy_text(r.group, sizeof r.group, mgr__str_of(k->page->group));
    if (r.group[0]) r.view_bytes = mgr__process_cgroup_view(r.group, &r.view_device, &r.view_inode);
    int code = mgr__process_put_at(life_fd, (const char *)&r + after, sizeof r - after, after);
    return code < 0 ? code : mgr__process_put_at(life_fd, &r, offsetof(mgr__life_record, partial), 0);
}

/* "NAME DEVICE INODE": what the instance key says of the life's file. */
static bool mgr__life_evidence(int life_fd, const char *name, char *to, size_t to_bytes)
{
    uint64_t device, inode;
    to[0] = 0;
    if (!mgr__process_file_id(life_fd, &device, &inode)) return false;
    snprintf(to, to_bytes, "%s %llu %llu", name, (unsigned long long)device, (unsigned long long)inode);
    return true;
}

/* Whether it is the file that the key means, and nobody holds it. NULL, or why not. */
static const char *mgr__life_file_fault(int fd, const char *evidence, bool *held)
{
    uint64_t device, inode;
    const char *at = strchr(evidence, ' ');
    uint64_t wanted[2] = { 0, 0 };
    for (int i = 0; i < 2 && at && *at == ' '; i++) { at++; wanted[i] = mgr__process_number(&at); }
    if (!mgr__process_file_id(fd, &device, &inode)) return "its life file cannot be read";
    if (device != wanted[0] || inode != wanted[1]) return "its life file is not the one that it had";
    if (!mgr__process_locks_local(fd)) return "its life file is where no lock can be relied on";
    *held = mgr__process_lock_shared(fd) < 0;
    return *held ? "a process of it still holds its life file" : NULL;
}

/* Nothing that bears the life's name in its environment is alive: a last look, beyond
 * the group, for what was moved out of it. */
static bool mgr__life_name_seen(uint64_t nonce)
{
    size_t scratch_bytes = MGR_SPAWN_BYTES_MAX * 2;
    char *scratch = (char *)mgr__process_pages(scratch_bytes), found[MGR__CHILD_NAME_BYTES];
    uint64_t slot, generation;
    mgr__process_list list;
    if (mgr__process_list_make(&list, MGR__KEEPER_LIST_MAX)) mgr__process_list_all(&list, 0);
    bool seen = !list.whole || !scratch;
    for (size_t i = 0; i < list.count && !seen; i++)
        seen = list.at[i].state != 'Z'
               && mgr__process_environ(list.at[i].pid, "MANAGER_CHILD=", scratch, scratch_bytes, found, sizeof found)
               && mgr__page_child_name(nonce, found, &slot, &generation);
    mgr__process_list_free(&list);
    mgr__process_unmap(scratch, scratch_bytes);
    return seen;
}

/* Its supervisors are dead, so that what is left in its group has outlived them
 * (invariant 3), and is killed. True: the group is empty, or gone. */
static bool mgr__life_group_dead(const mgr__life_record *r)
{
    const char *name = strrchr(r->group, '/');
    if (!r->group[0]) return true;      /* and not partial: it never started a worker, or its PID namespace died with the keeper */
    if (!name || !mgr__process_cgroup_mine(name + 1)) return false;
    for (int i = 0; i < MGR__PROCESS_EMPTY_TRIES; i++) {
        if (mgr__process_cgroup_gone(r->group, (size_t)r->view_bytes, r->view_device, r->view_inode)) return true;
        uint64_t device = 0, inode = 0;
        bool same = mgr__process_cgroup_view(r->group, &device, &inode) == r->view_bytes
                    && device == r->view_device && inode == r->view_inode;
        if (!same) return false;
        int populated = mgr__process_cgroup_populated(r->group);
        if (populated == 0) { mgr__process_cgroup_remove(r->group); return true; }
        if (populated == 1) mgr__process_cgroup_kill(r->group);
        mgr__process_sleep(2);
    }
    return false;
}

static mgr__verdict mgr__life_prove_record(const mgr__life_record *r, const char *life, const char *boot, const char **why)
{
    static const char *const WHO[3] = {
        "the program of that life still lives", "the guard of that life still lives", "the keeper of that life still lives"
    };
    *why = "its life file is of another life";
    if (r->magic != MGR__LIFE_MAGIC || strcmp(r->life, life) != 0) return MGR__VERDICT_NONE;
    *why = "it was of another boot or PID namespace";
    if (!boot[0] || strcmp(r->boot, boot) != 0) return MGR__VERDICT_NONE;
    for (int i = 0; i < 3; i++) {
        *why = WHO[i];
        if (!mgr__process_ended((pid_t)r->who[i].pid, r->who[i].start)) return MGR__VERDICT_LATER;
    }
    *why = "it had workers outside a cgroup (isolate none), of which some may have left their group";
    if (r->partial) return MGR__VERDICT_NONE;
    *why = "its cgroup is not seen to be empty";
    if (!mgr__life_group_dead(r)) return MGR__VERDICT_LATER;
    *why = "a process with its name in the environment is alive";
    return mgr__life_name_seen(r->nonce) ? MGR__VERDICT_LATER : MGR__VERDICT_DEAD;
}

/* Is everything dead that could still act for `life`? Only this process's own look
 * counts, and it is the last step before a certificate.
 *
 * Who can act for a life? (1) Its host program: it writes to Consul under the session,
 * commands the keeper, and may do the work itself. (2) Guard and keeper, stopped ones
 * too: a keeper that goes on forks the next worker. (3) The keeper's child between fork
 * and exec, which need not be in its cgroup yet. (4) Workers and what they began.
 * (1) and (2) are named in the file by number and start, which one boot and one PID
 * namespace give to nobody else; each must be gone. A stopped or traced process, or one
 * that dumps core, is not. (1) to (3) share one open file description, from the host's
 * open on, and with it the exclusive flock; the kernel frees it when the last of them is
 * gone, and nobody can come by it afterwards, for it is only inherited. Numbers and lock
 * do not rest on each other: a host that closes every descriptor it finds lives on by
 * number; a child of the host's that was forked with the descriptor holds the lock, and
 * with it the proof, as long as it lives; a worker that unlocks what it inherited is no
 * supervisor. (4) are counted by the cgroup that they are born in; the keeper writes
 * `partial` before the first one that is not, in the file that can only be read after
 * the lock was free, hence after that write. Without a group nothing is proven, unless
 * no worker was ever started; or the keeper was the first process of a PID namespace:
 * the kernel calls it dead only when everything in there is.
 *
 * Is it that file? Name, device and inode are in the instance key, and the session's id
 * is in the file: a key that was edited by hand, or a file deleted and made anew, does
 * not fit. An inode's number is not given anew while somebody has the old file open;
 * looked at is the descriptor, not the path. Only our own folder is searched, which
 * nobody else can write to, and only where flock is the kernel's own: not over NFS.
 * Somebody who opened the file before, to read it, holds no lock that could pass for a
 * supervisor's, nor hide one.
 *
 * Is it that machine? The boot's id is in the key and in the file. A container of the same
 * boot has another PID namespace, and where its cgroup path means something else, the
 * mount that it is seen through differs by device or inode. The number of a PID namespace
 * is given anew only when it and all its processes are gone, which is what is to be
 * proven. Two virtual machines resumed from one image of memory share all of this; but
 * then the life itself runs twice, and only the fence helps (see "What no process can
 * promise"); a life begun after the image was taken has its file on one of them alone. */
static mgr__verdict mgr__life_prove(const char *dir, const char *evidence, const char *life, const char *boot, const char **why)
{
    char name[32], path[PATH_MAX];
    mgr__life_record r;
    bool held = false;
    const char *end = strchr(evidence, ' ');
    *why = "it left no life file";
    if (!dir[0] || !end || !life[0]) return MGR__VERDICT_NONE;
    mgr__copy_text(name, sizeof name, mgr__str_make(evidence, (size_t)(end - evidence)));
    if (!mgr__process_life_name(name) || strlen(dir) + sizeof name + 1 > sizeof path) return MGR__VERDICT_NONE;
    mgr__process_append(mgr__process_append(mgr__process_append(path, dir), "/"), name);
    *why = "its life file is not in our run_dir";
    int fd = mgr__process_life_open(path);
    if (fd < 0) return MGR__VERDICT_NONE;
    mgr__verdict verdict = MGR__VERDICT_NONE;
    const char *fault = mgr__life_file_fault(fd, evidence, &held);
    bool known = (!fault || held) && mgr__process_get_at(fd, &r, sizeof r);
    *why = fault ? fault : "its life file is of no use";
    if (known) {
        r.life[sizeof r.life - 1] = r.boot[sizeof r.boot - 1] = r.group[sizeof r.group - 1] = 0;
        verdict = mgr__life_prove_record(&r, life, boot, why);
    }
    if (held && (verdict == MGR__VERDICT_DEAD || !known)) {     /* by a worker, it may be: unsupervised, it was killed just now */
        *why = fault;
        verdict = MGR__VERDICT_LATER;
    }
    mgr__process_close(fd);
    return verdict;
}

MGRAPI int mgr_keeper_main(int argc, char **argv)
{
    const char *mark = getenv("MANAGER_KEEPER");
    (void)argc; (void)argv;
    if (!mark || strcmp(mark, "1") != 0) return -1;
    mgr__page *page = (mgr__page *)mgr__process_shared_map(MGR__FD_PAGE, sizeof *page);
    if (!page || page->magic != MGR__PAGE_MAGIC) return -1;
    for (int fd = MGR__FD_SOCKET; fd < MGR__FD_END; fd++) mgr__process_inherit(fd, false);
    sigset_t before;
    mgr__process_signals_block(&before);
    mgr__process_detach();
    mgr__guard_main(page);
    return 0;
}

/* ============================================================================
 * [manager] The public functions: open, step, close, and what they drive
 * what:  feeds events to [cluster] and executes its actions: requests, work,
 *        lease; runs checks and an agent; reads a service for observers
 * owns:  struct mgr
 * calls: all sections above
 * ========================================================================== */

enum {
    MGR__POST_COUNT_MAX = 256,
    MGR__REQUEST_TIMEOUT_MS = 8000,     /* longer than the 7 s for which a server without a leader holds a request */
    MGR__SIDE_TIMEOUT_MS = 2000,        /* requests that stand in the way of the core's */
    MGR__SIDE_RETRY_MS = 2000,
    MGR__KEEPER_RETRY_MS = 1000,
    MGR__ALONE_LOOK_MS = 100,           /* guard and keeper are gone: we end their work ourselves */
    MGR__WATCH_EXTRA_MS = 2000,         /* for the answer of a held query, beyond what Consul may add to its wait: a sixteenth */
    MGR__TTL_EXTRA_MS = 2000,           /* of the instance's own check, beyond the delay */
    MGR__CHECK_POLL_MS = 1000,
    MGR__CHECK_LOOK_MS = 50,            /* checks are looked at no more often */
    MGR__CHECK_EXTRA_MS = 5000,         /* of a script's TTL in Consul, beyond two intervals and its timeout */
    MGR__VIEW_WAIT_MS_MAX = 600000,     /* Consul's own limit */
    MGR__PAUSE_TRIES = 10,              /* somebody else changes cluster/pause meanwhile */
    MGR__DELAY_STEP_MS = 1000,
    MGR__CRASH_LOOP = 10,               /* ends in a row: another instance shall try */
    MGR__CRASH_START = 3                /* a failed start counts so many times */
};

struct mgr_grant {
    const struct mgr *m;
    uint64_t fence;
    int      open;              /* atomic: 0 once the partition is lost or released */
    struct mgr_grant *next;     /* all grants live until mgr_close */
};

/* What is being done for a partition. */
typedef struct mgr__work {
    mgr__part *part;
    mgr_grant *grant;
    bool       in_process;      /* not (only) processes: gone when the program says so */
    bool       held;            /* mgr_hold: mgr_released alone ends it */
    bool       starting;        /* on_acquire is running */
    bool       let_go;          /* mgr_released was called */
    bool       stopping, lost;
    int64_t    kill_at;         /* stopping, and on_release is pending: then processes are killed */
} mgr__work;

struct mgr__check;

typedef struct mgr__proc {
    mgr__work *work;            /* NULL: an agent, or a check of the whole instance */
    struct mgr__check *check;   /* the script of this check */
    mgr__keeper *keeper;
    char      *name;
    mgr__arena arena;           /* owns what the process needs */
    const char **argv, **env;
    mgr_process process;
    bool       daemon;          /* restarted when it ends */
    bool       alive;           /* the keeper has it, in `slot` */
    bool       ended;           /* it was to run once, and has */
    bool       killed;          /* a script over its timeout */
    bool       stuck_told;
    bool       dropped;         /* forgotten: freed at the end of the turn, for callbacks may still hold its name */
    uint32_t   slot;            /* its keeper's number for it */
    pid_t      pid;             /* 0: not started yet, or gone */
    uint64_t   attempts;
    int64_t    started_at;
    int64_t    restart_at;      /* 0: not to be started again */
    uint32_t   backoff_ms;
    uint32_t   failures;        /* ends in a row before it was healthy */
    char       last_exit[MGR__EXIT_BYTES];
} mgr__proc;

typedef struct mgr__check {
    mgr__arena arena;
    mgr_check  check;
    const char *partition;      /* NULL: of the whole instance */
    bool       script;          /* else a TTL check */
    bool       registered;      /* Consul knows it */
    bool       update_due;      /* but not its state */
    bool       told;            /* its state, to handlers */
    bool       ended;           /* its partition is released: to be deregistered, then forgotten */
    mgr__health status;
    int64_t    not_before;      /* Consul refused it: ask again then */
    bool       refusal_told;
    int64_t    due_at;          /* script: next run; TTL: when it turns critical */
    int64_t    poll_at;         /* by_worker */
    mgr__proc *proc;            /* script: running */
    char       note[128];
} mgr__check;

typedef struct mgr__manager_post { void (*fn)(mgr *m, void *arg); void *arg; int ready; } mgr__manager_post;

typedef enum mgr__side_kind {
    MGR__SIDE_NONE, MGR__SIDE_CHECK_REGISTER, MGR__SIDE_CHECK_DEREGISTER, MGR__SIDE_CHECK_UPDATE, MGR__SIDE_CHECK_LIST, MGR__SIDE_JOIN
} mgr__side_kind;

struct mgr {
    mgr__heap     heap;
    mgr__arena    arena;        /* of the descriptor's strings */
    mgr_desc      desc;         /* whole: defaults resolved */
    const char   *directory;    /* where mgr_open was called: processes start there */
    mgr__io       io;
    mgr__loop     loop;
    mgr__http     http[MGR__LANE_COUNT];
    bool          queued[MGR__LANE_COUNT];      /* the core's request waits for a side request to end */
    mgr__address  addresses[MGR_ADDRESS_COUNT_MAX];
    size_t        address_count;
    mgr__consul   consul;
    mgr__cluster  cluster;
    mgr__buf      error, scratch;
    pid_t         pid;
    int           inside;       /* callbacks under way */
    bool          opened, is_over;
    mgr_result    result;

    mgr__keeper   keeper, agent_keeper;
    bool          have_keeper, have_agent_keeper;
    int64_t       keeper_retry_at;              /* making one failed; 0: not so */
    size_t        agent;                        /* address of the agent where our service is registered */
    int           keeper_fd, agent_keeper_fd;   /* as registered in the loop; -1 */
    const char   *run_dir;                      /* of life files; NULL: not yet looked for, "": there is none */
    int           life_fd;                      /* this life's file under flock; -1 */
    char         *life_path;
    char          life_note[600];               /* why there is no proof, until it is said */
    uint32_t      late_told_ms;                 /* the keeper's worst lateness that was an event */
    int64_t       lease;                        /* atomic copy of the word for mgr_lease_left_ms; 0: closed */

    mgr__work   **works;
    size_t        work_count, work_cap;
    mgr__proc   **procs;
    size_t        proc_count, proc_cap;
    mgr__check  **checks;
    size_t        check_count, check_cap;
    mgr_grant    *grants;

    mgr__request  side;
    mgr__side_kind side_kind;
    mgr__check   *side_check;
    int64_t       side_not_before;
    char         *join_address;

    mgr__manager_post posts[MGR__POST_COUNT_MAX];
    uint32_t      post_head, post_tail;         /* atomic head: reserved by posters; tail: run by the loop */
    int           leave_count, leave_seen;      /* atomic, written by any thread */
    int           signal_fd;
    sigset_t      signal_mask;
    bool          signal_masked;

    bool          call_done;    /* observers: the answer to the one request out, */
    mgr__answer   call_answer;
    mgr__buf      call_body;    /* and what its views look at */
    char          call_text[MGR__HTTP_TEXT_BYTES];
};

/* ---- errors and events ---- */

static mgr_result mgr__manager_fail(mgr *m, mgr_result result, const char *format, ...) MGR__PRINTF(3, 4);
static mgr_result mgr__manager_fail(mgr *m, mgr_result result, const char *format, ...)
{
    char text[700];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    mgr__one_line(text);
    mgr__buf_clear(&m->error);
    mgr__buf_text(&m->error, text);
    return result;
}

static mgr_result mgr__manager_no_memory(mgr *m) { return mgr__manager_fail(m, MGR_NO_MEMORY, "out of memory"); }

static void mgr__manager_tell(mgr *m, const mgr_event *event)
{
    m->inside++;
    if (m->desc.on_event) m->desc.on_event(m, event, m->desc.user);
    if (m->desc.on_log) {
        mgr_log_level level = MGR_LOG_INFO;
        if (event->kind == MGR_EVENT_ERROR) level = MGR_LOG_ERROR;
        if (event->kind == MGR_EVENT_CONSUL_DOWN) level = MGR_LOG_WARN;
        m->desc.on_log(level, event->text, m->desc.user);
    }
    m->inside--;
}

static mgr_event mgr__manager_event(mgr_event_kind kind)
{
    mgr_event event;
    memset(&event, 0, sizeof event);
    event.kind = kind;
    event.partition = event.instance = event.name = event.text = "";
    return event;
}

static void mgr__manager_tell_proc(mgr *m, mgr_event_kind kind, const mgr__proc *proc, int status, const char *format, ...)
    MGR__PRINTF(5, 6);
static void mgr__manager_tell_proc(mgr *m, mgr_event_kind kind, const mgr__proc *proc, int status, const char *format, ...)
{
    char text[700];
    mgr_event event = mgr__manager_event(kind);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    event.partition = proc->work ? proc->work->part->name.at : "";
    event.name = proc->name;
    event.pid = proc->pid;
    event.status = status;
    event.fence = proc->work ? proc->work->part->fence : 0;
    event.text = text;
    mgr__manager_tell(m, &event);
}

/* Something of this program or its keeper is amiss. */
static void mgr__manager_tell_error(mgr *m, const char *format, ...) MGR__PRINTF(2, 3);
static void mgr__manager_tell_error(mgr *m, const char *format, ...)
{
    char text[700];
    mgr_event event = mgr__manager_event(MGR_EVENT_ERROR);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    event.text = text;
    mgr__manager_tell(m, &event);
}

static bool mgr__manager_forked(const mgr *m) { return m->io.process(m->io.user) != m->pid; }

/* ---- requests of the core ---- */

/* What a request is built of, again for each connection that is tried. */
typedef struct mgr__manager_parcel { const mgr__consul *consul; const mgr__request *request; } mgr__manager_parcel;

static bool mgr__manager_build_request(void *arg, mgr__str host, mgr__buf *out)
{
    const mgr__manager_parcel *parcel = (const mgr__manager_parcel *)arg;
    return mgr__consul_format(parcel->consul, parcel->request, host, out);
}

static int64_t mgr__manager_request_timeout(const mgr *m, const mgr__request *r)
{
    if (r->ask == MGR__ASK_WATCH) return (int64_t)r->wait_ms + r->wait_ms / 16 + MGR__WATCH_EXTRA_MS;
    if (r->lane == MGR__LANE_LEASE) return mgr__max64(500, (int64_t)m->cluster.config.lease_ms / 5);
    return MGR__REQUEST_TIMEOUT_MS;
}

static void mgr__manager_send(mgr *m, mgr__lane lane, mgr__request *r, int64_t timeout_ms)
{
    mgr__manager_parcel *parcel = (mgr__manager_parcel *)mgr__arena_alloc(&r->arena, sizeof *parcel);
    if (!parcel) { m->cluster.failed = true; return; }
    parcel->consul = &m->consul;
    parcel->request = r;
    bool local = r->ask >= MGR__ASK_SERVICE_REGISTER && r->ask != MGR__ASK_CATALOG_DEREGISTER;
    if (local && m->http[lane].current != m->agent) {     /* only our own agent knows our service and its checks */
        mgr__http_cancel(&m->http[lane]);
        m->http[lane].current = m->agent;
    }
    mgr__http_send(&m->http[lane], mgr__manager_build_request, parcel, mgr__consul_repeat(r), mgr__io_now(&m->io) + timeout_ms);
}

/* The core's service registration is made here: tags and addresses are no concern of its. */
static mgr__str mgr__manager_service_body(mgr *m, mgr__request *r)
{
    mgr__buf out;
    mgr__jw jw;
    mgr__buf_init(&out, &m->heap, 1u << 20);
    mgr__jw_init(&jw, &out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "ID");   mgr__jw_str(&jw, r->name);
    mgr__jw_key(&jw, "Name"); mgr__jw_text(&jw, m->desc.service_name);
    mgr__jw_key(&jw, "Tags");
    mgr__jw_array(&jw);
    for (size_t i = 0; i < m->desc.tag_count; i++) mgr__jw_text(&jw, m->desc.tags[i]);
    mgr__jw_array_end(&jw);
    if (m->desc.address) { mgr__jw_key(&jw, "Address"); mgr__jw_text(&jw, m->desc.address); }
    if (m->desc.port) { mgr__jw_key(&jw, "Port"); mgr__jw_u64(&jw, m->desc.port); }
    mgr__jw_key(&jw, "Meta");
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "manager_service");  mgr__jw_text(&jw, m->desc.service_id);
    mgr__jw_key(&jw, "manager_instance"); mgr__jw_text(&jw, m->desc.instance_id);
    mgr__jw_object_end(&jw);
    mgr__jw_key(&jw, "Checks");
    mgr__jw_array(&jw);
    mgr__jw_object(&jw);
    char ttl[32];
    snprintf(ttl, sizeof ttl, "%lums", (unsigned long)m->desc.delay_ms + MGR__TTL_EXTRA_MS);
    mgr__jw_key(&jw, "CheckID"); mgr__jw_str(&jw, r->name);
    mgr__jw_key(&jw, "Name");    mgr__jw_text(&jw, "manager.h: the instance confirms its lease");
    mgr__jw_key(&jw, "TTL");     mgr__jw_text(&jw, ttl);
    mgr__jw_key(&jw, "Status");  mgr__jw_text(&jw, "passing");
    mgr__jw_key(&jw, "DeregisterCriticalServiceAfter"); mgr__jw_text(&jw, "1m");
    mgr__jw_object_end(&jw);
    mgr__jw_array_end(&jw);
    mgr__jw_object_end(&jw);
    return mgr__request_keep(r, &out);
}

static void mgr__manager_send_core(mgr *m, mgr__lane lane)
{
    mgr__request *r = &m->cluster.errands[lane].request;
    if (mgr__http_busy(&m->http[lane])) { m->queued[lane] = true; return; }    /* a side request, with a short deadline */
    m->queued[lane] = false;
    if (r->ask == MGR__ASK_SERVICE_REGISTER) r->body = mgr__manager_service_body(m, r);
    mgr__manager_send(m, lane, r, mgr__manager_request_timeout(m, r));
}

/* ---- the keeper ---- */

static void mgr__manager_hear_keeper(void *owner, short revents) { (void)owner; (void)revents; }   /* the turn looks at it */

static void mgr__manager_watch_keeper(mgr *m, mgr__keeper *keeper, int *registered)
{
    int fd = mgr__keeper_fd(keeper);
    if (*registered == fd) {
        if (fd >= 0) mgr__loop_change(&m->loop, fd, (short)(POLLIN | (mgr__keeper_wants_write(keeper) ? POLLOUT : 0)));
        return;
    }
    if (*registered >= 0) mgr__loop_remove(&m->loop, *registered);
    *registered = -1;
    if (fd >= 0 && mgr__loop_add(&m->loop, fd, POLLIN, mgr__manager_hear_keeper, m) == 0) *registered = fd;
}

static void mgr__manager_unwatch_keeper(mgr *m, int *registered)
{
    if (*registered >= 0) mgr__loop_remove(&m->loop, *registered);
    *registered = -1;
}

static const char *mgr__manager_isolate_text(mgr_isolate isolate)
{
    return isolate == MGR_ISOLATE_CGROUP ? "cgroup" : isolate == MGR_ISOLATE_PIDNS ? "pidns" : "none";
}

/* Where life files go: the first that is ours alone. "": nowhere, and life_note says why. */
static void mgr__manager_find_run_dir(mgr *m)
{
    char own[64], real[PATH_MAX] = "";
    const char *xdg = getenv("XDG_RUNTIME_DIR"), *given = m->desc.run_dir, *why = NULL;
    snprintf(own, sizeof own, "/tmp/manager-%lu", (unsigned long)mgr__process_euid());
    const char *places[3] = { xdg && xdg[0] == '/' ? xdg : NULL, "/run/manager", own };
    int code = -ENOENT;
    m->run_dir = "";
    for (size_t i = 0; i < (given ? 1 : MGR__COUNT(places)) && code < 0; i++) {
        const char *place = given ? given : places[i];
        if (!place) continue;
        code = mgr__process_dir_ours(place, real, &why);
        if (code == 0) m->run_dir = mgr__arena_str(&m->arena, mgr__str_of(real)).at;
    }
    if (code == 0) { mgr__process_life_sweep(m->run_dir); return; }
    why = why ? why : mgr__io_text(code);
    if (given)
        snprintf(m->life_note, sizeof m->life_note, "run_dir \"%.200s\" is of no use for life files: \"%.200s\": %s", given, real, why);
    else
        snprintf(m->life_note, sizeof m->life_note,
                 "no folder for life files (%.200s: %s): after a crash of everything on this host a restart waits the delay; "
                 "set run_dir to one that is 0700 and ours, below none that others can write to", real, why);
}

/* A folder that was asked for by name must do; without a default one, only the proof is off. */
static mgr_result mgr__manager_check_run_dir(mgr *m)
{
    if (!m->desc.run_dir || m->desc.observer) return MGR_OK;
    mgr__manager_find_run_dir(m);
    return m->run_dir[0] ? MGR_OK : mgr__manager_fail(m, MGR_INVALID, "%s", m->life_note);
}

/* A new file for the life of a keeper that is about to be made. Without one there is
 * no proof, which is said, and nothing else amiss. */
static void mgr__manager_make_life(mgr *m)
{
    uint64_t number = 0;
    char name[32], path[PATH_MAX];
    if (!m->run_dir) mgr__manager_find_run_dir(m);
    if (!m->run_dir[0]) return;     /* life_note says why */
    int code = m->io.random(m->io.user, &number, sizeof number);
    snprintf(name, sizeof name, "manager-%016llx.life", (unsigned long long)number);
    if (code >= 0 && (size_t)snprintf(path, sizeof path, "%s/%s", m->run_dir, name) >= sizeof path) code = -ENAMETOOLONG;
    if (code >= 0) code = mgr__process_life_make(path);
    m->life_fd = code < 0 ? -1 : code;
    m->life_path = m->life_fd >= 0 ? mgr__dup(&m->heap, mgr__str_of(path)) : NULL;
    if (m->life_path && mgr__life_evidence(m->life_fd, name, m->cluster.proof, sizeof m->cluster.proof)) return;
    snprintf(m->life_note, sizeof m->life_note,
             "no life file in %.200s (%s): after a crash of everything on this host a restart waits the delay",
             m->run_dir, code == -EOPNOTSUPP ? "a file system whose locks cannot be relied on" : mgr__io_text(code < 0 ? code : -ENOMEM));
}

/* Our hold on it. Guard and keeper keep theirs until their clean-up has ended. */
static void mgr__manager_drop_life(mgr *m, bool remove)
{
    if (remove && m->life_path) mgr__process_unlink(m->life_path);
    mgr__process_close(m->life_fd);
    mgr__free(&m->heap, m->life_path);
    m->life_fd = -1;
    m->life_path = NULL;
    m->cluster.proof[0] = 0;
}

/* The life has its session: from now on its file says who acts for it. */
static void mgr__manager_describe_life(mgr *m)
{
    int code = m->life_fd < 0 ? 0 : mgr__keeper_describe(&m->keeper, m->life_fd, m->cluster.life, m->cluster.config.boot.at);
    if (code < 0)
        snprintf(m->life_note, sizeof m->life_note,
                 "the life file cannot be written (%s): after a crash of everything on this host a restart waits the delay",
                 mgr__io_text(code));
    if (m->life_note[0]) mgr__manager_tell_error(m, "%s", m->life_note);
    m->life_note[0] = 0;
}

/* Only our own look counts: the proof comes first, then the certificate. */
static void mgr__act_prove(mgr *m, const mgr__action *action, int64_t now)
{
    const char *why = "";
    if (!m->run_dir) mgr__manager_find_run_dir(m);
    mgr__verdict verdict = mgr__life_prove(m->run_dir, action->text, action->instance, m->cluster.config.boot.at, &why);
    mgr__cluster_proved(&m->cluster, mgr__str_of(action->instance), verdict, why, now);
}

static mgr_result mgr__manager_make_keeper(mgr *m, mgr__keeper *keeper, int *registered)
{
    mgr__keeper_config config;
    memset(&config, 0, sizeof config);
    config.lease_ms = m->desc.lease_ms;
    config.kill_margin_ms = MGR_KILL_MARGIN_MS;
    config.stop_grace_ms = m->desc.stop_grace_ms;
    config.isolate = m->desc.isolate;
    config.overrun_kill_host = m->desc.overrun_kill_host;
    config.keeper_argv = m->desc.keeper_argv;
    if (keeper == &m->keeper) mgr__manager_make_life(m);
    config.life_fd = keeper == &m->keeper ? m->life_fd : -1;
    config.life_path = config.life_fd >= 0 ? m->life_path : NULL;
    mgr__buf_clear(&m->error);
    mgr_result result = mgr__keeper_open(keeper, &m->heap, &config, &m->error);
    if (result == MGR_OK) mgr__manager_watch_keeper(m, keeper, registered);
    if (result == MGR_OK && keeper == &m->keeper) m->cluster.isolate = mgr__manager_isolate_text(mgr__keeper_isolation(keeper));
    if (result != MGR_OK && keeper == &m->keeper) mgr__manager_drop_life(m, true);
    return result;
}

static void mgr__manager_format_last(mgr *m, mgr__request *r, mgr__buf *out)
{
    mgr__buf_init(out, &m->heap, 65536);
    if (r->arena.failed || !mgr__consul_format(&m->consul, r, mgr__str_of("consul"), out)) mgr__buf_clear(out);
    mgr__arena_free(&r->arena);
}

/* What the keeper says to Consul when this program cannot: the life's certificate,
 * the end of its session, the service's end, in this order; and, while some of its work
 * cannot be killed, the renewal of the session and of its check, on our own agent first. */
static void mgr__manager_teach_keeper(mgr *m)
{
    struct sockaddr_storage addresses[MGR_ADDRESS_COUNT_MAX];
    socklen_t lens[MGR_ADDRESS_COUNT_MAX];
    mgr__request r;
    mgr__buf certificate, destroy, deregister, renew, pass;
    mgr__cluster *c = &m->cluster;
    memset(&r, 0, sizeof r);
    mgr__request_start(&r, &m->heap, MGR__ASK_TXN, MGR__LANE_WORK);
    mgr__request_certify(&r, &c->root, mgr__str_of(c->life), "{\"proof\":\"the keeper saw all work dead\"}");
    mgr__manager_format_last(m, &r, &certificate);
    mgr__request_start(&r, &m->heap, MGR__ASK_SESSION_DESTROY, MGR__LANE_WORK);
    r.session = mgr__str_of(c->life);
    mgr__manager_format_last(m, &r, &destroy);
    mgr__request_start(&r, &m->heap, MGR__ASK_SERVICE_DEREGISTER, MGR__LANE_WORK);
    r.name = mgr__str_of(c->service);
    mgr__manager_format_last(m, &r, &deregister);
    mgr__request_start(&r, &m->heap, MGR__ASK_SESSION_RENEW, MGR__LANE_WORK);
    r.session = mgr__str_of(c->life);
    mgr__manager_format_last(m, &r, &renew);
    mgr__request_start(&r, &m->heap, MGR__ASK_CHECK_UPDATE, MGR__LANE_WORK);
    r.name = mgr__str_of(c->service);
    r.note = mgr__str_of("its program is gone, and some of its work cannot be killed");
    mgr__manager_format_last(m, &r, &pass);
    for (size_t i = 0; i < m->address_count; i++) {
        size_t from = (m->agent + i) % m->address_count;
        addresses[i] = m->addresses[from].at;
        lens[i] = m->addresses[from].len;
    }
    int64_t again_ms = mgr__min64(m->desc.session_ttl_ms, (int64_t)m->desc.delay_ms + MGR__TTL_EXTRA_MS) / 3;
    mgr__keeper_last_words(&m->keeper, addresses, lens, m->address_count, mgr__buf_view(&certificate), mgr__buf_view(&destroy),
                           mgr__buf_view(&deregister), mgr__buf_view(&renew), mgr__buf_view(&pass), (uint32_t)again_ms);
    mgr__buf_free(&certificate);
    mgr__buf_free(&destroy);
    mgr__buf_free(&deregister);
    mgr__buf_free(&renew);
    mgr__buf_free(&pass);
}

/* ---- works and processes ---- */

static mgr__work *mgr__work_of(const mgr__part *part) { return part ? (mgr__work *)part->work : NULL; }

static mgr__work *mgr__work_find(const mgr *m, const char *partition)
{
    return partition ? mgr__work_of(mgr__cluster_part(&m->cluster, mgr__str_of(partition))) : NULL;
}

static mgr__proc *mgr__proc_find(const mgr *m, const char *name)
{
    for (size_t i = 0; i < m->proc_count; i++)
        if (!m->procs[i]->check && !m->procs[i]->dropped && strcmp(m->procs[i]->name, name) == 0) return m->procs[i];
    return NULL;
}

/* Forget it: no name, no partition, no check. Callbacks may still hold its name, and
 * callers its address, so that it is freed by mgr__manager_procs_reap. */
static void mgr__proc_drop(mgr__proc *proc)
{
    if (proc->check) proc->check->proc = NULL;
    proc->check = NULL;
    proc->work = NULL;
    proc->restart_at = 0;
    proc->dropped = true;
}

/* At the end of a turn, when no callback and no caller holds any. */
static void mgr__manager_procs_reap(mgr *m, bool all)
{
    for (size_t i = m->proc_count; i > 0; i--) {
        mgr__proc *proc = m->procs[i - 1];
        if (!all && !proc->dropped) continue;
        m->procs[i - 1] = m->procs[--m->proc_count];
        mgr__arena_free(&proc->arena);
        mgr__free(&m->heap, proc);
    }
}

static const char **mgr__manager_copy_list(mgr__arena *arena, const char *const *list, size_t *count)
{
    size_t n = 0;
    while (list && list[n]) n++;
    const char **copy = (const char **)mgr__arena_alloc(arena, (n + 1) * sizeof *copy);
    for (size_t i = 0; copy && i < n; i++) copy[i] = mgr__arena_str(arena, mgr__str_of(list[i])).at;
    if (count) *count = n;
    return copy;
}

static bool mgr__env_is(const char *entry, const char *name)
{
    size_t len = strlen(name);
    return strncmp(entry, name, len) == 0 && entry[len] == '=';
}

/* Ours, without what a worker must not have or must not inherit from a manager above. */
static bool mgr__env_passes(const char *entry)
{
    return !mgr__env_is(entry, "CONSUL_HTTP_TOKEN") && !mgr__env_is(entry, "CONSUL_HTTP_TOKEN_FILE") && strncmp(entry, "MANAGER_", 8) != 0;
}

static const char *mgr__env_make(mgr__arena *arena, const char *name, const char *value)
{
    mgr__buf text;
    mgr__buf_init(&text, arena->heap, MGR_SPAWN_BYTES_MAX);
    mgr__buf_printf(&text, "%s=%s", name, value);
    if (text.failed) arena->failed = true;
    const char *made = mgr__arena_str(arena, mgr__buf_view(&text)).at;
    mgr__buf_free(&text);
    return made;
}

/* The whole environment of the next start, in `arena`. */
static const char **mgr__proc_environment(mgr *m, mgr__proc *proc, mgr__arena *arena)
{
    size_t own = 0, given = 0, at = 0;
    char number[32];
    while (environ && environ[own]) own++;
    while (proc->env && proc->env[given]) given++;
    const char **env = (const char **)mgr__arena_alloc(arena, (own + given + 10) * sizeof *env);
    if (!env) return NULL;
    for (size_t i = 0; i < own; i++) if (mgr__env_passes(environ[i])) env[at++] = environ[i];
    env[at++] = mgr__env_make(arena, "MANAGER_SERVICE", m->desc.service_id);
    env[at++] = mgr__env_make(arena, "MANAGER_INSTANCE", m->desc.instance_id);
    if (proc->work) {
        env[at++] = mgr__env_make(arena, "MANAGER_PARTITION", proc->work->part->name.at);
        snprintf(number, sizeof number, "%llu", (unsigned long long)proc->work->part->fence);
        env[at++] = mgr__env_make(arena, "MANAGER_FENCE", number);
        snprintf(number, sizeof number, "%llu", (unsigned long long)proc->attempts);
        env[at++] = mgr__env_make(arena, "MANAGER_ATTEMPT", number);
        for (size_t i = 0; i < m->check_count; i++) {
            mgr__check *check = m->checks[i];
            if (!check->check.by_worker || !check->partition || strcmp(check->partition, proc->work->part->name.at) != 0) continue;
            mgr__buf id;
            mgr__buf_init(&id, &m->heap, 4096);
            mgr__buf_printf(&id, "%s/%s", m->cluster.service, check->check.id);
            env[at++] = mgr__env_make(arena, "MANAGER_CHECK_ID", mgr__buf_cstr(&id));
            mgr__buf_free(&id);
            break;
        }
    }
    for (size_t i = 0; i < given; i++) env[at++] = proc->env[i];
    return env;
}

static void mgr__proc_schedule(mgr *m, mgr__proc *proc, int64_t now)
{
    uint32_t least = proc->process.backoff_min_ms, most = proc->process.backoff_max_ms;
    if (proc->started_at && now - proc->started_at >= (int64_t)proc->process.healthy_ms) proc->backoff_ms = proc->failures = 0;
    proc->backoff_ms = proc->backoff_ms ? (proc->backoff_ms < most / 2 ? proc->backoff_ms * 2 : most) : least;
    proc->restart_at = now + proc->backoff_ms;
    mgr__manager_tell_proc(m, MGR_EVENT_BACKOFF, proc, 0, "process %s of partition %s: %s; restart in %lu ms", proc->name,
                   proc->work ? proc->work->part->name.at : "(none)", proc->last_exit, (unsigned long)proc->backoff_ms);
}

/* A partition has ended when all its processes were to run once, and have. */
static void mgr__proc_note(mgr *m, mgr__proc *proc)
{
    bool ended = true;
    if (!proc->work || proc->check) return;
    for (size_t i = 0; i < m->proc_count; i++)
        if (m->procs[i]->work == proc->work && !m->procs[i]->check) ended = ended && m->procs[i]->ended;
    mgr__cluster_note_work(&m->cluster, proc->work->part, proc->attempts, proc->last_exit, ended);
}

/* A crash loop: another instance may be able to do it, if there is one. */
static void mgr__proc_give_up(mgr *m, mgr__proc *proc, int64_t now)
{
    mgr__part *part = proc->work ? proc->work->part : NULL;
    if (!part || part->refused || proc->failures < MGR__CRASH_LOOP || !mgr__cluster_others_may(&m->cluster, part)) return;
    mgr__cluster_refuse(&m->cluster, part, 0, now);
}

static void mgr__proc_not_started(mgr *m, mgr__proc *proc, int64_t now)
{
    mgr__proc_note(m, proc);
    if (proc->daemon && !(proc->work && proc->work->stopping)) mgr__proc_schedule(m, proc, now);
    else proc->ended = true;
}

static mgr_result mgr__proc_start(mgr *m, mgr__proc *proc, int64_t now)
{
    mgr__spawn spawn;
    mgr__arena arena;
    mgr__arena_init(&arena, &m->heap);
    memset(&spawn, 0, sizeof spawn);
    proc->attempts++;
    proc->restart_at = 0;
    spawn.argv = proc->argv;
    spawn.env = mgr__proc_environment(m, proc, &arena);
    spawn.directory = mgr__or(proc->process.directory, m->directory);
    spawn.stop_signal = proc->process.stop_signal;
    spawn.stop_grace_ms = proc->process.stop_grace_ms;
    spawn.start_timeout_ms = proc->process.start_timeout_ms;
    spawn.uid = proc->process.uid;
    spawn.gid = proc->process.gid;
    spawn.set_ids = proc->process.set_ids;
    spawn.discard_output = proc->process.discard_output;
    spawn.agent = !proc->work;
    mgr_result result = arena.failed ? MGR_NO_MEMORY : mgr__keeper_spawn(proc->keeper, &spawn, &proc->slot);
    mgr__arena_free(&arena);
    proc->alive = result == MGR_OK;
    proc->killed = proc->stuck_told = false;
    proc->started_at = now;
    if (result == MGR_OK) return result;
    snprintf(proc->last_exit, sizeof proc->last_exit, "not started");
    mgr__manager_tell_proc(m, MGR_EVENT_START_FAILED, proc, 0, "process %s cannot be started: %s", proc->name, mgr_result_text(result));
    if (!proc->dropped) mgr__proc_not_started(m, proc, now);    /* else its name was given to another one in the event */
    return result;
}

static void mgr__proc_defaults(const mgr *m, mgr_process *p)
{
    if (!p->stop_signal) p->stop_signal = SIGTERM;
    if (!p->stop_grace_ms) p->stop_grace_ms = m->desc.stop_grace_ms;
    if (!p->start_timeout_ms) p->start_timeout_ms = 10000;
    if (!p->backoff_min_ms) p->backoff_min_ms = 250;
    if (!p->backoff_max_ms) p->backoff_max_ms = 60000;
    if (!p->healthy_ms) p->healthy_ms = 10000;
}

/* A process entry with copies of everything; not started. NULL: out of memory. */
static mgr__proc *mgr__proc_add(mgr *m, mgr__work *work, const char *name, const mgr_process *process)
{
    void *items = m->procs;
    if (!mgr__grow(&m->heap, &items, &m->proc_cap, m->proc_count, sizeof *m->procs)) return NULL;
    m->procs = (mgr__proc **)items;
    mgr__proc *proc = (mgr__proc *)mgr__alloc(&m->heap, sizeof *proc);
    if (!proc) return NULL;
    mgr__arena_init(&proc->arena, &m->heap);
    proc->work = work;
    proc->keeper = &m->keeper;
    proc->process = *process;
    proc->argv = mgr__manager_copy_list(&proc->arena, process->argv, NULL);
    proc->env = mgr__manager_copy_list(&proc->arena, process->env, NULL);
    char *copy = (char *)mgr__arena_alloc(&proc->arena, strlen(name) + 1);
    if (copy) memcpy(copy, name, strlen(name));
    proc->name = copy;
    if (process->directory) proc->process.directory = mgr__arena_str(&proc->arena, mgr__str_of(process->directory)).at;
    mgr__proc_defaults(m, &proc->process);
    if (proc->arena.failed) { mgr__arena_free(&proc->arena); mgr__free(&m->heap, proc); return NULL; }
    m->procs[m->proc_count++] = proc;
    return proc;
}

static void mgr__proc_stop(mgr__proc *proc, uint32_t within_ms)
{
    proc->restart_at = 0;
    if (proc->alive) mgr__keeper_stop(proc->keeper, proc->slot, within_ms);
}

static void mgr__work_stop_procs(mgr *m, const mgr__work *work, uint32_t within_ms)
{
    for (size_t i = 0; i < m->proc_count; i++) if (m->procs[i]->work == work) mgr__proc_stop(m->procs[i], within_ms);
}

/* Each within its own grace. */
static void mgr__work_stop_politely(mgr *m, const mgr__work *work)
{
    for (size_t i = 0; i < m->proc_count; i++)
        if (m->procs[i]->work == work) mgr__proc_stop(m->procs[i], m->procs[i]->process.stop_grace_ms);
}

static bool mgr__work_empty(const mgr *m, const mgr__work *work)
{
    for (size_t i = 0; i < m->proc_count; i++) if (m->procs[i]->work == work && m->procs[i]->alive) return false;
    return !work->in_process && !work->starting;
}

/* In-process work that was lost earlier in this life may go on for all we know. */
static void mgr__manager_note_in_process(mgr *m)
{
    bool any = m->cluster.unproven;
    for (size_t i = 0; i < m->work_count; i++) any = any || m->works[i]->in_process || m->works[i]->starting;
    if (m->have_keeper) mgr__keeper_in_process(&m->keeper, any);
}

static void mgr__work_close_grant(mgr__work *work) { if (work->grant) __atomic_store_n(&work->grant->open, 0, __ATOMIC_SEQ_CST); }

static void mgr__work_free(mgr *m, mgr__work *work)
{
    for (size_t i = 0; i < m->check_count; i++)
        if (m->checks[i]->partition && strcmp(m->checks[i]->partition, work->part->name.at) == 0) m->checks[i]->ended = true;
    for (size_t i = 0; i < m->proc_count; i++) if (m->procs[i]->work == work) mgr__proc_drop(m->procs[i]);
    mgr__work_close_grant(work);
    for (size_t i = 0; i < m->work_count; i++) if (m->works[i] == work) { m->works[i] = m->works[--m->work_count]; break; }
    work->part->work = NULL;
    mgr__free(&m->heap, work);
    mgr__manager_note_in_process(m);
}

/* Stopping, and nothing is left: tell the core. Not inside a callback, whose caller
 * still works on it: the turn looks at all again. */
static void mgr__work_look(mgr *m, mgr__work *work)
{
    if (m->inside || !work->stopping || !mgr__work_empty(m, work)) return;
    mgr__part *part = work->part;
    mgr__work_free(m, work);
    mgr__cluster_gone(&m->cluster, part);
}

/* Planned: the program is asked first, and may take its time within `within_ms`. */
static void mgr__work_release(mgr *m, mgr__work *work, uint32_t within_ms, int64_t now)
{
    mgr_answer answer = MGR_DONE;
    work->stopping = true;
    m->inside++;
    if (m->desc.on_release) answer = m->desc.on_release(m, work->part->name.at, within_ms, m->desc.user);
    m->inside--;
    if (work->let_go) answer = MGR_DONE;
    if (answer == MGR_DONE && !work->held) work->in_process = false;
    work->kill_at = answer == MGR_DONE ? 0 : now + within_ms;
    if (answer == MGR_DONE) mgr__work_stop_politely(m, work);
    for (size_t i = 0; i < m->proc_count; i++) if (m->procs[i]->work == work) m->procs[i]->restart_at = 0;
}

/* The lock is gone or doubtful. In-process work is told, and counts as ended when
 * on_lost returns, but its end is no proof: the life gets no certificate. */
static void mgr__work_lost(mgr *m, mgr__work *work, uint32_t within_ms, mgr_result why)
{
    work->stopping = work->lost = true;
    work->kill_at = 0;
    mgr__work_stop_procs(m, work, within_ms);
    m->inside++;
    if (m->desc.on_lost) m->desc.on_lost(m, work->part->name.at, why, m->desc.user);
    m->inside--;
    if (work->in_process) { m->cluster.unproven = true; m->cluster.certify = false; }
    if (!work->held) work->in_process = false;
}

static void mgr__work_begin(mgr *m, mgr__part *part)
{
    if (part->state != MGR__PART_ASSUMED) return;      /* lost or released again before its turn came */
    void *items = m->works;
    mgr__work *work = (mgr__work *)mgr__alloc(&m->heap, sizeof *work);
    mgr_grant *grant = (mgr_grant *)mgr__alloc(&m->heap, sizeof *grant);
    if (!work || !grant || !mgr__grow(&m->heap, &items, &m->work_cap, m->work_count, sizeof *m->works)) {
        mgr__free(&m->heap, work);
        mgr__free(&m->heap, grant);
        m->cluster.failed = true;
        return;
    }
    m->works = (mgr__work **)items;
    m->works[m->work_count++] = work;
    grant->m = m;
    grant->fence = part->fence;
    grant->open = 1;
    grant->next = m->grants;
    m->grants = grant;
    work->part = part;
    work->grant = grant;
    work->starting = true;
    part->work = work;
    mgr__manager_note_in_process(m);        /* before the program can begin anything: the keeper must not certify past it */
    if (mgr__keeper_lease(&m->keeper) <= mgr__io_now(&m->io)) {     /* and only then: is there a lease still? (invariant 3) */
        mgr__work_free(m, work);
        mgr__cluster_over(&m->cluster, MGR_EVENT_LEASE_LOST, "the lease ran out before work could begin", mgr__io_now(&m->io));
        return;
    }
    mgr_answer answer = MGR_DONE;
    m->inside++;
    if (m->desc.on_acquire) answer = m->desc.on_acquire(m, part->name.at, grant, m->desc.user);
    m->inside--;
    bool processes = false;
    for (size_t i = 0; i < m->proc_count; i++) processes = processes || m->procs[i]->work == work;
    work->starting = false;
    if (!processes && answer != MGR_UNFIT && m->desc.on_acquire) work->in_process = true;
    if (answer == MGR_UNFIT) mgr__cluster_refuse(&m->cluster, part, 0, mgr__io_now(&m->io));
    mgr__manager_note_in_process(m);
}

static const char *mgr__manager_exit_text(char to[MGR__EXIT_BYTES], int status, int error)
{
    if (error) snprintf(to, MGR__EXIT_BYTES, "not started: %s", strerror(error));
    else if (status < 0) snprintf(to, MGR__EXIT_BYTES, "signal %d", -status);
    else snprintf(to, MGR__EXIT_BYTES, "exit %d", status);
    return to;
}

/* ---- checks ---- */

static void mgr__check_set(mgr *m, mgr__check *check, mgr__health status, const char *note)
{
    bool changed = check->status != status || !check->told;
    mgr__copy_text(check->note, sizeof check->note, mgr__str_of(note));
    check->update_due = true;
    if (!changed) return;
    check->status = status;
    check->told = true;
    char text[900];
    mgr_event event = mgr__manager_event(MGR_EVENT_CHECK);
    snprintf(text, sizeof text, "check %s is %s%s%s", check->check.id, mgr__health_word(status), note[0] ? ": " : "", note);
    event.partition = mgr__or(check->partition, "");
    event.name = check->check.id;
    event.status = (int)status;
    event.text = text;
    mgr__manager_tell(m, &event);
    void (*handler)(mgr *, const char *, const char *, void *) = check->check.on_failure;
    if (status == MGR__HEALTH_PASSING) handler = check->check.on_pass;
    if (status == MGR__HEALTH_WARNING) handler = check->check.on_warning;
    m->inside++;
    if (handler) handler(m, check->check.id, check->partition, check->check.user ? check->check.user : m->desc.user);
    m->inside--;
    mgr__work *work = mgr__work_find(m, check->partition);
    if (status != MGR__HEALTH_CRITICAL || !work || work->stopping) return;
    if (check->check.policy == MGR_CHECK_REFUSE) mgr__cluster_refuse(&m->cluster, work->part, 0, mgr__io_now(&m->io));
    if (check->check.policy == MGR_CHECK_RESTART)
        for (size_t i = 0; i < m->proc_count; i++)
            if (m->procs[i]->work == work && m->procs[i]->daemon && m->procs[i]->alive)
                mgr__keeper_stop(m->procs[i]->keeper, m->procs[i]->slot, m->procs[i]->process.stop_grace_ms);
}

static void mgr__check_ran(mgr *m, mgr__check *check, const mgr__proc *proc, int status, int error)
{
    char note[128], text[MGR__EXIT_BYTES];
    if (proc->killed) snprintf(note, sizeof note, "killed after %lu ms", (unsigned long)check->check.timeout_ms);
    else snprintf(note, sizeof note, "%s", mgr__manager_exit_text(text, status, error));
    if (proc->work && proc->work->stopping) return;
    mgr__health health = MGR__HEALTH_CRITICAL;
    if (!proc->killed && !error && status == 0) health = MGR__HEALTH_PASSING;
    if (!proc->killed && !error && status == 1) health = MGR__HEALTH_WARNING;
    mgr__check_set(m, check, health, note);
}

/* ---- reports of the keeper ---- */

static void mgr__proc_ended(mgr *m, mgr__proc *proc, int status, int error, int64_t now)
{
    mgr__work *work = proc->work;
    bool stopping = work && work->stopping;
    mgr__keeper_free(proc->keeper, proc->slot);
    proc->alive = false;
    mgr__manager_exit_text(proc->last_exit, status, error);
    if (proc->check) {
        mgr__check *check = proc->check;
        mgr__check_ran(m, check, proc, status, error);
        mgr__proc_drop(proc);
        if (work) mgr__work_look(m, work);
        return;
    }
    if (error)
        mgr__manager_tell_proc(m, MGR_EVENT_START_FAILED, proc, 0, "process %s (%s) cannot be started: %s",
                               proc->name, proc->argv[0], strerror(error));
    else
        mgr__manager_tell_proc(m, MGR_EVENT_EXITED, proc, status, "process %s (pid %ld) ended: %s",
                               proc->name, (long)proc->pid, proc->last_exit);
    proc->pid = 0;
    if (!proc->dropped && !proc->daemon) {      /* in each event its name may be given to another one */
        proc->ended = true;
        if (!stopping)
            mgr__manager_tell_proc(m, MGR_EVENT_ENDED, proc, status, "process %s was to run once, and has ended: %s",
                                   proc->name, proc->last_exit);
    }
    if (!proc->dropped) mgr__proc_note(m, proc);
    if (!proc->dropped && proc->daemon && !stopping) {
        proc->failures += error ? MGR__CRASH_START : 1;
        mgr__proc_schedule(m, proc, now);
        mgr__proc_give_up(m, proc, now);
    }
    if (work) mgr__work_look(m, work);
}

/* Also of one that ended before anybody looked: no end without a start. */
static void mgr__proc_started(mgr *m, mgr__proc *proc, const mgr__worker_report *report)
{
    if (proc->pid == report->pid) return;
    proc->pid = report->pid;
    proc->ended = false;
    if (proc->check) return;
    mgr__manager_tell_proc(m, MGR_EVENT_STARTED, proc, 0, "started process %s (pid %ld, attempt %llu)",
                           proc->name, (long)proc->pid, (unsigned long long)proc->attempts);
    mgr__proc_note(m, proc);
}

static void mgr__manager_take_report(mgr *m, mgr__keeper *keeper, const mgr__worker_report *report, int64_t now)
{
    mgr__proc *proc = NULL;
    for (size_t i = 0; i < m->proc_count && !proc; i++)
        if (m->procs[i]->alive && m->procs[i]->keeper == keeper && m->procs[i]->slot == report->slot) proc = m->procs[i];
    if (!proc) return;
    if (report->stuck && !proc->stuck_told) {
        proc->stuck_told = true;
        mgr__manager_tell_proc(m, MGR_EVENT_STUCK, proc, 0,
                               "process %s (pid %ld) cannot be killed: its partition stays locked until it is gone",
                               proc->name, (long)report->pid);
    }
    switch (report->state) {
    case MGR__WORKER_RUNNING: mgr__proc_started(m, proc, report); break;
    case MGR__WORKER_EMPTY:
        mgr__proc_started(m, proc, report);
        mgr__proc_ended(m, proc, report->status, 0, now);
        break;
    case MGR__WORKER_FAILED: mgr__proc_ended(m, proc, report->status, report->error ? report->error : EIO, now); break;
    case MGR__WORKER_FREE: case MGR__WORKER_STARTING: case MGR__WORKER_STOPPING: case MGR__WORKER_EXITED: break;
    }
}

static void mgr__manager_take_sweep(mgr *m, mgr__keeper *keeper, int64_t now)
{
    for (bool again = true; again;) {
        again = false;
        for (size_t i = 0; i < m->proc_count && !again; i++) {
            mgr__proc *proc = m->procs[i];
            if (!proc->alive || proc->keeper != keeper) continue;
            mgr__proc_ended(m, proc, -SIGKILL, 0, now);
            again = true;
        }
    }
}

/* For the calls that may come from any thread: the word, while there is a life. */
static void mgr__manager_publish_lease(mgr *m)
{
    int64_t until = m->have_keeper && m->cluster.life[0] ? mgr__keeper_lease(&m->keeper) : 0;
    __atomic_store_n(&m->lease, until, __ATOMIC_SEQ_CST);
}

/* An agent that we run goes on under a new one. */
static void mgr__manager_renew_agent_keeper(mgr *m, int64_t now)
{
    mgr__manager_unwatch_keeper(m, &m->agent_keeper_fd);
    mgr__manager_take_sweep(m, &m->agent_keeper, now);
    mgr__keeper_close(&m->agent_keeper);
    m->have_agent_keeper = mgr__manager_make_keeper(m, &m->agent_keeper, &m->agent_keeper_fd) == MGR_OK;
}

/* A keeper that runs late (a CPU quota, a loaded host) acts that much earlier; beyond
 * half the margin it is worth a word. */
static void mgr__manager_note_lateness(mgr *m)
{
    uint32_t late_ms = mgr__keeper_late_ms(&m->keeper);
    if (late_ms <= MGR_KILL_MARGIN_MS / 2 || late_ms <= m->late_told_ms) return;
    m->late_told_ms = late_ms;
    mgr__manager_tell_error(m, "the keeper was run %lu ms late: this host is overloaded, or limited by a CPU quota",
                            (unsigned long)late_ms);
}

static void mgr__manager_turn_keepers(mgr *m, int64_t now)
{
    mgr__worker_report report;
    if (m->have_keeper) {
        mgr__keeper_turn(&m->keeper);
        while (mgr__keeper_next(&m->keeper, &report)) mgr__manager_take_report(m, &m->keeper, &report, now);
        mgr__keeper_status status = mgr__keeper_look(&m->keeper);
        /* A lease that ran out while we slept may be swept already: that is no lost keeper. */
        bool ran_out = m->cluster.lease_until && now >= m->cluster.lease_until - (int64_t)m->desc.stop_grace_ms;
        if (status == MGR__KEEPER_CLOSED || (status != MGR__KEEPER_ALIVE && ran_out))
            mgr__cluster_over(&m->cluster, MGR_EVENT_LEASE_LOST, "the lease was not confirmed in time: the keeper ended the work", now);
        if (status == MGR__KEEPER_DEAD || status == MGR__KEEPER_SWEPT)
            mgr__cluster_over(&m->cluster, MGR_EVENT_KEEPER_LOST, "the keeper or its guard is gone", now);
        /* Guard and keeper died at once: the work is past its deadline, but nobody saw it dead. */
        if (status == MGR__KEEPER_UNPROVEN) {
            mgr__cluster_over(&m->cluster, MGR_EVENT_KEEPER_LOST,
                              "keeper and guard died at once, and nobody can prove that the work is dead: no certificate", now);
            m->cluster.unproven = true;
            m->cluster.certify = false;
        }
        if (status == MGR__KEEPER_SWEPT || status == MGR__KEEPER_UNPROVEN) mgr__manager_take_sweep(m, &m->keeper, now);
        mgr__manager_note_lateness(m);
    }
    mgr__manager_publish_lease(m);
    if (m->have_agent_keeper) {
        mgr__keeper_turn(&m->agent_keeper);
        while (mgr__keeper_next(&m->agent_keeper, &report)) mgr__manager_take_report(m, &m->agent_keeper, &report, now);
        if (mgr__keeper_look(&m->agent_keeper) != MGR__KEEPER_ALIVE) mgr__manager_renew_agent_keeper(m, now);
    }
}

static void mgr__manager_note_certificate(mgr *m)
{
    const char *fault = mgr__keeper_certificate_fault(&m->keeper);
    if (fault) mgr__manager_tell_error(m, "the keeper could not certify that the former life's work is dead: %s", fault);
}

static void mgr__manager_renew_keeper(mgr *m)
{
    mgr__manager_unwatch_keeper(m, &m->keeper_fd);
    if (m->have_keeper) {
        mgr__manager_note_certificate(m);
        mgr__keeper_dismiss(&m->keeper);
        mgr__keeper_close(&m->keeper);
    }
    mgr__manager_drop_life(m, true);        /* what can be certified of the life that ended, this program certifies */
    m->have_keeper = mgr__manager_make_keeper(m, &m->keeper, &m->keeper_fd) == MGR_OK;
    m->keeper_retry_at = m->have_keeper ? 0 : mgr__io_now(&m->io) + MGR__KEEPER_RETRY_MS;
    if (m->have_keeper) { mgr__cluster_ready(&m->cluster); return; }
    mgr_event event = mgr__manager_event(MGR_EVENT_ERROR);
    event.text = mgr__buf_cstr(&m->error);
    event.result = MGR_SYSTEM;
    mgr__manager_tell(m, &event);       /* and again in a moment: a fork may fail for want of memory */
}

/* ---- the core's actions ---- */

static void mgr__act_event(mgr *m, const mgr__action *action)
{
    mgr_event event = mgr__manager_event(action->event);
    event.partition = action->part ? action->part->name.at : "";
    event.instance = action->instance;
    event.fence = action->part && action->event != MGR_EVENT_WAITING ? action->part->fence : 0;     /* who waits has none */
    event.result = action->result;
    event.text = action->text;
    bool reason = event.kind == MGR_EVENT_ERROR || event.kind == MGR_EVENT_IDENTITY || event.kind == MGR_EVENT_EVICTED;
    /* For mgr_error_text, should mgr_run end with it. */
    if (reason) { mgr__buf_clear(&m->error); mgr__buf_text(&m->error, action->text); }
    mgr__manager_tell(m, &event);
}

static void mgr__act_stop(mgr *m, const mgr__action *action, int64_t now)
{
    mgr__part *part = action->part;
    mgr__work *work = mgr__work_of(part);
    if (!work) { mgr__cluster_gone(&m->cluster, part); return; }
    bool kill = action->kind == MGR__ACT_WORK_KILL, lost = part->state == MGR__PART_LOST;
    uint32_t within_ms = kill ? 0 : action->ms;
    if (lost) mgr__work_close_grant(work);
    mgr__manager_publish_lease(m);
    if (lost && !work->lost) mgr__work_lost(m, work, within_ms, action->result);
    else {
        if (!lost && !(kill && work->stopping)) mgr__work_release(m, work, within_ms, now);
        if (kill) mgr__work_stop_procs(m, work, 0);     /* asked a second time, it may be: at once */
    }
    mgr__work_look(m, work);
}

static void mgr__act(mgr *m, const mgr__action *action, int64_t now)
{
    switch (action->kind) {
    case MGR__ACT_REQUEST:    mgr__manager_send_core(m, action->lane); break;
    case MGR__ACT_WORK_BEGIN: mgr__work_begin(m, action->part); break;
    case MGR__ACT_WORK_STOP: case MGR__ACT_WORK_KILL: mgr__act_stop(m, action, now); break;
    case MGR__ACT_LEASE:
        if (!mgr__keeper_lease_extend(&m->keeper, action->at))
            mgr__cluster_over(&m->cluster, MGR_EVENT_LEASE_LOST, "the keeper closed the lease", now);
        mgr__manager_publish_lease(m);
        break;
    case MGR__ACT_LIFE:
        mgr__manager_describe_life(m);
        mgr__manager_teach_keeper(m);
        mgr__manager_note_in_process(m);
        for (size_t i = 0; i < m->check_count; i++) m->checks[i]->registered = false;
        break;
    case MGR__ACT_FRESH_KEEPER: mgr__manager_renew_keeper(m); break;
    case MGR__ACT_PROVE: mgr__act_prove(m, action, now); break;
    case MGR__ACT_EVENT: mgr__act_event(m, action); break;
    case MGR__ACT_LEFT:
        m->is_over = true;
        m->result = action->result;
        break;
    }
}

/* Out of memory: nothing can be decided any more, so all work is ended. */
static void mgr__manager_give_up(mgr *m)
{
    for (size_t i = 0; i < m->work_count; i++) {
        mgr__work_close_grant(m->works[i]);
        if (!m->works[i]->lost) mgr__work_lost(m, m->works[i], 0, MGR_NO_MEMORY);
    }
    m->is_over = true;
    m->result = mgr__manager_fail(m, MGR_NO_MEMORY, "out of memory: the instance gives up its work");
}

/* Actions make events, events make actions: until all is quiet. */
static void mgr__manager_run_core(mgr *m, int64_t now)
{
    mgr__cluster *c = &m->cluster;
    c->wall_offset_ms = (uint64_t)(m->io.realtime_ms(m->io.user) - now);
    do {
        mgr__cluster_pump(c, now);
        for (size_t i = 0; i < c->action_count; i++) {
            mgr__action action = c->actions[i];     /* a copy: callbacks may add more */
            mgr__act(m, &action, now);
        }
        c->action_count = 0;
        mgr__cluster_pump(c, now);
    } while (c->action_count);
    if (c->failed && !m->is_over) mgr__manager_give_up(m);
}

/* ---- side requests: checks and joining, on the work connection when it is free ---- */

static mgr__str mgr__check_consul_id(mgr *m, mgr__request *r, const mgr__check *check)
{
    mgr__buf id;
    mgr__buf_init(&id, &m->heap, 4096);
    mgr__buf_printf(&id, "%s/%s", m->cluster.service, check->check.id);
    return mgr__request_keep(r, &id);
}

static void mgr__side_register(mgr *m, mgr__request *r, mgr__check *check)
{
    mgr__buf out;
    mgr__jw jw;
    char ttl[32];
    uint64_t ttl_ms = check->check.ttl_ms;
    if (check->script) ttl_ms = (uint64_t)check->check.interval_ms * 2 + check->check.timeout_ms + MGR__CHECK_EXTRA_MS;
    snprintf(ttl, sizeof ttl, "%llums", (unsigned long long)ttl_ms);
    mgr__buf_init(&out, &m->heap, 65536);
    mgr__jw_init(&jw, &out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "ID");        mgr__jw_str(&jw, mgr__check_consul_id(m, r, check));
    mgr__jw_key(&jw, "Name");      mgr__jw_text(&jw, check->check.name);
    mgr__jw_key(&jw, "ServiceID"); mgr__jw_text(&jw, m->cluster.service);
    mgr__jw_key(&jw, "TTL");       mgr__jw_text(&jw, ttl);
    mgr__jw_key(&jw, "Status");    mgr__jw_text(&jw, mgr__health_word(check->told ? check->status : MGR__HEALTH_PASSING));
    mgr__jw_object_end(&jw);
    r->ask = MGR__ASK_CHECK_REGISTER;
    r->body = mgr__request_keep(r, &out);
}

static void mgr__check_free(mgr *m, mgr__check *check)
{
    if (check) mgr__arena_free(&check->arena);
    mgr__free(&m->heap, check);
}

static void mgr__check_forget(mgr *m, mgr__check *check)
{
    for (size_t i = 0; i < m->check_count; i++) if (m->checks[i] == check) { m->checks[i] = m->checks[--m->check_count]; break; }
    if (check->proc) check->proc->check = NULL;
    mgr__check_free(m, check);
}

static bool mgr__side_next(mgr *m, int64_t now)
{
    mgr__request *r = &m->side;
    mgr__request_start(r, &m->heap, MGR__ASK_AGENT_JOIN, MGR__LANE_WORK);
    m->side_check = NULL;
    if (m->join_address) {
        m->side_kind = MGR__SIDE_JOIN;
        r->name = mgr__arena_str(&r->arena, mgr__str_of(m->join_address));
        return true;
    }
    if (m->cluster.phase != MGR__PHASE_MEMBER) return false;
    for (size_t i = 0; i < m->check_count; i++) {
        mgr__check *check = m->checks[i];
        m->side_check = check;
        if (now < check->not_before) continue;
        if (check->ended && !check->registered) { mgr__check_forget(m, check); i--; continue; }
        if (check->ended) {
            m->side_kind = MGR__SIDE_CHECK_DEREGISTER;
            r->ask = MGR__ASK_CHECK_DEREGISTER;
            r->name = mgr__check_consul_id(m, r, check);
            return true;
        }
        if (!check->registered) { m->side_kind = MGR__SIDE_CHECK_REGISTER; mgr__side_register(m, r, check); return true; }
        if (check->update_due && !check->check.by_worker) {
            m->side_kind = MGR__SIDE_CHECK_UPDATE;
            r->ask = MGR__ASK_CHECK_UPDATE;
            r->name = mgr__check_consul_id(m, r, check);
            r->status = check->status;
            r->note = mgr__arena_str(&r->arena, mgr__str_of(check->note));
            return true;
        }
        if (check->check.by_worker && now >= check->poll_at) {
            m->side_kind = MGR__SIDE_CHECK_LIST;
            r->ask = MGR__ASK_CHECK_LIST;
            return true;
        }
    }
    return false;
}

static void mgr__side_send(mgr *m, int64_t now)
{
    if (m->side_kind != MGR__SIDE_NONE || now < m->side_not_before || mgr__http_busy(&m->http[MGR__LANE_WORK]) || m->desc.observer) return;
    if (!mgr__side_next(m, now)) return;
    mgr__manager_send(m, MGR__LANE_WORK, &m->side, MGR__SIDE_TIMEOUT_MS);
}

static mgr__health mgr__health_read(mgr__str word)
{
    if (mgr__str_is(word, mgr__health_word(MGR__HEALTH_PASSING))) return MGR__HEALTH_PASSING;
    return mgr__str_is(word, mgr__health_word(MGR__HEALTH_WARNING)) ? MGR__HEALTH_WARNING : MGR__HEALTH_CRITICAL;
}

/* What workers said to Consul of their own TTL checks. */
static void mgr__side_listed(mgr *m, const mgr__answer *a, int64_t now)
{
    mgr__request r;
    memset(&r, 0, sizeof r);
    mgr__request_start(&r, &m->heap, MGR__ASK_CHECK_LIST, MGR__LANE_WORK);
    for (size_t i = 0; i < m->check_count; i++) {
        mgr__check *check = m->checks[i];
        if (!check->check.by_worker) continue;
        check->poll_at = now + mgr__max64(MGR__CHECK_POLL_MS, check->check.ttl_ms / 10);
        mgr__str id = mgr__check_consul_id(m, &r, check);
        for (size_t k = 0; k < a->kv_count; k++) {
            if (!mgr__str_eq(a->kvs[k].key, id)) continue;
            mgr__health health = mgr__health_read(a->kvs[k].value);
            bool critical = health == MGR__HEALTH_CRITICAL;
            mgr__check_set(m, check, health, critical ? "its TTL ran out, or the worker said so" : "as Consul has it");
        }
    }
    mgr__arena_free(&r.arena);
}

static void mgr__check_refused(mgr *m, mgr__check *check, const mgr__answer *a, int64_t now)
{
    bool refused = mgr__answer_refused(a) || a->status >= 400;
    check->not_before = now + MGR__SIDE_RETRY_MS;
    if (!refused || check->refusal_told) return;
    char text[700];
    mgr_event event = mgr__manager_event(MGR_EVENT_ERROR);
    check->refusal_told = true;
    snprintf(text, sizeof text, "Consul does not take check %s: %.*s", check->check.id, mgr__str_width(a->text, 300), a->text.at);
    event.name = check->check.id;
    event.text = text;
    mgr__manager_tell(m, &event);
}

static void mgr__side_answer(mgr *m, const mgr__answer *a, int64_t now)
{
    mgr__side_kind kind = m->side_kind;
    mgr__check *check = m->side_check;
    bool ok = a->outcome == MGR__OUTCOME_OK;
    m->side_kind = MGR__SIDE_NONE;
    if (!ok && check) mgr__check_refused(m, check, a, now);
    else if (!ok) m->side_not_before = now + MGR__SIDE_RETRY_MS;
    switch (kind) {
    case MGR__SIDE_JOIN: if (ok && m->join_address) { mgr__free(&m->heap, m->join_address); m->join_address = NULL; } break;
    case MGR__SIDE_CHECK_REGISTER: check->registered = ok; break;
    case MGR__SIDE_CHECK_DEREGISTER: if (ok || a->outcome == MGR__OUTCOME_NOT_FOUND) check->registered = false; break;
    case MGR__SIDE_CHECK_UPDATE:
        if (ok) check->update_due = false;
        else if (a->outcome == MGR__OUTCOME_UNKNOWN) check->registered = false;     /* 500: the agent does not know the check */
        break;
    case MGR__SIDE_CHECK_LIST: if (ok) mgr__side_listed(m, a, now); break;
    case MGR__SIDE_NONE: break;
    }
}

/* ---- answers ---- */

/* A stale answer, by its own word, is none. */
static void mgr__manager_parse(mgr *m, const mgr__request *r, const mgr__http_result *result, mgr__answer *out)
{
    mgr__consul_parse(r, result, &m->scratch, out);
    if (out->outcome == MGR__OUTCOME_OK && out->no_leader) out->outcome = MGR__OUTCOME_UNKNOWN;
}

/* An observer looks at the answer when the connection has forgotten it. */
static void mgr__call_answered(mgr *m, const mgr__http_result *result)
{
    mgr__http_result kept = *result;
    mgr__copy_text(m->call_text, sizeof m->call_text, mgr__str_of(result->text));
    mgr__buf_clear(&m->call_body);
    mgr__buf_str(&m->call_body, result->body);
    kept.body = mgr__buf_view(&m->call_body);
    kept.text = m->call_text;
    if (m->call_body.failed) {
        kept.outcome = MGR__OUTCOME_UNKNOWN;
        kept.text = "out of memory for the answer";
    }
    mgr__manager_parse(m, &m->side, &kept, &m->call_answer);
    m->call_done = true;
}

static void mgr__manager_answered(void *owner, mgr__http *h, const mgr__http_result *result)
{
    mgr *m = (mgr *)owner;
    mgr__lane lane = (mgr__lane)(h - m->http);
    mgr__answer answer;
    int64_t now = mgr__io_now(&m->io);
    bool side = lane == MGR__LANE_WORK && m->side_kind != MGR__SIDE_NONE;
    if (m->desc.observer) { mgr__call_answered(m, result); return; }
    mgr__manager_parse(m, side ? &m->side : &m->cluster.errands[lane].request, result, &answer);
    if (result->status >= 500 || result->status == 429) mgr__http_move_on(h);   /* an agent without a leader: another may have one */
    if (side) { mgr__side_answer(m, &answer, now); return; }
    if (m->cluster.errands[lane].task == MGR__TASK_NODE && answer.outcome == MGR__OUTCOME_OK) m->agent = result->address;
    mgr__cluster_answer(&m->cluster, lane, &answer, now);
}

/* ---- one turn ---- */

/* Those that stand now: one that posts itself again gets its turn in the next. */
static void mgr__manager_take_posts(mgr *m)
{
    uint32_t until = __atomic_load_n(&m->post_head, __ATOMIC_ACQUIRE);
    while (m->post_tail != until) {
        mgr__manager_post *post = &m->posts[m->post_tail % MGR__POST_COUNT_MAX];
        if (!__atomic_load_n(&post->ready, __ATOMIC_ACQUIRE)) return;
        void (*fn)(mgr *, void *) = post->fn;
        void *arg = post->arg;
        __atomic_store_n(&post->ready, 0, __ATOMIC_RELEASE);
        __atomic_store_n(&m->post_tail, m->post_tail + 1, __ATOMIC_RELEASE);
        m->inside++;
        fn(m, arg);
        m->inside--;
    }
}

static void mgr__manager_take_leaves(mgr *m)
{
    int count = __atomic_load_n(&m->leave_count, __ATOMIC_SEQ_CST);
    for (; m->leave_seen < count; m->leave_seen++) mgr__cluster_leave(&m->cluster);
}

static void mgr__manager_run_procs(mgr *m, int64_t now)
{
    for (size_t i = 0; i < m->proc_count; i++) {
        mgr__proc *proc = m->procs[i];
        bool may = !proc->work || (proc->work->part->state == MGR__PART_ASSUMED && !proc->work->stopping);
        bool able = proc->keeper == &m->agent_keeper ? m->have_agent_keeper : m->have_keeper;
        if (proc->restart_at && now >= proc->restart_at && may && able) mgr__proc_start(m, proc, now);
    }
    for (size_t i = 0; i < m->work_count; i++) {
        mgr__work *work = m->works[i];
        if (!work->kill_at || now < work->kill_at) continue;
        work->kill_at = 0;
        mgr__work_stop_procs(m, work, 0);
    }
}

static void mgr__check_run(mgr *m, mgr__check *check, mgr__work *work, int64_t now)
{
    mgr_process process;
    memset(&process, 0, sizeof process);
    process.argv = check->check.argv;
    process.discard_output = true;
    check->due_at = now + check->check.interval_ms;
    mgr__proc *proc = mgr__proc_add(m, work, check->check.id, &process);
    if (!proc) return;
    proc->check = check;
    check->proc = proc;
    if (mgr__proc_start(m, proc, now) == MGR_OK) return;
    mgr__proc_drop(proc);
    mgr__check_set(m, check, MGR__HEALTH_CRITICAL, "the script cannot be started");
}

static void mgr__manager_run_checks(mgr *m, int64_t now)
{
    if (!mgr__cluster_in_life(&m->cluster)) return;
    for (size_t i = 0; i < m->check_count; i++) {
        mgr__check *check = m->checks[i];
        mgr__work *work = mgr__work_find(m, check->partition);
        bool watched = !check->partition || (work && !work->stopping);
        if (!watched) { if (!check->script) check->due_at = now + check->check.ttl_ms; continue; }
        if (check->proc && !check->proc->killed && now - check->proc->started_at > (int64_t)check->check.timeout_ms) {
            check->proc->killed = true;
            mgr__proc_stop(check->proc, 0);
        }
        if (now < check->due_at) continue;
        if (check->script && !check->proc) mgr__check_run(m, check, work, now);
        else if (!check->script && !check->check.by_worker) {
            check->due_at = now + check->check.ttl_ms;
            mgr__check_set(m, check, MGR__HEALTH_CRITICAL, "no report within its TTL");
        }
    }
}

static int64_t mgr__manager_next_time(mgr *m, int64_t now)
{
    int64_t at = mgr__cluster_next(&m->cluster, now);
    if (m->have_keeper) at = mgr__min64(at, now + m->desc.lease_ms / 5);    /* a silent keeper is noticed by looking */
    for (int i = 0; i < MGR__LANE_COUNT; i++) at = mgr__min64(at, mgr__http_deadline(&m->http[i]));
    for (size_t i = 0; i < m->proc_count; i++) if (m->procs[i]->restart_at) at = mgr__min64(at, m->procs[i]->restart_at);
    for (size_t i = 0; i < m->work_count; i++) if (m->works[i]->kill_at) at = mgr__min64(at, m->works[i]->kill_at);
    for (size_t i = 0; i < m->check_count; i++) {
        const mgr__check *check = m->checks[i];
        int64_t due = check->check.by_worker ? check->poll_at : check->due_at;
        if (check->proc) due = mgr__min64(due, check->proc->started_at + (int64_t)check->check.timeout_ms);
        at = mgr__min64(at, mgr__max64(now + MGR__CHECK_LOOK_MS, due));
    }
    if (m->side_not_before > now) at = mgr__min64(at, m->side_not_before);
    if (m->keeper_retry_at) at = mgr__min64(at, m->keeper_retry_at);
    if (m->have_keeper && m->keeper.alone_at) at = mgr__min64(at, now + MGR__ALONE_LOOK_MS);
    return at;
}

static void mgr__manager_turn(mgr *m)
{
    int64_t now = mgr__io_now(&m->io);
    for (int i = 0; i < MGR__LANE_COUNT; i++) mgr__http_tick(&m->http[i], now);
    mgr__manager_take_posts(m);
    mgr__manager_take_leaves(m);
    mgr__manager_turn_keepers(m, now);
    mgr__manager_run_core(m, now);
    mgr__manager_run_procs(m, now);
    mgr__manager_run_checks(m, now);
    for (size_t i = m->work_count; i > 0; i--) if (i <= m->work_count) mgr__work_look(m, m->works[i - 1]);
    mgr__manager_run_core(m, now);
    if (m->keeper_retry_at && now >= m->keeper_retry_at) mgr__manager_renew_keeper(m);
    for (int i = 0; i < MGR__LANE_COUNT; i++) if (m->queued[i] && !mgr__http_busy(&m->http[i])) mgr__manager_send_core(m, (mgr__lane)i);
    mgr__side_send(m, now);
    if (m->have_keeper) { mgr__keeper_turn(&m->keeper); mgr__manager_watch_keeper(m, &m->keeper, &m->keeper_fd); }
    if (m->have_agent_keeper) { mgr__keeper_turn(&m->agent_keeper); mgr__manager_watch_keeper(m, &m->agent_keeper, &m->agent_keeper_fd); }
    mgr__manager_procs_reap(m, false);
    mgr__loop_deadline(&m->loop, m->is_over ? now : mgr__max64(1, mgr__manager_next_time(m, now)));
}

static mgr_result mgr__manager_over_result(const mgr *m)
{
    if (!m->is_over) return MGR_OK;
    return m->result == MGR_OK ? MGR_LEFT : m->result;
}

/* ---- signals: only with handle_signals ---- */

#ifdef __linux__
static void mgr__manager_signal_ready(void *owner, short revents)
{
    mgr *m = (mgr *)owner;
    char info[128];     /* struct signalfd_siginfo is 128 bytes, for ever: signalfd(2) */
    (void)revents;
    while (m->io.read(m->io.user, m->signal_fd, info, sizeof info) == (ssize_t)sizeof info) mgr_leave(m);
}
#endif

/* ---- the descriptor ---- */

static const char *mgr__desc_text(mgr *m, const char *text) { return text ? mgr__arena_str(&m->arena, mgr__str_of(text)).at : NULL; }

static const char *mgr__desc_env(mgr *m, const char *given, const char *name)
{
    if (given && given[0]) return mgr__desc_text(m, given);
    return mgr__desc_text(m, m->io.environment(m->io.user, name));
}

static uint32_t mgr__desc_ms(uint32_t given, uint32_t otherwise) { return given == MGR_NONE ? 0 : given ? given : otherwise; }

/* (lease + kill margin) * 1.002, rounded up: clocks drift. */
static uint64_t mgr__manager_delay_least(uint64_t lease_ms) { return ((lease_ms + MGR_KILL_MARGIN_MS) * 1002 + 999) / 1000; }

static void mgr__desc_times(mgr_desc *d)
{
    d->lease_ms = mgr__desc_ms(d->lease_ms, 15000);
    uint64_t least = mgr__manager_delay_least(d->lease_ms);
    d->delay_ms = mgr__desc_ms(d->delay_ms, (uint32_t)((least + MGR__DELAY_STEP_MS - 1) / MGR__DELAY_STEP_MS * MGR__DELAY_STEP_MS));
    d->session_ttl_ms = mgr__desc_ms(d->session_ttl_ms, 15000);
    d->stop_grace_ms = mgr__desc_ms(d->stop_grace_ms, d->lease_ms / 3);
    d->rejoin_grace_ms = mgr__desc_ms(d->rejoin_grace_ms, 0);
    d->settle_ms = mgr__desc_ms(d->settle_ms, 1000);
    d->moves_max = mgr__desc_ms(d->moves_max, 0);
    d->breaker_percent = mgr__desc_ms(d->breaker_percent, 50);
    d->start_timeout_ms = mgr__desc_ms(d->start_timeout_ms, 0);
    if (!d->weight) d->weight = 1;
}

static mgr_result mgr__desc_check_name(mgr *m, const char *field, const char *name)
{
    const char *fault = mgr__name_fault(mgr__str_of(name));
    return fault ? mgr__manager_fail(m, MGR_INVALID, "%s \"%s\" %s", field, name, fault) : MGR_OK;
}

static mgr_result mgr__desc_check_times(mgr *m)
{
    const mgr_desc *d = &m->desc;
    uint64_t least = mgr__manager_delay_least(d->lease_ms);
    if (d->lease_ms < 1000 || d->lease_ms > 86400000)
        return mgr__manager_fail(m, MGR_INVALID, "lease_ms is %lu: it must be from 1000 to 86400000", (unsigned long)d->lease_ms);
    if (d->delay_ms < least)
        return mgr__manager_fail(m, MGR_INVALID,
                                 "delay_ms %lu is too short: (lease_ms %lu + kill margin %lu) * 1.002 = %llu ms; "
                                 "raise delay_ms or lower lease_ms",
                                 (unsigned long)d->delay_ms, (unsigned long)d->lease_ms, (unsigned long)MGR_KILL_MARGIN_MS,
                                 (unsigned long long)least);
    if (d->stop_grace_ms > d->lease_ms / 2)
        return mgr__manager_fail(m, MGR_INVALID,
                                 "stop_grace_ms %lu is too long: it may be at most half of lease_ms %lu, "
                                 "or a hiccup of Consul would stop the work", (unsigned long)d->stop_grace_ms, (unsigned long)d->lease_ms);
    if (d->session_ttl_ms < 10000 || d->session_ttl_ms > 86400000)
        return mgr__manager_fail(m, MGR_INVALID, "session_ttl_ms is %lu: Consul takes 10000 to 86400000", (unsigned long)d->session_ttl_ms);
    if (d->placement > MGR_PLACEMENT_SLOTS)
        return mgr__manager_fail(m, MGR_INVALID, "placement is %d: it may be one of mgr_placement", (int)d->placement);
    if (d->run_dir && d->run_dir[0] != '/')
        return mgr__manager_fail(m, MGR_INVALID, "run_dir is %s: it must be a whole path, for guard and keeper live in /", d->run_dir);
    if (d->breaker_percent > 100)
        return mgr__manager_fail(m, MGR_INVALID, "breaker_percent is %lu: it may be at most 100", (unsigned long)d->breaker_percent);
    if (d->weight > 65535) return mgr__manager_fail(m, MGR_INVALID, "weight is %lu: it may be at most 65535", (unsigned long)d->weight);
    return MGR_OK;
}

static mgr_result mgr__desc_token(mgr *m)
{
    mgr_desc *d = &m->desc;
    d->consul_token = mgr__desc_env(m, d->consul_token, "CONSUL_HTTP_TOKEN");
    d->consul_token_file = mgr__desc_env(m, d->consul_token_file, "CONSUL_HTTP_TOKEN_FILE");
    if (!d->consul_token && d->consul_token_file) {
        mgr__buf text;
        mgr__buf_init(&text, &m->heap, 4096);
        int got = m->io.read_file(m->io.user, d->consul_token_file, &text);
        mgr__str token = mgr__io_trim(mgr__buf_view(&text));
        if (got >= 0) d->consul_token = mgr__arena_str(&m->arena, token).at;
        mgr__buf_free(&text);
        if (got < 0)
            return mgr__manager_fail(m, MGR_INVALID, "consul_token_file %s cannot be read: %s", d->consul_token_file, mgr__io_text(got));
    }
    m->consul.token = mgr__str_of(d->consul_token);
    for (size_t i = 0; i < m->consul.token.len; i++)
        if ((unsigned char)m->consul.token.at[i] < 0x21 || (unsigned char)m->consul.token.at[i] > 0x7e)
            return mgr__manager_fail(m, MGR_INVALID, "the Consul token has a character that no header may carry");
    return MGR_OK;
}

static bool mgr__desc_prefix_fit(const char *prefix)
{
    size_t len = strlen(prefix);
    for (size_t i = 0; i < len; i++) {
        if (!mgr__key_plain((unsigned char)prefix[i]) && prefix[i] != '/') return false;
        if (prefix[i] == '/' && (i == 0 || i + 1 == len || prefix[i + 1] == '/')) return false;
    }
    return len <= MGR_NAME_BYTES_MAX;
}

static mgr_result mgr__desc_take(mgr *m, const mgr_desc *given)
{
    mgr_desc *d = &m->desc;
    char host[MGR_NAME_BYTES_MAX + 1];
    *d = *given;
    if (d->_start_canary || d->_end_canary)
        return mgr__manager_fail(m, MGR_INVALID, "the mgr_desc was not zeroed before its fields were set");
    if (!d->service_name && !d->service_id) return mgr__manager_fail(m, MGR_INVALID, "service_name is missing");
    if (d->tag_count && !d->tags)
        return mgr__manager_fail(m, MGR_INVALID, "tags is NULL, and tag_count is %lu", (unsigned long)d->tag_count);
    if (d->partition_count && !d->partitions)
        return mgr__manager_fail(m, MGR_INVALID, "partitions is NULL, and partition_count is %lu", (unsigned long)d->partition_count);
    d->service_id = mgr__desc_text(m, given->service_id ? given->service_id : given->service_name);
    d->service_name = mgr__desc_text(m, given->service_name ? given->service_name : given->service_id);
    memset(host, 0, sizeof host);
    if (!given->instance_id && m->io.hostname(m->io.user, host, sizeof host) < 0)
        return mgr__manager_fail(m, MGR_SYSTEM, "the host name cannot be read: set instance_id");
    d->instance_id = mgr__desc_text(m, given->instance_id ? given->instance_id : host);
    d->kv_prefix = mgr__desc_text(m, given->kv_prefix && given->kv_prefix[0] ? given->kv_prefix : "manager");
    d->address = mgr__desc_text(m, given->address);
    d->consul_addr = mgr__desc_env(m, given->consul_addr, "CONSUL_HTTP_ADDR");
    if (!d->consul_addr) d->consul_addr = "127.0.0.1:8500";
    const char **tags = (const char **)mgr__arena_alloc(&m->arena, (given->tag_count + 1) * sizeof *tags);
    for (size_t i = 0; tags && i < given->tag_count; i++) tags[i] = mgr__desc_text(m, given->tags[i]);
    d->tags = tags;
    char directory[4096];
    mgr__io_directory(directory, sizeof directory);
    m->directory = mgr__desc_text(m, directory);
    d->run_dir = given->run_dir && given->run_dir[0] ? mgr__desc_text(m, given->run_dir) : NULL;
    if (given->keeper_argv) {
        const char **argv = mgr__manager_copy_list(&m->arena, (const char *const *)given->keeper_argv, NULL);
        memcpy(&d->keeper_argv, &argv, sizeof argv);    /* exec wants it without const; nobody writes to it */
    }
    mgr__desc_times(d);
    if (m->arena.failed) return mgr__manager_no_memory(m);
    mgr_result result = mgr__desc_check_name(m, "service_id", d->service_id);
    if (result == MGR_OK) result = mgr__desc_check_name(m, "service_name", d->service_name);
    if (result == MGR_OK) result = mgr__desc_check_name(m, "instance_id", d->instance_id);
    if (result == MGR_OK) result = mgr__desc_check_times(m);
    if (result == MGR_OK && !mgr__desc_prefix_fit(d->kv_prefix))
        result = mgr__manager_fail(m, MGR_INVALID,
                                   "kv_prefix \"%s\" may hold letters, digits, '_', '-' and single '/' between them, 255 bytes at most",
                                   d->kv_prefix);
    if (result == MGR_OK) result = mgr__desc_token(m);
    return result;
}

/* Of this boot and PID namespace: is the process still there? */
static bool mgr__manager_alive(void *user, uint64_t pid) { (void)user; return !mgr__process_ended((pid_t)pid, 0); }

static mgr_result mgr__manager_open_core(mgr *m)
{
    mgr__cluster_config config;
    mgr_desc *d = &m->desc;
    memset(&config, 0, sizeof config);
    config.service_id = mgr__str_of(d->service_id);
    config.service_name = mgr__str_of(d->service_name);
    config.instance_id = mgr__str_of(d->instance_id);
    config.kv_prefix = mgr__str_of(d->kv_prefix);
    config.partitions = d->partitions;
    config.partition_count = d->partition_count;
    config.partitions_version = d->partitions_version;
    config.placement = d->placement;
    config.weight = d->weight;
    config.lease_ms = d->lease_ms;
    config.kill_margin_ms = MGR_KILL_MARGIN_MS;
    config.stop_grace_ms = d->stop_grace_ms;
    config.delay_ms = d->delay_ms;
    config.session_ttl_ms = d->session_ttl_ms;
    config.rejoin_grace_ms = d->rejoin_grace_ms;
    config.settle_ms = d->settle_ms;
    config.moves_max = d->moves_max;
    config.breaker_percent = d->breaker_percent;
    config.start_timeout_ms = d->start_timeout_ms;
    char boot[160];
    mgr__io_boot(boot, sizeof boot);
    config.boot = mgr__arena_str(&m->arena, mgr__str_of(boot));
    config.pid = (uint64_t)m->pid;
    config.alive = boot[0] ? mgr__manager_alive : NULL;
    m->io.random(m->io.user, &config.seed, sizeof config.seed);
    mgr__buf_clear(&m->error);
    mgr_result result = mgr__cluster_open(&m->cluster, &m->heap, &config, mgr__io_now(&m->io), &m->error);
    m->desc.partitions = NULL;      /* the core has its copy */
    return result;
}

static mgr_result mgr__manager_open_loop(mgr *m)
{
    int failed = mgr__loop_open(&m->loop, &m->io, &m->heap);
    if (failed < 0) return mgr__manager_fail(m, MGR_SYSTEM, "no descriptors for the loop: %s", mgr__io_text(failed));
    for (int i = 0; i < MGR__LANE_COUNT; i++)
        mgr__http_init(&m->http[i], &m->io, &m->loop, &m->heap, m->addresses, m->address_count, mgr__manager_answered, m);
    return MGR_OK;
}

static mgr_result mgr__manager_open_signals(mgr *m)
{
    m->signal_fd = mgr__io_signals_open(&m->signal_mask);
    if (m->signal_fd < 0)
        return mgr__manager_fail(m, MGR_SYSTEM, "handle_signals: no signal descriptor (%s); call mgr_leave from a handler of your own",
                                 mgr__io_text(m->signal_fd));
    m->signal_masked = true;
#ifdef __linux__
    int failed = mgr__loop_add(&m->loop, m->signal_fd, POLLIN, mgr__manager_signal_ready, m);
    if (failed < 0) return mgr__manager_fail(m, MGR_SYSTEM, "handle_signals: %s", mgr__io_text(failed));
#endif
    return MGR_OK;
}

static mgr_result mgr__manager_open_parts(mgr *m, const mgr_desc *desc)
{
    mgr_result result = mgr__desc_take(m, desc);
    if (result == MGR_OK) result = mgr__manager_check_run_dir(m);
    if (result == MGR_OK) {
        mgr__buf_clear(&m->error);
        result = mgr__io_lookup(&m->io, m->desc.consul_addr, m->addresses, MGR_ADDRESS_COUNT_MAX, &m->address_count, &m->error);
    }
    if (result == MGR_OK) result = mgr__manager_open_core(m);
    if (result == MGR_OK) result = mgr__manager_open_loop(m);
    if (result != MGR_OK || m->desc.observer) return result;
    result = mgr__manager_make_keeper(m, &m->keeper, &m->keeper_fd);    /* before the signals are blocked here */
    m->have_keeper = result == MGR_OK;
    if (result == MGR_OK && m->desc.handle_signals) result = mgr__manager_open_signals(m);
    return result;
}

MGRAPI mgr_result mgr_open(mgr **out, const mgr_desc *desc)
{
    if (!out) return MGR_INVALID;
    mgr__heap heap = mgr__heap_make(desc ? &desc->allocator : NULL);
    mgr *m = (mgr *)mgr__alloc(&heap, sizeof *m);
    *out = m;
    if (!m) return MGR_NO_MEMORY;
    m->heap = heap;
    mgr__arena_init(&m->arena, &m->heap);
    mgr__arena_init(&m->side.arena, &m->heap);
    mgr__buf_init(&m->error, &m->heap, 4096);
    mgr__buf_init(&m->scratch, &m->heap, MGR_BODY_BYTES_MAX);
    mgr__buf_init(&m->call_body, &m->heap, MGR_BODY_BYTES_MAX);
    m->io = mgr__io_real();
    m->pid = m->io.process(m->io.user);
    m->keeper_fd = m->agent_keeper_fd = m->signal_fd = m->life_fd = -1;
    m->loop.wake_read = m->loop.wake_write = m->loop.timer = m->loop.epoll = -1;
    for (int i = 0; i < MGR__LANE_COUNT; i++) m->http[i].fd = -1;
    mgr_result result = desc ? mgr__manager_open_parts(m, desc) : mgr__manager_fail(m, MGR_INVALID, "a mgr_desc is needed");
    m->opened = result == MGR_OK;
    if (m->error.at) mgr__one_line(m->error.at);
    if (m->opened && !m->desc.observer) mgr__loop_deadline(&m->loop, 1);     /* to enter: a foreign loop polls before it dispatches */
    return result;
}

MGRAPI const char *mgr_error_text(const mgr *m)
{
    if (!m) return mgr_result_text(MGR_NO_MEMORY);
    return m->error.len ? mgr__buf_cstr(&m->error) : "no error";
}

/* ---- stepping ---- */

static mgr_result mgr__manager_may_step(mgr *m)
{
    if (!m || !m->opened) return MGR_INVALID;
    if (mgr__manager_forked(m)) return MGR_FORKED;
    if (m->inside) return MGR_REENTRANT;
    if (m->desc.observer) return mgr__manager_fail(m, MGR_NOT_MEMBER, "an observer has nothing to step: its calls wait by themselves");
    return MGR_OK;
}

MGRAPI mgr_result mgr_step(mgr *m, int timeout_ms)
{
    mgr_result may = mgr__manager_may_step(m);
    if (may != MGR_OK) return may;
    if (m->is_over) return mgr__manager_over_result(m);
    mgr__manager_turn(m);
    if (m->is_over) return mgr__manager_over_result(m);
    int failed = mgr__loop_wait(&m->loop, timeout_ms);
    if (failed < 0) return mgr__manager_fail(m, MGR_SYSTEM, "poll: %s", mgr__io_text(failed));
    mgr__manager_turn(m);
    return mgr__manager_over_result(m);
}

MGRAPI mgr_result mgr_run(mgr *m)
{
    mgr_result result;
    do result = mgr_step(m, -1); while (result == MGR_OK);
    return result == MGR_LEFT ? MGR_OK : result;
}

MGRAPI int mgr_fd(const mgr *m) { return m && m->opened ? mgr__loop_fd(&m->loop) : -1; }

MGRAPI size_t mgr_pollfds(mgr *m, struct pollfd *fds, size_t fd_count_max)
{
    return m && m->opened ? mgr__loop_pollfds(&m->loop, fds, fd_count_max) : 0;
}

MGRAPI int mgr_timeout_ms(const mgr *m)
{
    if (!m || !m->opened) return -1;
    int timeout_ms = mgr__loop_timeout_ms(&m->loop), most = MGR_KILL_MARGIN_MS / 4;
    return m->work_count && (timeout_ms < 0 || timeout_ms > most) ? most : timeout_ms;
}

MGRAPI mgr_result mgr_dispatch(mgr *m, const struct pollfd *fds, size_t fd_count)
{
    (void)fds; (void)fd_count;      /* hints: the loop asks the kernel itself */
    return mgr_step(m, 0);
}

MGRAPI mgr_result mgr_post(mgr *m, void (*fn)(mgr *, void *), void *arg)
{
    if (!m || !m->opened || !fn) return MGR_INVALID;
    if (mgr__manager_forked(m)) return MGR_FORKED;      /* its wake-up would reach the parent */
    uint32_t head = __atomic_load_n(&m->post_head, __ATOMIC_ACQUIRE);
    do {
        if (head - __atomic_load_n(&m->post_tail, __ATOMIC_ACQUIRE) >= MGR__POST_COUNT_MAX) return MGR_LIMIT;
    } while (!__atomic_compare_exchange_n(&m->post_head, &head, head + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    mgr__manager_post *post = &m->posts[head % MGR__POST_COUNT_MAX];
    post->fn = fn;
    post->arg = arg;
    __atomic_store_n(&post->ready, 1, __ATOMIC_RELEASE);
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

MGRAPI void mgr_leave(mgr *m)
{
    if (!m || !m->opened || mgr__manager_forked(m)) return;
    __atomic_add_fetch(&m->leave_count, 1, __ATOMIC_SEQ_CST);
    mgr__loop_wake(&m->loop);
}

/* After leaving, the keeper has nothing to do. Otherwise this is as our death: it
 * stops the work, certifies, destroys the session. */
static void mgr__manager_end_keeper(mgr *m)
{
    bool over = !m->cluster.life[0];
    if (over) mgr__keeper_dismiss(&m->keeper);
    mgr__keeper_close(&m->keeper);
    mgr__manager_drop_life(m, over);
}

MGRAPI void mgr_close(mgr *m)
{
    if (!m) return;
    MGR_ASSERT(!m->inside);     /* the caller of the callback would go on with what is freed here */
    bool forked = mgr__manager_forked(m);
    if (forked) mgr__loop_forked(&m->loop);     /* or the child would empty the parent's epoll set */
    for (int i = 0; i < MGR__LANE_COUNT; i++) if (m->http[i].loop) mgr__http_free(&m->http[i]);
    if (m->have_keeper && forked) { mgr__keeper_forked(&m->keeper); mgr__manager_drop_life(m, false); }
    if (m->have_keeper && !forked) mgr__manager_end_keeper(m);
    if (m->have_agent_keeper && forked) mgr__keeper_forked(&m->agent_keeper);
    if (m->have_agent_keeper && !forked) mgr__keeper_close(&m->agent_keeper);
    if (m->signal_masked && !forked) { mgr__loop_remove(&m->loop, m->signal_fd); mgr__io_signals_close(m->signal_fd, &m->signal_mask); }
    mgr__loop_close(&m->loop);
    for (size_t i = 0; i < m->work_count; i++) mgr__free(&m->heap, m->works[i]);
    mgr__manager_procs_reap(m, true);
    for (size_t i = 0; i < m->check_count; i++) mgr__check_free(m, m->checks[i]);
    while (m->grants) { mgr_grant *next = m->grants->next; mgr__free(&m->heap, m->grants); m->grants = next; }
    mgr__free(&m->heap, m->works);
    mgr__free(&m->heap, m->procs);
    mgr__free(&m->heap, m->checks);
    mgr__free(&m->heap, m->join_address);
    mgr__cluster_close(&m->cluster);
    mgr__arena_free(&m->side.arena);
    mgr__buf_free(&m->error);
    mgr__buf_free(&m->scratch);
    mgr__buf_free(&m->call_body);
    mgr__arena_free(&m->arena);
    mgr__heap heap = m->heap;
    mgr__free(&heap, m);
}

/* ---- grants and leases ---- */

MGRAPI int64_t mgr_lease_left_ms(const mgr *m)
{
    if (!m) return 0;
    int64_t until = __atomic_load_n(&m->lease, __ATOMIC_SEQ_CST);
    if (until <= 0) return 0;
    return mgr__max64(0, until - mgr__io_now(&m->io));
}

MGRAPI uint64_t mgr_grant_fence(const mgr_grant *grant) { return grant ? grant->fence : 0; }

MGRAPI int64_t mgr_grant_left_ms(const mgr_grant *grant)
{
    if (!grant || !__atomic_load_n(&grant->open, __ATOMIC_SEQ_CST)) return 0;
    return mgr_lease_left_ms(grant->m);
}

MGRAPI uint64_t mgr_fence(const mgr *m, const char *partition)
{
    mgr__work *work = m ? mgr__work_find(m, partition) : NULL;
    return work && !work->lost ? work->part->fence : 0;
}

/* ---- processes ---- */

static mgr_result mgr__manager_member_only(mgr *m)
{
    if (!m || !m->opened) return MGR_INVALID;
    if (mgr__manager_forked(m)) return MGR_FORKED;
    if (m->desc.observer) return mgr__manager_fail(m, MGR_NOT_MEMBER, "an observer runs no work");
    return MGR_OK;
}

static mgr_result mgr__manager_not_assumed(mgr *m, const char *partition)
{
    return mgr__manager_fail(m, MGR_STATE, "partition %s is not assumed by this instance", mgr__or(partition, "(null)"));
}

static mgr_result mgr__manager_run_process(mgr *m, const char *partition, const char *name, const mgr_process *process, bool daemon)
{
    mgr_result result = mgr__manager_member_only(m);
    if (result != MGR_OK) return result;
    if (!partition || !process || !process->argv || !process->argv[0])
        return mgr__manager_fail(m, MGR_INVALID, "a partition and a process with argv are needed");
    if (process->_start_canary || process->_end_canary)
        return mgr__manager_fail(m, MGR_INVALID, "the mgr_process of partition %s was not zeroed before its fields were set", partition);
    if (!name) name = partition;
    mgr__work *work = mgr__work_find(m, partition);
    if (!work || work->stopping) return mgr__manager_not_assumed(m, partition);
    mgr__proc *old = mgr__proc_find(m, name);
    if (old && (old->alive || old->restart_at || old->work != work))
        return mgr__manager_fail(m, MGR_CONFLICT, "a process named %s exists already", name);
    if (old) mgr__proc_drop(old);
    mgr__proc *proc = mgr__proc_add(m, work, name, process);
    if (!proc) return mgr__manager_fail(m, MGR_NO_MEMORY, "out of memory for process %s", name);
    proc->daemon = daemon;
    result = mgr__proc_start(m, proc, mgr__io_now(&m->io));
    mgr__loop_wake(&m->loop);
    if (result == MGR_OK) return MGR_OK;
    mgr__proc_drop(proc);
    return mgr__manager_fail(m, result, "process %s cannot be started: %s", name, mgr_result_text(result));
}

MGRAPI mgr_result mgr_exec(mgr *m, const char *partition, const char *name, const mgr_process *process)
{
    return mgr__manager_run_process(m, partition, name, process, false);
}

MGRAPI mgr_result mgr_daemonize(mgr *m, const char *partition, const char *name, const mgr_process *process)
{
    return mgr__manager_run_process(m, partition, name, process, true);
}

MGRAPI pid_t mgr_pid(const mgr *m, const char *name)
{
    mgr__proc *proc = m && name ? mgr__proc_find(m, name) : NULL;
    return proc && proc->alive ? proc->pid : 0;
}

MGRAPI mgr_result mgr_kill(mgr *m, const char *name, int signal_number)
{
    mgr_result result = mgr__manager_member_only(m);
    if (result != MGR_OK) return result;
    mgr__proc *proc = name ? mgr__proc_find(m, name) : NULL;
    if (signal_number < 0 || signal_number > 64) return mgr__manager_fail(m, MGR_INVALID, "%d is no signal", signal_number);
    if (!proc || !proc->alive) return mgr__manager_fail(m, MGR_NOT_FOUND, "no process named %s is running", mgr__or(name, "(null)"));
    mgr__keeper_signal(proc->keeper, proc->slot, signal_number);
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

/* ---- work inside the program ---- */

MGRAPI mgr_result mgr_hold(mgr *m, const char *partition)
{
    mgr_result result = mgr__manager_member_only(m);
    mgr__work *work = result == MGR_OK ? mgr__work_find(m, partition) : NULL;
    if (result != MGR_OK) return result;
    if (!work || work->stopping) return mgr__manager_not_assumed(m, partition);
    work->held = work->in_process = true;
    work->let_go = false;       /* an earlier mgr_released was not about this */
    mgr__manager_note_in_process(m);
    return MGR_OK;
}

MGRAPI mgr_result mgr_released(mgr *m, const char *partition)
{
    mgr_result result = mgr__manager_member_only(m);
    mgr__work *work = result == MGR_OK ? mgr__work_find(m, partition) : NULL;
    if (result != MGR_OK) return result;
    if (!work) return mgr__manager_fail(m, MGR_STATE, "partition %s is not held by this instance", mgr__or(partition, "(null)"));
    work->held = work->in_process = false;
    work->let_go = true;
    mgr__manager_note_in_process(m);
    if (work->stopping) mgr__work_stop_politely(m, work);
    mgr__work_look(m, work);
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

/* ---- observers: one request at a time, waited for ---- */

static mgr_result mgr__manager_outcome_result(mgr *m, const mgr__answer *a, const char *what)
{
    int len = mgr__str_width(a->text, 300);
    switch (a->outcome) {
    case MGR__OUTCOME_OK:        return MGR_OK;
    case MGR__OUTCOME_CONFLICT:  return mgr__manager_fail(m, MGR_CONFLICT, "%s: somebody changed it meanwhile; try again", what);
    case MGR__OUTCOME_NOT_FOUND: return mgr__manager_fail(m, MGR_NOT_FOUND, "%s: Consul does not know it", what);
    case MGR__OUTCOME_DENIED:
        return mgr__manager_fail(m, MGR_DENIED, "%s: the token lacks key_prefix \"manager/<service>/\" write (read, to look): %.*s",
                                 what, len, a->text.at);
    case MGR__OUTCOME_REJECTED:  return mgr__manager_fail(m, MGR_PROTOCOL, "%s: Consul refuses: %.*s", what, len, a->text.at);
    case MGR__OUTCOME_UNSENT: case MGR__OUTCOME_UNKNOWN: break;
    }
    return mgr__manager_fail(m, MGR_UNREACHABLE, "%s: no answer from Consul at %s: %.*s", what, m->desc.consul_addr, len, a->text.at);
}

/* Send m->side and wait. The answer's views live until the next call. */
static void mgr__call(mgr *m, uint32_t timeout_ms)
{
    mgr__http *h = &m->http[MGR__LANE_WORK];
    m->call_done = false;
    mgr__manager_send(m, MGR__LANE_WORK, &m->side, timeout_ms);
    while (!m->call_done) {
        mgr__loop_deadline(&m->loop, mgr__max64(1, mgr__http_deadline(h)));
        if (mgr__loop_wait(&m->loop, -1) < 0) break;
        mgr__http_tick(h, mgr__io_now(&m->io));
    }
    if (m->call_done) return;
    memset(&m->call_answer, 0, sizeof m->call_answer);
    m->call_answer.outcome = MGR__OUTCOME_UNKNOWN;
    m->call_answer.text = mgr__str_of("poll failed");
    mgr__http_cancel(h);
}

static mgr_result mgr__call_list(mgr *m, const char *below, uint32_t timeout_ms)
{
    mgr__request_start(&m->side, &m->heap, MGR__ASK_LIST, MGR__LANE_WORK);
    m->side.key = mgr__key_fixed(&m->side.arena, &m->cluster.root, below);
    mgr__call(m, timeout_ms);
    return mgr__manager_outcome_result(m, &m->call_answer, "reading the service's keys");
}

static mgr_result mgr__call_cluster(mgr *m, mgr__picture *picture, uint32_t timeout_ms)
{
    const mgr__answer *a = &m->call_answer;
    mgr_result result = mgr__call_list(m, "cluster/", timeout_ms);
    if (result != MGR_OK) return result;
    return mgr__picture_read(picture, &m->heap, &m->cluster.root, a->index, a->kvs, a->kv_count) ? MGR_OK : mgr__manager_no_memory(m);
}

/* ... of a service that has a partition set. */
static mgr_result mgr__call_picture(mgr *m, mgr__picture *picture, uint32_t timeout_ms)
{
    mgr_result result = mgr__call_cluster(m, picture, timeout_ms);
    if (result != MGR_OK) return result;
    if (mgr__marker_stands(&picture->marker)) return MGR_OK;
    mgr__picture_free(picture);
    return mgr__manager_fail(m, MGR_NOT_FOUND,
                             "service \"%s\" has no partition set under %s that we may read: "
                             "is the id right, does it need a token, and was an instance with partitions ever started?",
                             m->desc.service_id, m->cluster.root.text);
}

static mgr_result mgr__call_set(mgr *m, const mgr__picture *picture, mgr__set *set, uint32_t timeout_ms)
{
    mgr__request_start(&m->side, &m->heap, MGR__ASK_TXN, MGR__LANE_WORK);
    mgr__request_on(&m->side, MGR__GET, &m->cluster.root, "sets/", mgr__str_of(picture->marker.hash));
    mgr__call(m, timeout_ms);
    mgr_result result = mgr__manager_outcome_result(m, &m->call_answer, "reading the partition set");
    if (result != MGR_OK) return result;
    if (m->call_answer.kv_count && mgr__set_read(set, &m->heap, m->call_answer.kvs[0].value)) return MGR_OK;
    return mgr__manager_fail(m, MGR_PROTOCOL, "the partition set sets/%s cannot be read", picture->marker.hash);
}

static mgr_result mgr__call_wish(mgr *m, const char *instance, bool evict, bool drain)
{
    mgr__picture picture;
    mgr__buf value;
    mgr_result result = mgr__call_picture(m, &picture, MGR__REQUEST_TIMEOUT_MS);
    if (result != MGR_OK) return result;
    const mgr__member *member = mgr__picture_member(&picture, mgr__str_of(instance));
    const mgr__standing_wish *standing = mgr__picture_wish(&picture, mgr__str_of(instance));
    bool takes_back = !evict && !drain && standing && standing->wish.drain;     /* undrain of an instance that is away */
    if ((!member && !takes_back) || (evict && !member->alive)) {
        bool away = member != NULL;
        mgr__picture_free(&picture);
        if (away)
            return mgr__manager_fail(m, MGR_NOT_FOUND,
                                     "instance \"%s\" of service \"%s\" is not alive: draining it gives away what is kept for its return",
                                     instance, m->desc.service_id);
        return mgr__manager_fail(m, MGR_NOT_FOUND, "service \"%s\" has no instance \"%s\": see `manager status`",
                                 m->desc.service_id, instance);
    }
    mgr__wish wish;
    wish.drain = evict ? member->wish_drain : drain;
    wish.evict = evict ? member->life : standing ? standing->wish.evict : mgr__str_of("");
    mgr__request_start(&m->side, &m->heap, MGR__ASK_TXN, MGR__LANE_WORK);
    mgr__buf_init(&value, &m->heap, 4096);
    mgr__wish_write(&wish, &value);
    mgr__op *op = mgr__request_on(&m->side, MGR__CAS, &m->cluster.root, "cluster/wishes/", mgr__str_of(instance));
    op->index = standing ? standing->modify_index : 0;
    op->value = mgr__request_keep(&m->side, &value);
    mgr__picture_free(&picture);
    mgr__call(m, MGR__REQUEST_TIMEOUT_MS);
    return mgr__manager_outcome_result(m, &m->call_answer, "writing the wish");
}

/* The key may be gone already, or change on the way: then it is as was asked, or tried
 * again. Paused already, it goes on since then, for the reason that was given last. */
static mgr_result mgr__call_pause(mgr *m, bool on, mgr__str reason)
{
    mgr__picture picture;
    mgr_result result = MGR_CONFLICT;
    for (int tries = 0; tries < MGR__PAUSE_TRIES && result == MGR_CONFLICT; tries++) {
        result = mgr__call_picture(m, &picture, MGR__REQUEST_TIMEOUT_MS);
        if (result != MGR_OK) return result;
        mgr__pause standing = picture.pause, pause = picture.pause;
        bool paused = mgr__pause_told(&standing), done = on ? mgr__pause_as_told(&standing, reason) : !standing.exists;
        mgr__picture_free(&picture);
        if (done) return MGR_OK;
        pause.by = mgr__str_of(m->desc.instance_id);
        pause.reason = reason;
        pause.breaker = false;
        if (!paused) pause.since_ms = (uint64_t)m->io.realtime_ms(m->io.user);
        mgr__request_start(&m->side, &m->heap, MGR__ASK_TXN, MGR__LANE_WORK);
        mgr__op *op = mgr__request_op(&m->side, on ? MGR__CAS : MGR__DELETE_CAS,
                                      mgr__key_fixed(&m->side.arena, &m->cluster.root, "cluster/pause"));
        op->index = standing.modify_index;
        if (on) op->value = mgr__request_pause(&m->side, &pause);
        mgr__call(m, MGR__REQUEST_TIMEOUT_MS);
        result = mgr__manager_outcome_result(m, &m->call_answer, "writing cluster/pause");
    }
    return result;
}

/* set NULL: only the placement. */
static mgr_result mgr__call_set_partitions(mgr *m, mgr__set *set, mgr_placement placement)
{
    mgr__set none;
    mgr__setter *s = &m->cluster.setter;
    int64_t until = mgr__io_now(&m->io) + 4 * MGR__REQUEST_TIMEOUT_MS;
    memset(&none, 0, sizeof none);
    mgr__arena_init(&none.arena, &m->heap);
    mgr__setter_start(s, &m->heap, set ? set : &none, MGR__VERSION_STANDING, m->desc.delay_ms);
    s->keeps_set = !set;
    s->placement = placement;
    while (mgr__setter_busy(s)) {
        int64_t now = mgr__io_now(&m->io);
        if (now > until)
            return mgr__manager_fail(m, MGR_UNREACHABLE, "the partition set could not be put in force in time: no answer from Consul at %s",
                                     m->desc.consul_addr);
        mgr__request_start(&m->side, &m->heap, MGR__ASK_TXN, MGR__LANE_WORK);
        if (!mgr__setter_next(s, &m->heap, &m->cluster.root, &m->side, now)) {
            mgr__loop_deadline(&m->loop, mgr__max64(now, s->not_before));
            if (mgr__setter_busy(s)) mgr__loop_wait(&m->loop, -1);
            continue;
        }
        bool first = s->state == MGR__SETTER_LOOK;
        mgr__call(m, MGR__REQUEST_TIMEOUT_MS);
        if (first && !mgr__answer_came(&m->call_answer))
            return mgr__manager_outcome_result(m, &m->call_answer, "reading the partition set");
        mgr__setter_answer(s, &m->heap, &m->cluster.root, mgr__str_of(m->cluster.session_name), &m->call_answer, mgr__io_now(&m->io));
    }
    if (s->result == MGR_OK) return MGR_OK;
    return mgr__manager_fail(m, s->result, "%.*s", (int)s->trouble.len, s->trouble.at);
}

/* ---- the cluster ---- */

static mgr_result mgr__manager_usable(mgr *m)
{
    if (!m || !m->opened) return MGR_INVALID;
    return mgr__manager_forked(m) ? MGR_FORKED : MGR_OK;
}

static mgr_result mgr__manager_set(mgr *m, const char *const *names, size_t name_count, mgr_placement placement)
{
    mgr__set set;
    mgr__str bad;
    if (!names && name_count)
        return mgr__manager_fail(m, MGR_INVALID, "name_count is %lu, but there are no names", (unsigned long)name_count);
    for (size_t i = 0; i < name_count; i++)
        if (!names[i]) return mgr__manager_fail(m, MGR_INVALID, "name %lu of the partition set is NULL", (unsigned long)i);
    const char *fault = mgr__set_make(&set, &m->heap, names, name_count, &bad);
    if (fault) {
        mgr__manager_fail(m, MGR_INVALID, "partition \"%.*s\" %s", (int)bad.len, bad.at, fault);
        mgr__set_free(&set);
        return MGR_INVALID;
    }
    if (m->desc.observer) return mgr__call_set_partitions(m, &set, placement);
    mgr__cluster_command_set(&m->cluster, &set, placement);
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

MGRAPI mgr_result mgr_set_partitions(mgr *m, const char *const *names, size_t name_count)
{
    mgr_result result = mgr__manager_usable(m);
    return result == MGR_OK ? mgr__manager_set(m, names, name_count, MGR_PLACEMENT_DEFAULT) : result;
}

/* Slots are for equal weights: looked at beforehand, so that who asks is told. */
static mgr_result mgr__manager_weights_fit(mgr *m, const mgr__picture *picture)
{
    const mgr__member *odd = mgr__picture_odd_weight(picture, 0, mgr__nobody());
    if (!odd) return MGR_OK;
    return mgr__manager_fail(m, MGR_INVALID,
                             "placement slots is for equal weights, and instance %s has another (%llu) than those before it",
                             odd->id.at, (unsigned long long)odd->weight);
}

static mgr_result mgr__call_weights_fit(mgr *m)
{
    mgr__picture picture;
    mgr_result result = mgr__call_cluster(m, &picture, MGR__REQUEST_TIMEOUT_MS);
    if (result != MGR_OK) return result;
    result = mgr__manager_weights_fit(m, &picture);
    mgr__picture_free(&picture);
    return result;
}

MGRAPI mgr_result mgr_set_placement(mgr *m, mgr_placement placement, const char *const *names, size_t name_count)
{
    mgr_result result = mgr__manager_usable(m);
    if (result != MGR_OK) return result;
    if (placement != MGR_PLACEMENT_RUSH && placement != MGR_PLACEMENT_SLOTS)
        return mgr__manager_fail(m, MGR_INVALID, "placement is %d: MGR_PLACEMENT_RUSH or MGR_PLACEMENT_SLOTS", (int)placement);
    if (placement == MGR_PLACEMENT_SLOTS)
        result = m->desc.observer ? mgr__call_weights_fit(m) : mgr__manager_weights_fit(m, &m->cluster.picture);
    if (result != MGR_OK) return result;
    if (names || name_count) return mgr__manager_set(m, names, name_count, placement);
    if (m->desc.observer) return mgr__call_set_partitions(m, NULL, placement);
    mgr__cluster_command_set(&m->cluster, NULL, placement);
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

MGRAPI mgr_result mgr_drain(mgr *m, bool on)
{
    mgr_result result = mgr__manager_member_only(m);
    if (result == MGR_OK) { mgr__cluster_drain(&m->cluster, on); mgr__loop_wake(&m->loop); }
    return result;
}

MGRAPI mgr_result mgr_refuse(mgr *m, const char *partition, uint32_t for_ms)
{
    mgr_result result = mgr__manager_member_only(m);
    if (result != MGR_OK) return result;
    mgr__part *part = partition ? mgr__cluster_part(&m->cluster, mgr__str_of(partition)) : NULL;
    if (!part || !part->in_set) return mgr__manager_fail(m, MGR_NOT_FOUND, "no partition %s in the set", mgr__or(partition, "(null)"));
    if (for_ms) mgr__cluster_refuse(&m->cluster, part, for_ms, mgr__io_now(&m->io));
    else mgr__cluster_refuse_no_more(&m->cluster, part);
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

static mgr_result mgr__manager_put_wish(mgr *m, const char *instance, bool evict, bool drain)
{
    mgr_result result = mgr__manager_usable(m);
    if (result != MGR_OK) return result;
    if (!instance || !instance[0]) return mgr__manager_fail(m, MGR_INVALID, "an instance id is needed");
    if (m->desc.observer) return mgr__call_wish(m, instance, evict, drain);
    if (!mgr__picture_member(&m->cluster.picture, mgr__str_of(instance)))
        return mgr__manager_fail(m, MGR_NOT_FOUND, "no instance %s is a member", instance);
    if (!mgr__cluster_wish(&m->cluster, mgr__str_of(instance), evict, drain)) return mgr__manager_no_memory(m);
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

MGRAPI mgr_result mgr_evict(mgr *m, const char *instance) { return mgr__manager_put_wish(m, instance, true, false); }
MGRAPI mgr_result mgr_wish_drain(mgr *m, const char *instance, bool on) { return mgr__manager_put_wish(m, instance, false, on); }

MGRAPI mgr_result mgr_pause(mgr *m, bool on, const char *reason)
{
    mgr_result result = mgr__manager_usable(m);
    if (result != MGR_OK) return result;
    char kept[MGR__REASON_BYTES];
    mgr__copy_text(kept, sizeof kept, mgr__str_of(mgr__or(reason, "")));
    mgr__one_line(kept);
    if (m->desc.observer) return mgr__call_pause(m, on, mgr__str_of(kept));
    mgr__cluster_pause(&m->cluster, on, mgr__str_of(kept));
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

/* ---- health ---- */

static mgr__check *mgr__check_find(const mgr *m, const char *id)
{
    for (size_t i = 0; i < m->check_count; i++) if (strcmp(m->checks[i]->check.id, id) == 0) return m->checks[i];
    return NULL;
}

/* Given again, by the next acquisition say: the new one counts, a script that runs goes on. */
static mgr_result mgr__check_replace(mgr *m, mgr__check *old, mgr__check *check)
{
    bool same = (!old->partition && !check->partition) ||
                (old->partition && check->partition && strcmp(old->partition, check->partition) == 0);
    if (!same) {
        mgr__manager_fail(m, MGR_CONFLICT, "a check %s exists already, of %s", check->check.id, mgr__or(old->partition, "the instance"));
        mgr__check_free(m, check);
        return MGR_CONFLICT;
    }
    mgr__arena_free(&old->arena);
    check->proc = old->proc;
    *old = *check;
    mgr__free(&m->heap, check);
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

static bool mgr__check_text_fault(const char *text) { return text && (!*text || strlen(text) > MGR_NAME_BYTES_MAX); }

static mgr_result mgr__check_add(mgr *m, const char *partition, const mgr_check *given, bool script)
{
    mgr_result result = mgr__manager_member_only(m);
    if (result != MGR_OK) return result;
    if (!given) return mgr__manager_fail(m, MGR_INVALID, "a check is needed");
    if (given->_start_canary || given->_end_canary)
        return mgr__manager_fail(m, MGR_INVALID, "the mgr_check was not zeroed before its fields were set");
    if (script && (!given->argv || !given->argv[0])) return mgr__manager_fail(m, MGR_INVALID, "a script check needs argv");
    if (!script && !given->ttl_ms) return mgr__manager_fail(m, MGR_INVALID, "a TTL check needs ttl_ms");
    if (mgr__check_text_fault(given->id) || mgr__check_text_fault(given->name))
        return mgr__manager_fail(m, MGR_INVALID, "a check's id and name have 1 to MGR_NAME_BYTES_MAX (%d) bytes, or are left out",
                                 MGR_NAME_BYTES_MAX);
    mgr__work *work = mgr__work_find(m, partition);
    if (partition && (!work || work->stopping))
        return mgr__manager_fail(m, MGR_STATE,
                                 "partition %s is not assumed by this instance: its checks are given in on_acquire, and end with it",
                                 partition);
    if (m->check_count >= MGR_CHECK_COUNT_MAX) return mgr__manager_fail(m, MGR_LIMIT, "more than MGR_CHECK_COUNT_MAX checks");
    void *items = m->checks;
    mgr__check *check = (mgr__check *)mgr__alloc(&m->heap, sizeof *check);
    if (!check || !mgr__grow(&m->heap, &items, &m->check_cap, m->check_count, sizeof *m->checks)) {
        mgr__check_free(m, check);
        return mgr__manager_no_memory(m);
    }
    m->checks = (mgr__check **)items;
    mgr__arena_init(&check->arena, &m->heap);
    char id[MGR_NAME_BYTES_MAX + 16];
    snprintf(id, sizeof id, "%s%s", partition ? partition : "instance", script ? ":script" : ":ttl");
    check->check = *given;
    check->check.id = mgr__arena_str(&check->arena, mgr__str_of(given->id ? given->id : id)).at;
    check->check.name = mgr__arena_str(&check->arena, mgr__str_of(given->name ? given->name : check->check.id)).at;
    check->check.argv = mgr__manager_copy_list(&check->arena, given->argv, NULL);
    check->partition = partition ? mgr__arena_str(&check->arena, mgr__str_of(partition)).at : NULL;
    check->script = script;
    if (check->arena.failed) { mgr__check_free(m, check); return mgr__manager_no_memory(m); }
    if (!check->check.interval_ms) check->check.interval_ms = 10000;
    if (!check->check.timeout_ms) check->check.timeout_ms = 30000;
    check->due_at = mgr__io_now(&m->io) + (script ? check->check.interval_ms : check->check.ttl_ms);
    mgr__check *old = mgr__check_find(m, check->check.id);
    if (old) return mgr__check_replace(m, old, check);
    m->checks[m->check_count++] = check;
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

MGRAPI mgr_result mgr_check_script(mgr *m, const char *partition, const mgr_check *check)
{
    return mgr__check_add(m, partition, check, true);
}

MGRAPI mgr_result mgr_check_ttl(mgr *m, const char *partition, const mgr_check *check)
{
    return mgr__check_add(m, partition, check, false);
}

static mgr_result mgr__check_report(mgr *m, const char *check_id, mgr__health status, const char *note)
{
    mgr_result result = mgr__manager_member_only(m);
    if (result != MGR_OK) return result;
    mgr__check *check = check_id ? mgr__check_find(m, check_id) : NULL;
    if (!check) return mgr__manager_fail(m, MGR_NOT_FOUND, "no check %s", mgr__or(check_id, "(null)"));
    if (!check->script) check->due_at = mgr__io_now(&m->io) + check->check.ttl_ms;
    mgr__check_set(m, check, status, note ? note : "");
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

MGRAPI mgr_result mgr_check_pass(mgr *m, const char *check_id, const char *note)
{
    return mgr__check_report(m, check_id, MGR__HEALTH_PASSING, note);
}

MGRAPI mgr_result mgr_check_warn(mgr *m, const char *check_id, const char *note)
{
    return mgr__check_report(m, check_id, MGR__HEALTH_WARNING, note);
}

MGRAPI mgr_result mgr_check_fail(mgr *m, const char *check_id, const char *note)
{
    return mgr__check_report(m, check_id, MGR__HEALTH_CRITICAL, note);
}

/* ---- the Consul agent ---- */

typedef struct mgr__manager_args { mgr__arena *arena; const char **at; size_t count, cap; } mgr__manager_args;

static void mgr__manager_args_add(mgr__manager_args *args, const char *name, const char *value)
{
    if (!value) return;
    mgr__buf text;
    mgr__buf_init(&text, args->arena->heap, 65536);
    mgr__buf_printf(&text, "%s%s", name, value);
    if (text.failed || args->count + 1 >= args->cap) args->arena->failed = true;
    else args->at[args->count++] = mgr__arena_str(args->arena, mgr__buf_view(&text)).at;
    mgr__buf_free(&text);
}

static void mgr__manager_agent_args(mgr__manager_args *args, const mgr_agent *a)
{
    char number[64];
    mgr__manager_args_add(args, "", mgr__or(a->program, "consul"));
    mgr__manager_args_add(args, "", "agent");
    if (a->dev) mgr__manager_args_add(args, "", "-dev");
    if (a->server) mgr__manager_args_add(args, "", "-server");
    snprintf(number, sizeof number, "%lu", (unsigned long)a->bootstrap_expect);
    if (a->bootstrap_expect) mgr__manager_args_add(args, "-bootstrap-expect=", number);
    mgr__manager_args_add(args, "-data-dir=", a->data_dir);
    mgr__manager_args_add(args, "-node=", a->node);
    mgr__manager_args_add(args, "-bind=", a->bind_addr);
    mgr__manager_args_add(args, "-client=", a->client_addr);
    mgr__manager_args_add(args, "-config-file=", a->config_file);
    mgr__manager_args_add(args, "-log-level=", mgr__or(a->log_level, "warn"));
    snprintf(number, sizeof number, "%u", (unsigned)a->http_port);
    if (a->http_port) mgr__manager_args_add(args, "-http-port=", number);
    if (a->ca_file) {
        mgr__buf hcl;
        mgr__buf_init(&hcl, args->arena->heap, 8192);
        mgr__buf_printf(&hcl, "ca_file = \"%s\"", a->ca_file);
        mgr__manager_args_add(args, "", "-hcl");
        mgr__manager_args_add(args, "", mgr__buf_cstr(&hcl));
        mgr__buf_free(&hcl);
    }
    if (a->verify_outgoing) {
        mgr__manager_args_add(args, "", "-hcl");
        mgr__manager_args_add(args, "", "verify_outgoing = true");
    }
    for (size_t i = 0; i < a->tag_count; i++) {
        snprintf(number, sizeof number, "tag-%lu:", (unsigned long)i);
        mgr__manager_args_add(args, "", "-node-meta");
        mgr__manager_args_add(args, number, a->tags[i]);
    }
    for (size_t i = 0; i < a->arg_count; i++) mgr__manager_args_add(args, "", a->args[i]);
}

/* A keeper of its own: the agent must outlive a life that ends. */
MGRAPI mgr_result mgr_agent_start(mgr *m, const mgr_agent *agent)
{
    mgr__manager_args args;
    mgr__arena arena;
    mgr_process process;
    mgr_result result = mgr__manager_member_only(m);
    if (result != MGR_OK) return result;
    if (!agent || agent->_start_canary || agent->_end_canary)
        return mgr__manager_fail(m, MGR_INVALID, "the mgr_agent was not zeroed before its fields were set");
    if (!agent->dev && !agent->data_dir && !agent->config_file)
        return mgr__manager_fail(m, MGR_INVALID, "an agent needs data_dir, or a config_file that names one, or dev");
    if (mgr__proc_find(m, "consul agent")) return mgr__manager_fail(m, MGR_STATE, "an agent was started already");
    if (!m->have_agent_keeper) {
        result = mgr__manager_make_keeper(m, &m->agent_keeper, &m->agent_keeper_fd);
        m->have_agent_keeper = result == MGR_OK;
        if (result != MGR_OK) return result;
    }
    mgr__arena_init(&arena, &m->heap);
    memset(&args, 0, sizeof args);
    args.arena = &arena;
    args.cap = agent->tag_count * 2 + agent->arg_count + 32;
    args.at = (const char **)mgr__arena_alloc(&arena, args.cap * sizeof *args.at);
    if (args.at) mgr__manager_agent_args(&args, agent);
    memset(&process, 0, sizeof process);
    process.argv = args.at;
    process.stop_signal = SIGINT;       /* Consul leaves politely on SIGINT, sessions and all */
    mgr__proc *proc = arena.failed ? NULL : mgr__proc_add(m, NULL, "consul agent", &process);
    mgr__arena_free(&arena);
    if (!proc) return mgr__manager_no_memory(m);
    proc->keeper = &m->agent_keeper;
    proc->daemon = true;
    return mgr__proc_start(m, proc, mgr__io_now(&m->io));
}

MGRAPI mgr_result mgr_agent_join(mgr *m, const char *address)
{
    mgr_result result = mgr__manager_member_only(m);
    if (result != MGR_OK) return result;
    if (!address || !address[0]) return mgr__manager_fail(m, MGR_INVALID, "an address to join is needed");
    mgr__free(&m->heap, m->join_address);
    m->join_address = mgr__dup(&m->heap, mgr__str_of(address));
    if (!m->join_address) return mgr__manager_no_memory(m);
    mgr__loop_wake(&m->loop);
    return MGR_OK;
}

/* ---- views ---- */

typedef struct mgr__view {
    mgr_view  view;             /* first: what the user sees */
    mgr__arena arena;
} mgr__view;

static mgr_view_instance mgr__view_instance(mgr__arena *arena, const mgr__member *m)
{
    mgr_view_instance v;
    memset(&v, 0, sizeof v);
    v.id = mgr__arena_str(arena, m->id).at;
    v.alive = m->alive;
    v.joining = m->joining;
    v.draining = mgr__member_drains(m) || m->leaving;
    v.evicting = mgr__member_evicted(m);
    v.weight = (uint32_t)m->weight;
    v.slot = m->slot;
    v.joined = m->create_index;
    v.life = mgr__arena_str(arena, m->life).at;
    v.node = mgr__arena_str(arena, m->node).at;
    v.isolate = mgr__arena_str(arena, m->isolate).at;
    v.lease_ms = (uint32_t)m->lease_ms;
    v.delay_ms = (uint32_t)m->delay_ms;
    const char **refuses = (const char **)mgr__arena_alloc(arena, (m->refuse_count + 1) * sizeof *refuses);
    for (size_t i = 0; refuses && i < m->refuse_count; i++) refuses[v.refuse_count++] = mgr__arena_str(arena, m->refuses[i]).at;
    v.refuses = refuses;
    return v;
}

static const char *mgr__view_lost_why(mgr__view *v, const mgr__picture *picture, mgr__str life)
{
    for (size_t i = 0; i < picture->member_count && life.len; i++) {
        mgr__str former = picture->members[i].former;
        if (former.len > life.len + 1 && former.at[life.len] == ' ' && memcmp(former.at, life.at, life.len) == 0)
            return mgr__arena_str(&v->arena, mgr__str_make(former.at + life.len + 1, former.len - life.len - 1)).at;
    }
    return "";
}

static void mgr__view_owner(mgr__view *v, mgr_view_partition *p, const mgr__picture *picture, mgr_view_instance *instances,
                            const mgr__kv *kv, mgr__buf *scratch)
{
    mgr__holding owner;
    mgr__holding_read(&owner, kv, scratch, &v->arena);
    p->last_owner = mgr__arena_str(&v->arena, owner.instance).at;
    p->last_exit = mgr__arena_str(&v->arena, owner.last_exit).at;
    p->attempts = (uint32_t)owner.attempts;
    p->ended = owner.ended && owner.session.len;
    const mgr__member *holder = owner.session.len ? mgr__picture_life(picture, owner.session) : NULL;
    p->lost = !owner.session.len && !owner.released && !mgr__picture_certified(picture, owner.life);
    p->lost_why = mgr__view_lost_why(v, picture, owner.life);
    if (!owner.session.len) return;
    char since[32];
    mgr__io_rfc3339(since, (int64_t)owner.since_ms);
    p->owner = p->last_owner;
    p->since = mgr__arena_str(&v->arena, mgr__str_of(since)).at;
    p->fence = owner.fence ? owner.fence : picture->marker.fence_base + owner.modify_index;
    p->state = MGR_VIEW_ASSUMED;
    if (holder) instances[holder - picture->members].owned++;
}

/* In a pause a partition is to stay where it is, unless its holder must or wants to give it away. */
static void mgr__view_paused(mgr__view *v, const mgr__picture *picture, mgr_view_partition *partitions, size_t count)
{
    char since[32];
    mgr__io_rfc3339(since, (int64_t)picture->pause.since_ms);
    v->view.paused = true;
    v->view.breaker = picture->pause.breaker;
    v->view.paused_by = mgr__arena_str(&v->arena, picture->pause.by).at;
    v->view.paused_reason = mgr__arena_str(&v->arena, picture->pause.reason).at;
    if (picture->pause.since_ms) v->view.paused_since = mgr__arena_str(&v->arena, mgr__str_of(since)).at;
    for (size_t i = 0; i < count; i++) {
        mgr_view_partition *p = &partitions[i];
        const mgr__member *m = p->owner ? mgr__picture_member(picture, mgr__str_of(p->owner)) : NULL;
        bool keeps = m && m->alive && !m->leaving && !mgr__member_drains(m);
        for (size_t r = 0; keeps && r < m->refuse_count; r++) keeps = !mgr__str_is(m->refuses[r], p->name);
        if (keeps) p->assigned = p->owner;
    }
}

static const char *const *mgr__view_drained(mgr__view *v, const mgr__picture *picture, size_t *count)
{
    const char **ids = (const char **)mgr__arena_alloc(&v->arena, (picture->wish_count + 1) * sizeof *ids);
    *count = 0;
    for (size_t i = 0; ids && i < picture->wish_count; i++) {
        const mgr__standing_wish *standing = &picture->wishes[i];
        bool waits = standing->wish.drain && !mgr__picture_member(picture, standing->id);
        if (waits) ids[(*count)++] = mgr__arena_str(&v->arena, standing->id).at;
    }
    return ids;
}

static mgr_result mgr__view_fill(mgr *m, mgr__view *v, const mgr__picture *picture, const mgr__set *set)
{
    mgr__buf scratch;
    mgr__str rest, name;
    mgr_view_instance *instances = (mgr_view_instance *)mgr__arena_alloc(&v->arena, (picture->member_count + 1) * sizeof *instances);
    mgr_view_partition *partitions = (mgr_view_partition *)mgr__arena_alloc(&v->arena, (set->count + 1) * sizeof *partitions);
    uint32_t *owners = (uint32_t *)mgr__arena_alloc(&v->arena, (set->count + 1) * sizeof *owners);
    if (v->arena.failed) return MGR_NO_MEMORY;
    mgr_result result = mgr__picture_map(picture, &m->heap, set, owners);
    if (result != MGR_OK) return result;
    for (size_t i = 0; i < picture->member_count; i++) instances[i] = mgr__view_instance(&v->arena, &picture->members[i]);
    for (size_t i = 0; i < set->count; i++) {
        partitions[i].name = mgr__arena_str(&v->arena, set->names[i]).at;
        partitions[i].assigned = partitions[i].mapped = owners[i] == MGR_RUSH_NOBODY ? NULL : instances[owners[i]].id;
        partitions[i].state = owners[i] == MGR_RUSH_NOBODY ? MGR_VIEW_UNPLACEABLE : MGR_VIEW_ASSIGNED;
        partitions[i].since = partitions[i].last_exit = partitions[i].last_owner = partitions[i].lost_why = "";
        partitions[i].lost = true;
    }
    mgr__buf_init(&scratch, &m->heap, MGR_BODY_BYTES_MAX);
    for (size_t i = 0; i < m->call_answer.kv_count; i++) {
        const mgr__kv *kv = &m->call_answer.kvs[i];
        if (!mgr__key_below(kv->key, &m->cluster.root, "owners/", &rest) || !mgr__key_name(&v->arena, rest, &name)) continue;
        const mgr__str *at = mgr__set_find(set, name);
        if (at) mgr__view_owner(v, &partitions[at - set->names], picture, instances, kv, &scratch);
    }
    mgr__buf_free(&scratch);
    if (picture->pause.exists) mgr__view_paused(v, picture, partitions, set->count);
    v->view.converged = true;
    for (size_t i = 0; i < picture->member_count; i++) if (instances[i].alive && instances[i].joining) v->view.converged = false;
    for (size_t i = 0; i < set->count; i++)
        if (!partitions[i].owner || !partitions[i].assigned || strcmp(partitions[i].owner, partitions[i].assigned) != 0)
            v->view.converged = false;
    v->view.instances = instances;
    v->view.instance_count = picture->member_count;
    v->view.partitions = partitions;
    v->view.drained = mgr__view_drained(v, picture, &v->view.drained_count);
    v->view.partition_count = set->count;
    v->view.service_id = mgr__arena_str(&v->arena, mgr__str_of(m->desc.service_id)).at;
    v->view.version = picture->marker.version;
    v->view.placement = mgr__marker_placement(&picture->marker);
    return v->arena.failed ? MGR_NO_MEMORY : MGR_OK;
}

static mgr_result mgr__manager_observer_only(mgr *m)
{
    mgr_result result = mgr__manager_usable(m);
    if (result == MGR_OK && !m->desc.observer)
        result = mgr__manager_fail(m, MGR_STATE, "only an observer (desc.observer) can wait for a view");
    return result;
}

static uint32_t mgr__manager_ms_until(const mgr *m, int64_t until) { return (uint32_t)mgr__max64(1, until - mgr__io_now(&m->io)); }

MGRAPI mgr_result mgr_view_read(mgr *m, uint32_t timeout_ms, mgr_view **out)
{
    mgr__picture picture;
    mgr__set set;
    *out = NULL;
    mgr_result result = mgr__manager_observer_only(m);
    int64_t until = result == MGR_OK ? mgr__io_now(&m->io) + timeout_ms : 0;
    if (result == MGR_OK) result = mgr__call_picture(m, &picture, timeout_ms);
    if (result != MGR_OK) return result;
    if (!mgr__marker_known(&picture.marker)) {
        result = mgr__manager_fail(m, MGR_INVALID,
                                   "the service is placed by policy \"%s\" version %llu, this program knows \"rush\" and \"slots\" "
                                   "version %d: use a manager.h that knows it",
                                   picture.marker.placement, (unsigned long long)picture.marker.placement_version, MGR__PLACEMENT_VERSION);
        mgr__picture_free(&picture);
        return result;
    }
    memset(&set, 0, sizeof set);
    mgr__arena_init(&set.arena, &m->heap);
    uint64_t index = picture.index;
    mgr__view *v = (mgr__view *)mgr__alloc(&m->heap, sizeof *v);
    if (!v) result = mgr__manager_no_memory(m);
    else { mgr__arena_init(&v->arena, &m->heap); v->view.paused_by = v->view.paused_reason = v->view.paused_since = ""; }
    if (result == MGR_OK) result = mgr__call_set(m, &picture, &set, mgr__manager_ms_until(m, until));
    if (result == MGR_OK) result = mgr__call_list(m, "owners/", mgr__manager_ms_until(m, until));
    if (result == MGR_OK) {
        result = mgr__view_fill(m, v, &picture, &set);
        if (result != MGR_OK) mgr__manager_fail(m, result, "the view cannot be made: %s", mgr_result_text(result));
        v->view.index = m->call_answer.index > index ? m->call_answer.index : index;
    }
    mgr__set_free(&set);
    mgr__picture_free(&picture);
    if (result == MGR_OK) *out = &v->view;
    else if (v) { mgr__arena_free(&v->arena); mgr__free(&m->heap, v); }
    return result;
}

MGRAPI mgr_result mgr_agent_read(mgr *m, uint32_t timeout_ms, mgr_agent_view *out)
{
    memset(out, 0, sizeof *out);
    mgr_result result = mgr__manager_observer_only(m);
    if (result != MGR_OK) return result;
    mgr__request_start(&m->side, &m->heap, MGR__ASK_AGENT_SELF, MGR__LANE_WORK);
    mgr__call(m, timeout_ms);
    if (m->call_answer.outcome == MGR__OUTCOME_DENIED)
        return mgr__manager_fail(m, MGR_DENIED, "asking the agent for its settings: the token lacks agent_prefix \"\" read");
    result = mgr__manager_outcome_result(m, &m->call_answer, "asking the agent for its settings");
    if (result == MGR_OK) *out = m->call_answer.agent;
    return result;
}

MGRAPI void mgr_view_free(mgr *m, mgr_view *view)
{
    if (!m || !view) return;
    mgr__view *v = (mgr__view *)view;
    mgr__arena_free(&v->arena);
    mgr__free(&m->heap, v);
}

MGRAPI mgr_result mgr_view_wait(mgr *m, uint64_t index, uint32_t timeout_ms)
{
    mgr_result result = mgr__manager_observer_only(m);
    if (result != MGR_OK) return result;
    mgr__request_start(&m->side, &m->heap, MGR__ASK_WATCH, MGR__LANE_WORK);
    m->side.key = mgr__key_fixed(&m->side.arena, &m->cluster.root, "");
    m->side.index = index ? index : 1;
    m->side.wait_ms = (uint32_t)mgr__min64(timeout_ms, MGR__VIEW_WAIT_MS_MAX);
    mgr__call(m, (uint32_t)mgr__manager_request_timeout(m, &m->side));
    return mgr__manager_outcome_result(m, &m->call_answer, "waiting for a change");
}

#endif /* MANAGER_IMPLEMENTATION */

/* ============================================================================
 * [history] Newest first
 * ========================================================================== *
 *
 * 0.1.0  The first version: all sections, the program `manager`, devconsul.
 */

/* ============================================================================
 * [license] The reader's choice: MIT, or public domain
 * ========================================================================== *
 *
 * manager.h is available under either of two licences: choose whichever you prefer.
 *
 * ------------------------------------------------------------------------------
 * ALTERNATIVE A - MIT License
 *
 * Copyright (c) 2026 the manager.h authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of
 * this software and associated documentation files (the "Software"), to deal in
 * the Software without restriction, including without limitation the rights to
 * use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies
 * of the Software, and to permit persons to whom the Software is furnished to do
 * so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 *
 * ------------------------------------------------------------------------------
 * ALTERNATIVE B - Public Domain (www.unlicense.org)
 *
 * This is free and unencumbered software released into the public domain.
 *
 * Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
 * software, either in source code form or as a compiled binary, for any purpose,
 * commercial or non-commercial, and by any means.
 *
 * In jurisdictions that recognize copyright laws, the author or authors of this
 * software dedicate any and all copyright interest in the software to the public
 * domain. We make this dedication for the benefit of the public at large and to
 * the detriment of our heirs and successors. We intend this dedication to be an
 * overt act of relinquishment in perpetuity of all present and future rights to
 * this software under copyright law.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN
 * ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION
 * WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 */
