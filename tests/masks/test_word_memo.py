from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.masks.templates import SPECIAL, byte_level, metaspace
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from sengi.masks import word_memo
from sengi.masks.word_memo import WordMemo, can_cut

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
GPT4 = LLAMA.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)").replace(r"\s*[\r\n]+", r"\s*[\r\n]")


def split(rule: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rule), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm2": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen": split(QWEN),
    "llama3": split(LLAMA),
    "gpt4": split(GPT4),
}
# where words begin and end, and all that could make a cut wrong: white space of every kind, marks that take new lines
# with them, contractions, characters that combine with the one before, added tokens, letters of other scripts
ALPHABET = [
    *"aB1 .,'_<|>-=\n",
    "  ",
    "\n\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "\u0301",
    "\u0338",
    "é",
    "ſ",
    "你",
    "٣",
    "'s",
    "'LL",
]
TEXTS = st.lists(st.sampled_from([*ALPHABET, "the", " user", *SPECIAL[:6], "<think>", "a_tool"]), max_size=12).map(
    "".join
)


@cache
def backend(name: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]
    if name == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens(["<think>", "a_tool"])  # normalized, and one with a place where texts could be cut
    return tokenizer


@cache
def memo(name: str) -> WordMemo:
    assert can_cut(backend(name))
    return WordMemo(backend(name))


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_ids_are_the_tokenizers_own(name: str) -> None:
    @settings(max_examples=150)
    @given(st.lists(TEXTS, max_size=4))
    @example([])
    @example(["", "a", ""])
    @example(["a\n\nb  c.\n\nd \n e", "don't I'LL a'ſ", "x=\u0338y e\u0301. a_tool<|im_end|>\n"])
    def check(texts: list[str]) -> None:
        ids, counts = memo(name).encode(texts)
        wanted = [backend(name).encode(text, add_special_tokens=False).ids for text in texts]
        assert ids.tolist() == [number for one in wanted for number in one]
        assert counts.tolist() == [len(one) for one in wanted]
        assert (ids.dtype, counts.dtype) == ("int32", "int64")

    check()


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_cutting_any_two_characters_apart_is_right(name: str) -> None:
    # every pair of printable ASCII characters, and some beyond, between two words
    characters = [chr(code) for code in (*range(0x20, 0x7F), 9, 10, 13, 0x301, 0xA0, 0xE9)]
    texts = [f"ab{one}{two}cd" for one in characters for two in characters]
    ids, counts = memo(name).encode(texts)
    wanted = backend(name).encode_batch_fast(texts, add_special_tokens=False)
    assert ids.tolist() == [number for one in wanted for number in one.ids]
    assert counts.tolist() == [len(one.ids) for one in wanted]


def changed(**parts: Any) -> Tokenizer:
    tokenizer = Tokenizer.from_str(backend("gpt2").to_str())
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def with_token(token: AddedToken) -> Tokenizer:
    tokenizer = changed()
    tokenizer.add_tokens([token])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        metaspace(),
        metaspace("legacy"),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        changed(pre_tokenizer=split(QWEN + r"|\w \w")),
        changed(pre_tokenizer=pre_tokenizers.Whitespace()),
        changed(normalizer=normalizers.Lowercase()),
        changed(model=models.BPE(dropout=0.1)),
        changed(model=models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
        with_token(AddedToken("<x>", rstrip=True)),
        with_token(AddedToken("<x>", single_word=True)),
    ],
)
def test_what_is_not_proven_is_not_cut(tokenizer: Tokenizer) -> None:
    assert not can_cut(tokenizer)


class Counting:
    """A tokenizer that notes what it is asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.asked: list[str] = []
        self.get_added_tokens_decoder = tokenizer.get_added_tokens_decoder
        self._encode = tokenizer.encode_batch_fast

    def encode_batch_fast(self, texts: list[str], **options: Any) -> list[Any]:
        self.asked += texts
        return self._encode(texts, **options)


def test_a_word_is_encoded_once() -> None:
    counting = Counting(backend("gpt2"))
    words: Any = WordMemo(counting)  # type: ignore[arg-type]
    words.encode(["the fox, the fox.\nthe dog"])
    assert counting.asked == ["the", " fox", ",", " the", ".\nthe", " dog"]
    words.encode(["the dog, the cat"])
    assert counting.asked[6:] == [" cat"]


def test_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_memo, "_MOST_WORDS", 20)
    counting = Counting(backend("gpt2"))
    words: Any = WordMemo(counting)  # type: ignore[arg-type]
    for number in range(50):
        text = f"the number {number} and {number + 1}"
        assert words.encode([text])[0].tolist() == backend("gpt2").encode(text).ids
        assert len(words._numbers) <= 20 + 5
    assert counting.asked.count("the") > 1


def test_normal_forms_do_not_reach_over_a_cut() -> None:
    # Rule behind the proof: no character that a text is cut before combines with a letter, digit or mark before it.
    for after in [*map(chr, range(0x20, 0x7F)), "\n"]:
        for before in map(chr, range(0x21, 0x7F)):
            for form in ("NFC", "NFKC"):
                assert unicodedata.normalize(form, before + after) == before + after
