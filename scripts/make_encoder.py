#!/usr/bin/env python3
r"""Makes a miniature of BERT from nothing but Python's own documentation, and a task for it.

It stands in for ``bert-base-uncased`` and GLUE where neither can be had: three blocks of width 128, trained from random
weights for some minutes on masked words, so that its numbers say how the lab's parts work together and not how well
BERT is pruned. The task: which part of the standard library a paragraph of documentation is from. Texts depend on the
release of Python.

The folder gets ``model/`` (a masked language model, whose head `prune_lab` leaves out), ``train.jsonl``, ``dev.jsonl``
and ``miniature.json``, which says how they came about:

    python scripts/make_encoder.py miniature
    prune-lab model=miniature/model data=classification data.train=miniature/train.jsonl data.dev=miniature/dev.jsonl \
        method=smp sparsity.level=0.9 'stages=[prune,evaluate]'
"""

import argparse
import json
import platform
import random
import re
import time
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from prune_lab.data.stdlib import TOPIC_PREFIX, documents

CLASSES = ("asyncio", "builtins", "email", "http", "logging", "tkinter", "topics", "unittest", "xml")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS, LENGTH, WIDTH, BLOCKS = 4096, 48, 128, 3
LEAST, MOST_CHARACTERS = 6, 600
DEV_SHARE, MASKED_SHARE = 0.15, 0.15


def paragraphs() -> list[dict[str, str]]:
    """Paragraphs without the lines that name what they document, each once, with the part that they are from."""
    found: dict[str, str] = {}
    for document in documents():
        topic = document.name.startswith(TOPIC_PREFIX)
        part = "topics" if topic else document.name.partition(".")[0]
        for paragraph in document.text.split("\n\n"):
            lines = [line for line in paragraph.splitlines() if not re.fullmatch(r"[\w.]+( [\w.]+)?", line.strip())]
            text = " ".join(" ".join(lines).split())[:MOST_CHARACTERS]
            if len(text.split()) >= LEAST:
                found.setdefault(text, part)
    return [{"sentence": text, "label": part} for text, part in found.items()]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A lower-case WordPiece vocabulary of the texts, with BERT's special tokens."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=list(SPECIAL)))
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, model_input_names=inputs, model_max_length=2 * LENGTH
    )


def pretrain(tokenizer: PreTrainedTokenizerFast, texts: list[str], steps: int, seed: int) -> BertForMaskedLM:
    """Trains on masked words: of those that are chosen 80 % are masked, 10 % another word, and 10 % stay (BERT)."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=4,
        intermediate_size=4 * WIDTH, max_position_embeddings=2 * LENGTH, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = BertForMaskedLM(config).train()
    encoded = tokenizer(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
    tokens, real = encoded["input_ids"], encoded["attention_mask"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    rise = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))
    )
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(tokens), (16,), generator=draw)
        width = int(real[rows].sum(1).max())
        batch, mask = tokens[rows, :width].clone(), real[rows, :width]
        chosen = (torch.rand(batch.shape, generator=draw) < MASKED_SHARE) & (batch >= len(SPECIAL))
        wanted = batch.masked_fill(~chosen, -100)
        how = torch.rand(batch.shape, generator=draw)
        other = torch.randint(len(SPECIAL), len(tokenizer), batch.shape, generator=draw)
        batch[chosen & (how < 0.8)] = tokenizer.mask_token_id
        batch = torch.where(chosen & (how >= 0.9), other, batch)
        states = model.bert(batch, attention_mask=mask).last_hidden_state[chosen]  # logits of what is asked for alone
        loss = torch.nn.functional.cross_entropy(model.cls(states), wanted[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--steps", type=int, default=600, help="of the training on masked words (600)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the masks (0)")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} is there already; give a new folder")
    start = time.time()
    rows = paragraphs()
    random.Random(arguments.seed).shuffle(rows)
    of_task = [row for row in rows if row["label"] in CLASSES]
    held_out = round(DEV_SHARE * len(of_task))
    parts = {"dev": of_task[:held_out], "train": of_task[held_out:]}
    dev = {row["sentence"] for row in parts["dev"]}
    texts = [row["sentence"] for row in rows if row["sentence"] not in dev]
    arguments.output.mkdir(parents=True)
    for name, some in parts.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in some)
        (arguments.output / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    tokenizer = make_tokenizer(texts)
    model = pretrain(tokenizer, texts, arguments.steps, arguments.seed)
    model.save_pretrained(arguments.output / "model")
    tokenizer.save_pretrained(arguments.output / "model")
    told = {
        "what": "a miniature of BERT, trained from random weights; its numbers stand for no published model",
        "task": f"which part of the standard library a paragraph is from: {', '.join(CLASSES)}",
        "train": len(parts["train"]), "dev": len(parts["dev"]), "texts": len(texts), "steps": arguments.steps,
        "seed": arguments.seed, "parameters": sum(each.numel() for each in model.parameters()),
        "python": platform.python_version(), "seconds": round(time.time() - start, 1),
    }  # fmt: skip
    (arguments.output / "miniature.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
