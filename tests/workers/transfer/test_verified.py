"""vLLM's engines for GPUs with checksums around them; what moves bytes between GPUs is replaced."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import ipc_engine, nccl_engine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from rlstack.planning.phases import Transport
from tests.workers.transfer.receiver import LoadingModel, Tensors, worker_engine
from workers.transfer.checksum import checksums
from workers.transfer.register import register
from workers.transfer.verified import VerifiedIPCEngine, VerifiedNCCLEngine, VerifiedSource

TENSORS = {"first.weight": torch.randn(3, 5), "second.weight": torch.randn(40)}
METADATA = {
    "names": list(TENSORS),
    "dtype_names": ["float32"] * 2,
    "shapes": [list(t.shape) for t in TENSORS.values()],
}


def loading_model() -> LoadingModel:
    return LoadingModel({name: tuple(t.shape) for name, t in TENSORS.items()})


def by_ipc(model: LoadingModel, arriving: dict[str, Tensor], patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(ipc_engine, "packed_ipc_consumer", lambda **_: list(arriving.items()))
    engine = worker_engine(VerifiedIPCEngine, model)
    engine.init_transfer_engine(engine.parse_init_info({"packed": True}))
    info = engine.parse_update_info({**METADATA, "ipc_handles": {}, "tensor_sizes": [60, 160]})
    return engine, info


def by_nccl(model: LoadingModel, arriving: dict[str, Tensor], patch: pytest.MonkeyPatch) -> Any:
    def consume(
        *, post_unpack_func: Callable[[Iterable[tuple[str, Tensor]]], None], **_: Any
    ) -> None:
        for item in arriving.items():  # a buffer each
            post_unpack_func([item])

    patch.setattr(nccl_engine, "packed_nccl_broadcast_consumer", consume)
    engine = worker_engine(VerifiedNCCLEngine, model)
    engine.packed, engine.model_update_group = True, SimpleNamespace()
    return engine, engine.parse_update_info(METADATA)


@pytest.mark.parametrize("transport", [by_ipc, by_nccl])
def test_an_engine_keeps_the_checksums_of_what_arrived(
    transport: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loading_model()
    arriving = {name: tensor.clone() for name, tensor in TENSORS.items()}
    engine, info = transport(model, arriving, monkeypatch)
    for _ in range(2):
        arriving["second.weight"][7] += 1  # not what the trainer has
        engine.start_weight_update()
        assert engine.received == {}
        engine.receive_weights(info)
        engine.finish_weight_update()
        assert engine.received == checksums(arriving.items())
        assert engine.model is model
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, arriving[name])
    expected = checksums(TENSORS.items())
    assert [n for n in expected if engine.received[n] != expected[n]] == ["second.weight"]


@pytest.mark.parametrize("take", [list, lambda source: list(source.iter_groups())])
def test_a_source_keeps_the_checksums_of_what_was_taken(take: Callable[[Any], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in TENSORS.items()}
    source = VerifiedSource(Tensors(tensors), is_sender=True)
    for _ in range(2):
        tensors["first.weight"] += 1
        take(source)
        assert source.sent == checksums(tensors.items())
        assert source.sent_bytes == 220
    other_rank = VerifiedSource(Tensors(tensors), is_sender=False)
    take(other_rank)
    assert other_rank.sent == {}
    assert [m.name for m in source.metadata()] == list(TENSORS)


def test_vllm_makes_the_engines_with_checksums() -> None:
    register()
    register()
    config = SimpleNamespace(parallel_config=None, model_config=None)
    for transport in Transport:
        engine = WeightTransferEngineFactory.create_engine(
            WeightTransferConfig(backend=transport.value),
            config,  # pyright: ignore[reportArgumentType]
            torch.device("cpu"),
            loading_model(),
        )
        engine.model = loading_model()
        engine.start_weight_update()
        assert engine.received == {}  # pyright: ignore[reportAttributeAccessIssue]
