"""Where the time of a step goes: named spans, which may overlap."""

import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path

from rlstack.metrics import Metrics
from rlstack.run import jsonl
from rlstack.run.observers import Observers

_around: ContextVar[str | None] = ContextVar("span around", default=None)


class Timeline:
    """Records spans to RUN_DIR/timeline.jsonl, one line a span: step, name, within, start_s, end_s.

    `within` is the name of the span around it, or null. Seconds count from the start of the span's
    step. Step 0 is what comes before the first one.
    """

    def __init__(
        self, run_dir: Path, *, on_span: Callable[[str], None], observers: Observers | None = None
    ) -> None:
        """`on_span(name)` is told when a span begins.

        observers: tell the user of a file that cannot be written; None: that is raised.
        """
        self._watching = nullcontext if observers is None else observers.watching
        self.path = run_dir / "timeline.jsonl"
        self._on_span = on_span
        self._step = 0
        self._began = False
        self._step_start = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)

    def begin_step(self, step: int) -> None:
        """Spans from here on belong to `step`."""
        if not self._began:
            # Before a kill, spans of steps that are now done again may have been written.
            with self._watching(self.path.name):
                jsonl.keep(self.path, lambda span: span["step"] < step)
            self._began = True
        self._step = step
        self._step_start = time.perf_counter()
        self._seconds.clear()

    @contextmanager
    def span(self, name: str) -> Generator[None]:
        """Measure what runs inside; spans may be nested and may overlap."""
        self._on_span(name)
        within = _around.get()
        token = _around.set(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            _around.reset(token)
            self._seconds[name] += end - start
            span = {
                "step": self._step,
                "name": name,
                "within": within,
                "start_s": start - self._step_start,
                "end_s": end - self._step_start,
            }
            with self._watching(self.path.name):
                jsonl.append(self.path, span)

    def end_step(self) -> Metrics:
        """`time/<span>_s` and `time/step_s` of the step that ends.

        Spans of one name are added up, also where they overlap.
        """
        seconds = {f"time/{name}_s": value for name, value in self._seconds.items()}
        return Metrics.of(seconds | {"time/step_s": time.perf_counter() - self._step_start})
