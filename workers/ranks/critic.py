"""The critic: a trainer rank that estimates the value of the state before every token."""

from torch import Tensor, nn

from rlstack.algorithms.objectives import ModelOutput, Objective
from rlstack.batch import Rows, TokenBatch
from workers.models.heads import TokenValues, batch_values, token_values
from workers.models.scalar import load_trainable
from workers.ranks.trainer import TrainerRank


class CriticRank(TrainerRank):
    """One process of the critic."""

    role = "critic"

    def build(self) -> nn.Module:
        """A classifier with one label; a new head starts at 0, so that all values do."""
        self.model = load_trainable(self.spec.model, device=self.device, key="critic.path")
        return TokenValues(self.model)

    def forward(self, rows: Rows, objective: Objective, *, training: bool) -> ModelOutput:
        """See `TrainerRank`."""
        return ModelOutput(values=self._values(rows))

    def values(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """This rank's row indices (int64 [N]) and their values (float32 [N, T])."""
        self.engine.eval()
        return batch_values(self._values, batch, self.microbatches(batch.lengths))

    def _values(self, rows: Rows) -> Tensor:
        return token_values(lambda packed: (self.engine(packed),), rows, device=self.device)[0]
