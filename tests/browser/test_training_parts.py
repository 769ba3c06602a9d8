"""What is seen while and after training, in a browser: polling, patching, banner, notification, lost connection."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_lora.ui.trainer import RunFacts, TrainStatus
from tests.browser.person import Person
from tests.browser.stage import Stage
from tests.ui import fake_trainer
from tests.ui.real_runs import make_run, trainer_with

pytestmark = pytest.mark.browser
NOTES = """
window.told = []; window.asked = 0; window.alerts = 0;
window.Notification = class {
    constructor(title, options) { window.told.push([title, options.body]); }
    static requestPermission() { window.asked += 1; Notification.permission = "granted"; return Promise.resolve(); }
};
Notification.permission = "default";
window.alert = () => { window.alerts += 1; };
"""

AS_NEW = """
sessionStorage.clear(); window.told = []; window.asked = 0; window.alerts = 0; Notification.permission = "default";
for (const name of ["running", "after", "runs"]) { window.lorakit.panel(name).view = {}; window.lorakit.ask(name); }
document.querySelectorAll("details[open]").forEach((one) => { one.open = false; });
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stage")


@pytest.fixture(scope="module")
def run(root: Path) -> RunFacts:
    return make_run(root)


@pytest.fixture(scope="module")
def stage(root: Path, person: Person) -> Iterator[Stage]:
    made = Stage(root)
    person.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NOTES})
    yield made
    made.close()


@pytest.fixture
def at(stage: Stage, person: Person, run: RunFacts, root: Path) -> Person:
    """Somebody at the Train tab; the trainer knows one finished run and is idle."""
    stage.trainer.__dict__.update(vars(trainer_with(root, run)))
    person.width(1280, 1400)
    if not person.driver.current_url.startswith(stage.address):
        person.open(stage.address)
    tab(person, "Train")
    person.driver.execute_script(AS_NEW)
    person.reads("#lorakit_progress", "Ready to train")
    return person


def busy(run: RunFacts, **facts: Any) -> TrainStatus:
    usual = {"id": "max-1", "name": "max", "samples": run.samples[:4], "points": run.points[:120]}
    return replace(fake_trainer.running(120, 400), **{**usual, "log": tuple(f"line {i}" for i in range(80)), **facts})


def happens(stage: Stage, at: Person, now: TrainStatus) -> None:
    """The job goes on; the page asks at once instead of at its next turn."""
    stage.trainer.now = now
    script(at, "window.lorakit.ask('running')")


def tab(at: Person, name: str) -> None:
    """Choose a tab as soon as it is there (gradio 6 keeps a second, hidden row of them)."""

    def choose() -> bool:
        found = at.driver.find_elements("css selector", ".tab-nav button, [role=tab]")
        named = [one for one in found if one.text.strip() == name and one.get_attribute("tabindex") != "-1"]
        for one in named[:1]:
            one.click()
        return bool(named)

    at.until(choose, f"the tab {name!r}")


def script(person: Person, code: str, *arguments: Any) -> Any:
    return person.driver.execute_script(code, *arguments)


def test_buttons_do_what_they_say_and_cancel_asks(stage: Stage, at: Person, run: RunFacts) -> None:
    happens(stage, at, busy(run))
    at.reads("#lorakit_progress", "120 of 400")
    at.press("Pause")
    at.reads("#lorakit_progress", "Paused")
    at.reads("#lorakit_told", "Pausing after this step.")
    at.press("Resume")
    at.reads("#lorakit_progress", "Training")
    assert stage.trainer.named("resume") == [("max-1",)]
    at.press("Cancel")
    at.press("Press again to cancel")
    at.reads("#lorakit_progress", "Stopped")
    assert len(stage.trainer.named("cancel")) == 1


def test_who_uses_keys_is_never_left_nowhere(stage: Stage, at: Person, run: RunFacts) -> None:
    from selenium.webdriver.common.keys import Keys

    def focused() -> str:
        return str(script(at, "return document.activeElement.innerText"))

    happens(stage, at, busy(run))
    at.reads("#lorakit_progress", "120 of 400")
    buttons = {one.text: one for one in at.all("#lorakit_progress button")}
    buttons["Pause"].send_keys(Keys.ENTER)
    at.until(lambda: focused() == "Resume", "the focus on what can be pressed now")
    at.driver.switch_to.active_element.send_keys(Keys.SPACE)
    at.until(lambda: focused() == "Pause", "the focus on what can be pressed now")
    happens(stage, at, replace(stage.trainer.now, state="finished", step=400))
    at.reads("#lorakit_progress", "Finished")
    assert focused().startswith("Finished")  # no button is left
    at.one("#lorakit_runs .lk-link").send_keys(Keys.ENTER)
    at.reads("#lorakit_detail", "output.sample_prompts")
    at.one("#lorakit_detail .lk-primary").send_keys(Keys.ENTER)
    at.until(lambda: script(at, "return document.activeElement.closest('#lorakit_form') !== null"), "the form in focus")
    at.one("#lorakit_after [data-go]").send_keys(Keys.ENTER)
    in_prompt = "return document.activeElement.closest('#lorakit_prompt') !== null"
    at.until(lambda: script(at, in_prompt), "the prompt in focus")


def test_the_result_of_what_has_finished_is_shown(stage: Stage, at: Person, run: RunFacts) -> None:
    stage.trainer.known = [replace(run, id="max-1", name="max"), run]
    script(at, "window.lorakit.look('after', {run: arguments[0]}, true)", run.id)
    at.reads("#lorakit_after", "Result rex")
    happens(stage, at, busy(run))
    at.reads("#lorakit_progress", "120 of 400")
    at.reads("#lorakit_after", "Result rex")
    happens(stage, at, replace(stage.trainer.now, state="finished", step=400))
    at.reads("#lorakit_after", "Result max")


def test_what_a_reader_does_survives_news(stage: Stage, at: Person, run: RunFacts) -> None:
    happens(stage, at, busy(run))
    at.reads("#lorakit_progress", "120 of 400")
    at.until(lambda: len(at.all("#lorakit_samples img")) == 4, "four pictures")
    at.press("Log")
    at.until(lambda: script(at, "return document.querySelector('.lk-lines').scrollTop > 40"), "the log's end")
    script(
        at,
        "document.querySelector('.lk-lines').scrollTop = 40;"
        "window.first = document.querySelector('#lorakit_samples img');"
        "document.querySelector('#lorakit_progress .lk-buttons button').focus();"
        "getSelection().selectAllChildren(document.querySelector('#lorakit_samples h4'));",
    )
    more = (*stage.trainer.now.log, "the latest line")
    stage.trainer.now = replace(stage.trainer.now, step=200, samples=run.samples[:6], points=run.points[:200], log=more)
    at.reads("#lorakit_progress", "200 of 400")
    at.until(lambda: len(at.all("#lorakit_samples img")) == 6, "six pictures")
    seen = script(
        at,
        "return [document.querySelector('.lk-log').open, document.querySelector('.lk-lines').scrollTop,"
        "window.first === document.querySelector('#lorakit_samples img'), document.activeElement.textContent,"
        "String(getSelection()), document.querySelector('.lk-lines').textContent.endsWith('the latest line')]",
    )
    assert seen == [True, 40, True, "Pause", "a photo of sks dog in the snow", True]


def test_log_follows_its_end(stage: Stage, at: Person, run: RunFacts) -> None:
    happens(stage, at, busy(run))
    at.press("Log")
    script(at, "const lines = document.querySelector('.lk-lines'); lines.scrollTop = lines.scrollHeight")
    stage.trainer.now = replace(stage.trainer.now, log=(*stage.trainer.now.log, "the latest line"))
    at.until(
        lambda: script(
            at,
            "const l = document.querySelector('.lk-lines');"
            "return l.textContent.endsWith('latest line') && l.scrollTop + l.clientHeight > l.scrollHeight - 9",
        ),
        "the last line in sight",
    )


def test_words_that_were_translated_stay(stage: Stage, at: Person, run: RunFacts) -> None:
    happens(stage, at, busy(run))
    at.reads("#lorakit_progress", "120 of 400")
    script(
        at,
        "const b = document.querySelector('#lorakit_progress .lk-buttons button');"
        "b.firstChild.data = 'Innehalten'; b.title = 'bald';",
    )
    stage.trainer.now = replace(stage.trainer.now, step=121)
    at.reads("#lorakit_progress", "121 of 400")
    assert at.text("#lorakit_progress .lk-buttons button") == "Innehalten"
    assert script(at, "return document.querySelector('#lorakit_progress .lk-buttons button').title") == "bald"


def test_nothing_from_users_is_run(stage: Stage, at: Person, run: RunFacts) -> None:
    nasty = "<img src=x onerror=alert(1)> ${alert(1)} {{alert(1)}} </div>"
    stage.trainer.known = [replace(run, name=nasty)]
    happens(stage, at, busy(run, doing=nasty, log=(nasty,)))
    at.reads("#lorakit_progress", nasty)
    script(at, "window.lorakit.ask('runs')")
    at.reads("#lorakit_runs", nasty)
    assert script(at, "return window.alerts") == 0


def test_title_and_banner_say_why_pictures_wait(stage: Stage, at: Person, run: RunFacts) -> None:
    happens(stage, at, busy(run))
    at.until(lambda: at.driver.title == "30 % · max – LoRA kit", "the share in the title")
    tab(at, "Generate")
    at.reads(".lk-banner", "LoRA kit is training max: step 120 of 400, time left: 2 min 20 s; pictures wait")
    stage.trainer.now = replace(stage.trainer.now, step=140)
    at.reads(".lk-banner", "step 140 of 400")
    at.press("Pause training")
    at.until(lambda: not at.all(".lk-banner"), "no banner while it is paused")
    assert stage.trainer.now.state == "paused"
    at.until(lambda: at.driver.title == "LoRA kit", "the title as it was")


def test_notification_is_asked_for_at_train_and_told_at_the_end(stage: Stage, at: Person, run: RunFacts) -> None:
    assert script(at, "return window.asked") == 0
    at.press("Begin")
    assert script(at, "return window.asked") == 1
    happens(stage, at, busy(run))
    at.reads("#lorakit_progress", "120 of 400")
    stage.trainer.now = replace(stage.trainer.now, state="finished", step=400)
    at.until(lambda: script(at, "return window.told.length"), "a notification")
    assert script(at, "return window.told") == [["Training has finished: max", "400 steps"]]


def test_lost_connection_is_told_and_found_again(stage: Stage, at: Person, run: RunFacts) -> None:
    happens(stage, at, busy(run))
    at.reads("#lorakit_progress", "120 of 400")
    stage.close()
    at.reads("#lorakit_lost", "Connection lost, trying again.")
    stage.trainer.now = replace(stage.trainer.now, step=300)
    stage.serve()

    def goes_on() -> bool:
        if not at.all("#lorakit_progress h3"):  # gradio 6 loads the page again by itself
            tab(at, "Train")
        return any("300 of 400" in one.text for one in at.all("#lorakit_progress"))

    at.until(goes_on, "the job where it is now")
    at.until(lambda: not at.all("#lorakit_lost"), "the note gone")


def test_a_second_page_and_a_reload_see_the_same(stage: Stage, at: Person, run: RunFacts) -> None:
    happens(stage, at, busy(run))
    at.reads("#lorakit_progress", "120 of 400")
    at.reload()
    tab(at, "Train")
    at.reads("#lorakit_progress", "120 of 400")
    at.until(lambda: len(at.all("#lorakit_samples img")) == 4, "four pictures")


def test_picture_large_by_mouse_and_keyboard(stage: Stage, at: Person, run: RunFacts) -> None:
    from selenium.webdriver.common.keys import Keys

    happens(stage, at, busy(run))
    at.one("#lorakit_samples .lk-open").click()
    at.reads(".lk-look", "step 100: a photo of sks dog in the snow")
    active = at.driver.switch_to.active_element
    assert active.text == "Close"
    active.send_keys(Keys.ARROW_RIGHT)
    at.reads(".lk-look", "step 200: a photo of sks dog in the snow")
    at.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    at.until(lambda: not at.all(".lk-look"), "no picture over the page")
    assert script(at, "return document.activeElement.className") == "lk-open"
    at.driver.switch_to.active_element.send_keys(Keys.ENTER)
    at.reads(".lk-look", "step 100")
    at.press("Close")
    at.until(lambda: not at.all(".lk-look"), "no picture over the page")


def test_curves_say_figures_under_the_mouse(stage: Stage, at: Person, run: RunFacts) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    happens(stage, at, busy(run))
    plot = at.one("#lorakit_curves svg")
    at.see(plot)
    ActionChains(at.driver).move_to_element(plot).perform()
    at.reads(".lk-tip", "step 6")
    assert "smoothed 0." in at.text(".lk-tip")
    script(at, "arguments[0].focus()", plot)
    plot.send_keys(Keys.ARROW_LEFT)
    at.until(lambda: at.all(".lk-tip"), "figures by keyboard")


def test_compare_keep_and_delete(stage: Stage, at: Person, run: RunFacts) -> None:
    at.reads("#lorakit_after", "Result rex")
    script(at, "document.querySelector('[name=labels][value=\"step 300\"]').click()")
    script(at, "document.querySelector('[name=prompts]').value = 'a dog'")
    at.press("Compare")
    at.until(lambda: len(at.all("#lorakit_grid img")) == 9, "3 networks x 3 strengths")
    at.reads("#lorakit_drawing", "The comparison is ready")
    assert "step 300" not in at.text("#lorakit_grid")
    at.one("#lorakit_grid .lk-open").click()
    at.reads(".lk-look", "step 100, strength 0.6: a dog")
    at.press("Use as the card's picture")
    at.reads("#lorakit_told", "'rex.png' is now the card's picture.")
    at.until(lambda: at.all("#lorakit_after .lk-cover img"), "the card's picture")
    assert script(at, "return document.querySelector('[name=prompts]').value") == "a dog"  # what was typed stays


def test_tag_goes_to_the_prompt(stage: Stage, at: Person) -> None:
    at.press("Send the tag to txt2img")
    at.until(lambda: at.value("#lorakit_prompt") == "sks dog <lora:rex:1>", "the tag in the prompt")
    tab(at, "Train")
    at.press("Send the tag to txt2img")
    time.sleep(0.3)
    assert at.value("#lorakit_prompt") == "sks dog <lora:rex:1>"  # once is enough
    for before, after in (
        ("a red ball", "a red ball, sks dog <lora:rex:1>"),  # the words that call it are wanted as well
        ("sks dog <lora:rex:0.5>, in snow", "sks dog <lora:rex:1>, in snow"),
    ):
        at.fill("#lorakit_prompt", before)
        tab(at, "Train")
        at.press("Send the tag to txt2img")
        at.until(lambda wanted=after: at.value("#lorakit_prompt") == wanted, after)


def test_runs_open_stay_open_and_fill_the_form(stage: Stage, at: Person, run: RunFacts) -> None:
    at.one("#lorakit_runs .lk-link").click()
    at.reads("#lorakit_detail", "output.sample_prompts")
    at.reload()
    tab(at, "Train")
    at.reads("#lorakit_detail", "output.sample_prompts")
    at.press("Repeat with changes")
    at.until(lambda: at.value("#lorakit_form") == "rex", "the form filled")
    at.press("Forget")
    at.press(f"Press again to delete the run's folder: {run.id}")
    at.reads("#lorakit_runs", "There are no runs yet.")
    at.until(lambda: not at.all("#lorakit_detail h3"), "no detail")


def test_every_text_can_be_read_dark_and_narrow(stage: Stage, at: Person, run: RunFacts) -> None:
    stage.trainer.known = [run, *(replace(run, id=f"r{i}", state=s) for i, s in enumerate(("failed", "paused")))]
    happens(stage, at, busy(run, waiting=("a", "b"), doing="drawing samples"))
    at.one("#lorakit_runs .lk-link").click()
    at.reads("#lorakit_detail", "output.sample_prompts")
    for state in ("running", "failed", "paused", "finished"):
        happens(stage, at, replace(stage.trainer.now, state=state))
        at.until(lambda s=state: at.all(f"#lorakit_progress .lk-{s}"), state)  # type: ignore[misc]
        for width, dark in ((1280, False), (800, True)):
            at.width(width, 1400)
            script(at, "document.body.classList.toggle('dark', arguments[0])", dark)
            assert script(at, CONTRAST) == []
            assert script(at, "return document.documentElement.scrollWidth <= innerWidth")
    script(at, "document.body.classList.remove('dark')")
    elsewhere = ("net::ERR_", "Unable to preload CSS for https://")  # gradio's own fonts and scripts
    assert [one for one in at.complaints() if not any(words in one for words in elsewhere)] == []


# Texts with a contrast below 4.5 : 1 (WCAG 2 AA) against what is behind them; disabled buttons need none.
CONTRAST = """
const light = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : Math.pow((c + 0.055) / 1.055, 2.4); };
const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
const parts = (text) => { const n = (text.match(/[\\d.]+/g) || []).map(Number); return n.length > 3 ? n : [...n, 1]; };
const over = (front, back) => [0, 1, 2].map((i) => front[i] * front[3] + back[i] * (1 - front[3]));
const behind = (element) => {
    const stack = [];
    for (let e = element; e; e = e.parentElement) stack.push(parts(getComputedStyle(e).backgroundColor));
    const page = document.body.classList.contains("dark") ? [11, 15, 25] : [255, 255, 255];
    return stack.reverse().reduce((back, front) => front.length < 4 ? back : over(front, back), page);
};
const bad = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || !e.closest(".lk-view, .lk-banner, .lk-message") || !e.offsetParent) continue;
    if (e.closest("button[disabled]")) continue;
    const back = behind(e), front = over(parts(getComputedStyle(e).color), back);
    const [a, b] = [luminance(front), luminance(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push([node.data.trim().slice(0, 40), e.className, ratio.toFixed(2)]);
}
return bad;
"""
