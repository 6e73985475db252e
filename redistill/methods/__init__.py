"""One file a paper. Importing this package registers every method; calling it, `redistill.methods()`, lists them."""

import sys
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


class _Listed(ModuleType):
    """A package that can be called: the package and the function of one name would otherwise hide each other."""

    def __call__(self) -> list[dict[str, Any]]:
        """Every registered method, also those registered by the caller: the rows of `redistill list`."""
        from redistill.catalogue import rows

        return rows()


sys.modules[__name__].__class__ = _Listed
