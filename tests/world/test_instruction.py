from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from sengi.world.facts import build_world
from sengi.world.instruction import Instruction, InstructionRows
from sengi.world.instruction_text import CONSTRAINTS
from sengi.world.sizes import sizes_for
from sengi.world.stream import Stream

DRAWS = 80


def is_numbered(task: Instruction) -> bool:
    lines = task.answer.splitlines()
    return [line.split(". ", 1) for line in lines] == [[str(n), x] for n, x in enumerate(task.given["items"], 1)]


# What each constraint asks, said a second time and otherwise than in the generator.
CHECKS: dict[str, Callable[[Instruction], bool]] = {
    "upper_case": lambda t: not any(c.islower() for c in t.answer) and t.answer.lower() == t.given["text"].lower(),
    "lower_case": lambda t: not any(c.isupper() for c in t.answer) and t.answer.lower() == t.given["text"].lower(),
    "quotes": lambda t: t.answer[0] == t.answer[-1] == '"' and t.answer[1:-1] == t.given["text"],
    "brackets": lambda t: (t.answer[0], t.answer[-1]) == ("[", "]") and t.answer[1:-1] == t.given["text"],
    "hyphens": lambda t: " " not in t.answer and len(t.answer) == len(t.given["text"]),
    "end_phrase": lambda t: t.answer.endswith(t.given["phrase"]) and t.given["text"] in t.answer,
    "start_phrase": lambda t: t.answer.startswith(t.given["phrase"]) and t.given["text"] in t.answer,
    "first_words": lambda t: len(t.answer.split()) == t.given["n"] and t.given["text"].startswith(t.answer + " "),
    "repeat": lambda t: t.answer.splitlines().count(t.given["text"]) == t.given["n"] == len(t.answer.splitlines()),
    "json_list": lambda t: json.loads(t.answer) == t.given["items"],
    "numbered_list": is_numbered,
    "bullet_list": lambda t: (
        [line[:2] + line[2:] for line in t.answer.splitlines()] == ["- " + item for item in t.given["items"]]
    ),
    "semicolons": lambda t: t.answer.split("; ") == t.given["items"],
    "alphabetical": lambda t: t.answer.split(", ") == sorted(t.given["items"]),
    "reverse_order": lambda t: t.answer.split(", ") == t.given["items"][::-1],
    "key_lines": lambda t: t.answer.splitlines() == [f"{t.given['key']}: {item}" for item in t.given["items"]],
    "n_words": lambda t: len(set(t.answer.lower().strip(".").split())) == len(t.answer.split()) == t.given["n"],
    "one_word": lambda t: len(t.answer.split()) == 1,
}


def test_there_are_many_constraints_each_with_held_out_phrasings() -> None:
    assert set(CHECKS) == set(CONSTRAINTS)
    assert len(CONSTRAINTS) >= 10
    for phrasings in CONSTRAINTS.values():
        assert len(phrasings.train) >= 4
        assert len(phrasings.heldout) >= 2
        assert set(phrasings.train).isdisjoint(phrasings.heldout)


@pytest.mark.parametrize("samples", [200, 3_000])
@pytest.mark.parametrize("heldout", [False, True])
@pytest.mark.parametrize("name", list(CONSTRAINTS))
def test_answers_keep_their_constraint(name: str, heldout: bool, samples: int) -> None:
    rows = InstructionRows(build_world(sizes_for(samples), 2), Stream(3, "test"), heldout=heldout)
    for _ in range(DRAWS):
        task = rows.task(name)
        assert CHECKS[name](task), task
        # The instruction says all that the check needs.
        for key in ("text", "phrase", "n", "key"):
            assert str(task.given.get(key, "")) in task.question
        for item in task.given.get("items", ()):
            assert item in task.question


def test_a_second_turn_reshapes_the_first_answer() -> None:
    rows = InstructionRows(build_world(sizes_for(3_000), 2), Stream(3, "test"))
    reshaped = 0
    for messages, topic in rows.rows(600):
        turns = [m["content"] for m in messages if m["role"] != "system"]
        if topic in ("upper_case", "lower_case", "hyphens") and len(turns) == 4:
            first, again, second = turns[1:]
            if "quotes" in again:
                assert second == f'"{first}"'
                reshaped += 1
            if "brackets" in again:
                assert second == f"[{first}]"
                reshaped += 1
    assert reshaped > 0
