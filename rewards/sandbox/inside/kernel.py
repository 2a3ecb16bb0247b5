"""The Linux calls that Python has no name for: seccomp, landlock, namespaces, mounts."""

import ctypes
import errno
import os
import platform
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
_CLONE_NAMESPACES = 0x7E020080  # cgroup, uts, ipc, user, pid, net, mount, time
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER = 1, 4, 22, 36
_PR_SET_NO_NEW_PRIVS = 38
_SIGKILL = 9

# (x86_64, aarch64); None: that machine has no such call. Some are refused because they reach the
# kernel's rarely used corners, some because they leave something behind (System V memory, keys).
_REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "socket": (41, 198),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # Memory that no process has mapped is in nobody's limit.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_KILL = (62, 129)
_TGKILL = (234, 131)
_TKILL = (200, 130)
_SIGQUEUE = ((129, 138), (297, 240), (424, 424))  # rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_libc = ctypes.CDLL(None, use_errno=True)
# Without argument types a 64-bit pointer would be cut to an int.
_libc.syscall.restype = ctypes.c_long


class KernelError(OSError):
    """A call the sandbox needs was refused; the text names the feature."""


def _check(result: int, feature: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise KernelError(code, f"{feature}: {os.strerror(code)}")
    return result


def _prctl(option: int, value: int, feature: str, pointer: object = None) -> None:
    zero = ctypes.c_ulong(0)
    argument = zero if pointer is None else pointer
    _check(_libc.prctl(option, ctypes.c_ulong(value), argument, zero, zero), feature)


def new_namespaces(flags: int) -> None:
    """Leave the namespaces in `flags`; of processes, the next child is the first of a new one."""
    _check(_libc.unshare(flags), "user namespaces (unshare)")


def mount_private_tmp(path: str, num_bytes: int) -> None:
    """An empty folder in memory at `path`, seen by this mount namespace only."""
    none, root, tmpfs = None, b"/", b"tmpfs"
    _check(
        _libc.mount(none, root, none, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), none), "private mounts"
    )
    options = f"size={num_bytes},nr_inodes=4096,mode=0777".encode()
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    _check(_libc.mount(tmpfs, os.fsencode(path), tmpfs, flags, options), "mounting tmpfs")


def die_with_parent() -> None:
    """Be killed when the parent ends. A change of user undoes it."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL, "PR_SET_PDEATHSIG")


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")


def hide_memory() -> None:
    """Forbid processes of the same user to read this one through /proc or ptrace."""
    _prctl(_PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")


def no_new_privileges() -> None:
    """Programs that are started from here on gain nothing by being set-uid."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")


def drop_capabilities() -> None:
    """Give up every privilege of root."""
    header = struct.pack("Ii", 0x20080522, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def _statement(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16


def seccomp_program(machine: str, *, only_signal: int | None) -> bytes:
    """The filter as BPF: the refused calls fail with EPERM, `clone3` with ENOSYS.

    only_signal: the one process id that may be sent signals; None: any (a process namespace keeps
        the others out of sight).
    """
    column = {"x86_64": 0, "aarch64": 1}[machine]
    deny = _statement(_RETURN, _ERRNO | errno.EPERM)
    parts = [
        _statement(_LOAD, _ARCH_AT),
        _statement(_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _statement(_RETURN, _KILL_PROCESS),
        _statement(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":  # the x32 calls would slip by under other numbers
        parts += [_statement(0x35, 0x40000000, 0, 1), _statement(_RETURN, _KILL_PROCESS)]
    refused = [numbers[column] for numbers in _REFUSED.values()]
    if only_signal is not None:
        refused += [number[column] for number in (_TKILL, *_SIGQUEUE)]
        for call in (_KILL, _TGKILL):
            parts += [
                _statement(_EQUAL, call[column], 0, 4),
                _statement(_LOAD, _FIRST_ARGUMENT_AT),
                _statement(_EQUAL, only_signal, 1, 0),
                deny,
                _statement(_RETURN, _ALLOW),
            ]
    for number in refused:
        if number is not None:
            parts += [_statement(_EQUAL, number, 0, 1), deny]
    # glibc falls back to clone, whose flags a filter can see.
    parts += [
        _statement(_EQUAL, _CLONE3[column], 0, 1),
        _statement(_RETURN, _ERRNO | errno.ENOSYS),
        _statement(_EQUAL, _CLONE[column], 0, 3),
        _statement(_LOAD, _FIRST_ARGUMENT_AT),
        _statement(_SET, _CLONE_NAMESPACES, 0, 1),
        deny,
        _statement(_RETURN, _ALLOW),
    ]
    return b"".join(parts)


def install_seccomp(*, only_signal: int | None) -> None:
    """Apply the filter to this process and all it starts. `no_new_privileges` comes before it."""
    machine = platform.machine()
    if machine not in _AUDIT_ARCH:
        raise KernelError(errno.ENOSYS, f"seccomp: no list of system calls for {machine}")
    program = seccomp_program(machine, only_signal=only_signal)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    _prctl(_PR_SET_SECCOMP, 2, "seccomp", ctypes.c_char_p(head))


_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder
_DEVICE = 1 << 1 | 1 << 2  # write and read a file


def landlock_version() -> int:
    """The kernel's landlock version; raises KernelError where there is none."""
    return _check(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1), "landlock")


def install_landlock(readable: list[str], writable: str) -> None:
    """Forbid every file but those below `readable` (to read and execute) and `writable` (all)."""
    version = landlock_version()
    handled = (1 << 13) - 1 | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    ruleset = struct.pack("Q", handled)
    descriptor = _check(
        _libc.syscall(_CREATE_RULESET, ruleset, ctypes.c_size_t(len(ruleset)), 0), "landlock"
    )
    devices = [path for path in ("/dev/null", "/dev/zero", "/dev/urandom") if os.path.exists(path)]
    rules = [(path, _READ if os.path.isdir(path) else _READ & ~(1 << 3)) for path in readable]
    rules += [(path, _DEVICE) for path in devices] + [(writable, handled)]
    for path, access in rules:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access & handled, folder)
        _check(_libc.syscall(_ADD_RULE, descriptor, 1, rule, 0), f"landlock rule for {path}")
        os.close(folder)
    _check(_libc.syscall(_RESTRICT_SELF, descriptor, 0), "landlock")
    os.close(descriptor)
