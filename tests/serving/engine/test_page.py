"""The page for serving engineers, from the scrub to the check of the server, as it stands, with a small model."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import served

PAGE = served.HERE.parents[2] / "docs" / "serving-vllm.md"


def test_the_page_runs_as_it_stands(folder: Path, tmp_path: Path) -> None:
    script = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    assert "serve-check" in script and "EleutherAI/pythia-70m" in script
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    model = folder / "model"
    script = script.replace("EleutherAI/pythia-70m", str(model)).replace("8000", port)
    # the small model, in few bytes
    script = script.replace(
        "--port", "--enforce-eager --dtype float32 --max-model-len 400 --kv-cache-memory-bytes 67108864 --port"
    )
    lines = [{"text": f"{who} went {where}", "label": who} for who in ("he", "she") for where in map(str, range(100))]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **served.ONE_CORE, "PATH": path}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-e", "-c", script], stdout=subprocess.PIPE, stderr=log, text=True, cwd=tmp_path, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            said = []
            assert process.stdout is not None
            for line in process.stdout:  # the server keeps the pipe open: read until what the last command says
                said.append(line)
                if re.match(r"(erased|un-erased|neither): ", line):
                    break
            assert said and said[-1].startswith("erased: "), (
                "".join(said[-50:]) + (tmp_path / "log").read_text()[-9000:]
            )
            assert process.wait(60) == 0
        finally:
            os.killpg(process.pid, signal.SIGTERM)
