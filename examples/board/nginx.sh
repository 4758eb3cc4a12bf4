#!/bin/sh
# Writes down where everybody listens, and becomes nginx.
set -eu
dir="$PWD/.data/nginx"
mkdir -p "$dir"
cat >"$dir/nginx.conf" <<CONF
daemon off;
worker_processes 2;
pid $dir/pid;
error_log stderr;
events {}
http {
    access_log /dev/stdout;
    client_body_temp_path $dir/body;
    proxy_temp_path $dir/proxy;
    fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi;
    scgi_temp_path $dir/scgi;
    types { text/html html; }
    server {
        listen 127.0.0.1:$PORT;
        location / { root $PWD/.data/page; }
        location /api/ { proxy_pass http://127.0.0.1:$LOCALD_PORT_API/; }
        location /stats { proxy_pass http://127.0.0.1:$LOCALD_PORT_STATS/; }
    }
}
CONF
# sbin is not in everybody's PATH.
PATH="$PATH:/usr/sbin:/usr/local/sbin"
exec nginx -e stderr -p "$dir" -c "$dir/nginx.conf"
