"""What an environment process is asked for: every request is about one episode."""

from typing import NamedTuple

from rlstack.types import Task


class BeginEpisode(NamedTuple):
    """Make an environment and reset it; answered with the first observation, a text or None."""

    episode: int
    task: Task


class TakeStep(NamedTuple):
    """Let the policy act; answered with a `Turn`."""

    episode: int
    action: str


class EndEpisode(NamedTuple):
    """Close and forget an environment; answered with None."""

    episode: int


EpisodeRequest = BeginEpisode | TakeStep | EndEpisode
"""Any of them may be answered with an `EpisodeError`, after which the process lives on."""


class UnknownEpisode(NamedTuple):
    """The answer about an episode that another process held, which has ended."""
