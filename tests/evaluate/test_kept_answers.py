"""Own questions go on where they stopped: no answer is asked for again, none of another model is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.model.tiny_folder import write_tiny_folder

from sengi.evaluate.tasks import evaluate_questions
from sengi.inference.generation import Generator
from sengi.inference.loglikelihood import Scorer


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rows: list[dict[str, Any]] = [
        {"question": f"Which animal is number {n}?", "choices": ["a dog", "a cat", f"fish {n}"], "answer": n % 3}
        for n in range(6)
    ]
    rows += [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(5)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [tmp_path / "own.jsonl"]


class Asked:
    """Counts what reaches the engines; stops the program after so many answers."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.counts = {"score": 0, "generate": 0}
        self.stop_after = 10**9
        for owner, name, told in ((Scorer, "score", "on_scored"), (Generator, "generate", "on_generated")):
            patch.setattr(owner, name, self.counted(getattr(owner, name), name, told))

    def counted(self, method: Any, name: str, told: str) -> Any:
        def call(engine: Any, requests: list[Any], **options: Any) -> Any:
            tell = options[told]

            def keep(places: list[int], found: list[Any]) -> None:
                tell(places, found)
                self.stop_after -= len(places)
                if self.stop_after <= 0:
                    raise KeyboardInterrupt

            self.counts[name] += len(requests)
            return method(engine, requests, **{**options, told: keep})

        return call


@pytest.mark.parametrize("stop_after", [7, 20])  # among the choices, among the texts
def test_an_interrupted_evaluation_of_own_questions_goes_on(
    stop_after: int, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_folder(tmp_path / "model")
    whole = evaluate_questions(folder, files)
    asked = Asked(monkeypatch)
    asked.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        evaluate_questions(folder, files, batch_tokens=40, cache=tmp_path / "answers")
    asked.counts, asked.stop_after = {"score": 0, "generate": 0}, 10**9
    calls: list[tuple[int, int, str]] = []
    again = evaluate_questions(folder, files, cache=tmp_path / "answers", progress=lambda *call: calls.append(call))
    assert 0 < sum(asked.counts.values()) <= 18 + 5 - stop_after
    assert (asked.counts["score"] == 0) == (stop_after == 20)
    assert again.items == whole.items
    assert [row["value"] for row in again.scores] == [row["value"] for row in whole.scores]
    assert calls[-1] == (11, 11, "own")
    # another model's answers are never taken
    asked.counts = {"score": 0, "generate": 0}
    evaluate_questions(write_tiny_folder(tmp_path / "other", seed=1), files, cache=tmp_path / "answers")
    assert asked.counts == {"score": 18, "generate": 5}
