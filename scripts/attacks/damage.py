"""Lays out the files that a case finds, and damages them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

_WORDS = (b"", b"\0", b"{}", b"[]", b"null", b"[" * 20_000, b"\xff\xfe", b"1", b'"x"', b"NaN", b"\n" * 100, b"a,b\n1\n")
_VALUES = (
    None,
    True,
    -1,
    0,
    10**9,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    [],
    {},
    [None],
    {"a": 1},
    1e-9,
)


def make_template(folder: Path) -> None:
    """Makes the files once; takes some seconds, and loads the libraries.

    Args:
        folder: where; does not exist.
    """
    import datasets
    import numpy as np
    import optuna
    import torch
    from optuna.storages.journal import JournalFileBackend
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

    from prune_lab.models.load import REFERENCE

    folder.mkdir(parents=True)
    sizes = {"vocab_size": 8192, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 64}
    gpt2 = {"vocab_size": 8192, "bos_token_id": 0, "eos_token_id": 0, "n_embd": 16, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    for name, config in {
        "model": OPTConfig(**sizes, ffn_dim=32, word_embed_proj_dim=16),
        "llama": LlamaConfig(**sizes, intermediate_size=32, num_key_value_heads=1),
        "gpt2": GPT2Config(**gpt2, n_positions=64),
    }.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(REFERENCE / "opt" / file, folder / name)
    for seed, name in enumerate(("cal.npy", "eval.npy")):
        np.save(folder / name, np.random.default_rng(seed).integers(0, 8192, (4, 32)))
    texts = [
        f"The pruned model number {number} has {number * 7} weights left of those it had. " * 3 for number in range(40)
    ]
    (folder / "text.txt").write_text("\n\n".join(texts))
    (folder / "text.json").write_text(json.dumps([{"text": text} for text in texts]))
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = datasets.Dataset.from_dict({"text": texts})
    data.to_csv(folder / "text.csv", index=False)
    data.to_parquet(folder / "text.parquet")
    user = folder / "user"
    (user / "model").mkdir(parents=True)
    (user / "blocks").mkdir()
    (user / "notes.txt").write_text("first line\nno newline at the end")
    (user / "model" / "mine.txt").write_text("mine")
    (user / "config.yaml").write_text("mine: 1\n")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for storage in (
        optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        f"sqlite:///{folder}/study.db",
    ):
        study = optuna.create_study(study_name="other", storage=storage)
        study.tell(study.ask(), 1.0)


def lay_out(template: Path, folder: Path) -> None:
    """Copies the files for one case."""
    shutil.copytree(template, folder)
    os.mkfifo(folder / "fifo")


def damage(folder: Path, what: str, seed: int) -> str:
    """Damages a file.

    Args:
        folder: of the case.
        what: ``file:NAME``; ``model:NAME``, ``run:NAME`` and ``store:NAME`` stand for a file of that folder.
        seed: decides the file and the damage.

    Returns:
        What was done.
    """
    chance = random.Random(seed)
    path = folder / what.partition(":")[2]
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file() and not each.is_symlink())
        if not files:
            return f"{path.name} is empty"
        path = chance.choice(files)
    if not path.is_file() or path.is_symlink():  # damaged already
        return f"{path.name} stays"
    how = chance.choice(_WAYS + (_json_value, _json_value) * (path.suffix in (".json", ".jsonl")))
    how(path, chance)
    return f"{path.relative_to(folder)}: {how.__name__.strip('_')}"


def _cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content) + 1)])


def _flipped(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"x")
    for _ in range(chance.choice((1, 1, 20))):
        place = chance.randrange(chance.choice((len(content), min(len(content), 200))))
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(content))


def _prolonged(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + chance.choice(_WORDS))


def _replaced(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.choice(_WORDS))


def _zeroed(path: Path, chance: random.Random) -> None:
    size = path.stat().st_size
    start = chance.randrange(size + 1)
    path.write_bytes(path.read_bytes()[:start] + bytes(size - start))


def _gone(path: Path, chance: random.Random) -> None:
    path.unlink()


def _made_a_folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _made_a_fifo(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _linked(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(chance.choice((path.name, "nosuch", "/dev/zero", "/dev/null", "..")))


def _json_value(path: Path, chance: random.Random) -> None:
    try:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        number = chance.randrange(len(lines))
        content = json.loads(lines[number])
    except (ValueError, OSError):
        return
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(min(len(place), 1000)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
            place = place[key]
            continue
        if chance.random() < 0.2:
            del place[key]
        else:
            place[key] = chance.choice(_VALUES)
        break
    lines[number] = json.dumps(content)
    path.write_text("\n".join(lines))


_WAYS: tuple[Callable[[Path, random.Random], None], ...] = (
    _cut, _flipped, _flipped, _prolonged, _replaced, _zeroed, _gone, _made_a_folder, _made_a_fifo, _linked,
)  # fmt: skip
