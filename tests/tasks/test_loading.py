import pytest
from redistill.core.task import Task
from redistill.errors import UserError
from redistill.tasks import load_task, task_names, task_options
from redistill.tasks.files import FileTask
from redistill.tasks.gym import GymTask
from redistill.tasks.sums import Sums


def test_names() -> None:
    names = task_names()
    assert {"sums", "chain_sum", "composite", "zebra_puzzles"} <= set(names)
    assert names == sorted(names)
    assert len(names) >= 100


def test_options_of_tasks() -> None:
    assert {("min_terms", 2, "int"), ("answer_format", "plain", "str")} <= set(task_options("chain_sum"))
    assert ("terms", 3, "int") in task_options("sums")
    assert task_options("data.jsonl")[0] == ("verifier", "exact", "str")


def test_values_by_type() -> None:
    assert load_task("sums:terms=4,partial=true") == Sums(terms=4, partial=True)
    task = load_task(
        'chain_sum:min_terms=2,max_terms=2,allow_negation=True,system="Be brief, please.",answer_format=tag'
    )
    assert isinstance(task, GymTask)
    assert isinstance(task, Task)
    prompt = task.train(0, 0)
    assert prompt.content[0] == {"role": "system", "content": "Be brief, please."}
    assert prompt.content == load_task(
        'chain_sum:answer_format=tag,system="Be brief, please.",allow_negation=true,max_terms=2'
    ).train(0, 0).content  # fmt: skip
    composite = load_task("composite:datasets=[gcd|chain_sum]")
    assert composite.train(0, 0).data["generator"] in ("gcd", "chain_sum")
    weights = load_task("complex_arithmetic:operations_weights=[1|0|0|0]")
    assert all("Add" in weights.train(index, 0).content[0]["content"] for index in range(5))


def test_a_file_with_a_users_verifier(tmp_path: pytest.TempPathFactory) -> None:
    path = f"{tmp_path}/data.jsonl"
    with open(path, "w") as file:
        file.writelines(f'{{"prompt": "{i} + 1 =", "answer": "{i + 1}"}}\n' for i in range(30))
    task = load_task(f"{path}:verifier=operator:eq,low=-1,high=2")
    assert isinstance(task, FileTask)
    assert task.verifier == "operator:eq"
    assert task.reward_range == (-1.0, 2.0)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "task is empty: name a task such as chain_sum, or the path of a .jsonl or .parquet file"),
        ("chainsum", "task 'chainsum' is unknown; did you mean 'chain_sum'?"),
        ("sum", "task 'sum' is unknown; did you mean 'sums'?"),
        (
            "chain_sum:min_term=2",
            "task 'chain_sum' has no option 'min_term' (given min_term=2); did you mean 'min_terms'?",
        ),
        ("chain_sum:seed=2", "task 'chain_sum' has no option 'seed' (given seed=2): the run's seed decides"),
        ("chain_sum:min_terms=two", "task 'chain_sum' option min_terms='two' must be a whole number"),
        ("chain_sum:min_terms=2.5", "task 'chain_sum' option min_terms='2.5' must be a whole number"),
        ("chain_sum:min_terms=", "task 'chain_sum' option min_terms='' must be a whole number"),
        ("chain_sum:allow_negation=maybe", "task 'chain_sum' option allow_negation='maybe' must be true or false"),
        ("chain_sum:min_terms", "task 'chain_sum' option 'min_terms' is not of the form key=value"),
        ("chain_sum:min_terms=2,", "task 'chain_sum' options 'min_terms=2,' are not of the form key=value,key=value"),
        ("chain_sum:min_terms=2,min_terms=3", "task 'chain_sum' option 'min_terms' is given twice: 2 and 3"),
        (
            "chain_sum:min_terms=5,max_terms=2",
            "task 'chain_sum' refuses max_terms=2, min_terms=5: max_terms must be >= min_terms",
        ),
        ("gsm_symbolic:difficulty=7", "task 'gsm_symbolic' refuses difficulty=7.0: a value is out of its range"),
        ("rotate_matrix:max_rotations=nan", "task 'rotate_matrix' option max_rotations='nan' must be a whole number"),
        ("coin_flip:min_trials=0", "task 'coin_flip' refuses min_trials=0: "),
        ("composite", "task 'composite' refuses its default options: Must specify at least one dataset"),
        ("composite:datasets=gcd", "task 'composite' option datasets='gcd' must be a list: write [a|b]"),
        ("time_intervals:min_date=2000", "task 'time_intervals' option min_date='2000' must be a date like 1999-12-31"),
        ("chain_sum:answer_format=box", "task option answer_format='box' is unknown; did you mean 'boxed'?"),
        ("sums:terms=9", "task sums terms=9 is outside 2 to 8; the nearest is 8"),
        ("sums:term=3", "task 'sums' has no option 'term' (given term=3); did you mean 'terms'?"),
        ("data.json", "task file 'data.json' must end in .jsonl or .parquet"),
        ("some/folder", "task file 'some/folder' must end in .jsonl or .parquet"),
        ("nowhere.jsonl", "task file 'nowhere.jsonl' does not exist"),
        (
            "nowhere.jsonl:verify=math",
            "task 'nowhere.jsonl' has no option 'verify' (given verify=math); did you mean 'verifier'?",
        ),
        ("nowhere.jsonl:verifier=maths", "verifier='maths' is unknown and not module:function; did you mean 'math'?"),
    ],
)
def test_one_plain_sentence_for_each_mistake(spec: str, told: str) -> None:
    with pytest.raises(UserError) as raised:
        load_task(spec)
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)
