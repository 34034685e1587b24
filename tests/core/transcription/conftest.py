from engine.conftest import engine

__all__ = ["engine"]
