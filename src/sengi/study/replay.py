"""What early stopping would have cost: finished studies replayed under several policies, nothing trained.

A policy sees the recorded runs one after another, in random orders that are the same for all policies, as a study on
one device trains them; each run is stopped at the moment the policy would have stopped it. The judge is also replayed
with all runs side by side. ASHA and the median rule are Optuna's own pruners, fed with what was recorded.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sengi.errors import InputError
from sengi.study.judge import JudgeSettings, judge, without_hindsight
from sengi.study.recording import Point
from sengi.study.signals import History, signals_at

ORDERS = 12  # random orders of the runs; results are means over them
DRAWS = 2000  # bootstrap draws
OBJECTIVE = "the objective"  # what a pruner sees, at the end of its policy's name
FEWEST = 4  # runs that a replay needs: three have no rank correlation to speak of


@dataclass(frozen=True)
class Recording:
    """A finished run.

    Attributes:
        history: its whole training.
        evaluations: of the objective, by rising samples seen; the last is the final score.
    """

    history: History
    evaluations: tuple[Point, ...]

    @property
    def score(self) -> float:
        """The final score."""
        return self.evaluations[-1].value

    @property
    def samples(self) -> int:
        """Samples of the whole run."""
        return self.history.samples_seen[-1]


Stops = dict[str, int]  # run -> samples after which a policy stopped it; finished runs are not in it
Policy = Callable[[Sequence[Recording]], Stops]


@dataclass(frozen=True)
class Outcome:
    """What a policy would have cost and saved.

    Attributes:
        policy: its name.
        saved: share of all samples that it does not train on, mean over orders.
        stopped: runs that it stops, mean over orders.
        regret: how much worse the best run left is than the best of all, in the unit of the score, mean over orders;
            ``low`` and ``high`` are the ends of its 95% interval over other runs and seeds like these.
    """

    policy: str
    saved: float
    stopped: float
    regret: float
    low: float
    high: float


def replay(recordings: Sequence[Recording], settings: JudgeSettings, minimize: bool, seed: int = 0) -> list[Outcome]:
    """Replay one study under no stopping, the judge, ASHA and the median rule.

    The last two are replayed on the objective only where some run was evaluated on its way.

    Args:
        recordings: its finished runs.
        settings: of the judge; its mode is taken as ``terminate`` without audit.
        minimize: whether a lower score is better.
        seed: of orders and bootstrap.

    Raises:
        InputError: too few runs.
    """
    if len(recordings) < FEWEST:
        raise InputError(
            f"a replay needs {FEWEST} finished runs or more, here are {len(recordings)}; finish more of them"
        )
    settings = replace(settings, mode="terminate", audit=0.0)
    runs = sorted(recordings, key=lambda recording: recording.history.name)
    rng = random.Random(seed)
    orders = [rng.sample(runs, len(runs)) for _ in range(ORDERS)]
    policies: list[tuple[str, Policy]] = [
        ("no stopping", lambda _: {}),
        ("judge, runs side by side", lambda order: _judge_all(order, settings)),
        ("judge, one run after another", lambda order: _judge_in_turn(order, settings)),
    ]
    on_the_way = _objective(settings)
    fed = [("train loss", True, _train_loss(settings)), (OBJECTIVE, minimize, on_the_way)]
    if not any(True for run in runs for _ in on_the_way(run)):
        fed.pop()  # these pruners would have seen nothing: that they stop nobody says nothing of them
    for name, pruner in (("ASHA", "SuccessiveHalvingPruner"), ("median rule", "MedianPruner")):
        policies += [
            (f"{name} on {what}", partial(_prune, pruner=pruner, minimize=lower, reports=reports))
            for what, lower, reports in fed
        ]
    return [_outcome(name, [policy(order) for order in orders], runs, minimize, seed) for name, policy in policies]


def _judge_all(order: Sequence[Recording], settings: JudgeSettings) -> Stops:
    verdicts = judge([recording.history for recording in order], settings)
    return {verdict.run: verdict.check for verdict in verdicts if verdict.state == "stop"}


def _judge_in_turn(order: Sequence[Recording], settings: JudgeSettings) -> Stops:
    """Each run against those before it, which are over: what is said about them in hindsight stops nobody."""
    before: list[History] = []
    stops: Stops = {}
    for recording in order:
        name, over = recording.history.name, {run.name: math.inf for run in before}
        verdicts = judge([*before, recording.history], settings)
        said = without_hindsight(verdicts, over | {name: 0}, over | {name: recording.samples}, settings)
        stops |= {v.run: v.check for v in said if v.state == "stop"}
        before.append(replace(recording.history, stopped_at=stops.get(name)))
    return stops


Reports = Callable[[Recording], Iterator[tuple[int, int, float]]]  # (check number, samples, value) by rising check


def _train_loss(settings: JudgeSettings) -> Reports:
    """Train loss at every check of the whole run, smoothed as the judge smooths it."""

    def reports(recording: Recording) -> Iterator[tuple[int, int, float]]:
        for number, check in enumerate(
            range(settings.check_samples, recording.samples, settings.check_samples), start=1
        ):
            signals = signals_at(recording.history, check, settings.window, 0)
            if signals is not None:
                yield number, check, signals.loss

    return reports


def _objective(settings: JudgeSettings) -> Reports:
    """The objective where it was evaluated during training."""

    def reports(recording: Recording) -> Iterator[tuple[int, int, float]]:
        told = 0
        for point in recording.evaluations[:-1]:
            number = point.samples_seen // settings.check_samples
            if number > told:
                told = number
                yield number, point.samples_seen, point.value

    return reports


def _prune(order: Sequence[Recording], pruner: str, minimize: bool, reports: Reports) -> Stops:
    """Feed an Optuna pruner with recorded values."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rule = getattr(optuna.pruners, pruner)
    study = optuna.create_study(
        direction="minimize" if minimize else "maximize",
        pruner=rule(min_resource=1) if pruner == "SuccessiveHalvingPruner" else rule(),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    stops: Stops = {}
    for recording in order:
        trial, last = study.ask(), math.nan
        for number, samples, value in reports(recording):
            trial.report(value, number)
            last = value
            if trial.should_prune():
                stops[recording.history.name] = samples
                break
        pruned = recording.history.name in stops or math.isnan(last)
        study.tell(trial, None if pruned else last, state=optuna.trial.TrialState.PRUNED if pruned else None)
    return stops


def _outcome(policy: str, by_order: list[Stops], runs: Sequence[Recording], minimize: bool, seed: int) -> Outcome:
    """Means over orders, and the interval of the regret."""
    quality = np.array([-run.score if minimize else run.score for run in runs])
    kept = np.array([[run.history.name not in stops for run in runs] for stops in by_order])
    total = sum(run.samples for run in runs)
    used = [sum(min(stops.get(run.history.name, run.samples), run.samples) for run in runs) for stops in by_order]
    regrets = [float(quality.max() - quality[keep].max()) for keep in kept]
    low, high = _regret_interval(quality, kept, [run.history.settings for run in runs], seed)
    return Outcome(
        policy,
        saved=1 - float(np.mean(used)) / total,
        stopped=float((~kept).sum(axis=1).mean()),
        regret=float(np.mean(regrets)),
        low=low,
        high=high,
    )


def _regret_interval(quality: np.ndarray, kept: np.ndarray, settings: Sequence[str], seed: int) -> tuple[float, float]:
    """Bootstrap over settings, then over their seeds, then over orders; decisions stay as they were made."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(np.array(settings) == name) for name in sorted(set(settings))]
    regrets = []
    for _ in range(DRAWS):
        chosen = [groups[n] for n in rng.integers(len(groups), size=len(groups))]
        drawn = np.concatenate([rng.choice(group, len(group)) for group in chosen])
        left = drawn[kept[rng.integers(len(kept))][drawn]]
        if len(left):  # a draw of stopped runs only says nothing: the policy never leaves none
            regrets.append(quality[drawn].max() - quality[left].max())
    if not regrets:
        return math.nan, math.nan
    low, high = np.quantile(regrets, [0.025, 0.975])
    return float(low), float(high)
