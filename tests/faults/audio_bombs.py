"""Audio files made to harm: a few bytes that claim hours, thousands of channels, gigabytes, or lead elsewhere."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import soundfile

RATE = 16_000
LARGEST = 2**32 - 1
Bomb = Callable[[random.Random], tuple[str, bytes]]


def chunk(name: bytes, data: bytes, size: int | None = None) -> bytes:
    """A RIFF chunk, of a size that need not be its own."""
    return name + struct.pack("<I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2)


def wav(
    samples: bytes = bytes(3200),
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    kind: int = 1,
    align: int | None = None,
    data_size: int | None = None,
    before: bytes = b"",
    extra: bytes = b"",
) -> bytes:
    """A WAV whose header says what is given."""
    align = channels * bits // 8 if align is None else align
    fields = struct.pack("<HHIIHH", kind, channels, rate, rate * align & LARGEST, align & 0xFFFF, bits) + extra
    body = b"WAVE" + chunk(b"fmt ", fields) + before + chunk(b"data", samples, data_size)
    return chunk(b"RIFF", body)


def written(samples: np.ndarray, format: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    """What soundfile writes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def flac_claim(samples: int, rate: int, channels: int, bits: int = 16) -> bytes:
    """A short FLAC that claims so much."""
    data = bytearray(written(np.zeros(1600), "FLAC"))
    packed = rate << 44 | (channels - 1) << 41 | (bits - 1) << 36 | samples
    data[18:26] = packed.to_bytes(8, "big")
    return bytes(data)


def box(name: bytes, data: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I4s", len(data) + 8 if size is None else size, name) + data


def mp4(
    boxes: bytes = b"", timescale: int = RATE, duration: int = 0, stts: tuple[int, int] = (1, 1024), sizes: int = 1,
    size: int = 16, channels: int = 1, kind: bytes = b"sowt", rate: int = RATE << 16,
) -> bytes:  # fmt: skip
    """A small MOV of PCM, whose tables say what is given."""
    entry = box(kind, bytes(6) + struct.pack(">HHHIHHHHI", 1, 0, 0, 0, channels, 16, 0, 0, rate))
    stbl = box(b"stsd", struct.pack(">II", 0, 1) + entry)
    stbl += box(b"stts", struct.pack(">IIII", 0, 1, *stts))
    stbl += box(b"stsc", struct.pack(">IIIII", 0, 1, 1, sizes, 1))
    stbl += box(b"stsz", struct.pack(">III", 0, size, sizes))
    stbl += box(b"stco", struct.pack(">III", 0, 1, 28))
    minf = box(b"smhd", bytes(8)) + box(b"stbl", stbl)
    mdhd = box(b"mdhd", struct.pack(">IIIIIHH", 0, 0, 0, timescale, duration, 0, 0))
    hdlr = box(b"hdlr", struct.pack(">II4s", 0, 0, b"soun") + bytes(13))
    trak = box(b"trak", box(b"mdia", mdhd + hdlr + box(b"minf", minf)))
    mvhd = box(b"mvhd", struct.pack(">IIIII", 0, 0, 0, timescale, duration) + bytes(80))
    return box(b"ftyp", b"qt  \0\0\0\0qt  ") + box(b"mdat", bytes(3200)) + boxes + box(b"moov", mvhd + trak)


def caf(rate: float, channels: int, frames: int, size: int, bits: int = 16, kind: bytes = b"lpcm") -> bytes:
    desc = struct.pack(">d4sIIIII", rate, kind, 0, 2 * channels & LARGEST, 1, channels & LARGEST, bits)
    pakt = struct.pack(">qqii", frames, frames, 0, 0)
    chunks = [(b"desc", desc, None), (b"pakt", pakt, None), (b"data", bytes(3204), size)]
    body = b"".join(name + struct.pack(">q", len(data) if n is None else n) + data for name, data, n in chunks)
    return b"caff\0\1\0\0" + body


def aiff(rate: bytes, channels: int, frames: int, bits: int = 16) -> bytes:
    comm = struct.pack(">hIh", channels, frames, bits) + rate
    body = b"AIFFCOMM" + struct.pack(">I", len(comm)) + comm + b"SSND" + struct.pack(">III", 3208, 0, 0) + bytes(3200)
    return b"FORM" + struct.pack(">I", len(body)) + body


def au(rate: int, channels: int, size: int, encoding: int = 3) -> bytes:
    return b".snd" + struct.pack(">IIIII", 24, size, encoding, rate, channels) + bytes(3200)


def nist(channels: int, rate: int = RATE, width: int = 2) -> bytes:
    fields = f"channel_count -i {channels}\nsample_rate -i {rate}\nsample_n_bytes -i {width}"
    return f"NIST_1A\n   1024\n{fields}\nsample_count -i {2**31 - 1}\nend_head\n".encode().ljust(1024) + bytes(3200)


def ebml(name: int, data: bytes, unknown: bool = False) -> bytes:
    size = b"\x01" + (b"\xff" * 7 if unknown else len(data).to_bytes(7, "big"))
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + size + data


def webm(duration: bytes, rate: bytes, channels: int = 1, deep: bytes = b"") -> bytes:
    """A Matroska of PCM."""
    track = ebml(0xD7, b"\1") + ebml(0x83, b"\2") + ebml(0x86, b"A_PCM/INT/LIT")
    track += ebml(0xE1, ebml(0xB5, rate) + ebml(0x9F, channels.to_bytes(4, "big")) + ebml(0x6264, b"\x10"))
    info = ebml(0x2AD7B1, (1_000_000).to_bytes(3, "big")) + ebml(0x4489, duration)
    cluster = ebml(0xE7, b"\0") + ebml(0xA3, b"\x81\0\0\x80" + bytes(3200))
    head = ebml(0x1A45DFA3, ebml(0x4282, b"matroska"))
    segment = ebml(0x1549A966, info) + ebml(0x1654AE6B, ebml(0xAE, track)) + deep + ebml(0x1F43B675, cluster)
    return head + ebml(0x18538067, segment)


def id3(claimed: int, data: bytes = b"") -> bytes:
    return b"ID3\4\0\0" + bytes(claimed >> shift & 127 for shift in (21, 14, 7, 0)) + data


def mp3(seconds: float = 1.0) -> bytes:
    return written(0.1 * np.sin(np.arange(round(RATE * seconds)) / 9), "MP3")


def mp3_claim(frames: int, size: int) -> bytes:
    data = bytearray(mp3())
    place = max(data.find(b"Xing"), data.find(b"Info"))
    data[place + 8 : place + 16] = struct.pack(">II", frames, size)
    return bytes(data)


def flac_silence(hours: float, channels: int) -> bytes:
    """Hours in some kB: the first frame of a constant FLAC again and again, with numbers and checksums of its own."""
    count = round(hours * 3600 * RATE / 65_535)
    frames = []
    for number in range(count):
        utf = _utf8(number)
        head = b"\xff\xf8" + bytes([0x70 | 0x05, (channels - 1) << 4 | 0x08]) + utf + struct.pack(">H", 65_534)
        head += bytes([_crc(head, 8, 0x07)])
        body = head + b"\0\0\0" * channels
        frames.append(body + struct.pack(">H", _crc(body, 16, 0x8005)))
    packed = RATE << 44 | (channels - 1) << 41 | 15 << 36 | count * 65_535
    info = struct.pack(">HH", 65_535, 65_535) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    return b"fLaC\x80\0\0\x22" + info + b"".join(frames)


def _utf8(number: int) -> bytes:
    return chr(number).encode("utf-8", "surrogatepass")


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    value, top = 0, 1 << (bits - 1)
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & (2 * top - 1)
    return value


def floats(*values: float, channels: int = 1, bits: int = 32) -> bytes:
    samples = np.array(values * 1600, dtype=f"<f{bits // 8}")
    return wav(samples.tobytes(), channels, bits=bits, kind=3)


def extended(rate: float) -> bytes:
    """A number as AIFF has it, in 80 bits."""
    mantissa, exponent = np.frexp(rate)
    return struct.pack(">HQ", int(exponent) + 16382, int(float(mantissa) * 2**64) & (2**64 - 1))


def opus(preskip: int = 312, channels: int = 1, mapping: int = 0, granule: int | None = None) -> bytes:
    from audio_fields import mended

    data = bytearray(written(0.1 * np.sin(np.arange(RATE) / 9), "OGG", "OPUS"))
    head = data.index(b"OpusHead")
    data[head + 9] = channels & 255
    data[head + 10 : head + 12] = struct.pack("<H", preskip)
    data[head + 18] = mapping
    if granule is not None:
        last = data.rindex(b"OggS")
        data[last + 6 : last + 14] = struct.pack("<Q", granule & (2**64 - 1))
    return mended(bytes(data))


def nested_chunks(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = chunk(b"LIST", b"INFO" + data)
    return data


def nested_boxes(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = box(b"moov", data)
    return data


def nested_elements(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = ebml(0x1254C367, data)
    return data


def text(suffix: str, content: str) -> Bomb:
    return lambda number: (suffix, content.encode())


NAN8, INF8, HUGE8 = (struct.pack(">d", value) for value in (float("nan"), float("inf"), 1e300))
HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
# What each is stands in its own line; some draw their numbers.
BOMBS: tuple[Bomb, ...] = (
    # Claims of length
    lambda n: (".wav", wav(data_size=n.choice((LARGEST, 2**31, 2**31 - 1, 0x7FFF0000, 10**9)))),
    lambda n: (".flac", flac_claim(2**36 - 1, RATE, 1)),
    lambda n: (".flac", flac_claim(2**36 - 1, 655_350, 8, 32)),
    lambda n: (".flac", flac_claim(n.randrange(2**36), n.randrange(1, 2**20), n.randrange(1, 9))),
    lambda n: (".flac", flac_silence(n.choice((0.05, 0.2)), 1)),
    lambda n: (".flac", flac_silence(0.02, 8)),
    lambda n: (".mp3", mp3_claim(LARGEST, LARGEST)),
    lambda n: (".mp3", mp3_claim(n.choice((0, 1, 2**31, 10**7)), n.choice((0, 1, 2**31, 10**9)))),
    lambda n: (".opus", opus(granule=2**63 - 1)),
    lambda n: (".opus", opus(granule=n.choice((-1, -2, 2**62, 10**15)))),
    lambda n: (".caf", caf(RATE, 1, 2**62, n.choice((-1, 2**62, 0, -2)))),
    lambda n: (".aiff", aiff(extended(RATE), 1, LARGEST)),
    lambda n: (".au", au(RATE, 1, n.choice((LARGEST, 2**31, 0)))),
    lambda n: (".mov", mp4(duration=LARGEST, timescale=1)),
    lambda n: (".mov", mp4(sizes=n.choice((LARGEST, 2**31, 10**8)), size=n.choice((0, 1, 16, 2**31)))),
    lambda n: (".mov", mp4(stts=(LARGEST, n.choice((0, 1, LARGEST))))),
    lambda n: (".mov", mp4(timescale=n.choice((0, 1, LARGEST, 2**31)))),
    lambda n: (".mka", webm(n.choice((NAN8, INF8, HUGE8, struct.pack(">d", -1e300))), struct.pack(">d", RATE))),
    lambda n: (".mp3", id3(2**28 - 1) + mp3()),
    lambda n: (".mp3", id3(n.randrange(2**28), b"APIC" + bytes(100)) + mp3()),
    # Channels and rates
    lambda n: (".wav", wav(channels=n.choice((0, 65_535, 1025, 1024, 256)))),
    lambda n: (".wav", wav(samples=bytes(204_800), channels=1024, rate=1_000_000)),
    lambda n: (".wav", wav(samples=bytes(204_800), channels=1024, rate=n.choice((RATE, 1_000_000)), data_size=LARGEST)),
    lambda n: (".wav", wav(rate=n.choice((0, 1, 7, 999, 1_000_001, 2**31, LARGEST)))),
    lambda n: (".wav", wav(bits=n.choice((0, 1, 7, 12, 64, 255, 65_535)))),
    lambda n: (".wav", wav(align=n.choice((0, 1, 3, 65_535)))),
    lambda n: (".au", au(RATE, n.choice((LARGEST, 2**31, 1024, 0)), LARGEST)),
    lambda n: (".au", au(n.choice((0, 1, LARGEST, 2**31)), 1, LARGEST, n.choice((1, 3, 23, 24, 27)))),
    lambda n: (".caf", caf(n.choice((float("nan"), float("inf"), 1e308, -1.0, 0.0, 1e-300)), 1, 10, -1)),
    lambda n: (".caf", caf(RATE, n.choice((LARGEST, 2**31, 1024, 0)), 10, -1)),
    lambda n: (".caf", caf(RATE, n.choice((1, 8)), 2**62, n.choice((-1, 3204)), kind=b"alac")),
    lambda n: (".aiff", aiff(n.choice((b"\x7f\xff" + b"\xff" * 8, bytes(10), b"\xff" * 10, extended(1e300))), 1, 1600)),
    lambda n: (".aiff", aiff(extended(RATE), n.choice((-1, 0, 32_767, 1024)), 1600)),
    lambda n: (
        ".mka",
        webm(struct.pack(">d", 100.0), n.choice((NAN8, INF8, HUGE8, bytes(8), struct.pack(">d", 1e-9)))),
    ),
    lambda n: (".mka", webm(struct.pack(">d", 100.0), struct.pack(">d", RATE), n.choice((LARGEST, 2**31, 0, 255)))),
    lambda n: (".mov", mp4(channels=n.choice((0, 65_535, 255, 64)))),
    lambda n: (".mov", mp4(rate=n.choice((0, 1, LARGEST)))),
    lambda n: (".opus", opus(preskip=65_535)),
    lambda n: (".opus", opus(channels=n.choice((0, 255, 8)), mapping=n.choice((0, 1, 2, 255)))),
    # Samples that are no numbers, or at the ends of what there is
    lambda n: (".wav", floats(float("nan"))),
    lambda n: (".wav", floats(0.1, 0.2, float("inf"))),
    lambda n: (".wav", floats(3e38, 3e38, channels=2)),
    lambda n: (".wav", floats(3e38, -3e38, 1e38)),
    lambda n: (".wav", floats(1e-45, -1e-45)),
    lambda n: (".wav", floats(1e300, 1e-300, bits=64)),
    lambda n: (".wav", wav(np.full(1600, 3e38, "<f4").tobytes(), rate=8000, bits=32, kind=3)),
    # Codecs in a WAV
    lambda n: (
        ".wav",
        wav(kind=2, bits=4, align=n.choice((0, 1, 7, 65_535)), extra=struct.pack("<HHH", 32, n.choice((0, 65_535)), 7)),
    ),
    lambda n: (".wav", wav(kind=2, bits=4, align=256, extra=struct.pack("<HHH", 32, 500, 65_535) + bytes(28))),
    lambda n: (
        ".wav",
        wav(
            kind=0x11, bits=4, align=n.choice((0, 4, 5, 65_535)), extra=struct.pack("<HH", 2, n.choice((0, 1, 65_535)))
        ),
    ),
    lambda n: (
        ".wav",
        wav(kind=0x31, bits=0, align=n.choice((0, 65, 1)), extra=struct.pack("<HH", 2, n.choice((0, 320, 65_535)))),
    ),
    lambda n: (".wav", wav(kind=0x55, bits=0, align=1, extra=struct.pack("<H", 12) + bytes(12))),
    lambda n: (".wav", wav(kind=n.randrange(65_536), bits=n.choice((0, 8, 16)))),
    lambda n: (".wav", wav(kind=0xFFFE, extra=struct.pack("<HHI", 22, 16, LARGEST) + n.randbytes(16))),
    # Chunks, boxes, tags
    lambda n: (".wav", wav(before=nested_chunks(n.choice((10, 200))))),
    lambda n: (".wav", wav(before=chunk(b"junk", b"") * n.choice((999, 1001, 5_000)))),
    lambda n: (".wav", wav(before=chunk(b"LIST", b"INFO" + chunk(b"ICMT", b"x" * 5000) * 20))),
    lambda n: (".wav", wav(before=chunk(b"cue ", struct.pack("<I", LARGEST)))),
    lambda n: (".wav", wav(before=chunk(b"smpl", struct.pack("<9I", *[LARGEST] * 9)))),
    lambda n: (".wav", wav(before=chunk(b"bext", b"", n.choice((0, 601, LARGEST))))),
    lambda n: (".wav", wav(before=chunk(b"PEAK", struct.pack("<II", 1, LARGEST)))),
    lambda n: (
        ".wav",
        chunk(
            b"RF64",
            b"WAVE" + chunk(b"ds64", struct.pack("<QQQI", 2**63, 2**63, 2**63, LARGEST)) + wav(data_size=LARGEST)[12:],
        ),
    ),
    lambda n: (".mp4", b"\0\0\0\x10ftypisom\0\0\0\0" + nested_boxes(n.choice((10, 1000, 10_000)))),
    lambda n: (".mov", mp4(boxes=box(b"free", b"", n.choice((0, 1, 7, LARGEST))))),
    lambda n: (
        ".mka",
        webm(struct.pack(">d", 100.0), struct.pack(">d", RATE), deep=nested_elements(n.choice((10, 500)))),
    ),
    lambda n: (".mp3", b"".join(id3(20, bytes(20)) for _ in range(n.choice((1, 50, 5000)))) + mp3()),
    lambda n: (".ogg", opus() + opus() + opus()),
    lambda n: (
        ".ogg",
        written(0.1 * np.sin(np.arange(RATE) / 9), "OGG", "VORBIS")
        + written(np.zeros((9000, 2)), "OGG", "VORBIS", 48_000),
    ),
    lambda n: (".flac", written(np.zeros(RATE), "FLAC") * 2),
    lambda n: (".mp3", mp3() + written(0.1 * np.sin(np.arange(44_100) / 9), "MP3", rate=44_100)),
    lambda n: (".sph", nist(n.choice((0, 2**31 - 1, 1024, -1)))),
    lambda n: (".sph", nist(1, n.choice((0, -1, 2**31 - 1)), n.choice((0, 2, 99)))),
    # What is no audio, or leads elsewhere
    text(".mp3", HLS),
    text(".m4a", "ffconcat version 1.0\nfile /etc/hostname\n"),
    text(".mp4", '<?xml version="1.0"?><MPD><Period><BaseURL>http://localhost:9/x</BaseURL></Period></MPD>'),
    text(".wav", "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n"),
    text(".webm", "<!DOCTYPE html><html></html>" * 50),
    text(".flac", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    text(".wav", ""),
    lambda n: (".flac", b"fLaC" + zlib.compress(bytes(10**7))),
    lambda n: (".wav", b"PK\3\4" + n.randbytes(3000)),
    lambda n: (".mov", mp4().replace(b"stco", b"alis")),
    lambda n: (n.choice((".wav", ".mp3", ".flac", ".amr")), n.randbytes(n.choice((1, 10, 1000, 100_000)))),
    lambda n: (".amr", b"#!AMR\n" + bytes([n.randrange(256)]) * n.choice((1, 1000, 100_000))),
    lambda n: (".aac", b"\xff\xf1\x50\x80" * n.choice((1, 1000, 20_000))),
)
