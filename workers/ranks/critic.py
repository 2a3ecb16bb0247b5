"""The critic: a trainer rank that estimates the value of the state before every token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlstack.algorithms.catalog import critic_loss
from rlstack.batch import CriticBatch, TokenBatch
from rlstack.config.critic import CriticConfig
from rlstack.metrics import Metrics
from workers.models.heads import TokenValues, per_token
from workers.models.packed_rows import pack
from workers.models.scalar import load_trainable
from workers.ranks.trainer import TrainerRank


class CriticRank(TrainerRank):
    """One process of the critic."""

    role = "critic"

    def build(self) -> nn.Module:
        """A classifier with one label; a new head starts at 0, so that all values do."""
        self.model = load_trainable(self.spec.model, device=self.device, key="critic.path")
        return TokenValues(self.model)

    def values(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """This rank's row indices (int64 [N]) and their values (float32 [N, T])."""
        self.engine.eval()
        return per_token(
            self.engine, batch, self.own_microbatches(batch.lengths), device=self.device
        )

    def update(self, batch: CriticBatch, config: CriticConfig) -> Metrics:
        """One optimizer step on `batch`, of which this rank takes its share."""

        def loss_of(rows: Sequence[int]) -> tuple[Tensor, Metrics]:
            own = batch.select(torch.tensor(rows))
            packed = pack(own.token_ids, own.attention_mask, own.loss_mask).to(self.device)
            own = own.to(self.device)
            values = torch.zeros(own.loss_mask.shape, device=self.device)
            values = values.masked_scatter(own.loss_mask, self.engine(packed))
            return critic_loss(own, values, config=config)

        return self.optimize(self.own_microbatches(batch.lengths), loss_of)
