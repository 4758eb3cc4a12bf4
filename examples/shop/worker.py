"""Carries out orders, one after another.

An order moves from `queue` to `at work` in one step. It leaves `at work` in the same transaction that gives it its final
state, so a worker that is killed loses nothing: the next one begins with what lies in `at work`.
"""

import signal

from resp import Redis

leaving = False


def leave(_signal, _frame):
    global leaving
    leaving = True


def carry_out(redis, number):
    order = redis.pairs("HGETALL", f"order:{number}")
    item, count = order["item"], int(order["count"])
    state = "done" if 0 < count <= int(redis("HGET", "stock", item) or 0) else "refused"
    redis("MULTI")
    if state == "done":
        redis("HINCRBY", "stock", item, -count)
    redis("HSET", f"order:{number}", "state", state)
    redis("LREM", "at work", 1, number)
    redis("EXEC")
    print(f"order {number}: {count} {item}, {state}", flush=True)


signal.signal(signal.SIGINT, leave)
with Redis() as redis:
    for number in redis("LRANGE", "at work", 0, -1):
        carry_out(redis, number)
    print("waiting for orders", flush=True)
    while not leaving:
        # A second at most, so that a wish to leave is heard.
        number = redis("BRPOPLPUSH", "queue", "at work", 1)
        if number:
            carry_out(redis, number)
print("the worker has left", flush=True)
