"""Parts of `scripts/bench_oneshot.py`: what is pruned, how it is measured, and the tables that say so."""
