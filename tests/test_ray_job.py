"""`ray job submit -- rlstack rl ...` to a running cluster, from the install as it is."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_cli_runs import OVERRIDES, command
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]


RAY = str(Path(sys.executable).parent / "ray")
NOT_READY = ("No available agent to submit job", "Failed to connect to Ray")
"""What is said of a job server whose cluster has just been started."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ray_job(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def job_server() -> Iterator[str]:
    """The address of that of a cluster of its own, as `ray start` makes it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ports = [
            f"--port={free_port()}",
            f"--dashboard-port={port}",
            f"--ray-client-server-port={free_port()}",
        ]
        cluster = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=12", f"--temp-dir={folder}", *ports],
            env=os.environ | {"RAY_AUTH_MODE": "token"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        yield f"http://127.0.0.1:{port}"
        cluster.terminate()
        cluster.wait()


def test_a_job_trains_on_the_cluster_that_it_was_submitted_to(
    job_server: str, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "model")
    run_dir = tmp_path / "run"
    line = command("rl", *OVERRIDES, f"model.path={tmp_path / 'model'}", f"run_dir={run_dir}")
    submit = [RAY, "job", "submit", "--address", job_server]
    variables = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}}
    arguments = [*submit, f"--runtime-env-json={json.dumps(variables)}", "--", *line]
    done = ray_job(arguments)
    deadline = time.monotonic() + 120
    while any(reason in done.stderr for reason in NOT_READY) and time.monotonic() < deadline:
        time.sleep(1.0)
        done = ray_job(arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run_dir / "export" / "model.safetensors").is_file()
    steps = [json.loads(row)["step"] for row in (run_dir / "metrics.jsonl").open()]
    assert steps == list(range(6))
