"""A real browser for tests of the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]


class Chromium:
    """A headless Chromium without a network, spoken to in the W3C's WebDriver protocol."""

    def __init__(self):
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        found = next(m for line in self.driver.stdout if (m := re.search(r"started successfully on port (\d+)", line)))
        self.address = f"http://127.0.0.1:{found[1]}/session"
        arguments = ["--headless", "--no-sandbox", "--window-size=1300,1000", "--host-resolver-rules=MAP * ~NOTFOUND"]
        options = {"args": arguments, "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.address += "/" + self.ask("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def ask(self, command: str, values: dict | None = None, method: str = "POST") -> Any:
        data = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(
            self.address + command, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, fragment: str = "") -> None:
        self.ask("/url", {"url": "about:blank"})
        self.ask("/url", {"url": page.as_uri() + fragment})

    def run(self, script: str, *arguments: object) -> Any:
        return self.ask("/execute/sync", {"script": script, "args": arguments})

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def click(self, selector: str) -> None:
        (element,) = self.ask("/element", {"using": "css selector", "value": selector}).values()
        self.ask(f"/element/{element}/click", {})

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.ask("/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]

    def close(self) -> None:
        self.ask("", method="DELETE")
        self.driver.terminate()
        self.driver.wait()
