"""The method protocol: the only room of the hallway that a paper owns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from redistill.core.episode import Group
from redistill.core.signal import Signal
from redistill.core.specs import TeacherWeights
from redistill.core.task import Prompt, Task


class Context(Protocol):
    """What a method may use: the task, the domain's verbs, keyed randomness and the log. Nothing else."""

    @property
    def step(self) -> int:
        """Updates done so far."""
        ...

    @property
    def stage_step(self) -> int:
        """Updates done in this stage: what schedules count (a warm start is a stage of its own)."""
        ...

    task: Task
    domain: Any

    def next_prompts(self) -> Sequence[Prompt]:
        """The step's training prompts (the cursor is saved with the run)."""
        ...

    def uniform(self, *key: Any) -> Any:
        """Uniform draws in [0, 1) keyed by run seed, step and `key`."""
        ...

    def log(self, name: str, value: float) -> None:
        """Add a number to the step's metrics."""
        ...


class Method:
    """A method is a frozen dataclass of options with `signal`. `collect`, `stages` and `after_update` have defaults.

    Class facts: `slug`, `title`, `paper`, `family`, `domain`, `axes` (the survey's three), `idea`, `objective` (plain text),
    `says_does` (where paper and released code differ), `run_defaults` (the paper's run settings).
    """

    slug: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    family: ClassVar[str] = "language"
    domain: ClassVar[str] = "text"
    """The package that runs it: redistill.<domain> has `settings.Settings` and `assemble.assemble`; and
    `assemble.preflight` where something can be checked before weights are loaded."""
    axes: ClassVar[Mapping[str, str]] = {}
    objective: ClassVar[str] = ""
    taxonomy: ClassVar[Mapping[str, str]] = {}
    """What defaults of options do not tell the taxonomy (redistill/taxonomy.py): divergence, sampler, teacher, ..."""
    says_does: ClassVar[Sequence[tuple[str, str]]] = ()
    run_defaults: ClassVar[Mapping[str, Any]] = {}

    def check(self, config: Any) -> None:
        """Refuse combinations of options and run settings that cannot mean anything (UserError)."""

    def teachers(self) -> Sequence[TeacherWeights]:
        """The teacher weights the method will ask for, so that copies are made before the first update."""
        return ()

    def utility_view(self) -> str | None:
        """Name of the privileged view whose usefulness is logged as teacher utility; None without one."""
        return None

    def stages(self) -> Sequence[Stage]:
        """The stages in order; one stage, the method itself, in the common case."""
        return (Stage(self.slug, self),)

    def enter(self, ctx: Context) -> None:
        """Called before the stage's first step, when optimisers are fresh and teacher copies are the stage's own."""

    def collect(self, ctx: Context) -> Sequence[Group]:
        """Gather judged groups: by default the student's own rollouts of the step's prompts under the plain view."""
        groups: Sequence[Group] = ctx.domain.rollout(ctx.next_prompts())
        return groups

    @abstractmethod
    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal | Sequence[Signal]:
        """Turn judged groups into terms."""

    def done(self, groups: Sequence[Group], ctx: Context) -> bool:
        """Whether the stage ends after this step, before its steps are used up."""
        return False

    def after_update(self, groups: Sequence[Group], ctx: Context) -> None:
        """Update pools and curricula once the step's updates are done."""

    def measures(self, ctx: Context) -> Mapping[str, float]:
        """Numbers of the method's own that belong to an evaluation, beside the domain's."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """Parts of the method that evolve, by name; each has state() and restore(). Registered before the run starts."""
        return {}


@dataclass(frozen=True)
class Stage:
    """One stage of a method. `steps` and `learning_rate` None mean the run's own."""

    name: str
    method: Method
    steps: int | None = None
    learning_rate: float | None = None


M = TypeVar("M", bound=type[Method])
_METHODS: dict[str, type[Method]] = {}


def register(cls: M) -> M:
    """Class decorator: make a method known by its slug."""
    if cls.slug in _METHODS and _METHODS[cls.slug].__qualname__ != cls.__qualname__:
        raise ValueError(f"two methods are called {cls.slug!r}")
    _METHODS[cls.slug] = cls
    return cls


def registered() -> dict[str, type[Method]]:
    """All methods that have been imported, by slug."""
    return dict(sorted(_METHODS.items()))
