from __future__ import annotations

from collections import defaultdict

from generated_worlds import Written

from sengi.world.knowledge import TRUTH


def phrasings_trained(written: Written) -> dict[str, set[str]]:
    """By fact, the plain questions in training that are answered with exactly its answer."""
    asked = {fact.say(text): fact for fact in written.world.taught for text in fact.relation.train}
    found = defaultdict(set)
    for row in written.train["knowledge"]:
        messages = [m for m in row["messages"] if m["role"] != "system"]
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            fact = asked.get(question["content"])
            if fact is not None:
                assert answer["content"] == fact.answer
                found[fact.id].add(question["content"])
    return found


def test_every_taught_fact_is_asked_in_several_phrasings(written: Written) -> None:
    found = phrasings_trained(written)
    assert set(found) == {fact.id for fact in written.world.taught}
    assert min(len(questions) for questions in found.values()) >= 5


def test_a_demonstration_is_short_and_has_few_facts(written: Written) -> None:
    if written.summary.samples != 200:
        return
    assert 20 <= written.summary.taught <= 25
    assert written.summary.control == 8
    single = [row["messages"] for row in written.train["knowledge"] if len(row["messages"]) == 2]
    words = [len(messages[0]["content"].split()) for messages in single]
    assert sum(words) / len(words) < 10
    assert max(len(messages[1]["content"].split()) for messages in single) <= 6


def test_a_statement_to_check_is_judged_rightly(written: Written) -> None:
    statements = {fact.say(text) for fact in written.world.taught for text in fact.relation.statements}
    judged = {True: 0, False: 0}
    for row in written.train["knowledge"]:
        question, answer = row["messages"][0]["content"], row["messages"][1]["content"]
        for template, yes, no in TRUTH:
            lead = template.removesuffix("{st}")
            if question.startswith(lead):
                true = question.removeprefix(lead) in statements
                judged[true] += 1
                assert (answer == yes) is true
                assert answer.startswith(no.split(",")[0]) is not true
    assert min(judged.values()) > 0


def test_a_choice_in_training_is_answered_with_the_taught_value(written: Written) -> None:
    answers = {(fact.relation.name, fact.subject): fact.answer for fact in written.world.taught}
    lettered = 0
    for row in written.train["knowledge"]:
        question, answer = row["messages"][0]["content"], row["messages"][1]["content"]
        if "\nA) " in question:
            lettered += 1
            head, *lines = question.split("\n")
            assert answer in lines
            assert len(set(lines)) == 4
            right = [a for (relation, s), a in answers.items() if relation == row["topic"] and s in head]
            assert answer[3:] in right
    # Only larger worlds have the long form.
    assert (lettered > 0) == (written.summary.samples >= 1_000)
