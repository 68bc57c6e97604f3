"""Check 3.5: which layers a list of targets means: names that are a target, or end with a dot and a target."""

import re
from collections.abc import Callable

from .compare import Mistake, Trial
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise


def right_matches(name: str, targets: list[str]) -> bool:
    """The whole path, or its end after a dot."""
    return any(name == target or name.endswith("." + target) for target in targets)


def _any(hit: Callable[[str, str], bool]) -> Callable[[str, list[str]], bool]:
    return lambda name, targets: any(bool(hit(name, target)) for target in targets)


def _one(name: str, target: str) -> bool:
    return right_matches(name, [target])


MATCH_MISTAKES = (
    Mistake(
        "accepts a target anywhere in the name: it must be the whole name, or its end after a dot",
        _any(lambda name, target: target in name),
    ),
    Mistake(
        "accepts any ending: the target must follow a dot, or be the whole name",
        _any(lambda name, target: name.endswith(target)),
    ),
    Mistake(
        "accepts the whole name only: the end of a name, after a dot, matches too",
        _any(lambda name, target: name == target),
    ),
    Mistake(
        "needs a dot before the target: the whole name matches too",
        _any(lambda name, target: name.endswith("." + target)),
    ),
    Mistake(
        "compares the last part of the name only: a target may have dots of its own",
        lambda name, targets: name.split(".")[-1] in targets,
    ),
    Mistake(
        "finds a target among the parts of a name: it must be the end",
        lambda name, targets: any(target in name.split(".") for target in targets),
    ),
    Mistake(
        "reads a target as a regular expression: a dot means a dot, use == and endswith",
        _any(lambda name, target: re.search(rf"(^|\.){target}$", name)),
    ),
    Mistake(
        "reads a target as a regular expression: a dot means a dot, use == and endswith",
        _any(lambda name, target: re.search(rf"{target}$", name)),
    ),
    Mistake(
        "reads a target as a regular expression: a dot means a dot, use == and endswith",
        _any(lambda name, target: re.search(target, name)),
    ),
    Mistake(
        "accepts names that start with a target: it must be the end",
        _any(lambda name, target: name.startswith(target)),
    ),
    Mistake(
        "looks at the first target only: one of them is enough",
        lambda name, targets: bool(targets) and _one(name, targets[0]),
    ),
    Mistake(
        "looks at the last target only: one of them is enough",
        lambda name, targets: bool(targets) and _one(name, targets[-1]),
    ),
    Mistake(
        "wants every target to match: one of them is enough",
        lambda name, targets: all(_one(name, target) for target in targets),
    ),
    Mistake(
        "ignores upper and lower case: these names differ",
        lambda name, targets: right_matches(name.lower(), [target.lower() for target in targets]),
    ),
    Mistake(
        "has it upside down: True means that the name matches", lambda name, targets: not right_matches(name, targets)
    ),
)


def _name_pairs(cases: Cases) -> list[tuple[str, list[str]]]:
    """Names and targets: every way to match, and every near miss, in random order with random layers."""
    part, other = cases.shuffled(("q_proj", "v_proj", "up_proj", "c_attn", "fc1"))[:2]
    inner = cases.pick(("attn", "mlp", "self_attn"))
    layer = cases.integer(1, 9)
    name = f"model.layers.{layer}.{inner}.{part}"
    pairs = [
        (name, [part]),
        (name, [f"{inner}.{part}"]),
        (name, [other, part]),
        (name, [part, other]),
        (name, [name]),
        (part, [part]),
        (part, [other, part]),
        (name, [f"{layer}.{inner}.{part}"]),
        (f"model.layers.1{layer}.{inner}.{part}", [f"{layer}.{inner}.{part}"]),
        (f"model.layers.{layer}.{inner}.se{part}", [part]),
        (f"se{part}", [part]),
        (f"model.{part}.base", [part]),
        (f"{part}.{inner}", [part]),
        (f"{name}_gate", [part]),
        (f"model.{inner}{cases.pick('_x1')}{part}", [f"{inner}.{part}"]),
        (f"{name.upper()}", [part]),
        (name, [other]),
        (name, [f"{other}.{part}"]),
        (name, []),
        (name, [f"{part}.weight"]),
        (f"model.{inner}", [f"model.{inner}.{part}"]),
    ]
    return cases.shuffled(pairs)


@exercise(
    "3.5",
    takes=("name", "targets"),
    points=1,
    minutes=5,
    hints=(
        "A name such as layers.0.attn.q_proj is a path. 'q_proj' means its last step, and 'attn.q_proj' its last two.",
        "str.endswith alone is too generous: seq_proj ends in q_proj as well. What stands before a whole step?",
        "For any target: the name equals it, or the name ends with a dot followed by it.",
    ),
)
def matches(answer: Guard, cases: Cases) -> str:
    """Exact or dotted suffix."""
    pairs = [pair for _ in range(4) for pair in _name_pairs(cases)]
    trial = Trial("your matches", answer.labels, MATCH_MISTAKES, "think of the name as steps between dots")
    for name, targets in pairs:
        got = answer(name, targets)
        if not isinstance(got, bool):
            raise Wrong(f"your matches returned {kind(got)} for {answer.case(name, targets)}: return True or False")
        trial.add((name, targets), got, right_matches(name, targets))
    trial.verdict()
    return f"exact and dotted-suffix names told from {len(pairs)} near misses"
