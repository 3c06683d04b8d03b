"""The page in a real browser, driven as a person would: one chat, at the width of a phone, in light and dark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import pytest
from served import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CONTRAST = """
(() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => { context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (at) => { for (; at; at = at.parentElement) { const c = getComputedStyle(at).backgroundColor;
    if (c !== "rgba(0, 0, 0, 0)") return c; } return "white"; };
  const worst = [];
  for (const at of document.querySelectorAll("h1, h2, p, span, label, dt, dd, .turn, textarea, input, button")) {
    if (at.disabled) continue;
    const [a, b] = [light(getComputedStyle(at).color), light(ground(at))];
    worst.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), at.tagName, at.textContent.slice(0, 30)]);
  }
  return worst.sort((a, b) => a[0] - b[0])[0];
})()
"""


class Browser:
    """Chromium, asked through the pipes of its DevTools protocol: JSON, ended by a zero byte."""

    def __init__(self, profile: str) -> None:
        theirs, self._out = os.pipe()
        self._in, back = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"
        command = f'exec {CHROMIUM} {flags} --user-data-dir="{profile}" 3<&{theirs} 4>&{back}'
        self.process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(theirs, back), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(back)
        self._count, self._rest, self.session = 0, b"", None
        self.wrong: list[Any] = []

    def __enter__(self) -> Browser:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._out)
        os.close(self._in)

    def _message(self) -> Any:
        while b"\0" not in self._rest:
            more = os.read(self._in, 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: Any) -> Any:
        self._count += 1
        asked = {"id": self._count, "method": method, "params": params}
        asked |= {"sessionId": self.session} if self.session else {}
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while (message := self._message()).get("id") != self._count:
            entry = message.get("params", {}).get("entry", {})
            if message["method"] == "Runtime.exceptionThrown" or entry.get("level") == "error":
                self.wrong.append(message["params"])
        assert "error" not in message, message
        return message["result"]

    def do(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_person_talks_to_the_model(server, tmp_path):
    with Browser(str(tmp_path)) as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        browser.call("Page.navigate", url=server.url)
        wait_for(lambda: browser.do("document.readyState === 'complete' && !!document.getElementById('ask')"))
        assert browser.do("getComputedStyle(talk, '::before').content").startswith('"Nothing has been said yet')
        wait_for(lambda: "0 running" in browser.do("engine.textContent"))
        browser.do("most.value = 1500; heat.value = 0; text.value = 'the cat'; send.click(); 0")
        wait_for(lambda: browser.do("document.querySelectorAll('#requests canvas').length") == 1)
        assert "writing" in browser.do("requests.textContent") and browser.do("send.disabled")
        browser.do("$('stop').click(); 0")
        wait_for(lambda: browser.do("!send.disabled"))
        assert browser.do("document.querySelectorAll('.turn').length") == 2 and len(browser.do("turns")) == 2
        wait_for(lambda: browser.do("requests.childElementCount") == 0)  # the server has noticed
        browser.do("most.value = 8; document.getElementById('new').click(); text.value = 'the mat'; 0")
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        browser.do("text.focus(); 0")
        browser.call("Input.dispatchKeyEvent", type="keyDown", **enter)
        wait_for(lambda: browser.do("!send.disabled && turns.length") == 2)
        expected = server.chat("the mat", max_completion_tokens=8, temperature=0).text
        assert browser.do("turns")[1]["content"] == expected == browser.do("talk.lastChild.textContent")
        browser.do("most.value = 9999; text.value = 'once more'; send.click(); 0")
        wait_for(lambda: browser.do("!send.disabled"))
        assert "expected at most 2048" in browser.do("document.querySelector('.turn.error').textContent")
        assert len(browser.do("turns")) == 2  # what was refused is not sent again
        for width in (320, 390, 1280):
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=False
            )
            for scheme in ("light", "dark"):
                features = [{"name": "prefers-color-scheme", "value": scheme}]
                browser.call("Emulation.setEmulatedMedia", features=features)
                assert browser.do("document.documentElement.scrollWidth <= innerWidth"), width
                ratio, *where = browser.do(CONTRAST)
                assert ratio >= 4.5, (scheme, ratio, where)
        refused = [each for each in browser.wrong if "400" not in str(each)]
        assert not refused  # no script failed, and no asset is missing
    assert server.pages_in_use() == 0
