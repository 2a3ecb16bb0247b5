"""The trainer's weights as vLLM's `WeightSource`, gathered one layer group at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, layerwise_groups

from workers.lora import adapted_layers, gathered, merged_weight


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


class DeepSpeedSource(WeightSource):
    """Weights of a model under any ZeRO stage, in checkpoint names.

    Under ZeRO-3 a whole layer group is gathered by all ranks together, never the whole model.
    """

    def __init__(
        self, model: PreTrainedModel, *, tied_output: str | None, merged: bool = True
    ) -> None:
        """`merged`: whether adapters are merged in; otherwise the weights below them are given.

        `tied_output`: name under which a tied output embedding is sent as well, if it is tied.

        vLLM on CPU keeps a repacked copy of a tied output embedding, which only its own name
        refreshes.
        """
        weights = _weights(model, merged=merged)
        if tied_output is not None:
            weights[tied_output] = _plain(model.get_input_embeddings().weight)
        # Iteration goes group by group, and metadata must come in the same order.
        order = [name for group in layerwise_groups(list(weights)) for name in group]
        self.weights = {name: weights[name] for name in order}

    def metadata(self) -> list[ParamMeta]:
        return [
            ParamMeta(name, weight.like.dtype, tuple(weight.shape()))
            for name, weight in self.weights.items()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for names, tensors in self.iter_groups():
            yield from zip(names, tensors, strict=True)

    def iter_groups(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        for names in self.groups():
            weights = [self.weights[name] for name in names]
            with gathered([part for weight in weights for part in weight.parts]):
                yield names, [weight.make() for weight in weights]


def _plain(parameter: nn.Parameter) -> Weight:
    return Weight(like=parameter, parts=(parameter,), make=parameter.detach)


def _weights(model: PreTrainedModel, *, merged: bool) -> dict[str, Weight]:
    """By name; an adapted layer is called what it would be without adapter."""
    layers = adapted_layers(model)
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    weights: dict[str, Weight] = {}
    for name, parameter in model.named_parameters():
        owner, marked, own_name = name.partition(".base_layer.")
        if not marked:
            if id(parameter) not in inside:
                weights[name] = _plain(parameter)
        elif merged and own_name == "weight":
            weights[f"{owner}.weight"] = Weight(
                like=parameter,
                parts=tuple(layers[owner].parameters()),
                make=partial(merged_weight, layers[owner]),
            )
        else:
            weights[f"{owner}.{own_name}"] = _plain(parameter)
    return weights
