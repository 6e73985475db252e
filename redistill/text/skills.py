"""A bank of skills: short texts a task, chosen by an upper confidence bound, part of the run's state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from redistill.core.state import Piece


@dataclass
class Entry:
    """A skill, the reward of the trajectory it came from (one observation), how often it was chosen and what that brought."""

    text: str
    prior: float
    chosen: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Mean reward, the source's counted once."""
        return (self.prior + self.total) / (1 + self.chosen)


def upper_bound(mean: float, chosen: int, retrievals: int, exploration: float) -> float:
    """UCB1 (Auer et al., 2002): mean + c sqrt(ln N / n); infinite for what was never chosen."""
    return math.inf if chosen == 0 else mean + exploration * math.sqrt(math.log(max(retrievals, 1)) / chosen)


class SkillBank:
    """The skills of every task, by the prompt's uid."""

    def __init__(self) -> None:
        self.entries: dict[str, list[Entry]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.entries.values()))

    def choose(self, uid: str, exploration: float) -> str | None:
        """The skill with the highest bound (of those never chosen, the one from the best trajectory); None without any.
        Choosing changes nothing: `credit` does."""
        known = self.entries.get(uid, [])
        retrievals = sum(entry.chosen for entry in known)
        if not known:
            return None
        best = max(known, key=lambda e: (upper_bound(e.mean, e.chosen, retrievals, exploration), e.mean))
        return best.text

    def credit(self, uid: str, text: str | None, reward: float) -> None:
        """Count a use of a skill and the mean reward of the group it taught."""
        for entry in self.entries.get(uid, []):
            if entry.text == text:
                entry.chosen, entry.total = entry.chosen + 1, entry.total + reward

    def add(self, uid: str, text: str, reward: float, keep: int) -> None:
        """Add a skill from a trajectory with this reward, unless it is known; only the `keep` with the best means stay."""
        known = self.entries.setdefault(uid, [])
        if text.strip() and all(entry.text != text for entry in known):
            known.append(Entry(text, reward))
            known.sort(key=lambda entry: -entry.mean)
            del known[keep:]

    def state(self) -> Piece:
        """All entries."""
        return Piece(facts={"tasks": {uid: [asdict(entry) for entry in known] for uid, known in self.entries.items()}})

    def restore(self, piece: Piece) -> None:
        """Become what `state` described."""
        self.entries = {uid: [Entry(**entry) for entry in known] for uid, known in piece.facts["tasks"].items()}
