"""Whether a cluster holds bundles; pure."""

from collections.abc import Iterator, Sequence

from rlstack.config.placement import PlacementConfig
from rlstack.errors import PlacementError
from rlstack.planning.cluster import Bundle, Cluster, Node, rounded


def total_cpus(bundles: Sequence[Bundle]) -> float:
    """Ray CPUs of all bundles."""
    return rounded(sum(bundle.cpus for bundle in bundles))


def shortages(
    config: PlacementConfig, bundles: Sequence[Bundle], cluster: Cluster
) -> Iterator[str]:
    """What the cluster has too little of, and the keys that ask for it."""
    widest = max((bundle.gpus for bundle in bundles), default=0)
    most_gpus = max(cluster.nodes, key=lambda node: node.gpus)
    if widest > most_gpus.gpus:
        yield (
            f"placement.tensor_parallel: an engine needs {widest} GPUs of one node, but the most "
            f"that one has is {most_gpus.gpus} ({most_gpus.name}); lower it"
        )
    needs: list[tuple[str, float, float]] = [
        ("GPU", sum(bundle.gpus for bundle in bundles), cluster.gpus),
        ("CPU", total_cpus(bundles), cluster.cpus),
    ]
    for kind, needed, there in needs:
        if needed > there:
            yield (
                f"placement: the roles need {needed:g} {kind}s but the cluster has "
                f"{there:g}; lower placement.trainer_ranks, placement.num_engines, "
                "placement.tensor_parallel or placement.cpus_per_worker"
            )
    for bundle in dict.fromkeys(bundles):
        most = max((n.cpus for n in cluster.nodes if n.gpus >= bundle.gpus), default=None)
        if most is not None and bundle.cpus > most:
            with_gpus = f" with {bundle.gpus} GPUs" if bundle.gpus else ""
            yield (
                f"placement.cpus_per_worker: processes that belong together need {bundle.cpus:g} "
                f"CPUs of one node{with_gpus}, but the most that one has is {most:g}; lower "
                f"placement.cpus_per_worker (it is {config.cpus_per_worker:g}) or "
                "placement.tensor_parallel"
            )


def fit(bundles: Sequence[Bundle], cluster: Cluster) -> tuple[Node, ...]:
    """A node for each bundle: the largest bundles first, on the first node that has room.

    Raises:
        PlacementError: if that leaves a bundle without one.
    """
    free = {node.name: (node.cpus, node.gpus) for node in cluster.nodes}
    chosen: dict[int, Node] = {}
    order = sorted(range(len(bundles)), key=lambda i: (-bundles[i].gpus, -bundles[i].cpus))
    for index in order:
        bundle = bundles[index]
        for node in cluster.nodes:
            cpus, gpus = free[node.name]
            if cpus >= bundle.cpus and gpus >= bundle.gpus:
                free[node.name] = (rounded(cpus - bundle.cpus), gpus - bundle.gpus)
                chosen[index] = node
                break
        else:
            left = ", ".join(f"{n}: {c:g} CPUs, {g} GPUs" for n, (c, g) in free.items())
            raise PlacementError(
                f"placement: {bundle.cpus:g} CPUs and {bundle.gpus} GPUs are needed on one node, "
                f"and after the other roles no node has them left ({left}); lower "
                "placement.tensor_parallel, placement.trainer_ranks or placement.cpus_per_worker"
            )
    return tuple(chosen[index] for index in range(len(bundles)))
