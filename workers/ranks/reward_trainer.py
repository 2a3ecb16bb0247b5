"""The reward model in training: a trainer rank that scores responses and learns from preferences.

`workers.ranks.reward_model` holds finished ones.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from rlstack.algorithms.objectives import ModelOutput, Objective
from rlstack.batches.preferences import PairBatch
from workers.models.packed_rows import pack_scored
from workers.models.scalar import RowScores, load_trainable
from workers.models.zero import gathered
from workers.ranks.trainer import TrainerRank

FEATURE_HEAD = "feature_head.json"
"""Beside the exported model; `rewards.models.feature_head` reads it."""


class RewardTrainerRank(TrainerRank):
    """One process of the reward model's trainer."""

    role = "reward_model"
    module: RowScores

    def build(self) -> nn.Module:
        """A classifier with one label, and weights for the features of the data, if it has any."""
        self.model = load_trainable(self.spec.model, device=self.device, key="model.path")
        scale = self.spec.features
        self.module = RowScores(self.model, num_features=len(scale.means) if scale else 0)
        return self.module

    def forward(self, rows: PairBatch, objective: Objective, *, training: bool) -> ModelOutput:
        """See `TrainerRank`: the score of each row."""
        packed = pack_scored(
            rows.token_ids, rows.attention_mask, pad_token_id=self.model.config.pad_token_id
        )
        features = self._normalised(rows.features)
        return ModelOutput(values=self.engine(packed.to(self.device), features.to(self.device)))

    def _normalised(self, features: Tensor) -> Tensor:
        scale = self.spec.features
        if scale is None:
            return features
        return (features - torch.tensor(scale.means)) / torch.tensor(scale.stds)

    def export(self, directory: Path) -> None:
        """The classifier in Hugging Face format; the features' weights beside it, as JSON."""
        super().export(directory)
        scale, head = self.spec.features, self.module.feature_head
        if scale is None or head is None:
            return
        with gathered([head.weight]):
            weights = head.weight.detach()[0].float().tolist()
        if self.mesh.rank == 0:
            text = json.dumps({"weights": weights, "means": scale.means, "stds": scale.stds})
            (directory / FEATURE_HEAD).write_text(text)
