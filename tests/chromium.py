"""Chromium without a screen, steered by its DevTools protocol."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIMIT = 60  # seconds for any answer


class Chromium:
    """One page. Commands and events are JSON with a zero byte at the end, through pipes 3 and 4."""

    def __init__(self, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        def set_up_pipes() -> None:
            first, second = os.dup(theirs_in), os.dup(theirs_out)  # either may be number 3 or 4
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.log = profile / "browser.log"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += ["--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [BROWSER, *options, "about:blank"],
                pass_fds=(3, 4),
                preexec_fn=set_up_pipes,
                stdout=log,
                stderr=log,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(ours_in, False)
        self.input, self.output = ours_in, ours_out
        self.unread, self.number, self.session = b"", 0, None
        self.events: list[dict] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def receive(self) -> dict:
        deadline = time.monotonic() + LIMIT
        while b"\0" not in self.unread:
            try:
                self.unread += os.read(self.input, 1 << 20)
            except BlockingIOError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.01)
        message, self.unread = self.unread.split(b"\0", 1)
        return json.loads(message)

    def open(self, url: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def evaluate(self, code: str):
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, text: str = "", shift: bool = False) -> None:
        """A key as from a keyboard. text: what it types."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40}
        event = {"key": key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of an element."""
        x, y = self.evaluate(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wait_for(self, code: str) -> None:
        """Wait until a piece of JavaScript gives something that is true."""
        deadline = time.monotonic() + LIMIT
        while not self.evaluate(code):
            assert time.monotonic() < deadline, code
            time.sleep(0.01)

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an input for them."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=list(map(str, files)))

    def complaints(self, own: str = "/index.html") -> list:
        """What the page has thrown or logged, and what it has asked for beyond addresses with `own` in
        them."""
        self.evaluate("0")  # events that are under way come first
        wrong = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                wrong.append(params)
            if event["method"] == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith("data:") and own not in url:
                    wrong.append(url)
        return wrong

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.input)
        os.close(self.output)
