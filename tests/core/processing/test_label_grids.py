"""Images as grids of words."""

from polyphi.processing import label_grids


def test_labels_are_in_the_cells_of_their_centres() -> None:
    boxes = [("red star", 0.5, 0.0, 0.75, 0.25), ("7", 0.0, 0.75, 0.25, 1.0)]
    assert label_grids.cells(boxes, 2, 4) == [["", "", "red star", ""], ["7", "", "", ""]]
    assert label_grids.cells([], 1, 2) == [["", ""]]


def test_characters_of_a_cell_are_one_word_and_things_are_not() -> None:
    boxes = [("o", 0.1, 0.1, 0.2, 0.2), ("n", 0.0, 0.1, 0.1, 0.2), ("b", 0.6, 0, 0.9, 0.2)]
    assert label_grids.cells(boxes, 1, 2) == [["no", "b"]]
    boxes = [("red star", 0.0, 0.0, 0.1, 0.1), ("blue heart", 0.1, 0.0, 0.2, 0.1)]
    assert label_grids.cells(boxes, 1, 1) == [["red star blue heart"]]


def test_the_last_box_covers_a_patch() -> None:
    boxes = [("red star", 0.0, 0.0, 1.0, 0.6), ("7", 0.5, 0.0, 1.0, 0.5)]
    assert label_grids.covered(boxes, 2) == ["red star", "7", "", ""]


def test_a_box_beyond_the_edge_counts_as_at_the_edge() -> None:
    assert label_grids.cells([("x", 0.9, 0.9, 1.2, 1.3)], 2, 2) == [["", ""], ["", "x"]]
