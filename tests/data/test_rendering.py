from typing import TYPE_CHECKING

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rlstack.data.rendering import render_prompt
from rlstack.data.values import RowError
from rlstack.types import Example, Message

if TYPE_CHECKING:
    from rlstack.data.tokenizer import Tokenizer

BOS = 1
USER = Message(role="user", content="hi")
SYSTEM = Message(role="system", content="Be brief.")


def example(*messages: Message, text: str | None = None) -> Example:
    return Example(
        example_id="rows:1",
        data_source="rows",
        messages=messages,
        text=text,
        answer="a",
        reward="r",
        metadata={"k": 1},
    )


def codes(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_chat_template_writes_all_special_tokens(chat_tokenizer: "Tokenizer") -> None:
    prompt = render_prompt(example(SYSTEM, USER), tokenizer=chat_tokenizer, system_prompt=None)
    assert prompt.text == "<system>Be brief.<user>hi<assistant>"
    assert prompt.token_ids.tolist() == codes(prompt.text)
    assert prompt.token_ids.dtype == np.int64
    assert (prompt.prompt_id, prompt.data_source) == ("rows:1", "rows")
    assert (prompt.answer, prompt.reward, prompt.metadata) == ("a", "r", {"k": 1})
    assert prompt.messages == (SYSTEM, USER)


def test_plain_text_is_used_as_it_stands_with_the_tokenizers_special_tokens(
    chat_tokenizer: "Tokenizer",
) -> None:
    prompt = render_prompt(example(text="1+1="), tokenizer=chat_tokenizer, system_prompt=None)
    assert prompt.text == "1+1="
    assert prompt.token_ids.tolist() == [BOS, *codes("1+1=")]


def test_without_a_template_a_single_user_turn_is_plain_text(plain_tokenizer: "Tokenizer") -> None:
    prompt = render_prompt(example(USER), tokenizer=plain_tokenizer, system_prompt=None)
    assert prompt.text == "hi"
    assert prompt.token_ids.tolist() == [BOS, *codes("hi")]


@pytest.mark.parametrize("messages", [(USER,), (SYSTEM, USER)])
def test_system_prompt_replaces_the_rows_own(
    chat_tokenizer: "Tokenizer", messages: tuple[Message, ...]
) -> None:
    prompt = render_prompt(example(*messages), tokenizer=chat_tokenizer, system_prompt="Add.")
    assert prompt.text == "<system>Add.<user>hi<assistant>"


def test_no_template_for_several_turns(plain_tokenizer: "Tokenizer") -> None:
    message = "no chat template: .* not system, user; use an instruction-tuned model's tokenizer"
    with pytest.raises(RowError, match=message):
        render_prompt(example(USER), tokenizer=plain_tokenizer, system_prompt="Add.")


def test_system_prompt_on_plain_text(chat_tokenizer: "Tokenizer") -> None:
    with pytest.raises(RowError, match=r"no room for the system prompt: .* set data.system_prompt"):
        render_prompt(example(text="x"), tokenizer=chat_tokenizer, system_prompt="Add.")


def test_template_errors_name_the_turns(chat_tokenizer: "Tokenizer") -> None:
    tool = Message(role="tool", content="4")
    message = r"refused by the chat template: unknown role tool \(turns: user, tool\)"
    with pytest.raises(RowError, match=message):
        render_prompt(example(USER, tool), tokenizer=chat_tokenizer, system_prompt=None)


@pytest.fixture
def word_tokenizer() -> PreTrainedTokenizerFast:
    """A real tokenizer with a BOS post-processor and a ChatML-like template that refuses roles."""
    words = ["<eos>", "<bos>", "<unk>", "user", "assistant", ":", "one", "two"]
    core = RustTokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", words.index("<bos>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ message.role }} : {{ message.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    return tokenizer


def test_real_tokenizer_has_one_bos_with_and_without_template(
    word_tokenizer: PreTrainedTokenizerFast,
) -> None:
    user = Message(role="user", content="one two")
    chat = render_prompt(example(user), tokenizer=word_tokenizer, system_prompt=None)
    assert chat.text == "<bos>user : one two<eos>assistant : "
    assert chat.token_ids.tolist() == [1, 3, 5, 6, 7, 0, 4, 5]
    text = render_prompt(example(text="one two"), tokenizer=word_tokenizer, system_prompt=None)
    assert text.token_ids.tolist() == [1, 6, 7]


def test_real_template_refuses_a_system_turn(word_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RowError, match="refused by the chat template: no system role"):
        render_prompt(example(USER), tokenizer=word_tokenizer, system_prompt="Add.")
