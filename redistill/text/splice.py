"""Sampling and rows under contexts that no view renders: an answer with text after it, an edited prompt. Token in, token out:
what was sampled stays as its ids, only the text put in is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from redistill.core.budget import tally
from redistill.core.episode import Episode, Group
from redistill.core.specs import TeacherWeights
from redistill.core.task import Prompt
from redistill.core.teachers import swapped
from redistill.text.domain import TextDomain, TokenIds, Trajectory
from redistill.text.evaluate import verdicts
from redistill.text.sampling import sample


def without_end(domain: TextDomain, ids: TokenIds) -> TokenIds:
    """A response without the end-of-sequence token that closed it, if one did (one in the midst stays)."""
    return ids[:-1] if ids and ids[-1] in domain.lm.eos_ids else ids


def encoded(domain: TextDomain, text: str) -> TokenIds:
    """Ids of a piece of text, without special tokens."""
    return tuple(domain.lm.tokenizer.encode(text, add_special_tokens=False))


def spliced(domain: TextDomain, row: Episode, text: str) -> TokenIds:
    """The row's context, its answer (without its end) and `text` after it, inside the same turn."""
    return (*row.context, *without_end(domain, row.trajectory.ids), *encoded(domain, text))


def sampled_under(
    domain: TextDomain, prompts: Sequence[Prompt], contexts: Sequence[TokenIds | None], view: str, *, size: int = 1,
    temperature: float | None = None, weights: TeacherWeights = TeacherWeights("live"),
) -> list[Group]:  # fmt: skip
    """Sample and judge `size` answers under each context; a context of None, or with no room for an answer, gives an empty
    group (the latter is counted). `temperature` None is the run's; `weights` whose weights sample (one copy, no mixture)."""
    limit = domain.lm.context - domain.config.max_new_tokens
    domain.omitted[view] += sum(ids is not None and len(ids) > limit for ids in contexts)
    kept = [(i, ids) for i, ids in enumerate(contexts) if ids is not None and len(ids) <= limit]
    groups = [Group(prompt, []) for prompt in prompts]
    keys = [(domain.config.seed, domain.step, domain.calls, i) for i, _ in kept]
    domain.calls += 1
    if not kept:
        return groups
    sampling = domain.sampling if temperature is None else replace(domain.sampling, temperature=temperature)
    copy = domain.bank.parts(weights)[0].copy
    with swapped(domain.players["student"].tensors, copy) if copy is not None else nullcontext():
        made = sample(
            domain.lm, [ids for _, ids in kept], group_size=size, sampling=sampling, keys=keys,
            max_batch=domain.config.sample_batch,
        )  # fmt: skip
    told = iter(verdicts(domain.task, [(prompts[i], one) for (i, _), answers in zip(kept, made) for one in answers]))
    for (i, ids), key, answers in zip(kept, keys, made):
        prompt = prompts[i]
        groups[i] = Group(prompt, [
            Episode(
                prompt=prompt, context=ids, trajectory=Trajectory(one.ids, ((0, len(one.ids)),)), steps=len(one.ids),
                text=one.text, behaviour_logp_T=one.logp_T, sampling=sampling, sampled_under=view, trained_under=view,
                finish=one.finish, key=(*key, number),
                verdict=next(told),
            )
            for number, one in enumerate(answers)
        ])  # fmt: skip
    tally(domain.generated, groups)
    return groups


def row_of(
    prompt: Prompt, context: TokenIds, ids: TokenIds, view: str, text: str = "", key: tuple[int, ...] = ()
) -> Episode:
    """A row to train on that was not sampled under what it is trained under: all of `ids` are steps, without behaviour
    log-probs, at temperature 1."""
    return Episode(
        prompt=prompt, context=context, trajectory=Trajectory(ids, ((0, len(ids)),)), steps=len(ids), text=text,
        sampled_under="written", trained_under=view, key=key,
    )  # fmt: skip
