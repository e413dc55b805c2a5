from __future__ import annotations

import math
from pathlib import Path

import pytest
from fake_run import HEARTBEAT, write_run
from hypothesis import given
from hypothesis import strategies as st

from sengi.report import formats, svg
from sengi.report.paper import paper_values
from sengi.report.recipe_tables import commands, paper_table, recipe_table
from sengi.report.run_folder import RunFolder, read_run
from sengi.report.tables import topic_tables
from sengi.report.write import write_report


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.number(0.0), "0.000"),
        (formats.number(2e-5), "2e−5"),
        (formats.number(-1.23456), "−1.235"),
        (formats.number(12345.6), "12,346"),
        (formats.number(math.nan), "–"),
        (formats.number(math.inf), "∞"),
        (formats.short_count(1_234_567), "1.23M"),
        (formats.short_count(9_999), "9,999"),
        (formats.percent(0.1234), "12.3%"),
        (formats.points(-0.05), "−5.0 pp"),
        (formats.duration(42), "42 s"),
        (formats.duration(200), "3 min 20 s"),
        (formats.duration(3600 * 5 + 720), "5 h 12 min"),
        (formats.duration(86400 * 3), "3 d"),
        (formats.memory(3 * 2**30), "3 GiB"),
        (formats.p_value(1e-9), "< 0.0001"),
        (formats.p_value(None), "–"),
        (formats.setting(2e-5), "2e-5"),
        (formats.setting(0.95), "0.95"),
        (formats.setting(None), "not set"),
        (formats.setting(True), "true"),
        (formats.setting([{"path": "a.jsonl", "phase": "x"}]), "path: a.jsonl, phase: x"),
    ],
)
def test_numbers_are_written_for_people(written, expected):
    assert written == expected


@given(st.floats(0, 1e9))
def test_durations_never_fail(seconds):
    assert formats.duration(seconds)


@pytest.mark.parametrize(
    ("model", "rate", "kind"),
    [
        ("ibm-granite/granite-7b-base", 2e-5, "same"),
        ("ibm-granite/granite-7b-base", 1e-6, "different"),
        ("mistralai/Mistral-7B-v0.1", 1e-6, "same"),
        ("mistralai/Mistral-7B-v0.1", 2e-5, "different"),
        ("smollm2-135m", 2e-5, "same"),
    ],
)
def test_the_learning_rate_is_held_against_the_model_family(model, rate, kind):
    run = RunFolder(Path("run"), recipe={"model_name_or_path": model, "learning_rate": rate})
    row = next(row for row in paper_table(run).rows if row.cells[0] == "learning_rate")
    assert row.kind == kind


@pytest.mark.parametrize(("batch", "kind"), [(128, "different"), (3840, "same"), (7680, "same"), (7681, "different")])
def test_the_batch_is_the_papers_from_3840_to_7680(batch, kind):
    run = RunFolder(Path("run"), recipe={"effective_batch_size": batch})
    row = next(row for row in paper_table(run).rows if row.cells[0] == "effective_batch_size")
    assert row.kind == kind


def test_every_paper_value_has_a_source_and_says_how_sure():
    for value in paper_values("smollm2-135m"):
        assert "2412.13337" in value.source or "authors' code" in value.source
        assert value.sure in ("high", "medium", "low")
        assert not value.same(None)


def test_both_recipe_tables_hold_every_key_once(run_folder):
    run = read_run(run_folder)
    keys = [row.cells[0] for table in (paper_table(run), recipe_table(run)) for row in table.rows]
    assert sorted(keys) == sorted([*run.recipe, "strategy"])
    reasons = {row.cells[0]: row.cells[3] for row in recipe_table(run).rows}
    assert reasons["max_tokens_per_device"] == "set from the memory of the device"


def test_commands_are_safe_to_paste_and_know_the_processes(tmp_path):
    run = read_run(write_run(tmp_path / "my run; rm x", steps=5, status={"world_size": 4}))
    shown = dict(commands(run))
    recipe = f"'{tmp_path}/my run; rm x/recipe.yaml'"
    assert shown["The same run in a new folder"] == (
        f"torchrun --nproc-per-node 4 -m sengi train {recipe} --set output_dir=again"
    )
    assert shown["The samples of a step, in order"] == f"sengi data ledger '{tmp_path}/my run; rm x' --step 1"


def test_the_histogram_has_a_bar_a_bin_of_its_height():
    drawn = svg.histogram([0, 10, 20, 30], [5, 10, 0], "lengths <all>")
    assert drawn.count("<rect") == 3
    assert "10 to 20 tokens: 10" in drawn
    assert "lengths &lt;all&gt;" in drawn
    heights = [float(part.split('"')[0]) for part in drawn.split(' height="')[1:4]]
    assert heights[0] == pytest.approx(heights[1] / 2, abs=0.1)
    assert heights[2] == 0


@pytest.mark.parametrize(("edges", "counts"), [([], []), ([0, 1], [0]), ([0, 1], [1, 2]), ([0, math.nan], [1])])
def test_a_histogram_of_nothing_is_nothing(edges, counts):
    assert svg.histogram(edges, counts, "x") == ""


# Did the taught knowledge arrive: each topic with what was taught beside the control, on the page and in the Markdown.
def test_topics_stand_with_taught_beside_control(tmp_path):
    run = read_run(write_run(tmp_path / "run") or tmp_path / "run")
    [table] = topic_tables(run)
    assert table.head == ("topic", "taught", "control")
    assert [row.cells[0] for row in table.rows] == ["people", "prices"]
    last = run.evaluations[-1].items.values()
    right = [item["correct"] for item in last if (item["topic"], item["group"]) == ("people", "taught")]
    assert table.rows[0].cells[1].startswith(f"{sum(right) / len(right):.1%} (")
    assert table.rows[0].cells[1].endswith(f"n={len(right)}")
    page, text = (path.read_text() for path in write_report(tmp_path / "run", now=HEARTBEAT)[:2])
    assert table.title in page
    assert table.rows[0].cells[1] in page
    assert table.rows[0].cells[1] in text
