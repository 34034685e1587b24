"""Responses of HTTP servers of others: fsspec reads listings and parts of files at once, however long they are.

aiohttp's session has the class of its responses, which is the one place that all of fsspec's requests go through.
"""

import re

import aiohttp

MAX_PAGE = 16 << 20
"""[ours] Bytes of a response to a request that names no part: a page that lists files."""
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class BoundedResponse(aiohttp.ClientResponse):
    """A response that has at most the requested bytes. Raises OSError for a longer one."""

    async def read(self) -> bytes:
        """The whole body."""
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


class DirectResponse(BoundedResponse):
    """A response to a request for a file that a row names: its address may not lead to another one."""

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        """Read the headers."""
        await super().start(connection)
        if "Location" in self.headers:
            raise OSError(
                f"expected a file at {self.url}, found a redirect to {self.headers['Location'][:200]}"
            )
        return self
