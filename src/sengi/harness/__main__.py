"""lm-eval's own command line with our model in it: ``python -m sengi.harness run --model sengi ...``.

lm-eval 0.4.13 has no plug-ins: ``lm_eval --model`` knows the names of one dictionary and of what was registered in
its own process before, and it imports nothing by name from outside but task files. So this module registers the name
and hands everything else to lm-eval.
"""

from __future__ import annotations

import sys

from sengi.errors import SengiError


def main() -> int:
    """Run lm-eval's command line.

    Returns:
        The exit status.
    """
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry

        import sengi.harness.lm_eval_api  # noqa: F401 - says what to install where lm-eval is missing

        if "sengi" not in model_registry:  # as a name only: `ls tasks` and `--help` need no torch
            model_registry.register("sengi", target="sengi.harness.lm:SengiLM")
        cli_evaluate()
    except SengiError as error:
        if not error.elsewhere:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
