"""The loss is on what the assistant writes, and nothing else, whatever the chat template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlstack.data.rendering import render_prompt
from rlstack.data.turns import encode_earlier_turns, encode_turn
from rlstack.data.values import RowError
from rlstack.types import Example, Message
from tests.data.conftest import CharTokenizer

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt else '<|endoftext|>' }}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content.split('</think>')[-1] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_WITHOUT_END = MARKED.replace(
    "<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETS_THINKING = CHATML.replace(
    "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
)
# template, end of sequence, what a turn starts and ends with
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>", "", "<|im_end|>"),
    "chatml of a base model": (CHATML, "<|endoftext|>", "", "<|im_end|>"),
    "llama 3": (LLAMA3, "<|eot_id|>", "", "<|eot_id|>"),
    "mistral": (MISTRAL, "</s>", " ", "</s>"),
    "gemma": (GEMMA, "<end_of_turn>", "", "<end_of_turn>"),
    "phi 3": (PHI3, "<|endoftext|>", "", "<|end|>"),
    "marked": (MARKED, "<|im_end|>", "", "<|im_end|>"),
    "marked without the end": (MARKED_WITHOUT_END, "<|im_end|>", "", "<|im_end|>"),
    "no end of turn": (NO_END, "<|endoftext|>", "", ""),
}
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
]


def make_tokenizer(template: str | None, eos_token: str) -> PreTrainedTokenizerFast:
    """Byte-level, with merges that reach over the end of a line or of a generation prompt."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline, space = "Ċ", "Ġ"
    pairs = [(newline, newline), (newline + newline, newline), (":", space), (space, "a")]
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    for left, right in pairs:
        vocabulary.setdefault(left + right, len(vocabulary))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    # Without the usual splitting into words, so that merges meet every boundary.
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos_token)
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {name: make_tokenizer(*given[:2]) for name, given in TEMPLATES.items()}


def conversation(*contents: str) -> Example:
    roles = ("user", "assistant") * len(contents)
    turns = (Message(role=r, content=c) for r, c in zip(roles, contents, strict=False))
    return Example(example_id="rows:1", data_source="rows", messages=tuple(turns))


def learned(tokenizer: PreTrainedTokenizerFast, *contents: str) -> tuple[list[str], str]:
    """The runs of text that are in the loss; the whole text. The last content is the response."""
    prompt = render_prompt(conversation(*contents[:-1]), tokenizer=tokenizer, system_prompt=None)
    token_ids, mask = encode_earlier_turns(prompt, tokenizer=tokenizer)
    response = encode_turn(prompt, contents[-1], tokenizer=tokenizer).tolist()
    runs: list[list[int]] = []
    before = False
    for token, trains in zip(token_ids.tolist(), mask.tolist(), strict=True):
        if trains and not before:
            runs.append([])
        if trains:
            runs[-1].append(token)
        before = trains
    decoded = [tokenizer.decode(run) for run in [*runs, response]]
    return decoded, tokenizer.decode([*token_ids.tolist(), *response])


# A template may trim what it is given, so texts are trimmed; no text is one of the special tokens.
CONTENT = st.text(st.sampled_from("ab:é😀 \n.*<"), min_size=1, max_size=12).map(str.strip)
CONTENT = CONTENT.filter(lambda text: text != "")


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENT, min_size=2, max_size=8))
def test_exactly_the_assistants_turns_are_learned(name: str, contents: list[str]) -> None:
    contents = contents[: len(contents) // 2 * 2]
    _, eos, lead, ending = TEMPLATES[name]
    tokenizer = TOKENIZERS[name]
    texts, whole = learned(tokenizer, *contents)
    *earlier, last = contents[1::2]
    stop = "" if ending == eos else eos
    assert texts == [
        *(f"{lead}{content}{ending}" for content in earlier),
        f"{lead}{last}{ending}{stop}",
    ]
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert (whole.removesuffix(stop) if stop else whole) == rendered[: len(whole) - len(stop)]


def test_turns_are_tokenized_as_they_are_generated() -> None:
    tokenizer = TOKENIZERS["chatml"]
    prompt = render_prompt(conversation("a", "\nb", "c"), tokenizer=tokenizer, system_prompt=None)
    token_ids, mask = encode_earlier_turns(prompt, tokenizer=tokenizer)
    # The text alone would be tokenized with the line's end and the content's first as one token.
    assert token_ids.tolist() != prompt.token_ids.tolist()
    assert tokenizer.convert_ids_to_tokens(token_ids[mask].tolist()) == ["Ċ", "b", "<|im_end|>"]
    response = encode_turn(prompt, "\nd", tokenizer=tokenizer).tolist()
    assert tokenizer.convert_ids_to_tokens(response) == ["Ċ", "d", "<|im_end|>"]


def test_a_turn_that_ends_itself_ends_once() -> None:
    tokenizer = TOKENIZERS["chatml"]
    prompt = render_prompt(conversation("a"), tokenizer=tokenizer, system_prompt=None)
    once = encode_turn(prompt, "b", tokenizer=tokenizer).tolist()
    assert encode_turn(prompt, "b<|im_end|>", tokenizer=tokenizer).tolist() == once
    assert encode_turn(prompt, "b<|im_end|>\n", tokenizer=tokenizer).tolist() == once


def test_plain_text_ends_in_the_end_of_sequence_alone() -> None:
    tokenizer = TOKENIZERS["chatml"]
    example = Example(example_id="rows:1", data_source="rows", text="1+1=")
    prompt = render_prompt(example, tokenizer=tokenizer, system_prompt=None)
    assert tokenizer.decode(encode_turn(prompt, "2", tokenizer=tokenizer)) == "2<|im_end|>"
    assert not encode_earlier_turns(prompt, tokenizer=tokenizer)[1].any()


def test_a_tokenizer_without_offsets_takes_the_text_in_pieces() -> None:
    tokenizer = CharTokenizer(chat_template="<role>content", is_fast=False)
    prompt = render_prompt(conversation("a", "bc", "d"), tokenizer=tokenizer, system_prompt=None)
    token_ids, mask = encode_earlier_turns(prompt, tokenizer=tokenizer)
    assert token_ids.tolist() == prompt.token_ids.tolist()
    assert bytes(token_ids[mask].tolist()) == b"bc"


THOUGHT = "<think>easy</think>2"


def test_a_template_that_forgets_earlier_thinking_is_refused() -> None:
    tokenizer = make_tokenizer(FORGETS_THINKING, "<|im_end|>")
    message = (
        r"the chat template rewrites earlier turns: turn 1 was generated as '<think>easy</think>2',"
        r" but .* the template has '2<\|im_end\|>.* there; set train_on=last_turn"
    )
    with pytest.raises(RowError, match=message):
        learned(tokenizer, "1+1?", THOUGHT, "2+2?", "4")
    # The last turn is never rewritten: it follows the generation prompt as it stands.
    assert learned(tokenizer, "1+1?", THOUGHT)[0] == [f"{THOUGHT}<|im_end|>"]


def test_marks_say_what_was_generated_whatever_the_template_does_to_it() -> None:
    texts, _ = learned(TOKENIZERS["marked"], "1+1?", THOUGHT, "2+2?", THOUGHT)
    assert texts == ["2<|im_end|>", f"{THOUGHT}<|im_end|>"]


def test_a_conversation_that_the_assistant_starts() -> None:
    tokenizer = TOKENIZERS["chatml"]
    turns = (Message(role="assistant", content="hi"), Message(role="user", content="a"))
    example = Example(example_id="rows:1", data_source="rows", messages=turns)
    prompt = render_prompt(example, tokenizer=tokenizer, system_prompt=None)
    with pytest.raises(RowError, match=r"starts with the assistant: .* or set train_on=last_turn"):
        encode_earlier_turns(prompt, tokenizer=tokenizer)
