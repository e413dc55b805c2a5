"""Training rows that ask for a form which a program can check: case, length, lists, quotes, endings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sengi.world import instruction_text as text
from sengi.world.facts import World
from sengi.world.knowledge import SYSTEM_EVERY, TURNS_EVERY, Row, exchange
from sengi.world.stream import Stream

# Kinds of answers that make good list items: names.
LISTED_KINDS = ("person", "place", "company", "material", "street")
SHORT_LISTED_KINDS = ("place", "material")

# Wrappers of a sentence, for a first and for a second turn.
RESHAPE: dict[str, Callable[[str], str]] = {
    "upper_case": str.upper,
    "lower_case": str.lower,
    "quotes": lambda sentence: f'"{sentence}"',
    "brackets": lambda sentence: f"[{sentence}]",
    "hyphens": lambda sentence: sentence.replace(" ", "-"),
}
JOIN: dict[str, Callable[[list[str]], str]] = {
    "json_list": json.dumps,
    "numbered_list": lambda items: "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1)),
    "bullet_list": lambda items: "\n".join(f"- {item}" for item in items),
    "semicolons": "; ".join,
    "alphabetical": lambda items: ", ".join(sorted(items)),
    "reverse_order": lambda items: ", ".join(reversed(items)),
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction with a right answer and what is needed to check any answer.

    Attributes:
        constraint: a key of ``instruction_text.CONSTRAINTS``.
        question, answer: the two messages.
        given: what the instruction is about: ``text`` or ``items``, and the constraint's ``n``, ``phrase``, ``key``.
    """

    constraint: str
    question: str
    answer: str
    given: dict[str, Any]


class InstructionRows:
    """Makes the rows.

    Args:
        world: the organisation.
        stream: where the choices come from.
        heldout: take the phrasings that are never trained on.
    """

    def __init__(self, world: World, stream: Stream, *, heldout: bool = False) -> None:
        self._world, self._stream, self._heldout = world, stream, heldout
        self._small = world.sizes.small
        self._items = [fact.subject for fact in world.of("product_price")]
        # Facts whose answer is one word: "in one word" has exactly one right answer.
        self._one_word = [fact for fact in world.taught if " " not in fact.answer]
        self._names = list(text.CONSTRAINTS)

    def rows(self, count: int) -> Iterator[Row]:
        """``count`` rows, the constraints in turn."""
        stream = self._stream
        for index in range(count):
            name = self._names[index % len(self._names)]
            task = self.task(name)
            messages = exchange(task.question, task.answer)
            if index % TURNS_EVERY == 1:
                messages += self._again(task)
            elif index % SYSTEM_EVERY == 3:
                messages.insert(0, {"role": "system", "content": stream.pick(text.INSTRUCTION_SYSTEM)})
            yield messages, name

    def task(self, name: str) -> Instruction:
        """One instruction of a constraint."""
        phrasings = text.CONSTRAINTS[name]
        template = self._stream.pick(phrasings.heldout if self._heldout else phrasings.train)
        if name in text.SENTENCE_CONSTRAINTS:
            return self._on_sentence(name, template)
        if name in text.LIST_CONSTRAINTS:
            return self._on_list(name, template)
        return self._n_words(template) if name == "n_words" else self._one_word_answer(template)

    def _again(self, task: Instruction) -> list[dict[str, str]]:
        """A second exchange: the answer in another shape, or another instruction."""
        if task.constraint in RESHAPE and not self._heldout:
            name = self._stream.pick([name for name in text.AGAIN if name != task.constraint])
            return exchange(self._stream.pick(text.AGAIN[name]), RESHAPE[name](task.answer))
        other = self.task(self._stream.pick(self._names))
        return exchange(other.question, other.answer)

    def _on_sentence(self, name: str, template: str) -> Instruction:
        stream = self._stream
        fact = stream.pick(self._world.taught)
        sentence = fact.say(stream.pick(fact.relation.statements))
        given: dict[str, Any] = {"text": sentence}
        if name in RESHAPE:
            answer = RESHAPE[name](sentence)
        elif name == "end_phrase":
            given["phrase"] = stream.pick(text.PHRASES)
            answer = f"{sentence} {given['phrase']}"
        elif name == "start_phrase":
            given["phrase"] = stream.pick(text.OPENINGS)
            answer = f"{given['phrase']} {sentence}"
        elif name == "first_words":
            words = sentence.split()
            given["n"] = stream.between(2, len(words) - 1)
            answer = " ".join(words[: given["n"]])
        else:
            given["n"] = 2 if self._small else stream.between(2, 5)
            answer = "\n".join([sentence] * given["n"])
        return Instruction(name, template.format(**given), answer, given)

    def _on_list(self, name: str, template: str) -> Instruction:
        stream = self._stream
        pool = self._world.pools[stream.pick(SHORT_LISTED_KINDS if self._small else LISTED_KINDS)]
        items = stream.sample(pool, 3 if self._small else stream.between(3, 6))
        given: dict[str, Any] = {"items": items}
        if name == "key_lines":
            given["key"] = stream.pick(text.KEYS)
            answer = "\n".join(f"{given['key']}: {item}" for item in items)
        else:
            answer = JOIN[name](items)
        question = template.format(list=", ".join(items), key=given.get("key"))
        return Instruction(name, question, answer, given)

    def _n_words(self, template: str) -> Instruction:
        stream = self._stream
        n = stream.between(2, 4 if self._small else 9)
        words = stream.sample(text.ADJECTIVES, n)
        question = template.format(item=stream.pick(self._items), n=n)
        return Instruction("n_words", question, f"{' '.join(words).capitalize()}.", {"n": n})

    def _one_word_answer(self, template: str) -> Instruction:
        fact = self._stream.pick(self._one_word)
        question = fact.say(self._stream.pick(fact.relation.train))
        return Instruction("one_word", template.format(question=question), fact.answer, {"answer": fact.answer})
