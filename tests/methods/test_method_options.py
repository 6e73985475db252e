"""Every option of every language method changes the result: an option that nobody reads fails here (pitfall 65)."""

from __future__ import annotations

import pytest
import torch
from redistill.core.episode import Group
from redistill.core.method import registered
from redistill.core.options import options_of
from redistill.core.task import Verdict
from teacher_options import TEACHER_CHANGES, TEACHER_ELSEWHERE
from turn_options import TURN_CHANGES, TURN_ELSEWHERE, prepared

RIGHTS = [[True, False, False, False], [False, False, False, False], [True, True, True, True]]
"""Three groups: mixed, all failed, all right (the last two are dead)."""
OPD = {"teacher": "frozen", "teacher_view": "with_solution"}
NEVER = {"feedback": "never"}
REVERSE = {"divergence": "reverse_kl"}
WARM = {"temperature": 1.0}
MIXED = {"feedback": "always"}

CHANGES: dict[str, dict[str, tuple[dict[str, object], dict[str, object]]]] = {
    "sft": {"in_context_share": ({}, {"in_context_share": 1.0}), "normaliser": ({}, {"normaliser": "constant(7)"})},
    "rft": {
        "threshold": ({}, {"threshold": 0.0}), "keep": ({"distinct": "false"}, {"keep": 1, "distinct": "false"}),
        "distinct": ({}, {"distinct": "false"}), "normaliser": ({}, {"normaliser": "constant(7)"}),
    },
    "grpo": {
        "std": ({}, {"std": "none"}), "std_epsilon": ({}, {"std_epsilon": 1.0}),
        "clip_low": ({}, {"clip_low": 0.9}), "clip_high": ({}, {"clip_high": 9.0}), "dual_clip": ({}, {"dual_clip": 1.01}),
        "ratio": ({}, {"ratio": "sequence"}), "normaliser": ({}, {"normaliser": "token"}),
        "drop_dead_groups": ({}, {"drop_dead_groups": "true"}), "drop_truncated": ({}, {"drop_truncated": "true"}),
        "kl": ({"drift": 1}, {"kl": 0.5, "drift": 1}), "entropy": ({}, {"entropy": 0.5}),
    },
    "opsd": {
        "divergence": ({}, {"divergence": "jsd(0.5)"}), "clip": ({}, {"clip": "none"}),
        "support": ({}, {"support": "top_k(3, of=teacher, tail=false)"}),
        "teacher": ({"drift": 1}, {"teacher": "live", "drift": 1}), "loss_temperature": ({}, {"loss_temperature": 3.0}),
        "normaliser": ({}, {"normaliser": "sequence"}), "context": ({}, {"context": "wrong"}),
    },
    "opd": {
        "teacher": ({**OPD, "drift": 1}, {**OPD, "teacher": "live", "drift": 1}), "teacher_view": (OPD | {"drift": 1}, {**OPD, "teacher_view": "plain", "drift": 1}),
        "divergence": (OPD, {**OPD, "divergence": "tvd"}), "support": (OPD, {**OPD, "support": "top_k(2)"}),
        "estimator": ({**OPD, "support": "sampled"}, {**OPD, "support": "sampled", "estimator": "k3"}),
        "on_policy": (OPD, {**OPD, "on_policy": 0.0}), "temperature_of_loss": (OPD, {**OPD, "temperature_of_loss": 2.0}),
        "scale_by_temperature": ({**OPD, "temperature_of_loss": 2.0}, {**OPD, "temperature_of_loss": 2.0, "scale_by_temperature": "true"}),
        "normaliser": (OPD, {**OPD, "normaliser": "sequence"}),
    },
    "sdpo": {
        "divergence": ({}, REVERSE), "support": ({}, {"support": "top_k(2)"}), "teacher": ({"drift": 1}, {"teacher": "live", "drift": 1}),
        "threshold": ({}, {"threshold": 0.0}), "solution": ({}, {"solution": "none"}), "own_success": (NEVER, {**NEVER, "own_success": "true"}),
        "feedback": ({}, NEVER), "attempt": ({}, {"attempt": "true"}), "route": ({}, {"route": "failures"}),
        "ratio_cap": ({}, {"ratio_cap": 0.5}), "advantage_clip": (REVERSE, {**REVERSE, "advantage_clip": 0.1}),
        "normaliser": ({}, {"normaliser": "sequence"}), "grpo_weight": ({}, {"grpo_weight": 0.5}),
        "wrong_context": ({}, {"wrong_context": "true"}),
    },
    "srpo": {
        "threshold": ({}, {"threshold": 0.0}), "beta": ({}, {"beta": 0.0}), "route": ({}, {"route": "all"}), "mix": ({}, {"mix": 0.9}),
        "feedback": ({}, {"feedback": "always"}), "divergence": ({}, REVERSE), "support": ({}, {"support": "top_k(2)"}),
        "teacher": ({"drift": 1}, {"teacher": "live", "drift": 1}), "ratio_cap": ({}, {"ratio_cap": 0.5}),
        "std": ({}, {"std": "sample"}), "clip_low": ({"mix": 0.9}, {"mix": 0.9, "clip_low": 0.9}),
        "clip_high": ({}, {"clip_high": 9.0}), "wrong_context": (MIXED, {**MIXED, "wrong_context": "true"}),
    },
    "ssb": {
        "batch": ({}, {"batch": 1}), "kd_weight": ({}, {"kd_weight": 0.5}), "ce_weight": ({}, {"ce_weight": 1.0}),
        "loss_temperature": ({}, {"loss_temperature": 1.0}), "teacher": ({"drift": 1}, {"teacher": "live", "drift": 1}),
        "student_prompt": ({}, {"student_prompt": "raw"}), "end": ({}, {"end": "false"}), "wrong_context": ({}, {"wrong_context": "true"}),
    },
    "sd-zero": {
        "divergence": ({}, {"divergence": "jsd(0.5)"}), "support": ({}, {"support": "top_k(2)"}),
        "teacher": ({"drift": 1}, {"teacher": "live", "drift": 1}), "phrase": ({}, {"phrase": "flipped"}),
        "wrong_context": ({}, {"wrong_context": "true"}),
    },
    "caopd": {
        "revise": ({}, {"revise": "false"}), "note": ({}, {"note": "false"}), "source": ({}, {"source": "agreement"}),
        "shown": ({}, {"shown": "sibling"}), "divergence": ({}, {"divergence": "forward_kl"}), "support": ({}, {"support": "top_k(2)"}),
        "teacher": ({"drift": 1}, {"teacher": "live", "drift": 1}), "skip_first": ({}, {"skip_first": 3}),
        "normaliser": ({}, {"normaliser": "token"}), "wrong_context": ({}, {"wrong_context": "true"}),
    },
    "pi-distill": {
        "alpha": (WARM, {**WARM, "alpha": 0.0}), "alpha_steps": (WARM, {**WARM, "alpha_steps": 9}), "beta": (WARM, {**WARM, "beta": 1.0}),
        "variant": (WARM, {**WARM, "variant": "opsd"}), "kl": (WARM, {**WARM, "kl": "pathwise"}),
        "privilege": ({**WARM, "variant": "opsd"}, {**WARM, "variant": "opsd", "privilege": "with_hint"}),
        "ratio": (WARM, {**WARM, "ratio": "trajectory"}), "student_loss": (WARM, {**WARM, "student_loss": "topr"}),
        "entropy_share": ({**WARM, "variant": "opsd"}, {**WARM, "variant": "opsd", "entropy_share": 0.0}),
        "clip_low": (WARM, {**WARM, "clip_low": 0.9}), "clip_high": (WARM, {**WARM, "clip_high": 9.0}),
        "drop_dead_groups": ({**WARM, "beta": 0}, {**WARM, "beta": 0, "drop_dead_groups": "false"}),
        "normaliser": (WARM, {**WARM, "normaliser": "sequence"}),
        "wrong_context": ({**WARM, "variant": "opsd"}, {**WARM, "variant": "opsd", "wrong_context": "true"}),
    },
}  # fmt: skip
CHANGES |= TEACHER_CHANGES | TURN_CHANGES

GATHERED = {"ssb"}
"""Methods that train on a store."""
ELSEWHERE = {"sdpo": {"test_time", "question"}, "ssb": {"pairs", "gather_steps", "reply_temperature"},
    "pi-distill": {"leak_penalty"},
    "sd-zero": {
        "phases", "gather_steps", "revisions", "gather_temperature", "filtered", "balance", "srt_steps", "srt_batch", "parts",
    },
}  # fmt: skip
"""Options that change what is collected or which stages there are, with tests of their own (test_<slug>.py)."""
ELSEWHERE |= {
    "teacher-hacking": {
        "teacher", "oracle", "prompts", "answers", "stored_by", "fresh", "fresh_by", "divergence", "normaliser",
    },
    "rl-vs-distillation": {"writer", "questions", "tries", "writes", "size", "gather_steps", "normaliser"},
}  # fmt: skip
ELSEWHERE |= TEACHER_ELSEWHERE | TURN_ELSEWHERE


def outcome(bench, slug: str, given: dict[str, object]) -> torch.Tensor:
    """The gradient that a method asks for on fixed judged groups (or on what it collects), with behaviour log-probs off
    by up to 1 so that ratios and clips act, and the student drifted from its copies where `drift` says so."""
    given = dict(given)
    drift, update, tags = given.pop("drift", 0), given.pop("update", 0), given.pop("tags", None)
    rights, malformed = given.pop("rights", RIGHTS), given.pop("malformed", [])
    b = bench(slug, **{"lora_alpha": "none", **given})
    b.stage_step, b.tags = update, tags
    if drift:
        generator = torch.Generator().manual_seed(0)
        for p in b.domain.players["student"].parameters.values():
            p.data.add_(0.02 * torch.randn(p.shape, generator=generator))
    collects = slug == "sft" or "on_policy" in given
    if slug in GATHERED:  # a store is made first, from hand-made rollouts
        rollouts = b.groups(
            [[True, False, False, False], [False, True, False, False], [True, True, False, False]], alike=True
        )
        b.domain.rollout = lambda prompts, **_: rollouts
        b.method.stages()[0].method.collect(b)
        collects = True
    groups = b.method.collect(b) if collects else b.groups(rights)
    if slug == "pi-distill" and given.get("variant") != "opsd":  # as if sampled with the information in view
        view, seen = b.method.privilege, b.method.evidence([group.prompt for group in groups])
        contexts = [b.domain.render(view, group.prompt, evidence) for group, evidence in zip(groups, seen)]
        groups = [Group(g.prompt, [e.trained_as(context, view) for e in g]) for g, context in zip(groups, contexts)]
    for g, i in malformed:
        object.__setattr__(groups[g].episodes[i], "verdict", Verdict(0.0, feedback="!n", format_ok=False))
    groups = prepared(b, slug, groups)
    for i, episode in enumerate(e for group in groups for e in group):
        if episode.behaviour_logp_T is not None:
            logp_T = episode.behaviour_logp_T
            # not the same for every token, or a token's ratio would be its sequence's
            object.__setattr__(
                episode, "behaviour_logp_T", logp_T + (-1, 1)[i % 2] * torch.linspace(0.2, 1.0, len(logp_T))
            )
        if i % 4 == 1:
            object.__setattr__(episode, "finish", "length")
    return b.gradient(groups)


CASES = [(slug, name) for slug, options in CHANGES.items() for name in options]


@pytest.mark.parametrize(("slug", "name"), CASES)
def test_option_changes_the_gradient(bench, slug, name):
    base, changed = CHANGES[slug][name]
    one, other = outcome(bench, slug, base), outcome(bench, slug, changed)
    assert float((one - other).abs().max()) > 1e-4 * float(one.abs().max())


def test_every_option_of_every_language_method_is_in_the_table():
    import redistill.methods  # noqa: F401

    for slug, cls in registered().items():
        if cls.domain == "text":
            assert set(CHANGES.get(slug, {})) | ELSEWHERE.get(slug, set()) == set(options_of(cls)), slug
