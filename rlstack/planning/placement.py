"""Which process of which role gets which devices; pure, so that no cluster need exist."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlstack.errors import PlacementError
from rlstack.planning.capacity import fit, shortages, total_cpus
from rlstack.planning.cluster import Bundle, Cluster, Node
from rlstack.planning.layouts import Layout, Layouts, RoleName, beside_policy
from rlstack.planning.phases import Transport, choose_transport
from rlstack.planning.spec import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Everything that is decided before the first process starts."""

    device: Literal["cpu", "gpu"]
    time_shared: bool
    """Engines and trainers take turns on the same GPUs."""
    transport: Transport
    bundles: tuple[Bundle, ...]
    nodes: tuple[Node, ...]
    """One that has room for each bundle; Ray may choose another that has."""
    layouts: Mapping[RoleName, Layout]
    """Of the roles that have processes."""
    threads: Mapping[RoleName, int]
    """Of a role, for each of its devices."""


def place(spec: RunSpec, cluster: Cluster) -> Placement:
    """A layout for every role that has processes.

    Raises:
        PlacementError: with everything that keeps the roles from running on the cluster.
    """
    config = spec.placement
    device = config.device
    if device == "auto":
        device = "gpu" if cluster.gpus else "cpu"
    time_shared = (
        config.mode == "colocated"
        and device == "gpu"
        and spec.policy is not None
        and spec.rollout is not None
    )
    if problems := list(_contradictions(spec, cluster, device=device, time_shared=time_shared)):
        raise PlacementError("\n".join(problems))
    plan = Layouts(spec, gpu=device == "gpu", time_shared=time_shared)
    if problems := list(shortages(config, plan.bundles, cluster)):
        raise PlacementError("\n".join(problems))
    nodes = fit(plan.bundles, cluster)
    return Placement(
        device=device,
        time_shared=time_shared,
        transport=choose_transport(
            device=device, colocated=time_shared, num_nodes=len(cluster.nodes)
        ),
        bundles=plan.bundles,
        nodes=nodes,
        layouts=plan.by_role,
        threads={name: _threads(layout, nodes) for name, layout in plan.by_role.items()},
    )


def needed_cpus(spec: RunSpec) -> float:
    """Ray CPUs of all processes, on whatever devices.

    Raises:
        PlacementError: if the roles fit no cluster at all.
    """
    if problems := list(_misfits(spec)):
        raise PlacementError("\n".join(problems))
    return total_cpus(Layouts(spec, gpu=False, time_shared=False).bundles)


def _threads(layout: Layout, nodes: Sequence[Node]) -> int:
    """Cores of a node for each of the role's devices on it; where nodes differ, the fewest."""
    on = [nodes[bundle] for bundle in layout.bundles]
    return min(max(1, node.cores // (on.count(node) * layout.tensor_parallel)) for node in on)


def _misfits(spec: RunSpec) -> Iterator[str]:
    """Roles that do not fit the policy's devices, whatever the cluster."""
    for name in beside_policy(spec):
        problem = spec.placement.misfit(name)
        if problem is not None and spec.policy is not None:
            yield f"{problem.keys[0]}: {problem.text}"


def _contradictions(
    spec: RunSpec, cluster: Cluster, *, device: str, time_shared: bool
) -> Iterator[str]:
    config = spec.placement
    if device == "gpu" and not cluster.gpus:
        yield (
            "placement.device: gpu, but the cluster has no GPU; start Ray where there are some, or "
            "set placement.device=cpu"
        )
    yield from _misfits(spec)
    shared_ranks = config.num_engines * config.tensor_parallel
    if time_shared and shared_ranks > config.trainer_ranks:
        yield (
            f"placement: colocated engines need {shared_ranks} GPUs (num_engines x "
            f"tensor_parallel) but the trainer has {config.trainer_ranks}; raise "
            "placement.trainer_ranks or use placement.mode=disaggregated"
        )
