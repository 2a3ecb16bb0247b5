"""A reward model trained by the real DeepSpeed on a real Ray: numerics, learning, export, state."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewards.models.preference_model import PreferenceModel
from rlstack.algorithms.preference_evaluation import PairScores, held_out_metrics
from rlstack.batches.preferences import PairBatch, collate_pairs
from rlstack.config.reward_model import RewardLossConfig
from rlstack.data.features import FeatureScale, feature_scale
from rlstack.planning.spec import RunSpec, TrainedRole
from rlstack.types import PreferencePair, RewardRequest
from tests.tiny_model import write_tiny_model
from tests.workers.conftest import faults_config, model_config, placement_config, trainer_config
from workers.groups.ranks import RewardTrainerGroup
from workers.launch.launch import launch
from workers.models.preflight import load_tokenizer

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]

LEARNING_RATE = 3e-3
PROMPT = "Name a number.\n"
LOSS = RewardLossConfig(margin_scale=0.5, centering=0.01, label_smoothing=0.1)


def make_pairs(path: Path, *, count: int, seed: int, features: bool) -> list[PreferencePair]:
    """The better response has more nines; its first feature is larger on average."""
    random = np.random.default_rng(seed)
    tokenizer = load_tokenizer(model_config(path))

    def ids(text: str) -> np.ndarray:
        return np.array([*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id])

    pairs = []
    for index in range(count):
        worse = random.integers(0, 9, size=int(random.integers(3, 12)))
        better = worse.copy()
        better[random.permutation(len(better))[: int(random.integers(1, 3))]] = 9
        chosen = "".join(map(str, better))
        rejected = "".join(map(str, worse)) + "!" * int(random.integers(0, 4))
        pairs.append(
            PreferencePair(
                prompt_id=str(index),
                data_source="ab"[index % 2],
                text=PROMPT,
                chosen=chosen,
                rejected=rejected,
                prompt_ids=ids(PROMPT)[:-1],
                chosen_ids=ids(chosen),
                rejected_ids=ids(rejected),
                margin=float(random.integers(0, 3)),
                chosen_features=(float(random.normal(1.0)), 4.0) if features else (),
                rejected_features=(float(random.normal(-1.0)), 4.0) if features else (),
                metadata={},
            )
        )
    return pairs


@dataclass(frozen=True, kw_only=True)
class Running:
    """A reward model in training, on two ranks."""

    trainer: RewardTrainerGroup
    path: Path
    pad_token_id: int
    scale: FeatureScale | None
    loop: asyncio.AbstractEventLoop

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def pairs(self, *, count: int, seed: int) -> list[PreferencePair]:
        features = self.scale is not None
        return make_pairs(self.path, count=count, seed=seed, features=features)

    def batch(self, *, count: int, seed: int) -> PairBatch:
        pairs = self.pairs(count=count, seed=seed)
        return collate_pairs(pairs, pad_token_id=self.pad_token_id)

    def scores(self, batch: PairBatch) -> PairScores:
        return self.run(self.trainer.evaluate(batch, LOSS))

    def export(self, folder: Path) -> Path:
        folder.mkdir()
        self.run(self.trainer.export(folder))
        return folder


@pytest.fixture(scope="module", params=["text", "features, ZeRO-3, padding is the end"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    plain = request.param == "text"
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path)
    if not plain:
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(path)
    scale = feature_scale(make_pairs(path, count=50, seed=1, features=not plain))
    spec = RunSpec(
        faults=faults_config(),
        placement=placement_config(),
        model=model_config(path),
        seed=0,
        reward_trainer=TrainedRole(
            model=model_config(path),
            trainer=trainer_config(
                zero_stage=1 if plain else 3,
                learning_rate=LEARNING_RATE,
                max_tokens_per_microbatch=128,
            ),
            total_updates=1,
            features=scale,
        ),
    )
    loop = asyncio.new_event_loop()
    exits = AsyncExitStack()
    roles = loop.run_until_complete(exits.enter_async_context(launch(spec)))
    assert roles.reward_trainer is not None
    yield Running(
        trainer=roles.reward_trainer,
        path=path,
        pad_token_id=load_tokenizer(model_config(path)).pad_token_id,
        scale=scale,
        loop=loop,
    )
    loop.run_until_complete(exits.aclose())
    loop.close()


def hugging_face_scores(model: Any, running: Running, batch: PairBatch) -> Tensor:
    """Scores of right-padded rows as transformers reads them, [N, 2]; of the text alone."""
    model.config.pad_token_id = running.pad_token_id
    rows = model(batch.token_ids, attention_mask=batch.attention_mask.long()).logits[:, 0]
    return rows.view(-1, 2)


def plain_adamw_steps(running: Running, batches: list[PairBatch], *, resets: bool) -> Tensor:
    """The same updates in one process, without packing or sharding; scores of the last batch.

    resets: each is made by a new optimizer.
    """
    model = AutoModelForSequenceClassification.from_pretrained(running.path, num_labels=1)
    torch.nn.init.zeros_(model.score.weight)
    features = torch.zeros(batches[0].features.shape[1], requires_grad=True)
    parameters = [*model.parameters(), features]

    def fresh() -> torch.optim.AdamW:
        return torch.optim.AdamW(
            parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-8
        )

    optimizer = fresh()

    def scores(batch: PairBatch) -> Tensor:
        found = hugging_face_scores(model, running, batch)
        if running.scale is None:
            return found
        normal = batch.features - torch.tensor(running.scale.means)
        return found + (normal / torch.tensor(running.scale.stds) @ features).view(-1, 2)

    for batch in batches:
        if resets:
            optimizer = fresh()
        chosen, rejected = scores(batch).T
        logits = chosen - rejected - LOSS.margin_scale * batch.margins
        loss = -(0.9 * logsigmoid(logits) + 0.1 * logsigmoid(-logits))
        loss = (loss + LOSS.centering * (chosen + rejected) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return scores(batches[-1]).detach()


def test_updates_of_two_ranks_equal_plain_pytorch(running: Running) -> None:
    """Stays the first test: Adam's state must be fresh, as the plain optimizer's is."""
    batches = [running.batch(count=10, seed=seed) for seed in (10, 11)]
    resets = running.scale is None
    found = []
    for batch in batches:
        found.append(running.run(running.trainer.update(batch, LOSS)).values())
        if resets:
            running.run(running.trainer.reset_optimizer())
    assert found[0]["reward_model/accuracy"] == 0.5  # a new head scores all the same
    assert found[0]["reward_model/score_std"] == 0.0
    smoothed = np.log1p(np.exp(0.5 * batches[0].margins.numpy())) - 0.1 * (
        0.5 * batches[0].margins.numpy()
    )
    assert found[0]["reward_model/loss"] == pytest.approx(smoothed.mean(), abs=1e-5)
    assert found[1]["reward_model/grad_norm"] > 0
    assert {"reward_model/accuracy/a", "reward_model/accuracy/b"} <= found[1].keys()
    after = running.scores(batches[-1])
    expected = plain_adamw_steps(running, batches, resets=resets)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(after.chosen, expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(after.rejected, expected[:, 1], atol=1e-4)


def test_it_learns_what_is_preferred(running: Running) -> None:
    held_out = running.batch(count=51, seed=2)  # no multiple of the ranks
    features = running.scale is not None  # with ZeRO-3, which takes its time
    for step in range(4 if features else 25):
        running.run(running.trainer.update(running.batch(count=16, seed=100 + step), LOSS))
    metrics = held_out_metrics(running.scores(held_out)).values()
    assert metrics["eval/accuracy"] > (0.7 if features else 0.85)
    assert metrics["eval/log_loss"] < (0.69 if features else 0.5)
    assert abs(metrics["eval/score_mean"]) < 2


def test_one_pair_is_scored_by_two_ranks_as_in_a_crowd(running: Running) -> None:
    batch = running.batch(count=7, seed=4)
    crowd, alone = running.scores(batch), running.scores(batch.select(torch.tensor([5])))
    assert len(alone.chosen) == 1
    np.testing.assert_allclose(alone.chosen[0], crowd.chosen[5], atol=1e-5)
    assert alone.lengths[:, 0].tolist() == crowd.lengths[:, 5].tolist()


def test_what_is_exported_scores_the_same(running: Running, tmp_path: Path) -> None:
    folder = running.export(tmp_path / "export")
    pairs, batch = running.pairs(count=9, seed=3), running.batch(count=9, seed=3)
    expected = running.scores(batch)
    names = ["first", "second"] if running.scale else []
    reward = PreferenceModel(checkpoints=[str(folder)], features=names)
    requests = [
        RewardRequest(
            prompt=pair.text, response=text, metadata=dict(zip(names, values, strict=True))
        )
        for pair in pairs
        for text, values in (
            (pair.chosen, pair.chosen_features),
            (pair.rejected, pair.rejected_features),
        )
    ]
    found = np.array([score.value for score in reward(requests)]).reshape(-1, 2)
    np.testing.assert_allclose(found[:, 0], expected.chosen, atol=1e-5)
    np.testing.assert_allclose(found[:, 1], expected.rejected, atol=1e-5)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values())
    assert model.config.architectures == ["Qwen2ForSequenceClassification"]
    assert model.config.pad_token_id == running.pad_token_id
    with torch.no_grad():
        text_alone = hugging_face_scores(model, running, batch).numpy()
    assert (folder / "feature_head.json").exists() == bool(names)
    if not names:
        np.testing.assert_allclose(text_alone, found, atol=1e-5)
    else:
        assert np.abs(text_alone - found).max() > 1e-3


def test_a_saved_state_goes_on_with_the_same_bits(running: Running, tmp_path: Path) -> None:
    batches = [running.batch(count=8, seed=seed) for seed in (20, 21)]
    running.run(running.trainer.save(tmp_path / "state"))
    ends = []
    for _ in range(2):
        for batch in batches:
            running.run(running.trainer.update(batch, LOSS))
        ends.append(running.scores(batches[0]))
        running.run(running.trainer.load(tmp_path / "state"))
    assert np.array_equal(ends[0].all, ends[1].all)
    assert not np.array_equal(ends[0].all, running.scores(batches[0]).all)
