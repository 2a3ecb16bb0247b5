"""Time of every advantage and loss beside the time of moving its tensors through memory once.

The floor of a function is its bytes, every input read once and every output written once, at the
rate at which this machine copies. Run from the repository:

    python -m benchmarks.algorithms            1,024 rollouts of 8,192 tokens
    python -m benchmarks.algorithms 64 1024    64 rollouts of 1,024 tokens
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from rlstack.algorithms import advantages, gae, policy_losses, sequence_losses, value_losses

GROUP_SIZE = 8
ROUNDS = 5

Inputs = dict[str, Tensor]


def for_every_token(estimator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An estimator of one advantage a rollout, with its result given to every token."""
    return lambda mask, *arguments: advantages.per_token(estimator(*arguments), mask)


# Name, function, names of its arguments in `make_inputs`.
ESTIMATORS: list[tuple[str, Callable[..., Any], str]] = [
    ("grpo", for_every_token(advantages.grpo), "loss_mask rewards group_ids"),
    ("dr_grpo", for_every_token(advantages.dr_grpo), "loss_mask rewards group_ids"),
    ("rloo", for_every_token(advantages.rloo), "loss_mask rewards group_ids"),
    ("opo", for_every_token(advantages.opo), "loss_mask rewards group_ids lengths"),
    ("gpg", for_every_token(advantages.gpg), "loss_mask rewards group_ids"),
    ("maxrl", for_every_token(advantages.maxrl), "loss_mask rewards group_ids"),
    ("remax", for_every_token(advantages.remax), "loss_mask rewards baseline_rewards"),
    (
        "reinforce_plus_plus",
        lambda rewards, groups, mask, penalty: advantages.reinforce_plus_plus(
            rewards, groups, mask, kl_penalty=penalty, group_baseline=True
        ),
        "rewards group_ids loss_mask kl_penalty",
    ),
    ("whiten", advantages.whiten, "advantages loss_mask"),
    (
        "token_rewards",
        lambda rewards, mask, penalty: gae.token_rewards(rewards, mask, kl_penalty=penalty),
        "rewards loss_mask kl_penalty",
    ),
    (
        "gae",
        lambda *tensors: gae.gae(*tensors, gamma=0.99, lam=0.95),
        "token_rewards values loss_mask",
    ),
    (
        "vapo gae",
        lambda rewards, values, mask: gae.decoupled_gae(
            rewards,
            values,
            mask,
            gamma=1.0,
            policy_lam=gae.length_adaptive_lambda(mask, alpha=0.05),
            critic_lam=1.0,
        ),
        "token_rewards values loss_mask",
    ),
    ("explained_variance", value_losses.explained_variance, "values returns loss_mask"),
]

# The gradient is taken with respect to the first argument.
LOSSES: list[tuple[str, Callable[..., Any], str]] = [
    (
        "ppo_clip",
        lambda *tensors: policy_losses.ppo_clip(
            *tensors, clip_low=0.2, clip_high=0.28, dual_clip=None
        ),
        "logprobs old_logprobs advantages loss_mask",
    ),
    (
        "ppo_clip, dual clip",
        lambda *tensors: policy_losses.ppo_clip(
            *tensors, clip_low=0.2, clip_high=0.2, dual_clip=3.0
        ),
        "logprobs old_logprobs advantages loss_mask",
    ),
    (
        "cispo",
        lambda *tensors: policy_losses.cispo(*tensors, cap=5.0),
        "logprobs old_logprobs advantages loss_mask",
    ),
    (
        "sapo",
        lambda *tensors: policy_losses.sapo(*tensors, tau_positive=1.0, tau_negative=1.05),
        "logprobs old_logprobs advantages loss_mask",
    ),
    (
        "policy_gradient",
        policy_losses.policy_gradient,
        "logprobs old_logprobs advantages loss_mask",
    ),
    (
        "gspo",
        lambda *tensors: sequence_losses.gspo(*tensors, clip_low=3e-4, clip_high=4e-4),
        "logprobs old_logprobs advantages loss_mask",
    ),
    (
        "gspo_token",
        lambda *tensors: sequence_losses.gspo_token(*tensors, clip_low=3e-4, clip_high=4e-4),
        "logprobs old_logprobs advantages loss_mask",
    ),
    (
        "gmpo",
        lambda *tensors: sequence_losses.gmpo(*tensors, log_clip=0.4),
        "logprobs old_logprobs advantages loss_mask",
    ),
    ("squared_error", value_losses.squared_error, "values returns loss_mask"),
    (
        "clipped_squared_error",
        lambda *tensors: value_losses.clipped_squared_error(*tensors, clip=0.2),
        "values old_values returns loss_mask",
    ),
]


def make_inputs(num_rows: int, length: int) -> Inputs:
    """Random tensors of every kind the functions take."""
    generator = torch.Generator().manual_seed(0)

    def per_token() -> Tensor:
        return torch.randn(num_rows, length, generator=generator)

    lengths = torch.randint(length // 2, length + 1, (num_rows,), generator=generator)
    old_logprobs = -per_token().abs()
    return {
        "rewards": torch.rand(num_rows, generator=generator),
        "baseline_rewards": torch.rand(num_rows, generator=generator),
        "group_ids": torch.arange(num_rows) // GROUP_SIZE,
        "lengths": lengths,
        "loss_mask": torch.arange(length) < lengths.unsqueeze(1),
        "kl_penalty": per_token().square(),
        "advantages": per_token(),
        "token_rewards": per_token(),
        "values": per_token(),
        "old_values": per_token(),
        "returns": per_token(),
        "old_logprobs": old_logprobs,
        "logprobs": old_logprobs + 0.1 * per_token(),
    }


def timed(run: Callable[[], Any]) -> float:
    """Least seconds of `run` after one warm-up: what other processes took does not count."""
    run()
    seconds: list[float] = []
    for _ in range(ROUNDS):
        gc.collect()
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def tensors_of(result: Any) -> Iterator[Tensor]:
    """Every tensor in a tensor, a tuple or a dataclass."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple):
        for item in result:
            yield from tensors_of(item)
    elif is_dataclass(result):
        for field in fields(result):
            yield from tensors_of(getattr(result, field.name))


def num_bytes(tensors: Iterator[Tensor]) -> int:
    """Bytes that hold the tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def with_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function and the gradient of its summed losses with respect to its first argument."""

    def run(first: Tensor, *others: Tensor) -> tuple[Any, Tensor]:
        leaf = first.detach().requires_grad_()
        result = function(leaf, *others)
        (gradient,) = torch.autograd.grad(result.loss.sum(), leaf)
        return result, gradient

    return run


def main(num_rows: int, length: int) -> None:
    """Measure every function, print the figures."""
    inputs = make_inputs(num_rows, length)
    source, target = inputs["values"], torch.empty_like(inputs["values"])
    # A copy reads and writes every byte.
    copied = 2 * num_bytes(iter([source]))
    bytes_per_s = copied / timed(lambda: target.copy_(source))
    fresh_bytes_per_s = copied / timed(source.clone)
    cases = list(ESTIMATORS)
    for name, function, names in LOSSES:
        cases.append((f"{name} forward", function, names))
        cases.append((f"{name} forward and backward", with_gradient(function), names))
    figures = [
        ("tokens", float(num_rows * length), ""),
        ("copy", bytes_per_s / 2**30, "GiB/s"),
        ("copy into new memory", fresh_bytes_per_s / 2**30, "GiB/s"),
    ]
    for name, function, names in cases:
        arguments = [inputs[key] for key in names.split()]
        seconds = timed(lambda f=function, a=arguments: f(*a))
        moved = num_bytes(iter(arguments)) + num_bytes(tensors_of(function(*arguments)))
        figures.append((name, seconds, "s"))
        figures.append((f"{name} / memory floor", seconds * bytes_per_s / moved, "ratio"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures.append(("peak memory", peak / 2**30, "GiB"))
    for name, value, unit in figures:
        print(f"{name}: {value:.4g} {unit}".rstrip())
    print(json.dumps({name: {"value": value, "unit": unit} for name, value, unit in figures}))


if __name__ == "__main__":
    match [int(argument) for argument in sys.argv[1:]]:
        case []:
            main(1024, 8192)
        case [rows, tokens]:
            main(rows, tokens)
        case _:
            sys.exit("python -m benchmarks.algorithms [ROLLOUTS TOKENS]")
