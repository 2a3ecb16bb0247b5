"""What a user can get wrong about a reward model is said before any process starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from rlstack.commands.reward_model import _prepare
from rlstack.config.load import parse
from rlstack.config.reward_model import RewardModelConfig
from rlstack.errors import ConfigError, DataError
from tests.config.test_load import composed
from tests.tiny_model import write_tiny_model

ROW = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}
HELD_OUT = [ROW | {"prompt": "4 + 4?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path)
    return path


def config(
    folder: Path, model: Path, *overrides: str, train: list[Any], held_out: list[Any]
) -> RewardModelConfig:
    for name, rows in (("train", train), ("eval", held_out)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = composed(
        "reward_model",
        f"model.path={model}",
        f"run_dir={folder}/run",
        f"data.train=[{{type: file, path: {folder}/train.jsonl}}]",
        f"data.eval=[{{type: file, path: {folder}/eval.jsonl}}]",
        "data.max_prompt_tokens=32",
        "max_response_tokens=16",
        *overrides,
    )
    return parse(RewardModelConfig, values)


def error(*arguments: Any, **rows: Any) -> str:
    with pytest.raises((ConfigError, DataError)) as raised:
        _prepare(config(*arguments, **rows))
    return str(raised.value)


def test_a_training_is_prepared(model: Path, tmp_path: Path) -> None:
    features = {"chosen_features": [1.0], "rejected_features": [3.0]}
    held_out = [ROW | features | {"prompt": "2 + 4?"}]
    training = _prepare(config(tmp_path, model, train=[ROW | features], held_out=held_out))
    assert len(training.train.prompts) == len(training.held_out.prompts) == 1
    assert training.features is not None
    assert (training.features.means, training.features.stds) == ((2.0,), (1.0,))


def test_rows_that_say_nothing_are_named_together(model: Path, tmp_path: Path) -> None:
    rows = [ROW, ROW | {"rejected": "5"}, ROW | {"chosen": " "}, {"prompt": "p", "response": "r"}]
    message = error(tmp_path, model, train=rows, held_out=HELD_OUT)
    assert "3 bad rows" in message
    assert "train.jsonl:2: equal responses: chosen and rejected are both" in message
    assert "train.jsonl:3: empty chosen response" in message
    assert "train.jsonl:4: not a preference row" in message


def test_margins_that_are_not_there(model: Path, tmp_path: Path) -> None:
    override = "loss.margin_scale=0.1"
    message = error(tmp_path, model, override, train=[ROW], held_out=HELD_OUT)
    assert message.startswith("data.train: no row has a margin")
    rows = [ROW, ROW | {"prompt": "3 + 3?", "margin": 2.0}]
    assert _prepare(config(tmp_path, model, override, train=rows, held_out=HELD_OUT))


def test_held_out_pairs_with_other_features(model: Path, tmp_path: Path) -> None:
    features = {"chosen_features": [1.0], "rejected_features": [3.0], "prompt": "2 + 4?"}
    message = error(tmp_path, model, train=[ROW], held_out=[ROW | features])
    assert message.startswith("data.eval: its rows have 1 features of each response")


def test_a_classifier_of_another_kind(model: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "two")
    two = Qwen2Config.from_pretrained(tmp_path / "two", num_labels=2)
    Qwen2ForSequenceClassification(two).save_pretrained(tmp_path / "two")
    message = error(tmp_path, tmp_path / "two", train=[ROW], held_out=HELD_OUT)
    assert message.startswith("model.path: ")
    assert "is a classifier with 2 labels; expected 1" in message


def test_adapters_on_layers_that_are_not_there(model: Path, tmp_path: Path) -> None:
    overrides = ["trainer=lora", "trainer.lora.target_modules=[qproj]"]
    message = error(tmp_path, model, *overrides, train=[ROW], held_out=HELD_OUT)
    assert message.startswith("trainer.lora.target_modules: qproj; adapters can go on down_proj")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.label_smoothing=0.5", "loss.label_smoothing: got 0.5; expected less than 0.5"),
        ("loss.centering=-1", "loss.centering: got -1; expected"),
        ("trainer.max_tokens_per_microbatch=95", "95 is less than"),
        ("placement.trainer_ranks=3", "3 does not divide the 32 rows"),
    ],
)
def test_impossible_settings(model: Path, tmp_path: Path, override: str, expected: str) -> None:
    assert expected in error(tmp_path, model, override, train=[ROW], held_out=HELD_OUT)
