"""`make bench`: one GRPO step against the limits it is made of.

Measures, with the same weights and prompts: a step by phase; what the same vLLM engine generates
alone; what a bare DeepSpeed engine trains alone; reallocation against memcpy; and the share of the
step that is none of these. One line a figure, then the same as JSON. Absolute figures depend on the
machine; the ratios are what to compare.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rlstack.stages.demo_model import build_demo_model

NUM_PROMPTS, NUM_SAMPLES, PROMPT_TOKENS, RESPONSE_TOKENS = 32, 8, 16, 40
ROUNDS = 6
RANKS = 2
TIMEOUT_S = 900.0


def prompt_ids() -> list[list[int]]:
    """The prompts of every part: the same tokens."""
    generator = np.random.default_rng(0)
    return generator.integers(2, 250, size=(NUM_PROMPTS, PROMPT_TOKENS)).tolist()


def timed(run: Callable[[], Any]) -> float:
    """Median seconds of `run` after one warm-up."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def bench_stack(model: Path, rows_file: Path) -> dict[str, float]:
    """The real step on the real roles, phase by phase."""
    from rlstack.algorithms.catalog import estimate_advantages
    from rlstack.batch import collate
    from rlstack.config.load import parse
    from rlstack.config.run import RLConfig
    from rlstack.minibatches import Forward, policy_batch
    from rlstack.stages.composing import composed_values
    from rlstack.stages.rl_roles import launch_spec
    from rlstack.types import GenerationRequest, Group, Phase, Prompt, SamplingSettings, Score
    from workers.launch import launch

    overrides = [
        "experiment=quickstart",
        f"rollout.max_response_tokens={RESPONSE_TOKENS}",
        f"data.prompts_per_step={NUM_PROMPTS}",
        f"rollout.num_samples={NUM_SAMPLES}",
    ]
    config = parse(
        RLConfig, composed_values("rl", [*overrides, f"model.path={model}", f"run_dir={model}"])
    )
    prompts = [
        Prompt(
            prompt_id=str(index),
            data_source="bench",
            text="",
            token_ids=np.array(ids),
            answer=None,
            reward=None,
            metadata={},
        )
        for index, ids in enumerate(prompt_ids())
    ]
    requests = [
        GenerationRequest(
            request_id=row * NUM_SAMPLES + index, prompt=prompt, sample_index=index, seed=index
        )
        for row, prompt in enumerate(prompts)
        for index in range(NUM_SAMPLES)
    ]
    sampling = SamplingSettings(temperature=1.0, max_response_tokens=RESPONSE_TOKENS)
    phases: dict[str, list[float]] = {}
    sizes: dict[str, float] = {}

    async def measure() -> None:
        start = time.perf_counter()
        async with launch(launch_spec(config)) as roles:
            sizes["startup"] = time.perf_counter() - start
            assert roles.policy
            assert roles.engines
            assert roles.reallocator
            for version in range(ROUNDS + 1):
                marks = [time.perf_counter()]
                metrics = await roles.reallocator.enter(Phase.GENERATE, version=version)
                marks.append(time.perf_counter())
                found = {i: r async for i, r in roles.engines.generate(requests, sampling)}
                marks.append(time.perf_counter())
                groups = [
                    Group(
                        prompt=prompt,
                        rollouts=tuple(found[row * NUM_SAMPLES + i] for i in range(NUM_SAMPLES)),
                        scores=tuple(Score(value=float(i % 2)) for i in range(NUM_SAMPLES)),
                    )
                    for row, prompt in enumerate(prompts)
                ]
                batch = collate(groups, pad_token_id=0)
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


def bench_vllm(model: Path) -> float:
    """Seconds of one `LLM.generate` with the same prompts and settings, nothing around it."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        model=str(model),
        dtype="float32",
        max_model_len=128,
        max_num_seqs=256,
        enforce_eager=True,
        enable_chunked_prefill=False,
        max_num_batched_tokens=8192,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        disable_log_stats=True,
    )
    prompts = [
        TokensPrompt(prompt_token_ids=ids) for ids in prompt_ids() for _ in range(NUM_SAMPLES)
    ]
    params = [
        SamplingParams(temperature=1.0, max_tokens=RESPONSE_TOKENS, seed=index, logprobs=0)
        for _ in range(NUM_PROMPTS)
        for index in range(NUM_SAMPLES)
    ]
    return timed(lambda: llm.generate(prompts, params, use_tqdm=False))


def bench_deepspeed(model: Path, rows_file: Path, rank: int, port: int) -> dict[str, float]:
    """Seconds of forward, and of forward, backward and step, of a bare engine on padded rows."""
    import deepspeed
    from transformers import AutoModelForCausalLM

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // RANKS))
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    module = AutoModelForCausalLM.from_pretrained(model)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=module.parameters(),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 1},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-6, "torch_adam": True}},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    token_ids, attention_mask, loss_mask = (t[rank::RANKS] for t in torch.load(rows_file))
    labels = token_ids.masked_fill(~loss_mask, -100)

    def forward() -> Any:
        return engine(input_ids=token_ids, attention_mask=attention_mask.long(), labels=labels)

    def forward_only() -> None:
        with torch.no_grad():
            forward()

    def update() -> None:
        engine.backward(forward().loss)
        engine.step()

    return {"forward": timed(forward_only), "update": timed(update)}


def memcpy_gib_per_s(num_bytes: int) -> float:
    """Bytes a second of copying `num_bytes` within memory."""
    source, target = (
        torch.ones(num_bytes, dtype=torch.uint8),
        torch.empty(num_bytes, dtype=torch.uint8),
    )
    return num_bytes / 2**30 / timed(lambda: target.copy_(source))


def in_process(*arguments: str, module: str = "benchmarks.step") -> subprocess.Popen[str]:
    """This file again, or another benchmark, as a process of its own, its last line JSON."""
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answer(process: subprocess.Popen[str]) -> Any:
    """What the process found."""
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # what it started ends with it
        raise
    if process.returncode:
        raise RuntimeError(f"{process.args} failed:\n{errors[-3000:]}")
    return json.loads(output.splitlines()[-1])


def bare_deepspeed(model: Path, rows_file: Path) -> dict[str, float]:
    """`bench_deepspeed` on all ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    parts = [("deepspeed", str(model), str(rows_file), str(rank), port) for rank in range(RANKS)]
    bare, *_ = map(answer, [in_process(*part) for part in parts])
    return bare


def main() -> None:
    """Run every part, print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        model, rows = Path(folder) / "model", Path(folder) / "rows.pt"
        build_demo_model(model, seed=0)
        print("measuring the step (1/3)", file=sys.stderr)
        stack = answer(in_process("stack", str(model), str(rows)))
        print("measuring vLLM alone (2/3)", file=sys.stderr)
        vllm_s = answer(in_process("vllm", str(model)))
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
        case ["vllm", model_path]:
            print(json.dumps(bench_vllm(Path(model_path))))
        case ["deepspeed", model_path, rows_path, rank_number, port_number]:
            found = bench_deepspeed(
                Path(model_path), Path(rows_path), int(rank_number), int(port_number)
            )
            print(json.dumps(found))
        case _:
            main()
