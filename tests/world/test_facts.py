from __future__ import annotations

from collections import Counter

import pytest

from sengi.world.facts import RELATIONS, build_world
from sengi.world.names import COMMON_WORDS
from sengi.world.relation import Relation
from sengi.world.sizes import sizes_for


def test_there_are_many_relations() -> None:
    assert len({relation.name for relation in RELATIONS}) == len(RELATIONS) >= 12


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_a_relation_has_enough_phrasings_and_holds_some_out(relation: Relation) -> None:
    questions = relation.train + relation.heldout
    assert len(relation.train) >= 8
    assert len(relation.heldout) >= 2
    # No phrasing twice, whatever its case: what is held out is not trained on.
    assert len({text.lower() for text in questions}) == len(questions)
    assert all(text.count("{s}") == 1 and "{a}" not in text for text in questions)
    assert all("{" not in text for text in relation.followups)
    assert all("{s}" not in text and "{a}" in text for text in relation.reverse)
    assert len(relation.statements) == 2
    assert all("{s}" in text and "{a}" in text for text in relation.statements)
    # One statement ends with the answer, so that it can be completed.
    assert any(text.endswith(" {a}.") for text in relation.statements)


@pytest.mark.parametrize("samples", [100, 200, 5_000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_question_has_one_answer_and_a_reverse_question_one_subject(samples: int, seed: int) -> None:
    world = build_world(sizes_for(samples), seed)
    facts = world.taught + world.control
    assert len(world.taught) == world.sizes.taught
    assert len(world.control) == world.sizes.control
    assert len({fact.id for fact in facts}) == len(facts)
    assert max(Counter((fact.relation.name, fact.subject) for fact in facts).values()) == 1
    turned = Counter((fact.relation.name, fact.answer) for fact in facts if fact.relation.reverse)
    assert max(turned.values()) == 1


def test_controls_are_about_things_and_names_of_their_own() -> None:
    world = build_world(sizes_for(5_000), 3)
    taught = {fact.subject for fact in world.taught}
    assert taught.isdisjoint(fact.subject for fact in world.control)
    # Names asked for in control questions are as new as their wrong options.
    for kind in ("person", "place", "street", "company", "material"):
        assert set(world.pools[kind]).isdisjoint(world.control_pools[kind])


def test_names_are_invented() -> None:
    world = build_world(sizes_for(100_000), 5)
    words = {word.lower() for fact in world.taught if fact.relation.kind == "person" for word in fact.answer.split()}
    assert len(words) > 900
    assert words.isdisjoint(COMMON_WORDS)


def test_no_answer_dominates_a_small_world() -> None:
    # A model that answers every question with one name must not score.
    for seed in range(20):
        world = build_world(sizes_for(200), seed)
        assert max(Counter(fact.answer for fact in world.taught).values()) <= 2
