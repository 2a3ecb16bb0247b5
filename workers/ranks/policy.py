"""The policy: a trainer rank that computes logprobs, learns from them, and sends its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ray.actor import ActorHandle
from torch import Tensor, nn

from rlstack.algorithms.catalog import policy_loss
from rlstack.algorithms.reductions import token_mean
from rlstack.algorithms.supervised_losses import negative_log_likelihood
from rlstack.batch import PolicyBatch, Rows, SFTBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.data.microbatches import plan_evaluation
from rlstack.metrics import Metrics, merge
from rlstack.planning.phases import Transport
from workers.models.heads import TokenLogprobs, per_token
from workers.models.lora import adapters_disabled
from workers.models.packed_rows import PackedRows, pack
from workers.models.pretrained import load_causal_model
from workers.ranks.trainer import TrainerRank
from workers.specs import SendReport

if TYPE_CHECKING:
    from workers.transfer.sender import WeightSender


class PolicyRank(TrainerRank):
    """One process of the policy trainer."""

    role = "policy"
    sender: "WeightSender | None" = None

    def build(self) -> nn.Module:
        """A causal model that returns token logprobs."""
        self.model = load_causal_model(self.spec.model, device=self.device)
        return TokenLogprobs(self.model, chunk_tokens=self.spec.trainer.logprob_chunk_tokens)

    def forward(self, packed: PackedRows, *, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        """Logprobs and entropy of the loss tokens of `packed`, in order."""
        return self.engine(
            packed, temperature=self.spec.temperature, entropy_gradient=entropy_gradient
        )

    def logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """This rank's row indices (int64 [N]) and their logprobs (float32 [N, T])."""
        self.engine.eval()
        return per_token(
            lambda packed: self.forward(packed, entropy_gradient=False)[0],
            batch,
            self.own_microbatches(batch.lengths),
            device=self.device,
        )

    def base_logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """`logprobs` of the model without its adapters: the reference, where it is trained so."""
        with adapters_disabled(self.model):
            return self.logprobs(batch)

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

    # --- weights

    def connect(
        self, transport: Transport, *, engines: list[ActorHandle], workers_per_engine: int
    ) -> None:
        """Meet the engines, all of them anew; called on every rank at the same time."""
        from workers.transfer.sender import WeightSender

        if self.sender is not None:
            self.sender.close()
        self.sender = WeightSender(
            self, transport, engines=engines, workers_per_engine=workers_per_engine
        )

    def send_weights(self) -> SendReport:
        """Put the current weights into every engine; called on every rank at the same time."""
        assert self.sender is not None, "connect comes first"
        return self.sender.send()

    def merge_adapters(self) -> None:
        """See `TrainerRank`."""
        super().merge_adapters()
        if self.sender is not None:
            self.sender.base_in_engines = False

    def load(self, directory: Path) -> None:
        """See `TrainerRank`."""
        super().load(directory)
        if self.sender is not None:
            self.sender.base_in_engines = self.num_merges == 0
