"""Merging model folders on disk: the whole way, sharding, memory, damage, what is left behind."""

import json
import struct
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlstack.algorithms import merging
from rlstack.commands.merge_files import (
    INDEX_FILE,
    SINGLE_FILE,
    merge_files,
    plan_shards,
    read_catalog,
)

State = dict[str, Tensor]
NAMES = ("embed", "layer.0.weight", "layer.1.weight", "norm")


def mean(_: str, tensors: Sequence[Tensor]) -> Tensor:
    return merging.linear(tensors, weights=[1.0] * len(tensors))


merge = partial(merge_files, method=mean, max_shard_bytes=10**6)


def state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 8, generator=generator).to(dtype) for name in NAMES}


def write_model(folder: Path, tensors: State, *, num_shards: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"folder": folder.name}))
    if num_shards == 1:
        save_file(tensors, folder / SINGLE_FILE)
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        names = sorted(tensors)[shard::num_shards]
        save_file({name: tensors[name] for name in names}, folder / f"part-{shard}.safetensors")
        weight_map |= dict.fromkeys(names, f"part-{shard}.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def read_model(folder: Path) -> State:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [10**6, 300, 1])
def test_merged_folder_holds_the_merged_tensors_however_it_is_cut(
    tmp_path: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    first, second = state(0, dtype), state(1, dtype)
    models = [
        write_model(tmp_path / "a", first, num_shards=3),
        write_model(tmp_path / "b", second),
    ]
    output = tmp_path / "out" / "merged"
    merge(models, output, max_shard_bytes=max_shard_bytes)
    found = read_model(output)
    assert set(found) == set(NAMES)
    for name in NAMES:
        assert torch.equal(found[name], mean(name, [first[name], second[name]]))
    num_shards = len(plan_shards(read_catalog(models[0]), max_shard_bytes=max_shard_bytes))
    files = sorted(file.name for file in output.glob("*.safetensors"))
    if num_shards == 1:
        assert files == [SINGLE_FILE]
        assert not (output / INDEX_FILE).exists()
    else:
        assert files[0] == f"model-00001-of-{num_shards:05d}.safetensors"
        index = json.loads((output / INDEX_FILE).read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
        for name, file in index["weight_map"].items():
            assert name in load_file(output / file)
    assert json.loads((output / "config.json").read_text()) == {"folder": "a"}
    assert [path.name for path in output.parent.iterdir()] == ["merged"]


def test_shards_keep_to_their_size_and_hold_every_tensor_once(tmp_path: Path) -> None:
    tensors = {"large": torch.zeros(100), "a": torch.zeros(10), "b": torch.zeros(10)}
    catalog = read_catalog(write_model(tmp_path / "m", tensors))
    assert plan_shards(catalog, max_shard_bytes=100) == [["a", "b"], ["large"]]
    assert plan_shards(catalog, max_shard_bytes=79) == [["a"], ["b"], ["large"]]
    assert plan_shards(catalog, max_shard_bytes=480) == [["a", "b", "large"]]


def test_every_method_works_on_files(tmp_path: Path) -> None:
    base, one, two = (write_model(tmp_path / n, state(i)) for i, n in enumerate(("0", "1", "2")))

    def dare(name: str, tensors: Sequence[Tensor]) -> Tensor:
        return merging.dare(
            tensors[0], tensors[1:], weights=[0.5, 0.5], drop_probability=0.9, seed=3, name=name
        )

    merge_files([base, one, two], tmp_path / "whole", method=dare, max_shard_bytes=10**6)
    merge_files([base, one, two], tmp_path / "cut", method=dare, max_shard_bytes=1)
    whole, cut = read_model(tmp_path / "whole"), read_model(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": torch.zeros(4, 9)}, r"norm is F32 \[4, 8\] in .*/a/model.safetensors and F32"),
        ({"norm": torch.zeros(4, 8).half()}, r"and F16 \[4, 8\] in .*/b/model.safetensors"),
        ({"more": torch.zeros(1)}, r"more is in .*/b/model.safetensors and not in .*/a"),
    ],
)
def test_models_that_differ_are_refused_by_tensor_and_file(
    tmp_path: Path, change: State, message: str
) -> None:
    models = [
        write_model(tmp_path / "a", state(0)),
        write_model(tmp_path / "b", state(1) | change),
    ]
    with pytest.raises(ValueError, match=message):
        merge(models, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_failure_on_the_way_leaves_nothing_behind(tmp_path: Path) -> None:
    models = [write_model(tmp_path / name, state(0)) for name in "ab"]

    def failing(name: str, tensors: Sequence[Tensor]) -> Tensor:
        if name == "norm":
            raise RuntimeError("no more memory")
        return tensors[0]

    with pytest.raises(RuntimeError, match="no more memory"):
        merge_files(models, tmp_path / "merged", method=failing, max_shard_bytes=1)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a", state(0))
    with pytest.raises(FileExistsError, match="exists; remove it"):
        merge([model, model], model)
    assert read_catalog(model).keys() == set(NAMES)


def test_tensors_of_the_models_are_let_go_on_the_way(tmp_path: Path) -> None:
    models = [write_model(tmp_path / name, state(0), num_shards=2) for name in "ab"]
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watching(_: str, tensors: Sequence[Tensor]) -> Tensor:
        seen.extend(weakref.ref(tensor) for tensor in tensors)
        alive.append(sum(tensor() is not None for tensor in seen))
        return mean("", tensors)

    merge_files(models, tmp_path / "merged", method=watching, max_shard_bytes=10**6)
    assert len(alive) == len(NAMES)
    assert max(alive) <= 2 * len(models)


def test_folders_without_whole_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has neither model.safetensors nor"):
        read_catalog(tmp_path)
    sharded = write_model(tmp_path / "a", state(0), num_shards=2)
    save_file({"other": torch.zeros(1)}, sharded / "part-1.safetensors")
    with pytest.raises(ValueError, match=r"part-1.safetensors: lacks .*which model.safetensors"):
        read_catalog(sharded)
    (sharded / "part-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="part-1"):
        read_catalog(sharded)
    (sharded / "part-1.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match=r"part-1.safetensors: not a readable safetensors file"):
        read_catalog(sharded)


def test_a_dtype_that_cannot_be_merged_is_named(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    file = tmp_path / SINGLE_FILE
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    with pytest.raises(ValueError, match=r"model.safetensors: w is F8_E8M0, which cannot"):
        read_catalog(tmp_path)
