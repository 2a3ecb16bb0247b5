"""The trainer's weights as vLLM's `WeightSource`, gathered one layer group at a time."""

# vLLM and torch are typed too loosely for these.
# pyright: reportArgumentType=false

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, layerwise_groups

from workers.models.weights import made_whole, model_weights, plain_weight


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
        weights = model_weights(model, merged=merged)
        if tied_output is not None:
            embedding = model.get_input_embeddings().weight
            weights[tied_output] = plain_weight(tied_output, embedding)
        # Iteration goes group by group, and metadata must come in the same order.
        order = [name for group in layerwise_groups(list(weights)) for name in group]
        self.weights = {name: weights[name] for name in order}

    def metadata(self) -> list[ParamMeta]:
        return [
            ParamMeta(name, weight.like[name].dtype, tuple(weight.like[name].shape))
            for name, weight in self.weights.items()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for names, tensors in self.iter_groups():
            yield from zip(names, tensors, strict=True)

    def iter_groups(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        for names in self.groups():
            with made_whole([self.weights[name] for name in names]) as tensors:
                yield names, [tensors[name] for name in names]
