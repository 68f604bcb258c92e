"""Where the numbers are in the headers of audio files, and how checksums are made right when these have changed."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

# Of RIFF's and IFF's chunks: the widths of the numbers in them.
CHUNKS = {
    b"fmt ": (2, 2, 4, 4, 2, 2, 2, 2, 4, 2),
    b"fact": (4,),
    b"ds64": (8, 8, 8, 4, 4, 8),
    b"avih": (4,) * 14,
    b"strh": (4, 4, 4, 2, 2, *(4,) * 8),
    b"strf": (2, 2, 4, 4, 2, 2, 2),
    b"COMM": (2, 4, 2, 2, 8),
    b"SSND": (4, 4),
    b"desc": (8, 4, 4, 4, 4, 4, 4),
    b"pakt": (8, 8, 4, 4, 1, 1),
    b"kuki": (4,) * 6,
}
MP4_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta")
EBML_FOLDERS = (0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0xE1, 0x1F43B675, 0xA0, 0x114D9B74, 0x4DBB)
DEEPEST = 6


class Number(NamedTuple):
    """A whole number of `width` bytes, or of `bits` of them, `shift` from the lowest."""

    place: int
    width: int
    order: str
    shift: int = 0
    bits: int = 0


def numbers_of(data: bytes) -> list[Number]:
    """The numbers of a file's header, by its first bytes; of a format that is not known here none."""
    head = data[:12]
    if head[:4] in (b"RIFF", b"RF64", b"RIFX", b"FORM", b"caff"):
        return list(_chunks(data, "big" if head[:4] in (b"RIFX", b"FORM", b"caff") else "little"))
    if head[:4] == b"fLaC":
        return list(_flac(data))
    if head[:4] == b"OggS":
        return list(_ogg(data))
    if head[4:8] == b"ftyp":
        return list(_boxes(data, 0, len(data)))
    if head[:4] == b"\x1aE\xdf\xa3":
        return list(_elements(data, 0, len(data)))
    if data[:3] == b"ID3" or (data[:1] == b"\xff" and data[1] & 0xE0 == 0xE0):
        return list(_frames(data))
    return [Number(place, width, "big") for width in (2, 4) for place in range(0, min(64, len(data)), 2)]


def with_value(data: bytes, field: Number, value: int) -> bytes:
    """The data with another number in that place."""
    whole = int.from_bytes(data[field.place : field.place + field.width], field.order)
    bits = field.bits or 8 * field.width
    mask = (2**bits - 1) << field.shift
    whole = (whole & ~mask) | ((value << field.shift) & mask)
    end = field.place + field.width
    return data[: field.place] + whole.to_bytes(field.width, field.order) + data[end:]


def value_of(data: bytes, field: Number) -> int:
    """The number in that place."""
    whole = int.from_bytes(data[field.place : field.place + field.width], field.order)
    return whole >> field.shift & (2 ** (field.bits or 8 * field.width) - 1)


def mended(data: bytes) -> bytes:
    """The data with the checksums of an ogg's pages as they should be, else a change is seen before it does harm."""
    if data[:4] != b"OggS":
        return data
    result, place = bytearray(data), 0
    while data[place : place + 4] == b"OggS" and place + 27 <= len(data):
        count = data[place + 26]
        end = place + 27 + count + sum(data[place + 27 : place + 27 + count])
        result[place + 22 : place + 26] = bytes(4)
        result[place + 22 : place + 26] = struct.pack("<I", _ogg_checksum(result[place:end]))
        place = end
    return bytes(result)


def _ogg_checksum(page: bytes) -> int:
    checksum = 0
    for byte in page:
        checksum = (checksum << 8 & 0xFFFFFFFF) ^ OGG_TABLE[checksum >> 24 ^ byte]
    return checksum


def _ogg_entry(index: int) -> int:
    value = index << 24
    for _ in range(8):
        value = (value << 1 & 0xFFFFFFFF) ^ (0x04C11DB7 if value >> 31 else 0)
    return value


OGG_TABLE = [_ogg_entry(index) for index in range(256)]


def _chunks(data: bytes, order: str, place: int = 0, end: int = 0, depth: int = 0) -> Iterator[Number]:
    """RIFF, its relatives, AVI, AIFF and CAF."""
    end = end or len(data)
    wide = data[:4] == b"caff"
    if wide and place == 0:
        place = 8
    while place + 8 <= end:
        name, width = data[place : place + 4], 8 if wide else 4
        size = int.from_bytes(data[place + 4 : place + 4 + width], order)
        yield Number(place + 4, width, order)
        inner = place + 4 + width
        if name in (b"RIFF", b"RF64", b"RIFX", b"FORM", b"LIST") and depth < DEEPEST:
            yield from _chunks(data, order, inner + 4, min(end, inner + size), depth + 1)
        widths, inside = CHUNKS.get(name, ()), inner
        for number in widths:
            yield Number(inside, number, order)
            inside += number
        place = inner + size + size % 2


def _flac(data: bytes) -> Iterator[Number]:
    place = 4
    while place + 4 <= len(data):
        last, kind = data[place] & 128, data[place] & 127
        size = int.from_bytes(data[place + 1 : place + 4], "big")
        yield Number(place, 1, "big")
        yield Number(place + 1, 3, "big")
        inside = place + 4
        if kind == 0:
            for offset, width in ((0, 2), (2, 2), (4, 3), (7, 3)):  # sizes of blocks and frames
                yield Number(inside + offset, width, "big")
            for shift, bits in ((44, 20), (41, 3), (36, 5), (0, 36)):  # rate, channels, bits, samples
                yield Number(inside + 10, 8, "big", shift, bits)
                yield Number(inside + 10, 8, "big", shift, bits)
        elif kind in (4, 6):
            for offset in range(0, min(size, 24), 4):
                yield Number(inside + offset, 4, "little" if kind == 4 else "big")
        place = inside + size
        if last:
            for offset in range(6):  # the first frame's header
                yield Number(place + offset, 1, "big")
            return


def _ogg(data: bytes) -> Iterator[Number]:
    place, pages = 0, 0
    while data[place : place + 4] == b"OggS" and place + 27 <= len(data):
        count = data[place + 26]
        for offset, width in ((4, 1), (5, 1), (6, 8), (14, 4), (18, 4), (26, 1), (27, 1)):
            yield Number(place + offset, width, "little")
        packet = place + 27 + count
        if pages < 2:
            begin = data[packet : packet + 8]
            if begin == b"OpusHead":
                widths, packet = (1, 1, 2, 4, 2, 1), packet + 8
            elif begin[:7] == b"\x01vorbis":
                widths, packet = (4, 1, 4, 4, 4, 4, 1), packet + 7
            else:
                widths = (4,) * 6
                packet += 8
            for width in widths:
                yield Number(packet, width, "little")
                packet += width
        place += 27 + count + sum(data[place + 27 : place + 27 + count])
        pages += 1


def _boxes(data: bytes, place: int, end: int, depth: int = 0) -> Iterator[Number]:
    """MP4, MOV, M4A, 3GP: sizes, and every four bytes of what is in a small box."""
    while place + 8 <= end:
        size, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        yield Number(place, 4, "big")
        size = size if size >= 8 else end - place
        if name in MP4_FOLDERS and depth < DEEPEST:
            yield from _boxes(data, place + 8, min(end, place + size), depth + 1)
        elif name != b"mdat":
            for offset in range(place + 8, min(end, place + size, place + 96) - 3, 4):
                yield Number(offset, 4, "big")
        place += size


def _elements(data: bytes, place: int, end: int, depth: int = 0) -> Iterator[Number]:
    """WebM, Matroska: sizes, and numbers of up to eight bytes."""
    while place + 2 <= end:
        width = 9 - data[place].bit_length()
        if width > 4:
            return
        name = int.from_bytes(data[place : place + width], "big")
        place += width
        if place >= end:
            return
        width = 9 - data[place].bit_length()
        if width > 8:
            return
        size = int.from_bytes(data[place : place + width], "big") & (2 ** (7 * width) - 1)
        yield Number(place, width, "big")
        place += width
        size = end - place if size == 2 ** (7 * width) - 1 else size
        if name in EBML_FOLDERS and depth < DEEPEST:
            yield from _elements(data, place, min(end, place + size), depth + 1)
        elif 0 < size <= 8:
            yield Number(place, size, "big")
        place += size


def _frames(data: bytes) -> Iterator[Number]:
    """MP3 and AAC: the tag's size, the first frames, what they say of the length."""
    begin = 0
    if data[:3] == b"ID3":
        begin = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        yield Number(6, 4, "big")
        yield Number(3, 1, "big")
        yield Number(5, 1, "big")
    for offset in range(8):
        yield Number(min(begin + offset, len(data) - 1), 1, "big")
    found = re.search(rb"Xing|Info|VBRI", data[begin : begin + 1024])
    if found:
        for offset in range(4, 24, 4):
            yield Number(begin + found.start() + offset, 4, "big")
