"""MT-Bench from end to end: the model answers two turns, a judge rates them, the ratings become scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sengi.evaluation import Evaluation
from sengi.mt_bench.cache import key_of
from sengi.mt_bench.files import load_bench
from sengi.mt_bench.judge import check_judge, judge_answers, judgement_cache
from sengi.mt_bench.options import JUDGE_MAX_TOKENS, JUDGE_TEMPERATURE, MAX_NEW_TOKENS, MTBenchOptions
from sengi.mt_bench.scores import count_judgements, score_judgements
from sengi.storage import create_folder, lock


def check_mt_bench(options: MTBenchOptions) -> None:
    """Refuse what cannot work, before a model is loaded: files, key, and an address where nothing answers.

    A judge that has judged into this output folder before is not called again here: a finished evaluation can be
    read without it.

    Raises:
        InputError: naming the file and line, or the option.
    """
    load_bench(options.data, options.judge_model, options.limit)
    known = judgement_cache(options)
    check_judge(options, reach=not (known.is_file() and known.stat().st_size))


def mt_bench_fingerprint(options: MTBenchOptions) -> str:
    """SHA-256 of everything beside the model that decides the scores: files, judge, limits.

    The judge's address is not part of it: the same judge may listen elsewhere tomorrow.
    """
    bench = load_bench(options.data, options.judge_model, options.limit)
    settings = [options.judge_model, options.repeat_share, MAX_NEW_TOKENS, JUDGE_MAX_TOKENS, JUDGE_TEMPERATURE]
    return key_of(bench.fingerprint(), settings)


def evaluate_mt_bench(
    model_folder: Path,
    options: MTBenchOptions,
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Score a model on MT-Bench; an interrupted evaluation continues where it stopped.

    Args:
        model_folder: a model or checkpoint folder with a chat template.
        options: files and judge.
        batch_tokens: tokens that the answering model keeps at a time; None: as many as pay on the device.
        progress: called with (done, in all, what); answers first, then judgements.

    Returns:
        Scores of task ``mt_bench``, metric ``score``, from 1 to 10, as :func:`sengi.mt_bench.scores.score_judgements`
        makes them; ``excluded`` lists every judgement that could not be read and every question without answers.

    Raises:
        InputError: a file, the model, the key or the address cannot be used; or another evaluation is writing there.
        SengiError: the judge stopped answering; everything so far is kept for the next call.
    """
    from sengi.mt_bench.answers import answer_bench

    started = time.perf_counter()
    bench = load_bench(options.data, options.judge_model, options.limit)
    check_judge(options, reach=False)
    create_folder(options.output)
    with lock(options.output):
        answered = answer_bench(
            model_folder, bench.questions, options.output, batch_tokens=batch_tokens, progress=progress
        )
        judged = judge_answers(bench, answered.answers, answered.model_name, options, progress)
    evaluation = score_judgements(bench, answered.answers, judged.judgements, answered.excluded, options.judge_model)
    evaluation.notes += answered.notes + count_judgements(judged.judgements) + judged.notes
    if answered.shortened:
        count = len(answered.shortened)
        evaluation.notes.append(f"{count} question(s) had room for fewer than {MAX_NEW_TOKENS:,} tokens of answer")
    if judged.retries:
        listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(judged.retries.items()))
        evaluation.notes.append(f"requests to the judge that were sent again: {listed}")
    evaluation.seconds = time.perf_counter() - started
    return evaluation
