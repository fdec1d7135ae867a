"""Makes `tests/fixtures/images`: camera images as ROS 2 messages, by rosbags (CDR) and Pillow (JPEG, PNG).

`NAME.cdr`: a `sensor_msgs/Image` or `CompressedImage` of 24 x 16 pixels; `pixels.safetensors`: what it shows, U8
[H, W, C], RGB (for JPEG: as Pillow decodes it). Deterministic; needs rosbags and pillow besides requirements.txt.
"""

from __future__ import annotations

import io
import pathlib

import numpy as np
from PIL import Image as Picture
from rosbags.typesys import Stores, get_typestore
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "images"
WIDTH, HEIGHT = 24, 16


def scene() -> np.ndarray:
    """Smooth in both directions, so that JPEG keeps it; all three channels differ."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([40 + 8 * x, 30 + 12 * y, 200 - 3 * x - 4 * y], axis=-1).astype(np.uint8)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    stamp = types["builtin_interfaces/msg/Time"](sec=1_700_000_000, nanosec=123_456_789)
    header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera_optical_frame")
    rgb = scene()
    mono = rgb[..., 1].copy()
    pixels = {}

    def write(name: str, kind: str, message: object, shown: np.ndarray) -> None:
        (OUT / f"{name}.cdr").write_bytes(bytes(store.serialize_cdr(message, kind)))
        pixels[name] = np.ascontiguousarray(shown if shown.ndim == 3 else shown[..., None])

    def raw(name: str, encoding: str, image: np.ndarray, shown: np.ndarray, padding: int = 0) -> None:
        rows = image.reshape(HEIGHT, -1)
        rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
        message = types["sensor_msgs/msg/Image"](
            header=header, height=HEIGHT, width=WIDTH, encoding=encoding, is_bigendian=0, step=rows.shape[1], data=rows.reshape(-1)
        )
        write(name, "sensor_msgs/msg/Image", message, shown)

    def compressed(name: str, format: str, image: np.ndarray, mode: str | None = None, **options: object) -> None:
        file = io.BytesIO()
        picture = Picture.fromarray(image)
        (picture.convert(mode) if mode else picture).save(file, format=format, **options)
        label = f"rgb8; {format} compressed bgr8"
        data = np.frombuffer(file.getvalue(), np.uint8)
        message = types["sensor_msgs/msg/CompressedImage"](header=header, format=label, data=data)
        shown = np.asarray(Picture.open(file).convert("L" if image.ndim == 2 else "RGB"))
        write(name, "sensor_msgs/msg/CompressedImage", message, shown)

    raw("rgb8", "rgb8", rgb, rgb)
    raw("bgr8", "bgr8", rgb[..., ::-1].copy(), rgb)
    raw("mono8", "mono8", mono, mono)
    raw("rgb8_padded", "rgb8", rgb, rgb, padding=5)
    raw("depth", "16UC1", np.stack([mono, mono], axis=-1), mono)
    compressed("jpeg_444", "jpeg", rgb, quality=95, subsampling=0)
    compressed("jpeg_420", "jpeg", rgb, quality=90, subsampling=2)
    compressed("jpeg_progressive", "jpeg", rgb, quality=90, progressive=True)
    compressed("jpeg_mono", "jpeg", mono, quality=95)
    compressed("png_rgb", "png", rgb)
    compressed("png_mono", "png", mono)
    compressed("png_palette", "png", rgb, mode="P")
    compressed("png_alpha", "png", rgb, mode="RGBA")
    compressed("gif", "gif", rgb)
    save_file(pixels, OUT / "pixels.safetensors")
    for path in sorted(OUT.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
