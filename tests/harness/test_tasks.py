"""What can be known before a model is loaded: names, files, examples, the hub."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import nltk
import numpy as np
import pytest
from lm_eval.api.task import ConfigurableTask
from tests.harness.local_tasks import small_root, write_jsonl

from sengi.errors import InputError
from sengi.harness import requirements, task_index
from sengi.harness.adapters import MissingDataError
from sengi.harness.lm_eval_tasks import TaskIndex, datasets
from sengi.harness.requirements import AFFECTED, prepare_punkt
from sengi.harness.tasks import check_tasks, load_tasks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_root(tmp_path_factory) as folder:
        yield folder


def test_groups_and_tags_are_resolved(root: Path) -> None:
    names = check_tasks(["mmlu"], root)
    assert names[0] == "mmlu"  # groups that have a score come first
    assert len(names) == len(set(names)) == 1 + 4 + 57
    assert check_tasks(["ai2_arc"], root, num_fewshot=0) == ["arc_challenge", "arc_easy"]
    assert check_tasks(["arc_easy", "gsm8k"], root) == ["arc_easy", "gsm8k"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("arc_esay", "did you mean arc_easy"),
        ("leaderbord_v2", "did you mean leaderboard_v2"),
        ("ARC-Easy", "did you mean arc_easy"),
        ("MMLU", "did you mean mmlu "),
        ("mtbench", "did you mean mt_bench"),
        ("qqqqqqqqqq", "see `lm_eval ls tasks` for all names"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, words: str, root: Path) -> None:
    with pytest.raises(InputError, match=rf"--tasks {name}: lm-eval 0\S+ has no such task; {words}"):
        check_tasks(["gsm8k", name], root)


def test_missing_questions_name_the_places(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MissingDataError,
        match=r"task hellaswag: its file of questions is missing; .*: hellaswag/validation.jsonl\(.xz\) or ",
    ):
        check_tasks(["hellaswag"], tmp_path)


def test_missing_examples_name_the_places_and_the_way_out(root: Path, tmp_path: Path) -> None:
    # The questions are there, the examples before them are not: zero-shot works, the default five do not.
    write_jsonl(tmp_path / "gsm8k/test.jsonl", [{"question": "?", "answer": "#### 1"}])
    with pytest.raises(
        MissingDataError,
        match=r"gsm8k: 5 few-shot examples wanted, 0 there \(looked for more in .*gsm8k/train.jsonl.* --num-fewshot 0$",
    ):
        check_tasks(["gsm8k"], tmp_path)
    assert check_tasks(["gsm8k"], tmp_path, num_fewshot=0) == ["gsm8k"]
    with pytest.raises(InputError, match=r"7 few-shot examples wanted, 6 there \(its data set has no more\)"):
        check_tasks(["gsm8k"], root, num_fewshot=7)


def test_examples_that_a_task_does_not_take_are_noted(root: Path) -> None:
    assert load_tasks(["truthfulqa_mc2", "gsm8k"], root, num_fewshot=2).notes == [
        "truthfulqa_mc2: asked without examples, which the task itself says; not 2"
    ]
    assert load_tasks(["truthfulqa_mc2"], root).notes == load_tasks(["gsm8k"], root, num_fewshot=0).notes == []


def test_a_task_without_an_adapter(root: Path) -> None:
    with pytest.raises(MissingDataError, match=r"task wikitext: no adapter for its data set .*leave --data-root out"):
        check_tasks(["wikitext"], root)


def test_the_same_task_twice(root: Path) -> None:
    with pytest.raises(
        InputError, match=r"--tasks mmlu_stem: holds mmlu_\S+, which another name of the list holds too"
    ):
        check_tasks(["mmlu", "mmlu_stem"], root)
    assert check_tasks(["gsm8k", "gsm8k"], root) == ["gsm8k"]


@pytest.mark.parametrize(
    ("names", "data_root", "shots", "words"),
    [
        ([], None, None, "--tasks: no task named"),
        (["gsm8k"], "nowhere", None, "--data-root nowhere: no such folder"),
        (["gsm8k"], None, -1, "--num-fewshot -1: give 0 or more"),
    ],
)
def test_options_that_cannot_be(names: list[str], data_root: str | None, shots: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_tasks(names, Path(data_root) if data_root else None, num_fewshot=shots)


@pytest.mark.parametrize(("flag", "words"), [("UNSAFE_CODE", "no sandbox"), ("MULTIMODAL", "the model reads text")])
def test_tasks_that_cannot_be_run_are_refused_early(
    flag: str, words: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # lm-eval finds out after the model is loaded.
    monkeypatch.setattr(ConfigurableTask, flag, True, raising=False)
    with pytest.raises(InputError, match=rf"task gsm8k: .*{words}.*; leave it out"):
        check_tasks(["gsm8k"], root)


def test_without_a_data_root_the_hub_must_be_there(root: Path) -> None:
    # HF_HUB_OFFLINE is set for all tests: one line instead of a traceback.
    with pytest.raises(MissingDataError, match=r"task gsm8k: .*Hugging Face Hub .*openai/gsm8k.*--data-root") as raised:
        check_tasks(["gsm8k"], None)
    assert "\n" not in str(raised.value)


def test_a_leaderboard_runs_with_the_parts_that_have_data(root: Path) -> None:
    first = load_tasks(["leaderboard_v1"], root)
    assert first.leaderboards == ["open_llm_leaderboard_v1"]
    reasons = {part: reason for _, part, reason in first.missing}
    assert reasons.keys() == {"HellaSwag", "Winogrande"}  # no examples under this root
    assert "10 few-shot examples wanted, 0 there" in reasons["HellaSwag"]
    shots = {name: task.get_config("num_fewshot") for name, task in first.tasks.items()}
    assert (shots["arc_challenge"], shots["mmlu_astronomy"], shots["truthfulqa_mc2"], shots["gsm8k"]) == (25, 5, 0, 5)


def test_a_leaderboard_without_any_data(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"open_llm_leaderboard_v2: none of its parts has data; first: "):
        load_tasks(["leaderboard_v2"], tmp_path)


def test_random_generators_are_left_alone(root: Path) -> None:
    # GPQA shuffles with the global generators; a training run in the same process must not notice.
    def drawn_after(names: list[str]) -> tuple[float, float]:
        random.seed(5)
        np.random.seed(5)
        if names:
            load_tasks(names, root)
        return random.random(), float(np.random.random())

    assert drawn_after(["leaderboard_gpqa"]) == drawn_after([])


def test_the_index_is_kept_and_equals_lm_evals(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_index, "TASKS_FOLDER", task_index.TASKS_FOLDER / "arc")
    built = TaskIndex.build([task_index.TASKS_FOLDER])
    assert task_index.load_index().keys() == built.keys()
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(TaskIndex, "build", lambda paths: pytest.fail("parsed again"))
    kept = task_index.load_index()
    for name, entry in built.items():
        assert (kept[name].kind, kept[name].yaml_path, kept[name].tags) == (entry.kind, entry.yaml_path, entry.tags)
    # Another installation's file, or a cut one, is not used.
    monkeypatch.undo()
    monkeypatch.setenv("SENGI_CACHE", str(own_cache))
    next(own_cache.iterdir()).write_text('{"stamp"', encoding="utf-8")
    monkeypatch.setattr(task_index, "TASKS_FOLDER", task_index.TASKS_FOLDER / "arc")
    assert task_index.load_index().keys() == built.keys()


@pytest.fixture
def no_punkt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(requirements, "_reachable", lambda: False)


def test_ifeval_without_punkt_says_so(no_punkt: None, root: Path) -> None:
    loaded = load_tasks(["leaderboard_ifeval"], root)
    assert len(loaded.notes) == 1
    assert loaded.notes[0].startswith("leaderboard_ifeval: 1 of 2 questions count sentences; NLTK's punkt_tab was not")
    # The untrained model does what the note says: it splits, also after abbreviations.
    assert nltk.sent_tokenize("One. Two. Three!") == ["One.", "Two.", "Three!"]
    assert nltk.sent_tokenize("See Dr. Smith.") == ["See Dr.", "Smith."]


def test_ifeval_with_punkt_under_the_data_root(no_punkt: None, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nltk_data/tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    for name in requirements.UNTRAINED:
        (folder / name).write_text("dr\n" if name == "abbrev_types.txt" else "", encoding="utf-8")
    assert prepare_punkt(tmp_path) is False
    assert prepare_punkt(None) is False  # found now


def test_the_affected_instructions_exist() -> None:
    from lm_eval.tasks.ifeval import instructions_registry

    assert instructions_registry.INSTRUCTION_DICT.keys() >= AFFECTED


def test_bars_of_datasets_come_back(root: Path) -> None:
    datasets.enable_progress_bars()
    load_tasks(["arc_easy"], root)
    assert datasets.is_progress_bar_enabled()
