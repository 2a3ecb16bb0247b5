"""Reward `preference_model`: Bradley-Terry reward models, normalised, one or several."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from rewards.models.ensemble import Ensemble, FixedScale, ScoreEnsemble
from rewards.models.feature_head import FeatureHead, check_features, feature_scores, unusable
from rewards.models.sequence_scorer import SequenceScorer, SpecialTokens
from rewards.registry import register
from rlstack.types import RewardRequest, Score


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

    Every model's score before normalisation is a part, `model_0`, `model_1`, ..., unless it is the
    score itself. A score that is not finite, or a feature that is missing, makes the value None.

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
        self._ensemble = ScoreEnsemble(
            len(checkpoints), ensemble=ensemble, std_weight=std_weight, scale=scale
        )
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
        raw += feature_scores(self._heads, requests, self._features)
        return self._ensemble.scores(raw, reason=unusable(self._features))

    def state(self) -> bytes:
        """The running scales, as JSON."""
        return self._ensemble.state()

    def restore(self, state: bytes) -> None:
        """Go on from the scales of `state`; ValueError if they are of other checkpoints."""
        self._ensemble.restore(state)
