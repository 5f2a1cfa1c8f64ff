"""A server that speaks as much of S3 as listing and reading take, and takes any key."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from pipeline.store import s3_reads

_DATE = "Thu, 26 Nov 2026 00:00:00 GMT"


@contextmanager
def bucket(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the bucket `bucket` with some keys; clients in this process use it within the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            url = urlsplit(self.path)
            name, _, key = unquote(url.path).removeprefix("/").partition("/")
            if not key and name == "bucket":
                self._send(200, _listing(contents, parse_qs(url.query, keep_blank_values=True)), with_body)
            elif key not in contents:
                self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", with_body)
            else:
                data, status = contents[key], 200
                if wanted := self.headers.get("Range"):
                    first, last = wanted.removeprefix("bytes=").split("-")
                    data, status = data[int(first) : int(last) + 1], 206
                self._send(status, data, with_body, etag=hashlib.md5(contents[key]).hexdigest())

        def _send(self, status: int, data: bytes, with_body: bool, etag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Last-Modified", _DATE)
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()
            if with_body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    clients = (s3_reads._client, s3_reads._boto_client)
    try:
        for client in clients:
            client.cache_clear()
        monkeypatch.setattr(s3_reads, "_endpoint", lambda _: (f"http://127.0.0.1:{server.server_port}", "us-east-1"))
        yield
    finally:
        for client in clients:
            client.cache_clear()
        server.shutdown()
        server.server_close()


def _listing(contents: dict[str, bytes], query: dict[str, list[str]]) -> bytes:
    def of(name: str) -> str:
        return query.get(name, [""])[0]

    encoded = of("encoding-type") == "url"

    def text(key: str) -> str:
        return quote(key) if encoded else "".join(f"&#{ord(it)};" if it in '<>&"' or it < " " else it for it in key)

    after = unquote(of("continuation-token")) or of("start-after")
    keys = [key for key in sorted(contents, key=str.encode) if key.startswith(of("prefix")) and key > after]
    page = keys[: min(int(of("max-keys") or 1000), 7)]
    entries = "".join(
        f"<Contents><Key>{text(key)}</Key><Size>{len(contents[key])}</Size>"
        f"<ETag>&quot;{hashlib.md5(contents[key]).hexdigest()}&quot;</ETag>"
        "<LastModified>2026-11-26T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
        for key in page
    )
    more = len(page) < len(keys)
    token = f"<NextContinuationToken>{quote(page[-1])}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bucket</Name><Prefix>{text(of('prefix'))}</Prefix>"
        f"{'<EncodingType>url</EncodingType>' if encoded else ''}"
        f"<MaxKeys>1000</MaxKeys><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        f"{token}{entries}</ListBucketResult>"
    ).encode()
