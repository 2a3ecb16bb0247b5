"""One vLLM engine as a Ray actor: samples responses, takes in new weights."""

# vLLM is typed too loosely for these.
# pyright: reportArgumentType=false, reportOptionalSubscript=false

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
from transformers import AutoConfig, AutoTokenizer
from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.config.lora import MaxLoRARanks
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from rlstack.errors import ConfigError, WorkerError
from rlstack.types import FinishReason, SamplingSettings
from workers.specs import Completion, EngineSpec, EngineState, TokenRequest

ADAPTER_ID = 1
"""vLLM's number of the only adapter; every update replaces it in place."""

Finished = tuple[int, RequestOutput]
"""request_id and vLLM's final output"""

Arrivals = asyncio.Queue[Finished | Exception | None]
"""What ended, in order; None: nothing else will come."""


@dataclass(slots=True)
class _Session:
    """Turns under way."""

    finished: Arrivals = field(default_factory=asyncio.Queue)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class RolloutEngine:
    """A vLLM AsyncLLM. Methods with vLLM's names are its weight-transfer control plane."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.calls = 0
        self.sessions: dict[int, _Session] = {}
        self.num_adapters = 0
        self.adapter: LoRARequest | None = None
        """The last that was loaded; before the first, the model's own weights generate."""

    async def start(self) -> None:
        """Load the model and allocate the KV cache."""
        spec = self.spec
        self.tokenizer = AutoTokenizer.from_pretrained(
            spec.model.path, trust_remote_code=spec.model.trust_remote_code
        )
        check_head_size(spec)
        arguments = AsyncEngineArgs(
            model=spec.model.path,
            dtype=spec.model.dtype,
            trust_remote_code=spec.model.trust_remote_code,
            tensor_parallel_size=spec.tensor_parallel,
            distributed_executor_backend=_executor(spec),
            max_model_len=spec.max_model_tokens,
            max_num_seqs=spec.rollout.max_concurrent,
            # vLLM on CPU cannot rewind a seeded generator, which it does for a prompt processed in
            # part (RuntimeError "CPU Generator does not use offset"): process prompts whole.
            enable_chunked_prefill=spec.device == "gpu",
            max_num_batched_tokens=max(8192, spec.max_model_tokens),
            enable_prefix_caching=spec.rollout.prefix_caching,
            enforce_eager=not spec.rollout.compile,
            gpu_memory_utilization=spec.rollout.gpu_memory_fraction,
            enable_sleep_mode=spec.device == "gpu",
            seed=spec.seed,
            # The distribution that was sampled from, temperature applied: what `Rollout` promises.
            logprobs_mode="processed_logprobs",
            # A model's generation_config must not change how training samples.
            generation_config="vllm",
            weight_transfer_config=WeightTransferConfig(backend=spec.transport.value),
            worker_extension_cls="workers.engine.vllm_extension.WeightExtension",
            disable_log_stats=True,
            enable_lora=spec.adapter_rank is not None,
            max_lora_rank=_served_rank(spec.adapter_rank or 1),
            max_loras=1,
        )
        self.engine = AsyncLLM.from_engine_args(arguments)
        await self.engine.update_weight_version("0")

    async def generate(
        self, requests: Sequence[TokenRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Completion]]:
        """Yield completions as they finish, those that finish together in one list.

        Raises:
            WorkerError: if vLLM's engine process died.
        """
        self.calls += 1
        finished: Arrivals = asyncio.Queue()
        tasks: list[asyncio.Task[None]] = []
        try:
            version = int(await self.engine.get_weight_version())
            # The scheduler is held while requests are handed over, so that what is batched with
            # what depends on the requests alone: the same call gives the same bits.
            await self.engine.pause_generation(mode="keep", clear_cache=True)
            for request in requests:
                unique_id = f"{self.calls}-{request.request_id}"
                task = self._run(request, unique_id, sampling, finished)
                tasks.append(asyncio.create_task(task))
            while self.engine.output_processor.get_num_unfinished_requests() < len(requests):
                if not finished.empty():  # only a failure can finish while the scheduler is held
                    break
                await asyncio.sleep(0.001)
            await self.engine.resume_generation()
            remaining = len(requests)
            while remaining:
                batch = [await finished.get()]
                while not finished.empty():
                    batch.append(finished.get_nowait())
                remaining -= len(batch)
                yield [
                    self._completion(item, version=version, has_text=bool(sampling.stop))
                    for item in batch
                ]
        except EngineDeadError as error:
            raise WorkerError(f"vLLM's engine process died: {error}") from error
        finally:
            for task in tasks:
                task.cancel()

    async def turns(self, session: int) -> AsyncIterator[list[Completion]]:
        """Yield the completions of the turns that `add_turn` brings, until `end_turns`.

        Turns join what is running: what is batched with what depends on when they come.

        Raises:
            WorkerError: if vLLM's engine process died.
        """
        # `add_turn` may come first.
        members = self.sessions.setdefault(session, _Session())
        try:
            version = int(await self.engine.get_weight_version())
            while True:
                batch = [await members.finished.get()]
                while not members.finished.empty():
                    batch.append(members.finished.get_nowait())
                done = [item for item in batch if item is not None]
                yield [self._action(item, version=version) for item in done]
                if len(done) < len(batch):
                    break
        except EngineDeadError as error:
            raise WorkerError(f"vLLM's engine process died: {error}") from error
        finally:
            del self.sessions[session]
            for task in members.tasks:
                task.cancel()

    async def add_turn(
        self, session: int, request: TokenRequest, sampling: SamplingSettings
    ) -> None:
        """Begin to sample one turn; `turns` yields it."""
        members = self.sessions.setdefault(session, _Session())
        run = self._run(request, f"turn-{session}-{request.request_id}", sampling, members.finished)
        task = asyncio.create_task(run)
        members.tasks.add(task)
        task.add_done_callback(members.tasks.discard)

    async def end_turns(self, session: int) -> None:
        """No more turns will come; those under way are given up."""
        if session in self.sessions:
            self.sessions[session].finished.put_nowait(None)

    async def _run(
        self,
        request: TokenRequest,
        unique_id: str,
        sampling: SamplingSettings,
        finished: Arrivals,
    ) -> None:
        prompt = TokensPrompt(prompt_token_ids=request.token_ids)
        params = _sampling_params(sampling, seed=request.seed)
        try:
            async for output in self.engine.generate(
                prompt, params, request_id=unique_id, lora_request=self.adapter
            ):
                if output.finished:
                    finished.put_nowait((request.request_id, output))
        except Exception as error:  # noqa: BLE001 - raised in generate(), where it is waited for
            finished.put_nowait(error)

    def _completion(
        self, item: Finished | Exception, *, version: int, has_text: bool
    ) -> Completion:
        if isinstance(item, Exception):
            raise item
        request_id, output = item
        response = output.outputs[0]
        token_ids = list(response.token_ids)
        assert response.logprobs is not None
        logprobs = [
            entry[token].logprob for entry, token in zip(response.logprobs, token_ids, strict=True)
        ]
        # With stop strings vLLM has the text, cut before the string; otherwise it is decoded here,
        # once, which is cheaper than token by token.
        text = response.text
        if not has_text:
            text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return Completion(
            request_id=request_id,
            text=text,
            response_ids=np.array(token_ids, dtype=np.int64),
            logprobs=np.array(logprobs, dtype=np.float32),
            finish_reason=FinishReason(response.finish_reason),
            policy_version=version,
        )

    def _action(self, item: Finished | Exception, *, version: int) -> Completion:
        """A completion whose text is what its tokens say: a stop string is part of it."""
        completion = self._completion(item, version=version, has_text=True)
        token_ids = completion.response_ids.tolist()
        if token_ids and token_ids[-1] == self.tokenizer.eos_token_id:
            token_ids.pop()
        return replace(completion, text=self.tokenizer.decode(token_ids))

    # --- vLLM's weight-transfer control plane, driven by rank 0 of the trainer

    async def init_weight_transfer_engine(self, request: WeightTransferInitRequest) -> None:
        """See vLLM."""
        await self.engine.init_weight_transfer_engine(request)

    async def start_weight_update(self) -> None:
        """See vLLM."""
        await self.engine.pause_generation(mode="keep", clear_cache=True)
        await self.engine.start_weight_update()

    async def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        """See vLLM."""
        await self.engine.update_weights(request)

    async def finish_weight_update(self) -> None:
        """See vLLM."""
        await self.engine.finish_weight_update()
        await self.engine.resume_generation()

    async def load_adapter(self, files: dict[str, bytes]) -> None:
        """Replace the adapter; files: name -> contents of a peft folder."""
        await self.engine.pause_generation(mode="keep", clear_cache=True)
        self.num_adapters += 1
        # A name of its own for each: vLLM's prefix cache tells adapters apart by their names.
        name = f"adapter-{self.num_adapters}"
        with tempfile.TemporaryDirectory(prefix="rlstack-") as folder:
            for file_name, contents in files.items():
                (Path(folder) / file_name).write_bytes(contents)
            await self.engine.collective_rpc("load_adapter", args=(folder, name, ADAPTER_ID))
        # vLLM holds it in memory from here on; nothing can bring back an older one from disk.
        self.adapter = LoRARequest(name, ADAPTER_ID, folder)
        await self.engine.resume_generation()

    # --- driven by the reallocator

    async def commit(self, version: int) -> EngineState:
        """Name the weights just received `version` and report what is held."""
        await self.engine.update_weight_version(str(version))
        received = await self.engine.collective_rpc("received_digests")
        weights = await self.engine.collective_rpc("parameter_checksums")
        adapters = await self.engine.collective_rpc("adapter_checksums")
        return EngineState(
            weight_version=await self.engine.get_weight_version(),
            received=received,
            checksums=[w | a for w, a in zip(weights, adapters, strict=True)],
        )

    async def sleep(self) -> None:
        """Free device memory: weights are dropped, they come anew with the next update.

        Where only adapters come, the weights are kept in host memory.
        """
        level = 2 if self.spec.adapter_rank is None else 1
        await self.engine.sleep(level=level, mode="abort")

    async def wake(self, tags: list[str]) -> None:
        """Allocate device memory again, `weights` before an update, `kv_cache` after it."""
        await self.engine.wake_up(tags)

    async def shutdown(self) -> None:
        """End the engine's processes."""
        self.engine.shutdown()


def check_head_size(spec: EngineSpec) -> None:
    """vLLM's CPU attention has kernels for some head sizes and crashes its process on others.

    Raises:
        ConfigError: naming the model, its head size and those that work.
    """
    if spec.device != "cpu":
        return
    config = AutoConfig.from_pretrained(
        spec.model.path, trust_remote_code=spec.model.trust_remote_code
    ).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    supported = CPUAttentionBackend.get_supported_head_sizes()
    if size not in supported:
        raise ConfigError(
            f"model.path: {spec.model.path!r} has attention heads of size {size}; vLLM on CPU has "
            f"kernels for {supported}. Choose another model, or run on a GPU"
        )


def _served_rank(rank: int) -> int:
    """The smallest that vLLM has room for adapters of, and `rank` fits into."""
    return min(served for served in get_args(MaxLoRARanks) if served >= rank)


def _executor(spec: EngineSpec) -> str | None:
    if spec.tensor_parallel > 1:
        return "mp"
    return "uni" if spec.device == "cpu" else None


def _sampling_params(sampling: SamplingSettings, *, seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_response_tokens,
        seed=seed,
        stop=list(sampling.stop),
        detokenize=bool(sampling.stop),
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
