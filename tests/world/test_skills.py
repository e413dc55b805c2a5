from __future__ import annotations

import json
import re

import pytest
from generated_worlds import Written

from sengi.world import skills_text
from sengi.world.facts import build_world
from sengi.world.sizes import sizes_for
from sengi.world.skills import SkillRows, two_step_chains
from sengi.world.stream import Stream

EQUATION = re.compile(r"(\d+) ([x+-]) (\d+) = (\d+)")
APPLY = {"x": lambda a, b: a * b, "+": lambda a, b: a + b, "-": lambda a, b: a - b}
WORLD = build_world(sizes_for(3_000), 11)
PRICES = {fact.subject: fact.number for fact in WORLD.of("product_price")}
DRAWS = 150


def drawn(name: str, heldout: bool = False) -> list[tuple[str, str]]:
    rows = SkillRows(WORLD, Stream(5, "test"), heldout=heldout)
    return [rows.task(name) for _ in range(DRAWS)]


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", text)]


def products_in(text: str) -> list[str]:
    """Products in the order in which they are named."""
    return sorted((name for name in PRICES if name in text), key=text.index)


def listed(text: str) -> dict[str, int]:
    return {name: int(re.search(rf"{name} (\d+)", text)[1]) for name in PRICES if re.search(rf"{name} \d", text)}


def test_there_are_many_tasks_each_with_held_out_phrasings() -> None:
    assert len(skills_text.SKILLS) >= 8
    for phrasings in skills_text.SKILLS.values():
        assert len(phrasings.train) >= 4
        assert len(phrasings.heldout) >= 2
        assert set(phrasings.train).isdisjoint(phrasings.heldout)


def test_every_equation_in_the_training_rows_is_right(written: Written) -> None:
    count = 0
    for row in written.train["skills"]:
        for message in row["messages"]:
            for a, sign, b, result in EQUATION.findall(message["content"]):
                assert APPLY[sign](int(a), int(b)) == int(result), row["id"]
                count += 1
    assert count > len(written.train["skills"]) // 3


@pytest.mark.parametrize("heldout", [False, True])
def test_prices_are_the_taught_ones_and_results_follow(heldout: bool) -> None:
    for question, answer in drawn("cost", heldout):
        (item,), (n,) = products_in(question), numbers(question)
        assert answer == f"{n} x {PRICES[item]} = {n * PRICES[item]} crowns"
    for question, answer in drawn("order_total", heldout):
        (a, b), (n, m) = products_in(question), numbers(question)
        assert answer.endswith(f"= {n * PRICES[a] + m * PRICES[b]} crowns")
    for question, answer in drawn("change", heldout):
        (item,) = products_in(question)
        cash, n = max(numbers(question)), min(numbers(question))
        left = cash - n * PRICES[item]
        assert left >= 0
        assert answer.endswith(f"= {left} crowns")
    for question, answer in drawn("rebate", heldout):
        (item,) = products_in(question)
        pair = set(numbers(question))
        n = numbers(answer)[3]
        off = (pair - {n} or {n}).pop()
        assert {n, off} == pair
        assert answer.endswith(f"= {n * (PRICES[item] - off)} crowns")
    for question, answer in drawn("budget", heldout):
        (item,), (cash,) = products_in(question), numbers(question)
        assert answer.endswith(f"= {cash % PRICES[item]} crowns left. {cash // PRICES[item]} {item}s")


def test_comparison_names_the_dearer_product() -> None:
    for question, answer in drawn("compare_price"):
        a, b = products_in(question)
        if PRICES[a] == PRICES[b]:
            assert answer.endswith("both cost the same")
        else:
            assert answer.endswith(f"the {max(a, b, key=PRICES.__getitem__)}")


@pytest.mark.parametrize("heldout", [False, True])
def test_sorting_picking_and_filtering_of_numbers(heldout: bool) -> None:
    for question, answer in drawn("sort_stock", heldout):
        stock = listed(question)
        assert listed(answer) == stock
        assert numbers(answer) == sorted(stock.values())
    for question, answer in drawn("most_stock", heldout):
        stock = listed(question)
        assert stock[answer] == max(stock.values())
    for question, answer in drawn("filter_stock", heldout):
        stock, limit = listed(question), int(re.search(r"(?:over|than|above|exceed) (\d+)", question)[1])
        assert listed(answer) == {name: n for name, n in stock.items() if n > limit}
        assert 0 < len(listed(answer)) < len(stock)


@pytest.mark.parametrize("heldout", [False, True])
def test_extraction_says_what_the_text_says(heldout: bool) -> None:
    people = set(WORLD.pools["person"])
    for question, answer in drawn("order_json", heldout):
        order = json.loads(answer)
        assert list(order) == ["customer", "item", "quantity"]
        assert order["customer"] in people
        assert order["customer"] in question
        assert f"{order['quantity']} {order['item']}s" in question
    facts = {(fact.relation.subject, fact.subject, fact.relation.field): fact.answer for fact in WORLD.taught}
    for question, answer in drawn("fact_json", heldout):
        (kind, subject), (field, value) = json.loads(answer).items()
        assert facts[kind, subject, field] == value
        assert subject in question
        assert value in question
    for question, answer in drawn("order_field", heldout):
        if "Who" in question:
            assert answer in people
        elif "How many" in question:
            assert answer == str(numbers(question)[0])
        else:
            assert answer in PRICES
        assert answer in question


def test_ages_and_totals() -> None:
    years = {fact.subject: fact.number for fact in WORLD.of("office_year")}
    for question, answer in drawn("office_age"):
        office = next(name for name in years if f"the {name} office" in question)
        assert answer.endswith(f"= {numbers(question)[0] - years[office]} years")
    for question, answer in drawn("stock_total"):
        assert numbers(answer)[-1] == sum(numbers(question))


def test_two_steps_go_through_a_taught_fact() -> None:
    chains = {(one.answer, two.answer) for one, two in two_step_chains(WORLD)}
    assert len(chains) > 10
    for _, answer in drawn("two_steps"):
        first, second = answer.removesuffix(".").split(". ")
        assert (first.split(" is ")[1], second.split(" is ")[1]) in chains


def test_a_world_without_a_two_step_chain_does_without_the_task() -> None:
    bare = next(w for w in (build_world(sizes_for(100), seed) for seed in range(20)) if not two_step_chains(w))
    topics = [topic for _, topic in SkillRows(bare, Stream(1, "x")).rows(60)]
    assert len(set(topics)) == len(skills_text.SKILLS) - 1
    assert "two_steps" not in topics
