"""What every stage needs: clean stops, the versions of what computes."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from rlstack.errors import ConfigError

LIBRARIES = ("torch", "deepspeed", "transformers", "ray")


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose change may change results."""
    return {name: version(name) for name in LIBRARIES}


def check_unused(run_dir: Path, *, command: str) -> None:
    """A new run must not be written into an old one's files.

    Raises:
        ConfigError: if `run_dir` holds a run already.
    """
    metrics = run_dir / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        raise ConfigError(
            f"run_dir: {run_dir} holds a run already; continue it with rlstack {command} "
            f"resume={run_dir}, or choose another run_dir"
        )


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and Ctrl-C set; the second signal interrupts at once."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    caught = (signal.SIGTERM, signal.SIGINT)
    task = asyncio.current_task()
    assert task is not None

    def on_signal() -> None:
        if event.is_set():
            task.cancel()
        event.set()

    for number in caught:
        loop.add_signal_handler(number, on_signal)
    try:
        yield event
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
