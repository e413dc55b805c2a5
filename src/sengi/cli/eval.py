"""``sengi eval``: a model and tasks in, scores with intervals out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sengi.cli.console import err, is_first_process
from sengi.errors import InputError

if TYPE_CHECKING:
    from sengi.evaluate.suite import Suite
    from sengi.mt_bench.options import MTBenchOptions


@dataclass(frozen=True)
class JudgeOptions:
    """Options of the task mt_bench.

    Attributes:
        mt_bench: Folder of MT-Bench in FastChat's layout; answers and judgements are written beside the questions,
            or under --output.
        judge_url: Address of an OpenAI-compatible endpoint that judges.
        judge_model: Name of the judge there.
        judge_key_env: Environment variable that holds the judge's key; OPENAI_API_KEY for OpenAI's own address.
        judge_concurrency: Most requests to the judge at once.
        judge_timeout: Seconds to wait for one judgement.
        judge_repeat: Share of judgements made twice, to measure the judge's noise.
    """

    mt_bench: Path | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_key_env: str = ""
    judge_concurrency: int = 8
    judge_timeout: float = 120.0
    judge_repeat: float = 0.1


def eval_(
    model: str,
    *,
    tasks: list[str],
    num_fewshot: int | None = None,
    limit: int | None = None,
    data_root: Path | None = None,
    output: Path | None = None,
    apply_chat_template: bool = False,
    batch_tokens: int | None = None,
    select: str | None = None,
    judge: Annotated[JudgeOptions | None, Parameter(name="*")] = None,
) -> int:
    """Score a model, or every checkpoint of a run, and print the scores with their 95% intervals.

    Args:
        model: A model, checkpoint or run folder, a GGUF file, a hub id or smollm2-135m.
        tasks: What to ask: names of lm-eval tasks and groups (mmlu, gsm8k, open_llm_leaderboard_v2), questions:FILE,
            heldout:FILE, mt_bench; repeatable, or separated by commas.
        num_fewshot: Examples before each question; the task's own number if not given.
        limit: Only the first so many questions of each task; files of held-out conversations are taken whole.
        data_root: Folder of local benchmark files, where no hub can be reached (docs/benchmarks.md).
        output: Folder for results and samples in lm-eval's layout.
        apply_chat_template: Ask benchmarks through the model's chat template.
        batch_tokens: Tokens at a time, of a forward call (4096) or kept while texts are written (16384; 1280 on a CPU);
            less needs less memory.
        select: For a run: the task/metric (or task/metric/group=NAME) that chooses the best checkpoint; the first
            score if not given.
        judge: Options of mt_bench.

    Returns:
        The exit status.
    """
    from sengi.evaluate.suite import Suite, check, task_words

    words = task_words(tasks)
    mt_bench = _mt_bench_options(judge or JudgeOptions(), output, limit) if "mt_bench" in words else None
    suite = Suite(words, num_fewshot, limit, data_root, apply_chat_template, batch_tokens, mt_bench)
    _refuse_unused(suite, judge or JudgeOptions())
    names = check(suite)
    run = Path(model).expanduser()
    if (run / "recipe.yaml").is_file():
        if select is not None:
            from sengi.evaluate.checkpoints import check_select

            check_select(select, names)
        return _eval_run(run, suite, select, output)
    if select is not None:
        raise InputError(f"--select {select}: {model} is not a run folder, so there is no checkpoint to choose")
    return _eval_model(model, suite, output)


def _refuse_unused(suite: Suite, judge: JudgeOptions) -> None:
    """Raise for an option that nothing of what is asked looks at."""
    import dataclasses

    if not suite.benchmarks:
        why = "only for benchmarks, and --tasks names none; leave it out"
        if suite.num_fewshot is not None:
            raise InputError(f"--num-fewshot {suite.num_fewshot}: {why}")
        if suite.apply_chat_template:
            raise InputError(f"--apply-chat-template: {why}")
    if suite.mt_bench is None:
        for field in dataclasses.fields(judge):
            if getattr(judge, field.name) != field.default:
                option = f"--{field.name.replace('_', '-')} {getattr(judge, field.name)}"
                raise InputError(f"{option}: only for mt_bench, which --tasks does not name; leave it out")


def _mt_bench_options(judge: JudgeOptions, output: Path | None, limit: int | None) -> MTBenchOptions:
    from sengi.mt_bench.options import MTBenchOptions

    if judge.mt_bench is None or judge.judge_url is None or judge.judge_model is None:
        raise InputError(
            "--tasks mt_bench: needs --mt-bench DIR (its files), --judge-url URL and --judge-model NAME; "
            "see docs/mt-bench.md"
        )
    return MTBenchOptions(
        data=judge.mt_bench,
        judge_base_url=judge.judge_url,
        judge_model=judge.judge_model,
        judge_api_key_env=judge.judge_key_env,
        concurrency=judge.judge_concurrency,
        timeout=judge.judge_timeout,
        repeat_share=judge.judge_repeat,
        output=output / "mt_bench" if output is not None else judge.mt_bench,
        limit=limit,
    )


def _eval_model(model: str, suite: Suite, output: Path | None) -> int:
    """Score one model; an interrupted evaluation goes on where it stopped."""
    import shutil

    from sengi.cli.eval_display import print_scores
    from sengi.cli.output_paths import check_output_folder
    from sengi.evaluate.suite import evaluate
    from sengi.model.resolve import resolve_model

    folder = resolve_model(model)
    if output is not None:
        check_output_folder("--output", output)
    cache = _unfinished(folder, suite)
    with _progress() as show:
        result = evaluate(folder, suite, cache=cache, progress=show)
    if not is_first_process():
        return 0
    print_scores(result, title=model)
    if output is not None:
        from sengi.harness.output import write_output

        written = write_output(output, model, result, _settings(suite, folder))
        err.print("written:", str(written), markup=False, soft_wrap=True)
    shutil.rmtree(cache, ignore_errors=True)  # everything is scored and written: nothing is left to continue
    return 0


def _settings(suite: Suite, folder: Path) -> dict[str, Any]:
    """How it was asked, as lm-eval writes it into its results."""
    from sengi.model.load import load_tokenizer

    template = load_tokenizer(folder).chat_template if suite.apply_chat_template else None
    return {
        "model": "sengi",
        "model_source": "sengi",
        "model_args": {"pretrained": str(folder)},
        "num_fewshot": suite.num_fewshot,
        "limit": suite.limit,
        "batch_tokens": suite.batch_tokens,
        "chat_template": template,
        "fewshot_as_multiturn": suite.apply_chat_template,
    }


def _eval_run(run: Path, suite: Suite, select: str | None, output: Path | None) -> int:
    from sengi.cli.eval_display import print_run
    from sengi.evaluate.checkpoints import evaluate_run

    if output is not None:
        raise InputError(f"--output {output}: scores of a run are kept in {run / 'evaluations'}; leave --output out")
    with _progress() as show:
        result = evaluate_run(run, suite, select=select, progress=show)
    if is_first_process():
        print_run(result)
    return 0


def _unfinished(model: Path, suite: Suite) -> Path:
    """Where the answers of an unfinished evaluation lie, by what is asked of which folder.

    The name finds them again; that an answer belongs to the content of the model and to the very prompt is checked.
    What changes no answer is no part of it: who ran out of memory goes on with a smaller --batch-tokens.
    """
    import dataclasses
    import hashlib

    from sengi.cache import cache_folder

    asked = dataclasses.replace(suite, batch_tokens=1)
    name = hashlib.sha256(f"{model.resolve()} {asked}".encode()).hexdigest()[:32]
    return cache_folder() / "evaluations" / name


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar for each task with the time left; in a log, a line every tenth of the way; one process tells."""
    if not is_first_process():
        yield lambda done, total, task: None
        return
    from rich import progress

    live = err.is_terminal
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=err, disable=not live) as bar:
        line = bar.add_task("loading the model", total=None)
        told: dict[str, int] = {}

        def show(done: int, total: int, task: str) -> None:
            bar.update(line, completed=done, total=total, description=task)
            tenth = 10 * done // max(1, total)
            if not live and told.get(task) != tenth:
                told[task] = tenth
                err.print(f"{task}: {done:,} of {total:,}", markup=False)

        yield show
