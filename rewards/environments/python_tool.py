"""Environment `python_tool`: the model may run Python and calculate before it answers."""

from functools import cache
from typing import Annotated, Literal

from pydantic import Field

from rewards.environments.calculator import CalculationError, calculate
from rewards.environments.registry import register_environment
from rewards.environments.tool_calls import CallStyle, MalformedCall, ToolCall, find_calls
from rewards.sandbox.job import Job, Limits, Mode, Outcome, SandboxSettings
from rewards.sandbox.sandbox import Sandbox, SandboxDiedError
from rlstack.errors import EnvironmentSetupError
from rlstack.types import Task, Turn

MAX_CALLS = 4
"""Calls of one action that are carried out; a turn has a time-out."""
_ARGUMENTS = {"python": "code", "calculator": "expression"}
_ATTEMPTS = 2


class _ToolError(Exception):
    """A call failed; the text is for the model to read."""


@register_environment("python_tool")
class PythonTool:
    """An action with tool calls is answered with their output, one without is the final answer.

    Tools: `python` (`code`: a program of its own each time, run in the sandbox; what it prints is
    the output) and `calculator` (`expression`). It pays no rewards: the final answer, which is the
    last action, is judged by the components of the reward.
    """

    def __init__(
        self,
        *,
        tools: Annotated[tuple[Literal["python", "calculator"], ...], Field(min_length=1)] = (
            "python",
            "calculator",
        ),
        calls: CallStyle = "json",
        mode: Mode = "bubblewrap",
        time_limit_s: Annotated[float, Field(gt=0, le=3600)] = 5.0,
        memory_mib: Annotated[int, Field(ge=64)] = 512,
    ) -> None:
        """Start the sandbox, which the episodes of a process share.

        calls: how the model calls a tool; see `rewards/environments/tool_calls.py`.
        mode: how programs are confined; see `rewards/sandbox/job.py`. Never weakened by itself.
        time_limit_s: seconds of wall clock for each program. memory_mib: of each of its processes.

        Raises:
            EnvironmentSetupError: if `calls` cannot name the tools.
            RewardError: if the machine lacks what `mode` needs.
        """
        if calls == "fenced" and tools != ("python",):
            raise EnvironmentSetupError(
                "environment 'python_tool': calls=fenced knows no tool but python. Set "
                "tools=[python], or calls=json."
            )
        self._tools = tools
        self._style: CallStyle = calls
        self._settings = SandboxSettings(
            mode=mode, limits=Limits(wall_s=time_limit_s, memory_bytes=memory_mib << 20)
        )
        if "python" in tools:
            _sandbox(self._settings)

    def reset(self, task: Task) -> None:
        """Nothing to say beyond the prompt, which should explain the tools."""

    def step(self, action: str) -> Turn:
        """Carry out the calls of `action`, or take it as the final answer.

        Raises:
            SandboxDiedError: if the sandbox failed twice.
        """
        calls = find_calls(action, self._style)
        if not calls:
            return Turn(done=True)
        outputs: list[str] = []
        num_errors = 0
        for call in calls[:MAX_CALLS]:
            try:
                outputs.append(self._output(call))
            except _ToolError as error:
                num_errors += 1
                outputs.append(f"Error: {error}")
        if len(calls) > MAX_CALLS:
            num_errors += len(calls) - MAX_CALLS
            outputs.append(f"Error: only the first {MAX_CALLS} calls were carried out")
        return Turn(
            observation="\n\n".join(outputs),
            role="tool",
            tool_calls=len(calls),
            tool_errors=num_errors,
        )

    def _output(self, call: ToolCall | MalformedCall) -> str:
        if isinstance(call, MalformedCall):
            raise _ToolError(call.problem)
        if call.name not in self._tools:
            raise _ToolError(f"no tool {call.name!r}; the tools are {', '.join(self._tools)}")
        expected = _ARGUMENTS[call.name]
        argument = call.arguments.get(expected)
        if not isinstance(argument, str) or set(call.arguments) != {expected}:
            raise _ToolError(f'{call.name} takes {{"{expected}": "text"}} and nothing else')
        if call.name == "python":
            return self._run(argument)
        try:
            return calculate(argument)
        except CalculationError as error:
            raise _ToolError(str(error)) from None

    def _run(self, code: str) -> str:
        job = Job(files={"main.py": code})
        for attempt in range(_ATTEMPTS):
            try:
                return _printed(_sandbox(self._settings).run(job), self._settings.limits)
            except SandboxDiedError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")


@cache
def _sandbox(settings: SandboxSettings) -> Sandbox:
    """One for the whole process: a sandbox is thrown away after nothing but a failure."""
    return Sandbox(settings)


def _printed(outcome: Outcome, limits: Limits) -> str:
    printed = outcome.stdout.decode(errors="replace").rstrip()
    if outcome.finished:
        return printed or "The program printed nothing."
    if outcome.timed_out:
        reason = f"the program was stopped after {limits.wall_s:g} s"
    elif outcome.output_exceeded:
        reason = f"the program printed more than {limits.output_bytes >> 10} KiB"
    else:
        complaint = outcome.stderr.decode(errors="replace").rstrip()
        reason = complaint or f"the program ended with exit code {outcome.exit_code}"
    raise _ToolError("\n".join([reason, *([f"It printed:\n{printed}"] if printed else [])]))
