"""A checkpoint that a rank has written to its own disk is none."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlstack.errors import CheckpointError
from rlstack.run.checkpoint import Checkpoints, RunState
from workers.groups import written
from workers.groups.ranks import PolicyGroup
from workers.groups.written import check_seen, written_below
from workers.specs import WrittenFiles

STATE = RunState(step=2, state={}, best_value=None, best_step=None, versions={})


class FakeRank:
    """Writes to `disk` what it says to have written to the folder that it is given."""

    def __init__(self, number: int, disk: Path | None = None) -> None:
        self.number, self.disk = number, disk

    def _write(self, directory: Path) -> str:
        name = f"rank_{self.number}"
        folder = self.disk or directory
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("state")
        return str(directory / name)

    def save(self, directory: Path) -> WrittenFiles:
        return WrittenFiles(node=f"node-{self.number}", sizes={self._write(directory): 5})

    def export(self, directory: Path) -> None:
        self._write(directory)


def group(*ranks: FakeRank) -> PolicyGroup:
    async def call(rank: FakeRank, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(rank, *arguments)

    def handle(rank: FakeRank) -> Any:
        return SimpleNamespace(
            call=SimpleNamespace(remote=lambda *arguments: call(rank, *arguments))
        )

    handles = [handle(rank) for rank in ranks]
    return PolicyGroup(handles, role="policy", obituary=lambda _: "it lives")


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "SEEN_WITHIN_S", 0.1)


def test_every_rank_on_one_disk_makes_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    asyncio.run(checkpoints.save(STATE, group(FakeRank(0), FakeRank(1)).save, rewards={}))
    assert checkpoints.steps() == [2]
    assert checkpoints.damaged() == {}


def test_a_rank_on_a_disk_of_its_own_is_named_and_makes_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", keep_last=1)
    ranks = group(FakeRank(0), FakeRank(1, tmp_path / "elsewhere"))
    with pytest.raises(CheckpointError, match=r"rank_1: node-1 wrote 5 bytes.*all nodes share"):
        asyncio.run(checkpoints.save(STATE, ranks.save, rewards={}))
    assert checkpoints.steps() == []


def test_a_file_that_is_cut_short_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("sta")
    report = WrittenFiles(node="n", sizes={str(tmp_path / "file"): 5})
    with pytest.raises(CheckpointError, match=r"wrote 5 bytes.*has 3 bytes"):
        asyncio.run(check_seen([report]))


def test_a_file_that_a_network_shows_late_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "SEEN_WITHIN_S", 20.0)
    file = tmp_path / "file"

    async def run() -> None:
        waiting = asyncio.create_task(check_seen([WrittenFiles(node="n", sizes={str(file): 5})]))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        file.write_text("state")
        await waiting

    asyncio.run(run())


def test_all_of_an_export_is_reported(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/weights").write_text("12345")
    (tmp_path / "config.json").write_text("{}")
    assert written_below(tmp_path).sizes == {
        str(tmp_path / "adapter/weights"): 5,
        str(tmp_path / "config.json"): 2,
    }
