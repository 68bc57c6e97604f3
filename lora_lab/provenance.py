"""Which base an adapter was made for: a fingerprint of the weights beside it.

    of one layer    SHA-256 of its shape (out, in) and of the bytes of W, rounded to a dtype
    of a model      SHA-256 of the lines "path digest", sorted by path

It is taken in the base's own dtype and, rounded, in the half precisions. Two bases count as the same where one is the
other, rounded to its dtype: an fp32 base and its bf16 copy, in either direction. Two fp32 bases are the same if every
bit is. Where the layers differ in dtype, the narrowest of them is the base's own, in whatever order they stand. Of a
quantized base there is the fingerprint of W from before, where this library quantized it, and that of its codes. Where
an init shifts the base, W from before the shift counts. Biases, norms and layers without an adapter do not: two bases
that differ there alone are not told apart.

Some bases come back to rounding alone: after `merge_` without keep_base and `unmerge_`, and after `eject` where an
init had shifted them. What they hold then exists nowhere else, so no fingerprint is taken, a file saved from them
says nothing, and a file is not compared with them. The mark stays with the module and its copies, also in a later
`inject`; a model loaded anew has none. What a layer remembers of W from before a shift or quantization still counts
after such an `unmerge_`, but the codes beside it no longer do. A base that `merge_` kept is exact, and keeps its claim.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from lora_lab.base import is_conv1d, is_linear, is_quantized, oriented_weight, stored
from lora_lab.inject import lora_layers
from lora_lab.layer import LoRALinear
from lora_lab.origin import digests_of, is_rounded, origin_of
from lora_lab.variants.experts import expert_layers

Fingerprints = dict[str, str]  # by dtype, the base's own first; "codes" of a quantized base
WIDTH = 5 * (len("bfloat16") + 1 + 64 + 1)  # of the text: one size for every dtype, so that a file's size is known
THREADS = 8


def fingerprint(model: nn.Module, paths: Iterable[str] | None = None, dtype: torch.dtype | None = None) -> str:
    """64 hexadecimal digits that say which weights the linear layers at `paths` hold (None: every linear layer).

    Of an adapted layer its base counts, as it was before a shift or quantization. dtype: rounded to it; None: as it
    is, or rounded to the narrowest dtype of these layers if they differ in it.
    Raises ValueError where that is unknown: no linear layer, a base that was merged without being kept (also if it was
    unmerged since) or that `eject` gave back from a shift, codes of unknown origin in a dtype.
    """
    found = dict(model.named_modules())
    inside = {path and f"{path}." for path, module in found.items() if isinstance(module, LoRALinear)}
    if paths is None:
        paths = [
            path
            for path, module in found.items()
            if isinstance(module, LoRALinear) or (is_linear(module) and not path.startswith(tuple(inside)))
        ]
    paths = list(paths)
    missing = [p for p in paths if p not in found or not (isinstance(found[p], LoRALinear) or is_linear(found[p]))]
    if missing or not paths:
        raise ValueError(f"{missing[0]!r} is no linear layer" if missing else "the model has no linear layer")
    prints = fingerprints({path: found[path] for path in paths})
    wanted = next(iter(prints), None) if dtype is None else str(dtype).removeprefix("torch.")
    if wanted not in prints:
        known = ", ".join(prints) or "nothing, as for a base that was merged"
        raise ValueError(f"the weights in {wanted} are not known: there is a fingerprint of {known}")
    return prints[wanted]


def fingerprints(sources: Mapping[str, nn.Module | Tensor]) -> Fingerprints:
    """Of linear layers, LoRA layers and plain tensors by path, in every dtype that can be told; empty if one cannot."""
    with ThreadPoolExecutor(THREADS) as pool:  # hashing and rounding let other threads run
        found = dict(zip(sources, pool.map(_digests, sources.values()), strict=True))
    if not found or not all(found.values()):
        return {}
    result = {}
    for kind in _ordered(found.values()):
        # A layer that is narrower than this dtype counts as it is.
        lines = [f"{path} {each.get(kind) or next(iter(each.values()))}\n" for path, each in sorted(found.items())]
        result[kind] = hashlib.sha256("".join(lines).encode()).hexdigest()
    return result


def _ordered(found: Iterable[Mapping[str, str]]) -> list[str]:
    """Every kind of digest: first the narrowest that is some layer's own, then from wide to narrow, codes last."""

    def width(kind: str) -> int:
        return 0 if kind == "codes" else getattr(torch, kind).itemsize

    found = list(found)
    own = {next(iter(digests)) for digests in found}
    first = min(own - {"codes"} or own, key=lambda kind: (width(kind), kind))
    return sorted({kind for digests in found for kind in digests}, key=lambda k: (k != first, -width(k), k))


def bases_of(model: nn.Module) -> dict[str, nn.Module | Tensor]:
    """What the adapters of `model` were made for: its LoRA layers, and the tensors of adapted experts."""
    sources: dict[str, nn.Module | Tensor] = dict(lora_layers(model))
    for path, layer in expert_layers(model).items():
        for tensor in layer.updates:
            # A merged tensor is not the base: an empty one has no digest.
            sources[f"{path}.{tensor}"] = torch.empty(0) if layer.merged else experts_tensor(layer.base, tensor)
    return sources


def experts_tensor(base: nn.Module, name: str) -> Tensor:
    """The tensor of this name, for `fingerprints`: an empty one, which has no digest, if known only to rounding."""
    return torch.empty(0) if is_rounded(base) else getattr(base, name)


def differs(made_for: Fingerprints, given: Fingerprints) -> tuple[str, str, str] | None:
    """(dtype, wanted, given) if the two are known to be of different bases; None if they agree or cannot be compared.

    They agree where one is the other, rounded to its own dtype.
    """
    common = [kind for each in (given, made_for) for kind in list(each)[:1] if kind in made_for and kind in given]
    if not common or any(made_for[kind] == given[kind] for kind in common):
        return None
    return common[0], made_for[common[0]], given[common[0]]


def as_text(prints: Fingerprints) -> str:
    """For the header of a file: "float32:<64 digits> bfloat16:..."."""
    return " ".join(f"{kind}:{digits}" for kind, digits in prints.items()).ljust(WIDTH)


def from_text(text: str) -> Fingerprints:
    """What `as_text` was given. Raises ValueError for any other text."""
    found = re.findall(r"(\w+):([0-9a-f]{64})(?: |$)", text)
    if as_text(dict(found)).strip() != text.strip():
        raise ValueError(f"the header's fingerprint of the base, {text[:100]!r}, cannot be read: was the file edited?")
    return dict(found)


def _digests(source: nn.Module | Tensor) -> dict[str, str]:
    if isinstance(source, Tensor):
        return digests_of(source)
    if not isinstance(source, LoRALinear):
        return _plain(source)
    origin = origin_of(source)
    if source.merged:
        return _kept(source) if origin is None else origin
    return _plain(source.base) if origin is None else origin | _codes(source.base)


def _plain(base: nn.Module) -> dict[str, str]:
    if is_rounded(base):
        return {}
    return _codes(base) if is_quantized(base) else digests_of(oriented_weight(base))


def _kept(layer: LoRALinear) -> dict[str, str]:
    """Of a merged layer: the exact base, if `merge_` was told to keep it."""
    weight = getattr(layer, "kept_weight", None)
    if weight is None or is_quantized(layer.base) or is_rounded(layer.base):
        return {}
    return digests_of(weight.T if is_conv1d(layer.base) else weight)


def _codes(base: nn.Module) -> dict[str, str]:
    if not is_quantized(base) or is_rounded(base):
        return {}
    digest = hashlib.sha256(f"{base.kind} {base.block_size} {base.out_features} {base.in_features}".encode())
    for name, tensor in sorted(stored(base).items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {"codes": digest.hexdigest()}
