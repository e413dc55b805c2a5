from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.model.tiny_folder import write_tiny_folder
from tests.mt_bench.bench_folder import make_options, read_jsonl, write_bench, write_rows
from tests.mt_bench.judge_server import Asked, JudgeServer, Say

from sengi.errors import DataError, InputError
from sengi.mt_bench import client
from sengi.mt_bench.run import check_mt_bench, evaluate_mt_bench, mt_bench_fingerprint

REAL = Path(__file__).parents[3] / "shared" / "data" / "eval" / "mt_bench"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bench(tmp_path / "data")
    return write_tiny_folder(tmp_path / "tiny")


def test_from_questions_to_scores(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key-123")

    def behave(asked: Asked, before: int) -> Say:
        if "What is 12 + 30?" in asked.user and "twice" not in asked.user:
            return Say("What an answer!")
        if "What barks?" in asked.user and before == 0:
            return Say("busy", status=500)
        return Say(f"[[{5 + before}]]")

    calls: list[tuple[int, int, str]] = []
    with JudgeServer(behave) as server:
        options = make_options(tmp_path, server.url, repeat_share=0.25)
        evaluation = evaluate_mt_bench(folder, options, progress=lambda *call: calls.append(call))
        asked = len(server.asked)
        again = evaluate_mt_bench(folder, options)
        assert len(server.asked) == asked
    rows = {row["group"]: row for row in evaluation.scores if row["metric"] == "score"}
    assert list(rows) == ["all", "turn=1", "turn=2", "category=writing", "category=roleplay", "category=stem"]
    assert (rows["all"]["n"], rows["turn=1"]["n"], rows["turn=2"]["n"]) == (3, 3, 4)
    assert {item["id"] for item in evaluation.items} == {"81", "91", "141"}
    assert evaluation.excluded == [{"task": "mt_bench", "id": "111", "reason": "judgement of turn 1: no rating"}]
    notes = "\n".join(evaluation.notes)
    for words in (
        "8 judgements, 1 not rated (no rating: 1)",
        "2 repeated judgements, ",
        "4 question(s) had room for fewer than 1,024 tokens",
        "requests to the judge that were sent again: HTTP 500: 2",
    ):
        assert words in notes
    assert calls[-1] == (10, 10, "mt_bench judgements")
    # Rule: what is read back from the files is what was measured.
    assert (again.scores, again.items, again.excluded) == (evaluation.scores, evaluation.items, evaluation.excluded)
    json.dumps([evaluation.scores, evaluation.items, evaluation.excluded], allow_nan=False)
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {
        "run.lock",
        "model_answer/tiny.json",
        "model_answer/tiny.jsonl",
        "model_judgment/judge_single.jsonl",
        "model_judgment/judge_repeat.jsonl",
        "cache/answers/tiny.jsonl",
        "cache/judgements/judge.jsonl",
    }
    for name in found:
        assert b"very-secret" not in (tmp_path / "out" / name).read_bytes()
    # Rule: FastChat's mean over its file, -1 left out, by turn is ours.
    for turn in (1, 2):
        scores = [
            row["score"]
            for row in read_jsonl(tmp_path / "out/model_judgment/judge_single.jsonl")
            if row["score"] != -1 and row["turn"] == turn
        ]
        assert rows[f"turn={turn}"]["value"] == pytest.approx(sum(scores) / len(scores))


def test_two_evaluations_at_once_in_one_folder_are_refused(tmp_path: Path, folder: Path) -> None:
    from sengi.storage import lock

    options = make_options(tmp_path, "http://127.0.0.1:9/v1")
    options.output.mkdir()
    with lock(options.output), pytest.raises(InputError, match=f"process {os.getpid()} is already working"):
        evaluate_mt_bench(folder, options)


def test_checks_come_before_the_model(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with JudgeServer(lambda *_: Say()) as server:
        check_mt_bench(make_options(tmp_path, server.url))
        with pytest.raises(DataError, match=r"question\.jsonl: does not exist"):
            check_mt_bench(make_options(tmp_path, server.url, data=tmp_path / "nowhere"))
    with pytest.raises(InputError, match="--judge-key-env NOT_SET"):
        check_mt_bench(make_options(tmp_path, "https://judge.example/v1", judge_api_key_env="NOT_SET"))
    with pytest.raises(InputError, match="no judge answers there"):
        check_mt_bench(make_options(tmp_path, server.url))
    # Rule: a judge that has judged into this folder need not be up to read the scores again.
    cache = tmp_path / "out/cache/judgements"
    cache.mkdir(parents=True)
    (cache / "judge.jsonl").write_text("{}\n")
    check_mt_bench(make_options(tmp_path, server.url))


def test_the_fingerprint_is_of_what_decides_the_scores(tmp_path: Path) -> None:
    write_bench(tmp_path / "data")
    url = "http://localhost:1/v1"
    one = mt_bench_fingerprint(make_options(tmp_path, url))
    same: list[dict[str, Any]] = [{"url": "http://localhost:2/v1"}, {"concurrency": 9}, {"output": tmp_path / "else"}]
    for changes in same:
        assert mt_bench_fingerprint(make_options(tmp_path, **{"url": url, **changes})) == one
    others: list[dict[str, Any]] = [{"judge_model": "other"}, {"limit": 2}, {"repeat_share": 0.5}]
    for changes in others:
        assert mt_bench_fingerprint(make_options(tmp_path, url, **changes)) != one
    rows = read_jsonl(tmp_path / "data/question.jsonl")
    rows[0]["turns"][0] += "!"
    write_rows(tmp_path / "data/question.jsonl", rows)
    assert mt_bench_fingerprint(make_options(tmp_path, url)) != one


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the public files are not here")
def test_a_real_model_answers_and_a_real_model_judges(tmp_path: Path) -> None:
    # Rule: whatever a small judge writes is a score on the scale or a counted exclusion; nothing crashes.
    from tests.mt_bench.model_judge import ModelJudge

    from sengi.model.resolve import resolve_model

    judge = ModelJudge(resolve_model("smollm2-135m"), max_new_tokens=32)
    answering = write_tiny_folder(tmp_path / "tiny")
    for name in ("judge_prompts.jsonl", "reference_answer/gpt-4.jsonl"):
        write_rows(tmp_path / "data" / name, read_jsonl(REAL / name))
    questions = read_jsonl(REAL / "question.jsonl")
    shortest = sorted(questions, key=lambda row: sum(map(len, row["turns"])))[:2]  # the tiny model has 256 positions
    write_rows(tmp_path / "data/question.jsonl", shortest)
    with JudgeServer(judge) as server:
        options = make_options(tmp_path, server.url, concurrency=1, timeout=600.0, repeat_share=0.25)
        evaluation = evaluate_mt_bench(answering, options)
    rows = read_jsonl(tmp_path / "out/model_judgment/judge_single.jsonl")
    assert len(rows) == 4
    assert {row["judgment"] for row in rows}.isdisjoint({"", "$ERROR$"})
    rated = [row["score"] for row in rows if row["score"] != -1]
    assert all(1 <= score <= 10 for score in rated)
    assert len(rated) + sum("judgement of turn" in row["reason"] for row in evaluation.excluded) == 4
    # A greedy judge in one process repeats itself to the letter.
    repeated = read_jsonl(tmp_path / "out/model_judgment/judge_repeat.jsonl")
    once = {(row["question_id"], row["turn"]): row["judgment"] for row in rows}
    assert [once[row["question_id"], row["turn"]] for row in repeated] == [row["judgment"] for row in repeated]
