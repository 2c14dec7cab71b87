"""Run one untrusted program in a child process. This is a script: run it, never import it.

    python jail.py namespaces|bwrap|guards DIRECTORY < request.json

It reads a JSON object from stdin (`response`, `prompt`, `test`, `entry_point`, and the limits of
`dto.grading.sandbox.Limits`) and writes one to stdout: `{"reason": …}`, empty if the tests pass, or
`{"error": …}` if the sandbox cannot be set up. It imports neither torch nor dto.
`dto.grading.sandbox` describes what is covered and what is not.

Processes: this one; the first process of a PID namespace, which only waits (when it ends, the
kernel kills everything that the program left running); the program.
"""

import contextlib
import ctypes
import json
import math
import os
import resource
import secrets
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)
NEW_USER, NEW_PROCESSES = 0x10000000, 0x20000000
NEW_OTHERS = 0x00020000 | 0x04000000 | 0x08000000 | 0x40000000  # mounts, host name, IPC, network
BIND, PRIVATE, RECURSIVE, NO_SUID, NO_DEVICES = 0x1000, 0x40000, 0x4000, 0x2, 0x4
ATTR_READ_ONLY, ATTR_NO_SUID = 0x1, 0x2
AT_RECURSIVE, AT_FDCWD, DETACH = 0x8000, -100, 2
SET_DEATH_SIGNAL, SET_SUBREAPER, NO_NEW_PRIVILEGES = 1, 36, 38
MOUNT_SETATTR = 442  # the same number on every architecture
CAPABILITIES_V3 = 0x20080522
STARTED = b"\n"  # precedes the verdict: after it the program is responsible for any failure
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
FORBIDDEN = (
    "ctypes.", "os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.spawn", "os.system", "pty.",
    "signal.", "socket.", "subprocess.", "syslog.",
)  # fmt: skip
CHANGING = (
    "os.chflags", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename",
    "os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "os.utime",
)  # fmt: skip


def main() -> None:
    """Read the request, run the program, report its verdict."""
    mode, directory = sys.argv[1:]
    LIBC.prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    request = json.loads(sys.stdin.buffer.read())
    harness = load_harness()
    try:
        if mode == "namespaces":
            isolate(directory, request["disk"])
        else:
            os.chdir(directory)
            LIBC.prctl(SET_SUBREAPER, 1)
    except OSError as error:
        reply(error=f"{mode}: {error.strerror or error}")
        return
    if mode != "namespaces":
        reply(**supervise(request, mode, harness))
        return
    first = os.fork()
    if first == 0:
        LIBC.prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
        reply(**supervise(request, mode, harness))
        os._exit(0)
    os.waitpid(first, 0)


def reply(**fields: str) -> None:
    """Reply to the parent."""
    os.write(1, json.dumps(fields).encode() + b"\n")


def load_harness() -> ModuleType:
    """Load `harness.py`, beside this file; this folder is never in sys.path."""
    place = Path(__file__).with_name("harness.py")
    harness = ModuleType("harness")
    exec(compile(place.read_text(encoding="utf-8"), str(place), "exec"), harness.__dict__)
    return harness


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises OSError."""
    if getattr(LIBC, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def read_only(path: Path, flags: int) -> None:
    """Make a mount read-only; with `flags` AT_RECURSIVE also all mounts below it."""
    attributes = (ctypes.c_uint64 * 4)(ATTR_READ_ONLY | ATTR_NO_SUID, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    number, here = ctypes.c_long(MOUNT_SETATTR), ctypes.c_int(AT_FDCWD)
    flag = ctypes.c_uint(flags)
    call("syscall", number, here, os.fsencode(path), flag, ctypes.byref(attributes), size)


def isolate(directory: str, disk: int) -> None:
    """Enter new namespaces, with a root of Python, the system's libraries and an empty /tmp.

    Root needs no user namespace: it can mount files of Python that only root can read, and the
    program then becomes nobody, to whom the limit on processes applies (it does not to root).
    """
    root = os.geteuid() == 0
    user, group = os.getuid(), os.getgid()
    call("unshare", NEW_OTHERS | NEW_PROCESSES | (0 if root else NEW_USER))
    if not root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    call("mount", b"none", b"/", None, RECURSIVE | PRIVATE, None)
    new = Path(directory)
    tmpfs(new, "size=1m,mode=755")
    (new / "tmp").mkdir()
    tmpfs(new / "tmp", f"size={disk},nr_inodes=4096,mode=1777")
    for path in shown():
        show(path, new / path.relative_to("/"))
    os.chdir(new)
    call("pivot_root", b".", b".")
    call("umount2", b".", DETACH)
    read_only(Path("/"), 0)
    os.chdir("/tmp")


def tmpfs(place: Path, options: str) -> None:
    """Mount an empty file system in memory."""
    flags = NO_SUID | NO_DEVICES
    call("mount", b"tmpfs", os.fsencode(place), b"tmpfs", flags, options.encode())


def show(path: Path, place: Path) -> None:
    """Mount `path` read-only at `place`; copy a link as a link."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        place.symlink_to(os.readlink(path))
        return
    if path.is_dir():
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    call("mount", os.fsencode(path), os.fsencode(place), None, BIND | RECURSIVE, None)
    if str(path) not in DEVICES:
        read_only(place, AT_RECURSIVE)


def shown() -> list[Path]:
    """The paths that the program sees; none is below another."""
    python = (os.path.realpath(sys.base_prefix), sys.base_prefix, sys.prefix)
    paths: list[Path] = []
    for path in map(Path, (*SYSTEM, *DEVICES, *python)):
        inside = any(path.is_relative_to(other) for other in paths)
        if path.exists() and not inside and path != Path("/"):
            paths.append(path)
    return paths


def supervise(request: dict[str, Any], mode: str, harness: ModuleType) -> dict[str, str]:
    """Start the program, wait for it, and return the verdict."""
    nonce = secrets.token_hex(16)
    reading, writing = os.pipe()
    os.write(1, STARTED)
    child = os.fork()
    if child == 0:
        program(request, mode, harness, nonce, writing)
    os.close(writing)
    _, status, used = os.wait4(child, 0)
    if mode != "namespaces":
        end_descendants()
    os.set_blocking(reading, False)
    output = b""
    with contextlib.suppress(OSError):
        output = os.read(reading, 4096)
    mark, _, reason = output.decode(errors="replace").partition(" ")
    if mark == nonce:
        failed = reason.removeprefix(harness.FAILED)
        return {"reason": reason} if failed == reason else {"error": failed}
    if not os.WIFSIGNALED(status):
        return {"reason": "exited"}  # os._exit: the tests did not finish
    number = os.WTERMSIG(status)
    spent = used.ru_utime + used.ru_stime >= request["cpu_seconds"]
    if number == signal.SIGXCPU or (number == signal.SIGKILL and spent):
        return {"reason": "time_limit"}
    return {"reason": f"killed by {signal.Signals(number).name}"}


def end_descendants() -> None:
    """Kill processes that the program left running; orphans are children of this process."""
    children_file = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):
        while children := children_file.read_text().split():
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            os.wait()


def program(
    request: dict[str, Any], mode: str, harness: ModuleType, nonce: str, report: int
) -> NoReturn:
    """Run the program in this process."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(report, 3)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.closerange(4, 1 << 16)
        give_up_rights(mode)
        limit(request)
        if mode == "guards":
            guard()
        names = ("response", "prompt", "test", "entry_point")
        own_id = os.getpid()
        reason = harness.run(*(request[name] for name in names))
        if os.getpid() == own_id:  # not a process that the program started
            os.write(3, f"{nonce} {reason}".encode())
    except OSError as error:
        os.write(3, f"{nonce} {harness.FAILED}{error}".encode())
    finally:
        os._exit(0)


def give_up_rights(mode: str) -> None:
    """Become nobody if this is root, and drop all capabilities."""
    if mode != "bwrap" and os.geteuid() == 0 and (mode == "namespaces" or public()):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with contextlib.suppress(OSError):
            call("unshare", NEW_USER)  # then the limit counts only this program's processes
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0)
    call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
    call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    LIBC.prctl(SET_DEATH_SIGNAL, signal.SIGKILL)  # the change of user cleared it


def public() -> bool:
    """Whether everybody, and so the user nobody, can read Python's files."""
    places = [Path(sys.prefix), Path(sys.base_prefix), Path(os.getcwd())]
    return all(
        each.stat().st_mode & 0o5 == 0o5 for place in places for each in (place, *place.parents)
    )


def limit(request: dict[str, Any]) -> None:
    """Set the kernel's limits; they apply to each process, the number of processes to all."""
    seconds = math.ceil(request["cpu_seconds"])
    for what, least, most in (
        (resource.RLIMIT_AS, request["memory"], request["memory"]),
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_FSIZE, request["disk"], request["disk"]),
        (resource.RLIMIT_NPROC, request["processes"], request["processes"]),
        (resource.RLIMIT_NOFILE, request["files"], request["files"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (least, most))


def guard() -> None:
    """Refuse, inside Python, actions that no namespace prevents."""
    global LIBC
    work, readable = os.getcwd(), (*map(str, shown()), os.getcwd())
    LIBC = None  # type: ignore[assignment]
    for name in ("ctypes", "_ctypes"):
        del sys.modules[name]

    def below(path: object, places: tuple[str, ...]) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # an open file
        real = Path(os.path.realpath(os.fsdecode(path)))
        return any(real.is_relative_to(place) for place in places)

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import" and str(arguments[0]) in ("ctypes", "_ctypes"):
            raise ImportError("not available in the sandbox")
        if event == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            bad = not below(path, (work, "/dev/null") if writes else readable)
        elif event in ("os.listdir", "os.scandir", "os.chdir"):
            bad = not below(arguments[0] or ".", readable)
        elif event in CHANGING:
            bad = not all(
                below(path, (work,)) for path in arguments[:2] if not isinstance(path, int)
            )
        else:
            bad = event.startswith(FORBIDDEN) and event != "socket.__new__"
        if bad:
            raise PermissionError(f"{event} is refused in the sandbox")

    sys.addaudithook(refuse)


if __name__ == "__main__":
    main()
