"""The data doctor: what a training run would make of data files, before it starts."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sengi.conversation import Conversation, Sample
from sengi.data.archive import archive_members, is_archive
from sengi.data.check_report import CheckOptions, CheckReport, Overlong, summarize_lengths
from sengi.data.files import list_files, read_rows
from sengi.data.findings import Findings
from sengi.data.formats import detect_format, to_conversation
from sengi.data.overlap import OverlapIndex, Overlaps
from sengi.data.rows import NOTHING_TO_LEARN, Problem, RowError
from sengi.data.store_workers import BATCH_CHARS, characters
from sengi.errors import DataError, MaskError

if TYPE_CHECKING:
    from sengi.masks.masker import Masker

BATCH = 1000  # conversations tokenized at a time
PREVIEW_STEPS = 8  # steps packed for the preview
ROUND_TRIPS = 500  # chats rendered a second time, by transformers alone


def check_data(
    files: Sequence[str | Path],
    tokenizer: Any,
    *,
    max_length: int,
    max_tokens_per_device: int,
    effective_batch_size: int,
    overlong: Overlong = "drop",
    overlap_files: Sequence[str | Path] = (),
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read, format, render, tokenize and mask every row as a run would, and report what becomes of it.

    Args:
        files: data files, folders or hub dataset ids.
        tokenizer: the model's, with its chat template.
        max_length: tokens a sample may have.
        max_tokens_per_device: tokens a pack may hold.
        effective_batch_size: samples a step.
        overlong: what happens to samples above ``max_length``.
        overlap_files: evaluation files that must not stand in the data.
        progress: called with (bytes read, bytes in all).

    Raises:
        DataError: a path names nothing, or an evaluation file cannot be read. What is wrong inside the data
            files goes into the report.
    """
    from sengi.masks.masker import Masker

    options = CheckOptions(max_length, max_tokens_per_device, effective_batch_size, overlong)
    listed = [list_files(str(path)) for path in files]
    paths = [path for found, _ in listed for path in found]
    evaluation, not_compared = _evaluation_files(overlap_files)
    overlaps = Overlaps([OverlapIndex.of_file(path) for path in evaluation])
    checker = _Checker(options, Masker(tokenizer), tokenizer, overlaps)
    checker.report.files = [str(path) for path in paths]
    checker.report.skipped = [str(path) for _, skipped in listed for path in skipped]
    checker.report.not_compared = [str(path) for path in not_compared]
    total = sum(path.stat().st_size for path in paths)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for path in paths:
        checker.read(path, on_bytes)
    return checker.finish()


def _evaluation_files(names: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """Files that training data is compared with, archives too, and those of no known kind."""
    files: list[Path] = []
    others: list[Path] = []
    for name in names:
        if is_archive(name):
            files.append(Path(name).expanduser())
            continue
        found, skipped = list_files(str(name))
        archives = [path for path in skipped if is_archive(path) and archive_members(path)]
        files += sorted([*found, *archives])
        others += [path for path in skipped if path not in archives]
    return files, others


class _Checker:
    """Streams conversations through the masker and counts."""

    def __init__(self, options: CheckOptions, masker: Masker, tokenizer: Any, overlaps: Overlaps) -> None:
        self.report = CheckReport(options)
        self._started = time.perf_counter()
        self._masker = masker
        self._overlaps = overlaps
        self._tokenizer = tokenizer
        self._closers = {*masker.closing_token_ids, tokenizer.eos_token_id}
        self._findings = Findings(options.max_length)
        self._formats: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._all_lengths: list[int] = []
        self._kept_lengths: list[int] = []
        self._places: dict[bytes, str] = {}
        self._batch: list[Conversation] = []
        self._characters = 0  # of the batch

    def read(self, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Take in one file; what is wrong with it becomes a finding."""
        try:
            for number, row in read_rows(path, on_bytes=on_bytes):
                self.report.rows += 1
                self._row(row, str(path), number)
        except DataError as error:
            self._findings.add("unreadable_file", str(error))
        self._flush()

    def _row(self, row: dict[str, Any] | RowError, file: str, number: int) -> None:
        try:
            if isinstance(row, RowError):
                raise row
            conversation = to_conversation(row, file=file, row_number=number)
        except RowError as error:
            known = error.reason in NOTHING_TO_LEARN and isinstance(row, dict)
            self._formats[_format_name(row) if known else "unreadable"] += 1
            self._findings.add(error.reason, f"{file}:{number}", f"the row cannot be used; the first: {error}")
            return
        self._formats[_format_name(row)] += 1
        self._batch.append(conversation)
        self._characters += characters(conversation)
        if len(self._batch) == BATCH or self._characters >= BATCH_CHARS:
            self._flush()

    def _flush(self) -> None:
        batch, self._batch, self._characters = self._batch, [], 0
        if not batch:
            return
        self._overlaps.scan(batch)
        for conversation, result in zip(batch, self._masker.samples(batch), strict=True):
            self._duplicate(conversation)
            if isinstance(result, MaskError):
                message = f"its loss mask is not certain, so it is left out; the first: {result}"
                self._findings.add(result.reason, conversation.place, message, "warning")
            else:
                self._sample(conversation, result)

    def _duplicate(self, conversation: Conversation) -> None:
        content = (conversation.text, conversation.messages, conversation.tools)
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        first = self._places.setdefault(key, conversation.place)
        if first != conversation.place:
            self._findings.add("duplicate", f"{conversation.place} (as {first})")

    def _sample(self, conversation: Conversation, sample: Sample) -> None:
        length, limit = len(sample.input_ids), self.report.options.max_length
        self._all_lengths.append(length)
        place = conversation.place
        if sample.num_supervised == 0:
            self._findings.add("no_supervised_token", place)
            return
        if conversation.kind == "chat":
            if any(_is_empty_answer(message) for message in conversation.messages):
                self._findings.add("empty_answer", place)
            self._closing(conversation, sample)
            if self.report.round_trip["tried"] < ROUND_TRIPS:
                self._round_trip(conversation, sample)
        supervised = sample.num_supervised
        if length > limit:
            self._findings.add(f"overlong_{self.report.options.overlong}", f"{place} ({length:,} tokens)")
            if self.report.options.overlong != "truncate":
                return
            supervised = int(sample.loss_mask[1:limit].sum())
            if supervised == 0:
                self._findings.add("truncated_no_supervised_token", place)
                return
        self._kept_lengths.append(min(length, limit))
        self.report.supervised_tokens += supervised
        self._sources[conversation.source] += 1
        if min(length, limit) > self.report.options.max_tokens_per_device:
            self._findings.add("over_budget", f"{place} ({min(length, limit):,} tokens)")

    def _closing(self, conversation: Conversation, sample: Sample) -> None:
        """Look at the last supervised token, whatever the masker promises: it must be the one that ends a turn."""
        ids = sample.input_ids
        last = int(np.flatnonzero(sample.loss_mask)[-1])
        if int(ids[last]) in self._closers:
            return
        final = conversation.messages[-1]
        ends_supervised = final["role"] == "assistant" and final.get("train", True)
        left_over = ends_supervised and self._tokenizer.decode(ids[last + 1 :].tolist()).strip()
        self._findings.add("closing_token_outside_mask" if left_over else "no_closing_token", conversation.place)

    def _round_trip(self, conversation: Conversation, sample: Sample) -> None:
        """Compare the ids with what transformers itself makes of the conversation, without any code of ours."""
        messages = [{k: v for k, v in message.items() if k != "train"} for message in conversation.messages]
        tools = list(conversation.tools) if conversation.tools else None
        text = self._tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        expected = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        self.report.round_trip["tried"] += 1
        if list(expected) == sample.input_ids.tolist():
            self.report.round_trip["equal"] += 1
        else:
            self._findings.add("round_trip", conversation.place)

    def finish(self) -> CheckReport:
        """Sum up."""
        report = self.report
        report.usable = len(self._kept_lengths)
        report.tokens = sum(self._kept_lengths)
        report.formats = dict(self._formats.most_common())
        report.sources = dict(self._sources.most_common())
        report.lengths = summarize_lengths(np.array(self._all_lengths, np.int64))
        report.repairs = dict(self._masker.counts)
        report.notes = list(self._masker.notes)
        report.overlap = self._overlaps.reports()
        for overlap in report.overlap:
            for example in overlap.examples:
                self._findings.add("overlap", f"{example['train']} (as {example['evaluation']})")
            rest = overlap.training_rows - len(overlap.examples)
            if rest:
                self._findings.add("overlap", count=rest)
        if report.usable == 0:
            self._findings.add("nothing_left", f"0 of {report.rows:,} rows")
        else:
            report.packing = self._packing()
        report.findings = self._findings.sorted()
        report.seconds = round(time.perf_counter() - self._started, 3)
        return report

    def _packing(self) -> dict[str, Any] | None:
        """Pack the first steps of a shuffled epoch."""
        from sengi.data.packing import pack_lengths

        options = self.report.options
        lengths = np.array(self._kept_lengths, np.int64)
        if int(lengths.max()) > options.max_tokens_per_device:
            return None
        size, budget = options.effective_batch_size, options.max_tokens_per_device
        steps = -(-len(lengths) // size)
        if len(lengths) < size:
            self._findings.add("batch_larger_than_data", f"{len(lengths):,} samples, batch {size:,}")
        order = np.random.default_rng(0).permutation(lengths)
        whole = max(1, min(PREVIEW_STEPS, len(lengths) // size))
        previewed = [order[step * size : (step + 1) * size] for step in range(whole)]
        packs = [pack_lengths(step, budget) for step in previewed]
        tokens = sum(int(step.sum()) for step in previewed)
        return {
            "steps_per_epoch": steps,
            "last_step_samples": len(lengths) - (steps - 1) * size,
            "tokens_per_step": round(tokens / whole),
            "packs_per_step": round(sum(packs) / whole, 2),
            "fill": round(tokens / (sum(packs) * budget), 4),
        }


def _format_name(row: dict[str, Any] | RowError) -> str:
    if isinstance(row, RowError):
        return "unreadable"
    try:
        return detect_format(row)
    except Problem:
        return "unreadable"


def _is_empty_answer(message: dict[str, Any]) -> bool:
    if message["role"] != "assistant" or not message.get("train", True):
        return False
    return not any((message["content"].strip(), message.get("tool_calls"), message.get("reasoning_content")))
