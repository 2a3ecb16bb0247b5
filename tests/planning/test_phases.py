"""Plans between phases: order of actions, and memory that is never held twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlstack.planning.phases import (
    Action,
    DeviceState,
    Transport,
    after,
    choose_transport,
    transition,
)
from rlstack.types import Phase


def state(
    *, time_shared: bool, loaded: bool = True, awake: bool = True, version: int | None = None
) -> DeviceState:
    return DeviceState(
        time_shared=time_shared,
        trainer_loaded=loaded,
        engines_awake=awake,
        engine_version=version,
    )


def test_roles_of_their_own_devices_only_move_weights() -> None:
    own = state(time_shared=False)
    assert transition(own, Phase.GENERATE, version=1) == (Action.TRANSFER_WEIGHTS,)
    assert transition(own, Phase.TRAIN, version=1) == ()


def test_weights_that_are_there_are_not_sent_again() -> None:
    held = state(time_shared=False, version=3)
    assert transition(held, Phase.GENERATE, version=3) == ()
    assert transition(held, Phase.GENERATE, version=4) == (Action.TRANSFER_WEIGHTS,)


def test_roles_that_share_devices_take_turns() -> None:
    generating = state(time_shared=True, loaded=False, version=1)
    assert transition(generating, Phase.TRAIN, version=1) == (
        Action.SLEEP_ENGINES,
        Action.RELOAD_TRAINER,
    )
    training = state(time_shared=True, loaded=True, awake=False)
    assert transition(training, Phase.GENERATE, version=2) == (
        Action.WAKE_ENGINE_WEIGHTS,
        Action.TRANSFER_WEIGHTS,
        Action.OFFLOAD_TRAINER,
        Action.WAKE_ENGINE_CACHE,
    )


def test_engines_that_hold_other_weights_sleep_while_the_trainer_sends_its_own() -> None:
    """At the start, and where engines are replaced or the trainer was restored."""
    started = state(time_shared=True, loaded=False, awake=True)
    assert transition(started, Phase.GENERATE, version=1) == (
        Action.SLEEP_ENGINES,
        Action.RELOAD_TRAINER,
        Action.WAKE_ENGINE_WEIGHTS,
        Action.TRANSFER_WEIGHTS,
        Action.OFFLOAD_TRAINER,
        Action.WAKE_ENGINE_CACHE,
    )


@given(st.lists(st.tuples(st.sampled_from(Phase), st.booleans()), max_size=12))
def test_no_walk_through_phases_holds_trainer_and_cache_together(
    walk: list[tuple[Phase, bool]],
) -> None:
    current = state(time_shared=True, loaded=False, awake=True)
    version = 0
    for phase, updated in walk:
        version += updated
        for action in transition(current, phase, version=version):
            current = after(current, action, version=version)
            assert not (current.trainer_loaded and current.engines_awake), action
        if phase is Phase.GENERATE:
            assert current.engine_version == version
            assert current.engines_awake
            assert not current.trainer_loaded
        else:
            assert current.trainer_loaded
            assert not current.engines_awake


@pytest.mark.parametrize(
    ("device", "colocated", "num_nodes", "expected"),
    [
        ("cpu", True, 1, Transport.SHARED_MEMORY),
        ("cpu", False, 2, Transport.GLOO),
        ("gpu", True, 1, Transport.CUDA_IPC),
        ("gpu", False, 4, Transport.NCCL),
    ],
)
def test_transport(device: str, colocated: bool, num_nodes: int, expected: Transport) -> None:
    assert choose_transport(device=device, colocated=colocated, num_nodes=num_nodes) is expected
