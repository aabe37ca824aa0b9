"""A node and its network: where others may reach it, and whether it reaches them. The standard library only."""

import array
import fcntl
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

REACH_S = 3.0
_OWN_CHARACTERS = len("/fmfsd-12345678")
_SIOCGIFCONF = 0x8912
_IFREQ_BYTES, _MOST_ADDRESSES = 40, 4096


MACHINES_OWN = ("HOME", "LOGNAME", "TMPDIR", "USER", "CUDA_VISIBLE_DEVICES")
"""Variables that each machine knows better than the one that a launch is started on."""


def own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in MACHINES_OWN if name in environment}


def scratch_folder(longest: int = 4096, parent: str = "") -> str:
    """A new folder of ours alone, with a path of so many characters at most if that can be had.

    It is in `parent` if one is named. torch reads its name as a part of a URL, in which # and ? have a meaning.
    """
    usual = parent or tempfile.gettempdir()
    unfit = set("#?") & set(usual) or len(usual) + _OWN_CHARACTERS > longest
    return tempfile.mkdtemp(prefix="fmfsd-", dir="/tmp" if unfit else usual)  # noqa: S108


def addresses(environment: Mapping[str, str], interface: str | None) -> dict[str, str]:
    """IPv4 addresses that others may reach this node at, the likeliest first, and the interface of each.

    Of all `interface`'s only; or of every interface but loopback. First the one that ssh came to, then the host name's.
    OSError if there are none.
    """
    here = interface_addresses()
    if interface is not None and interface not in here:
        raise OSError(f"--interface {interface}: not here or without an IPv4 address; there are {', '.join(here)}")
    names = [name for name in here if interface in (None, name)]
    own = {address: name for name in names for address in here[name] if interface or not address.startswith("127.")}
    likely = [*environment.get("SSH_CONNECTION", "").split()[2:3], *_of_host_name(), *own]
    if found := {address: own[address] for address in likely if address in own}:
        return found
    raise OSError("it has no IPv4 address except loopback's")


def interface_addresses() -> dict[str, list[str]]:
    """Each interface's IPv4 addresses, the primary one first."""
    requests = array.array("B", bytes(_IFREQ_BYTES * _MOST_ADDRESSES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iL", len(requests), requests.buffer_info()[0]))
    found = dict[str, list[str]]()
    for start in range(0, struct.unpack("iL", answer)[0], _IFREQ_BYTES):
        label, address = struct.unpack("16s4x4s16x", requests[start : start + _IFREQ_BYTES])
        name = label.partition(b"\0")[0].partition(b":")[0].decode()  # eth0:1 is a label of an address of eth0
        found.setdefault(name, []).append(socket.inet_ntoa(address))
    return found


def interface_to(address: str) -> str:
    """The interface that this node reaches `address`, another node's, over. OSError if there is none."""
    source = source_to(address)
    for name, own in interface_addresses().items():
        if source in own:
            return name
    raise OSError(f"no interface here has the address {source}, which {address} is reached from")


def source_to(address: str) -> str:
    """The address of this node that the kernel uses to reach `address`. OSError if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))  # sends nothing
        return str(sock.getsockname()[0])


def listen() -> socket.socket:
    """On a port that is free here."""
    listener = socket.create_server(("", 0))
    listener.setblocking(False)
    return listener


def hold(port: int) -> socket.socket:
    """Keep a port that nobody listens on from being given away as a free one; who knows of it may listen there.

    OSError if somebody does already.
    """
    holder = socket.socket()
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", port))
    except OSError:
        holder.close()
        raise
    return holder


def greet(listener: socket.socket, word: str) -> None:
    """Tell all who have connected meanwhile that it is us."""
    with suppress(BlockingIOError):  # nobody is left
        while True:
            with suppress(ConnectionError), listener.accept()[0] as caller:
                caller.sendall(word.encode())


def reached(candidates: Sequence[str], port: int, word: str) -> list[str]:
    """Those of the addresses at which somebody who knows the word answers."""
    return [address for address in candidates if _says(address, port) == word]


def _says(address: str, port: int) -> str:
    try:
        with socket.create_connection((address, port), REACH_S) as connection:
            connection.settimeout(REACH_S)
            return connection.makefile().read(1000)
    except (OSError, ValueError):
        return ""


def _of_host_name() -> list[str]:
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    except OSError:
        return []
