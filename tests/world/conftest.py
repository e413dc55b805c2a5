"""Two written worlds, shared by the tests: a demonstration and a larger one."""

from __future__ import annotations

import json

import pytest
from generated_worlds import PHASES, Written, read_lines

from sengi.world.facts import build_world
from sengi.world.sizes import sizes_for
from sengi.world.write import write_world

SEED = 11


@pytest.fixture(scope="session", params=[200, 3_000])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    out = tmp_path_factory.mktemp("world") / "out"
    summary = write_world(out, request.param, SEED)
    return Written(
        out=out,
        summary=summary,
        world=build_world(sizes_for(request.param), SEED),
        train={phase: read_lines(out / "train" / f"{phase}.jsonl") for phase in PHASES},
        answer=read_lines(out / "eval" / "answer.jsonl"),
        choice=read_lines(out / "eval" / "choice.jsonl"),
        heldout=read_lines(out / "eval" / "heldout.jsonl"),
        description=json.loads((out / "world.json").read_text()),
    )
