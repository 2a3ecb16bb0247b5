"""The reference policy: a frozen model that only computes logprobs."""

from functools import partial

import torch
from torch import Tensor, nn

from rlstack.batch import Rows, TokenBatch
from rlstack.data.microbatches import plan_microbatches
from workers.models.heads import TokenLogprobs, batch_values, token_values
from workers.models.pretrained import load_causal_model
from workers.ranks.device_memory import Guest, tensors_of_module
from workers.specs import ReferenceSpec


class ReferenceRank:
    """One process of the reference group: holds the whole model, takes a share of the rows."""

    def __init__(self, spec: ReferenceSpec, *, rank: int) -> None:
        self.spec = spec
        self.mesh = spec.mesh(rank)

    def start(self) -> None:
        """Load the model."""
        torch.set_num_threads(self.spec.threads)
        self.device = torch.device("cpu" if self.spec.device == "cpu" else "cuda:0")
        model = load_causal_model(self.spec.role.model, device=self.device)
        chunk_tokens = self.spec.role.logprob_chunk_tokens
        self.module = TokenLogprobs(model.eval(), chunk_tokens=chunk_tokens).requires_grad_(False)
        self._settle()

    def _settle(self) -> None:
        """Put the model onto its device, or beside it."""
        self.module.to(self.device)
        self.guest = Guest(
            lambda: tensors_of_module(self.module),
            device=self.device,
            is_guest=self.spec.is_guest,
        )

    def logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """This rank's row indices (int64 [N]) and their logprobs (float32 [N, T])."""
        with self.guest.present():
            return self._logprobs(self.module, batch)

    def _logprobs(self, module: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        # The plan has as many micro-batches for every rank: a sharded module needs all at once.
        own = plan_microbatches(
            batch.lengths.tolist(),
            data_parallel=self.mesh.data_parallel_size,
            max_tokens=self.spec.role.max_tokens_per_microbatch,
        )[self.mesh.data_parallel_rank]

        def logprobs_of(rows: Rows) -> Tensor:
            forward = partial(module, temperature=self.spec.temperature)
            return token_values(forward, rows, device=self.device)[0]

        return batch_values(logprobs_of, batch, own)
