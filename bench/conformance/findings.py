"""What a contract test is, and what becomes of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass


class ConformanceError(AssertionError):
    """A plugin does not keep the contract; the text says what was expected and what was found."""


@dataclass(frozen=True)
class Check:
    """One contract test of one plugin; `run` raises if it fails."""

    name: str
    run: Callable[[], None]

    def result(self) -> CheckResult:
        """What became of it; whatever was raised becomes the message."""
        started = time.perf_counter()
        try:
            self.run()
        except ConformanceError as error:
            message = "; ".join([str(error), *getattr(error, "__notes__", ())])
        except Exception as error:
            last = "".join(traceback.format_tb(error.__traceback__)[-2:])
            message = (
                "; ".join([f"raised {type(error).__name__}: {error}", *getattr(error, "__notes__", ())]) + f"\n{last}"
            )
        else:
            message = ""
        return CheckResult(self.name, not message, message, time.perf_counter() - started)


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check; `message` is empty where it is `ok`."""

    name: str
    ok: bool
    message: str
    seconds: float


def expect(condition: bool, sentence: str) -> None:
    """Raise ConformanceError with a sentence unless a condition holds."""
    if not condition:
        raise ConformanceError(sentence)
