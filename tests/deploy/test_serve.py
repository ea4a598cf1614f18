"""The server: answers, limits, who is refused, a page without foreign resources, start and stop."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.rle import mask_to_runs
from masksmith.data.target import BINARY, Target
from masksmith.deploy.answers import layers_of, polygons
from masksmith.deploy.segmenter import Segmenter
from tests.deploy.tiny import noise, tiny_bundle

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from fastapi.testclient import TestClient  # noqa: E402

from masksmith.deploy import serve  # noqa: E402
from masksmith.deploy.serve import Limits, bind, decode, make_app, serve_model  # noqa: E402

CLASSES = Target("multiclass", ("background", "road", "tree"), (0, 1, 2))
LABELS = Target("multilabel", ("left", "right"))
OBJECTS = Target("instances", ("nucleus",))
SMALL = Limits(max_bytes=2**17, max_pixels=20_000, timeout_s=20, queue=1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        target.task: tiny_bundle(folder / f"{target.task}.msk", target)
        for target in (BINARY, CLASSES, LABELS, OBJECTS)
    }


@pytest.fixture(scope="module")
def model(bundles) -> Segmenter:
    return Segmenter(bundles["binary"])


def client_of(model, limits=SMALL, **options) -> TestClient:
    return TestClient(make_app(model, limits, **options), base_url="http://localhost")


def png(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


IMAGE = noise(40, 56, seed=3)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # pycocotools
def test_every_task_is_answered_in_every_form(bundles):
    for task, path in bundles.items():
        model = Segmenter(path)
        true = model.segment(IMAGE)
        with client_of(model) as client:
            answers = {
                kind: client.post(f"/segment?answer={kind}", content=png(IMAGE))
                for kind in (*serve.ANSWERS, "picture")
            }
        if task == "multilabel":
            assert answers["png"].status_code == 422
            assert "may overlap" in answers.pop("png").json()["error"]
        assert {one.status_code for one in answers.values()} == {200}, task
        codes = np.load(io.BytesIO(answers["probs"].content), allow_pickle=False)
        assert np.array_equal(codes, true.codes)
        told = json.loads(answers["probs"].headers["X-Masksmith"])
        assert (told["height"], told["width"]) == (40, 56)
        if task != "multilabel":
            mask = cv2.imdecode(np.frombuffer(answers["png"].content, np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(mask, true.mask * 255 if task == "binary" else true.mask)
        for kind in ("overlay", "picture"):
            assert cv2.imdecode(np.frombuffer(answers[kind].content, np.uint8), -1).shape == (40, 56, 3)
        layers = list(layers_of(model.target, true.mask))
        for kind in ("json", "rle"):
            value = answers[kind].json()
            assert [one["area"] for one in value["segments"]] == [int(one.mask.sum()) for one in layers]
            assert sum(value["areas"].values()) == sum(one["area"] for one in value["segments"])
        cocos = pytest.importorskip("pycocotools.mask")
        for one, layer in zip(answers["rle"].json()["segments"], layers, strict=True):
            whole = np.zeros((40, 56), np.uint8)
            row, column = layer.corner
            whole[row : row + layer.mask.shape[0], column : column + layer.mask.shape[1]] = layer.mask
            assert np.array_equal(cocos.decode(one["segmentation"]), whole)
            assert len(mask_to_runs(whole))
            filled = np.zeros_like(whole)
            for part in (
                part
                for other in answers["json"].json()["segments"]
                if other["class"] == one["class"] and other.get("object") == one.get("object")
                for part in other["polygons"]
            ):
                cv2.fillPoly(filled, [np.array(part["outer"])], 1)
            assert (filled >= whole).all()


def test_polygons_have_holes_and_lie_in_the_image():
    mask = np.zeros((9, 12), np.int32)
    mask[2:8, 3:10] = 1
    mask[4:6, 5:8] = 0
    mask[0, 11] = 2
    first, second = (polygons(layer) for layer in layers_of(OBJECTS, mask))
    assert sorted(map(tuple, first[0]["outer"])) == [(3, 2), (3, 7), (9, 2), (9, 7)]
    assert len(first[0]["holes"]) == 1
    assert second == [{"outer": [[11, 0]], "holes": []}]


def test_formats_are_told_by_their_bytes(model):
    with client_of(model) as client:
        wanted = client.post("/segment", content=png(IMAGE)).content
        lossless = {"a.png": png(IMAGE), "b.jpg": png(IMAGE, ".tiff"), "../../c.dcm": png(IMAGE, ".bmp")}
        for name, raw in lossless.items():
            for kind in ("application/json", "image/x-lie"):
                sent = client.post("/segment", files={"file": (name, raw, kind)})
                assert (sent.status_code, sent.content) == (200, wanted), name
        assert client.post("/segment", content=png(IMAGE, ".jpg")).status_code == 200
        colours = client.post("/segment", content=png(np.repeat(IMAGE[..., None], 3, 2)))
        assert colours.content == wanted


def test_dicom_is_read(model):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 40, 56, 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.PixelData = 7, 0, IMAGE.tobytes()
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    with client_of(model) as client:
        sent = client.post("/segment", content=file.getvalue())
        assert sent.content == client.post("/segment", content=png(IMAGE)).content


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "empty"),
        (b"text", "image"),
        (png(IMAGE)[:99], "cut off"),
        (png(np.zeros((8, 8), np.uint16)), "pixels of uint16"),
        (png(np.zeros((200, 200), np.uint8)), r"200x200 = 40,000 pixels; at most 20,000"),
    ],
)
def test_bad_images_are_answers(model, raw, message):
    with client_of(model) as client:
        sent = client.post("/segment", content=raw)
        assert sent.status_code == 422
        assert re.search(message, sent.json()["error"])
        assert "/tmp" not in sent.text
        assert client.post("/segment", content=png(IMAGE)).status_code == 200


def test_damaged_multipart_bodies_are_answers(model):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    with client_of(model) as client:
        for headers, body in (
            (kind, b"no boundary here"),
            (kind, b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\nv\r\n--x--\r\n'),
            (kind, b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nv\r\n--x--\r\n'),
            ({"content-type": "multipart/form-data"}, png(IMAGE)),
        ):
            sent = client.post("/segment", content=body, headers=headers)
            assert sent.status_code == 400, body
            assert "`file`" in sent.json()["error"]
        two = [("file", ("a", png(IMAGE))), ("file", ("b", png(IMAGE)))]
        assert client.post("/segment", files=two).status_code == 400


def test_what_is_asked_for_is_checked(model, tmp_path):
    with client_of(model) as client:
        assert "answer" in client.post("/segment?answer=pgn", content=png(IMAGE)).json()["error"]
        assert "query: z; expected answer" in client.post("/segment?z=1", content=png(IMAGE)).json()["error"]
    numbers = Segmenter(tiny_bundle(tmp_path / "m.msk", BINARY, "model.scalars=[z]"))
    with client_of(numbers) as client:
        assert client.post("/segment?z=3.5", content=png(IMAGE)).status_code == 200
        assert client.get("/info").json()["scalars"] == ["z"]
        for query, message in (
            ("", "expected answer, z"),
            ("?z=x", "expected numbers"),
            ("?z=inf", "expected finite"),
        ):
            sent = client.post(f"/segment{query}", content=png(IMAGE))
            assert sent.status_code == 422
            assert message in sent.json()["error"]


def test_large_bodies_are_refused_with_and_without_a_length(model):
    with client_of(model) as client:
        for content in (bytes(2**18), iter([bytes(2**16)] * 4)):
            sent = client.post("/segment", content=content)
            assert sent.status_code == 413
            assert "0.125 MiB" in sent.json()["error"]
        within = client.post("/segment", files={"file": ("a.png", bytes(2**17 + 5))})
        assert within.status_code == 413


def slowed(model, monkeypatch, seconds: float) -> threading.Event:
    """Let segmenting take its time; the event is set when it begins."""
    began, segment = threading.Event(), Segmenter.segment

    def slow(self, *arguments, **options):
        began.set()
        time.sleep(seconds)
        return segment(self, *arguments, **options)

    monkeypatch.setattr(Segmenter, "segment", slow)
    return began


def test_beyond_the_queue_is_429_and_places_are_free_again(model, monkeypatch):
    slowed(model, monkeypatch, 0.2)
    with client_of(model) as client:
        seen: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: seen.append(client.post("/segment", content=png(IMAGE))))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(one.status_code for one in seen)
        assert statuses == [200, 200, 429, 429, 429, 429]
        full = next(one for one in seen if one.status_code == 429)
        assert int(full.headers["Retry-After"]) >= 1
        assert client.get("/health").json() == {"status": "ok", "inside": 0, "queue": 1}
        assert client.post("/segment", content=png(IMAGE)).status_code == 200


def test_what_takes_too_long_is_503_and_the_place_is_free_when_it_ends(model, monkeypatch):
    slowed(model, monkeypatch, 0.5)
    with client_of(model, Limits(timeout_s=0.1, queue=0)) as client:
        late = client.post("/segment", content=png(IMAGE))
        assert late.status_code == 503
        assert "not done after 0.1 s" in late.json()["error"]
        assert client.post("/segment", content=png(IMAGE)).status_code == 429  # it is still computing
        time.sleep(0.6)
        assert client.get("/health").json()["inside"] == 0


def test_an_error_of_ours_is_500_and_the_next_is_answered(model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "segment", lambda *_, **__: 1 / 0)
        with TestClient(
            make_app(model, SMALL), base_url="http://localhost", raise_server_exceptions=False
        ) as client:
            assert client.post("/segment", content=png(IMAGE)).status_code == 500
            assert client.get("/health").json()["inside"] == 0
            patch.undo()
            assert client.post("/segment", content=png(IMAGE)).status_code == 200


def test_other_sites_and_strangers_are_refused(model):
    hosts = frozenset({"localhost", "127.0.0.1", "::1"})
    with client_of(model, token="secret", hosts=hosts) as client:
        good = {"Authorization": "Bearer secret"}
        assert client.get("/info", headers=good).status_code == 200
        assert client.get("/info", headers=good | {"Origin": "http://localhost"}).status_code == 200
        assert client.get("/info", headers=good | {"Host": "[::1]:8765"}).status_code == 200
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Basic secret"}, 401),
            (good | {"Origin": "https://evil.example"}, 403),
            (good | {"Origin": "null"}, 403),
            (good | {"Origin": "http://["}, 403),
            (good | {"Origin": "http://localhost:1"}, 403),
            (good | {"Host": "evil.example"}, 421),
            (good | {"Host": "[bad"}, 421),
        ):
            assert client.get("/info", headers=headers).status_code == status, headers
            assert client.post("/segment", content=png(IMAGE), headers=headers).status_code == status
    with client_of(model, token="schlüssel") as client:
        given = {b"Authorization": "Bearer schlüssel".encode()}
        assert client.get("/info", headers=given).status_code == 200
    with client_of(model, token="secret", hosts=hosts) as client:
        for path in ("/", "/health", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200  # they say nothing
            assert client.get(path, headers={"Host": "evil.example"}).status_code == 421


def test_pages_load_nothing_from_elsewhere(model):
    with client_of(model) as client:
        for path in ("/", "/docs"):
            sent = client.get(path)
            assert sent.headers["content-type"].startswith("text/html")
            assert "http://" not in sent.text
            assert "https://" not in sent.text
            assert not re.search(r"<(script|img|iframe)[^>]+src=|@import|url\(", sent.text)
            assert "default-src 'none'" in sent.headers["content-security-policy"]
        schema = client.get("/openapi.json").json()
        assert set(schema["paths"]) == {"/health", "/info", "/segment"}
        for text in ("/segment", "answer", "429"):
            assert text in client.get("/docs").text
        info = client.get("/info").json()
    used = set(
        re.findall(r"info\.(\w+)", resources.files("masksmith.deploy").joinpath("serve.html").read_text())
    )
    assert used <= info.keys()
    assert info["thresholds"] == [32767]
    assert info["limits"] == {"bytes": 2**17, "pixels": 20_000, "seconds": 20}


def test_the_port_and_the_host_are_checked(model, monkeypatch, tmp_path):
    monkeypatch.delenv("MASKSMITH_TOKEN", raising=False)
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: in use by another program; try --port \d+"):
            serve_model(model, port=port)
    with pytest.raises(
        InputError, match=r"--host 0\.0\.0\.0: other machines may reach it; set MASKSMITH_TOKEN"
    ):
        serve_model(model, host="0.0.0.0")
    with pytest.raises(InputError, match="no such address"):
        bind("no.such.host.invalid", 0)
    with pytest.raises(InputError, match="cannot be listened on"):
        bind("192.0.2.1", 0)
    with pytest.raises(InputError, match="expected numbers above 0"):
        ms.serve(tmp_path / "m.msk", timeout_s=0)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(InputError, match=r"pip install masksmith\[serve\]"):
        make_app(model, SMALL)


def test_a_claim_of_many_pixels_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(serve, "ImageReader", None)
    with pytest.raises(InputError, match="at most 20,000"):
        decode(png(np.zeros((300, 300), np.uint8)), SMALL)


@pytest.mark.slow
def test_a_process_starts_answers_and_ends_gracefully(bundles, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "masksmith", "serve", str(bundles["binary"]), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(600):
                try:
                    assert client.get("/health").json()["status"] == "ok"
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            assert client.post("/segment", content=png(IMAGE)).status_code == 200
            with socket.create_connection(("127.0.0.1", port)) as line:  # two gigabytes are claimed
                line.sendall(
                    b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2147483648\r\n\r\nabc"
                )
                assert line.recv(2**12).startswith(b"HTTP/1.1 413")
            rival = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert rival.returncode == 2
            assert f"--port {port}: in use" in rival.stderr
            sent: list[int] = []
            thread = threading.Thread(
                target=lambda: sent.append(client.post("/segment", content=png(noise(900, 900))).status_code)
            )
            thread.start()
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            thread.join()
            assert sent == [200]  # what ran was finished
        assert process.wait(30) == 143
    finally:
        process.kill()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        process.stderr.close()
