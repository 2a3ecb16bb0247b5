"""Records survive odd characters and a killed writer; errors name file and line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlstack.errors import DataError
from rlstack.run import jsonl
from tests.full_disk import files_end_at

# Every character that a UTF-8 file can hold; surrogates are not characters.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts=st.lists(TEXT))
def test_what_is_appended_is_read(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "file.jsonl"
    for text in texts:
        jsonl.append(path, {"text": text})
    assert jsonl.read(path) == [{"text": text} for text in texts]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\r", "\n"])
def test_a_line_separator_in_a_string_is_not_the_end_of_a_record(
    tmp_path: Path, separator: str
) -> None:
    path = tmp_path / "file.jsonl"
    jsonl.write(path, [{"text": f"a{separator}b"}, {"text": "c"}])
    assert jsonl.read(path) == [{"text": f"a{separator}b"}, {"text": "c"}]


def test_a_last_line_cut_short_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"x": 1}\n{"x": 2')
    assert jsonl.read(path) == [{"x": 1}]


def test_no_file_is_no_records(tmp_path: Path) -> None:
    assert jsonl.read(tmp_path / "none.jsonl") == []
    jsonl.keep(tmp_path / "none.jsonl", lambda _: True)
    assert list(tmp_path.iterdir()) == []


def test_keep_drops_records_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    jsonl.write(path, [{"x": 1}, {"x": 2}, {"x": 3}])
    jsonl.keep(path, lambda record: record["x"] != 2)
    assert jsonl.read(path) == [{"x": 1}, {"x": 3}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"x": 1}\nnonsense\n{"x": 3}\n')
    with pytest.raises(DataError, match=r"file\.jsonl:2: not a JSON record"):
        jsonl.read(path)


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone/file\.jsonl"):
        jsonl.append(tmp_path / "gone" / "file.jsonl", {})


def test_half_a_record_that_a_full_disk_took_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    jsonl.append(path, {"x": 1})
    with files_end_at(100), pytest.raises(OSError, match=r"file\.jsonl"):
        jsonl.append(path, {"x": 2}, {"x": "3" * 1000})
    jsonl.append(path, {"x": 4})
    assert jsonl.read(path) == [{"x": 1}, {"x": 4}]
