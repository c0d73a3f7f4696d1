"""What a run leaves: the names of the files in its folder, and the statuses in its record."""

from typing import Final, Literal

RECORD: Final = "record.json"
"""Settings, status, metrics and protocol; written last."""
CONFIG: Final = "config.yaml"
ENVIRONMENT: Final = "environment.json"
METRICS: Final = "metrics.jsonl"
LAYERS: Final = "layers.csv"
ROUNDS: Final = "rounds.csv"
MASKS: Final = "masks.safetensors"
MODEL: Final = "model"
"""The folder of the pruned model, in the Hugging Face format."""
ADAPTER: Final = "adapter"
"""The folder of low-rank updates that were not merged."""
BLOCKS: Final = "blocks"
"""The folder of blocks that are done, from which an interrupted pruning goes on."""
TRAINING: Final = "training"
"""The folder of states from which an interrupted training goes on."""

Status = Literal["finished", "failed", "stopped"]
FINISHED: Final = "finished"
FAILED: Final = "failed"
STOPPED: Final = "stopped"
"""A search found the run not worth going on with."""
