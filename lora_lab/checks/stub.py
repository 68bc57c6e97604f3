"""The text of a blank: what the raise line of an unsolved exercise says, and how a check recognises it.

torch raises NotImplementedError too (an operation without a kernel for a dtype or device), and so may a learner. Only
an error with this text is a blank.
"""

import re

STUB = "exercise {id}: your code here"  # `STUB.format(id="1.2")`
_NUMBERED, _, _BARE = STUB.partition(": ")
# Assignments that nbgrader made leave out the number.
_BLANK = re.compile(f"(?:{_NUMBERED.format(id=r'([0-9]+[.][0-9]+)')}: )?{_BARE}")


def stub_exercise(error: BaseException) -> str | None:
    """The exercise whose blank raised `error`: "1.2", "" if the blank has no number, None if it is no blank."""
    found = _BLANK.fullmatch(str(error).strip()) if isinstance(error, NotImplementedError) else None
    return None if found is None else found[1] or ""
