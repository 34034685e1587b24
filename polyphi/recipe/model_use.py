"""The section of a model card on how to use the model: commands of polyphi, and code for transformers and PEFT.

>>> use("owner/name", "native", ["vision", "speech"])
"""

from collections.abc import Sequence

from polyphi.checkpoints.names import PUBLISHED_ADAPTERS
from polyphi_eval.report.rendering import environment

TEMPLATES = environment("polyphi.recipe")


def use(name: str, layout: str, adapters: Sequence[str], *, quantized: bool = False) -> str:
    """The section's text. `name` is the model's repository, or a word for its folder."""
    own = [adapter for adapter in adapters if adapter not in PUBLISHED_ADAPTERS]
    section = TEMPLATES.get_template("model_use.md").render(
        name=name,
        layout=layout,
        adapters=adapters,
        own=own,
        option=f"--adapter {own[0]} " if own else "",
        other_layout=quantized or layout == "original",
        model_class="AutoModelForCausalLM" if layout == "mini" else "Phi4MultimodalForCausalLM",
    )
    return section.strip()
