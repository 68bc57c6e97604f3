"""Check 5.8: an init for a case, with a reason that holds.

A case is a dict: rank; tokens (of the task's data at hand); four_bit (is the base held in 4 bits?); original_weights
(are its full-precision weights there?); shared_base (do other adapters live on it?); wish (one of `WISHES`).
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

from lora_lab.init import INITS

from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise

# What is wished for, and the reason that answers it.
WISHES = {
    "both factors learn at once": "neither factor starts at zero",
    "look at my data": "it reads the data",
    "4 bits, close to W": "it starts nearer to W",
    "no set-up": "it needs nothing but the shape",
    "hands off the base": "it leaves the base as it is",
}
REASONS = tuple(WISHES.values())
# Not in the table of inits: which have A or B = 0, and (measured, data/measurements/inits.json) which start nearer to W
# on an NF4 base than the default does.
ZERO = ("default", "gaussian", "eva", "mica")
NEARER = ("pissa", "loftq")


def holds(reason: str, name: str, case: dict[str, Any]) -> bool:
    """Is this reason true of that init, in this case?"""
    recipe = INITS[name]
    return {
        "neither factor starts at zero": name not in ZERO,
        "it reads the data": recipe.needs in ("inputs", "gradient"),
        "it starts nearer to W": case["four_bit"] and name in NEARER,
        "it needs nothing but the shape": recipe.needs == "nothing",
        "it leaves the base as it is": recipe.base == "kept",
    }[reason]


def ruled_out(name: str, case: dict[str, Any]) -> str:
    """Why an init cannot be used in a case, in words; "" if it can."""
    recipe = INITS[name]
    if name == "random":
        return "it changes the model before the first step: it is for debugging"
    if name == "orthogonal" and case["rank"] % 2:
        return f"it needs an even rank, and the rank is {case['rank']}"
    if recipe.needs in ("inputs", "gradient") and not case["tokens"]:
        return "it reads data, and there is none"
    if recipe.base == "residual" and case["shared_base"]:
        return "it takes its part out of the base, on which other adapters live"
    if recipe.base != "kept" and case["four_bit"] and not case["original_weights"]:
        return "it needs the full-precision weights, which are gone"
    if name == "loftq" and not case["four_bit"]:
        return "it repairs quantization, and the base is not quantized"
    return ""


def serving(case: dict[str, Any]) -> list[str]:
    """The inits that can be used in a case and do what is wished."""
    reason = WISHES[case["wish"]]
    return [name for name in INITS if not ruled_out(name, case) and holds(reason, name, case)]


def right_choice(case: dict[str, Any]) -> tuple[str, str]:
    """An init and a reason."""
    good = serving(case)
    return (good[0], WISHES[case["wish"]]) if good else ("default", "it needs nothing but the shape")


def every_case(cases: Cases) -> Iterator[dict[str, Any]]:
    """All kinds of cases, in a random order. (No shared base in 4 bits: what LoftQ then does depends on its steps.)"""
    kinds = product(WISHES, (0, 1), (False, True), (False, True), (False, True), (False, True))
    for wish, odd, data, four_bit, original, shared in cases.shuffled(list(kinds)):
        if (four_bit and shared) or (not four_bit and not original):
            continue
        yield {
            "rank": 2 * cases.integer(2, 16) + odd,
            "tokens": cases.integer(10_000, 90_000) if data else 0,
            "four_bit": four_bit,
            "original_weights": original,
            "shared_base": shared,
            "wish": wish,
        }


def _in_words(case: dict[str, Any]) -> str:
    parts = [f"rank {case['rank']}", f"{case['tokens']:,} tokens", "4 bits" if case["four_bit"] else "full precision"]
    if case["four_bit"]:
        parts.append("originals there" if case["original_weights"] else "originals gone")
    if case["shared_base"]:
        parts.append("shared base")
    return f"({', '.join(parts)}; wish: {case['wish']})"


def _refuse(got: Any, case: dict[str, Any]) -> None:
    if not isinstance(got, tuple | list) or len(got) != 2 or not all(isinstance(part, str) for part in got):
        raise Wrong(f"your choose should return (init, reason), two strings, not {kind(got)}")
    name, reason = got
    words = _in_words(case)
    if name in REASONS:
        raise Wrong("your choose returns the reason first: return (init, reason)")
    if name not in INITS:
        raise Wrong(f"your choose returns {name!r}, which is none of the inits: {', '.join(INITS)}")
    if reason not in REASONS:
        raise Wrong(f"your choose gives the reason {reason!r}, which is none of {', '.join(map(repr, REASONS))}")
    if why := ruled_out(name, case):
        raise Wrong(f"your choose takes {name} {words}, but {why}")
    if not holds(reason, name, case):
        raise Wrong(f"your choose says of {name} that {reason!r} {words}, and that is not true")
    good, wanted = serving(case), WISHES[case["wish"]]
    if good and reason != wanted:
        raise Wrong(
            f"your choose takes {name} because {reason!r} {words}: true, but no answer to the wish. "
            f"{good[0]} can be used here, and there {wanted!r} holds"
        )
    if not good and name != "default":
        raise Wrong(f"your choose takes {name} {words}: no init can do what is wished here, so take the default")


@exercise(
    "5.8",
    takes=("case",),
    points=3,
    minutes=15,
    hints=(
        "Two questions in this order: which inits are impossible here, and which of the others do what is wished?",
        "INITS[name].base is 'kept', 'residual' or 'quantized'; INITS[name].needs is 'nothing', 'weight', 'inputs' or "
        "'gradient'. With a function possible(name, case) and one served(name, case) the rest is a loop over INITS.",
        "Loop over INITS; the first name that is possible and serves the wish is the answer, with WISHES[case['wish']] "
        "as its reason. Where the loop ends without one, it is the default with the reason about the shape.",
    ),
)
def choose(answer: Guard, cases: Cases) -> str:
    """An init that can be used and does what is wished, with the reason; else the default."""
    count = 0
    for case in every_case(cases):
        given = dict(case)
        _refuse(answer(given), case)
        if given != case:
            raise Wrong("your choose changes the case that it was given: leave it as it is")
        count += 1
    return f"an init that can be used, with a reason that holds, in {count} cases"
