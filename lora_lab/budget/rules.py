"""What each of torch's operations saves for its backward pass, and what it costs.

    y = x + z, view, transpose     nothing
    y = x · z                      z if x needs a gradient, x if z does
    tanh, rsqrt, softmax           their output        silu, gelu, pow        their input
    layer_norm                     x, mean, 1/std      embedding              the token ids, if it trains
    y = x Wᵀ                       x only if W trains (W itself is no activation): a frozen layer saves nothing
    flash attention                q, k, v, the output, and one fp32 number per query and head
    dropout                        which entries it dropped: 1 byte each on a GPU; the scaled mask itself on a CPU

FLOPs are those of matrix products, 2 per multiply-add. Backward, a product costs one product of the same size for each
of its two factors that needs a gradient.
"""

from dataclasses import dataclass

import torch

from lora_lab.budget.tape import ACTIVATIONS, LOGITS, Tape, Value

FP32 = torch.float32


@dataclass(frozen=True, slots=True)
class How:
    """How a model is run, as far as its operations care.

    dtype: of the weights. adapter_dtype: of A and B. autocast: the type that torch.autocast computes products in.
    fused: adapters as `lora_lab.fused` computes them. dropout: of their inputs. library: whose adapters, "lora_lab" or
    "peft", which save the same, but name other things on the way. device: "cuda" or "cpu", where a few operations save
    other things.
    """

    batch: int
    length: int
    dtype: torch.dtype
    adapter_dtype: torch.dtype = FP32
    autocast: torch.dtype | None = None
    attention: str = "sdpa"
    fused: bool = False
    device: str = "cuda"
    dropout: float = 0.0
    library: str = "lora_lab"

    @property
    def tokens(self) -> int:
        return self.batch * self.length


class Rules(Tape):
    """A tape with one method for each operation: values in, value out."""

    def __init__(self, how: How, x: Value | None = None):
        super().__init__(x)
        self.how = how

    # Element by element.

    def cast(self, x: Value, dtype: torch.dtype, kind: str = ACTIVATIONS) -> Value:
        return x if x.dtype == dtype else self.record("cast", [x], x.size, dtype, kind=kind)

    def copy(self, x: Value, size: int = 0) -> Value:
        """The same numbers in another layout, or (size) repeated."""
        return self.record("copy", [x], size or x.size, x.dtype, passes=not size)

    def add(self, x: Value, z: Value) -> Value:
        dtype = torch.promote_types(x.dtype, z.dtype)
        return self.record("add", [x, z], max(x.size, z.size), dtype, passes=x.dtype == z.dtype)

    def shift(self, x: Value) -> Value:
        """x plus something without a gradient: a number, a mask."""
        return self.record("add", [x], x.size, x.dtype, passes=True)

    def scale(self, x: Value) -> Value:
        """x times a plain number."""
        return self.record("scale", [x], x.size, x.dtype)

    def mul(self, x: Value, z: Value) -> Value:
        saves = [*([z] if x.grad else []), *([x] if z.grad else [])]
        return self.record("mul", [x, z], max(x.size, z.size), torch.promote_types(x.dtype, z.dtype), saves=saves)

    def of_input(self, name: str, x: Value) -> Value:
        """silu, gelu, pow: the derivative is computed from the input."""
        return self.record(name, [x], x.size, x.dtype, saves=[x])

    def of_output(self, name: str, x: Value, kind: str = ACTIVATIONS) -> Value:
        """tanh, rsqrt, softmax: the derivative is computed from the output."""
        y = self.record(name, [x], x.size, x.dtype, kind=kind)
        if y.grad:
            self.ops[-1].saves.append(y.buffer)
        return y

    def part(self, x: Value, size: int) -> Value:
        """A slice: a view. Its gradient is a tensor of the whole size, zero outside."""
        return self.record("slice", [x], size, x.dtype, view=True)

    def join(self, *parts: Value) -> Value:
        return self.record("cat", parts, sum(part.size for part in parts), parts[0].dtype, passes=True)

    def dropout(self, x: Value, p: float) -> Value:
        if not p:
            return x
        mask = Value(x.size, torch.bool if self.how.device == "cuda" else x.dtype)
        return self.record("dropout", [x], x.size, x.dtype, saves=[mask])

    # Norms over the last dimension, `width` wide.

    def rms_norm(self, x: Value, width: int, trains: bool, plus_one: bool = False) -> Value:
        """w · x/√(mean x² + ε), in fp32 up to the product with w; Gemma's, with 1 + w, beyond it."""
        wide = self.cast(x, FP32)
        mean = self.record("mean", [self.of_input("pow", wide)], x.size // width, FP32)
        normal = self.mul(wide, self.of_output("rsqrt", self.shift(mean)))
        bytes_of_weight = width * self.how.dtype.itemsize if trains else 0
        if plus_one:
            weight = self.record("1 + w", [], width, FP32, trains=trains, weight_bytes=bytes_of_weight)
            return self.cast(self.mul(normal, weight), x.dtype)
        normal = self.cast(normal, x.dtype)
        scratch = normal.nbytes if trains else 0
        return self.record(
            "times w",
            [normal],
            x.size,
            torch.promote_types(x.dtype, self.how.dtype),
            saves=[normal] if trains else [],
            trains=trains,
            weight_bytes=bytes_of_weight,
            backward_scratch=scratch,
        )

    def layer_norm(self, x: Value, width: int, trains: bool) -> Value:
        exact = FP32 if self.how.device == "cuda" else x.dtype
        saves = [x, *(Value(x.size // width, exact) for _ in ("mean", "1/std"))]
        weight_bytes = 2 * width * self.how.dtype.itemsize if trains else 0
        return self.record("layer_norm", [x], x.size, x.dtype, saves=saves, trains=trains, weight_bytes=weight_bytes)

    # Products and lookups.

    def product(self, x: Value, z: Value, size: int, flops: int, name: str = "product") -> Value:
        """Of two tensors, each saved for the gradient of the other."""
        saves = [*([z] if x.grad else []), *([x] if z.grad else [])]
        backward = flops * (x.grad + z.grad)
        return self.record(name, [x, z], size, x.dtype, saves=saves, flops=flops, backward_flops=backward)

    def flash(self, q: Value, k: Value, v: Value, heads: int, width: int) -> Value:
        """softmax(q kᵀ/√width) v in one kernel: two products, and five backward, the scores being computed again."""
        how = self.how
        product = 2 * how.batch * heads * how.length**2 * width
        saves = [q, k, v, Value(how.batch * heads * how.length, FP32)]
        y = self.record("flash", [q, k, v], q.size, q.dtype, saves=saves, flops=2 * product)
        if y.grad:
            self.ops[-1].saves.append(y.buffer)
            self.ops[-1].backward_flops = 5 * product
        return y

    def embedding(self, ids: Value, rows: int, width: int, trains: bool, tied: bool = False) -> Value:
        """A row of the table for each id. The gradient is as large as the table; `tied`: the head has it already."""
        table = rows * width * self.how.dtype.itemsize if trains else 0
        costs = {"backward_scratch": table} if tied else {"weight_bytes": table}
        return self.record("embedding", [], ids.size * width, self.how.dtype, saves=[ids], trains=trains, **costs)

    def cross_entropy(self, logits: Value) -> Value:
        """In fp32, as transformers computes it: saves the logarithm of the softmax, and the labels."""
        wide = self.cast(logits, FP32, kind=LOGITS)
        logs = self.of_output("log_softmax", wide, kind=LOGITS)
        # The labels, one further on: a copy, but for a single sequence a view of the padded ones.
        labels = Value(self.how.tokens + (self.how.batch == 1), torch.int64)
        return self.record("nll", [logs], 1, FP32, saves=[logs, labels])
