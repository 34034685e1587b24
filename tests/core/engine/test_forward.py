"""The decoder's forward in serving equals the reference."""

import torch

from polyphi.batch import pack, row
from polyphi.engine.forward import forward
from polyphi.model.multimodal import PhiModel


def test_requested_positions_equal_those_of_the_whole_forward(tiny_config):
    model = PhiModel(tiny_config).eval()
    model.initialise(seed=0)
    for name in tiny_config.adapters:
        for _, pair in model.adapter_pairs(name):
            torch.nn.init.normal_(pair.a, std=0.1)
            torch.nn.init.normal_(pair.b, std=0.1)
    names = (None, *tiny_config.adapters)
    batch = pack([row(range(5, 5 + n), adapter=a) for n, a in zip((4, 3, 6), names, strict=True)])
    with torch.inference_mode():
        x = model.embed(batch)
        whole = model.decoder(x, batch)
        for indices in ([12], [3, 6, 12], [0, 9]):
            some = forward(model.decoder, x, batch, indices=torch.tensor(indices))
            torch.testing.assert_close(some, whole[indices])
