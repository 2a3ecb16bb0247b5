"""Token-exact bookkeeping of one episode: what was sampled and what was put between; pure."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rlstack.types import FinishReason, Prompt, Rollout, Turn, TurnRecord


@dataclass(slots=True)
class Transcript:
    """The tokens of an episode, in order. They are only ever appended to."""

    prompt: Prompt
    sample_index: int
    turns: list[TurnRecord] = field(default_factory=list[TurnRecord])
    length: int = 0
    """Tokens after the prompt."""
    _token_ids: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])
    _logprobs: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    _sampled: list[bool] = field(default_factory=list[bool])
    _versions: list[NDArray[np.int32]] = field(default_factory=list[NDArray[np.int32]])

    def add_action(
        self,
        text: str,
        token_ids: NDArray[np.int64],
        logprobs: NDArray[np.float32],
        *,
        policy_versions: NDArray[np.int32],
    ) -> None:
        """What the policy wrote: token_ids int64 [N], logprobs float32 [N], nats."""
        self._append(token_ids, logprobs, policy_versions, sampled=True)
        self.turns.append(TurnRecord(action=text, end=self.length, answer=None))

    def add_answer(self, answer: Turn) -> None:
        """What the environment made of the last action; its observation is not yet shown."""
        last = self.turns[-1]
        self.turns[-1] = TurnRecord(action=last.action, end=last.end, answer=answer)

    def add_observation(self, token_ids: NDArray[np.int64]) -> None:
        """What is shown to the policy before its next action: int64 [N]; not trained on."""
        nothing = np.zeros(len(token_ids), dtype=np.float32)
        versions = np.repeat(self._versions[-1][-1:], len(token_ids))
        self._append(token_ids, nothing, versions, sampled=False)

    def context(self) -> list[int]:
        """The prompt and everything after it, as the engine is given it."""
        return np.concatenate([self.prompt.token_ids, *self._token_ids]).tolist()

    def rollout(self, finish_reason: FinishReason, *, error: str | None = None) -> Rollout:
        """The episode as it stands."""
        sizes = [len(ids) for ids in self._token_ids]
        return Rollout(
            prompt=self.prompt,
            sample_index=self.sample_index,
            text=self.turns[-1].action if self.turns else "",
            response_ids=np.concatenate([np.empty(0, dtype=np.int64), *self._token_ids]),
            logprobs=np.concatenate([np.empty(0, dtype=np.float32), *self._logprobs]),
            loss_mask=np.repeat(np.array(self._sampled, dtype=np.bool_), sizes),
            finish_reason=finish_reason,
            policy_versions=np.concatenate([np.empty(0, dtype=np.int32), *self._versions]),
            turns=tuple(self.turns),
            error=error,
        )

    def _append(
        self,
        token_ids: NDArray[np.int64],
        logprobs: NDArray[np.float32],
        versions: NDArray[np.int32],
        *,
        sampled: bool,
    ) -> None:
        if not len(token_ids) == len(logprobs) == len(versions):
            raise ValueError("Transcript: expected one logprob and one version per token")
        self._token_ids.append(token_ids)
        self._logprobs.append(logprobs)
        self._sampled.append(sampled)
        self._versions.append(versions)
        self.length += len(token_ids)
