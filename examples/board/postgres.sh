#!/bin/sh
# Makes the database where there is none, and becomes its server.
set -eu
# Debian and Homebrew keep its programs out of the way, one directory for each version.
for bin in /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql@*/bin; do
    [ ! -x "$bin/initdb" ] || PATH="$bin:$PATH"
done
data="$PWD/.data/postgres"
if [ ! -s "$data/PG_VERSION" ]; then
    mkdir -p .data
    initdb --pgdata "$data" --username board --auth trust --encoding UTF8 --locale C
fi
exec postgres -D "$data" -p "$PORT" -c listen_addresses=localhost -c unix_socket_directories=
