"""Hosts as network namespaces, and the links between them (source: ours; tc-tbf(8), veth(4)).

Every host has a veth pair into a switch, which is a bridge in a namespace of its own; with a delay, the relay
takes the bridge's place. Nothing is made in the namespace that the lab was started in.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.lab import relay
from benchmarks.lab.config import LabConfig, LabError, rate_bytes_per_s, require
from benchmarks.lab.namespaces import inside, new_namespace
from shoestring.base.clock import SystemClock

DEVICE = "inter0"
"""A host's side of its link."""
MTU = 9000
MASK = 24
BURST_S = 0.5e-3
BURST_MIN_BYTES = 20_000
"""Two frames. A bucket that is larger lets short messages through at no rate at all."""
LOCAL_BURST_MIN_BYTES = 80_000
"""A loopback's frames are up to 64 KiB."""
QUEUE_S = 0.1
QUEUE_MIN_BYTES = 2**18
LINK_S = 10.0
FIRST_INDEX = 1000
"""Of the switch's ends. Where both ends have one index, the kernel takes a second to notice the link."""
_SIOCGIFFLAGS = 0x8913
_IFF_RUNNING = 0x40
PARTITION = "shoestring_lab"


@dataclass(frozen=True)
class Counters:
    """Bytes that a host's devices counted: frames with their Ethernet, IP and TCP headers.

    Attributes:
        sent_bytes, received_bytes: over its link to other hosts.
        local_bytes: between its own processes, over its loopback.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    local_bytes: int = 0

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(
            self.sent_bytes - earlier.sent_bytes,
            self.received_bytes - earlier.received_bytes,
            self.local_bytes - earlier.local_bytes,
        )


def address(host: int) -> str:
    """A host's IPv4 address on the network between hosts."""
    return f"10.77.0.{host + 1}"


def hardware_address(host: int) -> str:
    """Of a host's link: fixed, so that the relay has nothing to learn."""
    return f"02:00:0a:4d:00:{host + 1:02x}"


def bucket(rate: str, burst_min_bytes: int) -> str:
    """tc's words for a token bucket of this rate: it holds 0.5 ms, its queue 100 ms."""
    bytes_per_s = rate_bytes_per_s(rate)
    burst_bytes = max(burst_min_bytes, round(bytes_per_s * BURST_S))
    limit_bytes = max(QUEUE_MIN_BYTES, round(bytes_per_s * QUEUE_S))
    return f"tbf rate {round(bytes_per_s * 8)}bit burst {burst_bytes} limit {limit_bytes}"


class Network:
    """Namespaces and links of a lab, from construction to `close`.

    Attributes:
        hosts, switch: descriptors of the namespaces.
    """

    def __init__(self, config: LabConfig) -> None:
        self._config = config
        self.hosts: list[int] = []
        self.switch = -1
        try:
            self.switch = new_namespace()
            for _ in range(config.hosts):
                self.hosts.append(new_namespace())
            self._link()
            if config.inter is not None:
                self.set_rate(config.inter, range(config.hosts))
            if config.intra is not None:
                for namespace in self.hosts:
                    _tc(namespace, f"qdisc replace dev lo root {bucket(config.intra, LOCAL_BURST_MIN_BYTES)}")
        except BaseException:
            self.close()
            raise

    @property
    def namespaces(self) -> list[int]:
        """Descriptors of all namespaces, the switch's last."""
        return [*self.hosts, self.switch]

    def close(self) -> None:
        """Let go of the namespaces; they vanish with the last process in them."""
        for namespace in self.namespaces:
            if namespace >= 0:
                os.close(namespace)
        self.hosts, self.switch = [], -1

    def ports(self) -> list[tuple[socket.socket, str]]:
        """What the relay works on: a packet socket at the switch's end of each link, the address behind."""
        with inside(self.switch):
            return [(relay.open_port(_port(host)), hardware_address(host)) for host in range(len(self.hosts))]

    def set_rate(self, rate: str | None, hosts: Sequence[int]) -> None:
        """Shape the links of these hosts, all their traffic together, each way; None: let it flow."""
        words = "noqueue" if rate is None else bucket(rate, BURST_MIN_BYTES)
        for host in hosts:
            _tc(self.hosts[host], f"qdisc replace dev {DEVICE} root {words}")
        _tc(self.switch, *(f"qdisc replace dev {_port(host)} root {words}" for host in hosts))

    def partition(self, groups: Sequence[Sequence[int]]) -> None:
        """Cut what joins hosts of different groups; hosts in none reach all. Replaces an earlier cut."""
        require("nft")
        for host, namespace in enumerate(self.hosts):
            own = [group for group in groups if host in group]
            others = [address(other) for group in groups for other in group if own and group is not own[0]]
            rules = f"table inet {PARTITION}\ndelete table inet {PARTITION}\n"
            if others:
                # On arrival only: a rule on departure would tell the sender (EPERM), as no cut cable does.
                rules += (
                    f"table inet {PARTITION} {{ chain arrivals {{ type filter hook input priority 0; "
                    f"ip saddr {{ {', '.join(others)} }} drop; }}; }}\n"
                )
            _command(namespace, ["nft", "-f", "-"], rules)

    def counters(self, host: int) -> Counters:
        """What the host's devices have counted since they were made."""
        with inside(self.hosts[host]), open("/proc/thread-self/net/dev") as table:
            lines = [line.partition(":") for line in table if ":" in line]
        numbers = {name.strip(): [int(word) for word in words.split()] for name, _, words in lines}
        link, local = numbers[DEVICE], numbers["lo"]
        return Counters(sent_bytes=link[8], received_bytes=link[0], local_bytes=local[8])

    def free_port(self, port: int) -> int:
        """The first port from `port` on that nobody on host 0 listens at."""
        with inside(self.hosts[0]):
            while True:
                with contextlib.suppress(OSError), socket.socket() as probe:
                    probe.bind((address(0), port))
                    return port
                port += 1

    def _link(self) -> None:
        for namespace in self.namespaces:
            with inside(namespace):
                # The network between hosts is IPv4; loopback, which is there already, keeps both.
                for name in ("default", DEVICE):
                    with (
                        contextlib.suppress(FileNotFoundError),
                        open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as switch,
                    ):
                        switch.write("1")
        lines = ["link set lo up"]
        bridged = self._config.delay_ms == 0
        if bridged:
            lines += [
                f"link add switch mtu {MTU} type bridge stp_state 0 mcast_snooping 0",
                "link set switch up",
            ]
        for host, namespace in enumerate(self.hosts):
            lines += [
                f"link add {_port(host)} index {FIRST_INDEX + host} mtu {MTU} type veth "
                f"peer name {DEVICE} mtu {MTU} address {hardware_address(host)} "
                f"netns /proc/{os.getpid()}/fd/{namespace}",
                f"link set {_port(host)} {'master switch ' if bridged else ''}up",
            ]
        _ip(self.switch, *lines)
        for host, namespace in enumerate(self.hosts):
            _ip(
                namespace,
                "link set lo up",
                f"addr add {address(host)}/{MASK} dev {DEVICE}",
                f"link set {DEVICE} up",
            )
        self._wait_for_links()

    def _wait_for_links(self) -> None:
        """The kernel starts a link's queue a moment after it is up, and drops what comes before."""
        clock = SystemClock()
        until_s = clock.now() + LINK_S
        ends = [(self.switch, _port(host)) for host in range(len(self.hosts))]
        ends += [(namespace, DEVICE) for namespace in self.hosts]
        for namespace, device in ends:
            while not _is_running(namespace, device):
                if clock.now() > until_s:
                    raise LabError(f"the link {device} does not come up", "look at dmesg")
                clock.sleep(0.002)


def _is_running(namespace: int, device: str) -> bool:
    with inside(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH22x", device.encode(), 0))
    return bool(struct.unpack("16sH22x", answer)[1] & _IFF_RUNNING)


def _port(host: int) -> str:
    """The switch's side of a host's link."""
    return f"host{host}"


def _ip(namespace: int, *lines: str) -> None:
    _command(namespace, ["ip", "-batch", "-"], "\n".join(lines) + "\n")


def _tc(namespace: int, *lines: str) -> None:
    _command(namespace, ["tc", "-batch", "-"], "\n".join(lines) + "\n")


def _command(namespace: int, argv: list[str], text: str) -> None:
    with inside(namespace):
        done = subprocess.run(argv, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise LabError(
            f"`{' '.join(argv)}` failed: {done.stdout.strip() or done.returncode}; told: {text.strip()}",
            "the kernel needs veth, bridge, sch_tbf and nf_tables, and we need CAP_NET_ADMIN",
        )
