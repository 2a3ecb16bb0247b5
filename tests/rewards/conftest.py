"""Fixtures of the rewards that speak over a network."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.rewards.scripted_server import Reply, scripted_server


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], str]]:
    """Start a scripted server; its address. It ends with the test."""
    with ExitStack() as stack:
        yield lambda reply: stack.enter_context(scripted_server(reply))
