"""A step that drops samples with broken media: they can't be used in training, and would stop a stage that reads
them."""

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.media.media import decode_audio, decode_image


class ReadableMediaFilter(BaseFilter):
    """Keeps samples whose media can all be decoded. The reason of a drop is the decoder's message
    (`broken image: expected ...`)."""

    name, type = "Readable", "FILTER"

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the reason."""
        for medium in doc.media:
            modality = medium.metadata["kind"]
            try:
                if modality == "image":
                    decode_image(medium.media_bytes)
                elif modality == "audio":  # a user's modality was read by its own reader
                    decode_audio(medium.media_bytes)
            except ValueError as error:
                return False, f"broken {modality}: {error}"
        return True
