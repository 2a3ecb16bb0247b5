"""vLLM's engine in this process: requests, steps, weights. Everything here is on one thread."""

# vLLM is typed too loosely for these.
# pyright: reportArgumentType=false

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine.llm_engine import LLMEngine

from rlstack.errors import WorkerError
from rlstack.types import SamplingSettings
from workers.engine.arguments import check_head_size, engine_arguments, sampling_params
from workers.specs import EngineSpec, EngineState, TokenRequest

ADAPTER_ID = 1
"""vLLM's number of the only adapter; every update replaces it in place."""

EXECUTOR_DIED = 70
"""Exit status of an engine that lost one of its tensor-parallel workers."""

Finished = tuple[int, RequestOutput]
"""request_id and vLLM's final output"""

Deliver = Callable[[list[Finished] | WorkerError], None]
"""Takes what finished in a step, or why nothing else will."""


class Sampler:
    """A vLLM engine without a process of its own.

    Between the start of an update and its `commit` nothing is sampled: every token's weights have
    a version.
    """

    def __init__(self, spec: EngineSpec) -> None:
        check_head_size(spec)
        self.spec = spec
        self.engine = LLMEngine.from_engine_args(engine_arguments(spec))
        # An engine that lost a tensor-parallel worker is lost; who calls it hears of a death.
        self.core.model_executor.register_failure_callback(lambda: os._exit(EXECUTOR_DIED))
        self.core.set_weight_version("0")
        self.held = False
        self.num_adapters = 0
        self.adapter: LoRARequest | None = None
        """The last that was loaded; before the first, the model's own weights generate."""
        self._numbers = itertools.count()
        self._under_way: dict[str, tuple[int, Deliver]] = {}

    @property
    def core(self) -> Any:
        """vLLM's scheduler and executor."""
        core: Any = self.engine.engine_core
        return core.engine_core

    # --- sampling

    def add_batch(
        self, requests: Sequence[TokenRequest], sampling: SamplingSettings, deliver: Deliver
    ) -> list[str]:
        """Begin to sample `requests` at the same step; what `abort` takes.

        Where nothing else is under way, what is batched with what depends on them alone, and so do
        the bits.
        """
        if not self._under_way:
            self.engine.reset_prefix_cache()
        return [self.add(request, sampling, deliver) for request in requests]

    def add(self, request: TokenRequest, sampling: SamplingSettings, deliver: Deliver) -> str:
        """Begin to sample one response beside those under way; what `abort` takes."""
        unique = str(next(self._numbers))
        self._under_way[unique] = (request.request_id, deliver)
        try:
            self.engine.add_request(
                unique,
                TokensPrompt(prompt_token_ids=request.token_ids),
                sampling_params(sampling, seed=request.seed),
                lora_request=self.adapter,
            )
        except Exception:
            del self._under_way[unique]
            raise
        return unique

    def abort(self, unique: Sequence[str]) -> None:
        """Give up those that are still under way."""
        running = [number for number in unique if number in self._under_way]
        self.engine.abort_request(running)
        for number in running:
            del self._under_way[number]

    def has_work(self) -> bool:
        """See `workers.engine.step_loop.Stepped`."""
        return not self.held and self.engine.has_unfinished_requests()

    def step(self) -> None:
        """One forward pass: a token for every sequence that is scheduled."""
        finished: dict[Deliver, list[Finished]] = {}
        for output in self.engine.step():
            if output.finished:
                request_id, deliver = self._under_way.pop(output.request_id)
                finished.setdefault(deliver, []).append((request_id, output))
        for deliver, outputs in finished.items():
            deliver(outputs)

    def fail(self, error: WorkerError) -> None:
        """See `workers.engine.step_loop.Stepped`."""
        for deliver in {deliver for _, deliver in self._under_way.values()}:
            deliver(error)
        self._under_way.clear()

    # --- weights: vLLM's control plane, driven by rank 0 of the trainer

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See vLLM."""
        self.engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": init_info})

    def start_weight_update(self) -> None:
        """See vLLM; what is under way waits, and goes on under the new weights."""
        self._hold()
        # One whose trainer died in the middle; all weights come anew now.
        self.engine.collective_rpc("end_weight_update")
        self.engine.collective_rpc("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """See vLLM."""
        self.engine.collective_rpc("update_weights", kwargs={"update_info": update_info})

    def finish_weight_update(self) -> None:
        """See vLLM."""
        self.engine.collective_rpc("finish_weight_update")

    def load_adapter(self, files: dict[str, bytes]) -> None:
        """Replace the adapter; files: name -> contents of a peft folder."""
        self._hold()
        self.num_adapters += 1
        # A name of its own for each: vLLM's prefix cache tells adapters apart by their names.
        name = f"adapter-{self.num_adapters}"
        with tempfile.TemporaryDirectory(prefix="rlstack-") as folder:
            for file_name, contents in files.items():
                (Path(folder) / file_name).write_bytes(contents)
            self.engine.collective_rpc("load_adapter", args=(folder, name, ADAPTER_ID))
        # vLLM holds it in memory from here on; nothing can bring back an older one from disk.
        self.adapter = LoRARequest(name, ADAPTER_ID, folder)

    # --- driven by the reallocator

    def commit(self, version: int) -> EngineState:
        """Name the weights just received `version`, report what is held, and go on sampling."""
        self.core.set_weight_version(str(version))
        received = self.engine.collective_rpc("received_digests")
        weights = self.engine.collective_rpc("parameter_checksums")
        adapters = self.engine.collective_rpc("adapter_checksums")
        self._release()
        return EngineState(
            weight_version=self.core.get_weight_version(),
            received=received,
            checksums=[w | a for w, a in zip(weights, adapters, strict=True)],
        )

    def sleep(self) -> None:
        """Free device memory: weights are dropped, they come anew with the next update.

        Where only adapters come, the weights are kept in host memory. Nothing may be under way.
        """
        if not self.core.model_executor.is_sleeping:
            level = 2 if self.spec.adapter_rank is None else 1
            self.engine.sleep(level=level, mode="abort")

    def wake(self, tags: list[str]) -> None:
        """Allocate device memory again, `weights` before an update, `kv_cache` after it."""
        self.engine.wake_up(tags)

    def _hold(self) -> None:
        """Sample nothing until `_release`; the caches are of the old weights and go."""
        self.core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
        # On GPUs a step may have been launched ahead: its tokens are of the old weights.
        while self.core.batch_queue:
            self.step()
        self.core.pause_scheduler(mode="keep", clear_cache=True)
        self.held = True

    def _release(self) -> None:
        if self.held:
            self.core.resume_scheduler()
            self.held = False
