"""What a data check can find: each reason with its severity, its sentence and its cure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LISTED = 20  # rows named for each reason; all are counted

Severity = Literal["error", "warning"]

# Reasons that only warn: the run leaves such rows out or uses them as they are, and counts them.
WARNINGS = {
    "no_assistant_turn": "no assistant message; left out. Add the answer, or set unmask: true",
    "empty_messages": "no message at all; left out",
    "empty_text": "an empty document; left out",
    "no_supervised_token": "no supervised token; left out. Check train flags",
    "empty_answer": "an answer without a word is trained on: the model learns to say nothing and stop. Delete the row, "
    "or set train: false on that message",
    "overlong_drop": "longer than max_length={max_length}; left out. Raise max_length or split them",
    "overlong_truncate": "longer than max_length={max_length}; cut, and the closing token goes with the rest, "
    "so they teach the model not to stop. Raise max_length or set overlong: drop",
    "truncated_no_supervised_token": "no supervised token before the cut at max_length={max_length}; left out",
    "closing_token_outside_mask": "the token that ends the answer is not supervised; the model may not learn "
    "to stop. Report the chat template",
    "no_closing_token": "the last supervised token is no special token: this chat template ends turns with "
    "plain text, and generation must stop on it",
    "round_trip": "its ids are not those of the chat template at inference: the model would learn another text than "
    "it meets. Report the chat template",
    "duplicate": "the same conversation as an earlier row. Delete one, unless repetition is meant",
    "overlap": "shares a question or 13 words in a row with an evaluation file. Delete them, or the scores "
    "are worth nothing",
    "batch_larger_than_data": "fewer samples than effective_batch_size: every epoch is one short step. Lower "
    "effective_batch_size",
}
ERRORS = {
    "unreadable_file": "the file cannot be read to its end",
    "overlong_error": "longer than max_length={max_length}, and overlong is error. Raise max_length, or set "
    "overlong to drop or truncate",
    "over_budget": "longer than max_tokens_per_device. Raise max_tokens_per_device or lower max_length",
    "nothing_left": "no row can be trained on. Mend the errors above or use other data",
}


@dataclass(slots=True)
class Finding:
    """One reason and where it was met.

    Attributes:
        severity: ``"error"`` (a run refuses this data) or ``"warning"``.
        reason: a short fixed name.
        message: what it means and what to do.
        count: how often it was met.
        rows: the first 20 places, ``file:row``.
    """

    severity: Severity
    reason: str
    message: str
    count: int = 0
    rows: list[str] = field(default_factory=list)


class Findings:
    """Counts places by reason.

    Args:
        max_length: named in messages.
    """

    def __init__(self, max_length: int) -> None:
        self._max_length = f"{max_length:,}"
        self._found: dict[str, Finding] = {}

    def add(
        self, reason: str, place: str | None = None, message: str = "", severity: Severity | None = None, count: int = 1
    ) -> None:
        """Count a place under a reason.

        Args:
            reason: a key of ``WARNINGS`` or ``ERRORS``, or a name of its own.
            place: where, or None for more of the same without a name.
            message: the sentence for a reason of its own (the first one stays).
            severity: for a reason of its own; an error where nothing is said.
            count: how many.
        """
        finding = self._found.get(reason)
        if finding is None:
            text = (WARNINGS.get(reason) or ERRORS.get(reason) or message).replace("{max_length}", self._max_length)
            severity = severity or ("warning" if reason in WARNINGS else "error")
            finding = self._found[reason] = Finding(severity, reason, text)
        finding.count += count
        if place is not None and len(finding.rows) < LISTED:
            finding.rows.append(place)

    def sorted(self) -> list[Finding]:
        """Return the findings: errors first, then by count."""
        return sorted(self._found.values(), key=lambda finding: (finding.severity != "error", -finding.count))
