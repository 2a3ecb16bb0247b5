"""Names and tensors are those of a checkpoint, whatever a model keeps in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import Concatenate, WeightConverter

from rlstack.config.model import ModelConfig
from rlstack.config.trainer import LoRAConfig
from rlstack.errors import ConfigError
from tests.tiny_model import write_tiny_mixture
from workers.models.lora import adapt
from workers.models.pretrained import load_causal_model
from workers.models.weights import by_layer, made_whole, model_weights
from workers.transfer.source import DeepSpeedSource


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture")
    write_tiny_mixture(path)
    return path


def loaded(path: Path) -> Any:
    config = ModelConfig(path=str(path), dtype="float32", trust_remote_code=False)
    return load_causal_model(config, device=torch.device("cpu"))


def plain(path: Path) -> Any:
    """With transformers' own attention, which takes rows as they are."""
    return AutoModelForCausalLM.from_pretrained(path)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_experts_are_given_one_by_one(mixture: Path) -> None:
    source = DeepSpeedSource(loaded(mixture), tied_output=None)
    found = dict(source)
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in found
    assert_same(found, load_file(mixture / "model.safetensors"))
    declared = {meta.name: (meta.dtype, meta.shape) for meta in source.metadata()}
    assert declared == {name: (t.dtype, tuple(t.shape)) for name, t in found.items()}
    assert list(declared) == list(found)


def test_they_are_those_that_training_changed(mixture: Path) -> None:
    model = loaded(mixture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    changed = {n: t + 1 for n, t in load_file(mixture / "model.safetensors").items()}
    weights = model_weights(model, merged=True)
    found: dict[str, Tensor] = {}
    for names in by_layer(weights):
        with made_whole([weights[name] for name in names]) as tensors:
            assert sorted(tensors) == sorted(names)
            found |= {name: tensor.clone() for name, tensor in tensors.items()}
    assert_same(found, changed)


def test_adapters_beside_experts_are_merged(mixture: Path, tmp_path: Path) -> None:
    model = plain(mixture)
    lora = LoRAConfig(
        rank=4, alpha=8.0, dropout=0.0, variant="lora", target_modules=None, engines="merged"
    )
    adapt(model, lora, whole=())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter += 0.1
    merged = {name: t.clone() for name, t in DeepSpeedSource(model, tied_output=None)}
    save_file(merged, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    tokens = torch.arange(3, 90).view(3, 29)
    with torch.no_grad():
        expected, before = model(tokens).logits, plain(mixture)(tokens).logits
        found = plain(tmp_path)(tokens).logits
    assert float((expected - before).abs().max()) > 0.1, "the adapters do nothing"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_put_together_again_is_refused(mixture: Path) -> None:
    """Queries and keys that were one tensor in the checkpoint."""
    model = loaded(mixture)
    joined = WeightConverter(
        source_patterns=["self_attn.q_proj.weight", "self_attn.k_proj.weight"],
        target_patterns="self_attn.qk_proj.weight",
        operations=[Concatenate(dim=0)],
    )
    model._weight_conversions = [joined.reverse_transform()]
    with pytest.raises(ConfigError, match=r"model\.path: .*self_attn\.qk_proj\.weight.*several"):
        model_weights(model, merged=True)
