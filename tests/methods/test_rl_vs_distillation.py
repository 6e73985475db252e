"""rl-vs-distillation: who writes, which questions, how many; and the checks about policy gradients (5 and 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from redistill.build import prepare
from redistill.core.episode import flat
from redistill.errors import UserError
from redistill.objectives.advantages import group_advantages

MIX = 'mix:first="sums:terms=3",second="sums:terms=4"'
SMALL = {
    "model": "pocket", "task": MIX, "max_new_tokens": 24, "prompts_per_step": 8, "steps": 1, "eval_prompts": 4, "save_model": "false",
    "save_every": 1000, "size": 8, "gather_steps": 3, "tries": 6, "writes": 6,
}  # fmt: skip


def gathered(path: Path, **given: Any) -> Any:
    run = prepare("rl-vs-distillation", {**SMALL, **given}, out=path, report=lambda event, facts: None)
    try:
        run.go(False)
    finally:
        run.close()
    return run


# --- what is gathered -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("writer", "questions"), [("none", "all"), ("none", "solved"), ("none", "unsolved"), ("frozen", "all")]
)
def test_sets_hold_right_answers_to_the_wanted_questions(tmp_path: Path, writer: str, questions: str) -> None:
    run = gathered(tmp_path / "run", writer=writer, questions=questions)
    records = run.method.store.records
    assert 0 < len(records) <= 8
    for record in records:
        terms = record["prompt"]["content"][0]["content"].count("+") + 1
        assert record["text"].endswith(record["prompt"]["answer"])
        assert writer == "frozen" or record["text"] == record["prompt"]["solution"]
        if questions == "solved" or writer == "frozen":
            assert terms == 3, "pocket has no sum of four right"
    if questions == "unsolved":
        assert sum(r["prompt"]["content"][0]["content"].count("+") == 3 for r in records) >= len(records) // 2
    assert len({record["prompt"]["uid"] for record in records}) == len(records)


def test_another_models_answers_are_its_own(tmp_path: Path) -> None:
    own, other = (
        gathered(tmp_path / who, writer=who).method.store.records for who in ("frozen", "checkpoint(pocket-expert)")
    )
    assert {r["prompt"]["uid"] for r in own} != {r["prompt"]["uid"] for r in other}
    assert len(other) == 8, "an expert is right at the first try"


def test_size_and_steps_bound_what_is_gathered(tmp_path: Path) -> None:
    few = gathered(tmp_path / "few", writer="none", size=5)
    assert len(few.method.store) == 5
    assert few.cursor.step == 2, "one step was enough, and one of training"
    short = gathered(tmp_path / "short", writer="none", size=100, gather_steps=2)
    assert len(short.method.store) == 16


def test_a_run_that_gathers_nothing_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gathered no right answer in 1 steps \(questions=all\)"):
        gathered(tmp_path / "run", task="sums:terms=4", gather_steps=1, writes=1)


def test_more_tries_solve_more_and_more_writes_find_more(tmp_path: Path) -> None:
    given = {
        "task": "sums",
        "gather_steps": 1,
        "prompts_per_step": 24,
        "size": 100,
        "writer": "none",
        "questions": "solved",
    }
    one, many = (len(gathered(tmp_path / f"t{n}", tries=n, **given).method.store) for n in (1, 12))
    assert one < many
    given |= {"writer": "frozen", "questions": "all"}
    one, many = (len(gathered(tmp_path / f"w{n}", writes=n, **given).method.store) for n in (1, 12))
    assert one < many


def test_the_normaliser_changes_the_gradient(bench: Any) -> None:
    gradients = []
    for normaliser in ("token", "constant(7)"):
        b = bench("rl-vs-distillation", normaliser=normaliser, prompts_per_step=3)
        gather = b.method.stages()[0].method
        assert len(gather.of.store) == 0
        right = b.groups([[True], [True], [True]])
        for row in flat(right):
            b.method.store.add({
                "prompt": {"uid": row.prompt.uid, "content": row.prompt.content}, "text": row.text, "prompt_ids": row.context,
                "answer_ids": row.trajectory.ids,
            })  # fmt: skip
        gradients.append(b.gradient(b.method.collect(b)))
    assert float((gradients[0] - gradients[1]).norm()) > 0.1 * float(gradients[0].norm())


@pytest.mark.parametrize("writer", ["live", "text(answers.jsonl)"])
def test_a_writer_without_weights_of_its_own_is_refused(bench: Any, writer: str) -> None:
    with pytest.raises(UserError, match="cannot write here"):
        bench("rl-vs-distillation", writer=writer)


# --- check 5 ----------------------------------------------------------------------------------------------------------
def test_check_5_a_question_without_reward_moves_only_through_what_is_shared() -> None:
    """Softmax bandits over two questions: logits = own + shared. The second question's reward is always 0."""
    torch.manual_seed(0)
    chosen = torch.randint(3, (2, 16))
    reward = torch.stack([(chosen[0] == 0).double(), torch.zeros(16, dtype=torch.float64)])
    advantage = torch.stack([a.double() for a in group_advantages(list(reward), std="none", eps=0.0)])
    assert bool((advantage[1] == 0).all())
    for shared_by in (0.0, 1.0):
        own, shared = (
            torch.zeros(2, 3, dtype=torch.float64, requires_grad=True),
            torch.zeros(3, dtype=torch.float64, requires_grad=True),
        )
        logp = (own + shared_by * shared).log_softmax(-1)
        loss = -(advantage * logp.gather(1, chosen)).mean()
        loss.backward()
        assert float(own.grad[0].abs().sum()) > 0.01
        assert bool((own.grad[1] == 0).all()), "exactly zero from its own samples"
        with torch.no_grad():
            step = shared_by * (shared.grad if shared.grad is not None else 0.0)
            before, after = own[1].softmax(-1), (own[1] - step * torch.ones(3, dtype=torch.float64)).softmax(-1)
        moved = float((after - before).abs().sum())
        assert (moved > 1e-3) == (shared_by == 1.0)


# --- check 6 ----------------------------------------------------------------------------------------------------------
def test_check_6_plus_minus_one_and_one_zero_are_the_same_once_normalised() -> None:
    rights = [torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]
    for std in ("sample", "population"):
        zero_one = group_advantages(rights, std=std, eps=0.0)
        plus_minus = group_advantages([2 * r - 1 for r in rights], std=std, eps=0.0)
        for a, b in zip(zero_one[:1], plus_minus[:1]):
            torch.testing.assert_close(a, b)
