#!/usr/bin/env python3
"""Records what locald's programs say to each other in a day, for `crates/locald-utils/tests/golden`.

Usage: record-protocol.py PROGRAMS FILE. PROGRAMS is the directory of the programs of a release; FILE becomes JSON lines. Needs
Linux and strace(1). What depends on the machine is replaced, and of messages of the same form the first is kept.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

PROJECT = """
[services.db]
command = 'echo ready; exec sleep 600'
[services.job]
type = "job"
command = 'exit 0'
[services.web]
command = 'exec sleep 600'
depends_on = ["db", "job"]
[services.deaf]
command = 'trap "" TERM; (exec 9>&-; setsid sleep 600) & while :; do sleep 1; done'
stop_grace = "200ms"
[services.crash]
command = 'echo no; exit 3'
restart = "no"
[services.checked]
command = 'echo is up; exec sleep 600'
port = "auto"
health_check = [{ type = "log", pattern = "is up" }, { type = "command", command = "true", interval = "100ms" }]
watch = ["*.toml"]
[services.once]
type = "job"
command = 'exit 0'
inputs = ["*.toml"]
[services.launched]
type = "forking"
command = 'setsid sleep 600 & :'
[services.piped]
command = 'exec sleep 600'
tty = false
profiles = ["extra"]
env = { COLOUR = "${COLOUR:-blue}" }
[services.nothing]
command = ["./no-such-program"]
[services.fussy]
command = 'exec sleep 600'
stop_command = 'true'
log = { max_size = "1MB", max_age = "1h" }
"""

DAY = """
up db
status
status --json
up --profile extra
up --dry-run
up piped --owner ada --lease 30m
ls --json
ports
run db -- true
wait db
down --owner ada
restart web
screen db
daemon status --json
stop deaf
stop db --now
up db
KILL-DAEMON
KILL-SERVICE web
status
up
KILL-SHIM fussy
status
down
daemon stop
"""

CALL = re.compile(r'^(\d+)<([^>]*)> +(write|writev|sendto|sendmsg)\((\d+)<(.*?)>, (.*)$')
BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def main():
    programs, file = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    root = tempfile.mkdtemp(prefix="locald-recording.")
    project, home, trace = (os.path.join(root, name) for name in ("project", "home", "trace"))
    os.mkdir(project)
    with open(os.path.join(project, "locald.toml"), "w") as toml:
        toml.write(PROJECT)
    env = {"PATH": "/usr/bin:/bin", "HOME": root, "LOCALD_HOME": home, "LANG": "C.UTF-8"}
    locald = os.path.join(programs, "locald")

    # It ends when the last tracer has.
    all_have_ended, held = os.pipe()

    def run(words, number):
        # A tracer that is no parent goes on for as long as whoever the command has started does.
        strace = ["strace", "-D", "-f", "-yy", "-xx", "--decode-pids=comm", "-s", "1000000", "-o", f"{trace}.{number:02}"]
        strace += ["-e", "trace=write,writev,sendto,sendmsg", "-e", "signal=none", locald, *words]
        null = subprocess.DEVNULL
        return subprocess.Popen(strace, cwd=project, env=env, stdin=null, stdout=null, stderr=null, pass_fds=[held])

    def records():
        for path in sorted(glob.glob(f"{home}/projects/*/services/*/*")):
            name = os.path.basename(path).split(".")[0]
            if name in ("pid", "shim", "exit", "stop"):
                try:
                    with open(path) as text:
                        yield path.split("/")[-2], name, json.load(text)
                except FileNotFoundError:
                    pass  # It has just been taken away.

    keep, seen = [], set()

    def add(sender, message):
        form = (sender, shape(message))
        if form not in seen:
            seen.add(form)
            keep.append({"from": sender, "message": tame(message, root)})

    def see():
        for _, name, written in records():
            add(f"record {name}", written)

    def pid_of(service, record):
        written = next(written for of, name, written in records() if (of, name) == (service, record))
        return written["shim" if record == "shim" else "leader"]["pid"]

    for number, line in enumerate(DAY.strip().splitlines()):
        words = line.split()
        if words[0] == "KILL-DAEMON":
            status = subprocess.run([locald, "daemon", "status", "--json"], cwd=project, env=env, capture_output=True)
            os.kill(json.loads(status.stdout)["daemon"]["pid"], 9)
        elif words[0] == "KILL-SHIM":
            os.kill(pid_of(words[1], "shim"), 9)
        elif words[0] == "KILL-SERVICE":
            os.kill(pid_of(words[1], "pid"), 9)
            # Nobody is there to take its record.
            while not any((of, name) == (words[1], "exit") for of, name, _ in records()):
                time.sleep(0.01)
        else:
            command = run(words, number)
            while command.poll() is None:
                see()
                time.sleep(0.02)
        see()
    os.close(held)
    os.read(all_have_ended, 1)

    for name in sorted(os.listdir(root)):
        if name.startswith("trace."):
            for sender, message in messages(os.path.join(root, name)):
                # A shim and its exec helper are one program, and speak no protocol.
                if sender.startswith("locald") and "plan" not in message:
                    add(sender, message)
    with open(file, "w") as out:
        for one in keep:
            out.write(json.dumps(one, separators=(",", ":")) + "\n")
    shutil.rmtree(root)
    print(f"{len(keep)} messages")


def messages(trace):
    """What each program has sent over sockets, in order: its name, and the message."""
    streams, names = {}, {}
    with open(trace) as lines:
        for line in lines:
            call = CALL.match(line)
            if not call or "UNIX" not in call[5]:
                continue
            key = (call[1], call[4], call[5])
            streams.setdefault(key, b"")
            streams[key] += b"".join(bytes.fromhex(part.replace("\\x", "")) for part in BYTES.findall(call[6]))
            names[key] = bytes.fromhex(call[2].replace("\\x", "")).decode() if call[2].startswith("\\x") else call[2]
            while len(streams[key]) >= 5:
                length = int.from_bytes(streams[key][:4], "big")
                if length > 8 << 20 or streams[key][4] > 1:
                    del streams[key]
                    break
                if len(streams[key]) < 4 + length:
                    break
                frame, streams[key] = streams[key][4 : 4 + length], streams[key][4 + length :]
                if frame[0] == 0:
                    yield names[key], json.loads(frame[1:])


def shape(value):
    """The form of a message: its fields, and of which kind they are."""
    if isinstance(value, dict):
        return tuple((name, shape(part)) for name, part in sorted(value.items()))
    if isinstance(value, list):
        return ("list", tuple(sorted({shape(part) for part in value}, key=repr)))
    return type(value).__name__


def tame(value, root, name=""):
    """Without what is of this machine."""
    if isinstance(value, dict):
        if name == "environment":
            return {key: tame(part, root) for key, part in value.items() if key in ("HOME", "LANG", "PATH")}
        return {key: tame(part, root, key) for key, part in value.items()}
    if isinstance(value, list):
        return [tame(part, root, name) for part in value]
    if isinstance(value, str):
        return value.replace(root, "/home/ada")
    return value


if __name__ == "__main__":
    main()
