"""Which role gets which resources."""

from rlstack.config.placement import RolePlacement
from rlstack.planning.placement import place
from tests.workers.conftest import placement_config

GUEST = RolePlacement(ranks=None, devices="policy")
OWN = RolePlacement(ranks=1, devices="own")


def test_guests_share_the_bundles_of_the_trainer() -> None:
    placed = place(
        placement_config(), trained=True, others={"critic": GUEST}, engines=True, device="gpu"
    )
    assert placed.ranks == {"trainer": (0, 1), "critic": (0, 1), "engines": (2,)}
    assert placed.bundles == [{"CPU": 2, "GPU": 1}] * 2 + [{"CPU": 1}]
    assert (placed.total("CPU"), placed.total("GPU")) == (5, 2)


def test_own_devices_are_bundles_of_their_own() -> None:
    placed = place(
        placement_config(mode="disaggregated", num_engines=2, tensor_parallel=2),
        trained=True,
        others={"critic": OWN, "reference": GUEST},
        engines=True,
        device="gpu",
    )
    assert placed.ranks == {
        "trainer": (0, 1),
        "critic": (2,),
        "reference": (0, 1),
        "engines": (3, 4),
    }
    assert [bundle.get("GPU") for bundle in placed.bundles] == [1, 1, 1, 2, 2]


def test_without_a_trainer_everything_has_its_own() -> None:
    placed = place(
        placement_config(),
        trained=False,
        others={"reward_model": GUEST},
        engines=True,
        device="gpu",
    )
    assert placed.ranks == {"reward_model": (0, 1), "engines": (2,)}
    assert placed.total("GPU") == 3
