"""Both editions of the Open LLM Leaderboard from files to the average: every part and subtask, nothing missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.harness.local_tasks import small_root, write_bbh, write_csv, write_jsonl
from tests.model.tiny_folder import write_tiny_folder

from sengi.evaluation import Evaluation
from sengi.harness.leaderboard import BBH_CHOICES, LEADERBOARDS, MUSR_CHOICES
from sengi.harness.run import evaluate_tasks

pytestmark = pytest.mark.slow  # some hundred tasks of lm-eval are made, with up to 25 examples before a question

V1_SHOTS = {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc2": 0, "winogrande": 5, "gsm8k": 5}
V2_SHOTS = {
    "leaderboard_ifeval": 0,
    "leaderboard_bbh": 3,
    "leaderboard_math": 4,
    "leaderboard_gpqa": 0,
    "leaderboard_musr": 0,
    "leaderboard_mmlu_pro": 5,
}
MATH_TYPES = "Algebra|Counting & Probability|Geometry|Intermediate Algebra|Number Theory|Prealgebra|Precalculus"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data root with every file that both editions ask for."""
    with small_root(tmp_path_factory) as root:
        options = ["Sarah was better than Maria so Sarah", "Sarah was better than Maria so Maria"]
        examples = [{"context_options": options, "continuation": f"won {n}.", "gold": n % 2} for n in range(6)]
        write_jsonl(root / "winogrande_train.jsonl", examples)
        swag = {"activity_label": "Cooking", "ctx_a": "A man cooks.", "ctx_b": "he", "endings": ["eats.", "x", "y"]}
        write_jsonl(root / "hellaswag/train.jsonl", [{**swag, "label": n % 3} for n in range(12)])
        write_bbh(root / "bbh.tar.xz", BBH_CHOICES)
        row = {"problem": "1+1?", "level": "Level 5", "solution": "It is $\\boxed{2}$."}
        write_jsonl(root / "math_test.jsonl.xz", [{**row, "type": kind} for kind in MATH_TYPES.split("|")])
        musr = {"narrative": "A killed B.", "question": "Who?", "choices": "['A', 'B']"}
        for name in MUSR_CHOICES:
            rows = [{**musr, "answer_index": n, "answer_choice": "AB"[n]} for n in (0, 1)]
            write_csv(root / f"musr/{name}.csv", rows)
        (root / "musr/team_allocation.jsonl").unlink()
        yield root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_folder(tmp_path_factory.mktemp("model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # 25 examples, and 1,280 tokens to write
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}), encoding="utf-8")
    return folder


def board_and_tasks(evaluation: Evaluation, board: str) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """The leaderboard's rows by name, and lm-eval's own numbers by task and metric."""
    rows = {row["metric"]: row["value"] for row in evaluation.scores if row["task"] == board}
    results: dict[str, dict[str, Any]] = evaluation.results["results"]
    return rows, {(task, metric): value for task, metrics in results.items() for metric, value in metrics.items()}


@pytest.mark.parametrize("edition", [1, 2])
def test_every_part_and_the_average(edition: int, root: Path, model: Path) -> None:
    board = f"open_llm_leaderboard_v{edition}"
    evaluation = evaluate_tasks(model, [f"leaderboard_v{edition}"], data_root=root)
    rows, by_lm_eval = board_and_tasks(evaluation, board)
    assert list(rows) == [*(part.name for part in LEADERBOARDS[board]), "average"]
    assert not [one for one in evaluation.excluded if one["task"] == board]
    wanted = V1_SHOTS if edition == 1 else V2_SHOTS
    for task, shots in evaluation.results["n-shot"].items():
        assert shots == next(n for start, n in wanted.items() if task.startswith(start)), task
    # From lm-eval's own results, written out once more: the arithmetic of the leaderboards' pages.
    if edition == 1:
        groups = {"mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"}
        subjects = [
            by_lm_eval[task, metric]
            for task, metric in by_lm_eval
            if task.startswith("mmlu_") and task not in groups and metric == "acc,none"
        ]
        assert len(subjects) == 57
        expected = [
            by_lm_eval["arc_challenge", "acc_norm,none"],
            by_lm_eval["hellaswag", "acc_norm,none"],
            sum(subjects) / 57,
            by_lm_eval["truthfulqa_mc2", "acc,none"],
            by_lm_eval["winogrande", "acc,none"],
            by_lm_eval["gsm8k", "exact_match,strict-match"],
        ]
    else:
        strict = [by_lm_eval["leaderboard_ifeval", f"{by}_level_strict_acc,none"] for by in ("prompt", "inst")]
        above = {
            task: max(0.0, (by_lm_eval[task, metric] - 1 / choices) / (1 - 1 / choices))
            for task, metric, choices in [
                *((f"leaderboard_bbh_{name}", "acc_norm,none", n) for name, n in BBH_CHOICES.items()),
                *((f"leaderboard_musr_{name}", "acc_norm,none", n) for name, n in MUSR_CHOICES.items()),
                ("leaderboard_gpqa", "acc_norm,none", 4),
                ("leaderboard_mmlu_pro", "acc,none", 10),
            ]
        }
        assert len(above) == 24 + 3 + 2
        expected = [
            sum(strict) / 2,
            sum(value for task, value in above.items() if "_bbh_" in task) / 24,
            by_lm_eval["leaderboard_math_hard", "exact_match,none"],
            above["leaderboard_gpqa"],
            sum(value for task, value in above.items() if "_musr_" in task) / 3,
            above["leaderboard_mmlu_pro"],
        ]
    assert list(rows.values()) == pytest.approx([*expected, sum(expected) / 6])
    assert len(set(expected)) > 2  # not all at chance
