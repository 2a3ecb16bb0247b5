from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rlstack.config.data import DataConfig, FileSource, ReasoningGymSource
from rlstack.data.held_out import REASON, without_held_out
from rlstack.data.preferences import load_judged_responses, load_preferences
from rlstack.errors import DataError

if TYPE_CHECKING:
    from rlstack.data.tokenizer import Tokenizer

MakeConfig = Callable[..., DataConfig]
WriteJsonl = Callable[..., Path]

USER = {"role": "user", "content": "c"}


def source(path: Path, **settings: Any) -> FileSource:
    return FileSource(type="file", path=str(path), **settings)


def codes(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_pairs(
    write_jsonl: WriteJsonl, make_config: MakeConfig, chat_tokenizer: "Tokenizer"
) -> None:
    row = {
        "messages": [USER],
        "chosen": "de",
        "rejected": "f",
        "margin": 1.5,
        "chosen_features": [1],
        "rejected_features": [2],
        "level": 3,
    }
    dataset = load_preferences(
        [source(write_jsonl(row))], chat_tokenizer, config=make_config(), max_response_tokens=3
    )
    [pair] = dataset.prompts
    assert pair.text == "<user>c<assistant>"
    assert pair.prompt_ids.tolist() == codes(pair.text)
    assert pair.chosen_ids.tolist() == [*codes("de"), 0]
    assert pair.rejected_ids.tolist() == [*codes("f"), 0]
    assert {ids.dtype for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)} == {
        np.dtype(np.int64)
    }
    assert (pair.prompt_id, pair.data_source, pair.metadata) == ("rows:1", "rows", {"level": 3})
    assert (pair.chosen, pair.rejected, pair.margin) == ("de", "f", 1.5)
    assert (pair.chosen_features, pair.rejected_features) == ((1.0,), (2.0,))
    assert dataset.summary("training") == "training: 1 rows (rows 1)"


def test_pairs_without_margin_and_features(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl({"prompt": "a", "chosen": "b", "rejected": "c"})
    [pair] = load_preferences(
        [source(path)], plain_tokenizer, config=make_config(), max_response_tokens=3
    ).prompts
    assert (pair.margin, pair.chosen_features, pair.rejected_features) == (None, (), ())


def test_bad_pairs_are_all_named(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = write_jsonl(
        good,
        {"prompt": "a", "chosen": "b", "topic": "x"},
        good | {"rejected": "b"},
        good | {"chosen": "b\0"} | {"rejected": "b"},  # the end of sequence is there already
        good | {"chosen": " "},
        good | {"rejected": ""},
        good | {"rejected": "bcd"},
        good | {"prompt": "abcdefghi"},
        good | {"chosen_features": [1], "rejected_features": [1]},
        good | {"margin": "x"},
    )
    config = make_config(max_prompt_tokens=5)
    with pytest.raises(DataError) as caught:
        load_preferences([source(path)], plain_tokenizer, config=config, max_response_tokens=3)
    lines = str(caught.value).splitlines()
    assert lines[0] == "9 bad rows:"
    expected = (
        "2: not a preference row: expected columns chosen and rejected, or columns.* that name "
        "them; other columns: chosen, topic",
        "3: equal responses: chosen and rejected are both 'b'",
        "4: equal responses: ",
        "5: empty chosen response: ",
        "6: empty rejected response: ",
        "7: rejected response too long: 4 tokens with the end of sequence; max_response_tokens is "
        "3: raise it or shorten the response",
        "8: prompt too long: 10 tokens; ",
        "9: different numbers of features: 1 for each response, but 0 in row 'rows:1'",
        "10: malformed margin: ",
    )
    for line, start in zip(lines[1:-1], expected, strict=True):
        assert line.startswith(f"  {path}:{start}")


def test_a_source_without_preferences(
    make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    gym = ReasoningGymSource(type="reasoning_gym", task="chain_sum", size=1, seed=1)
    for load in (load_preferences, load_judged_responses):
        with pytest.raises(DataError, match=r"chain_sum\[0\]: (not a preference row|no label): "):
            load([gym], plain_tokenizer, config=make_config(), max_response_tokens=30)


def test_held_out_prompts_are_not_trained_on(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    rows = [{"prompt": prompt, "chosen": "x", "rejected": "y"} for prompt in "abc"]
    train, held_out = (
        load_preferences(
            [source(path)], plain_tokenizer, config=make_config(), max_response_tokens=3
        )
        for path in (write_jsonl(*rows), write_jsonl(rows[1] | {"chosen": "z"}, name="eval.jsonl"))
    )
    kept = without_held_out(train, held_out)
    assert [pair.text for pair in kept.prompts] == ["a", "c"]
    assert kept.skipped.counts == {REASON: 1}


def test_judged_responses(
    write_jsonl: WriteJsonl, make_config: MakeConfig, chat_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl(
        {"prompt": [USER], "completion": "de", "label": True, "level": 3},
        {"prompt": "a", "response": "f", "label": False},
    )
    good, bad = load_judged_responses(
        [source(path)], chat_tokenizer, config=make_config(), max_response_tokens=3
    ).prompts
    assert good.prompt_ids.tolist() == codes("<user>c<assistant>")
    assert good.response_ids.tolist() == [*codes("de"), 0]
    assert (good.response, good.desirable, good.metadata) == ("de", True, {"level": 3})
    assert (bad.text, bad.response, bad.desirable) == ("a", "f", False)


def test_bad_judged_responses_are_all_named(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl(
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "label": True},
        {"prompt": "a", "response": " ", "label": True},
        {"prompt": "a", "response": "bcd", "label": True},
        {"prompt": "a", "response": "b", "label": "good"},
    )
    with pytest.raises(DataError) as caught:
        load_judged_responses(
            [source(path)], plain_tokenizer, config=make_config(), max_response_tokens=3
        )
    expected = (
        "1: no label: expected columns label (true or false), or columns.* that name them; other "
        "columns: none",
        "2: no response: ",
        "3: empty response: ",
        "4: response too long: ",
        "5: malformed label: ",
    )
    for line, start in zip(str(caught.value).splitlines()[1:-1], expected, strict=True):
        assert line.startswith(f"  {path}:{start}")
