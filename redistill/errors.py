"""The one exception that means "the user can mend this": the command line prints it as one sentence and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake, told in one plain sentence that names the key, the value and the nearest valid choice."""


class OutsideFault(UserError):
    """Something outside of the run (a served teacher) answers what cannot be used: nothing of the run is lost, and it can be
    resumed."""


class Unreachable(OutsideFault):
    """It does not answer at all, or not in time."""


def nearest(value: str, choices: Iterable[str], *, many: int = 8) -> str:
    """Return "; did you mean 'x'?" when a choice is close to `value`, else the choices themselves (at most `many`)."""
    known = sorted(choices)
    close = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    listed = ", ".join(known[:many]) + (", ..." if len(known) > many else "")
    return f"; the choices are {listed}" if known else ""
