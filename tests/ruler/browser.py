"""A real browser without a display: what a page shows, logs and asks the network for.

The browser is Qt's Chromium, from the wheel PySide6_WebEngine. It runs in a process of its own:
`python browser.py FILE PICTURE`, with a list of scripts in JSON on stdin.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SIZE = (1200, 900)
_ENVIRONMENT = {
    "QT_QPA_PLATFORM": "offscreen",
    # Without a graphics card, and as root, where Chromium refuses its sandbox.
    "QTWEBENGINE_CHROMIUM_FLAGS": "--disable-gpu --no-sandbox",
    "QTWEBENGINE_DISABLE_SANDBOX": "1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What a browser saw of a page.

    Attributes:
      values: the value of every script, run one after the other once the page was loaded.
      console: messages, warnings and errors that the page logged, uncaught exceptions among them.
      requests: addresses that it asked for, its own among them.
    """

    values: list[Any]
    console: list[str]
    requests: list[str]


def look(page: Path, scripts: Sequence[str], picture: Path) -> Look:
    """Opens a page in the browser, runs scripts in it, and saves a picture of it.

    Raises RuntimeError if the browser does not start, or does not load the page.
    """
    run = subprocess.run(
        [sys.executable, __file__, str(page), str(picture)],
        input=json.dumps(list(scripts)),
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"the browser ended with status {run.returncode}:\n{run.stderr}")
    return Look(**json.loads(run.stdout.splitlines()[-1]))


def _main(page: str, picture: str, scripts: Sequence[str]) -> int:
    from PySide6.QtCore import QTimer, QUrl
    from PySide6.QtWebEngineCore import (
        QWebEnginePage,
        QWebEngineProfile,
        QWebEngineUrlRequestInterceptor,
    )
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    app = QApplication(sys.argv)
    seen: dict[str, list[Any]] = {"values": [], "console": [], "requests": []}

    class Interceptor(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info: Any) -> None:  # noqa: N802
            seen["requests"].append(info.requestUrl().toString())

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(  # noqa: N802
            self, level: Any, message: str, line: int, source: str
        ) -> None:
            seen["console"].append(f"{level.name}: {message} ({source}:{line})")

    interceptor = Interceptor()
    profile = QWebEngineProfile()
    profile.setUrlRequestInterceptor(interceptor)
    view = QWebEngineView()
    shown = Page(profile, view)
    view.setPage(shown)
    view.resize(*_SIZE)
    view.show()

    def answered(value: object) -> None:
        seen["values"].append(value)
        ask()

    def ask() -> None:
        place = len(seen["values"])
        if place < len(scripts):
            shown.runJavaScript(scripts[place], answered)
        else:
            # The picture is that of the next frame.
            QTimer.singleShot(300, finish)

    def finish() -> None:
        view.grab().save(picture)
        app.exit(0)

    shown.loadFinished.connect(lambda loaded: ask() if loaded else app.exit(3))
    QTimer.singleShot(60_000, lambda: app.exit(4))
    shown.load(QUrl.fromLocalFile(str(Path(page).resolve())))
    status = app.exec()
    print(json.dumps(seen), flush=True)
    return status


if __name__ == "__main__":
    # Qt would complain about the order in which Python frees its objects.
    os._exit(_main(sys.argv[1], sys.argv[2], json.load(sys.stdin)))
