"""The report in headless Chromium: sorting, filters, pages, both verdicts side by side, and curves that follow."""

import pytest

from dreamgen.report import report
from dreamgen.run.jobs import read_jobs
from tests.fixtures.browser import CHROMIUM, WHY_SKIPPED, chromium
from tests.fixtures.runs import INSTRUCTIONS, run_settings
from tests.report.scored_run import FPS, NUM_FRAMES, make_scored_run, motion_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WHY_SKIPPED)
NUM_CLIPS = 60
CLIPS_A_PAGE = 24


@pytest.fixture(scope="module")
def browser():
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_scored_run(tmp_path_factory.mktemp("browser") / "run", NUM_CLIPS)


@pytest.fixture(scope="module")
def linked(run):
    """The page with links to its clips, as large runs have it; the clips of `run` are small enough to be in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamgen.report.listing.MAX_EMBEDDED_BYTES", 0)
        report(run_settings(run.root))
    return run.report.rename(run.root / "linked.html")


@pytest.fixture(scope="module")
def embedded(run, linked):
    report(run_settings(run.root))
    return run.report


@pytest.fixture
def page(browser, embedded, linked, request):
    """The page with links; `@with_both` is for tests of what concerns videos."""
    browser.messages.clear()
    browser.open(embedded if getattr(request, "param", "linked") == "embedded" else linked)
    browser.run("document.querySelector('#clips').scrollIntoView()")
    yield browser
    assert browser.messages == [], "no error, and nothing that the page's policy refused"


with_both = pytest.mark.parametrize("page", ["linked", "embedded"], indirect=True)


def shown(page, of="#grid"):
    """Return the numbers of the clips that are shown, from their seeds."""
    page.run("grid.ready")
    seeds = page.run(f"[...document.querySelectorAll('{of} .card .id')].map((e) => e.textContent.split(' ')[1])")
    return [int(seed) for seed in seeds]


def enter(page, selector, value, event="input"):
    page.run(f"""(() => {{ const input = document.querySelector({selector!r}); input.value = {str(value)!r};
                 input.dispatchEvent(new Event({event!r}, {{ bubbles: true }})); }})()""")


def click(page, selector):
    page.run(f"document.querySelector({selector!r}).click()")


def test_pages_hold_all_clips_in_planned_order(page):
    assert shown(page) == list(range(CLIPS_A_PAGE))
    click(page, "[data-step='1']")
    assert shown(page) == list(range(CLIPS_A_PAGE, 2 * CLIPS_A_PAGE))
    enter(page, "#page", 3, "change")
    assert shown(page) == list(range(2 * CLIPS_A_PAGE, NUM_CLIPS))
    assert page.run("document.querySelector('[data-step=\"1\"]').disabled")
    enter(page, "#page", 99, "change")
    assert page.run("document.querySelector('#page').value") == "3"
    assert page.run("document.querySelectorAll('video[src]').length") <= CLIPS_A_PAGE, "other pages' are released"


def test_clips_are_sorted_by_a_score_with_missing_values_last(page):
    enter(page, "#sort", 0, "change")
    assert shown(page) == sorted(range(NUM_CLIPS), key=motion_of)[:CLIPS_A_PAGE], "the worst first: it has a minimum"
    assert page.run("document.querySelector('#direction').textContent") == "Lowest first (worst)"
    click(page, "#direction")
    assert shown(page) == sorted(range(NUM_CLIPS), key=motion_of, reverse=True)[:CLIPS_A_PAGE]
    enter(page, "#sort", 2, "change")
    assert shown(page)[0] == NUM_CLIPS - 1, "the worst first: it has a maximum"
    enter(page, "#sort", 1, "change")
    enter(page, "#page", 3, "change")
    assert shown(page)[-NUM_CLIPS // 5 :] == [n for n in range(NUM_CLIPS) if n % 5 == 0], "without a value"
    enter(page, "#sort", "", "change")
    enter(page, "#page", 1, "change")
    assert shown(page) == list(range(CLIPS_A_PAGE))


def test_filters_combine(page, run):
    click(page, "[data-show='rejected']")
    rejected = [n for n in range(NUM_CLIPS) if n % 3 == 0]
    assert shown(page) == rejected
    assert page.run("document.querySelector('#found').textContent") == f"{len(rejected)} of {NUM_CLIPS} clips"
    enter(page, "#find", INSTRUCTIONS[0].upper())
    assert shown(page) == [n for n in rejected if n % 4 == 0]
    enter(page, "[data-from='0']", 0.11)
    enter(page, "[data-to='0']", 0.14)
    assert shown(page) == [n for n in rejected if n % 4 == 0 and 0.11 <= motion_of(n) <= 0.14]
    click(page, "#clear")
    assert shown(page) == rejected
    click(page, "[data-show='all']")
    click(page, "[data-missed='0']")
    assert shown(page) == rejected
    click(page, "#clear")
    enter(page, "#find", read_jobs(run.jobs)[17].clip_id[:9])
    assert shown(page) == [17]
    enter(page, "#find", "no such clip")
    assert shown(page) == [] and not page.run("document.querySelector('#none').hidden")


def test_only_cards_near_the_window_have_videos(page):
    num = "document.querySelectorAll('#grid video').length"
    page.wait(f"{num} > 0")
    assert page.run(num) < CLIPS_A_PAGE
    page.run("document.querySelector('#grid').lastElementChild.scrollIntoView()")
    page.wait("document.querySelector('#grid').lastElementChild.querySelector('video, .curves') !== null")


def test_accepted_and_rejected_stand_side_by_side(page):
    click(page, "[data-sides]")
    rejected = [n for n in range(NUM_CLIPS) if n % 3 == 0]
    accepted = [n for n in range(NUM_CLIPS) if n % 3]
    half = CLIPS_A_PAGE // 2
    assert shown(page, ".side:first-child") == accepted[:half] and shown(page, ".side:last-child") == rejected[:half]
    boxes = page.run("[...document.querySelectorAll('.side')].map((e) => e.getBoundingClientRect().toJSON())")
    assert boxes[0]["right"] <= boxes[1]["left"] and boxes[0]["top"] == boxes[1]["top"]
    enter(page, "#page", 2, "change")
    assert shown(page, ".side:last-child") == rejected[half:], "each column has its own next page"
    page.size(390, 800)
    boxes = page.run("[...document.querySelectorAll('.side')].map((e) => e.getBoundingClientRect().toJSON())")
    assert boxes[0]["right"] <= boxes[1]["left"] and boxes[1]["right"] <= 390, "also in a narrow window"
    page.size(1280, 900)
    click(page, "[data-show='all']")
    assert shown(page) == list(range(CLIPS_A_PAGE))


def test_text_from_data_is_text(page):
    page.run("document.querySelector('.card').fill()")
    texts = page.run("[...document.querySelectorAll('.card .instruction')].slice(0, 4).map((e) => e.textContent)")
    assert texts == list(INSTRUCTIONS)
    assert page.run("document.querySelectorAll('.card b, .card script').length") == 0
    note = page.run(
        "[...document.querySelectorAll('.card dl div')].map((e) => e.title).find((t) => t.includes('note'))"
    )
    assert note == "note <0>"


@with_both
def test_curves_follow_the_clip(page):
    card = "document.querySelectorAll('.card')[1]"
    page.run(f"{card}.scrollIntoView()")
    page.run(f"{card}.fill()")
    page.run(f"{card}.querySelector('video').preload = 'auto'")
    page.wait(f"{card}.querySelector('video').readyState >= 1")
    last = NUM_FRAMES - 1
    xs = []
    for frame in (4, last, 8):
        page.run(f"{card}.querySelector('video').currentTime = {(frame + 0.5) / FPS}")
        page.wait(f"{card}.querySelector('.curves').dataset.frame === '{frame}'")
        x, texts = page.run(f"[Number({card}.querySelector('.cursor').getAttribute('x1')),"
                            f" [...{card}.querySelectorAll('.range')].map((e) => e.textContent)]")  # fmt: skip
        xs.append(x)
        value, _, std = texts[0].partition(" ± ")
        assert float(value) == pytest.approx(frame / last, abs=0.01)
        assert float(std) == pytest.approx(frame / last / 2, abs=0.01)
        assert float(texts[1].partition(" ")[0]) == pytest.approx(3 - 2 * frame / last, abs=0.06)
    assert 3 * (xs[2] - xs[0]) == pytest.approx(xs[1] - xs[0], abs=0.1) and xs[1] > xs[0], "a third of the way"
    assert page.run(f"{card}.querySelectorAll('.band').length") == 2


@with_both
def test_curves_follow_while_the_clip_plays(page):
    click(page, "[data-play]")
    page.run("Promise.all([...document.querySelectorAll('.card')].map((card) => card.fill()))")
    frame = "Number(document.querySelector('.card .curves').dataset.frame)"
    page.wait(f"{frame} > 2")
    click(page, "[data-play]")
    time_s = "document.querySelector('.card video').currentTime"
    page.wait(f"{frame} === Math.floor({time_s} * {FPS} + 0.001)")
    assert page.run("[...document.querySelectorAll('#grid video')].every((video) => video.paused)")
    assert page.run("document.querySelectorAll('#grid video[src]').length") == CLIPS_A_PAGE


def test_a_click_on_the_curves_seeks(page):
    page.run("document.querySelector('.card').fill()")
    box = page.run("document.querySelector('.curves').getBoundingClientRect().toJSON()")
    x = box["left"] + box["width"] * (88 + 0.75 * 180) / 360
    page.run(f"""document.querySelector('.curves').dispatchEvent(
        new MouseEvent('click', {{ clientX: {x}, clientY: {box["top"] + 5}, bubbles: true }}))""")
    page.wait("document.querySelector('.curves').dataset.frame === '12'")
    assert page.run("document.querySelector('.card video').currentTime") == pytest.approx(12.5 / FPS, abs=0.01)


def test_marked_clips_are_saved_whatever_is_shown(page, run):
    ids = [job.clip_id for job in read_jobs(run.jobs)]
    page.run("globalThis.saved = []; URL.createObjectURL = (blob) => (blob.text().then((t) => saved.push(t)), '#')")
    click(page, "[data-review]")
    click(page, f"[data-clip='{ids[2]}']")
    click(page, "[data-step='1']")
    click(page, f"[data-clip='{ids[30]}']")
    click(page, f"[data-clip='{ids[31]}']")
    click(page, f"[data-clip='{ids[31]}']")
    click(page, "[data-step='-1']")
    page.run("grid.ready")
    assert page.run(f"document.querySelector('[data-clip=\"{ids[2]}\"]').checked"), "a mark stays"
    assert page.run("document.querySelector('[data-save]').textContent") == "Save rejected.txt (2)"
    click(page, "[data-save]")
    assert page.wait("saved[0]") == f"{ids[2]}\n{ids[30]}\n"


@with_both
def test_every_score_shows_its_distribution_threshold_and_worst_clips(page, run):
    page.size(1280, 3000)
    page.run("document.querySelector('#scores').scrollIntoView()")
    page.wait("document.querySelectorAll('[data-worst=\"0\"] .thumbnail').length === 10")
    seeds = (
        "(strip) => [...document.querySelectorAll(strip)].map((e) => listing.seeds[listing.ids.indexOf(e.dataset.id)])"
    )
    assert page.run(f"({seeds})('[data-worst=\"0\"] .thumbnail')") == [str(3 * n) for n in range(10)]
    worst_cut = [str(NUM_CLIPS - 1 - n) for n in range(10)]
    assert page.run(f"({seeds})('[data-worst=\"2\"] .thumbnail')") == worst_cut
    panels = page.run("[...document.querySelectorAll('.score')].map((e) => [e.querySelector('h3').textContent,"
                      " e.querySelectorAll('.mark').length, e.querySelectorAll('.thumbnail').length])")  # fmt: skip
    assert panels == [["motion", 1, 10], ["first frame PSNR in dB", 1, 10], ["cut score", 1, 10], ["likes", 0, 0]]
    click(page, "[data-worst='0'] .thumbnail")
    assert page.run("document.querySelector('#alone').open")
    assert page.run("document.querySelector('#alone .instruction').textContent") == INSTRUCTIONS[0]
    page.run("document.querySelector('#alone').close()")
    page.wait("document.querySelectorAll('#alone video').length === 0")
    page.size(1280, 900)
    page.run("scrollTo(0, 0)")
    page.wait("document.querySelectorAll('[data-worst=\"0\"] .thumbnail').length === 0")
    click(page, "[data-sort='2']")
    assert shown(page)[0] == NUM_CLIPS - 1


def test_clips_that_are_not_beside_the_page_are_named(browser, linked, run, tmp_path):
    moved = tmp_path / "moved.html"
    moved.write_bytes(linked.read_bytes())
    browser.messages.clear()
    browser.open(moved)
    browser.run("document.querySelector('#clips').scrollIntoView()")
    clip_id = read_jobs(run.jobs)[0].clip_id
    browser.wait("document.querySelector('.card .empty') !== null")
    text = browser.run("document.querySelector('.card .empty').textContent")
    assert text == f"clips/{clip_id[:2]}/{clip_id}.mp4 is not beside this page, or cannot be read."
    assert len(shown(browser)) == CLIPS_A_PAGE, "the rest of each card is there"
    assert all("ERR_FILE_NOT_FOUND" in message for message in browser.messages)
