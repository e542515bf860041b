"""The main function of a training process: one job after another until the parent says stop, or is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.trial import Job


def main(connection: Connection, parent: int) -> None:
    """Serve jobs from a connection. Ends by itself when the parent dies, even if that was by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    _die_with(parent)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from bench import guard

    # From before any plugin is imported until the end: what one leaves running is seen between trials too.
    with guard.watching(guard.Places()), contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job: Job | None = connection.recv()
            if job is None or not _serve(connection, job):
                return


def _serve(connection: Connection, job: Job) -> bool:
    """Run a trial; whether this process may run another one."""
    from bench.errors import ResultsError, TrialError
    from bench.execute.events import SPOILING, EpochDone, Failed, Finished, Postponed, Stopped
    from bench.trajectory import BusyError
    from bench.trial import run

    trial = job.spec.id
    try:
        info = run(job, lambda visit: connection.send(EpochDone(trial, visit)))
    except TrialError as error:
        connection.send(Failed(trial, error.cause, error.text))
        return error.cause not in SPOILING
    except BusyError as busy:
        connection.send(Postponed(trial, busy.segment, busy.epoch))
    except ResultsError as error:
        connection.send(Stopped(trial, str(error)))
    else:
        connection.send(Finished(trial, info))
    return True


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the line above

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
