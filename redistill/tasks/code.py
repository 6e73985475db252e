"""Code: the model writes Python, and unit tests judge it in the sandbox (docs/sandbox.md).

`code` makes its own exercises (exercises.py) and `code:source=codeio` takes those of reasoning-gym's CodeI/O; a user's file is
`data.jsonl:verifier=code`, with the columns `function`, `public_tests` and `private_tests`. Training questions are judged by their
public tests, held-out questions by their private ones too. Feedback is what SDPO's paper gives (arXiv 2601.20802): the error's type
and message, the offending line, the failing input with its expected and its actual output; of a private test only what kind of failure it was.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from redistill.core.task import Prompt, Verdict, content_uid, is_held_out
from redistill.errors import UserError, nearest
from redistill.sandbox import Case, Failure, Limits, Outcome, Program, judge, plain, refuse_without_jail
from redistill.sandbox.inside import Odd
from redistill.tasks.answers import MAX_REPLY
from redistill.tasks.exercises import exercise

MAX_PROGRAM = 50_000
"""Characters of a program that are run; a longer one gets reward 0."""
SOURCES = ("exercises", "codeio")
REQUEST = "Reply with the program in one Python code block."
_FENCE = re.compile(r"^[ \t]{0,3}```[ \t]*([A-Za-z0-9+]*)[^\n]*$", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")


def program_in(reply: str) -> str | None:
    """The program of a reply: its last code block that is marked as Python or not marked (one that is not closed reaches to the
    end), or without any block the reply itself. None where that is empty."""
    fences = list(_FENCE.finditer(reply))
    found, at = None, 0
    while at < len(fences):
        end = next((i for i in range(at + 1, len(fences)) if not fences[i].group(1)), None)
        stop = fences[end].start() if end is not None else len(reply)
        if fences[at].group(1).lower() in ("", "python", "python3", "py"):
            found = reply[fences[at].end() : stop]
        at = len(fences) if end is None else end + 1
    text = (reply if not fences else found) or ""
    return text.strip("\n") + "\n" if text.strip() else None


def read_test(given: Any, function: str | None, *, private: bool = False) -> tuple[Case, str | None]:
    """A test as a file writes it, and the function that it calls: {"input": [..] or {..}, "output": value} (arguments by position
    or by name), {"stdin": text, "stdout": text}, or text like "assert f(1, 2) == 3" of which only literals are read. Raises
    ValueError with what is wrong."""
    if isinstance(given, str):
        return _read_assert(given, function, private)
    if not isinstance(given, Mapping) or set(given) not in ({"input", "output"}, {"stdin", "stdout"}):
        raise ValueError(
            'a test has the keys input and output, or stdin and stdout, or is text like "assert f(1) == 2"'
        )
    if "stdin" in given:
        if not (isinstance(given["stdin"], str) and isinstance(given["stdout"], str)):
            raise ValueError("stdin and stdout of a test must be text")
        if function is not None:
            raise ValueError(f"a test with stdin runs the whole program, and the row names the function {function!r}")
        return Case(given["stdin"], given["stdout"], private), None
    if function is None:
        raise ValueError("a test with input and output needs a column 'function'")
    inputs = given["input"]
    if not isinstance(inputs, (list, Mapping)):
        raise ValueError(f"input of a test must be a list or an object of arguments, got {inputs!r:.60}")
    arguments = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    return Case(arguments, given["output"], private), function


def _read_assert(text: str, function: str | None, private: bool) -> tuple[Case, str]:
    told = f"test {text!r:.80} is not of the form assert f(1, 2) == 3 with literal values"
    try:
        (statement,) = ast.parse(text.strip()).body
        assert isinstance(statement, ast.Assert)
        assert isinstance(statement.test, ast.Compare)
        (compared,), (right,) = statement.test.ops, statement.test.comparators
        called = statement.test.left
        assert isinstance(compared, (ast.Eq, ast.Is))
        assert isinstance(called, ast.Call)
        name = ast.unparse(called.func)
        positional = tuple(ast.literal_eval(argument) for argument in called.args)
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in called.keywords}
        expected = ast.literal_eval(right)
        plain.coded(expected)
    except (SyntaxError, ValueError, AssertionError, TypeError, RecursionError, MemoryError, Odd) as error:
        raise ValueError(told) from error
    if "None" in named or not _NAME.fullmatch(name):
        raise ValueError(told)
    if function not in (None, name):
        raise ValueError(f"test {text!r:.80} calls {name!r}, and the tests before it {function!r}")
    return Case((positional, named), expected, private), name


def read_tests(data: Mapping[str, Any]) -> tuple[str | None, list[Case]]:
    """(function, tests) of a prompt's data or a file's row. Raises ValueError with what is wrong."""
    function = data.get("function")
    if function is not None and not (isinstance(function, str) and _NAME.fullmatch(function)):
        raise ValueError(f"function must be a name or Class.method, got {function!r:.60}")
    cases: list[Case] = []
    for column, private in (("public_tests", False), ("private_tests", True)):
        tests = data.get(column)
        if not isinstance(tests, (list, type(None))):
            raise ValueError(f"{column} must be a list of tests, got {tests!r:.60}")
        for given in tests or []:
            case, function = read_test(given, function, private=private)
            cases.append(case)
    if len({isinstance(case.given, str) for case in cases}) > 1:
        raise ValueError("tests either all have stdin or none has")
    return function, cases


@dataclass(frozen=True)
class CodeJudge:
    """Judges replies by the tests in their prompt's data. With `partial`, the reward is the share of tests that pass. Raises
    UserError when it is made where there can be no jail, but with `unsafe_exec` (a plain subprocess with limits)."""

    partial: bool = False
    limits: Limits = Limits()
    unsafe_exec: bool = False

    def __post_init__(self) -> None:
        refuse_without_jail(unsafe=self.unsafe_exec)

    def __call__(self, prompt: Prompt, reply: str, answer_format: str = "plain") -> Verdict:
        """The verdict on one reply."""
        return self.all([(prompt, reply)])[0]

    def all(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        """The verdicts on several replies, judged side by side."""
        read = [_program(prompt, reply, self.partial) for prompt, reply in pairs]
        programs = [one for one in read if isinstance(one, Program)]
        outcomes = iter(judge(programs, self.limits, unsafe=self.unsafe_exec) if programs else [])
        return [self._verdict(one, next(outcomes)) if isinstance(one, Program) else one for one in read]

    def _verdict(self, program: Program, outcome: Outcome) -> Verdict:
        if outcome.failure is None:
            return Verdict(1.0, answer=program.source)
        reward = outcome.passed / outcome.total if self.partial else 0.0
        late = "time" if outcome.failure.kind == "time" and reward == 0.0 else None
        return Verdict(reward, feedback(program, outcome.failure, self.limits), answer=program.source, limit=late)


def _program(prompt: Prompt, reply: str, partial: bool) -> Program | Verdict:
    if len(reply) > MAX_REPLY:
        return Verdict(
            0.0,
            f"The reply has {len(reply)} characters; at most {MAX_REPLY} are read.",
            format_ok=False,
            limit="length",
        )
    source = program_in(reply)
    if source is None:
        return Verdict(0.0, "There is no program in the reply.", format_ok=False)
    if len(source) > MAX_PROGRAM:
        return Verdict(
            0.0,
            f"The program has {len(source)} characters; at most {MAX_PROGRAM} are run.",
            format_ok=False,
            limit="length",
        )
    try:
        function, cases = read_tests(prompt.data)
    except ValueError as error:
        raise UserError(f"prompt {prompt.uid}: {error}") from None
    if not cases:
        raise UserError(f"prompt {prompt.uid} has no tests")
    return Program(source, function, cases, all_tests=partial)


def feedback(program: Program, failure: Failure, limits: Limits) -> str:
    """What went wrong first: error or kind of failure, offending line, input, expected and actual output (see the module)."""
    case = failure.case
    kinds = {
        "wrong": "Wrong answer.", "error": " ".join(f"{failure.error}: {failure.told}".rstrip(": ").split()),
        "time": f"Time limit exceeded: the program was stopped after {limits.seconds} seconds of computing.",
        "ended": f"The program ended the interpreter ({failure.told}).", "odd": f"The program returned {failure.told}.",
    }  # fmt: skip
    if case is not None and case.private:
        return f"A hidden test failed: {_hidden(failure)}."
    lines = [kinds[failure.kind]]
    source = program.source.split("\n")
    if failure.line is not None and 1 <= failure.line <= len(source):
        lines.append(f"Line {failure.line}: {source[failure.line - 1].strip()[: plain.SHOWN]}")
    if case is not None:
        lines.append(f"Input: {shown_input(program.function, case)}")
        if failure.kind in ("wrong", "odd"):
            lines.append(f"Expected: {_shown(case.expected, program.function)}")
        if failure.kind == "wrong":
            actual = failure.actual or ""
            lines.append(f"Actual: {actual if program.function else plain.show(actual)}")
    return "\n".join(lines)


HIDDEN: Mapping[str, str] = MappingProxyType(
    {
        "wrong": "wrong answer", "time": "time limit exceeded", "ended": "the interpreter ended", "odd": "no plain output",
        "error": "an error",
    }
)  # fmt: skip
"""What feedback says of a private test: none of a program's own words, by which it could tell what it was given."""


def _hidden(failure: Failure) -> str:
    known = getattr(builtins, failure.error, None) if failure.kind == "error" else None
    return failure.error if isinstance(known, type) and issubclass(known, Exception) else HIDDEN[failure.kind]


UNSAFE_WARNING = (
    "model-written programs run without a jail (unsafe_exec): they can read this user's files and use the network"
)


def _shown(expected: Any, function: str | None) -> str:
    return plain.show(plain.coded(expected) if function else expected)


def shown_input(function: str | None, case: Case) -> str:
    """An input as the call that it is, or as the text of standard input."""
    if isinstance(case.given, str):
        return plain.show(case.given)
    positional, named = case.given
    words = [plain.show(plain.coded(value)) for value in positional]
    words += [f"{name}={plain.show(plain.coded(value))}" for name, value in named.items()]
    return f"{function}({', '.join(words)})"


def code_judge(
    partial: bool = False, seconds: int = 2, memory_mb: int = 256, unsafe_exec: bool = False
) -> CodeJudge:  # fmt: skip
    """The judge of these options of a task. Raises UserError for one out of range, and where there can be no jail."""
    for option, value, low, high in (("seconds", seconds, 1, 60), ("memory_mb", memory_mb, 64, 4096)):
        if not low <= value <= high:
            near = min(max(value, low), high)
            raise UserError(f"task option {option}={value} is outside {low} to {high}; the nearest is {near}")
    return CodeJudge(partial, Limits(seconds, memory_mb), unsafe_exec)


def refuse_code_options(verifier: str, options: Mapping[str, Any]) -> None:
    """Options of the sandbox do nothing where no program is run."""
    for option, value in options.items():
        raise UserError(
            f"task option {option}={value} is for programs, and verifier={verifier} runs none (verifier=code does)"
        )


def code_columns(row: Mapping[str, Any], where: str, *, held_out: bool) -> dict[str, Any]:
    """The columns of a file's row that say how its programs are judged, checked: a training row keeps its public tests only, a
    held-out row all. Raises UserError naming the row."""
    try:
        read_tests(row)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    names = ("public_tests", "private_tests") if held_out else ("public_tests",)
    kept = {name: row[name] for name in names if row.get(name)}
    if not kept:
        raise UserError(f"{where} is {'held out' if held_out else 'for training'} and has no {' or '.join(names)}")
    return {"function": row.get("function"), **kept}


@dataclass(frozen=True)
class Code:
    """Programming tasks. `source` exercises: made here, of `stages` steps (1 to 4) and a last one; codeio: the functions of
    reasoning-gym's CodeI/O, described in words. Rewards are 0 or 1, or with `partial` the share of tests that pass. `seconds` (of
    processor time, 1 to 60) and `memory_mb` (64 to 4096) bound a program; `unsafe_exec` runs it without a jail."""

    source: str = "exercises"
    stages: int = 2
    partial: bool = False
    seconds: int = 2
    memory_mb: int = 256
    unsafe_exec: bool = False

    name: ClassVar[str] = "code"
    wording: ClassVar[str] = "english"
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"task code source={self.source!r} is unknown{nearest(self.source, SOURCES)}")
        if not 1 <= self.stages <= 4:
            near = min(max(self.stages, 1), 4)
            raise UserError(f"task code stages={self.stages} is outside 1 to 4; the nearest is {near}")
        _ = self.judge

    @property
    def judge(self) -> CodeJudge:
        """The judge with the task's limits."""
        return code_judge(self.partial, self.seconds, self.memory_mb, self.unsafe_exec)

    @property
    def warnings(self) -> list[str]:
        """Sentences to be read before a run."""
        return [UNSAFE_WARNING] if self.unsafe_exec else []

    @property
    def _others(self) -> Any:
        from redistill.tasks.codeio import CodeIO

        return CodeIO(self.judge.limits, self.unsafe_exec)

    def _exercise(self, *key: Any) -> Prompt:
        made = exercise(self.stages, *key)
        given, right = made.public[0]
        content = [
            {"role": "user", "content": f"{made.text}\nFor example, solve({given!r}) returns {right!r}.\n{REQUEST}"}
        ]
        tests = {
            name: [{"input": [value], "output": output} for value, output in cases]
            for name, cases in (("public_tests", made.public), ("private_tests", made.private))
        }
        return asked(content, "solve", tests, made.solution)

    def train(self, index: int, seed: int) -> Prompt:
        """The prompt at `index` of the stream of `seed`, never a held-out one; a pure function of both."""
        if self.source == "codeio":
            return self._others.train(index, seed)
        attempts = (self._exercise("train", seed, index, attempt) for attempt in range(10**6))
        return next(prompt for prompt in attempts if not is_held_out(prompt.uid))

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first `count` distinct held-out prompts, the same for every seed; fewer when there are fewer."""
        if self.source == "codeio":
            return self._others.held_out(count)
        found: dict[str, Prompt] = {}
        for draw in range(100 * max(count, 0) + 1000):
            if len(found) >= count:
                break
            prompt = self._exercise("held_out", draw)
            if is_held_out(prompt.uid):
                found.setdefault(prompt.uid, prompt)
        return list(found.values())

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """Judge the program in a reply; any text gets a verdict."""
        return self.judge(prompt, answer)

    def verify_all(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        """Judge the programs of several replies side by side."""
        return self.judge.all(pairs)


def asked(
    content: Sequence[Mapping[str, str]], function: str | None, tests: Mapping[str, Any], solution: str
) -> Prompt:
    """A prompt of a code task: a held-out one has all its tests, a training one only the public ones."""
    uid = content_uid(content)
    kept = tests if is_held_out(uid) else {"public_tests": tests["public_tests"]}
    return Prompt(uid, content, solution=f"```python\n{solution}\n```", data={"function": function, **kept})
