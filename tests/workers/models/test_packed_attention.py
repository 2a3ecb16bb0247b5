"""Attention of packed rows against attention row by row, and which kind a device takes."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from workers.models import packed_attention
from workers.models.packed_attention import (
    BUCKET_RATIO,
    BUCKET_STEP,
    attention_kind,
    length_buckets,
    packed_sdpa,
    packed_varlen,
)

Attention = Callable[..., tuple[Tensor, None]]

LENGTHS = [3, 300, 70, 128, 71, 299, 1, 200]
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 4, 2, 16
SCALING = 0.3


def packed_inputs(lengths: list[int], *, device: str = "cpu") -> tuple[list[Tensor], Tensor]:
    """Query, key and value as a model gives them, and the boundaries."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, sum(lengths), HEAD_SIZE, generator=generator)
        .to(device)
        .requires_grad_()
        for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    ]
    boundaries = functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)
    return tensors, boundaries.to(device)


def row_by_row(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, *, window: int | None
) -> Tensor:
    """Attention written out, [1, L, H, D]: no padding, no other row in sight."""
    outputs = []
    for start, end in pairwise(boundaries.tolist()):
        q, k, v = (packed[0, :, start:end] for packed in (query, key, value))
        k, v = (t.repeat_interleave(len(q) // len(k), dim=0) for t in (k, v))
        distance = torch.arange(end - start).unsqueeze(1) - torch.arange(end - start)
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        scores = (q @ k.transpose(1, 2) * SCALING).masked_fill(hidden, float("-inf"))
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs).unsqueeze(0)


def kernel(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, *_: object, **options: object
) -> Tensor:
    """What torch documents of `varlen_attn`, on a CPU, where its kernel does not run."""
    left, right = options["window_size"]
    assert right == 0
    assert options["enable_gqa"]
    assert options["scale"] == SCALING
    q, k, v = (packed.transpose(0, 1).unsqueeze(0) for packed in (query, key, value))
    # (W, 0) shows a token itself and W before it.
    return row_by_row(q, k, v, cu_seq_q, window=None if left == -1 else left + 1)[0]


@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("attention", [packed_sdpa, packed_varlen])
def test_values_and_gradients_are_those_of_each_row_alone(
    attention: Attention, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "varlen_attn", kernel)
    assert len(length_buckets(LENGTHS)) > 3
    tensors, boundaries = packed_inputs(LENGTHS)
    expected = row_by_row(*tensors, boundaries, window=window)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected_gradients = torch.autograd.grad((expected * weights).sum(), tensors)
    found, _ = attention(
        torch.nn.Identity(),
        *tensors,
        None,
        scaling=SCALING,
        cu_seq_lens_q=boundaries,
        max_length_q=max(LENGTHS),
        sliding_window=window,
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad((found * weights).sum(), tensors)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-5)


def test_torch_takes_the_call_of_its_kernel_and_gives_gradients() -> None:
    """On tensors without storage: the arguments, the shapes and the way back are torch's own."""
    tensors, boundaries = packed_inputs(LENGTHS, device="meta")
    output, _ = packed_varlen(
        torch.nn.Identity(),
        *tensors,
        None,
        scaling=SCALING,
        cu_seq_lens_q=boundaries,
        max_length_q=max(LENGTHS),
        sliding_window=5,
    )
    assert output.shape == (1, sum(LENGTHS), NUM_HEADS, HEAD_SIZE)
    gradients = torch.autograd.grad(output.sum(), tensors)
    assert [g.shape for g in gradients] == [t.shape for t in tensors]


def test_head_sizes_that_the_kernel_does_not_take_are_padded_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_attention, "varlen_attn", None)
    tensors, boundaries = packed_inputs([4, 3])
    tensors = [packed[..., :12] for packed in tensors]
    found, _ = packed_varlen(
        torch.nn.Identity(),
        *tensors,
        None,
        scaling=SCALING,
        cu_seq_lens_q=boundaries,
        max_length_q=4,
    )
    torch.testing.assert_close(found, row_by_row(*tensors, boundaries, window=None))


@pytest.mark.parametrize("attention", [packed_sdpa, packed_varlen])
@pytest.mark.parametrize("more", [{"softcap": 50.0}, {"s_aux": torch.zeros(NUM_HEADS)}])
def test_a_term_that_would_be_left_out_is_refused(attention: Attention, more: dict) -> None:
    tensors, boundaries = packed_inputs([4])
    with pytest.raises(NotImplementedError, match=r"model\.path: attention of this model has"):
        attention(
            torch.nn.Identity(),
            *tensors,
            None,
            scaling=SCALING,
            cu_seq_lens_q=boundaries,
            max_length_q=4,
            **more,
        )


def padding(lengths: list[int], *, power: int) -> float:
    """Padded over real: tokens for power 1, attention's work for power 2."""
    padded = sum(
        len(rows) * max(lengths[row] for row in rows) ** power for rows in length_buckets(lengths)
    )
    return padded / sum(length**power for length in lengths)


@pytest.mark.parametrize(
    ("typical", "spread", "longest"), [(150, 0.6, 1300), (700, 0.9, 4000), (3000, 1.2, 32000)]
)
def test_ragged_rows_are_hardly_padded(typical: int, spread: float, longest: int) -> None:
    chance = random.Random(0)
    lengths = [
        min(longest, 100 + round(typical * chance.lognormvariate(0, spread))) for _ in range(40)
    ]
    together = len(lengths) * max(lengths) ** 2 / sum(length**2 for length in lengths)
    assert together > 2.5  # what one padded product of all rows would cost
    assert padding(lengths, power=1) < 1.1
    assert padding(lengths, power=2) < 1.2


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_every_row_is_in_one_bucket_with_rows_of_about_its_length(lengths: list[int]) -> None:
    buckets = length_buckets(lengths)
    assert sorted(row for rows in buckets for row in rows) == list(range(len(lengths)))
    for rows in buckets:
        found = [lengths[row] for row in rows]
        assert max(found) * BUCKET_RATIO <= min(found) + BUCKET_STEP
        assert rows == sorted(rows)


def test_short_rows_share_a_product() -> None:
    assert length_buckets([5, 60, 17, 64]) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("dtype", "capability", "flash_attn", "expected"),
    [
        (torch.float32, None, False, "rlstack_packed_sdpa"),
        (torch.bfloat16, None, True, "rlstack_packed_sdpa"),
        (torch.float32, (9, 0), True, "rlstack_packed_sdpa"),
        (torch.bfloat16, (7, 5), True, "rlstack_packed_sdpa"),
        (torch.bfloat16, (8, 0), True, "flash_attention_2"),
        (torch.bfloat16, (8, 0), False, "rlstack_packed_varlen"),
        (torch.bfloat16, (10, 0), False, "rlstack_packed_varlen"),
    ],
)
def test_kind_by_device_and_dtype(
    dtype: torch.dtype, capability: tuple[int, int] | None, flash_attn: bool, expected: str
) -> None:
    found = attention_kind(dtype=dtype, capability=capability, flash_attn=flash_attn)
    assert found == expected
