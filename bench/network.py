"""Whether an address can be reached at all, said within a bounded time."""

from __future__ import annotations

import socket
import threading
import urllib.parse
import urllib.request


def unreachable(address: str, seconds: float) -> str:
    """Why the host of an https address, or the proxy before it, does not answer; empty if it does."""
    parts = urllib.parse.urlsplit(urllib.request.getproxies().get("https") or address)
    place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    answers: list[str] = []

    def ask() -> None:
        try:
            socket.create_connection(place, timeout=seconds).close()
            answers.append("")
        except OSError as error:
            answers.append(f"{place[0]}: {error}")

    # In a thread, for looking a name up has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"{place[0]} did not answer within {seconds:g} s"
