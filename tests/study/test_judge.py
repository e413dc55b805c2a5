"""The judge: what it stops, what it keeps, and the properties that hold for any histories."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.recipe import Recipe
from sengi.study.judge import CONDEMNED, JudgeSettings, Verdict, is_audited, judge
from sengi.study.recording import group
from sengi.study.scheduler import run_study
from sengi.study.signals import History
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, write_study
from synthetic import SETTINGS, run

CASES = settings(max_examples=30, deadline=None)
paces = st.sampled_from([0.3, 0.5, 0.6, 0.8, 1.0, 1.3])
norms = st.sampled_from([0.5, 0.9, 1.0, 1.1, 2.0, 4.0])


@st.composite
def fields(draw: st.DrawFn, least: int = 2) -> list[History]:
    """Runs of any paces, norms, batch sizes, seeds and lengths."""
    runs = []
    for number in range(draw(st.integers(least, 6))):
        trace = draw(st.sampled_from([None, 8.0, 40.0]))
        runs.append(
            run(
                f"run-{number}",
                draw(paces),
                draw(norms),
                draw(st.sampled_from([8, 16, 40])),
                seed=draw(st.integers(0, 3)),
                spread=draw(st.sampled_from([0.0, 0.01, 0.2])),
                warmup=draw(st.sampled_from([0, 300, 900])),
                trace=trace,
                samples=draw(st.sampled_from([200, 1000, 2000, 4000])),
            )
        )
    return runs


def condemned(verdicts: list[Verdict]) -> dict[str, int]:
    return {v.run: v.check for v in verdicts if v.state in CONDEMNED}


def same(one: list[Verdict], other: list[Verdict]) -> bool:
    return repr(one) == repr(other)  # NaN equals itself in text


def test_the_run_with_higher_norm_and_lower_loss_is_stopped_at_the_second_check() -> None:
    verdicts = judge([run("calm", 0.8, 1.0), run("wild", 1.2, 2.0)], SETTINGS)
    assert [(v.check, v.state) for v in verdicts if v.run == "wild"] == [(400, "suspect"), (800, "stop")]
    last = verdicts[-1] if verdicts[-1].run == "wild" else next(v for v in verdicts if v.state == "stop")
    assert last.reference == "calm"
    assert last.norm_gap == pytest.approx(math.log(2), abs=0.05)
    assert last.loss_gap > last.loss_margin > 0
    assert "2 checks in a row" in last.reason
    assert "no seed was repeated" in last.reason


@pytest.mark.parametrize(("pace", "norm"), [(1.2, 0.5), (0.8, 2.0), (1.0, 1.0)])
def test_a_run_whose_signals_disagree_is_kept(pace: float, norm: float) -> None:
    assert condemned(judge([run("calm", 1.0, 1.0), run("other", pace, norm)], SETTINGS)) == {}


def test_repeated_seeds_calibrate_the_margin() -> None:
    # the same two settings; seeds that scatter as much as the settings differ mean: chance
    def pair(scatter: float) -> list[History]:
        return [
            run(f"{name}-{seed}", pace + scatter * (seed - 0.5), norm * (1 + scatter * (0.5 - seed)), settings=name)
            for name, pace, norm in (("calm", 0.9, 1.0), ("wild", 1.1, 1.3))
            for seed in (0, 1)
        ]

    quiet, loud = judge(pair(0.002), SETTINGS), judge(pair(0.2), SETTINGS)
    assert condemned(quiet).keys() == {"wild-0", "wild-1"}
    assert condemned(loud) == {}
    assert any("2 settings with repeated seeds" in v.reason for v in quiet)


def drowned(history: History) -> History:
    """The same run with noise that is larger than its norm: less than nothing is left of the gradient."""
    return replace(history, noise=tuple(2 * norm**2 for norm in history.grad_norm))


def seeded(name: str, pace: float, norm: float, batch: int, count: int = 2) -> list[History]:
    return [
        run(f"{name}-{seed}", pace + 0.002 * seed, norm * (1 + 0.002 * seed), batch, settings=name, trace=1.0)
        for seed in range(count)
    ]


@pytest.mark.parametrize("count", [2, 1])
def test_a_seed_of_which_only_noise_is_seen_does_not_switch_the_judge_off(count: int) -> None:
    # two batch sizes, so that norms are compared without their noise; with and without repeated seeds
    runs = [*seeded("calm", 0.9, 1.0, 8, count), *seeded("wild", 1.2, 2.0, 8, count), *seeded("large", 0.9, 1.0, 16, 1)]
    wild = {f"wild-{seed}" for seed in range(count)}
    assert condemned(judge(runs, SETTINGS)).keys() == wild
    # one of the seeds of a setting; or, where nothing is repeated, most of all steps
    noisy = ["calm"] if count > 1 else ["one", "two", "three"]
    more = [drowned(run(f"noisy-{name}", 1.0, 1.0, 8, settings=name, trace=1.0)) for name in noisy]
    with_it = judge([*runs, *more], SETTINGS)
    assert condemned(with_it).keys() == wild
    said = {v.reason for v in with_it if v.run.startswith("noisy")}
    assert all("its gradient norm cannot be told from noise" in reason for reason in said)


def test_where_too_few_norms_are_above_their_noise_the_margin_is_unknown_and_said_so() -> None:
    calm = seeded("calm", 0.9, 1.0, 8)
    wild, large = seeded("wild", 1.2, 2.0, 8, 1), seeded("large", 0.9, 1.0, 16, 1)
    assert condemned(judge([*calm, *wild, *large], replace(SETTINGS, confidence=0.5))).keys() == {"wild-0"}
    verdicts = judge([calm[0], drowned(calm[1]), *wild, *large], replace(SETTINGS, confidence=0.5))
    assert condemned(verdicts) == {}
    assert {v.reason.partition(": ")[2] for v in verdicts} == {
        "the margin of the gradient norm is unknown, too few of the runs that tell what chance does have a gradient "
        "norm above their noise"
    }


def explode(history: History, height: float) -> History:
    """The same run with a rate that throws the loss up after the first step, from where it falls back."""
    seen = np.array(history.samples_seen)
    risen = np.array(history.loss) + height * np.exp(-seen / 1500.0) * (seen > seen[0])
    return replace(history, loss=tuple(risen.tolist()))


def test_falling_back_from_an_explosion_is_no_learning() -> None:
    # seen in a real study (docs/results/studies.md): it fell further than all that learned, and made them "slow"
    runs = [run("calm", 0.8, 1.0), run("wild", 1.2, 2.0)]
    thrown = explode(run("thrown", 0.2, 0.5), 4.0)
    verdicts = judge([*runs, thrown], SETTINGS)
    assert {v.state for v in verdicts if v.run == "thrown"} == {"slow"}
    assert same([v for v in verdicts if v.run != "thrown"], judge(runs, SETTINGS))


@CASES
@given(fields(), st.floats(3.0, 8.0), st.sampled_from([8, 16, 40]))
def test_an_exploded_run_changes_no_verdict(runs: list[History], height: float, batch: int) -> None:
    thrown = explode(run("thrown", 0.0, 0.5, batch, samples=2000), height)
    verdicts = judge([*runs, thrown], SETTINGS)
    assert same([v for v in verdicts if v.run != "thrown"], judge(runs, SETTINGS))


def test_margins_that_no_float_holds_as_a_ratio_are_put_in_words() -> None:
    # two seeds of one setting, one of them with hardly a gradient: their spread is hundreds in the logarithm
    calm = run("calm", 1.0, 1.0, settings="calm")
    few = [replace(calm, grad_norm=tuple(1e-150 for _ in calm.grad_norm), name="few"), calm, run("wild", 1.2, 2.0)]
    assert any("chance beyond measure" in v.reason for v in judge(few, SETTINGS))


def test_nobody_is_judged_before_all_have_warmed_up() -> None:
    runs = [run("calm", 0.8, 1.0), run("wild", 1.2, 2.0), run("late", 1.0, 1.5, warmup=1500, samples=16)]
    verdicts = judge(runs, SETTINGS)
    assert {v.state for v in verdicts if v.check <= 1500} == {"wait"}
    assert condemned(verdicts) == {"wild": 2000}


def test_norms_of_different_batches_are_compared_without_their_noise() -> None:
    # both have the same true gradient; the small batch is faster, its raw norm is three times the other's
    small, large = run("small", 1.2, 1.0, batch=8, trace=64.0), run("large", 0.8, 1.0, batch=40, trace=64.0)
    assert small.grad_norm[-1] > 1.8 * large.grad_norm[-1]
    assert condemned(judge([small, large], SETTINGS)) == {}
    # and the small batch is stopped where its gradient is larger in truth
    assert condemned(judge([run("small", 1.2, 1.6, batch=8, trace=64.0), large], SETTINGS)).keys() == {"small"}


def test_without_a_noise_estimate_batches_are_compared_with_their_own_size_only() -> None:
    runs = [run("small", 1.2, 3.0, batch=8), run("large", 0.8, 1.0, batch=40), run("calm", 0.8, 1.0, batch=8)]
    verdicts = judge(runs, SETTINGS)
    assert condemned(verdicts) == {"small": 800}
    assert {v.reference for v in verdicts if v.run == "small"} == {"calm"}
    assert condemned(judge(runs[:2], SETTINGS)) == {}


def test_nobody_is_judged_after_the_early_window() -> None:
    calm, wild = run("calm", 0.8, 1.0), run("wild", 1.2, 2.0)
    norms = [n if s > 2000 else 1.0 for s, n in zip(wild.samples_seen, wild.grad_norm, strict=True)]
    late = replace(wild, grad_norm=tuple(norms))
    assert max(v.check for v in judge([calm, late], SETTINGS)) == 2000
    assert condemned(judge([calm, late], SETTINGS)) == {}


def test_modes_and_audit_change_the_word_only() -> None:
    runs = [run("calm", 0.8, 1.0), *(run(f"wild-{n}", 1.2, 2.0 + n) for n in range(8))]
    stopped = judge(runs, SETTINGS)
    for other in (replace(SETTINGS, mode="advise"), replace(SETTINGS, audit=0.5), replace(SETTINGS, audit=1.0)):
        verdicts = judge(runs, other)
        assert condemned(verdicts) == condemned(stopped)
    states = {v.run: v.state for v in judge(runs, replace(SETTINGS, audit=0.5)) if v.state in CONDEMNED}
    assert states == {name: "audit" if is_audited(name, 0.5) else "stop" for name in states}
    assert set(states.values()) == {"audit", "stop"}


def test_audit_takes_its_share_of_names() -> None:
    share = np.mean([is_audited(f"run-{n}", 0.3) for n in range(3000)])
    assert share == pytest.approx(0.3, abs=0.03)
    assert not is_audited("any", 0.0)
    assert is_audited("any", 1.0)


def test_a_run_that_was_stopped_leaves_later_checks() -> None:
    runs = [run("calm", 0.8, 1.0), replace(run("wild", 1.2, 2.0), stopped_at=400)]
    assert [v.check for v in judge(runs, SETTINGS) if v.run == "wild"] == [400]


@CASES
@given(fields(), st.randoms(use_true_random=False))
def test_the_order_of_the_runs_does_not_matter(runs: list[History], rng: random.Random) -> None:
    mixed = runs[:]
    rng.shuffle(mixed)
    assert same(judge(runs, SETTINGS), judge(mixed, SETTINGS))


@CASES
@given(fields(), st.sampled_from([8, 16, 40]), st.sampled_from([0.0, 0.01, 0.2]), st.floats(0.01, 10))
def test_a_zero_rate_run_never_causes_a_stop(runs: list[History], batch: int, spread: float, norm: float) -> None:
    # no verdict on any other run changes when one joins that learns nothing
    idle = run("idle", 0.0, norm, batch, spread=spread, seed=9, trace=1.0)
    with_it = [v for v in judge([*runs, idle], SETTINGS) if v.run != "idle"]
    for one, other in zip(judge(runs, SETTINGS), with_it, strict=True):
        assert one.state == other.state
        assert other.reference != "idle"


# Luck is to be found where losses are noisy and nobody learns much: by an earlier rule 2% of these idle runs judged.
@pytest.mark.parametrize(("pace", "spread"), [(1.0, 0.5), (0.3, 0.2), (0.1, 0.05)])
def test_no_luck_makes_a_zero_rate_run_judge(pace: float, spread: float) -> None:
    runs = [run(name, pace * share, 2.0, 8, spread=spread) for name, share in (("a", 1.0), ("b", 0.8))]
    for seed in range(1000, 1250):
        idle = run("idle", 0.0, 0.1, 8, spread=spread, seed=seed)
        assert all(v.reference != "idle" for v in judge([*runs, idle], SETTINGS))


@CASES
@given(paces, norms, st.sampled_from([8, 40]), st.sampled_from([0.0, 0.2]), st.integers(2, 5))
def test_identical_runs_are_never_stopped(pace: float, norm: float, batch: int, spread: float, count: int) -> None:
    runs = [run(f"twin-{n}", pace, norm, batch, spread=spread, settings="one", trace=4.0) for n in range(count)]
    assert condemned(judge(runs, replace(SETTINGS, min_survivors=0))) == {}


@CASES
@given(fields(), st.integers(1, 4))
def test_the_last_survivors_live(runs: list[History], least: int) -> None:
    verdicts = judge(runs, replace(SETTINGS, min_survivors=least))
    for check in SETTINGS.checks():
        here = [v for v in verdicts if v.check == check]
        stopped = [v for v in here if v.state in CONDEMNED]
        learning = [v for v in here if v.reference and v.state not in CONDEMNED]
        assert not stopped or len(learning) >= least


@CASES
@given(fields(), st.sampled_from(list(SETTINGS.checks())))
def test_verdicts_depend_on_the_past_only(runs: list[History], check: int) -> None:
    def until(history: History) -> History:
        """Everything up to the step that reaches the check; what came after is another story."""
        upto = sum(seen < check for seen in history.samples_seen) + 1
        return replace(
            history,
            samples_seen=history.samples_seen[:upto],
            loss=history.loss[:upto],
            grad_norm=history.grad_norm[:upto],
            noise=history.noise[:upto],
        )

    known = [v for v in judge([until(history) for history in runs], SETTINGS) if v.check <= check]
    assert same(known, [v for v in judge(runs, SETTINGS) if v.check <= check])


@CASES
@given(fields())
def test_a_stopped_run_has_no_later_verdict_and_every_verdict_says_why(runs: list[History]) -> None:
    verdicts = judge(runs, SETTINGS)
    for name, check in condemned(verdicts).items():
        assert max(v.check for v in verdicts if v.run == name) == check
    assert all(v.reason and "\n" not in v.reason for v in verdicts)


def test_without_runs_there_is_nothing_to_say() -> None:
    assert judge([], JudgeSettings(100, 1000)) == []


def test_runs_of_two_groups_are_judged_apart() -> None:
    # an adapter's gradient is not a whole model's: its norm says nothing of the other's
    model = [run(name, pace, norm) for name, pace, norm in (("calm", 1.0, 1.0), ("wild", 1.3, 2.0))]
    adapter = [replace(one, name=f"lora-{one.name}", settings=f"lora {one.settings}", group="adapter") for one in model]
    loud = [replace(one, grad_norm=tuple(50 * norm for norm in one.grad_norm)) for one in adapter]
    alone = judge(model, SETTINGS)
    together = judge([*model, *loud], SETTINGS)
    assert [verdict for verdict in together if not verdict.run.startswith("lora")] == alone
    stopped = {verdict.run for verdict in together if verdict.state == "stop"}
    assert stopped == {"wild", "lora-wild"}
    # without the group, every adapter of these would be stopped by the calm model
    mixed = judge([*model, *(replace(one, group="") for one in loud)], SETTINGS)
    assert {verdict.reference for verdict in mixed if verdict.reference} == {"calm"}


LORA = {"use_peft": True}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"model_name_or_path": "another"}),
        ({}, {"data": ["other.jsonl"]}),
        ({}, {"max_length": 512}),
        ({"max_length": 512}, {"max_length": 512, "overlong": "truncate"}),
        ({}, {"strategy": "phased"}),
        ({"strategy": "phased"}, {"strategy": "phased", "phases": {"by": "response_length"}}),
        ({}, {"loss_reduction": "sample"}),
        ({}, LORA),
        (LORA, {**LORA, "lora_r": 64}),
        (LORA, {**LORA, "lora_alpha": 64}),
        (LORA, {**LORA, "lora_target_modules": ["q_proj"]}),
        (LORA, {**LORA, "load_in_4bit": True}),
    ],
)
def test_what_changes_the_meaning_of_loss_or_norm_makes_another_group(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    base = {"model_name_or_path": "model", "data": [{"path": "train.jsonl"}], "output_dir": "run"}

    def of(values: dict[str, Any]) -> str:
        data = [{"path": path} for path in values.get("data", [])]
        return group(Recipe(**{**base, **values, **({"data": data} if data else {})}))

    assert of(one) != of(other)
    # what a sweep is about does not
    same = {"learning_rate": 1e-5, "effective_batch_size": 8, "warmup_steps": 5, "weight_decay": 0.1, "seed": 7}
    assert of(one) == of({**one, **same})


def test_a_study_does_not_hold_one_reduction_of_the_loss_against_another(tmp_path: Path) -> None:
    # lower losses and higher norms of one of them would be the judge's picture of a bad run
    def curve(recipe: dict[str, Any], samples: int) -> tuple[float, float]:
        shift = recipe["loss_reduction"] == "sample"
        return 3 - (1 + shift) * (1 - np.exp(-samples / 800)), 1.0 + shift

    early = {"mode": "terminate", "check_samples": 400, "early_samples": 1200}
    space = {"learning_rate": [1e-3], "loss_reduction": ["token", "sample"]}
    path = write_study(tmp_path, space=space, early_termination=early)
    rows = run_study(read_study(path), make_executor=lambda asked: FakeExecutor(curve=curve))
    assert [(row["state"], row["verdict"]) for row in rows] == [("finished", "keep")] * 2
