"""A run whose served teacher misbehaves ends with the weights of an undisturbed one, at once or after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.faulty import FAULTS, PASSING, Server, serving
from redistill.core.state import checkpoints
from redistill.errors import OutsideFault, UserError
from redistill.text import endpoint
from redistill.text.endpoint import Broken, Endpoint

from benchmarks import trust_services

FIRST = trust_services.PROBES + 1


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def expected(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole") / "run"
    server.told({})
    trust_services.run(server, out)
    return trust_services.weights(out)


@pytest.mark.parametrize("fault", ["429 with Retry-After", "drip", "hang up half way", "deep JSON", "a choice twice"])
def test_what_passes_is_tried_again_and_changes_nothing(
    server: Server, fault: str, expected: Any, tmp_path: Path
) -> None:
    assert fault in PASSING
    assert trust_services.strike(server, fault, FIRST + 1, tmp_path / "run", expected) is None


@pytest.mark.parametrize(
    "fault", ["nan", "true", "no log-probs", "one token less", "other weights", "redirect", "down"]
)
def test_what_lasts_stops_the_run_which_resumes_exactly(
    server: Server, fault: str, expected: Any, tmp_path: Path
) -> None:
    assert fault in FAULTS
    out = tmp_path / "run"
    assert trust_services.strike(server, fault, FIRST + 2, out, expected) is None
    assert not trust_services.same(trust_services.weights(out), {**expected, "lm_head.weight": torch.zeros(1)})


def test_the_stop_names_the_checkpoint_and_keeps_it(server: Server, tmp_path: Path) -> None:
    server.told(dict.fromkeys(range(FIRST + 3, 99), "nan"))
    with pytest.raises(UserError, match=r"log-prob nan .*step-00000002 is intact: --resume --out") as caught:
        trust_services.run(server, tmp_path / "run")
    assert not isinstance(caught.value, OutsideFault)
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-00000002"


def test_a_run_is_not_resumed_with_another_teacher_of_the_same_name(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "run"
    server.told(dict.fromkeys(range(FIRST + 3, 99), "503"))
    with pytest.raises(UserError, match="answered 503"):
        trust_services.run(server, out, served_tries=1)
    server.told({}, "other weights")
    with pytest.raises(UserError, match="is not what it was when this run began, though it is called 'pocket' still"):
        trust_services.run(server, out, resume=True, served_tries=1)
    server.told({})
    assert trust_services.run(server, out, resume=True, served_tries=1)["steps"] == trust_services.STEPS


def test_an_answer_without_end_is_not_read_to_the_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MOST_BYTES", 1000)
    server.told({})
    one = Endpoint(server.url, tries=1)
    body = {"model": "pocket", "prompt": [list(range(5, 60))], "prompt_logprobs": 20}
    with pytest.raises(UserError, match="its answer had more than 1000 bytes"):
        one.ask("/v1/completions", body, lambda answer: answer)


def test_what_cannot_be_read_is_broken_and_what_is_refused_is_not() -> None:
    waits: list[float] = []
    one = Endpoint("http://127.0.0.1:9", tries=3, sleep=waits.append)
    one._once = lambda path, body: {"data": 1}  # type: ignore[method-assign]
    with pytest.raises(
        OutsideFault, match=r"failed 3 times, the last time because its answer was of another form \(TypeError\)"
    ):
        one.ask("/", None, lambda answer: list(answer["data"]))
    assert waits == [0.5, 1.0]
    with pytest.raises(Broken):
        Endpoint._understood(lambda answer: answer["nothing"], {})
