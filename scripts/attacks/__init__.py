"""Random commands against the lab: what is tried (`cases`, `damage`), how (`forked`), what is a fault (`judge`)."""
