from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sengi.conversation import Conversation, Sample
from sengi.data import check as check_module
from sengi.data.check import check_data
from sengi.data.check_report import CheckReport, summarize_lengths
from sengi.data.overlap import COMMON, NGRAM, OverlapIndex, Overlaps, evaluation_rows
from sengi.data.packing import pack_lengths
from sengi.errors import DataError
from sengi.masks.masker import Masker

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPTIONS = {"max_length": 200, "max_tokens_per_device": 200, "effective_batch_size": 1}


def byte_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """One token a byte: lengths in tests can be counted by hand."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = template
    return tokenizer


TOKENIZER = byte_tokenizer()


def chat(question: str, answer: str, **extra: object) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **extra}]}


def write(path: Path, rows: list) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def check(files: str | list[str], **options: object) -> CheckReport:
    files = [files] if isinstance(files, str) else files
    return check_data(files, options.pop("tokenizer", TOKENIZER), **{**OPTIONS, **options})


def found(report: CheckReport) -> dict[str, tuple[str, int, list[str]]]:
    return {
        finding.reason: (finding.severity, finding.count, [row.rpartition("/")[2] for row in finding.rows])
        for finding in report.findings
    }


# ---- counts


def test_clean_data_is_counted_to_the_token(tmp_path):
    rows = [{**chat(f"q{n}", "a" * n), "source": "even" if n % 2 == 0 else "odd"} for n in range(1, 10)]
    seen: list[tuple[int, int]] = []
    path = write(tmp_path / "a.jsonl", rows)
    report = check(path, progress=lambda done, total: seen.append((done, total)))
    assert (report.verdict, report.rows, report.usable) == ("ok", 9, 9)
    assert report.formats == {"messages": 9}
    assert report.sources == {"odd": 5, "even": 4}
    # <|im_start|>user\n q n <|im_end|> \n  <|im_start|>assistant\n a*n <|im_end|> \n
    lengths = [1 + 5 + 2 + 1 + 1 + 1 + 10 + n + 1 + 1 for n in range(1, 10)]
    assert report.tokens == sum(lengths)
    assert report.supervised_tokens == sum(n + 1 for n in range(1, 10))
    assert report.lengths["min"] == lengths[0]
    assert report.lengths["max"] == lengths[-1]
    size = Path(path).stat().st_size
    assert seen[-1] == (size, size)
    as_json = json.loads(json.dumps(report.to_dict()))
    assert as_json["verdict"] == "ok"
    assert as_json["supervised_share"] == round(report.supervised_tokens / report.tokens, 6)


def test_formats_are_told_apart_and_other_files_named(tmp_path):
    write(tmp_path / "a.jsonl", [chat("q", "a"), {"prompt": "q", "completion": "b"}, {"text": "a document"}])
    (tmp_path / "notes.md").write_text("x")
    report = check(str(tmp_path))
    assert report.formats == {"messages": 1, "prompt-completion": 1, "text": 1}
    assert report.skipped == [str(tmp_path / "notes.md")]
    assert report.usable == 3


def test_bad_rows_are_errors_with_their_lines_and_the_rest_is_read(tmp_path):
    rows = [chat("q", "a"), "{", {"x": 1}, '{"a": 1, "a": 2}', {"y": 1}, chat("q", "b")]
    report = check(write(tmp_path / "a.jsonl", rows))
    assert report.verdict == "errors"
    assert report.formats == {"unreadable": 4, "messages": 2}
    assert found(report) == {
        "unknown_format": ("error", 2, ["a.jsonl:3", "a.jsonl:5"]),
        "not_json": ("error", 1, ["a.jsonl:2"]),
        "duplicate_key": ("error", 1, ["a.jsonl:4"]),
    }
    assert (report.rows, report.usable) == (6, 2)


def test_a_cut_file_is_an_error_and_the_others_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(chat("q", "a")) + '\n{"mess')
    write(tmp_path / "b.jsonl", [chat("q", "b")])
    report = check(str(tmp_path))
    (finding,) = report.findings
    assert (finding.severity, finding.reason, report.usable) == ("error", "unreadable_file", 2)
    assert f"{tmp_path}/a.jsonl:2: the last line is cut" in finding.rows[0]


def test_long_lists_are_cut_and_counted_in_full(tmp_path):
    report = check(write(tmp_path / "a.jsonl", [chat("same", "same")] * 51))
    severity, count, rows = found(report)["duplicate"]
    assert (severity, count, len(rows)) == ("warning", 50, 20)
    assert rows[0].startswith("a.jsonl:1)")  # "...a.jsonl:2 (as .../a.jsonl:1)"
    assert (report.verdict, report.usable) == ("warnings", 51)


# ---- what a run would leave out


def test_rows_without_anything_to_learn(tmp_path):
    rows = [
        chat("q", "a"),
        chat("q", "b", train=False),
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": []},
        {"text": " "},
    ]
    report = check(write(tmp_path / "a.jsonl", rows))
    assert report.verdict == "warnings"
    assert report.usable == 1
    assert {reason: rows for reason, (_, _, rows) in found(report).items()} == {
        "no_supervised_token": ["a.jsonl:2"],
        "no_assistant_turn": ["a.jsonl:3"],
        "empty_messages": ["a.jsonl:4"],
        "empty_text": ["a.jsonl:5"],
    }


def test_an_empty_answer_is_named(tmp_path):
    rows = [chat("Hi", ""), chat("Hi", "Hello."), chat("Who?", "I.")]
    rows[2]["messages"] += [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "", "train": False}]
    report = check(write(tmp_path / "rows.jsonl", rows))
    assert found(report)["empty_answer"] == ("warning", 1, ["rows.jsonl:1"])


def test_batches_are_bounded_by_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "BATCH_CHARS", 100)
    sizes = []
    real = Overlaps.scan
    monkeypatch.setattr(Overlaps, "scan", lambda self, batch: sizes.append(len(batch)) or real(self, batch))
    check(write(tmp_path / "rows.jsonl", [chat("Hi", "x" * 60) for _ in range(5)]))
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(
    ("overlong", "severity", "usable"), [("drop", "warning", 1), ("truncate", "warning", 2), ("error", "error", 1)]
)
def test_overlong(tmp_path, overlong, severity, usable):
    rows = [chat("q", "a"), chat("q", "b" * 300), chat("q" * 300, "c")]
    report = check(write(tmp_path / "a.jsonl", rows), overlong=overlong)
    assert found(report)[f"overlong_{overlong}"][:2] == (severity, 2)
    assert report.usable == usable
    assert "max_length=200" in next(f.message for f in report.findings if f.reason.startswith("overlong"))
    if overlong == "truncate":
        # The cut leaves the long question without its answer, and the long answer without its closing token.
        assert found(report)["truncated_no_supervised_token"][2] == ["a.jsonl:3"]
        assert report.tokens == 23 + 200
        assert report.supervised_tokens == 2 + (200 - 20)


def test_what_the_masker_refuses_is_counted_by_its_reason(tmp_path):
    guard = "{% if messages|length > 2 %}{{ raise_exception('two at most') }}{% endif %}"
    long = {"messages": chat("q", "a")["messages"] * 2}
    report = check(write(tmp_path / "a.jsonl", [chat("q", "a"), long]), tokenizer=byte_tokenizer(guard + CHATML))
    (finding,) = report.findings
    assert (finding.severity, finding.reason, finding.count, report.usable) == ("warning", "template_error", 1, 1)
    assert finding.rows == [f"{tmp_path}/a.jsonl:2"]
    assert "left out" in finding.message
    assert "two at most" in finding.message


def test_a_template_without_closing_token_is_named(tmp_path):
    open_ended = byte_tokenizer(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    report = check(write(tmp_path / "a.jsonl", [chat("question", "answer")]), tokenizer=open_ended)
    assert found(report) == {"no_closing_token": ("warning", 1, ["a.jsonl:1"])}
    assert any("no control token" in note for note in report.notes)


def test_a_closing_token_outside_the_mask_is_seen_whatever_the_masker_says(tmp_path, monkeypatch):
    # Rule: the doctor looks at the ids themselves; here a masker that forgets the last supervised token.
    honest = Masker.samples

    def forgetful(self: Masker, rows: list[Conversation]) -> list:
        samples = honest(self, rows)
        for sample in samples:
            sample.loss_mask[np.flatnonzero(sample.loss_mask)[-1]] = 0
        return samples

    monkeypatch.setattr(Masker, "samples", forgetful)
    report = check(write(tmp_path / "a.jsonl", [chat("question", "answer")]))
    assert found(report) == {"closing_token_outside_mask": ("warning", 1, ["a.jsonl:1"])}


def test_ids_that_are_not_the_templates_are_named_whatever_the_masker_says(tmp_path, monkeypatch):
    # Rule: the doctor renders chats once more through transformers alone; here a masker that doubles the first token.
    honest = Masker.samples

    def stammering(self: Masker, rows: list[Conversation]) -> list:
        samples = honest(self, rows)
        first = samples[0]
        ids, mask = np.insert(first.input_ids, 0, first.input_ids[0]), np.insert(first.loss_mask, 0, 0)
        return [Sample(ids, mask), *samples[1:]]

    path = write(tmp_path / "a.jsonl", [chat("question", "answer"), chat("another", "word")])
    assert check(path).round_trip == {"tried": 2, "equal": 2}
    monkeypatch.setattr(Masker, "samples", stammering)
    report = check(path)
    assert report.round_trip == {"tried": 2, "equal": 1}
    assert found(report) == {"round_trip": ("warning", 1, ["a.jsonl:1"])}


def test_nothing_left_is_an_error(tmp_path):
    report = check(write(tmp_path / "a.jsonl", [chat("q" * 300, "a")]))
    assert report.verdict == "errors"
    assert found(report)["nothing_left"][0] == "error"
    assert report.packing is None


def test_paths_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        check([write(tmp_path / "a.jsonl", [chat("q", "a")]), str(tmp_path / "none.jsonl")])


# ---- packing


def test_packing_preview_is_what_the_packer_does(tmp_path):
    report = check(write(tmp_path / "a.jsonl", [chat("q", "a" * n) for n in range(1, 9)]), effective_batch_size=8)
    lengths = np.array([22 + n for n in range(1, 9)])
    packs = pack_lengths(lengths, 200)
    assert report.packing == {
        "steps_per_epoch": 1,
        "last_step_samples": 8,
        "tokens_per_step": lengths.sum(),
        "packs_per_step": packs,
        "fill": round(lengths.sum() / (packs * 200), 4),
    }


def test_steps_and_their_short_last_one(tmp_path):
    path = write(tmp_path / "a.jsonl", [chat("q", f"a{n}") for n in range(10)])
    report = check(path, effective_batch_size=4)
    assert (report.packing["steps_per_epoch"], report.packing["last_step_samples"]) == (3, 2)
    assert found(check(path, effective_batch_size=11))["batch_larger_than_data"][0] == "warning"


def test_a_sample_above_the_budget_is_an_error(tmp_path):
    report = check(write(tmp_path / "a.jsonl", [chat("q", "a" * 100)]), max_tokens_per_device=64)
    assert found(report)["over_budget"][:2] == ("error", 1)


def test_lengths():
    summary = summarize_lengths(np.array([1, 32, 33, 64, 65, 500]))
    assert summary["buckets"] == [
        {"up_to": 32, "samples": 2},
        {"up_to": 64, "samples": 2},
        {"up_to": 128, "samples": 1},
        {"up_to": 256, "samples": 0},
        {"up_to": 512, "samples": 1},
    ]
    assert summary["median"] == 48.5
    assert summarize_lengths(np.array([], dtype=np.int64)) == {}


# ---- overlap


def words(start: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(start, start + count))


def test_overlap_by_whole_question_and_by_13_words(tmp_path):
    evaluation = write(
        tmp_path / "eval.jsonl",
        [
            {"question": "Who wrote the\tBlue Book?", "answer": "True"},
            {"question": words(0, 20), "choices": ["a", "b"]},
            {"question": "never seen in any training row at all", "answer": "x"},
        ],
    )
    train = write(
        tmp_path / "train.jsonl",
        [
            chat("who wrote the blue  book?", "Nobody."),
            chat("Is it so?", "True"),  # a short answer is no question
            chat("q", f"It begins {words(5, NGRAM)} and ends"),
            chat("q", f"It begins {words(5, NGRAM - 1)} and ends"),
            chat("I asked: who wrote the blue book?", "no: only whole messages, or 13 words, count"),
        ],
    )
    report = check(train, overlap_files=[evaluation])
    (overlap,) = report.overlap
    assert (overlap.rows, overlap.found, overlap.training_rows) == (3, 2, 2)
    assert overlap.examples == [
        {"train": f"{train}:1", "evaluation": f"{evaluation}:1", "kind": "exact"},
        {"train": f"{train}:3", "evaluation": f"{evaluation}:2", "kind": "13 words"},
    ]
    assert found(report)["overlap"][:2] == ("warning", 2)


def test_wording_that_many_evaluation_rows_share_is_no_overlap(tmp_path):
    prompt = "Answer the question with yes or no."
    for shared, expected in ((COMMON, 1), (COMMON + 1, 0)):  # in one file or in two
        rows = [{"instructions": prompt, "long": words(0, 15), "q": f"unique {number}"} for number in range(shared)]
        last = OverlapIndex("last", [("1", rows.pop())])
        overlaps = Overlaps([OverlapIndex.of_file(write(tmp_path / f"eval{shared}.jsonl", rows)), last])
        message = {"role": "user", "content": prompt}
        overlaps.scan([Conversation((message, {**message, "content": words(0, 15)}))])
        first, last = overlaps.reports()
        assert first.training_rows == last.training_rows == expected
        assert first.found == len(first.found_rows) == (shared - 1) * expected
        assert last.found_rows == ["1"] * expected


def test_overlap_file_that_cannot_be_read_is_an_error(tmp_path):
    train = write(tmp_path / "train.jsonl", [chat("q", "a")])
    with pytest.raises(DataError, match=r"eval\.jsonl:1: not valid JSON"):
        check(train, overlap_files=[write(tmp_path / "eval.jsonl", ["{"])])


def test_documents_and_archives_of_big_bench_hard_are_rows_one_by_one(tmp_path):
    rows = [{"input": words(0, 15), "target": "a"}, {"input": words(20, 15), "target": "b"}]
    document = tmp_path / "snarks.json"
    document.write_text(json.dumps({"canary": words(40, 20), "examples": rows}), encoding="utf-8")
    with tarfile.open(tmp_path / "bbh.tar.xz", "w:xz") as archive:
        archive.add(document, "bbh/snarks.json")
        archive.add(__file__, "bbh/README.md")
    chats = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    (tmp_path / "chat.json").write_text(json.dumps(chats[0]), encoding="utf-8")
    assert list(evaluation_rows(document)) == [("1", rows[0]), ("2", rows[1])]
    assert list(evaluation_rows(tmp_path / "chat.json")) == [("1", chats[0])]
    train = write(tmp_path / "train.jsonl", [chat(words(20, 15), "b")])
    for named in (tmp_path / "bbh.tar.xz", tmp_path):
        overlap = next(one for one in check(train, overlap_files=[named]).overlap if "bbh" in one.evaluation)
        assert (overlap.rows, overlap.found_rows) == (2, ["bbh/snarks.json:2"])


def test_an_archive_without_rows_is_an_error(tmp_path):
    train = write(tmp_path / "train.jsonl", [chat("q", "a")])
    with tarfile.open(tmp_path / "eval.tar", "w") as archive:
        archive.add(__file__, "README.md")
    with pytest.raises(DataError, match=r"eval\.tar: the archive holds no \.json or \.jsonl file"):
        check(train, overlap_files=[tmp_path / "eval.tar"])
    with pytest.raises(DataError, match=r"none\.tar: cannot be read"):
        check(train, overlap_files=[tmp_path / "none.tar"])
    write(tmp_path / "eval.jsonl", [{"question": "q"}])
    assert check(train, overlap_files=[tmp_path]).not_compared == [str(tmp_path / "eval.tar")]


FEW_WORDS = st.lists(st.sampled_from(["a", "b"]), min_size=8, max_size=20).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(FEW_WORDS, min_size=1, max_size=3), st.lists(FEW_WORDS, min_size=1, max_size=4))
def test_overlap_equals_comparing_every_pair(evaluation, training):
    # Rule: a training row overlaps when a whole user message, or any 13 words of one message, stand in the file.
    def grams(text: str) -> set[tuple[str, ...]]:
        split = text.split()
        return {tuple(split[at : at + NGRAM]) for at in range(len(split) - NGRAM + 1)}

    # The other evaluations beside it change nothing.
    others = [OverlapIndex("other", [("1", {"q": text})]) for text in ("a a a a b b b b", words(0, 20))]
    index = OverlapIndex("this", [(str(number), {"q": text}) for number, text in enumerate(evaluation)])
    rows = [Conversation(({"role": "user", "content": text},)) for text in training]
    Overlaps([others[0], index, others[1]]).scan(rows)
    hits = [(a, b) for a in training for b in evaluation if a == b or grams(a) & grams(b)]
    assert index.report().training_rows == sum(any(a == hit for hit, _ in hits) for a in training)
    assert index.report().found == sum(any(b == hit for _, hit in hits) for b in evaluation)
    assert index.report().found_rows == [
        str(number) for number, b in enumerate(evaluation) if any(b == hit for _, hit in hits)
    ]
