import json
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.core.task import Prompt, Task, checked_verdict, content_uid, is_held_out
from redistill.errors import UserError
from redistill.tasks import catalog, worker
from redistill.tasks.gym import HELD_OUT_PATIENCE, GymTask, gym_names, gym_options

NO_ORACLE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""These give no answer of their own: any valid solution counts, and none is stored."""
SOMETIMES_NO_ORACLE = {"intermediate_integration"}
"""Some of its answers are an unevaluated Integral(...): the question again, so not kept as an answer."""
NO_DEFAULT = {"composite"}
"""A mixture of other generators: there is nothing to make before `datasets` names some."""
HASH_ORDERED = ["isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note"]
"""Seen in reasoning-gym 0.1.25: items depend on Python's string hash seed."""

NAMES = [name for name in gym_names() if name not in NO_DEFAULT]
SMALL = "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def wrapped(text: str, answer_format: str) -> str:
    return {"plain": text, "boxed": f"So \\boxed{{{text}}}.", "tag": f"So <answer>{text}</answer>."}[answer_format]


@pytest.mark.parametrize("name", NAMES)
def test_own_answer_is_worth_1_and_a_wrong_one_less(name: str) -> None:
    assert len(NAMES) >= 100
    for answer_format in ("plain", "boxed", "tag"):
        task = GymTask(name, answer_format=answer_format)
        prompt = task._item(("test", 5), 0)
        json.dumps(dict(prompt.data))
        for wrong in ("zzz 97531", "", "\\boxed{[97531}", "-97531/."):
            verdict = checked_verdict(task, prompt, task.verify(prompt, wrapped(wrong, answer_format)))
            assert verdict.reward < 1.0
            assert verdict.feedback
        assert (prompt.answer is None) == (name in NO_ORACLE) or name in SOMETIMES_NO_ORACLE
        if prompt.answer is not None:
            assert prompt.solution is not None
            assert task.verify(prompt, wrapped(prompt.answer, answer_format)).reward == 1.0
            assert task.verify(prompt, prompt.solution).reward == 1.0
            if len(prompt.answer) > 5:
                assert prompt.answer not in str(task.verify(prompt, wrapped("zzz 97531", answer_format)).feedback)


def test_it_is_a_task() -> None:
    task = GymTask("chain_sum")
    assert isinstance(task, Task)
    prompt = task.train(0, 0)
    assert prompt.uid == content_uid(prompt.content)
    assert [message["role"] for message in prompt.content] == ["user"]
    asked = GymTask("chain_sum", answer_format="boxed", system="Be brief.").train(0, 0)
    assert [message["role"] for message in asked.content] == ["system", "user"]
    assert asked.content[1]["content"].endswith("\\boxed{}.")


@pytest.mark.parametrize(
    "spec", [("chain_sum", {}), ("spell_backward", {}), ("gcd", {}), ("knights_knaves", {}), SMALL]
)
def test_train_and_held_out_never_overlap(spec: tuple[str, dict[str, int]]) -> None:
    task = GymTask(*spec)
    held = task.held_out(60)
    uids = {prompt.uid for prompt in held}
    assert len(uids) == len(held) > 0
    assert all(is_held_out(uid) for uid in uids)
    for seed in (0, 1, 12345):
        trained = {task.train(index, seed).uid for index in range(150)}
        assert not uids & trained
        assert not any(is_held_out(uid) for uid in trained)
    assert [prompt.uid for prompt in GymTask(*spec).held_out(10)] == [prompt.uid for prompt in held[:10]]


def test_a_small_space_is_exhausted_not_repeated() -> None:
    held = GymTask(*SMALL).held_out(10_000)
    every = {
        f"State the final answer to the following arithmetic problem: {a} {op} {b} ="
        for a in range(10)
        for op in "+-"
        for b in range(10)
    }
    uids = {content_uid([{"role": "user", "content": question}]) for question in every}
    reachable = {uid for uid in uids if is_held_out(uid)}
    assert {prompt.uid for prompt in held} <= reachable
    assert len(held) >= 0.9 * len(reachable)
    assert HELD_OUT_PATIENCE == 500


def test_too_few_contents() -> None:
    task = GymTask("count_bits", {"min_n": 5, "max_n": 5})
    assert not is_held_out(task._item(("x",), 0).uid)
    with pytest.raises(UserError, match="too few contents: none was found for held-out"):
        task.held_out(3)
    assert task.held_out(0) == []


def test_training_is_a_pure_function_in_any_order() -> None:
    first = [GymTask("chain_sum").train(index, 7) for index in range(30)]
    task = GymTask("chain_sum")
    for index in (29, 0, 17, 3, 17):
        assert task.train(index, 7) == first[index]
    assert [prompt.uid for prompt in first] != [GymTask("chain_sum").train(index, 8).uid for index in range(30)]
    assert task.train(10_000_019, 2**40).content  # endless


def test_items_do_not_depend_on_the_hash_seed() -> None:
    item = "call('make', 60, name=name, options='{}', seed=0, index=0)['question']"
    code = f"from redistill.tasks.worker import call\nfor name in {HASH_ORDERED}: print(repr({item}))"
    seen = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        seen.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    assert len(seen) == 1
    assert len(seen.pop().splitlines()) == len(HASH_ORDERED)


def test_verification_needs_the_prompt_alone() -> None:
    prompt = GymTask("countdown").train(3, 1)
    worker._CLIENT.stop()  # as after a resume: nothing of the item is left anywhere
    copy = Prompt(prompt.uid, prompt.content, prompt.answer, data=json.loads(json.dumps(dict(prompt.data))))
    assert GymTask("countdown").verify(copy, str(prompt.answer)).reward == 1.0


def test_options_change_the_result() -> None:
    for name, options in [
        ("chain_sum", {"min_digits": 6, "max_digits": 6}),
        ("calendar_arithmetic", {"tasks": ["is_leap_year"]}),
        ("aiw", {"task_types": ["colleagues"], "task_type_weights": [1.0]}),
        ("time_intervals", {"task_types": ["date"], "min_date": "2000-01-01", "max_date": "2001-01-01"}),
        ("basic_arithmetic", {"format_style": "natural"}),
    ]:
        assert GymTask(name, options).train(0, 0).content != GymTask(name).train(0, 0).content


def test_a_mixture() -> None:
    task = GymTask("composite", {"datasets": ["gcd", "chain_sum"]})
    prompts = [task.train(index, 0) for index in range(20)]
    assert {prompt.data["generator"] for prompt in prompts} == {"gcd", "chain_sum"}
    assert all(task.verify(prompt, str(prompt.solution)).reward == 1.0 for prompt in prompts)
    with pytest.raises(UserError, match="'gcs' is unknown; did you mean 'gcd'"):
        GymTask("composite", {"datasets": ["gcs"]})


def test_options_are_described() -> None:
    assert ("min_terms", 2, "int") in gym_options("chain_sum")
    assert ("task_types", ["siblings", "friends", "colleagues"], "list[str]") in gym_options("aiw")
    assert not {"seed", "size"} & {option for name in NAMES for option, _, _ in gym_options(name)}


def test_numbers_are_judged_by_value_and_the_last_one_wins() -> None:
    task = GymTask("chain_sum")
    prompt = Prompt("u", [], answer=task.train(0, 0).answer, data=task.train(0, 0).data)
    right = int(str(prompt.answer))
    for reply in (f"{right:,}", f"{right}.0", f"The answer is {right}.", f"1 + 1 = {right}", f"**{right}**"):
        assert task.verify(prompt, reply).reward == 1.0
    listed = " ".join(map(str, range(right - 5, right + 6)))
    assert task.verify(prompt, listed).reward < 1.0
    assert task.verify(prompt, f"{right}{right}").reward < 1.0
    verdict = task.verify(prompt, "no idea")
    assert (verdict.feedback, verdict.format_ok) == ("No number was found in the reply.", False)
    assert task.verify(prompt, "9" * 300_000).feedback == "The reply has 300000 characters; at most 200000 are read."


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("game_of_life_halting", "anything"),
        ("puzzle24", "6*4*1*1"),
        ("puzzle24", "24"),
        ("spiral_matrix", "[__import__('os').system('touch {}')]"),
        ("string_insertion", "__import__('os').system('touch {}')"),
        ("binary_matrix", "__import__('os').system('touch {}')"),
        ("n_queens", "__import__('os').system('touch {}')"),
        ("countdown", "__import__('os').system('touch {}')"),
        ("simple_integration", "__import__('os').system('touch {}')"),
        ("polynomial_multiplication", "x.__class__.__base__"),
        ("simple_integration", "Integral(x**2, x)"),
        ("countdown", "9**9**9**9"),
        ("count_bits", "[" * 50_000),
    ],
)
def test_replies_cannot_game_or_run(name: str, reply: str, tmp_path: pytest.TempPathFactory) -> None:
    task = GymTask(name)
    mark = f"{tmp_path}/mark"
    for index in range(4):
        prompt = task._item(("game",), index)
        assert task.verify(prompt, reply.replace("{}", mark)).reward < 1.0
    assert not os.path.exists(mark)


def test_an_integral_that_only_repeats_the_question_is_no_answer() -> None:
    task = GymTask(
        "intermediate_integration", {"problem_types": ["polynomial_exp_trig"], "problem_type_weights": [1.0]}
    )
    prompts = [task._item(("integral",), index) for index in range(8)]
    assert {prompt.answer is None for prompt in prompts} == {True, False}
    for prompt in prompts:
        integrand = prompt.content[0]["content"].partition("\u222b")[2].partition(" dx")[0].strip()
        assert task.verify(prompt, f"Integral({integrand}, x)").reward == 0.0
        if prompt.answer is not None:
            assert task.verify(prompt, prompt.answer).reward == 1.0


def test_other_right_answers_count() -> None:
    task = GymTask("n_queens")
    prompt = task._item(("many",), 0)
    boards = catalog._entry("n_queens", "{}", prompt.data["seed"], prompt.data["index"])["metadata"]["valid_answers"]
    assert all(task.verify(prompt, board).reward == 1.0 for board in boards)


def test_a_hanging_formula_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redistill.tasks.gym.ANSWER_SECONDS", 0.5)
    task = GymTask("simple_integration")
    prompt = task._item(("hang",), 0)
    verdict = task.verify(prompt, "9**9**9**9**9")
    assert verdict.reward == 0.0
    assert "0.5 seconds" in (verdict.feedback or "")
    assert task.verify(prompt, str(prompt.answer)).reward == 1.0


def test_threads_share_the_helper() -> None:
    task = GymTask("chain_sum")
    expected = [task.train(index, 0) for index in range(40)]
    got: dict[int, Prompt] = {}

    def work(offset: int) -> None:
        for index in range(offset, 40, 4):
            got[index] = task.train(index, 0)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[index] for index in range(40)] == expected


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["chain_sum", "spell_backward", "number_sorting", "jugs", "calendar_arithmetic"]), st.text())
def test_any_text_gets_a_verdict(name: str, reply: str) -> None:
    task = GymTask(name)
    prompt = task._item(("total",), 1)
    checked_verdict(task, prompt, task.verify(prompt, reply))
