"""Peak memory of this process and all it starts, sampled by a thread."""

import threading
from types import TracebackType

import psutil


class Memory:
    """Samples while it is entered.

    peak_rss_mb: sum of the resident memory of all processes; pages that they share count more than once.
    peak_pss_mb: the same with each shared page split among its users (Linux; elsewhere the sum of the private ones).
    """

    def __init__(self, every_seconds: float = 0.25) -> None:
        self.peak_rss_mb = self.peak_pss_mb = 0.0
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        this = psutil.Process()
        while True:
            rss = pss = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    facts = process.memory_full_info()
                except psutil.Error:
                    continue  # it has just ended
                rss += facts.rss
                pss += getattr(facts, "pss", facts.uss)
            self.peak_rss_mb = max(self.peak_rss_mb, rss / 1e6)
            self.peak_pss_mb = max(self.peak_pss_mb, pss / 1e6)
            if self._ended.wait(self._every_seconds):
                return
