"""The component `reward_model` of a reward, judged by the worker group."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from ray.exceptions import RayError

from rewards.models.ensemble import FixedScale, ScoreEnsemble
from rewards.models.feature_head import FeatureHead, check_features, feature_scores, unusable
from rlstack.config.reward import RewardModelsConfig
from rlstack.errors import WorkerError
from rlstack.planning.spec import RewardModelRole
from rlstack.types import RewardRequest, Score
from workers.groups.reward_models import RewardModelGroup
from workers.scoring.pool import PendingRequests


def reward_model_role(config: RewardModelsConfig) -> RewardModelRole:
    """The models to start.

    Raises:
        RewardError: if the features named are not those that a model was trained with.
    """
    heads = {checkpoint: FeatureHead.load(checkpoint) for checkpoint in config.checkpoints}
    check_features(heads, config.features)
    return RewardModelRole(
        checkpoints=config.checkpoints,
        max_tokens=config.max_tokens,
        max_tokens_per_batch=config.max_tokens_per_batch,
        dtype=config.dtype,
        special_tokens=config.special_tokens,
        zero_stage=config.zero_stage,
    )


GROUPS_PER_CALL = 8
"""Groups that are judged together: enough to fill batches, few enough to judge while others are
still being generated."""


@dataclass(frozen=True, slots=True)
class _PendingGroup:
    pending: PendingRequests
    applies: Callable[[RewardRequest], bool]
    scores: "asyncio.Future[list[Score]]"


class ModelGroupScorer:
    """Judges groups of rollouts by the running models.

    Groups are judged in the order in which they were asked for, always as many together: what a
    padded batch holds changes the last bits of a score, and a resumed run must repeat them.
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
        self._waiting: deque[_PendingGroup] = deque()
        self._judging: asyncio.Task[None] | None = None

    async def judge(
        self, pending: PendingRequests, *, applies: Callable[[RewardRequest], bool]
    ) -> list[Score]:
        """A score for each rollout of a group, when all have arrived.

        None of them if the group's prompt is not one that `applies` says is to be judged.

        Raises:
            WorkerError: if a rank of the models died.
        """
        future: asyncio.Future[list[Score]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_PendingGroup(pending, applies, future))
        if self._judging is None or self._judging.done():
            # It begins after all groups that are asked for at the same time.
            self._judging = asyncio.ensure_future(self._judge_waiting())
        return await future

    def state(self) -> bytes:
        """What the running scales remember."""
        return self._ensemble.state()

    def restore(self, state: bytes) -> None:
        """Go on from what `state` gave."""
        self._ensemble.restore(state)

    async def _judge_waiting(self) -> None:
        while self._waiting:
            count = min(GROUPS_PER_CALL, len(self._waiting))
            groups: list[tuple[list[RewardRequest], asyncio.Future[list[Score]]]] = []
            for group in [self._waiting.popleft() for _ in range(count)]:
                found = await asyncio.gather(*group.pending, return_exceptions=True)
                requests = [one for one in found if isinstance(one, RewardRequest)]
                if len(requests) < len(found):  # generation failed, and whoever asked was told
                    group.scores.cancel()
                elif group.applies(requests[0]):
                    groups.append((requests, group.scores))
                elif not group.scores.done():
                    group.scores.set_result([])
            await self._resolve(groups)

    async def _resolve(
        self, groups: Sequence[tuple[list[RewardRequest], "asyncio.Future[list[Score]]"]]
    ) -> None:
        try:
            scores = iter(await self._scores([r for requests, _ in groups for r in requests]))
        except WorkerError as error:
            for _, future in groups:
                if not future.done():
                    future.set_exception(error)
            return
        for requests, future in groups:
            found = list(islice(scores, len(requests)))
            if not future.done():  # its group was given up
                future.set_result(found)

    async def _scores(self, requests: Sequence[RewardRequest]) -> list[Score]:
        if not requests:
            return []
        prompts, responses = [r.prompt for r in requests], [r.response for r in requests]
        try:
            async with self._group.turn:
                raw = await self._group.score(prompts, responses)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WorkerError(f"a rank of the reward models failed: {reason}") from error
        raw += feature_scores(self._heads, requests, self._features)
        return self._ensemble.scores(raw, reason=unusable(self._features))
