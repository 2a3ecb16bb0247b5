"""The preflight of a run: what can be checked of its directory and model before anything starts."""

from pathlib import Path

from rlstack.config.model import ModelConfig
from rlstack.config.run import RLConfig
from rlstack.config.supervised import SupervisedConfig
from rlstack.config.trainer import LoRAConfig
from rlstack.data.tokenizer import Tokenizer
from rlstack.errors import ConfigError
from rlstack.run.folders import check_lasting
from workers.models.adapter_targets import check_adapters
from workers.models.preflight import (
    check_model,
    check_positions,
    check_scalar_model,
    load_tokenizer,
)


def preflight(
    config: RLConfig | SupervisedConfig, *, command: str, longest_row: int, scalar: bool = False
) -> Tokenizer:
    """Check the run directory and the model of a run that trains; its tokenizer.

    longest_row: tokens. scalar: whether a model of scores is trained.

    Raises:
        ConfigError: naming the key and the fix.
    """
    check_lasting(Path(config.run_dir))
    if config.resume is None:
        check_unused(Path(config.run_dir), command=command)
    return check_main_model(
        config.model, lora=config.trainer.lora, longest_row=longest_row, scalar=scalar
    )


def check_main_model(
    model: ModelConfig, *, longest_row: int, lora: LoRAConfig | None = None, scalar: bool = False
) -> Tokenizer:
    """Check the model that is to be trained or sampled; its tokenizer.

    Raises:
        ConfigError: if it cannot be read, lacks what adapters are for, or takes no row so long.
    """
    if scalar:
        check_scalar_model(model, key="model.path")
    else:
        check_model(model)
    check_adapters(model, lora, key="trainer.lora")
    check_positions(model, longest_row=longest_row)
    return load_tokenizer(model)


def check_unused(run_dir: Path, *, command: str) -> None:
    """Refuse to write a new run into an old one's files.

    Raises:
        ConfigError: if `run_dir` holds a run already.
    """
    metrics = run_dir / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        raise ConfigError(
            f"run_dir: {run_dir} holds a run already; continue it with rlstack {command} "
            f"resume={run_dir}, or choose another run_dir"
        )
