"""What the steps of the other benchmarks are made of, by itself: vLLM, DeepSpeed, memcpy.

Here too is the work that all of them are given: the same prompts, requests and rewards.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rlstack.types import GenerationRequest, Group, Prompt, Rollout, SamplingSettings, Score

NUM_PROMPTS, NUM_SAMPLES, PROMPT_TOKENS, RESPONSE_TOKENS = 32, 8, 16, 40
ROUNDS = 6
RANKS = 2
TIMEOUT_S = 900.0


def prompt_ids() -> list[list[int]]:
    """The prompts of every part: the same tokens."""
    generator = np.random.default_rng(0)
    return generator.integers(2, 250, size=(NUM_PROMPTS, PROMPT_TOKENS)).tolist()


def requests() -> list[GenerationRequest]:
    """`NUM_SAMPLES` of every prompt in turn; request i has the id i."""
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
    return [
        GenerationRequest(
            request_id=row * NUM_SAMPLES + index, prompt=prompt, sample_index=index, seed=index
        )
        for row, prompt in enumerate(prompts)
        for index in range(NUM_SAMPLES)
    ]


SAMPLING = SamplingSettings(temperature=1.0, max_response_tokens=RESPONSE_TOKENS)


def groups(rollouts: Mapping[int, Rollout], rewards: Sequence[float]) -> list[Group]:
    """The answers to `requests`, by id, with the reward of each."""
    asked = requests()
    return [
        Group(
            number=0,
            prompt=asked[first].prompt,
            rollouts=tuple(rollouts[i] for i in range(first, first + NUM_SAMPLES)),
            scores=tuple(Score(value=rewards[i]) for i in range(first, first + NUM_SAMPLES)),
        )
        for first in range(0, len(asked), NUM_SAMPLES)
    ]


def timed(run: Callable[[], Any]) -> float:
    """Median seconds of `run` after one warm-up."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


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
    # gloo serves these ranks; DeepSpeed would compile an extension of its own for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
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


def in_process(*arguments: str, module: str) -> subprocess.Popen[str]:
    """A benchmark as a process of its own, its last line JSON."""
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


def bare_vllm(model: Path) -> float:
    """`bench_vllm` in a process of its own."""
    return answer(in_process("vllm", str(model), module="benchmarks.limits"))


def bare_deepspeed(model: Path, rows_file: Path) -> dict[str, float]:
    """`bench_deepspeed` on all ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    parts = [("deepspeed", str(model), str(rows_file), str(rank), port) for rank in range(RANKS)]
    processes = [in_process(*part, module="benchmarks.limits") for part in parts]
    with ThreadPoolExecutor(RANKS) as readers:  # a rank whose output nobody reads stands still
        return next(iter(list(readers.map(answer, processes))))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["vllm", model_path]:
            print(json.dumps(bench_vllm(Path(model_path))))
        case ["deepspeed", model_path, rows_path, rank_number, port_number]:
            found = bench_deepspeed(
                Path(model_path), Path(rows_path), int(rank_number), int(port_number)
            )
            print(json.dumps(found))
        case _:
            sys.exit("the parts of benchmarks.step and benchmarks.ppo: run one of these")
