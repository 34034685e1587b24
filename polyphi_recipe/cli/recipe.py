"""`polyphi recipe`: write a recipe file, and print the schema of these files."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from polyphi.cli.application import application
from polyphi.cli.options import console

app = application("recipe", "Write a recipe file, or print the JSON schema of recipe files.")


@app.command
def new(
    file: Annotated[Path, Parameter(help="The file to write.")],
    /,
    *,
    goal: Annotated[
        Literal["multimodal", "speech", "pictures", "everything"],
        Parameter(
            help="multimodal: images and speech on a language model; speech or pictures: one of them; everything: all "
            "sixteen stages."
        ),
    ] = "multimodal",
    size: Annotated[str, Parameter(help="micro, nano, lab or full.")] = "full",
    decoder: Annotated[str | None, Parameter(help="Language model: folder or hub id.")] = None,
    vision: Annotated[str | None, Parameter(help="SigLIP: folder or hub id.")] = None,
    audio: Annotated[str | None, Parameter(help="Phi-4-multimodal with an audio encoder.")] = None,
    corpus: Annotated[
        tuple[str, ...], Parameter(metavar="NAME=SOURCE", help="Source of a corpus; repeatable.")
    ] = (),
) -> None:
    """Write a commented recipe file for a goal, with the parts and sources that are named.

    For example:

        polyphi recipe new lab.toml --goal speech --decoder microsoft/Phi-4-mini-instruct --corpus asr=cv/train.tsv
    """
    from polyphi.runtime.files import write_whole
    from polyphi_recipe.recipe.new import text

    if file.exists():
        raise ValueError(f"{file} exists; choose another name, or remove it")
    sources: dict[str, list[str]] = {}
    for pair in corpus:
        name, sign, source = pair.partition("=")
        if not sign:
            raise ValueError(f"expected --corpus NAME=SOURCE, found {pair}")
        sources.setdefault(name, []).append(source)
    parts = {"decoder": decoder, "vision": vision, "audio": audio}
    named = {name: source for name, source in parts.items() if source is not None}
    write_whole(file, text(goal, size=size, parts=named, corpora=sources))
    console.print(f"wrote {file}; see what it needs: polyphi plan {file}", highlight=False)


@app.command
def schema() -> None:
    """Print the JSON schema of recipe files, for completion in editors.

    For example:

        polyphi recipe schema
    """
    from polyphi_recipe.recipe.file import schema

    print(json.dumps(schema(), indent=1))
