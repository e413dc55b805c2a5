from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.tiny_folder import write_tiny_folder

from sengi.errors import InputError
from sengi.evaluate.suite import Suite, check, evaluate, fingerprint, task_words
from sengi.evaluate.tasks import evaluate_questions
from sengi.inference.prompts import Prompts
from sengi.model.load import load_model, load_tokenizer
from sengi.mt_bench.answers import answer_bench
from sengi.mt_bench.files import BenchQuestion

MMLU = [
    {"subject": "anatomy", "question": f"What is bone {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4}
    for i in range(6)
]
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("suite") / "tiny")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lines(tmp_path / "root/mmlu/test.jsonl", MMLU)
    lines(tmp_path / "root/mmlu/dev.jsonl", MMLU[:5])
    return tmp_path / "root"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"question": "Q?", "choices": ["yes", "no"], "answer": 0}, {"question": "R?", "answer": "x"}]
    return lines(tmp_path / "own.jsonl", rows)


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    return lines(tmp_path / "kept.jsonl", [CHAT, CHAT, CHAT])


def test_words_are_split_and_repetitions_dropped() -> None:
    assert task_words(["mmlu, gsm8k", "mmlu", " "]) == ("mmlu", "gsm8k")


# Everything that can be known before a model is loaded is said before one is loaded.
@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ((), "nothing to ask"),
        (("question:x.jsonl",), "questions:FILE or heldout:FILE"),
        (("questions",), "the file is missing; write questions:FILE"),
        (("questions:no-such.jsonl",), "no-such.jsonl does not exist"),
        (("heldout:",), "the file does not exist"),
        (("mmlu_anatomi",), "mmlu_anatomy"),
        (("mt_bench",), "--mt-bench DIR"),
    ],
)
def test_what_cannot_be_asked_is_refused(tasks: tuple[str, ...], words: str, root: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check(Suite(tasks, data_root=root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [({"limit": 0}, "--limit 0"), ({"batch_tokens": 0}, "--batch-tokens 0"), ({"num_fewshot": -1}, "--num-fewshot -1")],
)
def test_numbers_without_sense_are_refused(numbers: dict[str, int], words: str, questions: Path) -> None:
    with pytest.raises(InputError, match=words):
        check(Suite((f"questions:{questions}",), **numbers))


def test_a_missing_data_file_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"mmlu/test"):
        check(Suite(("mmlu_anatomy",), data_root=tmp_path / "empty"))


def test_two_files_of_one_name_are_refused(tmp_path: Path, questions: Path) -> None:
    other = lines(tmp_path / "other/own.jsonl", [{"question": "Q?", "answer": "x"}])
    with pytest.raises(InputError, match="the same task name 'own'"):
        check(Suite((f"questions:{questions}", f"questions:{other}")))


def test_all_kinds_in_one_evaluation(folder: Path, root: Path, questions: Path, heldout: Path, tmp_path: Path) -> None:
    suite = Suite(("mmlu_anatomy", f"questions:{questions}", f"heldout:{heldout}"), num_fewshot=2, data_root=root)
    assert check(suite) == ["heldout_kept", "own", "mmlu_anatomy"]
    seen: list[tuple[int, int, str]] = []
    result = evaluate(folder, suite, cache=tmp_path / "cache", progress=lambda *now: seen.append(now))
    assert {row["task"] for row in result.scores} == {"mmlu_anatomy", "own", "heldout_kept"}
    assert all(row["n"] > 0 for row in result.scores)
    assert {item["task"] for item in result.items} == {"mmlu_anatomy", "own", "heldout_kept"}
    assert len(result.samples["mmlu_anatomy"]) == 6
    assert result.results["results"]["mmlu_anatomy"]["acc,none"] >= 0
    assert seen
    # the same scores as each kind alone
    own = evaluate_questions(folder, [questions])
    assert [row for row in result.scores if row["task"] == "own"] == own.scores


def test_an_adapter_is_asked_as_the_model_that_it_makes(
    folder: Path, questions: Path, heldout: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(load_model(folder), config)
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(folder)}))
    shutil.copytree(folder, tmp_path / "merged")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    suite = Suite((f"questions:{questions}", f"heldout:{heldout}"))
    adapter, merged, base = (evaluate(model, suite) for model in (tmp_path / "adapter", tmp_path / "merged", folder))
    values = [[row["value"] for row in found.scores] for found in (adapter, merged, base)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert values[0] != pytest.approx(values[2], abs=1e-3)
    turns = (BenchQuestion(1, "math", ("What barks?", "What swims?")),)
    answers = [
        answer_bench(model, turns, tmp_path / model.name / "out").answers[1]
        for model in (path.parent, tmp_path / "merged")
    ]
    assert answers[0] == answers[1]


def test_the_fingerprint_follows_content_and_settings_not_places(root: Path, questions: Path, tmp_path: Path) -> None:
    suite = Suite((f"questions:{questions}", "mmlu_anatomy"), data_root=root)
    first = fingerprint(suite)
    moved = lines(tmp_path / "moved/own.jsonl", [json.loads(line) for line in questions.read_text().splitlines()])
    assert fingerprint(Suite((f"questions:{moved}", "mmlu_anatomy"), data_root=root, batch_tokens=64)) == first
    assert fingerprint(Suite((f"questions:{moved}", "mmlu_anatomy"), data_root=root, limit=2)) != first
    assert fingerprint(Suite((f"questions:{moved}",), data_root=root)) != first
    lines(root / "mmlu/test.jsonl", MMLU[:3])
    assert fingerprint(suite) != first


def test_an_own_question_longer_than_the_context_is_left_out_by_id(folder: Path, tmp_path: Path) -> None:
    # the model reads 256 tokens; the longest text that fits is asked
    prompts = Prompts(load_tokenizer(folder))
    more = 256 - len(prompts.ids(prompts.question(" dog")))
    rows = [
        {"id": "short", "question": "Q?", "answer": "x"},
        {"id": "long", "question": "who barks " * 200, "answer": "x"},
        {"id": "fits", "question": " dog" * more, "answer": "x"},
        {"id": "over", "question": " dog" * (more + 1), "answer": "x"},
        {"id": "choices", "question": "Q?", "choices": ["yes", "no " * 300], "answer": 0},
        {"id": "fine", "question": "Q?", "choices": ["yes", "no"], "answer": 0},
    ]
    calls: list[tuple[int, int, str]] = []
    own = evaluate_questions(folder, [lines(tmp_path / "q.jsonl", rows)], progress=lambda *now: calls.append(now))
    assert [item["id"] for item in own.items] == ["short", "fits", "fine"]
    assert [(row["task"], row["id"]) for row in own.excluded] == [("q", "long"), ("q", "over"), ("q", "choices")]
    assert {row["reason"] for row in own.excluded} == {"longer than the model's context of 256 tokens"}
    assert {row["metric"]: row["n"] for row in own.scores} == {"accuracy": 1, "accuracy_sum": 1, "exact_match": 2}
    assert calls[-1] == (6, 6, "q")


# Conversations beyond what the model reads or was trained on would be measured where it knows nothing.
@pytest.mark.parametrize(
    ("max_length", "left", "why"), [(None, 2, "the model's context, 256 tokens"), (20, 1, "max_length of the run, 20")]
)
def test_heldout_conversations_are_no_longer_than_context_and_run(
    folder: Path, tmp_path: Path, max_length: int | None, left: int, why: str
) -> None:
    rows = []
    for answer in ("Hello there", "who barks " * 10, "who barks " * 200):
        rows.append({"messages": [CHAT["messages"][0], {"role": "assistant", "content": answer}]})
    suite = Suite((f"heldout:{lines(tmp_path / 'mixed.jsonl', rows)}",), max_length=max_length)
    result = evaluate(folder, suite)
    assert result.scores[0]["n"] == left
    assert len(result.excluded) == 3 - left
    assert all(why in row["reason"] for row in result.excluded)
    assert result.notes[0].startswith(f"heldout_mixed: {3 - left} of 3 conversations are longer than {why}")
    assert fingerprint(suite) != fingerprint(replace(suite, max_length=99))
