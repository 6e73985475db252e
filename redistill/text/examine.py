"""The language part of `redistill doctor`: who agrees with whom, and what a run will need of memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from redistill.core.specs import TeacherWeights
from redistill.core.task import Task
from redistill.errors import UserError
from redistill.tasks.loading import load_task
from redistill.text import weights
from redistill.text.head import CHUNK_BYTES
from redistill.text.models import LanguageModel, compare_tokenizers, context_of, load_model, load_tokenizer, read_config
from redistill.text.preflight import numbers_of, preflight, shapes_of
from redistill.text.settings import Settings
from redistill.text.turns import rewritten

MEASURED_ON = 8
"""Held-out prompts on which a template mismatch is measured."""
_COPIES = ("frozen", "trust_region", "ema", "slowing_ema", "sync")


def examine(config: Settings, teachers: Sequence[TeacherWeights]) -> dict[str, Any]:
    """What student and teachers are and where they agree, the memory plan, warnings. UserError for what cannot work."""
    folder = weights.resolve(config.model)
    model = read_config(config.model, folder)
    tokenizer, _ = load_tokenizer(config.model, folder)
    agreement = [_agree(spec, config, tokenizer) for spec in teachers]
    ready = preflight(config, teachers)
    plan = memory_plan(config, teachers, folder, model)
    _check_memory(plan, config)
    student = {
        "folder": str(folder), "parameters": numbers_of(folder), "tokens": len(tokenizer),
        "context": context_of(config.model, model), "eos": tokenizer.eos_token,
        "special": sorted(map(str, tokenizer.all_special_tokens)), "template_rewrites": rewritten(tokenizer),
    }  # fmt: skip
    return {
        "student": student, "agreement": agreement, "memory": plan, "checkpoint_bytes": ready.checkpoint,
        "model_bytes": ready.model, "warnings": list(ready.warnings),
    }  # fmt: skip


def _agree(spec: TeacherWeights, config: Settings, tokenizer: Any) -> dict[str, Any]:
    """Whether a teacher reads the same tokens and prompts; UserError with the first difference, and with what another
    template costs where that is all that differs."""
    if spec.name in ("served", "text"):
        return {"teacher": str(spec), "says": "checked by the pre-flight", "template_nats": None}
    if spec.name != "checkpoint":
        return {
            "teacher": str(spec),
            "says": "is the student's own weights: same tokenizer, same template",
            "template_nats": 0.0,
        }
    theirs, _ = load_tokenizer(spec.path, weights.resolve(spec.path))
    try:
        compare_tokenizers(tokenizer, theirs)
    except UserError as error:
        if not _only_template(tokenizer, theirs):
            raise
        nats = template_nats(load_model(spec.path), tokenizer, load_task(config.task))
        cost = (
            ""
            if nats is None
            else f"; reading the student's costs the teacher {nats:+.3f} nats a token of the solutions"
        )
        raise UserError(f"{error}{cost}") from None
    return {"teacher": str(spec), "says": "same tokens, special tokens, EOS and template", "template_nats": 0.0}


def _only_template(one: Any, other: Any) -> bool:
    """Whether two tokenizers agree in all but the chat template."""
    kept = other.chat_template
    try:
        other.chat_template = one.chat_template
        compare_tokenizers(one, other)
    except UserError:
        return False
    finally:
        other.chat_template = kept
    return True


@torch.no_grad()
def template_nats(teacher: LanguageModel, tokenizer: Any, task: Task) -> float | None:
    """Nats a token by which the teacher's log-prob of held-out solutions falls when prompts are rendered by the student's
    template (`tokenizer`) instead of its own; None when the task has no solutions."""
    prompts = [prompt for prompt in task.held_out(MEASURED_ON) if prompt.solution]
    if not prompts:
        return None
    costs = []
    for template in (teacher.tokenizer.chat_template, tokenizer.chat_template):
        total, count = 0.0, 0
        for prompt in prompts:
            context = teacher.tokenizer.apply_chat_template(
                list(prompt.content),
                chat_template=template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
            answer = teacher.tokenizer.encode(prompt.solution, add_special_tokens=False)
            hidden_TD = teacher.hidden(torch.tensor([[*context, *answer]])).last_hidden_state[0]
            logp_TV = teacher.head().logits(hidden_TD[len(context) - 1 : -1]).float().log_softmax(-1)
            total -= float(logp_TV.gather(-1, torch.tensor(answer)[:, None]).sum())
            count += len(answer)
        costs.append(total / count)
    return costs[1] - costs[0]


def memory_plan(
    config: Settings, teachers: Sequence[TeacherWeights], folder: Path, model: Any
) -> dict[str, int]:  # fmt: skip
    """Bytes that a run will hold, by what for. Weights, gradients, AdamW's two moments and copies are counted (float32);
    activations, the head's chunks and the sampler's cache are estimates, meant to be right within a factor of 2."""
    text = model.get_text_config()
    width, layers = int(text.hidden_size), int(text.num_hidden_layers)
    inner = int(getattr(text, "intermediate_size", 0) or 4 * width)
    heads = int(text.num_attention_heads)
    keys = int(getattr(text, "num_key_value_heads", None) or heads) * int(
        getattr(text, "head_dim", None) or width // heads
    )
    numbers = numbers_of(folder)
    trained = numbers
    if config.lora_rank:  # two thin matrices beside each linear layer but the head and the embedding
        linear = [shape for name, shape in shapes_of(folder).items() if len(shape) == 2 and "layers." in name]
        trained = sum(config.lora_rank * (rows + columns) for rows, columns in linear)
    copies = len({"frozen" if spec.name == "trust_region" else str(spec) for spec in teachers if spec.name in _COPIES})
    others = sum(numbers_of(weights.resolve(spec.path)) for spec in teachers if spec.name == "checkpoint")
    reading = min(context_of(config.model, model), config.max_prompt_tokens + config.max_new_tokens)
    tokens = max(config.micro_batch_tokens, reading)
    half = 2 if config.dtype == "bfloat16" else 4
    one_layer = 12 * width + 2 * keys + 4 * inner
    plan = {
        "weights": 4 * numbers, "gradients": 4 * trained, "optimiser": 8 * trained, "teacher copies": 4 * trained * copies,
        "teacher models": 4 * others,
        # saved for the backward pass by a layer: norms, projections, attention's in- and output, the gated inner products
        "activations": half * tokens * (one_layer + layers * width if config.checkpointing else layers * one_layer),
        "head": min(6 * CHUNK_BYTES, 24 * tokens * int(text.vocab_size)),
        "sampler's cache": 4 * config.sample_batch * reading * layers * 2 * keys,
    }  # fmt: skip
    plan["total"] = sum(plan.values())
    return plan


def _check_memory(plan: Mapping[str, int], config: Settings) -> None:
    """Refuse a plan that is larger than the memory there is, naming its largest part and what makes it smaller."""
    free = available()
    if plan["total"] <= free:
        return
    largest = max((name for name in plan if name != "total"), key=lambda name: plan[name])
    mend = {
        "activations": f"micro_batch_tokens={config.micro_batch_tokens}", "sampler's cache": f"sample_batch={config.sample_batch}",
        "optimiser": f"lora_rank={config.lora_rank}", "gradients": f"lora_rank={config.lora_rank}",
        "teacher copies": f"lora_rank={config.lora_rank}",
    }.get(largest, f"model={config.model}")  # fmt: skip
    raise UserError(
        f"the run needs about {plan['total'] / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; the largest part is "
        f"{largest} with {plan[largest] / 1e9:.1f} GB, set by {mend}"
    )


def available() -> float:
    """Bytes of memory that are free; infinity where the system does not say."""
    listing = Path("/proc/meminfo")
    if not listing.exists():
        return math.inf
    found = [line.split()[1] for line in listing.read_text().splitlines() if line.startswith("MemAvailable:")]
    return float(found[0]) * 1024 if found else math.inf
