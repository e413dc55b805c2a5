"""``sengi eval RUN`` under torchrun: benchmarks are shared for every checkpoint, all else is done and told once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import warm
from tests.cli import eval_rank_program
from tests.evaluate.test_checkpoints import publish, write_broken
from tests.harness.local_tasks import keep_small_index, write_jsonl
from tests.model.tiny_folder import write_tiny_folder
from tests.mt_bench.bench_folder import write_bench
from tests.mt_bench.judge_server import JudgeServer, Say

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}


def test_two_processes_share_benchmarks_of_every_checkpoint_and_write_once(tmp_path: Path, own_cache: Path) -> None:
    keep_small_index()
    base, trained = write_tiny_folder(tmp_path / "base"), write_tiny_folder(tmp_path / "trained", 1)
    run = tmp_path / "run"
    run.mkdir()
    recipe = {"model_name_or_path": str(base), "data": ["train.jsonl"], "output_dir": str(run)}
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    publish(run, 10, trained)
    arc = [{"query": f"Which one is {i}?" * (1 + i), "choices": ["a", "b", str(i)], "gold": 2} for i in range(8)]
    write_jsonl(tmp_path / "root/arc_easy.jsonl", arc)
    write_jsonl(tmp_path / "own.jsonl", [{"question": "How many?", "answer": "12"}])
    write_jsonl(tmp_path / "kept.jsonl", [CHAT])
    write_bench(tmp_path / "bench")
    tasks = f"arc_easy,mt_bench,questions:{tmp_path / 'own.jsonl'},heldout:{tmp_path / 'kept.jsonl'}"
    with JudgeServer(lambda *_: Say("[[5]]")) as server:
        judge = ["--mt-bench", str(tmp_path / "bench"), "--judge-url", server.url, "--judge-model", "judge"]
        words = ["eval", str(run), "--tasks", tasks, "--data-root", str(tmp_path / "root"), *judge]
        done = warm.run(["-m", eval_rank_program.__name__, str(tmp_path), *words], ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("chosen by") == 1
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    # each took a part of the benchmark, of the base model and of the checkpoint
    assert first["tokens"].keys() == second["tokens"].keys() == {"base", "checkpoint-10"}
    assert all(both > 0 for both in [*first["tokens"].values(), *second["tokens"].values()])
    kinds = ("evaluate_heldout", "evaluate_questions", "evaluate_mt_bench")
    assert first["alone"] == [f"{kind} {model}" for model in ("base", "checkpoint-10") for kind in kinds]
    assert second["alone"] == []
    # and one of them wrote, and left nothing
    names = [f"step-{step:08d}-tasks{end}" for step in (0, 10) for end in (".items.jsonl", ".json")]
    assert sorted(path.name for path in (run / "evaluations").iterdir()) == sorted(names)
    scores = json.loads((run / "evaluations/step-00000010-tasks.json").read_text())["scores"]
    assert {row["task"] for row in scores} == {"arc_easy", "own", "heldout_kept", "mt_bench"}


# The benchmark is shared: both processes meet the NaN, and both go on with the next checkpoint.
def test_a_checkpoint_of_nan_is_left_out_by_both(tmp_path: Path, own_cache: Path) -> None:
    keep_small_index()
    run = tmp_path / "run"
    run.mkdir()
    recipe = {"model_name_or_path": str(write_tiny_folder(tmp_path / "base")), "data": ["x"], "output_dir": str(run)}
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    publish(run, 10, write_broken(tmp_path / "broken"))
    publish(run, 20, write_tiny_folder(tmp_path / "trained", 1))
    arc = [{"query": f"Which one is {i}?", "choices": ["a", "b", str(i)], "gold": 2} for i in range(4)]
    write_jsonl(tmp_path / "root/arc_easy.jsonl", arc)
    words = ["eval", str(run), "--tasks", "arc_easy", "--data-root", str(tmp_path / "root")]
    done = warm.run(["-m", eval_rank_program.__name__, str(tmp_path), *words], ranks=2, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "step 10 is left out: " in " ".join((done.stdout + done.stderr).split())
    names = [f"step-{step:08d}-tasks{end}" for step in (0, 20) for end in (".items.jsonl", ".json")]
    assert sorted(path.name for path in (run / "evaluations").glob("step-*")) == sorted(names)


def test_what_fails_in_the_first_process_ends_both_with_its_words(tmp_path: Path) -> None:
    folder = write_broken(tmp_path / "tiny")
    write_jsonl(tmp_path / "own.jsonl", [{"question": "How many?", "answer": "12"}])
    words = ["eval", str(folder), "--tasks", f"questions:{tmp_path / 'own.jsonl'}"]
    done = warm.run(["-m", eval_rank_program.__name__, str(tmp_path), *words], ranks=2, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert f"rank 0: {folder}: the model's logits are NaN" in done.stderr


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
