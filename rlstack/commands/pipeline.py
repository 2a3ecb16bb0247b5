"""`rlstack pipeline`: several commands as one run that can be interrupted and continued.

Every stage is composed and checked before the first one starts.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException

from rlstack.commands import merge
from rlstack.commands.command_line import hydra_arguments
from rlstack.commands.composing import composed_values
from rlstack.commands.pipeline_plan import PlannedStage, StageAction, finish, plan, start
from rlstack.commands.table import COMMANDS, Command
from rlstack.config.base import RunSchema
from rlstack.config.load import dump, parse
from rlstack.config.pipeline import MODEL_FOLDER, PipelineConfig, StageConfig
from rlstack.errors import ConfigError, WorkerError
from rlstack.run.folders import check_lasting, write_file
from rlstack.run.progress import Summary

RunCommand = Callable[[str, RunSchema], Summary]
"""Carries out a command with its configuration."""


@dataclass(frozen=True, slots=True)
class ReadyStage:
    """A stage, and what carries it out.

    run: told whether to resume, says whether the stage came to its end.
    """

    planned: PlannedStage
    run: Callable[[bool], bool]


def _run_command(name: str, config: RunSchema) -> Summary:
    return COMMANDS[name].run(config)


def run(config: PipelineConfig, *, run_command: RunCommand = _run_command) -> Summary:
    """Run what is not done yet.

    Raises:
        ConfigError: naming everything that is wrong with any stage, before one has started.
    """
    check_lasting(Path(config.run_dir))
    ready = prepare(config, run_command=run_command)
    actions = plan([stage.planned for stage in ready])
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_file(run_dir / "config.yaml", dump(config))
    for number, (stage, action) in enumerate(zip(ready, actions, strict=True), 1):
        planned = stage.planned
        title = f"pipeline {number}/{len(ready)}: {planned.name} ({planned.command})"
        print(f"{title}: {'done already' if action is StageAction.SKIP else action}", flush=True)
        if action is StageAction.SKIP:
            continue
        if action is StageAction.START:
            start(planned)
        if not stage.run(action is StageAction.RESUME):
            print(f"pipeline stopped; continue with rlstack pipeline resume={run_dir}", flush=True)
            return Summary(stopped_early=True)
        finish(planned)
    return Summary()


def prepare(config: PipelineConfig, *, run_command: RunCommand = _run_command) -> list[ReadyStage]:
    """Every stage with its whole configuration.

    Raises:
        ConfigError: with the problems of all stages.
    """
    commands = {
        name: command
        for name, command in COMMANDS.items()
        if command.schema not in (None, PipelineConfig)
    }
    ready: list[ReadyStage] = []
    problems: list[str] = []
    for stage in config.complete():
        run_dir = Path(config.run_dir) / stage.name
        try:
            match stage.command:
                case "merge":
                    ready.append(_merge(stage, run_dir))
                case "python":
                    ready.append(_program(stage, run_dir))
                case name if name in commands:
                    ready.append(_configured(config, stage, commands[name], run_command))
                case name:
                    known = ", ".join((*commands, "merge", "python"))
                    raise ConfigError(f"unknown command {name!r}; one of {known}")
        except (ConfigError, HydraException) as error:
            problems.append(f"stage {stage.name!r}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return ready


def _configured(
    config: PipelineConfig, stage: StageConfig, command: Command, run_command: RunCommand
) -> ReadyStage:
    """A stage whose command is a Hydra app."""
    schema = command.schema
    assert schema is not None
    run_dir = Path(config.run_dir) / stage.name
    own = hydra_arguments(list(stage.arguments), schema=schema)
    shared = [f"seed={config.seed}"]
    shared += [f"ray_address={config.ray_address}"] if config.ray_address else []
    values = composed_values(stage.command, [*shared, *own, f"run_dir={run_dir}"])
    fallback = composed_values(stage.command, [f"run_dir={run_dir}"])
    parsed = parse(schema, values, fallback=fallback)

    def carry_out(resume: bool) -> bool:
        going_on = {"resume": str(run_dir)} if resume else {}
        given = parsed.model_copy(update=going_on)
        return not run_command(stage.command, given).stopped_early

    planned = PlannedStage(
        name=stage.name,
        command=stage.command,
        run_dir=run_dir,
        configuration=parsed.model_dump(mode="json"),
        resumable=command.resumed is not None,
    )
    return ReadyStage(planned, carry_out)


def _merge(stage: StageConfig, run_dir: Path) -> ReadyStage:
    """`arguments` are those of `rlstack merge` after OUTPUT."""
    arguments = [str(run_dir / MODEL_FOLDER), *stage.arguments]
    merge.chosen_method(merge.parser().parse_args(arguments))

    def carry_out(_: bool) -> bool:
        merge.run(arguments)
        return True

    return ReadyStage(_with_arguments(stage, run_dir), carry_out)


def _program(stage: StageConfig, run_dir: Path) -> ReadyStage:
    """`arguments` are those of the Python interpreter: a file or -m MODULE, and what they take."""
    if not stage.arguments:
        raise ConfigError("nothing to run; arguments: [FILE.py, ...] or [-m, MODULE, ...]")

    def carry_out(_: bool) -> bool:
        status = subprocess.run([sys.executable, *stage.arguments], check=False).returncode
        if status:
            raise WorkerError(
                f"stage {stage.name!r}: python {' '.join(stage.arguments)} ended with {status}"
            )
        return True

    return ReadyStage(_with_arguments(stage, run_dir), carry_out)


def _with_arguments(stage: StageConfig, run_dir: Path) -> PlannedStage:
    return PlannedStage(
        name=stage.name,
        command=stage.command,
        run_dir=run_dir,
        configuration={"arguments": list(stage.arguments)},
        resumable=False,
    )
