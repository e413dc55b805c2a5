"""The parts of lm-eval that run tasks; where it is not installed, one error says what to do."""

from __future__ import annotations

from sengi.errors import InputError

try:
    import datasets
    import lm_eval.api.task as task_module
    from lm_eval import __version__ as LM_EVAL_VERSION
    from lm_eval.api.group import Group
    from lm_eval.api.metrics import mean
    from lm_eval.api.task import Task
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.evaluator_utils import _process_results as process_results
    from lm_eval.loggers.utils import add_tokenizer_info
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import Entry, Kind, TaskIndex
except ModuleNotFoundError as error:
    raise InputError(f"benchmark tasks need {error.name}, which is not installed; pip install 'sengi[eval]'") from error

__all__ = [
    "DEFAULT_OTHER_SEED",
    "DEFAULT_RANDOM_SEED",
    "LM_EVAL_VERSION",
    "Entry",
    "Group",
    "Kind",
    "Task",
    "TaskFactory",
    "TaskIndex",
    "TaskManager",
    "add_tokenizer_info",
    "datasets",
    "evaluate",
    "mean",
    "process_results",
    "task_module",
]
