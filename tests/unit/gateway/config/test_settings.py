"""Settings: options before the environment before defaults, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import Settings
from gateway.config.settings import PepperVersions, unknown


def test_options_go_before_the_environment_before_defaults() -> None:
    environment = {"TRUNKLINE_PORT": "9000", "TRUNKLINE_HOST": "0.0.0.0", "TRUNKLINE_WORKERS": ""}
    settings = Settings.read(environment, port=9001, host=None)
    assert (settings.port, settings.host, settings.workers) == (9001, "0.0.0.0", 1)


@pytest.mark.parametrize(
    ("name", "text"), [("PORT", "many"), ("REDIS_TIMEOUT", "soon"), ("WORKERS", "1.5"), ("GRACE", "30s")]
)
def test_what_cannot_be_read_is_named(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"TRUNKLINE_{name}='{text}'"):
        Settings.read({f"TRUNKLINE_{name}": text})


def test_the_environment_carries_all_settings_to_the_workers() -> None:
    settings = Settings.read(
        {}, port=1234, redis_url="redis://h:1/0", peppers="1:a,2:b", grace=2.5, launched='{"a": "b"}'
    )
    assert Settings.read(settings.environment()) == settings
    assert Settings.read(Settings().environment()) == Settings()


def test_peppers_have_versions_and_zero_is_none() -> None:
    assert dict(Settings(peppers="").pepper_versions()) == {0: b""}
    assert dict(Settings(peppers="1:one,2:t:w:o").pepper_versions()) == {1: b"one", 2: b"t:w:o"}


@pytest.mark.parametrize("text", ["secret", "x:secret", "1:", ":secret", "-1:s", "1"])
def test_peppers_that_cannot_be_read_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(ValueError, match="PEPPERS") as caught:
        Settings(peppers=text).pepper_versions()
    assert "secret" not in str(caught.value).replace("VERSION:SECRET", "")


def test_the_state_file_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert Settings().state_path == Path("/somewhere/trunkline/keys.db")
    assert Settings(state="here.json").state_path == Path("here.json")


def test_the_admin_listener_is_off_by_default_and_has_an_address() -> None:
    assert Settings().admin_port == 0
    assert Settings(admin_port=9000).admin_address == "http://127.0.0.1:9000"
    assert Settings(admin_port=9000, admin_host="::1").admin_address == "http://[::1]:9000"
    assert Settings(admin_port=9000, admin_url="https://admin.example/").admin_address == "https://admin.example"


def test_the_bootstrap_hash_is_one_or_is_refused_without_being_shown() -> None:
    digest = "0123456789abcdef" * 4
    assert Settings().admin_digest() == ""
    assert Settings(admin_hash=f" {digest.upper()} ").admin_digest() == digest
    for text in ("tladm_secret", digest[1:], digest + "0", "g" + digest[1:]):
        with pytest.raises(ValueError, match="TRUNKLINE_ADMIN_HASH") as caught:
            Settings(admin_hash=text).admin_digest()
        assert text not in str(caught.value)


LINKS = {
    "TRUNKLINE_PORT": "tcp://10.43.1.7:8080",
    "TRUNKLINE_SERVICE_HOST": "10.43.1.7",
    "TRUNKLINE_SERVICE_PORT": "8080",
    "TRUNKLINE_SERVICE_PORT_HTTP": "8080",
    "TRUNKLINE_PORT_8080_TCP": "tcp://10.43.1.7:8080",
    "TRUNKLINE_PORT_8080_TCP_PROTO": "tcp",
    "TRUNKLINE_PORT_8080_TCP_PORT": "8080",
    "TRUNKLINE_PORT_8080_TCP_ADDR": "10.43.1.7",
    "TRUNKLINE_ADMIN_PORT": "tcp://10.43.1.8:8081",
    "TRUNKLINE_ADMIN_SERVICE_HOST": "10.43.1.8",
    "TRUNKLINE_ADMIN_SERVICE_PORT": "8081",
    "TRUNKLINE_ADMIN_PORT_8081_TCP_ADDR": "10.43.1.8",
    "TRUNKLINE_REDIS_PORT": "tcp://10.43.1.9:6379",
    "TRUNKLINE_REDIS_SERVICE_HOST": "10.43.1.9",
    "TRUNKLINE_METRICS_PORT_9000_UDP_PROTO": "udp",
}


def test_what_kubernetes_says_of_services_is_no_setting() -> None:
    assert Settings.read(LINKS) == Settings()
    assert unknown(LINKS) == []
    assert Settings.read({**LINKS, "TRUNKLINE_PORT": "9000"}).port == 9000


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("REDIS_URI", "REDIS_URL"),
        ("REDISURL", "REDIS_URL"),
        ("REDIS_ULR", "REDIS_URL"),
        ("RDIS_URLS", "REDIS_URL"),
        ("PEPPER", "PEPPERS"),
        ("WORKER", "WORKERS"),
        ("POTR", "PORT"),
    ],
)
def test_a_slip_in_a_variables_name_is_told(name: str, meant: str) -> None:
    """A misspelt URL of Redis would make limits those of one process, and nobody would notice."""
    with pytest.raises(ValueError, match=f"TRUNKLINE_{name} is no setting; is .*TRUNKLINE_{meant}"):
        Settings.read({f"TRUNKLINE_{name}": "x"})


def test_other_unknown_variables_are_reported_and_do_no_harm() -> None:
    environment = {"TRUNKLINE_OPENAI_KEY": "secret", "TRUNKLINE_WORKERS": "2", "PATH": "/bin"}
    assert Settings.read(environment) == Settings(workers=2)
    assert unknown(environment) == ["TRUNKLINE_OPENAI_KEY"]


def test_keys_without_a_pepper_are_accepted_without_peppers_or_until_a_date() -> None:
    now = [1_800_000_000.0]
    versions = PepperVersions({1: b"one"}, until=1_800_000_100.0, now=lambda: now[0])
    assert dict(versions) == {0: b"", 1: b"one"} and len(versions) == 2
    now[0] += 100
    assert dict(versions) == {1: b"one"} and 0 not in versions
    assert dict(Settings().pepper_versions()) == {0: b""}
    assert dict(Settings(peppers="1:one").pepper_versions()) == {1: b"one"}
    assert dict(Settings(peppers="1:one", pepper_migrate="2100-01-01").pepper_versions()) == {0: b"", 1: b"one"}


@pytest.mark.parametrize("text", ["soon", "31.12.2026", "2026-13-01"])
def test_a_date_of_migration_is_one(text: str) -> None:
    with pytest.raises(ValueError, match=f"TRUNKLINE_PEPPER_MIGRATE='{text}'"):
        Settings(peppers="1:one", pepper_migrate=text).pepper_versions()
