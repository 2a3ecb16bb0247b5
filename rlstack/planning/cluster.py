"""What a cluster has and what is reserved of it, as data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of a cluster."""

    name: str
    """No other node's."""
    cpus: float
    """Ray CPUs that can be reserved; more than there are cores where roles take turns."""
    gpus: int
    cores: int
    """What threads run on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The machines that can run roles, the head first."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """Ray CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Resources of one node that are reserved together."""

    cpus: float
    gpus: int


def rounded(cpus: float) -> float:
    """To what Ray counts in, so that 30 x 0.1 is 3."""
    return round(cpus, 4)
