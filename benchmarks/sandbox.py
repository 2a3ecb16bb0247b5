"""`make bench`: programs in the sandbox against a bare interpreter.

For each mode that works on this machine: programs a second and core, latency, and how two sandboxes
side by side scale. The yardstick is `python -c pass`. One line a figure, then the same as JSON.
"""

import json
import subprocess
import sys
import threading
import time
from statistics import quantiles
from typing import get_args

from rewards.sandbox.job import Job, Mode, SandboxSettings
from rewards.sandbox.sandbox import Sandbox
from rlstack.errors import RewardError

PROGRAMS, BARE_RUNS = 200, 40
PROGRAM = Job(files={"main.py": "a, b = map(int, input().split())\nprint(a + b)\n"}, stdin="3 4\n")


def latencies(sandbox: Sandbox) -> list[float]:
    """Seconds of each of `PROGRAMS` runs, one after the other."""
    seconds = []
    for _ in range(PROGRAMS):
        start = time.perf_counter()
        outcome = sandbox.run(PROGRAM)
        seconds.append(time.perf_counter() - start)
        assert outcome.stdout == b"7\n"
    return seconds


def rate_of(sandboxes: list[Sandbox]) -> float:
    """Programs a second over all of `sandboxes`, one thread for each."""
    threads = [threading.Thread(target=latencies, args=(sandbox,)) for sandbox in sandboxes]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return PROGRAMS * len(sandboxes) / (time.perf_counter() - start)


def bare_seconds() -> float:
    """Seconds of one `python -c pass`."""
    start = time.perf_counter()
    for _ in range(BARE_RUNS):
        subprocess.run([sys.executable, "-c", "pass"], check=True)
    return (time.perf_counter() - start) / BARE_RUNS


def main() -> None:
    """Measure every mode, print the figures."""
    bare = bare_seconds()
    figures = [("bare interpreter", 1e3 * bare, "ms")]
    for mode in get_args(Mode):
        settings = SandboxSettings(
            mode=mode, python="" if mode == "bubblewrap" else "/usr/bin/python3"
        )
        try:
            start = time.perf_counter()
            one = Sandbox(settings)
            started = time.perf_counter() - start
            two = Sandbox(settings)
        except RewardError as error:
            print(f"{mode}: not measured: {error}", file=sys.stderr)
            continue
        latencies(one)  # warms up
        seconds = latencies(one)
        cuts = quantiles(seconds, n=100)
        single, double = rate_of([one]), rate_of([one, two])
        one.close()
        two.close()
        figures += [
            (f"{mode}, start of a sandbox", 1e3 * started, "ms"),
            (f"{mode}, programs", single, "programs/s/core"),
            (f"{mode}, latency p50", 1e3 * cuts[49], "ms"),
            (f"{mode}, latency p99", 1e3 * cuts[98], "ms"),
            (f"{mode}, a program over a bare interpreter", sum(seconds) / PROGRAMS / bare, "ratio"),
            (f"{mode}, two sandboxes", double, "programs/s"),
            (f"{mode}, two sandboxes over one", double / single, "ratio"),
        ]
    for name, value, unit in figures:
        print(f"{name}: {value:.4g} {unit}")
    print(json.dumps({name: {"value": value, "unit": unit} for name, value, unit in figures}))


if __name__ == "__main__":
    main()
