"""What tests of the chat page share: a Chromium, and how to look at the page in it.

To import it is to run in a Python that has selenium; without it, chromium or chromedriver the process ends as skipped.
"""
import shutil
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "server"))
import serving  # noqa: E402

for program in ("chromium", "chromedriver"):
    if not shutil.which(program):
        print(f"{program} is not installed")
        sys.exit(serving.SKIPPED)
serving.enter_python_with_packages()
from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402


def browser(width=1100, height=800, dark=False):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(20)
    # Headless windows do not go below 500 pixels; the emulation does.
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
    return driver


def require_browser():
    """Skips, with the reason, where Chromium is there but cannot run (a container without what it needs)."""
    try:
        browser().quit()
    except WebDriverException as error:
        print("Chromium does not start: " + (error.msg or "no reason given").splitlines()[0])
        sys.exit(serving.SKIPPED)


class ChatPage(unittest.TestCase):
    """A test case whose class has a `driver` on the page. Complaints of the browser fail it."""

    def tearDown(self):
        problems = [entry["message"] for entry in self.driver.get_log("browser")
                    if entry["level"] == "SEVERE" and "status of" not in entry["message"] and "ERR_" not in entry["message"]]
        self.assertEqual(problems, [])
        self.assertNotEqual(self.driver.title, "broken")

    def wait(self, condition, seconds=40):
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: condition())

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? null", selector)

    def texts(self, selector):
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def is_idle(self):
        return self.find("#send").is_displayed()
