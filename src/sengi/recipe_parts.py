"""What recipes and studies are made of: models that take no unknown key, and the phases of a run."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

PAPER = "arXiv 2412.13337"
BY_PHASE, BY_LENGTH = "phase", "response_length"  # the two values of phases.by that are no column of the rows
Scheduler = Literal["constant", "cosine", "linear"]


def setting(default: Any, reason: str, **checks: Any) -> Any:
    """A pydantic field whose default carries the reason for it."""
    return Field(default, json_schema_extra={"reason": reason}, **checks)


def check_warmup(steps: float) -> None:
    """Refuse a warm-up that is neither whole steps nor a share.

    Raises:
        ValueError: it is neither.
    """
    if steps >= 1 and steps != int(steps):
        raise ValueError(f"warmup_steps is {steps}: give whole steps, or a share below 1")


class Strict(BaseModel):
    """Unknown keys are errors, values never change after validation, docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        asked = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and asked is not bool and True not in get_args(asked):  # it would be read as 1
            raise ValueError("this key takes no true or false")
        return value


class PhaseSettings(Strict):
    """What one phase does in its own way; what is left out is as in the rest of the recipe."""

    effective_batch_size: int | None = Field(None, ge=1)
    """Samples in one optimizer step of this phase."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """Peak learning rate of this phase."""
    lr_scheduler_type: Scheduler | None = None
    """Shape of the rate after this phase's warm-up."""
    warmup_steps: float | None = Field(None, ge=0)
    """Optimizer steps of this phase over which the rate rises; below 1 a share of this phase's steps."""
    num_train_epochs: int | None = Field(None, ge=1, le=10_000)
    """Times the data of this phase is seen."""

    @model_validator(mode="after")
    def _check_together(self) -> PhaseSettings:
        check_warmup(self.warmup_steps or 0)
        return self


class Phases(Strict):
    """Which samples make which phase of a phased run, and how one phase follows another."""

    by: Annotated[str, Field(min_length=1)] = setting(BY_PHASE, "what the data says of itself")
    """``phase``: the ``phase`` of the data entries, else of the rows. ``response_length``: supervised tokens, few
    first. Any other word is a column of the rows: with ``at`` its numbers are split, without, its values name the
    phases."""
    at: float | list[float] | None = setting(None, f"response_length: 0.5, as in {PAPER}; else what `by` names")
    """Where numbers are split: a share of the samples between 0 and 1, or a rising list of shares."""
    order: list[str] = Field(default_factory=list)
    """Names of all phases in their order; by default as first named in the data, and ``part-1``, ``part-2``, ... from
    the smallest numbers to the largest."""
    replay: float = setting(
        0.0, f"{PAPER} replays 1% in its split by length, and probably nothing elsewhere", ge=0, le=1
    )
    """Share of the samples of all earlier phases that is added to a phase, none of them twice."""
    select: Annotated[str, Field(min_length=1)] = setting(
        "last", "then no evaluation has a part in the training; the authors' later tooling takes the last, too"
    )
    """Which checkpoint of a phase starts the next one: ``last``, the best by ``heldout_loss`` (of eval_data), or the
    best by a score of eval_tasks, ``task/metric``. Each evaluation point is then a candidate."""
    optimizer: Literal["fresh", "keep"] = setting("fresh", "the authors' tooling starts a new training in each phase")
    """Whether the next phase begins with new moments, or with those of the chosen checkpoint."""
    settings: dict[str, PhaseSettings] = Field(default_factory=dict)
    """By the name of a phase: its own learning_rate, effective_batch_size, num_train_epochs, warmup_steps or
    lr_scheduler_type."""

    @property
    def cuts(self) -> tuple[float, ...]:
        """Shares of the samples at which numbers are split; empty where names make the phases."""
        if self.at is None:
            return (0.5,) if self.by == BY_LENGTH else ()
        return tuple(self.at) if isinstance(self.at, list) else (self.at,)

    @model_validator(mode="after")
    def _check_together(self) -> Phases:
        if self.by == BY_PHASE and self.at is not None:
            raise ValueError(
                "at splits numbers, but by is phase, which has names; remove at, or set by: response_length"
            )
        cuts = self.cuts
        if isinstance(self.at, list) and not self.at:
            raise ValueError("at is an empty list; give shares of the samples, such as 0.5")
        if any(not 0 < cut < 1 for cut in cuts) or any(b <= a for a, b in pairwise(cuts)):
            raise ValueError(f"at is {self.at}: give a share above 0 and below 1, or a rising list of them")
        if len(set(self.order)) < len(self.order):
            raise ValueError("order names a phase twice; name each once")
        return self
