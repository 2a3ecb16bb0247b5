"""What moves between generation and training, as data.

Where roles share a GPU they take turns: the engine sleeps while the trainer works, the trainer's
state waits in host memory while the engine works. On CPU every process has its own memory and the
cores are shared, so only weights move.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from rlstack.types import Phase


class Transport(StrEnum):
    """How weights travel from trainer to engines; values are vLLM's backend names."""

    SHARED_MEMORY = "rlstack_shared_memory"
    GLOO = "rlstack_gloo"
    CUDA_IPC = "ipc"
    NCCL = "nccl"


class Action(StrEnum):
    """One thing the reallocator can do."""

    RELOAD_TRAINER = "reload_trainer"
    OFFLOAD_TRAINER = "offload_trainer"
    SLEEP_ENGINES = "sleep_engines"
    WAKE_ENGINE_WEIGHTS = "wake_engine_weights"
    WAKE_ENGINE_CACHE = "wake_engine_cache"
    TRANSFER_WEIGHTS = "transfer_weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """Who holds device memory, and which policy version the engines hold (None: another's)."""

    time_shared: bool
    """Roles share GPUs and take turns."""
    trainer_loaded: bool
    engines_awake: bool
    engine_version: int | None = None


def choose_transport(*, device: str, colocated: bool, num_nodes: int) -> Transport:
    """The fastest transport that reaches every engine."""
    if device == "gpu":
        return Transport.CUDA_IPC if colocated else Transport.NCCL
    return Transport.SHARED_MEMORY if num_nodes == 1 else Transport.GLOO


def transition(state: DeviceState, to: Phase, *, version: int) -> tuple[Action, ...]:
    """The actions, in order, that lead from `state` to `to` with `version` in the engines.

    Where roles take turns, the trainer's full state and the engines' KV cache never hold memory at
    the same time, and sleeping engines drop their weights, so waking always transfers.
    """
    actions: list[Action] = []
    stale = state.engine_version != version or not state.engines_awake
    trainer_needed = to is Phase.TRAIN or stale
    awake = state.engines_awake
    if state.time_shared and awake and trainer_needed:
        actions.append(Action.SLEEP_ENGINES)
        awake = False
    if trainer_needed and not state.trainer_loaded:
        actions.append(Action.RELOAD_TRAINER)
    if to is Phase.TRAIN:
        return tuple(actions)
    if not awake:
        actions.append(Action.WAKE_ENGINE_WEIGHTS)
    if stale:
        actions.append(Action.TRANSFER_WEIGHTS)
    if state.time_shared and (state.trainer_loaded or stale):
        actions.append(Action.OFFLOAD_TRAINER)
    if not awake:
        actions.append(Action.WAKE_ENGINE_CACHE)
    return tuple(actions)


def after(state: DeviceState, action: Action, *, version: int) -> DeviceState:
    """The state once `action` is done."""
    match action:
        case Action.RELOAD_TRAINER:
            return replace(state, trainer_loaded=True)
        case Action.OFFLOAD_TRAINER:
            return replace(state, trainer_loaded=False)
        case Action.SLEEP_ENGINES:
            return replace(state, engines_awake=False, engine_version=None)
        case Action.WAKE_ENGINE_WEIGHTS:
            return state
        case Action.WAKE_ENGINE_CACHE:
            return replace(state, engines_awake=True)
        case Action.TRANSFER_WEIGHTS:
            return replace(state, engine_version=version)
