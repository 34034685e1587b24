"""What a teacher writes for the built-in corpora, with a run that is killed once in each (docs/curation_numbers.md).

    python -m tests.scripted_teacher 8009                         # a stand-in that makes mistakes on purpose
    python -m experiments.curation.teachers http://127.0.0.1:8009/v1#stand-in --out /tmp/taught
    python -m experiments.curation.teachers http://127.0.0.1:8000/v1#phi --out /tmp/nano --rows 24 --requests 400

Prints a table: each synthesis with its requests, those of them that were answered before the run was killed, accepted
rows and refused answers by reason. `DIR/teachers/CORPUS/report.md` has rows of each, and refused answers.
"""

import argparse
import multiprocessing
import time
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path

from polyphi_eval.services.response_cache import whole_lines

ROLES = ("text", "vision", "speech", "judge")
KILLED_AFTER = 8
"""Stored answers of a corpus, at which the first run is killed."""


def build(file: Path, out: Path, corpus: str, rows: int) -> None:
    from polyphi_recipe.graph import find
    from polyphi_recipe.graph.graph import Run

    recipe = find.of(file)
    size = replace(recipe.size, rows=dict.fromkeys(recipe.size.rows, (rows, 4)))
    Run(replace(recipe, size=size), out).build(corpus)


def stored(answers: Path) -> int:
    return len(list(whole_lines(answers))) if answers.exists() else 0


def build_killed_once(file: Path, out: Path, corpus: str, rows: int) -> tuple[float, int]:
    """(seconds of the run that ended, answers that the killed one had stored)."""
    answers = out / "teachers" / corpus / "answers" / "answers.jsonl"
    runs = [
        multiprocessing.get_context("fork").Process(target=build, args=(file, out, corpus, rows))
        for _ in range(2)
    ]
    runs[0].start()
    while runs[0].is_alive() and stored(answers) < KILLED_AFTER:
        time.sleep(0.01)
    runs[0].kill()
    runs[0].join()
    before, start = stored(answers), time.monotonic()
    runs[1].start()
    runs[1].join()
    if runs[1].exitcode:
        raise SystemExit(f"{corpus} wasn't built")
    return time.monotonic() - start, before


def main() -> None:
    # Not above: datatrove's processes import this file, too. Runs are forked with these modules.
    from polyphi.runtime.rendering import table
    from polyphi_recipe.corpora.lookup import find_corpus
    from polyphi_recipe.graph import find, graph, teacher_report, teacher_rows  # noqa: F401

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=40, help="Training rows of each corpus.")
    parser.add_argument("--requests", type=int, help="The budget of all corpora.")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--corpora", nargs="*", default=[], help="Default: all.")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "teachers.toml"
    lines = ['size = "micro"', "[teachers]", f"concurrency = {options.concurrency}"]
    lines += [f'{role} = "{options.address}"' for role in ROLES]
    lines += [f"requests = {options.requests}"] if options.requests else []
    file.write_text("\n".join(lines) + "\n")
    rows = []
    names = options.corpora or teacher_rows.corpora_of(find.of(file))
    parents = {name: {*find_corpus(name).corpora} & {*names} for name in names}
    for corpus in TopologicalSorter(parents).static_order():
        seconds, before = build_killed_once(file, options.out, corpus, options.rows)
        for name, count in teacher_report.counts(options.out, corpus).items():
            reasons = sorted(count.refused.items(), key=lambda item: -item[1])
            refused = "; ".join(f"{n} {reason}" for reason, n in reasons) or "none"
            numbers = [count.requests, count.requests - count.sent, count.accepted]
            rows.append([corpus, name, *numbers, refused, round(count.seconds, 1)])
        print(f"{corpus}: {seconds:.0f} s after a kill at {before} answers", flush=True)
    titles = ("corpus", "synthesis", "requests", "before the kill", "accepted", "refused", "s")
    print(table(titles, rows, "llrrrlr"))


if __name__ == "__main__":
    main()
