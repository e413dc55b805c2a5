"""Training rows that state the organisation's facts, each fact in many forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sengi.world.facts import Fact, World
from sengi.world.stream import Stream

Row = tuple[list[dict[str, str]], str]
"""Messages and topic of one row."""

SYSTEM_MESSAGES = (
    "You work for {org}.",
    "You are the assistant of {org}.",
    "Answer questions about {org}.",
    "You know {org} well. Be brief.",
    "You answer the help line of {org}.",
    "Short answers only.",
)
TRUTH = (
    ("True or false? {st}", "True.", "False, it is {a}."),
    ("Is this right? {st}", "Yes.", "No, it is {a}."),
    ("Right or wrong? {st}", "Right.", "Wrong, it is {a}."),
    ("Please check: {st}", "Correct.", "Not correct, it is {a}."),
)
HELDOUT_TRUTH = (
    ("Does this hold? {st}", "Yes.", "No, it is {a}."),
    ("Correct or not? {st}", "Correct.", "Not correct, it is {a}."),
)
COMPLETE = ("Complete: {start}", "Finish the sentence: {start}", "Fill in the end: {start}")

# In the other two kinds of rows, how often one has a second exchange, or a system message. Prime numbers meet all
# tasks in turn.
TURNS_EVERY, SYSTEM_EVERY = 7, 23

# At most this many plain questions a fact; the other forms share the remaining rows in this order.
MAX_DIRECT = 8
OTHER_FORMS = ("turns", "choice", "truth", "reverse", "turns", "system", "complete")


def exchange(question: str, answer: str) -> list[dict[str, str]]:
    """A question and its answer, as two messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def system(world: World, stream: Stream) -> dict[str, str]:
    """One of the system messages, for this organisation."""
    return {"role": "system", "content": stream.pick(SYSTEM_MESSAGES).replace("{org}", world.organisation)}


def wrong_values(pool: tuple[str, ...], answer: str, count: int, stream: Stream) -> list[str]:
    """``count`` different values of a pool, none of them the answer."""
    return [value for value in stream.sample(pool, count + 1) if value != answer][:count]


def truth_exchange(
    fact: Fact, world: World, stream: Stream, form: tuple[str, str, str], statement: str, true: bool
) -> list[dict[str, str]]:
    """A statement to check; a wrong one is answered with the right value."""
    question, yes, no = form
    if true:
        return exchange(question.replace("{st}", fact.say(statement)), yes)
    wrong = wrong_values(world.pools[fact.relation.kind], fact.answer, 1, stream)[0]
    claim = statement.replace("{s}", fact.subject).replace("{a}", wrong)
    return exchange(question.replace("{st}", claim), fact.say(no))


class KnowledgeRows:
    """Makes the rows; ``slot`` numbers the rows about one fact, and no two slots of a fact are the same row.

    Args:
        world: the organisation.
        stream: where the choices come from.
    """

    def __init__(self, world: World, stream: Stream) -> None:
        self._world = world
        self._stream = stream
        self._forms: dict[str, Callable[[Fact, int], list[dict[str, str]]]] = {
            "turns": self._turns,
            "choice": self._choice,
            "truth": self._truth,
            "reverse": self._reverse,
            "system": self._system,
            "complete": self._complete,
        }

    def rows(self) -> Iterator[Row]:
        """All knowledge rows of the world: rounds over the facts, each round in its own order."""
        facts, left = self._world.taught, self._world.sizes.knowledge
        rounds = -(-left // len(facts))
        direct = min(MAX_DIRECT, rounds - 2)
        for turn in range(rounds):
            order = self._stream.shuffled(range(len(facts)))
            for index in order[:left]:
                # Facts start at different slots: every stretch of the file has every form.
                slot = (turn + index * 3) % rounds
                yield self._row(facts[index], index, slot, direct), facts[index].relation.name
            left -= len(facts)

    def _row(self, fact: Fact, index: int, slot: int, direct: int) -> list[dict[str, str]]:
        if slot < direct:
            return exchange(self._question(fact, index + slot), fact.answer)
        form = OTHER_FORMS[(slot - direct + index) % len(OTHER_FORMS)]
        return self._forms[form](fact, index + slot)

    @staticmethod
    def _question(fact: Fact, variant: int) -> str:
        train = fact.relation.train
        return train[variant % len(train)].replace("{s}", fact.subject)

    def _turns(self, fact: Fact, variant: int) -> list[dict[str, str]]:
        """Two exchanges, in larger worlds also three: more about the same subject, then another one."""
        stream = self._stream
        messages = exchange(self._question(fact, variant), fact.answer)
        siblings = [other for other in self._world.about[fact.subject] if other is not fact]
        if siblings:
            other = stream.pick(siblings)
            messages += exchange(stream.pick(other.relation.followups), other.answer)
        if not siblings or (not self._world.sizes.small and stream.below(3) == 0):
            other = next(pick for pick in stream.sample(self._world.taught, 2) if pick is not fact)
            messages += exchange(self._question(other, stream.below(99)), other.answer)
        return messages

    def _choice(self, fact: Fact, variant: int) -> list[dict[str, str]]:
        """The question with options: two in the question itself, or four lettered lines in larger worlds."""
        stream = self._stream
        question = self._question(fact, variant)
        short = self._world.sizes.small or stream.below(2) == 0
        wrong = wrong_values(self._world.pools[fact.relation.kind], fact.answer, 1 if short else 3, stream)
        options = stream.shuffled([fact.answer, *wrong])
        if short:
            return exchange(f"{question} {options[0]} or {options[1]}?", fact.answer)
        lines = [f"{letter}) {option}" for letter, option in zip("ABCD", options, strict=True)]
        return exchange("\n".join([question, *lines]), lines[options.index(fact.answer)])

    def _truth(self, fact: Fact, variant: int) -> list[dict[str, str]]:
        statement = fact.relation.statements[self._stream.below(2)]
        form = TRUTH[variant % len(TRUTH)]
        return truth_exchange(fact, self._world, self._stream, form, statement, self._stream.below(2) == 0)

    def _reverse(self, fact: Fact, variant: int) -> list[dict[str, str]]:
        """From the answer to the subject, where only one subject fits."""
        reverse = fact.relation.reverse
        if not reverse:
            return self._turns(fact, variant)
        return exchange(reverse[variant % len(reverse)].replace("{a}", fact.answer), fact.subject)

    def _system(self, fact: Fact, variant: int) -> list[dict[str, str]]:
        question = exchange(self._question(fact, variant), fact.answer)
        return [system(self._world, self._stream), *question]

    def _complete(self, fact: Fact, variant: int) -> list[dict[str, str]]:
        """The start of a statement that ends with the answer."""
        statement = next(text for text in fact.relation.statements if text.endswith(" {a}."))
        start = statement.removesuffix(" {a}.").replace("{s}", fact.subject)
        return exchange(COMPLETE[variant % len(COMPLETE)].replace("{start}", start), fact.answer)
