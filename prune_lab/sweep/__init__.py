"""Many runs: their jobs composed and launched, what they end with, and the search for settings."""
