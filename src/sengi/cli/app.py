"""``sengi``: the verbs, and how every error leaves the process: one line, one exit code.

0 done, 1 failed, 2 bad input, 3 stopped by request and resumable, 130 interrupted twice.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from cyclopts import App, Parameter
from rich.console import Console

from sengi import __version__
from sengi.cli.study import study as run_study
from sengi.errors import SengiError

HELP = """Supervised fine-tuning for small language models.

**check** your data, **plan** the run, **train** it, **evaluate** it, read the **report**:

    sengi data check train.jsonl --model smollm2-135m
    sengi recipe init > recipe.yaml
    sengi plan recipe.yaml
    sengi train recipe.yaml
    sengi eval runs/first/checkpoint-100 --tasks questions:eval.jsonl
    sengi report runs/first
"""

app = App(
    name="sengi",
    help=HELP,
    help_format="markdown",
    version=__version__,
    result_action="return_value",
    default_parameter=Parameter(negative=()),  # no --no-json, no --empty-set
    error_formatter=lambda error: f"error: {' '.join(str(error).split())} See 'sengi --help'.",
)
app.command("sengi.cli.train:train", name="train", help="Train a recipe, or continue where it stopped.")
app.command("sengi.cli.plan:plan", name="plan", help="Show what a run would do and need, without training.")
app.command(
    "sengi.cli.eval:eval_", name="eval", help="Score a model or a run on benchmarks, own questions or MT-Bench."
)
app.command("sengi.cli.compare:compare", name="compare", help="Compare saved answers of evaluations, with intervals.")
app.command("sengi.cli.report:report", name="report", help="Write the report of a run.")
app.command("sengi.cli.export:export", name="export", help="Copy a model out of a run; merge an adapter.")
app.command("sengi.cli.chat:chat", name="chat", help="Talk to a model or checkpoint.")
app.command("sengi.cli.env:env", name="env", help="Print versions and hardware, for bug reports.")

study = App(name="study", help="Run many recipes, stop losers early, rank the rest.")
study.default(run_study)
study.command("sengi.cli.study_init:init", name="init", help="Print a study of one of the paper's questions.")
study.command("sengi.cli.study:status", name="status", help="Show the runs of a study.")
study.command("sengi.cli.study:stop", name="stop", help="Ask a study to save its runs and stop.")
study.command("sengi.cli.study:resume", name="resume", help="Continue a study.")
study.command("sengi.cli.study:replay", name="replay", help="What early stopping would have saved and cost.")
app.command(study)

data = App(name="data", help="Check, look at and make training data.")
data.command("sengi.cli.data_check:check", name="check", help="Examine data files as training would read them.")
data.command("sengi.cli.data_tokens:tokens", name="tokens", help="Show tokens and loss mask of samples.")
data.command("sengi.cli.data_synth:synth", name="synth", help="Write a generated world: training data and questions.")
data.command("sengi.cli.data_ledger:ledger", name="ledger", help="List the samples of a step of a run.")
app.command(data)

recipe = App(name="recipe", help="Write, check and explain recipes.")
recipe.command("sengi.cli.recipe:init", name="init", help="Print a commented recipe to start from.")
recipe.command("sengi.cli.recipe:show", name="show", help="Show a recipe or preset with the origin of each value.")
recipe.command("sengi.cli.recipe:schema", name="schema", help="Explain every key; --json for editors.")
app.command(recipe)


def main(tokens: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    sys.exit(run(tokens))


def run(tokens: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code instead of exiting."""
    try:
        result = app(tokens, error_console=Console(stderr=True, soft_wrap=True, highlight=False))
        return result if isinstance(result, int) else 0
    except SengiError as error:
        if not getattr(error, "elsewhere", False):  # the rank it happened on prints it
            _print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output is gone, as with '| head'
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="sengi-error-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        text = " ".join(str(error).split())[:300]
        _print_error(f"{type(error).__name__}: {text}; not foreseen, please report it with {log.name} and 'sengi env'")
        return 1


def _print_error(message: str) -> None:
    rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    print(f"error: {rank}{' '.join(message.split())}", file=sys.stderr, flush=True)
