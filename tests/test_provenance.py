"""A file says which base its adapter was made for: that base and its copies are taken, any other leaves untouched."""

import copy
import hashlib
import re

import peft
import pytest
import safetensors
import torch
from experts_for_tests import DOWN, UP, fill_experts, mixtral
from models_for_tests import ALPHA, RANK, fill, gpt2, linear, llama, logits, saved, unchanged
from safetensors.torch import load_file, save_file
from torch import nn

from lora_lab import (
    LoRALinear,
    eject,
    fingerprint,
    inject,
    load_adapter,
    lora_layers,
    merge_,
    merged,
    save_adapter,
    shift,
    unmerge_,
)
from lora_lab.adapter_file import adapter_of, write_adapter
from lora_lab.adapter_format import WEIGHTS
from lora_lab.adapter_notes import BASE_KEY
from lora_lab.base import write_weight_
from lora_lab.provenance import as_text, bases_of, differs, fingerprints, from_text
from lora_lab.quantized_linear import quantize_model_
from lora_lab.variants.experts import expert_layers, inject_experts

REFUSED = r"made for the base [0-9a-f]{16}, this one is [0-9a-f]{16} .*any_base=True"
ADAPTED = "model.layers.1.mlp.down_proj"
HALF, FP16 = torch.bfloat16, torch.float16


def nudged(model: nn.Module, path: str = ADAPTED) -> nn.Module:
    """One weight of one layer, one bit away."""
    weight = model.get_submodule(path).weight.data.view(-1)
    weight[3] = torch.nextafter(weight[3], weight[3] + 1)
    return model


def header(folder) -> dict[str, str]:
    with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
        return file.metadata()


def test_another_base_is_refused_and_left_alone(tmp_path):
    expected = logits(saved(tmp_path))
    for other in (nudged(llama()), merged(load_adapter(llama(), tmp_path))):
        with unchanged(other), pytest.raises(ValueError, match=REFUSED) as caught:
            load_adapter(other, tmp_path)
        wanted, here = re.findall(r"[0-9a-f]{16}", str(caught.value))
        assert fingerprint(llama(), lora_layers(saved(tmp_path))).startswith(wanted)
        assert fingerprint(other, lora_layers(saved(tmp_path))).startswith(here)
        assert torch.isfinite(logits(load_adapter(other, tmp_path, any_base=True))).all()
    assert torch.equal(logits(load_adapter(llama(), tmp_path)), expected)


@pytest.mark.parametrize("loaded", [torch.float64, torch.float32, HALF, FP16], ids=str)
@pytest.mark.parametrize("made", [torch.float64, torch.float32, HALF, FP16], ids=str)
def test_one_is_the_other_rounded(made, loaded, tmp_path):
    """Of two half precisions neither need be the other rounded; of any other two dtypes the narrower one is."""
    saved(tmp_path, lambda: llama().to(made))
    base, other = llama().to(loaded), nudged(llama()).to(loaded)
    if {made, loaded} == {HALF, FP16}:
        with pytest.raises(ValueError, match=REFUSED):
            load_adapter(base, tmp_path)
        base = llama().to(made).to(loaded)
    load_adapter(base, tmp_path)
    if made == loaded and made.itemsize >= 4:
        with pytest.raises(ValueError, match=REFUSED):
            load_adapter(other, tmp_path)
    changed = llama().to(loaded)
    changed.get_submodule(ADAPTED).weight.data[0, 0] += 1
    with unchanged(changed), pytest.raises(ValueError, match=REFUSED):
        load_adapter(changed, tmp_path)


def mixed(narrow: nn.Module | None = None, paths=(), dtype=HALF) -> nn.Module:
    """The Llama with the layers at `paths` in another dtype."""
    model = narrow or llama()
    for path in paths:
        model.get_submodule(path).to(dtype)
    return model


@pytest.mark.parametrize("dtype", [HALF, FP16], ids=str)
@pytest.mark.parametrize("rounded", range(4), ids=lambda i: f"layer {i} is narrow")
def test_of_a_base_in_two_dtypes_it_does_not_matter_which_layer_is_the_narrow_one(rounded, dtype, tmp_path):
    path = list(lora_layers(saved(tmp_path / "wide")))[rounded]
    load_adapter(mixed(paths=[path], dtype=dtype), tmp_path / "wide")
    save_adapter(inject(mixed(paths=[path], dtype=dtype), ["q_proj", "down_proj"], RANK, ALPHA), tmp_path / "mixed")
    load_adapter(llama(), tmp_path / "mixed")
    load_adapter(mixed(paths=[path], dtype=dtype), tmp_path / "mixed")
    for folder in ("wide", "mixed"):
        other = mixed(_negated(), [path], dtype)
        with unchanged(other), pytest.raises(ValueError, match=REFUSED):
            load_adapter(other, tmp_path / folder)


def test_codes_beside_plain_layers_do_not_hide_their_dtype():
    layer, codes = linear(4, 6), quantize_model_(nn.ModuleDict({"x": linear(4, 6)}), "x", "nf4")["x"]
    narrow = copy.deepcopy(layer).to(HALF)
    for paths in ("ab", "ba"):
        wide, halved = (fingerprints(dict(zip(paths, (codes, other), strict=True))) for other in (layer, narrow))
        assert list(wide) == ["float32", "bfloat16", "float16", "codes"]
        assert next(iter(halved)) == "bfloat16"
        assert differs(wide, halved) is differs(halved, wide) is None


def test_what_no_adapter_is_beside_does_not_count(tmp_path):
    saved(tmp_path)
    load_adapter(nudged(llama(), "model.layers.0.self_attn.k_proj"), tmp_path)


def test_a_file_that_says_nothing_is_loaded_as_before(tmp_path):
    saved(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    load_adapter(nudged(llama()), tmp_path)


def test_an_edited_fingerprint_is_refused(tmp_path):
    saved(tmp_path)
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, metadata={BASE_KEY: "float32:12"})
    model = llama()
    with unchanged(model), pytest.raises(ValueError, match=r"cannot be read: was the file edited\?"):
        load_adapter(model, tmp_path)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to .*:UserWarning")
@pytest.mark.parametrize("build", [llama, gpt2])
def test_peft_passes_over_it(build, tmp_path):
    ours = saved(tmp_path, build, "all-linear")
    assert header(tmp_path)[BASE_KEY].startswith(f"float32:{fingerprint(build(), lora_layers(ours))}")
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=1e-6)


SETTINGS = {"pissa": {"init": "pissa"}, "nf4": {"quantize": "nf4"}, "both": {"init": "pissa", "quantize": "nf4"}}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_counts_is_the_base_before_its_shift_and_its_codes(settings, tmp_path):
    ours = saved(tmp_path, **settings)
    paths = list(lora_layers(ours))
    assert fingerprint(ours, paths) == fingerprint(llama(), paths)
    assert fingerprint(copy.deepcopy(ours), paths) == fingerprint(llama(), paths)
    again = load_adapter(llama(), tmp_path)
    assert torch.equal(logits(again), logits(ours))
    save_adapter(again, tmp_path / "again")
    assert header(tmp_path / "again")[BASE_KEY] == header(tmp_path)[BASE_KEY]
    for plain in (False, True):
        other = nudged(llama())
        with unchanged(other), pytest.raises(ValueError, match=REFUSED):
            load_adapter(other, tmp_path, plain=plain)


def test_codes_are_compared_with_codes(tmp_path):
    ours = saved(tmp_path, quantize="nf4")
    assert torch.equal(logits(load_adapter(eject(load_adapter(llama(), tmp_path)), tmp_path)), logits(ours))
    other = llama()
    other.get_submodule(ADAPTED).weight.data.mul_(-1)
    codes = quantize_model_(other, ["q_proj", "down_proj"], "nf4")
    with unchanged(codes), pytest.raises(ValueError, match=REFUSED):
        load_adapter(codes, tmp_path)
    # Codes of unknown origin: a base that gives the same codes is taken.
    foreign = fill(inject(quantize_model_(llama(), ["q_proj", "down_proj"], "nf4"), ["q_proj", "down_proj"], 4, 10))
    save_adapter(foreign, tmp_path / "codes")
    assert torch.equal(logits(load_adapter(llama(), tmp_path / "codes")), logits(foreign))
    with pytest.raises(ValueError, match=REFUSED):
        load_adapter(_negated(), tmp_path / "codes")


def _negated() -> nn.Module:
    model = llama()
    model.get_submodule(ADAPTED).weight.data.mul_(-1)
    return model


def test_a_merged_base_is_not_taken_for_the_base(tmp_path):
    model = merge_(saved(tmp_path / "plain"), keep_base=True)
    save_adapter(model, tmp_path / "kept")
    assert header(tmp_path / "kept") == header(tmp_path / "plain")
    save_adapter(merge_(unmerge_(model)), tmp_path / "lost")
    assert BASE_KEY not in header(tmp_path / "lost")
    with pytest.raises(ValueError, match=r"fingerprint of nothing, as for a base that was merged"):
        fingerprint(model, lora_layers(model))


def test_factors_written_for_a_base_name_it(tmp_path):
    model = fill(inject(llama(), ["q_proj"], RANK, ALPHA))
    write_adapter(adapter_of(model), tmp_path, llama())
    other = nudged(llama(), "model.layers.0.self_attn.q_proj")
    with unchanged(other), pytest.raises(ValueError, match=REFUSED):
        load_adapter(other, tmp_path)
    write_adapter(adapter_of(model), tmp_path)
    load_adapter(other, tmp_path)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to .*:UserWarning")
def test_factors_written_for_conv1d_or_codes_name_them_too(tmp_path):
    adapter = adapter_of(fill(inject(gpt2(), ["c_attn", "c_fc"], RANK, ALPHA)))
    write_adapter(adapter, tmp_path / "conv1d", gpt2())
    assert header(tmp_path / "conv1d")[BASE_KEY].startswith(f"float32:{fingerprint(gpt2(), adapter)}")
    load_adapter(gpt2(), tmp_path / "conv1d")
    other = nudged(gpt2(), next(iter(adapter)))
    with unchanged(other), pytest.raises(ValueError, match=REFUSED):
        load_adapter(other, tmp_path / "conv1d")

    def codes(model: nn.Module) -> nn.Module:
        return quantize_model_(model, ["q_proj", "down_proj"], "nf4")

    write_adapter(adapter_of(inject(codes(llama()), ["q_proj", "down_proj"], 4, 10)), tmp_path / "nf4", codes(llama()))
    load_adapter(codes(llama()), tmp_path / "nf4")
    other = codes(_negated())
    with unchanged(other), pytest.raises(ValueError, match=REFUSED):
        load_adapter(other, tmp_path / "nf4")


def silent(model: nn.Module, folder) -> bool:
    """Is there no fingerprint of what `model` was adapted on, and does its file fit the original and say nothing?"""
    save_adapter(model, folder)
    load_adapter(llama(), folder)
    assert (BASE_KEY in header(folder)) == bool(fingerprints(bases_of(model)))
    return BASE_KEY not in header(folder)


def adapted(model: nn.Module, **settings) -> nn.Module:
    return fill(inject(model, ["q_proj", "down_proj"], RANK, ALPHA, **settings))


def test_a_base_that_came_back_to_rounding_is_not_named(tmp_path):
    """It is not W, so that a claim would be of a base that nobody has; not in a copy or a later inject either."""
    model = unmerge_(merge_(saved(tmp_path / "before")))
    weight = model.get_submodule(ADAPTED).base.weight
    assert not torch.equal(weight, llama().get_submodule(ADAPTED).weight)
    assert silent(model, tmp_path / "unmerged")
    assert silent(copy.deepcopy(model), tmp_path / "copied")
    assert silent(merge_(model, keep_base=True), tmp_path / "kept is rounded too")
    base = eject(unmerge_(model))
    with pytest.raises(ValueError, match="fingerprint of nothing"):
        fingerprint(base, [ADAPTED])
    assert silent(adapted(base), tmp_path / "again")
    assert silent(adapted(eject(base), init="pissa"), tmp_path / "shifted")
    assert silent(adapted(eject(base), quantize="nf4"), tmp_path / "quantized")
    assert fingerprints({ADAPTED: eject(base).get_submodule(ADAPTED)}) == {}


def test_a_base_that_came_back_exactly_keeps_its_claim(tmp_path):
    model = unmerge_(merge_(saved(tmp_path / "before"), keep_base=True))
    save_adapter(model, tmp_path / "unmerged")
    save_adapter(adapted(eject(model)), tmp_path / "again")
    assert header(tmp_path / "before") == header(tmp_path / "unmerged") == header(tmp_path / "again")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_was_remembered_of_w_outlasts_an_inexact_unmerge(settings, tmp_path):
    model = saved(tmp_path / "before", **settings)
    before = from_text(header(tmp_path / "before")[BASE_KEY])
    save_adapter(unmerge_(merge_(model)), tmp_path / "after")
    after = from_text(header(tmp_path / "after")[BASE_KEY])
    # The codes were written twice since, and need not be what quantizing W gives.
    assert after == {kind: digits for kind, digits in before.items() if kind != "codes"}
    load_adapter(llama(), tmp_path / "after")
    with pytest.raises(ValueError, match=REFUSED):
        load_adapter(_negated(), tmp_path / "after")


def test_codes_that_were_merged_and_unmerged_are_not_named():
    model = adapted(quantize_model_(llama(), ["q_proj", "down_proj"], "nf4"))
    assert set(fingerprints(bases_of(model))) == {"codes"}
    assert fingerprints(bases_of(unmerge_(merge_(model)))) == {}


def test_after_a_shift_was_taken_back_nothing_is_claimed(tmp_path):
    model = saved(tmp_path / "before", init="pissa")
    base = eject(model)
    assert not torch.equal(base.get_submodule(ADAPTED).weight, llama().get_submodule(ADAPTED).weight)
    assert silent(adapted(base), tmp_path / "after")
    # An init without a shift has left the base alone, and its layers are known on.
    save_adapter(adapted(eject(adapted(llama()))), tmp_path / "plain")
    assert BASE_KEY in header(tmp_path / "plain")
    # Codes are those that quantizing gave: they stand for themselves.
    assert set(fingerprints({"x": eject(adapted(llama(), quantize="nf4")).get_submodule(ADAPTED)})) == {"codes"}


def test_after_an_interrupted_shift_nothing_is_claimed(monkeypatch):
    calls = []

    def write(base, weight):
        calls.append(base)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_weight_(base, weight)

    model = llama()
    monkeypatch.setattr(shift, "write_weight_", write)
    with pytest.raises(KeyboardInterrupt):
        adapted(model, init="pissa")
    assert not lora_layers(model)
    assert fingerprints({"x": calls[0]}) == {}
    # The third was never written, and is known as before.
    path = next(path for path, layer in model.named_modules() if layer is calls[2])
    assert fingerprints({"x": calls[2]}) == fingerprints({"x": llama().get_submodule(path)}) != {}


def test_merging_hashes_nothing(monkeypatch):
    model = adapted(llama())
    monkeypatch.setattr(hashlib, "sha256", None)
    unmerge_(merge_(unmerge_(merge_(model)), keep_base=True))


def test_experts_that_came_back_to_rounding_are_not_named(tmp_path):
    model = fill_experts(inject_experts(mixtral(), (UP, DOWN), 3, 11))
    save_adapter(model, tmp_path / "before")
    save_adapter(unmerge_(merge_(model, keep_base=True)), tmp_path / "exact")
    assert header(tmp_path / "exact") == header(tmp_path / "before")
    save_adapter(unmerge_(merge_(model)), tmp_path / "rounded")
    assert BASE_KEY not in header(tmp_path / "rounded")
    load_adapter(mixtral(), tmp_path / "rounded")
    # Nor is a file compared with them.
    load_adapter(eject(model), tmp_path / "before")


def test_adapted_experts_count(tmp_path):
    model = fill_experts(inject_experts(fill(inject(mixtral(), ["q_proj"], RANK, ALPHA)), (UP, DOWN), 3, 11))
    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(mixtral(), tmp_path)), logits(model))
    other = mixtral()
    path, tensor = next((p, t) for p, layer in expert_layers(model).items() for t in layer.updates)
    getattr(other.get_submodule(path), tensor).data[0, 1, 2] += 0.5
    with unchanged(other), pytest.raises(ValueError, match=REFUSED):
        load_adapter(other, tmp_path)
    save_adapter(merge_(model), tmp_path / "merged")
    assert BASE_KEY not in header(tmp_path / "merged")


def test_a_bare_layer_is_its_base():
    layer = LoRALinear(linear(5, 3), 2, 3)
    assert fingerprint(layer) == fingerprint(layer.base)


def test_it_is_sha_256_of_what_the_module_says():
    layer = linear(5, 3)
    text = hashlib.sha256(b"(5, 3) " + layer.weight.detach().numpy().tobytes()).hexdigest()
    assert fingerprint(nn.ModuleDict({"x": layer})) == hashlib.sha256(f"x {text}\n".encode()).hexdigest()
    turned = linear(5, 3, conv1d=True)
    turned.weight.data = layer.weight.data.T.contiguous()
    assert fingerprint(nn.ModuleDict({"x": turned})) == fingerprint(nn.ModuleDict({"x": layer}))


def test_it_depends_on_names_shapes_and_values_and_not_on_order():
    a, b = linear(4, 6), linear(4, 6)
    b.weight.data.mul_(2)

    def of(**layers):
        return fingerprint(nn.ModuleDict(layers))

    flat = linear(6, 4)
    flat.weight.data = a.weight.data.reshape(6, 4)
    assert of(a=a, b=b) == of(b=b, a=a)
    assert len({of(a=a, b=b), of(a=b, b=a), of(a=a, c=b), of(a=a), of(a=flat, b=b)}) == 5


def test_what_is_not_known_is_said():
    with pytest.raises(ValueError, match="no linear layer"):
        fingerprint(nn.LayerNorm(3))
    with pytest.raises(ValueError, match=r"'model.norm' is no linear layer"):
        fingerprint(llama(), ["model.norm"])
    with pytest.raises(ValueError, match=r"the weights in float32 are not known: .* of bfloat16, float16"):
        fingerprint(llama(HALF), dtype=torch.float32)
    assert fingerprint(llama(), dtype=HALF) == fingerprint(llama(HALF))
    with torch.device("meta"):
        assert fingerprints({"x": nn.Linear(3, 2)}) == {}
    assert differs({}, {"float32": "0"}) is None
    assert from_text(as_text({"float32": "a" * 64, "codes": "b" * 64})) == {"float32": "a" * 64, "codes": "b" * 64}


def test_it_reads_every_weight_once_in_each_dtype(monkeypatch):
    """All that it costs: 4 + 2 + 2 bytes hashed for each fp32 number beside an adapter, and a line for its layer."""
    model = inject(llama(hidden=64), "all-linear", RANK, ALPHA)
    sizes, real = [], hashlib.sha256

    class Counted:
        def __init__(self, data=b""):
            self.inner = real()
            self.update(data)

        def update(self, data):
            sizes.append(memoryview(data).nbytes)
            self.inner.update(data)

        def hexdigest(self):
            return self.inner.hexdigest()

    expected = fingerprints(bases_of(model))
    monkeypatch.setattr(hashlib, "sha256", Counted)
    assert fingerprints(bases_of(model)) == expected
    layers = [layer.base.weight for layer in lora_layers(model).values()]
    numbers = sum(weight.numel() for weight in layers)
    assert 8 * numbers <= sum(sizes) <= 8 * numbers + 600 * len(layers)
