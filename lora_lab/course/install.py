"""Install the pinned packages into .venv: `course.py` runs this file with .venv's own Python. Standard library only.

uv does the work, in seconds; pip does it where uv cannot be had. uv is told what the user told pip: folders of wheels,
indexes, certificates, proxies. torch comes as the build that was asked for, from the first of these that has it:

1. the user's own folders and indexes (a wheel named torch-...+cpu),
2. the index of torch's own builds, which uv knows (`--torch-backend`),
3. the ordinary registry: the CPU build on macOS and Windows, the CUDA build on Linux, which runs without a GPU too
   but is several gigabytes. It is taken for the CPU build only where nobody asked for the CPU build by name.
"""

import argparse
import ast
import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
VENV = Path(sys.prefix)
CUDA = "cu130"  # fetched where a CUDA build is asked for and there is no driver to ask which one
TORCH = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available()]))"

# What a failed install printed -> what to tell the reader. The first match counts.
DISK = "The disk is full. Free some space and run the same command again."
FORBIDDEN = "A folder may not be written to. The lines above say which one."
CERTIFICATE = (
    "A secure connection was refused, its certificate is not known. Behind a company's proxy, set pip's `cert`."
)
NETWORK = (
    "No network, and not everything is in the cache. Connect, and run the same command again: it goes on from here."
)
MISSING = "A pinned package does not exist for this Python and this machine. The lines above say which one."
UNKNOWN = "The packages could not be installed. The lines above say why."
REASONS = {
    r"no space left|os error 28\b|errno 28\b|os error 112\b|disk quota": DISK,
    r"permission denied|os error 13\b|errno 13\b|read-only file system": FORBIDDEN,
    r"certificate|unknownissuer": CERTIFICATE,
    r"dns error|error sending request|name resolution|name or service not known|getaddrinfo|timed out"
    r"|failed to establish a new connection|connection (refused|reset|broken)|network is unreachable"
    r"|network was disabled|max retries exceeded|client error \(connect\)": NETWORK,
    r"no wheels? with a matching|no matching distribution|no solution found|could not find a version": MISSING,
}


class Stop(Exception):
    """What the reader has to mend, in one sentence. Ends the program with exit code 2."""


class Source(NamedTuple):
    """One way to get torch: what to require, and what to tell uv beside it."""

    title: str
    torch: str
    arguments: tuple[str, ...] = ()


def run(command: list, env: dict[str, str] | None = None, show: bool = False) -> tuple[int, str]:
    """Exit code and what was printed ("" if shown). The lock on .venv goes along: it ends with the last of us."""
    streams = {} if show else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    parts = [str(part) for part in command]
    try:
        done = subprocess.run(parts, env=env, stdin=subprocess.DEVNULL, close_fds=False, **streams)
    except OSError as error:  # half a program, or one for another machine
        return 1, str(error)
    return done.returncode, "" if show else done.stdout.decode("utf-8", "replace")


def explain(text: str) -> str:
    """The sentence that fits what an installer printed."""
    fits = (sentence for pattern, sentence in REASONS.items() if re.search(pattern, text, re.IGNORECASE))
    return next(fits, UNKNOWN)


def pip_settings(listing: str) -> dict[str, str]:
    """Read `pip config list`: the environment wins over [install], which wins over [global]."""
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for name, value in re.findall(rf"^{re.escape(section)}\.([\w-]+)=(.*)$", listing, re.MULTILINE):
            with contextlib.suppress(ValueError, SyntaxError):
                settings[name.replace("_", "-")] = str(ast.literal_eval(value.strip()))
    return settings


def uv_settings(pip: dict[str, str], env: dict[str, str]) -> dict[str, str]:
    """The variables that make uv look where pip looks. What the user already told uv itself stays."""
    uv = {}
    words = {name: pip.get(name, "").split() for name in ("find-links", "extra-index-url", "trusted-host")}
    if words["find-links"]:
        uv["UV_FIND_LINKS"] = ",".join(os.path.expanduser(place) for place in words["find-links"])
    if pip.get("index-url"):
        uv["UV_DEFAULT_INDEX"] = pip["index-url"]
    if words["extra-index-url"]:
        uv["UV_INDEX"] = " ".join(words["extra-index-url"])
        uv["UV_INDEX_STRATEGY"] = (
            "unsafe-best-match"  # as pip: the best of all indexes, not the first that knows a name
        )
    if words["trusted-host"]:
        uv["UV_INSECURE_HOST"] = " ".join(words["trusted-host"])
    for theirs, names in {
        "cert": ["SSL_CERT_FILE"],
        "client-cert": ["SSL_CLIENT_CERT"],
        "default-timeout": ["UV_HTTP_TIMEOUT"],
        "timeout": ["UV_HTTP_TIMEOUT"],
        "proxy": ["HTTP_PROXY", "HTTPS_PROXY"],
    }.items():
        uv |= {name: pip[theirs] for name in names if pip.get(theirs)}
    return {name: value for name, value in uv.items() if not env.get(name) and not env.get(name.lower())}


def uv_switches(pip: dict[str, str]) -> list[str]:
    """What uv takes only as an argument."""
    return ["--no-index"] if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else []


def pin(name: str, pins: str) -> str:
    """The pinned version of one package."""
    found = re.search(rf"^{re.escape(name)}==(\S+)", pins, re.MULTILINE)
    if not found:
        raise Stop(f"requirements.lock does not pin {name}. `git checkout requirements.lock` brings the file back.")
    return found.group(1)


def requirements(pins: str, torch: str) -> str:
    """The pins with another line for torch, and without uv, which installs them."""
    lines = [line for line in pins.splitlines() if not re.match(r"uv==|#", line)]
    return "\n".join(torch if line.startswith("torch==") else line for line in lines) + "\n"


def sources(build: str, exact: bool, gpu: bool, version: str, system: str = sys.platform) -> list[Source]:
    """Where to look for torch, in order. `exact`: that build was asked for by name, so no other will do."""
    plain = Source("the registry's build", f"torch=={version}")
    if build == "cuda":
        cuda = f"torch=={version},!={version}+cpu"  # a +cpu wheel counts as newer than the plain version
        own = Source("torch's CUDA build", cuda, ("--torch-backend", "auto" if gpu else CUDA))
        return [own, Source("the registry's build", cuda)] if system == "linux" else [own]
    own = Source("the CPU build at hand", f"torch=={version}+cpu")
    if system == "darwin":
        return [plain]
    if system == "win32":
        return [own, plain]
    large = (
        []
        if exact
        else [Source("the registry's CUDA build (several gigabytes: the CPU build is out of reach)", plain.torch)]
    )
    return [own, Source("torch's CPU build", plain.torch, ("--torch-backend", "cpu")), *large]


def find_uv(version: str) -> tuple[str | None, str]:
    """uv in .venv (or kept there from an earlier one), else from pip, else any other; or None, and why pip failed."""
    own = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    for path in (own, VENV / own.name):
        if path.is_file() and f" {version}" in run([path, "--version"])[1]:
            return str(path), ""
    if importlib.util.find_spec("pip") is None:
        run([sys.executable, "-m", "ensurepip"])
    code, text = run([sys.executable, "-m", "pip", "install", "-q", "--retries", "2", f"uv=={version}"])
    return (str(own), "") if code == 0 else (shutil.which("uv"), text)


def choose(command: list, env: dict[str, str], places: list[Source], pins: str, file: Path) -> Source:
    """The first source from which everything can be had; `file` then asks for it. Nothing is installed yet.

    Without a network, whatever uv keeps from earlier installs has to do. Raises Stop when nothing does.
    """

    def try_(place: Source, *switches: str) -> str:
        file.write_text(requirements(pins, place.torch), encoding="utf-8")
        code, text = run([*command, "--dry-run", "-r", file, *place.arguments, *switches], env)
        return text if code else ""

    failed: dict[Source, str] = {}
    for place in places:
        failed[place] = try_(place)
        if not failed[place]:
            return place
        if explain(failed[place]) == NETWORK and not place.arguments:
            break  # the places that follow need the same network
    reasons = {explain(text) for text in failed.values()}
    if NETWORK in reasons:
        for place in places:
            if not try_(place, "--offline"):
                return place._replace(arguments=(*place.arguments, "--offline"))
    print(*failed.values(), sep="\n", file=sys.stderr)
    if reasons == {MISSING, NETWORK}:
        raise Stop(
            "That build of torch is out of reach: torch's own index is, and yours do not have it. Try --torch auto."
        )
    raise Stop(explain("".join(failed.values())))


def install_with_uv(uv: str, pip: dict[str, str], options: argparse.Namespace, pins: str) -> None:
    """The pinned packages, then the course itself as an editable package."""
    env = os.environ | uv_settings(pip, dict(os.environ))
    command = [uv, "pip", "install", "--python", sys.executable, *uv_switches(pip)]
    places = sources(options.torch, options.exact, options.gpu, pin("torch", pins))
    file = VENV / "requirements.txt"
    source = choose(command, env, places, pins, file)
    print(f"      torch: {source.title}", flush=True)
    again = (
        ["--reinstall-package", "torch"] if options.torch_again else []
    )  # the version alone does not tell builds apart
    install = [*command, "-r", file, *source.arguments, *again]
    if run(install, env, show=True)[0]:  # a dropped connection deserves a second try; this one we listen to
        code, text = run(install, env)
        if code:
            print(text, file=sys.stderr)
            raise Stop(explain(text))
    finish([*command, "--no-deps", "--no-build-isolation", "--offline", "-e", ROOT], env)


def install_with_pip(options: argparse.Namespace, pins: str) -> None:
    """The same without uv: minutes instead of seconds; torch only as the user's own folders and indexes have it."""
    if options.torch == "cpu" and options.exact and sys.platform == "linux":
        torch = f"torch=={pin('torch', pins)}+cpu"
    else:
        torch = f"torch=={pin('torch', pins)}"
    file = VENV / "requirements.txt"
    file.write_text(requirements(pins, torch), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install"]
    code, _ = run([*command, "-r", file], show=True)
    if code:
        raise Stop("pip could not install the packages. The lines above say why.")
    finish([*command, "-q", "--no-deps", "--no-build-isolation", "-e", ROOT], None)


def finish(command: list, env: dict[str, str] | None) -> None:
    """Run the last step, the course itself. Raises Stop when it fails."""
    code, text = run(command, env)
    if code:
        print(text, file=sys.stderr)
        raise Stop(f"The packages are installed, but the course itself (lora_lab in {ROOT}) is not. {explain(text)}")


def check_torch(build: str, exact: bool) -> str:
    """Import the torch that was installed and say what it is. Raises Stop when it fails or is another build."""
    code, text = run([sys.executable, "-I", "-c", TORCH])
    if code:
        last = text.strip().splitlines()[-1] if text.strip() else f"exit code {code}"
        hint = " On Windows, install Microsoft's Visual C++ redistributable." if sys.platform == "win32" else ""
        raise Stop(f"torch is installed but cannot be imported: {last}.{hint}")
    version, cuda, usable = json.loads(text.strip().splitlines()[-1])
    if exact and (build == "cuda") != (cuda is not None):
        raise Stop(
            f"--torch {build} was asked for, but torch {version} is what came. --torch auto takes what there is."
        )
    seen = f"CUDA {cuda}, {'the GPU works' if usable else 'no usable GPU'}" if cuda else "CPU build"
    return f"torch {version} ({seen})"


def main() -> int:
    """Exit code 0 when everything is installed and torch imports, 2 with a sentence otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--exact", action="store_true", help="no other build of torch will do")
    parser.add_argument("--gpu", action="store_true", help="this machine has an NVIDIA GPU")
    parser.add_argument("--torch-again", action="store_true", help="install torch even if that version is there")
    options = parser.parse_args()
    try:
        pins = (ROOT / "requirements.lock").read_text(encoding="utf-8")
        pip = pip_settings(run([sys.executable, "-m", "pip", "config", "list"])[1])
        uv, why = find_uv(pin("uv", pins))
        if uv:
            print(f"      {len(requirements(pins, 'torch').splitlines())} pins, installed by uv", flush=True)
            install_with_uv(uv, pip, options, pins)
        elif explain(why) == NETWORK:
            raise Stop(NETWORK)
        else:
            print("      uv is not to be had here: pip installs, which takes minutes", flush=True)
            install_with_pip(options, pins)
        began = time.monotonic()
        print(
            f"      {check_torch(options.torch, options.exact)}, imported in {time.monotonic() - began:.0f} s",
            flush=True,
        )
    except Stop as stop:
        print(f"\n{stop}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # course.py says the sentence
