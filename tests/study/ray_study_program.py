"""A study on a local Ray cluster of two simulated machines; one training is killed on the way.

    python ray_study_program.py STUDY

Prints the address's nodes, the run whose process was killed, and how many runs trained at a time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from sengi.study.executor import executor_for
from sengi.study.scheduler import Rows, StudyObserver, run_study
from sengi.study.study_file import read_study


class Watch(StudyObserver):
    """How many runs trained at once, by the table."""

    most = 0

    def rows(self, rows: Rows) -> None:
        self.most = max(self.most, sum(row["state"] == "running" for row in rows))


def kill_one(folder: Path, killed: list[str]) -> None:
    """SIGKILL the first training that did some steps and is not done."""
    while True:
        for path in sorted(folder.glob("runs/*/dynamics.jsonl")):
            status = json.loads(path.with_name("status.json").read_text())
            if status["state"] == "running" and path.read_bytes().count(b"\n") >= 3:
                os.kill(status["pid"], signal.SIGKILL)
                killed.append(path.parent.name)
                return
        time.sleep(0.01)


def main() -> None:
    request = read_study(Path(sys.argv[1]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    asked = request.file.executor.model_copy(update={"address": cluster.address})
    watch, killed = Watch(), list[str]()
    threading.Thread(target=kill_one, args=(request.folder, killed), daemon=True).start()
    run_study(request, watch, make_executor=lambda _: executor_for(asked))
    print(json.dumps({"killed": killed, "most": watch.most}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
