"""What a file is, by its content and not by its name.

The first bytes decide; a container (zip, pdf, xml) is asked for the mark of the program that wrote it. Only where two
programs write the same thing (a template without any mark of its own, say) has the extension the last word.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Literal

Group = Literal[
    "picture", "vector", "design", "video", "audio", "document", "text", "font", "archive", "program",
    "empty", "unknown",
]  # fmt: skip

#: Bytes of a file that are looked at.
HEAD = 65_536

#: Entries of a zip that are looked at to tell what wrote it.
_ZIP_ENTRIES = 2_000


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: short, in lower case.
        group: what such files are good for.
        extensions: those that its files rightly have, without dot, in lower case.
        decoder: Pillow's name of the format; empty where Pillow has no decoder of its own.
        container: the archive format that it is stored in and can be looked into as; empty if none.
    """

    name: str
    group: Group
    extensions: tuple[str, ...] = ()
    decoder: str = ""
    container: str = ""


def _table(*rows: Format) -> dict[str, Format]:
    return {row.name: row for row in rows}


FORMATS = _table(
    Format("jpeg", "picture", ("jpg", "jpeg", "jpe", "jfif", "mpo"), "JPEG"),
    Format("png", "picture", ("png", "apng"), "PNG"),
    Format("gif", "picture", ("gif",), "GIF"),
    Format("webp", "picture", ("webp",), "WEBP"),
    Format("bmp", "picture", ("bmp", "dib"), "BMP"),
    Format("tiff", "picture", ("tif", "tiff"), "TIFF"),
    Format("jpeg2000", "picture", ("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"), "JPEG2000"),
    Format("avif", "picture", ("avif", "avifs"), "AVIF"),
    Format("ico", "picture", ("ico", "cur"), "ICO"),
    Format("pnm", "picture", ("pbm", "pgm", "ppm", "pnm", "pfm"), "PPM"),
    Format("qoi", "picture", ("qoi",), "QOI"),
    Format("dds", "picture", ("dds",), "DDS"),
    Format("heic", "picture", ("heic", "heif", "hif")),
    Format("jpeg-xl", "picture", ("jxl",)),
    Format("camera-raw", "picture", ("cr2", "cr3", "nef", "arw", "raf", "orf", "rw2", "dng")),
    Format("svg", "vector", ("svg",)),
    Format("eps", "vector", ("eps", "ps")),
    Format("emf", "vector", ("emf", "wmf")),
    Format("psd", "design", ("psd", "psb", "psdt")),
    Format("ai", "design", ("ai", "ait")),
    Format("eaglepack", "design", ("eaglepack",), container="zip"),
    Format("sketch", "design", ("sketch",)),
    Format("figma", "design", ("fig",)),
    Format("xd", "design", ("xd",)),
    Format("indesign", "design", ("indd",)),
    Format("coreldraw", "design", ("cdr",)),
    Format("clip-studio", "design", ("clip",)),
    Format("procreate", "design", ("procreate",)),
    Format("krita", "design", ("kra",)),
    Format("openraster", "design", ("ora",)),
    Format("gimp", "design", ("xcf",)),
    Format("blender", "design", ("blend",)),
    Format("mp4", "video", ("mp4", "m4v")),
    Format("quicktime", "video", ("mov", "qt")),
    Format("3gp", "video", ("3gp", "3g2")),
    Format("avi", "video", ("avi",)),
    Format("matroska", "video", ("mkv", "webm")),
    Format("flash-video", "video", ("flv",)),
    Format("windows-media", "video", ("wmv", "asf", "wma")),
    Format("mpeg", "video", ("mpg", "mpeg", "vob")),
    Format("mpeg-ts", "video", ("ts", "mts", "m2ts")),
    Format("realmedia", "video", ("rm", "rmvb")),
    Format("flash", "video", ("swf",)),
    Format("ogg", "audio", ("ogg", "oga", "ogv", "opus")),
    Format("mp3", "audio", ("mp3",)),
    Format("wav", "audio", ("wav",)),
    Format("flac", "audio", ("flac",)),
    Format("m4a", "audio", ("m4a",)),
    Format("midi", "audio", ("mid", "midi")),
    Format("pdf", "document", ("pdf",)),
    Format("word", "document", ("docx", "docm", "dotx")),
    Format("excel", "document", ("xlsx", "xlsm", "xltx")),
    Format("powerpoint", "document", ("pptx", "pptm", "ppsx", "potx")),
    Format("ole", "document", ("doc", "xls", "ppt", "msg", "wps", "et", "dps")),
    Format("opendocument", "document", ("odt", "ods", "odp", "odg")),
    Format("epub", "document", ("epub",)),
    Format("rtf", "document", ("rtf",)),
    Format("html", "text", ("html", "htm", "mhtml")),
    Format("xml", "text", ("xml",)),
    Format("text", "text", ("txt", "csv", "json", "md", "url", "log", "ini", "yaml", "yml", "lst")),
    Format("truetype", "font", ("ttf", "ttc")),
    Format("opentype", "font", ("otf",)),
    Format("web-font", "font", ("woff", "woff2")),
    Format("zip", "archive", ("zip", "cbz"), container="zip"),
    Format("7z", "archive", ("7z", "cb7"), container="7z"),
    Format("rar", "archive", ("rar", "cbr"), container="rar"),
    Format("tar", "archive", ("tar",), container="tar"),
    Format("gzip", "archive", ("gz", "tgz"), container="gzip"),
    Format("bzip2", "archive", ("bz2", "tbz2", "tbz"), container="bzip2"),
    Format("xz", "archive", ("xz", "txz"), container="xz"),
    Format("zstandard", "archive", ("zst", "tzst"), container="zstandard"),
    Format("lz4", "archive", ("lz4",), container="lz4"),
    Format("cabinet", "archive", ("cab",), container="cabinet"),
    Format("arj", "archive", ("arj",), container="arj"),
    Format("lha", "archive", ("lzh", "lha"), container="lha"),
    Format("iso", "archive", ("iso",), container="iso"),
    Format("program", "program", ("exe", "dll", "so", "elf", "jar", "apk", "class")),
    Format("sqlite", "unknown", ("db", "sqlite", "sqlite3")),
    Format("thumbs", "unknown", ("db",)),
    Format("empty", "empty"),
    Format("unknown", "unknown"),
)

#: Pillow's decoders that are ever let at a file: none that starts another program, as that of EPS does.
DECODERS = tuple(row.decoder for row in FORMATS.values() if row.decoder)

PICTURE_EXTENSIONS = {
    extension for row in FORMATS.values() if row.group == "picture" for extension in row.extensions
}

#: (offset, bytes there, format); the first that fits decides.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"II*\0\x10\0\0\0CR", "camera-raw"),
    (0, b"IIRO", "camera-raw"),
    (0, b"IIU\0", "camera-raw"),
    (0, b"FUJIFILMCCD-RAW", "camera-raw"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"II+\0", "tiff"),
    (0, b"MM\0+", "tiff"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg2000"),
    (0, b"\xffO\xffQ", "jpeg2000"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "jpeg-xl"),
    (0, b"\xff\x0a", "jpeg-xl"),
    (0, b"\0\0\1\0", "ico"),
    (0, b"qoif", "qoi"),
    (0, b"DDS ", "dds"),
    (0, b"8BPS", "psd"),
    (0, b"gimp xcf ", "gimp"),
    (0, b"BLENDER", "blender"),
    (0, b"CSFCHUNK", "clip-studio"),
    (0, b"fig-kiwi", "figma"),
    (0, b"\x06\x06\xed\xf5\xd8\x1d\x46\xe5", "indesign"),
    (0, b"\xc5\xd0\xd3\xc6", "eps"),
    (40, b" EMF", "emf"),
    (0, b"\xd7\xcd\xc6\x9a", "emf"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"FLV\1", "flash-video"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "windows-media"),
    (0, b"\0\0\1\xba", "mpeg"),
    (0, b"\0\0\1\xb3", "mpeg"),
    (0, b".RMF", "realmedia"),
    (0, b"FWS", "flash"),
    (0, b"CWS", "flash"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"fLaC", "flac"),
    (0, b"MThd", "midi"),
    (0, b"{\\rtf", "rtf"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "ole"),
    (0, b"\0\1\0\0\0", "truetype"),
    (0, b"true\0", "truetype"),
    (0, b"ttcf", "truetype"),
    (0, b"OTTO", "opentype"),
    (0, b"wOFF", "web-font"),
    (0, b"wOF2", "web-font"),
    (0, b"PK\3\4", "zip"),
    (0, b"PK\5\6", "zip"),
    (0, b"PK\7\x08PK\3\4", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"Rar!\x1a\7", "rar"),
    (257, b"ustar", "tar"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstandard"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (0, b"MSCF", "cabinet"),
    (0, b"\x60\xea", "arj"),
    (2, b"-lh", "lha"),
    (32_769, b"CD001", "iso"),
    (0, b"\x7fELF", "program"),
    (0, b"\xca\xfe\xba\xbe", "program"),
    (0, b"SQLite format 3\0", "sqlite"),
)

#: RIFF and ISO media say in a second word what they hold.
_RIFF = {b"WEBP": "webp", b"AVI ": "avi", b"WAVE": "wav", b"CDR": "coreldraw"}
_BRANDS = {
    b"qt  ": "quicktime", b"avif": "avif", b"avis": "avif", b"crx ": "camera-raw", b"M4A ": "m4a",
    b"heic": "heic", b"heix": "heic", b"hevc": "heic", b"heim": "heic", b"heis": "heic", b"mif1": "heic",
    b"msf1": "heic", b"3gp": "3gp", b"3g2": "3gp",
}  # fmt: skip
_ATOMS = (b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot")

#: What lies in a zip -> what wrote it. A name that ends in / stands for whatever lies below.
_IN_ZIP = (
    ("word/", "word"),
    ("xl/", "excel"),
    ("ppt/", "powerpoint"),
    ("META-INF/MANIFEST.MF", "program"),
    ("AndroidManifest.xml", "program"),
    ("Document.archive", "procreate"),
    ("pack.json", "eaglepack"),
    ("document.json", "sketch"),
    ("artwork/", "xd"),
)
_MIMETYPES = (
    (b"application/vnd.oasis.opendocument", "opendocument"),
    (b"application/epub+zip", "epub"),
    (b"application/x-krita", "krita"),
    (b"image/openraster", "openraster"),
)


def sniff(file: IO[bytes], name: str) -> Format:
    """What the file is.

    Args:
        file: open, at any place; it can seek.
        name: of the file; only its extension is looked at, and only where the content leaves two answers.

    Raises:
        OSError: it cannot be read.
    """
    file.seek(0)
    head = file.read(HEAD)
    found = _by_magic(head)
    extension = PurePath(name).suffix[1:].lower()
    if found == "zip":
        found = _of_zip(file, extension)
    elif found == "pdf":
        found = "ai" if _written_by_illustrator(file, head) or extension == "ai" else "pdf"
    elif found == "eps" and (extension == "ai" or b"Adobe Illustrator" in head[:4096]):
        found = "ai"
    elif found == "ole" and name.lower() == "thumbs.db":
        found = "thumbs"
    return FORMATS[found]


def sniff_head(head: bytes) -> Format:
    """The same of a file that cannot seek, from its first bytes: a zip stays a zip, whatever wrote it."""
    return FORMATS[_by_magic(head)]


def wrong_extension(form: Format, name: str) -> str:
    """The extension of `name` where it misleads, else an empty text.

    It misleads on a picture that has another's, and on anything else that has a picture's.
    """
    extension = PurePath(name).suffix[1:].lower()
    if not extension or extension in form.extensions:
        return ""
    return extension if form.group == "picture" or extension in PICTURE_EXTENSIONS else ""


def _by_magic(head: bytes) -> str:
    if not head:
        return "empty"
    for offset, magic, name in _MAGIC:
        if head.startswith(magic, offset):
            return name
    if head[:4] in (b"RIFF", b"RIFX"):
        return next((name for mark, name in _RIFF.items() if head[8:12].startswith(mark)), "unknown")
    if head[4:8] == b"ftyp":
        return next((name for mark, name in _BRANDS.items() if head[8:12].startswith(mark)), "mp4")
    if head[4:8] in _ATOMS:
        return "quicktime"
    if b"%PDF-" in head[:1024]:  # readers allow for bytes before it
        return "pdf"
    if head.startswith(b"%!PS"):
        return "eps"
    if (
        head[:2] == b"BM"
        and head[14:15] in (b"\x0c", b"\x28", b"\x40", b"\x6c", b"\x7c")
        and not any(head[6:10])
    ):
        return "bmp"
    if head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3] in b" \t\r\n":
        return "pnm"
    if head[:2] == b"MZ":
        return "program"
    if head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G":
        return "mpeg-ts"
    if head[0] == 0xFF and len(head) > 3 and head[1] & 0xE6 == 0xE2:  # an MPEG audio frame, layer III
        return "mp3"
    return _text(head)


def _text(head: bytes) -> str:
    """Some kind of text, or unknown."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text"
    controls = sum(head.count(bytes([code])) for code in (*range(9), *range(14, 27), *range(28, 32)))
    if controls or not _decodes(head):
        return "unknown"
    start = head[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "svg"
    if start.startswith((b"<!doctype html", b"<html")):
        return "html"
    return "xml" if start.startswith(b"<?xml") else "text"


def _decodes(head: bytes) -> bool:
    """Whether the bytes are text in a coding of the collections' countries; the last character may be cut off."""
    for coding in ("utf-8", "gb18030", "shift_jis", "latin-1"):
        for end in range(len(head), max(0, len(head) - 4), -1):
            try:
                text = head[:end].decode(coding)
            except UnicodeDecodeError:
                continue
            return coding != "latin-1" or sum(c.isprintable() or c.isspace() for c in text) == len(text)
    return False


def _written_by_illustrator(file: IO[bytes], head: bytes) -> bool:
    file.seek(0, 2)
    file.seek(max(0, file.tell() - HEAD))
    return any(b"AIPrivateData" in part or b"Adobe Illustrator" in part for part in (head, file.read(HEAD)))


def _of_zip(file: IO[bytes], extension: str) -> str:
    """What wrote a zip; only its directory is read."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            names = [info.filename for info in archive.filelist[:_ZIP_ENTRIES]]
            if names and names[0] == "mimetype" and archive.filelist[0].file_size < 200:
                kind = archive.read(archive.filelist[0])
                return next((name for mark, name in _MIMETYPES if kind.startswith(mark)), "zip")
    except Exception:  # damaged, encrypted or hostile: the look into it says so
        names = []
    for mark, name in _IN_ZIP:
        if any(each.startswith(mark) if mark.endswith("/") else each == mark for each in names):
            return name
    return "eaglepack" if extension == "eaglepack" else "zip"
