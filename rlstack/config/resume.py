"""The configuration of a continued run: the one it was started with, and little else."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf

from rlstack.config.base import RunSchema
from rlstack.errors import ConfigError

Schema = TypeVar("Schema", bound=RunSchema)

AUTO = "auto"
"""`resume=auto`: go on where there is something to go on from, or else start."""

UNIMPORTANT = ("ray_address", "tracking.")
"""What a run learns nothing from: another cluster, other sinks."""
CHANGEABLE = ("total_steps", "epochs", *UNIMPORTANT)
"""What may differ from the first start: a longer run too."""


OF_THE_START = ("run_dir", "resume")
"""What says where a run is, and not what it is."""


def started_or_resumed(config: Schema) -> Schema:
    """For `resume=auto`: `config`, set to go on in its run directory, if the run has begun there.

    One that has saved nothing then starts anew.

    Raises:
        ConfigError: naming each key, if a run of another configuration has begun there.
    """
    values = config.model_dump(mode="json")
    run_dir = Path(values["run_dir"])
    saved = run_dir / "config.yaml"
    if not saved.is_file():
        return config
    changed = changes(yaml.safe_load(saved.read_text()), values, free=CHANGEABLE + OF_THE_START)
    if changed:
        raise ConfigError(
            "\n".join(
                [
                    f"resume=auto: in {run_dir} a run with another configuration has begun; choose "
                    "another run_dir, or take back the change:",
                    *changed,
                ]
            )
        )
    return config.model_copy(update={"resume": str(run_dir)})


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], *, free: tuple[str, ...]
) -> list[str]:
    """A line for each key that differs and does not begin as one of `free`."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"  {key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not key.startswith(free)
    ]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        yield ".".join(path), [str(entry) for entry in value]
    else:
        yield ".".join(path), value


def goes_on(run_dir: Path) -> bool:
    """Whether a run left something in `run_dir` to go on from: a checkpoint, or a round's rows."""
    patterns = ("checkpoints/step_*", "rounds/round_*")
    return any(any(run_dir.glob(pattern)) for pattern in patterns)


def resumed_values(run_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """RUN_DIR/config.yaml with `overrides` (key=value) applied, set to continue in `run_dir`.

    Raises:
        ConfigError: if there is no saved configuration, or an override would change the run.
    """
    saved = run_dir / "config.yaml"
    if not saved.is_file():
        raise ConfigError(f"resume: {run_dir} is not a run directory (it has no config.yaml)")
    wrong = [o for o in overrides if not o.startswith(CHANGEABLE)]
    if wrong:
        raise ConfigError(
            f"resume: a run continues with the configuration it was started with; leave out "
            f"{', '.join(wrong)} (only total_steps, epochs, ray_address and tracking.* may change)"
        )
    merged = OmegaConf.merge(
        OmegaConf.create(yaml.safe_load(saved.read_text())), OmegaConf.from_dotlist(overrides)
    )
    values = OmegaConf.to_container(merged)
    assert isinstance(values, dict)
    return {
        **{str(key): value for key, value in values.items()},
        "resume": str(run_dir),
        "run_dir": str(run_dir),
    }


def resumed_pipeline(run_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """The configuration that RUN_DIR was started with.

    Raises:
        ConfigError: if it has none, would be changed, or its paths lead elsewhere from here.
    """
    saved = run_dir / "config.yaml"
    values = yaml.safe_load(saved.read_text()) if saved.is_file() else None
    if not isinstance(values, dict) or "stages" not in values:
        raise ConfigError(f"resume: {run_dir} is no run directory of a pipeline")
    if overrides:
        raise ConfigError(
            f"resume: a pipeline goes on as it was started; leave out {', '.join(overrides)}"
        )
    if Path(values["run_dir"]).resolve() != run_dir.resolve():
        raise ConfigError(
            f"resume: this pipeline was started for {values['run_dir']}, and its stages name their "
            "inputs so; start it from the same folder, with its run directory where it was"
        )
    return {str(key): value for key, value in values.items()}
