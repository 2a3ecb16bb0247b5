"""What a program of a child process owes its driver: a reason, a traceback, its own end."""

import signal
import socket
from pathlib import Path

import pytest

from tests.workers.children.conftest import MakeSetup
from tests.workers.children.obedient import PROGRAM, Orders
from tests.workers.children.test_process import next_message
from workers.children.process import ChildProcess


def test_one_that_cannot_start_says_why_and_ends(make_setup: MakeSetup, orders: Orders) -> None:
    orders.refuse.touch()
    process = ChildProcess(PROGRAM, make_setup(), directory=Path.cwd())
    assert next_message(process) == "told to by refuse"
    assert next_message(process) == "gone"
    process.release()


def test_one_that_hangs_while_it_starts_shows_where(
    make_setup: MakeSetup, orders: Orders, capfd: pytest.CaptureFixture[str]
) -> None:
    orders.hang.touch()
    process = ChildProcess(PROGRAM, make_setup(start_timeout_s=0.5), directory=Path.cwd())
    # Its driver does nothing here: it ends itself, a while after its time.
    assert process.exit_code == -signal.SIGALRM
    process.release()
    assert "in _wait_here" in capfd.readouterr().err


@pytest.mark.parametrize("concurrent", [False, True])
def test_it_ends_when_its_driver_is_gone(make_setup: MakeSetup, *, concurrent: bool) -> None:
    process = ChildProcess(PROGRAM, make_setup(concurrent=concurrent), directory=Path.cwd())
    assert next_message(process) is None
    process.socket.shutdown(socket.SHUT_RDWR)
    assert process.exit_code == 0
    process.release()
