"""lora-lab: the learner's and the instructor's commands.

    lora-lab start                 lay out the workspace and open JupyterLab on it
    lora-lab check 1               run a notebook in a fresh kernel and report its exercises
    lora-lab hint 1.2              the next hint; `hint 1.2 3` shows the first three
    lora-lab solution 1.2          the solution, after a question
    lora-lab progress              what you have passed
    lora-lab doctor                what works on this machine, and what to do about what does not
    lora-lab release DIR           an nbgrader course with hidden tests

Exit codes: 0 all well, 1 a check failed, 2 something is wrong with the command or the machine (a sentence says what).
"""

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from lora_lab.course.files import ENVIRONMENT_VARIABLE, CourseError, default_workspace, find_workspace

OK, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # a console without ✓ must not end the program
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help(sys.stderr)
        return UNUSABLE
    try:
        return options.run(options)
    except CourseError as error:
        print(f"lora-lab: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED


def start(options: argparse.Namespace) -> int:
    """Lay out the workspace and serve it until Ctrl-C."""
    from lora_lab.course.serve import serve
    from lora_lab.course.workspace import lay_out

    layout = lay_out(options.workspace or default_workspace())
    print(f"Your workspace: {layout.workspace}")
    for sentence in layout.sentences():
        print(sentence)
    serve(layout.workspace, options.port, browser=not options.no_browser)
    return OK


def check(options: argparse.Namespace) -> int:
    """Run a learner's notebook and report its exercises."""
    from lora_lab.course.run_checks import CELL_SECONDS, find_notebook, run

    path = find_notebook(options.notebook, _existing_workspace(options))
    watched = sys.stderr.isatty()

    def tell(text: str) -> None:
        if watched:
            print(f"\r{path.name}: {text} ...\033[K", end="", file=sys.stderr, flush=True)

    report = run(path, options.cell_seconds or CELL_SECONDS, tell)
    if watched:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(report)
    return OK if report.passed else FAILED


def hint(options: argparse.Namespace) -> int:
    """Print one more hint, or all up to a level."""
    from lora_lab.course.hints import hint_text

    print(hint_text(options.exercise, options.level, _existing_workspace(options)))
    return OK


def solution(options: argparse.Namespace) -> int:
    """Print a solution once the reader has said yes."""
    from lora_lab.course.notebooks import solution as solution_source

    source = solution_source(options.exercise)
    if not options.yes:
        print(f"This shows the whole solution of exercise {options.exercise}.")
        print(f"If a hint would do: lora-lab hint {options.exercise}")
        try:
            answer = input("Show it? [y/N] ")
        except EOFError:
            raise CourseError("Nobody is there to answer; add --yes to see the solution.") from None
        if answer.strip().lower() not in ("y", "yes"):
            return OK
    print(source)
    return OK


def progress(options: argparse.Namespace) -> int:
    """Print the map of the course."""
    from lora_lab.course.progress import table

    workspace = _existing_workspace(options)
    print(table(workspace))
    if workspace is None:
        print("No workspace yet, so nothing is recorded: lora-lab start makes one.")
    return OK


def doctor(options: argparse.Namespace) -> int:
    """Print what works and what does not; fails if something the course needs is broken."""
    from lora_lab.course.doctor import doctor as examine

    report = examine(brief=options.brief)
    print(report)
    return OK if report.usable else FAILED


def release(options: argparse.Namespace) -> int:
    """Write an nbgrader course."""
    from lora_lab.course.release import release as write_course

    for sentence in write_course(options.folder, options.seed):
        print(sentence)
    return OK


def _existing_workspace(options: argparse.Namespace) -> Path | None:
    """The workspace that is meant: the one named, the one we stand in, or the default one if it was laid out."""
    if options.workspace:
        folder = options.workspace.expanduser().absolute()
        if not folder.is_dir():
            raise CourseError(
                f"There is no folder {folder}. To lay out a workspace there: lora-lab start --workspace {folder}"
            )
        return folder
    here = find_workspace()
    if here is None and default_workspace().is_dir():
        return default_workspace()
    return here


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lora-lab", description="An interactive course on LoRA.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(run=None)

    def command(name, run, text, workspace=True):
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run, workspace=None)
        if workspace:
            added.add_argument(
                "--workspace",
                type=Path,
                metavar="DIR",
                help=f"your folder (default: ${ENVIRONMENT_VARIABLE}, or workspace/)",
            )
        return added

    added = command("start", start, "lay out your workspace and open JupyterLab on it")
    added.add_argument("--port", type=_port, metavar="N", help="default: the first free one from 8888")
    added.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    added = command("check", check, "run a notebook in a fresh kernel and report its exercises")
    added.add_argument("notebook", metavar="NOTEBOOK", help="a path, or a lesson's number")
    added.add_argument("--cell-seconds", type=_positive, metavar="S", help="limit for one cell (default: 300)")
    added = command("hint", hint, "show the next hint for an exercise")
    added.add_argument("exercise", metavar="EXERCISE", help="for example 1.2")
    added.add_argument("level", type=int, nargs="?", metavar="N", help="show hints 1 to N")
    added = command("solution", solution, "show the solution of an exercise", workspace=False)
    added.add_argument("exercise", metavar="EXERCISE", help="for example 1.2")
    added.add_argument("--yes", action="store_true", help="do not ask")
    command("progress", progress, "show what you have passed")
    added = command(
        "doctor", doctor, "say what works on this machine, and what to do about what does not", workspace=False
    )
    added.add_argument("--brief", action="store_true", help="names and states only")
    added = command("release", release, "write an nbgrader course with hidden tests", workspace=False)
    added.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    added.add_argument("--seed", type=int, metavar="N", help="makes the hidden tests repeatable (default: random)")
    return parser


def _port(text: str) -> int:
    number = int(text)
    if not 1024 <= number <= 65535:  # course.py, which cannot import this, refuses the same before it installs
        raise argparse.ArgumentTypeError(f"{number}: choose one between 1024 and 65535")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
