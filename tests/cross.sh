#!/bin/sh
# Other machines: a map must come out the same on all of them, or instances would
# disagree about who owns what. The golden vectors of [rush] with gcc and clang at
# -O0 and -O3 on x86-64, 32-bit x86, aarch64 and s390x (big-endian), and what it does
# with floats at -Ofast, divisions of 12 bits among it; the tests of
# what is pure, and a few seeds of the simulator, on 32 bits and big-endian; the
# program itself with every warning as an error. What is not here is skipped by
# name. cross.sh [MACHINE]. On Debian all of it is:
#
#   gcc clang libc6-dev-i386 lib32gcc-12-dev gcc-s390x-linux-gnu libc6-dev-s390x-cross
#   gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
#
# Not gcc-multilib, which removes the cross compilers.
set -u
cd "$(dirname "$0")/.." || exit 1
dir=build/cross/${1:-}
mkdir -p "$dir"
# MANAGER_STATIC: the compiler then drops what a test does not use, at a third of
# the time. -static: nothing of the target's need be installed to run it.
flags="-std=c99 -w -DMANAGER_STATIC -I. -Iexamples -Itests -pthread -static"
warnings="-std=c99 -O2 -Wall -Wextra -Werror -pedantic -Wshadow -Wconversion -Wsign-conversion -Wundef -Wcast-qual
    -Wcast-align -Wpointer-arith -Wwrite-strings -Wformat=2 -Wvla -Wswitch-enum -Wnull-dereference
    -Wstrict-prototypes -Wmissing-prototypes -I. -Iexamples -pthread"
# Where the headers of 64 bits also serve 32, as gcc-multilib's link would have it.
narrow="-m32 -idirafter /usr/include/$(gcc -print-multiarch 2>/dev/null)"
seeds=3
fast=-Ofast
# Emulated, the largest maps would take minutes.
export RUSH_PARTS_MAX=256
passed=0 failed=0 skipped=0

ok()   { echo "ok   $1"; passed=$((passed + 1)); }
bad()  { tail -n 20 "$dir/$1.log"; echo "FAIL $1"; failed=$((failed + 1)); }
skip() { echo "skip $1: $2"; skipped=$((skipped + 1)); }

# links COMPILER...: true if it makes programs.
echo 'int main(void) { return 0; }' >"$dir/probe.c"
links() { "$@" -static "$dir/probe.c" -o "$dir/probe" >/dev/null 2>&1; }

# How to run a program of that machine, in $run: by itself if the kernel takes it,
# else under qemu. $dir/probe is such a program.
find_runner() {
    run=
    "$dir/probe" >/dev/null 2>&1 && return
    for run in "qemu-$1-static" "qemu-$1"; do
        command -v "$run" >/dev/null 2>&1 && return
    done
    return 1
}

# check NAME SOURCE ARGUMENTS -- COMPILER...: build and run; only a last line that
# tells of passed tests, and of no other, is good.
check() {
    name=$1 source=$2 arguments=$3; shift 4
    if "$@" $flags -o "$dir/$name" "tests/$source.c" >"$dir/$name.log" 2>&1 &&
        $limit $run "$dir/$name" $arguments >"$dir/$name.log" 2>&1 </dev/null &&
        tail -n 1 "$dir/$name.log" | grep -q '^[1-9][0-9]* passed, 0 failed, 0 skipped$'
    then ok "$name"; else bad "$name"; fi
}
limit=
command -v timeout >/dev/null 2>&1 && limit="timeout -k 10 300"

# machine NAME QEMU SCOPE COMPILER...: everything for one machine and compiler.
# SCOPE: vectors, program (the vectors and the program), all.
machine() {
    name=$1 qemu=$2 scope=$3; shift 3
    if ! links "$@"; then skip "cross_$name" "no $1 here that makes programs for it"; return; fi
    if ! find_runner "$qemu"; then skip "cross_$name" "no qemu-$qemu-static here"; return; fi
    this=$name
    for level in 0 3; do check "${this}_rush_O$level" test_rush golden -- "$@" -O$level; done
    # Floats only sort out, whatever a compiler may do with them.
    check "${this}_rush_fast" test_rush 'bounds rounding' -- "$@" $fast
    [ "$scope" = vectors ] && return
    if "$@" $warnings -o "$dir/${this}_manager" examples/manager.c >"$dir/${this}_manager.log" 2>&1 &&
        { [ -n "$run" ] || "$dir/${this}_manager" --version >"$dir/${this}_manager.log" 2>&1; }
    then ok "${this}_manager"; else bad "${this}_manager"; fi
    [ "$scope" = all ] || return
    for test in test_base test_json test_wire test_rush test_cluster; do
        check "${this}_$test" "$test" '' -- "$@" -O1
    done
    check "${this}_sim" sim "$seeds" -- "$@" -O1
}

case ${1:-} in
x86_64_gcc)   machine "$1" x86_64  vectors gcc -m64 ;;
x86_64_clang) fast="-Ofast -mrecip=all:0"
              machine "$1" x86_64  vectors clang -m64 ;;
i386_gcc)     machine "$1" i386    all     gcc $narrow ;;
i386_clang)   machine "$1" i386    vectors clang $narrow ;;
aarch64_gcc)  machine "$1" aarch64 program aarch64-linux-gnu-gcc ;;
s390x_gcc)    machine "$1" s390x   all     s390x-linux-gnu-gcc ;;
'')
    # JOBS at a time, the longest first; each prints its own count.
    printf '%s\n' s390x_gcc i386_gcc aarch64_gcc i386_clang x86_64_gcc x86_64_clang |
        xargs -P "${JOBS:-2}" -n 1 tests/cross.sh | awk '
        /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { passed += $1; failed += $3; skipped += $5; machines++; next }
        { print; fflush() }
        END {
            if (machines != 6) { print "FAIL cross: a machine ended without a count"; failed++ }
            printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
            exit failed > 0
        }'
    exit ;;
*) echo "cross.sh: no machine $1" >&2; exit 2 ;;
esac

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
