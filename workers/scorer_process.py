"""The program of one scorer process: build the reward, then judge one thing at a time.

Started by `workers.scorer` as `python -m workers.scorer_process FD`, FD being its end of a socket
pair. It must stay light to start: no torch, no ray.

Protocol, every message pickled: a `RewardSpec`, the time-out of each component in seconds and a
memory limit in bytes come in; None (ready) or a text (why it cannot start) goes out. Then, until
None or the end of file: the index of a component and the requests it is to judge in, its verdicts
(a `Score` each) out.
"""

import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from rewards.load import import_requirements, load_reward
from rlstack.errors import RewardError

# The parent enforces the time-out. This is for the parent that is no longer there: a reward in an
# endless loop would never see the end of file.
_ORPHAN_GRACE_S = 5.0


def main() -> None:
    """Serve until the parent closes the connection or is gone."""
    # What a reward prints must not mix with the standard output of the command.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    descriptor = int(sys.argv[1])
    # Programs that a reward starts must not hold the connection open.
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as connection:
        try:
            _serve(connection)
        except (EOFError, ConnectionError):
            return


def _serve(connection: "Connection[Any, Any]") -> None:
    spec, timeouts_s, memory_bytes = connection.recv()
    # Set here and inherited: what a reward starts is limited too.
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        reward = load_reward(spec)
        import_requirements(spec)
        reward.set_up()
    except RewardError as error:
        connection.send(str(error))
        return
    connection.send(None)
    try:
        while (index := connection.recv()) is not None:
            requests = connection.recv()
            # The default action of SIGALRM ends the process even inside C code.
            signal.setitimer(signal.ITIMER_REAL, timeouts_s[index] + _ORPHAN_GRACE_S)
            verdicts = reward.judge(index, requests)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(verdicts)
    finally:
        signal.setitimer(signal.ITIMER_REAL, _ORPHAN_GRACE_S)
        reward.close()


if __name__ == "__main__":
    main()
