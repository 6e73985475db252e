"""Worlds, starts, teachers, evaluation, saving, and recipes of the embodied domain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redistill.build import prepare
from redistill.cli import main
from redistill.config import load_recipe
from redistill.core.episode import flat
from redistill.embodied.evaluate import evaluate, teacher_result
from redistill.embodied.models import Mlp, Policy, fresh_module, load_model, make_model
from redistill.embodied.rollout import play
from redistill.embodied.simulators import metaworld_simulator
from redistill.embodied.tasks import ControlTask, MetaWorld, load_task
from redistill.embodied.teachers import OBJECTS_X, Proposer, check_teacher
from redistill.evaluation.intervals import wilson
from redistill.reporting.terminal import reporter

from embodied_lab import POINT, SMALL, Lab, saved_policy

BUTTON, DRAWER = "button-press-topdown-v3", "drawer-open-v3"


def ran(slug: str, out: Path, **given: Any) -> Any:
    run = prepare(slug, given, out=out, report=reporter(quiet=True, silent=True))
    try:
        return run.go(False), run
    finally:
        run.close()


# --- worlds -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [BUTTON, DRAWER, "push-v3"])
def test_a_start_depends_on_its_key_alone(name: str) -> None:
    """A simulator that has played something else, with other actions, and a new one go the same way, bit for bit."""
    used, new = (metaworld_simulator(name, MetaWorld()) for _ in range(2))
    generator = np.random.default_rng(0)
    for start in (3, 8):
        used.start({"start": start, "seed": 1})
        for _ in range(30):
            used.step(generator.uniform(-1, 1, 4))
    content, other = {"start": 5, "seed": 1}, {"start": 5, "held_out": True}
    first = used.start(content)
    assert np.array_equal(first, new.start(content))
    for _ in range(30):
        action = generator.uniform(-1, 1, 4)
        one, two = used.step(action), new.step(action)
        assert np.array_equal(one[0], two[0])
        assert one[1:] == two[1:]
    assert not np.array_equal(first, used.start(other))
    assert not np.array_equal(first, used.start({"start": 5, "seed": 2}))


def test_meta_world_is_meta_world() -> None:
    """The same start and actions give what the package's own environment gives, rewards over 10."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    from redistill.core import rng

    theirs = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{DRAWER}-goal-observable"](seed=0)
    theirs._freeze_rand_vec, theirs.seeded_rand_vec = False, True
    theirs.np_random = rng.generator("embodied-start", 0, 1, 5)
    ours = metaworld_simulator(DRAWER, MetaWorld())
    assert np.array_equal(ours.start({"start": 5, "seed": 1}), theirs.reset()[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)):
        one, two = ours.step(action), theirs.step(action)
        assert np.array_equal(one[0], two[0])
        assert one[1] == pytest.approx(two[1] / 10)
        assert one[3] == bool(two[4]["success"])
    assert ours.start({"start": 0})[-3:].any(), "the goal is in sight"


def test_sparse_reward_is_the_success_flag() -> None:
    dense, sparse = load_task(f"{BUTTON}:cap=80"), load_task(f"{BUTTON}:cap=80,reward=sparse")
    expert = Proposer(check_teacher("expert", dense), dense)  # type: ignore[arg-type]

    def act(seen: Any, at: Any, t: int) -> Any:
        return expert.propose(seen, np.zeros((len(seen), 1, 4)))[:, 0]

    for one, two in zip(*(play(task, task.held_out(3), act, 3) for task in (dense, sparse))):
        assert np.array_equal(np.stack(one.observations), np.stack(two.observations))
        assert one.success_at == two.success_at
        assert set(two.rewards) == {0.0, 1.0}
        assert two.rewards.index(1.0) + 1 == two.success_at
        assert max(one.rewards) > 0.5
        assert len(one.rewards) == 80


@pytest.mark.parametrize("option", ["mass=50", "damping=30", "friction=0", "gain=0.3"])
def test_changed_dynamics_change_what_happens(option: str) -> None:
    plain, changed = load_task(f"{DRAWER}:cap=40"), load_task(f"{DRAWER}:cap=40,{option}")
    actions = np.random.default_rng(1).uniform(-1, 1, (40, 4))
    actions[:, 1:3] = [0.9, -0.6]  # into the drawer
    ends = [
        play(task, task.held_out(1), lambda s, a, t: actions[None, t], 1)[0].observations[-1]
        for task in (plain, changed)
    ]
    assert np.abs(ends[0] - ends[1]).max() > 1e-6


def test_an_episode_ends_at_its_success_when_asked() -> None:
    task = load_task(f"{BUTTON}:end_on_success=true")
    expert = Proposer(check_teacher("expert", task), task)  # type: ignore[arg-type]
    (trace,) = play(task, task.held_out(1), lambda s, a, t: expert.propose(s, np.zeros((1, 1, 4)))[:, 0], 1)
    assert trace.success_at == len(trace.rewards) < 100
    assert not trace.terminated


def test_starts_of_training_and_evaluation_are_apart() -> None:
    task = load_task(POINT)
    assert task.train(4, 1) == task.train(4, 1)
    uids = {task.train(i, seed).uid for i in range(50) for seed in (0, 1)} | {p.uid for p in task.held_out(50)}
    assert len(uids) == 150
    assert [p.content for p in task.held_out(3)] == [{"start": i, "held_out": True} for i in range(3)]
    assert len(task.held_out(5000)) == 1000


def test_a_list_of_actions_is_judged_by_playing_it() -> None:
    lab = Lab("ppo")
    for episode in flat(lab.collect())[:4]:
        played = episode.trajectory
        verdict = lab.task.verify(episode.prompt, json.dumps(played.actions.tolist()))
        assert verdict.reward == pytest.approx(episode.reward, rel=1e-9)
        assert episode.reward == pytest.approx(float(played.rewards.mean()))
    for wrong in ("", "a cat", "[]", "[[1]]", "[1, 2]", "[[1, null]]", '{"a": 1}', "[[1e999, 0]]"):
        assert not lab.task.verify(lab.task.held_out(1)[0], wrong).format_ok


def test_success_of_a_gymnasium_task_is_a_sum_of_rewards_at_the_end() -> None:
    lab = Lab("ppo", prompts_per_step=20)
    seen = set()
    for episode in flat(lab.collect()):
        won = float(episode.trajectory.rewards.sum()) >= -4
        assert (episode.trajectory.success_at == episode.steps) == won
        seen.add(won)
    assert seen == {True, False}


def test_pendulum_runs_and_its_metric_is_the_return(tmp_path: Path) -> None:
    task = "gymnasium/Pendulum-v1:cap=20,low=-17,high=0"
    result, _ = ran("ppo", tmp_path / "run", **{**SMALL, "task": task, "steps": 1, "dtype": "float32"})
    after = result["evaluations"]["after"]
    assert after["metric"] == "return"
    assert -340 < after["low"] < after["return"] < after["high"] < 0
    assert after["length"] == 20


# --- teachers ---------------------------------------------------------------------------------------------------------
def test_an_expert_succeeds_and_its_mistakes_cost() -> None:
    task = load_task(BUTTON)
    rates = {
        text: teacher_result(task, check_teacher(text, task), 12, 6)
        for text in ("expert", "expert:noise=2", "expert:shift=0.1,noise=0.5")
    }  # type: ignore[arg-type]
    assert rates["expert"] == 1.0
    assert rates["expert:noise=2"] < 0.5
    assert rates["expert:shift=0.1,noise=0.5"] < 0.5


def test_a_shift_is_of_objects_and_not_of_the_hand() -> None:
    task = load_task(DRAWER)
    seen = play(task, task.held_out(1), lambda s, a, t: np.zeros((1, 4)), 1, limit=1)[0].observations[0][None]
    still = np.zeros((1, 1, 4))
    moved = seen.copy()
    moved[:, OBJECTS_X] += 0.2
    plain, off = (Proposer(check_teacher(text, task), task) for text in ("expert", "expert:shift=0.2"))  # type: ignore[arg-type]
    assert np.array_equal(off.propose(seen, still), plain.propose(moved, still))
    assert not np.array_equal(off.propose(seen, still), plain.propose(seen, still))
    assert 0 not in OBJECTS_X


def test_every_meta_world_task_has_a_script() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    assert set(ENV_POLICY_MAP) >= set(ALL_V3_ENVIRONMENTS)


def test_a_saved_policy_teaches_what_it_does(tmp_path: Path) -> None:
    task = load_task(POINT)
    text = saved_policy(tmp_path / "p")
    seen = np.random.default_rng(0).normal(size=(5, 4))
    wanted = Proposer(check_teacher(text, task), task).propose(seen, np.zeros((5, 1, 2)))  # type: ignore[arg-type]
    model = load_model(str(tmp_path / "p"), observations=4, actions=2, dtype=torch.float64)
    expected = model.module.mean(torch.from_numpy(seen)).detach().clamp(-1, 1)
    np.testing.assert_allclose(wanted[:, 0], expected.numpy())


# --- evaluation -------------------------------------------------------------------------------------------------------
def test_evaluation_is_repeatable_and_its_interval_wilson_s() -> None:
    lab = Lab("ppo", eval_prompts=15)
    lab.nudge(0.3)
    found = lab.domain.evaluate("before")
    assert lab.domain.evaluate("before") == found
    share = wilson(sum(found["outcomes"]), 15)
    assert (found["success"], found["low"], found["high"]) == (share.estimate, share.low, share.high)
    alone = Lab("ppo", eval_prompts=15, simulators=1, seed=3)
    object.__setattr__(alone.domain, "model", lab.domain.model)
    assert alone.domain.evaluate("before")["outcomes"] == found["outcomes"]


def test_the_mean_action_is_what_is_evaluated() -> None:
    lab = Lab("ppo")
    lab.nudge(0.3)
    module, task = lab.domain.model.module, lab.task
    noisy = evaluate(
        task, task.held_out(10), lambda s, a, t: module.mean(torch.from_numpy(s)).detach().numpy() + 5.0, 4
    )
    plain = evaluate(task, task.held_out(10), lambda s, a, t: module.mean(torch.from_numpy(s)).detach().numpy(), 4)
    assert lab.domain.evaluate("x")["outcomes"] == plain["outcomes"] != noisy["outcomes"]


def test_steps_to_half_are_the_first_at_which_half_succeed() -> None:
    lab = Lab("ppo")
    rates, seen = iter([0.2, 0.6, 0.4]), []
    for _ in range(3):
        lab.collect()
        success = next(rates)
        import redistill.embodied.domain as module

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "evaluate", lambda *a, s=success: {"metric": "success", "success": s})
            seen.append(lab.domain.evaluate("step"))
    steps = [each["env_steps"] for each in seen]
    assert steps == sorted(set(steps))
    assert [each["steps_to_half"] for each in seen] == [steps[0], steps[1], steps[1]]
    assert "env_steps" not in lab.domain.evaluate("saved")


# --- policies ---------------------------------------------------------------------------------------------------------
def test_weights_begin_orthogonal_and_by_seed() -> None:
    module = fresh_module(Mlp(), 39, 4, torch.float64, 0)
    assert isinstance(module, Policy)
    for name, gain in (("actor.0", 2**0.5), ("actor.2", 2**0.5), ("actor.4", 0.01 * 2**0.5), ("critic.4", 2**0.5)):
        weight = module.get_parameter(f"{name}.weight").double()
        gram = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-5)
        assert float(module.get_parameter(f"{name}.bias").detach().abs().max()) == 0.0
    assert module.log_std.tolist() == [-0.5] * 4
    again, other = (fresh_module(Mlp(), 39, 4, torch.float64, seed) for seed in (0, 1))
    assert torch.equal(again.actor[0].weight, module.actor[0].weight)
    assert not torch.equal(other.actor[0].weight, module.actor[0].weight)
    seen = torch.randn(3, 39, dtype=torch.float64)
    scaled = fresh_module(Mlp(scale=2.0), 39, 4, torch.float64, 0)
    torch.testing.assert_close(scaled.mean(seen), module.mean(2 * seen))
    torch.testing.assert_close(scaled.value(seen), module.value(2 * seen))


def test_a_run_saves_its_policy_and_eval_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    result, run = ran("ppo", out, **{**SMALL, "dtype": "float32", "steps": 2})
    assert {path.name for path in (out / "model").iterdir()} == {"model.safetensors", "config.json"}
    again = make_model(str(out), observations=4, actions=2, seed=9).module.state_dict()
    for name, tensor in run.domain.players["student"].module.state_dict().items():
        assert torch.equal(again[name], tensor)
    assert "=== the student sees ===" in (out / "views.txt").read_text()
    capsys.readouterr()
    assert main(["eval", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcomes"] == result["evaluations"]["after"]["outcomes"]
    going_on, _ = ran("ppo", tmp_path / "more", **{**SMALL, "dtype": "float32", "steps": 1, "model": str(out)})
    assert going_on["evaluations"]["before"]["outcomes"] == found["outcomes"]
    for line in (out / "samples.jsonl").read_text().splitlines():
        assert "actions, return" in json.loads(line)["text"]


def test_the_run_folder_knows_the_simulators(tmp_path: Path) -> None:
    ran("ppo", tmp_path / "run", **{**SMALL, "dtype": "float32", "steps": 1, "save_model": "false"})
    facts = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert facts["metaworld"] == "3.1.1"
    assert {"mujoco", "gymnasium"} <= set(facts)


@pytest.mark.parametrize("name", ["ppo", "rpd"])
def test_recipes_run_a_step(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    given: dict[str, Any] = {
        **recipe.run,
        **recipe.options,
        "steps": 1,
        "eval_prompts": 4,
        "eval_every": 0,
        "prompts_per_step": 8,
        "minibatches": 8,
    }
    result, _ = ran(recipe.method, tmp_path / name, **given)
    assert result["skipped_updates"] == 0
    assert result["evaluations"]["after"]["env_steps"] == 100 * given["prompts_per_step"]
    if name == "rpd":
        assert 0 <= result["evaluations"]["after"]["teacher_success"] <= 1


def test_simulators_are_made_once() -> None:
    task = load_task(BUTTON)
    assert load_task(f"{BUTTON}:cap=100") is task
    assert isinstance(task, ControlTask)
    assert list(task.simulators(2)) == list(task.simulators(3))[:2]
