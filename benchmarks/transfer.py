"""What checksums cost: 1 GiB of weights over each CPU transport, with them and without.

    python -m benchmarks.transfer

The receiving worker is a process of its own whose model vLLM reloads layer by layer, by plain
copies: what real models do with weights beside that makes the share of checksums smaller. Both ends
compute checksums in a thread beside the transfer; the share of the time is that of a machine
with idle cores; that of the processors' work is given as well. The checksum alone stands beside
copying, summing and CRC-32. Medians; one line a figure, then the same as JSON.
"""

import json
import multiprocessing
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    WeightSource,
    WeightTransferUpdatePayload,
)
from vllm.model_executor.model_loader.reload.layerwise import record_metadata_for_reloading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from workers.transfer import buckets
from workers.transfer.buckets import SendingEngine
from workers.transfer.checksum import checksum
from workers.transfer.gloo import GlooEngine, GlooTrainerEngine, GlooTrainerInit
from workers.transfer.shared_memory import (
    SharedMemoryEngine,
    SharedMemoryTrainerEngine,
    SharedMemoryTrainerInit,
)

LAYERS, SHAPE = 16, (4096, 4096)
"""16 layers of 64 MiB in float32."""
ROUNDS = 3
RECEIVERS = {"shared memory": SharedMemoryEngine, "gloo": GlooEngine}


class Model(nn.Module):
    """Takes in weights by their names, as vLLM's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(LAYERS))
        for layer in self.layers:
            layer.weight = nn.Parameter(torch.zeros(SHAPE), requires_grad=False)
        record_metadata_for_reloading(self)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """By the loaders that layer-wise reloading puts around the parameters'."""
        parameters = dict(self.named_parameters())
        for name, weight in weights:
            loader = getattr(parameters[name], "weight_loader", default_weight_loader)
            loader(parameters[name], weight)


class Source(WeightSource):
    """The same weights each time."""

    def __init__(self) -> None:
        self.tensors = {f"layers.{index}.weight": torch.randn(SHAPE) for index in range(LAYERS)}

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.tensors.items()


def no_checksums(_: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Takes the place of `checksums` at both ends."""
    return {}


def receive(transport: str, pipe: Connection, *, verified: bool) -> None:
    """A worker's process: carries out calls until the pipe is closed."""
    torch.set_num_threads(1)
    # Engines have a tracker of shared memory of their own; this process has its parent's.
    resource_tracker.unregister = lambda *_: None
    if not verified:
        buckets.checksums = no_checksums
    config: Any = SimpleNamespace(
        parallel_config=SimpleNamespace(rank=0),
        model_config=SimpleNamespace(dtype=torch.float32),
    )
    engine: Any = RECEIVERS[transport](config, config, torch.device("cpu"), Model())
    while True:
        try:
            method, info = pipe.recv()
        except EOFError:
            return
        match method:
            case "init":
                engine.init_transfer_engine(engine.parse_init_info(info))
            case "start":
                engine.start_weight_update()
            case "update":
                engine.receive_weights(engine.parse_update_info(info))
            case "finish":
                engine.finish_weight_update()
        pipe.send(time.process_time())


@dataclass
class Client:
    """The worker's process as the trainer sees it."""

    pipe: Connection
    worker_seconds: float = 0.0
    """What the worker's threads have computed for, up to its last answer."""

    def _call(self, method: str, info: Any = None) -> None:
        self.pipe.send((method, info))
        self.worker_seconds = self.pipe.recv()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See vLLM."""
        self._call("init", init_info)

    def start_weight_update(self) -> None:
        """See vLLM."""
        self._call("start")

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """See vLLM."""
        self._call("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See vLLM."""
        assert weight_version is None
        self._call("finish")


def trainer(transport: str, client: Client, source: Source) -> SendingEngine[Any]:
    """The other end."""
    if transport == "gloo":
        info = GlooTrainerInit(rank=0, num_workers=1, host="127.0.0.1")
        return GlooTrainerEngine.trainer_init(info, client=client, source=source)
    info = SharedMemoryTrainerInit(rank=0)
    return SharedMemoryTrainerEngine.trainer_init(info, client=client, source=source)


def transfers(transport: str, source: Source, *, verified: bool) -> list[tuple[float, float]]:
    """Seconds, and seconds of all threads together, of each round after the first."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(
        target=receive, args=(transport, theirs), kwargs={"verified": verified}
    )
    worker.start()
    theirs.close()
    original = buckets.checksums
    if not verified:
        buckets.checksums = no_checksums
    client = Client(ours)
    engine = trainer(transport, client, source)
    try:
        rounds = []
        for _ in range(ROUNDS + 1):
            before = time.process_time() + client.worker_seconds
            seconds = timed(engine.send_weights)
            rounds.append((seconds, time.process_time() + client.worker_seconds - before))
        return rounds[1:]
    finally:
        buckets.checksums = original
        engine.shutdown()
        ours.close()
        worker.join()


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alone(source: Source) -> list[tuple[str, float, str]]:
    """The checksum of one tensor beside what else reads all of its memory."""
    weights = torch.cat([t.view(-1) for t in source.tensors.values()])
    target = torch.empty_like(weights)
    works: dict[str, Callable[[], Any]] = {
        "copy": lambda: target.copy_(weights),
        "sum": lambda: weights.view(torch.int64).sum(),
        "CRC-32": lambda: zlib.crc32(weights.view(torch.uint8).numpy()),
        "checksum": lambda: checksum(weights),
    }
    gib = weights.nbytes / 2**30
    return [
        (name, gib / median(timed(work) for _ in range(ROUNDS)), "GiB/s")
        for name, work in works.items()
    ]


def beside(transport: str, source: Source) -> list[tuple[str, float, str]]:
    """A transport without checksums and with them."""
    bare, verified = (
        [median(values) for values in zip(*rounds, strict=True)]
        for rounds in (transfers(transport, source, verified=v) for v in (False, True))
    )
    gib = sum(tensor.nbytes for tensor in source.tensors.values()) / 2**30
    return [
        (f"{transport}, no checksums", gib / bare[0], "GiB/s"),
        (f"{transport}, verified", gib / verified[0], "GiB/s"),
        (f"{transport}, checksums' share of the time", 100 * (1 - bare[0] / verified[0]), "%"),
        (f"{transport}, their share of the work", 100 * (1 - bare[1] / verified[1]), "%"),
    ]


def main() -> None:
    """Measure, print."""
    torch.set_num_threads(1)
    source = Source()
    figures = alone(source)
    for transport in RECEIVERS:
        print(f"measuring {transport}", file=sys.stderr)
        figures += beside(transport, source)
    for name, value, unit in figures:
        print(f"{name}: {value:.4g} {unit}")
    print(json.dumps({name: {"value": value, "unit": unit} for name, value, unit in figures}))


if __name__ == "__main__":
    main()
