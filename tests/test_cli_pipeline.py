"""`rlstack pipeline` on the real stack: killed, continued, and nothing done twice."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.test_cli_runs import finish, kill, logged_steps, start, wait_until
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]

PIPELINE = """
# @package _global_
stages:
  - name: warm
    command: sft
    arguments:
      - model.path=model
      - "data.train=[{type: file, path: rows.jsonl}]"
      - data.prompts_per_step=2
      - data.max_prompt_tokens=16
      - max_response_tokens=16
      - total_steps=40
      - trainer.learning_rate=1.0e-3
      - placement.device=cpu
      - checkpoint.every=2
  - name: halfway
    command: merge
    arguments: [model, "${stage:warm}"]
"""


def test_a_killed_pipeline_goes_on_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    rows = [{"prompt": f"{i}", "response": f"{i}{i}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/short.yaml").write_text(PIPELINE)
    own = ("--config-dir", str(tmp_path / "own"), "experiment=short")
    run = start("pipeline", *own, "run_dir=run", cwd=tmp_path)
    warm = tmp_path / "run/warm"
    wait_until(lambda: any(warm.glob("checkpoints/step_*")), run)
    kill(run)
    done_before = max(int(path.name[5:]) for path in (warm / "checkpoints").glob("step_*"))
    assert done_before < 40, "it was to be killed on the way"

    run = start("pipeline", "resume=run", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    assert "pipeline 1/2: warm (sft): resume" in output
    assert logged_steps(warm) == list(range(1, 41))
    ours, theirs, both = (
        load_file(folder / "model.safetensors")
        for folder in (warm / "export", tmp_path / "model", tmp_path / "run/halfway/export")
    )
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, (ours[name] + theirs[name]) / 2)

    run = start("pipeline", *own, "run_dir=run", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    assert "pipeline 1/2: warm (sft): done already" in output
    assert "pipeline 2/2: halfway (merge): done already" in output
