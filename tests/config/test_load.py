"""Every shipped configuration parses; every mistake is named with its key and the fix."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from rewards.environments.registry import EnvironmentSpec, load_environment
from rlstack.config.algorithm import GSPOLoss, PPOClipLoss
from rlstack.config.load import dump, parse
from rlstack.config.pipeline import PipelineConfig, register_stage_references
from rlstack.config.reward_model import RewardModelConfig
from rlstack.config.rounds import DPOConfig, RejectionSamplingConfig
from rlstack.config.run import EvalConfig, RLConfig, RunSchema
from rlstack.config.supervised import SFTConfig
from rlstack.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
ALGORITHMS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
VARIANTS = sorted(
    f"algorithm/{path.parent.name}={path.stem}" for path in (CONF / "algorithm").glob("*/*.yaml")
)
REWARDS = sorted(path.stem for path in (CONF / "reward").glob("*.yaml"))
ENVIRONMENTS = sorted({p.stem for p in (CONF / "environment").glob("*.yaml")} - {"default"})
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SCHEMAS: dict[str, type[RunSchema]] = {
    "rl": RLConfig,
    "sft": SFTConfig,
    "reward_model": RewardModelConfig,
    "dpo": DPOConfig,
    "rejection_sampling": RejectionSamplingConfig,
    "eval": EvalConfig,
}
APPS = {**SCHEMAS, "pipeline": PipelineConfig}
SOURCE = "{type: file, path: rows.jsonl}"
TEACHER = {
    "distillation": ["algorithm.advantage.teacher=t"],
    "plugin": ["algorithm.advantage.function=f"],
}
"""What must be given beside an algorithm or advantage of this name."""


def composed(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_module(version_base="1.3", config_module="conf"):
        config = compose(name, overrides=["run_dir=run", *overrides])
    register_stage_references()
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def rl_values(*overrides: str) -> dict[str, Any]:
    sources = [f"data.train=[{SOURCE}]", f"data.eval=[{SOURCE}]"]
    return composed("rl", "model.path=m", *sources, *overrides)


def problems(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(RLConfig, values)
    return str(caught.value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_parses(name: str) -> None:
    command = next((c for c in ("sft", "reward_model") if name.startswith(c)), "rl")
    if "stages:" in (CONF / f"experiment/{name}.yaml").read_text():
        command = "pipeline"
    model = [] if command == "pipeline" else ["model.path=m"]
    values = composed(command, f"experiment={name}", *model)
    config = parse(APPS[command], values)
    assert parse(APPS[command], yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize("override", [*(f"algorithm={name}" for name in ALGORITHMS), *VARIANTS])
def test_every_algorithm_and_each_of_its_variants_parses(override: str) -> None:
    method = ["algorithm=ppo"] if override.endswith("=gae") else []
    if override == "algorithm/policy_loss=plugin":
        method += ["algorithm.policy_loss.function=f"]
    else:
        method += TEACHER.get(override.rpartition("=")[2], [])
    assert parse(RLConfig, rl_values(*method, override))


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_recipe_parses_and_its_saved_form_too(name: str) -> None:
    needed = {
        "environment": ["environment=reasoning_gym_retry"],
        "model": ["reward.model.checkpoints=[m]"],
    }
    config = parse(RLConfig, rl_values(f"reward={name}", *needed.get(name, [])))
    assert parse(RLConfig, yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("command", ["rl", "eval"])
def test_every_environment_parses_and_exists(command: str, name: str) -> None:
    source = f"data.{'train' if command == 'rl' else 'eval'}=[{SOURCE}]"
    overrides = [source, f"environment={name}", "model.path=m", "evaluation.every=0"]
    config = parse(SCHEMAS[command], composed(command, *overrides))
    assert isinstance(config, RLConfig | EvalConfig)
    assert config.environment is not None
    environment = config.environment
    load_environment(EnvironmentSpec(name=environment.name, params=environment.params))


def test_without_an_environment_there_is_none() -> None:
    assert parse(RLConfig, rl_values()).environment is None


@pytest.mark.parametrize(
    ("components", "problem"),
    [
        ("[{name: format}, {name: format}]", "'format' is listed 2 times; keep one, or give them"),
        ("[{name: format, gate: shape}]", "the gate 'shape' of 'format' is no other component"),
        ("[{name: format, gate: format}]", "the gate 'format' of 'format' is no other component"),
        ("[{name: format, gate_min: 0.5}]", "gate_min of 'format' has no gate"),
        ("[{name: row, params: {x: 1}}]", "'row' takes no params"),
        ("[{name: format, on_error: ignore}]", "reward.components[0].on_error"),
        ("[{name: format, data_sources: []}]", "reward.components[0].data_sources"),
        ("[{name: format, timeout_s: 0}]", "reward.components[0].timeout_s"),
        ("[{name: format, weight: heavy}]", "reward.components[0].weight"),
        ("[{name: format, weight: {start: 1, end: 0, steps: 0}}]", "steps"),
    ],
)
def test_reward_components_that_cannot_be(components: str, problem: str) -> None:
    assert problem in problems(rl_values(f"reward.components={components}"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_parts_of_an_algorithm_can_be_exchanged(name: str) -> None:
    parts = ["algorithm/policy_loss=gspo", "algorithm/correction=none"]
    given = [f"algorithm={name}", *parts, *TEACHER.get(name, [])]
    chosen = parse(RLConfig, rl_values(*given)).algorithm
    assert chosen.correction.name == "none"
    assert chosen.policy_loss == GSPOLoss(name="gspo", clip_low=3e-4, clip_high=4e-4)


def test_the_clip_of_dapo_is_higher_and_can_be_overridden() -> None:
    def clip_high(*overrides: str) -> float:
        chosen = parse(RLConfig, rl_values("algorithm=dapo", *overrides)).algorithm.policy_loss
        assert isinstance(chosen, PPOClipLoss)
        assert chosen.clip_low == 0.2
        return chosen.clip_high

    assert clip_high() == 0.28
    assert clip_high("algorithm.policy_loss.clip_high=0.3") == 0.3


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (CONF / "algorithm" / "advantage").glob("*.yaml"))
)
def test_every_advantage_parses_and_says_whether_it_needs_a_group(name: str) -> None:
    override = f"algorithm/advantage={name}"
    algorithm = "algorithm=ppo" if name == "gae" else "algorithm=grpo"
    given = [override, *TEACHER.get(name, [])]
    assert parse(RLConfig, rl_values(algorithm, *given)).algorithm.advantage.name == name
    alone = rl_values(*given, "rollout.num_samples=1")
    if name == "gae":
        assert "critic: is missing" in problems(rl_values(override))
        assert parse(RLConfig, rl_values("algorithm=ppo", "rollout.num_samples=1"))
    elif name in ("remax", "reinforce_plus_plus", "distillation", "plugin"):
        assert parse(RLConfig, alone)
    else:
        assert f"rollout.num_samples: advantage {name} compares" in problems(alone)


def test_a_method_has_the_settings_of_its_paper() -> None:
    baseline = parse(RLConfig, rl_values("algorithm=reinforce_plus_plus_baseline")).algorithm
    assert baseline.advantage.model_dump() == {
        "name": "reinforce_plus_plus",
        "group_baseline": True,
    }
    assert (baseline.kl.placement, baseline.kl.estimator, baseline.kl.coef) == ("loss", "k2", 0.001)
    remax = parse(RLConfig, rl_values("algorithm=remax")).algorithm
    assert (remax.kl.placement, remax.kl.estimator, remax.kl.coef) == ("reward", "k1", 0.05)
    assert remax.needs_baseline
    opo = parse(RLConfig, rl_values("algorithm=opo")).algorithm
    assert (opo.epochs, opo.updates_per_epoch, opo.kl.coef, opo.entropy_coef) == (1, 1, 0, 0)
    assert not opo.needs_baseline


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_command_needs_a_model(name: str) -> None:
    values = composed(name, f"data.train=[{SOURCE}]", f"data.eval=[{SOURCE}]")
    with pytest.raises(ConfigError, match=r"model\.path: must be given: model\.path=VALUE"):
        parse(SCHEMAS[name], values)


def test_fewer_than_150_keys() -> None:
    def leaves(value: Any) -> int:
        return sum(map(leaves, value.values())) if isinstance(value, dict) else 1

    assert leaves(rl_values()) < 150


def test_a_number_in_scientific_notation_is_a_number() -> None:
    assert parse(RLConfig, rl_values("trainer.learning_rate=1e-5")).trainer.learning_rate == 1e-5


def test_all_mistakes_come_in_one_message() -> None:
    values = rl_values("trainer.learning_rate=-1", "algorithm.policy_loss.clip_low=high")
    values["rollout"]["temperature_x"] = values["rollout"].pop("temperature")
    values["algorithm"]["advantage"]["name"] = "groq"
    message = problems(values)
    assert "5 problems" in message
    assert "rollout.temperature: missing" in message
    assert "rollout.temperature_x: unknown key; did you mean rollout.temperature?" in message
    assert "trainer.learning_rate: got -1; expected more than 0" in message
    assert "algorithm.policy_loss.clip_low: got high; expected a number" in message
    assert "algorithm.advantage.name: got 'groq'; expected 'grpo' or" in message


def test_impossible_combinations_are_found_beside_wrong_keys() -> None:
    values = rl_values("trainer.learning_rate=-1", "algorithm.updates_per_epoch=7")
    with pytest.raises(ConfigError) as caught:
        parse(RLConfig, values, fallback=rl_values())
    assert "2 problems" in str(caught.value)
    assert "algorithm.updates_per_epoch: 7 does not divide" in str(caught.value)


def test_a_combination_with_a_wrong_key_is_not_guessed_about() -> None:
    values = rl_values("algorithm.updates_per_epoch=7", "rollout.num_samples=many")
    with pytest.raises(ConfigError) as caught:
        parse(RLConfig, values, fallback=rl_values())
    assert "1 problem in" in str(caught.value)
    assert "rollout.num_samples: got many; expected an integer" in str(caught.value)


def test_an_unknown_key_gets_the_closest_known_one() -> None:
    values = rl_values()
    values["trainer"]["zero_stages"] = 2
    assert "trainer.zero_stages: unknown key; did you mean trainer.zero_stage?" in problems(values)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("learning_rate", 1e-3, "learning_rate: unknown key; did you mean trainer.learning_rate?"),
        ("trainer", 3, "trainer: got 3; expected a mapping"),
        ("seed", 1.5, "seed: got 1.5; expected an integer"),
        ("seed", "3", "seed: got '3'; expected an integer"),
        ("run_dir", 7, "run_dir: got 7; expected a string: run_dir='\"7\"'"),
    ],
)
def test_what_is_wrong_and_what_is_right(key: str, value: object, expected: str) -> None:
    assert expected in problems(rl_values() | {key: value})


def test_adapters_are_one_choice_away_and_their_keys_are_checked() -> None:
    lora = parse(RLConfig, rl_values("trainer=lora", "trainer.lora.rank=8")).trainer.lora
    assert lora is not None
    assert (lora.rank, lora.variant, lora.engines) == (8, "lora", "adapters")
    assert parse(RLConfig, rl_values()).trainer.lora is None
    values = rl_values("trainer=lora", "trainer.lora.rank=0")
    values["trainer"]["lora"]["ranks"] = 8
    message = problems(values)
    assert "trainer.lora.rank: got 0; expected at least 1" in message
    assert "trainer.lora.ranks: unknown key; did you mean trainer.lora.rank?" in message


def test_a_key_of_another_variant_names_the_right_ones() -> None:
    values = rl_values()
    values["algorithm"]["advantage"]["group_baseline"] = True
    expected = "algorithm.advantage.group_baseline: 'grpo' has no such key, only name"
    assert expected in problems(values)


def test_a_key_inside_a_list_is_named_as_typed() -> None:
    values = rl_values()
    values["data"]["train"][0]["limit"] = 0
    assert "data.train[0].limit: got 0" in problems(values)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.train=[]"], "data.train: is empty"),
        (["data.eval=[]"], "evaluation.every: needs data.eval"),
        (["algorithm.updates_per_epoch=7"], "algorithm.updates_per_epoch: 7 does not divide"),
        (
            ["data.prompts_per_step=3", "placement.trainer_ranks=5"],
            "placement.trainer_ranks: 5 does not divide the 24 rollouts of an update",
        ),
        (
            ["algorithm.kl.placement=reward", "algorithm.kl.estimator=k3_corrected"],
            "algorithm.kl.estimator: corrects the gradient of a loss",
        ),
        (["algorithm.kl.target=0.1"], "algorithm.kl.coef: is scaled to reach"),
        (
            ["algorithm=distillation", *TEACHER["distillation"], "algorithm.kl.coef=0.1"],
            "algorithm.kl.coef: is of the KL to a reference, in whose place the teacher stands",
        ),
        (["algorithm=distillation"], "algorithm.advantage.teacher: must be given"),
        (
            ["algorithm.kl.coef=0.1", "algorithm.kl.target=0.1", "algorithm.kl.horizon=100"],
            "algorithm.kl.horizon: 100 is less than the",
        ),
        (
            [
                "algorithm/correction=composed",
                "algorithm.correction.parts=[{name: truncated, level: token, cap: 2},"
                "{name: masked, level: sequence, low: 2, high: 1}]",
            ],
            "algorithm.correction.parts: truncated and masked both weigh by the ratio",
        ),
        (
            [
                "algorithm/correction=composed",
                "algorithm.correction.parts=[{name: truncated, level: token, cap: 2},"
                "{name: rejected, level: sequence, low: 2, high: 1}]",
            ],
            "algorithm.correction.parts[1].low: 2 is not below algorithm.correction.parts[1].high",
        ),
        (
            ["algorithm/correction=icepop", "algorithm.correction.low=7"],
            "algorithm.correction.low: 7 is not below algorithm.correction.high, 5",
        ),
        (["rollout.num_samples=1"], "rollout.num_samples: advantage grpo compares"),
        (
            ["algorithm=reinforce_plus_plus_baseline", "rollout.num_samples=1"],
            "rollout.num_samples: advantage reinforce_plus_plus compares",
        ),
        (
            ["algorithm=remax", "algorithm.dynamic_sampling.enabled=true"],
            "algorithm.dynamic_sampling.enabled: drops every group whose rewards are all equal",
        ),
        (["reward=environment"], "reward.components: 'environment' needs one; choose environment="),
        (
            ["environment=python_tool", "environment.max_observation_tokens=1024"],
            "environment.max_observation_tokens: 1024 leaves no room for another action",
        ),
        (["trainer.max_tokens_per_microbatch=100"], "trainer.max_tokens_per_microbatch: 100 is"),
        (["trainer.offload_parameters=true"], "trainer.offload_parameters: needs"),
        (["reference.offload_parameters=true"], "reference.offload_parameters: needs"),
        (["reference.update.every=1"], "reference.update.every: has no reference to move"),
        (
            ["algorithm=distillation", *TEACHER["distillation"], "reference.update.every=1"],
            "reference.update.every: moves a reference to the policy, and a teacher stays",
        ),
        (
            ["algorithm.kl.coef=0.1", "trainer=lora", "reference.update.every=1"],
            "reference.update.every: cannot move the reference of a policy with adapters",
        ),
        (
            ["algorithm.kl.coef=0.1", "reference.update.every=1", "reference.update.mix=0"],
            "reference.update.mix",
        ),
        (
            [
                "placement.device=cpu",
                "reference.zero_stage=3",
                "reference.offload_parameters=true",
            ],
            "reference.offload_parameters: moves parameters off a GPU",
        ),
        (
            ["trainer.zero_stage=0", "trainer.offload_optimizer=true"],
            "trainer.offload_optimizer: needs",
        ),
        (
            ["placement.device=cpu", "trainer.offload_optimizer=true"],
            "trainer.offload_optimizer: moves state off a GPU",
        ),
        (
            ["trainer=lora", "trainer.lora.variant=dora"],
            "trainer.lora.variant: dora: vLLM serves no such adapters; set trainer.lora.engines",
        ),
        (
            ["trainer=lora", "trainer.lora.rank=1024"],
            "trainer.lora.rank: 1024 is more than 512: vLLM serves no such adapters",
        ),
        (
            ["checkpoint.keep_best=eval/pass@1", "evaluation.every=0"],
            "checkpoint.keep_best: needs evaluations",
        ),
    ],
)
def test_impossible_combinations(overrides: list[str], expected: str) -> None:
    assert expected in problems(rl_values(*overrides))
