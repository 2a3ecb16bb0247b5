"""How a run learns from preferences: batches with what the reference says, updates, evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from rlstack.batches.preference_reference import (
    JudgedPreferenceBatch,
    PreferenceBatch,
    judged_with_reference,
    with_reference,
)
from rlstack.batches.preferences import collate_judged, collate_pairs
from rlstack.commands.supervised import Learner
from rlstack.config.preference import KTOObjective, PairObjective, needs_reference
from rlstack.data.reference_cache import ReferenceCache
from rlstack.types import JudgedResponse, PreferencePair
from workers.groups.ranks import PolicyGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLearner:
    """Learns from pairs; the policy as it is when `prepare` is called is the reference."""

    policy: PolicyGroup
    objective: PairObjective
    cache: ReferenceCache[PreferencePair]
    datasets: dict[str, Sequence[PreferencePair]]
    """Name -> samples whose reference logprobs are needed."""
    pad_token_id: int
    is_reference: bool = True
    """Whether the policy still is the reference, so that logprobs can be computed."""

    def learner(self) -> Learner[PreferencePair, PreferenceBatch]:
        """For `stages.supervised`."""
        return Learner(
            trainer=self.policy,
            collate=self.collate,
            update=partial(self.policy.update, objective=self.objective),
            evaluate=partial(self.policy.evaluate, objective=self.objective),
            prepare=self.prepare if needs_reference(self.objective) else None,
        )

    async def prepare(self) -> None:
        """Compute the reference logprobs that are not on disk yet."""
        for name, pairs in self.datasets.items():
            await self.cache.add(
                name,
                pairs,
                tokens=chain.from_iterable(map(_tokens, pairs)),
                compute=self._reference if self.is_reference else None,
            )

    def collate(self, pairs: Sequence[PreferencePair]) -> PreferenceBatch:
        """A batch, with reference logprobs from disk."""
        batch = collate_pairs(pairs, pad_token_id=self.pad_token_id)
        if needs_reference(self.objective):
            return with_reference(batch, self.cache.of(pairs))
        return with_reference(batch, np.zeros((len(pairs), 2), dtype=np.float32))

    async def _reference(self, pairs: Sequence[PreferencePair]) -> NDArray[np.float32]:
        rows = collate_pairs(pairs, pad_token_id=self.pad_token_id)
        return (await self.policy.response_logprobs(rows)).reshape(-1, 2).numpy()


def _tokens(pair: PreferencePair) -> Iterator[NDArray[np.int64]]:
    """All that the logprobs of a pair depend on."""
    yield from (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    for mask in (pair.chosen_mask, pair.rejected_mask):
        if mask is not None:
            yield mask.astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedLearner:
    """Learns from judged responses (KTO); the policy at `prepare` is the reference."""

    policy: PolicyGroup
    objective: KTOObjective
    cache: ReferenceCache[JudgedResponse]
    datasets: dict[str, Sequence[JudgedResponse]]
    others: dict[JudgedResponse, JudgedResponse]
    """Of every response, its prompt with another prompt's response."""
    pad_token_id: int
    is_reference: bool = True
    """As of `PairLearner`."""

    def learner(self) -> Learner[JudgedResponse, JudgedPreferenceBatch]:
        """For `stages.supervised`."""
        return Learner(
            trainer=self.policy,
            collate=self.collate,
            update=partial(self.policy.update, objective=self.objective),
            evaluate=partial(self.policy.evaluate, objective=self.objective),
            prepare=self.prepare,
        )

    async def prepare(self) -> None:
        """Compute the reference logprobs that are not on disk yet."""
        for name, responses in self.datasets.items():
            rows = ((r.prompt_ids, r.response_ids, self.others[r].response_ids) for r in responses)
            await self.cache.add(
                name,
                responses,
                tokens=chain.from_iterable(rows),
                compute=self._reference if self.is_reference else None,
            )

    def collate(self, responses: Sequence[JudgedResponse]) -> JudgedPreferenceBatch:
        """A batch, with reference logprobs from disk."""
        others = [self.others[response] for response in responses]
        return judged_with_reference(
            responses, others, self.cache.of(responses), pad_token_id=self.pad_token_id
        )

    async def _reference(self, responses: Sequence[JudgedResponse]) -> NDArray[np.float32]:
        both = [row for response in responses for row in (response, self.others[response])]
        rows = collate_judged(both, pad_token_id=self.pad_token_id)
        return (await self.policy.response_logprobs(rows)).reshape(-1, 2).numpy()
