"""The choice of what trains the runs of a study."""

from __future__ import annotations

from sengi.study.run_executor import RunExecutor
from sengi.study.study_file import Executor


def executor_for(asked: Executor) -> RunExecutor:
    """The executor that a study file asks for.

    Raises:
        InputError: there is no such cluster, or not enough of it.
    """
    if asked.kind == "ray":
        from sengi.study.ray_executor import RayExecutor

        return RayExecutor(asked)
    from sengi.study.local import LocalExecutor

    return LocalExecutor(asked)
