#!/usr/bin/env python3
"""Measures the figures that locald promises, on Linux, and prints them as a table.

    cargo build --release && python3 docs/benchmarks/figures.py [--quick] [--bin target/release]

Needs Python 3.9 and a C compiler. Medians, unless a line says otherwise. Nothing else should be running.
"""
import argparse
import contextlib
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def toml(value):
    """A value of a project file: its tables are short."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


class Bench:
    def __init__(self, binaries, root):
        self.binaries, self.root = os.path.abspath(binaries), root
        self.helper = os.path.join(root, "helper")
        subprocess.run(["cc", "-O2", "-o", self.helper, os.path.join(HERE, "helper.c"), "-lutil"], check=True)
        self.home = os.path.join(root, "h")
        self.env = {**os.environ, "LOCALD_HOME": self.home, "NO_COLOR": "1"}
        self.count = 0

    def project(self, services):
        """Writes a project file: {name: {key: value}}."""
        self.count += 1
        directory = os.path.join(self.root, f"p{self.count}")
        os.mkdir(directory)
        with open(os.path.join(directory, "locald.toml"), "w") as file:
            for name, keys in services.items():
                file.write(f"[services.{name}]\n")
                file.writelines(f"{key} = {toml(value)}\n" for key, value in keys.items())
        return directory

    def locald(self, directory, *args):
        """Runs locald; returns how long the whole process took, in seconds."""
        program = os.path.join(self.binaries, "locald")
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        began = time.perf_counter()
        pid = os.posix_spawn(program, ["locald", "-C", directory, *args], self.env, file_actions=null)
        _, status = os.waitpid(pid, 0)
        took = time.perf_counter() - began
        if status:
            raise SystemExit(f"locald {' '.join(args)} ended with status {status}")
        return took

    def json(self, directory, *args):
        command = [os.path.join(self.binaries, "locald"), "-C", directory, *args, "--json"]
        return json.loads(subprocess.run(command, env=self.env, check=True, capture_output=True).stdout)

    def sleepers(self, count):
        return self.project({f"s{i}": {"command": [self.helper, "sleep"]} for i in range(count)})

    def daemon(self):
        return self.json("/", "daemon", "status")["daemon"]["pid"]

    def shims(self):
        daemon = self.daemon()
        with open(f"/proc/{daemon}/task/{daemon}/children") as file:
            return [int(pid) for pid in file.read().split()]


def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


def switches(pid):
    """Voluntary context switches of all threads: each is a sleep that something ended."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return total


def stolen():
    """Seconds of processor time that a virtual machine wanted and its host gave to others, since boot (proc_stat(5))."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


def percentile_99(in_order):
    return in_order[max(0, int(len(in_order) * 0.99) - 1)]


def row(what, measured, target):
    print(f"| {what} | {measured} | {target} |", flush=True)


def ms(seconds):
    return f"{seconds * 1000:.1f} ms"


def status(bench, rounds):
    for count, target in ((1, "< 4 ms"), (100, "< 8 ms")):
        directory = bench.sleepers(count)
        bench.locald(directory, "up")
        row(f"`status`, {count} service(s)", ms(statistics.median(bench.locald(directory, "status") for _ in range(rounds))), target)
        if count == 1:
            memory(bench, 1)
        else:
            memory(bench, 100)
        bench.locald(directory, "down")


def memory(bench, count):
    shims = [pss(pid) for pid in bench.shims()]
    targets = {1: ("< 0.7 MB", "< 8 MB"), 100: ("< 0.2 MB", "< 12 MB")}[count]
    row(f"shim PSS, one of {count}", f"{statistics.median(shims):.2f} MB", targets[0])
    row(f"daemon PSS, {count} service(s)", f"{pss(bench.daemon()):.1f} MB", targets[1])
    if count == 1:
        shim = bench.shims()[0]
        row("shim threads, descriptors", f"{len(os.listdir(f'/proc/{shim}/task'))}, {len(os.listdir(f'/proc/{shim}/fd'))}", "1, < 12")


def first_instruction(bench, rounds):
    mark = os.path.join(bench.root, "mark")
    directory = bench.project({"s": {"command": [bench.helper, "mark", mark]}})
    for has_daemon, target in ((True, "< 10 ms"), (False, "< 30 ms")):
        times = []
        for _ in range(rounds):
            if has_daemon:
                bench.locald("/", "daemon", "start")
            else:
                bench.locald("/", "daemon", "stop")
            began = time.time_ns()
            bench.locald(directory, "up")
            with open(mark) as file:
                times.append((int(file.read()) - began) / 1e9)
            bench.locald(directory, "down")
        row(f"`up` to the first instruction, {'with' if has_daemon else 'without'} a daemon", ms(statistics.median(times)), target)


def many(bench, rounds):
    for count, target in ((100, "< 350 ms"), (300, "< 900 ms")):
        directory = bench.sleepers(count)
        bench.locald("/", "daemon", "start")
        ups, downs = [], []
        for _ in range(rounds):
            ups.append(bench.locald(directory, "up"))
            downs.append(bench.locald(directory, "down"))
        row(f"`up` of {count}", ms(statistics.median(ups)), target)
        row(f"`down` of {count}", ms(statistics.median(downs)), "< 150 ms" if count == 100 else "")


def slow_stop(bench, rounds):
    directory = bench.project({"s": {"command": [bench.helper, "slow", "50"]}})
    times = []
    for _ in range(rounds):
        bench.locald(directory, "up")
        times.append(bench.locald(directory, "stop"))
    bench.locald(directory, "down")
    row("`stop` of a service that needs 50 ms", ms(statistics.median(times)), "< 60 ms")


def exit_noticed(bench, rounds):
    directory = bench.project({"s": {"command": [bench.helper, "sleep"]}})
    times, undisturbed, began_at, stolen_before = [], [], time.perf_counter(), stolen()
    for _ in range(rounds):
        service = {"pid": None}
        # An exit is in the ledger a moment before the daemon acts on it, and an `up` in that moment changes nothing.
        while not service["pid"]:
            bench.locald(directory, "up")
            service = bench.json(directory, "status")["services"][0]
        ledger = sqlite3.connect(f"file:{bench.home}/ledger.db?mode=ro", uri=True, isolation_level=None)
        # Looked up once: a search through thousands of runs would take longer than an exit.
        question = "SELECT rowid FROM runs WHERE pid = ? AND number = ?"
        row_of_run = ledger.execute(question, (service["pid"], service["run"])).fetchone()
        stolen_already, began = stolen(), time.perf_counter()
        os.kill(service["pid"], signal.SIGKILL)
        while not ledger.execute("SELECT ended_at FROM runs WHERE rowid = ?", row_of_run).fetchone()[0]:
            # Who looks without a pause keeps a processor from what it waits for, and measures itself.
            time.sleep(0.0002)
        times.append(time.perf_counter() - began)
        if stolen() == stolen_already:
            undisturbed.append(times[-1])
        ledger.close()
    bench.locald(directory, "down")
    times.sort()
    undisturbed.sort()
    took = time.perf_counter() - began_at
    row("the machine: processor time taken away in the exits below", f"{(stolen() - stolen_before) / took * 100:.1f} %", "")
    row("exit noticed and in the ledger, median", ms(statistics.median(times)), "")
    row("exit noticed and in the ledger, p99", ms(percentile_99(times)), "< 5 ms")
    # On a virtual machine, the worst hundredth is the host's: the same without the exits during which it took time away.
    row(f"the same of the {len(undisturbed)} exits left alone by the host, p99", ms(percentile_99(undisturbed)), "< 5 ms")


def wakeups(bench, seconds):
    directory = bench.sleepers(20)
    bench.locald(directory, "up")
    pids = [bench.daemon(), *bench.shims()]
    # The ledger tidies up after what was measured before this.
    time.sleep(10)
    before = [switches(pid) for pid in pids]
    time.sleep(seconds)
    after = [switches(pid) for pid in pids]
    bench.locald(directory, "down")
    row(f"wakeups in {seconds} s, daemon", after[0] - before[0], "0")
    row(f"wakeups in {seconds} s, 20 shims", sum(after[1:]) - sum(before[1:]), "0")


def stamp(path, after):
    """Waits for a time in a file that is later than another, and returns it."""
    until = time.time() + 10
    while time.time() < until:
        with contextlib.suppress(FileNotFoundError, ValueError), open(path) as file:
            found = int(file.read())
            if found > after:
                return found
        time.sleep(0.0005)
    raise SystemExit(f"nothing new in {path}")


def orchestration(bench, rounds):
    """How soon the next thing follows: a run a crash, a dependent its dependency."""
    mark, bare_mark = (os.path.join(bench.root, name) for name in ("again", "bare"))
    directory = bench.project({"s": {"command": [bench.helper, "mark", mark], "restart": "always"}})
    bare = subprocess.Popen([bench.helper, "again", bench.helper, "mark", bare_mark], stdout=subprocess.PIPE, text=True)

    def until_again(leader, file):
        killed = time.time_ns()
        os.kill(leader, signal.SIGKILL)
        return (stamp(file, killed) - killed) / 1e9

    times, bare_times = [], []
    for _ in range(rounds):
        began = time.time_ns()
        bench.locald(directory, "up")
        stamp(mark, began)
        # One that has been ready for a second is replaced at once.
        time.sleep(1.2)
        times.append(until_again(bench.json(directory, "status")["services"][0]["pid"], mark))
        bench.locald(directory, "down")
        time.sleep(1.2)
        bare_times.append(until_again(int(bare.stdout.readline()), bare_mark))
    bare.kill()
    os.kill(int(bare.stdout.readline()), signal.SIGKILL)
    row("a service killed with -9 after it was ready runs again", ms(statistics.median(times)), "< 5 ms")
    # Most of it is the machine's on some: what a virtual one needs to come back from rest, and to start a program.
    row("the same with a supervisor that can do nothing else", ms(statistics.median(bare_times)), "")

    first, second = (os.path.join(bench.root, name) for name in ("first", "second"))
    speak = f"{bench.helper} now {first}; echo up; exec {bench.helper} sleep"
    for how, check in (
        ("a line", {"type": "log", "pattern": "^up$"}),
        ("a newline on a descriptor", {"type": "notify", "fd": 3}),
    ):
        command = speak if check["type"] == "log" else speak.replace("echo up", "echo >&3")
        directory = bench.project({"a": {"command": command, "health_check": check}, "b": {"command": [bench.helper, "mark", second], "depends_on": ["a"]}})
        times = []
        for _ in range(rounds):
            began = time.time_ns()
            bench.locald(directory, "up")
            times.append((stamp(second, began) - stamp(first, began)) / 1e9)
            bench.locald(directory, "down")
        row(f"a dependent starts after its dependency was ready by {how}", ms(statistics.median(times)), "< 10 ms")

    for edges in (0, 600):
        services = {}
        for index in range(300):
            # Two each, spread over those before.
            on = sorted({(index * 7 + 3) % index, index // 2} if index > 1 else set(range(index)))
            services[f"s{index}"] = {"command": [bench.helper, "sleep"]}
            if edges and on:
                services[f"s{index}"]["depends_on"] = [f"s{other}" for other in on]
        directory = bench.project(services)
        bench.locald(directory, "up", "--timeout", "5m")
        times = [bench.locald(directory, "up") for _ in range(rounds)]
        bench.locald(directory, "down")
        row(f"`up` of 300 that run already, {'600 edges' if edges else 'no edges'}", ms(statistics.median(times)), "")


    # With the daemon's own watch on the plan alone.
    bench.locald("/", "daemon", "stop")
    bench.env["LOCALD_LOG"] = "debug"
    bench.locald(directory, "up", "--timeout", "5m")
    for _ in range(rounds):
        bench.locald(directory, "up")
    bench.locald(directory, "down")
    bench.locald("/", "daemon", "stop")
    del bench.env["LOCALD_LOG"]
    bench.locald("/", "daemon", "start")
    with open(os.path.join(bench.home, "daemon.log")) as file:
        diary = [json.loads(line) for line in file]
    planned = [int(entry["micros"]) / 1e6 for entry in diary if entry["message"] == "planned" and entry["services"] == 300]
    row(f"the plan of 300 services with 600 edges, the longest of {len(planned)}", ms(max(planned)), "< 5 ms")


def changes(bench, rounds):
    """How soon a saved file runs its service again, and what it costs to wait for that."""
    mark, debounce = os.path.join(bench.root, "seen"), 0.1
    directory = bench.project({"s": {"command": [bench.helper, "mark", mark], "watch": ["src/**/*.py"]}})
    os.mkdir(os.path.join(directory, "src"))
    began = time.time_ns()
    bench.locald(directory, "up")
    stamp(mark, began)
    times = []
    for _ in range(rounds):
        # A change that comes sooner after a start may be the service's own.
        time.sleep(2.1)
        with open(os.path.join(directory, "src", "app.py"), "a") as file:
            saved = time.time_ns()
            file.write("#\n")
        times.append((stamp(mark, saved) - saved) / 1e9 - debounce)
    bench.locald(directory, "down")
    row("a saved file runs its service again, from the end of the debounce", ms(statistics.median(times)), "< 50 ms")


def watchers(bench, seconds):
    """What 100 projects that are watched cost while nothing changes."""
    directories = []
    for _ in range(100):
        directory = bench.project({"s": {"command": [bench.helper, "sleep"], "watch": ["src/**/*.py"]}})
        for place in ("src/a", "src/b/c"):
            os.makedirs(os.path.join(directory, place))
            for name in ("x.py", "y.py", "z.py"):
                open(os.path.join(directory, place, name), "w").close()
        bench.locald(directory, "up")
        directories.append(directory)
    pids = [bench.daemon(), *bench.shims()]
    time.sleep(3)
    before = sum(switches(pid) for pid in pids)
    time.sleep(seconds)
    row(f"wakeups in {seconds} s with 100 watched projects, daemon and shims", sum(switches(pid) for pid in pids) - before, "0")
    row("daemon PSS with 100 watched projects", f"{pss(bench.daemon()):.1f} MB", "")
    for directory in directories:
        bench.locald(directory, "down")


def written(bench, service, size, rounds):
    """How long a service takes to write so much and end, in seconds: one for each round."""
    directory = bench.project({"s": {"type": "job", "command": [bench.helper, "spam", str(size)], **service}})
    for _ in range(rounds):
        bench.locald(directory, "up", "--timeout", "5m")
        last = bench.json(directory, "status")["services"][0]["last"]
        yield (last["ended_at"] - last["started_at"]) / 1000
        bench.locald(directory, "down")
        forget_output(bench)


def forget_output(bench):
    subprocess.run(["sh", "-c", f"rm -f {bench.home}/projects/*/services/s/log* {bench.home}/projects/*/services/s/index*"], check=True)


def throughput(bench, rounds):
    size = 200_000_000
    ratios, rates = [], []
    for took in written(bench, {}, size, rounds):
        out = os.path.join(bench.root, "bare")
        bare = float(subprocess.run([bench.helper, "bare", str(size), out], check=True, capture_output=True, text=True).stdout)
        os.remove(out)
        ratios.append(bare / took)
        rates.append(size / took / 1e6)
    row("terminal to disk, against a bare loop", f"{statistics.median(ratios):.2f} ({statistics.median(rates):.0f} MB/s)", ">= 0.8")

    rates = [size / took / 1e6 for took in written(bench, {"tty": False}, size, rounds)]
    row("pipe to disk (`tty = false`)", f"{statistics.median(rates):.0f} MB/s", ">= 200 MB/s")
    command = f"{bench.helper} spam {size}; echo; echo up; exec {bench.helper} sleep"
    directory = bench.project({"s": {"tty": False, "command": command, "health_check": {"type": "log", "pattern": "^up$"}}})
    rates = []
    for _ in range(rounds):
        bench.locald(directory, "up", "--timeout", "5m")
        service = bench.json(directory, "status")["services"][0]
        rates.append(size / ((service["ready_at"] - service["started_at"]) / 1000) / 1e6)
        bench.locald(directory, "down")
        forget_output(bench)
    row("pipe to disk while a line is waited for", f"{statistics.median(rates):.0f} MB/s", "")


def successions(bench, rounds):
    """A daemon is replaced by one of a newer version, and by the next one after it was killed."""
    older = os.path.join(bench.root, "older")
    os.mkdir(older)
    for name in ("locald", "locald-server", "locald-shim"):
        with open(os.path.join(bench.binaries, name), "rb") as file:
            program = file.read().replace(b"0.1.", b"0.0.")
        with open(os.path.join(older, name), "wb") as file:
            file.write(program)
        os.chmod(file.name, 0o755)
    newer = bench.binaries
    for count, target in ((1, ""), (100, "< 200 ms"), (500, "< 2,000 ms")):
        directory = bench.sleepers(count)
        upgrades, adoptions = [], []
        for _ in range(rounds if count < 500 else max(2, rounds // 4)):
            bench.binaries = older
            bench.locald("/", "daemon", "stop")
            bench.locald(directory, "up")
            bench.binaries = newer
            upgrades.append(bench.locald("/", "daemon", "start"))
            # Nothing is to be done, but to find out what runs.
            as_it_is = bench.locald(directory, "up")
            os.kill(bench.daemon(), signal.SIGKILL)
            adoptions.append(bench.locald(directory, "up") - as_it_is)
        bench.locald(directory, "down")
        row(f"a newer version takes over, {count} service(s)", ms(statistics.median(upgrades)), "< 300 ms")
        row(f"a new daemon after a kill takes over {count}", ms(statistics.median(adoptions)), target)


def machine(bench, rounds):
    """What the machine can do at all: the same figure on two machines means nothing without it."""

    def run_true(rest):
        time.sleep(rest)
        began = time.perf_counter()
        pid = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(pid, 0)
        return time.perf_counter() - began

    row("the machine: start and end of `/bin/true`", ms(statistics.median(run_true(0) for _ in range(rounds))), "")
    # A virtual machine may need some milliseconds to come back from rest, which is where a restart begins.
    rested = statistics.median(run_true(1.2) for _ in range(min(rounds, 8)))
    row("the same after a rest of 1.2 s", ms(rested), "")
    with open(os.path.join(bench.binaries, "locald-shim"), "rb") as file:
        # The interpreter that an ELF file names is the dynamic linker (elf(5), PT_INTERP).
        is_dynamic = b"/ld-linux" in file.read(4096)
    row("the shim is linked", "dynamically" if is_dynamic else "statically", "")
    # As many as an exit wakes one after the other: the service, its shim, the daemon, and the daemon's ledger.
    relay = subprocess.run([bench.helper, "relay", "4"], check=True, capture_output=True, text=True).stdout.split()
    row("the machine: a byte through 4 processes, median and p99", ", ".join(f"{float(each):.1f} ms" for each in relay), "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and 10 s of idleness instead of 60")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lb", dir="/tmp") as root:
        bench = Bench(args.bin, root)
        bench.locald("/", "daemon", "start")
        print("| what | measured | to reach |\n|---|---|---|")
        try:
            machine(bench, 300)
            status(bench, 50 if args.quick else 200)
            first_instruction(bench, 15 if args.quick else 50)
            many(bench, 3 if args.quick else 9)
            slow_stop(bench, 5 if args.quick else 20)
            exit_noticed(bench, 40 if args.quick else 300)
            orchestration(bench, 5 if args.quick else 20)
            changes(bench, 3 if args.quick else 10)
            throughput(bench, 3 if args.quick else 7)
            successions(bench, 3 if args.quick else 9)
            wakeups(bench, 10 if args.quick else 60)
            watchers(bench, 10 if args.quick else 60)
        finally:
            bench.locald("/", "daemon", "stop", "--all")


if __name__ == "__main__":
    main()
