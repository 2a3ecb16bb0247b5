"""One thread that owns an engine: steps it while it has work, and obeys commands between steps."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple

from rlstack.errors import WorkerError

logger = logging.getLogger(__name__)


class Stepped(Protocol):
    """What a `StepLoop` steps."""

    def has_work(self) -> bool:
        """Whether `step` would do something."""
        ...

    def step(self) -> None:
        """Do the next piece of work."""
        ...

    def fail(self, error: WorkerError) -> None:
        """Tell those who wait for work that it will never be done."""
        ...


OwnedT = TypeVar("OwnedT", bound=Stepped)
ResultT = TypeVar("ResultT")
Arguments = TypeVarTuple("Arguments")


class StepLoop(Generic[OwnedT]):
    """What it owns is made, called and stepped on one thread, in the order of the calls.

    So a command takes effect at a step, not at a moment: the same commands at the same steps give
    the same bits.
    """

    def __init__(self, make: Callable[[], OwnedT]) -> None:
        self._make = make
        self._commands: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._owned: OwnedT
        self._failure: WorkerError | None = None
        self.done = 0
        """Steps and commands so far; a loop that is busy and does not count on is stuck."""
        self.busy = False
        """Whether a step or a command is under way or waits."""
        self._thread = threading.Thread(target=self._run, name="step loop", daemon=True)

    async def start(self) -> None:
        """Begin, and wait until what the loop owns is made."""
        made: Future[None] = Future()
        self._commands.put((self._create, made))
        self._thread.start()
        await asyncio.wrap_future(made)

    async def call(
        self, function: Callable[[OwnedT, *Arguments], ResultT], *arguments: *Arguments
    ) -> ResultT:
        """Run `function` on what the loop owns, before the next step.

        Raises:
            WorkerError: if a step failed before; what is owned is in no known state then.
        """
        result: Future[ResultT] = Future()
        self.busy = True
        self._commands.put((lambda: function(self._owned, *arguments), result))
        return await asyncio.wrap_future(result)

    def _create(self) -> None:
        self._owned = self._make()

    def _run(self) -> None:
        self._obey(*self._commands.get())
        while True:
            try:
                self.busy = self._has_work() or not self._commands.empty()
                self._obey(*self._commands.get(block=not self.busy))
            except Empty:
                self._step()

    def _has_work(self) -> bool:
        return self._failure is None and hasattr(self, "_owned") and self._owned.has_work()

    def _obey(self, command: Callable[[], Any], result: "Future[Any]") -> None:
        self.busy = True
        if not result.set_running_or_notify_cancel():
            return
        if self._failure is not None:
            result.set_exception(self._failure)
            return
        try:
            result.set_result(command())
        except BaseException as error:  # noqa: BLE001 - raised where it was called from
            result.set_exception(error)
        self.done += 1

    def _step(self) -> None:
        try:
            self._owned.step()
            self.done += 1
        except Exception as error:
            logger.exception("a step of the engine failed")
            self._failure = WorkerError(f"vLLM failed: {type(error).__name__}: {error}")
            self._owned.fail(self._failure)
