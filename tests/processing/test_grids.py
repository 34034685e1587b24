"""Pictures as grids of words."""

from polyphi.processing import grids


def test_words_stand_where_things_have_their_middles() -> None:
    shown = [("red star", 0.5, 0.0, 0.75, 0.25), ("7", 0.0, 0.75, 0.25, 1.0)]
    assert grids.cells(shown, 2, 4) == [["", "", "red star", ""], ["7", "", "", ""]]
    assert grids.cells([], 1, 2) == [["", ""]]


def test_characters_of_a_cell_are_one_word_and_things_are_not() -> None:
    shown = [("o", 0.1, 0.1, 0.2, 0.2), ("n", 0.0, 0.1, 0.1, 0.2), ("b", 0.6, 0, 0.9, 0.2)]
    assert grids.cells(shown, 1, 2) == [["no", "b"]]
    shown = [("red star", 0.0, 0.0, 0.1, 0.1), ("blue heart", 0.1, 0.0, 0.2, 0.1)]
    assert grids.cells(shown, 1, 1) == [["red star blue heart"]]


def test_the_last_thing_lies_over_a_patch() -> None:
    shown = [("red star", 0.0, 0.0, 1.0, 0.6), ("7", 0.5, 0.0, 1.0, 0.5)]
    assert grids.covered(shown, 2) == ["red star", "7", "", ""]


def test_a_box_beyond_the_edge_counts_as_at_the_edge() -> None:
    assert grids.cells([("x", 0.9, 0.9, 1.2, 1.3)], 2, 2) == [["", ""], ["", "x"]]
