"""What processes are told, where more than copying is done."""

from pathlib import Path
from typing import Literal

import pytest

from rlstack.commands.composing import composed_values
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.planning.phases import Transport
from tests.workers.conftest import model_config, rollout_config
from workers.engine.arguments import engine_arguments
from workers.launch.environment import engine_environment
from workers.specs import EngineSpec


@pytest.mark.parametrize(
    ("device", "chosen", "compiled"),
    [
        ("gpu", "auto", True),
        ("gpu", False, False),
        ("gpu", True, True),
        ("cpu", "auto", False),
        ("cpu", False, False),
        ("cpu", True, True),
    ],
)
def test_engines_compile_where_they_are_told_and_by_themselves_on_gpus(
    device: str, chosen: bool | Literal["auto"], compiled: bool
) -> None:
    spec = EngineSpec(
        model=model_config(Path("m")),
        rollout=rollout_config(compile=chosen),
        max_model_tokens=64,
        tensor_parallel=1,
        transport=Transport.SHARED_MEMORY,
        device=device,
        seed=0,
    )
    assert engine_arguments(spec).enforce_eager is not compiled
    environment = engine_environment(spec, threads=1)
    assert ("TORCH_COMPILE_DISABLE" in environment) is not compiled


def test_a_run_that_says_nothing_lets_the_device_decide() -> None:
    config = parse(
        RLConfig, composed_values("rl", ["experiment=gsm8k_grpo", "model.path=m", "run_dir=r"])
    )
    assert config.rollout.compile == "auto"
