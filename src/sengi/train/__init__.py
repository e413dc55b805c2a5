"""One run: the step loop, optimizer, sharding, checkpoints and dynamics."""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """``sengi.train(recipe)``: importing anything below this package puts it where ``sengi`` has that function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from sengi.train.run import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
