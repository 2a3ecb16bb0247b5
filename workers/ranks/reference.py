"""The reference policy: a frozen model that only computes logprobs."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rlstack.algorithms.reference_updates import mix
from rlstack.batch import Rows, TokenBatch
from rlstack.data.microbatches import plan_microbatches
from rlstack.errors import CheckpointError, ConfigError
from workers.models.heads import TokenLogprobs, batch_values, token_values
from workers.models.pretrained import load_causal_model
from workers.models.shard_writer import write_weights
from workers.models.zero import gathered
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
        self.model = load_causal_model(self.spec.role.model, device=self.device).eval()
        chunk_tokens = self.spec.role.logprob_chunk_tokens
        self.module = TokenLogprobs(self.model, chunk_tokens=chunk_tokens).requires_grad_(False)
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

    # --- weights; under ZeRO-3 all ranks are called at the same time

    def mix_in(self, policy: Mapping[str, Tensor], *, alpha: float) -> None:
        """Move the weights of these names towards the policy's; see `mix`.

        Raises:
            ConfigError: if the model has others.
        """
        held = dict(self.model.named_parameters())
        if unknown := policy.keys() - held.keys():
            raise ConfigError(
                f"reference.update.every: {min(unknown)} of the model's checkpoint is no tensor of "
                "its own in memory, as in mixtures of experts; set it to null for this model"
            )
        own = {name: held[name] for name in policy}
        with self.guest.present(changes=True), gathered(list(own.values()), write=True):
            for name, weight in own.items():
                weight.copy_(mix(weight, policy[name].to(weight.device), alpha=alpha))

    def save(self, directory: Path) -> None:
        """Write the weights by name; rank 0 does."""
        with self.guest.present():
            write_weights(self.model, directory, writes=self.mesh.rank == 0)

    def load(self, directory: Path) -> None:
        """Take back what `save` wrote.

        Raises:
            CheckpointError: if it is not there, or is that of another model.
        """
        own, found = dict(self.model.named_parameters()), set[str]()
        with self.guest.present(changes=True):
            for file in sorted(directory.glob("*.safetensors")):
                with safe_open(file, framework="pt") as tensors:
                    for name in sorted(own.keys() & tensors.keys()):
                        with gathered([own[name]], write=True):
                            own[name].copy_(tensors.get_tensor(name))
                        found.add(name)
        if missing := own.keys() - found:
            raise CheckpointError(
                f"{directory}: {len(missing)} of {len(own)} weights of the reference are missing, "
                f"among them {min(missing)}; resume from a whole checkpoint of this run"
            )
