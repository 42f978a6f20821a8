#!/bin/sh
# Take the rules of safety out one at a time, and see that a test notices: a proof
# that cannot fail proves nothing. The rules are S1, S2, ... in the manual ("How two
# owners are avoided"); P5, P6, ... are its promises 5 to 10. Each mutant is one edit
# of manager.h, by line of text, in a copy; beside it stands the test that must then
# fail. A line a mutant: rule, name, and the test that noticed.
#
#   tests/mutants.sh [WORD...]      all, or those whose rule or name is WORD
#   tests/mutants.sh -n             only see that each text to be changed stands once
#
# JOBS run at a time (2). Each program is first built and run unchanged.
set -u
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d "${TMPDIR:-/tmp}/mutants.XXXXXX") || exit 1
tmp=$(cd "$tmp" && pwd -P)
CC=${CC:-cc}
export CC tmp SEEDS="${SEEDS:-1000}"
dry=
[ "${1:-}" = -n ] && dry=1 && shift
wanted=" $* "
count=0
mkdir -p "$tmp/tests" "$tmp/examples" "$tmp/jobs"
cp examples/devconsul.h "$tmp/examples/"
cp tests/*.h tests/sim.c tests/test_*.c "$tmp/tests/"

# What a mutant may leave behind, having lost its rules: what a test_keeper that is gone
# had frozen, the processes whose program lies in DIR, and empty cgroups.
cat >"$tmp/clean.sh" <<'CLEAN'
for frozen in /sys/fs/cgroup/freezer/test-*; do
    [ -d "$frozen" ] && [ ! -d "/proc/${frozen##*-}" ] || continue
    for pid in $(cat "$frozen/cgroup.procs"); do
        case $(readlink "/proc/$pid/exe") in "$1"/*) echo THAWED >"$frozen/freezer.state"; kill -KILL "$pid" ;; esac
    done
    rmdir "$frozen" 2>/dev/null
done
for proc in /proc/[0-9]*; do
    case $(readlink "$proc/exe" 2>/dev/null) in "$1"/*) kill -KILL "${proc#/proc/}" 2>/dev/null ;; esac
done
group=$(sed -n 's/^0:://p' /proc/self/cgroup 2>/dev/null)
for left in /sys/fs/cgroup"$group"/test-keeper-* /sys/fs/cgroup/unified"$group"/test-keeper-*; do
    [ -d "$left" ] && [ ! -d "/proc/${left##*-}" ] && find "$left" -depth -type d -exec rmdir {} + 2>/dev/null
done
:
CLEAN
trap 'sh "$tmp/clean.sh" "$tmp"; rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

# One job: $1 is its directory, with manager.h in it.
cat >"$tmp/one.sh" <<'ONE'
dir=$1 program=$(cat "$1/program") test=$(cat "$1/test") name=$(cat "$1/name")
optimise=-O0
[ "$program" = sim ] && optimise=-O1 test="$SEEDS ${test:-1} 1"
say() { echo "$1" >"$dir/said"; echo "$1"; }
if ! $CC -std=c99 $optimise -w -DTEST_PATIENCE_MS=4000 -I"$dir" -I"$tmp/examples" -I"$tmp/tests" "$tmp/tests/$program.c" -o "$dir/$program" -pthread 2>"$dir/log"; then
    head -n 5 "$dir/log"
    say "FAIL $name: does not build"
    exit
fi
# Unquoted on purpose: words.
(cd "$dir" && TEST_FIRST=1 timeout -k 5 "$(cat "$dir/seconds")" "./$program" $test >"$dir/log" 2>&1 </dev/null)
code=$?
ran=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, [0-9]* skipped$/\1 \2/p' "$dir/log")
noticed=$(grep -m 1 -E '^(FAIL |seed )' "$dir/log" | cut -c1-110)
skipped=$(grep -m 1 '^skip ' "$dir/log")
if [ "$name" = unchanged ]; then
    [ $code -eq 0 ] && say "ok   $program unchanged: ${ran% *} passed" && exit
    tail -n 5 "$dir/log"
    say "FAIL $program unchanged fails: nothing it says below counts"
elif [ "$ran" = "0 0" ] && [ -n "$skipped" ]; then say "skip $name: $skipped"
elif [ "$ran" = "0 0" ]; then say "FAIL $name: $program has no test $test"
elif [ $code -eq 124 ]; then say "FAIL $name: $program $test does not end"
elif [ $code -eq 0 ]; then say "FAIL $name survived $program $test"
elif [ -n "$noticed" ]; then say "ok   $name: $program: ${noticed#FAIL }"
else say "ok   $name: $program: $test ends with status $code"; fi
sh "$tmp/clean.sh" "$dir"
rm -f "$dir/$program"
ONE

# job NAME PROGRAM TESTS SECONDS <manager.h
job() {
    count=$((count + 1))
    dir=$tmp/jobs/$(printf %03d $count)
    mkdir "$dir" && cat >"$dir/manager.h"
    echo "$1" >"$dir/name"; echo "$2" >"$dir/program"; echo "$3" >"$dir/test"; echo "$4" >"$dir/seconds"
}

# mutant RULE NAME PROGRAM:TEST OLD NEW: the text OLD, which must stand once, is
# replaced by NEW; PROGRAM, run with the tests whose names contain TEST, must fail.
# Of sim TEST is the seed to begin with.
mutant() {
    case $wanted in "  " | *" $1 "* | *" $2 "*) ;; *) return ;; esac
    OLD=$4 NEW=$5 awk '
        BEGIN { old = ENVIRON["OLD"]; new = ENVIRON["NEW"] }
        { at = index($0, old); if (at) { n++; $0 = substr($0, 1, at - 1) new substr($0, at + length(old)) } print }
        END { exit n != 1 }' manager.h >"$tmp/mutated" || { echo "FAIL $1 $2: the text to change does not stand once: $4" | tee -a "$tmp/unmade"; return; }
    test=${3#*:}
    [ "$test" = "$3" ] && test=
    [ -z "$dry" ] || { count=$((count + 1)); return; }
    job "$1 $2" "${3%%:*}" "$test" 240 <"$tmp/mutated"
    echo "${3%%:*} $test" >>"$tmp/programs"
}

# ---- who is a member ----
mutant S1 dead_member_counts            test_cluster:who_counts 'm->counts = !m->broken && (m->alive || m->grace_ms > 0) &&' 'm->counts = !m->broken &&'
mutant S1 empty_store_is_nobody         test_cluster:an_empty_store 'if (!c->picture.marker.exists && !own) return;' ''
mutant S2 two_of_one_id                 test_cluster:of_one_id 'if (own && own->alive) { mgr__cluster_identity(c, own, now); return; }' ''
mutant S2 live_session_taken_off        test_cluster:meets_a_live 'if (old && old->session.len && !old->alive)' 'if (old && old->session.len)'
mutant S2 join_unconditioned            test_cluster:a_join 'if (old) mgr__request_check_index(r, key, old->modify_index);' 'if (old) {}'

# ---- when a partition may be taken ----
mutant S3 no_delay                      sim 'return p->lost_since + p->lost_delay_ms;' 'return now;'
mutant S3 short_delay                   sim 'return p->lost_since + p->lost_delay_ms;' 'return p->lost_since + p->lost_delay_ms / 3;'
mutant S3 held_may_be_taken             test_cluster:may_be_taken 'if (p->held) return certified || mgr__str_is(mgr__cluster_life(c), p->holder) ? c->distrust_until : MGR__NEVER;' ''
mutant S3 any_certificate_will_do       test_cluster:may_be_taken 'bool certified = p->holder[0] && mgr__picture_certified(&c->picture, mgr__str_of(p->holder));' 'bool certified = p->holder[0] && c->picture.certificate_count;'
mutant S3 any_lock_is_taken_off         sim 'bool certified = p->holder[0] && mgr__picture_certified(&c->picture, mgr__str_of(p->holder));' 'bool certified = p->holder[0];'
mutant S4 missing_may_be_taken          test_cluster:a_missing_key 'value = mgr__holding_nobodys(&e->request, false, (uint64_t)c->delay_seen_ms);' 'value = mgr__holding_nobodys(&e->request, true, (uint64_t)c->delay_seen_ms);'
mutant S4 missing_has_no_delay          test_cluster:a_missing_key 'value = mgr__holding_nobodys(&e->request, false, (uint64_t)c->delay_seen_ms);' 'value = mgr__holding_nobodys(&e->request, false, 0);'
mutant S4 own_delay_only                test_cluster:may_be_taken 'p->lost_delay_ms = mgr__max64((int64_t)c->config.delay_ms, owner.delay_ms ? (int64_t)owner.delay_ms : c->delay_seen_ms);' 'p->lost_delay_ms = (int64_t)c->config.delay_ms;'
mutant S4 a_new_index_counts_on         test_cluster:may_be_taken 'if (!p->held && (!p->seen || p->lost_index != owner.modify_index || !p->lost_since)) {' 'if (!p->held && (!p->seen || !p->lost_since)) {'
mutant S4 malformed_is_released         test_cluster:cannot_be_read 'if (!mgr__json_end(&j)) { owner->released = false; owner->delay_ms = 0; }' ''
mutant S5 blind_lock                    sim 'mgr__request_check_index(r, key, index);' 'if (index) {}'
mutant S6 adopt_lost_lock               sim 'if (p->state == MGR__PART_ACQUIRING) p->state = MGR__PART_IDLE;' 'if (p->state == MGR__PART_ACQUIRING || ours) { if (ours) mgr__part_begin(c, p); else p->state = MGR__PART_IDLE; return; }'
mutant S6 the_same_value_again          test_cluster:another_value 'owner.serial = ++p->serial;' 'owner.serial = p->serial;'
mutant S7 lock_older_than_the_lease     test_cluster:a_lock_older 'if (until < c->lease_until || now' 'if (now'
mutant S8 same_fence_again              sim 'p->fence = c->picture.marker.fence_base + index;' 'p->fence = c->picture.marker.fence_base + e->index_max;'
mutant S8 no_watermark_at_unlock        test_cluster:unlock_is_in_flight 'if (p->fence > p->watermark) p->watermark = p->fence;   /* no work starts' '/* no work starts'
mutant S8 no_watermark_at_loss          test_cluster:watermark 'if (p->fence > p->watermark) p->watermark = p->fence;   /* nor' '/* nor'
mutant S8 watermark_ignored             test_cluster:watermark 'if (p->fence <= p->watermark || p->fence <= c->fence_floor) {' 'if (p->fence <= c->fence_floor) {'
mutant S8 work_while_unlocking          test_cluster:unlock_is_in_flight 'if (p->state == MGR__PART_RELEASING) p->state = MGR__PART_UNLOCKING;' 'if (p->state == MGR__PART_RELEASING) { p->state = MGR__PART_IDLE; p->stale = true; }'
mutant S9 released_is_believed          test_cluster:may_be_taken 'bool believed = now >= c->distrust_until;' 'bool believed = true;'
mutant S9 no_distrust                   test_cluster:not_believed 'c->distrust_until = now + mgr__max64(c->delay_seen_ms, (int64_t)c->config.delay_ms);' ''
mutant S9 own_key_is_not_looked_at      test_cluster:no_picture_shows 'if (own->modify_index < c->own_index && now >= c->distrust_until) mgr__cluster_index_down(c, now);' ''
mutant S9 lock_under_any_own_key        test_cluster:no_picture_shows 'mgr__request_check_index(&e->request, mgr__cluster_own_key(c, &e->request), c->own_index); ' ''
mutant S9 restored_lock_is_ours         test_cluster:restored_with_higher 'mgr__str_is(mgr__cluster_life(c), p->holder) ? c->distrust_until : MGR__NEVER;' 'mgr__str_is(mgr__cluster_life(c), p->holder) ? 0 : MGR__NEVER;'
mutant S9 joiner_sees_no_restore        test_cluster:who_enters_again 'if (m->modify_index < (before ? before->modify_index : old->index)) return true;' ''
mutant S9 restored_lock_given_back      test_cluster:given_back_after 'p->stale || now < c->distrust_until) return;' 'p->stale) return;'
mutant S9 restored_lock_is_kept         test_cluster:nobody_wants 'c->parts[i]->stale = c->parts[i]->came_back = true;' 'c->parts[i]->stale = true;'
mutant S9 fence_base_stays              test_cluster:fences_grow 'if (fence) marker.fence_base = c->fence_floor;' ''
mutant S9 floor_ignored                 test_cluster:new_fence_base 'if (p->fence <= p->watermark || p->fence <= c->fence_floor) {' 'if (p->fence <= p->watermark) {'
mutant S9 held_is_not_confirmed         test_cluster:confirmed_at_once '    c->next_round = now;' ''
mutant S9 lock_under_any_marker         test_cluster:locks_hang 'mgr__request_check_index(r, mgr__key_fixed(&r->arena, &c->root, "cluster/partitions"), c->picture.marker.modify_index);' 'mgr__request_op(r, MGR__GET, mgr__key_fixed(&r->arena, &c->root, "cluster/partitions"));'
mutant S10 sessions_are_not_counted     test_cluster:have_a_session 's->lost = s->remembered || mgr__setter_sessions_others(s, session_name, a);' 's->lost = s->remembered;'
mutant S10 nothing_is_remembered        test_cluster:remembers 's->lost = s->remembered || mgr__setter_sessions_others(s, session_name, a);' 's->lost = mgr__setter_sessions_others(s, session_name, a);'
mutant S10 sessions_before_the_marker   test_cluster:behind_the_marker 's->state = a->kv_count ? MGR__SETTER_SESSIONS : MGR__SETTER_LOOK;' 's->state = a->kv_count ? MGR__SETTER_OWNERS : MGR__SETTER_LOOK;'
mutant S10 owner_keys_unconditioned     test_cluster:owner_keys_hang 'mgr__request_check_index(r, mgr__key_fixed(&r->arena, root, "cluster/partitions"), s->marker.modify_index);' ''
mutant S10 deleted_key_is_new           test_cluster:only_new_names '{ return !s->stands[i] && !mgr__set_has(&s->old, s->wanted.names[i]); }' '{ return !s->stands[i]; }'
mutant S10 set_named_first              test_cluster:named_last 'r->ops[0].value = mgr__setter_marker_value(s, r, "", s->marker.count + 1);' 'r->ops[0].value = mgr__setter_marker_value(s, r, s->wanted.hash, s->marker.count + 1);'
mutant S10 marker_is_overwritten        test_cluster:put_over_no_marker 'op->index = s->marker.modify_index;' 'op->index = s->marker.modify_index; op->verb = MGR__SET;'

# ---- how long work may go on ----
mutant S11 lease_from_answer            sim 'c->lease_until = c->round_started + c->config.lease_ms;' 'c->lease_until = mgr__max64(c->round_started, c->watch_not_before) + c->config.lease_ms * 3;'
mutant S11 lease_from_the_answer        test_cluster:lease_counts 'c->round_started = now;     /* the lease counts from here' 'c->round_started = now + 100; /* the lease counts from here'
mutant S11 first_lease_from_the_answer  test_cluster:lease_counts 'c->lease_until = e->sent_at + c->config.lease_ms;' 'c->lease_until = now + c->config.lease_ms;'
mutant S11 half_a_round                 test_cluster:every_key_held 'if (mgr__cluster_round_complete(c)) mgr__cluster_round_done(c);' 'if (true) mgr__cluster_round_done(c);'
mutant S11 own_key_unchecked            test_cluster:found_by_the_confirmation 'mgr__op *own = mgr__request_op(r, MGR__CHECK_SESSION, mgr__cluster_own_key(c, r));' 'mgr__op *own = mgr__request_op(r, MGR__GET, mgr__cluster_own_key(c, r));'
mutant S12 conflict_is_confirmation     sim:500 'if (a->outcome == MGR__OUTCOME_CONFLICT) { mgr__cluster_confirm_conflict(c, e, a, now); return; }' 'if (a->outcome == MGR__OUTCOME_CONFLICT) { mgr__cluster_round_done(c); return; }'
mutant S12 changed_by_hand_goes_on      test_cluster:changed_by_hand 'if (e->request.ops[op].verb == MGR__CHECK_SESSION || (!p->writing && p->key_index == e->request.ops[op].index))' 'if (false)'
mutant S12 lost_session_goes_on         test_cluster:session 'if (op == 0) {' 'if (false) {'
mutant S13 any_delay                    test_manager:bad_field 'if (d->delay_ms < least)' 'if (d->delay_ms < d->lease_ms)'
mutant S13 no_drift                     test_manager:default_delay '{ return ((lease_ms + MGR_KILL_MARGIN_MS) * 1002 + 999) / 1000; }' '{ return lease_ms + MGR_KILL_MARGIN_MS; }'
mutant S14 closed_is_reopened           test_keeper:closes_for_good 'if (word == MGR__LEASE_CLOSED) return false;' ''
mutant S14 lease_is_shortened           test_keeper:closes_for_good 'if (word >= until) return true;' ''
mutant S14 signal_before_the_word       test_keeper:manager_frozen 'else if (word != MGR__LEASE_CLOSED && (now < mgr__keeping_stop_due(k, word) || !mgr__page_close_if(k->page, word))) return;' 'else if (word != MGR__LEASE_CLOSED && now < mgr__keeping_stop_due(k, word)) return;'
mutant S14 extended_word_is_closed      test_keeper:was_extended 'bool closed = __atomic_compare_exchange_n(&page->lease, &word, MGR__LEASE_CLOSED, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);' '__atomic_store_n(&page->lease, MGR__LEASE_CLOSED, __ATOMIC_SEQ_CST); bool closed = true;'
mutant S14 late_answer_goes_on          test_cluster:late_confirmation 'if (!mgr__cluster_in_life(c) || !c->round_open) return;' ''
mutant S15 no_polite_stop               test_cluster:politely 'if (now < c->lease_until - (int64_t)c->config.stop_grace_ms) return;' 'if (now < c->lease_until) return;'
mutant S15 manager_frozen               test_keeper:manager_frozen 'return word - (int64_t)k->page->stop_grace_ms - mgr__page_early(k->page, k->late);' 'return MGR__NEVER;'
mutant S15 polite_for_ever              test_keeper:manager_frozen 'if (!c->agent) mgr__child_stop(k, c, mgr__min64(stop_at, now + c->stop_grace_ms), now);' 'if (!c->agent) mgr__child_stop(k, c, MGR__NEVER, now);'
mutant S15 no_pidfd_no_signal           test_keeper:without_pidfds 'else if (ref->start && mgr__process_stat(ref->pid, &now) && now.start == ref->start) kill(ref->pid, signo);' ''
mutant S15 host_overruns                test_keeper:overrun_kills 'if (now >= k->stop_at) mgr__process_ref_signal(&k->host, SIGKILL);' ''
mutant S16 guard_waits                  test_keeper:keeper_frozen 'if (now >= deadline) {' 'if (false) {'
mutant S16 guard_only_watches           test_keeper:keeper_frozen '{ mgr__process_kill(g->keeper, SIGKILL); return; }' ''
mutant S16 slow_keeper_is_killed        test_keeper:slow_keeper 'return now < deadline + more && now - MGR__LOAD' 'return now < deadline - more && now - MGR__LOAD'
mutant S17 lateness_is_ignored          test_keeper:acts_earlier 'return late < page->kill_margin_ms / 2 ? late : page->kill_margin_ms / 2;' 'return 0;'
mutant S17 late_beyond_measure          test_keeper:acts_earlier 'return late < page->kill_margin_ms / 2 ? late : page->kill_margin_ms / 2;' 'return late;'
mutant S17 lateness_is_forgotten        test_keeper:acts_earlier 'if (by_ms > (int64_t)late) late =' 'if (false) late ='
mutant S18 manager_gone                 test_keeper:manager_killed_words 'if (got <= 0 || !mgr__keeping_frames(k)) k->deaf = k->manager_gone = true;' 'if (got <= 0) k->deaf = true;'
mutant S18 copy_of_the_manager          test_keeper:while_a_copy 'if (k->polls[3].revents || (k->host.fd < 0 && mgr__keeping_host_dead(k))) k->manager_gone = k->host_dead = true;' ''
mutant S18 traced_keeper                test_keeper:a_worker_traces 'return mgr__process_wait(g->keeper, true, &end) != 0 || mgr__process_ref_ended(&g->keeper_ref);' 'return mgr__process_wait(g->keeper, true, &end) != 0;'
mutant S18 traced_by_a_stranger         test_keeper:a_stranger_traces 'bool childless = got == -ECHILD || mgr__guard_childless(g);' 'bool childless = got == -ECHILD;'
mutant S18 guard_gone                   test_keeper:guard_killed_keeper 'if (k->polls[2].revents) k->guard_gone = true;' ''
mutant S18 keeper_gone                  test_keeper:keeper_killed_guard 'mgr__process_kill_descendants(&g->list);' ''
mutant S18 both_gone                    test_keeper:keeper_killed_workers 'code = mgr__process_death_signal(SIGKILL);' 'code = 0;'
mutant S19 silence_is_borne             test_keeper:silent_keeper 'if (silent) mgr__keeper_silence(k);' ''
mutant S19 seen_dead_and_still_open     test_keeper:seen_dead 'if (dead) { mgr__page_close(k->page); return MGR__KEEPER_DEAD; }' 'if (dead) return MGR__KEEPER_DEAD;'
mutant S19 both_frozen                  test_keeper:both_frozen 'if (mgr__process_ref_ended(&k->keeper_ref)) mgr__process_ref_signal(&k->guard_ref, SIGCONT);' 'if (false) {}'
mutant S20 start_without_a_lease        test_keeper:no_lease_no_work 'return agent || (mgr__page_open(word) && word > now);' 'return true;'
mutant S20 start_when_it_is_over        test_keeper:word_that_is_not_open 'return agent || (mgr__page_open(word) && word > now);' 'return agent || mgr__page_open(word);'
mutant S20 start_under_a_closed_word    test_keeper:word_that_is_not_open 'if (k->phase != MGR__KEEPING_RUN || k->manager_gone || word == MGR__LEASE_CLOSED) return false;' ''
mutant S20 begin_without_a_lease        test_manager:its_lease_has_ended 'if (mgr__keeper_lease(&m->keeper) <= mgr__io_now(&m->io)) {' 'if (false) {'
mutant S20 begin_what_is_lost           test_manager:lost_before_it_began 'if (part->state != MGR__PART_ASSUMED) return;      /* lost' '/* lost'
mutant S21 setuid_clears_it             test_keeper:worker_of_another_user 'code = mgr__process_death_signal(SIGKILL);' 'code = h->set_ids ? 0 : mgr__process_death_signal(SIGKILL);'
mutant S21 parent_is_not_asked          test_keeper:parent_is_gone 'if (mgr__process_parent() != k->self) mgr__process_exit(127);' ''
mutant S22 grant_of_one_stays_open      test_manager:lost_alone 'if (lost) mgr__work_close_grant(work);' ''
mutant S22 lease_without_a_life         test_manager:no_lease_is_left 'int64_t until = m->have_keeper && m->cluster.life[0] ?' 'int64_t until = m->have_keeper ?'

# ---- what counts as proof of death ----
mutant S23 unlock_before_death          sim 'if (p->state != MGR__PART_UNLOCKING || p->stale) continue;' 'if ((p->state != MGR__PART_UNLOCKING && p->state != MGR__PART_RELEASING) || p->stale) continue;'
mutant S23 exited_is_empty              test_keeper:populated_cgroup 'if (!whole || c->held || mgr__keeping_group_held(k, c)) { k->sweep = true; continue; }' ''
mutant S23 groups_can_be_joined         test_keeper:group_of_another 'return mgr__process_code(setsid());' 'return mgr__process_code(setpgid(0, 0));'
mutant S23 tracers_live                 test_keeper:of_its_own_traces 'bool ending = c->state == MGR__WORKER_EXITED || (mgr__child_live(c) && c->killed_at);' 'bool ending = c->state == MGR__WORKER_EXITED;'
mutant S23 hidden_is_gone               test_keeper:proc_hides 'mgr__process_list_add_child(list, pid);' 'mgr__process_list_add(list, pid, 0);'
mutant S23 unlisted_is_gone             test_keeper:no_descriptor 'if (code < 0 && code != -ESRCH) list->whole = false;' ''
mutant S23 nameless_orphans_live        test_keeper:daemons_are_swept 'case MGR__OWNER_UNKNOWN: doomed = mgr__keeping_nameless(k, p); break;' 'case MGR__OWNER_UNKNOWN: doomed = false; break;'
mutant S23 populated_is_empty           test_keeper:populated_cgroup 'if (!c->grouped || mgr__process_cgroup_populated(mgr__child_cgroup(k, c)) == 0) return false;' 'if (true) return false;'
mutant S23 released_with_its_process    test_manager:process_is_gone 'for (size_t i = 0; i < m->proc_count; i++) if (m->procs[i]->work == work && m->procs[i]->alive) return false;' ''
mutant S23 released_with_work_inside    test_manager:pending_release 'return !work->in_process && !work->starting;' 'return true;'
mutant S23 held_is_released             test_manager:by_word_only 'if (answer == MGR_DONE && !work->held) work->in_process = false;' 'if (answer == MGR_DONE) work->in_process = false;'
mutant S23 hold_is_forgotten            test_manager:after_mgr_released 'work->let_go = false;       /* an earlier' '/* an earlier'
mutant S23 killed_before_its_time       test_manager:beside_its_process 'if (work->let_go) answer = MGR_DONE;' ''
mutant S23 dropped_is_run_again         test_manager:event_of_its_end 'if (!proc->dropped && proc->daemon && !stopping) {' 'if (proc->daemon && !stopping) {'
mutant S23 dropped_has_ended            test_manager:event_of_its_end 'if (!proc->dropped && !proc->daemon) {' 'if (!proc->daemon) {'
mutant S24 certify_while_busy           sim 'if (c->phase == MGR__PHASE_ENDING && !mgr__cluster_busy(c) && !c->errands[MGR__LANE_WORK].out) {' 'if (c->phase == MGR__PHASE_ENDING && !c->errands[MGR__LANE_WORK].out) {'
mutant S24 lost_is_not_busy             sim '{ return mgr__part_works(p) || (p->state == MGR__PART_LOST && !p->gone); }' '{ return mgr__part_works(p); }'
mutant S24 old_keeper_new_life          test_cluster:keeper_is_ready '!c->errands[MGR__LANE_WORK].out && c->keeper_ready) mgr__cluster_phase' '!c->errands[MGR__LANE_WORK].out) mgr__cluster_phase'
mutant S25 words_before_death           test_keeper:work_is_over 'if (mgr__keeping_overrun(k, now) || k->sweep) return false;' 'return true;'
mutant S25 words_before_the_sweep       test_keeper:work_is_over 'if (mgr__keeping_overrun(k, now) || k->sweep) return false;' 'if (mgr__keeping_overrun(k, now)) return false;'
mutant S25 destroy_first                test_keeper:manager_killed_words 'bool stands = certify && mgr__keeping_certify(k);' 'mgr__words_send(k, MGR__WORD_DESTROY, MGR__KEEPER_TIDY_MS); bool stands = certify && mgr__keeping_certify(k);'
mutant S26 certified_while_it_lives     test_keeper:in_process_work 'return !MGR__LOAD(&k->page->in_process) || mgr__keeping_host_dead(k);' 'return true;'
mutant S26 keeper_is_not_told           test_manager:leaves_its_life_uncertified 'bool any = m->cluster.unproven;' 'bool any = false;'
mutant S26 told_too_late                test_manager:keeper_knows 'm->works[i]->in_process || m->works[i]->starting;' 'm->works[i]->in_process;'
mutant S26 lost_inside_is_dead          test_manager:leaves_its_life_uncertified 'if (work->in_process) { m->cluster.unproven = true; m->cluster.certify = false; }' ''
mutant S26 unproven_is_certified        test_cluster:not_proven 'c->certify = !c->unproven;' 'c->certify = true;'
mutant S26 unproven_leaves_certified    test_cluster:lock_in_doubt 'if (!all_released && !c->unproven)' 'if (!all_released)'
mutant S27 both_dead_is_proof           test_keeper:unproven 'if (populated == 0 && mgr__keeper_isolation(k) == MGR_ISOLATE_CGROUP) {' 'if (true) {'
mutant S27 both_dead_is_proof_at_once   test_keeper:populated_cgroup 'if (populated == 1) return MGR__KEEPER_DEAD;' 'if (populated == 1) return MGR__KEEPER_SWEPT;'
mutant S27 unproven_status_is_certified test_manager:both_killed_leave 'if (status == MGR__KEEPER_UNPROVEN) {' 'if (false) {'
mutant S28 stuck_is_let_go              test_keeper:stuck_worker 'mgr__keeping_renew(k, now);' ''
mutant S28 its_check_runs_out           test_keeper:stuck_worker 'if (!mgr__keeping_say_again(k, MGR__WORD_PASS, now)) mgr__keeping_say_again' 'mgr__keeping_say_again'
mutant S28 manager_lets_go_of_it        test_cluster:cannot_be_killed 'return c->phase == MGR__PHASE_ENDING && mgr__cluster_busy(c);' 'return false && c;'
mutant S28 guard_kills_a_stuck_keeper   test_keeper:stuck_worker 'if (renews) deadline' 'if (renews && false) deadline'

mutant S29 the_living_are_dead          test_keeper:record_of_a_life 'if (!mgr__process_ended((pid_t)r->who[i].pid, r->who[i].start)) return MGR__VERDICT_LATER;' ''
mutant S29 any_boot_will_do             test_keeper:death_is_proven 'if (!boot[0] || strcmp(r->boot, boot) != 0) return MGR__VERDICT_NONE;' ''
mutant S29 loose_workers_are_dead       test_keeper:without_a_group 'if (r->partial) return MGR__VERDICT_NONE;' ''
mutant S29 any_group_is_empty           test_keeper:death_is_proven 'if (!mgr__life_group_dead(r)) return MGR__VERDICT_LATER;' ''
mutant S29 held_file_is_free            test_keeper:forked_copy '*held = mgr__process_lock_shared(fd) < 0;' '*held = false;'
mutant S29 any_file_will_do             test_keeper:death_is_proven 'if (device != wanted[0] || inode != wanted[1]) return' 'if (false) return'

# ---- promises of the manual, where a mutant is cheap ----
mutant P5 draws_by_place                test_rush:input_order 'if (order->hash[a] != order->hash[b]) return order->hash[a] < order->hash[b] ? -1 : 1;' 'if (order) return a < b ? -1 : 1;'
mutant P5 seats_only_for_partitions     test_rush:no_size_jumps 'if (rush->spare) left = rush->open_count;' ''
mutant P5 no_layers                     test_rush:no_size_jumps 'for (uint64_t level = 1; level <= layers; level++) mgr__rush_layer(rush, level);' ''
mutant P5 reach_ends_at_once            test_rush:no_size_jumps 'end = 4 * MGR__RUSH_LAYERS * open' 'end = MGR__RUSH_LAYERS * open'
mutant P5 floor_is_not_filled           test_rush:borne_as_evenly '!rush->spare || mgr__rush_fill(rush, rush->sum / rush->open_count);' 'true;'
mutant P5 seats_without_room            test_rush:leave_no_seats 'left && above <= left && ' 'left && '
mutant P6 moves_unbounded               test_cluster:moves_max '(!c->config.moves_max || moving < c->config.moves_max)' 'true'
mutant P7 nested_without_end            test_json:depth 'if (j->depth == MGR__JSON_DEPTH_MAX) return' 'if (false) return'
mutant P7 head_without_end              test_wire:limits 'return ++w->head_bytes <= MGR_HEAD_BYTES_MAX ||' 'return true ||'
mutant P7 any_body                      test_json:depth_and_size 'if (text.len > MGR_BODY_BYTES_MAX) mgr__json_fail' 'if (false) mgr__json_fail'
mutant P7 watch_spins                   test_cluster:back_off 'if (!changed && now - e->sent_at < MGR__BACKOFF_MIN_MS)' 'if (false)'
mutant P8 guard_is_a_child_like_any     test_host:no_signal 'unsigned long flags = silent ? 0 : SIGCHLD;' 'unsigned long flags = SIGCHLD;'
mutant P8 mask_stays_blocked            test_host:four_threads '    mgr__process_signals_restore(&before);' ''
mutant P8 descriptor_is_left            test_host:four_threads '    mgr__process_close(k->keeper_ref.fd);' ''
mutant P8 page_is_left                  test_host:four_threads 'mgr__process_unmap(k->page, sizeof *k->page);' ''
mutant P9 asked_without_end             test_cluster:nothing_is_asked 'c->next_round = c->round_started + mgr__cluster_round_ms(c);' 'c->next_round = c->round_started + 20;'
mutant P10 waits_in_silence             test_cluster:the_dead_are_waited '} else if (!p->held && p->seen_exists && mgr__part_takeable_at(c, p, now) > now) {' '} else if (false) {'

# a promise of speed: no wake-up is lost
mutant P2 lost_wake_up                  sim 'if (mgr__part_outrun(c, e->parts[i], e->index_max)) e->parts[i]->stale = true;' ''
mutant P2 deaf_to_releases              sim 'if (!holder || holder->modify_index != p->holder_index) p->stale = true;' ''

# ---- pauses, slots ----
mutant P6 moves_in_a_pause              sim 'bool paused = mgr__cluster_moves_held(c, now);' 'bool paused = now < 0;'
mutant P2 pause_holds_failures          sim 'bool known = mgr__marker_known(&c->picture.marker);' 'bool known = !c->picture.pause.exists;'
mutant P2 endless_breaker               sim 'return c->picture.pause.exists && c->picture.pause.breaker && now >= mgr__cluster_breaker_end(c);' 'return now < 0;'
mutant P2 breaker_of_a_crash_loop       test_cluster:crashes_over 'return mgr__min64(c->still_since + mgr__cluster_still_ms(c), mgr__cluster_breaker_most(c));' 'return c->still_since + mgr__cluster_still_ms(c);'
mutant P2 missing_set_stays_missing     sim 'if (mgr__cluster_ask_restore(c, now)) return;' ''
mutant P2 any_set_under_the_name        test_cluster:who_needs_it 'if (read && mgr__str_is(asked, fresh.hash)) {' 'if (read) {'
mutant P5 slot_unconditioned            sim 'mgr__op *op = mgr__request_op(r, MGR__CAS, mgr__cluster_slot_key(c, r, number));' 'mgr__op *op = mgr__request_op(r, MGR__SET, mgr__cluster_slot_key(c, r, number));'
mutant P5 slot_unclaimed                sim 'bool claims = !own->slot_index && own->slot <= MGR_MEMBER_COUNT_MAX && mgr__marker_slots(&c->picture.marker);' 'bool claims = false;'
mutant P5 slot_left_behind              test_cluster:slot 'if (m && m->slot == slot->number && m->slot_index) continue;' 'continue;'
mutant P5 slot_not_freed                test_cluster:slot 'if (dead->slot_index)' 'if (false)'

if [ -n "$dry" ]; then
    failed=$(cat "$tmp/unmade" 2>/dev/null | wc -l)
    echo "$count passed, $failed failed, 0 skipped"
    exit $((failed > 0))
fi

# Unchanged, each program passes the tests that the mutants are tried with.
sort "$tmp/programs" 2>/dev/null | awk '$2 != "" && $1 != "sim" { tests[$1] = tests[$1] " " $2 } END { for (p in tests) print p tests[p] }' >"$tmp/unchanged"
while read -r program tests; do
    [ -n "$program" ] || continue
    job unchanged "$program" "$tests" 240 <manager.h
done <"$tmp/unchanged"

[ $count -eq 0 ] || ls -d "$tmp"/jobs/* | xargs -P "${JOBS:-2}" -n 1 sh "$tmp/one.sh"
passed=$(cat "$tmp"/jobs/*/said 2>/dev/null | grep -c '^ok')
skipped=$(cat "$tmp"/jobs/*/said 2>/dev/null | grep -c '^skip')
failed=$((count - passed - skipped + $(cat "$tmp/unmade" 2>/dev/null | wc -l)))
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
