"""The report of a run directory: complete, escaped, self-contained, and right in a browser."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rlstack.errors import DataError
from rlstack.run import jsonl
from rlstack.run.report import write_report
from rlstack.run.rollout_log import write_rollouts
from rlstack.types import FinishReason, Group, Prompt, Rollout, Score, Turn, TurnRecord

NASTY = "</pre><script>document.title='owned'</script>"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    rows = [{"step": 0, "time": 100.0, "eval/pass@1": 0.25}]
    spans, step_s = [], 1.5
    for step in range(1, 6):
        row = {
            "step": step,
            "time": 100.0 + step * 2,
            "reward/mean": 0.3 + step / 10,
            "rollout/response_tokens": 20.0 + step,
            "policy/entropy": 1.0 / step,
            "policy/approx_kl": 1e-4 * step,
            "time/step_s": step_s + step / 10,
            "time/rollout_s": 0.8,
            "time/update_s": 0.5,
            "rollout/num_tokens": 1000.0,
            f"reward/part/{NASTY}": 0.5,
            "reward/part/format": 1.0,
        }
        if step == 5:
            row["eval/pass@1"] = 0.875
        rows.append(row)
        spans += [
            {"step": step, "name": "rollout", "start_s": 0.0, "end_s": 0.8},
            {"step": step, "name": "update", "start_s": 0.9, "end_s": 1.4},
            {"step": step, "name": "evaluation", "start_s": 9.0, "end_s": 9.9},
        ]
    jsonl.write(tmp_path / "metrics.jsonl", rows)
    jsonl.write(tmp_path / "timeline.jsonl", spans)
    (tmp_path / "config.yaml").write_text(f"model:\n  path: '{NASTY}'\n")
    for step in (1, 3, 5):
        write_rollouts([group([1.0, 0.0, None])], run_dir=tmp_path, step=step)
    return tmp_path


def group(rewards: list[float | None]) -> Group:
    prompt = Prompt(
        prompt_id=NASTY,
        data_source=NASTY,
        text=NASTY,
        token_ids=np.array([1]),
        answer=NASTY,
        reward=None,
        metadata={},
    )
    rollouts = [
        Rollout(
            prompt=prompt,
            sample_index=index,
            text=f"{NASTY} \u2028 \x85",
            response_ids=np.arange(3),
            logprobs=np.zeros(3, dtype=np.float32),
            loss_mask=np.ones(3, dtype=np.bool_),
            finish_reason=FinishReason.STOP,
            policy_versions=np.zeros(3, dtype=np.int32),
        )
        for index in range(len(rewards))
    ]
    scores = [Score(value=r, parts={NASTY: r or 0.0}, errors=(NASTY,)) for r in rewards]
    return Group(number=0, prompt=prompt, rollouts=tuple(rollouts), scores=tuple(scores))


class Structure(HTMLParser):
    """Tags in order, and whether they nest."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_what_held_out_pairs_say_of_a_reward_model(run_dir: Path) -> None:
    assert "Latest held-out pairs" not in write_report(run_dir).read_text()
    reliability = [{"position": 0.625, "value": 0.75, "count": 3}]
    lengths = [{"position": 12.5, "value": -1.5, "count": 3}]
    curves = {"reliability": reliability, "score_by_length": lengths}
    (run_dir / "held_out.json").write_text(json.dumps(curves))
    page = write_report(run_dir).read_text()
    assert "<title>model: confidence 0.625, 0.75</title>" in page
    assert "<title>score: tokens 12.5, -1.5</title>" in page
    Structure().feed(page)


def test_the_page_is_well_formed_escaped_and_self_contained(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert "script" not in structure.tags
    assert structure.tags.count("svg") == 8  # seven curves with data and the timeline
    assert not re.search(r"(src|href)=|url\(|@import|https?:", page)
    assert str(run_dir.parent) not in page
    assert "0.25 &rarr; 0.88" in page
    assert page.count('class="card rollout good"') == 3
    assert page.count('class="card rollout bad"') == 3
    assert ">5000</b><span>tokens generated" in page
    assert "evaluation" not in page  # it lies between steps


def test_shares_of_overlapping_spans_add_up(run_dir: Path) -> None:
    spans = [
        {"step": 1, "name": "policy", "start_s": 0.0, "end_s": 0.8},
        {"step": 1, "name": "reference", "start_s": 0.0, "end_s": 0.4},
    ]
    jsonl.write(run_dir / "timeline.jsonl", spans)
    page = write_report(run_dir).read_text()  # step 1 takes 1.6 s
    assert "policy 37.5%" in page
    assert "reference 12.5%" in page
    assert "other 50.0%" in page


def test_values_that_are_not_finite_are_left_out_of_the_picture(tmp_path: Path) -> None:
    norms = [1.0, float("nan"), float("inf"), 3.0]
    rows = [{"step": i, "time": 1.0 * i, "policy/grad_norm": n} for i, n in enumerate(norms)]
    jsonl.write(tmp_path / "metrics.jsonl", rows)
    page = write_report(tmp_path).read_text()
    assert re.findall(r"<title>policy/grad_norm: (.*?)</title>", page) == ["step 0, 1", "step 3, 3"]


def test_a_run_that_is_still_writing_gets_a_report(run_dir: Path) -> None:
    for name in ("metrics.jsonl", "timeline.jsonl"):
        with (run_dir / name).open("a") as file:
            file.write('{"step": 6, "na')
    assert "<b>5</b><span>steps</span>" in write_report(run_dir).read_text()


def test_an_evaluation_shows_its_rollouts(tmp_path: Path) -> None:
    jsonl.write(tmp_path / "metrics.jsonl", [{"step": 1, "time": 1.0, "eval/pass@1": 0.5}])
    write_rollouts([group([1.0, 0.0])], run_dir=tmp_path, step=1, evaluation=True)
    page = write_report(tmp_path).read_text()
    assert page.count('class="card rollout') == 2


def test_an_episode_shows_its_turns_and_marks_what_the_tool_said(tmp_path: Path) -> None:
    jsonl.write(tmp_path / "metrics.jsonl", [{"step": 1, "time": 1.0, "rollout/num_turns": 2.0}])
    plain = group([1.0])
    answer = Turn(observation=NASTY, role="tool", reward=0.25)
    turns = (
        TurnRecord(action="let me run it", end=1, answer=answer),
        TurnRecord(action="it is 4", end=2, answer=None),
    )
    played = replace(plain, rollouts=tuple(replace(r, turns=turns) for r in plain.rollouts))
    write_rollouts([played], run_dir=tmp_path, step=1)
    page = write_report(tmp_path).read_text()
    assert "Turns and tool calls of an episode" in page
    for text in ("<dt>turn 1</dt>", "let me run it", "<dt>turn 2</dt>", "it is 4", "reward 0.25"):
        assert text in page
    assert '<dt>tool</dt><dd><pre class="tool">&lt;/pre&gt;' in page
    assert NASTY not in page


def test_a_run_that_measured_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert "Nothing was measured yet" in write_report(tmp_path).read_text()


def test_each_part_of_a_step_has_its_own_colour(run_dir: Path) -> None:
    names = ["rollout", "scoring", "logprobs", "reference", "values", "update", "reallocation"]
    spans = [
        {"step": 1, "name": name, "start_s": i / 10, "end_s": (i + 1) / 10}
        for i, name in enumerate(names)
    ]
    jsonl.write(run_dir / "timeline.jsonl", spans)
    page = write_report(run_dir).read_text()
    assert len(set(re.findall(r'<rect class="bar (c\d)"', page))) == len(names)


def test_a_run_that_recorded_little_still_gets_a_report(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "sft/loss": 2.0}\n')
    page = write_report(tmp_path).read_text()
    assert "Supervised loss" in page
    assert "Sample rollouts" not in page


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a run directory: it has no metrics\.jsonl"):
        write_report(tmp_path)


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_it(run_dir: Path, tmp_path: Path) -> None:
    page = write_report(run_dir)
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1100,1600",
        f"--screenshot={tmp_path / 'page.png'}",
        "--enable-logging=stderr",
        "--dump-dom",
        page.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>" in shown.stdout
    assert "owned" not in re.findall(r"<title>(.*?)</title>", shown.stdout)[0]
    assert shown.stdout.count("<svg") == 8
    assert "CONSOLE" not in shown.stderr
