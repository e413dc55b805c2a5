from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks.judge_thresholds import outcomes, variants

from benchmarks import judge_thresholds
from sengi.study import replay as replay_module
from sengi.study.judge import JudgeSettings
from sengi.study.scheduler import run_study
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parents[1] / "study"))
from fake_runs import FakeExecutor, write_study


def test_a_variant_is_replayed_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "ORDERS", 2)
    monkeypatch.setattr(replay_module, "DRAWS", 100)
    monkeypatch.setattr(judge_thresholds, "variants", lambda settings, budget: {"one check": settings})
    path = write_study(tmp_path, space={"learning_rate": [1e-3, 2e-3, 3e-3, 4e-3]}, seeds=[1])
    run_study(read_study(path), make_executor=lambda asked: FakeExecutor(room=4, broken=()))
    found = list(outcomes(tmp_path / "study"))
    assert [(name, one.policy) for name, one in found] == [
        ("one check", "judge, runs side by side"),
        ("one check", "judge, one run after another"),
    ]
    assert all(0 <= one.saved <= 1 for _, one in found)


def test_each_variant_is_another_judge() -> None:
    found = variants(JudgeSettings(100, 200), 1000)
    assert len(set(found.values())) == len(found) == 8
