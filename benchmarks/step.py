"""`make bench`: one GRPO step against the limits it is made of.

Measures, with the same weights and prompts: a step by phase; what the same vLLM engine generates
alone; what a bare DeepSpeed engine trains alone; reallocation against memcpy; and the share of the
step that is none of these. One line a figure, then the same as JSON. Absolute figures depend on the
machine; the ratios are what to compare.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.limits import (
    NUM_PROMPTS,
    NUM_SAMPLES,
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
)
from rlstack.commands.demo_model import build_demo_model


def bench_stack(model: Path, rows_file: Path) -> dict[str, float]:
    """The real step on the real roles, phase by phase."""
    from rlstack.algorithms.catalog import estimate_advantages
    from rlstack.batch import collate
    from rlstack.commands.composing import composed_values
    from rlstack.commands.rl_roles import run_spec
    from rlstack.config.load import parse
    from rlstack.config.run import RLConfig
    from rlstack.minibatches import Forward, policy_batch
    from rlstack.types import Phase
    from workers.launch.launch import launch

    overrides = [
        "experiment=quickstart",
        f"rollout.max_response_tokens={RESPONSE_TOKENS}",
        f"data.prompts_per_step={NUM_PROMPTS}",
        f"rollout.num_samples={NUM_SAMPLES}",
    ]
    config = parse(
        RLConfig, composed_values("rl", [*overrides, f"model.path={model}", f"run_dir={model}"])
    )
    asked = requests()
    rewards = [float(request.request_id % 2) for request in asked]
    phases: dict[str, list[float]] = {}
    sizes: dict[str, float] = {}

    async def measure() -> None:
        start = time.perf_counter()
        async with launch(run_spec(config)) as roles:
            sizes["startup"] = time.perf_counter() - start
            assert roles.policy
            assert roles.engines
            assert roles.reallocator
            for version in range(ROUNDS + 1):
                marks = [time.perf_counter()]
                metrics = await roles.reallocator.enter(Phase.GENERATE, version=version)
                marks.append(time.perf_counter())
                found = {i: r async for i, r in roles.engines.generate(asked, SAMPLING)}
                marks.append(time.perf_counter())
                batch = collate(groups(found, rewards), pad_token_id=0)
                await roles.reallocator.enter(Phase.TRAIN, version=version)
                old = await roles.policy.logprobs(batch)
                forward = Forward(old_logprobs=old, ref_logprobs=old, values=None)
                marks.append(time.perf_counter())
                kl_coef = config.algorithm.kl.coef
                estimate = estimate_advantages(
                    batch, old, old, config=config.algorithm, kl_coef=kl_coef
                )
                marks.append(time.perf_counter())
                every_row = torch.arange(batch.num_rows)
                await roles.policy.update(
                    policy_batch(batch, forward, estimate, every_row, kl_coef=kl_coef),
                    config.algorithm,
                )
                marks.append(time.perf_counter())
                if version:  # the first round warms up
                    names = ("reallocation", "rollout", "logprobs", "advantages", "update")
                    for name, a, b in zip(names, marks, marks[1:], strict=False):
                        phases.setdefault(name, []).append(b - a)
                    phases.setdefault("transfer_rate", []).append(
                        metrics.values()["transfer/gib_per_s"]
                    )
            sizes["response_tokens"] = float(batch.loss_mask.sum())
            sizes["tokens"] = float(batch.attention_mask.sum())
            torch.save((batch.token_ids, batch.attention_mask, batch.loss_mask), rows_file)

    asyncio.run(measure())
    return {name: median(values) for name, values in phases.items()} | sizes


def main() -> None:
    """Run every part, print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        model, rows = Path(folder) / "model", Path(folder) / "rows.pt"
        build_demo_model(model, seed=0)
        print("measuring the step (1/3)", file=sys.stderr)
        stack = answer(in_process("stack", str(model), str(rows), module="benchmarks.step"))
        print("measuring vLLM alone (2/3)", file=sys.stderr)
        vllm_s = bare_vllm(model)
        print("measuring DeepSpeed alone (3/3)", file=sys.stderr)
        bare = bare_deepspeed(model, rows)
        model_bytes = (model / "model.safetensors").stat().st_size
    step = sum(
        stack[name] for name in ("reallocation", "rollout", "logprobs", "advantages", "update")
    )
    limit = vllm_s + bare["forward"] + bare["update"]
    memcpy = memcpy_gib_per_s(model_bytes)
    figures = [
        ("startup", stack["startup"], "s"),
        ("step", step, "s"),
        ("step/reallocation", stack["reallocation"], "s"),
        ("step/rollout", stack["rollout"], "s"),
        ("step/logprobs", stack["logprobs"], "s"),
        ("step/advantages", stack["advantages"], "s"),
        ("step/update", stack["update"], "s"),
        ("rollout", stack["response_tokens"] / stack["rollout"], "tokens/s"),
        ("rollout, vLLM alone", stack["response_tokens"] / vllm_s, "tokens/s"),
        ("rollout / vLLM alone", vllm_s / stack["rollout"], "ratio"),
        ("update", stack["tokens"] / stack["update"], "tokens/s"),
        ("update, bare DeepSpeed", stack["tokens"] / bare["update"], "tokens/s"),
        ("update / bare DeepSpeed", bare["update"] / stack["update"], "ratio"),
        ("reallocation", stack["transfer_rate"], "GiB/s"),
        ("reallocation, memcpy", memcpy, "GiB/s"),
        ("step over the sum of its limits", step / limit, "ratio"),
        ("orchestration overhead", 100 * (1 - limit / step), "%"),
    ]
    for name, value, unit in figures:
        print(f"{name}: {value:.4g} {unit}")
    print(json.dumps({name: {"value": value, "unit": unit} for name, value, unit in figures}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stack", model_path, rows_path]:
            print(json.dumps(bench_stack(Path(model_path), Path(rows_path))))
        case _:
            main()
