"""The driver's end of a real child process: nothing waits, and nothing is left behind."""

import pickle
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workers.children.conftest import MakeSetup
from tests.workers.children.obedient import PROGRAM
from workers.children.messages import Reply, Request
from workers.children.process import ChildProcess


@pytest.fixture
def process(make_setup: MakeSetup) -> Iterator[ChildProcess]:
    process = ChildProcess(PROGRAM, make_setup(), directory=Path.cwd())
    yield process
    process.kill()
    process.release()


def next_message(process: ChildProcess) -> Any:
    """The next message; "gone" if the process is."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        process.flush()
        select.select([process.socket], [], [], 0.02)
        messages, alive = process.receive()
        if messages:
            (message,) = messages
            return message
        if not alive:
            return "gone"
    raise TimeoutError


def ask(process: ChildProcess, verb: str, argument: object = None) -> Any:
    process.send(Request(5, 10.0, pickle.dumps((verb, argument))))
    return next_message(process)


def test_it_says_that_it_is_ready_and_answers(process: ChildProcess) -> None:
    assert next_message(process) is None
    assert ask(process, "echo", "text") == Reply(5, "text")
    process.send(None)
    assert next_message(process) == "gone"
    assert process.exit_code == 0


def test_a_death_is_noticed_with_its_exit_code(process: ChildProcess) -> None:
    assert next_message(process) is None
    assert ask(process, "exit", 3) == "gone"
    assert process.exit_code == 3


def test_what_it_started_ends_with_it(process: ChildProcess) -> None:
    assert next_message(process) is None
    child = Path(f"/proc/{ask(process, 'child').result}")
    assert child.exists()
    process.kill()
    process.release()
    deadline = time.monotonic() + 10
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_process_takes_no_time_of_ours_and_can_be_ended(process: ChildProcess) -> None:
    assert next_message(process) is None
    process._process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    process.send(Request(5, 10.0, b"x" * 10_000_000))
    assert process.has_unsent
    assert process.receive() == ([], True)
    process.kill()
    assert process.exit_code == -signal.SIGKILL
    assert time.monotonic() - started < 5
