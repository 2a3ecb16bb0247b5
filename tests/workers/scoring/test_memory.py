"""The memory limit of a scorer process."""

import asyncio
from pathlib import Path

from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.types import RewardRequest, Score
from workers.scoring.pool import ScorerPool

PLUGIN = """
from rewards.registry import register

@register("hungry")
def hungry(request):
    return float(len(bytearray(int(request.response))))
"""


def test_a_reward_that_takes_too_much_costs_its_sample_only(tmp_path: Path) -> None:
    plugin = tmp_path / "hungry.py"
    plugin.write_text(PLUGIN)
    config = RewardConfig(
        components=(RewardComponent(name="hungry"),),
        plugins=(str(plugin),),
        num_workers=1,
        timeout_s=20,
        memory_gib=2,
    )
    pool = ScorerPool(config)
    try:

        async def score(response: str) -> Score:
            return await pool.score(RewardRequest(prompt="", response=response))

        assert "MemoryError" in asyncio.run(score(str(4 << 30))).errors[0]
        assert asyncio.run(score("5")).value == 5.0
    finally:
        pool.close()
