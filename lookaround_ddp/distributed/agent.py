"""torchrun, with this project's last words and exit statuses, for launch/torchrun.sh.

python -m lookaround_ddp.distributed.agent OPTIONS OF TORCHRUN -m lookaround_ddp train ...
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher import api
from torch.distributed.run import parse_args, run

from lookaround_ddp.distributed.preemption import LEFT_FOR
from lookaround_ddp.distributed.supervisor import LEAVE
from lookaround_ddp.errors import FAILED, MISTAKE, name_of_signal, status_of_signal

# for which a node whose ranks are done waits for the others, whose ranks end with them: torchrun waits 300 for one that
# was cut off meanwhile
NODES_EXIT_SECONDS = 15.0


def main(arguments: Sequence[str]) -> None:
    """Runs torchrun, whose own reports are left out: what went wrong a rank has said in a line.

    Exits with 0 when the run is done, 2 after a user's mistake, 128 + n where signal n ended it (130 after Ctrl-C, 143
    after SIGTERM), else 1. With the variable LOGLEVEL, torchrun reports all the same.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [LEAVE])
    threading.Thread(target=leave_when_told, daemon=True).start()
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.CRITICAL)
    agent = partial(LocalElasticAgent, exit_barrier_timeout=NODES_EXIT_SECONDS)
    api.LocalElasticAgent = agent  # type: ignore[assignment, misc]  # no option of torchrun's sets it
    try:
        with tempfile.TemporaryDirectory(prefix="lookaround_ddp-") as folder:
            left = Path(folder) / "left"
            os.environ[LEFT_FOR] = str(left)
            run(parse_args(arguments))
            if left.exists():  # a signal reached ranks, and not this process
                sys.exit(status_of_signal(int(left.read_text())))
    except SignalException as error:
        sys.exit(status_of_signal(error.sigval))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode < 0:  # it could not say it itself
            print(
                f"stopped: rank {first.local_rank} of this node was killed by {name_of_signal(-first.exitcode)}. "
                "Start the same command again",
                file=sys.stderr,
            )
        sys.exit(status_of_failures(failure.exitcode for failure in error.failures.values()))
    except RendezvousError as error:
        print(f"stopped: the nodes did not meet: {error or type(error).__name__}", file=sys.stderr)
        sys.exit(FAILED)


def leave_when_told() -> None:
    """Ends the process with status 1 on that signal, of which a main thread that waits in a store would not hear."""
    signal.sigwait([LEAVE])
    os._exit(FAILED)


def status_of_failures(statuses: Iterable[int]) -> int:
    """Returns the exit status of a job whose ranks ended with these: a mistake of the user's, or a failure."""
    return MISTAKE if MISTAKE in statuses else FAILED


if __name__ == "__main__":
    main(sys.argv[1:])
