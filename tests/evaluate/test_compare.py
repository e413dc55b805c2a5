from __future__ import annotations

import math

import numpy as np
import pytest
from saved_layout import accuracies, item, sample, write_lines, write_results, write_samples
from scipy import stats

from sengi.errors import InputError
from sengi.evaluate.compare import compare
from sengi.evaluate.saved_samples import load_samples
from sengi.statistics.differences import holm

RIGHT = [1] * 40 + [0] * 40  # 80 questions, half of them right
BETTER = [1] * 38 + [0] * 2 + [1] * 20 + [0] * 20  # 20 gained, 2 lost


def saved(folder, **tasks):
    for task, right in tasks.items():
        write_samples(folder, task, accuracies(task, right))
    return load_samples(folder)


def test_a_row_holds_the_paired_statistics_of_its_task(tmp_path):
    comparison = compare([saved(tmp_path / "a", arc=RIGHT), saved(tmp_path / "b", arc=BETTER)])
    (row,) = comparison.rows
    assert (row.task, row.metric, row.before, row.after) == ("arc", "acc", 0.5, 58 / 80)
    assert (row.paired.gained, row.paired.lost, row.paired.difference.n) == (20, 2, 80)
    assert row.paired.difference.value == pytest.approx(18 / 80)
    assert row.paired.p_value == pytest.approx(stats.binomtest(2, 22).pvalue)
    assert row.p_holm == row.paired.p_value  # one row: nothing to correct
    assert row.verdict == "better"
    # The paired bootstrap stands beside the score interval and agrees roughly at this n.
    assert row.bootstrap.low == pytest.approx(row.paired.difference.low, abs=0.03)
    assert row.bootstrap.high == pytest.approx(row.paired.difference.high, abs=0.03)
    assert 0 < row.detectable < 22 / 80


def test_holm_counts_all_tasks_and_comparisons(tmp_path):
    # Three evaluations of two tasks: four rows, the first evaluation is the baseline of all.
    a = saved(tmp_path / "a", arc=RIGHT, law=RIGHT)
    b = saved(tmp_path / "b", arc=BETTER, law=RIGHT)
    c = saved(tmp_path / "c", arc=[1] * 41 + [0] * 39, law=RIGHT[::-1])
    comparison = compare([a, b, c])
    assert [(row.task, row.baseline, row.other) for row in comparison.rows] == [
        ("arc", 0, 1), ("law", 0, 1), ("arc", 0, 2), ("law", 0, 2),
    ]  # fmt: skip
    assert [row.p_holm for row in comparison.rows] == holm([row.paired.p_value for row in comparison.rows])
    assert comparison.rows[0].p_holm == pytest.approx(4 * comparison.rows[0].paired.p_value)
    # More rows, a stricter level, so only larger differences can be found.
    alone = compare([a, saved(tmp_path / "d", arc=BETTER)]).rows[0]
    assert comparison.rows[0].detectable > alone.detectable


def test_an_evaluation_against_itself_shows_no_difference(tmp_path):
    one = saved(tmp_path, arc=RIGHT)
    (row,) = compare([one, one]).rows
    assert (row.paired.difference.value, row.p_holm, row.verdict) == (0.0, 1.0, "no difference shown")
    assert row.paired.difference.low < 0 < row.paired.difference.high
    assert math.isnan(row.detectable)


def test_lower_is_better_for_losses_and_tokens_weigh(tmp_path):
    # Held-out loss is a mean over tokens: a long conversation weighs more.
    rng = np.random.default_rng(0)
    weights, before = rng.integers(5, 400, 60), rng.normal(2, 0.4, 60)
    after = before - 0.1 + rng.normal(0, 0.05, 60)
    files = []
    for name, losses in (("a", before), ("b", after)):
        rows = [
            item("heldout", str(k), "loss", float(loss), weight=int(w), prompt_hash=str(k))
            for k, (loss, w) in enumerate(zip(losses, weights, strict=True))
        ]
        files.append(write_lines(tmp_path / name / "step-00000010-heldout.items.jsonl", rows))
    (row,) = compare([load_samples(file) for file in files]).rows
    assert row.before == pytest.approx(np.average(before, weights=weights))
    assert row.after == pytest.approx(np.average(after, weights=weights))
    assert row.paired.method == "ratio"
    assert row.bootstrap is None
    assert (row.higher_is_better, row.is_share, row.verdict) == (False, False, "better")


def group_of_two(folder, small, large, weighted_by_questions):
    """A group of two tasks with its score, as lm-eval writes it."""
    write_samples(folder, "small", accuracies("small", small))
    write_samples(folder, "large", accuracies("large", large))
    shares = np.mean(small), np.mean(large)
    sizes = (len(small), len(large)) if weighted_by_questions else (1, 1)
    score = float(np.average(shares, weights=sizes))
    write_results(folder, groups={"both": {"acc,none": score}}, group_subtasks={"both": ["small", "large"]})
    return load_samples(folder)


@pytest.mark.parametrize("weighted_by_questions", [True, False])
def test_a_group_is_one_row_averaged_as_its_score_was(tmp_path, weighted_by_questions):
    a = group_of_two(tmp_path / "a", [1] * 10 + [0] * 10, RIGHT, weighted_by_questions)
    b = group_of_two(tmp_path / "b", [1] * 15 + [0] * 5, BETTER, weighted_by_questions)
    comparison = compare([a, b])
    (row,) = comparison.rows
    assert (row.task, row.paired.difference.n) == ("both", 100)
    assert row.after == pytest.approx(b.group_scores["both"]["acc"])
    assert row.paired.method == ("score" if weighted_by_questions else "ratio")
    # Its tasks are parts, corrected among themselves.
    assert [(part.task, part.part) for part in comparison.parts] == [("both", "small"), ("both", "large")]
    assert [part.p_holm for part in comparison.parts] == holm([part.paired.p_value for part in comparison.parts])


def test_a_group_whose_score_is_no_mean_gives_way_to_its_tasks(tmp_path):
    # One averaged by questions, the other by tasks: no weights give both scores.
    a = group_of_two(tmp_path / "a", [1] * 12 + [0] * 8, RIGHT, True)
    b = group_of_two(tmp_path / "b", [1] * 15 + [0] * 5, BETTER, False)
    comparison = compare([a, b])
    assert {row.task for row in comparison.rows} == {"small", "large"}
    assert comparison.not_compared == [
        "both, acc: no score of it that is a mean over its questions in both; its tasks are compared one by one"
    ]


def test_questions_of_one_label_are_parts(tmp_path):
    def own(folder, taught, control):
        rows = [item("own", f"t{k}", "exact_match", value, group="taught") for k, value in enumerate(taught)]
        rows += [item("own", f"c{k}", "exact_match", value, group="control") for k, value in enumerate(control)]
        return load_samples(write_lines(folder / "step-00000001.items.jsonl", rows))

    comparison = compare([own(tmp_path / "a", [0] * 20, [0] * 5), own(tmp_path / "b", [1] * 20, [0] * 5)])
    assert [(row.task, row.part) for row in comparison.rows] == [("own", "")]
    found = {part.part: (part.paired.difference.value, part.verdict) for part in comparison.parts}
    assert found == {"group=taught": (1.0, "better"), "group=control": (0.0, "no difference shown")}


def test_other_questions_are_refused_with_their_ids(tmp_path):
    with pytest.raises(
        InputError, match=r"arc: 3 questions only in the first \(ids: 2, 3, 4\); evaluate both .*--limit"
    ):
        compare([saved(tmp_path / "a", arc=[1] * 5), saved(tmp_path / "b", arc=[1] * 2)])


# Questions that only one side was asked are told even where the metric that both have knows nothing of them.
def test_questions_of_another_metric_count(tmp_path):
    def own(folder, more):
        rows = [item("own", f"q{k}", "acc", k % 2) for k in range(4)] + more
        return load_samples(write_lines(folder / "step-00000001.items.jsonl", rows))

    written = item("own", "written", "exact_match", 1)
    with pytest.raises(InputError, match=r"own: 1 questions only in the first \(ids: written\)"):
        compare([own(tmp_path / "a", [written]), own(tmp_path / "b", [])])


def test_other_content_under_the_same_id_is_refused(tmp_path):
    rows = accuracies("arc", RIGHT)
    changed = [row | {"target_hash": "other"} if row["doc_id"] in (3, 9) else row for row in rows]
    write_samples(tmp_path / "a", "arc", rows)
    write_samples(tmp_path / "b", "arc", changed)
    with pytest.raises(InputError, match=r"arc: 2 of 80 questions differ \(ids: 3, 9\)"):
        compare([load_samples(tmp_path / "a"), load_samples(tmp_path / "b")])


def test_other_prompts_are_refused_and_all_tasks_are_named_or_counted(tmp_path):
    # Zero-shot against five-shot: same questions, other prompts.
    tasks = ("arc", "law", "med", "gsm")
    for task in tasks:
        write_samples(tmp_path / "a", task, accuracies(task, RIGHT))
        write_samples(tmp_path / "b", task, accuracies(task, RIGHT, prompt="An example. Q: "))
    with pytest.raises(InputError) as caught:
        compare([load_samples(tmp_path / "a"), load_samples(tmp_path / "b")])
    message = str(caught.value)
    assert "arc: 80 of 80 prompts differ (first ids: 0, 1, 2)" in message
    assert "and 1 more tasks" in message
    assert "--num-fewshot" in message
    assert "\n" not in message


def test_a_weight_that_differs_is_refused(tmp_path):
    files = [
        write_lines(tmp_path / f"{w}/step-00000001.items.jsonl", [item("heldout", "0", "loss", 2.0, weight=w)])
        for w in (30, 31)
    ]
    with pytest.raises(InputError, match=r"heldout: 1 questions weigh something else \(ids: 0\)"):
        compare([load_samples(file) for file in files])


def test_questions_that_one_could_not_score_are_left_out_and_counted(tmp_path):
    # A judgement that could not be read is excluded by name, so the rest can be compared.
    rows = [item("mt_bench", str(k), "score", 5.0 + k % 3) for k in range(10)]
    one = write_lines(tmp_path / "a/step-00000001.items.jsonl", rows)
    other = write_lines(tmp_path / "b/step-00000001.items.jsonl", rows[:-2])
    excluded = [{"task": "mt_bench", "id": str(k), "reason": "unreadable"} for k in (8, 9)]
    write_lines(tmp_path / "b/step-00000001.json", [{"excluded": excluded}])
    (row,) = compare([load_samples(one), load_samples(other)]).rows
    assert (row.paired.difference.n, row.left_out) == (8, 2)


def test_what_only_one_holds_is_listed(tmp_path):
    a, b = saved(tmp_path / "a", arc=RIGHT, law=RIGHT), saved(tmp_path / "b", arc=RIGHT, med=RIGHT)
    a.tasks["arc"].left_out.add("f1")
    comparison = compare([a, b])
    assert [row.task for row in comparison.rows] == ["arc"]
    assert comparison.not_compared == [
        f"only in {tmp_path / 'a'}: law",
        f"only in {tmp_path / 'b'}: med",
        "arc: f1: no mean over questions, so no question has a part in it",
    ]


def test_metrics_that_only_one_holds_are_listed(tmp_path):
    write_samples(tmp_path / "a", "arc", [sample("arc", k, acc=1.0, acc_norm=1.0) for k in range(5)])
    comparison = compare([load_samples(tmp_path / "a"), saved(tmp_path / "b", arc=[1] * 5)])
    assert [row.metric for row in comparison.rows] == ["acc"]
    assert comparison.not_compared == [f"arc: acc_norm only in {tmp_path / 'a'}"]


def test_nothing_in_common_and_a_single_evaluation_are_refused(tmp_path):
    a, b = saved(tmp_path / "a", arc=RIGHT), saved(tmp_path / "b", law=RIGHT)
    with pytest.raises(InputError, match=r"no task and metric in common with the others; only in .*: arc"):
        compare([a, b])
    with pytest.raises(InputError, match="give two or more evaluations"):
        compare([a])


def test_four_marks_have_no_interval_and_no_verdict(tmp_path):
    files = []
    for name, marks in (("a", [1.0, 2.0, 3.0, 4.0]), ("b", [6.5, 7.0, 8.0, 9.0])):
        lines = [item("own", str(k), "score", mark) for k, mark in enumerate(marks)]
        files.append(write_lines(tmp_path / f"{name}/step-00000001.items.jsonl", lines))
    (row,) = compare([load_samples(file) for file in files]).rows
    assert math.isnan(row.paired.difference.low)
    assert (row.verdict, row.paired.p_value) == ("no difference shown", 0.125)


def test_one_question_has_no_interval_and_no_spread(tmp_path):
    files = [
        write_lines(tmp_path / f"{name}/step-00000001.items.jsonl", [item("own", "0", "score", value)])
        for name, value in (("a", 3.0), ("b", 4.5))
    ]
    (row,) = compare([load_samples(file) for file in files]).rows
    assert row.paired.difference.value == 1.5
    assert math.isnan(row.paired.difference.low)
    assert math.isnan(row.detectable)
