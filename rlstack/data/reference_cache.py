"""Reference logprobs on disk: computed once, read row by row."""

import hashlib
import os
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlstack.errors import CheckpointError

SAMPLES_PER_CALL = 256
"""Samples whose logprobs are computed in one call, and held in memory."""

HashableT = TypeVar("HashableT", bound=Hashable)

Compute = Callable[[Sequence[HashableT]], Awaitable[NDArray[np.float32]]]
"""Samples -> float32 [N, 2], nats."""


class ReferenceCache(Generic[HashableT]):
    """Two logprobs of the reference for every sample, float32 [N, 2], in memory-mapped files.

    A file's name holds the fingerprint of the model and of every token, so what other weights,
    data or another tokenizer gave is never read. Samples are told apart by identity.
    """

    def __init__(self, folder: Path, *, model: str) -> None:
        self.folder = folder
        self.model = model
        """Fingerprint of the reference."""
        self._places: dict[HashableT, tuple[NDArray[np.float32], int]] = {}

    async def add(
        self,
        name: str,
        samples: Sequence[HashableT],
        *,
        tokens: Iterable[NDArray[np.int64]],
        compute: Compute[HashableT] | None,
    ) -> None:
        """Open the file of `samples`; where there is none, `compute` fills it.

        tokens: all that the logprobs depend on. compute: None where the reference is gone.

        Raises:
            CheckpointError: if there is neither the file nor the reference.
        """
        if not samples:
            return
        file = self.folder / f"{name}-{fingerprint(self.model, tokens)}.npy"
        if not file.is_file():
            if compute is None:
                raise CheckpointError(
                    f"{file}: the reference logprobs of this round are gone, and so is the policy "
                    "that gave them; start a new run"
                )
            await _write(file, samples, compute)
        values: NDArray[np.float32] = np.load(file, mmap_mode="r")
        self._places |= {sample: (values, row) for row, sample in enumerate(samples)}

    def of(self, samples: Sequence[HashableT]) -> NDArray[np.float32]:
        """Float32 [N, 2], nats, read from disk."""
        places = [self._places[sample] for sample in samples]
        return np.stack([values[row] for values, row in places])


def fingerprint(model: str, tokens: Iterable[NDArray[np.int64]]) -> str:
    """32 hexadecimal digits that differ where the model or a token does."""
    digest = hashlib.sha256(model.encode())
    for token_ids in tokens:
        digest.update(len(token_ids).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(token_ids, dtype="<i8").tobytes())
    return digest.hexdigest()[:32]


async def _write(file: Path, samples: Sequence[HashableT], compute: Compute[HashableT]) -> None:
    """The whole file or nothing of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".partial_{file.name}")
    values = np.lib.format.open_memmap(
        partial, mode="w+", dtype=np.float32, shape=(len(samples), 2)
    )
    for start in range(0, len(samples), SAMPLES_PER_CALL):
        stop = min(start + SAMPLES_PER_CALL, len(samples))
        values[start:stop] = await compute(samples[start:stop])
    values.flush()
    os.replace(partial, file)
