"""Has a child that calls setsid, and waits for it."""

import os

if os.fork() == 0:
    os.setsid()
    os.execvp("sleep", ["sleep", "600"])
os.wait()
