"""Check 2.4: bytes for each parameter that trains."""

from collections.abc import Callable

import torch

from lora_lab.budget.optimizers import BLOCK, master_bytes, state_bytes

from .compare import judge, number
from .guard import Guard
from .harness import Cases, exercise
from .nb02_counts import mistake, whole

OPTIMIZERS = ("sgd", "sgd-momentum", "adamw", "adamw-8bit")
STATES = {"sgd": 0, "sgd-momentum": 1, "adamw": 2, "adamw-8bit": 2}  # numbers kept for each parameter


def right_bytes(dtype_bytes: int, optimizer: str, master: bool) -> float:
    """Weight, gradient, master copy and states, from the library's own sizes of one large tensor."""

    size = 2**20
    dtype = {2: torch.bfloat16, 4: torch.float32}[dtype_bytes]
    shapes = [((size,), dtype)]
    kept = state_bytes(optimizer, shapes, master) + (master_bytes(shapes) if master else 0)
    return whole(2 * dtype_bytes + kept / size)


def _states(dtype_bytes: int, optimizer: str, master: bool) -> float:
    return right_bytes(dtype_bytes, optimizer, master) - 2 * dtype_bytes - 4 * master


def _parts(states: Callable[[int, str, bool], float]) -> Callable[[int, str, bool], float]:
    """Everything right but the states."""
    return lambda d, optimizer, master: 2 * d + 4 * master + states(d, optimizer, master)


def _plain(item: Callable[[int, bool], float]) -> Callable[[int, str, bool], float]:
    """Everything right but the bytes of a state in full precision, item(dtype_bytes, master)."""
    return _parts(lambda d, o, m: _states(d, o, m) if o == "adamw-8bit" else STATES[o] * item(d, m))


def _eight(item: float) -> Callable[[int, str, bool], float]:
    """Everything right but the bytes of both 8-bit states."""
    return _parts(lambda d, o, m: item if o == "adamw-8bit" else _states(d, o, m))


def _eight_if_master(item: float) -> Callable[[int, str, bool], float]:
    """Everything right but the bytes of both 8-bit states beside a master copy."""
    return _parts(lambda d, o, m: item if m and o == "adamw-8bit" else _states(d, o, m))


BYTES_MISTAKES = (
    mistake(
        "leaves out the gradient, or the parameter itself: each takes {dtype_bytes} bytes",
        lambda d, o, m: right_bytes(d, o, m) - d,
    ),
    mistake("counts the gradient in fp32: it has the parameter's dtype", lambda d, o, m: right_bytes(d, o, m) - d + 4),
    mistake(
        "counts the optimizer alone: parameter and gradient are asked for too",
        lambda d, o, m: right_bytes(d, o, m) - 2 * d,
    ),
    mistake("leaves out the fp32 master copy, 4 bytes", lambda d, o, m: right_bytes(d, o, m) - 4 * m),
    mistake(
        "is 2 bytes short where there is a master copy: it takes 4 bytes, fp32, and stands beside the weight, which "
        "keeps its {dtype_bytes}",
        lambda d, o, m: right_bytes(d, o, m) - 2 * m,
    ),
    mistake(
        "always adds a master copy: there is one only if master is True",
        lambda d, o, m: right_bytes(d, o, m) + 4 * (not m),
    ),
    mistake(
        "keeps the states in the parameter's dtype although they belong to the fp32 copies",
        _plain(lambda d, m: d),
    ),
    mistake(
        "always keeps the states in fp32: without master copies they have the parameter's own dtype",
        _plain(lambda d, m: 4),
    ),
    mistake(
        "counts one state for AdamW: it keeps m and v",
        _parts(lambda d, o, m: _states(d, o, m) / (1 + (STATES[o] == 2))),
    ),
    mistake(
        "counts one state for AdamW: it keeps m and v",
        _parts(lambda d, o, m: _states(d, o, m) / (1 + (o == "adamw"))),
    ),
    mistake(
        "gives SGD with momentum two states: it keeps one number",
        _parts(lambda d, o, m: _states(d, o, m) * (1 + (o == "sgd-momentum"))),
    ),
    mistake(
        "gives plain SGD a state: it keeps nothing",
        _parts(lambda d, o, m: _states(d, "sgd-momentum" if o == "sgd" else o, m)),
    ),
    mistake("forgets the scales of the 8-bit states: one fp32 number for every 256 of them", _eight(2)),
    mistake("counts one 8-bit state: m and v have a byte each", _eight(1 + 4 / BLOCK)),
    mistake("counts one 8-bit state: m and v have a byte each", _eight(1)),
    mistake("counts the scales once: m and v have scales of their own", _eight(2 + 4 / BLOCK)),
    *(
        mistake("widens the 8-bit states with the master copy: they stay one byte each", _eight_if_master(item))
        for item in (8, 8 * (1 + 4 / BLOCK), 2 * (4 + 4 / BLOCK))
    ),
    mistake(
        "multiplies the 8-bit states by the size of a number: they are one byte each, whatever the dtype",
        _parts(lambda d, o, m: _states(d, o, m) * ((4 if m else d) if o == "adamw-8bit" else 1)),
    ),
    mistake("gives every 8-bit number a scale: {got:.4g}; 256 numbers share one", _eight(2 * (1 + 4))),
)


@exercise(
    "2.4",
    takes=("dtype_bytes", "optimizer", "master"),
    points=2,
    minutes=10,
    hints=(
        "Four things may be kept: the parameter, its gradient, a copy in fp32, and the optimizer's states.",
        "States: none for sgd, one number for sgd-momentum, two for adamw. A number takes dtype_bytes, or 4 if the "
        "optimizer works on master copies. The 8-bit states take 1 byte each and 4/256 for their scale.",
        "2 · dtype_bytes + (4 if master) + states, where states = 0, 1 or 2 times (4 if master else dtype_bytes), or "
        "2 · (1 + 4/256) for adamw-8bit.",
    ),
)
def bytes_per_parameter(answer: Guard, cases: Cases) -> str:
    """Bytes for each parameter that trains, by dtype, optimizer and master copies."""
    inputs = [(d, o, m) for d, m in ((2, False), (4, False), (2, True)) for o in OPTIMIZERS]
    inputs = [(4, "adamw", False), *cases.shuffled([case for case in inputs if case != (4, "adamw", False)])]
    count = judge(
        answer,
        inputs,
        right_bytes,
        BYTES_MISTAKES,
        look="fp32 with adamw takes 4 + 4 + 8 = 16",
        read=lambda got, _: whole(number(got, "the result of your bytes_per_parameter")),
    )
    return f"the bytes for a parameter in {count} recipes"
