"""What cannot be done with many adapters is refused by name and value, and leaves everything as it was."""

import pytest
import torch
from adapters_for_tests import adapter, factors
from many_for_tests import carrying
from models_for_tests import fill, llama, logits, unchanged

import lora_lab.many.install as install
from lora_lab import inject, merge_
from lora_lab.adapter_file import write_adapter
from lora_lab.many import (
    active,
    adapter_of_many,
    add_adapter,
    folded,
    merged_mix,
    mixture,
    remove_adapter,
    rows,
    use,
    using,
)

Q = "model.layers.0.self_attn.q_proj"


def entered(context) -> None:
    with context:
        pass


def new(**changes) -> dict:
    """A good adapter for both q_proj, but for `changes` to its factors."""
    return {path: one._replace(**changes) for path, one in adapter(llama(), ["q_proj"], alpha=7).items()}


def broken(value: float):
    A = torch.ones(3, 32)
    A[1, 4] = value
    return {Q: factors(32, 32, 3)._replace(A=A)}


BAD = {
    "name taken": (lambda m: add_adapter(m, "a", new()), ValueError, "'a' already"),
    "no name": (lambda m: add_adapter(m, "", new()), ValueError, "''"),
    "dot in the name": (lambda m: add_adapter(m, "v1.2", new()), ValueError, r"'v1\.2'"),
    "name of an attribute": (lambda m: add_adapter(m, "keys", new()), ValueError, "'keys'"),
    "name no string": (lambda m: add_adapter(m, 3, new()), TypeError, "string, got int"),
    "no adapter": (lambda m: add_adapter(m, "new", None), TypeError, "NoneType"),
    "a number": (lambda m: add_adapter(m, "new", 3), TypeError, "int"),
    "no layers": (lambda m: add_adapter(m, "new", {}), ValueError, "no layers"),
    "no factors": (lambda m: add_adapter(m, "new", {Q: 3}), TypeError, "Factors"),
    "no folder": (lambda m: add_adapter(m, "new", "no/such/folder"), FileNotFoundError, "no/such/folder"),
    "foreign layer": (
        lambda m: add_adapter(m, "new", {**new(), "x": factors(9, 8)}),
        ValueError,
        "1 of 3 .*'x'",
    ),
    "the base of a layer": (lambda m: add_adapter(m, "new", {f"{Q}.base": factors(32, 32)}), ValueError, "wrong base"),
    "a norm": (lambda m: add_adapter(m, "new", {"model.norm": factors(32, 32)}), ValueError, "wrong base"),
    "the root": (lambda m: add_adapter(m, "new", {"": factors(32, 32)}), ValueError, "wrong base"),
    "other shape": (lambda m: add_adapter(m, "new", {Q: factors(32, 31)}), ValueError, r"\(32, 31\), it is \(32, 32\)"),
    "other shape, new layer": (
        lambda m: add_adapter(m, "new", {**new(), "lm_head": factors(65, 32)}),
        ValueError,
        r"lm_head.*\(65, 32\), it is \(64, 32\)",
    ),
    "ranks differ": (lambda m: add_adapter(m, "new", new(B=torch.ones(32, 5))), ValueError, "one rank"),
    "NaN": (lambda m: add_adapter(m, "new", broken(float("nan"))), ValueError, "1 entries"),
    "infinity": (lambda m: add_adapter(m, "new", broken(float("inf"))), ValueError, "1 entries"),
    "integers": (lambda m: add_adapter(m, "new", new(A=torch.ones(4, 32).int())), TypeError, "int32"),
    "alpha of zero": (lambda m: add_adapter(m, "new", new(alpha=0)), ValueError, "alpha .* 0"),
    "DoRA": (lambda m: add_adapter(m, "new", new(magnitude=torch.ones(32))), ValueError, "DoRA"),
    "remove unknown": (lambda m: remove_adapter(m, "x"), ValueError, r"'x'; the model carries \['a', 'b', 'c'\]"),
    "remove what is used": (lambda m: remove_adapter(m, "b"), ValueError, "'b' is in use"),
    "take unknown": (lambda m: adapter_of_many(m, "x"), ValueError, "'x'"),
    "use unknown": (lambda m: use(m, "x"), ValueError, "'x'"),
    "use unknown in a mix": (lambda m: use(m, {"a": 1, "x": 2}), ValueError, "'x'"),
    "use a list": (lambda m: use(m, ["a", "b"]), TypeError, "list"),
    "NaN weight": (lambda m: use(m, {"a": float("nan")}), ValueError, "'a' .* nan"),
    "infinite weight": (lambda m: use(m, {"a": 1, "b": float("inf")}), ValueError, "'b' .* inf"),
    "bool weight": (lambda m: use(m, {"a": True}), ValueError, "'a' .* True"),
    "text weight": (lambda m: use(m, {"a": "1"}), ValueError, "'a' .* '1'"),
    "train a mix": (lambda m: use(m, {"a": 1}, train=True), ValueError, "one adapter"),
    "train nothing": (lambda m: use(m, None, train=True), ValueError, "one adapter"),
    "using unknown": (lambda m: entered(using(m, "x")), ValueError, "'x'"),
    "no rows": (lambda m: entered(rows(m, [])), ValueError, "empty"),
    "rows of a name": (lambda m: entered(rows(m, "abc")), TypeError, "str"),
    "rows of a mix": (lambda m: entered(rows(m, {"a": 1})), TypeError, "dict"),
    "rows of a number": (lambda m: entered(rows(m, 3)), TypeError, "int"),
    "unknown row": (lambda m: entered(rows(m, ["a", "x"])), ValueError, "row 1: .*'x'"),
    "NaN in a row": (lambda m: entered(rows(m, ["a", None, {"b": float("nan")}])), ValueError, "row 2: .*nan"),
    "a number in a row": (lambda m: entered(rows(m, [1])), TypeError, "row 0: .*int"),
    "no copies": (lambda m: entered(rows(m, ["a"], copies=0)), ValueError, "0"),
    "half copies": (lambda m: entered(rows(m, ["a"], copies=1.5)), ValueError, "1.5"),
    "bool copies": (lambda m: entered(rows(m, ["a"], copies=True)), ValueError, "True"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_bad_calls_change_nothing(call, error, words):
    model, _ = carrying()
    use(model, {"b": 0.5})
    before = logits(model)
    with unchanged(model):
        with pytest.raises(error, match=words):
            call(model)
        assert active(model) == {"b": 0.5}
        torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: use(m, "a"),
        lambda m: use(m, None),
        active,
        mixture,
        merged_mix,
        lambda m: entered(using(m, "a")),
        lambda m: entered(rows(m, ["a"])),
        lambda m: entered(folded(m)),
        lambda m: remove_adapter(m, "a"),
    ],
)
def test_a_model_without_adapters(call):
    model = llama(layers=1)
    with unchanged(model), pytest.raises(ValueError, match="LlamaForCausalLM carries no adapters"):
        call(model)


@pytest.mark.parametrize("merge", [False, True])
def test_an_injected_model_takes_none(merge):
    model = fill(inject(llama(layers=1), ["v_proj"], 3, 5))
    if merge:
        merge_(model)
    with unchanged(model), pytest.raises(ValueError, match="injected"):
        add_adapter(model, "a", adapter(llama(layers=1), ["q_proj"]))


@pytest.mark.parametrize(("step", "calls_before"), [("Slot", 2), ("MultiLoRALinear", 1), ("replace_modules", 0)])
@pytest.mark.parametrize("first", [True, False])
def test_a_failure_half_way_changes_nothing(first, step, calls_before, monkeypatch):
    """The user interrupts, or memory runs out, while the layers are wrapped."""
    model = llama() if first else carrying()[0]
    original, calls = getattr(install, step), []

    def fails(*args):
        calls.append(args)
        if len(calls) == calls_before + 1:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(install, step, fails)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        add_adapter(model, "new", adapter(llama(), ["q_proj", "gate_proj"]))
    add_adapter(model, "new", adapter(llama(), ["q_proj", "gate_proj"]))


def test_a_damaged_folder_changes_nothing(tmp_path):
    model, found = carrying()
    folder = write_adapter(found["a"], tmp_path / "a", llama())
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with unchanged(model), pytest.raises(ValueError, match="truncated"):
        add_adapter(model, "new", folder)


def test_parts_with_adapters_of_their_own_are_not_mistaken_for_one_model():
    model = llama()
    for i, part in enumerate(model.model.layers):
        add_adapter(part, f"part{i}", adapter(part, ["q_proj"], seed=i))
    with unchanged(model), pytest.raises(ValueError, match="2 parts"):
        use(model, "part0")
    use(model.model.layers[1], "part1")
    assert active(model.model.layers[0]) == {}


def test_what_trains_is_not_served():
    model, _ = carrying()
    use(model, "a", train=True)
    for context in (rows(model, ["b"]), folded(model)):
        with unchanged(model), pytest.raises(ValueError, match="'a' is in training"):
            entered(context)


def test_inside_rows_nothing_else_is_chosen():
    model, _ = carrying()
    use(model, "a")
    with rows(model, ["b", None]), unchanged(model):
        for call in (lambda: use(model, "c"), lambda: entered(using(model, None)), lambda: mixture(model)):
            with pytest.raises(ValueError, match="rows"):
                call()
        with pytest.raises(ValueError, match="rows"):
            entered(folded(model))
