"""The demos' devices."""

from pathlib import Path

import pytest

from rlstack.commands.composing import composed_values
from rlstack.commands.quickstart import warm_start
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.config.supervised import SFTConfig

CONF = Path(__file__).resolve().parents[2] / "conf" / "experiment"


def test_the_warm_start_is_where_the_rest_is() -> None:
    overrides = ["placement.trainer_ranks=1", "placement.device=gpu"]
    rl = ["experiment=quickstart", *overrides, "model.path=m", "run_dir=r"]
    placement = parse(RLConfig, composed_values("rl", rl)).placement
    sft = parse(SFTConfig, composed_values("sft", warm_start(Path("r"), placement))).placement
    assert (sft.device, sft.trainer_ranks) == ("gpu", 1)


@pytest.mark.parametrize(
    "name", ["quickstart", "sft_quickstart", "rlhf_quickstart", "domain_experts"]
)
def test_demos_take_the_device_that_is_there(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    assert "device: auto" in text or "placement.device=auto" in text
    assert "device: cpu" not in text
    assert "device=cpu" not in text
