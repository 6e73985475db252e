"""How often `compare` calls two equal arms different: prints the table of docs/compare.md (about half a minute)."""

from __future__ import annotations

import numpy as np
from redistill.evaluation.intervals import crossed_interval, crossed_weights

PROMPTS, REPEATS, DRAWS = 60, 2000, 400


def main() -> None:
    """For 2, 3 and 5 seeds: the share of intervals that exclude a difference of 0 where there is none."""
    luck = np.random.default_rng(0)
    print("| seeds | ratio | interval used here | bootstrap over seeds and prompts |\n|---|---|---|---|")
    for seeds in (2, 3, 5):
        weight_BS, weight_BP = crossed_weights(seeds, PROMPTS, DRAWS)
        for ratio in (0, 3, 100):
            wrong = np.zeros(2)
            for _ in range(REPEATS):
                gap_SP = luck.normal(size=(seeds, PROMPTS)) + luck.normal(size=(seeds, 1)) * np.sqrt(ratio / PROMPTS)
                ours = crossed_interval(gap_SP)
                low, high = np.quantile(((weight_BS @ gap_SP) * weight_BP).sum(axis=1), [0.025, 0.975])
                wrong += [ours.low > 0 or ours.high < 0, low > 0 or high < 0]
            ours_share, bootstrap_share = wrong / REPEATS
            print(f"| {seeds} | {ratio} | {ours_share:.1%} | {bootstrap_share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
