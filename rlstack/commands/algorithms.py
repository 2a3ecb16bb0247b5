"""`rlstack algorithms`: every method, its formula, source and defaults, and how to select it.

Written from what runs: the files of conf/algorithm and the docstrings of `rlstack.algorithms`.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from types import ModuleType
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from rlstack.algorithms import (
    episodic_memory,
    filtration,
    gae,
    kl,
    merging,
    parts,
    preference_losses,
    reference_updates,
    reward_reliability,
    shaping,
    supervised_losses,
    value_losses,
)

INTRODUCTION = """\
# Algorithms

Written by `rlstack algorithms` from the configuration files and the docstrings.

A method is a choice of parts: an advantage, a policy loss, a reduction, and a correction for the
mismatch between engine and trainer. `algorithm=NAME` chooses all of them, `algorithm/PART=NAME`
one, `algorithm.key=value` sets a number. Formulas use r = policy / old policy and A = advantage.
"""

Functions = Mapping[str, Callable[..., Any]]

PARTS: dict[str, Functions] = {
    group: {name: part.function for name, part in table.items()}
    for group, table in {
        "advantage": parts.ADVANTAGES,
        "policy_loss": parts.POLICY_LOSSES,
        "reduction": parts.REDUCTIONS,
        "correction": parts.CORRECTIONS,
    }.items()
}
"""Group -> option, or the `name` that several options share -> function."""

OBJECTIVES: Functions = {
    "dpo": preference_losses.dpo,
    "robust_dpo": preference_losses.robust_dpo,
    "ipo": preference_losses.ipo,
    "orpo": preference_losses.orpo,
    "simpo": preference_losses.simpo,
    "kto": preference_losses.kto,
}
"""Of `rlstack dpo`: option -> function."""

LIBRARY: dict[str, ModuleType] = {
    "Generalised advantage estimation": gae,
    "Value losses": value_losses,
    "Filtration": filtration,
    "How far to trust a reward": reward_reliability,
    "Reward shaping": shaping,
    "Reference updates": reference_updates,
    "Preference losses": preference_losses,
    "Supervised losses and distillation": supervised_losses,
    "Episodic memory": episodic_memory,
    "Merging": merging,
}
"""Functions behind single keys, and those that no key of `rlstack rl` selects."""


def run(arguments: list[str]) -> None:
    """Print the page."""
    print("usage: rlstack algorithms\n" if arguments else catalog_page(), end="")


def catalog_page() -> str:
    """The catalog as Markdown."""
    sections = [INTRODUCTION, "## Methods: `algorithm=NAME`\n", _table(METHOD_HEAD, _methods())]
    for group, functions in PARTS.items():
        sections += [
            f"## `algorithm/{group}=NAME`\n",
            _table(OPTION_HEAD, _options(f"algorithm/{group}", functions)),
        ]
    sections += [
        "## `objective=NAME` of `rlstack dpo`\n",
        _table(("name", "method", *OPTION_HEAD[1:]), _objectives()),
        "## `algorithm.kl.estimator=NAME`\n",
        f"{inspect.getdoc(kl)}\n",
        _table(("name", "what it is"), _estimators()),
    ]
    for title, module in LIBRARY.items():
        sections += [
            f"## {title}: `{module.__name__}`\n",
            _table(("function", "formula and source"), _functions(module)),
        ]
    return "\n".join(sections)


OPTION_HEAD = ("name", "formula and source", "defaults")
METHOD_HEAD = ("name", "method", *PARTS, "and")


def _methods() -> Iterator[tuple[str, ...]]:
    names = sorted(
        file.name.removesuffix(".yaml")
        for file in files("conf").joinpath("algorithm").iterdir()
        if file.name.endswith(".yaml")
    )
    plain, _ = _composed("grpo")
    for name in names:
        values, choices = _composed(name)
        others = {key: value for key, value in values.items() if key not in PARTS}
        changed = [
            f"{key}={value}"
            for key, value in _leaves(others)
            if dict(_leaves(plain)).get(key) != value
        ]
        parts = [choices[f"algorithm/{group}"] for group in PARTS]
        yield (f"`{name}`", _comment(f"algorithm/{name}"), *parts, ", ".join(changed))


def _composed(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The algorithm group as `rl` gets it, and the option chosen for each of its parts."""
    with initialize_config_module(version_base="1.3", config_module="conf"):
        config = compose("rl", overrides=[f"algorithm={name}"], return_hydra_config=True)
    values = OmegaConf.to_container(config.algorithm, resolve=True)
    assert isinstance(values, dict)
    choices = config.hydra.runtime.choices
    return (
        {str(key): value for key, value in values.items()},
        {f"algorithm/{group}": str(choices[f"algorithm/{group}"]) for group in PARTS},
    )


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _comment(option: str) -> str:
    """What the first lines of an option's file say."""
    text = files("conf").joinpath(f"{option}.yaml").read_text()
    lines = re.match(r"(?:#.*\n)*", text)
    assert lines is not None
    return " ".join(line.removeprefix("#").strip() for line in lines[0].splitlines())


def _options(group: str, functions: Functions) -> Iterator[tuple[str, ...]]:
    """The options of a configuration group, `algorithm/reduction` or the like."""
    folder = files("conf").joinpath(group)
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        values = _option_values(group, file.name)
        defaults = ", ".join(f"{k}={v}" for k, v in values.items() if k != "name")
        name = file.name.removesuffix(".yaml")
        function = functions.get(name) or functions[values["name"]]
        yield f"`{name}`", _summary(function), defaults


def _objectives() -> Iterator[tuple[str, ...]]:
    for name, *rest in _options("objective", OBJECTIVES):
        yield name, _comment(f"objective/{name.strip('`')}"), *rest


def _estimators() -> Iterator[tuple[str, ...]]:
    for name, function in parts.KL_ESTIMATORS.items():
        yield f"`{name}`", _summary(function)


def _option_values(group: str, file_name: str) -> dict[str, Any]:
    """The keys of an option's file, with those of the files it builds on."""
    text = files("conf").joinpath(group, file_name).read_text()
    values: dict[str, Any] = yaml.safe_load(text)
    inherited: dict[str, Any] = {}
    for base in values.pop("defaults", []):
        if base != "_self_":
            inherited |= _option_values(group, f"{base}.yaml")
    return inherited | values


def _functions(module: ModuleType) -> Iterator[tuple[str, ...]]:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not name.startswith("_"):
            yield f"`{name}`", _summary(function)


def _summary(function: Callable[..., Any]) -> str:
    """The first paragraph of the docstring."""
    text = inspect.getdoc(function)
    assert text, f"{function} has no docstring"
    return " ".join(text.split("\n\n")[0].split())


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in cells)
