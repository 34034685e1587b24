"""Native CPU kernels, built with the package if there is a compiler; `missing` returns the reason if they aren't
available, and torch's kernels replace them.

| | |
|---|---|
| `native` | the library and its thread pool: kernels run in torch's pool if that is GNU's OpenMP, as on Linux |
| `linear` | linear layers with weights of 4 and 8 bits |
| `bf16` | linear layers with bfloat16 weights |
| `attention` | attention over the block cache, few queries and many |
| `blocks` | RMS norm, SwiGLU, rotary embedding and GELU, with gradients |
| `encoder` | attention of the encoders, and the operations between their int8 products |
| `training_attention` | attention with gradients |
| `cross_entropy` | cross-entropy of logits, and its gradient in place |

This package imports no other one of polyphi.
"""

from polyphi.kernels.native import PATHS, fits, has, missing, path, plain

__all__ = ["PATHS", "fits", "has", "missing", "path", "plain"]
