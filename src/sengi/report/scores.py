"""Before and after: the first and the last evaluation of each score, paired question by question."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from sengi.report.formats import SHARE_METRICS
from sengi.report.run_folder import Evaluation, RunFolder, Score, as_number
from sengi.statistics.intervals import PairedDifference, paired_difference

Change = Literal["better", "worse", "no clear change", "one evaluation only"]
# Metrics that are better when lower; all others are better when higher.
LOWER_IS_BETTER = ("loss", "perplexity")
EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """One task, metric and group at its first and its last evaluation.

    Attributes:
        before, after: the scores; the same one where it was evaluated once.
        step_before, step_after: optimizer steps taken before each.
        paired: the difference over the questions that both evaluations answered, None without answers.
        change: what the interval of the difference says.
    """

    before: Score
    after: Score
    step_before: int
    step_after: int
    paired: PairedDifference | None
    change: Change

    @property
    def is_control(self) -> bool:
        """Questions that the training data does not answer."""
        return self.before.group.rpartition("=")[2] == "control"


@dataclass(frozen=True, slots=True)
class Example:
    """One question as it was answered before and after; ``before`` is None when it was asked once."""

    task: str
    id: str
    group: str
    question: str
    answer: str
    before: str | None
    after: str
    right_before: bool
    right_after: bool


def compare_scores(run: RunFolder) -> list[Comparison]:
    """Every score of the run at its first and last evaluation, by task, then whole before groups."""
    seen: dict[tuple[str, str, str], list[tuple[Evaluation, Score]]] = {}
    for evaluation in run.evaluations:
        for score in evaluation.scores:
            seen.setdefault((score.task, score.metric, score.group), []).append((evaluation, score))
    tasks = list(dict.fromkeys(task for task, _, _ in seen))
    ordered = sorted(seen, key=lambda key: (tasks.index(key[0]), key[1], _group_order(key[2])))
    return [_compare(*_first_alike(seen[key]), *seen[key][-1]) for key in ordered]


def _first_alike(scores: list[tuple[Evaluation, Score]]) -> tuple[Evaluation, Score]:
    """The first score on the same data as the last: a run may go on with other evaluation files."""
    return next(pair for pair in scores if pair[1].data == scores[-1][1].data)


def held_out_losses(run: RunFolder) -> list[tuple[int, Score]]:
    """Held-out losses with their step: of all samples where that was scored, else of each group."""
    losses = [(e.step, s) for e in run.evaluations for s in e.scores if s.metric == "loss"]
    whole = [(step, score) for step, score in losses if score.group == "all"]
    return whole or losses


def pick_examples(run: RunFolder, limit: int = EXAMPLES) -> list[Example]:
    """Answers before and after, spread evenly over the file within each kind of outcome.

    Every second one turned right, then right to wrong, still wrong and right twice take turns: what the run broke
    is shown beside what it mended.
    """
    examples = _all_examples(run)
    kinds = [
        [e for e in examples if (e.right_before, e.right_after) == outcome]
        for outcome in ((False, True), (True, False), (False, False), (True, True))
    ]
    queues = [_spread(kind, limit) for kind in kinds]
    turns = (0, 1, 0, 2, 0, 3)
    picked: list[Example] = []
    turn = 0
    while len(picked) < limit and any(queues):
        queue = queues[turns[turn % len(turns)]]
        if queue:
            picked.append(queue.pop(0))
        turn += 1
    return sorted(picked, key=examples.index)


def _compare(first: Evaluation, before: Score, last: Evaluation, after: Score) -> Comparison:
    paired = None
    # The answers hold right or wrong, so they pair shares of right answers and nothing else.
    if first is not last and before.metric in SHARE_METRICS:
        paired = _pair(first, last, before)
    change = _change(before, after, paired) if first is not last else "one evaluation only"
    return Comparison(before, after, first.step, last.step, paired, change)


def _pair(first: Evaluation, last: Evaluation, score: Score) -> PairedDifference | None:
    """The paired difference over the questions of ``score`` that both evaluations hold with a result."""
    pairs = [
        (_result(item, score.metric), _result(last.items[key], score.metric))
        for key, item in first.items.items()
        if key in last.items and key[0] == score.task and _in_group(item, score.group)
    ]
    whole = [pair for pair in pairs if all(result in (0, 1) for result in pair)]
    return paired_difference([pair[0] for pair in whole], [pair[1] for pair in whole]) if whole else None


def _result(item: dict[str, Any], metric: str) -> float:
    """0 or 1 for ``metric``; NaN when the item was not scored by it. A task may hold both kinds of question."""
    base = metric.removesuffix("_sum")
    if item.get("metric", base) != base:
        return math.nan
    value = item.get("correct" if metric == base else "correct_sum")
    return float(value) if isinstance(value, bool) else as_number(value)


def _in_group(item: dict[str, Any], group: str) -> bool:
    key, _, value = group.partition("=")
    return group == "all" or (bool(value) and str(item.get(key)) == value)


def _change(before: Score, after: Score, paired: PairedDifference | None) -> Change:
    """Clear when the interval of the difference leaves out 0; without pairs, when the intervals do not touch."""
    if paired:
        rose, fell = paired.difference.low > 0, paired.difference.high < 0
    else:
        rose, fell = after.low > before.high, after.high < before.low
    if before.metric in LOWER_IS_BETTER:
        rose, fell = fell, rose
    return "better" if rose else "worse" if fell else "no clear change"


def _group_order(group: str) -> tuple[int, str]:
    for position, start in enumerate(("all", "group=taught", "group=control", "group=", "phase=", "source=")):
        if group.startswith(start):
            return position, group
    return 9, group


def _all_examples(run: RunFolder) -> list[Example]:
    """Every answered question of the last evaluation that has answers, with its first answer."""
    answered = [evaluation for evaluation in run.evaluations if evaluation.items]
    if not answered:
        return []
    first, last = answered[0], answered[-1]
    return [_example(key, first.items.get(key) if first is not last else None, last.items[key]) for key in last.items]


def _example(key: tuple[str, str], before: dict[str, Any] | None, after: dict[str, Any]) -> Example:
    return Example(
        task=key[0],
        id=key[1],
        group=str(after.get("group") or ""),
        question=str(after.get("question") or ""),
        answer=str(after.get("answer")),
        before=None if before is None else str(before.get("prediction")),
        after=str(after.get("prediction")),
        right_before=before is not None and before.get("correct") in (1, True),
        right_after=after.get("correct") in (1, True),
    )


def _spread(examples: list[Example], limit: int) -> list[Example]:
    """Up to ``limit`` of them at even distances, in their order."""
    size = min(limit, len(examples))
    return [examples[i * len(examples) // size] for i in range(size)]
