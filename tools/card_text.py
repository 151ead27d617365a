"""The model card of `onward/tiny` as Markdown, a pure function of card.json: no number is typed by hand."""

from typing import Any

Card = dict[str, Any]

CREDITS = {
    "classic-books-markdown": (
        "https://github.com/mlschmitt/classic-books-markdown",
        "English books 1700-1929: fiction, travel, memoir, philosophy, science; all titles in the public domain",
    ),
    "ELTeC-eng": (
        "https://doi.org/10.5281/zenodo.4662490",
        "English Novel Corpus, edited by Lou Burnard, in European Literary Text Collection (ELTeC), release 1.0.1: "
        "novels 1840-1920; texts in the public domain, markup CC BY 4.0",
    ),
    "Pratham Books StoryWeaver": (
        "https://storyweaver.org.in",
        "children's stories, by way of https://github.com/global-asp/pb-source",
    ),
    "African Storybook": (
        "https://africanstorybook.org",
        "children's stories, by way of https://github.com/global-asp/asp-source",
    ),
}
LICENCE_PAGES = {"CC BY 4.0": "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)"}


def card_text(card: Card) -> str:
    """The whole README.md."""
    sections = [_head(card), _what(card), _table(card), _data(card), _training(card), _limits(), _end()]
    return "\n\n".join(sections) + "\n"


def _head(card: Card) -> str:
    return f"""---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tiny, demonstration]
---

# {card["name"]}

A Llama-shaped language model of {card["parameters"] / 1e6:.2f} million parameters, trained from scratch by the
`onward` project on books in the public domain and on children's stories under CC BY 4.0. It ships inside the
Python package, so that the whole line (prepare, train, evaluate, report) runs offline, on a CPU, in minutes."""


def _what(card: Card) -> str:
    warning = ""
    if not card["training"]["finished"]:
        warning = """

> **Interim weights.** The training had not ended when these were saved; no cooldown has taken place."""
    quoted = "\n".join(f"> {line}".rstrip() for line in card["sample"]["continuation"].strip().splitlines())
    return f"""## What it is for{warning}

Demonstrations and tests of `onward`: it has read novels, so any technical domain is new to it, and what it learns
and forgets in a few minutes of training can be measured. It is too small for anything else. Every document it read
ended with `<|endoftext|>`; start a text with that token.

| | |
|---|---|
| architecture | Llama: 6 layers, 192 wide, 6 heads, 2 key-value heads, tied embeddings |
| parameters | {card["parameters"]:,} |
| vocabulary | {card["vocabulary"]:,} byte-level BPE tokens, trained on the training books |
| context | {card["context_tokens"]:,} tokens |
| weights | bf16 safetensors, {card["weights_bytes"]:,} bytes |

After "{card["sample"]["prompt"]}" it writes (seed 0, temperature 0.7):

{quoted}"""


def _table(card: Card) -> str:
    held_out, baselines, training = card["held_out"], card["baselines_bits_per_byte"], card["training"]
    interval = f"{held_out['bits_per_byte_low']:.3f} to {held_out['bits_per_byte_high']:.3f}"
    rows = [
        f"| **{card['name']}** (bf16 weights) | **{held_out['bits_per_byte']:.3f}** ({interval}) |",
        *(
            f"| byte {order}-gram, Witten-Bell, counted on all training text | {baselines[f'byte_{order}gram']:.3f} |"
            for order in (8, 7, 6, 5)
        ),
        f"| xz -9e, one file | {baselines['xz_9e_one_file']:.3f} |",
        f"| xz -9e, each document alone | {baselines['xz_9e_each_document']:.3f} |",
        f"| gzip -9, one file | {baselines['gzip_9_one_file']:.3f} |",
        f"| gzip -9, each document alone | {baselines['gzip_9_each_document']:.3f} |",
    ]
    parts = "\n".join(
        f"| {name} | {value:.3f} |" for name, value in sorted(held_out["bits_per_byte_by_collection"].items())
    )
    table = "\n".join(rows)
    return f"""## How well it predicts English

Bits per byte on held-out books, lower is better; 95 % interval by bootstrap over books.

| on the same {held_out["bytes"]:,} bytes | bits per byte |
|---|---|
{table}

{held_out["documents"]} documents from all {held_out["books"]} held-out books (whole books are held out, those whose
name hashes into {held_out["share"]:.0%} of the range), drawn in turn from each book in a seeded order. The model
reads each document after one `<|endoftext|>`, in windows of {card["context_tokens"]:,} tokens that advance by 512 and
count only what is new: {held_out["nats_per_token"]:.3f} nats per token over {held_out["tokens"]:,} tokens.

The n-gram models were counted on all training books and stories; the language model read
{training["tokens"] / training["training_set_tokens"]:.0%} of them once. The compressors start from nothing: they
give the scale, they are no rivals.

| by collection | bits per byte |
|---|---|
{parts}"""


def _data(card: Card) -> str:
    rows = []
    for source in card["sources"]:
        page, words = CREDITS[source["collection"]]
        licence = LICENCE_PAGES.get(source["licence"], source["licence"])
        name = f"[{source['collection']}]({page})"
        size = f"{source['training_bytes'] / 1e6:.1f} MB"
        if source["training_bytes"] < 100_000:
            size = f"{source['training_bytes'] / 1e3:.0f} kB"
        rows.append(f"| {name}: {words} | {licence} | {source['works']} | {source['held_out_works']} | {size} |")
    table = "\n".join(rows)
    return f"""## Data and attribution

| collection | licence | works | of these held out | training text |
|---|---|---|---|---|
{table}

`sources.tsv` names every book and story with its author, licence, the file it came from and the side of the split.
The stories were taken out of their Markdown pages as plain text. Their authors and publishers do not endorse this
model. Stories under non-commercial licences, share-alike transcripts and WikiText were left out. No text of any
domain that the examples of `onward` adapt to was used."""


def _training(card: Card) -> str:
    training = card["training"]
    schedule = "warm-up of 100 steps, then constant"
    if training["finished"]:
        schedule += f", then a 1-sqrt cooldown over the last {training['cooldown_share']:.0%}"
    return f"""## Training

| | |
|---|---|
| tokens read | {training["tokens"]:,} of {training["training_set_tokens"]:,}, in a seeded random order of documents |
| steps | {training["steps"]:,} of {training["batch_tokens"]:,} tokens |
| learning rate | {training["peak_learning_rate"]:g}, {schedule} |
| optimizer | AdamW, betas 0.9 and 0.95, weight decay 0.1, gradient norm clipped at 1 |
| precision | fp32 weights, bf16 products |
| loss | {training["last_loss_nats_per_token"]:.3f} nats per token (mean of the last ten logged steps) |
| time | {training["hours"]:.1f} hours on 2 CPU cores, {training["tokens_per_second"]:,} tokens per second |"""


def _limits() -> str:
    return """## Limits

It writes grammatical phrases and soon loses the thread; it knows no facts and follows no instructions. Its English
is that of 1700-1929 and of children's stories, and it has learnt the prejudices of those books with their style. It
has had no safety training. Do not build on what it says."""


def _end() -> str:
    return """## Licence

The weights, the tokenizer and this card: Apache-2.0, like the rest of the package. The training text is not part of
the package; its licences are in the table above.

## Made with

    python tools/train_tiny_base.py --data GENERAL_FOLDER --out BUILD_FOLDER
    python tools/card_tiny_base.py --data GENERAL_FOLDER --build BUILD_FOLDER

`card.json` beside this file has every number in full; the second command writes both."""
