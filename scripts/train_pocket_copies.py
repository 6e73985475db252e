"""Train the two models of the study of teacher hacking from answers that `pocket`, the oracle, wrote (some minutes on one core).

    OMP_NUM_THREADS=1 python scripts/train_pocket_copies.py [--work FOLDER]

Both are a third of pocket's size and begin at random. `pocket-copy` (the teacher) is supervised on 4,000 answers until it is a good and
visibly imperfect copy; `pocket-sketch` (the student's start) on the first 1,000 of them and not for long. Their cards (copy.json) hold the
settings and the distance KL(pocket || copy) per token on held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from redistill.build import prepare, settings
from redistill.core.episode import flat
from redistill.core.runs import versions
from redistill.methods.teacher_hacking import TeacherHacking
from redistill.reporting.terminal import reporter
from redistill.tasks.sums import Sums
from redistill.text.domain import TextDomain
from redistill.text.models import load_model
from transformers import AutoConfig, AutoModelForCausalLM

ASSETS = Path(__file__).resolve().parents[1] / "redistill" / "assets"
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 168,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
COMMON = {
    "max_new_tokens": 16,
    "prompts_per_step": 64,
    "weight_decay": 0.01,
    "warmup_steps": 20,
    "eval_prompts": 20,
    "utility": "false",
    "save_every": 100000,
    "micro_batch_tokens": 2048,
}
COPIES: dict[str, tuple[int, dict[str, Any]]] = {
    "pocket-copy": (4000, {"steps": 500, "learning_rate": 2e-3, "seed": 31}),
    "pocket-sketch": (1000, {"steps": 100, "learning_rate": 2e-3, "seed": 32}),
}  # fmt: skip


def oracle_answers(count: int) -> list[dict[str, str]]:
    """Rows of a task's file: one sampled answer of pocket to each of `count` training prompts, and some held-out ones."""
    task = Sums()
    _, config = settings("rft", {"max_new_tokens": 16, "group_size": 1})
    domain = TextDomain(load_model("pocket"), task, config)  # type: ignore[arg-type]
    train = list({prompt.uid: prompt for prompt in (task.train(index, 4242) for index in range(count))}.values())
    prompts = [*train, *task.held_out(20)]
    rows = []
    for at, episode in enumerate(flat(domain.rollout(prompts, key=(4242, -3)))):
        if episode.finish == "stop" and episode.text:
            question = episode.prompt.content[0]["content"]
            split = "train" if at < len(train) else "held_out"
            rows.append({"prompt": question, "answer": episode.text, "solution": episode.text, "split": split})
    return rows


def fresh(folder: Path, seed: int) -> None:
    """A small model with pocket's tokenizer and random weights."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ASSETS / "pocket", folder)
    (folder / "pocket.json").unlink()
    config = AutoConfig.from_pretrained(folder)
    for name, value in SHAPE.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def distance(model: str) -> float:
    """KL(pocket || model) per token on held-out prompts."""
    method, config = settings("teacher-hacking", {"model": model, "teacher": "checkpoint(pocket)", "eval_prompts": 500})
    assert isinstance(method, TeacherHacking)
    domain = TextDomain(load_model(model), Sums(), config)  # type: ignore[arg-type,arg-type]
    domain.bank.need(method.teachers())
    context: Any = type("Context", (), {"domain": domain, "task": Sums(), "step": 0})()
    return method.measures(context)["golden"]


def train(name: str, work: Path) -> None:
    """One copy, saved where its name finds it."""
    count, own = COPIES[name]
    data, start, folder = work / f"{name}.jsonl", work / f"{name}-start", work / name
    work.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(row) + "\n" for row in oracle_answers(count)))
    fresh(start, int(own["seed"]))
    shutil.rmtree(folder, ignore_errors=True)
    given = {**COMMON, **own, "task": str(data), "model": str(start)}
    run = prepare("sft", given, out=folder, report=reporter(quiet=True, silent=True))
    run.go(False)
    run.close()
    target = ASSETS / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "model", target)
    card = {
        "from": "random weights, on answers of pocket", "answers": count, "shape": SHAPE, "settings": {**COMMON, **own},
        "kl_from_pocket_per_token": round(distance(name), 4), "versions": versions(),
    }  # fmt: skip
    (target / "copy.json").write_text(json.dumps(card, indent=2) + "\n")
    print(name, card["kl_from_pocket_per_token"], flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = argparse.ArgumentParser(description="Train the teacher and the student of the study of teacher hacking.")
    parser.add_argument("--work", type=Path, default=Path("runs") / "copies")
    parser.add_argument("names", nargs="*", default=list(COPIES), metavar="NAME", help=", ".join(COPIES))
    options = parser.parse_args()
    for one in options.names:
        if one not in COPIES:
            parser.error(f"{one!r} is none of {', '.join(COPIES)}")
        train(one, options.work)
