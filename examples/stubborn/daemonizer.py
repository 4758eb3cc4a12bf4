"""Forks twice, so that nothing but its history ties the grandchild to this process, and stays."""

import os
import signal

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvpe("sleep", ["sleep", "600"], {})
    os._exit(0)
os.wait()
signal.pause()
