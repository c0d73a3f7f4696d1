"""What one-shot pruning costs: counted work over measured rates.

`shapes` are the models, `counting` their work, `rates` what machines were measured to do in a second, `predict` joins
them, `checks` puts predictions beside what was measured, and `tables` writes all of it into ``docs/performance.md``.
"""
