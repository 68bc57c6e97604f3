"""Answers to exercises 6.1 and 6.3 of notebook 06."""

import math

from lora_lab.checks.nb06_repair import NEW_NAMES, reference

from . import right, wrong


def lora(**settings):
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "CAUSAL_LM"} | settings)


def config(rank, scale, targets, rslora, **more):
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    settings = {"r": rank, "lora_alpha": alpha, "use_rslora": rslora, "target_modules": targets}
    return lora(**settings | more)


def by_setting(rank, scale, targets, rslora):
    from peft import LoraConfig, TaskType

    made = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=set(targets))
    made.r, made.use_rslora = rank, rslora
    made.lora_alpha = scale * rank ** (0.5 if rslora else 1)
    return made


def by_branch(rank, scale, targets, rslora):
    if rslora:
        return lora(r=rank, lora_alpha=rank**0.5 * scale, target_modules=tuple(targets), use_rslora=True)
    return lora(r=rank, lora_alpha=rank * scale, target_modules=targets)


def but(**change):
    """The right config, some fields changed by functions of (rank, scale, targets, rslora)."""
    return lambda *asked: config(*asked, **{name: value(*asked) for name, value in change.items()})


CONFIG = [
    right("6.1", "one line", config),
    right("6.1", "field by field", by_setting),
    right("6.1", "two branches", by_branch),
    wrong("6.1", "scale as alpha", "passes the scale as lora_alpha", but(lora_alpha=lambda r, s, t, u: s)),
    wrong("6.1", "alpha twice the rank", "twice the rank", but(lora_alpha=lambda r, s, t, u: 2 * r)),
    wrong("6.1", "rsLoRA forgotten", "use_rslora = False", but(use_rslora=lambda r, s, t, u: False)),
    wrong("6.1", "r for the root of r", "divides by √r", but(lora_alpha=lambda r, s, t, u: s * r)),
    wrong(
        "6.1",
        "root without rsLoRA",
        "divides by √r without rsLoRA",
        but(lora_alpha=lambda r, s, t, u: s * math.sqrt(r)),
    ),
    wrong("6.1", "another alpha", "has another scale", but(lora_alpha=lambda r, s, t, u: s * r + 1)),
    wrong("6.1", "no task type", "task_type = None", but(task_type=lambda r, s, t, u: None)),
    wrong("6.1", "targets as text", "a string is a pattern", but(target_modules=lambda r, s, t, u: "|".join(t))),
    wrong("6.1", "one target", "was asked for", but(target_modules=lambda r, s, t, u: t[:1])),
    wrong("6.1", "default rank", "r = 8", but(r=lambda r, s, t, u: 8)),
    wrong("6.1", "dropout", "lora_dropout to 0.05", but(lora_dropout=lambda r, s, t, u: 0.05)),
    wrong("6.1", "biases", "bias to 'all'", but(bias=lambda r, s, t, u: "all")),
    wrong("6.1", "random B", "init_lora_weights to False", but(init_lora_weights=lambda r, s, t, u: False)),
    wrong("6.1", "a dictionary", "should return a LoraConfig", lambda r, s, t, u: {"r": r}),
]


def by_loop(settings):
    made = {}
    for name in settings:
        new = NEW_NAMES.get(name)
        if new is None:
            made[name] = settings[name]
        elif new in settings:
            raise ValueError(name)
        else:
            made[new] = settings[name]
    return made


def by_pop(settings):
    made = dict(settings)
    for old, new in NEW_NAMES.items():
        if old in made:
            if new in made:
                raise ValueError(f"{old} and {new}")
            made[new] = made.pop(old)
    return made


def in_place(settings):
    for old, new in NEW_NAMES.items():
        if old in settings:
            if new in settings:
                raise ValueError(old)
            settings[new] = settings.pop(old)
    return settings


def without(*names):
    """Knows all names but these."""
    known = {old: new for old, new in NEW_NAMES.items() if old not in names}
    return lambda settings: {known.get(name, name): value for name, value in settings.items()}


def values(change):
    """The right names, change(new name, value) for value."""
    return lambda settings: {name: change(name, value) for name, value in reference(settings).items()}


def refusing_with_a_key_error(settings):
    try:
        return reference(settings)
    except ValueError:
        raise KeyError("both") from None


REPAIR = [
    right("6.3", "comprehension", reference),
    right("6.3", "loop", by_loop),
    right("6.3", "pop", by_pop),
    wrong("6.3", "as they were", "returns the settings as they were", dict),
    wrong("6.3", "in place", "changed the settings", in_place),
    wrong("6.3", "no refusal", "one would win in silence", without()),
    wrong("6.3", "one name forgotten", "leaves the old name max_seq_length", without("max_seq_length")),
    wrong("6.3", "tokenizer forgotten", "leaves the old name tokenizer", without("tokenizer")),
    wrong("6.3", "both names", "beside the new one", lambda settings: settings | reference(settings)),
    wrong(
        "6.3",
        "the rest is lost",
        "which has not changed",
        lambda settings: {new: settings[old] for old, new in NEW_NAMES.items() if old in settings},
    ),
    wrong(
        "6.3",
        "old ones dropped",
        "its value still counts",
        lambda settings: {name: value for name, value in settings.items() if name not in NEW_NAMES},
    ),
    wrong(
        "6.3",
        "whole warm-up steps",
        "is a share of the steps",
        values(lambda name, value: int(value * 1000) if name == "warmup_steps" else value),
    ),
    wrong(
        "6.3",
        "always checkpointing",
        "keep the value",
        values(lambda name, value: 1 if name == "activation_checkpointing" else value),
    ),
    wrong("6.3", "more than asked", "which nobody asked for", lambda settings: reference(settings) | {"bf16": True}),
    wrong("6.3", "another error", "raises KeyError", refusing_with_a_key_error),
    wrong("6.3", "pairs", "should return a dictionary", lambda settings: list(reference(settings).items())),
]
