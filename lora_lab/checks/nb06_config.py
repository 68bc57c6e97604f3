"""Check 6.1: a LoraConfig that means what was asked for. s = alpha / r, with rsLoRA s = alpha / √r."""

import math

from .describe import kind, short
from .guard import Guard, Wrong
from .harness import Cases, exercise


def _alpha(got: float, rank: int, scale: float, rslora: bool) -> None:
    want = scale * (math.sqrt(rank) if rslora else rank)
    if math.isclose(got, want, rel_tol=1e-6):
        return
    rule = "alpha / √r" if rslora else "alpha / r"
    end = f"lora_alpha = {got:g} at r = {rank} gives a scale of {got / want * scale:g}, not {scale:g}: solve s = {rule}"
    if math.isclose(got, scale):
        raise Wrong(f"your make_config passes the scale as lora_alpha; {end}")
    if rslora and math.isclose(got, scale * rank):
        raise Wrong(f"your make_config forgets that rsLoRA divides by √r; {end}")
    if not rslora and math.isclose(got, scale * math.sqrt(rank)):
        raise Wrong(f"your make_config divides by √r without rsLoRA; {end}")
    if math.isclose(got, 2 * rank):
        raise Wrong(f"your make_config sets alpha to twice the rank, whatever the scale; {end}")
    raise Wrong(f"your make_config has another scale: {end}")


@exercise(
    "6.1",
    takes=("rank", "scale", "targets", "rslora"),
    points=1,
    minutes=6,
    hints=(
        "PEFT knows no scale. It knows r, lora_alpha and use_rslora, and computes s from them (notebook 04).",
        "alpha = s·r, or s·√r with rsLoRA. Three more fields: target_modules, use_rslora and task_type.",
        "Fill in the dots: LoraConfig(r=rank, lora_alpha=..., use_rslora=rslora, target_modules=targets, "
        'task_type="CAUSAL_LM").',
    ),
)
def make_config(answer: Guard, cases: Cases) -> str:
    """A LoraConfig with these settings."""
    from peft import LoraConfig

    names = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "fc1", "dense")
    asked = 0
    for rslora in (False, True, False, True, False):
        rank = cases.pick((3, 5, 6, 12, 20))
        scale = cases.pick((0.5, 1.5, 2.5, 3.0))
        targets = [names[i] for i in cases.different(0, len(names) - 1, 3)]
        got = answer(rank, scale, list(targets), rslora)
        if not isinstance(got, LoraConfig):
            raise Wrong(f"your make_config should return a LoraConfig, not {kind(got)}")
        if got.r != rank:
            raise Wrong(f"your make_config has r = {got.r} where rank = {rank} was asked for")
        found = got.target_modules
        if isinstance(found, str):
            raise Wrong(
                f"your make_config targets the string {short(found)}: a string is a pattern for the whole path, "
                "pass the list"
            )
        if set(found or ()) != set(targets):
            raise Wrong(f"your make_config targets {sorted(found or ())}, but {sorted(targets)} was asked for")
        if got.use_rslora != rslora:
            raise Wrong(f"your make_config has use_rslora = {got.use_rslora} where rslora = {rslora} was asked for")
        _alpha(got.lora_alpha, rank, scale, rslora)
        if str(getattr(got.task_type, "value", got.task_type)) != "CAUSAL_LM":
            raise Wrong(
                f"your make_config has task_type = {got.task_type}: a causal language model needs "
                'task_type="CAUSAL_LM", or PEFT wraps it in a class without its helpers for generation'
            )
        for field, want in (("lora_dropout", 0.0), ("bias", "none"), ("init_lora_weights", True)):
            if getattr(got, field) != want:
                raise Wrong(
                    f"your make_config sets {field} to {getattr(got, field)!r}: leave what was not asked for at its "
                    f"default, {want!r}"
                )
        asked += 1
    return f"{asked} configs with the scale that was asked for"
