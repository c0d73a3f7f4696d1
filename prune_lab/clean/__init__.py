"""What the store and the run folders hold, and the command that removes some of it."""
