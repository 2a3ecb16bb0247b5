"""Reference logprobs are computed once, read from disk, and never those of something else."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rlstack.data import reference_cache
from rlstack.data.reference_cache import ReferenceCache, fingerprint
from rlstack.errors import CheckpointError


class Reference:
    """Says twice and three times the sample's number; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def __call__(self, samples: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(len(samples))
        return np.array([[2 * int(s), 3 * int(s)] for s in samples], dtype=np.float32)


def opened(folder: Path, samples: Sequence[str], reference: Reference | None, model: str = "m"):  # noqa: ANN201
    cache = ReferenceCache[str](folder, model=model)
    tokens = [np.array([int(s)]) for s in samples]
    asyncio.run(cache.add("train", samples, tokens=tokens, compute=reference))
    return cache


def test_computed_in_parts_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_cache, "SAMPLES_PER_CALL", 4)
    samples, reference = [str(n) for n in range(10)], Reference()
    cache = opened(tmp_path, samples, reference)
    assert reference.asked == [4, 4, 2]
    assert cache.of(["7", "0", "7"]).tolist() == [[14, 21], [0, 0], [14, 21]]
    again = opened(tmp_path, samples, None)
    assert again.of(["9"]).dtype == np.float32
    assert again.of(["9"]).tolist() == [[18, 27]]


def test_another_model_or_other_tokens_are_computed_anew(tmp_path: Path) -> None:
    reference = Reference()
    opened(tmp_path, ["1", "2"], reference)
    opened(tmp_path, ["1", "2"], reference, model="other")
    opened(tmp_path, ["1", "3"], reference)
    assert reference.asked == [2, 2, 2]
    with pytest.raises(CheckpointError, match="the reference logprobs of this round are gone"):
        opened(tmp_path, ["4"], None)


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    class Failing(Reference):
        async def __call__(self, samples: Sequence[str]) -> NDArray[np.float32]:
            raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError):
        opened(tmp_path, ["1"], Failing())
    assert not list(tmp_path.glob("train-*"))
    assert opened(tmp_path, ["1"], Reference()).of(["1"]).tolist() == [[2, 3]]


def test_no_samples_need_no_file(tmp_path: Path) -> None:
    opened(tmp_path, [], None)
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_knows_where_a_row_ends() -> None:
    first = fingerprint("m", [np.array([1, 2]), np.array([3])])
    assert first != fingerprint("m", [np.array([1]), np.array([2, 3])])
    assert first == fingerprint("m", [np.array([1, 2], dtype=np.int32), np.array([3])])
