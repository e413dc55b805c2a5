"""Both answers of every question to the judge, a share of them twice, what was judged already not again."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sengi.mt_bench.cache import Cache, RowFile, file_name
from sengi.mt_bench.client import JudgeClient, Refusal
from sengi.mt_bench.files import Bench, QuestionId
from sengi.mt_bench.options import JUDGE_MAX_TOKENS, MTBenchOptions
from sengi.mt_bench.rating import UNREADABLE, Rating, read_rating
from sengi.mt_bench.requests import Answers, Request, plan_requests

ERROR_TEXT = "$ERROR$"  # what FastChat writes where the judge gave nothing
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of a request: a rating, or the reason why there is none."""

    question_id: QuestionId
    turn: int
    repeat: int
    rating: Rating


@dataclass
class Judged:
    """All judgements of a model, in the order of the questions, with what a reader must know about them."""

    judgements: list[Judgement]
    retries: dict[str, int]
    notes: list[str]


def judge_answers(
    bench: Bench,
    answers: Answers,
    model_name: str,
    options: MTBenchOptions,
    progress: Callable[[int, int, str], None] | None = None,
) -> Judged:
    """Let the judge rate every answer; what it said before is read from the cache.

    Every judgement is on disk as soon as it is there: in the cache, and as FastChat writes it in
    ``model_judgment/<judge>_single.jsonl``. Repeated ones are in ``<judge>_repeat.jsonl``, since FastChat's mean
    counts every row of the first file.

    Args:
        bench: questions and prompts.
        answers: both turns' answers by question id.
        model_name: names the model in FastChat's rows.
        options: the judge.
        progress: called with (judgements there, judgements in all, what).

    Raises:
        SengiError: the judge is down or refuses; what was judged so far is kept.
    """
    requests = plan_requests(bench, answers, options)
    judge, folder = file_name(options.judge_model), options.output / "model_judgment"
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(contextlib.closing(Cache(judgement_cache(options))))
        files = []
        for repeat, name in enumerate((f"{judge}_single.jsonl", f"{judge}_repeat.jsonl")):
            ours = {(model_name, r.question.id, r.turn) for r in requests if r.repeat == repeat}
            file = RowFile(folder / name, ours, ("model", "question_id", "turn"))
            files.append(stack.enter_context(contextlib.closing(file)))
        return _Judging(requests, cache, files, model_name, options, progress).run()


def check_judge(options: MTBenchOptions, *, reach: bool) -> None:
    """Refuse a judge that cannot be asked, before the model spends an hour on answers.

    Args:
        options: the judge.
        reach: also find out whether something answers at its address.

    Raises:
        InputError: the package openai or the key is missing, or nothing answers.
    """

    async def check() -> None:
        async with JudgeClient(options) as client:
            if reach:
                await client.reach()

    run_coroutine(check())


def judgement_cache(options: MTBenchOptions) -> Path:
    """The file of everything that this judge has said."""
    return options.output / "cache" / "judgements" / f"{file_name(options.judge_model)}.jsonl"


class _Judging:
    """The requests for one model, and where their judgements go."""

    def __init__(
        self,
        requests: Sequence[Request],
        cache: Cache,
        files: Sequence[RowFile],
        model_name: str,
        options: MTBenchOptions,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self._requests, self._cache, self._files = requests, cache, files
        self._model_name, self._options, self._progress = model_name, options, progress
        self._found: dict[tuple[QuestionId, int, int], Judgement] = {}

    def run(self) -> Judged:
        """Take what is in the cache, ask for the rest."""
        pending = []
        for request in self._requests:
            if request.key in self._cache:
                self._said(request)
            else:
                pending.append(request)
        retries: dict[str, int] = {}
        notes: list[str] = []
        if pending:
            client = JudgeClient(self._options)
            run_coroutine(self._ask_all(client, pending))
            retries, notes = dict(client.retries), client.notes
        judgements = [self._found[r.question.id, r.turn, r.repeat] for r in self._requests]
        return Judged(judgements, retries, notes)

    async def _ask_all(self, client: JudgeClient, pending: Sequence[Request]) -> None:
        """As many workers as requests may be under way; one that waits for a retry keeps its place, so that a judge
        with a rate limit gets fewer requests."""
        waiting = iter(pending)

        async def work() -> None:
            for request in waiting:
                what = f"question {request.question.id}, turn {request.turn}"
                result = await client.ask(request.prompt.messages(request.user_prompt), what)
                if isinstance(result, Refusal):
                    # Not in the cache: another run asks again, perhaps a judge with a longer context.
                    self._keep(request, Rating(None, result.reason), ERROR_TEXT, time.time())
                    continue
                facts = {"question_id": request.question.id, "turn": request.turn, "repeat": request.repeat}
                self._cache.add(request.key, judgment=result.text, cut=result.cut, **facts)
                self._said(request)

        async with client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._options.concurrency, len(pending))):
                        group.create_task(work())
            except BaseExceptionGroup as errors:
                cause: BaseException = errors
                while isinstance(cause, BaseExceptionGroup):
                    cause = cause.exceptions[0]
                raise cause from None

    def _said(self, request: Request) -> None:
        """Read the rating of a judgement that is in the cache."""
        row = self._cache[request.key]
        rating = read_rating(row["judgment"])
        if rating.score is None and row["cut"]:
            rating = Rating(None, f"no rating within {JUDGE_MAX_TOKENS:,} tokens")
        self._keep(request, rating, row["judgment"], row["tstamp"])

    def _keep(self, request: Request, rating: Rating, judgment: str, tstamp: float) -> None:
        row = _fastchat_row(request, self._model_name, self._options.judge_model, rating, judgment, tstamp)
        self._files[request.repeat].append(row)
        place = (request.question.id, request.turn, request.repeat)
        self._found[place] = Judgement(*place, rating)
        if self._progress is not None:
            self._progress(len(self._found), len(self._requests), "mt_bench judgements")


def _fastchat_row(
    request: Request, model_name: str, judge_model: str, rating: Rating, judgment: str, tstamp: float
) -> dict[str, Any]:
    """A judgement as FastChat's play_a_match_single writes it; whole scores as whole numbers."""
    score = UNREADABLE if rating.score is None else rating.score
    return {
        "question_id": request.question.id,
        "model": model_name,
        "judge": [judge_model, request.prompt.name],
        "user_prompt": request.user_prompt,
        "judgment": judgment,
        "score": int(score) if score == int(score) else score,
        "turn": request.turn,
        "tstamp": tstamp,
    }


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end, also where an event loop runs already (a notebook): then in a loop of a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    finally:
        future.cancel()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
