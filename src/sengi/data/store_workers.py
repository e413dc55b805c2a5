"""Batches of rows to blocks of tokens: this process with a second thread, and more processes where they pay.

One thread reads, renders and masks while another encodes the batches before, mostly in NumPy, Arrow and the tokenizer,
which let go of Python's lock (and the last uses all cores for what is new to it). That keeps two cores busy. Where
there are more, the first thread is what holds up, and the rest will take a while, worker processes are started.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeAlias

from sengi.conversation import Conversation
from sengi.data.rows import RowError
from sengi.errors import DataError
from sengi.masks.batch import Block, Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sengi.masks.masker import Masker

BATCH = 4000  # most rows that are rendered, encoded and masked at a time
BATCH_CHARS = 2_000_000  # most characters of them: an encoding holds about 100 bytes a token, for three batches
AHEAD = 2  # batches that wait for the encoder, so that it never waits for one
TRIED = 3  # batches after which it is known whether the encoder waits
IDLE = 0.1  # less of its time than this does the first thread wait when it is the one that holds up
THREADS = 2  # cores that this process keeps busy by itself
WORTH_SECONDS = 15.0  # starting workers takes each 1-2 s of a core

Row: TypeAlias = Conversation | RowError
Batch: TypeAlias = list[tuple[int, Row]]  # (number of the file, row)
Done: TypeAlias = tuple[Batch, Block]


def blocks(
    rows: Iterator[tuple[int, Row]],
    masker: Masker,
    tokenizer: PreTrainedTokenizerBase,
    workers: int,
    share_read: Callable[[], float],
) -> Iterator[Done]:
    """Tokens of all rows, batch by batch, in order.

    Args:
        rows: with the number of their file.
        masker: its ``counts`` are added up, those of worker processes too.
        tokenizer: sent to worker processes.
        workers: most processes to use.
        share_read: share of the files that was read so far, to guess what is left.

    Yields:
        A batch, and the block of those of its rows that are conversations.

    Raises:
        DataError: a worker process died.
    """
    batches = _batches(rows)
    clock = _Clock(share_read)
    yield from _alone(batches, masker, lambda: workers > THREADS and clock.workers_pay(), clock)
    if (first := next(batches, None)) is not None:
        yield from _together(itertools.chain([first], batches), masker, tokenizer, workers)


def _batches(rows: Iterator[tuple[int, Row]]) -> Iterator[Batch]:
    batch: Batch = []
    size = 0
    for entry, row in rows:
        batch.append((entry, row))
        size += characters(row)
        if len(batch) == BATCH or size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def characters(row: Row) -> int:
    """Characters of a conversation's text and messages; of an error none."""
    if isinstance(row, RowError):
        return 0
    size = len(row.text)
    for message in row.messages:
        size += len(message.get("content") or "")
    return size


class _Clock:
    """How long the first thread waited, and how long the rest will take."""

    def __init__(self, share_read: Callable[[], float]) -> None:
        self._share_read, self._start = share_read, time.perf_counter()
        self.waited, self.batches = 0.0, 0

    def wait_for(self, future: Future[Work]) -> Work:
        """Wait, and note how long."""
        start = time.perf_counter()
        work = future.result()
        self.waited += time.perf_counter() - start
        self.batches += 1
        return work

    def workers_pay(self) -> bool:
        """Whether the encoder is idle and enough is left to do."""
        spent, share = time.perf_counter() - self._start, self._share_read()
        if self.batches < TRIED or not 0 < share < 1 or self.waited > IDLE * spent:
            return False
        return spent * (1 - share) / share > WORTH_SECONDS


def _alone(batches: Iterator[Batch], masker: Masker, enough: Callable[[], bool], clock: _Clock) -> Iterator[Done]:
    """Batches done by this process, until there are no more or ``enough`` says so."""
    with ThreadPoolExecutor(1, "encode") as encoder:
        waiting: deque[tuple[Batch, Future[Work]]] = deque()

        def finished() -> Done:
            batch, future = waiting.popleft()
            return batch, masker.finish(clock.wait_for(future))

        while not enough() and (batch := next(batches, None)) is not None:
            work = masker.prepare(_conversations(batch))
            waiting.append((batch, encoder.submit(masker.encode, work)))
            if len(waiting) > AHEAD:
                yield finished()
        while waiting:
            yield finished()


def _together(
    batches: Iterator[Batch], masker: Masker, tokenizer: PreTrainedTokenizerBase, workers: int
) -> Iterator[Done]:
    """Batches done by worker processes, and by this one until they are up."""
    # spawn: the parent has threads (tokenizers, torch) that a forked child would find in an unknown state
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer, masker.settings)) as pool:
        started = [pool.submit(_work, []) for _ in range(workers)]
        waiting: deque[tuple[Batch, Future[tuple[Block, Counter[str]]]]] = deque()

        def finished() -> Done:
            batch, future = waiting.popleft()
            block, counts = future.result()
            masker.counts.update(counts)
            return batch, block

        try:
            for batch in batches:
                if not any(future.done() for future in started):
                    yield batch, masker.block(_conversations(batch))
                    continue
                waiting.append((batch, pool.submit(_work, _conversations(batch))))
                if len(waiting) > 2 * workers:
                    yield finished()
            while waiting:
                yield finished()
        except BrokenProcessPool:
            raise DataError(
                "a tokenizing process died: free memory and run again, or put the call in your script under "
                "if __name__ == '__main__':"
            ) from None


def _conversations(batch: Batch) -> list[Conversation]:
    return [row for _, row in batch if isinstance(row, Conversation)]


_worker: Masker | None = None


def _start_worker(tokenizer: PreTrainedTokenizerBase, settings: tuple[date, bool]) -> None:
    """The tokenizer itself is sent: reading it from its folder would import most of transformers (8 s of a core)."""
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    from sengi.masks.masker import Masker

    today, quick = settings
    _worker = Masker(tokenizer, today=today, quick=quick)


def _work(rows: Sequence[Conversation]) -> tuple[Block, Counter[str]]:
    """A block and what the masker repaired in it."""
    assert _worker is not None
    before = _worker.counts.copy()
    return _worker.block(rows), _worker.counts - before
