from kernel_fixtures import backend, compiled, operators, threads

__all__ = ["backend", "compiled", "operators", "threads"]
