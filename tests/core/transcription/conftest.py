from engine.conftest import engine, tokenizer

__all__ = ["engine", "tokenizer"]
