from __future__ import annotations

import json
import lzma
import os

import pytest
from saved_layout import TIME, accuracies, item, sample, write_lines, write_results, write_samples

from sengi.errors import DataError
from sengi.evaluate.saved_samples import load_samples


def test_a_folder_of_lm_eval_its_parent_and_one_file_are_the_same(tmp_path):
    file = write_samples(tmp_path / "out" / "org__model", "arc_easy", accuracies("arc_easy", [1, 0, 1]))
    for path in (tmp_path / "out", file.parent, file):
        saved = load_samples(path)
        assert saved.files == [file]
        assert saved.tasks["arc_easy"].metrics == {"acc": {"0": (1.0, 1.0), "1": (0.0, 1.0), "2": (1.0, 1.0)}}


def test_of_each_task_the_newest_file_counts(tmp_path):
    # Task names hold underscores; the time is behind the last one.
    write_samples(tmp_path, "mmlu_law", accuracies("mmlu_law", [0]), "2026-01-01T00-00-00.1")
    write_samples(tmp_path, "mmlu_law", accuracies("mmlu_law", [1]), "2026-01-03T00-00-00.1")
    write_samples(tmp_path, "mmlu", accuracies("mmlu", [0]), "2026-01-02T00-00-00.1")
    saved = load_samples(tmp_path)
    assert saved.tasks["mmlu_law"].metrics["acc"]["0"][0] == 1.0
    assert set(saved.tasks) == {"mmlu_law", "mmlu"}


def test_filters_are_metrics_of_their_own(tmp_path):
    rows = [
        sample("gsm8k", 0, used=used, exact_match=value)
        for used, value in (("strict-match", 0.0), ("flexible-extract", 1.0))
    ]
    saved = load_samples(write_samples(tmp_path, "gsm8k", rows)).tasks["gsm8k"]
    assert saved.metrics["exact_match,strict-match"]["0"][0] == 0.0
    assert saved.metrics["exact_match,flexible-extract"]["0"][0] == 1.0


def test_metrics_without_a_part_for_each_question_are_listed(tmp_path):
    rows = [sample("multirc", k, acc=1.0, f1=[1, 0]) for k in range(3)]
    saved = load_samples(write_samples(tmp_path, "multirc", rows)).tasks["multirc"]
    assert list(saved.metrics) == ["acc"]
    assert saved.left_out == {"f1"}


def test_results_beside_tell_groups_directions_and_exclusions(tmp_path):
    write_samples(tmp_path, "one", [sample("one", 0, error=1.0)])
    write_samples(tmp_path, "two", [sample("two", 0, error=1.0)])
    write_results(
        tmp_path,
        group_subtasks={"all": ["half"], "half": ["one", "two"], "one": []},
        groups={"all": {"alias": "all", "error,none": 1.0, "error_stderr,none": "N/A"}},
        higher_is_better={"one": {"error": False}},
        sengi={"excluded": [{"task": "two", "id": 7, "reason": "too long"}]},
    )
    saved = load_samples(tmp_path)
    assert saved.groups == {"all": ["one", "two"]}
    assert saved.group_scores == {"all": {"error": 1.0}}
    assert saved.tasks["one"].higher_is_better == {"error": False}
    assert saved.tasks["two"].excluded == {"7"}


def test_our_own_records_in_lm_evals_layout_keep_weight_and_labels(tmp_path):
    rows = [sample("heldout", 0, loss=2.0) | {"weight": 40, "source": "facts"}, sample("heldout", 1, loss=1.0)]
    saved = load_samples(write_samples(tmp_path, "heldout", rows)).tasks["heldout"]
    assert saved.metrics["loss"] == {"0": (2.0, 40.0), "1": (1.0, 1.0)}
    assert saved.labels == {"0": {"source": "facts"}, "1": {}}


def test_groups_that_name_themselves_end(tmp_path):
    write_samples(tmp_path, "one", accuracies("one", [1]))
    write_results(tmp_path, group_subtasks={"loop": ["loop", "one"]}, groups={"loop": {}})
    assert load_samples(tmp_path).groups == {"loop": ["one"]}


def test_a_run_folder_is_its_last_evaluation(tmp_path):
    for step, correct in ((0, 0), (500, 1), (1_000, 1)):
        write_lines(
            tmp_path / f"evaluations/step-{step:08d}-questions.items.jsonl", [item("own", "q", "accuracy", correct)]
        )
    heldout = item("heldout", "0", "loss", 2.5, weight=40, source="facts", prompt_hash="ab")
    last = write_lines(tmp_path / "evaluations/step-00001000-heldout.items.jsonl", [heldout])
    saved = load_samples(tmp_path)
    assert [file.name for file in saved.files] == [last.name, "step-00001000-questions.items.jsonl"]
    assert saved.tasks["heldout"].metrics["loss"] == {"0": (2.5, 40.0)}
    assert saved.tasks["heldout"].higher_is_better == {"loss": False}
    assert saved.tasks["heldout"].labels["0"] == {"source": "facts"}
    assert saved.tasks["heldout"].asked["0"].prompt == "ab"
    first = load_samples(tmp_path / "evaluations/step-00000000-questions.items.jsonl")
    assert first.tasks["own"].metrics["accuracy"] == {"q": (0.0, 1.0)}


def test_items_carry_accuracy_by_sum_and_exclusions_lie_beside(tmp_path):
    rows = [item("own", "q", "accuracy", 1, correct_sum=0), item("own", "r", "exact_match", 1)]
    file = write_lines(tmp_path / "step-00000005-questions.items.jsonl", rows)
    excluded = [{"task": "own", "id": "s", "reason": "too long"}]
    (tmp_path / "step-00000005-questions.json").write_text(json.dumps({"excluded": excluded}))
    saved = load_samples(file).tasks["own"]
    assert saved.metrics == {
        "accuracy": {"q": (1.0, 1.0)},
        "accuracy_sum": {"q": (0.0, 1.0)},
        "exact_match": {"r": (1.0, 1.0)},
    }
    assert saved.excluded == {"s"}


def test_compressed_files_are_read(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in accuracies("arc", [1, 0]))
    (tmp_path / f"samples_arc_{TIME}.jsonl.xz").write_bytes(lzma.compress(text.encode()))
    assert len(load_samples(tmp_path).tasks["arc"].asked) == 2


def test_a_task_of_which_nothing_could_be_scored_is_no_obstacle(tmp_path):
    write_samples(tmp_path, "arc", accuracies("arc", [1, 0]))
    write_samples(tmp_path, "gone", [])
    assert list(load_samples(tmp_path).tasks) == ["arc"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([sample("t", 0, acc=1.0), sample("t", 0, acc=1.0)], r"jsonl:2: question '0' has 'acc' twice"),
        ([{"doc_id": 0, "acc": 1.0}], "jsonl:1: not a sample as lm-eval writes it"),
        ([], "no question could be scored; its results_"),
    ],
)
def test_broken_samples_name_file_and_row(tmp_path, rows, words):
    write_samples(tmp_path, "t", rows)
    with pytest.raises(DataError, match=words):
        load_samples(tmp_path)


def test_a_line_that_is_not_json_is_named(tmp_path):
    file = write_samples(tmp_path, "t", accuracies("t", [1, 1]))
    file.write_text(file.read_text()[:-40])
    with pytest.raises(DataError, match=r"jsonl:2: .*(cut|not valid JSON)"):
        load_samples(tmp_path)


def test_broken_items_are_named(tmp_path):
    file = write_lines(tmp_path / "step-00000001.items.jsonl", [{"task": "own", "id": "q", "correct": 1}])
    with pytest.raises(DataError, match=r"items\.jsonl:1: not an item of an evaluation"):
        load_samples(file)
    write_lines(file, [item("heldout", "0", "loss", 2.0, weight=0)])
    with pytest.raises(DataError, match=r"items\.jsonl:1: weight: 0; a positive number"):
        load_samples(file)


def test_results_that_are_not_json_are_named(tmp_path):
    write_samples(tmp_path, "t", accuracies("t", [1]))
    (tmp_path / f"results_{TIME}.json").write_text("{")
    with pytest.raises(DataError, match=r"results_.*json: not JSON"):
        load_samples(tmp_path)


def test_what_holds_no_answers_says_what_is_wanted(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; give a folder with samples"):
        load_samples(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no saved answers in it; .*--log_samples"):
        load_samples(tmp_path)
    other = write_lines(tmp_path / "train.jsonl", [{"a": 1}])
    with pytest.raises(DataError, match=r"train\.jsonl: neither samples"):
        load_samples(other)
    for name in ("one", "two"):
        write_samples(tmp_path / name, "t", accuracies("t", [1]))
    with pytest.raises(DataError, match=r"holds 2 evaluations \(one, two\); name one"):
        load_samples(tmp_path)


def test_a_pipe_under_a_samples_name_is_refused(tmp_path):
    path = tmp_path / f"samples_t_{TIME}.jsonl"
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"):
        load_samples(tmp_path)
