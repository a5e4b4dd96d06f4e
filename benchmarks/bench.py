"""Ours and others that install from packages, on the same documents and questions, in alternating rounds.

python benchmarks/bench.py ingest query start --corpus ../corpora/scifact    # writes docs/benchmarks.json
python benchmarks/bench.py report                                            # docs/benchmarks.md and its plot from that
python benchmarks/bench.py check --against old.json                          # have our ratios become worse?

Each peer has an environment of its own (`benchmarks/peers/*.txt`, installed by uv into `--work`) and the same thin service
around it. A round in which other programs took more than `--foreign` cores is run again, a few times, and the quietest one
counts.
`docs/benchmarks.json` keeps what was measured by verb; measuring one verb again leaves the others.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import embed
import httpx
import psutil
from load import question, search_load
from machine import Spent, busy_seconds, cpu_seconds, description, family, peak_mb, watched
from quality import ingest as upload
from quality import read_lines
from report import OURS, compare, write_report

HERE = Path(__file__).parent
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TRIES = 3
WARM = 8
START_SECONDS = 180
CLIENTS = (1, 16, 64)
LLM_PORT = 9177
open_url = build_opener(ProxyHandler({})).open
"""Without a proxy, even where the environment names one: all servers are here."""


class Peer:
    """Another's library, run by `peers/run.py` in its own environment."""

    def __init__(self, name: str, title: str, work: Path, model: Path) -> None:
        self.name, self.title, self.work, self.model = name, title, work, model
        self.needs = HERE / "peers" / f"{name}.txt"
        self.python = work / "environments" / name / "bin" / "python"
        self.data = work / "data" / name

    def set_up(self) -> None:
        if not self.python.exists():
            subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, self.python.parents[1]], check=True)
        install = [uv(), "pip", "install", "--quiet", "--python", self.python]
        subprocess.run([*install, "-r", self.needs], check=True)
        if self.name == "with_llama_index":  # its NLTK refuses files that uv has linked
            subprocess.run([*install, "--link-mode", "copy", "--no-deps", "--reinstall", "llama-index-core"], check=True)

    def versions(self) -> str:
        """Of the library and of what embeds for it."""
        freeze = [uv(), "pip", "freeze", "--quiet", "--python", self.python]
        held = dict(line.split("==") for line in subprocess.check_output(freeze, text=True).splitlines() if "==" in line)
        first = self.needs.read_text().partition("==")[0]
        return ", ".join(f"{name} {held[name]}" for name in (first, "transformers", "torch"))

    def ingest(self, documents: Path, warm: Path) -> dict:
        shutil.rmtree(self.data, ignore_errors=True)
        command = self._command("--documents", documents, "--warm", warm)
        done = subprocess.run(command, env=offline(), check=True, capture_output=True, text=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def start(self, port: int) -> subprocess.Popen[bytes]:
        return spawn(self._command("--port", port), offline(), self.work / f"{self.name}.log")

    def _command(self, *more: object) -> list[str]:
        return list(map(str, (self.python, HERE / "peers" / "run.py", self.name, self.model, self.data, *more)))


class Ours:
    """This service, with its defaults and empty caches."""

    name, title = "footnote", OURS

    def __init__(self, work: Path) -> None:
        self.work, self.data = work, work / "data" / self.name
        self.settings = {"DATA_DIR": str(self.data), "MODELS_DIR": str(work / "models")}

    def set_up(self) -> None:
        pass

    def versions(self) -> str:
        return f"footnote {version('footnote')}, openvino {version('openvino')}"

    def ingest(self, documents: Path, warm: Path) -> dict:
        """Over HTTP, from the first upload until the last document is answerable."""
        shutil.rmtree(self.data, ignore_errors=True)
        with serving(self) as (process, url):
            seconds, spent = asyncio.run(self._ingest(url, uploads(documents), uploads(warm), process))
            return {**vars(spent), "seconds": seconds, "peak_mb": sum(map(peak_mb, family(process)))}

    async def _ingest(self, url: str, rows: list[dict], warm: list[dict], process: psutil.Process) -> tuple[float, Spent]:
        async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as http:
            await upload(http, "warm", warm)
            with watched(process) as spent:
                seconds = await upload(http, "default", rows)
            held = (await http.get("/collections/default")).json()["documents"]
        if held != len(rows):
            raise SystemExit(f"{held} of {len(rows)} documents are answerable")
        return seconds, spent

    def start(self, port: int, **more: str) -> subprocess.Popen[bytes]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("FOOTNOTE_")}
        ours = {f"FOOTNOTE_{name}": value for name, value in {**self.settings, **more}.items()}
        command = [sys.executable, "-m", "app", "serve", "--port", str(port)]
        return spawn(command, {**others, **ours}, self.work / "footnote.log")

    def passages(self) -> list[list[str]]:
        """What was embedded, by document: each passage below its titles."""
        found: list[list[str]] = []
        page: dict = {"next_cursor": ""}
        with serving(self) as (_, url), httpx.Client(base_url=url, trust_env=False) as http:
            while (cursor := page["next_cursor"]) is not None:
                wanted = {"collection": "default", "limit": 1000} | ({"cursor": cursor} if cursor else {})
                page = http.get("/documents", params=wanted).json()
                for document in page["documents"]:
                    chunks = http.get(f"/documents/{document['id']}/chunks", params={"limit": 1000}).json()["chunks"]
                    found.append(["\n".join([*chunk["headings"], chunk["text"]]) for chunk in chunks])
        return found


def uploads(documents: Path) -> list[dict]:
    rows = map(json.loads, documents.read_text(encoding="utf-8").splitlines())
    return [{"_id": row["name"], "text": row["text"]} for row in rows]


def uv() -> str:
    """On PATH, or in the environment where `make setup` puts it."""
    return shutil.which("uv") or str(Path(sys.executable).with_name("uv"))


def offline() -> dict[str, str]:
    switches = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "ANONYMIZED_TELEMETRY": "False"}
    return {**os.environ, **switches, "PYTHONDONTWRITEBYTECODE": ""}  # else a peer compiles itself at each start, in 5 s


def spawn(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(command, env=environment, cwd=HERE.parent, stdout=output, stderr=subprocess.STDOUT)


def ask(url: str) -> bool:
    """Whether a question is answered."""
    body = json.dumps({"question": "Is it there?", "top_k": 10}).encode()
    try:
        with open_url(Request(f"{url}/search", body, {"content-type": "application/json"}), timeout=30) as answer:
            return bool(json.load(answer)["hits"])
    except OSError:
        return False


def until(answered: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answered():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{what} did not start; see its log beside the environments")
        time.sleep(0.02)


@contextmanager
def serving(contestant: Peer | Ours, *, filled: bool = False, **more: str) -> Iterator[tuple[psutil.Process, str]]:
    """Started, and stopped in the end; if `filled`, it has answered a question."""
    [port] = free_ports(1)
    process, url = contestant.start(port, **more), f"http://127.0.0.1:{port}"
    try:
        until((lambda: ask(url)) if filled else (lambda: answers(url)), process, contestant.title)
        yield psutil.Process(process.pid), url
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with open_url(f"{url}/readyz", timeout=30):
            return True
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def quietest(measure: Callable[[], dict], foreign: float) -> dict:
    """The least disturbed of some tries; the first that is quiet enough ends them."""
    tries: list[dict] = []
    while len(tries) < TRIES and not any(each["foreign_cores"] <= foreign for each in tries):
        tries.append(measure())
    return min(tries, key=lambda each: each["foreign_cores"])


def bench_ingest(args: argparse.Namespace, contestants: list[Peer | Ours]) -> dict:
    documents, warm = args.work / "documents.jsonl", args.work / "warm.jsonl"
    rows = read_lines(args.corpus / "corpus.jsonl")[: args.documents + WARM]
    texts = [{"name": row["_id"], "text": f"{row.get('title', '')}\n{row['text']}".strip()} for row in rows]
    for file, some in ((documents, texts[WARM:]), (warm, texts[:WARM])):
        file.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    found: dict[str, list[dict]] = {each.title: [] for each in contestants}
    bound: list[dict] = []
    for number in range(args.rounds):
        for each in contestants:
            found[each.title].append(quietest(lambda each=each: each.ingest(documents, warm), args.foreign))
            say("ingest", number, each.title, found[each.title][-1])
        bound.append(quietest(lambda: raw_embedding(contestants[0].passages(), args.work), args.foreign))
        say("ingest", number, "bound", bound[-1])
    return {"documents": len(texts) - WARM, "rounds": found, "bound": bound}


def raw_embedding(documents: list[list[str]], work: Path) -> dict:
    """Our embedder alone, on what was embedded in the ingest before."""
    pipe, far = multiprocessing.get_context("spawn").Pipe()
    given = (f"local:{MODEL}", str(work / "models"), documents, far)
    child = multiprocessing.get_context("spawn").Process(target=embed.ours, args=given, daemon=True)
    child.start()
    pipe.recv()
    with watched(psutil.Process(child.pid)) as spent:
        pipe.send(True)
        pipe.recv()
    pipe.send(False)
    child.join()
    return vars(spent)


def bench_query(args: argparse.Namespace, contestants: list[Peer | Ours]) -> dict:
    texts = [row["text"] for row in read_lines(args.corpus / "queries.jsonl")]
    bodies = (question(texts, number) for number in itertools.count())  # none comes twice: nobody's memory of answers helps
    found: dict[str, list[dict]] = {each.title: [] for each in contestants}
    for number in range(args.rounds):
        for each in contestants:
            with serving(each, filled=True) as (process, url):
                row: dict = {}
                asyncio.run(search_load(url, bodies, 1, 3, "warm"))
                for clients in CLIENTS:
                    row[str(clients)] = quietest(
                        lambda c=clients: searched(url, bodies, c, args.seconds, process), args.foreign
                    )
                row["peak_mb"] = peak_mb(process)
                row["family_peak_mb"] = sum(map(peak_mb, family(process)))
            found[each.title].append(row)
            say("query", number, each.title, row)
    return {"documents": args.documents, "rounds": found}


def searched(url: str, bodies: Iterator[bytes], clients: int, seconds: float, process: psutil.Process) -> dict:
    with watched(process) as spent:
        row = asyncio.run(search_load(url, bodies, clients, seconds, "different"))
    return {**row, "foreign_cores": round(spent.foreign_cores, 3)}


def bench_start(args: argparse.Namespace, contestants: list[Peer | Ours]) -> dict:
    """From the command to the first answered question, with everything installed, converted and ingested."""

    def once(contestant: Peer | Ours) -> dict:
        began, busy, mine = time.perf_counter(), busy_seconds(), sum(psutil.Process().cpu_times()[:2])
        with serving(contestant, filled=True) as (process, _):
            seconds, own = time.perf_counter() - began, cpu_seconds(process)
            foreign = busy_seconds() - busy - own - (sum(psutil.Process().cpu_times()[:2]) - mine)
        return {"seconds": seconds, "cpu_seconds": own, "foreign_cores": max(0.0, foreign / seconds)}

    found: dict[str, list[dict]] = {each.title: [] for each in contestants}
    for number in range(args.rounds):
        for each in contestants:
            found[each.title].append(quietest(lambda each=each: once(each), args.foreign))
            say("start", number, each.title, found[each.title][-1])
    return {"documents": args.documents, "rounds": found}


def bench_embed(args: argparse.Namespace, _: list[Peer | Ours]) -> dict:
    out = args.work / "embed.json"
    command = ["--corpus", args.corpus, "--cache", args.work / "models", "--rounds", str(args.rounds), "--out", out]
    subprocess.run([sys.executable, HERE / "embed.py", *command], check=True)
    return dict(json.loads(out.read_text()))


def bench_streams(_: argparse.Namespace, contestants: list[Peer | Ours]) -> dict:
    slow = {"LLM": "openai:slow", "LLM_BASE_URL": f"http://127.0.0.1:{LLM_PORT}/v1", "LLM_API_KEY": "none"}
    with serving(contestants[0], filled=True, **slow) as (_, url):
        where = ["--llm-port", str(LLM_PORT), "--url", url, "--question", "What do cells need?"]
        command = [sys.executable, HERE / "streams.py", *where]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def bench_scale(args: argparse.Namespace, _: list[Peer | Ours]) -> dict:
    """LanceDB always; Weaviate where `--weaviate URL FOLDER PID` says where it is."""
    places = [("lance:" + str(args.work / "scale"), args.work / "scale", None)]
    if args.weaviate:
        places.append((args.weaviate[0], Path(args.weaviate[1]), args.weaviate[2]))
    rows = []
    for store, folder, pid in places:
        command = ["--corpus", args.corpus, "--store", store, "--folder", folder, *(["--pid", pid] if pid else [])]
        done = subprocess.run([sys.executable, HERE / "scale.py", *command], check=True, stdout=subprocess.PIPE, text=True)
        rows += map(json.loads, done.stdout.splitlines())
    return {"rows": rows}


VERBS = {
    "embed": bench_embed,
    "ingest": bench_ingest,
    "query": bench_query,
    "start": bench_start,
    "streams": bench_streams,
    "scale": bench_scale,
}
"""In the order in which they need each other: what `ingest` leaves is asked by `query` and `start`."""


def say(verb: str, number: int, title: str, row: dict) -> None:
    short = {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}
    print(f"{verb} {number + 1}: {title}: {json.dumps(short)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verbs", nargs="+", choices=[*VERBS, "report", "check"])
    parser.add_argument("--corpus", type=Path, help="a set in the BEIR layout: corpus.jsonl and queries.jsonl")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="environments, data and logs")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks.json")
    parser.add_argument("--against", type=Path, help="the JSON of an earlier run")
    parser.add_argument("--peers", nargs="*", default=["LangChain + Chroma", "txtai", "LlamaIndex", "Haystack"])
    parser.add_argument("--documents", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=7, help="of each load")
    parser.add_argument("--foreign", type=float, default=0.15, help="cores that others may use in a round")
    parser.add_argument("--weaviate", nargs=3, metavar=("URL", "FOLDER", "PID"), help="for `scale`")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    wanted = [verb for verb in VERBS if verb in args.verbs]
    if wanted:
        from retrieval.embedders.local import model_folder

        args.work = args.work.resolve()
        args.work.mkdir(parents=True, exist_ok=True)
        model = model_folder(MODEL, str(args.work / "models"), None).path
        names = {
            "LangChain + Chroma": "with_langchain",
            "txtai": "with_txtai",
            "LlamaIndex": "with_llama_index",
            "Haystack": "with_haystack",
        }
        peers = [Peer(names[title], title, args.work, model) for title in args.peers]
        contestants: list[Peer | Ours] = [Ours(args.work), *peers]
        for each in contestants if {"ingest", "query", "start"} & set(wanted) else []:
            each.set_up()
        for verb in wanted:
            stamp = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": description()}
            stamp["versions"] = [each.versions() for each in contestants]
            results[verb] = {**VERBS[verb](args, contestants), **stamp}
            args.out.parent.mkdir(exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if "report" in args.verbs:
        write_report(results, args.out)
    if "check" in args.verbs:
        worse = compare(json.loads(args.against.read_text()), results)
        print("\n".join(worse) or "no ratio is worse")
        sys.exit(bool(worse))


if __name__ == "__main__":
    main()
