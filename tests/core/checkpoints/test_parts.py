"""The parts of a model that parameters belong to."""

from polyphi.checkpoints.parts import part_of


def test_parts_of_globs() -> None:
    assert part_of("decoder.*.lora.vision.*") == ("LoRA for vision",)
    assert part_of("vision.*") == ("vision encoder", "vision projector")
    assert part_of("audio.projector.speech.*") == ("audio projector",)
    assert part_of("decoder.layers.0.mlp.down_proj.weight") == ("language model",)
    assert part_of("objective.*") == ("auxiliary head",)
    assert len(part_of("*")) == 6
