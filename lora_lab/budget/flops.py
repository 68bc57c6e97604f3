"""FLOPs of a training step, and the time they take: matrix products only, 2 FLOPs per multiply-add.

    forward      2 for each weight and token, + 4 · layers · heads · width · length for each token in attention
    backward     2 more for the gradient of the activations, 2 more for that of the weights if they train:
                 a full step costs 3 times its forward pass, LoRA about 2 times, since most of its weights are frozen
    repeated     with checkpointing nearly all of the decoder layers' forward pass, once more

Attention is counted in full, as torch's FlopCounterMode counts it: a causal kernel skips nearly half of it. A flash
kernel's backward pass computes the scores once more: 5 products for the 2 of the forward pass.
"""

from typing import NamedTuple

from lora_lab.budget.plan import Plan

ATTENTION = ("flash", "scores")


class Flops(NamedTuple):
    """FLOPs of one step. `attention`: the part of the three others that grows with the square of the length."""

    forward: int
    backward: int
    repeated: int
    attention: int
    tokens: int

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.repeated

    @property
    def per_token(self) -> float:
        return self.total / self.tokens


def training_flops(plan: Plan) -> Flops:
    forward = backward = repeated = attention = 0
    for piece in plan.pieces:
        again = piece.tape.repeated() if piece.checkpointed else []
        forward += piece.times * sum(op.flops for op in piece.tape.ops)
        backward += piece.times * sum(op.backward_flops for op in piece.tape.ops)
        repeated += piece.times * sum(op.flops for op in again)
        quadratic = [op for op in piece.tape.ops if op.name in ATTENTION]
        attention += piece.times * sum(op.flops + op.backward_flops for op in quadratic)
        attention += piece.times * sum(op.flops for op in again if op.name in ATTENTION)
    return Flops(forward, backward, repeated, attention, plan.how.tokens)
