"""lm-eval's samples as the common items: one a question and metric, with what was asked, answered and expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sengi.harness.lm_eval_tasks import Task
from sengi.harness.scores import Record, labels, question_values
from sengi.statistics.metrics import question_result


def items_of(tasks: Mapping[str, Task], samples: Mapping[str, list[Record]]) -> list[dict[str, Any]]:
    """Return items as in :attr:`sengi.evaluation.Evaluation.items`, in the order of tasks and questions.

    Args:
        tasks: all tasks by name.
        samples: lm-eval's samples by task.
    """
    return [item for name, task in tasks.items() for item in _task_items(name, task, samples[name])]


def _task_items(name: str, task: Task, records: list[Record]) -> Iterator[dict[str, Any]]:
    names = labels(question_values(records))
    for record in records:
        question, answer = _question(task, record), _answer(task, record)
        for metric in record["metrics"]:
            found = question_result(metric, _bare(record[metric]))
            if found is None:
                continue  # a part of a corpus metric, such as (gold, prediction) of f1: no score of one question
            mean_of, value, weight = found
            yield {
                "task": name,
                "id": str(record["doc_id"]),
                "metric": mean_of + names[metric, record["filter"]].removeprefix(metric),
                "correct": int(value) if value in (0.0, 1.0) else value,
                **({} if weight == 1 else {"weight": weight}),
                "prediction": _prediction(task, record, metric),
                "answer": answer,
                "question": question,
                "group": "",
                "topic": "",
                "filter": record["filter"],
                **{key: record[key] for key in ("doc_hash", "target_hash", "prompt_hash")},
            }


def _bare(value: Any) -> Any:
    """A question's value as it comes back from a samples file: tuples are lists, numbers of NumPy plain ones."""
    if isinstance(value, list | tuple):
        return [_bare(one) for one in value]
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _choices(task: Task, record: Record) -> list[str] | None:
    if task.OUTPUT_TYPE != "multiple_choice" or task.get_config("doc_to_choice") is None:
        return None
    return [str(choice) for choice in task.doc_to_choice(record["doc"])]


def _prediction(task: Task, record: Record, metric: str) -> str:
    answers = record["filtered_resps"]
    choices = _choices(task, record)
    if choices is None:
        return str(answers[0]) if answers else ""
    sums = [float(answer[0]) for answer in answers[: len(choices)]]
    if metric == "acc_norm":  # per character of the choice, as lm-eval divides
        sums = [value / max(1, len(choice)) for value, choice in zip(sums, choices, strict=True)]
    return choices[max(range(len(sums)), key=sums.__getitem__)] if sums else ""


def _answer(task: Task, record: Record) -> str:
    target = record["target"]
    choices = _choices(task, record)
    # Where the contexts differ and not the answers (WinoGrande), the right context is what doc_to_text names.
    if choices is not None and getattr(task, "multiple_input", False):
        target = task.doc_to_text(record["doc"])
    if choices is not None and isinstance(target, int) and 0 <= target < len(choices):
        return choices[target]
    return str(target)


def _question(task: Task, record: Record) -> str:
    text = task.doc_to_text(record["doc"])
    if isinstance(text, str):
        return text
    context, *rest = record["arguments"][0]
    return f"{context}{rest[0]}" if rest and isinstance(rest[0], str) else str(context)
