"""Hugging Face weight files, written shard by shard."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from workers.models.weights import whole_layers

SHARD_BYTES = 4 * 2**30


class ShardWriter:
    """Writes safetensors shards of bounded size and their index, for `from_pretrained`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0
        self.total_bytes = 0
        self.weight_map: dict[str, str] = {}
        self.num_shards = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Take in one layer group; a full shard goes to disk."""
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if self.pending and self.pending_bytes + num_bytes > SHARD_BYTES:
            self._flush()
        self.pending |= tensors
        self.pending_bytes += num_bytes

    def _flush(self) -> None:
        self.num_shards += 1
        name = f"model-{self.num_shards:05d}.safetensors"
        save_file(self.pending, self.directory / name, metadata={"format": "pt"})
        self.weight_map |= dict.fromkeys(self.pending, name)
        self.total_bytes += self.pending_bytes
        self.pending, self.pending_bytes = {}, 0

    def finish(self) -> None:
        """Write the rest; a single shard gets the name that needs no index."""
        self._flush()
        if self.num_shards == 1:
            (self.directory / "model-00001.safetensors").rename(
                self.directory / "model.safetensors"
            )
            return
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": self.weight_map}
        (self.directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_weights(model: PreTrainedModel, directory: Path, *, writes: bool) -> None:
    """Write a model's weights, adapters merged in; called on every rank at the same time.

    writes: whether this rank does; the others help to gather.
    """
    writer = ShardWriter(directory) if writes else None
    for layer in whole_layers(model, keep=writes):
        if writer is not None:
            writer.add(layer)
    if writer is not None:
        writer.finish()
