"""Native CPU kernels, built with the package where a compiler is; `missing` says why they aren't there, and others
stand in (model/quantize.py).

| | |
|---|---|
| `native` | the library, and torch's threads: kernels run in torch's own pool where that is GNU's OpenMP, as on Linux |
| `linear` | linear layers with weights of 4 and 8 bits |
| `attention` | attention over the block cache, few queries and many |
| `blocks` | norm, gate and rotary positions of a decoder's block |
| `encoder` | attention of the encoders, and what stands between their products of 8 bits |

Nothing of ours is needed here.
"""

from polyphi.kernels.native import PATHS, fits, has, missing, path

__all__ = ["PATHS", "fits", "has", "missing", "path"]
