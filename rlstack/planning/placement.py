"""Which role goes into which bundle of resources; pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from rlstack.config.placement import PlacementConfig, RolePlacement

Bundle = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The bundles to reserve, and the bundle of every rank of every role, engines included."""

    bundles: list[Bundle]
    ranks: Mapping[str, tuple[int, ...]]

    def total(self, kind: str) -> float:
        """All that is needed of a kind of resource."""
        return sum(bundle.get(kind, 0.0) for bundle in self.bundles)


def place(
    placement: PlacementConfig,
    *,
    trained: bool,
    others: Mapping[str, RolePlacement],
    engines: bool,
    device: str,
) -> Placed:
    """A bundle for each rank of the trainer; roles beside it on its devices share its bundles.

    trained: whether there is a trainer, the role `trainer`. others: further roles by name. engines:
    whether there are any, the role `engines`. Without a trainer everything has bundles of its own.
    """
    cpus = placement.cpus_per_worker
    gpu: Bundle = {"GPU": 1.0} if device == "gpu" else {}
    bundles: list[Bundle] = []
    ranks: dict[str, tuple[int, ...]] = {}
    if trained:
        bundles = [{"CPU": cpus, **gpu} for _ in range(placement.trainer_ranks)]
        ranks["trainer"] = tuple(range(len(bundles)))
    for name, role in others.items():
        num_ranks = role.ranks or placement.trainer_ranks
        if trained and role.devices == "policy":
            ranks[name] = tuple(range(num_ranks))
            for index in ranks[name]:
                bundles[index]["CPU"] += cpus
        else:
            ranks[name] = tuple(range(len(bundles), len(bundles) + num_ranks))
            bundles += [{"CPU": cpus, **gpu} for _ in range(num_ranks)]
    if engines:
        width = placement.tensor_parallel
        own = bool(gpu) and (placement.mode == "disaggregated" or not trained)
        gpus: Bundle = {"GPU": float(width)} if own else {}
        ranks["engines"] = tuple(range(len(bundles), len(bundles) + placement.num_engines))
        bundles += [{"CPU": cpus * width, **gpus} for _ in range(placement.num_engines)]
    return Placed(bundles=bundles, ranks=ranks)
