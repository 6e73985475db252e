"""A black-box teacher: answers in a file, learnt by likelihood, off-policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from redistill.build import prepare, settings
from redistill.core.specs import TeacherWeights
from redistill.errors import UserError
from redistill.tasks.sums import Sums
from redistill.text.pool import AnswerPool


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_answers_are_found_by_the_prompts_content(tmp_path: Path) -> None:
    one, other, third = (Sums().train(i, 0) for i in range(3))
    pool = AnswerPool(
        write(tmp_path / "a.jsonl", [
            {"prompt": one.content[0]["content"], "answer": "5"}, "",
            {"messages": other.content, "answers": ["6", "7"]}, {"messages": one.content, "answer": "8"},
        ])
    )  # fmt: skip
    assert [pool.answers(p) for p in (one, other, third)] == [["5", "8"], ["6", "7"], []]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ({"prompt": "a"}, "line 2 must have one of the keys 'answer' and 'answers'"),
        ({"prompt": "a", "messages": [], "answer": "b"}, "line 2 must have one of the keys 'prompt' and 'messages'"),
        ({"prompt": "a", "answer": " "}, "line 2: an answer is text that is not empty"),
        ({"prompt": "a", "answers": "b"}, "line 2: an answer is text that is not empty"),
        ({"promt": "a", "answer": "b"}, "line 2 has a key 'promt' that is not known; did you mean 'prompt'?"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        AnswerPool(write(tmp_path / "a.jsonl", [{"prompt": "q", "answer": "r"}, row]))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_answers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        AnswerPool(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="holds no answers"):
        AnswerPool(write(tmp_path / "a.jsonl", []))
    with pytest.raises(UserError, match="needs a file of answers"):
        TeacherWeights.parse("text()") if False else TeacherWeights("text")


def given(path: str, **more: Any) -> dict[str, Any]:
    return {
        "teacher": f"text({path})", "on_policy": 0, "steps": 3, "prompts_per_step": 4, "max_new_tokens": 16,
        "eval_prompts": 2, "save_model": "false", "learning_rate": 1e-3, "utility": "false", **more,
    }  # fmt: skip


def run(tmp_path: Path, path: str, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    told: list[str] = []
    made = prepare(
        "opd", given(path), out=tmp_path / name,
        report=lambda event, facts: told.append(facts["text"]) if event == "warning" else None,
    )  # fmt: skip
    made.go(False)
    made.close()
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if '"evaluation"' not in line], told


def test_opd_learns_the_pools_answers_and_leaves_out_what_has_none(tmp_path: Path) -> None:
    prompts = [Sums().train(i, 0) for i in range(11)]
    path = write(tmp_path / "a.jsonl", [{"messages": p.content, "answer": p.solution} for p in prompts])
    records, told = run(tmp_path, path, "right")
    assert [record["episodes"] for record in records] == [4, 4, 3]
    assert records[-1]["omitted/teacher's answer"] == 1
    assert any("no answer to 1 of the first 12" in text for text in told)
    wrong = write(tmp_path / "b.jsonl", [{"messages": p.content, "answer": "999"} for p in prompts])
    other, _ = run(tmp_path, wrong, "wrong")
    assert other[0]["likelihood/nll"] > records[0]["likelihood/nll"] + 1
    assert torch.isfinite(torch.tensor([record["loss"] for record in records])).all()


def test_refusals(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "nobody asked", "answer": "5"}])
    with pytest.raises(UserError, match="set on_policy=0"):
        settings("opd", given(path, on_policy=0.5))
    with pytest.raises(UserError, match="answers none of the first 12 training prompts"):
        prepare("opd", given(path), out=tmp_path / "run", report=lambda event, facts: None)
