"""A teacher behind an OpenAI-compatible endpoint that tells the log-probs of a prompt (vLLM: `prompt_logprobs`).

Ids go there and numbers come back: for each token of a sequence its log-prob and those of the k likeliest. So a served
teacher can give the sampled token's log-prob and a top-k(of=teacher) divergence, at temperature 1, and nothing else.

Whatever goes wrong on the way (no connection, a timeout, 408, 429, 5xx, half an answer) is tried again with growing pauses;
what is wrong for good (another model, other ids, a log-prob that is missing or no number) is said at once.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from redistill.core.signal import CapturedMass, DivergenceOf, Quantity, TeacherLogProb
from redistill.core.specs import TeacherWeights
from redistill.errors import Unreachable, UserError, nearest

MOST = 20
"""Likeliest tokens asked for; vLLM answers no more unless it is started with a larger --max-logprobs."""
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_PROBE = "12+34= yes, a small test."


class _Broken(Exception):
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
                return read(self._once(path, body))
            except _Broken as broken:
                why = str(broken)
                if number + 1 < self.tries:
                    self.sleep(max(broken.wait, min(30.0, self.pause * 2**number)))
        raise Unreachable(f"the teacher at {self.url} failed {self.tries} times, the last time because {why}")

    def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            # No proxy: a loopback address asked of a proxy is another machine's.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=self.timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = _said(error)
            if error.code in _AGAIN:
                raise _Broken(f"it answered {error.code}{said}", _retry_after(error)) from None
            raise UserError(f"the teacher at {self.url} refused the request with {error.code}{said}") from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            raise _Broken(
                f"it did not answer within {self.timeout:g} s" if late else f"there was no answer ({reason})"
            ) from None
        except ValueError:
            raise _Broken("its answer was not whole JSON") from None


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


@dataclass
class ServedTeacher:
    """A served model that has been checked against the student's tokenizer. Make one with `connect`."""

    endpoint: Endpoint
    model: str
    vocabulary: int
    top: int = MOST

    def scored(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each (ids, positions): log-probs [n] of the tokens there, and ids [n, k] and log-probs [n, k] of the k likeliest.
        Position 0 has none."""
        ids = [list(sequence) for sequence, _ in sequences]
        body = {
            "model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": self.top,
        }  # fmt: skip

        def read(answer: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
            told = self._choices(answer, len(ids))
            return [self._one(told[i], ids[i], list(at)) for i, (_, at) in enumerate(sequences)]

        found: list[tuple[Tensor, Tensor, Tensor]] = self.endpoint.ask("/v1/completions", body, read)
        return found

    def _choices(self, answer: Any, wanted: int) -> list[Any]:
        """The prompt's log-probs of each choice, in the order that was asked for."""
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            raise _Broken("its answer had no choices")
        if answer.get("model") not in (None, self.model):
            raise UserError(
                f"the teacher at {self.endpoint.url} now serves {answer['model']!r}, where this run began with {self.model!r}"
            )
        choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
        if len(choices) != wanted:
            raise _Broken(f"it answered {len(choices)} of {wanted} sequences")
        told = [choice.get("prompt_logprobs") for choice in choices]
        if any(each is None for each in told):
            raise UserError(
                f"the teacher at {self.endpoint.url} tells no prompt_logprobs: it must be a server that does, such as vLLM"
            )
        return told

    def _one(self, told: Sequence[Any], ids: Sequence[int], at: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        if len(told) != len(ids):
            raise UserError(
                f"the teacher at {self.endpoint.url} read {len(told)} tokens where {len(ids)} were sent: it adds or drops some"
            )
        taken, likeliest, values = [], [], []
        for position in at:
            entry = told[position] or {}
            if str(ids[position]) not in entry:
                raise UserError(
                    f"the teacher at {self.endpoint.url} tells no log-prob of token {ids[position]} at position {position}: "
                    "its ids are not the student's, or it was not asked for this sequence"
                )
            pairs = {int(token): self._number(value, position) for token, value in entry.items()}
            top = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[: self.top]
            if len(top) < min(self.top, self.vocabulary) - 1:
                raise UserError(
                    f"the teacher at {self.endpoint.url} tells {len(top)} of the {self.top} likeliest tokens: start it with "
                    f"--max-logprobs {self.top} or ask for less"
                )
            top += top[-1:] * (self.top - len(top))  # asked for more than there are tokens
            taken.append(pairs[ids[position]])
            likeliest.append([token for token, _ in top])
            values.append([value for _, value in top])
        size = (len(at), self.top)
        return (
            torch.tensor(taken),
            torch.tensor(likeliest, dtype=torch.int64).view(size),
            torch.tensor(values).view(size),
        )

    def _number(self, value: Any, position: int) -> float:
        number = value.get("logprob") if isinstance(value, dict) else value
        if not isinstance(number, (int, float)) or not math.isfinite(number) or number > 1e-3:
            raise UserError(
                f"the teacher at {self.endpoint.url} told the log-prob {number!r} at position {position}, which is none"
            )
        return float(number)


def refuse_unserved(quantity: Quantity) -> None:
    """What a teacher without a distribution over all tokens cannot give: UserError for a served or a text teacher."""
    weights = getattr(getattr(quantity, "teacher", None), "weights", None)
    if weights is None or weights.name not in ("served", "text"):
        return
    if weights.name == "text":
        raise UserError(f"teacher {weights} has answers and no log-probs: use it with opd on_policy=0")
    if isinstance(quantity, (DivergenceOf, CapturedMass)):
        support = quantity.support
        if support.name == "top_k" and support.of == "teacher" and support.k <= MOST and quantity.temperature == 1.0:
            return
        raise UserError(
            f"teacher {weights} tells the {MOST} likeliest tokens at temperature 1: set support=sampled or "
            f"support=top_k(k, of=teacher) with k of at most {MOST}, not {support} at temperature {quantity.temperature:g}"
        )
    if not isinstance(quantity, TeacherLogProb):
        raise UserError(f"teacher {weights} cannot tell {type(quantity).__name__}, which needs all tokens")


@dataclass(frozen=True)
class ServedStates:
    """A served teacher at the steps at hand: log-probs of the taken token and of the likeliest. `log_probs` is exact on these;
    the mass that is left is spread evenly over all others, so that nothing outside the top k is ever more than it."""

    target_n: Tensor
    taken_n: Tensor
    likeliest_nk: Tensor
    values_nk: Tensor
    valid_n: Tensor
    vocabulary: int

    def chunk(self, low: int, high: int) -> ServedStates:
        """The steps from low to high."""
        return ServedStates(
            self.target_n[low:high], self.taken_n[low:high], self.likeliest_nk[low:high], self.values_nk[low:high],
            self.valid_n[low:high], self.vocabulary,
        )  # fmt: skip

    def log_probs(self, temperature: Tensor | float) -> Tensor:
        """log q [n, V] at temperature 1 (another was refused before)."""
        if not bool((torch.as_tensor(temperature) == 1.0).all()):
            raise UserError("a served teacher tells log-probs at temperature 1 only: set temperature=1")
        known_nV = torch.full((len(self.target_n), self.vocabulary), float("-inf"), dtype=self.values_nk.dtype)
        known_nV.scatter_(1, self.likeliest_nk, self.values_nk)
        known_nV.scatter_(1, self.target_n[:, None], self.taken_n[:, None])
        there_nV = known_nV > float("-inf")
        left_n = (1.0 - known_nV.exp().sum(-1)).clamp(min=1e-12)
        others_n = (self.vocabulary - there_nV.sum(-1)).clamp(min=1)
        return torch.where(there_nV, known_nV, (left_n / others_n).log()[:, None])


@dataclass
class Served:
    """All served teachers of a run, by how they were written."""

    tokenizer: Any
    vocabulary: int
    timeout: float = 60.0
    tries: int = 6
    known: dict[str, ServedTeacher] = field(default_factory=dict)

    def connect(self, spec: TeacherWeights) -> ServedTeacher:
        """The teacher of a spec, connected and checked once."""
        if str(spec) not in self.known:
            endpoint = Endpoint(spec.path.rstrip("/").removesuffix("/v1"), self.timeout, self.tries)
            self.known[str(spec)] = connect(endpoint, spec, self.tokenizer, self.vocabulary)
        return self.known[str(spec)]

    def states(self, spec: TeacherWeights, pieces: Sequence[Any], steps: Sequence[int]) -> ServedStates:
        """What the teacher says at every step of some rows. `pieces` are those rows that have a context (text/packing.py's
        Piece), `steps` the steps of all rows; the others get zeros."""
        teacher = self.known[str(spec)]
        asked = [((*p.prompt, *p.response), [len(p.prompt) + j for j in p.chosen()]) for p in pieces]
        told = teacher.scored(asked) if asked else []
        by_row = {piece.row: (piece, answer) for piece, answer in zip(pieces, told)}
        parts: list[tuple[Tensor, ...]] = []
        for row, count in enumerate(steps):
            if row in by_row:
                piece, (taken, likeliest, values) = by_row[row]
                target = torch.tensor([piece.response[j] for j in piece.chosen()], dtype=torch.int64)
            else:
                target = torch.zeros(count, dtype=torch.int64)
                taken, likeliest = torch.zeros(count), torch.zeros(count, teacher.top, dtype=torch.int64)
                values = torch.zeros(count, teacher.top)
            parts.append((target, taken, likeliest, values, torch.full((count,), row in by_row)))
        target_n, taken_n, likeliest_nk, values_nk, valid_n = (torch.cat(column) for column in zip(*parts))
        return ServedStates(target_n, taken_n, likeliest_nk, values_nk, valid_n, self.vocabulary)


def connect(endpoint: Endpoint, spec: TeacherWeights, tokenizer: Any, vocabulary: int) -> ServedTeacher:
    """Check address, model name and ids of a served teacher, in this order. UserError for what does not fit."""
    host = urlsplit(endpoint.url).hostname or ""
    if urlsplit(endpoint.url).scheme not in ("http", "https") or not host:
        raise UserError(f"teacher served({spec.path}) needs an address such as http://127.0.0.1:8000")
    if not is_loopback(host) and not spec.remote:
        raise UserError(
            f"teacher served({spec.path}) is on another machine, which would read prompts and answers: if that is meant, write "
            f"served({spec.path}, remote=true)"
        )

    def names(answer: Any) -> list[str]:
        found = [str(each.get("id")) for each in answer.get("data", [])] if isinstance(answer, dict) else []
        if not found:
            raise _Broken("it named no model")
        return found

    served: list[str] = endpoint.ask("/v1/models", None, names)
    if spec.model and spec.model not in served:
        raise UserError(f"the teacher at {endpoint.url} does not serve {spec.model!r}{nearest(spec.model, served)}")
    if not spec.model and len(served) > 1:
        raise UserError(
            f"the teacher at {endpoint.url} serves {len(served)} models: name one, served({spec.path}, model={served[0]})"
        )
    teacher = ServedTeacher(endpoint, spec.model or served[0], vocabulary, min(MOST, vocabulary))
    _same_ids(teacher, tokenizer)
    return teacher


def _same_ids(teacher: ServedTeacher, tokenizer: Any) -> None:
    """Send a probe and compare what the server calls each token with what the student's tokenizer does."""
    ids = [*(tokenizer.encode("A", add_special_tokens=False)[:1]), *tokenizer.encode(_PROBE, add_special_tokens=False)]
    body = {"model": teacher.model, "prompt": [ids], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    told = teacher.endpoint.ask("/v1/completions", body, lambda answer: teacher._choices(answer, 1))[0]
    if len(told) != len(ids):
        raise UserError(
            f"the teacher at {teacher.endpoint.url} read {len(told)} tokens where {len(ids)} were sent: it adds or drops some"
        )
    for position, token in enumerate(ids[1:], start=1):
        entry = (told[position] or {}).get(str(token))
        theirs = entry.get("decoded_token") if isinstance(entry, dict) else None
        ours = tokenizer.decode([token])
        if entry is None or (theirs is not None and "\ufffd" not in ours and theirs.strip() != ours.strip()):
            raise UserError(
                f"the teacher at {teacher.endpoint.url} has other tokens than the student: id {token} is {ours!r} to the student "
                f"and {theirs!r} to the teacher"
            )
