"""Functions in the style of other systems' users run as they are, chosen by configuration."""

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.combination import Component
from rewards.composed_reward import compose
from rlstack.errors import RewardError
from rlstack.types import Message, RewardRequest, Score

FUNCTIONS = """
import re
import numpy as np

# --- TRL
def trl_accuracy(completions, solution, **kwargs):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [None if s is None else float(s in t) for t, s in zip(texts, solution)]

def trl_prompts(prompts, completions, level):
    last = [p if isinstance(p, str) else p[-1]["content"] for p in prompts]
    return [float(len(p) + n) for p, n in zip(last, level)]

async def trl_async(prompts, completions, bonus=0.0, **kwargs):
    return [len(set(map(str, completions))) + bonus for _ in completions]

def trl_short(completions, **kwargs):
    return [1.0]

def trl_ids(completions, completion_ids):
    return [float(len(ids)) for ids in completion_ids]

# --- verl
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return float(solution_str.strip() == ground_truth) + extra_info["index"]

def compute_score_dict(data_source, solution_str, ground_truth, extra_info=None, strict=False):
    return {"score": 1.0 if strict else 0.5, "acc": True, "pred": solution_str, "why": "text"}

def compute_score_without(data_source, solution_str, ground_truth, extra_info=None):
    return {"acc": 1.0}

# --- OpenRLHF
def reward_func(queries, prompts, labels):
    rewards = [float(q[len(p):] == l) for q, p, l in zip(queries, prompts, labels)]
    return np.array(rewards)

def reward_func_mapping(queries, prompts, labels, **kwargs):
    return {"rewards": np.array([0.5] * len(queries)), "extra_logs": {}}

# --- verifiers
def correct(completion, answer):
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return 1.0 if text == answer else 0.0

async def brief(prompt, completion, state, info, **kwargs):
    state["seen"] = True
    return float(info["difficulty"])

def remembers(state):
    return float(state["seen"])

class Rubric:
    def __init__(self, funcs, weights=None, parser=None):
        self.funcs, self.weights, self.parser = funcs, weights or [1.0] * len(funcs), parser

rubric = Rubric([correct, brief, remembers], [1.0, 0.5, 0.0])

def load_rubric():
    return rubric

class OlderRubric:
    def __init__(self):
        self.reward_funcs, self.reward_weights = [correct], [2.0]

number = 3
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("functions") / "peers.py"
    path.write_text(FUNCTIONS)
    return str(path)


def request(response: str = "4", **fields: Any) -> RewardRequest:
    metadata = {"level": 3, "index": 2, "difficulty": 4}
    defaults: dict[str, Any] = {"prompt": "2+2=", "answer": "4", "metadata": metadata}
    return RewardRequest(response=response, **(defaults | fields))


def judge(
    name: str, requests: Sequence[RewardRequest], **params: Any
) -> list[tuple[float | None, tuple[str, ...]]]:
    scores = compose([Component(name, 1.0, params)]).judge_group(requests)
    return [(score.value, score.errors) for score in scores]


CHAT = (Message(role="system", content="Be brief."), Message(role="user", content="2+2=?"))


def test_trl_plain(functions: str) -> None:
    group = [request("is 4"), request("is 5"), request("?", answer=None)]
    verdicts = judge("trl", group, function=f"{functions}:trl_accuracy")
    assert verdicts == [(1.0, ()), (0.0, ()), (None, ())]
    assert judge("trl", [request()], function=f"{functions}:trl_prompts") == [(7.0, ())]


def test_trl_conversational(functions: str) -> None:
    group = [request("is 4", messages=CHAT), request("is 5", messages=CHAT)]
    verdicts = judge("trl", group, function=f"{functions}:trl_accuracy")
    assert verdicts == [(1.0, ()), (0.0, ())]
    assert judge("trl", group[:1], function=f"{functions}:trl_prompts") == [(8.0, ())]


def test_trl_sees_the_whole_group_and_may_be_async(functions: str) -> None:
    group = [request("a"), request("b"), request("b")]
    verdicts = judge("trl", group, function=f"{functions}:trl_async", params={"bonus": 0.5})
    assert verdicts == [(2.5, ())] * 3


def test_trl_with_too_few_results_or_ids(functions: str) -> None:
    (value, (error,)), _ = judge("trl", [request()] * 2, function=f"{functions}:trl_short")
    assert value is None
    assert error.startswith("trl: ValueError: 1 results for 2 rollouts")
    ((value, (error,)),) = judge("trl", [request()], function=f"{functions}:trl_ids")
    assert "completion_ids" in error


def test_verl(functions: str) -> None:
    assert judge("verl", [request(" 4 ")], function=f"{functions}:compute_score") == [(3.0, ())]
    row = request("4", metadata={"extra_info": {"index": 5}})
    assert judge("verl", [row], function=f"{functions}:compute_score") == [(6.0, ())]


def test_verl_mapping(functions: str) -> None:
    params = {"function": f"{functions}:compute_score_dict", "params": {"strict": True}}
    assert compose([Component("verl", 1.0, params)])(request("4")) == Score(
        value=1.0, parts={"verl": 1.0, "verl/acc": 1.0}, extracted_answer="4"
    )
    ((value, (error,)),) = judge("verl", [request()], function=f"{functions}:compute_score_without")
    assert value is None
    assert error == "verl: ValueError: the result has no 'score', only acc"


def test_openrlhf_local(functions: str) -> None:
    group = [request("4"), request("5")]
    assert judge("openrlhf", group, function=f"{functions}:reward_func") == [(1.0, ()), (0.0, ())]
    mapping = judge("openrlhf", group, function=f"{functions}:reward_func_mapping")
    assert mapping == [(0.5, ())] * 2


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            triples = zip(body["query"], body["prompts"], body["labels"], strict=True)
            answer = json.dumps({"rewards": [float(q == p + label) for q, p, label in triples]})
            self.send_response(200 if self.path == "/get_reward" else 500)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_openrlhf_remote(server: str) -> None:
    group = [request("4"), request("5")]
    assert judge("openrlhf_remote", group, url=f"{server}/get_reward") == [(1.0, ()), (0.0, ())]
    (value, (error,)), _ = judge("openrlhf_remote", group, url=f"{server}/broken")
    assert value is None
    assert error == "openrlhf_remote: HTTPError: HTTP Error 500: Internal Server Error"
    ((_, (error,)),) = judge("openrlhf_remote", [request()], url="file:///etc/hostname")
    assert "no http or https address" in error


@pytest.mark.parametrize("name", ["rubric", "load_rubric"])
def test_verifiers_rubric(functions: str, name: str) -> None:
    params = {"function": f"{functions}:{name}"}
    assert compose([Component("verifiers", 1.0, params)])(request("4", messages=CHAT)) == Score(
        value=3.0,
        parts={
            "verifiers": 3.0,
            "verifiers/correct": 1.0,
            "verifiers/brief": 4.0,
            "verifiers/remembers": 1.0,
        },
    )


def test_verifiers_older_rubric_and_single_function(functions: str) -> None:
    assert judge("verifiers", [request()], function=f"{functions}:OlderRubric") == [(2.0, ())]
    assert judge("verifiers", [request("5")], function=f"{functions}:correct") == [(0.0, ())]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_colon", "expected module:name or file.py:name"),
        ("{}:absent", "has no 'absent'"),
        ("{}:number", "is a int, which"),
        ("no_such_module_here:f", "No module named 'no_such_module_here'"),
    ],
)
@pytest.mark.parametrize("name", ["trl", "verl", "openrlhf", "verifiers"])
def test_a_wrong_reference(functions: str, name: str, reference: str, message: str) -> None:
    component = Component(name, 1.0, {"function": reference.format(functions)})
    with pytest.raises(RewardError, match=message):
        compose([component]).set_up()
