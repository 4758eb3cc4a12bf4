"""Counts the messages, and tells whoever started it when it is ready (sd_notify(3))."""

import http.server
import json
import os
import socket
import urllib.request

API = os.environ["LOCALD_URL_API"]


class Stats(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with urllib.request.urlopen(f"{API}/messages") as answer:
            messages = json.load(answer)
        body = json.dumps({"messages": len(messages)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Stats)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
server.serve_forever()
