"""The tomography tests import their scene by name, in pytest's prepend mode."""
