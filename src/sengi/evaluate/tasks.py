"""A checkpoint and files of questions become scores with intervals."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.data.files import split_suffix
from sengi.errors import InputError
from sengi.evaluate.answers import answer_questions, is_exact_match
from sengi.evaluate.choices import score_choices, tokenize_choices
from sengi.evaluate.kept_answers import KeptAnswers
from sengi.evaluate.questions import Question, load_questions
from sengi.evaluation import Evaluation
from sengi.harness.loading import load_for_scoring
from sengi.inference.prompts import Prompts
from sengi.model.context import context_length
from sengi.statistics.intervals import wilson_interval

Progress = Callable[[int, int, str], None]


def evaluate_questions(
    model_folder: Path,
    files: Sequence[Path],
    *,
    batch_tokens: int | None = None,
    limit: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask a model all questions of some files.

    Args:
        model_folder: a model or checkpoint folder; it is loaded in float32 on the GPU if there is one, else on the CPU.
        files: files of questions; both kinds may stand in one file.
        batch_tokens: tokens at a time, of a forward call or kept while texts are written; None: as many as pay on the
            device.
        limit: only the first so many questions of each file.
        cache: folder of answers that an interrupted evaluation left and goes on with; None keeps none.
        progress: called with (questions done, questions in all, task).

    Returns:
        The evaluation; a question that is longer than the model's context is in ``excluded``.

    Raises:
        InputError: a file, the model or a number cannot be used; nothing was scored.
    """
    start = time.perf_counter()
    # All files are read before the model is loaded: a typing error must not cost minutes.
    tasks = load_tasks(files, limit)
    loaded = load_for_scoring(model_folder, dtype=torch.float32)
    kept = KeptAnswers(cache, loaded.facts)
    evaluation = score_tasks(
        loaded.model, loaded.tokenizer, tasks, batch_tokens=batch_tokens, progress=progress, kept=kept
    )
    evaluation.seconds = time.perf_counter() - start
    return evaluation


def load_tasks(files: Sequence[Path], limit: int | None = None) -> dict[str, list[Question]]:
    """Read files of questions, each under the stem of its name.

    Raises:
        InputError: two files of one stem, a limit below 1, or a file that cannot be read.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: no question would be left; give 1 or more, or leave it out")
    tasks: dict[str, list[Question]] = {}
    for file in files:
        name = split_suffix(file)[0]
        if name in tasks:
            raise InputError(f"{file}: another file has the task name {name!r} too; rename one of them")
        tasks[name] = load_questions(file)[:limit]
    return tasks


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, list[Question]],
    *,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    kept: KeptAnswers | None = None,
) -> Evaluation:
    """Score questions with a model that is loaded already; arguments as in :func:`evaluate_questions`."""
    start = time.perf_counter()
    total, done = sum(map(len, tasks.values())), 0
    evaluation = Evaluation()
    for task, questions in tasks.items():

        def advance(count: int, task: str = task) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total, task)

        fitting, excluded = _without_too_long(model, Prompts(tokenizer), questions)
        evaluation.excluded += [{"task": task, **row} for row in excluded]
        if excluded:
            advance(len(excluded))
        rows = list(_score_task(model, tokenizer, fitting, batch_tokens, advance, kept))
        rows.sort(key=lambda row: row[0])
        items = [{"task": task, **item} for _, item in rows]
        evaluation.items += items
        evaluation.scores += summarize(items)
    evaluation.seconds = time.perf_counter() - start
    return evaluation


def _without_too_long(
    model: PreTrainedModel, prompts: Prompts, questions: list[Question]
) -> tuple[list[Question], list[dict[str, Any]]]:
    """Questions that the model can read, and id and reason of those that are longer than its context."""
    context = context_length(model.config)
    kept, excluded = [], []
    for question in questions:
        tokens = _tokens(prompts, question)
        if context is None or tokens <= context:
            kept.append(question)
        else:
            excluded.append({"id": question.id, "reason": f"longer than the model's context of {context:,} tokens"})
    return kept, excluded


def _tokens(prompts: Prompts, question: Question) -> int:
    """Tokens that the model reads of a question: all but the last of its longest choice, or one for an answer."""
    if not question.choices:
        return len(prompts.ids(prompts.question(question.question))) + 1
    prefix, choices = tokenize_choices(prompts, question)
    return len(prefix) + max(map(len, choices)) - 1


def _score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    batch_tokens: int | None,
    advance: Callable[[int], None],
    kept: KeptAnswers | None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Items of one file with their positions: first all multiple choice, then all short answers."""
    prompts = Prompts(tokenizer)
    choice = [(i, q) for i, q in enumerate(questions) if q.choices]
    short = [(i, q) for i, q in enumerate(questions) if not q.choices]
    asked = [q for _, q in choice]
    scores = score_choices(model, tokenizer, asked, batch_tokens=batch_tokens, progress=advance, kept=kept)
    for (index, question), score in zip(choice, scores, strict=True):
        texts = question.choices or ()
        best = texts[max(range(len(texts)), key=score.per_byte.__getitem__)]
        best_sum = texts[max(range(len(texts)), key=score.sums.__getitem__)]
        item = _item(prompts, question, "accuracy", best, best == question.answers[0])
        yield index, {**item, "correct_sum": int(best_sum == question.answers[0])}
    asked = [q for _, q in short]
    predictions = answer_questions(model, tokenizer, asked, batch_tokens=batch_tokens, progress=advance, kept=kept)
    for (index, question), text in zip(short, predictions, strict=True):
        yield index, _item(prompts, question, "exact_match", text, is_exact_match(text, question.answers))


def _item(prompts: Prompts, question: Question, metric: str, prediction: str, correct: bool) -> dict[str, Any]:
    shown = json.dumps([prompts.question(question.question), question.choices])
    return {
        "id": question.id,
        "group": question.group,
        "topic": question.topic,
        "metric": metric,
        "correct": int(correct),
        "prediction": prediction,
        "answer": question.answers[0],
        "question": question.question,
        "prompt_hash": hashlib.sha256(shown.encode()).hexdigest(),
    }


def summarize(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares of right answers of one task, over all its questions and by group and topic.

    Args:
        items: as in :class:`Evaluation`, all of one task.

    Returns:
        Rows as in :attr:`Evaluation.scores`: ``all`` first, then groups, then topics, by name.
    """
    rows: list[dict[str, Any]] = []
    for metric in ("accuracy", "exact_match"):
        of_metric = [item for item in items if item["metric"] == metric]
        if not of_metric:
            continue
        rows.append(_score(of_metric, metric, "all"))
        if metric == "accuracy":
            rows.append(_score(of_metric, "accuracy_sum", "all", key="correct_sum"))
        for column in ("group", "topic"):
            for value in sorted({item[column] for item in of_metric} - {""}):
                members = [item for item in of_metric if item[column] == value]
                rows.append(_score(members, metric, f"{column}={value}"))
    return rows


def _score(items: Sequence[dict[str, Any]], metric: str, group: str, key: str = "correct") -> dict[str, Any]:
    share = wilson_interval(sum(item[key] for item in items), len(items))
    row = {"task": items[0]["task"], "metric": metric, "group": group}
    return {**row, "value": share.value, "low": share.low, "high": share.high, "n": share.n}
