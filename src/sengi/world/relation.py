"""A relation: one kind of fact, with every way in which it is said and asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact about one type of thing. ``{s}`` stands for the subject, ``{a}`` for the answer.

    Attributes:
        name: identifier, the ``topic`` of its rows.
        subject: type of thing that it is about, a key of ``facts.SUBJECT_TYPES``.
        kind: kind of answer; facts of one kind lend each other their wrong options.
        field: the relation as a JSON key.
        train: questions used in the training files, at least eight.
        heldout: questions used in the evaluation files only, at least two.
        followups: questions that refer to the subject as "it" or "they", for a later turn.
        statements: sentences that state the fact.
        reverse: questions for the subject, given the answer; empty where the answer does not fix it.
    """

    name: str
    subject: str
    kind: str
    field: str
    train: tuple[str, ...]
    heldout: tuple[str, ...]
    followups: tuple[str, ...]
    statements: tuple[str, ...]
    reverse: tuple[str, ...] = ()
