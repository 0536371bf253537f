"""How bytes are reached: one module for each protocol."""
