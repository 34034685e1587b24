"""Placeholder until the real one is merged: data URLs only."""

import base64
import binascii

from polyphi.serve.errors import ApiError
from polyphi.serve.settings import Settings


class Media:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def image(self, url: str, param: str) -> bytes:
        return self.decoded(url.partition(",")[2], param, self.settings.max_image_bytes)

    async def audio(self, url: str, param: str) -> bytes:
        return self.decoded(url.partition(",")[2], param, self.settings.max_audio_bytes)

    def decoded(self, data: str, param: str, limit: int) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error:
            raise ApiError(400, f"{param}: expected base64", param=param) from None
