"""The commands: one row each. Whoever lists, completes, starts or resumes a command reads it here.

Imports no worker code: the module of a command is imported when it runs.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlstack.config.base import RunSchema
from rlstack.config.pipeline import PipelineConfig
from rlstack.config.resume import resumed_pipeline, resumed_values
from rlstack.config.reward_model import RewardModelConfig
from rlstack.config.rounds import DPOConfig, RejectionSamplingConfig
from rlstack.config.run import EvalConfig, RLConfig
from rlstack.config.supervised import SFTConfig
from rlstack.errors import ConfigError
from rlstack.quick_imports import quick_imports
from rlstack.run.progress import Summary

RUNTIME_PACKAGES = ("ray", "vllm", "deepspeed", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command: what `rlstack NAME` is."""

    help: str
    """Its line of `rlstack --help`."""
    module: str
    """Has `run`, of a configuration of `schema` or of the arguments; it may give a `Summary`."""
    schema: type[RunSchema] | None = None
    """Of a Hydra app; None: the command reads its arguments itself."""
    resumed: Callable[[Path, list[str]], dict[str, Any]] | None = resumed_values
    """Reads the configuration with which RUN_DIR goes on; None: the app cannot be resumed."""
    usage: str | None = None
    """What its own --help prints; None: the command has more to say."""
    needs_runtime: bool = True
    """Whether it starts workers."""

    def run(self, given: RunSchema | list[str]) -> Summary:
        """Carry it out with a configuration or with arguments, and say where the results are.

        Raises:
            ConfigError: if packages are missing that it needs.
        """
        if self.needs_runtime:
            _check_runtime()
        with quick_imports():
            module = importlib.import_module(f"rlstack.commands.{self.module}")
        summary: Summary = module.run(given) or Summary()
        for name, value in summary.measured.items():
            print(f"{name}: {value:.4f}")
        if summary.model is not None:
            print(f"model: {summary.model}")
        if summary.report is not None:
            print(f"report: {summary.report}")
        return summary


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        help="build, warm-start and train a small model; prints where the report is",
        module="quickstart",
        usage="usage: rlstack quickstart [key=value ...], overrides of its rl part (rlstack rl -h)",
    ),
    "rl": Command(
        help="reinforcement learning:    rlstack rl experiment=gsm8k_grpo model.path=MODEL",
        module="rl",
        schema=RLConfig,
    ),
    "sft": Command(
        help="supervised training:       rlstack sft model.path=MODEL data.train=[...]",
        module="sft",
        schema=SFTConfig,
    ),
    "reward_model": Command(
        help="a reward model from pairs: rlstack reward_model model.path=MODEL data.train=[...]",
        module="reward_model",
        schema=RewardModelConfig,
    ),
    "dpo": Command(
        help="preference learning:       rlstack dpo model.path=MODEL data.train=[...]",
        module="dpo",
        schema=DPOConfig,
    ),
    "rejection_sampling": Command(
        help="training on the best of its own samples: rlstack rejection_sampling -h",
        module="rejection_sampling",
        schema=RejectionSamplingConfig,
    ),
    "eval": Command(
        help="pass@k of a checkpoint:    rlstack eval model.path=MODEL_OR_RUN_DIR data.eval=[...]",
        module="evaluate",
        schema=EvalConfig,
        resumed=None,
    ),
    "pipeline": Command(
        help="several of these as one:   rlstack pipeline experiment=rlhf_quickstart",
        module="pipeline",
        schema=PipelineConfig,
        resumed=resumed_pipeline,
    ),
    "merge": Command(
        help="one model out of several:  rlstack merge OUTPUT MODEL MODEL --method ties ...",
        module="merge",
        needs_runtime=False,
    ),
    "doctor": Command(
        help="what this machine has, and the smallest step of every way to run on it",
        module="doctor",
        usage="usage: rlstack doctor [WORD ...]; words: only rows whose names have them",
    ),
    "report": Command(
        help="HTML report of a run:      rlstack report RUN_DIR",
        module="report",
        usage="usage: rlstack report RUN_DIR",
        needs_runtime=False,
    ),
    "algorithms": Command(
        help="every method: formula, source, defaults, how to select it",
        module="algorithms",
        usage="usage: rlstack algorithms",
        needs_runtime=False,
    ),
    "rewards": Command(
        help="list the rewards, test one on rows of yours, write a new one: rlstack rewards -h",
        module="rewards.command",
        needs_runtime=False,
    ),
}

APPS: dict[str, type[RunSchema]] = {
    name: command.schema for name, command in COMMANDS.items() if command.schema is not None
}
"""The Hydra apps."""


def _check_runtime() -> None:
    missing = [name for name in RUNTIME_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"this needs {', '.join(missing)}: pip install 'rlstack[cpu]' (or 'rlstack[gpu]'). "
            "The core package holds configuration, algorithms and rewards only"
        )
