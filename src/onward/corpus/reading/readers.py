"""Readers: one file in, documents out. JSON lines, Parquet, and plain text."""

import codecs
from collections.abc import Iterator
from pathlib import PurePosixPath

import orjson

from onward.corpus import documents
from onward.corpus.documents import Fields, Item, Unreadable
from onward.corpus.reading.streams import MAXIMUM_RECORD_BYTES, Damaged, InputFile, Truncated, blocks, lines, open_raw
from onward.errors import UserError

RECORDS = (".jsonl", ".ndjson", ".json")
TEXTS = (".txt", ".md")
TABLES = (".parquet",)
COMPRESSIONS = (".gz", ".zst", ".zstd")
SUFFIXES = ".jsonl .ndjson .json .txt .md (each also .gz or .zst), .parquet"
_PARQUET_ROWS = 256


def suffix_of(path: str) -> str:
    """Return the suffix that decides the reader, compression left aside; '' when no reader knows it."""
    name = PurePosixPath(path.lower())
    if name.suffix in COMPRESSIONS:
        inner = PurePosixPath(name.stem).suffix
        return inner if inner in (*RECORDS, *TEXTS) else ""
    return name.suffix if name.suffix in (*RECORDS, *TEXTS, *TABLES) else ""


def read_file(file: InputFile, fields: Fields) -> Iterator[Item]:
    """Yield the documents of one file in order; what cannot be read comes as Unreadable with path and line."""
    suffix = suffix_of(file.path)
    if suffix in TABLES:
        return _read_parquet(file, fields)
    if suffix in TEXTS:
        if fields.group is not None:
            todo = "remove `group`, or give records (JSONL, Parquet) that hold the field"
            raise UserError("text files have no fields to group by", file.path, f"group: {fields.group}", todo=todo)
        return _read_text(file)
    assert suffix in RECORDS
    return _read_records(file, fields)


def _read_records(file: InputFile, fields: Fields) -> Iterator[Item]:
    """One JSON object per line; blank lines are no records. A `.json` file may also be one list of objects."""
    number = 0
    try:
        for number, line in enumerate(lines(blocks(file)), start=1):
            where = f"{file.path}:{number}"
            if line is None:
                yield Unreadable(where, documents.TOO_LONG)
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
                if line.lstrip().startswith(b"[") and suffix_of(file.path) == ".json":
                    yield from _read_list(file, fields)
                    return
            if line and not line.isspace():
                yield from _from_json(line, fields, file.path, where)
    except Truncated:
        yield Unreadable(f"{file.path}:{number + 1}", documents.TRUNCATED)
    except Damaged:
        yield Unreadable(f"{file.path}:{number + 1}", documents.DAMAGED)


def _read_list(file: InputFile, fields: Fields) -> Iterator[Item]:
    whole = bytearray()
    for block in blocks(file):
        whole += block
        if len(whole) > MAXIMUM_RECORD_BYTES:
            yield Unreadable(file.path, documents.TOO_LONG)
            return
    try:
        records = orjson.loads(whole.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        yield Unreadable(f"{file.path}:{error.lineno}", _json_reason(bytes(whole)))
        return
    for number, record in enumerate(records, start=1):
        yield from _from_value(record, fields, file.path, f"{file.path}:[{number}]")


def _from_json(line: bytes, fields: Fields, source: str, where: str) -> Iterator[Item]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        yield Unreadable(where, _json_reason(line))
        return
    yield from _from_value(record, fields, source, where)


def _from_value(record: object, fields: Fields, source: str, where: str) -> Iterator[Item]:
    if isinstance(record, dict):
        yield from documents.from_record(record, fields, source, where)
    else:
        yield Unreadable(where, "unreadable: not a JSON object")


def _json_reason(content: bytes) -> str:
    try:
        content.decode()
    except UnicodeDecodeError:
        return documents.NOT_UTF8
    return documents.BROKEN_JSON


def _read_text(file: InputFile) -> Iterator[Item]:
    """The whole file is one document; a very long one is given in parts while it is read."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    text, number, failure = "", 0, None
    parts: list[str] = []
    held = 0
    try:
        for block in blocks(file):
            parts.append(decoder.decode(block))
            held += len(parts[-1])
            if held > documents.MAXIMUM_CHARACTERS:
                *whole, rest = documents.cut("".join(parts), documents.MAXIMUM_CHARACTERS)
                for part in whole:
                    number += 1
                    where = f"{file.path}#{number}"
                    yield from documents.from_text(part, where, file.path, where)
                parts, held = [rest], len(rest)
        parts.append(decoder.decode(b"", final=True))
        text = "".join(parts)
    except Truncated:
        failure = documents.TRUNCATED
    except Damaged:
        failure = documents.DAMAGED
    except UnicodeDecodeError:
        failure = documents.NOT_UTF8
    where = f"{file.path}#{number + 1}" if number else file.path
    if failure:
        yield Unreadable(where, failure)
    else:
        yield from documents.from_text(text, where, file.path, where)


def _read_parquet(file: InputFile, fields: Fields) -> Iterator[Item]:
    """Rows in order, a few hundred at a time; only the columns that are needed are read."""
    import pyarrow as pa
    from pyarrow import parquet

    row = 0
    with open_raw(file) as raw:
        try:
            table = parquet.ParquetFile(raw, pre_buffer=False)
            names = table.schema_arrow.names
            missing = [name for name in (fields.text, fields.group) if name is not None and name not in names]
            if missing:
                for row in range(table.metadata.num_rows):
                    yield Unreadable(f"{file.path}:{row + 1}", documents.no_field(missing[0]), tuple(names))
                return
            wanted = [name for name in names if name in ("id", fields.text, fields.group)]
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                for index in range(batch.num_rows):
                    row += 1
                    where = f"{file.path}:{row}"
                    try:
                        record = {name: batch.column(name)[index].as_py() for name in wanted}
                    except UnicodeDecodeError:
                        yield Unreadable(where, documents.NOT_UTF8)
                    else:
                        yield from documents.from_record(record, fields, file.path, where)
        except (pa.ArrowException, OSError):
            yield Unreadable(f"{file.path}:{row + 1}", documents.BROKEN_PARQUET)
