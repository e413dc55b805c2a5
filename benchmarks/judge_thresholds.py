"""What the judge would have saved and cost on finished studies under other thresholds; nothing is trained.

    python -m benchmarks.judge_thresholds STUDY [STUDY ...]

Tried afterwards on the same recordings, so the best row is not what a new study will see.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sengi.study.judge import JudgeSettings
from sengi.study.replay import Outcome, replay
from sengi.study.replay_study import judge_settings, read_recordings
from sengi.study.scheduler import REQUEST
from sengi.study.study_file import read_study


def variants(settings: JudgeSettings, budget_samples: int) -> dict[str, JudgeSettings]:
    """The judge of a study, and others, by name."""
    return {
        "as it is": settings,
        "no floor on the pace": replace(settings, fair_share=0.0),
        "half the floor": replace(settings, fair_share=settings.fair_share / 2),
        "one check": replace(settings, checks_in_a_row=1),
        "margins at 80%": replace(settings, confidence=0.8),
        "margins at 80%, one check": replace(settings, confidence=0.8, checks_in_a_row=1),
        "hardly any margins": replace(settings, confidence=0.01),
        "up to 60% of the samples": replace(settings, early_samples=round(0.6 * budget_samples)),
    }


def outcomes(folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Each variant's name with what the judge would have done, side by side and one run after another."""
    request = read_study(folder / REQUEST)
    recordings, _ = read_recordings(request, folder)
    for name, settings in variants(judge_settings(request.file), request.file.budget_samples).items():
        for outcome in replay(recordings, settings, request.file.minimize):
            if outcome.policy.startswith("judge"):
                yield name, outcome


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    for folder in parser.parse_args().studies:
        for name, one in outcomes(folder):
            print(f"{folder.name}, {name}, {one.policy}: {one.saved:.0%} saved, regret {one.regret:.4f}", flush=True)


if __name__ == "__main__":
    main()
