"""A Redis client as small as the shop needs: it sends a command and returns the answer.

The protocol is RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/). A command is an array of byte
strings; the first byte of an answer tells its type.
"""

import os
import socket


class RedisError(Exception):
    """What Redis answered instead of a result."""


class Redis:
    """One connection to the Redis that locald started, found by REDIS_PORT."""

    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", int(os.environ["REDIS_PORT"])))
        self.stream = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.socket.close()

    def __call__(self, *words):
        """Sends a command: redis("SET", "stock:apple", 10). Text comes back as str, numbers as int, nothing as None."""
        words = [str(word).encode() for word in words]
        command = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        self.socket.sendall(command)
        return self._answer()

    def _answer(self):
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis has closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest)
        if kind == b":":
            return int(rest)
        size = int(rest)
        if size < 0:
            return None
        if kind == b"$":
            return self.stream.read(size + 2)[:-2].decode()
        return [self._answer() for _ in range(size)]

    def pairs(self, *words):
        """Sends a command that answers with name, value, name, value, and returns a dict."""
        flat = self(*words)
        return dict(zip(flat[::2], flat[1::2]))
