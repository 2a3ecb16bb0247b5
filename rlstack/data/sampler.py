"""The order in which samples are taken: shuffling, curriculum, mixtures; exactly resumable.

The order is a pure function of the dataset, the settings and how many samples each stream has
given, so those counts are the whole state. Without weights all sources are one stream. With weights
every source is a stream with epochs of its own, and streams take turns by their weights.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from rlstack.config.data import DataConfig
from rlstack.data.dataset import SHOWN_ROWS, Dataset, Sample, SampleT
from rlstack.errors import CheckpointError, DataError
from rlstack.seeds import Domain, generator


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerState:
    """Where a sampler stands: `asdict` makes JSON of it, `SamplerState(**json)` reads it."""

    taken: tuple[int, ...]
    """Samples that each stream has given."""
    fingerprint: str
    """Of the samples' ids, the weights and the settings: what the counts are valid for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "taken", tuple(self.taken))  # JSON gives a list


class PromptSampler(Generic[SampleT]):
    """Endless samples of a dataset.

    An epoch gives each sample of its stream once. It is shuffled with a seed derived from (seed,
    stream, epoch). With a curriculum, metadata field `curriculum` puts it in ascending order, where
    equal values keep their shuffled (or file) order.

    Raises:
        DataError: if the dataset is empty, or naming rows without a number in `curriculum`.
    """

    def __init__(
        self, dataset: Dataset[SampleT], *, seed: int, shuffle: bool, curriculum: str | None
    ) -> None:
        weights = [source.weight for source in dataset.sources]
        if any(weight is not None for weight in weights):
            pools = [source.samples for source in dataset.sources]
            shares = [
                float(len(pool)) if weight is None else weight
                for pool, weight in zip(pools, weights, strict=True)
            ]
        else:
            pools, shares = [dataset.prompts], [1.0]
        if not all(pools):
            raise DataError("cannot sample from an empty dataset; name at least one source")
        self._streams = [
            _Stream(pool, seed=(seed, index), shuffle=shuffle, curriculum=curriculum)
            for index, pool in enumerate(pools)
        ]
        self._shares = shares
        self._taken = [0] * len(pools)
        self._fingerprint = _fingerprint(pools, (seed, shuffle, curriculum, shares))

    @classmethod
    def of_run(
        cls, dataset: Dataset[SampleT], config: DataConfig, *, seed: int
    ) -> "PromptSampler[SampleT]":
        """The sampler that the group `data` of a run with `seed` asks for.

        Raises:
            DataError: as the constructor.
        """
        return cls(dataset, seed=seed, shuffle=config.shuffle, curriculum=config.curriculum)

    def take(self, num_samples: int) -> list[SampleT]:
        """The next samples; at the end of an epoch, and in small datasets, one may come twice."""
        return [self._next() for _ in range(num_samples)]

    @property
    def num_taken(self) -> int:
        """Samples given so far in the whole run: the number of the next one."""
        return sum(self._taken)

    def state(self) -> SamplerState:
        """What `restore` needs."""
        return SamplerState(taken=tuple(self._taken), fingerprint=self._fingerprint)

    def restore(self, state: SamplerState) -> None:
        """Continue exactly where the sampler that gave `state` stood.

        Raises:
            CheckpointError: if it had other samples or settings.
        """
        if state.fingerprint != self._fingerprint or len(state.taken) != len(self._taken):
            raise CheckpointError(
                "data: the checkpoint was written with other training data (rows, weights, "
                "data.shuffle, data.curriculum or seed); restore them, or start a new run"
            )
        self._taken = list(state.taken)

    def _next(self) -> SampleT:
        # Sainte-Lague's rule: streams are served in proportion to their shares, evenly spread.
        turn = min(
            range(len(self._taken)), key=lambda i: ((self._taken[i] + 0.5) / self._shares[i], i)
        )
        sample = self._streams[turn].at(self._taken[turn])
        self._taken[turn] += 1
        return sample


class _Stream(Generic[SampleT]):
    """Samples by position in the endless sequence of epochs."""

    def __init__(
        self,
        samples: Sequence[SampleT],
        *,
        seed: tuple[int, int],
        shuffle: bool,
        curriculum: str | None,
    ) -> None:
        self._samples = samples
        self._seed = seed
        self._shuffle = shuffle
        self._difficulty = None if curriculum is None else _difficulty(samples, curriculum)
        self._epoch = 0
        self._order = self._order_of(0)

    def at(self, position: int) -> SampleT:
        epoch, index = divmod(position, len(self._samples))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        return self._samples[int(self._order[index])]

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        order = np.arange(len(self._samples), dtype=np.int64)
        if self._shuffle:
            seed, stream = self._seed
            order = generator(seed, Domain.PROMPT_ORDER, stream, epoch).permutation(order)
        if self._difficulty is not None:
            order = order[np.argsort(self._difficulty[order], kind="stable")]
        return order


def _difficulty(samples: Sequence[Sample], field: str) -> NDArray[np.float64]:
    """float64 [N]: metadata `field` of each sample."""
    values = [sample.metadata.get(field) for sample in samples]
    lacking = [
        sample.prompt_id
        for sample, value in zip(samples, values, strict=True)
        if not isinstance(value, int | float) or np.isnan(value)
    ]
    if lacking:
        shown = ", ".join(lacking[:SHOWN_ROWS])
        more = f" and {len(lacking) - SHOWN_ROWS:,} more" if len(lacking) > SHOWN_ROWS else ""
        raise DataError(
            f"data.curriculum: {len(lacking):,} of {len(samples):,} rows have no number in "
            f"metadata '{field}': {shown}{more}; add it to them or set data.curriculum=null"
        )
    return np.array(values, dtype=np.float64)


def _fingerprint(pools: Sequence[Sequence[Sample]], settings: tuple[object, ...]) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for pool in pools:
        digest.update(repr([sample.prompt_id for sample in pool]).encode())
    return digest.hexdigest()[:32]
