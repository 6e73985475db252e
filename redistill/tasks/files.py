"""A user's own questions: a JSONL or parquet file with one question a row (programming tasks: verifier=code, see code.py).

Columns: `prompt` (text) or `messages` (list of {"role", "content"}, the last one the user's); `answer` (text; only a
user's own verifier can do without); `solution`, `feedback` (text or null), `split` ("train" or "held_out", in every
row or in none). Other columns are kept for a user's own verifier in `prompt.data["columns"]`. Without `split`, the
hash of a question decides, so it stays where it is when rows are added or moved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from redistill.core.rng import permutation
from redistill.core.task import Prompt, Verdict, content_uid, is_held_out
from redistill.errors import UserError, nearest
from redistill.tasks.answers import REQUESTS, check_answer_format, number_value
from redistill.tasks.code import UNSAFE_WARNING, CodeJudge, code_columns, code_judge, refuse_code_options
from redistill.tasks.verifiers import VERIFIERS, Verifier, find_verifier

SUFFIXES = (".jsonl", ".parquet")
SPLITS = ("train", "held_out")
_COLUMNS = ("prompt", "messages", "answer", "solution", "feedback", "split")
_ROLES = ("system", "user", "assistant")

Row = tuple[int, Mapping[str, Any]]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _read_jsonl(path: Path) -> Iterator[Row]:
    """(line number, object) of each line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"task file {path} is not UTF-8 text (byte {error.start})") from None
    while lines and not lines[-1].strip():
        lines.pop()
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"task file {path} row {at} is empty")
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise UserError(f"task file {path} row {at} is not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"task file {path} row {at} must be a JSON object, got {type(row).__name__}")
        yield at, row


def _read_parquet(path: Path) -> Iterator[Row]:
    """(row number from 1, row) of each row."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"task file {path} is not a parquet file that can be read: {' '.join(str(error).split())}"
        ) from None
    yield from enumerate(table.to_pylist(), start=1)


def _text(row: Mapping[str, Any], column: str, where: str, *, needed: bool) -> str | None:
    value = row.get(column)
    if value is None and not needed:
        return None
    if column not in row:
        raise UserError(f"{where} has no column {column!r}{nearest(column, row)}")
    if not isinstance(value, str):
        hint = f' (write it as "{value}")' if isinstance(value, (int, float)) else ""
        raise UserError(f"{where} column {column!r} must be text, got {type(value).__name__}{hint}")
    if not value.strip():
        raise UserError(f"{where} column {column!r} is empty{'' if needed else ': use null when there is none'}")
    return value


def _messages(row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """The row's chat messages; refuses a row with both or neither of `prompt` and `messages`."""
    if row.get("messages") is None:
        if row.get("prompt") is None and "prompt" not in row:
            raise UserError(f"{where} has neither a column 'prompt' nor 'messages'{nearest('prompt', row)}")
        return [{"role": "user", "content": _text(row, "prompt", where, needed=True) or ""}]
    if row.get("prompt") is not None:
        raise UserError(f"{where} has both 'prompt' and 'messages': keep one")
    value = row["messages"]
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} column 'messages' must be a list of messages, got {value!r:.60}")
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise UserError(f"{where}: each message has the keys role and content, got {message!r:.60}")
        if message["role"] not in _ROLES:
            raise UserError(
                f"{where}: message role {message['role']!r} is unknown{nearest(str(message['role']), _ROLES)}"
            )
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise UserError(f"{where}: a {message['role']} message has no text")
    if value[-1]["role"] != "user":
        raise UserError(f"{where}: the last message must be the user's, got role {value[-1]['role']!r}")
    return [dict(message) for message in value]


def _plain_columns(row: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """(the other columns that are JSON values, the names of those that are not)."""
    kept: dict[str, Any] = {}
    dropped: set[str] = set()
    for column, value in row.items():
        if column in _COLUMNS:
            continue
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            dropped.add(column)
        else:
            kept[column] = value
    return kept, dropped


def _check_pattern(answer: str, where: str) -> None:
    try:
        re.compile(answer)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{where} column 'answer' must be a regular expression for verifier=pattern: {error}") from None


def _check_choices(choices: Any, where: str) -> None:
    texts = isinstance(choices, list) and all(isinstance(each, str) and each.strip() for each in choices)
    if choices is not None and not texts:
        raise UserError(f"{where} column 'choices' must be a list of texts for verifier=contains, got {choices!r:.60}")


def _truth(prompt: Prompt) -> tuple[Any, ...]:
    """What two rows of one question must share."""
    return (prompt.answer, *(prompt.data.get(column) for column in ("function", "public_tests", "private_tests")))


class FileTask:
    """The questions of a file. `verifier` is exact, number, math, contains, pattern, code or module:function; `answer_format` and
    `system` as for generators (`system` only for rows without a system message); rewards of a user's own verifier
    lie in [`low`, `high`]; `partial`, `seconds`, `memory_mb` and `unsafe_exec` (in `code`) are those of the task `code`. `summary`
    tells how many rows were kept and dropped. Raises UserError naming the row for anything malformed."""

    wording = "english"

    def __init__(
        self,
        path: str,
        verifier: str = "exact",
        answer_format: str = "plain",
        system: str | None = None,
        low: float = 0.0,
        high: float = 1.0,
        **code: Any,
    ) -> None:
        self.path, self.verifier = Path(path), verifier
        self.name = self.path.name
        self.answer_format, self.system = check_answer_format(answer_format), system
        self.code = code
        self._judge = self._find_judge()
        if verifier in (*VERIFIERS, "code") and (low, high) != (0.0, 1.0):
            raise UserError(
                f"task option low={low:g}, high={high:g}: verifier={verifier} rewards 0 to 1; leave both out"
            )
        if not low < high:
            raise UserError(f"task option low={low:g} must be below high={high:g}")
        self.reward_range = (low, high)
        self._prompts: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
        self.summary = self._load()
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None, "_judge": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._judge = self._find_judge()
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def _find_judge(self) -> Verifier:
        if self.verifier != "code":
            refuse_code_options(self.verifier, self.code)
            return find_verifier(self.verifier)
        if self.answer_format != "plain":
            raise UserError(
                f"task option answer_format={self.answer_format}: verifier=code reads the program in the last code block"
            )
        return code_judge(**self.code)

    @property
    def warnings(self) -> list[str]:
        """Sentences to be read before a run."""
        return [UNSAFE_WARNING] if self.code.get("unsafe_exec") else []

    def _rows(self) -> Iterator[Row]:
        if self.path.suffix not in SUFFIXES:
            raise UserError(f"task file {str(self.path)!r} must end in .jsonl or .parquet")
        if not self.path.is_file():
            raise UserError(f"task file {str(self.path)!r} does not exist")
        return _read_jsonl(self.path) if self.path.suffix == ".jsonl" else _read_parquet(self.path)

    def _load(self) -> str:
        seen: dict[str, tuple[int, Any, str]] = {}
        dropped_columns: set[str] = set()
        first_split: bool | None = None
        rows = repeated = 0
        for at, row in self._rows():
            where, rows = f"task file {self.path} row {at}", rows + 1
            has_split = row.get("split") is not None
            first_split = has_split if first_split is None else first_split
            if has_split != first_split:
                raise UserError(
                    f"{where} has {'a' if has_split else 'no'} 'split', unlike the rows before: give all or none"
                )
            prompt, split, dropped = self._prompt(row, at, where)
            dropped_columns |= dropped
            if prompt.uid in seen:
                before, answer, other = seen[prompt.uid]
                if other != split:
                    raise UserError(
                        f"{where} puts the question of row {before} into {split}, but that row is in {other}"
                    )
                if answer != _truth(prompt):
                    raise UserError(f"{where} repeats the question of row {before} with another answer")
                repeated += 1
                continue
            seen[prompt.uid] = (at, _truth(prompt), split)
            self._prompts[split].append(prompt)
        if not rows:
            raise UserError(f"task file {self.path} has no rows")
        kept = ", ".join(f"{len(self._prompts[split])} {split}" for split in SPLITS)
        told = f"{self.path}: {rows} rows, kept {rows - repeated} ({kept}), dropped {repeated} repeated"
        return told + (
            f"; columns that are not JSON left out: {', '.join(sorted(dropped_columns))}" if dropped_columns else ""
        )

    def _prompt(self, row: Mapping[str, Any], at: int, where: str) -> tuple[Prompt, str, set[str]]:
        content = _messages(row, where)
        if self.system and content[0]["role"] != "system":
            content = [{"role": "system", "content": self.system}, *content]
        if REQUESTS[self.answer_format]:
            content[-1] = {"role": "user", "content": content[-1]["content"] + "\n" + REQUESTS[self.answer_format]}
        answer = _text(row, "answer", where, needed=self.verifier in VERIFIERS)
        if self.verifier == "number" and number_value(answer or "") is None:
            raise UserError(f"{where} column 'answer' must be a number for verifier=number, got {answer!r:.60}")
        if self.verifier == "pattern":
            _check_pattern(answer or "", where)
        columns, dropped = _plain_columns(row)
        if self.verifier == "contains":
            _check_choices(columns.get("choices"), where)
        uid = content_uid(content)
        split = _text(row, "split", where, needed=False) or SPLITS[is_held_out(uid)]
        if split not in SPLITS:
            raise UserError(f"{where} column 'split' is {split!r}{nearest(split, SPLITS)}")
        if self.verifier == "code":
            data = {"row": at, **code_columns(columns, where, held_out=split == "held_out")}
        else:
            data = {"row": at, "columns": columns}
        prompt = Prompt(
            uid=uid,
            content=content,
            answer=answer,
            solution=_text(row, "solution", where, needed=False),
            feedback=_text(row, "feedback", where, needed=False),
            data=data,
        )
        return prompt, split, dropped

    def _shuffled(self, epoch: int, seed: int) -> Any:
        return permutation(len(self._prompts["train"]), "files", seed, epoch)

    def train(self, index: int, seed: int) -> Prompt:
        """The prompt at `index` of the stream of `seed`: every training row once an epoch, in another order each
        epoch."""
        if index < 0:
            raise ValueError(f"index is 0 or more, got {index}")
        prompts = self._prompts["train"]
        if not prompts:
            raise UserError(f"task file {self.path} has no row for training: all are held out")
        epoch, position = divmod(index, len(prompts))
        return prompts[int(self._order(epoch, seed)[position])]

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first `count` held-out rows in the file's order; fewer when there are fewer. Raises UserError for
        none."""
        if count > 0 and not self._prompts["held_out"]:
            raise UserError(f"task file {self.path} has no held-out row: add a 'split' column or more rows")
        return self._prompts["held_out"][: max(count, 0)]

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """Judge a reply with the chosen verifier; the lowest reward when that took too long."""
        verdict = self._judge(prompt, answer, self.answer_format)
        return verdict if verdict.limit is None else replace(verdict, reward=self.reward_range[0])

    def verify_all(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        """Judge several replies, programs side by side."""
        if isinstance(self._judge, CodeJudge):
            return self._judge.all(pairs)
        return [self.verify(prompt, answer) for prompt, answer in pairs]
