"""What the tests of child processes are set up with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workers.children.obedient import Orders
from workers.children.messages import Setup

MakeSetup = Callable[..., Setup]


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(hang=tmp_path / "hang", refuse=tmp_path / "refuse")


@pytest.fixture
def make_setup(orders: Orders) -> MakeSetup:
    def make(
        *, concurrent: bool = False, start_timeout_s: float = 60.0, seconds: float = 0.0
    ) -> Setup:
        return Setup(
            orders._replace(seconds=seconds),
            memory_bytes=2**34,
            concurrent=concurrent,
            longest_timeout_s=10.0,
            start_timeout_s=start_timeout_s,
        )

    return make
