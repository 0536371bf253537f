"""How one spec becomes an array: each splitter finds a child by its index, none keeps them."""

from khomas.scheduler.splitters.interface import Child, Splitter, make_splitter

__all__ = ["Child", "Splitter", "make_splitter"]
