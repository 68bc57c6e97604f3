"""Every init on a whole model: equal to PEFT's, a no-op at the start, saved, reloaded, converted, ejected, refused."""

import copy

import peft
import pytest
import torch
from models_for_tests import (
    ALPHA,
    LANGUAGE_MODELS,
    RANK,
    assert_unchanged,
    fingerprint,
    llama,
    logits,
    peft_factors,
    peft_twin,
    plain,
    run,
    token_ids,
    unchanged,
)
from torch import Tensor, nn

from lora_lab import count, eject, find_targets, inject, load_adapter, lora_layers, merge_, merged, save_adapter, shift
from lora_lab.base import is_quantized, oriented_weight
from lora_lab.init import INITS, Start, named
from lora_lab.init.prepare import prepare
from lora_lab.merge_check import validate_merge
from lora_lab.quantized_linear import quantize_model_
from lora_lab.variants import DoRALinear

TARGETS = ["q_proj", "down_proj", "c_attn", "mlp.c_proj", "query_key_value", "dense_4h_to_h"]
RANDOM = {"default": True, "random": False, "gaussian": "gaussian", "orthogonal": "orthogonal"}
SVD = ["pissa", "pissa_niter_4", "olora", "mica"]
RESIDUAL = [name for name, recipe in INITS.items() if recipe.base == "residual"]


def targets(model: nn.Module) -> list[str]:
    return [name for name in TARGETS if any(path.endswith(name) for path, _ in model.named_modules())]


def batches(count: int = 24) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(2, 64, (1, 12), generator=generator) for _ in range(count)]
    return [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x} for x in ids]


def adapted(base: nn.Module, name: str, rslora: bool = False, **more) -> nn.Module:
    """`base` with an init of any kind."""
    if INITS[named(name).name].needs in ("inputs", "gradient"):
        made = prepare(name, base, targets(base), batches(), RANK, ALPHA, rslora, progress=False)
        return inject(base, **made, **more)
    return inject(base, targets(base), RANK, ALPHA, rslora=rslora, init=name, **more)


def trained(model: nn.Module) -> nn.Module:
    run(model, steps=3)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model", LANGUAGE_MODELS)
@pytest.mark.parametrize("name", RANDOM)
def test_random_inits_are_pefts_bit_for_bit(name, model, dtype):
    base = LANGUAGE_MODELS[model](dtype)
    torch.manual_seed(5)
    twin = peft_twin(base, targets(base), init_lora_weights=RANDOM[name])
    theirs, state = peft_factors(twin), torch.get_rng_state()
    torch.manual_seed(5)
    ours = lora_layers(inject(base, targets(base), RANK, ALPHA, init=name))
    assert torch.equal(torch.get_rng_state(), state)
    for path, layer in ours.items():
        assert torch.equal(layer.A, theirs[path][0])
        assert torch.equal(layer.B, theirs[path][1])
    assert torch.equal(logits(base), logits(twin.eval()))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("name", SVD)
def test_svd_inits_are_pefts(name, model, rslora):
    if name == "olora" and model == "gpt2":
        pytest.skip("PEFT's olora does not turn a Conv1D round")
    base = LANGUAGE_MODELS[model]()
    before = logits(base)
    torch.manual_seed(5)
    twin = peft_twin(base, targets(base), rslora=rslora, init_lora_weights=name).eval()
    torch.manual_seed(5)
    ours = adapted(base, name, rslora)
    for path, layer in lora_layers(ours).items():
        A, B = (factor.detach() for factor in peft_factors(twin)[path])
        base_weight = twin.base_model.model.get_submodule(path).base_layer.weight.detach()
        base_weight = base_weight.T if model == "gpt2" else base_weight
        if "niter" not in name:
            signs = torch.where((layer.B * B).sum(0) < 0, -1.0, 1.0)
            torch.testing.assert_close(layer.A * signs[:, None], A, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(layer.B * signs, B, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(oriented_weight(layer.base), base_weight, rtol=1e-5, atol=1e-5)
        assert (layer.B.requires_grad, layer.A.requires_grad) == (name != "mica", True)
    torch.testing.assert_close(logits(ours), logits(twin), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(logits(ours), before, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_a_half_precision_base_is_met_more_closely_than_by_peft(name):
    """PEFT rounds A and B after forming the residual; the sum then misses W by more than the residual's rounding."""
    base = llama(torch.bfloat16)
    originals = {path: layer.weight.float() for path, layer in base.named_modules() if isinstance(layer, nn.Linear)}
    twin = peft_twin(base, ["q_proj", "down_proj"], init_lora_weights=name)
    ours = lora_layers(adapted(base, name))
    for path, layer in ours.items():
        A, B = peft_factors(twin)[path]
        theirs = twin.base_model.model.get_submodule(path).base_layer.weight.float() + layer.scale * B @ A
        sum_of_ours = layer.base.weight.float() + layer.delta_weight()
        W = originals[path]
        unit = torch.finfo(torch.bfloat16).eps / 2
        assert ((sum_of_ours - W).abs() <= unit * layer.base.weight.float().abs() * 1.02 + 1e-6).all()
        assert (sum_of_ours - W).norm() < 0.8 * (theirs - W).norm()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # codes do not say Conv1D
@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("name", [*INITS, "pissa_niter_4"])
def test_start_reload_and_conversion(name, model, tmp_path):
    """The same logits after saving and loading on the original base, in ours and in PEFT; W comes back on ejection."""
    base = LANGUAGE_MODELS[model]()
    original, recipe = copy.deepcopy(base), named(name).recipe
    ours = adapted(base, name)
    if recipe.no_op:
        torch.testing.assert_close(logits(ours), logits(original), rtol=1e-5, atol=2e-5)
    start = logits(ours)
    trained(ours)
    assert (logits(ours) - start).abs().max() > 1e-3
    save_adapter(ours, tmp_path)
    torch.manual_seed(12345)  # nothing may depend on how the init happened to draw
    again = load_adapter(copy.deepcopy(original), tmp_path)
    assert torch.equal(logits(again), logits(ours))
    for path, layer in lora_layers(again).items():
        twin = lora_layers(ours)[path]
        assert (layer.rank, layer.alpha, layer.shifted) == (twin.rank, twin.alpha, twin.shifted)
        assert (layer.A.requires_grad, layer.B.requires_grad) == (twin.A.requires_grad, twin.B.requires_grad)
        assert is_quantized(layer.base) == (recipe.base == "quantized")
    trained(again), trained(ours)
    assert torch.equal(logits(again), logits(ours))  # and they train on alike
    save_adapter(again, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(original), tmp_path).eval()
    if recipe.base == "quantized":  # PEFT adds the factors to W itself
        assert theirs.peft_config["default"].r == RANK  # one iteration: no shift
        flat = load_adapter(copy.deepcopy(original), tmp_path, plain=True)
        torch.testing.assert_close(logits(flat), logits(theirs), rtol=1e-5, atol=2e-5)
        return
    assert theirs.peft_config["default"].r == (
        2 * RANK if recipe.base == "residual" else theirs.peft_config["default"].r
    )
    torch.testing.assert_close(logits(again), logits(theirs), rtol=1e-4, atol=1e-4)
    assert validate_merge(again, merged(again), {"input_ids": token_ids()}).passed
    ejected = eject(again).state_dict()
    for key, tensor in original.state_dict().items():
        torch.testing.assert_close(ejected[key], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", RESIDUAL)
def test_half_precision_reloads_to_the_bit(name, rslora, tmp_path):
    base = llama(torch.bfloat16)
    original = copy.deepcopy(base)
    ours = trained(adapted(base, name, rslora))
    save_adapter(ours, tmp_path)
    again = load_adapter(copy.deepcopy(original), tmp_path)
    assert torch.equal(logits(again), logits(ours))
    assert {layer.rslora for layer in lora_layers(again).values()} == {rslora}
    theirs = peft.PeftModel.from_pretrained(original, tmp_path).eval()
    assert (logits(theirs) - logits(ours)).float().norm() < 0.05 * logits(ours).float().norm()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["default", "gaussian", "mica", "pissa", "olora", "corda", "eva", "lora_ga", "loftq"])
def test_codes_under_any_init(name, kind, tmp_path):
    """Shifted first, quantized then: reloaded on the original base to the bit; W is gone if there was a shift."""
    original = llama()
    ours = trained(adapted(llama(), name, quantize=kind))
    assert all(is_quantized(layer.base) and layer.base.kind == kind for layer in lora_layers(ours).values())
    save_adapter(ours, tmp_path)
    again = load_adapter(copy.deepcopy(original), tmp_path)
    assert torch.equal(logits(again), logits(ours))
    assert validate_merge(again, merged(again), {"input_ids": token_ids()}).passed
    if named(name).recipe.base != "residual":  # LoftQ's first iterate has no shift
        assert torch.equal(logits(load_adapter(eject(again), tmp_path)), logits(ours))
        with pytest.raises(ValueError, match=r"is quantized with .*, the adapter wants"):
            load_adapter(quantize_model_(llama(), ["q_proj", "down_proj"], kind, block_size=16), tmp_path)
    else:
        with pytest.raises(ValueError, match="W is gone, load it again"):
            eject(again)


def test_an_adapter_of_codes_can_be_put_on_the_weights_themselves(tmp_path):
    ours = trained(adapted(llama(), "default", quantize="nf4"))
    save_adapter(ours, tmp_path)
    flat = load_adapter(llama(), tmp_path, plain=True)
    assert not any(is_quantized(layer.base) for layer in lora_layers(flat).values())
    assert torch.equal(logits(flat), logits(peft.PeftModel.from_pretrained(llama(), tmp_path).eval()))


def test_a_pending_shift_is_the_same_function():
    """Before the shift is in the base, and after it was taken out again, the layer computes the same."""
    model = trained(adapted(llama(), "pissa"))
    adapted_layers, expected = lora_layers(model), logits(model)
    layers = adapted_layers.values()
    weights = [layer.base.weight.clone() for layer in layers]
    shift.unshift_(adapted_layers)
    assert all(layer.factors()[0].shape[0] == 2 * RANK for layer in layers)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(logits(merged(model)), expected, rtol=1e-4, atol=1e-4)
    shift.shift_(adapted_layers)
    for layer, weight in zip(layers, weights, strict=True):
        torch.testing.assert_close(layer.base.weight, weight, rtol=1e-6, atol=1e-6)


def sharing() -> tuple[nn.Module, list[str]]:
    return llama(tied=True), ["q_proj", "lm_head"]


def spoiled() -> tuple[nn.Module, list[str]]:
    model = llama()
    model.model.layers[1].mlp.down_proj.weight.data[2, 3] = float("nan")
    return model, ["q_proj", "down_proj"]


def quantized() -> tuple[nn.Module, list[str]]:
    return eject(inject(llama(), ["q_proj"], 2, 3, quantize="nf4")), ["q_proj"]


def normal() -> tuple[nn.Module, list[str]]:
    return llama(), ["q_proj", "down_proj"]


REFUSED = {
    "shared weight": (sharing, "pissa", ValueError, "lm_head shares its weight with model.embed_tokens"),
    "NaN in a later layer": (spoiled, "olora", ValueError, r"layers\.1\.mlp\.down_proj: weight .* has 1 entries"),
    "codes": (quantized, "pissa", ValueError, "q_proj.*quantized"),
    "capitals": (normal, "PISSA", ValueError, "unknown init 'PISSA': one of default"),
    "foreign": (normal, "xavier", ValueError, "unknown init 'xavier'"),
    "niter": (normal, "pissa_niter_x", ValueError, "unknown init 'pissa_niter_x'"),
    "None": (normal, None, TypeError, "True or False, got None"),
    "a number": (normal, 3, TypeError, "got 3"),
    "no data": (normal, "corda", ValueError, r"prepare\('corda'"),
    "odd rank": (normal, "orthogonal", ValueError, "even"),
}


@pytest.mark.parametrize(("build", "init", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_changes_nothing(build, init, error, words):
    model, names = build()
    with unchanged(model), pytest.raises(error, match=words):
        inject(model, names, 3, 7, init=init)


@pytest.mark.parametrize("after", [False, True], ids=["before writing", "after writing"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", [1, 3])
def test_interrupted_while_the_bases_are_shifted(at, error, after, monkeypatch):
    model, calls, write = llama(), [], shift.write_weight_
    before, expected = logits(model), fingerprint(model)

    def failing(*arguments):
        calls.append(1)
        if len(calls) == at and not after:
            raise error
        write(*arguments)
        if len(calls) == at:
            raise error

    monkeypatch.setattr(shift, "write_weight_", failing)
    with pytest.raises(error):
        inject(model, ["q_proj", "down_proj"], RANK, ALPHA, init="pissa")
    assert not lora_layers(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    assert [flag for _, _, flag, _ in fingerprint(model)[1]] == [flag for _, _, flag, _ in expected[1]]
    if at == 1:
        assert_unchanged(model, expected)


def test_a_shift_that_one_base_cannot_hold_changes_none():
    model = llama(torch.float16)
    names = ["q_proj", "down_proj"]

    def huge_in_the_last(weight: Tensor, rank: int, scale: float) -> Start:
        A, B = torch.ones(rank, weight.shape[1]), torch.ones(weight.shape[0], rank)
        return Start(A, B, (A, B * (1e6 if weight is model.model.layers[1].mlp.down_proj.weight else 1)))

    with unchanged(model), pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj: W - s·B0 A0 is not finite"):
        inject(model, names, RANK, ALPHA, init=huge_in_the_last)


def test_merged_layers_are_neither_shifted_nor_back():
    model = merge_(adapted(llama(), "pissa"))
    for call in (shift.unshift_, shift.shift_):
        layers = lora_layers(model)
        if call is shift.shift_:
            for layer in layers.values():
                layer.shifted = False
        with unchanged(model), pytest.raises(ValueError, match="4 layers are merged"):
            call(layers)


def error_of(model: nn.Module, original: nn.Module) -> float:
    layers = lora_layers(model).items()
    off = [original.get_submodule(n).weight - m.base.dequantized() - m.delta_weight() for n, m in layers]
    return sum(x.square().sum().item() for x in off) ** 0.5


def test_loftq_and_the_codes_have_the_same_settings():
    names, original = ["q_proj", "down_proj"], llama()
    plain = {k: error_of(inject(llama(), names, RANK, ALPHA, quantize=k), original) for k in ("nf4", "int8")}
    for kind in plain:
        model = inject(llama(), names, RANK, ALPHA, init=named("loftq", kind=kind, iterations=3))
        assert {layer.base.kind for layer in lora_layers(model).values()} == {kind}
        assert error_of(model, original) < 0.9 * plain[kind]
    model = inject(llama(), names, RANK, ALPHA, init=named("loftq", block_size=16))
    assert {layer.base.block_size for layer in lora_layers(model).values()} == {16}
    by_path = {path: named("loftq") if "q_proj" in path else named("pissa") for path in find_targets(llama(), names)}
    mixed = lora_layers(inject(llama(), names, RANK, ALPHA, init=by_path))
    assert all(is_quantized(layer.base) and layer.base.kind == "nf4" for layer in mixed.values())
    model = llama()
    with unchanged(model), pytest.raises(ValueError, match=r"loftq has .*'int8'.* quantized with .*'nf4'"):
        inject(model, names, RANK, ALPHA, init=named("loftq", kind="int8"), quantize="nf4")


def test_blocks_that_are_as_wide_as_one_layer_are_saved(tmp_path):
    """q_proj has 32 inputs, down_proj 48: blocks of 32 are rows of the one and not of the other."""
    model = trained(inject(llama(), ["q_proj", "down_proj"], RANK, ALPHA, quantize={"kind": "int8", "block_size": 32}))
    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(llama(), tmp_path)), logits(model))
    again = load_adapter(quantize_model_(llama(), ["q_proj", "down_proj"], "int8", block_size=32), tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_model_counts_what_it_stands_for(kind):
    whole, codes = (inject(llama(), "all-linear", RANK, ALPHA, quantize=q) for q in (None, kind))
    assert count(codes) == count(whole)


def test_ranks_alphas_and_inits_by_path():
    base = plain()
    names = ["proj", "my_proj"]
    model = inject(base, names, {"proj": 2, "my_proj": 3, "block.proj": 4}, {"proj": 5, "my_proj": 7, "block.proj": 9})
    assert {n: (m.rank, m.alpha) for n, m in lora_layers(model).items()} == {
        "proj": (2, 5),
        "my_proj": (3, 7),
        "block.proj": (4, 9),
    }
    with unchanged(eject(model)), pytest.raises(ValueError, match=r"rank by path .*'block.proj'"):
        inject(model, names, {"proj": 2, "my_proj": 3}, 5)


def test_peft_has_no_init_that_this_table_lacks():
    described = str(peft.LoraConfig.__dataclass_fields__["init_lora_weights"].type)
    words = {word.strip("'\" ") for word in described.replace("[", ",").replace("]", ",").split(",")}
    unknown = {w for w in words if w.isidentifier() and w.islower()} - set(INITS) - {"bool", "pissa_niter_"}
    assert not unknown, unknown


@pytest.mark.parametrize("name", ["default", "pissa", "loftq"])
def test_dora_on_codes_reloads_with_its_own_magnitude(name, tmp_path):
    """The magnitude starts at the row lengths of what the codes hold, is trained, and comes back as trained."""
    ours = adapted(llama(), name, quantize="nf4", layer=DoRALinear)
    for layer in lora_layers(ours).values():
        whole = layer.base.dequantized() + layer.scale * layer.B @ layer.A
        torch.testing.assert_close(layer.magnitude, whole.norm(dim=1), rtol=1e-5, atol=1e-6)
    started = {path: layer.magnitude.detach().clone() for path, layer in lora_layers(ours).items()}
    save_adapter(trained(ours), tmp_path)
    again = load_adapter(llama(), tmp_path)
    assert torch.equal(logits(again), logits(ours))
    assert all(not torch.equal(layer.magnitude, started[path]) for path, layer in lora_layers(again).items())
