"""`polyphi pull`: download a model of the Hub, and quantize it once."""

from typing import Annotated, Literal

from cyclopts import Parameter

from polyphi.cli.load_progress import load_progress
from polyphi.cli.options import (
    console,
)


def pull(
    model: Annotated[str, Parameter(help="A hub id: owner/name, or owner/name@revision.")],
    /,
    *,
    quant: Annotated[
        Literal["int8", "int4", "int8-all", "int4-all"] | None,
        Parameter(help="Also quantize the model, and store the result."),
    ] = None,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit; default: main.")] = None,
    verify: Annotated[
        bool,
        Parameter(
            help="Also compare every stored file, also quantized ones, with its hash; damaged files are downloaded or "
            "quantized again.",
        ),
    ] = False,
) -> None:
    """Download a model from the Hugging Face Hub, verify it, and with --quant quantize it once, so that other commands
    start without a connection and without quantizing. The same command resumes, updates and repairs.

    For example:

        polyphi pull microsoft/Phi-4-multimodal-instruct
        polyphi pull microsoft/Phi-4-mini-instruct --quant int4
        polyphi pull microsoft/Phi-4-mini-instruct --quant int4 --verify
    """
    from pathlib import Path

    from polyphi.hub import cache
    from polyphi.hub import pull as pulls
    from polyphi.runtime.files import size_text

    is_path = Path(model.partition("/")[0]).is_dir()  # or else only a hub id is meant
    name = cache.hub_name(model if is_path else f"hf:{model.removeprefix('hf:')}")
    if name is None:
        raise ValueError(
            f"expected a hub id owner/name, found {model!r}; a folder needs no pull (`polyphi export {model} --out "
            "FOLDER --quant int4` quantizes it)"
        )
    repository, named = name
    if revision is not None and named not in (cache.MAIN, revision):
        raise ValueError(f"{model} names the revision {named!r}, and --revision {revision!r}")
    requested = revision or named
    with load_progress() as progress:
        folder = pulls.pull(repository, requested, quant, verify=verify, progress=progress)
    rows = {row.path: row for row in cache.entries()}
    row = rows[folder]
    form = f" in {quant}" if quant else ""
    console.print(
        f"{repository}{form}, commit {row.revision[: cache.SHORT]}: {size_text(row.bytes)} in {folder}",
        highlight=False,
        soft_wrap=True,
    )
    model = repository if requested == cache.MAIN else f"{repository}@{requested}"
    option = f" --quant {quant}" if row.quant else ""
    console.print(f"start it with: polyphi chat {model}{option}", highlight=False, soft_wrap=True)
    for other in rows.values():
        if row.quant and other.repository == repository and other.quant is None:
            console.print(
                f"the download takes {size_text(other.bytes)} and isn't needed for that: polyphi cache "
                f"remove {other.name}",
                highlight=False,
                soft_wrap=True,
            )
