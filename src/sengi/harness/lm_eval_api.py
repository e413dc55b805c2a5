"""The parts of lm-eval that the model class stands on; where it is not installed, one error says what to do."""

from __future__ import annotations

from sengi.errors import InputError

try:
    import lm_eval.models  # noqa: F401 - fills lm-eval's registry of models, which it does not do once a name of ours is in it
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, resolve_max_length
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise InputError(f"benchmark tasks need {error.name}, which is not installed; pip install 'sengi[eval]'") from error

__all__ = [
    "Instance",
    "TemplateLM",
    "get_rolling_token_windows",
    "handle_stop_sequences",
    "has_bos_prefix",
    "make_disjoint_window",
    "normalize_gen_kwargs",
    "register_model",
    "resolve_max_length",
]
