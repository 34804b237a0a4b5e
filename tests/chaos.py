"""Chaos: a real pipeline is killed at random instants and started again until it is done; its bytes must be those of an undisturbed run, and nothing that was finished may be lost. Then other faults, each with a small pipeline.

    python tests/chaos.py --kills 50 --paper rft              # about 20 minutes on two cores; writes chaos.json
    python tests/chaos.py --kills 3 --paper toys              # the small pipeline of the tests, seconds
    python tests/chaos.py --kills 0 --injections              # the other faults only
    python tests/chaos.py --kills 0 --overhead --paper rft    # what checkpointing costs

A kill strikes everything at once (a power cut as the files see it), the command alone, the kernel alone, or a worker alone. Its instant is drawn inside a stage (kinds of stages hit least first), or from the whole run. Kills are SIGKILL, so what was written is in the
system's cache: a real power cut, which may take back what was not yet pushed to the disk, is not tested here."""
import argparse, ctypes, json, os, random, re, resource, shutil, signal, socket, subprocess, sys, tempfile, threading, time, urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import psutil
from mathrepro.keys import file_hash
from mathrepro.ledger import read_cost, read_log
from mathrepro.store import SHORT, store_index

HERE, BIN = Path(__file__).parent, Path(sys.executable).parent

# ---- pipelines

# the smoke profile of RFT made smaller: every kind of stage is left, with one seed, two of five base models and half the problems
SMALLER = {"rft": ["seeds=[0]", "side_seeds=[0]", "ladder=[world:xs, world:xs@25]", "fractions=[1.0, 0.5]", "data.train.n=12", "data.valid.n=6", "data.test.n=12", "vote.limit=4"]}

class Pipeline:
    "What is run: a paper at a profile through the command, or the toys through Python. `folder(home)`: its run."
    def __init__(self, name, profile="smoke", settings=()): self.name, self.profile, self.settings = name, profile, list(settings)
    def command(self, home):
        if self.name != "toys": return [str(BIN / "mathrepro"), "run", self.name, "--profile", self.profile, "--no-report", *(w for s in self.settings for w in ("-p", s))]
        return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); import stages_for_tests as st; {toys(home)}"]
    def folder(self, home): return Path(home) / ("toy" if self.name == "toys" else f"{self.name}/{self.profile}")
    def start(self, home, log, env=None):
        env = {**os.environ, "MATHREPRO_HOME": str(home), "OMP_NUM_THREADS": "1", **(env or {})}
        with open(log, "a") as f: return subprocess.Popen(self.command(home), env=env, stdout=f, stderr=f, stdin=subprocess.DEVNULL, start_new_session=True)

def data(home):
    "Relative name -> sha256 of all files of finished stages (but the costs), and of unpacked models."
    home = Path(home)
    return {str(p.relative_to(home)): file_hash(p) for top in ("store", "models") for p in sorted((home / top).rglob("*")) if p.is_file() and p.name != "cost.json" and ".corrupt-" not in str(p) and p.suffix != ".lock"}

# ---- what must not be lost

def mark(path):
    "Inode and time of change of a file or folder."
    s = path.stat()
    return s.st_ino, s.st_mtime_ns

def kept(home):
    "(folder of each finished stage -> its mark, (key, file) of each committed shard under work/ -> its mark): a thing made again gets another mark."
    home, done, shards = Path(home), {}, {}
    for short, p in store_index(home).items(): done[p.name] = mark(p)
    for j in home.glob("work/*/journal.jsonl"):
        for line in j.read_text(errors="replace").splitlines():
            try: row = json.loads(line)
            except ValueError: continue
            if not isinstance(row, dict) or not row.get("span"): continue     # no shard: its stage writes it again
            f = j.parent / "out" / str(row.get("file"))
            try: shards[j.parent.name, row["file"]] = mark(f)
            except (KeyError, OSError): pass
    return done, shards

def lost(home, before):
    "(finished stages, committed shards) of an earlier `kept` that were made again or are gone at the end."
    done, shards, index = *before, store_index(home)
    stages = [n for n, i in done.items() if not (p := Path(home) / "store" / n).exists() or mark(p) != i]
    def same(key, f, i):
        try: return mark(index[key[:SHORT]] / f) == i
        except (KeyError, OSError): return False
    return stages, [f"{k[:SHORT]}/{f}" for (k, f), i in shards.items() if not same(k, f, i)]

def in_flight(folder, home, now, began):
    "(names of the stages under way in the session that began then, seconds of work since their last commits)."
    state = {}
    for r in read_log(folder):
        if r["event"] == "compute": state = {}
        if r["t"] < began: continue     # a kill before this: what was under way then is counted there
        if "key" in r: state[r["key"]] = r
    busy = [r for r in state.values() if r["event"] == "start"]
    since = lambda r: max([r["t"], *(p.stat().st_mtime for p in (Path(home) / "work" / r["key"] / "out").glob("*") if not p.name.startswith("."))])
    return [r["name"] for r in busy], sum(max(now - since(r), 0.0) for r in busy)

# ---- killing

def tree(pid):
    "The process and all its descendants."
    try: p = psutil.Process(pid); return [p, *p.children(recursive=True)]
    except psutil.NoSuchProcess: return []

def is_a(p, what):
    try: return any(f"mathrepro.{what}" in a for a in p.cmdline())
    except psutil.Error: return False

def strike(root, victim, rng, older=()):
    "SIGKILL the victim (`all`: what outlived an `older` kill too); (what was struck, all processes there were, their processor seconds)."
    procs = tree(root.pid)
    some = {"all": [*procs, *older], "command": procs[:1], "kernel": [p for p in procs if is_a(p, "kernel")][:1], "worker": [p for p in procs if is_a(p, "workers") and not is_a(p, "kernel")]}[victim]
    if victim == "worker" and some: some = [rng.choice(some)]
    if not some: victim, some = "all", [*procs, *older]     # there is no kernel, no worker yet
    cpu = cpu_of(procs)
    for p in some:
        try: p.kill()
        except psutil.NoSuchProcess: pass
    return victim, procs, cpu

AIMS = {"any time": 3, "first second": 1, "a stage": 3, "a write": 4}

class Aim:
    "When to strike: `seconds` after the start (any time, first second), after a stage begins in this session, or at the first change of files after that."
    def __init__(self, rng, calm, spent, hits):
        left, self.stage = [n for n in calm["stages"] if n not in spent], None
        share = min(len(left) / len(calm["stages"]) or 1.0, 0.25)     # not far ahead, so that a round takes many kills, and until the end where no stage is left
        rest = calm["pace"] * (calm["first_stage_s"] + (calm["seconds"] - calm["first_stage_s"]) * share)
        self.kind = rng.choices(list(AIMS), AIMS.values())[0]
        if self.kind == "a stage" and not left: self.kind = "any time"
        self.seconds = rng.uniform(0, 1 if self.kind == "first second" else rest)
        if self.kind != "a stage": return
        left = left[:12]     # not far ahead either
        kind = min(dict.fromkeys(n.split("/")[0] for n in left), key=lambda k: hits[k])     # of equals the earliest
        self.stage = rng.choice([n for n in left if n.split("/")[0] == kind])
        self.seconds = rng.uniform(0, calm["pace"] * calm["stages"][self.stage])

def names(folder):
    "Names in a folder, [] where it is gone."
    try: return os.listdir(folder)
    except OSError: return []

def files_of(home):
    "What stands in the store and in the stages under way: changes when something is written."
    return {f"{d}/{n}" for d in [f"{home}/store", *(f"{home}/work/{k}/{o}" for k in names(f"{home}/work") for o in ("out", "scratch"))] for n in names(d)}

def half_written(home):
    "Files that a kill left half-written: temporary ones, and files of stages under way that their journals do not hold."
    torn = [str(p.relative_to(home)) for top in ("work", "store", "models") for p in (Path(home) / top).rglob(".*.part")]
    for out in Path(home).glob("work/*/out"):
        try: journal = (out.parent / "journal.jsonl").read_text(errors="replace")
        except OSError: journal = ""
        torn += [str(p.relative_to(home)) for p in out.rglob("*") if p.is_file() and f'"{p.relative_to(out)}"' not in journal and not p.name.endswith(".part")]
    return torn

def await_aim(aim, p, folder, home, since):
    "Wait for the instant; False when the process ended before."
    begun, seen = time.time() if aim.stage is None else None, None
    while True:
        if begun is None and any(r.get("event") == "start" and r.get("name") == aim.stage and r["t"] >= since for r in read_log(folder)): begun = time.time()
        if begun is not None and time.time() >= begun + aim.seconds:
            if aim.kind != "a write": return p.poll() is None
            now = files_of(home)
            if seen is not None and now - seen: return p.poll() is None
            seen = now
        if p.poll() is not None: return False
        time.sleep(0.001 if seen is not None else 0.01 if begun is not None else 0.05)

def children_cpu():
    "Processor seconds of this process's ended children, and of theirs."
    u = resource.getrusage(resource.RUSAGE_CHILDREN)
    return u.ru_utime + u.ru_stime

def cpu_of(procs):
    "Processor seconds of processes and of their ended children."
    total = 0.0
    for p in procs:
        try: total += sum(p.cpu_times()[:4])
        except psutil.Error: pass
    return total

WORDS = {"all": "everything at once", "command": "the command", "kernel": "the Jupyter kernel", "worker": "a worker process"}
VICTIMS = {"all": 3, "command": 2, "kernel": 2, "worker": 4}

def one_round(pipeline, home, calm, rng, record, kills, log):
    "Start, kill, start again … until it is done or `kills` are reached; then let it finish. Adds to record['kills']; the round's own record."
    folder, snaps, mine, start, refused, failed, aimed, cpu_s = pipeline.folder(home), [], [], time.time(), 0, [], set(), 0.0
    while True:
        began, free, cpu_before = time.time(), len(record["kills"]) < kills, children_cpu()
        p = pipeline.start(home, log)
        done = {r["name"] for r in read_log(folder) if r["event"] in ("done", "cached")}
        free = free and not (len(done) >= len(calm["stages"]) and "the end" in aimed)     # what follows the last stage is struck once a round
        if len(done) >= len(calm["stages"]): aimed.add("the end")
        aim = Aim(rng, calm, done | aimed, record["hits"]) if free else None
        if aim: aimed.add(aim.stage)     # once a round, else the last stage would take all kills
        struck = aim and await_aim(aim, p, folder, home, began)
        if first := next((r["t"] for r in read_log(folder) if r["event"] == "start" and r["t"] >= began), None): calm["pace"] = min(5.0, max(0.2, (first - began) / calm["first_stage_s"]))     # of the machine, which others use too
        if struck:
            at = time.time() - began
            victim, procs, cpu = strike(p, rng.choices(list(VICTIMS), VICTIMS.values())[0], rng, [o for k in mine for o in k["orphans"]])
            (busy, seconds), torn = in_flight(folder, home, time.time(), began), half_written(home) if victim == "all" else []
            for n in busy: record["hits"][n.split("/")[0]] += 1
            snaps.append(kept(home) if victim == "all" else None)
            code = p.wait(600)
            if victim != "all": snaps[-1] = kept(home)
            _, alive = psutil.wait_procs(procs, timeout=0)
            mine.append(dict(round=len(record["rounds"]), aim=aim.kind, at_s=round(at, 3), victim=WORDS[victim], under_way=busy, half_written=len(torn), in_flight_s=round(seconds, 2), finished=len(snaps[-1][0]), exit=code, cpu_s=round(cpu, 1), alive_at_restart=len(alive), orphans=procs))
            record["kills"].append(mine[-1])
            print(f"kill {len(record['kills'])}/{kills}: {victim:8} after {at:5.2f} s ({aim.kind}) in {', '.join(busy) or 'no stage'}; {len(snaps[-1][0])} finished, {len(torn)} files half-written; exit {code}", flush=True)
            if victim == "worker" and code == 0: break    # an idle worker: the run went on by itself
            continue
        code = p.wait(1800)
        cpu_s += children_cpu() - cpu_before
        if code == 0: break
        words = Path(log).read_text(errors="replace")[-3000:]
        if "in use by" in words or "another process" in words.splitlines()[-1]: refused += 1; time.sleep(1.0)
        else: failed.append(words.splitlines()[-1] if words else f"exit {code}")
        if len(failed) > 3 or refused > 30: break
    for k in mine:
        _, alive = psutil.wait_procs(k.pop("orphans"), timeout=5)
        k["orphans"] = len(alive)
    return finish_round(home, calm, snaps, mine, dict(seconds=round(time.time() - start, 1), cpu_s=round(cpu_s + sum(k["cpu_s"] for k in mine), 1), refused=refused, failed=failed, kills=len(mine)))

def finish_round(home, calm, snaps, mine, out):
    "Compare the bytes, and look for what was made again."
    now = data(home)
    out["different"] = sorted(k for k in now.keys() | calm["data"].keys() if now.get(k) != calm["data"].get(k))
    lost_stages, lost_shards = zip(*[lost(home, s) for s in snaps]) if snaps else ((), ())
    out["same_bytes"], out["lost_stages"], out["lost_shards"] = not out["different"], sum(lost_stages, []), sum(lost_shards, [])
    out["left_in_work"] = sorted(p.name for p in (Path(home) / "work").iterdir())
    out["moved_aside"] = sorted(p.name for p in (Path(home) / "store").glob(".corrupt-*"))
    out["resumed_stages"] = sum(json.loads(p.read_text())["sessions"] > 1 for p in Path(home).glob("store/*/cost.json"))
    for k, st, sh in zip(mine, lost_stages, lost_shards): k["recovered"], k["lost"] = out["same_bytes"] and not out["failed"], [*st, *sh]
    return out

def undisturbed(pipeline, home, log):
    "The bytes, the stages with their seconds, and the seconds of a run that nobody disturbs."
    start = time.time()
    code = pipeline.start(home, log).wait()
    assert code == 0, Path(log).read_text()[-3000:]
    rows = read_log(pipeline.folder(home))
    return dict(data=data(home), stages={r["name"]: r["wall_s"] for r in rows if r["event"] == "done"}, seconds=time.time() - start, first_stage_s=next(r["t"] for r in rows if r["event"] == "start") - start, pace=1.0)

def chaos(pipeline, kills, seed, where, save=None):
    "`kills` kills; the record, which is also given to `save` after each round."
    where, rng = Path(where), random.Random(seed)
    where.mkdir(parents=True, exist_ok=True)
    calm = undisturbed(pipeline, where / "calm", where / "calm.log")
    print(f"undisturbed: {len(calm['stages'])} stages, {len(calm['data'])} files, {calm['seconds']:.0f} s", flush=True)
    record = dict(pipeline=pipeline.name, profile=pipeline.profile, settings=pipeline.settings, seed=seed, stages=len(calm["stages"]), files=len(calm["data"]), undisturbed_s=round(calm["seconds"], 1), hits=Counter(), kills=[], rounds=[])
    while len(record["kills"]) < kills:
        home = where / f"round-{len(record['rounds'])}"
        record["rounds"].append(r := one_round(pipeline, home, calm, rng, record, kills, where / f"round-{len(record['rounds'])}.log"))
        print(f"round {len(record['rounds'])}: {r['kills']} kills, same bytes: {r['same_bytes']}, lost stages {len(r['lost_stages'])}, lost shards {len(r['lost_shards'])}, refused {r['refused']}, failed {r['failed']}, {r['seconds']} s", flush=True)
        if r["same_bytes"] and not r["failed"]: shutil.rmtree(home)
        summarise(record)
        if save: save(record)
    return record

def summarise(record):
    "Add the sums."
    kills_of = record["kills"]
    record["summary"] = dict(kills=len(kills_of), recovered=sum(k["recovered"] for k in kills_of), victims=dict(Counter(k["victim"] for k in kills_of)), in_a_stage=sum(bool(k["under_way"]) for k in kills_of),
                             lost_stages=sum(len(r["lost_stages"]) for r in record["rounds"]), lost_shards=sum(len(r["lost_shards"]) for r in record["rounds"]), in_flight_s=round(sum(k["in_flight_s"] for k in kills_of), 1),
                             refused=sum(r["refused"] for r in record["rounds"]), orphans=sum(k["orphans"] for k in kills_of), cpu_s=round(sum(r["cpu_s"] for r in record["rounds"])), seconds=round(sum(r["seconds"] for r in record["rounds"]), 1))

# ---- other faults, with small pipelines

PRELUDE = f"import sys; sys.path.insert(0, {str(HERE)!r}); import stages_for_tests as st; from mathrepro.runs import Run\n"

def python(code, env=None, **kw):
    "Python in its own process: (exit code, what it printed)."
    p = subprocess.run([sys.executable, "-c", PRELUDE + code], env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, **kw)
    return p.returncode, p.stdout

def toys(home, workers=1): return f"run, last = st.pipeline({str(home)!r}, pause=0.004, workers={workers}); run.compute()"

def interrupted(home, shards=3):
    "A toy run that is killed when some shards of an unfinished stage are committed; their files under work/."
    p = subprocess.Popen([sys.executable, "-c", PRELUDE + toys(home)])
    while len(found := sorted(Path(home).glob("work/*/out/shard-*"))) < shards:
        time.sleep(0.01); assert p.poll() is None
    p.kill(); p.wait(); time.sleep(0.2)    # its workers end with it
    return sorted(Path(home).glob("work/*/out/shard-*"))

def work(home):
    "Seconds of work that the stages in a home record, those moved aside too."
    return sum(read_cost(p.parent).get("wall_s", 0.0) for pattern in ("store/*/cost.json", "store/.corrupt-*/cost.json") for p in Path(home).glob(pattern))

def outcome(home, calm, found, times=1, remade=None, usual=None):
    "The record of an injection: how often, whether it was noticed, whether the bytes are the same, what was lost (work in flight is not). `usual`: home of the undisturbed run, if it is not the toys'."
    return dict(times=times, found=bool(found), how=found if isinstance(found, str) else "", same_bytes=data(home) == calm, lost=remade or 0, spent=work(home), usual=usual)

def one_line(out, words):
    "The line of the output that tells the fault, without what only names this machine, '' when there is none or a traceback instead."
    from mathrepro.faults import redact
    found = next((redact(l) for l in out.strip().splitlines() if l.strip() and all(w in l for w in words)), "")
    return found if len(found) <= 300 else found[:300].rsplit(" ", 1)[0] + " …"

def a_disk(path, mib):
    "A small disk at `path`; False when this process may not mount one."
    path.mkdir(parents=True)
    return os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)], capture_output=True).returncode == 0

def full_disk(where, calm):
    "The disk is full in the middle of a stage; then there is room."
    code = "r = Run('toy', workers=1, home={!r}, progress='quiet'); b = r.stage('big', st.big, mib=6)\ntry: r.compute(b)\nexcept Exception as e: print(type(e).__name__, e)"
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19)); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    python(code.format(str(where / "calm")))
    home, mounted = where / "small", a_disk(where / "small", 4)
    try:
        _, out = python(("" if mounted else limit) + code.format(str(home)))
        before = kept(home)
        if mounted: subprocess.run(["mount", "-o", "remount,size=20m", str(home)], check=True)
        python(code.format(str(home)))
        return outcome(home, data(where / "calm"), one_line(out, ["UserError", "MiB free"]), remade=sum(map(len, lost(home, before))), usual=where / "calm")
    finally:
        if mounted: subprocess.run(["umount", "-l", str(home)])

def read_only(where, calm):
    "The folder loses its write permission while the run is under way, and gets it back."
    home = Path(tempfile.mkdtemp(prefix="chaos-")); os.chmod(home, 0o777)     # a short path: the user without rights must reach it
    code = f"import os, time, pandas, pyarrow.parquet, mathrepro.provenance as pv; pv.provenance()\nif os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\ntry: {toys(home, workers=0)}\nexcept Exception as e: print(type(e).__name__, e)"
    p = subprocess.Popen([sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while len(list(home.glob("work/*/out/shard-*"))) < 2: time.sleep(0.01); assert p.poll() is None, p.stdout.read()
    for d in (home / "store", *home.glob("work/*/out")): os.chmod(d, 0o555)
    out, before = p.communicate(timeout=60)[0], kept(home)
    for d in (home / "store", *home.glob("work/*/out")): os.chmod(d, 0o777)
    code, more = python(toys(home)); assert code == 0, more
    try: return outcome(home, calm, one_line(out, ["UserError", "cannot write"]), remade=sum(map(len, lost(home, before))))
    finally: shutil.rmtree(home)

CLOCK = """import time, itertools
real, jumps = time.time, itertools.cycle([0, 86400, -3600, 10 * 365 * 86400, -20 * 365 * 86400, 7, -7])
count = itertools.count()
shift = [0]
def jumping():
    if next(count) % 2 == 0: shift[0] = next(jumps)
    return real() + shift[0]
time.time = jumping
"""

def clock_jumps(where, calm):
    "The clock jumps by up to 20 years during the run, which is killed, and the files' dates are scattered over 60 years."
    home, site, rng = where / "home", where / "site", random.Random(5)
    site.mkdir(); (site / "sitecustomize.py").write_text(CLOCK)
    env = {"PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    p = subprocess.Popen([sys.executable, "-c", PRELUDE + toys(home)], env={**os.environ, **env})
    while len(list(home.glob("work/*/out/shard-*"))) < 3: time.sleep(0.01); assert p.poll() is None
    p.kill(); p.wait(); time.sleep(0.2)
    for f in home.rglob("*"): os.utime(f, (t := rng.uniform(0, 2e9), t))
    before = kept(home)
    code, out = python(toys(home), env); assert code == 0, out
    jumped = [r["t"] / 3.2e7 for r in read_log(home / "toy")]
    code, said = python("from mathrepro.status import command; command('toy')", {**env, "MATHREPRO_HOME": str(home)}); assert code == 0 and "finished" in said, said
    return outcome(home, calm, f"times in the log differ by {max(jumped) - min(jumped):.0f} years" if max(jumped) - min(jumped) > 1 else "", remade=sum(map(len, lost(home, before))))

def two_at_once(where, calm):
    "Two processes start the same run; then two runs over one store."
    home, spawn = where / "home", lambda code: subprocess.Popen([sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ps = [spawn(toys(home)) for _ in range(2)]
    outs = [p.communicate(timeout=120)[0] for p in ps]; codes = [p.returncode for p in ps]
    refused = next((one_line(o, ["in use by process"]) for o, c in zip(outs, codes) if c), "")
    assert 0 in codes, outs
    both = where / "both"
    code = "run, last = st.pipeline({!r}, pause=0.004); run.name = {!r}; run.folder = run.home / run.name; run.compute()"
    ps = [spawn(code.format(str(both), n)) for n in ("one", "two")]
    outs = [p.communicate(timeout=120)[0] for p in ps]; assert [p.returncode for p in ps] == [0, 0], outs
    done = Counter(r["name"] for n in ("one", "two") for r in read_log(both / n) if r["event"] == "done")
    r = outcome(home, calm, refused or "the first had finished before the second looked", times=2, remade=sum(done.values()) - 5)
    return {**r, "same_bytes": r["same_bytes"] and data(both) == calm}

def flip(f, at=20):
    b = bytearray(f.read_bytes()); b[at % len(b)] ^= 1; f.write_bytes(b)

def bad_shards_under_way(where, calm, harm, home="home"):
    "One of the committed shards of a killed run is harmed: it alone is made again."
    home = where / home
    files = interrupted(home); before = kept(home)
    harm(files[1]); os.utime(files[1], ns=(0, 0))
    code, out = python(toys(home)); assert code == 0, out
    again = lost(home, before)[1]
    return outcome(home, calm, "its sha256 is not the journal's" if len(again) == 1 else "", remade=len(again) - 1)

def truncated_under_way(where, calm):
    "A committed shard of a killed run is cut in half."
    return bad_shards_under_way(where, calm, lambda f: os.truncate(f, f.stat().st_size // 2))
def flipped_under_way(where, calm):
    "A bit of a committed shard of a killed run is flipped."
    return bad_shards_under_way(where, calm, flip)

def bad_finished(where, calm, harm, verify):
    "A shard of a finished stage is harmed: it is noticed, the stage moved aside and made again."
    home = where / "home"
    code, out = python(toys(home)); assert code == 0, out
    before = kept(home)
    harm(next(home.glob("store/draw-1-*/shard-00002.parquet")))
    said = ""
    if verify:
        code, said = python("from mathrepro.status import command; sys.exit(command('toy', check=True))", {"MATHREPRO_HOME": str(home)})
        assert code == 1, said
    code, out = python(toys(home)); assert code == 0, out
    return outcome(home, calm, one_line(said or out, ["draw/1", "shard-00002.parquet"]), remade=len(lost(home, before)[0]) - 1)

def truncated_finished(where, calm):
    "A shard of a finished stage is cut short."
    return bad_finished(where, calm, lambda f: os.truncate(f, f.stat().st_size - 3), verify=False)
def flipped_finished(where, calm):
    "A bit of a shard of a finished stage is flipped; mathrepro status --verify finds it."
    return bad_finished(where, calm, flip, verify=True)

def torn_records(where, calm):
    "Records cut short or filled with rubbish: log, run.json, journal, cost.json, stage.json; a half-written file beside the shards."
    home = where / "home"
    files = interrupted(home); work = files[0].parent.parent
    with open(work / "journal.jsonl", "a") as f: f.write('\n{"file": "shard-00')
    (work / "out" / ".shard-00009.parquet.part").write_bytes(b"half")
    with open(home / "toy" / "log.jsonl", "a") as f: f.write('{"t": 17\x00\x00\x00\n[1, 2]\n')
    (home / "toy" / "run.json").write_text("")
    code, out = python(toys(home)); assert code == 0, out
    done = sorted(home.glob("store/draw-*")); before = kept(home)
    (done[0] / "cost.json").write_text(""); (done[1] / "stage.json").write_text('{"name": ')
    (home / "toy" / "run.json").write_text('{"name": "t')
    code, again = python(toys(home)); assert code == 0, again
    code, said = python("from mathrepro.status import command; command('toy')", {"MATHREPRO_HOME": str(home)}); assert code == 0, said
    return outcome(home, calm, one_line(again, ["stage.json is damaged"]), times=7, remade=len(lost(home, before)[0]) - 1)

# ---- a server that makes trouble

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def say(self, status, value, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for k, v in {"content-type": "application/json", "content-length": len(body), **headers}.items(): self.send_header(k.replace("_", "-"), str(v))
        self.end_headers(); self.wfile.write(body)
    def do_GET(self): self.say(200, dict(object="list", data=[dict(id="toy", object="model", created=0, owned_by="toys")]))
    def do_POST(self):
        s, prompt = self.server, json.loads(self.rfile.read(int(self.headers["content-length"])))["prompt"]
        with s.lock: step = "drop" if s.left == 0 else s.plan.pop(0) if s.plan else None
        s.seen[step or "answered"] += 1
        if step == "hang": time.sleep(1.6)
        if step in ("hang", "drop"): self.close_connection = True; return
        if step: return self.say(step, dict(error=dict(message="as planned")), retry_after=0.05)
        n = int(prompt.split()[0])
        with s.lock: s.answered[prompt] += 1; s.left -= s.left > 0; last = s.left == 0
        self.say(200, dict(id="x", object="text_completion", created=0, model="toy", choices=[dict(index=0, text=f" {n + n}", finish_reason="stop", logprobs=None)], usage=dict(prompt_tokens=4, completion_tokens=2, total_tokens=6)))
        if last: self.close_connection = True; threading.Thread(target=s.stop).start()

class Toy(ThreadingHTTPServer):
    "A server that knows sums. `plan`: what happens to the next requests instead of an answer; `left`: answers until it dies."
    daemon_threads, request_queue_size, allow_reuse_address = True, 128, True
    def __init__(self, plan=(), left=-1, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.plan, self.left, self.lock, self.answered, self.seen = list(plan), left, threading.Lock(), Counter(), Counter()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
    def handle_error(self, *a): pass
    def stop(self): self.shutdown(); self.server_close()

def ask(home, url, max_wait=20.0): return f"import stages_of_chaos as sc; r = Run('asking', workers=0, home={str(home)!r}, progress='quiet'); s = r.stage('asked', sc.asked, url={url!r}, n=60, max_wait={max_wait})\ntry: r.compute(s)\nexcept Exception as e: print(type(e).__name__, e); sys.exit(1)"

def storm(where, calm, plan=(429,) * 40 + (503,) * 10):
    "A storm of refusals: 40 replies of status 429 and 10 of 503."
    calm, place = where.parent / "stormless", where.parent / "stormless-port"
    if not place.exists():
        with_calm = Toy()
        code, out = python(ask(calm, with_calm.url)); assert code == 0, out
        with_calm.stop(); place.write_text(str(with_calm.server_port))
    s = Toy(plan, port=int(place.read_text()))
    try: code, out = python(ask(where / "home", s.url)); assert code == 0, out
    finally: s.stop()
    seen = ", ".join(f"{n} × {k}" for k, n in s.seen.items())
    return outcome(where / "home", data(calm), seen if not s.plan else "", remade=sum(s.answered.values()) - 60, usual=calm)

def hanging(where, calm):
    "Six replies take longer than the time limit, six connections are dropped."
    return storm(where, calm, ("hang",) * 6 + ("drop",) * 6)

def dead_server(where, calm):
    "The server dies after 25 answers and comes back: what was answered is not asked again, but for the requests in flight."
    calm_server = Toy(); port = calm_server.server_port
    code, out = python(ask(where / "calm", calm_server.url, 1.0)); assert code == 0, out
    calm_server.stop()
    s = Toy(left=25, port=port)
    code, out = python(ask(where / "home", s.url, 1.0)); assert code == 1, out
    t = Toy(port=port)
    try: code, more = python(ask(where / "home", t.url, 1.0)); assert code == 0, more
    finally: t.stop()
    twice = sum((s.answered + t.answered).values()) - 60
    return outcome(where / "home", data(where / "calm"), one_line(out, ["UserError", "without a success"]), remade=max(twice - 4, 0), usual=where / "calm")     # 4 requests at once

# ---- a served engine in a process of its own

def end_with_parent():
    "No server outlives the tests (Linux)."
    if sys.platform == "linux": ctypes.CDLL(None).prctl(1, signal.SIGKILL)

class Server:
    "An engine behind a port, in a process group of its own, which may be killed, stopped and started again there."
    def __init__(self, folder):
        self.folder, self.process, self.down = Path(folder), None, None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.said, self.log, place = self.folder / "said.log", self.folder / "log", self.folder / "port"
        if not place.exists():
            with socket.socket() as s: s.bind(("127.0.0.1", 0)); place.write_text(str(s.getsockname()[1]))
        self.port = int(place.read_text())
        self.url = f"http://127.0.0.1:{self.port}/v1"
    def spawn(self, command, env):
        with open(self.log, "a") as f: self.process = subprocess.Popen(command, env={**os.environ, **env, "OMP_NUM_THREADS": "1"}, stdout=f, stderr=f, stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.folder, preexec_fn=end_with_parent)
    def wait(self, seconds=300):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            try: return urllib.request.urlopen(f"{self.url}/models", timeout=5)
            except OSError: time.sleep(0.1)
        raise AssertionError(self.log.read_text()[-2000:])
    def signal(self, which):
        os.killpg(self.process.pid, which)
        self.down = self.down or (time.time(), sum(self.answered().values()))
    def kill(self):
        if self.process.poll() is None: self.signal(signal.SIGKILL)
        self.process.wait()
    def stall(self, seconds):
        "Seconds from the first kill or stop to the next answer, put into the list."
        while self.down is None or sum(self.answered().values()) <= self.down[1]: time.sleep(0.05)
        seconds.append(round(time.time() - self.down[0], 1))

class Teacher(Server):
    "The world's teacher, served as tests/toys.py serves it."
    engine, words = dict(engine="endpoint", model="teacher", concurrency=4, timeout=2.0, max_wait=10.0), "server of the world teacher"
    pipeline, setting = "asking", "first stages of MathScale"
    def start(self): self.spawn([sys.executable, str(HERE / "toys.py"), "world-teacher", "teacher", str(self.port), str(self.said)], {})
    def answered(self): return Counter(l.split(",", 1)[1] for l in self.said.read_text().splitlines()) if self.said.exists() else Counter()
    def forget(self): self.said.unlink(missing_ok=True); self.down = None

class VLLM(Server):
    "vLLM's own API server with a model that the package ships."
    engine, words = dict(engine="endpoint", model="tiny", api="completions", concurrency=4, timeout=20.0, max_wait=150.0), "API server of vLLM"
    pipeline, setting = "solving", "a shipped model solves 64 problems"
    def start(self):
        from mathrepro.engines.vllm import environment, vllm_python
        from mathrepro.pretraining import shipped
        env = {k: v for k, v in environment(dict(cpu_cache_gib=1, tensor_parallel_size=1), None).items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        self.spawn([vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(shipped("s")), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"], env)
    def answered(self): return Counter({"requests": sum("POST /v1/" in l and " 200" in l for l in self.log.read_text(errors="replace").splitlines())})
    def forget(self): self.log.write_text(""); self.down = None

SERVERS = dict(teacher=Teacher, vllm=VLLM)
# MathScale's smoke profile made smaller: its teacher and its judge are asked over the network
SERVED = ["seeds=[0]", "side_seeds=[0]", "dial=[]", "size=8", "sizes=[4, 8]", "data.train.n=60", "data.narrow={}", "data.valid.n=8", "data.test.n=1", "workers=1"]

def asker(server, home, paper=False):
    "The process that asks the server: a few stages, or all of MathScale through the command."
    engine = {**server.engine, "base_url": server.url}
    code = f"import stages_of_chaos as sc; run, last = sc.{server.pipeline}({str(home)!r}, {engine!r})\ntry: run.compute()\nexcept Exception as e: print(type(e).__name__, e); sys.exit(1)"
    more = [w for who in ("teacher", "judge") for k, v in engine.items() for w in ("-p", f"{who}.{k}={v}")] + [w for s in SERVED for w in ("-p", s)]
    command = [str(BIN / "mathrepro"), "run", "mathscale", "--profile", "smoke", "--no-report", *more] if paper else [sys.executable, "-c", PRELUDE + code]
    env = {**os.environ, "MATHREPRO_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)

def calm_server(where, kind, paper):
    "(server, not running, bytes of a run that it answers undisturbed, what it answered)."
    folder = where.parent / f"{kind}-{'paper' if paper else 'stages'}"
    s, known = SERVERS[kind](folder), folder / "answered.json"
    if not known.exists():
        s.start()
        try:
            s.wait(); p = asker(s, folder / "home", paper)
            out = p.communicate(timeout=900)[0]; assert p.returncode == 0, out
            known.write_text(json.dumps(s.answered()))
        finally: s.kill()
    s.forget()
    return s, data(folder / "home"), Counter(json.loads(known.read_text()))

def troubled(where, kind, trouble, paper=False):
    "A server is killed or stopped when it has answered part of what will be asked; `trouble(server, process)` does it and gives what was noticed."
    s, calm, usual = calm_server(where, kind, paper)
    share, start = random.Random(f"{where.name}/{paper}").uniform(0.2, 0.8), time.time()
    s.start(); s.wait()
    try:
        p = asker(s, where / "home", paper)
        while sum(s.answered().values()) < share * sum(usual.values()): assert p.poll() is None, p.communicate()[0]; time.sleep(0.005)
        done = sum(s.answered().values())
        threading.Thread(target=s.stall, args=(stalled := [],), daemon=True).start()
        said, again = trouble(s, p)
        if again:
            p = asker(s, where / "home", paper); out = p.communicate(timeout=900)[0]; assert p.returncode == 0, out
        twice = sum(max(0, n - usual[k]) for k, n in s.answered().items())
    finally: s.kill()
    r = outcome(where / "home", calm, said, remade=max(0, twice - 2 * s.engine["concurrency"]))
    return {**r, "redone_s": stalled[0] if stalled else None, "at": f"after {done} of {sum(usual.values())} answers", "asked_again": twice, "seconds": round(time.time() - start, 1), "pipeline": "MathScale, smoke" if paper else s.setting}

def comes_back(s, p):
    "SIGKILL and at once a new server on the same port; the run waits and goes on."
    s.kill(); s.start(); out = p.communicate(timeout=900)[0]
    assert p.returncode == 0, out
    return "the run waited and went on", False

def stays_away(s, p):
    "SIGKILL; the run gives up with one line; then a new server, and the same run again."
    s.kill(); out = p.communicate(timeout=900)[0]
    assert p.returncode != 0, out
    s.start(); s.wait()
    return one_line(out, ["without a success", "run again"]), True

def hangs(s, p):
    "SIGSTOP for longer than the time limit of a request, then SIGCONT; the run goes on."
    s.signal(signal.SIGSTOP); time.sleep(s.engine["timeout"] * 1.5 if s.engine["timeout"] < 10 else 25); s.signal(signal.SIGCONT)
    out = p.communicate(timeout=900)[0]
    assert p.returncode == 0, out
    return "requests were given up and asked again", False

def server_faults(kind, paper=False):
    "Name -> injection for a kind of server."
    def make(trouble, what):
        def f(where, calm): return troubled(where, kind, trouble, paper)
        f.__doc__, f.target = what, SERVERS[kind].words
        return f
    return {f"{kind}_killed": make(comes_back, "The server is killed while it is asked, and comes back on the same port."), f"{kind}_gone": make(stays_away, "The server is killed while it is asked; the run gives up in one line and is started again when the server is back."),
            f"{kind}_hangs": make(hangs, "The server hangs (SIGSTOP, then SIGCONT) while it is asked.")}

INJECTIONS = dict(full_disk=full_disk, read_only=read_only, clock_jumps=clock_jumps, two_at_once=two_at_once, truncated_under_way=truncated_under_way, flipped_under_way=flipped_under_way,
                  truncated_finished=truncated_finished, flipped_finished=flipped_finished, torn_records=torn_records, storm=storm, hanging=hanging, dead_server=dead_server, **server_faults("teacher"))
LONG = {**server_faults("teacher", paper=True), **server_faults("vllm")}     # minutes each: by hand, with --servers

TARGETS = dict(full_disk="the disk of the runs", read_only="the folder of the runs", clock_jumps="the clock", two_at_once="the run's lock", torn_records="logs, journals and records", storm="a server", hanging="a server", dead_server="a server",
               truncated_under_way="a shard under way", flipped_under_way="a shard under way", truncated_finished="a finished stage", flipped_finished="a finished stage")

def inject(name, where, long=False):
    "One injection in a folder of its own; its record."
    where, calm = Path(where) / name, Path(where) / "calm"
    where.mkdir(parents=True)
    if not calm.exists() and not long: code, out = python(toys(calm)); assert code == 0, out
    f, start = (LONG if long else INJECTIONS)[name], time.time()
    r = f(where, data(calm))
    spent = r.pop("spent") - work(r.pop("usual") or calm)
    r["how"] = re.sub(r"\S*/(chaos|pytest)-[^\s:]*", "…", r["how"])
    return dict(fault=name, what=f.__doc__, target=getattr(f, "target", TARGETS.get(name)), **{"pipeline": "one stage that asks" if name in ("storm", "hanging", "dead_server") else "one stage of six files" if name == "full_disk" else "five small stages", "seconds": round(time.time() - start, 1), "redone_s": round(max(spent, 0.0), 2), **r})

def fell(name, error):
    "The record of an injection after which the run did not end."
    f = LONG.get(name) or INJECTIONS[name]
    return dict(fault=name, what=f.__doc__, target=getattr(f, "target", TARGETS.get(name)), pipeline="", times=1, found=False, same_bytes=False, lost=0, redone_s=None, how=f"NOT RECOVERED: {' '.join(str(error).split())[-300:]}")

# ---- what checkpointing costs

TIMES = '''import importlib.machinery, os, sys, time
where, depth, total = os.environ["CHAOS_TIMES"], [0], {}
def timed(name, fn, sign=1):
    def wrapper(*a, **k):
        outer = depth[0] == 0 or sign < 0
        depth[0] += sign > 0
        t, c = time.perf_counter(), time.process_time()
        try: return fn(*a, **k)
        finally:
            depth[0] -= sign > 0
            if outer:
                row = total.setdefault(name, [0, 0.0, 0.0]); row[0] += 1; row[1] += sign * (time.perf_counter() - t); row[2] += sign * (time.process_time() - c)
                with open(f"{where}/{os.getpid()}", "w") as f: f.write(repr(total))
    return wrapper
PLACES = {"mathrepro.workers": dict(commit=1, commit_stage=1, _note=1, write_any=-1), "mathrepro.runs": dict(log_event=1, write_run=1), "mathrepro.training": dict(save_checkpoint=1)}
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in PLACES: return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            for f, sign in PLACES[name].items(): setattr(module, f, timed(f, getattr(module, f), sign))
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder)
'''

def overhead(pipeline, where):
    "Seconds spent in checkpointing (hashes, fsync, renames, journals, logs; not the writing of the results themselves) in an undisturbed run, beside the seconds of its stages."
    where = Path(where)
    for d in ("site", "times"): (where / d).mkdir(parents=True)
    (where / "site" / "sitecustomize.py").write_text(TIMES)
    env = {"PYTHONPATH": f"{where / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "CHAOS_TIMES": str(where / "times")}
    start, load = time.time(), os.getloadavg()[0]
    code = pipeline.start(where / "home", where / "log", env).wait(); assert code == 0, (where / "log").read_text()[-2000:]
    seconds, parts = time.time() - start, {}
    import ast
    for f in (where / "times").iterdir():
        for k, v in ast.literal_eval(f.read_text()).items(): parts[k] = [a + b for a, b in zip(parts.get(k, [0, 0, 0]), v)]
    costs = [json.loads(p.read_text()) for p in (where / "home").glob("store/*/cost.json")]
    wall, cpu = sum(c["wall_s"] for c in costs) + parts["commit_stage"][1], sum(c["cpu_s"] for c in costs) + parts["commit_stage"][2]
    spent, spent_cpu = sum(v[1] for v in parts.values()), sum(v[2] for v in parts.values())
    return dict(pipeline=pipeline.name, profile=pipeline.profile, stages=len(costs), seconds=round(seconds, 1), stage_wall_s=round(wall, 2), stage_cpu_s=round(cpu, 2), checkpoint_wall_s=round(spent, 3), checkpoint_cpu_s=round(spent_cpu, 3),
                share_of_wall=round(spent / wall, 4), share_of_cpu=round(spent_cpu / cpu, 4), settings=pipeline.settings, load=round(load, 2), per_stage_ms=round(1000 * spent / len(costs), 1), parts={k: [v[0], round(v[1], 4), round(v[2], 4)] for k, v in parts.items()})

def rows(record, command):
    "The rows that the record adds to reports/faults.json, see `mathrepro.faults`."
    from mathrepro.faults import fault_row
    out, c = [], record.get("chaos")
    for v in (WORDS.values() if c else ()):
        mine = [k for k in c["kills"] if k["victim"] == v]
        gone = sum(len(k["lost"]) for k in mine)
        if mine: out.append(fault_row("SIGKILL at a random instant", v, len(mine), sum(k["recovered"] for k in mine), f"{gone} stages or shards" if gone else "", round(sum(k["in_flight_s"] for k in mine), 1), command, "stopped; run again, it went on where it had stood", "RFT, smoke, made smaller" if c["pipeline"] == "rft" and c["settings"] else f"{c['pipeline']}, {c['profile']}"))
    for r in [*record.get("injections", []), *record.get("servers", [])]:
        said = r["how"] + (f" ({r['at']}; {r['asked_again']} request{'s' * (r['asked_again'] != 1)} asked again)" if "at" in r else "")
        out.append(fault_row(r["what"].rstrip("."), r["target"], r["times"], r["times"] * (r["same_bytes"] and r["found"] and not r["lost"]), f"{r['lost']} pieces" if r["lost"] else "", r["redone_s"], command, said, r["pipeline"]))
    return out

def table(record):
    "What was injected, how often, what was lost, as Markdown."
    lines = ["| fault | of | times | recovered | lost | done again or waited for, s |", "|---|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {r['fault']} | {r['target']} | {r['injected']} | {r['recovered']} | {r['lost']} | {r['redone_s']} |" for r in rows(record, "")])

def into(path, record, argv):
    "Merge the record into the one from which the report's page is drawn."
    from mathrepro.faults import load_faults, merge_faults
    from mathrepro.provenance import provenance
    import shlex
    words = [w for i, w in enumerate(argv) if not {w, argv[i - 1] if i else ""} & {"--into", "--where", "--out"} and not w.startswith(("--into=", "--where=", "--out="))]
    command, held = "python tests/chaos.py " + shlex.join(words), load_faults(path)
    new, same = [record["overhead"]] if record.get("overhead") else [], lambda a, b: all(a.get(k) == b.get(k) for k in ("pipeline", "profile", "settings"))
    cost = [o for o in held.get("overhead", []) if not any(same(o, n) for n in new)] + new
    made = provenance()
    merge_faults(path, rows(record, command), kills=record.get("chaos"), overhead=cost, made_with={k: made[k] for k in ("commit", "hardware", "platform", "python")} | {"date": time.strftime("%Y-%m-%d")})

def main(argv=None):
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--kills", type=int, default=50); a.add_argument("--paper", default="rft", help="a paper, or toys"); a.add_argument("--profile", default="smoke"); a.add_argument("--seed", type=int, default=0)
    a.add_argument("--into", help="also merge the rows into this record of faults (reports/faults.json), from which `mathrepro report` draws a page")
    a.add_argument("-p", action="append", metavar="NAME=VALUE", help="settings of the paper"); a.add_argument("--smaller", action="store_true", help="the paper with the settings SMALLER")
    a.add_argument("--injections", action="store_true"); a.add_argument("--servers", action="store_true", help="a whole paper with a served teacher, and vLLM's server, killed and stopped"); a.add_argument("--overhead", action="store_true"); a.add_argument("--out", default="chaos.json"); a.add_argument("--where", help="folder for the runs (default: a temporary one, removed at the end)")
    argv = sys.argv[1:] if argv is None else argv
    a = a.parse_args(argv)
    where, pipeline, record = Path(a.where or tempfile.mkdtemp(prefix="chaos-")), Pipeline(a.paper, a.profile, a.p if a.p is not None else SMALLER.get(a.paper, []) if a.smaller else []), {}
    def save(record):
        from mathrepro.provenance import provenance
        Path(a.out).write_text(json.dumps({**record, "made_with": provenance()}, indent=1, default=str) + "\n")
    try:
        if a.overhead: record["overhead"] = overhead(pipeline, where / "overhead"); print(json.dumps(record["overhead"]), flush=True)
        if a.injections:
            record["injections"] = []
            for n in INJECTIONS: record["injections"].append(r := inject(n, where / "injections")); print(json.dumps(r), flush=True)
        if a.servers:
            from mathrepro.config import UserError
            record["servers"] = []
            for n in LONG:
                try: record["servers"].append(r := inject(n, where / "servers", long=True)); print(json.dumps(r), flush=True)
                except UserError as e: print(f"{n}: SKIPPED: {e}", flush=True)
                except AssertionError as e: record["servers"].append(r := fell(n, e)); print(json.dumps(r), flush=True)
                save(record)
        if a.kills: record["chaos"] = chaos(pipeline, a.kills, a.seed, where, lambda r: save({**record, "chaos": r}))
    finally:
        save(record)
        if not a.where: shutil.rmtree(where, ignore_errors=True)
    if a.into: into(a.into, record, argv)
    print(table(record))
    good = all(r["same_bytes"] and r["found"] and not r["lost"] for r in record.get("injections", [])) and ("chaos" not in record or record["chaos"]["summary"]["recovered"] == a.kills and not record["chaos"]["summary"]["lost_stages"] + record["chaos"]["summary"]["lost_shards"])
    return 0 if good else 1

if __name__ == "__main__": sys.exit(main())
