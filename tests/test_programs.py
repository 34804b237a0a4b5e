"Model-written programs: hostile ones get nowhere under every isolation that is here, nothing stays behind, and recorded outputs are reproduced."
import os, platform, re, signal, socket, subprocess, sys, tempfile, threading, time
from pathlib import Path
import psutil
import pytest
from mathrepro.config import UserError
from mathrepro.isolation import probe
from mathrepro.programs import close_pool, run_program, run_programs
from mathrepro.rights import BACKENDS

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="programs need Linux")
pytestmark = linux

# What every hostile program may use. `got` is called with something that it should not have got; a refusal is raised, so that the result says why.
PRELUDE = """
import ctypes, os
L = ctypes.CDLL(None, use_errno=True)
def got(what="yes"): print("BROKEN", str(what)[:200], flush=True)
def call(name, *args):
    ctypes.set_errno(0)
    r = getattr(L, name)(*args) if isinstance(name, str) else L.syscall(ctypes.c_long(name), *args)
    if r < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r
"""

FILES = {
    "read a file": "got(open(CANARY).read())",
    "read a file by way of ..": "got(open('/usr/lib/../..' + CANARY).read())",
    "read a file with ctypes": "fd = call('open', CANARY.encode(), 0); b = ctypes.create_string_buffer(99); call('read', fd, b, 99); got(b.value)",
    "read through a folder's descriptor": "fd = os.open('/', os.O_PATH | os.O_DIRECTORY); got(os.read(os.open(CANARY[1:], os.O_RDONLY, dir_fd=fd), 99))",
    "make a symlink into a readable folder": "import math, json; p = os.path.dirname(json.__file__) + '/x'; os.symlink(CANARY, p); got(open(p).read())",
    "follow a symlink that is already there": "got(open(LINK).read())",
    "list a folder": "got(os.listdir(FOLDER))",
    "read the password file": "got(open('/etc/passwd').read())",
    "read this project": "got(open(PROJECT).read())",
    "list the home folder": "found = [e.name for e in os.scandir(HOME) if not e.is_dir()]\nif found: got(found)\nraise OSError('at most the way to the interpreter is there')",
    "read the kernel's log device": "got(open('/dev/kmsg').read(1))",
    "write a new file": "open(FOLDER + '/new', 'w').write('x'); got()",
    "write a file in /tmp": "open('/tmp/mathrepro-hostile', 'w').write('x'); got()",
    "write among the packages": "import json; open(os.path.dirname(json.__file__) + '/hostile.py', 'w').write('x'); got()",
    "append to a file": "open(CANARY, 'a').write('x'); got()",
    "make a nameless file": "got(os.open(FOLDER, os.O_TMPFILE | os.O_RDWR))",
    "truncate a file": "call('truncate', CANARY.encode(), 0); got()",
    "remove a file": "os.unlink(CANARY); got()",
    "rename a file": "os.rename(CANARY, FOLDER + '/other'); got()",
    "link a file": "os.link(CANARY, FOLDER + '/other'); got()",
    "change a file's mode": "os.chmod(CANARY, 0o777); got()",
    "make a folder": "os.mkdir(FOLDER + '/d'); got()",
    "make a fifo": "os.mkfifo(FOLDER + '/f'); got()",
    "change the root folder": "os.chroot(FOLDER); got()",
    "mount": "call('mount', b'none', FOLDER.encode(), b'tmpfs', 0, None); got()",
    "open by handle": "call('name_to_handle_at', -100, CANARY.encode(), ctypes.create_string_buffer(128), ctypes.byref(ctypes.c_int()), 0); got()",
    "a file in memory": "got(os.memfd_create('x'))",
    "a database": "import sqlite3; sqlite3.connect(FOLDER + '/d.sqlite').execute('create table t(x)'); got()",
}

PROC = {
    "the parent's environment": "got(open(f'/proc/{os.getppid()}/environ').read())",
    "the caller's environment": "got(open(f'/proc/{BOSS}/environ').read())",
    "its own environment file": "got(open('/proc/self/environ').read())",
    "the parent's memory": "got(open(f'/proc/{os.getppid()}/mem', 'rb').read(1))",
    "the caller's memory": "got(open(f'/proc/{BOSS}/mem', 'rb').read(1))",
    "its own memory file": "got(open('/proc/self/mem', 'r+b'))",
    "the parent's descriptors": "got(os.listdir(f'/proc/{os.getppid()}/fd'))",
    "the caller's root": "got(open(f'/proc/{BOSS}/root' + CANARY).read())",
    "its memory map": "got(open('/proc/self/maps').read())",
    "the environment": "found = [v for v in os.environ.values() if TOKEN in v] + [k for k in os.environ if k in ('PATH', 'USER', 'LOGNAME', 'MATHREPRO_DATA')]\nif found: got(found)\nraise KeyError('nothing there')",
    "the environment, by ctypes": "L.getenv.restype = ctypes.c_char_p\nv = L.getenv(b'MATHREPRO_HOSTILE')\nif v: got(v)\nraise KeyError('nothing there')",
    "sysctl": "open('/proc/sys/kernel/hostname', 'w').write('x'); got()",
}

SOCKETS = {
    "TCP": "import socket; socket.create_connection(('127.0.0.1', PORT), 1); got()",
    "TCP over IPv6": "import socket; got(socket.socket(socket.AF_INET6))",
    "listen": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); got()",
    "UDP": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)); got()",
    "a Unix socket by path": "import socket; socket.socket(socket.AF_UNIX).connect(UNIX); got()",
    "an abstract Unix socket": "import socket; socket.socket(socket.AF_UNIX).connect(ABSTRACT); got()",
    "netlink": "import socket; got(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))",
    "raw packets": "import socket; got(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))",
    "a pair of sockets": "import socket; got(socket.socketpair())",
    "every family": "for f in range(50):\n for t in (1, 2, 3, 5):\n  if L.socket(f, t, 0) >= 0: got(f)\nraise OSError(ctypes.get_errno(), 'every family refused')",
    "a name server": "import socket; got(socket.getaddrinfo('example.org', 80))",
    "fetch a page": "import urllib.request; got(urllib.request.urlopen(f'http://127.0.0.1:{PORT}', timeout=1))",
    "io_uring": "call(425, 4, ctypes.create_string_buffer(256)); got()",
}

PROCESSES = {
    "fork": "p = os.fork()\nif p == 0: os._exit(0)\ngot(p)",
    "fork by number": "call(57 if os.uname().machine == 'x86_64' else 220, 17, 0, 0, 0, 0)\ngot()",
    "clone3": "call(435, ctypes.create_string_buffer(88), 88); got()",
    "a fork bomb": "while True: os.fork(); got()",
    "a patient fork bomb": "import errno\nfor i in range(100000):\n    if L.fork() >= 0: got(); break\nraise OSError(ctypes.get_errno(), 'a hundred thousand forks refused')",
    "a daemon": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: pass\n    os._exit(0)\ngot()",
    "zombies": "for i in range(50):\n    if os.fork() == 0: os._exit(0)\ngot()",
    "a new session": "os.setsid(); got()",
    "leave the process group": "os.setpgid(0, os.getppid()); got()",
    "subprocess": "import subprocess; got(subprocess.run(['/bin/echo', 'x'], capture_output=True))",
    "a shell": "if os.system('echo BROKEN') == 0: got()\nraise OSError('the shell did not start')",
    "posix_spawn": "got(os.posix_spawn('/bin/echo', ['echo', 'BROKEN'], {}))",
    "run another file": "os.execv('/bin/echo', ['echo', 'BROKEN'])",
    "multiprocessing": "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start(); got()",
    "a thousand threads": "import threading, time\nfor i in range(1000): threading.Thread(target=time.sleep, args=(9,)).start()\ngot()",
}

SIGNALS = {
    "kill the parent": "os.kill(os.getppid(), 9); got()",
    "kill the caller": "os.kill(BOSS, 15); got()",
    "kill everybody": "call('kill', -1, 0); got()",
    "kill the group": "os.killpg(0, 0); got()",
    "a thread's signal": "call(234 if os.uname().machine == 'x86_64' else 131, os.getppid(), os.getppid(), 0); got()",
    "a signal by descriptor": "import signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0); got()",
    "a signal by fcntl": "import fcntl; fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid()); fcntl.fcntl(1, 10, 9); got()",
    "outlive the parent": "call('prctl', 1, 0, 0, 0, 0); got()",
    "trace the parent": "call('ptrace', 16, os.getppid(), 0, 0); got()",
    "be traced": "call('ptrace', 0, 0, 0, 0); got()",
    "read the parent's memory": "call(310 if os.uname().machine == 'x86_64' else 270, os.getppid(), ctypes.create_string_buffer(16), 1, ctypes.create_string_buffer(16), 1, 0); got()",
    "take the parent's descriptor": "call(438, 3, 0, 0); got()",
    "raise the limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); got()",
    "raise the parent's limits": "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0)); got()",
    "be nicer than others": "os.setpriority(0, 0, -20); got()",
    "real-time scheduling": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); got()",
    "become somebody else": "os.setuid(12345); got()",
    "a namespace of its own": "call('unshare', 0x10000000); got()",
    "join a namespace": "call('setns', 0, 0); got()",
    "load a kernel program": "call(321 if os.uname().machine == 'x86_64' else 280, 0, ctypes.create_string_buffer(128), 128); got()",
    "performance counters": "call(298 if os.uname().machine == 'x86_64' else 241, ctypes.create_string_buffer(128), 0, -1, -1, 0); got()",
    "handle page faults": "call(323 if os.uname().machine == 'x86_64' else 282, 1); got()",
    "the kernel's keys": "call(250 if os.uname().machine == 'x86_64' else 219, 0, -3, 0); got()",
    "drop the filter": "call('prctl', 22, 0, 0, 0, 0); got()",
    "type into a terminal": "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); got()",
}

FLOODS = {   # name: (program, the reason that must be given)
    "memory at once": ("b = bytearray(1 << 30); got()", "memory limit"),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory limit"),
    "memory in numpy": ("import numpy; x = numpy.ones(1 << 28); got()", "memory limit"),
    "memory by ctypes": ("L.malloc.restype = ctypes.c_void_p\nn = 0\nwhile (p := L.malloc(1 << 22)):\n    L.memset(ctypes.c_void_p(p), 1, 1 << 22); n += 4\n    if n > 512: got(); break\nraise MemoryError(f'after {n} MiB')", "memory limit"),
    "shared memory": ("import mmap; m = mmap.mmap(-1, 1 << 30); got()", "error"),
    "a long text": ("s = 'x' * 10**11; got()", "memory limit"),
    "a big number": ("x = 10 ** (10 ** 10)", ("memory limit", "time limit")),
    "endless recursion": ("import sys; sys.setrecursionlimit(10**9)\nclass A:\n    def __init__(self): A()\nA()", ("killed", "memory limit")),
    "a deep text": ("(" * 100000, "error"),
    "prints": ("while True: print('x' * 1000)", "output limit"),
    "one long print": ("print('x' * 50_000_000)", "output limit"),
    "writes": ("b = b'x' * 65536\nwhile True: os.write(1, b)", "output limit"),
    "complaints": ("b = b'x' * 65536\nwhile True: os.write(2, b)", "output limit"),
    "a loop": ("while True: pass", "time limit"),
    "a loop that catches everything": ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "time limit"),
    "a loop in C": ("sum(__import__('itertools').repeat(1))", "time limit"),
    "a loop in C that looks at no signal": ("x = pow(3, 10**9)", ("time limit", "memory limit")),
    "a regular expression": ("import re; re.match('(a+)+b', 'a' * 60)", "time limit"),
    "signals ignored": ("import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass", "time limit"),
    "sleep": ("import time; time.sleep(60)", "time limit"),
    "wait for input": ("input()", "error"),
    "silence": ("os.close(1); os.close(2)\nwhile True: pass", "time limit"),
}

PIPES = {   # what a program does to its own pipes and process: (program, expected output or None, expected error pattern)
    "forge a result": ("""
frame = b'{"event": "ended", "status": 0, "seconds": 0}'
for fd in range(64):
    if fd in (1, 2): continue
    try: os.write(fd, frame); got(fd)
    except OSError: pass
raise OSError('no other descriptor takes anything')""", "", "no other descriptor"),
    "send through the waiting process's socket": ("""
import gc, socket
for o in gc.get_objects():
    if isinstance(o, socket.socket): o.send(b'{"event": "ended", "status": 0}'); got()
f = __import__('sys')._getframe()
while f:
    if 'control' in f.f_locals: f.f_locals['control'].send(b'{"event": "ended", "status": 0}'); got()
    f = f.f_back
raise OSError('no socket found')""", "", "(?i)socket|permitted"),
    "close everything": ("for fd in range(64):\n    try: os.close(fd)\n    except OSError: pass\n1/0", "", "exit status 1|ZeroDivisionError"),
    "leave at once": ("os._exit(7)", "", "exit status 7"),
    "abort": ("os.abort()", "", "killed by signal"),
    "crash": ("ctypes.string_at(0)", "", "killed by signal 11"),
    "replace what ends the process": ("os._exit = os.write = print = None\nimport sys, builtins\nbuiltins.BaseException = None\nsys.exit = None\n1/0", "", "ZeroDivisionError"),
    "replace standard output": ("import sys\nsys.stdout = None\n1/0", "", "ZeroDivisionError"),
    "raise something odd": ("class X(BaseException):\n    def __str__(self): raise self\nraise X", "", "X"),
    "half a letter": ("os.write(1, b'\\xff\\xfe'); 1/0", "\ufffd\ufffd", "ZeroDivisionError"),
}

@pytest.fixture(scope="module")
def world():
    "The targets: a secret file, sockets that listen, this process."
    os.environ["MATHREPRO_HOSTILE"] = token = "token-of-the-caller"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as abstract:
        canary, link, name = Path(folder) / "canary", Path(folder) / "link", f"\0mathrepro-{os.getpid()}"
        canary.write_text("secret")
        link.symlink_to(canary)
        unix.bind(f"{folder}/unix"), abstract.bind(name), unix.listen(), abstract.listen()
        names = dict(CANARY=str(canary), LINK=str(link), FOLDER=folder, PROJECT=str(Path(__file__).resolve()), HOME=str(Path.home()), BOSS=os.getpid(), PORT=tcp.getsockname()[1], UNIX=f"{folder}/unix", ABSTRACT=name, TOKEN=token)
        yield PRELUDE + "".join(f"{k} = {v!r}\n" for k, v in names.items())
        assert canary.read_text() == "secret" and sorted(os.listdir(folder)) == ["canary", "link", "unix"]
        assert os.environ.pop("MATHREPRO_HOSTILE") == token
        for s in (tcp, unix, abstract):
            s.setblocking(False)
            with pytest.raises(BlockingIOError): s.accept()
    close_pool()

@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    p = probe(request.param)
    if not p.ok: pytest.skip(f"{request.param}: {p.why}")
    return request.param

LIMITS = dict(timeout=1.0, memory_mb=256)

def attack(world, backend, program, **limits):
    "One hostile program and, from the same process, an honest one after it."
    hostile, honest = run_programs([world + program, "print(6 * 7)"], workers=1, backend=backend, **LIMITS | limits)
    assert (honest.output, honest.error) == ("42\n", "") and honest.backend.startswith(backend)
    return hostile

GETS_NOWHERE = FILES | PROC | SOCKETS | PROCESSES | SIGNALS

def test_there_are_many(): assert len(GETS_NOWHERE) == sum(map(len, (FILES, PROC, SOCKETS, PROCESSES, SIGNALS))) >= 80 and len(FLOODS) + len(PIPES) >= 30

@pytest.mark.parametrize("name", GETS_NOWHERE)
def test_a_hostile_program_gets_nowhere(world, backend, name):
    r = attack(world, backend, GETS_NOWHERE[name], timeout=10.0)
    assert "BROKEN" not in r.output and "secret" not in r.output
    assert r.reason in ("error", "memory limit", "killed") and r.error, r

@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_stopped_and_named(world, backend, name):
    program, reason = FLOODS[name]
    r = attack(world, backend, program, timeout=1.0 if "time limit" in reason else 20.0)
    assert r.reason in reason and r.reason and r.error and "BROKEN" not in r.output, r
    assert r.timed_out == (r.reason == "time limit") and len(r.output) <= 65536

@pytest.mark.parametrize("name", PIPES)
def test_a_program_harms_only_its_own_result(world, backend, name):
    program, output, error = PIPES[name]
    r = attack(world, backend, program, timeout=10.0)
    assert r.output == output and re.search(error, r.error), r

@pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls of another convention: x86 only")
@pytest.mark.parametrize("code", ["b8140000 00cd80c3", "b827000040 0f05c3"], ids=["32-bit getpid", "x32 getpid"])
def test_another_calling_convention_is_no_way_round(world, backend, code):
    program = f"import mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('{code}'))\nr = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\nif r > 0: got(r)\nraise OSError(r)"
    r = attack(world, backend, program)
    assert "BROKEN" not in r.output and r.reason in ("killed", "error"), r

def test_a_program_leaves_nothing_for_the_next(world, backend):
    "Neither changed libraries nor traces of its text or output."
    token = "".join(["to", "ken-", "of-", "the-first"])
    poison = f"import sympy, math, builtins, sys, random\nx = '{token}' * 1000\nprint(x)\nmath.pi = 3; sympy.sqrt = None; builtins.len = None; sys.path.clear(); random.seed(5); sympy.Symbol('x', poisoned=True)"
    look = """
import gc, math, sympy, random
parts = ['to', 'ken-', 'of-', 'the-first']
token = ''.join(parts).encode()
pages = {id(o) >> 12 for o in gc.get_objects()} | {id(v) >> 12 for o in gc.get_objects() if type(o) is dict for v in o.values()}
mine = id(token) >> 12
n = sum(token in ctypes.string_at(p << 12, 4096) for p in pages if p != mine)
print(math.pi, sympy.sqrt(4), len([1]), random.random(), n, len(pages) > 100)"""
    alone = attack(world, backend, look, timeout=20.0)
    poisoned, after = run_programs([poison, world + look], workers=1, backend=backend, timeout=20.0, memory_mb=256)
    assert token in poisoned.output and alone.error == after.error == ""
    assert after.output == alone.output and after.output.split()[:3] == [str(3.141592653589793), "2", "1"] and after.output.split()[4:] == ["0", "True"]

def test_programs_are_reproducible(backend):
    "Hash order and random numbers are the same in every process and in every pool."
    text = "import random, numpy\nprint({'a', 'b', 'c', 'd'}, random.random(), numpy.random.rand())"
    first = {r.output for r in run_programs([text] * 6, workers=2, backend=backend)}
    close_pool()
    assert first == {run_program(text, backend=backend).output} and len(first) == 1

def test_the_host_stays_responsive(world, backend):
    "While floods and bombs run, this process neither grows nor stalls, and no process is added."
    me, stop, waits = psutil.Process(), threading.Event(), []
    others = set(me.children(recursive=True))                  # other tests' children
    run_program("1", backend=backend)
    def tick():
        while not stop.is_set():
            t = time.monotonic()
            time.sleep(0.01)
            waits.append(time.monotonic() - t)
    watcher, before, processes = threading.Thread(target=tick), me.memory_info().rss, len(psutil.pids())
    watcher.start()
    try: done = run_programs([world + p for p in [f[0] for f in FLOODS.values()] + [*PROCESSES.values()]], workers=2, backend=backend, **LIMITS)
    finally: stop.set(); watcher.join()
    assert all(r.error for r in done) and not any("BROKEN" in r.output for r in done)
    assert max(waits) < 10.0 and me.memory_info().rss - before < 100 << 20 and len(psutil.pids()) < processes + 50
    assert not [c for c in set(me.children(recursive=True)) - others if c.status() == psutil.STATUS_ZOMBIE]

# -- what was printed before the end ---------------------------------------------------

ENDS = {   # name: (what happens after the print, the reason given)
    "a loop": ("while True: pass", "time limit"),
    "sleep": ("import time; time.sleep(60)", "time limit"),
    "a loop in C": ("pow(3, 10**9)", ("time limit", "memory limit")),
    "leave at once": ("import os; os._exit(0)", "error"),
    "leave at once with a status": ("import os; os._exit(3)", "error"),
    "abort": ("import os; os.abort()", "killed"),
    "crash": ("import ctypes; ctypes.string_at(0)", "killed"),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory limit"),
    "recursion in C": ("import sys; sys.setrecursionlimit(10**9)\nclass A:\n    def __init__(self): A()\nA()", ("killed", "memory limit")),
    "closed output": ("import os; os.close(1)\nwhile True: pass", "time limit"),
    "other output": ("import io, sys; sys.stdout = io.StringIO()\nprint('hidden')\nwhile True: pass", "time limit"),
    "CPU time": ("while True: pass", "cpu limit"),
    "an exception": ("1/0", "error"),
    "nothing": ("", ""),
}

@pytest.mark.parametrize("name", ENDS)
def test_what_was_printed_before_the_end_comes_back(backend, name):
    program, reason = ENDS[name]
    limits = dict(timeout=20.0, cpu_seconds=1) if name == "CPU time" else dict(timeout=1.0 if "time limit" in reason else 20.0)
    r, after = run_programs(["print('first')\nprint('é', end='')\n" + program, "print(2)"], workers=1, backend=backend, memory_mb=256, **limits)
    assert r.output == "first\né" and (r.reason == reason or r.reason and r.reason in reason), r
    assert "leave" not in name or "ended itself" in r.error and f"exit status {'03'['status' in name]}" in r.error
    assert (after.output, after.error) == ("2\n", "")

def test_long_and_odd_output(backend):
    "More than the shared page holds, single writes longer than it, bytes, and what several writers leave: all in order."
    lines = "".join(f"{i} {i * i}\n" for i in range(50_000))
    for program, output in (("for i in range(50_000): print(i, i * i)", lines), ("print('é' * 50_000, end='')", "é" * 50_000), ("print('a'); print('b' * 70_000)\nprint('c')", "a\n" + "b" * 70_000 + "\nc\n"),
                            ("import os, sys\nprint('a', flush=True); os.write(1, b'b'); sys.stdout.buffer.write(bytearray(b'c')); print(sys.stdout.fileno(), file=sys.__stdout__)", "a\nbc1\n")):
        r = run_program(program, backend=backend, max_output=1 << 24, timeout=30.0)
        assert r.output == output and r.error == "", (program, r.error, len(r.output))

# -- nothing stays behind --------------------------------------------------------------

def gone(processes, seconds=10.0):
    "Are they all gone (or dead and waiting to be reaped by init)?"
    def alive(p):
        try: return p.is_running() and p.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess: return False
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(alive, processes)): time.sleep(0.05)
    return not any(map(alive, processes))

CALLER = """
import signal, sys
from mathrepro.programs import run_programs
signal.signal(signal.SIGINT, signal.default_int_handler)    # a job in the background is born deaf to it
run_programs(["1", "2"], workers=2, backend=sys.argv[1])
print("ready", flush=True)
run_programs(["while True: pass"] * 2, workers=2, timeout=60, backend=sys.argv[1]) if sys.argv[2] == "busy" else sys.stdin.read()
"""

@pytest.mark.parametrize("how, doing", [(signal.SIGINT, "busy"), (signal.SIGKILL, "busy"), (signal.SIGTERM, "busy"), (signal.SIGKILL, "idle")], ids=lambda x: getattr(x, "name", x))
def test_a_caller_that_ends_leaves_no_process(backend, how, doing):
    p = subprocess.Popen([sys.executable, "-c", CALLER, backend, doing], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline() == "ready\n", p.stderr.read()
        time.sleep(0.5)
        family = psutil.Process(p.pid).children(recursive=True)
        assert len(family) >= (4 if doing == "busy" else 2)
        p.send_signal(how)
        _, err = p.communicate(timeout=30)
    finally: p.kill()
    assert gone(family)
    if how == signal.SIGINT: assert "KeyboardInterrupt" in err and p.returncode != 0

def test_an_exception_in_the_caller_leaves_no_program(backend):
    def progress(done, total): raise RuntimeError("enough")
    close_pool()
    others = set(psutil.Process().children())                  # other tests' children
    run_programs(["1", "2"], workers=2, backend=backend)
    before = set(psutil.Process().children(recursive=True)) - others
    with pytest.raises(RuntimeError, match="enough"): run_programs(["1", "while True: pass"], workers=2, timeout=60, backend=backend, progress=progress)
    assert gone(before) and not set(psutil.Process().children()) - others
    assert run_program("6 * 7", backend=backend).output == "42\n"

def test_a_lost_process_is_replaced(backend):
    "When the process that forks programs is killed from outside, one result says so and the next program runs."
    def killer():
        time.sleep(0.5)
        for c in set(psutil.Process().children(recursive=True)) - others: c.kill()
    close_pool()
    others = set(psutil.Process().children(recursive=True))    # other tests' children
    run_program("1", backend=backend)
    t = threading.Thread(target=killer)
    t.start()
    lost, after = run_programs(["while True: pass", "print(2)"], workers=1, timeout=30, backend=backend)
    t.join()
    assert lost.reason == "lost" and lost.error and (after.output, after.error) == ("2\n", "")

def test_a_fork_of_the_caller_has_a_pool_of_its_own(backend):
    run_program("1", backend=backend)
    pid = os.fork()
    if pid == 0:
        try: os._exit(0 if run_program("6 * 7", backend=backend).output == "42\n" else 1)
        finally: os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0 and run_program("6 * 7", backend=backend).output == "42\n"

# -- bad input and limits --------------------------------------------------------------

def test_refuses_without_isolation(monkeypatch):
    from mathrepro import isolation
    monkeypatch.setattr(isolation, "BACKENDS", ("none",))                # a back end that lets everything through is found out by the real probe
    with pytest.raises(UserError, match=r"none: did not hold: .*read a file.*remedy: .*unsafe=True"): run_program("print(1)")
    r = run_program("print(1)", unsafe=True)
    assert r.output == "1\n" and r.backend == "none"
    monkeypatch.undo()
    with pytest.raises(UserError, match="unsafe=True"): run_program("print(1)", backend="none")
    with pytest.raises(UserError, match="there are sandlock, bubblewrap"): run_program("print(1)", backend="docker")

POORER = """
import errno, sys
import pyseccomp as sc
rules = sc.SyscallFilter(sc.ALLOW)
for name in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"): rules.add_rule(sc.ERRNO(errno.ENOSYS), name)
if sys.argv[1] == "neither":
    rules.add_rule(sc.ERRNO(errno.EPERM), "unshare")
    for flag in (0x10000000, 0x20000): rules.add_rule(sc.ERRNO(errno.EPERM), "clone", sc.Arg(0, sc.MASKED_EQ, flag, flag))
rules.load()
from mathrepro.config import UserError
from mathrepro.programs import run_program
try: print(run_program("print(6 * 7)"))
except UserError as e: print("refused:", e)
"""

def on_a_poorer_kernel(lacks):
    "A program on this kernel less Landlock, or less Landlock and namespaces."
    return subprocess.run([sys.executable, "-c", POORER, lacks], capture_output=True, text=True, timeout=120).stdout

def test_falls_back_to_bubblewrap_without_landlock():
    if not probe("bubblewrap").ok: pytest.skip(f"bubblewrap: {probe('bubblewrap').why}")
    said = on_a_poorer_kernel("landlock")
    assert "output='42\\n'" in said and "backend='bubblewrap" in said

def test_refuses_without_landlock_and_namespaces():
    said = on_a_poorer_kernel("neither")
    assert said.startswith("refused: nothing here holds model-written programs (sandlock: ") and re.search("bubblewrap: (not installed|bwrap: )", said) and "unsafe=True" in said and said.count("\n") == 1

def test_bad_requests():
    for wrong in (dict(timeout=0), dict(timeout=float("nan")), dict(memory_mb=0), dict(workers=0), dict(max_output=0), dict(truncate=1), dict(cpu_seconds=0)):
        with pytest.raises(UserError, match=next(iter(wrong))): run_programs(["1"], **wrong)
    for name in ("timeout", "memory_mb", "max_output", "workers", "truncate", "cpu_seconds"):
        for value in ("3", True, float("nan"), float("inf"), [1], 10**400) + ((None,) if name in ("timeout", "memory_mb", "max_output") else ()):
            with pytest.raises(UserError, match=f"^{name} is .*number from") as e: run_programs(["1"], **{name: value})
            assert "\n" not in str(e.value)
    for value in (1.5, 2.0):
        with pytest.raises(UserError, match="whole number"): run_programs(["1"], workers=value)
    with pytest.raises(UserError, match="program 1 is NoneType"): run_programs(["1", None])
    for codes in ("ab", b"ab", None, 3):
        with pytest.raises(UserError, match="a list of programs is needed"): run_programs(codes)
    with pytest.raises(UserError, match="program 0 is int"): run_program(3)
    assert run_programs([]) == []

PYTHON2 = ["print 6 * 7", "print 'a', 'b'", "exec 'x = 1'", "try: pass\nexcept ValueError, e: pass", "for i in xrange(3): print(i)", "raw_input()", "{}.iteritems()", "{}.has_key(1)", "x = 0777", "unicode('x')"]

@pytest.mark.parametrize("program", PYTHON2)
def test_python_2_is_named(backend, program):
    r = run_program(program, backend=backend)
    assert r.reason == "error" and r.error.count("\n") == 0 and r.error.endswith("[this is Python 2; programs run in Python 3]")

def test_odd_texts(backend):
    texts = ["", "# nothing", "x = 1", "\ud800", "print('\ud800')", "a\0b", "x" * 1_000_000, "x = 1\n" * 200_000, "import " + " " * 1_000_000, "from " + " " * 500_000 + "\n", "\ufeffprint(1)", "print('ä€𝄞')", "\tprint(1)", "'''doc'''", "None"]
    found = run_programs(texts, backend=backend, timeout=60)
    assert all(not r.error for r in found[:3]) and [r.reason for r in found[3:7]] == ["error"] * 4 and found[7].error == ""
    assert found[11].output == "ä€𝄞\n" and found[12].error.startswith("IndentationError") and found[13].output == "'doc'\n" and found[14].output == ""

def test_order_limits_and_semantics(backend):
    seen = []
    found = run_programs([f"import time\ntime.sleep({0.2 if i == 0 else 0})\n{i}" for i in range(8)], workers=2, backend=backend, progress=lambda n, total: seen.append((n, total)))
    assert [r.output for r in found] == [f"{i}\n" for i in range(8)] and seen == [(i, 8) for i in range(1, 9)]
    assert run_program("x = 1\nif __name__ == '__main__': print('main')\nx + 1", backend=backend).output == "main\n2\n"
    assert run_program("print('a')\n1/0\nprint('b')", backend=backend)[:2] == ("a\n", "ZeroDivisionError: division by zero")
    assert run_program("print('x' * 1000)", backend=backend, truncate=400).output == "x" * 200 + "..." + "x" * 200
    assert run_program("import signal\nsignal.alarm(1)\nwhile True: pass", backend=backend).reason == "killed"
    assert run_program("while True: pass", backend=backend, timeout=60, cpu_seconds=1).reason == "cpu limit"
    assert run_program("print('x' * 70000)", backend=backend, max_output=100000).output == "x" * 70000 + "\n"
    assert run_program("import numpy\nprint(int(numpy.ones(10**7).sum()))", backend=backend, memory_mb=128).output == "10000000\n"
    with_libraries = "import numpy, scipy.optimize, sympy\nprint(round(scipy.optimize.brentq(lambda x: x**2 - 2, 0, 2), 6), sympy.integrate(sympy.Symbol('x')), numpy.linalg.det(numpy.eye(3)))"
    assert run_program(with_libraries, backend=backend).output == "1.414214 x**2/2 1.0\n"

def test_nothing_of_the_package_imports_what_runs_inside():
    "The module that runs programs is started as a process of its own, and never imported beside our data."
    for p in (Path(__file__).resolve().parent.parent / "mathrepro").rglob("*.py"):
        lines = [l for l in p.read_text().splitlines() if re.match(r"\s*(from|import)\b.*\bconfined\b", l)]
        assert not lines, f"{p.name}: {lines}"

# -- real programs ---------------------------------------------------------------------

def test_recorded_outputs_are_reproduced(backend):
    "All programs of ToRA-70B on GSM8K print what was recorded; the two recorded errors recur."
    if not (Path(os.environ.get("MATHREPRO_DATA", "/nonexistent")) / "tora" / "tora-70b-gsm8k.jsonl").exists(): pytest.skip("needs $MATHREPRO_DATA/tora")
    from bench_programs import recorded, same
    rows = recorded()
    done = run_programs([code for _, code, _ in rows], workers=2, timeout=10.0, backend=backend)
    assert len(rows) == 1318 and not [(i, out, r) for (i, _, out), r in zip(rows, done) if not same(out, r)]
    assert {i: r.error for (i, _, out), r in zip(rows, done) if r.error} == {587: "SyntaxError: invalid syntax", 881: "TimeoutError: stopped after 10 s (time limit)"}
