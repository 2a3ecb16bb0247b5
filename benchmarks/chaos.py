"""`python -m benchmarks.chaos --faults N --seed S`: hits processes of runs; what becomes of them.

Each fault is a short run of its own, in which one process gets a signal at a random moment: an
engine, a rank (SIGKILL, SIGSTOP), a scorer or environment process, or the command itself (SIGKILL;
then the same command line goes on with resume=auto). What is printed: how many runs ended with the
weights of an undisturbed one, how many with a message that names what died, how many otherwise, and
how long a process that was hit was still there: until the run ended it, where it was stopped.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from tools.weight_digests import command_line, digest_of, environment, exported, prepare

KINDS = ("rl_grpo", "rl_ppo", "rl_episodes", "sft", "dpo_pairs", "dpo_rounds")
FAULTS = ("faults.answer_s=8", "faults.progress_s=120", "faults.start_s=200")
TARGETS = {
    "engine": ("ray::EngineActor", (signal.SIGKILL, signal.SIGSTOP)),
    "rank": ("ray::RankActor", (signal.SIGKILL, signal.SIGSTOP)),
    "scorer": ("workers.scoring", (signal.SIGKILL,)),
    "environment": ("workers.environments", (signal.SIGKILL,)),
    "driver": ("rlstack.cli", (signal.SIGKILL,)),
}
"""What a process has in its command line, and the signals that it may get.

A reward that does not answer costs its sample, so a stopped scorer changes the weights by design.
"""
LIMIT_S = 400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one fault."""

    kind: str
    target: str
    signal: str
    result: str
    found_s: float


def main() -> None:
    """Measure undisturbed runs, then inject the faults one by one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        undisturbed: dict[str, tuple[str, float]] = {}
        for kind in arguments.kinds:
            began = time.monotonic()
            undisturbed[kind] = digest_of(kind, folder), time.monotonic() - began
        outcomes: list[Outcome] = []
        for number in range(arguments.faults):
            chance = random.Random(f"{arguments.seed}-{number}")
            outcomes.append(inject(chance, folder, number, undisturbed))
            print(number, outcomes[-1], flush=True)
    results = Counter(outcome.result for outcome in outcomes)
    print(f"{len(outcomes)} faults: {dict(results)}")
    print(f"seconds until found: median {median(o.found_s for o in outcomes):.1f}, ", end="")
    print(f"most {max(o.found_s for o in outcomes):.1f}")
    sys.exit(1 if set(results) - {"identical", "named"} else 0)


def inject(
    chance: random.Random, folder: Path, number: int, undisturbed: dict[str, tuple[str, float]]
) -> Outcome:
    """Hit one process of one run, and wait for its end."""
    kind = chance.choice(list(undisturbed))
    digest, duration_s = undisturbed[kind]
    run_dir = f"fault_{number}"
    line = command_line(kind, *FAULTS, "resume=auto", run_dir=run_dir)
    log = folder / f"{run_dir}.log"
    run = start(line, folder, log)
    time.sleep(chance.uniform(0.1, 0.9) * duration_s)
    chosen = choose(chance, run)
    if chosen is None:  # it was faster than the undisturbed one
        run.wait(LIMIT_S)
        shutil.rmtree(folder / run_dir)
        return inject(chance, folder, number, undisturbed)
    target, process, hit = chosen
    began = time.monotonic()
    with suppress(psutil.NoSuchProcess):
        process.send_signal(hit)
    psutil.wait_procs([process], timeout=LIMIT_S)
    found_s = time.monotonic() - began
    code = run.wait(LIMIT_S)
    if target == "driver":
        code = start(line, folder, log).wait(LIMIT_S)
    output = log.read_text()
    if code == 0:
        result = "identical" if exported(folder / run_dir) == digest else "differs"
    else:
        result = "named" if "rlstack: error: " in output else f"exit code {code}"
    if result not in ("identical", "named"):
        print(output, file=sys.stderr)
    return Outcome(kind=kind, target=target, signal=hit.name, result=result, found_s=found_s)


def start(line: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a command whose output goes on in `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            line, cwd=folder, env=environment(), stdout=file, stderr=subprocess.STDOUT
        )


def choose(
    chance: random.Random, run: subprocess.Popen[bytes]
) -> tuple[str, psutil.Process, signal.Signals] | None:
    """A process of the run that is there now, each kind with the same chance."""
    found: dict[str, list[psutil.Process]] = {}
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(run.pid)
        for process in [own, *own.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                words = " ".join(process.cmdline())
                for target, (part, _) in TARGETS.items():
                    if part in words and (target != "driver" or process.pid == run.pid):
                        found.setdefault(target, []).append(process)
    if "driver" not in found:
        return None
    target = chance.choice(sorted(found))
    return target, chance.choice(found[target]), chance.choice(TARGETS[target][1])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
