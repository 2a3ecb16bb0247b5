"""What is left to do of a pipeline, from what its stages have left on disk. Starts nothing.

A stage that begins writes RUN_DIR/NAME/started.yaml, with its whole configuration; when it is done
that file is renamed to done.yaml. So a stage is done when it says so, and with what is on record.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from rlstack.config.resume import UNIMPORTANT, changes, goes_on
from rlstack.errors import ConfigError
from rlstack.run.folders import sync, write_file

STARTED, DONE = "started.yaml", "done.yaml"


class StageAction(StrEnum):
    """What to do with a stage."""

    SKIP = "skip"
    """It is done."""
    RESUME = "resume"
    """It has something to go on from."""
    START = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage whose whole configuration is known and valid."""

    name: str
    command: str
    run_dir: Path
    configuration: Mapping[str, Any]
    """Plain values; for a command without a configuration, its arguments."""
    resumable: bool

    @property
    def record(self) -> dict[str, Any]:
        """What its markers hold."""
        return {"command": self.command, "configuration": dict(self.configuration)}


def plan(stages: Sequence[PlannedStage]) -> list[StageAction]:
    """What to do with each stage.

    Raises:
        ConfigError: if a stage was done, or begun, with another configuration, or was made from
            what an earlier stage is about to make anew.
    """
    actions = [_action(stage) for stage in stages]
    for index, (stage, action) in enumerate(zip(stages, actions, strict=True)):
        if action is StageAction.START:
            continue
        for earlier, before in zip(stages[:index], actions[:index], strict=True):
            if before is not StageAction.SKIP and _reads(stage, earlier):
                raise ConfigError(
                    f"stage {stage.name!r} was made from what {earlier.name!r} had written, and "
                    f"{earlier.name!r} is not done; remove {stage.run_dir} to make both anew"
                )
    return actions


def start(stage: PlannedStage) -> None:
    """Clear what a stage that cannot go on has left, and put its configuration on record."""
    if (stage.run_dir / STARTED).is_file():
        shutil.rmtree(stage.run_dir)
    stage.run_dir.mkdir(parents=True, exist_ok=True)
    record = yaml.safe_dump(stage.record, sort_keys=False, allow_unicode=True)
    write_file(stage.run_dir / STARTED, record)


def finish(stage: PlannedStage) -> None:
    """Put on record that the stage is done; on disk before the next one relies on it."""
    (stage.run_dir / STARTED).replace(stage.run_dir / DONE)
    sync(stage.run_dir)


def _action(stage: PlannedStage) -> StageAction:
    if (stage.run_dir / DONE).is_file():
        _check_unchanged(stage, stage.run_dir / DONE, "is done")
        return StageAction.SKIP
    begun = (stage.run_dir / STARTED).is_file()
    if begun and stage.resumable and goes_on(stage.run_dir):
        _check_unchanged(stage, stage.run_dir / STARTED, "was interrupted")
        return StageAction.RESUME
    return StageAction.START


def _check_unchanged(stage: PlannedStage, file: Path, state: str) -> None:
    try:
        before = yaml.safe_load(file.read_text())
        changed = changes(_flat(before), _flat(stage.record), free=UNIMPORTANT)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: not readable: {error}; remove {stage.run_dir}") from error
    if changed:
        lines = [
            f"stage {stage.name!r} {state} with another configuration; remove {stage.run_dir} to "
            "do it anew, choose another run_dir, or take back the change:",
            *changed,
        ]
        raise ConfigError("\n".join(lines))


def _reads(stage: PlannedStage, earlier: PlannedStage) -> bool:
    """Whether a path below the earlier stage's run directory is in the configuration."""
    text = yaml.safe_dump(stage.record, width=10**6)
    return f"{earlier.run_dir}/" in text or f"{earlier.run_dir}\n" in text


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the words of the record itself."""
    return {"command": record["command"], **record["configuration"]}
