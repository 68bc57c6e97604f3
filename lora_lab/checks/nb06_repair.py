"""Check 6.3: settings of an old training script under the names that they have today."""

from .describe import kind, short
from .guard import Guard, Wrong
from .harness import Cases, exercise

NEW_NAMES = {
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_steps",
    "tokenizer": "processing_class",
    "gradient_checkpointing": "activation_checkpointing",
}
OLD_VALUES = {
    "torch_dtype": ("bfloat16", "float16"),
    "max_seq_length": (256, 512, 2048),
    "warmup_ratio": (0.0, 0.03, 0.1),
    "tokenizer": ("<the tokenizer>",),
    "gradient_checkpointing": (True, False),
}
OTHERS = {"learning_rate": 2e-4, "logging_steps": 7, "output_dir": "run", "warmup": 3, "packing": False, "seed": 0}


def reference(old: dict) -> dict:
    """Each old name replaced, everything else as it was."""
    for name, new in NEW_NAMES.items():
        if name in old and new in old:
            raise ValueError(f"both {name} and {new} are given")
    return {NEW_NAMES.get(name, name): value for name, value in old.items()}


def _compare(old: dict, got: dict) -> None:
    want = reference(old)
    if got == old and got != want:
        raise Wrong(f"your repair returns the settings as they were, {min(set(old) & set(NEW_NAMES))} among them")
    for name in old:
        new = NEW_NAMES.get(name, name)
        if name in NEW_NAMES and name in got:
            end = " beside the new one" if new in got else ""
            raise Wrong(f"your repair leaves the old name {name}{end}: it is a TypeError or a deprecation today")
        if new not in got:
            if name in NEW_NAMES:
                raise Wrong(f"your repair loses {name}: it is called {new} today, and its value still counts")
            raise Wrong(f"your repair loses {name}, which has not changed: keep every other setting")
        if got[new] != old[name] or type(got[new]) is not type(old[name]):
            hint = ": a float below 1 is a share of the steps for warmup_steps" if new == "warmup_steps" else ""
            raise Wrong(
                f"your repair turns {name} = {old[name]!r} into {new} = {short(got[new])}: keep the value{hint}"
            )
    extra = set(got) - set(want)
    if extra:
        raise Wrong(f"your repair adds {min(extra)}, which nobody asked for")


@exercise(
    "6.3",
    takes=("settings",),
    points=2,
    minutes=10,
    hints=(
        "Five names have changed, and every value keeps its meaning. Make a new dictionary.",
        "A dictionary from old to new name does it. Look at each setting: is its name one of the old five? And refuse "
        "settings that have both names of one thing.",
        "NEW maps old to new names: {NEW.get(name, name): value for name, value in settings.items()}, after a loop "
        "that raises ValueError if old in settings and new in settings.",
    ),
)
def repair(answer: Guard, cases: Cases) -> str:
    """New settings from old ones."""
    rounds = [
        list(NEW_NAMES),
        [],
        *([name] for name in NEW_NAMES),
        *(cases.shuffled(list(NEW_NAMES))[:3] for _ in "12"),
    ]
    for names in rounds:
        pairs = [(name, cases.pick(OLD_VALUES[name])) for name in names]
        pairs += [(name, OTHERS[name]) for name in cases.shuffled(list(OTHERS))[:4]]
        fresh = [new for new in NEW_NAMES.values() if new not in {NEW_NAMES[name] for name in names}]
        if fresh and len(names) == 1:  # a name that is already today's stays
            new = cases.pick(fresh)
            pairs.append((new, OLD_VALUES[{n: o for o, n in NEW_NAMES.items()}[new]][0]))
        old = dict(cases.shuffled(pairs))
        given = dict(old)
        got = answer(given, untouched=False)
        if given != old:
            raise Wrong("your repair changed the settings that it was given: return a new dictionary")
        if not isinstance(got, dict):
            raise Wrong(f"your repair should return a dictionary, not {kind(got)}")
        _compare(old, got)
    for name, new in NEW_NAMES.items():
        value = OLD_VALUES[name][0]
        error = answer.refusal({name: value, new: value, "seed": 1})
        if error is None:
            raise Wrong(f"your repair accepts {name} and {new} together: one would win in silence, raise a ValueError")
        if not isinstance(error, ValueError):
            raise Wrong(f"your repair raises {type(error).__name__} for {name} with {new}: a ValueError is asked for")
    return f"{len(NEW_NAMES)} old names replaced, everything else kept"
