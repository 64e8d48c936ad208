"""Train the bundled GPT-2 twin on Jane Austen's six novels, on a CPU.

The twin has the depth and wiring of openai-community/gpt2 (12 layers) and is
128 wide. Training needs torch, transformers and tokenizers, which nothing
else in this project needs:

    pip install torch==2.13.0 "transformers>=5,<6" tokenizers
    python scripts/train_gpt2_twin.py --minutes 60

The learning rate follows the clock, so a faster machine takes more steps in
the same time. On a machine with other work, OMP_WAIT_POLICY=passive keeps
the threads from spinning while they wait for one another.

The output folder is laid out as the Hub lays out a GPT-2 and is usable from
the first minute on: it is replaced file by file, each atomically, every few
minutes.

Text: lines are joined into paragraphs, and <|endoftext|> stands between
chapters. The last 3% of each novel are held out, of the tokenizer as well.
"""

import datetime
import gzip
import json
import math
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from dbt_nn.cli import command

ROOT = Path(__file__).resolve().parent.parent
PATH = click.Path(path_type=Path)
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2048
CONTEXT = 256
HELD_OUT = 0.03
TITLES = [
    "EMMA",
    "MANSFIELD PARK",
    "NORTHANGER ABBEY",
    "Persuasion",
    "PRIDE AND PREJUDICE",
    "SENSE AND SENSIBILITY",
]


def read_novels(path):
    """The novels as lists of chapters, one paragraph a line."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        text = file.read()
    titles = "|".join(TITLES)
    novels = re.split(rf"^(?=(?:{titles})$)", text, flags=re.MULTILINE)
    for novel in filter(str.strip, novels):
        paragraphs = [
            " ".join(paragraph.split())
            for paragraph in re.split(r"\n\s*\n", novel)
            if paragraph.strip()
        ]
        joined = "\n\n".join(paragraphs)
        yield re.split(r"\n\n(?=chapter\b)", joined, flags=re.IGNORECASE)


def split_novels(path):
    """Training text and held-out text: the last 3% of each novel."""
    train, held_out = [], []
    for chapters in read_novels(path):
        novel = END_OF_TEXT.join(chapters)
        # A paragraph's start, so that neither side begins inside a word.
        cut = novel.index("\n\n", int(len(novel) * (1 - HELD_OUT)))
        train.append(novel[:cut])
        held_out.append(novel[cut + 2 :])
    return END_OF_TEXT.join(train), END_OF_TEXT.join(held_out)


def write_tokenizer(train_text, out):
    """A byte-level BPE with GPT-2's pre-tokenizer; <|endoftext|> comes last."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        train_text.split(END_OF_TEXT),
        vocab_size=VOCABULARY - 1,
        min_frequency=2,
        show_progress=False,
    )
    bpe.save_model(str(out))
    vocab = json.loads((out / "vocab.json").read_text(encoding="utf-8"))
    vocab[END_OF_TEXT] = len(vocab)
    assert len(vocab) == VOCABULARY, len(vocab)
    write(out / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    tokenizer = GPT2TokenizerFast(
        vocab=str(out / "vocab.json"),
        merges=str(out / "merges.txt"),
        model_max_length=CONTEXT,
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def encode(tokenizer, text):
    return torch.tensor(tokenizer.backend_tokenizer.encode(text).ids)


def write(path, text):
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_network(network, out):
    """Save beside the folder, then move each file into place."""
    part = out.parent / (out.name + ".part")
    network.save_pretrained(part)
    for file in part.iterdir():
        file.chmod(0o644)  # safetensors are written 0600
        file.replace(out / file.name)
    part.rmdir()


def load(out):
    return GPT2LMHeadModel.from_pretrained(out, local_files_only=True)


def new_network():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            n_embd=128,
            n_layer=12,
            n_head=4,
            # gelu_new, computed by one fused kernel; restored when saved.
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=VOCABULARY - 1,
            eos_token_id=VOCABULARY - 1,
        )
    )


def optimizers(network):
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices, embeddings, vectors = [], [], []
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif ".h." in name:
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    # A Muon step of Frobenius norm as AdamW's, at 0.2 * lr an element.
    muon = torch.optim.Muon(
        matrices,
        lr=0.01,
        weight_decay=0.2,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(
        [
            {"params": embeddings, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=3e-3,
        betas=(0.9, 0.95),
    )
    return [muon, adam]


def epochs(tokens, generator):
    """Windows of one context in random order, cut anew in each epoch."""
    while True:
        offset = torch.randint(CONTEXT, (1,), generator=generator).item()
        count = (len(tokens) - offset) // CONTEXT
        windows = tokens[offset : offset + count * CONTEXT].view(-1, CONTEXT)
        yield windows[torch.randperm(count, generator=generator)]


def batches(tokens, size, generator):
    for windows in epochs(tokens, generator):
        yield from windows.split(size)


def loss_of(network, x, reduction="mean"):
    logits = network(x, use_cache=False).logits  # [b, n] -> [b, n, vocabulary]
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        x[:, 1:].flatten(),
        reduction=reduction,
    )


@torch.no_grad()
def evaluate(network, tokens):
    """Mean loss in nats a token.

    Windows of a whole context, each scored from its second half on, so that
    every token has at least half a context before it.
    """
    half = CONTEXT // 2
    network.eval()
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, half):
        x = tokens[start : start + CONTEXT][None]
        losses = loss_of(network, x, "none")
        fresh = losses if start == 0 else losses[half - 1 :]
        total += fresh.double().sum().item()
        count += len(fresh)
        if start + CONTEXT >= len(tokens):
            break
    network.train()
    return total / count


def set_dropout(network, p):
    """On the residual stream; in the attention it is slow on a CPU."""
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Dropout) and "attn_drop" not in name:
            module.p = p


def train(network, tokens, held_out, end, args):
    generator = torch.Generator().manual_seed(args.seed)
    optims = optimizers(network)
    peaks = [[g["lr"] for g in optim.param_groups] for optim in optims]
    start = time.time()
    scheduled = (end - start) / (1 - args.resume)
    saved, save_after = start, 45
    recent, step = [], 0
    network.train()
    for x in batches(tokens, args.batch, generator):
        now = time.time()
        if now >= end:
            break
        done = 1 - (end - now) / scheduled
        set_dropout(network, args.dropout if done < args.dropout_share else 0)
        rate = min(1.0, (step + 1) / 100, (1 - done) / (1 - args.flat))
        for optim, peak in zip(optims, peaks, strict=True):
            for group, lr in zip(optim.param_groups, peak, strict=True):
                group["lr"] = lr * rate
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = loss_of(network, x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        recent.append(loss.item())
        step += 1
        if step % 50 == 0:
            seen = step * args.batch * CONTEXT
            print(
                f"step {step}  {now - start:.0f} s  rate {rate:.3f}  "
                f"epoch {seen / len(tokens):.2f}  "
                f"{seen / (time.time() - start):.0f} tokens/s  "
                f"loss {sum(recent) / len(recent):.4f}",
                flush=True,
            )
            recent = []
        if now - saved > save_after:
            save(network, args.out)
            held = evaluate(network, held_out)
            print(f"step {step}  saved, held-out loss {held:.4f}", flush=True)
            saved, save_after = time.time(), args.save_minutes * 60
    return step, time.time() - start


def save(network, out):
    config = network.config
    trained_with = config.activation_function
    config.activation_function = "gelu_new"
    write_network(network, out)
    config.activation_function = trained_with


def end_time(args):
    if not args.until:
        return time.time() + args.minutes * 60
    hour, minute = map(int, args.until.split(":"))
    now = datetime.datetime.now()
    end = now.replace(hour=hour, minute=minute, second=0)
    if end <= now:
        end += datetime.timedelta(days=1)
    return end.timestamp()


@command(__doc__)
@click.option("--minutes", type=float, default=60)
@click.option("--until", metavar="HH:MM", help="Local time to stop at.")
@click.option("--text", type=PATH, default=ROOT / "data" / "austen.txt.gz")
@click.option("--out", type=PATH, default=ROOT / "checkpoints" / "gpt2-twin")
@click.option("--threads", type=int, default=os.cpu_count())
@click.option("--seed", type=int, default=0)
@click.option("--batch", type=int, default=16, help="Windows a step.")
@click.option("--dropout", type=float, default=0.1)
@click.option(
    "--dropout-share", type=float, default=0.3, help="Share of the time with dropout."
)
@click.option(
    "--resume",
    type=float,
    default=0,
    metavar="SHARE",
    help="Go on from the network in --out, SHARE of the schedule done.",
)
@click.option("--save-minutes", type=float, default=5)
@click.option(
    "--flat",
    type=float,
    default=0.1,
    help="Share of the time at full learning rate, before linear decay.",
)
@click.option(
    "--no-bf16", "bf16", flag_value=False, default=True, help="Train in float32."
)
def main(**options: Any) -> None:
    """Carry out the command line."""
    args = SimpleNamespace(**options)
    end = end_time(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    train_text, held_out_text = split_novels(args.text)
    write(args.out / "heldout.txt", held_out_text)
    tokenizer = write_tokenizer(train_text, args.out)
    tokens = encode(tokenizer, train_text)
    held_out = encode(tokenizer, held_out_text)
    print(f"{len(tokens)} training and {len(held_out)} held-out tokens")
    network = new_network()
    if args.resume:
        network.load_state_dict(load(args.out).state_dict())
    steps, seconds = train(network, tokens, held_out, end, args)
    save(network, args.out)

    # The figures of the file as it is on disk, by transformers' own loader.
    loss = evaluate(load(args.out), held_out)
    text_bytes = len(held_out_text.replace(END_OF_TEXT, "").encode())
    report = {
        "steps": steps,
        "tokens_seen": steps * args.batch * CONTEXT,
        "training_tokens": len(tokens),
        "held_out_tokens": len(held_out),
        "seconds": round(seconds),
        "held_out_loss_per_token": round(loss, 4),
        "held_out_loss_per_byte": round(loss * len(held_out) / text_bytes, 4),
        "held_out_perplexity": round(math.exp(loss), 2),
    }
    print(json.dumps(report, indent=2))
