from __future__ import annotations

import json

import pytest
from fake_run import answers, score, write_lines, write_run
from scipy.stats import binomtest

from sengi.report.run_folder import read_run
from sengi.report.scores import compare_scores, held_out_losses, pick_examples


def by_name(run):
    return {(c.before.task, c.before.group): c for c in compare_scores(run)}


def test_first_and_last_evaluation_are_paired_by_question(run_folder):
    # Taught: 1 of 30 right, then 27 of 30, the one stays right: 26 gained, none lost.
    taught = by_name(read_run(run_folder))["answer", "group=taught"]
    assert (taught.step_before, taught.step_after) == (0, 120)
    assert (taught.paired.gained, taught.paired.lost, taught.paired.difference.n) == (26, 0, 30)
    assert taught.paired.difference.value == pytest.approx(26 / 30)
    assert taught.paired.p_value == pytest.approx(binomtest(0, 26).pvalue)
    assert taught.change == "better"


def test_controls_are_marked_and_unchanged(run_folder):
    control = by_name(read_run(run_folder))["answer", "group=control"]
    assert control.is_control
    assert control.paired.difference.n == 10
    assert control.change == "no clear change"


def losses(change: float) -> list[dict]:
    """Held-out losses of 20 samples as a run keeps them; longer samples lose more."""
    return [
        {
            "task": "heldout",
            "id": str(k),
            "metric": "loss",
            "correct": 3 - k / 20 + change * (1 + k / 20),
            "weight": 10 + k,
        }
        | {"source": "facts" if k < 12 else "skills", "question": f"held.jsonl:{k + 1}"}
        for k in range(20)
    ]


def test_held_out_losses_are_paired_by_sample_and_weigh_their_tokens(run_folder):
    for step, change in ((0, 0.0), (120, -0.01)):
        write_lines(run_folder / f"evaluations/step-{step:08d}-heldout.items.jsonl", losses(change))
    found = by_name(read_run(run_folder))
    whole, facts = found["heldout", "all"], found["heldout", "source=facts"]
    weights = [10 + k for k in range(20)]
    expected = sum(w * -0.01 * (1 + k / 20) for k, w in enumerate(weights)) / sum(weights)
    assert whole.paired.difference.value == pytest.approx(expected)
    assert (whole.paired.difference.n, facts.paired.difference.n) == (20, 12)
    # Far less than the losses differ among themselves, and yet clear: every sample fell.
    assert (whole.change, facts.change) == ("better", "better")


def test_held_out_samples_are_no_examples_of_answers(run_folder):
    for step in (0, 120):
        write_lines(run_folder / f"evaluations/step-{step:08d}-heldout.items.jsonl", losses(0.0))
    assert {example.task for example in pick_examples(read_run(run_folder))} == {"answer"}


def test_topics_pair_their_own_questions(run_folder):
    for step, share in ((0, 0.05), (120, 0.7)):
        file = run_folder / f"evaluations/step-{step:08d}-topics.json"
        entry = score("answer", "exact_match", "topic=prices", share, 0, 1, 20)
        file.write_text(json.dumps({"scores": [entry]}))
    prices = by_name(read_run(run_folder))["answer", "topic=prices"]
    # Odd questions: 15 taught (13 of the odd ones below 27 turn right) and 5 controls.
    assert (prices.paired.difference.n, prices.paired.gained) == (20, 13)


def test_only_questions_with_both_results_are_paired(run_folder):
    items = [item | {"correct": None} if item["id"] == "q5" else item for item in answers(27, 1) if item["id"] != "q4"]
    write_lines(run_folder / "evaluations/step-00000120.items.jsonl", items)
    taught = by_name(read_run(run_folder))["answer", "group=taught"]
    assert taught.paired.difference.n == 28


def test_choices_and_answers_of_one_task_are_paired_apart(run_folder):
    # One file may hold both kinds of question, and choices are counted in two ways.
    for step, right in ((0, 0), (120, 1)):
        choices = {
            "task": "answer",
            "group": "",
            "topic": "",
            "metric": "accuracy",
            "correct": right,
            "correct_sum": True,
        }
        items = [choices | {"id": f"c{i}"} for i in range(12)]
        with (run_folder / f"evaluations/step-{step:08d}.items.jsonl").open("a") as file:
            file.writelines(json.dumps(item) + "\n" for item in items)
        entries = [score("answer", metric, "all", right, 0, 1, 12) for metric in ("accuracy", "accuracy_sum")]
        name = f"evaluations/step-{step:08d}-choice.json"
        (run_folder / name).write_text(json.dumps({"scores": entries}))
    found = {c.before.metric: c.paired for c in compare_scores(read_run(run_folder)) if c.before.group == "all"}
    assert (found["accuracy"].gained, found["accuracy"].difference.n) == (12, 12)
    assert (found["accuracy_sum"].gained, found["accuracy_sum"].difference.n) == (0, 12)


def test_loss_is_better_when_lower_and_is_judged_by_its_intervals(run_folder):
    loss = by_name(read_run(run_folder))["heldout", "all"]
    assert loss.paired is None
    assert loss.change == "better"
    worse = json.loads((run_folder / "evaluations/step-00000120.json").read_text())
    worse["scores"][0] |= {"value": 3.5, "low": 3.4, "high": 3.6}
    (run_folder / "evaluations/step-00000120.json").write_text(json.dumps(worse))
    assert by_name(read_run(run_folder))["heldout", "all"].change == "worse"


def test_without_intervals_nothing_is_claimed(run_folder):
    for step in (0, 120):
        entry = {"task": "new", "metric": "loss", "group": "all", "value": 1.0 - step / 200, "n": 5}
        (run_folder / f"evaluations/step-{step:08d}-n.json").write_text(json.dumps({"scores": [entry]}))
    assert by_name(read_run(run_folder))["new", "all"].change == "no clear change"


def test_one_evaluation_is_no_comparison(run_folder):
    for step in (60, 120):
        (run_folder / f"evaluations/step-{step:08d}.json").unlink()
    changes = {c.change for c in compare_scores(read_run(run_folder))}
    assert changes == {"one evaluation only"}


def test_held_out_losses_prefer_the_whole(run_folder):
    losses = held_out_losses(read_run(run_folder))
    assert [(step, s.value) for step, s in losses] == [(0, 3.01), (60, 1.2), (120, 0.62)]


def test_examples_show_all_four_outcomes(tmp_path):
    # 27 gained, controls 1 of 10 right before and another one after: a mended, a broken, a wrong and a right one.
    folder = write_run(tmp_path / "run")
    after = answers(27, 0)
    after[35]["correct"] = 1
    write_lines(folder / "evaluations/step-00000120.items.jsonl", after)
    examples = pick_examples(read_run(folder))
    assert len(examples) == 10
    assert {(e.right_before, e.right_after) for e in examples} == {(a, b) for a in (True, False) for b in (True, False)}
    assert sum(e.right_after and not e.right_before for e in examples) >= 4
    first = examples[0]
    assert (first.question, first.answer) == ("What is number 0?", "answer 0")
    assert (first.before, first.after) == ("said 0 of 1", "said 0 of 27")


def test_no_answers_no_examples(tmp_path):
    folder = write_run(tmp_path / "run")
    for file in folder.glob("evaluations/*.items.jsonl"):
        file.unlink()
    run = read_run(folder)
    assert pick_examples(run) == []
    assert by_name(run)["answer", "group=taught"].change == "better"
