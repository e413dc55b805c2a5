"""lm-eval's tasks under our model: prompts, metrics and aggregation are lm-eval's, rows and speed are ours."""

from __future__ import annotations

import contextlib
import functools
import platform
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm import tqdm

from sengi.errors import InputError
from sengi.evaluation import Evaluation
from sengi.harness.items import items_of
from sengi.harness.leaderboard import departure
from sengi.harness.leaderboard_rows import leaderboard_rows
from sengi.harness.lm import SengiLM
from sengi.harness.lm_eval_tasks import (
    DEFAULT_OTHER_SEED,
    DEFAULT_RANDOM_SEED,
    LM_EVAL_VERSION,
    add_tokenizer_info,
    evaluate,
    task_module,
)
from sengi.harness.room import drop_without_room
from sengi.harness.scores import score_rows, without_excluded
from sengi.harness.tasks import LoadedTasks, load_tasks, preserved_seeds, quiet

Progress = Callable[[int, int, str], None]


def evaluate_tasks(
    model_folder: Path,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    data_root: Path | None = None,
    apply_chat_template: bool = False,
    batch_tokens: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model on tasks of lm-eval.

    Args:
        model_folder: a model, checkpoint or LoRA adapter folder.
        tasks: names of tasks, groups and tags of lm-eval, ``open_llm_leaderboard_v1`` or ``_v2``.
        num_fewshot: examples before each question; None: as each task has it. A task's own 0 stays, as in lm-eval.
        limit: only the first so many questions of each task.
        data_root: folder of local files in place of downloads; see ``adapters.yaml``.
        apply_chat_template: ask through the model's chat template, examples as turns.
        batch_tokens: tokens at a time, of a forward call or kept while texts are written; None: as many as pay on the
            device.
        cache: folder of known answers; an interrupted evaluation continues from it.
        progress: called with (requests done, requests in all, kind of request).

    Returns:
        The evaluation; under torchrun every process has all of it.

    Raises:
        InputError: a task, its data or the model cannot be used; nothing was scored.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: no question would be left; give 1 or more, or leave it out")
    start = time.perf_counter()
    loaded = load_tasks(tasks, data_root, num_fewshot=num_fewshot)
    with preserved_seeds(), torch.random.fork_rng():  # an evaluation between two training steps leaves no trace
        lm = SengiLM(model_folder, batch_tokens=batch_tokens, cache=cache, progress=progress)
        evaluation = run_tasks(lm, loaded, limit=limit, apply_chat_template=apply_chat_template)
    evaluation.seconds = time.perf_counter() - start
    return evaluation


def run_tasks(
    lm: SengiLM, loaded: LoadedTasks, *, limit: int | None = None, apply_chat_template: bool = False
) -> Evaluation:
    """Ask a loaded model the questions of loaded tasks; seeds the global random generators, as lm-eval does.

    Args:
        lm: the model.
        loaded: of :func:`sengi.harness.tasks.load_tasks`; asked once, since lm-eval keeps the answers in its tasks.
        limit: see :func:`evaluate_tasks`.
        apply_chat_template: see :func:`evaluate_tasks`.

    Raises:
        InputError: a task writes more than the model's context holds; nothing was scored.
    """
    drop_without_room(loaded, lm.max_length, lm.max_gen_toks)
    with quiet(), _without_bars():
        _seed(loaded)
        # Not simple_evaluate: it spends seconds on asking pip and the system for a description of the machine.
        results: dict[str, Any] = evaluate(
            lm,
            {"tasks": loaded.tasks, "groups": loaded.groups},
            limit=limit,
            bootstrap_iters=0,  # the intervals are ours
            log_samples=True,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=True,
        )
    results |= _circumstances(lm, limit, apply_chat_template)
    samples = results.pop("samples")
    excluded = {(str(one.task), int(one.doc_id or 0)): one.reason for one in lm.excluded}
    if excluded:
        results, samples = without_excluded(results, loaded.tasks, loaded.groups, samples, set(excluded))
    return _collect(lm, loaded, results, samples, excluded)


def _collect(
    lm: SengiLM,
    loaded: LoadedTasks,
    results: dict[str, Any],
    samples: dict[str, list[dict[str, Any]]],
    excluded: dict[tuple[str, int], str],
) -> Evaluation:
    scores = score_rows(results["results"], loaded.tasks, loaded.groups, samples)
    missing = list(loaded.missing)
    for name in loaded.leaderboards:
        rows, unscored = leaderboard_rows(name, results, loaded.tasks, samples)
        scores += rows
        known = {part for board, part, _ in missing if board == name}
        missing += [(name, part, f"{tasks} has no score") for part, tasks in unscored.items() if part not in known]
    left_out = [{"task": task, "id": str(doc_id), "reason": reason} for (task, doc_id), reason in excluded.items()]
    left_out += [{"task": board, "id": part, "reason": reason} for board, part, reason in missing]
    cut = [one._asdict() for one in lm.truncated]
    counts = Counter(str(one["task"]) for one in cut)
    notes = [*loaded.notes, *(_cut_note(task, count, lm.max_length) for task, count in counts.items())]
    notes += [f"{board}: no average, since {part} could not be run: {reason}" for board, part, reason in missing]
    asked = loaded.num_fewshot, results["config"]["limit"], results["chat_template"] is not None
    notes += [note for board in loaded.leaderboards if (note := departure(board, *asked))]
    results["sengi"] = {
        "scores": scores,
        "excluded": left_out,
        "truncated": cut,
        "notes": notes,
        "files": [str(file) for file in loaded.files],
    }
    return Evaluation(
        scores=scores,
        items=items_of(loaded.tasks, samples),
        excluded=left_out,
        samples=samples,
        results=results,
        notes=notes,
    )


def _cut_note(task: str, count: int, context: int) -> str:
    return (
        f"{task}: {count} questions are longer than the model's context of {context} tokens and lost their beginning, "
        "as with lm-eval's own models; fewer examples (--num-fewshot) make them fit"
    )


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """lm-eval draws a bar for each of MMLU's 57 tasks while it builds prompts, and has no option against it."""
    bar = task_module.tqdm
    task_module.tqdm = functools.partial(tqdm, disable=True)
    try:
        yield
    finally:
        task_module.tqdm = bar


def _seed(loaded: LoadedTasks) -> None:
    """Seed as lm-eval's command line does; the callers' generators are put back afterwards."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    for task in loaded.tasks.values():
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _circumstances(lm: SengiLM, limit: int | None, apply_chat_template: bool) -> dict[str, Any]:
    """The keys of lm-eval's results that say how they were made."""
    config = {"model": "sengi", "model_args": {"pretrained": lm.model.config._name_or_path}, **lm.get_model_info()}
    config |= {"batch_size": lm.batch_size, "batch_sizes": [], "device": str(lm.model.device), "use_cache": None}
    config |= {"limit": limit, "bootstrap_iters": 0, "gen_kwargs": None, "random_seed": DEFAULT_RANDOM_SEED}
    config |= dict.fromkeys(("numpy_seed", "torch_seed", "fewshot_seed"), DEFAULT_OTHER_SEED)
    results: dict[str, Any] = {
        "config": config,
        "git_hash": None,
        "date": time.time(),
        "pretty_env_info": f"Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.platform()}",
        "transformers_version": transformers.__version__,
        "lm_eval_version": LM_EVAL_VERSION,
        "upper_git_hash": None,
        "chat_template": lm.chat_template(apply_chat_template) if apply_chat_template else None,
        "fewshot_as_multiturn": True,
    }
    add_tokenizer_info(results, lm)
    return results
