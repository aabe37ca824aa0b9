"""Network of a node: the addresses at which others reach it, and those that it can reach. Standard library only."""

import array
import fcntl
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

CONNECT_TIMEOUT_S = 3.0
_NAME_CHARACTERS = len("/fmfsd-12345678")
_SIOCGIFCONF = 0x8912
_IFREQ_BYTES, _MAX_ADDRESSES = 40, 4096


MACHINE_VARIABLES = ("HOME", "LOGNAME", "TMPDIR", "USER", "CUDA_VISIBLE_DEVICES")
"""Variables whose values are taken from each machine itself, not from the machine that the launch is started on."""


def select_machine_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `environment` that belong to this machine."""
    return {name: environment[name] for name in MACHINE_VARIABLES if name in environment}


def create_scratch_folder(max_length: int = 4096, parent: str = "") -> str:
    """Create a private temporary folder and return its path, which has at most `max_length` characters if possible.

    It is created in `parent`, by default in the folder for temporary files, or in /tmp if that path is too long or
    contains # or ?: torch reads the path as a part of a URL.
    """
    folder = parent or tempfile.gettempdir()
    is_unfit = set("#?") & set(folder) or len(folder) + _NAME_CHARACTERS > max_length
    return tempfile.mkdtemp(prefix="fmfsd-", dir="/tmp" if is_unfit else folder)  # noqa: S108


def reachable_addresses(environment: Mapping[str, str], interface: str | None) -> dict[str, str]:
    """Return the IPv4 addresses at which others may reach this node, the most likely first, with their interfaces.

    Addresses of `interface`; None: of every interface except loopback. The address that ssh connected to comes first,
    then the address of the host name. OSError if there are none.
    """
    here = interface_addresses()
    if interface is not None and interface not in here:
        raise OSError(f"--interface {interface}: does not exist here or has no IPv4 address; found {', '.join(here)}")
    names = [name for name in here if interface in (None, name)]
    interface_of = {
        address: name for name in names for address in here[name] if interface or not address.startswith("127.")
    }
    candidates = [*environment.get("SSH_CONNECTION", "").split()[2:3], *_host_name_addresses(), *interface_of]
    if reachable := {address: interface_of[address] for address in candidates if address in interface_of}:
        return reachable
    raise OSError("no IPv4 address except loopback's")


def interface_addresses() -> dict[str, list[str]]:
    """Return the IPv4 addresses of each interface, the primary address first."""
    requests = array.array("B", bytes(_IFREQ_BYTES * _MAX_ADDRESSES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iL", len(requests), requests.buffer_info()[0]))
    by_interface = dict[str, list[str]]()
    for start in range(0, struct.unpack("iL", answer)[0], _IFREQ_BYTES):
        label, address = struct.unpack("16s4x4s16x", requests[start : start + _IFREQ_BYTES])
        name = label.partition(b"\0")[0].partition(b":")[0].decode()  # eth0:1 labels an address of eth0
        by_interface.setdefault(name, []).append(socket.inet_ntoa(address))
    return by_interface


def find_interface_to(address: str) -> str:
    """Return the interface over which this node reaches `address` of another node. OSError if there is none."""
    source = find_source_address(address)
    for name, local in interface_addresses().items():
        if source in local:
            return name
    raise OSError(f"no interface here has the address {source}, from which {address} is reached")


def find_source_address(address: str) -> str:
    """Return the local address that the kernel uses to reach `address`. OSError if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))  # sends nothing
        return str(sock.getsockname()[0])


def open_listener() -> socket.socket:
    """Return a non-blocking socket that listens on a free port."""
    listener = socket.create_server(("", 0))
    listener.setblocking(False)
    return listener


def reserve_port(port: int) -> socket.socket:
    """Bind `port` without listening, so that the kernel does not assign it as a free port.

    Another process may still listen on it. OSError if it is in use.
    """
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
    except OSError:
        sock.close()
        raise
    return sock


def send_token(listener: socket.socket, token: str) -> None:
    """Send the token to every client that has connected since the last call."""
    with suppress(BlockingIOError):  # no client is left
        while True:
            with suppress(ConnectionError), listener.accept()[0] as client:
                client.sendall(token.encode())


def find_reachable(candidates: Sequence[str], port: int, token: str) -> list[str]:
    """Return the addresses of `candidates` at which a node answers with the token."""
    return [address for address in candidates if _read_token(address, port) == token]


def _read_token(address: str, port: int) -> str:
    try:
        with socket.create_connection((address, port), CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(CONNECT_TIMEOUT_S)
            return connection.makefile().read(1000)
    except (OSError, ValueError):
        return ""


def _host_name_addresses() -> list[str]:
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    except OSError:
        return []
