#!/bin/sh
# Each fuzzer for FUZZ_S seconds (default 20) under libFuzzer, ASan and UBSan, on
# its seeds in tests/corpus/NAME and what earlier runs found in build/fuzz.
set -u
cd "$(dirname "$0")/.." || exit 1
dir=build/fuzz
mkdir -p "$dir"
flags="-O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all"
passed=0 failed=0 skipped=0
echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { (void)d; (void)n; return 0; }' >"$dir/probe.c"
able=yes
clang $flags "$dir/probe.c" -o "$dir/probe" >/dev/null 2>&1 || able=
for source in tests/fuzz_*.c; do
    [ -f "$source" ] || continue
    name=$(basename "$source" .c)
    [ -n "$able" ] || { echo "skip $name: no clang with libFuzzer here"; skipped=$((skipped + 1)); continue; }
    mkdir -p "$dir/$name.found"
    seeds=
    [ -d "tests/corpus/$name" ] && seeds=tests/corpus/$name
    if clang -std=c99 $flags -I. -Iexamples -Itests "$source" -o "$dir/$name" >"$dir/$name.log" 2>&1 &&
       "$dir/$name" -max_total_time="${FUZZ_S:-20}" -max_len=4096 -timeout=10 -artifact_prefix="$dir/$name." \
           "$dir/$name.found" $seeds >>"$dir/$name.log" 2>&1
    then echo "ok   $name: $(grep -o 'Done .*' "$dir/$name.log")"; passed=$((passed + 1))
    else tail -n 30 "$dir/$name.log"; echo "FAIL $name"; failed=$((failed + 1)); fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
