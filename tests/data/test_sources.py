import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import reasoning_gym

from rlstack.config.data import ColumnNames, FileSource, HuggingFaceSource, ReasoningGymSource
from rlstack.data.sources import BadRow, LocatedExample, read_examples, source_name
from rlstack.errors import DataError
from rlstack.types import Message

WriteJsonl = Callable[..., Path]


def file_source(path: Path, **settings: Any) -> FileSource:
    return FileSource(type="file", path=str(path), **settings)


def stored_source(path: Path, **settings: Any) -> HuggingFaceSource:
    return HuggingFaceSource(type="huggingface", path=str(path), **settings)


def gym_source(**settings: Any) -> ReasoningGymSource:
    values = {"task": "chain_sum", "size": 3, "seed": 5} | settings
    return ReasoningGymSource(type="reasoning_gym", **values)


def good(rows: list[LocatedExample | BadRow]) -> list[LocatedExample]:
    assert all(isinstance(row, LocatedExample) for row in rows), rows
    return [row for row in rows if isinstance(row, LocatedExample)]


def test_jsonl_rows_carry_line_numbers_and_blank_lines_do_not_shift_them(
    write_jsonl: WriteJsonl,
) -> None:
    path = write_jsonl({"prompt": "a"}, "", {"prompt": "b", "id": "x"})
    rows = good(list(read_examples(file_source(path))))
    assert [row.location for row in rows] == [f"{path}:1", f"{path}:3"]
    assert [row.example.example_id for row in rows] == ["rows:1", "rows:x"]
    assert [row.example.text for row in rows] == ["a", "b"]


def test_gsm8k_rows(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(
        {"question": "Ann has 3 pens, buys 4. How many?", "answer": "3+4=<<3+4=7>>7\n#### 7"},
        {"question": "A car costs $1,200. Two?", "answer": "2*1200=2400\n#### 2,400"},
        {"question": "It was 3 degrees, fell 5. Now?", "answer": "3-5=-2\n#### -2"},
        name="train.jsonl",
    )
    source = file_source(
        path,
        name="gsm8k",
        reward="math_answer",
        columns=ColumnNames(prompt="question", answer="answer"),
        answer_pattern="#### (.*)",
    )
    examples = [row.example for row in good(list(read_examples(source)))]
    assert [example.answer for example in examples] == ["7", "2,400", "-2"]
    assert [example.example_id for example in examples] == ["gsm8k:1", "gsm8k:2", "gsm8k:3"]
    assert {example.data_source for example in examples} == {"gsm8k"}
    assert {example.reward for example in examples} == {"math_answer"}
    assert examples[0].messages[0].content == "Ann has 3 pens, buys 4. How many?"


def test_bad_jsonl_lines_are_located_and_do_not_hide_the_next(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": \n[1]\n{"prompt": "\xff"}\n{"p": 1}\n'
        b'{"prompt": "b"}'
    )
    rows = list(read_examples(file_source(path)))
    assert [str(row) for row in rows if isinstance(row, BadRow)] == [
        f"{path}:2: invalid JSON: Expecting value at column 1; expected one object a line",
        f'{path}:3: not a JSON object: got [1]; expected {{"prompt": ..., ...}}',
        f"{path}:4: not UTF-8: invalid start byte at byte 12; save as UTF-8",
        f"{path}:5: no prompt: expected a column prompt or messages, or name one in "
        "columns.prompt; columns with a value: p",
    ]
    assert [row.example.text for row in rows if isinstance(row, LocatedExample)] == ["a", "b"]


def test_limit_reads_the_first_rows_only(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl({"prompt": "a"}, {"prompt": "b"}, "not json")
    assert len(good(list(read_examples(file_source(path, limit=2))))) == 2


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "verl.parquet"
    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{i}+1?"}],
            "reward_model": {"style": "rule", "ground_truth": float(i + 1)},
            "extra_info": {"index": i},
        }
        for i in range(3)
    ]
    parquet.write_table(arrow.Table.from_pylist([*rows, {"data_source": "sums"}]), path)
    read = list(read_examples(file_source(path)))
    examples = [row.example for row in good(read[:3])]
    assert [example.answer for example in examples] == ["1", "2", "3"]
    assert [example.example_id for example in examples] == ["verl:0", "verl:1", "verl:2"]
    assert examples[2].messages == (Message(role="user", content="2+1?"),)
    assert examples[2].metadata == {"index": 2}
    assert str(read[3]).startswith(f"{path}[3]: no prompt: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "prompt", r"rows.csv: unknown kind of file; .* ends in .jsonl or .parquet"),
        ("gone.jsonl", None, r"gone.jsonl: no such file \(looked for .*gone.jsonl\); correct"),
        ("gone.parquet", None, "gone.parquet: no such file"),
        ("bad.parquet", "not parquet", "bad.parquet: not a readable Parquet file"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_examples(file_source(path)))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("#### (", r"rows.jsonl: answer_pattern '#### \(' is not a regular expression"),
        ("#### .*", r"rows.jsonl: answer_pattern '#### \.\*' has no group; .* '#### \(\.\*\)'"),
    ],
)
def test_unusable_answer_patterns(write_jsonl: WriteJsonl, pattern: str, message: str) -> None:
    source = file_source(write_jsonl({"prompt": "a"}), answer_pattern=pattern)
    with pytest.raises(DataError, match=message):
        list(read_examples(source))


def test_stored_dataset_with_splits(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    train = datasets.Dataset.from_list([{"prompt": "1+1=", "answer": "2", "extra": None}])
    test = datasets.Dataset.from_list([{"prompt": "2+2=", "answer": "4", "extra": None}])
    datasets.DatasetDict(train=train, test=test).save_to_disk(path)
    [row] = good(list(read_examples(stored_source(path, split="test"))))
    assert (row.location, row.example.example_id) == (f"{path}[0]", "sums:0")
    assert (row.example.text, row.example.answer, row.example.metadata) == ("2+2=", "4", {})
    with pytest.raises(DataError, match=r"sums: no split 'dev'; set split to test or train"):
        list(read_examples(stored_source(path, split="dev")))
    with pytest.raises(DataError, match="sums: a directory has no subsets; remove subset=main"):
        list(read_examples(stored_source(path, subset="main")))


def test_stored_dataset_without_splits(tmp_path: Path) -> None:
    unnamed = datasets.Dataset.from_list([{"prompt": "a"}])
    unnamed.save_to_disk(tmp_path / "unnamed")
    assert len(good(list(read_examples(stored_source(tmp_path / "unnamed"))))) == 1
    named = datasets.Dataset.from_list([{"prompt": "a"}], split=datasets.Split.TEST)
    named.save_to_disk(tmp_path / "named")
    with pytest.raises(DataError, match="no split 'train'; set split to test"):
        list(read_examples(stored_source(tmp_path / "named")))


def test_a_directory_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not written by save_to_disk .* use type: file"):
        list(read_examples(stored_source(tmp_path)))


def test_a_dataset_that_cannot_be_loaded() -> None:
    # In a process of its own: `datasets` decides on import whether it may look at the hub.
    code = (
        "from rlstack.config.data import HuggingFaceSource\n"
        "from rlstack.data.sources import read_examples\n"
        "list(read_examples(HuggingFaceSource(type='huggingface', path='no/such')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        "DataError: no/such (subset None, split train): no such directory, and loading it from the "
        "hub failed: " in done.stderr
    )


def test_reasoning_gym_rows_can_be_scored_from_their_metadata() -> None:
    rows = good(list(read_examples(gym_source())))
    assert [row.location for row in rows] == [f"chain_sum[{i}]" for i in range(3)]
    for row in rows:
        example = row.example
        assert example.reward == "reasoning_gym"
        assert example.data_source == "chain_sum"
        assert example.answer == example.response
        assert set(example.metadata["reasoning_gym"]) == {"task", "entry"}
        entry = example.metadata["reasoning_gym"]["entry"]
        assert set(entry) == {"question", "answer", "metadata"}
        assert example.messages == (Message(role="user", content=entry["question"]),)
        score = reasoning_gym.get_score_answer_fn(example.metadata["reasoning_gym"]["task"])
        assert score(answer=example.response, entry=entry) == 1.0
        assert score(answer="no number", entry=entry) < 1.0
        json.dumps(dict(example.metadata))


def test_reasoning_gym_is_seeded_and_takes_parameters() -> None:
    def questions(**settings: Any) -> list[str]:
        rows = good(list(read_examples(gym_source(**settings))))
        return [row.example.messages[0].content for row in rows]

    assert questions() == questions()
    assert questions() != questions(seed=6)
    rows = good(list(read_examples(gym_source(params={"min_terms": 3, "max_terms": 3}))))
    assert [row.example.metadata["num_terms"] for row in rows] == [3, 3, 3]


def test_reasoning_gym_name_and_reward_overrides() -> None:
    row = good(list(read_examples(gym_source(name="sums", reward="exact_match"))))[0]
    assert (row.example.data_source, row.example.reward) == ("sums", "exact_match")
    assert row.example.example_id == "sums:0"


def test_reasoning_gym_task_without_a_solution_has_no_response() -> None:
    row = good(list(read_examples(gym_source(task="propositional_logic", size=1))))[0]
    assert (row.example.answer, row.example.response) == (None, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "chain_sums"}, "task 'chain_sums': no such task; did you mean chain_sum"),
        ({"task": "zzzz"}, r"task 'zzzz': no such task; choose from \[.*'chain_sum'"),
        ({"params": {"terms": 3}}, "refuses params {'terms': 3}: .*unexpected keyword"),
        ({"params": {"min_terms": 0}}, "refuses params {'min_terms': 0}: min_terms must be"),
        ({"params": {"seed": 3}}, "refuses params {'seed': 3}: .*multiple values"),
    ],
)
def test_reasoning_gym_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_examples(gym_source(**settings)))


@pytest.mark.parametrize(
    ("module", "source", "package"),
    [
        ("pyarrow", FileSource(type="file", path="rows.parquet"), "pyarrow"),
        ("datasets", HuggingFaceSource(type="huggingface", path="rows"), "datasets"),
        ("reasoning_gym", gym_source(), "reasoning-gym"),
    ],
)
def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    module: str,
    source: FileSource | HuggingFaceSource | ReasoningGymSource,
    package: str,
) -> None:
    rows = tmp_path / "rows.parquet"
    rows.touch()
    if isinstance(source, FileSource):
        source = source.model_copy(update={"path": str(rows)})
    elif isinstance(source, HuggingFaceSource):
        source = source.model_copy(update={"path": str(tmp_path)})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"needs the package {package}; pip install {package}"):
        list(read_examples(source))


def test_source_names() -> None:
    assert source_name(FileSource(type="file", path="a/b/train.jsonl")) == "train"
    assert source_name(HuggingFaceSource(type="huggingface", path="openai/gsm8k")) == "gsm8k"
    assert source_name(gym_source()) == "chain_sum"
    assert source_name(gym_source(name="x")) == "x"


def test_the_data_layer_imports_without_torch_and_optional_libraries() -> None:
    code = (
        "import sys\n"
        "import rlstack.data.dataset, rlstack.data.microbatches, rlstack.data.sampler\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'reasoning_gym', 'jinja2'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
