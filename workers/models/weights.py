"""A trainer's weights by their names in a checkpoint, made whole one layer at a time."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rlstack.errors import ConfigError
from workers.models.lora import adapted_layers, merged_weight
from workers.models.zero import gathered


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weight:
    """A tensor of the model, and the tensors of a checkpoint that are made of it."""

    like: dict[str, Tensor]
    """Without contents, on the device `meta`: dtype and shape by name in the checkpoint."""
    parts: tuple[nn.Parameter, ...]
    """What must be whole for it to be made."""
    make: Callable[[], dict[str, Tensor]]
    """By the names of `like`."""


def plain_weight(name: str, parameter: nn.Parameter) -> Weight:
    """A parameter as it is, under a name of one's own."""
    return Weight(
        like={name: _without_contents(parameter)},
        parts=(parameter,),
        make=lambda: {name: parameter.detach()},
    )


def model_weights(model: PreTrainedModel, *, merged: bool) -> dict[str, Weight]:
    """By name in a checkpoint; those that are made of the same tensor share it.

    An adapted layer is called what it would be without adapter. In memory the experts of a layer
    are one tensor; in a checkpoint they are many.

    merged: whether adapters are merged in; otherwise the weights below them are given.

    Raises:
        ConfigError: if a tensor of the checkpoint is made of several in memory.
    """
    layers = adapted_layers(model)
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    weights: list[Weight] = []
    for name, parameter in model.named_parameters():
        owner, marked, own_name = name.partition(".base_layer.")
        if not marked:
            if id(parameter) not in inside:
                weights.append(_weight(model, name, parameter, (parameter,), parameter.detach))
        elif merged and own_name == "weight":
            layer = layers[owner]
            make = partial(merged_weight, layer)
            parts = tuple(layer.parameters())
            weights.append(_weight(model, f"{owner}.weight", parameter, parts, make))
        else:
            plain = f"{owner}.{own_name}"
            weights.append(_weight(model, plain, parameter, (parameter,), parameter.detach))
    found: dict[str, Weight] = {}
    for weight in weights:
        for name in weight.like:
            if name in found:
                raise ConfigError(
                    f"model.path: {model.config._name_or_path!r} keeps {name} of its checkpoint as "
                    "several tensors in memory, which are not joined again; choose another model"
                )
            found[name] = weight
    return found


def _weight(
    model: PreTrainedModel,
    name: str,
    parameter: nn.Parameter,
    parts: tuple[nn.Parameter, ...],
    make: Callable[[], Tensor],
) -> Weight:
    return Weight(
        like=revert_weight_conversion(model, {name: _without_contents(parameter)}),
        parts=parts,
        make=lambda: revert_weight_conversion(model, {name: make()}),
    )


def _without_contents(parameter: nn.Parameter) -> Tensor:
    """Its dtype and shape; under ZeRO-3 a parameter's own tensor is empty."""
    shape = parameter.ds_shape if hasattr(parameter, "ds_id") else parameter.shape  # type: ignore
    return torch.empty(shape, dtype=parameter.dtype, device="meta")


@contextmanager
def made_whole(weights: Sequence[Weight]) -> Iterator[dict[str, Tensor]]:
    """Their tensors by name under any ZeRO stage; all ranks enter together.

    One that is given several times is made once.
    """
    once = {id(weight): weight for weight in weights}.values()
    with gathered([part for weight in once for part in weight.parts]):
        yield {name: tensor for weight in once for name, tensor in weight.make().items()}


def whole_layers(model: PreTrainedModel, *, keep: bool) -> Iterator[dict[str, Tensor]]:
    """Copies of the model's weights in host memory, adapters merged in, one layer at a time.

    keep: whether this rank wants them. Every rank iterates, since gathering takes them all; the
    others are given empty layers.
    """
    weights = model_weights(model, merged=True)
    for names in by_layer(weights):
        with made_whole([weights[name] for name in names]) as tensors:
            layer = {name: tensor.cpu().clone() for name, tensor in tensors.items() if keep}
        yield layer


def by_layer(names: Iterable[str]) -> list[list[str]]:
    """The names of each decoder layer together, every other name alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*?\.\d+\.", name)
        groups.setdefault(layer.group() if layer else name, []).append(name)
    return list(groups.values())
