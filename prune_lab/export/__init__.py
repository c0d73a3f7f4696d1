"""``prune-lab-export``: a saved model as a folder for others, with a model card; on the hub; as a GGUF file."""
