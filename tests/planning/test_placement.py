"""Plans for clusters that need not exist: who gets which devices, and what is refused."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlstack.config.placement import RolePlacement
from rlstack.config.trainer import LoRAConfig
from rlstack.errors import PlacementError
from rlstack.planning.cluster import Bundle, Cluster, Node
from rlstack.planning.layouts import RoleName
from rlstack.planning.phases import Transport
from rlstack.planning.placement import Placement, needed_cpus, place
from rlstack.planning.spec import RunSpec
from tests.planning.clusters import LAPTOP, cluster, run

OWN = RolePlacement(ranks=1, devices="own")
WITH_POLICY = RolePlacement(ranks=None, devices="policy")
LORA = LoRAConfig(
    variant="lora", rank=4, alpha=8, dropout=0, target_modules=None, engines="adapters"
)


def bundles_of(placement: Placement) -> dict[str, tuple[int, ...]]:
    return {name: layout.bundles for name, layout in placement.layouts.items()}


def devices_of(placement: Placement) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {name: layout.devices for name, layout in placement.layouts.items()}


def ranks(*devices: int) -> tuple[tuple[int, ...], ...]:
    return tuple((device,) for device in devices)


def test_colocated_roles_share_the_bundles_of_the_policy() -> None:
    placed = place(run(critic=WITH_POLICY), cluster())
    assert placed.time_shared
    assert placed.transport is Transport.CUDA_IPC
    assert bundles_of(placed) == {"policy": (0, 1), "critic": (0, 1), "engines": (0,)}
    assert devices_of(placed) == {"policy": ranks(0, 1), "critic": ranks(0, 1), "engines": ((0,),)}
    assert placed.bundles == (Bundle(cpus=3, gpus=1), Bundle(cpus=2, gpus=1))
    assert not placed.layouts["policy"].with_policy
    assert placed.layouts["critic"].with_policy
    assert {name: layout.zero_stage for name, layout in placed.layouts.items()} == {
        "policy": 2,
        "critic": 3,
        "engines": 0,
    }


def test_a_colocated_engine_is_where_the_ranks_are_whose_gpus_it_takes() -> None:
    placed = place(run(trainer_ranks=12, num_engines=2, tensor_parallel=4), cluster(2))
    assert placed.layouts["engines"].bundles == (0, 1)
    assert placed.layouts["engines"].devices == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert placed.layouts["policy"].bundles == (0,) * 4 + (1,) * 4 + (2, 3, 4, 5)
    assert placed.bundles == (Bundle(cpus=8, gpus=4),) * 2 + (Bundle(cpus=1, gpus=1),) * 4
    assert [node.name for node in placed.nodes] == ["node0"] * 2 + ["node1"] * 4


def on_nodes(placement: Placement, role: RoleName) -> list[str]:
    return [placement.nodes[bundle].name for bundle in placement.layouts[role].bundles]


def test_one_gpu_is_shared_by_everybody() -> None:
    spec = run(
        critic=WITH_POLICY,
        reference=WITH_POLICY,
        reward_model=RolePlacement(ranks=1, devices="policy"),
        trainer_ranks=1,
    )
    placed = place(spec, cluster(gpus=1, cpus=8))
    assert placed.time_shared
    assert placed.transport is Transport.CUDA_IPC
    assert placed.bundles == (Bundle(cpus=5, gpus=1),)
    assert set(devices_of(placed).values()) == {((0,),)}


@pytest.mark.parametrize(("num_nodes", "trainer_ranks"), [(1, 8), (2, 16)])
def test_every_gpu_of_a_cluster_generates_and_trains(num_nodes: int, trainer_ranks: int) -> None:
    spec = run(trainer_ranks=trainer_ranks, num_engines=trainer_ranks)
    placed = place(spec, cluster(num_nodes))
    assert placed.bundles == (Bundle(cpus=2, gpus=1),) * trainer_ranks
    assert bundles_of(placed)["engines"] == bundles_of(placed)["policy"]
    assert devices_of(placed)["engines"] == ranks(*range(trainer_ranks))
    assert on_nodes(placed, "engines") == on_nodes(placed, "policy")
    assert sorted(on_nodes(placed, "engines")) == sorted(
        f"node{index}" for index in range(num_nodes) for _ in range(8)
    )


@pytest.mark.parametrize(("num_nodes", "tensor_parallel"), [(1, 2), (2, 4), (2, 8)])
def test_wide_engines_are_each_on_one_node(num_nodes: int, tensor_parallel: int) -> None:
    num_gpus = 8 * num_nodes
    num_engines = num_gpus // tensor_parallel
    spec = run(trainer_ranks=num_gpus, num_engines=num_engines, tensor_parallel=tensor_parallel)
    placed = place(spec, cluster(num_nodes))
    assert placed.layouts["engines"].bundles == tuple(range(num_engines))
    of_policy = on_nodes(placed, "policy")
    for node, devices in zip(
        on_nodes(placed, "engines"), devices_of(placed)["engines"], strict=True
    ):
        assert len(devices) == tensor_parallel
        assert {of_policy[device] for device in devices} == {node}


def test_half_of_two_nodes_generates_and_half_trains() -> None:
    spec = run(mode="disaggregated", trainer_ranks=8, num_engines=2, tensor_parallel=4)
    placed = place(spec, cluster(2))
    assert placed.transport is Transport.NCCL
    assert sorted(on_nodes(placed, "engines") + on_nodes(placed, "policy")) == (
        ["node0"] * 2 + ["node1"] * 8
    )
    assert devices_of(placed)["engines"] == (tuple(range(8, 12)), tuple(range(12, 16)))


def test_own_devices_are_bundles_of_their_own() -> None:
    spec = run(
        critic=OWN,
        reference=WITH_POLICY,
        reward_model=RolePlacement(ranks=3, devices="own"),
        mode="disaggregated",
        num_engines=2,
        tensor_parallel=2,
    )
    placed = place(spec, cluster(2))
    assert not placed.time_shared
    assert placed.transport is Transport.NCCL
    assert bundles_of(placed) == {
        "policy": (0, 1),
        "critic": (2,),
        "reference": (0, 1),
        "reward_model": (3, 4, 5),
        "engines": (6, 7),
    }
    assert devices_of(placed) == {
        "policy": ranks(0, 1),
        "critic": ranks(2),
        "reference": ranks(0, 1),
        "reward_model": ranks(3, 4, 5),
        "engines": ((6, 7), (8, 9)),
    }
    assert [bundle.gpus for bundle in placed.bundles] == [1, 1, 1, 1, 1, 1, 2, 2]


def test_without_a_policy_everything_has_its_own() -> None:
    placed = place(run(policy=False, reward_model=WITH_POLICY), cluster())
    assert not placed.time_shared
    assert bundles_of(placed) == {"reward_model": (0, 1), "engines": (2,)}
    assert sum(bundle.gpus for bundle in placed.bundles) == 3


def test_trainers_alone_take_turns_with_nobody() -> None:
    placed = place(run(engines=False), cluster())
    assert not placed.time_shared
    assert bundles_of(placed) == {"policy": (0, 1)}


def test_the_policy_below_its_adapters_is_no_role_of_its_own() -> None:
    assert "reference" in place(run(reference=WITH_POLICY), cluster()).layouts
    assert "reference" not in place(run(reference=WITH_POLICY, lora=LORA), cluster()).layouts


def test_a_laptop() -> None:
    placed = place(run(critic=WITH_POLICY, reward_model=OWN), LAPTOP)
    assert placed.device == "cpu"
    assert not placed.time_shared
    assert placed.transport is Transport.SHARED_MEMORY
    assert bundles_of(placed) == {
        "policy": (0, 1),
        "critic": (0, 1),
        "reward_model": (2,),
        "engines": (3,),
    }
    assert devices_of(placed)["policy"] == ((), ())
    assert placed.bundles == (Bundle(cpus=2, gpus=0),) * 2 + (Bundle(cpus=1, gpus=0),) * 2
    assert placed.threads == {"policy": 2, "critic": 2, "reward_model": 4, "engines": 4}


def test_threads_are_those_of_the_nodes_and_of_no_other_machine() -> None:
    placed = place(run(trainer_ranks=16, engines=False), cluster(2, cores=96))
    assert placed.threads["policy"] == 12
    placed = place(run(engines=False, trainer_ranks=4, device="cpu"), cluster(cores=2))
    assert placed.threads["policy"] == 1
    wide = run(mode="disaggregated", tensor_parallel=4)
    assert place(wide, cluster(cores=96)).threads["engines"] == 24


def test_shares_of_a_cpu_add_up_to_whole_ones() -> None:
    spec = run(trainer_ranks=30, cpus_per_worker=0.1, engines=False)
    assert needed_cpus(spec) == 3
    assert len(place(spec, cluster(gpus=0, cpus=3)).bundles) == 30


def test_weights_that_must_reach_other_nodes() -> None:
    assert place(run(device="cpu"), cluster(2)).transport is Transport.GLOO


@pytest.mark.parametrize(
    ("spec", "there", "told"),
    [
        (
            run(trainer_ranks=9),
            cluster(),
            "need 9 GPUs but the cluster has 8; lower .*trainer_ranks",
        ),
        (
            run(trainer_ranks=9),
            cluster(cpus=8),
            "need 9 GPUs(.|\n)*need 10 CPUs but the cluster has 8",
        ),
        (run(device="gpu"), LAPTOP, "placement.device: gpu, but the cluster has no GPU"),
        (
            run(num_engines=2, tensor_parallel=2),
            cluster(),
            "colocated engines need 4 GPUs .* the trainer has 2; raise placement.trainer_ranks",
        ),
        (
            run(trainer_ranks=16, tensor_parallel=16),
            cluster(2),
            "tensor_parallel: an engine needs 16 GPUs of one node, .* is 8 .node0",
        ),
        (
            run(critic=RolePlacement(ranks=3, devices="policy")),
            cluster(),
            "placement.critic.ranks: 3 ranks .* 2 policy ranks; .*placement.critic.devices=own",
        ),
        (
            run(trainer_ranks=4, tensor_parallel=4, cpus_per_worker=10),
            cluster(2),
            "need 80 CPUs of one node with 4 GPUs, but the most that one has is 64; lower",
        ),
        (
            run(policy=False, num_engines=3, tensor_parallel=5),
            cluster(2, gpus=8),
            "5 GPUs are needed on one node, and after the other roles no node has them left",
        ),
    ],
)
def test_what_cannot_be_placed_says_why(spec: RunSpec, there: Cluster, told: str) -> None:
    with pytest.raises(PlacementError, match=told):
        place(spec, there)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    wrong = RolePlacement(ranks=5, devices="policy")
    spec = run(critic=wrong, reward_model=wrong, num_engines=3)
    with pytest.raises(PlacementError) as caught:
        place(spec, cluster())
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "placement.critic.ranks",
        "placement.reward_model.ranks",
        "placement",
    ]
    with pytest.raises(PlacementError, match=r"placement\.critic\.ranks"):
        needed_cpus(spec)


# --- whatever the run and the cluster

places = st.none() | st.builds(
    RolePlacement,
    ranks=st.none() | st.integers(1, 4),
    devices=st.sampled_from(["policy", "own"]),
)
runs = st.builds(
    run,
    policy=st.booleans(),
    engines=st.booleans(),
    critic=places,
    reference=places,
    reward_model=places,
    mode=st.sampled_from(["colocated", "disaggregated"]),
    device=st.sampled_from(["auto", "cpu", "gpu"]),
    trainer_ranks=st.integers(1, 8),
    num_engines=st.integers(1, 3),
    tensor_parallel=st.integers(1, 4),
    cpus_per_worker=st.sampled_from([0.1, 0.5, 1, 3]),
)
clusters = st.lists(
    st.tuples(st.integers(1, 64), st.integers(0, 8), st.integers(1, 64)), min_size=1, max_size=4
).map(
    lambda nodes: Cluster(
        nodes=tuple(
            Node(name=f"node{index}", cpus=cpus, gpus=gpus, cores=cores)
            for index, (cpus, gpus, cores) in enumerate(nodes)
        )
    )
)


def placed_or_none(spec: RunSpec, there: Cluster) -> Placement | None:
    try:
        return place(spec, there)
    except PlacementError:
        return None


@given(runs, clusters)
def test_every_node_has_room_for_its_bundles(spec: RunSpec, there: Cluster) -> None:
    placed = placed_or_none(spec, there)
    assume(placed is not None)
    assert placed is not None
    assert len(placed.nodes) == len(placed.bundles)
    for node in there.nodes:
        pairs = zip(placed.nodes, placed.bundles, strict=True)
        on_node = [bundle for chosen, bundle in pairs if chosen == node]
        assert sum(bundle.gpus for bundle in on_node) <= node.gpus
        assert sum(bundle.cpus for bundle in on_node) <= node.cpus + 1e-6


@given(runs, clusters)
def test_every_process_has_what_it_needs(spec: RunSpec, there: Cluster) -> None:
    placed = placed_or_none(spec, there)
    assume(placed is not None)
    assert placed is not None
    cpus, gpus = [0.0] * len(placed.bundles), [0] * len(placed.bundles)
    seen: dict[int, int] = {}
    assert placed.threads.keys() == placed.layouts.keys()
    assert min(placed.threads.values(), default=1) >= 1
    for layout in placed.layouts.values():
        assert len(layout.devices) == layout.data_parallel
        for bundle, devices in zip(layout.bundles, layout.devices, strict=True):
            cpus[bundle] += layout.cpus
            assert len(devices) == (layout.tensor_parallel if placed.device == "gpu" else 0)
            if not layout.with_policy:
                gpus[bundle] += len(devices)
                assert not seen.keys() & set(devices), "two roles own one GPU"
                seen |= dict.fromkeys(devices, bundle)
    assert cpus == pytest.approx([bundle.cpus for bundle in placed.bundles])
    assert gpus == [bundle.gpus for bundle in placed.bundles]
    assert sum(cpus) == pytest.approx(needed_cpus(spec))
    assert sorted(seen) == list(range(sum(gpus)))
    for layout in placed.layouts.values():
        for bundle, devices in zip(layout.bundles, layout.devices, strict=True):
            assert {seen[device] for device in devices} <= {bundle}, "on another node's GPU"


@given(runs, clusters)
def test_roles_share_devices_with_the_policy_alone(spec: RunSpec, there: Cluster) -> None:
    placed = placed_or_none(spec, there)
    assume(placed is not None)
    assert placed is not None
    shared = {name: role for name, role in placed.layouts.items() if role.with_policy}
    assert placed.time_shared == ("engines" in shared)
    assert not shared or spec.policy is not None
    for role in shared.values():
        policy = placed.layouts["policy"]
        of_policy = {device for devices in policy.devices for device in devices}
        assert {device for devices in role.devices for device in devices} <= of_policy
        assert set(role.bundles) <= set(policy.bundles)


@given(runs, clusters)
def test_more_of_everything_never_hurts(spec: RunSpec, there: Cluster) -> None:
    assume(spec.placement.device != "auto" and placed_or_none(spec, there) is not None)
    larger = Node(name="larger", cpus=64, gpus=8, cores=64)
    assert placed_or_none(spec, Cluster(nodes=(*there.nodes, larger))) is not None
