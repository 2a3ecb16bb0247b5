"""Group `faults`: what a run does when a process dies or does not get on."""

from pydantic import Field

from rlstack.config.base import Frozen


class FaultsConfig(Frozen):
    """Bounds after which a process counts as stuck, and how often one is replaced."""

    max_restarts: int = Field(ge=0)
    """How often engines are replaced, and how often the run is taken up from its newest checkpoint
    after the death of another process, before it gives up."""
    answer_s: float = Field(gt=0)
    """Seconds within which every process answers a question that costs nothing."""
    progress_s: float = Field(gt=0)
    """Seconds within which a busy process gets on: a token, a micro-batch, a tensor."""
    start_s: float = Field(gt=0)
    """Seconds that a process may take to start and load its model."""
