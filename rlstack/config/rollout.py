"""Group `rollout`: sampling and the vLLM engines."""

from pydantic import Field

from rlstack.config.base import Frozen
from rlstack.types import SamplingSettings


class RolloutConfig(Frozen):
    """How training responses are sampled, and the engines that sample them."""

    num_samples: int = Field(ge=1)
    """Rollouts per prompt: the group size G."""
    temperature: float = Field(gt=0)
    max_response_tokens: int = Field(ge=1)
    stop: tuple[str, ...]
    max_concurrent: int = Field(ge=1)
    """Sequences an engine decodes at a time (vLLM max_num_seqs)."""
    prefix_caching: bool
    compile: bool
    """torch.compile and CUDA graphs in the engine: faster steps, slower start."""
    kv_cache_gib: float = Field(gt=0)
    """KV-cache memory of an engine on CPU, GiB per device."""
    gpu_memory_fraction: float = Field(gt=0, le=1)
    """Share of each GPU's memory an engine may hold."""

    def sampling(self, *, temperature: float | None = None) -> SamplingSettings:
        """What the engines are told of each response; `temperature` in place of its own."""
        return SamplingSettings(
            temperature=self.temperature if temperature is None else temperature,
            max_response_tokens=self.max_response_tokens,
            stop=self.stop,
        )
