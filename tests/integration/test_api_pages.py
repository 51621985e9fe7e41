"""The pages in a real browser: what a person sees, and that nothing is fetched from elsewhere."""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from werkzeug.serving import make_server

from api.app import create_app
from api.resources import resources
from api.settings import ApiSettings
from gpu_telemetry.clock import ManualClock
from gpu_telemetry.database import upgrade
from gpu_telemetry.settings import DatabaseSettings

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLEET = Path(__file__).parents[1] / "contract" / "rest_fleet.sql"


@pytest.fixture
def site(postgres_url):
    """The address of an API over a small fleet, served from this process."""
    database = DatabaseSettings(url=SecretStr(postgres_url))
    upgrade(database)
    with psycopg.connect(postgres_url) as connection:
        connection.execute(FLEET.read_text(encoding="utf-8").encode())
    app = create_app(ApiSettings(), database=database, clock=ManualClock(datetime(2026, 1, 31, 12, tzinfo=UTC)))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    resources(app).database.close()


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium with a profile of its own that keeps a log of its requests and its console."""
    if not (BROWSER.exists() and DRIVER.exists()):
        said = f"{BROWSER} and {DRIVER} are needed: apt install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(said)
        pytest.skip(said)
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def complaints(browser):
    """What the console says: refused scripts and styles, failed fetches, errors of scripts."""
    return [entry["message"] for entry in browser.get_log("browser")]


def strangers(browser, site):
    """Addresses that the page asked for and that are not of the site; the browser's own pages aside."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith((site, "data:", "chrome:"))]


def test_the_front_page_shows_counts_alerts_and_ways_on(browser, site):
    browser.get(site)
    text = browser.find_element(By.TAG_NAME, "main").text
    statuses = [item.text.split() for item in browser.find_elements(By.CSS_SELECTOR, ".statuses li")]
    assert statuses == [["1", "healthy"], ["1", "warning"], ["1", "critical"], ["2", "down"], ["1", "unknown"]]
    table = [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
             for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr")]  # fmt: skip
    assert table[1] == [
        "critical", "node-2", "0", "high_temperature", "GPU temperature is 96.3°C", "2026-01-31 11:58:00", "41",
    ]  # fmt: skip
    assert table[2][2] == "\N{EN DASH}"
    assert "Active alerts 3" in text
    assert complaints(browser) == []
    assert strangers(browser, site) == []


def test_every_link_of_the_front_page_leads_somewhere(browser, site):
    browser.get(site)
    links = {link.get_attribute("href") for link in browser.find_elements(By.TAG_NAME, "a")}
    assert len(links) > 10
    script = "return fetch(arguments[0]).then(answer => answer.status)"
    browser.get(f"{site}/docs")  # whose policy lets a script ask this server
    assert {url: browser.execute_script(script, url) for url in links} == dict.fromkeys(links, 200)


def test_the_reference_shows_every_call_and_tries_one_without_asking_anyone_else(browser, site):
    browser.get(f"{site}/docs")
    wait = WebDriverWait(browser, 30)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".opblock"))
    shown = {block.text for block in browser.find_elements(By.CSS_SELECTOR, ".opblock-summary-path")}
    paths = browser.execute_script("return fetch('/openapi.json').then(r => r.json()).then(d => Object.keys(d.paths))")
    assert {path.replace("\u200b", "") for path in shown} == set(paths)
    browser.find_element(By.CSS_SELECTOR, "#operations-nodes-list_nodes .opblock-summary-control").click()
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".try-out__btn"))[0].click()
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".execute"))[0].click()
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".live-responses-table .highlight-code"))
    assert "gpu-host-1" in browser.find_element(By.CSS_SELECTOR, ".live-responses-table").text
    assert complaints(browser) == []
    assert strangers(browser, site) == []
