"""The experiments behind `redistill reproduce`: what each paper claims, cut to this machine, as data."""

from __future__ import annotations

from redistill.errors import UserError, nearest
from redistill.experiments.base import Experiment
from redistill.experiments.caopd import CAOPD_POCKET, CAOPD_SMOLLM2
from redistill.experiments.crd import CRD_DIGITS
from redistill.experiments.opsd import OPSD_POCKET, OPSD_SMOLLM2
from redistill.experiments.pi_distill import PI_DISTILL_HINT, PI_DISTILL_RARE
from redistill.experiments.pi_distill_turns import PI_DISTILL_TURNS
from redistill.experiments.ps_kd import PS_KD_DIGITS, PS_KD_MNIST
from redistill.experiments.rl_vs_distillation import RLVD_POCKET
from redistill.experiments.rltf import RLTF_POCKET
from redistill.experiments.rpd import RPD_BUTTON
from redistill.experiments.sd_zero import SD_ZERO_POCKET
from redistill.experiments.sdpo import SDPO_POCKET, SDPO_SMOLLM2
from redistill.experiments.skill_sd import SKILL_SD_POCKET
from redistill.experiments.srpo import SRPO_POCKET
from redistill.experiments.ssb import SSB_POCKET, SSB_SMOLLM2
from redistill.experiments.teacher_hacking import HACKING_POCKET
from redistill.experiments.teachers import TEACHERS

ALL: dict[tuple[str, str], Experiment] = {
    (experiment.slug, str(experiment.base["model"])): experiment
    for experiment in (
        SDPO_POCKET,
        SDPO_SMOLLM2,
        OPSD_POCKET,
        OPSD_SMOLLM2,
        PS_KD_DIGITS,
        PS_KD_MNIST,
        CRD_DIGITS,
        RPD_BUTTON,
        SRPO_POCKET,
        RLTF_POCKET,
        SKILL_SD_POCKET,
        SSB_POCKET,
        CAOPD_POCKET,
        CAOPD_SMOLLM2,
        SD_ZERO_POCKET,
        PI_DISTILL_HINT,
        PI_DISTILL_RARE,
        PI_DISTILL_TURNS,
        SSB_SMOLLM2,
        HACKING_POCKET,
        RLVD_POCKET,
        *TEACHERS,
    )
}


def experiment_of(slug: str, model: str | None = None) -> Experiment:
    """The experiment of a method on a model (its first one without a name); a UserError names what there is."""
    slugs = {known for known, _ in ALL}
    if slug not in slugs:
        raise UserError(f"there is no experiment for {slug!r}{nearest(slug, slugs)}")
    models = [known for own, known in ALL if own == slug]
    if model is None:
        return ALL[slug, models[0]]
    if model not in models:
        raise UserError(f"the experiment of {slug} runs on {' and '.join(models)}, not on {model!r}")
    return ALL[slug, model]
