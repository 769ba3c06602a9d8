"""Headers and hashes of a whole library, read in a thread that nobody waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from lib_lora.errors import BadFile
from lib_lora.files.folders import Entry, fresh
from lib_lora.files.hashes import file_hashes
from lib_lora.files.library import NetworkLibrary

log = logging.getLogger(__name__)

SAVE_SECONDS, LOOK_SECONDS = 30.0, 60.0


class _Stopped(Exception):
    """Raised in the thread between two blocks of a file when it shall end."""


class Background:
    """Reads every header, then hashes what has no hash yet; looks for new files once a minute.

    A context manager: runs inside the `with` block. Start and stop may be called any number of times.
    """

    def __init__(self, library: NetworkLibrary) -> None:
        self.library = library
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._deciding = threading.Lock()  # round "nothing left to do"
        self._wanted: deque[Entry] = deque()
        self._thread: threading.Thread | None = None
        self._saved = 0.0

    def start(self) -> None:
        """Begin, if it does not run already."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="lorakit-library", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End within one block of reading, and keep what is known so far."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def first(self, entry: Entry) -> None:
        """Hash this file before all others, and also if its metadata state a hash."""
        with self._deciding:
            self._wanted.append(entry)
            self._idle.clear()
            self._wake.set()

    def wait(self, seconds: float) -> bool:
        """Wait until everything is known; returns whether that came true."""
        return self._idle.wait(seconds)

    def __enter__(self) -> Background:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                entries = self.library.entries()
                for entry in entries:
                    self._between()
                    self.library.facts(entry)
                self._save()
                for entry in entries:
                    self._hash_wanted()
                    if not self.library.facts(entry).hash:
                        self._hash(entry)
                self._hash_wanted()
                self._save()
                with self._deciding:
                    if not self._wake.is_set():
                        self._idle.set()
                self._wake.wait(LOOK_SECONDS)
                self._idle.clear()
                self._between()
        except _Stopped:
            self._save()

    def _hash_wanted(self) -> None:
        while self._wanted:
            self._hash(self._wanted.popleft())

    def _hash(self, entry: Entry) -> None:
        facts = self.library.facts(entry)
        if facts.hashes is not None or facts.headline.fault:
            return
        try:
            hashes = file_hashes(entry.path, self._between)
        except BadFile as error:
            log.info("no hash of %s: %s", entry.relative, error)
            return
        if fresh(entry) == entry:  # else it was overwritten meanwhile, and is another entry at the next look
            self.library.index.add_hashes(entry.file, entry.stamp, hashes)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

    def _between(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _save(self) -> None:
        self.library.index.save()
        self._saved = time.monotonic()
