"""The service as processes: the web server, its workers, and how all of them end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.services import MODELS, running_service

ROOT = Path(__file__).parents[2]


def eventually(holds: Callable[[], bool], seconds: float = 45) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children(process: subprocess.Popen[bytes], verb: str = "worker") -> list[psutil.Process]:
    return [each for each in psutil.Process(process.pid).children() if not is_over(each) and verb in each.cmdline()]


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_worker_is_started_again_and_sigterm_ends_all_with_exit_code_0(tmp_path):
    with running_service(tmp_path) as service:
        [first] = children(service.process)
        first.kill()
        eventually(lambda: [each for each in children(service.process) if each.pid != first.pid] != [])
        eventually(lambda: service.log.read_text().count('"event": "worker_started"') >= 1)
        [second] = children(service.process)
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=30) == 0
        assert time.monotonic() - began < 15
        assert is_over(second)
        assert "Traceback" not in service.log.read_text()


def modules_are_loading(process: psutil.Process) -> bool:
    return any("pydantic_core" in each.path for each in process.memory_maps())


def parsers_are_loading(process: psutil.Process) -> bool:
    return any("forkserver" in " ".join(each.cmdline()) for each in process.children(recursive=True) if not is_over(each))


@pytest.mark.parametrize("when", [modules_are_loading, parsers_are_loading])
@pytest.mark.parametrize("verb", ["serve", "ingest"])
def test_ctrl_c_at_the_start_ends_at_once_and_without_a_traceback(tmp_path, verb, when):
    arguments = ["serve", "--port", "0"] if verb == "serve" else ["ingest", str(ROOT / "README.md")]
    ours = {key: value for key, value in os.environ.items() if not key.startswith("FOOTNOTE_")}
    settings = {**ours, "FOOTNOTE_DATA_DIR": str(tmp_path / "data"), "FOOTNOTE_MODELS_DIR": str(MODELS)}
    with (tmp_path / "output").open("wb") as file:
        command = [sys.executable, "-m", "app", *arguments]
        process = psutil.Popen(command, cwd=ROOT, env=settings, start_new_session=True, stdout=file, stderr=file)
    try:
        eventually(lambda: when(process), 90)
        started = process.children(recursive=True)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=30) in {0, 130, -signal.SIGINT}
        assert time.monotonic() - began < 15  # a second, on a machine that has nothing else to do
        eventually(lambda: all(map(is_over, started)))
    finally:
        if process.is_running():
            process.kill()
    assert "Traceback" not in (tmp_path / "output").read_text()


def test_a_service_that_cannot_start_says_why_in_one_line(tmp_path):
    ours = {key: value for key, value in os.environ.items() if not key.startswith("FOOTNOTE_")}
    settings = {**ours, "FOOTNOTE_DATA_DIR": str(tmp_path / "data"), "FOOTNOTE_STORE_URL": "lancedb:/somewhere"}
    command = [sys.executable, "-m", "app", "serve", "--port", "0", "--workers", "0"]
    ended = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    said = [line for line in ended.stderr.splitlines() if "unknown store 'lancedb'" in line]
    assert len(said) == 1
    assert "known: lance, weaviate, weaviates" in said[0]
    assert "Traceback" not in ended.stderr + ended.stdout


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    with running_service(tmp_path, workers="2") as service:
        found = children(service.process)
        assert len(found) == 2
        service.process.kill()
        eventually(lambda: all(map(is_over, found)))


@pytest.mark.timeout(300)
def test_the_demo_shows_an_answer_and_ctrl_c_ends_it_with_exit_code_0(tmp_path):
    output = tmp_path / "output"
    with output.open("wb") as file:
        command = [sys.executable, "-m", "app", "serve", "--demo", "--port", "0"]
        ours = {key: value for key, value in os.environ.items() if not key.startswith("FOOTNOTE_")}
        settings = {**ours, "FOOTNOTE_DATA_DIR": str(tmp_path / "data"), "FOOTNOTE_MODELS_DIR": str(MODELS)}
        process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=file, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: "Stop with Ctrl-C." in output.read_text() or process.poll() is not None, 240)
        found = children(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert all(map(is_over, found))
    finally:
        process.kill()
        process.wait()
    text = output.read_text()
    assert "[1]" in text
    assert "API page:" in text
    assert "Traceback" not in text


def test_several_web_processes_share_a_port_count_together_and_are_started_again(tmp_path):
    with running_service(tmp_path, web_processes="3", workers="0", api_keys="secret") as service:
        beside = children(service.process, "serve")
        assert len(beside) == 2
        with httpx.Client(base_url=service.url, timeout=30, trust_env=False, headers={"Connection": "close"}) as http:

            def counted() -> float:
                lines = http.get("/metrics").text.splitlines()
                found = [line for line in lines if line.startswith("footnote_http_requests_total") and '"/healthz"' in line]
                return sum(float(line.split()[-1]) for line in found)

            assert {http.get("/documents").status_code for _ in range(12)} == {401}, "each of them asks for the key"
            before = counted()
            assert all(http.get("/healthz").status_code == 200 for _ in range(12))
            assert counted() == before + 12, "whoever is asked"
            beside[0].kill()
            assert all(patiently(lambda: http.get("/healthz")).status_code == 200 for _ in range(12))
            assert counted() >= before + 24
        eventually(lambda: len(children(service.process, "serve")) == 2)
        service.process.kill()
        eventually(lambda: all(map(is_over, beside)))


def patiently(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """What was on its way to a process that dies is lost, as with any server."""
    try:
        return ask()
    except httpx.TransportError:
        return ask()
