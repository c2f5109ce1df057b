"""The page in a real browser, where Debian's chromium and Selenium are there."""

import shutil

import pytest

selenium = pytest.importorskip("selenium")

pytestmark = [
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="chromium-driver is not installed"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=390,844"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, client):
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(str(client.base_url))
    WebDriverWait(browser, 20).until(lambda b: b.find_element("id", "model").text == "tiny")
    return browser


def shown(page, number):
    """What the page shows once there are so many answers and the time beside the dense model."""
    from selenium.webdriver.support.wait import WebDriverWait

    def ready(page):
        items = page.find_elements("css selector", "#answers > li")
        return len(items) == number and "with all layers" in page.find_element("id", "time").text

    WebDriverWait(page, 20, ignored_exceptions=[Exception]).until(ready)
    return page.find_elements("css selector", "#answers > li")


def turn(page, budget):
    script = (
        "const dial = document.getElementById('budget'); dial.value = arguments[0];"
        "dial.dispatchEvent(new Event('input'));"
        "document.getElementById('time').textContent = '';"
    )
    page.execute_script(script, budget)


def test_layers_and_labels_are_the_api_s(page, client):
    texts = ["the film was good", "a dog ran on the mat"]
    page.find_element("id", "text").send_keys("\n".join(texts))
    for budget in (0.5, 0.8, 1.0):
        turn(page, budget)
        items = shown(page, 2)
        body = {"inputs": [[text] for text in texts], "details": True, "budget": budget}
        for item, wanted in zip(items, client.post("/predict", json=body).json(), strict=True):
            assert item.get_attribute("data-layers") == ",".join(map(str, wanted["layers"]))
            lit = item.find_elements("css selector", ".stack li.ran")
            assert len(lit) == len(wanted["layers"])
            assert (
                item.find_element("css selector", ".bar span").text == wanted["labels"][0]["label"]
            )
        assert f"{round(100 * budget)} %" in page.find_element("id", "share").text


def test_pairs_and_a_mistake(page):
    page.find_element("id", "text").send_keys("the film\na dog")
    page.find_element("id", "paired").click()
    page.find_element("id", "pair").send_keys("was good")
    from selenium.webdriver.support.wait import WebDriverWait

    problem = page.find_element("id", "problem")
    WebDriverWait(page, 20).until(lambda _: "2 first and 1 second" in problem.text)
    page.find_element("id", "pair").send_keys("\nran")
    assert "the film | was good" in shown(page, 2)[0].text


def test_the_live_view_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    page.find_element("id", "tab-try").send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element.get_attribute("id") == "tab-live"
    WebDriverWait(page, 20).until(lambda b: b.find_element("id", "live-budget").text == "100 %")
    assert page.find_element("id", "try").is_displayed() is False


def test_nothing_is_wider_than_a_telephone_nor_from_elsewhere(page):
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    urls = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert urls and all(url.startswith("http://127.0.0.1") for url in urls)
    loud = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert not loud


def test_the_page_of_the_routes_loads_nothing_from_elsewhere(browser, client):
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(str(client.base_url.join("/docs")))
    listed = WebDriverWait(browser, 20).until(
        lambda b: b.find_elements("css selector", ".opblock-summary-path")
    )
    paths = {each.get_attribute("data-path") for each in listed}
    assert {"/predict", "/v1/classify", "/v2/models/{model}/infer", "/health"} <= paths
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    loaded = browser.execute_script(script)
    assert loaded and all(url.startswith((str(client.base_url), "data:")) for url in loaded)
