"""What a scorer process is built from and asked for."""

from typing import NamedTuple

from rewards.load import RewardSpec


class ScorerSetup(NamedTuple):
    """The rewards of a scorer process."""

    spec: RewardSpec
    components: tuple[int, ...]
    """Those it builds."""


class ScoreRequest(NamedTuple):
    """Let one component judge; answered with a list of `Score`."""

    component: int
    requests: bytes
    """A pickled sequence of `RewardRequest`."""


class StateRequest(NamedTuple):
    """Ask for the state of a component; answered with bytes, or a text: why not."""

    component: int


class RestoreRequest(NamedTuple):
    """Put a component into a state; answered with None, or a text: why not."""

    component: int
    state: bytes
