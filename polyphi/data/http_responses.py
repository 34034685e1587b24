"""Responses of HTTP servers of others: fsspec reads listings and parts of files at once, however long they are.

aiohttp's session has the class of its responses, which is the one place that all of fsspec's requests go through.
"""

import re
from functools import cache
from typing import Any

MAX_PAGE = 16 << 20
"""[ours] Bytes of a response to a request that names no part: a page that lists files."""
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@cache
def response_class(redirects: bool) -> type:
    """The class of a response that has at most the requested bytes, and is no redirect unless `redirects` are followed.
    It raises OSError for another one. Raises ImportError without aiohttp, which fsspec needs for HTTP."""
    import aiohttp

    class BoundedResponse(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            if not redirects and "Location" in self.headers:
                target = self.headers["Location"][:200]
                raise OSError(f"expected a file at {self.url}, found a redirect to {target}")
            return self

        async def read(self) -> bytes:
            if self._body is None:
                part = RANGE.fullmatch(self.request_info.headers.get("Range", ""))
                limit = int(part[2]) - int(part[1]) + 1 if part else MAX_PAGE
                data = bytearray()
                async for piece in self.content.iter_any():
                    data += piece
                    if len(data) > limit:
                        self.close()
                        raise OSError(f"expected at most {limit:,} bytes of {self.url}, found more")
                self._body = bytes(data)
            return self._body

    # fsspec tells its file systems apart by the text of their options.
    BoundedResponse.__qualname__ = "BoundedResponse" if redirects else "DirectResponse"
    return BoundedResponse
