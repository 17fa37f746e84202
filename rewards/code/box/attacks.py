"""What a program would try. Runs inside the sandbox, as a program of a completion does, and says what got through.

This file is read as text and handed to the sandbox: it imports nothing of ours, and nothing imports it. It does no harm
where the sandbox does not hold: it aims at what the supervisor has set up for it.
"""

import contextlib
import ctypes
import mmap
import os
import platform
import signal
import socket

_LIBC = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {  # x86_64, aarch64
    "io_uring_setup": (425, 425), "bpf": (321, 280), "keyctl": (250, 219), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "memfd_create": (319, 279), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "name_to_handle_at": (303, 264), "personality": (135, 92), "shmget": (29, 194), "msgget": (68, 186),
    "mq_open": (240, 180), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "chroot": (161, 51),
    "seccomp": (317, 277), "pidfd_open": (434, 434), "clone3": (435, 435), "fanotify_init": (300, 262),
    "add_key": (248, 217), "sched_setaffinity": (203, 122), "setpriority": (141, 140), "inotify_init1": (294, 26),
}  # fmt: skip
_COLUMN = 0 if platform.machine() == "x86_64" else 1


def attack(given):
    """{name of the attack: what it got} of those that got something. `given`: the supervisor's targets."""
    found = {}
    for name, one in list(globals().items()):
        if not name.startswith("_try_"):
            continue
        with contextlib.suppress(Exception):
            got = one(given)
            if got:
                found[name.removeprefix("_try_")] = str(got)[:80]
    return found


def _call(name, *arguments):
    """Whether the kernel lets the call through; most fail later for their arguments, which is not refused either."""
    ctypes.set_errno(0)
    result = _LIBC.syscall(_NUMBERS[name][_COLUMN], *arguments)
    return result >= 0 or ctypes.get_errno() not in (1, 38)  # EPERM, ENOSYS


def _try_descriptors(given):
    """First of all: later ones leave some open."""
    found = []
    for descriptor in range(3, 1024):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            found.append(descriptor)
    return len(found) > 1 and found  # one is the socket on which this is answered


def _try_read_secret(given):
    return open(given["secret"]).read()


def _try_read_password_hashes(given):
    return open("/etc/shadow").read() or "nothing in it"


def _try_list_folder(given):
    return os.listdir(os.path.dirname(given["secret"]))


def _try_read_through_proc(given):
    return open(f"/proc/{given['victim']}/environ", "rb").read() or os.listdir(f"/proc/{given['victim']}/fd")


def _try_write_beside(given):
    with open(given["secret"] + ".written", "w") as file:
        file.write("x")
    return "a file"


def _try_overwrite(given):
    with open(given["secret"], "w") as file:
        file.write("x")
    return "overwritten"


def _try_empty_through_a_reader(given):
    os.close(os.open(given["secret"], os.O_RDONLY | os.O_TRUNC))
    return "emptied"


def _try_truncate(given):
    os.truncate(given["secret"], 0)
    return "emptied"


def _try_remove(given):
    os.unlink(given["secret"])
    return "removed"


def _try_permissions(given):
    os.chmod(given["secret"], 0o777)
    return "changed"


def _try_owner(given):
    os.chown(given["secret"], os.getuid(), os.getgid())
    return "changed"


def _try_times(given):
    os.utime(given["secret"], (0, 0))
    return "changed"


def _try_attribute(given):
    os.setxattr(given["secret"], "user.canary", b"x")
    return "set"


def _try_hard_link(given):
    os.link(given["secret"], "linked")
    return open("linked").read()


def _try_symbolic_link(given):
    os.symlink(given["secret"], "link")
    return "made"


def _try_fork(given):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return "a process"


def _try_spawn(given):
    return os.posix_spawn("/bin/true", ["true"], {})


def _try_execute(given):
    os.stat("/bin/true")
    return _LIBC.execve(b"/bin/nothing", None, None) == -1 and ctypes.get_errno() not in (1, 13, 38) and "possible"


def _try_kill(given):
    os.kill(given["victim"], signal.SIGKILL)
    return "killed"


def _try_signal_by_owner(given):
    import fcntl

    fcntl.fcntl(os.pipe()[0], 8, given["victim"])  # F_SETOWN
    return "set"


def _try_limits_of_others(given):
    import resource

    resource.prlimit(given["victim"], resource.RLIMIT_NOFILE, (1, 1))
    return "set"


def _try_tcp(given):
    socket.create_connection(("127.0.0.1", given["tcp"]), 1)
    return "connected"


def _try_listen(given):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return "listening"


def _try_datagram(given):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", given["tcp"]))
    return "sent"


def _try_abstract_socket(given):
    socket.socket(socket.AF_UNIX).connect("\0" + given["abstract"])
    return "connected"


def _try_path_socket(given):
    socket.socket(socket.AF_UNIX).connect(given["path"])
    return "connected"


def _try_pair_pointed_elsewhere(given):
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pair[0].sendto(b"x", "\0" + given["abstract"])
    return "sent"


def _try_netlink(given):
    socket.socket(16, socket.SOCK_RAW, 0)
    return "a socket"


def _try_terminal(given):
    import fcntl

    fcntl.ioctl(0, 0x5412, b"x")  # TIOCSTI
    return "typed"


def _try_outlive_parent(given):
    return _LIBC.prctl(1, 0, 0, 0, 0) == 0 and "PDEATHSIG cleared"


def _try_kernel_calls(given):
    zeros = (0,) * 5
    kinds = {
        "ptrace": (16, given["victim"], 0, 0, 0),
        "personality": (0xFFFFFFFF, 0, 0, 0, 0),
        "unshare": (0x10000000,),
    }
    kinds |= {"setpriority": (0, given["victim"], 19), "pidfd_open": (given["victim"], 0)}
    through = [name for name in _NUMBERS if _call(name, *(ctypes.c_long(one) for one in kinds.get(name, zeros)))]
    return through


def _try_other_abi(given):
    """getpid as a 32-bit call and as an x32 call; a filter that looks at numbers alone takes them for others."""
    if _COLUMN:
        return None
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
    place = ctypes.addressof(ctypes.c_char.from_buffer(code))
    old = ctypes.CFUNCTYPE(ctypes.c_int)(place)()
    return (old > 0 and "i386") or (_LIBC.syscall(0x40000000 + 39) > 0 and "x32")


def _try_memory(given):
    blocks = [mmap.mmap(-1, 64 << 20) for _ in range(given["memory_mb"] // 64 + 8)]
    return f"{len(blocks)} blocks"


def _try_open_many(given):
    opened = []
    try:
        while len(opened) < 5000:
            opened.append(os.open("/dev/null", os.O_RDONLY))
        return len(opened)
    finally:
        for descriptor in opened:  # the attacks behind this one need some
            os.close(descriptor)


def _try_large_file(given):
    with open("large", "wb") as file:
        file.truncate(1 << 40)
    return "1 TB"


def _try_environment(given):
    return [name for name in os.environ if name not in ("HOME", "TMPDIR", "PATH", "LANG", "LC_CTYPE")]
