"""Secrets that can be told from everything else, an app that says them all, and a look for what is left of them."""

import base64
import json
import re
from pathlib import Path

from pytest_esp import SimApp
from pytest_esp.wire.loop import call_later

BUILD = Path(__file__).parents[1] / "firmware" / "build" / "esp32c3"
# In hex, so that no traceback that shows this file has them in it.
PASSWORD = bytes.fromhex("5a71374bc3bc7262697322272e34322f6a").decode()
TOKEN = bytes.fromhex("746f6b2d3866336137376332653139623464").decode()
KEY = bytes.fromhex("9f31e68cab17d4425ee0b9837ac5106d2bf894a1c7563e0fd8714c92b56ae32d")
PASSKEY = 482913 * 7
PEM = (
    "-----BEGIN PRIVATE KEY-----\n"
    + "\n".join(base64.b64encode(KEY[::step] * 3).decode()[:48] for step in (1, -1))
    + "\n-----END PRIVATE KEY-----\n"
)
NOT_SECRET = "broker.example.com"

PROVISIONING = {
    "wifi": {"ssid": "Werk 3", "password": PASSWORD, "store": "both"},
    "credentials": {"api": TOKEN, "hmac": {"type": "blob", "value": KEY.hex()}, "pem": PEM, "passkey": PASSKEY},
}
VALUES = {
    "app": {"host": NOT_SECRET, "deviceToken": TOKEN},
    "wifi": {"ssid": "Werk 3", "password": PASSWORD},
    "credentials": PROVISIONING["credentials"],
}


class LeakyApp(SimApp):
    """Says all its secrets in all forms: also in two pieces, among colours, and without an end of the line."""

    def start(self):
        """Say them."""
        rows = [KEY[:16].hex(" "), KEY[16:].hex(" ").upper(), ", ".join(f"0x{byte:02x}" for byte in KEY)]
        lines = [
            f'wifi: connecting to "Werk 3" with "{PASSWORD}"',
            f"\x1b[0;32mI (310) wifi: {PASSWORD}\x1b[0m",
            f"\x1b[1mpa\x1b[0m {PASSWORD[:5]}\x1b[31m{PASSWORD[5:]}\x1b[0m",
            f"mqtt: {json.dumps({'pass': PASSWORD, 'token': TOKEN})} at {NOT_SECRET}",
            f"psk {PASSWORD.encode().hex()} {base64.b64encode(PASSWORD.encode()).decode()}",
            f"Authorization: Basic {base64.b64encode(b'me:' + PASSWORD.encode()).decode()}",
            f"hmac {KEY.hex().upper()} passkey {PASSKEY} url mqtt://me:{TOKEN}@{NOT_SECRET}",
            *rows,
            *PEM.splitlines(),
        ]
        self.send("".join(f"{line}\r\n" for line in lines).encode())
        self.send(b"raw " + KEY + b"\r\n")
        self.send(b"split " + PASSWORD.encode()[:6])
        self._rest = call_later(0.05, self._end)

    def stop(self):
        """The chip was reset."""
        self._rest.cancel()

    def _end(self):
        self.send(PASSWORD.encode()[6:] + b"\r\nready; last words: " + TOKEN.encode()[:-3])


def _fragments(text, size):
    return {text[at : at + size] for at in range(len(text) - size + 1)}


def _forbidden():
    """Return the pieces by which a secret would be told, as regular expressions of bytes."""
    found = {*_fragments(TOKEN.encode(), 8), *_fragments(KEY, 6), *_fragments(str(PASSKEY).encode(), 7)}
    found |= {*_fragments(PASSWORD.encode(), 7), *_fragments(json.dumps(PASSWORD).encode(), 10)}
    for secret in (PASSWORD.encode(), TOKEN.encode(), KEY):
        for digits in (secret.hex(), secret.hex().upper(), secret.hex(" "), secret.hex(" ").upper()):
            found |= _fragments(digits.encode(), 20)
        for before in (b"", b"m", b"me"):
            found |= _fragments(base64.b64encode(before + secret)[4:-4], 9)
    for line in PEM.splitlines():
        if not line.startswith("---"):
            found |= _fragments(line.encode(), 12)
    return re.compile(b"|".join(re.escape(one) for one in sorted(found)))


_FORBIDDEN = _forbidden()


def leaks_in(data, what=""):
    """Return where *data* (text or bytes) has a piece of a secret, with what stands around it."""
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    return [(what, raw[max(0, match.start() - 40) : match.end() + 20]) for match in _FORBIDDEN.finditer(raw)]


def leaks_below(folder):
    """Return the same for all files in *folder*, by name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [leak for path in files for leak in leaks_in(path.read_bytes(), path.relative_to(folder))]
