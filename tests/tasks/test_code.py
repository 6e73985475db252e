"""Code tasks: reading programs and tests, feedback, splits, users' files; with canned replies."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from redistill.core.task import Prompt, Task, is_held_out, judged
from redistill.errors import UserError
from redistill.sandbox import refuse_without_jail
from redistill.tasks import codeio, exercises
from redistill.tasks.code import UNSAFE_WARNING, Code, program_in, read_test, read_tests
from redistill.tasks.files import FileTask
from redistill.tasks.loading import load_task, task_names, unsafe


@pytest.fixture(scope="module")
def jailed() -> None:
    try:
        refuse_without_jail()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def code() -> Code:
    """The task without a jail where there is none: what is tested here is not the jail."""
    try:
        return Code()
    except UserError:
        return Code(unsafe_exec=True)


def fenced(source: str, mark: str = "python") -> str:
    return f"Here it is:\n```{mark}\n{source}\n```\nDone."


# --- replies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        (fenced("x = 1"), "x = 1\n"), (fenced("x = 1", ""), "x = 1\n"), (fenced("x = 1", "py"), "x = 1\n"),
        (fenced("x = 1") + "\n" + fenced("x = 2"), "x = 2\n"), (fenced("x = 1") + fenced("rm -rf", "sh"), "x = 1\n"),
        (fenced("rm -rf", "bash"), None), ("x = 1", "x = 1\n"), ("```python\nx = 1\ny = 2", "x = 1\ny = 2\n"),
        ("```python\n```", None), ("", None), (" \n\t", None), ("```text\nthe output\n```\n```python\nx = 1\n```", "x = 1\n"),
        ("    ```\n    a\n    ```", "    ```\n    a\n    ```\n"), (fenced("s = '```'"), "s = '```'\n"),
    ],
)  # fmt: skip
def test_the_last_python_block_is_the_program(reply: str, program: str | None) -> None:
    assert program_in(reply) == program


# --- tests as files write them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "arguments", "expected"),
    [
        ({"input": [1, [2]], "output": 3}, ((1, [2]), {}), 3),
        ({"input": {"a": 1}, "output": None}, ((), {"a": 1}), None),
        ("assert f(1, [2], b='x') == (1, 2)", ((1, [2]), {"b": "x"}), (1, 2)),
        ("assert f() is True", ((), {}), True),
        ("assert f(-1.5) == {1: {2, 3}}", ((-1.5,), {}), {1: {2, 3}}),
    ],
)
def test_tests_are_read(given: Any, arguments: Any, expected: Any) -> None:
    case, function = read_test(given, "f")
    assert (case.given, case.expected, function) == (arguments, expected, "f")


@pytest.mark.parametrize(
    "given",
    [
        5, None, {}, {"input": [1]}, {"input": 5, "output": 1}, {"input": [1], "output": 1, "weight": 2}, {"stdin": 1, "stdout": "x"},
        "f(1) == 2", "assert f(1)", "assert f(1) < 2", "assert 2 == f(1)", "assert f(x) == 2", "assert f(1) == g(2)",
        "assert f(1) == 2 == 3", "assert g(1) == 2", "assert f(*[1]) == 2", "assert f(**{'a': 1}) == 2", "import os", "assert (",
        "assert f(1) == __import__('os').getcwd()", "assert f(1) == 2; import os", "assert f(lambda: 1) == 2", "assert f(1) == 1j",
        "assert f(" + "(" * 500 + ")" * 500 + ") == 1",
    ],
)  # fmt: skip
def test_other_tests_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="test"):
        read_test(given, "f")


@pytest.mark.parametrize(
    "data",
    [
        {"public_tests": "x"}, {"function": "1f", "public_tests": []}, {"function": "a.b.c"}, {"function": 3},
        {"public_tests": [{"input": [1], "output": 1}]},
        {"function": "f", "public_tests": [{"stdin": "1", "stdout": "1"}]},
        {"public_tests": ["assert f(1) == 1", "assert g(1) == 1"]},
        {"public_tests": [{"stdin": "1", "stdout": "1"}], "private_tests": ["assert f(1) == 1"]},
    ],
)  # fmt: skip
def test_rows_that_do_not_agree_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"test|function"):
        read_tests(data)


# --- the exercises ---------------------------------------------------------------------------------------------------


def test_every_line_of_a_solution_does_what_its_sentence_says(code: Code) -> None:
    """Each step's line, run in the sandbox, against its function, on random inputs and the edges."""
    pairs = []
    for kind, (_, steps, ends) in enumerate(exercises.KINDS):
        for i, step in enumerate((*steps, *ends)):
            for k in {step.low, step.high}:
                line = step.line.format(k=k)
                source = f"def solve(x):\n    {line}\n" + ("" if line.startswith("return") else "    return x\n")
                inputs = [exercises._input(kind, "steps", i, k, n) for n in range(6)] + list(exercises.EDGES[kind])
                tests = [{"input": [value], "output": step.work(value, k)} for value in inputs]
                pairs.append((Prompt("x", "", data={"function": "solve", "public_tests": tests}), source))
    wrong = [
        (reply, verdict.feedback) for (_, reply), verdict in zip(pairs, code.verify_all(pairs)) if verdict.reward != 1.0
    ]
    assert wrong == []
    assert len(pairs) > 40


def test_prompts_are_pure_varied_and_split(code: Code) -> None:
    assert isinstance(code, Task)
    train = [code.train(index, 0) for index in range(60)]
    assert train == [code.train(index, 0) for index in range(60)]
    assert train != [code.train(index, 1) for index in range(60)]
    held = code.held_out(40)
    assert held[:10] == code.held_out(10)
    assert len({prompt.uid for prompt in held}) == 40
    assert len({prompt.uid for prompt in train}) > 50
    assert all(is_held_out(prompt.uid) for prompt in held)
    assert not any(is_held_out(prompt.uid) for prompt in train)
    for prompt in train + list(held):
        tests = [test for column in ("public_tests", "private_tests") for test in prompt.data.get(column, [])]
        assert len({json.dumps(test["output"]) for test in prompt.data["public_tests"]}) > 1  # no constant is right
        assert prompt.data == json.loads(json.dumps(prompt.data))
        assert ("private_tests" in prompt.data) == is_held_out(prompt.uid)
        assert len(tests) == 3 + ("private_tests" in prompt.data) * len(prompt.data.get("private_tests", []))
        text = prompt.content[0]["content"]
        assert "private" not in text
        assert repr(prompt.data["public_tests"][0]["output"]) in text


def test_solutions_are_right(code: Code) -> None:
    prompts = [*code.held_out(6), code.train(0, 0)]
    assert [verdict.reward for verdict in judged(code, [(p, p.solution or "") for p in prompts])] == [1.0] * 7


def test_stages_is_the_length_of_an_exercise(code: Code) -> None:
    for stages in (1, 4):
        text = Code(stages=stages, unsafe_exec=code.unsafe_exec).train(0, 0).content[0]["content"]
        assert f"\n{stages + 1}. Return" in text


# --- feedback --------------------------------------------------------------------------------------------------------

ADD = Prompt("add", "", data={"function": "add", "public_tests": [{"input": [1, 2], "output": 3}, {"input": [0, 0], "output": 0}],
                              "private_tests": [{"input": [7, 70], "output": 77}]})  # fmt: skip


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def add(a, b):\n    return a - b", "Wrong answer.\nInput: add(1, 2)\nExpected: 3\nActual: -1"),
        ("def add(a, b):\n    return a + c", "NameError: name 'c' is not defined\nLine 2: return a + c\nInput: add(1, 2)"),
        ("def add(a, b):\n    return a +", "SyntaxError: invalid syntax\nLine 2: return a +"),
        ("def plus(a, b): return 3", "NameError: the program defines no function 'add'\nInput: add(1, 2)"),
        ("def add(a, b): return print", "The program returned a value of type builtin_function_or_method.\nInput: add(1, 2)\nExpected: 3"),
        ("import os\ndef add(a, b): os._exit(3)", "The program ended the interpreter (exit status 3).\nInput: add(1, 2)"),
        ("def add(a, b):\n    if b == 70: raise KeyError('secret')\n    return a + b", "A hidden test failed: KeyError."),
        ("def add(a, b):\n    return min(a + b, 70)", "A hidden test failed: wrong answer."),
        ("def add(a, b):\n    if b == 70:\n        import os\n        os._exit(1)\n    return a + b",
         "A hidden test failed: the interpreter ended."),
    ],
)  # fmt: skip
def test_feedback(source: str, told: str, code: Code) -> None:
    verdict = code.verify(ADD, fenced(source))
    assert (verdict.reward, verdict.feedback, verdict.format_ok) == (0.0, told, True)


def test_feedback_of_a_time_limit(code: Code) -> None:
    verdict = Code(seconds=1, unsafe_exec=code.unsafe_exec).verify(ADD, "def add(a, b):\n    while True: pass")
    assert verdict.feedback == (
        "Time limit exceeded: the program was stopped after 1 seconds of computing.\nInput: add(1, 2)"
    )


def test_feedback_of_private_tests_never_tells_them(code: Code) -> None:
    """Whatever a program does with a private input, the feedback holds neither it nor its output."""
    for body in (
        "return a",
        "raise ValueError(a, b)",
        "import os; os._exit(a)",
        "raise type(f'E{a}', (Exception,), {})",
        "return type(f'T{a}', (), {})()",
        "return [a, b]",
        "return object()",
        "while True: print(a)",
    ):
        source = f"def add(a, b):\n    if a + b < 4: return a + b\n    {body}"
        verdict = Code(seconds=1, unsafe_exec=code.unsafe_exec).verify(ADD, source)
        assert verdict.reward == 0.0
        assert verdict.feedback is not None
        assert "7" not in verdict.feedback


def test_right_answers_have_no_feedback(code: Code) -> None:
    verdict = code.verify(ADD, fenced("def add(a, b):\n    return a + b"))
    assert (verdict.reward, verdict.feedback, verdict.answer) == (1.0, None, "def add(a, b):\n    return a + b\n")


def test_replies_without_a_program(code: Code) -> None:
    for reply in ("", "```sh\nls\n```", "x" * 300_000, "x = 1 #" + "x" * 60_000):
        verdict = code.verify(ADD, reply)
        assert (verdict.reward, verdict.format_ok) == (0.0, False)
        assert verdict.feedback


def test_partial_rewards_are_shares(code: Code) -> None:
    task = Code(partial=True, unsafe_exec=code.unsafe_exec)
    for source, reward in (
        ("return a + b", 1.0),
        ("return min(a + b, 70)", 2 / 3),
        ("return 0", 1 / 3),
        ("return None", 0.0),
    ):
        verdict = task.verify(ADD, f"def add(a, b): {source}")
        assert verdict.reward == reward
        assert (verdict.feedback is None) == (reward == 1.0)


def test_standard_input_and_output(code: Code) -> None:
    prompt = Prompt("x", "", data={"function": None, "public_tests": [{"stdin": "1 2", "stdout": "3"}]})
    assert code.verify(prompt, "print(sum(map(int, input().split())))").reward == 1.0
    verdict = code.verify(prompt, "print(input())")
    assert verdict.feedback == "Wrong answer.\nInput: '1 2'\nExpected: '3'\nActual: '1 2\\n'"


# --- a user's file ---------------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"prompt": "Add two numbers: add(a, b).", "function": "add", "split": "train", "level": 2,
     "public_tests": [{"input": [1, 2], "output": 3}], "private_tests": [{"input": [2, 2], "output": 4}]},
    {"prompt": "Double: twice(a).", "split": "held_out", "public_tests": ["assert twice(1) == 2"],
     "private_tests": ["assert twice(4) == 8"]},
    {"prompt": "Echo.", "split": "train", "public_tests": [{"stdin": "a", "stdout": "a"}]},
    {"prompt": "Triple: three(a).", "split": "held_out", "public_tests": ["assert three(1) == 3"]},
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def file_task(path: Path, rows: list[dict[str, Any]], code: Code, more: str = "") -> FileTask:
    spec = f"{write(path / 'tasks.jsonl', rows)}:verifier=code{more}"
    made = load_task(unsafe(spec) if code.unsafe_exec else spec)
    assert isinstance(made, FileTask)
    return made


def test_a_file(tmp_path: Path, code: Code) -> None:
    task = file_task(tmp_path, ROWS, code)
    train, held = {p.data["row"]: p for p in (task.train(i, 0) for i in range(2))}, task.held_out(9)
    assert "private_tests" not in train[1].data
    assert [prompt.data["row"] for prompt in held] == [2, 4]
    hard_coded = "def add(a, b): return 3"
    assert task.verify(train[1], hard_coded).reward == 1.0  # public tests train
    assert task.verify(held[0], "def twice(a): return 2").reward == 0.0  # private ones evaluate
    assert task.verify(held[0], "def twice(a): return 2").feedback == "A hidden test failed: wrong answer."
    replies = ["def twice(a): return 2 * a", "def three(a): return 3 * a"]
    assert [verdict.reward for verdict in judged(task, list(zip(held, replies)))] == [1.0, 1.0]
    assert task.verify(train[3], "print(input())").reward == 1.0
    again = pickle.loads(pickle.dumps(task))
    assert again.verify(held[0], replies[0]).reward == 1.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"public_tests": []}, "row 1 is for training and has no public_tests"),
        ({"public_tests": None}, "row 1 is for training and has no public_tests"),
        ({"function": None}, "row 1: a test with input and output needs a column 'function'"),
        ({"function": "1"}, "row 1: function must be a name"),
        ({"public_tests": [{"input": [1]}]}, "row 1: a test has the keys"),
        ({"private_tests": ["assert sub(1) == 2"]}, "row 1: test .* calls 'sub'"),
    ],
)
def test_mistakes_in_a_file_name_the_row(change: dict[str, Any], told: str, tmp_path: Path, code: Code) -> None:
    with pytest.raises(UserError, match=told):
        file_task(tmp_path, [ROWS[0] | change, ROWS[1]], code)


def test_a_question_twice_with_other_tests_is_refused(tmp_path: Path, code: Code) -> None:
    with pytest.raises(UserError, match="repeats the question of row 1"):
        file_task(tmp_path, [ROWS[0], ROWS[0] | {"public_tests": [{"input": [1, 2], "output": 4}]}, ROWS[1]], code)


def test_options_that_would_do_nothing_are_refused(tmp_path: Path, code: Code) -> None:
    for option in ("partial=true", "seconds=3", "memory_mb=128", "unsafe_exec=true"):
        with pytest.raises(UserError, match="is for programs, and verifier=exact runs none"):
            load_task(f"{write(tmp_path / 'a.jsonl', [{'prompt': 'x', 'answer': 'y'}])}:{option}")
    with pytest.raises(UserError, match="answer_format"):
        file_task(tmp_path, ROWS, code, ",answer_format=boxed")
    with pytest.raises(UserError, match="seconds=0 is outside"):
        file_task(tmp_path, ROWS, code, ",seconds=0")


# --- names, options, the flag ----------------------------------------------------------------------------------------


def test_it_is_in_the_catalogue(code: Code) -> None:
    assert "code" in task_names()
    made = load_task(f"code:stages=3,partial=true,seconds=5,memory_mb=512,unsafe_exec={code.unsafe_exec}")
    assert made == Code(stages=3, partial=True, seconds=5, memory_mb=512, unsafe_exec=code.unsafe_exec)


@pytest.mark.parametrize(
    "option", ["stages=0", "stages=5", "seconds=0", "seconds=61", "memory_mb=63", "source=codio", "x=1"]
)
def test_options_out_of_range(option: str) -> None:
    with pytest.raises(UserError, match=option.partition("=")[0]):
        load_task(f"code:{option},unsafe_exec=true")


def test_the_flag_is_the_tasks_option(tmp_path: Path) -> None:
    assert unsafe("code") == "code:unsafe_exec=true"
    assert unsafe("code:stages=1") == "code:stages=1,unsafe_exec=true"
    assert unsafe("a/b.jsonl:verifier=code") == "a/b.jsonl:verifier=code,unsafe_exec=true"
    for spec in (None, "sums"):
        with pytest.raises(UserError, match="--unsafe-exec"):
            unsafe(spec)


def test_refused_without_a_jail_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from redistill.sandbox import process

    monkeypatch.setattr(process, "_why_not", lambda: "there is no bwrap")
    for spec in ("code", f"{write(tmp_path / 't.jsonl', ROWS)}:verifier=code"):
        with pytest.raises(UserError, match="there is no bwrap"):
            load_task(spec)
        assert load_task(unsafe(spec)).name


# --- CodeI/O ---------------------------------------------------------------------------------------------------------


def test_codeio(jailed: None) -> None:
    task = Code(source="codeio")
    train, held = [task.train(index, 3) for index in range(2)], task.held_out(2)
    prompts = [*train, *held]
    assert train == [task.train(index, 3) for index in range(2)]
    assert [is_held_out(prompt.uid) for prompt in prompts] == [False, False, True, True]
    assert [len(prompt.data["public_tests"]) for prompt in prompts] == [codeio.PUBLIC] * 4
    assert ["private_tests" in prompt.data for prompt in prompts] == [False, False, True, True]
    assert [verdict.reward for verdict in task.verify_all([(p, p.solution or "") for p in prompts])] == [1.0] * 4
    assert task.verify(held[0], "def main_solution(**given): return None").reward == 0.0
    assert len(codeio._split()[False]) > 500


def test_codeio_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codeio, "digest", lambda path: "another")
    codeio.usable.cache_clear()
    with pytest.raises(UserError, match=r"reasoning-gym 0\.1"):
        codeio.usable()


def test_a_run_on_programs_of_pocket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wiring: `pocket` knows no Python, so what it writes ("46+56=102") is a program that prints nothing."""
    from redistill.cli import main

    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{n}+{m}=", "split": split, "public_tests": [{"stdin": "", "stdout": str(n + m)}]}
            for n in range(10, 13) for m, split in ((20, "train"), (30, "train"), (40, "held_out"))]  # fmt: skip
    write(tmp_path / "t.jsonl", rows)
    words = [
        "run",
        "grpo",
        "--task",
        "t.jsonl:verifier=code",
        "--model",
        "pocket",
        "--steps",
        "1",
        "--out",
        "run",
        "--json",
    ]
    try:
        refuse_without_jail()
    except UserError:
        words.append("--unsafe-exec")
    words += [
        word
        for pair in ("prompts_per_step=2", "max_new_tokens=8", "utility=false", "eval_samples=2")
        for word in ("--set", pair)
    ]
    assert main(words) == 0
    (metrics,) = [
        line for line in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines()) if "reward" in line
    ]
    assert (metrics["reward"], metrics["episodes"] > 0) == (0.0, True)
    assert json.loads(capsys.readouterr().out)["steps"] == 1


def test_the_flag_on_a_task_without_programs(capsys: pytest.CaptureFixture[str]) -> None:
    from redistill.cli import main

    assert main(["run", "grpo", "--task", "sums", "--unsafe-exec"]) == 2
    assert "--unsafe-exec is for tasks that run programs, and 'sums' runs none" in capsys.readouterr().err


def test_a_run_without_a_jail_is_warned_of(tmp_path: Path) -> None:
    from redistill.build import settings
    from redistill.text.preflight import preflight

    path = write(tmp_path / "t.jsonl", [row | {"prompt": "1+2="} for row in ROWS[2:3]] + [ROWS[3] | {"prompt": "2+2="}])
    _, config = settings("grpo", {"task": f"{path}:verifier=code,unsafe_exec=true", "utility": "false"})
    assert UNSAFE_WARNING in preflight(config, []).warnings  # type: ignore[arg-type]
    assert Code(unsafe_exec=True).warnings == [UNSAFE_WARNING]


def test_the_rows_of_the_guide_are_read(tmp_path: Path, code: Code) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text()
    rows = [json.loads(line) for line in page.partition("```json\n")[2].partition("```")[0].splitlines()]
    task = file_task(
        tmp_path, [row | {"split": split} for row, split in zip(rows, ("held_out", "train"), strict=True)], code
    )
    assert task.verify(task.held_out(1)[0], "def add(a, b): return a + b").reward == 1.0
    assert task.verify(task.train(0, 0), "print(sum(map(int, input().split())))").reward == 1.0
