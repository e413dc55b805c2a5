"""The scores that the paper prints, to stand beside one's own (``sengi report --reference``).

The paper is arXiv 2412.13337. Its scores are the best checkpoint of each benchmark, chosen on the benchmark itself, of
one seed, without intervals; few-shot numbers and the judge are not stated. They say what such models reach, not what a
run of another model or data must reach. ``appendix`` marks a number of the paper's own tables (10 to 13), ``summary``
one that was read in a detailed secondary summary, whose numbers agree with the appendix wherever both have them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sengi.harness.leaderboard import LEADERBOARDS
from sengi.report import formats
from sengi.report.run_folder import RunFolder
from sengi.report.scores import Comparison
from sengi.report.tables import Row, Table

V1, V2 = LEADERBOARDS
# benchmark of the paper -> (task, metric) of ours that it can stand beside
OURS: dict[str, tuple[tuple[str, str], ...]] = {
    "MMLU": (("mmlu", "acc"), (V1, "MMLU")),
    "MT-Bench": (("mt_bench", "score"),),
    "GSM8K": (("gsm8k", "exact_match"), (V1, "GSM8K")),
    "ARC": (
        *((f"arc_{level}", metric) for level in ("challenge", "easy") for metric in ("acc_norm", "acc")),
        (V1, "ARC"),
    ),
    "BBH (normalised)": ((V2, "BBH"),),
    "MATH level 5": (("leaderboard_math_hard", "exact_match"), (V2, "MATH Lvl 5")),
    "MuSR (normalised)": ((V2, "MuSR"),),
    "Open LLM Leaderboard v2": ((V2, "average"),),
    "TruthfulQA": (("truthfulqa_mc2", "acc"), (V1, "TruthfulQA")),
    "BBH": (("bbh", "exact_match"), ("bbh_cot_fewshot", "exact_match")),
}


@dataclass(frozen=True, slots=True)
class PaperScore:
    """One number of the paper.

    Attributes:
        model: the model that was trained.
        benchmark: a key of :data:`OURS`.
        setting: what distinguishes the run: data, strategy or hyperparameters.
        score: the value as printed; shares between 0 and 1, MT-Bench between 1 and 10.
        source: where it is printed.
        samples: training samples up to the best checkpoint, where they are given.
    """

    model: str
    benchmark: str
    setting: str
    score: float
    source: str
    samples: int | None = None


NOTE = (
    "arXiv 2412.13337: best checkpoint of each benchmark, one seed, no intervals; few-shot numbers and the judge are "
    "not stated."
)

GRANITE, LLAMA, MISTRAL = "Granite 7B", "Llama 3.2 3B", "Mistral 7B"
TULU_MODEL = "not stated (Granite 7B?)"
GENERAL, MRC = "general data", "math, reasoning, code data"


def _granite() -> list[PaperScore]:
    rows: list[PaperScore] = []
    for batch, mmlu, mt_bench in (("128", 0.516, 6.406), ("3,840", 0.526, 6.768), ("7,680", 0.529, 6.831)):
        rows.append(PaperScore(GRANITE, "MMLU", f"stacked, batch {batch}", mmlu, "summary"))
        rows.append(PaperScore(GRANITE, "MT-Bench", f"stacked, batch {batch}", mt_bench, "summary"))
    for steps, mmlu in ((0, 0.531), (25, 0.528), (100, 0.526)):
        rows.append(PaperScore(GRANITE, "MMLU", f"{steps} warm-up steps", mmlu, "summary"))
    for schedule, mmlu, mt_bench in (("constant", 0.5242, 6.7562), ("cosine", 0.5251, 6.6813)):
        rows.append(PaperScore(GRANITE, "MMLU", f"{schedule} rate", mmlu, "summary"))
        rows.append(PaperScore(GRANITE, "MT-Bench", f"{schedule} rate", mt_bench, "summary"))
    for benchmark, stacked, phased in (("MMLU", 0.53, 0.52), ("MT-Bench", 6.77, 6.76), ("GSM8K", 0.39, 0.37)):
        rows.append(PaperScore(GRANITE, benchmark, "LAB, stacked", stacked, "summary"))
        rows.append(PaperScore(GRANITE, benchmark, "LAB, phased", phased, "summary"))
    for benchmark, large, small in (
        ("MMLU", 0.50, 0.48),
        ("BBH", 0.44, 0.40),
        ("GSM8K", 0.28, 0.25),
        ("TruthfulQA", 0.44, 0.45),
    ):
        rows.append(PaperScore(TULU_MODEL, benchmark, "Tülu mixture v2, batch 3,840", large, "summary"))
        rows.append(PaperScore(TULU_MODEL, benchmark, "Tülu mixture v2, batch 128", small, "summary"))
    best = "batch 3,840, rate 1e-6"
    rows.append(PaperScore(MISTRAL, "MT-Bench", best, 7.33, "summary"))
    rows.append(PaperScore(MISTRAL, "Open LLM Leaderboard v2", best, 0.1859, "summary"))
    return rows


# benchmark: base, LAB stacked, LAB phased, TULU; then the samples of the last three
LLAMA_GENERAL = {
    "BBH (normalised)": ((0.14, 0.19, 0.18, 0.17), (7_734_723, 6_734_847, 2_473_477)),
    "MATH level 5": ((0.01, 0.02, 0.01, 0.01), (250_089, 4_490_320, 741_924)),
    "MuSR (normalised)": ((0.05, 0.22, 0.11, 0.15), (10_979_309, 4_988_983, 1_731_217)),
    "MMLU": ((0.56, 0.57, 0.53, 0.55), (6_986_437, 5_737_613, 2_473_477)),
    "ARC": ((0.78, 0.78, 0.75, 0.74), (2_744_559, 7_483_283, 2_473_477)),
    "GSM8K": ((0.27, 0.51, 0.45, 0.49), (3_742_399, 6_734_847, 2_473_477)),
    "MT-Bench": ((None, 5.00, 4.30, 4.97), (9_232_227, 6_734_847, 2_473_477)),
}
LLAMA_MRC = {
    "MATH level 5": ((0.02, 0.04, 0.03, 0.04), (9_980_259, 18_455_850, 3_468_664)),
    "MuSR (normalised)": ((0.05, 0.08, 0.08, 0.04), (16_966_128, 18_206_922, 2_973_753)),
    "ARC": ((0.78, 0.75, 0.71, 0.68), (2_745_290, 14_964_367, 247_372)),
    "GSM8K": ((0.27, 0.69, 0.67, 0.66), (12_225_143, 14_964_367, 5_450_009)),
}


def _llama() -> list[PaperScore]:
    rows: list[PaperScore] = []
    tables = (
        (GENERAL, LLAMA_GENERAL, "appendix, table 12", "appendix, table 13"),
        (MRC, LLAMA_MRC, "appendix, table 11", "appendix, table 10"),
    )
    for data, table, strategies, configurations in tables:
        for benchmark, ((base, stacked, phased, tulu), samples) in table.items():
            if base is not None:
                rows.append(PaperScore(LLAMA, benchmark, "base", base, strategies))
            for name, score, source, seen in (
                (f"LAB, stacked, {data}", stacked, strategies, samples[0]),
                (f"LAB, phased, {data}", phased, strategies, samples[1]),
                (f"TULU, stacked, {data}", tulu, configurations, samples[2]),
            ):
                rows.append(PaperScore(LLAMA, benchmark, name, score, source, seen))
    return rows


def paper_scores() -> list[PaperScore]:
    """Every score of the paper that is known, by model, then in the order of its experiments."""
    return [*_granite(), *_llama()]


def reference_tables(run: RunFolder | None = None, comparisons: list[Comparison] | None = None) -> list[Table]:
    """The paper's scores, a table a benchmark, the run's own scores on that benchmark above them.

    Args:
        run: names the run; None prints the paper alone.
        comparisons: the run's scores; benchmarks that it was not asked are printed without them.
    """
    tables = []
    for benchmark in OURS:
        rows = [row for c in comparisons or [] for row in _own_rows(run, c, benchmark)]
        rows += [_paper_row(score) for score in paper_scores() if score.benchmark == benchmark]
        head = ("model", "setting", "score", "samples", "source")
        tables.append(Table(f"The paper: {benchmark}", head, tuple(rows), (2, 3), NOTE))
    return tables


def _paper_row(score: PaperScore) -> Row:
    samples = formats.count(score.samples) if score.samples else formats.NOTHING
    return Row((score.model, score.setting, f"{score.score:g}", samples, score.source))


def _own_rows(run: RunFolder | None, comparison: Comparison, benchmark: str) -> list[Row]:
    after = comparison.after
    if after.group != "all" or (after.task, after.metric.partition(",")[0]) not in OURS[benchmark]:
        return []
    model = str(run.recipe.get("model_name_or_path", "this run")) if run else "this run"
    found = []
    for step, score in ((comparison.step_before, comparison.before), (comparison.step_after, after)):
        interval = f"{score.value:.3g} ({score.low:.3g} to {score.high:.3g})"
        found.append(
            Row((model, f"this run, step {step:,}", interval, formats.NOTHING, f"{score.task} {score.metric}"), "own")
        )
    return found[:1] if comparison.step_before == comparison.step_after else found
