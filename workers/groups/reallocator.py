"""Carries out the plan of `rlstack.planning.phases` and verifies what the engines hold."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlstack.errors import WeightSyncError
from rlstack.metrics import Metrics
from rlstack.planning.phases import Action, DeviceState, Transport, after, transition
from rlstack.types import Phase
from workers.groups.engines import EngineGroup
from workers.groups.ranks import PolicyGroup, TrainerGroup
from workers.specs import EngineState, SendReport


class Reallocator:
    """Moves weights and memory between the trainer and the engines."""

    def __init__(
        self,
        policy: PolicyGroup,
        engines: EngineGroup,
        *,
        resident: Sequence[TrainerGroup[Any]],
        transport: Transport,
        workers_per_engine: int,
        state: DeviceState,
    ) -> None:
        """resident: the trainers on the devices that the engines take turns on."""
        self.policy = policy
        self.resident = resident
        self.engines = engines
        self.transport = transport
        self.workers_per_engine = workers_per_engine
        self.state = state
        self.version = 0
        engines.on_replaced(self._resync)

    async def connect(self) -> None:
        """Let the trainer connect to the engines; again after an engine was replaced."""
        await self.policy.connect(
            self.transport,
            engines=self.engines.engines,
            workers_per_engine=self.workers_per_engine,
        )

    async def enter(self, phase: Phase, *, version: int) -> Metrics:
        """See `rlstack.protocols.Reallocator`."""
        self.version = version
        metrics = Metrics()
        for action in transition(self.state, phase, version=version):
            metrics += await self._perform(action)
            self.state = after(self.state, action, version=version)
        return metrics

    def weights_changed(self) -> None:
        """The trainer's weights are others under the same version: engines need them anew."""
        self.state = replace(self.state, engine_version=None)

    async def _perform(self, action: Action) -> Metrics:
        engines = self.engines.engines
        match action:
            case Action.RELOAD_TRAINER:
                await asyncio.gather(*(group.reload() for group in self.resident))
            case Action.OFFLOAD_TRAINER:
                await asyncio.gather(*(group.offload() for group in self.resident))
            case Action.SLEEP_ENGINES:
                await asyncio.gather(*(engine.sleep.remote() for engine in engines))
            case Action.WAKE_ENGINE_WEIGHTS:
                await asyncio.gather(*(engine.wake.remote(["weights"]) for engine in engines))
            case Action.WAKE_ENGINE_CACHE:
                await asyncio.gather(*(engine.wake.remote(["kv_cache"]) for engine in engines))
            case Action.TRANSFER_WEIGHTS:
                return await self._transfer()
        return Metrics()

    async def _transfer(self) -> Metrics:
        start = time.perf_counter()
        report = await self.policy.send_weights()
        seconds = time.perf_counter() - start
        commits = [engine.commit.remote(self.version) for engine in self.engines.engines]
        states = await asyncio.gather(*commits)
        verify(report, states, version=self.version)
        metrics = {"time/transfer_s": seconds, "policy/version": float(self.version)}
        if report.num_bytes:
            metrics["transfer/gib_per_s"] = report.num_bytes / 2**30 / seconds
        return Metrics.of(metrics)

    async def _resync(self) -> None:
        """After a replacement: the trainer connects to all engines anew and sends its weights."""
        await self.connect()
        await self._transfer()


def verify(report: SendReport, states: list[EngineState], *, version: int) -> None:
    """Compare what every engine holds with what was sent, and the engines with each other.

    Raises:
        WeightSyncError: naming the engine and the tensor.
    """
    for index, state in enumerate(states):
        if state.weight_version != str(version):
            raise WeightSyncError(
                f"engine {index} holds policy version {state.weight_version}, expected {version}"
            )
        for worker, received in enumerate(state.received):
            wrong = [name for name, sent in report.digests.items() if received.get(name) != sent]
            if wrong:
                raise WeightSyncError(
                    f"engine {index}, worker {worker}: {len(wrong)} of {len(report.digests)} "
                    f"tensors did not arrive as sent, among them {wrong[0]}"
                )
        if state.checksums != states[0].checksums:
            raise WeightSyncError(f"engines 0 and {index} loaded different weights")
