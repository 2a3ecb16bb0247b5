"""What the assistant must write in its turns, as tokens: the mask of supervised training.

A turn is what the model has to produce behind the generation prompt: the content, and the word with
which the chat template ends a turn (`<|im_end|>`, `</s>`), so that the model learns to stop. It is
tokenized as it will be when the model generates it: if the tokens of the text before it are other
ones once the turn follows, the turn is tokenized by itself.
"""

import re

import numpy as np
from numpy.typing import NDArray

from rlstack.data.rendering import apply_template
from rlstack.data.tokenizer import Tokenizer
from rlstack.data.values import RowError, show
from rlstack.types import Message, Prompt

PROBE = "rlstack"
"""Stands for a response, to see what the template writes around one."""
GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Templates may mark what the assistant writes; transformers then makes the mask."""


def encode_turn(prompt: Prompt, response: str, *, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """int64 [R]: the response behind its prompt, the end of the turn and of the sequence included.

    Raises:
        RowError: if the chat template refuses a response after these messages.
    """
    templated = bool(prompt.messages) and tokenizer.chat_template is not None
    lead, ending = _around(prompt, tokenizer) if templated else ("", "")
    if ending and response.rstrip().endswith(ending):
        response, ending = response.rstrip(), ""
    turn, before = lead + response + ending, prompt.token_ids.tolist()
    token_ids = tokenizer.encode(prompt.text + turn, add_special_tokens=not templated)
    if token_ids[: len(before)] == before:
        token_ids = token_ids[len(before) :]
    else:
        token_ids = tokenizer.encode(turn, add_special_tokens=False)
    if not token_ids or token_ids[-1] != tokenizer.eos_token_id:
        token_ids.append(tokenizer.eos_token_id)
    return np.array(token_ids, dtype=np.int64)


def encode_earlier_turns(
    prompt: Prompt, *, tokenizer: Tokenizer
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens of the prompt, int64 [P], and bool [P]: True on what the assistant wrote in it.

    Raises:
        RowError: if that cannot be told, because the chat template rewrites earlier turns.
    """
    template = tokenizer.chat_template
    if template is None or all(message.role != "assistant" for message in prompt.messages):
        return prompt.token_ids, np.zeros(len(prompt.token_ids), dtype=np.bool_)
    if GENERATION_MARKER.search(template):
        return _marked(prompt, tokenizer)
    spans = _spans(prompt, tokenizer)
    mask = _mask(prompt, spans, tokenizer)
    return (prompt.token_ids, mask) if mask is not None else _piecewise(prompt, spans, tokenizer)


def _around(prompt: Prompt, tokenizer: Tokenizer) -> tuple[str, str]:
    """Space that the template puts before a response, and the word that it puts after it."""
    probe = Message(role="assistant", content=PROBE)
    text = apply_template((*prompt.messages, probe), tokenizer, add_generation_prompt=False)
    before, _, after = text.rpartition(PROBE)
    lead = before.removeprefix(prompt.text) if before.startswith(prompt.text) else ""
    words = after.split()
    return lead if not lead.strip() else "", words[0] if words else ""


def _spans(prompt: Prompt, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Where in the prompt's text each turn of the assistant starts and ends."""
    _, ending = _around(prompt, tokenizer)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(prompt.messages):
        if message.role != "assistant":
            continue
        if index == 0:
            raise RowError(
                "starts with the assistant",
                "nothing comes before the first turn; put a user or system turn there, or set "
                "train_on=last_turn",
            )
        before = apply_template(prompt.messages[:index], tokenizer, add_generation_prompt=True)
        turn = re.compile(rf"\s*{re.escape(message.content.strip())}\s*{re.escape(ending)}")
        found = turn.match(prompt.text, len(before)) if prompt.text.startswith(before) else None
        if found is None:
            shown = show(prompt.text[len(before) :])
            raise RowError(
                "the chat template rewrites earlier turns",
                f"turn {index} was generated as {show(message.content)}, but when the conversation "
                f"goes on the template has {shown} there; set train_on=last_turn, make one row "
                "of each turn, or mark the assistant's text in the template with {% generation %}",
            )
        end = found.end() if ending else len(found.group().rstrip()) + found.start()
        spans.append((found.start(), end))
    return spans


def _mask(
    prompt: Prompt, spans: list[tuple[int, int]], tokenizer: Tokenizer
) -> NDArray[np.bool_] | None:
    """True on the tokens inside `spans`; None if a token lies across the edge of one."""
    if not tokenizer.is_fast:
        return None
    encoded = tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = np.array(encoded["offset_mapping"], dtype=np.int64)
    mask = np.zeros(len(offsets), dtype=np.bool_)
    for edges in spans:
        for edge in edges:
            if bool(((offsets[:, 0] < edge) & (edge < offsets[:, 1])).any()):
                return None
        mask |= (edges[0] <= offsets[:, 0]) & (offsets[:, 1] <= edges[1])
    return mask


def _piecewise(
    prompt: Prompt, spans: list[tuple[int, int]], tokenizer: Tokenizer
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Every turn, and what lies between, tokenized by itself."""
    token_ids: list[int] = []
    mask: list[bool] = []
    start = 0
    for edges in [*spans, (len(prompt.text), len(prompt.text))]:
        for trains, end in zip((False, True), edges, strict=True):
            piece = tokenizer.encode(prompt.text[start:end], add_special_tokens=False)
            token_ids += piece
            mask += [trains] * len(piece)
            start = end
    return np.array(token_ids, dtype=np.int64), np.array(mask, dtype=np.bool_)


def _marked(prompt: Prompt, tokenizer: Tokenizer) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The template's own marks; an end of sequence right after one belongs to it."""
    encoded = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in prompt.messages],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    token_ids, mask = encoded["input_ids"], [bool(marked) for marked in encoded["assistant_masks"]]
    offsets = encoded["offset_mapping"]
    for index in range(1, len(mask)):
        if mask[index - 1] and not mask[index]:
            # Of a last character of several tokens, transformers marks the first one only.
            same_character = offsets[index][0] < offsets[index - 1][1]
            ends = token_ids[index] == tokenizer.eos_token_id != token_ids[index - 1]
            mask[index] = same_character or ends
    return np.array(token_ids, dtype=np.int64), np.array(mask, dtype=np.bool_)
