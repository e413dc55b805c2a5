"""What ``from sengi import ...`` gives."""

from __future__ import annotations

import subprocess
import sys

import sengi

# train is also the name of a package below sengi, which takes the name's place as soon as anything in it is imported
TRAIN = """
from sengi import Observer, train
from sengi import train as again
for name in (train, again):
    try:
        name("no recipe")
    except AttributeError as error:
        assert "recipe" in str(error), error
"""


def test_every_public_name_is_there() -> None:
    for name in sengi.__all__:
        assert getattr(sengi, name) is not None
    assert set(dir(sengi)) == set(sengi.__all__)


def test_train_can_be_called_however_it_was_imported() -> None:
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
