"""Where metrics go: a JSONL file always, and the configured sinks; and the live display."""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rlstack.config.tracking import TrackingConfig
from rlstack.errors import ConfigError
from rlstack.run import durations, jsonl
from rlstack.run.folders import write_file
from rlstack.run.observers import Background, Observers
from rlstack.run.rollout_log import RolloutLog
from rlstack.types import Group

KEY_METRICS = {
    "reward/mean": "reward",
    "eval/pass@1": "held-out",
    "sft/loss": "loss",
    "preference/loss": "loss",
    "preference/accuracy": "accuracy",
    "eval/loss": "held-out loss",
    "policy/entropy": "entropy",
    "rollout/response_tokens": "tokens",
    "policy/grad_norm": "grad",
    "time/step_s": "s/step",
}
"""Shown on the console, with their short names; everything is in the other sinks."""


class Sink(Protocol):
    """One place that metrics go to."""

    name: str
    """As the user knows it."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def truncate_after(self, step: int) -> None:
        """Steps after `step` will be logged again; where nothing can be taken back, do nothing."""
        ...

    def close(self) -> None: ...


class JsonlSink:
    """RUN_DIR/metrics.jsonl: one object a step, on disk at once; resume and report read it.

    What a full disk did not take is written with the next step.
    """

    name = "metrics.jsonl"

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.path.touch()
        self._unwritten: list[jsonl.Record] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._unwritten.append({"step": step, "time": time.time(), **values})
        jsonl.append(self.path, *self._unwritten)
        self._unwritten.clear()

    def truncate_after(self, step: int) -> None:
        """Drop what was logged after `step`, so that the file equals an uninterrupted run's."""
        self._unwritten = [row for row in self._unwritten if row["step"] <= step]
        jsonl.keep(self.path, lambda row: row["step"] <= step)

    def close(self) -> None:
        """Every line is on disk already."""


class TensorBoardSink:
    """Event files in RUN_DIR/tensorboard, written without TensorFlow or torch."""

    name = "TensorBoard"

    def __init__(self, run_dir: Path) -> None:
        package = {"key": "tensorboard", "package": "tensorboard"}
        writer = _optional("tensorboard.summary.writer.event_file_writer", **package)
        self.event: Any = _optional("tensorboard.compat.proto.event_pb2", **package)
        self.summary: Any = _optional("tensorboard.compat.proto.summary_pb2", **package).Summary
        self.writer: Any = writer.EventFileWriter(str(run_dir / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self.summary.Value(tag=name, simple_value=v) for name, v in values.items()]
        self._add(step=step, summary=self.summary(value=scalars))
        # TensorBoard is watched while the run goes on: do not wait for the buffer to fill.
        self.writer.flush()

    def truncate_after(self, step: int) -> None:
        """A session that starts at `step + 1` makes TensorBoard drop what it read from there on."""
        start = self.event.SessionLog(status=self.event.SessionLog.START)
        self._add(step=step + 1, session_log=start)

    def close(self) -> None:
        self.writer.close()

    def _add(self, *, step: int, **content: Any) -> None:
        self.writer.add_event(self.event.Event(wall_time=time.time(), step=step, **content))


class WandbSink:
    """A Weights & Biases run; a resumed run continues the same one.

    W&B keeps the first values it gets for a step, and a resumed run repeats them.
    """

    name = "Weights & Biases"

    def __init__(self, run_dir: Path, wandb: Any, *, project: str) -> None:
        name = run_dir.resolve().name
        self.run: Any = wandb.init(
            project=project, name=name, id=name, resume="allow", dir=str(run_dir)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def truncate_after(self, step: int) -> None: ...

    def close(self) -> None:
        self.run.finish()


class MlflowSink:
    """A run of an MLflow experiment, at MLflow's own tracking address; resumed by its id."""

    name = "MLflow"

    def __init__(self, run_dir: Path, mlflow: Any, *, experiment: str) -> None:
        self.mlflow = mlflow
        self.mlflow.set_experiment(experiment)
        id_file = run_dir / "mlflow_run_id"
        if id_file.is_file():
            self.mlflow.start_run(run_id=id_file.read_text())
        else:
            run = self.mlflow.start_run(run_name=run_dir.resolve().name)
            write_file(id_file, run.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # MLflow's names know no "@".
        self.mlflow.log_metrics({n.replace("@", "_at_"): v for n, v in values.items()}, step=step)

    def truncate_after(self, step: int) -> None: ...

    def close(self) -> None:
        self.mlflow.end_run()


class ServerSink:
    """A sink that talks to a server, opened and used in a thread of its own.

    A server that is slow or gone costs values of that sink and nothing else.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink], *, observers: Observers) -> None:
        self.name = name
        self._open = open_sink
        self._sink: Sink | None = None
        self._thread = Background(lambda error: observers.failed(name, error))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._thread.call(lambda: self._opened().log(step, values))

    def truncate_after(self, step: int) -> None:
        self._thread.call(lambda: self._opened().truncate_after(step))

    def close(self) -> None:
        self._thread.call(self._close)
        self._thread.close()

    def _opened(self) -> Sink:
        """Tried anew for every call until there is an answer."""
        if self._sink is None:
            self._sink = self._open()
        return self._sink

    def _close(self) -> None:
        if self._sink is not None:
            self._sink.close()


class Display:
    """Tells the user what is going on: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, *, total_steps: int, title: str, enabled: bool) -> None:
        self.total_steps = total_steps
        self.title = title
        self.enabled = enabled
        self.console = Console(highlight=False)
        self.start = time.perf_counter()
        self.first_step: int | None = None
        self.first_time = self.start
        self.progress = Progress(
            TextColumn("[bold]{task.fields[title]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("[cyan]{task.fields[phase]}"),
            console=self.console,
            transient=True,
        )
        self.task = self.progress.add_task(
            "", total=total_steps, title=title, phase="starting", left=""
        )
        self.live = enabled and self.console.is_terminal
        if self.live:
            self.progress.start()

    def phase(self, name: str, *, announce: bool) -> None:
        """Show `name` as what is being done; off a terminal only announced phases get a line."""
        if self.live:
            self.progress.update(self.task, phase=name)
        elif announce:
            self.note(name)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """One row of key metrics, and how long is left."""
        shown = [
            f"{short} {values[name]:.4g}" for name, short in KEY_METRICS.items() if name in values
        ]
        left = self._seconds_left(step)
        remaining = f"{durations.readable(left)} left" if left else ""
        if remaining and not self.live:
            shown.append(remaining)
        self.note(" | ".join([f"step {step}/{self.total_steps}", *shown]))
        self.progress.update(self.task, completed=step, left=remaining)

    def _seconds_left(self, step: int) -> float | None:
        """At the pace since this process logged its first step: rich forgets after 30 s."""
        now = time.perf_counter()
        if self.first_step is None:
            self.first_step, self.first_time = step, now
            return None
        done = step - self.first_step
        return (now - self.first_time) / done * (self.total_steps - step) if done > 0 else None

    def note(self, text: str) -> None:
        """Print a line without breaking the display."""
        if self.enabled:
            elapsed = time.perf_counter() - self.start
            # Where the output goes to a full disk or a closed pipe there is nobody to tell.
            with suppress(OSError):
                self.console.print(
                    f"[{elapsed:7.1f} s] {self.title}: {text}", markup=False, soft_wrap=True
                )
                self.console.file.flush()  # a pipe would hold lines back

    def close(self) -> None:
        """Take the live line away."""
        if self.live:
            self.progress.stop()


class Tracker:
    """Fans metrics out to the sinks and drives the display. A context manager.

    None of it stops a run: what fails is said once.
    """

    def __init__(
        self, sinks: list[Sink], *, display: Display, observers: Observers, rollouts: RolloutLog
    ) -> None:
        self.sinks = sinks
        self.display = display
        self.observers = observers
        self._rollouts = rollouts

    @classmethod
    def open(
        cls, config: TrackingConfig, *, run_dir: Path, total_steps: int, title: str
    ) -> "Tracker":
        """The sinks of `config`, in an existing `run_dir`.

        Raises:
            ConfigError: if a sink's package is not installed.
        """
        sinks: list[Sink] = [JsonlSink(run_dir)]
        if config.tensorboard:
            sinks.append(TensorBoardSink(run_dir))
        servers: list[tuple[str, Callable[[], Sink]]] = []
        if config.wandb_project is not None:
            package = _optional("wandb", key="wandb_project", package="wandb")
            make = partial(WandbSink, run_dir, package, project=config.wandb_project)
            servers.append((WandbSink.name, make))
        if config.mlflow_experiment is not None:
            package = _optional("mlflow", key="mlflow_experiment", package="mlflow")
            make = partial(MlflowSink, run_dir, package, experiment=config.mlflow_experiment)
            servers.append((MlflowSink.name, make))
        display = Display(total_steps=total_steps, title=title, enabled=config.console)
        observers = Observers(display.note)
        sinks += [ServerSink(name, make, observers=observers) for name, make in servers]
        rollouts = RolloutLog(run_dir, config)
        return cls(sinks, display=display, observers=observers, rollouts=rollouts)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics of `step` to every sink."""
        for sink in self.sinks:
            with self.observers.watching(sink.name):
                sink.log(step, values)
        self.display.step(step, values)

    def rollouts(self, groups: Sequence[Group], *, step: int, evaluation: bool = False) -> None:
        """Write the rollouts of `step`, where they are to be kept."""
        with self.observers.watching("rollouts"):
            self._rollouts.write(groups, step=step, evaluation=evaluation)

    def truncate_after(self, step: int) -> None:
        """Forget what was logged after `step`: a resumed run logs it again."""
        for sink in self.sinks:
            with self.observers.watching(sink.name):
                sink.truncate_after(step)

    def phase(self, name: str) -> None:
        """Announce a part of the run that is not a step."""
        self.display.phase(name, announce=True)

    def span(self, name: str) -> None:
        """Show which part of a step is under way."""
        self.display.phase(name, announce=False)

    def note(self, text: str) -> None:
        """Print a line."""
        self.display.note(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sink in self.sinks:
            with self.observers.watching(sink.name):
                sink.close()
        self.display.close()


def _optional(module: str, *, key: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"tracking.{key}: needs the package {package}: pip install {package}, or switch it off"
        ) from error
