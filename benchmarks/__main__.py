"""python -m benchmarks [topic ...] [--quick] [--out FILE]

Prints one line per case while it runs and one per group at the end of a topic. The exit status is 1 if a case failed
(it raised, or ours and theirs are not the same), not if a goal was missed.
"""

import argparse
import importlib
import pkgutil
import shlex
import sys
import time
from pathlib import Path

import torch

import benchmarks
from benchmarks.timing import Case, geometric_mean, measure
from lora_lab.world.measure import circumstances, write_json

NOT_TOPICS = {"__main__", "timing"}
HEADER = f"{'case':<46}{'ours':>10}{'PEFT':>10}{'ratio':>8}{'median':>8}{'limit':>7}{'memory':>17}  note"


def topics() -> list[str]:
    """The names of the files in this folder that hold cases."""
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in NOT_TOPICS)


def time_text(seconds: float) -> str:
    """Three digits with the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def line(measured: dict) -> str:
    """One row of the table: minima, their ratio, the ratio of medians, the limit, peak memory of ours / PEFT's."""
    if "error" in measured:
        return f"{measured['name']:<46}FAILED: {measured['error']}"
    limit = f"{measured['limit']:.2f}" if "limit" in measured else ""
    peaks = measured.get("peak_bytes")
    memory = f"{peaks['ours'] / 1e6:.4g}/{peaks['theirs'] / 1e6:.4g} MB" if peaks else ""
    difference = measured.get("difference")
    apart = f"differ by {difference:.1e}" if difference is not None else ""
    note = "; ".join(part for part in (apart, measured["note"]) if part)
    return (
        f"{measured['name']:<46}{time_text(measured['ours_s']['min']):>10}{time_text(measured['theirs_s']['min']):>10}"
        f"{measured['ratio']:>7.2f}x{measured['ratio_of_medians']:>7.2f}x{limit:>7}{memory:>17}  {note}"
    ).rstrip()


def summaries(results: list[dict]) -> list[dict]:
    """The geometric mean of each group of each topic, with its goal."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for measured in results:
        if "error" not in measured:
            groups.setdefault((measured["topic"], measured["group"]), []).append(measured)
    found = []
    for (topic, group), members in groups.items():
        summary = {"topic": topic, "group": group, "cases": len(members), "goal": members[0]["goal"]}
        summary["ratio"] = geometric_mean([m["ratio"] for m in members])
        summary["ratio_of_medians"] = geometric_mean([m["ratio_of_medians"] for m in members])
        if all("limit" in m for m in members):
            summary["limit"] = geometric_mean([m["limit"] for m in members])
        found.append(summary)
    return found


def summary_line(summary: dict) -> str:
    name = f"{summary['topic']} {summary['group']}".strip()
    text = f"{name}: {summary['ratio']:.2f}x (medians {summary['ratio_of_medians']:.2f}x) over {summary['cases']} cases"
    if "limit" in summary:
        text += f", limit {summary['limit']:.2f}x"
    if summary["goal"] is not None:
        text += f", goal {summary['goal']:g}x: {'reached' if summary['ratio'] >= summary['goal'] else 'missed'}"
    return text


def run(case: Case, seconds: float) -> dict:
    """Measure a case; one that fails is a result too, and the others go on."""
    try:
        return measure(case, seconds)
    except Exception as error:
        words = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return {"topic": case.topic, "group": case.group, "name": case.name, "error": words}


def surroundings() -> dict:
    """Command, date, versions and hardware."""
    import peft

    found = circumstances()
    found["command"] = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    found["versions"]["peft"] = peft.__version__
    found["hardware"]["threads"] = torch.get_num_threads()
    found["hardware"]["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours beside PEFT's, at real sizes.")
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"of {', '.join(topics())} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few and small cases: under two minutes in all")
    parser.add_argument("--seconds", type=float, help="about how long to repeat each case (default: 4, quick: 0.6)")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file, case by case")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.topics) - set(topics()))
    if unknown:
        parser.error(f"no topic {unknown[0]!r}, choose from {', '.join(topics())}")
    seconds = options.seconds or (0.6 if options.quick else 4.0)

    started, about, results = time.perf_counter(), surroundings(), []
    print(f"torch {about['versions']['torch']}, PEFT {about['versions']['peft']}, {about['hardware']}", flush=True)
    for topic in options.topics or topics():
        print(f"\n{topic}\n{HEADER}", flush=True)
        for case in importlib.import_module(f"benchmarks.{topic}").cases(options.quick):
            results.append(run(case, seconds))
            print(line(results[-1]), flush=True)
            if options.out:
                write_json(options.out, {**about, "means": summaries(results), "cases": results})
        for summary in summaries([r for r in results if r["topic"] == topic]):
            print(summary_line(summary), flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s")
    return int(any("error" in measured for measured in results))


if __name__ == "__main__":
    sys.exit(main())
