"""Code that has broken into an instance: what it tries, with the user that the instance has, no capabilities and no way to more, but
without its system call filter (tests/unit/util/sandbox_test.cpp has that): what is refused does not hang on the filter alone."""
import dataclasses
import json
import sys


@dataclasses.dataclass
class Places:
    """Paths, as the attacker sees them."""
    state: str  # the folder of images
    run: str
    store: str
    tpm: str  # of the embedded TPM
    manager: str
    api: str


# One line of JSON for each thing that it tried. Where it is to be in a container, its modules are loaded before it enters.
SCRIPT = r"""
import ctypes, json, os, socket, struct, sys, uuid
given = json.loads(sys.argv[1])
place, pids, mine, other, user, group, inside = (given[k] for k in ("place", "pids", "mine", "other", "user", "group", "inside"))
libc = ctypes.CDLL(None, use_errno=True)
def must(outcome):
    if outcome < 0: raise OSError(ctypes.get_errno(), "libc")
if inside:
    spaces = [os.open(f"/proc/{inside}/ns/{name}", os.O_RDONLY) for name in ("pid", "net", "ipc", "mnt")]
    for space in spaces: must(libc.setns(space, 0))
    os.chdir("/")
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for capability in range(64):
    if libc.prctl(24, capability, 0, 0, 0) < 0: break  # PR_CAPBSET_DROP, up to the last there is
must(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
os.setgroups([]); os.setresgid(group, group, group); os.setresuid(user, user, user)
def tried(what, attempt):
    try:
        print(json.dumps([what, "did: " + repr(attempt())]), flush=True)
    except Exception as e:
        print(json.dumps([what, "refused: " + repr(e)]), flush=True)
def connected(path):
    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(path); return s
def read(s, n):
    data = b""
    while len(data) < n:
        part = s.recv(n - len(data))
        if not part: raise EOFError("closed")
        data += part
    return data
def key(path, who):
    s = connected(path)
    body = struct.pack(">H", 1) + uuid.UUID(who).bytes + bytes([2]) + struct.pack(">I", 0)
    s.sendall(struct.pack(">HII", 0x1c1, 10 + len(body), 0x56500001) + body)
    tag, size, code = struct.unpack(">HII", read(s, 10)); read(s, size - 10)
    if code: raise PermissionError(f"status {code}")
    return "hello"
def api(method, target):
    s = connected(place["api"])
    s.sendall(f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    status = s.recv(64).split()[1]
    if status != b"200": raise PermissionError(status)
    return status
if inside: tried("the container (is it in it?)", lambda: os.stat(place["store"]) and None)
tried("the manager's store", lambda: os.open(place["store"], os.O_RDONLY))
tried("another vTPM's image", lambda: os.open(f"{place['state']}/{other}.img", os.O_RDONLY))
tried("its own image by its path", lambda: os.open(f"{place['state']}/{mine}.img", os.O_RDWR))
tried("the hardware TPM", lambda: os.open(place["tpm"] + "/tpm20.state", os.O_RDONLY))
tried("the manager's socket", lambda: key(place["manager"], other))
tried("the way back of instances, as another vTPM", lambda: key(place["run"] + "/instances/link.sock", other))
tried("the way back of instances, as its own vTPM", lambda: key(place["run"] + "/instances/link.sock", mine))
tried("what the manager notes of processes", lambda: os.listdir(place["run"] + "/instances"))
tried("management", lambda: api("POST", f"/v1/vtpms/{other}/stop"))
tried("another guest's socket", lambda: connected(f"{place['run']}/{other}.sock"))
for name in ("manager", "me", "peer"):
    tried(f"memory of {name}", lambda: open(f"/proc/{pids[name]}/mem", "rb").read(1))
for name in ("manager", "peer"):
    tried(f"a signal to {name}", lambda: os.kill(pids[name], 0))
"""


def status_of(pid, proc="/proc"):
    with open(f"{proc}/{pid}/status", encoding="utf-8") as f:
        return {k: v.split() for k, _, v in (line.partition(":") for line in f)}


def refuses_everything(case, user, places, mine, other, pids, group=None, inside=None):
    """`mine` is the vTPM of the instance whose user it is, `pids` those of the manager, of that instance and of the other vTPM's. In the
    namespaces of the process `inside`, if one is given; all paths and pids are meant there."""
    given = json.dumps({"place": dataclasses.asdict(places), "pids": pids, "mine": mine, "other": other, "user": user,
                        "group": user if group is None else group, "inside": inside})
    _, text = case.run_command(sys.executable, "-E", "-s", "-B", "-c", SCRIPT, given)
    rows = [json.loads(line) for line in text.splitlines()]
    if inside:
        case.assertEqual(rows.pop(0)[1], "did: None")
    case.assertEqual(len(rows), 15, text)
    for what, came in rows:
        case.assertTrue(came.startswith("refused: "), f"{what}: {came}")
        # And not for a wrong path.
        case.assertRegex(came, "PermissionError|ConnectionResetError|BrokenPipeError|EOFError|ProcessLookupError", what)
