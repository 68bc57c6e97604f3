"""When is most memory in use? Walk the operations of a tape in the order in which torch runs them.

    forward:   a buffer lives until its last use, or, if some operation saves it, until that one's backward pass
    backward:  a gradient lives from the first operation that adds to it until the one that consumes it

Both return the bytes alive at the worst moment, by kind, on top of whatever the caller holds.
"""

from collections import Counter

from lora_lab.budget.tape import ACTIVATIONS, GRADIENTS, LOGITS, WORKSPACE, Buffer, Op, Tape, Value


class Alive:
    """Bytes alive now, by kind, and their split at the moment when the sum was largest."""

    def __init__(self):
        self.now: Counter[str] = Counter()
        self.total = self.peak = 0
        self.at: dict[str, int] = {}

    def add(self, kind: str, nbytes: int) -> None:
        self.now[kind] += nbytes
        self.total += nbytes
        if self.total > self.peak:
            self.peak, self.at = self.total, dict(self.now)

    def touch(self, nbytes: int) -> None:
        """Bytes that come and go within one operation."""
        if nbytes:
            self.add(WORKSPACE, nbytes)
            self.add(WORKSPACE, -nbytes)


def forward_peak(tape: Tape, keep: bool = True) -> dict[str, int]:
    """The worst moment of a forward pass. `keep=False`: nothing is saved (the first pass under checkpointing)."""
    alive = Alive()
    _forward(alive, tape, tape.ops, keep)
    return alive.at


def backward_peak(tape: Tape, checkpointed: bool = False) -> dict[str, int]:
    """The worst moment of a backward pass. It starts with everything saved, or with the input alone (`checkpointed`)
    and computes the rest again when it first needs something saved."""
    alive = Alive()
    if checkpointed:
        alive.add(tape.x.buffer.kind, tape.x.buffer.nbytes)
    else:
        for buffer in tape.saved():
            alive.add(buffer.kind, buffer.nbytes)
    _backward(alive, tape, checkpointed)
    return alive.at


def _forward(alive: Alive, tape: Tape, ops: list[Op], keep: bool) -> None:
    """Run `ops`, all of the tape or, when it is run again, those at its start. What nobody needs then is gone."""
    last = {value.buffer: i for i, op in enumerate(tape.ops) for value in (*op.inputs, *op.holds, op.output)}
    kept = set(tape.saved()) if keep else set()
    held = {tape.output.buffer, *tape.held, *tape.cached} | (
        {tape.x.buffer} if tape.x is not None and tape.holds_x else set()
    )
    here: set[Buffer] = set() if tape.x is None or ops is not tape.ops else {tape.x.buffer}
    alive.add(ACTIVATIONS, sum(buffer.nbytes for buffer in here))

    def kind(buffer: Buffer) -> str:
        lasting = buffer in kept or buffer.kind == LOGITS or (tape.x is not None and buffer is tape.x.buffer)
        return buffer.kind if lasting else WORKSPACE

    def bring(buffer: Buffer) -> None:
        if buffer not in here and (tape.x is None or buffer is not tape.x.buffer):
            here.add(buffer)
            alive.add(kind(buffer), buffer.nbytes)

    def drop(buffer: Buffer) -> None:
        if buffer in here and buffer not in kept:
            here.remove(buffer)
            alive.add(kind(buffer), -buffer.nbytes)

    for i, op in enumerate(ops):
        bring(op.output.buffer)
        for buffer in op.saves if keep else ():
            bring(buffer)
        alive.touch(op.scratch)
        for value in (*op.inputs, *op.holds, op.output):
            if last[value.buffer] <= i and value.buffer not in held:
                drop(value.buffer)
    if ops is not tape.ops:
        for buffer in list(here):
            drop(buffer)


def _backward(alive: Alive, tape: Tape, again: bool) -> None:
    users = Counter(buffer for op in tape.ops for buffer in set(op.saves))
    gradient = Buffer(tape.output.nbytes, WORKSPACE)
    alive.add(WORKSPACE, gradient.nbytes)
    of: dict[Value, Buffer] = {tape.output: gradient}  # the gradient of each value, so far
    shared = Counter([gradient])  # one buffer may be the gradient of several values

    def drop(buffer: Buffer) -> None:
        shared[buffer] -= 1
        if not shared[buffer]:
            alive.add(WORKSPACE, -buffer.nbytes)

    def new(nbytes: int) -> Buffer:
        alive.add(WORKSPACE, nbytes)
        return Buffer(nbytes, WORKSPACE)

    for op in reversed(tape.ops):
        incoming = of.pop(op.output, None)
        if incoming is None:
            continue
        if again and op.saves:
            _forward(alive, tape, tape.repeated(), keep=True)
            again = False
        alive.touch(op.backward_scratch)
        alive.add(GRADIENTS, op.weight_bytes)
        for value in op.inputs:
            if not value.grad:
                continue
            part = incoming if op.passes else new(value.nbytes)
            shared[part] += 1
            if value not in of:
                of[value] = part
                continue
            if shared[of[value]] > 1:  # somebody else's gradient too: the sum needs memory of its own
                total = new(value.nbytes)
                shared[total] += 1
                drop(of[value])
                of[value] = total
            drop(part)
        drop(incoming)
        for buffer in set(op.saves):
            users[buffer] -= 1
            if not users[buffer]:
                alive.add(buffer.kind, -buffer.nbytes)
