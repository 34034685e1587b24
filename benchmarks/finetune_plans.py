"""Planned memory and time of the built-in fine-tunes at the published size: tables of docs/finetune_reference.md.

    python benchmarks/finetune_plans.py            # prints both tables; a minute on one core, no weights
    python benchmarks/finetune_plans.py --docs     # and writes them into the page

The rows are those that `polyphi plan finetune KIND` takes: 1,000 typical ones, three times.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from polyphi.finetuning.stages import STAGES
from polyphi.planning.assumptions import UTILISATION, OwnRows
from polyphi.planning.cost import Switches
from polyphi.planning.devices import DEVICES
from polyphi.planning.fit import fitting, flags
from polyphi.planning.load import Load
from polyphi.runtime.progress import duration
from polyphi.runtime.rendering import table as markdown_table
from polyphi_recipe.graph.finetune_plan import typical_load

PAGE = Path(__file__).parents[1] / "docs" / "finetune_reference.md"
BASES: tuple[Literal["bf16", "int8", "int4"], ...] = ("bf16", "int8", "int4")
CARDS = ("L4", "RTX4090", "RTX5090", "A100", "H100")


def loads(kinds: Sequence[str] = tuple(STAGES)) -> dict[str, Load]:
    """The load of each kind on typical rows."""
    return {kind: typical_load(STAGES[kind], OwnRows()) for kind in kinds}


def memory_rows(of_kinds: dict[str, Load]) -> Iterator[list[str]]:
    """Kind, millions of trainable parameters, and the peak for each base: by default, and with the least memory."""
    for kind, load in of_kinds.items():
        trainable = load.target.size(load.target.trainable)
        cells = []
        for base in BASES:
            settings = Switches(base=base), Switches(1, 1024, "recompute", base=base)
            peaks = (load.fullest(on, 1, False)[0]["peak"] / 1e9 for on in settings)
            cells.append(" / ".join(f"{peak:.1f}" for peak in peaks))
        yield [f"`{kind}`", f"{trainable / 1e6:,.0f} M", *cells]


def time_rows(of_kinds: dict[str, Load]) -> Iterator[list[str]]:
    """Kind, millions of tokens, and the time on each card, with the options that make it fit."""
    for kind, load in of_kinds.items():
        budget, cells = load.target.budget, []
        for card in CARDS:
            before = Switches(base="bf16")
            on = fitting(load, before, 1, card, UTILISATION)
            assert load.fullest(on, 1, False)[0]["peak"] <= DEVICES[card].memory, (kind, card)
            seconds = load.time(on, 1, DEVICES[card], UTILISATION).seconds * budget.steps
            changes = " ".join(flags(on, before))
            cells.append(duration(seconds) + (f", `{changes}`" if changes else ""))
        tokens = budget.steps * budget.batch_tokens
        yield [f"`{kind}`", f"{tokens / 1e6:.2f} M", *cells]


def memory_table(of_kinds: dict[str, Load]) -> str:
    """The table of memory, in GB."""
    head = ("kind", "trainable", *(f"`--base {b}`" if b != "bf16" else "bf16" for b in BASES))
    return markdown_table(head, list(memory_rows(of_kinds)))


def time_table(of_kinds: dict[str, Load]) -> str:
    """The table of times."""
    head = ("kind", "tokens", *(f"{c}, {DEVICES[c].memory / 1e9:.0f} GB" for c in CARDS))
    return markdown_table(head, list(time_rows(of_kinds)))


def main() -> None:
    """Print the tables, and write them between their marks with `--docs`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--docs", action="store_true", help="write the tables into the page")
    parser.add_argument("--only", nargs="+", choices=tuple(STAGES), default=tuple(STAGES))
    arguments = parser.parse_args()
    if arguments.docs and len(arguments.only) < len(STAGES):
        parser.error("--docs writes whole tables: leave out --only")
    of_kinds = loads(arguments.only)
    for name, text in (("memory", memory_table(of_kinds)), ("time", time_table(of_kinds))):
        print(f"\n{text}")
        if arguments.docs:
            begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
            before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
            _, _, after = rest.partition(end)
            PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
