"""Metrics arrive in every sink, and a resumed run's file has no doubles."""

import importlib
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlstack.config.tracking import TrackingConfig
from rlstack.errors import ConfigError
from rlstack.run import jsonl, observers
from rlstack.run.tracking import Tracker
from tests.full_disk import files_end_at


def config(**changes: object) -> TrackingConfig:
    values = {
        "console": True,
        "tensorboard": False,
        "wandb_project": None,
        "mlflow_experiment": None,
        "save_rollouts": False,
        "max_rollouts_gib": 1.0,
    }
    return TrackingConfig.model_validate(values | changes)


def test_metrics_reach_jsonl_tensorboard_and_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker.open(
        config(tensorboard=True), run_dir=tmp_path, total_steps=3, title="rl"
    ) as tracker:
        tracker.phase("starting engines")
        for step in range(3):
            tracker.log(step + 1, {"reward/mean": step / 10, "other": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["reward/mean"]) for line in lines] == [(1, 0), (2, 0.1), (3, 0.2)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("reward/mean")] == [1, 2, 3]
    printed = capsys.readouterr().out
    assert "rl: starting engines" in printed
    assert "step 3/3 | reward 0.2" in printed
    assert "s left" in printed


def test_a_resumed_run_forgets_what_it_will_log_again(tmp_path: Path) -> None:
    with Tracker.open(config(), run_dir=tmp_path, total_steps=9, title="rl") as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"x": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "x"')  # the line a kill cut short
    with Tracker.open(config(), run_dir=tmp_path, total_steps=9, title="rl") as tracker:
        tracker.truncate_after(2)
        tracker.log(3, {"x": 30.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["x"]) for line in lines] == [(1, 1), (2, 2), (3, 30.0)]


def test_a_missing_sink_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.wandb_project: .* pip install wandb"):
        Tracker.open(config(wandb_project="p"), run_dir=tmp_path, total_steps=1, title="rl")


def test_the_console_can_be_switched_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker.open(
        config(console=False), run_dir=tmp_path, total_steps=1, title="rl"
    ) as tracker:
        tracker.log(1, {"reward/mean": 1.0})
    assert capsys.readouterr().out == ""


def test_tensorboard_forgets_too(tmp_path: Path) -> None:
    for first, last, value in ((1, 3, 1.0), (3, 4, 2.0)):
        settings = config(tensorboard=True)
        with Tracker.open(settings, run_dir=tmp_path, total_steps=4, title="rl") as tracker:
            tracker.truncate_after(first - 1)
            for step in range(first, last + 1):
                tracker.log(step, {"x": value})
        time.sleep(1.1)  # event files are named, and so ordered, by the second they were made in
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("x")
    assert [(event.step, event.value) for event in events] == [(1, 1), (2, 1), (3, 2), (4, 2)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with Tracker.open(config(), run_dir=tmp_path, total_steps=2, title="rl") as tracker:
        tracker.log(1, {"x": 1.0})
        tracker.log(2, {"x": 1.0})
    printed = capsys.readouterr().out
    assert printed.count("warning: metrics.jsonl: [Errno 28] No space left on device") == 1
    assert "step 2/2" in printed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_full_disk_did_not_take_is_written_when_there_is_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tensorboard=True)
    with Tracker.open(settings, run_dir=tmp_path, total_steps=99, title="rl") as tracker:
        with files_end_at(1000):
            for step in range(1, 99):
                tracker.log(step, {"x": step})
        assert len(jsonl.read(tmp_path / "metrics.jsonl")) < 98
        tracker.log(99, {"x": 99.0})
    rows = jsonl.read(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["x"]) for row in rows] == [(step, step) for step in range(1, 100)]
    printed = capsys.readouterr().out
    assert printed.count("warning: ") == 2
    assert printed.count("warning: metrics.jsonl: ") == printed.count("warning: TensorBoard: ") == 1


MLFLOW = """
import threading
from types import SimpleNamespace

answers = threading.Event()
broken = False
logged, threads = [], set()

def _answer():
    threads.add(threading.get_ident())
    answers.wait(30)
    if broken:
        raise ConnectionError("the server is gone")

def set_experiment(name):
    _answer()

def start_run(run_name=None, run_id=None):
    return SimpleNamespace(info=SimpleNamespace(run_id="7"))

def log_metrics(values, step):
    _answer()
    logged.append((step, values))

def end_run():
    threads.add(threading.get_ident())
"""
"""The calls that are made of MLflow, and a server that can be slow or gone."""


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/mlflow.py").write_text(MLFLOW)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield importlib.import_module("mlflow")
    del sys.modules["mlflow"]


def with_mlflow(run_dir: Path) -> Tracker:
    settings = config(mlflow_experiment="e")
    return Tracker.open(settings, run_dir=run_dir, total_steps=9, title="rl")


def test_a_server_is_told_everything_from_one_thread(tmp_path: Path, mlflow: Any) -> None:
    mlflow.answers.set()
    with with_mlflow(tmp_path) as tracker:
        tracker.log(1, {"eval/pass@1": 1.0})
        tracker.log(2, {"x": 2.0})
    assert mlflow.logged == [(1, {"eval/pass_at_1": 1.0}), (2, {"x": 2.0})]
    assert len(mlflow.threads) == 1  # MLflow's present run is one of a thread
    assert threading.get_ident() not in mlflow.threads
    assert (tmp_path / "mlflow_run_id").read_text() == "7"


def test_a_server_that_is_gone_is_said_once_and_may_come_back(
    tmp_path: Path, mlflow: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.answers.set()
    mlflow.broken = True
    with with_mlflow(tmp_path) as tracker:
        tracker.log(1, {"x": 1.0})
        tracker.log(2, {"x": 2.0})
        tracker.sinks[1].close()  # all that waits was tried
        mlflow.broken = False
        tracker.sinks[1] = tracker.sinks[0]
    assert capsys.readouterr().out.count("warning: MLflow: the server is gone") == 1
    with with_mlflow(tmp_path) as tracker:
        tracker.log(3, {"x": 3.0})
    assert mlflow.logged == [(3, {"x": 3.0})]


def test_nobody_waits_for_a_server_that_does_not_answer(
    tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(observers, "CLOSE_WITHIN_S", 0.3)
    monkeypatch.setattr(observers, "MAX_WAITING", 4)
    start = time.perf_counter()
    with with_mlflow(tmp_path) as tracker:
        for step in range(9):
            tracker.log(step, {"x": 1.0})
    assert time.perf_counter() - start < 10
    assert capsys.readouterr().out.count("warning: MLflow: does not keep up") == 1
    assert len(jsonl.read(tmp_path / "metrics.jsonl")) == 9
    mlflow.answers.set()


LIVE_RUN = """
import sys
from pathlib import Path
from rlstack.config.tracking import TrackingConfig
from rlstack.run.tracking import Tracker

config = TrackingConfig(console=True, tensorboard=False, wandb_project=None,
                        mlflow_experiment=None, save_rollouts=False, max_rollouts_gib=1.0)
with Tracker.open(config, run_dir=Path(sys.argv[1]), total_steps=3, title="rl") as tracker:
    for step in range(4):
        tracker.span("rollout")
        print(f"(rank 0) line {step}", file=sys.stderr)
        tracker.log(step, {"reward/mean": step / 10})
"""


def test_on_a_terminal_every_line_survives_the_live_display(tmp_path: Path) -> None:
    terminal, run_side = pty.openpty()
    with (
        subprocess.Popen(
            [sys.executable, "-c", LIVE_RUN, str(tmp_path)],
            stdin=run_side,
            stdout=run_side,
            stderr=run_side,
            cwd=Path(__file__).parents[2],
            env={"TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": "."},
        ) as process,
        open(terminal, "rb", buffering=0) as screen,
    ):
        os.close(run_side)
        written = b""
        with suppress(OSError):  # Linux reports the end of a terminal as an input/output error
            while block := screen.read(65536):
                written += block
    assert process.returncode == 0
    hide, show, erase = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"
    text = written.decode()
    lines = [line.rpartition(erase)[2].rstrip("\r") for line in text.split("\n")]
    for step in range(4):
        assert f"(rank 0) line {step}" in lines
        assert any(f"step {step}/3 | reward {step / 10:.4g}" in line for line in lines)
    assert "rollout" in text
    assert text.count(hide) == text.count(show) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_stops_nothing(tmp_path: Path) -> None:
    with suppress(OSError), Path("/dev/full").open("w") as full:
        subprocess.run(
            [sys.executable, "-c", LIVE_RUN, str(tmp_path)],
            stdout=full,
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": "."},
            check=False,
        )
    assert [row["step"] for row in jsonl.read(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
