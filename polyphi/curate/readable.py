"""Broken media: a picture or a clip that can't be decoded teaches nothing, and would stop a stage that reads it."""

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.processing.media import decode_audio, decode_image


class Readable(BaseFilter):
    """Keeps samples all of whose media can be decoded whole. The reason of a drop is what the decoder's refusal says
    (`broken image: expected ...`)."""

    name, type = "Readable", "FILTER"

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether to keep a document; if not, why."""
        for medium in doc.media:
            kind = medium.metadata["kind"]
            try:
                (decode_image if kind == "image" else decode_audio)(medium.media_bytes)
            except ValueError as error:
                return False, f"broken {kind}: {error}"
        return True
