"""What the server doesn't do is refused with a reason."""

import polyphi.serve.app  # noqa: F401 (all schemas)
from polyphi.serve.http import refusals
from polyphi.serve.http.fields import Fields


def schemas(parent: type[Fields] = Fields) -> list[type[Fields]]:
    return [parent, *(one for child in parent.__subclasses__() for one in schemas(child))]


def test_each_refused_field_has_its_reason_and_no_other_has() -> None:
    assert set().union(*(schema.refused for schema in schemas())) == set(refusals.FIELDS)
