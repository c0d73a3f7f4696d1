"""Classes of models whose blocks differ in width, a module for each family; `scripts/make_classes.py` writes them.

Each module needs torch and transformers only: transformers copies it beside the weights when it saves such a model.
"""
