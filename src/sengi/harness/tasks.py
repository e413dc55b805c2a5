"""Names of tasks become lm-eval task objects with their rows: all that can go wrong before a model is loaded."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sengi.data.rows import printable
from sengi.errors import InputError
from sengi.harness.adapters import MissingDataError
from sengi.harness.leaderboard import ALIASES, LEADERBOARDS
from sengi.harness.lm_eval_tasks import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED, Group, Task, datasets
from sengi.harness.requirements import punkt_note
from sengi.harness.task_index import LocalTaskManager, check_names

MT_BENCH = "mt_bench"  # no task of lm-eval, but a name that is meant (sengi.mt_bench)


@dataclass
class LoadedTasks:
    """Tasks with their questions and few-shot examples.

    Attributes:
        tasks: all tasks by name; groups resolved.
        groups: all groups by name.
        leaderboards: names of the leaderboards asked for.
        missing: (leaderboard, part, reason) of parts without data.
        files: local files that were read.
        num_fewshot: examples before each question as asked for; None: each task's own.
        notes: what a reader of the scores must know.
    """

    tasks: dict[str, Task] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    leaderboards: list[str] = field(default_factory=list)
    missing: list[tuple[str, str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    num_fewshot: int | None = None
    notes: list[str] = field(default_factory=list)


def check_tasks(names: Sequence[str], data_root: Path | None = None, *, num_fewshot: int | None = None) -> list[str]:
    """Check everything about tasks that can be known before a model is loaded.

    Args:
        names: tasks, groups and tags of lm-eval, ``open_llm_leaderboard_v1`` or ``_v2``.
        data_root: folder with local files; None: lm-eval downloads from the Hugging Face Hub.
        num_fewshot: as for ``evaluate_tasks``: the examples must be there too.

    Returns:
        The names that scores may have: leaderboards, groups that have a score, then all tasks in them.

    Raises:
        InputError: a name is unknown, a file is missing, a row is incomplete, or the Hub is out of reach.
    """
    loaded = load_tasks(names, data_root, num_fewshot=num_fewshot)
    groups = [name for name, group in loaded.groups.items() if group.aggregate_metric_list]
    return [*loaded.leaderboards, *groups, *loaded.tasks]


def load_tasks(names: Sequence[str], data_root: Path | None = None, *, num_fewshot: int | None = None) -> LoadedTasks:
    """Build lm-eval's task objects; arguments and errors as in :func:`check_tasks`."""
    if not names:
        raise InputError("--tasks: no task named; give one or more, separated by commas")
    if num_fewshot is not None and num_fewshot < 0:
        raise InputError(f"--num-fewshot {num_fewshot}: give 0 or more, or leave it out")
    if data_root is not None and not data_root.is_dir():
        raise InputError(f"--data-root {printable(str(data_root), 200)}: no such folder; check the path")
    manager = LocalTaskManager(data_root)
    names = list(dict.fromkeys(ALIASES.get(name, name) for name in names))
    check_names(names, [*LEADERBOARDS, *ALIASES, *manager.task_index], [MT_BENCH])
    loaded = LoadedTasks(num_fewshot=num_fewshot)
    with quiet(), preserved_seeds():
        # As simple_evaluate does before it loads: GPQA shuffles its choices with the global generator.
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        for name in names:
            if name in LEADERBOARDS:
                _load_leaderboard(name, manager, data_root, num_fewshot, loaded)
            else:
                _add(_build(manager, name, data_root), name, num_fewshot, loaded)
    if manager.untrained_punkt:
        instructed = [task for task in loaded.tasks.values() if "instruction_id_list" in getattr(task, "features", ())]
        loaded.notes += [f"{task.task_name}: {punkt_note(task.eval_docs)}" for task in instructed]
    return loaded


def _load_leaderboard(
    name: str, manager: LocalTaskManager, data_root: Path | None, num_fewshot: int | None, loaded: LoadedTasks
) -> None:
    loaded.leaderboards.append(name)
    reasons = []
    for part in LEADERBOARDS[name]:
        shots = part.num_fewshot if num_fewshot is None else num_fewshot
        try:
            _add(_build(manager, part.task, data_root), part.task, shots, loaded)
        except MissingDataError as error:
            loaded.missing.append((name, part.name, str(error)))
            reasons.append(str(error))
    if len(reasons) == len(LEADERBOARDS[name]):
        raise MissingDataError(f"{name}: none of its parts has data; first: {reasons[0]}")


def _build(manager: LocalTaskManager, name: str, data_root: Path | None) -> list[Task | Group]:
    try:
        built = manager._load_spec(name)
    except InputError:
        raise
    except (ConnectionError, datasets.exceptions.DatasetsError, FileNotFoundError) as error:
        raise MissingDataError(
            f"task {name}: its data cannot be fetched from the Hugging Face Hub ({_words(error)}); "
            "check the network and HF_HUB_OFFLINE, or name a folder of local files with --data-root"
        ) from None
    except ImportError as error:
        raise InputError(f"task {name}: needs a package that is not installed ({_words(error)})") from None
    except Exception as error:  # a task is code of many authors: whatever it raises belongs to its name
        where = "" if data_root is None else f" with the files under {printable(str(data_root), 200)}"
        text = f"task {name}: lm-eval cannot load it{where} ({type(error).__name__}: {_words(error)})"
        raise InputError(f"{text}; check its data, or leave the task out") from error
    return built if isinstance(built, list) else [built]


def _add(built: list[Task | Group], name: str, num_fewshot: int | None, loaded: LoadedTasks) -> None:
    tasks = [task for item in built for task in (item.get_all_tasks() if isinstance(item, Group) else [item])]
    for task in tasks:
        if task.task_name in loaded.tasks:
            raise InputError(
                f"--tasks {name}: holds {task.task_name}, which another name of the list holds too; "
                "ask for it once, or in two evaluations"
            )
        _refuse(task)
        _set_fewshot(task, num_fewshot)
        if num_fewshot and not task.get_config("num_fewshot"):
            loaded.notes.append(
                f"{task.task_name}: asked without examples, which the task itself says; not {num_fewshot}"
            )
    for task in tasks:
        loaded.tasks[task.task_name] = task
        loaded.files += [file for file in getattr(task.dataset, "files", ()) if file not in loaded.files]
    for item in built:
        if isinstance(item, Group):
            loaded.groups |= {group.name: group for group in (item, *item.get_all_groups())}


def _refuse(task: Task) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(
            f"task {task.task_name}: runs the code that the model writes, which Sengi has no sandbox for; leave it out"
        )
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"task {task.task_name}: shows images or sound, and the model reads text; leave it out")


def _set_fewshot(task: Task, num_fewshot: int | None) -> None:
    """Set the number of examples as simple_evaluate does (a task's own 0 stays), and check that they are there."""
    own = task.get_config("num_fewshot")
    shots = int(own or 0) if num_fewshot is None or own == 0 else num_fewshot
    task.set_config(key="num_fewshot", value=shots)
    available = len(task.sampler.df) if hasattr(task, "sampler") else 0
    if shots <= available:
        return
    absent = getattr(task.dataset, "absent", {})
    looked = f"looked for more in {' and '.join(absent.values())}" if absent else "its data set has no more"
    raise MissingDataError(
        f"task {task.task_name}: {shots} few-shot examples wanted, {available} there ({looked}); "
        f"add the file, or ask with --num-fewshot {available}"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and log lines of lm-eval and the libraries below; errors are raised anyway."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets", "huggingface_hub", "root")]
    levels = [logger.level for logger in loggers]
    bars = datasets.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def preserved_seeds() -> Iterator[None]:
    """Put the global random generators of Python and NumPy back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _words(error: BaseException) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__, 200)
