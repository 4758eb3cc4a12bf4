#!/bin/sh
# Installs what the tests need and passes them. Arguments go to `cargo test --workspace`.
#
# Besides Rust and a C compiler the tests need redis-server, PostgreSQL, nginx, Node, python3, git, strace (Linux) and the usual tools.
# What is there already is left alone. The servers of the tests have ports and directories of their own; those that a package starts are
# not touched.
set -eu
cd "$(dirname "$0")/.."

missing() {
    for program in "$@"; do
        command -v "$program" >/dev/null 2>&1 || return 0
    done
    return 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        echo "scripts/test.sh: this needs root, and there is no sudo: $*" >&2
        exit 1
    fi
}

# Debian keeps the programs of PostgreSQL out of PATH, and those of root.
for bin in /usr/lib/postgresql/*/bin; do
    PATH="$PATH:$bin"
done
PATH="$PATH:/usr/sbin:/usr/local/sbin"
needs="redis-server postgres psql nginx node python3 git"
# Calls that older kernels lack are refused by strace, which only Linux has.
[ "$(uname)" != Linux ] || needs="$needs strace"
# shellcheck disable=SC2086 # the words are separate
if missing $needs; then
    if command -v apt-get >/dev/null 2>&1; then
        as_root apt-get update -q
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -q --no-install-recommends \
            redis-server postgresql nginx-light nodejs python3-minimal git strace </dev/null
    elif command -v brew >/dev/null 2>&1; then
        brew install redis postgresql@17 nginx node python3 git </dev/null
    else
        echo "scripts/test.sh: install $needs, then run this again" >&2
        exit 1
    fi
fi

exec cargo test --workspace "$@"
