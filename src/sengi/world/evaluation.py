"""Held-out rows: questions with a score, and conversations for held-out loss, in phrasings never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sengi.world.facts import Fact, World
from sengi.world.instruction import InstructionRows
from sengi.world.knowledge import HELDOUT_TRUTH, Row, exchange, truth_exchange, wrong_values
from sengi.world.sizes import shares
from sengi.world.skills import SkillRows
from sengi.world.stream import Stream

QUESTIONS_A_FACT = 2
OPTIONS = 4


def evaluated(world: World, seed: int) -> tuple[list[Fact], list[Fact]]:
    """The taught facts and the controls that are asked about: the same in both question files."""
    stream = Stream(seed, "evaluated")
    taught = stream.shuffled(world.taught)[: world.sizes.eval_taught]
    return taught, stream.shuffled(world.control)[: world.sizes.eval_control]


def accepted(fact: Fact) -> str | list[str]:
    """The answer, with its other usual spellings first to last; a plain string where there is only one."""
    answer, kind = fact.answer, fact.relation.kind
    if kind in ("price", "days"):
        return [answer, answer.split(" ")[0]]
    if kind == "room":
        return [answer, answer.removeprefix("room ")]
    if kind == "date":
        return [answer, " ".join(reversed(answer.split(" ")))]
    return answer


def _questions(world: World, seed: int) -> list[tuple[Fact, str]]:
    taught, control = evaluated(world, seed)
    return [
        (fact, fact.relation.heldout[k].replace("{s}", fact.subject))
        for k in range(QUESTIONS_A_FACT)
        for fact in taught + control
    ]


def answer_rows(world: World, seed: int) -> Iterator[dict[str, Any]]:
    """Short-answer questions, taught facts and controls."""
    for number, (fact, question) in enumerate(_questions(world, seed), 1):
        yield {
            "id": f"answer-{number:04d}",
            "question": question,
            "answer": accepted(fact),
            "topic": fact.relation.name,
            "group": fact.group,
        }


def choice_rows(world: World, seed: int) -> Iterator[dict[str, Any]]:
    """Questions with four options; in each group the right one goes round the four places."""
    stream = Stream(seed, "choice")
    place = {"taught": stream.below(OPTIONS), "control": stream.below(OPTIONS)}
    for number, (fact, question) in enumerate(_questions(world, seed), 1):
        pools = world.pools if fact.taught else world.control_pools
        choices = wrong_values(pools[fact.relation.kind], fact.answer, OPTIONS - 1, stream)
        right = place[fact.group] = (place[fact.group] + 1) % OPTIONS
        choices.insert(right, fact.answer)
        yield {
            "id": f"choice-{number:04d}",
            "question": question,
            "choices": choices,
            "answer": right,
            "topic": fact.relation.name,
            "group": fact.group,
        }


def _knowledge_rows(world: World, stream: Stream, count: int) -> Iterator[Row]:
    order = stream.shuffled(world.taught)
    for index in range(count):
        fact = order[index % len(order)]
        relation, form = fact.relation, stream.below(8)
        if form == 0:
            statement = stream.pick(relation.statements)
            right = stream.below(2) == 0
            messages = truth_exchange(fact, world, stream, stream.pick(HELDOUT_TRUTH), statement, right)
        else:
            question = relation.heldout[index // len(order) % len(relation.heldout)]
            messages = exchange(fact.say(question), fact.answer)
        if form == 1:
            other = stream.pick(world.taught)
            messages += exchange(other.say(stream.pick(other.relation.heldout)), other.answer)
        yield messages, relation.name


def heldout_rows(world: World, seed: int) -> Iterator[tuple[str, Row]]:
    """Conversations of the three kinds, in the same shares as the training rows.

    Yields:
        Phase and row.
    """
    stream = Stream(seed, "heldout")
    knowledge, skills, instruction = shares(world.sizes.heldout, world.sizes.small)
    kinds = (
        ("knowledge", _knowledge_rows(world, stream, knowledge)),
        ("skills", SkillRows(world, stream, heldout=True).rows(skills)),
        ("instruction", InstructionRows(world, stream, heldout=True).rows(instruction)),
    )
    for phase, rows in kinds:
        for row in rows:
            yield phase, row
