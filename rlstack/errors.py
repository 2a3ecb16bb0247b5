"""Exceptions that name what went wrong; each also inherits the standard type it refines."""


class ConfigError(ValueError):
    """A configuration key has an unknown name, a wrong type or an impossible value."""


class PlacementError(ValueError):
    """The cluster cannot hold the requested roles."""


class DataError(ValueError):
    """A dataset file or row cannot be used; the message names `file:line`."""


class RegistrationError(ValueError):
    """What is registered by name is unknown, cannot be loaded, or has wrong parameters."""


class RewardError(RegistrationError):
    """A reward or reward plugin is unknown, cannot be loaded, or has wrong parameters."""


class EnvironmentSetupError(RegistrationError):
    """An environment or its plugin is unknown, cannot be loaded, or has wrong parameters."""


class AlgorithmError(RegistrationError):
    """A part of an algorithm or its plugin is unknown, does not load, or has wrong parameters."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, incomplete or belongs to a different run configuration."""


class WeightSyncError(RuntimeError):
    """An engine does not hold the weights that the trainer published."""


class WorkerError(RuntimeError):
    """A worker process failed and could not be replaced."""


class TrainingError(RuntimeError):
    """Training was ended: its updates are skipped, or a metric is beyond a bound that stops it."""


class EngineLostError(WorkerError):
    """A rollout engine died during a call to all of them; its replacement has begun."""


class RankDiedError(WorkerError):
    """A rank of a role died or was stuck; the text says which, and what it said last."""


class EpisodeError(RuntimeError):
    """An environment raised, died or answered what is no turn; the text says which."""


class EpisodeTimeoutError(EpisodeError):
    """An environment did not answer within `environment.timeout_s`."""
