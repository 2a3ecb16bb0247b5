"""One rank of a DeepSpeed trainer: optimizer steps, memory, checkpoints, export.

What is trained is a subclass's business, on which loss the objective's.
"""

# DeepSpeed is typed too loosely, or wrongly, for these.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportPrivateImportUsage=false

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import deepspeed
import numpy as np
import torch
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig

from rlstack.algorithms.objectives import ModelOutput, Objective, kind_of
from rlstack.algorithms.schedule import learning_rate_factor
from rlstack.batch import Rows
from rlstack.data.microbatches import plan_evaluation, plan_microbatches
from rlstack.errors import CheckpointError
from rlstack.metrics import Metrics, merge
from rlstack.seeds import Domain, derived_seed
from workers.models import lora
from workers.models.preflight import load_tokenizer
from workers.models.shard_writer import ShardWriter
from workers.models.weights import by_layer, made_whole, model_weights
from workers.ranks.deepspeed_config import deepspeed_config
from workers.ranks.rendezvous import ProcessGroup
from workers.specs import Measured, TrainerSpec


class TrainerRank:
    """One process of a trainer group; it is given whole batches and picks its own rows.

    A subclass builds the model and says what it says of rows; `objectives` has the losses.
    """

    role: ClassVar[str]
    """Under which its metrics are shown."""
    model: PreTrainedModel
    """What is trained, saved and exported."""
    trained_whole: ClassVar[tuple[str, ...]] = ("score",)
    """Children of `model`, new heads, that are trained in full beside adapters."""

    def __init__(self, spec: TrainerSpec, *, rank: int) -> None:
        self.spec = spec
        self.mesh = spec.mesh(rank)
        self.num_updates = 0
        self.process_group = ProcessGroup(mesh=self.mesh, device=spec.device)
        self.num_merges = 0
        """How often adapters were merged into the weights below them."""

    def visible_device(self) -> str:
        """This rank's GPU, as CUDA_VISIBLE_DEVICES names it on its node."""
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def start(self) -> None:
        """Build the engine, once `self.process_group` was joined."""
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

    def forward(self, rows: Any, objective: Objective, *, training: bool) -> ModelOutput:
        """What the model says of `rows`, a part of a batch on the CPU; see `ModelOutput`."""
        raise NotImplementedError

    def prepare(self, batch: Rows, objective: Objective) -> Tensor | None:
        """What the losses of all micro-batches need to know of the whole batch; see `objectives`.

        Only objectives of a policy need something.
        """
        return None

    # --- computing

    def microbatches(self, lengths: Tensor) -> Sequence[Sequence[int]]:
        """This rank's share of samples of `lengths`: the indices of each micro-batch."""
        return plan_microbatches(
            lengths.tolist(),
            data_parallel=self.mesh.data_parallel_size,
            max_tokens=self.spec.trainer.max_tokens_per_microbatch,
        )[self.mesh.data_parallel_rank]

    def evaluation(self, lengths: Tensor) -> Sequence[tuple[Sequence[int], bool]]:
        """`microbatches` of any number of samples, and whether each counts."""
        return plan_evaluation(
            lengths.tolist(),
            data_parallel=self.mesh.data_parallel_size,
            max_tokens=self.spec.trainer.max_tokens_per_microbatch,
        )[self.mesh.data_parallel_rank]

    def update(self, batch: Rows, objective: Objective) -> Measured:
        """One optimizer step on `batch`, of which this rank takes its share.

        Losses carry global denominators, so gradients are summed over micro-batches and ranks;
        DeepSpeed averages over ranks, hence the factor.
        """
        kind = kind_of(objective)
        prepared = self.prepare(batch, objective)
        plan = self.microbatches(batch.sample_lengths)
        learning_rate = self._begin_step()
        measured: list[Metrics] = []
        kept: list[Tensor] = []
        for index, samples in enumerate(plan):
            self.engine.set_gradient_accumulation_boundary(index == len(plan) - 1)
            rows = batch.select(torch.tensor(samples))
            output = self.forward(rows, objective, training=True)
            loss, metrics = kind.loss(rows.to(self.device), output, objective, prepared)
            self.engine.backward(loss * self.mesh.data_parallel_size)
            measured.append(metrics)
            if kind.keeps_values:
                kept.append(output.values.detach().cpu())
        metrics = merge(measured) + self._end_step(learning_rate)
        return _measured(metrics, plan, kept)

    def evaluate(self, batch: Rows, objective: Objective) -> Measured:
        """What is measured of any number of samples, without learning from them."""
        kind = kind_of(objective)
        prepared = self.prepare(batch, objective)
        self.engine.eval()
        measured: list[Metrics] = []
        plan: list[Sequence[int]] = []
        kept: list[Tensor] = []
        with torch.no_grad():
            for samples, counts in self.evaluation(batch.sample_lengths):
                rows = batch.select(torch.tensor(samples))
                output = self.forward(rows, objective, training=False)
                if not counts:  # another rank's: computed because sharded ranks go together
                    continue
                measured.append(kind.measure(rows.to(self.device), output, objective, prepared))
                if kind.keeps_values:
                    plan.append(samples)
                    kept.append(output.values.cpu())
        return _measured(merge(measured), plan, kept)

    def _begin_step(self) -> float:
        """Set the learning rate and the random numbers of dropout; the learning rate."""
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
            seed = derived_seed(self.spec.seed, Domain.DROPOUT, self.num_updates, self.mesh.rank)
            torch.manual_seed(seed)
        return learning_rate

    def _end_step(self, learning_rate: float) -> Metrics:
        """Let the optimizer make its step; its metrics."""
        grad_norm = self._plain_grad_norm()
        self.engine.step()
        self.num_updates += 1
        metrics = Metrics(maxima={f"memory/{self.role}_gib": self._peak_memory_gib()})
        if self.mesh.rank == 0:
            if grad_norm is None:
                grad_norm = self.engine.get_global_grad_norm()
            metrics += Metrics.of(
                {
                    f"{self.role}/grad_norm": float(grad_norm),
                    f"{self.role}/learning_rate": learning_rate,
                }
            )
        return metrics

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
                f"{directory}: no trainer state for rank {self.mesh.rank} of "
                f"{self.mesh.world_size}, ZeRO stage {self.spec.trainer.zero_stage}; "
                "resume with the layout it was saved by"
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
        writer = ShardWriter(directory) if self.mesh.rank == 0 else None
        weights = model_weights(self.model, merged=True)
        for names in by_layer(weights):
            with made_whole([weights[name] for name in names]) as tensors:
                if writer is not None:
                    writer.add({name: tensor.cpu().clone() for name, tensor in tensors.items()})
        if writer is not None:
            writer.finish()
            self.model.config.save_pretrained(directory)
            if self.model.can_generate() and self.model.generation_config is not None:
                self.model.generation_config.save_pretrained(directory)
            load_tokenizer(self.spec.model).save_pretrained(directory)
        if self.spec.trainer.lora is not None and self.num_merges == 0:
            tensors = lora.trained_tensors(self.model)
            if self.mesh.rank == 0:
                (directory / "adapter").mkdir(exist_ok=True)
                for name, contents in lora.adapter_files(self.model, tensors).items():
                    (directory / "adapter" / name).write_bytes(contents)


def _measured(metrics: Metrics, plan: Sequence[Sequence[int]], kept: list[Tensor]) -> Measured:
    """kept: the values of each micro-batch of `plan`, or nothing."""
    return Measured(
        metrics=metrics,
        samples=torch.tensor([s for samples in plan for s in samples if kept], dtype=torch.int64),
        values=torch.cat([torch.zeros(0), *kept]),
    )
