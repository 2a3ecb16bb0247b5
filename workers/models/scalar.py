"""Models that say one number of a token or of a whole row, as they are trained."""

# torch, peft and DeepSpeed are typed too loosely for these.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlstack.config.model import ModelConfig
from workers.models.heads import TokenValues
from workers.models.packed_rows import PackedRows
from workers.models.pretrained import load_scalar_model
from workers.models.zero import gathered


def load_trainable(config: ModelConfig, *, device: torch.device, key: str) -> PreTrainedModel:
    """A classifier with one label; a new head starts at 0, so that all its values do.

    key: the configuration key that names the path.

    Raises:
        ConfigError: if the path holds neither such a classifier nor a causal model.
    """
    model, new_head = load_scalar_model(config, device=device, key=key)
    if new_head:
        with gathered([model.score.weight], write=True):
            nn.init.zeros_(model.score.weight)
    return model


class RowScores(nn.Module):
    """A sequence classifier with one label that scores whole rows, and attributes beside them.

    score = the classifier's + weights . features. The attributes' weights start at 0.
    """

    def __init__(self, model: PreTrainedModel, *, num_features: int) -> None:
        super().__init__()
        self.values = TokenValues(model)
        self.feature_head = nn.Linear(num_features, 1, bias=False) if num_features else None
        if self.feature_head is not None:
            nn.init.zeros_(self.feature_head.weight)
            self.feature_head.to(model.dtype)

    def forward(self, packed: PackedRows, features: Tensor) -> Tensor:
        """Scores of B rows, float32 [B], reward units.

        packed: its `predictors` are where each row's score is read. features: float32 [B, F],
        normalised.
        """
        scores = self.values(packed)
        if self.feature_head is None:
            return scores
        return (
            scores
            + self.feature_head(features.to(self.feature_head.weight.dtype)).squeeze(1).float()
        )
