"""What a run leaves: the names of the files in its folder, and the statuses in its record."""

from typing import Final, Literal, get_args

RECORD: Final = "record.json"
"""Settings, status, metrics and protocol; written last."""
CONFIG: Final = "config.yaml"
ENVIRONMENT: Final = "environment.json"
METRICS: Final = "metrics.jsonl"
LAYERS: Final = "layers.csv"
ROUNDS: Final = "rounds.csv"
COURSE: Final = "allocation.csv"
"""How a search for the level of each layer went."""
COURSE_PLOT: Final = "allocation.svg"
MASKS: Final = "masks.safetensors"
CONTINUATIONS: Final = "continuations"
"""The kind of text that `prune_lab.evaluation.continuation` makes."""
TEXTS: Final = ("generations", CONTINUATIONS, "predictions")
"""Kinds of text that evaluations make."""
EVALUATIONS: Final = ("lm_eval",)
"""Folders with files that evaluations make."""
MODEL: Final = "model"
"""The folder of the pruned model, in the Hugging Face format."""
ADAPTER: Final = "adapter"
"""The folder of low-rank updates that were not merged."""
BLOCKS: Final = "blocks"
"""The folder of blocks that are done, from which an interrupted pruning goes on."""
TRAINING: Final = "training"
"""The folder of states from which an interrupted training goes on."""
ALLOCATION: Final = "allocation"
"""The folder of that from which an interrupted search for the level of each layer goes on."""
WANDB_ID: Final = "wandb_id"
"""The file with the name under which an interrupted run goes on at W&B; gone once the run is done."""
PROGRESS: Final = (BLOCKS, TRAINING, ALLOCATION, WANDB_ID)
"""What an interrupted run can go on with."""


def texts_file(kind: str, stage: str) -> str:
    """Returns the name of the file with the texts of a kind that a stage had the model write."""
    return f"{kind}.jsonl" if stage == "evaluate" else f"{kind}_{stage}.jsonl"


def evaluation_folder(name: str, stage: str) -> str:
    """Returns the folder with the files that an evaluation made in a stage."""
    return name if stage == "evaluate" else f"{name}_{stage}"


EVALUATION_FOLDERS: Final = tuple(
    evaluation_folder(name, stage) for name in EVALUATIONS for stage in ("evaluate", "dense")
)
OUTPUTS: Final = (
    CONFIG, ENVIRONMENT, METRICS, LAYERS, ROUNDS, COURSE, COURSE_PLOT, MASKS,
    *(texts_file(kind, stage) for kind in TEXTS for stage in ("evaluate", "dense")), MODEL, ADAPTER,
    *EVALUATION_FOLDERS,
)  # fmt: skip
"""What a run leaves beside its record."""

Status = Literal["finished", "failed", "stopped"]
FINISHED: Final = "finished"
FAILED: Final = "failed"
STOPPED: Final = "stopped"
"""A search found the run not worth going on with."""
STATUSES: Final[tuple[str, ...]] = get_args(Status)
