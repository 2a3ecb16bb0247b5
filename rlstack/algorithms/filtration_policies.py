"""Filtration policies by name: which rollouts of a batch to train on.

Names over `rlstack.algorithms.filtration`, which has the sources. That module needs torch, so it is
imported when a policy chooses.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlstack.algorithms.plugins import FILTRATIONS
from rlstack.errors import AlgorithmError
from rlstack.types import Candidates

if TYPE_CHECKING:
    from torch import Tensor


class Policy(BaseModel):
    """A policy with its parameters; made by `filtration_policy`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def select(self, candidates: Candidates, *, seed: int) -> NDArray[np.int64]:
        """Rows to keep, int64 [N], ascending; the same for the same seed. Never an unjudged one."""
        import torch

        rewards = torch.from_numpy(candidates.rewards)
        group_ids = torch.from_numpy(candidates.group_ids)
        generator = torch.Generator().manual_seed(seed)
        return self._rows(candidates, rewards, group_ids, generator).numpy()

    def _rows(
        self, candidates: Candidates, rewards: "Tensor", group_ids: "Tensor", generator: Any
    ) -> "Tensor":
        raise NotImplementedError


class Ranked(Policy):
    """By rank within the group (PF-PPO, arXiv 2409.06957): see `filtration.select_rows`."""

    strategy: ClassVar[Literal["all", "best", "best_random", "best_worst"]]

    def _rows(
        self, candidates: Candidates, rewards: "Tensor", group_ids: "Tensor", generator: Any
    ) -> "Tensor":
        from rlstack.algorithms.filtration import select_rows

        return select_rows(rewards, group_ids, strategy=self.strategy, generator=generator)


class KeepAll(Ranked):
    """Every judged rollout."""

    strategy = "all"


class Best(Ranked):
    """The best of each group."""

    strategy = "best"


class BestRandom(Ranked):
    """The best of each group and one other, drawn equally."""

    strategy = "best_random"


class BestWorst(Ranked):
    """The best and the worst of each group."""

    strategy = "best_worst"


class Soft(Policy):
    """Draws `num_samples` of each group, likelier the more its rank or reward is to be trusted.

    With replacement. strategy: weights by rank, or "power": proportional to |reward|^`power`, for
    rewards within [-1, 1] (PF-PPO, arXiv 2409.06957).
    """

    strategy: Literal["best_random", "best_worst", "power"] = "best_random"
    power: float = Field(default=1.0, gt=0)
    num_samples: int = Field(default=2, ge=1)

    def _rows(
        self, candidates: Candidates, rewards: "Tensor", group_ids: "Tensor", generator: Any
    ) -> "Tensor":
        from rlstack.algorithms.filtration import power_weights, rank_weights, sample_rows

        if self.strategy == "power":
            weights = power_weights(rewards, group_ids, power=self.power)
        else:
            weights = rank_weights(rewards, group_ids, strategy=self.strategy)
        return sample_rows(weights, group_ids, num_per_group=self.num_samples, generator=generator)


class DynamicSampling(Policy):
    """Groups whose judged rewards differ (DAPO, arXiv 2503.14476)."""

    def _rows(
        self, candidates: Candidates, rewards: "Tensor", group_ids: "Tensor", generator: Any
    ) -> "Tensor":
        from rlstack.algorithms.filtration import has_signal, rows

        return rows(has_signal(rewards, group_ids))


class Difficulty(Policy):
    """Groups whose mean judged reward is strictly between `low` and `high`."""

    low: float
    high: float

    def _rows(
        self, candidates: Candidates, rewards: "Tensor", group_ids: "Tensor", generator: Any
    ) -> "Tensor":
        from rlstack.algorithms.filtration import rows, within_difficulty

        return rows(within_difficulty(rewards, group_ids, low=self.low, high=self.high))


class Length(Policy):
    """Responses of at most `max_tokens`; those that were cut off only with `keep_truncated`."""

    max_tokens: int = Field(ge=1)
    keep_truncated: bool = False

    def _rows(
        self, candidates: Candidates, rewards: "Tensor", group_ids: "Tensor", generator: Any
    ) -> "Tensor":
        import torch

        from rlstack.algorithms.filtration import rows, within_length

        short = within_length(
            torch.from_numpy(candidates.lengths),
            torch.from_numpy(candidates.truncated),
            max_tokens=self.max_tokens,
            keep_truncated=self.keep_truncated,
        )
        return rows(short & ~rewards.isnan())


class Registered(Policy):
    """A function that a plugin registered, with its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    function: Callable[[Candidates], NDArray[np.int64]]

    def select(self, candidates: Candidates, *, seed: int) -> NDArray[np.int64]:
        """See `Policy`; what the function says is checked.

        Raises:
            AlgorithmError: if a row is not there or could not be judged.
        """
        kept = np.sort(np.asarray(self.function(candidates), dtype=np.int64))
        judged = np.flatnonzero(~np.isnan(candidates.rewards))
        wrong = kept[~np.isin(kept, judged)]
        if len(wrong):
            raise AlgorithmError(
                f"a filtration kept row {wrong[0]} of {len(candidates.rewards)}, which is not "
                "there or could not be judged; keep rows whose reward is a number"
            )
        return kept


POLICIES: dict[str, type[Policy]] = {
    "none": KeepAll,
    "best": Best,
    "best_random": BestRandom,
    "best_worst": BestWorst,
    "soft": Soft,
    "dynamic_sampling": DynamicSampling,
    "difficulty": Difficulty,
    "length": Length,
}


def filtration_policy(name: str, **params: Any) -> Policy:
    """The policy of that name.

    Raises:
        AlgorithmError: if the name or a parameter is unknown, missing or wrong.
    """
    registered = FILTRATIONS.known_names()
    if name in POLICIES and name in registered:
        raise AlgorithmError(
            f"filtration policy {name!r} is one that ships with rlstack, and a plugin registers "
            "another of that name; rename the plugin's"
        )
    if name in registered:
        return Registered(function=FILTRATIONS.bind(name, params))
    if name not in POLICIES:
        known = (*POLICIES, *registered)
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise AlgorithmError(
            f"filtration policy {name!r} is unknown.{hint} Known: {', '.join(known)}. One of your "
            "own needs its module or file in algorithm.plugins"
        )
    try:
        return POLICIES[name].model_validate(params)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise AlgorithmError(f"filtration policy {name!r}, {place}: {first['msg']}") from None
