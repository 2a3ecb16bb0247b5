"""Low-rank adapters: put into a model, switched off, merged into its weights, named as peft does.

Collective under ZeRO-3: whatever reads or writes weights here is called on every rank.
"""

# torch, peft and DeepSpeed are typed too loosely for these.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, TaskType, inject_adapter_in_model
from peft.tuners.lora import Linear as AdaptedLinear
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlstack.config.trainer import LoRAConfig
from workers.models.adapter_targets import target_names
from workers.models.zero import gathered
from workers.specs import ADAPTER_CONFIG, ADAPTER_WEIGHTS

ADAPTER = "default"
"""peft's name of the only adapter."""


# --- putting them in


def adapt(
    model: PreTrainedModel, lora: LoRAConfig, *, whole: Sequence[str], key: str = "trainer.lora"
) -> None:
    """Put adapters into `model`, in place; only they and the children named in `whole` train.

    Raises:
        ConfigError: if the model lacks a target, naming those that it has.
    """
    targets = target_names(model, lora, whole=whole, key=key)
    heads = [name for name in whole if hasattr(model, name)]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        task_type=TaskType.SEQ_CLS if heads else TaskType.CAUSAL_LM,
        base_model_name_or_path=model.config._name_or_path,
    )
    inject_adapter_in_model(config, model)
    config.modules_to_save = heads or None  # said for the adapter's file: peft would put copies in
    for name in heads:
        getattr(model, name).requires_grad_(True)
    for name, parameter in model.named_parameters():
        if _is_adapter(name):  # peft makes them in float32
            parameter.data = parameter.data.to(model.dtype)


# --- what they are


def _is_adapter(name: str) -> bool:
    return any(f".{kind}." in name for kind in ("lora_A", "lora_B", "lora_magnitude_vector"))


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers with an adapter, by the names they have without."""
    return {n: m for n, m in model.named_modules() if isinstance(m, AdaptedLinear)}


def adapter_name(name: str) -> str:
    """A parameter's name in an adapter's file, from its name in the model."""
    name = name.replace(f".lora_magnitude_vector.{ADAPTER}.weight", ".lora_magnitude_vector")
    return "base_model.model." + name.replace(f".{ADAPTER}.", ".")


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """The model as it is without its adapters."""
    layers = adapted_layers(model).values()
    # peft's own switch also changes requires_grad, which DeepSpeed has built upon.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of all that is trained, whole, by name in an adapter's file."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    with gathered([p for _, p in trained]):
        return {adapter_name(n): p.detach().to("cpu", copy=True).contiguous() for n, p in trained}


def adapter_files(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """The adapter as peft and vLLM read it: file name -> contents."""
    config: dict[str, Any] = model.peft_config[ADAPTER].to_dict()  # pyright: ignore
    config["inference_mode"] = True
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)  # peft keeps sets
    return {
        ADAPTER_CONFIG: text.encode(),
        ADAPTER_WEIGHTS: save(tensors, metadata={"format": "pt"}),
    }


# --- merging


@torch.no_grad()
def merged_weight(layer: AdaptedLinear) -> Tensor:
    """The layer's weight with its adapter merged in, computed in float32; a new tensor.

    lora, rslora: W + s B A. dora: the rows of that, scaled to the learned magnitudes.
    """
    base = layer.get_base_layer().weight
    low, high = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    weight = base.float() + layer.scaling[ADAPTER] * torch.mm(high.float(), low.float())
    magnitude = _magnitude(layer)
    if magnitude is not None:
        norms = torch.linalg.norm(weight, dim=1)
        weight *= (magnitude.float() / norms).unsqueeze(1)
    return weight.to(base.dtype)


@torch.no_grad()
def merge(model: nn.Module, *, seed: int) -> None:
    """Merge every adapter into its layer's weight and start it anew, as a fresh one starts.

    seed: of the new adapters, the same on every rank.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model).values():
        low, high = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        with gathered(list(layer.parameters()), write=True):
            base = layer.get_base_layer().weight
            base.copy_(merged_weight(layer))
            start = torch.empty(low.shape)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            low.copy_(start)
            high.zero_()
            magnitude = _magnitude(layer)
            if magnitude is not None:
                magnitude.copy_(torch.linalg.norm(base.float(), dim=1))


def _magnitude(layer: AdaptedLinear) -> nn.Parameter | None:
    magnitudes = layer.lora_magnitude_vector
    return magnitudes[ADAPTER].weight if ADAPTER in magnitudes else None
