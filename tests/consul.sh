#!/bin/sh
# Print the path of a Consul binary: $CONSUL, the PATH, the copy under build/,
# else Debian's own package, unpacked under build/ without root and without a
# change to the system. Exits 1 with one line on stderr where none can be had.
#
# apt's ordinary client fetches the package, from the mirror this machine
# already uses, with lists and cache of its own: bookworm has no consul,
# bullseye has 1.8.7.
set -eu
suite=bullseye
root=$(cd "$(dirname "$0")/.." && pwd)
dir=$root/build/consul
bin=$dir/root/usr/bin/consul

say() { echo "consul.sh: $*" >&2; }

if [ -n "${CONSUL:-}" ]; then
    [ -x "$CONSUL" ] || { say "CONSUL=$CONSUL is not an executable; unset it or point it at a consul binary"; exit 1; }
    echo "$CONSUL"; exit 0
fi
if command -v consul >/dev/null 2>&1; then command -v consul; exit 0; fi
if [ -x "$bin" ]; then echo "$bin"; exit 0; fi

for tool in apt-get apt-config dpkg; do
    command -v $tool >/dev/null 2>&1 || {
        say "no consul on the PATH, and no $tool to fetch one; install Consul or set CONSUL=/path/to/consul"; exit 1; }
done

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
         grep '/debian/*$' | head -n 1)
[ -n "$mirror" ] || { say "apt names no Debian mirror; set CONSUL=/path/to/consul"; exit 1; }
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keys" ] || { say "$keys is missing: install debian-archive-keyring or set CONSUL"; exit 1; }

mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/root"
echo "deb [signed-by=$keys] $mirror $suite main" >"$dir/sources.list"
: >"$dir/status"
apt() {
    apt-get -q -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State="$dir" -o Dir::State::Lists="$dir/lists" -o Dir::State::status="$dir/status" \
        -o Dir::Cache="$dir/cache" -o APT::Sandbox::User="$(id -un)" \
        -o APT::Get::List-Cleanup=0 -o Acquire::Languages=none -o Debug::NoLocking=1 \
        -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 \
        -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@" >>"$dir/apt.log" 2>&1
}
(cd "$dir" && apt update && apt download consul && dpkg -x consul_*.deb root) || {
    say "cannot fetch Debian's consul package ($suite); see build/consul/apt.log, or set CONSUL=/path/to/consul"; exit 1; }
rm -rf "$dir"/consul_*.deb "$dir/lists" "$dir/cache"
[ -x "$bin" ] || { say "the package holds no $bin"; exit 1; }
echo "$bin"
