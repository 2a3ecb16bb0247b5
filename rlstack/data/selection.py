"""What is learned from scored samples: the best against the worst, all of them as good or bad, or
the best alone. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlstack.types import (
    Demonstration,
    FinishReason,
    Group,
    JudgedResponse,
    PreferencePair,
    Rollout,
    Score,
)

SelectedT = TypeVar("SelectedT")

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection(Generic[SelectedT]):
    """What is learned from, and how many prompts or responses were left out for which reason."""

    samples: tuple[SelectedT, ...]
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptResponse:
    """A sampled response that was good enough.

    prompt_ids: int64 [P], chat template and generation prompt included.
    response_ids: int64 [R], end-of-sequence token included.
    loss_mask: bool [R], False on what an environment said in between.
    """

    prompt_id: str
    data_source: str
    text: str
    """The rendered prompt."""
    response: str
    """In an episode the last action."""
    reward: float
    prompt_ids: NDArray[np.int64]
    response_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a dataset's samples have."""
        return {"reward": self.reward}

    def demonstration(self) -> Demonstration:
        """For supervised training: what the policy wrote is in the loss."""
        mask = np.concatenate((np.zeros(len(self.prompt_ids), dtype=np.bool_), self.loss_mask))
        return Demonstration(
            prompt_id=self.prompt_id,
            data_source=self.data_source,
            text=self.text,
            token_ids=np.concatenate((self.prompt_ids, self.response_ids)),
            loss_mask=mask,
            metadata=self.metadata,
        )


def best_versus_worst(groups: Sequence[Group]) -> Selection[PreferencePair]:
    """Of each prompt the response with the highest and the one with the lowest reward.

    Of equal rewards the first sample counts. A prompt with fewer than two judged responses is
    dropped as `unjudged`, one whose rewards are all equal as `tie`, one whose best and worst
    response are the same tokens as `same_response`, one whose environment opened the two
    differently, so that they answer different prompts, as `other_prompt`.
    """
    pairs: list[PreferencePair] = []
    dropped = Counter({"unjudged": 0, "tie": 0, "other_prompt": 0, "same_response": 0})
    for index, group in enumerate(groups):
        judged = _judged(group)
        if len(judged) < 2:
            dropped["unjudged"] += 1
            continue
        best_reward, best = max(judged, key=lambda found: found[0])
        worst_reward, worst = min(judged, key=lambda found: found[0])
        if best_reward == worst_reward:
            dropped["tie"] += 1
        elif not np.array_equal(best.prompt.token_ids, worst.prompt.token_ids):
            dropped["other_prompt"] += 1
        elif np.array_equal(best.response_ids, worst.response_ids):
            dropped["same_response"] += 1
        else:
            rewards = {"chosen_reward": best_reward, "rejected_reward": worst_reward}
            pairs.append(_pair(index, best, worst, rewards))
    return Selection(samples=tuple(pairs), dropped=dict(dropped))


def judged_responses(groups: Sequence[Group], *, threshold: float) -> Selection[JudgedResponse]:
    """Every response, desirable where its reward is at least `threshold`.

    Responses are dropped as `unjudged`, as `cut` (desirable ones that did not end by themselves,
    and would teach not to end), or all of them as `one_prompt` or `one_kind` where there are not
    both desirable and undesirable ones, and of two prompts.
    """
    found: list[JudgedResponse] = []
    dropped = Counter({"unjudged": 0, "cut": 0, "one_prompt": 0, "one_kind": 0})
    for index, group in enumerate(groups):
        judged = _judged(group)
        dropped["unjudged"] += len(group.rollouts) - len(judged)
        for reward, rollout in judged:
            desirable = reward >= threshold
            if desirable and rollout.finish_reason is not FinishReason.STOP:
                dropped["cut"] += 1
            else:
                found.append(_judged_response(index, rollout, reward, desirable=desirable))
    if len({response.text for response in found}) < 2:
        dropped["one_prompt"] += len(found)
        found = []
    elif len({response.desirable for response in found}) < 2:
        dropped["one_kind"] += len(found)
        found = []
    return Selection(samples=tuple(found), dropped=dict(dropped))


def kept_responses(
    groups: Sequence[Group], *, min_reward: float | None, per_prompt: int
) -> Selection[KeptResponse]:
    """Of each prompt the best responses, at most `per_prompt`, with at least `min_reward`.

    Of equal rewards the first sample counts. Responses are dropped as `unjudged`, `cut` (they did
    not end by themselves, and would teach not to end; an episode may end with its last turn),
    `reward`, `duplicate` (the same tokens as a
    better or earlier one) or `surplus`.
    """
    kept: list[KeptResponse] = []
    dropped = Counter({"unjudged": 0, "cut": 0, "reward": 0, "duplicate": 0, "surplus": 0})
    for index, group in enumerate(groups):
        judged = _judged(group)
        dropped["unjudged"] += len(group.rollouts) - len(judged)
        seen: set[bytes] = set()
        for reward, rollout in sorted(judged, key=lambda found: -found[0]):
            tokens = rollout.response_ids.tobytes()
            if rollout.finish_reason not in (FinishReason.STOP, FinishReason.TURNS):
                dropped["cut"] += 1
            elif min_reward is not None and reward < min_reward:
                dropped["reward"] += 1
            elif tokens in seen:
                dropped["duplicate"] += 1
            elif len(seen) == per_prompt:
                dropped["surplus"] += 1
            else:
                seen.add(tokens)
                kept.append(_kept(index, rollout, reward, number=len(seen)))
    return Selection(samples=tuple(kept), dropped=dict(dropped))


def _judged(group: Group) -> list[tuple[float, Rollout]]:
    def value(score: Score, rollout: Rollout) -> float | None:
        return score.value if len(rollout.response_ids) else None

    values = [(value(s, r), r) for s, r in zip(group.scores, group.rollouts, strict=True)]
    return [(reward, rollout) for reward, rollout in values if reward is not None]


def _pair(
    index: int, best: Rollout, worst: Rollout, rewards: Mapping[str, float]
) -> PreferencePair:
    prompt = best.prompt
    is_whole = bool(best.loss_mask.all() and worst.loss_mask.all())
    return PreferencePair(
        # A prompt may come twice where rounds meet the end of an epoch.
        prompt_id=f"{index}:{prompt.prompt_id}",
        data_source=prompt.data_source,
        text=prompt.text,
        chosen=best.text,
        rejected=worst.text,
        prompt_ids=prompt.token_ids,
        chosen_ids=best.response_ids,
        rejected_ids=worst.response_ids,
        margin=rewards["chosen_reward"] - rewards["rejected_reward"],
        chosen_features=(),
        rejected_features=(),
        metadata=rewards,
        chosen_mask=None if is_whole else best.loss_mask,
        rejected_mask=None if is_whole else worst.loss_mask,
    )


def _judged_response(
    index: int, rollout: Rollout, reward: float, *, desirable: bool
) -> JudgedResponse:
    prompt = rollout.prompt
    return JudgedResponse(
        prompt_id=f"{index}.{rollout.sample_index}:{prompt.prompt_id}",
        data_source=prompt.data_source,
        text=prompt.text,
        response=rollout.text,
        prompt_ids=prompt.token_ids,
        response_ids=rollout.response_ids,
        desirable=desirable,
        metadata={"reward": reward},
    )


def _kept(index: int, rollout: Rollout, reward: float, *, number: int) -> KeptResponse:
    prompt = rollout.prompt
    return KeptResponse(
        prompt_id=f"{index}.{number}:{prompt.prompt_id}",
        data_source=prompt.data_source,
        text=prompt.text,
        response=rollout.text,
        reward=reward,
        prompt_ids=prompt.token_ids,
        response_ids=rollout.response_ids,
        loss_mask=rollout.loss_mask,
    )


def pair_record(pair: PreferencePair) -> Record:
    """A row of JSONL that is data for `rlstack dpo` too; the tokens are those that were sampled.

    Of an episode no text says all: it has `chosen_last_action` in place of `chosen`, so that nobody
    takes its row for data, and masks beside its tokens.
    """
    return {
        "id": pair.prompt_id,
        "data_source": pair.data_source,
        "prompt": pair.text,
        **_response("chosen", pair.chosen, pair.chosen_ids, pair.chosen_mask),
        **_response("rejected", pair.rejected, pair.rejected_ids, pair.rejected_mask),
        "margin": pair.margin,
        "metadata": dict(pair.metadata),
        "prompt_ids": pair.prompt_ids.tolist(),
    }


def pair_of(record: Record) -> PreferencePair:
    """What `pair_record` wrote, exactly."""
    chosen, chosen_ids, chosen_mask = _response_of(record, "chosen")
    rejected, rejected_ids, rejected_mask = _response_of(record, "rejected")
    return PreferencePair(
        prompt_id=record["id"],
        data_source=record["data_source"],
        text=record["prompt"],
        chosen=chosen,
        rejected=rejected,
        prompt_ids=np.array(record["prompt_ids"], dtype=np.int64),
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
        margin=record["margin"],
        chosen_features=(),
        rejected_features=(),
        metadata=record["metadata"],
        chosen_mask=chosen_mask,
        rejected_mask=rejected_mask,
    )


def judged_record(judged: JudgedResponse) -> Record:
    """As `pair_record`, for `rlstack dpo objective=kto`."""
    return {
        "id": judged.prompt_id,
        "data_source": judged.data_source,
        "prompt": judged.text,
        "response": judged.response,
        "label": judged.desirable,
        "metadata": dict(judged.metadata),
        "prompt_ids": judged.prompt_ids.tolist(),
        "response_ids": judged.response_ids.tolist(),
    }


def judged_of(record: Record) -> JudgedResponse:
    """What `judged_record` wrote, exactly."""
    return JudgedResponse(
        prompt_id=record["id"],
        data_source=record["data_source"],
        text=record["prompt"],
        response=record["response"],
        prompt_ids=np.array(record["prompt_ids"], dtype=np.int64),
        response_ids=np.array(record["response_ids"], dtype=np.int64),
        desirable=record["label"],
        metadata=record["metadata"],
    )


def kept_record(kept: KeptResponse) -> Record:
    """A row of JSONL that is data for `rlstack sft` too; the tokens are those that were sampled.

    An episode has `response_last_action`, as in `pair_record`.
    """
    mask = None if kept.loss_mask.all() else kept.loss_mask
    return {
        "id": kept.prompt_id,
        "data_source": kept.data_source,
        "prompt": kept.text,
        **_response("response", kept.response, kept.response_ids, mask),
        "metadata": dict(kept.metadata),
        "prompt_ids": kept.prompt_ids.tolist(),
    }


def kept_of(record: Record) -> KeptResponse:
    """What `kept_record` wrote, exactly."""
    response, response_ids, mask = _response_of(record, "response")
    return KeptResponse(
        prompt_id=record["id"],
        data_source=record["data_source"],
        text=record["prompt"],
        response=response,
        reward=record["metadata"]["reward"],
        prompt_ids=np.array(record["prompt_ids"], dtype=np.int64),
        response_ids=response_ids,
        loss_mask=np.ones(len(response_ids), dtype=np.bool_) if mask is None else mask,
    )


def _response(
    name: str, text: str, token_ids: NDArray[np.int64], mask: NDArray[np.bool_] | None
) -> Record:
    if mask is None:
        return {name: text, f"{name}_ids": token_ids.tolist()}
    return {
        f"{name}_last_action": text,
        f"{name}_ids": token_ids.tolist(),
        f"{name}_mask": mask.astype(int).tolist(),
    }


def _response_of(
    record: Record, name: str
) -> tuple[str, NDArray[np.int64], NDArray[np.bool_] | None]:
    """Text, tokens and mask."""
    token_ids = np.array(record[f"{name}_ids"], dtype=np.int64)
    if f"{name}_mask" not in record:
        return record[name], token_ids, None
    mask = np.array(record[f"{name}_mask"], dtype=np.bool_)
    return record[f"{name}_last_action"], token_ids, mask
