"""The version of this package, which is that of the contract with plugins too: see `docs/hooks.md`."""

__version__ = "0.1.0"
