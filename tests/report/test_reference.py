from __future__ import annotations

import json
from pathlib import Path

from fake_run import HEARTBEAT, score, write_run

from sengi.cli.app import run
from sengi.harness.leaderboard import AVERAGE, LEADERBOARDS
from sengi.report.reference import OURS, paper_scores, reference_tables
from sengi.report.run_folder import read_run
from sengi.report.scores import compare_scores
from sengi.report.write import write_report


def with_mmlu(folder: Path) -> Path:
    write_run(folder)
    for step, value in ((0, 0.25), (120, 0.31)):
        rows = [
            score("mmlu", "acc", "all", value, value - 0.02, value + 0.02, 1000),
            score("mmlu_anatomy", "acc", "all", 0.9, 0.8, 0.95, 100),  # a part of MMLU is not MMLU
            score("mmlu", "acc", "group=taught", 0.9, 0.8, 0.95, 100),
        ]
        document = {"step": step, "model": "x", "data": "d", "seconds": 1.0, "scores": rows}
        (folder / "evaluations" / f"step-{step:08d}-tasks.json").write_text(json.dumps(document))
    return folder


def test_the_papers_numbers_are_possible_scores() -> None:
    rows = paper_scores()
    assert len(rows) == len(set(rows))
    for row in rows:
        low, high = (1, 10) if row.benchmark == "MT-Bench" else (0, 1)
        assert low <= row.score <= high, row
        assert row.benchmark in OURS
    # checked against the paper: table 12, and the batch sizes of the main text
    assert {(r.score, r.samples) for r in rows if r.benchmark == "MT-Bench" and "phased, general" in r.setting} == {
        (4.30, 6_734_847)
    }
    assert [r.score for r in rows if r.benchmark == "MMLU" and "batch" in r.setting][:3] == [0.516, 0.526, 0.529]


def test_a_run_stands_above_the_paper_only_where_it_was_asked_the_same(tmp_path: Path) -> None:
    folder = read_run(with_mmlu(tmp_path / "run"))
    tables = {table.title: table for table in reference_tables(folder, compare_scores(folder))}
    own = [row.cells[1:3] for row in tables["The paper: MMLU"].rows if row.kind == "own"]
    assert own == [
        ("this run, step 0", "0.25 (0.23 to 0.27)"),
        ("this run, step 120", "0.31 (0.29 to 0.33)"),
    ]
    assert not [row for title, table in tables.items() if "MMLU" not in title for row in table.rows if row.kind]


# BBH and MuSR of the paper are the leaderboard's normalised scores, which only the leaderboard's rows hold.
def test_every_benchmark_has_a_score_that_is_written(tmp_path: Path) -> None:
    boards = {(board, part.name) for board, parts in LEADERBOARDS.items() for part in parts}
    boards |= {(board, AVERAGE) for board in LEADERBOARDS}
    asked = {pair for pairs in OURS.values() for pair in pairs}
    assert {pair for pair in asked if pair[0] in LEADERBOARDS} <= boards
    write_run(tmp_path / "run")
    rows = [score(task, metric, "all", 0.4, 0.3, 0.5, 100) for task, metric in sorted(asked)]
    document = {"step": 120, "model": "x", "data": "d", "seconds": 1.0, "scores": rows}
    (tmp_path / "run" / "evaluations" / "step-00000120-tasks.json").write_text(json.dumps(document))
    folder = read_run(tmp_path / "run")
    for table in reference_tables(folder, compare_scores(folder)):
        assert [row for row in table.rows if row.kind == "own"], table.title


def test_the_page_and_the_terminal_print_them_when_asked(tmp_path: Path, capsys) -> None:
    folder = with_mmlu(tmp_path / "run")
    page, text = (path.read_text() for path in write_report(folder, now=HEARTBEAT, reference=True)[:2])
    for name in ("The paper: MMLU", "this run, step 120", "Granite 7B", "2412.13337"):
        assert name in page
        assert name in text
    assert "The paper: MMLU" not in write_report(folder, now=HEARTBEAT)[0].read_text()
    assert run(["report", "--reference"]) == 0
    assert "0.529" in capsys.readouterr().out
    assert run(["report"]) == 2
    assert "no run folder; write sengi report RUN" in capsys.readouterr().err
