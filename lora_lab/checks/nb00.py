"""Checks of notebook 00: the share of exact answers, and the share of a model that is trained."""

from typing import Any

from torch import nn

from .compare import Mistake, judge, number
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise

WORDS = ("amber", "basalt", "copper", "delta", "ember", "fjord", "garnet", "harbour", "iris", "juniper")


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def _right_match(answers: list[str], expected: list[str]) -> float:
    return _share([a.strip() == e.strip() for a, e in zip(answers, expected, strict=True)])


def _after(change: Any) -> Any:
    """exact_match that prepares both strings with `change` in place of strip."""
    return lambda answers, expected: _share([change(a) == change(e) for a, e in zip(answers, expected, strict=True)])


def _pairwise(hit: Any) -> Any:
    """exact_match that decides on a stripped pair with `hit` in place of ==."""
    return lambda answers, expected: _share([hit(a.strip(), e.strip()) for a, e in zip(answers, expected, strict=True)])


MATCH_MISTAKES = (
    Mistake(
        "gave the number of equal pairs: divide by how many there are",
        lambda a, e: float(_right_match(a, e) * len(a)),
    ),
    Mistake("gave a percentage: a share lies between 0 and 1", lambda a, e: 100 * _right_match(a, e)),
    Mistake(
        "lost the fraction: // and int() cut a share down to 0",
        lambda a, e: float(int(_right_match(a, e))),
    ),
    Mistake("compares without stripping: whitespace at both ends does not count", _after(lambda s: s)),
    Mistake(
        "strips the answers only: the expected strings have whitespace at their ends too",
        lambda a, e: _share([x.strip() == y for x, y in zip(a, e, strict=True)]),
    ),
    Mistake(
        "strips the expected strings only: the answers have whitespace at their ends too",
        lambda a, e: _share([x == y.strip() for x, y in zip(a, e, strict=True)]),
    ),
    Mistake("strips spaces only: tabs and line ends are whitespace too", _after(lambda s: s.strip(" "))),
    Mistake("strips the end only: the start may have whitespace too", _after(str.rstrip)),
    Mistake("strips the start only: the end may have whitespace too", _after(str.lstrip)),
    Mistake(
        "removes whitespace inside the strings too: only the two ends are ignored",
        _after(lambda s: "".join(s.split())),
    ),
    Mistake(
        "evens out whitespace inside the strings: only the two ends are ignored",
        _after(lambda s: " ".join(s.split())),
    ),
    Mistake("ignores upper and lower case: these strings differ", _after(lambda s: s.strip().lower())),
    Mistake(
        "accepts an answer that only contains the expected string: exact means equal",
        _pairwise(lambda a, e: e in a),
    ),
    Mistake(
        "accepts an answer that only starts with the expected string: exact means equal",
        _pairwise(lambda a, e: a.startswith(e)),
    ),
    Mistake(
        "accepts an answer that is right for another question: compare pair by pair",
        lambda a, e: _share([x.strip() in {y.strip() for y in e} for x in a]),
    ),
)


def _question_pairs(cases: Cases) -> tuple[list[str], list[str]]:
    """Answers and expected strings with every kind of near miss, one to four of each."""
    first, second = cases.shuffled(WORDS)[:2]
    text = f"{first} {second}"
    pairs = [(first, f"{second} here"), (f"{second} here", first)]  # each is right for the other question
    kinds = (
        (text, text),
        (f" {text}", text),
        (f"{text}\n", text),
        (f"\n{text}", text),
        (f"{text} ", text),
        (f"\t{text} ", text),
        (text, f" {text}"),
        (text, f"{text}\n"),
        (text.title(), text),
        (f"{text} indeed", text),
        (f"so {text}", text),
        (f"{first}  {second}", text),
        (f"{first}{second}", text),
        (f"not {first}", second),
    )
    for pair in kinds:
        pairs += [pair] * cases.integer(1, 4)
    answers, expected = zip(*cases.shuffled(pairs), strict=True)
    return list(answers), list(expected)


@exercise(
    "0.1",
    takes=("answers", "expected"),
    points=1,
    minutes=5,
    hints=(
        "Walk through both lists together, pair by pair. When do two strings count as the same answer here?",
        "str.strip() removes spaces, tabs and line ends at both ends. Strip both strings of a pair, then use ==.",
        "Over zip(answers, expected), sum up whether the stripped strings are equal; divide by how many there are.",
    ),
)
def exact_match(answer: Guard, cases: Cases) -> str:
    """Share of equal strings, whitespace at both ends ignored."""
    questions = [_question_pairs(cases) for _ in range(8)]
    count = judge(
        answer,
        questions,
        _right_match,
        MATCH_MISTAKES,
        look="try it on two short lists of your own",
        read=lambda got, _: float(number(got, "the result of your exact_match")),
    )
    all_right = [f"{word} " for word in cases.shuffled(WORDS)]
    if answer(all_right, [word.strip() for word in all_right]) != 1:
        raise Wrong("your exact_match should give 1.0 when every answer is right")
    return f"exact match on {count + 1} lists of answers"


def _right_share(model: nn.Module) -> tuple[int, int, float]:
    return _shares([p.numel() for p in model.parameters() if p.requires_grad], model.parameters())


def _shares(trainable: list[int], parameters: Any, size: Any = lambda p: p.numel()) -> tuple[int, int, float]:
    total = sum(size(p) for p in parameters)
    return sum(trainable), total, 100 * sum(trainable) / total


def _sizes(model: nn.Module, size: Any) -> tuple[int, int, float]:
    parameters = list(model.parameters())
    return _shares([size(p) for p in parameters if p.requires_grad], parameters, size)


def _counted(parameters: Any) -> tuple[int, int, float]:
    parameters = list(parameters)
    return _shares([p.numel() for p in parameters if p.requires_grad], parameters)


def _with(model: nn.Module, change: Any) -> tuple:
    return change(*_right_share(model))


SHARE_MISTAKES = (
    Mistake("counts tensors: a parameter has numel() elements", lambda m: _sizes(m, lambda p: 1)),
    Mistake(
        "counts the rows of every tensor: len(p) is p.shape[0], numel() is all of it",
        lambda m: _sizes(m, len),
    ),
    Mistake(
        "counts a tied parameter twice: model.parameters() lists each of them once",
        lambda m: _counted(p for _, p in m.named_parameters(remove_duplicate=False)),
    ),
    Mistake(
        "counts parameters of nested modules again: model.parameters() goes into every module by itself",
        lambda m: _counted(p for module in m.modules() for p in module.parameters()),
    ),
    Mistake(
        "leaves out the biases: every tensor of model.parameters() counts",
        lambda m: _counted(p for p in m.parameters() if p.ndim > 1),
    ),
    Mistake(
        "counts buffers in the total: they are no parameters",
        lambda m: _shares([p.numel() for p in m.parameters() if p.requires_grad], [*m.parameters(), *m.buffers()]),
    ),
    Mistake(
        "counts the entries of the state dict: that lists tied parameters twice, and buffers too",
        lambda m: _shares([p.numel() for p in m.parameters() if p.requires_grad], list(m.state_dict().values())),
    ),
    Mistake("gave a share, not a percentage: multiply by 100", lambda m: _with(m, lambda a, b, c: (a, b, c / 100))),
    Mistake(
        "divides by the frozen parameters: the percentage is of all parameters",
        lambda m: _with(m, lambda a, b, c: (a, b, 100 * a / (b - a))),
    ),
    Mistake(
        "gave the frozen parameters in second place: the total counts the trainable ones too",
        lambda m: _with(m, lambda a, b, c: (a, b - a, 100 * a / (b - a))),
    ),
    Mistake(
        "gave the frozen parameters in second place: the total counts the trainable ones too",
        lambda m: _with(m, lambda a, b, c: (a, b - a, c)),
    ),
    Mistake("swapped the first two: trainable comes before total", lambda m: _with(m, lambda a, b, c: (b, a, c))),
    Mistake("counts everything as trainable: look at requires_grad", lambda m: _with(m, lambda a, b, c: (b, b, 100.0))),
    Mistake(
        "counts the frozen parameters as trainable: requires_grad means that a gradient is wanted",
        lambda m: _with(m, lambda a, b, c: (b - a, b, 100.0 - c)),
    ),
)


class _Tower(nn.Module):
    """Nested modules, tied ends, buffers, biases; some of it frozen."""

    def __init__(self, cases: Cases, tied: bool) -> None:
        super().__init__()
        vocabulary, width, inner, depth = (*cases.different(5, 30, 3), cases.integer(1, 3))
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.BatchNorm1d(inner), nn.Linear(inner, width, bias=False))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, vocabulary)
        if tied:
            self.head.weight = self.embed.weight
        for parameter in (self.head.bias, self.blocks[0][2].weight, self.blocks[-1][0].bias):
            parameter.requires_grad_(False)
        self.embed.requires_grad_(cases.pick((True, False)))


def _read_share(got: Any, want: tuple[int, int, float]) -> tuple[float, float, float]:
    if not isinstance(got, tuple | list) or len(got) != 3:
        raise Wrong(f"your parameter_share should return (trainable, total, percent), not {kind(got)}")
    trainable, total, percent = (
        number(value, f"the {place} value of your parameter_share")
        for value, place in zip(got, ("first", "second", "third"), strict=True)
    )
    # A percentage rounded for print, to two decimals, is right.
    percent = want[2] if abs(percent - want[2]) <= 0.0051 else float(percent)
    return _whole(trainable), _whole(total), percent


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


@exercise(
    "0.2",
    takes=("model",),
    points=1,
    minutes=5,
    hints=(
        "A model is a list of tensors. How many numbers does each of them hold, and which of them will be trained?",
        "model.parameters() lists each parameter once. p.numel() counts its elements; p.requires_grad: does it train?",
        "trainable = the sum of numel() over parameters with requires_grad; total = the same sum over all; "
        "return both, and 100 times their ratio.",
    ),
)
def parameter_share(answer: Guard, cases: Cases) -> str:
    """(trainable, total, percent), counted in elements."""
    models = [(_Tower(cases, tied),) for tied in (True, False, True, False)]
    models.append((nn.Linear(cases.integer(3, 9), cases.integer(10, 20)).requires_grad_(False),))
    count = judge(
        answer,
        models,
        _right_share,
        SHARE_MISTAKES,
        look="count a model of two small layers by hand and compare",
        read=_read_share,
    )
    return f"trainable, total and percent of {count} models"
