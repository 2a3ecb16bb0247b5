"""What DeepSpeed is told."""

from pathlib import Path

import pytest

from tests.workers.conftest import model_config, trainer_config
from workers.ranks.deepspeed_config import deepspeed_config, frozen_config


@pytest.mark.parametrize("offload", [False, True])
def test_frozen_models_are_sharded_as_trained_ones_are_and_have_no_optimizer(offload: bool) -> None:
    trainer = trainer_config(zero_stage=3, offload_parameters=offload)
    trained = deepspeed_config(model_config(Path("m")), trainer)
    frozen = frozen_config("float32", offload_parameters=offload)
    assert "optimizer" not in frozen
    assert frozen["zero_optimization"] == trained["zero_optimization"]
    assert ("offload_param" in frozen["zero_optimization"]) == offload
    assert frozen["bf16"] == {"enabled": False}
    assert frozen_config("bfloat16")["bf16"] == {"enabled": True}
