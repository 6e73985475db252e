"""A teacher behind an OpenAI-compatible endpoint that tells the log-probs of a prompt (vLLM: `prompt_logprobs`).

Ids go there and numbers come back: for each token of a sequence its log-prob and those of the k likeliest. So a served
teacher can give the sampled token's log-prob and a top-k(of=teacher) divergence, at temperature 1, and nothing else.

Whatever goes wrong on the way (no connection, a timeout, 408, 429, 5xx, half an answer) is tried again with growing pauses;
what is wrong for good (another model, other ids, a log-prob that is missing or no number) is said at once. With every request
goes a short probe, so that a server that comes back with other weights under the same name is noticed before its numbers are
used; a checkpoint remembers what the probe came to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from redistill.core.signal import CapturedMass, DivergenceOf, Quantity, TeacherLogProb
from redistill.core.specs import TeacherWeights
from redistill.core.state import Piece
from redistill.errors import OutsideFault, UserError, nearest
from redistill.text.endpoint import Broken, Endpoint, is_loopback

MOST = 20
"""Likeliest tokens asked for; vLLM answers no more unless it is started with a larger --max-logprobs."""
_PROBE = "12+34= yes, a small test."
DRIFT = 0.2
"""Nats: mean difference of the probe's log-probs beyond which it is another model. Batching and half precision make hundredths."""


@dataclass
class ServedTeacher:
    """A served model that has been checked against the student's tokenizer. Make one with `connect`."""

    endpoint: Endpoint
    model: str
    vocabulary: int
    top: int = MOST
    probe: tuple[int, ...] = ()
    """Ids that go with every request; `told` are their log-probs (from the second on) at the start of the run."""
    told: Tensor = field(default_factory=lambda: torch.zeros(0))

    def scored(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each (ids, positions): log-probs [n] of the tokens there, and ids [n, k] and log-probs [n, k] of the k likeliest.
        Position 0 has none."""
        ids = [*(list(sequence) for sequence, _ in sequences), list(self.probe)]
        body = {
            "model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": self.top,
        }  # fmt: skip

        def read(answer: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
            told = self._choices(answer, len(ids))
            made = [self._one(told[i], ids[i], list(at)) for i, (_, at) in enumerate(sequences)]
            self.same_as(self._one(told[-1], ids[-1], range(1, len(self.probe)))[0], "earlier in this run")
            return made

        found: list[tuple[Tensor, Tensor, Tensor]] = self.endpoint.ask("/v1/completions", body, read)
        return found

    def same_as(self, told: Tensor, when: str) -> None:
        """OutsideFault when the probe's log-probs differ from what they were."""
        gap = float((told - self.told).abs().mean()) if len(told) == len(self.told) else math.inf
        if len(self.told) and gap > DRIFT:
            raise OutsideFault(
                f"the teacher at {self.endpoint.url} is not what it was {when}, though it is called {self.model!r} still: its "
                f"log-probs of a probe differ by {gap:.2g} nats on average"
            )

    def _choices(self, answer: Any, wanted: int) -> list[Any]:
        """The prompt's log-probs of each choice, in the order that was asked for."""
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            raise Broken("its answer had no choices")
        if answer.get("model") not in (None, self.model):
            raise OutsideFault(
                f"the teacher at {self.endpoint.url} now serves {answer['model']!r}, where this run began with {self.model!r}"
            )
        choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
        if [choice.get("index", at) for at, choice in enumerate(choices)] != list(range(wanted)):
            raise Broken(f"it answered {len(choices)} of {wanted} sequences, or one of them twice")
        told = [choice.get("prompt_logprobs") for choice in choices]
        if any(each is None for each in told):
            raise OutsideFault(
                f"the teacher at {self.endpoint.url} tells no prompt_logprobs: it must be a server that does, such as vLLM"
            )
        return told

    def _one(self, told: Sequence[Any], ids: Sequence[int], at: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(told, list) or len(told) != len(ids):
            raise OutsideFault(
                f"the teacher at {self.endpoint.url} read {len(told)} tokens where {len(ids)} were sent: it adds or drops some"
            )
        taken, likeliest, values = [], [], []
        for position in at:
            entry = told[position] or {}
            if str(ids[position]) not in entry:
                raise OutsideFault(
                    f"the teacher at {self.endpoint.url} tells no log-prob of token {ids[position]} at position {position}: "
                    "its ids are not the student's, or it was not asked for this sequence"
                )
            pairs = {int(token): self._number(value, position) for token, value in entry.items()}
            top = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[: self.top]
            if len(top) < min(self.top, self.vocabulary) - 1:
                raise OutsideFault(
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
        if (
            isinstance(number, bool)
            or not isinstance(number, (int, float))
            or not math.isfinite(number)
            or number > 1e-3
        ):
            raise OutsideFault(
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

    def state(self) -> Piece:
        """What each teacher said of the probe at the start of the run, and its name."""
        return Piece(facts={spec: {"model": t.model, "probe": t.told.tolist()} for spec, t in self.known.items()})

    def restore(self, piece: Piece) -> None:
        """Refuse to go on with a teacher that is not the one that the run began with; else keep comparing with that one."""
        for spec, facts in piece.facts.items():
            teacher, told = self.known[spec], torch.tensor(facts["probe"])
            if teacher.model != facts["model"]:
                raise OutsideFault(
                    f"the teacher at {teacher.endpoint.url} serves {teacher.model!r}, where this run began with {facts['model']!r}"
                )
            teacher.same_as(told, "when this run began")
            teacher.told = told

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
            raise Broken("it named no model")
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
    """Send a probe, compare what the server calls each token with what the student's tokenizer does, and keep its log-probs."""
    ids = [*(tokenizer.encode("A", add_special_tokens=False)[:1]), *tokenizer.encode(_PROBE, add_special_tokens=False)]
    body = {
        "model": teacher.model, "prompt": [ids], "max_tokens": 1, "temperature": 0, "prompt_logprobs": teacher.top,
    }  # fmt: skip

    def entries(answer: Any) -> list[dict[str, Any]]:
        told = teacher._choices(answer, 1)[0]
        if len(told) != len(ids):
            raise OutsideFault(
                f"the teacher at {teacher.endpoint.url} read {len(told)} tokens where {len(ids)} were sent: it adds or drops some"
            )
        return [dict(each or {}) for each in told]

    told = teacher.endpoint.ask("/v1/completions", body, entries)
    for position, token in enumerate(ids[1:], start=1):
        entry = told[position].get(str(token))
        theirs = entry.get("decoded_token") if isinstance(entry, dict) else None
        ours = tokenizer.decode([token])
        if entry is None or (theirs is not None and "\ufffd" not in ours and theirs.strip() != ours.strip()):
            raise UserError(
                f"the teacher at {teacher.endpoint.url} has other tokens than the student: id {token} is {ours!r} to the student "
                f"and {theirs!r} to the teacher"
            )
    teacher.probe = tuple(ids)
    teacher.told = teacher._one(told, ids, range(1, len(ids)))[0]
