#!/bin/sh
# The rules of style that a machine can check, on manager.h and the tree around
# it. Each rule is tried on a bad snippet first: a check that cannot fail proves
# nothing.
set -u
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d "${TMPDIR:-/tmp}/style.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
passed=0 failed=0 skipped=0
CC=${CC:-cc}
[ -f manager.h ] || { echo "FAIL style: no manager.h"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }

ok()   { echo "ok   $1"; passed=$((passed + 1)); }
fail() { echo "FAIL $1"; failed=$((failed + 1)); }
skip() { echo "skip $1: $2"; skipped=$((skipped + 1)); }

# ---- reading C ----

# code FILE: one line "section|number|text" for each line, comments blanked and
# literals emptied. A section starts at its banner: a rule, then "* [tag] Title".
# manager.h is read once for all checks.
code() {
    if [ "$1" = manager.h ]; then
        [ -s "$tmp/manager.code" ] || read_code manager.h >"$tmp/manager.code"
        cat "$tmp/manager.code"
    else
        read_code "$1"
    fi
}

read_code() {
    awk '
    function strip(s,    out, i, c, two) {
        out = ""
        for (i = 1; i <= length(s); i++) {
            c = substr(s, i, 1); two = substr(s, i, 2)
            if (comment) { if (two == "*/") { comment = 0; i++ } continue }
            if (two == "/*") { comment = 1; i++; out = out " "; continue }
            if (two == "//") break
            if (c == "\"" || c == "\047") {
                out = out c
                for (i++; i <= length(s) && substr(s, i, 1) != c; i++) if (substr(s, i, 1) == "\\") i++
            }
            out = out c
        }
        return out
    }
    BEGIN { section = "top" }
    rule && match($0, /^ \* \[[a-z]+\] /) { section = substr($0, 5, RLENGTH - 6) }
    { rule = ($0 ~ /^\/\* ====/); print section "|" NR "|" strip($0) }' "$1"
}

banners() { awk 'rule && match($0, /^ \* \[[a-z]+\] /) { print substr($0, 5, RLENGTH - 6) } { rule = ($0 ~ /^\/\* ====/) }' "$1"; }

# The manual's index: in the manual, the lines that begin with a tag.
index_tags() {
    awk '
    rule && /^ \* \[[a-z]+\] / { manual = ($0 ~ /\[manual\]/); rule = 0; next }
    { rule = ($0 ~ /^\/\* ====/) }
    manual && match($0, /^[ *]*\[[a-z]+\]/) { tag = substr($0, 1, RLENGTH); gsub(/[^a-z]/, "", tag); print tag }' "$1"
}

# ---- the checks: each prints what is wrong, nothing if all is well ----

index_matches_banners() {
    index_tags "$1" >"$tmp/index"; banners "$1" >"$tmp/banners"
    [ -s "$tmp/banners" ] || echo "no banner \" * [tag] Title\" below a rule"
    cmp -s "$tmp/index" "$tmp/banners" || {
        echo "the manual's index: $(tr '\n' ' ' <"$tmp/index")"; echo "the banners:        $(tr '\n' ' ' <"$tmp/banners")"; }
    sort "$tmp/banners" | uniq -d | sed 's/$/ has two banners/'
}

# A name that carries a section's tag, or a public function that a section
# defines, may be used in that section and below it only.
upward_calls() {
    code "$1" >"$tmp/code"
    awk -F'|' '
    FNR == 1 { pass++ }
    { text = $0; sub(/^[^|]*\|[^|]*\|/, "", text) }
    pass == 1 {
        if (!($1 in at)) at[$1] = ++count
        if (pending != "" && text ~ /^\{/) home[pending] = at[$1]
        if (text ~ /^[A-Za-z].*[ *]mgr_[a-z0-9][a-z0-9_]*\(/) {
            match(text, /mgr_[a-z0-9][a-z0-9_]*\(/); pending = substr(text, RSTART, RLENGTH - 1)
            if (text ~ /\)[ ]*\{/) home[pending] = at[$1]
        }
        if (text ~ /;[ ]*$/ || text ~ /^\}/) pending = ""
        next
    }
    $1 == "api" || $1 == "manual" { next }
    {
        while (match(text, /mgr_[A-Za-z0-9_]*/)) {
            name = substr(text, RSTART, RLENGTH); text = substr(text, RSTART + RLENGTH)
            if (substr(name, 1, 5) == "mgr__") {
                tag = substr(name, 6); sub(/_.*/, "", tag)
                if (name == "mgr__" tag) continue     # the section'"'"'s one struct: the compiler orders those
                if (tag in at && at[tag] > at[$1]) print "line " $2 ": [" $1 "] uses " name " of [" tag "], below it"
            } else if (name in home && home[name] > at[$1]) print "line " $2 ": [" $1 "] uses " name ", defined below it"
        }
    }' "$tmp/code" "$tmp/code"
}

# With these an upward call would compile. A prototype that only carries an
# attribute stands right before its definition.
forward_declarations() {
    code "$1" | awk -F'|' '
    { text = $0; sub(/^[^|]*\|[^|]*\|/, "", text) }
    text ~ /^static .*\(/ { decl = ""; open = 1; start = $2 }
    open { decl = decl " " text }
    open && decl ~ /\{/ { open = 0 }
    open && decl ~ /;/ { open = 0; if (decl !~ /MGR__PRINTF|=/) print "line " start ": forward declaration:" substr(decl, 1, 90) }'
}

long_functions() {
    code "$1" | awk -F'|' -v most=70 '
    { text = $0; sub(/^[^|]*\|[^|]*\|/, "", text) }
    text ~ /^[A-Za-z_].*\(/ { start = $2; name = text }
    text ~ /^\}/ { if (start && $2 - start + 1 > most) print "line " start ": " $2 - start + 1 " lines: " substr(name, 1, 80); start = 0 }
    text ~ /;[ ]*$/ && text ~ /^[A-Za-z_]/ { start = 0 }'
}

# Calls that are banned everywhere, or outside the sections that own them. A call
# through a table of functions (io->write) is not one.
banned_calls() {
    code "$1" | awk -F'|' '
    function calls(pattern) { return (" " text) ~ ("[^A-Za-z0-9_.>](" pattern ")[ ]*\\(") }
    function bad(why) { print "line " $2 ": " why ": " substr(text, 1, 90) }
    { text = $0; sub(/^[^|]*\|[^|]*\|/, "", text) }
    /#[ ]*(define|include)/ { next }
    calls("strcpy|strcat|sprintf|vsprintf|strncpy|atoi|atol|atoll|gets|strtok|tmpnam|alloca") { bad("unbounded, or cannot report an error") }
    calls("system|popen") { bad("a shell") }
    calls("printf|vprintf|puts|putchar|perror|psignal") || text ~ /[^A-Za-z0-9_](stdout|stderr)[^A-Za-z0-9_]/ { bad("the library never prints") }
    calls("exit|abort|quick_exit") { bad("the library never ends its host") }
    $1 != "io" && calls("clock_gettime|gettimeofday|time|clock|usleep|nanosleep|sleep") { bad("a clock outside [io]") }
    $1 != "io" && $1 != "keeper" && text ~ /waitpid\([ ]*-1|P_ALL/ { bad("would reap the host'"'"'s children") }'
}

kernel_calls() {
    code "$1" | awk -F'|' '
    { text = $0; sub(/^[^|]*\|[^|]*\|/, "", text) }
    $1 != "io" && (" " text) ~ /[^A-Za-z0-9_.>](socket|socketpair|connect|bind|accept|listen|fork|vfork|clone|execve|execv|execvp|kill|poll|ppoll|select|epoll_create1|epoll_ctl|epoll_wait|timerfd_create|timerfd_settime|open|openat|read|write|close|pipe|pipe2|waitpid|waitid|mmap|munmap|prctl|syscall|setsid|setpgid|send|recv|sendmsg|recvmsg|unlink|mkdir|rmdir|getpid|getppid|gethostname|getaddrinfo|signal|sigaction)[ ]*\(/ {
        print "line " $2 ": [" $1 "] calls the kernel itself: " substr(text, 1, 90) }'
}

blanks_and_tabs() {
    tab=$(printf '\t')
    for file in "$@"; do
        grep -n '[[:blank:]]$' "$file" | sed "s|^|$file: trailing blank, line |" | head -n 5
        case $file in
        *.c | *.h) grep -n "$tab" "$file" | sed "s|^|$file: tab, line |" | head -n 5 ;;
        esac
    done
}

long_lines() {
    for file in "$@"; do
        awk -v file="$file" -v most=140 'length($0) > most { print file ": line " NR ": " length($0) " columns" }' "$file"
    done
}

# exported_names FLAGS...: what an object made from manager.h shows to a linker.
exported_names() {
    printf '#define MANAGER_IMPLEMENTATION\n#include "%s"\n' "$1" >"$tmp/export.c"
    $CC -std=c99 -O1 -fno-pie -I. -c "$tmp/export.c" -o "$tmp/export.o" 2>"$tmp/log" || { head -n 5 "$tmp/log"; return; }
    nm -g "$tmp/export.o" | awk 'NF == 3 && $2 != "U" && $3 !~ /^_?mgr_[a-z]/ { print "exported: " $3 }'
    nm "$tmp/export.o" | awk 'NF == 3 && $2 ~ /^[dDbBC]$/ { print "global variable: " $3 }'
    $CC -std=c99 -O1 -fno-pie -DMANAGER_STATIC -I. -c "$tmp/export.c" -o "$tmp/export.o" 2>"$tmp/log" || { head -n 5 "$tmp/log"; return; }
    nm -g "$tmp/export.o" | awk 'NF == 3 && $2 != "U" { print "exported despite MANAGER_STATIC: " $3 }'
}

top_level() {
    ls "$1" | grep -vxE 'manager\.h|tests|examples|Makefile|README\.md|LICENSE|build' | sed 's/$/ does not belong at the top level/'
}

# The manual's rules of safety, "S7  text (function, ...)": each has a mutant that
# takes it out, each mutant its rule, and the functions exist.
rules_have_mutants() {
    script=${2:-$tmp/mutants.sh}
    awk '/How two owners are avoided/ { on = 1; next } on && /^ \* ----/ { exit } on' "$1" >"$tmp/rules"
    sed -n 's/^ \*  \(S[0-9]*\) .*/\1/p' "$tmp/rules" >"$tmp/numbers"
    [ -s "$tmp/numbers" ] || echo "no rules S1, S2, ... in the manual"
    awk '{ if ($1 != "S" NR) print $1 " stands where S" NR " should" }' "$tmp/numbers"
    sed -n 's/^mutant \(S[0-9]*\) .*/\1/p' "$script" | sort -u >"$tmp/mutated"
    sort -u "$tmp/numbers" >"$tmp/sorted"
    comm -23 "$tmp/sorted" "$tmp/mutated" | sed 's/$/ has no mutant/'
    comm -13 "$tmp/sorted" "$tmp/mutated" | sed 's/$/ has mutants but is no rule of the manual/'
    for name in $(grep -o 'mgr__[a-z0-9_]*' "$tmp/rules"); do
        grep -q "^[a-z].*[ *]$name(" "$1" || echo "$name, named in a rule, is no function"
    done
}

mutants_apply() { "$1" -n | grep '^FAIL'; }

# Nothing in the tree may depend on where one machine had it.
machine_paths() { grep -nE '(^|[^a-z])/(w''ork|home/[a-z]|r''oot)/' "$@" /dev/null | head -n 5; }

# ---- each check on a good and a bad snippet, then on the tree ----

banner() { printf '/* ====\n * [%s] Title\n * ==== */\n' "$1"; }

# self_test CHECK: bad.h must make it speak, good.h must not.
self_test() {
    if [ -n "$($1 "$tmp/good.h")" ]; then echo "speaks of a good snippet: $($1 "$tmp/good.h")"; fail "self_test_$1"
    elif [ -z "$($1 "$tmp/bad.h")" ]; then echo "silent about a bad snippet"; fail "self_test_$1"
    else ok "self_test_$1"; fi
}

# real CHECK FILES...
real() {
    name=$1; shift
    said=$($name "$@")
    if [ -z "$said" ]; then ok "$name"; else echo "$said" | head -n 30; fail "$name"; fi
}

{ banner manual | sed 's/ \* ====.*//'; echo ' *   [manual]  this'; echo ' *   [base]   ground'; echo ' */'; banner base; } >"$tmp/good.h"
{ banner manual | sed 's/ \* ====.*//'; echo ' *   [base]  ground'; echo ' *   [manual]  this'; echo ' */'; banner base; } >"$tmp/bad.h"
self_test index_matches_banners

{ banner low; echo 'static int mgr__low_a(void) { return 0; } /* mgr__high_b() is above */'
  banner high; echo 'static int mgr__high_b(void) { return mgr__low_a(); }'; } >"$tmp/good.h"
{ banner low; echo 'static int mgr__low_a(void) { return mgr__high_b(); }'; banner high; } >"$tmp/bad.h"
self_test upward_calls
{ banner low; echo 'static int mgr__low_a(void) { return mgr_b(); }'; banner high; printf 'MGRAPI int mgr_b(void)\n{\n}\n'; } >"$tmp/bad.h"
self_test upward_calls

printf 'static int f(void) MGR__PRINTF(1, 2);\nstatic int f(void)\n{\n    return g();\n}\n' >"$tmp/good.h"
printf 'static int f(int a,\n             int b);\n' >"$tmp/bad.h"
self_test forward_declarations

{ printf 'static int f(void)\n{\n'; i=0; while [ $i -lt 67 ]; do echo '    g();'; i=$((i + 1)); done; echo '}'; } >"$tmp/good.h"
{ printf 'static int f(void)\n{\n'; i=0; while [ $i -lt 68 ]; do echo '    g();'; i=$((i + 1)); done; echo '}'; } >"$tmp/bad.h"
self_test long_functions

{ echo 'x = snprintf(a, b, "strcpy(a, b) %s", io->time(0)); /* gets(x) */'; banner io; echo 'clock_gettime(a, b); waitpid(-1, 0, 0);'; } >"$tmp/good.h"
for call in 'strcpy(a, b)' 'strcat(a, b)' 'sprintf(a, b)' 'atoi(a)' 'gets(a)' 'x = time(0)' 'clock_gettime(a, b)' 'waitpid(-1, 0, 0)' \
    'waitid(P_ALL, 0, 0, 0)' 'system(a)' 'popen(a, b)' 'printf("x")' 'fprintf(stderr, "x")' 'exit(1)' 'abort()'; do
    { banner loop; echo "    $call;"; } >"$tmp/bad.h"
    [ -n "$(banned_calls "$tmp/bad.h")" ] || { echo "silent about $call"; fail self_test_banned_calls; }
done
self_test banned_calls

{ banner io; echo 'x = socket(1, 2, 3);'; banner loop; echo 'x = io->socket(1, 2, 3); mgr__io_poll(1); mgr_kill(2);'; } >"$tmp/good.h"
{ banner loop; echo 'x = socket(1, 2, 3);'; } >"$tmp/bad.h"
self_test kernel_calls

printf 'int a;\n' >"$tmp/good.h"; printf 'int a; \n' >"$tmp/bad.h"
self_test blanks_and_tabs
printf '\tint a;\n' >"$tmp/bad.h"
self_test blanks_and_tabs

printf '%0140d\n' 0 >"$tmp/good.h"; printf '%0141d\n' 0 >"$tmp/bad.h"
self_test long_lines

mkdir "$tmp/good" "$tmp/bad" && touch "$tmp/good/manager.h" "$tmp/bad/notes.txt"
if [ -z "$(top_level "$tmp/good")" ] && [ -n "$(top_level "$tmp/bad")" ]; then ok self_test_top_level; else fail self_test_top_level; fi

rule() { printf ' * ---- How two owners are avoided ----\n *  S1  a rule (mgr__a)\n *  %s  another (mgr__b)\n * ---- Next ----\nstatic int mgr__a(void)\nstatic int %s(void)\n' "$1" "$2"; }
printf 'mutant S1 one\nmutant S2 two\nmutant S2 three\n' >"$tmp/mutants.sh"
rule S2 mgr__b >"$tmp/good.h"
for bad in 'S3 mgr__b' 'S2 mgr__c'; do
    # Unquoted on purpose: two words.
    rule $bad >"$tmp/bad.h"
    self_test rules_have_mutants
done
rule S2 mgr__b >"$tmp/bad.h"
echo 'mutant S1 one' >"$tmp/mutants.sh"
[ -n "$(rules_have_mutants "$tmp/bad.h")" ] && ok self_test_rules_without_mutants || fail self_test_rules_without_mutants

echo 'see build/x' >"$tmp/good.h"; printf 'see /%s/x\n' w''ork >"$tmp/bad.h"
self_test machine_paths

if command -v nm >/dev/null 2>&1; then
    printf '#ifdef MANAGER_STATIC\n#define API static __attribute__((unused))\n#else\n#define API\n#endif\nAPI int mgr_x(void) { return 1; }\n' >"$tmp/good.h"
    for bad in 'int other(void) { return 1; }' 'int mgr__x(void) { return 1; }' 'static int mgr__count; int mgr_x(void) { return mgr__count++; }'; do
        echo "$bad" >"$tmp/bad.h"
        self_test exported_names
    done
    real exported_names manager.h
else
    skip exported_names "no nm here"
fi

for check in index_matches_banners upward_calls forward_declarations long_functions banned_calls kernel_calls; do
    real $check manager.h
done
files=$(find manager.h Makefile README.md LICENSE .ci tests examples -type f \
        \( -name '*.[ch]' -o -name '*.sh' -o -name '*.md' -o -name Makefile -o -name LICENSE -o -name run \) 2>/dev/null)
real blanks_and_tabs $files
real long_lines manager.h examples/*.[ch]
real machine_paths $files
real top_level .
real rules_have_mutants manager.h tests/mutants.sh
real mutants_apply tests/mutants.sh

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
