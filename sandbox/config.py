"""The sandbox's part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox.program import Limits
from sandbox.service_config import RemoteConfig, ServiceConfig

ISOLATIONS = ("bubblewrap", "landlock", "unsafe")
"""What this machine itself can do."""
TIERS = (*ISOLATIONS, "remote")
PLACEMENTS = ("worker", "node")


@dataclass(frozen=True)
class SandboxConfig:
    """How strangers' programs are run.

    Attributes:
        isolation: "bubblewrap"; "landlock" where user namespaces are forbidden; "remote": in the services of `remote`;
            or "unsafe": a plain process with resource limits only, for trusted programs.
        size: programs that one pool runs at the same time; with "remote", that it has under way at the services.
        limits: what each program may use.
        bwrap: path or name of the bubblewrap executable.
        cgroup: a folder of cgroup v2 that is delegated to this user, in which each cell gets a group with the kernel's
            own limits on memory and processes; "" is none.
        placement: "worker" gives each rollout worker a pool of its own; "node" starts Ray actors with a pool each,
            which all workers share.
        num_actors: actors of placement "node" in all, dealt to the nodes in turn; 0 is one for each node.
        remote: the services of the remote tier.
        service: `cispo sandbox serve`, the other end of it.
    """

    isolation: str = "bubblewrap"
    size: int = 1
    limits: Limits = field(default_factory=Limits)
    bwrap: str = "bwrap"
    cgroup: str = ""
    placement: str = "worker"
    num_actors: int = 0
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)

    def __post_init__(self) -> None:
        if self.isolation not in TIERS:
            raise ValueError(f"sandbox.isolation must be one of {', '.join(TIERS)}, got {self.isolation!r}")
        if self.size < 1:
            raise ValueError(f"sandbox.size must be at least 1, got {self.size}")
        if self.placement not in PLACEMENTS:
            raise ValueError(f"sandbox.placement must be one of {', '.join(PLACEMENTS)}, got {self.placement!r}")
        if self.num_actors < 0:
            raise ValueError(f"sandbox.num_actors must not be negative, got {self.num_actors}")
        if self.isolation == "remote" and not self.remote.urls:
            raise ValueError("sandbox.isolation=remote needs sandbox.remote.urls=[http://host:port,...]")
        if self.isolation == "remote" and self.placement == "node":
            raise ValueError(
                "sandbox.placement=node has no use with isolation=remote, whose services are shared anyway"
            )
