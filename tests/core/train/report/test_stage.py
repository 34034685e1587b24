"""What reports show of a stage."""

from polyphi.train.report import stage


def test_frozen_tensors_that_changed_are_named() -> None:
    frozen = {"a": ["1", "1"], "b": ["1", "2"]}
    assert stage._frozen({"frozen": frozen})["changed"] == ["b"]
    assert stage._frozen({})["names"] == []
