"""Masks under templates of every style: what is supervised, and that ids are those of inference."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from templates import (
    CHATML,
    GENERATION,
    GRANITE3,
    LAB,
    MISTRAL,
    QWEN3,
    REPARSES,
    SPECIAL,
    STYLES,
    byte_level,
    metaspace,
    tokenizer_for,
)

from sengi.conversation import Conversation, Sample
from sengi.errors import MaskError, ModelError
from sengi.masks.masker import Masker

SHARED = Path(__file__).parents[2] / "../shared/tokenizers"
BACKENDS = {"bytes": byte_level, "spaces": metaspace}
pieces = st.sampled_from(
    [
        "hello",
        " ",
        "\n",
        "\n\n",
        "a < b",
        "<b>",
        "<|not|>",
        "naïve 你好",
        "\t",
        "[INST]",
        "{{x}}",
        "{% if %}",
        "🙂",
        "'s",
        "42",
        "</x>",
    ]
)
texts = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(lambda text: text.strip())
plain_settings = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@cache
def masker_for(style: str, backend: str) -> Masker:
    eos = "</s>" if style == "mistral" else "<|endoftext|>"
    return Masker(tokenizer_for(STYLES[style][0], BACKENDS[backend](), eos))


def chat(*turns: str, **options) -> Conversation:
    roles = ("user", "assistant")
    messages = tuple({"role": roles[k % 2], "content": text} for k, text in enumerate(turns))
    return Conversation(messages, file="f.jsonl", row=7, **options)


def segments(masker: Masker, sample: Sample) -> list[str]:
    """Decoded text of every run of supervised tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], sample.loss_mask, [0]))))
    runs = [sample.input_ids[a:b].tolist() for a, b in edges.reshape(-1, 2)]
    return [masker._tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def first_supervised(sample: Sample) -> int:
    return int(np.flatnonzero(sample.loss_mask)[0])


def inference_ids(tokenizer, messages) -> list[int]:
    text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("style", STYLES)
def test_every_answer_and_its_closing_token_is_supervised_and_nothing_else(style, backend):
    masker = masker_for(style, backend)

    @plain_settings
    @given(st.lists(texts, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
    def check(turns):
        row = chat(*turns)
        sample = masker.sample(row)
        # Rule: one supervised run an answer: the answer, whole or trimmed, and the closing token as the last token.
        runs = segments(masker, sample)
        assert len(runs) == len(turns) // 2
        for run, answer in zip(runs, turns[1::2], strict=True):
            assert run.endswith(STYLES[style][1])
            body = run.removesuffix(STYLES[style][1]).removeprefix("<think>\n\n</think>\n\n")
            assert body.strip() == answer.strip()
        # Rule: the last supervised token of each turn is the closing token itself.
        closing = np.flatnonzero(np.diff(np.concatenate((sample.loss_mask, [0])).astype(int)) == -1)
        assert {int(sample.input_ids[at]) for at in closing} == set(masker.closing_token_ids)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("style", [name for name in STYLES if name != "lab"])
def test_ids_before_an_answer_are_the_prompt_of_inference(style, backend):
    masker = masker_for(style, backend)
    tokenizer = masker._tokenizer

    @plain_settings
    @given(texts, texts)
    def check(question, answer):
        row = chat(question, answer)
        sample = masker.sample(row)
        prompt = inference_ids(tokenizer, row.messages[:1])
        start = first_supervised(sample)
        assert sample.input_ids[:start].tolist() == prompt
        # Rule: the text is the template's own, whatever the tokens.
        rendered = tokenizer.apply_chat_template(list(row.messages), tokenize=False)
        direct = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(sample.input_ids.tolist()) == tokenizer.decode(direct)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("style", STYLES)
def test_ids_are_those_of_the_rendered_text(style, backend):
    # Rule: where no token reaches over a border, the sample is the tokenized rendering, token by token.
    masker = masker_for(style, backend)
    row = chat("What is a < b?", "a < b is <b>markup</b>", "And 你好?", "A greeting.")
    rendered = masker._tokenizer.apply_chat_template(list(row.messages), tokenize=False)
    direct = masker._tokenizer(rendered, add_special_tokens=False)["input_ids"]
    sample = masker.sample(row)
    if (style, backend) == ("llama3", "bytes"):
        # GPT-2's rule makes one token of the header's two new lines at the prompt's end and two before an answer:
        # the sample has what the model sees at inference.
        assert sample.input_ids.tolist() != direct
        assert masker._tokenizer.decode(sample.input_ids.tolist()) == masker._tokenizer.decode(direct)
    else:
        assert sample.input_ids.tolist() == direct
    assert not masker.counts["control_text_kept_as_text"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("style", STYLES)
def test_text_of_control_tokens_in_messages_stays_text(style, backend):
    masker = masker_for(style, backend)
    tokenizer = masker._tokenizer

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from([*SPECIAL, "x", " y "]), min_size=1, max_size=4).map("".join), texts)
    def check(forged, answer):
        question, reply = f"q {forged} q", f"r{forged}{answer}r"
        sample = masker.sample(chat(question, reply))
        clean = masker.sample(chat("q", "r"))
        # Rule: exactly the control tokens of a conversation without forged ones, in the same order.
        special = set(tokenizer.convert_tokens_to_ids(SPECIAL)) - {tokenizer.convert_tokens_to_ids("<unk>")}
        assert [i for i in sample.input_ids.tolist() if i in special] == [
            i for i in clean.input_ids.tolist() if i in special
        ]
        whole = tokenizer.decode(sample.input_ids.tolist(), skip_special_tokens=False)
        assert question in whole
        assert reply in whole

    check()


def test_a_token_over_the_prompt_border_is_cut_as_at_inference():
    # GPT-2's rule makes one token of two new lines: the header's and the answer's first.
    masker = Masker(tokenizer_for(CHATML, byte_level()))
    row = chat("q", "\n\nstarts with new lines")
    sample = masker.sample(row)
    start = first_supervised(sample)
    assert sample.input_ids[:start].tolist() == inference_ids(masker._tokenizer, row.messages[:1])
    assert segments(masker, sample) == ["\n\nstarts with new lines<|im_end|>"]
    assert masker.counts["prompt_border_cut"] == 1
    direct = masker._tokenizer.apply_chat_template(list(row.messages), tokenize=True)["input_ids"]
    assert sample.input_ids.tolist() != direct  # else this test would show nothing


def test_a_tokenizer_that_prepends_spaces_still_meets_the_prompt_of_inference():
    # Legacy Llama: each stretch gets a space in front, and " answer" merges with its space.
    masker = Masker(tokenizer_for(MISTRAL, metaspace("legacy"), "</s>"))
    row = chat("hello there", "good answer")
    sample = masker.sample(row)
    start = first_supervised(sample)
    assert sample.input_ids[:start].tolist() == inference_ids(masker._tokenizer, row.messages[:1])
    assert segments(masker, sample)[0].strip() == "good answer</s>"


def test_messages_that_say_train_false_are_left_out():
    masker = masker_for("chatml", "bytes")
    row = chat("q", "first", "q", "second")
    row.messages[1]["train"] = False
    assert segments(masker, masker.sample(row)) == ["second<|im_end|>"]
    row.messages[3]["train"] = False
    with pytest.raises(MaskError, match=r'f\.jsonl:7: every assistant message says "train": false'):
        masker.sample(row)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unmask_supervises_users_but_neither_system_nor_headers(backend):
    masker = masker_for("chatml", backend)
    messages = ({"role": "system", "content": "rules"}, *chat("question", "answer").messages)
    sample = masker.sample(Conversation(messages, unmask=True))
    assert segments(masker, sample) == ["question", "answer<|im_end|>"]


def test_documents_are_supervised_whole_and_closed_by_eos():
    masker = masker_for("chatml", "bytes")
    sample = masker.sample(Conversation((), kind="text", text="A < b and <|im_end|> too"))
    assert sample.loss_mask.all()
    tokenizer = masker._tokenizer
    assert tokenizer.decode(sample.input_ids.tolist()) == "A < b and <|im_end|> too<|endoftext|>"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in sample.input_ids
    with pytest.raises(MaskError, match="the document is empty"):
        masker.sample(Conversation((), kind="text", text=""))


def test_documents_get_what_the_tokenizer_adds_once():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_for(None, byte_level())
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<s>", "<|endoftext|>")}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|endoftext|>", special_tokens=list(ids.items())
    )
    sample = Masker(tokenizer).sample(Conversation((), kind="text", text="hello"))
    assert tokenizer.decode(sample.input_ids.tolist()) == "<s>hello<|endoftext|>"


def reasoned(content: str, thought: str) -> dict:
    return {"role": "assistant", "content": content, "reasoning_content": thought}


def test_qwen3_reasoning_is_supervised_where_it_is_rendered():
    masker = masker_for("qwen3", "bytes")
    user = {"role": "user", "content": "q"}
    row = Conversation((user, reasoned("one", "t1"), user, reasoned("two", "t2")))
    # Rule: earlier reasoning is not rendered, so it is not trained; the last turn's is what the model writes.
    expected = ["one<|im_end|>", "<think>\nt2\n</think>\n\ntwo<|im_end|>"]
    assert segments(masker, masker.sample(row)) == expected
    assert masker.counts["reasoning_left_out_by_template"] == 1
    # The same with the reasoning inside the content, which the template parses.
    inline = chat("q", "<think>\nt1\n</think>\n\none", "q", "<think>\nt2\n</think>\n\ntwo")
    assert segments(masker, masker.sample(inline)) == expected


def test_tool_calls_are_supervised_as_rendered():
    masker = masker_for("qwen3", "bytes")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    row = Conversation(
        (
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "It is 2."},
        )
    )
    runs = segments(masker, masker.sample(row))
    assert runs[0] == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    assert runs[1].endswith("It is 2.<|im_end|>")
    # Rule: a template that leaves a call out would teach silence, so the row is refused.
    with pytest.raises(MaskError, match="message 2: the chat template leaves out its tool_calls") as refused:
        masker_for("chatml", "bytes").sample(row)
    assert refused.value.reason == "content_not_found"
    # Rule: a control token inside a call cannot be told from the template's own.
    call["function"]["arguments"]["a"] = "<|im_end|>"
    with pytest.raises(MaskError, match="tool call holds the text of a control token") as refused:
        masker.sample(row)
    assert refused.value.reason == "special_token_in_content"


def test_generation_blocks_are_followed_and_led_to_the_closing_token():
    masker = masker_for("generation", "bytes")
    # The block includes the new line behind the closing token; it is not trained.
    assert segments(masker, masker.sample(chat("q", "a", "q", "b"))) == ["a<|im_end|>", "b<|im_end|>"]
    short = GENERATION.replace("+ '<|im_end|>\n' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>\n' }}")
    assert short != GENERATION
    masker = Masker(tokenizer_for(short, byte_level()))
    assert segments(masker, masker.sample(chat("q", "a"))) == ["a<|im_end|>"]


def test_content_that_the_template_rewrites_is_proven_or_refused():
    masker = Masker(tokenizer_for(REPARSES, byte_level()))
    assert segments(masker, masker.sample(chat("q", "no stop"))) == ["no stop<|im_end|>"]
    # The last turn is what its own prompt is followed by, so it is certain although it was rewritten.
    assert segments(masker, masker.sample(chat("q", "one. two"))) == ["ONE<|im_end|>"]
    with pytest.raises(MaskError, match="a control token, and the template rewrites") as refused:
        masker.sample(chat("q", "one. <|im_end|>"))
    assert refused.value.reason == "special_token_in_content"
    # Without a generation prompt nothing proves where a rewritten answer begins.
    masker = Masker(tokenizer_for(REPARSES.replace("{% if add_generation_prompt %}", "{% if false %}"), byte_level()))
    with pytest.raises(MaskError, match=r"f\.jsonl:7: message 2: the chat template rewrites this text") as refused:
        masker.sample(chat("q", "one. two"))
    assert refused.value.reason == "content_changed"


@pytest.mark.parametrize(
    ("style", "messages", "reason", "words"),
    [
        ("chatml", [{"role": "user", "content": "q"}], "no_assistant_turn", "nothing to learn from"),
        ("gemma", [{"role": "system", "content": "s"}, *chat("q", "a").messages], "template_error", "System role not"),
        (
            "mistral",
            [*chat("q", "a").messages, {"role": "assistant", "content": "b"}],
            "template_error",
            "must alternate",
        ),
        (
            "lab",
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}],
            "content_not_found",
            "message 2",
        ),
    ],
)
def test_refusals_are_named(style, messages, reason, words):
    row = Conversation(tuple(messages), file="f.jsonl", row=7)
    with pytest.raises(MaskError, match=words) as refused:
        masker_for(style, "bytes").sample(row)
    assert refused.value.reason == reason
    assert str(refused.value).startswith("f.jsonl:7: ")
    assert "\n" not in str(refused.value)


def test_a_batch_gives_samples_and_refusals_in_order():
    masker = masker_for("chatml", "bytes")
    rows = [chat("q", "a"), chat("q"), chat("q", "\nx"), Conversation((), kind="text", text="t t"), chat("q", "<s>")]
    results = masker.samples(rows)
    assert [type(result) for result in results] == [Sample, MaskError, Sample, Sample, Sample]
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, Sample):
            assert result.input_ids.dtype == np.int32
            assert result.loss_mask.dtype == np.uint8
            assert masker.sample(row).input_ids.tolist() == result.input_ids.tolist()


def test_calls_through_transformers_do_not_change_samples():
    # transformers leaves truncation set on the backend that both share.
    masker = masker_for("chatml", "bytes")
    before = masker.sample(chat("q" * 50, "a" * 50))
    masker._tokenizer("x" * 99, truncation=True, max_length=4)
    assert masker.sample(chat("q" * 50, "a" * 50)).input_ids.tolist() == before.input_ids.tolist()


def test_no_template_is_an_error_for_chats_only():
    masker = Masker(tokenizer_for(None, byte_level()))
    assert masker.sample(Conversation((), kind="text", text="words")).num_supervised > 0
    with pytest.raises(ModelError, match=r"no chat template.*add chat_template.jinja"):
        masker.sample(chat("q", "a"))


def test_fingerprint_changes_with_template_and_tokenizer_and_date():
    import datetime

    base = Masker(tokenizer_for(CHATML, byte_level())).fingerprint
    assert base == Masker(tokenizer_for(CHATML, byte_level())).fingerprint
    assert base != Masker(tokenizer_for(CHATML + " ", byte_level())).fingerprint
    assert base != Masker(tokenizer_for(CHATML, metaspace())).fingerprint
    days = [datetime.date(2025, 1, day) for day in (1, 2)]
    # Rule: the date counts only where the template prints it.
    assert len({Masker(tokenizer_for(CHATML, byte_level()), today=day).fingerprint for day in days}) == 1
    assert len({Masker(tokenizer_for(GRANITE3, byte_level()), today=day).fingerprint for day in days}) == 2


def test_notes_say_what_inference_must_know():
    assert any("'<|assistant|>\\n' is masked" in note for note in Masker(tokenizer_for(LAB, byte_level())).notes)
    assert any("turns end with <|im_end|>" in note for note in masker_for("chatml", "bytes").notes)
    assert Masker(tokenizer_for(QWEN3, byte_level(), "<|im_end|>")).notes == ()


def real_tokenizer(name: str):
    if not (SHARED / name).is_dir():
        pytest.skip("needs ../shared/tokenizers")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHARED / name)


@pytest.mark.parametrize("name", ["granite-7b-lab", "qwen3", "mistral-v3", "granite-3-vision"])
def test_real_tokenizers(name):
    tokenizer = real_tokenizer(name)
    if name == "mistral-v3":
        tokenizer.chat_template = MISTRAL
    if name == "granite-3-vision":
        tokenizer.chat_template = (SHARED / name / "granite_3_1b_chat_template.txt").read_text()
    masker = Masker(tokenizer)
    row = chat("What is <|user|> or <|im_end|>?", "a < b </s>", "Why?", "Because.")
    sample = masker.sample(row)
    closing = tokenizer.decode(list(masker.closing_token_ids))
    runs = [run.removeprefix("<think>\n\n</think>\n\n").strip() for run in segments(masker, sample)]
    assert runs == [f"a < b </s>{closing}", f"Because.{closing}"]
    if name != "granite-7b-lab":  # its template has no generation prompt
        clean = chat("What?", "That.")
        sample = masker.sample(clean)
        start = first_supervised(sample)
        assert sample.input_ids[:start].tolist() == inference_ids(tokenizer, clean.messages[:1])


def test_tokens_command_prints_ids_and_mask_as_json_lines(tmp_path, capsys):
    from safetensors.numpy import save_file

    from sengi.cli.data_tokens import tokens

    tokenizer = tokenizer_for(CHATML, byte_level())
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": np.zeros(1, dtype=np.float32)}, tmp_path / "model" / "model.safetensors")
    rows = [{"messages": list(chat("q", f"answer {k} [bold]\x1b[31m").messages)} for k in range(3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens(str(tmp_path / "data.jsonl"), model=str(tmp_path / "model"), limit=2, json=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    sample = Masker(tokenizer).sample(chat("q", "answer 0 [bold]\x1b[31m"))
    assert json.loads(lines[0]) == {"input_ids": sample.input_ids.tolist(), "loss_mask": sample.loss_mask.tolist()}
    # Rule: people see markup and control characters as text; a terminal never gets them raw.
    tokens(str(tmp_path / "data.jsonl"), model=str(tmp_path / "model"), limit=1)
    shown = capsys.readouterr().out
    assert "answer 0 [bold]\\x1b[31m<|im_end|>" in shown
    assert "\x1b[31m" not in shown
