#!/bin/sh
# Every warning as an error: gcc and clang as C99 and C11, g++ and clang++ as
# C++11; the implementation as a public and as a MANAGER_STATIC one, the header
# alone, and the examples. Optimised, for some warnings need the optimiser.
set -u
cd "$(dirname "$0")/.." || exit 1
dir=build/warnings
mkdir -p "$dir"
common="-O2 -Wall -Wextra -Werror -pedantic -Wshadow -Wconversion -Wsign-conversion -Wundef -Wcast-qual
    -Wcast-align -Wpointer-arith -Wwrite-strings -Wformat=2 -Wvla -Wswitch-enum -Wnull-dereference"
c_only="-Wstrict-prototypes -Wmissing-prototypes"
passed=0 failed=0 skipped=0

printf '#define MANAGER_IMPLEMENTATION\n#include "manager.h"\n' >"$dir/impl.c"
printf '#define MANAGER_STATIC\n#define MANAGER_IMPLEMENTATION\n#include "manager.h"\n' >"$dir/private.c"
printf '#include "manager.h"\nint unused_here;\n' >"$dir/header.c"

# check NAME COMPILER FLAGS... FILE
check() {
    name=$1; shift
    if "$@" -I. -Iexamples -o "$dir/out.o" >"$dir/log" 2>&1; then
        echo "ok   $name"; passed=$((passed + 1))
    else
        head -n 40 "$dir/log"; echo "FAIL $name"; failed=$((failed + 1))
    fi
}

for cc in gcc clang; do
    if ! command -v $cc >/dev/null 2>&1; then
        echo "skip warnings_$cc: no $cc here"; skipped=$((skipped + 1)); continue
    fi
    for std in c99 c11; do
        for unit in impl private header; do
            check "${cc}_${std}_$unit" $cc -std=$std $common $c_only -c "$dir/$unit.c"
        done
    done
    for example in examples/*.c; do
        [ -f "$example" ] || continue
        check "${cc}_c99_$(basename "$example" .c)" $cc -std=c99 $common $c_only -c "$example"
    done
done
for cc in g++ clang++; do
    if ! command -v $cc >/dev/null 2>&1; then
        echo "skip warnings_$cc: no $cc here"; skipped=$((skipped + 1)); continue
    fi
    for unit in impl private header; do
        check "${cc}_c++11_$unit" $cc -std=c++11 -x c++ $common -c "$dir/$unit.c"
    done
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
