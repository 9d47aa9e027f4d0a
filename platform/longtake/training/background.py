"""Work that goes on in a thread while training does: one piece at a time, and its error is raised by whoever asks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Background:
    """One piece of work in flight. Its thread is no daemon: a process that ends waits for it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece, after the one before: what went wrong with that is raised here."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name=self._name)
        self._thread.start()

    def wait(self) -> None:
        """Until there is none in flight; raises what went wrong, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def settle(self, seconds: float) -> None:
        """Until there is none in flight, where another error may be on its way already: what went wrong is logged.

        Not longer than `seconds`: what a thread waits for may be gone.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                logger.error("%s: not whole after %g s, left behind", self._name, seconds)
                return
        try:
            self.wait()
        except Exception as error:
            logger.error("%s: %s", self._name, error)

    def raise_if_failed(self) -> None:
        """Raise what went wrong; does not wait."""
        if self._error is not None:
            self.wait()
