"""A folder is replaced whole, or stays as it was."""

from pathlib import Path

import pytest

from rlstack.run.folders import whole_folder


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a" / "final") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("new")
        assert not (tmp_path / "a" / "final").exists()
    assert (tmp_path / "a/final/sub/file").read_text() == "new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["final"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final/file").write_text("old")

    def half_written() -> None:
        with whole_folder(tmp_path / "final") as folder:
            (folder / "half").write_text("h")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        half_written()
    assert (tmp_path / "final/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
