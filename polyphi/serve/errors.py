"""What goes wrong, in the one shape that clients know: `{"error": {"message", "type", "param", "code"}}`.

>>> raise ApiError(400, "temperature must be from 0 to 100, found -1", param="temperature")
"""

from collections.abc import Mapping
from typing import Any

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets `status` and this message instead of an answer. `param` is the dotted path of the part that
    is wrong (`messages[1].content[0].image_url.url`), `code` a word that programs look at. Messages go to strangers:
    they never hold a path, an address or what a library printed."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, kind)
        found = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": found}
