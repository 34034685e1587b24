"""How activations are stored changes the memory, not the results."""

from pathlib import Path

import pytest
import torch

from polyphi.train.memory import activations, blocks
from tests.core.train.small import make_model, make_processor, run, trajectory


@pytest.mark.parametrize("keep", ["recompute", "offload"])
def test_the_numbers_stay_the_same(keep: str, corpora: Path, tmp_path: Path) -> None:
    for name, choice in (("kept", "keep"), ("other", keep)):
        model = make_model(make_processor(), dropout=0.5)
        run(tmp_path / name, corpora, model=model, activations=choice)
        assert not any("forward" in vars(block) for block in blocks(model)), "as it was"
    assert trajectory(tmp_path / "kept") == trajectory(tmp_path / "other")


def test_recomputing_keeps_less() -> None:
    processor = make_processor()
    model = make_model(processor, text=True)
    batch = processor.row([{"role": "user", "content": "one two three red blue green " * 3}])

    def saved_bytes(choice: str) -> int:
        sizes: dict[int, int] = {}
        with (
            activations(model, choice),
            torch.autograd.graph.saved_tensors_hooks(
                lambda t: sizes.__setitem__(t.data_ptr(), t.nbytes) or t, lambda t: t
            ),
        ):
            model(batch).sum().backward()
        return sum(sizes.values())

    model.train()
    assert saved_bytes("recompute") < saved_bytes("keep") / 2
