"""Training never sees a held-out problem."""

from collections.abc import Sequence

import numpy as np
import pytest

from rlstack.data.dataset import Dataset, SkipReport, Source
from rlstack.data.held_out import REASON, without_held_out
from rlstack.errors import DataError
from rlstack.types import Prompt


def prompts(*texts: str) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(
            prompt_id=f"row:{index}",
            data_source="words",
            text=text,
            token_ids=np.array([ord(character) for character in text]),
            answer=None,
            reward=None,
            metadata={},
        )
        for index, text in enumerate(texts)
    )


def dataset(*sources: Sequence[Prompt], skipped: int = 0) -> Dataset[Prompt]:
    return Dataset(
        sources=tuple(
            Source(name=f"source {index}", weight=None, samples=tuple(samples))
            for index, samples in enumerate(sources)
        ),
        skipped=SkipReport(counts={"prompt too long": skipped}, messages=("rows.jsonl:3",)),
    )


def test_shared_problems_are_left_out_of_training_and_counted() -> None:
    train = dataset(prompts("sun", "moon", "sun"), prompts("star", "tree"), skipped=4)
    left = without_held_out(train, dataset(prompts("sun", "tree")))
    assert [prompt.text for prompt in left.prompts] == ["moon", "star"]
    assert left.skipped.counts == {"prompt too long": 4, REASON: 3}
    assert left.skipped.messages == ("rows.jsonl:3",)


def test_a_source_without_rows_left_is_dropped() -> None:
    left = without_held_out(dataset(prompts("sun"), prompts("star")), dataset(prompts("sun")))
    assert [source.name for source in left.sources] == ["source 1"]


def test_disjoint_data_is_unchanged() -> None:
    train = dataset(prompts("sun"))
    assert without_held_out(train, dataset(prompts("moon"))) is train
    assert without_held_out(train, dataset()) is train


def test_nothing_left_to_train_on_is_refused_with_the_fix() -> None:
    same = dataset(prompts("sun", "moon"))
    with pytest.raises(DataError, match=r"all 2 prompts are in data\.eval too.*data\.eval=\[\]"):
        without_held_out(same, same)
