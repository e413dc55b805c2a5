"""Phrasings of the format instructions: per constraint the ones trained on and the ones held out.

Constraints on a sentence fill in ``{text}``, constraints on a list ``{list}``; the others say what they need.
"""

from __future__ import annotations

from sengi.world.skills_text import Phrasings

SENTENCE_CONSTRAINTS: dict[str, Phrasings] = {
    "upper_case": Phrasings(
        train=(
            "Write in upper case: {text}",
            "Put this in capital letters: {text}",
            "{text} Repeat that in upper case.",
            "In capitals, please: {text}",
        ),
        heldout=("Rewrite with capital letters only: {text}", "{text} Say it all in upper case."),
    ),
    "lower_case": Phrasings(
        train=(
            "Write in lower case: {text}",
            "Put this in small letters: {text}",
            "{text} Repeat that in lower case.",
            "No capitals, please: {text}",
        ),
        heldout=("Rewrite with small letters only: {text}", "{text} Say it all in lower case."),
    ),
    "quotes": Phrasings(
        train=(
            "Put this in double quotes: {text}",
            "Repeat between double quotation marks: {text}",
            "{text} Quote that in double quotes.",
            "Wrap in double quotes: {text}",
        ),
        heldout=("Set double quotes around this: {text}", "{text} Now repeat it inside double quotes."),
    ),
    "brackets": Phrasings(
        train=(
            "Put this in square brackets: {text}",
            "Repeat between square brackets: {text}",
            "{text} Write that in square brackets.",
            "Wrap in square brackets: {text}",
        ),
        heldout=("Set square brackets around this: {text}", "{text} Now repeat it inside square brackets."),
    ),
    "hyphens": Phrasings(
        train=(
            "Join the words with hyphens: {text}",
            "Replace each space by a hyphen: {text}",
            "{text} Write that with hyphens for spaces.",
            "Hyphens instead of spaces: {text}",
        ),
        heldout=("Put a hyphen where a space is: {text}", "{text} Now link the words by hyphens."),
    ),
    "end_phrase": Phrasings(
        train=(
            'Repeat and end with "{phrase}" {text}',
            '{text} Say that and finish with "{phrase}"',
            'Add "{phrase}" at the end: {text}',
            'Close with "{phrase}" after this: {text}',
        ),
        heldout=('Repeat this, the last words being "{phrase}" {text}', '{text} Say it again and stop with "{phrase}"'),
    ),
    "start_phrase": Phrasings(
        train=(
            'Repeat and start with "{phrase}" {text}',
            '{text} Say that and begin with "{phrase}"',
            'Add "{phrase}" at the start: {text}',
            'Open with "{phrase}" before this: {text}',
        ),
        heldout=(
            'Repeat this, the first words being "{phrase}" {text}',
            '{text} Say it again but lead with "{phrase}"',
        ),
    ),
    "first_words": Phrasings(
        train=(
            "Give only the first {n} words: {text}",
            "Cut this after {n} words: {text}",
            "{text} Repeat the first {n} words of that.",
            "Keep {n} words from the start: {text}",
        ),
        heldout=("Stop after the word number {n}: {text}", "{text} Of this, say just the first {n} words."),
    ),
    "repeat": Phrasings(
        train=(
            "Write this {n} times, one per line: {text}",
            "Repeat {n} times on lines of their own: {text}",
            "{text} Say that {n} times, a line each.",
            "{n} lines, each with this: {text}",
        ),
        heldout=("Copy this onto {n} lines: {text}", "{text} Put that down {n} times, line by line."),
    ),
}

LIST_CONSTRAINTS: dict[str, Phrasings] = {
    "json_list": Phrasings(
        train=(
            "Write as a JSON list: {list}",
            "Turn this into a JSON list: {list}",
            "{list}. Give that as a JSON list.",
            "As JSON list: {list}",
        ),
        heldout=("Make a JSON array of these: {list}", "{list}. Answer with a JSON array."),
    ),
    "numbered_list": Phrasings(
        train=(
            "Write as a numbered list: {list}",
            "Turn this into a numbered list: {list}",
            "{list}. Give that as a numbered list.",
            "Number these, one per line: {list}",
        ),
        heldout=("Put a number before each, line by line: {list}", "{list}. Answer with numbered lines."),
    ),
    "bullet_list": Phrasings(
        train=(
            "Write as a bullet list: {list}",
            "Turn this into a list with dashes: {list}",
            "{list}. Give that as a bullet list.",
            "One dash and one item per line: {list}",
        ),
        heldout=("Put a dash before each, line by line: {list}", "{list}. Answer with bullet points."),
    ),
    "semicolons": Phrasings(
        train=(
            "Separate by semicolons: {list}",
            "Use semicolons for the commas: {list}",
            "{list}. Write that with semicolons.",
            "Semicolons between these: {list}",
        ),
        heldout=("Swap the commas for semicolons: {list}", "{list}. Now divide them by semicolons."),
    ),
    "alphabetical": Phrasings(
        train=(
            "Sort from A to Z: {list}",
            "Put in alphabetical order: {list}",
            "{list}. Order these by the alphabet.",
            "Alphabetical order, please: {list}",
        ),
        heldout=("Arrange by first letter, A first: {list}", "{list}. Sort that alphabetically."),
    ),
    "reverse_order": Phrasings(
        train=(
            "Reverse the order: {list}",
            "List these from last to first: {list}",
            "{list}. Write that in reverse order.",
            "Turn the order round: {list}",
        ),
        heldout=("Begin with the last and end with the first: {list}", "{list}. Now backwards, item by item."),
    ),
    "key_lines": Phrasings(
        train=(
            'Write each on a line after "{key}: " {list}',
            'One line each, starting with "{key}: " {list}',
            '{list}. Put "{key}: " before each, a line each.',
            'Lines with "{key}: " and an item: {list}',
        ),
        heldout=('Give each a line that opens with "{key}: " {list}', '{list}. Per item a line with "{key}: " first.'),
    ),
}

# Answered with words of the writer's choice: any words do, their number counts.
FREE_CONSTRAINTS: dict[str, Phrasings] = {
    "n_words": Phrasings(
        train=(
            "Describe the {item} in exactly {n} words.",
            "Advertise the {item} with {n} words.",
            "{n} words about the {item}, no more.",
            "What is the {item} like? Use {n} words.",
        ),
        heldout=("Say in {n} words how the {item} is.", "Praise the {item}, using exactly {n} words."),
    ),
    "one_word": Phrasings(
        train=(
            "{question} One word only.",
            "In one word: {question}",
            "{question} Answer with a single word.",
            "Just one word, please. {question}",
        ),
        heldout=("{question} Reply in a single word.", "Use no more than one word. {question}"),
    ),
}

CONSTRAINTS: dict[str, Phrasings] = {**SENTENCE_CONSTRAINTS, **LIST_CONSTRAINTS, **FREE_CONSTRAINTS}

# A second turn that reshapes the answer of the first.
AGAIN = {
    "upper_case": ("Now in upper case.", "The same in capitals."),
    "lower_case": ("Now in lower case.", "The same without capitals."),
    "quotes": ("Now in double quotes.", "Put that in double quotes."),
    "brackets": ("Now in square brackets.", "Put that in square brackets."),
}

PHRASES = ("Thank you.", "That is all.", "Over and out.", "End of note.", "Kind regards.", "Noted.", "So it is.")
OPENINGS = ("Note:", "Dear team,", "Reminder:", "In short:", "Good news:", "For the record:", "Please read:")
KEYS = ("Name", "Item", "Entry", "To do", "Copy to", "Check", "Row", "Next")
# fmt: off
ADJECTIVES = (
    "sturdy", "light", "quiet", "bright", "warm", "simple", "modern", "handy", "strong", "smooth",
    "compact", "clever", "cheerful", "robust", "neat", "soft", "reliable", "elegant", "practical",
    "quick", "solid", "slim", "safe", "fresh", "bold", "calm", "clean", "durable", "precise", "gentle",
    "tidy", "useful",
)
# fmt: on
INSTRUCTION_SYSTEM = ("Follow the format exactly.", "Answer with the result only.", "You edit texts for the office.")
