"""A served teacher against a local server made from `pocket`: it agrees with the checkpoint, and every way to fail is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from redistill.build import prepare, settings
from redistill.core.episode import flat
from redistill.core.signal import CapturedMass, DivergenceOf, EntropyOf, LogProb, TeacherLogProb
from redistill.core.specs import DivergenceKind, Support, TeacherWeights
from redistill.core.state import checkpoints
from redistill.errors import Unreachable, UserError
from redistill.tasks.sums import Sums
from redistill.text import served
from redistill.text.domain import TextDomain
from redistill.text.models import load_model
from redistill.text.served import Endpoint, Served, connect, is_loopback
from redistill.text.views import Evidence

LM = load_model("pocket")


class Server(ThreadingHTTPServer):
    """What vLLM answers, from pocket. `faults` are used up one a request; `always` stays."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.always: str | None = None
        self.models = ["pocket"]
        self.requests = 0
        self.after: int | None = None
        """Requests after which the server is dead."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is not news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send({"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests += 1
        dead = server.after is not None and server.requests > server.after
        fault = "500" if dead else server.faults.pop(0) if server.faults else server.always
        if fault and fault.isdigit():
            self.send({"error": "busy"}, int(fault))
        elif fault == "late":
            time.sleep(0.5)
            self.send({})
        elif fault == "hang up":
            self.connection.close()
        elif fault == "truncated":
            self.send(self.answer(body, None), cut=True)
        else:
            self.send(self.answer(body, fault))

    def answer(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
        choices = []
        for index, ids in enumerate(body["prompt"]):
            told = scores(ids, body["prompt_logprobs"])
            if fault == "nan":
                told[-1][str(ids[-1])]["logprob"] = float("nan")
            if fault == "positive":
                told[-1][str(ids[-1])]["logprob"] = 1.5
            if fault == "missing":
                told[-1].pop(str(ids[-1]))
            if fault == "other tokens":
                told[-1][str(ids[-1])]["decoded_token"] = "zzz"
            if fault == "bos":
                told.insert(0, None)
            if fault == "few":
                told = [None if each is None else dict(list(each.items())[:2]) for each in told]
            choices.append({"index": index, "text": "", "prompt_logprobs": None if fault == "none" else told})
        if fault == "half":
            choices = choices[:-1]
        return {"model": "other" if fault == "other model" else body["model"], "choices": choices[::-1]}

    def send(self, body: Any, status: int = 200, cut: bool = False) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) // 2 if cut else len(text)))
        self.end_headers()
        self.wfile.write(text[: len(text) // 2] if cut else text)


@torch.no_grad()
def scores(ids: list[int], k: int) -> list[Any]:
    """vLLM's prompt_logprobs: for each position the token's own and the k likeliest, the first None."""
    logp = LM.module(torch.tensor([ids])).logits[0].log_softmax(-1)
    told: list[Any] = [None]
    for position in range(1, len(ids)):
        top = logp[position - 1].topk(min(k, logp.shape[-1])).indices.tolist()
        entry = {
            str(token): {"logprob": float(logp[position - 1, token]), "rank": rank, "decoded_token": LM.tokenizer.decode([token])}
            for rank, token in enumerate(dict.fromkeys([ids[position], *top]), start=1)
        }  # fmt: skip
        told.append(entry)
    return told


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join()


def endpoint(server: Server, **given: Any) -> Endpoint:
    waits: list[float] = []
    made = Endpoint(server.url, timeout=given.pop("timeout", 5.0), sleep=waits.append, **given)
    made.waits = waits  # type: ignore[attr-defined]
    return made


def spec_of(server: Server, **given: Any) -> TeacherWeights:
    return TeacherWeights("served", path=server.url, **given)


def domain_of(**given: Any) -> TextDomain:
    _, config = settings("rft", {"max_new_tokens": 8, "group_size": 2, **given})
    domain = TextDomain(LM, Sums(), config)  # type: ignore[arg-type]
    domain.begin_step(0)
    return domain


# --- what it tells is what the checkpoint tells ------------------------------------------------------------------------
def test_served_log_probs_and_top_k_divergences_are_the_checkpoints(server: Server) -> None:
    domain = domain_of()
    spec, local = spec_of(server), TeacherWeights("checkpoint", path="pocket")
    domain.bank.need([spec, local])
    rows = flat(domain.rollout([Sums().train(i, 0) for i in range(3)]))
    evidence = [Evidence(solution=row.prompt.solution) for row in rows]
    evidence[1] = Evidence()  # a row without a context stays without one
    one, other = (domain.teacher(weights, rows, "with_solution", evidence) for weights in (spec, local))
    kept = domain.covered(one, rows)
    assert not kept.all()
    for kind, support in (
        (DivergenceKind("forward_kl"), Support("top_k", 5, "teacher")),
        (DivergenceKind("reverse_kl"), Support("top_k", 20, "teacher")),
        (DivergenceKind("jsd", 0.5), Support("top_k", 3, "teacher", False)),
    ):
        mine, theirs = (
            domain.score(rows, made).values()
            for made in (
                [TeacherLogProb(t), DivergenceOf(t, kind, support), CapturedMass(t, support)] for t in (one, other)
            )
        )
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a[kept], b[kept], rtol=1e-3, atol=2e-4)
    assert domain.score(rows, [LogProb()])[LogProb()].isfinite().all()


def test_what_it_cannot_tell_is_refused(server: Server) -> None:
    domain = domain_of()
    spec = spec_of(server)
    domain.bank.need([spec])
    rows = flat(domain.rollout([Sums().train(0, 0)]))
    teacher = domain.teacher(spec, rows, "plain", [Evidence()] * len(rows))
    kl = DivergenceKind("reverse_kl")
    for quantity in (
        DivergenceOf(teacher, kl, Support("full")), DivergenceOf(teacher, kl, Support("top_k", 5, "student")),
        DivergenceOf(teacher, kl, Support("top_k", 21, "teacher")),
        DivergenceOf(teacher, kl, Support("top_k", 5, "teacher"), temperature=2.0),
    ):  # fmt: skip
        with pytest.raises(UserError, match="tells the 20 likeliest tokens at temperature 1"):
            domain.score(rows, [quantity])
    warm = domain_of(temperature=1.3)
    warm.bank.need([spec])
    with pytest.raises(UserError, match="temperature 1 only"):
        warm.score(flat(warm.rollout([Sums().train(0, 0)]))[:2], [TeacherLogProb(teacher)])
    assert EntropyOf() in domain.score(rows, [EntropyOf()])


# --- what is tried again -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", ["429", "500", "502", "503", "late", "hang up", "truncated", "half"])
def test_a_passing_fault_is_tried_again(server: Server, fault: str) -> None:
    patient = endpoint(server, timeout=0.25 if fault == "late" else 5.0)
    teacher = connect(patient, spec_of(server), LM.tokenizer, 101)
    server.faults = [fault, fault]
    ids = LM.tokenizer.encode("12+34=46", add_special_tokens=False)
    ((taken, _, _),) = teacher.scored([(ids, [3, 4])])
    expected = [scores(ids, 1)[at][str(ids[at])]["logprob"] for at in (3, 4)]
    assert taken.tolist() == pytest.approx(expected, abs=1e-5)
    assert patient.waits == [0.5, 1.0]  # type: ignore[attr-defined]


def test_it_gives_up_after_so_many_tries_with_growing_pauses(server: Server) -> None:
    patient = endpoint(server, tries=9)
    teacher = connect(patient, spec_of(server), LM.tokenizer, 101)
    server.always = "503"
    with pytest.raises(Unreachable, match=r"failed 9 times, the last time because it answered 503 \(.*busy") as caught:
        teacher.scored([([5, 6, 7], [1])])
    assert patient.waits == [0.5, 1, 2, 4, 8, 16, 30, 30]  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)


def test_nobody_there(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(Unreachable, match="failed 2 times, the last time because there was no answer"):
        connect(endpoint(server, tries=2), spec_of(server), LM.tokenizer, 101)


# --- what is wrong for good --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("nan", "told the log-prob nan at position 2"),
        ("positive", "told the log-prob 1.5 at position 2"),
        ("missing", "tells no log-prob of token 7 at position 2"),
        ("bos", "read 4 tokens where 3 were sent"),
        ("other model", "now serves 'other', where this run began with 'pocket'"),
        ("none", "tells no prompt_logprobs"),
        ("few", "tells 2 of the 20 likeliest tokens"),
        ("404", "refused the request with 404"),
    ],
)
def test_what_is_wrong_for_good_is_said_at_once(server: Server, fault: str, sentence: str) -> None:
    patient = endpoint(server)
    teacher = connect(patient, spec_of(server), LM.tokenizer, 101)
    server.always = fault
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")) as caught:
        teacher.scored([([5, 6, 7], [1, 2])])
    assert not isinstance(caught.value, Unreachable)
    assert patient.waits == []  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)


def test_other_tokens_and_other_models_are_refused_before_the_run(server: Server) -> None:
    server.always = "other tokens"
    with pytest.raises(UserError, match=r"other tokens than the student: id \d+ is '\.' to the student and 'zzz'"):
        connect(endpoint(server), spec_of(server), LM.tokenizer, 101)
    server.always = None
    with pytest.raises(UserError, match="does not serve 'pockte'; did you mean 'pocket'"):
        connect(endpoint(server), spec_of(server, model="pockte"), LM.tokenizer, 101)
    server.models = ["pocket", "b"]
    with pytest.raises(UserError, match="serves 2 models: name one"):
        connect(endpoint(server), spec_of(server), LM.tokenizer, 101)
    assert connect(endpoint(server), spec_of(server, model="b"), LM.tokenizer, 101).model == "b"


def test_another_machine_must_be_asked_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for host, own in (("127.0.0.1", True), ("localhost", True), ("::1", True), ("10.0.0.5", False), ("teacher", False)):
        assert is_loopback(host) == own
    monkeypatch.setattr(served, "is_loopback", lambda host: False)
    with pytest.raises(UserError, match=r"another machine.*remote=true"):
        connect(endpoint(server), spec_of(server), LM.tokenizer, 101)
    assert server.requests == 0
    asked = TeacherWeights.parse(f"served({server.url}, remote=true)")
    assert str(asked) == f"served({server.url}, remote=true)"
    assert connect(endpoint(server), asked, LM.tokenizer, 101).model == "pocket"
    with pytest.raises(UserError, match="needs an address"):
        connect(Endpoint("file:///etc"), TeacherWeights("served", path="file:///etc"), LM.tokenizer, 101)
    both = TeacherWeights.parse("served(http://127.0.0.1:1, model=m)")
    assert TeacherWeights.parse(str(both)) == both
    for text in ("served()", "served(a, b)", "served(a, remote=maybe)", "served(a, port=3)"):
        with pytest.raises(UserError):
            TeacherWeights.parse(text)


# --- a run whose teacher dies ------------------------------------------------------------------------------------------
def run(server: Server, out: Path, resume: bool = False, **given: Any) -> dict[str, Any]:
    options = {
        "teacher": f"served({server.url})", "teacher_view": "with_solution", "support": "top_k(5, of=teacher)", "steps": 4,
        "prompts_per_step": 2, "group_size": 1, "max_new_tokens": 8, "eval_prompts": 2, "save_every": 1, "served_tries": 1,
        "learning_rate": 1e-3, "utility": "false", "trace_prompts": 0, **given,
    }  # fmt: skip
    made = prepare("opd", options, out=out, resume=resume, report=lambda event, facts: None)
    try:
        return made.go(resume)
    finally:
        made.close()


def weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "model" / "model.safetensors")


def test_a_run_whose_teacher_dies_keeps_its_checkpoint_and_resumes_without_loss(server: Server, tmp_path: Path) -> None:
    run(server, tmp_path / "whole")
    begun = server.requests
    server.requests, server.after = 0, 2 + 2  # two probes (before the weights and after), and two steps
    with pytest.raises(UserError, match=r"failed 1 times.*step-00000002 is intact: --resume --out") as caught:
        run(server, tmp_path / "cut")
    assert not isinstance(caught.value, Unreachable)
    assert "\n" not in str(caught.value)
    assert checkpoints(tmp_path / "cut" / "checkpoints")[-1].name == "step-00000002"
    server.after = None
    assert run(server, tmp_path / "cut", resume=True)["steps"] == 4
    assert begun == 6
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    first = load_model("pocket").module.state_dict()
    assert any(not torch.equal(one[name], first[name]) for name in one if name in first)


def test_sampled_token_runs_too(server: Server, tmp_path: Path) -> None:
    assert run(server, tmp_path / "run", support="sampled", steps=1)["skipped_updates"] == 0


def test_chunks_and_empty_batches(server: Server) -> None:
    several = Served(LM.tokenizer, 101, 5.0, 1)
    spec = spec_of(server)
    several.connect(spec)
    assert several.connect(spec) is several.known[str(spec)]
    states = several.states(spec, [], [0, 3])
    assert states.valid_n.tolist() == [False] * 3
    assert states.chunk(1, 2).log_probs(1.0).shape == (1, 101)
    assert served.MOST == 20


def test_mass_that_is_left_is_never_above_the_top_k() -> None:
    states = served.ServedStates(
        torch.tensor([7]),
        torch.tensor([-9.0]),
        torch.tensor([[1, 2]]),
        torch.tensor([[0.5, 0.3]]).log(),
        torch.tensor([True]),
        12,
    )
    q = states.log_probs(1.0).exp()[0]
    assert float(q.sum()) == pytest.approx(1.0, abs=1e-6)
    assert q.topk(2).indices.tolist() == [1, 2]
    assert float(q[7]) == pytest.approx(float(torch.tensor(-9.0).exp()))
