#!/bin/sh
# Builds locald and runs an example with it: up, status, logs, down. Arguments: the example, `hello` if none is given.
#
# Everything it keeps is in a directory of its own, which is gone at the end.
set -eu
cd "$(dirname "$0")/.."

cargo build --release --locked
PATH="${CARGO_TARGET_DIR:-$PWD/target}/release:$PATH"
LOCALD_HOME="$(mktemp -d /tmp/locald-try.XXXXXX)"
export PATH LOCALD_HOME

cd "examples/${1:-hello}"
leave() {
    locald daemon stop --all >/dev/null 2>&1 || true
    rm -rf "$LOCALD_HOME"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

show locald up
sleep 2
show locald status
show locald logs
show locald down
