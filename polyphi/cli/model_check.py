"""Whether a model has what a command line needs of it, checked before it is loaded, which may take minutes.

>>> check_model("runs/nano/model", adapter="vision", parts=[part])
"""

from collections.abc import Mapping, Sequence

from polyphi.types.parts import Part
from polyphi.types.routing import ROUTES


def check_model(
    model: str,
    quant: str | None = None,
    *,
    modalities: Sequence[str] = (),
    adapter: str | None = "auto",
    adapters: Mapping[str, str] | None = None,
    parts: Sequence[Part] = (),
) -> None:
    """Raise ValueError if a model lacks the adapter or an encoder for the parts, or if one of `adapters` (name ->
    folder) isn't for it. Reads configurations and headers, and of `adapters` the weights; a hub id that isn't
    downloaded yet isn't checked."""
    from polyphi.checkpoints.headers import read_config
    from polyphi.checkpoints.modalities import with_modalities
    from polyphi.checkpoints.peft import adapter_folder, read_peft
    from polyphi.engine.rows import choose_adapter
    from polyphi.hub import pull
    from polyphi.model.lora import is_adapter_name
    from polyphi.types.messages import Message
    from polyphi.types.routing import modalities_of

    folder = pull.stored(model, quant)
    if folder is None:
        return
    config = with_modalities(read_config(folder), modalities, folder)
    for name, lora in (adapters or {}).items():
        if name in config.adapters or not is_adapter_name(name):
            raise ValueError(
                f"--lora {name}={lora}: expected a name of letters, digits, _ and - that the model doesn't have; it "
                f"has {', '.join(config.adapters) or 'no adapters'}"
            )
        read_peft(adapter_folder(lora), config)
    routes = dict(ROUTES)
    for own in config.further.values():
        routes |= own.modality.routes
    encoders = [
        name for name, tower in (("image", config.vision), ("audio", config.audio)) if tower
    ]
    choose_adapter(
        adapter,
        modalities_of([Message.user(*parts)]) if parts else (),
        routes,
        encoders=[*encoders, *config.further],
        adapters=[*config.adapters, *(adapters or {})],
    )
