"""A reference that no rank holds whole: DeepSpeed's ZeRO-3, without an optimizer."""

# DeepSpeed is typed too loosely, or wrongly, for these.
# pyright: reportPrivateImportUsage=false

import deepspeed
from torch import Tensor
from transformers.integrations import HfDeepSpeedConfig

from rlstack.batch import TokenBatch
from workers.ranks.deepspeed_config import frozen_config
from workers.ranks.reference import ReferenceRank
from workers.ranks.rendezvous import ProcessGroup
from workers.specs import ReferenceSpec


class ShardedReferenceRank(ReferenceRank):
    """One process of the group: holds a share of the parameters, takes a share of the rows."""

    def __init__(self, spec: ReferenceSpec, *, rank: int) -> None:
        super().__init__(spec, rank=rank)
        self.process_group = ProcessGroup(mesh=self.mesh, device=spec.device)

    def start(self) -> None:
        """Load this rank's share, once `self.process_group` was joined."""
        role = self.spec.role
        config = frozen_config(role.model.dtype, offload_parameters=role.config.offload_parameters)
        # Must outlive loading: from_pretrained shards each weight as it is read.
        self._zero3_loading = HfDeepSpeedConfig(config)
        super().start()
        self.engine, *_ = deepspeed.initialize(model=self.module, config=config)

    def logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """See `ReferenceRank`; called on every rank at the same time."""
        return self._logprobs(self.engine, batch)
