"""The prompts of all syntheses, and of the checks by a second request: `prompts.toml`."""

import tomllib
from pathlib import Path

PROMPTS: dict[str, str] = tomllib.loads(
    Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8")
)
"""Name of a synthesis, or NAME_check for its check -> the prompt, with fields in braces (`str.format`)."""
