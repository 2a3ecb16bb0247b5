"""Carries out the plan of `rlstack.planning.phases` and verifies what the engines hold."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rlstack.errors import EngineLostError, RankDiedError, WeightSyncError
from rlstack.metrics import Metrics
from rlstack.planning.phases import Action, DeviceState, Transport, after, transition
from rlstack.types import Phase
from workers.groups.engines import EngineGroup
from workers.groups.ranks import PolicyGroup, TrainerGroup
from workers.specs import EngineState, SendReport

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


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
        engines.serve_policy(make_room=self._make_room, resync=self._resync)

    async def connect(self) -> None:
        """Let the trainer connect to the engines; again after an engine was replaced.

        Raises:
            EngineLostError: if an engine died meanwhile; its replacement has begun.
        """
        await self._through_policy(
            self.policy.connect(
                self.transport,
                engines=self.engines.engines,
                workers_per_engine=self.workers_per_engine,
            )
        )

    async def enter(self, phase: Phase, *, version: int) -> Metrics:
        """See `rlstack.protocols.Reallocator`; engines that died are replaced first.

        Raises:
            WorkerError: if engines died more often than `faults.max_restarts`.
        """
        self.version = version
        metrics = Metrics()
        while True:
            try:
                await self._repair()
                for action in transition(self.state, phase, version=version):
                    metrics += await self._perform(action)
                    self.state = after(self.state, action, version=version)
                return metrics
            except EngineLostError as lost:
                logger.warning("an engine died between two phases: %s", lost)

    def weights_changed(self) -> None:
        """The trainer's weights are others under the same version: engines need them anew."""
        self.state = replace(self.state, engine_version=None)

    async def _repair(self) -> None:
        """Wait for replaced engines and bring all of them to the same state, without weights."""
        if not await self.engines.repair():
            return
        self.state = replace(self.state, engine_version=None)
        if self.state.time_shared:
            await self._perform(Action.SLEEP_ENGINES)
            self.state = replace(self.state, engines_awake=False)
        await self.connect()

    async def _perform(self, action: Action) -> Metrics:
        engines = self.engines
        match action:
            case Action.RELOAD_TRAINER:
                await asyncio.gather(*(group.reload() for group in self.resident))
            case Action.OFFLOAD_TRAINER:
                await asyncio.gather(*(group.offload() for group in self.resident))
            case Action.SLEEP_ENGINES:
                await engines.call(lambda sampler: sampler.sleep())
            case Action.WAKE_ENGINE_WEIGHTS:
                await engines.call(lambda sampler: sampler.wake(["weights"]))
            case Action.WAKE_ENGINE_CACHE:
                await engines.call(lambda sampler: sampler.wake(["kv_cache"]))
            case Action.TRANSFER_WEIGHTS:
                return await self._transfer()
        return Metrics()

    async def _transfer(self) -> Metrics:
        start = time.perf_counter()
        report = await self._through_policy(self.policy.send_weights())
        seconds = time.perf_counter() - start
        version = self.version
        states = await self.engines.call(lambda sampler: sampler.commit(version))
        verify(report, states, version=version)
        metrics = {"time/transfer_s": seconds, "policy/version": float(version)}
        if report.num_bytes:
            metrics["transfer/gib_per_s"] = report.num_bytes / 2**30 / seconds
        return Metrics.of(metrics)

    async def _through_policy(self, call: Awaitable[ResultT]) -> ResultT:
        """Await a call in which the trainer talks to the engines.

        Raises:
            EngineLostError: if it failed because an engine died.
        """
        try:
            return await call
        except RankDiedError:
            raise
        except Exception as error:
            if await self.engines.find_dead():
                raise EngineLostError(f"during a transfer of weights: {error}") from error
            raise

    async def _make_room(self) -> None:
        """An engine that starts takes what memory it finds: the trainers leave before."""
        if self.state.time_shared and self.state.trainer_loaded:
            await self._perform(Action.OFFLOAD_TRAINER)
            self.state = replace(self.state, trainer_loaded=False)

    async def _resync(self) -> None:
        """Before more is sampled with engines that were replaced."""
        await self.enter(Phase.GENERATE, version=self.version)


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
