"""A job's page: what it tells of runs and takes, and how it behaves in a browser."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from longtake.jobs.cli.app import app
from longtake.jobs.events import Decoded, GangFormed, JobEnded, JobStarted, JobState, ModelLoaded, Note, Stepped, TakeState
from longtake.jobs.folder.journal import JOURNAL
from longtake.jobs.report.history import Standing
from longtake.jobs.report.reading import check_job_folder, read_events
from longtake.jobs.report.write import FOLDER, write_report
from PIL import Image
from typer.testing import CliRunner

from told import BEGAN, HTML, NAMES, changed, deliver, minute, page_in, record, standings, started

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab


def test_events_come_back_as_they_were_written_and_what_is_torn_or_unknown_is_passed_over(tmp_path: Path) -> None:
    events = [
        started("A", ["a"]),
        Note(job="A", take="a", text="said\u2028so", time=minute(0)),
        GangFormed(job="A", device="cpu", num_ranks=2, degrees={"ulysses": 2}, threads=[1, 1], time=minute(1)),
        ModelLoaded(job="A", seconds=1.5, time=minute(1)),
        changed("A", "a", TakeState.RUNNING, 2),
        Stepped(job="A", take="a", step=1, num_steps=50, decisions={"compute": 2}, time=minute(3)),
        Decoded(job="A", take="a", frames=8, num_frames=16, time=minute(3)),
        JobEnded(job="A", state=JobState.STOPPED, cause="Ctrl-C", time=minute(4)),
    ]
    assert read_events(tmp_path / JOURNAL) == []
    record(tmp_path, *events)
    line = events[-2].to_json()  # of which the last one counts
    odd = [line.replace("decoded", "from_the_future"), line.replace("2026-", ""), "[1]", "null", line.replace("+00:00", ""), '{"event": "note"}', ""]
    later = line.replace('"frames"', '"of_a_later_version": 1, "frames"')
    with (tmp_path / JOURNAL).open("a") as file:
        file.write("\n".join([*odd, later, line[:40]]))
    assert read_events(tmp_path / JOURNAL) == [*events[:-2], events[-1], events[-2]]


def test_of_a_takes_steps_the_last_is_read(tmp_path: Path) -> None:
    steps = [Stepped(job=job, take="a", step=step, num_steps=50, decisions={}, time=BEGAN) for step in (1, 2, 3) for job in "AB"]
    record(tmp_path, started("A", ["a"]), *steps)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(steps[0].to_json()[:-1])
    assert read_events(tmp_path / JOURNAL) == [started("A", ["a"]), *steps[-2:]]


def test_a_run_that_was_killed_leaves_its_take_stopped_until_another_one_goes_on_with_it(tmp_path: Path) -> None:
    record(tmp_path, started("A", ["a", "b"]), changed("A", "a", TakeState.WAITING, 0), changed("A", "a", TakeState.RUNNING, 1))
    assert standings(tmp_path) == {"a": "running", "b": "waiting"}
    record(tmp_path, started("B", ["b"], at=60), changed("B", "b", TakeState.RUNNING, 61))
    assert standings(tmp_path) == {"a": "stopped", "b": "running"}
    assert "killed" in {one.name: one.cause for one in page_in(tmp_path).takes}["a"]
    record(tmp_path, JobEnded(job="B", state=JobState.FAILED, cause="rank 1 died", time=minute(62)))
    page = page_in(tmp_path)
    assert (page.standing, page.run.cause if page.run else "") == (Standing.FAILED, "rank 1 died")
    assert standings(tmp_path)["b"] == "stopped"
    record(tmp_path, started("C", ["a", "b"], at=70))
    assert standings(tmp_path) == {"a": "waiting", "b": "waiting"}


def test_two_jobs_in_one_folder_go_on_side_by_side(tmp_path: Path) -> None:
    record(tmp_path, started("A", ["a"]), changed("A", "a", TakeState.RUNNING, 1), started("B", ["b"], at=2), changed("B", "b", TakeState.RUNNING, 2))
    record(tmp_path, Stepped(job="A", take="a", step=7, num_steps=50, decisions={}, time=minute(3)))
    assert standings(tmp_path) == {"a": "running", "b": "running"}
    record(tmp_path, changed("B", "b", TakeState.DONE, 4), JobEnded(job="B", state=JobState.DONE, time=minute(4)))
    page = page_in(tmp_path)
    assert page.run is not None
    assert (page.run.job, page.standing) == ("A", Standing.RUNNING)
    assert [one.progress.text for one in page.takes if one.progress] == ["step 7 of 50"]


def test_a_stopped_take_is_told_from_one_that_never_began(tmp_path: Path) -> None:
    record(tmp_path, started("A", ["a", "b"]), *(changed("A", name, TakeState.WAITING, 0) for name in "ab"), changed("A", "a", TakeState.RUNNING, 1))
    record(tmp_path, changed("A", "a", TakeState.WAITING, 2, "stopped after step 3 of 50"), JobEnded(job="A", state=JobState.STOPPED, time=minute(2)))
    assert standings(tmp_path) == {"a": "stopped", "b": "waiting"}


def test_a_film_that_was_whole_before_its_job_was_killed_is_done(tmp_path: Path) -> None:
    record(tmp_path, started("A", ["a"]), changed("A", "a", TakeState.RUNNING, 1), started("B", ["b"], at=30))
    deliver(tmp_path / "a", finished=minute(2), with_film=False)
    assert standings(tmp_path)["a"] == "done"
    deliver(tmp_path / "a", finished=minute(0), with_film=False)
    assert standings(tmp_path)["a"] == "stopped"


def test_a_run_beside_which_another_one_begins_goes_on_unless_its_takes_are_taken_up(tmp_path: Path) -> None:
    record(tmp_path, started("A", ["a"]), changed("A", "a", TakeState.WAITING, 0), started("B", ["b"], at=1), changed("B", "b", TakeState.WAITING, 1))
    assert [run.standing for run in page_in(tmp_path).runs] == [Standing.RUNNING] * 2
    record(tmp_path, started("C", ["a"], at=2), changed("C", "a", TakeState.WAITING, 2))
    assert {run.job: run.standing for run in page_in(tmp_path).runs} == {"A": Standing.KILLED, "B": Standing.RUNNING, "C": Standing.RUNNING}


def test_a_take_that_was_stopped_where_it_drifted_has_failed_and_shows_its_film(tmp_path: Path) -> None:
    deliver(tmp_path / "a", minute(2), with_film=False, state="stopped")
    [take] = page_in(tmp_path).takes
    assert take.standing is Standing.FAILED
    assert take.cause.startswith("stopped after 12.0 s, on_drift=stop: ")
    record(tmp_path, started("A", ["a"]), changed("A", "a", TakeState.RUNNING, 1), started("B", ["b"], at=30))
    assert standings(tmp_path)["a"] == "failed", "also where the job was killed before it could say so"


def test_marks_are_said_with_their_second_at_the_top_and_at_the_take(tmp_path: Path) -> None:
    deliver(tmp_path / "a", with_film=False)
    deliver(tmp_path / "b", with_film=False, checks=None)
    page = page_in(tmp_path)
    told = [f"{kind} at {second} s: " for kind, second in (("seam", 6.1), ("drift", 6.2))]
    [shown] = page.marked
    assert shown.name == "a"
    assert shown.checks is not None
    assert [mark[: len(start)] for mark, start in zip(shown.checks.marks, told, strict=True)] == told
    text = write_report(tmp_path).read_text()
    assert all(text.count(start) == 2 for start in told)


def test_takes_that_no_job_wants_any_more_are_left_out(tmp_path: Path) -> None:
    ended = JobEnded(job="A", time=minute(3), state=JobState.FAILED)
    states = [changed("A", "never", TakeState.WAITING, 0), changed("A", "bad", TakeState.RUNNING, 1), changed("A", "bad", TakeState.FAILED, 2, "nan")]
    record(tmp_path, started("A", ["never", "bad"]), *states, ended, started("B", ["b"], at=30))
    assert standings(tmp_path) == {"b": "waiting", "bad": "failed"}


def test_what_earlier_versions_and_others_left_is_no_reason_for_no_page(tmp_path: Path) -> None:
    deliver(tmp_path / "a", with_film=False)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    manifest["config"]["model"] = "/models/wan"  # before it became a group
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / JOURNAL).open("a") as journal:
        for changes in ({"takes": None}, {"config": []}, {"job": []}, {"longtake": 1}):
            journal.write(json.dumps({**json.loads(started("A", ["a"]).to_json()), **changes}) + "\n")
    page = page_in(tmp_path)
    assert (page.model, page.runs) == ("/models/wan", ())
    record(tmp_path, JobStarted(job="B", longtake="0.1.0", model="/models/\udce9", output="/renders", takes=[], config={}))
    assert "/models/\\udce9" in write_report(tmp_path).read_text()


def test_manifests_alone_are_enough_and_one_that_cannot_be_read_hides_no_other_take(tmp_path: Path) -> None:
    for name in ("a", "b"):
        deliver(tmp_path / name, with_film=False)
    (tmp_path / "b" / "manifest.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert standings(tmp_path) == {"a": "done", "b": "failed"}
    page = page_in(tmp_path)
    assert (page.machine, page.model, page.longtake) == ("cpu, 2 ranks, 4 CPU threads a rank", "/models/wan", "0.1.0")
    assert [(stage.name, stage.share) for stage in page.takes[0].stages] == [
        ("load", None),
        ("encode", 5),
        ("denoise", 80),
        ("decode", 10),
        ("write", 5),
    ]
    assert "no manifest that this version can read" in write_report(tmp_path).read_text()


def test_the_command_makes_the_page_without_what_renders_and_refuses_folders_that_are_no_jobs(tmp_path: Path) -> None:
    job = tmp_path / "a job"
    job.mkdir()
    deliver(job / "a", with_film=False)
    heavy = "{'torch', 'diffusers', 'transformers', 'ray', 'av', 'numpy', 'matplotlib'}"
    command = "from longtake.jobs.cli.app import app; app(['report', sys.argv[1]], standalone_mode=False)"
    program = f"import sys; {command}; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program, job], capture_output=True, text=True, check=False)
    assert done.stdout == f"{job / FOLDER / 'index.html'}\nset()\n", done.stderr
    assert (job / FOLDER / "index.html").is_file()
    refused = {job / "a": f"give the job's, '{job}'", tmp_path: "neither events.jsonl nor a take", tmp_path / "none": "There is no folder"}
    for path, mend in refused.items():
        result = CliRunner().invoke(app, ["report", str(path)])
        assert result.exit_code == 2
        assert mend in result.stderr
        with pytest.raises(ValueError, match=str(path)):
            check_job_folder(path)
    assert not (tmp_path / FOLDER).exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on this machine; apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--disable-gpu", "--disable-quic", "--no-first-run"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder with a take in every state, films among them, in which a job is still rendering."""
    output = tmp_path_factory.mktemp("jobs") / "monday's dailies"
    output.mkdir()
    deliver(output / "harbour")
    for name in ("html", "glasshouse", "harbour@8f8f8f8f", "a" * 100):
        shutil.copytree(output / "harbour", output / name)
        deliver(output / name, with_film=False)
    (output / "tram").mkdir()
    for name, like in (("preview.jpg", "contact_sheet.jpg"), ("film.partial.mp4", "film.mp4")):
        (output / "tram" / name).write_bytes((output / "harbour" / like).read_bytes())
    record(
        output, started("0", ["ships"], -9), changed("0", "ships", TakeState.RUNNING, -8), JobEnded(job="0", state=JobState.STOPPED, time=minute(-7))
    )
    record(output, started("A", [name for name in NAMES if name != "ships"]), Note(job="A", text="cache: teacache", time=BEGAN))
    record(output, *(changed("A", name, TakeState.DONE, 1, "is done already" if name == "html" else "") for name in (*NAMES[:3], NAMES[-1])))
    record(output, changed("A", "eclipse", TakeState.FAILED, 2, "Rank 1 failed: <b>nan</b>."), changed("A", "tram", TakeState.RUNNING, 3))
    record(output, Stepped(job="A", take="tram", step=20, num_steps=50, decisions={"compute": 5, "reuse": 15}, time=minute(4)))
    write_report(output)
    return output


@pytest.fixture
def job(rendered: Path, tmp_path: Path) -> Path:
    """A copy that a test may go on with."""
    return Path(shutil.copytree(rendered, tmp_path / rendered.name))


@contextmanager
def opened(browser: Browser, output: Path, *, now: datetime | None = None, **options: Any) -> Iterator[Tab]:
    """The page in a new tab, which may neither complain nor ask for anything but files. now: stops its clock, which the test moves on."""
    with browser.new_context(**options) as context:
        tab = context.new_page()
        faults: list[str] = []
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        tab.on("request", lambda request: None if urlsplit(request.url).scheme in ("file", "data") else faults.append(f"asked for {request.url}"))
        if now:
            tab.clock.install(time=now)
        tab.goto((output / FOLDER / "index.html").as_uri())
        yield tab
        assert not faults


def test_a_film_plays_by_keyboard(browser: Browser, rendered: Path) -> None:
    with opened(browser, rendered) as tab:
        film = tab.locator("#film-harbour")
        assert film.evaluate("film => film.readyState") == 0, "films are loaded before anybody asks for them"
        film.focus()
        tab.keyboard.press("Space")
        tab.wait_for_function("document.querySelector('#film-harbour').currentTime > 0.5")
        assert film.evaluate("film => [film.error, film.videoWidth, film.videoHeight, film.duration]") == [None, 64, 48, 2]


def test_all_that_the_page_links_to_lies_there(browser: Browser, rendered: Path) -> None:
    with opened(browser, rendered) as tab:
        links = tab.evaluate("[...document.querySelectorAll('[href], [src], [poster]')].flatMap(e => [e.href, e.src, e.poster].filter(Boolean))")
        files = {Path(unquote(urlsplit(link).path)).relative_to(rendered) for link in links if not link.startswith("data:")}
        beside = {Path("harbour", name) for name in ("film.mp4", "thumbnail.jpg", "contact_sheet.jpg", "decisions.png", "manifest.json")}
        assert files > {*beside, Path("harbour@8f8f8f8f", "film.mp4"), Path("tram", "preview.jpg"), Path("tram", "film.partial.mp4")}
        assert [file for file in files if not (rendered / file).is_file()] == []
        assert tab.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.getElementById(a.hash.slice(1))).length") == 0


def test_prompts_and_causes_are_text_and_never_html(browser: Browser, rendered: Path) -> None:
    with opened(browser, rendered) as tab:
        assert tab.title() == "monday's dailies: running"
        assert tab.locator("#take-html .prompts").inner_text() == HTML
        assert tab.locator("#failures + ul").inner_text() == "eclipse: Rank 1 failed: <b>nan</b>."
        assert tab.locator("img[src='x']").count() == 0


_STOPS = """() => {
  const stops = [...document.querySelectorAll("a[href], button, input, video, summary")];
  window.stops = stops.filter((one) => one.checkVisibility() && !(one.type === "radio" && !one.checked));
  return window.stops.length;
}"""


def test_the_keyboard_reaches_every_control_in_the_order_of_reading(browser: Browser, rendered: Path) -> None:
    with opened(browser, rendered) as tab:
        count = tab.evaluate(_STOPS)
        reached: list[int] = []
        for _ in range(12 * count):  # a player has stops of its own
            tab.keyboard.press("Tab")
            stop = tab.evaluate("window.stops.indexOf(document.activeElement)")
            if stop == -1 or (stop == 0 and len(reached) > 1):
                break
            reached += [] if reached[-1:] == [stop] else [stop]
        assert reached == list(range(count))
        assert tab.evaluate("getComputedStyle(window.stops[0]).left.startsWith('-')"), "the skip link shows without focus"
        tab.locator("a.skip").focus()
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.activeElement.id") == "takes"


_FLAWS = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const told = (one) => [one.getAttribute("aria-label"), one.textContent, one.querySelector("img")?.alt, one.labels?.[0]?.textContent];
  const name = (one) => told(one).some((text) => text?.trim());
  const ids = all("[id]").map((one) => one.id);
  const levels = all("h1, h2, h3, h4").map((one) => Number(one.tagName[1]));
  return [
    document.documentElement.lang === "en" ? [] : ["no language"],
    ["h1", "main", "header", "footer"].filter((one) => all(one).length !== 1),
    all("img:not([alt]), img[alt='']").map((one) => `no alt: ${one.src}`),
    all("a[href], button, input, video, summary, progress, form").filter((one) => !name(one)).map((one) => `no name: ${one.outerHTML}`),
    all("[aria-labelledby]").filter((one) => !document.getElementById(one.getAttribute("aria-labelledby"))).map((one) => `label: ${one.id}`),
    ids.filter((id, place) => ids.indexOf(id) !== place).map((id) => `twice: ${id}`),
    levels.filter((level, place) => place && level > levels[place - 1] + 1).map((level) => `heading skipped before h${level}`),
    all(".take").filter((one) => !one.querySelector(".state").textContent).map((one) => `state by colour alone: ${one.id}`),
  ].flat();
}"""

_FAINT = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    const ground = parts(getComputedStyle(one).backgroundColor);
    return ground[3] === 0 ? behind(one.parentElement) : ground;
  };
  const faint = [];
  for (const one of document.querySelectorAll("body *:not(script, style)")) {
    if (![...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) || !one.checkVisibility()) continue;
    const [low, high] = [light(parts(getComputedStyle(one).color)), light(behind(one))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(`${one.className || one.tagName}: ${(high + 0.05) / (low + 0.05)}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("width", [360, 1440])
def test_all_is_named_legible_and_within_the_screen_in_light_and_dark(browser: Browser, rendered: Path, width: int) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        with opened(browser, rendered, viewport={"width": width, "height": 900}, color_scheme=scheme) as tab:
            shown = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            brightness[scheme] = float(np.asarray(shown).mean())
            assert len(shown.getcolors(1 << 24)) > 100, "an empty page"
            tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert (
                tab.evaluate("[...document.querySelectorAll('main *')].filter((one) => one.getBoundingClientRect().right > innerWidth).length") == 0
            )
            assert tab.evaluate(_FLAWS) == []
            assert tab.evaluate(_FAINT) == []
    assert brightness["light"] > 3 * brightness["dark"]


def test_takes_are_found_by_state_and_by_words_and_a_link_shows_what_was_hidden(browser: Browser, rendered: Path) -> None:
    def names(tab: Tab) -> list[str]:
        return tab.locator("article.take:visible .name").all_inner_texts()

    with opened(browser, rendered) as tab:
        assert len(names(tab)) == len(NAMES)
        tab.locator("#show-all").focus()
        tab.keyboard.press("ArrowRight")
        assert names(tab) == ["tram"]
        tab.locator("#show-done").check(force=True)
        tab.locator("#find").fill("LAMP glass")
        assert names(tab) == ["glasshouse"]
        assert tab.locator("#found").inner_text() == f"1 of {len(NAMES)} shown"
        tab.get_by_role("link", name="eclipse").click()
        assert len(names(tab)) == len(NAMES)
    with opened(browser, rendered, java_script_enabled=False) as tab:
        assert len(names(tab)) == len(NAMES)
        assert not tab.locator("#filter, #pause, .copy").filter(visible=True).count()
        assert "Load this page again" in tab.locator("header").inner_text()


def test_the_page_follows_its_job_but_never_under_the_hands_of_whoever_uses_it(browser: Browser, job: Path) -> None:
    def go_on(step: int) -> None:
        record(job, Stepped(job="A", take="tram", step=step, num_steps=50, decisions={}, time=minute(4)))
        write_report(job)

    def follows(tab: Tab, step: int) -> None:
        tab.clock.run_for(9_000)
        tab.wait_for_function(f"document.querySelector('#take-tram .progress').textContent.includes('step {step} of 50')")
        tab.wait_for_load_state()

    with opened(browser, job, now=minute(4)) as tab:
        progress = tab.locator("#take-tram .progress")
        tab.locator("#pause").focus()
        seen = tab.locator("#take-glasshouse")
        seen.evaluate("take => scrollBy(0, take.getBoundingClientRect().top + 30)")
        for step in range(11, 21):
            go_on(step)
            follows(tab, step)
        assert abs(seen.evaluate("take => take.getBoundingClientRect().top") + 30) < 2
        assert tab.evaluate("document.activeElement.id") == "pause"
        uses = {
            "a film": ("document.querySelector('#film-glasshouse').play()", "document.querySelector('#film-glasshouse').load()"),
            "other details": ("document.querySelector('.more').open = true", "document.querySelector('.more').open = false"),
            "text": ("getSelection().selectAllChildren(document.querySelector('h1'))", "getSelection().removeAllRanges()"),
            "the search": ("document.querySelector('#find').focus()", "document.activeElement.blur()"),
            "paused": ("document.querySelector('#pause').click()", "document.querySelector('#pause').click()"),
        }
        for step, (use, (begin, end)) in enumerate(uses.items(), 21):
            tab.evaluate(f"async () => {{ window.marked = 1; await ({begin}); }}")
            go_on(step)
            tab.clock.run_for(30_000)
            assert tab.evaluate("window.marked") == 1, use
            assert use in tab.locator("#renewing").inner_text()
            tab.evaluate(f"() => {{ {end}; }}")
            follows(tab, step)
        assert progress.get_by_role("progressbar").get_attribute("value") == "25"
        record(job, changed("A", "tram", TakeState.WAITING, 5, "stopped"), JobEnded(job="A", state=JobState.STOPPED, time=minute(5)))
        write_report(job)
        tab.clock.run_for(9_000)
        tab.wait_for_function("document.title.endsWith('stopped')")
        tab.wait_for_load_state()
        tab.evaluate("window.marked = 1")
        tab.clock.run_for(600_000)
        assert tab.evaluate("window.marked") == 1, "the job has ended"


def test_a_job_that_has_fallen_silent_is_looked_at_seldom(browser: Browser, rendered: Path) -> None:
    with opened(browser, rendered, now=minute(60)) as tab:
        assert tab.locator("#renewing").inner_text() == "Updates itself every 60 s."


def test_a_job_of_200_takes_loads_in_two_seconds(browser: Browser, rendered: Path, tmp_path: Path) -> None:
    for number in range(200):
        shutil.copytree(rendered / "harbour", tmp_path / f"take-{number:03}")
    write_report(tmp_path)
    asked: list[str] = []
    with opened(browser, tmp_path) as tab:
        assert tab.locator("article.take").count() == 200
        tab.on("request", lambda request: asked.append(request.url))
        loads = []
        for _ in range(3):
            tab.reload()
            loads.append(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        assert min(loads) < 2_000, f"milliseconds: {loads}"
        assert len(asked) < 3 * 100, "pictures are loaded that nobody looks at"
