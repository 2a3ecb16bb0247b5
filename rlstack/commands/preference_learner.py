"""How a run learns from preferences: batches with what the reference says, updates, evaluation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from rlstack.batch import Rows
from rlstack.batches.preference_reference import (
    JudgedPreferenceBatch,
    PreferenceBatch,
    judged_with_reference,
    with_reference,
)
from rlstack.batches.preferences import collate_judged, collate_pairs
from rlstack.commands.supervised import Learner
from rlstack.config.preference import KTOObjective, PairObjective, needs_reference
from rlstack.data.dataset import SampleT
from rlstack.data.reference_cache import ReferenceCache
from rlstack.types import JudgedResponse, PreferencePair
from workers.groups.ranks import PolicyGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLogprobs(Generic[SampleT]):
    """What the policy said of samples before it learned from them."""

    cache: ReferenceCache[SampleT]
    datasets: Mapping[str, Sequence[SampleT]]
    """Name -> samples whose reference logprobs are needed."""
    is_policy: bool = True
    """Whether the policy still is the reference, so that logprobs can be computed."""

    async def prepare(
        self,
        policy: PolicyGroup,
        tokens: Callable[[SampleT], Iterable[NDArray[np.int64]]],
        rows: Callable[[Sequence[SampleT]], Rows],
    ) -> None:
        """Compute the logprobs that are not on disk yet.

        tokens: all that the logprobs of a sample depend on. rows: two for each sample.
        """

        async def compute(samples: Sequence[SampleT]) -> NDArray[np.float32]:
            return (await policy.response_logprobs(rows(samples))).reshape(-1, 2).numpy()

        for name, samples in self.datasets.items():
            await self.cache.add(
                name,
                samples,
                tokens=chain.from_iterable(map(tokens, samples)),
                compute=compute if self.is_policy else None,
            )


def pair_learner(
    policy: PolicyGroup,
    reference: ReferenceLogprobs[PreferencePair],
    *,
    objective: PairObjective,
    pad_token_id: int,
) -> Learner[PreferencePair, PreferenceBatch]:
    """Learns from pairs."""
    compares = needs_reference(objective)
    rows = partial(collate_pairs, pad_token_id=pad_token_id)

    def collate(pairs: Sequence[PreferencePair]) -> PreferenceBatch:
        nothing = np.zeros((len(pairs), 2), dtype=np.float32)
        return with_reference(rows(pairs), reference.cache.of(pairs) if compares else nothing)

    return Learner(
        trainer=policy,
        collate=collate,
        update=partial(policy.update, objective=objective),
        evaluate=partial(policy.evaluate, objective=objective),
        prepare=partial(reference.prepare, policy, _tokens, rows) if compares else None,
    )


def _tokens(pair: PreferencePair) -> Iterator[NDArray[np.int64]]:
    yield from (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    for mask in (pair.chosen_mask, pair.rejected_mask):
        if mask is not None:
            yield mask.astype(np.int64)


def judged_learner(
    policy: PolicyGroup,
    reference: ReferenceLogprobs[JudgedResponse],
    *,
    objective: KTOObjective,
    pad_token_id: int,
    others: Mapping[JudgedResponse, JudgedResponse],
) -> Learner[JudgedResponse, JudgedPreferenceBatch]:
    """Learns from judged responses (KTO). others: each one's prompt with another's response."""

    def collate(responses: Sequence[JudgedResponse]) -> JudgedPreferenceBatch:
        mismatches = [others[response] for response in responses]
        return judged_with_reference(
            responses, mismatches, reference.cache.of(responses), pad_token_id=pad_token_id
        )

    def rows(responses: Sequence[JudgedResponse]) -> Rows:
        both = [row for response in responses for row in (response, others[response])]
        return collate_judged(both, pad_token_id=pad_token_id)

    def tokens(response: JudgedResponse) -> Iterable[NDArray[np.int64]]:
        return response.prompt_ids, response.response_ids, others[response].response_ids

    return Learner(
        trainer=policy,
        collate=collate,
        update=partial(policy.update, objective=objective),
        evaluate=partial(policy.evaluate, objective=objective),
        prepare=partial(reference.prepare, policy, tokens, rows),
    )
