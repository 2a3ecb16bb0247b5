"""A child process that does what it is told, and hangs while it starts if a file says so."""

import asyncio
import os
import subprocess
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from workers.children.program import CannotStartError, run_program

PROGRAM = "tests.workers.children.obedient"


class Orders(NamedTuple):
    """What it finds in its `Setup`; the files may appear between two of its starts."""

    hang: Path
    """While there is such a file it does not become ready."""
    refuse: Path
    """While there is such a file it says that it cannot start."""
    seconds: float = 0.0
    """It takes to start, and to close."""


class Obedient:
    """A `workers.children.program.Program` whose requests are (verb, argument)."""

    def __init__(self, orders: Orders) -> None:
        self._seconds = orders.seconds
        self._inside = self._most = 0
        if orders.refuse.exists():
            raise CannotStartError(f"told to by {orders.refuse.name}")
        if orders.hang.exists():
            self._wait_here()
        time.sleep(self._seconds)

    def answer(self, content: tuple[str, Any]) -> object:
        verb, argument = content
        match verb:
            case "echo":
                return argument
            case "pid":
                return os.getpid()
            case "sleep":
                time.sleep(argument)
            case "exit":
                os._exit(argument)
            case "child":
                return subprocess.Popen(["sleep", "60"]).pid
        return None

    async def answer_beside_others(self, content: tuple[str, Any]) -> object:
        self._inside += 1
        self._most = max(self._most, self._inside)
        try:
            if content[0] == "most":
                return self._most
            if content[0] == "await":
                return await asyncio.sleep(content[1], content[1])
            return self.answer(content)
        finally:
            self._inside -= 1

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        asyncio.run(main)

    def close(self) -> None:
        time.sleep(self._seconds)

    def _wait_here(self) -> None:
        time.sleep(60)


if __name__ == "__main__":
    run_program(Obedient)
