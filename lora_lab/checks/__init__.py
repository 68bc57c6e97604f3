"""The checks of the course: one module per notebook (nb00, nb01, ...), and the one list of all exercises.

In a notebook: `from lora_lab.checks import nb01 as check`, then `check.truncate(truncate)`.
"""

import pkgutil
import re
from importlib import import_module

from .guard import Wrong
from .harness import Exercise, exercise

__all__ = ["Exercise", "Wrong", "exercise", "exercises"]


def exercises() -> dict[str, Exercise]:
    """Every exercise by its id, in the order of the course. The modules nbXX of this package are the list."""
    lessons = [part.name for part in pkgutil.iter_modules(__path__) if re.fullmatch(r"nb\d\d", part.name)]
    found = [
        value
        for lesson in lessons
        for value in vars(import_module(f"{__name__}.{lesson}")).values()
        if isinstance(value, Exercise)
    ]
    return {each.id: each for each in sorted(found, key=lambda each: [int(n) for n in each.id.split(".")])}
