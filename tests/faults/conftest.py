"""A small archive of speech, and what comes of it where nothing happens, to compare disturbed runs with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made_outputs import rows_of, write_speech
from w2v_ray import JobConfig, run

GOOD = [f"good-{index:02}" for index in range(30)]


@pytest.fixture(scope="session")
def clean(ray_session: None, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings ``in``, and with ``out`` of a run over their manifest, in shards of 10 s."""
    folder = tmp_path_factory.mktemp("clean")
    job = JobConfig(
        inputs=(write_speech(folder / "in", GOOD),),
        output=str(folder / "out"),
        model=str(tiny_checkpoint),
        shard_seconds=10.0,
        encoder_threads=1,
    )
    assert run(job).num_shards == 6
    assert [row["recording_id"] for row in rows_of(folder / "out")] == GOOD
    return folder
