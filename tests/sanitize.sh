#!/bin/sh
# The unit tests under AddressSanitizer and UndefinedBehaviorSanitizer; then the test
# with threads (test_host) under ThreadSanitizer. Each with the first compiler that
# can link them.
set -u
cd "$(dirname "$0")/.." || exit 1
dir=build/sanitize
mkdir -p "$dir"
echo 'int main(void) { return 0; }' >"$dir/probe.c"

# compiler FLAGS...: the first that makes a program which runs; nothing if there is none.
compiler() {
    for cc in clang gcc "${CC:-cc}"; do
        $cc "$@" "$dir/probe.c" -o "$dir/probe" >/dev/null 2>&1 && "$dir/probe" && { echo "$cc"; return; }
    done
}

# under NAME DIRECTORY TARGET FLAGS...: build and run; the result's last line to DIRECTORY/result.
under() {
    name=$1 at=$2 target=$3
    shift 3
    mkdir -p "$at"
    cc=$(compiler "$@")
    if [ -z "$cc" ]; then
        echo "skip $name: no compiler here links it" | tee "$at/result"
        echo "0 passed, 0 failed, 1 skipped" | tee -a "$at/result"
        return
    fi
    flags="$* -fno-omit-frame-pointer"
    echo "$name: $cc $flags"
    TEST_OUT=$at/out "${MAKE:-make}" --no-print-directory B="$at" CC="$cc" CFLAGS="-O1 -g $flags" TEST_CFLAGS="-O1 -g $flags" \
        JOBS="${JOBS:-2}" $target 2>&1 | tee "$at/result"
    tail -n 1 "$at/result" | grep -q ' passed, ' || echo "0 passed, 1 failed, 0 skipped" | tee -a "$at/result"
}

# Watched, the largest maps would take minutes.
export RUSH_PARTS_MAX=1024

# Leaks count; a test that forks leaves the copies to its child, so only the
# parent's end is asked.
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
under sanitize_address "$dir" unit -fsanitize=address,undefined -fno-sanitize-recover=all

# The first race ends the program, without a result. What guard and keeper, whose
# stderr is closed, have to say comes in files.
threads=$dir/threads
mkdir -p "$threads" && rm -f "$threads"/race.*
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:log_path=$PWD/$threads/race
under sanitize_threads "$threads" unit-threads -fsanitize=thread
for race in "$threads"/race.*; do
    [ -f "$race" ] || continue
    head -n 60 "$race"
    echo "FAIL sanitize_threads: a race, above"
    echo "0 passed, 1 failed, 0 skipped" >>"$threads/result"
done

for result in "$dir/result" "$threads/result"; do tail -n 2 "$result"; done | awk '
    /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { passed += $1; failed += $3; skipped += $5 }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit failed > 0 }'
