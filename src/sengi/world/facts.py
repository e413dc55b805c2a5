"""The organisation itself: its things, the facts about them, and which facts are never taught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sengi.world.names import NameMaker
from sengi.world.relation import Relation
from sengi.world.relations_people import RELATIONS_OF_PEOPLE
from sengi.world.relations_things import RELATIONS_OF_THINGS
from sengi.world.sizes import Sizes
from sengi.world.stream import Stream

RELATIONS: tuple[Relation, ...] = RELATIONS_OF_THINGS + RELATIONS_OF_PEOPLE
SUBJECT_TYPES = ("product", "office", "product", "person", "policy", "department", "project")
CONTROL_TYPES = ("office", "person", "product", "policy", "department", "project")

# fmt: off
PRODUCT_NOUNS = (
    "lamp", "kettle", "chair", "drill", "scarf", "tent", "pump", "radio", "clock", "stove", "ladder",
    "cart", "kayak", "heater", "camera", "mixer", "basket", "helmet", "pillow", "printer",
)
POLICY_NOUNS = (
    "travel", "leave", "expense", "repair", "visitor", "storage", "safety", "parking", "refund",
    "training", "loan", "gift", "laptop", "archive", "catering", "key",
)
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)
# fmt: on
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"

# Wrong options and list items come from pools of at least this many values.
SMALL_POOL, POOL = 8, 40
UNIT = "crowns"


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: in this relation, this subject has this answer and no other.

    Attributes:
        id: ``fact-`` and a number; controls count on after the taught ones.
        relation: what is said.
        subject, answer: fill ``{s}`` and ``{a}`` of the relation's phrasings.
        taught: False for a control, whose subject occurs in no training row at all.
    """

    id: str
    relation: Relation
    subject: str
    answer: str
    taught: bool

    def say(self, template: str) -> str:
        """The template with subject and answer filled in."""
        return template.replace("{s}", self.subject).replace("{a}", self.answer)

    @property
    def number(self) -> int:
        """The answer as an integer, for prices and years."""
        return int(self.answer.split(" ", 1)[0])

    @property
    def group(self) -> str:
        """``taught`` or ``control``, as the evaluation files say it."""
        return "taught" if self.taught else "control"


@dataclass(frozen=True, slots=True)
class World:
    """A fictional organisation.

    Attributes:
        organisation: its name.
        sizes: its counts.
        taught, control: the facts; the facts of one subject stand side by side.
        about: the taught facts of each subject.
        pools: by kind of answer, values for wrong options and lists in training and in questions about taught
            facts: all taught answers of the kind, filled up with values that belong to no fact.
        control_pools: the same for questions about controls, from values that no training row has, so that no
            option of a control question is more familiar than another.
    """

    organisation: str
    sizes: Sizes
    taught: tuple[Fact, ...]
    control: tuple[Fact, ...]
    about: dict[str, tuple[Fact, ...]]
    pools: dict[str, tuple[str, ...]]
    control_pools: dict[str, tuple[str, ...]]

    def of(self, relation: str) -> list[Fact]:
        """The taught facts of one relation."""
        return [fact for fact in self.taught if fact.relation.name == relation]


class _Builder:
    """Draws subjects and answers; one for the whole world, so that no name is given twice."""

    def __init__(self, seed: int, sizes: Sizes) -> None:
        self.sizes = sizes
        self.stream = Stream(seed, "facts")
        self.make = NameMaker(Stream(seed, "names"), short=sizes.small)
        stream, make = self.stream, self.make
        top_price = 99 if sizes.small else 480
        self._draw: dict[str, Callable[[], str]] = {
            "person": make.person,
            "place": lambda: make.word("place"),
            "street": make.street,
            "company": make.company,
            "department": lambda: make.word("department"),
            "material": lambda: make.word("material").lower(),
            "price": lambda: f"{stream.between(11, top_price)} {UNIT}",
            "year": lambda: str(stream.between(1921, 2019)),
            "date": lambda: f"{stream.between(1, 28)} {stream.pick(MONTHS)}",
            "number": lambda: make.unused_number(1_001, 9_989),
            "room": lambda: make.unused_number(101, 989, "room "),
            "code": lambda: make.unused_number(101, 989, f"{stream.pick(LETTERS)}{stream.pick(LETTERS)}-"),
            "days": lambda: f"{stream.between(3, 120)} days",
            "product": lambda: f"{make.word('product')} {stream.pick(PRODUCT_NOUNS)}",
            "office": lambda: make.word("place"),
            "policy": lambda: f"{make.word('policy')} {stream.pick(POLICY_NOUNS)}",
            "project": lambda: make.word("project"),
        }

    def value(self, kind: str) -> str:
        """A fresh value of a kind of answer or a type of subject."""
        return self._draw[kind]()

    def group(self, types: tuple[str, ...], count: int, taught: bool, first_id: int) -> tuple[Fact, ...]:
        """``count`` facts about new subjects, whose types go round ``types``."""
        wanted: list[tuple[Relation, str]] = []
        turn = 0
        while len(wanted) < count:
            kind = types[turn % len(types)]
            subject = self.value(kind)
            wanted += [(relation, subject) for relation in RELATIONS if relation.subject == kind]
            turn += 1
        wanted = wanted[:count]
        people = list(dict.fromkeys(s for relation, s in wanted if relation.subject == "person"))
        departments = list(dict.fromkeys(s for relation, s in wanted if relation.subject == "department"))
        # In a small world a person holds one post at most, else one name would be the answer to everything.
        shared = self.stream.shuffled(people)
        free = {
            relation.name: shared if self.sizes.small else self.stream.shuffled(people)
            for relation in RELATIONS
            if relation.kind == "person"
        }
        facts = []
        for index, (relation, subject) in enumerate(wanted):
            # Half of the posts are held by people of whom more is known: the stuff of two-step questions.
            if relation.kind == "person" and free[relation.name] and self.stream.below(2):
                answer = free[relation.name].pop()
            elif relation.kind == "department" and departments:
                answer = self.stream.pick(departments)
            else:
                answer = self.value(relation.kind)
            facts.append(Fact(f"fact-{first_id + index:06d}", relation, subject, answer, taught))
        return tuple(facts)

    def pools(self, facts: tuple[Fact, ...]) -> dict[str, tuple[str, ...]]:
        """The facts' answers by kind, filled up to the least size of a pool."""
        least = SMALL_POOL if self.sizes.small else POOL
        pools: dict[str, dict[str, None]] = {relation.kind: {} for relation in RELATIONS}
        for fact in facts:
            pools[fact.relation.kind][fact.answer] = None
        for kind, values in pools.items():
            while len(values) < least:
                values[self.value(kind)] = None
        return {kind: tuple(values) for kind, values in pools.items()}


def build_world(sizes: Sizes, seed: int) -> World:
    """The organisation of a seed.

    Args:
        sizes: its counts, see :func:`sengi.world.sizes.sizes_for`.
        seed: the seed.
    """
    builder = _Builder(seed, sizes)
    organisation = builder.make.company()
    taught = builder.group(SUBJECT_TYPES, sizes.taught, taught=True, first_id=1)
    control = builder.group(CONTROL_TYPES, sizes.control, taught=False, first_id=sizes.taught + 1)
    about: dict[str, list[Fact]] = {}
    for fact in taught:
        about.setdefault(fact.subject, []).append(fact)
    return World(
        organisation=organisation,
        sizes=sizes,
        taught=taught,
        control=control,
        about={subject: tuple(facts) for subject, facts in about.items()},
        pools=builder.pools(taught),
        control_pools=builder.pools(control),
    )
