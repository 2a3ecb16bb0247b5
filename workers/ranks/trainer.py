"""One rank of a DeepSpeed trainer: optimizer steps, memory, checkpoints, export.

What is trained, on which loss, is a subclass's business.
"""

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import deepspeed
import numpy as np
import torch
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig

from rlstack.algorithms.schedule import learning_rate_factor
from rlstack.data.microbatches import plan_microbatches
from rlstack.errors import CheckpointError
from rlstack.metrics import Metrics, merge
from rlstack.seeds import Domain, derived_seed
from workers.models import lora
from workers.models.preflight import load_tokenizer
from workers.models.shard_writer import ShardWriter
from workers.models.weights import by_layer, model_weights, whole
from workers.ranks.deepspeed_config import deepspeed_config
from workers.ranks.rendezvous import Meeting
from workers.specs import TrainerSpec

MicrobatchLoss = Callable[[Sequence[int]], tuple[Tensor, Metrics]]


class TrainerRank:
    """One process of a trainer group; it is given whole batches and picks its own rows.

    A subclass builds the model and its losses.
    """

    role: ClassVar[str]
    """Under which its metrics are shown."""
    model: PreTrainedModel
    """What is trained, saved and exported."""
    trained_whole: ClassVar[tuple[str, ...]] = ("score",)
    """Children of `model`, new heads, that are trained in full beside adapters."""

    def __init__(self, spec: TrainerSpec, *, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        self.num_updates = 0
        self.meeting = Meeting(rank=rank, num_ranks=spec.num_ranks, device=spec.device)
        self.num_merges = 0
        """How often adapters were merged into the weights below them."""

    def visible_device(self) -> str:
        """This rank's GPU, as CUDA_VISIBLE_DEVICES names it on its node."""
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def start(self) -> None:
        """Build the engine, once `self.meeting` was joined."""
        spec = self.spec
        torch.set_num_threads(spec.threads)
        random.seed(spec.seed)
        np.random.seed(spec.seed)
        torch.manual_seed(spec.seed)
        self.device = torch.device("cpu" if spec.device == "cpu" else "cuda:0")
        ds_config = deepspeed_config(spec.model, spec.trainer)
        # Must outlive loading: under ZeRO-3 from_pretrained shards each weight as it is read.
        self._zero3_loading = HfDeepSpeedConfig(ds_config) if spec.trainer.zero_stage == 3 else None
        module = self.build()
        if spec.trainer.lora is not None:
            torch.manual_seed(spec.seed)  # loading may have drawn numbers, on some ranks
            lora.adapt(self.model, spec.trainer.lora, whole=self.trained_whole)
        if spec.trainer.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.engine, *_ = deepspeed.initialize(
            model=module, model_parameters=trained, config=ds_config
        )

    def build(self) -> nn.Module:
        """Load `self.model`; the module around it whose output is trained on."""
        raise NotImplementedError

    # --- computing

    def own_microbatches(self, lengths: Tensor) -> Sequence[Sequence[int]]:
        """This rank's share of a batch with rows of `lengths`: row indices of each micro-batch."""
        return plan_microbatches(
            lengths.tolist(),
            num_ranks=self.spec.num_ranks,
            max_tokens=self.spec.trainer.max_tokens_per_microbatch,
        )[self.rank]

    def optimize(self, microbatches: Sequence[Sequence[int]], loss_of: MicrobatchLoss) -> Metrics:
        """One optimizer step: `loss_of(rows)` of every micro-batch, accumulated.

        Losses carry global denominators, so gradients are summed over micro-batches and ranks;
        DeepSpeed averages over ranks, hence the factor.
        """
        factor = learning_rate_factor(
            self.num_updates,
            name=self.spec.trainer.schedule.name,
            warmup_updates=self.spec.trainer.schedule.warmup_updates,
            total_updates=self.spec.total_updates,
            min_ratio=self.spec.trainer.schedule.min_ratio,
        )
        learning_rate = self.spec.trainer.learning_rate * factor
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.train()
        if self.spec.trainer.lora is not None and self.spec.trainer.lora.dropout > 0:
            # Each rank drops others, and the same ones after a resume, which brings back no more
            # than the random numbers of rank 0.
            seed = derived_seed(self.spec.seed, Domain.DROPOUT, self.num_updates, self.rank)
            torch.manual_seed(seed)
        parts = []
        for index, rows in enumerate(microbatches):
            self.engine.set_gradient_accumulation_boundary(index == len(microbatches) - 1)
            loss, metrics = loss_of(rows)
            self.engine.backward(loss * self.spec.num_ranks)
            parts.append(metrics)
        grad_norm = self._plain_grad_norm()
        self.engine.step()
        self.num_updates += 1
        measured = merge(parts)
        if self.rank == 0:
            measured += Metrics.of(
                {
                    f"{self.role}/grad_norm": float(
                        self.engine.get_global_grad_norm() if grad_norm is None else grad_norm
                    ),
                    f"{self.role}/learning_rate": learning_rate,
                }
            )
        return measured + Metrics(maxima={f"memory/{self.role}_gib": self._peak_memory_gib()})

    def _plain_grad_norm(self) -> Tensor | None:
        """The norm before clipping where DeepSpeed does not keep it: in fp32 without ZeRO."""
        if self.spec.trainer.zero_stage > 0 or self.spec.model.dtype != "float32":
            return None
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _peak_memory_gib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
        return 0.0

    def merge_adapters(self) -> None:
        """Merge the adapters into the weights below them and go on with fresh ones.

        The model says the same as before, up to the rounding of merged weights to its dtype; the
        optimizer has forgotten its moments.

        Raises:
            ValueError: if the model has no adapters.
        """
        if self.spec.trainer.lora is None:
            raise ValueError("merge_adapters: trainer.lora is null, there is nothing to merge")
        self.num_merges += 1
        lora.merge(self.model, seed=derived_seed(self.spec.seed, Domain.ADAPTERS, self.num_merges))
        if hasattr(self.engine.optimizer, "refresh_fp32_params"):
            self.engine.optimizer.refresh_fp32_params()
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """Forget the moments of the gradients; the learning rate goes on as scheduled."""
        inner = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        for state in inner.state.values():
            for moment in state.values():
                moment.zero_()

    # --- memory

    def offload(self) -> None:
        """Move parameters, gradients and optimizer state to host memory."""
        self.engine.offload_states(device=OffloadDeviceEnum.cpu)
        torch.cuda.empty_cache()

    def reload(self) -> None:
        """Undo `offload`."""
        self.engine.reload_states()

    # --- disk

    def save(self, directory: Path) -> None:
        """Weights, optimizer, update count and RNG of this rank, under `directory`."""
        client_state = {
            "num_updates": self.num_updates,
            "num_merges": self.num_merges,
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": np.random.get_state(),
            "python_rng": random.getstate(),
        }
        self.engine.save_checkpoint(
            str(directory),
            tag="state",
            client_state=client_state,
            # Weights below adapters are those of the model's own files until the first merge.
            exclude_frozen_parameters=self.spec.trainer.lora is not None and self.num_merges == 0,
        )

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            CheckpointError: if the files are missing or were written by another layout.
        """
        path, client_state = self.engine.load_checkpoint(
            str(directory), tag="state", load_module_strict=self.spec.trainer.lora is None
        )
        if path is None:
            raise CheckpointError(
                f"{directory}: no trainer state for rank {self.rank} of {self.spec.num_ranks}, "
                f"ZeRO stage {self.spec.trainer.zero_stage}; resume with the layout it was saved by"
            )
        if self.num_merges and not client_state["num_merges"]:
            raise CheckpointError(
                f"{directory}: was saved before adapters were merged and holds no other weights; "
                "resume from it in a new process"
            )
        self.num_updates = client_state["num_updates"]
        self.num_merges = client_state["num_merges"]
        torch.set_rng_state(client_state["torch_rng"])
        np.random.set_state(client_state["numpy_rng"])
        random.setstate(client_state["python_rng"])

    def export(self, directory: Path) -> None:
        """Write the model in Hugging Face format; rank 0 writes, the others help to gather.

        Adapters are merged into its weights. Unmerged they are written too, for peft, to the folder
        `adapter`, as long as they are on the model that training began with.
        """
        # Every rank iterates: gathering a sharded layer takes them all.
        writer = ShardWriter(directory) if self.rank == 0 else None
        weights = model_weights(self.model, merged=True)
        for names in by_layer(weights):
            with whole([weights[name] for name in names]) as tensors:
                if writer is not None:
                    writer.add({n: t.cpu().clone() for n, t in zip(names, tensors, strict=True)})
        if writer is not None:
            writer.finish()
            self.model.config.save_pretrained(directory)
            if self.model.can_generate() and self.model.generation_config is not None:
                self.model.generation_config.save_pretrained(directory)
            load_tokenizer(self.spec.model).save_pretrained(directory)
        if self.spec.trainer.lora is not None and self.num_merges == 0:
            tensors = lora.trained_tensors(self.model)
            if self.rank == 0:
                (directory / "adapter").mkdir(exist_ok=True)
                for name, contents in lora.adapter_files(self.model, tensors).items():
                    (directory / "adapter" / name).write_bytes(contents)
