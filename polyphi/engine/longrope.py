"""The switch of LongRoPE tables: all tokens of a sequence of more than `original_max_position_embeddings` tokens
(4,096) use the long table, all of a shorter one the short table (report 2.1)."""

from polyphi.engine.request import Request
from polyphi.model.config import DecoderConfig


class LongRope:
    """The tables of a model's requests."""

    def __init__(self, config: DecoderConfig) -> None:
        self.switch = config.original_max_position_embeddings
        self._has_long = config.max_position_embeddings > self.switch

    def length(self, request: Request) -> int:
        """The length that selects a request's table: its tokens so far, or with `rope="bound"` its maximum."""
        return request.max_length if request.sampling.rope == "bound" else len(request.ids)

    def update(self, request: Request) -> bool:
        """Record the table that a request uses from now on; whether it is another one than before. Then its cached keys
        are of no use: they were rotated with the other table."""
        table = "long" if self._has_long and self.length(request) > self.switch else "short"
        if request.ropes and request.ropes[-1] == table:
            return False
        request.ropes.append(table)
        return True

    def tokens_left(self, request: Request) -> int:
        """Tokens that may follow the next one of a request, up to the end of its answer and of its table."""
        left = request.max_length - len(request.ids) - 1
        return min(left, self.switch - len(request.ids)) if request.ropes[-1] == "short" else left
