"""Answers to exercise 5.8 of notebook 05."""

from lora_lab.checks.nb05_choose import REASONS, WISHES, right_choice, ruled_out, serving

from . import right, wrong

BOTH, DATA, NEARER, SHAPE, KEPT = REASONS


def by_table(case):
    """Every condition written out."""
    rank, data, codes = case["rank"], case["tokens"] > 0, case["four_bit"]
    shift = not case["shared_base"] and (not codes or case["original_weights"])
    wish = case["wish"]
    if wish == "both factors learn at once":
        if rank % 2 == 0:
            return "orthogonal", BOTH
        return ("pissa", BOTH) if shift else ("default", KEPT)
    if wish == "look at my data":
        return ("eva", DATA) if data else ("default", SHAPE)
    if wish == "4 bits, close to W":
        return ["pissa", NEARER] if codes and shift else ["default", SHAPE]
    return ("gaussian", SHAPE) if wish == "no set-up" else ("default", KEPT)


def last_possible(case):
    """Of the inits that serve, the last one of the table."""
    good = serving(case)
    return (good[-1], WISHES[case["wish"]]) if good else ("default", KEPT)


def ordered(ignore=(), otherwise=lambda case: ("default", SHAPE), reasons=None, first=()):
    """The right way, but deaf to some of the case, or with other facts."""
    keep = {"rank": 4, "tokens": 1, "four_bit": None, "original_weights": True, "shared_base": False}

    def choose(case):
        seen = dict(case) | {key: keep[key] for key in ignore}
        good = sorted(serving(seen), key=lambda name: name not in first)
        if good:
            return good[0], (reasons or WISHES)[case["wish"]]
        return otherwise(case)

    return choose


def one(name, reason):
    return lambda case: (name, reason)


def claims(name, wish):
    """This init for that wish, where it can be used."""

    def choose(case):
        if case["wish"] == wish and not ruled_out(name, case):
            return name, WISHES[wish]
        return right_choice(case)

    return choose


def any_possible(case):
    if not serving(case):
        return "default", KEPT
    return next(name for name in ("eva", "pissa", "default") if not ruled_out(name, case)), (
        DATA if not ruled_out("eva", case) else BOTH if not ruled_out("pissa", case) else KEPT
    )


def prefers_mica(case):
    good = serving(case)
    return (good[0], WISHES[case["wish"]]) if good else ("mica", KEPT)


def changes(case):
    case["rank"] = 8
    return right_choice(case)


CHOOSE = [
    right("5.8", "written out", by_table),
    right("5.8", "the last that serves", last_possible),
    right("5.8", "the first that serves", right_choice),
    wrong("5.8", "always the default", "no answer to the wish", one("default", KEPT)),
    wrong("5.8", "random", "it is for debugging", one("random", SHAPE)),
    wrong(
        "5.8", "deaf to the shared base", "on which other adapters live", ordered(("shared_base",), first=("pissa",))
    ),
    wrong("5.8", "deaf to the rank", "needs an even rank", ordered(("rank",))),
    wrong("5.8", "deaf to missing data", "and there is none", ordered(("tokens",))),
    wrong("5.8", "deaf to lost weights", "which are gone", ordered(("original_weights",), first=("pissa",))),
    wrong(
        "5.8",
        "loftq without codes",
        "is not quantized",
        lambda case: ("loftq", BOTH) if case["original_weights"] and not case["four_bit"] else right_choice(case),
    ),
    wrong("5.8", "PiSSA reads data", "pissa that 'it reads the data'", claims("pissa", "look at my data")),
    wrong("5.8", "EVA moves both", "eva that 'neither factor", claims("eva", "both factors learn at once")),
    wrong("5.8", "OLoRA mends codes", "olora that 'it starts nearer", claims("olora", "4 bits, close to W")),
    wrong("5.8", "MiCA moves both", "mica that 'neither factor", claims("mica", "both factors learn at once")),
    wrong("5.8", "PiSSA keeps the base", "pissa that 'it leaves the base", claims("pissa", "hands off the base")),
    wrong("5.8", "EVA needs no set-up", "eva that 'it needs nothing", claims("eva", "no set-up")),
    wrong("5.8", "deaf to the wish", "no answer to the wish", any_possible),
    wrong("5.8", "another fallback", "so take the default", prefers_mica),
    wrong("5.8", "reason first", "returns the reason first", lambda case: right_choice(case)[::-1]),
    wrong("5.8", "own words", "which is none of", lambda case: (right_choice(case)[0], "because")),
    wrong("5.8", "unknown init", "none of the inits", lambda case: ("milora", KEPT)),
    wrong("5.8", "init alone", "two strings", lambda case: right_choice(case)[0]),
    wrong("5.8", "changes the case", "changes the case", changes),
]
