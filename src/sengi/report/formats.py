"""Numbers as people read them; one spelling a kind of number, for the page and for Markdown alike."""

from __future__ import annotations

import math
from typing import Any

NOTHING = "–"
# Metrics that are shares of right answers, and means of numbers from 0 to 1, by the beginning of their names
SHARES = ("acc", "exact_match", "mc1", "mc2", "prompt_level", "inst_level", "pass@", "em", "f1", "mcc")


def number(value: float, digits: int = 4) -> str:
    """A real number with that many significant digits; a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, digits - whole)}f}".replace("-", "−")


def count(value: float) -> str:
    """A whole number with thousands separated; a dash for NaN."""
    return f"{value:,.0f}" if math.isfinite(value) else NOTHING


def short_count(value: float) -> str:
    """A count in three digits and a unit: 1,234,567 is 1.23M."""
    if not math.isfinite(value):
        return NOTHING
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.{max(0, 3 - len(str(int(abs(scaled)))))}f}{unit}"
    return f"{value:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """A share of one as a percentage."""
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else NOTHING


def points(share: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * share:+.1f} pp".replace("-", "−") if math.isfinite(share) else NOTHING


def points_interval(low: float, high: float) -> str:
    """Both ends of a difference of shares, in percentage points."""
    return f"{points(low).removesuffix(' pp')} to {points(high)}"


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 20 s, 5 h 12 min or 3 d 4 h."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.3g} s"
    for size, unit, inner_size, inner in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = int(seconds % size // inner_size)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {inner}" if rest else "")
    raise AssertionError("60 seconds and more are handled above")


def memory(size: float) -> str:
    """Bytes in binary units."""
    if not math.isfinite(size):
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def p_value(value: float | None) -> str:
    """A p value; the smallest are given as a bound."""
    if value is None:
        return NOTHING
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def is_share(metric: str) -> bool:
    """Whether a metric goes from 0 to 1, so that it is printed in percent."""
    return metric.startswith(SHARES)


def score(value: float, of: str) -> str:
    """A score in the way of its metric: percent for shares, four digits for the rest."""
    return percent(value) if is_share(of) else number(value)


def difference(value: float, of: str) -> str:
    """A difference of two scores, with its sign."""
    return points(value) if is_share(of) else ("+" if value > 0 else "") + number(value)


def difference_interval(low: float, high: float, of: str) -> str:
    """Both ends of a difference of scores."""
    return points_interval(low, high) if is_share(of) else f"{difference(low, of)} to {difference(high, of)}"


def metric(name: str) -> str:
    """A metric's name for people."""
    return {"accuracy_sum": "accuracy by summed likelihood"}.get(name, name.replace("_", " "))


def interval(low: float, high: float, of: str) -> str:
    """Both ends of an interval; empty when it is not known."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{score(low, of)} to {score(high, of)}"


def setting(value: Any) -> str:
    """A recipe's value as one writes it in YAML."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value) if value == 0 or 1e-3 <= abs(value) < 1e6 else number(value).replace("−", "-")
    if isinstance(value, dict):
        return ", ".join(f"{key}: {setting(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, (list, tuple)):
        return "; ".join(setting(entry) for entry in value)
    return str(value)
