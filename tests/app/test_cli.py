"""The command line as a person and a script meet it: the real program in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer.main

from app.cli import cli
from tests.app.test_serve import eventually
from tests.services import MODELS, free_ports

ROOT = Path(__file__).parents[2]
VERBS = sorted(typer.main.get_command(cli).commands)
CONTRACT = {
    "serve",
    "worker",
    "ingest",
    "query",
    "search",
    "documents",
    "delete",
    "jobs",
    "collections",
    "reindex",
    "doctor",
    "config",
}


def environment(settings: dict[str, str]) -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("FOOTNOTE_")}
    return {**ours, "FOOTNOTE_MODELS_DIR": str(MODELS), **{f"FOOTNOTE_{key}": value for key, value in settings.items()}}


def footnote(*arguments: str | Path | bytes, expect: int = 0, **settings: str) -> str:
    """Run the program; what it printed, or what it said on stderr where a failure is expected."""
    done = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        check=False,
        env=environment(settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == expect, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if expect in {0, 3} or done.stdout else done.stderr


def line(*arguments: str | Path | bytes, expect: int = 2, **settings: str) -> str:
    """The one line that a failure says."""
    said = footnote(*arguments, expect=expect, **settings)
    assert said.startswith("footnote: ")
    assert said.count("\n") == 1, said
    return said


def lines(*arguments: str | Path, **settings: str) -> list[dict]:
    """What `--json` prints, one document a line."""
    return [json.loads(each) for each in footnote(*arguments, "--json", **settings).splitlines()]


@pytest.fixture(scope="module")
def url(serve) -> str:
    return serve().url


@pytest.fixture
def collection() -> str:
    return f"cli-{secrets.token_hex(4)}"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "apples.txt").write_text("Apples are red in October.")
    (tmp_path / "pears.md").write_text("# Pears\n\nPears are green in August.")
    (tmp_path / "inner" / "figs.txt").write_text("Figs are brown in September.")
    (tmp_path / ".hidden.txt").write_text("Not for anybody.")
    return tmp_path


# --- usage ----------------------------------------------------------------------------------------------------------------


def test_the_verbs_are_those_of_the_contract():
    assert set(VERBS) == CONTRACT
    overview = footnote("--help")
    assert all(f"  {verb} " in overview for verb in VERBS)
    assert footnote("--version").startswith("footnote ")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example(verb):
    text = footnote(verb, "--help")
    assert "Example: " in text
    assert f"footnote {verb}" in text
    assert "--child" not in text
    assert "--parent" not in text


def test_config_shows_values_with_their_sources_and_no_secret(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("workers = 7\n")
    secrets_ = {"API_KEYS": "hunter2", "LLM_API_KEY": "hunter2", "BROKER_URL": "redis://:hunter2@host:6379/0"}
    settings = {"PORT": "8123", "CONFIG": str(file), "CATALOG_URL": "postgresql://user:hunter2@host/db", **secrets_}
    text = footnote("config", **settings)
    shown = {row.split()[0]: row for row in text.splitlines()}
    assert shown["FOOTNOTE_PORT"].endswith("8123  (environment)")
    assert shown["FOOTNOTE_WORKERS"].endswith("7  (mine.toml)")
    assert shown["FOOTNOTE_HOST"].endswith("127.0.0.1  (default)")
    document = json.loads(footnote("config", "--json", **settings))
    assert (document["port"]["value"], document["port"]["source"]) == (8123, "environment")
    assert all(row["description"] for row in document.values())
    assert "hunter2" not in text + json.dumps(document)


@pytest.mark.parametrize("verb", ["config", "serve", "documents"])
def test_an_unknown_setting_and_a_bad_value_are_one_line_each(verb):
    assert "FOOTNOTE_PROT" in line(verb, PROT="1")
    said = line(verb, PORT="eighty")
    assert all(part in said for part in ("FOOTNOTE_PORT", "eighty", "environment", "integer"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuchverb"],
        ["query"],
        ["query", "x", "--nosuchoption"],
        ["query", "x", "--top-k", "many"],
        ["query", "x", "--filter", "{"],
        ["ingest"],
        ["ingest", "no/such/path"],
        ["ingest", "data/samples", "--glob", "*.nosuch"],
        ["query", "x", "--url", "http://x:port"],
        ["serve", "--port", "99999"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments):
    line(*arguments)


def test_an_address_where_nothing_answers_is_a_failure_with_the_cure():
    [port] = free_ports(1)
    for verb in (["query", "x"], ["documents"], ["reindex"]):
        assert "footnote serve" in line(*verb, "--url", f"http://127.0.0.1:{port}", expect=1)


def test_an_address_where_something_else_answers_is_a_failure():
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever).start()
        for verb in (["query", "x"], ["documents"]):
            said = line(*verb, "--url", f"http://127.0.0.1:{other.server_port}", expect=1)
            assert "not as this service does" in said
        other.shutdown()


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "When do apples ripen?"],
        ["documents"],
        ["delete", "doc_1"],
        ["collections", "--delete", "default"],
        ["reindex", "--plan"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_where_nothing_was_ever_stored_a_verb_says_so_and_makes_nothing(arguments, tmp_path):
    folder = tmp_path / "data"
    said = line(*arguments, DATA_DIR=str(folder))
    assert f"there is nothing yet in the data dir {folder}: begin with `footnote ingest FILE`" in said
    assert not folder.exists()


def test_the_doctor_makes_nothing_where_nothing_was_ever_stored(tmp_path):
    found = footnote("doctor", "--json", expect=1, DATA_DIR=str(tmp_path / "data"))
    assert "there is nothing yet in the data dir" in json.loads(found)["detail"]
    assert list(tmp_path.iterdir()) == []


def test_a_busy_port_costs_one_line_with_the_cure(url, tmp_path):
    port = url.rsplit(":", 1)[1]
    said = line("serve", "--port", port, DATA_DIR=str(tmp_path))
    assert port in said
    assert f"--port {int(port) + 1}" in said
    assert not list(tmp_path.iterdir())


def test_an_open_address_without_keys_is_refused(tmp_path):
    said = line("serve", "--host", "0.0.0.0", "--port", "0", DATA_DIR=str(tmp_path))
    assert "FOOTNOTE_API_KEYS" in said


# --- against a running service ---------------------------------------------------------------------------------------------


def test_documents_go_in_are_asked_about_listed_and_deleted(url, collection, folder):
    at = ("--collection", collection, "--url", url)
    assert footnote("ingest", folder, *at, "--metadata", '{"year": 2026}') == "3 ready\n"
    assert footnote("ingest", folder, *at, "--metadata", '{"year": 2026}') == "3 unchanged\n"

    answer = footnote("query", "When are apples red?", *at)
    assert "Apples are red in October. [1]" in answer or "Apples are red in October [1]" in answer
    assert "[1] apples.txt" in answer
    [document] = lines("query", "When are apples red?", *at, "--filter", '{"year": {"$gte": 2026}}')
    assert (document["status"], document["citations"][0]["document_name"]) == ("answered", "apples.txt")
    assert footnote("query", "Who won the football world cup?", *at).startswith("No answer: ")
    assert footnote("search", "figs brown", *at, "--top-k", "1").startswith("1. inner/figs.txt")
    assert [hit["document_name"] for hit in lines("search", "figs brown", *at, "--top-k", "1")[0]["hits"]] == ["inner/figs.txt"]

    listed = {each["name"]: each["id"] for each in lines("documents", *at)}
    assert set(listed) == {"apples.txt", "pears.md", "inner/figs.txt"}
    assert "inner/figs.txt" in footnote("documents", *at, "--status", "ready")
    assert footnote("documents", *at, "--status", "failed") == "none\n"

    gone = lines("delete", listed["apples.txt"], "--url", url)
    assert [(each["document_id"], each["state"]) for each in gone] == [(listed["apples.txt"], "succeeded")]
    text = footnote("delete", listed["pears.md"], "doc_absent", "--url", url, expect=3)
    assert f"{listed['pears.md']}  deleted" in text
    assert "there is no document" in text
    footnote("delete", "doc_absent", "../collections/default", "--url", url, expect=1)
    assert [each["name"] for each in lines("documents", *at)] == ["inner/figs.txt"]


def test_a_question_can_wait_for_what_was_sent_without_waiting(url, collection, folder):
    at = ("--collection", collection, "--url", url)
    sent = lines("ingest", folder, *at, "--no-wait")
    [token] = {each["consistency_token"] for each in sent}
    [answer] = lines("query", "When are apples red?", *at, "--consistent-with", token)
    assert answer["citations"][0]["document_name"] == "apples.txt"
    assert len(lines("search", "figs", *at, "--consistent-with", token)[0]["hits"]) == 3
    assert "/consistent_with" in line("query", "x", *at, "--consistent-with", "yesterday")


def test_a_glob_and_no_recursion_choose_files(url, collection, folder):
    at = ("--collection", collection, "--url", url)
    assert [each["name"] for each in lines("ingest", folder, "--glob", "*.txt", "--no-recursive", *at)] == ["apples.txt"]
    assert [each["name"] for each in lines("ingest", folder, "--glob", "figs*", *at)] == ["inner/figs.txt"]
    assert [each["duplicate"] for each in lines("ingest", folder / "apples.txt", *at)] == [True]


def test_an_ingest_done_in_part_is_exit_code_3_and_done_not_at_all_1(url, collection, folder):
    (folder / "empty.txt").touch()
    (folder / "program.txt").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(range(256)))
    at = ("--collection", collection, "--url", url)
    text = footnote("ingest", folder, *at, expect=3)
    assert "failed           empty.txt: empty.txt is empty." in text
    assert "3 ready, 2 failed" in text
    assert "1 failed" in footnote("ingest", folder / "empty.txt", *at, expect=1)
    line("ingest", folder / "apples.txt", *at, "--metadata", "[]")
    line("ingest", folder / "apples.txt", "--collection", "a b", "--url", url)


def test_a_file_name_of_any_bytes_can_be_sent(url, collection, tmp_path):
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.txt")).write_text("Coffee is black.")
    [document] = lines("ingest", tmp_path, "--collection", collection, "--url", url)
    assert (document["name"], document["status"]) == ("caf?.txt", "ready")


def test_what_the_service_refuses_has_the_exit_code_of_its_kind(url, collection):
    assert "there is no collection" in line("query", "x", "--collection", collection, "--url", url, expect=1)
    assert "/top_k" in line("query", "x", "--top-k", "0", "--url", url)
    assert "colour" in line("search", "x", "--filter", '{"$colour": 1}', "--url", url)
    assert "there is no job" in line("jobs", "--cancel", "job_absent", "--url", url, expect=1)
    assert "cannot be sent" in line("query", b"\xff", "--url", url)


def test_several_jobs_or_all_of_a_state_are_retried(url, collection, tmp_path):
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(b"%PDF-1.7 and nothing else " + name.encode())
    footnote("ingest", tmp_path, "--collection", collection, "--url", url, expect=1)
    failed = [job["id"] for job in lines("jobs", "--state", "failed", "--url", url) if job["collection"] == collection]
    assert len(failed) == 2
    assert [job["id"] for job in lines("jobs", "--retry", failed[0], "--retry", failed[1], "--url", url)] == failed
    eventually(lambda: {job["id"] for job in lines("jobs", "--state", "failed", "--url", url)} >= set(failed))
    assert {job["id"] for job in lines("jobs", "--state", "failed", "--retry", "all", "--url", url)} >= set(failed)
    assert "--state dead" in line("jobs", "--retry", "all", "--url", url)
    assert "delete, ingest, maintenance, reindex" in line("worker", "--queues", "ingest,nothing")


def test_jobs_and_collections_are_listed_and_a_collection_deleted(url, collection, folder):
    lines("ingest", folder, "--collection", collection, "--url", url)
    jobs = [each for each in lines("jobs", "--state", "succeeded", "--url", url) if each["collection"] == collection]
    assert [each["kind"] for each in jobs] == ["ingest"] * 3
    assert jobs[0]["id"] in footnote("jobs", "--url", url)
    assert "succeeded" in line("jobs", "--cancel", jobs[0]["id"], "--url", url, expect=1)
    [mine] = [each for each in lines("collections", "--url", url) if each["name"] == collection]
    assert (mine["documents"], mine["chunks"]) == (3, 3)
    assert collection in footnote("collections", "--url", url)
    assert collection not in footnote("collections", "--delete", collection, "--url", url)
    line("collections", "--delete", collection, "--url", url, expect=1)


def test_a_reindex_plans_does_and_finds_nothing_to_do(url, collection, folder):
    at = ("--collection", collection, "--url", url)
    lines("ingest", folder, *at)
    assert footnote("reindex", *at) == f"{collection}: nothing to do\n"
    assert [each["state"] for each in lines("reindex", *at, "--plan")] == ["unchanged"]
    planned = footnote("reindex", *at, "--plan", "--chunk-size", "32")
    assert planned.startswith(f"{collection}: 3 documents, 3 chunks to embed by ")
    assert [each["state"] for each in lines("reindex", *at, "--force")] == ["succeeded"]
    assert footnote("reindex", *at) == f"{collection}: nothing to do\n"
    assert "unknown embedder" in line("reindex", *at, "--embedder", "nope:x")
    line("reindex", "--collection", "absent", "--url", url, expect=1)


def test_the_environment_may_name_the_service(url, collection, folder):
    assert [each["status"] for each in lines("ingest", folder, "--collection", collection, URL=url)] == ["ready"] * 3


# --- in this process -------------------------------------------------------------------------------------------------------


def test_the_verbs_work_without_a_running_service(folder, tmp_path_factory):
    data = str(tmp_path_factory.mktemp("data"))
    assert footnote("ingest", folder, DATA_DIR=data) == "3 ready\n"
    [answer] = lines("query", "When are apples red?", DATA_DIR=data)
    assert answer["citations"][0]["quote"].startswith("Apples are red in October")
    assert "there is no collection" in line("search", "x", "--collection", "absent", DATA_DIR=data, expect=1)
