from __future__ import annotations

import io
import math
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sengi.errors import InputError
from sengi.evaluate.compare import Comparison, Row
from sengi.report import compare_figure
from sengi.report.compare_figure import check_figure, draw_comparison
from sengi.statistics.differences import paired_difference


def row(task: str, metric: str, other: int, seed: int, scale: float = 1.0) -> Row:
    """A row of 60 questions; ``scale`` 1 makes right and wrong, others a score."""
    rng = np.random.default_rng(seed)
    before, after = (rng.random((2, 60)) < 0.5) * scale
    paired = paired_difference(before, after + (0.01 if scale != 1 else 0))
    share = scale == 1
    return Row(task, metric, "", 0, other, 0.5, 0.5, paired, None, 0.5, metric != "loss", share, 0, 0.5, 0.2)


def drawn(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure as matplotlib holds it, after it was laid out."""
    kept: list[Figure] = []
    real = Figure.savefig

    def keep(figure: Figure, *arguments: object, **named: object) -> None:
        kept.append(figure)
        real(figure, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw_comparison(comparison, ".png")
    return kept[0]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".SVG", b"<?xml"), (".pdf", b"%PDF")])
def test_each_kind_of_file_and_the_same_bytes_twice(suffix, start):
    comparison = Comparison(["a", "b"], [row("arc", "acc", 1, 0)])
    picture = draw_comparison(comparison, suffix)
    assert picture.startswith(start)
    assert picture == draw_comparison(comparison, suffix)


def test_one_panel_a_unit_and_each_says_which_side_is_better(monkeypatch):
    rows = [row("heldout", "loss", 1, 1, 0.3), row("arc", "acc", 1, 2), row("mt_bench", "score", 1, 3, 7.0)]
    figure = drawn(Comparison(["a", "b"], rows), monkeypatch)
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "difference to A, percentage points; right of zero is better",
        "difference to A, loss; left of zero is better",
        "difference to A, score; right of zero is better",
    ]


def test_points_and_intervals_stand_where_the_numbers_are(monkeypatch):
    one = row("arc", "acc", 1, 4)
    figure = drawn(Comparison(["a", "b"], [one]), monkeypatch)
    (container,) = figure.axes[0].containers
    line, _, (bars,) = container.lines
    assert line.get_xdata()[0] == pytest.approx(100 * one.paired.difference.value)
    (segment,) = bars.get_segments()
    d = one.paired.difference
    assert segment[:, 0] == pytest.approx([100 * d.low, 100 * d.high])


def test_many_rows_and_evaluations_do_not_overlap(monkeypatch):
    # 24 tasks with long names under three evaluations: no two labels touch, and nothing leaves the page.
    names = [f"leaderboard_bbh_{'temporal_sequences' * 2}_{k}" for k in range(24)]
    rows = [
        row(name, "exact_match,flexible-extract", other, 7 * k + other)
        for k, name in enumerate(names)
        for other in (1, 2, 3)
    ]
    figure = drawn(Comparison(["a/long/path" * 12, "b", "c", "d"], rows), monkeypatch)
    renderer = figure.canvas.get_renderer()
    (axis,) = figure.axes
    boxes = sorted((label.get_window_extent(renderer) for label in axis.get_yticklabels()), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    page = figure.bbox
    assert all(box.x0 >= page.x0 and box.x1 <= page.x1 for box in boxes)
    (legend,) = figure.legends
    box = legend.get_window_extent(renderer)
    assert box.y0 >= axis.get_window_extent(renderer).y1
    assert box.x1 <= page.x1


def test_rows_beyond_the_page_are_counted(monkeypatch):
    rows = [row(f"task{k}", "acc", 1, k) for k in range(compare_figure.MOST_ROWS + 2)]
    figure = drawn(Comparison(["a", "b"], rows), monkeypatch)
    assert "2 more rows are not drawn" in figure.axes[-1].get_xlabel()


def test_names_are_no_mathematics_and_the_page_is_white():
    comparison = Comparison(["$\\frac$", "b_$x"], [row("$\\bad{", "acc$", 1, 5)])
    picture = Image.open(io.BytesIO(draw_comparison(comparison, ".png"))).convert("RGB")
    assert picture.getpixel((2, picture.height - 2)) == (255, 255, 255)


def test_a_difference_without_interval_is_a_point():
    paired = paired_difference([3.0], [4.5])
    assert math.isnan(paired.difference.low)
    lone = Row("own", "score", "", 0, 1, 3.0, 4.5, paired, None, math.nan, True, False, 0)
    assert draw_comparison(Comparison(["a", "b"], [lone]), ".png").startswith(b"\x89PNG")


def test_a_name_that_is_no_figure_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"c\.jpg: the name ends in none of \.png, \.svg, \.pdf"):
        check_figure(tmp_path / "c.jpg")
    check_figure(tmp_path / "c.PNG")
