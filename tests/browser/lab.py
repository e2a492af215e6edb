"""Drive a notebook in a real JupyterLab in headless Chromium, from a test.

    with Lab(["notebooks"]) as lab, Chromium() as chromium:
        with lab.open("notebooks/00_start_here.ipynb", chromium) as nb:
            nb.run_all()                                       # a cell that errs fails with its own error text
            released = nb.slider("Layer").type(5)              # or .press("ArrowRight", 3), .drag(5)
            frame = nb.next_picture(after=released)            # the first picture that differs
            print(frame.t - released, "ms")
            nb.wait_text(".vitviz-status", r"layer 5, .*finished", after=released)
            nb.button("Stop").click()

Every time is in milliseconds of the page's own clock (``performance.now()``): the moment of an input event as the
browser saw it, and the moment at which a widget's DOM changed, both noted inside the page, so that a figure does not
contain the polling of the test. The server and its settings live in a folder of their own: nothing of the user's is
read or written, the notebooks are copies, and whatever the page asks of another host is refused and listed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

try:
    import psutil
except ImportError:  # comes with ipykernel; without it these tests are skipped, see conftest.py
    psutil = None

REPO = Path(__file__).resolve().parents[2]
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

# What a stranger does not need and a test must not wait for: news, update checks, the extension shop, virtual cells.
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/extensionmanager-extension/plugin": {"enabled": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}

# Ends the server (and with it the kernels) when the test process is gone, however it went.
SERVER_CONFIG = """
import os, signal, threading, time
def _watch(parent=os.getppid()):
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=_watch, daemon=True).start()
"""

# Keeps, in the page, a log of pictures, texts and input events with their times.
RECORDER = r"""
(() => {
  if (window.__vv) return;
  const vv = window.__vv = { frames: [], texts: [], input: {}, pending: 0 };
  const hex = buffer => [...new Uint8Array(buffer)].map(b => b.toString(16).padStart(2, '0')).join('');
  const classes = el => [...el.classList];
  const lastText = new WeakMap(), lastSrc = new WeakMap();
  vv.picture = img => {
    const src = img.src;
    if (!src || lastSrc.get(img) === src) return;
    lastSrc.set(img, src);
    const frame = { t: performance.now(), classes: classes(img), sha: null, bytes: null };
    vv.frames.push(frame);
    vv.pending += 1;
    // The widget revokes a blob's address when the next picture comes, but not for a fetch that has begun.
    fetch(src).then(r => r.arrayBuffer()).then(async data => {
      frame.bytes = data.byteLength;
      frame.sha = hex(await crypto.subtle.digest('SHA-256', data));
    }).catch(error => { frame.sha = 'lost: ' + error; }).finally(() => { vv.pending -= 1; });
  };
  vv.text = el => {
    const inner = el.querySelector('.widget-html-content') || el;
    const text = inner.innerText.trim();
    if (lastText.get(el) === text) return;
    lastText.set(el, text);
    vv.texts.push({ t: performance.now(), classes: classes(el), text });
    if (vv.texts.length > 20000) vv.texts.splice(0, 10000);
  };
  const TEXT = '.widget-html, .widget-htmlmath, .widget-label';
  const seen = node => {
    if (node.nodeType !== 1) return;
    if (node.matches('img.widget-image')) vv.picture(node);
    if (node.matches(TEXT)) vv.text(node);
    node.querySelectorAll('img.widget-image').forEach(vv.picture);
    node.querySelectorAll(TEXT).forEach(vv.text);
  };
  new MutationObserver(records => {
    for (const r of records) {
      const el = r.target.nodeType === 1 ? r.target : r.target.parentElement;
      if (!el) continue;
      if (r.type === 'attributes') { if (el.matches('img.widget-image')) vv.picture(el); continue; }
      const holder = el.closest(TEXT);
      if (holder) vv.text(holder);
      r.addedNodes.forEach(seen);
    }
  }).observe(document, { subtree: true, childList: true, characterData: true, attributes: true,
                         attributeFilter: ['src'] });
  for (const type of ['keydown', 'mouseup', 'pointerup', 'click', 'change', 'blur'])
    document.addEventListener(type, e => { if (e.isTrusted) vv.input[type] = e.timeStamp; }, true);
})();
"""

# Shared by the scripts below: the notebook in front, and the widget box whose label reads exactly so.
PANEL = "const panel = window.jupyterapp.shell.currentWidget;"


def complaints(page, within: str | None = None) -> list[str]:
    """What axe-core finds wrong with a page as it is, or with what is ``within`` a CSS selector."""
    import pytest

    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="python -m pip install -e '.[ci]'")
    found = axe.Axe().run(page, within).response
    assert found["passes"], "nothing was checked"
    return [f"{rule['id']}: {rule['help']}: {node['html']}" for rule in found["violations"] for node in rule["nodes"]]


class LabError(AssertionError):
    """What went wrong in the notebook, the page or the server, with what they said."""


@dataclass(frozen=True)
class Frame:
    """A picture widget's content from time ``t`` on: the sha256 and size of its bytes."""

    t: float
    sha: str
    bytes: int


@dataclass(frozen=True)
class Text:
    """An HTML or Label widget's visible text from time ``t`` on."""

    t: float
    text: str


def find_chromium() -> str | None:
    """Chromium or Chrome of this machine: ``$VITVIZ_CHROMIUM``, or the first one on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return os.environ.get("VITVIZ_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Chromium:
    """A headless browser that reaches this machine only. A context manager; ``with`` starts it."""

    ARGS = (
        "--no-sandbox",  # root in a container
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--no-default-browser-check",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-default-apps",
        "--disable-extensions",
        "--disable-domain-reliability",
        "--disable-background-timer-throttling",
        "--disable-renderer-backgrounding",
        "--disable-backgrounding-occluded-windows",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    )

    def __init__(self, path: str | None = None):
        self.path = path or find_chromium()

    def __enter__(self) -> Chromium:
        from playwright.sync_api import sync_playwright

        if not self.path:
            raise LabError("no Chromium found: install Debian's `chromium`, or set VITVIZ_CHROMIUM to a browser")
        self._playwright = sync_playwright().start()
        try:
            self.browser = self._playwright.chromium.launch(
                executable_path=self.path, headless=True, args=list(self.ARGS)
            )
        except BaseException:
            self._playwright.stop()
            raise
        return self

    def __exit__(self, *exc) -> None:
        with contextlib.suppress(Exception):
            self.browser.close()
        self._playwright.stop()


class Lab:
    """A JupyterLab server over copies of ``folders``, with its own settings, cache, port and token.

    ``folders`` are copied by name under the server's root (paths outside the repository too), so a notebook of
    ``notebooks`` opens as ``notebooks/NAME.ipynb`` and neither the checkout nor the user's settings change.
    ``env`` is added to the environment of server and kernels. The kernel is the interpreter that runs the tests.
    """

    def __init__(self, folders=("notebooks",), env=None, start_timeout: float = 60):
        self.folders = [path if path.is_absolute() else REPO / path for path in map(Path, folders)]
        self.extra_env = dict(env or {})
        self.start_timeout = start_timeout
        self.process = None

    def __enter__(self) -> Lab:
        self.home = Path(tempfile.mkdtemp(prefix="vitviz-lab-"))
        try:
            self._prepare()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _prepare(self) -> None:
        self.root = self.home / "root"
        self.root.mkdir()
        for folder in self.folders:
            if not folder.is_dir():
                raise LabError(f"there is no folder {folder}")
            ignore = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
            shutil.copytree(folder, self.root / folder.name, ignore=ignore)
        for name, values in SETTINGS.items():
            path = self.home / "settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        config = self.home / "config"
        config.mkdir()
        (config / "jupyter_server_config.py").write_text(SERVER_CONFIG)
        kernel = self.home / "data" / "kernels" / "python3"
        kernel.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Python 3 (ipykernel)", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec))

    def _environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_", "PYTEST_"))}
        # The kernel starts in another folder: what is on the path here as "." must be so there too.
        paths = [os.path.abspath(p) for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]
        package = importlib.util.find_spec("vitviz_nb")
        if package and package.origin and "site-packages" not in package.origin:
            paths.append(str(Path(package.origin).parents[1]))
        env |= {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "JUPYTER_CONFIG_DIR": str(self.home / "config"),
            "JUPYTER_DATA_DIR": str(self.home / "data"),
            "JUPYTER_PATH": str(self.home / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(self.home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.home / "workspaces"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "IPYTHONDIR": str(self.home / "ipython"),
            "VITVIZ_CACHE": str(self.home / "cache"),
        }
        return env | {k: str(v) for k, v in self.extra_env.items()}

    def _start(self) -> None:
        self.token = secrets.token_hex(16)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self.port,
            "ServerApp.port_retries": 0,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "ServerApp.root_dir": self.root,
            "ServerApp.terminals_enabled": False,
            "IdentityProvider.token": self.token,
            "LabApp.expose_app_in_browser": True,
            "LabApp.extension_manager": "readonly",
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }
        options = [f"--{name}={value}" for name, value in options.items()]
        self.log_path = self.home / "server.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                cwd=self.root,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + self.start_timeout
        while True:
            if self.process.poll() is not None:
                raise LabError(f"the JupyterLab server ended with code {self.process.returncode}:\n{self.log()}")
            with contextlib.suppress(OSError):
                self.api("GET", "/api/status")
                return
            if time.monotonic() > deadline:
                raise LabError(f"the JupyterLab server did not answer in {self.start_timeout:.0f} s:\n{self.log()}")
            time.sleep(0.1)

    def log(self, lines: int = 20) -> str:
        """The last lines that the server and its kernels wrote."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def api(self, method: str, path: str, timeout: float = 10):
        """Call the server's REST interface; the decoded answer."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout) as response:
            body = response.read()
        return json.loads(body) if body else None

    def open(self, path: str, chromium: Chromium, size=(1280, 1000), timeout: float = 90) -> Notebook:
        """Open a notebook by its path under the server's root; ready when its kernel is."""
        if not (self.root / path).is_file():
            there = sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*.ipynb"))
            raise LabError(f"there is no notebook {path}; there are: {', '.join(there) or 'none'}")
        return Notebook(self, path, chromium, size, timeout)

    def close(self) -> None:
        """End the kernels and the server: asked first, then signalled, then killed. Removes the folder."""
        if self.process is not None:
            family = []
            with contextlib.suppress(psutil.Error):
                family = psutil.Process(self.process.pid).children(recursive=True)
            with contextlib.suppress(OSError, urllib.error.URLError):
                self.api("POST", "/api/shutdown", timeout=3)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()
                self.process.wait()
            for child in psutil.wait_procs(family, timeout=3)[1]:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            self.process = None
        shutil.rmtree(self.home, ignore_errors=True)


class Notebook:
    """One notebook open in a page of its own. A context manager; leaving it ends the kernel and closes the page."""

    def __init__(self, lab: Lab, path: str, chromium: Chromium, size, timeout: float):
        self.lab, self.path = lab, path
        self.outside: list[str] = []  # addresses on other hosts that the page asked for, all refused
        self.console: list[str] = []  # warnings and errors of the page's console
        self.page_errors: list[str] = []  # uncaught exceptions of the page
        width, height = size
        self.context = chromium.browser.new_context(viewport={"width": width, "height": height})
        try:
            self.context.add_init_script(RECORDER)
            self.context.route(lambda url: urlsplit(url).netloc != f"127.0.0.1:{lab.port}", self._refuse)
            self.page = self.context.new_page()
            self.page.set_default_timeout(15_000)
            self.page.on("console", self._heard)
            self.page.on("pageerror", lambda error: self.page_errors.append(str(error)))
            name = f"test-{secrets.token_hex(4)}"
            self.page.goto(f"{lab.url}/lab/workspaces/{name}/tree/{quote(path)}?token={lab.token}", timeout=timeout * 1000)
            self._until(
                f"""path => {{ if (!window.jupyterapp) return false; {PANEL}
                    const context = panel && panel.context;
                    if (!context || context.path !== path || !context.isReady) return false;
                    const session = panel.sessionContext;
                    return session.isReady && session.session?.kernel?.status === 'idle'; }}""",
                path,
                timeout,
                f"{path} did not open with an idle kernel",
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Notebook:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _refuse(self, route) -> None:
        if urlsplit(route.request.url).scheme in ("blob", "data"):
            return route.continue_()
        self.outside.append(route.request.url)
        route.abort()

    def _heard(self, message) -> None:
        if message.type in ("error", "warning"):
            self.console.append(f"{message.type}: {message.text}")

    def _until(self, script: str, arg, timeout: float, complaint):
        """Wait in the page until ``script`` gives something true; raise ``complaint`` (text or a function) if not."""
        from playwright.sync_api import Error, TimeoutError

        # A dialog would wait for an answer for ever, and a stranger would meet it too: say what it says.
        watch = f"""arg => {{ const dialog = document.querySelector('.jp-Dialog');
            if (dialog) return {{ dialog: dialog.innerText }};
            const value = ({script})(arg); return value ? {{ value }} : false; }}"""
        try:
            answer = self.page.wait_for_function(watch, arg=arg, timeout=timeout * 1000).json_value()
        except TimeoutError:
            text = complaint() if callable(complaint) else complaint
            raise LabError(f"{text} in {timeout:.0f} s") from None
        except Error as error:
            raise LabError(f"the page failed: {error}\n{self.lab.log()}") from None
        if "dialog" in answer:
            raise LabError(f"JupyterLab asks: {' / '.join(answer['dialog'].split(chr(10)))}")
        return answer["value"]

    # -- cells and kernel

    def run_all(self, timeout: float = 180) -> float:
        """Run every cell as *Run > Run All Cells* does; seconds until all are done and the kernel is idle.

        A cell that errs raises ``LabError`` with its number and the error text, unless its tag ``raises-exception``
        announces it.
        """
        began = time.monotonic()
        self.page.evaluate(
            """() => { window.__vvRun = { done: false };
               window.jupyterapp.commands.execute('notebook:run-all-cells')
                 .catch(error => { window.__vvRun.error = String(error); })
                 .finally(() => { window.__vvRun.done = true; }); }"""
        )
        self._until(
            f"""() => {{ {PANEL}
                const idle = panel.sessionContext.session?.kernel?.status === 'idle';
                return window.__vvRun.done && idle; }}""",
            None,
            timeout,
            lambda: f"{self.path} did not finish; {self._running_cell()}",
        )
        seconds = time.monotonic() - began
        errors, missed = [], []
        for cell in self.cells():
            if cell["error"] and "raises-exception" not in cell["tags"]:
                errors.append(f"cell {cell['index']} failed: {ANSI.sub('', cell['error'])}\n--- cell\n{cell['source']}")
            elif cell["source"].strip() and cell["count"] is None:
                missed.append(str(cell["index"]))
        if errors or missed:
            raise LabError("\n\n".join(errors) or f"cells {', '.join(missed)} did not run")
        return seconds

    def cells(self) -> list[dict]:
        """Every code cell: index, source, tags, execution count, error text (or None), plain text of its outputs."""
        return self.page.evaluate(
            f"""() => {{ {PANEL}
            const out = [];
            panel.content.widgets.forEach((cell, index) => {{
              if (cell.model.type !== 'code') return;
              const outputs = cell.model.outputs.toJSON();
              const failed = outputs.find(o => o.output_type === 'error');
              const join = x => Array.isArray(x) ? x.join('') : (x || '');
              out.push({{ index, source: cell.model.sharedModel.getSource(), count: cell.model.executionCount,
                tags: cell.model.getMetadata('tags') || [],
                error: failed ? (join(failed.traceback?.join('\\n')) || failed.ename + ': ' + failed.evalue) : null,
                text: outputs.map(o => join(o.text) || join(o.data?.['text/plain'])).join('') }});
            }});
            return out; }}"""
        )

    def _running_cell(self) -> str:
        return self.page.evaluate(
            f"""() => {{ {PANEL}
            const prompt = cell => cell.node.querySelector('.jp-InputPrompt')?.innerText;
            const at = panel.content.widgets.findIndex(cell => prompt(cell) === '[*]:');
            return 'kernel ' + panel.sessionContext.session?.kernel?.status + (at < 0 ? '' : ', in cell ' + at); }}"""
        )

    def python(self, code: str, timeout: float = 30) -> str:
        """Run ``code`` in the notebook's kernel, as a further cell would; what it printed."""
        self.page.evaluate(
            f"""code => {{ {PANEL}
            const job = window.__vvJob = {{ done: false, text: '', error: null }};
            const future = panel.sessionContext.session.kernel.requestExecute({{ code, store_history: false }});
            future.onIOPub = m => {{
              if (m.header.msg_type === 'stream') job.text += m.content.text;
              if (m.header.msg_type === 'error') job.error = m.content.traceback.join('\\n');
            }};
            future.done.then(() => {{ job.done = true; }}, e => {{ job.error = String(e); job.done = true; }}); }}""",
            code,
        )
        job = self._until("() => window.__vvJob.done && window.__vvJob", None, timeout, "the kernel did not answer")
        if job["error"]:
            raise LabError(ANSI.sub("", job["error"]))
        return job["text"]

    def _kernel_id(self) -> str | None:
        sessions = self.lab.api("GET", "/api/sessions")
        return next((s["kernel"]["id"] for s in sessions if s["path"] == self.path), None)

    def kernel_process(self) -> psutil.Process:
        """The kernel's process."""
        kernel = self._kernel_id()
        for child in psutil.Process(self.lab.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if kernel and any(kernel in part for part in child.cmdline()):
                    return child
        raise LabError("the kernel's process was not found")

    def kernel_memory(self, peak: bool = False) -> float:
        """The kernel's resident memory in GB: now, or (Linux only, else now) the most it ever was."""
        process = self.kernel_process()
        if peak:
            with contextlib.suppress(OSError, AttributeError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9
        return process.memory_info().rss / 1e9

    # -- widgets

    def _find(self, selector: str, description: str):
        # The notebook in front only, and the label's text exactly: "Layer" is not "Layers".
        text = re.compile(rf"^\s*{re.escape(description)}\s*:?\s*$")
        label = self.page.locator(".widget-label").filter(has_text=text)
        box = self.page.locator(f".jp-NotebookPanel:not(.lm-mod-hidden) {selector}").filter(has=label)
        try:
            box.first.wait_for(state="visible")
        except Exception:
            raise LabError(f"no {selector} described {description!r}; there are: {self.descriptions()}") from None
        return box.first

    def descriptions(self, selector: str = ".jp-Notebook") -> list[str]:
        """The visible descriptions of all controls in a box, buttons included, in order; "" where one has none."""
        return self.page.evaluate(
            """selector => [...document.querySelectorAll(selector + ' .jupyter-widgets')].filter(w => w.offsetParent &&
                 w.matches('.widget-slider, .widget-dropdown, .widget-text, .widget-checkbox, .widget-button, '
                           + '.widget-toggle-button, .widget-toggle-buttons, .widget-radio, .widget-select, .widget-upload'))
               .map(w => (w.matches('button') ? w : w.querySelector('.widget-label') || {}).innerText?.trim() || '')""",
            selector,
        )

    def slider(self, description: str) -> Slider:
        return Slider(self, self._find(".widget-slider", description), description)

    def dropdown(self, description: str) -> Dropdown:
        return Dropdown(self, self._find(".widget-dropdown", description), description)

    def number(self, description: str) -> Number:
        """An IntText, BoundedIntText, FloatText or Text."""
        return Number(self, self._find(".widget-text", description), description)

    def button(self, description: str) -> Button:
        text = re.compile(rf"^\s*{re.escape(description)}\s*$")
        box = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) button.jupyter-button").filter(has_text=text)
        try:
            box.first.wait_for(state="visible")
        except Exception:
            raise LabError(f"no button {description!r}; there are: {self.descriptions()}") from None
        return Button(self, box.first, description)

    def tab_stops(self, selector: str, limit: int = 40) -> list[str]:
        """What the Tab key reaches inside ``selector`` (a box), from its first focusable element on, in order."""
        self.page.evaluate(
            """selector => { const box = document.querySelector(selector);
               [...box.querySelectorAll('[tabindex="0"], input, select, button, [contenteditable=true]')]
                 .find(e => !e.disabled && e.offsetParent).focus(); }""",
            selector,
        )
        stops = []
        for _ in range(limit):
            name = self.page.evaluate(
                """selector => { const e = document.activeElement;
                   if (!e || !e.closest(selector)) return null;
                   if (e.matches('button')) return e.innerText.trim();
                   const w = e.closest('.jupyter-widgets:has(> .widget-label)');
                   return w ? w.querySelector('.widget-label').innerText.trim() : e.tagName; }""",
                selector,
            )
            if name is None:
                break
            stops.append(name)
            self.page.keyboard.press("Tab")
        return stops

    # -- what the page showed, and when

    def now(self) -> float:
        """The page's clock."""
        return self.page.evaluate("performance.now()")

    def _input_time(self, *types: str) -> float:
        return self.page.evaluate("types => Math.max(...types.map(t => window.__vv.input[t] || 0))", list(types))

    def text(self, selector: str) -> str:
        """The visible text of a widget, by CSS class: ``.vitviz-status``."""
        return self._widget(selector).inner_text().strip()

    def _widget(self, selector: str):
        # The panel in front, and what is laid out: JupyterLab keeps hidden stand-ins of some outputs.
        found = self.page.locator(f".jp-NotebookPanel:not(.lm-mod-hidden) {selector}").first
        try:
            found.wait_for(state="attached")
        except Exception:
            raise LabError(f"nothing in the notebook matches {selector}") from None
        return found

    def texts(self, selector: str, after: float = -1) -> list[Text]:
        """All texts that a widget has shown since ``after``, oldest first."""
        name = selector.lstrip(".")
        rows = self.page.evaluate(
            "([name, t]) => window.__vv.texts.filter(x => x.t > t && x.classes.includes(name))", [name, after]
        )
        return [Text(r["t"], r["text"]) for r in rows]

    def wait_text(self, selector: str, pattern: str, after: float = -1, timeout: float = 30) -> Text:
        """The first text since ``after`` in which the regular expression is found. It may have passed already."""
        name = selector.lstrip(".")
        row = self._until(
            """([name, pattern, t]) => { const re = new RegExp(pattern, 's');
               return window.__vv.texts.find(x => x.t > t && x.classes.includes(name) && re.test(x.text)); }""",
            [name, pattern, after],
            timeout,
            lambda: f"{selector} did not show /{pattern}/ but {[t.text for t in self.texts(selector, after)][-12:]}",
        )
        return Text(row["t"], row["text"])

    def pictures(self, selector: str = ".vitviz-picture", after: float = -1) -> list[Frame]:
        """All different pictures that an Image widget has shown since ``after``, oldest first."""
        name = selector.split()[0].lstrip(".")
        rows = self.page.evaluate(
            """async name => { while (window.__vv.pending) await new Promise(done => setTimeout(done, 5));
               return window.__vv.frames.filter(f => f.classes.includes(name)); }""",
            name,
        )
        kept, last = [], None
        for r in rows:
            if r["sha"] != last and r["t"] > after:
                kept.append(Frame(r["t"], r["sha"], r["bytes"]))
            last = r["sha"]
        return kept

    def picture(self, selector: str = ".vitviz-picture") -> Frame:
        """The picture that an Image widget shows now."""
        self._widget(selector)
        frames = self.pictures(selector)
        if not frames:
            raise LabError(f"{selector} has shown no picture yet")
        return frames[-1]

    def next_picture(self, selector: str = ".vitviz-picture", after: float = -1, timeout: float = 30) -> Frame:
        """The first picture since ``after`` that differs from the one before it. It may have passed already."""
        name = selector.split()[0].lstrip(".")
        self._until(
            """([name, t]) => { const all = window.__vv.frames.filter(f => f.classes.includes(name));
               const differs = (f, old) => f.sha && (!old || (old.sha && old.sha !== f.sha));
               return all.some((f, i) => f.t > t && differs(f, all[i - 1])); }""",
            [name, after],
            timeout,
            f"{selector} did not change",
        )
        return self.pictures(selector, after)[0]

    def pixels(self, selector: str = ".vitviz-picture"):
        """The picture that an image shows now, as it is stored: a uint8 array (height, width, 3)."""
        import base64

        import numpy

        image = self._widget(selector)
        data = image.evaluate(
            """async e => { const img = e.matches('img') ? e : e.querySelector('img');
               await img.decode();
               const canvas = document.createElement('canvas');
               canvas.width = img.naturalWidth; canvas.height = img.naturalHeight;
               const pen = canvas.getContext('2d');
               pen.drawImage(img, 0, 0);
               const bytes = pen.getImageData(0, 0, canvas.width, canvas.height).data;
               let text = '';
               for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
               return { w: canvas.width, h: canvas.height, data: btoa(text) }; }"""
        )
        flat = numpy.frombuffer(base64.b64decode(data["data"]), numpy.uint8)
        return flat.reshape(data["h"], data["w"], 4)[..., :3]

    def screenshot(self, path, selector: str | None = None) -> Path:
        """A PNG of one element (a box's class, or ``.jp-OutputArea``), or of the whole window."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        (self._widget(selector) if selector else self.page).screenshot(path=path)
        return path

    def report(self) -> str:
        """What is worth knowing when a test has failed."""
        parts = {
            "status": [f"{t.t:.0f} ms: {t.text}" for t in self.texts(".vitviz-status")[-15:]],
            "page errors": self.page_errors[-10:],
            "console": self.console[-10:],
            "asked of other hosts": self.outside[-10:],
        }
        lines = [f"{name}:\n  " + "\n  ".join(items) for name, items in parts.items() if items]
        return "\n".join([*lines, f"server log:\n{self.lab.log()}"])

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.context.close()
        with contextlib.suppress(Exception):
            kernel = self._kernel_id()
            if kernel:
                self.lab.api("DELETE", f"/api/kernels/{kernel}")


class Control:
    """A widget found by its visible description. Its actions give the time at which the browser saw them."""

    def __init__(self, notebook: Notebook, box, description: str):
        self.nb, self.box, self.description = notebook, box, description


class Slider(Control):
    """An IntSlider or FloatSlider with one handle and a readout."""

    @property
    def handle(self):
        return self.box.locator(".noUi-handle").first

    def _aria(self, name: str) -> float:
        return float(self.handle.get_attribute(f"aria-{name}"))

    @property
    def min(self) -> float:
        return self._aria("valuemin")

    @property
    def max(self) -> float:
        return self._aria("valuemax")

    @property
    def value(self) -> float:
        """What the readout says."""
        return float(self.box.locator(".widget-readout").inner_text().replace(",", ""))

    def type(self, value) -> float:
        """Write ``value`` into the readout and press Enter."""
        readout = self.box.locator(".widget-readout")
        readout.click()
        self.nb.page.keyboard.press("ControlOrMeta+a")
        self.nb.page.keyboard.type(str(value))
        self.nb.page.keyboard.press("Enter")
        return self.nb._input_time("keydown")

    def press(self, key: str = "ArrowRight", times: int = 1, delay: float = 0) -> float:
        """Focus the handle and press a key: ArrowRight, ArrowLeft, PageUp, Home, End ... ``delay`` in ms."""
        self.handle.focus()
        for _ in range(times):
            self.nb.page.keyboard.press(key)
            if delay:
                self.nb.page.wait_for_timeout(delay)
        return self.nb._input_time("keydown")

    def _place(self, value: float) -> tuple[float, float]:
        base = self.box.locator(".noUi-base").first.bounding_box()
        low, high = self.min, self.max
        return base["x"] + base["width"] * (value - low) / ((high - low) or 1), base["y"] + base["height"] / 2

    def _grab(self) -> None:
        self.handle.scroll_into_view_if_needed()
        knob = self.handle.bounding_box()
        self.nb.page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2)
        self.nb.page.mouse.down()

    def drag(self, value: float, steps: int = 8) -> float:
        """Drag the handle to ``value`` with the mouse and let go.

        It lands on the value itself where a pixel is worth no more than one step, else as near as pixels allow:
        read ``.value`` afterwards.
        """
        mouse = self.nb.page.mouse
        low, high = self.min, self.max
        width = self.box.locator(".noUi-base").first.bounding_box()["width"]
        near = (high - low) / width
        self._grab()
        x, y = self._place(value)
        mouse.move(x, y, steps=steps)
        for _ in range(20):
            at = self._aria("valuenow")
            if abs(at - value) <= near / 2 or at == value:
                break
            x += 1 if at < value else -1
            mouse.move(x, y)
        mouse.up()
        if abs(at - value) > max(near, 0):
            raise LabError(f"could not drag {self.description!r} to {value}: it stands at {at}")
        return self.nb._input_time("mouseup", "pointerup")

    def shake(self, values) -> float:
        """Drag and let go again and again, as fast as it goes, near each of ``values``; the last as ``drag`` does."""
        values = list(values)
        mouse = self.nb.page.mouse
        for value in values[:-1]:
            self._grab()
            mouse.move(*self._place(value), steps=2)
            mouse.up()
        return self.drag(values[-1], steps=2)


class Dropdown(Control):
    @property
    def options(self) -> list[str]:
        return [o.strip() for o in self.box.locator("select option").all_inner_texts()]

    @property
    def value(self) -> str:
        return self.box.locator("select").evaluate("e => e.selectedOptions[0]?.innerText.trim()")

    def choose(self, option: str) -> float:
        """Choose by the visible text."""
        if option not in self.options:
            raise LabError(f"{self.description!r} has no option {option!r}; it has {self.options}")
        began = self.nb.now()
        self.box.locator("select").select_option(label=option)
        return began


class Number(Control):
    @property
    def value(self) -> str:
        return self.box.locator("input").input_value()

    def type(self, value) -> float:
        field = self.box.locator("input")
        field.fill(str(value))
        field.press("Enter")
        return self.nb._input_time("keydown")


class Button(Control):
    @property
    def enabled(self) -> bool:
        return self.box.is_enabled()

    def click(self) -> float:
        self.box.click()
        return self.nb._input_time("click")

    def press(self, key: str = "Enter") -> float:
        """Focus it and press a key, as one does without a mouse."""
        self.box.focus()
        self.nb.page.keyboard.press(key)
        return self.nb._input_time("keydown")
