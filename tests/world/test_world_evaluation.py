from __future__ import annotations

import re
from collections import Counter

from generated_worlds import Written


def facts_by_question(written: Written) -> dict[str, dict]:
    """The fact behind each held-out question, from the facts on disk and the relation tables."""
    heldout = {fact.relation.name: fact.relation.heldout for fact in written.world.taught + written.world.control}
    return {
        template.replace("{s}", fact["subject"]): fact
        for fact in written.description["facts"]
        for template in heldout[fact["relation"]]
    }


def words_of(written: Written) -> set[str]:
    text = " ".join(m["content"] for row in written.rows() for m in row["messages"])
    return set(re.findall(r"\w+", text.lower()))


def test_no_held_out_user_turn_occurs_in_training(written: Written) -> None:
    turns = {turn.lower() for turn in written.user_turns()}
    questions = {row["question"].lower() for row in written.answer + written.choice}
    assert turns.isdisjoint(questions)
    heldout = {m["content"].lower() for row in written.heldout for m in row["messages"] if m["role"] == "user"}
    assert turns.isdisjoint(heldout)
    # Nor inside a longer turn, such as a question with options.
    joined = "\n".join(turns)
    assert not [question for question in questions if question in joined]


def test_controls_are_nowhere_in_training(written: Written) -> None:
    words = words_of(written)
    controls = [fact for fact in written.description["facts"] if fact["group"] == "control"]
    assert len(controls) == written.summary.control
    for fact in controls:
        # The first word of a subject is an invented name given to nothing else.
        assert fact["subject"].split()[0].lower() not in words


def test_answers_agree_with_the_facts(written: Written) -> None:
    facts = facts_by_question(written)
    for row in written.answer:
        fact = facts[row["question"]]
        accepted = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        # The first spelling is the one that training uses.
        assert accepted[0] == fact["answer"]
        assert len(set(accepted)) == len(accepted)
        assert (row["group"], row["topic"]) == (fact["group"], fact["relation"])


def test_the_counts_of_questions(written: Written) -> None:
    for rows in (written.answer, written.choice):
        groups = Counter(row["group"] for row in rows)
        counts = written.description["counts"]
        assert groups["taught"] == 2 * counts["evaluated_taught"]
        assert groups["control"] == 2 * counts["evaluated_control"]
        assert len({row["id"] for row in rows}) == len(rows)
        assert len({row["question"] for row in rows}) == len(rows)
    if written.summary.samples == 200:
        assert counts == {"taught": 20, "control": 8, "evaluated_taught": 20, "evaluated_control": 8}


def test_a_choice_has_four_options_and_one_is_right(written: Written) -> None:
    facts = facts_by_question(written)
    for row in written.choice:
        assert len(row["choices"]) == len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] == facts[row["question"]]["answer"]


def test_the_right_option_is_as_often_in_each_place(written: Written) -> None:
    for group in ("taught", "control"):
        places = Counter(row["answer"] for row in written.choice if row["group"] == group)
        assert set(places) == {0, 1, 2, 3}
        assert max(places.values()) - min(places.values()) <= 1


def test_no_option_of_a_control_question_is_familiar(written: Written) -> None:
    words = words_of(written)
    named = ("office_lead", "office_street", "person_town", "product_designer", "product_material", "project_lead")
    rows = [row for row in written.choice if row["group"] == "control" and row["topic"] in named]
    assert rows
    for row in rows:
        assert all(option.split()[0].lower() not in words for option in row["choices"])


def test_held_out_conversations_are_of_all_kinds(written: Written) -> None:
    phases = Counter(row["phase"] for row in written.heldout)
    assert set(phases) == {"knowledge", "skills", "instruction"}
    assert min(phases.values()) >= 4
    assert {row["source"] for row in written.heldout} == {f"world_{phase}" for phase in phases}
