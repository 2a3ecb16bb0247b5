"""What vLLM is told: arguments of its engine, parameters of its sampler."""

# vLLM is typed too loosely for these.
# pyright: reportArgumentType=false

from typing import get_args

from transformers import AutoConfig
from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from rlstack.errors import ConfigError
from rlstack.types import SamplingSettings
from workers.specs import EngineSpec


def engine_arguments(spec: EngineSpec) -> EngineArgs:
    """Of the engine that `spec` describes."""
    return EngineArgs(
        model=spec.model.path,
        dtype=spec.model.dtype,
        trust_remote_code=spec.model.trust_remote_code,
        tensor_parallel_size=spec.tensor_parallel,
        distributed_executor_backend="mp" if spec.tensor_parallel > 1 else "uni",
        max_model_len=spec.max_model_tokens,
        max_num_seqs=spec.rollout.max_concurrent,
        # vLLM on CPU cannot rewind a seeded generator, which it does for a prompt processed in
        # part (RuntimeError "CPU Generator does not use offset"): process prompts whole.
        enable_chunked_prefill=spec.device == "gpu",
        max_num_batched_tokens=max(8192, spec.max_model_tokens),
        enable_prefix_caching=spec.rollout.prefix_caching,
        enforce_eager=not spec.rollout.compile,
        gpu_memory_utilization=spec.rollout.gpu_memory_fraction,
        enable_sleep_mode=spec.device == "gpu",
        seed=spec.seed,
        # The distribution that was sampled from, temperature applied: what `Rollout` promises.
        logprobs_mode="processed_logprobs",
        # A model's generation_config must not change how training samples.
        generation_config="vllm",
        weight_transfer_config=WeightTransferConfig(backend=spec.transport.value),
        worker_extension_cls="workers.engine.vllm_extension.WeightExtension",
        disable_log_stats=True,
        enable_lora=spec.adapter_rank is not None,
        max_lora_rank=_served_rank(spec.adapter_rank or 1),
        max_loras=1,
    )


def sampling_params(sampling: SamplingSettings, *, seed: int) -> SamplingParams:
    """Of one response."""
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_response_tokens,
        seed=seed,
        stop=list(sampling.stop),
        detokenize=bool(sampling.stop),
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def check_head_size(spec: EngineSpec) -> None:
    """vLLM's CPU attention has kernels for some head sizes and crashes its process on others.

    Raises:
        ConfigError: naming the model, its head size and those that work.
    """
    if spec.device != "cpu":
        return
    config = AutoConfig.from_pretrained(
        spec.model.path, trust_remote_code=spec.model.trust_remote_code
    ).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    supported = CPUAttentionBackend.get_supported_head_sizes()
    if size not in supported:
        raise ConfigError(
            f"model.path: {spec.model.path!r} has attention heads of size {size}; vLLM on CPU has "
            f"kernels for {supported}. Choose another model, or run on a GPU"
        )


def _served_rank(rank: int) -> int:
    """The smallest that vLLM has room for adapters of, and `rank` fits into."""
    return min(served for served in get_args(MaxLoRARanks) if served >= rank)
