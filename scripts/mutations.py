#!/usr/bin/env python3
"""Breaks each layer of evidence for who belongs to a run, one at a time, and shows which test notices.

Usage: mutations.py, in a clean checkout. Prints the table of docs/evidence.md; fails when a break goes unnoticed. Takes about a
quarter of a minute for each. Each file is put back whatever happens.
"""

import os
import re
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
MODULES = os.path.join(ROOT, "crates/locald-utils/src/process")

# What is broken, what stands there, what is put in its place; and in which module, if it is not membership.
MUTATIONS = [
    ("descent: children of members", "self.children.get(&member.id.pid).cloned().unwrap_or_default()", "Vec::new()"),
    ("descent: children of the keeper", "|| evidence.keeper == Some(process.parent)", ""),
    ("lineage: who was started by a member", ".and_then(|lineage| self.heirs.get(&lineage.own)).cloned()", ".and_then(|_| None::<Vec<&'t Process>>)"),
    ("session", "if self.began_within(member.session) {", "if false && self.began_within(member.session) {"),
    ("process group", "if self.began_within(member.group) {", "if false && self.began_within(member.group) {"),
    ("terminal", "|| (evidence.terminal == Some(process.terminal) && process.terminal != 0)", ""),
    ("control group", "|| evidence.cgroup.contains(&process.id.pid)", ""),
    ("memory: who was a member", "|| evidence.memory.known.contains(&process.id)", ""),
    ("memory: who was started by one", "evidence.memory.lineages.contains(&lineage.parent)", "evidence.memory.lineages.contains(&lineage.parent) && false"),
    ("mark in a limit", "if self.clues.inherits_mark(process)", "if (false && self.clues.inherits_mark(process))"),
    ("mark in the environment", "self.clues.carries_mark(process) == Some(true)", "false"),
    ("strangers: older than the run", "process.id.start < evidence.leader.start", "process.id.start < evidence.leader.start && false"),
    ("strangers: a session or group that began before", "leader.is_none_or(|leader| !is_older(leader, evidence))", "(leader.is_none() || true)"),
    ("strangers: the environment of whoever has a parent", "(self.is_orphan(process) && self", "(self"),
    ("strangers: the number of a parent that is another's now", ".is_none_or(|parent| parent.id == *reaper)", ".is_none_or(|_| true)"),
    ("strangers: daemon and shims of the home", "!self.clues.is_supervisor(process)", "true || !self.clues.is_supervisor(process)"),
    ("strangers: terminal 0 is none", " && process.terminal != 0", ""),
    ("members: daemon and shims of another home", ".is_some_and(|marked| marked.as_bytes() == home.as_bytes())", ".is_some()", "mark"),
    ("members: what poses as a daemon and leads no session", "&& process.session == process.id.pid", "", "mark"),
]


def noticed():
    """The tests that fail; whether it could be compiled."""
    # Compiled for speed it takes four times as long.
    command = ["cargo", "--config", "profile.dev.package.locald-utils.opt-level=0"]
    command += ["test", "-p", "locald-utils", "--lib", "--no-fail-fast", "--", "process::membership", "process::mark"]
    # What fails here is no regression, and is not kept for the next run.
    environment = os.environ | {"PROPTEST_DISABLE_FAILURE_PERSISTENCE": "true"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "test result" not in ran.stdout:
        sys.exit(f"it cannot be compiled:\n{ran.stderr}")
    return sorted(name.rsplit("::", 1)[-1] for name in re.findall(r"^test (\S+) \.\.\. FAILED", ran.stdout, re.MULTILINE))


def main():
    missed = 0
    print("| broken | noticed by |\n|---|---|")
    for what, there, instead, *module in MUTATIONS:
        path = os.path.join(MODULES, f"{module[0] if module else 'membership'}.rs")
        with open(path) as file:
            whole = file.read()
        assert whole.count(there) == 1, f"{what}: {there} is there {whole.count(there)} times"
        try:
            with open(path, "w") as file:
                file.write(whole.replace(there, instead))
            tests = noticed()
        finally:
            with open(path, "w") as file:
                file.write(whole)
        missed += not tests
        print(f"| {what} | {', '.join(f'`{test}`' for test in tests) or '**nobody**'} |", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
