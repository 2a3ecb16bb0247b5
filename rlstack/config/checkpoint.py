"""Group `checkpoint` of every training command."""

from pydantic import Field

from rlstack.config.base import Frozen


class CheckpointConfig(Frozen):
    """Run state on disk; `keep_best` names an evaluation metric whose best step is kept too."""

    every: int = Field(ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep_last: int = Field(ge=1)
    keep_best: str | None
    export: bool
    """Also write the final policy in Hugging Face format, to RUN_DIR/export."""
