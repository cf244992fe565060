"""Which system calls a program is refused, and why: the table that seccomp.py makes a filter of.

Everything that is not named here is allowed: a list of what is allowed would be longer, and would break a program with
every new C library. A number per architecture, in the order of ARCHITECTURES; -1: that one has no such call. Numbers
are from the kernel's unistd headers. Left out on purpose: kill, pidfd_open and pidfd_send_signal (process 1 is deaf to
its own namespace, and nobody else is in it), mseal, prctl's harmless options, and everything that needs a capability
on a file that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

ARCHITECTURES = ("x86_64", "aarch64")

NEW_NAMESPACE = 0x7E020000
"""CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID and NET."""

AF_UNIX = 1


@dataclass(frozen=True, eq=False)
class Group:
    """Calls that are refused whatever their arguments, for one reason."""

    reason: str
    calls: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Condition:
    """A call that is refused when its argument number `argument` is, or has a bit of, `value`.

    Only the lower 32 bits are compared: each of these arguments is an int or a set of flags below 2**32.
    """

    reason: str
    call: str
    numbers: tuple[int, int]
    argument: int
    test: Literal["is", "is not", "has any of", "has all of"]
    value: int


@dataclass(frozen=True, eq=False)
class Rules:
    """What one tier refuses. Compared by identity, so that a filter can be kept by its rules."""

    groups: tuple[Group, ...]
    conditions: tuple[Condition, ...]

    def __add__(self, more: Rules) -> Rules:
        return Rules(self.groups + more.groups, self.conditions + more.conditions)

    def only(self, chosen: Callable[[str], bool]) -> Rules:
        """What they refuse of the calls whose names are chosen."""
        groups = (
            Group(group.reason, {name: numbers for name, numbers in group.calls.items() if chosen(name)})
            for group in self.groups
        )
        conditions = (condition for condition in self.conditions if chosen(condition.call))
        return Rules(tuple(group for group in groups if group.calls), tuple(conditions))


_CLONE, _SOCKET, _SOCKETPAIR = (56, 220), (41, 198), (53, 199)
_IOCTL, _PRCTL, _FCNTL, _MMAP, _MADVISE, _PRLIMIT = (16, 29), (157, 167), (72, 25), (9, 222), (28, 233), (302, 261)

EVERYWHERE = Rules(
    groups=(
        Group(
            "looks into or drives another process, such as the trusted one that reports how a program ended",
            {
                "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
                "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
                "process_mrelease": (448, 448), "move_pages": (279, 239), "migrate_pages": (256, 238),
            },
        ),
        Group(
            "makes or enters a namespace, in which a program has every capability and memory that nobody counts",
            {"unshare": (272, 97), "setns": (308, 268)},
        ),
        Group(
            "changes what is mounted where",
            {
                "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
                "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
                "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "statmount": (457, 457),
                "listmount": (458, 458), "open_tree_attr": (467, 467),
            },
        ),
        Group(
            "reaches files around their paths, or watches those of others; each watch is kernel memory",
            {
                "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
                "fanotify_mark": (301, 263), "inotify_init": (253, -1), "inotify_init1": (294, 26),
                "lookup_dcookie": (212, 18), "cachestat": (451, 451),
            },
        ),
        Group(
            "keeps memory that belongs to no process, so that no sum over processes finds it",
            {
                "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
                "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191),
                "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
                "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
                # One page given to a pipe holds the whole huge page that it is a part of.
                "vmsplice": (278, 75),
                # Contexts are counted for the whole machine, so one program could take them from everybody.
                "io_setup": (206, 0), "io_submit": (209, 2),
            },
        ),
        Group(
            "has a long record of holes in the kernel, and no program of ours needs it",
            {
                "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
                "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
                "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
                "seccomp": (317, 277), "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
                "landlock_restrict_self": (446, 446), "lsm_set_self_attr": (460, 460),
                "personality": (135, 92), "modify_ldt": (154, -1), "uselib": (134, -1),
            },
        ),
        Group(
            "administers the machine; refused here too, should a capability be left by mistake",
            {
                "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "swapon": (167, 224),
                "swapoff": (168, 225), "reboot": (169, 142), "syslog": (103, 116), "vhangup": (153, 58),
                "sethostname": (170, 161), "setdomainname": (171, 162), "kexec_load": (246, 104),
                "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
                "delete_module": (176, 106), "iopl": (172, -1), "ioperm": (173, -1), "settimeofday": (164, 170),
                "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
            },
        ),
    ),
    conditions=(
        Condition("makes a namespace", "clone", _CLONE, 0, "has any of", NEW_NAMESPACE),
        Condition("reaches a network or a part of the kernel", "socket", _SOCKET, 0, "is not", AF_UNIX),
        Condition("reaches a network or a part of the kernel", "socketpair", _SOCKETPAIR, 0, "is not", AF_UNIX),
        Condition("types into the terminal of whoever started us (TIOCSTI)", "ioctl", _IOCTL, 1, "is", 0x5412),
        Condition("types into a console (TIOCLINUX)", "ioctl", _IOCTL, 1, "is", 0x541C),
        Condition("adds a filter of its own (PR_SET_SECCOMP)", "prctl", _PRCTL, 0, "is", 22),
        Condition("rewrites what /proc tells of it (PR_SET_MM)", "prctl", _PRCTL, 0, "is", 35),
        Condition("keeps neighbours off a core (PR_SCHED_CORE)", "prctl", _PRCTL, 0, "is", 62),
        Condition("merges pages with others' (PR_SET_MEMORY_MERGE)", "prctl", _PRCTL, 0, "is", 67),
        Condition("makes a pipe hold a megabyte (F_SETPIPE_SZ)", "fcntl", _FCNTL, 1, "is", 1031),
        # Pages of a shared mapping live on when they are unmapped page by page, and no process counts them then.
        Condition("shares memory that is no file", "mmap", _MMAP, 3, "has all of", 0x21),
        # In a cell that other is process 1 of the job, which without descriptors or time cannot tell the job's ending.
        Condition("sets limits of another process", "prlimit64", _PRLIMIT, 0, "is not", 0),
        Condition("takes huge pages, which no resident size counts", "mmap", _MMAP, 3, "has any of", 0x40000),
        Condition("moves pages to swap, where nobody counts (MADV_PAGEOUT)", "madvise", _MADVISE, 2, "is", 21),
        Condition("merges pages with others' (MADV_MERGEABLE)", "madvise", _MADVISE, 2, "is", 12),
    ),
)  # fmt: skip
"""What every tier refuses."""

_OF_JOBS = 0x28020000  # CLONE_NEWPID, NEWIPC, NEWNS

IN_A_CELL = EVERYWHERE.only(lambda name: name not in ("mount", "clone")) + Rules(
    groups=(),
    conditions=(
        Condition(
            "makes a namespace that no job is made with", "clone", _CLONE, 0, "has any of", NEW_NAMESPACE & ~_OF_JOBS
        ),
    ),
)
"""What a warm cell takes on once, before its first job, and so every job in it: making a filter ready takes the kernel
0.5 ms. The cell itself has to mount and to make three kinds of namespaces. Both take CAP_SYS_ADMIN, which a job has
given up for good, and the only way to get it back, a new user namespace, is refused."""

WITHOUT_NAMESPACES = Rules(
    groups=(
        Group(
            "leaves the process group, by which alone a program is killed whole",
            {"setsid": (112, 157), "setpgid": (109, 154)},
        ),
        Group(
            "changes the owner, mode, times or attributes of a file, which Landlock does not guard",
            {
                "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
                "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54),
                "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
                "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
                "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
                "removexattrat": (466, 466), "file_setattr": (469, 469),
            },
        ),
        Group(
            "changes the priority or the processors of the user's other processes",
            {
                "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122),
                "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
            },
        ),
        Group(
            "reaches a service of the machine: a socket in a file is not guarded by Landlock; socketpair is left",
            {"socket": _SOCKET},
        ),
    ),
    conditions=(
        # SOCK_DGRAM and SOCK_RAW, and no other kind that a pair may be of, have this bit.
        Condition("sends datagrams to any socket that has a path", "socketpair", _SOCKETPAIR, 1, "has any of", 2),
        Condition("changes flags of a file (FS_IOC_SETFLAGS)", "ioctl", _IOCTL, 1, "is", 0x40086602),
    ),
)  # fmt: skip
"""What is refused besides where a program shares the user's processes and files with everybody else."""

WITHOUT_SIGNAL_SCOPE = Rules(
    groups=(
        Group(
            "signals a process of the user's outside; before Linux 6.12 Landlock cannot tell inside from outside",
            {
                "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424),
                "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "timer_create": (222, 107),
            },
        ),
    ),
    conditions=(
        Condition("has the kernel signal another process (F_SETOWN)", "fcntl", _FCNTL, 1, "is", 8),
        Condition("has the kernel signal another process (F_SETOWN_EX)", "fcntl", _FCNTL, 1, "is", 15),
        Condition("has the kernel signal another process (FIOSETOWN)", "ioctl", _IOCTL, 1, "is", 0x8901),
        Condition("has the kernel signal another process (SIOCSPGRP)", "ioctl", _IOCTL, 1, "is", 0x8902),
    ),
)  # fmt: skip
"""... and where, besides, Landlock is older than signals are to it: a program then cannot even signal itself."""
