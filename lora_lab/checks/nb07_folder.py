"""Check 7.7: a released folder is what it was, and is for this base; anything else is refused by name."""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_lab.provenance import fingerprint

from .describe import kind, short
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb03_toy import Toy

SUMS, BASE = "SHA256SUMS", "base.sha256"
WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD, BASE)


def _write(folder: Path, cases: Cases, base: nn.Module) -> None:
    """A release: weights of random bytes (no text in any encoding), an empty card, and what was made for `base`."""
    (folder / WEIGHTS).write_bytes(bytes([0x80, 0xFF, *(cases.integer(0, 255) for _ in range(300))]))
    (folder / CONFIG).write_bytes(b'{"r": 4}\r\n')
    (folder / CARD).write_bytes(b"")
    (folder / BASE).write_text(fingerprint(base), encoding="utf-8")
    _sum(folder)


def _sum(folder: Path) -> None:
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _flip(folder: Path, base: nn.Module) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))


def _exchange(folder: Path, base: nn.Module) -> None:
    first, second = ((folder / name).read_bytes() for name in (WEIGHTS, CONFIG))
    (folder / WEIGHTS).write_bytes(second)
    (folder / CONFIG).write_bytes(first)


def _nudge(folder: Path, base: nn.Module) -> None:
    """One weight of one layer, one bit away."""
    weight = base.get_submodule("head").weight.data.view(-1)
    weight[2] = torch.nextafter(weight[2], weight[2] + 1)


def _retarget(folder: Path, base: nn.Module) -> None:
    _nudge(folder, base)
    (folder / BASE).write_text(fingerprint(base), encoding="utf-8")


class Scene(NamedTuple):
    """What is done to the folder or the base; `names`: what the refusal has to name, one of them."""

    do: Callable[[Path, nn.Module], Any]
    names: tuple[str, ...]
    says: str


SCENES = (
    Scene(lambda folder, base: None, (), "refuses a release that is as it was"),
    Scene(_flip, (WEIGHTS,), f"accepts a changed file: one bit of {WEIGHTS} was flipped, the size is the same"),
    Scene(
        lambda folder, base: (folder / CARD).write_text("x"),
        (CARD,),
        f"accepts a changed file: {CARD}, which is not the first in the list",
    ),
    Scene(_exchange, (WEIGHTS, CONFIG), "accepts two files whose contents were exchanged: each name has its own hash"),
    Scene(lambda folder, base: (folder / CONFIG).unlink(), (CONFIG,), f"accepts a folder without the listed {CONFIG}"),
    Scene(
        lambda folder, base: (folder / "tokenizer.json").write_text("{}"),
        ("tokenizer.json",),
        f"accepts a file that {SUMS} does not list: a loader may read it",
    ),
    Scene(_nudge, ("base",), "accepts another base: one weight is one bit away"),
    Scene(_retarget, (BASE,), f"accepts a changed {BASE}: the hash of that file itself is in {SUMS}"),
)


def _state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@exercise(
    "7.7",
    takes=("folder", "base"),
    points=3,
    minutes=15,
    hints=(
        "Three questions: is every listed file there and the same, is there a file that nobody listed, and is the base "
        "the one that was written down?",
        "digest, name = line.split() for each line of SHA256SUMS; read_bytes, not read_text, for the files. Compare "
        "the set of names with those in folder.iterdir(). The base: fingerprint(base) against the text of base.sha256.",
        "listed = {name: digest ...}; for each name: if not (folder / name).is_file() or file_hash(folder / name) != "
        "digest, raise ValueError(name). Then extra = names present - listed - {'SHA256SUMS'}. Then the base. Return "
        "sorted(listed).",
    ),
)
def verify_release(answer: Guard, cases: Cases) -> str:
    """Every listed file by its hash, no other file, the base by its fingerprint."""
    for scene in SCENES:
        with tempfile.TemporaryDirectory() as place:
            folder, base = Path(place), Toy(cases)
            _write(folder, cases, base)
            scene.do(folder, base)
            before = _state(folder)
            if not scene.names:
                _accepted(answer(folder, base))
            else:
                _refused(answer, folder, base, scene)
            if _state(folder) != before:
                raise Wrong("your verify_release changes the folder: to verify is to read")
    return f"{len(SCENES) - 1} spoiled releases refused by name, a good one let through"


def _accepted(got: Any) -> None:
    if not isinstance(got, list | tuple) or sorted(map(str, got)) != sorted(FILES):
        what = short(got) if isinstance(got, list | tuple) else kind(got)
        raise Wrong(f"your verify_release should return the names that {SUMS} lists, {sorted(FILES)}, not {what}")


def _refused(answer: Guard, folder: Path, base: nn.Module, scene: Scene) -> None:
    error = answer.refusal(folder, base)
    if error is None:
        raise Wrong(f"your verify_release {scene.says}")
    if not isinstance(error, ValueError) or isinstance(error, UnicodeError):
        raise Wrong(
            f"your verify_release should raise ValueError, not {type(error).__name__} ({short(str(error), 60)}), where "
            f"the trouble is {scene.names[0]}"
        )
    if not any(name in str(error) for name in scene.names):
        wanted = " or ".join(scene.names)
        raise Wrong(f"your verify_release refuses with {short(str(error), 60)}: name what is wrong, {wanted}")
