"""Reward `episodic_memory`: near past successes of similar prompts, far from past failures."""

import inspect
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from rewards.memory.text_embedding import NearestIndex, embed, hashed_ngrams
from rewards.references import import_function
from rewards.registry import build, register
from rlstack.algorithms.episodic_memory import EpisodicMemory, empty_memory, insert, score
from rlstack.types import RewardRequest, Score


@register("episodic_memory", requires=("usearch",), batched=True)
class EpisodicMemoryReward:
    """The intrinsic reward of Memory-R+ (arXiv 2504.02273), to be added to the task's own.

    task, task_params: the reward of one response, without parameters of the group, that says which
        responses succeeded: a value above `threshold` is a success, another value a failure, None
        neither. Give the same as the component it is added to.
    num_neighbours: prompts whose responses count, by cosine of the prompts' embeddings.
    capacity: responses kept per prompt and outcome. window: past scores that normalise new ones.
    max_prompts: prompts kept; when there are more, the older half is forgotten.
    warmup_groups: groups that are only remembered, with reward 0 (the paper fills the memory for
        some 50 steps).
    embedder: `package.module:function` or `file.py:function` from texts to float [N, D]; None:
        hashed character n-grams, which need no model.

    A group is scored before it is remembered. The memory is one for the whole run and part of its
    checkpoints. Several components of this reward, or several runs, have a memory each.
    """

    def __init__(
        self,
        *,
        task: str,
        task_params: dict[str, Any] | None = None,
        threshold: float = 0.5,
        num_neighbours: PositiveInt = 1,
        capacity: PositiveInt = 100,
        window: PositiveInt = 100,
        exploit_weight: NonNegativeFloat = 1.0,
        explore_weight: NonNegativeFloat = 1.0,
        max_prompts: PositiveInt = 20_000,
        warmup_groups: NonNegativeInt = 0,
        embedder: str | None = None,
    ) -> None:
        self._task = build(task, task_params or {})
        self._embedder = hashed_ngrams if embedder is None else import_function(embedder)
        self._threshold, self._capacity = threshold, capacity
        self._num_neighbours, self._window = num_neighbours, window
        self._exploit_weight, self._explore_weight = exploit_weight, explore_weight
        self._max_prompts, self._warmup_left = max_prompts, warmup_groups
        self._memory = empty_memory()
        self._prompts = NearestIndex()

    async def __call__(self, requests: Sequence[RewardRequest]) -> list[Score]:
        """Score the responses to one prompt, then remember them."""
        if not requests:
            return []
        outcomes = np.array([await self._outcome(request) for request in requests])
        query = requests[0].prompt
        vectors = embed(self._embedder, [query, *(request.response for request in requests)])
        rewards = np.zeros(len(requests))
        if self._warmup_left > 0:
            self._warmup_left -= 1
        else:
            rewards, self._memory = score(
                self._memory,
                vectors[1:],
                neighbours=self._prompts.nearest(vectors[0], self._num_neighbours),
                window=self._window,
                exploit_weight=self._exploit_weight,
                explore_weight=self._explore_weight,
            )
        self._memory = insert(
            self._memory,
            query,
            vectors[1:],
            outcomes,
            threshold=self._threshold,
            capacity=self._capacity,
        )
        self._prompts.add(query, vectors[0])
        self._forget()
        return [Score(value=float(reward)) for reward in rewards]

    def state(self) -> bytes:
        """The memory and the prompts, as NumPy's npz."""
        memory = self._memory
        arrays: dict[str, NDArray[Any]] = {
            "warmup_left": np.array(self._warmup_left),
            "exploit_scores": memory.exploit_scores,
            "explore_scores": memory.explore_scores,
        }
        names, vectors = self._prompts.contents()
        queries = list({**memory.successes, **memory.failures})
        arrays["names"], arrays["queries"] = _text_array(names), _text_array(queries)
        arrays["vectors"] = vectors
        for row, query in enumerate(queries):
            for outcome in ("successes", "failures"):
                kept = getattr(memory, outcome).get(query)
                if kept is not None:
                    arrays[f"{outcome}_{row}"] = kept
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    def restore(self, state: bytes) -> None:
        """Go on from the memory in `state`."""
        with np.load(io.BytesIO(state), allow_pickle=False) as arrays:
            self._warmup_left = int(arrays["warmup_left"])
            queries = _texts(arrays["queries"])
            remembered = {
                outcome: {
                    query: arrays[f"{outcome}_{row}"]
                    for row, query in enumerate(queries)
                    if f"{outcome}_{row}" in arrays
                }
                for outcome in ("successes", "failures")
            }
            self._memory = EpisodicMemory(
                **remembered,
                exploit_scores=arrays["exploit_scores"],
                explore_scores=arrays["explore_scores"],
            )
            self._prompts = NearestIndex()
            for name, vector in zip(_texts(arrays["names"]), arrays["vectors"], strict=True):
                self._prompts.add(name, vector)

    def _forget(self) -> None:
        """Drop the older half of the prompts when there are too many."""
        if len(self._prompts) <= self._max_prompts:
            return
        self._prompts.keep_newest(max(self._max_prompts // 2, 1))
        self._memory = replace(
            self._memory,
            successes={q: v for q, v in self._memory.successes.items() if q in self._prompts},
            failures={q: v for q, v in self._memory.failures.items() if q in self._prompts},
        )

    async def _outcome(self, request: RewardRequest) -> float:
        result: Any = self._task(request)
        if inspect.isawaitable(result):
            result = await result
        value = result.value if isinstance(result, Score) else result
        return np.nan if value is None else float(value)


def _text_array(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Texts as bytes of JSON: NumPy's own texts lose trailing zeros and pad to the longest."""
    return np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)


def _texts(array: NDArray[np.uint8]) -> list[str]:
    return json.loads(array.tobytes())
