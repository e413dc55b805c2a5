"""What the paper claims, and the three rules by which runs speak for or against it.

* *higher*: holds where the whole interval is above zero; does not where a gain worth having is excluded. Where half of
  the blocks or more go the other way, and the mean is not equal, it is that of the block that differs most, and
  nothing is told.
* *at least*: holds where a loss worth speaking of is excluded; does not where a loss was shown beyond that.
* *equal*: holds where the whole interval is within what counts as equal; does not where it leaves out zero.

Anything else is "cannot tell", with the effect that could have been seen. Worth having, or worth speaking of, is one
percentage point of a share, and one percent of the best score otherwise: no p value says what matters.
Several comparisons of one claim share the 5% of error (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sengi.study.contrasts import Contrast
from sengi.study.field import Field, Level

Verdict = Literal["holds", "does not hold", "cannot tell"]
Rule = Literal["higher", "at least", "equal"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ClaimResult:
    """What a study says of one claim.

    Attributes:
        number: in the paper's list, 1 to 10.
        claim: what is claimed.
        paper: the paper's own numbers.
        verdict: what is seen here.
        reason: why, in one sentence.
        unit: of the effect: ``score`` (of the objective), ``loss`` (nats) or ``correlation``; empty without one.
        effect, low, high: how far it speaks for the claim, with its interval; NaN where there is none.
        detectable: the smallest effect that would have been seen 4 times in 5; NaN where nothing tells.
        runs: names of the runs that it rests on.
    """

    number: int
    claim: str
    paper: str
    verdict: Verdict
    reason: str
    unit: str = ""
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    detectable: float = math.nan
    runs: tuple[str, ...] = ()


CLAIMS = {
    1: (
        "A larger batch at the same learning rate ends higher",
        "MMLU 0.516, 0.526, 0.529 and MT-Bench 6.41, 6.77, 6.83 at 128, 3,840 and 7,680",
    ),
    2: ("A small batch learns faster per sample early on", "curves only"),
    3: ("At a large batch, the lower learning rate is at least as good", "2e-5 of 2e-5 to 1e-4; Mistral 1e-6"),
    4: ("Warm-up is not needed", "MMLU 0.531, 0.528, 0.526 at 0, 25 and 100 steps"),
    5: (
        "A constant learning rate is as good as a decay",
        "MMLU 0.5242 and MT-Bench 6.76 constant, 0.5251 and 6.68 cosine",
    ),
    6: (
        "Stacked training is at least as good as phased, in fewer samples",
        "MMLU 0.53 and 0.52, MT-Bench 6.77 and 6.76; peaks at 3.7-4.4M and 7.9-8.1M samples",
    ),
    7: ("Phases by response length do not help", "a tie, stacked slightly ahead"),
    8: ("A lower early gradient norm and a higher early loss go with better final scores", "curves only"),
    9: ("Accumulated micro-batches equal many devices", "same loss curve and scores"),
    10: (
        "The LAB configuration beats TULU",
        "LLaMA 3B: higher on 7 of 7 scores, on domain data on 3 of 4; more samples to the peak in 10 of 11",
    ),
}


def lacking(number: int, reason: str) -> ClaimResult:
    """A claim for which the study has no runs."""
    return ClaimResult(number, *CLAIMS[number], "cannot tell", reason)


def decide(number: int, rule: Rule, field: Field, pairs: Sequence[tuple[Level, Level]], more: str = "") -> ClaimResult:
    """Compare the final scores of pairs of levels.

    Args:
        number: of the claim.
        rule: by which each pair is decided.
        field: the runs.
        pairs: of levels; the second of each is the one that the claim favours.
        more: said of the comparison behind what was compared.
    """
    confidence = 1 - (1 - CONFIDENCE) / len(pairs)
    found = [(one, other, field.contrast(one, other, confidence)) for one, other in pairs]
    known = [(one, other, effect) for one, other, effect in found if effect is not None]
    if not known:
        return lacking(number, "no two finished runs differ in this alone")
    verdicts = [_verdict(rule, effect, field.margin) for _, _, effect in known]
    together: Verdict = "cannot tell"
    if "does not hold" in verdicts:
        together = "does not hold"
    elif set(verdicts) == {"holds"}:
        together = "holds"
    # shown is the comparison that speaks most against the claim, of those that decided it
    shown = [entry for entry, verdict in zip(known, verdicts, strict=True) if verdict == together]
    far = max if rule == "equal" else min
    one, other, effect = far(shown, key=lambda e: abs(e[2].value) if rule == "equal" else e[2].value)
    what = f"{one.name} {other.text} against {one.text}{_among(len(known))}{more}"
    return result(number, rule, effect, field.margin, "score", what, together)


def _among(count: int) -> str:
    return f" (of {count} comparisons the one that speaks most against it)" if count > 1 else ""


def result(
    number: int, rule: Rule, effect: Contrast, margin: float, unit: str, what: str, verdict: Verdict | None = None
) -> ClaimResult:
    """A claim that was compared.

    Args:
        number: of the claim.
        rule: by which it is decided.
        effect: how far the runs speak for it.
        margin: what counts as equal.
        unit: of the effect.
        what: was compared, for people.
        verdict: where several comparisons decided it.
    """
    decided = verdict or _verdict(rule, effect, margin)
    reason = f"{what}; {_basis(effect)}"
    return ClaimResult(
        number,
        *CLAIMS[number],
        decided,
        reason,
        unit,
        effect=effect.value,
        low=effect.low,
        high=effect.high,
        detectable=effect.detectable,
        runs=effect.runs,
    )


def _verdict(rule: Rule, effect: Contrast, margin: float) -> Verdict:
    """One comparison under one rule; see the module's first lines."""
    if not effect.sure:
        return "cannot tell"
    if rule == "higher":
        if _depends(effect) and max(-effect.low, effect.high) >= margin:
            return "cannot tell"
        if effect.low > 0:
            return "holds"
        return "does not hold" if effect.high < margin or effect.high <= 0 else "cannot tell"
    if rule == "at least":
        if effect.low > -margin:
            return "holds"
        return "does not hold" if effect.high < 0 else "cannot tell"
    if -margin < effect.low and effect.high < margin:
        return "holds"
    return "cannot tell" if effect.low <= 0 <= effect.high else "does not hold"


def _agreeing(effect: Contrast) -> int:
    """Blocks whose difference has the sign of the mean."""
    return sum(math.copysign(1, d) == math.copysign(1, effect.value) for d in effect.blocks.values())


def _depends(effect: Contrast) -> bool:
    """Whether half of the blocks or more go the other way than their mean."""
    return len(effect.blocks) > 1 and 2 * _agreeing(effect) <= len(effect.blocks)


def _basis(effect: Contrast) -> str:
    """What the interval counts, and in how many blocks the sign is the same."""
    parts = []
    if len(effect.blocks) > 1:
        same, depends = _agreeing(effect), " only: it depends on them" if _depends(effect) else ""
        parts.append(f"mean over {len(effect.blocks)} blocks of other settings, the same way in {same}{depends}")
    if not effect.sure:
        parts.append("one seed and no single results, so nothing says how sure it is")
    elif effect.chance == ("questions",):
        parts.append("one seed: the interval counts the choice of questions, not the chance of training")
    else:
        parts.append(f"the interval counts {' and '.join(effect.chance)}")
    return "; ".join(parts)
