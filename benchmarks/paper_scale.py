"""The plan of a run as large as the paper's, without its hardware: how full, how balanced, how long to plan.

    python -m benchmarks.paper_scale [--json] [--data FILE ... --model MODEL]

825,487 samples (arXiv 2412.13337, the LAB data), batches of 128, 3,840 and 7,680, 8 and 64 ranks, budgets of 8,192 to
60,000 tokens a device (60,000 is the authors'). Nothing is trained: a plan is a pure function of lengths, so this is
the plan that a run would have. Lengths are lognormal, or those of FILE under MODEL's tokenizer, drawn with repetition.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.plan import lengths_of
from benchmarks.table import Table, parser, show
from sengi.data.packing import StepPacks, pack_step
from sengi.data.plan import Int64s, StepPlan

SAMPLES = 825_487
BATCHES, RANKS, BUDGETS = (128, 3840, 7680), (8, 64), (8192, 16_384, 60_000)
LONGEST = 4096
# Cost of a squared token in units of a token's, 7B Llama: 6 x 32 layers x 4,096 over 6 x 6.5e9 matrix parameters
ATTENTION_COST = 2.0e-5
LOOKED = 20  # steps of the epoch whose packs are made


def real_lengths(files: Sequence[str], model: str) -> Int64s:
    """Lengths of the conversations in ``files`` as training would see them, ``SAMPLES`` of them, drawn again."""
    from sengi.data.store import StoreOptions
    from sengi.data.store_build import open_store
    from sengi.model.load import load_tokenizer
    from sengi.model.resolve import resolve_model
    from sengi.recipe import DataEntry

    entries = [DataEntry(path=file) for file in files]
    store = open_store(entries, load_tokenizer(resolve_model(model)), StoreOptions(LONGEST, "drop"))
    return np.random.default_rng(0).choice(np.asarray(store.lengths, dtype=np.int64), SAMPLES)


def idle_share(packs: StepPacks, costs: np.ndarray) -> float:
    """Share of all ranks' time in a step in which they wait for the dearest pack of the same turn.

    FSDP gathers each layer's weights from all ranks, so no rank is ahead of another by more than a layer.
    """
    work = np.array([[costs[pack].sum() for pack in rank] for rank in packs.ranks])
    return float(1 - work.sum() / (len(packs.ranks) * work.max(axis=0).sum()))


def row(lengths: Int64s, plan: StepPlan, ranks: int, budget: int) -> tuple[object, ...]:
    """Figures of one setting, means over steps spread over the epoch."""
    steps = np.unique(np.linspace(1, plan.num_steps - 1, LOOKED).astype(int))
    plan.step_samples(1)  # the epoch's order is made once
    fills, idle, uneven, turns, seconds = [], [], [], [], []
    for step in steps:
        began = time.process_time()
        mine = lengths[plan.step_samples(int(step))]
        packs = pack_step(mine, budget, ranks, ATTENTION_COST, halves=True)
        seconds.append(time.process_time() - began)
        costs = mine + ATTENTION_COST * mine.astype(np.float64) ** 2
        totals = np.array([sum(costs[pack].sum() for pack in rank) for rank in packs.ranks])
        fills.append(packs.fill(budget))
        idle.append(idle_share(packs, costs))
        uneven.append(totals.max() / totals.mean() - 1)
        turns.append(len(packs.ranks[0]))
    return (
        plan.batch_size,
        ranks,
        budget,
        float(np.mean(turns)),
        100 * float(np.mean(fills)),
        100 * float(np.mean(uneven)),
        100 * float(np.mean(idle)),
        1000 * float(np.median(seconds)),
    )


def table(lengths: Int64s, source: str) -> Table:
    """All settings."""
    pack_step(lengths[:1000], LONGEST, 2, ATTENTION_COST)  # numba compiles here, once for each installation
    rows = []
    for batch in BATCHES:
        plan = StepPlan(len(lengths), batch, num_epochs=10, seed=42)
        rows += [row(lengths, plan, ranks, budget) for ranks in RANKS for budget in BUDGETS]
    began = time.process_time()
    StepPlan(len(lengths), 128, num_epochs=10, seed=43).epoch_order(0)
    order = time.process_time() - began
    percentiles = ", ".join(f"{int(np.percentile(lengths, p)):,}" for p in (5, 50, 95))
    return Table(
        f"The plan of {len(lengths):,} samples: {source}",
        ("batch", "ranks", "budget", "packs/rank", "% full", "% uneven", "% idle", "plan ms"),
        rows,
        [
            f"lengths: mean {lengths.mean():.0f}, 5/50/95% {percentiles}, longest {lengths.max():,}; "
            f"means of {LOOKED} steps; one epoch's order takes {order:.2f} s, once an epoch",
            "packs/rank: micro-batches of a step on each rank, equal on all by construction",
            "% full: tokens over budget; below 100 / packs is what a step of that many tokens cannot fill",
            "% uneven: dearest rank's work of the step over the mean; % idle: time that ranks wait, turn by turn",
            f"work of a sample of L tokens: L + {ATTENTION_COST:g} L^2 (7B); plan ms: CPU time a step, median",
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--data", nargs="+", help="data files whose lengths are drawn")
    options.add_argument("--model", default="smollm2-135m", help="model whose tokenizer counts")
    given = options.parse_args(arguments)
    if given.data:
        lengths, source = real_lengths(given.data, given.model), f"lengths of {len(given.data)} files, {given.model}"
    else:
        lengths, source = lengths_of(SAMPLES), "lengths lognormal"
    show([table(lengths, source)], given.json)


if __name__ == "__main__":
    main()
