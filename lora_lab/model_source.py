"""Where a base model comes from: a folder, or the Hub; found fast, or refused with a sentence that says what to do.

Nothing here opens a weight file. What is missing, pickled, or in need of code of its own is refused by name, before
transformers sees the folder.
"""

import json
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

from lora_lab import paths

HUB_TIMEOUT = 5.0  # seconds to wait for the Hub's first answer
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # no pickles, no code
HUB_SKIP = ["*/*", "consolidated*"]  # other formats of the same weights, in subfolders or beside them
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def find_folder(source=None) -> Path:
    """The folder of a source as `load_base` takes it; a Hub model that is not in the cache is downloaded first."""
    source = source or os.environ.get("LORA_LAB_BASE") or paths.BASE
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder == paths.BASE:
        raise FileNotFoundError(
            f"{folder}: the course's own base model is missing; git checkout {folder} brings it back"
        )
    if isinstance(source, str) and not folder.exists() and HUB_ID.fullmatch(source):
        return _from_hub(source)
    raise FileNotFoundError(f"{source}: no such folder, and not the name of a model on the Hub (owner/name)")


def check_folder(folder: Path) -> None:
    """Raise unless `folder` is a complete, safe model folder of a type that transformers knows."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds an adapter, not a base model: load its base first, then the adapter on top")
    missing = _missing(folder)
    if missing:
        raise FileNotFoundError(f"{folder} is not a complete model folder; missing: {', '.join(missing)}")
    config = _read_json(folder / "config.json")
    from transformers import __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if "auto_map" in config:
        raise ValueError(
            f"{folder}: model type {kind!r} needs Python code of its own (auto_map in config.json), which is never run "
            "here: choose a model that transformers knows"
        )
    raise ValueError(f"{folder}: transformers {__version__} knows no causal language model of type {kind!r}")


def _missing(folder: Path) -> list[str]:
    """What a model folder lacks, by name."""
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        missing.append("the tokenizer (tokenizer.json)")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        parts = set(_read_json(index).get("weight_map", {}).values()) or {"model.safetensors"}
        missing += sorted(part for part in parts if not (folder / part).exists())
    elif not (folder / "model.safetensors").exists():
        missing.append(f"model.safetensors{_pickle_note(path.name for path in folder.iterdir())}")
    return missing


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _pickle_note(names: Iterable[str]) -> str:
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    return (
        f" ({pickles[0]} is a pickle, which can run any code when opened, and is never loaded here)" if pickles else ""
    )


def _from_hub(name: str) -> Path:
    """The folder of a Hub model in the Hub's cache, downloaded first if it is not all there."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str) and not _missing(Path(cached).parent):
        return Path(cached).parent
    files = [file for file in _files_on_hub(name) if "/" not in file]
    if not any(file.endswith(".safetensors") for file in files):
        raise FileNotFoundError(f"{name} on the Hub has no safetensors weights{_pickle_note(files)}")
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIP))
    except Exception as error:  # licence not accepted, disk full, connection lost: the Hub's library says which
        raise ConnectionError(f"{name} could not be downloaded from the Hub: {_one_line(error)}") from error


def _files_on_hub(name: str) -> list[str]:
    """The names of a Hub model's files, or an error within seconds.

    Asked in a thread, because no timeout of the Hub's library covers a name server that does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    reply: list = []

    def ask() -> None:
        try:
            reply.append([file.rfilename for file in HfApi().model_info(name, timeout=HUB_TIMEOUT).siblings or []])
        except Exception as error:
            reply.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT + 1)
    answer = reply[0] if reply else TimeoutError(f"no answer within {HUB_TIMEOUT + 1:g} s")
    if isinstance(answer, RepositoryNotFoundError):
        raise FileNotFoundError(
            f"{name} is no folder here and no public model on the Hub: check the spelling (if private: hf auth login)"
        ) from answer
    if isinstance(answer, Exception):
        raise ConnectionError(
            f"{name} is not on this machine and the Hub cannot be reached ({_one_line(answer)}): connect to the "
            "network, or download the model elsewhere and set LORA_LAB_BASE to its folder, or unset LORA_LAB_BASE for "
            "the course's own model"
        ) from answer
    return answer


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
