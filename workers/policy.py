"""The policy: a trainer rank that computes logprobs, takes policy-gradient and supervised steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlstack.algorithms.catalog import policy_loss
from rlstack.batch import PolicyBatch, SFTBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.metrics import Metrics
from workers.model import pack, token_logprobs
from workers.trainer import TrainerRank


class PolicyRank(TrainerRank):
    """One process of the policy trainer."""

    def logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """This rank's row indices (int64 [N]) and their logprobs (float32 [N, T])."""
        self.engine.eval()
        return token_logprobs(
            self.engine,
            batch,
            self.own_microbatches(batch.lengths),
            temperature=self.spec.temperature,
            device=self.device,
        )

    def update(self, batch: PolicyBatch, algorithm: AlgorithmConfig) -> Metrics:
        """One optimizer step on `batch`, of which this rank takes its share."""

        def loss_of(rows: Sequence[int]) -> tuple[Tensor, Metrics]:
            own = batch.select(torch.tensor(rows))
            logprobs, entropy = self._token_values(own, entropy_gradient=algorithm.entropy_coef > 0)
            return policy_loss(own.to(self.device), logprobs, entropy, config=algorithm)

        return self.optimize(self.own_microbatches(batch.lengths), loss_of)

    def update_supervised(self, batch: SFTBatch) -> Metrics:
        """One optimizer step on demonstrations: mean negative log-likelihood of the loss tokens."""

        def loss_of(rows: Sequence[int]) -> tuple[Tensor, Metrics]:
            own = torch.tensor(rows)
            packed = pack(batch.token_ids[own], batch.attention_mask[own], batch.loss_mask[own])
            packed = packed.to(self.device)
            logprobs, _ = self.forward(packed, entropy_gradient=False)
            total = -logprobs.sum()
            metrics = Metrics.mean("sft/loss", float(total), len(logprobs))
            return total / batch.num_loss_tokens, metrics

        return self.optimize(self.own_microbatches(batch.lengths), loss_of)

    def _token_values(self, batch: TokenBatch, *, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        """Logprobs and entropy as float32 [B, T], 0 where loss_mask is False."""
        packed = pack(batch.token_ids, batch.attention_mask, batch.loss_mask).to(self.device)
        logprobs, entropy = self.forward(packed, entropy_gradient=entropy_gradient)
        mask = batch.loss_mask.to(self.device)
        zeros = torch.zeros(mask.shape, device=self.device)
        return zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropy)
