"""Memory of a model with the weights in its kernels' layouts.

>>> model_bytes(model), free_beside(model)
"""

import psutil

from polyphi.devices.memory import free_memory, other_tensors, tensor_bytes
from polyphi.model.multimodal import PhiModel


def model_bytes(model: PhiModel) -> int:
    """Bytes of a model's tensors, without a table of embeddings on a CPU that is only used for lookups: it is mapped
    from its file, and only rows that are read take memory."""
    decoder = model.decoder
    tensors = (*model.parameters(), *model.buffers(), *other_tensors(model))
    sizes = {id(t): tensor_bytes(t) for t in tensors}
    if getattr(decoder, "head", None) is not None and decoder.device.type == "cpu":
        sizes.pop(id(decoder.embed_tokens.weight), None)
    return sum(sizes.values())


def free_beside(model: PhiModel) -> int:
    """Free bytes once all weights of a model are in memory: weights that are mapped from their file take none until
    they are read."""
    device = model.decoder.device
    if device.type != "cpu":
        return free_memory(device)
    process = psutil.Process().memory_info()
    own = process.rss - getattr(process, "shared", 0)
    return max(0, free_memory(device) - max(0, model_bytes(model) - own))
