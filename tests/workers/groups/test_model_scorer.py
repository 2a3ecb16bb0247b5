"""What is sent to served reward models, and what is not."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlstack.config.reward import RewardComponent, RewardConfig, RewardModelsConfig
from rlstack.types import RewardRequest
from workers.groups.model_scorer import ModelGroupScorer
from workers.scoring.pool import ScorerPool


@dataclass
class FakeGroup:
    """Scores a response by its length."""

    judged: list[str] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        self.judged += responses
        return np.array([[float(len(response)) for response in responses]])


def request(response: str, *, source: str) -> RewardRequest:
    return RewardRequest(prompt="p", response=response, data_source=source)


def test_rows_of_other_sources_reach_no_model_and_no_running_scale(tmp_path: Path) -> None:
    models = RewardModelsConfig(
        checkpoints=(str(tmp_path),),
        ensemble="mean",
        std_weight=0.0,
        scale="running",
        max_tokens=10,
        max_tokens_per_batch=10,
        dtype="float32",
        special_tokens="end",
        features=(),
        zero_stage=0,
    )
    config = RewardConfig(
        components=(
            RewardComponent(name="reward_model", data_sources=("chat",)),
            RewardComponent(name="json_schema", label="other", data_sources=("json",)),
        ),
        plugins=(),
        model=models,
        num_workers=1,
        timeout_s=20.0,
        memory_gib=16.0,
    )
    pool = ScorerPool(config)
    group = FakeGroup()

    async def arriving(one: RewardRequest) -> RewardRequest:
        return one

    async def judge() -> list[list[dict[str, float | None]]]:
        served = ModelGroupScorer(group, models)  # type: ignore[arg-type]
        pool.serve(served)
        rows = [
            [request("a", source="chat"), request("abc", source="chat")],
            [request("long long", source="json"), request("{}", source="json")],
        ]
        scores = await asyncio.gather(
            *(pool.score_group([arriving(one) for one in group], step=0) for group in rows)
        )
        return [[dict(score.parts) for score in group] for group in scores]

    try:
        chat, other = asyncio.run(judge())
    finally:
        pool.close()
    assert group.judged == ["a", "abc"]
    assert [parts["reward_model"] for parts in chat] == [-1.0, 1.0]
    assert all("reward_model" not in parts for parts in other)
