"""The policy: a trainer rank that computes logprobs, learns from them, and sends its weights."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor, nn

from rlstack.algorithms.objectives import ModelOutput, Objective, kind_of
from rlstack.algorithms.preference_losses import sequence_logprobs
from rlstack.batch import Rows, TokenBatch
from rlstack.planning.phases import Transport
from workers.models.heads import TokenLogprobs, batch_values, token_values
from workers.models.lora import adapters_disabled
from workers.models.pretrained import load_causal_model
from workers.models.weights import whole_layers
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

    def forward(self, rows: Rows, objective: Objective, *, training: bool) -> ModelOutput:
        """See `TrainerRank`."""
        kind = kind_of(objective)
        greedy = kind.measures_greedy and not training
        logprobs, statistic = self._token_values(
            rows, entropy_gradient=kind.needs_entropy_gradient(objective), greedy=greedy
        )
        if greedy:
            return ModelOutput(values=logprobs, greedy=statistic)
        return ModelOutput(values=logprobs, entropy=statistic)

    def logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """This rank's row indices (int64 [N]) and their logprobs (float32 [N, T])."""
        self.engine.eval()
        plan = self.microbatches(batch.lengths)
        return batch_values(lambda rows: self._token_values(rows)[0], batch, plan)

    def base_logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """`logprobs` of the model without its adapters: the reference, where it is trained so."""
        with adapters_disabled(self.model):
            return self.logprobs(batch)

    def response_logprobs(self, batch: Rows) -> tuple[Tensor, Tensor]:
        """This rank's row indices (int64 [N]) and their responses' logprobs (float32 [N], sums).

        Any number of rows; the sums are over the loss tokens.
        """
        self.engine.eval()
        indices: list[int] = []
        sums: list[Tensor] = []
        with torch.no_grad():
            for rows, counts in self.evaluation(batch.lengths):
                part = batch.select(torch.tensor(rows))
                logprobs, _ = self._token_values(part)
                if counts:
                    mask = part.loss_mask.to(self.device)
                    indices += rows
                    sums.append(sequence_logprobs(logprobs, mask, average=False).cpu())
        return torch.tensor(indices, dtype=torch.int64), torch.cat([torch.zeros(0), *sums])

    def prepare(self, batch: Rows, objective: Objective) -> Tensor | None:
        """See `TrainerRank`."""
        prepare = kind_of(objective).prepare
        return None if prepare is None else prepare(batch, self._response_logprobs_of_all_ranks)

    def _response_logprobs_of_all_ranks(self, rows: Rows) -> Tensor:
        """Float32 [B], nats, on this rank's device; every rank takes part."""
        indices, sums = self.response_logprobs(rows)
        everywhere = torch.zeros(rows.num_rows)
        if self.mesh.speaks:
            everywhere[indices] = sums
        everywhere = everywhere.to(self.device)
        torch.distributed.all_reduce(everywhere)
        return everywhere

    def _token_values(
        self, rows: Rows, *, entropy_gradient: bool = False, greedy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Logprobs, and entropy or whether greedy: float32 [B, T], 0 where not loss_mask."""
        forward = partial(
            self.engine,
            temperature=self.spec.temperature,
            entropy_gradient=entropy_gradient,
            greedy=greedy,
        )
        logprobs, statistic = token_values(forward, rows, device=self.device)
        return logprobs, statistic

    # --- weights

    def connect(
        self, transport: Transport, *, engines: list[ActorHandle], workers_per_engine: int
    ) -> None:
        """Connect to the engines, all of them anew; called on every rank at the same time."""
        from workers.transfer.sender import WeightSender

        if self.sender is not None:
            self.sender.close()
        self.sender = WeightSender(
            self.model,
            transport,
            lora=self.spec.trainer.lora,
            rank=self.mesh.rank,
            device=self.spec.device,
            base_in_engines=self.num_merges == 0,
            engines=engines,
            workers_per_engine=workers_per_engine,
        )

    def send_weights(self) -> SendReport:
        """Put the current weights into every engine; called on every rank at the same time."""
        assert self.sender is not None, "connect comes first"
        self.check_on_device()
        return self.sender.send()

    def move_reference(self, reference: list[ActorHandle], *, mix: float) -> None:
        """Mix the current weights into those of `reference`, the ranks of the same model.

        Called on every rank at the same time. Each layer is taken in everywhere before the next is
        handed on, so that no second model is held in memory.
        """
        for layer in whole_layers(self.model, keep=self.mesh.rank == 0):
            if self.mesh.rank == 0:
                tensors = ray.put(layer)
                ray.get(
                    [
                        rank.call.remote(lambda rank, new: rank.mix_in(new, alpha=mix), tensors)
                        for rank in reference
                    ]
                )

    def merge_adapters(self) -> None:
        """See `TrainerRank`."""
        super().merge_adapters()
        if self.sender is not None:
            self.sender.forget_base()

    def load(self, directory: Path) -> None:
        """See `TrainerRank`."""
        super().load(directory)
        if self.sender is not None and self.num_merges > 0:
            self.sender.forget_base()
