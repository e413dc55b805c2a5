"""Training rows that compose the facts: arithmetic in steps, comparison, sorting, extraction to JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from sengi.world import skills_text as text
from sengi.world.facts import UNIT, Fact, World
from sengi.world.knowledge import SYSTEM_EVERY, TURNS_EVERY, Row, exchange
from sengi.world.stream import Stream

Exchange = tuple[str, str]
"""A question and its answer."""


class SkillRows:
    """Makes the rows.

    Args:
        world: the organisation.
        stream: where the choices come from.
        heldout: take the phrasings that are never trained on.
    """

    def __init__(self, world: World, stream: Stream, *, heldout: bool = False) -> None:
        self._world, self._stream, self._heldout = world, stream, heldout
        self._small = world.sizes.small
        self._priced = world.of("product_price")
        self._items = [fact.subject for fact in self._priced]
        self._dated = world.of("office_year")
        self._people, self._places = world.pools["person"], world.pools["place"]
        self._bought = self._priced[0]
        self._chains = two_step_chains(world)
        self._tasks: dict[str, Callable[[str], Exchange]] = {
            name: getattr(self, f"_{name}") for name in text.SKILLS if name != "two_steps" or self._chains
        }
        self._names = list(self._tasks)

    def rows(self, count: int) -> Iterator[Row]:
        """``count`` rows, the tasks in turn."""
        stream = self._stream
        for index in range(count):
            name = self._names[index % len(self._names)]
            messages = exchange(*self.task(name))
            if index % TURNS_EVERY == 1:
                messages += self._again(name)
            elif index % SYSTEM_EVERY == 3:
                messages.insert(0, {"role": "system", "content": stream.pick(text.SKILLS_SYSTEM)})
            yield messages, name

    def task(self, name: str) -> Exchange:
        """One question of a task, with its answer."""
        phrasings = text.SKILLS[name]
        return self._tasks[name](self._stream.pick(phrasings.heldout if self._heldout else phrasings.train))

    def _again(self, name: str) -> list[dict[str, str]]:
        """A second exchange: the same product in another number, or another task."""
        if name == "cost" and not self._heldout:
            n, price = self._count(), self._bought.number
            question = self._stream.pick(text.COST_AGAIN).format(n=n)
            return exchange(question, f"{n} x {price} = {n * price} {UNIT}")
        return exchange(*self.task(self._stream.pick(self._names)))

    def _count(self) -> int:
        return self._stream.between(2, 9 if self._small else 60)

    def _two(self) -> list[Fact]:
        return self._stream.sample(self._priced, 2)

    def _cost(self, template: str) -> Exchange:
        fact, n = self._stream.pick(self._priced), self._count()
        self._bought = fact
        return template.format(n=n, items=f"{fact.subject}s"), f"{n} x {fact.number} = {n * fact.number} {UNIT}"

    def _order_total(self, template: str) -> Exchange:
        a, b = self._two()
        n, m = self._count(), self._count()
        first, second = n * a.number, m * b.number
        question = template.format(n=n, items=f"{a.subject}s", m=m, others=f"{b.subject}s")
        steps = f"{n} x {a.number} = {first}. {m} x {b.number} = {second}. "
        return question, f"{steps}{first} + {second} = {first + second} {UNIT}"

    def _change(self, template: str) -> Exchange:
        fact, n = self._stream.pick(self._priced), self._count()
        cost = n * fact.number
        cash = (cost // 50 + self._stream.between(1, 4)) * 50
        question = template.format(n=n, items=f"{fact.subject}s", cash=cash)
        return question, f"{n} x {fact.number} = {cost}. {cash} - {cost} = {cash - cost} {UNIT}"

    def _rebate(self, template: str) -> Exchange:
        fact, n = self._stream.pick(self._priced), self._count()
        off = self._stream.between(1, fact.number // 2)
        price = fact.number - off
        question = template.format(n=n, item=fact.subject, items=f"{fact.subject}s", off=off)
        return question, f"{fact.number} - {off} = {price}. {n} x {price} = {n * price} {UNIT}"

    def _budget(self, template: str) -> Exchange:
        fact, n = self._stream.pick(self._priced), self._count()
        cost, rest = n * fact.number, self._stream.below(fact.number)
        question = template.format(items=f"{fact.subject}s", cash=cost + rest)
        return (
            question,
            f"{n} x {fact.number} = {cost}. {cost + rest} - {cost} = {rest} {UNIT} left. {n} {fact.subject}s",
        )

    def _compare_price(self, template: str) -> Exchange:
        a, b = self._two()
        question = template.format(item=a.subject, other=b.subject)
        if a.number == b.number:
            return question, f"{a.number} = {b.number}: both cost the same"
        sign, dearer = (">", a) if a.number > b.number else ("<", b)
        return question, f"{a.number} {sign} {b.number}: the {dearer.subject}"

    def _office_age(self, template: str) -> Exchange:
        fact = self._stream.pick(self._dated)
        year = self._stream.between(2020, 2069)
        return template.format(office=fact.subject, year=year), f"{year} - {fact.number} = {year - fact.number} years"

    def _stock_total(self, template: str) -> Exchange:
        n, m = self._count(), self._count()
        here, there = self._stream.sample(self._places, 2)
        item = self._stream.pick(self._items)
        question = template.format(n=n, m=m, items=f"{item}s", place=here, place2=there)
        return question, f"{n} + {m} = {n + m}"

    def _stock(self) -> list[tuple[str, int]]:
        """Things with a number each, all numbers different."""
        stream = self._stream
        size = 2 if self._small else stream.between(3, 5)
        names = stream.sample(self._items, size)
        return list(zip(names, stream.sample(range(2, 40 if self._small else 200), len(names)), strict=True))

    @staticmethod
    def _listed(stock: list[tuple[str, int]]) -> str:
        return ", ".join(f"{name} {n}" for name, n in stock)

    def _sort_stock(self, template: str) -> Exchange:
        stock = self._stock()
        return template.format(list=self._listed(stock)), self._listed(sorted(stock, key=lambda pair: pair[1]))

    def _most_stock(self, template: str) -> Exchange:
        stock = self._stock()
        return template.format(list=self._listed(stock)), max(stock, key=lambda pair: pair[1])[0]

    def _filter_stock(self, template: str) -> Exchange:
        stock = self._stock()
        # The limit lies under the highest number and is one of the others: something is left, something goes.
        limit = self._stream.pick(sorted(n for _, n in stock)[:-1])
        kept = [pair for pair in stock if pair[1] > limit]
        return template.format(limit=limit, list=self._listed(stock)), self._listed(kept)

    def _order(self) -> tuple[str, dict[str, str | int]]:
        """The text of an order and what it says."""
        stream = self._stream
        customer, item, n = stream.pick(self._people), stream.pick(self._items), self._count()
        sentence = stream.pick(text.ORDERS).format(customer=customer, n=n, items=f"{item}s")
        return sentence, {"customer": customer, "item": item, "quantity": n}

    def _order_json(self, template: str) -> Exchange:
        sentence, order = self._order()
        return template.format(text=sentence), json.dumps(order)

    def _order_field(self, template: str) -> Exchange:
        sentence, order = self._order()
        field, question = self._stream.pick(text.ORDER_FIELDS)
        return template.format(text=sentence, what=question), str(order[field])

    def _fact_json(self, template: str) -> Exchange:
        fact = self._stream.pick(self._world.taught)
        relation = fact.relation
        sentence = fact.say(self._stream.pick(relation.statements))
        question = template.format(type=relation.subject, field=relation.field, text=sentence)
        return question, json.dumps({relation.subject: fact.subject, relation.field: fact.answer})

    def _two_steps(self, template: str) -> Exchange:
        one, two = self._stream.pick(self._chains)
        first = one.say(text.FIRST_STEPS[one.relation.name])
        second = text.SECOND_STEPS[two.relation.name]
        steps = f"The{first[3:]} is {one.answer}. The{second[3:]} is {two.answer}."
        return template.format(first=first, second=second), steps


def two_step_chains(world: World) -> list[tuple[Fact, Fact]]:
    """Pairs of taught facts in which the answer of the first is the subject of the second."""
    return [
        (one, two)
        for one in world.taught
        if one.relation.name in text.FIRST_STEPS
        for two in world.about.get(one.answer, ())
        if two.relation.name in text.SECOND_STEPS and two.answer != one.subject
    ]
