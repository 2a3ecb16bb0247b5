"""What is typed after `rlstack`, for Hydra: overrides, resuming, shell completion.

Imports no worker code: completion and `--cfg job` answer at once, and on a core-only install.
"""

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlstack.config.base import RunSchema
from rlstack.errors import ConfigError

PLAIN_OVERRIDE = re.compile(r"([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)=(.*)", re.DOTALL)
"""`a.b[0].c=value`; not +key, ~key, group/option@package or a flag."""

OWN_CONFIG_DIR = ("--config-dir", "-cd")
MULTIRUN = ("--multirun", "-m")
COMPLETION = ("-sc", "--shell-completion")


def hydra_arguments(arguments: list[str], *, schema: type[RunSchema]) -> list[str]:
    """The arguments as Hydra must get them.

    Keys that may not exist are added by force: then `parse`, which sees all mistakes together,
    explains them, and not Hydra, which stops at the first. `run_dir` moves Hydra's own files too.

    Raises:
        ConfigError: if the runs of a sweep would share a directory.
    """
    own_groups = any(a.startswith(OWN_CONFIG_DIR) for a in arguments)
    result: list[str] = []
    for argument in arguments:
        match = PLAIN_OVERRIDE.fullmatch(argument)
        if match is None:
            result.append(argument)
            continue
        key, value = re.sub(r"\[(\d+)\]", r".\1", match[1]), match[2]
        top = key.partition(".")[0]
        group = "." not in key and (own_groups or files("conf").joinpath(key).is_dir())
        known = key in schema.model_fields
        forced = top != "hydra" and not known and not group
        result.append(f"++{key}={value}" if forced else f"{key}={value}")
        if key == "run_dir":
            if any(a in MULTIRUN for a in arguments):
                raise ConfigError(
                    "run_dir: every run of a sweep has its own, inside hydra.sweep.dir; "
                    f"use hydra.sweep.dir={value}"
                )
            result.append(f"hydra.run.dir={value}")
    return result


RESUME = "resume="


def resume_target(arguments: list[str]) -> str | None:
    """RUN_DIR of `resume=RUN_DIR`, or `auto`, if it is among the arguments."""
    given = [a.removeprefix(RESUME) for a in arguments if a.startswith(RESUME)]
    return given[-1] if given and given[-1] != "null" else None


def without_resume(arguments: list[str]) -> list[str]:
    """The other arguments."""
    return [argument for argument in arguments if not argument.startswith(RESUME)]


def check_run_dir(composed: DictConfig) -> None:
    """Refuse `resume=auto` for a run directory that is new at every start.

    Raises:
        ConfigError: if `run_dir` is the one that Hydra names by the time.
    """
    values = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(values, dict)
    if "${hydra:" in str(values["run_dir"]):
        raise ConfigError(
            "resume=auto: give run_dir=DIR, the same one at every start; without it each start has "
            "a directory of its own, and nothing to go on from"
        )


def plain_values(composed: DictConfig) -> dict[str, Any]:
    """What Hydra composed, as plain dicts and lists with interpolations resolved.

    Those of `run_dir` are absolute, as it is: what they lead to may not be there yet.

    Raises:
        ConfigError: if an interpolation `${...}` leads nowhere.
    """
    composed = composed.copy()
    try:
        if isinstance(run_dir := composed.get("run_dir"), str):
            composed.run_dir = os.path.abspath(run_dir)
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellCompletion:
    """How to answer a shell: with words of ours, or by an app that is given `arguments`."""

    words: tuple[str, ...] = ()
    app: str | None = None
    arguments: tuple[str, ...] = ()
    line: str = ""
    """What the app must take for the line that was typed (COMP_LINE)."""


def completion(
    arguments: list[str], *, line: str, commands: tuple[str, ...], apps: tuple[str, ...]
) -> ShellCompletion | None:
    """What to do for Hydra's shell completion (`-sc query=bash`); None: it was not asked for.

    Hydra completes programs without commands: the command is cut out of the typed `line`.
    """
    asked = tuple(argument for argument in arguments if argument not in apps)
    if not asked or asked[0] not in COMPLETION:
        return None
    if not any(argument.startswith("query=") for argument in asked):
        return ShellCompletion(app=apps[0], arguments=asked)
    typed = re.fullmatch(r"(\s*\S+\s+)(\S+)\s+(.*)", line, re.DOTALL)
    if typed is None:
        return ShellCompletion(words=commands)
    program, command, rest = typed.groups()
    if command not in apps:
        return ShellCompletion()
    return ShellCompletion(app=command, arguments=asked, line=program + rest)
