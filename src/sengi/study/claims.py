"""The ten claims of arXiv 2412.13337 held against a study: each holds, does not hold, or cannot be told here.

A pure function of the study's results. Each claim is one comparison of runs that agree in everything else
(:mod:`sengi.study.contrasts`), turned so that above zero speaks for the claim, and decided by one of the rules of
:mod:`sengi.study.claim_rules`. A claim whose runs the study does not have says what a study would need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sengi.study.claim_rules import CLAIMS, ClaimResult, Verdict, decide, lacking, result
from sengi.study.field import Field, Level
from sengi.study.findings import Correlation, correlations
from sengi.study.replay import FEWEST
from sengi.study.results import StudyResults

MODERATE = 0.3  # a rank correlation below this is of no use for stopping runs


def judge_claims(results: StudyResults) -> list[ClaimResult]:
    """Hold all ten claims against one study.

    Args:
        results: of :func:`sengi.study.results.read_results`; the order of its runs does not matter.
    """
    field = Field(results)
    rules: dict[int, Callable[[Field], ClaimResult]] = {
        1: _larger_batch,
        2: _early_pace,
        3: _lower_rate,
        4: _warmup,
        5: _schedule,
        6: _stacked,
        7: _by_length,
        8: _early_signals,
        9: _accumulation,
        10: _lab_and_tulu,
    }
    return [rules[number](field) for number in CLAIMS]


def _larger_batch(field: Field) -> ClaimResult:
    levels = field.levels("effective_batch_size")
    if len(levels) < 2:
        return lacking(1, field.lacks("effective_batch_size", levels))
    return decide(1, "higher", field, [(levels[0], levels[-1])])


def _early_pace(field: Field) -> ClaimResult:
    """The only claim about the way and not the end: mean training loss over the same early samples."""
    levels = field.levels("effective_batch_size", scored=False)
    if len(levels) < 2:
        return lacking(2, field.lacks("effective_batch_size", levels))
    found, samples = field.early_losses(levels[0], levels[-1])
    if not samples:
        few = f"the largest batch takes too few steps in the first {field.results.judge.early_samples:,} samples"
        return lacking(2, few)
    if found is None:
        return lacking(2, f"no two runs that differ in this alone have come to {samples:,} samples yet")
    what = f"mean training loss over the first {samples:,} samples, batch {levels[0].text} against {levels[-1].text}"
    return result(2, "higher", found, 0.0, "loss", what)


def _lower_rate(field: Field) -> ClaimResult:
    sizes = field.levels("effective_batch_size")
    largest = sizes[-1].runs if sizes else []
    levels = field.levels("learning_rate", largest)
    if len(levels) < 2:
        return lacking(3, field.lacks("learning_rate", levels, f" at batch {sizes[-1].text}" if len(sizes) > 1 else ""))
    return decide(3, "at least", field, [(higher, levels[0]) for higher in levels[1:]], f", at batch {sizes[-1].text}")


def _warmup(field: Field) -> ClaimResult:
    levels = field.levels("warmup_steps")
    if len(levels) < 2 or levels[0].value != 0:
        return lacking(4, field.lacks("warmup_steps", levels, needs="0 and another value"))
    return decide(4, "at least", field, [(other, levels[0]) for other in levels[1:]])


def _schedule(field: Field) -> ClaimResult:
    levels = {level.value: level for level in field.levels("lr_scheduler_type")}
    if "constant" not in levels or len(levels) < 2:
        return lacking(5, field.lacks("lr_scheduler_type", list(levels.values()), needs="constant and a decay"))
    constant = levels.pop("constant")
    return decide(5, "at least", field, [(other, constant) for other in levels.values()])


def _stacked(field: Field) -> ClaimResult:
    stacked, phased = field.strategy("stacked"), field.strategy("phased", by_length=False)
    if not stacked.runs or not phased.runs:
        return lacking(6, _one_strategy(stacked, phased, "strategy: [stacked, phased]"))
    more = f"; decided by the score alone, {field.samples_to_peak(stacked, phased)}"
    return decide(6, "at least", field, [(phased, stacked)], more)


def _by_length(field: Field) -> ClaimResult:
    stacked, phased = field.strategy("stacked"), field.strategy("phased", by_length=True)
    if not stacked.runs or not phased.runs:
        return lacking(7, _one_strategy(stacked, phased, "phases by response_length"))
    return decide(7, "at least", field, [(phased, stacked)])


def _one_strategy(stacked: Level, phased: Level, needs: str) -> str:
    missing = phased if stacked.runs else stacked
    return f"no finished run is {missing.text}; a study with {needs} can tell"


def _early_signals(field: Field) -> ClaimResult:
    """Over all runs, but as sure as its settings are many: seeds of one setting say nearly the same."""
    recordings, judge = field.results.recordings(), field.results.judge
    settings = len({recording.history.settings for recording in recordings})
    if settings < FEWEST or not judge.checks():
        return lacking(8, f"a rank correlation needs {FEWEST} finished settings or more, here are {settings}")
    found = correlations(recordings, judge, field.results.minimize)
    if math.isnan(found[0].value):
        return lacking(
            8, f"fewer than {FEWEST} comparable settings have enough steps in the early window, or all end the same"
        )
    if math.isnan(found[-1].value):
        missing = "norms of different batch sizes compare only without their noise, and too few runs measured it"
        return lacking(8, f"{missing}: it takes two micro-batches a step or more, on several processes four each")
    both = [found[0], found[-1]]
    weaker = min(both, key=lambda one: one.expected * one.value)
    low, high = sorted((weaker.expected * weaker.low, weaker.expected * weaker.high))
    effect, seen = weaker.expected * weaker.value, _detectable_correlation(weaker.n)
    texts = [
        f"{one.signal} {one.value:+.2f} (claimed: {'+' if one.expected > 0 else '−'}) over {one.n} settings, "
        f"{len(one.runs)} runs"
        for one in both
    ]
    reason = f"rank correlation with the final quality: {'; '.join(texts)}"
    if without := sorted(set(both[0].runs) - set(both[1].runs)):
        reason += f" (its noise was not measured in {', '.join(without)})"
    verdict = _both_signals(both, high)
    if verdict == "cannot tell":
        reason += f"; {weaker.signal} cannot be told from chance"
    return ClaimResult(8, *CLAIMS[8], verdict, reason, "correlation", effect, low, high, seen, both[0].runs)


def _both_signals(both: Sequence[Correlation], high: float) -> Verdict:
    if all(one.predicts for one in both):
        return "holds"
    return "does not hold" if any(one.contradicts for one in both) or high < MODERATE else "cannot tell"


def _detectable_correlation(n: int) -> float:
    """The rank correlation whose interval leaves out zero 4 times in 5, by the variance that findings.spearman uses."""
    rho = 0.0
    for _ in range(50):  # a fixed point: the variance depends on rho itself
        rho = math.tanh((1.96 + 0.842) * math.sqrt((1 + rho**2 / 2) / (n - 3)))
    return rho


def _accumulation(field: Field) -> ClaimResult:
    layouts = field.layouts()
    if len(layouts) < 2:
        return lacking(
            9,
            "all finished runs share one layout; a study with max_tokens_per_device in its space, or another number of "
            "processes, can tell",
        )
    first, *others = layouts
    return decide(9, "equal", field, [(other, first) for other in others], f"; {field.loss_gap(layouts)}")


def _lab_and_tulu(field: Field) -> ClaimResult:
    lab, tulu = field.configurations()
    if not lab.runs or not tulu.runs:
        return lacking(
            10,
            f"no finished run is {'LAB' if tulu.runs else 'TULU'}-like (a large constant batch without warm-up, or a "
            "small one with warm-up and linear decay); a study of preset: [lab, tulu] can tell",
        )
    return decide(10, "higher", field, [(tulu, lab)], f"; on one model, {field.results.model}")
