"""A float64 laboratory: a tiny random Llama as a language model, hand-made episodes, and gradients of any signal.

The model computes in float64 throughout (transformers' RMSNorm would go through float32), so that laws can be held to
1e-6 and finite differences mean something. Its end-of-sequence token is also its padding token, and stands inside
answers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from redistill.build import settings
from redistill.core import rng
from redistill.core.episode import Episode, Group
from redistill.core.signal import Signal
from redistill.core.task import Prompt
from redistill.core.update import Tally, accumulate
from redistill.tasks.confidence import Confident, split_confidence
from redistill.tasks.sums import Sums
from redistill.text.domain import TextDomain, Trajectory
from redistill.text.models import LanguageModel, load_model
from redistill.text.views import Evidence
from teacher_cases import TEACHER_CASES
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER = load_model("pocket").tokenizer
EOS = TOKENIZER.eos_token_id
SMALL = {"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 12, "lora_rank": 0, "lora_alpha": "none"}


class RMSNorm(nn.Module):
    """Llama's norm without its detour through float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight.clone()), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


def in_float64(module: Any) -> Any:
    """The module in float64, norms included, in eval mode."""
    for name, part in list(module.named_modules()):
        if type(part).__name__ == "LlamaRMSNorm":
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, RMSNorm(part.weight.data, part.variance_epsilon))
    return module.double().eval()


def tiny_model(seed: int = 0, vocabulary: int | None = None, double: bool = True) -> LanguageModel:
    """A random Llama of 2 layers and width 16 over pocket's tokens, far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary or len(TOKENIZER), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.3,
        tie_word_embeddings=False, attn_implementation="sdpa", pad_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    module = in_float64(module) if double else module
    return LanguageModel("tiny", module, TOKENIZER, (EOS,), 256, torch.float32, {"name": "tiny"})


def normal(*key: Any) -> Any:
    """Keyed standard normal draws (Box-Muller)."""
    import numpy as np

    u, v = rng.uniform("u", *key), rng.uniform("v", *key)
    return np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)


class Lab:
    """A method, its domain on a tiny model, and what a Context offers."""

    def __init__(self, slug: str, lm: LanguageModel | None = None, **given: Any) -> None:
        self.slug, stage = slug, given.pop("stage", None)
        self.method, self.config = settings(slug, {**SMALL, **given})
        self.task: Any = Confident(Sums()) if self.config.task.startswith("confident+") else Sums()
        self.domain = TextDomain(lm or tiny_model(), self.task, self.config)
        self.domain.bank.load = lambda name: tiny_model(seed=7 if name == "other" else 8)
        self.domain.bank.need(self.method.teachers())
        if stage is not None:  # another stage of the method than its last
            self.method = next(each.method for each in self.method.stages() if each.name == stage)
        self.logged: dict[str, float] = {}
        self.step = self.stage_step = 0
        self.domain.begin_step(0)

    # --- the context of a method -------------------------------------------------------------------------------------
    def next_prompts(self) -> list[Prompt]:
        prompts = [self.task.train(i, self.config.seed) for i in range(self.config.prompts_per_step)]
        return [replace(prompt, data={**prompt.data, "domain": "ab"[i % 2]}) for i, prompt in enumerate(prompts)]

    def uniform(self, *key: Any) -> Any:
        return rng.uniform("method", self.config.seed, self.step, *key)

    def log(self, name: str, value: float) -> None:
        self.logged[name] = float(value)

    # --- making episodes ---------------------------------------------------------------------------------------------
    def episode(
        self, prompt: Prompt, text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], *key: int
    ) -> Episode:
        """An episode with any ids and spans; the text is what the judge and the views read. Behaviour log-probs are
        near the model's own, some of them far enough for every kind of clip."""
        lm, steps = self.domain.lm, sum(high - low for low, high in spans)
        context = tuple(lm.render(prompt.content))
        with torch.no_grad():
            logits = lm.module(torch.tensor([[*context, *ids]])).logits[0]
            warm = self.config.temperature or 1.0
            logp = (
                (logits[len(context) - 1 : -1] / warm)
                .log_softmax(-1)
                .gather(-1, torch.tensor(ids, dtype=torch.int64)[:, None])[:, 0]
            )
        at = [t for low, high in spans for t in range(low, high)]
        noise = torch.tensor([0.3 * float(normal("behaviour", *key, t)) for t in at])
        return Episode(
            prompt=prompt, context=context, trajectory=Trajectory(tuple(ids), tuple(spans)), steps=steps, text=text,
            behaviour_logp_T=(logp[at] + noise).float(), sampling=self.domain.sampling,
            finish="length" if key and key[-1] == 1 else "stop", verdict=self.task.verify(prompt, text),
        )  # fmt: skip

    def groups(self, seed: int = 0) -> list[Group]:
        """Three groups of four: right and wrong answers, lengths 0 and 1, eos inside, two spans, one group all wrong."""
        made = []
        for g, prompt in enumerate(self.next_prompts()):
            head, _, total = split_confidence(prompt.solution or "", "terse")[0].rpartition("=")
            episodes = []
            for i in range(self.config.group_size):
                right = (i == 0 or (g == 1 and i == 2)) and g != 2
                text = f"{head}={total}" if right else f"{head}={int(total) + 1 + i}"
                size = [9, 5, 1, 0][i] if g == 0 else int(4 + 8 * rng.uniform("size", seed, g, i))
                ids = [int(x) for x in 2 + rng.bits("ids", seed, g, i, range(size)) % (len(TOKENIZER) - 2)]
                if size > 3:
                    ids[2] = EOS  # an end of sequence in the midst is a token like any other
                spans = [(0, 2), (4, size)] if g == 1 and size > 5 and i % 2 else [(0, size)]
                episodes.append(self.episode(prompt, text, ids, spans, seed, g, i))
            made.append(Group(prompt, episodes))
        return made

    def collected(self) -> list[Group]:
        """Groups of the method's own making where it writes them, hand-made ones else."""
        if self.slug == "sft" or (self.slug == "opd" and getattr(self.method, "on_policy", 1.0) == 0.0):
            return list(self.method.collect(self))
        if self.slug == "ssb":
            for row in (row for group in self.groups() for row in group):
                seen = Evidence(solution=row.prompt.solution, attempt=row.text)
                context = self.domain.render("contrast", row.prompt, seen)
                self.method.remember(row.trained_as(context, "contrast"), self)
            return list(self.method.collect(self))
        if self.slug == "pi-distill" and self.method.variant != "opsd":
            groups = self.groups()
            told = [
                self.domain.render(self.method.privilege, g.prompt, self.method.evidence([g.prompt])[0]) for g in groups
            ]
            return [Group(g.prompt, [e.trained_as(ids, "told") for e in g]) for g, ids in zip(groups, told)]
        if self.slug == "sd-zero" and hasattr(self.method, "of"):
            for row in (row for group in self.groups() for row in group):
                ids = row.trajectory.ids
                self.method.of.store.add({
                    "prompt": asdict(row.prompt), "right": row.reward == 1, "context_ids": row.context, "attempt_ids": ids,
                    "phrase_ids": (7, 8), "revision_ids": (*ids[:3], EOS),
                })  # fmt: skip
            return list(self.method.collect(self))
        if self.slug == "skill-sd":
            for prompt in self.next_prompts():
                self.method.bank.add(prompt.uid, str(prompt.solution), 1.0, 8)
        return self.seconds(self.groups()) if self.slug == "rltf" else self.groups()

    def seconds(self, groups: Sequence[Group]) -> list[Group]:
        """A second turn after each wrong answer of two tokens or more (rltf), read afresh under attempt and feedback."""
        made = []
        for g, group in enumerate(groups):
            episodes = list(group)
            for i, first in enumerate(group):
                if first.reward >= 1 or first.steps < 2:
                    continue
                right = i % 2 == g % 2
                ids = [int(x) for x in 2 + rng.bits("second", g, i, range(3 + i)) % (len(TOKENIZER) - 2)]
                text = str(first.prompt.solution) if right else f"{first.text}9"
                second = self.episode(first.prompt, text, ids, [(0, len(ids))], 7, g, i)
                context = self.domain.render(
                    "with_attempt", first.prompt, Evidence(attempt=first.text, feedback=first.verdict.feedback)
                )
                trajectory = replace(second.trajectory, after=first)
                episodes.append(replace(second, context=context, trajectory=trajectory, trained_under="with_attempt"))
            made.append(Group(group.prompt, episodes))
        return made

    # --- measuring ---------------------------------------------------------------------------------------------------
    def signal(self, groups: Sequence[Group]) -> Signal:
        made = self.method.signal(groups, self)
        return made if isinstance(made, Signal) else made[0]

    def gradient(self, signal: Signal) -> tuple[float, Tensor]:
        """Loss and flat gradient of a signal."""
        player = self.domain.players["student"]
        for p in player.parameters.values():
            p.grad = None
        loss = accumulate(signal, self.domain, Tally())
        return loss, flat_gradient(player.parameters.values())

    def shake_teachers(self, size: float = 0.05) -> None:
        """Move copies away from the student, so that a teacher's weights matter beside its view."""
        for key, each in self.domain.bank.copies.items():
            for i, tensor in enumerate(each[name] for name in sorted(each)):
                tensor.add_(
                    size * torch.as_tensor(normal("shake", key, i, range(tensor.numel()))).view_as(tensor).to(tensor)
                )

    def set(self, **changed: Any) -> None:
        """Other run settings for the same domain."""
        self.domain.config = replace(self.domain.config, **changed)


def flat_gradient(parameters: Any) -> Tensor:
    """All gradients as one float64 vector; zeros where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]).double()


def assert_same(one: tuple[float, Tensor], other: tuple[float, Tensor], tolerance: float = 1e-6) -> None:
    """Loss and gradient agree relative to their size (a loss that cancels, relative to a hundredth of the gradient)."""
    scale = max(float(one[1].norm()), float(other[1].norm()))
    assert float((one[1] - other[1]).norm()) <= tolerance * scale, (float((one[1] - other[1]).norm()), scale)
    assert abs(one[0] - other[0]) <= tolerance * max(abs(one[0]), abs(other[0]), 0.01 * scale), (one[0], other[0])


def clone(lm: LanguageModel) -> LanguageModel:
    """A model of its own with the same weights."""
    return replace(lm, module=copy.deepcopy(lm.module))


DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jsd(0.5)",
    "jsd(0.1)",
    "tvd",
    "skew_forward_kl(0.1)",
    "skew_reverse_kl(0.1)",
    "squared_hellinger",
    "pearson",
    "neyman",
    "jeffreys",
    "f(u*log(u) - u + 1)",
)
SUPPORTS = (
    "full",
    "top_k(5, of=student, tail=true)",
    "top_k(5, of=teacher, tail=true)",
    "top_k(5, of=teacher, tail=false)",
)
NEAR = {"teacher": "frozen", "teacher_view": "with_solution"}

HACKED = {"teacher": "checkpoint(other)", "oracle": "checkpoint(third)"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "sft-in-context": ("sft", {"in_context_share": 0.5, "normaliser": "sequence"}),
    "rft": ("rft", {}),
    "grpo": ("grpo", {}),
    "grpo-dapo": ("grpo", {"clip_high": 0.28, "normaliser": "token", "drop_dead_groups": "true"}),
    "grpo-dr": ("grpo", {"std": "none", "normaliser": "constant(50)"}),
    "grpo-population-dual": (
        "grpo", {"std": "population", "dual_clip": 1.05, "drop_truncated": "true", "temperature": 0.7},
    ),
    "grpo-sequence-ratio": ("grpo", {"ratio": "sequence", "clip_low": 0.01, "clip_high": 0.02}),
    "grpo-kl-entropy": ("grpo", {"kl": 0.1, "entropy": 0.01, "temperature": 1.3, "normaliser": "sequence(rows=all)"}),
    **{f"opd-{kind}": ("opd", {"divergence": kind, **NEAR}) for kind in DIVERGENCES},
    **{
        f"opd-{kind}-{i}": ("opd", {"divergence": kind, "support": SUPPORTS[i], **NEAR})
        for i in (1, 2, 3) for kind in DIVERGENCES[:3]
    },
    **{
        f"opd-sampled-{name}": ("opd", {"support": "sampled", "estimator": name, **NEAR})
        for name in ("policy_gradient", "k1", "k2", "k3")
    },
    "opd-checkpoint": ("opd", {"teacher": "checkpoint(other)"}),
    "opd-offline": ("opd", {"teacher": "checkpoint(other)", "on_policy": 0.0}),
    "opd-temperature": ("opd", {"temperature_of_loss": 2.0, "scale_by_temperature": "true", **NEAR}),
    "opd-trust-region": ("opd", {"teacher": "trust_region(0.3)", "teacher_view": "with_solution"}),
    "opsd": ("opsd", {"top_p": 1.0, "top_k": 0}),
    "opsd-jsd": ("opsd", {"divergence": "jsd(0.5)", "clip": "none", "teacher": "live", "loss_temperature": 1.0}),
    "opsd-top-k": ("opsd", {"support": SUPPORTS[3], "normaliser": "sequence"}),
    "sdpo": ("sdpo", {"support": "top_k(5)"}),
    "sdpo-full-reference": (
        "sdpo", {"support": "full", "solution": "reference", "feedback": "always", "attempt": "true"},
    ),
    "sdpo-reverse-clip": (
        "sdpo", {"divergence": "reverse_kl", "advantage_clip": 0.5, "support": "full", "ratio_cap": 1.1},
    ),
    "sdpo-sampled": ("sdpo", {"divergence": "reverse_kl", "support": "sampled", "teacher": "frozen"}),
    "sdpo-hybrid": ("sdpo", {"grpo_weight": 0.9, "support": "top_k(5)", "normaliser": "sequence(rows=all)"}),
    "sdpo-failures-live": (
        "sdpo", {"route": "failures", "teacher": "live", "feedback": "always", "support": "top_k(5)"},
    ),
    "srpo": ("srpo", {"support": "top_k(5)"}),
    "srpo-full-std": (
        "srpo", {"support": "full", "std": "sample", "feedback": "always", "teacher": "frozen", "beta": 0.3},
    ),
    "srpo-successes-reverse": (
        "srpo", {"route": "successes", "divergence": "reverse_kl", "support": "full", "ratio_cap": 1.1, "clip_high": 0.1},
    ),
    "srpo-mix": ("srpo", {"mix": 0.5, "clip_low": 0.9, "clip_high": 0.9}),
    "rltf": ("rltf", {"mask_below": -1000}),
    "rltf-fm": ("rltf", {"variant": "fm", "critic": "correctness", "normaliser": "constant(50)"}),
    "rltf-ppo": ("rltf", {"ratio": "ppo", "baseline": "second", "sd_weight": 1.0}),
    "skill-sd": ("skill-sd", {"skill_weight": 0.5}),
    "skill-sd-frozen-k2": ("skill-sd", {"skill_weight": 1.0, "teacher": "frozen", "estimator": "k2", "ratio": "detached"}),
    "skill-sd-opd": (
        "skill-sd", {"skill_weight": 1.0, "grpo_weight": 0.0, "estimator": "policy_gradient", "ratio": "none", "teacher": "frozen"},
    ),
    "rltf-cispo-both": ("rltf", {"ratio": "cispo", "variant": "both", "temperature": 0.7}),
    "ssb": ("ssb", {"batch": 8}),
    "ssb-mixed-raw": (
        "ssb", {"batch": 8, "kd_weight": 0.5, "ce_weight": 0.5, "loss_temperature": 1.0, "student_prompt": "raw", "end": "false"},
    ),
    "sd-zero": ("sd-zero", {"support": "top_k(5)"}),
    "sd-zero-full-jsd": ("sd-zero", {"support": "full", "divergence": "jsd(0.5)", "teacher": "live", "phrase": "flipped"}),
    "sd-zero-srt": ("sd-zero", {"stage": "srt", "srt_batch": 9}),
    "caopd": ("caopd", {"max_new_tokens": 40}),
    "caopd-sibling-forward": (
        "caopd", {"max_new_tokens": 40, "shown": "sibling", "note": "false", "divergence": "forward_kl", "support": "top_k(5)", "normaliser": "token"},
    ),
    "caopd-plain-skip": ("caopd", {"max_new_tokens": 40, "revise": "false", "skip_first": 3, "teacher": "frozen"}),
    "teacher-hacking": ("teacher-hacking", HACKED),
    "teacher-hacking-jsd": ("teacher-hacking", {**HACKED, "divergence": "jsd(0.3)", "normaliser": "sequence"}),
    "rl-vs-distillation": ("rl-vs-distillation", {"normaliser": "sequence"}),
    "pi-distill": ("pi-distill", {"temperature": 1.0, "alpha": 0.3}),
    "pi-distill-pathwise": (
        "pi-distill", {"kl": "pathwise", "privilege": "with_hint", "normaliser": "sequence", "drop_dead_groups": "false", "alpha": 0.7},
    ),
    "pi-distill-trajectory": ("pi-distill", {"ratio": "trajectory", "alpha": 0.0, "beta": 0.0}),
    "pi-distill-topr": ("pi-distill", {"student_loss": "topr", "alpha": 0.0}),
    "pi-distill-opsd": ("pi-distill", {"variant": "opsd", "entropy_share": 0.5, "beta": 0.5}),
    "pi-distill-opsd-reward": ("pi-distill", {"variant": "opsd", "kl": "reward", "beta": 0.5, "temperature": 1.0}),
}  # fmt: skip
"""A name for each point of the language methods that a law is checked at: (method, options)."""
CASES |= TEACHER_CASES
