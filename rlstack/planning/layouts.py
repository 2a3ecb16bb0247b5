"""Bundles and devices of every process, before it is known whether a cluster has them; pure.

Ray reserves bundles, each on one node. Whoever uses the same GPU is in the same bundle: the ranks
beside a policy rank, and a colocated engine with all the policy ranks whose GPUs it takes turns on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlstack.config.placement import BesidePolicy, RolePlacement
from rlstack.planning.cluster import Bundle, rounded
from rlstack.planning.spec import RunSpec

RoleName = BesidePolicy | Literal["policy", "reward_trainer", "engines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The processes of a role."""

    bundles: tuple[int, ...]
    """Of each process, the bundle that it is in."""
    devices: tuple[tuple[int, ...], ...]
    """Of each process, its GPUs, numbered through the placement; none where it runs on CPU."""
    tensor_parallel: int
    """Devices that share a process's weights."""
    zero_stage: int
    """How the processes share the states of a model: see `TrainerConfig`."""
    with_policy: bool
    """On the policy's devices, in turns with it; otherwise nobody else uses its devices."""
    cpus: float
    """Ray CPUs of a process."""

    @property
    def data_parallel(self) -> int:
        """Processes that work on different rows."""
        return len(self.bundles)


class Layouts:
    """The layout of every role that has processes, and the bundles that they fill."""

    def __init__(self, spec: RunSpec, *, gpu: bool, time_shared: bool) -> None:
        config = spec.placement
        self.by_role: dict[RoleName, Layout] = {}
        self._gpu = gpu
        self._cpus_per_device = config.cpus_per_worker
        self._cpus: list[float] = []
        self._gpus: list[int] = []
        width, num_engines = config.tensor_parallel, config.num_engines
        if spec.policy is not None:
            # The ranks that an engine takes turns with are on one node, as its workers are.
            turns = num_engines if time_shared else 0
            ranks_of = [width] * turns + [1] * (config.trainer_ranks - turns * width)
            bundles = [index for index, ranks in enumerate(ranks_of) for _ in range(ranks)]
            self._own("policy", bundles, zero_stage=spec.policy.trainer.zero_stage)
        if spec.reward_trainer is not None:
            stage = spec.reward_trainer.trainer.zero_stage
            self._own("reward_trainer", range(config.trainer_ranks), zero_stage=stage)
        for name, (role, zero_stage) in beside_policy(spec).items():
            num_ranks = role.ranks or config.trainer_ranks
            if spec.policy is not None and role.devices == "policy":
                self._with_policy(name, num_ranks, width=1, zero_stage=zero_stage)
            else:
                self._own(name, range(num_ranks), zero_stage=zero_stage)
        if spec.rollout is not None and time_shared:
            self._with_policy("engines", num_engines, width=width, zero_stage=0)
        elif spec.rollout is not None:
            self._own("engines", range(num_engines), width=width, zero_stage=0)

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """What to reserve."""
        pairs = zip(self._cpus, self._gpus, strict=True)
        return tuple(Bundle(cpus=rounded(cpus), gpus=gpus) for cpus, gpus in pairs)

    def _own(
        self, name: RoleName, bundles: Sequence[int], *, width: int = 1, zero_stage: int
    ) -> None:
        """Give each process devices of its own, in new bundles that count from 0."""
        first_device, first_bundle = sum(self._gpus), len(self._cpus)
        count = bundles[-1] + 1
        self._cpus += [0.0] * count
        self._gpus += [0] * count
        devices = [
            tuple(range(first_device + index * width, first_device + (index + 1) * width))
            for index in range(len(bundles))
        ]
        placed = [first_bundle + bundle for bundle in bundles]
        if self._gpu:
            for bundle in placed:
                self._gpus[bundle] += width
        self._add(name, placed, devices, width=width, zero_stage=zero_stage, with_policy=False)

    def _with_policy(
        self, name: RoleName, num_processes: int, *, width: int, zero_stage: int
    ) -> None:
        """Give each process the devices of the next `width` policy ranks."""
        policy = self.by_role["policy"]
        firsts = range(0, num_processes * width, width)
        devices = [tuple(range(first, first + width)) for first in firsts]
        bundles = [policy.bundles[first] for first in firsts]
        self._add(name, bundles, devices, width=width, zero_stage=zero_stage, with_policy=True)

    def _add(
        self,
        name: RoleName,
        bundles: Sequence[int],
        devices: Sequence[tuple[int, ...]],
        *,
        width: int,
        zero_stage: int,
        with_policy: bool,
    ) -> None:
        cpus = self._cpus_per_device * width
        for bundle in bundles:
            self._cpus[bundle] += cpus
        self.by_role[name] = Layout(
            bundles=tuple(bundles),
            devices=tuple(devices) if self._gpu else ((),) * len(bundles),
            tensor_parallel=width,
            zero_stage=zero_stage,
            with_policy=with_policy,
            cpus=cpus,
        )


def beside_policy(spec: RunSpec) -> dict[BesidePolicy, tuple[RolePlacement, int]]:
    """Placement and ZeRO stage of the roles beside the policy."""
    config = spec.placement
    found: dict[BesidePolicy, tuple[RolePlacement, int]] = {}
    if spec.critic is not None:
        found["critic"] = (config.critic, spec.critic.trainer.zero_stage)
    if spec.reference is not None and not spec.reference_in_policy:
        found["reference"] = (config.reference, spec.reference.config.zero_stage)
    if spec.reward_models is not None:
        found["reward_model"] = (config.reward_model, spec.reward_models.zero_stage)
    return found
