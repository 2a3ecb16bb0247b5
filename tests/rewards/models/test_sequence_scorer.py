"""A model that several processes hold together: each makes as many passes as the others."""

from pathlib import Path
from typing import Any

import pytest

from rewards.models.sequence_scorer import SequenceScorer
from tests.rewards.models.test_preference_model import write_reward_model


@pytest.mark.parametrize("num_rows", [0, 3])
def test_passes_are_agreed_on_before_the_first_and_filled_up(tmp_path: Path, num_rows: int) -> None:
    scorer = SequenceScorer(
        write_reward_model(tmp_path / "model", seed=0), max_tokens=16, max_tokens_per_batch=16
    )
    rows = scorer.token_ids(["a"] * num_rows, ["b" * 9] * num_rows)
    alone = scorer.score(rows)
    events: list[str] = []

    def wrap(model: Any) -> Any:
        def counted(**inputs: Any) -> Any:
            events.append("pass")
            return model(**inputs)

        return counted

    def num_passes(own: int) -> int:
        events.append(f"needs {own}")
        return 5

    scorer.share_model(wrap, num_passes)
    assert scorer.score(rows) == alone
    assert events == [f"needs {num_rows}"] + ["pass"] * 5
