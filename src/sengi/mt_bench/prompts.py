"""What the judge is shown: FastChat's prompt for single answer grading, filled in."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sengi.data.rows import show
from sengi.errors import DataError

_REFERENCE_FIELDS = frozenset({"ref_answer_1", "ref_answer_2"})
_FIELDS = {
    1: frozenset({"question", "answer"}),
    2: frozenset({"question_1", "question_2", "answer_1", "answer_2"}),
}


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A judge prompt.

    Attributes:
        name: FastChat's name, for example ``single-math-v1-multi-turn``.
        system: the system message.
        template: the user message with fields in braces.
    """

    name: str
    system: str
    template: str

    def fill(self, turns: Sequence[str], answers: Sequence[str], reference: Sequence[str] | None) -> str:
        """The user message for the judge.

        Args:
            turns: both user turns.
            answers: both answers of the model; a prompt for turn 1 shows the first only.
            reference: both reference answers, where the prompt has a place for them.
        """
        values = {"question": turns[0], "answer": answers[0]}
        for number, (turn, answer) in enumerate(zip(turns, answers, strict=True), 1):
            values |= {f"question_{number}": turn, f"answer_{number}": answer}
        for number, text in enumerate(reference or (), 1):
            values[f"ref_answer_{number}"] = text
        # Joined by hand: str.format on a template from a file can reach attributes and make gigabytes of padding.
        pieces = string.Formatter().parse(self.template)
        return "".join(text + (values[field] if field is not None else "") for text, field, _, _ in pieces)

    def messages(self, user_prompt: str) -> list[dict[str, str]]:
        """The conversation that is sent to the judge."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": user_prompt}]


def prompt_name(with_reference: bool, turn: int) -> str:
    """FastChat's name of the prompt for a turn (1 or 2).

    >>> prompt_name(True, 2)
    'single-math-v1-multi-turn'
    """
    return ("single-math-v1" if with_reference else "single-v1") + ("-multi-turn" if turn == 2 else "")


def parse_judge_prompt(row: dict[str, Any], place: str) -> JudgePrompt:
    """Turn a row of ``judge_prompts.jsonl`` into a prompt.

    Args:
        row: of type ``single`` with output format ``[[rating]]``.
        place: ``file:line``, for messages.

    Raises:
        DataError: a key is missing, or the template has other fields than FastChat fills.
    """
    name = str(row.get("name"))
    for key in ("system_prompt", "prompt_template"):
        if not isinstance(row.get(key), str):
            raise DataError(f"{place}: {key}: {show(row.get(key))} where a text is needed; take FastChat's row {name}")
    if row.get("type") != "single" or row.get("output_format") != "[[rating]]":
        raise DataError(f"{place}: {name}: needs type single and output_format [[rating]]; take FastChat's row")
    prompt = JudgePrompt(name, row["system_prompt"], row["prompt_template"])
    _check_fields(prompt, place)
    return prompt


def _check_fields(prompt: JudgePrompt, place: str) -> None:
    known = _FIELDS[2 if prompt.name.endswith("-multi-turn") else 1]
    with_reference = prompt.name.startswith("single-math-")
    try:
        pieces = list(string.Formatter().parse(prompt.template))
    except ValueError as error:
        raise DataError(f"{place}: prompt_template: {error}; write a brace that is no field twice") from None
    fields = set()
    for _, field, specification, conversion in pieces:
        if field is None:
            continue
        allowed = field in known or (with_reference and field in _REFERENCE_FIELDS)
        if not allowed or specification or conversion:
            names = ", ".join(sorted(known | (_REFERENCE_FIELDS if with_reference else frozenset())))
            raise DataError(f"{place}: prompt_template: {{{field}}} is no field of {prompt.name}; it has {names}")
        fields.add(field)
    if missing := known - fields:
        raise DataError(f"{place}: prompt_template: lacks {', '.join(sorted(missing))}; the judge would not see it")
