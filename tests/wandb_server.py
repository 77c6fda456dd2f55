"""A W&B server in memory, on loopback: as much of its protocol as the real client needs to track, sync and read runs.

The client speaks GraphQL for a run's head and its files' addresses, a "file stream" of lines for history and summary,
and plain PUT and GET for files. What is not known is answered with empty data and noted in ``unknown``.
"""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import yaml

ROOT = Path(__file__).resolve().parents[1]

KEY = "0" * 40
"""An API key that the client takes for one."""


@dataclass
class Run:
    """What the server knows of one run."""

    name: str
    project: str = ""
    config: str = "{}"
    head: dict = field(default_factory=dict)
    """groupName, jobType, displayName, tags."""
    lines: dict = field(default_factory=dict)
    """Lines of each streamed file by their number."""
    files: dict = field(default_factory=dict)
    """Uploaded files by name, as bytes."""
    exit: int | None = None
    preempting: bool = False
    starts: int = 0
    """Times a client opened it."""

    @property
    def history(self):
        """Rows, in the order of their numbers."""
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self):
        """What was sent last: the client sends its whole summary each time, always as line 0, and so the server's is
        replaced and not merged (wandb's core/internal/filestream, SummaryChunk). wandb sync sends that of one part."""
        lines = self.lines.get("wandb-summary.json", {})
        return json.loads(lines[max(lines)]) if lines else {}

    @property
    def values(self):
        """The configuration without the client's own entries."""
        return {key: entry["value"] for key, entry in json.loads(self.config).items() if not key.startswith("_")}


class Listener(ThreadingHTTPServer):
    """Quiet about clients that are killed, which is what the tests do to them."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Server:
    """Listens on a free port of loopback from its making until ``close``.

    Parameters
    ----------
    delay : float
        Seconds before any answer.
    """

    def __init__(self, delay=0.0):
        self.delay, self.runs, self.sweeps, self.unknown = delay, {}, {}, []
        self.reports, self.views = [], []
        self.to_run = []
        """What an agent is given to run, one by one: (run's name, parameters)."""
        handler = type("BoundHandler", (Handler,), {"server_state": self})
        self.http = Listener(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def environment(url, home):
    """Environment of a client of ``url`` that knows nothing of this user: no key, settings or cache but in ``home``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "SLURM_"))}
    own = {name: str(home / name.lower()) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    return kept | own | {
        "HOME": str(home), "NETRC": str(home / "no-netrc"), "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY,
        "WANDB_ERROR_REPORTING": "false", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip


def python(server_url, home, *argv, **extra):
    """Start this Python on ``argv`` from the project's root, as a user of ``server_url`` and nothing else."""
    env = environment(server_url, home) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, argv)], cwd=ROOT, env=env, text=True, **pipes)


def finish(process):
    """Exit status, output and errors of a process."""
    out, errors = process.communicate(timeout=200)
    return process.returncode, out, errors


class Handler(BaseHTTPRequestHandler):
    """One request; the state is the server's."""

    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *args):
        pass

    def _body(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def _answer(self, content):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        time.sleep(self.server_state.delay)
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
        except OSError:
            pass  # the client did not wait

    def do_GET(self):
        run, name = self._file()
        self._answer(self.server_state.runs[run].files[name] if name else b"{}")

    def do_PUT(self):
        run, name = self._file()
        self.server_state.runs[run].files[name] = self._body()
        self._answer({})

    def _file(self):
        """Run and name of a file's address."""
        match = re.fullmatch(r"/storage/([^/]+)/(.+)", unquote(self.path))
        return match.groups() if match else ("", "")

    def do_POST(self):
        request = json.loads(self._body())
        if self.path.endswith("/file_stream"):
            self._stream(self.server_state.runs[self.path.split("/")[-2]], request)
            return self._answer({"exitcode": None, "limits": {}})
        text, variables = request["query"], request.get("variables") or {}
        operation = request.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", text)[1]
        answer = getattr(self, f"on_{operation}", None)
        if answer is None:
            self.server_state.unknown.append((operation, text, variables))
        self._answer({"data": answer(variables) if answer else {}})

    def _stream(self, run, request):
        for name, part in (request.get("files") or {}).items():
            lines = run.lines.setdefault(name, {})
            lines |= {part["offset"] + number: line for number, line in enumerate(part["content"])}
        run.preempting |= bool(request.get("preempting"))
        if request.get("complete"):
            run.exit = request["exitcode"]

    def _url(self, run, name):
        return f"http://{self.headers['Host']}/storage/{run}/{quote(name)}"

    # what a client asks before it tracks

    def on_Viewer(self, variables):
        none = {"edges": []}
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": none, "apiKeys": none}}

    on_GetDefaultEntity = on_Viewer

    def on_ServerInfo(self, variables):
        local = {"outOfDate": False, "latestVersionString": "1", "versionOnThisInstanceString": "1"}
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": local}}

    def on_ServerFeaturesQuery(self, variables):
        return {"serverInfo": {"features": []}}

    def on_RunResumeStatus(self, variables):
        run = self.server_state.runs.get(variables["name"])
        bucket = run and {
            "id": run.name, "name": run.name, "displayName": run.head.get("displayName"), "tags": [], "notes": "",
            "config": run.config, "wandbConfig": '{"t": 1}', "summaryMetrics": json.dumps(run.summary),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]), "eventsTail": "[]",
            "historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0,
        }  # fmt: skip
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}

    # tracking

    def on_UpsertBucket(self, variables):
        runs, name = self.server_state.runs, variables.get("name") or variables["id"]
        new = name not in runs
        run = runs.setdefault(name, Run(name))
        run.starts += "config" in variables
        run.project = variables.get("project") or run.project
        run.config = variables.get("config") or run.config
        head = {key: variables.get(key) for key in ("groupName", "jobType", "displayName", "tags")}
        run.head |= {key: value for key, value in head.items() if value is not None}
        bucket = {
            "id": name, "name": name, "displayName": run.head.get("displayName"), "description": "",
            "config": run.config, "sweepName": None, "historyLineCount": len(run.history),
            "project": {"id": "p", "name": run.project, "entity": {"id": "e", "name": "me"}},
        }  # fmt: skip
        return {"upsertBucket": {"inserted": new, "bucket": bucket}}

    def on_CreateRunFiles(self, variables):
        run = variables["run"]
        files = [{"name": name, "uploadUrl": self._url(run, name)} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    # reading

    def on_Runs(self, variables):
        own = [run for run in self.server_state.runs.values() if run.project == variables["project"]]
        if not own:
            return {"project": None}
        edges = [
            {"cursor": run.name, "node": {
                "projectId": "1", "id": run.name, "name": run.name, "displayName": run.head.get("displayName"),
                "state": "finished" if run.exit == 0 else "crashed", "group": run.head.get("groupName"),
                "jobType": run.head.get("jobType"), "tags": run.head.get("tags"), "user": {"name": "me"},
                "createdAt": "2030-01-01T00:00:00", "historyLineCount": len(run.history),
            }}
            for run in own
        ]  # fmt: skip
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": {"internalId": "1", "runCount": len(own), "runs": {"edges": edges, "pageInfo": page}}}

    def on_RunFiles(self, variables):
        run, (folder, _, _) = self.server_state.runs[variables["name"]], variables["pattern"].rpartition("%")
        edges = [
            {"cursor": name, "node": {
                "id": name, "name": name, "sizeBytes": str(len(content)), "mimetype": "", "md5": "",
                "updatedAt": "", "url": self._url(run.name, name), "directUrl": self._url(run.name, name),
            }}
            for name, content in run.files.items() if name.startswith(folder)
        ]  # fmt: skip
        page = {"endCursor": None, "hasNextPage": False}
        files = {"fileCount": len(edges), "files": {"edges": edges, "pageInfo": page}}
        return {"project": {"internalId": "1", "run": files}}

    # reports

    def on_GetProjects(self, variables):
        edges = [
            {"cursor": name, "node": {"id": name, "name": name, "entityName": "me", "isBenchmark": False, "user": None,
                                      "createdAt": "2030-01-01T00:00:00"}}
            for name in sorted({run.project for run in self.server_state.runs.values()})
        ]  # fmt: skip
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def on_ProjectInternalId(self, variables):
        return {"project": {"id": "p", "internalId": "1"}}

    def on_upsertView(self, variables):
        self.server_state.reports.append(variables)
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        view = {"id": "VmlldzoxMjM=", "name": variables["name"], "displayName": variables["displayName"]}
        view |= {"description": variables["description"], "project": project, "spec": variables["spec"]}
        return {"upsertView": {"view": view, "inserted": True}}

    def on_UpsertView2(self, variables):
        self.server_state.views.append(variables)
        return {"upsertView": {"view": {"id": "VmlldzoxMjQ=", "name": variables["name"]}, "inserted": True}}

    # sweeps

    def on_UpsertSweep(self, variables):
        name = f"sweep{len(self.server_state.sweeps)}"
        self.server_state.sweeps[name] = yaml.safe_load(variables["config"])
        project = {"id": "p", "name": variables.get("projectName"), "entity": {"id": "e", "name": "me"}}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, variables):
        name = variables["sweep"]
        sweep = {
            "id": name, "name": name, "method": "grid", "state": "RUNNING", "description": "", "runs": {"edges": []},
            "config": yaml.safe_dump(self.server_state.sweeps[name]), "createdAt": "2030-01-01T00:00:00",
        }  # fmt: skip
        return {"project": {"sweep": sweep}}

    def on_CreateAgent(self, variables):
        return {"createAgent": {"agent": {"id": "agent"}}}

    def on_Heartbeat(self, variables):
        commands, todo = [], self.server_state.to_run
        if todo:
            name, values = todo.pop(0)
            args = {key: {"value": value} for key, value in values.items()}
            commands = [{"type": "run", "run_id": name, "program": "launch/train.py", "args": args}]
        elif not any(json.loads(variables["runState"]).values()):
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent", "stopPolling": False}, "commands": json.dumps(commands)}}
