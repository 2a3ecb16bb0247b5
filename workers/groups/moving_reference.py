"""A reference that moves after the policy."""

from pathlib import Path

from workers.groups.ranks import PolicyGroup, ReferenceGroup


class MovingReferenceGroup:
    """Moves a reference with ranks of its own; see `rlstack.protocols.MovingReference`."""

    def __init__(self, reference: ReferenceGroup, policy: PolicyGroup) -> None:
        self.reference = reference
        self.policy = policy

    async def move(self, *, mix: float) -> None:
        """Let the policy's ranks hand their weights to those of the reference, layer by layer."""
        await self.policy.call(
            lambda rank, handles: rank.move_reference(handles, mix=mix), list(self.reference.ranks)
        )

    async def save(self, directory: Path) -> None:
        """Weights by name, the same for every number of ranks and ZeRO stage."""
        await self.reference.call(lambda rank: rank.save(directory))

    async def load(self, directory: Path) -> None:
        """Restore what `save` wrote, exactly."""
        await self.reference.call(lambda rank: rank.load(directory))
