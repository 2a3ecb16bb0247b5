"""Rounds: what a user can get wrong is said early, and a run that was stopped goes on exactly."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlstack.batches.supervised import SFTBatch, collate_demonstrations
from rlstack.commands import dpo, rejection_sampling, rounds, wiring
from rlstack.commands.rounds import Round, RoundsTraining
from rlstack.commands.supervised import Learner
from rlstack.config.load import parse
from rlstack.config.rounds import DPOConfig, RejectionSamplingConfig
from rlstack.data.dataset import Dataset, Source
from rlstack.data.selection import KeptResponse, kept_of, kept_record, kept_responses
from rlstack.errors import ConfigError
from rlstack.metrics import Metrics
from rlstack.types import (
    FinishReason,
    GenerationRequest,
    Phase,
    Prompt,
    RewardRequest,
    Rollout,
    SamplingSettings,
    Score,
)
from tests.chat_tokenizer import CharTokenizer
from tests.config.test_load import SOURCE, composed
from tests.tiny_model import write_tiny_model

COMMANDS = [
    ("dpo", DPOConfig, dpo.run),
    ("rejection_sampling", RejectionSamplingConfig, rejection_sampling.run),
]


@pytest.mark.parametrize(("command", "schema", "run"), COMMANDS)
def test_adapters_on_layers_that_are_not_there(
    tmp_path: Path, command: str, schema: Any, run: Callable[[Any], Any]
) -> None:
    write_tiny_model(tmp_path / "model")
    values = composed(
        command,
        f"model.path={tmp_path / 'model'}",
        f"run_dir={tmp_path / 'run'}",
        "data.train=[{type: file, path: none.jsonl}]",
        "data.max_prompt_tokens=32",
        "max_response_tokens=16",
        "rounds=1",
        "trainer=lora",
        "trainer.lora.target_modules=[qproj]",
    )
    with pytest.raises(ConfigError, match="target_modules: qproj; adapters can go on down_proj"):
        run(parse(schema, values))
    assert not (tmp_path / "run").exists()


# --- stopping and going on, with roles that answer at once

NUM_PROMPTS, NUM_SAMPLES = 4, 4


@dataclass
class FakePolicy:
    """Its weight depends on the order of what it was shown, and on its optimizer's moment."""

    weight: float = 1.0
    moment: float = 0.0
    stop_after: int | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    num_updates: int = 0

    async def update(self, batch: SFTBatch) -> Metrics:
        for token in batch.token_ids[batch.loss_mask].tolist():
            self.moment = 0.9 * self.moment + token / 1000
            self.weight += self.moment
        self.num_updates += 1
        if self.num_updates == self.stop_after:
            self.stop.set()
        return Metrics.mean("sft/loss", self.weight)

    async def reset_optimizer(self) -> None:
        self.moment = 0.0

    async def save(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "state").write_text(json.dumps([self.weight, self.moment]))

    async def load(self, directory: Path) -> None:
        self.weight, self.moment = json.loads((directory / "state").read_text())

    async def export(self, directory: Path) -> None:
        (directory / "state").write_text(json.dumps([self.weight, self.moment]))


@dataclass
class FakeEngines:
    """What is sampled depends on the seed and on the weight that was last published."""

    weight: float | None = None

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings
    ) -> AsyncIterator[tuple[int, Rollout]]:
        assert self.weight is not None
        for request in requests:
            token = int(np.random.default_rng([request.seed, int(self.weight * 1e9)]).integers(99))
            yield (
                request.request_id,
                Rollout(
                    prompt=request.prompt,
                    sample_index=request.sample_index,
                    text=str(token),
                    response_ids=np.array([token, 1]),
                    logprobs=np.zeros(2, dtype=np.float32),
                    loss_mask=np.ones(2, dtype=np.bool_),
                    finish_reason=FinishReason.STOP,
                    policy_versions=np.zeros(2, dtype=np.int32),
                ),
            )


@dataclass
class FakeReallocator:
    """Publishes a version once."""

    policy: FakePolicy
    engines: FakeEngines
    version: int | None = None

    async def enter(self, phase: Phase, *, version: int) -> Metrics:
        if phase is Phase.GENERATE and version != self.version:
            self.version, self.engines.weight = version, self.policy.weight
        return Metrics()


@dataclass
class RememberingScorer:
    """A response's number less the mean of all that were judged before it."""

    seen: list[float] = field(default_factory=list)

    async def score_group(
        self, requests: Sequence[Awaitable[RewardRequest]], *, step: int
    ) -> list[Score]:
        values = [float((await request).response) for request in requests]
        mean = float(np.mean(self.seen)) if self.seen else 0.0
        self.seen += values
        return [Score(value=value - mean) for value in values]

    async def state(self) -> dict[str, bytes]:
        return {"seen": json.dumps(self.seen).encode()}

    async def restore(self, states: Mapping[str, bytes]) -> None:
        self.seen = json.loads(states["seen"])

    async def ready(self) -> None:
        pass

    def close(self) -> None:
        pass


def prompts(count: int, name: str) -> Dataset[Prompt]:
    samples = tuple(
        Prompt(
            prompt_id=f"{name}:{number}",
            data_source=name,
            text=f"{number}",
            token_ids=np.array([2, number]),
            answer=None,
            reward=None,
            metadata={},
        )
        for number in range(count)
    )
    sources = (Source(name=name, weight=None, samples=samples),)
    return Dataset(sources=sources, skipped=rounds.NOTHING_SKIPPED)


@dataclass
class Outcome:
    """Of a process that ran to its end or was stopped."""

    policy: FakePolicy
    stopped_early: bool


def run_rounds(run_dir: Path, *, resume: bool, stop_after: int | None = None) -> Outcome:
    """Rejection sampling in a new process, as it were."""
    overrides = [
        "model.path=m",
        f"data.train=[{SOURCE}]",
        "data.prompts_per_step=4",
        f"rollout.num_samples={NUM_SAMPLES}",
        "rounds=3",
        "keep.min_reward=0",
        "evaluation.every=3",
        "checkpoint.every=1",
        "checkpoint.keep_last=99",
        "tracking.console=false",
        "tracking.tensorboard=false",
        *([f"resume={run_dir}"] if resume else []),
    ]
    values = composed("rejection_sampling", *overrides) | {"run_dir": str(run_dir)}
    config = parse(RejectionSamplingConfig, values)
    policy, engines = FakePolicy(stop_after=stop_after), FakeEngines()

    @asynccontextmanager
    async def launched(_: object, *, shared_dir: Path | None) -> AsyncIterator[SimpleNamespace]:
        assert shared_dir == run_dir  # every rank writes checkpoints to it
        reallocator = FakeReallocator(policy, engines)
        yield SimpleNamespace(policy=policy, engines=engines, reallocator=reallocator)

    def learner(
        policy: Any, _: Round, __: Sequence[KeptResponse]
    ) -> Learner[KeptResponse, SFTBatch]:
        def collate(kept: Sequence[KeptResponse]) -> SFTBatch:
            return collate_demonstrations([k.demonstration() for k in kept], pad_token_id=0)

        return Learner(
            trainer=policy,
            collate=collate,
            update=policy.update,
            evaluate=policy.update,
        )

    training = RoundsTraining(
        command="rejection_sampling",
        config=config,
        tokenizer=CharTokenizer(),
        rows_per_prompt=NUM_SAMPLES,
        select=partial(kept_responses, min_reward=0, per_prompt=NUM_SAMPLES),
        to_record=kept_record,
        from_record=kept_of,
        learner=learner,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "launch", launched)
        patch.setattr(wiring, "stop_signals", lambda: nullcontext(policy.stop))
        patch.setattr(wiring, "ScorerPool", lambda *_, **__: RememberingScorer())
        summary = asyncio.run(
            rounds.train(training, prompts(NUM_PROMPTS, "train"), prompts(2, "held_out"))
        )
    return Outcome(policy=policy, stopped_early=summary.stopped_early)


def left_behind(run_dir: Path) -> dict[str, str]:
    """What must be the same however often a run was stopped."""
    files = [*run_dir.glob("rounds/*/data.jsonl"), *run_dir.glob("export/*")]
    return {str(file.relative_to(run_dir)): file.read_text() for file in files}


def shown(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if "time" not in k and "per_s" not in k}
        for line in lines
    ]


def ends_of_rounds(run_dir: Path) -> list[int]:
    """The steps before a round, and the last one."""
    rows = shown(run_dir)
    return [row["step"] - 1 for row in rows if "round/number" in row] + [rows[-1]["step"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped."""
    run_dir = tmp_path_factory.mktemp("rounds") / "whole"
    assert not run_rounds(run_dir, resume=False).stopped_early
    assert len(left_behind(run_dir)) == 4
    return run_dir


def test_a_run_stopped_after_any_step_goes_on_as_if_it_had_not_been(
    whole: Path, tmp_path: Path
) -> None:
    """At a round's end too: between its last step and the samples of the next one."""
    _, *boundaries, last = ends_of_rounds(whole)
    assert len(boundaries) == 2
    for step in (1, *boundaries, boundaries[0] + 1):
        run_dir = tmp_path / f"stopped_{step}"
        stopped = run_rounds(run_dir, resume=False, stop_after=step)
        assert stopped.stopped_early
        num_sampled = 1 + sum(boundary < step for boundary in boundaries)
        assert len(list((run_dir / "rounds").iterdir())) == num_sampled
        resumed = run_rounds(run_dir, resume=True)
        assert resumed.policy.num_updates == last - step
        assert left_behind(run_dir) == left_behind(whole)
        assert shown(run_dir) == shown(whole)


def test_a_run_killed_after_sampling_goes_on_with_the_same_samples(
    whole: Path, tmp_path: Path
) -> None:
    """The round's rows are there, but no checkpoint yet."""
    *starts, _ = ends_of_rounds(whole)
    for number, start in enumerate(starts, start=1):
        killed = tmp_path / f"killed_{number}"
        shutil.copytree(whole, killed)
        shutil.rmtree(killed / "export")
        for folder in [*killed.glob("rounds/*"), *killed.glob("checkpoints/*")]:
            limit = number if folder.parent.name == "rounds" else start
            if int(folder.name.rpartition("_")[2]) > limit:
                shutil.rmtree(folder)
        run_rounds(killed, resume=True)
        assert left_behind(killed) == left_behind(whole)
        assert shown(killed) == shown(whole)
