"""Merging model folders on disk: safetensors in, safetensors out, one tensor at a time.

In memory at once: a tensor of every model with the next one, and one shard of the result. The maths
is `rlstack.algorithms.merging`.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlstack.algorithms.merging import Method, merged
from rlstack.run.folders import whole_folder

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
NUM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies and what it is; dtype as safetensors spells it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * NUM_BYTES[self.dtype]


def merge_files(
    models: Sequence[Path], output: Path, *, method: Method, max_shard_bytes: int
) -> None:
    """Merge the weights of model folders into a new folder, which appears whole or not at all.

    models: folders with model.safetensors, or shards and their index. Configuration and tokenizer
    are copied from the first. A tensor larger than max_shard_bytes gets a shard of its own.

    Raises:
        FileExistsError: if output exists.
        FileNotFoundError: if a folder has no safetensors weights.
        ValueError: if names, shapes or dtypes differ between models, or a file is damaged, naming
            tensor and file; nothing has been written then.
    """
    if output.exists():
        raise FileExistsError(f"{output}: exists; remove it or choose another folder")
    catalogs = [read_catalog(model) for model in models]
    check_alike(catalogs)
    shards = plan_shards(catalogs[0], max_shard_bytes=max_shard_bytes)
    with whole_folder(output) as folder:
        _copy_other_files(models[0], folder)
        names = shard_names(len(shards))
        for file_name, tensor_names in zip(names, shards, strict=True):
            streams = _read_together(catalogs, tensor_names)
            tensors = {n: t.contiguous() for n, t in merged(streams, method=method)}
            save_file(tensors, folder / file_name, metadata={"format": "pt"})
        if len(shards) > 1:
            _write_index(folder, catalogs[0], dict(zip(names, shards, strict=True)))


def read_catalog(model: Path) -> dict[str, StoredTensor]:
    """What tensors a model folder holds, by name, from the headers of its files alone.

    Raises:
        FileNotFoundError: if the folder has no safetensors weights, or a shard is missing.
        ValueError: if a file is damaged or its index names a tensor that it does not hold.
    """
    index = model / INDEX_FILE
    if not index.is_file():
        if not (model / SINGLE_FILE).is_file():
            raise FileNotFoundError(f"{model}: has neither {SINGLE_FILE} nor {INDEX_FILE}")
        return _read_header(model / SINGLE_FILE)
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    headers = {file: _read_header(model / file) for file in set(weight_map.values())}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise ValueError(f"{model / file}: lacks {name}, which {INDEX_FILE} says it holds")
    return {name: headers[file][name] for name, file in weight_map.items()}


def check_alike(catalogs: Sequence[dict[str, StoredTensor]]) -> None:
    """Every model has the same tensors with the same shapes and dtypes.

    Raises:
        ValueError: naming the first tensor that differs, and its files.
    """
    first = catalogs[0]
    for other in catalogs[1:]:
        for name in sorted(first.keys() ^ other.keys()):
            holder, lacking = (first, other) if name in first else (other, first)
            folder = next(iter(lacking.values())).file.parent if lacking else "another model"
            raise ValueError(f"merge: {name} is in {holder[name].file} and not in {folder}")
        for name, stored in first.items():
            found = other[name]
            if (stored.dtype, stored.shape) != (found.dtype, found.shape):
                raise ValueError(
                    f"merge: {name} is {stored.dtype} {list(stored.shape)} in {stored.file} and "
                    f"{found.dtype} {list(found.shape)} in {found.file}"
                )


def plan_shards(catalog: dict[str, StoredTensor], *, max_shard_bytes: int) -> list[list[str]]:
    """Tensor names of every shard, in the order of the first model's names."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, stored in sorted(catalog.items()):
        if shards[-1] and size + stored.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += stored.num_bytes
    return shards


def shard_names(num_shards: int) -> list[str]:
    """File names as `from_pretrained` expects them."""
    if num_shards == 1:
        return [SINGLE_FILE]
    return [f"model-{i:05d}-of-{num_shards:05d}.safetensors" for i in range(1, num_shards + 1)]


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        with _opened(file) as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            header = {
                name: StoredTensor(file, view.get_dtype(), tuple(view.get_shape()))
                for name, view in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{file}: not a readable safetensors file: {error}") from error
    for name, stored in header.items():
        if stored.dtype not in NUM_BYTES:
            raise ValueError(f"{file}: {name} is {stored.dtype}, which cannot be merged")
    return header


def _read_together(
    catalogs: Sequence[dict[str, StoredTensor]], names: Sequence[str]
) -> Iterator[tuple[str, list[Tensor]]]:
    with ExitStack() as stack:
        files = {catalog[name].file for catalog in catalogs for name in names}
        opened = {file: stack.enter_context(_opened(file)) for file in sorted(files)}
        for name in names:
            yield name, [opened[catalog[name].file].get_tensor(name) for catalog in catalogs]


def _opened(file: Path) -> Any:
    """The typed stub of `safe_open` lacks what is used of it here."""
    return safe_open(file, framework="pt")


def _write_index(
    folder: Path, catalog: dict[str, StoredTensor], shards: dict[str, list[str]]
) -> None:
    index = {
        "metadata": {"total_size": sum(stored.num_bytes for stored in catalog.values())},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2))


def _copy_other_files(model: Path, folder: Path) -> None:
    for file in sorted(model.iterdir()):
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES):
            shutil.copy2(file, folder / file.name)
