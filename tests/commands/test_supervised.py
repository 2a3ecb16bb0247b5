"""The loop of the supervised stages: when it measures and saves, how it stops and goes on."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from rlstack.batches.supervised import SFTBatch, collate_demonstrations
from rlstack.commands.supervised import Learner, SupervisedTraining, learn
from rlstack.commands.wiring import Running
from rlstack.config.load import parse
from rlstack.config.supervised import SFTConfig
from rlstack.data.dataset import Dataset, SkipReport, Source
from rlstack.metrics import Metrics
from rlstack.run.progress import Summary
from rlstack.run.timeline import Timeline
from rlstack.run.tracking import Tracker
from rlstack.types import Demonstration
from tests.config.test_load import SOURCE, composed

NUM_ROWS, NUM_HELD_OUT = 6, 5
HELD_OUT_LOSSES = (4.0, 2.0, 3.0, 1.5, 1.8, 1.9, 1.7)


def dataset(num_rows: int, *, first: int) -> Dataset[Demonstration]:
    """Each row is the token that is its number."""
    samples = tuple(
        Demonstration(
            prompt_id=str(number),
            data_source="s",
            text=str(number),
            token_ids=np.array([number], dtype=np.int64),
            loss_mask=np.array([True]),
            metadata={},
        )
        for number in range(first, first + num_rows)
    )
    sources = (Source(name="s", weight=None, samples=samples),) if samples else ()
    return Dataset(sources=sources, skipped=SkipReport(counts={}, messages=()))


@dataclass
class FakeTrainer:
    """Remembers the rows it was shown; its weight depends on their order."""

    weight: float = 0.0
    updates: list[list[int]] = field(default_factory=list)
    evaluations: list[list[int]] = field(default_factory=list)
    exported: float | None = None
    stop_after: int | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def update(self, batch: SFTBatch) -> Metrics:
        rows = batch.token_ids[:, 0].tolist()
        self.updates.append(rows)
        for row in rows:
            self.weight = 0.9 * self.weight + row
        if len(self.updates) == self.stop_after:
            self.stop.set()
        return Metrics.mean("sft/loss", self.weight)

    async def evaluate(self, batch: SFTBatch) -> Metrics:
        self.evaluations.append(batch.token_ids[:, 0].tolist())
        loss = HELD_OUT_LOSSES[(len(self.evaluations) - 1) // 3]  # three batches each time
        return Metrics.mean("eval/loss", loss * batch.num_rows, batch.num_rows)

    async def save(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "weight").write_text(repr(self.weight))

    async def load(self, directory: Path) -> None:
        self.weight = float((directory / "weight").read_text())

    async def export(self, directory: Path) -> None:
        (directory / "weight").write_text(repr(self.weight))
        self.exported = self.weight


def train(run_dir: Path, trainer: FakeTrainer, *overrides: str, num_held_out: int = 0) -> Summary:
    config = parse(
        SFTConfig,
        composed(
            "sft",
            "model.path=m",
            f"data.train=[{SOURCE}]",
            f"data.eval=[{SOURCE}]",
            "data.prompts_per_step=2",
            "evaluation.every=2",
            "tracking.console=false",
            "tracking.tensorboard=false",
            *overrides,
            f"run_dir={run_dir}",
        ),
    )
    run_dir.mkdir(exist_ok=True)
    training = SupervisedTraining(
        command="sft",
        config=config,
        train=dataset(NUM_ROWS, first=1),
        held_out=dataset(num_held_out, first=100),
        learner=lambda _: learner,
    )

    def collate(rows: Sequence[Demonstration]) -> SFTBatch:
        return collate_demonstrations(rows, pad_token_id=0)

    learner = Learner(
        trainer=trainer, collate=collate, update=trainer.update, evaluate=trainer.evaluate
    )
    with Tracker.open(config.tracking, run_dir=run_dir, total_steps=1, title="sft") as tracker:
        running = Running(
            roles=None,  # type: ignore[arg-type]
            sampler=None,
            scorer=None,
            tracker=tracker,
            timeline=Timeline(run_dir, on_span=tracker.span),
            stop=trainer.stop,
        )
        return asyncio.run(learn(training, learner, running))


def logged(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def checkpoints(run_dir: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run_dir / "checkpoints").iterdir())


def test_an_epoch_shows_every_row_once(tmp_path: Path) -> None:
    trainer = FakeTrainer()
    summary = train(tmp_path / "run", trainer, "epochs=2")
    assert [len(rows) for rows in trainer.updates] == [2] * 6
    seen = [row for rows in trainer.updates for row in rows]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(1, 7))
    assert [row["data/epoch"] for row in logged(tmp_path / "run")][2::3] == [1.0, 2.0]
    assert (summary.steps_completed, summary.stopped_early) == (6, False)
    assert trainer.evaluations == []
    assert summary.model is not None
    assert (summary.model / "weight").read_text() == repr(trainer.weight)


def test_all_held_out_rows_are_measured_at_the_start_between_and_at_the_end(
    tmp_path: Path,
) -> None:
    trainer = FakeTrainer()
    summary = train(tmp_path / "run", trainer, "total_steps=5", num_held_out=NUM_HELD_OUT)
    assert trainer.evaluations == [[100, 101], [102, 103], [104]] * 4
    assert sorted(summary.evaluations) == [0, 2, 4, 5]
    rows = logged(tmp_path / "run")
    assert [row["step"] for row in rows if "eval/loss" in row] == [0, 2, 4, 5]
    assert rows[1]["update/tokens_per_s"] == pytest.approx(2 / rows[1]["time/update_s"])


def test_the_step_with_the_lowest_held_out_loss_is_kept(tmp_path: Path) -> None:
    overrides = ("total_steps=6", "checkpoint.keep_last=1", "checkpoint.keep_best=eval/loss")
    summary = train(
        tmp_path / "run",
        FakeTrainer(),
        *overrides,
        "checkpoint.every=5",
        "evaluation.every=1",
        num_held_out=NUM_HELD_OUT,
    )
    losses = tuple(values["eval/loss"] for values in summary.evaluations.values())
    assert losses == pytest.approx(HELD_OUT_LOSSES)
    assert checkpoints(tmp_path / "run") == [3, 6]


@pytest.mark.parametrize("stops", [(1,), (3,), (2, 2)])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, stops: tuple[int, ...]) -> None:
    whole = FakeTrainer()
    train(tmp_path / "whole", whole, "epochs=2", num_held_out=NUM_HELD_OUT)
    run_dir, shown = tmp_path / "stopped", list[list[int]]()
    for index, steps in enumerate((*stops, None)):
        trainer = FakeTrainer(stop_after=steps)
        resume = (f"resume={run_dir}",) if index else ()
        summary = train(run_dir, trainer, "epochs=2", *resume, num_held_out=NUM_HELD_OUT)
        assert summary.stopped_early == (steps is not None)
        assert (trainer.exported is None) == summary.stopped_early
        shown += trainer.updates
    assert shown == whole.updates
    assert trainer.weight == whole.weight
    assert [row["step"] for row in logged(run_dir)] == list(range(7))


def test_steps_after_the_last_checkpoint_are_done_again(tmp_path: Path) -> None:
    """As after a kill: what was logged after the checkpoint is forgotten."""
    whole, run_dir = FakeTrainer(), tmp_path / "run"
    train(tmp_path / "whole", whole, "epochs=2")
    train(run_dir, FakeTrainer(stop_after=4), "epochs=2", "checkpoint.every=2")
    (run_dir / "checkpoints/step_000004").rename(run_dir / "gone")
    trainer = FakeTrainer()
    train(run_dir, trainer, "epochs=2", f"resume={run_dir}")
    assert trainer.updates == whole.updates[2:]
    assert trainer.weight == whole.weight
    assert [row["step"] for row in logged(run_dir)] == list(range(1, 7))


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    whole, run_dir = FakeTrainer(), tmp_path / "run"
    train(tmp_path / "whole", whole, "epochs=2")
    train(run_dir, FakeTrainer(), "epochs=1")
    trainer = FakeTrainer()
    train(run_dir, trainer, "epochs=2", f"resume={run_dir}")
    assert trainer.weight == whole.weight
