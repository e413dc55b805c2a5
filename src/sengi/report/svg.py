"""Small drawings as inline SVG, for the page without JavaScript: a histogram, and an interval bar."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from sengi.report import formats
from sengi.report.scores import Comparison

WIDTH, HEIGHT, FOOT = 720, 190, 30


def histogram(edges: Sequence[float], counts: Sequence[float], label: str) -> Markup:
    """Bars over [edges[i], edges[i+1]) with the edges below; colours come from the page's style sheet.

    Args:
        edges: n + 1 rising numbers.
        counts: n numbers, none negative.
        label: what is counted, read by screen readers.

    Returns:
        An ``<svg>`` element; an empty string when there is nothing to draw.
    """
    top = max(counts, default=0)
    if len(edges) != len(counts) + 1 or top <= 0 or not all(map(math.isfinite, (*edges, *counts))):
        return Markup("")
    slot = WIDTH / len(counts)
    parts = []
    for i, count in enumerate(counts):
        height = (HEIGHT - FOOT - 16) * count / top
        tip = f"{formats.count(edges[i])} to {formats.count(edges[i + 1])} tokens: {formats.count(count)}"
        parts.append(
            f'<rect x="{i * slot + 1:.1f}" y="{HEIGHT - FOOT - height:.1f}" width="{max(slot - 2, 0.5):.1f}" '
            f'height="{height:.1f}"><title>{tip}</title></rect>'
        )
    every = max(1, math.ceil(len(edges) / 9))
    for i in range(0, len(edges), every):
        anchor = "start" if i == 0 else "end" if i == len(edges) - 1 else "middle"
        text = formats.short_count(edges[i])
        parts.append(f'<text x="{i * slot:.1f}" y="{HEIGHT - FOOT + 17}" text-anchor="{anchor}">{text}</text>')
    parts.append(f'<text x="0" y="10">{formats.count(top)}</text>')
    parts.append(f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT - FOOT}" y2="{HEIGHT - FOOT}"/>')
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def score_bar(comparison: Comparison) -> Markup:
    """Two intervals on a line from 0 to 100%: a hollow dot before, a full one after; empty for other metrics."""
    if not formats.is_share(comparison.before.metric):
        return Markup("")
    pairs = [(comparison.before, "before", 5)]
    if comparison.step_after != comparison.step_before:
        pairs.append((comparison.after, "after", 15))
    parts = ['<line class="rail" x1="4" x2="156" y1="10" y2="10"/>']
    for score, kind, y in pairs:
        if not 0 <= score.value <= 1:
            return Markup("")
        low = score.low if math.isfinite(score.low) else score.value
        high = score.high if math.isfinite(score.high) else score.value
        parts.append(f'<line class="{kind}" x1="{_across(low)}" x2="{_across(high)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{_across(score.value)}" cy="{y}" r="3.5"/>')
    return Markup(f'<svg class="score" viewBox="0 0 160 20" aria-hidden="true">{"".join(parts)}</svg>')


def _across(share: float) -> str:
    return f"{4 + 152 * min(1.0, max(0.0, share)):.1f}"
