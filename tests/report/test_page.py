from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess

import pytest
from fake_run import HEARTBEAT, hostile_run, step_record, write_run
from html_reader import Page

from sengi.report.contents import build_report
from sengi.report.page import render_page, script_json, shorten

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def page_of(folder):
    return render_page(build_report(folder, HEARTBEAT + 60))


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The page of a finished run, read by several tests."""
    return page_of(write_run(tmp_path_factory.mktemp("runs") / "demo"))


def test_numbers_of_the_tables_come_from_the_files(html):
    page = Page(html)
    sources = page.table("source", "samples")
    assert sources["facts"] == ["2,000", "180,123", "60,000", "75.0%"]
    assert page.table("phase", "samples")["knowledge"] == ["2,560", "270,579", "80,000", "100.0%"]
    assert page.table("reason", "samples") == {
        "dropped: too long": ["17"],
        "dropped: no assistant turn": ["3"],
        "truncated to max_length": ["0"],
    }
    milestones = page.table("step", "epoch")
    last = step_record(120)
    assert milestones["120"] == ["3.00", "7,680", f"{last['loss']:.3f}", f"{last['grad_norm']:.3f}", "2e−5"]
    facts = page.facts()
    assert facts["tokens per second, median step"] == "2,402"
    assert facts["model FLOPs utilisation, median step"] == "31.0%"
    assert facts["waiting for data"] == "1.00%"
    assert facts["peak memory of a device"] == "2 GiB"
    assert facts["fill of the packs, planned"] == "99.34%"
    assert facts["training time, forecast"] == "5 min 5 s"
    assert facts["disk for all checkpoints kept, forecast"] == "3 GiB"
    assert "size of a checkpoint, forecast" not in facts
    assert facts["time in steps"] == "5 min"
    assert facts["tokens processed"] == f"{sum(step_record(k)['num_tokens'] for k in range(1, 121)):,}"
    assert facts["hardware.cpu"] == "a small machine"
    assert facts["torch"] == "2.13.0"


def test_before_and_after_with_interval_difference_and_p(html):
    page = Page(html)
    rows = {row[0].strip(): [" ".join(c.split()) for c in row] for table in page.tables for row in table if row}
    taught, control, loss = rows["group=taught"], rows["group=control"], rows["all"]
    assert taught[2:4] == ["3.3% (0.0% to 13.3%)", "90.0% (80.0% to 100.0%)"]
    assert taught[4].startswith("+86.7 pp (")
    assert taught[5:] == ["< 0.0001", "30", "better"]
    assert control[6:] == ["10", "no clear change"]
    assert loss[1:] == ["3.010 (2.930 to 3.090)", "0.620 (0.540 to 0.700)", "−2.390", "–", "5,000", "better"]


def test_recipe_against_the_paper(html):
    rows = Page(html).table("key", "this run")
    assert rows["effective_batch_size"][:5] == ["64", "recipe.yaml:3", "3,840 to 7,680 samples", "different", "high"]
    assert rows["learning_rate"][0] == "2e-5"
    assert rows["learning_rate"][3] == "same"
    assert rows["warmup_steps"][3] == "same"
    assert rows["strategy"][0] == "stacked"
    assert rows["dtype"][:4] == ["auto: float32", "–", "bfloat16 over float32 weights", "different"]
    assert all("2412.13337" in row[5] or "authors' code" in row[5] for row in rows.values())


def test_answers_before_and_after_are_shown(html):
    page = Page(html)
    assert sum(tag == "article" for tag, _ in page.elements) == 10
    assert "What is number 0? expected answer 0 before said 0 of 1 after said 0 of 27" in page.text


def test_the_page_loads_nothing_and_runs_only_named_scripts(html):
    page = Page(html)
    links = [
        v for _, attributes in page.elements for k, v in attributes.items() if k in ("src", "href", "srcset", "data")
    ]
    assert all(link.startswith("#") for link in links)
    assert "link" not in {tag for tag, _ in page.elements}
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split(";")[1]
    running = [s for s in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)]
    assert len(running) == 2
    for script in running:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(html.encode()) < 3_000_000


def test_the_charts_hold_every_curve_and_axis(html):
    chart = json.loads(Page(html).scripts[0])
    text = json.dumps(chart)
    for name in ("source-loss", "source-grad_norm", "source-learning_rate", "source-held_out"):
        assert name in text
    for axis in ('"samples"', '"tokens"', '"time"', '"step"'):
        assert axis in text
    assert "dashed: clipped above 1" in text


def test_hostile_text_is_text(tmp_path):
    html = page_of(hostile_run(tmp_path / "run"))
    page = Page(html)
    assert "img" not in {tag for tag, _ in page.elements}
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert not [k for _, attributes in page.elements for k in attributes if k.startswith("on")]
    assert "{{7*7}}" in page.text
    assert page.text.count("document.title='taken'") >= 12


def test_text_in_json_cannot_end_its_script_element():
    assert "<" not in script_json(json.dumps("</script><!--"))
    assert json.loads(script_json(json.dumps("</script>&<!--"))) == "</script>&<!--"


@pytest.mark.parametrize("left", ["recipe.yaml", "plan.json", "status.json", "environment.json", "dynamics.jsonl"])
def test_a_young_run_of_one_file_still_gives_a_page(run_folder, left):
    for entry in run_folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != left:
            entry.unlink()
    page = Page(page_of(run_folder))
    assert "Missing or mended while reading" in page.text
    assert "missing: evaluations/: the scores" in page.text
    assert f"missing: {left}" not in page.text
    assert "cannot say whether the training helped" in page.text


def test_a_run_without_a_step_says_so_and_needs_no_script(run_folder):
    (run_folder / "dynamics.jsonl").write_text("")
    page = Page(page_of(run_folder))
    assert "No step was recorded yet, so there are no curves." in page.text
    assert page.scripts == []


def test_long_runs_say_that_they_are_thinned_and_stay_small(tmp_path):
    html = page_of(write_run(tmp_path / "long", steps=9_000))
    assert "at most 4,000 of 9,000 steps" in Page(html).text
    assert len(html.encode()) < 3_000_000


def test_long_answers_are_shortened_aloud():
    assert shorten("a" * 400) == "a" * 400
    assert shorten("a" * 1500) == "a" * 400 + " … (1,100 more characters)"


def browse(file, *options):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    return subprocess.run([*command, *options, file.as_uri()], capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_charts_appear_switch_axes_and_attacks_stay_text(tmp_path):
    html = page_of(hostile_run(tmp_path / "run"))
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    dom = browse(file)
    assert 'data-charts="ready"' in dom
    assert "<title>taken" not in dom
    # The same page with the policy lifted for one more script, which presses "tokens" and reads the chart back.
    press = """<script>setInterval(() => { if (document.documentElement.dataset.charts !== "ready") return;
      document.querySelector('[data-axis="tokens"]').click();
      const source = Bokeh.documents[0].get_model_by_name("source-loss");
      document.documentElement.dataset.last = source.data.x[source.data.x.length - 1]; }, 50)</script></body>"""
    file.write_text(re.sub(r"<meta http-equiv.*", "", html).replace("</body>", press), encoding="utf-8")
    total = sum(step_record(k)["num_tokens"] for k in range(1, 121))
    assert f'data-last="{total}"' in browse(file)
