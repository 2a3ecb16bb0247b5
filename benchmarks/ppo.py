"""`make bench`: one PPO step by phase, each against what it is made of.

The four models of RLHF on the real stack: policy and critic in training, a frozen reference, and a
reward model, a small classifier that is written here. Each phase is measured by itself; in a run,
scoring overlaps the rollout. A forward pass or update (of all rows in one optimizer step) is
compared with a bare DeepSpeed engine on the same padded rows, scoring with a bare forward pass of
the classifier, the rollout with vLLM alone. One line a figure, then the same as JSON.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.limits import (
    NUM_PROMPTS,
    NUM_SAMPLES,
    RANKS,
    RESPONSE_TOKENS,
    ROUNDS,
    SAMPLING,
    answer,
    bare_deepspeed,
    bare_vllm,
    groups,
    in_process,
    memcpy_gib_per_s,
    requests,
    timed,
)
from rlstack.commands.demo_model import build_demo_model

PHASES = (
    "reallocation",
    "rollout",
    "scoring",
    "policy forward",
    "reference forward",
    "critic forward",
    "advantages",
    "policy update",
    "critic update",
)


def write_classifier(directory: Path, *, base: Path) -> None:
    """A reward model with one label: the demo model below a random head."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(
        directory
    )
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)


def bench_stack(model: Path, classifier: Path, rows_file: Path) -> dict[str, float]:
    """Seconds of every phase of the real step on the real roles."""
    from rlstack.commands.composing import composed_values
    from rlstack.commands.rl_roles import run_spec
    from rlstack.config.load import parse
    from rlstack.config.run import RLConfig
    from workers.launch.launch import launch

    overrides = [
        "experiment=quickstart",
        "algorithm=ppo",
        "algorithm.updates_per_epoch=1",
        "reward=model",
        f"reward.model.checkpoints=[{classifier}]",
        f"rollout.max_response_tokens={RESPONSE_TOKENS}",
        f"data.prompts_per_step={NUM_PROMPTS}",
        f"rollout.num_samples={NUM_SAMPLES}",
        f"model.path={model}",
        f"run_dir={model}",
    ]
    config = parse(RLConfig, composed_values("rl", overrides))
    seconds: dict[str, list[float]] = {}
    found: dict[str, float] = {}

    async def measure() -> None:
        async with launch(run_spec(config)) as roles:
            for version in range(ROUNDS + 1):
                marks, sizes = await one_step(roles, config, version, rows_file)
                found.update(sizes)
                if version:  # the first round warms up
                    for name, start, end in zip(PHASES, marks[:-1], marks[1:], strict=True):
                        seconds.setdefault(name, []).append(end - start)

    asyncio.run(measure())
    return {name: median(values) for name, values in seconds.items()} | found


async def one_step(
    roles: Any, config: Any, version: int, rows_file: Path
) -> tuple[list[float], dict[str, float]]:
    """The clock before the first of `PHASES` and after each; sizes. Writes the rows and texts."""
    from rlstack.algorithms.catalog import estimate_advantages
    from rlstack.batch import collate
    from rlstack.minibatches import Forward, critic_batch, policy_batch
    from rlstack.types import Phase

    asked = requests()
    marks = [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    metrics = await roles.reallocator.enter(Phase.GENERATE, version=version)
    mark()
    rollouts = {i: r async for i, r in roles.engines.generate(asked, SAMPLING)}
    mark()
    texts = [rollouts[index].text for index in range(len(asked))]
    scores = (await roles.reward_models.score([""] * len(texts), texts))[0]
    mark()
    batch = collate(groups(rollouts, scores), pad_token_id=0)
    await roles.reallocator.enter(Phase.TRAIN, version=version)
    old = await roles.policy.logprobs(batch)
    mark()
    reference = await roles.reference.logprobs(batch)
    mark()
    values = await roles.critic.values(batch)
    mark()
    kl_coef = config.algorithm.kl.coef
    estimate = estimate_advantages(
        batch, old, reference, values, config=config.algorithm, kl_coef=kl_coef
    )
    mark()
    forward = Forward(old_logprobs=old, ref_logprobs=reference, values=values)
    every_row = torch.arange(batch.num_rows)
    lesson = policy_batch(batch, forward, estimate, every_row, kl_coef=kl_coef)
    await roles.policy.update(lesson, config.algorithm)
    mark()
    await roles.critic.update(critic_batch(batch, forward, estimate, every_row), config.critic)
    mark()
    torch.save((batch.token_ids, batch.attention_mask, batch.loss_mask), rows_file)
    rows_file.with_suffix(".json").write_text(json.dumps(texts))
    sizes = {
        "transfer_rate": metrics.values()["transfer/gib_per_s"],
        "response_tokens": float(batch.loss_mask.sum()),
    }
    return marks, sizes


def bench_classifier(classifier: Path, rows_file: Path) -> float:
    """Seconds of one bare forward pass of the classifier over all texts, padded."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(os.cpu_count() or 1)  # as the only rank of the group
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    texts = json.loads(rows_file.with_suffix(".json").read_text())
    inputs = tokenizer(texts, padding=True, return_tensors="pt")

    def forward() -> None:
        with torch.inference_mode():
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])

    return timed(forward)


def main() -> None:
    """Run every part, print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        model, classifier = Path(folder) / "model", Path(folder) / "classifier"
        rows = Path(folder) / "rows.pt"
        build_demo_model(model, seed=0)
        write_classifier(classifier, base=model)
        print("measuring PPO's step (1/4)", file=sys.stderr)
        parts = (str(model), str(classifier), str(rows))
        stack = answer(in_process("stack", *parts, module="benchmarks.ppo"))
        print("measuring vLLM alone (2/4)", file=sys.stderr)
        vllm_s = bare_vllm(model)
        print("measuring DeepSpeed alone (3/4)", file=sys.stderr)
        bare = bare_deepspeed(model, rows)
        print("measuring the classifier alone (4/4)", file=sys.stderr)
        parts = (str(classifier), str(rows))
        scoring = answer(in_process("classifier", *parts, module="benchmarks.ppo"))
        model_bytes = (model / "model.safetensors").stat().st_size
    limits = {
        "reallocation": model_bytes / 2**30 / memcpy_gib_per_s(model_bytes),
        "rollout": vllm_s,
        "scoring": scoring,
        "policy forward": bare["forward"],
        "reference forward": bare["forward"],
        "critic forward": bare["forward"],
        "policy update": bare["update"],
        "critic update": bare["update"],
    }
    step = sum(stack[name] for name in PHASES)
    figures = [
        ("PPO step", step, "s"),
        ("trainer ranks", RANKS, ""),
        ("rollout", stack["response_tokens"] / stack["rollout"], "tokens/s"),
        ("transfer", stack["transfer_rate"], "GiB/s"),
    ]
    for name in PHASES:
        figures.append((f"PPO step/{name}", stack[name], "s"))
        if name in limits:
            figures.append((f"limit / {name}", limits[name] / stack[name], "ratio"))
    figures.append(("PPO step over the sum of its limits", step / sum(limits.values()), "ratio"))
    for name, value, unit in figures:
        print(f"{name}: {value:.4g} {unit}".rstrip())
    print(json.dumps({name: {"value": value, "unit": unit} for name, value, unit in figures}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stack", model_path, classifier_path, rows_path]:
            parts = (Path(model_path), Path(classifier_path), Path(rows_path))
            print(json.dumps(bench_stack(*parts)))
        case ["classifier", classifier_path, rows_path]:
            print(json.dumps(bench_classifier(Path(classifier_path), Path(rows_path))))
        case _:
            main()
