from __future__ import annotations

from pathlib import Path

import benchmarks.evaluation as benchmark
import pytest
from tests.harness.local_tasks import keep_small_index, write_root
from tests.model.tiny_folder import write_tiny_folder


def test_both_sides_are_asked_the_same_and_answer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SENGI_CACHE", str(tmp_path / "cache"))
    keep_small_index()
    block = benchmark.Block(("mmlu_professional_law", "mmlu_professional_medicine"), 2, batch_tokens=(None, 40))
    monkeypatch.setattr(benchmark, "BLOCKS", {"small": block})
    root, model = write_root(tmp_path / "root"), write_tiny_folder(tmp_path / "model")
    benchmark.main(["--data-root", str(root), "--model", str(model), "--blocks", "small", "--limit", "5"])
    answers, speed = capsys.readouterr().out.split("Speed and memory")
    rows = [line.split() for line in answers.splitlines() if line.startswith("small")]
    assert [row[:-4] for row in rows] == [["small"], ["small,", "40", "tokens"]]
    for *_, questions, same, gap, sums in rows:
        assert (questions, float(same), sums) == ("4", 100.0, "16")
        assert float(gap) < 1e-4
    assert speed.count("small") == 2
