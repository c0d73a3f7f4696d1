"""Models as methods see them: a list of blocks, each with its weight matrices."""
