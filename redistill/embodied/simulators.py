"""Simulators behind one small face: start from a key, take an action in [-1, 1], tell what is seen and rewarded.

A start depends on its key alone, whatever the simulator did before (tests compare used and new ones bit for bit).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from redistill.core import rng
from redistill.errors import UserError, nearest

if TYPE_CHECKING:
    from redistill.embodied.tasks import Gymnasium, MetaWorld, World

Array = NDArray[np.float64]
GYMNASIUM = "gymnasium/"
"""What the names of gymnasium's own environments begin with."""
METAWORLD_SCALE = 10.0
"""The largest reward of a Meta-World task; dense rewards are divided by it."""


class Simulator(Protocol):
    """One world."""

    observations: int
    actions: int

    def start(self, content: Mapping[str, Any]) -> Array:
        """Begin an episode at a prompt's start; what is seen [O]."""
        ...

    def step(self, action_D: Array) -> tuple[Array, float, bool, bool | None]:
        """(what is seen [O], reward, whether the world ended the episode, success; None: only known at the end)."""
        ...

    def succeeded(self, rewards: Sequence[float]) -> bool:
        """Whether a finished episode with these rewards was a success."""
        ...


def need(package: str, what: str) -> None:
    """UserError where a package is missing."""
    if find_spec(package) is None:
        raise UserError(
            f"{what} needs the package {package}, which is not installed: pip install 'redistill[embodied]'"
        )


def _key(content: Mapping[str, Any]) -> tuple[Any, ...]:
    return ("embodied-start", int("held_out" in content), content.get("seed", 0), content["start"])


def _disturb(model: Any, options: World, name: str) -> None:
    """Change a MuJoCo model's dynamics as the options say."""
    changed = {key: getattr(options, key) for key in ("mass", "damping", "friction") if getattr(options, key) != 1.0}
    if changed and model is None:
        key, value = next(iter(changed.items()))
        raise UserError(f"task {name!r} option {key}={value:g} needs a MuJoCo simulator, which this is not")
    if "mass" in changed:
        model.body_mass[:] *= options.mass
        model.body_inertia[:] *= options.mass
    if "damping" in changed:
        model.dof_damping[:] *= options.damping
    if "friction" in changed:
        model.geom_friction[:] *= options.friction


# --- Meta-World -------------------------------------------------------------------------------------------------------------
def metaworld_names(asked: str) -> Sequence[str]:
    """Names of the Meta-World tasks; UserError when the package is missing."""
    need("metaworld", f"embodied task {asked!r}")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return list(ALL_V3_ENVIRONMENTS)


class MetaWorldSimulator:
    """A Meta-World environment with its goal in sight. Starts are drawn by a generator of the key, which is handed to the
    environment itself, because some tasks draw again until the start is a fair one."""

    def __init__(self, name: str, options: MetaWorld) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        env = ALL_V3_ENVIRONMENTS[name]()
        env.__dict__.pop("sawyer_observation_space", None)  # cached for hidden goals
        env._partially_observable, env._freeze_rand_vec = False, False
        env.seeded_rand_vec = env._set_task_called = True
        _disturb(env.model, options, name)
        self.env, self.options = env, options
        self.observations, self.actions = 39, 4

    def start(self, content: Mapping[str, Any]) -> Array:
        """Begin an episode."""
        self.env.np_random = rng.generator(*_key(content))
        return np.asarray(self.env.reset()[0], dtype=np.float64)

    def step(self, action_D: Array) -> tuple[Array, float, bool, bool | None]:
        """One action."""
        action = self.options.gain * np.clip(action_D, -1.0, 1.0)
        seen, reward, terminated, _, info = self.env.step(action)
        success = bool(info["success"])
        reward = float(success) if self.options.reward == "sparse" else float(reward) / METAWORLD_SCALE
        return seen, reward, bool(terminated), success

    def succeeded(self, rewards: Sequence[float]) -> bool:
        """Never asked: every action tells."""
        raise NotImplementedError


def metaworld_simulator(name: str, options: Any) -> Simulator:
    """A new simulator of a Meta-World task."""
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    return MetaWorldSimulator(name, options)


# --- gymnasium --------------------------------------------------------------------------------------------------------------
class GymnasiumSimulator:
    """A gymnasium environment with flat boxes, without its wrappers: our own cap is the limit of time."""

    def __init__(self, name: str, options: Gymnasium) -> None:
        import gymnasium

        made = name.removeprefix(GYMNASIUM)
        try:
            env = gymnasium.make(made, disable_env_checker=True).unwrapped
        except gymnasium.error.UnregisteredEnv:
            raise UserError(f"gymnasium has no environment {made!r}{nearest(made, gymnasium.registry)}") from None
        except (gymnasium.error.Error, ImportError) as error:
            raise UserError(f"task {name!r} cannot be made: {str(error).splitlines()[0]}") from None
        sizes = []
        for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
            if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
                raise UserError(
                    f"task {name!r} has {what} of the kind {type(space).__name__}{getattr(space, 'shape', '')}: they must be a flat Box"
                )
            sizes.append(space.shape[0])
        self.observations, self.actions = sizes
        low, high = (np.asarray(edge, dtype=np.float64) for edge in (env.action_space.low, env.action_space.high))
        bounded = np.isfinite(low) & np.isfinite(high)
        self.middle = np.where(bounded, (low + high) / 2.0, 0.0)
        self.half = np.where(bounded, (high - low) / 2.0, 1.0)
        _disturb(getattr(env, "model", None), options, name)
        self.env, self.options = env, options

    def start(self, content: Mapping[str, Any]) -> Array:
        """Begin an episode."""
        return np.asarray(self.env.reset(seed=int(rng.bits(*_key(content)) >> 33))[0], dtype=np.float64)

    def step(self, action_D: Array) -> tuple[Array, float, bool, bool | None]:
        """One action; [-1, 1] is the whole range of each of its entries."""
        action = self.middle + self.half * self.options.gain * np.clip(action_D, -1.0, 1.0)
        seen, reward, terminated, _, _ = self.env.step(action.astype(self.env.action_space.dtype))
        return np.asarray(seen, dtype=np.float64), float(reward), bool(terminated), None

    def succeeded(self, rewards: Sequence[float]) -> bool:
        """Whether the rewards add up to what the task asks for."""
        return self.options.success is not None and math.fsum(rewards) >= self.options.success


def gymnasium_simulator(name: str, options: Any) -> Simulator:
    """A new simulator of a gymnasium environment."""
    need("gymnasium", f"embodied task {name!r}")
    return GymnasiumSimulator(name, options)
