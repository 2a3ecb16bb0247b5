"""Reward `preference_model`: Bradley-Terry reward models, normalised, one or several."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, with_config

from rewards.feature_head import FeatureHead, check_features, read_features
from rewards.registry import register
from rewards.sequence_scorer import SequenceScorer, SpecialTokens
from rlstack.types import RewardRequest, Score

Ensemble = Literal["mean", "min", "mean_minus_std"]
Scores = NDArray[np.float64]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class FixedScale:
    """What a model's scores are known to have on ordinary responses."""

    mean: float
    std: PositiveFloat


class RunningScale:
    """Mean and standard deviation of all scores so far (Welford 1962, in batches)."""

    def __init__(self, count: int = 0, mean: float = 0.0, squares: float = 0.0) -> None:
        """`squares`: sum of squared distances from the mean."""
        self.count, self.mean, self.squares = count, mean, squares

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before two scores."""
        return math.sqrt(self.squares / self.count) if self.count > 1 else 0.0

    def add(self, scores: Scores) -> None:
        """Count in more scores."""
        if len(scores) == 0:
            return
        total = self.count + len(scores)
        shift = float(scores.mean()) - self.mean
        self.squares += float(scores.var()) * len(scores)
        self.squares += shift**2 * self.count * len(scores) / total
        self.mean += shift * len(scores) / total
        self.count = total


def normalise(scores: Scores, *, mean: float, std: float) -> Scores:
    """Scores in standard deviations from the mean; only shifted where there is no deviation."""
    return (scores - mean) / std if std > 0 else scores - mean


def combine(scores: Scores, *, ensemble: Ensemble, std_weight: float) -> Scores:
    """One score per response from those of several models, [N] from [M, N].

    "min" and "mean_minus_std" (mean - std_weight * population std over models) distrust responses
    on which the models differ, against over-optimisation (Coste et al., arXiv 2310.02743).
    """
    if ensemble == "min":
        return scores.min(axis=0)
    mean = scores.mean(axis=0)
    return mean if ensemble == "mean" else mean - std_weight * scores.std(axis=0)


@register("preference_model", batched=True, requires=("torch", "transformers"))
class PreferenceModel:
    """What sequence classifiers with one label say of each response, in this process, on CPU.

    The models read the prompt as the policy's chat template rendered it, then the response.

    checkpoints: folders or hub names of the models of the ensemble.
    ensemble, std_weight: how their scores become one; see `combine`.
    scale: "none" leaves the logits; "running" divides by what each model's scores so far, these
        included, have as standard deviation, after their mean is taken off; `{mean, std}` uses
        these numbers for every model. A scale of its own per model keeps one from outvoting others.
            It is part of a checkpoint.
    max_tokens, max_tokens_per_batch, special_tokens, threads: see `SequenceScorer`; threads of this
        process.

    features: fields of the row's metadata, numbers, for models that `rlstack reward_model` trained
        with features of each response: one for each, in the order of training. Only models in local
        folders have them.

    Every model's score before normalisation is a part, `model_0`, `model_1`, ... A score that is
    not finite, or a feature that is missing, makes the value None.

    Raises:
        RewardError: when it is built, if a checkpoint cannot serve or has other features.
    """

    def __init__(
        self,
        *,
        checkpoints: Annotated[list[str], Field(min_length=1)],
        ensemble: Ensemble = "mean",
        std_weight: NonNegativeFloat = 1.0,
        scale: Literal["none", "running"] | FixedScale = "none",
        max_tokens: PositiveInt = 4096,
        max_tokens_per_batch: PositiveInt = 8192,
        special_tokens: SpecialTokens = "end",
        threads: PositiveInt = 1,
        features: tuple[str, ...] = (),
    ) -> None:
        import torch

        self._features = features
        heads = {checkpoint: FeatureHead.load(checkpoint) for checkpoint in checkpoints}
        check_features(heads, features)
        self._heads = [heads[checkpoint] for checkpoint in checkpoints]
        torch.set_num_threads(threads)
        self._ensemble: Ensemble = ensemble
        self._std_weight = std_weight
        self._scale = scale
        self._running = [RunningScale() for _ in checkpoints]
        self._models = [
            SequenceScorer(
                checkpoint,
                max_tokens=max_tokens,
                max_tokens_per_batch=max_tokens_per_batch,
                special_tokens=special_tokens,
            )
            for checkpoint in checkpoints
        ]

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score]:
        """Score a group."""
        prompts, responses = [r.prompt for r in requests], [r.response for r in requests]
        raw = np.array(
            [model.score(model.token_ids(prompts, responses)) for model in self._models]
        ).reshape(len(self._models), len(requests))
        raw += self._feature_scores(requests)
        usable = np.asarray(np.isfinite(raw).all(axis=0))
        values = np.full(len(requests), np.nan)
        values[usable] = combine(
            self._normalised(raw[:, usable]), ensemble=self._ensemble, std_weight=self._std_weight
        )
        return [
            Score(
                value=float(values[column]) if usable[column] else None,
                parts={f"model_{m}": float(raw[m, column]) for m in range(len(raw))}
                if usable[column]
                else {},
                errors=() if usable[column] else (self._unusable,),
            )
            for column in range(len(requests))
        ]

    def _feature_scores(self, requests: Sequence[RewardRequest]) -> Scores:
        """What the features add to each model's score of each response, float64 [M, N]."""
        values = np.array([read_features(r.metadata, self._features) for r in requests])
        return np.array(
            [
                np.zeros(len(requests)) if head is None else head.score(values)
                for head in self._heads
            ]
        )

    @property
    def _unusable(self) -> str:
        if not self._features:
            return "a reward model's score is not finite"
        return (
            "a reward model's score is not finite, or the row's metadata lacks a number in one of "
            f"{', '.join(self._features)}"
        )

    def state(self) -> bytes:
        """The running scales, as JSON."""
        return json.dumps([[s.count, s.mean, s.squares] for s in self._running]).encode()

    def restore(self, state: bytes) -> None:
        """Go on from the scales of `state`; ValueError if they are of other checkpoints."""
        scales = [RunningScale(*values) for values in json.loads(state)]
        if len(scales) != len(self._running):
            raise ValueError(f"{len(scales)} scales for {len(self._running)} reward models")
        self._running = scales

    def _normalised(self, raw: Scores) -> Scores:
        if isinstance(self._scale, FixedScale):
            return normalise(raw, mean=self._scale.mean, std=self._scale.std)
        if self._scale == "none":
            return raw
        for running, scores in zip(self._running, raw, strict=True):
            running.add(scores)
        return np.array(
            [
                normalise(scores, mean=running.mean, std=running.std)
                for running, scores in zip(self._running, raw, strict=True)
            ]
        )
