"""The report: one page that needs nothing else, read back with the standard library, and in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from small_runs import update_row, write_run, write_sweep

from sf_fixpo import report
from sf_fixpo.records import charts
from sf_fixpo.records.report_data import faults_of, group_runs, phase_seconds, read_run

VOID = {"meta", "link"}


class Page(HTMLParser):
    """The page's elements with their text; complains where one is not closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.data: list[dict] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script" and data.startswith("{"):
            self.data.append(json.loads(data))
        elif self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    def all(self, tag: str, cls: str = "") -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag and cls in [*attrs.get("class", "").split(), ""]]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def make_page(tmp_path, *folders) -> tuple[Page, str]:
    out = tmp_path / "report.html"
    assert report.main([*map(str, folders), f"--out={out}"]) == 0
    text = out.read_text(encoding="utf-8")
    return Page(text), text


def test_a_sweep_is_grouped_by_what_varies(tmp_path, capsys):
    page, _ = make_page(tmp_path, write_sweep(tmp_path / "sweep"))
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "6 runs in 2 groups on gym_CartPole-v1" in page.text
    titles = ("Episode return", "Evaluation: gym_CartPole-v1", "The guarantee", "beta", "Fixup phase", "Lag", "Speed")
    assert all(title in page.texts for title in (*titles, "Time of an update by phase", "Entropy of the policy"))
    returns = page.data[0]
    assert [line["label"] for line in returns["series"]] == ["eps_kl=0.2", "eps_kl=0.5"]
    # three seeds whose returns are seed + 4 or 10 per thousand steps: the mean is that of seed 1
    assert [line["y"][-1] for line in returns["series"]] == pytest.approx([4 * 12 + 1, 10 * 12 + 1], rel=1e-3)
    assert len(page.all("path", "band")) >= 2 * 5
    assert "no file grows" in page.text
    assert "started 2 times by the launcher" in page.text
    assert "The guarantee held" in page.text


def test_the_page_needs_nothing_else(tmp_path):
    page, text = make_page(tmp_path, write_run(tmp_path / "run"))
    attributes = [value for _, attrs in page.elements for key, value in attrs.items() if key in ("src", "href", "srcset")]
    assert all(value.startswith(("#", "data:")) for value in attributes)
    assert not re.findall(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text
    anchors = {attrs["href"][1:] for attrs in page.all("a")}
    assert anchors <= {attrs.get("id") for _, attrs in page.elements}


def test_who_sees_no_picture_and_has_no_mouse_is_served(tmp_path):
    page, _ = make_page(tmp_path, write_run(tmp_path / "run"))
    drawn = page.all("svg", "chart")
    assert len(drawn) >= 10
    assert all(svg["role"] == "img" and svg["tabindex"] == "0" and len(svg["aria-label"]) > 20 for svg in drawn)
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in page.all("div", "scroll"))


def test_what_a_run_says_is_text_and_never_markup(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    folder = write_run(tmp_path / "a<b>", env=evil, command_line=evil)
    write_run(tmp_path / "other", env="x", note=f"$title {evil}")
    page, _ = make_page(tmp_path, folder, tmp_path / "other")
    assert not page.all("img")
    assert "$title" in page.text


def test_no_secret_and_no_path_of_this_machine(tmp_path):
    folder = write_run(tmp_path / "run", wandb_api_key="abc123", data=str(tmp_path / "levels"))
    _, text = make_page(tmp_path, folder)
    assert "abc123" not in text
    assert str(tmp_path) not in text


def test_a_broken_guarantee_is_said_and_seen(tmp_path):
    rows = [update_row(i, kl_max=0.6 if i == 7 else 0.1) for i in range(1, 401)]
    page, _ = make_page(tmp_path, write_run(tmp_path / "run", rows))
    assert "The guarantee is broken" in page.text
    assert "1 update over the bound" in page.text
    guarantee = page.data[1]
    assert max(guarantee["series"][0]["y"]) == 1.2, "400 updates in 300 points, and it is there"


def test_runs_that_promise_nothing_are_not_said_to_have_kept_it(tmp_path):
    appo = write_run(tmp_path / "appo", algo="APPO")
    off = write_run(tmp_path / "off", [update_row(1, kl_max=3.0)], fixup="off")
    page, _ = make_page(tmp_path, appo, off)
    assert "No run here promises a bound" in page.text
    assert "over the bound" not in page.text


def test_faults_are_those_of_the_log(tmp_path):
    rows = [update_row(i, rolled_back=i == 3, backtracks=int(i > 8), health=["collapse"] if i == 5 else []) for i in range(1, 11)]
    folder = write_run(tmp_path / "run", [*rows[:6], *rows[3:]])
    (folder / "evaluations").mkdir()
    (folder / "evaluations" / "p0_checkpoint_1_2.log").write_text("Traceback")
    run = read_run(folder, "run", 0, dict)
    assert [fault.partition(":")[0] for fault in run.faults] == [
        "killed and resumed",
        "1 evaluation(s) did not end well",
        "1 update undone, because a number was not finite",
        "2 updates went back along the line to the previous policy",
        "collapse",
        "not at its end",
    ]
    assert "3 updates after the last checkpoint" in run.faults[0]
    assert faults_of(run.experiment) == run.faults[2:]


@pytest.mark.parametrize(("seconds", "faults"), [(500.0, 0), (300.0, 1)])
def test_a_run_that_had_its_time_is_at_its_end(tmp_path, seconds, faults):
    folder = write_run(tmp_path / "run", [update_row(i) for i in range(1, 11)], train_for_seconds=540)
    experiment = read_run(folder, "run", 0, dict).experiment
    assert len(faults_of(experiment, seconds)) == faults


def test_phases_come_in_the_order_of_the_algorithm():
    assert list(phase_seconds([update_row(1)])) == ["prepare", "reference", "primary", "check", "fixup", "publish"]
    assert phase_seconds([]) == {}


def test_one_run_on_several_tasks_has_a_line_for_each(tmp_path):
    tasks = {"north": {"return": 1.0, "kl_max": 0.1, "beta": 2.0}, "south": {"return": None, "kl_max": 0.2, "beta": 3.0}}
    rows = [update_row(i, beta=[2.0, 3.0], tasks=tasks) for i in range(1, 5)]
    page, _ = make_page(tmp_path, write_run(tmp_path / "run", rows))
    assert {"Return by task", "Largest KL by task", "beta by task"} <= set(page.texts)


def test_long_names_of_groups_are_letters_in_the_legends(tmp_path):
    folders = [write_run(tmp_path / name, note=name * 40) for name in ("a", "b")]
    groups = group_runs([read_run(folder, folder.name, 0, dict) for folder in folders])
    assert [group.label for group in groups] == ["A", "B"]
    page, _ = make_page(tmp_path, *folders)
    assert f"A: note={'a' * 40}" in page.text


def test_a_film_travels_in_the_page(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "videos").mkdir()
    (folder / "videos" / "x.mp4").write_bytes(b"not a film")
    page, _ = make_page(tmp_path, folder)
    assert page.all("video")[0]["src"] == "data:video/mp4;base64,bm90IGEgZmlsbQ=="


def test_a_run_of_a_sweep_that_has_not_begun_is_left_out_and_said(tmp_path, capsys):
    write_run(tmp_path / "sweep" / "a")
    write_run(tmp_path / "sweep" / "b")
    (tmp_path / "sweep" / "b" / "updates.jsonl").unlink()
    page, _ = make_page(tmp_path, tmp_path / "sweep")
    assert "1 run in 1 group" in page.text
    assert "left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["absent"], "absent: no such folder"),
        (["empty"], "empty: holds no run"),
        (["run", "--out=empty"], "--out=empty: must be a file that can be written"),
        (["torn"], "updates.jsonl: not an update log"),
    ],
)
def test_bad_input_is_refused_in_words(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "run")
    (write_run(tmp_path / "torn") / "updates.jsonl").write_text("{}\nx\n{}\n")
    assert report.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("fixpo-report: ")
    assert said in error
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "row",
    [
        [],
        5,
        {},
        {"policy_id": 0},
        update_row(1, kl_max=None),
        update_row(1, eps_kl=0),
        update_row(1, beta=[]),
        update_row(1, beta="1"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, capsys, row):
    folder = write_run(tmp_path / "run", [update_row(1), row], scalars=False)
    assert report.main([str(folder), f"--out={tmp_path / 'x.html'}"]) == 2
    assert "updates.jsonl: not an update log: " in capsys.readouterr().err


def test_rows_of_older_versions_and_numbers_that_are_none_are_shown(tmp_path):
    keep = ("policy_id", "policy_version", "env_steps", "eps_kl", "kl_max", "beta", "primary_steps", "fixup_steps")
    rows = [{key: update_row(i)[key] for key in keep} for i in range(1, 4)]
    rows += [
        update_row(4, kl_max=float("nan")),
        update_row(5, kl_max_stale=float("inf")),
        update_row(6, kl_max_stale=float("nan")),
    ]
    folder = write_run(tmp_path / "run", rows, scalars=False)
    (folder / "evaluations.jsonl").write_text('{"policy_id": 0, "levels": {"x": {}}}\n[]\n')
    page, _ = make_page(tmp_path, folder)
    assert "The guarantee is broken" in page.text
    assert "3 updates over the bound" in page.text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 60_000, [0, 20e3, 40e3, 60e3]), (-3, 3, [-2, 0, 2]), (5, 5, [5])],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_ticks_on_a_logarithm_are_few():
    assert charts.log_ticks(0.03, 20) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert len(charts.log_ticks(1e-20, 1)) <= 7


# --- in a browser

# A window of Chromium is no narrower than 500 pixels; a frame is as narrow as it is asked to be.
FRAME = """<!DOCTYPE html><title>nothing</title><script>
addEventListener("message", event => {{ document.title = event.data; }});</script>
<iframe style="border: 0" width="{width}" height="900" src="measured.html"></iframe>"""

MEASURE = """<script>
addEventListener("load", () => {
  const svg = document.querySelector("svg.chart"), figure = svg.closest("figure");
  svg.focus();
  svg.dispatchEvent(new KeyboardEvent("keydown", {key: "End", bubbles: true}));
  const boxes = [...document.querySelectorAll("svg.chart")].map(x => x.getBoundingClientRect());
  const texts = [...document.querySelectorAll("svg text")].map(x => x.getBoundingClientRect().height);
  const lines = [...document.querySelectorAll("path.line")].map(x => x.getTotalLength());
  parent.postMessage(JSON.stringify({
    width: innerWidth, scroll: document.documentElement.scrollWidth, text: Math.min(...texts), charts: boxes.length,
    drawn: boxes.filter(box => box.width > 250 && box.height > 30).length, lines: lines.filter(x => x > 20).length,
    readout: figure.querySelector(".readout").textContent, focused: document.activeElement === svg,
    page: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.querySelector("svg text")).fill,
  }), "*");
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1600])
def test_a_browser_draws_it(tmp_path, width, dark):
    _, text = make_page(tmp_path, write_sweep(tmp_path / "sweep"))
    (tmp_path / "measured.html").write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += [
        "--window-size=1700,1000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=5000",
    ]
    command = ["chromium", *flags, "--dump-dom", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    measured = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"'))
    assert measured["width"] == width
    assert measured["scroll"] <= width, "nothing sticks out"
    assert measured["text"] >= 10, "pixels"
    assert measured["drawn"] == measured["charts"] >= 11
    assert measured["lines"] >= 20
    assert measured["focused"]
    assert measured["readout"].startswith("at 12,000: eps_kl=0.2 49")
    light = measured["page"] == "rgb(255, 255, 255)"
    assert light != dark
    assert measured["ink"] != measured["page"]
