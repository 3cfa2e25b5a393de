"""The pictures of the two dashboards in docs/clusters.md: `make screenshots`.

A small sweep of `tuning/udrl_lunarlander.py` is photographed while it goes on, in Ray's dashboard,
and after its end, in TensorBoard's HParams tab. A Chromium without a window looks at both; it is
told what to do through its DevTools protocol, since Ray's page wants a cookie. Needs Debian's
`chromium-headless-shell` or `chromium`, and takes some minutes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import io
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

REPOSITORY = Path(__file__).parents[1]
SWEEP = REPOSITORY / "tuning" / "udrl_lunarlander.py"
SIZE = (1560, 760)
PATIENCE_S = 600.0
"""Seconds until what a picture is to show must be there."""
STEADY = 5
"""Looks in a row, a second apart, that must find it."""
TOLD = re.compile(r"dashboard: (http://\S+), which asks for a token: (\w+)")
SETTINGS = """--preset none --device cpu --budget.env-steps 20000 --rollouts.environments 8
    --evaluations.every 4000 --evaluations.episodes 5 --evaluations.final-episodes 5"""

COMPARED = """(() => {
    const below = node => [...node.children, ...(node.shadowRoot?.children ?? [])].flatMap(all);
    const all = node => [node, ...below(node)];
    return all(document.body).some(node => /_0000\\d/.test(node.innerText ?? ''));
})()"""
"""JavaScript that says whether the HParams tab shows trials."""


def sweep(folder: Path) -> None:
    """Six trials, two at a time."""
    from ray import cloudpickle

    from bigdm_ray.training.config import configure

    specification = importlib.util.spec_from_file_location("tuning_udrl_lunarlander", SWEEP)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    base = configure("udrl", "lunarlander", SETTINGS.split())
    module.sweep(base, folder, samples=6, rungs=(8_000, 16_000), verbose=0, dashboard=True)


class Page:
    """A page of a Chromium that has no window."""

    def __init__(self, connection: Any) -> None:
        self._connection, self._numbers = connection, itertools.count(1)

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a command of the DevTools protocol answers."""
        number = next(self._numbers)
        await self._connection.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = await self._connection.receive_json()
            if answer.get("id") == number:
                return dict(answer["result"])

    async def photograph(self, url: str, ready: str, height: int, path: Path) -> None:
        """The upper part of the page at `url`, once the JavaScript `ready` is true."""
        await self.ask("Page.navigate", url=url)
        until, since = time.monotonic() + PATIENCE_S, 0
        while since < STEADY:  # so that nothing is still being drawn
            if time.monotonic() > until:
                raise SystemExit(f"{url} does not show what is expected: {ready}")
            await asyncio.sleep(1)
            found = (await self.ask("Runtime.evaluate", expression=ready))["result"].get("value")
            since = since + 1 if found else 0
        clip = {"x": 0, "y": 0, "width": SIZE[0], "height": height, "scale": 1}
        taken = await self.ask("Page.captureScreenshot", clip=clip)
        picture = Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")
        picture.quantize(64).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


@contextlib.contextmanager
def process(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block, with those that it has started."""
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as started:
        try:
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGTERM)


@contextlib.asynccontextmanager
async def browser(folder: Path) -> Any:
    """A Page."""
    import aiohttp

    binary = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
    if binary is None:
        raise SystemExit("a Chromium is missing; apt install chromium-headless-shell")
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-port=0"]
    flags += [f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={folder}"]
    with process(binary, *flags, "about:blank", stderr=subprocess.DEVNULL):
        port = folder / "DevToolsActivePort"
        while not port.is_file():
            await asyncio.sleep(0.1)
        async with aiohttp.ClientSession() as session:
            at = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json/list"
            async with session.get(at) as listed:
                target = (await listed.json())[0]["webSocketDebuggerUrl"]
            async with session.ws_connect(target, max_msg_size=0) as connection:
                yield Page(connection)


async def photograph_ray(page: Page, folder: Path, images: Path) -> None:
    """A sweep as it goes on, into `folder`."""
    from ray._private.authentication.authentication_constants import (
        AUTHENTICATION_TOKEN_COOKIE_NAME as COOKIE,
    )

    command = [sys.executable, "-m", "tests.screenshots", str(folder)]
    with process(*command, stderr=subprocess.PIPE, cwd=REPOSITORY) as running:
        told = next(filter(None, map(TOLD.search, running.stderr)))
        await page.ask("Network.setCookie", name=COOKIE, value=told[2], url=told[1])
        alive = "/ImplicitFunc[^]*ALIVE[^]*ImplicitFunc[^]*ALIVE/.test(document.body.innerText)"
        await page.photograph(f"{told[1]}/#/actors", alive, 520, images / "dashboard_actors.png")
        for line in running.stderr:  # until its end
            sys.stderr.write(line)
        if running.wait():
            raise SystemExit("the sweep has failed")


async def photograph_tensorboard(page: Page, folder: Path, images: Path) -> None:
    """A sweep that has ended, from `folder`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    board = [sys.executable, "-m", "tensorboard.main", "--port", str(port), "--host", "127.0.0.1"]
    with process(*board, "--logdir", str(folder / "trials"), stderr=subprocess.DEVNULL):
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            await asyncio.sleep(0.2)
        url = f"http://127.0.0.1:{port}/#hparams"
        await page.photograph(url, COMPARED, 420, images / "tensorboard_hparams.png")


async def photograph_both(folder: Path, images: Path) -> None:
    """Both pictures, with what is temporary in `folder`."""
    async with browser(folder / "chromium") as page:
        await photograph_ray(page, folder / "sweep", images)
        await photograph_tensorboard(page, folder / "sweep", images)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sweep(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            asyncio.run(photograph_both(Path(temporary), REPOSITORY / "docs" / "images"))
