#!/bin/sh
# Run test programs and add up their last lines: run.sh PROGRAM...
#
# A program prints "ok", "FAIL" or "skip" lines, and ends with
# "N passed, N failed, N skipped"; one that ends without that line (a crash, a
# time-out) counts as failed. JOBS run at a time: those named e2e_* after all
# others, for they measure times and mostly wait; before them those named bench_*,
# with --quick, one at a time.
set -u
cd "$(dirname "$0")/.." || exit 1
out=${TEST_OUT:-build/out}
mkdir -p "$out" && rm -f "$out"/*.log
[ -n "${CONSUL:-}" ] || CONSUL=$(tests/consul.sh) || unset CONSUL
[ -n "${CONSUL:-}" ] && export CONSUL
export out

# One program: its output to a file, a line here when it is over.
cat >"$out/one.sh" <<'ONE'
name=$(basename "$1"); log=$out/$name.log
case $name in bench_*) set -- "$1" --quick ;; esac
start=$(date +%s)
case $name in e2e_*) seconds=240 ;; *) seconds=${TEST_TIMEOUT:-200} ;; esac
limit=
command -v timeout >/dev/null 2>&1 && limit="timeout -k 10 $seconds"
$limit "$@" >"$log" 2>&1 </dev/null
code=$?
last=$(tail -n 1 "$log")
case $last in
*' passed, '*' failed, '*' skipped') ;;
*) printf '\nFAIL %s: ended with status %s and without a result\n0 passed, 1 failed, 0 skipped\n' "$name" $code >>"$log"
   last=$(tail -n 1 "$log") ;;
esac
printf '%-18s %s (%s s)\n' "$name${2:+ $2}" "$last" $(($(date +%s) - start))
ONE

first= alone= then=
for program in "$@"; do
    case $(basename "$program") in
    e2e_*) then="$then $program" ;;
    bench_*) alone="$alone $program" ;;
    *) first="$first $program" ;;
    esac
done
run() { [ $# -eq 0 ] || printf '%s\n' "$@" | xargs -P "${JOBS:-2}" -n 1 sh "$out/one.sh"; }
# Unquoted on purpose: lists of paths without blanks.
run $first
(JOBS=1 && run $alone)
run $then

echo
for program in "$@"; do
    log=$out/$(basename "$program").log
    grep -h '^measured' "$log"
    if grep -q '^FAIL' "$log"; then
        echo "---- $program"
        grep -v -e '^ok  ' -e '^skip ' -e '^measured' "$log" | tail -n "${TEST_LINES:-60}"
    fi
done
echo
cat "$out"/*.log | grep '^skip ' | sort -u
cat "$out"/*.log | grep '^FAIL '
cat "$out"/*.log | awk '
    /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { passed += $1; failed += $3; skipped += $5 }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit failed > 0 }'
