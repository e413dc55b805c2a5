"""``sengi env``: versions and hardware, ready to paste into a bug report."""

from __future__ import annotations

from sengi.cli.console import out


def env(*, json: bool = False) -> int:
    """Print versions and hardware. No environment variable beyond a short named list is shown.

    Args:
        json: Print one JSON object.
    """
    import json as json_module

    from sengi.environment import describe_environment

    facts = describe_environment()
    if json:
        out.file.write(json_module.dumps(facts, ensure_ascii=False) + "\n")
        return 0
    for name, value in facts.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        out.print(f"{name:10} {text}", markup=False, soft_wrap=True)
    return 0
