"""The command ``prune-lab-report``: all runs below a folder as flat tables and as one page."""
