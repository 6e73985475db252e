"""Health alarms: from the numbers of a step and a short memory of them to sentences that say what is wrong and what to try.

The rules are pure functions of what was seen; `Watch` remembers just enough for them (the first steps of the stage, the last
few, what it has told). docs/health.md is generated from `ALARMS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from redistill.core.specs import DIVERGENCES
from redistill.core.state import Piece

EARLY, RECENT = 5, 3
"""Steps of a stage that tell what is usual for it; steps whose median is what is so now (one odd step is no alarm)."""
MOST = 10
"""Rows that one alarm may have in a run."""
AGAIN = 2.0
"""An alarm that has been told is told again when its value has changed by this factor, or when it was silent in between."""


@dataclass(frozen=True)
class Seen:
    """What the rules look at: numbers of the stage's first steps, of the latest ones and of the last evaluations."""

    early: Mapping[str, Sequence[float]]
    recent: Mapping[str, Sequence[float]]
    evaluations: Sequence[Mapping[str, Any]] = ()

    def usual(self, name: str) -> float | None:
        """Median over the stage's first steps; None before there are enough, or where they are still the latest ones."""
        early = self.early.get(name, ())
        return median(early) if len(early) >= EARLY else None

    def now(self, name: str) -> float | None:
        """Median over the latest steps; None before there are enough."""
        recent = self.recent.get(name, ())
        return median(recent) if len(recent) >= RECENT else None


Rule = Callable[[Seen], float | None]
"""The alarm's value when the run is sick, else None."""


def _dead_signal(seen: Seen) -> float | None:
    episodes, tokens = seen.now("active_episodes"), seen.now("active_tokens")
    if episodes is None or tokens is None:
        return None
    return episodes if episodes < 0.1 or tokens < 0.02 else None


def _entropy_collapse(seen: Seen) -> float | None:
    usual, now = seen.usual("entropy"), seen.now("entropy")
    if usual is None or now is None or usual <= 0:
        return None
    before, reward = seen.usual("reward"), seen.now("reward")
    if before is not None and reward is not None and reward > before + 0.1:
        return None  # an answer that is known needs no entropy
    return now if now < usual / 3 else None


def _entropy_explosion(seen: Seen) -> float | None:
    usual, now = seen.usual("entropy"), seen.now("entropy")
    if usual is None or now is None or usual <= 0:
        return None
    return now if now > 2 * usual and now > usual + 0.3 else None


def _truncation(seen: Seen) -> float | None:
    now = seen.now("truncated")
    return now if now is not None and now >= 0.25 else None


def _length_drift(seen: Seen) -> float | None:
    usual, now = seen.usual("length"), seen.now("length")
    if usual is None or now is None or usual <= 0:
        return None
    return now / usual if not 0.5 <= now / usual <= 1.5 else None


def _ratio_spread(seen: Seen) -> float | None:
    variance = seen.now("ratio_variance")
    return math.sqrt(variance) if variance is not None and variance > 0.25 else None


def _sampler_gap(seen: Seen) -> float | None:
    gap = seen.now("sampler_gap")
    return gap if gap is not None and gap > 0.05 else None


def _captured_mass(seen: Seen) -> float | None:
    mass = seen.now("captured_mass")
    return mass if mass is not None and mass < 0.9 else None


def _teacher_utility(seen: Seen) -> float | None:
    last = seen.evaluations[-1] if seen.evaluations else {}
    if "utility" not in last or not last.get("taught") or last["accuracy"] >= 0.95:
        return None
    return float(last["utility"]) if last["utility"] <= 0.02 else None


def _teacher_drift(seen: Seen) -> float | None:
    drift = seen.recent.get("drift", ())
    return drift[-1] if drift and drift[-1] > 0.1 else None


def _teacher_gap(seen: Seen) -> float | None:
    usual, now = seen.usual("divergence"), seen.now("divergence")
    if usual is None or now is None or usual <= 0:
        return None
    return now / usual if now > 3 * usual and now > usual + 0.05 else None


def _gradient_lost(seen: Seen) -> float | None:
    norm, signal = seen.now("grad_norm"), seen.now("signal")
    if norm is None or signal is None or signal < 1e-6:
        return None
    return norm / signal if norm / signal < 1e-3 else None


def _gradient_explosion(seen: Seen) -> float | None:
    usual, now = seen.usual("grad_norm"), seen.now("grad_norm")
    if usual is None or now is None or usual <= 0:
        return None
    return now / usual if now > 20 * usual else None


def _reward_without_gain(seen: Seen) -> float | None:
    usual, now = seen.usual("reward"), seen.now("reward")
    if usual is None or now is None or len(seen.evaluations) < 2:
        return None
    first, last = seen.evaluations[0], seen.evaluations[-1]
    metric, prompts = last["metric"], last.get("prompts", 0)
    if metric not in first or not prompts:
        return None
    rise, gain, middle = now - usual, last[metric] - first[metric], (last[metric] + first[metric]) / 2
    noise = 2 * math.sqrt(max(0.0, 2 * middle * (1 - middle) / prompts))
    return rise - gain if rise > 0.1 and gain < rise / 4 and rise - gain > noise else None


def _miscalibration(seen: Seen) -> float | None:
    last = seen.evaluations[-1] if seen.evaluations else {}
    return float(last["ece"]) if last.get("ece", 0.0) > 0.2 else None


@dataclass(frozen=True)
class Alarm:
    """One thing that can be wrong. `means` may hold {value}; `at` says whether steps or evaluations can show it."""

    name: str
    reads: str
    when: str
    means: str
    remedy: str
    rule: Rule
    at: str = "step"


ALARMS: tuple[Alarm, ...] = (
    Alarm(
        "dead_signal", "active_episodes, active_tokens", "under 10% of the episodes or 2% of the tokens, median of 3 steps",
        "Only {value:.0%} of the sampled episodes ask for any change: the rest is paid for and teaches nothing.",
        "prompts of another difficulty (groups that are all right or all wrong have no advantage), a larger group_size, or, "
        "with a teacher, evidence for more prompts",
        _dead_signal,
    ),
    Alarm(
        "entropy_collapse", "entropy, reward", "under a third of the stage's first 5 steps, while the reward has not risen by 0.1",
        "The policy's entropy fell to {value:.3g} nats a token: it writes one answer whatever is sampled, and a group has nothing "
        "left to compare.",
        "a lower learning_rate, an entropy bonus (grpo: entropy), a KL to the initial policy, a higher clip_high, or stop at an "
        "earlier checkpoint",
        _entropy_collapse,
    ),
    Alarm(
        "entropy_explosion", "entropy", "over twice the stage's first 5 steps, and 0.3 nats more",
        "The policy's entropy rose to {value:.3g} nats a token: it unlearns what it could do and its samples turn to noise.",
        "a lower learning_rate, a smaller or negative entropy coefficient, a KL to the initial policy",
        _entropy_explosion,
    ),
    Alarm(
        "truncation", "truncated", "25% of the answers or more, median of 3 steps",
        "{value:.0%} of the answers are cut off at max_new_tokens: they are judged, and trained on, without their end.",
        "a larger max_new_tokens; where answers lengthen as training goes on, a teacher that ends its answers (check that both "
        "have the same end token) or a warm start; grpo: drop_truncated",
        _truncation,
    ),
    Alarm(
        "length_drift", "length", "under half or over one and a half times the stage's first 5 steps",
        "Answers are {value:.2f} times as long as when the stage began: part of what is learnt is a length.",
        "look at samples.jsonl; another normaliser (a mean over each answer favours long wrong ones), a reward that does not pay "
        "for length, a teacher whose style is the student's",
        _length_drift,
    ),
    Alarm(
        "ratio_spread", "<term>/ratio_variance", "a spread over 0.5 around 1, median of 3 steps",
        "Importance ratios spread by {value:.2f} around 1: the samples are no longer the policy's own and a few of them decide "
        "the update.",
        "fewer minibatches or epochs for each sampled batch, a lower learning_rate",
        _ratio_spread,
    ),
    Alarm(
        "sampler_gap", "sampler_gap", "over 0.05 nats a token, median of 3 steps",
        "Before any update the sampler's log-probs are {value:.3g} nats a token away from the trainer's: they are not the same "
        "policy, and every ratio is wrong by as much.",
        "dtype=float32, the same sampling settings in both, the same weights and template in an engine outside this process",
        _sampler_gap,
    ),
    Alarm(
        "captured_mass", "<term>/captured_mass", "under 0.9, median of 3 steps",
        "The outcomes that the divergence looks at hold {value:.0%} of the student's probability: the rest is one bucket.",
        "a larger k in support, support=full, or top_k(k, of=student)",
        _captured_mass,
    ),
    Alarm(
        "teacher_utility", "utility", "0.02 or less while the accuracy is under 95%; methods whose teacher reads more than the student",
        "Shown the privileged context the model is right only {value:+.1%} more often than without: the teacher knows nothing "
        "that the student could learn.",
        "a warm start that shows the context (warm_start_steps, warm_start_in_context), another view or better evidence, a larger model",
        _teacher_utility, "evaluation",
    ),
    Alarm(
        "teacher_drift", "drift/<copy>", "over 0.1 for a copy that follows the student; looked at every 5 steps",
        "The student's weights are {value:.0%} away from the teacher copy that should follow it: the teacher judges a model "
        "that is gone.",
        "a lower learning_rate, or a teacher that follows faster (a larger rate of ema, a smaller period of sync)",
        _teacher_drift,
    ),
    Alarm(
        "teacher_gap", "<term>/<divergence>", "over three times the stage's first 5 steps, and 0.05 more",
        "The divergence from the teacher is {value:.1f} times what it was when the stage began: the student moves away from what "
        "should draw it near, or the teacher from the student.",
        "a lower learning_rate; a teacher that moves less (frozen, a smaller rate of ema); look at what the teacher reads in views.txt",
        _teacher_gap,
    ),
    Alarm(
        "gradient_lost", "grad_norm, signal", "a gradient of less than a thousandth of the loss that asks for it, median of 3 steps",
        "The gradient is {value:.1g} of the loss that asks for it: the loss looks normal and the weights are not told.",
        "check that the trained parameters are those that compute the loss (LoRA, frozen layers), and the precision (dtype=float32)",
        _gradient_lost,
    ),
    Alarm(
        "gradient_explosion", "grad_norm", "over 20 times the stage's first 5 steps, median of 3 steps",
        "Gradients are {value:.0f} times as large as when the stage began: the updates are what grad_clip leaves of them.",
        "a lower learning_rate, warmup_steps, a clip (of ratios, of divergences), a smaller grad_clip",
        _gradient_explosion,
    ),
    Alarm(
        "reward_without_gain", "reward, the evaluation's metric",
        "the training reward rose by over 0.1, the held-out metric by less than a quarter of that and by less beyond two standard errors",
        "The training reward rose by {value:.2f} more than the held-out metric: what is learnt does not carry over.",
        "more distinct prompts, a look at what earns the reward in samples.jsonl (is it the task, or a hole in the verifier?), fewer "
        "steps; eval_every shows where the two part",
        _reward_without_gain, "evaluation",
    ),
    Alarm(
        "miscalibration", "ece", "an expected calibration error over 0.2; tasks whose answers state a confidence",
        "Stated confidences are {value:.2f} away from how often the answers are right.",
        "caopd (it trains on the student's own success rate), a task with a Brier reward, or read confidences as ranks only",
        _miscalibration, "evaluation",
    ),
)  # fmt: skip
DIRECT = (
    "active_episodes", "active_tokens", "entropy", "truncated", "length", "sampler_gap", "grad_norm", "signal", "reward",
)  # fmt: skip
FOLLOWERS = ("drift/ema", "drift/slowing_ema", "drift/sync")


def reading(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a step's record that the rules look at, each under one name: of several terms the worst."""
    found = {name: record[name] for name in DIRECT if name in record}
    for name, worst, ends in (("captured_mass", min, "/captured_mass"), ("ratio_variance", max, "/ratio_variance")):
        of_terms = [value for key, value in record.items() if key.endswith(ends) and key.count("/") == 1]
        found |= {name: worst(of_terms)} if of_terms else {}
    apart = [value for key, value in record.items() if key.partition("/")[2] in DIVERGENCES]
    found |= {"divergence": max(apart)} if apart else {}
    drift = [value for key, value in record.items() if key.startswith(FOLLOWERS)]
    found |= {"drift": max(drift)} if drift else {}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


@dataclass
class Watch:
    """The memory of a run's alarms. `told` holds the value at which each was told last and how often, while it lasts or not."""

    early: dict[str, list[float]] = field(default_factory=dict)
    recent: dict[str, list[float]] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)

    def enter(self) -> None:
        """A stage begins: what is usual is learnt anew."""
        self.early, self.recent = {}, {}

    def step(self, step: int, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Remember a step's record; the alarms to tell now."""
        for name, value in reading(record).items():
            early, recent = self.early.setdefault(name, []), self.recent.setdefault(name, [])
            if len(early) < EARLY:
                early.append(value)
            recent.append(value)
            del recent[:-RECENT]
        return self._tell(step, "step")

    def evaluated(self, step: int, result: Mapping[str, Any], taught: bool) -> list[dict[str, Any]]:
        """Remember an evaluation (the first and the last are enough); the alarms to tell now. `taught`: there is a teacher
        that reads more than the student."""
        keep = (result["metric"], "metric", "prompts", "accuracy", "utility", "ece")
        short = {name: result[name] for name in keep if name in result} | {"taught": taught}
        self.evaluations = [*self.evaluations[:1], short]
        return self._tell(step, "evaluation")

    def _tell(self, step: int, at: str) -> list[dict[str, Any]]:
        seen = Seen(self.early, self.recent, self.evaluations)
        rows = []
        for alarm in ALARMS:
            if alarm.at != at:
                continue
            value, before = alarm.rule(seen), self.told.get(alarm.name)
            if value is None:
                if before:
                    before["lasts"] = False
                continue
            if before and (before["times"] >= MOST or (before["lasts"] and not _changed(before["value"], value))):
                before["lasts"] = True
                continue
            times = before["times"] + 1 if before else 1
            self.told[alarm.name] = {"value": value, "times": times, "lasts": True}
            rows.append({
                "step": step, "name": alarm.name, "value": float(f"{value:.4g}"), "means": alarm.means.format(value=value),
                "try": alarm.remedy,
            })  # fmt: skip
        return rows

    def state(self) -> Piece:
        """All of it."""
        facts = {"early": self.early, "recent": self.recent, "evaluations": self.evaluations, "told": self.told}
        return Piece(facts=facts)

    def restore(self, piece: Piece) -> None:
        """Load it."""
        self.early, self.recent = piece.facts["early"], piece.facts["recent"]
        self.evaluations, self.told = piece.facts["evaluations"], piece.facts["told"]


def _changed(before: float, now: float) -> bool:
    """Whether a value is another one than was told: by a factor, or of another sign."""
    if before * now <= 0:
        return abs(before - now) > 0.05
    return not 1 / AGAIN <= now / before <= AGAIN
