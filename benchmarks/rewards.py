"""`make bench`: how many answers the checkers judge, how fast, and in how much memory.

Measures `math_answer` on answers like GSM8K's and like MATH's: checks a second on one core,
latency, the scorer pool with one and two processes, and 10,000 different answers in one process.
One line a figure, then the same as JSON. Absolute figures depend on the machine.
"""

import asyncio
import json
import random
import time
from statistics import quantiles

import psutil

from rewards.shipped.math_answer import math_answer
from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.types import RewardRequest
from workers.scoring.pool import ScorerPool

NUM_CHECKS = 2_000
NUM_MEMORY = 10_000
# Eight responses share a reference, as the rollouts of one prompt do.
GROUP = 8


def grade_school(random_: random.Random, count: int) -> list[RewardRequest]:
    """A few sentences of sums and a number behind `####` or at the end."""
    requests: list[RewardRequest] = []
    for index in range(count):
        a, b = random_.randrange(2, 900), random_.randrange(2, 900)
        if index % GROUP == 0:
            answer = str(a * b)
        said = a * b if index % GROUP else answer
        work = f"Each of the {a} boxes holds {b} pens, so {a} * {b} = <<{a}*{b}={a * b}>>{a * b}. "
        end = "#### " if index % 2 else "The answer is "
        requests.append(
            RewardRequest(prompt="", response=f"{work * 4}\n{end}{said}", answer=answer)
        )
    return requests


def competition(random_: random.Random, count: int) -> list[RewardRequest]:
    """LaTeX in a box: fractions, roots, polynomials, intervals, sets, pairs, matrices."""

    def one() -> str:
        a, b, c = (random_.randrange(2, 60) for _ in range(3))
        return random_.choice(
            [
                f"{a}",
                f"\\frac{{{a}}}{{{b}}}",
                f"{a}\\sqrt{{{b}}}",
                f"\\frac{{{a}\\pi}}{{{b}}}",
                f"{a}x^2+{b}x-{c}",
                f"({a}x+{b})(x-{c})",
                f"\\left[{a},\\infty\\right)",
                f"\\{{{a},{b},{c}\\}}",
                f"({a},\\frac{{{b}}}{{{c}}})",
                f"\\begin{{pmatrix}}{a}&{b}\\\\0&{c}\\end{{pmatrix}}",
                f"{a}+{b}i",
                f"x={a}",
            ]
        )

    requests: list[RewardRequest] = []
    for index in range(count):
        if index % GROUP == 0:
            answer = one()
        found = answer if index % 2 else one()
        work = "We complete the square and find that $x^2 + 4x = 5$ has two roots. " * 6
        requests.append(
            RewardRequest(prompt="", response=f"{work}\n\\boxed{{{found}}}.", answer=answer)
        )
    return requests


def latencies(requests: list[RewardRequest]) -> list[float]:
    """Seconds of each check, one after the other."""
    seconds: list[float] = []
    for request in requests:
        start = time.perf_counter()
        math_answer(request)
        seconds.append(time.perf_counter() - start)
    return seconds


async def pool_rate(requests: list[RewardRequest], num_workers: int) -> float:
    """Checks a second through the scorer pool, once its processes are warm."""
    config = RewardConfig(
        components=(RewardComponent(name="math_answer"),),
        plugins=(),
        num_workers=num_workers,
        timeout_s=10,
        memory_gib=16,
    )
    pool = ScorerPool(config)
    try:
        await pool.ready()
        half = len(requests) // 2
        await asyncio.gather(*map(pool.score, requests[:half]))
        start = time.perf_counter()
        await asyncio.gather(*map(pool.score, requests[half:]))
        return (len(requests) - half) / (time.perf_counter() - start)
    finally:
        pool.close()


def main() -> None:
    """Run every part, print the figures."""
    random_ = random.Random(0)
    figures: list[tuple[str, float, str]] = []
    for name, make in (("GSM8K-like", grade_school), ("MATH-like", competition)):
        requests = make(random_, NUM_CHECKS)
        latencies(make(random_, NUM_CHECKS // 4))
        processor = time.process_time()
        seconds = latencies(requests)
        processor = time.process_time() - processor
        cuts = quantiles(seconds, n=100)
        figures += [
            (f"{name}, checks a core", len(seconds) / processor, "1/s"),
            (f"{name}, checks one after the other", len(seconds) / sum(seconds), "1/s"),
            (f"{name}, p50", 1e3 * cuts[49], "ms"),
            (f"{name}, p99", 1e3 * cuts[98], "ms"),
        ]
        rates = [asyncio.run(pool_rate(requests, workers)) for workers in (1, 2)]
        figures += [
            (f"{name}, scorer pool of 1", rates[0], "1/s"),
            (f"{name}, scorer pool of 2", rates[1], "1/s"),
            (f"{name}, 2 processes over 1", rates[1] / rates[0], "ratio"),
        ]
    process = psutil.Process()
    requests = competition(random_, NUM_MEMORY)
    for part, name in enumerate(("before", "after 5,000 answers", "after 10,000 answers")):
        if part:
            half = NUM_MEMORY // 2
            latencies(requests[(part - 1) * half : part * half])
        figures.append((f"memory {name}", process.memory_info().rss / 2**20, "MiB"))
    for name, value, unit in figures:
        print(f"{name}: {value:.4g} {unit}")
    print(json.dumps({name: {"value": value, "unit": unit} for name, value, unit in figures}))


if __name__ == "__main__":
    main()
