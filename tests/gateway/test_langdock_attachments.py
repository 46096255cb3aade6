"""Langdock's attachments: CONTRACT.md rows 73-75."""

from __future__ import annotations

import io
import struct
import uuid
import zipfile
import zlib
from typing import Any

import httpx
import pytest
from docx import Document
from sqlmodel import Session, func, select

from producer.gateway.dialects.langdock.attachment_kinds import (
    ATTACHMENT_MAX_BYTES,
    CUT,
    IMAGE_MAX_BYTES,
    TEXT_MAX_CHARS,
)
from schemas.tables import FileChunk, StoredFile
from tests.at_work import Scene
from tests.loopback_provider import Reply
from tests.served_gateway import ServedGateway

UPLOAD, DELETE, ASK = "/attachment/v1/upload", "/attachment/v1/delete", "/assistant/v1/chat/completions"


def pdf(*lines: str, packed: bytes | None = None) -> bytes:
    """Return a PDF of one page with these lines, or with this content, which is packed twice."""
    shown = " ".join(f"({line}) Tj T*" for line in lines)
    content = f"BT /F1 12 Tf 14 TL 50 700 Td {shown} ET".encode() if packed is None else packed
    filters = b"" if packed is None else b"/Filter [/FlateDecode /FlateDecode] "
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< %s/Length %d >>\nstream\n%s\nendstream" % (filters, len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(body)
    return body + b"xref\n0 6\n0000000000 65535 f \n" + table + trailer


def docx() -> bytes:
    document = Document()
    document.add_paragraph("The first paragraph.")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "left", "right"
    document.add_paragraph("The last paragraph.")
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def png(size: int = 0) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + b"\0" * size


def upload(client: httpx.Client, name: str, content: bytes, mime: str | None = None) -> httpx.Response:
    return client.post(UPLOAD, files={"file": (name, content, mime) if mime else (name, content)})


def uploaded(client: httpx.Client, name: str, content: bytes, mime: str | None = None) -> str:
    answer = upload(client, name, content, mime)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["attachmentId"])


def asked(client: httpx.Client, scene: Scene, ids: list[str], *, of_assistant: bool = False) -> Any:
    """Return the user's message that the provider is sent for a question with these attachments."""
    scene.replies(Reply(text="Yes."))
    assistant: dict[str, Any] = {"name": "A", "instructions": "Read.", "model": scene.model}
    message: dict[str, Any] = {"role": "user", "content": "What is it?"}
    (assistant if of_assistant else message)["attachmentIds"] = ids
    answer = client.post(ASK, json={"assistant": assistant, "messages": [message]})
    assert answer.status_code == 200, answer.text
    system, user = scene.asked[-1]["messages"]
    assert (system, user["role"]) == ({"role": "system", "content": "Read."}, "user")
    return user["content"]


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.json().keys() >= {"error", "message"}, answer.text
    return answer.status_code, answer.json()["error"]


def stored(gateway: ServedGateway, workspace: str) -> int:
    with Session(gateway.works.engine) as session:
        return session.exec(select(func.count()).select_from(StoredFile).where(StoredFile.workspace == workspace)).one()


def test_row_73_an_upload_gives_an_id_and_what_was_stored(client: httpx.Client) -> None:
    answer = upload(client, "notes.csv", b"a;b\n1;2\n", "text/csv").json()
    assert str(uuid.UUID(answer["attachmentId"])) == answer.pop("attachmentId")
    assert answer == {"file": {"name": "notes.csv", "mimeType": "text/csv", "sizeInBytes": 8}}


def test_row_73_exactly_one_file_is_needed(gateway: ServedGateway, client: httpx.Client, scene: Scene) -> None:
    two = [("file", ("a.txt", b"a")), ("file", ("b.txt", b"b"))]
    multipart = {"content-type": "multipart/form-data; boundary=b"}
    for answer in (
        client.post(UPLOAD),
        client.post(UPLOAD, json={"file": "x"}),
        client.post(UPLOAD, data={"file": "not a file"}),
        client.post(UPLOAD, files=two),
        client.post(UPLOAD, files={"document": ("a.txt", b"a")}),
        client.post(UPLOAD, files=[*two, ("file", ("c.txt", b"c"))]),
        client.post(UPLOAD, content=b"no multipart at all", headers=multipart),
        client.post(UPLOAD, content=b"", headers={"content-type": "multipart/form-data"}),
        client.post(UPLOAD, content=b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", headers=multipart),
        # A name in an encoding that can say half a character.
        client.post(
            UPLOAD,
            content=b'--b\r\nContent-Disposition: form-data; name="file"; filename="\\ud800.txt"\r\n\r\nx\r\n--b--',
            headers={"content-type": "multipart/form-data; boundary=b; charset=unicode_escape"},
        ),
        # Cut off within the file.
        client.post(
            UPLOAD,
            content=b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhal',
            headers=multipart,
        ),
    ):
        status, why = refused(answer)
        assert (status, bool(why)) == (400, True), answer.text
    assert stored(gateway, scene.workspace) == 0


def test_row_73_a_file_that_is_too_large_or_of_no_known_kind_is_refused(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    assert refused(upload(client, "a.txt", b"a" * (ATTACHMENT_MAX_BYTES + 1)))[0] == 413
    big = (b"--b\r\n" + b"a" * 1024 for _ in range(ATTACHMENT_MAX_BYTES // 1024 + 100))
    unannounced = client.post(UPLOAD, content=big, headers={"content-type": "multipart/form-data; boundary=b"})
    assert refused(unannounced)[0] in (400, 413)
    assert refused(upload(client, "a.png", png(IMAGE_MAX_BYTES)))[0] == 413
    for name, content in (("a.bin", bytes(range(256))), ("a.zip", b"PK\x03\x04\0\0"), ("a.exe", b"MZ\0\0")):
        status, why = refused(upload(client, name, content))
        assert (status, "PDF, DOCX" in why) == (400, True)
    assert stored(gateway, scene.workspace) == 0


def test_row_73_a_file_that_means_harm_is_refused_and_the_gateway_goes_on(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(docx())) as good, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as bad:
        for name in good.namelist():
            bad.writestr(name, b" " * 300_000_000 if name == "word/document.xml" else good.read(name))
    page = zlib.compressobj(9)
    unpacks_to_512_mib = b"".join([*(page.compress(b" " * 2**24) for _ in range(32)), page.flush()])
    for name, content in (
        ("bomb.docx", bomb.getvalue()),
        ("broken.docx", b"PK\x03\x04" + b"\0" * 50),
        ("broken.pdf", b"%PDF-1.7\n" + b"\xff" * 100),
        ("deep.pdf", pdf(packed=zlib.compress(unpacks_to_512_mib, 9))),
    ):
        status, why = refused(upload(client, name, content))
        assert (status, name in why) == (400, True), why
    assert stored(gateway, scene.workspace) == 0
    assert uploaded(client, "good.docx", docx())


@pytest.mark.parametrize("of_assistant", [False, True])
def test_row_74_attachments_of_a_message_and_of_an_assistant_reach_the_model(
    client: httpx.Client, scene: Scene, of_assistant: bool
) -> None:
    text, image = uploaded(client, "a.txt", "Grüße".encode()), uploaded(client, "dot.png", png())
    content = asked(client, scene, [text], of_assistant=of_assistant)
    assert content == '<attachment name="a.txt">\nGrüße\n</attachment>\n\nWhat is it?'
    first, second, third = asked(client, scene, [text, image], of_assistant=of_assistant)
    assert "Grüße" in first["text"]
    assert second["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert third == {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"name;price\nTea;3\n", "name;price\nTea;3\n"),
        ("latin.csv", "Größe;3".encode("cp1252"), "Größe;3"),
        ("wide.txt", "Größe".encode("utf-16"), "Größe"),
        ("a.pdf", pdf("What the page says", "and more"), "What the page says\nand more"),
        ("a.docx", docx(), "The first paragraph.\nleft\tright\nThe last paragraph."),
    ],
)
def test_row_74_the_text_of_each_kind_is_read(
    client: httpx.Client, scene: Scene, name: str, content: bytes, says: str
) -> None:
    sent = asked(client, scene, [uploaded(client, name, content)])
    assert sent == f'<attachment name="{name}">\n{says}\n</attachment>\n\nWhat is it?'


def test_row_74_a_long_text_is_cut_and_says_so(client: httpx.Client, scene: Scene) -> None:
    sent = asked(client, scene, [uploaded(client, "long.txt", "ü".encode() * (3 * TEXT_MAX_CHARS))])
    assert f"{'ü' * 100}{CUT}\n</attachment>" in sent
    assert sent.count("ü") == TEXT_MAX_CHARS


def test_row_74_an_id_that_is_none_or_unknown_or_anothers_is_refused(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    assistant = {"name": "A", "instructions": "Read.", "model": scene.model}

    def ask(attachment_id: str, role: str = "user") -> httpx.Response:
        messages = [{"role": role, "content": "?", "attachmentIds": [attachment_id]}]
        return client.post(ASK, json={"assistant": assistant, "messages": messages})

    with gateway.client(f"{scene.workspace}-else") as foreign:
        theirs = uploaded(foreign, "secret.txt", b"secret")
    assert ask("no-uuid").status_code == 400
    assert ask(str(uuid.uuid4())).status_code == 404
    assert ask(theirs).status_code == 404
    own = uploaded(client, "a.txt", b"a")
    assert ask(own, role="assistant").status_code == 400
    images = [uploaded(client, "a.png", png(4_000_000)) for _ in range(3)]
    much = {"assistant": {**assistant, "attachmentIds": images}, "messages": [{"role": "user", "content": "?"}]}
    answer = client.post(ASK, json=much)
    assert (answer.status_code, "more than 12 MiB" in answer.json()["message"]) == (400, True)
    assert not scene.asked


def test_row_75_a_deleted_attachment_is_gone_and_its_row_is_kept(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    attachment_id = uploaded(client, "a.txt", b"what it says")

    def delete(value: Any, by: httpx.Client = client) -> httpx.Response:
        return by.request("DELETE", DELETE, json={"attachmentId": value})

    with gateway.client(f"{scene.workspace}-else") as foreign:
        assert delete(attachment_id, foreign).status_code == 404
    answer = delete(attachment_id)
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "message": "Attachment deleted successfully",
        "attachmentId": attachment_id,
    }
    assert delete(attachment_id).status_code == 404
    assert delete(str(uuid.uuid4())).json()["message"]
    wrong = delete("no-uuid")
    assert (wrong.status_code, wrong.json()["errors"][0]["path"]) == (400, ["attachmentId"])
    with Session(gateway.works.engine) as session:
        row = session.get_one(StoredFile, attachment_id)
        assert (row.deleted_at is not None, row.text) == (True, None)
        assert session.get(FileChunk, (attachment_id, 0)) is None
