"""Texts, and pairs of texts, with a label each: what encoders are trained and measured on."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from prune_lab.data.bos import BosMode
from prune_lab.data.documents import Row
from prune_lab.data.glue import KINDS, REPO, TASKS, copy_of, labelled_rows, split_name
from prune_lab.data.labelled_texts import Columns, Text, encode, in_both, names_of_classes, told
from prune_lab.data.limits import check_room
from prune_lab.data.samples import Labelled, Samples
from prune_lab.data.sources import HubRows
from prune_lab.data.spec import DataSpec, Drawn, Measured, ModelFacts
from prune_lab.data.tokens import Data, tokenizer_protocol, window_length
from prune_lab.errors import BadInput, BadSetting, owning
from prune_lab.models.heads import Labels
from prune_lab.utils.checks import check_choice, check_flag, check_text, check_texts, check_whole
from prune_lab.utils.paths import local_path, why_missing

logger = logging.getLogger(__name__)

GLUE_SEQLEN = 128
"""Tokens in a text, or a pair, where nobody says otherwise: of GLUE by all papers on pruning."""


@dataclass(kw_only=True)
class ClassificationData(DataSpec):
    """A task of GLUE, from the hub or a folder, or labelled texts in files of one's own.

    A sample is what the tokenizer makes of a text or a pair, with its special tokens, cut to ``seqlen`` tokens from the
    longer of the two. Samples are padded to the longest; no statistic and no attention sees padding. Calibration
    samples are drawn from the training rows. Numbers are of the development set, as labels of GLUE's test sets are
    hidden: for choosing among runs, hold out some of the training rows (``training.eval_samples``).

    Attributes:
        task: of GLUE; None: the files ``train`` and ``dev``.
        root: a folder with a copy of the task, read instead of the hub: ``train`` and ``dev`` or ``validation`` (of
            MNLI ``dev_matched``) as ``.tsv`` as GLUE has it, ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``.
        mismatched: of MNLI, whether texts of other sources than those of the training are evaluated on.
        train: a file of one's own to train and to calibrate on.
        dev: likewise, to evaluate on.
        text: the column of the text; None: looked for among GLUE's names.
        pair: the column of a second text; None: with ``text`` there is none, else it is looked for, too.
        label: the column of the label; None: looked for.
        labels: the names of the classes in the order of the head's outputs; None: the task's, or those that the
            training rows have, sorted.
        values: whether labels are values, such as a similarity, and no classes; the task STS-B has such.
        limit_train: the first so many rows to train on only; None for all.
        limit_dev: likewise, to evaluate on.
    """

    input_files: ClassVar = ("root", "train", "dev")
    for_encoders: ClassVar[bool] = True
    task: str | None = None
    root: str | None = None
    mismatched: bool = False
    train: str | None = None
    dev: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    labels: list[str] | None = None
    values: bool = False
    limit_train: int | None = None
    limit_dev: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "samples")
        check_choice(self, "task", tuple(TASKS), optional=True, hint="tasks of GLUE; null: files of your own")
        check_text(self, "root", "train", "dev", "text", "pair", "label", optional=True)
        check_flag(self, "mismatched", "values")
        check_whole(self, "limit_train", "limit_dev", optional=True, hint="null: all")
        if self.bos is not None:
            raise BadSetting(self, "bos", "is not allowed; the tokenizer itself places its special tokens: use null")
        if self.pair is not None and self.text is None:
            raise BadSetting(self, "pair", "needs {at}.text, the column of the first text")
        if self.labels is not None:
            check_texts(self, "labels")
            if len(set(self.labels)) < max(2, len(self.labels)):
                raise BadSetting(self, "labels", "is not allowed; allowed: at least two names, all different")
        self.values = self.values or self.task == "stsb"
        if self.values and self.labels is not None:
            raise BadSetting(self, "labels", "names classes, and labels are values here; leave it out")
        self._check_files()

    def _check_files(self) -> None:
        if self.task is None:
            for name in ("train", "dev"):
                if getattr(self, name) is None:
                    raise BadInput(
                        f"{{at}}.{name} is not given, and {{at}}.task neither; give files of your own (data.train=A "
                        f"data.dev=B), or a task of GLUE: {', '.join(TASKS)}",
                        self,
                    )
                path = local_path(getattr(self, name))
                if not path.is_file():
                    raise BadSetting(self, name, f": {why_missing(str(path), 'file')}")
                if path.suffix.lower() not in KINDS:
                    raise BadSetting(self, name, f"is not allowed; allowed: {', '.join(KINDS)}")
            if self.root is not None:
                raise BadSetting(self, "root", "needs {at}.task, of which it holds a copy")
            return
        for name in ("train", "dev"):
            if getattr(self, name) is not None:
                raise BadSetting(self, name, f"does not go with {{at}}.task={self.task}; give one of them")
        if self.root is not None:
            for training in (True, False):
                self._copy(training=training)

    def draw(self, model: ModelFacts) -> Drawn:
        """Refuses to be a part of other data, which has no labels."""
        raise BadInput("data=classification cannot be a source of a mix, which has no labels", self)

    def measure(self, model: ModelFacts) -> Measured:
        """Refuses to be a part of other data, which has no labels."""
        raise BadInput("data=classification cannot be a source of a mix, which has no labels", self)

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        vocab_size: int,
        seqlen_limit: int,
        default_bos: BosMode = "text",
    ) -> Data:
        """Reads both sets and tokenises them.

        Raises:
            BadInput: there is no tokenizer or it has no token for padding, a file cannot be read, a row has no text or
                no label or one that no class has, all texts are empty, ``seqlen`` is more than the model's positions or
                too few for a text, or the tokenizer gives an id that the model does not have.
        """
        with owning(self):
            if tokenizer is None:
                raise BadInput("the model folder has no tokenizer, so texts cannot be used; use a model that has one")
            if tokenizer.pad_token_id is None:
                raise BadInput(
                    "the tokenizer has no token for padding; set pad_token in the model folder's tokenizer_config.json"
                )
            seqlen = window_length(self.seqlen, seqlen_limit, GLUE_SEQLEN)
            train = list(self._rows(training=True))
            dev = list(self._rows(training=False))
            for name, rows in (("train", train), ("dev", dev)):
                self._check_read(tokenizer, name, rows, seqlen)
            labels = self._labels(train)
            samples = [encode(tokenizer, rows, labels, seqlen, vocab_size) for rows in (train, dev)]
            return self._data(tokenizer, labels, *samples)

    def _check_read(self, tokenizer: PreTrainedTokenizerBase, name: str, rows: Sequence[Text], seqlen: int) -> None:
        """Whether a model sees anything of the texts: all are empty, or special tokens leave no room, else."""
        if not any(row.first.strip() or (row.second or "").strip() for row in rows):
            raise BadInput(f"{{at}}.{name}: all texts in it are empty; {{at}}.text names another column")
        pair = any(row.second is not None for row in rows)
        special = tokenizer.num_special_tokens_to_add(pair=pair)
        if seqlen < (least := special + 1 + pair):
            kind = "pair of texts" if pair else "text"
            raise BadSetting(
                self, "seqlen", f"leaves no room for a {kind} beside {special} special tokens; use {least} or more"
            )

    def _data(self, tokenizer: PreTrainedTokenizerBase, labels: Labels, train: Samples, dev: Samples) -> Data:
        check_room(self.samples or 1, train.tokens.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        calibration = train.select(torch.randperm(len(train), generator=generator)[: self.samples])
        task: dict[str, object] = {
            "task": self.task or "own files",
            "labels": "values" if labels.values else list(labels.names),
        }
        logger.info("data: %d labelled texts to train on, %d to evaluate on", len(train), len(dev))
        if twice := in_both(train, dev):
            logger.warning("data: %d of the texts to evaluate on are among those to train on", twice)
        protocol: dict[str, object] = {
            "calibration": self._origin(training=True) | task | told(calibration) | {"seed": self.seed},
            "evaluation": self._origin(training=False) | task | told(dev) | {"texts_in_training": twice},
            "tokenizer": tokenizer_protocol(tokenizer),
        }
        training = self._origin(training=True) | task | told(train)
        return Data(
            calibration=calibration.tokens,
            evaluation=dev.tokens,
            batch_size=self.batch_size,
            protocol=protocol,
            training=partial(_given, train, training),
            labelled=Labelled(calibration, dev, labels),
        )

    def _rows(self, *, training: bool) -> Iterator[Text]:
        name = "train" if training else "dev"
        limit = self.limit_train if training else self.limit_dev
        columns = Columns(self.text, self.pair, self.label, glue=self.task is not None)
        rows = islice(self._read(training=training), limit)
        if (first := next(rows, None)) is None:
            raise BadInput(f"{{at}}.{name}: there is no row in it; give a file with labelled texts")
        for row in chain((first,), rows):
            yield columns.read(row)

    def _read(self, *, training: bool) -> Iterator[Row]:
        if self.task is None:
            return labelled_rows(local_path(str(self.train if training else self.dev)))
        if self.root is not None:
            return labelled_rows(self._copy(training=training), TASKS[self.task].columns)
        return self._on_hub(training=training).read()

    def _copy(self, *, training: bool) -> Path:
        """The file of the folder ``root``."""
        split = split_name(self.task, training=training, mismatched=self.mismatched)
        root = local_path(str(self.root))
        if not root.is_dir():
            raise BadSetting(self, "root", f": {why_missing(str(root), 'folder')}")
        if (found := copy_of(root, split)) is None:
            wanted = " or ".join(dict.fromkeys((split, split.replace("validation", "dev"))))
            raise BadSetting(self, "root", f"has no copy of {self.task}: {wanted} as {', '.join(KINDS)}")
        return found

    def _on_hub(self, *, training: bool) -> HubRows:
        split = split_name(self.task, training=training, mismatched=self.mismatched)
        return HubRows(REPO, f"{self.task}/{split}-00000-of-00001.parquet", split)

    def _origin(self, *, training: bool) -> dict[str, object]:
        if self.task is None:
            return {"source": "files", "path": str(self.train if training else self.dev)}
        if self.root is not None:
            return {"source": f"GLUE {self.task}", "file": str(self._copy(training=training))}
        return self._on_hub(training=training).describe()

    def _labels(self, train: Sequence[Text]) -> Labels:
        if self.values:
            return Labels(("value",), values=True)
        names = tuple(self.labels or (TASKS[self.task].labels if self.task else ()))
        numbered = bool(names) and not any(str(name).isdecimal() for name in names)
        return Labels(names or names_of_classes(train), numbered=numbered)


def _given(samples: Samples, protocol: dict[str, object]) -> tuple[Samples, dict[str, object]]:
    return samples, dict(protocol)
