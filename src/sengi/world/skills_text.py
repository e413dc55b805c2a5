"""Phrasings of the skills tasks: per task the ones trained on and the ones held out."""

from __future__ import annotations

from typing import NamedTuple


class Phrasings(NamedTuple):
    """Ways to set one task; the names in braces are filled in by the task."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


SKILLS: dict[str, Phrasings] = {
    "cost": Phrasings(
        train=(
            "How much do {n} {items} cost?",
            "What is the price of {n} {items}?",
            "I buy {n} {items}. What do I pay?",
            "Work out the cost of {n} {items}.",
            "{n} {items}: how much is that?",
        ),
        heldout=("What do {n} {items} come to?", "Calculate what {n} {items} cost."),
    ),
    "order_total": Phrasings(
        train=(
            "How much do {n} {items} and {m} {others} cost?",
            "I buy {n} {items} and {m} {others}. What do I pay?",
            "Work out the total for {n} {items} and {m} {others}.",
            "{n} {items} plus {m} {others}: how much is that?",
        ),
        heldout=(
            "What do {n} {items} and {m} {others} come to?",
            "Calculate the bill for {n} {items} with {m} {others}.",
        ),
    ),
    "change": Phrasings(
        train=(
            "I pay {n} {items} with {cash} crowns. How much change do I get?",
            "How much is left of {cash} crowns after {n} {items}?",
            "Work out the change from {cash} crowns for {n} {items}.",
            "A customer buys {n} {items} and hands over {cash} crowns. What is the change?",
        ),
        heldout=(
            "From {cash} crowns, what do I get back after {n} {items}?",
            "{cash} crowns pay for {n} {items}. Calculate the change.",
        ),
    ),
    "rebate": Phrasings(
        train=(
            "Each {item} is {off} crowns off. How much do {n} cost?",
            "With {off} crowns off each {item}, what do {n} cost?",
            "Take {off} crowns off the price of the {item}. How much are {n}?",
            "Work out the cost of {n} {items} at {off} crowns off each.",
        ),
        heldout=(
            "The price of the {item} falls by {off} crowns. What do {n} come to?",
            "Calculate {n} {items} with a rebate of {off} crowns each.",
        ),
    ),
    "budget": Phrasings(
        train=(
            "How many {items} can I buy with {cash} crowns?",
            "I have {cash} crowns. How many {items} is that?",
            "Work out how many {items} {cash} crowns buy.",
            "With {cash} crowns, how many {items} can I get?",
        ),
        heldout=(
            "For {cash} crowns I get how many {items}?",
            "Calculate how many {items} I can pay with {cash} crowns.",
        ),
    ),
    "compare_price": Phrasings(
        train=(
            "Which costs more, the {item} or the {other}?",
            "Is the {item} or the {other} more expensive?",
            "Compare the {item} and the {other}. Which has the higher price?",
            "{item} or {other}: which is dearer?",
        ),
        heldout=(
            "Do I pay more for the {item} or for the {other}?",
            "Of the {item} and the {other}, which costs more?",
        ),
    ),
    "office_age": Phrasings(
        train=(
            "How old is the {office} office in {year}?",
            "In {year}, how many years has the {office} office been open?",
            "Work out the age of the {office} office in {year}.",
            "It is {year}. How long ago did the {office} office open?",
        ),
        heldout=(
            "What age does the {office} office reach in {year}?",
            "Calculate how old the {office} office is in {year}.",
        ),
    ),
    "stock_total": Phrasings(
        train=(
            "{n} {items} are in {place} and {m} in {place2}. How many in all?",
            "{place} has {n} {items}, {place2} has {m}. What is the total?",
            "Add up the {items}: {n} in {place}, {m} in {place2}.",
            "How many {items} are {n} in {place} and {m} in {place2}?",
        ),
        heldout=(
            "We keep {n} {items} in {place}, {m} more in {place2}. How many do we have?",
            "Sum of {items}: {place} {n}, {place2} {m}?",
        ),
    ),
    "sort_stock": Phrasings(
        train=(
            "Sort by number, lowest first: {list}",
            "Order these by number, lowest first: {list}",
            "List these from few to many: {list}",
            "Put in rising order of number: {list}",
        ),
        heldout=("Arrange by number, smallest first: {list}", "Which order has the lowest number first? {list}"),
    ),
    "most_stock": Phrasings(
        train=(
            "Which has the highest number? {list}",
            "Name the one with the most: {list}",
            "Of which are there most? {list}",
            "Find the largest number and name the thing: {list}",
        ),
        heldout=("Which of these are most in number? {list}", "Name the thing with the top number: {list}"),
    ),
    "filter_stock": Phrasings(
        train=(
            "Which numbers are over {limit}? {list}",
            "Keep only what is over {limit}: {list}",
            "Name those with more than {limit}: {list}",
            "List what has over {limit}: {list}",
        ),
        heldout=("Pick those above {limit}: {list}", "Of these, which exceed {limit}? {list}"),
    ),
    "order_json": Phrasings(
        train=(
            "Extract customer, item and quantity as JSON: {text}",
            "Turn this order into JSON with customer, item, quantity: {text}",
            "{text} Give customer, item and quantity as JSON.",
            "Read the order and answer in JSON (customer, item, quantity): {text}",
        ),
        heldout=(
            "Write customer, item, quantity of this order as a JSON object: {text}",
            "{text} As JSON: customer, item, quantity.",
        ),
    ),
    "fact_json": Phrasings(
        train=(
            "Extract {type} and {field} as JSON: {text}",
            "Turn this into JSON with {type}, {field}: {text}",
            "{text} Give {type} and {field} as JSON.",
            "Read this and answer in JSON ({type}, {field}): {text}",
        ),
        heldout=("Write {type} and {field} as a JSON object: {text}", "{text} As JSON: {type}, {field}."),
    ),
    "order_field": Phrasings(
        train=(
            "{text} {what}",
            "Read the order: {text} {what}",
            "{what} The order says: {text}",
            'From "{text}": {what}',
        ),
        heldout=("Look at this order. {text} {what}", "{what} This is the order: {text}"),
    ),
    "two_steps": Phrasings(
        train=(
            "What is {second} of {first}?",
            "Find {second} of {first}.",
            "Tell me {second} of {first}.",
            "I need {second} of {first}.",
        ),
        heldout=("Look up {second} of {first}.", "Could you find {second} of {first}?"),
    ),
}

# Texts from which orders are extracted, and the questions about one field of them.
ORDERS = (
    "{customer} orders {n} {items}.",
    "Order from {customer}: {n} {items}.",
    "{n} {items} for {customer}.",
    "Please send {n} {items} to {customer}.",
    "{customer} would like {n} {items}.",
)
ORDER_FIELDS = (("customer", "Who is the customer?"), ("quantity", "How many?"), ("item", "Which item?"))

# The two halves of a two-step question: a subject by its relation, and what is asked of it.
FIRST_STEPS = {
    "product_designer": "the designer of the {s}",
    "office_lead": "the lead of the {s} office",
    "project_lead": "the lead of project {s}",
    "department_head": "the head of the {s} department",
    "policy_owner": "the owner of the {s} policy",
    "person_department": "the department of {s}",
}
SECOND_STEPS = {
    "person_town": "the home town",
    "person_badge": "the badge number",
    "person_department": "the department",
    "department_room": "the room",
    "department_phone": "the extension",
}

COST_AGAIN = ("And {n}?", "And how much do {n} cost?", "What about {n}?")
SKILLS_SYSTEM = ("Show the steps.", "Answer with the steps and the result.", "You help the sales team.")
