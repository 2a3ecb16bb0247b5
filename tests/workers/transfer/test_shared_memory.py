"""A transfer through a real segment; whatever happens to the bytes on their way is found."""

import copy
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import pytest
import torch

from rlstack.errors import WeightSyncError
from tests.workers.transfer.receiver import LoadingModel, LocalClient, Tensors, worker_engine
from workers.groups.reallocator import verify
from workers.specs import EngineState, SendReport
from workers.transfer.shared_memory import (
    SharedMemoryEngine,
    SharedMemoryTrainerEngine,
    SharedMemoryTrainerInit,
)

SHAPES = {"first.weight": (7, 33), "second.weight": (7, 33), "third.weight": (300, 301)}


class Transfer:
    """Both ends, and what they say."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.source = Tensors(
            {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        )
        self.model = LoadingModel(SHAPES)
        self.client = LocalClient(worker_engine(SharedMemoryEngine, self.model))
        self.trainer = SharedMemoryTrainerEngine.trainer_init(
            SharedMemoryTrainerInit(rank=0), client=self.client, source=self.source
        )

    def run(self) -> None:
        """Send, receive, verify."""
        self.trainer.send_weights()
        verify(
            SendReport(digests=self.trainer.sent, num_bytes=self.trainer.sent_bytes),
            [
                EngineState(
                    weight_version="1",
                    received=[self.client.engine.received],
                    checksums=[{}],
                )
            ],
            version=1,
        )


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Transfer]:
    # The worker's process gives up the segment there; here it is the sender's as well.
    monkeypatch.setattr(resource_tracker, "unregister", lambda *_: None)
    transfer = Transfer()
    yield transfer
    monkeypatch.undo()
    transfer.trainer.shutdown()


def test_what_is_sent_arrives_and_is_remembered_by_both_ends(transfer: Transfer) -> None:
    for _ in range(2):
        for tensor in transfer.source.tensors.values():
            tensor += 1
        transfer.run()
        assert set(transfer.trainer.sent) == set(SHAPES)
        assert transfer.trainer.sent == transfer.client.engine.received
        for name, parameter in transfer.model.named_parameters():
            assert torch.equal(parameter, transfer.source.tensors[name])


def flip_a_byte(info: dict[str, Any]) -> dict[str, Any]:
    segment = shared_memory.SharedMemory(name=info["segment"])
    assert segment.buf is not None
    segment.buf[info["slots"][2]["offset"] + 90_001] ^= 1
    segment.close()
    return info


def swap_two_tensors(info: dict[str, Any]) -> dict[str, Any]:
    info = copy.deepcopy(info)
    first, second = info["slots"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    return info


def leave_one_out(info: dict[str, Any]) -> dict[str, Any]:
    return {**info, "slots": info["slots"][:2]}


def read_another_shard(info: dict[str, Any]) -> dict[str, Any]:
    """The second tensor's slot shows what lies 7 rows further on, in the third."""
    info = copy.deepcopy(info)
    info["slots"][1]["offset"] = info["slots"][2]["offset"]
    return info


ACCIDENTS = [
    (flip_a_byte, "third.weight"),
    (swap_two_tensors, "first.weight"),
    (leave_one_out, "third.weight"),
    (read_another_shard, "second.weight"),
    (lambda _: None, "first.weight"),
]


@pytest.mark.parametrize(
    ("accident", "named"),
    ACCIDENTS,
    ids=["flipped byte", "swapped tensors", "left out", "another shard", "nothing arrived"],
)
def test_accidents_are_found(
    transfer: Transfer, accident: Callable[[dict[str, Any]], Any], named: str
) -> None:
    transfer.client.accident = accident
    with pytest.raises(WeightSyncError, match=f"tensors did not arrive as sent.*{named}"):
        transfer.run()


def test_weights_of_the_update_before_are_found(transfer: Transfer) -> None:
    """The engine is asked and keeps what it has: neither start, bucket nor finish come through."""
    transfer.run()
    transfer.source.tensors["second.weight"][3, 3] += 1
    transfer.client.accident = lambda _: None
    transfer.client.start_weight_update = lambda: None
    transfer.client.finish_weight_update = lambda weight_version=None: None
    with pytest.raises(WeightSyncError, match=r"1 of 3 tensors .*second\.weight"):
        transfer.run()


def test_weights_that_do_not_fit_are_refused_before_they_are_written() -> None:
    """Linux would kill the rank without a word."""
    engine = SharedMemoryTrainerEngine(client=None)  # type: ignore[arg-type]
    too_large = torch.empty(2**50, dtype=torch.uint8, device="meta")
    with pytest.raises(WeightSyncError, match=r"/dev/shm: .* 1073741824 MiB .* MiB are free"):
        engine.send_bucket([("weight", too_large)])
    assert engine.segment is None
