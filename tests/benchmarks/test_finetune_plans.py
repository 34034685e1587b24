"""The planned tables of docs/finetune_reference.md are those of the planner."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "finetune_reference.md"


@pytest.mark.long
def test_the_page_has_the_planned_tables(benchmark: Callable[[str], ModuleType]) -> None:
    module, page = benchmark("finetune_plans"), PAGE.read_text(encoding="utf-8")
    loads = module.loads()
    assert module.memory_table(loads) in page and module.time_table(loads) in page
