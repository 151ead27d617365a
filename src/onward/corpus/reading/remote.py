"""Remote files through fsspec: patient, gone on with where the connection broke, and pinned to a commit on the Hub."""

import io
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from onward.corpus.reading.inputs import InputFile
from onward.errors import UserError

RETRY_DELAYS_SECONDS = (1.0, 2.0, 4.0, 8.0)
_PASS_OVER_BYTES = 1 << 20
_COMMIT = re.compile(r"@[0-9a-f]{40}(?=/|$)")

Result = TypeVar("Result")


def patiently(action: Callable[[], Result], where: str) -> Result:
    """Do something over the network, again after 1, 2, 4 and 8 seconds when it fails; then raise UserError."""
    for delay in (*RETRY_DELAYS_SECONDS, None):
        try:
            return action()
        except (PermissionError, IsADirectoryError, ImportError, ValueError, UserError):
            raise
        except Exception as error:  # fsspec's back ends raise families (aiohttp, httpx, botocore) without common root
            if isinstance(error, FileNotFoundError) and not _hides_failure(error):
                raise
            if delay is None:
                todo = "check the network and run again: finished work is kept"
                got = f"{type(error).__name__}: {error}".removesuffix(": ")
                raise UserError("a remote file cannot be read", where, got, todo=todo) from error
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _hides_failure(error: FileNotFoundError) -> bool:
    """Whether fsspec says that there is no file because its server could not be asked (it does so for http)."""
    cause = error.__cause__
    return type(cause).__module__.startswith("aiohttp") and not 400 <= getattr(cause, "status", 0) < 500


def pinned(filesystem: Any, path: str) -> str:
    """Return a path of the Hub at its newest commit (`datasets/owner/name@<sha>/...`); any other path as it is.

    All files of a source are then listed and read at one commit, though the data set may change meanwhile.
    """
    if filesystem.protocol != "hf":
        return path
    from huggingface_hub import HfApi, HfFileSystem

    if not isinstance(filesystem, HfFileSystem):
        return path
    there: Any = filesystem.resolve_path(path)
    if getattr(there, "repo_type", None) is None:  # a bucket has no commits
        return path
    api = HfApi(endpoint=filesystem.endpoint, token=filesystem.token)
    commit = api.repo_info(there.repo_id, repo_type=there.repo_type, revision=there.revision).sha
    kind = "" if there.repo_type == "model" else f"{there.repo_type}s/"
    return f"{kind}{there.repo_id}@{commit}/{there.path_in_repo}".rstrip("/")


def without_commit(address: str) -> str:
    """Return an address of the Hub without its commit."""
    return _COMMIT.sub("", address) if address.startswith("hf://") else address


class RemoteFile(io.RawIOBase):
    """A remote file that is opened again, at the place where it was, when the network fails."""

    def __init__(self, file: InputFile) -> None:
        import fsspec

        self._where = file.path
        self._filesystem, self._path = fsspec.core.url_to_fs(file.address)
        self._size = file.size_bytes
        self._position = 0
        self._open: Any = None
        self._is_stream = False

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is (Parquet reads its end first)."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; the network is not asked."""
        assert whence != io.SEEK_END or self._size is not None, "the size of a remote file is known"
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size or 0}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read up to the buffer's length."""
        block = patiently(lambda: self._read(len(buffer)), self._where)
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._open is not None:
            with suppress(Exception):  # a broken connection need not close well
                self._open.close()
            self._open = None

    def _read(self, size: int) -> bytes:
        try:
            if self._open is None:
                self._open = self._opened()
            if self._open.tell() != self._position:
                self._go_to(self._position)
            block: bytes = self._open.read(size)
        except BaseException as error:
            self._drop()
            if isinstance(error, ValueError) and not self._is_stream:
                # The server takes no ranges: the file comes as one stream, again from its start after a failure.
                self._is_stream = True
                return self._read(size)
            if isinstance(error, FileNotFoundError):  # it was there when the files were listed
                raise ConnectionError(f"the file is not there any more ({error})") from error
            raise
        if not block and size and self._size is not None and self._position < self._size:
            self._drop()
            raise ConnectionError(f"the connection ended at byte {self._position} of {self._size}")
        return block

    def _opened(self) -> Any:
        return self._filesystem.open(self._path, "rb", **({"block_size": 0} if self._is_stream else {}))

    def _go_to(self, position: int) -> None:
        """Seek; a stream is read up to the place, from its start if that lies before."""
        try:
            self._open.seek(position)
        except (ValueError, NotImplementedError):
            if self._open.tell() > position:
                self._drop()
                self._open = self._opened()
            while (left := position - self._open.tell()) > 0:
                if not self._open.read(min(left, _PASS_OVER_BYTES)):
                    raise ConnectionError(f"the connection ended at byte {self._open.tell()}") from None
