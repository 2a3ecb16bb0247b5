"""The configuration of `rlstack pipeline`: commands that run one after the other."""

import os
import re
from collections import Counter
from typing import Any

from omegaconf import OmegaConf
from pydantic import Field

from rlstack.config.base import Frozen, Problem, RunSchema
from rlstack.config.paths import LocalPath

MODEL_FOLDER = "export"
"""Where a stage's model is, below the stage's run directory."""
STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
GIVEN = ("run_dir", "resume", "hydra")
"""Keys of a stage that are the pipeline's to set."""


class StageConfig(Frozen):
    """One command of a pipeline."""

    name: str
    """Its run directory is RUN_DIR/NAME; later stages name its model `${stage:NAME}`."""
    command: str
    """rl, sft, ... as after `rlstack`; or python, for a program of yours."""
    arguments: tuple[str, ...]
    """What follows the command on its command line."""


class PipelineConfig(RunSchema):
    """`rlstack pipeline`."""

    seed: int = Field(ge=0)
    """Of every stage that does not set its own."""
    run_dir: LocalPath
    ray_address: str | None
    """Of every stage that does not set its own."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    more: dict[str, tuple[str, ...]] | None
    """By a stage's name: what is put behind its arguments."""

    def complete(self) -> tuple[StageConfig, ...]:
        """The stages, each with all of its arguments."""
        more = self.more or {}
        return tuple(
            stage.model_copy(update={"arguments": (*stage.arguments, *more.get(stage.name, ()))})
            for stage in self.stages
        )

    def problems(self) -> list[Problem]:
        """Names that cannot be folders, and keys that the pipeline sets."""
        texts: list[str] = []
        for name, count in Counter(stage.name for stage in self.stages).items():
            if count > 1:
                texts.append(f"{count} stages are called {name!r}; give each a name of its own")
            if not STAGE_NAME.fullmatch(name):
                texts.append(f"{name!r} is no name for a folder; use letters, digits, _ and -")
        for stage in self.complete():
            keys = {argument.partition("=")[0].partition(".")[0] for argument in stage.arguments}
            texts += [
                f"{stage.name!r} must not set {key}, which the pipeline does"
                for key in GIVEN
                if key in keys
            ]
        found = [Problem(("stages",), text) for text in texts]
        names = [stage.name for stage in self.stages]
        for name in (self.more or {}).keys() - names:
            text = f"there is no stage {name!r}; those are {', '.join(names)}"
            found.append(Problem(("more", "stages"), text))
        return found


def register_stage_references() -> None:
    """Let `${stage:NAME}` in a stage's arguments stand for the model of an earlier stage."""
    OmegaConf.register_new_resolver("stage", _model_of, replace=True)


def _model_of(name: str, *, _root_: Any, _parent_: Any) -> str:
    earlier: list[str] = []
    more = _root_.more or {}
    for stage in _root_.stages:
        if _parent_ is stage.arguments or _parent_ is more.get(stage.name):
            break
        earlier.append(stage.name)
    if name not in earlier:
        raise ValueError(f"{name!r} is no earlier stage; those are: {', '.join(earlier) or 'none'}")
    # No folder yet, so that it could not be told from the name of a model on a hub.
    return os.path.abspath(f"{_root_.run_dir}/{name}/{MODEL_FOLDER}")
