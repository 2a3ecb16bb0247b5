"""The vocabulary of rlstack: one frozen type per stage of a sample's life.

A `Prompt` is a dataset row ready to generate from. A `Rollout` is one sampled response to it; with
an environment it is an episode of several turns, each an action of the policy and the environment's
answer. A `Group` is the rollouts that share a prompt, with their scores. This module imports no
torch: arrays are numpy, so reward plugins and data code stay light.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class Phase(StrEnum):
    """What the devices are doing."""

    GENERATE = "generate"
    TRAIN = "train"


class FinishReason(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    """The model ended it: end-of-sequence token or stop string."""
    LENGTH = "length"
    """It was cut at `max_response_tokens`."""
    TURNS = "turns"
    """The environment had not ended the episode after `environment.max_turns`."""
    TIMEOUT = "timeout"
    """The environment did not answer a turn in time."""
    ERROR = "error"
    """The environment failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two responses to the same prompt, of which `chosen` is the better one."""

    chosen: str
    rejected: str
    margin: float | None = None
    """By how much, in the units of the row's own scores."""
    chosen_features: tuple[float, ...] = ()
    rejected_features: tuple[float, ...] = ()
    """Scored attributes of each response, the same ones for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an environment may see of the row that its episode starts from; picklable."""

    prompt: str
    """The rendered prompt text, chat template included."""
    messages: tuple[Message, ...] = ()
    answer: str | None = None
    data_source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    """Of this episode: an environment that draws anything draws it from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What an environment answers to one action."""

    observation: str = ""
    """What the policy reads next; it is not shown the one that ends the episode."""
    done: bool = False
    reward: float = 0.0
    """Of this action, in reward units; counted by the reward `environment`."""
    role: Literal["user", "tool"] = "user"
    """Who speaks: tool output is written as the chat template writes it."""
    tool_calls: int = 0
    tool_errors: int = 0
    """How many of the calls were malformed or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """One turn of a rollout: what the policy wrote and what the environment answered."""

    action: str
    end: int
    """Tokens of the response up to the action's last one: where its reward is due."""
    answer: Turn | None
    """None if the environment was not asked, because the action was cut, or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A dataset row in rlstack's schema, before any tokenizer has seen it.

    `messages` or `text` is set, never both: `text` is used as it stands, `messages` go through the
    tokenizer's chat template. `response` is a demonstration, for supervised training only.
    """

    example_id: str
    """Unique in the dataset, readable: `name:row`."""
    data_source: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    answer: str | None = None
    response: str | None = None
    comparison: Comparison | None = None
    """For reward models and direct preference learning."""
    desirable: bool | None = None
    """Judgement of `response`, for KTO."""
    reward: str | None = None
    """Name of the reward that judges this row, for the `row` reward component."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """An example rendered and tokenized.

    token_ids: int64 [P], chat template and generation prompt included.
    """

    prompt_id: str
    data_source: str
    text: str
    token_ids: NDArray[np.int64]
    answer: str | None
    reward: str | None
    metadata: Mapping[str, Any]
    messages: tuple[Message, ...] = ()
    """The conversation that was rendered, system prompt included; empty for plain text."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demonstration:
    """A conversation to learn from.

    token_ids: int64 [L], chat template included. loss_mask: bool [L], True on what the assistant
    wrote, the ends of its turns and of the sequence included.
    """

    prompt_id: str
    data_source: str
    text: str
    """All but the last turn, rendered."""
    token_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreferencePair:
    """A prompt and two tokenized responses to it, of which `chosen` is the better one.

    prompt_ids: int64 [P], chat template and generation prompt included.
    chosen_ids, rejected_ids: int64 [R], end-of-sequence token included; their own lengths.
    chosen_mask, rejected_mask: bool [R], False on what an environment said in between; None: the
        policy wrote all of it.
    margin: by how much, in the units of the row's scores; None where the row does not say.
    chosen_features, rejected_features: F scored attributes of each response; F may be 0.
    """

    prompt_id: str
    data_source: str
    text: str
    """The rendered prompt, chat template included."""
    chosen: str
    rejected: str
    prompt_ids: NDArray[np.int64]
    chosen_ids: NDArray[np.int64]
    rejected_ids: NDArray[np.int64]
    margin: float | None
    chosen_features: tuple[float, ...]
    rejected_features: tuple[float, ...]
    metadata: Mapping[str, Any]
    chosen_mask: NDArray[np.bool_] | None = None
    rejected_mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedResponse:
    """A prompt and one tokenized response that was judged good or bad (KTO).

    prompt_ids: int64 [P], chat template and generation prompt included.
    response_ids: int64 [R], end-of-sequence token included.
    """

    prompt_id: str
    data_source: str
    text: str
    """The rendered prompt, chat template included."""
    response: str
    prompt_ids: NDArray[np.int64]
    response_ids: NDArray[np.int64]
    desirable: bool
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How responses are sampled; training samples from the full distribution at `temperature`."""

    temperature: float
    max_response_tokens: int
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerationRequest:
    """One response to sample."""

    request_id: int
    """Index of the request in its `generate` call."""
    prompt: Prompt
    sample_index: int
    """0 .. num_samples - 1 within the group."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """One sampled response, or one episode with an environment.

    response_ids: int64 [R], everything after the prompt as it was sampled, end-of-sequence tokens
        included, with the environment's observations between the actions.
    logprobs: float32 [R], nats, under the distribution that was sampled from (temperature applied).
    loss_mask: bool [R], False on text the policy did not write (observations).
    policy_versions: int32 [R], the policy version that produced each token; of an observation, the
        version of the action before it.
    """

    prompt: Prompt
    sample_index: int
    text: str
    response_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    loss_mask: NDArray[np.bool_]
    finish_reason: FinishReason
    policy_versions: NDArray[np.int32]
    turns: tuple[TurnRecord, ...] = ()
    """Of an episode; empty without an environment. `text` is the last action."""
    error: str | None = None
    """Why the environment failed; such a rollout has no reward."""

    def __post_init__(self) -> None:
        num_tokens = len(self.response_ids)
        for name in ("logprobs", "loss_mask", "policy_versions"):
            if len(getattr(self, name)) != num_tokens:
                raise ValueError(f"Rollout.{name}: expected {num_tokens} entries, one per token")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRequest:
    """What a reward may see of a rollout; picklable, no tensors."""

    prompt: str
    """The rendered prompt text, chat template included."""
    response: str
    """What the policy wrote; in an episode, its last action."""
    answer: str | None = None
    """The reference answer of the dataset row."""
    data_source: str = ""
    reward: str | None = None
    """The reward the row names for itself, if any."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    messages: tuple[Message, ...] = ()
    """The conversation behind `prompt`, where there is one."""
    response_tokens: int = 0
    """Tokens after the prompt; in an episode, observations included."""
    max_response_tokens: int = 0
    finish_reason: FinishReason = FinishReason.STOP
    turns: tuple[TurnRecord, ...] = ()
    """Of an episode, with what the environment answered; empty without an environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The judgement of one rollout.

    `value` is in reward units; None means "cannot be judged", which is not 0.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Unweighted value of each reward component that could judge."""
    turn_rewards: tuple[float, ...] = ()
    """The part of `value` that is due at each turn of an episode, in reward units, in order; what
    `value` has beyond their sum is due at the end. Empty: all of it is."""
    extracted_answer: str | None = None
    """The answer found in the response; majority voting compares these."""
    errors: tuple[str, ...] = ()
    """One message per component that failed or timed out."""
    num_errors: Mapping[str, int] = field(default_factory=dict[str, int], compare=False)
    """How many of `errors` each component made, by label; they are compared themselves."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """The rollouts that share a prompt, with their scores, in order of `sample_index`."""

    number: int
    """Prompts that the run had taken before this one; of a held-out one its position."""
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]
    baseline: Score | None = None
    """Of the greedy response to the prompt, where the algorithm compares rollouts with it."""

    def __post_init__(self) -> None:
        if len(self.rollouts) != len(self.scores):
            raise ValueError("Group: expected one score per rollout")

    @property
    def rewards(self) -> NDArray[np.float32]:
        """float32 [G], reward units; NaN where a rollout could not be judged."""
        return np.array(
            [np.nan if s.value is None else s.value for s in self.scores], dtype=np.float32
        )

    @property
    def has_signal(self) -> bool:
        """Whether the judged rewards differ, so that group-relative advantages are not all zero."""
        rewards = self.rewards
        judged = rewards[~np.isnan(rewards)]
        return len(judged) > 1 and bool(judged.max() > judged.min())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """What a filtration policy may look at, one entry per rollout.

    rewards: float64 [B], NaN where a rollout could not be judged. group_ids: int64 [B], from 0,
    equal for rollouts of one prompt. lengths: int64 [B], response tokens. truncated: bool [B].
    """

    rewards: NDArray[np.float64]
    group_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
