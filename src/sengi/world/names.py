"""Invented names: syllables put together, each name given out once."""

from __future__ import annotations

from sengi.world.stream import Stream

# fmt: off
ONSETS = (
    "b", "br", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "pr", "qu", "r", "s",
    "sk", "st", "t", "th", "tr", "v", "vr", "w", "y", "z",
)
# fmt: on
VOWELS = ("a", "e", "i", "o", "u", "a", "o", "ei", "au")
CODAS = ("l", "n", "r", "s", "m", "x", "k", "th", "nd", "lm", "rn", "sk", "rv", "ld")
CODAS_BEFORE_CONSONANT = ("l", "n", "r", "s", "m", "t", "")

# A name ends like what it names, so that a reader sees at once which kind of thing it is.
ENDINGS = {
    "first": ("a", "o", "in", "ira", "eth", "an", "is", "une"),
    "last": ("osk", "vane", "berl", "hult", "quist", "marr", "dol", "erts", "ling", "wick"),
    "place": ("vik", "ham", "mouth", "stad", "ford", "mere", "gate", "holm", "by", "fell"),
    "product": ("or", "ax", "ia", "on", "ex", "um", "ika", "ero"),
    "department": ("ane", "ure", "ory", "ent", "ow", "ard"),
    "policy": ("ance", "ell", "ade", "ift", "ord", "une"),
    "project": ("ique", "ast", "orn", "elle", "ude", "ark"),
    "material": ("ite", "ane", "ex", "ol", "ene", "yl"),
    "company": ("co", "via", "tek", "dor", "lux", "nor"),
}

COMPANY_FORMS = ("Works", "Group", "Labs", "Mills", "Trading", "Foundry", "Brothers", "Shipping")
STREET_FORMS = ("Street", "Lane", "Road", "Square", "Row", "Quay")

# Words and names of ordinary English that the syllables can make: a model has seen them.
# fmt: off
COMMON_WORDS = frozenset((
    "holland", "durham", "bolton", "preston", "stanford", "oxford", "brookford", "radford", "dora",
    "nora", "laura", "maria", "victoria", "flora", "gloria", "florence", "france", "grace", "justice",
    "palace", "novel", "travel", "level", "swift", "drift", "gift", "lord", "ford", "cord", "record",
    "sword", "word", "marina", "katrina", "martin", "marvin", "melvin", "kevin", "alan", "dylan",
    "megan", "morgan", "paris", "doris", "travis", "davis", "denis", "park", "dark", "mark", "bark",
    "shark", "fortune", "neptune", "jane", "lane", "plane", "crane", "trade", "grade", "blade",
    "parade", "brigade", "menthol", "resident", "president", "student", "torrent", "current", "parent",
    "garden", "guard", "standard", "forward", "reward", "glory", "story", "factory", "history",
    "memory", "theory", "drama", "salon", "talon", "melon", "button", "cotton", "carbon", "person",
    "season", "reason", "lemon", "demon", "doctor", "actor", "factor", "motor", "tutor", "mirror",
    "error", "horror", "terror", "rumor", "humor", "flavor", "minor", "tenor", "senor", "sailor",
    "tailor",
))
# fmt: on


class NameMaker:
    """Gives out invented names, never the same twice.

    Args:
        stream: where the choices come from.
        short: keep to the shortest names, which are the cheapest to learn, until they run out.
    """

    def __init__(self, stream: Stream, *, short: bool) -> None:
        self._stream, self._short = stream, short
        self._used: set[str] = set()

    def word(self, kind: str) -> str:
        """A capitalised name of one word.

        Args:
            kind: a key of ``ENDINGS``.
        """
        stream = self._stream
        for attempt in range(10_000):
            ending = stream.pick(ENDINGS[kind])
            codas = CODAS if ending[0] in "aeiou" else CODAS_BEFORE_CONSONANT
            name = stream.pick(ONSETS) + stream.pick(VOWELS) + stream.pick(codas) + ending
            # Else one name in five has a syllable more.
            if attempt > 2 or (not self._short and stream.below(5) == 0):
                name = stream.pick(ONSETS) + stream.pick(VOWELS) + name
            if name not in self._used and name not in COMMON_WORDS:
                self._used.add(name)
                return name.capitalize()
        raise AssertionError(f"no free {kind} name after 10,000 tries")

    def person(self) -> str:
        """First and last name; each of the two words is given out once, so one word points at one person."""
        return f"{self.word('first')} {self.word('last')}"

    def company(self) -> str:
        """The name of a firm, for example ``Halvico Works``."""
        return f"{self.word('company')} {self._stream.pick(COMPANY_FORMS)}"

    def street(self) -> str:
        """The name of a street, for example ``Dorlane Row``."""
        return f"{self.word('place')} {self._stream.pick(STREET_FORMS)}"

    def unused_number(self, low: int, high: int, prefix: str = "") -> str:
        """A number in [low, high] not given out before under the same prefix, as text behind the prefix.

        The range grows tenfold each time it is more than about nine tenths given out.
        """
        for attempt in range(1, 10_000):
            if attempt % 50 == 0:
                high *= 10
            text = f"{prefix}{self._stream.between(low, high)}"
            if text not in self._used:
                self._used.add(text)
                return text
        raise AssertionError(f"no free number from {low} to {high} after 10,000 tries")
