"""What runs elsewhere, at every commit and push, runs what is here."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yaml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def commands(job: str) -> str:
    return "\n".join(step.get("run", "") for step in WORKFLOW["jobs"][job]["steps"])


def test_the_workflow_runs_what_is_here() -> None:
    assert set(WORKFLOW["jobs"]) == {"test", "core"}
    assert ".ci/run" in commands("test")
    assert "make test\n" in (ROOT / ".ci/run").read_text()
    assert "pip install ." in commands("core")
    for job in WORKFLOW["jobs"]:
        for name in re.findall(r"(?:\.ci|tools|tests)/[\w./]+", commands(job)):
            assert (ROOT / name).is_file(), name
        for target in re.findall(r"\bmake ([\w-]+)", commands(job)):
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


@pytest.mark.parametrize("job", ["test", "core"])
def test_a_job_has_a_python_that_the_project_supports(job: str) -> None:
    steps: list[dict[str, Any]] = WORKFLOW["jobs"][job]["steps"]
    (python,) = (s["with"] for s in steps if s.get("uses", "").startswith("actions/setup-python@"))
    assert python["python-version"] in ("3.11", "3.12")
    assert python["cache"] == "pip"
    assert PROJECT["requires-python"] == ">=3.11,<3.13"


def test_hooks_run_linters_of_make_lint() -> None:
    (local,) = (repo["hooks"] for repo in HOOKS if repo["repo"] == "local")
    tools = {hook["entry"].split()[0] for hook in local}
    lint = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0].replace("$(BIN)", ".venv/bin")
    assert tools == set(re.findall(r"\S*/bin/[\w-]+", lint)) - {".venv/bin/pyright"}
    assert lint.count("pyright") == 1
    assert any(name.startswith("pre-commit>") for name in PROJECT["optional-dependencies"]["dev"])


def test_help_names_every_main_target() -> None:
    help_text = MAKEFILE.partition("\nhelp:")[2].partition("\n\n")[0]
    named = set(re.findall(r"make ([\w-]+)", help_text))
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    assert named <= targets
    assert targets - named == {"help", "setup"}
