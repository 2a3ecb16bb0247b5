"""The policy: a trainer rank that computes logprobs, takes policy-gradient and supervised steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlstack.algorithms.catalog import policy_loss
from rlstack.algorithms.reductions import token_mean
from rlstack.algorithms.supervised_losses import negative_log_likelihood
from rlstack.batch import PolicyBatch, Rows, SFTBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.data.packing import plan_evaluation
from rlstack.metrics import Metrics, merge
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
            own = batch.select(torch.tensor(rows))
            logprobs, _ = self._token_values(own, entropy_gradient=False)
            own = own.to(self.device)
            losses = negative_log_likelihood(logprobs, own.loss_mask)
            metrics = Metrics.mean("sft/loss", float(losses.sum()), float(own.loss_mask.sum()))
            return token_mean(losses, own.loss_mask, num_loss_tokens=batch.num_loss_tokens), metrics

        return self.optimize(self.own_microbatches(batch.lengths), loss_of)

    def evaluate_supervised(self, batch: SFTBatch) -> Metrics:
        """`eval/loss` (nats per token), and `eval/token_accuracy` of the likeliest tokens."""
        self.engine.eval()
        plan = plan_evaluation(
            batch.lengths.tolist(),
            num_ranks=self.spec.num_ranks,
            max_tokens=self.spec.trainer.max_tokens_per_microbatch,
        )
        parts: list[Metrics] = []
        with torch.no_grad():
            for rows, counts in plan[self.rank]:
                own = batch.select(torch.tensor(rows))
                packed = pack(own.token_ids, own.attention_mask, own.loss_mask).to(self.device)
                logprobs, greedy = self.engine(
                    packed, temperature=self.spec.temperature, greedy=True
                )
                if counts:
                    loss = Metrics.mean("eval/loss", -float(logprobs.sum()), len(logprobs))
                    right = Metrics.mean("eval/token_accuracy", float(greedy.sum()), len(greedy))
                    parts += [loss, right]
        return merge(parts)

    def _token_values(self, batch: Rows, *, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        """Logprobs and entropy as float32 [B, T], 0 where loss_mask is False."""
        packed = pack(batch.token_ids, batch.attention_mask, batch.loss_mask).to(self.device)
        logprobs, entropy = self.forward(packed, entropy_gradient=entropy_gradient)
        mask = batch.loss_mask.to(self.device)
        zeros = torch.zeros(mask.shape, device=self.device)
        return zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropy)
