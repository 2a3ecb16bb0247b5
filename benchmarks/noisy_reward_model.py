"""PPO beside PF-PPO (arXiv 2409.06957) on the real stack, with a reward model taught by mistakes.

The experiment rlhf_quickstart, with a reward model of preferences of which 35% are wrong: people
who take the worse response for the better one that often. Policy, reward model and prompts are the
same for all; every method samples the same number of responses in the same number of steps. What is
compared is the true reward, on held-out prompts, which nothing is trained on. The R^2 are those of
`rlstack rewards reliability`, on responses of the policy at its start.

    python -m benchmarks.noisy_reward_model RUN_DIR       5 seeds of 3 methods, about 30 minutes
    python -m benchmarks.noisy_reward_model RUN_DIR 2     2 seeds

Interrupted, it goes on where it was.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

import conf
from rewards.reliability import Calibration, reliability

SEEDS = 5
EXPERIMENT = Path(conf.__file__).parent / "experiment" / "rlhf_quickstart.yaml"
METHODS = {
    "PPO": ["algorithm=ppo"],
    "PF-PPO best_random": ["algorithm=pf_ppo", "algorithm.filtration.name=best_random"],
    "PF-PPO best_worst": ["algorithm=pf_ppo", "algorithm.filtration.name=best_worst"],
}
# The noise makes the scores small, and so must be the KL's weight.
CHANGED = ["algorithm.kl.coef=0.02", "total_steps=20", "checkpoint.every=0"]
PROXY, TRUE = "eval/part/reward_model", "eval/part/asked_words"


def stage_name(method: str, seed: int) -> str:
    """Of the pipeline's stage, and its folder."""
    return f"{method.lower().replace(' ', '_')}_{seed}"


def stages(num_seeds: int) -> list[dict[str, Any]]:
    """Those of rlhf_quickstart; the last of them for every method and seed."""
    *shared, ppo = yaml.safe_load(EXPERIMENT.read_text())["stages"]
    for stage in shared:
        stage["arguments"] = [
            text.replace("/preferences.jsonl", "/noisy_preferences.jsonl")
            for text in stage["arguments"]
        ]
    policies = [
        {
            "name": stage_name(method, seed),
            "command": ppo["command"],
            "arguments": [
                *(text for text in ppo["arguments"] if text != "algorithm=ppo"),
                *(*selected, *CHANGED, f"seed={seed}"),
            ],
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
    (experiments / "noisy.yaml").write_text(f"# @package _global_\n{text}")
    own = [f"--config-dir={experiments.parent}", "experiment=noisy", f"run_dir={run_dir}"]
    subprocess.run([sys.executable, "-m", "rlstack.cli", "pipeline", *own], check=True)


def measured(run_dir: Path, method: str, seed: int, metric: str) -> list[float]:
    """The metric at every evaluation."""
    lines = (run_dir / stage_name(method, seed) / "metrics.jsonl").read_text().splitlines()
    return [row[metric] for row in map(json.loads, lines) if metric in row]


def r_squared(run_dir: Path) -> str:
    """How much of the true reward the learned one tells, by filtration policy."""
    file = run_dir / stage_name("PPO", 0) / "rollouts" / "step_000001.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = reliability(
        Calibration(
            groups=tuple(row["prompt_id"] for row in rows),
            rewards=tuple(row["parts"]["reward_model"] for row in rows),
            scores=tuple(row["parts"]["asked_words"] for row in rows),
        )
    )
    values = ", ".join(f"{name} {value:.2f}" for name, value in found.by_policy.items())
    return f"R^2: {values}; recommended: {found.recommended}"


def lines(run_dir: Path, num_seeds: int) -> Iterator[str]:
    """The table, as Markdown."""
    yield r_squared(run_dir)
    yield "| | true reward | reward model | true reward, each seed |"
    yield "|---|---|---|---|"
    for method in METHODS:
        last = {
            metric: [measured(run_dir, method, seed, metric)[-1] for seed in range(num_seeds)]
            for metric in (TRUE, PROXY)
        }
        cells = [f"{mean(values):.3f} ± {stdev(values):.3f}" for values in last.values()]
        each = ", ".join(f"{value:.2f}" for value in last[TRUE])
        yield f"| {method} | {' | '.join(cells)} | {each} |"


def main() -> None:
    """Train, and print the table."""
    run_dir, *number = sys.argv[1:]
    num_seeds = int(number[0]) if number else SEEDS
    run(Path(run_dir), num_seeds)
    for line in lines(Path(run_dir), num_seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
