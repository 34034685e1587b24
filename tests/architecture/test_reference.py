"""The pages of reference are complete and current: commands, limits, metrics, messages, variables."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from polyphi.cli import app
from polyphi.types.sampling import SamplingParams
from tests.cli_page import PAGE as CLI
from tests.cli_page import text as cli_text
from tests.escapes import table as escapes_table
from tests.fixtures.command_line import options
from tests.limits_page import PAGE as LIMITS
from tests.limits_page import text as limits_text
from tests.models_page import PAGE as MODELS
from tests.models_page import table as models_table
from tests.plans_page import PAGE as PLANS
from tests.plans_page import loads, memory_table, time_table

ROOT = Path(__file__).parents[2]
GAP = "…"
HEADINGS = re.findall(
    r"(?m)^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
)


@cache
def literals() -> tuple[str, ...]:
    """All texts of the package's code; the values in f-strings are gaps."""
    texts = []
    for file in sorted(ROOT.glob("polyphi*/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else GAP for v in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return tuple(texts)


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    def stands_in_the_code(message: str) -> bool:
        pattern = re.compile(".*".join(map(re.escape, message.split(GAP))), re.DOTALL)
        return any(pattern.search(text) for text in literals())

    assert not [message for message in HEADINGS if not stands_in_the_code(message)]


def test_the_page_of_commands_is_current() -> None:
    assert CLI.read_text(encoding="utf-8") == cli_text(), "run `python tests/cli_page.py`"


def test_the_page_of_limits_is_current() -> None:
    assert LIMITS.read_text(encoding="utf-8") == limits_text(), "run `python tests/limits_page.py`"


def test_the_table_of_memory_is_current() -> None:
    page = MODELS.read_text(encoding="utf-8")
    assert models_table() in page, "run `python tests/models_page.py`"


@pytest.mark.long
def test_the_tables_of_planned_fine_tunes_are_current() -> None:
    page, of_kinds = PLANS.read_text(encoding="utf-8"), loads()
    for table in (memory_table(of_kinds), time_table(of_kinds)):
        assert table in page, "run `python tests/plans_page.py`"


def test_the_table_of_attacks_on_the_sandbox_is_current() -> None:
    page = (ROOT / "docs/sandbox.md").read_text(encoding="utf-8")
    assert escapes_table() in page, "`python -m tests.escapes` prints it"


def test_our_options_beside_those_of_other_programs_exist() -> None:
    page = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    _, serving, sampling, _ = page.split("\n## ")
    for cell in our_cells(serving):
        assert set(re.findall("`(--[a-z-]+)", cell)) <= options(app["serve"]).keys(), cell
    parameters = {*SamplingParams.__dataclass_fields__, "response_format"}
    for cell in our_cells(sampling):
        assert set(re.findall("`([a-z_]+)`", cell.partition(";")[0])) <= parameters, cell


def our_cells(section: str) -> list[str]:
    """The second cells of the rows of a table."""
    return re.findall(r"(?m)^\|[^|]+\|([^|]+)\|", section)


def test_the_page_of_metrics_has_every_metric_and_no_other() -> None:
    from polyphi.engine.engine import Counters
    from polyphi.serve.answer.metrics import Load, ServerMetrics

    counters = Counters(**dict.fromkeys(Counters.__dataclass_fields__, 1))
    metrics = ServerMetrics("tiny", lambda: Load(counters, 0, 0), vllm_names=True)
    families = {f.name + "_total" * (f.type == "counter"): f.type for f in metrics.collect()}
    ours = {name: type_ for name, type_ in families.items() if name.startswith("polyphi:")}
    rows = re.findall(
        r"(?m)^\| (`polyphi:.+`) \| (\w+) \| .+ \|( yes)? \|$",
        (ROOT / "docs/metrics.md").read_text(encoding="utf-8"),
    )
    listed = {name: row for row in rows for name in re.findall(r"`(.+?)`", row[0])}
    assert {name: row[1] for name, row in listed.items()} == ours
    assert {name for name, row in listed.items() if row[2]} == {
        name.replace("vllm:", "polyphi:") for name in families if name.startswith("vllm:")
    }


def test_the_page_of_files_has_every_environment_variable() -> None:
    page = (ROOT / "docs/files.md").read_text(encoding="utf-8")
    read = {text for text in literals() if re.fullmatch(r"POLYPHI_[A-Z_]*[A-Z]", text)}
    assert read - set(re.findall(r"`(POLYPHI_\w+)`", page)) == set()
