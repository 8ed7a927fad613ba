"""How people look: portraits rasterised and shaded by Warp kernels, on CPU or CUDA.

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

from fairq_utils.data.head import Head, load_head
from fairq_utils.data.population import People, Population, draw

SUBSAMPLES = 2  # per pixel and axis
SNAP = 256  # positions per sample and axis
CAMERA_DISTANCE = 0.9  # metres
HALF_WIDTH = 0.090  # metres seen to each side of the centre, at the face
BATCH = 64

wp.config.quiet = True


@wp.kernel
def _normals(
    vertices: wp.array2d(dtype=wp.vec3),
    faces: wp.array2d(dtype=wp.int32),
    offsets: wp.array(dtype=wp.int32),
    adjacent: wp.array(dtype=wp.int32),
    out: wp.array2d(dtype=wp.vec3),
):
    b, v = wp.tid()
    n = wp.vec3(0.0, 0.0, 0.0)
    for k in range(offsets[v], offsets[v + 1]):
        f = adjacent[k]
        p = vertices[b, faces[f, 0]]
        n += wp.cross(vertices[b, faces[f, 1]] - p, vertices[b, faces[f, 2]] - p)
    out[b, v] = wp.normalize(n)


@wp.func
def _edge(ax: wp.int64, ay: wp.int64, bx: wp.int64, by: wp.int64, px: wp.int64, py: wp.int64):
    return (bx - ax) * (py - ay) - (by - ay) * (px - ax)


@wp.kernel
def _cover(
    screen: wp.array3d(dtype=wp.int32),
    faces: wp.array2d(dtype=wp.int32),
    side: int,
    snap: int,
    nearest: wp.array3d(dtype=wp.int64),
):
    b, f = wp.tid()
    i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
    ax, ay = wp.int64(screen[b, i, 0]), wp.int64(screen[b, i, 1])
    bx, by = wp.int64(screen[b, j, 0]), wp.int64(screen[b, j, 1])
    cx, cy = wp.int64(screen[b, k, 0]), wp.int64(screen[b, k, 1])
    area = _edge(ax, ay, bx, by, cx, cy)
    # Rows run downwards, so a face that looks at the camera has negative area.
    if area < wp.int64(0):
        s = wp.int64(snap)
        half = s / wp.int64(2)
        c0 = wp.max(int((wp.min(wp.min(ax, bx), cx) - half) / s), 0)
        c1 = wp.min(int((wp.max(wp.max(ax, bx), cx) - half) / s) + 1, side - 1)
        r0 = wp.max(int((wp.min(wp.min(ay, by), cy) - half) / s), 0)
        r1 = wp.min(int((wp.max(wp.max(ay, by), cy) - half) / s) + 1, side - 1)
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                px = wp.int64(c) * s + half
                py = wp.int64(r) * s + half
                u = _edge(bx, by, cx, cy, px, py)
                v = _edge(cx, cy, ax, ay, px, py)
                w = area - u - v
                if u <= wp.int64(0) and v <= wp.int64(0) and w <= wp.int64(0):
                    depth = (
                        u * wp.int64(screen[b, i, 2])
                        + v * wp.int64(screen[b, j, 2])
                        + w * wp.int64(screen[b, k, 2])
                    ) / area
                    key = depth * wp.int64(65536) + wp.int64(f)
                    wp.atomic_min(nearest, b, r, c, key)


@wp.struct
class Look:
    skin: wp.vec3
    lip: wp.vec3
    hair: wp.vec3
    iris: wp.vec3
    light: wp.vec3
    light_colour: wp.vec3
    above: wp.vec3
    below: wp.vec3
    ambient: float
    hair_length: float
    recede: float
    brow: float
    beard: float
    wrinkle: float


@wp.func
def _step(low: float, high: float, x: float):
    t = wp.clamp((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@wp.func
def _albedo(p: wp.vec3, mask: wp.vec3, part: int, eye_x: float, look: Look):
    """Reflectance at canonical position p."""
    colour = look.skin
    x = wp.abs(p[0])
    if part >= 2:
        d = wp.sqrt((x - eye_x) * (x - eye_x) + (p[2] - 0.7285) * (p[2] - 0.7285))
        white = wp.vec3(0.72, 0.70, 0.68)
        colour = look.iris + (white - look.iris) * _step(0.0055, 0.0070, d)
        colour = colour * (0.05 + 0.95 * _step(0.0020, 0.0032, d))
    elif part == 1:
        colour = wp.vec3(0.30, 0.10, 0.09)
    else:
        front = _step(-0.075, -0.11, p[1])
        # Ageing: forehead lines, folds from nose to mouth, darker rings under the eyes.
        lines = wp.max(wp.sin(p[2] * 820.0 + 22.0 * x), 0.0)
        lines = lines * _step(0.757, 0.767, p[2]) * _step(0.05, 0.03, x)
        fold = wp.abs(x - (0.0185 + 0.45 * (0.695 - p[2])))
        folds = _step(0.0050, 0.0005, fold) * _step(0.655, 0.665, p[2]) * _step(0.698, 0.688, p[2])
        ring = _step(0.0085, 0.0, wp.abs(p[2] - 0.7125)) * _step(0.019, 0.0, wp.abs(x - eye_x))
        age = look.wrinkle * front * (0.30 * lines + 0.50 * folds + 0.38 * ring)
        colour = colour * (1.0 - age)
        lip = mask[0] * front
        colour = colour + (look.lip - colour) * lip
        # Beard and moustache: jaw, chin and upper lip, not the lips.
        chin = _step(0.688, 0.676, p[2]) * _step(-0.050, -0.075, p[1])
        tache = _step(0.0300, 0.0220, x) * _step(0.690, 0.684, p[2]) * _step(0.660, 0.668, p[2])
        whisker = wp.max(chin * _step(0.0, 0.012, wp.length(wp.vec2(x, (p[2] - 0.662) * 1.6)) - 0.024), tache)
        whisker = wp.max(whisker, chin * _step(0.648, 0.638, p[2]))
        colour = colour + (look.hair * 1.15 - colour) * (0.9 * look.beard * whisker * (1.0 - lip))
        inside = wp.vec3(0.10, 0.030, 0.028)
        colour = colour + (inside - colour) * mask[2]
        # Brows: an arch above each eye.
        arch = 0.7475 + 0.0050 * _step(0.010, 0.036, x) - 0.0075 * _step(0.038, 0.055, x)
        thick = 0.0026 + 0.0022 * look.brow
        brow = _step(thick * 1.6, thick * 0.7, wp.abs(p[2] - arch)) * _step(0.009, 0.013, x)
        brow = brow * _step(0.054, 0.046, x) * front
        colour = colour + (look.hair - colour) * (brow * (0.45 + 0.5 * look.brow))
        # Scalp: above the hairline, and all of the back where hair is long.
        line = 0.655 + 0.147 * _step(-0.02, -0.115, p[1])
        line = line + 0.042 * look.recede * _step(-0.05, -0.10, p[1])
        scalp = _step(-0.003, 0.005, p[2] - line)
        back = _step(-0.048, -0.036, p[1]) * _step(0.1, 0.3, look.hair_length)
        scalp = wp.max(scalp, back) * (1.0 - mask[1])
        strand = 1.0 + 0.22 * wp.sin(p[0] * 900.0 + 40.0 * wp.sin(p[2] * 60.0))
        colour = colour + (look.hair * strand - colour) * scalp
    return colour


@wp.kernel
def _shade(
    nearest: wp.array3d(dtype=wp.int64),
    screen: wp.array3d(dtype=wp.int32),
    faces: wp.array2d(dtype=wp.int32),
    normals: wp.array2d(dtype=wp.vec3),
    canonical: wp.array(dtype=wp.vec3),
    masks: wp.array(dtype=wp.vec3),
    part: wp.array(dtype=wp.int32),
    looks: wp.array(dtype=Look),
    eye_x: float,
    subsamples: int,
    snap: int,
    out: wp.array3d(dtype=wp.vec3),
):
    b, r, c = wp.tid()
    look = looks[b]
    total = wp.vec3(0.0, 0.0, 0.0)
    rows = float(out.shape[1])
    for sr in range(subsamples):
        for sc in range(subsamples):
            y = r * subsamples + sr
            x = c * subsamples + sc
            key = nearest[b, y, x]
            if key == wp.int64(9223372036854775807):
                t = (float(r) + 0.5) / rows
                total += look.above * (1.0 - t) + look.below * t
            else:
                f = int(key % wp.int64(65536))
                i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
                s = wp.int64(snap)
                px = wp.int64(x) * s + s / wp.int64(2)
                py = wp.int64(y) * s + s / wp.int64(2)
                ax, ay = wp.int64(screen[b, i, 0]), wp.int64(screen[b, i, 1])
                bx, by = wp.int64(screen[b, j, 0]), wp.int64(screen[b, j, 1])
                cx, cy = wp.int64(screen[b, k, 0]), wp.int64(screen[b, k, 1])
                area = float(_edge(ax, ay, bx, by, cx, cy))
                u = float(_edge(bx, by, cx, cy, px, py)) / area
                v = float(_edge(cx, cy, ax, ay, px, py)) / area
                w = 1.0 - u - v
                n = wp.normalize(normals[b, i] * u + normals[b, j] * v + normals[b, k] * w)
                p = canonical[i] * u + canonical[j] * v + canonical[k] * w
                m = masks[i] * u + masks[j] * v + masks[k] * w
                diffuse = wp.max(0.88 * wp.dot(n, look.light) + 0.12, 0.0)
                sky = look.ambient * (0.75 + 0.25 * n[2])
                shine = wp.pow(wp.max(wp.dot(n, wp.normalize(look.light + wp.vec3(0.0, -1.0, 0.0))), 0.0), 24.0)
                gloss = 0.05
                if part[i] >= 2:
                    gloss = 0.35
                albedo = _albedo(p, m, part[i], eye_x, look)
                lit = wp.cw_mul(albedo, look.light_colour * diffuse + wp.vec3(sky, sky, sky))
                total += lit + look.light_colour * (gloss * shine)
    out[b, r, c] = total / float(subsamples * subsamples)


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


def project(
    head: Head, people: People, side: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
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
    packed = np.zeros(n, dtype=Look.numpy_dtype())
    for name in ("skin", "lip", "hair", "iris", "light", "light_colour"):
        packed[name] = look[name].astype(np.float32)
    packed["above"] = look["background"][:, :3]
    packed["below"] = look["background"][:, 3:]
    for name in ("ambient", "hair_length", "recede", "brow", "beard", "wrinkle"):
        packed[name] = look[name]
    return wp.array(packed, dtype=Look, device=device)


def rasterise(head: Head, people: People, size: int, device: str) -> NDArray[np.float32]:
    """Linear radiance (N, size, size, 3) of these people."""
    constants = _constants(device)
    side = size * SUBSAMPLES
    n = len(people.target)
    vertices, screen = project(head, people, side)
    points = wp.array(vertices, dtype=wp.vec3, device=device)
    pixels = wp.array(screen, dtype=wp.int32, device=device)
    normals = wp.empty(vertices.shape[:2], dtype=wp.vec3, device=device)
    wp.launch(
        _normals,
        dim=normals.shape,
        inputs=[points, constants["faces"], constants["offsets"], constants["adjacent"]],
        outputs=[normals],
        device=device,
    )
    nearest = wp.full((n, side, side), np.iinfo(np.int64).max, dtype=wp.int64, device=device)
    wp.launch(
        _cover,
        dim=(n, len(head.faces)),
        inputs=[pixels, constants["faces"], side, SNAP],
        outputs=[nearest],
        device=device,
    )
    out = wp.empty((n, size, size), dtype=wp.vec3, device=device)
    names = ("canonical", "masks", "part")
    wp.launch(
        _shade,
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
    """From linear radiance (N, H, W, 3) to pictures uint8 (N, 3, H, W): exposure, gamma, noise."""
    out = np.empty((len(radiance), 3, *radiance.shape[1:3]), np.uint8)
    for i, linear in enumerate(radiance):
        key = people.noise_seed[i]
        noise = np.random.Generator(np.random.Philox(key=key)).standard_normal(
            linear.shape, dtype=np.float32
        )
        picture = np.clip(linear * np.float32(people.look["exposure"][i]), 0, 1) ** (1 / 2.2)
        picture = picture + np.float32(people.look["sensor"][i]) * noise
        out[i] = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8).transpose(2, 0, 1)
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
