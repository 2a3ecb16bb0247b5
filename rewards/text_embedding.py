"""Texts as vectors, and the nearest of many vectors; for rewards that compare texts."""

import importlib
import zlib
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rlstack.errors import RewardError

Vectors = NDArray[np.floating[Any]]
Embedder = Callable[[Sequence[str]], Vectors]
"""Texts to float [len(texts), D], the same D in every call."""

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


def load_embedder(name: str) -> Embedder:
    """The function `package.module:function` or `path/to/file.py:function`.

    Raises:
        RewardError: if it cannot be imported or is no function.
    """
    place, _, function = name.rpartition(":")
    try:
        module = _import_file(place) if place.endswith(".py") else importlib.import_module(place)
        found: Any = vars(module)[function]
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"embedder {name!r} cannot be loaded: {type(error).__name__}: {error}. Give "
            "package.module:function or path/to/file.py:function."
        ) from error
    if not callable(found):
        raise RewardError(f"embedder {name!r} is {type(found).__name__}; expected a function")
    return cast(Embedder, found)


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
    """Names by vector; finds those with the largest cosine, exactly, in one matrix product."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._vectors = np.zeros((0, 0), dtype=np.float32)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, vector: Vectors) -> None:
        """Add a name; its vector is float [D]. A name that is there keeps its first vector."""
        if name in self._names:
            return
        count = len(self._names)
        if count == len(self._vectors):
            # Doubled, so that adding n names copies each about twice.
            grown = np.zeros((max(16, 2 * count), len(vector)), dtype=np.float32)
            if count:
                grown[:count] = self._vectors
            self._vectors = grown
        length = float(np.linalg.norm(vector))
        self._vectors[count] = vector / length if length > 0 else vector
        self._names[name] = count

    def keep_newest(self, count: int) -> None:
        """Forget all names but the `count` that were added last."""
        first = max(len(self._names) - count, 0)
        self._vectors = self._vectors[first : len(self._names)].copy()
        self._names = {name: row for row, name in enumerate(list(self._names)[first:])}

    def nearest(self, vector: Vectors, count: int) -> list[str]:
        """The `count` names nearest to `vector`, nearest first; all if there are fewer."""
        known = len(self._names)
        if not known:
            return []
        cosines = self._vectors[:known] @ vector.astype(np.float32)
        count = min(count, known)
        best = np.argpartition(-cosines, count - 1)[:count]
        names = list(self._names)
        return [names[row] for row in best[np.argsort(-cosines[best], kind="stable")]]


def _import_file(place: str) -> Any:
    path = Path(place).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = spec_from_file_location(f"embedder:{path}", path)
    assert spec is not None, "a .py path always has a spec"
    assert spec.loader is not None, "a .py path always has a loader"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
