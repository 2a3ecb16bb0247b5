"""What DeepSpeed is told."""

from pathlib import Path

import pytest

from tests.workers.conftest import model_config, trainer_config
from workers.ranks.deepspeed_config import deepspeed_config, frozen_config

FP32 = {"grad_accum_dtype": "fp32"}


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


@pytest.mark.parametrize(("zero_stage", "expected"), [(0, {}), *((n, FP32) for n in (1, 2, 3))])
def test_gradients_are_added_up_in_float32_where_deepspeed_can(
    zero_stage: int, expected: dict[str, str]
) -> None:
    for dtype in ("float32", "bfloat16"):
        model = model_config(Path("m")).model_copy(update={"dtype": dtype})
        config = deepspeed_config(model, trainer_config(zero_stage=zero_stage))
        assert config["data_types"] == expected


@pytest.mark.parametrize("offload_optimizer", [False, True])
def test_the_optimizer_is_torchs_and_needs_no_compiler(offload_optimizer: bool) -> None:
    trainer = trainer_config(zero_stage=2, offload_optimizer=offload_optimizer)
    config = deepspeed_config(model_config(Path("m")), trainer)
    assert config["optimizer"]["type"] == "AdamW"
    assert config["optimizer"]["params"]["torch_adam"]
    assert config["optimizer"]["params"]["fused"]
    assert not config["zero_force_ds_cpu_optimizer"]
