"""The calls of one RL step as data: who computes what, from what, on how many rows; pure.

`Controller.step` makes these calls and no others, each after those whose results it reads; a test
holds it to that.
"""

from dataclasses import dataclass
from enum import StrEnum

from rlstack.config.run import RLConfig


class CallKind(StrEnum):
    """What a role does in a call."""

    GENERATE = "generate"
    """Engines sample responses."""
    SCORE = "score"
    """Rewards judge groups; while others generate, so it reads them as they come."""
    FORWARD = "forward"
    """A model computes per-token values, without gradient."""
    UPDATE = "update"
    """Forward, backward and an optimizer step."""
    MOVE = "move"
    """The reference's weights move to the policy's."""
    PUBLISH = "publish"
    """The policy's weights go to the engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a step.

    role: engines, scorer, policy, reference or critic. rows: responses that it works on. inputs:
    names of the results that it reads; prompts and weights are there when a step begins.
    """

    role: str
    kind: CallKind
    rows: int
    inputs: tuple[str, ...]
    output: str


def calls(
    config: RLConfig, *, critic_only: bool = False, moves_reference: bool = False
) -> tuple[Call, ...]:
    """The calls of a step, each after those that it reads from.

    critic_only: of a step in which the critic warms up. moves_reference: of a step after which the
    reference moves to the policy. With dynamic sampling the first round of
    sampling; where a filtration chooses, rows before it has chosen.
    """
    algorithm = config.algorithm
    prompts = config.data.prompts_per_step
    rows = prompts * config.rollout.num_samples
    made = [
        _call("engines", CallKind.GENERATE, rows, "rollouts", "prompts", "weights"),
        _call("scorer", CallKind.SCORE, rows, "scores", "rollouts"),
    ]
    batch = ["rollouts", "scores"]
    if algorithm.needs_baseline:
        made += [
            _call("engines", CallKind.GENERATE, prompts, "greedy", "prompts", "weights", "scores"),
            _call("scorer", CallKind.SCORE, prompts, "baselines", "greedy"),
        ]
        batch.append("baselines")
    made.append(_call("policy", CallKind.FORWARD, rows, "old_logprobs", *batch))
    if algorithm.needs_reference:
        made.append(_call("reference", CallKind.FORWARD, rows, "ref_logprobs", *batch))
    if algorithm.needs_critic:
        made.append(_call("critic", CallKind.FORWARD, rows, "values", *batch))
    estimated = [call.output for call in made if call.kind is CallKind.FORWARD]
    updates = algorithm.epochs * algorithm.updates_per_epoch
    trained = ["critic"] * algorithm.needs_critic + ["policy"] * (not critic_only)
    latest = dict.fromkeys(trained, tuple(estimated))
    for number in range(updates):
        for role in trained:
            output = f"{role}_update_{number}"
            share = rows // algorithm.updates_per_epoch
            made.append(_call(role, CallKind.UPDATE, share, output, *latest[role]))
            latest[role] = (output,)
    if moves_reference:
        made.append(_call("reference", CallKind.MOVE, 0, "reference", *latest["policy"]))
    if not critic_only:
        made.append(_call("policy", CallKind.PUBLISH, 0, "published", *latest["policy"]))
    return tuple(made)


def _call(role: str, kind: CallKind, rows: int, output: str, *inputs: str) -> Call:
    return Call(role=role, kind=kind, rows=rows, inputs=inputs, output=output)
