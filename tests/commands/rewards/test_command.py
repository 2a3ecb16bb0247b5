"""`rlstack rewards`: what is listed, scored and written, and what it says of mistakes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlstack.commands.rewards import command as rewards_command
from rlstack.commands.rewards.command import RowResult, read_rows, summary, to_request
from rlstack.errors import DataError, RewardError
from rlstack.types import Message

PLUGIN = '''
import sys, time
from typing import Annotated
from pydantic import Field
from rewards.environments.registry import register_environment
from rewards.registry import register
from rlstack.types import Score

@register("{prefix}_score")
def score(request, *, scale: Annotated[float, Field(gt=0)] = 1.0):
    """Length, with a part. Second sentence."""
    if request.response == "raise":
        raise LookupError("nothing")
    if request.response == "hang":
        time.sleep(60)
    if request.response == "modules":
        return Score(value=float("ray" in sys.modules))
    return Score(value=scale * len(request.response), parts={{"extra": request.metadata["x"]}})

@register("{prefix}_group", batched=True)
def group(requests):
    return [float(len(requests))] * len(requests)

@register_environment("{prefix}_play")
class Play:
    """Nothing happens."""
    def reset(self, task): ...
    def step(self, action): ...
'''


def write_rows(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_plugin(folder: Path, prefix: str) -> str:
    path = folder / f"{prefix}.py"
    path.write_text(PLUGIN.format(prefix=prefix))
    return str(path)


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_has_one_object_a_row_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_plugin(tmp_path, "command_json")
    rows = write_rows(
        tmp_path,
        {"id": "a", "response": "hang", "x": 1},
        {"id": 2, "response": "four", "x": 0.5},
        {"response": "raise"},
        {"id": "d", "response": "modules"},
    )
    options = ["--rows", str(rows), "--plugin", plugin, "--json", "--timeout-s", "1"]
    rewards_command.run(["test", "command_json_score", *options, "--params", '{"scale": 2}'])
    results = json_lines(capsys)
    assert [sorted(result) for result in results] == [
        ["error", "id", "parts", "score", "seconds"]
    ] * 4
    assert [(r["id"], r["score"], r["error"]) for r in results] == [
        ("a", None, "timed out after 1 s"),
        (2, 8.0, None),
        (3, None, "command_json_score: LookupError: nothing"),
        ("d", 0.0, None),
    ]
    assert results[1]["parts"] == {"command_json_score": 8.0, "command_json_score/extra": 0.5}
    assert results[0]["seconds"] >= 1.0 > results[1]["seconds"] > 0.0


def test_neighbours_with_one_prompt_are_a_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_plugin(tmp_path, "command_group")
    prompts = ["p", "p", "q", "p"]
    rows = write_rows(tmp_path, *({"prompt": prompt, "response": "r"} for prompt in prompts))
    options = ["--rows", str(rows), "--plugin", plugin, "--json"]
    rewards_command.run(["test", "command_group_group", *options])
    assert [result["score"] for result in json_lines(capsys)] == [2.0, 2.0, 1.0, 1.0]


def test_row_is_the_reward_that_each_row_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"response": "9", "answer": 9, "reward": "exact_match"}
    rewards_command.run(["test", "row", "--rows", str(write_rows(tmp_path, row)), "--json"])
    assert [result["score"] for result in json_lines(capsys)] == [1.0]


def test_the_summary_shows_times_errors_and_the_distribution() -> None:
    results = [RowResult(f"r{i}", float(i % 2), {}, None, 0.001 * i) for i in range(30)]
    results += [RowResult(f"e{i}", None, {}, "broken", 0.5) for i in range(10)]
    lines = summary(results)
    assert "rows: 40   judged: 30   unjudged: 10   with errors: 10" in lines
    assert "time per row: median 19.50 ms, p99 500.00 ms, longest 500.00 ms" in lines
    assert "score: mean 0.5, lowest 0, highest 1" in lines
    assert [line.split()[:2] for line in lines if line.endswith("#")] == [["0", "15"], ["1", "15"]]
    assert "error in 10 of 40 rows, first e0: broken" in lines
    assert "... and 20 more; --json writes them all" in lines


def test_the_distribution_of_many_values_is_in_ranges() -> None:
    lines = summary([RowResult(i, float(i), {}, None, 0.0) for i in range(101)])
    bars = [line.split() for line in lines if ".." in line and line.endswith("#")]
    assert [int(bar[3]) for bar in bars] == [10] * 9 + [11]


def test_list_names_source_parameters_and_meaning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_plugin(tmp_path, "command_list")
    rewards_command.run(["list", "--plugin", plugin])
    out = capsys.readouterr().out
    assert "math_answer  (built-in)\n    1.0 if the final answer is" in out
    assert f"command_list_group  ({plugin}:20, whole groups)\n    no documentation\n" in out
    assert (
        f"command_list_score  ({plugin}:9)\n    Length, with a part. Second sentence.\n"
        "    parameters: scale: float = 1.0\n"
    ) in out
    assert (
        "reasoning_gym_retry  (environment, built-in)\n    A wrong answer is told so and may be "
        "corrected until the task's score is full.\n"
        "    parameters: answer_pattern: re.Pattern[str] | None = None, decay: float = 0.8\n"
    ) in out
    assert (
        f"command_list_play  (environment, {plugin}:24)\n    Nothing happens.\n"
        "    parameters: none\n"
    ) in out


def test_new_writes_a_plugin_whose_test_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards_command.run(["new", "command_new", "--directory", str(tmp_path)])
    out = capsys.readouterr().out
    assert f"'reward.plugins=[{tmp_path}/command_new.py]'" in out
    code = "import sys, pytest; sys.path.insert(0, sys.argv[1]); sys.exit(pytest.main(['-q', '.']))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[3])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout
    rows = write_rows(tmp_path, {"response": "is 5", "answer": "5"})
    plugin = str(tmp_path / "command_new.py")
    options = ["--plugin", plugin, "--rows", str(rows), "--json", "--params", '{"mark": 3}']
    rewards_command.run(["test", "command_new", *options])
    assert [result["score"] for result in json_lines(capsys)] == [3.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math_answer", "there is a reward 'math_answer' already"),
        ("json", "json.py would hide the Python module 'json'"),
        ("two words", "choose a Python name"),
        ("row", "choose a Python name"),
        ("taken", "exists already"),
    ],
)
def test_new_refuses(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "test_taken.py").touch()
    with pytest.raises(RewardError, match=message):
        rewards_command.run(["new", name, "--directory", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["test_taken.py"]


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"response": "r"}\n\n{"answer": 1}\n[1]\n{broken\n{"response": 3}\n')
    with pytest.raises(DataError) as caught:
        read_rows(path)
    first, *lines = str(caught.value).splitlines()
    assert first == "4 of 5 rows are bad:"
    reasons = ["no response", "not an object", "Expecting", "malformed response"]
    for line, number, reason in zip(lines, (3, 4, 5, 6), reasons, strict=True):
        assert line.startswith(f"{path}:{number}: {reason}")


@pytest.mark.parametrize("content", [None, ""])
def test_no_file_or_no_rows(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"rows\.jsonl: .*(No such file|no rows)"):
        read_rows(path)


def test_a_row_as_the_reward_sees_it() -> None:
    turns = [{"role": "user", "content": "2+3="}]
    request = to_request(
        {"prompt": turns, "response": "5", "answer": 5.0, "level": 2, "metadata": {"k": 1}}
    )
    assert request.messages == (Message(role="user", content="2+3="),)
    assert (request.prompt, request.answer) == ("2+3=", "5")
    assert request.metadata == {"level": 2, "k": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: list|test|new"),
        (["test", "format"], "required: --rows"),
        (["test", "format", "--rows", "r", "--params", "[1]"], "expected an object like {}"),
        (["test", "format", "--rows", "r", "--params", "{"], "not JSON"),
        (["test", "format", "--rows", "r", "--timeout-s", "0"], "expected more than 0, got 0"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        rewards_command.run(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_reward_is_named_before_the_rows_are_read() -> None:
    with pytest.raises(RewardError, match="Did you mean 'math_answer'"):
        rewards_command.run(["test", "math_answr", "--rows", "absent.jsonl"])


def test_it_works_without_the_runtime(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, {"response": "5", "answer": "5"})
    code = (
        "import sys\n"
        "for name in ('ray', 'vllm', 'deepspeed', 'transformers', 'datasets', 'reasoning_gym'):\n"
        "    sys.modules[name] = None\n"
        "from rlstack.commands.rewards import command as rewards_command\n"
        "rewards_command.run(['test', 'exact_match', '--rows', sys.argv[1], '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(rows)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"] == 1.0
