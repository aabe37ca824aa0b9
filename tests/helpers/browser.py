"""HTML pages opened from disk in headless Chromium."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [name for name, path in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if path is None]


@contextmanager
def open_page(page: Path, scratch: Path, width: int = 1000) -> Iterator[webdriver.Chrome]:
    """Open `page` in a browser until the end of the block; `scratch` is the browser's user data folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={scratch}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", _screen_metrics(width))
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def _screen_metrics(width: int) -> dict[str, Any]:
    return {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}


def set_width(driver: webdriver.Chrome, width: int) -> None:
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", _screen_metrics(width))


def set_color_scheme(driver: webdriver.Chrome, scheme: str, media: str = "") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def console_messages(driver: webdriver.Chrome) -> list[str]:
    """Return the console messages: errors, and violations of the page's content security policy."""
    return [entry["message"] for entry in driver.get_log("browser")]  # type: ignore[no-untyped-call]


def requested_urls(driver: webdriver.Chrome) -> list[str]:
    """Return all requested URLs, except data inside the page and the browser's own resources."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]  # type: ignore[no-untyped-call]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("data:", "chrome:"))]
