"""What every way of evaluating returns: scores with intervals, and one item a question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Evaluation:
    """What came out of an evaluation.

    Attributes:
        scores: one dict a task, metric and group: ``task``, ``metric``, ``group`` (``all``, ``group=...``,
            ``topic=...``), ``value``, its 95% interval ``low`` to ``high``, and ``n``, the questions it rests on;
            of lm-eval's tasks also ``higher_is_better``, as the task has it.
        items: one dict a question and metric: ``task``, ``id``, ``metric``, ``correct`` (0 or 1, or the metric's
            value), ``prediction``, ``answer``, ``question``, ``group``, ``topic``; ``weight`` in the metric's mean
            where it is not 1; where the whole prompt is known, its SHA-256 as ``prompt_hash``. Items of lm-eval's
            tasks carry its ``filter``, ``doc_hash`` and ``target_hash`` too, so that they can be paired with its own
            samples. In the order of the questions, the same for every model.
        excluded: questions that could not be scored: ``task``, ``id``, ``reason``. They are in no score.
        samples: lm-eval's own records of each task (``samples_<task>.jsonl``), for tasks that lm-eval ran.
        results: lm-eval's own results (``results``, ``groups``, ``configs``, ``versions``, ...) of the tasks it ran,
            without the samples.
        notes: sentences a reader of the scores must know, for example how many prompts were cut.
        seconds: time of loading and scoring.
    """

    scores: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    excluded: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def question_hashes(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return hashes of an item's question and of its right answer: equal where two models were asked the same.

    Only what was asked, never what came of it, how it weighs or which group it is in.

    Args:
        item: of :attr:`Evaluation.items`, or one that was read back; lm-eval's own hashes are taken where it has them.
    """
    if "doc_hash" in item and "target_hash" in item:
        return str(item["doc_hash"]), str(item["target_hash"])
    answer = str(item.get("answer", ""))
    question = json.dumps([str(item.get("id", "")), str(item.get("question", "")), answer])
    target = answer.encode("utf-8", "surrogatepass")
    return hashlib.sha256(question.encode()).hexdigest(), hashlib.sha256(target).hexdigest()
