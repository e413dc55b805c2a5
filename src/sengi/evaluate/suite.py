"""One door to every evaluation: public benchmarks, MT-Bench, held-out conversations and the user's own questions.

A task is a word:

===================  =========================================================================
``mmlu``, ...        any lm-eval task or group, ``open_llm_leaderboard_v1`` and ``_v2`` included
``questions:FILE``   a file of questions (:mod:`sengi.evaluate.questions`)
``heldout:FILE``     conversations whose loss is measured (:mod:`sengi.evaluate.heldout_files`)
``mt_bench``         two-turn questions and a judge (:mod:`sengi.mt_bench`)
===================  =========================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sengi.errors import InputError
from sengi.evaluation import Evaluation

if TYPE_CHECKING:
    from sengi.harness.ranks import Ranks
    from sengi.mt_bench.options import MTBenchOptions

FILE_KINDS = ("questions", "heldout")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Suite:
    """What to ask of a model, and how.

    Attributes:
        tasks: words as above, without repetition.
        num_fewshot: examples before each question of a public benchmark; None takes the task's own number.
        limit: only the first so many questions of each task; files of held-out conversations are always taken whole.
        data_root: folder of local benchmark files; None lets lm-eval ask the hub.
        apply_chat_template: ask public benchmarks through the model's chat template.
        batch_tokens: tokens at a time, of a forward call or kept while texts are written; None: as many as pay on the
            device. It changes memory and speed, not the scores.
        mt_bench: files and judge of MT-Bench; needed where ``tasks`` has ``mt_bench``.
        max_length: longest held-out conversation in tokens, that of the run where there is one; None: as a recipe has
            it by default.
    """

    tasks: tuple[str, ...]
    num_fewshot: int | None = None
    limit: int | None = None
    data_root: Path | None = None
    apply_chat_template: bool = False
    batch_tokens: int | None = None
    mt_bench: MTBenchOptions | None = None
    max_length: int | None = None

    def files(self, kind: str) -> list[Path]:
        """The files of the tasks ``kind:FILE``."""
        return [Path(task.partition(":")[2]).expanduser() for task in self.tasks if task.startswith(f"{kind}:")]

    @property
    def benchmarks(self) -> list[str]:
        """The tasks that lm-eval runs."""
        return [task for task in self.tasks if ":" not in task and task != "mt_bench"]


def task_words(values: Iterable[str]) -> tuple[str, ...]:
    """Tasks as a command line gives them: repeated, or several in one word separated by commas.

    >>> task_words(["mmlu,gsm8k", "questions:own.jsonl", "mmlu"])
    ('mmlu', 'gsm8k', 'questions:own.jsonl')
    """
    words = [part.strip() for value in values for part in value.split(",")]
    return tuple(dict.fromkeys(word for word in words if word))


def check(suite: Suite) -> list[str]:
    """Refuse what cannot be asked, before any model is loaded.

    Returns:
        The names of tasks and groups that scores may have.

    Raises:
        InputError: no task, an unknown one (with the nearest names), a file that is missing or cannot be read (where
            it was looked for), or a number that makes no sense.
    """
    if not suite.tasks:
        raise InputError("--tasks: nothing to ask; give names such as mmlu,gsm8k or questions:FILE")
    for name, value in (("limit", suite.limit), ("batch-tokens", suite.batch_tokens)):
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: nothing would be left; give 1 or more")
    if suite.num_fewshot is not None and suite.num_fewshot < 0:
        raise InputError(f"--num-fewshot {suite.num_fewshot}: give 0 or more")
    for task in suite.tasks:
        kind, colon, name = task.partition(":")
        if colon and kind not in FILE_KINDS:
            raise InputError(f"--tasks {task}: no task of this kind; files are asked by questions:FILE or heldout:FILE")
        if colon and not Path(name).expanduser().is_file():
            raise InputError(f"--tasks {task}: {name or 'the file'} does not exist; check the path")
        if kind in FILE_KINDS and not colon:
            raise InputError(f"--tasks {task}: the file is missing; write {kind}:FILE")
    _stems([*suite.files("questions"), *suite.files("heldout")])
    names = [f"heldout_{stem}" for stem in _stems(suite.files("heldout"))]
    if files := suite.files("questions"):
        from sengi.evaluate.tasks import load_tasks

        names += load_tasks(files, suite.limit)
    if "mt_bench" in suite.tasks:
        from sengi.mt_bench.run import check_mt_bench

        if suite.mt_bench is None:
            raise InputError("--tasks mt_bench: give its files by --mt-bench DIR and a judge by --judge-url")
        check_mt_bench(suite.mt_bench)
        names.append("mt_bench")
    if suite.benchmarks:
        from sengi.harness.tasks import check_tasks

        names += check_tasks(suite.benchmarks, suite.data_root, num_fewshot=suite.num_fewshot)
    return names


def fingerprint(suite: Suite) -> str:
    """SHA-256 of everything that decides the scores beside the model: tasks, settings, content of all local files."""
    facts = dataclasses.asdict(dataclasses.replace(suite, batch_tokens=1, mt_bench=None))
    if not suite.files("heldout"):
        del facts["max_length"]
    files = [*suite.files("questions"), *suite.files("heldout")]
    if suite.benchmarks:
        from sengi.harness.tasks import load_tasks

        facts["lm_eval"] = importlib.metadata.version("lm_eval")
        files += load_tasks(suite.benchmarks, suite.data_root, num_fewshot=suite.num_fewshot).files
    if suite.mt_bench is not None:
        from sengi.mt_bench.run import mt_bench_fingerprint

        facts["mt_bench"] = mt_bench_fingerprint(suite.mt_bench)
    facts["data_root"] = None  # its content counts, not its place
    facts["tasks"] = [task.partition(":")[0] if ":" in task else task for task in suite.tasks]
    facts["content"] = [(file.name, _digest(file)) for file in files]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def evaluate(
    model_folder: Path, suite: Suite, *, cache: Path | None = None, progress: Progress | None = None
) -> Evaluation:
    """Ask a model everything in the suite.

    Under torchrun all processes call this. They share the benchmarks; the rest is asked by the first one, on its own
    device, while the others wait.

    Args:
        model_folder: a model or checkpoint folder.
        suite: checked by :func:`check`.
        cache: folder of answers that an interrupted evaluation left and goes on with: of benchmarks and own questions
            (held-out conversations are scored again).
        progress: called with (questions done, questions in all, task); each kind counts from 0.

    Returns:
        The evaluation; under torchrun the whole of it in the first process, in the others that of the benchmarks.

    Raises:
        SengiError: the model, a file or the judge cannot be used.
    """
    from sengi.harness.ranks import join_ranks

    started = time.perf_counter()
    whole, ranks = Evaluation(), join_ranks()
    for part, shared in _parts(model_folder, suite, cache, progress):
        evaluation = part() if shared else _by_first(ranks, part)
        whole.scores += evaluation.scores
        whole.items += evaluation.items
        whole.excluded += evaluation.excluded
        whole.samples |= evaluation.samples
        whole.results |= evaluation.results
        whole.notes += evaluation.notes
    whole.seconds = time.perf_counter() - started
    return whole


def _parts(
    model_folder: Path, suite: Suite, cache: Path | None, progress: Progress | None
) -> list[tuple[Callable[[], Evaluation], bool]]:
    """The evaluations to run, cheap ones first (what fails soon should), and whether several processes share them."""
    parts: list[tuple[Callable[[], Evaluation], bool]] = []
    if files := suite.files("heldout"):
        from sengi.evaluate.heldout_files import evaluate_heldout

        heldout = partial(evaluate_heldout, model_folder, files, max_length=suite.max_length)
        parts.append((partial(heldout, batch_tokens=suite.batch_tokens), False))
    if asked := suite.files("questions"):
        from sengi.evaluate.tasks import evaluate_questions

        questions = partial(evaluate_questions, model_folder, asked, limit=suite.limit, cache=cache, progress=progress)
        parts.append((partial(questions, batch_tokens=suite.batch_tokens), False))
    if suite.benchmarks:
        from sengi.harness.run import evaluate_tasks

        benchmarks = partial(
            evaluate_tasks,
            model_folder,
            suite.benchmarks,
            num_fewshot=suite.num_fewshot,
            limit=suite.limit,
            data_root=suite.data_root,
            apply_chat_template=suite.apply_chat_template,
            batch_tokens=suite.batch_tokens,
            cache=cache,
            progress=progress,
        )
        parts.append((benchmarks, True))
    if suite.mt_bench is not None and "mt_bench" in suite.tasks:
        from sengi.mt_bench.run import evaluate_mt_bench

        mt_bench = partial(evaluate_mt_bench, model_folder, suite.mt_bench, progress=progress)
        parts.append((partial(mt_bench, batch_tokens=suite.batch_tokens), False))
    return parts


def _by_first(ranks: Ranks, part: Callable[[], Evaluation]) -> Evaluation:
    """What the first process finds while the others wait; nothing in those."""
    from sengi.harness.ranks import on_first

    found: list[Evaluation] = []
    on_first(ranks, lambda: found.append(part()))
    return found[0] if found else Evaluation()


def _stems(files: Sequence[Path]) -> list[str]:
    """Names of files without suffix, each different."""
    from sengi.data.files import split_suffix

    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(split_suffix(file)[0], file)
        if other is not file:
            raise InputError(f"{file}: {other} would have the same task name {split_suffix(file)[0]!r}; rename one")
    return list(seen)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
