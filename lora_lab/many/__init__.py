"""Many adapters on one model: y = W x + b + Σᵢ wᵢ sᵢ Bᵢ(Aᵢ x).

    add_adapter(model, "a", folder); add_adapter(model, "b", adapter)
    use(model, "a"); use(model, {"a": 0.7, "b": 0.3}); use(model, None)
    with rows(model, ["a", None, "b"]): model.generate(**three_prompts)

`layer`: the equation. `batch`: another adapter for every row. `install`: in and out of a model. `choose`: what is used.
`fold`: the mix in the base weights.
"""

from lora_lab.many.choose import active, rows, use, using
from lora_lab.many.fold import folded, merged_mix, mixture
from lora_lab.many.install import adapter_of_many, adapters, add_adapter, remove_adapter
from lora_lab.many.layer import MultiLoRALinear, multi_layers

__all__ = [
    "MultiLoRALinear",
    "active",
    "adapter_of_many",
    "adapters",
    "add_adapter",
    "folded",
    "merged_mix",
    "mixture",
    "multi_layers",
    "remove_adapter",
    "rows",
    "use",
    "using",
]
