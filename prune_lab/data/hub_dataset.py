"""Any text data set of the Hugging Face hub, read by ``datasets``."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from prune_lab.data.chats import Document
from prune_lab.data.documents import Row, document_of
from prune_lab.data.sources import all_of
from prune_lab.data.text import Sampling, SourcedData
from prune_lab.errors import BadInput
from prune_lab.models.hub import how_to_get_access
from prune_lab.utils.checks import check_text, check_whole
from prune_lab.utils.extras import check_extra

_HELD_OUT = ("test", "validation", "valid", "dev", "eval")


@dataclass
class HubSplit:
    """Documents of one split, in its order; no more of it is downloaded than is read.

    Attributes:
        repo: the data set, such as ``HuggingFaceFW/fineweb-edu``.
        name: of one of its configurations; None where there is one only.
        revision: commit, tag or branch.
        split: its name; None: ``test``, ``validation`` or the like that is not ``beside``, and where there is none,
            ``train``.
        field: the column of the text, or of the messages of a conversation.
        limit: so many documents at most.
        join: between two documents.
        beside: the split of other documents; where ``split`` is None, none of its first ``limit`` are read.
    """

    repo: str
    name: str | None
    revision: str
    split: str | None
    field: str
    limit: int
    join: str
    beside: str = "train"

    def read(self) -> list[Document]:
        """The documents.

        Raises:
            BadInput: the data set, its split or its column cannot be had.
        """
        import datasets  # an extra

        shown = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            split, skipped = self._place(datasets)
            streaming = not datasets.config.HF_HUB_OFFLINE  # what the cache has is read as it is there
            loaded = datasets.load_dataset(
                self.repo, self.name, split=split, revision=self.revision, streaming=streaming
            )
            rows = islice(iter(loaded), skipped, skipped + self.limit)
            return all_of(self._documents(rows, split), f"{self.repo}, split {split}")
        except BadInput:
            raise
        except Exception as error:  # of the hub, the network, files in some format: they share no base
            access = how_to_get_access(error, f"https://huggingface.co/datasets/{self.repo}")
            raise BadInput(
                f"{{at}}.repo={self.repo} cannot be read: {error}{f'. {access}' if access else ''}", self
            ) from error
        finally:
            if not shown:
                datasets.enable_progress_bars()

    def describe(self) -> dict[str, object]:
        """The data set, and what was asked of it."""
        asked = {"split": self.split or "held out", "field": self.field, "limit_documents": self.limit}
        return {"source": self.repo, "name": self.name, "revision": self.revision} | asked

    def _place(self, datasets: Any) -> tuple[str, int]:
        """The split to read, and how many of its documents to leave out."""
        if self.split is not None:
            return self.split, 0
        there = datasets.get_dataset_split_names(self.repo, self.name, revision=self.revision)
        found = next((each for each in _HELD_OUT if each in there and each != self.beside), None)
        if found is None and "train" not in there:
            raise BadInput(
                f"{{at}}.evaluation_split is not given, and {self.repo} has no split of a usual name; it has: "
                f"{', '.join(there)}",
                self,
            )
        return (found, 0) if found else ("train", self.limit if self.beside == "train" else 0)

    def _documents(self, rows: Iterator[dict[str, object]], split: str) -> Iterator[Document]:
        for number, row in enumerate(rows, start=1):
            yield document_of(Row(f"{self.repo}, split {split}, row {number}", row), self.field)


@dataclass(kw_only=True)
class HubDataset(SourcedData):
    """``data=hub data.repo=org/name``.

    Attributes:
        repo: the data set.
        name: of its configuration; None where there is one only.
        revision: commit, tag or branch.
        calibration_split: to calibrate on.
        evaluation_split: to evaluate on; None: see `HubSplit`.
        limit_documents: so many of each at most, the first ones.
    """

    repo: str | None = None
    name: str | None = None
    revision: str = "main"
    calibration_split: str = "train"
    evaluation_split: str | None = None
    limit_documents: int = 10_000
    sampling: Sampling = "documents"

    def __post_init__(self) -> None:
        check_extra("datasets", "harness", "{at} needs datasets", self, otherwise="use data=files")
        check_text(self, "repo", "revision", "calibration_split")
        check_text(self, "name", "evaluation_split", optional=True)
        check_whole(self, "limit_documents")
        super().__post_init__()

    def source(self, use: Literal["calibration", "evaluation"]) -> HubSplit:
        """Returns the split of one use."""
        assert self.repo is not None
        split = self.calibration_split if use == "calibration" else self.evaluation_split
        asked = (self.repo, self.name, self.revision, split, self.field, self.limit_documents, self.join)
        return HubSplit(*asked, beside=self.calibration_split)
