"""Answers to exercise 3.4 of notebook 03."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from lora_lab.layer import LoRALinear

from . import right, wrong


class Plain(nn.Module):
    """A right answer, with a place to put one mistake."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.empty(rank, base.in_features).uniform_(-1, 1) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank

    def update(self, x):
        return self.alpha / self.rank * (x.float() @ self.A.T @ self.B.T)

    def forward(self, x):
        y = self.base(x)
        return (y + self.update(x)).to(y.dtype)


class Functional(nn.Module):
    """Another right answer: no base(x), factors cast down instead of x up."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        for parameter in base.parameters():
            parameter.requires_grad = False
        self.base, self.scale = base, alpha / rank
        A = torch.empty((rank, base.weight.shape[1]), dtype=torch.float32)
        self.register_parameter("A", nn.Parameter(nn.init.kaiming_uniform_(A, a=5**0.5)))
        self.register_parameter("B", nn.Parameter(torch.zeros((base.weight.shape[0], rank), dtype=torch.float32)))

    def forward(self, x):
        y = F.linear(x, self.base.weight, self.base.bias)
        return y + self.scale * F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype))


def built(after):
    """Plain, with `after(self, base, rank, alpha)` run at the end of its constructor."""

    class Changed(Plain):
        def __init__(self, base, rank, alpha):
            super().__init__(base, rank, alpha)
            after(self, base, rank, alpha)

    return Changed


def forwards(function):
    """Plain, with `function(self, x)` for its forward."""
    return type("Changed", (Plain,), {"forward": function})


def scaled(scale):
    def forward(self, x):
        y = self.base(x)
        return (y + scale(self.rank, self.alpha) * (x.float() @ self.A.T @ self.B.T)).to(y.dtype)

    return forwards(forward)


def setting(**values):
    """Plain, with attributes replaced by what the functions return."""

    def after(self, base, rank, alpha):
        for name, value in values.items():
            setattr(self, name, value(self))

    return built(after)


def unfrozen(self, base, rank, alpha):
    base.requires_grad_(True)


def bias_unfrozen(self, base, rank, alpha):
    if base.bias is not None:
        base.bias.requires_grad_(True)


def new_linear(self):
    other = nn.Linear(self.base.in_features, self.base.out_features, bias=self.base.bias is not None)
    other.load_state_dict(self.base.state_dict())
    return other.requires_grad_(False)


def plain_tensor(self):
    B = self.B.detach().clone()
    del self.B
    return B


def tensor_for_B(self, base, rank, alpha):
    del self.B
    self.B = torch.zeros(base.out_features, rank, requires_grad=True)


def module_for_A(self, base, rank, alpha):
    del self.A
    self.A = nn.Linear(base.in_features, rank, bias=False)


def in_base_dtype(self, base, rank, alpha):
    self.A.data, self.B.data = self.A.data.to(base.weight.dtype), self.B.data.to(base.weight.dtype)


def merges_at_once(self, base, rank, alpha):
    base.weight.data += 0.01


class NoSuper(nn.Module):
    def __init__(self, base, rank, alpha):
        self.base = base


class BlankForward(Plain):
    def forward(self, x):
        raise NotImplementedError("exercise 3.4: your code here")


def no_grad_update(self, x):
    with torch.no_grad():
        update = self.update(x)
    return (self.base(x) + update).to(x.dtype)


def counts_calls(self, x):
    self.A.data *= 1.0001
    return Plain.forward(self, x)


def bias_scaled(self, x):
    y = F.linear(x, self.base.weight).float() + self.update(x)
    b = 0 if self.base.bias is None else self.base.bias.float()
    return (y + self.alpha / self.rank * b).to(x.dtype)


LAYER = [
    right("3.4", "library", LoRALinear),
    right("3.4", "plain", Plain),
    right("3.4", "functional", Functional),
    wrong("3.4", "no scale", "leaves out the scale", scaled(lambda rank, alpha: 1)),
    wrong("3.4", "alpha", "without dividing by the rank", scaled(lambda rank, alpha: alpha)),
    wrong("3.4", "alpha over root", "which is rsLoRA", scaled(lambda rank, alpha: alpha / rank**0.5)),
    wrong("3.4", "alpha times rank", "alpha · rank", scaled(lambda rank, alpha: alpha * rank)),
    wrong("3.4", "upside down", "upside down", scaled(lambda rank, alpha: rank / alpha)),
    wrong("3.4", "one over rank", "scales by 1 / rank", scaled(lambda rank, alpha: 1 / rank)),
    wrong("3.4", "scale squared", "applies the scale twice", scaled(lambda rank, alpha: (alpha / rank) ** 2)),
    wrong("3.4", "integer division", "down to a whole number", scaled(lambda rank, alpha: alpha // rank)),
    wrong("3.4", "subtracted", "subtracts the update", scaled(lambda rank, alpha: -alpha / rank)),
    wrong(
        "3.4",
        "bias dropped",
        "drops the bias",
        forwards(lambda self, x: (F.linear(x, self.base.weight) + self.update(x)).to(x.dtype)),
    ),
    wrong("3.4", "bias scaled", "scales the bias too", forwards(bias_scaled)),
    wrong("3.4", "base dropped", "drops the base", forwards(lambda self, x: self.update(x).to(x.dtype))),
    wrong(
        "3.4",
        "output scaled",
        "scales the whole output",
        forwards(lambda self, x: (self.alpha / self.rank * self.base(x) + self.update(x)).to(x.dtype)),
    ),
    wrong("3.4", "update dropped", "drops the update", forwards(lambda self, x: self.base(x))),
    wrong(
        "3.4",
        "swapped factors",
        "B before A",
        forwards(lambda self, x: (self.base(x) + self.alpha / self.rank * x.float() @ self.B.T @ self.A.T).to(x.dtype)),
    ),
    wrong(
        "3.4",
        "transposes forgotten",
        "the wrong way round",
        forwards(lambda self, x: (self.base(x) + self.alpha / self.rank * x.float() @ self.A @ self.B).to(x.dtype)),
    ),
    wrong(
        "3.4",
        "update of the output",
        "feeds the base's output",
        forwards(lambda self, x: (self.base(x) + self.update(self.base(x))).to(x.dtype)),
    ),
    wrong("3.4", "base not frozen", "leaves base.weight trainable", built(unfrozen)),
    wrong("3.4", "bias not frozen", "leaves base.bias trainable", built(bias_unfrozen)),
    wrong("3.4", "base copied", "a copy of the base", setting(base=lambda self: copy.deepcopy(self.base))),
    wrong("3.4", "new linear", "a copy of the base", setting(base=new_linear)),
    wrong(
        "3.4",
        "weight as base",
        "holds a tensor of",
        built(lambda self, base, rank, alpha: (delattr(self, "base"), setattr(self, "base", base.weight))),
    ),
    wrong(
        "3.4",
        "W registered again",
        "registers W a second time",
        setting(W=lambda self: nn.Parameter(self.base.weight.detach().clone())),
    ),
    wrong(
        "3.4",
        "trainable scale",
        "one parameter too many, scale",
        setting(scale=lambda self: nn.Parameter(torch.tensor(1.0))),
    ),
    wrong("3.4", "B is a tensor", "keeps B as a tensor", built(tensor_for_B)),
    wrong("3.4", "A is a module", "keeps A as a module (Linear)", built(module_for_A)),
    wrong("3.4", "A missing", "has no attribute A", built(lambda self, base, rank, alpha: delattr(self, "A"))),
    wrong(
        "3.4",
        "A transposed",
        "A of your MyLoRALinear has shape",
        setting(A=lambda self: nn.Parameter(self.A.detach().T[:, : self.rank].repeat(2, 1))),
    ),
    wrong(
        "3.4",
        "rank and alpha swapped",
        "has shape",
        type(
            "Swapped",
            (Plain,),
            {"__init__": lambda self, base, rank, alpha: Plain.__init__(self, base, int(alpha), rank)},
        ),
    ),
    wrong("3.4", "factors frozen", "froze A as well", built(lambda self, *args: self.requires_grad_(False))),
    wrong("3.4", "factors in base dtype", "creates A in bfloat16", built(in_base_dtype)),
    wrong(
        "3.4",
        "B random",
        "does not start as its base: B must be zero",
        setting(B=lambda self: nn.Parameter(torch.randn_like(self.B))),
    ),
    wrong("3.4", "both zero", "both factors at zero", setting(A=lambda self: nn.Parameter(torch.zeros_like(self.A)))),
    wrong("3.4", "A of ones", "fills A with one number", setting(A=lambda self: nn.Parameter(torch.ones_like(self.A)))),
    wrong("3.4", "base changed", "changes the numbers in its base", built(merges_at_once)),
    wrong(
        "3.4", "output in float32", "is float32, but bfloat16", forwards(lambda self, x: self.base(x) + self.update(x))
    ),
    wrong(
        "3.4",
        "dtypes mixed",
        "raised RuntimeError for x",
        forwards(lambda self, x: self.base(x) + self.alpha / self.rank * (x @ self.A.T @ self.B.T)),
    ),
    wrong("3.4", "no_grad around the update", "no gradient reaches A", forwards(no_grad_update)),
    wrong(
        "3.4",
        "A detached",
        "no gradient reaches A",
        forwards(
            lambda self, x: (self.base(x) + self.alpha / self.rank * x.float() @ self.A.detach().T @ self.B.T).to(
                x.dtype
            )
        ),
    ),
    wrong(
        "3.4",
        "x detached",
        "the gradient of x",
        forwards(lambda self, x: (self.base(x) + self.update(x.detach())).to(x.dtype)),
    ),
    wrong(
        "3.4",
        "two dimensions only",
        "raised RuntimeError for x 2 × 3",
        forwards(
            lambda self, x: (
                self.base(x) + self.alpha / self.rank * torch.mm(torch.mm(x.float(), self.A.T), self.B.T)
            ).to(x.dtype)
        ),
    ),
    wrong("3.4", "forward changes A", "a forward pass changes nothing", forwards(counts_calls)),
    wrong("3.4", "forward returns nothing", "returned nothing", forwards(lambda self, x: None)),
    wrong("3.4", "no super", "super().__init__()", NoSuper),
    wrong("3.4", "blank forward", "3.4 is still blank", BlankForward),
    wrong("3.4", "function", "should be a class", lambda base, rank, alpha: Plain(base, rank, alpha)),
    wrong(
        "3.4",
        "two arguments",
        "keep the parameters of the stub",
        type("Two", (Plain,), {"__init__": lambda self, base, rank: Plain.__init__(self, base, rank, 1)}),
    ),
]
