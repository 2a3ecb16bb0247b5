"""From per-token losses to one number, however the batch is split and padded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import reductions


@given(seed=st.integers(0, 1000), parts=st.sampled_from([1, 2, 4]), padding=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_split_and_padded_batch_gives_the_same_loss_and_gradient(
    seed: int, parts: int, padding: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(8, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(8, 5, generator=generator) > 0.4
    num_tokens, num_rollouts = int(mask.sum()), int(mask.any(dim=1).sum())

    def total(values: Tensor, chosen: Tensor, kind: str) -> Tensor:
        match kind:
            case "token":
                return reductions.token_mean(values, chosen, num_loss_tokens=num_tokens)
            case "sequence":
                return reductions.sequence_mean(values, chosen, num_rollouts=num_rollouts)
            case _:
                return reductions.fixed_length(values, chosen, num_rollouts=num_rollouts, length=7)

    for kind in ("token", "sequence", "fixed"):
        whole = total(losses, mask, kind)
        (expected,) = torch.autograd.grad(whole, losses)
        padded = torch.nn.functional.pad(losses, (0, padding), value=3.0)
        padded_mask = torch.nn.functional.pad(mask, (0, padding))
        pieces = [
            total(padded[part::parts], padded_mask[part::parts], kind) for part in range(parts)
        ]
        split = torch.stack(pieces).sum()
        (found,) = torch.autograd.grad(split, losses)
        torch.testing.assert_close(split, whole, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_no_loss_tokens_give_zero_with_a_gradient_path() -> None:
    losses = torch.ones(2, 3, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for value in (
        reductions.token_mean(losses, mask, num_loss_tokens=0),
        reductions.sequence_mean(losses, mask, num_rollouts=0),
    ):
        assert value.item() == 0
        value.backward()


def test_sequence_mean_weighs_rollouts_and_not_tokens() -> None:
    losses = torch.tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert reductions.sequence_mean(losses, mask, num_rollouts=2).item() == pytest.approx(2.5)
    assert reductions.token_mean(losses, mask, num_loss_tokens=4).item() == pytest.approx(7 / 4)
