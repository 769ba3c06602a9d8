"""Chromium without a window, used as a person uses it: by what is written on the page, by mouse and by keyboard."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0  # seconds until something must be seen; the machine may be busy
PRESSED = ("button", "summary", ".label-wrap")  # the last: titles of gradio 3's accordions
TABS = 150  # stops between two places of a page, at most
FOCUS = """
const here = document.activeElement, [css, words] = arguments, within = here.closest(css);
const look = getComputedStyle(here), box = here.getBoundingClientRect();
const marked = look.outlineStyle !== "none" || look.boxShadow !== "none" || !here.closest(".lorakit");
const inSight = box.bottom > 0 && box.top < innerHeight;
return [Boolean(within) && (here.innerText || here.value || "").includes(words), marked && inSight];
"""
T = TypeVar("T")


class Person:
    """Somebody in front of a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str, *, dark: bool = False) -> None:
        """Go to a page and wait until gradio has drawn it."""
        self.driver.get(address + ("/?__theme=dark" if dark else "/?__theme=light"))
        self.until(lambda: self.all("button"), "a page with buttons")

    def reload(self) -> None:
        """As with F5."""
        self.driver.refresh()
        self.until(lambda: self.all("button"), "a page with buttons")

    def width(self, pixels: int, height: int = 1000) -> None:
        """Make the window that wide, and no less (--window-size alone stops at 500)."""
        metrics = {"width": pixels, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def all(self, css: str) -> list[Any]:
        """Every element that can be seen."""
        return [found for found in self.driver.find_elements("css selector", css) if found.is_displayed()]

    def one(self, css: str) -> Any:
        """The first element that can be seen; waits for it."""
        return self.until(lambda: self.all(css), css)[0]

    def text(self, css: str) -> str:
        """What is written in an element, as seen."""
        return str(self.one(css).text)

    def press(self, words: str, within: str = "body") -> None:
        """Click the button, the tab or the accordion's title that says exactly this."""
        kinds = ", ".join(f"{part.strip()} {kind}" for part in within.split(",") for kind in PRESSED)

        def click() -> bool:
            for button in self.driver.find_elements("css selector", kinds):
                said = button.text.strip().partition("\n")[0]
                if button.is_displayed() and words in (said, button.get_attribute("title")):
                    self.see(button)
                    button.click()
                    return True
            return False

        self.until(click, f"a button that says {words!r}")

    def fill(self, css: str, text: str, *, whole: bool = False) -> None:
        """Type into the text field in an element (`whole`: that is the element) in place of what is there; leave it."""
        from selenium.webdriver.common.keys import Keys

        field = self.one(css if whole else f"{css} textarea, {css} input")
        self.see(field)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.BACKSPACE)
        field.send_keys(text)
        field.send_keys(Keys.TAB)

    def number(self, css: str, value: float) -> None:
        """Type a number into a slider's field."""
        self.fill(f"{css} input[type=number]", f"{value:g}", whole=True)

    def value(self, css: str) -> str:
        """What a text field holds."""
        return str(self.one(f"{css} textarea, {css} input").get_attribute("value"))

    def keys(self, *typed: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*typed).perform()

    def anew(self, text: str) -> None:
        """Type in place of what the field in focus holds."""
        from selenium.webdriver.common.keys import Keys

        field = self.driver.switch_to.active_element
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def tab_to(self, css: str, words: str = "") -> Any:
        """Press Tab until the focus is on an element (or on what is in it) that says these words; that element.

        Fails if there is none, and if the focus cannot be seen somewhere on the way.
        """
        from selenium.webdriver.common.keys import Keys

        for _ in range(TABS):
            self.keys(Keys.TAB)
            fits, seen = self.driver.execute_script(FOCUS, css, words)
            assert seen, (
                f"the focus cannot be seen on {self.driver.switch_to.active_element.get_attribute('outerHTML')}"
            )
            if fits:
                return self.driver.switch_to.active_element
        raise AssertionError(f"Tab does not reach {words!r} in {css}")

    def see(self, element: Any) -> None:
        """Scroll to it."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)

    def until(self, ask: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
        """The first answer that is not empty. Fails saying what was waited for."""
        from selenium.common.exceptions import StaleElementReferenceException, WebDriverException

        end, last = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            try:
                if answer := ask():
                    return answer
            except StaleElementReferenceException:
                pass  # drawn anew in between
            except WebDriverException as error:
                last = str(error).splitlines()[0]
            time.sleep(0.1)
        seen = self.driver.find_element("tag name", "body").text
        raise AssertionError(f"waited {seconds:g} s for {what} {last}\n{seen}")

    def reads(self, css: str, words: str, seconds: float = PATIENCE) -> None:
        """Wait until an element says this."""
        self.until(lambda: any(words in found.text for found in self.all(css)), f"{words!r} in {css}", seconds)

    def picture(self, path: Path, whole: bool = True) -> None:
        """Save what is seen, the whole page if asked."""
        import base64

        path.parent.mkdir(parents=True, exist_ok=True)
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Errors in the browser's console since the last time it was asked."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextmanager
def a_person(folder: Path) -> Iterator[Person]:
    """A new browser; skips the test where there is no Chromium or no driver for it."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver_program = next(filter(None, map(shutil.which, CHROMIUM)), None), shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("there is no Chromium with its driver here (Debian: chromium, chromium-driver)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en",
        "--window-size=1280,1000", "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={folder}",
    ):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        yield Person(driver)
    finally:
        driver.quit()
