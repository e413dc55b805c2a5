"""The quick way gives what the full one gives, for any text, and leaves to it what is not plain."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import CHATML, REPARSES, SPECIAL, STYLES, byte_level, metaspace, tokenizer_for

from sengi.conversation import Conversation, Sample
from sengi.errors import MaskError
from sengi.masks.batch import QuickMismatch
from sengi.masks.masker import Masker
from sengi.masks.quick import Quick

BACKENDS = {"bytes": byte_level, "spaces": metaspace}
pieces = st.sampled_from(
    ["hello", " ", "\n", "\n\n", "\t", "\u3000", "\r\n", "<", "<|im_", "end|>", "<think>", "</think>", "a < b",
     "[INST]", "你好", "\ue000", "0\ue001", "{{x}}", "|>", *SPECIAL[:6]]
)  # fmt: skip
texts = st.lists(pieces, max_size=5).map("".join)
rows = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), texts), min_size=1, max_size=5).map(
    lambda turns: Conversation(tuple({"role": role, "content": text} for role, text in turns), row=1)
)


@cache
def maskers(style: str, backend: str) -> tuple[Masker, Masker]:
    eos = "</s>" if style == "mistral" else "<|endoftext|>"
    tokenizer = tokenizer_for(STYLES[style][0], BACKENDS[backend](), eos)
    return Masker(tokenizer), Masker(tokenizer, quick=False)


def told(result: Sample | MaskError) -> tuple[object, ...]:
    if isinstance(result, MaskError):
        return result.reason, str(result)
    return result.input_ids.dtype, result.input_ids.tolist(), result.loss_mask.dtype, result.loss_mask.tolist()


def chat(*turns: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple({"role": roles[k % 2], "content": text} for k, text in enumerate(turns)), row=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("style", STYLES)
def test_both_ways_agree_on_anything(style: str, backend: str) -> None:
    quick, full = maskers(style, backend)

    @settings(max_examples=25)
    @given(st.lists(rows, min_size=1, max_size=6))
    def check(batch: list[Conversation]) -> None:
        # Rule: the same ids, masks and refusals, in the same order, and the same repairs.
        assert [told(r) for r in quick.samples(batch)] == [told(r) for r in full.samples(batch)]
        assert quick.counts == full.counts
        assert quick.settings[1], "no row showed another result"

    check()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("style", STYLES)
def test_plain_rows_go_the_quick_way(style: str, backend: str) -> None:
    quick, _ = maskers(style, backend)
    work = quick.prepare([chat("hello", "yes"), chat("a\n", "b", "c", " d")])
    # these two write headers that are no control tokens, so the ids before an answer depend on the question
    expected = [0, 2] if style in ("mistral", "plain_headers") else [2, 0]
    assert [len(work.quick), len(work.full)] == expected


@pytest.mark.parametrize(
    ("style", "row"),
    [
        ("chatml", chat("q <|im_end|>", "a")),
        ("chatml", chat("q", " \n")),
        ("chatml", chat("q", "")),
        ("qwen3", chat("q", "<think>x</think>y")),
        ("chatml", Conversation(chat("q", "a").messages, unmask=True)),
        ("qwen3", Conversation(chat("q", "a").messages, tools=({"name": "f"},))),
        ("chatml", Conversation(({"role": "user", "content": "q"},))),
        ("chatml", Conversation((), kind="text", text="a")),
        ("chatml", Conversation((*chat("q", "a").messages[:1], {"role": "assistant", "content": "a", "train": False}))),
    ],
)
def test_what_is_not_plain_goes_the_full_way(style: str, row: Conversation) -> None:
    quick, _ = maskers(style, "bytes")
    assert not quick.prepare([row]).quick


def test_templates_that_are_not_proven_go_the_full_way() -> None:
    assert not Masker(tokenizer_for(REPARSES, byte_level())).prepare([chat("q", "a")]).quick


def test_a_control_token_over_the_border_of_a_message_is_seen() -> None:
    # "<|im_" of the template and "end|>" of the message would make a control token of the text
    template = CHATML.replace("message['content']", "'<|im_' + message['content']")
    tokenizer = tokenizer_for(template, byte_level())
    quick, full = Masker(tokenizer), Masker(tokenizer, quick=False)
    forged = chat("end|> q", "a")
    assert not quick.prepare([forged]).quick
    assert quick.prepare([chat("q", "a")]).quick
    assert told(quick.samples([forged])[0]) == told(full.samples([forged])[0])


def test_a_border_inside_a_token_is_left_to_the_full_way() -> None:
    # GPT-2's rule makes one token of the header's new line and the answer's first
    quick, full = maskers("chatml", "bytes")
    batch = [chat("q", "a"), chat("q", "\n\nb"), chat("q", "c")]
    assert len(quick.prepare(batch).quick) == 3
    assert [told(r) for r in quick.samples(batch)] == [told(r) for r in full.samples(batch)]


def test_a_wrong_quick_result_is_found_and_everything_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_for(CHATML, byte_level())
    right = Masker(tokenizer, quick=False).samples([chat("q", "a")])
    text = Quick.text

    def wrong(self: Quick, row: Conversation) -> object:
        found = text(self, row)
        return None if found is None else (found[0], found[1].replace("q", "r"))

    monkeypatch.setattr(Quick, "text", wrong)
    with pytest.raises(QuickMismatch):
        Masker(tokenizer).block([chat("q", "a")])
    masker = Masker(tokenizer)
    assert [told(r) for r in masker.samples([chat("q", "a")])] == [told(r) for r in right]
    assert not masker.settings[1]


def test_one_row_in_256_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    masker = Masker(tokenizer_for(CHATML, byte_level()))
    compared: list[str] = []
    in_full = Masker._in_full

    def noted(self: Masker, row: Conversation) -> Sample | MaskError:
        compared.append(row.messages[0]["content"])
        return in_full(self, row)

    monkeypatch.setattr(Masker, "_in_full", noted)
    for start in range(0, 600, 100):
        masker.samples([chat(f"{number}", "a") for number in range(start, start + 100)])
    assert compared == ["0", "256", "512"]
    # the first of another shape, too
    masker.samples([chat("1", "a", "2", "b"), chat("3", "a", "4", "b")])
    assert compared == ["0", "256", "512", "1"]


def test_blocks_hold_samples_end_to_end() -> None:
    quick, _ = maskers("chatml", "bytes")
    batch = [chat("q", "a"), chat("q"), chat("long question", "b", "c", "d")]
    block, samples = quick.block(batch), quick.samples(batch)
    assert [told(r) for r in block.samples()] == [told(r) for r in samples]
    assert list(block.errors) == [1]
    assert block.lengths[1] == 0
    assert block.lengths.sum() == len(block.ids) == len(block.mask)
    assert block.ids.dtype == np.int32
    assert block.mask.dtype == np.uint8
