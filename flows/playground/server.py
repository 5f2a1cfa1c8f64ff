"""The server: one page on loopback, the processes of its models, and their end."""

import asyncio
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from nicegui import ui
from starlette.responses import PlainTextResponse, Response

from flows.playground.guard import Guard
from flows.playground.limits import Limits
from flows.playground.model_process import ModelProcess
from flows.playground.page import Page
from flows.playground.panel import Served
from flows.playground.turns import Turns
from flows.services.ports import HOST
from pipeline.errors import IgptError

_TITLE = "Image GPT playground"
_STYLE = Path(__file__).with_name("style.css")
_PICTURES = "/pictures"
_MESSAGE_BYTES = 1024 * 1024  # of what a page sends to its server, other than pictures
_END_SECONDS = 3
_AWAY_SECONDS = 60  # that a phone may look at something else, or a machine be too busy, without losing its page
_ACCENT = "#3949ab"
_FAVICON = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><path fill="{_ACCENT}" d="M0 0h4v2H0z"/>'
    '<path fill="#9fa8da" d="M0 2h2v1H0z"/></svg>'
)


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Change nothing."""
        yield


def serve_until_ended(references: Sequence[str], port: int, limits: Limits, say: Callable[[str], None]) -> None:
    """Open the models, and serve the page until SIGTERM or Ctrl-C. Raises IgptError for a model or port it cannot use.

    `port` 0: any free one. `say` is told the address.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise IgptError(f"port {port} of {HOST}: {error.strerror}; give another one with --port") from None
        processes = [ModelProcess(reference) for reference in references]
        try:
            asyncio.run(_serve(processes, listener, limits, say))
        finally:
            for process in processes:
                process.end()


async def _serve(
    processes: Sequence[ModelProcess], listener: socket.socket, limits: Limits, say: Callable[[str], None]
) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        await _serve_until(ended, processes, listener, limits, say)
    finally:  # before the loop waits for the threads that wait for them
        for process in processes:
            await asyncio.to_thread(process.end)


async def _serve_until(
    ended: asyncio.Event,
    processes: Sequence[ModelProcess],
    listener: socket.socket,
    limits: Limits,
    say: Callable[[str], None],
) -> None:
    opening = asyncio.ensure_future(_open(processes))
    ending = asyncio.ensure_future(ended.wait())
    await asyncio.wait({opening, ending}, return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        for process in processes:
            process.end()
        await asyncio.wait({opening})
        opening.exception()
        return
    server = _Server(
        uvicorn.Config(
            Guard(application(await opening, limits), limits.file_bytes),
            log_level="critical",
            http="httptools",  # which takes no body longer than its Content-Length
            ws_max_size=_MESSAGE_BYTES,
            timeout_graceful_shutdown=_END_SECONDS,
            server_header=False,
        )
    )
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    say(f"playground at http://{HOST}:{listener.getsockname()[1]}; Ctrl-C ends it")
    await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving


async def _open(processes: Sequence[ModelProcess]) -> list[Served]:
    """Open all models at once."""
    facts = await asyncio.gather(*(asyncio.to_thread(process.start) for process in processes))
    return [Served(process=process, facts=told) for process, told in zip(processes, facts, strict=True)]


def application(models: Sequence[Served], limits: Limits) -> FastAPI:
    """The page, and the path to which its pictures are posted."""
    logging.getLogger("nicegui").setLevel(logging.ERROR)  # else a line for every path that is not there
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    turns = Turns(limits)
    pages: dict[str, Page] = {}
    one_at_a_time = asyncio.Semaphore(1)  # a picture may take a gigabyte to decode

    async def take(page: str, request: Request) -> Response:
        """Take the bytes of a picture; the name of its file is never sent."""
        if page not in pages:
            return PlainTextResponse("this page is no longer known to the playground: load it again", 404)
        try:
            data = await request.body()
            async with one_at_a_time:
                await pages[page].take(data)
        except IgptError as error:
            return PlainTextResponse(str(error), 422)
        return Response(status_code=204)

    async def show(request: Request) -> None:
        if len(pages) >= limits.pages:
            ui.label(f"{len(pages)} pages are open: close one, and load this page again.")
            return
        name = secrets.token_urlsafe(16)
        client = ui.context.client
        ui.add_css(_STYLE)
        ui.colors(primary=_ACCENT)
        pages[name] = Page(models, turns, limits, user=request.state.user, path=f"{_PICTURES}/{name}")

        def close() -> None:
            if name in pages:
                pages.pop(name).close()

        client.on_delete(close)

    app.post(f"{_PICTURES}/{{page}}")(take)
    ui.page("/")(show)
    ui.run_with(
        app,
        title=_TITLE,
        favicon=_FAVICON,
        dark=None,
        show_welcome_message=False,
        language="en-US",
        reconnect_timeout=_AWAY_SECONDS,
    )
    return app
