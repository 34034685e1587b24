"""Writes planned memory and time of the built-in fine-tunes at the published size into docs/finetune_reference.md:
`python tests/plans_page.py`, a minute on one core.

The rows are those that `polyphi plan finetune KIND` takes: 1,000 typical ones, three times.
"""

from collections.abc import Iterator
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


def loads() -> dict[str, Load]:
    """The load of each kind on typical rows."""
    return {kind: typical_load(stage, OwnRows()) for kind, stage in STAGES.items()}


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


if __name__ == "__main__":
    of_kinds = loads()
    page = PAGE.read_text(encoding="utf-8")
    for name, text in (("memory", memory_table(of_kinds)), ("time", time_table(of_kinds))):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page, encoding="utf-8")
