"""Run state on disk: written whole or not at all, read strictly.

A checkpoint is a folder RUN_DIR/checkpoints/step_000012 with `trainer/` (a folder for each role
whose weights change, written by its ranks), `rewards/` (a file for each reward that remembers),
`state.json`, and `files.json`: the size of every other file. It is written under a temporary name
and renamed when complete, so a folder with the final name was whole; what a disk has lost of it
since is noticed.
"""

import json
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rlstack.errors import CheckpointError, RankDiedError
from rlstack.run.folders import whole_folder

FORMAT = 5
STATE_FILE, SIZES_FILE = "state.json", "files.json"


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
            (partial / STATE_FILE).write_text(text)
            (partial / SIZES_FILE).write_text(json.dumps(_sizes(partial), indent=2))

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
        """The newest whole checkpoint.

        Raises:
            CheckpointError: if there is none or it cannot be read.
        """
        damaged = self.damaged()
        whole = [step for step in self.steps() if step not in damaged]
        if whole:
            return self.path(whole[-1]), load_state(self.path(whole[-1]))
        if damaged:
            raise CheckpointError(
                f"{'; '.join(damaged.values())}. No checkpoint of {self.directory} is whole: "
                "restore the file, or start the run anew"
            )
        raise CheckpointError(
            f"{self.directory}: no complete checkpoint to resume from; start the run anew, and "
            "set checkpoint.every so that there is one next time"
        )

    def damaged(self) -> dict[int, str]:
        """What is wrong with the checkpoints after the newest whole one, by step, newest first."""
        found: dict[int, str] = {}
        for step in reversed(self.steps()):
            problem = damage(self.path(step))
            if problem is None:
                break
            found[step] = problem
        return found

    def set_aside_damaged(self) -> list[str]:
        """Rename what is newer than the newest whole checkpoint, so that it replaces none.

        Returns a line for each. Where no checkpoint is whole, `latest` says so and nothing is done.
        """
        damaged = self.damaged()
        if len(damaged) == len(self.steps()):
            return []
        lines: list[str] = []
        for step, problem in damaged.items():
            aside = self.directory / f"damaged_{self.path(step).name}"
            shutil.rmtree(aside, ignore_errors=True)
            self.path(step).rename(aside)
            lines.append(f"{problem}; the checkpoint is now {aside}, an older one is used")
        return lines


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
    except RankDiedError:  # the disk is not at fault, and the run is taken up again
        raise
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
    file = path / STATE_FILE
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


def damage(path: Path) -> str | None:
    """What is missing from a checkpoint folder or cut short, naming the file; None: it is whole.

    Of another format only `load_state` can tell.
    """
    file = path / STATE_FILE
    try:
        state = json.loads(file.read_text())
        if isinstance(state, dict) and state.get("format") not in (None, FORMAT):
            return None
        file = path / SIZES_FILE
        sizes = json.loads(file.read_text())
        if STATE_FILE not in sizes:
            raise ValueError("no list of files")
    except (OSError, ValueError) as error:
        return f"{file}: cannot be read: {error}"
    found = _sizes(path)
    for name, size in sizes.items():
        if name not in found:
            return f"{path / name}: is missing"
        if found[name] != size:
            return f"{path / name}: has {found[name]} bytes, {size} were written"
    return None


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file by its path in `folder`, but for the file that keeps them."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    sizes.pop(SIZES_FILE, None)
    return sizes
