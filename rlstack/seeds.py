"""Every random number of a run comes from its seed through a named domain.

Two uses never share a stream, and a number depends on what it is for alone: a response on the
number of its prompt in the run and its index in the group, not on the call that samples it.
"""

from enum import IntEnum

import numpy as np


class Domain(IntEnum):
    """What random numbers are for. Values are part of every result: never renumber them."""

    ROLLOUT = 0
    """A sampled response: number of its prompt in the run, index in the group."""
    BASELINE = 1
    """The greedy response of a group, as above; nothing depends on it."""
    EVALUATION = 2
    """A held-out response: position of its prompt, index in the group."""
    PROMPT_ORDER = 3
    """The order of a stream of samples: stream, epoch."""
    MINIBATCHES = 4
    """The order of a step's rows: step, epoch."""
    FILTRATION = 5
    """The rows that a filtration draws: step."""
    MISMATCHED = 6
    """Which responses stand behind other prompts (KTO)."""
    DROPOUT = 7
    """Of adapters: update, rank."""
    ADAPTERS = 8
    """Fresh adapters after a merge: number of the merge."""
    TURN = 9
    """An action of an episode, from the seed of its rollout: turn."""


def sequence(seed: int, domain: Domain, *numbers: int) -> np.random.SeedSequence:
    """The stream of `domain` at `numbers` in a run with `seed`."""
    return np.random.SeedSequence(seed, spawn_key=(domain, *numbers))


def derived_seed(seed: int, domain: Domain, *numbers: int) -> int:
    """A seed for a library that takes one, 0 .. 2**32 - 1."""
    return int(sequence(seed, domain, *numbers).generate_state(1)[0])


def generator(seed: int, domain: Domain, *numbers: int) -> np.random.Generator:
    """A NumPy generator."""
    return np.random.default_rng(sequence(seed, domain, *numbers))
