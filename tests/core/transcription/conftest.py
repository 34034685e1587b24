from tests.core.engine.conftest import engine

__all__ = ["engine"]
