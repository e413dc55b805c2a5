"""What early termination would have cost, measured in the study itself: condemned runs that went on as an audit."""

from __future__ import annotations

from sengi.report.study_numbers import objective_text, score_text
from sengi.study.results import StudyResults
from sengi.study.space import settings_text


def audit_sentences(results: StudyResults) -> list[str]:
    """Each audited run against the best run that was kept, and how often stopping would have lost the best.

    Args:
        results: the study.

    Returns:
        Sentences; none where no run was audited.
    """
    audited = [run for run in results.runs if run.verdict[0] == "audit"]
    kept = [run for run in results.scored if run not in audited]
    if not audited:
        return []
    if not kept:
        return [f"{len(audited)} condemned runs went on as an audit; no run that was kept has a score to compare them."]
    best, told, lost, scored = max(kept, key=results.quality), score_text(results), 0, 0
    assert best.score is not None
    lines = []
    for run in audited:
        who = f"{run.name} ({settings_text(run.settings)}) was condemned and went on as an audit"
        if run.score is None:
            lines.append(f"{who}: it has no final score ({run.state}).")
            continue
        gain, scored = results.quality(run) - results.quality(best), scored + 1
        lost += gain > 0
        word = "better" if gain > 0 else "worse" if gain < 0 else "the same"
        lines.append(
            f"{who}: {objective_text(results.objective)} {told.score(run.score.value)} against "
            f"{told.score(best.score.value)} of {best.name}, the best run kept "
            f"({told.difference(run.score.value - best.score.value)}, {word})."
        )
    if scored:
        lines.append(f"Stopping would have lost the best run in {lost} of {scored} audited cases.")
    return lines
