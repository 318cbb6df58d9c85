"""A stand-in of a Docker engine on a socket, of an API version of one's choice, that keeps to what that version knows.

It has images and containers, builds (each step is a label), runs (what a container prints is told beforehand), and
refuses versions that it does not speak. Unlike an engine it also refuses parameters and fields that its version does
not know: an engine ignores them, and what was asked for silently does not happen. What each version changed is in
Docker's "Engine API version history".
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import io
import json
import re
import socket
import socketserver
import struct
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

Version = tuple[int, int]
CONTAINERD = (1, 52)  # of these stand-ins, those from this version on keep images as containerd does
# What an endpoint takes: the name of a parameter or field, with the version that brought it, or that took it away.
SINCE = {"platform": (1, 41), "CgroupnsMode": (1, 41), "Annotations": (1, 43), "DeviceRequests": (1, 40)}
UNTIL = {"KernelMemory": (1, 41), "MacAddress": (1, 51)}
FROM_THE_SDK = {"trunc_cmd", "only_ids", "since", "before", "force"}  # it always sends these, and they say nothing
QUERY = {
    "containers/create": {"name", "platform"},
    "containers/json": {"all", "limit", "size", "filters"},
    "attach": {"detachKeys", "logs", "stream", "stdin", "stdout", "stderr"},
    "start": {"detachKeys"},
    "wait": {"condition"},
    "archive": {"path"},
    "images/json": {"all", "filters", "digests"},
    "images/prune": {"filters"},
    "images/load": {"quiet"},
    "tag": {"repo", "tag"},
    "build": {
        *("dockerfile", "t", "extrahosts", "remote", "q", "nocache", "cachefrom", "pull", "rm", "forcerm", "memory"),
        *("memswap", "cpushares", "cpusetcpus", "buildargs", "shmsize", "squash", "labels", "networkmode", "platform"),
        *("target", "outputs"),
    },
    "DELETE containers": {"v", "force", "link"},
    "DELETE images": {"force", "noprune"},
}
CONFIG = {
    *("Hostname", "Domainname", "User", "AttachStdin", "AttachStdout", "AttachStderr", "ExposedPorts", "Tty", "Shell"),
    *("OpenStdin", "StdinOnce", "Env", "Cmd", "Healthcheck", "Image", "Volumes", "WorkingDir", "Entrypoint", "OnBuild"),
    *("NetworkDisabled", "MacAddress", "Labels", "StopSignal", "StopTimeout", "HostConfig", "NetworkingConfig"),
}
HOST_CONFIG = {
    *("Binds", "CapAdd", "CapDrop", "CgroupnsMode", "DeviceRequests", "Devices", "GroupAdd", "KernelMemory", "Tmpfs"),
    *("LogConfig", "Memory", "MemorySwap", "Mounts", "NetworkMode", "PidsLimit", "ReadonlyRootfs", "Runtime"),
    *("SecurityOpt", "UsernsMode", "Annotations", "ShmSize"),
}
MOUNT = {"Type", "Source", "Target", "ReadOnly"}


class Output(NamedTuple):
    """What a container of the stand-in does: chunks of its output, its exit code, and whether memory ran out."""

    chunks: tuple[bytes, ...] = (b"done\n",)
    code: int = 0
    out_of_memory: bool = False


class EngineServer:
    """`requests`: a line for each, such as POST containers/create. `refused`: why, for those that were."""

    def __init__(self, path: Path, newest: Version, oldest: Version) -> None:
        self.address, self.newest, self.oldest = f"unix://{path}", newest, oldest
        self.output = Output()
        self.files: dict[str, bytes] = {}  # of every image
        self.build_error = ""
        self.info: dict[str, Any] = {}
        self.images: dict[str, dict[str, Any]] = {}
        self.containers: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.versions: set[str] = set()
        self.refused: list[str] = []

    @property
    def is_containerd(self) -> bool:
        return self.newest >= CONTAINERD

    def add_image(self, labels: dict[str, str], layers: list[str], *names: str) -> str:
        """The id of a new image; `names`: its tags and digests."""
        config = json.dumps([labels, layers, len(self.images)])
        return self.keep_image(hashlib.sha256(config.encode()).hexdigest(), labels, layers, *names)

    def keep_image(self, sha256: str, labels: dict[str, str], layers: list[str], *names: str) -> str:
        if self.is_containerd:  # an id is that of the manifest, not that of the configuration
            sha256 = hashlib.sha256(f"manifest of {sha256}".encode()).hexdigest()
        number = f"sha256:{sha256}"
        self.images[number] = {"labels": labels, "layers": layers, "names": [*names], "created": len(self.images)}
        return number

    def find_image(self, name: str) -> str:
        return next((number for number, image in self.images.items() if name in (number, *image["names"])), "")

    def inspected(self, number: str) -> dict[str, Any]:
        image = self.images[number]
        config = {"Cmd": ["sh"], "Env": ["PATH=/bin"], **({"Labels": image["labels"]} if image["labels"] else {})}
        common = {
            "Id": number, "RepoTags": [name for name in image["names"] if "@" not in name], "Architecture": "amd64",
            "RepoDigests": [name for name in image["names"] if "@" in name], "Os": "linux", "Size": 7, "Config": config,
            "RootFS": {"Type": "layers", "Layers": image["layers"]}, "Metadata": {},
        }  # fmt: skip
        if self.newest < (1, 44):
            common.update(Container="", ContainerConfig={}, VirtualSize=7, Parent="", Comment="")
            common["RepoTags"] = common["RepoTags"] or ["<none>:<none>"]
        return common

    def listed(self, labels: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "Id": number, "Created": image["created"], "Labels": image["labels"] or None,
                "RepoTags": self.inspected(number)["RepoTags"],
            }
            for number, image in self.images.items() if _has(image["labels"], labels)
        ]  # fmt: skip


def _has(labels: dict[str, str], wanted: list[str]) -> bool:
    """Whether labels fit a filter, of entries NAME and NAME=VALUE."""
    return {*labels, *(f"{name}={value}" for name, value in labels.items())}.issuperset(wanted)


class _Refused(Exception):
    """An answer with an error's status and message."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: EngineServer
    query: dict[str, str]

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_DELETE = do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' output."""

    def address_string(self) -> str:
        return "a socket"

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        try:
            self._route(urllib.parse.unquote(url.path).lstrip("/"))
        except _Refused as error:
            status, message = error.args
            if status == 400:
                self.engine.refused.append(f"{self.command} {self.path}: {message}")
            self._json({"message": message}, status)

    def _route(self, path: str) -> None:
        engine = self.engine
        match = re.fullmatch(r"v([0-9]+)\.([0-9]+)/(.*)", path)
        if match:
            version = (int(match[1]), int(match[2]))
            if version > engine.newest:
                raise _Refused(400, f"client version {match[1]}.{match[2]} is too new")
            if version < engine.oldest:
                raise _Refused(400, f"client version {match[1]}.{match[2]} is too old")
            engine.versions.add(f"{match[1]}.{match[2]}")
            path = match[3]
        engine.requests.append(f"{self.command} {path}")
        routes: dict[str, Callable[..., None]] = {
            "GET _ping": lambda: self._send(b"OK", "text/plain"), "GET version": self._version, "GET info": self._info,
            "GET images/json": self._list_images, "GET images/(.+)/json": self._inspect_image,
            "GET images/(.+)/get": self._save, "POST images/load": self._load, "POST images/prune": self._prune,
            "POST images/(.+)/tag": self._tag, "DELETE images/(.+)": self._remove_image, "POST build": self._build,
            "POST containers/create": self._create, "GET containers/json": self._list_containers,
            "GET containers/(.+)/json": self._inspect, "POST containers/(.+)/attach": self._attach,
            "POST containers/(.+)/start": self._start, "POST containers/(.+)/wait": self._wait,
            "GET containers/(.+)/archive": self._archive, "DELETE containers/(.+)": self._remove,
        }  # fmt: skip
        for pattern, handle in routes.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                self._check(pattern)
                return handle(*found.groups())
        raise _Refused(404, "page not found")

    def _check(self, pattern: str) -> None:
        method, _, name = pattern.partition(" ")
        key = name.replace("/(.+)", "") if method == "DELETE" else name.rpartition("(.+)/")[2]
        keys = [f"{method} {key}", key]
        known: set[str] = next((QUERY[key] for key in keys if key in QUERY), set())
        self._know("parameter", set(self.query) - FROM_THE_SDK, known)

    def _know(self, what: str, names: set[str], known: set[str]) -> None:
        newest = self.engine.newest
        for name in sorted(names):
            if name == "platform" and "build" in self.path:  # of builds it is older than of containers
                continue
            if name not in known or not SINCE.get(name, newest) <= newest <= UNTIL.get(name, newest):
                raise _Refused(400, f"{what} {name} is not known in API {newest}")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, content: bytes, kind: str = "application/json", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(b"" if status == 204 else json.dumps(content).encode(), status=status)

    def _stream(self, messages: list[dict[str, Any]]) -> None:
        """Messages of a long action; their errors in the form of the version."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the client heard of an error, and has gone
            self._send_chunks(messages)

    def _send_chunks(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            if "error" in message:
                detail = {"errorDetail": {"message": message["error"]}}
                message = detail if self.engine.newest >= (1, 48) else {**message, **detail}
            chunk = json.dumps(message).encode() + b"\r\n"
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _version(self) -> None:
        newest, oldest = ("{}.{}".format(*version) for version in (self.engine.newest, self.engine.oldest))
        self._json({"Version": "stand-in", "ApiVersion": newest, "MinAPIVersion": oldest})

    def _info(self) -> None:
        self._json({"Name": socket.gethostname(), "SecurityOptions": ["name=seccomp"], **self.engine.info})

    def _list_images(self) -> None:
        self._json(self.engine.listed(json.loads(self.query.get("filters", "{}")).get("label", [])))

    def _image(self, name: str) -> str:
        if number := self.engine.find_image(name):
            return number
        raise _Refused(404, f"No such image: {name}")

    def _inspect_image(self, name: str) -> None:
        self._json(self.engine.inspected(self._image(name)))

    def _tag(self, name: str) -> None:
        number = self._image(name)
        tag = f"{self.query['repo']}:{self.query['tag']}"
        for image in self.engine.images.values():
            image["names"] = [other for other in image["names"] if other != tag]
        self.engine.images[number]["names"].append(tag)
        self._json({}, 201)

    def _remove_image(self, name: str) -> None:
        del self.engine.images[self._image(name)]
        self._json([{"Deleted": name}])

    def _prune(self) -> None:
        self._json({"ImagesDeleted": None, "SpaceReclaimed": 0})

    def _build(self) -> None:
        with tarfile.open(fileobj=io.BytesIO(self._body())) as archive:
            dockerfile = archive.extractfile("Dockerfile").read().decode()  # type: ignore[union-attr]
        labels, arguments = json.loads(self.query["labels"]), json.loads(self.query["buildargs"])
        labels.update(re.findall('^LABEL ([^= ]+)="([^"]*)"$', dockerfile, re.MULTILINE))
        base = self.engine.images[self._image(arguments["BASE"])]
        steps = [{"stream": f"Step 1/2 : FROM {arguments['BASE']}\n"}, {"stream": "Step 2/2 : RUN x\n"}]
        if self.engine.build_error:
            failed = {"error": "The command '/bin/sh -c x' returned a non-zero code: 7"}
            return self._stream([*steps, {"stream": f"{self.engine.build_error}\n"}, failed])
        number = self.engine.add_image(labels, [*base["layers"], f"sha256:{'b' * 64}"])
        self._stream([*steps, {"aux": {"ID": number}}, {"stream": f"Successfully built {number[7:19]}\n"}])

    def _save(self, name: str) -> None:
        """In the layout of the version; a layer's bytes are its digest."""
        image = self.engine.images[self._image(name)]
        layers = [f"blobs/sha256/{layer[7:]}" for layer in image["layers"]]
        members = {layer: layer.encode() for layer in layers}
        members["blobs/sha256/config"] = json.dumps({"config": {"Labels": image["labels"]}}).encode()
        members["index.json"] = b"{}"
        manifest = [{"Config": "blobs/sha256/config", "RepoTags": None, "Layers": layers}]
        members["manifest.json"] = json.dumps(manifest).encode()
        self._send(_tar(members), "application/x-tar")

    def _load(self) -> None:
        with tarfile.open(fileobj=io.BytesIO(self._body())) as archive:
            members = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
        [entry] = json.loads(members["manifest.json"])
        content = members[entry["Config"]]
        if self.engine.is_containerd and not set(entry["Layers"]) <= set(members):
            return self._stream([{"error": f"layer {entry['Layers'][0]} not found"}])
        config = json.loads(content)
        sha256, layers = hashlib.sha256(content).hexdigest(), config["rootfs"]["diff_ids"]
        number = self.engine.keep_image(sha256, config["config"]["Labels"], layers)
        self._stream([{"stream": f"Loaded image ID: {number}\n"}])

    def _create(self) -> None:
        body = json.loads(self._body())
        host = body.get("HostConfig") or {}
        self._know("field", {name for name, value in body.items() if value is not None}, CONFIG)
        self._know("field of HostConfig", {name for name, value in host.items() if value is not None}, HOST_CONFIG)
        for mount in host.get("Mounts") or ():
            self._know("field of a mount", set(mount), MOUNT)
        number = f"{len(self.engine.requests):064x}"
        own = {"name": self.query.get("name", "unnamed"), "image": self._image(body["Image"])}
        self.engine.containers[number] = {**body, **own}
        self._json({"Id": number, "Warnings": []}, 201)

    def _container(self, name: str) -> dict[str, Any]:
        if name in self.engine.containers:
            return self.engine.containers[name]
        raise _Refused(404, f"No such container: {name}")

    def _described(self, number: str) -> dict[str, Any]:
        body = self._container(number)
        state = {"Status": body.get("status", "created"), "OOMKilled": body.get("oom", False)}
        config = {"Labels": body.get("Labels") or {}, "Tty": False, "Image": body["Image"]}
        return {"Id": number, "Name": f"/{body['name']}", "Image": body["image"], "State": state, "Config": config}

    def _inspect(self, number: str) -> None:
        self._json(self._described(number))

    def _list_containers(self) -> None:
        wanted = json.loads(self.query.get("filters", "{}")).get("label", [])
        labels = {number: body.get("Labels") or {} for number, body in self.engine.containers.items()}
        self._json([{"Id": number} for number, own in labels.items() if _has(own, wanted)])

    def _attach(self, number: str) -> None:
        """The connection is the container's output from here on; it ends with the container."""
        self._body()
        body = self._container(number)
        body["started"] = threading.Event()
        self.send_response_only(101, "UPGRADED")
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "tcp")
        self.end_headers()
        self.wfile.flush()
        body["started"].wait(30)
        for index, chunk in enumerate(self.engine.output.chunks):
            self.wfile.write(struct.pack(">BxxxL", 1 + index % 2, len(chunk)) + chunk)
        self.close_connection = True

    def _start(self, number: str) -> None:
        self._body()
        body, output = self._container(number), self.engine.output
        body.update(status="exited", oom=output.out_of_memory)
        body["started"].set()
        self._json(None, 204)

    def _wait(self, number: str) -> None:
        self._body()
        self._container(number)
        self._json({"Error": None, "StatusCode": self.engine.output.code})

    def _archive(self, number: str) -> None:
        self._container(number)
        path = self.query["path"]
        if path not in self.engine.files:
            raise _Refused(404, f"Could not find the file {path} in container {number}")
        stat = base64.b64encode(json.dumps({"name": path, "size": 1, "mode": 420}).encode()).decode()
        content = _tar({path.rpartition("/")[2]: self.engine.files[path]})
        self._send(content, "application/x-tar", X_Docker_Container_Path_Stat=stat)

    def _remove(self, number: str) -> None:
        self._container(number)
        del self.engine.containers[number]
        self._json(None, 204)


def _tar(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return target.getvalue()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def serving(path: Path, newest: Version, oldest: Version) -> Iterator[EngineServer]:
    """An engine at a socket that speaks the versions from `oldest` to `newest`."""
    engine = EngineServer(path, newest, oldest)
    handler = type("Handler", (_Handler,), {"engine": engine})
    with _Server(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield engine
        finally:
            server.shutdown()
            thread.join()


class NoReaper:
    """In the place of the process that waits for our end."""

    def __init__(self, session: str) -> None:
        self.told: list[str] = []

    def end(self) -> None:
        self.told.append("end")

    def leave(self) -> None:
        self.told.append("leave")
