"""A search for the level of each part of a model: what the parts can be, an evolution over them, and its fitness."""
