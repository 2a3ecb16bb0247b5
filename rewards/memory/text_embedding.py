"""Texts as vectors, and the nearest of many vectors; for rewards that compare texts."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlstack.errors import RewardError

Vectors = NDArray[np.floating[Any]]
Embedder = Callable[[Sequence[str]], Vectors]
"""Texts to float [len(texts), D], the same D in every call."""

EXACT_UP_TO = 10_000

_NGRAM_CHARS = (3, 4, 5)


def hashed_ngrams(texts: Sequence[str], *, size: int = 1024) -> Vectors:
    """Counts of character 3- to 5-grams, hashed to `size` places with signs, unit length.

    float32 [len(texts), size]. Needs no model; texts that share wording are near, texts that share
    only meaning are not. Source of the hashing: Weinberger et al., arXiv 0902.2206.
    """
    vectors = np.zeros((len(texts), size), dtype=np.float32)
    for row, text in enumerate(texts):
        # The edges count: they tell a short text from a part of a longer one, and an empty text is
        # no zero vector, which would be unlike every failure.
        padded = f"\x02\x02{' '.join(text.casefold().split())}\x03\x03".encode("utf-8", "replace")
        for length in _NGRAM_CHARS:
            for start in range(len(padded) - length + 1):
                # Not hash(): it differs from process to process.
                code = zlib.crc32(padded[start : start + length])
                vectors[row, (code >> 1) % size] += 1.0 if code & 1 else -1.0
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def embed(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """The embedder's vectors, checked.

    Raises:
        RewardError: if they are not finite numbers of the shape [len(texts), D].
    """
    vectors = np.asarray(embedder(texts))
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise RewardError(
            f"the embedder gave shape {list(vectors.shape)} for {len(texts)} texts; expected "
            f"[{len(texts)}, D]"
        )
    if not np.issubdtype(vectors.dtype, np.floating) or not np.isfinite(vectors).all():
        raise RewardError(f"the embedder gave {vectors.dtype} with values that are not finite")
    return vectors


class NearestIndex:
    """Names by vector; finds those with the largest cosine, through usearch.

    Exact up to `EXACT_UP_TO` names, beyond that by usearch's graph, which may miss a near one.
    """

    def __init__(self) -> None:
        self._keys: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._next_key = 0
        self._index: Any = None

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, name: str, vector: Vectors) -> None:
        """Add a name; its vector is float [D]. A name that is there keeps its first vector."""
        if name in self._keys:
            return
        if self._index is None:
            from usearch.index import Index  # an extra: the core works without

            self._index = Index(ndim=len(vector), metric="cos", dtype="f32")
        self._index.add(self._next_key, vector.astype(np.float32))
        self._keys[name] = self._next_key
        self._names[self._next_key] = name
        self._next_key += 1

    def contents(self) -> tuple[list[str], Vectors]:
        """Every name with its vector, float32 [N, D], in the order in which they were added."""
        if not self._keys:
            return [], np.zeros((0, 0), dtype=np.float32)
        return list(self._keys), np.array([self._index[key] for key in self._keys.values()])

    def keep_newest(self, count: int) -> None:
        """Forget all names but the `count` that were added last."""
        for name in list(self._keys)[: max(len(self) - count, 0)]:
            key = self._keys.pop(name)
            del self._names[key]
            self._index.remove(key)

    def nearest(self, vector: Vectors, count: int) -> list[str]:
        """The `count` names nearest to `vector`, nearest first; all if there are fewer."""
        if not self._keys:
            return []
        found = self._index.search(
            vector.astype(np.float32), min(count, len(self)), exact=len(self) <= EXACT_UP_TO
        )
        return [self._names[int(key)] for key in found.keys]
