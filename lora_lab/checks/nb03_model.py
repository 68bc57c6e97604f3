"""Check 3.6: a model whose matching layers carry LoRA, with everything else frozen."""

import torch
from torch import nn

from .compare import same
from .describe import change, kind, snapshot
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb03_names import right_matches
from .nb03_toy import LowRank, Toy, is_wrapper


def _wrapped(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if is_wrapper(module)}


# What the set of wrapped layers looks like if the names are matched in a wrong way.
SETS = (
    ("matches part of a name", lambda name, targets: any(t in name for t in targets)),
    (
        "matches any ending, also without the dot before it",
        lambda name, targets: any(name.endswith(t) for t in targets),
    ),
    ("matches the first target only", lambda name, targets: right_matches(name, targets[:1])),
    ("matches the last target only", lambda name, targets: right_matches(name, targets[-1:])),
    ("matches the last part of a name only", lambda name, targets: name.split(".")[-1] in targets),
    ("matches whole names only", lambda name, targets: name in targets),
    ("wraps every linear layer, whatever the targets", lambda name, targets: True),
)


def _refuse_set(linears: dict[str, nn.Linear], wrapped: dict[str, nn.Module], targets: list[str]) -> None:
    """Wrong unless exactly the matching layers of the model as it was are wrapped, each once."""
    nested = [name for name, module in wrapped.items() if is_wrapper(module.base)]
    if nested:
        raise Wrong(f"your adapt wraps {nested[0]} twice: a wrapped layer must not be wrapped again")
    want = {name for name in linears if right_matches(name, targets)}
    got = set(wrapped)
    if got != want:
        rule = next((says for says, hit in SETS if got == {name for name in linears if hit(name, targets)}), "")
        said = f"your adapt {rule}: " if rule and got else "your adapt wraps the wrong layers: "
        if not got:
            said = "your adapt wraps no layer: setattr(parent, name, wrapper) puts it in the model. "
        for names, what in ((got - want, "wrapped though it is not meant"), (want - got, "meant, but not wrapped")):
            if names:
                raise Wrong(f"{said}{min(names)} is {what} by the targets {targets}")
    for name, module in wrapped.items():
        if module.base is not linears[name]:
            raise Wrong(f"your adapt does not keep the layer {name} as the base of its wrapper: pass the module itself")


def _refuse_trainable(model: nn.Module, wrapped: dict[str, nn.Module]) -> None:
    factors = {f"{name}.{letter}" for name in wrapped for letter in "AB"}
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if factors - training:
        raise Wrong(f"your adapt froze {min(factors - training)} as well: freeze first, then wrap, and A and B train")
    if extra := training - factors:
        raise Wrong(
            f"your adapt leaves {len(extra)} parameters trainable besides A and B, among them {min(extra)}: "
            "freeze the whole model, not only the layers that are wrapped"
        )


def _refuse_settings(answer: Guard, cases: Cases, wrapped: dict[str, nn.Module], rank: int, alpha: int) -> None:
    for name, module in wrapped.items():
        if len(module.A) != rank:
            end = ": rank and alpha are swapped" if len(module.A) == alpha else ""
            raise Wrong(f"your adapt gives {name} rank {len(module.A)}, but rank = {rank} is asked for{end}")
        with torch.no_grad():
            module.A.copy_(cases.normal(*module.A.shape))
            module.B.copy_(cases.normal(*module.B.shape))
            x = cases.normal(4, module.A.shape[1])
            update = answer.call(module, x, what="wrapped layer") - module.base(x)
            unit = x @ module.A.T @ module.B.T
        if not same(update, alpha / rank * unit):
            scale = float((update * unit).sum() / unit.square().sum())
            raise Wrong(
                f"your adapt gives {name} a scale of {scale:.4g}, but {alpha / rank:.4g} is right: "
                f"alpha / rank = {alpha} / {rank}, so pass both on"
            )


def _adapted(answer: Guard, cases: Cases, model: Toy, targets: list[str], rank: int, alpha: int) -> None:
    """Adapt a model and check everything about the result."""
    linears, tokens = model.linears(), model.tokens(cases)
    before = {name: values.detach().clone() for name, values in model.named_parameters()}
    start = model(tokens).detach()
    result = answer(model, targets, rank, alpha, untouched=False)
    if result is not model:
        what = "another model" if isinstance(result, nn.Module) else kind(result)
        raise Wrong(f"your adapt returned {what}: change the model you were given, and return it")
    wrapped = _wrapped(model)
    if stray := [name for name, module in wrapped.items() if model.get_submodule(name) is not module]:
        raise Wrong(
            f"your adapt puts a wrapper beside the layers, under the name {stray[0]!r}: setattr knows no dots, so take "
            "the parent with model.get_submodule and set the last step of the path on it"
        )
    _refuse_set(linears, wrapped, targets)
    _refuse_trainable(model, wrapped)
    now = {name.replace(".base.", "."): values for name, values in model.named_parameters()}
    changed = [name for name, values in before.items() if name not in now or not torch.equal(values, now[name])]
    if changed:
        raise Wrong(f"your adapt changes the numbers in {changed[0]}: everything but the new factors stays as it was")
    if not same(answer.call(model, tokens, what="adapted model").detach(), start):
        raise Wrong("the model that your adapt returns does not answer as before: with B = 0 it should")
    _refuse_settings(answer, cases, wrapped, rank, alpha)


def _refuse_silence(answer: Guard, model: Toy, args: tuple, why: str, why_short: str) -> None:
    """Wrong unless adapt refuses with an error, and leaves the model as it was."""
    before = snapshot(model)
    error = answer.refusal(model, *args)
    twice = [name for name, module in _wrapped(model).items() if is_wrapper(module.base)]
    if twice:
        raise Wrong(
            f"your adapt wraps {twice[0]} a second time when the model is adapted already: refuse before any change"
        )
    if error is None:
        raise Wrong(f"your adapt goes on in silence when {why}: raise ValueError with a sentence, before any change")
    if isinstance(error, IndexError | RecursionError) or not isinstance(
        error, ValueError | TypeError | RuntimeError | LookupError | AssertionError
    ):
        raise Wrong(
            f"your adapt crashes with {type(error).__name__} when {why}: look for it first, and raise ValueError"
        )
    if what := change("model", before, model):
        raise Wrong(f"your adapt refuses when {why_short}, but by then it {what}: look first, change afterwards")


def _refuse_one_class(answer: Guard, cases: Cases) -> None:
    """Wrong unless adapt refuses a model whose LoRA layer is of a class that it has never seen."""
    model = Toy(cases).requires_grad_(False)
    model.head = LowRank(model.head, 2, 5)
    before = snapshot(model)
    if answer.refusal(model, ["q_proj"], 3, 7) is None:
        raise Wrong(
            "your adapt goes on when the model holds a LoRA layer of another class (LowRank, with .base, .A and .B): "
            "isinstance knows one class, so look for any module that has an A and a B"
        )
    if what := change("model", before, model):
        raise Wrong(
            f"your adapt refuses a LoRA layer of another class, but by then it {what}: look first, change afterwards"
        )


@exercise(
    "3.6",
    takes=("model", "targets", "rank", "alpha"),
    points=3,
    minutes=15,
    hints=(
        "Three steps in this order: look (what matches? is it adapted already?), freeze everything, wrap. Errors "
        "belong to the first step, while the model is still as it was.",
        "Collect the matching linear layers of named_modules() in a list before you change anything. A layer is "
        "replaced on its parent, with setattr: the parent of blocks.0.mlp is blocks.0, that of head is the model.",
        "Refuse if a module has an A and a B already, or if nothing matches; model.requires_grad_(False); for each "
        "match, rpartition('.') splits its path into the parent's, for model.get_submodule, and the name; set there "
        "MyLoRALinear(layer, rank, alpha).",
    ),
)
def adapt(answer: Guard, cases: Cases) -> str:
    """Freeze all, wrap the matches; refuse before any change."""
    plans = (
        ["q_proj", "v_proj"],
        ["mlp.0", "head", "attn.o_proj"],
        ["blocks.1.attn.o_proj"],
        ["k_proj", "mlp.2", "seq_proj"],
    )
    models = []
    for targets in plans:
        rank, alpha = cases.different(2, 7, 2)
        models.append(Toy(cases))
        _adapted(answer, cases, models[-1], targets, rank, alpha)
    for targets in (["proj"], ["q_proj.weight", "attn.0"]):
        _refuse_silence(
            answer,
            Toy(cases),
            (targets, 2, 5),
            f"no layer matches ({targets})",
            "no layer matches",
        )
    for targets in (["q_proj", "v_proj"], ["o_proj"]):
        said = "the model is adapted already"
        _refuse_silence(answer, models[0], (targets, 3, 7), f"{said} (targets {targets})", said)
    _refuse_one_class(answer, cases)
    return f"{len(plans)} models adapted, 5 refused in time"
