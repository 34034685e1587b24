"""Templates of Markdown."""

from polyphi.runtime.rendering import environment, table


def test_a_table_has_its_alignment_and_no_value_breaks_a_row() -> None:
    rows = [("one", 1.5), ("a | b\r\nc", None)]
    lines = ["| name | value |", "|---|---:|", "| one | 1.5 |", "| a / b  c | None |"]
    assert table(("name", "value"), rows, "lr").splitlines() == lines
    assert table(("name",), []) == "| name |\n|---|"


def test_values_are_escaped_in_html_alone() -> None:
    templates = environment("polyphi.runtime")
    assert templates.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"
    assert "| <b> |" in table(("x",), [("<b>",)])
