"""Intrinsic reward from an episodic memory of embedded responses (Memory-R+, arXiv 2504.02273).

A response is rewarded for lying near past successes of similar queries and away from past failures.
The memory is a value: functions return a new one and leave theirs as it was. Embedding texts and
finding the nearest queries are the caller's; embeddings are float [D].

Score a group before inserting it (`score`, then `insert`), the reverse of the author's released
code. A response that is already in memory is its own neighbour: a failure would always find itself
at cosine 1, so its exploration score is 0 wherever it lies, and each success would pull the
centroid towards itself. The score would then say which outcome a response had, which the task
reward says already, and not how it relates to the past.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class EpisodicMemory:
    """Past responses by query, oldest first, and the last scores, by which scores are normalised.

    successes, failures: query id -> float [n, D]. exploit_scores, explore_scores: float [n].
    """

    successes: Mapping[str, Array]
    failures: Mapping[str, Array]
    exploit_scores: Array
    explore_scores: Array


def empty_memory() -> EpisodicMemory:
    """A memory of nothing."""
    return EpisodicMemory({}, {}, np.zeros(0), np.zeros(0))


def exploit_scores(responses: Array, successes: Array) -> Array:
    """Minus the distance to the centroid of past successes, float [B].

    responses: float [B, D]. successes: float [n, D], n > 0.
    """
    return -np.linalg.norm(responses - successes.mean(axis=0), axis=1)


def explore_scores(responses: Array, failures: Array) -> Array:
    """1 minus the largest cosine to a past failure, float [B], within [0, 2].

    responses: float [B, D]. failures: float [n, D], n > 0. A zero vector has cosine 0 to all.
    """
    return 1.0 - (_unit(responses) @ _unit(failures).T).max(axis=1)


def score(
    memory: EpisodicMemory,
    responses: Array,
    *,
    neighbours: Sequence[str],
    window: int,
    exploit_weight: float,
    explore_weight: float,
) -> tuple[Array, EpisodicMemory]:
    """Intrinsic rewards of one query's responses, float [B], and the memory with their scores.

    exploit_weight * exploit~ + explore_weight * explore~, each min-max normalised into [0, 1] over
    these scores and the `window` scores before them; 0 if those are all equal. Where the neighbours
    have no success (or failure), that part is 0 and leaves no score behind: nothing is known.

    responses: float [B, D]. neighbours: ids of the K nearest queries, this one included once it is
    in memory. The paper has K = 1 (GSM8K) or 20, window 100, both weights 1, and adds the reward to
    the task's before group normalisation after some 50 steps of filling the memory.
    """
    rewards = np.zeros(len(responses))
    successes = _gather(memory.successes, neighbours)
    if successes is not None:
        found = exploit_scores(responses, successes)
        rewards = rewards + exploit_weight * _min_max(found, memory.exploit_scores)
        memory = replace(memory, exploit_scores=_newest(memory.exploit_scores, found, window))
    failures = _gather(memory.failures, neighbours)
    if failures is not None:
        found = explore_scores(responses, failures)
        rewards = rewards + explore_weight * _min_max(found, memory.explore_scores)
        memory = replace(memory, explore_scores=_newest(memory.explore_scores, found, window))
    return rewards, memory


def insert(
    memory: EpisodicMemory,
    query_id: str,
    responses: Array,
    rewards: Array,
    *,
    threshold: float,
    capacity: int,
) -> EpisodicMemory:
    """The memory with a query's responses added, the newest `capacity` of either kind kept.

    A reward above `threshold` (0.5 in the paper, capacity 100) is a success, any other a failure;
    NaN, a response that could not be judged, is neither.

    responses: float [B, D]. rewards: float [B], the task's, without the intrinsic part.
    """
    succeeded = rewards > threshold
    failed = rewards <= threshold
    return replace(
        memory,
        successes=_with(memory.successes, query_id, responses[succeeded], capacity),
        failures=_with(memory.failures, query_id, responses[failed], capacity),
    )


def _with(
    stored: Mapping[str, Array], query_id: str, responses: Array, capacity: int
) -> Mapping[str, Array]:
    if len(responses) == 0:
        return stored
    return {**stored, query_id: _newest(stored.get(query_id, responses[:0]), responses, capacity)}


def _newest(old: Array, new: Array, limit: int) -> Array:
    joined = np.concatenate((old, new))
    return joined[max(len(joined) - limit, 0) :]


def _gather(stored: Mapping[str, Array], neighbours: Sequence[str]) -> Array | None:
    found = [stored[query_id] for query_id in neighbours if query_id in stored]
    return np.concatenate(found) if found else None


def _min_max(scores: Array, history: Array) -> Array:
    seen = np.concatenate((history, scores))
    low, high = seen.min(), seen.max()
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)


def _unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
