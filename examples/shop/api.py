"""The web API of the shop.

GET  /stock       what is on the shelves
POST /orders      {"item": "apple", "count": 2}: queues an order, answers with its id
GET  /orders/ID   how far an order is: queued, done or refused
"""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from resp import Redis


class Shop(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with Redis() as redis:
            if self.path == "/stock":
                stock = redis.pairs("HGETALL", "stock")
                return self.answer(200, {item: int(count) for item, count in stock.items()})
            if self.path.startswith("/orders/"):
                order = redis.pairs("HGETALL", "order:" + self.path.removeprefix("/orders/"))
                if order:
                    return self.answer(200, {**order, "count": int(order["count"])})
        self.answer(404, {"error": "there is nothing at " + self.path})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/orders":
            return self.answer(404, {"error": "orders go to /orders"})
        try:
            wanted = json.loads(body)
            item, count = str(wanted["item"]), int(wanted["count"])
        except (ValueError, TypeError, KeyError):
            return self.answer(400, {"error": 'an order looks like {"item": "apple", "count": 2}'})
        with Redis() as redis:
            number = redis("INCR", "orders")
            redis("HSET", f"order:{number}", "item", item, "count", count, "state", "queued")
            redis("LPUSH", "queue", number)
        self.answer(201, {"id": number, "state": "queued"})

    def answer(self, status, value):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


port = int(os.environ["PORT"])
server = ThreadingHTTPServer(("127.0.0.1", port), Shop)
print(f"the shop is open at http://localhost:{port}", flush=True)
server.serve_forever()
