import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlstack.data.dataset import Dataset, SkipReport, Source
from rlstack.data.sampler import PromptSampler, SamplerState
from rlstack.errors import CheckpointError, DataError
from rlstack.types import Prompt


def prompt(prompt_id: str, **metadata: Any) -> Prompt:
    return Prompt(
        prompt_id=prompt_id,
        data_source="rows",
        text="x",
        token_ids=np.array([1], dtype=np.int64),
        answer=None,
        reward=None,
        metadata=metadata,
    )


def dataset(*sources: tuple[Sequence[Prompt], float | None]) -> Dataset[Prompt]:
    return Dataset(
        sources=tuple(
            Source(name=f"s{i}", weight=weight, samples=tuple(samples))
            for i, (samples, weight) in enumerate(sources)
        ),
        skipped=SkipReport(counts={}, messages=()),
    )


def rows(name: str, num_rows: int) -> list[Prompt]:
    return [prompt(f"{name}:{i}") for i in range(num_rows)]


def sampler(
    data: Dataset[Prompt], *, seed: int = 0, shuffle: bool = True, curriculum: str | None = None
) -> PromptSampler[Prompt]:
    return PromptSampler(data, seed=seed, shuffle=shuffle, curriculum=curriculum)


def ids(prompts: Sequence[Prompt]) -> list[str]:
    return [p.prompt_id for p in prompts]


def test_file_order_over_epochs_without_shuffling() -> None:
    data = dataset((rows("a", 2), None), (rows("b", 1), None))
    taken = ids(sampler(data, shuffle=False).take(7))
    assert taken == ["a:0", "a:1", "b:0", "a:0", "a:1", "b:0", "a:0"]


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**32))
def test_every_epoch_is_a_permutation(num_rows: int, num_epochs: int, seed: int) -> None:
    stream = sampler(dataset((rows("a", num_rows), None)), seed=seed)
    for _ in range(num_epochs):
        assert sorted(ids(stream.take(num_rows))) == sorted(ids(rows("a", num_rows)))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    data = dataset((rows("a", 50), None))
    stream = sampler(data, seed=1)
    first, second = ids(stream.take(50)), ids(stream.take(50))
    assert first != second
    assert first == ids(sampler(data, seed=1).take(50))
    assert first != ids(sampler(data, seed=2).take(50))
    assert first != ids(data.prompts)


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    """Any dataset of one to three sources, with any order."""
    weights = st.none() | st.floats(0.1, 10)
    sources = [
        ([prompt(f"{i}:{j}", level=draw(st.integers(0, 3))) for j in range(num)], draw(weights))
        for i, num in enumerate(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    ]
    return {
        "data": dataset(*sources),
        "seed": draw(st.integers(0, 100)),
        "shuffle": draw(st.booleans()),
        "curriculum": draw(st.sampled_from([None, "level"])),
    }


@given(settings(), st.lists(st.integers(0, 12), max_size=6))
def test_any_split_of_takes_with_a_resume_at_each_gives_the_same_sequence(
    order: dict[str, Any], splits: list[int]
) -> None:
    whole = ids(sampler(**order).take(sum(splits)))
    resumed: list[str] = []
    state = sampler(**order).state()
    for num_samples in splits:
        stream = sampler(**order)
        stream.restore(SamplerState(**json.loads(json.dumps(asdict(state)))))
        resumed += ids(stream.take(num_samples))
        state = stream.state()
    assert resumed == whole


def test_restoring_goes_back_as_well() -> None:
    stream = sampler(dataset((rows("a", 5), None)))
    stream.take(3)
    state = stream.state()
    expected = ids(stream.take(9))
    stream.restore(state)
    assert ids(stream.take(9)) == expected


def test_state_survives_json() -> None:
    stream = sampler(dataset((rows("a", 2), 1.0), (rows("b", 2), 3.0)))
    stream.take(8)
    assert stream.state().taken == (2, 6)
    assert SamplerState(**json.loads(json.dumps(asdict(stream.state())))) == stream.state()


@pytest.mark.parametrize(
    "other",
    [
        sampler(dataset((rows("a", 4), 1.0), (rows("b", 2), 1.0))),
        sampler(dataset((rows("c", 3), 1.0), (rows("b", 2), 1.0))),
        sampler(dataset((rows("a", 3), 1.0), (rows("b", 2), 2.0))),
        sampler(dataset((rows("a", 3), None), (rows("b", 2), None))),
        sampler(dataset((rows("a", 3), 1.0), (rows("b", 2), 1.0)), seed=1),
        sampler(dataset((rows("a", 3), 1.0), (rows("b", 2), 1.0)), shuffle=False),
    ],
)
def test_state_of_other_data_or_settings_is_refused(other: PromptSampler[Prompt]) -> None:
    same = dataset((rows("a", 3), 1.0), (rows("b", 2), 1.0))
    sampler(same).restore(sampler(same).state())
    with pytest.raises(CheckpointError, match="written with other training data"):
        sampler(same).restore(other.state())


def test_curriculum_is_ascending_and_stable_in_every_epoch() -> None:
    levels = [2, 0, 1, 0, 2, 1]
    data = dataset(([prompt(f"a:{i}", level=level) for i, level in enumerate(levels)], None))
    stream = sampler(data, shuffle=False, curriculum="level")
    expected = ["a:1", "a:3", "a:2", "a:5", "a:0", "a:4"]
    assert ids(stream.take(12)) == expected * 2


def test_curriculum_shuffles_only_equal_rows() -> None:
    levels = [i % 2 for i in range(40)]
    data = dataset(([prompt(f"a:{i}", level=level) for i, level in enumerate(levels)], None))
    stream = sampler(data, curriculum="level")
    first, second = stream.take(40), stream.take(40)
    assert [p.metadata["level"] for p in first] == sorted(levels)
    assert [p.metadata["level"] for p in second] == sorted(levels)
    assert ids(first) != ids(second)


@pytest.mark.parametrize("value", [None, "hard", float("nan")])
def test_curriculum_names_rows_without_a_number(value: Any) -> None:
    data = dataset(([prompt("a:0", level=1), prompt("a:1", level=value), prompt("a:2")], None))
    message = (
        "data.curriculum: 2 of 3 rows have no number in metadata 'level': a:1, a:2; "
        "add it to them or set data.curriculum=null"
    )
    with pytest.raises(DataError, match=message):
        sampler(data, curriculum="level")


def test_curriculum_names_twenty_rows_at_most() -> None:
    with pytest.raises(DataError, match="a:18, a:19 and 1,180 more; add it"):
        sampler(dataset((rows("a", 1200), None)), curriculum="level")


def test_weights_interleave_evenly() -> None:
    data = dataset((rows("a", 2), 3.0), (rows("b", 5), 1.0))
    taken = ids(sampler(data, shuffle=False).take(8))
    assert taken == ["a:0", "a:1", "b:0", "a:0", "a:1", "a:0", "b:1", "a:1"]


def test_an_unweighted_source_in_a_mixture_weighs_its_number_of_rows() -> None:
    data = dataset((rows("a", 6), None), (rows("b", 9), 2.0))
    taken = Counter(name[0] for name in ids(sampler(data).take(80)))
    assert taken == {"a": 60, "b": 20}


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 10)), min_size=2, max_size=4),
    st.integers(0, 200),
)
def test_mixture_follows_the_weights_without_replacement(
    sources: list[tuple[int, float]], num_samples: int
) -> None:
    data = dataset(*((rows(str(i), num), weight) for i, (num, weight) in enumerate(sources)))
    taken = ids(sampler(data).take(num_samples))
    total = sum(weight for _, weight in sources)
    for i, (num_rows, weight) in enumerate(sources):
        own = [name for name in taken if name.startswith(f"{i}:")]
        assert abs(len(own) - num_samples * weight / total) < len(sources)
        for start in range(0, len(own) - num_rows + 1, num_rows):
            assert len(set(own[start : start + num_rows])) == num_rows


def test_sources_of_equal_size_are_shuffled_differently() -> None:
    data = dataset((rows("a", 30), 1.0), (rows("b", 30), 1.0))
    taken = ids(sampler(data).take(60))
    first = [name[2:] for name in taken if name.startswith("a")]
    second = [name[2:] for name in taken if name.startswith("b")]
    assert first != second


def test_an_empty_dataset() -> None:
    with pytest.raises(DataError, match="cannot sample from an empty dataset"):
        sampler(dataset())
