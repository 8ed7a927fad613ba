"""The head: Anny's parametric human, cut down to what a portrait needs.

Anny (Brégier et al. 2026; code Apache-2.0, MakeHuman assets CC0) maps phenotype, head shape and
52 facial actions to vertices. Everything here is in double precision, so that the last bit of a
matrix product does not decide which pixel a triangle covers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fairq_utils.data.appearance import FACIAL_ACTIONS
from fairq_utils.data.population import People

# Parts of the body below the neck have shapes of their own; they do not move a head.
HEAD_REGIONS = ("nose", "eye", "mouth", "head", "chin", "cheek", "forehead", "ear", "neck")
NOT_HEAD = ("forearm", "breast", "measure-", "head-age", "cleavage")
# Centre from which hair grows outwards, in the template's frame (metres).
SKULL_CENTRE = np.array([0.0, -0.055, 0.755])


@dataclass(frozen=True)
class Head:
    """The head model and what is constant over people.

    Attributes
    ----------
    shape_labels : head-shape dials, in the order of ``People.shape``
    faces : int32 (F, 3)
    canonical : float32 (V, 3)
        Template positions in metres: x to the viewer's right, y away from the viewer, z up.
    masks : float32 (V, 3)
        Lips, ears, inside of the mouth; 0 to 1.
    part : int32 (V,)
        0 skin, 1 tongue and inner mouth, 2 and 3 the two eyeballs.
    adjacent, offsets : int32
        Faces around vertex v are ``adjacent[offsets[v]:offsets[v + 1]]``.
    scalp, back : float64 (V,)
        How far hair lifts a vertex; how far long hair does.
    lips, eyes : int64
        Vertices that the crop is aligned on.
    """

    anny: Any
    shape_labels: list[str]
    blendshapes: torch.Tensor
    template: torch.Tensor
    used: torch.Tensor
    faces: NDArray[np.int32]
    canonical: NDArray[np.float32]
    masks: NDArray[np.float32]
    part: NDArray[np.int32]
    adjacent: NDArray[np.int32]
    offsets: NDArray[np.int32]
    scalp: NDArray[np.float64]
    back: NDArray[np.float64]
    lips: NDArray[np.int64]
    eyes: NDArray[np.int64]

    def vertices(self, people: People) -> NDArray[np.float64]:
        """Vertices (N, V, 3) in metres, hair included, head upright."""
        n, model = len(people.target), self.anny
        shape = torch.zeros(n, len(model.local_change_labels), dtype=torch.float64)
        columns = [model.local_change_labels.index(name) for name in self.shape_labels]
        shape[:, columns] = torch.from_numpy(people.shape)
        actions = torch.zeros(n, len(model.facial_action_labels), dtype=torch.float64)
        columns = [model.facial_action_labels.index(name) for name in FACIAL_ACTIONS]
        actions[:, columns] = torch.from_numpy(people.actions)
        with torch.no_grad():
            c = model._get_phenotype_blendshape_coefficients(
                torch.from_numpy(people.phenotype), shape, actions
            )
            v = (self.template + c[:, self.used] @ self.blendshapes).numpy().reshape(n, -1, 3)
        volume = people.look["hair_volume"][:, None] * self.scalp
        volume = volume + 0.030 * people.look["hair_length"][:, None] * self.back
        outward = v - (SKULL_CENTRE - self.template_centre() + v.mean(axis=1, keepdims=True))
        outward[:, :, 2] *= 0.35 + 0.65 * (self.scalp > self.back)[None]
        outward /= np.linalg.norm(outward, axis=2, keepdims=True) + 1e-12
        return v + volume[:, :, None] * outward

    def template_centre(self) -> NDArray[np.float64]:
        """Mean of the template's vertices, (3,) in metres."""
        return self.template.numpy().reshape(-1, 3).mean(axis=0)


def smooth(edge0: float, edge1: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hermite step from 0 at ``edge0`` to 1 at ``edge1``."""
    t = np.clip((x - edge0) / (edge1 - edge0), 0, 1)
    return t * t * (3 - 2 * t)


def hairline(canonical: NDArray[np.float64]) -> NDArray[np.float64]:
    """Height in metres above the hairline of each template vertex (V,); negative on the face."""
    y, z = canonical[:, 1], canonical[:, 2]
    return z - (0.655 + 0.147 * smooth(-0.02, -0.115, y))


@lru_cache(maxsize=1)
def load_head() -> Head:
    """Build the head. The first time on a machine takes about a minute; Anny caches the result."""
    logging.getLogger("anny").setLevel(logging.ERROR)
    import anny

    model = anny.Anny(
        rig="makehuman-head",
        topology="head",
        phenotypes="all",
        local_changes="default",
        facial_actions="all",
    )
    labels = [
        name
        for name in model.local_change_labels
        if any(region in name for region in HEAD_REGIONS)
        and not any(word in name for word in NOT_HEAD)
    ]
    faces = np.asarray(model.get_triangular_faces()).astype(np.int32)
    canonical = model.template_vertices.numpy()
    used = model.blendshapes.abs().amax(dim=(1, 2)) > 1e-9
    masks = _masks(model, faces, len(canonical))
    part = _parts(faces, canonical)
    skin = part == 0
    line = hairline(canonical)
    scalp = smooth(-0.004, 0.03, line) * (1 - masks[:, 1]) * skin
    back = smooth(-0.045, -0.005, canonical[:, 1]) * smooth(0.76, 0.70, canonical[:, 2])
    offsets, adjacent = _adjacency(faces, len(canonical))
    return Head(
        anny=model,
        shape_labels=labels,
        blendshapes=model.blendshapes[used].reshape(int(used.sum()), -1).contiguous(),
        template=model.template_vertices.reshape(-1),
        used=used,
        faces=faces,
        canonical=canonical.astype(np.float32),
        masks=masks,
        part=part.astype(np.int32),
        adjacent=adjacent,
        offsets=offsets,
        scalp=scalp,
        back=back * (1 - masks[:, 1]) * skin,
        lips=np.flatnonzero((masks[:, 0] > 0.5) & skin),
        eyes=np.flatnonzero(part >= 2),
    )


def _masks(model: Any, faces: NDArray[np.int32], count: int) -> NDArray[np.float32]:
    import anny

    folder = Path(anny.__file__).parent / "data" / "mpfb2" / "textures"
    corners = faces.reshape(-1)
    uv = model.texture_coordinates.numpy()
    uv = uv[model.face_texture_coordinate_indices.numpy().reshape(-1)]
    masks = np.zeros((count, 3), np.float32)
    for i, name in enumerate(("lips", "ears", "inside-mouth")):
        texture = np.asarray(Image.open(folder / f"mpfb_{name}.jpg").convert("L"), np.float32) / 255
        h, w = texture.shape
        row = np.clip(((1 - uv[:, 1]) * (h - 1)).astype(int), 0, h - 1)
        column = np.clip((uv[:, 0] * (w - 1)).astype(int), 0, w - 1)
        np.maximum.at(masks[:, i], corners, texture[row, column])
    return masks


def _parts(faces: NDArray[np.int32], canonical: NDArray[np.float64]) -> NDArray[np.int64]:
    """Connected pieces of the mesh: head, then tongue, then eyes, by falling size."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(canonical)
    edges = (faces.ravel(), np.roll(faces, 1, axis=1).ravel())
    graph = coo_matrix((np.ones(faces.size), edges), shape=(n, n))
    count, label = connected_components(graph, directed=False)
    if count != 4:
        raise RuntimeError(
            f"the head mesh has {count} pieces where 4 are expected: head, tongue, two eyes"
        )
    order = np.argsort(-np.bincount(label))
    return np.argsort(order)[label]


def _adjacency(faces: NDArray[np.int32], count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    corners = faces.reshape(-1)
    order = np.argsort(corners, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(corners, minlength=count))])
    return offsets.astype(np.int32), (order // 3).astype(np.int32)
