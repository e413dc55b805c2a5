"""The paper's claims over several studies: one table, each study's word on each claim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sengi import storage
from sengi.errors import InputError
from sengi.report.markdown import escape, markdown_table
from sengi.report.study_tables import claim_cells
from sengi.report.tables import Row, Table
from sengi.study.chain import stage_folders
from sengi.study.claim_rules import CLAIMS, ClaimResult
from sengi.study.claims import judge_claims
from sengi.study.results import StudyResults, is_study, read_results

FILE = "claims.md"
NOTE = (
    "A claim holds over several studies where one of them shows that and none shows the contrary. Effects are in the "
    "unit of each study's score, above zero for the claim, with 95% intervals; each study's report has the rest."
)


def write_claims(folders: Sequence[Path], output: Path) -> Path:
    """Hold the claims against several studies and write ``claims.md``.

    Args:
        folders: study folders; of a study of several stages every stage counts as a study.
        output: folder to write to; made if missing.

    Returns:
        The file.

    Raises:
        InputError: a folder is no study's, or no stage of any of them has begun.
        StorageError: the file cannot be written.
    """
    for folder in folders:
        if not is_study(folder):
            raise InputError(f"{folder}: no study folder; several folders are reported together where all are studies")
    studies = [read_results(one) for folder in folders for one in stage_folders(folder)]
    if not studies:
        named = ", ".join(map(str, folders))
        raise InputError(f"{named}: none of their stages has begun; 'sengi study resume FOLDER' begins them")
    table = claims_over(studies)
    parts = [f"# {escape(table.title)}", *markdown_table(table, heading=False)]
    storage.create_folder(output)
    storage.write_file(output / FILE, ("\n\n".join(parts) + "\n").encode())
    return output / FILE


def claims_over(studies: Sequence[StudyResults]) -> Table:
    """One row a claim and study that has runs for it; of a claim without any, one row that says so."""
    judged = [judge_claims(results) for results in studies]
    rows: list[Row] = []
    for index, number in enumerate(CLAIMS):
        said = [(results, claims[index]) for results, claims in zip(studies, judged, strict=True)]
        together = overall([claim for _, claim in said])
        with_runs = [(results, claim) for results, claim in said if claim.runs]
        for place, (results, claim) in enumerate(with_runs):
            _, title, verdict, effect, seen, why, runs = claim_cells(results, claim)
            first = (str(number), title, together) if place == 0 else ("", "", "")
            rows.append(Row((*first, results.folder.name, verdict, effect, seen, why, runs)))
        if not with_runs:
            title = claim_cells(*said[0])[1]
            rows.append(Row((str(number), title, together, "", "", "", "", "no study has the runs for it", "")))
    head = ("", "the paper's claim", "together", "study", "here", "effect", "would have been seen", "why", "rests on")
    return Table("The paper's claims over several studies", head, tuple(rows), (0, 5, 6), NOTE)


def overall(claims: Sequence[ClaimResult]) -> str:
    """One word for what several studies say of one claim."""
    verdicts = {claim.verdict for claim in claims} - {"cannot tell"}
    if len(verdicts) > 1:
        return "studies disagree"
    return verdicts.pop() if verdicts else "cannot tell"
