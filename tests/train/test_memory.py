"""What becomes of activations changes memory, not numbers."""

from pathlib import Path

import pytest
import torch
from train.small import make_model, make_processor, run, told

from polyphi.train.memory import activations, blocks


@pytest.mark.parametrize("keep", ["recompute", "offload"])
def test_the_numbers_stay_the_same(keep: str, corpora: Path, tmp_path: Path) -> None:
    for name, choice in (("kept", "keep"), ("other", keep)):
        model = make_model(make_processor(), dropout=0.5)
        run(tmp_path / name, corpora, model=model, activations=choice)
        assert not any("forward" in vars(block) for block in blocks(model)), "as it was"
    assert told(tmp_path / "kept") == told(tmp_path / "other")


def test_recomputing_keeps_less() -> None:
    processor = make_processor()
    model = make_model(processor, text=True)
    batch = processor.row([{"role": "user", "content": "one two three red blue green " * 3}])

    def kept(choice: str) -> int:
        seen: dict[int, int] = {}
        with (
            activations(model, choice),
            torch.autograd.graph.saved_tensors_hooks(
                lambda t: seen.__setitem__(t.data_ptr(), t.nbytes) or t, lambda t: t
            ),
        ):
            model(batch).sum().backward()
        return sum(seen.values())

    model.train()
    assert kept("recompute") < kept("keep") / 2
