"""Answers to exercise 7.7 of notebook 07."""

import hashlib
import json

from lora_lab.provenance import fingerprint

from . import right, wrong


def file_hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listed(folder):
    return {line.split()[1]: line.split()[0] for line in (folder / "SHA256SUMS").read_text().splitlines()}


def verify(folder, base):
    sums = listed(folder)
    for name, digest in sums.items():
        if not (folder / name).is_file() or file_hash(folder / name) != digest:
            raise ValueError(f"{name} is missing or changed")
    if extra := {path.name for path in folder.iterdir()} - set(sums) - {"SHA256SUMS"}:
        raise ValueError(f"{extra} is not listed")
    if fingerprint(base) != (folder / "base.sha256").read_text():
        raise ValueError("made for another base")
    return sorted(sums)


def all_at_once(folder, base):
    """Every problem in one sentence."""
    here = {path.name: file_hash(path) for path in folder.iterdir() if path.name != "SHA256SUMS"}
    there = listed(folder)
    odd = sorted({name for name, _ in set(here.items()) ^ set(there.items())})
    other = [] if (folder / "base.sha256").read_bytes().decode() == fingerprint(base) else ["base"]
    if odd + other:
        raise ValueError(", ".join(odd + other))
    return tuple(there)


class Refused(ValueError):
    pass


def by_another_hash_call(folder, base):
    names = []
    for line in (folder / "SHA256SUMS").read_bytes().decode().strip().split("\n"):
        digest, name = line.split("  ")
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            raise Refused(name) from None
        computed = hashlib.new("sha256")
        computed.update(data)
        if computed.hexdigest() != digest:
            raise Refused(name)
        names.append(name)
    for path in folder.iterdir():
        if path.name not in [*names, "SHA256SUMS"]:
            raise Refused(path.name)
    if fingerprint(base) != (folder / "base.sha256").read_text():
        raise Refused("another base")
    return names


def checking(changed=True, missing=True, extra=True, base=True, same=None):
    """`verify` with parts left out."""

    def check(folder, model):
        sums = listed(folder)
        for name, digest in sums.items():
            path = folder / name
            if not path.is_file():
                if missing:
                    raise ValueError(name)
                continue
            if changed and not (same or (lambda path, digest, sums: file_hash(path) == digest))(path, digest, sums):
                raise ValueError(name)
        if extra and (odd := {path.name for path in folder.iterdir()} - set(sums) - {"SHA256SUMS"}):
            raise ValueError(str(odd))
        if base and fingerprint(model) != (folder / "base.sha256").read_text():
            raise ValueError("base")
        return sorted(sums)

    return check


def first_file_only(folder, base):
    sums = listed(folder)
    first = next(iter(sums))
    return checking(same=lambda path, digest, _: path.name != first or file_hash(path) == digest)(folder, base)


def without_its_own(folder, base):
    return checking(same=lambda path, digest, _: path.name == "base.sha256" or file_hash(path) == digest)(folder, base)


def answers_false(folder, base):
    try:
        return verify(folder, base)
    except ValueError:
        return False


def nameless(folder, base):
    try:
        return verify(folder, base)
    except ValueError:
        raise ValueError("release refused") from None


def asserting(folder, base):
    try:
        return verify(folder, base)
    except ValueError as error:
        raise RuntimeError(str(error)) from None


def as_text(folder, base):
    for name, digest in listed(folder).items():
        if hashlib.sha256((folder / name).read_text(encoding="utf-8").encode()).hexdigest() != digest:
            raise ValueError(name)
    return verify(folder, base)


def repairing(folder, base):
    done = verify(folder, base)
    (folder / "verified.json").write_text(json.dumps(done))
    return done


def by_size(path, digest, sums):
    return (path.suffix == ".md" and not path.stat().st_size) or path.suffix != ".md"


FOLDER = [
    right("7.7", "one by one", verify),
    right("7.7", "all at once", all_at_once),
    right("7.7", "an error of its own", by_another_hash_call),
    wrong("7.7", "never refuses", "one bit of adapter_model.safetensors was flipped", lambda f, b: sorted(listed(f))),
    wrong("7.7", "sizes", "one bit of adapter_model.safetensors was flipped", checking(same=by_size)),
    wrong("7.7", "first file", "not the first in the list", first_file_only),
    wrong("7.7", "any hash", "exchanged", checking(same=lambda path, _, sums: file_hash(path) in sums.values())),
    wrong("7.7", "missing", "without the listed adapter_config.json", checking(missing=False)),
    wrong("7.7", "extra", "does not list", checking(extra=False)),
    wrong("7.7", "any base", "accepts another base", checking(base=False)),
    wrong("7.7", "base file unhashed", "the hash of that file itself", without_its_own),
    wrong("7.7", "False", "one bit of adapter_model.safetensors was flipped", answers_false),
    wrong("7.7", "nameless", "name what is wrong", nameless),
    wrong("7.7", "RuntimeError", "should raise ValueError, not RuntimeError", asserting),
    wrong("7.7", "text", "raised UnicodeDecodeError", as_text),
    wrong("7.7", "True", "should return the names", lambda f, b: bool(verify(f, b))),
    wrong("7.7", "writes", "changes the folder", repairing),
]
