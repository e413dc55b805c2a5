"""The leaderboards' published arithmetic, on the examples of their documentation and on corner cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi.harness import leaderboard_rows as leaderboard_rows_module
from sengi.harness.leaderboard import (
    ALIASES,
    BBH_CHOICES,
    LEADERBOARDS,
    MUSR_CHOICES,
    departure,
    leaderboard_scores,
    normalised,
)
from sengi.harness.leaderboard_rows import leaderboard_rows

V1, V2 = LEADERBOARDS


def results_v1() -> tuple[dict[str, dict[str, float]], dict[str, list[str]]]:
    results = {
        "arc_challenge": {"acc_norm,none": 0.5, "acc,none": 0.1},
        "hellaswag": {"acc_norm,none": 0.7},
        "mmlu_a": {"acc,none": 0.2},
        "mmlu_b": {"acc,none": 0.6},
        "mmlu": {"acc,none": 0.55},  # weighted by size: not what the leaderboard shows
        "truthfulqa_mc2": {"acc,none": 0.45},
        "winogrande": {"acc,none": 0.65},
        "gsm8k": {"exact_match,strict-match": 0.1, "exact_match,flexible-extract": 0.9},
    }
    return results, {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_a", "mmlu_b"]}


def results_v2(value: float) -> dict[str, dict[str, float]]:
    names = [f"leaderboard_bbh_{name}" for name in BBH_CHOICES] + [f"leaderboard_musr_{name}" for name in MUSR_CHOICES]
    results = {name: {"acc_norm,none": value} for name in [*names, "leaderboard_gpqa"]}
    results["leaderboard_math_hard"] = {"exact_match,none": value}
    results["leaderboard_mmlu_pro"] = {"acc,none": value}
    strict = {"prompt_level_strict_acc,none": value, "inst_level_strict_acc,none": value}
    results["leaderboard_ifeval"] = {**strict, "prompt_level_loose_acc,none": 1.0}
    return results


def test_first_edition_is_the_plain_mean_of_six() -> None:
    scores, missing = leaderboard_scores(V1, *results_v1())
    assert missing == {}
    assert scores["MMLU"] == pytest.approx(0.4)  # every subject counts the same
    assert scores["GSM8K"] == pytest.approx(0.1)  # strict
    assert scores["average"] == pytest.approx((0.5 + 0.7 + 0.4 + 0.45 + 0.65 + 0.1) / 6)


def test_public_settings_of_the_first_edition() -> None:
    shots = {part.name: part.num_fewshot for part in LEADERBOARDS[V1]}
    assert shots == {"ARC": 25, "HellaSwag": 10, "MMLU": 5, "TruthfulQA": 0, "Winogrande": 5, "GSM8K": 5}
    assert ALIASES.keys() == {"leaderboard_v1", "leaderboard_v2"}


# The public numbers were made with one set of settings: others give another number under the same name.
@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        (V1, (0, None, False), ["--num-fewshot 0"]),
        (V1, (None, 20, True), ["--limit 20", "--apply-chat-template"]),
        (V1, (None, None, False), []),
        (V2, (5, 20, True), ["--num-fewshot 5", "--limit 20"]),
        (V2, (None, None, True), []),  # there it was the choice of who submitted
    ],
)
def test_settings_that_are_not_the_leaderboards_are_named(
    name: str, asked: tuple[int | None, int | None, bool], words: list[str]
) -> None:
    note = departure(name, *asked)
    assert note.startswith(f"{name}: not comparable with the public leaderboard: ") == bool(words)
    options = ("--num-fewshot", "--limit", "--apply-chat-template")
    assert all(word in note for word in words)
    assert sum(option in note for option in options) == len(words)


def test_examples_of_the_documentation() -> None:
    # https://huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization: GPQA 0.6 -> 46.67
    assert normalised(0.6, 0.25) * 100 == pytest.approx(46.67, abs=0.005)
    # MuSR 0.7, 0.4, 0.6 -> 40, 25, 40: mean 35 (the page takes 0.333 for a third)
    results = results_v2(0.0)
    for name, value in (("murder_mysteries", 0.7), ("object_placements", 0.4), ("team_allocation", 0.6)):
        results[f"leaderboard_musr_{name}"] = {"acc_norm,none": value}
    assert leaderboard_scores(V2, results, {})[0]["MuSR"] * 100 == pytest.approx(35.0, abs=0.02)


def test_second_edition_at_its_ends() -> None:
    # All right is 1 everywhere, below chance is 0 and not negative.
    assert set(leaderboard_scores(V2, results_v2(1.0), {})[0].values()) == {1.0}
    low = leaderboard_scores(V2, results_v2(0.05), {})[0]
    assert low["GPQA"] == low["MMLU-Pro"] == low["MuSR"] == 0.0
    assert low["IFEval"] == low["MATH Lvl 5"] == pytest.approx(0.05)  # no chance to subtract
    assert low["average"] == pytest.approx(sum(low[part.name] for part in LEADERBOARDS[V2]) / 6)


def test_ifeval_is_the_mean_of_both_strict_accuracies() -> None:
    results = results_v2(0.5)
    results["leaderboard_ifeval"] |= {"prompt_level_strict_acc,none": 0.2, "inst_level_strict_acc,none": 0.4}
    assert leaderboard_scores(V2, results, {})[0]["IFEval"] == pytest.approx(0.3)


def test_without_a_part_there_is_no_average() -> None:
    results, subtasks = results_v1()
    del results["hellaswag"]
    results["winogrande"] = {"acc,none": math.nan}
    scores, missing = leaderboard_scores(V1, results, subtasks)
    assert missing == {"HellaSwag": "hellaswag", "Winogrande": "winogrande"}
    assert "average" not in scores
    assert scores["ARC"] == 0.5
    # A single subtask of BBH is enough: the mean over the others would be another number.
    second = results_v2(0.5)
    del second["leaderboard_bbh_snarks"]
    assert leaderboard_scores(V2, second, {})[1] == {"BBH": "leaderboard_bbh_snarks"}


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_normalising_keeps_the_order(one: float, other: float, chance: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= normalised(low, chance) <= normalised(high, chance) <= 1


def records(values: list[Any], metric: str, filter_name: str = "none") -> list[dict[str, Any]]:
    return [
        {"doc_id": number, "filter": filter_name, "metrics": [metric], metric: value}
        for number, value in enumerate(values)
    ]


def test_rows_of_a_leaderboard() -> None:
    results, subtasks = results_v1()
    samples = {
        "arc_challenge": records([1, 0] * 50, "acc_norm"),
        "hellaswag": records([1] * 7 + [0] * 3, "acc_norm"),
        "mmlu_a": records([1, 0, 0, 0, 0], "acc"),
        "mmlu_b": records([1, 1, 1, 0, 0], "acc"),
        "truthfulqa_mc2": records([0.4, 0.5] * 20, "acc"),
        "winogrande": records([1] * 13 + [0] * 7, "acc"),
        "gsm8k": records([1] + [0] * 9, "exact_match", "strict-match"),
    }
    everything: dict[str, Any] = {
        "results": results,
        "group_subtasks": subtasks,
        "n-samples": {name: {"effective": len(rows)} for name, rows in samples.items()},
    }
    tasks: Any = dict.fromkeys(samples)
    rows, missing = leaderboard_rows(V1, everything, tasks, samples)
    assert missing == {}
    by_metric = {row["metric"]: row for row in rows}
    assert by_metric["average"]["n"] == sum(len(rows) for rows in samples.values())
    assert by_metric["MMLU"]["n"] == 10
    for row in rows:
        assert row["task"] == V1
        assert row["low"] < row["value"] < row["high"]
    # Many questions and few: the width follows 1/sqrt(n); the average is surer than its least sure part.
    width = {name: row["high"] - row["low"] for name, row in by_metric.items()}
    assert width["ARC"] < width["HellaSwag"]
    assert width["average"] < width["HellaSwag"]
    # 100 questions at one half: a standard error of 0.05
    assert width["ARC"] == pytest.approx(2 * 1.96 * 0.05, rel=0.1)
    assert leaderboard_rows(V1, everything, tasks, samples) == (rows, missing)  # the same draws each time


# Near chance, where small models are, the cut at chance must not push the truth out of the interval.
@pytest.mark.parametrize(("above_chance", "least", "most"), [(0.0, 0.93, 0.97), (0.02, 0.93, 0.97), (0.2, 0.93, 0.97)])
def test_intervals_of_normalised_scores_hold_the_truth(
    monkeypatch: pytest.MonkeyPatch, above_chance: float, least: float, most: float
) -> None:
    monkeypatch.setattr(leaderboard_rows_module, "RESAMPLES", 200)
    rng, held, sets, questions = np.random.default_rng(0), 0, 200, 250
    names = {f"leaderboard_musr_{name}": 1 / choices for name, choices in MUSR_CHOICES.items()}
    truth = float(np.mean([above_chance / (1 - chance) for chance in names.values()]))
    for _ in range(sets):
        right = {name: rng.random(questions) < chance + above_chance for name, chance in names.items()}
        everything = {
            "results": {name: {"acc_norm,none": float(found.mean())} for name, found in right.items()},
            "group_subtasks": {"leaderboard_musr": list(names)},
            "n-samples": {name: {"effective": questions} for name in names},
        }
        samples = {name: records(found.astype(int).tolist(), "acc_norm") for name, found in right.items()}
        [row], _ = leaderboard_rows(V2, everything, dict.fromkeys(names), samples)
        assert row["low"] <= row["value"] <= row["high"]
        held += row["low"] <= truth <= row["high"]
    assert least <= held / sets <= most
