"""Supervised and distillation losses: full-vocabulary divergences, ends, tails and gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import reductions
from rlstack.algorithms import supervised_losses as losses

seeds = st.integers(0, 1000)
VOCABULARY = 7
Divergence = Callable[[Tensor, Tensor], Tensor]


def distributions(seed: int, *, rows: int = 3, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    """Student and teacher logits, float64 [rows, VOCABULARY]."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, rows, VOCABULARY, generator=generator, dtype=torch.float64)
    return logits[0], logits[1]


def by_loop(student: Tensor, teacher: Tensor, divergence: str, beta: float) -> list[float]:
    """The divergence of whole distributions, one row and one entry at a time."""
    found: list[float] = []
    for q_row, p_row in zip(student.exp().tolist(), teacher.exp().tolist(), strict=True):
        total = 0.0
        for q, p in zip(q_row, p_row, strict=True):
            m = beta * p + (1 - beta) * q
            total += {
                "forward": p * math.log(p / q),
                "reverse": q * math.log(q / p),
                "jsd": beta * p * math.log(p / m) + (1 - beta) * q * math.log(q / m),
            }[divergence]
        found.append(total)
    return found


def lumped(logprobs: Tensor, kept: Tensor) -> Tensor:
    """The kept entries and the logarithm of the sum of all the others, summed directly."""
    others = logprobs.exp().scatter(1, kept, 0.0).sum(dim=1, keepdim=True).log()
    return torch.cat((logprobs.gather(1, kept), others), dim=1)


def test_negative_log_likelihood_is_minus_the_logprob_of_loss_tokens() -> None:
    logprobs = torch.tensor([[-1.0, -3.0, math.nan], [math.inf, math.nan, 0.0]])
    logprobs.requires_grad_()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    loss = losses.negative_log_likelihood(logprobs, mask)
    assert loss.tolist() == [[1, 3, 0], [0, 0, 0]]
    total = reductions.token_mean(loss, mask, num_loss_tokens=2)
    assert total.item() == 2.0
    total.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-0.5, -0.5, 0], [0, 0, 0]]


def test_a_batch_without_loss_tokens_gives_zero_with_a_gradient_path() -> None:
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    loss = losses.negative_log_likelihood(logprobs, mask)
    value = reductions.token_mean(loss, mask, num_loss_tokens=0)
    assert value.item() == 0
    value.backward()


def test_distillation_by_hand_and_whatever_stands_on_padding() -> None:
    student = torch.tensor([[-1.0, -2.0, math.nan, math.inf]], requires_grad=True)
    teacher = torch.tensor([[-2.0, -0.5, math.inf, math.nan]])
    mask = torch.tensor([[True, True, False, False]])
    advantages = losses.distillation_advantages(student, teacher, mask, weight=2.0)
    assert advantages.tolist() == [[-2.0, 3.0, 0.0, 0.0]]
    assert not advantages.requires_grad


def test_sampled_distillation_has_the_gradient_of_the_reverse_kl() -> None:
    """By enumeration of the vocabulary: expectations over tokens that the student samples."""
    logits, teacher_logits = (x[:1] for x in distributions(0))
    logits.requires_grad_()
    student, teacher = logits.log_softmax(1), teacher_logits.log_softmax(1)
    probabilities, mask = student.detach().exp(), torch.ones(1, VOCABULARY, dtype=torch.bool)
    kl = (student.exp() * (student - teacher)).sum()
    advantages = losses.distillation_advantages(student, teacher, mask, weight=1.0)
    policy_loss = -(probabilities * advantages * student).sum()
    expected, found = (
        torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (kl, policy_loss)
    )
    torch.testing.assert_close(found, expected)


@given(seed=seeds, beta=st.floats(0.01, 0.99))
@settings(max_examples=40, deadline=None)
def test_over_the_whole_vocabulary_they_are_the_plain_divergences(seed: int, beta: float) -> None:
    student, teacher = (x.log_softmax(1) for x in distributions(seed))
    for found, name in (
        (losses.forward_kl(student, teacher), "forward"),
        (losses.reverse_kl(student, teacher), "reverse"),
        (losses.generalised_jsd(student, teacher, beta=beta), "jsd"),
    ):
        expected = torch.tensor(by_loop(student, teacher, name, beta), dtype=torch.float64)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)


@given(seed=seeds, size=st.integers(1, VOCABULARY - 1), beta=st.floats(0.01, 0.99))
@settings(max_examples=40, deadline=None)
def test_the_tail_is_one_more_entry_and_never_raises_a_divergence(
    seed: int, size: int, beta: float
) -> None:
    student, teacher = (x.log_softmax(1) for x in distributions(seed))
    top = teacher.topk(size, dim=1).indices
    q, p = student.gather(1, top), teacher.gather(1, top)
    for found, name in (
        (losses.forward_kl(q, p), "forward"),
        (losses.reverse_kl(q, p), "reverse"),
        (losses.generalised_jsd(q, p, beta=beta), "jsd"),
    ):
        expected = by_loop(lumped(student, top), lumped(teacher, top), name, beta)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        whole = by_loop(student, teacher, name, beta)
        # A small tail is what is left of 1: its logarithm has fewer digits.
        assert (found >= -1e-9).all()
        assert (found <= torch.tensor(whole, dtype=torch.float64) + 1e-9).all()


@given(seed=seeds, size=st.integers(1, VOCABULARY))
@settings(max_examples=40, deadline=None)
def test_the_ends_of_the_jsd_are_the_forward_and_the_reverse_kl(seed: int, size: int) -> None:
    student, teacher = (x.log_softmax(1) for x in distributions(seed))
    top = teacher.topk(size, dim=1).indices
    q, p = student.gather(1, top), teacher.gather(1, top)
    assert torch.equal(losses.generalised_jsd(q, p, beta=0.0), losses.forward_kl(q, p))
    assert torch.equal(losses.generalised_jsd(q, p, beta=1.0), losses.reverse_kl(q, p))
    near = 1e-6  # divided by the small weight it tends to them
    torch.testing.assert_close(
        losses.generalised_jsd(q, p, beta=near) / near,
        losses.forward_kl(q, p),
        atol=1e-4,
        rtol=1e-3,
    )
    torch.testing.assert_close(
        losses.generalised_jsd(q, p, beta=1 - near) / near,
        losses.reverse_kl(q, p),
        atol=1e-4,
        rtol=1e-3,
    )


def test_the_even_jsd_is_symmetric_and_at_most_log_two() -> None:
    student, teacher = (x.log_softmax(1) for x in distributions(0, rows=20, scale=30.0))
    found = losses.generalised_jsd(student, teacher, beta=0.5)
    torch.testing.assert_close(found, losses.generalised_jsd(teacher, student, beta=0.5))
    assert (found <= math.log(2) + 1e-12).all()
    assert found.max() > 0.6


def divergences() -> dict[str, Divergence]:
    def jsd(student: Tensor, teacher: Tensor) -> Tensor:
        return losses.generalised_jsd(student, teacher, beta=0.5)

    return {"forward": losses.forward_kl, "reverse": losses.reverse_kl, "jsd": jsd}


@pytest.mark.parametrize("name", ["forward", "reverse", "jsd"])
def test_gradients_are_right_and_vanish_where_the_distributions_agree(name: str) -> None:
    divergence = divergences()[name]
    logits, teacher_logits = distributions(3)
    logits.requires_grad_()
    top = teacher_logits.topk(3, dim=1).indices
    teacher = teacher_logits.log_softmax(1).gather(1, top)

    def loss(values: Tensor) -> Tensor:
        return divergence(values.log_softmax(1).gather(1, top), teacher)

    assert torch.autograd.gradcheck(loss, logits)
    student = logits.log_softmax(1).gather(1, top)
    same = divergence(student, student.detach())
    assert same.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(same.sum(), logits)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", ["forward", "reverse", "jsd"])
def test_a_lump_of_mass_outside_the_entries_is_pulled_in(name: str) -> None:
    """The teacher holds 0.9 of its mass in two entries, the student 0.2: both must rise."""
    student = torch.tensor([[0.1, 0.1]]).log().requires_grad_()
    teacher = torch.tensor([[0.45, 0.45]]).log()
    (gradient,) = torch.autograd.grad(divergences()[name](student, teacher).sum(), student)
    assert (gradient < 0).all()


@pytest.mark.parametrize("name", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("size", [2, VOCABULARY])
def test_certain_and_opposite_distributions_stay_finite(name: str, size: int) -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 0] = 500.0
    student = logits.clone().requires_grad_()
    for teacher_logits in (logits.roll(1, 1), logits):
        top = teacher_logits.topk(size, dim=1).indices
        loss = divergences()[name](
            student.log_softmax(1).gather(1, top), teacher_logits.log_softmax(1).gather(1, top)
        )
        assert loss.isfinite().all()
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert gradient.isfinite().all()


def test_the_tail_of_a_whole_distribution_is_held_at_the_rounding_error() -> None:
    for dtype in (torch.float32, torch.float64):
        whole = torch.randn(4, 50, dtype=dtype).log_softmax(1)
        tail = losses.with_tail(whole)[:, -1].exp()
        assert tail.dtype == dtype
        assert (tail < 100 * torch.finfo(dtype).eps).all()


def test_a_beta_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta=1.5 must be within \[0, 1\]"):
        losses.generalised_jsd(torch.zeros(1, 1), torch.zeros(1, 1), beta=1.5)
