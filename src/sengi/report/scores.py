"""Before and after: the first and the last evaluation of each score, paired question by question."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from sengi.report.run_folder import Evaluation, RunFolder, Score, as_number
from sengi.statistics.differences import PairedDifference, paired_difference

Change = Literal["better", "worse", "no clear change", "one evaluation only"]
EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """One task, metric and group at its first and its last evaluation.

    Attributes:
        before, after: the scores; the same one where it was evaluated once.
        step_before, step_after: optimizer steps taken before each.
        paired: the difference over the questions that both evaluations answered, None without answers.
        change: what the interval of the difference says.
        part_of: the group of tasks whose score this one is a part of (``mmlu`` for each of its subjects), else empty.
    """

    before: Score
    after: Score
    step_before: int
    step_after: int
    paired: PairedDifference | None
    change: Change
    part_of: str = ""

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
    """Every score of the run at its first and last evaluation, by task, then whole before groups.

    Tasks of a group follow it, one metric after the other.
    """
    seen: dict[tuple[str, str, str], list[tuple[Evaluation, Score]]] = {}
    for evaluation in run.evaluations:
        for score in evaluation.scores:
            seen.setdefault((score.task, score.metric, score.group), []).append((evaluation, score))
    parents = group_of_task(run)
    places = {task: place for place, task in enumerate(dict.fromkeys(task for task, _, _ in seen))}

    def order(key: tuple[str, str, str]) -> tuple[object, ...]:
        task, metric, group = key
        return places[parents.get(task, task)], task in parents, metric, places[task], _group_order(group)

    return [
        replace(_compare(*_first_alike(seen[key]), *seen[key][-1]), part_of=parents.get(key[0], ""))
        for key in sorted(seen, key=order)
    ]


def group_of_task(run: RunFolder) -> dict[str, str]:
    """Tasks that belong to a group of tasks with a score of its own, and that group.

    lm-eval names the tasks of a group after it; a group has a score and no questions.
    """
    scored = {score.task for evaluation in run.evaluations for score in evaluation.scores}
    asked = {key[0] for evaluation in run.evaluations for key in evaluation.items}
    groups = sorted((task for task in scored - asked if any(a.startswith(f"{task}_") for a in asked)), key=len)
    found = {}
    for task in scored:
        parents = [group for group in groups if group != task and task.startswith(f"{group}_")]
        if parents:
            found[task] = parents[0]  # the shortest name: mmlu, of mmlu_stem and its subjects
    return found


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
    paired = _pair(first, last, before, after) if first is not last else None
    change = _change(before, after, paired) if first is not last else "one evaluation only"
    return Comparison(before, after, first.step, last.step, paired, change)


def _pair(first: Evaluation, last: Evaluation, before: Score, after: Score) -> PairedDifference | None:
    """The paired difference over the questions of a score that both evaluations hold with a result.

    A group of tasks (``mmlu``) has no questions of its own: those of the tasks named after it are taken where their
    differences make up the group's.
    """
    own = [key for key in first.items if key[0] == before.task]
    keys = own or [key for key in first.items if key[0].startswith(f"{before.task}_")]
    found = []
    for key in keys:
        one, other = first.items[key], last.items.get(key)
        if other is None or not _in_group(one, before.group) or one.get("weight") != other.get("weight"):
            continue
        pair = _result(one, before.metric), _result(other, before.metric), as_number(one.get("weight", 1))
        if all(map(math.isfinite, pair)) and pair[2] > 0:
            found.append(pair)
    if not found:
        return None
    olds, news, weights = zip(*found, strict=True)
    paired = paired_difference(olds, news, weights=None if set(weights) == {1.0} else weights)
    made_up = abs(paired.difference.value - (after.value - before.value)) <= 1e-6
    return paired if own or made_up else None


def _result(item: dict[str, Any], metric: str) -> float:
    """0 or 1 for ``metric``; NaN when the item was not scored by it. A task may hold both kinds of question."""
    base = "accuracy" if metric == "accuracy_sum" else metric
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
    if not before.higher_is_better:
        rose, fell = fell, rose
    return "better" if rose else "worse" if fell else "no clear change"


def _group_order(group: str) -> tuple[int, str]:
    for position, start in enumerate(("all", "group=taught", "group=control", "group=", "phase=", "source=")):
        if group.startswith(start):
            return position, group
    return 9, group


def _all_examples(run: RunFolder) -> list[Example]:
    """Every answered question of the last evaluation that has answers, with its first answer."""
    answers = [
        {key: item for key, item in evaluation.items.items() if item.get("prediction") is not None}
        for evaluation in run.evaluations
    ]
    answered = [found for found in answers if found]
    if not answered:
        return []
    first, last = answered[0], answered[-1]
    once: dict[tuple[str, str], Example] = {}  # a question with several metrics is shown with the first of them
    for key, item in last.items():
        once.setdefault(key[:2], _example(key, first.get(key) if first is not last else None, item))
    return list(once.values())


def _example(key: tuple[str, str, str], before: dict[str, Any] | None, after: dict[str, Any]) -> Example:
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
