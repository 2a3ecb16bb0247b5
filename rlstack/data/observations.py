"""The tokens between two actions of an episode: what the chat template writes there.

What the policy sampled is never tokenized again. The template is rendered with a stand-in for the
last action; what it writes behind the stand-in (the end of the assistant's turn, the observation,
the opening of the next turn) is what follows the sampled tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlstack.data.rendering import render_prompt
from rlstack.data.tokenizer import Tokenizer
from rlstack.errors import DataError
from rlstack.types import Example, Message, Prompt, Turn

_STAND_IN = "stand-in for an action"


class TurnRenderer:
    """Observations as token ids, for one tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, *, max_prompt_tokens: int, max_observation_tokens: int
    ) -> None:
        """Find out whether the chat template knows the role `tool`.

        Raises:
            DataError: if there is no chat template, or it cannot continue a conversation.
        """
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._max_tokens = max_observation_tokens
        if tokenizer.chat_template is None:
            raise DataError(
                "environment: the tokenizer has no chat template, so turns cannot be written; use "
                "an instruction-tuned model's tokenizer"
            )
        question = Message(role="user", content="question")
        self._knows_tools = self._can_write([question], "tool")
        if not self._can_write([question], "user"):
            raise DataError(
                "environment: the chat template does not write a user turn behind the assistant's; "
                "use a tokenizer whose template can continue a conversation"
            )

    def opened(self, prompt: Prompt, observation: str) -> Prompt:
        """The prompt with the first observation behind its last user turn.

        Raises:
            DataError: if that is longer than `max_prompt_tokens`.
        """
        content = self._harmless(observation)
        example = Example(
            example_id=prompt.prompt_id,
            data_source=prompt.data_source,
            messages=_with_first(prompt.messages, content),
        )
        rendered = render_prompt(example, tokenizer=self._tokenizer, system_prompt=None)
        if len(rendered.token_ids) > self._max_prompt_tokens:
            raise DataError(
                f"with the first observation the prompt has {len(rendered.token_ids)} tokens; "
                f"data.max_prompt_tokens is {self._max_prompt_tokens}: raise it"
            )
        return replace(
            prompt,
            text=rendered.text,
            token_ids=rendered.token_ids,
            messages=rendered.messages,
        )

    def message(self, turn: Turn) -> Message:
        """The observation as the template is given it: cut to its limit, safe to tokenize.

        A tool's output in a template without tools is a user turn in `<tool_response>` tags.
        """
        content = self._cut(self._harmless(turn.observation))
        if turn.role == "tool" and not self._knows_tools:
            return Message(role="user", content=f"<tool_response>\n{content}\n</tool_response>")
        return Message(role=turn.role, content=content)

    def continuation(
        self, history: Sequence[Message], observation: Message, *, last_token: int
    ) -> NDArray[np.int64]:
        """int64: what stands between the last sampled token of an action and the next action.

        history: the conversation before the action. last_token: if it is the end-of-sequence token
        with which the template ends a turn, that is not repeated.

        Raises:
            DataError: if the template does not write the turn.
        """
        text = self._behind_action(history, observation)
        if text is None:
            raise DataError(
                f"environment: the chat template does not write a {observation.role} turn behind "
                f"the turns {', '.join(message.role for message in history)}, assistant"
            )
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        if last_token in token_ids and last_token == self._tokenizer.eos_token_id:
            position = token_ids.index(last_token)
            if not self._tokenizer.decode(token_ids[:position]).strip():
                token_ids = token_ids[position + 1 :]
        return np.array(token_ids, dtype=np.int64)

    def _can_write(self, history: Sequence[Message], role: str) -> bool:
        behind = self._behind_action(history, Message(role=role, content="observation"))
        return behind is not None and "observation" in behind

    def _behind_action(self, history: Sequence[Message], observation: Message) -> str | None:
        from jinja2 import TemplateError

        stand_in = _STAND_IN
        while any(stand_in in m.content for m in (*history, observation)):
            stand_in += "."
        turns = [*history, Message(role="assistant", content=stand_in), observation]
        try:
            text = self._tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in turns],
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError):  # they also add None to text, where they need more
            return None
        _, found, behind = text.rpartition(stand_in)
        return behind if found else None

    def _harmless(self, text: str) -> str:
        """Special tokens in an observation are text: it must not end its own turn."""
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _cut(self, text: str) -> str:
        """At most the first and last `max_observation_tokens` / 2 tokens, with a note between."""
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        left_out = len(token_ids) - self._max_tokens
        if left_out <= 0:
            return text
        tail = self._max_tokens // 2
        head = self._max_tokens - tail
        first = self._tokenizer.decode(token_ids[:head])
        last = self._tokenizer.decode(token_ids[len(token_ids) - tail :]) if tail else ""
        return f"{first}\n[{left_out} tokens left out]\n{last}"


def _with_first(messages: tuple[Message, ...], observation: str) -> tuple[Message, ...]:
    """No turn of its own: many templates refuse two user turns in a row."""
    *before, last = messages
    if last.role != "user":
        return (*messages, Message(role="user", content=observation))
    return (*before, Message(role="user", content=f"{last.content}\n\n{observation}"))


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Episodes need conversations.

    Raises:
        DataError: naming the first row that is plain text.
    """
    for prompt in prompts:
        if not prompt.messages:
            raise DataError(
                f"environment: row {prompt.prompt_id} is plain text, to which turns cannot be "
                "added; give it as messages, or name its column in columns.prompt"
            )
