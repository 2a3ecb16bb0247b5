from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlstack.config.data import DataConfig, FileSource, ReasoningGymSource
from rlstack.data.dataset import Dataset
from rlstack.data.demonstrations import load_demonstrations
from rlstack.errors import DataError
from rlstack.types import Demonstration

if TYPE_CHECKING:
    from rlstack.data.tokenizer import Tokenizer

MakeConfig = Callable[..., DataConfig]
WriteJsonl = Callable[..., Path]

USER = {"role": "user", "content": "c"}
TURNS = [USER, {"role": "assistant", "content": "de"}]


def load(path: Path, tokenizer: "Tokenizer", **settings: Any) -> Dataset[Demonstration]:
    source = FileSource(type="file", path=str(path))
    given = {"max_response_tokens": 3, "train_on": "all_turns"} | settings
    return load_demonstrations([source], tokenizer, **given)


def test_demonstrations(
    write_jsonl: WriteJsonl, make_config: MakeConfig, chat_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl({"messages": TURNS, "level": 3})
    [sample] = load(path, chat_tokenizer, config=make_config()).prompts
    assert sample.text == "<user>c<assistant>"
    assert bytes(sample.token_ids.tolist()).decode() == "<user>c<assistant>de\0"
    assert sample.token_ids[sample.loss_mask].tolist() == [ord("d"), ord("e"), 0]
    assert (sample.prompt_id, sample.data_source) == ("rows:1", "rows")
    assert sample.metadata == {"level": 3}


@pytest.mark.parametrize(("train_on", "learned"), [("all_turns", "defg\0"), ("last_turn", "fg\0")])
def test_all_turns_of_the_assistant_or_the_last(
    write_jsonl: WriteJsonl,
    make_config: MakeConfig,
    chat_tokenizer: "Tokenizer",
    train_on: str,
    learned: str,
) -> None:
    path = write_jsonl({"messages": [*TURNS, USER, {"role": "assistant", "content": "fg"}]})
    [sample] = load(path, chat_tokenizer, config=make_config(), train_on=train_on).prompts
    text = "<user>c<assistant>de<user>c<assistant>fg\0"
    assert bytes(sample.token_ids.tolist()).decode() == text
    assert bytes(sample.token_ids[sample.loss_mask].tolist()).decode() == learned


def test_demonstrations_that_are_bad_rows(
    write_jsonl: WriteJsonl, make_config: MakeConfig, chat_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl(
        {"prompt": "a", "response": "b"},
        {"prompt": "a"},
        {"prompt": "a", "response": ""},
        {"prompt": "a", "response": "bcd"},
    )
    with pytest.raises(DataError) as caught:
        load(path, chat_tokenizer, config=make_config())
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 bad rows:"
    assert lines[1].startswith(f"  {path}:2: no response: supervised training needs one")
    assert lines[2].startswith(f"  {path}:3: no response: ")
    assert lines[3] == (
        f"  {path}:4: response too long: 4 tokens with the end of sequence; max_response_tokens "
        "is 3: raise it or shorten the response"
    )
    kept = load(path, chat_tokenizer, config=make_config(on_bad_row="skip"))
    assert kept.skipped.counts == {"no response": 2, "response too long": 1}


def test_reasoning_gym_demonstrations_end_in_the_answer(
    make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    gym = ReasoningGymSource(type="reasoning_gym", task="chain_sum", size=4, seed=1)
    dataset = load_demonstrations(
        [gym],
        plain_tokenizer,
        config=make_config(),
        max_response_tokens=30,
        train_on="all_turns",
    )
    for sample in dataset.prompts:
        entry = sample.metadata["reasoning_gym"]["entry"]
        expected = [*(ord(character) for character in entry["answer"]), 0]
        assert sample.token_ids[sample.loss_mask].tolist() == expected
