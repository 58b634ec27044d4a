"""A switch in user space that holds every frame for a while (source: ours; packet(7)).

For kernels without netem. Reads from one packet socket per port and writes to that of the destination, after
the delay. Frames travel with their virtio header, so that what the sender's stack left as one large segment
(up to 64 KiB), its checksum still to be filled in, crosses in one system call each way. Standard library.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import sys
import time

SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 0x0003
HEADER_BYTES = 10
FRAME_BYTES = 2**16 + 128
BATCH = 32
"""Frames read from one port before the others get their turn and what is due is sent."""
HELD_LIMIT_BYTES = 256 * 2**20
BUFFER_BYTES = 32 * 2**20


def open_port(device: str) -> socket.socket:
    """A packet socket on a device of the calling thread's namespace, for `relay`."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    # The device's own queue is to be what overflows, as in a real switch.
    port.setsockopt(socket.SOL_SOCKET, 33, BUFFER_BYTES)  # SO_RCVBUFFORCE
    port.setsockopt(socket.SOL_SOCKET, 32, BUFFER_BYTES)  # SO_SNDBUFFORCE
    port.bind((device, ETH_P_ALL))
    port.setblocking(False)
    return port


def relay(ports: list[socket.socket], addresses: list[bytes], delay_s: float) -> None:
    """Pass frames on for ever.

    Args:
        addresses: hardware address behind each port, 6 bytes; frames to another go to every other port.
        delay_s: between arrival and departure.
    """
    port_of = dict(zip(addresses, ports, strict=True))
    held: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
    held_bytes = 0
    buffer = bytearray(FRAME_BYTES)
    view = memoryview(buffer)
    while True:
        wait_s = max(0.0, held[0][0] - time.monotonic()) if held else None
        for port in select.select(ports, [], [], wait_s)[0]:
            for _ in range(BATCH):
                try:
                    size = port.recv_into(buffer)
                except BlockingIOError:
                    break
                if held_bytes > HELD_LIMIT_BYTES:
                    continue
                frame = bytes(view[:size])
                due_s = time.monotonic() + delay_s
                to = frame[HEADER_BYTES : HEADER_BYTES + 6]
                for target in (port_of[to],) if to in port_of else [one for one in ports if one is not port]:
                    held.append((due_s, target, frame))
                    held_bytes += size
        now_s = time.monotonic()
        while held and held[0][0] <= now_s:
            _, target, frame = held.popleft()
            held_bytes -= len(frame)
            # A full queue drops the frame, as switches do; a port that is down loses it.
            with contextlib.suppress(BlockingIOError, OSError):
                target.send(frame)


def main(delay_s: float, ports: list[str]) -> None:
    """Relay between inherited sockets, each given as `descriptor/hardware address`."""
    # Late frames would be delay that nobody asked for; the ranks keep the cores busy.
    with contextlib.suppress(OSError):
        os.nice(-10)
    sockets = [socket.socket(fileno=int(port.split("/")[0])) for port in ports]
    addresses = [bytes.fromhex(port.split("/")[1].replace(":", "")) for port in ports]
    for one in sockets:
        one.setblocking(False)
    relay(sockets, addresses, delay_s)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
