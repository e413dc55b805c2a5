from __future__ import annotations

import numpy as np
import pytest
from fake_run import step_record, write_lines, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.report.curves import POINTS, clipped_share, curves_of, held_out_of, moving_median, thin
from sengi.report.run_folder import read_run

SERIES = st.integers(1, 250).flatmap(
    lambda n: st.lists(st.one_of(st.floats(-1e9, 1e9), st.just(float("nan"))), min_size=n, max_size=n)
)


@settings(max_examples=40, deadline=None)
@given(SERIES, st.integers(4, 60))
def test_thinning_keeps_order_ends_and_extremes(values, limit):
    values = np.array(values)
    at = thin(values, limit)
    assert at.size <= max(limit, 0) or values.size <= limit
    assert at[0] == 0
    assert at[-1] == values.size - 1
    assert (np.diff(at) > 0).all()
    if not np.isnan(values).all():
        assert np.nanmin(values[at]) == np.nanmin(values)
        assert np.nanmax(values[at]) == np.nanmax(values)


@settings(max_examples=40, deadline=None)
@given(SERIES, st.integers(6, 60))
def test_thinning_keeps_the_extremes_of_every_bucket(values, limit):
    # No stretch of the line is drawn lower or flatter than it was.
    values = np.array(values)
    kept = set(thin(values, limit).tolist())
    if values.size > limit:
        for bucket in np.array_split(np.arange(values.size), (limit - 2) // 2):
            drawn = [values[i] for i in bucket if i in kept]
            if np.isnan(values[bucket]).all():
                assert drawn
            else:
                assert np.nanmin(drawn) == np.nanmin(values[bucket])
                assert np.nanmax(drawn) == np.nanmax(values[bucket])


def test_short_series_are_not_thinned():
    assert thin(np.arange(4000.0), 4000).tolist() == list(range(4000))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=80, max_size=200))
def test_moving_median_stays_in_the_data_and_starts_at_its_start(values):
    values = np.array(values)
    smooth = moving_median(values, np.arange(values.size))
    assert values[0] == smooth[0]
    assert values.min() <= smooth.min()
    assert smooth.max() <= values.max()


def test_moving_median_follows_a_line_and_ignores_a_spike_and_gaps():
    line = np.linspace(3, 1, 200)
    # Reach 5: symmetric everywhere but in the last five steps.
    assert moving_median(line, np.arange(195)) == pytest.approx(line[:195])
    assert moving_median(line, np.array([199])) == pytest.approx([np.median(line[194:])])
    spiked = line.copy()
    spiked[100], spiked[50] = 1e20, np.nan
    smooth = moving_median(spiked, np.arange(200))
    assert np.abs(smooth - line).max() < 0.03


def test_axes_are_those_of_the_records(run_folder):
    run = read_run(run_folder)
    loss, norm, rate = curves_of(run)
    assert loss.axes["step"][-1] == 120
    assert loss.axes["samples"][-1] == 64 * 120
    assert loss.axes["tokens"][-1] == sum(step_record(k)["num_tokens"] for k in range(1, 121))
    assert loss.axes["time"][-1] == pytest.approx(2.5 * 120)
    assert norm.values.max() == 9.75
    assert set(rate.values) == {2e-5}
    assert rate.smooth is None


def test_held_out_losses_lie_at_their_steps_on_every_axis(run_folder):
    held_out = held_out_of(read_run(run_folder))
    assert held_out.values.tolist() == [3.01, 1.2, 0.62]
    assert held_out.names == ["heldout, all"] * 3
    assert held_out.axes["step"].tolist() == [0, 60, 120]
    assert held_out.axes["samples"].tolist() == [0, 64 * 60, 64 * 120]
    assert held_out.axes["time"] == pytest.approx([0, 150, 300])


def test_long_runs_are_thinned_and_keep_their_peak(tmp_path):
    run = read_run(write_run(tmp_path / "long", steps=9_000))
    for curve in curves_of(run):
        assert curve.values.size <= POINTS
        assert curve.total == 9_000
    assert curves_of(run)[1].values.max() == 9.75


def test_non_finite_values_leave_gaps_and_large_peaks_a_log_axis(run_folder):
    records = [step_record(k) for k in range(1, 121)]
    records[5]["loss"], records[6]["grad_norm"], records[7]["grad_norm"] = None, float("inf"), 1e6
    write_lines(run_folder / "dynamics.jsonl", records)
    loss, norm, _ = curves_of(read_run(run_folder))
    assert np.isnan(loss.values[5])
    assert np.isnan(norm.values[6])
    assert norm.log
    assert not loss.log


def test_clipped_share_counts_norms_above_the_recipe_limit(run_folder):
    expected = np.mean([step_record(k)["grad_norm"] > 1.0 for k in range(1, 121)])
    assert clipped_share(read_run(run_folder)) == pytest.approx(expected)


def test_no_clipping_no_share(tmp_path):
    run = read_run(write_run(tmp_path / "free", steps=5, recipe={"max_grad_norm": 0}))
    assert np.isnan(clipped_share(run))
