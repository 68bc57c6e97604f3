"""Chromium for the browser test: find it, or let the system's package manager install it if that needs no password."""

import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge", "microsoft-edge")
PLACES = (  # where macOS and Windows keep what is not on PATH
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"%ProgramFiles%\Google\Chrome\Application\chrome.exe",
    r"%ProgramFiles(x86)%\Microsoft\Edge\Application\msedge.exe",
)
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
# {0} is the package, whose name differs too.
MANAGERS = {
    "apt-get": ["apt-get", "install", "-y", "-q", "--no-install-recommends", "{0}"],
    "dnf": ["dnf", "install", "-y", "-q", "{0}"],
    "pacman": ["pacman", "-S", "--noconfirm", "{0}"],
    "apk": ["apk", "add", "{0}"],
    "zypper": ["zypper", "--non-interactive", "install", "{0}"],
}


def find() -> str | None:
    """The path of a browser of Chromium's family, or None. $LORA_LAB_BROWSER names one that lies elsewhere."""
    named = os.environ.get("LORA_LAB_BROWSER")
    if named:
        return named if shutil.which(named) else None
    places = (os.path.expandvars(place) for place in PLACES)
    found = [shutil.which(name) for name in NAMES] + [place for place in places if Path(place).is_file()]
    return next((path for path in found if path and runs(path)), None)


def runs(path: str) -> bool:
    """Whether it starts at all: Ubuntu's `chromium-browser` may be a stub that only says to install something else."""
    if os.name == "nt":
        return True  # there, --version opens a window
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def administrator() -> list[str] | None:
    """What to put before a command to run it as administrator without a password; None when that cannot be done."""
    if os.name == "nt":
        return None
    if os.geteuid() == 0:
        return []
    free = shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], **QUIET).returncode == 0
    return ["sudo", "-n"] if free else None


def install() -> str | None:
    """Install Chromium and return its path; None when that may not or cannot be done. Takes a minute or two."""
    prefix = administrator()
    manager = next((name for name in MANAGERS if shutil.which(name)), None)
    if prefix is None or manager is None:
        return None
    print(f"No Chromium found: installing it with {manager}, for the browser test.", flush=True)
    attempts = [[part.format(package) for part in MANAGERS[manager]] for package in ("chromium", "chromium-browser")]
    if manager == "apt-get":  # on a bare machine it knows no packages until told to look
        attempts += [["apt-get", "update", "-q"], *attempts]
    for command in attempts:
        done = subprocess.run([*prefix, *command], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, **QUIET)
        if done.returncode == 0 and find():
            return find()
    return None
