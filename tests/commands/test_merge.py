"""`rlstack merge`: its arguments, its messages, and models that transformers loads."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlstack.algorithms import merging
from rlstack.commands.merge import run
from rlstack.errors import ConfigError
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base, a and b, and a run directory that exported b."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b", "run/export")):
        write_tiny_model(folder / name, seed=min(seed, 2))
    return folder


def weight(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).model.layers[0].mlp.up_proj.weight.detach()


def call(models: Path, output: Path, *arguments: str) -> Path:
    def path(name: str) -> str:
        return str(models / name) if name in ("base", "a", "b", "run", "nowhere") else name

    model = run([str(output), *map(path, arguments)]).model
    assert model is not None
    return model


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), lambda _, a, b: (a + b) / 2),
        (("--weights", "3", "1"), lambda _, a, b: (3 * a + b) / 4),
        (("--method", "slerp"), lambda _, a, b: merging.slerp(a, b, fraction=0.5)),
        (("--method", "slerp", "--fraction", "0"), lambda _, a, b: a),
        (("--method", "task_arithmetic", "--base", "base"), lambda _, a, b: (a + b) / 2),
        (
            ("--method", "ties", "--base", "base", "--density", "0.5"),
            lambda base, a, b: merging.ties(
                base, (a, b), weights=(0.5, 0.5), density=0.5, scale=1.0
            ),
        ),
        (
            ("--method", "dare", "--base", "base", "--drop-probability", "0", "--seed", "1"),
            lambda _, a, b: (a + b) / 2,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_merged_model_loads_and_is_what_the_method_says(
    models: Path, tmp_path: Path, arguments: tuple[str, ...], expected: object
) -> None:
    assert callable(expected)
    output = call(models, tmp_path / "merged", "a", "run", *arguments)
    tensors = [weight(models / name) for name in ("base", "a", "b")]
    torch.testing.assert_close(weight(output), expected(*tensors))
    assert AutoTokenizer.from_pretrained(output).encode("abc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a",), "one model is nothing to merge"),
        (("a", "nowhere"), "nowhere is no folder"),
        (("a", "b", "--method", "ties"), "ties needs --base"),
        (("a", "b", "--base", "base"), "--base is for task_arithmetic, ties, dare, not for linear"),
        (("a", "b", "base", "--method", "slerp"), "slerp is between 2 models, got 3"),
        (("a", "b", "--weights", "1"), "1 --weights for 2 models"),
        (("a", "b", "--weights", "1", "-1"), "sum to 0"),
        (("a", "b", "--density", "0.5"), "--density is for ties, not for linear"),
        (
            ("a", "b", "--method", "ties", "--base", "base", "--density", "2"),
            r"--density 2 must be within \(0, 1\]",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_named_and_nothing_is_written(
    models: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        call(models, tmp_path / "merged", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(models: Path) -> None:
    with pytest.raises(ConfigError, match="exists; remove it or choose another folder"):
        call(models, models / "a", "a", "b")
