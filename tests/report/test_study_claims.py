"""The claims over several studies: each study's word, and one word for all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sengi.cli.report import report as command
from sengi.errors import InputError
from sengi.report.study_claims import claims_over, overall
from sengi.study.claim_rules import ClaimResult, Verdict

sys.path.append(str(Path(__file__).parents[1] / "study"))
from fake_results import make_study
from fake_study import write_study_folder

BATCHES = {"effective_batch_size": [8, 40]}
WARMUPS = {"warmup_steps": [0, 25]}


def test_each_study_speaks_where_it_has_runs_and_one_word_sums_up() -> None:
    def better(settings: dict[str, Any]) -> float:
        return 2 - 0.1 * (settings["effective_batch_size"] == 40)

    table = claims_over([make_study(BATCHES, better), make_study(WARMUPS, lambda s: 2.0), make_study(BATCHES, better)])
    rows = [row.cells for row in table.rows]
    assert [cells[0] for cells in rows if cells[0]] == [str(number) for number in range(1, 11)]
    first, second = (cells for cells in rows if cells[3] == "study" and "batch_size 40 against 8" in cells[7])
    assert (first[0], first[2], first[4]) == ("1", "holds", "holds")
    assert (second[0], second[2], second[4]) == ("", "", "holds")
    warmup = next(cells for cells in rows if cells[0] == "4")
    assert warmup[2] == "holds"
    phased = next(cells for cells in rows if cells[0] == "6")
    assert phased[2:4] == ("cannot tell", "")
    assert phased[7] == "no study has the runs for it"


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (["holds", "cannot tell"], "holds"),
        (["does not hold", "does not hold"], "does not hold"),
        (["holds", "does not hold", "cannot tell"], "studies disagree"),
        (["cannot tell"], "cannot tell"),
    ],
)
def test_one_word_for_all(said: list[Verdict], word: str) -> None:
    assert overall([ClaimResult(1, "", "", verdict, "") for verdict in said]) == word


def test_the_command_takes_several_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_study_folder(tmp_path / "one", {"learning_rate": [1e-4, 1e-3]}, seeds=(1,))
    other = write_study_folder(tmp_path / "other", {"effective_batch_size": [8, 32]}, seeds=(1,))
    assert command(one, other, output=tmp_path / "out") == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out/claims.md")]
    text = (tmp_path / "out/claims.md").read_text()
    assert "| other | holds |" in text
    assert "| one | holds |" in text
    with pytest.raises(InputError, match="add --output FOLDER"):
        command(one, other)
    with pytest.raises(InputError, match="several folders are reported together where all are studies"):
        command(one, one / "runs/001-s1", output=tmp_path / "out")


def test_studies_of_which_no_stage_has_begun_are_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        request = {"recipe": {}, "stages": {"rate": {"learning_rate": [1e-4, 1e-3]}}}
        (tmp_path / name / "request.json").write_text(json.dumps(request))
    with pytest.raises(InputError, match=r"none of their stages has begun; 'sengi study resume FOLDER' begins them"):
        command(tmp_path / "one", tmp_path / "other", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
