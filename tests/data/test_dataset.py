from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlstack.config.data import DataConfig, FileSource
from rlstack.data.dataset import load_prompts
from rlstack.errors import DataError

if TYPE_CHECKING:
    from rlstack.data.tokenizer import Tokenizer

MakeConfig = Callable[..., DataConfig]
WriteJsonl = Callable[..., Path]


def source(path: Path, **settings: Any) -> FileSource:
    return FileSource(type="file", path=str(path), **settings)


def test_prompts_of_all_sources_in_order(
    write_jsonl: WriteJsonl, make_config: MakeConfig, chat_tokenizer: "Tokenizer"
) -> None:
    first = write_jsonl({"prompt": "a"}, {"prompt": "b"}, name="one.jsonl")
    second = write_jsonl({"messages": [{"role": "user", "content": "c"}]}, name="two.jsonl")
    dataset = load_prompts(
        [source(first, weight=2.0), source(second)], chat_tokenizer, config=make_config()
    )
    assert [prompt.text for prompt in dataset.prompts] == ["a", "b", "<user>c<assistant>"]
    assert [(s.name, s.weight, len(s.samples)) for s in dataset.sources] == [
        ("one", 2.0, 2),
        ("two", None, 1),
    ]
    assert dataset.skipped.num_rows == 0
    assert dataset.summary("training") == "training: 3 rows (one 2, two 1)"


def test_no_sources_is_an_empty_dataset(
    make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    dataset = load_prompts([], plain_tokenizer, config=make_config())
    assert dataset.prompts == ()
    assert dataset.summary("held-out") == "held-out: 0 rows"


def test_ids_stay_unique_when_sources_share_a_name(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    first = write_jsonl({"prompt": "a"}, name="one.jsonl")
    second = write_jsonl({"prompt": "b"}, name="two.jsonl")
    sources = [source(first, name="math"), source(second, name="math")]
    prompts = load_prompts(sources, plain_tokenizer, config=make_config()).prompts
    assert [prompt.prompt_id for prompt in prompts] == ["math:1", "math.2:1"]
    assert {prompt.data_source for prompt in prompts} == {"math"}


def test_every_bad_row_of_every_source_is_in_one_message(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    first = write_jsonl({"prompt": "a"}, {"p": 1}, "{", name="one.jsonl")
    second = write_jsonl({"prompt": "abcdefghi"}, {"prompt": ""}, name="two.jsonl")
    config = make_config(max_prompt_tokens=5)
    with pytest.raises(DataError) as caught:
        load_prompts([source(first), source(second)], plain_tokenizer, config=config)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 bad rows:"
    assert lines[1].startswith(f"  {first}:2: no prompt: ")
    assert lines[2].startswith(f"  {first}:3: invalid JSON: ")
    assert lines[3] == (
        f"  {second}:1: prompt too long: 10 tokens; data.max_prompt_tokens is 5: raise it or set "
        "data.on_long_prompt=skip"
    )
    assert lines[4].startswith(f"  {second}:2: empty prompt: ")
    assert lines[5].startswith("Correct them, or set data.on_bad_row=skip")


def test_only_the_first_twenty_bad_rows_are_spelled_out(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl({"prompt": "a"}, *[{"p": 1}] * 1203)
    with pytest.raises(DataError) as caught:
        load_prompts([source(path)], plain_tokenizer, config=make_config())
    lines = str(caught.value).splitlines()
    assert lines[0] == "1,203 bad rows:"
    assert sum("no prompt" in line for line in lines) == 20
    assert lines[20].startswith(f"  {path}:21: ")
    assert lines[21] == "  ... and 1,183 more"


def test_skipped_rows_are_counted_by_reason(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl({"prompt": "a"}, {"p": 1}, {"q": 1}, "{", {"prompt": "abcdefghi"})
    config = make_config(max_prompt_tokens=5, on_bad_row="skip", on_long_prompt="skip")
    dataset = load_prompts([source(path)], plain_tokenizer, config=config)
    assert [prompt.text for prompt in dataset.prompts] == ["a"]
    assert dataset.skipped.counts == {"no prompt": 2, "invalid JSON": 1, "prompt too long": 1}
    assert dataset.skipped.num_rows == 4
    assert dataset.skipped.messages[0].startswith(f"{path}:2: no prompt: ")
    assert dataset.summary("training") == (
        "training: 1 rows (rows 1), 4 skipped (invalid JSON 1, no prompt 2, prompt too long 1)"
    )


@pytest.mark.parametrize(
    ("on_bad_row", "on_long_prompt", "refused"),
    [("skip", "error", "prompt too long"), ("error", "skip", "no prompt")],
)
def test_bad_rows_and_long_prompts_are_decided_apart(
    write_jsonl: WriteJsonl,
    make_config: MakeConfig,
    plain_tokenizer: "Tokenizer",
    on_bad_row: str,
    on_long_prompt: str,
    refused: str,
) -> None:
    path = write_jsonl({"prompt": "a"}, {"p": 1}, {"prompt": "abcdefghi"})
    config = make_config(max_prompt_tokens=5, on_bad_row=on_bad_row, on_long_prompt=on_long_prompt)
    with pytest.raises(DataError, match=f"1 bad row:\n.*{refused}"):
        load_prompts([source(path)], plain_tokenizer, config=config)


def test_a_prompt_of_exactly_the_limit_is_kept(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl({"prompt": "abcd"})  # and a BOS
    dataset = load_prompts([source(path)], plain_tokenizer, config=make_config(max_prompt_tokens=5))
    assert len(dataset.prompts) == 1


def test_duplicate_ids_are_bad_rows(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl({"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"})
    with pytest.raises(DataError, match=r":2: duplicate id: 'rows:x' is also at .*rows.jsonl:1"):
        load_prompts([source(path)], plain_tokenizer, config=make_config())


def test_a_source_whose_rows_are_all_skipped(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl({"p": 1}, {"p": 2})
    message = r"(?s)data source 'rows': all rows were skipped.* 2 skipped rows .*:1: no prompt"
    with pytest.raises(DataError, match=message):
        load_prompts([source(path)], plain_tokenizer, config=make_config(on_bad_row="skip"))


def test_an_empty_file(
    write_jsonl: WriteJsonl, make_config: MakeConfig, plain_tokenizer: "Tokenizer"
) -> None:
    with pytest.raises(DataError, match="data source 'rows' is empty"):
        load_prompts([source(write_jsonl())], plain_tokenizer, config=make_config())


def test_system_prompt_reaches_the_template(
    write_jsonl: WriteJsonl, make_config: MakeConfig, chat_tokenizer: "Tokenizer"
) -> None:
    path = write_jsonl({"messages": [{"role": "user", "content": "c"}]})
    config = make_config(system_prompt="Add.")
    [prompt] = load_prompts([source(path)], chat_tokenizer, config=config).prompts
    assert prompt.text == "<system>Add.<user>c<assistant>"
