"""`rlstack dpo` and `rlstack rejection_sampling` as whole runs on the real stack."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from rewards.sequence_scorer import SequenceScorer
from rlstack.config.load import parse
from rlstack.config.resume import resumed_values
from rlstack.config.rounds import DPOConfig, RejectionSamplingConfig
from rlstack.stages import dpo, rejection_sampling
from rlstack.stages.progress import Summary
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
LETTERS = ["reward.components=[{name: letters}]"]
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


def resumed_at(run_dir: Path, step: int) -> Path:
    """A copy of a run as it would lie there, had it been killed after the checkpoint of `step`."""
    copy = run_dir.with_name(f"{run_dir.name}_{step}")
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "export")
    for folder in (copy / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)
    return copy


def weights(run_dir: Path) -> bytes:
    return (run_dir / "export" / "model.safetensors").read_bytes()


def test_pairs_of_the_data_are_learned(folder: Path) -> None:
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
    assert AutoModelForCausalLM.from_pretrained(run_dir / "export").num_parameters() > 0
    assert len(list((run_dir / "reference").iterdir())) == 2


def test_rounds_of_its_own_samples_are_resumed_exactly(folder: Path) -> None:
    """By adapters, which are merged between the rounds: the second one's engines get both."""
    prompts = f"data.train={source(folder / 'prompts.jsonl')}"
    plugin = f"reward.plugins=[{folder / 'letters.py'}]"
    adapters = ["trainer=lora", "trainer.lora.rank=4", "trainer.learning_rate=0.01"]
    overrides = [*SAMPLED, prompts, plugin, *LETTERS, *adapters, "rounds=2", "epochs=2"]
    config = dpo_config(folder, "rounds", *overrides)
    dpo.run(config)
    run_dir = folder / "rounds"
    rounds = [run_dir / "rounds" / f"round_{number:03d}" for number in (1, 2)]
    shown = metrics(run_dir)
    first, second = (json.loads((r / "round.json").read_text()) for r in rounds)
    assert second["reward/mean"] > first["reward/mean"], "one round raises its own reward"
    rows = [json.loads(line) for line in (rounds[0] / "data.jsonl").read_text().splitlines()]
    assert len(rows) == first["round/num_rows"] == 8 - first["round/dropped_tie"]
    assert all(row["margin"] > 0 for row in rows)
    start = 2 * len(rows) // 4 + (2 * len(rows) % 4 > 0)
    assert shown[start + 1]["round/number"] == 2
    # The reference is the policy at the start of each round: no margin yet at its first step.
    assert shown[1]["preference/reward_margin"] == pytest.approx(0, abs=1e-4)
    assert shown[start + 1]["preference/reward_margin"] == pytest.approx(0, abs=1e-4)
    assert not (run_dir / "export" / "adapter").exists(), "it would be on another model"
    copy = resumed_at(run_dir, start + 1)
    dpo.run(parse(DPOConfig, resumed_values(copy, [])))
    assert weights(copy) == weights(run_dir)


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


def test_the_best_samples_by_a_served_reward_model_are_kept_and_learned(folder: Path) -> None:
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
    summary = rejection_sampling.run(config)
    run_dir = folder / "kept"
    files = sorted((run_dir / "rounds").glob("*/data.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(files) == 2
    assert rows
    assert all(row["metadata"]["reward"] >= 0 for row in rows)
    judged = SequenceScorer(str(folder / "reward_model"), max_tokens=200, max_tokens_per_batch=200)
    texts = judged.token_ids([r["prompt"] for r in rows], [r["response"] for r in rows])
    expected = [score for text in texts for score in judged.score([text])]
    assert [row["metadata"]["reward"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert all(row["response_ids"][-1] == 1 for row in rows), "cut responses are left out"
    losses = [row["sft/loss"] for row in metrics(run_dir).values() if "sft/loss" in row]
    assert len(losses) == summary.steps_completed > 0
    assert 0 in summary.evaluations
    assert (run_dir / "export" / "model.safetensors").is_file()
