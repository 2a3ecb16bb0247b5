"""Advantages, policy losses and filtrations of users, registered in plugin files.

    @register_advantage("centred")
    def centred(batch: TokenBatch, *, scale: float = 1.0) -> Tensor: ...

    @register_policy_loss("squared")
    def squared(logprobs, old_logprobs, advantages, loss_mask, *, width: float) -> Tensor: ...

    @register_filtration("long_ones")
    def long_ones(candidates: Candidates, *, at_least: int) -> NDArray[np.int64]: ...

Keyword-only parameters are what `params` of the configuration may set. `algorithm.plugins` lists
the files; each process that needs a function imports them itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from inspect import Parameter, signature
from typing import Any, TypeVar

from rlstack.errors import AlgorithmError
from rlstack.registry import Registration, Registry

TargetT = TypeVar("TargetT", bound=Callable[..., Any])

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class AlgorithmFunction(Registration):
    """A registered part of an algorithm; each kind takes its own tensors by position."""

    takes: tuple[str, ...] = ()
    """Names, for messages, of what it is given by position."""

    def check_signature(self) -> None:
        """Raise AlgorithmError unless the function takes what its kind is given."""
        found = [p for p in signature(self.target).parameters.values() if p.kind in POSITIONAL]
        if len(found) != len(self.takes):
            raise AlgorithmError(
                f"{self.name!r} ({self.location}) takes {len(found)} arguments by position; "
                f"expected {len(self.takes)}: {', '.join(self.takes)}. Parameters that a "
                "configuration sets come behind a *"
            )


def _registry(noun: str, decorator: str) -> Registry[AlgorithmFunction]:
    return Registry(
        AlgorithmFunction,
        noun=noun,
        error=AlgorithmError,
        decorator=decorator,
        plugins_key="algorithm.plugins",
        entry_point_group=f"rlstack.{noun.replace(' ', '_')}s",
    )


ADVANTAGES = _registry("advantage", "register_advantage")
POLICY_LOSSES = _registry("policy loss", "register_policy_loss")
FILTRATIONS = _registry("filtration", "register_filtration")


def register_advantage(name: str) -> Callable[[TargetT], TargetT]:
    """Make a function of a `TokenBatch` known as an advantage; it is returned unchanged.

    It returns float32 [B], one advantage for all tokens of a rollout, or [B, T]. `batch.rewards`
    are shaped as configured, less the KL where that is taken off the reward; NaN where a rollout
    could not be judged, which must teach nothing.

    Raises:
        AlgorithmError: if the name is taken, or the function takes something else.
    """
    return partial(_register, ADVANTAGES, name, ("batch",))


def register_policy_loss(name: str) -> Callable[[TargetT], TargetT]:
    """Make a function of logprobs known as a policy loss; it is returned unchanged.

    It is given `logprobs, old_logprobs, advantages, loss_mask`, each [B, T] (nats, nats, reward
    units, bool), and returns the loss of every token, float32 [B, T], 0 where loss_mask is False.

    Raises:
        AlgorithmError: as `register_advantage`.
    """
    takes = ("logprobs", "old_logprobs", "advantages", "loss_mask")
    return partial(_register, POLICY_LOSSES, name, takes)


def register_filtration(name: str) -> Callable[[TargetT], TargetT]:
    """Make a function of `Candidates` known as a filtration; it is returned unchanged.

    It returns the rows to keep, int64 [N], ascending, none of them unjudged.

    Raises:
        AlgorithmError: as `register_advantage`.
    """
    return partial(_register, FILTRATIONS, name, ("candidates",))


def _register(
    registry: Registry[AlgorithmFunction], name: str, takes: tuple[str, ...], target: TargetT
) -> TargetT:
    registry.register(AlgorithmFunction(name, target, takes=takes))
    return target


@cache
def load_plugins(plugins: tuple[str, ...]) -> None:
    """Import plugins, once a process: a loss asks for them in every micro-batch.

    Raises:
        AlgorithmError: if one cannot be imported, or registers what is wrong.
    """
    for plugin in plugins:
        ADVANTAGES.load_plugin(plugin)
