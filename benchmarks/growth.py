"""How cost grows: one update, or one whole step, of a small random model against one size at a time.

Every point is the median of a few repetitions in one process. `sizes` are the horizontal axis; the fitted exponent is the
slope of log seconds over log size in the upper half of the sizes (below, what does not grow is in the way).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from redistill import build
from redistill.core.arithmetic import fast_float32
from redistill.core.episode import Episode
from redistill.core.loop import Run
from redistill.core.runs import RunFolder
from redistill.core.signal import Signal, Teacher, Term
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.core.task import Prompt
from redistill.core.update import update
from redistill.objectives.terms import Divergence, PolicyGradient
from redistill.text.domain import TextDomain, Trajectory
from redistill.text.models import LanguageModel, load_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.our_worker import Sums, add_wording
from benchmarks.port import Port, settings_of

VOCABULARY = 4096
SIZES: dict[str, Sequence[int]] = {
    "sequence length": (128, 256, 512, 1024, 2048, 4096),
    "vocabulary": (2048, 8192, 32768, 131072, 262144),
    "group size": (2, 4, 8, 16, 32, 64),
    "teachers": (1, 2, 4, 8),
    "batch": (2, 4, 8, 16, 32, 64),
}
AXES = {
    "sequence length": "one update of 2 rows of so many tokens (policy gradient)",
    "vocabulary": "one update of 512 steps (policy gradient)",
    "group size": "one GRPO step, 2 prompts, answers of 32 tokens: sampling and update",
    "teachers": "one update with so many teachers, each in a context of its own (full reverse KL), 512 steps",
    "batch": "one GRPO step of so many prompts, groups of 4, answers of 32 tokens: sampling and update",
}


def model(vocabulary: int = VOCABULARY) -> LanguageModel:
    """A random Llama of 4 layers and width 128 that speaks pocket's tokens (and many more that mean nothing)."""
    torch.manual_seed(0)
    tokenizer = load_model("pocket").tokenizer
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    return LanguageModel("random", LlamaForCausalLM(config).eval(), tokenizer, (), 8192, torch.float32)


def domain(lm: LanguageModel, **given: Any) -> tuple[Any, Any, TextDomain]:
    """(method, config, domain) of a GRPO run on the model."""
    method, config = build.settings("grpo", {key: str(value) for key, value in given.items()})
    return method, config, TextDomain(lm, Sums(), config)  # type: ignore[arg-type]


def rows(count: int, prompt: int, response: int) -> list[Episode]:
    """Episodes of random tokens, each with a prompt of its own."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for index in range(count):
        ids = torch.randint(3, 60, (prompt + response,), generator=draw).tolist()
        trajectory = Trajectory(tuple(ids[prompt:]), ((0, response),))
        asked = Prompt(str(index), [{"role": "user", "content": str(index)}])
        found.append(
            Episode(asked, tuple(ids[:prompt]), trajectory, response, behaviour_logp_T=torch.full((response,), -4.0))
        )
    return found


def policy_gradient(episodes: Sequence[Episode]) -> Term:
    """A clipped policy gradient over all steps."""
    steps = sum(row.steps for row in episodes)
    return PolicyGradient(
        advantage_N=torch.ones(steps), behaviour_N=torch.full((steps,), -4.0), normaliser=Normaliser("token")
    )


def one_update(home: TextDomain, episodes: Sequence[Episode], terms: Sequence[Term]) -> Callable[[], Any]:
    """One update of a signal."""
    return lambda: update(Signal(episodes, terms), home)


def one_step(size: int, group: int, prompts: int, scratch: Path) -> Callable[[], Any]:
    """One whole step of a run: sampled, judged, updated, logged."""
    method, config, home = domain(
        model(),
        prompts_per_step=prompts,
        group_size=group,
        max_new_tokens=32,
        sample_batch=256,
        micro_batch_tokens=2048,
    )
    stages = build.stages_of(method, config)
    run = Run(
        method, config, home.task, home, RunFolder(scratch / f"{group}-{prompts}-{size}"), stages, lambda *_: None
    )
    run._enter(stages[0])
    return lambda: run._one_step(stages[0])


def work(axis: str, size: int, scratch: Path) -> Callable[[], Any]:
    """What is timed at one point."""
    if axis == "group size":
        return one_step(size, size, 2, scratch)
    if axis == "batch":
        return one_step(size, 4, size, scratch)
    vocabulary = size if axis == "vocabulary" else VOCABULARY
    _, _, home = domain(model(vocabulary), micro_batch_tokens=8192)
    if axis == "sequence length":
        episodes = rows(2, 16, size - 16)
        return one_update(home, episodes, [policy_gradient(episodes)])
    episodes = rows(8, 16, 64)
    if axis == "vocabulary":
        return one_update(home, episodes, [policy_gradient(episodes)])
    home.bank.need([TeacherWeights("frozen")])
    terms = []
    for number in range(size):
        contexts = tuple((number + 3, *row.context) for row in episodes)
        teacher = Teacher(TeacherWeights("frozen"), contexts)
        terms.append(
            Divergence(
                name=f"teacher{number}", teacher=teacher, kind=DivergenceKind("reverse_kl"), support=Support("full")
            )
        )
    return one_update(home, episodes, terms)


def measured(axis: str, size: int, repetitions: int, scratch: Path) -> float:
    """Median seconds at one point, after one repetition that does not count."""
    run = work(axis, size, scratch)
    run()
    taken = []
    for _ in range(repetitions):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Answer with the seconds of one axis."""
    port, _ = Port(), settings_of(sys.argv)
    fast_float32()
    add_wording()
    port.say(threads=torch.get_num_threads())
    while True:
        command = port.hear()
        with tempfile.TemporaryDirectory() as scratch:
            sizes = [size for size in SIZES[command["axis"]] if size <= command["largest"]]
            taken = [measured(command["axis"], size, command["repetitions"], Path(scratch)) for size in sizes]
        port.say(sizes=sizes, seconds=taken)


if __name__ == "__main__":
    main()
