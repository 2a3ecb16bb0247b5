"""Run state on disk: written whole or not at all, read strictly.

A checkpoint is a folder RUN_DIR/checkpoints/step_000012 with `trainer/` (a folder for each role
whose weights change, written by its ranks), `rewards/` (a file for each reward that remembers) and
`state.json`. It is written under a temporary name and renamed when complete, so a folder with the
final name is always whole.
"""

import json
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rlstack.errors import CheckpointError
from rlstack.run.folders import whole_folder

FORMAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything of a run that is not in the trainers."""

    step: int
    """Steps completed."""
    state: Mapping[str, Any]
    """JSON that the command goes on from, such as where its sampler stands."""
    best_value: float | None
    best_step: int | None
    versions: dict[str, str]
    """Library versions that wrote it."""


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path, *, keep_last: int) -> None:
        self.directory = run_dir / "checkpoints"
        self.keep_last = keep_last

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step`."""
        return self.directory / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        folders = self.directory.glob("step_*")
        return sorted(int(f.name.removeprefix("step_")) for f in folders)

    async def save(
        self,
        state: RunState,
        save_trainers: Callable[[Path], Awaitable[None]],
        *,
        rewards: Mapping[str, bytes],
    ) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        rewards: the states of the rewards that remember, by label.

        Raises:
            CheckpointError: if it cannot be written; earlier checkpoints are untouched.
        """

        async def write(partial: Path) -> None:
            await save_trainers(partial / "trainer")
            write_rewards(partial, rewards)
            text = json.dumps({"format": FORMAT, **asdict(state)}, indent=2)
            (partial / "state.json").write_text(text)

        final = self.path(state.step)
        try:
            await write_folder(final, write)
        except CheckpointError as error:
            kept = self.steps()
            last = f"the newest whole one is {self.path(kept[-1])}" if kept else "there is none yet"
            raise CheckpointError(f"{error}; of the checkpoints, {last}") from error
        kept = {*self.steps()[-self.keep_last :], state.best_step}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step))
        return final

    def latest(self) -> tuple[Path, RunState]:
        """The newest checkpoint.

        Raises:
            CheckpointError: if there is none or it cannot be read.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.directory}: no complete checkpoint to resume from; start the run anew, and "
                "set checkpoint.every so that there is one next time"
            )
        return self.path(steps[-1]), load_state(self.path(steps[-1]))


def improves(metric: str, value: float, best: float | None) -> bool:
    """Whether `value` beats `best`: a loss or an error by being lower, all else by being higher."""
    if best is None:
        return True
    return value < best if metric.endswith(("loss", "error")) else value > best


async def write_folder(final: Path, write: Callable[[Path], Awaitable[None]]) -> None:
    """Let `write` fill a folder that appears at `final` when it is whole, or not at all.

    Raises:
        CheckpointError: if it cannot be written; what was at `final` is untouched.
    """
    try:
        with whole_folder(final) as folder:
            await write(folder)
    except Exception as error:
        existing = next(folder for folder in final.absolute().parents if folder.exists())
        free_mib = shutil.disk_usage(existing).free / 2**20
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise CheckpointError(
            f"could not write {final}: {reason[0]} ({free_mib:.0f} MiB are free there now). Free "
            "disk space or repair what is named, then continue the run with resume=RUN_DIR"
        ) from error


def write_rewards(path: Path, states: Mapping[str, bytes]) -> None:
    """A file in PATH/rewards for each reward that remembers, by label."""
    (path / "rewards").mkdir()
    for label, remembered in states.items():
        (path / "rewards" / quote(label, safe="")).write_bytes(remembered)


def load_rewards(path: Path) -> dict[str, bytes]:
    """What `write_rewards` wrote.

    Raises:
        CheckpointError: if they cannot be read.
    """
    try:
        return {unquote(f.name): f.read_bytes() for f in sorted((path / "rewards").iterdir())}
    except OSError as error:
        raise CheckpointError(f"{path}: the states of rewards cannot be read: {error}") from error


def load_state(path: Path) -> RunState:
    """The `RunState` of a checkpoint folder.

    Raises:
        CheckpointError: if state.json is missing, damaged or of another format.
    """
    file = path / "state.json"
    try:
        values = json.loads(file.read_text())
        written = values.pop("format")
        if written != FORMAT:
            other = "an earlier" if written < FORMAT else "a later"
            raise CheckpointError(
                f"{file}: {other} version of rlstack wrote it, in format {written}, and this one "
                f"reads format {FORMAT}; finish the run with that version, or start a new one"
            )
        return RunState(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: not a readable run state: {error}") from error
