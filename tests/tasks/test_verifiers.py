import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.core.task import Prompt, Verdict
from redistill.errors import UserError
from redistill.tasks.verifiers import VERIFIERS, contains, exact, find_verifier, math, number


def ask(answer: str | None) -> Prompt:
    return Prompt("0" * 16, [], answer=answer)


@pytest.mark.parametrize(
    ("right", "reply", "reward"),
    [
        ("\\frac{1}{2}", "The answer is 0.5", 1), ("\\frac{1}{2}", "so \\boxed{1/2}", 1), ("0.5", "$\\frac{1}{2}$", 1),
        ("x^2+1", "1+x^2", 1), ("(x+1)^2", "\\boxed{x^2+2x+1}", 1), ("\\sqrt{8}", "2\\sqrt{2}", 1), ("3", "x=3", 1),
        ("\\{1,2\\}", "\\{2,1\\}", 1), ("(1,2)", "(2,1)", 0), ("10\\%", "0.1", 1), ("Paris", "Paris", 1),
        ("4", "\\boxed{\\boxed{4}}", 1), ("4", "The answer is $4$.", 1), ("4", "2 + 2\n= 4", 1),
        ("x+1", "1", 0), ("1", "x+1", 0), ("4", "\\boxed{5} \\boxed{4", 0), ("4", "\\boxed{4 or 5}", 0),
        ("4", "\\boxed{4} \\boxed{5}", 0), ("Paris", "London", 0), ("4", "\uff14", 0), ("4", "", 0),
        (str(10**60 + 1), str(10**60), 0), (str(10**60 + 1), f"\\boxed{{{10**60 + 1}}}", 1),
        ("4", "__import__('os').getcwd()", 0),
    ],
)  # fmt: skip
def test_math(right: str, reply: str, reward: float) -> None:
    verdict = math(ask(right), reply)
    assert verdict.reward == reward
    assert (verdict.feedback is None) == (reward == 1)


def test_math_agrees_with_fractions() -> None:
    for top in range(1, 8):
        for bottom in range(1, 8):
            reply = f"\\boxed{{\\frac{{{top}}}{{{bottom}}}}}"
            assert math(ask("\\frac{2}{3}"), reply).reward == float(top * 3 == bottom * 2)


def test_math_is_bounded_in_time_and_works_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redistill.tasks.verifiers.ANSWER_SECONDS", 1.0)
    found: list[Verdict] = []
    start = time.perf_counter()
    threads = [threading.Thread(target=lambda: found.append(math(ask("4"), "$9^{9^{9^{9}}}$"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(verdict.reward, verdict.feedback) for verdict in found] == [
        (0.0, "The answer could not be compared within 1 seconds.")
    ] * 2
    assert time.perf_counter() - start < 60  # the limit is processor time; a busy machine takes longer by the clock
    monkeypatch.undo()
    assert math(ask("4"), "4.0").reward == 1.0


def test_math_says_what_is_too_long() -> None:
    verdict = math(ask("4"), "\\boxed{" + "1+" * 1001 + "1}")
    assert verdict == Verdict(0.0, "The final answer has 2003 characters; at most 2000 are compared.", format_ok=False)


def test_number() -> None:
    for reply in ("1/2", "The answer is 2/4.", "\\boxed{1/2}", "0.5", "50e-2"):
        assert number(ask("1/2"), reply).reward == 1.0
    assert number(ask("1000"), "It is 1,000").reward == 1.0
    assert number(ask("0.3"), "0.30000000000000001").reward == 0.0
    assert number(ask("46"), "42").feedback == "The answer 42 is wrong. Its correct digits, others hidden: 4?"
    assert number(ask("46"), "42").format_ok
    assert not number(ask("46"), "none").format_ok
    assert number(ask("46"), "<answer>46</answer>", "tag").reward == 1.0
    with pytest.raises(UserError, match="verifier=number needs a number as answer, got 'Paris'"):
        number(ask("Paris"), "4")


def test_exact_and_contains() -> None:
    assert exact(ask("nus"), "The letters...\nnus").reward == 1.0
    assert exact(ask("nus"), "Nus").reward == 0.0
    assert contains(ask("New  york"), "It is in new\nYork, I think").reward == 1.0
    assert contains(ask("art"), "a party").reward == 0.0
    assert contains(ask("a.b"), "axb").reward == 0.0
    assert contains(ask("Paris"), "Paris? No: <answer>London</answer>", "tag").reward == 0.0


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["exact", "number", "contains", "math"]),
    st.text(alphabet=st.sampled_from("01+-*/^{}()\\ $.,=xboxedfrac\n")) | st.text(max_size=40),
    st.sampled_from(["plain", "boxed", "tag"]),
)
def test_builtin_verifiers_are_total(name: str, reply: str, answer_format: str) -> None:
    verdict = VERIFIERS[name](ask("12"), reply, answer_format)
    assert verdict.reward in (0.0, 1.0)
    assert (verdict.feedback is None) == (verdict.reward == 1.0)


def test_a_users_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_checks.py").write_text(
        "from redistill.core.task import Verdict\n"
        "def judge(prompt, answer): return Verdict(0.5, 'half')\n"
        "def length(prompt, answer): return len(answer)\n"
        "def text(prompt, answer): return 'good'\n"
        "def nan(prompt, answer): return float('nan')\n"
        "def fails(prompt, answer): return 1 / 0\n"
    )
    (tmp_path / "my_broken.py").write_text("import no_such_thing\n")
    assert find_verifier("my_checks:judge")(ask(None), "x", "plain") == Verdict(0.5, "half")
    assert find_verifier("my_checks:length")(ask(None), "xyz", "plain") == Verdict(3.0)
    for function, told in [
        ("text", "must return a Verdict or a finite number, got 'good'"),
        ("nan", "must return a Verdict or a finite number, got nan"),
        ("fails", "failed on prompt 0000000000000000: ZeroDivisionError: division by zero"),
    ]:
        with pytest.raises(UserError, match=told):
            find_verifier(f"my_checks:{function}")(ask(None), "x", "plain")
    for name, told in [
        ("my_checks:judg", "has no function 'judg'; did you mean 'judge'?"),
        ("my_checkz:judge", "there is no module 'my_checkz' and no file my_checkz.py in this folder"),
        ("no.such.module:judge", "verifier='no.such.module:judge'"),
        ("my_broken:judge", "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("maths", "verifier='maths' is unknown and not module:function; did you mean 'math'?"),
        ("a:", "is unknown and not module:function"),
    ]:
        with pytest.raises(UserError) as raised:
            find_verifier(name)
        assert told in str(raised.value)
        assert "\n" not in str(raised.value)


def test_importing_tasks_is_quick_and_torch_free() -> None:
    heavy = ["torch", "sympy", "reasoning_gym", "pyarrow"]
    code = f"import sys, redistill.tasks; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
