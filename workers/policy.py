"""The policy: a trainer rank that computes logprobs, learns from them, and sends its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.utils.network_utils import get_open_port

from rlstack.algorithms.catalog import policy_loss
from rlstack.algorithms.reductions import token_mean
from rlstack.algorithms.supervised_losses import negative_log_likelihood
from rlstack.batch import PolicyBatch, Rows, SFTBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.data.packing import plan_evaluation
from rlstack.metrics import Metrics, merge
from rlstack.planning.phases import Transport
from workers import transports
from workers.loading import load_causal_model
from workers.lora import adapter_files, adapters_disabled, trained_tensors
from workers.model import TokenLogprobs, per_token
from workers.packed import PackedRows, pack
from workers.specs import SendReport
from workers.trainer import TrainerRank
from workers.transfer import EngineClient, SendingEngine, digest
from workers.transfer_gloo import GlooTrainerInit
from workers.transfer_shared_memory import SharedMemoryTrainerInit
from workers.weight_source import DeepSpeedSource


class PolicyRank(TrainerRank):
    """One process of the policy trainer."""

    role = "policy"
    sender: TrainerWeightTransferEngine[Any] | None = None
    base_in_engines = False
    """Whether engines that are sent adapters hold the weights below them as they are now."""

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
        if self.sender is not None:
            self.sender.shutdown()
            self.sender = None
        self.engines = engines
        self.transport = transport
        self.workers_per_engine = workers_per_engine
        # They have loaded the model that training began with.
        self.base_in_engines = self.num_merges == 0
        if not self.sends_adapters:
            self._open_sender()

    def _open_sender(self) -> None:
        transports.register()
        self.sender = WeightTransferTrainerFactory.trainer_init(
            self._transfer_info(),
            client=EngineClient(self.engines, workers_per_engine=self.workers_per_engine),
            source=self._source(),
        )

    def _transfer_info(self) -> TrainerInitInfo:
        num_workers = len(self.engines) * self.workers_per_engine
        match self.transport:
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
        if not self.sends_adapters:
            return self._send_model()
        base = SendReport(digests={}, num_bytes=0)
        if not self.base_in_engines:
            if self.sender is None:
                self._open_sender()
            base = self._send_model()
            self.base_in_engines = True
        adapter = self._send_adapter()
        return SendReport(
            digests=base.digests | adapter.digests, num_bytes=base.num_bytes + adapter.num_bytes
        )

    def _send_model(self) -> SendReport:
        """The weights; with adapters merged in, or where those are sent apart, without them."""
        assert self.sender is not None, "connect comes first"
        self.sender.send_weights()
        if isinstance(self.sender, SendingEngine):
            return SendReport(digests=self.sender.sent, num_bytes=self.sender.sent_bytes)
        return SendReport(digests={}, num_bytes=0)

    @property
    def sends_adapters(self) -> bool:
        """Whether engines hold the weights below the adapters and are sent adapters."""
        lora = self.spec.trainer.lora
        return lora is not None and lora.engines == "adapters"

    def _send_adapter(self) -> SendReport:
        tensors = trained_tensors(self.model)
        if self.rank != 0:
            return SendReport(digests={}, num_bytes=0)
        files = ray.put(adapter_files(self.model, tensors))
        ray.get([engine.load_adapter.remote(files) for engine in self.engines])
        return SendReport(
            digests={name: digest(tensor) for name, tensor in tensors.items()},
            num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        )

    def _source(self) -> DeepSpeedSource:
        tied = self.model.config.tie_word_embeddings and self.spec.device == "cpu"
        return DeepSpeedSource(
            self.model,
            tied_output="lm_head.weight" if tied else None,
            merged=not self.sends_adapters,
        )

    def merge_adapters(self) -> None:
        """See `TrainerRank`."""
        super().merge_adapters()
        self.base_in_engines = False

    def load(self, directory: Path) -> None:
        """See `TrainerRank`."""
        super().load(directory)
        self.base_in_engines = self.num_merges == 0
