"""A stand-in for the Hub on 127.0.0.1, as far as pushing and loading models and datasets needs it.

Serves the real `huggingface_hub` client: repositories (private ones too), commits, LFS uploads, downloads. Clients read
`HF_ENDPOINT` when they are imported, so they run in their own process, with [`HubServer.environment`].
"""

import asyncio
import base64
import fnmatch
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field

import yaml
from aiohttp import web

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.parquet")
NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Repo:
    """A repository: its files by commit, oldest commit first."""

    is_private: bool
    commits: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, tree: dict[str, bytes], message: str) -> str:
        text = json.dumps([self.commits, message, {path: blob_id(data) for path, data in sorted(tree.items())}])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits.append(oid)
        self.messages.append(message)
        self.trees[oid] = tree
        return oid

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.trees[self.commits[-1]]


def blob_id(data: bytes) -> str:
    """Git's id of a file, by which the client sees that it has not changed."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS)


def card_data(content: str) -> dict:
    """The metadata of a README.md.

    Raises:
        ValueError: it has none, or they are no YAML.
    """
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        raise ValueError("no metadata")
    try:
        return yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {error}") from error


def card_faults(content: str) -> list[str]:
    """What the Hub refuses in the metadata of a README.md, the rules that matter for the cards of models and data sets."""
    try:
        data = card_data(content)
    except ValueError as error:
        return [str(error)]
    faults = []
    for size in data.get("size_categories", []):
        if size not in ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "n>1M"):
            faults.append(f"size_categories: {size!r} is none")
    for config in data.get("configs", []):
        if not config.get("config_name") or not all({"split", "path"} <= set(part) for part in config["data_files"]):
            faults.append("configs: needs config_name, and split and path of all data_files")
    for key in ("base_model", "datasets", "source_datasets"):
        values = data.get(key, [])
        values = [values] if isinstance(values, str) else values
        faults += [f"{key}: {value!r} is no id" for value in values if not NAME.fullmatch(str(value))]
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        faults.append("tags must be texts")
    if not isinstance(data.get("license", "mit"), str):
        faults.append("license must be a text")
    for model in data.get("model-index", []):
        for result in model.get("results") or [{}]:
            if not (model.get("name") and result.get("task", {}).get("type") and result.get("metrics")):
                faults.append("model-index: needs name, results, task.type and metrics")
            elif not {"type", "name"} <= set(result.get("dataset", {})):
                faults.append("model-index: dataset needs type and name")
            elif not all({"type", "value"} <= set(metric) for metric in result["metrics"]):
                faults.append("model-index: a metric needs type and value")
    return faults


class HubServer:
    """The stand-in, serving as long as the `with` block lasts.

    Args:
        tokens (`dict[str, str]`): user by token. Only they may write, and read their private repositories.

    Attributes:
        endpoint (`str`): what `HF_ENDPOINT` is set to.
        repos (`dict[str, Repo]`): by `"model/user/name"` or `"dataset/user/name"`.
        requests (`list[tuple[str, str]]`): method and path of all that was asked.
    """

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.endpoint = ""
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self._lfs: dict[str, bytes] = {}

    def environment(self, home: os.PathLike | str, token: str | None = None) -> dict[str, str]:
        """The environment of a client whose caches and login are in `home`."""
        left_out = ("HF_", "HUGGING_FACE", "TRANSFORMERS_OFFLINE")
        found = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        found |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return found | ({"HF_TOKEN": token} if token else {})

    def __enter__(self) -> "HubServer":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _start(self):
        app = web.Application(client_max_size=2**30, middlewares=[self._record])
        api = r"/api/{kind:models|datasets}/{id:[^/]+/[^/]+}"
        git = r"/{prefix:(?:datasets/)?}{id:[^/]+/[^/]+}"
        app.add_routes(
            [
                web.get("/api/whoami-v2", self._whoami),
                web.post("/api/repos/create", self._create),
                web.post("/api/validate-yaml", self._validate),
                web.post(api + "/preupload/{revision}", self._preupload),
                web.post(api + "/commit/{revision}", self._commit),
                web.get(api, self._info),
                web.get(api + "/revision/{revision}", self._info),
                web.get(api + "/tree/{revision}", self._tree),
                web.post(git + ".git/info/lfs/objects/batch", self._lfs_batch),
                web.put("/lfs/{oid}", self._lfs_put),
                web.get(git + "/resolve/{revision}/{path:.+}", self._resolve),
            ]
        )
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"http://{host}:{port}"

    @web.middleware
    async def _record(self, request: web.Request, handler) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        return await handler(request)

    def _user(self, request: web.Request, is_needed: bool = True) -> str | None:
        user = self.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if user is None and is_needed:
            raise web.HTTPUnauthorized(text='{"error": "Invalid username or password."}')
        return user

    def _repo(self, request: web.Request, is_written: bool = False) -> Repo:
        kind = request.match_info.get("kind") or request.match_info["prefix"].strip("/") or "models"
        repo_id = request.match_info["id"]
        repo = self.repos.get(f"{kind[:-1]}/{repo_id}")
        is_owner = self._user(request, is_needed=is_written) == repo_id.partition("/")[0]
        # As on the Hub, a repository that one may not see is one that does not exist.
        if repo is None or (repo.is_private and not is_owner):
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"}, text="{}")
        if is_written and not is_owner:
            raise web.HTTPForbidden(text='{"error": "not yours"}')
        return repo

    @staticmethod
    def _revision(request: web.Request, repo: Repo) -> str:
        revision = request.match_info.get("revision", "main")
        oid = repo.commits[-1] if revision == "main" else revision
        if oid not in repo.trees:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"}, text="{}")
        return oid

    async def _whoami(self, request: web.Request) -> web.Response:
        return web.json_response({"type": "user", "name": self._user(request), "orgs": [], "auth": {"type": "token"}})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        user = self._user(request)
        repo_id = f"{asked.get('organization') or user}/{asked['name']}"
        if not repo_id.startswith(f"{user}/"):
            raise web.HTTPForbidden(text='{"error": "You have no right to create a repository there"}')
        kind = asked.get("type") or "model"
        url = f"{self.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if f"{kind}/{repo_id}" in self.repos:
            return web.json_response({"error": "You already created this repo", "url": url}, status=409)
        repo = self.repos[f"{kind}/{repo_id}"] = Repo(is_private=asked.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return web.json_response({"url": url, "name": repo_id, "id": repo_id})

    async def _validate(self, request: web.Request) -> web.Response:
        faults = [{"message": fault} for fault in card_faults((await request.json())["content"])]
        return web.json_response({"errors": faults, "warnings": []}, status=400 if faults else 200)

    async def _preupload(self, request: web.Request) -> web.Response:
        files = self._repo(request, is_written=True).files
        answer = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_lfs(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": self._oid(file["path"], files[file["path"]]) if file["path"] in files else None,
            }
            for file in (await request.json())["files"]
        ]
        return web.json_response({"files": answer})

    async def _commit(self, request: web.Request) -> web.Response:
        repo = self._repo(request, is_written=True)
        tree, message = dict(repo.trees[self._revision(request, repo)]), ""
        for line in (await request.text()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    tree[value["path"]] = self._lfs[value["oid"]]
                case "deletedFile":
                    del tree[value["path"]]
                case key:
                    raise web.HTTPBadRequest(text=json.dumps({"error": f"cannot do {key}"}))
        oid = repo.commit(tree, message)
        kind = request.match_info["kind"]
        url = f"{self.endpoint}/{'' if kind == 'models' else kind + '/'}{request.match_info['id']}/commit/{oid}"
        return web.json_response({"success": True, "commitOid": oid, "commitUrl": url})

    async def _info(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        oid = self._revision(request, repo)
        siblings = [{"rfilename": path} for path in sorted(repo.trees[oid])]
        found = {"id": request.match_info["id"], "sha": oid, "private": repo.is_private, "siblings": siblings}
        if "README.md" in repo.trees[oid]:
            found["cardData"] = card_data(repo.trees[oid]["README.md"].decode())
        return web.json_response(found | {"tags": [], "downloads": 0, "likes": 0})

    async def _tree(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
            | ({"lfs": {"oid": self._oid(path, data), "size": len(data), "pointerSize": 134}} if is_lfs(path) else {})
            for path, data in sorted(repo.trees[self._revision(request, repo)].items())
        ]
        return web.json_response(entries)

    async def _lfs_batch(self, request: web.Request) -> web.Response:
        self._repo(request, is_written=True)
        objects = [
            {"oid": item["oid"], "size": item["size"]}
            | ({} if item["oid"] in self._lfs else {"actions": {"upload": {"href": self._lfs_url(item["oid"])}}})
            for item in (await request.json())["objects"]
        ]
        return web.json_response({"transfer": "basic", "objects": objects})

    def _lfs_url(self, oid: str) -> str:
        return f"{self.endpoint}/lfs/{oid}"

    async def _lfs_put(self, request: web.Request) -> web.Response:
        data = await request.read()
        oid = hashlib.sha256(data).hexdigest()
        if oid != request.match_info["oid"]:
            raise web.HTTPBadRequest(text="the content has another hash")
        self._lfs[oid] = data
        return web.Response()

    async def _resolve(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        oid, path = self._revision(request, repo), request.match_info["path"]
        data = repo.trees[oid].get(path)
        if data is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid}, text="{}")
        return web.Response(body=data, headers={"X-Repo-Commit": oid, "ETag": f'"{self._oid(path, data)}"'})

    @staticmethod
    def _oid(path: str, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest() if is_lfs(path) else blob_id(data)
