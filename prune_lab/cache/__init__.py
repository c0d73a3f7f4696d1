"""The store of results that runs share, and what its keys are made of; what is kept there is decided elsewhere."""
