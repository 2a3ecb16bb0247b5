"""What only watches a run may fail: it is said once, and the run goes on."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from queue import Full, Queue
from threading import Thread

CLOSE_WITHIN_S = 30.0
MAX_WAITING = 1000
"""Calls that a slow server may lag behind; what comes then is dropped."""

Call = Callable[[], None]


class Observers:
    """Lets what only watches a run fail."""

    def __init__(self, note: Callable[[str], None]) -> None:
        """note: tells the user."""
        self._note = note
        self._failed: set[str] = set()

    @contextmanager
    def watching(self, name: str) -> Generator[None]:
        """Go on where what runs inside fails. name: what is lost, for the user."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, no training is worth less
            self.failed(name, error)

    def failed(self, name: str, error: Exception) -> None:
        """Say that something of `name` is lost, the first time."""
        if name in self._failed:
            return
        self._failed.add(name)
        reason = str(error).strip() or type(error).__name__
        self._note(f"warning: {name}: {reason}; the run goes on, and this is said once")


class Background:
    """A thread that carries out calls in their order, so that nobody waits for a server."""

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        """on_error: told, in the thread, what a call raised."""
        self._on_error = on_error
        self._calls: Queue[Call | None] = Queue(MAX_WAITING)
        # A daemon: a server that never answers does not keep the process.
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def call(self, function: Call) -> None:
        """Carry out `function` later.

        Raises:
            TimeoutError: if too many wait already.
        """
        self._put(function)

    def close(self) -> None:
        """Wait for the last calls.

        Raises:
            TimeoutError: if they take too long.
        """
        self._put(None)
        self._thread.join(CLOSE_WITHIN_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the last values were not taken within {CLOSE_WITHIN_S:g} s")

    def _put(self, call: Call | None) -> None:
        try:
            self._calls.put_nowait(call)
        except Full:
            raise TimeoutError(f"does not keep up: {MAX_WAITING} calls wait") from None

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - of any library
                self._on_error(error)
