"""One rank of a DeepSpeed trainer: model, optimizer, checkpoints, and the sending of weights.

What is trained (policy loss, supervised loss) is a subclass's business.
"""

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import ray
import torch
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
from ray.actor import ActorHandle
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import TCPStore
from transformers.integrations import HfDeepSpeedConfig
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.utils.network_utils import get_open_port

from rlstack.algorithms.schedule import learning_rate_factor
from rlstack.data.packing import plan_microbatches
from rlstack.errors import CheckpointError
from rlstack.metrics import Metrics, merge
from rlstack.planning.phases import Transport
from workers import transports
from workers.deepspeed_config import deepspeed_config
from workers.model import PackedRows, TokenLogprobs, load_causal_model, load_tokenizer
from workers.specs import SendReport, TrainerSpec
from workers.transfer import EngineClient, SendingEngine
from workers.transfer_gloo import GlooTrainerInit
from workers.transfer_shared_memory import SharedMemoryTrainerInit
from workers.weight_source import DeepSpeedSource

SHARD_BYTES = 4 * 2**30


MicrobatchLoss = Callable[[Sequence[int]], tuple[Tensor, Metrics]]


class TrainerRank:
    """One process of a trainer group; it is given whole batches and picks its own rows."""

    def __init__(self, spec: TrainerSpec, *, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        self.num_updates = 0
        self.sender: TrainerWeightTransferEngine[Any] | None = None

    def visible_device(self) -> str:
        """This rank's GPU, as CUDA_VISIBLE_DEVICES names it on its node."""
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def rendezvous(self) -> tuple[str, int]:
        """Open the store that the group meets at; address and port. Called on rank 0 only."""
        address = ray.util.get_node_ip_address()
        # Port 0: the system picks one that is free, and this process keeps it.
        self.store = TCPStore(address, 0, self.spec.num_ranks, True, wait_for_workers=False)
        return address, self.store.port

    def start(self, *, address: str, port: int) -> None:
        """Join the group and build the engine."""
        spec = self.spec
        torch.set_num_threads(spec.threads)
        os.environ |= {
            "RANK": str(self.rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(spec.num_ranks),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        if self.rank != 0:
            self.store = TCPStore(address, port, spec.num_ranks, False)
        backend = "gloo" if spec.device == "cpu" else "nccl"
        torch.distributed.init_process_group(
            backend, store=self.store, rank=self.rank, world_size=spec.num_ranks
        )
        if spec.device == "cpu":
            # DeepSpeed would compile C++ here, half a minute the first time, for inference only.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
        random.seed(spec.seed)
        np.random.seed(spec.seed)
        torch.manual_seed(spec.seed)
        self.device = torch.device("cpu" if spec.device == "cpu" else "cuda:0")
        ds_config = deepspeed_config(spec.model, spec.trainer)
        # Must outlive loading: under ZeRO-3 from_pretrained shards each weight as it is read.
        self._zero3_loading = HfDeepSpeedConfig(ds_config) if spec.trainer.zero_stage == 3 else None
        self.model = load_causal_model(spec.model, device=self.device)
        if spec.trainer.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        module = TokenLogprobs(self.model, chunk_tokens=spec.trainer.logprob_chunk_tokens)
        self.engine, *_ = deepspeed.initialize(
            model=module, model_parameters=module.parameters(), config=ds_config
        )
        tied = self.model.config.tie_word_embeddings
        self.source = DeepSpeedSource(
            self.model, tied_output="lm_head.weight" if tied and spec.device == "cpu" else None
        )

    # --- computing

    def forward(self, packed: PackedRows, *, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        """Logprobs and entropy of the loss tokens of `packed`, in order."""
        return self.engine(
            packed, temperature=self.spec.temperature, entropy_gradient=entropy_gradient
        )

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
                    "policy/grad_norm": float(
                        self.engine.get_global_grad_norm() if grad_norm is None else grad_norm
                    ),
                    "policy/learning_rate": learning_rate,
                }
            )
        return measured + Metrics(maxima={"memory/trainer_gib": self._peak_memory_gib()})

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

    # --- weights

    def connect(
        self, transport: Transport, *, engines: list[ActorHandle], workers_per_engine: int
    ) -> None:
        """Meet the engines, all of them anew; called on every rank at the same time."""
        if self.sender is not None:
            self.sender.shutdown()
        transports.register()
        self.sender = WeightTransferTrainerFactory.trainer_init(
            self._transfer_info(transport, num_workers=len(engines) * workers_per_engine),
            client=EngineClient(engines, workers_per_engine=workers_per_engine),
            source=self.source,
        )

    def _transfer_info(self, transport: Transport, *, num_workers: int) -> TrainerInitInfo:
        match transport:
            case Transport.SHARED_MEMORY:
                return SharedMemoryTrainerInit(rank=self.rank)
            case Transport.GLOO:
                host = ray.util.get_node_ip_address()
                return GlooTrainerInit(rank=self.rank, num_workers=num_workers, host=host)
            case Transport.CUDA_IPC:
                return IPCTrainerInitInfo(rank=self.rank, packed=True)
            case Transport.NCCL:
                return NCCLTrainerInitInfo(
                    rank=self.rank,
                    master_address=ray.util.get_node_ip_address(),
                    master_port=get_open_port(),
                    world_size=num_workers + 1,
                )

    def send_weights(self) -> SendReport:
        """Put the current weights into every engine; called on every rank at the same time."""
        assert self.sender is not None, "init_transfer comes first"
        self.sender.send_weights()
        if isinstance(self.sender, SendingEngine):
            return SendReport(digests=self.sender.sent, num_bytes=self.sender.sent_bytes)
        return SendReport(digests={}, num_bytes=0)

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
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": np.random.get_state(),
            "python_rng": random.getstate(),
        }
        self.engine.save_checkpoint(str(directory), tag="state", client_state=client_state)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            CheckpointError: if the files are missing or were written by another layout.
        """
        path, client_state = self.engine.load_checkpoint(str(directory), tag="state")
        if path is None:
            raise CheckpointError(
                f"{directory}: no trainer state for rank {self.rank} of {self.spec.num_ranks}, "
                f"ZeRO stage {self.spec.trainer.zero_stage}; resume with the layout it was saved by"
            )
        self.num_updates = client_state["num_updates"]
        torch.set_rng_state(client_state["torch_rng"])
        np.random.set_state(client_state["numpy_rng"])
        random.setstate(client_state["python_rng"])

    def export(self, directory: Path) -> None:
        """Write the model in Hugging Face format; rank 0 writes, the others help to gather."""
        # Every rank iterates: gathering a sharded layer takes them all.
        writer = ShardWriter(directory) if self.rank == 0 else None
        for names, tensors in DeepSpeedSource(self.model, tied_output=None).iter_groups():
            if writer is not None:
                writer.add({n: t.cpu().clone() for n, t in zip(names, tensors, strict=True)})
        if writer is not None:
            writer.finish()
            self.model.config.save_pretrained(directory)
            if self.model.generation_config is not None:
                self.model.generation_config.save_pretrained(directory)
            load_tokenizer(self.spec.model).save_pretrained(directory)


class ShardWriter:
    """Writes safetensors shards of bounded size and their index, for `from_pretrained`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0
        self.total_bytes = 0
        self.weight_map: dict[str, str] = {}
        self.num_shards = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Take in one layer group; a full shard goes to disk."""
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if self.pending and self.pending_bytes + num_bytes > SHARD_BYTES:
            self._flush()
        self.pending |= tensors
        self.pending_bytes += num_bytes

    def _flush(self) -> None:
        self.num_shards += 1
        name = f"model-{self.num_shards:05d}.safetensors"
        save_file(self.pending, self.directory / name, metadata={"format": "pt"})
        self.weight_map |= dict.fromkeys(self.pending, name)
        self.total_bytes += self.pending_bytes
        self.pending, self.pending_bytes = {}, 0

    def finish(self) -> None:
        """Write the rest; a single shard gets the name that needs no index."""
        self._flush()
        if self.num_shards == 1:
            (self.directory / "model-00001.safetensors").rename(
                self.directory / "model.safetensors"
            )
            return
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": self.weight_map}
        (self.directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
