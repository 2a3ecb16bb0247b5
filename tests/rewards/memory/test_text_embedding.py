"""Hashed n-grams and the index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.memory.text_embedding import NearestIndex, hashed_ngrams


def test_shared_wording_is_near() -> None:
    texts = ["the answer is twelve", "The  answer is twelve.", "bananas grow quickly", ""]
    same, like, other, empty = hashed_ngrams(texts)
    assert float(same @ like) > 0.7 > 0.3 > abs(float(same @ other))
    assert np.linalg.norm([same, like, other, empty], axis=1) == pytest.approx([1, 1, 1, 1])


@given(st.lists(st.text(), max_size=5))
@settings(max_examples=40, deadline=None)
def test_any_text_has_a_finite_vector(texts: list[str]) -> None:
    vectors = hashed_ngrams(texts, size=64)
    assert vectors.shape == (len(texts), 64)
    assert np.isfinite(vectors).all()


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_the_nearest_are_those_of_a_full_sort(count: int, wanted: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count + 1, 5))
    index = NearestIndex()
    for number, vector in enumerate(vectors[1:]):
        index.add(str(number), vector)
        index.add(str(number), -vector)  # keeps the first
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(unit[1:] @ unit[0]))[:wanted]
    assert index.nearest(vectors[0], wanted) == [str(row) for row in order]


def test_forgetting_keeps_the_newest() -> None:
    index = NearestIndex()
    assert index.nearest(np.ones(2), 3) == []
    for number in range(6):
        index.add(str(number), np.array([1.0, number]))
    index.keep_newest(2)
    assert (len(index), "3" in index, "4" in index) == (2, False, True)
    index.add("6", np.array([1.0, 0.0]))
    assert index.nearest(np.array([1.0, 0.0]), 9) == ["6", "4", "5"]


def test_many_names_are_searched_by_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not exact: but a vector that is there is found first."""
    monkeypatch.setattr("rewards.memory.text_embedding.EXACT_UP_TO", 100)
    vectors = np.random.default_rng(0).normal(size=(400, 16))
    index = NearestIndex()
    for number, vector in enumerate(vectors):
        index.add(str(number), vector)
    found = [index.nearest(vector, 3)[0] for vector in vectors[::20]]
    assert found == [str(number) for number in range(0, 400, 20)]
