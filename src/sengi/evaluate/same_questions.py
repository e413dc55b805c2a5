"""Whether two evaluations were asked the same: what differs is named, and nothing of it is compared."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sengi.data.rows import printable
from sengi.errors import InputError
from sengi.evaluate.saved_samples import SavedSamples, TaskResults

NAMED = 3  # ids and tasks named in a message


def check_same_questions(first: SavedSamples, other: SavedSamples) -> None:
    """Refuse two evaluations that asked different things under the same task name.

    Raises:
        InputError: question sets or prompts differ; which, how many, the first ids, and what to do.
    """
    found = []
    for task in [task for task in first.tasks if task in other.tasks]:
        if differences := _differences(first.tasks[task], other.tasks[task]):
            found.append(f"{printable(task, 100)}: {', '.join(differences)}")
    if not found:
        return
    more = f"; and {len(found) - NAMED} more tasks" if len(found) > NAMED else ""
    raise InputError(
        f"{first.path} and {other.path} were not asked the same: {'; '.join(found[:NAMED])}{more}; evaluate both "
        "on the same data with the same --limit, --num-fewshot and chat template, or name single files to compare"
    )


def shared_questions(first: TaskResults, other: TaskResults, metric: str) -> list[str]:
    """Ids of the questions that both scored by ``metric``, in the order of the first."""
    after = other.metrics[metric]
    return [id_ for id_ in first.metrics[metric] if id_ in after]


def missing_parts(first: SavedSamples, other: SavedSamples) -> list[str]:
    """Tasks and metrics that only one of two evaluations holds, and metrics without a result a question."""
    notes = []
    for one, another in ((first, other), (other, first)):
        if alone := [task for task in one.tasks if task not in another.tasks]:
            notes.append(f"only in {one.path}: {', '.join(alone)}")
        for task, results in one.tasks.items():
            theirs = another.tasks.get(task)
            if theirs and (metrics := [metric for metric in results.metrics if metric not in theirs.metrics]):
                notes.append(f"{task}: {', '.join(metrics)} only in {one.path}")
    for task in [task for task in first.tasks if task in other.tasks]:
        if left_out := sorted(first.tasks[task].left_out | other.tasks[task].left_out):
            notes.append(f"{task}: {', '.join(left_out)}: no mean over questions, so no question has a part in it")
    return notes


def _differences(first: TaskResults, other: TaskResults) -> list[str]:
    """What differs between one task of two evaluations, a phrase each."""
    phrases = []
    shared = [metric for metric in first.metrics if metric in other.metrics]
    # all questions first: a metric that only one side has may be of questions that only that side was asked
    for mine, theirs in [
        (_questions(first), _questions(other)),
        *((first.metrics[metric], other.metrics[metric]) for metric in shared),
    ]:
        for name, ids in (
            ("first", [id_ for id_ in mine if id_ not in theirs and id_ not in other.excluded]),
            ("second", [id_ for id_ in theirs if id_ not in mine and id_ not in first.excluded]),
        ):
            if ids:
                phrases.append(f"{len(ids):,} questions only in the {name} ({_ids(ids)})")
        if phrases:  # what follows is of the same questions
            return phrases
    both = [id_ for id_ in first.asked if id_ in other.asked]
    pairs = [(id_, first.asked[id_], other.asked[id_]) for id_ in both]
    if ids := [id_ for id_, one, two in pairs if one.content != two.content]:
        phrases.append(f"{len(ids):,} of {len(both):,} questions differ ({_ids(ids)})")
    elif ids := [id_ for id_, one, two in pairs if one.prompt and two.prompt and one.prompt != two.prompt]:
        phrases.append(f"{len(ids):,} of {len(both):,} prompts differ ({_ids(ids)})")
    elif ids := [id_ for metric in shared for id_ in _weights(first, other, metric)]:
        phrases.append(f"{len(ids):,} questions weigh something else ({_ids(ids)})")
    return phrases


def _questions(task: TaskResults) -> Collection[str]:
    """All that were asked, those that could not be scored last."""
    return dict.fromkeys([*task.asked, *sorted(task.excluded)])


def _weights(first: TaskResults, other: TaskResults, metric: str) -> list[str]:
    """Questions whose weight differs: an answer that counts in tokens was cut otherwise."""
    before, after = first.metrics[metric], other.metrics[metric]
    return [id_ for id_ in shared_questions(first, other, metric) if before[id_][1] != after[id_][1]]


def _ids(ids: Sequence[str]) -> str:
    shown = ", ".join(printable(id_, 40) for id_ in ids[:NAMED])
    return f"first ids: {shown}" if len(ids) > NAMED else f"ids: {shown}"
