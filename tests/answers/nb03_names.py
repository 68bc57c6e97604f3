"""Answers to exercise 3.5 of notebook 03."""

import re

from lora_lab.targets import matches as library_matches

from . import right, wrong


def suffix(name, targets):
    return any(name == t or name.endswith("." + t) for t in targets)


def by_steps(name, targets):
    steps = name.split(".")
    for target in targets:
        wanted = target.split(".")
        if steps[-len(wanted) :] == wanted:
            return True
    return False


def with_leading_dot(name, targets):
    return any(f".{name}".endswith(f".{t}") for t in targets)


def escaped(name, targets):
    return bool(targets) and re.fullmatch(rf"(.*\.)?({'|'.join(map(re.escape, targets))})", name) is not None


def some(hit):
    return lambda name, targets: any(hit(name, t) for t in targets)


def last_seen(name, targets):
    result = False
    for target in targets:
        result = name == target or name.endswith("." + target)
    return result


def first_seen(name, targets):
    for target in targets:
        return suffix(name, [target])
    return False


MATCHES = [
    right("3.5", "library", library_matches),
    right("3.5", "equal or ends with", suffix),
    right("3.5", "steps", by_steps),
    right("3.5", "dot in front of both", with_leading_dot),
    right("3.5", "escaped expression", escaped),
    wrong("3.5", "substring", "anywhere in the name", some(lambda name, t: t in name)),
    wrong("3.5", "suffix without the dot", "accepts any ending", some(lambda name, t: name.endswith(t))),
    wrong("3.5", "exact only", "the whole name only", lambda name, targets: name in targets),
    wrong("3.5", "dotted suffix only", "needs a dot before", some(lambda name, t: name.endswith("." + t))),
    wrong(
        "3.5",
        "last step only",
        "the last part of the name only",
        lambda name, targets: name.rpartition(".")[2] in targets,
    ),
    wrong("3.5", "any step", "among the parts", lambda name, targets: bool(set(name.split(".")) & set(targets))),
    wrong("3.5", "expression", "a regular expression", some(lambda name, t: bool(re.search(rf"(^|\.){t}$", name)))),
    wrong(
        "3.5",
        "expression without the dot",
        "a regular expression",
        some(lambda name, t: bool(re.search(t + "$", name))),
    ),
    wrong(
        "3.5",
        "fullmatch of an expression",
        "a regular expression",
        some(lambda name, t: bool(re.fullmatch(rf"(.*\.)?{t}", name))),
    ),
    wrong("3.5", "prefix", "names that start with", some(lambda name, t: name.startswith(t))),
    wrong("3.5", "first target", "the first target only", first_seen),
    wrong("3.5", "last target", "the last target only", last_seen),
    wrong("3.5", "all targets", "wants every target", lambda name, targets: all(suffix(name, [t]) for t in targets)),
    wrong("3.5", "case ignored", "upper and lower case", lambda name, targets: suffix(name.lower(), targets)),
    wrong("3.5", "upside down", "upside down", lambda name, targets: not suffix(name, targets)),
    wrong(
        "3.5", "match object", "return True or False", lambda name, targets: [t for t in targets if suffix(name, [t])]
    ),
    wrong("3.5", "None for no", "returned nothing", lambda name, targets: True if suffix(name, targets) else None),
    wrong(
        "3.5",
        "pops the targets",
        "changed the list targets",
        lambda name, targets: any(suffix(name, [targets.pop()]) for _ in list(targets)),
    ),
]
