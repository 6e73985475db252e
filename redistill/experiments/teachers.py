"""The methods with an external teacher, on pocket: each against the baselines of its paper and its main ablation.

Teachers (scripts/train_pocket_expert.py): `pocket-adept` is right on 56% of sums, `pocket-expert` on all, `pocket-pairs` on all
sums of two terms and on none of three.
"""

from __future__ import annotations

from typing import Any

from redistill.experiments.base import Arm, Experiment

ADEPT = {"teacher": "checkpoint(pocket-adept)"}
EXPERT = {"teacher": "checkpoint(pocket-expert)"}
PAIRS = {"teacher": "checkpoint(pocket-pairs)"}
BASE: dict[str, Any] = {
    "model": "pocket", "task": "sums", "steps": 50, "prompts_per_step": 8, "group_size": 8, "max_new_tokens": 16,
    "eval_prompts": 200, "eval_samples": 4, "eval_every": 25, "save_model": "false", "save_every": 1000,
}  # fmt: skip
GRID = {"learning_rate": [3e-5, 1e-4, 3e-4]}
QUICK = {"steps": 6, "eval_prompts": 40, "eval_samples": 2, "eval_every": 0}
TUNING = {"steps": 30, "eval_every": 0}
GRPO = Arm("grpo", {"normaliser": "token"})
CONSTANT = {"beta": 0.2, "beta_min": 0.2, "beta_decay": 0.0}

KDRL_POCKET = Experiment(
    slug="kdrl",
    claim="with a teacher that is right 56% of the time, KDRL (k2, constant beta) ends at or above pure distillation and GRPO in held-out avg@4 at equal rollouts",
    metric="avg_at_k",
    base={**BASE, "steps": 120, "eval_every": 40},
    arms={
        "grpo": GRPO,
        "kd-rkl": Arm("kdrl", {**ADEPT, "reward": 0.0, "beta": 1.0, "beta_min": 1.0, "beta_decay": 0.0}),
        "kdrl": Arm("kdrl", {**ADEPT, **CONSTANT}),
        "kdrl k3": Arm("kdrl", {**ADEPT, **CONSTANT, "estimator": "k3"}, tuned_as="kdrl"),
        "kdrl response mask": Arm("kdrl", {**ADEPT, **CONSTANT, "mask": "response"}, tuned_as="kdrl"),
    },
    compare=("kdrl", "kd-rkl"),
    controls={
        "kdrl against grpo": ("kdrl", "grpo"),
        "k2 against k3": ("kdrl", "kdrl k3"),
        "no mask against the response mask": ("kdrl", "kdrl response mask"),
    },
    grid=GRID, quick=QUICK, tuning=TUNING,
    budget="120 steps of 64 rollouts for each arm (7,680 generations)",
)  # fmt: skip

RLAD_POCKET = Experiment(
    slug="rlad",
    claim="RLAD (alpha 0.5, an expert in the ratio) ends above GRPO in held-out avg@4 at equal rollouts, and loses less than KDRL to a bad teacher",
    metric="avg_at_k",
    base=BASE,
    arms={
        "grpo": Arm("grpo", {"std": "population", "clip_high": 0.28}),
        "rlad": Arm("rlad", EXPERT),
        "kdrl": Arm("kdrl", {**EXPERT, **CONSTANT}),
        "rlad bad teacher": Arm("rlad", PAIRS, tuned_as="rlad"),
        "kdrl bad teacher": Arm("kdrl", {**PAIRS, **CONSTANT}, tuned_as="kdrl"),
    },
    compare=("rlad", "grpo"),
    controls={
        "rlad against kdrl": ("rlad", "kdrl"),
        "with a bad teacher: rlad against kdrl": ("rlad bad teacher", "kdrl bad teacher"),
        "with a bad teacher: rlad against grpo": ("rlad bad teacher", "grpo"),
    },
    grid=GRID, quick=QUICK, tuning=TUNING,
    budget="50 steps of 64 rollouts for each arm (3,200 generations)",
)  # fmt: skip

GOPD_POCKET = Experiment(
    slug="g-opd",
    claim="distilling the student's own RL'd version back into it, ExOPD (lam 1.25) ends above OPD (lam 1) in held-out avg@4",
    metric="avg_at_k",
    base={**BASE, "steps": 150, "eval_every": 50, "prompts_per_step": 64, "group_size": 1},
    arms={
        "exopd 1.25": Arm("g-opd", ADEPT),
        "opd": Arm("g-opd", {**ADEPT, "scale": 1.0}),
        "lam 0.5": Arm("g-opd", {**ADEPT, "scale": 0.5}, tuned_as="opd"),
        "lam 2": Arm("g-opd", {**ADEPT, "scale": 2.0}, tuned_as="exopd 1.25"),
    },
    compare=("exopd 1.25", "opd"),
    controls={"lam 1 against 0.5": ("opd", "lam 0.5"), "lam 2 against 1.25": ("lam 2", "exopd 1.25")},
    grid={"learning_rate": [1e-4, 3e-4, 1e-3]}, quick=QUICK, tuning=TUNING,
    budget="150 steps of 64 prompts, one rollout each (9,600 generations)",
)  # fmt: skip

GOPD_MERGE = Experiment(
    slug="g-opd",
    claim="two experts of different sums merged by domain tags: ExOPD (lam 1.25) ends above OPD in the accuracy of the worse domain",
    metric="accuracy_min",
    base={
        **BASE, "model": "pocket-adept", "task": 'mix:first="sums:terms=3,digits=2",second="sums:terms=2,digits=2"',
        "prompts_per_step": 64, "group_size": 1, "utility": "false",
    },
    arms={
        "exopd merged": Arm("g-opd", {"experts": "first=checkpoint(pocket-expert) + second=checkpoint(pocket-pairs)"}),
        "opd merged": Arm("g-opd", {"experts": "first=checkpoint(pocket-expert) + second=checkpoint(pocket-pairs)", "scale": 1.0}),
        "one expert": Arm("g-opd", {**EXPERT, "scale": 1.0}, tuned_as="opd merged"),
        "sft": Arm("sft", {}),
    },
    compare=("exopd merged", "opd merged"),
    controls={"merged against one expert": ("opd merged", "one expert"), "merged against sft": ("opd merged", "sft")},
    grid={"learning_rate": [1e-4, 3e-4, 1e-3]}, quick=QUICK, tuning=TUNING,
    budget="50 steps of 64 prompts, one rollout (or solution) each",
)  # fmt: skip

PACED_POCKET = Experiment(
    slug="paced",
    claim="PACED (p(1-p), forward KL on an expert's answers) ends above the unweighted loss in held-out avg@4, and forgets less of how to use a solution",
    metric="avg_at_k",
    base={**BASE, "minibatches": 1},
    arms={
        "uniform": Arm("paced", {**EXPERT, "a": 0.0, "b": 0.0}),
        "paced": Arm("paced", EXPERT),
        "hard filter": Arm("paced", {**EXPERT, "weighting": "filter"}),
        "reversed": Arm("paced", {**EXPERT, "weighting": "reversed"}, tuned_as="paced"),
    },
    compare=("paced", "uniform"),
    controls={"paced against the hard filter": ("paced", "hard filter"), "paced against reversed weights": ("paced", "reversed")},
    grid=GRID, quick=QUICK, tuning=TUNING,
    budget="50 steps of 8 prompts: 64 rollouts for pass rates and 8 answers of the expert's for each arm",
)  # fmt: skip

SCOPE_RUN = {**EXPERT, "temperature": 1.0, "weight_decay": 0.0}
SCOPE_POCKET = Experiment(
    slug="scope",
    claim="SCOPE (right answers imitated, wrong ones distilled, weighted by perplexity) ends at or above OPD and above GRPO in held-out avg@4 at equal rollouts",
    metric="avg_at_k",
    base=BASE,
    arms={
        "grpo": GRPO,
        "opd": Arm("scope", {**SCOPE_RUN, "route": "false", "teacher_weight": "none"}),
        "scope": Arm("scope", SCOPE_RUN),
        "scope unweighted": Arm("scope", {**SCOPE_RUN, "student_weight": "none", "teacher_weight": "none"}, tuned_as="scope"),
        "scope student reversed": Arm("scope", {**SCOPE_RUN, "student_weight": "low"}, tuned_as="scope"),
    },
    compare=("scope", "opd"),
    controls={
        "scope against grpo": ("scope", "grpo"),
        "weights against none": ("scope", "scope unweighted"),
        "Eq. 4's student weight against the released one": ("scope", "scope student reversed"),
    },
    grid=GRID, quick=QUICK, tuning=TUNING,
    budget="50 steps of 64 rollouts for each arm (3,200 generations)",
)  # fmt: skip

KEPO_RUN = {**PAIRS, "writer_view": "plain", "attempts": 2, "temperature": 1.0, "top_p": 1.0}
KEPO_POCKET = Experiment(
    slug="kepo",
    claim="on sums that pocket fails (1%), KEPO leaves the learning cliff where GRPO stays on it, with fewer generations",
    metric="avg_at_k",
    base={**BASE, "task": "sums:terms=2,digits=2"},
    arms={
        "grpo": Arm("grpo", {"group_size": 14}),
        "kdpo (gate only)": Arm("kepo", {**KEPO_RUN, "trigger": "never", "group_size": 14}),
        "kepo": Arm("kepo", KEPO_RUN),
        "gkd": Arm("opd", {**PAIRS, "divergence": "jsd(0.5)", "group_size": 14}),
    },
    compare=("kepo", "grpo"),
    controls={"kepo against the gate alone": ("kepo", "kdpo (gate only)"), "kepo against ungated distillation": ("kepo", "gkd")},
    grid=GRID, quick=QUICK, tuning=TUNING,
    budget="50 steps of 8 prompts: 112 rollouts a step for the baselines; for kepo 64, and a hint and at most 4 hinted answers for each failed prompt (104)",
)  # fmt: skip

TSDKD_POCKET = Experiment(
    slug="tsd-kd",
    claim="TSD-KD (gate, ranking in the opener, entropy minimisation) ends above GKD with JSD(0.9) in held-out avg@4 at equal rollouts",
    metric="avg_at_k",
    base={**BASE, "prompts_per_step": 64, "group_size": 1},
    arms={
        "gkd": Arm("opd", {**EXPERT, "divergence": "jsd(0.9)"}),
        "gate": Arm("tsd-kd", {**EXPERT, "ranking": 0.0, "entropy": 0.0}),
        "gate + ranking": Arm("tsd-kd", {**EXPERT, "entropy": 0.0}, tuned_as="gate"),
        "tsd-kd": Arm("tsd-kd", EXPERT),
        "tsd-kd released order": Arm("tsd-kd", {**EXPERT, "release_order": "true"}, tuned_as="tsd-kd"),
    },
    compare=("tsd-kd", "gkd"),
    controls={
        "gate against gkd": ("gate", "gkd"),
        "ranking beside the gate": ("gate + ranking", "gate"),
        "the equation's order against the released one": ("tsd-kd", "tsd-kd released order"),
    },
    grid=GRID, quick=QUICK, tuning=TUNING,
    budget="50 steps of 64 prompts, one rollout each (3,200 generations)",
)  # fmt: skip

TEACHERS = (
    KDRL_POCKET, RLAD_POCKET, GOPD_POCKET, GOPD_MERGE, PACED_POCKET, SCOPE_POCKET, KEPO_POCKET, TSDKD_POCKET,
)  # fmt: skip
