"""Where settings come from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings, load_settings
from app.wiring import open_service
from retrieval.errors import ConfigurationError


def wrong(env: dict[str, str], folder: Path, **overrides: object) -> str:
    """What a start with these settings says: one line."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(env, folder=folder, **overrides)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(tmp_path):
    (tmp_path / "footnote.toml").write_text('port = 1\nhost = "127.0.0.2"\nworkers = 3\n')
    loaded = load_settings({"FOOTNOTE_PORT": "2", "FOOTNOTE_HOST": "127.0.0.3"}, folder=tmp_path, port=4, workers=None)
    settings = loaded.settings
    assert (settings.port, settings.host, settings.workers, settings.max_file_mb) == (4, "127.0.0.3", 3, 100)
    sources = [loaded.sources[name] for name in ("port", "host", "workers", "max_file_mb")]
    assert sources == ["command line", "environment", "footnote.toml", "default"]
    assert set(loaded.sources) == set(Settings.model_fields)


def test_the_defaults_are_those_of_the_contract(tmp_path):
    settings = load_settings({}, folder=tmp_path).settings
    assert (settings.data_dir, settings.host, settings.port) == (Path("data/var"), "127.0.0.1", 8000)
    assert (settings.store_url, settings.broker_url, settings.llm) == ("lance:", "local:", "extractive")
    assert settings.embedder == "local:sentence-transformers/all-MiniLM-L6-v2"
    assert settings.resolved_catalog_url.startswith("sqlite+aiosqlite:///")
    assert not settings.asks_for_keys


def test_a_file_may_be_named_and_must_then_be_there(tmp_path):
    other = tmp_path / "other.toml"
    assert str(other) in wrong({"FOOTNOTE_CONFIG": str(other)}, tmp_path)
    other.write_text("port = 7")
    loaded = load_settings({"FOOTNOTE_CONFIG": str(other)}, folder=tmp_path)
    assert (loaded.settings.port, loaded.sources["port"]) == (7, "other.toml")


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", b"[port]\nx = 1"])
def test_a_file_that_is_not_right_is_named(tmp_path, content):
    (tmp_path / "footnote.toml").write_bytes(content)
    assert "footnote.toml" in wrong({}, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("PROT", "8000", "known: api_keys, api_keys_required, broker_url,"),
        ("PORT", "eighty", "integer"),
        ("PORT", "65536", "less than or equal to 65535"),
        ("WORKERS", "-1", "greater than or equal to 0"),
        ("WORKERS", "", "integer"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("BROKER_URL", "kafka://x", "local:, redis:, rediss:, amqp:, amqps:"),
        ("LLM", "gpt", "<provider>:<model>"),
        ("API_KEYS_REQUIRED", "perhaps", "boolean"),
        ("LEASE_SECONDS", "nan", "greater than or equal to 1"),
        ("WEBHOOK_URL", "ftp://x", "^https?://"),
    ],
)
def test_a_bad_value_stops_the_start_and_names_key_source_and_what_is_allowed(tmp_path, key, value, said):
    line = wrong({f"FOOTNOTE_{key}": value}, tmp_path)
    assert line.startswith(f'FOOTNOTE_{key}="{value}" (from environment): ')
    assert said in line


def test_a_webhook_without_a_secret_is_refused(tmp_path):
    assert "FOOTNOTE_WEBHOOK_SECRET" in wrong({"FOOTNOTE_WEBHOOK_URL": "http://127.0.0.1/hook"}, tmp_path)


def test_an_unknown_key_in_the_file_is_refused_too(tmp_path):
    (tmp_path / "footnote.toml").write_text("storeurl = 'lance:'")
    assert wrong({}, tmp_path).startswith('FOOTNOTE_STOREURL="lance:" (from footnote.toml): unknown setting')


def test_no_message_and_no_print_shows_a_secret(tmp_path):
    (tmp_path / "footnote.toml").write_text("api_keys = ['hunter2']")
    assert "hunter2" not in wrong({}, tmp_path)
    (tmp_path / "footnote.toml").unlink()
    settings = load_settings({"FOOTNOTE_API_KEYS": "hunter2", "FOOTNOTE_LLM_API_KEY": "hunter3"}, folder=tmp_path).settings
    assert "hunter" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.keys == ("hunter2",)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "8.8.8.8"])
def test_an_open_address_without_keys_is_refused_with_the_cure(tmp_path, host):
    line = wrong({}, tmp_path, host=host)
    assert "FOOTNOTE_API_KEYS" in line
    assert "FOOTNOTE_API_KEYS_REQUIRED=false" in line
    assert not load_settings({"FOOTNOTE_API_KEYS_REQUIRED": "false"}, folder=tmp_path, host=host).settings.asks_for_keys
    assert load_settings({"FOOTNOTE_API_KEYS": "k"}, folder=tmp_path, host=host).settings.asks_for_keys


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(tmp_path, host):
    assert not load_settings({}, folder=tmp_path, host=host).settings.asks_for_keys


def test_keys_that_are_required_must_be_there(tmp_path):
    assert "holds no key" in wrong({"FOOTNOTE_API_KEYS_REQUIRED": "true", "FOOTNOTE_API_KEYS": " , "}, tmp_path)


async def test_a_service_with_keys_asks_every_caller_for_one_and_only_tells_its_health_without(tmp_path):
    settings = load_settings({"FOOTNOTE_API_KEYS": "first, second"}, folder=tmp_path, data_dir=tmp_path / "data").settings
    async with open_service(settings) as service:
        app = create_app(settings, service=service)
        app.state.service = service
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://footnote") as http:
            for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
                assert (await http.get(path)).status_code == 200
            for key in ("first", "second"):
                assert (await http.get("/documents", headers={"Authorization": f"Bearer {key}"})).status_code == 200
            for given in (None, "Bearer wrong", "Bearer ", "Bearer first, second", "Basic first", "first", "Bearer fürst"):
                headers = {b"Authorization": given.encode()} if given else {}
                for method, path in (
                    ("GET", "/documents"),
                    ("POST", "/query"),
                    ("POST", "/ingest"),
                    ("DELETE", "/collections/x"),
                ):
                    response = await http.request(method, path, headers=headers)
                    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
                    assert response.headers["www-authenticate"] == "Bearer"
                    assert response.headers["x-request-id"] == response.json()["request_id"]
            assert (await http.get("/openapi.json")).json()["paths"]["/query"]["post"]["security"] == [{"HTTPBearer": []}]
