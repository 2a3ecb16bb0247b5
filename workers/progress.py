"""How far the work of this process has come, for `workers.launch.watch`."""

import os

from workers.specs import Progress


class Work:
    """Counts what is done; a process has one."""

    def __init__(self) -> None:
        self._done = 0
        self._calls = 0

    def __enter__(self) -> None:
        """A call has come."""
        self._calls += 1

    def __exit__(self, *_: object) -> None:
        """It is answered."""
        self._calls -= 1
        self._done += 1

    def advance(self) -> None:
        """A part of a call is done: a micro-batch, a tensor."""
        self._done += 1

    def progress(self) -> Progress:
        """So far."""
        return Progress(done=self._done, busy=self._calls > 0, pid=os.getpid())


work = Work()
