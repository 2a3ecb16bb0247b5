"""`rlstack merge`: one model out of several of one architecture, such as experts of domains."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rlstack.algorithms import merging
from rlstack.commands.merge_files import merge_files
from rlstack.errors import ConfigError
from rlstack.run.progress import Summary

GIB = 2**30
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare")
NEEDS_BASE = ("task_arithmetic", "ties", "dare")


def run(arguments: Sequence[str]) -> Summary:
    """Carry out `rlstack merge ARGUMENTS`; the model is the folder that was written.

    Raises:
        ConfigError: if options do not fit the method, or the models do not fit each other.
        SystemExit: if the arguments are wrong.
    """
    options = parser().parse_args(arguments)
    method = chosen_method(options)
    base = [options.base] if options.base is not None else []
    models = [model_folder(model) for model in (*base, *options.models)]
    try:
        merge_files(
            models,
            options.output,
            method=method,
            max_shard_bytes=int(options.max_shard_gib * GIB),
        )
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        raise ConfigError(f"merge: {str(error).removeprefix('merge: ')}") from error
    return Summary(model=options.output)


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    result = argparse.ArgumentParser(
        prog="rlstack merge",
        description="Merge the weights of models of one architecture, tensor by tensor. "
        "Configuration and tokenizer are those of the first model, or of the base.",
    )
    result.add_argument("output", type=Path, metavar="OUTPUT", help="folder that will be written")
    result.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="model folder or run directory"
    )
    result.add_argument("--method", choices=METHODS, default="linear")
    result.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="one a model; default: equal, sum 1"
    )
    result.add_argument(
        "--base", type=Path, metavar="MODEL", help=f"what they grew from: {', '.join(NEEDS_BASE)}"
    )
    result.add_argument(
        "--fraction", type=float, metavar="F", help="slerp: 0 first, 1 second (0.5)"
    )
    result.add_argument(
        "--density", type=float, metavar="D", help="ties: share of each change that is kept (0.2)"
    )
    result.add_argument("--scale", type=float, metavar="S", help="ties: of the merged change (1)")
    result.add_argument(
        "--drop-probability", type=float, metavar="P", help="dare: share that is dropped (0.9)"
    )
    result.add_argument("--seed", type=int, metavar="N", help="dare: of what is dropped (0)")
    result.add_argument("--max-shard-gib", type=float, default=5.0, metavar="GIB")
    return result


def chosen_method(options: argparse.Namespace) -> merging.Method:
    """The method with its options; with a base, that is the first model of every call.

    Raises:
        ConfigError: if an option is missing, wrong or has no meaning for the method.
    """
    _check_options(options)
    num_models = len(options.models)
    weights: list[float] = options.weights or [1 / num_models] * num_models
    match options.method:
        case "linear":
            return lambda _, tensors: merging.linear(tensors, weights=weights)
        case "slerp":
            fraction = _given(options.fraction, 0.5)
            return lambda _, pair: merging.slerp(pair[0], pair[1], fraction=fraction)
        case "task_arithmetic":
            return lambda _, tensors: merging.task_arithmetic(
                tensors[0], tensors[1:], weights=weights
            )
        case "ties":
            density, scale = _given(options.density, 0.2), _given(options.scale, 1.0)
            return lambda _, tensors: merging.ties(
                tensors[0], tensors[1:], weights=weights, density=density, scale=scale
            )
        case _:
            probability = _given(options.drop_probability, 0.9)
            seed: int = options.seed or 0
            return lambda name, tensors: merging.dare(
                tensors[0],
                tensors[1:],
                weights=weights,
                drop_probability=probability,
                seed=seed,
                name=name,
            )


def model_folder(path: Path) -> Path:
    """`path` of a run directory means the model that it exported.

    Raises:
        ConfigError: if there is no such folder.
    """
    if (path / "export").is_dir():
        return path / "export"
    if not path.is_dir():
        raise ConfigError(f"merge: {path} is no folder; name model folders or run directories")
    return path


def _check_options(options: argparse.Namespace) -> None:
    method, num_models = options.method, len(options.models)
    meant_for = {
        "base": NEEDS_BASE,
        "weights": tuple(name for name in METHODS if name != "slerp"),
        "fraction": ("slerp",),
        "density": ("ties",),
        "scale": ("ties",),
        "drop_probability": ("dare",),
        "seed": ("dare",),
    }
    for name, methods in meant_for.items():
        if getattr(options, name) is not None and method not in methods:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"merge: {flag} is for {', '.join(methods)}, not for {method}")
    if method in NEEDS_BASE and options.base is None:
        raise ConfigError(f"merge: {method} needs --base, the model that the others grew from")
    if method == "slerp" and num_models != 2:
        raise ConfigError(f"merge: slerp is between 2 models, got {num_models}; try linear")
    if method == "linear" and num_models < 2:
        raise ConfigError("merge: one model is nothing to merge; name two or more")
    if options.weights is not None and len(options.weights) != num_models:
        raise ConfigError(
            f"merge: {len(options.weights)} --weights for {num_models} models; give one each"
        )
    _check_range(options.density, "--density", "within (0, 1]", lambda x: 0 < x <= 1)
    _check_range(options.fraction, "--fraction", "within [0, 1]", lambda x: 0 <= x <= 1)
    _check_range(
        options.drop_probability, "--drop-probability", "within [0, 1)", lambda x: 0 <= x < 1
    )
    _check_range(options.max_shard_gib, "--max-shard-gib", "above 0", lambda x: x > 0)


def _check_range(
    value: float | None, flag: str, expected: str, holds: Callable[[float], bool]
) -> None:
    if value is not None and not holds(value):
        raise ConfigError(f"merge: {flag} {value:g} must be {expected}")


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
