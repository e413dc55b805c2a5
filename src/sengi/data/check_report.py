"""The result of a data check, as dataclasses and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sengi.data.findings import Finding
from sengi.data.overlap import OverlapReport

Overlong = Literal["drop", "truncate", "error"]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """The keys of a recipe that decide what becomes of a sample; see ``sengi.recipe``."""

    max_length: int
    max_tokens_per_device: int
    effective_batch_size: int
    overlong: Overlong = "drop"


@dataclass(slots=True)
class CheckReport:
    """What was found in the data.

    Attributes:
        options: the recipe keys it was checked under.
        files: data files read.
        skipped: files of no known kind beside them.
        rows: rows read, good or bad.
        usable: samples a run would train on.
        formats: rows by format; ``unreadable`` counts those of none.
        sources: usable samples by source.
        tokens: tokens of the usable samples.
        supervised_tokens: of these, targets that count in the loss.
        lengths: tokens a sample, before anything is dropped for its length: min, median, mean, p90, p99, max
            and ``buckets``, a list of ``{"up_to": tokens, "samples": count}``.
        packing: steps an epoch, packs a step and how full they are; None when nothing can be packed.
        round_trip: the first chats whose ids were compared with the chat template's own rendering as transformers
            gives it at inference: ``{"tried": rows, "equal": rows}``.
        overlap: one entry an evaluation file.
        not_compared: files of no known kind in a folder of evaluation files.
        repairs: what the masker mended, by name, and how often.
        notes: what a person should know about the chat template.
        findings: errors first, then warnings.
        seconds: time the check took.
    """

    options: CheckOptions
    files: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rows: int = 0
    usable: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    supervised_tokens: int = 0
    lengths: dict[str, Any] = field(default_factory=dict)
    packing: dict[str, Any] | None = None
    round_trip: dict[str, int] = field(default_factory=lambda: {"tried": 0, "equal": 0})
    overlap: list[OverlapReport] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)
    repairs: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> Literal["errors", "warnings", "ok"]:
        """The worst severity found."""
        if not self.findings:
            return "ok"
        return "errors" if any(finding.severity == "error" for finding in self.findings) else "warnings"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values, with the verdict and the supervised share."""
        share = self.supervised_tokens / self.tokens if self.tokens else 0.0
        return {"verdict": self.verdict, **asdict(self), "supervised_share": round(share, 6)}


def summarize_lengths(lengths: NDArray[np.int64]) -> dict[str, Any]:
    """Return min, median, mean, p90, p99, max and a histogram with bounds that double.

    Args:
        lengths: int64 (N,), tokens of each sample.
    """
    if not len(lengths):
        return {}
    bounds = [32]
    while bounds[-1] < lengths.max():
        bounds.append(bounds[-1] * 2)
    counts = np.bincount(np.searchsorted(bounds, lengths, side="left"), minlength=len(bounds))
    middle, p90, p99 = (round(float(value), 1) for value in np.percentile(lengths, [50, 90, 99]))
    return {
        "min": int(lengths.min()),
        "median": middle,
        "mean": round(float(lengths.mean()), 1),
        "p90": p90,
        "p99": p99,
        "max": int(lengths.max()),
        "buckets": [{"up_to": up, "samples": int(n)} for up, n in zip(bounds, counts, strict=True)],
    }
