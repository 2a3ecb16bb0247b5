"""Metrics of scored rollouts: pass@k, majority voting, lengths; pure."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import prod

from rlstack.metrics import Metrics, merge
from rlstack.types import FinishReason, Group, Rollout, Score

CORRECT = 1.0 - 1e-6
"""A rollout counts as correct when its reward reaches this: the full mark of a verifier."""


def is_correct(score: Score) -> bool:
    """Whether a rollout solved its problem."""
    return score.value is not None and score.value >= CORRECT


def pass_at_k(num_samples: int, num_correct: int, *, k: int) -> float:
    """Unbiased chance that one of k samples is correct (Chen et al. 2021, eq. 1).

    1 - C(n - c, k) / C(n, k), as a product that does not overflow.

    Raises:
        ValueError: unless 1 <= k <= num_samples and 0 <= num_correct <= num_samples.
    """
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(
            f"pass_at_k: expected 1 <= k <= num_samples and 0 <= num_correct <= num_samples, "
            f"got k={k}, num_samples={num_samples}, num_correct={num_correct}"
        )
    if num_samples - num_correct < k:
        return 1.0
    misses = range(num_samples - num_correct + 1, num_samples + 1)
    return 1.0 - prod(1.0 - k / draw for draw in misses)


def majority_at_k(scores: Sequence[Score]) -> float:
    """Chance that the most frequent extracted answer is correct; ties are drawn evenly.

    Responses without an answer do not vote; if none votes the result is 0.
    """
    votes = Counter(s.extracted_answer for s in scores if s.extracted_answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    right = {s.extracted_answer for s in scores if is_correct(s)}
    return sum(answer in right for answer in winners) / len(winners)


def evaluation_metrics(groups: Sequence[Group]) -> Metrics:
    """`eval/...` over all groups, and `eval/<data_source>/...` where there is more than one source.

    Every prompt weighs the same. A response that could not be judged is not correct; `unjudged` is
    their share, and `reward` is the mean over the others; `part/...` that of each component. There
    is a `maj@k` where prompts have answers.
    """
    votes = any(group.prompt.answer is not None for group in groups)
    by_source: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_source[group.prompt.data_source].append(group)
    metrics = merge(_evaluate(group, prefix="eval", votes=votes) for group in groups)
    if len(by_source) > 1:
        for source, members in sorted(by_source.items()):
            metrics += merge(
                _evaluate(group, prefix=f"eval/{source}", votes=votes) for group in members
            )
    return metrics


def _evaluate(group: Group, *, prefix: str, votes: bool) -> Metrics:
    num_samples = len(group.scores)
    num_correct = sum(is_correct(score) for score in group.scores)
    means: dict[str, tuple[float, float]] = {}
    k = 1
    while k <= num_samples:
        means[f"{prefix}/pass@{k}"] = (pass_at_k(num_samples, num_correct, k=k), 1.0)
        k *= 2
    if votes and num_samples > 1:
        means[f"{prefix}/maj@{num_samples}"] = (majority_at_k(group.scores), 1.0)
    judged = [score.value for score in group.scores if score.value is not None]
    truncated = sum(r.finish_reason is FinishReason.LENGTH for r in group.rollouts)
    means |= {
        f"{prefix}/reward": (sum(judged), float(len(judged))),
        f"{prefix}/unjudged": (float(num_samples - len(judged)), float(num_samples)),
        f"{prefix}/response_tokens": (
            float(sum(len(r.response_ids) for r in group.rollouts)),
            float(num_samples),
        ),
        f"{prefix}/truncated_fraction": (float(truncated), float(num_samples)),
    }
    for rollout, score in zip(group.rollouts, group.scores, strict=True):
        parts = {f"part/{name}": value for name, value in score.parts.items()}
        for name, value in (_episode_measures(rollout) | parts).items():
            total, count = means.get(f"{prefix}/{name}", (0.0, 0.0))
            means[f"{prefix}/{name}"] = (total + value, count + 1.0)
    return Metrics(means=means)


def _episode_measures(rollout: Rollout) -> dict[str, float]:
    """Turns, tools and how it ended, of one episode; nothing of a rollout without environment."""
    if not rollout.turns and rollout.error is None:
        return {}
    answers = [turn.answer for turn in rollout.turns if turn.answer is not None]
    return {
        "num_turns": len(rollout.turns),
        "observation_tokens": len(rollout.loss_mask) - int(rollout.loss_mask.sum()),
        "tool_calls": sum(answer.tool_calls for answer in answers),
        "tool_errors": sum(answer.tool_errors for answer in answers),
        "truncated_by_turns": rollout.finish_reason is FinishReason.TURNS,
        "environment_errors": rollout.finish_reason is FinishReason.ERROR,
        "environment_timeouts": rollout.finish_reason is FinishReason.TIMEOUT,
    }


def rollout_metrics(groups: Sequence[Group], *, max_response_tokens: int) -> Metrics:
    """Lengths, turns, truncation, and the reward by component and data source, of rollouts.

    `rollout/num_tokens` (those that the policy wrote), `reward/errors` and
    `reward/errors/<component>` are sums, everything else is a mean over rollouts:
    `reward/judged_fraction` is the share of those that have a score.
    """
    metrics = Metrics()
    means: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def observe(name: str, value: float) -> None:
        total, count = means[name]
        means[name] = (total + value, count + 1.0)

    lengths: list[int] = []
    num_tokens = 0
    num_errors: Counter[str] = Counter()
    for group in groups:
        for rollout, score in zip(group.rollouts, group.scores, strict=True):
            length = len(rollout.response_ids)
            lengths.append(length)
            num_tokens += int(rollout.loss_mask.sum())
            observe("rollout/response_tokens", length)
            observe("rollout/truncated_fraction", rollout.finish_reason is FinishReason.LENGTH)
            observe("rollout/length_share", length / max_response_tokens)
            num_errors.update(score.num_errors)
            observe("reward/judged_fraction", score.value is not None)
            for name, value in _episode_measures(rollout).items():
                observe(f"rollout/{name}", value)
            for name, value in score.parts.items():
                observe(f"reward/part/{name}", value)
            if score.value is not None:
                observe(f"reward/source/{group.prompt.data_source}", score.value)
        if group.baseline is not None:
            num_errors.update(group.baseline.num_errors)
            observe("reward/baseline_unjudged", group.baseline.value is None)
            if group.baseline.value is not None:
                observe("reward/baseline", group.baseline.value)
    metrics += Metrics(means=dict(means))
    if lengths:
        metrics += Metrics.of(
            {"rollout/num_tokens": num_tokens, "reward/errors": num_errors.total()}
        )
        metrics += Metrics.of({f"reward/errors/{name}": n for name, n in num_errors.items()})
        metrics += Metrics(
            maxima={"rollout/response_tokens_max": float(max(lengths))},
            minima={"rollout/response_tokens_min": float(min(lengths))},
        )
    return metrics
