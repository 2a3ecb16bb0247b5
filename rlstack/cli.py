"""The `rlstack` command: every stage is a Hydra app behind one entry point.

With `rlstack.commands` the composition root: the only modules of the core that know `workers`.
"""

import errno
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from omegaconf import DictConfig

from rlstack.commands.command_line import (
    Completion,
    completion,
    hydra_arguments,
    plain_values,
    resume_target,
)
from rlstack.config.base import RunSchema
from rlstack.config.load import parse
from rlstack.config.pipeline import PipelineConfig, register_stage_references, resumed_pipeline
from rlstack.config.resume import resumed_values
from rlstack.config.reward_model import RewardModelConfig
from rlstack.config.rounds import DPOConfig, RejectionSamplingConfig
from rlstack.config.run import EvalConfig, RLConfig
from rlstack.config.supervised import SFTConfig
from rlstack.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PlacementError,
    RegistrationError,
    WeightSyncError,
    WorkerError,
)
from rlstack.quick_imports import quick_imports

if TYPE_CHECKING:
    from rlstack.run.progress import Summary

USAGE = """rlstack: reinforcement-learning post-training of language models

usage: rlstack COMMAND [key=value ...]

  quickstart   build, warm-start and train a small model; prints where the report is
  rl           reinforcement learning:    rlstack rl experiment=gsm8k_grpo model.path=MODEL
  sft          supervised training:       rlstack sft model.path=MODEL data.train=[...]
  reward_model a reward model from pairs: rlstack reward_model model.path=MODEL data.train=[...]
  dpo          preference learning:       rlstack dpo model.path=MODEL data.train=[...]
  rejection_sampling
               training on the best of its own samples: rlstack rejection_sampling -h
  eval         pass@k of a checkpoint:    rlstack eval model.path=MODEL_OR_RUN_DIR data.eval=[...]
  pipeline     several of these as one:   rlstack pipeline experiment=rlhf_quickstart
  merge        one model out of several:  rlstack merge OUTPUT MODEL MODEL --method ties ...
  report       HTML report of a run:      rlstack report RUN_DIR
  algorithms   every method: formula, source, defaults, how to select it
  rewards      list the rewards, test one on rows of yours, write a new one: rlstack rewards -h

From rl to pipeline all are Hydra apps: --help lists their groups, --cfg job prints the
configuration, --multirun sweeps. rlstack COMMAND resume=RUN_DIR continues a run that trains.
eval "$(rlstack -sc install=bash)" turns on completion (zsh: =bash too; fish: =fish)."""

HELP = ("--help", "-h")

SCHEMAS: dict[str, type[RunSchema]] = {
    "rl": RLConfig,
    "sft": SFTConfig,
    "reward_model": RewardModelConfig,
    "dpo": DPOConfig,
    "rejection_sampling": RejectionSamplingConfig,
    "eval": EvalConfig,
}

APPS: dict[str, type[RunSchema]] = {**SCHEMAS, "pipeline": PipelineConfig}

RESUMABLE = tuple(name for name in APPS if name != "eval")

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

USER_ERRORS = (
    ConfigError,
    DataError,
    RegistrationError,
    PlacementError,
    CheckpointError,
    WeightSyncError,
    WorkerError,
)

RUNTIME_PACKAGES = ("ray", "vllm", "deepspeed", "transformers")


def main() -> None:
    """Entry point of the console script."""
    # Python prints these for other people's sources when it compiles them, on the first run.
    warnings.simplefilter("ignore", SyntaxWarning)
    arguments = sys.argv[1:]
    commands: dict[str, Callable[[list[str]], None]] = {
        "quickstart": _quickstart,
        "rl": lambda args: _stage("rl", args),
        "sft": lambda args: _stage("sft", args),
        "reward_model": lambda args: _stage("reward_model", args),
        "dpo": lambda args: _stage("dpo", args),
        "rejection_sampling": lambda args: _stage("rejection_sampling", args),
        "eval": lambda args: _stage("eval", args),
        "pipeline": lambda args: _stage("pipeline", args),
        "merge": _merge,
        "report": _report,
        "algorithms": _algorithms,
        "rewards": _rewards,
    }
    completing = completion(
        arguments,
        line=os.environ.get("COMP_LINE", ""),
        commands=tuple(commands),
        apps=tuple(APPS),
    )
    if completing is not None:
        _complete(completing)
        return
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in HELP:
        print(USAGE)
        return
    if command not in commands:
        _fail(f"unknown command {command!r}; one of {', '.join(commands)}")
    _check_own_packages()
    try:
        commands[command](rest)
    except (*USER_ERRORS, OSError) as error:
        _explain(error)


def _complete(answer: Completion) -> None:
    if answer.app is None:
        print(*answer.words, sep="\n")
        return
    os.environ["COMP_LINE"] = answer.line  # where Hydra looks
    _hydra_app(answer.app, list(answer.arguments))


def _stage(name: str, arguments: list[str]) -> None:
    run_dir = resume_target(arguments) if name in RESUMABLE else None
    if run_dir is None:
        _hydra_app(name, hydra_arguments(arguments, schema=APPS[name]))
        return
    # The saved configuration is already composed, and no new run directory must be made.
    overrides = [argument for argument in arguments if not argument.startswith("resume=")]
    saved = resumed_pipeline if name == "pipeline" else resumed_values
    _run_stage(name, parse(APPS[name], saved(run_dir, overrides)))


def _hydra_app(name: str, arguments: list[str]) -> None:
    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)
    def app(composed: DictConfig) -> None:
        try:
            fallback = plain_values(hydra.compose(name))
            _run_stage(name, parse(APPS[name], plain_values(composed), fallback=fallback))
        except (*USER_ERRORS, OSError) as error:  # here, before Hydra prints its own traceback
            _explain(error)

    register_stage_references()
    # Hydra reads sys.argv itself; completion is installed for the program of this name.
    sys.argv = ["rlstack", *arguments]
    app()


def _run_stage(name: str, config: Any) -> bool:
    """Whether the stage came to its end; False: it was stopped, and can be continued."""
    _need_runtime()
    with quick_imports():
        importlib.import_module(f"rlstack.commands.{'evaluate' if name == 'eval' else name}")
    match name:
        case "rl":
            from rlstack.commands import rl

            summary = rl.run(config)
            print(f"report: {summary.report}")
            return not summary.stopped_early
        case "sft":
            from rlstack.commands import sft

            return _print_model(sft.run(config))
        case "reward_model":
            from rlstack.commands import reward_model

            return _print_model(reward_model.run(config))
        case "dpo":
            from rlstack.commands import dpo

            return _print_model(dpo.run(config))
        case "rejection_sampling":
            from rlstack.commands import rejection_sampling

            return _print_model(rejection_sampling.run(config))
        case "eval":
            from rlstack.commands import evaluate

            for key, value in evaluate.run(config).items():
                print(f"{key}: {value:.4f}")
            return True
        case "pipeline":
            from rlstack.commands import pipeline

            return pipeline.run(config, schemas=SCHEMAS, run_stage=_run_stage)
        case _:
            raise AssertionError(name)


def _print_model(summary: "Summary") -> bool:
    """Say where a stage that trains has left what; whether it came to its end."""
    if summary.model is not None:
        print(f"model: {summary.model}")
    print(f"report: {summary.report}")
    return not summary.stopped_early


def _quickstart(arguments: list[str]) -> None:
    if any(argument in HELP for argument in arguments):
        print("usage: rlstack quickstart [key=value ...], overrides of its rl part (rlstack rl -h)")
        return
    _need_runtime()
    from rlstack.commands import quickstart

    quickstart.run(arguments)


def _merge(arguments: list[str]) -> None:
    from rlstack.commands import merge as merge_command

    print(f"model: {merge_command.run(arguments)}")


def _report(arguments: list[str]) -> None:
    usage = "usage: rlstack report RUN_DIR"
    if any(argument in HELP for argument in arguments):
        print(usage)
        return
    if len(arguments) != 1:
        _fail(usage)
    from rlstack.run.report import write_report

    print(write_report(Path(arguments[0])))


def _algorithms(arguments: list[str]) -> None:
    if arguments:
        print("usage: rlstack algorithms")
        return
    from rlstack.commands.algorithms import catalog_page

    print(catalog_page(), end="")


def _rewards(arguments: list[str]) -> None:
    from rlstack.commands.rewards import command as rewards_command

    rewards_command.run(arguments)


def _need_runtime() -> None:
    missing = [name for name in RUNTIME_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        _fail(
            f"this needs {', '.join(missing)}: pip install 'rlstack[cpu]' (or 'rlstack[gpu]'). "
            "The core package holds configuration, algorithms and rewards only"
        )


def _check_own_packages() -> None:
    """A user's own rewards.py in the current folder must not stand in for our package."""
    ours = Path(__file__).resolve().parents[1]
    for name in ("rewards", "workers", "conf"):
        spec = importlib.util.find_spec(name)
        origin = spec.origin if spec is not None else None
        if origin is None or Path(origin).resolve().parents[1] != ours:
            found = "nowhere to be found" if spec is None else f"{origin or 'a folder'}, not ours"
            _fail(
                f"the Python package {name!r} is {found}; rename what has that name, start rlstack "
                "from another folder, or use the rlstack command instead of python -m rlstack.cli"
            )


def _explain(error: Exception) -> NoReturn:
    """End with the message alone; an error that is not the user's keeps its traceback."""
    if isinstance(error, OSError):
        if error.errno not in FULL_DISK:
            raise error
        _fail(f"{error}; free some space; a run continues with resume=RUN_DIR")
    _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"rlstack: error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
