"""The report of a study: what the page, the Markdown and the command say, whatever became of the runs."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_run import HOSTILE, write_run
from html_reader import Page
from test_page import CHROMIUM, browse

from sengi.cli.report import report as command
from sengi.cli.study import print_report
from sengi.errors import InputError
from sengi.report import study_contents
from sengi.report.study_contents import build_study_report
from sengi.report.study_markdown import render_study_markdown
from sengi.report.study_page import render_study_page, tally
from sengi.report.study_write import write_study_report
from sengi.storage import lock
from sengi.study import replay
from sengi.study.claim_rules import ClaimResult

sys.path.append(str(Path(__file__).parents[1] / "study"))
from fake_study import WRITTEN, verdict, write_study_folder

RATES = {"learning_rate": [1e-4, 1e-3, 1e-2]}  # three runs of one seed: no replay
VERDICTS = [verdict("006-s1", 410, "suspect"), verdict("006-s2", 512, "stop"), verdict("001-s1", 512, "keep")]


@pytest.fixture(autouse=True, scope="module")
def _short_replays() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "ORDERS", 2)
        patch.setattr(replay, "DRAWS", 50)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The report of a grid with a failed and a stopped run, read by several tests."""
    folder = tmp_path_factory.mktemp("studies") / "grid"
    write_study_folder(folder, states={"005-s1": "failed", "006-s2": "stopped"}, verdicts=VERDICTS)
    return write_study_report(folder, now=WRITTEN)


def page_of(folder: Path) -> Page:
    return Page(render_study_page(build_study_report(folder, WRITTEN)))


def test_the_first_lines_are_for_who_skips_the_rest(written: list[Path]) -> None:
    text = Page(written[0].read_text()).text
    assert "Best of 6 settings: effective_batch_size 32, learning_rate 0.0001, held-out loss 1.9" in text
    assert "Sure: all 5 other settings are shown to be worse." in text
    assert "Chosen on one half of the questions the same one is best" in text
    assert "Cost: 12 runs, 21.8k samples, 1.09M tokens, 3 min 38 s in steps, 0.12 core hours." in text
    assert "Try higher: effective_batch_size 32 is the highest tried." in text
    assert "Try lower: learning_rate 0.0001 is the lowest tried." in text
    assert "1 run failed and has no score: 005-s1" in text
    assert "1 setting lost a run and ranks behind those that lost none, whatever the other runs scored: " in text
    assert "effective_batch_size 32, learning_rate 0.001 (005-s1)." in text
    assert "1 run stopped early by the judge and has no final score: 006-s2" in text


def test_ranking_runs_grid_and_claims_are_on_the_page(written: list[Path]) -> None:
    page = Page(written[0].read_text())
    ranking = page.table("", "settings")
    assert list(ranking) == ["1", "2", "3", "4", "5", "6"]
    assert ranking["1"][0] == "effective_batch_size 32, learning_rate 0.0001"
    assert ranking["1"][-1] == "best"
    assert ranking["4"][1] == "1 of 2"  # the judge stopped the other one
    assert ranking["6"][:2] == ["effective_batch_size 32, learning_rate 0.001", "1 of 2"]  # last, for it lost a run
    assert re.fullmatch(r"\+0\.497 \(\+0\.\d+ to \+0\.\d+\)", ranking["5"][4])
    runs = page.table("run", "score")
    assert len(runs) == 10
    assert runs["006-s1 (effective_batch_size 32, learning_rate 0.01)"][-1] == "suspect"
    claims = page.table("", "the paper's claim")
    assert list(claims) == [str(number) for number in range(1, 11)]
    assert claims["1"][1] == "holds"
    assert claims["1"][-1] == "001-s1, s2; 002-s2; 003-s1; 004-s1, s2; 005-s2; 006-s1"
    assert claims["9"][1] == "cannot tell"
    assert "max_tokens_per_device" in claims["9"][4]
    heat = next(rows for rows in page.tables if rows[1][0] == "learning_rate")
    assert heat[0][1] == "effective_batch_size"
    assert [row[0] for row in heat[2:]] == ["0.0001", "0.001", "0.01"]
    unscored = page.table("run", "state")
    assert unscored["005-s1 (effective_batch_size 32, learning_rate 0.001)"][-1] == "loss is nan"
    assert "suspect at 410 samples" in page.text


def test_signals_and_replay_with_the_honest_no(written: list[Path]) -> None:
    page = Page(written[0].read_text())
    signals = page.table("signal", "rank correlation")
    # here runs that learn faster end better, against the claim
    assert signals["early loss"][3] == "the other way"
    policies = page.table("policy", "samples saved")
    assert policies["no stopping"][:2] == ["0%", "0.0"]
    assert "judge, one run after another" in policies
    assert "The early signals do not predict the final ranking here" in page.text
    assert "Recommendation: do not stop runs by these signals" in page.text


def test_the_page_loads_nothing_and_carries_its_charts(written: list[Path]) -> None:
    page = Page(written[0].read_text())
    assert {"script", "style"} <= {tag for tag, _ in page.elements}
    assert not [a for tag, a in page.elements if tag in ("img", "link", "iframe") or a.get("src")]
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    charts = [a["data-place"] for tag, a in page.elements if tag == "script" and a.get("data-place")]
    assert charts == ["curves", "signals"]
    for place in charts:
        assert {"id": place} in [{"id": a.get("id")} for tag, a in page.elements if tag == "div"]
    drawn = json.loads(page.scripts[0])
    assert "condemned" in page.scripts[0]
    assert drawn["version"]


def test_markdown_says_the_same_and_names_its_pictures(written: list[Path]) -> None:
    markdown = written[1].read_text()
    assert "**finished.** Best of 6 settings: effective\\_batch\\_size 32" in markdown
    assert "## Do the paper's claims hold here?" in markdown
    assert re.search(r"\| 1 \| A larger batch .* \| holds \| \+0\.09\d \(", markdown)
    for block in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    names = {path.name for path in written if path.suffix == ".png"}
    assert names == {"ranking.png", "grid.png", "curves.png", "early_signals.png"}
    for path in written[2:]:
        assert f"](figures/{path.name})" in markdown
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == 1200
        assert 200 < height < 2000


def test_the_command_sees_that_it_is_a_study(written: list[Path], tmp_path: Path, capsys) -> None:
    folder = written[0].parent
    assert command(folder, output=tmp_path / "out") == 0
    printed = capsys.readouterr().out.split()
    assert printed[0] == str(tmp_path / "out/report.html")
    for path in written[1:]:  # the same study gives the same words and pictures, but for the time of writing
        again = (tmp_path / "out" / path.relative_to(folder)).read_bytes()
        assert re.sub(rb"Written .*", b"", again) == re.sub(rb"Written .*", b"", path.read_bytes())
    with pytest.raises(InputError, match="--reference is for a run"):
        command(folder, reference=True)
    with pytest.raises(InputError, match="and no study"):
        command(tmp_path)
    # a run of the study is a run
    write_run(tmp_path / "demo")
    assert command(tmp_path / "demo") == 0
    assert "Sengi run report" in (tmp_path / "demo/report.html").read_text()


def test_a_study_that_ended_says_where_its_page_is(written: list[Path], capsys, monkeypatch) -> None:
    monkeypatch.setattr("sengi.report.study_write.write_study_report", lambda folder: written)
    print_report(written[0].parent)
    assert capsys.readouterr().out.split() == ["report", str(written[0])]


def test_a_page_that_cannot_be_drawn_does_not_undo_the_study(written: list[Path], capsys, monkeypatch) -> None:
    monkeypatch.setattr("sengi.report.study_write.draw_study_figures", _no_matplotlib)
    print_report(written[0].parent)
    assert "report not written: no matplotlib" in " ".join(capsys.readouterr().out.split())


def _no_matplotlib(_: object) -> dict[str, bytes]:
    raise InputError("no matplotlib")


def test_every_stage_of_a_study_gets_its_page(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sengi.report.study_write.draw_study_figures", lambda report: {})
    chain = tmp_path / "chain"
    write_study_folder(chain / "1-batch", {"effective_batch_size": [8, 32]}, seeds=(1,))
    stages = {"batch": {"effective_batch_size": [8, 32]}, "rate": {"learning_rate": [1e-4, 1e-3]}}
    (chain / "request.json").write_text(json.dumps({"recipe": {}, "stages": stages}))
    files = write_study_report(chain, now=WRITTEN)
    assert files[0] == chain / "1-batch/report.html"
    assert [path for path in files if path.suffix == ".html"] == [files[0]]
    (chain / "request.json").write_text(json.dumps({"recipe": {}, "stages": {"other": stages["rate"]}}))
    with pytest.raises(InputError, match="none of its stages has begun"):
        write_study_report(chain)


def test_a_study_that_has_just_begun(tmp_path: Path) -> None:
    states = {f"{point:03}-s{seed}": "waiting" for point in range(1, 7) for seed in (1, 2)}
    folder = write_study_folder(tmp_path / "study", states=states | {"001-s1": "running"}, state="running")
    with lock(folder):
        page = page_of(folder)
    assert "No run has finished with a score yet" in page.text
    assert "Let it finish (1 running, 11 waiting); sengi study resume" in page.text
    assert "Of ten claims 10 cannot be told here" in page.text
    assert "A replay needs 4 finished runs or more, here are 0." in page.text
    empty = write_study_folder(tmp_path / "empty", states=dict.fromkeys(states, "waiting"), state="running")
    page = page_of(empty)
    assert "No step was recorded yet, so there are no curves." in page.text
    assert "Nothing was trained yet." in page.text
    assert page.scripts == []


def test_a_killed_study_is_said_to_be_interrupted(tmp_path: Path) -> None:
    page = page_of(write_study_folder(tmp_path / "study", RATES, states={"001-s1": "running"}, state="running"))
    assert "Let it finish (1 unfinished); sengi study resume" in page.text
    row = page.table("run", "state")["001-s1 (learning_rate 0.0001)"]
    assert (row[0], row[-1]) == ("unfinished", "interrupted, it continues")


def test_one_seed_is_said(tmp_path: Path) -> None:
    text = page_of(write_study_folder(tmp_path / "study", RATES, seeds=(1,))).text
    assert "Every setting ran with one seed: the chance of training itself is not counted." in text
    again = "with two more seeds, in a new study folder: the seeds of this one cannot change, before believing small"
    assert again in text
    assert "which count questions." in text


def test_the_question_of_a_study_preset_stands_on_top(tmp_path: Path) -> None:
    folder = write_study_folder(tmp_path / "study", RATES, seeds=(1,))
    request = json.loads((folder / "request.json").read_text())
    (folder / "request.json").write_text(json.dumps({**request, "preset": "learning-rate"}))
    report = build_study_report(folder, WRITTEN)
    assert report.question[0] == "Which learning rate?"
    assert "The paper: a low one: 2e-5 for Granite" in report.question[1]
    assert "Which learning rate?" in render_study_markdown(report, [])


def test_a_searched_space_and_shares_of_right_answers(tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    text = page_of(write_study_folder(tmp_path / "study", space, objective="facts/accuracy")).text
    assert "The points were searched, so there is no grid to draw" in text
    assert re.search(r"accuracy of facts \d+\.\d% \(95% interval \d+\.\d% to \d+\.\d%\)", text)
    assert " pp" in text


def test_many_runs_leave_the_replay_to_its_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(study_contents, "MOST_REPLAYED", 3)
    assert "sengi study replay" in page_of(write_study_folder(tmp_path / "study", seeds=(1,))).text


def test_one_setting_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    text = page_of(write_study_folder(tmp_path / "study", {"learning_rate": [1e-3]}, seeds=(1, 2))).text
    assert "It is the only setting with a score: nothing to compare it with." in text
    assert "Only one setting has a score, so there is nothing to draw." in text


def test_who_stopped_a_run_is_told_apart(tmp_path: Path) -> None:
    folder = write_study_folder(tmp_path / "study", states={"005-s1": "stopped", "006-s2": "stopped"})
    # as the scheduler writes it of a run that an alarm stopped: no check of the judge
    outcome = {"state": "stopped", "reason": "diverging at step 30: the loss is 9", "check": None}
    (folder / "runs/005-s1/outcome.json").write_text(json.dumps(outcome))
    text = page_of(folder).text
    assert "1 run stopped by an alarm and has no final score: 005-s1, diverging at step 30: the loss is 9." in text
    assert "1 run stopped early by the judge and has no final score: 006-s2." in text


def test_what_stopping_would_have_cost_is_measured_in_audited_runs(tmp_path: Path) -> None:
    said = [verdict(name, 512, "audit") for name in ("001-s1", "002-s1", "003-s1")]
    folder = write_study_folder(tmp_path / "study", RATES, seeds=(1, 2), verdicts=said, states={"003-s1": "failed"})
    report = build_study_report(folder, WRITTEN)
    # 001 is the best setting: of its two seeds one is audited
    first, second, third, cases = report.findings[:4]
    assert re.fullmatch(
        r"001-s1 \(learning_rate 0\.0001\) was condemned and went on as an audit: held-out loss 1\.\d+ against "
        r"1\.\d+ of 001-s2, the best run kept \([+−]0\.0\d+, (better|worse)\)\.",
        first,
    )
    assert second.endswith(", worse).")
    assert third.endswith("it has no final score (failed).")
    better = "better" in first
    assert cases == f"Stopping would have lost the best run in {int(better)} of 2 audited cases."
    assert cases in render_study_markdown(report, [])
    assert cases in Page(render_study_page(report)).text
    # where nobody was audited nothing is said of it
    quiet = write_study_folder(tmp_path / "quiet", RATES, seeds=(1, 2))
    assert not any("audit" in line for line in build_study_report(quiet, WRITTEN).findings)


def test_names_from_the_study_stay_text(tmp_path: Path) -> None:
    said = [{**verdict("001-s1", 512, "stop"), "reason": HOSTILE}]
    folder = write_study_folder(tmp_path / "study", RATES, seeds=(1,), verdicts=said, model_name_or_path=HOSTILE)
    report = build_study_report(folder, WRITTEN)
    page = Page(render_study_page(report))
    assert "img" not in {tag for tag, _ in page.elements}
    assert not [k for _, attributes in page.elements for k in attributes if k.startswith("on")]
    assert "document.title='taken'" in page.text
    assert "<img" not in render_study_markdown(report, [])


def test_of_two_settings_the_other_one_is_spoken_of_alone(tmp_path: Path) -> None:
    folder = write_study_folder(tmp_path / "study", {"learning_rate": [1e-4, 1e-2]})
    assert "Sure: the other setting is shown to be worse." in page_of(folder).text


def test_the_tally_counts_in_words() -> None:
    claims = [ClaimResult(n, "", "", v, "") for n, v in ((1, "holds"), (2, "does not hold"), (3, "holds"))]  # type: ignore[arg-type]
    assert tally(claims) == "Of ten claims 2 hold (1, 3), 1 does not hold (2)."


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_the_charts_appear(written: list[Path]) -> None:
    dom = browse(written[0])
    assert 'data-charts="ready"' in dom
