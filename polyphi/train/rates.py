"""Default learning rates of adapters, by rank: for globs of `trainable` with "auto" in place of a number.

rank     8      16     32      64     256     320
rate   5e-4    4e-4   2.8e-4   2e-4   1e-4   8.9e-5
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from polyphi.model.config import AdapterConfig
from polyphi.train.stage import Stage

REPORT_RATE, REPORT_RANK = 1e-4, 256
"""The report trains its vision adapter of rank 256 at this rate (2.2.2)."""
MAX_RATE = 5e-4
AUTO = "auto"


def default_rate(rank: int) -> float:
    """The default peak learning rate of an adapter. It falls with the square root of the rank: a step of AdamW changes
    each entry of A and B by about the rate, and a product of these has `rank` such terms."""
    rate = min(MAX_RATE, REPORT_RATE * math.sqrt(REPORT_RANK / rank))
    return float(f"{rate:.1e}")


def resolved(stage: Stage, adapters: Mapping[str, AdapterConfig]) -> Stage:
    """The stage with the default rate in place of each "auto". Raises ValueError for an "auto" that isn't for one of
    the model's adapters."""
    rates: dict[str, float] = {}
    for glob, rate in stage.trainable.items():
        if isinstance(rate, str):
            match = re.search(r"\.lora\.([\w-]+)\.", glob)
            if rate != AUTO or match is None or match[1] not in adapters:
                raise ValueError(
                    f"{stage.name}: expected a learning rate for {glob!r}, found {rate!r}; 'auto' is for the adapters "
                    f"of the model ({', '.join(adapters) or 'it has none'}), such as 'decoder.*.lora.NAME.*'"
                )
            rate = default_rate(adapters[match[1]].rank)
        rates[glob] = rate
    return replace(stage, trainable=rates)
