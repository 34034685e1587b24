"""The page in headless Chromium, with a fake server that records requests, and with the real one."""

import base64
import io
import json
import re
import shutil
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

from polyphi.engine.engine import Engine
from polyphi.media.media import decode_audio
from polyphi.serve.admission.settings import Settings
from polyphi.serve.app import create_app
from polyphi.serve.page import page as served
from tests.core.serve.page.page_server import HOSTILE, RICH, SAID, TRANSLATION, PageServer

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
)
OPTIONS = """--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync --use-fake-ui-for-media-stream
--use-fake-device-for-media-stream --autoplay-policy=no-user-gesture-required --window-size=1280,800"""


class Page:
    """The page as a user operates it."""

    def __init__(self, profile: Path, downloads: Path, *more: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (*OPTIONS.split(), f"--user-data-dir={profile}", *more):
            options.add_argument(option)
        options.add_experimental_option(
            "prefs", {"download.default_directory": str(downloads), "download.prompt": False}
        )
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.downloads = downloads
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))

    def open(self, url: str) -> "Page":
        self.driver.get(url)
        return self

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def stored(self) -> int:
        """The number of stored conversations, after all that the page is storing now is stored."""
        return self.driver.execute_async_script(
            "const [done] = arguments, opening = indexedDB.open('polyphi', 1);"
            "opening.onsuccess = () => {"
            "  const store = opening.result.transaction('conversations').objectStore('conversations');"
            "  store.count().onsuccess = ({target}) => { opening.result.close(); done(target.result); };"
            "};"
        )

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def of(self, selector: str, name: str) -> Any:
        """A property of an element."""
        return self.run("return document.querySelector(arguments[0])[arguments[1]]", selector, name)

    def choose(self, selector: str, value: str) -> None:
        """An option of a list."""
        self.run(
            """const list = document.querySelector(arguments[0]);
            list.value = arguments[1];
            list.dispatchEvent(new Event("change"));""",
            selector,
            value,
        )

    def choose_adapter(self, label: str) -> None:
        """An adapter in the menu of models, by its label."""
        self.click("#model")
        path = f"//*[@id='model-menu']//fieldset[2]//label[.='{label}']"
        self.until(lambda: len(self.all("#model-menu input")) == 6, "the server's models")
        # The menu is built again when the server has answered.
        self.until(lambda: self.driver.find_element("xpath", path).click() or True, label)
        self.click("#model")
        self.until(lambda: not self.find("#model-menu").is_displayed(), "the menu to close")

    def click(self, selector: str) -> None:
        self.until(lambda: self.find(selector).is_displayed(), f"{selector} to be shown")
        self.find(selector).click()

    def until(self, true: Callable[[], Any], what: str, seconds: float = 15) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(WebDriverException, IndexError):
                if value := true():
                    return value
            time.sleep(0.03)
        raise AssertionError(f"waited {seconds} s for {what}")

    def texts(self, selector: str) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)",
            selector,
        )

    def ready(self) -> "Page":
        self.until(lambda: self.all("body.ready"), "the page to be ready")
        return self

    def write(self, text: str) -> None:
        self.until(lambda: self.find("#draft").is_displayed(), "the message box")
        self.find("#draft").send_keys(text)

    def say(self, text: str) -> str:
        """Send a message, wait for the whole answer, and return it."""
        self.write(text)
        return self.send()

    def send(self) -> str:
        before = {one.get_attribute("data-id") for one in self.all(".message.assistant")}
        self.click("#send")
        self.until(
            lambda: self.all(".message.assistant")[-1].get_attribute("data-id") not in before,
            "an answer to begin",
        )
        return self.answer()

    def answer(self) -> str:
        self.until(
            lambda: self.find("#stop").get_attribute("hidden") and self.all(".message.assistant"),
            "an answer",
        )
        return self.texts(".message.assistant .markdown")[-1]

    def drop(self, name: str, data: bytes, kind: str = "") -> None:
        """Drop a file on the page."""
        self.run(
            """const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], arguments[0], {type: arguments[2]}));
            for (const name of ["dragenter", "dragover", "drop"])
              document.body.dispatchEvent(new DragEvent(name, {dataTransfer, bubbles: true}));""",
            name,
            base64.b64encode(data).decode(),
            kind,
        )

    def paste(self, name: str, data: bytes) -> None:
        """Paste a file into the message."""
        self.run(
            """const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], arguments[0]));
            const event = new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true});
            document.getElementById("draft").dispatchEvent(event);""",
            name,
            base64.b64encode(data).decode(),
        )

    def attached(self, number: int) -> None:
        self.until(lambda: len(self.all("#attachments li")) == number, f"{number} attachments")

    def key(self, key: str, **modifiers: bool) -> None:
        self.run(
            """document.activeElement.dispatchEvent(new KeyboardEvent("keydown",
            {key: arguments[0], bubbles: true, cancelable: true, ...arguments[1]}))""",
            key,
            modifiers,
        )

    def toast(self) -> str:
        return self.until(lambda: self.find("#toast").text, "a line at the foot of the page")

    def downloaded(self, name: str) -> str:
        paths = self.until(lambda: list(self.downloads.glob(name)), f"a file {name}")
        self.until(lambda: paths[0].stat().st_size, f"{name} to be written")
        return paths[0].read_bytes().decode()

    def console(self) -> list[str]:
        """What was said on the console but that an answer had a bad status, which a test may want."""
        entries = self.driver.get_log("browser")
        return [e["message"] for e in entries if e["source"] not in ("network", "recommendation")]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.run("return document.documentElement.scrollWidth - innerWidth")

    def phone(self) -> None:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "downloads").mkdir()
    page = Page(folder / "profile", folder / "downloads")
    yield page
    page.driver.quit()


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """Every server has its own port, so that no test sees browser data of another one."""
    yield browser
    entries = browser.console()
    browser.driver.get("about:blank")
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for file in browser.downloads.iterdir():
        file.unlink()
    assert entries == [], "the console is silent: no violation of the policy, no error"


@pytest.fixture
def server() -> Iterator[PageServer]:
    with PageServer() as running:
        yield running


def png(width: int = 60, height: int = 40) -> bytes:
    file = io.BytesIO()
    PIL.new("RGB", (width, height), (200, 90, 40)).save(file, "PNG")
    return file.getvalue()


def clip(seconds: float = 1.25) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        times = np.arange(int(16000 * seconds)) / 16000
        out.writeframes((8000 * np.sin(2 * np.pi * 440 * times)).astype("<i2").tobytes())
    return file.getvalue()


PDF = b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
"""The header of a HEIC picture: Chromium doesn't decode this format, so it may as well be empty."""


def avif(width: int = 30, height: int = 20) -> bytes:
    file = io.BytesIO()
    PIL.new("RGB", (width, height), (40, 90, 200)).save(file, "AVIF")
    return file.getvalue()


def chats(server: PageServer) -> list[dict[str, Any]]:
    return server.bodies("/v1/chat/completions")


# ---------------------------------------------------------------- conversations


def test_a_conversation_with_a_picture_and_a_recording(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.drop("a cat.png", png())
    page.attached(1)
    page.write("what is this?")
    page.until(lambda: "1,096 tokens" in page.find("#count").text, "the count before sending")
    assert "1,093 image" in page.find("#count").text
    assert page.send() == "You said: what is this? 🙂é"
    assert "vision adapter" in page.texts(".stats")[0] and "tokens/s" in page.texts(".stats")[0]
    assert "1,096 in (1,093 image)" in page.texts(".stats")[0]
    image, text = chats(server)[0]["messages"][0]["content"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == png()
    assert text == {"type": "text", "text": "what is this?"}

    page.click("#mic")
    page.until(lambda: page.find("#chat-timer").text not in ("", "0:00"), "a second of recording")
    level = page.run("return document.getElementById('chat-level').style.width")
    assert level.endswith("%")
    page.click("#chat-record-stop")
    page.attached(1)
    assert page.find("#attachments audio").get_attribute("controls")
    page.until(lambda: page.of("#attachments audio", "readyState") >= 1, "it to be playable")
    assert re.search(r"\.webm · \d+:\d\d$", page.texts("#attachments .name")[0])
    assert page.send()
    body = chats(server)[1]
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == "You said: what is this? 🙂é"
    (sound,) = body["messages"][2]["content"]
    assert sound["input_audio"]["format"] == "webm"
    samples, rate = decode_audio(base64.b64decode(sound["input_audio"]["data"]))
    assert 0.9 * rate <= len(samples) < 60 * rate
    assert np.abs(samples).max() > 0.01, "the fake microphone beeps"
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}
    assert body["model"] == "phi-mock" and "adapter" not in body and "temperature" not in body


def test_a_recording_can_be_cancelled_and_a_file_taken_away(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.click("#mic")
    page.until(lambda: page.find("#chat-recording").is_displayed(), "the recorder")
    page.key("Escape")
    page.until(lambda: page.find("#draft").is_displayed(), "the message box")
    page.drop("a.png", png())
    page.attached(1)
    page.click("#attachments button[aria-label='Remove a.png']")
    page.attached(0)
    assert not page.find("#send").is_enabled()


def test_documents_and_pictures_that_the_server_decodes(
    page: Page, server: PageServer, tmp_path: Path
) -> None:
    """Files are read by their bytes: the names here are wrong."""
    page.open(server.url).ready()
    source = "BM = 1  # <b>not a bitmap</b> é\n"
    page.drop("report.txt", PDF)
    (tmp_path / "code.md").write_text(source)
    page.attached(1)
    page.find("#files").send_keys(str(tmp_path / "code.md"))
    page.attached(2)
    page.paste("photo.jpg", HEIC)
    page.attached(3)
    page.drop("sky.png", avif())
    page.attached(4)
    page.until(lambda: page.of("#attachments img", "naturalWidth") == 30, "the AVIF picture")
    page.until(lambda: len(page.all("#attachments .chip")) == 3, "the chips of the others")
    assert page.texts("#attachments .chip") == ["report.txt1 KB", "code.md1 KB", "photo.jpg1 KB"]
    page.write("what are these?")
    page.until(lambda: "tokens" in page.find("#count").text, "the count before sending")
    page.send()
    pdf, code, heic, sky, text = chats(server)[0]["messages"][0]["content"]

    def data(type_: str, data: bytes) -> str:
        return f"data:{type_};base64,{base64.b64encode(data).decode()}"

    url = data("application/pdf", PDF)
    assert pdf == {"type": "file", "file": {"filename": "report.txt", "file_data": url}}
    url = data("text/plain", source.encode())
    assert code == {"type": "file", "file": {"filename": "code.md", "file_data": url}}
    assert heic == {"type": "image_url", "image_url": {"url": data("image/heic", HEIC)}}
    assert sky == {"type": "image_url", "image_url": {"url": data("image/avif", avif())}}
    assert text == {"type": "text", "text": "what are these?"}

    page.open(server.url).ready()
    page.until(lambda: len(page.all(".message .chip")) == 3, "the chips of the sent files")
    assert page.texts(".message .chip .name") == ["report.txt", "code.md", "photo.jpg"]
    page.click(".message button.chip")
    page.until(lambda: page.texts("#text-large") == [source], "the text")
    assert not page.find("#picture-large").is_displayed() and not page.all("#text-large *")
    webdriver.ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.click("#export")
    exported = page.downloaded("polyphi-*.json")
    page.click(".message.user button[aria-label=Edit]")
    page.attached(4)
    page.click("#attachments [aria-label='Remove report.txt']")
    page.say(" And now?")
    before = chats(server)[0]["messages"][0]["content"]
    assert chats(server)[1]["messages"][0]["content"][:3] == before[1:4]
    page.drop("back.json", exported.encode())
    page.until(lambda: len(page.all("#history li")) == 2, "the import")
    page.say("again")
    assert chats(server)[2]["messages"][0]["content"] == before


@pytest.mark.long
def test_files_that_the_server_would_refuse_are_refused_here(
    page: Page, server: PageServer
) -> None:
    page.open(server.url).ready()
    for name, data, message in (
        ("big.png", png() + bytes(1 << 20), "big.png has 1.0 MB; the server accepts up to 1.0 MB"),
        ("wide.png", png(4000, 1001), "4,004,000 pixels; the server accepts up to 4,000,000"),
        ("notes.bin", b"hello\0", "notes.bin can't be read"),
        ("latin.txt", "façade".encode("latin-1"), "latin.txt can't be read"),
        ("scan.tiff", b"II*\0" + bytes(40), "scan.tiff: this server doesn't read TIFF pictures"),
        ("long.txt", b"word " * 300_000, "long.txt has 1.4 MB; the server accepts up to 1.0 MB"),
        ("cut.png", png()[:40], "cut.png is damaged"),
        ("none.png", b"", "none.png is empty"),
    ):
        page.run("document.getElementById('toast').hidden = true")
        page.drop(name, data)
        assert message in page.toast()
    page.attached(0)
    page.drop("a.png", png())
    page.attached(1)


@pytest.mark.long
def test_sound_that_only_the_browser_reads_becomes_wav(page: Page, server: PageServer) -> None:
    """WebM audio, which phones and browsers record, where the server doesn't decode it."""
    server.props["containers"] = False
    page.open(server.url).ready()
    page.driver.execute_async_script(
        """const done = arguments[0];
        navigator.mediaDevices.getUserMedia({audio: true}).then((stream) => {
          const recorder = new MediaRecorder(stream, {mimeType: "audio/webm"});
          recorder.ondataavailable = ({data}) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([data], "memo.webm", {type: "audio/webm"}));
            document.getElementById("draft").dispatchEvent(
              new ClipboardEvent("paste", {clipboardData: dataTransfer, cancelable: true}));
            stream.getTracks().forEach((track) => track.stop());
            done();
          };
          recorder.start();
          setTimeout(() => recorder.stop(), 700);
        });"""
    )
    page.attached(1)
    assert page.texts("#attachments .name")[0].startswith("memo.wav")
    page.say("hear")
    sound = chats(server)[0]["messages"][0]["content"][0]["input_audio"]
    with wave.open(io.BytesIO(base64.b64decode(sound["data"]))) as recording:
        assert recording.getframerate() == 16000 and recording.getnframes() > 4000


def test_reasoning_is_folded_and_not_sent_back(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.write("think")
    assert page.send() == "You said: think 🙂é"
    (details,) = page.all("details.reasoning")
    assert not details.get_attribute("open")
    page.click("details.reasoning summary")
    assert page.texts("details.reasoning .text") == ["one <b>and</b> two"]
    page.write("and?")
    page.send()
    assert [turn["content"] for turn in chats(server)[1]["messages"]] == [
        "think",
        "You said: think 🙂é",
        "and?",
    ]
    page.open(server.url).ready()
    page.click("details.reasoning summary")
    assert page.texts("details.reasoning .text") == ["one <b>and</b> two"]


def test_stop_before_the_first_token(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.write("never answer")
    page.click("#send")
    page.until(lambda: chats(server), "the request")
    page.click("#stop")
    page.until(
        lambda: page.texts(".message .note") == ["Stopped before the first word."], "the note"
    )
    page.until(lambda: server.left == ["/v1/chat/completions"], "the server to see it")
    assert page.run("return document.activeElement.id") == "draft"
    assert page.say("now") == "You said: now 🙂é"
    # An answer that never came isn't part of the conversation.
    assert [turn["role"] for turn in chats(server)[1]["messages"]] == ["user", "user"]


def test_stop_keeps_what_has_come(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.write("slowly please")
    page.click("#send")
    page.until(lambda: page.texts(".markdown")[-1:] not in ([], [""]), "some of the answer")
    page.key("Escape")
    page.until(lambda: page.texts(".message .note") == ["Stopped."], "the note")
    page.until(lambda: server.left, "the server to see it")
    partial = page.texts(".markdown")[-1]
    assert "You said: slowly please".startswith(partial) and partial
    page.open(server.url).ready()
    assert page.texts(".markdown")[-1] == partial


def test_reload_keeps_everything(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.click("#settings-open")
    page.find("#system").send_keys("Be brief.")
    page.find("#set-temperature").send_keys("0.7")
    page.click("#settings-close")
    page.drop("a.png", png(50, 30))
    page.attached(1)
    page.say("rich please")
    before = page.find("#log").text
    page.open(server.url).ready()
    page.until(lambda: page.of(".thumb img", "naturalWidth") == 50, "the picture")
    assert page.find("#log").text == before
    assert page.of("#system", "value") == "Be brief."
    page.say("again")
    body = chats(server)[-1]
    assert body["temperature"] == 0.7
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["messages"][1]["content"][0]["type"] == "image_url"
    assert body["messages"][2]["content"] == RICH


STORED = {
    "id": "0123456789abcdef01234567", "title": "", "system": "Be brief.",
    "created": 1750000000000, "updated": 1750000000000,
    "nodes": {
        "root": {"id": "root", "role": "root", "children": ["a"], "chosen": "a"},
        "a": {"id": "a", "parent": "root", "children": ["b", "c"], "chosen": "c", "media": [], "text": "one",
              "created": 1750000000000, "role": "user"},
        "b": {"id": "b", "parent": "a", "children": [], "chosen": None, "media": [], "text": "first",
              "created": 1750000000000, "role": "assistant", "end": "stop", "stats": None, "error": None},
        "c": {"id": "c", "parent": "a", "children": [], "chosen": None, "media": [], "text": "**second** $x$",
              "created": 1750000000000, "role": "assistant", "end": "length", "error": None,
              "stats": {"prompt": 3, "completion": 2, "image": 0, "audio": 0, "cached": 0, "adapter": "", "rate": 7}},
    },
}  # fmt: skip
"""A conversation as the page has stored it in IndexedDB since its first version."""


def test_stored_conversations_open(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.driver.execute_async_script(
        """const [conversation, done] = arguments, opening = indexedDB.open("polyphi", 1);
        opening.onsuccess = () => {
          const change = opening.result.transaction("conversations", "readwrite");
          change.objectStore("conversations").put(conversation);
          change.oncomplete = () => (opening.result.close(), done());
        };
        localStorage.setItem("polyphi.current", conversation.id);
        localStorage.setItem("polyphi.sampling", '{"temperature": 0.5, "adapter": null}');
        localStorage.setItem("polyphi.theme", "dark");""",
        STORED,
    )
    page.open(server.url).ready()
    assert page.texts("#history .name") == ["one"] and page.texts(".turn .place") == ["2/2"]
    assert page.texts(".markdown") == ["second x"] and page.all(".markdown strong, .markdown math")
    assert "7.0 tokens/s · 2 out · 3 in · no adapter" in page.texts(".stats")
    assert page.of("#system", "value") == "Be brief."
    assert page.of("#set-temperature", "value") == "0.5"
    assert page.texts("#model-name") == ["phi-mock · no adapter"]
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    page.say("two")
    assert [turn["role"] for turn in chats(server)[0]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_edit_regenerate_and_switch_branches(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.drop("a.png", png())
    page.attached(1)
    page.say("one")
    page.say("two")
    page.click(".message.user button[aria-label=Edit]")
    page.attached(1)
    page.find("#draft").send_keys(Keys.CONTROL, "a")
    assert page.say("uno") == "You said: uno 🙂é"
    assert page.texts(".message.user .text") == ["uno"]
    assert page.texts(".turn .place") == ["2/2"]
    content = chats(server)[-1]["messages"][0]["content"]
    assert content[0]["type"] == "image_url" and content[1]["text"] == "uno"

    page.click("button[aria-label='Earlier version']")
    assert page.texts(".message.user .text") == ["one", "two"]
    assert page.stored() == 1
    page.open(server.url).ready()
    assert page.texts(".message.user .text") == ["one", "two"], "the choice is kept"

    page.run("document.querySelectorAll('button[aria-label=Regenerate]')[1].click()")
    page.until(lambda: len(chats(server)) == 4, "another request")
    page.answer()
    assert chats(server)[3]["messages"] == chats(server)[1]["messages"]
    assert chats(server)[3]["seed"] != chats(server)[1]["seed"]
    assert "temperature" not in chats(server)[1] and chats(server)[3]["temperature"] == 0.8
    assert page.texts(".turn .place") == ["1/2", "2/2"]
    assert "temperature" not in page.texts(".stats")[0]
    assert page.texts(".stats")[1].endswith(" · temperature 0.8")

    page.run("document.querySelectorAll('button[aria-label^=\"Delete this\"]')[3].click()")
    assert page.texts(".turn .place") == ["1/2"]
    page.click("#toast button")
    assert page.texts(".turn .place") == ["1/2", "2/2"]


def test_errors_are_told_with_their_message_and_param(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.click("#settings-open")
    page.find("#system").send_keys("Be brief.")
    page.drop("a cat.png", png())
    page.attached(1)
    page.say("one")
    page.drop("notes.txt", b"some words")
    page.drop("a <b>dog</b>.png", png())
    page.attached(2)
    page.say("refuse messages[3].content[1].image_url.url")
    refused = "this <b>picture</b> can't be read"
    for prompt, subject in (
        (None, "The picture a <b>dog</b>.png in your second message: "),
        ("messages[3].content[0].file.file_data", "The file notes.txt in your second message: "),
        ("messages[1].content[0].image_url", "The picture a cat.png in your first message: "),
        ("messages[2].content", "The answer to your first message: "),
        ("messages[0].content", "The instructions in the settings: "),
        ("messages[5].content", "Your fourth message: "),
        ("top_p", "Top p in the settings: "),
        ("stream_options.include_usage", ""),
    ):
        if prompt:
            page.click("#draft")
            page.say(f"refuse {prompt}")
        assert page.texts(".message:last-child .note.error p") == [subject + refused]
        if prompt and not prompt.startswith("messages[3]"):
            page.run(
                "[...document.querySelectorAll('.user [aria-label^=\"Delete this\"]')].at(-1).click()"
            )
    page.say("break in the middle")
    assert page.texts(".message .note.error p")[-1] == "out of memory"
    assert page.texts(".markdown")[-1] == "You sa", "what had come is kept"
    server.__exit__(None, None, None)
    page.say("anybody there?")
    assert "can't be reached" in page.texts(".message .note.error p")[-1]


@pytest.mark.long
def test_another_answer_differs(page: Page, server: PageServer) -> None:
    def again() -> None:
        before = len(chats(server))
        page.run("[...document.querySelectorAll('button[aria-label=Regenerate]')].at(-1).click()")
        page.until(lambda: len(chats(server)) > before, "another request")
        page.answer()

    page.open(server.url).ready()
    page.click("#settings-open")
    page.find("#set-temperature").send_keys("0.5")
    page.find("#set-seed").send_keys("7")
    page.say("go")
    again()
    first, second = chats(server)
    assert first["seed"] == 7 and second["seed"] != 7 and second["temperature"] == 0.5
    page.find("#set-temperature").clear()
    page.find("#set-temperature").send_keys("0")
    page.say("and then")
    again()
    assert (chats(server)[2]["temperature"], chats(server)[3]["temperature"]) == (0, 0.8)
    assert page.say("nothing") == "" and page.texts(".message .note")
    again()
    assert page.texts(".markdown")[-1] == "You said: nothing 🙂é", "an empty answer isn't repeated"
    page.find("#set-top_k").send_keys("1")
    page.run("[...document.querySelectorAll('button[aria-label=Regenerate]')].at(-1).click()")
    assert page.toast() == "With a top k of 1 in the settings, every answer is the same."
    assert len(chats(server)) == 6


@pytest.mark.long
def test_answers_are_continued_and_edited(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    assert page.say("long story") == "You said: long story 🙂é"
    assert page.texts(".message .note")[0].startswith("The answer reached its maximum length")
    out = int(re.search(r"(\d+) out", page.texts(".stats")[0])[1])
    page.click("button[aria-label=Continue]")
    page.until(lambda: len(chats(server)) == 2, "the request")
    assert page.answer() == "You said: long story 🙂é And more."
    body = chats(server)[1]
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    assert body["messages"][-1] == {"role": "assistant", "content": "You said: long story 🙂é"}
    assert "temperature" not in body and len(body["messages"]) == 2
    assert int(re.search(r"(\d+) out", page.texts(".stats")[0])[1]) == out + 2
    assert len(page.all(".message")) == 2 and not page.all(".turn")

    page.click(".message.assistant button[aria-label=Edit]")
    assert page.of("#draft", "value") == "You said: long story 🙂é And more."
    assert page.find("#editing").text.startswith("Editing the answer")
    assert not page.find("#attach").is_displayed() and not page.find("#mic").is_displayed()
    page.drop("a.png", png())
    assert page.toast().startswith("An answer has no files")
    page.find("#draft").send_keys(Keys.CONTROL, "a")
    page.find("#draft").send_keys("**Mine**, complete", Keys.ENTER)
    page.until(lambda: page.texts(".markdown") == ["Mine, complete"], "the new version")
    assert page.texts(".turn .place") == ["2/2"] and len(chats(server)) == 2
    page.open(server.url).ready()
    page.click("button[aria-label=Continue]")
    assert page.toast() == "The model adds nothing to this answer."
    page.say("next")
    assert chats(server)[3]["messages"][1] == {"role": "assistant", "content": "**Mine**, complete"}
    page.click("button[aria-label='Earlier version']")
    assert page.texts(".markdown") == ["You said: long story 🙂é And more."]


@pytest.mark.long
def test_drafts_survive_a_reload(page: Page, server: PageServer) -> None:
    def keys() -> list[str]:
        return page.run("return Object.keys(localStorage).filter((k) => k.includes('draft'))")

    def media() -> int:
        return page.driver.execute_async_script(
            """const [done] = arguments, opening = indexedDB.open("polyphi");
            opening.onsuccess = () => {
              const all = opening.result.transaction("media").objectStore("media").count();
              all.onsuccess = () => { opening.result.close(); done(all.result); };
            };"""
        )

    page.open(server.url).ready()
    page.say("one")
    page.click("#new")
    page.write("half a thought")
    page.drop("a.png", png(50, 30))
    page.attached(1)
    page.drop("notes.txt", b"words")
    page.attached(2)
    page.click("#history .open")
    assert page.of("#draft", "value") == "" and not page.all("#attachments li")
    page.write("for the first")
    page.open(server.url).ready()
    assert page.texts(".message.user .text") == ["one"]
    assert page.of("#draft", "value") == "for the first"
    page.click("#new")
    page.attached(2)
    page.open(server.url).ready()
    assert page.of("#draft", "value") == "half a thought" and len(keys()) == 2
    page.attached(2)
    page.until(lambda: page.of("#attachments img", "naturalWidth") == 50, "the picture")
    page.click("#attachments [aria-label='Remove notes.txt']")
    page.until(lambda: media() == 1, "the removed file to be deleted")
    assert page.send() == "You said: half a thought 🙂é"
    assert chats(server)[1]["messages"][0]["content"][0]["type"] == "image_url"
    page.open(server.url).ready()
    assert page.of("#draft", "value") == "" and len(keys()) == 1
    page.write("x")
    assert len(keys()) == 2
    page.find("#draft").send_keys(Keys.BACKSPACE)
    assert len(keys()) == 1, "an emptied draft is gone"
    page.click(".message.user button[aria-label=Edit]")
    page.find("#draft").send_keys(", edited")
    page.open(server.url).ready()
    page.attached(1)
    assert page.of("#draft", "value") == "half a thought, edited"
    assert page.find("#editing").is_displayed()
    page.click("#editing-cancel")
    page.run("document.querySelector('#history li:last-child [aria-label^=Delete]').click()")
    page.until(lambda: not keys(), "the draft to go with its conversation")
    page.open(server.url).ready()
    assert page.of("#draft", "value") == "" and media() == 1


@pytest.mark.long
def test_a_reloaded_conversation_is_at_its_end(page: Page, server: PageServer) -> None:
    def short() -> float:
        """Pixels from the end."""
        return page.run(
            """const m = document.getElementById("messages");
            return m.scrollHeight - m.scrollTop - m.clientHeight;"""
        )

    page.open(server.url).ready()
    for n in range(3):
        page.drop(f"{n}.png", png(300, 400 + n))
        page.attached(n + 1)
    page.say("one")
    page.drop("last.png", png(300, 500))
    page.attached(1)
    page.say("two")
    page.open(server.url).ready()
    page.until(
        lambda: page.run("return [...document.images].filter((i) => i.naturalWidth).length") >= 2,
        "the pictures",
    )
    page.until(lambda: short() < 2, "the end")
    assert page.run("return document.getElementById('messages').scrollTop") > 300
    time.sleep(0.2)
    assert short() < 2 and not page.find("#to-end").is_displayed()
    page.run("document.getElementById('messages').scrollTop -= 200")
    page.until(lambda: page.find("#to-end").is_displayed(), "the reader to be away from the end")
    page.write("a")
    assert short() > 100, "who reads above stays there"

    server.pace = 0.001
    page.click("#new")
    page.say("rich")
    page.until(lambda: short() < 2, "the end of a longer conversation")
    page.click("#history li:last-child .open")
    page.until(lambda: page.all(".thumb img"), "the conversation")
    page.until(lambda: short() < 2, "its end")
    page.run("[...document.querySelectorAll('button[aria-label=Regenerate]')].at(-1).click()")
    page.answer()
    page.click("button[aria-label='Earlier version']")
    time.sleep(0.1)
    assert short() < 2, "the other version is at its end"


@pytest.mark.long
def test_presets(page: Page, server: PageServer) -> None:
    def preset() -> str:
        return page.run("return document.getElementById('preset').selectedOptions[0].textContent")

    page.open(server.url).ready()
    page.click("#settings-open")
    assert preset() == "Exact" and not page.find("#preset-delete").is_displayed()
    page.choose("#preset", "2")
    assert page.of("#set-temperature", "value") == "1" and page.of("#set-min_p", "value") == "0.05"
    page.find("#system").send_keys("Answer in rhyme.")
    page.find("#set-top_k").send_keys("40")
    assert preset() == "None of these"
    page.find("#preset-name").send_keys("Exact", Keys.ENTER)
    assert page.toast() == "Exact is built in: choose another name."
    page.find("#preset-name").clear()
    page.find("#preset-name").send_keys("<b>Poet</b>", Keys.ENTER)
    assert preset() == "<b>Poet</b>" and page.find("#preset-delete").is_displayed()
    page.choose("#preset", "0")
    assert page.of("#set-top_k", "value") == "" and page.of("#system", "value"), "it has none"
    page.open(server.url).ready()
    page.click("#settings-open")
    assert page.of("#system", "value") == ""
    page.choose("#preset", "3")
    page.say("go")
    body = chats(server)[0]
    assert body["messages"][0] == {"role": "system", "content": "Answer in rhyme."}
    assert (body["temperature"], body["top_k"], body["min_p"]) == (1, 40, 0.05)
    page.click("#preset-delete")
    assert preset() == "None of these" and len(page.all("#preset option")) == 4
    page.run(
        """localStorage.setItem("polyphi.presets", JSON.stringify(
        [null, 3, {name: 4}, {name: "odd", system: 7, sampling: {temperature: 99, top_k: 5, x: 1}}]))"""
    )
    page.open(server.url).ready()
    page.click("#settings-open")
    assert page.texts("#preset option")[1:] == ["Exact", "Balanced", "Creative", "odd"]
    page.choose("#preset", "3")
    assert page.of("#set-temperature", "value") == "" and page.of("#set-top_k", "value") == "5"
    page.run("localStorage.setItem('polyphi.presets', '{')")
    page.open(server.url).ready()
    assert len(page.all("#preset option")) == 4


@pytest.mark.long
def test_the_menu_of_models_by_keyboard(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    server.props["adapters"].append("medical")  # loaded after the page
    page.run("document.getElementById('model').focus()")
    assert (
        page.find("#model").text == "Model\nphi-mock" and page.find("#model").aria_role == "button"
    )
    webdriver.ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    menu = page.until(lambda: page.find("#model-menu"), "the menu")
    assert (menu.aria_role, menu.accessible_name) == ("dialog", "Model and adapter")
    page.until(lambda: len(page.all("#model-menu input")) == 7, "the models of the server now")
    names = [(one.aria_role, one.accessible_name) for one in page.all("#model-menu fieldset")]
    assert names == [("group", "Model"), ("group", "Adapter")]
    labels = [one.accessible_name for one in page.all("#model-menu input")]
    assert labels == ["phi-mock", "phi-alias", "Chosen by content", "None", "vision", "speech", "medical"]  # fmt: skip
    checked = [one.accessible_name for one in page.all("#model-menu :checked")]
    assert checked == ["phi-mock", "Chosen by content"]
    assert page.run("return document.activeElement.name") == "Model"
    pressed = (Keys.ARROW_DOWN, Keys.TAB, Keys.ARROW_UP, Keys.ESCAPE)
    webdriver.ActionChains(page.driver).send_keys(*pressed).perform()
    page.until(lambda: not page.find("#model-menu").is_displayed(), "the menu to close")
    assert page.run("return document.activeElement.id") == "model"
    assert page.texts("#model-name") == ["phi-alias · medical"]
    page.say("go")
    assert (chats(server)[0]["model"], chats(server)[0]["adapter"]) == ("phi-alias", "medical")
    page.open(server.url).ready()
    assert page.texts("#model-name") == ["phi-mock · medical"], "the adapter is kept"
    server.props["adapters"].remove("medical")
    page.open(server.url).ready()
    assert page.texts("#model-name") == ["phi-mock"]


@pytest.mark.long
def test_settings_go_with_the_request(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.click("#settings-open")
    for name, value in (("top_p", "0.9"), ("top_k", "40"), ("min_p", "0.05"), ("max_tokens", "99"),
                        ("seed", "7"), ("repetition_penalty", "1.1")):  # fmt: skip
        page.find(f"#set-{name}").send_keys(value)
    page.find("#set-temperature").send_keys("9")
    assert page.find("#set-temperature").get_attribute("aria-invalid") is not None
    page.choose_adapter("None")
    page.say("go")
    body = chats(server)[0]
    expected = {"top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 99, "seed": 7,
                "repetition_penalty": 1.1, "adapter": None}  # fmt: skip
    assert {name: body[name] for name in expected} == expected
    assert "temperature" not in body, "a value out of range is never sent"
    page.choose_adapter("vision")
    page.say("go")
    assert chats(server)[1]["adapter"] == "vision"
    page.choose("#preset", "0")
    page.choose_adapter("Chosen by content")
    page.say("go")
    assert not chats(server)[2].keys() & {*expected, "temperature"} - {"seed"}


# ---------------------------------------------------------------- safety


def still_text(page: Page, server: PageServer) -> None:
    """No script ran, nothing was fetched, and no text became an element."""
    with pytest.raises(WebDriverException):
        page.driver.switch_to.alert.accept()
    strange = page.run(
        """const all = [...document.querySelectorAll("*")];
        const handlers = all.flatMap((e) => e.getAttributeNames()).filter((n) => n.startsWith("on"));
        const pictures = [...document.images].map((i) => i.src).filter((u) => u && !u.startsWith("blob:"));
        const links = [...document.links].map((a) => a.href).filter((u) => !/^(https?|mailto):/.test(u));
        const parts = document.querySelectorAll("#page :is(script, iframe, object, embed, form, link)");
        return [...handlers, ...pictures, ...links, ...[...parts].map((e) => e.localName)];"""
    )
    assert strange == []
    known = {"/props", "/tokenize", "/v1/chat/completions"}
    assert {path for _, path, _ in server.seen} <= known, "something was fetched"


@pytest.mark.long
def test_s26_hostile_answers_and_names_stay_text(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    name = "<img src=/stolen.png onerror=alert(1)>.png"
    page.drop(name, png())
    page.attached(1)
    assert page.texts("#attachments .name") == [name]
    page.say("hostile <script>alert(1)</script>")
    time.sleep(0.3)
    still_text(page, server)
    answer = page.texts(".markdown")[-1]
    for text in ("<script>alert('xss')</script>", '<img src=x onerror="alert(\'xss\')">',
                 "<iframe src=", "click me (javascript:alert('xss'))", "<b onmouseover=alert(1)>x</b>",
                 '"><img src=/stolen.png onerror=alert(1)>', "\\href{javascript:alert(1)}{x}"):  # fmt: skip
        assert text in answer
    assert page.texts(".message.user .text") == ["hostile <script>alert(1)</script>"]
    page.open(server.url).ready()
    time.sleep(0.3)
    still_text(page, server)
    for link in page.all(".markdown a"):
        assert link.get_attribute("rel").startswith("noopener noreferrer")
        assert "evil.invalid" in link.get_attribute("href") + link.text


def test_s26_a_hostile_file_is_imported_as_text(
    page: Page, server: PageServer, tmp_path: Path
) -> None:
    evil = "<img src=/stolen.png onerror=alert(1)>"
    nodes = {
        "root": {"children": ["a", "a", "__proto__", 7, ["a"], "gone"], "chosen": "a"},
        "a": {"id": "a", "role": "user", "text": evil, "children": ["b", "root"], "chosen": "b",
              "media": ["m", "s", "x"]},
        "b": {"id": "b", "role": "assistant", "text": HOSTILE, "children": ["a"], "chosen": evil,
              "error": [evil, {"x": 1}], "end": evil,
              "stats": {"adapter": evil, "prompt": evil, "completion": 3, "onclick": evil}},
    }  # fmt: skip
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    media = [
        {"id": "m", "kind": "image", "type": "image/png", "name": evil, "data": base64.b64encode(png()).decode()},
        {"id": "s", "kind": "image", "type": "image/svg+xml", "name": evil, "data": base64.b64encode(svg).decode()},
        {"id": "x", "kind": "audio", "type": "text/html", "name": evil, "data": "PGI+"},
    ]  # fmt: skip
    file = {"format": "polyphi-conversations", "version": 1, "media": media,
            "conversations": [{"id": evil, "title": evil, "system": evil, "nodes": nodes}, None, 3]}  # fmt: skip
    page.open(server.url).ready()
    page.drop("chats.json", json.dumps(file).encode(), "application/json")
    assert page.toast() == "One conversation imported."
    page.until(lambda: page.all(".thumb img"), "the picture")
    time.sleep(0.3)
    still_text(page, server)
    assert page.find("#title").text == evil and page.texts("#history .name") == [evil]
    assert page.texts(".message.user .text") == [evil] and len(page.all(".medium")) == 1
    assert page.texts(".message .note.error p") == [evil]
    assert page.find(".stats").text == f"3 out · {evil} adapter"
    for broken in ("nonsense", "{}", '{"format": "polyphi-conversations", "conversations": [{}]}'):
        page.run("document.getElementById('toast').hidden = true")
        (tmp_path / "chats.json").write_text(broken)
        page.find("#import-file").send_keys(str(tmp_path / "chats.json"))
        assert page.toast().startswith("That file contains no")


def test_dompurify_lets_nothing_else_through(page: Page, server: PageServer) -> None:
    """The second protection: disallowed elements are removed, although the page's own code creates none."""
    page.open(server.url).ready()
    install(page)
    left = page.run(
        """const element = box(), make = (tag, values) => Object.assign(document.createElement(tag), values);
        element.append(make("script"), make("img", {alt: "x"}), make("iframe"), make("form"), make("style"));
        element.append(make("a", {href: "javascript:alert(1)", id: "draft", textContent: "<b>kept</b>"}), make("svg"));
        DOMPurify.sanitize(element);
        return element.innerHTML;"""
    )
    assert left == "<a>&lt;b&gt;kept&lt;/b&gt;</a>"


def test_the_policy_holds_against_the_page_itself(page: Page, server: PageServer) -> None:
    """The last protection: the browser would neither parse injected HTML nor run or fetch anything from it."""
    page.open(server.url).ready()
    refused = page.driver.execute_async_script(
        """const done = arguments[0], refused = [];
        addEventListener("securitypolicyviolation", (e) => refused.push(e.effectiveDirective));
        try { document.body.innerHTML = "<b>x</b>"; } catch (error) { refused.push(error.name); }
        const image = document.createElement("img");
        image.src = "/stolen.png";
        document.body.append(image);
        fetch("https://evil.invalid/").catch(() => refused.push("fetch"));
        setTimeout(() => done(refused), 300);"""
    )
    expected = {"TypeError", "require-trusted-types-for", "img-src", "connect-src", "fetch"}
    assert expected <= set(refused)
    assert {path for _, path, _ in server.seen} == {"/props"}
    assert page.console()


@pytest.mark.long
def test_a_key_is_asked_for_and_kept_as_long_as_wished(page: Page, server: PageServer) -> None:
    server.key = "s3cret"
    page.open(server.url)
    page.until(lambda: page.find("#key-dialog").is_displayed(), "the dialog")
    page.find("#key-input").send_keys("wrong", Keys.ENTER)
    page.until(lambda: page.find("#key-wrong").is_displayed(), "the word that it is wrong")
    page.find("#key-input").send_keys("s3cret")
    page.click("#key-ok")
    page.ready()
    assert page.say("hello") == "You said: hello 🙂é"
    assert page.run("return [sessionStorage.length, localStorage.getItem('polyphi.key')]") == [1, None]  # fmt: skip
    server.key = "other"
    page.write("and now?")
    page.click("#send")
    page.until(lambda: page.find("#key-dialog").is_displayed(), "the dialog")
    page.click("#key-remember")
    page.find("#key-input").send_keys("other", Keys.ENTER)
    assert page.answer() == "You said: and now? 🙂é"
    assert page.run("return [sessionStorage.length, localStorage.getItem('polyphi.key')]") == [0, "other"]  # fmt: skip
    page.open(server.url).ready()
    page.click("#help")
    page.click("#key-forget")
    page.open(server.url)
    page.until(lambda: page.find("#key-dialog").is_displayed(), "the dialog")
    page.click("#key-dialog .dialog-close")
    page.until(lambda: "an API key is needed" in page.find("#offline").text, "what is wrong")


# ---------------------------------------------------------------- history, layout, keys


@pytest.mark.long
def test_export_and_import_are_a_round_trip(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.drop("a.png", png(50, 30))
    page.attached(1)
    page.say("rich one")
    page.drop("a.wav", clip())
    page.attached(1)
    page.say("two")
    page.click(".message.user button[aria-label=Edit]")
    page.attached(1)
    page.say(" more")
    page.click("button[aria-label='Earlier version']")
    before = page.find("#log").text
    page.click("#export")
    text = page.downloaded("polyphi-*.json")
    assert len(json.loads(text)["media"]) == 2
    page.run("document.querySelector('#history button[aria-label^=Delete]').click()")
    page.until(lambda: not page.all("#history li"), "the conversation to be gone")
    page.open(server.url).ready()
    assert not page.all("#history li")
    stored = """const done = arguments[0], opening = indexedDB.open("polyphi");
        opening.onsuccess = () => { const all = opening.result.transaction("media").objectStore("media").count();
        all.onsuccess = () => { opening.result.close(); done(all.result); }; };"""
    assert page.driver.execute_async_script(stored) == 0, "its media are forgotten too"
    page.drop("back.json", text.encode(), "application/json")
    page.until(lambda: len(page.all("#history li")) == 1, "the import")
    page.until(lambda: page.of(".thumb img", "naturalWidth") == 50, "the picture")
    page.until(lambda: page.of(".medium audio", "duration") == 1.25, "the clip")
    assert page.find("#log").text == before
    page.open(server.url).ready()
    assert page.find("#log").text == before and page.texts(".turn .place") == ["1/2"]


def test_a_conversation_is_saved_as_markdown(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.click("#settings-open")
    page.find("#system").send_keys("Be brief.")
    page.drop("a `cat`.png", png())
    page.drop("notes.txt", b"words")
    page.attached(2)
    page.say("a / b?")
    page.run("document.querySelector('#history [aria-label$=\"as Markdown\"]').click()")
    assert page.downloaded("a-b-.md") == (
        "# a / b?\n\n## Instructions\n\nBe brief.\n\n## You\n\nAttached: `a 'cat'.png`\n\n"
        "Attached: `notes.txt`\n\na / b?\n\n## Answer\n\nYou said: a / b? 🙂é\n"
    )


def test_a_conversation_deleted_while_it_is_answered_stays_deleted(
    page: Page, server: PageServer
) -> None:
    page.open(server.url).ready()
    page.write("never")
    page.click("#send")
    page.until(lambda: chats(server), "the request")
    page.run("document.querySelector('#history [aria-label^=Delete]').click()")
    page.until(lambda: server.left, "the server to see it")
    page.until(lambda: not page.all("#history li"), "it to be gone")
    page.open(server.url).ready()
    assert not page.all("#history li") and page.stored() == 0


@pytest.mark.long
def test_search_rename_delete_and_undo(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.say("apples are red")
    page.click("#new")
    page.say("bananas are yellow")
    assert page.texts("#history .name") == ["bananas are yellow", "apples are red"]
    page.key("k", ctrlKey=True)
    assert page.run("return document.activeElement.id") == "search"
    page.find("#search").send_keys("APPLES")
    assert page.texts("#history .name") == ["apples are red"]
    page.click("#history .open")
    assert page.texts(".message.user .text") == ["apples are red"]
    page.run("document.querySelector('#history button[aria-label^=Rename]').click()")
    page.find("#history input").send_keys(Keys.CONTROL, "a")
    page.find("#history input").send_keys("Fruit <b>", Keys.ENTER)
    page.find("#search").clear()
    page.find("#search").send_keys("you said: apples")
    assert page.texts("#history .name") == ["Fruit <b>"]
    page.run("document.querySelector('#history button[aria-label^=Delete]').click()")
    page.until(lambda: not page.texts("#history .name"), "the conversation to be gone")
    page.click("#toast button")
    page.until(lambda: page.texts("#history .name") == ["Fruit <b>"], "it to be back")
    page.open(server.url).ready()
    assert set(page.texts("#history .name")) == {"Fruit <b>", "bananas are yellow"}


@pytest.mark.long
def test_what_another_tab_changed_is_seen(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.say("one")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open(server.url).ready()
    page.say("two")
    page.click("#new")
    page.say("three")
    page.driver.close()
    page.driver.switch_to.window(first)
    page.run("document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))")
    page.until(lambda: page.texts("#history .name") == ["three", "one"], "the other conversation")
    assert page.texts(".message.user .text") == ["one", "two"]


def test_everything_by_keyboard(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    assert page.run("return document.activeElement.id") == "draft"
    page.find("#draft").send_keys("line one", Keys.SHIFT, Keys.ENTER)
    page.find("#draft").send_keys("line two", Keys.ENTER)
    assert page.answer() == "You said: line oneline two 🙂é"
    assert chats(server)[0]["messages"][0]["content"] == "line one\nline two"
    page.key("n", ctrlKey=True, shiftKey=True)
    assert page.find("#empty").is_displayed()
    page.key("/", ctrlKey=True)
    assert page.find("#help-dialog").is_displayed()
    webdriver.ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.until(lambda: not page.find("#help-dialog").is_displayed(), "the help to close")
    # In the order in which one reads: side, head, messages, message box; nothing hidden on the way.
    page.run("document.querySelector('.skip').focus()")
    order = []
    for _ in range(30):
        webdriver.ActionChains(page.driver).send_keys(Keys.TAB).perform()
        name, visible = page.run(
            "const e = document.activeElement, box = e.getBoundingClientRect();"
            "return [e.id || e.ariaLabel || e.textContent, box.width > 0 && box.height > 0]"
        )
        assert visible, f"{name} has the focus and isn't shown"
        if name in order:
            break
        order.append(name)
    expected = ["new", "search", "export", "theme", "help", "tab-chat", "model", "settings-open"]
    expected += ["draft", "attach", "mic"]
    assert [name for name in order if name in expected] == expected


@pytest.mark.long
def test_the_phone_layout(page: Page, server: PageServer, tmp_path: Path) -> None:
    page.phone()
    page.open(server.url).ready()
    assert page.overflow() <= 0
    assert not page.find("#sidebar").is_displayed()
    page.drop("a picture with quite a long name that goes on.png", png(900, 300))
    page.attached(1)
    page.say("rich " + "unbrokenword" * 12)
    assert page.overflow() <= 0
    width, below = page.run(
        """const title = document.getElementById("title").getBoundingClientRect();
        const tabs = document.querySelector("[role=tablist]").getBoundingClientRect();
        return [title.width, title.top >= tabs.bottom];"""
    )
    assert width > 180 and below, "the title has a line below the tabs"
    page.click("#model")
    page.until(lambda: len(page.all("#model-menu input")) == 6, "the menu")
    menu = page.run("return document.getElementById('model-menu').getBoundingClientRect().toJSON()")
    assert menu["left"] >= 0 and menu["right"] <= 390 and page.overflow() <= 0
    webdriver.ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.until(lambda: not page.find("#model-menu").is_displayed(), "the menu to close")
    page.click("#menu")
    page.until(lambda: page.find("#new").is_displayed(), "the drawer")
    time.sleep(0.3)
    box = page.run("return document.getElementById('sidebar').getBoundingClientRect().right")
    assert 200 < box <= 390
    page.key("Escape")
    page.until(lambda: not page.find("#sidebar").is_displayed(), "the drawer to close")
    page.click("#settings-open")
    assert page.overflow() <= 0
    page.click("#settings-close")
    page.click("#tab-speech")
    assert page.overflow() <= 0
    page.driver.save_screenshot(str(tmp_path / "phone.png"))


def test_themes(page: Page, server: PageServer, tmp_path: Path) -> None:
    def dark() -> bool:
        colour = page.run("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[4:-1].split(",")) < 200

    page.open(server.url).ready()
    assert not dark()
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    assert dark(), "auto follows the system"
    page.click("#theme")
    assert not dark()
    page.click("#theme")
    assert dark()
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page.open(server.url).ready()
    assert dark(), "the choice is kept"
    page.driver.save_screenshot(str(tmp_path / "dark.png"))


def test_controls_follow_what_the_model_can(page: Page) -> None:
    with PageServer() as server:
        server.props["modalities"] = {"image": False, "audio": False}
        for name in ("documents", "image_formats"):  # an older server has neither
            del server.props[name]
        page.open(server.url).ready()
        for hidden in ("#attach", "#mic", "#tab-speech", "#tab-live"):
            assert not page.find(hidden).is_displayed()
        for name, data, message in (
            ("a.png", png(), "a.png: this model doesn't support pictures."),
            ("a.txt", b"text", "a.txt: this server doesn't read text files."),
            ("a.pdf", PDF, "a.pdf: this server doesn't read PDF files."),
        ):
            page.run("document.getElementById('toast').hidden = true")
            page.drop(name, data)
            assert page.toast() == message
        server.props |= {"modalities": {"image": True, "audio": False}, "documents": False}
        page.open(server.url).ready()
        assert page.find("#attach").is_displayed() and not page.find("#mic").is_displayed()
        assert not page.find("#files").get_attribute("accept"), "the dialog shows all files"
        page.drop("a.pdf", PDF)
        assert page.toast() == "a.pdf: this server doesn't read PDF files."
        page.drop("bad.PNG", b"text")
        assert page.toast() == "bad.PNG isn't what its name says: it contains text."
        page.drop("a.txt", b"text")
        page.attached(1)


# ---------------------------------------------------------------- transcribing


def test_transcribe_and_take_the_subtitles(page: Page, server: PageServer, tmp_path: Path) -> None:
    page.open(server.url).ready()
    page.click("#tab-speech")
    (tmp_path / "a talk.wav").write_bytes(clip())
    page.find("#speech-file").send_keys(str(tmp_path / "a talk.wav"))
    page.click("#speech-start")
    page.until(lambda: len(page.all(".segment")) == 2, "the segments")
    body = server.bodies("/v1/audio/transcriptions")[0]
    assert body.pop("file") == clip()
    assert body == {
        "filename": "a talk.wav",
        "model": "phi-mock",
        "response_format": "verbose_json",
        "timestamp_granularities[]": "segment,word",
        "chunking_strategy": "auto",
    }
    assert page.texts(".said") == ["Guten Morgen & willkommen.", "Wir <b>beginnen</b> --> jetzt."]
    page.run("document.querySelectorAll('.segment')[1].click()")
    page.until(lambda: page.of("#speech-player", "currentTime") > 0.4, "it to play")
    page.until(lambda: page.texts(".segment.now .said") == ["Wir <b>beginnen</b> --> jetzt."], "the mark")  # fmt: skip
    page.click("#speech-srt")
    assert page.downloaded("a talk.srt") == (
        "1\n00:00:00,000 --> 00:00:00,400\nGuten Morgen & willkommen.\n\n"
        "2\n00:00:00,400 --> 00:00:00,800\nWir <b>beginnen</b> → jetzt.\n"
    )
    page.click("#speech-vtt")
    assert page.downloaded("a talk.vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.400\nGuten Morgen &amp; willkommen.\n\n"
        "00:00:00.400 --> 00:00:00.800\nWir &lt;b&gt;beginnen&lt;/b&gt; → jetzt.\n"
    )
    page.click("#speech-txt")
    assert page.downloaded("a talk.txt") == "Guten Morgen & willkommen. Wir <b>beginnen</b> --> jetzt.\n"  # fmt: skip


@pytest.mark.long
def test_record_and_translate(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    page.click("#tab-speech")
    page.click("#speech-record")
    page.until(lambda: page.find("#speech-timer").text not in ("", "0:00"), "a second of recording")
    page.click("#speech-record-stop")
    page.until(lambda: page.find("#speech-clip").is_displayed(), "the recording")
    page.choose("#speech-to", "fr")
    page.click("#speech-start")
    page.until(lambda: page.texts(".translation") == [TRANSLATION], "the translation")
    assert page.texts(".said") == [SAID + TRANSLATION]
    body = server.bodies("/v1/audio/translations")[0]
    assert (body["to_language"], body["cot"]) == ("fr", "true")
    samples, rate = decode_audio(body["file"])
    assert len(samples) >= 0.8 * rate
    page.click("#speech-srt")
    assert page.downloaded("*.srt") == (
        "1\n00:00:00,000 --> 00:00:00,833\nGood morning and welcome.\n\n"
        "2\n00:00:00,833 --> 00:00:01,250\nWe begin now.\n"
    )
    page.click("#speech-txt")
    assert page.downloaded("*.txt") == f"{SAID}\n{TRANSLATION}\n"
    page.click("#speech-cot")
    page.click("#speech-start")
    page.until(lambda: len(server.bodies("/v1/audio/translations")) == 2, "another request")
    assert "cot" not in server.bodies("/v1/audio/translations")[1]
    page.until(
        lambda: page.texts(".said") == ["Good morning and welcome.", "We begin now."], "the answer"
    )
    assert not page.all(".translation")


def test_pieces_are_cut_into_sentences(page: Page, server: PageServer) -> None:
    def cues(text: str, words: list[tuple[str, float, float]], end: float) -> list[list[Any]]:
        scripts = "\n".join((served.UI / name).read_text() for name in ("dom.js", "transcribe.js"))
        answer = {
            "text": text,
            "segments": [{"start": 0.0, "end": end, "text": text}],
            "words": [{"word": word, "start": start, "end": stop} for word, start, stop in words],
        }
        expression = "transcriptOf(arguments[0]).cues.map((c) => [c.start, c.end, c.text])"
        return page.run(f"{scripts}\nreturn {expression};", answer)

    page.open(server.url).ready()
    timed = [("One", 0.5, 0.9), ("two.", 1, 2), ("Three", 4, 5)]
    assert cues(" One two. Three", timed, 9) == [[0.5, 2, "One two."], [4, 5, "Three"]]
    # Words that aren't those of the text: times go by letters.
    assert cues("One two. Three", timed[:2], 12) == [[0, 7, "One two."], [7, 12, "Three"]]
    assert cues("図書館。本。", [], 6) == [[0, 4, "図書館。"], [4, 6, "本。"]]
    assert cues("", [], 6) == []
    long = cues("word " * 60, [], 300)
    assert all(stop - start <= 7 for start, stop, _ in long) and len(long) == 60
    spoken = cues("word " * 60, [], 30)
    assert all(len(text) <= 84 for _, _, text in spoken)
    assert " ".join(text for _, _, text in spoken).split() == ["word"] * 60
    assert [stop for _, stop, _ in spoken[:-1]] == [start for start, _, _ in spoken[1:]]


# ---------------------------------------------------------------- Markdown and formulas


def install(page: Page) -> None:
    """Make the page's own code for Markdown callable: `box()`, `renderMarkdown(box, text, growing)`, `html(text)`."""
    libraries = [served.UI / "vendor" / Path(library["path"]).name for library in served.LIBRARIES]
    scripts = [*libraries, served.UI / "dom.js", served.UI / "markdown.js"]
    page.run(
        "\n".join(script.read_text() for script in scripts)
        + """
        Object.assign(window, {renderMarkdown, box: () => h("div")});
        window.html = (text) => { const box = h("div"); renderMarkdown(box, text); return box.innerHTML; };"""
    )


def rendered(page: Page, text: str) -> str:
    """A text's Markdown as the page's own code renders it, as HTML."""
    return page.run("return html(arguments[0])", text)


MARKDOWN = [
    ("a *b* **c** ***d*** ~~e~~ `f*g*`",
     "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <del>e</del> <code>f*g*</code></p>"),
    ("snake_case_name 2*3*4 \\*x\\* a * b", "<p>snake_case_name 2<em>3</em>4 *x* a * b</p>"),
    ("**注意：**请 **「重要」**です", "<p><strong>注意：</strong>请 <strong>「重要」</strong>です</p>"),
    ("costs $5 and $10", "<p>costs $5 and $10</p>"),
    ("# T #\n\ntext\nmore", '<h3 class="h1">T</h3><p>text<br>more</p>'),
    ("a\n- b\n  - c\n- d", "<p>a</p><ul><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("1. a\n\n   b\n\n2. c", "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
    ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
    ("- [x] a", '<ul><li class="task"><input type="checkbox" disabled="" aria-label="done">a</li></ul>'),
    ("***", "<hr>"),
    ("**unclosed and [half](", "<p>**unclosed and [half](</p>"),
    ("<b>x</b> &amp; <std::pair>", "<p>&lt;b&gt;x&lt;/b&gt; &amp;amp; <span>&lt;std::pair&gt;</span></p>"),
    ("[x](javascript:alert(1))", "<p><span>x (javascript:alert(1))</span></p>"),
    ("![x](/stolen.png) [y](/props)", "<p><span>x (/stolen.png)</span> <span>y (/props)</span></p>"),
    ("> " * 24 + "> x\n\ny", "<blockquote>" * 24 + "<p>&gt; x</p>" + "</blockquote>" * 24 + "<p>y</p>"),
    ("- " * 12 + "- x\n\ny", "<ul><li>" * 12 + "- x" + "</li></ul>" * 12 + "<p>y</p>"),
]  # fmt: skip


def test_markdown(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    install(page)
    for text, expected in MARKDOWN:
        assert rendered(page, text) == expected
    table = rendered(page, "| a | b |\n|---|--:|\n| `x\\|y` | 2 \\| 3 |\n| only |")
    assert "<code>x|y</code>" in table and '<td class="right">2 | 3</td>' in table
    assert table.count("<td") == 4
    link = rendered(page, "see https://a.example/x_(y). and [t](https://b.example)")
    assert 'href="https://a.example/x_(y)"' in link and ">t<span" in link
    assert " (b.example)" in link and link.count('rel="noopener noreferrer nofollow"') == 2
    code = rendered(page, "```python\nx = 1  # <b>\n```\n\n~~~\nplain\n~~~\n```js\nopen")
    assert code.count("<figure") == 3 and "# &lt;b&gt;</span>" in code and "open" in code


FORMULAS = {
    r"\frac{a}{b}": "<mfrac><mi>a</mi><mi>b</mi></mfrac>",
    r"x_i^2": "<msubsup><mi>x</mi><mi>i</mi><mn",
    r"\sqrt[3]{x}": "<mroot>",
    r"\alpha \le \Omega": "<mi>α</mi><mo>≤</mo>",
    r"\sum_{i=1}^n i": "∑",
    r"\int_0^\infty e^{-x}\,dx": "<msubsup>",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}": "<mn>3</mn></mtd>",
    r"\begin{cases} 1 & x > 0 \\ 0 & \text{otherwise} \end{cases}": "<mtext>otherwise</mtext>",
    r"\left( \frac12 \right]": '<mo fence="true" stretchy="true">(</mo>',
    r"\hat{x} \vec v \overline{ab}": "<mover>",
    r"\mathbb{R} \mathcal L \mathbf{x}": "ℝ",
    r"f'(x) \to \lim_{x \to 0}": "′",
    r"\operatorname{softmax}(QK^\top / \sqrt{d_k}) V": "softmax",
    r"a \ne b \neq c \not= d \iff \neg e": "⟺",
    r"\begin{aligned} a &= b \\ &= c \end{aligned}": "<mtable",
    r"50\% \text{ of } \{1, 2\}": "%",
    r"x \rightarrow y \leftarrow \left. z \right|_{0}": "→",
    r"\mbox{if } x": "if",
}  # fmt: skip


def test_formulas(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    install(page)
    for formula, part in FORMULAS.items():
        for text in (f"${formula}$", f"$${formula}$$", f"\\({formula}\\)", f"\\[{formula}\\]"):
            html = rendered(page, text)
            assert "<math" in html and part in html and 'class="formula"' not in html, text
    rows = rendered(page, "$$a = b \\\\ c = d$$")
    assert rows.count("<mtr") == 2, "lines of a display formula"
    unread = [
        r"\unknown{x}",
        r"\frac{a}",
        r"{a",
        r"a}",
        r"x_",
        r"\left( x",
        r"\sqrt{" * 70 + "}" * 70,
        "x" * 4001,
    ]
    unread += [
        r"\href{https://a.b}{x}",
        r"\includegraphics{/stolen.png}",
        r"\def\a{\a\a}\a",
        r"\newcommand{\a}{b}\a",
    ]
    for formula in unread:
        assert '<code class="formula">' in rendered(page, f"\\({formula}\\)"), formula
    assert "id=" not in rendered(page, r"$$\begin{align} a \label{draft} \end{align}$$")


PARTS = ("*a ", "*", "[", "![](", "`a", "``` `", "_a_", "> ", "- ", "$x ", "$a\n", "$$\n", "\\(", "\\[\n", "<http:",
         "| a ", "|a\n|-\n", "# #", "{", "\\frac{", "https://a.b/!", "'\"", " \t", "1. ", "**a*", "\\left(", "a**b",
         "- \n", "* a\n", "---\n", "[a](b)", "<a:b>", "```js\nx\n```\n", "- [ ] a\n", "x|y\n-|-\n", "[a]: b\n",
         "&lt;")  # fmt: skip
"""What hostile texts repeat: each is quadratic or worse for a careless parser."""
TIME = """const [text, growing] = arguments, element = box(), begun = performance.now();
    for (let n = growing; n < text.length; n += growing) renderMarkdown(element, text.slice(0, n), true);
    renderMarkdown(element, text);
    return performance.now() - begun;"""


def seconds(page: Page, text: str, step: int | None = None) -> float:
    """The time to render a text at once, or in steps of a number of characters."""
    return page.run(TIME, text, step or len(text)) / 1000


@pytest.mark.long
@pytest.mark.parametrize("length", [8_000, 30_000])
def test_a_hostile_text_is_shown_at_once(page: Page, server: PageServer, length: int) -> None:
    page.open(server.url).ready()
    install(page)
    for part in PARTS:
        text = (part * length)[:length]
        for whole in (text, f"```js\n{text}\n```", f"$${text[:3900]}$$ \\[{text[:3900]}\\]"):
            assert seconds(page, whole) < 7, f"{part!r} took too long"


@pytest.mark.long
def test_the_time_to_show_a_text_is_linear_in_its_length(page: Page, server: PageServer) -> None:
    """Eight times the length may take 32 times as long, on a busy machine; a quadratic parser takes 64 times. Of a text
    that grows, a step takes at most 50 ms, or the text has grown by a fifth, which costs about six times the whole."""
    page.driver.set_script_timeout(300)
    page.open(server.url).ready()
    install(page)
    for part in PARTS:
        text = (part * 80_000)[:80_000]
        seconds(page, text[:10_000])
        base = max(0.05, seconds(page, text[:10_000]))
        assert seconds(page, text) < 32 * base, f"{part!r} at once"
        at_once = max(0.05, seconds(page, text[:20_000]))
        assert seconds(page, text[:20_000], 200) < 24 * at_once + 100 * 0.1, f"{part!r} as it grows"
    for part in ("*", "["):
        assert seconds(page, part * (1 << 20)) < 60


@pytest.mark.long
def test_hostile_code_is_coloured_in_bounded_time(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    install(page)
    parts = (
        "_",
        "a ",
        "a\n",
        "SELECT ",
        "x1e",
        "${",
        "<script>",
        'r#"',
        "(",
        '<a b="',
        "[a](",
        "\n",
    )
    for language in ("csharp", "ini", "java", "shell", "markdown"):
        for part in parts:
            line = (part * 400)[:400] + "\n"
            for code in ((line * 147)[:59_000], (part * 59_000)[:59_000]):
                assert seconds(page, f"```{language}\n{code}\n```") < 20, (language, part)


@pytest.mark.long
def test_a_growing_text_ends_as_if_shown_at_once(page: Page, server: PageServer) -> None:
    page.open(server.url).ready()
    install(page)
    grown = """const [text, step] = arguments, element = box();
        for (let n = step; n < text.length; n += step) renderMarkdown(element, text.slice(0, n), true);
        const first = element.firstChild;
        renderMarkdown(element, text);
        return [element.innerHTML, first === element.firstChild];"""
    for text in (
        RICH,
        HOSTILE,
        "a\r\n\r\n- b\r\n",
        "\n\n\n  a\n$$\n# b\n$$\n",
        "| a |\n|---|\n" + "| b |\n" * 6000,
    ):
        html, unchanged = page.run(grown, text, 7 if len(text) < 5000 else 997)
        assert html == rendered(page, text)
        assert unchanged or "$$\n#" in text or len(text) > 5000, (
            "blocks that stay as they are are left alone"
        )


# ---------------------------------------------------------------- the real server


@pytest.mark.long
def test_the_progress_of_the_load_becomes_the_chat_page(page: Page, engine: Engine) -> None:
    from tests.core.serve.page.test_loading import loading

    settings = Settings("tiny")
    with loading(create_app(engine, settings), settings) as port:
        page.open(f"http://127.0.0.1:{port.number}/")
        page.until(lambda: "25 %" in page.of("main", "innerText"), "the progress")
        assert page.of("#loading-bar", "value") == 0.25
        port.loaded()
        page.until(lambda: page.find("#draft").is_displayed(), "the chat page")


@pytest.mark.long
def test_the_real_server_serves_it_and_answers(page: Page, engine: Engine, tmp_path: Path) -> None:
    from tests.fixtures.servers import serving

    with serving(engine, Settings("tiny")) as running:
        page.open(f"{running.url}/").ready()
        page.click("#settings-open")
        page.find("#set-max_tokens").send_keys("12")
        page.drop("a.png", png(70, 50))
        page.attached(1)
        page.write("what is this?")
        page.until(lambda: "tokens" in page.find("#count").text, "the count before sending")
        assert page.send()
        assert not page.all(".message .note.error")
        assert "12 out" in page.texts(".stats")[0] and "vision adapter" in page.texts(".stats")[0]
        before = page.texts(".markdown")[0]
        page.click("button[aria-label=Continue]")
        page.until(lambda: "24 out" in page.texts(".stats")[0], "twelve more tokens")
        assert page.answer().startswith(before) and not page.all(".message .note.error")
        page.write("and then, at length?")
        page.find("#set-max_tokens").clear()
        page.find("#set-max_tokens").send_keys("1500")
        page.click("#send")
        page.until(lambda: len(page.texts(".markdown")) == 2 and page.texts(".markdown")[1], "text")
        page.click("#stop")
        page.until(running.idle, "the engine to be free again")
        page.click("#tab-speech")
        (tmp_path / "talk.wav").write_bytes(clip())
        page.find("#speech-file").send_keys(str(tmp_path / "talk.wav"))
        for to, cot in (("", True), ("de", True), ("de", False)):
            page.choose("#speech-to", to)
            if not cot:
                page.click("#speech-cot")
            page.click("#speech-start")
            page.until(lambda: page.find("#speech-result").is_displayed(), "a transcript", 60)
            assert not page.find("#speech-error").is_displayed()
            page.until(running.idle, "the engine to be free again")
