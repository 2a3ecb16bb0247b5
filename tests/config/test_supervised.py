"""How long a supervised stage trains, and what it cannot be told to do."""

from typing import Any

import pytest

from rlstack.config.load import parse
from rlstack.config.supervised import SFTConfig
from rlstack.errors import ConfigError
from tests.config.test_load import SOURCE, composed


def sft_values(*overrides: str) -> dict[str, Any]:
    return composed("sft", "model.path=m", f"data.train=[{SOURCE}]", *overrides)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ((), 4),  # 100 rows, 32 a step
        (("epochs=2",), 7),
        (("epochs=0.5",), 2),
        (("data.prompts_per_step=25",), 4),
        (("data.prompts_per_step=128",), 1),
        (("total_steps=9",), 9),
        (("total_steps=9", "epochs=2"), 9),
    ],
)
def test_epochs_are_whole_steps_and_total_steps_decides(
    overrides: tuple[str, ...], steps: int
) -> None:
    assert parse(SFTConfig, sft_values(*overrides)).num_steps(100) == steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("epochs=0",), "epochs: "),
        (("total_steps=0",), "total_steps: "),
        (("data.train=[]",), "data.train: is empty"),
        (("train_on=first_turn",), "train_on: "),
        (
            ("placement.trainer_ranks=3",),
            r"placement.trainer_ranks: 3 does not divide the 32 rows of a step",
        ),
        (
            ("checkpoint.keep_best=eval/loss",),
            "checkpoint.keep_best: needs evaluations; set evaluation.every and data.eval",
        ),
        (
            ("checkpoint.keep_best=eval/loss", f"data.eval=[{SOURCE}]", "evaluation.every=0"),
            "checkpoint.keep_best: needs evaluations",
        ),
        (
            ("trainer.max_tokens_per_microbatch=1000",),
            r"1000 is less than the longest possible row, 1536 tokens "
            r"\(data.max_prompt_tokens \+ max_response_tokens\)",
        ),
    ],
)
def test_problems(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(SFTConfig, sft_values(*overrides))
