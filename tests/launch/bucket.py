"""A bucket in memory on 127.0.0.1: gcp-storage-emulator, with what TensorStore needs of Google Cloud Storage.

    python -m tests.launch.bucket PORT FAULT

makes gs://bucket for whoever has `environment(PORT)`. While there is a file FAULT, such as one with the
line ``403 POST checkpoints``, requests of that method to addresses with that word are answered with that
status; ``0`` is no answer at all. The emulator knows neither generations nor where a listing is to begin and
end: both are added.
"""

from __future__ import annotations

import socketserver
import sys
import time
from collections.abc import Callable
from http import HTTPStatus, server
from pathlib import Path
from typing import Any


def environment(port: int) -> dict[str, str]:
    """What leads gcsfs, google-cloud-storage and TensorStore to the bucket."""
    address = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "FSSPEC_GCS_TOKEN": "anon",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "GOOGLE_CLOUD_PROJECT": "none", "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }  # fmt: skip


def guarded(handler: Callable[..., None], fault: Path) -> Callable[..., None]:
    """`handler` of the emulator with generations, listings between two names, and faults."""

    def first(request: Any, name: str) -> str | None:
        return request.query.get(name, [None])[0]

    def run(request: Any, response: Any, storage: Any, *rest: Any) -> None:
        asked = fault.read_text().split() if fault.exists() else []
        if asked and request.method == asked[1] and asked[2] in request.full_url:
            if asked[0] == "0":
                time.sleep(3600)
            request.data  # noqa: B018  (read, or the connection breaks)
            response.status = HTTPStatus(int(asked[0]))
            response.json({"error": {"code": int(asked[0]), "message": "as the test wants it"}})
            return
        bucket = (request.params or {}).get("bucket_name")
        name = (request.params or {}).get("object_id") or first(request, "name")

        def generation() -> str | None:
            try:
                return storage.get_file_obj(bucket, name)["generation"]
            except Exception:  # there is none
                return None

        wanted = first(request, "ifGenerationMatch")
        if wanted and name and (generation() or "0") != wanted:
            request.data  # noqa: B018
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        if (known := first(request, "ifGenerationNotMatch")) and (generation() or "0") == known:
            response.status = HTTPStatus.NOT_MODIFIED if known != "0" else HTTPStatus.NOT_FOUND
            return
        plain = response.json

        def between(value: Any) -> None:
            low, high = first(request, "startOffset") or "", first(request, "endOffset")
            if isinstance(value, dict) and value.get("kind") == "storage#objects":
                items = value["items"]
                value["items"] = [o for o in items if low <= o["name"] and (not high or o["name"] < high)]
            plain(value)

        response.json = between
        handler(request, response, storage, *rest)
        session = first(request, "upload_id")
        if session and response.status == HTTPStatus.NOT_FOUND:  # asked twice for what is done already
            bucket, _, name = session.rsplit(":", 3)[0].partition(":")
            if generation():
                response.status = HTTPStatus.OK
                plain(storage.get_file_obj(bucket, name))
        if number := generation():
            response["X-Goog-Generation"] = number

    return run


def main(port: int, fault: Path) -> None:
    from gcp_storage_emulator import server as emulator

    class Threads(socketserver.ThreadingMixIn, server.HTTPServer):
        daemon_threads = True

    emulator.server.HTTPServer = Threads
    for _, handlers in emulator.HANDLERS:
        for method, handler in handlers.items():
            handlers[method] = guarded(handler, fault)
    emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").run()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
