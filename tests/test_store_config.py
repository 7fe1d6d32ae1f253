from __future__ import annotations

import json
from pathlib import Path

import pytest

from w2v_ray import stores
from w2v_ray.cli import main
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.errors import ConfigError
from w2v_ray.store_config import StoreConfig, StoreLimits
from w2v_ray.stores import requests


@pytest.mark.parametrize(
    "options",
    [
        {"key": "canary"},
        {"secret": "canary"},
        {"token": "canary"},
        {"password": "canary"},
        {"account_key": "canary"},
        {"sas_token": "canary"},
        {"connection_string": "canary"},
        {"client_kwargs": {"aws_secret_access_key": "canary"}},
        {"client_kwargs": {"aws_access_key_id": "canary"}},
        {"client_kwargs": {"headers": {"Authorization": "canary"}}},
        {"config_kwargs": [{"proxies": {"auth": "canary"}}]},
        {"endpoint_url": "https://user:canary@host"},
        {"client_kwargs": {"endpoint_url": "https://canary@host"}},
        {"client_kwargs": {"headers": {"X-Api-Key": "canary"}}},
        {"apikey": "canary"},
        {"AccountKey": "canary"},
        {"SSEKMSKeyId": "canary"},
        {"connection-string": "canary"},
        {"endpoint_url": "https://host/container?sv=1&sig=canary"},
    ],
)
def test_a_secret_is_refused_and_not_repeated(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="settings never hold") as caught:
        JobConfig(inputs=("a",), output="b", model="c", stores={"s3": options})
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="settings never hold"):
        RedecodeConfig(source="a", output="b", stores={"s3": options})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"ftp": {}},
            "stores.ftp is no store that is known, expected one of s3, gs.*nearest valid key is 'http'",
        ),
        ({"s3": "x"}, "stores.s3 is 'x', expected a mapping"),
        ({"s3": {"max_requests": 0}}, "stores.s3.max_requests is 0, expected 1 to 1024"),
        ({"s3": {"max_requests": 1.5}}, "stores.s3.max_requests is 1.5"),
        ({"s3": {"deadline_s": "1"}}, "stores.s3.deadline_s is '1', expected 0.1 to 86400"),
        ({"s3": {"attempts": True}}, "stores.s3.attempts is True"),
        ({"s3": {"session": object()}}, "is a object, expected text"),
    ],
)
def test_what_means_nothing_is_named(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        JobConfig(inputs=("a",), output="b", model="c", stores=options)


def test_limits_and_options_are_told_apart() -> None:
    config = StoreConfig(
        options={"s3": {"profile": "lab", "deadline_s": 9}, "gs": {"token": "anon", "max_requests": 2}}
    )
    assert config.limits("s3") == StoreLimits(deadline_s=9)
    assert config.limits("gs") == StoreLimits(max_requests=2)
    assert config.limits("az") == StoreLimits()
    assert config.file_system_options("s3") == {"profile": "lab"}
    assert config.file_system_options("gs") == {"token": "anon"}


def test_settings_travel_in_the_environment_and_a_job_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert StoreConfig().environment() == {}
    job = StoreConfig(allow_http=True, options={"s3": {"profile": "lab", "deadline_s": 9}})
    assert StoreConfig.from_environment(job.environment()) == job
    monkeypatch.setenv("W2V_RAY_STORES", json.dumps({"s3": {"profile": "other", "attempts": 2}, "hf": {}}))
    monkeypatch.setattr(requests, "_config", None)
    assert stores.in_use().options["s3"] == {"profile": "other", "attempts": 2}
    assert not stores.in_use().allow_http
    in_force = stores.use(job)
    assert in_force == stores.in_use()
    assert in_force.options == {"s3": {"profile": "lab", "deadline_s": 9, "attempts": 2}, "hf": {}}
    assert in_force.allow_http


@pytest.mark.parametrize("text", ["no json", "[1]", '{"s3": {"secret": "canary"}}', '{"allow_http": 1}'])
def test_an_environment_that_means_nothing_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("W2V_RAY_STORES", text)
    monkeypatch.setattr(requests, "_config", None)
    with pytest.raises(ConfigError, match=r"W2V_RAY_STORES|stores\.s3\.secret") as caught:
        stores.in_use()
    assert "canary" not in str(caught.value)


def test_an_s3_client_is_made_with_the_options_and_one_layer_of_retries(
    monkeypatch: pytest.MonkeyPatch, s3_server: None
) -> None:
    monkeypatch.setattr(requests, "_config", None)
    options = {"connect_timeout_s": 3, "config_kwargs": {"s3": {"addressing_style": "path"}}, "anon": True}
    stores.use(StoreConfig(options={"s3": options}))
    store = requests.filesystem("s3")
    assert store.anon
    assert store.retries == 1
    assert store.config_kwargs["connect_timeout"] == 3
    assert store.config_kwargs["s3"] == {"addressing_style": "path"}
    assert store.config_kwargs["retries"] == {"total_max_attempts": 1, "mode": "standard"}
    assert store is requests.filesystem("s3")


def test_the_command_names_the_switch_and_repeats_no_secret(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = [
        "transcribe",
        "http://host/a.wav",
        "--output",
        str(tmp_path / "out"),
        "--model",
        str(tiny_checkpoint),
    ]
    for options, complaint in [
        ([], "read only with --allow-http"),
        (["--allow-http", "--stores", "{http: {attempts: 0}}"], "stores.http.attempts is 0"),
        (["--stores", "{s3: {secret: canary}}"], "stores.s3.secret looks like a secret"),
        (["--stores", "{s3: {endpoint_url: 'http://user:canary@host'}}"], "a URL with a user in it"),
    ]:
        assert main([*job, *options]) == 2
        said = capsys.readouterr().err
        assert complaint in said
        assert "canary" not in said
    with pytest.raises(SystemExit, match="2"):
        main([*job, "--stores", "canary"])
    said = capsys.readouterr().err
    assert "it is no mapping; write '{s3: {endpoint_url: https://HOST}}'" in said
    assert "canary" not in said
