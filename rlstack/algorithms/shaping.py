"""Rewards reshaped before they become advantages; no torch, so that reward plugins may use it.

`rewards` float [B] in reward units, NaN where a rollout could not be judged: it stays NaN and out
of every statistic. The length functions judge one response at a time and count in tokens.
"""

from math import cos, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rewards = NDArray[np.floating[Any]]

VARIANCE_EPSILON = 1e-8


def soft_overlong(num_tokens: int, *, max_tokens: int, buffer_tokens: int) -> float:
    """Soft overlong punishment: 0 up to the buffer, then linearly down to -1 at the limit.

    Source: DAPO (arXiv 2503.14476), equation 13, with L_max = max_tokens and L_cache =
    buffer_tokens. Never below -1, however far the response is beyond the limit.

    Raises:
        ValueError: unless 0 < buffer_tokens <= max_tokens.
    """
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(
            f"soft_overlong: buffer_tokens={buffer_tokens} must be above 0 and at most "
            f"max_tokens={max_tokens}"
        )
    tokens_into_buffer = num_tokens - (max_tokens - buffer_tokens)
    return 0.0 - min(max(tokens_into_buffer / buffer_tokens, 0.0), 1.0)


def cosine_length(
    num_tokens: int,
    *,
    correct: bool,
    max_tokens: int,
    correct_shortest: float,
    correct_longest: float,
    wrong_shortest: float,
    wrong_longest: float,
) -> float:
    """Reward along half a cosine from length 0 (`_shortest`) to max_tokens (`_longest`).

    Source: "Demystifying Long Chain-of-Thought" (arXiv 2502.03373), appendix C.1: a
    correct answer earns more the shorter it is, a wrong one loses less the longer it is. Beyond
    max_tokens the reward stays at `_longest`; the paper's separate punishment of a response that
    reaches the limit is `soft_overlong`.

    The arguments are named by length and not, as in open-rs, by minimum and maximum: there the
    defaults of the wrong branch are swapped without a word, and longer wrong answers are punished.

    Raises:
        ValueError: if a branch runs the other way, or max_tokens is not above 0.
    """
    if max_tokens <= 0:
        raise ValueError(f"cosine_length: max_tokens={max_tokens} must be above 0")
    if correct_shortest < correct_longest:
        raise ValueError(
            f"cosine_length: correct_shortest={correct_shortest} is less than "
            f"correct_longest={correct_longest}; a correct answer must not gain from length"
        )
    if wrong_shortest > wrong_longest:
        raise ValueError(
            f"cosine_length: wrong_shortest={wrong_shortest} is more than "
            f"wrong_longest={wrong_longest}; a wrong answer must not lose from length"
        )
    shortest = correct_shortest if correct else wrong_shortest
    longest = correct_longest if correct else wrong_longest
    share = min(num_tokens / max_tokens, 1.0)
    return longest + (shortest - longest) * 0.5 * (1.0 + cos(pi * share))


def clip(rewards: Rewards, *, low: float, high: float) -> Rewards:
    """Rewards limited to [low, high], [B]; NaN stays NaN.

    Raises:
        ValueError: if low is more than high.
    """
    if low > high:
        raise ValueError(f"clip: low={low} is more than high={high}")
    return np.clip(rewards, low, high)


def deviation(rewards: Rewards) -> np.floating[Any]:
    """What `whiten` divides by: unbiased std over the judged rewards, 1e-8 added to the variance.

    1 where there is nothing to divide by: all judged rewards are equal, or there is none.
    """
    judged = rewards[~np.isnan(rewards)]
    if judged.size == 0 or judged.min() == judged.max():
        return rewards.dtype.type(1.0)
    # From the smallest value on, so that close values leave no rounding error to be magnified.
    return np.sqrt((judged - judged.min()).var(ddof=1) + VARIANCE_EPSILON)


def whiten(rewards: Rewards, *, shift_mean: bool) -> Rewards:
    """Unit (unbiased) std over the judged rewards of the global batch, [B].

    Zero mean with `shift_mean`; otherwise the mean is left where it was (reward whitening of PPO as
    in TRL). 1e-8 is added to the variance. Equal rewards, or a single one,
    have nothing to be told apart by: their deviation is exactly 0.
    """
    judged = rewards[~np.isnan(rewards)]
    if judged.size == 0:
        return rewards.copy()
    # From the smallest value on, so that equal values leave no rounding error to be magnified.
    smallest = judged.min()
    shifted = judged - smallest
    deviations = (rewards - smallest) - shifted.mean()
    whitened = deviations / deviation(rewards)
    return whitened if shift_mean else whitened + (smallest + shifted.mean())
