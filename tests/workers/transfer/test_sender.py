"""What vLLM's trainers are told of the weights that they will send."""

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from workers.transfer.sender import ipc_info
from workers.transfer.source import DeepSpeedSource

GIB = 2**30


def source_of(*, vocabulary: int, hidden: int, dtype: torch.dtype) -> DeepSpeedSource:
    """A small model with the embeddings of a large one, of which nothing is in memory."""
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=hidden // 128,
        num_key_value_heads=2,
    )
    with torch.device("meta"):
        model: nn.Module = Qwen2ForCausalLM(config).to(dtype)
    return DeepSpeedSource(model, tied_output=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "dtype", "num_bytes"),
    [
        (152064, 3584, torch.bfloat16, 152064 * 3584 * 2),  # Qwen2.5-7B
        (151936, 2048, torch.float32, 151936 * 2048 * 4),  # Qwen2.5-3B
        (151936, 896, torch.bfloat16, DEFAULT_PACKED_BUFFER_SIZE_BYTES),  # Qwen2.5-0.5B
    ],
)
def test_the_largest_tensor_fits_the_buffer(
    vocabulary: int, hidden: int, dtype: torch.dtype, num_bytes: int
) -> None:
    source = source_of(vocabulary=vocabulary, hidden=hidden, dtype=dtype)
    info = ipc_info(source, rank=0)
    assert info.packed
    assert info.packed_buffer_size_bytes == num_bytes >= GIB
