"""Write an evaluation in lm-eval's layout: ``DIR/MODEL/results_TIME.json`` and ``samples_TASK_TIME.jsonl``.

lm-eval's own writer is not used: it logs a failed write as a warning and goes on. What it writes is compared with
ours in a test. Tasks that lm-eval did not run (own questions, held-out loss, MT-Bench) get records of the same shape.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sengi.data.rows import printable
from sengi.errors import StorageError
from sengi.evaluation import Evaluation, question_hashes
from sengi.harness.leaderboard import LEADERBOARDS
from sengi.statistics.metrics import is_higher_better

_UNSAFE = re.compile(r"[\"<>:/|\\?*\[\]]+")  # lm-eval's sanitize_model_name
LABELS = ("group", "topic", "source", "phase", "weight")  # of a question, as `sengi compare` reads them
SETTINGS = ("model_source", "system_instruction", "fewshot_as_multiturn")


def write_output(folder: Path, model_name: str, evaluation: Evaluation, config: Mapping[str, Any]) -> Path:
    """Write results and samples.

    Args:
        folder: made where missing; what lies in it stays, the time in the names tells evaluations apart.
        model_name: names the folder below ``folder``.
        evaluation: of this package or of any other evaluator.
        config: how the evaluation was asked for: JSON values; ``chat_template`` and ``system_instruction`` are
            written where lm-eval has them, everything under ``config``.

    Returns:
        The results file.

    Raises:
        StorageError: a file could not be written.
    """
    samples = {**_converted(evaluation), **evaluation.samples}
    results = _with_every_task(dict(evaluation.results), evaluation)
    results["config"] = {**results.get("config", {}), **config}
    results["task_hashes"] = {task: _task_hash(records) for task, records in samples.items()}
    results |= _general(model_name, evaluation, config)
    own = {"scores": evaluation.scores, "excluded": evaluation.excluded, "notes": evaluation.notes}
    results["sengi"] = {**results.get("sengi", {}), **own}
    stamp = datetime.datetime.now().isoformat().replace(":", "-")
    place = folder / sanitized(model_name)
    path = place / f"results_{stamp}.json"
    try:
        place.mkdir(parents=True, exist_ok=True)
        for task, records in samples.items():
            lines = (json.dumps(_flat(record), default=_jsonable, ensure_ascii=False) + "\n" for record in records)
            file = place / f"samples_{sanitized(task)}_{stamp}.jsonl"
            with open(file, "w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(lines)
        # Last: whoever finds the results finds the samples too.
        text = json.dumps(_without_nan(results), indent=2, default=_jsonable, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        place_name = printable(str(error.filename or place), 200)
        reason = error.strerror or str(error)
        text = f"--output {place_name}: cannot be written ({reason}); free space or name another folder"
        raise StorageError(text) from None
    return path


def sanitized(name: str) -> str:
    """Return a model's or task's name as lm-eval puts it into names of files.

    >>> sanitized("org/model")
    'org__model'
    """
    return _UNSAFE.sub("__", name)


def _with_every_task(results: dict[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    """lm-eval's keys for everything that its results do not have yet: a reader finds it like any other task."""
    keys = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    results |= {key: dict(results.get(key, {})) for key in keys}
    known = {*results["results"], *LEADERBOARDS}
    for row in evaluation.scores:
        task = row["task"]
        if row["group"] != "all" or task in known:
            continue
        entry = results["results"].setdefault(task, {"name": task, "alias": task, "sample_len": row["n"]})
        metric, _, filter_name = row["metric"].partition(",")
        key = filter_name or "none"
        entry |= {f"{metric},{key}": row["value"], f"{metric}_stderr,{key}": "N/A"}
        results["group_subtasks"].setdefault(task, [])
        results["higher_is_better"].setdefault(task, {})[metric] = is_higher_better(metric)
        results["n-samples"].setdefault(task, {"original": row["n"], "effective": row["n"]})
        if task not in evaluation.samples:  # of tasks that lm-eval ran, neither is known here
            results["versions"].setdefault(task, "N/A")
            results["n-shot"].setdefault(task, 0)
    return results


def _general(model_name: str, evaluation: Evaluation, config: Mapping[str, Any]) -> dict[str, Any]:
    template = config.get("chat_template")
    return {
        **{key: config.get(key) for key in SETTINGS},
        "model_name": model_name,
        "model_name_sanitized": sanitized(model_name),
        "system_instruction_sha": _sha256(text) if (text := config.get("system_instruction")) else None,
        "chat_template": template,
        "chat_template_sha": _sha256(template) if template else None,
        "total_evaluation_time_seconds": str(evaluation.seconds),
    }


def _converted(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """Records in lm-eval's shape for the items of tasks without lm-eval's own."""
    records: dict[str, list[dict[str, Any]]] = {}
    for number, item in enumerate(evaluation.items):
        if item["task"] not in evaluation.samples:
            records.setdefault(item["task"], []).append(_record(item, number))
    return records


def _record(item: Mapping[str, Any], number: int) -> dict[str, Any]:
    question, answer, prediction = (str(item.get(key, "")) for key in ("question", "answer", "prediction"))
    metric = str(item["metric"])
    sums = {"accuracy_sum": item["correct_sum"]} if "correct_sum" in item else {}
    labels = {key: item[key] for key in LABELS if item.get(key) not in (None, "")}
    id_ = item.get("id", number)
    doc_hash, target_hash = question_hashes({**item, "id": id_})
    return {
        "doc_id": id_,
        "doc": {"id": id_, "question": question, "answer": answer, **labels},
        "target": answer,
        "arguments": [[question]],
        "resps": [[prediction]],
        "filtered_resps": [prediction],
        "filter": "none",
        "metrics": [metric, *sums],
        "doc_hash": doc_hash,
        "prompt_hash": item.get("prompt_hash") or _sha256(question),
        "target_hash": target_hash,
        metric: item["correct"],
        **sums,
        **labels,
    }


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as lm-eval writes it: arguments by name and answers as text, so that `datasets` can load the file."""
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(values)}
        for i, values in enumerate(record["arguments"])
    }
    answers = {key: _texts(record[key]) for key in ("resps", "filtered_resps")}
    return {**record, **answers, "arguments": arguments, "target": str(record["target"])}


def _texts(value: Any) -> Any:
    return [_texts(one) for one in value] if isinstance(value, list | tuple) else str(value)


def _task_hash(records: Iterable[Mapping[str, Any]]) -> str:
    return _sha256("".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in records))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _jsonable(value: Any) -> Any:
    """What `json` cannot write, as lm-eval writes it: numbers of NumPy, sets as lists, the rest as text."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return list(value) if isinstance(value, set) else str(value)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that an interval is not known."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
