"""Asking an HTTP server for JSON, patiently: limits on time and size for the whole answer, no proxy, no redirect.

What may pass (no connection, a timeout, 408, 429, 5xx, half an answer, an answer of another form) is tried again with growing
pauses; a refusal is said at once.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redistill.errors import OutsideFault, Unreachable

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
MOST_BYTES = 2**29
"""Bytes of one answer that are read."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address was allowed, not where it points to."""

    def redirect_request(self, *_: Any) -> None:
        """Never."""


class Broken(Exception):
    """This answer cannot be used; another might be."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass
class Endpoint:
    """One server: where it is, how patient to be, and how to wait (tests do not)."""

    url: str
    timeout: float = 60.0
    tries: int = 6
    pause: float = 0.5
    """Seconds before the second try; doubled before each next one, at most 30."""
    sleep: Callable[[float], None] = time.sleep

    def ask(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Any]) -> Any:
        """GET (no body) or POST, and what `read` makes of the JSON; tried again while what comes back is broken. Raises
        Unreachable after the last try."""
        why = ""
        for number in range(self.tries):
            try:
                return self._understood(read, self._once(path, body))
            except Broken as broken:
                why = str(broken)
                if number + 1 < self.tries:
                    self.sleep(max(broken.wait, min(30.0, self.pause * 2**number)))
        raise Unreachable(f"the teacher at {self.url} failed {self.tries} times, the last time because {why}")

    @staticmethod
    def _understood(read: Callable[[Any], Any], answer: Any) -> Any:
        try:
            return read(answer)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise Broken(f"its answer was of another form ({type(error).__name__})") from None

    def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            # No proxy: a loopback address asked of a proxy is another machine's.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
            until = time.monotonic() + self.timeout
            with opener.open(request, timeout=self.timeout) as answer:
                return json.loads(self._whole(answer, until))
        except urllib.error.HTTPError as error:
            said = _said(error)
            if error.code in _AGAIN:
                raise Broken(f"it answered {error.code}{said}", _retry_after(error)) from None
            raise OutsideFault(f"the teacher at {self.url} refused the request with {error.code}{said}") from None
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and lost connections are OSErrors
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            raise Broken(
                f"it did not answer within {self.timeout:g} s" if late else f"there was no answer ({reason})"
            ) from None
        except (ValueError, RecursionError):
            raise Broken("its answer was not whole JSON") from None

    def _whole(self, answer: Any, until: float) -> bytes:
        """All bytes of an answer: the time limit holds for all of them, not for each piece."""
        pieces, size = [], 0
        while piece := answer.read1(2**16):
            pieces.append(piece)
            size += len(piece)
            if time.monotonic() > until:
                raise TimeoutError
            if size > MOST_BYTES:
                raise Broken(f"its answer had more than {MOST_BYTES} bytes")
        return b"".join(pieces)


def _said(error: urllib.error.HTTPError) -> str:
    """What the server said about its refusal, on one line and short."""
    try:
        text = " ".join(error.read(2000).decode(errors="replace").split())[:200]
    except (OSError, http.client.HTTPException):
        text = ""
    return f" ({text})" if text else ""


def _retry_after(error: urllib.error.HTTPError) -> float:
    try:
        return min(120.0, max(0.0, float(error.headers.get("Retry-After") or 0)))
    except ValueError:
        return 0.0
