"""``sengi train`` in a process of its own, step by step (started by benchmarks.throughput).

    python -m benchmarks.throughput_worker REQUEST.json

The same conversation with the benchmark as benchmarks/peer_worker.py has. What runs is the whole of ``sengi train``:
logging, heartbeat and checks of a step are in its time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer_worker import Line
from sengi.environment import describe_environment
from sengi.recipe_sources import resolve_recipe
from sengi.train.observer import Observer
from sengi.train.run import train


class Turns(Observer):
    """Lets the run go on when a step is asked for."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.chosen: Any = None
        self.told: list[str] = []

    def message(self, text: str) -> None:
        """Keep what the run says before its first step."""
        self.told.append(text)

    def plan(self, plan: Any) -> None:
        """Keep what was planned."""
        self.chosen = plan

    def start(self, step: int, num_steps: int, samples_seen: int, total_samples: int) -> None:
        """Ready for the first step."""
        packages = describe_environment()["packages"]
        facts = {
            "threads": torch.get_num_threads(),
            "versions": {name: packages[name] for name in ("torch", "transformers", "sengi") if name in packages},
            "forecast_bytes": self.chosen.memory["peak"],
            "compiled": next((text for text in self.told if text.startswith("compiled")), "not compiled"),
        }
        self.line.say(facts)
        self.line.wait()

    def step(self, record: dict[str, Any]) -> None:
        """A step is done."""
        names = {"loss": "loss", "grad_norm": "grad_norm", "tokens": "num_tokens", "targets": "num_supervised_tokens"}
        self.line.done(**{name: record[key] for name, key in names.items()})
        self.line.wait()


def main() -> None:
    """Train as long as steps are asked for."""
    line = Line()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    train(resolve_recipe(values=request["recipe"]), Turns(line))


if __name__ == "__main__":
    main()
