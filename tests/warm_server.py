"""The process that warm.py forks: it imports once, then waits for jobs. ``python -m tests.warm_server SOCKET``

It has one thread and computes nothing, so a fork of it is as a process that has just finished its imports.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from sengi.train.parent import die_with

MODULES = (
    "bokeh.embed",
    "bokeh.plotting",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "peft",
    "scipy.special",
    "sengi.cli.app",
    "sengi.cli.train",
    "sengi.harness.lm",
    "sengi.report.write",
    "sengi.train.run",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
)


def serve(jobs: socket.socket) -> dict[str, Any]:
    """Answer until a fork is asked for; returns in the fork, with its job. Ends this process when nobody asks."""
    while True:
        text, files, _, _ = socket.recv_fds(jobs, 1 << 20, 2)
        if not text:
            raise SystemExit(0)
        job = json.loads(text)
        if "wait" in job:
            _, status = os.waitpid(job["wait"], 0)
            jobs.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with(parent)
            os.dup2(files[0], 1)
            os.dup2(files[1], 2)
            jobs.close()
        for file in files:
            os.close(file)
        if pid == 0:
            return dict(job)
        jobs.send(str(pid).encode())


def become(job: dict[str, Any]) -> None:
    """Run the program of a job as Python does that is started with it."""
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    gc.enable()
    kind, *rest = job["command"]
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [kind, *rest]
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    """Import, then serve."""
    jobs = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()
    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()  # else each fork's collector would touch, and so copy, every inherited page
    become(serve(jobs))


if __name__ == "__main__":
    main()
