"""Saving to the hub: a stand-in for it records the commits that huggingface_hub sends."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from w2v_ray.hub import upload_saved

ROOT = Path(__file__).resolve().parents[1]


class StandInHub:
    """Answers what huggingface_hub asks to make a repository and commit small files to it."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.commits: list[tuple[str, str, dict[str, str]]] = []
        """Path, message, and file name to content."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = hub.answer(self.path, body, self.headers.get("Authorization"))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def answer(self, path: str, body: bytes, authorization: str | None) -> tuple[int, Any]:
        if authorization != "Bearer hf_someone":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.created.append(asked)
            return 200, {"url": f"{self.url}/{asked['organization'] or 'someone'}/{asked['name']}"}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {
                "files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            }
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]).decode()
            for line in lines
            if line["key"] == "file"
        }
        self.commits.append((path, lines[0]["value"]["summary"], files))
        answer = {"commitOid": "a" * 40, "commitUrl": f"{self.url}/someone/x/commit/{'a' * 40}"}
        if "create_pr" in path:
            answer["pullRequestUrl"] = f"{self.url}/someone/x/discussions/1"
        return 200, answer


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    hub = StandInHub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def run(code: str, hub: str, home: Path) -> str:
    """Runs a few lines in a new process that knows the stand-in hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=kept | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_saved_is_uploaded_in_one_commit(hub: StandInHub, tmp_path: Path) -> None:
    (tmp_path / "given.json").write_text(json.dumps({"<pad>": 0, "|": 1, "A": 2, "<unk>": 3}))
    run(
        f"""
from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.processors import Wav2Vec2BertProcessor
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer
folder = {str(tmp_path)!r}
tokenizer = Wav2Vec2CTCTokenizer(folder + "/given.json")
extractor = SeamlessM4TFeatureExtractor()
given = {{"push_to_hub": True, "token": "hf_someone"}}
Wav2Vec2BertProcessor(extractor, tokenizer).save_pretrained(folder + "/speech", **given)
extractor.save_pretrained(
    folder + "/e", repo_id="team/speech", commit_message="New", private=True, revision="next", **given
)
tokenizer.save_pretrained(folder + "/t", repo_id="team/words", create_pr=True, **given)
tokenizer.save_pretrained(folder + "/t", repo_id="team/none", push_to_hub=False)
""",
        hub.url,
        tmp_path / "home",
    )
    assert [(asked["organization"], asked["name"]) for asked in hub.created] == [
        (None, "speech"),
        ("team", "speech"),
        ("team", "words"),
    ]
    assert hub.created[1]["visibility"] == "private"
    (path, message, files), extractor, tokenizer = hub.commits
    assert path == "/api/models/someone/speech/commit/main"
    assert message == "Upload with w2v_ray"
    saved = {file.name: file.read_text() for file in (tmp_path / "speech").iterdir()}
    assert files == saved
    assert {"processor_config.json", "preprocessor_config.json", "vocab.json"} <= files.keys()
    assert extractor[:2] == ("/api/models/team/speech/commit/next", "New")
    assert list(extractor[2]) == ["preprocessor_config.json"]
    assert tokenizer[0] == "/api/models/team/words/commit/main?create_pr=1"


def test_files_of_folders_are_uploaded_to_their_folders(hub: StandInHub, tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    paths = [tmp_path / "a.json", tmp_path / "lm" / "b.txt"]
    for path in paths:
        path.write_text(path.name)
    names = [str(path) for path in paths]
    code = "from w2v_ray.hub import upload_saved\n"
    run(f"{code}upload_saved({names}, True, {{'token': 'hf_someone'}})", hub.url, tmp_path / "home")
    ((_, _, files),) = hub.commits
    assert files == {"a.json": "a.json", "lm/b.txt": "b.txt"}


def test_what_the_hub_does_not_take_is_an_output_error(hub: StandInHub, tmp_path: Path) -> None:
    code = f"""
from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
from w2v_ray.errors import OutputError
for token, repository in ("hf_other", None), ("hf_someone", "a/b/c"):
    try:
        Wav2Vec2FeatureExtractor().save_pretrained(
            {str(tmp_path / "mine")!r}, push_to_hub=True, token=token, repo_id=repository
        )
    except OutputError as error:
        print(error)
"""
    refused, malformed = run(code, hub.url, tmp_path / "home").splitlines()
    assert refused.startswith("the hub repository 'mine' does not take the files (")
    assert "401" in refused
    assert refused.endswith("check its name and the account's token")
    assert malformed.startswith("the hub repository 'a/b/c' does not take the files (")
    assert not hub.commits


def test_unknown_options_are_refused_even_where_nothing_is_uploaded() -> None:
    with pytest.raises(TypeError, match="saving has no option 'repo'; those for the hub are repo_id, commit"):
        upload_saved(["a"], False, {"repo": "x"})
