"""`rlstack dpo` and `rlstack rejection_sampling` as whole runs on the real stack."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from rewards.models.sequence_scorer import SequenceScorer
from rlstack.commands import dpo, rejection_sampling
from rlstack.config.load import parse
from rlstack.config.resume import resumed_values
from rlstack.config.rounds import DPOConfig, RejectionSamplingConfig
from rlstack.run.progress import Summary
from tests.config.test_load import composed
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]

COMMON = [
    "data.prompts_per_step=4",
    "data.max_prompt_tokens=64",
    "max_response_tokens=16",
    "placement.trainer_ranks=2",
    "placement.device=cpu",
    "trainer.learning_rate=0.003",
    "checkpoint.every=1",
    "checkpoint.keep_last=9",
    "tracking.tensorboard=false",
]
SAMPLED = [
    *COMMON,
    "rollout.kv_cache_gib=1",
    "rollout.num_samples=8",
    "reward.num_workers=1",
]
PLUGIN = """
from rewards.registry import register

@register("letters")
def letters(request):
    return float(sum(character.islower() for character in request.response))
"""

TALK = """
from rewards.environments.registry import register_environment
from rlstack.types import Turn

@register_environment("talk")
class Talk:
    def reset(self, task):
        self.turns = 0

    def step(self, action):
        self.turns += 1
        return Turn(observation="more", done=self.turns == 2, reward=len(action) / 10)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dpo")
    write_tiny_model(path / "model")
    write_tiny_model(path / "reward_model")
    judge = Qwen2Config.from_pretrained(path / "reward_model", num_labels=1)
    Qwen2ForSequenceClassification(judge).save_pretrained(path / "reward_model")
    (path / "letters.py").write_text(PLUGIN)
    pairs = [
        {"prompt": f"Say {n}:", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(15)
    ]
    write(path / "pairs.jsonl", pairs[:12])
    write(path / "held_out.jsonl", pairs[12:])
    write(path / "prompts.jsonl", [{"prompt": f"Say {n}:"} for n in range(8)])
    return path


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def source(file: Path) -> str:
    return f"[{{type: file, path: {file}}}]"


def dpo_config(folder: Path, name: str, *overrides: str) -> DPOConfig:
    paths = [f"model.path={folder / 'model'}", f"run_dir={folder / name}"]
    values = composed("dpo", *COMMON, *paths, *overrides)
    return parse(DPOConfig, values)


def metrics(run_dir: Path) -> dict[int, dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def rows_of_round(run_dir: Path, number: int) -> list[dict[str, Any]]:
    lines = (run_dir / "rounds" / f"round_{number:03d}" / "data.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def ends_of_rounds(run_dir: Path) -> list[int]:
    """The last step of every round but the last one."""
    starts = [step for step, row in metrics(run_dir).items() if "round/number" in row]
    return [start - 1 for start in starts[1:]]


def stopped_after_round(run_dir: Path, number: int) -> Path:
    """A copy of a run as it would lie there, had it been killed before the next round sampled."""
    copy = run_dir.with_name(f"{run_dir.name}_{number}")
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "export")
    last_step = ends_of_rounds(run_dir)[number - 1]
    for folder in [*copy.glob("checkpoints/*"), *copy.glob("rounds/*")]:
        limit = number if folder.parent.name == "rounds" else last_step
        if int(folder.name.rpartition("_")[2]) > limit:
            shutil.rmtree(folder)
    return copy


def weights(run_dir: Path) -> bytes:
    return (run_dir / "export" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def preferring(folder: Path) -> Path:
    """The run directory of DPO on pairs of the data, which it has learned."""
    sources = [
        f"data.train={source(folder / 'pairs.jsonl')}",
        f"data.eval={source(folder / 'held_out.jsonl')}",
    ]
    config = dpo_config(folder, "pairs", *sources, "epochs=2", "evaluation.every=6")
    summary: Summary = dpo.run(config)
    run_dir = folder / "pairs"
    assert sorted(metrics(run_dir)) == list(range(7))
    assert summary.evaluations[0]["eval/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert summary.evaluations[6]["eval/loss"] < 0.6
    assert summary.evaluations[6]["eval/accuracy"] == 1.0
    assert len(list((run_dir / "reference").iterdir())) == 2
    return run_dir


def assert_sampled_by(model_path: Path, run_dir: Path) -> None:
    """What vLLM said of a round's responses is what transformers says of the model's files.

    Engines that are sent adapters have read those files themselves.
    """
    model = AutoModelForCausalLM.from_pretrained(model_path)
    lines = (run_dir / "rollouts" / "step_000001.jsonl").read_text().splitlines()
    said = {(r["prompt"], r["response"]): r["mean_logprob"] for r in map(json.loads, lines)}
    for row in rows_of_round(run_dir, 1):
        for name in {"chosen", "rejected", "response"} & row.keys():
            response = row[f"{name}_ids"]
            tokens = torch.tensor([*row["prompt_ids"], *response])
            with torch.no_grad():
                logprobs = model(tokens[None]).logits[0, :-1].log_softmax(-1)
            expected = logprobs.gather(1, tokens[1:, None])[-len(response) :].mean()
            assert said[row["prompt"], row[name]] == pytest.approx(float(expected), abs=1e-4)


def test_pairs_of_episodes_train_on_actions_alone(folder: Path) -> None:
    (folder / "talk.py").write_text(TALK)
    prompts = source(folder / "prompts.jsonl").replace("}]", ", columns: {prompt: prompt}}]")
    overrides = [
        *SAMPLED,
        f"data.train={prompts}",
        f"reward.plugins=[{folder / 'talk.py'}]",
        "reward=environment",
        "environment=default",
        "environment.name=talk",
        "environment.max_observation_tokens=8",
        "environment.num_workers=1",
        "max_response_tokens=64",
        "rollout.stop=[a, e, i, o, u]",
        "rollout.num_samples=16",
        "rounds=1",
    ]
    dpo.run(dpo_config(folder, "episodes", *overrides))
    (round_dir,) = (folder / "episodes" / "rounds").iterdir()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = [json.loads(line) for line in (round_dir / "data.jsonl").read_text().splitlines()]
    masked = [
        [
            token
            for token, own in zip(row[f"{name}_ids"], row[f"{name}_mask"], strict=True)
            if not own
        ]
        for row in rows
        for name in ("chosen", "rejected")
        if f"{name}_mask" in row
    ]
    said = tokenizer.encode("\nmore\n")
    assert said in masked
    assert all(tokens in ([], said) for tokens in masked)
    shown = metrics(folder / "episodes")
    # The policy is its own reference: what is masked in one is masked in the other.
    assert shown[1]["preference/reward_margin"] == pytest.approx(0, abs=1e-4)
    assert len(shown) == -(-len(rows) // 4)


@pytest.fixture(scope="module")
def kept(folder: Path) -> Path:
    """The run directory of rejection sampling of every weight, by a served reward model."""
    overrides = [
        *SAMPLED,
        f"model.path={folder / 'model'}",
        f"run_dir={folder / 'kept'}",
        f"data.train={source(folder / 'prompts.jsonl')}",
        f"data.eval={source(folder / 'prompts.jsonl').replace('prompts', 'held_out')}",
        "rounds=2",
        "reward=model",
        f"reward.model.checkpoints=[{folder / 'reward_model'}]",
        "placement.reward_model.ranks=1",
        "keep.min_reward=0",
        "keep.per_prompt=2",
        "rollout.num_samples=24",
    ]
    config = parse(RejectionSamplingConfig, composed("rejection_sampling", *overrides))
    assert 0 in rejection_sampling.run(config).evaluations
    return folder / "kept"


def test_the_best_samples_by_a_served_reward_model_are_kept_and_learned(
    folder: Path, kept: Path
) -> None:
    rows = rows_of_round(kept, 1) + rows_of_round(kept, 2)
    assert rows
    assert all(row["metadata"]["reward"] >= 0 for row in rows)
    judged = SequenceScorer(str(folder / "reward_model"), max_tokens=200, max_tokens_per_batch=200)
    texts = judged.token_ids([r["prompt"] for r in rows], [r["response"] for r in rows])
    expected = [score for text in texts for score in judged.score([text])]
    assert [row["metadata"]["reward"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert all(row["response_ids"][-1] == 1 for row in rows), "cut responses are left out"
    losses = [row["sft/loss"] for row in metrics(kept).values() if "sft/loss" in row]
    assert len(losses) == max(metrics(kept)) > 0
    copy = stopped_after_round(kept, 1)
    rejection_sampling.run(parse(RejectionSamplingConfig, resumed_values(copy, [])))
    assert weights(copy) == weights(kept)
    assert sorted(metrics(copy)) == sorted(metrics(kept))


def adapter_rounds(folder: Path, name: str, model: Path, *overrides: str) -> Path:
    """The run directory of DPO by adapters on `model`, rewarded for letters."""
    given = [
        f"model.path={model}",
        f"data.train={source(folder / 'prompts.jsonl')}",
        f"reward.plugins=[{folder / 'letters.py'}]",
        "reward.components=[{name: letters}]",
        "trainer=lora",
        "trainer.lora.rank=4",
        "trainer.learning_rate=0.01",
        "epochs=2",
    ]
    dpo.run(dpo_config(folder, name, *SAMPLED, *given, *overrides))
    return folder / name


def test_rounds_of_its_own_samples_are_resumed_exactly(folder: Path, preferring: Path) -> None:
    """Adapters are merged between the rounds: the later ones' engines get both."""
    run_dir = adapter_rounds(folder, "rounds", preferring / "export", "rounds=3")
    assert_sampled_by(preferring / "export", run_dir)
    rounds = [run_dir / "rounds" / f"round_{number:03d}" for number in (1, 2)]
    shown = metrics(run_dir)
    first, second = (json.loads((r / "round.json").read_text()) for r in rounds)
    assert second["reward/mean"] > first["reward/mean"], "one round raises its own reward"
    rows = rows_of_round(run_dir, 1)
    assert len(rows) == first["round/num_rows"] == 8 - first["round/dropped_tie"]
    assert all(row["margin"] > 0 for row in rows)
    start, _ = ends_of_rounds(run_dir)
    assert start == 2 * len(rows) // 4 + (2 * len(rows) % 4 > 0)
    # The reference is the policy at the start of each round: no margin yet at its first step.
    assert shown[1]["preference/reward_margin"] == pytest.approx(0, abs=1e-4)
    assert shown[start + 1]["preference/reward_margin"] == pytest.approx(0, abs=1e-4)
    assert not (run_dir / "export" / "adapter").exists(), "it would be on another model"
    copy = stopped_after_round(run_dir, 2)
    dpo.run(parse(DPOConfig, resumed_values(copy, [])))
    assert weights(copy) == weights(run_dir)


def test_a_round_of_good_and_bad_responses(folder: Path, kept: Path) -> None:
    """KTO, on what rejection sampling exported."""
    judging = ["objective=kto", "desirable_reward=4", "rounds=1"]
    judging += ["rollout.num_samples=16", "data.prompts_per_step=16"]
    run_dir = adapter_rounds(folder, "judged", kept / "export", *judging)
    assert_sampled_by(kept / "export", run_dir)
    rows = rows_of_round(run_dir, 1)
    assert {row["label"] for row in rows} == {True, False}
    assert all(row["label"] == (row["metadata"]["reward"] >= 4) for row in rows)
    losses = [row["preference/loss"] for row in metrics(run_dir).values()]
    # The policy at the start is its own reference: all rewards are 0, and there is no KL yet.
    assert metrics(run_dir)[1]["preference/kl"] == pytest.approx(0, abs=1e-4)
    assert losses[0] == pytest.approx(0.5, abs=1e-3)
    assert np.mean(losses[-4:]) < 0.4
