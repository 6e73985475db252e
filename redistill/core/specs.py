"""Small typed values that a user writes as text: `jsd(0.5)`, `top_k(100, of=student)`, `ema(0.05)`. Torch-free.

Each spec has one way to be written, is validated when it is made, and prints as what the user would type.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from redistill.core.formulas import check_generator
from redistill.errors import UserError, nearest

_CALL = re.compile(r"^\s*([a-z_]\w*)\s*(?:\((.*)\))?\s*$", re.DOTALL)


def parse_call(text: str, what: str) -> tuple[str, list[str], dict[str, str]]:
    """Split "name(a, k=v)" into (name, positional, keyword); raise a UserError that names `what` if it is not that."""
    match = _CALL.match(text)
    if match is None:
        raise UserError(f"{what} {text!r} is not of the form name or name(value, key=value)")
    positional: list[str] = []
    keyword: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in (match.group(2) or "").split(","))):
        key, equals, value = part.partition("=")
        if equals:
            keyword[key.strip()] = value.strip().strip("'\"")
        else:
            positional.append(part.strip("'\""))
    return match.group(1), positional, keyword


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{what} needs a number, got {text!r}") from None


def _plain(number: float) -> str:
    """The shortest text that reads back as the same number (1, not 1.0)."""
    return repr(int(number)) if number == int(number) else repr(number)


DIVERGENCES = {
    "forward_kl": 0, "reverse_kl": 0, "jsd": 1, "tvd": 0, "skew_forward_kl": 1, "skew_reverse_kl": 1,
    "squared_hellinger": 0, "pearson": 0, "neyman": 0, "jeffreys": 0, "f": 0,
}  # fmt: skip
"""Divergence kinds and how many numbers each takes; f takes the formula of its generator instead."""
GENERATORS = {
    "squared_hellinger": "(sqrt(u) - 1)^2", "pearson": "(u - 1)^2", "neyman": "(1 - u)^2 / u", "jeffreys": "(u - 1) * log(u)",
}  # fmt: skip
"""Kinds that are no more than their generator f(u), u = P/Q: D = E_Q[f(P/Q)] (arXiv 2604.00626)."""


@dataclass(frozen=True)
class DivergenceKind:
    """A divergence between teacher P and student Q. forward_kl = KL(P||Q), reverse_kl = KL(Q||P),
    jsd(b) = b KL(P||M) + (1-b) KL(Q||M) with M = bP + (1-b)Q, skew_forward_kl(a) = KL(P || aP + (1-a)Q),
    skew_reverse_kl(a) = KL(Q || (1-a)P + aQ), tvd = half the L1 distance; the kinds in GENERATORS; and f(formula) for any
    convex formula in u = P/Q that is 0 at u = 1: E_Q[f(P/Q)], such as f(u*log(u)), the forward KL."""

    name: str
    beta: float | None = None
    formula: str = ""

    def __post_init__(self) -> None:
        if self.name not in DIVERGENCES:
            raise UserError(f"divergence {self.name!r} is unknown{nearest(self.name, DIVERGENCES)}")
        if (self.beta is not None) != bool(DIVERGENCES[self.name]):
            raise UserError(f"divergence {self.name} takes {'one number' if DIVERGENCES[self.name] else 'no number'}")
        if bool(self.formula) != (self.name == "f"):
            told = "needs the formula of its generator: f(u*log(u))" if self.name == "f" else "takes no formula"
            raise UserError(f"divergence {self.name} {told}")
        if self.formula:
            check_generator(self.formula)
        if self.name == "jsd" and self.beta in (0.0, 1.0):
            right = "forward_kl" if self.beta == 0.0 else "reverse_kl"
            raise UserError(
                f"divergence jsd({self.beta:g}) is identically zero: generalised JSD vanishes at its ends; write {right}"
            )
        if self.beta is not None and not 0.0 < self.beta < 1.0:
            raise UserError(f"divergence {self.name} needs a number between 0 and 1 (exclusive), got {self.beta:g}")

    @classmethod
    def parse(cls, text: str) -> DivergenceKind:
        """Read "jsd(0.5)" and the like."""
        name, args, keywords = parse_call(text, "divergence")
        if name == "f" and len(args) == 1 and not keywords:
            return cls("f", formula=args[0])
        if keywords or len(args) > 1:
            raise UserError(f"divergence {text!r} takes at most one plain number")
        return cls(name, _number(args[0], f"divergence {name}") if args else None)

    def __str__(self) -> str:
        if self.formula:
            return f"f({self.formula})"
        return self.name if self.beta is None else f"{self.name}({self.beta!r})"


@dataclass(frozen=True)
class Support:
    """Which outcomes a divergence looks at: `full`, `top_k(k, of=student|teacher, tail=true|false)` or `sampled`.
    With a tail, the mass outside the k is one more outcome; without, both sides are renormalised over the k."""

    name: str = "full"
    k: int = 0
    of: str = "student"
    tail: bool = True

    def __post_init__(self) -> None:
        if self.name not in ("full", "top_k", "sampled"):
            raise UserError(f"support {self.name!r} is unknown{nearest(self.name, ['full', 'top_k', 'sampled'])}")
        if self.name == "top_k" and self.k < 1:
            raise UserError(f"support top_k needs k of 1 or more, got {self.k}")
        if self.of not in ("student", "teacher"):
            raise UserError(f"support top_k of={self.of!r} is unknown{nearest(self.of, ['student', 'teacher'])}")

    @classmethod
    def parse(cls, text: str) -> Support:
        """Read "full", "sampled" or "top_k(100, of=student, tail=true)"."""
        name, args, keywords = parse_call(text, "support")
        if name != "top_k" and (args or keywords):
            raise UserError(f"support {name!r} takes no arguments, got {text!r}")
        unknown = set(keywords) - {"k", "of", "tail"}
        if unknown or len(args) > 1:
            raise UserError(f"support {text!r} is not top_k(k, of=student|teacher, tail=true|false)")
        k_text = args[0] if args else keywords.get("k", "0")
        tail = keywords.get("tail", "true").lower()
        if tail not in ("true", "false"):
            raise UserError(f"support top_k tail={tail!r} is not true or false")
        if args and "k" in keywords:
            raise UserError(f"support {text!r} gives k twice")
        k = _number(k_text, "support top_k")
        if not math.isfinite(k) or k != int(k):
            raise UserError(f"support top_k needs a whole number, got {k_text}")
        return cls(name, int(k), keywords.get("of", "student"), tail == "true")

    def __str__(self) -> str:
        if self.name != "top_k":
            return self.name
        return f"top_k({self.k}, of={self.of}, tail={'true' if self.tail else 'false'})"


TEACHERS = {
    "live": 0, "frozen": 0, "ema": 1, "slowing_ema": 4, "sync": 1, "trust_region": 1, "checkpoint": 1, "stored": 0,
    "served": 1, "text": 1,
}  # fmt: skip
"""Teacher weights and how many arguments each takes."""
_PATHS = {
    "checkpoint": "a path or model name: checkpoint(path)",
    "served": "an address: served(http://127.0.0.1:8000)",
    "text": "a file of answers: text(answers.jsonl)",
}
"""Teachers that are somewhere else, and what they need."""


@dataclass(frozen=True)
class TeacherWeights:
    """Whose weights the teacher uses. `ema(rate)`: new = (1-rate)*old + rate*student after each update;
    `slowing_ema(first, slope, last, delay)`: the same with a rate that falls, `first` for `delay` updates, then lower by
    `slope` at each, down to `last`; `sync(every)`: a copy refreshed every so many updates; `trust_region(rate)`:
    log q = (1-rate) log q_first + rate log q_live, both reading the teacher's view; `checkpoint(path)`: another saved
    model; `stored`: none, a row's context is itself the teacher's distribution, which the method keeps (a table of
    earlier predictions); `served(url)`: a server that tells the log-probs of a prompt, with model=name where it has several
    and remote=true where it is another machine; `text(file.jsonl)`: a pool of written answers, without log-probs."""

    name: str
    rate: float = 0.0
    path: str = ""
    slope: float = 0.0
    last: float = 0.0
    delay: float = 0.0
    model: str = ""
    remote: bool = False

    def __post_init__(self) -> None:
        if self.name not in TEACHERS:
            raise UserError(f"teacher {self.name!r} is unknown{nearest(self.name, TEACHERS)}")
        if self.name == "slowing_ema":
            if not (0.0 <= self.last <= self.rate <= 1.0 and 0.0 <= self.slope <= 1.0):
                raise UserError(
                    "teacher slowing_ema needs 0 <= last <= first <= 1 and a slope between 0 and 1, got first "
                    f"{self.rate:g}, slope {self.slope:g}, last {self.last:g}"
                )
            if not (math.isfinite(self.delay) and self.delay >= 0 and self.delay == int(self.delay)):
                raise UserError(f"teacher slowing_ema needs a whole number of updates of delay, got {self.delay:g}")
        if self.name in ("ema", "trust_region") and not 0.0 <= self.rate <= 1.0:
            raise UserError(f"teacher {self.name} needs a rate between 0 and 1, got {self.rate:g}")
        if self.name == "sync" and not (math.isfinite(self.rate) and self.rate >= 1 and self.rate == int(self.rate)):
            raise UserError(f"teacher sync needs a whole number of updates, 1 or more, got {self.rate:g}")
        if self.name in _PATHS and not self.path:
            raise UserError(f"teacher {self.name} needs {_PATHS[self.name]}")

    @classmethod
    def parse(cls, text: str) -> TeacherWeights:
        """Read "live", "frozen", "ema(0.05)", "slowing_ema(0.75, 0.005, 0.001, 0)", "sync(10)", "trust_region(0.05)" or
        "checkpoint(path)"."""
        name, args, keywords = parse_call(text, "teacher")
        if name == "served" and args and set(keywords) <= {"model", "remote"}:
            remote = keywords.get("remote", "false").lower()
            if len(args) == 1 and remote in ("true", "false"):
                return cls(name, path=args[0], model=keywords.get("model", ""), remote=remote == "true")
            raise UserError(f"teacher {text!r} is not of the form served(url, model=name, remote=true|false)")
        if keywords or len(args) != TEACHERS.get(name, len(args)):
            form = {0: "", 1: "(value)", 4: "(first, slope, last, delay)"}[TEACHERS.get(name, 0)]
            raise UserError(f"teacher {text!r} is not of the form {name}{form}")
        if name in _PATHS:
            return cls(name, path=args[0])
        numbers = [_number(arg, f"teacher {name}") for arg in args]
        rate, slope, last, delay = [*numbers, 0.0, 0.0, 0.0, 0.0][:4]
        return cls(name, rate, slope=slope, last=last, delay=delay)

    def rate_at(self, update: int) -> float:
        """The rate with which an ema or slowing_ema takes the student in after update `update`, counted from 0."""
        if self.name != "slowing_ema":
            return self.rate
        return max(self.last, self.rate - self.slope * max(0.0, update - self.delay))

    def __str__(self) -> str:
        if self.name == "slowing_ema":
            return f"{self.name}({', '.join(map(_plain, (self.rate, self.slope, self.last, self.delay)))})"
        argument = self.path if self.name in _PATHS else _plain(self.rate)
        argument += (f", model={self.model}" if self.model else "") + (", remote=true" if self.remote else "")
        return f"{self.name}({argument})" if TEACHERS[self.name] else self.name


@dataclass(frozen=True)
class Normaliser:
    """What a term's sum is divided by, always over the whole update batch: `token` (its active steps), `sequence` (each
    row's mean, then the mean over rows) or `constant(n)`. `rows=all` counts rows and steps that the term masks out as
    zeros (SDPO's released code does), `rows=active` leaves them out, `rows=weighted` counts each by the term's weight, so
    that the result is a weighted mean (PACED)."""

    name: str = "token"
    n: float = 0.0
    rows: str = "active"

    def __post_init__(self) -> None:
        if self.name not in ("token", "sequence", "constant"):
            raise UserError(
                f"normaliser {self.name!r} is unknown{nearest(self.name, ['token', 'sequence', 'constant'])}"
            )
        if self.name == "constant" and not 0 < self.n < math.inf:
            raise UserError(f"normaliser constant needs a number above 0, got {self.n:g}")
        if self.rows not in ("active", "all", "weighted"):
            raise UserError(
                f"normaliser rows={self.rows!r} is unknown{nearest(self.rows, ['active', 'all', 'weighted'])}"
            )
        if self.rows == "weighted" and self.name == "constant":
            raise UserError("normaliser constant has no weights to count: rows=weighted goes with token or sequence")

    @classmethod
    def parse(cls, text: str) -> Normaliser:
        """Read "token", "sequence(rows=all)" or "constant(1024)"."""
        name, args, keywords = parse_call(text, "normaliser")
        if set(keywords) - {"rows"} or len(args) > (name == "constant"):
            raise UserError(
                f"normaliser {text!r} is not token, sequence or constant(n), each with an optional rows=all or rows=weighted"
            )
        return cls(name, _number(args[0], "normaliser constant") if args else 0.0, keywords.get("rows", "active"))

    def __str__(self) -> str:
        inner = [_plain(self.n)] if self.name == "constant" else []
        inner += [f"rows={self.rows}"] if self.rows != "active" else []
        return self.name + (f"({', '.join(inner)})" if inner else "")
