from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi.mt_bench.rating import Rating, read_rating


# Rule: FastChat's two patterns, in its order: the first [[rating]] wins, [rating] counts where there is none.
@pytest.mark.parametrize(
    ("judgment", "score"),
    [
        ("Rating: [[7]]", 7.0),
        ("Rating: [[7.5]]", 7.5),
        ("Rating: [[8.]]", 8.0),
        ("Rating: [9]", 9.0),
        ("[3] is what [1] says, so Rating: [[5]] and not [[6]]", 5.0),
        ("[[rating]] is asked for: [[10]]", 10.0),
    ],
)
def test_ratings_are_read_as_fastchat_reads_them(judgment: str, score: float) -> None:
    assert read_rating(judgment) == Rating(score)


@pytest.mark.parametrize(
    ("judgment", "reason"),
    [
        ("", "empty judgement"),
        (" \n", "empty judgement"),
        ("It deserves a 7.", "no rating"),
        ("[[seven]]", "no rating"),
        ("[[7/10]]", "no rating"),
        ("[[-3]]", "no rating"),
        ("[[0]]", "rating out of 1 to 10"),
        ("[[11]]", "rating out of 1 to 10"),
        ("[[80]] of 100", "rating out of 1 to 10"),
        ("[[" + "9" * 400 + "]]", "rating out of 1 to 10"),
    ],
)
def test_what_is_no_rating_says_why(judgment: str, reason: str) -> None:
    assert read_rating(judgment) == Rating(None, reason)


@given(st.text(), st.integers(10, 100).map(lambda tenths: tenths / 10))
def test_any_text_is_read_without_failing_and_scores_stay_on_the_scale(text: str, rating: float) -> None:
    # Rule: a judge can write anything; a score is on the scale or it is none, and has a reason exactly then.
    read = read_rating(text)
    assert (read.score is None) == bool(read.reason)
    assert read.score is None or 1 <= read.score <= 10
    if "[" not in text:
        assert read_rating(f"{text}[[{rating}]]").score == rating
