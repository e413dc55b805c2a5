from __future__ import annotations

import math

import pytest

from sengi.statistics.metrics import is_higher_better, question_result


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("acc", 1.0, ("acc", 1.0, 1.0)),
        ("exact_match", True, ("exact_match", 1.0, 1.0)),
        # IFEval: a list of truths, one an instruction; a question with three weighs three.
        ("inst_level_strict_acc", [True, False, True], ("inst_level_strict_acc", 2 / 3, 3.0)),
        # Rolling log-likelihood: (log-likelihood, words). The logarithm of a perplexity is a weighted mean.
        ("word_perplexity", [-20.0, 10], ("log word_perplexity", 2.0, 10.0)),
        ("bits_per_byte", [-20.0 * math.log(2), 10], ("bits_per_byte", 2.0, 10.0)),
        # LAMBADA keeps a log-likelihood under the name perplexity.
        ("perplexity", -3.5, ("log perplexity", 3.5, 1.0)),
        # f1 keeps (gold, prediction), generation errors a text: no question has a part in such a score.
        ("f1", [1, 0], None),
        ("acc", "yes", None),
        ("acc", None, None),
        ("acc", math.inf, None),
        ("inst_level_strict_acc", [], None),
        ("word_perplexity", [-20.0, 0], None),
    ],
)
def test_what_one_question_adds(metric, value, expected):
    assert question_result(metric, value) == expected


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("acc", True),
        ("exact_match,strict-match", True),
        ("loss", False),
        ("log word_perplexity", False),
        ("score", True),
        # Judged twice, the same answer should get the same score.
        ("judge_noise", False),
        ("judge_noise_of_mean", False),
        ("judge_mean_absolute_difference", False),
    ],
)
def test_direction_by_name(metric, higher):
    assert is_higher_better(metric) is higher
