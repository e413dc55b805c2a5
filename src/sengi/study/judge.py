"""The judge of early termination: histories in, verdicts out. A pure function: no files, no clock, no chance.

The paper's signal (arXiv 2412.13337, knowledge from its section on early training dynamics): of the runs of one sweep,
those with the lower gradient norm *and* the higher loss early in training tend to end best. It is an observation, not
a law, and raw numbers mislead. So runs are compared

* at equal samples seen, at checks ``check_samples`` apart, and only in the early part of training: the norms of good
  runs rise later;
* after the warm-up of all of them;
* with the noise taken out of the norms where batch sizes differ: a larger batch has a lower norm for no merit;
* with runs whose loss and norm mean the same: those of an adapter, or on other data, say nothing of the others';
* with runs that learn at a fair share of the field's pace: a rate of zero has the highest loss and must not win;
* by more than chance on both signals (margins.py), at ``checks_in_a_row`` checks.

A run whose two signals disagree is kept. Runs that learn too slowly neither judge nor count as survivors, and are never
stopped here: that both their signals are good says nothing. What stops a run at a check is in the histories up to
that check, so later steps never change a verdict; a run that reaches the check later (runs need not train at the same
time) may be compared with all that reached it before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sengi.study.margins import Margins, calibrate
from sengi.study.signals import MIN_STEPS, History, Signals, signals_at

State = Literal["wait", "keep", "slow", "suspect", "spared", "advise", "audit", "late", "stop", "continued"]
LARGEST_CHANGE = 10.0  # logarithm of a ratio, 22,000 times: more says nothing to a reader
CONDEMNED = ("advise", "audit", "late", "stop", "continued")  # the states of a run that leaves the field


@dataclass(frozen=True)
class JudgeSettings:
    """How runs are judged.

    Attributes:
        check_samples: samples between checks.
        early_samples: samples after which nobody is judged any more.
        mode: ``advise`` marks runs, ``terminate`` stops them.
        audit: share of the runs that ``terminate`` would stop and that run on, to measure what stopping costs.
        min_survivors: learning runs that are never stopped.
        fair_share: least progress of a run that may judge others, as a share of the fastest run's.
        window: share of a check's samples over which signals are smoothed.
        confidence: share of differences by chance that stay within the margins.
        checks_in_a_row: checks at which both signals must agree.
    """

    check_samples: int
    early_samples: int
    mode: Literal["advise", "terminate"] = "advise"
    audit: float = 0.0
    min_survivors: int = 1
    fair_share: float = 0.5
    window: float = 0.2
    confidence: float = 0.95
    checks_in_a_row: int = 2

    def checks(self) -> range:
        """Samples seen at each check."""
        return range(self.check_samples, self.early_samples + 1, self.check_samples)


@dataclass(frozen=True)
class Verdict:
    """The judge's word on one run at one check; numbers are NaN where they do not exist.

    Attributes:
        run, check: name, and samples seen.
        state: ``wait`` (cannot be judged yet), ``keep``, ``slow`` (learns too little to be compared), ``suspect``
            (worse on both signals, not often enough), ``spared`` (condemned, but among the last), ``advise``,
            ``audit`` or ``stop`` (condemned, by mode), ``late`` (condemned in hindsight: runs on), ``continued``
            (stopped, and taken back by the scheduler, since too few others were left).
        reason: one sentence.
        loss, grad_norm: signals at the check; ``corrected_norm`` without noise.
        reference: the run it was compared with, or empty.
        loss_gap: how far its loss is below the reference's, nats; ``loss_margin`` is what chance explains.
        norm_gap: logarithm of its norm over the reference's; ``norm_margin`` likewise.
    """

    run: str
    check: int
    state: State
    reason: str
    loss: float = math.nan
    grad_norm: float = math.nan
    corrected_norm: float = math.nan
    reference: str = ""
    loss_gap: float = math.nan
    loss_margin: float = math.nan
    norm_gap: float = math.nan
    norm_margin: float = math.nan


def judge(histories: Iterable[History], settings: JudgeSettings) -> list[Verdict]:
    """Judge all runs at all checks they reached.

    Args:
        histories: one a run, in any order; names are unique. A run that has not begun belongs here too: it says how
            long the longest warm-up is. One that failed, or that an alarm stopped, does not: it will never have a
            score, so it must neither condemn others nor count as a survivor.
        settings: how.

    Returns:
        Verdicts by check, then name; none for a run after the check that condemned it.
    """
    runs = sorted(histories, key=lambda run: run.name)
    warm = max((run.warmup_samples for run in runs), default=0)
    verdicts: list[Verdict] = []
    rows: dict[str, int] = {}  # checks in a row at which both signals spoke against a run
    condemned: set[str] = set()
    for check in settings.checks():
        present = [run for run in runs if run.name not in condemned and run.reached(check)]
        found: dict[str, Verdict] = {}
        for group in sorted({run.group for run in present}):
            found |= _compare([run for run in present if run.group == group], check, warm, settings)
        rows = {name: rows.get(name, 0) + 1 for name, verdict in found.items() if verdict.state == "suspect"}
        guilty = [name for name, count in rows.items() if count >= settings.checks_in_a_row]
        learning = sum(verdict.state in ("keep", "suspect") and bool(verdict.reference) for verdict in found.values())
        room = learning - settings.min_survivors
        # the worst go first; equal ones by name, so that the order of the runs does not matter
        for name in sorted(guilty, key=lambda name: (-excess(vars(found[name])), name)):
            found[name] = _sentence(found[name], settings, spared=room <= 0)
            if room > 0:
                condemned.add(name)
                room -= 1
        verdicts += [found[name] for name in sorted(found)]
    return verdicts


def _compare(present: list[History], check: int, warm: int, settings: JudgeSettings) -> dict[str, Verdict]:
    """One check: every run of one group that is there against the best of its field."""
    found: dict[str, Verdict] = {}
    judged: dict[str, tuple[History, Signals]] = {}
    for run in present:
        signals = signals_at(run, check, settings.window, warm)
        if signals is None:
            why = f"the warm-up of all runs is not over, or its window holds fewer than {MIN_STEPS} whole steps"
            found[run.name] = Verdict(run.name, check, "wait", f"not judged at {check:,} samples: {why}")
        else:
            judged[run.name] = run, signals
    pace = max((signals.progress for _, signals in judged.values()), default=0.0)
    learning = {
        name: (run, signals)
        for name, (run, signals) in judged.items()
        if signals.progress > signals.progress_error and signals.progress >= settings.fair_share * pace
    }
    for name in judged.keys() - learning.keys():
        found[name] = _slow(judged[name], check, pace, settings)
    for field, corrected in _fields(learning):
        found |= _judge_field(field, corrected, check, settings)
    return found


def _fields(learning: Mapping[str, tuple[History, Signals]]) -> list[tuple[dict[str, tuple[History, Signals]], bool]]:
    """Runs whose norms can be compared, and whether without their noise.

    Of one batch size, raw norms are the sharper signal. Of several, runs with measured noise make one field; the others
    are compared within their batch size.
    """
    if len({run.batch_size for run, _ in learning.values()}) <= 1:
        return [(dict(learning), False)]
    measured = {name: pair for name, pair in learning.items() if math.isfinite(pair[1].corrected)}
    by_size: dict[int, dict[str, tuple[History, Signals]]] = {}
    for name, pair in learning.items():
        if name not in measured:
            by_size.setdefault(pair[0].batch_size, {})[name] = pair
    return [(measured, True), *((field, False) for field in by_size.values())]


def _judge_field(
    field: dict[str, tuple[History, Signals]], corrected: bool, check: int, settings: JudgeSettings
) -> dict[str, Verdict]:
    """Each run of a field against its best: the one with the lowest norm and highest loss, in units of chance."""
    if not field:
        return {}
    margins = calibrate(field, corrected, settings.confidence)

    def rank(name: str) -> tuple[float, str]:
        signals = field[name][1]
        norm = signals.log_norm(corrected) / margins.of_norm(signals, signals)
        # noise was all that was seen of its norm: it cannot lead
        score = norm - signals.loss / margins.of_loss(signals, signals)
        return score if math.isfinite(score) else math.inf, name

    best = min(field, key=rank)
    return {
        name: _verdict(name, signals, best, field[best][1], margins, corrected, check)
        for name, (_, signals) in field.items()
    }


def _verdict(
    name: str, one: Signals, best: str, other: Signals, margins: Margins, corrected: bool, check: int
) -> Verdict:
    """A run against the best one."""
    loss_gap, norm_gap = other.loss - one.loss, one.log_norm(corrected) - other.log_norm(corrected)
    verdict = Verdict(
        name,
        check,
        "keep",
        "",
        loss=one.loss,
        grad_norm=one.grad_norm,
        corrected_norm=math.sqrt(one.corrected) if one.corrected > 0 else math.nan,
        reference=best,
        loss_gap=loss_gap,
        loss_margin=margins.of_loss(one, other),
        norm_gap=norm_gap,
        norm_margin=margins.of_norm(one, other),
    )
    if math.isinf(verdict.norm_margin):
        few = "too few of the runs that tell what chance does have a gradient norm above their noise"
        return replace(verdict, reason=f"kept at {check:,} samples: the margin of the gradient norm is unknown, {few}")
    if name == best:
        return replace(
            verdict, reason=f"kept at {check:,} samples: lowest gradient norm and highest loss of those that learn"
        )
    if not math.isfinite(norm_gap):
        return replace(verdict, reason=f"kept at {check:,} samples: its gradient norm cannot be told from noise")
    higher, lower = norm_gap > verdict.norm_margin, loss_gap > verdict.loss_margin
    kind = "gradient norm without noise" if corrected else "gradient norm"
    numbers = (
        f"{kind} {_change(norm_gap)} (chance {_change(verdict.norm_margin, sign='')}) and loss {-loss_gap:+.4f} "
        f"(chance {verdict.loss_margin:.4f}) against {best}; margins from {margins.source}"
    )
    if higher and lower:
        return replace(verdict, state="suspect", reason=f"worse on both signals at {check:,} samples: {numbers}")
    word = "the signals disagree" if higher or lower else "within chance of the best, or better"
    return replace(verdict, reason=f"kept at {check:,} samples, {word}: {numbers}")


def _change(logarithm: float, sign: str = "+") -> str:
    """The logarithm of a ratio as a change in percent; two seeds with hardly a gradient make ratios no float holds."""
    return f"{math.expm1(logarithm):{sign}.1%}" if logarithm < LARGEST_CHANGE else "beyond measure"


def _slow(pair: tuple[History, Signals], check: int, pace: float, settings: JudgeSettings) -> Verdict:
    run, signals = pair
    return Verdict(
        run.name,
        check,
        "slow",
        f"not compared at {check:,} samples: its loss fell by {signals.progress:.4f} (chance explains "
        f"{signals.progress_error:.4f}), the fastest run's by {pace:.4f}, and a run must make "
        f"{settings.fair_share:.0%} of that",
        loss=signals.loss,
        grad_norm=signals.grad_norm,
        corrected_norm=math.sqrt(signals.corrected) if signals.corrected > 0 else math.nan,
    )


def excess(numbers: Mapping[str, Any]) -> float:
    """How far beyond chance a run is, on the weaker of its signals, in margins; 0 where that was not measured.

    Args:
        numbers: of a verdict, or a line of verdicts.jsonl, where numbers that are not finite are None.
    """
    pairs = [(numbers.get(f"{signal}_gap"), numbers.get(f"{signal}_margin")) for signal in ("loss", "norm")]
    return min((gap / margin for gap, margin in pairs if gap is not None and margin), default=0.0)


def _sentence(verdict: Verdict, settings: JudgeSettings, spared: bool) -> Verdict:
    """What happens to a run that was suspect often enough."""
    row = f"{settings.checks_in_a_row} checks in a row"
    if spared:
        return replace(
            verdict, state="spared", reason=f"kept as one of the last {settings.min_survivors}: {verdict.reason}"
        )
    if settings.mode == "advise":
        return replace(verdict, state="advise", reason=f"would be stopped, {row}: {verdict.reason}")
    if is_audited(verdict.run, settings.audit):
        return replace(
            verdict, state="audit", reason=f"condemned and run on to measure the cost, {row}: {verdict.reason}"
        )
    return replace(verdict, state="stop", reason=f"stopped, {row}: {verdict.reason}")


def without_hindsight(
    verdicts: Iterable[Verdict], before: Mapping[str, float], now: Mapping[str, float], settings: JudgeSettings
) -> list[Verdict]:
    """Turn stops into ``late`` where the run has left the check behind: hindsight stops nobody.

    A run can be stopped at a check that it reached since the judge was asked last, and until it reaches the next one.

    Args:
        verdicts: of :func:`judge`.
        before: samples that each run had seen when the judge was asked last; infinite for runs that are over.
        now: samples that each has seen now.
        settings: of the judge.
    """
    return [
        replace(v, state="late", reason=f"condemned too late to be stopped, {v.reason.removeprefix('stopped, ')}")
        if v.state == "stop" and before[v.run] >= v.check and now[v.run] >= v.check + settings.check_samples
        else v
        for v in verdicts
    ]


def is_audited(name: str, share: float) -> bool:
    """Whether a condemned run of this name runs on: the same answer every time, for ``share`` of all names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < share
