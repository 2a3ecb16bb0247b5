"""A reference that no rank holds whole: DeepSpeed's ZeRO-3, without an optimizer."""

# DeepSpeed is typed too loosely, or wrongly, for these.
# pyright: reportPrivateImportUsage=false

import deepspeed
from torch import Tensor
from transformers.integrations import HfDeepSpeedConfig

from rlstack.batch import TokenBatch
from workers.ranks.deepspeed_config import frozen_config
from workers.ranks.device_memory import Guest, tensors_of_engine
from workers.ranks.reference import ReferenceRank
from workers.ranks.rendezvous import ProcessGroup
from workers.specs import ReferenceSpec


class ShardedReferenceRank(ReferenceRank):
    """One process of the group: holds a share of the parameters, takes a share of the rows."""

    def __init__(self, spec: ReferenceSpec, *, rank: int) -> None:
        super().__init__(spec, rank=rank)
        self.process_group = ProcessGroup(mesh=self.mesh, device=spec.device)
        self._config = frozen_config(
            spec.role.model.dtype, offload_parameters=spec.role.config.offload_parameters
        )

    def start(self) -> None:
        """Load this rank's share, once `self.process_group` was joined."""
        # Must outlive loading: from_pretrained shards each weight as it is read.
        self._zero3_loading = HfDeepSpeedConfig(self._config)
        super().start()

    def _settle(self) -> None:
        self.engine, *_ = deepspeed.initialize(model=self.module, config=self._config)
        self.guest = Guest(
            lambda: tensors_of_engine(self.engine),
            device=self.device,
            is_guest=self.spec.is_guest,
        )

    def logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """See `ReferenceRank`; called on every rank at the same time."""
        with self.guest.present():
            return self._logprobs(self.engine, batch)
