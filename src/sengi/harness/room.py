"""Tasks that write more than a model's context holds: found before anything is scored, not hours later."""

from __future__ import annotations

from sengi.errors import InputError
from sengi.harness.generation_arguments import read_arguments
from sengi.harness.leaderboard import LEADERBOARDS
from sengi.harness.lm_eval_tasks import Task
from sengi.harness.tasks import LoadedTasks


def drop_without_room(loaded: LoadedTasks, max_length: int, default_max_tokens: int) -> None:
    """Refuse tasks whose answers leave no room for a question; of a leaderboard the part is missing instead.

    Args:
        loaded: loses the tasks of such parts, which join its ``missing``.
        max_length: the model's context in tokens.
        default_max_tokens: longest answer of a task that names no length.

    Raises:
        InputError: such a task was asked for by its own name, or no other is left.
    """
    reasons: dict[str, str] = {}
    for name, task in loaded.tasks.items():
        wanted = _new_tokens(task, default_max_tokens)
        if wanted >= max_length:
            reasons[name] = (
                f"task {name} writes up to {wanted:,} tokens, and the model's context of {max_length:,} leaves no room "
                "for the question before them"
            )
    for board in loaded.leaderboards:
        for part in LEADERBOARDS[board]:
            group = loaded.groups.get(part.task)
            members = [part.task] if group is None else [task.task_name for task in group.get_all_tasks()]
            if found := [reasons.pop(name) for name in members if name in reasons]:
                loaded.missing.append((board, part.name, found[0]))
                _drop(loaded, part.task, members)
    if reasons:
        raise InputError(f"{next(iter(reasons.values()))}; leave the task out, or take a model with a longer context")
    if not loaded.tasks:
        raise InputError(f"{loaded.missing[-1][2]}, and no other task is left; take a model with a longer context")


def _new_tokens(task: Task, default: int) -> int:
    """Longest answer of a task; 0 where nothing is written."""
    if task.OUTPUT_TYPE != "generate_until":
        return 0
    given = task.get_config("generation_kwargs") or {}
    return read_arguments(given, default, None, task.task_name).max_new_tokens


def _drop(loaded: LoadedTasks, spec: str, members: list[str]) -> None:
    if spec in loaded.groups:
        for group in (loaded.groups[spec], *loaded.groups[spec].get_all_groups()):
            loaded.groups.pop(group.name, None)
    for name in members:
        loaded.tasks.pop(name, None)
    loaded.notes = [note for note in loaded.notes if note.partition(":")[0] not in members]
