"""Judgements become scores: means with intervals over questions, what could not be read, how noisy the judge is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sengi.evaluation import Evaluation
from sengi.mt_bench.cache import key_of
from sengi.mt_bench.files import Bench, BenchQuestion, QuestionId
from sengi.mt_bench.judge import Judgement
from sengi.mt_bench.requests import Answers
from sengi.statistics.intervals import Interval, bootstrap_interval, mean_square_interval

TASK = "mt_bench"
METRIC = "score"


@dataclass(frozen=True, slots=True)
class JudgeNoise:
    """How much a judge differs from itself, from turns that it judged twice.

    Attributes:
        mean_absolute_difference: of the two ratings of a turn.
        deviation: standard deviation of one rating around the judge's own mean for that turn.
        of_mean: standard deviation that this alone gives the mean score of the ``ratings`` ratings.
    """

    mean_absolute_difference: Interval
    deviation: Interval
    of_mean: Interval


def judge_noise(pairs: Sequence[tuple[float, float]], ratings: int) -> JudgeNoise:
    """Noise of a judge.

    The variance of a difference of two ratings is twice that of one (Bland and Altman, BMJ 313:744, 1996), so the
    deviation is the square root of half the mean squared difference. Intervals: bootstrap over the pairs for the mean
    difference, :func:`sengi.statistics.intervals.mean_square_interval` for the deviations.

    Args:
        pairs: two ratings of the same answer, at least one pair.
        ratings: how many ratings the mean score rests on, at least 1.
    """
    differences = np.array([first - second for first, second in pairs])
    squares = mean_square_interval(differences)

    def scaled(count: int) -> Interval:
        value, low, high = (math.sqrt(end / 2 / count) for end in (squares.value, squares.low, squares.high))
        return Interval(value, low, high, squares.n)

    return JudgeNoise(bootstrap_interval(np.abs(differences)), scaled(1), scaled(ratings))


def score_judgements(
    bench: Bench, answers: Answers, judgements: Sequence[Judgement], not_answered: dict[QuestionId, str], judge: str
) -> Evaluation:
    """Scores, items and exclusions of a judged model.

    A question's score is the mean of its two turns. A question with a turn that could not be rated is in the mean
    of the other turn only: the mean over both turns and the means by category leave it out, and it is listed.

    Args:
        bench: the questions.
        answers: what was judged.
        judgements: all of them, repeated ones too.
        not_answered: question id -> why there is nothing to judge.
        judge: name of the judge.

    Returns:
        Rows of metric ``score`` for ``all``, ``turn=1``, ``turn=2`` and each ``category=...``, and rows of the
        judge's noise; ``seconds`` is left at 0.
    """
    evaluation = Evaluation()
    ratings: dict[tuple[QuestionId, int], float] = {}
    for judgement in judgements:
        if judgement.repeat == 0 and judgement.rating.score is not None:
            ratings[judgement.question_id, judgement.turn] = judgement.rating.score
        elif judgement.repeat == 0:
            reason = f"judgement of turn {judgement.turn}: {judgement.rating.reason}"
            evaluation.excluded.append({"task": TASK, "id": str(judgement.question_id), "reason": reason})
    for number, reason in not_answered.items():
        evaluation.excluded.append({"task": TASK, "id": str(number), "reason": reason})
    both = {
        question.id: (ratings[question.id, 1] + ratings[question.id, 2]) / 2
        for question in bench.questions
        if (question.id, 1) in ratings and (question.id, 2) in ratings
    }
    evaluation.scores += _score_rows(bench, ratings, both)
    evaluation.scores += _noise_rows(_repeated(judgements, ratings), 2 * len(both))
    for question in bench.questions:
        if question.id in both:
            turns = [ratings[question.id, turn] for turn in (1, 2)]
            evaluation.items.append(_item(bench, question, both[question.id], turns, answers[question.id], judge))
    if not ratings:
        evaluation.notes.append("not one judgement could be rated, so there is no score; try another judge")
    return evaluation


def _repeated(
    judgements: Sequence[Judgement], ratings: dict[tuple[QuestionId, int], float]
) -> list[tuple[float, float]]:
    """Both ratings of the turns that were judged twice, where both could be read."""
    return [
        (ratings[place], judgement.rating.score)
        for judgement in judgements
        if judgement.repeat
        and judgement.rating.score is not None
        and (place := (judgement.question_id, judgement.turn)) in ratings
    ]


def count_judgements(judgements: Sequence[Judgement]) -> list[str]:
    """One sentence each on the judgements that count and on the repeated ones: how many, how many unreadable, why."""
    notes = []
    for repeat, what in ((0, "judgements"), (1, "repeated judgements")):
        of_kind = [judgement for judgement in judgements if judgement.repeat == repeat]
        reasons = Counter(judgement.rating.reason for judgement in of_kind if judgement.rating.score is None)
        listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
        if of_kind:
            notes.append(f"{len(of_kind)} {what}, {sum(reasons.values())} not rated{f' ({listed})' if listed else ''}")
    return notes


def _score_rows(
    bench: Bench, ratings: dict[tuple[QuestionId, int], float], both: dict[QuestionId, float]
) -> list[dict[str, Any]]:
    groups = {"all": list(both.values())}
    for turn in (1, 2):
        places = [(question.id, turn) for question in bench.questions]
        groups[f"turn={turn}"] = [ratings[place] for place in places if place in ratings]
    for question in bench.questions:
        groups.setdefault(f"category={question.category}", [])
        if question.id in both:
            groups[f"category={question.category}"].append(both[question.id])
    # Both turns of a question are one value here: they stay together when the bootstrap draws questions.
    return [_row(METRIC, group, bootstrap_interval(values)) for group, values in groups.items() if values]


def _noise_rows(pairs: Sequence[tuple[float, float]], ratings: int) -> list[dict[str, Any]]:
    if not pairs or not ratings:
        return []
    noise = judge_noise(pairs, ratings)
    return [
        _row("judge_mean_absolute_difference", "all", noise.mean_absolute_difference),
        _row("judge_noise", "all", noise.deviation),
        _row("judge_noise_of_mean", "all", noise.of_mean),
    ]


def _row(metric: str, group: str, interval: Interval) -> dict[str, Any]:
    # Few values cannot tell their spread; JSON has no NaN.
    low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
    return {
        "task": TASK,
        "metric": metric,
        "group": group,
        "value": interval.value,
        "low": low,
        "high": high,
        "n": interval.n,
    }


def _item(
    bench: Bench, question: BenchQuestion, score: float, turns: list[float], answers: Sequence[str], judge: str
) -> dict[str, Any]:
    prompts = [bench.prompt(question, turn) for turn in (1, 2)]
    # What is asked and how it is judged, without the model's part: two models can be compared where it is the same.
    asked = [question.turns, question.reference, [[prompt.system, prompt.template] for prompt in prompts], judge]
    return {
        "task": TASK,
        "id": str(question.id),
        "metric": METRIC,
        "correct": score,
        "turn_scores": turns,
        "prediction": "\n\n".join(answers),
        "answer": "\n\n".join(question.reference or ()),
        "question": "\n\n".join(question.turns),
        "group": "",
        "topic": question.category,
        "prompt_hash": key_of(asked),
    }
