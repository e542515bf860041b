"""The exceptions a user can meet.

::

    BenchError                  the request or the data is at fault; the text says where, what, and what is allowed
    ├── RequestError            exit 2: unknown name, illegal composition, bad setting
    ├── ResultsError            exit 2: the results folder cannot be read or written
    ├── DataError (bench.api)   exit 2 for the request; recorded per trial when met in training
    └── TrialError              one trial ended; recorded with its cause, the sweep goes on
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Something the user can mend."""


class RequestError(BenchError):
    """What was asked for does not exist or does not fit together."""


class ResultsError(BenchError):
    """The results folder cannot be used."""


class TrialError(BenchError):
    """One trial could not finish. `cause` is one of a fixed list, `text` says what was seen."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(f"{cause}: {text}")
        self.cause, self.text = cause, text


CAUSES = ("non-finite loss", "out of memory", "killed", "data", "error", "interrupted", "tainted")
"""Why a trial can fail; `tainted`: plugin code reached for targets, or changed what scores."""


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> RequestError:
    """An error for a name that does not exist: the nearest one, and all there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    allowed = ", ".join(names) if names else "none"
    return RequestError(f"{where}{': ' if where else ''}unknown {what} {name!r}.{hint} Known: {allowed}.")
