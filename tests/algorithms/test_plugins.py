"""Advantages, policy losses and filtrations of users: what they are given and what is checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlstack.algorithms import plugins
from rlstack.algorithms.catalog import estimate_advantages, policy_loss
from rlstack.algorithms.filtration_policies import filtration_policy
from rlstack.commands.rl_roles import check_plugin_parts, chosen_filtration
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.errors import AlgorithmError, ConfigError
from rlstack.types import Candidates
from tests.algorithms.test_catalog import algorithm, policy_batch, token_batch
from tests.config.test_load import rl_values

METHOD = """
import numpy as np
import torch

from rlstack.algorithms.plugins import (
    register_advantage, register_filtration, register_policy_loss,
)
from rlstack.batch import TokenBatch
from rlstack.types import Candidates


@register_advantage("own_scaled")
def own_scaled(batch: TokenBatch, *, scale: float = 1.0) -> torch.Tensor:
    return scale * batch.rewards.nan_to_num()


@register_advantage("own_per_token")
def own_per_token(batch: TokenBatch) -> torch.Tensor:
    return torch.full(batch.loss_mask.shape, 2.0)


@register_advantage("own_misshapen")
def own_misshapen(batch: TokenBatch) -> torch.Tensor:
    return torch.zeros(1)


@register_advantage("own_careless")
def own_careless(batch: TokenBatch) -> torch.Tensor:
    return batch.rewards


@register_policy_loss("own_reinforce")
def own_reinforce(logprobs, old_logprobs, advantages, loss_mask, *, weight: float):
    return -weight * advantages * logprobs


@register_filtration("own_long")
def own_long(candidates: Candidates, *, at_least: int) -> np.ndarray:
    return np.flatnonzero((candidates.lengths >= at_least) & ~np.isnan(candidates.rewards))


@register_filtration("own_everything")
def own_everything(candidates: Candidates) -> np.ndarray:
    return np.arange(len(candidates.rewards))
"""


@pytest.fixture(scope="module")
def method(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugins") / "method.py"
    file.write_text(METHOD)
    return file


def with_parts(method: Path, *overrides: str) -> RLConfig:
    return parse(RLConfig, rl_values(f"algorithm.plugins=[{method}]", *overrides))


def advantage(method: Path, function: str, params: str = "{}") -> RLConfig:
    chosen = f"algorithm.advantage.function={function}"
    return with_parts(
        method, "algorithm/advantage=plugin", chosen, f"++algorithm.advantage.params={params}"
    )


def test_an_advantage_of_a_rollout_is_that_of_its_tokens(method: Path) -> None:
    config = advantage(method, "own_scaled", "{scale: 3.0}").algorithm
    batch = token_batch()
    found = estimate_advantages(
        batch, batch.rollout_logprobs, batch.rollout_logprobs, config=config, kl_coef=0.0
    ).advantages
    expected = torch.where(batch.loss_mask, 3.0 * batch.rewards.nan_to_num().unsqueeze(1), 0.0)
    torch.testing.assert_close(found, expected)


def test_an_advantage_of_tokens_counts_where_tokens_train(method: Path) -> None:
    batch = token_batch()
    found = estimate_advantages(
        batch,
        batch.rollout_logprobs,
        batch.rollout_logprobs,
        config=advantage(method, "own_per_token").algorithm,
        kl_coef=0.0,
    ).advantages
    torch.testing.assert_close(found, torch.where(batch.loss_mask, 2.0, 0.0))


def test_an_advantage_of_another_shape_is_refused(method: Path) -> None:
    batch = token_batch()
    with pytest.raises(AlgorithmError, match=r"'own_misshapen' returned \[1\]; expected one for"):
        estimate_advantages(
            batch,
            batch.rollout_logprobs,
            batch.rollout_logprobs,
            config=advantage(method, "own_misshapen").algorithm,
            kl_coef=0.0,
        )


def test_an_advantage_that_is_not_finite_names_its_row(method: Path) -> None:
    batch = token_batch()
    with pytest.raises(AlgorithmError, match="not finite in row 7, whose reward is nan"):
        estimate_advantages(
            batch,
            batch.rollout_logprobs,
            batch.rollout_logprobs,
            config=advantage(method, "own_careless").algorithm,
            kl_coef=0.0,
        )


def test_a_shipped_filtration_is_not_replaced_by_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def best(candidates: Candidates) -> Any: ...

    entries = dict(plugins.FILTRATIONS._entries)  # others of this process stay
    monkeypatch.setattr(plugins.FILTRATIONS, "_entries", entries)
    plugins.register_filtration("best")(best)
    with pytest.raises(AlgorithmError, match="'best' is one that ships with rlstack"):
        filtration_policy("best")


def test_a_loss_is_that_of_the_shipped_one_that_it_repeats(method: Path) -> None:
    own = with_parts(
        method,
        "algorithm/policy_loss=plugin",
        "algorithm.policy_loss.function=own_reinforce",
        "++algorithm.policy_loss.params={weight: 1.0}",
    ).algorithm
    shipped = algorithm("algorithm/policy_loss=policy_gradient")
    batch = policy_batch(shipped)
    logprobs = (batch.old_logprobs - 0.1).where(batch.loss_mask, 0.0)
    entropy = torch.zeros_like(logprobs)
    found, measured = policy_loss(batch, logprobs, entropy, config=own)
    expected, reference = policy_loss(batch, logprobs, entropy, config=shipped)
    torch.testing.assert_close(found, expected)
    assert measured.values() == pytest.approx(reference.values())


def candidates() -> Candidates:
    return Candidates(
        rewards=np.array([1.0, np.nan, 0.0, 0.5]),
        group_ids=np.array([0, 0, 1, 1]),
        lengths=np.array([3, 9, 9, 1]),
        truncated=np.zeros(4, dtype=np.bool_),
    )


def test_a_filtration_keeps_its_rows(method: Path) -> None:
    config = with_parts(
        method, "algorithm.filtration.name=own_long", "+algorithm.filtration.params.at_least=3"
    )
    chosen = chosen_filtration(config)
    assert chosen is not None
    assert chosen.select(candidates(), seed=0).tolist() == [0, 2]


def test_a_filtration_that_keeps_an_unjudged_row_is_refused(method: Path) -> None:
    plugins.load_plugins((str(method),))
    with pytest.raises(AlgorithmError, match="row 1 of 4"):
        filtration_policy("own_everything").select(candidates(), seed=0)


@pytest.mark.parametrize(
    ("function", "params", "message"),
    [
        ("own_scale", "{}", "'own_scale' is unknown. Did you mean 'own_scaled'"),
        ("own_scaled", "{scales: 1}", "no parameter 'scales': did you mean 'scale'"),
        ("own_scaled", "{scale: much}", "parameter 'scale': expected float"),
    ],
)
def test_mistakes_are_named_before_anything_starts(
    method: Path, function: str, params: str, message: str
) -> None:
    with pytest.raises(AlgorithmError, match=message):
        check_plugin_parts(advantage(method, function, params).algorithm)


def test_a_plugin_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AlgorithmError, match=r"none\.py.*algorithm\.plugins"):
        check_plugin_parts(advantage(tmp_path / "none.py", "own_scaled").algorithm)


def test_a_function_that_takes_something_else_is_refused() -> None:
    def without_mask(logprobs: Any, old_logprobs: Any, advantages: Any) -> Any: ...

    with pytest.raises(AlgorithmError, match="takes 3 arguments by position; expected 4: logprobs"):
        plugins.register_policy_loss("without_mask")(without_mask)


def test_a_plugin_part_names_its_function(method: Path) -> None:
    with pytest.raises(ConfigError, match=r"algorithm.advantage.*function"):
        with_parts(method, "algorithm/advantage=plugin")


def test_paths_hold_in_other_folders(monkeypatch: pytest.MonkeyPatch, method: Path) -> None:
    monkeypatch.chdir(method.parent)
    config = parse(RLConfig, rl_values("algorithm.plugins=[method.py,json]"))
    assert config.algorithm.plugins == (str(method), "json")
