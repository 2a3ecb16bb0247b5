"""A folder is replaced whole, or stays as it was."""

from pathlib import Path

import pytest

from rlstack.run.folders import whole_folder, write_file
from tests.full_disk import files_end_at


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


def fill(final: Path, text: str) -> None:
    with whole_folder(final) as folder:
        (folder / "file").write_text(text)


def test_the_old_folder_is_there_until_the_new_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "final", "old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == ".partial_final":
            raise OSError("input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="input/output"):
        fill(tmp_path / "final", "new")
    assert (tmp_path / "final/file").read_text() == "old"
    monkeypatch.undo()
    fill(tmp_path / "final", "new")
    assert (tmp_path / "final/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_what_a_kill_left_under_another_name_comes_back(tmp_path: Path) -> None:
    fill(tmp_path / "final", "old")
    (tmp_path / "final").rename(tmp_path / ".old_final")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "final"):
        raise ZeroDivisionError
    assert (tmp_path / "final/file").read_text() == "old"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_file(path, "old")
    with files_end_at(1000), pytest.raises(OSError, match=r"large.*config\.yaml"):
        write_file(path, "new" * 1000)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    write_file(path, "é")
    assert path.read_bytes() == "é".encode()
