"""The sweep as the README calls it: whole, killed at any point, and looked at in a browser."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pandas as pd
import pytest

from flexgen_helm.specs.shipped import scenarios_dir
from tests.end_to_end.commands import COMMANDS, environment_in, run, run_and_kill

SETTINGS = ["none", "w8", "w4", "w4-kv4", "w3", "w2-kv2"]
ENTRIES = 8
SUITE = "offline"
ARGUMENTS = [
    *("--model", "opt-embedded", "--settings", ",".join(SETTINGS)),
    *("-c", str(scenarios_dir() / f"{SUITE}.conf"), "-m", "3"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def tables_in(directory):
    return directory / "benchmark_output" / "tables" / SUITE


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Directory of a sweep that nothing came in the way of, what it printed, and its seconds."""
    directory = tmp_path_factory.mktemp("sweep")
    start_s = time.perf_counter()
    finished = run(directory, "flexgen-helm", "sweep", *ARGUMENTS)
    return directory, finished, time.perf_counter() - start_s


def test_every_setting_is_compared_with_the_first(whole):
    directory, finished, _ = whole
    table = pd.read_parquet(tables_in(directory) / "comparison.parquet")
    assert len(table) == len(SETTINGS) * ENTRIES
    assert table["difference"].notna().all()
    others = table[table["compression"] != "none"]
    assert others[["difference_low", "p_adjusted", "changed_answers"]].notna().all(axis=None)
    overall = pd.read_csv(tables_in(directory) / "overall.csv", keep_default_na=False)
    assert overall["compression"].tolist() == SETTINGS
    assert (overall["tasks"] == ENTRIES).all()
    assert f"({len(SETTINGS)} of {len(SETTINGS)})" in finished.stderr


def test_again_it_runs_nothing_and_writes_the_same(whole):
    directory, _, _ = whole
    before = {path.name: path.read_bytes() for path in tables_in(directory).iterdir()}
    assert len(before) == 2 * 4 + 2 * 3 + 2  # tables, pictures, report, size
    run(directory, "flexgen-helm", "sweep", *ARGUMENTS)
    log = (directory / "benchmark_output" / f"{SUITE}.log").read_text()
    assert log.count("of them to compute") == len(SETTINGS)  # by the first sweep
    assert {path.name: path.read_bytes() for path in tables_in(directory).iterdir()} == before


def test_killed_at_any_point_it_ends_with_the_same_tables(whole, tmp_path):
    directory, _, seconds = whole
    killed = [
        run_and_kill(tmp_path, part * seconds, "flexgen-helm", "sweep", *ARGUMENTS)
        for part in (0.35, 0.3, 0.5)
    ]
    assert killed[0]
    run(tmp_path, "flexgen-helm", "sweep", *ARGUMENTS)
    for name in ("scores.csv", "scores.parquet"):
        assert (tables_in(tmp_path) / name).read_bytes() == (
            tables_in(directory) / name
        ).read_bytes()


@contextmanager
def helm_server(directory):
    """Serve the suite; lends the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [COMMANDS / "helm-server", "--suite", SUITE, "--port", str(port)],
        cwd=directory,
        env=environment_in(directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(120):
            try:
                urllib.request.urlopen(address, timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.kill()
        server.wait()


def page_text(address, directory):
    """What a browser makes of a page, its scripts run."""
    return subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={directory}", "--virtual-time-budget=20000"),
            *("--dump-dom", address),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def summarized(whole):
    """The sweep's directory after helm-summarize with our schema."""
    directory, _, _ = whole
    names = [f"flexgen/opt-embedded{'' if s == 'none' else '-' + s}" for s in SETTINGS]
    run(directory, "flexgen-helm", "register", "--models", *names)
    schema = str(scenarios_dir() / "schema_flexgen.yaml")
    # One thread, as CPython 3.11 cannot parse templates in two without failing now and then.
    run(
        directory, "helm-summarize", "--suite", SUITE, "--schema-path", schema, "-n", "1",
    )  # fmt: skip
    return directory


def test_helm_summarize_shows_every_setting_with_our_schema(summarized):
    groups = summarized / "benchmark_output" / "runs" / SUITE / "groups"
    for group in ("dyck_language", "synthetic_reasoning", "synthetic_reasoning_natural"):
        table, *_ = json.loads((groups / f"{group}.json").read_text())
        assert len({row[0]["value"] for row in table["rows"]}) == len(SETTINGS)


@needs_chromium
def test_helm_servers_page_shows_every_setting(summarized, tmp_path):
    with helm_server(summarized) as address:
        page = page_text(f"{address}#/leaderboard/dyck_language", tmp_path)
    for setting in SETTINGS[1:]:
        assert f"-{setting}" in page or f"({setting}" in page, page[:2000]


@needs_chromium
def test_the_report_is_shown_by_a_browser(whole, tmp_path):
    directory, _, _ = whole
    page = page_text(f"file://{tables_in(directory) / 'report.html'}", tmp_path)
    assert page.count("<svg") == 3
    assert page.count("<table>") == 3
