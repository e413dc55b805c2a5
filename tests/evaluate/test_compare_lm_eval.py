"""What lm-eval itself writes with its own backend is read and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.model.tiny_folder import write_tiny_folder

from sengi.evaluate.compare import compare
from sengi.evaluate.saved_samples import load_samples

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{c}}}}"
doc_to_target: g
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
GROUP = """
group: both
task: [small, large]
aggregate_metric_list: [{metric: acc, weight_by_size: true}, {metric: acc_norm, weight_by_size: false}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, count in (("small", 6), ("large", 14)):
        file = tmp_path / f"{name}.jsonl"
        rows = [{"q": f"What is {name} {k}?", "c": [f"a {k}", f"the {k * 7}"], "g": k % 2} for k in range(count)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file))
    (folder / "both.yaml").write_text(GROUP)
    return folder


def lm_eval_writes(folder: Path, model: Path, tasks: Path) -> dict[str, Any]:
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(folder))
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        device="cpu",
        tasks=["both"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
    return results


def test_two_models_scored_by_lm_evals_own_backend(tmp_path: Path, tasks: Path) -> None:
    pytest.importorskip("lm_eval")
    scores = []
    for seed in (0, 1):
        model = write_tiny_folder(tmp_path / f"model{seed}", seed=seed)
        scores.append(lm_eval_writes(tmp_path / f"out{seed}", model, tasks)["groups"]["both"])
    comparison = compare([load_samples(tmp_path / f"out{seed}") for seed in (0, 1)])
    rows = {row.metric: row for row in comparison.rows}
    assert list(rows) == ["acc", "acc_norm"]
    # Our scores are lm-eval's own, averaged by questions and by tasks.
    for metric, row in rows.items():
        assert (row.before, row.after) == pytest.approx([score[f"{metric},none"] for score in scores])
        assert row.paired.difference.n == 20
    assert [(part.part, part.paired.difference.n) for part in comparison.parts[:2]] == [("small", 6), ("large", 14)]
    assert comparison.not_compared == []
