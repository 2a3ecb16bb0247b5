"""Versions of the libraries whose change may change results."""

from importlib.metadata import version

LIBRARIES = ("torch", "deepspeed", "transformers", "peft", "ray")


def library_versions() -> dict[str, str]:
    """Name -> version of each."""
    return {name: version(name) for name in LIBRARIES}
