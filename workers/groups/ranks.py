"""Groups of ranks behind one call each."""

# Ray's handles are typed too loosely for these.
# pyright: reportGeneralTypeIssues=false

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, TypeVarTuple

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError
from torch import Tensor

from rlstack.algorithms.objectives import Objective
from rlstack.algorithms.preference_evaluation import PairScores, pair_metrics
from rlstack.batch import Rows, TokenBatch
from rlstack.batches.preference_reference import plain_rows
from rlstack.batches.preferences import PairBatch
from rlstack.errors import RankDiedError, WorkerError
from rlstack.metrics import Metrics, merge
from rlstack.planning.phases import Transport
from workers.groups.written import check_seen, written_below
from workers.specs import Measured, SendReport

if TYPE_CHECKING:
    from workers.ranks.critic import CriticRank  # noqa: F401
    from workers.ranks.policy import PolicyRank  # noqa: F401
    from workers.ranks.reference import ReferenceRank  # noqa: F401
    from workers.ranks.rendezvous import ProcessGroup
    from workers.ranks.reward_trainer import RewardTrainerRank  # noqa: F401
    from workers.ranks.trainer import TrainerRank


class Rank(Protocol):
    """What every rank does."""

    def start(self) -> None:
        """Load what it holds."""
        ...


RankT = TypeVar("RankT", bound=Rank)
TrainerT = TypeVar("TrainerT", bound="TrainerRank")
ResultT = TypeVar("ResultT")
Arguments = TypeVarTuple("Arguments")


class RankGroup(Generic[RankT]):
    """Ranks of one role, each a `workers.actors.RankActor`.

    turn: held by whoever uses the devices, where several roles share them.
    """

    def __init__(
        self,
        ranks: Sequence[ActorHandle],
        *,
        role: str,
        obituary: Callable[[ActorHandle], str],
        turn: asyncio.Lock | None = None,
        sequence_parallel: int = 1,
    ) -> None:
        """obituary: why a dead rank died. sequence_parallel: how many neighbours share rows; the
        first of them answers.
        """
        self.ranks = ranks
        self.role = role
        self._obituary = obituary
        self.turn = turn or asyncio.Lock()
        self.sequence_parallel = sequence_parallel

    async def call(
        self, function: Callable[[RankT, *Arguments], ResultT], *arguments: *Arguments
    ) -> list[ResultT]:
        """Run `function` on all ranks at the same time; what those that answer for rows returned.

        It travels to the ranks, so that the driver need not import what they are. `arguments` that
        are references of Ray arrive as what they refer to.
        """
        return (await self.each(function, *arguments))[:: self.sequence_parallel]

    async def each(
        self, function: Callable[[RankT, *Arguments], ResultT], *arguments: *Arguments
    ) -> list[ResultT]:
        """`call`; what every rank returned."""
        calls = [self.call_one(rank, function, *arguments) for rank in self.ranks]
        return await asyncio.gather(*calls)

    async def call_one(
        self,
        rank: ActorHandle,
        function: Callable[[RankT, *Arguments], ResultT],
        *arguments: *Arguments,
    ) -> ResultT:
        """`call` of a single rank.

        Raises:
            RankDiedError: naming the rank that died: this one, or one that it computes with.
        """
        try:
            return await rank.call.remote(function, *arguments)
        except RayError as error:
            if (text := await self._death()) is not None:
                raise RankDiedError(text) from error
            raise

    async def _death(self) -> str | None:
        """Which rank is dead and why; None if all are alive.

        When one dies, those that compute with it fail too, and may be heard of first.
        """
        asked = [rank.progress.remote() for rank in self.ranks]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for number, (rank, answer) in enumerate(zip(self.ranks, answers, strict=True)):
            if isinstance(answer, RayActorError):
                return f"{self.role}, rank {number}: {self._obituary(rank)}"
        return None

    async def join(self, group_of: "Callable[[RankT], ProcessGroup]") -> None:
        """Let the ranks find each other, before they start."""
        address, port = await self.call_one(self.ranks[0], lambda rank: group_of(rank).address())
        await self.call(lambda rank: group_of(rank).join(address=address, port=port))

    async def rows(
        self, function: Callable[[RankT, TokenBatch], tuple[Tensor, Tensor]], batch: TokenBatch
    ) -> Tensor:
        """Float32 [B, T], put together from what each rank says of its rows of `batch`."""
        result = torch.zeros(batch.token_ids.shape)
        for rows, values in await self.call(function, shared(batch)):
            result[rows] = values
        return result


def shared(batch: ResultT) -> ResultT:
    """`batch`, put where all ranks of a node read it: a reference of Ray, which arrives as it."""
    reference: Any = ray.put(batch)
    return reference


class FrozenGroup(RankGroup[RankT]):
    """Ranks of a model that is not trained: whole on each of them, or shared out over them.

    sharded: then every rank takes part in every call.
    """

    def __init__(self, ranks: Sequence[ActorHandle], *, sharded: bool, **named: Any) -> None:
        """named: as of `RankGroup`."""
        super().__init__(ranks, **named)
        self.sharded = sharded

    async def start(self) -> None:
        """Load the model in every rank, or each rank's share."""
        if self.sharded:
            await self.join(_process_group)
        await self.call(lambda rank: rank.start())


def _process_group(rank: Any) -> "ProcessGroup":
    """Of ranks that compute together."""
    return rank.process_group


class TrainerGroup(RankGroup[TrainerT]):
    """All ranks of a trainer; see `rlstack.protocols.Trained` for what is said in common."""

    take_devices: Callable[[], Awaitable[Any]] | None = None
    """Where engines take turns on the ranks' devices: has them leave, and brings the ranks' state
    back, which is read and written there alone."""

    async def start(self) -> None:
        """Let the ranks find each other and load the model."""
        await self.join(_process_group)
        await self.call(lambda rank: rank.start())

    async def update(self, batch: Rows, objective: Objective) -> Metrics:
        """One optimizer step of all ranks on the whole batch; what they measured, together."""
        return merge(measured.metrics for measured in await self.step(batch, objective))

    async def evaluate(self, batch: Rows, objective: Objective) -> Any:
        """Metrics `eval/...` of any number of samples that are not learned from."""
        return merge(measured.metrics for measured in await self.measure(batch, objective))

    async def step(self, batch: Rows, objective: Objective) -> list[Measured]:
        """`update` of each rank.

        Raises:
            WorkerError: if some ranks took the update and others skipped it.
        """
        found = await self.call(lambda rank, rows: rank.update(rows, objective), shared(batch))
        skipped = [rank for rank, measured in enumerate(found) if measured.skipped]
        if skipped and len(skipped) < len(found):
            raise WorkerError(
                f"ranks {skipped} of {len(found)} skipped an update that the others took: their "
                "weights differ now; resume from the last checkpoint"
            )
        return found

    async def measure(self, batch: Rows, objective: Objective) -> list[Measured]:
        """`evaluate` of each rank."""
        return await self.call(lambda rank, rows: rank.evaluate(rows, objective), shared(batch))

    async def save(self, directory: Path) -> None:
        """Weights, optimizer, scheduler and RNG of every rank; all of it is seen here.

        Raises:
            CheckpointError: if a rank has written elsewhere.
        """
        await self._on_devices()
        await check_seen(await self.each(lambda rank: rank.save(directory)))

    async def load(self, directory: Path) -> None:
        """Restore what `save` wrote, exactly."""
        await self._on_devices()
        await self.call(lambda rank: rank.load(directory))

    async def export(self, directory: Path) -> None:
        """Weights, configuration and tokenizer in Hugging Face format; all of it is seen here.

        Raises:
            CheckpointError: if the rank that writes has written elsewhere.
        """
        await self._on_devices()
        await self.call(lambda rank: rank.export(directory))
        await check_seen([await self.call_one(self.ranks[0], lambda _: written_below(directory))])

    async def merge_adapters(self) -> None:
        """Merge the adapters into the weights below them and go on with fresh ones.

        The optimizer is reset too. Engines must be sent the weights anew.
        """
        await self._on_devices()
        await self.call(lambda rank: rank.merge_adapters())

    async def reset_optimizer(self) -> None:
        """Forget the moments of the gradients; the learning rate goes on as scheduled."""
        await self._on_devices()
        await self.call(lambda rank: rank.reset_optimizer())

    async def _on_devices(self) -> None:
        if self.take_devices is not None:
            await self.take_devices()

    async def visible_devices(self) -> list[str]:
        """The GPU of each rank, as CUDA_VISIBLE_DEVICES names it on its node."""
        return await self.each(lambda rank: rank.visible_device())

    async def offload(self) -> None:
        """Free device memory."""
        await self.call(lambda rank: rank.offload())

    async def reload(self) -> None:
        """Undo `offload`."""
        await self.call(lambda rank: rank.reload())


class PolicyGroup(TrainerGroup["PolicyRank"]):
    """All ranks of the policy trainer."""

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.PolicyTrainer`."""
        return await self.rows(lambda rank, rows: rank.logprobs(rows), batch)

    async def response_logprobs(self, batch: Rows) -> Tensor:
        """Float32 [N], nats: the sum over the loss tokens of each row; any number of rows."""
        result = torch.zeros(batch.num_rows)
        found = await self.call(
            lambda rank, rows: rank.response_logprobs(rows), shared(plain_rows(batch))
        )
        for rows, sums in found:
            result[rows] = sums
        return result

    async def connect(
        self, transport: Transport, *, engines: Sequence[ActorHandle], workers_per_engine: int
    ) -> None:
        """Let the trainer connect to the engines it will send weights to."""
        await self.call(
            lambda rank, handles: rank.connect(
                transport, engines=handles, workers_per_engine=workers_per_engine
            ),
            list(engines),
        )

    async def send_weights(self) -> SendReport:
        """Put the weights into every engine; what was sent."""
        return (await self.call(lambda rank: rank.send_weights()))[0]


class BaseOfPolicy:
    """The reference of a policy that is trained by adapters: the policy without them."""

    def __init__(self, policy: PolicyGroup) -> None:
        self.policy = policy
        self.turn = policy.turn

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.Reference`."""
        return await self.policy.rows(lambda rank, rows: rank.base_logprobs(rows), batch)


class CriticGroup(TrainerGroup["CriticRank"]):
    """All ranks of the critic."""

    async def values(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.Critic`."""
        return await self.rows(lambda rank, rows: rank.values(rows), batch)


class RewardTrainerGroup(TrainerGroup["RewardTrainerRank"]):
    """All ranks of the trainer of a reward model."""

    async def update(self, batch: Rows, objective: Objective) -> Metrics:
        """One optimizer step on all pairs of `batch`; `reward_model/...` of their scores before."""
        found = await self.step(batch, objective)
        metrics = merge(measured.metrics for measured in found)
        if found[0].skipped:
            return metrics
        return metrics + pair_metrics(_pair_scores(batch, found), prefix="reward_model")

    async def evaluate(self, batch: Rows, objective: Objective) -> PairScores:
        """Scores of the pairs of `batch`, any number of them, without learning from them."""
        return _pair_scores(batch, await self.measure(batch, objective))


def _pair_scores(batch: Rows, parts: Sequence[Measured]) -> PairScores:
    """Put together from the pairs and scores (float32 [2n]) of every rank."""
    assert isinstance(batch, PairBatch)
    scores = torch.zeros((batch.num_rows // 2, 2), dtype=torch.float64)
    for part in parts:
        scores[part.samples] = part.values.view(-1, 2).double()
    chosen, rejected = scores.numpy().T
    return PairScores(
        chosen=chosen,
        rejected=rejected,
        lengths=batch.loss_mask.sum(dim=1).view(-1, 2).T.double().numpy(),
        data_sources=batch.data_sources,
    )


class ReferenceGroup(FrozenGroup["ReferenceRank"]):
    """All ranks of the frozen reference."""

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.Reference`."""
        return await self.rows(lambda rank, rows: rank.logprobs(rows), batch)
