"""Addresses of Ray that lead nowhere are refused at once, before anything is planned or asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ports import free_port
from w2v_ray import RedecodeConfig
from w2v_ray.cli import main
from w2v_ray.errors import ConfigError
from w2v_ray.execution import running_ray
from w2v_ray.job import prepare_redecode
from w2v_ray.ray_address import check_ray_address
from w2v_ray.submission import submit


def test_a_job_through_ray_client_is_refused_before_it_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    job = ["transcribe", str(tmp_path), "--output", str(tmp_path / "out"), "--model", str(tmp_path)]
    assert main(job) == 2
    said = capsys.readouterr().err
    assert "RAY_ADDRESS is 'ray://head:10001'" in said
    assert "w2v-ray submit JOB.yaml --address http://HEAD:8265" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="does not run through Ray Client"):
        prepare_redecode(RedecodeConfig(source=str(tmp_path), output=str(tmp_path / "out")))


def test_a_ray_client_that_is_connected_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2v_ray.execution.ray.is_initialized", lambda: True)
    monkeypatch.setattr("w2v_ray.execution.client.is_connected", lambda: True)
    with pytest.raises(ConfigError, match="the address of Ray is 'ray://'"), running_ray():
        raise AssertionError("no job runs here")


@pytest.mark.parametrize("address", ["auto", "head:6379", ""])
def test_other_addresses_are_rays_own_affair(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    check_ray_address()


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "head"])
def test_a_submission_to_no_url_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"address is '{address}', .* try http://head:8265"):
        submit("", name="a", address=address)


@pytest.mark.slow
def test_a_submission_to_nowhere_names_the_variable_that_led_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")  # Ray looks at the other one first
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match="no job server answers at the address of RAY_API_SERVER_ADDRESS"):
        submit("", name="a", address=None)
