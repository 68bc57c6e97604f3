"""Make requirements.lock from pyproject.toml: exact versions for Linux, macOS and Windows, Python 3.11 and newer.

    python -m lora_lab.course.lock             what the ranges in pyproject.toml newly ask for; other pins stay
    python -m lora_lab.course.lock --upgrade   the newest versions that the ranges allow

The CUDA libraries are left out: a machine without a GPU must not download them, and torch's CUDA build pins its own.
"""

import argparse
import os
import re
import subprocess
import sys

from lora_lab.course import install
from lora_lab.paths import ROOT

LOCK = ROOT / "requirements.lock"
CUDA_LIBRARIES = re.compile(r"(nvidia|cuda)-|triton==")
HEADER = """\
# The exact versions that course.py installs (Linux, macOS and Windows; Python 3.11 and newer). Remake:
#     python -m lora_lab.course.lock [--upgrade]
"""


def compile_pins(upgrade: bool) -> str:
    """The text of the lock file. Raises CalledProcessError when uv finds no solution, Stop without uv."""
    pip = install.pip_settings(install.run([sys.executable, "-m", "pip", "config", "list"])[1])
    program, why = install.find_uv(install.pin("uv", LOCK.read_text(encoding="utf-8")))
    if program is None:
        raise install.Stop(install.explain(why))
    uv = [program, "pip", "compile", "--quiet", *install.uv_switches(pip)]
    options = ["--all-extras", "--universal", "--python-version", "3.11", "--no-annotate", "--no-header"]
    # Folders of wheels are for installing: what lies there is for one machine, a lock is for all.
    env = {k: v for k, v in (os.environ | install.uv_settings(pip, dict(os.environ))).items() if k != "UV_FIND_LINKS"}
    beside = LOCK.with_suffix(".new")
    try:
        if not upgrade:
            beside.write_text(LOCK.read_text(encoding="utf-8"), encoding="utf-8")  # uv keeps the pins it finds there
        subprocess.run([*uv, *options, "pyproject.toml", "-o", beside.name], cwd=ROOT, env=env, check=True)
        lines = beside.read_text(encoding="utf-8").splitlines()
    finally:
        beside.unlink(missing_ok=True)
    return HEADER + "".join(f"{line}\n" for line in lines if not CUDA_LIBRARIES.match(line))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Remake requirements.lock from pyproject.toml.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that the ranges allow")
    options = parser.parse_args(argv)
    try:
        text = compile_pins(options.upgrade)
    except subprocess.CalledProcessError as error:
        print(f"uv found no set of versions (exit code {error.returncode}); {LOCK.name} is as it was.", file=sys.stderr)
        return 2
    except install.Stop as stop:
        print(stop, file=sys.stderr)
        return 2
    before = LOCK.read_text(encoding="utf-8").splitlines()
    beside = LOCK.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, LOCK)
    changes = sorted(set(text.splitlines()) ^ set(before))
    print(f"{LOCK.name}: {len(text.splitlines()) - HEADER.count(chr(10))} pins", *changes, sep="\n    ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
