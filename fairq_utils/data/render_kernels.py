"""Warp kernels of the renderer: device code, compiled for the CPU or for CUDA.

Arrays are (N people, ...). Coverage is integer arithmetic and does not depend on the machine.
"""

# Annotations are Warp's types, which a Python type checker cannot read.
# mypy: ignore-errors

from __future__ import annotations

import warp as wp

# Warp otherwise greets on standard error, and reports that a GPU is absent.
wp.config.log_level = wp.LOG_ERROR


@wp.kernel
def normals(
    vertices: wp.array2d(dtype=wp.vec3),
    faces: wp.array2d(dtype=wp.int32),
    offsets: wp.array(dtype=wp.int32),
    adjacent: wp.array(dtype=wp.int32),
    out: wp.array2d(dtype=wp.vec3),
):
    """Normal of every vertex: sum over its faces, so larger faces weigh more."""
    b, v = wp.tid()
    n = wp.vec3(0.0, 0.0, 0.0)
    for k in range(offsets[v], offsets[v + 1]):
        f = adjacent[k]
        p = vertices[b, faces[f, 0]]
        n += wp.cross(vertices[b, faces[f, 1]] - p, vertices[b, faces[f, 2]] - p)
    out[b, v] = wp.normalize(n)


@wp.func
def edge(ax: wp.int64, ay: wp.int64, bx: wp.int64, by: wp.int64, px: wp.int64, py: wp.int64):
    """Twice the signed area of the triangle a, b, p."""
    return (bx - ax) * (py - ay) - (by - ay) * (px - ax)


@wp.kernel
def cover(
    screen: wp.array3d(dtype=wp.int32),
    faces: wp.array2d(dtype=wp.int32),
    side: int,
    snap: int,
    nearest: wp.array3d(dtype=wp.int64),
):
    """Nearest face of every sample, packed as depth (micrometres) x 65536 + face."""
    b, f = wp.tid()
    i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
    ax, ay = wp.int64(screen[b, i, 0]), wp.int64(screen[b, i, 1])
    bx, by = wp.int64(screen[b, j, 0]), wp.int64(screen[b, j, 1])
    cx, cy = wp.int64(screen[b, k, 0]), wp.int64(screen[b, k, 1])
    area = edge(ax, ay, bx, by, cx, cy)
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
                u = edge(bx, by, cx, cy, px, py)
                v = edge(cx, cy, ax, ay, px, py)
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
    """Properties of one person that shading needs: linear RGB, a unit vector, shares 0 to 1."""

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
def step(low: float, high: float, x: float):
    """Hermite step from 0 at low to 1 at high."""
    t = wp.clamp((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@wp.func
def albedo_at(p: wp.vec3, mask: wp.vec3, part: int, eye_x: float, look: Look):
    """Reflectance at canonical position p."""
    colour = look.skin
    x = wp.abs(p[0])
    if part >= 2:
        d = wp.sqrt((x - eye_x) * (x - eye_x) + (p[2] - 0.7285) * (p[2] - 0.7285))
        white = wp.vec3(0.72, 0.70, 0.68)
        colour = look.iris + (white - look.iris) * step(0.0055, 0.0070, d)
        colour = colour * (0.05 + 0.95 * step(0.0020, 0.0032, d))
    elif part == 1:
        colour = wp.vec3(0.30, 0.10, 0.09)
    else:
        front = step(-0.075, -0.11, p[1])
        # Ageing: forehead lines, folds from nose to mouth, darker rings under the eyes.
        lines = wp.max(wp.sin(p[2] * 820.0 + 22.0 * x), 0.0)
        lines = lines * step(0.757, 0.767, p[2]) * step(0.05, 0.03, x)
        fold = wp.abs(x - (0.0185 + 0.45 * (0.695 - p[2])))
        folds = step(0.0050, 0.0005, fold) * step(0.655, 0.665, p[2]) * step(0.698, 0.688, p[2])
        ring = step(0.0085, 0.0, wp.abs(p[2] - 0.7125)) * step(0.019, 0.0, wp.abs(x - eye_x))
        age = look.wrinkle * front * (0.30 * lines + 0.50 * folds + 0.38 * ring)
        colour = colour * (1.0 - age)
        lip = mask[0] * front
        colour = colour + (look.lip - colour) * lip
        # Beard and moustache: jaw, chin and upper lip, not the lips.
        chin = step(0.688, 0.676, p[2]) * step(-0.050, -0.075, p[1])
        tache = step(0.0300, 0.0220, x) * step(0.690, 0.684, p[2]) * step(0.660, 0.668, p[2])
        whisker = wp.max(
            chin * step(0.0, 0.012, wp.length(wp.vec2(x, (p[2] - 0.662) * 1.6)) - 0.024), tache
        )
        whisker = wp.max(whisker, chin * step(0.648, 0.638, p[2]))
        colour = colour + (look.hair * 1.15 - colour) * (0.9 * look.beard * whisker * (1.0 - lip))
        inside = wp.vec3(0.10, 0.030, 0.028)
        colour = colour + (inside - colour) * mask[2]
        # Brows: an arch above each eye.
        arch = 0.7475 + 0.0050 * step(0.010, 0.036, x) - 0.0075 * step(0.038, 0.055, x)
        thick = 0.0026 + 0.0022 * look.brow
        brow = step(thick * 1.6, thick * 0.7, wp.abs(p[2] - arch)) * step(0.009, 0.013, x)
        brow = brow * step(0.054, 0.046, x) * front
        colour = colour + (look.hair - colour) * (brow * (0.45 + 0.5 * look.brow))
        # Scalp: above the hairline, and all of the back where hair is long.
        line = 0.655 + 0.147 * step(-0.02, -0.115, p[1])
        line = line + 0.042 * look.recede * step(-0.05, -0.10, p[1])
        scalp = step(-0.003, 0.005, p[2] - line)
        back = step(-0.048, -0.036, p[1]) * step(0.1, 0.3, look.hair_length)
        scalp = wp.max(scalp, back) * (1.0 - mask[1])
        strand = 1.0 + 0.22 * wp.sin(p[0] * 900.0 + 40.0 * wp.sin(p[2] * 60.0))
        colour = colour + (look.hair * strand - colour) * scalp
    return colour


@wp.kernel
def shade(
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
    """Light of every pixel: Lambert with a little wrap, sky, gloss; background elsewhere."""
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
                area = float(edge(ax, ay, bx, by, cx, cy))
                u = float(edge(bx, by, cx, cy, px, py)) / area
                v = float(edge(cx, cy, ax, ay, px, py)) / area
                w = 1.0 - u - v
                n = wp.normalize(normals[b, i] * u + normals[b, j] * v + normals[b, k] * w)
                p = canonical[i] * u + canonical[j] * v + canonical[k] * w
                m = masks[i] * u + masks[j] * v + masks[k] * w
                diffuse = wp.max(0.88 * wp.dot(n, look.light) + 0.12, 0.0)
                sky = look.ambient * (0.75 + 0.25 * n[2])
                shine = wp.pow(
                    wp.max(wp.dot(n, wp.normalize(look.light + wp.vec3(0.0, -1.0, 0.0))), 0.0), 24.0
                )
                gloss = 0.05
                if part[i] >= 2:
                    gloss = 0.35
                albedo = albedo_at(p, m, part[i], eye_x, look)
                lit = wp.cw_mul(albedo, look.light_colour * diffuse + wp.vec3(sky, sky, sky))
                total += lit + look.light_colour * (gloss * shine)
    out[b, r, c] = total / float(subsamples * subsamples)
