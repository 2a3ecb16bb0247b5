"""PPO beside PF-PPO (arXiv 2409.06957) on the real stack, with a reward that is often wrong.

The experiment rlhf_quickstart, in small steps of four prompts, and with another reward than its
model's: the true one with an error that belongs to the response, none for the best and the worst
of each prompt's responses, and however large for those in between. Policy, critic and prompts
start the same for all; every method samples the same number of responses in the same number of
steps. What is compared is the true reward on held-out prompts, which nothing is trained on.

    python -m benchmarks.filtration_runs RUN_DIR       5 seeds of each method, about 25 minutes
    python -m benchmarks.filtration_runs RUN_DIR 2     2 seeds

Interrupted, it goes on where it was.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any

import yaml

import conf
from rewards.registry import register
from rlstack.commands.demo_words import true_reward
from rlstack.types import RewardRequest

SEEDS = 5
EXPERIMENT = Path(conf.__file__).parent / "experiment" / "rlhf_quickstart.yaml"
METHODS = {
    "PPO": "algorithm=ppo",
    "PF-PPO best_worst": "algorithm=pf_ppo",
}
REPLACED = ("algorithm=", "reward", "data.prompts_per_step=", "checkpoint.", "evaluation.")
CHANGED = (
    "algorithm.kl.coef=0.02",
    "reward.components=[{name: mistaken_in_the_middle}, {name: asked_words, weight: 0}]",
    f"reward.plugins=[rlstack.commands.demo_words, {Path(__file__).resolve()}]",
    "data.prompts_per_step=4",
    "total_steps=40",
    "evaluation.every=20",
    "evaluation.num_samples=16",
    "checkpoint.every=0",
    "checkpoint.export=false",
)
TRAINED_ON, TRUE = "eval/part/mistaken_in_the_middle", "eval/part/asked_words"
MARGIN = 0.05
"""By which the best of a group stays ahead of all others, and the worst behind."""


@register("mistaken_in_the_middle", batched=True)
def mistaken_in_the_middle(
    requests: Sequence[RewardRequest], *, deviation: float = 1.0
) -> list[float]:
    """The true reward, wrong by `deviation` for those that are neither best nor worst."""
    true = [true_reward(r.response, letters=r.metadata["letters"]) for r in requests]
    low, high = min(true), max(true)

    def judged(request: RewardRequest, value: float) -> float:
        if value in (low, high):
            return value
        error = Random(f"{request.prompt}|{request.response}").gauss(0.0, deviation)
        return min(max(value + error, low + MARGIN), high - MARGIN)

    return [judged(request, value) for request, value in zip(requests, true, strict=True)]


def stage_name(method: str, seed: int) -> str:
    """Of the pipeline's stage, and its folder."""
    return f"{method.lower().replace(' ', '_')}_{seed}"


def stages(num_seeds: int) -> list[dict[str, Any]]:
    """Those of rlhf_quickstart; the last of them for every method and seed."""
    *shared, ppo = yaml.safe_load(EXPERIMENT.read_text())["stages"]
    kept = [text for text in ppo["arguments"] if not text.startswith(REPLACED)]
    policies = [
        {
            "name": stage_name(method, seed),
            "command": ppo["command"],
            "arguments": [*kept, selected, *CHANGED, f"seed={seed}"],
        }
        for seed in range(num_seeds)
        for method, selected in METHODS.items()
    ]
    return [*shared, *policies]


def run(run_dir: Path, num_seeds: int) -> None:
    """What is not done yet."""
    experiments = run_dir / "conf" / "experiment"
    experiments.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"stages": stages(num_seeds)}, sort_keys=False)
    (experiments / "filtration_runs.yaml").write_text(f"# @package _global_\n{text}")
    own = [f"--config-dir={experiments.parent}", "experiment=filtration_runs", f"run_dir={run_dir}"]
    subprocess.run([sys.executable, "-m", "rlstack.cli", "pipeline", *own], check=True)


def measured(run_dir: Path, method: str, seed: int, metric: str) -> list[float]:
    """The metric at every evaluation."""
    lines = (run_dir / stage_name(method, seed) / "metrics.jsonl").read_text().splitlines()
    return [row[metric] for row in map(json.loads, lines) if metric in row]


def lines(run_dir: Path, num_seeds: int) -> Iterator[str]:
    """The table, as Markdown."""
    yield "| | true reward | reward trained on | true reward of each seed |"
    yield "|---|---|---|---|"
    for method in METHODS:
        last = {
            metric: [measured(run_dir, method, seed, metric)[-1] for seed in range(num_seeds)]
            for metric in (TRUE, TRAINED_ON)
        }
        cells = [f"{mean(values):.3f} ± {stdev(values):.3f}" for values in last.values()]
        each = ", ".join(f"{value:.2f}" for value in last[TRUE])
        yield f"| {method} | {' | '.join(cells)} | {each} |"


def main() -> None:
    """Train, and print the table."""
    run_dir, *number = sys.argv[1:]
    num_seeds = int(number[0]) if number else SEEDS
    run(Path(run_dir).resolve(), num_seeds)
    for line in lines(Path(run_dir), num_seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
