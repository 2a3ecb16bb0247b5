"""Where a process stands among those of its role; pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A rank's place: which share of the rows it has, and which part of their tokens.

    Ranks that share rows (sequence parallelism) are neighbours.
    """

    data_parallel_rank: int
    data_parallel_size: int
    sequence_parallel_rank: int = 0
    sequence_parallel_size: int = 1

    def __post_init__(self) -> None:
        for rank, size in (
            (self.data_parallel_rank, self.data_parallel_size),
            (self.sequence_parallel_rank, self.sequence_parallel_size),
        ):
            if not 0 <= rank < size:
                raise ValueError(f"Mesh: there is no rank {rank} among {size}")

    @classmethod
    def of_rank(cls, rank: int, *, world_size: int, sequence_parallel_size: int = 1) -> "Mesh":
        """The place of the process with the global `rank`.

        Raises:
            ValueError: if the processes cannot be dealt out, or there is no such rank.
        """
        data_parallel_size, left_over = divmod(world_size, sequence_parallel_size)
        if left_over:
            raise ValueError(
                f"Mesh: {world_size} ranks are no multiple of {sequence_parallel_size}, the ranks "
                "that share rows"
            )
        data_parallel_rank, sequence_parallel_rank = divmod(rank, sequence_parallel_size)
        return cls(
            data_parallel_rank=data_parallel_rank,
            data_parallel_size=data_parallel_size,
            sequence_parallel_rank=sequence_parallel_rank,
            sequence_parallel_size=sequence_parallel_size,
        )

    @property
    def rank(self) -> int:
        """Among all processes of the role."""
        return self.data_parallel_rank * self.sequence_parallel_size + self.sequence_parallel_rank

    @property
    def world_size(self) -> int:
        """How many processes the role has."""
        return self.data_parallel_size * self.sequence_parallel_size

    @property
    def speaks(self) -> bool:
        """Whether this rank answers for those that share its rows."""
        return self.sequence_parallel_rank == 0
