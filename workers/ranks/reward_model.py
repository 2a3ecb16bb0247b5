"""Reward models that are not trained: each process takes a share of rows.

It holds the ensemble, or under ZeRO-3 a share of it. The models and their batches are
`rewards.models.sequence_scorer`'s; this is who holds them on devices.
"""

# DeepSpeed is typed too loosely, or wrongly, for these.
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence
from itertools import chain

import deepspeed
import numpy as np
import torch
from numpy.typing import NDArray
from transformers.integrations import HfDeepSpeedConfig

from rewards.models.sequence_scorer import SequenceScorer
from workers.ranks.deepspeed_config import frozen_config
from workers.ranks.device_memory import Guest, tensors_of_engine, tensors_of_module
from workers.ranks.rendezvous import ProcessGroup
from workers.specs import RewardModelSpec


class RewardModelRank:
    """One process of the group."""

    def __init__(self, spec: RewardModelSpec, *, rank: int) -> None:
        self.spec = spec
        self.mesh = spec.mesh(rank)
        self.models: list[SequenceScorer] = []

    def start(self) -> None:
        """Load the models.

        Raises:
            RewardError: if a checkpoint cannot serve.
        """
        torch.set_num_threads(self.spec.threads)
        self.device = torch.device("cpu" if self.spec.device == "cpu" else "cuda:0")
        self.models = [
            SequenceScorer(
                checkpoint,
                max_tokens=self.spec.role.max_tokens,
                max_tokens_per_batch=self.spec.role.max_tokens_per_batch,
                special_tokens=self.spec.role.special_tokens,
                device=str(self.device),
                dtype=self.spec.role.dtype,
            )
            for checkpoint in self.spec.role.checkpoints
        ]
        self._settle()

    def _settle(self) -> None:
        """Leave the models on the device, or beside it."""
        self.guest = Guest(
            lambda: chain.from_iterable(tensors_of_module(model.model) for model in self.models),
            device=self.device,
            is_guest=self.spec.is_guest,
        )

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """Raw scores, float64 [M, N], of M models and N responses."""
        with self.guest.present():
            scores = [model.score(model.token_ids(prompts, responses)) for model in self.models]
        return np.array(scores).reshape(len(self.models), len(responses))


class ShardedRewardModelRank(RewardModelRank):
    """One process of a group of which none holds a model whole: DeepSpeed's ZeRO-3."""

    def __init__(self, spec: RewardModelSpec, *, rank: int) -> None:
        super().__init__(spec, rank=rank)
        self.process_group = ProcessGroup(mesh=self.mesh, device=spec.device)
        self._config = frozen_config(spec.role.dtype)

    def start(self) -> None:
        """Load a share of the models, once all ranks have joined.

        Raises:
            RewardError: if a checkpoint cannot serve.
        """
        # Must outlive loading: from_pretrained shards each weight as it is read.
        self._zero3_loading = HfDeepSpeedConfig(self._config)
        super().start()

    def _settle(self) -> None:
        for model in self.models:
            model.share_model(
                lambda module: deepspeed.initialize(model=module, config=self._config)[0],
                self._most_passes,
            )
        self.guest = Guest(
            lambda: chain.from_iterable(tensors_of_engine(model.model) for model in self.models),
            device=self.device,
            is_guest=self.spec.is_guest,
        )

    def _most_passes(self, own: int) -> int:
        """Of any rank: in each they gather the parameters together."""
        most = torch.tensor(own, device=self.device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most)
