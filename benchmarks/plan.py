"""Planning speed and how full packs are.

    python -m benchmarks.plan [--json] [--samples 1000000] [--ranks 8]

Times the order of one epoch and the packs of all its steps, as training and `sengi plan` compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.table import Table, median_seconds, parser, show
from sengi.data.packing import pack_step
from sengi.data.plan import Int64s, StepPlan

BATCH = 3840  # arXiv 2412.13337
BUDGET = 4096
ATTENTION_COST = 1.6e-4  # of a 135M Llama: SmolLM2's 30 layers of 9 heads of 64 against 106M matrix parameters


def lengths_of(samples: int) -> Int64s:
    """Lengths of instruction data: lognormal, mean about 350 tokens, at most 4,096."""
    drawn = np.random.default_rng(0).lognormal(5.5, 0.85, samples)
    return np.clip(drawn, 8, BUDGET).astype(np.int64)


def plan_epoch(lengths: Int64s, ranks: int) -> int:
    """Order and pack one epoch; returns its number of steps."""
    plan = StepPlan(len(lengths), BATCH, num_epochs=1, seed=42)
    for step in range(1, plan.num_steps + 1):
        pack_step(lengths[plan.step_samples(step)], BUDGET, ranks, ATTENTION_COST, halves=True)
    return plan.num_steps


def speed(samples: int, ranks: int, repeats: int) -> Table:
    """Seconds to plan one epoch."""
    lengths = lengths_of(samples)
    plan_epoch(lengths[: 3 * BATCH], ranks)  # numba compiles here, once for each installation
    rows = []
    for count in sorted({1, ranks}):
        seconds = median_seconds(partial(plan_epoch, lengths, count), repeats)
        rows.append((count, len(lengths), -(-len(lengths) // BATCH), seconds, len(lengths) / seconds))
    return Table(
        f"Plan of one epoch of {samples:,} samples, {BATCH:,} a step, {BUDGET:,} tokens a pack",
        ("ranks", "samples", "steps", "seconds", "samples/s"),
        rows,
        [
            f"median of {repeats}; lengths lognormal, mean {lengths.mean():.0f} tokens; target: at most 1 s at 8 ranks",
            "not counted: compiling the packing code, some seconds once for each installation (numba keeps it on disk)",
        ],
    )


def fullness(samples: int, ranks: int, steps: int = 20) -> Table:
    """How full packs are, against the least number that could hold the tokens."""
    lengths = lengths_of(samples)
    plan = StepPlan(samples, BATCH, num_epochs=1, seed=42)
    looked = range(1, min(steps, samples // BATCH) + 1)
    rows = []
    for count in sorted({1, ranks}):
        least, made, fills = 0, 0, []
        for step in looked:
            mine = lengths[plan.step_samples(step)]
            packs = pack_step(mine, BUDGET, count, ATTENTION_COST, halves=True)  # as training packs
            least += -(-int(mine.sum()) // BUDGET)
            made += sum(len(rank) for rank in packs.ranks)
            fills.append(packs.fill(BUDGET))
        rows.append(
            (count, least / len(looked), made / len(looked), 100 * float(np.mean(fills)), 100 * float(np.min(fills)))
        )
    return Table(
        f"Packs of a step of {BATCH:,} samples, {BUDGET:,} tokens each (mean of {len(looked)} steps)",
        ("ranks", "least possible", "packs", "% full", "% full, worst"),
        rows,
        [
            "least possible: tokens of the step over the budget, rounded up; target: at least 99% full on one rank",
            f"{ranks} ranks need equal numbers of packs, so up to {ranks - 1} are made to fill the last turn; the cost "
            "is spread over all",
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--samples", type=int, default=1_000_000)
    options.add_argument("--ranks", type=int, default=8)
    given = options.parse_args(arguments)
    show([speed(given.samples, given.ranks, given.repeats), fullness(given.samples, given.ranks)], given.json)


if __name__ == "__main__":
    main()
