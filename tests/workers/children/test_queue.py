"""Who is given what, when a process is overdue, and who is to blame for its end; no processes."""

import sys
from typing import cast

import pytest

from tests.workers.children.conftest import MakeSetup
from workers.children.messages import NotStarted, TimedOut
from workers.children.process import ChildProcess
from workers.children.queue import ChildTask, TaskQueue, Worker, process_names


def task(number: int, *, timeout_s: float = 10.0, size: int = 1) -> ChildTask:
    return ChildTask(number=number, content=b"", timeout_s=timeout_s, size=size)


def worker_of(
    make_setup: MakeSetup,
    *tasks: ChildTask,
    concurrent: bool = False,
    stateful: bool = False,
    max_under_way: int = 1,
    ready: bool = True,
) -> Worker:
    queue = TaskQueue(
        "program",
        make_setup(concurrent=concurrent, start_timeout_s=3.0),
        ("the only one",),
        max_under_way=max_under_way,
        stateful=stateful,
    )
    queue.waiting.extend(tasks)
    return Worker(queue, cast(ChildProcess, None), "the only one", start_by=103.0, ready=ready)


def taken(worker: Worker, share: int = sys.maxsize) -> list[int]:
    return [task.number for task in worker.take(share)]


def test_names_say_what_is_loaded() -> None:
    names = process_names("scorer process", 2, what=["one", "two"], plugins=["mine.py"])
    assert names == (
        "scorer process 1 of 2 for one, two (plugins: mine.py)",
        "scorer process 2 of 2 for one, two (plugins: mine.py)",
    )
    assert process_names("p", 1, what=["one"], plugins=()) == ("p 1 of 1 for one",)


def test_one_that_is_not_ready_takes_nothing(make_setup: MakeSetup) -> None:
    assert taken(worker_of(make_setup, task(1), ready=False)) == []


def test_slow_tasks_go_one_by_one_and_fast_ones_ahead(make_setup: MakeSetup) -> None:
    worker = worker_of(make_setup, *map(task, range(100)))
    assert taken(worker) == [0]
    for _ in range(100):
        worker.queue.observe(0.001)
    assert taken(worker, share=5) == [1, 2, 3, 4, 5]
    assert 15 <= len(worker.under_way) + len(taken(worker)) <= 20  # 20 ms of 1 ms each
    stateful = worker_of(make_setup, *map(task, range(3)), stateful=True)
    stateful.queue.seconds_per_task = 1e-4
    assert taken(stateful) == [0]


def test_a_concurrent_one_takes_tasks_up_to_a_size(make_setup: MakeSetup) -> None:
    tasks = [task(number, size=3) for number in range(4)]
    worker = worker_of(make_setup, *tasks, concurrent=True, max_under_way=7)
    assert taken(worker) == [0, 1]
    worker.finish(1, now=0.0)
    assert taken(worker) == [2]


def test_the_one_to_blame_is_found_in_few_rounds(make_setup: MakeSetup) -> None:
    guilty, rounds = 77, 0
    worker = worker_of(
        make_setup, *map(task, range(256)), concurrent=True, max_under_way=sys.maxsize
    )
    done: list[int] = []
    while worker.queue.waiting:
        under_way = taken(worker)
        rounds += 1
        if guilty not in under_way:
            done += [worker.finish(number, now=0.0).number for number in under_way]
            continue
        failed, others = worker.separate_failed()
        worker.queue.put_back(others)
        assert [task.number for task in failed] == ([guilty] if len(under_way) == 1 else [])
    assert sorted(done) == [number for number in range(256) if number != guilty]
    # Of 256 together, 64, 16, 4 and 1: at most four of a size. One by one it would be 256.
    assert rounds <= 17


def test_in_order_the_first_is_to_blame(make_setup: MakeSetup) -> None:
    worker = worker_of(make_setup, *map(task, range(3)))
    worker.queue.seconds_per_task = 1e-4
    assert taken(worker) == [0, 1, 2]
    failed, others = worker.separate_failed()
    assert [[t.number for t in tasks] for tasks in (failed, others)] == [[0], [1, 2]]
    worker.queue.put_back(others)
    assert [t.number for t in worker.queue.waiting] == [1, 2]


@pytest.mark.parametrize(
    ("concurrent", "expected"), [(False, (25.0, TimedOut(5.0))), (True, (24.0, TimedOut(2.0)))]
)
def test_a_process_is_overdue_with_its_tasks(
    make_setup: MakeSetup, *, concurrent: bool, expected: tuple[float, TimedOut]
) -> None:
    tasks = [task(1, timeout_s=5.0), task(2, timeout_s=2.0)]
    worker = worker_of(make_setup, *tasks, concurrent=concurrent, max_under_way=9)
    assert worker.overdue is None
    worker.queue.seconds_per_task = 1e-4
    for sent in worker.take(9):
        sent.sent_at = 20.0 + sent.number / 2
    worker.since = 20.0
    assert worker.overdue == expected


def test_a_process_is_overdue_while_it_starts(make_setup: MakeSetup) -> None:
    worker = worker_of(make_setup, task(1), ready=False)
    assert worker.overdue is not None
    deadline, failure = worker.overdue
    assert deadline == 103.0
    assert isinstance(failure, NotStarted)
    assert failure.problem.startswith("the only one did not start within 3 s (reward.start_timeout")
    worker.problem = "known"
    assert worker.overdue is None
