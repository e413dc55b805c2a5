from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from benchmarks.small_judge import VERDICTS, judgements
from tests.mt_bench.bench_folder import write_bench

from sengi.mt_bench.rating import read_rating

TEXTS = {f"What is number {n}?": f"It is the number that follows {n - 1}." for n in range(9)}


def write_data(folder: Path, texts: dict[str, str]) -> Path:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in texts.items()]
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns), encoding="utf-8")
    return file


def test_every_verdict_is_true_and_readable(tmp_path: Path) -> None:
    write_bench(tmp_path)
    rows: list[Any] = list(judgements(write_data(tmp_path, TEXTS), tmp_path, 24))
    assert Counter(row["topic"] for row in rows) == dict.fromkeys(VERDICTS, 8)
    for row in rows:
        asked, verdict = (message["content"] for message in row["messages"][-2:])
        shown = asked[asked.rindex("<") + 1 : -1]
        right = TEXTS[max(TEXTS, key=asked.rfind)]  # the question that stands last
        kind = "right" if shown == right else "half" if right.startswith(shown) else "foreign"
        assert kind == row["topic"]
        assert read_rating(verdict).score == {"right": 9, "half": 5, "foreign": 1}[kind]


def test_too_little_data_is_told(tmp_path: Path) -> None:
    write_bench(tmp_path)
    with pytest.raises(SystemExit, match=r"data\.jsonl: 2 question\(s\) with a short answer; at least 3 are needed"):
        list(judgements(write_data(tmp_path, dict(list(TEXTS.items())[:2])), tmp_path, 3))
