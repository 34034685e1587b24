"""The documentation builds as a site: every page, link, anchor and docstring that it names exists, and nothing is
loaded from other addresses."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
OPTIONS = """--headless=new
--no-sandbox
--disable-gpu
--disable-dev-shm-usage
--disable-background-networking
--disable-component-update
--disable-sync
--no-first-run
--window-size=1280,900
--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"""
"""Of a browser that resolves no name but this machine's."""
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
SHADOWS = "[...document.querySelectorAll('*')].map(e => e.shadowRoot).filter(r => r)"
SEARCH_FIELD = f"return {SHADOWS}.map(r => r.querySelector('input')).find(i => i)"
SEARCH_LINKS = f"return {SHADOWS}.flatMap(r => [...r.querySelectorAll('a')]).map(a => a.pathname)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    zensical = Path(sys.executable).with_name("zensical")
    build = subprocess.run(
        [zensical, "build", "--strict", "--config-file", "mkdocs.yml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder / "site"


@pytest.mark.long
def test_the_site_builds_strictly(site: Path) -> None:
    pages = {page.parent.name for page in site.rglob("index.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= pages
    assert 'id="polyphi.api.Phi.generate"' in (site / "api/index.html").read_text()


def test_the_menu_has_every_page() -> None:
    menu = re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.long
def test_pages_name_no_files_of_other_addresses(site: Path) -> None:
    for file in site.rglob("*.html"):
        html = file.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=.?(\w+:)?//", html
        )
        assert not loaded, f"{file.relative_to(site)} loads from another address"
    for file in site.rglob("*.css"):
        css = file.read_text(encoding="utf-8")
        assert not re.search(r"(?:url\(|@import )['\"]?(?:https?:)?//", css), file.name


@pytest.mark.long
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")
def test_pages_and_search_need_no_connection(site: Path) -> None:
    """In a browser that resolves no name: pages request nothing from other addresses, and the search has results."""
    from selenium import webdriver
    from selenium.webdriver.support.wait import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS.splitlines():
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        try:
            for page in ("", "start/", "api/", "comparison/", "numbers/"):
                driver.get(f"{address}/{page}")
                width = "return document.documentElement.scrollWidth <= window.innerWidth"
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
                assert driver.execute_script(width), f"{page} is wider than a phone"
                driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            wait = WebDriverWait(driver, 30)
            driver.get(f"{address}/")
            driver.find_element("css selector", ".md-search__button").click()
            wait.until(lambda d: d.execute_script(SEARCH_FIELD)).send_keys("int4")
            wait.until(lambda d: "/quantization/" in d.execute_script(SEARCH_LINKS))
            requests = [json.loads(e["message"])["message"] for e in driver.get_log("performance")]
        finally:
            driver.quit()
            server.shutdown()
    urls = {
        message["params"]["request"]["url"]
        for message in requests
        if message["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in urls if not url.startswith((address, "data:", "blob:"))} == set()
