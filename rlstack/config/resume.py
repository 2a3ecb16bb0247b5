"""The configuration of a continued run: the one it was started with, and little else."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rlstack.errors import ConfigError

UNIMPORTANT = ("ray_address", "tracking.")
"""What a run learns nothing from: another cluster, other sinks."""
CHANGEABLE = ("total_steps", "epochs", *UNIMPORTANT)
"""What may differ from the first start: a longer run too."""


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
