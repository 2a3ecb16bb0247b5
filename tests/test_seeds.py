"""Seeds: the same for the same purpose and numbers, different for any other."""

from itertools import product

from rlstack.seeds import Domain, derived_seed, generator


def test_no_two_uses_share_a_seed() -> None:
    seeds = [
        derived_seed(seed, domain, *numbers)
        for seed, domain in product((0, 1, 7), Domain)
        for numbers in [(), *product(range(5)), *product(range(5), range(5))]
    ]
    assert len(set(seeds)) == len(seeds)


def test_seeds_are_part_of_every_result_and_so_never_change() -> None:
    assert derived_seed(0, Domain.ROLLOUT, 3, 1) == 1692564802
    assert list(generator(0, Domain.MINIBATCHES, 1, 0).permutation(4)) == [3, 2, 1, 0]
