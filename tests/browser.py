"Headless Chromium over the DevTools pipe (no port, no driver): enough to measure a page and to take its picture."
import base64, json, os, shutil, subprocess, sys, tempfile
from pathlib import Path

FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
         "--disable-sync --disable-extensions --hide-scrollbars --remote-debugging-pipe").split()

def find():
    "Path of a Chromium or Chrome, or None."
    return next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if p), None)

class Browser:
    "One page; `get` opens a file at a size and colour scheme, `js` evaluates, `shot` writes a PNG, `requests` lists what was asked for."
    def __init__(self, path=None):
        self.profile, self.n, self.buf, self.requests, self.messages = tempfile.mkdtemp(prefix="chromium-"), 0, b"", [], []
        r_in, self.w = os.pipe()
        self.r, w_out = os.pipe()
        command = [path or find(), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        # DevTools reads from descriptor 3 and writes to 4; a small process moves ours there and becomes the browser
        shim = "import fcntl, os, sys; a, b = (fcntl.fcntl(int(x), fcntl.F_DUPFD, 10) for x in sys.argv[1:3]); os.dup2(a, 3); os.dup2(b, 4); os.execvp(sys.argv[3], sys.argv[3:])"
        self.p = subprocess.Popen([sys.executable, "-c", shim, str(r_in), str(w_out), *command], pass_fds=(r_in, w_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(r_in); os.close(w_out)
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"): self.call(domain + ".enable")

    def message(self):
        while b"\0" not in self.buf:
            got = os.read(self.r, 1 << 16)
            if not got: raise RuntimeError("the browser closed its pipe")
            self.buf += got
        line, self.buf = self.buf.split(b"\0", 1)
        return json.loads(line)

    def note(self, m):
        if m.get("method") == "Network.requestWillBeSent": self.requests.append(m["params"]["request"]["url"])
        if m.get("method") == "Log.entryAdded": self.messages.append(m["params"]["entry"]["text"])

    def call(self, method, **params):
        self.n += 1
        m = dict(id=self.n, method=method, params=params)
        if getattr(self, "session", None): m["sessionId"] = self.session
        os.write(self.w, json.dumps(m).encode() + b"\0")
        while True:
            a = self.message()
            self.note(a)
            if a.get("id") == self.n:
                if "error" in a: raise RuntimeError(f"{method}: {a['error']}")
                return a["result"]

    def get(self, path, width=1280, height=900, dark=False, media=""):
        self.requests, self.messages = [], []
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", media=media, features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")])
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while True:
            m = self.message()
            self.note(m)
            if m.get("method") == "Page.loadEventFired": return self

    def js(self, code): return self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)["result"].get("value")

    def shot(self, path, full=True):
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = dict(x=0, y=0, width=size["width"], height=min(size["height"], 8000), scale=1)
            data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        else: data = self.call("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def close(self):
        try: self.call("Browser.close")
        except (RuntimeError, OSError): pass
        try: self.p.wait(10)
        except subprocess.TimeoutExpired: self.p.kill(); self.p.wait()
        os.close(self.w); os.close(self.r)
        shutil.rmtree(self.profile, ignore_errors=True)

    def __enter__(self): return self
    def __exit__(self, *_): self.close()
