"""The rating that a judge wrote, read as FastChat reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass

LOWEST, HIGHEST = 1, 10  # the scale of FastChat's judge prompts
UNREADABLE = -1  # FastChat's score of a judgement without a rating; its show_result.py leaves it out

_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]", re.ASCII)
_RATING_IN_SINGLE_BRACKETS = re.compile(r"\[(\d+\.?\d*)\]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rating:
    """What a judgement says.

    Attributes:
        score: 1 to 10; None when it cannot be read.
        reason: why it cannot be read, in fixed words; empty when it can.
    """

    score: float | None
    reason: str = ""


def read_rating(judgment: str) -> Rating:
    """Read the first ``[[rating]]``, else the first ``[rating]``, of a judgement.

    >>> read_rating("Clear and correct. Rating: [[8]]").score
    8.0
    >>> read_rating("Rating: [[80]]").reason
    'rating out of 1 to 10'
    """
    found = _RATING.search(judgment) or _RATING_IN_SINGLE_BRACKETS.search(judgment)
    if found is None:
        return Rating(None, "no rating" if judgment.strip() else "empty judgement")
    score = float(found[1])
    if not LOWEST <= score <= HIGHEST:
        return Rating(None, f"rating out of {LOWEST} to {HIGHEST}")
    return Rating(score)
