"""As much of a W&B server as the real client needs for a run, kept in memory, with the faults that real ones have.

What the client sends is kept by run: history lines by their offset, summary, config, exit code, alerts, artifacts and
uploaded files. An operation that is not known here is answered with an error and named in `unknown`.
"""

import base64
import gzip
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

ENTITY = "somebody"


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


class Run:
    """What the server has of one run."""

    def __init__(self, name, project):
        self.name, self.project = name, project
        self.id = base64.b64encode(f"Run:v1:{name}:{project}:{ENTITY}".encode()).decode()
        self.display_name, self.group, self.tags, self.notes = name, None, [], None
        self.config, self.summary, self.exit_code, self.exit_codes = {}, {}, None, []
        self.history, self.events, self.overwritten = {}, {}, []
        self.alerts = []

    def rows(self):
        """The history in order."""
        assert sorted(self.history) == list(range(len(self.history)))
        return [self.history[offset] for offset in sorted(self.history)]

    def values(self):
        """The config as the user gave it."""
        return {name: item["value"] for name, item in self.config.items() if name != "_wandb"}

    def take_lines(self, name, offset, lines):
        rows = [json.loads(line) for line in lines]
        if name == "wandb-summary.json":
            self.summary = rows[-1]
        elif name == "wandb-events.jsonl":
            self.events.update(enumerate(rows, offset))
        elif name == "wandb-history.jsonl":
            for place, row in enumerate(rows, offset):
                if self.history.get(place, row) != row:
                    self.overwritten.append((place, self.history[place], row))
                self.history[place] = row


class FakeWandb:
    """FakeWandb() with `runs` by id, `faults` to come, `received` bodies and a `gate` that can be shut to hang."""

    def __init__(self):
        self.runs, self.artifacts, self.files = {}, {}, {}
        self.unknown, self.received, self.operations = [], [], []
        self.faults, self.gate, self.lock = Counter(), threading.Event(), threading.RLock()
        self.gate.set()
        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        self._server.fake = self
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self):
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def takes(self, fault):
        """Whether this request is one that has the fault."""
        with self.lock:
            self.faults[fault] -= 1
            return self.faults[fault] >= 0

    def only_run(self):
        (run,) = self.runs.values()
        return run

    def answer(self, operation, variables):
        """The data that a GraphQL operation asks for."""
        known = getattr(self, f"op_{operation}", None)
        if known is None:
            self.unknown.append(operation)
            raise LookupError(f"this server does not know {operation}")
        return known(variables)

    def run_of(self, variables):
        return self.runs[variables.get("run") or variables.get("runName") or variables["name"]]

    def op_Viewer(self, variables):
        user = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": f"{ENTITY}@example.org", "flags": "{}"}
        return {"viewer": {**user, "teams": {"edges": []}}}

    def op_OrganizationCoreWeaveOrganizationID(self, variables):
        return {"entity": {"organization": None}}

    def op_ServerFeaturesQuery(self, variables):
        return {"serverInfo": {"features": []}}

    def op_RunResumeStatus(self, variables):
        run = self.runs.get(variables["name"])
        model = {"id": "P", "name": variables["project"], "entity": {"id": "E", "name": ENTITY}, "bucket": None}
        if run is not None:
            internal = run.config.get("_wandb", {}).get("value", {})
            model["bucket"] = {
                "id": run.id,
                "name": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.display_name,
                "logLineCount": 0,
                "historyLineCount": len(run.history),
                "eventsLineCount": len(run.events),
                "historyTail": json.dumps([json.dumps(row) for row in run.rows()[-1:]]),
                "eventsTail": json.dumps([json.dumps(row) for row in list(run.events.values())[-1:]]),
                "config": json.dumps(run.config),
                "tags": run.tags,
                "notes": run.notes,
                "wandbConfig": json.dumps({"t": internal["t"]} if "t" in internal else {}),
            }
        return {"model": model}

    def op_UpsertBucket(self, variables):
        if self.takes("denied"):
            raise PermissionError("permission denied")
        inserted = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], Run(variables["name"], variables["project"]))
        for key, name in {
            "displayName": "display_name",
            "groupName": "group",
            "tags": "tags",
            "notes": "notes",
        }.items():
            if variables.get(key):
                setattr(run, name, variables[key])
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        bucket = {
            "id": run.id,
            "name": run.name,
            "displayName": run.display_name,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {"id": "P", "name": run.project, "entity": {"id": "E", "name": ENTITY}},
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def op_RunStoppedStatus(self, variables):
        return {"project": {"run": {"stopped": False}}}

    def op_CreateRunFiles(self, variables):
        run = self.run_of(variables)
        files = [{"name": name, "uploadUrl": self.place(run.name, name)} for name in variables["files"]]
        return {"createRunFiles": {"runID": run.id, "uploadHeaders": [], "files": files}}

    def op_NotifyScriptableRunAlert(self, variables):
        self.run_of(variables).alerts.append({key: variables[key] for key in ("title", "text", "severity")})
        return {"notifyScriptableRunAlert": {"success": True}}

    def op_FetchArtifactDigestAlgorithm(self, variables):
        return {"project": None}

    def op_ArtifactType(self, variables):
        return {"project": None}

    def op_CreateArtifact(self, variables):
        given = variables["input"]
        id = base64.b64encode(f"Artifact:{len(self.artifacts)}".encode()).decode()
        self.artifacts[id] = {"name": given["artifactCollectionName"], "type": given["artifactTypeName"], "state": None}
        artifact = {"id": id, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def op_CreateArtifactManifest(self, variables):
        id, name = variables["artifactID"], variables["name"]
        file = {"id": "F", "uploadUrl": self.place(id, name), "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest of {id}", "file": file}}}

    def op_CreateArtifactFiles(self, variables):
        specs = variables["input"]["artifactFiles"]
        edges = [{"node": self.artifact_file(spec["artifactID"], spec["name"])} for spec in specs]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def artifact_file(self, id, name):
        url = self.place(id, name)
        no_parts = {"uploadHeaders": [], "uploadMultipartUrls": None}
        return {"storagePath": name, "uploadUrl": url, "artifact": {"id": id}, **no_parts}

    def op_CommitArtifact(self, variables):
        id = variables["artifactID"]
        self.artifacts[id]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": id, "digest": "0"}}}

    def place(self, owner, name):
        """Where a file is to be put."""
        return f"{self.url}/storage/{quote(owner, safe='')}/{quote(name)}"

    def take_stream(self, name, body):
        """A request of the file stream: lines of files, and at the end the exit code."""
        run = self.runs[name]
        for file, part in (body.get("files") or {}).items():
            run.take_lines(file, part["offset"], part["content"])
        run.exit_code = body.get("exitcode")
        if body.get("complete"):
            run.exit_codes.append(run.exit_code)


class Handler(BaseHTTPRequestHandler):
    """One request; `server.fake` is whose."""

    def log_message(self, *words):
        pass

    def do_GET(self):
        self.tell(404, {"error": "nothing is read from here"})

    def do_PUT(self):
        self.do_POST()

    def do_POST(self):
        fake = self.server.fake
        data = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers["Content-Encoding"] == "gzip":
            data = gzip.decompress(data)
        with fake.lock:
            fake.received.append((self.path, data))
        if not fake.gate.is_set():
            fake.gate.wait()
        elif fake.takes("broken"):
            self.tell(500, {"error": "a defect"})
        elif fake.takes("unauthorised"):
            self.tell(401, {"errors": [{"message": "user is not logged in"}]})
        elif self.path == "/graphql":
            self.graphql(fake, json.loads(data))
        elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            with fake.lock:
                fake.take_stream(stream[1], json.loads(data))
            self.tell(200, {})
        elif stored := re.fullmatch(r"/storage/([^/]+)/(.+)", self.path):
            fake.files[unquote(stored[1]), unquote(stored[2])] = data
            self.tell(200, {})
        elif self.path.startswith("/sdk/otel/v1/"):
            self.tell(200, {})
        else:
            fake.unknown.append(self.path)
            self.tell(404, {"error": "nothing is here"})

    def graphql(self, fake, body):
        operation = body.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)|$", body["query"])[1]
        try:
            with fake.lock:
                fake.operations.append(operation)
                answer = fake.answer(operation, body.get("variables") or {})
            self.tell(200, {"data": answer})
        except PermissionError as error:
            self.tell(200, {"data": None, "errors": [{"message": str(error), "extensions": {"code": "PERMISSION"}}]})
        except LookupError as error:
            self.tell(200, {"data": None, "errors": [{"message": f"{type(error).__name__}: {error}"}]})

    def tell(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
