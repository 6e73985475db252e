"""Law 4: loss and gradient of every method agree with a reference that shares no code with the library.

The reference loops over rows: one unpadded forward of the transformers model each, a whole log_softmax, the formula of
the paper, autograd. It knows rewards, ids and spans of the episodes, and the options; no term, mask or packing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lab import CASES, DIVERGENCES, Lab, assert_same, flat_gradient, normal, tiny_model
from redistill.core.specs import DivergenceKind, Normaliser
from redistill.text.splice import row_of
from torch import Tensor
from torch.func import functional_call

Loss = Callable[[Lab, list[Any]], Tensor]


# --- what a row looks like to a model ---
def steps_of(row: Any) -> list[int]:
    return [t for low, high in row.trajectory.spans for t in range(low, high)]


def logits_at(model: Any, context: Any, row: Any, weights: dict[str, Tensor] | None = None) -> Tensor:
    """Logits [steps, V] that predict the steps of a row read under a context, by given weights or the model's."""
    ids = torch.tensor([[*context, *row.trajectory.ids]])
    output = functional_call(model, weights or {}, (), {"input_ids": ids})
    return output.logits[0][[len(context) - 1 + t for t in steps_of(row)]]


def taken(logp: Tensor, row: Any) -> Tensor:
    ids = torch.tensor([row.trajectory.ids[t] for t in steps_of(row)], dtype=torch.int64)
    return logp.gather(-1, ids[:, None])[:, 0]


def teacher_logp(lab: Lab, context: Any, row: Any, temperature: float) -> Tensor:
    """Log-probs [steps, V] of the method's teacher."""
    spec, module, copies = lab.method.teacher, lab.domain.lm.module, lab.domain.bank.copies
    if spec.name == "checkpoint":
        with torch.no_grad():
            return (logits_at(tiny_model(seed=7).module, context, row) / temperature).log_softmax(-1)
    with torch.no_grad():
        live = logits_at(module, context, row)
    if spec.name == "live":
        return (live / temperature).log_softmax(-1)
    (copy,) = copies.values()
    with torch.no_grad():
        other = logits_at(module, context, row, copy)
    if spec.name == "trust_region":
        mixed = (1 - spec.rate) * other.log_softmax(-1) + spec.rate * live.log_softmax(-1)
        return (mixed / temperature).log_softmax(-1)
    return (other / temperature).log_softmax(-1)


def shown(lab: Lab, prompt: Any, **sections: str | None) -> Any:
    """Ids of the prompt with sections after the question, as the terse wording writes them; None without any."""
    letters = {"solution": "S", "feedback": "F", "attempt": "A"}
    tail = "".join(letters[name] + text for name, text in sections.items() if text is not None)
    if not any(sections.get(name) for name in ("solution", "feedback")):
        return None
    question = prompt.content[-1]["content"]
    return lab.domain.lm.tokenizer.encode(f"<s><u>{question}{tail}<a>", add_special_tokens=False)


# --- formulas ---
def divergence(kind: str, beta: float | None, log_p: Tensor, log_q: Tensor, clip: float | None = None) -> Tensor:
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward_kl":
        each = p * (log_p - log_q)
    elif kind == "reverse_kl":
        each = q * (log_q - log_p)
    elif kind == "jsd":
        m = beta * p + (1 - beta) * q
        each = beta * p * (log_p - m.log()) + (1 - beta) * q * (log_q - m.log())
    elif kind == "tvd":
        each = 0.5 * (p - q).abs()
    elif kind == "skew_forward_kl":
        each = p * (log_p - (beta * p + (1 - beta) * q).log())
    elif kind == "squared_hellinger":
        each = (p.sqrt() - q.sqrt()) ** 2
    elif kind == "pearson":
        each = (p - q) ** 2 / q
    elif kind == "neyman":
        each = (p - q) ** 2 / p
    elif kind == "jeffreys":
        each = (p - q) * (log_p - log_q)
    elif kind == "f":  # the lab's: the forward KL of masses
        each = p * (log_p - log_q) - p + q
    else:
        each = q * (log_q - ((1 - beta) * p + beta * q).log())
    return (each if clip is None else each.clamp(max=clip)).sum(-1)


def narrowed(support: Any, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    if support.name == "full":
        return log_p, log_q
    order = (log_q if support.of == "student" else log_p).detach().argsort(-1, descending=True)[:, : support.k]
    log_p, log_q = log_p.gather(-1, order), log_q.gather(-1, order)
    if not support.tail:
        return log_p - log_p.logsumexp(-1, keepdim=True), log_q - log_q.logsumexp(-1, keepdim=True)
    rest = [(1 - each.exp().sum(-1, keepdim=True)).log() for each in (log_p, log_q)]
    return torch.cat([log_p, rest[0]], -1), torch.cat([log_q, rest[1]], -1)


def sampled(name: str, log_q: Tensor, log_p: Tensor) -> Tensor:
    gap = log_q - log_p
    return {
        "k1": lambda: gap, "k2": lambda: gap**2 / 2, "k3": lambda: (-gap).exp() - 1 + gap,
        "policy_gradient": lambda: gap.detach() * log_q,
    }[name]()  # fmt: skip


def reduced(spec: Any, losses: list[Tensor], covered: list[bool]) -> Tensor:
    """The normaliser by its words, over rows that a term covers whole or not at all."""
    every = spec.rows == "all"
    kept = [loss for loss, yes in zip(losses, covered) if yes and len(loss)]
    whole = sum((loss.sum() for loss in kept), torch.zeros((), dtype=torch.float64))
    if spec.name == "constant":
        return whole / spec.n
    if spec.name == "token":
        return whole / sum(len(loss) for loss in (losses if every else kept))
    means = sum((loss.mean() for loss in kept), torch.zeros((), dtype=torch.float64))
    return means / (len(losses) if every else len(kept))


# --- the methods ---
def likelihood(lab: Lab, groups: list[Any]) -> Tensor:
    rows = [row for group in groups for row in group]
    if lab.slug == "rft":
        rows = []
        for group in groups:
            texts: list[str] = []
            for row in group:
                if row.reward >= 1 and row.text not in texts:
                    texts.append(row.text)
                    rows.append(row)
    losses = [-taken(logits_at(lab.domain.lm.module, row.context, row).log_softmax(-1), row) for row in rows]
    return reduced(lab.method.normaliser, losses, [True] * len(rows))


def grpo(lab: Lab, groups: list[Any], **changed: Any) -> Tensor:
    options = {**vars(lab.method), **changed}
    losses, covered, entropies, kls = [], [], [], []
    for group in groups:
        rewards = [row.reward for row in group]
        mean = sum(rewards) / len(rewards)
        degrees = {"none": None, "population": 0, "sample": 1}[options["std"]]
        for row in group:
            advantage = row.reward - mean
            if degrees is not None:
                spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - degrees))
                advantage = advantage / (spread + options["std_epsilon"]) if spread else 0.0
            logits = logits_at(lab.domain.lm.module, row.context, row) / row.sampling.temperature
            logp = logits.log_softmax(-1)
            ratio = (taken(logp, row) - row.behaviour_logp_T.double()).exp()
            if options["ratio"] == "sequence" and len(ratio):
                ratio = ratio.log().mean().exp().expand(len(ratio))
            clipped = ratio.clamp(1 - options["clip_low"], 1 + options["clip_high"])
            value = torch.minimum(ratio * advantage, clipped * advantage)
            if options["dual_clip"] is not None and advantage < 0:
                value = value.clamp(min=options["dual_clip"] * advantage)
            losses.append(-value)
            dead = options["drop_dead_groups"] and len(set(rewards)) == 1
            covered.append(not dead and not (options["drop_truncated"] and row.finish == "length"))
            entropies.append((logp.exp() * logp).sum(-1))
            if options["kl"]:
                (initial,) = lab.domain.bank.copies.values()
                with torch.no_grad():
                    was = logits_at(lab.domain.lm.module, row.context, row, initial) / row.sampling.temperature
                was = was.log_softmax(-1)
                kls.append(sampled("k3", taken(logp, row), taken(was, row)))
    every = [True] * len(losses)
    total = reduced(options["normaliser"], losses, covered)
    if options["kl"]:
        total = total + options["kl"] * reduced(options["normaliser"], kls, every)
    return total + options["entropy"] * reduced(options["normaliser"], entropies, every)


def taught(lab: Lab, rows: list[Any], contexts: list[Any], temperature: float, **more: Any) -> Tensor:
    """The divergence term over rows with their teachers' contexts."""
    method, losses = lab.method, []
    for row, context in zip(rows, contexts):
        own = logits_at(lab.domain.lm.module, row.context, row)
        if context is None:
            losses.append(torch.zeros(len(own), dtype=torch.float64))
            continue
        if method.support.name == "sampled":
            # The sampled token is compared under the temperature that it was drawn at.
            warm = row.sampling.temperature if row.sampling is not None else 1.0
            log_q, log_p = (own / warm).log_softmax(-1), teacher_logp(lab, context, row, warm)
            name = getattr(method, "estimator", "policy_gradient")
            loss = sampled(name, taken(log_q, row), taken(log_p, row))
        else:
            log_q, log_p = (own / temperature).log_softmax(-1), teacher_logp(lab, context, row, temperature)
            bound = more.get("advantage_clip")
            if bound is not None:
                log_p = log_q.detach() + (log_p - log_q.detach()).clamp(-bound, bound)
            kind: DivergenceKind = method.divergence
            loss = divergence(kind.name, kind.beta, *narrowed(method.support, log_p, log_q), clip=more.get("clip"))
        if "ratio_cap" in more:
            ratio = (taken(own.log_softmax(-1), row).detach() - row.behaviour_logp_T.double()).exp()
            loss = loss * ratio.clamp(max=more["ratio_cap"])
        losses.append(loss)
    return reduced(method.normaliser, losses, [context is not None for context in contexts])


def opd(lab: Lab, groups: list[Any]) -> Tensor:
    rows, method = [row for group in groups for row in group], lab.method
    if method.teacher_view == "plain":
        contexts = [row.context for row in rows]
    else:
        contexts = [shown(lab, row.prompt, solution=row.prompt.solution) for row in rows]
    warm = method.temperature_of_loss
    return taught(lab, rows, contexts, warm) * (warm**2 if method.scale_by_temperature else 1.0)


def hacking(lab: Lab, groups: list[Any]) -> Tensor:
    """All outcomes, temperature 1, the student's own context."""
    rows, method, losses = [row for group in groups for row in group], lab.method, []
    for row in rows:
        log_q = logits_at(lab.domain.lm.module, row.context, row).log_softmax(-1)
        log_p = teacher_logp(lab, row.context, row, 1.0)
        losses.append(divergence(method.divergence.name, method.divergence.beta, log_p, log_q))
    return reduced(method.normaliser, losses, [True] * len(rows))


def opsd(lab: Lab, groups: list[Any]) -> Tensor:
    rows, method = [row for group in groups for row in group], lab.method
    contexts = [shown(lab, row.prompt, solution=row.prompt.solution) for row in rows]
    return taught(lab, rows, contexts, method.loss_temperature or lab.config.temperature, clip=method.clip)


def sdpo(lab: Lab, groups: list[Any]) -> Tensor:
    method, rows, contexts = lab.method, [], []
    for group in groups:
        for row in group:
            rows.append(row)
            others = [other.text for other in group if other is not row and other.reward >= method.threshold]
            solution = group.prompt.solution if method.solution == "reference" else (others or [None])[0]
            feedback = row.verdict.feedback
            if method.feedback == "without_solution" and solution is not None:
                feedback = None
            failed = row.reward < method.threshold
            attempt = row.text if method.attempt and failed else None
            context = shown(lab, group.prompt, attempt=attempt, solution=solution, feedback=feedback)
            contexts.append(None if method.route == "failures" and not failed else context)
    distilled = taught(lab, rows, contexts, 1.0, ratio_cap=method.ratio_cap, advantage_clip=method.advantage_clip)
    if not method.grpo_weight:
        return distilled
    from redistill.methods.grpo import GRPO

    settings = {**vars(GRPO()), "std": "none", "clip_high": 0.28, "normaliser": method.normaliser}
    return (1 - method.grpo_weight) * distilled + method.grpo_weight * grpo(lab, groups, **settings)


def srpo(lab: Lab, groups: list[Any]) -> Tensor:
    """Token by token: which branch, its loss, its weight; then one division by all tokens."""
    method, model = lab.method, lab.domain.lm.module
    reinforced, distilled, entropies, steps = [], [], [], 0
    for group in groups:
        rewards = [row.reward for row in group]
        mean = sum(rewards) / len(rewards)
        spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
        for row in group:
            steps += row.steps
            scale = spread + 1e-6 if method.std == "sample" else 1.0
            advantage = torch.full((row.steps,), (row.reward - mean) / scale if spread else 0.0, dtype=torch.float64)
            others = [other.text for other in group if other is not row and other.reward >= 0.5]
            feedback = row.verdict.feedback if method.feedback == "always" else None
            context = shown(lab, group.prompt, solution=(others or [None])[0], feedback=feedback)
            if method.mix is None and (row.reward < 0.5) != (method.route == "failures"):
                context = None
            log_q = logits_at(model, row.context, row).log_softmax(-1)
            ratio = (taken(log_q, row) - row.behaviour_logp_T.double()).exp()
            if context is not None:
                log_p = teacher_logp(lab, context, row, 1.0)
            if context is not None and method.mix is None:
                kind = method.divergence
                loss = divergence(kind.name, kind.beta, *narrowed(method.support, log_p, log_q))
                distilled.append(loss * ratio.detach().clamp(max=method.ratio_cap))
                entropies.append(-(log_p.exp() * log_p).sum(-1))
                continue
            if method.mix is not None:
                gap = (taken(log_p, row) - taken(log_q, row)).detach() if context is not None else 0.0
                advantage = method.mix * advantage + (1 - method.mix) * gap
            clipped = ratio.clamp(1 - method.clip_low, 1 + method.clip_high)
            reinforced.append(-torch.minimum(ratio * advantage, clipped * advantage))
    total = sum((loss.sum() for loss in reinforced), torch.zeros((), dtype=torch.float64))
    if distilled:
        weight = (-method.beta * torch.cat(entropies)).exp()
        total = total + (torch.cat(distilled) * weight / weight.mean()).sum()
    return total / steps


def ssb(lab: Lab, groups: list[Any]) -> Tensor:
    """T^2 KL of softened logits, and the likelihood, over replies that were read under another prompt."""
    method, model = lab.method, lab.domain.lm.module
    letters = lab.domain.lm.tokenizer
    distances, nlls, warm = [], [], method.loss_temperature
    for group in groups:
        for row in group:
            question = row.prompt.content[-1]["content"]
            hinted = letters.encode(f"<s><u>{question}A{row.text}S{row.prompt.solution}<a>", add_special_tokens=False)
            bare = question if method.student_prompt == "raw" else f"<s><u>{question}<a>"
            own = logits_at(model, letters.encode(bare, add_special_tokens=False), row)
            log_p = teacher_logp(lab, hinted, row, warm)
            log_q = (own / warm).log_softmax(-1)
            distances.append((log_p.exp() * (log_p - log_q)).sum(-1))
            nlls.append(-taken(own.log_softmax(-1), row))
    mean = [torch.cat(each).mean() for each in (distances, nlls)]
    return method.kd_weight * warm**2 * mean[0] + method.ce_weight * mean[1]


def sd_zero(lab: Lab, groups: list[Any]) -> Tensor:
    """Phase 1: the likelihood of both rows of a trace; phase 2: a divergence from who has read the answer and the phrase."""
    rows = [row for group in groups for row in group]
    model = lab.domain.lm.module
    if hasattr(lab.method, "of"):
        losses = []
        for group in groups:
            (index,) = {row.key[0] for row in group}
            kept = lab.method.of.store.records[index]
            before = [*kept["attempt_ids"], *kept["phrase_ids"]]
            ids = torch.tensor([[*kept["context_ids"], *before, *kept["revision_ids"]]])
            start, after = len(kept["context_ids"]), len(before)
            logp = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[start - 1 :, 0]
            losses += [-logp, -logp[after:]]
        return torch.cat(losses).mean()
    contexts = []
    for row in rows:
        ids = list(row.trajectory.ids)
        ids = ids[:-1] if ids and ids[-1] == lab.domain.lm.eos_ids[0] else ids
        right = (row.reward == 1) != (lab.method.phrase == "flipped")
        contexts.append(
            [*row.context, *ids, *lab.domain.lm.tokenizer.encode(";" if right else "!", add_special_tokens=False)]
        )
    lab.method.__dict__["normaliser"] = Normaliser("token")
    return taught(lab, rows, contexts, 1.0)


def caopd(lab: Lab, groups: list[Any]) -> Tensor:
    """A divergence over answers whose confidence is the group's success rate; the teacher reads a demonstration that says so."""
    method, letters, model = lab.method, lab.domain.lm.tokenizer, lab.domain.lm.module
    losses, covered = [], []
    for group in groups:
        mu = f"{sum(row.reward for row in group) / len(group):.2f}"
        for row in group:
            solution = (group.prompt.solution or "").partition("C")
            shown_text = solution[0] + "C" + (mu if method.revise else solution[2])
            if method.shown == "sibling":
                others = [other.text for other in group if other is not row and other.reward == 1]
                shown_text = f"{others[0].partition('C')[0]}C{mu}" if others else ""
            note = f"H{mu}" if method.note and method.revise else ""
            context = f"<s><u>{group.prompt.content[-1]['content']}S{shown_text}{note}<a>"
            context = letters.encode(context, add_special_tokens=False)
            if method.revise:
                ids = letters.encode(f"{row.text.partition('C')[0]}C{mu}</s>", add_special_tokens=False)
                row = row_of(row.prompt, row.context, tuple(ids), "plain")
            log_q = logits_at(model, row.context, row).log_softmax(-1)
            log_p = teacher_logp(lab, context, row, 1.0)
            loss = divergence(method.divergence.name, None, *narrowed(method.support, log_p, log_q))
            losses.append(loss[method.skip_first :])
            covered.append(shown_text != "")
    return reduced(method.normaliser, losses, covered)


def pi_distill(lab: Lab, groups: list[Any]) -> Tensor:
    """Every answer read with and without the information: a shared advantage, a surrogate for each, KLs where they stand."""
    method, letters, model = lab.method, lab.domain.lm.tokenizer, lab.domain.lm.module
    opsd = method.variant == "opsd"
    parts: dict[str, list[Tensor]] = {
        name: [] for name in ("teacher", "student", "teacher_kl", "student_kl", "entropy")
    }
    alive = []
    for group in groups:
        question = group.prompt.content[-1]["content"]
        extra = "H" + group.prompt.data["hint"] if method.privilege == "with_hint" else f"S{group.prompt.solution}"
        views = [letters.encode(f"<s><u>{question}{x}<a>", add_special_tokens=False) for x in (extra, "")]
        read = [[logits_at(model, context, row) for context in views] for row in group]
        logps = [[logits.log_softmax(-1) for logits in pair] for pair in read]
        kls = []
        for pair in logps:
            first, second = (pair[1], pair[0]) if opsd else pair  # who sampled against the other
            kls.append(float((first.exp() * (first - second)).sum().detach()))
        in_reward = method.kl == "reward" or (method.kl == "own" and not opsd)
        shaped = [row.reward - (method.beta * kl if in_reward else 0.0) for row, kl in zip(group, kls)]
        mean = sum(shaped) / len(shaped)
        alive += [len(set(shaped)) > 1 or not method.drop_dead_groups] * len(shaped)
        for row, pair, logits, value in zip(group, logps, read, shaped):
            told, plain = pair
            for name, own in (("teacher", 0), ("student", 1)):
                warm = (logits[own] / row.sampling.temperature).log_softmax(-1)
                gap = taken(warm, row) - row.behaviour_logp_T.double()
                if method.ratio == "trajectory":
                    gap = gap.sum().expand(len(gap))
                ratio, advantage = gap.exp(), value - mean
                if name == "student" and method.student_loss == "topr":
                    factor = 1.0 if advantage > 0 else ratio.detach().clamp(0.8, 1.2)
                    parts[name].append(-advantage * factor * taken(warm, row))
                else:
                    parts[name].append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
            parts["teacher_kl"].append((told.exp() * (told - plain.detach())).sum(-1))
            toward = plain.exp() * (plain - told.detach()) if opsd else told.detach().exp() * (told.detach() - plain)
            parts["student_kl"].append(toward.sum(-1))
            warm = (logits[1] / row.sampling.temperature).log_softmax(-1)
            parts["entropy"].append(-(warm.exp() * warm).sum(-1))
    every = [True] * len(alive)
    whole = {
        n: reduced(method.normaliser, v, alive if n in ("teacher", "student") else every) for n, v in parts.items()
    }
    share = 0.0 if opsd else method.alpha
    total = share * whole["teacher"] + (1 - share) * whole["student"]
    if not in_reward:
        total = total + method.beta * (share * whole["teacher_kl"] + (1 - share) * whole["student_kl"])
        if opsd:
            total = total + method.beta * (1 - method.entropy_share) * whole["entropy"]
    return total


REFERENCES: dict[str, Loss] = {
    "sft": likelihood, "rft": likelihood, "grpo": grpo, "opd": opd, "opsd": opsd, "sdpo": sdpo, "srpo": srpo, "ssb": ssb,
    "sd-zero": sd_zero, "caopd": caopd, "pi-distill": pi_distill,
    "teacher-hacking": hacking, "rl-vs-distillation": likelihood,
}  # fmt: skip


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] in REFERENCES])
def test_law_4_loss_and_gradient_agree_with_the_reference(case: str) -> None:
    slug, options = CASES[case]
    lab = Lab(slug, **options)
    lab.shake_teachers()
    groups = lab.collected()
    found = lab.gradient(lab.signal(groups))
    player = lab.domain.players["student"]
    for p in player.parameters.values():
        p.grad = None
    loss = REFERENCES[slug](lab, groups)
    loss.backward()
    assert_same(found, (float(loss.detach()), flat_gradient(player.parameters.values())))


STRAIGHT = [
    "sft", "grpo-sequence-ratio", "grpo-kl-entropy", "opd-jsd(0.5)", "opd-forward_kl-1", "opd-sampled-k3", "opsd-jsd",
]  # fmt: skip


@pytest.mark.parametrize("case", STRAIGHT)
def test_law_4_gradient_is_the_slope_of_the_loss(case: str) -> None:
    """Finite differences along two random directions, for the cases in which nothing is detached."""
    slug, options = CASES[case]
    lab = Lab(slug, **options)
    lab.shake_teachers()
    if getattr(lab.method, "teacher", None) is not None and lab.method.teacher.name == "live":
        lab = Lab(slug, **{**options, "teacher": "frozen"})  # a live teacher would move along
    signal = lab.signal(lab.collected())
    _, gradient = lab.gradient(signal)
    parameters = list(lab.domain.players["student"].parameters.values())
    sizes = [p.numel() for p in parameters]
    for direction in range(2):
        along = torch.as_tensor(normal("direction", direction, range(sum(sizes))))
        along = along / along.norm()
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                for p, piece in zip(parameters, along.split(sizes)):
                    p.add_(step * piece.view_as(p))
            values.append(lab.gradient(signal)[0])
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float(gradient @ along), rel=1e-4, abs=1e-6)
        with torch.no_grad():
            for p, piece in zip(parameters, along.split(sizes)):
                p.add_(1e-5 * piece.view_as(p))


def test_the_cases_cover_every_divergence() -> None:
    from redistill.core.specs import DIVERGENCES as KINDS

    assert {kind.split("(")[0] for kind in DIVERGENCES} == set(KINDS)
