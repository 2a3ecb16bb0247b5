"""Every environment variable that rlstack sets for its processes, with the reason; pure."""

from collections.abc import Sequence
from math import ceil

from workers.specs import EngineSpec

_COMMON = {
    # The model is loaded in every process; progress bars of many ranks are noise.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Tokenizers would warn about threads in processes that were forked.
    "TOKENIZERS_PARALLELISM": "false",
    # Ray hides the GPUs from actors that reserve none, also from those that share a trainer's.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_ON_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    # Threads that wait for each other would keep their cores busy: where engine, trainers and
    # scorers share few cores, that takes most of the time of all of them.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def shared_gpus(devices: Sequence[str]) -> dict[str, str]:
    """What lets a process that reserves no GPU see those of others, as Ray has numbered them."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices)}


def trainer_environment(*, device: str, threads: int) -> dict[str, str]:
    """Environment of a rank of any role but the engines."""
    environment = _COMMON | {"OMP_NUM_THREADS": str(threads)}
    if device == "cpu":
        # DeepSpeed would otherwise look for CUDA first.
        environment |= _ON_CPU | {"DS_ACCELERATOR": "cpu"}
    return environment


def engine_environment(spec: EngineSpec, *, threads: int) -> dict[str, str]:
    """Environment of a vLLM engine and of the processes it starts."""
    environment = _COMMON | {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        # The actor's own loop steps the engine; see `workers.engine.step_loop`.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    if not spec.rollout.compile:
        # vLLM compiles small helpers even in eager mode: 6-20 s at the first request on CPU.
        environment["TORCH_COMPILE_DISABLE"] = "1"
    if spec.device == "cpu":
        environment |= _ON_CPU | {
            "VLLM_CPU_KVCACHE_SPACE": str(ceil(spec.rollout.kv_cache_gib)),
            # Cores are shared out by Ray; vLLM's own binding would pin every engine to the same.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return environment
