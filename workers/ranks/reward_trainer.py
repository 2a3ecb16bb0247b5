"""The reward model in training: a trainer rank that scores responses and learns from preferences.

`workers.ranks.reward_model` holds finished ones.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlstack.algorithms.preference_losses import bradley_terry, row_mean
from rlstack.batch import PairBatch
from rlstack.config.reward_model import RewardLossConfig
from rlstack.data.microbatches import plan_evaluation
from rlstack.metrics import Metrics
from workers.models.packed_rows import pack_scored
from workers.models.scalar import RowScores, load_trainable, whole
from workers.ranks.trainer import TrainerRank

FEATURE_HEAD = "feature_head.json"
"""Beside the exported model; `rewards.models.feature_head` reads it."""


class RewardModelRank(TrainerRank):
    """One process of the reward model's trainer."""

    role = "reward_model"
    module: RowScores

    def build(self) -> nn.Module:
        """A classifier with one label, and weights for the features of the data, if it has any."""
        self.model = load_trainable(self.spec.model, device=self.device, key="model.path")
        scale = self.spec.features
        self.module = RowScores(self.model, num_features=len(scale.means) if scale else 0)
        return self.module

    def update(self, batch: PairBatch, config: RewardLossConfig) -> tuple[Tensor, Tensor, Metrics]:
        """One optimizer step on `batch`, of which this rank takes its share.

        Returns its pairs (int64 [N]), the scores before the step (float32 [N, 2], chosen and
        rejected), and what was measured.
        """
        seen: list[Tensor] = []

        def loss_of(pairs: Sequence[int]) -> tuple[Tensor, Metrics]:
            scores = self._scores(batch, pairs)
            margins = config.margin_scale * batch.margins[list(pairs)].to(self.device)
            losses = bradley_terry(
                scores[:, 0],
                scores[:, 1],
                margins=margins,
                centering=config.centering,
                label_smoothing=config.label_smoothing,
            )
            seen.append(scores.detach().cpu())
            loss = row_mean(losses, num_rows=batch.num_pairs)
            return loss, Metrics.mean("reward_model/loss", float(losses.sum()), len(losses))

        plan = self.own_microbatches(batch.pair_lengths)
        metrics = self.optimize(plan, loss_of)
        return torch.tensor([pair for pairs in plan for pair in pairs]), torch.cat(seen), metrics

    def scores(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """This rank's pairs (int64 [N]) of any number, and their scores (float32 [N, 2])."""
        plan = plan_evaluation(
            batch.pair_lengths.tolist(),
            num_ranks=self.spec.num_ranks,
            max_tokens=self.spec.trainer.max_tokens_per_microbatch,
        )[self.rank]
        self.engine.eval()
        with torch.no_grad():
            parts = [self._scores(batch, pairs).cpu() for pairs, _ in plan]
        return torch.tensor([pair for pairs, _ in plan for pair in pairs]), torch.cat(parts)

    def _scores(self, batch: PairBatch, pairs: Sequence[int]) -> Tensor:
        """Scores of some pairs, float32 [N, 2], with their gradient."""
        own = batch.select_pairs(torch.tensor(pairs))
        packed = pack_scored(
            own.token_ids, own.attention_mask, pad_token_id=self.model.config.pad_token_id
        )
        features = self._normalised(own.features)
        return self.engine(packed.to(self.device), features.to(self.device)).view(-1, 2)

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
        with whole(head.weight) as weight:
            weights = weight.detach()[0].float().tolist()
        if self.rank == 0:
            text = json.dumps({"weights": weights, "means": scale.means, "stds": scale.stds})
            (directory / FEATURE_HEAD).write_text(text)
