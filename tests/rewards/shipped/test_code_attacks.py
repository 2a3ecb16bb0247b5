"""No program of the corpus earns a reward, harms the host, outlives its limit or stays behind."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

import psutil
import pytest

from rewards.shipped.code import Code
from rlstack.types import RewardRequest
from tests.rewards.attacks.programs import ATTACKS

SECRET = "secret-5c1e77a0"
LIMIT_S = 1.0
CHECKS = {
    "stdin": {"cases": [{"stdin": "go\n", "stdout": SECRET}]},
    "calls": {"entry_point": "solve", "cases": [{"args": [3], "expected": SECRET}]},
    "asserts": {
        "entry_point": "solve",
        "tests": f"def check(candidate):\n    for n in range(3):\n"
        f"        assert candidate(n) == {SECRET!r}\n",
    },
}
HONEST = f"def solve(n): return {SECRET!r}\nprint({SECRET!r})"


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("host") / "canary.txt"
    path.write_text(SECRET)
    os.environ["RLSTACK_SECRET"] = SECRET
    yield path
    del os.environ["RLSTACK_SECRET"]


def judge(reward: Code, program: str, checks: str) -> float | None:
    request = RewardRequest(prompt="", response=program, metadata={"code": CHECKS[checks]})
    return reward(request).value


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_the_corpus_is_large_and_names_what_it_tries() -> None:
    assert len(ATTACKS) >= 80
    assert len({name for name, _, _ in ATTACKS}) == len(ATTACKS)
    assert all(tries for _, tries, _ in ATTACKS)


def test_no_attack_earns_a_reward_or_harms_the_host(canary: Path) -> None:
    before = descendants()
    rewards: list[Code] = []
    mine = local()

    def attack(name: str, program: str, checks: str) -> tuple[str, str, float | None, float]:
        if not hasattr(mine, "reward"):
            mine.reward = Code(
                time_limit_s=LIMIT_S, memory_mib=128, processes=8, file_mib=4, output_kib=256
            )
            # The judge's sandbox starts now and not within the time of an attack.
            assert judge(mine.reward, HONEST, "asserts") == 1.0
            rewards.append(mine.reward)
        start = time.monotonic()
        value = judge(mine.reward, program.replace("@CANARY@", str(canary)), checks)
        return name, checks, value, time.monotonic() - start

    jobs = [(name, program, checks) for name, _, program in ATTACKS for checks in CHECKS]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda job: attack(*job), jobs))
    try:
        assert [(n, c, v) for n, c, v, _ in results if v != 0.0] == []
        assert [(n, c, s) for n, c, _, s in results if s > LIMIT_S + 1] == []
        assert canary.read_text() == SECRET
        # The sandboxes themselves are idle: bwrap, its first process and the server of each.
        for reward in rewards:
            for checks in CHECKS:
                assert judge(reward, HONEST, checks) == 1.0
        time.sleep(0.2)  # the last keepers end after their report
        assert len(descendants() - before) <= 3 * 2 * len(rewards)
    finally:
        for reward in rewards:
            reward.close()
    assert descendants() <= before
