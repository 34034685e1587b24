"""Order of an image's tokens and routing of audio clips."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyphi.model.projector import AudioProjector, VisionProjector
from polyphi.types.inputs.audio import AudioLayout
from polyphi.types.inputs.image import ImageLayout


def transparent(projector: VisionProjector) -> VisionProjector:
    """The projector with identities for both linears; GELU stays."""
    projector.up, projector.down = nn.Identity(), nn.Identity()
    with torch.no_grad():
        projector.global_separator.fill_(1000)
        projector.row_separator.fill_(2000)
    return projector


def show(
    projector: VisionProjector, features: torch.Tensor, layouts: list[ImageLayout]
) -> list[float]:
    with torch.no_grad():
        return projector(features, layouts).flatten().tolist()


def test_the_order_of_the_docstring():
    """Ones are the global view's cells, tens crop 1's, hundreds crop 2's; 20 are added, because GELU doesn't change
    large numbers."""
    cells = torch.tensor([[1, 2, 3, 4], [10, 20, 30, 40], [100, 200, 300, 400]]).float() + 20
    patches = cells.view(3, 2, 1, 2, 1, 1).expand(3, 2, 2, 2, 2, 1).reshape(3, 16, 1)
    tokens = show(transparent(VisionProjector(1, 1, 2)), patches, [ImageLayout(1, 2, 2, 3)])
    picture = [10, 20, 100, "|", 30, 40, 300, "|"]
    thumbnail = [1, 2, "|", 3, 4, "|"]
    marks = {"|": 2000, "#": 1000}
    assert tokens == [marks.get(x) or x + 20 for x in [*picture, "#", *thumbnail]]


def test_pooling_averages_two_by_two():
    patches = torch.arange(16).float().view(1, 16, 1).expand(2, 16, 1) + 20
    tokens = show(transparent(VisionProjector(1, 1, 2)), patches, [ImageLayout(1, 1, 1, 1)])
    assert tokens[0] == pytest.approx(20 + (0 + 1 + 4 + 5) / 4)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(1, 3)] * 2, *[st.floats(0, 0.99)] * 2), min_size=1, max_size=4)
)
def test_as_many_tokens_as_the_formula(pictures):
    cells = 3
    layouts = [
        ImageLayout(r, c, 1 + int(high * r * cells), 1 + int(wide * c * cells))
        for r, c, high, wide in pictures
    ]
    patches = torch.zeros(sum(layout.crops for layout in layouts), 4 * cells**2, 5)
    projector = VisionProjector(5, 7, cells)
    assert projector(patches, layouts).shape == (sum(layout.tokens(cells) for layout in layouts), 7)


def test_crops_and_layouts_that_differ():
    with pytest.raises(ValueError, match=r"need 3 crops .* has 2"):
        VisionProjector(5, 7, 2)(torch.zeros(2, 16, 5), [ImageLayout(1, 2, 2, 4)])


def test_clips_take_the_projector_they_name():
    torch.manual_seed(0)
    projector = AudioProjector(4, 6)
    clips = [
        AudioLayout(8, "speech"),
        AudioLayout(20, "vision"),
        AudioLayout(9, "speech"),
        AudioLayout(1, "vision"),
    ]
    features = torch.randn(sum(clip.tokens for clip in clips), 4)
    parts = features.split([clip.tokens for clip in clips])
    expected = torch.cat(
        [getattr(projector, c.branch)(part) for c, part in zip(clips, parts, strict=True)]
    )
    torch.testing.assert_close(projector(features, clips), expected)
    assert torch.equal(projector(parts[0], clips[:1]), projector.speech(parts[0]))


def test_an_unknown_branch():
    with pytest.raises(ValueError, match="found 'text'"):
        AudioProjector(4, 6)(torch.zeros(1, 4), [AudioLayout(8, "text")])
