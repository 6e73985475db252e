"""What can go wrong with a language run and can be known before weights are loaded: tokenizers, prompts, room on the disk."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

from redistill.core.domain import Ready
from redistill.core.specs import TeacherWeights
from redistill.core.task import Prompt, Task
from redistill.errors import UserError
from redistill.tasks.loading import load_task
from redistill.tasks.worlds import WorldTask
from redistill.text import weights
from redistill.text.models import compare_tokenizers, context_of, load_tokenizer, read_config, render
from redistill.text.pool import AnswerPool
from redistill.text.served import Served
from redistill.text.settings import Settings
from redistill.text.turns import check_template
from redistill.text.views import VIEWS, WORDINGS, Evidence

LOOKED_AT = 64
"""Training prompts whose length is looked at."""


def preflight(config: Settings, teachers: Sequence[TeacherWeights]) -> Ready:
    """Check the task, the model's folder and tokenizer, those of teacher checkpoints, and the length of prompts; in this
    order, the cheap before the costly. UserError for what cannot work."""
    task = load_task(config.task)
    folder = weights.resolve(config.model)
    context = context_of(config.model, read_config(config.model, folder))
    tokenizer, notes = load_tokenizer(config.model, folder)
    warnings = [f"model {config.model!r}: {notes['pad']}"] if "pad" in notes else []
    warnings += getattr(task, "warnings", ())  # of tasks that have something to say
    for spec in teachers:
        if spec.name == "checkpoint":
            theirs = weights.resolve(spec.path)
            read_config(spec.path, theirs)
            compare_tokenizers(tokenizer, load_tokenizer(spec.path, theirs)[0])
        elif spec.name == "served":
            Served(tokenizer, len(tokenizer), config.served_timeout, config.served_tries).connect(spec)
        elif spec.name == "text":
            warnings += _check_pool(AnswerPool(spec.path), task, config)
    if isinstance(task, WorldTask):
        warnings += check_template(config.model, tokenizer, config.history)
    warnings += _check_prompts(task, tokenizer, config, context)
    numbers = numbers_of(folder)
    copies = {str(spec) for spec in teachers if spec.name in ("frozen", "trust_region", "ema", "slowing_ema", "sync")}
    # float32: the weights, two moments of AdamW, and every copy; adapters are too small to matter
    checkpoint = 0 if config.lora_rank else 4 * numbers * (3 + len(copies))
    return Ready(task, checkpoint, 4 * numbers if config.save_model else 0, warnings)


def _check_pool(pool: AnswerPool, task: Task, config: Settings) -> list[str]:
    """Refuse a pool that answers none of the first training prompts; count those that it does not."""
    count = min(LOOKED_AT, config.steps * config.prompts_per_step)
    missing = sum(not pool.answers(task.train(index, config.seed)) for index in range(count))
    if missing == count:
        raise UserError(f"{pool.path} answers none of the first {count} training prompts of task {config.task!r}")
    told = f"{pool.path} has no answer to {missing} of the first {count} training prompts; they will be left out"
    return [told] if missing else []


def _check_prompts(task: Task, tokenizer: object, config: Settings, context: int) -> list[str]:
    """Refuse held-out prompts that do not fit, and training prompts of which none does; count those that do not."""
    room = context - config.max_new_tokens
    if room < 1:
        raise UserError(
            f"max_new_tokens={config.max_new_tokens} leaves no room for a prompt: the context of model {config.model!r} is "
            f"{context} tokens"
        )

    def length(prompt: Prompt, evidence: Evidence = Evidence()) -> int:
        messages = VIEWS["plain" if evidence == Evidence() else "hindsight"](
            prompt.content, evidence, WORDINGS[task.wording]
        )
        assert messages is not None
        return len(render(config.model, tokenizer, messages))

    held_out = task.held_out(config.eval_prompts)
    plain = max((length(prompt) for prompt in held_out), default=0)
    shown = 0
    if config.utility and all(prompt.solution for prompt in held_out):
        shown = max((length(prompt, Evidence(solution=prompt.solution)) for prompt in held_out), default=0)
    if max(plain, shown) > room:
        how = "" if plain > room else " with its solution in view"
        mend = "" if plain > room else " (utility=false leaves the solution out)"
        raise UserError(
            f"a held-out prompt has {max(plain, shown)} tokens{how}, which with max_new_tokens={config.max_new_tokens} is more "
            f"than the context of model {config.model!r}, {context}{mend}"
        )
    limit, count = min(room, config.max_prompt_tokens), min(LOOKED_AT, config.steps * config.prompts_per_step)
    lengths = [length(task.train(index, config.seed)) for index in range(count)]
    long = sum(each > limit for each in lengths)
    told = f"longer than {limit} tokens (max_prompt_tokens={config.max_prompt_tokens}, context {context})"
    if long == count:
        raise UserError(
            f"all of the first {count} training prompts are {told}, the shortest of them has {min(lengths)}: "
            "raise max_prompt_tokens, or take a model with more context"
        )
    return [f"{long} of the first {count} training prompts are {told} and will be left out"] if long else []


def numbers_of(folder: Path) -> int:
    """How many numbers the weights of a model folder are."""
    return sum(math.prod(shape) for shape in shapes_of(folder).values())


def shapes_of(folder: Path) -> dict[str, list[int]]:
    """The shape of every weight of a model folder, by the headers of its safetensors files."""
    found: dict[str, list[int]] = {}
    for file in weights.weight_files(folder):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        found |= {key: entry["shape"] for key, entry in header.items() if key != "__metadata__"}
    return found
