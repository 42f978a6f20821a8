#!/bin/sh
# Take the safety rules out one at a time, and see that a test notices: a proof
# that cannot fail proves nothing. Each mutant is one edit of manager.h, by line of
# text, in a copy; the command that must then fail is named beside it.
#
#   tests/mutants.sh [NAME...]      all, or those named
set -u
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d "${TMPDIR:-/tmp}/mutants.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
CC=${CC:-cc}
SEEDS=${SEEDS:-3000}
wanted=" $* "
killed=0 survived=0
mkdir -p "$tmp/tests" "$tmp/examples"
cp examples/devconsul.h "$tmp/examples/"
cp tests/*.h tests/sim.c tests/test_*.c tests/consul.sh "$tmp/tests/"

# mutant NAME TEST OLD NEW: replace the text OLD, which must stand once, by NEW;
# build TEST (sim or a unit test) with it; it must fail.
mutant() {
    case $wanted in "  "|*" $1 "*) ;; *) return ;; esac
    OLD=$3 NEW=$4 awk '
        BEGIN { old = ENVIRON["OLD"]; new = ENVIRON["NEW"] }
        { at = index($0, old); if (at) { n++; $0 = substr($0, 1, at - 1) new substr($0, at + length(old)) } print }
        END { exit n != 1 }' manager.h >"$tmp/manager.h" || { echo "FAIL $1: the text to change does not stand once: $3"; survived=$((survived + 1)); return; }
    if ! $CC -std=c99 -O2 -w -I"$tmp" -I"$tmp/examples" -I"$tmp/tests" "$tmp/tests/$2.c" -o "$tmp/$1" -pthread 2>"$tmp/log"; then
        head -n 5 "$tmp/log"; echo "FAIL $1: does not build"; survived=$((survived + 1)); return
    fi
    arguments=
    [ "$2" = sim ] && arguments=$SEEDS
    if (cd "$tmp" && timeout 600 "./$1" $arguments >"$tmp/log" 2>&1); then
        echo "FAIL $1 survived $2"; survived=$((survived + 1))
    else
        echo "ok   $1: $(grep -m 1 -E '^seed|CHECK|FAIL|: .* is |Assert' "$tmp/log" | cut -c1-140)"; killed=$((killed + 1))
    fi
}

# b. when a partition may be taken
mutant no_delay               sim 'return p->lost_since + p->lost_delay_ms;' 'return now;'
mutant short_delay            sim 'return p->lost_since + p->lost_delay_ms;' 'return p->lost_since + p->lost_delay_ms / 3;'
mutant blind_lock             sim 'if (index) mgr__request_check_index(r, key, index);' 'if (index) {}'
mutant missing_is_free        sim 'p->lost_delay_ms = mgr__max64((int64_t)c->config.delay_ms, owner.exists && owner.delay_ms ? (int64_t)owner.delay_ms : c->delay_seen_ms);' 'p->lost_delay_ms = owner.exists ? (int64_t)c->config.delay_ms : 0;'
# c. the lease
mutant lease_from_answer      sim 'c->lease_until = c->round_started + c->config.lease_ms;' 'c->lease_until = mgr__max64(c->round_started, c->watch_not_before) + c->config.lease_ms * 3;'
mutant conflict_is_confirmation sim 'if (a->outcome == MGR__OUTCOME_CONFLICT) { mgr__cluster_confirm_conflict(c, e, a, now); return; }' 'if (a->outcome == MGR__OUTCOME_CONFLICT) { mgr__cluster_round_done(c); return; }'
# e. proof
mutant certify_while_busy     sim 'if (c->phase == MGR__PHASE_ENDING && !mgr__cluster_busy(c) && !c->errands[MGR__LANE_WORK].out) {' 'if (c->phase == MGR__PHASE_ENDING && !c->errands[MGR__LANE_WORK].out) {'
mutant unlock_before_death    sim 'if (p->state != MGR__PART_UNLOCKING || p->stale) continue;' 'if ((p->state != MGR__PART_UNLOCKING && p->state != MGR__PART_RELEASING) || p->stale) continue;'
# f. fences and lost answers
mutant adopt_lost_lock        sim 'if (p->state == MGR__PART_ACQUIRING) p->state = MGR__PART_IDLE;' 'if (p->state == MGR__PART_ACQUIRING || ours) { if (ours) mgr__part_begin(c, p); else p->state = MGR__PART_IDLE; return; }'
mutant same_fence_again       sim 'p->fence = c->picture.marker.fence_base + index;' 'p->fence = c->picture.marker.fence_base + e->index_max;'

# a promise of speed: no wake-up is lost
mutant lost_wake_up           sim 'if (mgr__part_outrun(c, e->parts[i], e->index_max)) e->parts[i]->stale = true;' ''
mutant deaf_to_releases       sim 'if (!holder || holder->modify_index != p->holder_index) p->stale = true;' ''

echo "$killed mutants killed, $survived survived"
echo "$killed passed, $survived failed, 0 skipped"
[ $survived -eq 0 ]
