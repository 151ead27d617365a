"""Commands over prepared corpora: look into one, take it elsewhere."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from onward.cli.application import app
from onward.command import (
    CorpusName,
    Runs,
    user_errors,
)

_FORMATS = "jsonl, parquet, or tokens: a Hugging Face data set, packed."


class ExportFormat(StrEnum):
    """What a corpus is exported as."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    TOKENS = "tokens"


@app.command()
def inspect(
    corpus: CorpusName,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Examples of each kind.")] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, by the name of the corpus.")
    ] = False,
    runs: Runs = None,
) -> None:
    """Show a prepared corpus: ledger, lengths, rules, sources, duplicates, contamination, samples of every end."""
    import json

    from onward.artifact import Folders
    from onward.corpus.inspection import find_corpora, inspect_corpus
    from onward.terminal import print_inspection

    with user_errors():
        folders = find_corpora(corpus, Folders.default(None, runs).runs)
        found = {name: inspect_corpus(folder, samples) for name, folder in folders.items()}
    if as_json:
        typer.echo(json.dumps({name: inspection.as_json() for name, inspection in found.items()}, ensure_ascii=False))
        return
    for name, inspection in found.items():
        print_inspection(name, inspection)


@app.command()
def export(
    corpus: CorpusName,
    to: Annotated[Path, typer.Option("--to", help="A .jsonl or .jsonl.zst file; for parquet and tokens a folder.")],
    format_: Annotated[ExportFormat, typer.Option("--format", metavar="KIND", help=_FORMATS)],
    runs: Runs = None,
) -> None:
    """Write a prepared corpus for other trainers: its clean text, or its packed tokens."""
    from onward.artifact import Folders
    from onward.corpus.export import export_text, export_tokens
    from onward.corpus.inspection import find_corpus
    from onward.model.tokenizer import read_saved_tokenizer

    with user_errors():
        folder = find_corpus(corpus, Folders.default(None, runs).runs)
        if format_ is ExportFormat.TOKENS:
            outcome = export_tokens(folder, to).outcome("sequences")
        else:
            tokenizer = read_saved_tokenizer(folder / "tokenizer")
            kind: Literal["jsonl", "parquet"] = "jsonl" if format_ is ExportFormat.JSONL else "parquet"
            outcome = export_text(folder, to, kind, tokenizer).outcome("documents")
    typer.echo(outcome)
