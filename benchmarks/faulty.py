"""A server that answers as vLLM does, from `pocket`, and misbehaves when it is told to. For tests and `make trust`.

Real HTTP on a loopback address. A fault is a name in FAULTS; `plan` says at which scoring request which fault happens, `rest`
what happens at all later ones.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from redistill.text.models import load_model

STATUS = {
    "408": 408, "425": 425, "429": 429, "429 with Retry-After": 429, "500": 500, "502": 502, "503": 503, "504": 504,
    "401": 401, "404": 404, "redirect": 307,
}  # fmt: skip
PASSING = (
    "408", "425", "429", "429 with Retry-After", "500", "502", "503", "504", "late", "drip", "hang up", "hang up half way",
    "cut JSON", "empty", "HTML", "no JSON", "deep JSON", "a list", "choices of text", "half of the choices", "a choice twice",
    "no HTTP", "index of text",
)  # fmt: skip
"""Faults after which the same server may answer well: to be tried again."""
LASTING = (
    "401", "404", "redirect", "nan", "infinite", "positive", "a word", "null", "true", "missing token", "no log-probs",
    "few likeliest", "one token more", "one token less", "another name", "other weights", "down",
)  # fmt: skip
"""Faults that are wrong for good (or, `down`, that last longer than anybody waits): the run stops."""
FAULTS = PASSING + LASTING


class Server(ThreadingHTTPServer):
    """The server and what it is told to do wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lm = load_model("pocket")
        self.plan: dict[int, str] = {}
        self.rest: str | None = None
        self.requests = 0
        self.injected = 0
        self.slow = 0.6
        """Seconds that a late answer takes: more than the run's timeout."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is not news."""

    def told(self, plan: Mapping[int, str], rest: str | None = None) -> None:
        """What goes wrong from now on, by the number of the scoring request (from 1)."""
        self.plan, self.rest, self.requests, self.injected = dict(plan), rest, 0, 0

    def fault(self) -> str | None:
        """The fault of this request."""
        self.requests += 1
        fault = self.plan.get(self.requests, self.rest)
        self.injected += fault is not None
        return fault


class Handler(BaseHTTPRequestHandler):
    """Answers the model's name and the log-probs of prompts."""

    server: Server

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """The list of models."""
        self.send(json.dumps({"data": [{"id": "pocket"}]}))

    def do_POST(self) -> None:
        """Log-probs, or a fault."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.fault()
        if fault in STATUS:
            headers = {
                "429 with Retry-After": {"Retry-After": "0.2"},
                "redirect": {"Location": self.server.url + "/else"},
            }
            self.send('{"error": "busy"}', STATUS[str(fault)], headers.get(str(fault), {}))
        elif fault in ("hang up", "down"):
            self.connection.close()
        elif fault == "no HTTP":
            self.wfile.write(b"\x00\x01 nonsense\r\n\r\n")
            self.close_connection = True
        elif fault == "late":
            time.sleep(self.server.slow)
            self.send("{}")
        else:
            self.send_answer(json.dumps(self.answer(body, fault)), fault)

    def send_answer(self, text: str, fault: str | None) -> None:
        """The answer's text, or what a fault makes of it."""
        half = text[: len(text) // 2]
        if fault == "hang up half way":
            self.send(half, length=len(text))
            self.close_connection = True
        elif fault == "drip":
            self.send("", length=len(text))
            for at in range(40):  # never silent for long, and never done
                self.wfile.write(text[at : at + 1].encode())
                self.wfile.flush()
                time.sleep(self.server.slow / 20)
            self.close_connection = True
        else:
            spoilt = {
                "cut JSON": half, "empty": "", "HTML": "<html>Bad gateway</html>", "no JSON": "{'a': 1}",
                "deep JSON": "[" * 100_000, "a list": "[1, 2]", "choices of text": '{"choices": ["a", "b"]}',
            }  # fmt: skip
            self.send(spoilt.get(str(fault), text))

    def send(
        self, text: str, status: int = 200, headers: Mapping[str, str] | None = None, length: int | None = None
    ) -> None:
        """One answer with its headers."""
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def answer(self, body: Mapping[str, Any], fault: str | None) -> dict[str, Any]:
        """What vLLM answers, with the content spoilt as the fault says."""
        choices = []
        for index, ids in enumerate(body["prompt"]):
            scores = self.scores(ids, body["prompt_logprobs"], -1.0 if fault == "other weights" else 1.0)
            choices.append({"index": index, "prompt_logprobs": spoilt_scores(scores, ids, fault)})
        if fault == "half of the choices":
            choices = choices[:-1]
        if fault == "a choice twice":
            choices[-1] = dict(choices[0])
        if fault == "index of text":
            choices = [{**choice, "index": "a"} for choice in choices[:1]] + choices[1:]
        return {"model": "another" if fault == "another name" else body["model"], "choices": choices[::-1]}

    @torch.no_grad()
    def scores(self, ids: list[int], k: int, sign: float) -> list[Any]:
        """vLLM's prompt_logprobs; `sign` -1 for the weights of quite another model."""
        logp = (sign * self.server.lm.module(torch.tensor([ids])).logits[0]).log_softmax(-1)
        told: list[Any] = [None]
        for position in range(1, len(ids)):
            top = logp[position - 1].topk(min(k, logp.shape[-1])).indices.tolist()
            tokens = dict.fromkeys([ids[position], *top])
            told.append({
                str(token): {"logprob": float(logp[position - 1, token]), "decoded_token": self.server.lm.tokenizer.decode([token])}
                for token in tokens
            })  # fmt: skip
        return told


VALUES: Mapping[str, Any] = {
    "nan": float("nan"), "infinite": float("-inf"), "positive": 1.5, "a word": "-1.5", "null": None, "true": True,
}  # fmt: skip
"""What a spoilt log-prob is, by fault."""


def spoilt_scores(told: list[Any], ids: list[int], fault: str | None) -> list[Any] | None:
    """The log-probs of one sequence as a fault leaves them."""
    last = str(ids[-1])
    if fault in VALUES:
        told[-1][last]["logprob"] = VALUES[str(fault)]
    elif fault == "missing token":
        told[-1].pop(last)
    elif fault == "no log-probs":
        return None
    elif fault == "few likeliest":
        return [None if each is None else dict(list(each.items())[:2]) for each in told]
    elif fault == "one token more":
        told.insert(0, None)
    elif fault == "one token less":
        told.pop()
    return told


@contextmanager
def serving() -> Iterator[Server]:
    """A server while the block lasts."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
