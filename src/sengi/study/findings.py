"""What a replay says in words: do the early signals predict here, what did the judge save, should one stop at all?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from sengi.statistics.intervals import normal_quantile
from sengi.study.judge import JudgeSettings
from sengi.study.replay import FEWEST, OBJECTIVE, Outcome, Recording
from sengi.study.signals import History, signals_at


class _HasHistory(Protocol):
    @property
    def history(self) -> History: ...


Run = TypeVar("Run", bound=_HasHistory)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of an early signal with the final quality, with its 95% interval.

    Attributes:
        signal: its name.
        expected: sign that the paper's claim gives it.
        value: from -1 to 1, over all runs; NaN where all values of a side are equal.
        n: settings among them; seeds of one say nearly the same, so the interval is that of so many pairs.
        runs: names of the runs that it was made of.
        apart: how many runs were left out, because their signal is not that of the same thing (other data or phases,
            or an adapter against the whole model).
    """

    signal: str
    expected: int
    value: float
    low: float
    high: float
    n: int
    runs: tuple[str, ...] = ()
    apart: int = 0

    @property
    def predicts(self) -> bool:
        """Whether the whole interval is on the side that the claim says."""
        return self.low > 0 if self.expected > 0 else self.high < 0

    @property
    def contradicts(self) -> bool:
        """Whether the whole interval is on the other side."""
        return self.high < 0 if self.expected > 0 else self.low > 0


def correlations(recordings: Sequence[Recording], settings: JudgeSettings, minimize: bool) -> list[Correlation]:
    """Early loss and gradient norm (also without noise, where batch sizes differ) against the final score.

    Read at the last check of the early window, over the runs that have signals there: those of the group with the most
    settings, since signals of two groups are not those of one thing.
    """
    everyone = recordings
    recordings = comparable(everyone)
    check = settings.checks()[-1]
    warm = max(recording.history.warmup_samples for recording in recordings)
    pairs = [(r, s) for r in recordings if (s := signals_at(r.history, check, settings.window, warm)) is not None]
    found = [
        _against("early loss", +1, [(r, s.loss) for r, s in pairs], minimize),
        _against("early gradient norm", -1, [(r, s.grad_norm) for r, s in pairs], minimize),
    ]
    if len({r.history.batch_size for r, _ in pairs}) > 1:
        measured = [(r, s.corrected) for r, s in pairs if math.isfinite(s.corrected)]
        found.append(_against("early gradient norm without noise", -1, measured, minimize))
    return [replace(one, apart=len(everyone) - len(recordings)) for one in found]


def comparable(runs: Sequence[Run]) -> list[Run]:
    """The runs of the group with the most settings; of equally many, of the one that comes first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.history.group, []).append(run)
    return max(groups.values(), key=lambda one: len({run.history.settings for run in one}))


def _against(signal: str, expected: int, told: Sequence[tuple[Recording, float]], minimize: bool) -> Correlation:
    """A signal of each run against its final quality."""
    quality = [-recording.score if minimize else recording.score for recording, _ in told]
    settings = len({recording.history.settings for recording, _ in told})
    found = spearman(signal, expected, [value for _, value in told], quality, settings)
    return replace(found, runs=tuple(sorted(recording.history.name for recording, _ in told)))


def spearman(
    signal: str, expected: int, values: Sequence[float], quality: Sequence[float], settings: int
) -> Correlation:
    """Rank correlation with its interval; without settings enough it is the whole range.

    Args:
        signal: its name; ``expected`` its sign by the claim.
        values: of the signal, one a run; ``quality`` of the same runs.
        settings: that differ among these runs.
    """
    if settings < FEWEST or len(set(values)) == 1 or len(set(quality)) == 1:
        return Correlation(signal, expected, math.nan, -1.0, 1.0, settings)
    from scipy.stats import spearmanr

    value = float(spearmanr(values, quality).statistic)
    return Correlation(signal, expected, value, *rank_interval(value, settings), settings)


def rank_interval(value: float, n: int) -> tuple[float, float]:
    """Interval of Bonett and Wright (Psychometrika 65, 2000): Fisher's z with variance (1 + r^2 / 2) / (n - 3).

    Args:
        value: the rank correlation.
        n: independent pairs that it rests on, four or more.
    """
    # A perfect ranking of few comes up by chance: it counts as half a step of the coefficient below 1
    most = 1 - 6 / (n**3 - n)
    inner = max(-most, min(most, value))
    reach = normal_quantile(0.95) * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(inner) + side * reach) for side in (-1, 1))
    return min(low, value), max(high, value)


def sentences(outcomes: Sequence[Outcome], found: Sequence[Correlation], standard_error: float) -> list[str]:
    """The findings, most important first.

    Args:
        outcomes: of :func:`sengi.study.replay.replay`.
        found: of :func:`correlations`.
        standard_error: of the best run's final score, NaN where it has no interval.
    """
    judged = next(outcome for outcome in outcomes if outcome.policy == "judge, one run after another")
    norm = found[-1]  # without noise where batch sizes differ: what the judge reads
    both = found[0].predicts and norm.predicts
    lines = []
    if both:
        lines.append("The early signals predict the final ranking here, both in the direction the paper says.")
    else:
        lines.append(f"The early signals do not predict the final ranking here ({_failing([found[0], norm])}).")
    lines += [_correlation_sentence(correlation) for correlation in found]
    within = math.isfinite(standard_error) and judged.regret <= standard_error
    cost = f"{judged.regret:.4g} [{judged.low:.4g}, {judged.high:.4g}]"
    lines.append(
        f"The judge would have saved {judged.saved:.0%} of the samples at a regret of {cost}"
        + (
            f", {'within' if within else 'beyond'} one standard error ({standard_error:.2g})." * (standard_error > 0)
            or "."
        )
    )
    better = [outcome for outcome in outcomes if _dominates(outcome, judged) and not outcome.policy.startswith("judge")]
    lines += [
        f"{other.policy} did better on these recordings: {other.saved:.0%} saved at a regret of {other.regret:.4g}."
        for other in better
    ]
    if not better:
        lines.append("No other policy saved at least as much at no more regret.")
    if not any(outcome.policy.endswith(OBJECTIVE) for outcome in outcomes):
        lines.append(
            "Pruners on the objective were not replayed: no run was evaluated between its start and its end "
            "(eval_steps or eval_samples)."
        )
    if both and within and judged.saved > 0:
        lines.append("Recommendation: stop early (early_termination: {mode: terminate, audit: 0.2}) on data like this.")
    else:
        lines.append(
            "Recommendation: do not stop runs by these signals on data like this (early_termination: {mode: advise})."
        )
    return lines


def _dominates(one: Outcome, other: Outcome) -> bool:
    """At least as good on both counts, better on one."""
    return (
        one.saved >= other.saved
        and one.regret <= other.regret
        and (one.saved > other.saved or one.regret < other.regret)
    )


def _failing(found: Sequence[Correlation]) -> str:
    words = []
    for correlation in found:
        if correlation.contradicts:
            words.append(f"{correlation.signal} points the other way")
        elif not correlation.predicts:
            words.append(f"{correlation.signal} cannot be told from chance with {correlation.n} settings")
    return "; ".join(words)


def _correlation_sentence(correlation: Correlation) -> str:
    if math.isnan(correlation.value):
        return f"{correlation.signal}: no rank correlation of {correlation.n} settings that have it at the last check."
    claim = "higher is better" if correlation.expected > 0 else "lower is better"
    apart = f"; {correlation.apart} run(s) of other data, phases or method are not among them" * (correlation.apart > 0)
    return (
        f"{correlation.signal} against final quality: rank correlation {correlation.value:+.2f} "
        f"[{correlation.low:+.2f}, {correlation.high:+.2f}] over {correlation.n} settings (the claim: {claim}){apart}."
    )
