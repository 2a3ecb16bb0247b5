"""Which roles an RL run has, and what can be checked of them before any process starts."""

from rlstack.algorithms import plugins
from rlstack.algorithms.filtration_policies import filtration_policy
from rlstack.algorithms.plugins import load_plugins
from rlstack.commands.wiring import reward_models
from rlstack.config.algorithm import AlgorithmConfig, DistillationAdvantage, PluginPart
from rlstack.config.model import ModelConfig
from rlstack.config.run import RLConfig
from rlstack.errors import ConfigError
from rlstack.planning.spec import FrozenRole, RunSpec, TrainedRole
from rlstack.protocols import Filtration
from workers.models.adapter_targets import check_adapters
from workers.models.preflight import check_model, check_scalar_model, load_tokenizer, same_tokens


def run_spec(config: RLConfig) -> RunSpec:
    """The roles of an RL run."""
    algorithm = config.algorithm
    longest = max(config.rollout.max_response_tokens, config.evaluation.max_response_tokens)
    updates_per_step = algorithm.epochs * algorithm.updates_per_epoch
    total_updates = config.total_steps * updates_per_step
    critic, warmup_updates = None, 0
    if config.critic is not None:
        critic = TrainedRole(
            model=critic_model(config), trainer=config.critic.trainer, total_updates=total_updates
        )
        warmup_updates = min(config.critic.warmup_steps, config.total_steps) * updates_per_step
    return RunSpec(
        placement=config.placement,
        model=config.model,
        seed=config.seed,
        policy=TrainedRole(
            model=config.model,
            trainer=config.trainer,
            total_updates=max(1, total_updates - warmup_updates),
        ),
        critic=critic,
        reference=reference(config),
        reward_models=reward_models(config.reward),
        rollout=config.rollout,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=longest,
        ray_address=config.ray_address,
        faults=config.faults,
    )


def reference(config: RLConfig) -> FrozenRole | None:
    """The policy as it starts, or a teacher; None where nothing is compared with either."""
    if not config.algorithm.needs_reference:
        return None
    model, chosen = config.model, config.algorithm.advantage
    if isinstance(chosen, DistillationAdvantage):
        model = model.model_copy(update={"path": chosen.teacher})
    return FrozenRole(
        model=model,
        config=config.reference,
        max_tokens_per_microbatch=config.trainer.max_tokens_per_microbatch,
        logprob_chunk_tokens=config.trainer.logprob_chunk_tokens,
    )


def check_teacher(config: RLConfig) -> None:
    """Fail early if there is a teacher and it cannot judge the policy's tokens.

    Raises:
        ConfigError: if its path holds no usable model, or its tokenizer is another.
    """
    chosen = config.algorithm.advantage
    if not isinstance(chosen, DistillationAdvantage):
        return
    teacher = config.model.model_copy(update={"path": chosen.teacher})
    key = "algorithm.advantage.teacher"
    check_model(teacher, key=key)
    if not same_tokens(load_tokenizer(teacher), load_tokenizer(config.model)):
        raise ConfigError(
            f"{key}: the tokenizer of {chosen.teacher!r} has other tokens than that of "
            f"{config.model.path!r}, and a teacher judges the policy's own tokens; give a model "
            "with the policy's tokenizer"
        )


def critic_model(config: RLConfig) -> ModelConfig:
    """What the critic starts as: a model of its own, or the policy."""
    assert config.critic is not None
    return config.model.model_copy(update={"path": config.critic.path or config.model.path})


def check_critic(config: RLConfig) -> None:
    """Fail early if there is a critic and it cannot read what the policy writes.

    Raises:
        ConfigError: if its path holds no usable model, or its tokenizer is another.
    """
    if config.critic is None:
        return
    model = critic_model(config)
    check_adapters(model, config.critic.trainer.lora, key="critic.trainer.lora")
    check_scalar_model(model, key="critic.path")
    if not same_tokens(load_tokenizer(model), load_tokenizer(config.model)):
        raise ConfigError(
            f"critic.path: the tokenizer of {model.path!r} has other tokens than that of "
            f"{config.model.path!r}, and a critic values the policy's own tokens; give a model "
            "with the policy's tokenizer, or critic.path=null to start from the policy. (A reward "
            "model may have any tokenizer: it reads text)"
        )


def check_plugin_parts(algorithm: AlgorithmConfig) -> None:
    """Fail early if an advantage or a loss of a plugin cannot be what it is meant to be.

    Raises:
        AlgorithmError: if a plugin cannot be imported, or a name or a parameter is unknown, missing
            or wrong.
    """
    load_plugins(algorithm.plugins)
    for registry, part in (
        (plugins.ADVANTAGES, algorithm.advantage),
        (plugins.POLICY_LOSSES, algorithm.policy_loss),
    ):
        if isinstance(part, PluginPart):
            registry.bind(part.function, part.params)


def chosen_filtration(config: RLConfig) -> Filtration | None:
    """The filtration policy; None where every rollout is trained on.

    Raises:
        AlgorithmError: if its name or a parameter is unknown, missing or wrong.
    """
    load_plugins(config.algorithm.plugins)
    chosen = config.algorithm.filtration
    policy = filtration_policy(chosen.name, **chosen.params)
    return None if chosen.name == "none" else policy
