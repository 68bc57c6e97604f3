"""Start the course, or test it, on a machine that has nothing but Python: makes .venv, fills it, and hands over to it.

    python3 course.py start [--no-browser] [--port N] [--workspace DIR]
    python3 course.py test [--require-browser] [pytest arguments]

Standard library only. It must parse on Python 3.6, so that an old Python gets a sentence and not a syntax error: hence
the quoted annotations. Whatever the reader can mend is a `Stop`: one sentence, exit code 2.

`.venv/lora-lab.json` says "installing" before anything is changed and "ready" after the last check, and every start
compares it with what is there. A half-made or moved .venv is made anew; changed pins are installed.
"""

import argparse
import contextlib
import errno
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP, LOCK = VENV / "lora-lab.json", VENV / "lora-lab.lock"
say = functools.partial(print, flush=True)
GIGABYTES = {"cpu": 2.5, "cuda": 7.0, "update": 0.5}  # free space asked for; 1.7 and 5.5 were taken

# Runs inside .venv: which Python this is, where it thinks it lives, what is installed, and which build of torch.
PROBE = """
import json, os, pathlib, re, sys, sysconfig
place = pathlib.Path(sysconfig.get_path("purelib"))
torch = place / "torch" / "version.py"
cuda = re.search("^cuda.*= *(.*)", torch.read_text(), re.M) if torch.is_file() else None
print(json.dumps({"version": sys.version.split()[0], "prefix": sys.prefix,
    "packages": sorted(name for name in os.listdir(place) if name.endswith(".dist-info")),
    "build": cuda and ("cpu" if cuda[1] == "None" else "cuda")}))
"""


class Stop(Exception):
    """What the reader has to mend, in one sentence. Ends the program with exit code 2."""


def environment() -> "dict":
    """For programs in .venv: packages from elsewhere kept out, .venv's own programs found first."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")}
    path = os.pathsep.join([str(PYTHON.parent), env.get("PATH", "")])
    return dict(env, PATH=path, VIRTUAL_ENV=str(VENV), PIP_USER="0")


def ask(command: "list", timeout: "float") -> "str | None":
    """What a program prints; None when it is missing, fails or hangs."""
    try:
        out = subprocess.check_output(command, env=environment(), stderr=subprocess.DEVNULL, timeout=timeout)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.decode("utf-8", "replace")


def read_stamp() -> "dict":
    with contextlib.suppress(OSError, ValueError):
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
        return stamp if isinstance(stamp, dict) else {}
    return {}


def write_stamp(stamp: "dict") -> "None":
    beside = STAMP.with_suffix(".new")
    beside.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(str(beside), str(STAMP))


def probe() -> "dict | None":
    """Ask .venv's Python about itself. None when it does not run, or does not know that it lives in .venv."""
    info = json.loads((ask([str(PYTHON), "-I", "-c", PROBE], timeout=60) or "null").splitlines()[-1])
    at_home = info and os.path.realpath(info["prefix"]) == os.path.realpath(str(VENV))
    return info if at_home and (VENV / "pyvenv.cfg").is_file() else None


def pins_key() -> "str":
    """Changes when the pins or the description of the package change."""
    files = [ROOT / "requirements.lock", ROOT / "pyproject.toml"]
    if not all(file.is_file() for file in files):
        raise Stop(f"{files[0].name} is not beside course.py in {ROOT}: course.py runs in its own clone only.")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def diagnose(stamp: "dict", info: "dict | None", key: "str", torch: "str", exact: "bool") -> "tuple":
    """("keep", "install" or "remake", why). `torch` is the build wanted; `exact` says that it was asked for by name."""
    if info is None:
        return "remake", "what is there does not work" if VENV.exists() and set(VENV.iterdir()) - {LOCK} else ""
    version = info["version"].split(".")[:2]
    if tuple(map(int, version)) < OLDEST:
        return "remake", f"it holds Python {info['version']}"
    if not stamp:
        return "install", "it was not made by course.py"
    if stamp.get("state") != "ready":
        return "remake", "an earlier install did not finish"
    if stamp.get("folder") != str(VENV):
        return "remake", f"its folder was moved from {stamp.get('folder')}"
    if stamp.get("python", "").split(".")[:2] != version:
        return "remake", f"its Python {stamp.get('python')} became {info['version']}"
    missing = sorted(set(stamp.get("packages", [])) - set(info["packages"]))
    if missing:
        return "install", "it lacks " + ", ".join(name[: -len(".dist-info")] for name in missing[:3])
    if stamp.get("key") != key:
        return "install", "the pinned packages changed"
    if (info["build"] if exact else stamp.get("torch")) != torch:
        return "install", f"torch is to be the {torch} build"
    return "keep", ""


def has_nvidia_gpu() -> "bool":
    return "GPU" in (ask(["nvidia-smi", "-L"], timeout=30) or "")


def choose_torch(option: "str | None", stamp: "dict") -> "tuple":
    """(cpu or cuda, was it asked for by name). Without --torch, a .venv keeps the build it was made with."""
    if option == "cuda" and sys.platform == "darwin":
        raise Stop("--torch cuda: there is no CUDA on macOS. The ordinary build uses the Mac's own GPU.")
    if option in ("cpu", "cuda"):
        return option, True
    if option is None and stamp.get("torch") in ("cpu", "cuda"):
        return stamp["torch"], False
    return ("cuda" if sys.platform != "darwin" and has_nvidia_gpu() else "cpu"), False


def try_lock(file: "object") -> "bool":
    """Take the lock on .venv; False when another process has it. Where files cannot be locked, go on without."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, (BlockingIOError, PermissionError))
    return True


@contextlib.contextmanager
def only_one() -> "object":
    """One installer at a time. The lock passes to the programs we start, and ends when the last of them ends."""
    VENV.mkdir(exist_ok=True)
    with open(str(LOCK), "a") as file:
        if not try_lock(file):
            say("Another course.py is installing here. Waiting until it is done (Ctrl-C to give up).")
            while not try_lock(file):
                time.sleep(1)
        os.set_inheritable(file.fileno(), True)
        yield


def check_disk(kind: "str") -> "None":
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    if free < GIGABYTES[kind]:
        raise Stop(f"Not enough disk space: {GIGABYTES[kind]:.1f} GB are needed in {ROOT}, {free:.1f} GB are free.")


def remake() -> "None":
    """An empty virtual environment; everything in .venv but our own files goes."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        package = "python{}.{}-venv".format(*sys.version_info)
        raise Stop(f"This Python cannot make virtual environments. On Debian and Ubuntu: sudo apt install {package}")
    if os.path.realpath(sys.prefix) == os.path.realpath(str(VENV)):
        raise Stop(f"{VENV} has to be made anew, but this is its own Python. Run course.py with the Python outside it.")
    uv, kept = PYTHON.with_name("uv" + PYTHON.suffix), VENV / ("uv" + PYTHON.suffix)
    inside = [path for path in VENV.iterdir() if path not in (STAMP, LOCK, kept)]
    if inside and not read_stamp() and not (VENV / "pyvenv.cfg").exists():
        raise Stop(f"{VENV} is not a virtual environment: move it away, and run the same command again.")
    write_stamp(dict(read_stamp(), state="installing"))
    if uv.is_file():  # with it and its cache, a half-made .venv heals without a network
        os.replace(str(uv), str(kept))
    for path in inside:
        shutil.rmtree(str(path)) if path.is_dir() and not path.is_symlink() else path.unlink()
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode or probe() is None:
        raise Stop(f"{VENV} could not be made: {done.stdout.decode('utf-8', 'replace')[-400:]}")


def prepare(option: "str | None") -> "None":
    """Make .venv what the pins say. Returns at once when it already is."""
    if VENV.is_file():
        raise Stop(f"{VENV} is a file where the environment's folder belongs: move it away.")
    key = pins_key()
    torch, exact = choose_torch(option, read_stamp())
    if diagnose(read_stamp(), probe(), key, torch, exact)[0] == "keep":
        return
    began = time.monotonic()
    with only_one():
        stamp, info = read_stamp(), probe()  # the one we waited for may have done it all
        action, why = diagnose(stamp, info, key, torch, exact)
        if action == "keep":
            return
        check_disk("update" if action == "install" and info["build"] == torch else torch)
        stamp = dict(stamp, state="installing", torch=torch, folder=str(VENV))
        if action == "remake":
            say(f"[1/3] making {VENV} with Python {sys.version.split()[0]}" + (f" ({why})" if why else ""))
            remake()
        else:
            say(f"[1/3] updating {VENV} ({why})")
        write_stamp(stamp)
        install(torch, exact, info)
        info = probe()
        write_stamp(dict(stamp, state="ready", key=key, python=info["version"], packages=info["packages"]))
    say(f"[3/3] ready after {time.monotonic() - began:.0f} s\n")


def install(torch: "str", exact: "bool", info: "dict | None") -> "None":
    say("[2/3] installing the packages (the first time, a few minutes on a slow line)")
    command = [str(PYTHON), "-I", str(ROOT / "lora_lab" / "course" / "install.py"), "--torch", torch]
    again = bool(info and info["build"] not in (None, torch))  # versions do not tell builds apart
    command += ["--exact"] * exact + ["--gpu"] * has_nvidia_gpu() + ["--torch-again"] * again
    code = subprocess.call(command, env=environment(), close_fds=False)
    if code < 0:
        raise Stop(f"The installer was ended from outside (signal {-code}). Run the same command again.")
    if code:
        sys.exit(code)  # it has said why


def check_python() -> "None":
    if sys.version_info >= OLDEST:
        return
    names = ["python3.13", "python3.12", "python3.11", "python3.14"]
    newer = [name for name in names if ask([name, "-c", "pass"], timeout=20) is not None]
    advice = f"This machine has a newer one: {newer[0]} course.py start" if newer else "Install a newer one."
    raise Stop("Python {}.{} or newer is needed, this is {}. ".format(*OLDEST, sys.version.split()[0]) + advice)


def parse(argv: "list") -> "tuple":
    """(options, what goes on to the program that is started). A mistyped option ends here, before any install."""
    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ours.add_argument("--torch", choices=["cpu", "cuda", "auto"], help="which build of torch (default: what fits)")
    parser = argparse.ArgumentParser(prog="course.py", description="LoRA Lab: an interactive course on LoRA.")
    commands = parser.add_subparsers(dest="command", metavar="start | test")
    start = commands.add_parser("start", parents=[ours], allow_abbrev=False, help="open the course in JupyterLab")
    start.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    start.add_argument("--port", type=int, help="this port of 127.0.0.1 (default: the first free one)")
    start.add_argument("--workspace", metavar="DIR", help="where your copies of the lessons are (default: workspace/)")
    test = commands.add_parser("test", parents=[ours], allow_abbrev=False, help="run every test and every notebook")
    test.add_argument("--require-browser", action="store_true", help="fail when the browser test cannot run")
    test.usage = "course.py test [--torch cpu|cuda|auto] [--require-browser] [pytest arguments]"
    options, unknown = parser.parse_known_args(argv)
    if options.command is None:
        parser.print_help()
        raise Stop("Say `start` or `test`.")
    if unknown and options.command == "start":
        start.error(f"unknown: {' '.join(unknown)}")
    if options.command == "start" and options.port is not None and not 1024 <= options.port <= 65535:
        start.error(f"--port {options.port}: choose one between 1024 and 65535")
    return options, ours.parse_known_args(argv[1:])[1]


def hand_over(command: "list") -> "int":
    """Become that program, so that signals and exit codes are its own. Windows cannot: there it is waited for."""
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(command[0], command, environment())
    process = subprocess.Popen(command, env=environment())
    while process.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the program too: it decides
            process.wait()
    return process.returncode


def main(argv: "list") -> "int":
    """Exit code 2 for what the reader has to mend, 130 after Ctrl-C, else that of the program started."""
    try:
        check_python()
        options, rest = parse(argv)
        prepare(options.torch)
        if options.command == "start":  # from where the reader is: --workspace may be relative
            return hand_over([str(PYTHON), "-P", "-m", "lora_lab.cli", "start", *rest])
        os.chdir(str(ROOT))
        return hand_over([str(PYTHON), "-P", "-m", "lora_lab.course.suite", *rest])
    except Stop as stop:
        print(f"\n{stop}", file=sys.stderr)
        return 2
    except OSError as error:
        advice = "" if error.errno == errno.ENOSPC else " The course needs a folder that it may write to."
        print(f"\n{error.filename or ROOT}: {error.strerror or error}.{advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again: it goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
