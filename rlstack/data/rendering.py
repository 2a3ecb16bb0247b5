"""Examples to prompts: the system prompt, the chat template and their tokens."""

import numpy as np

from rlstack.data.tokenizer import Tokenizer
from rlstack.data.values import RowError
from rlstack.types import Example, Message, Prompt


def render_prompt(example: Example, *, tokenizer: Tokenizer, system_prompt: str | None) -> Prompt:
    """Render and tokenize.

    Messages go through the chat template, which writes its own special tokens, so the tokenizer
    adds none; `system_prompt` replaces the row's own system turn. Without a chat template a single
    user turn is its own prompt. Plain text is tokenized as transformers and vLLM do it, with the
    tokenizer's special tokens (a beginning-of-sequence token, for models that have one).

    Raises:
        RowError: if the messages cannot be rendered or nothing is left.
    """
    if example.text is not None:
        if system_prompt is not None:
            raise RowError(
                "no room for the system prompt",
                "the prompt is plain text; give it as messages, name its column in "
                "columns.prompt, or set data.system_prompt=null",
            )
        messages: tuple[Message, ...] = ()
        text, templated = example.text, False
    else:
        messages = _with_system(example.messages, system_prompt)
        templated = tokenizer.chat_template is not None
        text = (
            apply_template(messages, tokenizer, add_generation_prompt=True)
            if templated
            else _plain(messages)
        )
    token_ids = tokenizer.encode(text, add_special_tokens=not templated)
    if not token_ids:
        raise RowError("empty prompt", "nothing is left to tokenize; remove the row")
    return Prompt(
        prompt_id=example.example_id,
        data_source=example.data_source,
        text=text,
        token_ids=np.array(token_ids, dtype=np.int64),
        answer=example.answer,
        reward=example.reward,
        metadata=example.metadata,
        messages=messages,
    )


def _with_system(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    if system_prompt is None:
        return messages
    others = messages[1:] if messages[0].role == "system" else messages
    return (Message(role="system", content=system_prompt), *others)


def apply_template(
    messages: tuple[Message, ...], tokenizer: Tokenizer, *, add_generation_prompt: bool
) -> str:
    """The conversation as text.

    Raises:
        RowError: if the chat template refuses it.
    """
    # Templates are Jinja, and refuse conversations they cannot write by raising its errors.
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise RowError(
            "refused by the chat template",
            f"{error} (turns: {roles}); change the turns, or data.system_prompt",
        ) from None


def _plain(messages: tuple[Message, ...]) -> str:
    if len(messages) != 1 or messages[0].role != "user":
        roles = ", ".join(message.role for message in messages)
        raise RowError(
            "no chat template",
            f"the tokenizer has none, so only a single user turn can be a prompt, not {roles}; use "
            "an instruction-tuned model's tokenizer, plain text prompts, or no data.system_prompt",
        )
    return messages[0].content
