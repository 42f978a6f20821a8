#!/bin/sh
# One embedding, built every way the header allows, and run: the implementation in
# one C file of two, private in both (MANAGER_STATIC), all in one file; as C99,
# C11 and C++11; static with musl. embed.sh ADDRESS: the programs that stand in
# build/embed (or are built now) join the Consul there.
set -u
cd "$(dirname "$0")/../.." || exit 1
dir=build/embed
mkdir -p "$dir"
passed=0 failed=0 skipped=0
address=${1:-}

# build NAME COMPILER FLAGS...: two objects, one program, run.
build() {
    name=$1; shift
    compiler=$1
    if ! command -v "$compiler" >/dev/null 2>&1; then
        echo "skip embed_$name: no $compiler here"; skipped=$((skipped + 1)); return
    fi
    files="tests/embed/main.c tests/embed/part.c"
    case $name in *_one) files=tests/embed/main.c ;; esac
    program=$dir/$name
    if [ -z "$address" ] || [ ! -x "$program" ]; then
        "$@" -O0 -Wall -Wextra -I. -Itests/embed $files -o "$program" -pthread >"$program.log" 2>&1 ||
            { head -n 20 "$program.log"; echo "FAIL embed_$name: does not build"; failed=$((failed + 1)); return; }
    fi
    if "$program" $address >"$program.log" 2>&1; then
        echo "ok   embed_$name"; passed=$((passed + 1))
    else
        head -n 20 "$program.log"; echo "FAIL embed_$name"; failed=$((failed + 1))
    fi
}

cc=${CC:-cc}
build c99        $cc -std=c99
build c11        $cc -std=c11
build c99_one    $cc -std=c99 -DEMBED_ONE
build c99_static $cc -std=c99 -DEMBED_STATIC
build cxx11        g++ -std=c++11 -x c++
build cxx11_static g++ -std=c++11 -x c++ -DEMBED_STATIC
build musl       musl-gcc -std=c99 -static

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
