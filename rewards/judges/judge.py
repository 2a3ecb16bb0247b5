"""Rewards `judge` and `pairwise_judge`: another language model grades or compares the responses."""

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from statistics import fmean, median, multimode
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field

from rewards.judges.client import Endpoint, JudgeClient, Usage, Verdict
from rewards.judges.prompt import (
    PAIR_TEMPLATE,
    SCORE_TEMPLATE,
    load_template,
    pair_schema,
    parse_score,
    parse_winner,
    render,
    score_schema,
)
from rewards.registry import register
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

if TYPE_CHECKING:
    import httpx

_T = TypeVar("_T")

Vote = Literal["majority", "mean", "median"]
NumVotes = Annotated[int, Field(ge=1, le=64)]


@register("judge", batched=True, requires=("httpx", "jinja2"))
class Judge:
    """The judge's score of each response, 0 (worst) to 1 (best).

    endpoint: see `rewards.judges.client.Endpoint`.
    rubric: meaning of each dimension by name; the value is then the weighted mean of their scores,
        and each is a part. None: one score for the whole response.
    rubric_weights: weight of a dimension, 1 if it is not named.
    low, high: the scale the judge uses.
    template: a Jinja file, or a text, that uses `{{ blocks }}`; None: the built-in one.
    num_votes: verdicts on each response; set a temperature above 0. vote: how they become one:
        the most frequent score (the mean of several that are), the mean or the median.

    The value is None if fewer than half of the verdicts could be read. `tokens_in`, `tokens_out`
    and, with prices, `cost` are parts. A failed call costs its response only and is in its errors.

    Raises:
        RewardError: when it is built, if a parameter, the template or the key's variable is wrong.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        rubric: dict[str, str] | None = None,
        rubric_weights: dict[str, float] | None = None,
        low: float = 0.0,
        high: float = 10.0,
        template: str | None = None,
        num_votes: NumVotes = 1,
        vote: Vote = "majority",
    ) -> None:
        self._rubric = dict(rubric or {})
        self._weights = dict.fromkeys(self._rubric, 1.0) | dict(rubric_weights or {})
        unknown = self._weights.keys() - self._rubric.keys()
        if unknown or (self._rubric and not sum(self._weights.values()) > 0):
            raise RewardError(
                "reward 'judge': rubric_weights must name dimensions of rubric "
                f"({', '.join(self._rubric) or 'none'}) and sum to more than 0: {rubric_weights}"
            )
        if not low < high:
            raise RewardError(f"reward 'judge': low {low:g} is not below high {high:g}")
        _check_votes("judge", num_votes, endpoint)
        self._low, self._high = low, high
        self._template = load_template(template, SCORE_TEMPLATE)
        self._num_votes = num_votes
        self._vote: Vote = vote
        self.client = JudgeClient(endpoint)

    async def __call__(self, requests: Sequence[RewardRequest]) -> list[Score]:
        """Judge the responses of a group side by side."""
        async with self.client.open() as connection:
            return await asyncio.gather(*(self._judge(connection, r) for r in requests))

    async def _judge(self, connection: "httpx.AsyncClient", request: RewardRequest) -> Score:
        scale: dict[str, Any] = {"rubric": self._rubric, "low": self._low, "high": self._high}
        blocks = _task_blocks(request) | {"Response": request.response}
        prompt = render(self._template, blocks, key=self.client.cache.key, **scale)
        asked = [
            self.client.ask(
                connection,
                prompt,
                schema=score_schema(self._rubric, low=self._low, high=self._high),
                parse=partial(parse_score, **scale),
                vote=number,
            )
            for number in range(self._num_votes)
        ]
        verdicts, usage, errors = await _all(asked)
        parts = self.client.cost_parts(usage)
        if not verdicts or 2 * len(verdicts) < self._num_votes:
            return Score(value=None, parts=parts, errors=errors)
        span = self._high - self._low
        scores = {
            name: (_combine([verdict[name] for verdict in verdicts], self._vote) - self._low) / span
            for name in (self._rubric or ("score",))
        }
        if not self._rubric:
            return Score(value=scores["score"], parts=parts, errors=errors)
        total = sum(self._weights[name] * score for name, score in scores.items())
        value = total / sum(self._weights.values())
        return Score(value=value, parts=parts | scores, errors=errors)


@register("pairwise_judge", batched=True, requires=("httpx", "jinja2"))
class PairwiseJudge:
    """How often the judge prefers a response to others of its group, 0 (never) to 1 (always).

    Every pair is judged in both orders, because judges prefer a position: only a response that wins
    in both wins; a judge that changes its mind with the order has said nothing, 0.5.

    endpoint, template: as for `judge`. rubric: what to compare by, meanings by name.
    num_opponents: each response meets the next ones of the group, in a ring; None: all of them.
    num_votes: verdicts on each order; their mean counts.

    The value is None in a group of one, or if none of its pairs was judged in both orders. The
    tokens of a group are parts of its first response.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        rubric: dict[str, str] | None = None,
        template: str | None = None,
        num_opponents: Annotated[int, Field(ge=1)] | None = None,
        num_votes: NumVotes = 1,
    ) -> None:
        _check_votes("pairwise_judge", num_votes, endpoint)
        self._rubric = dict(rubric or {})
        self._template = load_template(template, PAIR_TEMPLATE)
        self._num_opponents = num_opponents
        self._num_votes = num_votes
        self.client = JudgeClient(endpoint)

    async def __call__(self, requests: Sequence[RewardRequest]) -> list[Score]:
        """Judge all pairs of a group side by side."""
        pairs = ring_pairs(len(requests), self._num_opponents)
        async with self.client.open() as connection:
            outcomes = await asyncio.gather(
                *(self._compare(connection, requests[a], requests[b]) for a, b in pairs)
            )
        wins: list[list[float]] = [[] for _ in requests]
        errors: list[list[str]] = [[] for _ in requests]
        spent = Usage()
        for (a, b), (outcome, usage, problems) in zip(pairs, outcomes, strict=True):
            spent += usage
            errors[a] += problems
            errors[b] += problems
            if outcome is not None:
                wins[a].append(outcome)
                wins[b].append(1.0 - outcome)
        return [
            Score(
                value=fmean(won) if won else None,
                parts=self.client.cost_parts(spent) if number == 0 else {},
                errors=tuple(dict.fromkeys(problems)),
            )
            for number, (won, problems) in enumerate(zip(wins, errors, strict=True))
        ]

    async def _compare(
        self, connection: "httpx.AsyncClient", first: RewardRequest, second: RewardRequest
    ) -> tuple[float | None, Usage, tuple[str, ...]]:
        """1.0: `first` is better, 0.0: `second` is, 0.5: neither; None: one order failed."""
        forward, backward = await asyncio.gather(
            self._ask(connection, first, second), self._ask(connection, second, first)
        )
        usage, errors = forward[1] + backward[1], forward[2] + backward[2]
        if not forward[0] or not backward[0]:
            return None, usage, errors
        return (fmean(forward[0]) + 1.0 - fmean(backward[0])) / 2, usage, errors

    async def _ask(
        self, connection: "httpx.AsyncClient", a: RewardRequest, b: RewardRequest
    ) -> tuple[list[float], Usage, tuple[str, ...]]:
        blocks = _task_blocks(a) | {"Response A": a.response, "Response B": b.response}
        key = self.client.cache.key
        prompt = render(self._template, blocks, key=key, rubric=self._rubric, low=0.0, high=1.0)
        asked = [
            self.client.ask(
                connection, prompt, schema=pair_schema(), parse=parse_winner, vote=number
            )
            for number in range(self._num_votes)
        ]
        return await _all(asked)


def ring_pairs(count: int, num_opponents: int | None) -> list[tuple[int, int]]:
    """Pairs in which each of `count` meets the next `num_opponents`; every pair once, None: all."""
    reach = count - 1 if num_opponents is None else min(num_opponents, count - 1)
    pairs = {
        tuple(sorted((index, (index + step) % count)))
        for index in range(count)
        for step in range(1, reach + 1)
    }
    return sorted((a, b) for a, b in pairs)


def _check_votes(reward: str, num_votes: int, endpoint: Endpoint) -> None:
    if num_votes > 1 and endpoint.temperature == 0:
        raise RewardError(
            f"reward {reward!r}: {num_votes} votes at temperature 0 are all the same. Set "
            "endpoint.temperature above 0, or num_votes: 1."
        )


def _task_blocks(request: RewardRequest) -> dict[str, str]:
    blocks = {"Task": request.prompt}
    return blocks if request.answer is None else blocks | {"Reference answer": request.answer}


def _combine(scores: Sequence[float], vote: Vote) -> float:
    if vote == "majority":
        return fmean(multimode(scores))
    return fmean(scores) if vote == "mean" else median(scores)


async def _all(
    asked: Sequence[Awaitable[Verdict[_T]]],
) -> tuple[list[_T], Usage, tuple[str, ...]]:
    """The verdicts that could be read, what all cost, and what was wrong with the others."""
    values: list[_T] = []
    errors: list[str] = []
    usage = Usage()
    for result in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(result, RewardError):
            errors.append(str(result))
        elif isinstance(result, BaseException):
            raise result
        else:
            usage += result.usage
            if result.value is not None:
                values.append(result.value)
            if result.problem is not None:
                errors.append(result.problem)
    return values, usage, tuple(errors)
