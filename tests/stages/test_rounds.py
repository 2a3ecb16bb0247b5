"""What a user can get wrong about rounds is said before any process starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlstack.config.load import parse
from rlstack.config.rounds import DPOConfig, RejectionSamplingConfig
from rlstack.errors import ConfigError
from rlstack.stages import dpo, rejection_sampling
from tests.config.test_load import composed
from tests.tiny_model import write_tiny_model

COMMANDS = [
    ("dpo", DPOConfig, dpo.run),
    ("rejection_sampling", RejectionSamplingConfig, rejection_sampling.run),
]


@pytest.mark.parametrize(("command", "schema", "run"), COMMANDS)
def test_adapters_on_layers_that_are_not_there(
    tmp_path: Path, command: str, schema: Any, run: Callable[[Any], Any]
) -> None:
    write_tiny_model(tmp_path / "model")
    values = composed(
        command,
        f"model.path={tmp_path / 'model'}",
        f"run_dir={tmp_path / 'run'}",
        "data.train=[{type: file, path: none.jsonl}]",
        "data.max_prompt_tokens=32",
        "max_response_tokens=16",
        "rounds=1",
        "trainer=lora",
        "trainer.lora.target_modules=[qproj]",
    )
    with pytest.raises(ConfigError, match="target_modules: qproj; adapters can go on down_proj"):
        run(parse(schema, values))
    assert not (tmp_path / "run").exists()
