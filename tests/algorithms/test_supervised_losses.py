"""Supervised and distillation losses: by hand, on padding, and their gradients."""

import math

import torch

from rlstack.algorithms import reductions
from rlstack.algorithms import supervised_losses as losses


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
    generator = torch.Generator().manual_seed(0)
    logits, teacher_logits = torch.randn(2, 1, 7, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    student, teacher = logits.log_softmax(1), teacher_logits.log_softmax(1)
    probabilities, mask = student.detach().exp(), torch.ones(1, 7, dtype=torch.bool)
    kl = (student.exp() * (student - teacher)).sum()
    advantages = losses.distillation_advantages(student, teacher, mask, weight=1.0)
    policy_loss = -(probabilities * advantages * student).sum()
    expected, found = (
        torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (kl, policy_loss)
    )
    torch.testing.assert_close(found, expected)
