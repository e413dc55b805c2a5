from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("bokeh")
from bokeh.models import LinearScale, LogScale

from sengi.report.study_charts import _signal
from sengi.report.study_curves import EarlySignal


# Gradient norms of full fine-tuning and of LoRA lie far apart.
@pytest.mark.parametrize(("values", "scale"), [([1.0, 2.0, 3.0], LinearScale), ([0.1, 2.0, 30.0], LogScale)])
def test_a_signal_that_spans_decades_has_a_logarithmic_axis(values: list[float], scale: type) -> None:
    runs, colours = ("a", "b", "c"), ("#111111", "#222222", "#333333")
    signal = EarlySignal("gradient norm", runs, colours, np.array(values), np.array([1.0, 2.0, 3.0]), log=True)
    assert isinstance(_signal(signal, "held-out loss").x_scale, scale)
