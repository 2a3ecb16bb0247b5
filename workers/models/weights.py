"""A trainer's weights by their names in a checkpoint, made whole one layer at a time."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from workers.models.lora import adapted_layers, merged_weight
from workers.models.zero import gathered


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weight:
    """A tensor of the model in checkpoint format."""

    like: nn.Parameter
    """Has its dtype and shape."""
    parts: tuple[nn.Parameter, ...]
    """What must be whole for it to be made."""
    make: Callable[[], Tensor]

    def shape(self) -> torch.Size:
        """Under ZeRO-3 a parameter's own tensor is empty."""
        return self.like.ds_shape if hasattr(self.like, "ds_id") else self.like.shape  # type: ignore


def plain_weight(parameter: nn.Parameter) -> Weight:
    """A parameter as it is."""
    return Weight(like=parameter, parts=(parameter,), make=parameter.detach)


def model_weights(model: nn.Module, *, merged: bool) -> dict[str, Weight]:
    """By name; an adapted layer is called what it would be without adapter.

    merged: whether adapters are merged in; otherwise the weights below them are given.
    """
    layers = adapted_layers(model)
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    weights: dict[str, Weight] = {}
    for name, parameter in model.named_parameters():
        owner, marked, own_name = name.partition(".base_layer.")
        if not marked:
            if id(parameter) not in inside:
                weights[name] = plain_weight(parameter)
        elif merged and own_name == "weight":
            weights[f"{owner}.weight"] = Weight(
                like=parameter,
                parts=tuple(layers[owner].parameters()),
                make=partial(merged_weight, layers[owner]),
            )
        else:
            weights[f"{owner}.{own_name}"] = plain_weight(parameter)
    return weights


@contextmanager
def made_whole(weights: Sequence[Weight]) -> Iterator[list[Tensor]]:
    """Their tensors under any ZeRO stage; all ranks enter together."""
    with gathered([part for weight in weights for part in weight.parts]):
        yield [weight.make() for weight in weights]


def whole_layers(model: nn.Module, *, keep: bool) -> Iterator[dict[str, Tensor]]:
    """Copies of the model's weights in host memory, adapters merged in, one layer at a time.

    keep: whether this rank wants them. Every rank iterates, since gathering takes them all; the
    others are given empty layers.
    """
    weights = model_weights(model, merged=True)
    for names in by_layer(weights):
        with made_whole([weights[name] for name in names]) as tensors:
            pairs = zip(names, tensors, strict=True)
            layer = {name: tensor.cpu().clone() for name, tensor in pairs if keep}
        yield layer


def by_layer(names: Iterable[str]) -> list[list[str]]:
    """The names of each decoder layer together, every other name alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*?\.\d+\.", name)
        groups.setdefault(layer.group() if layer else name, []).append(name)
    return list(groups.values())
