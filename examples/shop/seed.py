"""Puts the first stock on the shelves. What is there already stays as it is."""

from resp import Redis

STOCK = {"apple": 10, "pear": 3, "plum": 0}

with Redis() as redis:
    added = [item for item, count in STOCK.items() if redis("HSETNX", "stock", item, count)]
    print("added", ", ".join(added) if added else "nothing", flush=True)
