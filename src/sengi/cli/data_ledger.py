"""``sengi data ledger``: which samples entered which step of a run."""

from __future__ import annotations

from pathlib import Path

from sengi.cli.console import out


def ledger(run: Path, *, step: int, json: bool = False) -> int:
    """List the samples of one step as file:row, derived anew from recipe and data.

    The samples are a pure function of the data, the seed and the step; the list is checked against the hash that
    training wrote into dynamics.jsonl for that step.

    Args:
        run: Run folder.
        step: Step as in dynamics.jsonl, from 1.
        json: Print one JSON object: step, samples, verified.
    """
    import json as json_module

    from sengi.train.ledger import step_ledger

    places, verified = step_ledger(run, step)
    if json:
        line = {"step": step, "samples": places, "verified": verified}
        out.file.write(json_module.dumps(line, ensure_ascii=False) + "\n")
        return 0
    for place in places:
        out.print(place, markup=False, soft_wrap=True)
    state = "as recorded when it was trained" if verified else "not trained yet"
    out.print(f"{len(places):,} samples in step {step}, {state}", markup=False)
    return 0
