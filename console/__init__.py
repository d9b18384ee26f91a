"""The composition root: it wires everything, and nothing imports it."""
