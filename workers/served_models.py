"""The component `reward_model` of a reward, judged by the worker group."""

import asyncio
from collections.abc import Sequence
from typing import Literal

from ray.exceptions import RayError

from rewards.ensemble import FixedScale, ScoreEnsemble
from rewards.feature_head import FeatureHead, check_features, feature_scores, unusable
from rlstack.config.reward import RewardModelsConfig
from rlstack.errors import WorkerError
from rlstack.types import RewardRequest, Score
from workers.reward_model import RewardModelGroup, RewardModelSpec


def reward_model_spec(config: RewardModelsConfig) -> RewardModelSpec:
    """What the ranks are told.

    Raises:
        RewardError: if the features named are not those that a model was trained with.
    """
    heads = {checkpoint: FeatureHead.load(checkpoint) for checkpoint in config.checkpoints}
    check_features(heads, config.features)
    return RewardModelSpec(
        checkpoints=config.checkpoints,
        max_tokens=config.max_tokens,
        max_tokens_per_batch=config.max_tokens_per_batch,
        dtype=config.dtype,
        special_tokens=config.special_tokens,
    )


class ServedModels:
    """Judges groups of rollouts by the running models.

    While a call is under way, the groups that arrive wait and go together in the next: batches are
    as full as the time allows.
    """

    def __init__(self, group: RewardModelGroup, config: RewardModelsConfig) -> None:
        self._group = group
        self._features = config.features
        self._heads = [FeatureHead.load(checkpoint) for checkpoint in config.checkpoints]
        scale: Literal["none", "running"] | FixedScale
        if isinstance(config.scale, str):
            scale = config.scale
        else:
            scale = FixedScale(mean=config.scale.mean, std=config.scale.std)
        self._ensemble = ScoreEnsemble(
            len(config.checkpoints),
            ensemble=config.ensemble,
            std_weight=config.std_weight,
            scale=scale,
        )
        self._waiting: list[tuple[Sequence[RewardRequest], asyncio.Future[list[Score]]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def judge(self, requests: Sequence[RewardRequest]) -> list[Score]:
        """A score for each.

        Raises:
            WorkerError: if a rank of the models died.
        """
        future: asyncio.Future[list[Score]] = asyncio.get_running_loop().create_future()
        self._waiting.append((requests, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._work())
        return await future

    def state(self) -> bytes:
        """What the running scales remember."""
        return self._ensemble.state()

    def restore(self, state: bytes) -> None:
        """Go on from what `state` gave."""
        self._ensemble.restore(state)

    async def _work(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            try:
                scores = await self._scores([r for requests, _ in taken for r in requests])
            except WorkerError as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            start = 0
            for requests, future in taken:
                if not future.done():  # its group was given up
                    future.set_result(scores[start : start + len(requests)])
                start += len(requests)

    async def _scores(self, requests: Sequence[RewardRequest]) -> list[Score]:
        prompts, responses = [r.prompt for r in requests], [r.response for r in requests]
        try:
            async with self._group.turn:
                raw = await self._group.score(prompts, responses)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WorkerError(f"a rank of the reward models failed: {reason}") from error
        raw += feature_scores(self._heads, requests, self._features)
        return self._ensemble.scores(raw, reason=unusable(self._features))
