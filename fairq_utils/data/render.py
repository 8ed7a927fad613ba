"""Rendering people: portraits rasterised and shaded by Warp kernels, on CPU or CUDA.

Coverage is decided in integers: vertices are projected in double precision and snapped to 1/256
of a sample, so the same person covers the same samples on every machine; only shading is in
single precision, and it is smooth. Hence pixels agree to within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray

from fairq_utils.data import render_kernels
from fairq_utils.data.head import Head, load_head
from fairq_utils.data.population import People, Population, draw

SUBSAMPLES = 2  # per pixel and axis
SNAP = 256  # positions per sample and axis
CAMERA_DISTANCE = 0.9  # metres
HALF_WIDTH = 0.090  # metres seen to each side of the centre, at the face
BATCH = 64


def _rotation(yaw: Any, pitch: Any, roll: Any) -> NDArray[np.float64]:
    """Rotation matrices (N, 3, 3): yaw about z, pitch about x, roll about y; radians."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr, one, nil = np.cos(roll), np.sin(roll), np.ones_like(yaw), np.zeros_like(yaw)

    def matrix(*rows: Any) -> NDArray[np.float64]:
        return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)

    z = matrix((cy, -sy, nil), (sy, cy, nil), (nil, nil, one))
    x = matrix((one, nil, nil), (nil, cp, -sp), (nil, sp, cp))
    y = matrix((cr, nil, sr), (nil, one, nil), (-sr, nil, cr))
    return y @ x @ z


def project(head: Head, people: People, side: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Pose, align and project heads.

    The crop is centred between eyes and mouth and scaled by their distance, with a little of
    the error that a landmark detector would leave.

    Returns
    -------
    vertices : float32 (N, V, 3), metres, in the camera's axes
    screen : int32 (N, V, 3), column and row in 1/256 sample, depth in micrometres
    """
    look = people.look
    v = head.vertices(people)
    v = v @ np.swapaxes(_rotation(look["yaw"], look["pitch"], look["roll"]), 1, 2)
    eyes, mouth = v[:, head.eyes].mean(axis=1), v[:, head.lips].mean(axis=1)
    v -= (0.5 * (eyes + mouth))[:, None]
    v[:, :, [0, 2]] -= look["shift"][:, None]
    size = np.linalg.norm(eyes - mouth, axis=1) / 0.066
    half = HALF_WIDTH * size / look["zoom"]
    scale = side / 2 * CAMERA_DISTANCE / half
    depth = v[:, :, 1] + CAMERA_DISTANCE
    column = side / 2 + scale[:, None] * v[:, :, 0] / depth
    # The top of the hair needs more room than the chin.
    row = side * 0.55 - scale[:, None] * v[:, :, 2] / depth
    screen = np.stack([column * SNAP, row * SNAP, depth * 1e6], axis=2)
    return v.astype(np.float32), np.rint(screen).astype(np.int32)


@lru_cache(maxsize=4)
def _constants(device: str) -> dict[str, Any]:
    head = load_head()
    eye_x = float(np.abs(head.canonical[head.eyes, 0]).mean())
    return {
        "faces": wp.array(head.faces, dtype=wp.int32, device=device),
        "offsets": wp.array(head.offsets, dtype=wp.int32, device=device),
        "adjacent": wp.array(head.adjacent, dtype=wp.int32, device=device),
        "canonical": wp.array(head.canonical, dtype=wp.vec3, device=device),
        "masks": wp.array(head.masks, dtype=wp.vec3, device=device),
        "part": wp.array(head.part, dtype=wp.int32, device=device),
        "eye_x": eye_x,
    }


def _look_array(look: dict[str, NDArray[np.float64]], device: str) -> Any:
    n = len(look["tan"])
    packed: Any = np.zeros(n, dtype=render_kernels.Look.numpy_dtype())  # type: ignore[attr-defined]
    for name in ("skin", "lip", "hair", "iris", "light", "light_colour"):
        packed[name] = look[name].astype(np.float32)
    packed["above"] = look["background"][:, :3]
    packed["below"] = look["background"][:, 3:]
    for name in ("ambient", "hair_length", "recede", "brow", "beard", "wrinkle"):
        packed[name] = look[name]
    return wp.array(packed, dtype=render_kernels.Look, device=device)


def rasterise(head: Head, people: People, size: int, device: str) -> NDArray[np.float32]:
    """Linear radiance (N, size, size, 3) of these people."""
    constants = _constants(device)
    side = size * SUBSAMPLES
    n = len(people.target)
    vertices, screen = project(head, people, side)
    points: Any = wp.array(vertices, dtype=wp.vec3, device=device)
    pixels: Any = wp.array(screen, dtype=wp.int32, device=device)
    normals = wp.empty(vertices.shape[:2], dtype=wp.vec3, device=device)
    wp.launch(
        render_kernels.normals,
        dim=normals.shape,
        inputs=[points, constants["faces"], constants["offsets"], constants["adjacent"]],
        outputs=[normals],
        device=device,
    )
    nearest = wp.full((n, side, side), np.iinfo(np.int64).max, dtype=wp.int64, device=device)
    wp.launch(
        render_kernels.cover,
        dim=(n, len(head.faces)),
        inputs=[pixels, constants["faces"], side, SNAP],
        outputs=[nearest],
        device=device,
    )
    out = wp.empty((n, size, size), dtype=wp.vec3, device=device)
    names = ("canonical", "masks", "part")
    wp.launch(
        render_kernels.shade,
        dim=out.shape,
        inputs=[
            nearest,
            pixels,
            constants["faces"],
            normals,
            *(constants[name] for name in names),
            _look_array(people.look, device),
            constants["eye_x"],
            SUBSAMPLES,
            SNAP,
        ],
        outputs=[out],
        device=device,
    )
    return out.numpy()


def develop(radiance: NDArray[np.float32], people: People) -> NDArray[np.uint8]:
    """Images uint8 (N, 3, H, W) of linear radiance (N, H, W, 3): exposure, gamma, noise."""
    out = np.empty((len(radiance), 3, *radiance.shape[1:3]), np.uint8)
    for i, linear in enumerate(radiance):
        key = people.noise_seed[i]
        noise = np.random.Generator(np.random.Philox(key=key)).standard_normal(
            linear.shape, dtype=np.float32
        )
        image = np.clip(linear * np.float32(people.look["exposure"][i]), 0, 1) ** (1 / 2.2)
        image = image + np.float32(people.look["sensor"][i]) * noise
        out[i] = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(2, 0, 1)
    return out


def default_device() -> str:
    """``cuda:0`` where Warp finds one, else ``cpu``."""
    wp.init()
    return "cuda:0" if wp.is_cuda_available() else "cpu"


def render(
    population: Population,
    split: str,
    indices: NDArray[np.int64],
    size: int,
    *,
    device: str | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.uint8], list[People]]:
    """Render the people of these indices.

    Parameters
    ----------
    population : Population
    split : str
    indices : int64 (N,)
    size : int
        Pixels per side.
    device : str, optional
        A Warp device, ``cpu`` or ``cuda:0``; found if not given.
    threads : int, optional
        Worker threads on the CPU; as many as PyTorch uses if not given.
    progress : callable, optional
        Called with the number of faces just finished.

    Returns
    -------
    images : uint8 (N, 3, size, size)
    people : list of People, one per batch, in order
    """
    head = load_head()
    device = device or default_device()
    _constants(device)
    chunks = [indices[i : i + BATCH] for i in range(0, len(indices), BATCH)]
    images = np.empty((len(indices), 3, size, size), np.uint8)

    def work(number: int) -> People:
        people = draw(population, split, chunks[number], head.shape_labels)
        start = number * BATCH
        images[start : start + len(chunks[number])] = develop(
            rasterise(head, people, size, device), people
        )
        if progress is not None:
            progress(len(chunks[number]))
        return people

    workers = 1 if device != "cpu" else (threads or torch.get_num_threads())
    with ThreadPoolExecutor(workers) as pool:
        return images, list(pool.map(work, range(len(chunks))))
