"""Voices of text-to-speech engines by split, and a check of texts that they can read."""

import re
from collections.abc import Mapping
from dataclasses import replace
from random import Random

from polyphi_eval.services.speech_synthesis import Voice

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "train": (
        *("m1", "m2", "m3", "m5", "m6", "m7", "m8", "f1", "f2", "f4", "f5"),
        *(
            "Alex",
            "Alicia",
            "Andrea",
            "Andy",
            "Annie",
            "Denis",
            "Gene",
            "Hugo",
            "Jacky",
            "Lee",
            "Marco",
            "Michael",
        ),
        *("adam", "caleb", "ed", "john", "linda", "max", "pablo", "paul", "rob", "steph", "victor"),
        *("klatt", "klatt2", "klatt3", "klatt4"),
    ),
    "test": ("m4", "f3", "belinda", "Mike"),
}
"""espeak-ng's variants of each split: different formants, voicing and pitch with the same pronunciation."""
ACCENTS: Mapping[str, tuple[str, ...]] = {
    "en": ("en-us", "en-us", "gmw/en", "en-gb-x-rp", "en-gb-scotland"),
    "es": ("es", "es-419"),
    "pt": ("pt-br", "pt-br", "roa/pt"),
}
"""Language -> espeak-ng's voices for training ("gmw/en" is British, "roa/pt" European); the test split uses the
standard one."""
SPARE_FLITE = ("kal16", "awb", "rms")
"""flite's other voices: used in training only if espeak-ng is not installed. `slt` is never used in training."""


def varied(voice: Voice, rng: Random) -> Voice:
    """Return a voice of espeak-ng or flite with another speed and pitch, for training."""
    return replace(voice, speed=rng.uniform(0.75, 1.3), pitch=rng.randint(25, 75))


_UNFIT = {
    "an address": r"https?:|@",
    "a table": r"\|",
    "code": r"[<>{}\[\]\\=_#]",
    "several lines": r"\n",
    "marks that are not read aloud": r"[/*&]",
    "a long number": r"\d{4,}",
}
"""Reason why a text can't be read -> its pattern."""


def unfit(text: str, longest: int = 100) -> str:
    """Return why a text can't be read aloud, or "" for one line of ordinary words and numbers that is not too long."""
    if not any(c.isalnum() for c in text):
        return "nothing to say"
    reason = next((why for why, pattern in _UNFIT.items() if re.search(pattern, text)), "")
    return reason or ("too long" if len(text) > longest else "")
