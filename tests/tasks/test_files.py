import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from redistill.core.task import Task, content_uid, is_held_out
from redistill.errors import UserError
from redistill.tasks.files import FileTask

ROWS = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(60)]


def write(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def test_splits_follow_the_content(tmp_path: Path) -> None:
    task = FileTask(write(tmp_path / "a.jsonl", ROWS))
    assert isinstance(task, Task)
    held = {prompt.uid for prompt in task.held_out(1000)}
    train = {task.train(index, 0).uid for index in range(60)}
    assert not held & train
    assert len(held | train) == 60
    assert all(is_held_out(uid) for uid in held)
    assert task.summary.endswith(f"60 rows, kept 60 ({len(train)} train, {len(held)} held_out), dropped 0 repeated")
    moved = FileTask(write(tmp_path / "b.jsonl", [{"prompt": "new", "answer": "x"}, *reversed(ROWS)]))
    assert held <= {prompt.uid for prompt in moved.held_out(1000)}


def test_training_is_a_permutation_each_epoch(tmp_path: Path) -> None:
    task = FileTask(write(tmp_path / "a.jsonl", ROWS))
    size = len({task.train(index, 0).uid for index in range(200)})
    epochs = [[task.train(epoch * size + i, 3).uid for i in range(size)] for epoch in range(3)]
    assert all(len(set(epoch)) == size for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [task.train(i, 4).uid for i in range(size)] != epochs[0]
    again = pickle.loads(pickle.dumps(FileTask(write(tmp_path / "a.jsonl", ROWS))))
    assert again.train(2 * size + 5, 3).uid == epochs[2][5]
    assert again.verify(again.train(0, 0), str(again.train(0, 0).answer)).reward == 1.0


def test_columns(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "answer": "a",
         "split": "train", "solution": "work", "feedback": "hint", "level": 3},
        {"messages": [{"role": "user", "content": "r"}], "answer": "b", "split": "held_out", "solution": None},
    ]  # fmt: skip
    task = FileTask(write(tmp_path / "a.jsonl", rows), answer_format="boxed", system="be kind")
    prompt, other = task.train(0, 0), task.held_out(5)[0]
    assert (prompt.answer, prompt.solution, prompt.feedback) == ("a", "work", "hint")
    assert prompt.data == {"row": 1, "columns": {"level": 3}}
    assert prompt.content[0]["content"] == "s"
    assert [message["content"] for message in other.content] == ["be kind", "r\nPut the final answer in \\boxed{}."]
    assert prompt.uid == content_uid(prompt.content)
    assert other.solution is None


def test_parquet_is_read_like_jsonl(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"prompt": [row["prompt"] for row in ROWS], "answer": [row["answer"] for row in ROWS], "raw": [b"x"] * 60}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    task = FileTask(str(tmp_path / "a.parquet"), verifier="number")
    twin = FileTask(write(tmp_path / "a.jsonl", ROWS), verifier="number")
    assert [task.train(i, 0).uid for i in range(50)] == [twin.train(i, 0).uid for i in range(50)]
    assert task.summary.endswith("columns that are not JSON left out: raw")
    assert task.verify(task.train(0, 0), f"It is {task.train(0, 0).answer}.").reward == 1.0
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match=r"bad.parquet is not a parquet file that can be read"):
        FileTask(str(tmp_path / "bad.parquet"))


GOOD = {"prompt": "q", "answer": "a"}
USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "has no rows"),
        ([GOOD, "", GOOD], "row 2 is empty"),
        ([GOOD, "{"], "row 2 is not valid JSON: "),
        ([GOOD, '{"prompt": "x", "answer": NaN}'], "row 2 is not valid JSON: NaN is not JSON"),
        (["[" * 100_000], "row 1 is not valid JSON: "),
        (["[1]"], "row 1 must be a JSON object, got list"),
        ([{"promt": "q", "answer": "a"}], "row 1 has neither a column 'prompt' nor 'messages'; did you mean 'promt'?"),
        ([{"prompt": "q", "anser": "a"}], "row 1 has no column 'answer'; did you mean 'anser'?"),
        ([{"prompt": "q", "answer": 4}], "row 1 column 'answer' must be text, got int (write it as \"4\")"),
        ([{"prompt": ["q"], "answer": "4"}], "row 1 column 'prompt' must be text, got list"),
        ([{"prompt": None, "answer": "4"}], "row 1 column 'prompt' must be text, got NoneType"),
        ([GOOD, {"prompt": " ", "answer": "4"}], "row 2 column 'prompt' is empty"),
        ([{**GOOD, "solution": ""}], "row 1 column 'solution' is empty: use null when there is none"),
        ([{**GOOD, "messages": [USER]}], "row 1 has both 'prompt' and 'messages': keep one"),
        ([{"messages": [], "answer": "a"}], "row 1 column 'messages' must be a list of messages, got []"),
        ([{"messages": ["q"], "answer": "a"}], "row 1: each message has the keys role and content, got 'q'"),
        (
            [{"messages": [{"role": "usr", "content": "q"}], "answer": "a"}],
            "row 1: message role 'usr' is unknown; did you mean 'user'?",
        ),
        ([{"messages": [{"role": "user", "content": ""}], "answer": "a"}], "row 1: a user message has no text"),
        (
            [{"messages": [USER, {"role": "assistant", "content": "x"}], "answer": "a"}],
            "row 1: the last message must be the user's, got role 'assistant'",
        ),
        ([{**GOOD, "split": "test"}], "row 1 column 'split' is 'test'; "),
        ([{**GOOD, "split": "train"}, {"prompt": "r", "answer": "a"}], "row 2 has no 'split', unlike the rows before"),
        (
            [{**GOOD, "split": "train"}, {**GOOD, "split": "held_out"}],
            "row 2 puts the question of row 1 into held_out, but that row is in train",
        ),
        ([GOOD, {**GOOD, "answer": "b"}], "row 2 repeats the question of row 1 with another answer"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(tmp_path: Path, rows: list[Any], told: str) -> None:
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(UserError) as raised:
        FileTask(path)
    assert str(raised.value).startswith(f"task file {path} {told}")
    assert "\n" not in str(raised.value)


def test_repeats_are_dropped_and_counted(tmp_path: Path) -> None:
    task = FileTask(write(tmp_path / "a.jsonl", [*ROWS, ROWS[0], ROWS[1]]))
    assert "62 rows, kept 60" in task.summary
    assert task.summary.endswith("dropped 2 repeated")


def test_an_empty_split_is_told_when_it_is_needed(tmp_path: Path) -> None:
    task = FileTask(write(tmp_path / "a.jsonl", [{**GOOD, "split": "train"}]))
    assert task.train(5, 0).content == [USER]
    assert task.held_out(0) == []
    with pytest.raises(UserError, match="has no held-out row: add a 'split' column or more rows"):
        task.held_out(1)
    task = FileTask(write(tmp_path / "b.jsonl", [{**GOOD, "split": "held_out"}]))
    with pytest.raises(UserError, match="has no row for training: all are held out"):
        task.train(0, 0)


def test_options_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UserError, match="low=0, high=2: verifier=exact rewards 0 to 1; leave both out"):
        FileTask(path, high=2.0)
    with pytest.raises(UserError, match="low=2 must be below high=1"):
        FileTask(path, verifier="operator:eq", low=2.0)
    with pytest.raises(UserError, match="column 'answer' must be a number for verifier=number, got 'a'"):
        FileTask(write(tmp_path / "b.jsonl", [GOOD]), verifier="number")
    (tmp_path / "c.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 12\)"):
        FileTask(str(tmp_path / "c.jsonl"))
    free = FileTask(write(tmp_path / "d.jsonl", [{"prompt": "q", "split": "train"}]), verifier="operator:eq")
    assert free.train(0, 0).answer is None
