"""The trainer's weights as vLLM's `WeightSource`, gathered one layer group at a time."""

from collections.abc import Iterator

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedModel
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, layerwise_groups


class DeepSpeedSource(WeightSource):
    """Parameters of a causal model under any ZeRO stage, in checkpoint names.

    Under ZeRO-3 a parameter's own tensor is empty: its shape is `ds_shape` and a whole layer group
    is gathered by all ranks together, never the whole model.
    """

    def __init__(self, model: PreTrainedModel, *, tied_output: str | None) -> None:
        """`tied_output`: name under which a tied output embedding is sent as well, if it is tied.

        vLLM on CPU keeps a repacked copy of a tied output embedding, which only its own name
        refreshes.
        """
        parameters = dict(model.named_parameters())
        if tied_output is not None:
            parameters[tied_output] = model.get_input_embeddings().weight
        # Iteration goes group by group, and metadata must come in the same order.
        order = [name for group in layerwise_groups(list(parameters)) for name in group]
        self.parameters = {name: parameters[name] for name in order}

    def metadata(self) -> list[ParamMeta]:
        return [
            ParamMeta(name, parameter.dtype, tuple(_shape(parameter)))
            for name, parameter in self.parameters.items()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for names, tensors in self.iter_groups():
            yield from zip(names, tensors, strict=True)

    def iter_groups(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        for names in self.groups():
            parameters = [self.parameters[name] for name in names]
            sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
            with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
                yield names, [parameter.detach() for parameter in parameters]


def _shape(parameter: Tensor) -> torch.Size:
    return parameter.ds_shape if hasattr(parameter, "ds_id") else parameter.shape  # type: ignore
