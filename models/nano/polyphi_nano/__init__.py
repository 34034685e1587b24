"""The trained nano model of polyphi's recipe, with held-out samples and its answers to them.

>>> import polyphi
>>> phi = polyphi.load("nano")                 # the folder `model` beside this file
"""

from pathlib import Path

FOLDER = Path(__file__).parent
MEDIA = FOLDER / "media"
"""Images and audio clips of the samples, which may be published: our own, or with a permissive licence."""
