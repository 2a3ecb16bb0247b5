"""Causal attention that keeps packed rows apart: three kinds, and which of them a device takes."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

AttentionKind = Literal["flash_attention_2", "rlstack_packed_varlen", "rlstack_packed_sdpa"]
"""As transformers' models are told: the package flash-attn, or a function of this file."""

BUCKET_RATIO = 0.9
"""Rows share a padded product where the shortest is at least so long as that of the longest."""
BUCKET_STEP = 64
"""Tokens that lengths are rounded up to before: short rows are cheaper in one product."""
FLASH_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs with such kernels (Ampere)."""
FLASH_HEAD_SIZE = 256


def attention_kind(
    *, dtype: torch.dtype, capability: tuple[int, int] | None, flash_attn: bool
) -> AttentionKind:
    """The fastest attention for packed rows in `dtype`.

    capability: of the GPU; None on a CPU. flash_attn: whether the package flash-attn is installed.
    """
    if capability is None or capability < FLASH_CAPABILITY or dtype == torch.float32:
        return "rlstack_packed_sdpa"
    return "flash_attention_2" if flash_attn else "rlstack_packed_varlen"


def packed_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """As `packed_sdpa`, by torch's kernel for rows of different lengths, which pads nothing.

    Head sizes that the kernel does not take go to `packed_sdpa`.
    """
    _refuse(softcap, s_aux)
    head_size = query.shape[-1]
    if head_size != value.shape[-1] or head_size % 8 or head_size > FLASH_HEAD_SIZE:
        return packed_sdpa(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            cu_seq_lens_q=cu_seq_lens_q,
            sliding_window=sliding_window,
        )
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        # Tokens to the left and to the right of each that it looks at; -1: all.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output.unsqueeze(0), None


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention within each packed row; query [1, H, L, D], key and value [1, H_kv, L, D].

    Rows of about the same length are padded to the longest of them for the product: its cost grows
    with rows x longest^2, where one masked product over the whole pack would cost L^2. Padding sits
    to the right, where causal attention never looks.

    Raises:
        NotImplementedError: if the model's attention has a soft cap or sinks.
    """
    _refuse(softcap, s_aux)
    boundaries = cu_seq_lens_q.tolist()
    lengths = [end - start for start, end in pairwise(boundaries)]
    # [L, H, D]: the tokens of a bucket are picked from the first axis.
    tokens = [packed[0].transpose(0, 1) for packed in (query, key, value)]
    outputs: list[Tensor] = []
    picked: list[Tensor] = []
    buckets = length_buckets(lengths)
    for rows in buckets:
        starts = torch.tensor([[boundaries[row]] for row in rows], device=query.device)
        ends = torch.tensor([[boundaries[row + 1]] for row in rows], device=query.device)
        longest = max(lengths[row] for row in rows)
        index = starts + torch.arange(longest, device=query.device)
        real = index < ends
        picked.append(index[real])
        padded = [_padded(packed, index=picked[-1], real=real) for packed in tokens]
        output = _causal_product(*padded, scaling=scaling, sliding_window=sliding_window)
        outputs.append(output.transpose(1, 2)[real])
    if len(buckets) == 1:
        return outputs[0].unsqueeze(0), None
    in_order = torch.cat(picked).argsort()
    return torch.cat(outputs)[in_order].unsqueeze(0), None


def length_buckets(lengths: list[int]) -> list[list[int]]:
    """Rows in buckets of about the same length, in order within each; see `BUCKET_RATIO`."""
    buckets: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        steps = -(-lengths[row] // BUCKET_STEP)
        if not buckets or steps < BUCKET_RATIO * longest:
            buckets.append([])
            longest = steps
        buckets[-1].append(row)
    return [sorted(rows) for rows in buckets]


def register_packed_attention() -> None:
    """Make these known to transformers, once per process; again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register("rlstack_packed_sdpa", packed_sdpa)
    ALL_ATTENTION_FUNCTIONS.register("rlstack_packed_varlen", packed_varlen)


def _padded(packed: Tensor, *, index: Tensor, real: Tensor) -> Tensor:
    """Tokens `index` of [L, H, D] where `real` [rows, longest], else 0: [rows, H, longest, D]."""
    padded = packed.new_zeros(*real.shape, *packed.shape[1:])
    padded[real] = packed[index]
    return padded.transpose(1, 2)


def _causal_product(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
) -> Tensor:
    """Attention of each row on itself, of tensors as `_padded` gives them."""
    longest = query.shape[2]
    window = None
    if sliding_window is not None and sliding_window < longest:
        distance = torch.arange(longest, device=query.device)
        distance = distance.unsqueeze(1) - distance.unsqueeze(0)
        window = (distance >= 0) & (distance < sliding_window)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=window,
        is_causal=window is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _refuse(softcap: float | None, s_aux: Tensor | None) -> None:
    """Raise where a model's attention is more than a product, so that no term is left out."""
    if softcap is not None or s_aux is not None:
        raise NotImplementedError(
            "model.path: attention of this model has a soft cap, which only flash-attn knows: on a "
            "GPU install rlstack[flash-attn] and set model.dtype=bfloat16"
            if s_aux is None
            else "model.path: attention of this model has sinks, and packed rows know none"
        )
