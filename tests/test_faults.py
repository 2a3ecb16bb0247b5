"""A run that loses processes heals by itself and ends with the bits of one that was left alone."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.test_cli_runs import (
    LONGER,
    descendants,
    finish,
    logged_steps,
    start,
    wait_for_step,
    wait_until,
)
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(900)]

FAULTS = ["faults.answer_s=8", "faults.progress_s=120", "faults.start_s=200"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    run = start("rl", *LONGER, f"model.path={model}", "run_dir=run", cwd=folder)
    output = finish(run)
    assert run.returncode == 0, output
    return weights(folder / "run")


def weights(run_dir: Path) -> bytes:
    return (run_dir / "export" / "model.safetensors").read_bytes()


def processes(run: subprocess.Popen[str], actor: str) -> list[psutil.Process]:
    """In the order in which they were started."""
    found: list[psutil.Process] = []
    for process in descendants(run):
        with suppress(psutil.NoSuchProcess):  # it died meanwhile
            if f"ray::{actor}" in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def hit(run: subprocess.Popen[str], actor: str, number: signal.Signals) -> psutil.Process:
    process = processes(run, actor)[-1]
    os.kill(process.pid, number)
    return process


def test_engines_killed_and_stopped_and_ranks_killed_and_stopped(
    model: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run = start("rl", *LONGER, *FAULTS, f"model.path={model}", "run_dir=run", cwd=tmp_path)
    hits: list[psutil.Process] = []
    for step, actor, number in (
        (1, "EngineActor", signal.SIGKILL),
        (2, "RankActor", signal.SIGKILL),
        (4, "EngineActor", signal.SIGSTOP),
        (6, "RankActor", signal.SIGSTOP),
    ):
        wait_for_step(run_dir, step, run)
        hits.append(hit(run, actor, number))
        if actor == "RankActor":  # the run goes back to its newest checkpoint
            wait_until(lambda: not hits[-1].is_running(), run)
            wait_until(lambda: len(processes(run, "RankActor")) == 2, run)
    output = finish(run)
    assert run.returncode == 0, output
    assert logged_steps(run_dir) == list(range(8)), output
    assert weights(run_dir) == undisturbed, output
    assert output.count("engine 0 is replaced: ") == 2, output
    assert output.count("the run is taken up from its newest checkpoint") == 2, output
    assert re.search(r"policy, rank [01]: its process died; .*\.err", output), output
    assert re.search(r"policy, rank [01]: it did not answer for 8 s", output), output


def test_after_the_last_restart_the_run_ends_with_the_name_and_the_way_on(
    model: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    arguments = [*LONGER, *FAULTS, "faults.max_restarts=0", f"model.path={model}"]
    run = start("rl", *arguments, "run_dir=run", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 3, run)
    began = time.monotonic()
    hit(run, "RankActor", signal.SIGKILL)
    output = finish(run)
    assert time.monotonic() - began < 60
    assert run.returncode == 2, output
    message = output[output.index("rlstack: error: ") :]
    assert re.match(r"rlstack: error: policy, rank [01]: its process died", message), output
    assert "faults.max_restarts=0 allows no more; continue with rlstack rl resume=" in message
    run = start("rl", f"resume={tmp_path / 'run'}", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    assert weights(tmp_path / "run") == undisturbed, output
