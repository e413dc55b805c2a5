"""Local files stand for the hub's data sets: lm-eval's own functions must see what the hub would give them."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.harness.local_tasks import small_root, write_csv, write_jsonl

from sengi.errors import InputError
from sengi.harness.adapters import find_adapter, load_adapters
from sengi.harness.local_rows import common_start, hub_rows
from sengi.harness.tasks import load_tasks

SHARED = Path(__file__).parents[3] / "shared" / "data" / "eval"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_root(tmp_path_factory) as folder:
        yield folder


def load(name: str, root: Path, shots: int | None = 0) -> Any:
    return load_tasks([name], root, num_fewshot=shots).tasks[name]


def question(task: Any, number: int = 0) -> tuple[Any, Any, Any]:
    doc = task.eval_docs[number]
    choices = task.doc_to_choice(doc) if task.get_config("doc_to_choice") else None
    return task.doc_to_text(doc), choices, task.doc_to_target(doc)


def test_every_adapter_is_whole() -> None:
    # Each adapter serves hub ids of its own, and has somewhere to look and something to look for.
    adapters = set(load_adapters().values())
    assert len(load_adapters()) == sum(len(one.hub) for one in adapters)
    assert all(one.splits and one.rows and all(layout.has for layout in one.rows) for one in adapters)
    assert find_adapter("CAIS/mmlu ") is find_adapter("cais/mmlu") is not None
    assert find_adapter("nobody/nothing") is find_adapter(None) is None


# The prompt, the choices and the target are made by lm-eval's own functions from our rows.
ASKED: dict[str, tuple[Any, Any, Any]] = {
    "mmlu_astronomy": ("astronomy 0?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:", ["A", "B", "C", "D"], 0),
    "arc_easy": ("Question: Which one barks?\nAnswer:", ["a cat", "a dog", "a fish"], 1),
    "arc_challenge": ("Question: Which one barks?\nAnswer:", ["a cat", "a dog"], 1),
    "gsm8k": ("Question: What is 0 + 1?\nAnswer:", None, "0 + 1 = 1\n#### 1"),
    "winogrande": (1, ["Sarah was better than Maria so Sarah", "Sarah was better than Maria so Maria"], "won."),
    "hellaswag": ("Cooking: A man cooks. He", ["eats.", "x", "y", "z"], 0),
    "truthfulqa_mc1": (None, ["Nobody.", "You.", "Me.", "They."], 0),
    "truthfulqa_mc2": (None, ["Nobody.", "No one.", "You.", "Me.", "They."], 0),
    "leaderboard_bbh_navigate": ("Q: navigate 0?\nA:", ["Yes", "No"], "Yes"),
    "bbh_zeroshot_boolean_expressions": (None, None, "True"),
    "hendrycks_math_counting_and_prob": ("Problem: 1+1?\nAnswer:", None, "2"),
    "leaderboard_math_counting_and_prob_hard": ("Problem:\n1+1?\n\nSolution:", None, "2"),
    "leaderboard_mmlu_pro": ("Which?\nA. a\nB. b\nC. c\nAnswer:", ["A", "B", "C"], "B"),
    "mmlu_pro_law": (None, None, "B"),
    "leaderboard_musr_murder_mysteries": ("A killed B.\n\nWho?\n\n1 - A\n2 - B\n\nAnswer:", ["A", "B"], "A"),
    "leaderboard_musr_team_allocation": (None, ["A", "B", "it's C"], "A"),
    "leaderboard_ifeval": ("No commas.", None, 0),
}


@pytest.mark.parametrize("name", ASKED)
def test_lm_evals_functions_see_the_hubs_columns(name: str, root: Path) -> None:
    for asked, expected in zip(question(load(name, root)), ASKED[name], strict=True):
        assert expected is None or asked == expected


def test_levels_and_subjects_are_split(root: Path) -> None:
    # One file holds all types of problems: a task gets its own, and the hard tasks level 5 only.
    assert len(load("hendrycks_math_counting_and_prob", root).eval_docs) == 2
    assert len(load("leaderboard_math_counting_and_prob_hard", root).eval_docs) == 1
    assert len(load("hendrycks_math_algebra", root).eval_docs) == 1
    assert len(load("mmlu_astronomy", root).eval_docs) == 2


def test_gpqa_is_shuffled_once(root: Path) -> None:
    # lm-eval looks at the questions several times; a new shuffle at each look would score answers of other prompts.
    task = load("leaderboard_gpqa_main", root)
    first, second = list(task.eval_docs), list(task.eval_docs)
    assert first == second
    for doc in first:
        assert doc[f"choice{'ABCD'.index(doc['answer'][1]) + 1}"] == "right"
    assert len({doc["answer"] for doc in first}) > 1
    # and as lm-eval's own seed shuffles: the same in every process
    assert [doc["answer"] for doc in first] == [doc["answer"] for doc in load("leaderboard_gpqa_main", root).eval_docs]


def test_archive_and_folder_give_the_same(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bbh"
    folder.mkdir()
    rows = [{"input": f"navigate {n}?", "target": "Yes"} for n in range(3)]
    (folder / "navigate.json").write_text(json.dumps({"canary": "x", "examples": rows}), encoding="utf-8")
    packed, plain = load("leaderboard_bbh_navigate", root), load("leaderboard_bbh_navigate", tmp_path)
    assert list(packed.eval_docs) == list(plain.eval_docs) == rows


@given(
    start=st.text("abc ", max_size=12),
    options=st.tuples(st.text("abcM", min_size=1, max_size=5), st.text("abcM", min_size=1, max_size=5)),
)
def test_winogrande_contexts_come_back(start: str, options: tuple[str, str]) -> None:
    # lm-eval puts each option where the '_' is: that must be the context that the file had, wherever the cut fell.
    contexts = [f"{start} {option}" for option in options]
    cut = len(common_start(contexts))
    assert [contexts[0][:cut] + context[cut:] for context in contexts] == contexts
    assert contexts[0][:cut] == "" or contexts[0][:cut].endswith(" ")


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("mmlu_astronomy", "mmlu/test.jsonl", {"answer": None}, "test.jsonl:2: answer is empty"),
    ("mmlu_astronomy", "mmlu/test.jsonl", {"answer": 4}, "test.jsonl:2: answer: not the index of a choice"),
    ("mmlu_astronomy", "mmlu/test.jsonl", {"choices": ["a", "b"]}, "test.jsonl:2: choices: four are needed"),
    ("arc_easy", "arc_easy.jsonl", {"gold": 9}, "arc_easy.jsonl:2: gold: not the index"),
    ("gsm8k", "gsm8k/test.jsonl", {"answer": "seven"}, "test.jsonl:2: answer: no '#### number'"),
    ("winogrande", "winogrande.jsonl", {"gold": 2}, "winogrande.jsonl:2: gold: neither 0 nor 1"),
    ("winogrande", "winogrande.jsonl", {"context_options": ["a _", "b _"]}, "which marks the gap"),
    ("hellaswag", "hellaswag/validation.jsonl", {"label": ""}, "validation.jsonl:2: label is empty"),
]
GOOD: dict[str, dict[str, Any]] = {
    "mmlu_astronomy": {"subject": "astronomy", "question": "?", "choices": ["a", "b", "c", "d"], "answer": 0},
    "arc_easy": {"query": "Question: x?", "choices": ["a", "b"], "gold": 0},
    "gsm8k": {"question": "?", "answer": "#### 1"},
    "winogrande": {"context_options": ["so a", "so b"], "continuation": "won.", "gold": 0},
    "hellaswag": {"activity_label": "x", "ctx_a": "a", "ctx_b": "b", "endings": ["a", "b", "c", "d"], "label": "0"},
}


@pytest.mark.parametrize(("name", "file", "change", "words"), WRONG)
def test_a_wrong_row_is_named(
    name: str, file: str, change: dict[str, Any], words: str, root: Path, tmp_path: Path
) -> None:
    # lm-eval would stop in the middle or score the question as wrong; here its file and line are named at once.
    write_jsonl(tmp_path / file, [GOOD[name], {**GOOD[name], **change}])
    with pytest.raises(InputError) as raised:
        load(name, tmp_path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unknown_columns_are_named(root: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "gsm8k/test.jsonl", [{"frage": "x", "answer": "#### 1"}])
    with pytest.raises(InputError, match=r"test.jsonl:1: columns 'frage, answer' are not \(question, answer\)"):
        load("gsm8k", tmp_path)


def test_a_subject_without_rows(root: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mmlu/test.jsonl", [GOOD["mmlu_astronomy"]])
    with pytest.raises(InputError, match=r"test.jsonl: holds no row of 'anatomy' \(by subject\); get the whole file"):
        load("mmlu_anatomy", tmp_path)


def test_a_cut_archive(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bbh.tar.xz").write_bytes((root / "bbh.tar.xz").read_bytes()[:150])
    with pytest.raises(InputError, match=r"bbh.tar.xz: (cannot be decompressed|not a whole tar archive)"):
        load("leaderboard_bbh_navigate", tmp_path)
    (tmp_path / "bbh.tar.xz").write_bytes(lzma.compress(b"no archive" * 100))
    with pytest.raises(InputError, match=r"bbh.tar.xz: not a whole tar archive"):
        load("leaderboard_bbh_navigate", tmp_path)


def test_a_file_that_changed_is_read_again(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "gsm8k/test.jsonl"
    adapter = find_adapter("openai/gsm8k")
    assert adapter is not None
    write_jsonl(path, [{"question": "one", "answer": "#### 1"}])
    assert [row["question"] for row in hub_rows(adapter, path, "", "main")] == ["one"]
    write_jsonl(path, [{"question": "three", "answer": "#### 3"}])
    assert [row["question"] for row in hub_rows(adapter, path, "", "main")] == ["three"]


def test_csv_of_another_kind_is_refused(root: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "TruthfulQA.csv", [{"Question": "?", "Best Answer": "x", "Correct Answers": "x"}])
    with pytest.raises(InputError, match=r"TruthfulQA.csv:1: columns .* are not .*Incorrect Answers"):
        load("truthfulqa_mc1", tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not here")
@pytest.mark.parametrize(
    ("name", "questions"), [("arc_easy", 2376), ("winogrande", 1267), ("gsm8k_cot", 1319), ("ifeval", 541)]
)
def test_real_files(name: str, questions: int, root: Path) -> None:
    assert len(load(name, SHARED, None).eval_docs) == questions
