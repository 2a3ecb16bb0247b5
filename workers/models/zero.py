"""Parameters that DeepSpeed's ZeRO-3 may have sharded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import deepspeed
from torch import Tensor

from workers.progress import work


@contextmanager
def gathered(parameters: Sequence[Tensor], *, write: bool = False) -> Iterator[None]:
    """Whole parameters under any ZeRO stage; entered and left by every rank together.

    write: what rank 0 leaves in them is kept.
    """
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    rank = 0 if write else None
    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=rank, enabled=bool(sharded)):
        yield
    work.advance()
