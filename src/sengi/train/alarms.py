"""Signs that a run goes wrong, found in its step records: a pure function of dynamics.jsonl.

An alarm at step k follows from the records up to k and the number of steps planned. So a live run, a continued one and
the report of a finished one find the same alarms, and no other file has to remember them.

===========  ==========================================================================  ===========================
diverging    the loss climbed back: its median over WINDOW steps is above the lowest it   the rate is too high
             had by half of what the run had learned, 5% of the loss, and CHANCE times
             the noise of a step; or all losses of the window are half as much again
             as the lowest, and a nat more
oscillating  every fourth of JUMPS steps changes the gradient norm twofold, and four      training is unstable
             times as much as before; or eightfold
plateau      in the first half of the plan, over an epoch and a quarter of the plan, the  the batch is too small or
             loss changed by less than 1% of its fall before, or 0.2%, beyond doubt       the rate too low
===========  ==========================================================================  ===========================

The noise of a step is the median absolute deviation of the differences of neighbouring losses, by which single spikes,
batch size and data enter, and the trend does not. CHANCE is 6: a median of nine steps scatters by 0.42 of it, and the
lowest and the highest of the thousands of medians of a run without trend lie 3 to 4 of it apart. A plateau needs proof
that the loss is flat, not only lack of proof that it falls. Nothing is said in the warm-up (while the rate rises), nor
before the window lies behind it; a new phase begins anew. The rates of false alarms on healthy runs are measured in
tests/train/test_alarms.py.

An alarm is raised once an episode: again only after its sign was gone for as long as it takes to see. A run that was
stopped by an alarm and is continued therefore goes on.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np

from sengi.statistics.gradient_noise import noise_part

Kind = Literal["diverging", "oscillating", "plateau", "not finite"]
WINDOW = 9  # steps of a median: five of them must agree
CHANCE = 6.0  # in units of the noise of one step
AGAIN, NAT = 1.5, 1.0  # factor of the lowest loss, and nats above it, that no loss of the window may be without
GIVEN_BACK = 0.5  # share of what a run had learned
NOTABLE = 0.05  # share of the loss below which no rise is worth a word
NOISE_FROM, NOISE_STEPS = 24, 64  # losses before the window that tell the noise of a step: at least, at most
TO_SD = 1.4826 / math.sqrt(2)  # median absolute difference of neighbours -> standard deviation of one, if normal
JUMPS = 20  # steps whose gradient norms are compared with those before
FOURTH = 0.75  # quantile of the changes: what every fourth step exceeds
TWOFOLD, EIGHTFOLD, AS_MUCH = math.log(2), math.log(8), 4.0
BEFORE = 200  # earlier changes of the gradient norm that say what is usual in this run
EARLY, STRETCH, STRETCH_STEPS = 0.5, 0.25, 40  # of the plan; of the plan; steps
FLAT, FLAT_LOSS = 0.01, 0.002  # of what the loss fell before; of the loss
SURE = 2.0  # standard errors
MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean, sqrt(pi / 2)
MOSTLY = 0.8  # share of the squared gradient norm that is noise, above which the batch is called small


@dataclass(frozen=True)
class Alarm:
    """One alarm.

    Attributes:
        step: at which it was raised.
        kind: name of the sign.
        seen: what was seen, with its numbers.
        cause: what it most often means; ``cure`` is what to do.
    """

    step: int
    kind: Kind
    seen: str
    cause: str
    cure: str

    @property
    def sentence(self) -> str:
        """All of it on one line."""
        return f"{self.kind} at step {self.step}: {self.seen}: {self.cause}; {self.cure}"


def find_alarms(records: Iterable[Mapping[str, Any]], planned_steps: int | None) -> list[Alarm]:
    """All alarms of a run.

    Args:
        records: lines of dynamics.jsonl, by step; NaN and None are values that were not measured.
        planned_steps: steps of the whole run; None where that is not known, and then no plateau is early.
    """
    watch = Watch(planned_steps)
    return [alarm for record in records for alarm in watch.add(record)]


class Watch:
    """Finds alarms step by step, in a time that does not grow with the run (a plateau is looked for now and then).

    Args:
        planned_steps: as :func:`find_alarms` takes it.
    """

    def __init__(self, planned_steps: int | None) -> None:
        self._planned = planned_steps
        self._phase: Any = None
        self._begin()

    def _begin(self) -> None:
        """Forget everything: a phase begins."""
        self._losses: list[float] = []
        self._norms: list[tuple[float, float]] = []  # squared norm and its noise
        self._rates: list[float] = []
        self._epochs: list[float] = []
        self._changes: deque[float] = deque(maxlen=JUMPS)  # of the logarithm of the norm, after the warm-up
        self._usual: deque[float] = deque(maxlen=BEFORE)  # those before, without those of an episode
        self._norm = math.nan
        self._levels: deque[float] = deque(maxlen=WINDOW)  # medians whose windows reach into the last one
        self._best, self._best_step = math.inf, 0
        self._warm = 0  # steps in which the rate rose
        self._flat: Alarm | None = None  # the plateau found when it was last looked for
        self._calm: dict[Kind, int] = {}  # steps without the sign of an alarm that was raised

    def add(self, record: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that the next step raises."""
        if record.get("phase") != self._phase:
            self._phase = record.get("phase")
            self._begin()
        loss, norm = _number(record, "loss"), _number(record, "grad_norm")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return []  # such a step ends a run, and says so itself
        self._remember(record, loss, norm)
        signs: dict[Kind, Alarm | None] = {
            "diverging": self._diverging(record),
            "oscillating": self._oscillating(record),
            "plateau": self._plateau(record),
        }
        return [alarm for kind, sign in signs.items() if (alarm := self._once(kind, sign)) is not None]

    def _remember(self, record: Mapping[str, Any], loss: float, norm: float) -> None:
        rate = _number(record, "learning_rate")
        if self._rates and self._warm == len(self._rates) - 1 and rate > self._rates[-1]:
            self._warm += 1
        self._rates.append(rate)
        self._losses.append(loss)
        self._epochs.append(_number(record, "epoch"))
        noise = noise_part(norm, record.get("half_grad_norm"), record.get("half_share"))
        self._norms.append((norm**2, noise))
        if len(self._losses) > self._warm + 1 and norm > 0 and self._norm > 0:
            if len(self._changes) == JUMPS and "oscillating" not in self._calm:
                self._usual.append(self._changes[0])
            self._changes.append(abs(math.log(norm / self._norm)))
        self._norm = norm

    def _once(self, kind: Kind, sign: Alarm | None) -> Alarm | None:
        """The alarm, unless it is the same episode as before."""
        if sign is None:
            if kind in self._calm:
                self._calm[kind] += 1
                if self._calm[kind] >= JUMPS:
                    del self._calm[kind]
            return None
        again, self._calm[kind] = kind in self._calm, 0
        return None if again else sign

    def _diverging(self, record: Mapping[str, Any]) -> Alarm | None:
        if len(self._losses) < WINDOW:
            return None
        if len(self._levels) == WINDOW and self._levels[0] < self._best:
            self._best, self._best_step = self._levels[0], len(self._losses) - WINDOW
        level = median(self._losses[-WINDOW:])
        self._levels.append(level)
        first = self._losses[0]  # measured before the first update
        lowest, at = min((first, 1), (self._best, self._best_step))
        rise = level - lowest
        if len(self._losses) < self._warm + WINDOW or rise <= max(GIVEN_BACK * (first - lowest), NOTABLE * abs(lowest)):
            return None
        before = self._losses[-WINDOW - NOISE_STEPS : -WINDOW]
        noise = _noise(before) if len(before) >= NOISE_FROM else _rough_noise(self._losses)
        if rise <= CHANCE * noise and min(self._losses[-WINDOW:]) < max(AGAIN * lowest, lowest + NAT):
            return None
        step, rate = int(record["step"]), self._rates[-1]
        began = step - len(self._losses) + at
        return Alarm(
            step,
            "diverging",
            f"the loss is {level:.3f} (median of {WINDOW} steps) and was {lowest:.3f} at step {began}, a rise of "
            f"{rise / max(noise, 1e-12):,.0f} times the noise of a step",
            f"most often the learning rate, {rate:g}, is too high",
            f"start again in another output_dir with learning_rate {rate / 3:.1g} or less, or with warmup_steps"
            + ("" if self._warm else " (there was no warm-up)"),
        )

    def _oscillating(self, record: Mapping[str, Any]) -> Alarm | None:
        if len(self._changes) < JUMPS:
            return None
        now = _quantile(self._changes)
        if now < TWOFOLD:
            return None
        usual = _quantile(self._usual) if len(self._usual) >= 2 * JUMPS else math.inf
        if now < min(EIGHTFOLD, AS_MUCH * usual):
            return None
        compared = f", against {math.exp(usual):.1f} times before" if now >= AS_MUCH * usual else ""
        return Alarm(
            int(record["step"]),
            "oscillating",
            f"every fourth of the last {JUMPS} steps changed the gradient norm {math.exp(now):.1f} times or more"
            f"{compared}",
            f"training is unstable, most often because the learning rate, {self._rates[-1]:g}, is near the highest "
            "that this model bears, or because a few samples are unlike the rest",
            f"try learning_rate {self._rates[-1] / 2:.1g} or so in another output_dir; 'sengi data ledger RUN --step "
            f"{int(record['step'])}' lists the samples of a step",
        )

    def _plateau(self, record: Mapping[str, Any]) -> Alarm | None:
        step, planned = int(record["step"]), self._planned
        if planned is None or step > EARLY * planned:
            return None
        stretch = max(STRETCH_STEPS, math.ceil(STRETCH * planned))
        if len(self._epochs) > 1 and (advance := self._epochs[-1] - self._epochs[-2]) > 0 and planned * advance > 1.5:
            stretch = max(stretch, math.ceil(1 / advance))  # within an epoch a flat loss is usual
        count = len(self._losses)
        if count < self._warm + WINDOW + stretch:
            return None
        if count % max(1, stretch // 8) == 0:  # sorting a long stretch at every step would cost more than it tells
            self._flat = self._flat_stretch(step, planned, stretch)
        return self._flat

    def _flat_stretch(self, step: int, planned: int, stretch: int) -> Alarm | None:
        """The alarm if the last ``stretch`` losses are flat beyond doubt."""
        inside = np.asarray(self._losses[-stretch:])
        start = median(self._losses[:3])
        begun = median(self._losses[-stretch - WINDOW : -stretch])
        third = stretch // 3
        fall = float(np.median(inside[:third]) - np.median(inside[-third:]))
        error = MEDIAN_ERROR * _noise(self._losses[-stretch:]) * math.sqrt(2 / third)
        if abs(fall) + SURE * error > max(FLAT * (start - begun), FLAT_LOSS * abs(begun)):
            return None
        cause, cure = self._why_flat(stretch)
        return Alarm(
            step,
            "plateau",
            f"over the last {stretch:,} steps the loss changed by {fall:+.4f} (from {np.median(inside[:third]):.4f}), "
            f"with {1 - step / planned:.0%} of the run to go",
            cause,
            cure,
        )

    def _why_flat(self, stretch: int) -> tuple[str, str]:
        """Cause and cure of a plateau, by how much of the gradient is noise."""
        squares, noises = np.asarray(self._norms[-stretch:]).T
        known = np.isfinite(noises)
        share = float(noises[known].mean() / squares[known].mean()) if known.sum() >= STRETCH_STEPS else math.nan
        larger = "a larger effective_batch_size ends higher where data and time allow it (arXiv 2412.13337, A.5.5)"
        if share >= MOSTLY:
            return (
                f"the batch is too small for what is left to learn: noise is {min(share, 1):.0%} of the squared norm "
                "of its gradient",
                larger + "; 'sengi plan RECIPE --probe 16' measures the batch size at which noise stops to matter",
            )
        measured = "" if math.isnan(share) else f"; noise is only {max(share, 0):.0%} of the squared gradient norm"
        return (
            "the batch may be too small, the rate too low, or the data learned" + measured,
            f"compare with a higher learning_rate; {larger}; or end here",
        )


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _noise(losses: list[float]) -> float:
    """Robust standard deviation of one loss around the trend."""
    differences = [b - a for a, b in itertools.pairwise(losses)]
    middle = median(differences)
    return TO_SD * median(abs(d - middle) for d in differences)


def _rough_noise(losses: list[float]) -> float:
    """The same from a few losses: not robust, because the median of a few differences may be next to nothing."""
    return math.sqrt(sum((b - a) ** 2 for a, b in itertools.pairwise(losses)) / (2 * (len(losses) - 1)))


def _quantile(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[int(FOURTH * len(ordered))]
