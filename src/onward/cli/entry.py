"""Entry point of the `onward` command, by hand or as one of several ranks."""

import os
import signal
from types import FrameType

from onward.cli.application import app
from onward.signals import Terminated


def _terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated(128 + number)


def main() -> None:
    """Entry point of the `onward` command."""
    # A run has one display and one voice: its own. Set before transformers is imported, which reads them once.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # OpenMP's waiting threads spin briefly: beside another computing process a small
    # model trains 2.7 times as fast, on an idle machine 13 % slower (docs/decisions.md). Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    signal.signal(signal.SIGTERM, _terminated)
    from onward.training.launch import find_place

    if find_place().world == 1:
        app()
    else:
        _run_as_rank()


def _run_as_rank() -> None:
    """Run the command as one of several ranks, and end this process for certain."""
    import time
    import traceback

    from onward.training.launch import find_place, tell_status, tell_words

    status = 1
    try:
        returned = app(standalone_mode=False)
        status = returned if isinstance(returned, int) else 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        traceback.print_exc()
        tell_words(f"{type(error).__name__}: {error}")
    tell_status(status)
    if status > 1 and not find_place().is_first:
        time.sleep(5)  # torchrun ends all ranks with the first that goes, and the first rank may still be speaking
    from onward.training.ranks import leave

    leave(status)
