"""The `rlstack` command: every command is a row of a table, most of them Hydra apps.

With `rlstack.commands` the composition root: the only modules of the core that know `workers`.
"""

import errno
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from rlstack.commands.command_line import (
    ShellCompletion,
    check_run_dir,
    completion,
    hydra_arguments,
    plain_values,
    resume_target,
    without_resume,
)
from rlstack.commands.table import APPS, COMMANDS
from rlstack.config.load import parse
from rlstack.config.pipeline import PipelineConfig, register_stage_references
from rlstack.config.resume import AUTO, started_or_resumed
from rlstack.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PlacementError,
    RegistrationError,
    TrainingError,
    WeightSyncError,
    WorkerError,
)

USAGE = """rlstack: reinforcement-learning post-training of language models

usage: rlstack COMMAND [key=value ...]

{commands}

From rl to pipeline all are Hydra apps: --help lists their groups, --cfg job prints the
configuration, --multirun sweeps. rlstack COMMAND resume=RUN_DIR continues a run that trains;
resume=auto run_dir=RUN_DIR starts it, or continues it if it has begun.
eval "$(rlstack -sc install=bash)" turns on completion (zsh: =bash too; fish: =fish)."""

NAME_WIDTH = 12

HELP = ("--help", "-h")

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

USER_ERRORS = (
    ConfigError,
    DataError,
    RegistrationError,
    PlacementError,
    CheckpointError,
    TrainingError,
    WeightSyncError,
    WorkerError,
)


def main() -> None:
    """Entry point of the console script."""
    # Python prints these for other people's sources when it compiles them, on the first run.
    warnings.simplefilter("ignore", SyntaxWarning)
    arguments = sys.argv[1:]
    completing = completion(
        arguments,
        line=os.environ.get("COMP_LINE", ""),
        commands=tuple(COMMANDS),
        apps=tuple(APPS),
    )
    if completing is not None:
        _complete(completing)
        return
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in HELP:
        print(_usage())
        return
    if name not in COMMANDS:
        _fail(f"unknown command {name!r}; one of {', '.join(COMMANDS)}")
    _check_own_packages()
    try:
        _run(name, rest)
    except (*USER_ERRORS, OSError) as error:
        _explain(error)


def _usage() -> str:
    """What `rlstack --help` prints; a name that is too long has a line of its own."""
    indent = " " * (NAME_WIDTH + 3)
    lines = [
        f"  {name:<{NAME_WIDTH}} {command.help}"
        if len(name) <= NAME_WIDTH
        else f"  {name}\n{indent}{command.help}"
        for name, command in COMMANDS.items()
    ]
    return USAGE.format(commands="\n".join(lines))


def _complete(answer: ShellCompletion) -> None:
    if answer.app is None:
        print(*answer.words, sep="\n")
        return
    os.environ["COMP_LINE"] = answer.line  # where Hydra looks
    _hydra_app(answer.app, list(answer.arguments))


def _run(name: str, arguments: list[str]) -> None:
    command = COMMANDS[name]
    if command.schema is None:
        if command.usage is not None and any(argument in HELP for argument in arguments):
            print(command.usage)
        else:
            command.run(arguments)
        return
    run_dir = None if command.resumed is None else resume_target(arguments)
    if command.resumed is None or run_dir is None:
        _hydra_app(name, hydra_arguments(arguments, schema=command.schema))
        return
    overrides = without_resume(arguments)
    if run_dir == AUTO:
        _hydra_app(name, hydra_arguments(overrides, schema=command.schema), automatic=True)
        return
    # The saved configuration is already composed, and no new run directory must be made.
    command.run(parse(command.schema, command.resumed(Path(run_dir), overrides)))


def _hydra_app(name: str, arguments: list[str], *, automatic: bool = False) -> None:
    """automatic: go on with what is in the run directory, if there is something."""
    schema = APPS[name]

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)
    def app(composed: DictConfig) -> None:
        try:
            if automatic:
                check_run_dir(composed)
            fallback = plain_values(hydra.compose(name))
            config = parse(schema, plain_values(composed), fallback=fallback)
            if automatic and not isinstance(config, PipelineConfig):  # which goes on by itself
                config = started_or_resumed(config)
            COMMANDS[name].run(config)
        except (*USER_ERRORS, OSError) as error:  # here, before Hydra prints its own traceback
            _explain(error)

    register_stage_references()
    # Hydra reads sys.argv itself; completion is installed for the program of this name.
    sys.argv = ["rlstack", *arguments]
    app()


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
