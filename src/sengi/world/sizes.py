"""How many rows and facts a world of N samples has: the arithmetic, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from sengi.errors import InputError

MIN_SAMPLES = 100
MAX_SAMPLES = 1_000_000

# Below this a world is a demonstration: few facts, short rows, most rows about the facts, so that a few
# minutes on a CPU teach them.
SMALL = 1_000

# Percent of the training rows. Knowledge takes what is left.
SKILLS_PERCENT, INSTRUCTION_PERCENT = 30, 20
SMALL_SKILLS_PERCENT, SMALL_INSTRUCTION_PERCENT = 15, 15

# Rows about one fact, by the least number of samples. A fact has about 40 renderings without a repetition, so
# the number stays well below that; at the small end a fact needs at least five questions to be learned.
ROWS_A_FACT = ((100_000, 20), (10_000, 16), (SMALL, 10), (MIN_SAMPLES, 7))

MAX_CONTROL = 200
MAX_EVAL_TAUGHT = 250
MAX_EVAL_CONTROL = 100
MIN_HELDOUT, MAX_HELDOUT = 30, 1_500


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts of one world.

    Attributes:
        knowledge, skills, instruction: training rows by phase; they add up to the samples asked for.
        taught: facts that the training rows state.
        control: facts that no training row states.
        eval_taught, eval_control: facts asked about in the evaluation files, two questions each.
        heldout: conversations for held-out loss.
        small: short rows only.
    """

    knowledge: int
    skills: int
    instruction: int
    taught: int
    control: int
    eval_taught: int
    eval_control: int
    heldout: int
    small: bool

    @property
    def samples(self) -> int:
        """Training rows in all."""
        return self.knowledge + self.skills + self.instruction


def shares(rows: int, small: bool) -> tuple[int, int, int]:
    """Split rows into (knowledge, skills, instruction); the three add up to ``rows``."""
    skills = rows * (SMALL_SKILLS_PERCENT if small else SKILLS_PERCENT) // 100
    instruction = rows * (SMALL_INSTRUCTION_PERCENT if small else INSTRUCTION_PERCENT) // 100
    return rows - skills - instruction, skills, instruction


def sizes_for(samples: int) -> Sizes:
    """All counts of a world of ``samples`` training rows.

    Raises:
        InputError: ``samples`` is out of range.
    """
    if not MIN_SAMPLES <= samples <= MAX_SAMPLES:
        raise InputError(
            f"--samples {samples}: a world has {MIN_SAMPLES} to {MAX_SAMPLES:,} samples; set --samples in that range"
        )
    small = samples < SMALL
    knowledge, skills, instruction = shares(samples, small)
    rows_a_fact = next(rows for least, rows in ROWS_A_FACT if samples >= least)
    taught = knowledge // rows_a_fact
    control = min(MAX_CONTROL, taught * 2 // 5)
    return Sizes(
        knowledge=knowledge,
        skills=skills,
        instruction=instruction,
        taught=taught,
        control=control,
        eval_taught=min(MAX_EVAL_TAUGHT, taught),
        eval_control=min(MAX_EVAL_CONTROL, control),
        heldout=min(MAX_HELDOUT, max(MIN_HELDOUT, samples // 10)),
        small=small,
    )
