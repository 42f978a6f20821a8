#!/bin/sh
# The unit tests under AddressSanitizer and UndefinedBehaviorSanitizer, with the
# first compiler that can link them.
set -u
cd "$(dirname "$0")/.." || exit 1
flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
dir=build/sanitize
mkdir -p "$dir"
echo 'int main(void) { return 0; }' >"$dir/probe.c"
for cc in clang gcc "${CC:-cc}" ''; do
    [ -n "$cc" ] || { echo "skip sanitize: no compiler here links the sanitisers"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
    $cc $flags "$dir/probe.c" -o "$dir/probe" >/dev/null 2>&1 && break
done
echo "sanitize: $cc $flags"
# Leaks count; a test that forks leaves the copies to its child, so only the
# parent's end is asked.
ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 TEST_OUT=$dir/out \
    exec "${MAKE:-make}" --no-print-directory B="$dir" CC="$cc" CFLAGS="-O1 -g $flags" TEST_CFLAGS="-O1 -g $flags" \
    JOBS="${JOBS:-2}" unit
