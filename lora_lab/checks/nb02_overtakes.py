"""Check 2.3: from which width on the adapters of an MLP have more parameters than those of attention."""

from typing import Any

from .compare import judge, number
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb02_counts import mistake, whole


def right_overtakes(hidden: int, query_width: int, kv_width: int, matrices: int) -> int:
    """The least f with m (h + f) > 2 (h + q) + 2 (h + k)."""
    return _above(4 * hidden + 2 * query_width + 2 * kv_width, matrices, hidden)


def _above(attention: int, matrices: int, hidden: int) -> int:
    """The least f with m (h + f) > attention. For two or three matrices it is above hidden / 3."""
    return attention // matrices - hidden + 1


OVERTAKE_MISTAKES = (
    mistake(
        "stops where both are equal: the MLP must have more",
        lambda h, q, k, m: right_overtakes(h, q, k, m) - 1,
    ),
    mistake("is one too large: a smaller width is enough already", lambda h, q, k, m: right_overtakes(h, q, k, m) + 1),
    mistake(
        "compares the weights, m·h·f with 2h(q + k): the adapters have r (in + out) parameters, not in · out",
        lambda h, q, k, m: 2 * (q + k) // m + 1,
    ),
    mistake(
        "gives keys and values the width of the queries: kv_width = {kv_width}",
        lambda h, q, k, m: right_overtakes(h, q, q, m),
    ),
    mistake(
        "counts attention as 8 · hidden: only the hidden sides are {hidden} wide, queries are {query_width}, keys and "
        "values {kv_width}",
        lambda h, q, k, m: _above(8 * h, m, h),
    ),
    mistake(
        "takes hidden for the width of the queries: query_width = {query_width}",
        lambda h, q, k, m: right_overtakes(h, h, k, m),
    ),
    mistake(
        "counts one of k_proj and v_proj: there are both",
        lambda h, q, k, m: _above(3 * h + 2 * q + k, m, h),
    ),
    mistake(
        "leaves out o_proj: its adapter is as large as q_proj's", lambda h, q, k, m: _above(3 * h + q + 2 * k, m, h)
    ),
    mistake(
        "counts q_proj and v_proj only: all four attention matrices are adapted",
        lambda h, q, k, m: _above(2 * h + q + k, m, h),
    ),
    mistake("always takes three MLP matrices: here are {matrices}", lambda h, q, k, m: right_overtakes(h, q, k, 3)),
    mistake("always takes two MLP matrices: here are {matrices}", lambda h, q, k, m: right_overtakes(h, q, k, 2)),
    mistake("counts one MLP matrix: here are {matrices}", lambda h, q, k, m: right_overtakes(h, q, k, 1)),
    mistake(
        "forgets that an MLP matrix has the side hidden = {hidden} too: its adapter has r (hidden + width)",
        lambda h, q, k, m: _above(4 * h + 2 * q + 2 * k, m, 0),
    ),
)


def _read_width(got: Any, _: int) -> int:
    value = whole(number(got, "the result of your mlp_overtakes_at"))
    if not isinstance(value, int):
        raise Wrong(
            f"your mlp_overtakes_at returned {value:.6g}: a width is a whole number, the first above the balance"
        )
    return value


@exercise(
    "2.3",
    takes=("hidden", "query_width", "kv_width", "matrices"),
    points=1,
    minutes=8,
    hints=(
        "Write down both sums of in + out, with the MLP's width as the unknown. The rank stands on both sides.",
        "Attention: 2 (hidden + query_width) + 2 (hidden + kv_width). MLP: matrices · (hidden + width).",
        "balance = attention // matrices - hidden, and the first width above it is one more: at equality the MLP does "
        "not have more yet.",
    ),
)
def mlp_overtakes_at(answer: Guard, cases: Cases) -> str:
    """The smallest MLP width at which adapting the MLP takes more parameters than adapting attention."""
    inputs = []
    for number_of in (3, 2, 3, 2, 3, 2, 3):
        hidden, kv = 6 * cases.integer(10, 30), 3 * cases.integer(2, 9)
        query = kv * cases.integer(2, 5) + 3 * cases.integer(1, 9)
        inputs.append((hidden, query, kv, number_of))  # every balance is a whole number: equality can be told
    inputs += [(hidden + 1, query, kv, m) for hidden, query, kv, m in inputs[:3]]
    count = judge(
        answer,
        inputs,
        right_overtakes,
        OVERTAKE_MISTAKES,
        look="for hidden = 6, query_width = 6, kv_width = 3 and 3 matrices the two are equal at width 8",
        read=_read_width,
    )
    return f"the width at which the MLP overtakes attention, for {count} layers"
